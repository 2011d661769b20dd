// Tests of the search for the conventions that reproduce a run of the layer.
#include "check.hpp"
#include "support/explain.hpp"
#include "support/golden.hpp"

#include <algorithm>

using namespace widenet;

namespace {

using support::Combination;
using support::LayerRun;
using support::Numbers;

/// Draws from lists, one number of a stream after the other.
struct Dice {
  Rng rng;
  Index count = 0;
  Index below(Index n) { return static_cast<Index>(rng.uniform(count++) * double(n)); }
  bool flip() { return below(2) == 1; }
  template <class V>
  V of(std::initializer_list<V> values) {
    return values.begin()[below(static_cast<Index>(values.size()))];
  }
};

/// A combination of all knobs that are searched, for B sequences of T tokens and E = 4 experts.
Combination random_combination(Dice& dice, Index B, Index T) {
  Combination c;
  c.K = 1 + dice.below(3);
  c.factor = dice.of<Rational>({{6, 5}, {3, 4}, {1, 2}, {1, 1}});
  c.activation = dice.flip() ? support::Activation::erf : support::Activation::tanh;
  c.activation_at_output = dice.flip();
  Conventions& r = c.rules;
  r.router_bias = dice.flip();
  r.noise = static_cast<RouterNoise>(dice.below(7));
  r.first_choice_sees_noise = dice.flip(), r.gate_sees_noise = dice.flip();
  r.balance_sees_noise = dice.flip();
  r.gate = static_cast<GateRule>(dice.below(3));
  r.gate_eps = dice.of({0.0, 1e-9, 1e-6});
  r.capacity = static_cast<CapacityRule>(dice.below(7));
  r.capacity_rounding = dice.flip() ? Rounding::ceil : Rounding::floor;
  r.capacity_multiple = dice.of<Index>({1, 2, 4}), r.capacity_minimum = dice.of<Index>({1, 4});
  r.capacity_slots = 1 + dice.below(T);
  r.unusable_slots = dice.below(2);
  r.capacity_sequences = dice.of<Index>({0, 1, B});
  r.priority = static_cast<Priority>(dice.below(4));
  r.dropped = dice.flip() ? DroppedValue::gated_input : DroppedValue::zero;
  r.balance = static_cast<BalanceRule>(dice.below(9));
  if (r.balance == BalanceRule::load && r.noise_deviation(4) == 0) r.noise =
      RouterNoise::one_over_experts;
  return c;
}

/// Random weights and tokens, and the noise of this law, as it was added or as it was drawn.
LayerRun random_run(Dice& dice, const Combination& c, std::size_t B, std::size_t T) {
  LayerRun run;
  run.B = B, run.N = B * T, run.D = 5, run.E = 4, run.F = 3, run.K = c.K, run.factor = c.factor;
  const auto normal = [&](std::size_t size) {
    return Tensor<double>::randn({Index(size)}, dice.rng.at_step(++dice.count)).to_vector();
  };
  run.x = normal(run.N * run.D), run.w = normal(run.D * run.E);
  run.w1 = normal(run.E * run.D * run.F), run.b1 = normal(run.E * run.F);
  run.w2 = normal(run.E * run.F * run.D), run.b2 = normal(run.E * run.D);
  if (c.rules.router_bias) run.b = normal(run.E);
  if (dice.flip() || c.rules.noise == RouterNoise::none) return run;  // in evaluation
  if (c.rules.is_jittered()) {
    run.jitter = normal(run.N * run.D);
    for (double& value : run.jitter) value = 1 + value / 10;
  } else {
    (dice.flip() ? run.noise : run.draws) = normal(run.N * run.E);
  }
  return run;
}

/// The outputs of the header, y and the balance loss, as results of the run.
void run_by_header(LayerRun& run, const Combination& c) {
  LayerRun added = run;  // the header knows noise only as it is added
  added.noise = support::noise_of(run, c.rules), added.draws.clear();
  const SafeTensors file = support::case_of(added, c);
  support::GoldenCase golden;
  golden.op = "mixture";
  golden.settings = Json::parse(file.metadata.at("case"), "case").at("settings");
  const auto results = support::run_golden<double>(golden, file);
  run.results = {{"y", results.values.at("y")},
                 {"balance_loss", results.values.at("balance_loss")}};
}

}  // namespace

TEST_CASE("explain: the set contains the hidden combination in 50 of 50 trials") {
  const check::OneThread one_thread;
  Dice dice{Rng(71)};
  std::size_t told = 0;
  for (int trial = 0; trial < 50; ++trial) {
    INFO("trial ", trial);
    const std::size_t B = 1 + static_cast<std::size_t>(dice.below(3));
    const std::size_t T = 3 + static_cast<std::size_t>(dice.below(5));
    const Combination hidden = random_combination(dice, Index(B), Index(T));
    LayerRun run = random_run(dice, hidden, B, T);
    run_by_header(run, hidden);
    const Numbers ours = support::outputs_of(run, hidden);
    check::close({ours.begin(), ours.end() - 1}, run.results.at("y"));
    check::close({ours.back()}, run.results.at("balance_loss"));

    const support::Explanation set = support::explain(run);
    CHECK(set.contains(hidden));
    // Any other member reproduces the run, too, by the header.
    LayerRun again = run;
    const Combination member = set.at(static_cast<std::size_t>(dice.below(Index(set.size()))));
    CHECK(set.contains(member));
    if (member.activation <= support::Activation::erf) {
      run_by_header(again, member);
      check::close(again.results.at("y"), run.results.at("y"));
      check::close(again.results.at("balance_loss"), run.results.at("balance_loss"));
    }
    // The next input tells more: under it fewer combinations remain, the hidden one among them.
    const support::TellingInput next = support::telling_input(run, set, 8);
    if (next.classes <= 1) continue;
    ++told;
    LayerRun second = next.run;
    run_by_header(second, hidden);
    const support::Explanation rest = support::explain(second);
    CHECK(rest.contains(hidden));
    std::size_t remaining = 0, looked_at = 0;
    for (std::size_t i = 0; i < set.size(); i += 1 + set.size() / 50, ++looked_at)
      remaining += rest.contains(set.at(i));
    CHECK(remaining < looked_at);
  }
  CHECK(told >= 45);
}

