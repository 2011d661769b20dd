// progress.hpp - what a training run tells while it runs: a progress line, metrics.jsonl, Ctrl-C.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_PROGRESS_HPP
#define WIDENET_EXAMPLES_SUPPORT_PROGRESS_HPP

#include "widenet.hpp"

#include <signal.h>  // sigaction: POSIX
#include <unistd.h>  // isatty: POSIX

#include <chrono>       // steady_clock
#include <cmath>        // isfinite, round
#include <csignal>      // sig_atomic_t
#include <cstdint>      // uint8_t
#include <cstdio>       // snprintf
#include <cstdlib>      // getenv
#include <fstream>      // ofstream
#include <iostream>     // cerr
#include <limits>       // numeric_limits
#include <locale>       // locale
#include <sstream>      // istringstream, ostringstream
#include <string>       // string
#include <type_traits>  // enable_if_t, is_arithmetic_v
#include <utility>      // pair
#include <vector>       // vector

namespace widenet::support {

// THE PROGRESS LINE -------------------------------------------------------------------------------

struct Progress {
  Index step = 0, num_steps = 0;
  double loss = 0, balance_loss = 0, dropped_fraction = 0;
  double tokens_per_second = 0, seconds_left = 0;
};

/// "0:42", "12:05" or "3:07:00".
inline std::string clock_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e9) return "-:--";
  const long s = static_cast<long>(std::round(seconds));
  char text[32];
  if (s < 3600) std::snprintf(text, sizeof text, "%ld:%02ld", s / 60, s % 60);
  else std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
  return text;
}

inline std::string progress_text(const Progress& p) {
  const std::string total = std::to_string(p.num_steps);
  const bool is_fast = p.tokens_per_second >= 9999.5;
  char text[200];
  std::snprintf(text, sizeof text,  // 80 columns for a thousand steps
                "step %*ld/%s  loss %.3f  balance %.2f  dropped %4.1f%%  %.0f%s tokens/s  %s left",
                static_cast<int>(total.size()), static_cast<long>(p.step), total.c_str(), p.loss,
                p.balance_loss, 100 * p.dropped_fraction,
                p.tokens_per_second / (is_fast ? 1000 : 1), is_fast ? "k" : "",
                clock_text(p.seconds_left).c_str());
  return text;
}

/// One line that is rewritten ten times a second on a terminal, a new line every five seconds
/// elsewhere. Rate and time left are means since the first step of this process.
class ProgressLine {
 public:
  ProgressLine(Index first_step, Index num_steps, std::ostream& out = std::cerr,
               bool is_terminal = stderr_is_terminal())
      : first_step_(first_step), num_steps_(num_steps), out_(out), is_terminal_(is_terminal) {}
  ~ProgressLine() { end_line(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  /// To be called after every step; `step` counts the finished ones and `seconds` since the start.
  void update(Index step, double loss, double balance_loss, double dropped_fraction, Index tokens,
              double seconds) {
    num_tokens_ += tokens;
    const bool is_last = step == num_steps_;
    if (seconds < next_ && !is_last) return;
    next_ = seconds + (is_terminal_ ? 0.1 : 5);
    const double per_step = seconds / static_cast<double>(step - first_step_);
    const std::string text = progress_text({step, num_steps_, loss, balance_loss, dropped_fraction,
                                            static_cast<double>(num_tokens_) / seconds,
                                            per_step * static_cast<double>(num_steps_ - step)});
    // Without line wrapping (escape ?7) a narrow window cuts the line instead of breaking it.
    if (is_terminal_) out_ << "\r\x1b[?7l" << text << "\x1b[K\x1b[?7h" << std::flush;
    else out_ << text << std::endl;
    is_line_open_ = is_terminal_;
  }
  void update(Index step, double loss, double balance_loss, double dropped_fraction,
              Index tokens) {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    update(step, loss, balance_loss, dropped_fraction, tokens, elapsed.count());
  }

  /// A line of its own, such as the accuracy after an epoch; the progress line goes on below it.
  void note(const std::string& text) {
    out_ << (is_line_open_ ? "\r\x1b[K" : "") << text << std::endl;
    is_line_open_ = false;
  }
  void end_line() {
    if (is_line_open_) out_ << std::endl;
    is_line_open_ = false;
  }
  static bool stderr_is_terminal() {
    const char* const terminal = std::getenv("TERM");
    return isatty(STDERR_FILENO) == 1 && terminal && std::string(terminal) != "dumb";
  }

 private:
  Index first_step_, num_steps_, num_tokens_ = 0;
  std::ostream& out_;
  bool is_terminal_, is_line_open_ = false;
  double next_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// METRICS.JSONL -----------------------------------------------------------------------------------

/// The JSON text of a value. A number is the shortest that reads back as the same bits; JSON knows
/// no NaN and no infinity, so these become null.
template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0> std::string json(T value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_integral_v<T>) {
    return std::to_string(value);
  } else {
    if (!std::isfinite(value)) return "null";
    for (int digits = std::numeric_limits<T>::digits10;; ++digits) {
      std::ostringstream out;
      out.imbue(std::locale::classic());
      out.precision(digits);
      out << value;
      if (digits == std::numeric_limits<T>::max_digits10) return out.str();
      std::istringstream in(out.str());
      in.imbue(std::locale::classic());
      T back = 0;
      if (in >> back && back == value) return out.str();
    }
  }
}

inline std::string json(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(std::uint8_t(c)));
    if (c == '"' || c == '\\') (result += '\\') += c;
    else if (std::uint8_t(c) < 0x20) result += escape;
    else result += c;
  }
  return result + '"';
}
inline std::string json(const char* text) { return json(std::string(text)); }

