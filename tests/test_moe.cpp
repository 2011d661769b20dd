// Tests for chapter 10: capacity, routing, balance loss, dispatch, experts, combine.
#include "check.hpp"

#include <algorithm>
#include <limits>

using namespace widenet;

namespace {

using Ints = std::vector<std::int32_t>;

constexpr double unbounded = std::numeric_limits<double>::infinity();

Tensor<double> log_of(const Shape& shape, std::vector<double> p) {
  for (double& value : p) value = std::log(value);
  return {shape, p};
}

// Eight tokens, four experts: expert 0 is in demand. The probabilities of the fixture that the
// priority rules of public implementations have been compared on.
Tensor<double> busy_logits() {
  return log_of({8, 4}, {.40, .30, .20, .10, .45, .25, .20, .10, .50, .20, .15, .15,
                         .35, .45, .10, .10, .30, .10, .55, .05, .60, .05, .05, .30,
                         .48, .32, .12, .08, .25, .15, .05, .55});
}

// Four tokens, three experts, from V-MoE's unit test; token 1 has an exact tie, token 3 a zero.
Tensor<double> vmoe_logits() {
  return log_of({4, 3}, {.5, .4, .1, .3, .3, .4, .1, .2, .7, .8, .2, 0});
}

RouteOptions options(Index K, Rational factor = {6, 5}, Priority priority = Priority::token_major) {
  RouteOptions o;
  o.K = K;
  o.capacity_factor = factor;
  o.conventions.priority = priority;
  return o;
}

// "4:0 6:1": token 4 lost expert 0, token 6 lost expert 1.
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

// The tokens that lost everything.
template <class T>
std::vector<Index> lost_tokens(const Routing<T>& r) {
  const std::vector<bool> dropped = r.dropped();
  std::vector<Index> tokens;
  for (Index n = 0; n < r.N; ++n) {
    bool lost = true;
    for (Index k = 0; k < r.K; ++k) lost = lost && dropped[static_cast<std::size_t>(n * r.K + k)];
    if (lost) tokens.push_back(n);
  }
  return tokens;
}

// Slots of an expert are filled from 0 without gaps, each by the choice that says so.
template <class T>
void check_consistent(const Routing<T>& r) {
  const Ints expert = r.expert.to_vector(), slot = r.slot.to_vector();
  const Ints choice = r.choice_of_slot.to_vector();
  Ints load(static_cast<std::size_t>(r.E)), kept(static_cast<std::size_t>(r.E)), filled;
  filled.assign(choice.size(), -1);
  for (std::size_t i = 0; i < expert.size(); ++i) {
    REQUIRE((0 <= expert[i] && expert[i] < r.E && -1 <= slot[i] && slot[i] < r.C));
    const std::size_t K = static_cast<std::size_t>(r.K);
    for (std::size_t j = i / K * K; j < i; ++j) CHECK(expert[j] != expert[i]);
    ++load[static_cast<std::size_t>(expert[i])];
    if (slot[i] < 0) continue;
    ++kept[static_cast<std::size_t>(expert[i])];
    filled[static_cast<std::size_t>(expert[i] * r.C + slot[i])] = static_cast<std::int32_t>(i);
  }
  CHECK(choice == filled);
  CHECK(r.load.to_vector() == load);
  CHECK(r.kept.to_vector() == kept);
  for (Index e = 0; e < r.E; ++e)
    for (Index c = 0; c < r.C; ++c)
      CHECK((choice[static_cast<std::size_t>(e * r.C + c)] >= 0) ==
            (c < kept[static_cast<std::size_t>(e)]));
}

// Five tokens choose two of three experts, each with two slots: ten choices for six slots, so four
// are dropped. First choices are served before second choices. Token 2 loses both of its choices.
Replay<double>::Choices tight_choices() {
  return {Buffer<std::int32_t>(Ints{0, 1, 0, 2, 0, 1, 1, 2, 2, 0}),
          Buffer<std::int32_t>(Ints{0, 1, 1, 1, -1, -1, 0, -1, 0, -1})};
}
Routing<double> tight_routing() {
  const auto choices = tight_choices();
  return route(check::normal({5, 3}, 0), options(2, {3, 5}), {}, nullptr, &choices);
}

// Thirteen tokens, five experts; expert 3 is so unattractive that nobody chooses it.
Tensor<double> lopsided_logits() {
  std::vector<double> z = check::normal({13, 5}, 40).to_vector();
  for (std::size_t n = 0; n < 13; ++n) z[n * 5] += 1, z[n * 5 + 3] -= 9;
  return {Shape{13, 5}, z};
}

template <class E, class F>
void check_throws(F f, const char* text) {
  CHECK_THROWS_WITH_AS(f(), text, E);
}

}  // namespace

TEST_CASE("capacity: the integers of other implementations, E = 4, K = 2, factor 6/5") {
  const std::vector<Index> N = {16, 49, 50, 64, 1576};
  const std::vector<Index> floor = {9, 29, 30, 38, 945};    // the paper, Megablocks
  const std::vector<Index> ceil = {10, 30, 30, 39, 946};    // Colossal-AI 2022
  const std::vector<Index> top1 = {4, 14, 15, 19, 472};     // labml, with K = 1
  const std::vector<Index> author = {8, 28, 29, 37, 944};   // one slot less than they allocate
  for (std::size_t i = 0; i < N.size(); ++i) {
    CHECK(expert_capacity({6, 5}, 2, N[i], 4) == floor[i]);
    CHECK(expert_capacity({6, 5}, 2, N[i], 4, Rounding::ceil) == ceil[i]);
    CHECK(expert_capacity({6, 5}, 1, N[i], 4) == top1[i]);
    RouteOptions o = options(2);
    o.conventions.unusable_slots = 1;
    const Routing<float> r = route(Tensor<float>::zeros({N[i], 4}), o);  // all choose 0 and 1
    CHECK(r.C == floor[i]);
    CHECK(r.kept.to_vector()[0] == author[i]);
    CHECK(r.kept.to_vector()[1] == author[i]);
  }
}