TEST_CASE("explain: what an implementation alone can do, and what is not known is searched") {
  const check::OneThread one_thread;
  Dice dice{Rng(5)};
  Combination hidden;
  hidden.K = 2, hidden.factor = {1, 2};
  hidden.activation = support::Activation::quick, hidden.is_rms = true, hidden.norm_eps = 1e-5;
  hidden.rules.noise = RouterNoise::none, hidden.rules.priority = Priority::random;
  hidden.rules.balance = BalanceRule::switch_top1;
  LayerRun run = random_run(dice, hidden, 2, 7);
  run.gamma.assign(run.D, 1.5), run.beta.assign(run.D, 0.25);
  for (std::size_t i = 0; i < run.N * 2; ++i)
    run.order.push_back(static_cast<std::int32_t>(i * 5 % (run.N * 2)));
  const Numbers outputs = support::outputs_of(run, hidden);
  run.results["y"] = {outputs.begin(), outputs.end() - 1};
  const support::Explanation of_y = support::explain(run);
  CHECK(of_y.contains(hidden));
  const auto values = of_y.found();
  using Texts = std::set<std::string>;
  CHECK(values.at("gelu") == Texts{"quick"});
  CHECK(values.at("norm") == Texts{"rms_norm"});
  CHECK(values.at("layer_norm_eps") == Texts{"1e-05"});
  CHECK(values.at("priority") == Texts{"random"});
  CHECK(values.at("balance") == of_y.searched.at("balance"));  // free
  run.results["balance_loss"] = {outputs.back()};
  CHECK(support::explain(run).found().at("balance") == Texts{"switch_top1"});

  run.K = 0, run.factor = {0, 1};
  const support::Explanation unknown = support::explain(run);
  CHECK(unknown.contains(hidden) == false);  // a factor of 1/2 is nobody's
  CHECK(unknown.found().at("top_k") == Texts{"2"});
  run.results["slot"] = Numbers(run.N * 2, 0);
  CHECK(support::explain(run).size() == 0);
}

TEST_CASE("explain: a random priority of the header, its order given") {
  Dice dice{Rng(9)};
  Combination hidden;
  hidden.factor = {1, 2};
  hidden.rules.noise = RouterNoise::none, hidden.rules.priority = Priority::random;
  LayerRun run = random_run(dice, hidden, 1, 9);
  const Tensor<double> x({9, 5}, run.x), w({5, 4}, run.w);
  const Rng draw(3);
  const RouteOptions options{2, {1, 2}, hidden.rules, 0};
  const Routing<double> r = route(router_logits(x, w), options, {}, &draw);
  run.order = detail::order_of_priority(Priority::random, r, &draw).to_vector();
  run.results["slot"] = Numbers();
  for (const std::int32_t s : r.slot.to_vector()) run.results["slot"].push_back(s);
  const support::Explanation set = support::explain(run);
  CHECK(set.contains(hidden));
  CHECK(set.found().at("priority") == std::set<std::string>{"random"});
}

TEST_CASE("explain: dumps as files, with and without a case, and their errors") {
  const SafeTensors golden = read_safetensors("data/golden/moe_tutel.safetensors");
  const LayerRun run = support::read_layer_run(golden, golden);
  CHECK(run.N == 16);
  CHECK(run.B == 2);
  CHECK(run.K == 2);
  CHECK(run.factor == Rational{3, 4});
  CHECK(run.results.count("slot") == 1);
  Combination tutel;
  tutel.rules = Conventions::tutel();
  CHECK(support::explain(run).contains(tutel, true));
  tutel.rules.gate = GateRule::raw;
  CHECK(!support::explain(run).contains(tutel, true));

  SafeTensors dump = golden;
  dump.metadata = {{"top_k", "2"}, {"capacity_factor", "0.75"}, {"batch", "2"},
                   {"noise_scale", "0.5"}};
  CHECK(support::read_layer_run(dump, dump).factor == Rational{3, 4});
  CHECK(support::read_layer_run(dump, dump).noise_scale == 0.5);
  dump.metadata.clear();
  CHECK(support::read_layer_run(dump, dump).K == 0);
  const auto fails = [](const SafeTensors& file, const char* text) {
    CHECK_THROWS_WITH_AS(support::read_layer_run(file, file), text, IoError);
  };
  dump.metadata["capacity_factor"] = "a lot";
  fails(dump, "widenet: explain: a capacity factor must be like 6/5 or 1.25; got a lot");
  dump.metadata = {{"top_k", "5"}};
  fails(dump, "widenet: explain: batch must divide the tokens and top_k lie in [1, E]; got 1 of "
              "16, 5 of 4");
  dump.metadata.clear();
  dump.tensors.erase("out.y"), dump.tensors.erase("out.balance_loss");
  fails(dump, "widenet: explain: a dump must hold out.y or out.balance_loss; got neither");
  dump.tensors.erase("in.noise"), dump.add("in.noise", Shape{3}, Numbers{1, 2, 3});
  fails(dump, "widenet: explain: noise must have 64 values; got 3");
  dump.tensors.erase("in.x");
  fails(dump, "widenet: explain: a dump must hold in.x; got none");
}
