// paper_tables.hpp - tables of runs, what the paper says beside them, and whether ours say the
// same.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_PAPER_TABLES_HPP
#define WIDENET_EXAMPLES_SUPPORT_PAPER_TABLES_HPP

#include "support/paper_runs.hpp"
#include "support/report.hpp"
#include "support/statistics.hpp"
#include "widenet.hpp"

#include <algorithm>  // find_if
#include <cmath>      // fabs, isfinite, sqrt
#include <cstdint>    // uint64_t
#include <limits>     // numeric_limits
#include <map>        // map
#include <string>     // string
#include <vector>     // vector

namespace widenet::support {

constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

// WHAT IS ASKED -----------------------------------------------------------------------------------

/// What the paper has for a row.
struct PaperFigure {
  double value = unknown;    // what it measured, in points
  std::string size = "";     // how it gives the number of parameters
  bool is_recalled = false;  // from memory, not checked against the paper: shown with a "?"
  std::string words = "";    // what it has in place of a value

  std::string text() const {
    const std::string figure = std::isfinite(value) ? fixed(value, 1) : words;
    return figure.empty() || !is_recalled ? figure : figure + "\u202f?";
  }
};

/// A row of a table: a model that is trained with several seeds, or, without a setting, a baseline
/// whose accuracy is known.
struct PaperRow {
  std::string name;
  PaperSetting setting = {};
  PaperFigure paper = {};
  double baseline = unknown;
  bool is_baseline() const { return !setting.train; }
};

/// A column of a table: one of the values that runs measure.
struct PaperColumn {
  std::string name, title;
  double scale = 100;  // to what is printed: of a fraction to points
  int decimals = 1;
};

/// Something the paper found: more of `column` in row `more` than in row `less`.
struct PaperClaim {
  std::string more, less;
  double paper = unknown;  // by so many points; NaN where the paper says it in words
  std::string column = "accuracy", words = "more";
};

/// An experiment. The first column is drawn and stands beside the paper's.
struct PaperTable {
  std::string id, title, about, figure_title = "Test accuracy";
  std::vector<PaperRow> rows;
  std::vector<PaperColumn> columns = {{"accuracy", "test accuracy, %"}};
  std::vector<PaperClaim> claims = {};
  std::string paper_title = "";  // of the paper's column; "" if it has none
  std::size_t num_drawn = 1;     // columns in the figure, where the paper has none
};

/// The runs that some tables need, all with one seed before all with the next, so that what is
/// stopped early has something of every row. A run of several tables occurs several times.
inline std::vector<PaperRun> runs_of(const std::vector<PaperTable>& tables, Index num_seeds) {
  std::vector<PaperRun> runs;
  for (Index seed = 0; seed < num_seeds; ++seed)
    for (const PaperTable& table : tables)
      for (const PaperRow& row : table.rows)
        if (!row.is_baseline())
          runs.push_back({"(" + table.id + ") " + row.name, row.setting,
                          static_cast<std::uint64_t>(seed)});
  return runs;
}

// WHAT WAS FOUND ----------------------------------------------------------------------------------

/// The values of all seeds, by name; of a baseline its accuracy alone.
using SeedValues = std::map<std::string, std::vector<double>>;

/// How a difference of ours compares with the paper's.
struct PaperVerdict {
  PaperClaim claim;
  double ours = 0;    // mean of `more` - mean of `less`, in points
  double error = 0;   // its standard error; NaN with one seed
  bool is_same_way() const { return ours > 0; }
  /// Whether the difference exceeds twice its standard error.
  bool is_clear() const { return std::fabs(ours) > 2 * error; }
};

struct PaperResult {
  PaperTable table;
  std::vector<SeedValues> rows;
  std::vector<PaperVerdict> verdicts;
  std::vector<std::string> remarks = {};  // more sentences made from the numbers
};

/// The difference of two means, and its standard error.
///
///   ours = mean x - mean y,   error^2 = s_x^2 / n_x + s_y^2 / n_y
inline PaperVerdict verdict_of(const PaperClaim& claim, const std::vector<double>& more,
                               const std::vector<double>& less, double scale) {
  const Statistics x = statistics_of(more), y = statistics_of(less);
  return {claim, scale * (x.mean - y.mean),
          scale * std::sqrt(x.deviation * x.deviation / static_cast<double>(x.count) +
                            y.deviation * y.deviation / static_cast<double>(y.count))};
}

/// "+1.2", "-0.4" with a true minus sign, "0.0".
inline std::string signed_text(double value, int decimals) {
  const std::string size = fixed(std::fabs(value), decimals);
  const bool is_zero = size.find_first_not_of("0.") == std::string::npos;
  return (is_zero ? "" : value > 0 ? "+" : "\u2212") + size;
}

/// One sentence: "A against B: +2.0 in the paper, +1.2 \u00b1 0.4 here: the same way."
inline std::string sentence_of(const PaperVerdict& v, int decimals) {
  const PaperClaim& claim = v.claim;
  const std::string paper = std::isfinite(claim.paper) ? signed_text(claim.paper, 1)
                                                       : claim.words;
  const std::string error =
      std::isfinite(v.error) ? " \u00b1 " + fixed(v.error, decimals) : "";
  return claim.more + " against " + claim.less + ": " + paper + " in the paper, " +
         signed_text(v.ours, decimals) + error + " here: " +
         (v.ours == 0 ? "no difference" : v.is_same_way() ? "the same way" : "the other way") +
         (v.ours == 0 || v.is_clear()  ? "."
          : std::isfinite(v.error)     ? ", within the noise of the seeds."
                                       : ", with one seed.");
}

inline std::size_t row_named(const PaperTable& table, const std::string& name) {
  const auto found = std::find_if(table.rows.begin(), table.rows.end(),
                                  [&name](const PaperRow& row) { return row.name == name; });
  require<ValueError>(found != table.rows.end(), "paper: table (", table.id,
                      ") must have a row \"", name, "\"; got none");
  return static_cast<std::size_t>(found - table.rows.begin());
}
inline const PaperColumn& column_named(const PaperTable& table, const std::string& name) {
  const auto found = std::find_if(table.columns.begin(), table.columns.end(),
                                  [&name](const PaperColumn& c) { return c.name == name; });
  require<ValueError>(found != table.columns.end(), "paper: table (", table.id,
                      ") must have a column \"", name, "\"; got none");
  return *found;
}

/// Fills a table with the runs that are finished.
///
///   Errors    ValueError if one is missing, or a claim names what the table has not
inline PaperResult result_of(const PaperTable& table, Index num_seeds,
                             const std::map<std::string, Measured>& finished) {
  PaperResult result{table, {}, {}, {}};
  for (const PaperRow& row : table.rows) {
    result.rows.emplace_back();
    if (row.is_baseline()) {
      result.rows.back()["accuracy"] = {row.baseline};
      continue;
    }
    for (Index seed = 0; seed < num_seeds; ++seed) {
      const PaperRun run{row.name, row.setting, static_cast<std::uint64_t>(seed)};
      const auto found = finished.find(run.key());
      require<ValueError>(found != finished.end(), "paper: ", row.name, ", seed ", seed,
                          ", must be finished; got no such run");
      for (const auto& [name, value] : found->second) result.rows.back()[name].push_back(value);
    }
  }
  for (const PaperClaim& claim : table.claims)
    result.verdicts.push_back(
        verdict_of(claim, result.rows[row_named(table, claim.more)].at(claim.column),
                   result.rows[row_named(table, claim.less)].at(claim.column),
                   column_named(table, claim.column).scale));
  return result;
}

// RESULTS.JSON ------------------------------------------------------------------------------------

/// The text of a JSON array of texts of JSON values.
inline std::string json_array(const std::vector<std::string>& values) {
  std::string text = "[";
  for (const std::string& value : values) text += (text.size() > 1 ? ",\n" : "\n") + value;
  return text + "]";
}

inline std::string row_json(const PaperRow& row, const SeedValues& values) {
  JsonLine line;
  line.add("name", row.name);
  if (!row.is_baseline())
    line.add("parameters", row.setting.parameters).add("flops", row.setting.flops);
  const PaperFigure& paper = row.paper;
  if (std::isfinite(paper.value)) line.add("paper", paper.value);
  if (!paper.words.empty()) line.add("paper_words", paper.words);
  if (!paper.text().empty()) line.add("paper_is_recalled", paper.is_recalled);
  if (!paper.size.empty()) line.add("paper_parameters", paper.size);
  for (const auto& [name, list] : values) {
    const Statistics s = statistics_of(list);
    line.add(name + "_mean", s.mean).add(name + "_deviation", s.deviation).add(name, list);
  }
  return line.text();
}

inline std::string verdict_json(const PaperVerdict& v, int decimals) {
  return JsonLine().add("more", v.claim.more).add("less", v.claim.less)
      .add("column", v.claim.column).add("paper", v.claim.paper).add("ours", v.ours)
      .add("standard_error", v.error).add("is_same_way", v.is_same_way())
      .add("is_clear", v.is_clear()).add("sentence", sentence_of(v, decimals)).text();
}

/// All numbers of the page.
inline std::string results_json(const std::vector<PaperResult>& results, Index num_seeds,
                                bool is_quick) {
  std::vector<std::string> tables;
  for (const PaperResult& result : results) {
    std::vector<std::string> rows, verdicts;
    for (std::size_t i = 0; i < result.rows.size(); ++i)
      rows.push_back(row_json(result.table.rows[i], result.rows[i]));
    for (const PaperVerdict& v : result.verdicts)
      verdicts.push_back(verdict_json(v, column_named(result.table, v.claim.column).decimals));
    tables.push_back("{\"id\": " + json(result.table.id) + ", \"title\": " +
                     json(result.table.title) + ", \"rows\": " + json_array(rows) +
                     ", \"claims\": " + json_array(verdicts) + ", \"remarks\": " +
                     json(result.remarks) + "}");
  }
  return "{\"version\": " + json(WIDENET_VERSION) + ", \"seeds\": " + json(num_seeds) +
         ", \"quick\": " + json(is_quick) + ", \"tables\": " + json_array(tables) + "}\n";
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_PAPER_TABLES_HPP
