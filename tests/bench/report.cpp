// Makes one self-contained HTML page of the readings of the benchmarks, and prints the main ones.
//
//   report BENCH_JSON TORCH_JSON PAGE     what run.sh wrote, what bench_torch.py wrote (either may
//                                         be missing), and where the page goes
//
// Times are compared as costs, time multiplied by the FMA peak beside it, so that a machine that
// changes its clock between two readings does not change their ratio.

#include "measure.hpp"
#include "support/report.hpp"
#include "widenet.hpp"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace widenet;
using namespace widenet::support;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double least_peak = 0.87;  // of the best one, below which the machine counts as busy
const std::vector<std::string> all_configs = {"digits1", "digits2", "mnist", "cifar", "mlm",
                                              "wideB"};

/// What a step should reach with two threads: per cent of the peak, and times as fast as PyTorch.
const std::map<std::string, double> share_goals = {{"digits1", 40}, {"digits2", 43}, {"mnist", 60},
                                                   {"cifar", 63},   {"mlm", 71},     {"wideB", 69}};
const std::map<std::string, double> speed_goals = {{"digits1", 3.5}, {"digits2", 2.7},
                                                   {"mnist", 1.6},   {"cifar", 1.5},
                                                   {"mlm", 1.3},     {"wideB", 1.2}};

// READINGS ----------------------------------------------------------------------------------------

double number_or_nan(const Json& json, const std::string& key) {
  const Json* const found = json.find(key);
  return found && found->type() == Json::Type::number ? found->number() : nan;
}

std::string text_or_empty(const Json& json, const std::string& key) {
  const Json* const found = json.find(key);
  return found && found->type() == Json::Type::string ? found->string() : "";
}

struct Reading {
  Json json;
  bool is_busy = false;  // the peak beside it was low
  double operator[](const char* key) const { return number_or_nan(json, key); }
  std::string text(const char* key) const { return text_or_empty(json, key); }
  /// What the machine could have done in the time that it took, in GFLOP.
  double cost() const { return (*this)["ms"] * (*this)["peak_gflops"] * 1e-3; }
};

using Readings = std::vector<Reading>;

/// The array in a file; an empty one if there is no such file.
Json read_array(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.good()) return Json::parse("[]", path);
  std::ostringstream text;
  text << file.rdbuf();
  return Json::parse(text.str(), path);
}

/// All entries of the array, each marked if its peak lies below the best with as many threads.
Readings read_readings(const std::string& path) {
  const Json entries = read_array(path);
  Readings all;
  std::map<std::string, double> best;  // by threads
  for (const Json& entry : entries.items()) {
    all.push_back({entry});
    double& peak = best[fixed(all.back()["threads"], 0)];
    if (all.back()["peak_gflops"] > peak) peak = all.back()["peak_gflops"];
  }
  for (Reading& r : all) r.is_busy = r["peak_gflops"] < least_peak * best[fixed(r["threads"], 0)];
  return all;
}

Readings select(const Readings& all, const std::function<bool(const Reading&)>& is_wanted) {
  Readings some;
  for (const Reading& r : all)
    if (is_wanted(r)) some.push_back(r);
  return some;
}

Readings of_step(const Readings& all, const std::string& section, const std::string& config,
                 int threads) {
  return select(all, [&](const Reading& r) {
    return r.text("section") == section && r.text("config") == config && r["threads"] == threads;
  });
}

Readings where(const Readings& all, const char* key, double value) {
  return select(all, [&](const Reading& r) { return r[key] == value; });
}

/// A median over the quiet readings or, where there are none, over all, which is then marked.
struct Median {
  double value = nan;
  bool is_busy = false;
};

template <class Value> Median median_of(const Readings& readings, Value value) {
  std::vector<double> quiet, all;
  for (const Reading& r : readings) {
    if (!std::isfinite(value(r))) continue;
    all.push_back(value(r));
    if (!r.is_busy) quiet.push_back(value(r));
  }
  if (all.empty()) return {};
  return quiet.empty() ? Median{bench::median(all), true} : Median{bench::median(quiet), false};
}
Median median_of(const Readings& readings, const char* key) {
  return median_of(readings, [&](const Reading& r) { return r[key]; });
}
Median cost_of(const Readings& readings) {
  return median_of(readings, [](const Reading& r) { return r.cost(); });
}
Median operator/(Median a, Median b) { return {a.value / b.value, a.is_busy || b.is_busy}; }