TEST_CASE("capacity: C is the largest integer with C E <= factor K N, but at least 1") {
  for (const Rational factor : {Rational{6, 5}, Rational{5, 4}, Rational{1, 1}, Rational{2, 3}})
    for (Index E = 1; E <= 7; ++E)
      for (Index K = 1; K <= E; ++K)
        for (Index N = 1; N <= 60; ++N) {
          const Index above = factor.numerator * K * N, below = factor.denominator * E;
          const Index low = expert_capacity(factor, K, N, E);
          const Index high = expert_capacity(factor, K, N, E, Rounding::ceil);
          const bool low_is_right =
              (low * below <= above && above < (low + 1) * below) || (low == 1 && above < below);
          REQUIRE(low_is_right);
          REQUIRE((above <= high * below && (high - 1) * below < above));
        }
  CHECK(expert_capacity({6, 5}, 1, 1, 8) == 1);
}

TEST_CASE("capacity: without the division by E, as the paper prints it, nothing is ever dropped") {
  const Tensor<double> all_want_0_and_1 = Tensor<double>::zeros({11, 4});
  const Routing<double> printed = route(all_want_0_and_1, options(2, {6 * 4, 5}));
  CHECK(printed.C == 11);  // 26 slots, but no expert gets a token twice
  CHECK(printed.dropped_fraction() == 0);
  const Routing<double> divided = route(all_want_0_and_1, options(2));
  CHECK(divided.C == 6);
  CHECK(divided.dropped_fraction() == 1 - 12.0 / 22);
}

TEST_CASE("capacity: an expert always has a slot, unless the only one is unusable") {
  RouteOptions o = options(1, {1, 100});
  CHECK(dropped_pairs(route(Tensor<double>::zeros({3, 2}), o)) == "1:0 2:0");
  o.conventions.unusable_slots = 1;
  CHECK(dropped_pairs(route(Tensor<double>::zeros({3, 2}), o)) == "0:0 1:0 2:0");
}

TEST_CASE("router_logits: known values, one chain of fused multiply-adds, gradients, errors") {
  check::close(router_logits(check::tensor({2, 3}, {1, 2, 3, 4, 5, 6}),
                             check::tensor({3, 2}, {1, 0, 0, 1, 2, -1})),
               {7, -1, 16, -1});

  const Index N = 67, D = 137, E = 5;
  const auto check_chain = [=](auto zero) {
    using T = decltype(zero);
    const auto x = check::normal<T>({N, D}, 0), w = check::normal<T>({D, E}, 1);
    const std::vector<T> a = x.to_vector(), b = w.to_vector();
    std::vector<T> expected;
    for (Index n = 0; n < N; ++n)
      for (Index e = 0; e < E; ++e) {
        T z = 0;
        for (Index d = 0; d < D; ++d)
          z = std::fma(a[static_cast<std::size_t>(n * D + d)],
                       b[static_cast<std::size_t>(d * E + e)], z);
        expected.push_back(z);
      }
    CHECK(check::same_bits(router_logits(x, w).to_vector(), expected));
  };
  check_chain(0.0f);
  check_chain(0.0);

  const auto x = check::normal({7, 5}, 2), w = check::normal({5, 3}, 3);
  check::gradients([&] { return router_logits(x, w); }, {x, w});
  check_throws<ShapeError>(
      [&] { router_logits(x, x); },
      "widenet: router_logits: x (N, D) and w (D, E) must share D; got (7, 5), (7, 5)");
}

TEST_CASE("router_probabilities: softmax with noise inside, gradients, errors") {
  const auto z = check::tensor({1, 2}, {0, 0});
  const Buffer<double> noise(std::vector<double>{std::log(3.0), 0});
  check::close(router_probabilities(z), {.5, .5});
  check::close(router_probabilities(z, noise), {.75, .25});

  const auto u = check::normal({7, 5}, 4);
  const auto shake = check::normal({7, 5}, 5);
  check::gradients([&] { return router_probabilities(u); }, {u});
  check::gradients([&] { return router_probabilities(u, shake.value()); }, {u});
  check_throws<ShapeError>([&] { router_probabilities(u, noise); },
                           "widenet: router_probabilities: logits must be (N, E) and noise as "
                           "large; got (7, 5), 2 values");
}

TEST_CASE("select_gates: known values, gradients, errors") {
  const auto p = check::tensor({2, 3}, {.5, .3, .2, .1, .2, .7});
  const Buffer<std::int32_t> expert(Ints{0, 1, 2, 1});
  check::close(select_gates(p, expert, 2), {.5, .3, .7, .2});

  const auto u = check::normal({13, 5}, 6);
  for (const Index K : {1, 2}) {
    const Routing<double> r = route(lopsided_logits(), options(K));
    check::gradients([&] { return select_gates(u, r.expert, K); }, {u});
  }
  check_throws<ShapeError>([&] { select_gates(p, expert, 1); },
                           "widenet: select_gates: there must be N * K = 2 choices; got 4");
  check_throws<ShapeError>([&] { select_gates(Tensor<double>::zeros({4}), expert, 1); },
                           "widenet: select_gates: p must be (N, E); got (4)");
}

