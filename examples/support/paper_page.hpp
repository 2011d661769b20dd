// paper_page.hpp - the page of `make paper`: a figure, a table and comparisons for each experiment.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_PAPER_PAGE_HPP
#define WIDENET_EXAMPLES_SUPPORT_PAPER_PAGE_HPP

#include "support/paper_tables.hpp"
#include "support/report.hpp"
#include "widenet.hpp"

#include <algorithm>  // any_of, max, min
#include <cmath>      // isfinite
#include <limits>     // numeric_limits
#include <optional>   // nullopt, optional
#include <string>     // string
#include <vector>     // vector

namespace widenet::support {

// DOTS --------------------------------------------------------------------------------------------

/// Part of a chart of dots: for each row the values of all seeds, or none.
struct DotPanel {
  std::string title;
  std::vector<std::vector<double>> values;
  double scale = 1;
  double left = 0, right = 0;  // pixels
  int colour = 0;              // 0 to 3
  std::vector<bool> is_recalled = {};  // of each row, if any: the mean is a ring
};

/// From the lowest to the highest value of a panel, with a margin; none if no value is finite.
inline std::optional<Axis> axis_of(const DotPanel& panel) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const std::vector<double>& list : panel.values)
    for (const double value : list)
      if (std::isfinite(value)) {
        low = std::min(low, panel.scale * value);
        high = std::max(high, panel.scale * value);
      }
  if (!(low <= high)) return std::nullopt;
  const double margin = 0.04 * (high - low);
  return Axis(low - margin, high + margin, panel.left, panel.right, false);
}

/// The title of a panel, and its scale with as many numbers as there is room for.
inline std::string dot_scale(const DotPanel& panel, const Axis& axis, double top, double bottom) {
  std::string drawing =
      panel.left > 300  // a second panel: its title ends where the chart does
          ? svg_text(panel.right, 12, "text-anchor=\"end\" class=\"quiet\"", panel.title)
          : svg_text(panel.left, 12, "class=\"quiet\"", panel.title);
  const std::vector<double> ticks = axis.ticks();
  const std::size_t room = panel.right - panel.left < 120 ? 2 : 4;
  const std::size_t every = (ticks.size() + room - 1) / room;
  for (std::size_t i = 0; i < ticks.size(); ++i) {
    const double x = axis.at(ticks[i]);
    drawing += svg_rect(x - 0.5, top, 1, bottom - top, "class=\"grid\"");
    if (i % every == 0)
      drawing += svg_text(x, bottom + 18, "text-anchor=\"middle\" class=\"quiet\"",
                          axis.tick_text(ticks[i], false));
  }
  return drawing;
}

/// The dots of one row: small ones for the seeds, a large one at their mean, a line of one standard
/// deviation to both sides.
inline std::string dots(const std::string& name, const DotPanel& panel, std::size_t row,
                        const Axis& axis, double y) {
  const std::vector<double>& values = panel.values[row];
  const Statistics s = statistics_of(values);
  const double scale = panel.scale, x = axis.at(scale * s.mean);
  if (!std::isfinite(x)) return "";
  const std::string ink = "ink s" + std::to_string(panel.colour);
  const bool is_recalled = row < panel.is_recalled.size() && panel.is_recalled[row];
  const auto circle = [&](const char* kind, double at, const char* radius) {
    return std::string("<circle class=\"") + kind + " " + ink + "\" cx=\"" + fixed(at, 1) +
           "\" cy=\"" + fixed(y, 1) + "\" r=\"" + radius + "\"";
  };
  std::string drawing;
  if (s.count > 1) {
    const double begin = std::max(axis.from, axis.at(scale * (s.mean - s.deviation)));
    const double end = std::min(axis.to, axis.at(scale * (s.mean + s.deviation)));
    drawing += svg_rect(begin, y - 1.2, end - begin, 2.4, "class=\"" + ink + "\"");
    for (const double value : values) drawing += circle("seed", axis.at(scale * value), "3") + "/>";
  }
  return drawing + circle(is_recalled ? "mean recalled" : "mean", x, "5.5") + "><title>" +
         escape_html(name + ": " + fixed(scale * s.mean, 2)) + (is_recalled ? "\u202f?" : "") +
         "</title></circle>";
}

