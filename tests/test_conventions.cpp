// Tests for the conventions of chapter 10: what other implementations compute, to the digit.
#include "check.hpp"
#include "support/conventions.hpp"
#include "support/golden.hpp"

#include <algorithm>
#include <set>
#include <sstream>

using namespace widenet;

namespace {

using Ints = std::vector<std::int32_t>;

Tensor<double> log_of(const Shape& shape, std::vector<double> p) {
  for (double& value : p) value = std::log(value);
  return {shape, p};
}

// Eight tokens, four experts: the fixture on which public implementations have been compared.
Tensor<double> busy_logits() {
  return log_of({8, 4}, {.40, .30, .20, .10, .45, .25, .20, .10, .50, .20, .15, .15,
                         .35, .45, .10, .10, .30, .10, .55, .05, .60, .05, .05, .30,
                         .48, .32, .12, .08, .25, .15, .05, .55});
}

RouteOptions options(const Conventions& conventions, Index K = 2, Rational factor = {6, 5}) {
  RouteOptions o;
  o.K = K, o.capacity_factor = factor, o.conventions = conventions;
  return o;
}

template <class F>
Conventions with(F change, Conventions c = Conventions::paper()) {
  change(c);
  return c;
}

template <class T>
std::string dropped_pairs(const Routing<T>& r) {
  const Ints expert = r.expert.to_vector(), slot = r.slot.to_vector();
  std::string pairs;
  for (std::size_t i = 0; i < slot.size(); ++i)
    if (slot[i] < 0)
      pairs += (pairs.empty() ? "" : " ") + std::to_string(static_cast<Index>(i) / r.K) + ":" +
               std::to_string(expert[i]);
  return pairs;
}

// Two gates of one token.
std::vector<double> gates_of(const Routing<double>& r, std::size_t n) {
  const std::vector<double> gate = r.gate.to_vector();
  return {gate[2 * n], gate[2 * n + 1]};
}

template <class E, class F>
void check_throws(F f, const char* text) {
  CHECK_THROWS_WITH_AS(f(), text, E);
}

// The gradient of a function of a routing of random logits, with the routing frozen.
GradReport gradcheck_routed(const Conventions& c, const Buffer<double>& noise, Index K,
                            const std::function<Tensor<double>(const Routing<double>&)>& f,
                            Index group = 0) {
  const auto z = check::normal({12, 5}, 60);
  RouteOptions o = options(c, K);
  o.group_tokens = group;
  return gradcheck(
      [&](const Replay<double>& replay) {
        const Routing<double> r = route(z, o, noise, nullptr,
                                        replay.choices.empty() ? nullptr : &replay.choices[0]);
        return Routed{f(r), {r}};
      },
      {z});
}

}  // namespace

TEST_CASE("conventions: the capacity of every implementation, E = 4, K = 2, factor 6/5") {
  const Index N[] = {16, 49, 50, 64, 1576};
  struct Row {
    const char* who;
    Index K;
    Rational factor;
    std::function<void(Conventions&)> change;
    std::vector<Index> C;
  };
  const Rational c{6, 5};
  const auto rule = [](CapacityRule r) { return [r](Conventions& k) { k.capacity = r; }; };
  const std::vector<Row> rows = {
      {"authors of WideNet, Megablocks", 2, c, [](Conventions&) {}, {9, 29, 30, 38, 945}},
      {"Colossal-AI 2022", 2, c, [](Conventions& k) { k.capacity_rounding = Rounding::ceil; },
       {10, 30, 30, 39, 946}},
      {"Colossal-AI 2023", 2, c, [](Conventions& k) { k = Conventions::colossal(); },
       {10, 30, 30, 38, 946}},
      {"V-MoE", 2, c, [](Conventions& k) { k = Conventions::vmoe(); }, {12, 32, 32, 40, 948}},
      {"Tutel", 2, c, [](Conventions& k) { k = Conventions::tutel(); }, {8, 30, 30, 38, 944}},
      {"FastMoE", 2, c, rule(CapacityRule::tokens_first), {10, 29, 30, 38, 946}},
      {"DeepSpeed", 2, c, [](Conventions& k) { k = Conventions::deepspeed_top2(); },
       {10, 30, 31, 39, 946}},
      {"Mesh TF", 2, c, [](Conventions& k) { k = Conventions::mesh_top2(); },
       {4, 14, 15, 19, 472}},
      {"keras-io", 2, {1, 1}, rule(CapacityRule::tokens_over_experts), {4, 12, 12, 16, 394}},
      {"labml", 1, c, [](Conventions&) {}, {4, 14, 15, 19, 472}},
      {"HF Switch", 1, c, [](Conventions& k) { k = Conventions::hf_switch(); },
       {64, 64, 64, 64, 64}},
      {"Mixtral", 2, c, [](Conventions& k) { k = Conventions::mixtral(); },
       {16, 49, 50, 64, 1576}}};
  for (const Row& row : rows)
    for (std::size_t i = 0; i < 5; ++i) {
      INFO(row.who, ", N = ", N[i]);
      CHECK(expert_capacity(with(row.change), row.factor, row.K, N[i], 4) == row.C[i]);
    }
  // With one slot that stays empty: the authors of WideNet, and keras-io.
  const std::vector<Index> author = {8, 28, 29, 37, 944}, keras = {3, 11, 11, 15, 393};
  for (std::size_t i = 0; i < 5; ++i) {
    const auto zero = Tensor<float>::zeros({N[i], 4});  // all tokens choose 0 and 1
    const auto kept = [&](const RouteOptions& o) { return route(zero, o).kept.to_vector()[0]; };
    CHECK(kept(options(Conventions::author_tf())) == author[i]);
    CHECK(kept(options(with([](Conventions& k) {
                         k.capacity = CapacityRule::tokens_over_experts, k.unusable_slots = 1;
                       }), 2, {1, 1})) == keras[i]);
  }
}

TEST_CASE("conventions: a minimum of ceil(N / E) slots holds all tokens of an image") {
  // minml: t = int(factor N / E), but t + 1 where E experts of t slots would not hold the image.
  const auto minml = [](Index N, Index E) {
    const Index t = static_cast<Index>(1.2 * double(N) / double(E));
    return t * E >= N ? t : t + 1;
  };
  const Index N[] = {16, 49, 50, 64, 1576}, known[] = {4, 14, 15, 19, 472};
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(minml(N[i], 4) == known[i]);
    CHECK(expert_capacity({6, 5}, 1, N[i], 4) == known[i]);
  }
  Index one_more = 0;
  for (const Index E : {2, 4, 7, 16})
    for (Index n = 1; n <= 300; ++n) {
      INFO("N = ", n, ", E = ", E);
      const auto rule = with([&](Conventions& k) { k.capacity_minimum = (n + E - 1) / E; });
      CHECK(expert_capacity(rule, {6, 5}, 1, n, E) == minml(n, E));
      one_more += expert_capacity({6, 5}, 1, n, E) < minml(n, E) ? 1 : 0;
    }
  CHECK(one_more == 39);
}