TEST_CASE("route: softmax comes before top-K, and gates are not renormalised") {
  const Routing<double> r = route(log_of({1, 4}, {.1, .5, .15, .25}), options(2));
  CHECK(r.expert.to_vector() == Ints{1, 3});
  check::close(r.gate, {.5, .25});
  check::close(route(log_of({1, 4}, {.1, .5, .15, .25}), options(1)).gate, {.5});

  const Routing<double> busy = route(busy_logits(), options(2));  // token 3, whatever was dropped
  CHECK(std::fabs(busy.gate.to_vector()[6] - .45) < 1e-12);
  CHECK(std::fabs(busy.gate.to_vector()[7] - .35) < 1e-12);
}

TEST_CASE("route: with K = 1 the gate trains the router") {
  const auto z = check::tensor({1, 2}, {std::log(3.0), 0}).require_gradient();  // p = 3/4, 1/4
  sum(route(z, options(1)).gate).backward();
  check::close(z.gradient().to_vector(), {3.0 / 16, -3.0 / 16});  // p0 (1 - p0), -p0 p1
}

TEST_CASE("route: ties go to the lower index") {
  const auto chosen = [](Index E, const std::vector<double>& z, Index K) {
    return route(check::tensor({1, E}, z), options(K)).expert.to_vector();
  };
  CHECK(chosen(5, {1, 3, 3, 0, 3}, 2) == Ints{1, 2});
  CHECK(chosen(5, {1, 3, 3, 0, 3}, 4) == Ints{1, 2, 4, 0});
  CHECK(chosen(4, {0, 0, 0, 0}, 3) == Ints{0, 1, 2});
  CHECK(chosen(3, {-unbounded, 0, -unbounded}, 2) == Ints{1, 0});  // of probability 0, too
  CHECK(chosen(3, {-2000, 0, -1000}, 2) == Ints{1, 0});          // they underflow to the same
  const std::vector<double> same(67, 2.5);
  const Ints many = chosen(67, same, 67);
  for (std::size_t k = 0; k < many.size(); ++k) CHECK(many[k] == static_cast<std::int32_t>(k));
}

TEST_CASE("route: noise takes part in the choice and in the probabilities") {
  const auto z = check::tensor({2, 2}, {1, 0, 1, 0});
  const Routing<double> r =
      route(z, options(1), Buffer<double>(std::vector<double>{0, 0, 0, 1 + std::log(3.0)}));
  CHECK(r.expert.to_vector() == Ints{0, 1});
  check::close({r.gate.to_vector()[1]}, {.75});
  check::close(r.logits, {1, 0, 1, 0});
}

TEST_CASE("route: K = E takes every expert, best first") {
  const Routing<double> r = route(busy_logits(), options(4));
  check_consistent(r);
  CHECK(r.load.to_vector() == Ints{8, 8, 8, 8});
  const std::vector<double> gate = r.gate.to_vector();
  for (std::size_t i = 0; i < gate.size(); ++i)
    if (i % 4) CHECK(gate[i] <= gate[i - 1]);
  CHECK(r.dropped_fraction() == 0);  // floor(6/5 * 4 * 8 / 4) = 9, but 8 tokens need only 8
  CHECK(r.C == 8);
}

TEST_CASE("route: what a routing holds") {
  const Routing<double> r = route(busy_logits(), options(2));
  CHECK(r.N == 8);
  CHECK(r.E == 4);
  CHECK(r.K == 2);
  CHECK(r.C == 4);
  CHECK(r.expert.to_vector() == Ints{0, 1, 0, 1, 0, 1, 1, 0, 2, 0, 0, 3, 0, 1, 3, 0});
  CHECK(r.slot.to_vector() == Ints{0, 0, 1, 1, 2, 2, 3, 3, 0, -1, -1, 0, -1, -1, 1, -1});
  CHECK(r.choice_of_slot.to_vector() ==
        Ints{0, 2, 4, 7, 1, 3, 5, 6, 8, -1, -1, -1, 11, 14, -1, -1});
  CHECK(r.load.to_vector() == Ints{8, 5, 1, 2});
  CHECK(r.kept.to_vector() == Ints{4, 4, 1, 2});
  check::close(r.importance.to_vector(), {3.33, 1.82, 1.42, 1.43});
  CHECK(r.dropped_fraction() == 1 - 11.0 / 16);
  CHECK(r.noise.size() == 0);
}

