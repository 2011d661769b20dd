// Tests for examples/support/statistics.hpp and laboratory.hpp: figures over seeds, and the
// sentences that follow from them.
#include "examples/support/laboratory.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

using namespace widenet;
using namespace widenet::support;

namespace {

const Measure accuracy_measure{&Trial::accuracy, "accuracy", "How many are right."};
const Measure gradient_measure{&Trial::router_gradient, "gradient", "Its length.", 3, 1};

Expectation expecting(int direction, const Measure& measure = accuracy_measure) {
  return {measure, 0, 1, direction};
}

std::string said(const std::vector<double>& a, const std::vector<double>& b, int direction,
                 const Measure& measure = accuracy_measure) {
  return sentence(expecting(direction, measure), "A", "B", statistics_of(a), statistics_of(b));
}

/// Two settings with two seeds: accuracies .5, .7 and .9, 1; gradients 1, 4 and 0, 0.
Laboratory small_laboratory() {
  Laboratory lab;
  lab.name = "small", lab.title = "A < B", lab.question = "Which one?", lab.expected = "B & more.";
  lab.settings = {{"first", VisionConfig::toy()}, {"second", VisionConfig::toy()}};
  lab.measures = {accuracy_measure, gradient_measure};
  lab.expectations = {expecting(1), expecting(1, gradient_measure)};
  return lab;
}
Trials small_trials() {
  Trials trials(2, std::vector<Trial>(2));
  trials[0][0].accuracy = .5, trials[0][1].accuracy = .7;
  trials[1][0].accuracy = .9, trials[1][1].accuracy = 1;
  trials[0][0].router_gradient = 1, trials[0][1].router_gradient = 4;
  return trials;
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++count;
  return count;
}

}  // namespace

TEST_CASE("statistics over seeds, worked by hand") {
  const Statistics s = statistics_of({2, 4, 9});  // mean 5; squares 9 + 1 + 16 = 26, over 2
  CHECK(s.count == 3);
  CHECK(s.mean == 5);
  CHECK(s.deviation == std::sqrt(13.0));
  CHECK(mean_and_deviation(s, 2) == "5.00 +- 3.61");
  CHECK(mean_and_deviation(s, 0, 100) == "500 +- 361");

  const Statistics one = statistics_of({0.25});
  CHECK(one.mean == 0.25);
  CHECK(std::isnan(one.deviation));
  CHECK(mean_and_deviation(one, 2) == "0.25");
  CHECK_THROWS_WITH_AS(statistics_of({}),
                       "widenet: statistics_of: there must be at least 1 value; got 0", ValueError);
}

TEST_CASE("laboratory: a difference is measured in standard deviations") {
  const auto of = [](double mean, double deviation) { return Statistics{5, mean, deviation}; };
  // s = sqrt((3^2 + 1^2) / 2) = sqrt(5) = 2.236
  const auto verdict = [&](double b) { return compare(of(10, 3), of(b, 1)).verdict; };
  CHECK(verdict(12.2) == Verdict::within);
  CHECK(verdict(12.3) == Verdict::hint);
  CHECK(verdict(14.4) == Verdict::hint);
  CHECK(verdict(14.5) == Verdict::clear);
  CHECK(verdict(7.8) == Verdict::within);
  CHECK(verdict(5.5) == Verdict::clear);
  CHECK(compare(of(10, 3), of(5, 1)).difference == -5);
  CHECK(compare(of(10, 3), of(5, 1)).deviations == doctest::Approx(std::sqrt(5.0)));

  CHECK(compare(of(1, 0), of(1, 0)).verdict == Verdict::same);
  CHECK(compare(of(1, 0), of(2, 0)).verdict == Verdict::clear);
  CHECK(compare(of(1, 1), of(1, 0)).verdict == Verdict::within);
  CHECK(compare({1, 1, std::numeric_limits<double>::quiet_NaN()}, of(2, 0)).verdict ==
        Verdict::one_seed);
}