TEST_CASE("conventions: floats that decide about a slot, over a grid of sizes") {
  Index single_differs = 0, grid = 0;
  const auto ceil = with([](Conventions& c) { c.capacity_rounding = Rounding::ceil; });
  const auto single = with([](Conventions& c) { c.capacity = CapacityRule::single_precision; });
  for (const Index E : {2, 4, 8, 16, 32})
    for (Index N = 1; N <= 4096; ++N, ++grid) {
      const double n = double(N), e = double(E);
      const Index exact = expert_capacity(ceil, {6, 5}, 2, N, E);
      single_differs += expert_capacity(single, {6, 5}, 2, N, E) != exact ? 1 : 0;
      CHECK(std::max(1.0, std::ceil(n * 2 * 1.2 / e)) == double(exact));  // in double
      CHECK(std::max(1.0, std::floor(n * 1.2 * 2 / e)) ==                 // the authors' code
            double(expert_capacity(Conventions::paper(), {6, 5}, 2, N, E)));
    }
  CHECK(grid == 20480);
  CHECK(single_differs == 958);
}

TEST_CASE("conventions: who is dropped, under the presets") {
  struct Row {
    Conventions conventions;
    Index kept;
    const char* dropped;
  };
  const auto at_5 = [](Conventions c) {  // ceil(4.8)
    c.capacity_rounding = Rounding::ceil, c.capacity_multiple = 1, c.capacity_sequences = 0;
    return c;
  };
  const std::vector<Row> rows = {
      {Conventions::paper(), 11, "4:0 5:0 6:0 6:1 7:0"},
      {Conventions::author_tf(), 9, "3:1 3:0 4:0 5:0 6:0 6:1 7:0"},
      {Conventions::colossal(), 11, "3:0 4:0 6:0 6:1 7:0"},
      {Conventions::tutel(), 11, "3:0 4:0 6:0 6:1 7:0"},
      {at_5(Conventions::vmoe()), 13, "3:0 4:0 7:0"},
      {Conventions::deepspeed_top2(), 13, "3:0 4:0 7:0"},
      {Conventions::mixtral(), 16, ""},
      {with([](Conventions& c) { c.priority = Priority::batch_priority; }), 11,
       "0:0 0:1 3:0 4:0 7:0"},
      {with([](Conventions& c) { c.priority = Priority::highest_gate; }), 11,
       "0:0 2:1 3:0 4:0 7:0"}};
  for (const Row& row : rows) {
    const Routing<double> r = route(busy_logits(), options(row.conventions));
    INFO(support::describe(row.conventions));
    CHECK(dropped_pairs(r) == row.dropped);
    Index kept = 0;
    for (const std::int32_t k : r.kept.to_vector()) kept += k;
    CHECK(kept == row.kept);
  }
}

TEST_CASE("conventions: gates of a token that loses its second choice") {
  const auto gates = [](GateRule rule) {
    return gates_of(route(busy_logits(), options(with([&](Conventions& c) {
                            c.gate = rule, c.priority = Priority::choice_major;
                          }))), 3);
  };
  check::close(gates(GateRule::raw), {.45, .35});
  check::close(gates(GateRule::renormalized), {.5625, .4375});
  check::close(gates(GateRule::renormalized_after_drop), {1, 0});
}

TEST_CASE("conventions: queues that count second choices after the drops keep the same pairs") {
  // DeepSpeed and Tutel offset second choices by all first choices, Mesh TF by the kept ones.
  const Index N = 13, E = 4, C = 5;
  for (Index trial = 0; trial < 3000; ++trial) {
    const auto z = check::normal({N, E}, 1000 + trial);
    const Routing<double> r = route(z, options(with([](Conventions& c) {
      c.capacity = CapacityRule::absolute, c.capacity_slots = C;
      c.priority = Priority::choice_major;
    })));
    const Ints expert = r.expert.to_vector();
    std::vector<Index> kept(E);
    Ints slot(expert.size());
    for (std::size_t k = 0; k < 2; ++k)
      for (std::size_t n = 0; n < std::size_t(N); ++n) {
        Index& filled = kept[static_cast<std::size_t>(expert[2 * n + k])];
        slot[2 * n + k] = static_cast<std::int32_t>(filled < C ? filled++ : -1);
      }
    REQUIRE(r.slot.to_vector() == slot);
  }
}

TEST_CASE("conventions: balance losses of known value") {
  // Were ties to go to the higher index, V-MoE's fixture would have another loss.
  const auto z = log_of({4, 3}, {.5, .4, .1, .3, .3, .4, .1, .2, .7, .8, .2, 0});
  const Replay<double>::Choices up{Buffer<std::int32_t>(Ints{0, 1, 2, 1, 2, 1, 0, 1}),
                                   Buffer<std::int32_t>(Ints{-1, -1, -1, -1, -1, -1, -1, -1})};
  const Routing<double> r = route(z, options(Conventions::paper()), {}, nullptr, &up);
  check::close({balance_loss(r).item()}, {.95625});

  const double ln4 = std::log(4.0);
  const auto loss = [](const Tensor<double>& logits, BalanceRule rule) {
    return balance_loss(route(logits, options(Conventions::paper())), rule).item();
  };
  check::close({loss(Tensor<double>::zeros({5, 4}), BalanceRule::z_loss)}, {ln4 * ln4});
  check::close({loss(busy_logits(), BalanceRule::z_loss)}, {0});  // logsumexp(log p) = 0
  check::close({loss(check::tensor({2, 2}, {1000, 1000, 0, 0}), BalanceRule::z_loss)},
               {((1000 + std::log(2.0)) * (1000 + std::log(2.0)) +
                 std::log(2.0) * std::log(2.0)) / 2});
  // All experts win with the same probability: a load without variance.
  check::close({loss(Tensor<double>::zeros({5, 4}), BalanceRule::load)}, {0});
  // One token, two experts, logits 1/2 and 0, deviation 1/2: w = Phi(0), Phi(-1).
  const Routing<double> one =
      route(check::tensor({1, 2}, {.5, 0}), options(Conventions::paper(), 1));
  const double a = .5, b = .15865525393145707, mean = (a + b) / 2;
  check::close({balance_loss(one, BalanceRule::load).item()},
               {(a - mean) * (a - mean) / (mean * mean)});
  check_throws<ValueError>(
      [] {
        balance_loss(route(busy_logits(), options(Conventions::mixtral())), BalanceRule::load);
      },
      "widenet: balance_loss: the rule load needs normal noise; got deviation 0");
}

TEST_CASE("conventions: balance losses of a perfect balance") {
  // Probabilities that are all equal: whatever the choices are.
  const Routing<double> even = route(Tensor<double>::zeros({8, 4}), options(Conventions::paper()));
  const auto loss = [](const Routing<double>& r, BalanceRule rule) {
    return balance_loss(r, rule).item();
  };
  const double ln4 = std::log(4.0);
  check::close({loss(even, BalanceRule::switch_top1), loss(even, BalanceRule::khot_over_k),
                loss(even, BalanceRule::khot_sum), loss(even, BalanceRule::after_drop),
                loss(even, BalanceRule::importance), loss(even, BalanceRule::importance_unbiased),
                loss(even, BalanceRule::load), loss(even, BalanceRule::z_loss)},
               {1, 1, 2, 1, 0, 0, 0, ln4 * ln4});
  // As many first choices for every expert, and a load of 4, 2, 1, 1 with P = .4 .225 .1875 .1875.
  const Routing<double> first =
      route(log_of({4, 4}, {.7, .2, .05, .05, .3, .5, .1, .1, .3, .1, .5, .1, .3, .1, .1, .5}),
            options(Conventions::paper()));
  check::close({loss(first, BalanceRule::switch_top1), loss(first, BalanceRule::khot_over_k),
                loss(first, BalanceRule::khot_sum)},
               {1, 1.2125, 2.425});
}

