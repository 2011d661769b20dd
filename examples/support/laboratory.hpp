// laboratory.hpp - small experiments: settings that differ in one thing, each trained with the same
// seeds, compared by mean and standard deviation, and told in sentences that follow from what was
// measured.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_LABORATORY_HPP
#define WIDENET_EXAMPLES_SUPPORT_LABORATORY_HPP

#include "support/digits.hpp"
#include "support/report.hpp"
#include "support/statistics.hpp"
#include "widenet.hpp"

#include <algorithm>   // max, max_element, min
#include <cctype>      // toupper
#include <cmath>       // fabs, isfinite, log, sqrt
#include <cstdint>     // uint64_t
#include <functional>  // function
#include <limits>      // numeric_limits
#include <numeric>     // iota
#include <sstream>     // istringstream
#include <string>      // string
#include <vector>      // vector

namespace widenet::support {

// ONE RUN -----------------------------------------------------------------------------------------

/// What is measured of one training run. Shares are of 1. Routing is that of the images held out,
/// in evaluation: the mean over the routings.
struct Trial {
  double accuracy = 0, loss = 0;    // on the images held out
  double training_loss = 0;         // the mean over the last tenth of the steps
  double busiest = 0;               // share of the choices that go to the busiest expert
  double evenness = 0;              // entropy of these shares / ln E: 1 is balanced
  double dropped = 0;               // share of the choices that are dropped
  double router_gradient = 0;       // |dL / dw| of the router, the mean over the steps
  double router_change = 0;         // |w - w before training| / |w before training|
  double divergence = 0;            // of the gammas of the blocks, matched: 0 if they share them
  double parameters = 0;
  std::vector<double> busiest_by_step, gradient_by_step;  // in training
};

/// A setting of an experiment: a model, and how it is trained.
struct Setting {
  std::string name;
  VisionConfig config;
  double lambda = 0.01;
};

/// The largest share of the choices that one expert gets; the mean over routings.
template <class T>
double busiest_share(const std::vector<Routing<T>>& routings) {
  double total = 0;
  for (const Routing<T>& r : routings) {
    const std::vector<std::int32_t> load = r.load.to_vector();
    total += double(*std::max_element(load.begin(), load.end())) / double(r.N * r.K);
  }
  return total / double(routings.size());
}
/// - sum over e of m[e] ln m[e] / ln E, with m[e] the share of expert e; the mean over routings.
template <class T>
double load_evenness(const std::vector<Routing<T>>& routings) {
  double total = 0;
  for (const Routing<T>& r : routings)
    for (const std::int32_t load : r.load.to_vector()) {
      const double share = double(load) / double(r.N * r.K);
      if (load > 0 && r.E > 1) total -= share * std::log(share) / std::log(double(r.E));
    }
  return total / double(routings.size());
}

inline double length(const std::vector<float>& x) {
  double squares = 0;
  for (const float value : x) squares += double(value) * double(value);
  return std::sqrt(squares);
}

/// Trains a setting and measures it. There is no weight decay, so a parameter without a gradient
/// stays what it is.
inline Trial run_trial(const Setting& setting, Index steps, std::uint64_t seed,
                       const LabelledImages& training, const LabelledImages& held_out) {
  constexpr Index batch_size = 32;
  const Rng rng(seed);
  const VisionModel<float> model(setting.config, rng);
  AdamW<float> optimizer(model.parameters(), 0, {0.9, 0.99, 1e-8, 0});
  Schedule schedule;
  schedule.peak = 7e-3, schedule.warmup = steps / 10, schedule.total = steps;
  schedule.decay = Schedule::Decay::cosine;
  Tensor<float> router;
  for (const Parameter<float>& p : model.parameters())
    if (p.name == "shared.moe.router.weight") router = p.tensor;
  const std::vector<float> router_before = router.to_vector();

  Trial trial;
  trial.parameters = double(model.num_parameters());
  const Index last_tenth = steps - std::max<Index>(1, steps / 10);
  for (Index step = 0; step < steps; ++step) {
    const Batch batch = batch_of_step(training, batch_size, rng, step);
    const auto out = model.forward(batch.images, Training{rng, step});
    const auto loss = cross_entropy(out.logits, batch.labels);
    optimizer.zero_grad();
    total_loss(loss, out.balance_loss, setting.lambda).backward();
    trial.busiest_by_step.push_back(busiest_share(out.routings));
    trial.gradient_by_step.push_back(length(router.gradient().to_vector()));
    trial.router_gradient += trial.gradient_by_step.back() / double(steps);
    if (step >= last_tenth) trial.training_loss += loss.item() / double(steps - last_tenth);
    clip_global_norm(model.parameters(), 1.0);
    optimizer.set_learning_rate(schedule(step));
    optimizer.step();
  }
  std::vector<float> change = router.to_vector();
  for (std::size_t i = 0; i < change.size(); ++i) change[i] -= router_before[i];
  trial.router_change = length(change) / length(router_before);
  if (!setting.config.encoder.share_layer_norm)
    for (const char* const gammas : {"norm1.weight", "norm2.weight"})
      trial.divergence +=
          layer_norm_divergence(model.parameters(), gammas, ElementPairs::matched) / 2;

  const NoGrad no_graph;
  const auto out = model.forward(held_out.tensor());
  trial.accuracy = accuracy(out.logits, held_out.labels);
  trial.loss = cross_entropy(out.logits, held_out.labels).item();
  trial.busiest = busiest_share(out.routings);
  trial.evenness = load_evenness(out.routings);
  for (const Routing<float>& r : out.routings)
    trial.dropped += r.dropped_fraction() / double(out.routings.size());
  return trial;
}

// MEASURES ----------------------------------------------------------------------------------------

/// A number of a trial, and how it is said.
struct Measure {
  double Trial::*value;
  std::string name;  // "accuracy"
  std::string what;  // a sentence
  int decimals = 1;
  double scale = 100;  // 100: percent
  bool is_constant = false;  // the same in every run: it needs no deviation and no figure
  std::string text(const Statistics& s, const std::string& plus_minus = " +- ") const {
    if (is_constant) return text(s.mean);
    return mean_and_deviation(s, decimals, scale, plus_minus) + (scale == 100 ? " %" : "");
  }
  std::string text(double value_of_one) const {
    return fixed(scale * value_of_one, decimals) + (scale == 100 ? " %" : "");
  }
};

/// All trials: [setting][seed].
using Trials = std::vector<std::vector<Trial>>;

inline std::vector<double> values_of(const std::vector<Trial>& trials, const Measure& measure) {
  std::vector<double> values;
  for (const Trial& trial : trials) values.push_back(trial.*measure.value);
  return values;
}
inline Statistics statistics_of(const std::vector<Trial>& trials, const Measure& measure) {
  return statistics_of(values_of(trials, measure));
}

// SENTENCES ---------------------------------------------------------------------------------------

/// How a difference of two means compares with the standard deviation over the seeds.
enum class Verdict { one_seed, same, within, hint, clear };

/// |b - a| in units of s = sqrt((s_a^2 + s_b^2) / 2): within up to 1, a hint up to 2, clear beyond.
struct Comparison {
  Verdict verdict;
  double difference;  // b - a
  double deviations;  // |difference| / s; infinity where s is 0
};
inline Comparison compare(const Statistics& a, const Statistics& b) {
  const double difference = b.mean - a.mean;
  if (a.count < 2 || b.count < 2) return {Verdict::one_seed, difference, 0};
  const double s = std::sqrt((a.deviation * a.deviation + b.deviation * b.deviation) / 2);
  if (difference == 0 && s == 0) return {Verdict::same, 0, 0};
  const double deviations = std::fabs(difference) / s;
  return {deviations <= 1 ? Verdict::within : deviations <= 2 ? Verdict::hint : Verdict::clear,
          difference, deviations};
}

/// What is expected of a measure when the setting `from` is left for the setting `to`.
struct Expectation {
  Measure measure;
  std::size_t from = 0, to = 1;
  int direction = 0;  // 1: it rises; -1: it falls; 0: nothing is said
};

inline std::string capitalised(std::string text) {
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(text[0]));
  return text;
}

