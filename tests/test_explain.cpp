// Tests of the search for the conventions that reproduce a run of the layer.
#include "check.hpp"
#include "support/arguments.hpp"
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
  r.noise_scale = dice.of({1.0, 2.0, 0.5, 0.1, 0.01});
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
  if (dice.below(3) > 0) return c;
  c.is_rms = dice.flip(), c.norm_eps = dice.of({1e-12, 1e-8, 1e-6, 1e-5});
  return c;
}

/// Random weights and tokens, and the noise of this law, as it was added or as it was drawn. K and
/// the factor are known.
LayerRun random_run(Dice& dice, const Combination& c, std::size_t B, std::size_t T,
                    std::size_t E = 4) {
  LayerRun run;
  run.B = B, run.N = B * T, run.D = 5, run.E = E, run.F = 3, run.K = c.K, run.factor = c.factor;
  const auto normal = [&](std::size_t size) {
    return Tensor<double>::randn({Index(size)}, dice.rng.at_step(++dice.count)).to_vector();
  };
  run.x = normal(run.N * run.D), run.w = normal(run.D * run.E);
  run.w1 = normal(run.E * run.D * run.F), run.b1 = normal(run.E * run.F);
  run.w2 = normal(run.E * run.F * run.D), run.b2 = normal(run.E * run.D);
  if (c.rules.router_bias) run.b = normal(run.E);
  if (c.norm_eps > 0) run.gamma = normal(run.D);
  if (c.norm_eps > 0 && dice.flip()) run.beta = normal(run.D);
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
  LayerRun added = run;  // the header knows noise only as it is added, and the layer no norm
  added.noise = support::noise_of(run, c.rules), added.draws.clear();
  added.gamma.clear(), added.beta.clear();
  if (c.norm_eps > 0) {
    const Index D = Index(run.D);
    const Tensor<double> x({Index(run.N), D}, run.x), gamma({D}, run.gamma);
    const Tensor<double> beta({D}, run.beta.empty() ? Numbers(run.D, 0) : run.beta);
    added.x = (c.is_rms ? rms_norm(x, gamma, c.norm_eps) : layer_norm(x, gamma, beta, c.norm_eps))
                  .to_vector();
  }
  const SafeTensors file = support::case_of(added, c);
  support::GoldenCase golden;
  golden.op = "mixture";
  golden.settings = Json::parse(file.metadata.at("case"), "case").at("settings");
  const auto results = support::run_golden<double>(golden, file);
  run.results = {{"y", results.values.at("y")},
                 {"balance_loss", results.values.at("balance_loss")}};
}

}  // namespace

TEST_CASE("explain: as many choices as a word has bits, each token judged by itself") {
  const check::OneThread one_thread;
  Dice dice{Rng(72)};
  Combination hidden;
  hidden.K = 64, hidden.factor = {1, 2};
  LayerRun run = random_run(dice, hidden, 1, 6, 64);
  run_by_header(run, hidden);
  CHECK(support::explain(run).contains(hidden));
  run.results.at("y")[run.D] += 0.1;  // token 1, kept like token 0
  CHECK(support::explain(run).size() == 0);
}