TEST_CASE("conventions: gradients of every gate rule and every new balance loss") {
  const Buffer<double> noise = router_noise<double>(RouterNoise::one_over_experts, 12, 5, Rng(2));
  const auto cotangent = check::normal({12, 2}, 61), one = check::normal({12, 1}, 62);
  for (const GateRule rule :
       {GateRule::raw, GateRule::renormalized, GateRule::renormalized_after_drop})
    for (const double eps : {0.0, 0.1})
      for (const bool sees : {true, false}) {
        const auto c = with([&](Conventions& k) {
          k.gate = rule, k.gate_eps = eps, k.gate_sees_noise = sees;
          k.capacity = CapacityRule::absolute, k.capacity_slots = 3;
        });
        const GradReport report = gradcheck_routed(c, noise, 2, [&](const Routing<double>& r) {
          REQUIRE(r.dropped_fraction() > 0);
          return multiply(r.gate, cotangent);
        });
        INFO(report.where);
        CHECK(report.max_error < 1e-7);
      }
  for (const BalanceRule rule : {BalanceRule::load, BalanceRule::z_loss, BalanceRule::khot_over_k,
                                 BalanceRule::switch_top1, BalanceRule::after_drop_both,
                                 BalanceRule::importance})
    for (const Index group : {0, 4})
      for (const bool sees : {true, false}) {
        const auto c = with([&](Conventions& k) { k.balance_sees_noise = sees; });
        const GradReport report = gradcheck_routed(
            c, noise, 2, [&](const Routing<double>& r) { return balance_loss(r, rule); }, group);
        INFO("rule ", static_cast<int>(rule), ", group ", group, ": ", report.where);
        CHECK(report.max_error < 1e-7);
      }
  const auto y = check::normal({12, 5}, 63), z = check::normal({12, 5}, 64);
  for (const BalanceRule rule :
       {BalanceRule::khot_sum, BalanceRule::load, BalanceRule::z_loss}) {
    const GradReport report = gradcheck(
        [&](const Replay<double>& replay) {
          const bool is_frozen = !replay.choices.empty();
          const RouteOptions o = options(Conventions::paper());
          const std::vector<Routing<double>> both = {
              route(y, o, noise, nullptr, is_frozen ? &replay.choices[0] : nullptr),
              route(z, o, noise, nullptr, is_frozen ? &replay.choices[1] : nullptr)};
          return Routed{balance_loss(both, rule), both};
        },
        {y, z});
    INFO("together, rule ", static_cast<int>(rule), ": ", report.where);
    CHECK(report.max_error < 1e-7);
  }
}

TEST_CASE("conventions: the loss of groups is a mean, the loss of routings together is one") {
  const auto z = check::normal({12, 5}, 65);
  RouteOptions o = options(with([](Conventions& c) { c.priority = Priority::choice_major; }));
  o.group_tokens = 4;
  const Routing<double> grouped = route(z, o);
  CHECK(grouped.groups == 3);
  CHECK(grouped.C == 3 * 1);  // floor(6/5 * 2 * 4 / 5) = 1 slot for each group
  o.group_tokens = 0;
  const auto part = [&](std::size_t g) {
    const std::vector<double> all = z.to_vector();
    const auto at = all.begin() + static_cast<std::ptrdiff_t>(g) * 20;
    return route(Tensor<double>({4, 5}, std::vector<double>(at, at + 20)), o);
  };
  std::vector<bool> dropped;
  for (std::size_t g = 0; g < 3; ++g) {
    const std::vector<bool> more = part(g).dropped();
    dropped.insert(dropped.end(), more.begin(), more.end());
  }
  CHECK(grouped.dropped() == dropped);
  for (const BalanceRule rule :
       {BalanceRule::khot_over_k, BalanceRule::khot_sum, BalanceRule::switch_top1,
        BalanceRule::after_drop, BalanceRule::after_drop_both, BalanceRule::importance,
        BalanceRule::importance_unbiased, BalanceRule::load, BalanceRule::z_loss}) {
    INFO("rule ", static_cast<int>(rule));
    double mean = 0;
    for (std::size_t g = 0; g < 3; ++g) mean += balance_loss(part(g), rule).item() / 3;
    check::close({balance_loss(grouped, rule).item()}, {mean});

    const RouteOptions roomy = options(Conventions::paper(), 2, {5, 1});
    const Routing<double> whole = route(z, roomy);
    const std::vector<double> all = z.to_vector();
    std::vector<Routing<double>> halves;
    for (const auto at : {all.begin(), all.begin() + 30})
      halves.push_back(route(Tensor<double>({6, 5}, std::vector<double>(at, at + 30)), roomy));
    check::close({balance_loss(halves, rule).item()}, {balance_loss(whole, rule).item()});
  }
  // Every other priority serves group by group, too.
  for (const Priority priority :
       {Priority::token_major, Priority::batch_priority, Priority::highest_gate}) {
    RouteOptions rules = options(with([&](Conventions& c) { c.priority = priority; }));
    const Routing<double> alone = route(busy_logits(), rules);
    std::vector<double> twice = busy_logits().to_vector();
    check::append(twice, busy_logits().to_vector());
    rules.group_tokens = 8;
    const Routing<double> both = route(check::tensor({16, 4}, twice), rules);
    std::vector<bool> expected = alone.dropped();
    const std::vector<bool> same = expected;
    expected.insert(expected.end(), same.begin(), same.end());
    CHECK(both.dropped() == expected);
    CHECK(both.choice_of_slot.to_vector().size() == 4 * 8);
  }
  check_throws<ValueError>([] { balance_loss(std::vector<Routing<double>>{}); },
                           "widenet: balance_loss: there must be a routing; got none");
  check_throws<ValueError>(
      [&] { balance_loss(std::vector<Routing<double>>{grouped, part(0)}); },
      "widenet: balance_loss: routings must agree in N, E, K and groups; got 12, 5, 2, 3 and 4, 5, "
      "2, 1");
  o.group_tokens = 5;
  check_throws<ValueError>([&] { route(z, o); },
                           "widenet: route: group_tokens must divide N; got 5, 12");
}

TEST_CASE("conventions: who sees the noise") {
  const auto z = check::tensor({1, 3}, {std::log(.5), std::log(.3), std::log(.2)});
  const Buffer<double> noise(std::vector<double>{0, 0, std::log(4.0)});  // p = .3125 .1875 .5
  const auto routed = [&](const std::function<void(Conventions&)>& change) {
    return route(z, options(with(change)), noise);
  };
  const Routing<double> all = routed([](Conventions&) {});
  CHECK(all.expert.to_vector() == Ints{2, 0});
  check::close(all.gate, {.5, .3125});
  check::close(all.importance.to_vector(), {.3125, .1875, .5});
  const Routing<double> gate = routed([](Conventions& c) { c.gate_sees_noise = false; });
  CHECK(gate.expert.to_vector() == Ints{2, 0});
  check::close(gate.gate, {.2, .5});
  check::close(gate.importance.to_vector(), {.3125, .1875, .5});
  const Routing<double> balance = routed([](Conventions& c) { c.balance_sees_noise = false; });
  check::close(balance.gate, {.5, .3125});
  check::close(balance.importance.to_vector(), {.5, .3, .2});
  const Routing<double> first = routed([](Conventions& c) { c.first_choice_sees_noise = false; });
  CHECK(first.expert.to_vector() == Ints{0, 2});
  check::close(first.gate, {.3125, .5});
  check::close(first.probabilities, {.3125, .1875, .5});
}