/// What was measured, in words, and whether it is what was expected.
inline std::string sentence(const Expectation& expected, const std::string& from,
                            const std::string& to, const Statistics& a, const Statistics& b,
                            const std::string& plus_minus = " +- ") {
  const Measure& m = expected.measure;
  const Comparison c = compare(a, b);
  const std::string values = capitalised(m.name) + ": " + m.text(a, plus_minus) + " with " + from +
                             ", " + m.text(b, plus_minus) + " with " + to;
  const bool is_as_expected = c.difference * expected.direction > 0;
  const std::string wanted =
      expected.direction == 0 ? "" : expected.direction > 0 ? " A rise was expected."
                                                            : " A fall was expected.";
  if (c.verdict == Verdict::one_seed)
    return values + "; one seed says nothing about chance." + wanted;
  if (c.verdict == Verdict::same) return values + ": the same in every run." + wanted;
  if (c.verdict == Verdict::within)
    return values + "; the difference is within one standard deviation, so these " +
           std::to_string(a.count) + " seeds do not tell the two apart." + wanted;
  const std::string change =
      values + ": a " + (c.difference > 0 ? "rise" : "fall") +
      (std::isfinite(c.deviations) ? " of " + fixed(c.deviations, 1) + " standard deviations"
                                   : ", the same in every run");
  const bool is_hint = c.verdict == Verdict::hint;
  return change + (is_hint ? ", a hint and no more" : "") +
         (expected.direction == 0 ? "."
          : is_as_expected ? (is_hint ? ", in the direction that was expected." : ", as expected.")
                           : (is_hint ? ", against the direction that was expected."
                                      : ", the opposite of what was expected."));
}

