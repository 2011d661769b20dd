// Tests for replay: a mismatch of the router and one of the experts are told apart.
#include "check.hpp"
#include "support/replay.hpp"

#include <map>

using namespace widenet;

namespace {

struct Case {
  explicit Case(const std::string& name)
      : file(read_safetensors("data/golden/" + name + ".safetensors")),
        about(support::read_case(name, file)) {}
  SafeTensors file;
  support::GoldenCase about;
};

template <class T>
SafeTensors dump_of(const support::GoldenResults<T>& results) {
  SafeTensors dump;
  for (const auto& r : results.values)
    dump.add("out." + r.first, results.shapes.at(r.first), r.second);
  for (const auto& r : results.integers) dump.add(r.first, results.shapes.at(r.first), r.second);
  return dump;
}

/// A run of another implementation, which sees other inputs or conventions than the case.
template <class T = double>
SafeTensors run(const Case& c, const std::function<void(SafeTensors&)>& change = {},
                const Conventions* conventions = nullptr) {
  SafeTensors file = c.file;
  if (change) change(file);
  return dump_of(support::run_golden<T>(c.about, file, conventions));
}

/// "part departs at name" for the parts that depart, and "part" for those that nothing was compared
/// in.
std::string verdict(const Case& c, const SafeTensors& dump) {
  std::string text;
  for (const support::Judged& j : support::replay_dump(c.about, c.file, dump)) {
    if (j.part == "before the router" && j.compared == 0) continue;
    if (j.compared == 0) text += j.part + ": unknown. ";
    if (j.departs()) text += j.part + ": " + j.name + ". ";
  }
  return text;
}

template <class V>
std::function<void(SafeTensors&)> changed(const std::string& name,
                                          const std::function<void(std::vector<V>&)>& change) {
  return [name, change](SafeTensors& file) {
    std::vector<V> values = file.values<V>(name);
    change(values);
    const Shape shape = file.at(name).shape;
    file.tensors.erase(name);
    file.add(name, shape, values);
  };
}

SafeTensors edited(SafeTensors dump, const std::function<void(SafeTensors&)>& change) {
  change(dump);
  return dump;
}

const auto swap_experts = [](std::vector<double>& w) {
  std::rotate(w.begin(), w.begin() + static_cast<std::ptrdiff_t>(w.size() / 4), w.end());
};
const std::string fc1 = "in.shared.moe.experts.{}.fc1.weight";
const char* const all_cases[] = {"moe_paper", "moe_overflow", "moe_vmoe", "moe_deepspeed_top2",
                                 "moe_batch_priority", "moe_hf_switch", "moe_ties", "block",
                                 "encoder_widenet", "encoder_routing_groups", "encoder_mixtral",
                                 "encoder_unshared", "vision_widenet", "language_widenet"};

}  // namespace

TEST_CASE("replay: a run of ours agrees, in double and in float") {
  const check::OneThread one_thread;
  for (const char* name : all_cases) {
    INFO(name);
    const Case c(name);
    CHECK(verdict(c, run(c)) == "");
    CHECK(verdict(c, run<float>(c)) == "");
    CHECK(verdict(c, c.file) == "");
  }
}

TEST_CASE("replay: a capacity of its own in evaluation, and ties of float") {
  const check::OneThread one_thread;
  Case other("encoder_widenet");
  const SafeTensors as_in_training = run(other);
  const std::string factor = "capacity_evaluation_numerator\": ";
  std::string& text = other.file.metadata.at("case");
  text[text.find(factor) + factor.size()] = '1';
  other.about = support::read_case("encoder_widenet", other.file);
  const SafeTensors in_evaluation = run(other);
  CHECK(in_evaluation.values<std::int32_t>("routing.0.slot") !=
        as_in_training.values<std::int32_t>("routing.0.slot"));
  CHECK(verdict(other, in_evaluation) == "");

  // 1e-9 is nothing beside 0 once exp is taken in float: the lower index goes first.
  const Case c("moe_mixtral");
  SafeTensors own = run<float>(c);
  const std::vector<std::int32_t> expert = own.values<std::int32_t>("expert");
  std::size_t n = 0;
  while (expert[2 * n] > expert[2 * n + 1]) ++n;
  changed<float>("out.logits", [&](std::vector<float>& z) {
    for (std::size_t e = 0; e < 4; ++e) z[4 * n + e] = -9;
    z[4 * n + static_cast<std::size_t>(expert[2 * n])] = 0;
    z[4 * n + static_cast<std::size_t>(expert[2 * n + 1])] = 1e-9f;
  })(own);
  CHECK(verdict(c, own) == "router logits: logits. gates: gate. ");
}