TEST_CASE("laboratory: a sentence says what was measured, and whether it was expected") {
  // Deviations of 2, 4, 6 and of 2.5, 4.5, 6.5 are 2.
  const std::vector<double> a = {.02, .04, .06}, near = {.025, .045, .065};
  const std::vector<double> some = {.05, .07, .09}, far = {.12, .14, .16};
  CHECK(said(a, near, 0) ==
        "Accuracy: 4.0 +- 2.0 % with A, 4.5 +- 2.0 % with B; the difference is within one standard "
        "deviation, so these 3 seeds do not tell the two apart.");
  CHECK(said(a, near, 1) == said(a, near, 0) + " A rise was expected.");
  CHECK(said(a, near, -1) == said(a, near, 0) + " A fall was expected.");

  const std::string hint = "Accuracy: 4.0 +- 2.0 % with A, 7.0 +- 2.0 % with B: a rise of 1.5 "
                           "standard deviations, a hint and no more";
  CHECK(said(a, some, 0) == hint + ".");
  CHECK(said(a, some, 1) == hint + ", in the direction that was expected.");
  CHECK(said(a, some, -1) == hint + ", against the direction that was expected.");

  const std::string clear = "Accuracy: 4.0 +- 2.0 % with A, 14.0 +- 2.0 % with B: a rise of 5.0 "
                            "standard deviations";
  CHECK(said(a, far, 0) == clear + ".");
  CHECK(said(a, far, 1) == clear + ", as expected.");
  CHECK(said(a, far, -1) == clear + ", the opposite of what was expected.");
  CHECK(said(far, a, -1) == "Accuracy: 14.0 +- 2.0 % with A, 4.0 +- 2.0 % with B: a fall of 5.0 "
                            "standard deviations, as expected.");

  CHECK(said({1, 1}, {0, 0}, -1, gradient_measure) ==
        "Gradient: 1.000 +- 0.000 with A, 0.000 +- 0.000 with B: a fall, the same in every run, as "
        "expected.");
  CHECK(said({1, 1}, {1, 1}, -1, gradient_measure) ==
        "Gradient: 1.000 +- 0.000 with A, 1.000 +- 0.000 with B: the same in every run. A fall was "
        "expected.");
  CHECK(said({.5}, {.75}, 1) ==
        "Accuracy: 50.0 % with A, 75.0 % with B; one seed says nothing about chance. A rise was "
        "expected.");
}

TEST_CASE("laboratory: table, findings and text") {
  const Laboratory lab = small_laboratory();
  CHECK(result_table(lab, small_trials()) ==
        std::vector<std::vector<std::string>>{{"", "accuracy", "gradient"},
                                              {"first", "60.0 +- 14.1 %", "2.500 +- 2.121"},
                                              {"second", "95.0 +- 7.1 %", "0.000 +- 0.000"}});
  CHECK(laboratory_text(lab, small_trials()) ==
        "A < B\n\n  Which one?\n\n"
        "                accuracy        gradient\n"
        "  first   60.0 +- 14.1 %  2.500 +- 2.121\n"
        "  second   95.0 +- 7.1 %  0.000 +- 0.000\n"
        "\n  Expected\n    B & more.\n\n  Measured\n"
        "    Accuracy: 60.0 +- 14.1 % with first, 95.0 +- 7.1 % with second: a rise of 3.1 "
        "standard\n    deviations, as expected.\n"
        "    Gradient: 2.500 +- 2.121 with first, 0.000 +- 0.000 with second: a fall of 1.7\n"
        "    standard deviations, a hint and no more, against the direction that was expected.\n");
  CHECK(wrapped("aaa bb cc dddd", 8, "  ") == "  aaa bb\n  cc\n  dddd\n");
}