// A LABORATORY ------------------------------------------------------------------------------------

/// A curve over the steps of training.
struct CurveOfSteps {
  std::vector<double> Trial::*values = nullptr;  // null: none is shown
  std::string name, what;
  bool is_percent = true;
  double reference = std::numeric_limits<double>::quiet_NaN();
  std::string reference_name = {};
};

struct Laboratory {
  std::string name, title, question;
  std::string expected;  // what the paper or theory says, beside what is measured
  std::vector<Setting> settings;
  std::vector<Measure> measures;  // each has a figure, and a column of the table
  std::vector<Expectation> expectations;
  CurveOfSteps curve = {};
  Index steps = 300;
};

/// Runs all settings with the seeds 0, 1, ...; calls `progress` after each run.
inline Trials run_laboratory(const Laboratory& lab, Index steps, Index seeds,
                             const LabelledImages& training, const LabelledImages& held_out,
                             const std::function<void()>& progress) {
  Trials trials;
  for (const Setting& setting : lab.settings) {
    trials.emplace_back();
    for (Index seed = 0; seed < seeds; ++seed) {
      trials.back().push_back(
          run_trial(setting, steps, static_cast<std::uint64_t>(seed), training, held_out));
      progress();
    }
  }
  return trials;
}

/// The mean over the seeds of the curve of a setting, step by step.
inline std::vector<double> mean_curve(const Laboratory& lab, const std::vector<Trial>& trials) {
  std::vector<double> mean((trials[0].*lab.curve.values).size());
  for (const Trial& trial : trials)
    for (std::size_t step = 0; step < mean.size(); ++step)
      mean[step] += (trial.*lab.curve.values)[step] / static_cast<double>(trials.size());
  return mean;
}

/// Where the curves begin and end: the means over the first and the last tenth of the steps.
inline std::string curve_sentence(const Laboratory& lab, const Trials& trials) {
  std::string text = capitalised(lab.curve.name) + " in training, from the first tenth of the "
                     "steps to the last";
  for (std::size_t i = 0; i < trials.size(); ++i) {
    const std::vector<double> mean = mean_curve(lab, trials[i]);
    const std::size_t tenth = std::max<std::size_t>(1, mean.size() / 10);
    double first = 0, last = 0;
    for (std::size_t step = 0; step < tenth; ++step) {
      first += mean[step] / static_cast<double>(tenth);
      last += mean[mean.size() - 1 - step] / static_cast<double>(tenth);
    }
    const auto said = [&](double x) {
      return lab.curve.is_percent ? fixed(100 * x, 1) + " %" : fixed(x, 3);
    };
    text += (i == 0 ? ": " : "; ") + lab.settings[i].name + " " + said(first) + " to " +
            said(last);
  }
  return text + ".";
}