/// Rows of dots in one panel or more. Each panel has a scale of its own, which need not start at 0.
inline std::string dot_chart(const std::string& title, const std::vector<std::string>& names,
                             const std::vector<DotPanel>& panels) {
  constexpr double names_right = 186, top = 34, row_height = 30;
  const double bottom = top + row_height * static_cast<double>(names.size());
  const auto middle = [](std::size_t r) { return top + row_height * (double(r) + 0.5); };
  std::string drawing, description;
  for (std::size_t r = 0; r < names.size(); ++r)
    drawing += svg_text(names_right - 10, middle(r) + 5, "text-anchor=\"end\"", names[r]);
  for (const DotPanel& panel : panels) {
    const std::optional<Axis> axis = axis_of(panel);
    if (!axis) continue;
    drawing += dot_scale(panel, *axis, top, bottom);
    description += panel.title + ": ";
    for (std::size_t r = 0; r < names.size(); ++r) {
      if (panel.values[r].empty()) continue;
      drawing += dots(names[r], panel, r, *axis, middle(r));
      description += names[r] + " " +
                     fixed(panel.scale * statistics_of(panel.values[r]).mean, 2) + ", ";
    }
  }
  return svg_begin(480, bottom + 26, title, description) + drawing + "</svg>\n";
}

/// The chart of a table: its first column, and beside it what the paper has, or the second column.
inline std::string chart_of(const PaperResult& result) {
  const PaperTable& table = result.table;
  std::vector<std::string> names;
  std::vector<DotPanel> panels;
  for (const PaperRow& row : table.rows) names.push_back(row.name);
  const bool has_paper = !table.paper_title.empty();
  const std::size_t num_drawn = has_paper ? 1 : std::min<std::size_t>(table.num_drawn,
                                                                      table.columns.size());
  for (std::size_t c = 0; c < num_drawn; ++c) {
    const PaperColumn& column = table.columns[c];
    panels.push_back({column.title, {}, column.scale, 0, 0, static_cast<int>(c)});
    for (const SeedValues& row : result.rows) {
      const auto found = row.find(column.name);
      panels.back().values.push_back(found == row.end() ? std::vector<double>() : found->second);
    }
  }
  if (has_paper) {
    panels.push_back({table.paper_title, {}, 1, 0, 0, 1});
    for (const PaperRow& row : table.rows) {
      const double value = row.paper.value;
      panels.back().values.push_back(std::isfinite(value) ? std::vector<double>{value}
                                                          : std::vector<double>());
      panels.back().is_recalled.push_back(row.paper.is_recalled);
    }
  }
  panels.back().right = 470;
  if (panels.size() == 1) {
    panels[0].left = 196;
  } else {
    panels[0].left = 196, panels[0].right = has_paper ? 350 : 322;
    panels[1].left = has_paper ? 378 : 350;
  }
  return dot_chart(table.title, names, panels);
}

// TABLES ------------------------------------------------------------------------------------------

/// "95.3 \u00b1 0.4", "95.3" of one seed, "diverged" if a seed has no finite value.
inline std::string cell_text(const std::vector<double>& values, const PaperColumn& column) {
  const Statistics s = statistics_of(values);
  if (!std::isfinite(s.mean)) return "diverged";
  return mean_and_deviation(s, column.decimals, column.scale, " \u00b1 ");
}

inline std::string table_of(const PaperResult& result) {
  const PaperTable& table = result.table;
  std::string html = "<div class=\"scroll\"><table><thead><tr><th scope=\"col\">model</th>";
  const auto head = [&html](const std::string& title) {
    html += "<th scope=\"col\">" + escape_html(title) + "</th>";
  };
  const auto cell = [&html](const std::string& text, const char* attributes = "") {
    html += std::string("<td") + attributes + ">" + escape_html(text) + "</td>";
  };
  for (const PaperColumn& column : table.columns) head(column.title);
  head("parameters"), head("MFLOP"), head("s");
  const bool has_paper = !table.paper_title.empty();
  if (has_paper) head("paper"), head("its size");
  html += "</tr></thead><tbody>";
  for (std::size_t r = 0; r < table.rows.size(); ++r) {
    const PaperRow& row = table.rows[r];
    html += "<tr><th scope=\"row\">" + escape_html(row.name) + "</th>";
    for (const PaperColumn& column : table.columns) {
      const auto found = result.rows[r].find(column.name);
      cell(found == result.rows[r].end() ? "" : cell_text(found->second, column));
    }
    cell(row.is_baseline() ? "" : grouped(double(row.setting.parameters)));
    cell(row.is_baseline() ? "" : fixed(double(row.setting.flops) * 1e-6, 2));
    const auto seconds = result.rows[r].find("seconds");
    cell(seconds == result.rows[r].end() ? ""
                                         : fixed(statistics_of(seconds->second).mean, 1));
    if (has_paper) {
      cell(row.paper.text(), row.paper.words.empty() ? "" : " class=\"words\"");
      cell(row.paper.size);
    }
    html += "</tr>";
  }
  return html + "</tbody></table></div>\n";
}