TEST_CASE("explain: the set contains the hidden combination in 50 of 50 trials") {
  const check::OneThread one_thread;
  Dice dice{Rng(71)};
  std::size_t told = 0, without_k = 0, without_factor = 0, with_norm = 0;
  for (int trial = 0; trial < 50; ++trial) {
    INFO("trial ", trial);
    const std::size_t B = 1 + static_cast<std::size_t>(dice.below(3));
    const std::size_t T = 3 + static_cast<std::size_t>(dice.below(dice.below(4) > 0 ? 5 : 14));
    const Combination hidden = random_combination(dice, Index(B), Index(T));
    LayerRun run = random_run(dice, hidden, B, T);
    if (dice.below(3) == 0) run.K = 0, ++without_k;
    if (dice.below(3) == 0) run.factor = {0, 1}, ++without_factor;
    if (hidden.norm_eps > 0) ++with_norm;
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
      for (const char* const name : {"y", "balance_loss"}) {
        const Numbers &known = run.results.at(name), &found = again.results.at(name);
        double largest = 0, error = 0;
        for (std::size_t i = 0; i < known.size(); ++i) {
          largest = std::fmax(largest, std::fabs(known[i]));
          error = std::fmax(error, std::fabs(known[i] - found[i]));
        }
        INFO(name, " is off by ", error, " of ", largest);
        CHECK(error <= 2 * support::tolerance_of(run, largest));  // explain's and the rounding here
      }
    }
    // The next input tells more: under it fewer combinations remain, the hidden one among them.
    const support::TellingInput next = support::telling_input(run, set, 8, 40);
    if (next.classes <= 1) continue;
    ++told;
    LayerRun second = next.run;
    run_by_header(second, hidden);
    const support::Explanation rest = support::explain(second);
    const support::Explanation both = support::both_of(set, rest);
    CHECK(rest.contains(hidden));
    CHECK(both.contains(hidden));
    CHECK(both.size() < set.size());
    const Combination left = both.at(static_cast<std::size_t>(dice.below(Index(both.size()))));
    CHECK((set.contains(left) && rest.contains(left)));
  }
  CHECK(told >= 45);
  CHECK(without_k >= 10);
  CHECK(without_factor >= 10);
  CHECK(with_norm >= 10);
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
  CHECK(unknown.contains(hidden));
  CHECK(unknown.found().at("top_k") == Texts{"2"});
  run.results["slot"] = Numbers(run.N * 2, 0);
  CHECK(support::explain(run).size() == 0);
}

TEST_CASE("explain: the balance loss of several blocks is their sum, their mean, or one of all") {
  const check::OneThread one_thread;
  const std::pair<Reduction, const char*> reductions[] = {
      {Reduction::sum, "sum"}, {Reduction::mean, "mean"}, {Reduction::together, "together"}};
  for (const auto& each : reductions) {
    INFO(std::string(each.second));
    Dice dice{Rng(13)};
    Combination hidden;
    hidden.factor = {1, 2}, hidden.rules.noise = RouterNoise::none;
    hidden.rules.capacity_sequences = 1, hidden.rules.priority = Priority::choice_major;
    hidden.rules.balance = BalanceRule::switch_top1, hidden.rules.reduction = each.first;
    LayerRun run;
    std::vector<Routing<double>> routings;
    double losses = 0;
    const auto append = [](Numbers& all, const Tensor<double>& x) {
      check::append(all, x.to_vector());
      return x;
    };
    for (Index l = 0; l < 3; ++l) {
      const auto normal = [&](const Shape& shape) {
        return Tensor<double>::randn(shape, dice.rng.at_step(++dice.count));
      };
      const auto x = append(run.x, normal({14, 5})), w = append(run.w, normal({5, 4}));
      const auto w1 = append(run.w1, normal({4, 5, 3})), b1 = append(run.b1, normal({4, 3}));
      const auto w2 = append(run.w2, normal({4, 3, 5})), b2 = append(run.b2, normal({4, 5}));
      const Routing<double> r = route(router_logits(x, w), {2, {1, 2}, hidden.rules, 7});
      append(run.results["y"], combine(experts(dispatch(x, r), w1, b1, w2, b2, r), r.gate, r));
      for (const std::int32_t s : r.slot.to_vector()) run.results["slot"].push_back(s);
      for (const std::int32_t n : r.kept.to_vector()) run.results["kept"].push_back(n);
      losses += balance_loss(r, hidden.rules.balance).item();
      routings.push_back(r);
    }
    run.results["balance_loss"] = {
        each.first == Reduction::together ? balance_loss(routings, hidden.rules.balance).item()
                                          : losses / (each.first == Reduction::mean ? 3 : 1)};
    run.L = 3, run.B = 2, run.N = 42, run.D = 5, run.E = 4, run.F = 3;
    run.K = 2, run.factor = hidden.factor;
    const support::Explanation set = support::explain(run);
    CHECK(set.contains(hidden));
    const auto values = set.found();
    CHECK(values.at("balance_reduction") == std::set<std::string>{each.second});
    CHECK(values.at("balance") == std::set<std::string>{"switch_top1"});

    // The file of such a run is read again as it was, weights of each block among the rest.
    SafeTensors file = support::case_of(run, hidden);
    for (const auto& result : run.results)
      file.add("out." + result.first, Shape{Index(result.second.size())}, result.second);
    const LayerRun back = support::read_layer_run(file, file);
    CHECK(back.L == 3);
    CHECK(back.block_tokens() == 14);
    CHECK((back.x == run.x && back.w == run.w && back.w1 == run.w1 && back.b2 == run.b2));
    CHECK(support::explain(back).size() > 0);
    file.tensors.erase("in.shared.moe.router.weight");
    file.add("in.shared.moe.router.weight", Shape{5, 4},
             Numbers(run.w.begin(), run.w.begin() + 20));
    const Numbers shared = support::read_layer_run(file, file).w;
    REQUIRE(shared.size() == 60);
    CHECK(std::equal(shared.begin(), shared.begin() + 20, shared.begin() + 40));
  }
}