/// Busy or not: memory and counts do not depend on it.
Median steady(const Readings& readings, const char* key) {
  return {median_of(readings, key).value};
}

std::string shown(Median m, int decimals) {
  if (!std::isfinite(m.value)) return "\u2013";
  return grouped(m.value, decimals) + (m.is_busy ? "*" : "");
}

// DRAWING -----------------------------------------------------------------------------------------

/// A table that is always open; the first row is the head, the first column names rows.
std::string open_table(const std::vector<std::vector<std::string>>& rows) {
  std::string html = "<div class=\"scroll\"><table>";
  for (std::size_t r = 0; r < rows.size(); ++r) {
    html += "<tr>";
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      const char* const tag = r == 0 || c == 0 ? "th" : "td";
      const char* const scope = r == 0 ? " scope=\"col\"" : c == 0 ? " scope=\"row\"" : "";
      html += std::string("<") + tag + scope + ">" + escape_html(rows[r][c]) + "</" + tag + ">";
    }
    html += "</tr>\n";
  }
  return html + "</table></div>";
}

struct Bar {
  std::string name;  // empty: it belongs to the bar above
  double value;
  std::string text;
  int colour = 0;
  double goal = nan;
};

/// Horizontal bars from 0 to at least `full`; a short upright line marks a goal.
std::string bars(const std::string& title, const std::vector<Bar>& all, double full = 0) {
  constexpr double left = 78, longest = 300, row = 22, gap = 12;
  double most = full, y = -gap;
  for (const Bar& bar : all)
    for (const double value : {bar.value, bar.goal})
      if (std::isfinite(value)) most = std::max(most, value);
  if (!(most > 0)) return "<p class=\"empty\">No readings.</p>";
  std::string drawing, description;
  for (const Bar& bar : all) {
    if (!bar.name.empty()) y += gap;
    const double length = std::isfinite(bar.value) ? longest * bar.value / most : 0;
    drawing += svg_text(left - 10, y + 16, "text-anchor=\"end\"", bar.name) +
               svg_rect(left, y + 3, longest, row - 6, "rx=\"3\" class=\"cell\"") +
               svg_rect(left, y + 3, length, row - 6,
                        "rx=\"3\" class=\"ink s" + std::to_string(bar.colour) + "\"") +
               svg_text(left + longest + 10, y + 16, "class=\"strong\"", bar.text);
    if (std::isfinite(bar.goal))
      drawing += svg_rect(left + longest * bar.goal / most - 1, y, 2, row, "class=\"goal\"");
    description += bar.name + " " + bar.text + ". ";
    y += row;
  }
  return svg_begin(480, y, title, description) + drawing + "</svg>\n";
}

std::string section(const char* heading, const std::string& figures_html) {
  if (figures_html.empty()) return "";
  return std::string("<section><h2>") + heading + "</h2><div class=\"figures\">\n" + figures_html +
         "</div></section>\n";
}

double goal_of(const std::map<std::string, double>& goals, const std::string& config) {
  const auto found = goals.find(config);
  return found == goals.end() ? nan : found->second;
}

// SECTIONS ----------------------------------------------------------------------------------------

std::string training_section(const Readings& all) {
  std::vector<Bar> shares, speedups;
  std::vector<std::vector<std::string>> table = {
      {"configuration", "threads", "% of peak", "ms", "tokens/s", "GFLOP", "peak GFLOP/s",
       "memory MB", "tensors MB", "kept"}};
  for (const std::string& config : all_configs)
    for (const int threads : {1, 2}) {
      const Readings rows = of_step(all, "train", config, threads);
      if (rows.empty()) continue;
      const Median share = median_of(rows, "percent_of_peak"), ms = median_of(rows, "ms");
      const Median peak = median_of(rows, "peak_gflops");
      shares.push_back({threads == 1 ? config : "", share.value, shown(share, 0) + "\u202f%",
                        threads - 1, threads == 2 ? goal_of(share_goals, config) : nan});
      table.push_back({config, std::to_string(threads), shown(share, 1), shown(ms, 1),
                       shown(median_of(rows, "tokens_per_second"), 0),
                       shown(median_of(rows, "gflop"), 2), shown(peak, 0),
                       shown(steady(rows, "peak_memory_mb"), 0),
                       shown(steady(rows, "tensor_memory_mb"), 0),
                       shown(steady(rows, "kept_fraction"), 3)});
      const Readings one = of_step(all, "train", config, 1);
      if (threads == 1 || one.empty()) continue;
      const Median speedup = median_of(one, "ms") / ms;
      speedups.push_back({config, speedup.value, shown(speedup, 2), 1,
                          (peak / median_of(one, "peak_gflops")).value});
    }
  if (shares.empty()) return "";
  return section("A training step",
                 figure("Part of the FMA peak", "Useful operations of forward, backward and AdamW "
                        "per second, against what the processor could do that minute. Upper bar: "
                        "one thread; lower bar: two, with the goal marked.",
                        "useful = products of kept choices; backward counts twice",
                        bars("Part of the FMA peak", shares, 100)) +
                 figure("Two threads", "How many times as fast as one. The mark is the ratio of "
                        "the peaks, the most that a second thread can bring here.", "",
                        bars("Two threads against one", speedups, 2)) +
                 figure("Steps", "Medians. Memory is the largest that the process held.", "",
                        open_table(table), "full"));
}