TEST_CASE("route: who is dropped, under each rule") {
  struct Row {
    Priority priority;
    Rounding rounding;
    Index unusable, C;
    const char* dropped;
    std::vector<Index> lost;
  };
  const std::vector<Row> rows = {
      {Priority::token_major, Rounding::floor, 0, 4, "4:0 5:0 6:0 6:1 7:0", {6}},
      {Priority::token_major, Rounding::floor, 1, 4, "3:1 3:0 4:0 5:0 6:0 6:1 7:0", {3, 6}},
      {Priority::choice_major, Rounding::floor, 0, 4, "3:0 4:0 6:0 6:1 7:0", {6}},
      {Priority::choice_major, Rounding::ceil, 0, 5, "3:0 4:0 7:0", {}},
      {Priority::batch_priority, Rounding::floor, 0, 4, "0:0 0:1 3:0 4:0 7:0", {0}},
      {Priority::highest_gate, Rounding::floor, 0, 4, "0:0 2:1 3:0 4:0 7:0", {}}};
  for (const Row& row : rows) {
    RouteOptions o = options(2, {6, 5}, row.priority);
    o.conventions.capacity_rounding = row.rounding;
    o.conventions.unusable_slots = row.unusable;
    const Routing<double> r = route(busy_logits(), o);
    INFO("priority ", static_cast<int>(row.priority), ", unusable ", row.unusable);
    CHECK(r.C == row.C);
    CHECK(dropped_pairs(r) == row.dropped);
    CHECK(lost_tokens(r) == row.lost);
    check_consistent(r);
  }
}

TEST_CASE("route: slots are given in the order of priority") {
  const auto slots = [](Priority priority) {
    return route(busy_logits(), options(2, {6, 5}, priority)).slot.to_vector();
  };
  CHECK(slots(Priority::choice_major) ==
        Ints{0, 1, 1, 2, 2, 3, 0, -1, 0, -1, 3, 1, -1, -1, 0, -1});
  // Expert 0 serves tokens 5, 2, 6, 1 with .60, .50, .48, .45.
  const Ints highest = slots(Priority::highest_gate);
  CHECK(highest[10] == 0);
  CHECK(highest[4] == 1);
  CHECK(highest[12] == 2);
  CHECK(highest[2] == 3);
}

TEST_CASE("route: random priority is reproducible, fair to no one, and needs a random stream") {
  const RouteOptions o = options(2, {6, 5}, Priority::random);
  const auto slots = [&](const Rng& rng) {
    const Routing<double> r = route(busy_logits(), o, {}, &rng);
    check_consistent(r);
    CHECK(r.kept.to_vector() == Ints{4, 4, 1, 2});
    return r.slot.to_vector();
  };
  CHECK(slots(Rng(1)) == slots(Rng(1)));
  std::vector<Ints> seen;
  for (std::uint64_t seed = 0; seed < 8; ++seed) seen.push_back(slots(Rng(seed)));
  std::sort(seen.begin(), seen.end());
  CHECK(std::unique(seen.begin(), seen.end()) - seen.begin() >= 7);
  const Routing<double> evaluated = route(busy_logits(), o);  // in order of tokens
  CHECK(dropped_pairs(evaluated) == dropped_pairs(route(busy_logits(), options(2))));
}

TEST_CASE("route: NaN goes on as NaN, without a crash, under every rule") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Priority priority : {Priority::token_major, Priority::choice_major,
                                  Priority::batch_priority, Priority::highest_gate}) {
    std::vector<double> z = busy_logits().to_vector();
    z[4 * 4 + 2] = nan, z[6 * 4] = unbounded;  // tokens 4 and 6
    for (int repeat = 0; repeat < 3; ++repeat) {
      INFO("priority ", static_cast<int>(priority), ", repeat ", repeat);
      { const Buffer<std::int32_t> junk(Ints(16, 1 << 20)); }  // what an unwritten buffer may hold
      const Routing<double> r = route(check::tensor({8, 4}, z), options(2, {6, 5}, priority));
      check_consistent(r);
      const std::vector<double> gate = r.gate.to_vector();
      for (std::size_t i = 0; i < gate.size(); ++i)
        CHECK(std::isnan(gate[i]) == (i / 2 == 4 || i / 2 == 6));
      CHECK(std::isnan(balance_loss(r).item()));
      std::fill(z.begin(), z.end(), repeat == 0 ? nan : -unbounded);
      const Routing<double> all = route(check::tensor({8, 4}, z), options(2, {6, 5}, priority));
      check_consistent(all);
      CHECK(all.load.to_vector() == Ints{8, 8, 0, 0});
      z = busy_logits().to_vector();
      z[4 * 4 + 2] = nan, z[6 * 4] = unbounded;
    }
  }
}

TEST_CASE("route: a replay takes choices as they are") {
  const Routing<double> r = tight_routing();
  CHECK(r.C == 2);
  CHECK(dropped_pairs(r) == "2:0 2:1 3:2 4:0");
  CHECK(lost_tokens(r) == std::vector<Index>{2});
  CHECK(r.load.to_vector() == Ints{4, 3, 3});
  CHECK(r.kept.to_vector() == Ints{2, 2, 2});
  CHECK(r.choice_of_slot.to_vector() == Ints{0, 2, 6, 1, 8, 3});
  check_consistent(r);
  CHECK(r.dropped_fraction() == 1 - 6.0 / 10);

  for (const Priority priority : {Priority::token_major, Priority::batch_priority}) {
    const RouteOptions o = options(2, {6, 5}, priority);
    const Routing<double> own = route(busy_logits(), o);
    const Replay<double> replay = Replay<double>::of({own});
    const Routing<double> again = route(busy_logits(), o, {}, nullptr, &replay.choices[0]);
    CHECK(again.choice_of_slot.to_vector() == own.choice_of_slot.to_vector());
    CHECK(again.load.to_vector() == own.load.to_vector());
    CHECK(again.kept.to_vector() == own.kept.to_vector());
    CHECK(check::same_bits(again.gate.to_vector(), own.gate.to_vector()));
  }
}