TEST_CASE("conventions: a second choice asks with probability gate / threshold, in training") {
  const Index N = 20000;
  std::vector<double> logits;
  for (Index n = 0; n < N; ++n) logits.push_back(std::log(.9)), logits.push_back(std::log(.1));
  const Tensor<double> z({N, 2}, logits);
  const auto c = with([](Conventions& k) {
    k.second_choice_threshold = .2, k.capacity = CapacityRule::dropless;
  });
  const Rng rng(5);
  const Routing<double> r = route(z, options(c), {}, &rng);
  const Ints kept = r.kept.to_vector();
  CHECK(kept[0] == N);
  CHECK(std::abs(kept[1] - N / 2) < 5 * std::sqrt(double(N) / 4));
  CHECK(route(z, options(c)).kept.to_vector() == Ints{N, N});  // evaluation
  CHECK(route(z, options(with([](Conventions& k) { k.second_choice_threshold = .1; }, c)), {}, &rng)
            .kept.to_vector() == Ints{N, N});
}

TEST_CASE("conventions: laws of noise") {
  const Index N = 20011, E = 7;
  const auto draw = [&](RouterNoise law, double scale) {
    return router_noise<double>(law, N, E, Rng(3), scale).to_vector();
  };
  const auto mean_of = [](const std::vector<double>& x) {
    double sum = 0;
    for (const double value : x) sum += value;
    return sum / double(x.size());
  };
  const std::vector<double> uniform = draw(RouterNoise::uniform, .1);
  CHECK(*std::max_element(uniform.begin(), uniform.end()) < .1);
  CHECK(*std::min_element(uniform.begin(), uniform.end()) > -.1);
  CHECK(std::fabs(mean_of(uniform)) < 5 * .1 / std::sqrt(3.0 * double(N * E)));
  const std::vector<double> gumbel = draw(RouterNoise::gumbel, 2);
  const double deviation = 2 * std::acos(-1.0) / std::sqrt(6.0);
  CHECK(std::fabs(mean_of(gumbel) - 2 * 0.5772156649015329) <
        5 * deviation / std::sqrt(double(N * E)));
  const std::vector<double> one = draw(RouterNoise::one_over_experts, 1);
  const std::vector<double> three = draw(RouterNoise::one_over_experts, 3);
  for (std::size_t i = 0; i < one.size(); i += 997)
    CHECK(std::fabs(three[i] - 3 * one[i]) < 1e-14);
  CHECK(draw(RouterNoise::jitter, 1).empty());
  // The largest of z + gumbel noise is e with probability softmax(z)[e].
  const auto z = check::tensor({1, 3}, {std::log(.5), std::log(.3), std::log(.2)});
  std::vector<double> wins(3);
  const std::vector<double> g = router_noise<double>(RouterNoise::gumbel, N, 3, Rng(4)).to_vector();
  for (std::size_t n = 0; n < std::size_t(N); ++n) {
    std::size_t best = 0;
    for (std::size_t e = 1; e < 3; ++e)
      if (z.to_vector()[e] + g[3 * n + e] > z.to_vector()[best] + g[3 * n + best]) best = e;
    wins[best] += 1 / double(N);
  }
  for (std::size_t e = 0; e < 3; ++e)
    CHECK(std::fabs(wins[e] - std::exp(z.to_vector()[e])) < 5 * .5 / std::sqrt(double(N)));
}

TEST_CASE("renormalize, dropped_inputs, router bias: known values, gradients, errors") {
  const auto gate = check::tensor({2, 2}, {.4, .1, .3, .2});
  const Buffer<std::int32_t> slot(Ints{0, -1, -1, -1});
  check::close(renormalize(gate, {}, 0), {.8, .2, .6, .4});
  check::close(renormalize(gate, {}, .5), {.4, .1, .3, .2});
  CHECK(renormalize(gate, slot, 0).to_vector() == std::vector<double>{1, 0, 0, 0});
  check::gradients([&] { return renormalize(gate, {}, .1); }, {gate});
  check::gradients([&] { return renormalize(gate, slot, .1); }, {gate});
  check_throws<ShapeError>(
      [&] { renormalize(gate, Buffer<std::int32_t>(Ints{0}), 0); },
      "widenet: renormalize: there must be N * K = 4 slots or none; got 1");
  check_throws<ShapeError>([&] { renormalize(Tensor<double>::zeros({4}), {}, 0); },
                           "widenet: renormalize: gate must be (N, K); got (4)");

  const Replay<double>::Choices choices{Buffer<std::int32_t>(Ints{0, 1, 1, 0}), slot};
  const Routing<double> r = route(Tensor<double>::zeros({2, 3}), options(Conventions::paper()), {},
                                  nullptr, &choices);
  const auto x = check::tensor({2, 2}, {1, 2, 3, 4});
  check::close(dropped_inputs(x, gate, r), {.1, .2, 1.5, 2});
  check::gradients([&] { return dropped_inputs(x, gate, r); }, {x, gate});
  check_throws<ShapeError>([&] { dropped_inputs(check::normal({3, 2}, 0), gate, r); },
                           "widenet: dropped_inputs: x (N, D) and gate (N, K) must have N = 2, K = "
                           "2; got (3, 2), (2, 2)");

  const auto w = check::normal({2, 3}, 1), b = check::normal({3}, 2);
  check::close(router_logits(check::tensor({1, 2}, {1, 2}), check::tensor({2, 2}, {1, 0, 0, 1}),
                             check::tensor({2}, {10, 20})),
               {11, 22});
  check::gradients([&] { return router_logits(x, w, b); }, {x, w, b});
  check_throws<ShapeError>([&] { router_logits(x, w, x); },
                           "widenet: router_logits: bias must be (E) = (3); got (2, 2)");
}

TEST_CASE("experts: GELU at the output, with and without dropout") {
  const Index E = 3, D = 5, F = 4;
  const Routing<double> r = route(check::normal({11, E}, 70), options(Conventions::paper()));
  const auto x = check::normal({E, r.C, D}, 71), w1 = check::normal({E, D, F}, 72);
  const auto b1 = check::normal({E, F}, 73), w2 = check::normal({E, F, D}, 74);
  const auto b2 = check::normal({E, D}, 75);
  const ExpertDropout<double> drop{{Rng(5), .3}, {Rng(6), .4}, true};
  for (const Gelu form : {Gelu::tanh, Gelu::erf}) {
    const auto plain = experts(x, w1, b1, w2, b2, r, form);
    check::close(experts(x, w1, b1, w2, b2, r, form, {}, true), gelu(plain, form).to_vector());
    for (const bool drops : {false, true})
      check::gradients(
          [&] {
            return experts(x, w1, b1, w2, b2, r, form,
                           drops ? drop : ExpertDropout<double>{}, true);
          },
          {x, w1, b1, w2, b2});
  }
}

