// paper_runs.hpp - many trainings, each in a process of its own, and the file of those that are
// done.
//
// Results have the same bits for any number of threads, so the cores are best used by runs side by
// side with one thread each. A run that is done is one line of the file, under a key that says all
// that decides its result: what a restart finds there, it does not run again.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_PAPER_RUNS_HPP
#define WIDENET_EXAMPLES_SUPPORT_PAPER_RUNS_HPP

#include "support/progress.hpp"
#include "widenet.hpp"

#include <sys/wait.h>  // wait: POSIX
#include <unistd.h>    // fork, _exit: POSIX

#include <chrono>      // steady_clock
#include <cstdint>     // uint64_t
#include <fstream>     // ifstream, ofstream
#include <functional>  // function
#include <iostream>    // cerr, cout, ostream
#include <limits>      // numeric_limits
#include <map>         // map
#include <set>         // set
#include <string>      // string
#include <vector>      // vector

namespace widenet::support {

/// What a run measured, by name: "accuracy", "loss", "seconds", ...
using Measured = std::map<std::string, double>;

/// A model and how it is trained.
struct PaperSetting {
  std::string text;      // a JSON object of all that decides the result, but for the seed
  Index parameters = 0;
  Index flops = 0;       // of one example, forward
  double work = 0;       // of the training, in any unit: what the time that is left is told by
  std::function<Measured(std::uint64_t seed)> train;
};

/// One training.
struct PaperRun {
  std::string name;  // for people
  PaperSetting setting;
  std::uint64_t seed = 0;

  /// What a line of the file begins with. The version of the header stands in it: other code may
  /// have other results.
  std::string key() const {
    return "{\"version\": " + json(WIDENET_VERSION) + ", \"setting\": " + setting.text +
           ", \"seed\": " + std::to_string(seed);
  }
};

// THE FILE OF FINISHED RUNS -----------------------------------------------------------------------

constexpr const char* measured_field = ", \"measured\": ";

/// One line: {"version": ..., "setting": {...}, "seed": 0, "measured": {"accuracy": 0.9, ...}}
inline std::string run_line(const std::string& key, const Measured& measured) {
  JsonLine values;
  for (const auto& [name, value] : measured) values.add(name, value);
  return key + measured_field + values.text() + "}";
}

/// Key and values of all lines of the file; none if there is no file. A last line without its line
/// end is half written: it is cut off.
///
///   Errors    IoError if a line is none that run_line wrote
inline std::map<std::string, Measured> finished_runs(const std::string& path) {
  std::map<std::string, Measured> runs;
  std::ifstream in(path);
  std::string whole, line;
  bool is_half_written = false;
  while (std::getline(in, line)) {
    is_half_written = in.eof();
    if (is_half_written) break;
    whole += line + '\n';
    const std::size_t cut = line.find(measured_field);
    const Json values = Json::parse(line, path).at("measured");
    Measured& measured = runs[line.substr(0, cut)];
    for (const auto& [name, value] : values.members())
      measured[name] = value.type() == Json::Type::null ? std::numeric_limits<double>::quiet_NaN()
                                                        : value.number();
  }
  in.close();
  if (is_half_written) std::ofstream(path, std::ios::trunc) << whole;
  return runs;
}

// RUNNING -----------------------------------------------------------------------------------------

/// Starts a run in a process of its own, which adds a line to the file and ends.
inline pid_t start_run(const PaperRun& run, const std::string& path) {
  std::cout.flush();
  const pid_t process = fork();
  require<ValueError>(process >= 0, "paper: a run must get a process; got none");
  if (process > 0) return process;
  int status = 1;
  try {
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
    const std::string line = run_line(run.key(), run.setting.train(run.seed)) + '\n';
    std::ofstream out(path, std::ios::app);
    out << line << std::flush;  // one write
    require<IoError>(out.good(), "paper: ", path, ": must be writable; got: a failed write");
    status = 0;
  } catch (const std::exception& error) {
    std::cerr << run.name << ", seed " << run.seed << ": " << error.what() << std::endl;
  }
  _exit(status);
}

/// The runs whose key is not in the file, each key once.
inline std::vector<PaperRun> missing_runs(const std::vector<PaperRun>& runs,
                                          const std::string& path) {
  const std::map<std::string, Measured> finished = finished_runs(path);
  std::set<std::string> seen;
  std::vector<PaperRun> missing;
  for (const PaperRun& run : runs)
    if (seen.insert(run.key()).second && finished.count(run.key()) == 0) missing.push_back(run);
  return missing;
}

/// Runs what is missing in the file, `num_processes` at a time. After the first Ctrl-C the runs
/// that are in progress end, and no more are started; the second ends all at once, and what is
/// lost is what was in progress. Returns false if it was interrupted.
///
///   Errors    ValueError if a run fails, after those in progress have ended
inline bool run_missing(const std::vector<PaperRun>& runs, const std::string& path,
                        Index num_processes, std::ostream& out = std::cout) {
  const std::vector<PaperRun> missing = missing_runs(runs, path);
  double work = 0, work_done = 0;
  for (const PaperRun& run : missing) work += run.setting.work;
  const auto start = std::chrono::steady_clock::now();
  const Interrupt interrupt;
  std::map<pid_t, const PaperRun*> in_progress;
  std::size_t num_started = 0, num_done = 0;
  std::string failed;
  const auto may_start = [&] {
    return num_started < missing.size() && failed.empty() && !interrupt.requested();
  };
  while (may_start() || !in_progress.empty()) {
    while (may_start() && static_cast<Index>(in_progress.size()) < num_processes) {
      const PaperRun& run = missing[num_started++];
      in_progress[start_run(run, path)] = &run;
    }
    int status = 0;
    const pid_t process = wait(&status);
    require<ValueError>(process > 0, "paper: the end of a run must be heard of; got none");
    const auto ended = in_progress.find(process);
    if (ended == in_progress.end()) continue;
    const PaperRun& run = *ended->second;
    in_progress.erase(ended);
    if (status != 0) {
      failed = run.name + ", seed " + std::to_string(run.seed);
      continue;
    }
    work_done += run.setting.work;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    out << ++num_done << "/" << missing.size() << "  " << run.name << ", seed " << run.seed << "  "
        << clock_text(elapsed.count() * (work / work_done - 1)) << " left" << std::endl;
  }
  require<ValueError>(failed.empty(), "paper: every run must end well; got a failure of ", failed);
  return num_done == missing.size();
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_PAPER_RUNS_HPP