template <class A, class B> std::string json(const std::pair<A, B>& values) {
  return "[" + json(values.first) + ", " + json(values.second) + "]";
}
template <class T> std::string json(const std::vector<T>& values) {
  std::string result = "[";
  for (std::size_t i = 0; i < values.size(); ++i) result += (i ? ", " : "") + json(values[i]);
  return result + ']';
}

/// One object on one line, its members in the order of the calls:
/// JsonLine().add("step", 3).add("loss", 0.25).text() is {"step": 3, "loss": 0.25}.
class JsonLine {
 public:
  template <class T> JsonLine& add(const std::string& name, const T& value) {
    members_ += (members_.empty() ? "" : ", ") + json(name) + ": " + json(value);
    return *this;
  }
  /// All members of another line, after those that are there.
  JsonLine& add(const JsonLine& other) {
    if (!other.members_.empty()) members_ += (members_.empty() ? "" : ", ") + other.members_;
    return *this;
  }
  std::string text() const { return '{' + members_ + '}'; }

 private:
  std::string members_;
};
inline std::string json(const JsonLine& line) { return line.text(); }

/// Writes one JSON object per line and flushes it, so that a run that dies leaves whole lines.
class JsonLinesFile {
 public:
  /// A run that continues appends to the lines that it finds; any other starts anew.
  JsonLinesFile(const std::string& path, bool is_continued)
      : path_(path), stream_(path, is_continued ? std::ios::app : std::ios::trunc) {
    require<IoError>(stream_.good(), "metrics: ", path, ": must be writable; got: not opened");
  }
  void write(const JsonLine& line) {
    stream_ << line.text() << std::endl;
    require<IoError>(stream_.good(), "metrics: ", path_, ": the disk must take every line; got: ",
                     "a failed write");
  }

 private:
  std::string path_;
  std::ofstream stream_;
};

// CTRL-C ------------------------------------------------------------------------------------------

/// While one exists, the first Ctrl-C sets a flag, for the training loop to save and to stop; the
/// second ends the program, as it would without.
class Interrupt {
 public:
  Interrupt() {
    flag = 0;
    struct sigaction action = {};
    action.sa_handler = [](int) { flag = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);  // SA_RESETHAND: once only
    sigaction(SIGINT, &action, &before_);
  }
  ~Interrupt() { sigaction(SIGINT, &before_, nullptr); }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  bool requested() const { return flag != 0; }

 private:
  inline static volatile std::sig_atomic_t flag = 0;
  struct sigaction before_ = {};
};

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_PROGRESS_HPP