/// The best of the peer's forms, beside ours, out of the entries that bench_torch.py wrote.
std::string torch_section(const Json& entries) {
  std::vector<Bar> speeds, memories;
  std::vector<std::vector<std::string>> table = {
      {"configuration", "threads", "% of peak", "PyTorch", "times as fast", "memory MB", "PyTorch",
       "times as small", "without runtime", "form", "difference"}};
  const auto bar = [](const std::string& config, double threads, double ratio, double goal) {
    return Bar{threads == 1 ? config : "", ratio, std::isfinite(ratio) ? fixed(ratio, 2) : "busy",
               threads == 1 ? 0 : 1, goal};
  };
  for (const Json& entry : entries.items()) {
    const std::string config = entry.at("config").string();
    const double threads = entry.at("threads").number(), ratio = number_or_nan(entry, "ratio");
    const double growth = number_or_nan(entry, "growth_ratio");
    speeds.push_back(bar(config, threads, ratio,
                         threads == 2 ? goal_of(speed_goals, config) : 1));
    memories.push_back(bar(config, threads, growth, 2));
    const auto share = [&](const std::string& form) {
      const Json* const summary = entry.at("summaries").find(form);
      const bool is_there = summary && summary->is_object();
      return shown({is_there ? summary->at("percent_of_peak").number() : nan}, 1);
    };
    const auto memory = [&](const std::string& form) {
      const Json* const pair = entry.at("memory_mb").find(form);
      return shown({pair ? pair->items()[0].number() : nan}, 0);
    };
    const std::string form = text_or_empty(entry, "fastest_peer");
    const std::string said = text_or_empty(entry, "agreement");
    table.push_back({config, fixed(threads, 0), share("ours"), share(form), shown({ratio}, 2),
                     memory("ours"), memory(form),
                     shown({number_or_nan(entry, "memory_ratio")}, 1), shown({growth}, 1), form,
                     said.substr(said.rfind(' ') + 1)});
  }
  if (speeds.empty()) return "";
  return section("Against PyTorch",
                 figure("How many times as fast", "The time of PyTorch's fastest form over ours; 1 "
                        "is a draw. Upper bar: one thread; lower bar: two, with the goal marked.",
                        "", bars("How many times as fast as PyTorch", speeds)) +
                 figure("How many times as small", "Growth of PyTorch's memory over ours since "
                        "before the model was built, so that Python's runtime does not count. The "
                        "goal is 2.", "", bars("How many times as small as PyTorch", memories)) +
                 figure("Both sides", "Interleaved runs from the same weights and batch. Before "
                        "them both computed one step; the last column is the largest relative "
                        "difference in its loss and gradients. Memory is compared with the form "
                        "that needs least.", "", open_table(table), "full"));
}

/// cost(x) / cost(base) for the values x of `key` in a section; `each`: divided by x / base.
Series relative_cost(const Readings& rows, const std::string& name, const char* key, double base,
                     bool each) {
  Series series{name};
  std::set<double> xs;
  for (const Reading& r : rows) xs.insert(r[key]);
  const Median reference = cost_of(where(rows, key, base));
  for (const double x : xs) {
    series.x.push_back(x);
    series.y.push_back((cost_of(where(rows, key, x)) / reference).value / (each ? x / base : 1));
  }
  return series;
}