TEST_CASE("explain: second choices that do not ask, their coins given") {
  const check::OneThread one_thread;
  Dice dice{Rng(17)};
  Combination hidden;
  hidden.factor = {5, 4}, hidden.rules = Conventions::mesh_top2();
  LayerRun run = random_run(dice, hidden, 2, 9);
  const Tensor<double> x({18, 5}, run.x), w({5, 4}, run.w);
  const Tensor<double> w1({4, 5, 3}, run.w1), b1({4, 3}, run.b1), w2({4, 3, 5}, run.w2);
  const Rng draw(3);
  const Routing<double> r =
      route(router_logits(x, w), {2, {5, 4}, hidden.rules, 9}, {}, &draw);
  run.results["y"] = combine(experts(dispatch(x, r), w1, b1, w2, Tensor<double>({4, 5}, run.b2), r),
                             r.gate, r).to_vector();
  CHECK(!support::explain(run).contains(hidden));  // choices are missing, nobody knows why
  for (Index i = 0; i < 36; ++i) run.coins.push_back(draw.uniform(36 + i));  // as route draws them
  const support::Explanation set = support::explain(run);
  CHECK(set.contains(hidden));
  CHECK(set.found().at("second_choice_threshold") == std::set<std::string>{"0.2"});
  CHECK(set.given.count("second_choice_threshold") == 0);
  run.threshold = 0.5;
  CHECK(support::explain(run).size() == 0);
  run.threshold = 0.2;
  CHECK(support::explain(run).given.count("second_choice_threshold") == 1);
}