TEST_CASE("feed-forward network: GELU at the output") {
  ParameterSet<double> parameters(Rng(1));
  const FeedForward<double> ffn(parameters, "ffn", 5, 7);
  const auto x = check::normal({3, 5}, 76);
  for (const Gelu form : {Gelu::tanh, Gelu::erf})
    CHECK(check::same_bits(ffn(x, form, 0, nullptr, 0, true).to_vector(),
                           gelu(ffn(x, form, 0, nullptr, 0), form).to_vector()));
  // Dropout comes after it: what is kept is scaled, and nothing else.
  const Training training{Rng(3), 0};
  const DropoutMask<double> hidden{training.stream(Purpose::hidden_dropout, 2), .5};
  const auto h = gelu(ffn.fc1(x));
  std::vector<double> masked = h.to_vector();
  for (std::size_t i = 0; i < masked.size(); ++i) masked[i] *= hidden(static_cast<Index>(i));
  const auto expected = dropout(gelu(ffn.fc2(Tensor<double>({3, 7}, masked))), .5,
                                training.stream(Purpose::output_dropout, 2));
  check::close(ffn(x, Gelu::tanh, .5, &training, 2, true), expected.to_vector());
}

TEST_CASE("conventions: an encoder under every preset, gradients of all of it in training") {
  const check::OneThread one_thread;
  for (const auto& preset : Conventions::presets()) {
    EncoderConfig c;
    c.width = 6, c.heads = 2, c.blocks = 2, c.experts = 4, c.expert_hidden = 3;
    support::follow(c, preset.first);
    REQUIRE(c.violations().empty());
    if (preset.first == "hf_switch") c.conventions.capacity_slots = 1;
    c.conventions.router_bias = preset.first == "tutel";
    c.conventions.dropped = preset.first == "colossal" ? DroppedValue::gated_input
                                                       : DroppedValue::zero;
    ParameterSet<double> parameters(Rng(1));
    const Encoder<double> encoder(c, parameters);
    const auto x = check::normal({3, 4, 6}, 80), cotangent = check::normal({3, 4, 6}, 81);
    std::vector<Tensor<double>> inputs = {x};
    for (const Parameter<double>& p : parameters.list())
      if (p.name.find("router") != std::string::npos || p.name.find("norm1") != std::string::npos ||
          p.name.find("fc2") != std::string::npos)
        inputs.push_back(p.tensor);
    const Training training{Rng(3), 0};
    const GradReport report = gradcheck(
        [&](const Replay<double>& replay) {
          const auto out = encoder.forward(x, &training, replay);
          const Tensor<double> loss = sum(multiply(out.tokens, cotangent));
          return Routed{loss + out.balance_loss, out.routings};
        },
        inputs);
    INFO(preset.first, ": ", report.where);
    CHECK(report.max_error < 1e-7);

    const auto out = encoder.forward(x, nullptr, {});
    double total = 0;
    for (const auto& loss : out.balance_losses) total += loss.item();
    if (c.conventions.reduction == Reduction::sum) check::close({out.balance_loss.item()}, {total});
    if (c.conventions.reduction == Reduction::mean)
      check::close({out.balance_loss.item()}, {total / 2});
    if (c.conventions.reduction == Reduction::together)
      CHECK(out.balance_loss.item() == balance_loss(out.routings, BalanceRule::khot_sum).item());
    CHECK(out.routings[0].groups == (c.conventions.capacity_sequences == 1 ? 3 : 1));
  }
}

TEST_CASE("encoder: a second balance loss, of its routings, goes beside that of the conventions") {
  const check::OneThread one_thread;
  EncoderConfig c;
  c.width = 6, c.heads = 2, c.blocks = 2, c.experts = 4, c.expert_hidden = 3;
  support::follow(c, "vmoe");  // which takes half of the sum of importance and load
  c.conventions.balance = BalanceRule::importance, c.conventions.balance_sees_noise = false;
  ParameterSet<double> parameters(Rng(1));
  const Encoder<double> encoder(c, parameters);
  const auto x = check::normal({3, 4, 6}, 86);
  std::vector<Tensor<double>> inputs = {x};
  for (const Parameter<double>& p : parameters.list())
    if (p.name.find("router") != std::string::npos) inputs.push_back(p.tensor);
  CHECK(inputs.size() == 3);
  const Training training{Rng(3), 0};
  const auto both = [&](const EncoderOutput<double>& out) {
    Tensor<double> loss = out.balance_loss;
    for (const Routing<double>& r : out.routings) loss = loss + balance_loss(r, BalanceRule::load);
    return 0.5 * loss;
  };
  const GradReport report = gradcheck(
      [&](const Replay<double>& replay) {
        const auto out = encoder.forward(x, &training, replay);
        return Routed{both(out), out.routings};
      },
      inputs);
  INFO(report.where);
  CHECK(report.max_error < 1e-7);

  const auto out = encoder.forward(x, &training, {});
  const Tensor<double> loss = both(out);
  double expected = 0;
  for (const Routing<double>& r : out.routings)
    for (const BalanceRule rule : {BalanceRule::importance, BalanceRule::load})
      expected += balance_loss(r, rule).item() / 2;
  check::close({loss.item()}, {expected});
}

TEST_CASE("encoder: jitter is seen by the router, and by the experts only in place") {
  EncoderConfig c;
  c.width = 6, c.heads = 2, c.blocks = 1, c.experts = 4, c.expert_hidden = 3;
  c.conventions.noise_scale = .01;
  const auto x = check::normal({3, 4, 6}, 81);
  const Training training{Rng(3), 0};
  const auto run = [&](RouterNoise law, const Training* t, const Replay<double>& replay = {}) {
    c.conventions.noise = law;
    ParameterSet<double> parameters(Rng(1));
    return Encoder<double>(c, parameters).forward(x, t, replay);
  };
  const auto logits = [](const EncoderOutput<double>& out) {
    return out.routings[0].logits.to_vector();
  };
  const auto tokens = [](const EncoderOutput<double>& out) { return out.tokens.to_vector(); };
  const auto clean = run(RouterNoise::none, &training);
  const auto jitter = run(RouterNoise::jitter, &training);
  const auto in_place = run(RouterNoise::jitter_in_place, &training);
  CHECK(logits(jitter) != logits(clean));
  CHECK(logits(jitter) == logits(in_place));
  CHECK(tokens(jitter) != tokens(in_place));
  CHECK(run(RouterNoise::jitter, nullptr).routings[0].jitter.size() == 0);
  CHECK(tokens(run(RouterNoise::jitter_in_place, nullptr)) == tokens(clean));
  for (const double factor : jitter.routings[0].jitter.to_vector())
    CHECK((.99 <= factor && factor <= 1.01));
  CHECK(tokens(run(RouterNoise::jitter_in_place, nullptr,
                   Replay<double>::of(in_place.routings))) == tokens(in_place));
  Replay<double> two;
  two.jitter.resize(2);
  check_throws<ShapeError>([&] { run(RouterNoise::jitter, nullptr, two); },
                           "widenet: Encoder: a replay must have jitter for 1 routings; got 2");
}