std::string growth_figure(const Readings& all, const std::string& section_name, const char* key,
                          double base, bool each, double limit, const std::string& heading,
                          const std::string& sentence) {
  const Readings rows = of_step(all, section_name, "mnist", 2);
  if (where(rows, key, base).empty()) return "";
  LineChart chart{heading, key, "relative",
                  {relative_cost(rows, each ? "time each" : "time", key, base, each)}};
  chart.reference = limit;
  chart.reference_name = "goal: at most " + fixed(limit, 2);
  return figure(heading, sentence, "", line_chart(chart));
}

std::string recompute_figures(const Readings& all) {
  const Readings kept = of_step(all, "blocks", "mnist", 2);
  const Readings again = of_step(all, "recompute", "mnist", 2);
  if (kept.empty() || again.empty()) return "";
  Series kept_memory{"all kept"}, again_memory{"again"}, time{"time"};
  again_memory.colour = 1;
  std::set<double> blocks;
  for (const Reading& r : again) blocks.insert(r["blocks"]);
  for (const double L : blocks) {
    const Readings a = where(kept, "blocks", L), b = where(again, "blocks", L);
    for (Series* series : {&kept_memory, &again_memory, &time}) series->x.push_back(L);
    kept_memory.y.push_back(median_of(a, "tensor_memory_mb").value);
    again_memory.y.push_back(median_of(b, "tensor_memory_mb").value);
    time.y.push_back((cost_of(b) / cost_of(a)).value);
  }
  const LineChart memory{"Memory against blocks", "blocks", "MB", {kept_memory, again_memory}};
  LineChart chart{"Time of computing again", "blocks", "with / without", {time}};
  chart.reference = 1.4, chart.reference_name = "goal: at most 1.40";
  return figure("Memory against blocks", "All tensors of a training step. Blocks that are computed "
                "again in backward leave nothing but their input.", "",
                line_chart(memory)) +
         figure("Time of computing again", "A step whose blocks are computed again, over one that "
                "keeps what they computed.", "", line_chart(chart));
}

std::string dense_figure(const Readings& all) {
  const Readings rows = of_step(all, "dense", "mnist", 2);
  const auto row = [&](double experts) { return where(rows, "experts", experts); };
  if (row(0).empty() || row(4).empty()) return "";
  const auto per_operation = [](const Reading& r) { return r.cost() / r["gflop"]; };
  const Median sparse = median_of(row(4), per_operation), dense = median_of(row(0), per_operation);
  std::vector<std::vector<std::string>> table = {{"", "ms", "GFLOP", "% of peak"}};
  for (const double experts : {4.0, 0.0})
    table.push_back({experts > 0 ? "4 experts, K = 1" : "dense",
                     shown(median_of(row(experts), "ms"), 1),
                     shown(median_of(row(experts), "gflop"), 2),
                     shown(median_of(row(experts), "percent_of_peak"), 1)});
  return figure("One expert per token, or a dense network", "At the same number of operations a "
                "step with K = 1 costs " + shown(sparse / dense, 2) + " times a dense one; the "
                "goal is at most 1.15.", "", open_table(table));
}

std::string growth_section(const Readings& all) {
  return section(
      "How the cost grows, on mnist with two threads",
      growth_figure(all, "experts", "experts", 4, false, 1.15, "More experts",
                    "Time of a step with as many tokens and choices, over that with 4 experts. "
                    "AdamW alone grows with their weights.") +
      growth_figure(all, "blocks", "blocks", 8, true, 1.1, "More blocks",
                    "Time of a step per block, over that with 8 blocks: flat is linear.") +
      growth_figure(all, "batch", "batch", 64, true, 1.1, "Larger batches",
                    "Time of a step per image, over that with 64 images: flat is linear.") +
      dense_figure(all) + recompute_figures(all));
}