TEST_CASE("explain: the scale of the noise, what was drawn given; runs of two kinds") {
  const check::OneThread one_thread;
  Dice dice{Rng(19)};
  Combination hidden;
  hidden.rules.noise = RouterNoise::uniform, hidden.rules.noise_scale = 0.1;
  LayerRun run = random_run(dice, hidden, 2, 9);
  run.noise.clear(), run.jitter.clear();
  run.draws = Tensor<double>::uniform({18 * 4}, Rng(5), -1, 1).to_vector();
  run_by_header(run, hidden);
  const support::Explanation set = support::explain(run);
  CHECK(set.contains(hidden));
  CHECK(set.found().at("noise_scale").count("0.1") == 1);
  CHECK(set.found().at("noise_scale").count("2") == 0);
  CHECK(set.given == std::set<std::string>{"capacity_factor", "top_k"});

  // Of three combinations that differ in GELU, which shows, and in what never does, two are alike.
  const auto match = [&](support::Activation form, Index multiple) {
    support::Match m = set.matches[0];
    m.base.activation = form;
    m.formulas = std::make_shared<std::vector<support::CapacityFormula>>(
        1, support::CapacityFormula{CapacityRule::dropless, Rounding::floor, multiple, 1, 64, 0,
                                    {6, 5}});
    m.forms = std::make_shared<std::vector<support::BalanceForm>>(1, m.forms->front());
    return m;
  };
  support::Explanation few = set;
  few.matches = {match(support::Activation::tanh, 1), match(support::Activation::tanh, 2),
                 match(support::Activation::erf, 1)};
  const support::TellingInput next = support::telling_input(run, few);
  CHECK(next.compared == 3);
  CHECK(next.classes == 2);
  CHECK(next.decides == std::vector<std::string>{"gelu"});
  CHECK(next.leaves == std::vector<std::string>{"capacity_multiple"});
  CHECK(support::sample_of(set, 20).size() > 10);
  for (const Combination& member : support::sample_of(set, 20)) CHECK(set.contains(member));

  run.noise_scale = 0.1;
  const support::Explanation known = support::explain(run);
  CHECK(known.given.count("noise_scale") == 1);
  CHECK(known.searched.at("noise_scale") == std::set<std::string>{"0.1"});
  CHECK_THROWS_WITH_AS(support::both_of(set, known),
                       "widenet: explain: runs must be of one kind: all of one block or of "
                       "several, with the same metadata, and with or without noise, draws and "
                       "coins; got others", ValueError);
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

  // The Switch block of transformers, outputs alone: its slots are the run's, not the preset's.
  const auto theirs = read_safetensors("data/golden/moe_hf_switch_run.safetensors");
  LayerRun hf_switch = support::read_layer_run(theirs, theirs);
  hf_switch.results = {{"y", hf_switch.results.at("y")},
                       {"balance_loss", hf_switch.results.at("balance_loss")}};
  const support::Explanation of_switch = support::explain(hf_switch);
  std::set<std::string> presets;
  for (const auto& preset : Conventions::presets()) {
    Combination c;
    c.rules = preset.second;
    if (of_switch.contains(c, true)) presets.insert(preset.first);
  }
  CHECK(presets == std::set<std::string>{"hf_switch"});
  Combination own;
  own.K = 1, own.rules = Conventions::hf_switch();
  CHECK(!of_switch.contains(own));  // 64 slots
  own.rules.capacity_slots = 2;
  CHECK(of_switch.contains(own));

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
  dump.add("in.coins", Shape{32}, Numbers(32, 0.5));
  fails(dump, "widenet: explain: coins (N, K) need top_k; got none");
  dump.tensors.erase("in.coins");
  SafeTensors swapped = dump;
  swapped.tensors["in.shared.moe.router.weight"].shape = Shape{4, 12};
  fails(swapped, "widenet: explain: shared.moe.router.weight must be (12, 4); got (4, 12); hint: "
                 "weights are (in, out), a Linear of PyTorch is (out, in)");
  const auto cannot_be_explained = [](const SafeTensors& file, const char* text) {
    CHECK_THROWS_WITH_AS(support::read_explainable_run(file), text, IoError);
  };
  CHECK(support::read_explainable_run(dump).x == run.x);
  SafeTensors other = dump;
  other.tensors.erase("out.y"), other.add("out.y", Shape{15, 12}, Numbers(15 * 12, 0.5));
  cannot_be_explained(other, "widenet: explain: y must have 192 values, as many as x; got 180");
  other = dump;
  other.tensors.erase("in.x"), other.add("in.x", Shape{16, 12}, Numbers(16 * 12, HUGE_VAL));
  cannot_be_explained(other, "widenet: explain: x must be finite; got x[0] = inf");
  dump.tensors.erase("out.y"), dump.tensors.erase("out.balance_loss");
  fails(dump, "widenet: explain: a dump must hold out.y or out.balance_loss; got neither");
  dump.tensors.erase("in.noise"), dump.add("in.noise", Shape{3}, Numbers{1, 2, 3});
  fails(dump, "widenet: explain: noise must have 64 values; got 3");
  dump.tensors.erase("in.x");
  fails(dump, "widenet: explain: a dump must hold in.x; got none");
}