TEST_CASE("route: a replay is checked") {
  const auto z = check::normal({2, 3}, 0);
  const auto replay = [&](const Ints& expert, const Ints& slot) {
    const Replay<double>::Choices choices{Buffer<std::int32_t>(expert), Buffer<std::int32_t>(slot)};
    return route(z, options(1, {3, 1}), {}, nullptr, &choices);  // C = 2
  };
  CHECK(dropped_pairs(replay({1, 1}, {1, 0})) == "");
  check_throws<ShapeError>([&] { replay({0}, {0, 0}); },
                           "widenet: route: a replay must have N * K = 2 choices; got 1 experts, 2 "
                           "slots");
  for (const std::int32_t expert : {-1, 3})
    check_throws<ValueError>([&] { replay({0, expert}, {0, 0}); },
                             ("widenet: route: replayed choices must have expert in [0, 3) and "
                              "slot in [-1, 2); got expert " + std::to_string(expert) +
                              ", slot 0 for choice 1").c_str());
  for (const std::int32_t slot : {-2, 2})
    check_throws<ValueError>([&] { replay({slot < 0 ? 1 : 0, 0}, {0, slot}); },
                             ("widenet: route: replayed choices must have expert in [0, 3) and "
                              "slot in [-1, 2); got expert 0, slot " + std::to_string(slot) +
                              " for choice 1").c_str());
  check_throws<ValueError>([&] { replay({1, 1}, {0, 0}); },
                           "widenet: route: no two replayed choices may share a slot; got expert "
                           "1, slot 0 twice");
  // The experts work on their first slots only, so a gap would lose a choice without a word.
  CHECK_THROWS_AS(replay({1, 0}, {1, 0}), ValueError);
}

TEST_CASE("route: errors") {
  check_throws<ShapeError>([] { route(check::normal({6}, 0), options(1)); },
                           "widenet: route: logits must be (N, E); got (6)");
  for (const Index K : {0, 5})
    check_throws<ValueError>([&] { route(busy_logits(), options(K)); },
                             ("widenet: route: 1 <= K <= E and N >= 1 must hold; got K = " +
                              std::to_string(K) + ", E = 4, N = 8").c_str());
  check_throws<ValueError>([] { route(Tensor<double>::zeros({0, 4}), options(1)); },
                           "widenet: route: 1 <= K <= E and N >= 1 must hold; got K = 1, E = 4, "
                           "N = 0");
  check_throws<ValueError>([] { expert_capacity({0, 5}, 2, 8, 4); },
                           "widenet: expert_capacity: factor, K, N and E must be positive; got "
                           "0/5, 2, 8, 4");
  const Index big = Index(1) << 40;
  check_throws<ValueError>([=] { expert_capacity({big, 1}, 2, big, 4); },
                           "widenet: expert_capacity: products and slots must not exceed 2^53; got "
                           "1099511627776/1, 2, 1099511627776, 4");
  CHECK_THROWS_AS(expert_capacity({1, big}, 2, 8, big), ValueError);
  CHECK(expert_capacity({1, 1}, 1, Index(1) << 53, 1) == Index(1) << 53);
  RouteOptions o = options(1, {1, 8});  // with more slots than there are choices would leave them
  o.conventions.unusable_slots = -3;
  check_throws<ValueError>([&] { route(busy_logits(), o); },
                           "widenet: route: unusable_slots must not be negative; got -3");
}

TEST_CASE("router_noise: deviation 1/E or 1/E^2, from the given stream only") {
  const Index N = 20011, E = 7;
  const auto moments = [](const std::vector<double>& x) {
    double mean = 0, square = 0;
    for (const double value : x) mean += value, square += value * value;
    const double n = static_cast<double>(x.size());
    return std::make_pair(mean / n, std::sqrt(square / n));
  };
  const double count = static_cast<double>(N * E);
  for (const auto& law : {std::make_pair(RouterNoise::one_over_experts, 1.0 / 7),
                          std::make_pair(RouterNoise::one_over_experts_squared, 1.0 / 49)}) {
    const Buffer<double> noise = router_noise<double>(law.first, N, E, Rng(3));
    const auto [mean, deviation] = moments(noise.to_vector());
    CHECK(std::fabs(mean) < 5 * law.second / std::sqrt(count));
    CHECK(std::fabs(deviation / law.second - 1) < 5 / std::sqrt(2 * count));
  }
  CHECK(router_noise<double>(RouterNoise::none, N, E, Rng(3)).size() == 0);
  const auto draw = [](const Rng& rng) {
    return router_noise<float>(RouterNoise::one_over_experts, 5, 4, rng).to_vector();
  };
  CHECK(draw(Rng(3)) == draw(Rng(3)));
  CHECK(draw(Rng(3)) != draw(Rng(4)));
  CHECK(draw(Rng(3).at_block(1)) != draw(Rng(3).at_block(2)));
  const auto z = check::normal({8, 4}, 0);  // zero noise is no noise
  CHECK(check::same_bits(route(z, options(2), Buffer<double>::zeros(32)).gate.to_vector(),
                         route(z, options(2)).gate.to_vector()));
}