/// What the comparisons came to: the same way, the other way, within the noise.
struct VerdictCount {
  std::size_t same = 0, other = 0, unclear = 0;
};
inline VerdictCount count_verdicts(const std::vector<PaperResult>& results) {
  VerdictCount count;
  for (const PaperResult& result : results)
    for (const PaperVerdict& v : result.verdicts)
      ++(!v.is_clear() ? count.unclear : v.is_same_way() ? count.same : count.other);
  return count;
}

/// What stands below the table: the comparisons, the remarks, and what a question mark means.
inline std::string verdicts_of(const PaperResult& result) {
  std::vector<std::string> remarks = result.remarks;
  const std::vector<PaperRow>& rows = result.table.rows;
  if (std::any_of(rows.begin(), rows.end(), [](const PaperRow& r) { return r.paper.is_recalled; }))
    remarks.push_back("Figures with a question mark, rings in the chart, are the paper's as they "
                      "are remembered: look there before you quote them.");
  if (result.verdicts.empty() && remarks.empty()) return "";
  std::string html = "<ul class=\"verdicts\">";
  for (const PaperVerdict& v : result.verdicts)
    html += std::string("<li class=\"") +
            (!v.is_clear() ? "unclear" : v.is_same_way() ? "same" : "other") + "\">" +
            escape_html(sentence_of(v, column_named(result.table, v.claim.column).decimals)) +
            "</li>\n";
  for (const std::string& remark : remarks)
    html += "<li class=\"remark\">" + escape_html(remark) + "</li>\n";
  return html + "</ul>\n";
}

// THE PAGE ----------------------------------------------------------------------------------------

/// Paragraphs that stand between figures.
inline std::string text_of(const std::vector<std::string>& paragraphs) {
  std::string html = "<div class=\"text wide\">";
  for (const std::string& paragraph : paragraphs)
    html += "<p>" + escape_html(paragraph) + "</p>\n";
  return html + "</div>\n";
}

/// An experiment: what was measured, chart, table and comparisons. The table stands below the chart
/// where it is wide.
inline Report::Section section_of(const PaperResult& result) {
  const PaperTable& table = result.table;
  const char* const stacked = table.columns.size() > 2 ? " stacked" : "";
  return {"(" + table.id + ") " + table.title,
          figure(table.figure_title, table.about, "",
                 std::string("<div class=\"pair") + stacked + "\"><div>" + chart_of(result) +
                     "</div>" + table_of(result) + "</div>" + verdicts_of(result), "wide")};
}

/// What the page needs besides style_sheet().
inline const char* paper_style() {
  return R"css(
.text p+p{margin-top:12px}.text p{max-width:48em}
.pair{display:grid;grid-template-columns:minmax(0,4fr) minmax(0,5fr);gap:20px 32px}
.pair.stacked{grid-template-columns:minmax(0,1fr)}.pair.stacked svg{max-width:500px}
.pair .scroll{margin-top:0;font-size:14px}.pair table{width:100%}
.pair th,.pair td{padding-right:10px}.pair td{white-space:nowrap}
.pair .words{white-space:normal}
.pair thead th{white-space:normal;vertical-align:bottom;line-height:1.3}
.pair th:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
.pair tbody th{color:var(--ink);white-space:normal;min-width:8em}
.pair td:last-child,.pair th:last-child{padding-right:0}
.seed{opacity:.38}.mean{stroke:var(--card);stroke-width:1.5}
.mean.recalled{fill:var(--card);stroke:var(--s1);stroke-width:1.8}
.verdicts{list-style:none;padding:14px 0 0;margin-top:18px;font-size:14.5px;
border-top:1px solid var(--line);display:grid;gap:7px}
.verdicts li{padding-left:22px;position:relative}
.verdicts li::before{content:"";position:absolute;left:2px;top:.36em;width:10px;height:10px;
border-radius:50%;border:2px solid var(--quiet)}
.verdicts .same::before{background:var(--s2);border-color:var(--s2)}
.verdicts .other::before{background:var(--wrong);border-color:var(--wrong);border-radius:2px}
.verdicts .remark::before{border-radius:0;border:0;background:var(--quiet);height:2px;top:.72em}
@media (max-width:1000px){.pair{grid-template-columns:minmax(0,1fr)}}
)css";
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_PAPER_PAGE_HPP