TEST_CASE("encoder: blocks that run again in backward draw the same jitter, noise and choices") {
  for (const char* preset : {"hf_switch", "mesh_top2", "deepspeed_top2"}) {
    const auto gradients = [&](bool recomputes) {
      EncoderConfig c;
      support::follow(c, preset);
      c.recompute_blocks = recomputes;
      ParameterSet<double> parameters(Rng(1));
      const Training training{Rng(3), 0};
      const auto out = Encoder<double>(c, parameters).forward(check::normal({3, 4, 32}, 84),
                                                              &training, {});
      (sum(multiply(out.tokens, check::normal({3, 4, 32}, 85))) + out.balance_loss).backward();
      std::vector<double> all;
      for (const Parameter<double>& p : parameters.list())
        check::append(all, p.tensor.gradient().to_vector());
      return all;
    };
    INFO(preset);
    CHECK(check::same_bits(gradients(true), gradients(false)));
  }
}

TEST_CASE("encoder: evaluation may have another capacity, pooling may leave out the class token") {
  EncoderConfig c;
  c.evaluation_capacity_factor = {4, 1};
  ParameterSet<double> parameters(Rng(1));
  const Encoder<double> encoder(c, parameters);
  const auto x = check::normal({4, 5, 32}, 82);
  const Training training{Rng(3), 0};
  CHECK(encoder.forward(x, &training, {}).routings[0].C == 12);
  CHECK(encoder.forward(x, nullptr, {}).routings[0].C == 20);

  VisionConfig vision;
  const auto images = check::normal({2, 1, 8, 8}, 83);
  const auto logits = [&](Pooling pooling) {
    vision.pooling = pooling;
    return VisionModel<double>(vision, Rng(1)).forward(images).logits.to_vector();
  };
  const auto first = logits(Pooling::class_token), patches = logits(Pooling::patch_mean);
  const auto mean = logits(Pooling::mean);
  for (std::size_t i = 0; i < mean.size(); ++i)  // the head is linear: 17 tokens, 16 of patches
    CHECK(std::fabs(mean[i] - (first[i] + 16 * patches[i]) / 17) < 1e-12);
}

TEST_CASE("conventions: what cannot learn is reported, and does not learn") {
  const auto listed = [](const Conventions& c, Index K, Index E) {
    std::string all;
    for (const std::string& line : warnings(c, K, E)) all += line + "\n";
    return all;
  };
  for (const auto& preset : Conventions::presets()) CHECK(listed(preset.second, 2, 4) == "");
  for (const GateRule rule : {GateRule::renormalized, GateRule::renormalized_after_drop}) {
    const auto c = with([&](Conventions& k) { k.gate = rule; });
    CHECK(listed(c, 1, 4) ==
          "with K = 1 a renormalised gate is always 1: the router learns nothing from the task\n");
    const auto z = check::normal({5, 4}, 90).require_gradient();
    const Routing<double> r = route(z, options(c, 1, {4, 1}));
    CHECK(r.gate.to_vector() == std::vector<double>(5, 1.0));
    multiply(r.gate, check::normal({5, 1}, 91)).backward(check::normal({5, 1}, 92).value());
    for (const double d : z.gradient().to_vector()) CHECK(std::fabs(d) < 1e-15);
  }
  CHECK(listed(Conventions::paper(), 4, 4) ==
        "with K = E every expert has every token: the balance loss is constant\n");
  const auto z = check::normal({5, 4}, 93).require_gradient();
  balance_loss(route(z, options(Conventions::paper(), 4))).backward();
  for (const double d : z.gradient().to_vector()) CHECK(std::fabs(d) < 1e-15);
}

TEST_CASE("conventions: what a configuration takes over from every preset") {
  struct Row {
    const char* preset;
    bool is_shared;
    Index K;
    Rational factor, evaluation;  // 0: as in training
    Gelu gelu;
    bool is_twice;
    Norm norm;
    double eps;
    ClassToken token;
    Pooling pooling;
  };
  const Gelu tanh = Gelu::tanh, erf = Gelu::erf;
  const Norm layer = Norm::layer_norm, rms = Norm::rms_norm;
  const ClassToken zero = ClassToken::zero, open = ClassToken::trained;  // open: as it was
  const Pooling mean = Pooling::mean, any = Pooling::patch_mean;
  const std::vector<Row> rows = {
      {"paper", true, 2, {6, 5}, {0, 1}, tanh, false, layer, 1e-6, zero, mean},
      {"author_tf", true, 2, {6, 5}, {0, 1}, tanh, true, layer, 1e-6, zero, mean},
      {"colossal", false, 2, {5, 4}, {2, 1}, erf, false, layer, 1e-6, open, mean},
      {"vmoe", false, 2, {21, 20}, {4, 1}, tanh, false, layer, 1e-6, open, any},
      {"mesh_top2", false, 2, {5, 4}, {2, 1}, tanh, false, layer, 1e-6, open, any},
      {"deepspeed_top2", false, 2, {6, 5}, {0, 1}, tanh, false, layer, 1e-6, open, any},
      {"tutel", false, 2, {6, 5}, {0, 1}, tanh, false, layer, 1e-6, open, any},
      {"mixtral", false, 2, {6, 5}, {0, 1}, tanh, false, rms, 1e-5, open, any},
      {"hf_switch", false, 1, {6, 5}, {0, 1}, tanh, false, rms, 1e-6, open, any}};
  CHECK(rows.size() == Conventions::presets().size());
  for (const Row& row : rows) {
    for (const bool was_shared : {false, true}) {  // whatever was there before
      VisionConfig c;
      c.class_token = open, c.pooling = any;
      EncoderConfig& e = c.encoder;
      e.share_attention = e.share_router = e.share_experts = was_shared;
      e.top_k = 3, e.capacity_factor = {7, 1}, e.evaluation_capacity_factor = {9, 1};
      e.gelu = row.gelu == tanh ? erf : tanh, e.gelu_at_output = !row.is_twice;
      e.norm = row.norm == layer ? rms : layer, e.layer_norm_eps = 1;
      support::follow(c, row.preset);
      INFO(row.preset);
      CHECK(e.share_attention == row.is_shared);
      CHECK(e.share_router == row.is_shared);
      CHECK(e.share_experts == row.is_shared);
      CHECK(e.top_k == row.K);
      CHECK(e.capacity_factor == row.factor);
      CHECK(e.evaluation_capacity_factor == row.evaluation);
      CHECK(e.gelu == row.gelu);
      CHECK(e.gelu_at_output == row.is_twice);
      CHECK(e.norm == row.norm);
      CHECK(e.layer_norm_eps == row.eps);
      CHECK(c.class_token == row.token);
      CHECK(c.pooling == row.pooling);
      CHECK(support::describe(e.conventions) ==
            support::describe(Conventions::presets().at(row.preset)));
    }
  }
}

