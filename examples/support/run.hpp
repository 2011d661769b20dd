// run.hpp - what the training programs share: options on the command line, the files of a run.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_RUN_HPP
#define WIDENET_EXAMPLES_SUPPORT_RUN_HPP

#include "widenet.hpp"

#include <algorithm>   // find, find_if, max
#include <cerrno>      // errno
#include <cmath>       // isfinite
#include <cstdint>     // uint64_t
#include <cstdlib>     // strtoull
#include <fstream>     // ifstream, ofstream
#include <functional>  // function
#include <limits>      // numeric_limits
#include <locale>      // locale
#include <sstream>     // istringstream
#include <string>      // string
#include <vector>      // vector

namespace widenet::support {

// OPTIONS -----------------------------------------------------------------------------------------

/// A whole number from 0 to 2^63 - 1.
///
///   Errors    ValueError naming `what`
inline Index whole_number(const std::string& text, const std::string& what) {
  errno = 0;
  const unsigned long long value = std::strtoull(text.c_str(), nullptr, 10);
  require<ValueError>(!text.empty() && text.find_first_not_of("0123456789") == std::string::npos &&
                          errno == 0 && value <= 9223372036854775807ull,
                      what, " must be a whole number; got \"", text, "\"");
  return static_cast<Index>(value);
}

/// A finite number, such as 3e-4.
///
///   Errors    ValueError naming `what`
inline double finite_number(const std::string& text, const std::string& what) {
  std::istringstream in(text);
  in.imbue(std::locale::classic());
  double value = 0;
  char rest = 0;
  const bool is_number = static_cast<bool>(in >> value) && !(in >> rest) && std::isfinite(value);
  require<ValueError>(is_number, what, " must be a number; got \"", text, "\"");
  return value;
}

/// The options of a program: each sets a variable, which holds the default, and has a line of help.
/// A bool is set by the name alone; all others take the argument after the name.
///
///   Errors    ValueError naming the program and the option
///   Example   CommandLine line("demo", "trains a WideNet on handwritten digits");
///             line.add("--steps", steps, "how many steps").add("--resume", resume, "go on");
///             if (!line.parse(argc, argv)) std::cout << line.usage();   // --help was asked for
class CommandLine {
 public:
  CommandLine(std::string program, std::string purpose)
      : program_(std::move(program)), purpose_(std::move(purpose)) {}

  CommandLine& add(const std::string& name, std::string& value, const std::string& help) {
    return add(name, value, help, "TEXT",
               [&value](const std::string& text, const std::string&) { value = text; });
  }
  /// One of a few words.
  CommandLine& add(const std::string& name, std::string& value, const std::string& help,
                   const std::vector<std::string>& words) {
    std::string list;
    for (const std::string& word : words) list += (list.empty() ? "" : "|") + word;
    return add(name, value, help, list,
               [&value, words, list](const std::string& text, const std::string& what) {
                 require<ValueError>(std::find(words.begin(), words.end(), text) != words.end(),
                                     what, " must be one of ", list, "; got \"", text, "\"");
                 value = text;
               });
  }
  /// A whole number of at least `least`.
  CommandLine& add(const std::string& name, Index& value, const std::string& help,
                   Index least = 1) {
    return add(name, std::to_string(value), help, "N",
               [&value, least](const std::string& text, const std::string& what) {
                 const Index number = whole_number(text, what);
                 require<ValueError>(number >= least, what, " must be at least ", least, "; got ",
                                     number);
                 value = number;
               });
  }
  CommandLine& add(const std::string& name, std::uint64_t& value, const std::string& help) {
    return add(name, std::to_string(value), help, "N",
               [&value](const std::string& text, const std::string& what) {
                 value = static_cast<std::uint64_t>(whole_number(text, what));
               });
  }
  /// A number that is not negative.
  CommandLine& add(const std::string& name, double& value, const std::string& help) {
    PlainText text;
    text << value;
    return add(name, text.str(), help, "X",
               [&value](const std::string& word, const std::string& what) {
                 const double number = finite_number(word, what);
                 require<ValueError>(number >= 0, what, " must not be negative; got ", number);
                 value = number;
               });
  }
  CommandLine& add(const std::string& name, bool& value, const std::string& help) {
    return add(name, "", help, "",
               [&value](const std::string&, const std::string&) { value = true; });
  }