TEST_CASE("balance_loss: every rule, to the digit of other implementations") {
  const auto loss = [](const Tensor<double>& z, BalanceRule rule, Priority priority, Index K) {
    return balance_loss(route(z, options(K, {6, 5}, priority)), rule).item();
  };
  struct Row {
    BalanceRule rule;
    double expected;
    double tolerance;  // half of the last digit that is known
  };
  const std::vector<Row> rows = {{BalanceRule::khot_over_k, 1.250625, 1e-12},
                                 {BalanceRule::khot_sum, 2.50125, 1e-12},
                                 {BalanceRule::switch_top1, 1.3325, 1e-12},
                                 {BalanceRule::after_drop, 1.130909, 5e-7},
                                 {BalanceRule::after_drop_both, 0.822479, 5e-7},
                                 {BalanceRule::importance, .1539125, 1e-12},
                                 {BalanceRule::importance_unbiased, .2052167, 5e-8}};
  for (const Row& row : rows) {
    INFO("rule ", static_cast<int>(row.rule));
    const double value = loss(busy_logits(), row.rule, Priority::choice_major, 2);
    CHECK(std::fabs(value - row.expected) <= row.tolerance);
  }
  const auto vmoe = [&](BalanceRule rule) {
    return loss(vmoe_logits(), rule, Priority::token_major, 2);
  };
  check::close({vmoe(BalanceRule::switch_top1)}, {1.0875});
  check::close({vmoe(BalanceRule::importance)}, {.03875});
  check::close({vmoe(BalanceRule::importance_unbiased)}, {.058125});
  check::close({vmoe(BalanceRule::khot_over_k)}, {1.0125});  // .95625 if ties went up
}

TEST_CASE("balance_loss: what perfect balance gives") {
  // Token n prefers experts n and n + 1 modulo 4, both equally.
  std::vector<double> z(16, 0.0);
  for (std::size_t n = 0; n < 4; ++n) z[n * 4 + n] = z[n * 4 + (n + 1) % 4] = 2;
  const auto loss = [&](BalanceRule rule) {
    return balance_loss(route(check::tensor({4, 4}, z), options(2, {2, 1})), rule).item();
  };
  check::close({loss(BalanceRule::khot_over_k), loss(BalanceRule::khot_sum),
                loss(BalanceRule::after_drop), loss(BalanceRule::importance),
                loss(BalanceRule::importance_unbiased)},
               {1, 2, 1, 0, 0});
  // Router probabilities that are all equal give 1, however unequal the load is.
  check::close(balance_loss(route(Tensor<double>::zeros({5, 4}), options(2))), {1});
}

TEST_CASE("balance_loss: gradients under every rule, and none through the fractions of choices") {
  for (const BalanceRule rule :
       {BalanceRule::khot_over_k, BalanceRule::khot_sum, BalanceRule::switch_top1,
        BalanceRule::after_drop, BalanceRule::after_drop_both, BalanceRule::importance,
        BalanceRule::importance_unbiased}) {
    const auto z = lopsided_logits();
    const auto f = [&](const Replay<double>& replay) {
      const Routing<double> r = route(z, options(2), {}, nullptr,
                                      replay.choices.empty() ? nullptr : &replay.choices[0]);
      return Routed{balance_loss(r, rule), {r}};
    };
    const GradReport report = gradcheck(f, {z});
    INFO("rule ", static_cast<int>(rule), ": ", report.where);
    CHECK(report.max_error < 1e-7);
  }
  // dl/dp[n, e] = E f[e] / N with the load 8, 5, 1, 2 of 16 choices: it is the same for all tokens.
  const Routing<double> r = route(busy_logits().require_gradient(), options(2));
  r.probabilities.require_gradient();
  balance_loss(r).backward();
  std::vector<double> expected;
  for (int n = 0; n < 8; ++n)
    for (const double load : {8, 5, 1, 2}) expected.push_back(4 * (load / 16) / 8);
  check::close(r.probabilities.gradient().to_vector(), expected);
}

TEST_CASE("dispatch: known values, gradients, errors") {
  const Routing<double> r = tight_routing();
  const auto x = check::tensor({5, 2}, {1, -1, 2, -2, 3, -3, 4, -4, 5, -5});
  check::close(dispatch(x, r), {1, -1, 2, -2, 4, -4, 1, -1, 5, -5, 2, -2});
  const Routing<double> roomy = route(Tensor<double>::zeros({1, 3}), options(1, {3, 1}));
  check::close(dispatch(check::tensor({1, 2}, {7, 8}), roomy), {7, 8, 0, 0, 0, 0});

  const auto u = check::normal({13, 7}, 10);
  for (const Index K : {1, 2}) {
    const Routing<double> tight = route(lopsided_logits(), options(K));
    REQUIRE(tight.dropped_fraction() > 0);
    REQUIRE(tight.load.to_vector()[3] == 0);
    check::gradients([&] { return dispatch(u, tight); }, {u});
    const auto slots = dispatch(u.require_gradient(), tight);
    const std::vector<double> before = slots.to_vector();
    slots.forget();
    CHECK(check::same_bits(slots.to_vector(), before));
  }
  check_throws<ShapeError>([&] { dispatch(u, r); },
                           "widenet: dispatch: x must be (N, D) with N = 5; got (13, 7)");
}

