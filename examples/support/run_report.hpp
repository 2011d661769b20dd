// run_report.hpp - the page about a run, from the files in its folder.
//
// The one way from a run to report.html: the training programs take it when they end, and
// examples/report at any time. Titles state what was measured. What a figure needs and a run has
// not is named in its place; a damaged file is an error.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_RUN_REPORT_HPP
#define WIDENET_EXAMPLES_SUPPORT_RUN_REPORT_HPP

#include "support/report.hpp"
#include "support/run.hpp"
#include "support/run_record.hpp"
#include "widenet.hpp"

#include <algorithm>   // clamp, max, max_element, min, min_element, sort, stable_sort
#include <cmath>       // fabs, isfinite, log
#include <cstdint>     // int64_t, uint8_t
#include <cstring>     // strlen
#include <filesystem>  // exists
#include <fstream>     // ifstream
#include <limits>      // numeric_limits
#include <map>         // map
#include <numeric>     // accumulate
#include <string>      // string
#include <utility>     // pair
#include <vector>      // vector

namespace widenet::support {

// WORDS -------------------------------------------------------------------------------------------

constexpr double nothing = std::numeric_limits<double>::quiet_NaN();

/// "1 token", "1,200 tokens".
inline std::string count_of(double n, const std::string& thing) {
  return grouped(n) + " " + thing + (n == 1 ? "" : "s");
}

/// "1st", "2nd", "3rd", "4th"
inline std::string ordinal(std::size_t n) {
  const char* const ends[] = {"th", "st", "nd", "rd"};
  const bool is_regular = n % 10 > 3 || n % 100 / 10 == 1;
  return std::to_string(n) + ends[is_regular ? 0 : n % 10];
}

/// "Loss falls from 2.30 to 0.61", from the first and the last finite value of a curve.
inline std::string movement(const std::string& what, const std::vector<double>& values,
                            bool is_percent = false) {
  double first = nothing, last = nothing;
  for (const double v : values)
    if (std::isfinite(v)) last = v, first = std::isfinite(first) ? first : v;
  if (!std::isfinite(first)) return what + " was never finite";
  const auto text = [&](double v) { return is_percent ? percent(v) : fixed(v, 2); };
  if (text(first) == text(last)) return what + " stays at " + text(last);
  return what + (last < first ? " falls from " : " rises from ") + text(first) + " to " +
         text(last);
}

inline double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

/// At most `most` of n, evenly spaced, with the first and the last.
inline std::vector<std::size_t> some_of(std::size_t n, std::size_t most) {
  std::vector<std::size_t> chosen;
  const std::size_t count = std::min(n, std::max<std::size_t>(1, most));
  for (std::size_t i = 0; i < count; ++i)
    chosen.push_back(count == 1 ? n - 1 : i * (n - 1) / (count - 1));
  return chosen;
}

inline std::string shown_note(std::size_t shown, std::size_t all, const std::string& things) {
  return shown == all ? ""
                      : " Shown are " + std::to_string(shown) + " of " + std::to_string(all) + " " +
                            things + ".";
}

/// A place for a figure whose data are not there.
inline std::string missing(const std::string& what, const std::string& why) {
  return "<p class=\"empty wide\">" + escape_html(what + ": " + why) + "</p>\n";
}

// METRICS.JSONL -----------------------------------------------------------------------------------

using Metrics = std::map<std::string, Curve>;

/// All curves of a file, numbers only; null reads as NaN, and a last line that is half written is
/// left out. None if there is no such file.
///
///   Errors    IoError if a line is not an object with a "step"
inline Metrics read_metrics(const std::string& path) {
  Metrics curves;
  std::ifstream in(path);
  std::size_t number = 0;
  for (std::string line; std::getline(in, line) && !in.eof();) {
    const Json json = Json::parse(line, path + ", line " + std::to_string(++number));
    const double step = json.at("step").number();
    for (const auto& [name, value] : json.members()) {
      if (value.type() != Json::Type::number && value.type() != Json::Type::null) continue;
      curves[name].step.push_back(step);
      curves[name].value.push_back(number_of(value));
    }
  }
  return curves;
}

inline bool has_curve(const Metrics& metrics, const std::string& name) {
  return metrics.count(name) > 0;
}
inline Series series_of(const Metrics& metrics, const std::string& field, const std::string& name,
                        int colour, bool is_noisy) {
  const Curve& curve = metrics.at(field);
  return {name, curve.step, curve.value, colour, is_noisy};
}
inline std::vector<double> smoothed(const Metrics& metrics, const std::string& field) {
  return running_mean(metrics.at(field).value);
}

// HOW IT LEARNED ----------------------------------------------------------------------------------

inline std::string entropy_figure(const Routes& routes) {
  Series mean{"mean", {}, {}, 0}, least{"lowest block", {}, {}, 1},
      most{"highest block", {}, {}, 2};
  for (const Look& look : routes.looks) {
    const auto& h = look.entropy;
    for (Series* s : {&mean, &least, &most}) s->x.push_back(double(look.step));
    mean.y.push_back(mean_of(h));
    least.y.push_back(*std::min_element(h.begin(), h.end()));
    most.y.push_back(*std::max_element(h.begin(), h.end()));
  }
  const double chance = std::log(double(routes.last().experts));
  LineChart chart{"Router entropy", "step", "nats per token", {mean}};
  if (routes.last().blocks.size() > 1) chart.series = {most, mean, least};
  chart.reference = chance, chart.reference_name = "no preference";
  return figure(movement("Router entropy", mean.y) + " nats",
                "How undecided the router is about a token, without noise: ln " +
                    std::to_string(routes.last().experts) + " = " + fixed(chance, 2) +
                    " where it cannot tell the experts apart, 0 where it is certain.",
                "<i>H</i> = \u2212\u2211<sub><i>e</i></sub> <i>p<sub>e</sub></i> log "
                "<i>p<sub>e</sub></i>", line_chart(chart));
}

inline std::string gradient_figure(const Metrics& metrics) {
  const Series main = series_of(metrics, "router_gradient_main", "main loss", 0, false);
  const Series balance = series_of(metrics, "router_gradient_balance", "balance loss", 1, false);
  const auto last = [](const Series& s) {
    double value = nothing;
    for (const double v : s.y) value = std::isfinite(v) ? v : value;
    return value;
  };
  const double task = last(main), other = last(balance);
  std::string title = "The task pulls at the router " + fixed(task / other, 1) +
                      " times as hard as the balance loss at the end";
  if (task == 0) title = "No gradient of the task reaches the router";
  else if (other == 0) title = "No gradient of the balance loss reaches the router";
  else if (task < other)
    title = "The balance loss pulls at the router " + fixed(other / task, 1) +
            " times as hard as the task at the end";
  return figure(title, "The norm of the gradient of all router weights on the watched inputs: from "
                "the main loss, and from the balance loss times its weight.",
                "\u2016<i>\u2202L / \u2202W</i>\u2016 &#160;and&#160; <i>\u03bb</i> "
                "\u2016<i>\u2202</i>balance<i> / \u2202W</i>\u2016",
                line_chart({"Gradient of the router", "step", "norm", {main, balance}}));
}

inline std::string learning_figures(const Metrics& metrics, const RunResult& result,
                                    const Routes& routes, bool has_experts) {
  if (metrics.empty())
    return missing("Curves", "there is no metrics.jsonl with a line in this folder.");
  std::string html;
  if (has_curve(metrics, "loss"))
    html += figure(movement("Loss", smoothed(metrics, "loss")),
                   "How surprised the model is by the right answers: the first term of what it "
                   "minimises. Faint: every step; bold: the mean around it.",
                   "<i>L</i> = \u2212\u2211<sub><i>c</i></sub> <i>q<sub>c</sub></i> log "
                   "<i>p<sub>c</sub></i> + <i>\u03bb</i> \u00b7 balance loss",
                   line_chart({"Loss", "step", "loss",
                               {series_of(metrics, "loss", "training", 0, true)}}));
  if (has_curve(metrics, "accuracy")) {
    const Series training = series_of(metrics, "accuracy", "training", 0, true);
    LineChart chart{"Accuracy", "step", "accuracy", {training}, true};
    std::string title = movement("Accuracy in training", smoothed(metrics, "accuracy"), true);
    std::string sentence = "Share of " + result.examples + " read right, of the batches while they "
                           "are learned";
    if (std::isfinite(result.accuracy)) {
      sentence += ", and of " + result.examples + " never seen, after that";
      chart.series.push_back({result.tested, {training.x.back() + 1}, {result.accuracy}, 3});
      title = percent(result.accuracy) + " right on " + result.examples + " never seen";
    }
    html += figure(title, sentence + ".", "", line_chart(chart));
  }
  if (!has_experts) return html;
  if (has_curve(metrics, "balance_loss")) {
    LineChart chart{"Balance loss", "step", "sum over blocks",
                    {series_of(metrics, "balance_loss", "training", 1, true)}};
    if (!routes.looks.empty()) chart.reference = double(routes.last().blocks.size());
    chart.reference_name = "perfect balance";
    html += figure(movement("Balance loss", smoothed(metrics, "balance_loss")),
                   "Each block adds 1 when its experts share the work evenly, and up to the number "
                   "of experts when one does it all.",
                   "<i>E</i> \u00b7 \u2211<sub><i>e</i></sub> <i>m<sub>e</sub></i> "
                   "<i>P<sub>e</sub></i>, summed over the blocks", line_chart(chart));
  }
  if (has_curve(metrics, "dropped"))
    html += figure(movement("The share of dropped choices", smoothed(metrics, "dropped"), true),
                   "Choices that found their expert full while training, of all choices.", "",
                   line_chart({"Dropped choices", "step", "dropped",
                               {series_of(metrics, "dropped", "training", 2, true)}, true}));
  if (!routes.looks.empty()) html += entropy_figure(routes);
  if (has_curve(metrics, "router_gradient_main") && has_curve(metrics, "router_gradient_balance"))
    html += gradient_figure(metrics);
  else
    html += missing("Gradient of the router", "metrics.jsonl has no router_gradient_main and "
                    "router_gradient_balance; runs of this version write them.");
  return html;
}

// WHO DOES THE WORK -------------------------------------------------------------------------------

inline double share_of(const Look& look, std::size_t t, std::size_t e) {
  return double(look.load[t][e]) / double(look.tokens * look.top_k);
}

/// The class and the strength of a share of the choices: 1/E is pale, 0 and 2/E are full.
inline Cell load_cell(double share, double fair) {
  const double excess = share / fair - 1;
  return {fixed(100 * share, 1), excess > 0 ? "above" : "below", std::fabs(excess)};
}

inline std::string load_key(double fair) {
  return "<p class=\"key\" aria-hidden=\"true\"><span>0</span><i></i><span>" + percent(fair) +
         "<br/>perfect balance</span><i></i><span>" + percent(2 * fair) + "</span></p>";
}

/// Load of one block over training: a row for each expert, a column for each look.
inline std::string svg_load_history(const Routes& routes, std::size_t t,
                                    const std::vector<std::size_t>& looks) {
  constexpr double width = 300, left = 20, top = 24;
  const std::size_t E = static_cast<std::size_t>(routes.last().experts);
  const double fair = 1 / double(E), cell_height = std::clamp(100 / double(E), 5.0, 18.0);
  const double cell_width = (width - left) / double(looks.size());
  const double bottom = top + cell_height * double(E);
  std::map<std::pair<std::string, int>, std::string> paths;  // cells of one colour and strength
  double most = 0, least = 1;
  for (std::size_t i = 0; i < looks.size(); ++i)
    for (std::size_t e = 0; e < E; ++e) {
      const double share = share_of(routes.looks[looks[i]], t, e);
      const Cell cell = load_cell(share, fair);
      most = std::max(most, share), least = std::min(least, share);
      const int level = static_cast<int>(9 * std::min(1.0, cell.strength) + 0.5);
      paths[{cell.colour, level}] += "M" + fixed(left + cell_width * double(i), 1) + " " +
                                     fixed(top + cell_height * double(e), 1) + "h" +
                                     fixed(cell_width - 0.6, 1) + "v" + fixed(cell_height - 1, 1) +
                                     "h-" + fixed(cell_width - 0.6, 1) + "z";
    }
  const std::string block = "block " + std::to_string(routes.last().blocks[t]);
  std::string drawing = svg_text(left, 14, "class=\"strong\"", block) +
                        svg_rect(left, top, width - left, bottom - top, "class=\"cell\"");
  for (const auto& [kind, path] : paths)
    drawing += "<path class=\"" + kind.first + "\" fill-opacity=\"" +
               fixed(0.1 * kind.second, 1) + "\" d=\"" + path + "\"/>";
  for (std::size_t e = 0; e < E; e += E > 8 ? (E + 3) / 4 : 1)
    drawing += svg_text(left - 6, top + cell_height * (double(e) + 0.5) + 4,
                        "text-anchor=\"end\" class=\"quiet\"", std::to_string(e));
  drawing += svg_text(left, bottom + 16, "class=\"quiet\"",
                      "step " + grouped(double(routes.looks[looks[0]].step))) +
             svg_text(width, bottom + 16, "text-anchor=\"end\" class=\"quiet\"",
                      grouped(double(routes.last().step)));
  return svg_begin(width, bottom + 20, "Load over training, " + block,
                   "One row for each of the experts, time to the right; shares from " +
                       percent(least) + " to " + percent(most) + ".") + drawing + "</svg>\n";
}

inline std::string load_history_figure(const Routes& routes) {
  const std::size_t R = routes.last().blocks.size();
  const auto E = static_cast<std::size_t>(routes.last().experts);
  const double fair = 1 / double(E);
  const std::vector<std::size_t> shown = some_of(R, 12), looks = some_of(routes.looks.size(), 32);
  const auto busiest = [&](const Look& look) {
    double most = 0;
    for (std::size_t t = 0; t < R; ++t)
      for (std::size_t e = 0; e < E; ++e) most = std::max(most, share_of(look, t, e));
    return most;
  };
  std::string drawings;
  for (const std::size_t t : shown) drawings += svg_load_history(routes, t, looks);
  std::vector<std::vector<std::string>> table = {{"block, expert"}};
  for (const std::size_t i : some_of(routes.looks.size(), 5))
    table[0].push_back("step " + grouped(double(routes.looks[i].step)));
  for (std::size_t t = 0; t < R; ++t)
    for (std::size_t e = 0; e < E; ++e) {
      table.push_back({std::to_string(routes.last().blocks[t]) + ", " + std::to_string(e)});
      for (const std::size_t i : some_of(routes.looks.size(), 5))
        table.back().push_back(percent(share_of(routes.looks[i], t, e)));
    }
  return figure("The busiest expert of a block has " + percent(busiest(routes.looks[0])) +
                    " of its choices at step " + grouped(double(routes.looks[0].step)) + " and " +
                    percent(busiest(routes.last())) + " at step " +
                    grouped(double(routes.last().step)),
                "One small map for each block: a row is an expert, time runs to the right, and "
                "colour tells its share of the choices that the router makes for the watched "
                "inputs, before any is dropped. Pale is balanced." +
                    shown_note(shown.size(), R, "blocks"),
                "<i>m<sub>e</sub></i> = choices of expert <i>e</i> / (<i>K N</i>)",
                load_key(fair) + "<div class=\"multiples\">" + drawings + "</div>" +
                    number_table(table), "wide");
}

inline std::string load_figure(const std::vector<std::vector<double>>& load,
                               const std::vector<std::string>& blocks) {
  const std::size_t E = load[0].size();
  const double fair = 1.0 / static_cast<double>(E);
  HeatMap map{"Load per block and expert", "", "block", "expert", blocks, numbered("", E), {}};
  std::size_t most_block = 0, most = 0, least_block = 0, least = 0;
  for (std::size_t b = 0; b < load.size(); ++b) {
    map.cells.emplace_back();
    for (std::size_t e = 0; e < E; ++e) {
      if (load[b][e] > load[most_block][most]) most_block = b, most = e;
      if (load[b][e] < load[least_block][least]) least_block = b, least = e;
      map.cells.back().push_back(load_cell(load[b][e], fair));
    }
  }
  map.description = "The busiest is expert " + std::to_string(most) + " in block " +
                    blocks[most_block] + " with " + percent(load[most_block][most]) +
                    ", the idlest expert " + std::to_string(least) + " in block " +
                    blocks[least_block] + " with " + percent(load[least_block][least]) +
                    "; perfect balance is " + percent(fair) + ".";
  return figure("In the end shares go from " + percent(load[least_block][least]) + " to " +
                    percent(load[most_block][most]) + " where " + percent(fair) + " is even",
                "Per cent of a block's choices that the router sends to each expert, on test data, "
                "before any is dropped. " + map.description, "",
                load_key(fair) + heat_map(map));
}

inline std::string dropped_figure(const std::vector<double>& dropped,
                                  const std::vector<std::string>& blocks) {
  const auto most = std::max_element(dropped.begin(), dropped.end());
  std::vector<std::string> names;
  for (const std::string& block : blocks) names.push_back("block " + block);
  const std::string title =
      *most > 0 ? "Block " + blocks[static_cast<std::size_t>(most - dropped.begin())] +
                      " drops most, " + percent(*most) + " of its choices"
                : "Not one choice is dropped";
  return figure(title, "Choices whose expert had no free slot, on test data. Such a token keeps "
                "what it was, through the residual.",
                "<i>C</i> = max(1, \u230afactor \u00b7 <i>K N</i> / <i>E</i>\u230b) slots per "
                "expert", bar_chart("Dropped choices per block", names, dropped));
}

// QUEUES ------------------------------------------------------------------------------------------

/// The choices of one expert in the order in which they were served: by slot, then those that found
/// none.
inline std::vector<std::size_t> queue_of(const Choices& choices, Index expert) {
  std::vector<std::size_t> queue;
  for (std::size_t i = 0; i < choices.expert.size(); ++i)
    if (choices.expert[i] == expert) queue.push_back(i);
  std::stable_sort(queue.begin(), queue.end(), [&](std::size_t a, std::size_t b) {
    const Index none = std::numeric_limits<Index>::max();
    const Index x = choices.slot[a], y = choices.slot[b];
    return (x < 0 ? none : x) < (y < 0 ? none : y);
  });
  return queue;
}

inline std::string svg_queues(const Routes& routes, std::size_t t, Index longest) {
  constexpr double width = 300, left = 20, right = 212, top = 24, row = 24;
  const Look& look = routes.last();
  const Choices& choices = routes.choices[t];
  const double unit = (right - left) / double(longest), line = left + unit * double(look.capacity);
  const std::string block = "block " + std::to_string(look.blocks[t]);
  std::map<std::string, std::string> paths;  // of kept and dropped runs, in two shades each
  std::string texts, description;
  for (Index e = 0; e < look.experts; ++e) {
    const std::vector<std::size_t> queue = queue_of(choices, e);
    const double y = top + row * double(e);
    Index dropped = 0;
    const auto sequence = [&](std::size_t i) {
      return routes.token[queue[i] / static_cast<std::size_t>(look.top_k)] /
             routes.tokens_per_sequence();
    };
    for (std::size_t begin = 0, end = 0; begin < queue.size(); begin = end) {
      const bool is_kept = choices.slot[queue[begin]] >= 0;
      const Index of = sequence(begin);
      while (end < queue.size() && sequence(end) == of &&
             (choices.slot[queue[end]] >= 0) == is_kept)
        ++end;
      if (!is_kept) dropped += static_cast<Index>(end - begin);
      paths[std::string(is_kept ? "q" : "q wrong") + (of % 2 ? " odd" : "")] +=
          "M" + fixed(left + unit * double(begin), 1) + " " + fixed(y + 4, 1) + "h" +
          fixed(unit * double(end - begin), 1) + "v16H" + fixed(left + unit * double(begin), 1) +
          "z";
    }
    const std::string asked = std::to_string(queue.size());
    texts += svg_text(left - 6, y + 16.5, "text-anchor=\"end\" class=\"quiet\"",
                      std::to_string(e)) +
             svg_text(right + 8, y + 16.5, dropped ? "class=\"lost\"" : "class=\"quiet\"",
                      asked + (dropped ? " (\u2212" + std::to_string(dropped) + ")" : ""));
    description += "Expert " + std::to_string(e) + ": " + asked + " asked, " +
                   std::to_string(dropped) + " dropped. ";
  }
  const double bottom = top + row * double(look.experts);
  std::string drawing = svg_text(left, 14, "class=\"strong\"", block);
  for (const auto& [classes, path] : paths)
    drawing += "<path class=\"" + classes + "\" d=\"" + path + "\"/>";
  drawing += "<path class=\"limit\" d=\"M" + fixed(line, 1) + " " + fixed(top - 2, 1) + "V" +
             fixed(bottom, 1) + "\"/>" +
             svg_text(line, bottom + 14, "text-anchor=\"middle\" class=\"quiet\"",
                      std::to_string(look.capacity) + " slots");
  return svg_begin(width, bottom + 20, "Queues of the experts, " + block, description) + drawing +
         texts + "</svg>\n";
}

inline std::string queue_figure(const Routes& routes, const std::string& inputs) {
  const Look& look = routes.last();
  const std::size_t R = look.blocks.size();
  const std::vector<std::size_t> shown = some_of(R, 12);
  Index longest = look.capacity, dropped = 0;
  std::size_t worst = 0, worst_expert = 0;
  std::vector<std::vector<std::string>> table = {{"block, expert", "asked", "slots", "dropped"}};
  for (std::size_t t = 0; t < R; ++t)
    for (std::size_t e = 0; e < look.load[t].size(); ++e) {
      longest = std::max(longest, look.load[t][e]);
      dropped += look.load[t][e] - look.kept[t][e];
      if (look.load[t][e] > look.load[worst][worst_expert]) worst = t, worst_expert = e;
      table.push_back({std::to_string(look.blocks[t]) + ", " + std::to_string(e),
                       std::to_string(look.load[t][e]), std::to_string(look.capacity),
                       std::to_string(look.load[t][e] - look.kept[t][e])});
    }
  std::string drawings;
  for (const std::size_t t : shown) drawings += svg_queues(routes, t, longest);
  const std::string where = "expert " + std::to_string(worst_expert) + " of block " +
                            std::to_string(look.blocks[worst]);
  const std::string fullest = std::to_string(look.load[worst][worst_expert]);
  const std::string title =
      dropped > 0 ? "The longest queue: " + where + " is asked " + fullest + " times and has " +
                        std::to_string(look.capacity) + " slots"
                  : "Every choice finds a slot; the longest queue, of " + where + ", fills " +
                        fullest + " of " + std::to_string(look.capacity);
  return figure(title, "One bar for each expert: the choices that ask for it, first served first; "
                "the two shades part one of the " + count_of(double(look.sequences), inputs) +
                " from the next. Up to the line there are slots; what stands after it, in red, is "
                "dropped." + shown_note(shown.size(), R, "blocks"),
                "<i>slot</i>(<i>n, k</i>) = choices of the same expert served before; dropped if "
                "\u2265 <i>C</i>",
                "<div class=\"multiples\">" + drawings + "</div>" + number_table(table), "wide");
}

inline std::string work_figures(const Routes& routes, const RunResult& result,
                                const std::string& input) {
  std::string html;
  if (!routes.looks.empty()) {
    html += load_history_figure(routes);
    html += routes.has_choices()
                ? queue_figure(routes, input)
                : missing("Queues", "the last line of routes.jsonl has no choices; a run writes "
                          "them when it ends or is stopped with Ctrl-C.");
  } else {
    html += missing("Load over training and queues", "there is no routes.jsonl in this folder; "
                    "runs of this version write one.");
  }
  std::vector<std::string> blocks = numbered("", result.load.size());
  if (!routes.looks.empty() && routes.last().blocks.size() == blocks.size())
    for (std::size_t t = 0; t < blocks.size(); ++t)
      blocks[t] = std::to_string(routes.last().blocks[t]);
  if (result.load.empty())
    return html + missing("Load on test data", "there is no result.json in this folder; a run "
                          "writes it when it has ended.");
  return html + load_figure(result.load, blocks) + dropped_figure(result.dropped, blocks);
}

// PICTURES ----------------------------------------------------------------------------------------

inline std::string base64(const std::vector<std::uint8_t>& bytes) {
  static const char* const letters =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t n = std::min<std::size_t>(3, bytes.size() - i);
    unsigned group = 0;
    for (std::size_t j = 0; j < 3; ++j) group = group << 8 | (j < n ? bytes[i + j] : 0u);
    for (std::size_t j = 0; j < 4; ++j)
      text += j <= n ? letters[group >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

/// Part of a picture as a Windows bitmap of 24 bits: no compression to get wrong, and every browser
/// reads it.
inline std::vector<std::uint8_t> bitmap(const Picture& picture, Index top, Index left, Index rows,
                                        Index columns) {
  std::vector<std::uint8_t> bytes = {'B', 'M'};
  const auto put = [&bytes](Index value, int size) {
    for (int i = 0; i < size; ++i)
      bytes.push_back(static_cast<std::uint8_t>(value >> (8 * i) & 255));
  };
  const Index row_bytes = (3 * columns + 3) / 4 * 4;
  put(54 + rows * row_bytes, 4), put(0, 4), put(54, 4);
  put(40, 4), put(columns, 4), put(rows, 4), put(1, 2), put(24, 2);
  for (int i = 0; i < 6; ++i) put(0, 4);
  for (Index y = top + rows - 1; y >= top; --y) {  // from the last row up, blue first
    for (Index x = left; x < left + columns; ++x)
      for (Index c = 2; c >= 0; --c)
        bytes.push_back(picture.pixels[static_cast<std::size_t>(
            (y * picture.columns + x) * picture.channels + (picture.channels == 3 ? c : 0))]);
    put(0, static_cast<int>(row_bytes - 3 * columns));
  }
  return bytes;
}

/// Part of a picture. A small grey one is drawn in the ink of the page, pixels of one of 32 levels
/// as one path; any other is a bitmap.
inline std::string svg_pixels(const Picture& picture, Index top, Index left, Index rows,
                              Index columns) {
  if (picture.channels == 3 || picture.rows * picture.columns > 1024)
    return "<image width=\"" + std::to_string(columns) + "\" height=\"" + std::to_string(rows) +
           "\" preserveAspectRatio=\"none\" class=\"photo\" href=\"data:image/bmp;base64," +
           base64(bitmap(picture, top, left, rows, columns)) + "\"/>";
  std::map<int, std::string> paths;
  for (Index y = 0; y < rows; ++y)
    for (Index x = 0; x < columns; ++x) {
      const int ink =
          picture.pixels[static_cast<std::size_t>((top + y) * picture.columns + left + x)];
      paths[(ink * 32 + 127) / 255] +=
          "M" + std::to_string(x) + " " + std::to_string(y) + "h1v1h-1z";
    }
  std::string drawing;
  for (const auto& [level, path] : paths)
    if (level > 0)
      drawing += "<path fill-opacity=\"" + fixed(level / 32.0, 2) + "\" d=\"" + path + "\"/>";
  return "<g class=\"pixels\" shape-rendering=\"crispEdges\">" + drawing + "</g>";
}

inline std::string svg_picture(const Picture& picture, const std::string& title,
                               const std::string& description) {
  return svg_begin(double(picture.columns), double(picture.rows), title, description) +
         svg_pixels(picture, 0, 0, picture.rows, picture.columns) + "</svg>";
}

/// Pictures with what the model read.
inline std::string picture_grid(const std::vector<Picture>& pictures) {
  std::string html = "<ul class=\"pictures\">";
  for (const Picture& picture : pictures) {
    const bool is_wrong = picture.prediction != picture.label;
    const std::string label = std::to_string(picture.label);
    const std::string read = std::to_string(picture.prediction);
    html += std::string("<li") + (is_wrong ? " class=\"miss\"" : "") + ">" +
            svg_picture(picture, "A " + label, "Read as " + read + " with " +
                                                   percent(picture.probability)) +
            "<p><b>" + read + "</b> " + percent(picture.probability) +
            (is_wrong ? "<br/><span>is a " + label + "</span>" : "") + "</p></li>\n";
  }
  return html + "</ul>";
}

// WHO GOES WHERE ----------------------------------------------------------------------------------

/// How a page calls token t of a sequence.
inline std::string token_name(const Routes& routes, Index b, Index t) {
  if (!routes.inputs.words.empty())
    return routes.inputs.words[static_cast<std::size_t>(b)][static_cast<std::size_t>(t)];
  if (t == 0) return "class token";
  const Index columns = routes.inputs.patch_columns;
  return "patch in row " + std::to_string((t - 1) / columns + 1) + ", column " +
         std::to_string((t - 1) % columns + 1);
}

/// Colours of the experts, hues round the circle: a class for each.
inline std::string expert_style(Index num_experts) {
  std::string css;
  for (Index e = 0; e < num_experts; ++e)
    css += ".e" + std::to_string(e) + "{--e:" +
           std::to_string((215 + 360 * e / num_experts) % 360) + " 60% 50%}\n";
  return css;
}

/// What is chosen by radio buttons shows what belongs to it, and marks its label: rules for the
/// numbers 0, 1, ... of one sort.
inline std::string choice_style(const std::string& sort, std::size_t n, const std::string& shows,
                                const std::string& marks) {
  std::string css;
  for (std::size_t i = 0; i < n; ++i) {
    const std::string one = "." + sort + std::to_string(i);
    css += one + ":checked~" + shows + one + "{display:revert}\n" + one + ":checked~" + marks +
           one + "{box-shadow:0 0 0 2px var(--ink)}\n" + one + ":focus-visible~" + marks + one +
           "{outline:3px solid var(--s0);outline-offset:2px}\n";
  }
  return css;
}

/// What the stepper shows: as many inputs, blocks and tokens as fit.
struct StepperSize {
  std::vector<std::size_t> routings;
  std::size_t inputs = 1, tokens = 1;
};
inline StepperSize stepper_size(const Routes& routes) {
  constexpr std::size_t most_cells = 4000;  // about 250 bytes each
  StepperSize size;
  size.tokens = static_cast<std::size_t>(routes.tokens_per_sequence());
  size.routings =
      some_of(routes.choices.size(), std::max<std::size_t>(2, most_cells / size.tokens));
  const std::size_t cells = size.tokens * size.routings.size();
  size.inputs = std::clamp<std::size_t>(most_cells / 2 / cells, 1, 6);
  size.inputs = std::min(size.inputs, static_cast<std::size_t>(routes.last().sequences));
  return size;
}

/// All that the page needs to draw one input of the stepper.
struct StepperInput {
  const Routes& routes;
  const StepperSize& size;
  Index b;                          // which sequence
  std::vector<std::int64_t> row;    // of each token of the sequence, or -1: padding

  StepperInput(const Routes& all, const StepperSize& how_much, Index sequence)
      : routes(all), size(how_much), b(sequence), row(how_much.tokens, -1) {
    const Index T = routes.tokens_per_sequence();
    for (std::size_t n = 0; n < routes.token.size(); ++n)
      if (routes.token[n] / T == b && !is_padding(routes.token[n] % T))
        row[static_cast<std::size_t>(routes.token[n] % T)] = static_cast<std::int64_t>(n);
  }
  bool is_padding(Index t) const {
    return !routes.inputs.words.empty() &&
           routes.inputs.words[static_cast<std::size_t>(b)][static_cast<std::size_t>(t)].empty();
  }
  std::string id(const char* sort, std::size_t i) const {
    return "i" + std::to_string(b) + sort + std::to_string(i);
  }
};

/// Every token of the input with the expert that it prefers in one block.
inline std::string stepper_layer(const StepperInput& input, std::size_t t) {
  const Routes& routes = input.routes;
  const bool is_picture = routes.inputs.words.empty();
  const auto K = static_cast<std::size_t>(routes.last().top_k);
  const Choices& choices = routes.choices[t];
  std::string cells, class_token;
  for (std::size_t i = 0; i < input.row.size(); ++i) {
    if (input.row[i] < 0) continue;
    const std::size_t choice = static_cast<std::size_t>(input.row[i]) * K;
    const std::string e = std::to_string(choices.expert[choice]);
    const bool is_kept = choices.slot[choice] >= 0;
    const bool is_patch = is_picture && i > 0;
    const std::string number = is_kept ? e : "\u00d7";
    const std::string label =
        "<label for=\"" + input.id("t", i) + "\" class=\"t" + std::to_string(i) + " e" + e +
        (is_kept ? "" : " lost") + "\">" +
        (is_patch ? number
                  : escape_html(token_name(routes, input.b, static_cast<Index>(i))) + "<sub>" +
                        number + "</sub>") + "</label>";
    (is_patch || !is_picture ? cells : class_token) += label;
  }
  if (!is_picture) return "<div class=\"words\">" + cells + "</div>";
  const Picture& picture = routes.inputs.pictures[static_cast<std::size_t>(input.b)];
  const Index columns = routes.inputs.patch_columns;
  return std::string("<div class=\"patches") + (columns > 12 ? " many" : "") +
         "\" style=\"aspect-ratio:" + std::to_string(picture.columns) + "/" +
         std::to_string(picture.rows) + ";grid-template-columns:repeat(" +
         std::to_string(columns) + ",1fr)\">" + cells + "</div><p class=\"words\">" +
         class_token + "</p>";
}

/// One token's way through the blocks.
inline std::string token_way(const StepperInput& input, std::size_t token) {
  const Routes& routes = input.routes;
  const Look& look = routes.last();
  const auto K = static_cast<std::size_t>(look.top_k);
  std::string html = "<table class=\"way t" + std::to_string(token) + "\"><caption>" +
                     escape_html(token_name(routes, input.b, static_cast<Index>(token))) +
                     "</caption><thead><tr><th scope=\"col\">block</th>";
  for (std::size_t k = 0; k < K; ++k)
    html += "<th scope=\"col\">" + ordinal(k + 1) + "</th><th scope=\"col\">gate</th>"
            "<th scope=\"col\">slot</th>";
  html += "</tr></thead><tbody>";
  for (const std::size_t t : input.size.routings) {
    html += "<tr><th scope=\"row\">" + std::to_string(look.blocks[t]) + "</th>";
    for (std::size_t k = 0; k < K; ++k) {
      const std::size_t i = static_cast<std::size_t>(input.row[token]) * K + k;
      const std::string e = std::to_string(routes.choices[t].expert[i]);
      const Index slot = routes.choices[t].slot[i];
      html += "<td><b class=\"e" + e + "\">" + e + "</b></td><td>" +
              fixed(routes.choices[t].gate[i], 2) +
              (slot < 0 ? "</td><td class=\"lost\">none"
                        : "</td><td>" + std::to_string(slot)) + "</td>";
    }
    html += "</tr>";
  }
  return html + "</tbody></table>\n";
}

inline std::string radio(const std::string& group, const std::string& id, const std::string& name,
                         const std::string& classes, bool is_checked) {
  return "<input type=\"radio\" name=\"" + group + "\" id=\"" + id + "\" class=\"pick " + classes +
         "\" aria-label=\"" + escape_html(name) + "\"" +
         (is_checked ? " checked=\"checked\"" : "") + "/>";
}

inline std::string stepper_input(const StepperInput& input, const std::string& name) {
  const Routes& routes = input.routes;
  std::string radios, steps, layers, ways;
  for (std::size_t i = 0; i < input.size.routings.size(); ++i) {
    const std::size_t t = input.size.routings[i];
    const std::string block = std::to_string(routes.last().blocks[t]), b = "b" + std::to_string(i);
    radios += radio(input.id("b", 0) + "s", input.id("b", i), "block " + block, b, i == 0);
    steps += "<label for=\"" + input.id("b", i) + "\" class=\"" + b + "\">" + block + "</label>";
    layers += "<div class=\"layer " + b + "\">" + stepper_layer(input, t) + "</div>\n";
  }
  bool is_first = true;
  for (std::size_t i = 0; i < input.row.size(); ++i) {
    if (input.row[i] < 0) continue;
    radios += radio(input.id("t", 0) + "s", input.id("t", i),
                    token_name(routes, input.b, static_cast<Index>(i)), "t" + std::to_string(i),
                    is_first && (i > 0 || input.row.size() == 1));
    if (i > 0) is_first = false;
    ways += token_way(input, i);
  }
  std::string picture;
  if (routes.inputs.words.empty())
    picture = svg_picture(routes.inputs.pictures[static_cast<std::size_t>(input.b)], name,
                          "The picture that the tokens are patches of");
  return "<div class=\"input k" + std::to_string(input.b) + "\">" + radios +
         "<div class=\"stage\"><p class=\"steps\"><span>block</span>" + steps +
         "</p><div class=\"two\"><div class=\"" + (picture.empty() ? "text" : "picture") + "\">" +
         picture + layers + "</div><div class=\"ways scroll\">" + ways +
         "</div></div></div></div>\n";
}

/// The stepper works by radio buttons and style alone: arrow keys go from block to block, from
/// token to token and from input to input.
inline std::string stepper_figure(const Routes& routes, const std::string& input_name) {
  const StepperSize size = stepper_size(routes);
  const bool is_picture = routes.inputs.words.empty();
  std::string radios, tabs, inputs;
  for (std::size_t i = 0; i < size.inputs; ++i) {
    const std::string k = "k" + std::to_string(i), number = std::to_string(i + 1);
    std::string name = input_name + " " + number;
    if (is_picture) name += ", a " + std::to_string(routes.inputs.pictures[i].label);
    radios += radio("inputs", k, name, k, i == 0);
    tabs += "<label for=\"" + k + "\" class=\"" + k + "\">" +
            (is_picture ? svg_picture(routes.inputs.pictures[i], name, "To choose it") : number) +
            "</label>";
    inputs += stepper_input(StepperInput(routes, size, static_cast<Index>(i)), name);
  }
  Index steady = 0;
  const Look& look = routes.last();
  for (Index n = 0; n < look.tokens; ++n) {
    const auto first = static_cast<std::size_t>(n * look.top_k);
    bool is_steady = true;
    for (const Choices& c : routes.choices)
      is_steady = is_steady && c.expert[first] == routes.choices[0].expert[first];
    steady += is_steady ? 1 : 0;
  }
  return figure("Of " + count_of(double(look.tokens), "token") + ", " + grouped(double(steady)) +
                    (steady == 1 ? " keeps" : " keep") + " the same first expert through all " +
                    count_of(double(look.blocks.size()), "block"),
                "Choose one of the " + input_name + "s, a block and a token, by touch or with the "
                "arrow keys. Colour and number tell the expert that the router ranks first; \u00d7 "
                "is a choice that was dropped. The table is the chosen token's way: its experts in "
                "order, their gates, and its slot in each queue." +
                    shown_note(size.routings.size(), look.blocks.size(), "blocks"),
                "<i>p</i> = softmax(<i>x W</i>), &#160; expert = argmax<sub><i>e</i></sub> "
                "<i>p<sub>e</sub></i>",
                "<div class=\"stepper\">" + radios + "<div class=\"tabs\"><span>" +
                    escape_html(input_name) + "</span>" + tabs + "</div><div class=\"inputs\">" +
                    inputs + "</div></div>", "wide");
}

/// What an expert was given with the highest gates: place in the batch, block, gate.
struct Liked {
  Index place, block;
  double gate;
};

/// The rows and columns of a picture that are a patch: token t of its sequence.
struct PatchPlace {
  Index top, left, rows, columns;
  PatchPlace(const Routes& routes, const Picture& picture, Index t)
      : top((t - 1) / routes.inputs.patch_columns), left((t - 1) % routes.inputs.patch_columns),
        rows(picture.rows / routes.inputs.patch_rows),
        columns(picture.columns / routes.inputs.patch_columns) {
    top *= rows, left *= columns;
  }
};

/// What a token looks like: its word or its pixels; "" if it has none, as padding and the class
/// token.
inline std::string look_of(const Routes& routes, Index place) {
  const Index T = routes.tokens_per_sequence(), b = place / T, t = place % T;
  if (!routes.inputs.words.empty()) return token_name(routes, b, t);
  if (t == 0) return "";
  const Picture& picture = routes.inputs.pictures[static_cast<std::size_t>(b)];
  const PatchPlace patch(routes, picture, t);
  std::string pixels;
  for (Index y = patch.top; y < patch.top + patch.rows; ++y)
    for (Index x = patch.left * picture.channels;
         x < (patch.left + patch.columns) * picture.channels; ++x)
      pixels += static_cast<char>(
          picture.pixels[static_cast<std::size_t>(y * picture.columns * picture.channels + x)]);
  return pixels;
}

/// The tokens with the highest gates that an expert kept in any block, the highest first; of those
/// that look the same only the first.
inline std::vector<Liked> liked_by(const Routes& routes, Index expert, std::size_t most) {
  const Look& look = routes.last();
  std::map<std::string, Liked> best;  // by look
  for (std::size_t t = 0; t < routes.choices.size(); ++t)
    for (std::size_t i = 0; i < routes.choices[t].expert.size(); ++i) {
      const Index place = routes.token[i / static_cast<std::size_t>(look.top_k)];
      const double gate = routes.choices[t].gate[i];
      if (routes.choices[t].expert[i] != expert || routes.choices[t].slot[i] < 0 ||
          !std::isfinite(gate))
        continue;
      const std::string key = look_of(routes, place);
      if (key.empty()) continue;
      const auto added = best.emplace(key, Liked{place, look.blocks[t], gate});
      if (gate > added.first->second.gate) added.first->second = {place, look.blocks[t], gate};
    }
  std::vector<Liked> liked;
  for (const auto& entry : best) liked.push_back(entry.second);
  std::sort(liked.begin(), liked.end(), [](const Liked& a, const Liked& b) {
    return a.gate != b.gate ? a.gate > b.gate : a.place < b.place;
  });
  if (liked.size() > most) liked.resize(most);
  return liked;
}

inline std::string likes_figure(const Routes& routes) {
  const Index T = routes.tokens_per_sequence();
  const bool is_picture = routes.inputs.words.empty();
  const std::string things = is_picture ? "patches" : "words";
  std::string html = "<div class=\"likes\">", surest = "0";
  double most = 0;
  for (Index e = 0; e < routes.last().experts; ++e) {
    const std::string number = std::to_string(e);
    html += "<div><h4><b class=\"e" + number + "\">" + number + "</b> expert " + number +
            "</h4><ol>";
    const std::vector<Liked> liked = liked_by(routes, e, is_picture ? 8 : 16);
    for (const Liked& one : liked) {
      if (one.gate > most) most = one.gate, surest = number;
      const std::string where = "gate " + fixed(one.gate, 2) + " in block " +
                                std::to_string(one.block);
      if (is_picture) {
        const Picture& picture = routes.inputs.pictures[static_cast<std::size_t>(one.place / T)];
        const PatchPlace patch(routes, picture, one.place % T);
        html += "<li>" +
                svg_begin(double(patch.columns), double(patch.rows),
                          "A " + token_name(routes, 0, one.place % T),
                          "Of a " + std::to_string(picture.label) + ", " + where) +
                svg_pixels(picture, patch.top, patch.left, patch.rows, patch.columns) + "</svg>" +
                fixed(one.gate, 2) + "</li>";
      } else {
        html += "<li title=\"" + where + "\"><i>" +
                escape_html(token_name(routes, one.place / T, one.place % T)) + "</i> " +
                fixed(one.gate, 2) + "</li>";
      }
    }
    html += liked.empty() ? "<li>nothing</li></ol></div>\n" : "</ol></div>\n";
  }
  return figure("Expert " + surest + " gets the highest gate, " + fixed(most, 2),
                "The " + things + " that each expert was given with the highest gates, over all "
                "blocks; of those that look the same only the first.", "", html + "</div>", "wide");
}

inline std::string change_figures(const Routes& routes) {
  const Look& look = routes.last();
  std::vector<std::string> names;
  for (std::size_t t = 1; t < look.blocks.size(); ++t)
    names.push_back(std::to_string(look.blocks[t - 1]) + " \u2192 " +
                    std::to_string(look.blocks[t]));
  const auto most = std::max_element(look.changed.begin(), look.changed.end());
  const auto before = static_cast<std::size_t>(most - look.changed.begin());
  Series mean{"mean", {}, {}, 0};
  for (const Look& each : routes.looks)
    mean.x.push_back(double(each.step)), mean.y.push_back(mean_of(each.changed));
  return figure(percent(*most) + " of tokens change their first expert from block " +
                    std::to_string(look.blocks[before]) + " to " +
                    std::to_string(look.blocks[before + 1]),
                "The share of tokens whose first choice in one block is another in the next. With "
                "shared experts the same number is the same network in every block.", "",
                bar_chart("Tokens that change their first expert", names, look.changed)) +
         figure(movement("From block to block the share that changes", mean.y, true),
                "The mean of such bars over training.", "",
                line_chart({"Tokens that change their first expert", "step", "share of tokens",
                            {mean}, true}));
}

inline std::string going_figures(const Routes& routes, const std::string& input) {
  std::string html;
  if (routes.looks.empty())
    return missing("The ways of the tokens", "there is no routes.jsonl in this folder; runs of "
                   "this version write one.");
  if (routes.has_choices()) html += stepper_figure(routes, input) + likes_figure(routes);
  else
    html += missing("The ways of the tokens", "the last line of routes.jsonl has no choices; a run "
                    "writes them when it ends or is stopped with Ctrl-C.");
  return routes.last().changed.empty() ? html : html + change_figures(routes);
}

// LAYER NORMS -------------------------------------------------------------------------------------

/// The value below which a fraction of the sorted values lies.
inline double quantile(const std::vector<double>& sorted, double fraction) {
  const double at = fraction * double(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - double(low)) * (sorted[high] - sorted[low]);
}

/// One column for each block: nine tenths of its values, the middle half, the median.
inline std::string box_chart(const std::string& title, const std::vector<std::vector<double>>& x,
                             double start) {
  constexpr double width = 480, left = 52, right = 470, top = 30, bottom = 196;
  std::vector<std::vector<double>> q;
  double low = start, high = start;
  std::vector<std::vector<std::string>> table = {{"block", "5 %", "25 %", "median", "75 %",
                                                  "95 %"}};
  std::string description;
  for (std::size_t l = 0; l < x.size(); ++l) {
    std::vector<double> sorted;
    for (const double v : x[l]) if (std::isfinite(v)) sorted.push_back(v);
    if (sorted.empty()) return "<p class=\"empty\">No finite values.</p>";
    std::sort(sorted.begin(), sorted.end());
    q.emplace_back();
    table.push_back({std::to_string(l)});
    for (const double f : {0.05, 0.25, 0.5, 0.75, 0.95}) {
      q.back().push_back(quantile(sorted, f));
      table.back().push_back(fixed(q.back().back(), 3));
    }
    low = std::min(low, q.back()[0]), high = std::max(high, q.back()[4]);
    description += "Block " + std::to_string(l) + ": median " + fixed(q.back()[2], 3) +
                   ", nine tenths from " + fixed(q.back()[0], 3) + " to " + fixed(q.back()[4], 3) +
                   ". ";
  }
  const Axis axis(low, high, bottom, top, true);
  std::string drawing = svg_text(left - 8, 14, "class=\"quiet\"", "value");
  for (const double y : axis.ticks())
    drawing += svg_rect(left, axis.at(y) - 0.5, right - left, 1, "class=\"grid\"") +
               svg_text(left - 8, axis.at(y) + 4.5, "text-anchor=\"end\" class=\"quiet\"",
                        axis.tick_text(y, false));
  drawing += "<path class=\"reference\" d=\"M" + fixed(left, 1) + " " + fixed(axis.at(start), 1) +
             "H" + fixed(right, 1) + "\"/>";
  const double column = (right - left) / double(x.size()), half = std::min(12.0, 0.3 * column);
  for (std::size_t l = 0; l < x.size(); ++l) {
    const double at = left + column * (double(l) + 0.5);
    drawing += "<path class=\"curve s0\" d=\"M" + fixed(at, 1) + " " + fixed(axis.at(q[l][4]), 1) +
               "V" + fixed(axis.at(q[l][0]), 1) + "\"/>" +
               svg_rect(at - half, axis.at(q[l][3]), 2 * half,
                        std::max(1.0, axis.at(q[l][1]) - axis.at(q[l][3])), "class=\"box\"") +
               svg_rect(at - half, axis.at(q[l][2]) - 1, 2 * half, 2, "class=\"ink s0\"");
    if (x.size() <= 16 || l % 4 == 0)
      drawing += svg_text(at, bottom + 20, "text-anchor=\"middle\" class=\"quiet\"",
                          std::to_string(l));
  }
  drawing += svg_text((left + right) / 2, bottom + 40, "text-anchor=\"middle\" class=\"quiet\"",
                      "block");
  return svg_begin(width, bottom + 46, title, description) + drawing + "</svg>\n" +
         number_table(table);
}

inline std::string layer_norm_figures(const SafeTensors& file) {
  struct Vector {
    const char *name, *letter, *place;
    double start;
  };
  std::string html;
  for (const Vector& v : {Vector{"norm1.weight", "\u03b3", "attention", 1},
                          Vector{"norm1.bias", "\u03b2", "attention", 0},
                          Vector{"norm2.weight", "\u03b3", "the experts", 1},
                          Vector{"norm2.bias", "\u03b2", "the experts", 0}}) {
    std::vector<std::vector<double>> x;
    for (std::size_t l = 0;; ++l) {
      const std::string name = "blocks." + std::to_string(l) + "." + v.name;
      if (file.tensors.count(name) == 0) break;
      const std::vector<float> values = file.values<float>(name);
      x.emplace_back(values.begin(), values.end());
    }
    if (x.size() < 2) continue;
    const std::string what = std::string(v.letter) + " of the LayerNorms at " + v.place;
    html += figure(what + " diverge by " + fixed(layer_norm_divergence(x), 4) + ", and element by "
                       "element by " + fixed(layer_norm_divergence(x, ElementPairs::matched), 4),
                   std::string("One column for each block: nine tenths of its values, the middle "
                               "half, the median. Dashed: where all began, ") +
                       (v.start == 1 ? "1." : "0."),
                   v.start == 1 && html.empty()
                       ? "<i>y</i> = mean of (<i>x<sub>l,d</sub></i> \u2212 "
                         "<i>x<sub>j,i</sub></i>)<sup>2</sup> over all <i>j</i> \u2260 <i>l</i>"
                       : "",
                   box_chart(what, x, v.start));
  }
  return html.empty()
             ? missing("LayerNorms", "this model has not two blocks with LayerNorms of their own.")
             : html;
}

// WHAT IT READS -----------------------------------------------------------------------------------

inline std::string confusion_figure(const std::vector<std::vector<Index>>& counts) {
  HeatMap map{"Confusion matrix", "", "label", "read as", numbered("", counts.size()),
              numbered("", counts[0].size()), {}};
  Index right = 0, all = 0;
  std::size_t worst_label = 0, worst = 0;
  Index most = 0;
  for (std::size_t r = 0; r < counts.size(); ++r) {
    const Index row = std::accumulate(counts[r].begin(), counts[r].end(), Index(0));
    map.cells.emplace_back();
    for (std::size_t c = 0; c < counts[r].size(); ++c) {
      const double share = static_cast<double>(counts[r][c]) /
                           static_cast<double>(std::max<Index>(1, row));
      // One mistake must be seen, so wrong cells start at a visible strength.
      map.cells.back().push_back({counts[r][c] ? std::to_string(counts[r][c]) : "",
                                  r == c ? "above" : "wrong",
                                  r == c ? 0.75 * share : counts[r][c] ? 0.35 + 2 * share : 0});
      if (r == c) right += counts[r][c];
      else if (counts[r][c] > most) most = counts[r][c], worst_label = r, worst = c;
    }
    all += row;
  }
  map.description = grouped(static_cast<double>(right)) + " of " +
                    grouped(static_cast<double>(all)) + " are read right.";
  return figure(most == 0 ? "Nothing is taken for anything else"
                          : "A " + std::to_string(worst_label) + " is most often taken for a " +
                                std::to_string(worst) + ", " +
                                (most == 1 ? "once" : std::to_string(most) + " times"),
                "Rows are what was shown, columns what the model reads; mistakes stand off the "
                "diagonal. " + map.description, "", heat_map(map));
}

inline std::string reading_figures(const RunResult& result) {
  std::string html;
  if (!result.confusion.empty()) html += confusion_figure(result.confusion);
  if (!result.pictures.empty()) {
    Index wrong = 0;
    for (const Picture& p : result.pictures) wrong += p.prediction != p.label ? 1 : 0;
    html += figure(wrong == 0 ? "No mistake among these " + result.examples
                              : "The first " + count_of(double(wrong), "mistake") +
                                    (wrong < static_cast<Index>(result.pictures.size())
                                         ? ", and some that are right" : ""),
                   "What the model reads in each image and how sure it is; mistakes are framed.",
                   "", picture_grid(result.pictures));
  }
  return html;
}

// SETTINGS ----------------------------------------------------------------------------------------

inline NamedValues settings_of(const EncoderConfig& encoder) {
  const auto text = [](Index value) { return std::to_string(value); };
  NamedValues settings = {{"width D", text(encoder.width)},
                          {"heads H", text(encoder.heads)},
                          {"blocks L", text(encoder.blocks)}};
  if (encoder.num_moe_blocks() < encoder.blocks)
    settings.push_back({"dense width F", text(encoder.dense_hidden)});
  if (encoder.experts == 0) return settings;
  if (encoder.num_moe_blocks() < encoder.blocks)
    settings.push_back({"blocks with experts", text(encoder.num_moe_blocks())});
  settings.insert(settings.end(),
                  {{"experts E", text(encoder.experts)},
                   {"choices per token K", text(encoder.top_k)},
                   {"expert width F", text(encoder.expert_hidden)},
                   {"capacity factor", text(encoder.capacity_factor.numerator) + "/" +
                                           text(encoder.capacity_factor.denominator)}});
  return settings;
}

/// What a checkpoint says about its model.
struct Described {
  EncoderConfig encoder;
  NamedValues settings;
};
inline Described described(const SafeTensors& file, const std::string& path) {
  const auto found = file.metadata.find("config");
  require<IoError>(found != file.metadata.end(), "report: ", path,
                   ": the metadata must have \"config\"; got none");
  Described result;
  if (Json::parse(found->second, path).find("vocabulary")) {
    const LanguageConfig config = language_config_from_json(found->second, path);
    result.encoder = config.encoder;
    result.settings = {{"vocabulary V", std::to_string(config.vocabulary)},
                       {"longest sequence", std::to_string(config.max_tokens)}};
  } else {
    const VisionConfig config = vision_config_from_json(found->second, path);
    const auto sides = [](Index rows, Index columns) {
      return std::to_string(rows) + " x " + std::to_string(columns);
    };
    result.encoder = config.encoder;
    result.settings = {{"image", sides(config.image_height, config.image_width)},
                       {"patch", sides(config.patch, config.patch)}};
  }
  const NamedValues more = settings_of(result.encoder);
  result.settings.insert(result.settings.end(), more.begin(), more.end());
  return result;
}

/// All weights in a checkpoint, without the state of the optimiser.
inline Index num_weights(const SafeTensors& file) {
  Index count = 0;
  for (const auto& [name, tensor] : file.tensors) {
    bool is_state = false;
    for (const char* optimizer : {"sgd.", "adamw.", "lamb."})
      is_state = is_state || name.compare(0, std::strlen(optimizer), optimizer) == 0;
    if (!is_state) count += tensor.shape.num_values();
  }
  return count;
}

// THE PAGE ----------------------------------------------------------------------------------------

inline const char* run_style_sheet() {
  return R"css(
.multiples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,290px),1fr));
gap:18px 26px}
.multiples svg{font-size:12.5px}
.q{fill:var(--s0);fill-opacity:.85}.q.odd{fill-opacity:.5}.q.wrong{fill:var(--wrong)}
.limit{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:3 3}
svg .lost{fill:var(--wrong);font-weight:600}td.lost{color:var(--wrong)}
.box{fill:var(--s0);fill-opacity:.28}
.pictures{list-style:none;padding:0;display:grid;gap:16px 14px;
grid-template-columns:repeat(auto-fill,minmax(64px,1fr))}
.pictures svg,.picture svg,.tabs svg,.likes svg{background:var(--cell);border-radius:6px;
overflow:hidden}
.pictures p{font-size:13.5px;line-height:1.35;color:var(--quiet);margin-top:5px}
.pictures b{color:var(--ink);font-size:15px}
.miss svg{outline:2px solid var(--wrong);outline-offset:1px}.miss b,.miss span{color:var(--wrong)}
.photo{image-rendering:pixelated}.picture .pixels,.picture .photo{opacity:.6}
.stepper,.input{position:relative}
.pick{position:absolute;top:0;left:0;width:1px;height:1px;opacity:0;pointer-events:none}
.input,.layer,.way{display:none}
.tabs,.steps{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin-bottom:14px}
.tabs span,.steps span{color:var(--quiet);font-size:14.5px;min-width:3.2em}
.tabs label,.steps label{cursor:pointer;min-width:40px;min-height:36px;border-radius:7px;
background:var(--cell);display:flex;align-items:center;justify-content:center}
.tabs svg{width:44px}
.two{display:grid;grid-template-columns:minmax(0,22rem) minmax(0,1fr);gap:20px 36px;
align-items:start}
.picture{position:relative}
.patches{position:absolute;top:0;left:0;right:0;display:grid;grid-auto-rows:1fr}
.layer label{cursor:pointer}
.patches label{display:flex;align-items:center;justify-content:center;border-radius:4px;
margin:1px;font-size:15px;font-weight:600;line-height:1;overflow:hidden;
background:hsl(var(--e)/.34);text-shadow:0 0 3px var(--card),
0 0 3px var(--card),0 0 3px var(--card)}
.many label{font-size:10px;margin:0;border-radius:0}
.words{display:flex;flex-wrap:wrap;gap:7px;margin-top:10px}.text .words{margin-top:0}
.words label{padding:3px 9px;border-radius:6px;overflow-wrap:anywhere;
background:hsl(var(--e)/.3)}
.words sub{line-height:0;margin-left:3px;color:var(--quiet)}
.layer .lost{background:repeating-linear-gradient(45deg,transparent 0 5px,
hsl(4 55% 50%/.4) 5px 7px)}
.way caption{text-align:left;font-weight:650;padding-bottom:8px;overflow-wrap:anywhere}
.way td,.way th{padding:5px 14px 5px 0}
b[class^=e]{display:inline-flex;min-width:1.7em;height:1.7em;align-items:center;padding:0 .3em;
justify-content:center;border-radius:6px;font-weight:600;
background:hsl(var(--e)/.34)}
.likes{display:grid;gap:18px 28px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.likes h4{font-size:15px;font-weight:600;margin-bottom:8px}
.likes ol{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:8px 10px;font-size:13.5px;
color:var(--quiet)}
.likes li{text-align:center}.likes svg{width:44px;margin-bottom:2px}
.likes li i{font-style:normal;color:var(--ink);background:var(--cell);border-radius:6px;
padding:2px 8px}
@media (max-width:700px){.two{grid-template-columns:minmax(0,1fr)}.multiples svg{font-size:13px}
.tabs span,.steps span{width:100%}.way td,.way th{padding-right:9px}.tabs svg{width:40px}}
@media print{.input:first-child{display:block}}
)css";
}