TEST_CASE("conventions: RMSNorm has no beta anywhere") {
  LanguageConfig c;
  const Index D = c.encoder.width, L = c.encoder.blocks, W = c.embedding;
  const Index all = LanguageModel<float>::count_all(c), body = count_parameters(c);
  c.encoder.norm = Norm::rms_norm;
  CHECK(LanguageModel<float>::count_all(c) == all - (2 * L + 1) * D - 2 * W);
  CHECK(count_parameters(c) == body - (2 * L + 1) * D - W);
  const LanguageModel<double> model(c, Rng(1));
  for (const Parameter<double>& p : model.parameters()) {
    INFO(p.name);
    CHECK((p.name.find("norm") == std::string::npos || p.name.find("bias") == std::string::npos));
  }
  // The tokens are those of RMSNorm: every row of the final norm has a mean square of 1.
  TokenBatch batch;
  batch.B = 2, batch.T = 5, batch.token = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  const Tensor<double> tokens = model.forward(batch).tokens;
  const std::vector<double> x = tokens.to_vector();
  for (std::size_t n = 0; n < 10; ++n) {
    double square = 0, mean = 0;
    for (std::size_t d = 0; d < std::size_t(D); ++d) {
      const double value = x[n * std::size_t(D) + d];
      square += value * value / double(D), mean += value / double(D);
    }
    CHECK(std::fabs(square - 1) < 1e-9);
    CHECK(std::fabs(mean) > 1e-6);
  }
  CHECK(model.masked_logits(tokens, {0, 3}).shape() == Shape{2, c.vocabulary});
}

TEST_CASE("conventions: every preset says its formulas") {
  std::set<std::string> seen;
  for (const auto& preset : Conventions::presets())
    CHECK(seen.insert(support::describe(preset.second)).second);
  CHECK(seen.size() == 9);
  CHECK(support::describe(Conventions::paper()) ==
        "router    z = x w\n"
        "noise     z + (s / E) n, n ~ N(0, 1), s = 1, in training;\n"
        "          in the choice, in the gate, in the balance loss\n"
        "choice    the K largest of p = softmax(z), ties to the lower expert\n"
        "gate      p\n"
        "capacity  C = round(factor K N / E), rounded down, at least 1; N = the tokens of the "
        "batch\n"
        "priority  by token, all choices of a token together\n"
        "dropped   adds 0\n"
        "balance   E sum f P, f = choices / (N K), P = mean p; summed over blocks\n");
  CHECK(support::describe(Conventions::mesh_top2()) ==
        "router    z = x w\n"
        "noise     none\n"
        "choice    the K largest of p = softmax(z), ties to the lower expert;\n"
        "          after the first, in training, with probability min(1, gate / 0.2)\n"
        "gate      p / (sum of p over the K choices + 1e-09);\n"
        "          with K = 1 always 1: the router learns nothing from the task\n"
        "capacity  C = round(factor N / E), rounded down, at least 4; N = the tokens of 1 "
        "sequence\n"
        "priority  all first choices by token, then all second choices, ...\n"
        "dropped   adds 0\n"
        "balance   E sum f P, f = first choices / N, P = mean p; mean over the groups of N "
        "tokens;\n"
        "          summed over blocks\n");
  CHECK(support::describe(with([](Conventions& c) {
          c = Conventions::hf_switch(), c.router_bias = true, c.unusable_slots = 1;
          c.dropped = DroppedValue::gated_input, c.first_choice_sees_noise = false;
          c.gate_sees_noise = c.balance_sees_noise = false, c.capacity_multiple = 4;
        })) ==
        "router    z = x w + b\n"
        "noise     x (1 + s u) in place of x for router and experts, u ~ U(-1, 1), s = 0.01, in "
        "training;\n"
        "          in the choice (but the first), not in the gate, not in the balance loss\n"
        "choice    the K largest of p = softmax(z), ties to the lower expert\n"
        "gate      p\n"
        "capacity  C = 64, up to a multiple of 4, of which 1 stays empty; N = the tokens of 1 "
        "sequence\n"
        "priority  by token, all choices of a token together\n"
        "dropped   adds gate x\n"
        "balance   E sum f P, f = first choices / N, P = mean p; mean over the groups of N "
        "tokens;\n"
        "          mean over blocks\n");
  CHECK(support::folded(std::string(60, 'a') + ' ' + std::string(39, 'b') + "\nc\n") ==
        std::string(60, 'a') + ' ' + std::string(39, 'b') + "\nc\n");  // 100 columns
  CHECK(support::folded(std::string(60, 'a') + ' ' + std::string(40, 'b') + "\nc\n") ==
        std::string(60, 'a') + "\n          " + std::string(40, 'b') + "\nc\n");
}

TEST_CASE("conventions: every preset says what else a configuration takes over") {
  const auto rest = [](const std::string& preset) {
    const std::string text = support::describe_preset(preset, "test");
    const std::string formulas = support::describe(Conventions::presets().at(preset));
    REQUIRE(text.compare(0, formulas.size(), formulas) == 0);
    return text.substr(formulas.size());
  };
  const std::string shared = "sharing   attention, router and experts are shared by all blocks\n";
  const std::string of_each = "sharing   attention, router and experts of each block are its own\n";
  const std::string tanh = "GELU      x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2";
  const std::string authors = "norm      LayerNorm, eps 1e-06\n"
                              "token     the class token is 0, without a gradient\n"
                              "pooling   mean, with the class token\n";
  const std::string open = "token     as the model has it\npooling   as the model has it\n";
  const std::string ours = tanh + " (our choice)\nnorm      LayerNorm, eps 1e-06 (our choice)\n";
  CHECK(rest("paper") ==
        shared + "K         2\nfactor    1.2, in evaluation, too\n" + tanh + '\n' + authors);
  CHECK(rest("author_tf") == shared + "K         2\nfactor    1.2, in evaluation, too\n" + tanh +
                                 ",\n          again after the second product of an expert\n" +
                                 authors);
  CHECK(rest("colossal") == of_each + "K         2\nfactor    1.25, in evaluation 2\n"
                                      "GELU      x (1 + erf(x / sqrt(2))) / 2\n"
                                      "norm      LayerNorm, eps 1e-06\n"
                                      "token     as the model has it\n"
                                      "pooling   mean, with the class token\n");
  CHECK(rest("vmoe") == of_each + "K         2\nfactor    1.05, in evaluation 4\n" + tanh +
                            "\nnorm      LayerNorm, eps 1e-06\n" + open);
  CHECK(rest("mesh_top2") ==
        of_each + "K         2\nfactor    1.25, in evaluation 2\n" + ours + open);
  for (const char* preset : {"deepspeed_top2", "tutel"})
    CHECK(rest(preset) == of_each + "K         2\n"
                                    "factor    1.2, in evaluation, too (our choice)\n" +
                              ours + open);
  CHECK(rest("mixtral") == of_each + "K         2\nfactor    none\n" + tanh +
                               ", in place of SwiGLU (not offered)\n"
                               "norm      RMSNorm, eps 1e-05\n" + open);
  CHECK(rest("hf_switch") == of_each + "K         1\nfactor    none\n" + tanh +
                                 ", in place of ReLU (not offered)\n"
                                 "norm      RMSNorm, eps 1e-06\n" + open);

  std::string all;
  for (const auto& preset : Conventions::presets())
    all += preset.first + '\n' + support::describe_preset(preset.first, "test") + '\n';
  CHECK(support::describe_presets("", "test") == all);
  CHECK(support::describe_presets("tutel", "test") ==
        "tutel\n" + support::describe_preset("tutel", "test") + '\n');
  std::istringstream lines(all);
  for (std::string line; std::getline(lines, line);) {
    INFO(line);
    CHECK(line.size() <= 100);
  }
}