TEST_CASE("experts: known values, an empty expert, gradients, errors") {
  // Two tokens choose experts 0 and 2 of three, each with two slots; expert 1 stays empty.
  const Replay<double>::Choices choices{Buffer<std::int32_t>(Ints{0, 2}),
                                        Buffer<std::int32_t>(Ints{0, 0})};
  const Routing<double> r =
      route(Tensor<double>::zeros({2, 3}), options(1, {3, 1}), {}, nullptr, &choices);
  REQUIRE(r.C == 2);
  const auto x = check::tensor({3, 2, 1}, {3, 99, 99, 99, -2, 99});  // 99 stands in empty slots
  const auto w1 = check::tensor({3, 1, 2}, {1, -1, 1, 1, 2, .5});
  const auto b1 = check::tensor({3, 2}, {0, 1, 5, 5, 1, 0});
  const auto w2 = check::tensor({3, 2, 1}, {1, 10, 1, 1, 2, 3});
  const auto b2 = check::tensor({3, 1}, {100, 200, 300});
  const auto by_tanh = [](double h) {
    return h / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (h + 0.044715 * h * h * h)));
  };
  const auto by_erf = [](double h) { return h / 2 * (1 + std::erf(h / std::sqrt(2.0))); };
  for (const Gelu form : {Gelu::tanh, Gelu::erf}) {
    const auto g = [&](double h) { return form == Gelu::tanh ? by_tanh(h) : by_erf(h); };
    check::close(experts(x, w1, b1, w2, b2, r, form),
                 {g(3) + 10 * g(-2) + 100, 0, 0, 0, 2 * g(-3) + 3 * g(-1) + 300, 0});
  }

  const Index E = 5, D = 7, F = 11;
  for (const Index K : {1, 2})
    for (const Gelu form : {Gelu::tanh, Gelu::erf}) {
      const Routing<double> tight = route(lopsided_logits(), options(K));
      REQUIRE(tight.dropped_fraction() > 0);
      REQUIRE(tight.load.to_vector()[3] == 0);
      const auto u = check::normal({E, tight.C, D}, 11), v1 = check::normal({E, D, F}, 12);
      const auto c1 = check::normal({E, F}, 13), v2 = check::normal({E, F, D}, 14);
      const auto c2 = check::normal({E, D}, 15);
      const auto f = [&] { return experts(u, v1, c1, v2, c2, tight, form); };
      check::gradients(f, {u, v1, c1, v2, c2});
      for (const auto& parameter : {v1, c1, v2, c2}) {
        const std::vector<double> d = parameter.gradient().to_vector();
        const auto size = static_cast<std::ptrdiff_t>(d.size()) / E;
        CHECK(std::all_of(d.begin() + 3 * size, d.begin() + 4 * size,
                          [](double value) { return value == 0; }));
      }
    }
  check_throws<ShapeError>(
      [&] { experts(w1, w1, b1, w2, b2, r); },
      "widenet: experts: x must be (E, C, D) with E = 3, C = 2; got (3, 1, 2)");
  check_throws<ShapeError>(
      [&] { experts(x, w2, b1, w2, b2, r); },
      "widenet: experts: w1 (E, D, F), b1 (E, F), w2 (E, F, D), b2 (E, D) must fit E = 3, D = 1; "
      "got (3, 2, 1), (3, 2), (3, 2, 1), (3, 1)");
}

TEST_CASE("experts: dropout belongs to the choice, not to its slot") {
  const Index E = 5, D = 7, F = 11, K = 2;
  const Routing<double> r = route(lopsided_logits(), options(K));
  const auto x = check::normal({E, r.C, D}, 16), w1 = check::normal({E, D, F}, 17);
  const auto b1 = check::normal({E, F}, 18), w2 = check::normal({E, F, D}, 19);
  const auto b2 = check::normal({E, D}, 20);
  const DropoutMask<double> none{Rng(5), 0}, hidden{Rng(5).at_block(1), .3}, output{Rng(5), .4};

  const std::vector<double> plain = experts(x, w1, b1, w2, b2, r).to_vector();
  const std::vector<double> masked =
      experts(x, w1, b1, w2, b2, r, Gelu::tanh, {none, output, true}).to_vector();
  const Ints choice = r.choice_of_slot.to_vector();
  std::vector<double> expected;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const std::int32_t nk = choice[i / 7];
    expected.push_back(nk < 0 ? 0 : plain[i] * output(nk * D + static_cast<Index>(i % 7)));
  }
  check::close(masked, expected);

  const ExpertDropout<double> both{hidden, output, true};
  CHECK(experts(x, w1, b1, w2, b2, r, Gelu::tanh, both).to_vector() != masked);
  for (const Gelu form : {Gelu::tanh, Gelu::erf})
    check::gradients([&] { return experts(x, w1, b1, w2, b2, r, form, both); },
                     {x, w1, b1, w2, b2});
}

TEST_CASE("combine: known values, gradients, errors") {
  const auto slots = check::tensor({3, 2, 1}, {1, 2, 3, 4, 5, 6});
  const auto gate = check::tensor({5, 2}, {1, 10, 1, 10, 1, 10, 1, 10, 1, 10});
  check::close(combine(slots, gate, tight_routing()), {41, 62, 0, 3, 5});

  for (const Index K : {1, 2}) {
    const Routing<double> tight = route(lopsided_logits(), options(K));
    const auto out = check::normal({5, tight.C, 7}, 21), g = check::normal({13, K}, 22);
    check::gradients([&] { return combine(out, g, tight); }, {out, g});
  }
  check_throws<ShapeError>(
      [&] { combine(gate, gate, tight_routing()); },
      "widenet: combine: slots must be (E, C, D) with E = 3, C = 2; got (5, 2)");
  check_throws<ShapeError>([&] { combine(slots, check::normal({4, 2}, 0), tight_routing()); },
                           "widenet: combine: gate must be (N, K) = (5, 2); got (4, 2)");
}