TEST_CASE("replay: another router, the same experts") {
  const check::OneThread one_thread;
  const auto heavier = changed<double>("in.shared.moe.router.weight", [](auto& w) { w[3] += 0.5; });
  for (const char* name : {"moe_paper", "encoder_widenet", "vision_widenet", "language_widenet"}) {
    INFO(name);
    const Case c(name);
    const bool is_stage = std::string(name) == "moe_paper";
    const std::string first = is_stage ? "logits" : "routing.0.logits";
    const std::string later = is_stage ? "" : "experts: routing.1.logits. ";
    CHECK(verdict(c, run(c, heavier)) == "router logits: " + first + ". " + later);
    CHECK(verdict(c, run<float>(c, heavier)) == "router logits: " + first + ". " + later);
  }
  // Of the rules of routing each counts where it is applied, and nowhere else.
  const Case paper("moe_paper");
  const auto under = [&](const std::function<void(Conventions&)>& change) {
    Conventions rules;
    change(rules);
    return verdict(paper, run(paper, {}, &rules));
  };
  CHECK(under([](auto&) {}) == "");
  CHECK(under([](auto& r) { r.unusable_slots = 1; }) == "slots: slot. ");
  CHECK(under([](auto& r) { r.priority = Priority::choice_major; }) == "slots: slot. ");
  CHECK(under([](auto& r) { r.capacity = CapacityRule::dropless; }) == "slots: slot. ");
  CHECK(under([](auto& r) { r.gate = GateRule::renormalized; }) == "gates: gate. ");
  CHECK(under([](auto& r) { r.gate_sees_noise = false; }) == "gates: gate. ");
  CHECK(under([](auto& r) { r.balance = BalanceRule::z_loss; }) == "");
}

TEST_CASE("replay: other experts, the same router") {
  const check::OneThread one_thread;
  const auto rotated = changed<double>(fc1, swap_experts);
  CHECK(verdict(Case("moe_paper"), run(Case("moe_paper"), rotated)) == "experts: results. ");
  CHECK(verdict(Case("moe_overflow"), run<float>(Case("moe_overflow"), rotated)) ==
        "experts: results. ");
  CHECK(verdict(Case("encoder_widenet"), run(Case("encoder_widenet"), rotated)) ==
        "experts: block.0.results. ");
  Case erf("moe_paper");
  erf.about.settings = Case("moe_erf").about.settings;
  CHECK(verdict(Case("moe_paper"), run(erf)) == "experts: results. ");
  // Both at once.
  CHECK(verdict(Case("moe_paper"), run(Case("moe_paper"), [&](SafeTensors& file) {
          rotated(file);
          changed<double>("in.shared.moe.router.weight", [](auto& w) { w[3] += 0.5; })(file);
        })) == "router logits: logits. experts: results. ");
}