TEST_CASE("conventions: a preset that there is not is refused, whoever asks for it") {
  const std::string rule = ": a preset must be one of author_tf, colossal, deepspeed_top2, "
                           "hf_switch, mesh_top2, mixtral, paper, tutel, vmoe; got ";
  EncoderConfig config;
  check_throws<ConfigError>([&] { support::follow(config, "gshard"); },
                            ("widenet: follow" + rule + "gshard").c_str());
  check_throws<ConfigError>([] { support::describe_presets("nonsense", "validate"); },
                            ("widenet: validate" + rule + "nonsense").c_str());
  check_throws<ConfigError>([] { support::conventions_named("", "validate"); },
                            ("widenet: validate" + rule).c_str());
}

TEST_CASE("conventions: a program prints what cannot be learned, and nothing where all can") {
  const auto printed = [](const EncoderConfig& c) {
    std::ostringstream out;
    support::print_warnings(c, out);
    return out.str();
  };
  const std::string constant_gate =
      "widenet: warning: with K = 1 a renormalised gate is always 1: the router learns nothing "
      "from the task\n";
  const std::string constant_loss =
      "widenet: warning: with K = E every expert has every token: the balance loss is constant\n";
  EncoderConfig c;
  CHECK(printed(c) == "");
  c.top_k = 4;
  CHECK(printed(c) == constant_loss);
  support::follow(c, "mixtral");
  CHECK(printed(c) == "");
  c.top_k = 1;
  CHECK(printed(c) == constant_gate);
  c.experts = 1;
  CHECK(printed(c) == constant_gate + constant_loss);
  c.moe_blocks = 0;  // no block has experts
  CHECK(printed(c) == "");
  c.moe_blocks = -1, c.experts = 0;
  CHECK(printed(c) == "");

  // A case of golden data, under its own conventions or others.
  support::GoldenCase one;
  one.settings = Json::parse(R"({"experts": 4, "top_k": 1, "gate": "raw"})", "test");
  CHECK(printed(support::encoder_of(one)) == "");
  const Conventions tutel = Conventions::tutel();
  CHECK(printed(support::encoder_of(one, &tutel)) == constant_gate);
  one.settings = Json::parse(R"({"experts": 4, "top_k": 1, "gate": "renormalized"})", "test");
  CHECK(printed(support::encoder_of(one)) == constant_gate);
  one.settings = Json::parse(R"({"eps": 1e-6})", "test");  // of a LayerNorm
  for (const auto& preset : Conventions::presets())
    CHECK(printed(support::encoder_of(one, &preset.second)) == "");
}

TEST_CASE("conventions: violations are listed") {
  EncoderConfig c;
  c.evaluation_capacity_factor = {-1, 1};
  Conventions& k = c.conventions;
  k.noise_scale = -1, k.capacity_multiple = 0, k.capacity_sequences = -1;
  k.balance = BalanceRule::load;
  const std::vector<std::string> expected = {
      "evaluation_capacity_factor must lie in [0, 1000000]; got -1/1",
      "noise_scale, gate_eps and second_choice_threshold must be finite and not negative; got -1, "
      "0, 0",
      "capacity_multiple, capacity_minimum and capacity_slots must be positive; got 0, 1, 64",
      "capacity_sequences and the other numbers of capacity must lie in [0, 1000000]; got -1, 0, "
      "1, 64",
      "balance rule load needs normal noise of a positive noise_scale; got -1"};
  CHECK(c.violations() == expected);

  c = EncoderConfig();
  c.conventions.gate_eps = HUGE_VAL, c.layer_norm_eps = HUGE_VAL;  // JSON has no such number
  CHECK(c.violations().size() == 2);

  c = EncoderConfig();
  c.conventions = Conventions::mixtral(), c.conventions.capacity_sequences = 1;
  c.recompute_blocks = true, c.routes_padding = false;
  const std::vector<std::string> of_two = {
      "capacity_sequences must be 0 where padding is not routed; got 1",
      "recompute_blocks needs a balance loss that is a sum or mean over blocks; got together"};
  CHECK(c.violations() == of_two);
}

TEST_CASE("conventions: gates that are NaN stay NaN when they are made to add up to 1") {
  const double nan = std::nan("");
  const Tensor<double> gate = check::tensor({1, 2}, {nan, nan}).require_gradient();
  const Tensor<double> y = renormalize(gate, {}, 0);
  for (const double value : y.to_vector()) CHECK(std::isnan(value));
  sum(y).backward();
  for (const double value : gate.gradient().to_vector()) CHECK(std::isnan(value));
}

TEST_CASE("conventions: gates that are all 0 stay 0 when they are made to add up to 1") {
  const Tensor<double> gate = check::tensor({2, 2}, {0, 0, 0.25, 0.75}).require_gradient();
  for (const double eps : {0.0, 1e-9}) {
    const Tensor<double> y = renormalize(gate, {}, eps);
    CHECK(y.to_vector()[0] == 0);
    CHECK(y.to_vector()[1] == 0);
    CHECK(y.to_vector()[3] == doctest::Approx(0.75));
  }
  // Ten tokens fill expert 0; the others have it too, and a second choice that underflows.
  Conventions rules = Conventions::deepspeed_top2();
  rules.noise = RouterNoise::none;
  std::vector<float> z;
  for (int n = 0; n < 16; ++n) z.insert(z.end(), {200.f, 0.f, -1.f, -2.f});
  const Routing<float> r = route(Tensor<float>({16, 4}, z), {2, {1, 1}, rules}, {});
  for (const float g : r.gate.to_vector()) CHECK((g >= 0 && g <= 1));
}

TEST_CASE("conventions: a choice that does not ask for a slot counts in the load all the same") {
  Conventions rules = Conventions::mesh_top2();
  rules.balance = BalanceRule::khot_over_k;
  const Tensor<double> z = check::normal({24, 4}, 3);
  const Rng rng(11);
  const Routing<double> r = route(z, {2, {5, 4}, rules}, {}, &rng);
  std::int32_t load = 0;
  for (const std::int32_t each : r.load.to_vector()) load += each;
  CHECK(load == 48);
  Replay<double>::Choices choices{r.expert, r.slot};
  const Routing<double> again = route(z, {2, {5, 4}, rules}, {}, &rng, &choices);
  CHECK(balance_loss(again, rules.balance).item() == balance_loss(r, rules.balance).item());
}

TEST_CASE("conventions: numbers of capacity that make no capacity are refused") {
  Conventions rules;
  rules.capacity_multiple = 0;
  CHECK_THROWS_WITH_AS(expert_capacity(rules, {1, 1}, 1, 8, 2),
                       "widenet: expert_capacity: capacity_multiple, capacity_minimum and "
                       "capacity_slots must be positive; got 0, 1, 64", ValueError);
  for (Index Conventions::*const number :
       {&Conventions::capacity_multiple, &Conventions::capacity_slots}) {
    rules = Conventions();
    rules.capacity = CapacityRule::absolute;
    rules.*number = std::numeric_limits<Index>::max();
    CHECK_THROWS_AS(expert_capacity(rules, {1, 1}, 1, 8, 2), ValueError);
  }
}