/// What was measured: one sentence for each expectation, and one for the curve.
inline std::vector<std::string> findings(const Laboratory& lab, const Trials& trials,
                                         const std::string& plus_minus = " +- ") {
  std::vector<std::string> sentences;
  for (const Expectation& e : lab.expectations)
    sentences.push_back(sentence(e, lab.settings[e.from].name, lab.settings[e.to].name,
                                 statistics_of(trials[e.from], e.measure),
                                 statistics_of(trials[e.to], e.measure), plus_minus));
  if (lab.curve.values) sentences.push_back(curve_sentence(lab, trials));
  return sentences;
}

/// The table: settings and, for each measure, mean and standard deviation. The first row is the
/// head.
inline std::vector<std::vector<std::string>> result_table(const Laboratory& lab,
                                                          const Trials& trials,
                                                          const std::string& plus_minus = " +- ") {
  std::vector<std::vector<std::string>> rows = {{""}};
  for (const Measure& m : lab.measures) rows[0].push_back(m.name);
  for (std::size_t i = 0; i < lab.settings.size(); ++i) {
    rows.push_back({lab.settings[i].name});
    for (const Measure& m : lab.measures)
      rows.back().push_back(m.text(statistics_of(trials[i], m), plus_minus));
  }
  return rows;
}

// TEXT AND PAGE -----------------------------------------------------------------------------------

/// Words in lines of at most `width` characters.
inline std::string wrapped(const std::string& text, std::size_t width,
                           const std::string& indentation) {
  std::istringstream in(text);
  std::string lines, line = indentation;
  for (std::string word; in >> word;) {
    if (line.size() > indentation.size() && line.size() + 1 + word.size() > width) {
      lines += line + "\n";
      line = indentation;
    }
    line += (line.size() > indentation.size() ? " " : "") + word;
  }
  return lines + line + "\n";
}

/// All of it as text.
inline std::string laboratory_text(const Laboratory& lab, const Trials& trials) {
  std::string text = lab.title + "\n\n" + wrapped(lab.question, 90, "  ") + "\n";
  const auto rows = result_table(lab, trials);
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c) {
      std::size_t width = 0;
      for (const auto& other : rows) width = std::max(width, other[c].size());
      const std::string padding(width - row[c].size(), ' ');
      text += "  " + (c == 0 ? row[c] + padding : padding + row[c]);
    }
    text += "\n";
  }
  text += "\n  Expected\n" + wrapped(lab.expected, 90, "    ") + "\n  Measured\n";
  for (const std::string& finding : findings(lab, trials)) text += wrapped(finding, 90, "    ");
  return text;
}

/// One row for each setting: a dot for every seed, a bar at the mean.
inline std::string strip_chart(const Laboratory& lab, const Trials& trials, const Measure& m) {
  constexpr double left = 118, right = 356, row = 40, top = 12;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const auto& seeds : trials)
    for (const double x : values_of(seeds, m))
      if (std::isfinite(x)) low = std::min(low, m.scale * x), high = std::max(high, m.scale * x);
  if (!(low <= high)) return "<p class=\"empty\">No finite values.</p>";
  const Axis axis(low, high, left + 8, right - 8, true);
  const double bottom = top + row * static_cast<double>(lab.settings.size());
  std::string drawing, description;
  std::vector<std::vector<std::string>> table = {{""}};
  for (std::size_t seed = 0; seed < trials[0].size(); ++seed)
    table[0].push_back("seed " + std::to_string(seed));
  for (const double x : axis.ticks())
    drawing += svg_rect(axis.at(x) - 0.5, top, 1, bottom - top, "class=\"grid\"") +
               svg_text(axis.at(x), bottom + 20, "text-anchor=\"middle\" class=\"quiet\"",
                        axis.tick_text(x, false));
  for (std::size_t i = 0; i < lab.settings.size(); ++i) {
    const double y = top + row * (static_cast<double>(i) + 0.5);
    const Statistics s = statistics_of(trials[i], m);
    table.push_back({lab.settings[i].name});
    drawing += svg_text(left - 8, y + 4.5, "text-anchor=\"end\"", lab.settings[i].name);
    for (const double x : values_of(trials[i], m)) {
      table.back().push_back(m.text(x));
      if (std::isfinite(x))
        drawing += "<circle cx=\"" + fixed(axis.at(m.scale * x), 1) + "\" cy=\"" + fixed(y, 1) +
                   "\" r=\"5\" class=\"ink s0\" fill-opacity=\"0.45\"/>";
    }
    if (std::isfinite(s.mean))
      drawing += svg_rect(axis.at(m.scale * s.mean) - 1.25, y - 11, 2.5, 22, "rx=\"1\"");
    drawing += svg_text(right + 8, y + 4.5, "class=\"strong\"", m.text(s, "\u202f\u00b1\u202f"));
    description += lab.settings[i].name + ": " + m.text(s, " plus or minus ") + ". ";
  }
  return svg_begin(480, bottom + 28, capitalised(m.name), description) + drawing + "</svg>\n" +
         number_table(table);
}