std::string evaluation_section(const Readings& all) {
  std::vector<std::vector<std::string>> table = {
      {"configuration", "batch", "sequences/s", "tokens/s", "% of peak", "ms", "tensors MB"}};
  for (const std::string& config : all_configs) {
    const Readings of_config = of_step(all, "evaluate", config, 2);
    for (const double batch : {1.0, 64.0}) {
      const Readings rows = where(of_config, "batch", batch);
      if (rows.empty()) continue;
      table.push_back({config, fixed(batch, 0), shown(median_of(rows, "sequences_per_second"), 1),
                       shown(median_of(rows, "tokens_per_second"), 0),
                       shown(median_of(rows, "percent_of_peak"), 1),
                       shown(median_of(rows, "ms"), 2),
                       shown(steady(rows, "tensor_memory_mb"), 0)});
    }
  }
  if (table.size() == 1) return "";
  return section("Evaluation",
                 figure("Forward alone", "Two threads, without a graph or memory for gradients. A "
                        "sequence is an image, or a text of 128 tokens.", "", open_table(table),
                        "full"));
}

Median rate_of(const Readings& all, const std::string& config, int threads, const std::string& part,
               const std::string& direction, const char* key) {
  return median_of(select(of_step(all, "parts", config, threads), [&](const Reading& r) {
    return r.text("part") == part && r.text("direction") == direction;
  }), key);
}

std::string products_figure(const Readings& all, const std::vector<std::string>& configs,
                            int threads) {
  const std::string title = "Products, " + std::to_string(threads) +
                            (threads == 1 ? " thread" : " threads");
  HeatMap map{title, "Per cent of the FMA peak.", "", "", {}, configs, {}};
  const std::vector<std::pair<std::string, std::string>> parts = {
      {"projection", "proj"}, {"expert in", "fc1"}, {"expert out", "fc2"}};
  for (const auto& [part, name] : parts)
    for (const std::string direction : {"y", "dx", "dw"}) {
      map.rows.push_back(name + " " + direction);
      map.cells.emplace_back();
      for (const std::string& config : configs) {
        const Median share = rate_of(all, config, threads, part, direction, "percent_of_peak");
        map.cells.back().push_back({shown(share, 0), "above", share.value / 100});
      }
    }
  return figure(title, "Per cent of the FMA peak. proj: a projection of attention; fc1, fc2: the "
                "layers of one expert; y: forward; dx, dw: the two products of backward.", "",
                heat_map(map));
}

std::string operations_figure(const Readings& all, const std::vector<std::string>& configs,
                              int threads) {
  std::vector<std::vector<std::string>> table = {{"", "unit"}};
  for (const std::string& config : configs) table[0].push_back(config);
  std::set<std::string> seen;
  for (const Reading& r : all) {
    const std::string part = r.text("part"), direction = r.text("direction");
    if (r.text("section") != "parts" || direction == "y" || direction[0] == 'd') continue;
    if (!seen.insert(part + direction).second) continue;
    table.push_back({part + ", " + direction, r.text("unit")});
    for (const std::string& config : configs)
      table.back().push_back(shown(rate_of(all, config, threads, part, direction, "rate"), 2));
  }
  return figure(threads == 1 ? "Operations, 1 thread" : "Operations, 2 threads",
                "What they do per second, in shapes of the configurations; backward is timed by "
                "itself. A Gvalue is 10\u2079 values of the result; AdamW moves 28 bytes per "
                "parameter.", "", open_table(table), "full");
}

std::string parts_section(const Readings& all) {
  std::vector<std::string> configs;
  for (const std::string& config : all_configs)
    if (!of_step(all, "parts", config, 2).empty()) configs.push_back(config);
  if (configs.empty()) return "";
  return section("The parts by themselves",
                 products_figure(all, configs, 1) + products_figure(all, configs, 2) +
                 operations_figure(all, configs, 1) + operations_figure(all, configs, 2));
}

std::string compile_section(const Readings& all) {
  std::vector<Bar> times;
  std::map<std::string, double> seconds;
  for (const Reading& r : all) {
    if (r.text("section") != "compile") continue;
    const std::string what = r.text("what");
    seconds[what] = r["seconds"];
    const bool is_program = what == "examples/quickstart.cpp";
    const std::string short_name = what == "include <Eigen/Dense>" ? "Eigen"
                                   : what == "include widenet.hpp" ? "header"
                                   : is_program                    ? "quickstart" : "empty";
    times.push_back({short_name, r["seconds"], fixed(r["seconds"], 2) + " s", 0,
                     is_program ? 10 : nan});
  }
  if (times.empty()) return "";
  const double ratio = seconds["include widenet.hpp"] / seconds["include <Eigen/Dense>"];
  return section("Compiling",
                 figure("Seconds of the compiler at -O3", "A program that includes widenet.hpp and "
                        "uses nothing takes " + fixed(ratio, 2) + " times as long as one that "
                        "includes <Eigen/Dense>; the goal is at most 1.5. That of the quick start "
                        "is marked.", "", bars("Seconds of the compiler", times)));
}