  /// Sets the variables; false if --help is among the arguments.
  bool parse(int argc, const char* const* argv) const {
    for (int i = 1; i < argc; ++i) {
      const std::string name = argv[i];
      if (name == "--help" || name == "-h") return false;
      const auto option = std::find_if(options_.begin(), options_.end(),
                                       [&](const Option& o) { return o.name == name; });
      require<ValueError>(option != options_.end(), program_, ": an option must be one of ",
                          names(), "; got ", name, "; hint: --help explains them");
      const bool takes_value = !option->value.empty();
      require<ValueError>(!takes_value || i + 1 < argc, program_, ": ", name,
                          " must be followed by a value; got the end");
      option->set(takes_value ? argv[++i] : "", program_ + ": " + name);
    }
    return true;
  }

  /// What --help prints: one line for each option, with its default.
  std::string usage() const {
    std::size_t width = 0;
    for (const Option& o : options_) width = std::max(width, o.name.size() + o.value.size() + 1);
    std::string text = program_ + ": " + purpose_ + "\n\n";
    for (const Option& o : options_) {
      const std::string left = o.name + " " + o.value;
      text += "  " + left + std::string(width - left.size() + 2, ' ') + o.help +
              (o.initial.empty() ? "" : " (" + o.initial + ")") + "\n";
    }
    return text;
  }

 private:
  struct Option {
    std::string name, initial, help, value;  // value: how help calls the argument, "" if none
    std::function<void(const std::string& text, const std::string& what)> set;
  };
  CommandLine& add(const std::string& name, const std::string& initial, const std::string& help,
                   const std::string& value, decltype(Option::set) set) {
    options_.push_back({name, initial, help, value, std::move(set)});
    return *this;
  }
  std::string names() const {
    std::string list;
    for (const Option& o : options_) list += (list.empty() ? "" : " ") + o.name;
    return list;
  }

  std::string program_, purpose_;
  std::vector<Option> options_;
};

// FILES OF A RUN ----------------------------------------------------------------------------------

/// Where a run keeps its files.
struct RunFiles {
  std::string folder;
  std::string model() const { return folder + "/model.safetensors"; }
  std::string metrics() const { return folder + "/metrics.jsonl"; }
  std::string routes() const { return folder + "/routes.jsonl"; }
  std::string result() const { return folder + "/result.json"; }
  std::string report() const { return folder + "/report.html"; }
};

/// After a stop metrics.jsonl may be ahead of the checkpoint: keeps the lines before `step`, and
/// drops a last line that was half written.
///
///   Errors    IoError if a line is not an object with a "step"
inline void cut_metrics(const std::string& path, Index step) {
  std::ifstream in(path);
  std::string kept, line;
  while (std::getline(in, line)) {
    if (in.eof()) break;  // without its line end a line may be half written
    if (Json::parse(line, path).at("step").integer() < step) kept += line + '\n';
  }
  in.close();
  std::ofstream(path) << kept;
}

/// One curve of metrics.jsonl: the steps and the values of a field; null reads as NaN.
struct Curve {
  std::vector<double> step, value;
};
inline Curve read_curve(const std::string& path, const std::string& field) {
  Curve curve;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const Json json = Json::parse(line, path);
    const Json* const value = json.find(field);
    if (!value) continue;
    curve.step.push_back(json.at("step").number());
    curve.value.push_back(value->type() == Json::Type::null
                              ? std::numeric_limits<double>::quiet_NaN()
                              : value->number());
  }
  return curve;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_RUN_HPP