/// Reads what a run left and makes its page.
///
///   Errors    IoError if the folder holds neither a checkpoint nor metrics, or a damaged file
inline Report report_of_run(const RunFiles& run) {
  const bool has_model = std::filesystem::exists(run.model());
  require<IoError>(has_model || std::filesystem::exists(run.metrics()), "report: ", run.folder,
                   ": a run must have left model.safetensors or metrics.jsonl; got neither");
  const Metrics metrics = read_metrics(run.metrics());
  const RunResult result = read_result(run.result());
  const Routes routes = read_routes(run.routes());
  SafeTensors file;
  Described model;
  if (has_model) file = read_safetensors(run.model()), model = described(file, run.model());
  const bool has_experts = !has_model || model.encoder.experts > 0;

  Report report;
  report.title = result.title.empty() ? "A run in " + run.folder : result.title;
  report.subtitle = result.subtitle;
  report.summary = result.summary;
  if (result.summary.empty() && has_model)
    report.summary = {{"parameters", grouped(double(num_weights(file)))}};
  if (result.summary.empty() && has_curve(metrics, "loss"))
    report.summary.push_back({"steps", grouped(metrics.at("loss").step.back() + 1)});
  report.configuration = model.settings;
  report.configuration.insert(report.configuration.end(), result.settings.begin(),
                              result.settings.end());
  const std::string input = routes.inputs.words.empty() ? "image" : "text";
  report.sections = {{"How it learned", learning_figures(metrics, result, routes, has_experts)}};
  if (has_experts) {
    report.sections.push_back({"Who does the work", work_figures(routes, result, input)});
    report.sections.push_back({"Who goes where", going_figures(routes, input)});
  } else {
    report.sections.push_back({"Who does the work",
                               missing("Experts", "this model has none; nothing is routed.")});
  }
  report.sections.push_back(
      {"What the blocks have of their own",
       has_model ? layer_norm_figures(file)
                 : missing("LayerNorms", "there is no model.safetensors in this folder.")});
  report.sections.push_back({"What it reads", reading_figures(result)});
  report.style = run_style_sheet();
  if (!routes.looks.empty()) report.style += expert_style(routes.last().experts);
  if (routes.has_choices()) {
    const StepperSize size = stepper_size(routes);
    report.style += choice_style("k", size.inputs, ".inputs>.input", ".tabs label") +
                    choice_style("b", size.routings.size(), ".stage .layer",
                                 ".stage .steps label") +
                    choice_style("t", size.tokens, ".stage .way", ".stage .layer label");
  }
  return report;
}

/// Writes RUN/report.html.
inline void write_run_report(const RunFiles& run) {
  write_report(run.report(), report_of_run(run));
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_RUN_REPORT_HPP