/// The mean over the seeds of a curve, one for each setting.
inline std::string curve_chart(const Laboratory& lab, const Trials& trials) {
  LineChart chart{capitalised(lab.curve.name), "step", lab.curve.name};
  for (std::size_t i = 0; i < lab.settings.size(); ++i) {
    const std::vector<double> mean = mean_curve(lab, trials[i]);
    std::vector<double> steps(mean.size());
    std::iota(steps.begin(), steps.end(), 0.0);
    chart.series.push_back({lab.settings[i].name, steps, mean, static_cast<int>(i % 4), true});
  }
  chart.is_percent = lab.curve.is_percent;
  chart.reference = lab.curve.reference, chart.reference_name = lab.curve.reference_name;
  return line_chart(chart);
}

/// The page: what is asked, expected and measured, a table, a figure for each measure.
inline std::string laboratory_html(const Laboratory& lab, const Trials& trials,
                                   const NamedValues& settings) {
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" "
      "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n<title>" +
      escape_html(lab.title) + "</title>\n<style>" + style_sheet() +
      ".text{max-width:44em;padding:0;margin-top:16px}.text li{margin:6px 0 0 18px}"
      ".results td,.results th{padding:6px 24px 6px 0;white-space:nowrap}"
      ".results th[scope=row]{text-align:left;color:var(--ink)}</style></head>\n"
      "<body><main>\n<header><h1>" + escape_html(lab.title) + "</h1><p>" +
      escape_html(lab.question) + "</p></header>\n<section><h2>Measured</h2>"
      "<div class=\"scroll\" tabindex=\"0\"><table class=\"results\">";
  const auto rows = result_table(lab, trials, " \u00b1 ");
  for (std::size_t r = 0; r < rows.size(); ++r) {
    html += "<tr>";
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      const std::string cell = escape_html(rows[r][c]);
      html += r == 0 ? "<th scope=\"col\">" + cell + "</th>"
                     : c == 0 ? "<th scope=\"row\">" + cell + "</th>" : "<td>" + cell + "</td>";
    }
    html += "</tr>\n";
  }
  html += "</table></div><ul class=\"text\">";
  for (const std::string& finding : findings(lab, trials, " \u00b1 "))
    html += "<li>" + escape_html(finding) + "</li>\n";
  html += "</ul></section>\n<section><h2>Expected</h2><p class=\"text\">" +
          escape_html(lab.expected) + "</p></section>\n<section><h2>Seed by seed</h2>"
          "<div class=\"figures\">\n";
  if (lab.curve.values)
    html += figure(capitalised(lab.curve.name), lab.curve.what, "", curve_chart(lab, trials));
  for (const Measure& m : lab.measures) {
    if (m.is_constant) continue;
    html += figure(capitalised(m.name), m.what + " One dot for each seed, a bar at the mean.", "",
                   strip_chart(lab, trials, m));
  }
  html += "</div></section>\n<section><h2>Settings</h2><dl class=\"settings\">";
  for (const auto& [key, value] : settings)
    html += "<div><dt>" + escape_html(key) + "</dt><dd>" + escape_html(value) + "</dd></div>\n";
  return html + "</dl></section></main></body></html>\n";
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_LABORATORY_HPP
