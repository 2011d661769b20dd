// Runs the experiments of the paper at toy scale and writes a page about them.
//
//   paper --out build/paper            all of it: tables, figures, results.json
//   paper --out build/paper --quick    fewer seeds and steps
//   paper --out build/search --search digits|sentences   how the learning rates were chosen
//
// Each training is a process of its own and one line of OUT/runs.jsonl. Ctrl-C waits for the runs
// in progress; the same command goes on, and does again only what was changed.

#include "support/paper_page.hpp"
#include "support/paper_plan.hpp"
#include "support/run.hpp"
#include "widenet.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace wn = widenet;
namespace support = widenet::support;
using wn::Index;

namespace {

struct Options {
  std::string data = "data/digits", out, tables = "abcdefg", search;
  bool is_quick = false;
  Index seeds = 0, vision_steps = 0, reading_steps = 0, judging_steps = 0, processes = 1;
};

support::CommandLine command_line(Options& o) {
#ifdef _OPENMP
  o.processes = omp_get_max_threads();
#endif
  support::CommandLine line("paper", "runs the experiments of the paper at toy scale\n\n"
                            "Does nothing without --out. A number of 0 stands for that of the "
                            "budget.");
  line.add("--out", o.out, "folder of runs.jsonl, results.json and index.html")
      .add("--data", o.data, "folder of the digits")
      .add("--quick", o.is_quick, "the quick budget: fewer seeds and steps")
      .add("--search", o.search, "try learning rates on held-out training data instead",
           {"digits", "sentences"})
      .add("--tables", o.tables, "which tables")
      .add("--seeds", o.seeds, "seeds of each row; of a search 1 if not given", 0)
      .add("--vision-steps", o.vision_steps, "steps of training on digits", 0)
      .add("--reading-steps", o.reading_steps, "steps of pre-training on text", 0)
      .add("--judging-steps", o.judging_steps, "steps of fine-tuning on sentences", 0)
      .add("--processes", o.processes, "runs side by side");
  return line;
}

support::PaperBudget budget_of(const Options& o) {
  support::PaperBudget budget = o.is_quick ? support::quick_budget() : support::PaperBudget();
  if (o.seeds > 0) budget.seeds = o.seeds;
  if (o.vision_steps > 0) budget.vision_steps = o.vision_steps;
  if (o.reading_steps > 0) budget.reading_steps = o.reading_steps;
  if (o.judging_steps > 0) budget.judging_steps = o.judging_steps;
  return budget;
}

/// The tables that the options ask for.
///
///   Errors    ValueError if there is no such table
std::vector<support::PaperTable> chosen_tables(const std::string& ids,
                                               const std::vector<support::PaperTable>& all) {
  std::vector<support::PaperTable> chosen;
  for (const support::PaperTable& table : all)
    if (ids.find(table.id) != std::string::npos) chosen.push_back(table);
  wn::require<wn::ValueError>(!ids.empty() && chosen.size() == ids.size(),
                              "paper: --tables must be some of the letters abcdefg, each once; got "
                              "\"", ids, "\"");
  return chosen;
}

/// Replaces the file at once, so that a reader finds the old one or the new one.
void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path + ".tmp", std::ios::binary);
  file << text << std::flush;
  wn::require<wn::IoError>(file.good(), "paper: ", path, ": must be writable; got: a failed write");
  file.close();
  std::filesystem::rename(path + ".tmp", path);
}

/// Runs what is missing; says so and returns false if that was interrupted.
bool run_all(const Options& o, const std::vector<support::PaperRun>& runs) {
  const std::string path = o.out + "/runs.jsonl";
  const std::size_t missing = support::missing_runs(runs, path).size();
  if (missing > 0)
    std::cout << missing << " runs, " << o.processes << " at a time; Ctrl-C stops, the same "
              << "command goes on." << std::endl;
  const bool is_finished = support::run_missing(runs, path, o.processes);
  if (!is_finished) std::cout << "Stopped; the same command goes on." << std::endl;
  return is_finished;
}

int run(const Options& o) {
  std::filesystem::create_directories(o.out);
  const support::PaperBudget budget = budget_of(o);
  const auto data = support::paper_data(o.data, false);
  const std::vector<support::PaperTable> tables =
      chosen_tables(o.tables, support::paper_tables(budget, data));
  const std::vector<support::PaperRun> runs = support::runs_of(tables, budget.seeds);
  if (!run_all(o, runs)) return 0;
  const auto finished = support::finished_runs(o.out + "/runs.jsonl");
  std::vector<support::PaperResult> results;
  for (const support::PaperTable& table : tables) {
    results.push_back(support::result_of(table, budget.seeds, finished));
    if (table.id == "b") results.back().remarks = support::language_remarks(results.back());
  }
  write_file(o.out + "/results.json",
             support::results_json(results, budget.seeds, budget.is_quick));
  write_file(o.out + "/index.html",
             support::report_html(support::paper_report(budget, results, finished)));
  std::cout << "Page: " << o.out << "/index.html   Numbers: " << o.out << "/results.json"
            << std::endl;
  return 0;
}

/// Accuracy on held-out training data by learning rate; the rates in PaperRates and LanguageRates
/// are the best of each kind of model.
int search(const Options& o) {
  std::filesystem::create_directories(o.out);
  const support::PaperBudget budget = budget_of(o);
  const auto data = support::paper_data(o.data, true);
  const support::PaperTable table = o.search == "digits"
                                        ? support::digits_search(budget, data)
                                        : support::sentences_search(budget, data);
  const Index seeds = o.seeds > 0 ? o.seeds : 1;
  if (!run_all(o, support::runs_of({table}, seeds))) return 0;
  const support::PaperResult result =
      support::result_of(table, seeds, support::finished_runs(o.out + "/runs.jsonl"));
  std::cout << table.title << '\n';
  for (std::size_t r = 0; r < table.rows.size(); ++r) {
    std::cout << "  " << table.rows[r].name;
    for (const support::PaperColumn& column : table.columns)
      std::cout << "  " << column.title << " "
                << support::cell_text(result.rows[r].at(column.name), column);
    std::cout << '\n';
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    const support::CommandLine line = command_line(options);
    if (line.parse(argc, argv) && !options.out.empty())
      return options.search.empty() ? run(options) : search(options);
    std::cout << line.usage();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