TEST_CASE("laboratory: the page has the table, the findings, and a dot for every seed") {
  Laboratory lab = small_laboratory();
  Trials trials = small_trials();
  const std::string html = laboratory_html(lab, trials, {{"seeds", "2"}});
  CHECK(html.find("<h1>A &lt; B</h1>") != std::string::npos);
  CHECK(html.find("<td>60.0 \u00b1 14.1 %</td>") != std::string::npos);
  CHECK(html.find("B &amp; more.") != std::string::npos);
  for (const std::string& finding : findings(lab, trials, " \u00b1 "))
    CHECK(html.find("<li>" + finding + "</li>") != std::string::npos);
  CHECK(count_of(html, "<svg") == 2);     // one figure for each measure
  CHECK(count_of(html, "<circle") == 8);  // two measures, two settings, two seeds
  CHECK(html.find("aria-label=\"Accuracy. first: 60.0 plus or minus 14.1 %. ") !=
        std::string::npos);

  for (auto& seeds : trials)
    for (std::size_t seed = 0; seed < 2; ++seed)
      seeds[seed].busiest_by_step = {seed == 0 ? .25 : .75, &seeds == &trials[0] ? .5 : .125};
  lab.curve = {&Trial::busiest_by_step, "busiest expert", "Its share."};
  CHECK(curve_chart(lab, trials).find("first goes from 50.0\u202f% to 50.0\u202f%. ") !=
        std::string::npos);
  CHECK(findings(lab, trials).back() ==
        "Busiest expert in training, from the first tenth of the steps to the last: first 50.0 % "
        "to 50.0 %; second 50.0 % to 12.5 %.");
  CHECK(count_of(laboratory_html(lab, trials, {}), "<svg") == 3);
  lab.measures[0].is_constant = true;
  CHECK(count_of(laboratory_html(lab, trials, {}), "<svg") == 2);
  CHECK(result_table(lab, trials)[2][1] == "95.0 %");
  lab.measures[0].is_constant = false;

  trials[1][1].accuracy = std::numeric_limits<double>::quiet_NaN();  // a run that diverged
  CHECK(count_of(laboratory_html(lab, trials, {}), "<circle") == 7);
}

TEST_CASE("laboratory: shares of a routing, worked by hand") {
  // Four tokens, one choice each: three of expert 0, one of expert 1, of 4.
  const Tensor<double> z({4, 4}, {9, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 0, 9, 0, 0});
  RouteOptions options;
  options.K = 1;
  const std::vector<Routing<double>> one = {route(z, options)};
  CHECK(busiest_share(one) == 0.75);
  const double entropy = -(0.75 * std::log(0.75) + 0.25 * std::log(0.25));
  CHECK(load_evenness(one) == doctest::Approx(entropy / std::log(4.0)).epsilon(1e-12));

  options.K = 4;  // every expert has every token
  const std::vector<Routing<double>> both = {one[0], route(z, options)};
  CHECK(busiest_share(both) == (0.75 + 0.25) / 2);
  CHECK(load_evenness(both) ==
        doctest::Approx((entropy / std::log(4.0) + 1) / 2).epsilon(1e-12));
}

TEST_CASE("laboratory: a trial measures what its settings do") {
  const LabelledImages all = load_images("data/digits", "train");
  const LabelledImages training = all.slice(0, 64), held_out = all.slice(64, 20);
  const auto trial = [&](const auto& change) {
    Setting setting{"", VisionConfig::toy()};
    change(setting);
    return run_trial(setting, 3, 1, training, held_out);
  };
  const Trial usual = trial([](Setting&) {});
  CHECK(usual.parameters == double(count_parameters(VisionConfig::toy())));
  CHECK(usual.busiest_by_step.size() == 3);
  CHECK(usual.gradient_by_step.size() == 3);
  CHECK(usual.router_gradient > 0);
  CHECK(usual.router_change > 0);
  CHECK(usual.divergence > 0);
  CHECK(usual.training_loss > 0);
  CHECK(trial([](Setting&) {}).loss == usual.loss);  // the same seed, the same bits

  const auto top1 = [](Setting& s) { s.lambda = 0, s.config.encoder.top_k = 1; };
  CHECK(trial(top1).router_gradient > 0);
  const Trial renormalised = trial([&](Setting& s) {
    top1(s);
    s.config.encoder.conventions.gate = GateRule::renormalized;
  });
  CHECK(renormalised.router_gradient == 0);
  CHECK(renormalised.router_change == 0);

  CHECK(trial([](Setting& s) { s.config.encoder.share_layer_norm = true; }).divergence == 0);
  CHECK(trial([](Setting& s) { s.config.encoder.capacity_factor = {1, 2}; }).dropped >= 0.5);
  CHECK(trial([](Setting& s) { s.config.encoder.capacity_factor = {4, 1}; }).dropped == 0);
}