const char* const method = R"html(<section><h2>How it is measured</h2><div class="method">
<p>A step is forward, backward and AdamW in fp32, on random inputs; nothing of it is left out, and
nothing is tuned to the values. Useful operations are those of the matrix products: only choices
that were kept, no padding, nothing that is computed twice; a product costs twice as much in
backward.</p>
<p>The FMA peak is read right before and after each timing: chains of fused multiply-adds in
registers, on as many threads. A reading beside a peak below 0.87 of the best one was taken while
the machine was busy or slow. It is left out of the medians where there are others, and where there
are none, the figure carries a star.</p>
<p>Curves compare costs: time multiplied by the peak beside it.</p></div></section>
)html";

std::string page(const Readings& all, const std::string& torch_html) {
  std::size_t num_timed = 0, num_busy = 0;
  for (const Reading& r : all)
    if (std::isfinite(r["peak_gflops"])) ++num_timed, num_busy += r.is_busy ? 1 : 0;
  std::string subtitle;
  for (const Reading& r : all)
    if (r.text("section") == "machine")
      subtitle = r.text("processor") + ", " + fixed(r["cores"], 0) + " cores. " +
                 r.text("compiler") + ". " + r.text("date") + ". ";
  subtitle += grouped(double(num_timed)) + " readings, of which " + grouped(double(num_busy)) +
              " were taken while the machine was busy.";
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" "
      "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n"
      "<title>WideNet: benchmarks</title>\n<style>";
  html += style_sheet();
  html += R"css(.full{grid-column:1/-1}.goal{fill:var(--ink);stroke:var(--card)}
.method{columns:2 400px;gap:32px}
.method p{margin-bottom:12px;break-inside:avoid}figure>.scroll{margin-top:0}
figure table{width:100%;font-size:15px}figure>.scroll td{white-space:nowrap}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card);
box-shadow:inset 0 -1px var(--line)}
.note{color:var(--quiet);font-size:14.5px;margin-top:10px}
)css";
  html += "</style></head>\n<body><main>\n<header><h1>How fast WideNet is</h1><p>" +
          escape_html(subtitle) + "</p></header>\n<dl class=\"summary\">";
  for (const std::string& config : all_configs) {
    const Median share = median_of(of_step(all, "train", config, 2), "percent_of_peak");
    if (std::isfinite(share.value))
      html += "<div><dt>" + config + "</dt><dd>" + shown(share, 0) +
              "\u202f%</dd></div>\n";
  }
  html += "</dl><p class=\"note\">of the FMA peak, in a training step on two "
          "threads</p>\n";
  return html + training_section(all) + torch_html + growth_section(all) + evaluation_section(all) +
         parts_section(all) + compile_section(all) + method + "</main></body></html>\n";
}

void print_steps(const Readings& all) {
  std::printf("%-9s %7s %10s %12s %10s %6s\n", "", "threads", "ms", "% of peak", "memory MB",
              "kept");
  for (const std::string& config : all_configs)
    for (const int threads : {1, 2}) {
      const Readings rows = of_step(all, "train", config, threads);
      if (rows.empty()) continue;
      std::printf("%-9s %7d %10s %12s %10s %6s\n", config.c_str(), threads,
                  shown(median_of(rows, "ms"), 1).c_str(),
                  shown(median_of(rows, "percent_of_peak"), 1).c_str(),
                  shown(steady(rows, "peak_memory_mb"), 0).c_str(),
                  shown(steady(rows, "kept_fraction"), 3).c_str());
    }
  std::printf("* the machine was busy: the peak beside it was below %.2f of the best\n",
              least_peak);
}

int run(int argc, char** argv) {
  require<ValueError>(argc == 4, "report: BENCH_JSON TORCH_JSON PAGE must be given");
  const Readings all = read_readings(argv[1]);
  const std::string path = argv[3], html = page(all, torch_section(read_array(argv[2])));
  std::ofstream file(path, std::ios::binary);
  file << html << std::flush;
  require<IoError>(file.good(), "report: ", path, ": must be writable; got: a failed write");
  if (!all.empty()) print_steps(all);
  std::printf("page: %s\n", path.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