TEST_CASE("replay: decisions that a dump reports wrongly, or not at all") {
  const check::OneThread one_thread;
  const Case c("moe_paper");
  const SafeTensors own = run(c);
  using Whole = std::vector<std::int32_t>;
  const auto off_by_one = changed<std::int32_t>("slot", [](Whole& slot) {
    for (std::int32_t& s : slot) s += s >= 0;
  });
  // The rows of the experts stand where the dump says: one slot further there is another row.
  CHECK(verdict(c, edited(own, off_by_one)) == "slots: slot. experts: slots. ");
  const auto without = [](std::vector<std::string> names) {
    return [names](SafeTensors& dump) {
      for (const std::string& name : names) dump.tensors.erase(name);
    };
  };
  CHECK(verdict(c, edited(own, [&](SafeTensors& d) {
          off_by_one(d);
          without({"out.slots", "out.results"})(d);
        })) == "slots: slot. ");
  // Where the rows have moved with the numbers, the experts agree.
  const auto with_empty_first = [](SafeTensors& d) {
    for (const char* name : {"out.slots", "out.results"}) {
      const std::vector<double> values = d.values<double>(name);
      const Shape s = d.at(name).shape;
      const std::size_t per_expert = static_cast<std::size_t>(s[1] * s[2]);
      std::vector<double> moved;
      for (auto row = values.begin(); row != values.end();
           row += static_cast<std::ptrdiff_t>(per_expert)) {
        moved.insert(moved.end(), static_cast<std::size_t>(s[2]), 0);
        moved.insert(moved.end(), row, row + static_cast<std::ptrdiff_t>(per_expert));
      }
      d.tensors.erase(name);
      d.add(name, Shape{s[0], s[1] + 1, s[2]}, moved);
    }
  };
  CHECK(verdict(c, edited(own, [&](SafeTensors& d) { off_by_one(d), with_empty_first(d); })) ==
        "slots: slot. ");
  CHECK(verdict(c, edited(own, changed<std::int32_t>("expert", [](Whole& e) {
          for (std::int32_t& x : e) x = 3 - x;
        }))) == "choices: expert. gates: gate. experts: slots. ");
  CHECK(verdict(c, edited(own, changed<double>("out.gate", [](auto& g) { g[5] *= 1.001; }))) ==
        "gates: gate. experts: y. ");

  // Without gates and logits ours are taken; without slots nobody is dropped.
  CHECK(verdict(c, edited(own, without({"out.gate", "out.logits", "out.probabilities"}))) ==
        "router logits: unknown. gates: unknown. ");
  const Case roomy("moe_mixtral");
  CHECK(verdict(roomy, edited(run(roomy), without({"slot", "out.slots", "out.results"}))) ==
        "slots: unknown. ");
  // Noise in the dump is the noise that they had.
  SafeTensors other = c.file;
  const auto rotate = [](auto& n) { std::rotate(n.begin(), n.begin() + 7, n.end()); };
  changed<double>("in.noise", rotate)(other);
  SafeTensors noisy = dump_of(support::run_golden<double>(c.about, other));
  CHECK(verdict(c, noisy) ==  // the slots are right for what they chose
        "router logits: probabilities. choices: expert. gates: gate. ");
  noisy.add("noise", Shape{16, 4}, other.values<double>("in.noise"));
  CHECK(verdict(c, noisy) == "");
}

TEST_CASE("replay: what departs is named with its values") {
  const Case c("moe_paper");
  const SafeTensors own = run(c);
  const double gate = own.values<double>("out.gate")[5];
  const auto judged = support::replay_dump(
      c.about, c.file, edited(own, changed<double>("out.gate", [](auto& g) { g[5] *= 2; })));
  REQUIRE(judged.size() == 6);
  CHECK(judged[4].part == "gates");
  CHECK(judged[4].given == "their logits and choices");
  CHECK(judged[4].compared == 1);
  CHECK(judged[4].element == 5);
  CHECK(std::fabs(judged[4].ours - gate) <= 1e-15);
  CHECK(judged[4].theirs == 2 * gate);
  CHECK(judged[4].tolerance <= 1e-12);
}

TEST_CASE("replay: values that are not numbers, and tensors of another size") {
  const check::OneThread one_thread;
  const Case c("moe_paper");
  const SafeTensors own = run(c);
  const auto with = [&](const std::string& name, double value) {
    return verdict(c, edited(own, changed<double>(name, [&](auto& x) { x[5] = value; })));
  };
  // Where the logits are no numbers, nothing follows from them.
  for (const double value : {std::nan(""), HUGE_VAL})
    CHECK(with("out.logits", value) ==
          "router logits: logits. choices: unknown. gates: unknown. ");
  CHECK(with("out.gate", std::nan("")) == "gates: gate. experts: y. ");
  CHECK(with("out.y", std::nan("")) == "experts: y. ");
  CHECK(with("out.y", -HUGE_VAL) == "experts: y. ");
  CHECK(with("out.results", std::nan("")) == "experts: results. ");
  const auto judged = support::replay_dump(c.about, c.file, edited(own, [](SafeTensors& d) {
    d.tensors.erase("out.y");
    d.add("y", Shape{3}, std::vector<double>(3));
  }));
  CHECK(judged[5].name == "y");
  CHECK(judged[5].element == -1);
  CHECK(judged[5].ours == double(own.at("out.y").shape.num_values()));
  CHECK(judged[5].theirs == 3);
}