TEST_CASE("mixture of experts: gradients of all of it with frozen routing, K = 1 and K = 2") {
  const Index N = 13, D = 7, E = 5, F = 3;
  const auto x = check::normal({N, D}, 30), router = check::normal({D, E}, 31);
  const auto w1 = check::normal({E, D, F}, 32), b1 = check::normal({E, F}, 33);
  const auto w2 = check::normal({E, F, D}, 34), b2 = check::normal({E, D}, 35);
  const Buffer<double> noise = router_noise<double>(RouterNoise::one_over_experts, N, E, Rng(2));
  const check::OneThread one_thread;
  for (const Index K : {1, 2})
    for (const Priority priority : {Priority::token_major, Priority::highest_gate}) {
      const auto f = [&](const Replay<double>& replay) {
        const Routing<double> r =
            route(router_logits(x, router), options(K, {6, 5}, priority), noise, nullptr,
                  replay.choices.empty() ? nullptr : &replay.choices[0]);
        REQUIRE(r.dropped_fraction() > 0);
        const auto y = combine(experts(dispatch(x, r), w1, b1, w2, b2, r), r.gate, r);
        return Routed{x + y, {r}};
      };
      const GradReport report = gradcheck(f, {x, router, w1, b1, w2, b2});
      INFO("K = ", K, ": ", report.where, ", margin ", report.margin);
      CHECK(report.max_error < 1e-7);
    }
}

TEST_CASE("mixture of experts: nobody reads what nobody wrote") {
  // Empty slots have no values; what happens to lie there must reach neither results nor gradients.
  const Index E = 5, D = 7, F = 3;
  const Routing<double> r = route(lopsided_logits(), options(2, {5, 1}));
  REQUIRE(r.C == 13);
  const auto x = check::normal({13, D}, 41), w1 = check::normal({E, D, F}, 42);
  const auto b1 = check::normal({E, F}, 43), w2 = check::normal({E, F, D}, 44);
  const auto b2 = check::normal({E, D}, 45), g = check::normal({13, 2}, 46);
  for (const auto& input : {x, w1, b1, w2, b2, g}) input.require_gradient();
  for (const bool drops : {false, true}) {
    check::poison_memory();
    const ExpertDropout<double> drop{{Rng(5), .3}, {Rng(6), .3}, drops};
    const auto y = combine(experts(dispatch(x, r), w1, b1, w2, b2, r, Gelu::tanh, drop), g, r);
    y.backward(check::normal({13, D}, 47).value());
    std::vector<double> all = y.to_vector();
    for (const auto& input : {x, w1, b1, w2, b2, g})
      check::append(all, input.gradient().to_vector());
    CHECK(std::all_of(all.begin(), all.end(), [](double value) { return std::isfinite(value); }));
  }
}

TEST_CASE("mixture of experts: a token that lost everything passes through the residual") {
  const Routing<double> r = tight_routing();
  const auto x = check::normal({5, 7}, 36), w1 = check::normal({3, 7, 2}, 37);
  const auto b1 = check::normal({3, 2}, 38), w2 = check::normal({3, 2, 7}, 39);
  const auto b2 = check::normal({3, 7}, 40);
  const auto y = x + combine(experts(dispatch(x, r), w1, b1, w2, b2, r), r.gate, r);
  const std::vector<double> before = x.to_vector(), after = y.to_vector();
  for (std::size_t i = 0; i < before.size(); ++i) CHECK((before[i] == after[i]) == (i / 7 == 2));
}

TEST_CASE("mixture of experts: the same bits for any number of threads") {
  const Index N = 101, D = 37, E = 5, F = 41;
  const auto x = check::normal<float>({N, D}, 50), router = check::normal<float>({D, E}, 51);
  const auto w1 = check::normal<float>({E, D, F}, 52), b1 = check::normal<float>({E, F}, 53);
  const auto w2 = check::normal<float>({E, F, D}, 54), b2 = check::normal<float>({E, D}, 55);
  const auto dy = check::normal<float>({N, D}, 56);
  const Rng rng(9);
  check::same_bits_for_all_threads([&] {
    for (const auto& input : {x, router, w1, b1, w2, b2}) input.require_gradient().zero_gradient();
    const auto logits = router_logits(x, router);
    const Routing<float> r = route(
        logits, options(2), router_noise<float>(RouterNoise::one_over_experts, N, E, rng));
    const ExpertDropout<float> drop{{rng.at_block(1), .1}, {rng.at_block(2), .1}, true};
    const auto slots = experts(dispatch(x, r), w1, b1, w2, b2, r, Gelu::tanh, drop);
    const auto y = combine(slots, r.gate, r);
    const auto loss = sum(multiply(y, dy)) + 0.01 * balance_loss(r);
    loss.backward();
    std::vector<float> bits = y.to_vector();
    bits.push_back(loss.item());
    for (const auto& input : {x, router, w1, b1, w2, b2})
      check::append(bits, input.gradient().to_vector());
    return bits;
  });
  check::same_bits_for_all_threads([&] {
    std::vector<std::int32_t> slots;
    for (const Priority priority : {Priority::choice_major, Priority::batch_priority,
                                    Priority::highest_gate, Priority::random})
      check::append(slots, route(router_logits(x, router), options(2, {6, 5}, priority), {}, &rng)
                               .slot.to_vector());
    return slots;
  });
}