TEST_CASE("explain: the types of numbers that a dump may have") {
  SafeTensors file;
  const auto store = [&](const char* dtype, const std::vector<int>& bytes) {
    file.tensors[dtype] = {dtype, Shape{Index(bytes.size()) / detail::bytes_of_dtype(dtype)},
                           {bytes.begin(), bytes.end()}};
  };
  file.add("F64", Shape{2}, std::vector<double>{0.1, -2});
  file.add("F32", Shape{2}, std::vector<float>{0.1f, -2});
  file.add("I64", Shape{2}, std::vector<std::int64_t>{-3, std::int64_t(1) << 40});
  file.add("I32", Shape{2}, std::vector<std::int32_t>{-3, 1 << 30});
  file.add("U8", Shape{2}, std::vector<std::uint8_t>{0, 255});
  file.add("nothing", Shape{0}, std::vector<double>());
  store("BOOL", {1, 0}), store("F16", {0x00, 0x3E, 0x00, 0xC0});    // little-endian
  store("BF16", {0xC0, 0x3F, 0x00, 0xC0}), store("I16", {1, 0});
  CHECK(support::numbers_of(file, "F64") == Numbers{0.1, -2});
  CHECK(support::numbers_of(file, "F32") == Numbers{double(0.1f), -2});
  CHECK(support::numbers_of(file, "F16") == Numbers{1.5, -2});
  CHECK(support::numbers_of(file, "BF16") == Numbers{1.5, -2});
  CHECK(support::numbers_of(file, "I64") == Numbers{-3, 1099511627776});
  CHECK(support::numbers_of(file, "I32") == Numbers{-3, 1073741824});
  CHECK(support::numbers_of(file, "U8") == Numbers{0, 255});
  CHECK(support::numbers_of(file, "BOOL") == Numbers{1, 0});
  CHECK(support::numbers_of(file, "nothing").empty());
  CHECK_THROWS_WITH_AS(support::numbers_of(file, "I16"),
                       "widenet: dump: I16 must have type F64, F32, F16, BF16, I64, I32, U8 or "
                       "BOOL; got I16", IoError);
}

TEST_CASE("explain: a run whose results are of 16 bits") {
  const check::OneThread one_thread;
  Dice dice{Rng(23)};
  Combination hidden;
  hidden.factor = {1, 2}, hidden.rules.noise = RouterNoise::none;
  hidden.rules.gate = GateRule::renormalized, hidden.rules.balance = BalanceRule::switch_top1;
  LayerRun run = random_run(dice, hidden, 2, 8);
  run_by_header(run, hidden);
  SafeTensors file = support::case_of(run, hidden);
  file.metadata.erase("case");
  const auto stored = [](const Shape& shape, const Numbers& values) {  // bfloat16, cut off
    StoredTensor result{"BF16", shape, {}};
    for (const double value : values) {
      const float narrow = static_cast<float>(value);
      char bytes[4];
      std::memcpy(bytes, &narrow, sizeof bytes);
      result.bytes.insert(result.bytes.end(), bytes + 2, bytes + 4);
    }
    return result;
  };
  file.tensors["out.y"] = stored({Index(run.N), Index(run.D)}, run.results.at("y"));
  file.tensors["out.balance_loss"] = stored({}, run.results.at("balance_loss"));
  const LayerRun back = support::read_layer_run(file, file);
  CHECK(back.rounding_unit == 0x1p-8);
  const support::Explanation set = support::explain(back);
  CHECK(set.contains(hidden));
  Combination other = hidden;
  other.rules.gate = GateRule::raw;
  CHECK(!set.contains(other));
}

TEST_CASE("validate: options in any place, and their errors") {
  using Words = std::vector<std::string>;
  for (const Words& given : {Words{"explain", "a", "b", "--next", "c", "--json"},
                             Words{"explain", "--json", "a", "--next", "c", "b"},
                             Words{"--next", "c", "--json", "explain", "a", "b"}}) {
    const support::Arguments arguments = support::arguments_of(given);
    CHECK(arguments.words == Words{"explain", "a", "b"});
    CHECK(arguments.json);
    CHECK(arguments.next == "c");
  }
  CHECK(support::arguments_of({"compare", "--json", "a", "b"}).json);
  CHECK(!support::arguments_of({"explain", "a"}).json);
  CHECK(support::arguments_of({"--help"}).words == Words{"--help"});
  CHECK(support::arguments_of({}).words.empty());
  const auto fails = [](const Words& given, const char* text) {
    CHECK_THROWS_WITH_AS(support::arguments_of(given), text, ConfigError);
  };
  const std::string rule = "widenet: validate: an option must be --json, of compare and explain, "
                           "or --next FILE, of explain; got ";
  fails({"explain", "a", "--jason"}, (rule + "--jason of explain").c_str());
  fails({"run", "--json", "a", "b"}, (rule + "--json of run").c_str());
  fails({"compare", "a", "b", "--next", "c"}, (rule + "--next of compare").c_str());
  fails({"--json"}, (rule + "--json of no command").c_str());
  fails({"explain", "a", "--next"},
        "widenet: validate: --next must be followed by a file; got the end");
  fails({"explain", "--next", "--json", "a"},
        "widenet: validate: --next must be followed by a file; got --json");
}