TEST_CASE("replay: dumps that make no routing are refused") {
  const Case c("moe_paper");
  const SafeTensors own = run(c);
  using Whole = std::vector<std::int32_t>;
  const auto replay = [&](const std::function<void(SafeTensors&)>& change) {
    return support::replay_dump(c.about, c.file, edited(own, change));
  };
  CHECK_THROWS_WITH_AS(replay([](SafeTensors& d) { d.tensors.at("expert").dtype = "F16"; }),
                       "widenet: replay: a dump must hold F64 or F32, for which there are "
                       "tolerances; got F16 for expert", IoError);
  CHECK_THROWS_WITH_AS(replay([](SafeTensors& d) { d.tensors.erase("expert"); }),
                       "widenet: replay: a dump must hold expert with 32 values; got 0", IoError);
  CHECK_THROWS_WITH_AS(replay([](SafeTensors& d) {
                         d.tensors.erase("slot");
                         d.add("slot", Shape{3}, Whole{0, 1, 2});
                       }),
                       "widenet: replay: a dump must hold slot with 32 values; got 3", IoError);
  CHECK_THROWS_WITH_AS(replay([](SafeTensors& d) {
                         d.tensors.erase("out.gate");
                         d.add("gate", Shape{1}, std::vector<float>{1});
                       }),
                       "widenet: replay: gate must have 32 values; got 1", IoError);
  CHECK_THROWS_WITH_AS(
      replay(changed<std::int32_t>("expert", [](Whole& e) { e[4] = 4; })),
      doctest::Contains("widenet: route: replayed choices must have expert in [0, 4)"), ValueError);
  CHECK_THROWS_WITH_AS(
      replay(changed<std::int32_t>("slot", [](Whole& s) { for (auto& x : s) x = 0; })),
      doctest::Contains("widenet: route: no two replayed choices may share a slot"), ValueError);
  CHECK_THROWS_WITH_AS(replay([](SafeTensors& d) { d.tensors.at("expert").shape = Shape{2, 16}; }),
                       "widenet: replay: expert must be (N, K) = (16, 2); got (2, 16)", IoError);
  for (const double value : {0.5, -2.0, 1e300, std::nan("")})
    CHECK_THROWS_WITH_AS(replay([&](SafeTensors& d) {
                           d.tensors.erase("slot");
                           d.add("slot", Shape{32}, std::vector<double>(32, value));
                         }),
                         doctest::Contains("widenet: replay: experts and slots must be whole "
                                           "numbers from -1 on; got "), IoError);
  const Case linear("linear");
  CHECK_THROWS_WITH_AS(support::replay_dump(linear.about, linear.file, own),
                       "widenet: replay: the case must be a mixture, block, encoder, vision or "
                       "language; got linear", ConfigError);
  const Case dense("vision_timm_run");
  CHECK_THROWS_WITH_AS(support::replay_dump(dense.about, dense.file, own),
                       "widenet: replay: the case must have experts; got 0", ConfigError);
}

TEST_CASE("route: gates from elsewhere take the place of the router's, without a gradient") {
  const auto z = check::normal<double>({3, 2}, 1).require_gradient();
  Replay<double>::Choices choices{Buffer<std::int32_t>(std::vector<std::int32_t>{0, 1, 1}),
                                  Buffer<std::int32_t>(std::vector<std::int32_t>{0, 0, 1})};
  RouteOptions options;
  options.K = 1, options.capacity_factor = {2, 1};
  CHECK(route(z, options, {}, nullptr, &choices).gate.needs_gradient());
  choices.gate = Buffer<double>(std::vector<double>{0.25, 0.5, 2});
  const Routing<double> r = route(z, options, {}, nullptr, &choices);
  CHECK(r.gate.to_vector() == std::vector<double>{0.25, 0.5, 2});
  CHECK(!r.gate.needs_gradient());
  choices.gate = Buffer<double>(2);
  CHECK_THROWS_WITH_AS(route(z, options, {}, nullptr, &choices),
                       "widenet: route: a replay must have N * K = 3 gates or none; got 2",
                       ShapeError);
}
