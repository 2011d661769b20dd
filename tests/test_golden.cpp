// Tests against golden data: values and gradients that other implementations computed.
#include "check.hpp"
#include "support/compare.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <set>

using namespace widenet;

namespace {

const char* const folder = "data/golden";

/// What all gradients of a case are measured by where one of them is zero in exact arithmetic.
double largest_gradient(const SafeTensors& file) {
  double largest = 0;
  for (const auto& entry : file.tensors)
    if (entry.first.compare(0, 9, "out.grad.") == 0)
      largest = std::fmax(largest, support::largest_of(file.values<double>(entry.first)));
  return largest;
}

bool is_in(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// How many times as wrong as the other our float may be: twice, but for one tensor. Our router
/// multiplies with 1 / sum where PyTorch divides, so its probabilities add up to 1 less exactly,
/// which the gradient of a token that is almost certain shows.
double factor(const std::string& name, const std::string& tensor) {
  return name == "moe_one_token" && tensor == "grad.shared.moe.router.weight" ? 3 : 2;
}

const std::vector<support::GoldenCase>& cases() {
  static const std::vector<support::GoldenCase> all = support::read_manifest(folder);
  return all;
}

/// Results as another implementation would dump them.
template <class T>
SafeTensors dumped(const support::GoldenResults<T>& results) {
  SafeTensors dump;
  for (const auto& r : results.values)
    dump.add("out." + r.first, results.shapes.at(r.first), r.second);
  for (const auto& r : results.integers) dump.add(r.first, results.shapes.at(r.first), r.second);
  return dump;
}

/// A case, its results, and what `compare` says about them with a change.
struct Changed {
  explicit Changed(const std::string& name)
      : file(read_safetensors(std::string(folder) + "/" + name + ".safetensors")),
        c(support::read_case(name, file)), own(support::run_golden<double>(c, file)) {}
  support::Departure operator()(
      const std::function<void(support::GoldenResults<double>&)>& change) const {
    support::GoldenResults<double> results = own;
    change(results);
    return support::compare_dump(c, file, dumped(results));
  }
  SafeTensors file;
  support::GoldenCase c;
  support::GoldenResults<double> own;
};

}  // namespace

TEST_CASE("golden data: at least 40 cases of every kind, from several sources") {
  std::set<std::string> ops, sources;
  for (const auto& c : cases()) ops.insert(c.op), sources.insert(c.source.substr(0, 4));
  CHECK(cases().size() >= 40);
  for (const char* op : {"linear", "layer_norm", "attention", "mixture", "block", "encoder",
                         "vision", "language", "optimiser", "training"})
    CHECK(ops.count(op) == 1);
  CHECK(sources == std::set<std::string>{"test", "timm", "tran"});
}

TEST_CASE("golden data: the header agrees in double, integers exactly") {
  const check::OneThread one_thread;
  for (const auto& c : cases()) {
    INFO(c.name, ", from ", c.source);
    const SafeTensors file = read_safetensors(c.path);
    const auto ours = support::run_golden<double>(c, file);
    const double scale = largest_gradient(file);
    std::size_t compared = 0;
    for (const auto& entry : file.tensors) {
      if (entry.first.compare(0, 4, "out.") != 0) continue;
      const std::string name = entry.first.substr(4);
      INFO(name);
      ++compared;
      REQUIRE(ours.shapes.count(name) == 1);
      CHECK(ours.shapes.at(name) == entry.second.shape);
      if (entry.second.dtype == "I32") {
        CHECK(ours.integers.at(name) == file.values<std::int32_t>(entry.first));
        continue;
      }
      const std::vector<double> expected = file.values<double>(entry.first);
      if (is_in(c.zero, name)) {
        CHECK(support::largest_of(expected) <= 4 * support::ulp_of<double>(scale));
        CHECK(support::largest_of(ours.values.at(name)) <= 4 * support::ulp_of<double>(scale));
        continue;
      }
      const double largest = support::largest_of(expected);
      CHECK(support::distance(ours.values.at(name), expected) <=
            std::fmax(1e-12 * largest, 4 * support::ulp_of<double>(largest)));
    }
    CHECK(compared > 0);
  }
}

TEST_CASE("golden data: results of whole models come block by block, as they are computed") {
  const check::OneThread one_thread;
  const auto begins = [](const char* name, std::vector<std::string> names) {
    const SafeTensors file = read_safetensors(std::string(folder) + "/" + name + ".safetensors");
    std::vector<std::string> order =
        support::run_golden<double>(support::read_case(name, file), file).order;
    order.resize(names.size());
    CHECK(order == names);
  };
  begins("vision_dropout",
         {"embedding", "block.0.norm1", "block.0.q", "block.0.k", "block.0.v", "block.0.attention",
          "block.0.o", "block.0.middle", "block.0.norm2", "block.0.y", "block.1.norm1"});
  begins("encoder_post_norm",
         {"block.0.q", "block.0.k", "block.0.v", "block.0.attention", "block.0.o", "block.0.middle",
          "block.0.norm1", "routing.0.logits", "routing.0.probabilities", "routing.0.expert",
          "routing.0.slot", "routing.0.gate", "routing.0.load", "routing.0.kept",
          "routing.0.importance", "balance_losses.0", "block.0.results", "block.0.y",
          "block.0.norm2", "block.1.q"});
}

TEST_CASE("golden data: masks of dropout, orders and coins are those that the header draws") {
  const auto fails = [](const char* name, const std::string& input, const Index at,
                        const double value, const char* text) {
    SafeTensors file = read_safetensors(std::string(folder) + "/" + name + ".safetensors");
    std::vector<char>& bytes = file.tensors.at("in." + input).bytes;
    const auto whole = static_cast<std::int32_t>(value);
    if (file.at("in." + input).dtype == "I32")
      std::memcpy(bytes.data() + at * 4, &whole, 4);
    else
      std::memcpy(bytes.data() + at * 8, &value, 8);
    CHECK_THROWS_WITH_AS(support::run_golden<double>(support::read_case(name, file), file), text,
                         ValueError);
  };
  fails("vision_dropout", "mask.embedding", 5, 0,
        "widenet: golden: mask.embedding must be what the header draws from the seed; got 0 at 5");
  fails("vision_dropout", "mask.0.hidden", 1, 2,
        "widenet: golden: mask.0.hidden must be what the header draws from the seed; got 2 at 1");
  fails("language_dropout", "mask.2.output", 3, 0,
        "widenet: golden: mask.2.output must be what the header draws from the seed; got 0 at 3");
  fails("moe_random_priority", "order", 0, 31,
        "widenet: golden: order must be what the header draws from the seed; got another");
  fails("moe_refused_choices", "coins", 1, 2,
        "widenet: golden: coins must be what the header draws from the seed, 0.294035 at 1; got 2");
}

TEST_CASE("golden data: in float nobody is twice as wrong as the other may be") {
  // Errors are against the float64 values; 4 units in the last place of the largest value are
  // always allowed. How wrong an implementation may be is its largest error over inputs that are
  // moved by half a unit in the last place: one run alone may be right by luck.
  const check::OneThread one_thread;
  for (const auto& c : cases()) {
    INFO(c.name, ", from ", c.source);
    const SafeTensors file = read_safetensors(c.path);
    const auto ours = support::run_golden<float>(c, file);
    for (const auto& integers : ours.integers)
      CHECK(integers.second == file.values<std::int32_t>("out." + integers.first));
    const auto error32 =
        support::float_errors(c, file, support::run_golden<double>(c, file));
    const double scale = largest_gradient(file);
    for (const auto& entry : file.tensors) {
      if (entry.first.compare(0, 6, "out32.") != 0) continue;
      const std::string name = entry.first.substr(6);
      INFO(name);
      const std::vector<double> exact = file.values<double>("out." + name);
      const double largest = is_in(c.zero, name) ? scale : support::largest_of(exact);
      const double floor = 4 * support::ulp_of<float>(largest);
      CHECK(support::distance(ours.values.at(name), exact) <=
            factor(c.name, name) * c.error32.at(name) + floor);
      CHECK(support::distance(file.values<float>(entry.first), exact) <=
            2 * error32.at(name) + floor);
    }
  }
}

TEST_CASE("compare: a dump that agrees, and where and how others depart") {
  const check::OneThread one_thread;
  const SafeTensors file = read_safetensors(std::string(folder) + "/moe_colossal.safetensors");
  const support::GoldenCase c = support::read_case("moe_colossal", file);
  CHECK(c.op == "mixture");
  const auto own = support::run_golden<double>(c, file);
  const auto departure = [&](const std::function<void(support::GoldenResults<double>&)>& change) {
    support::GoldenResults<double> results = own;
    change(results);
    return support::compare_dump(c, file, dumped(results));
  };
  for (const support::Departure& same :
       {departure([](auto&) {}), support::compare_dump(c, file, file),
        support::compare_dump(c, file, dumped(support::run_golden<float>(c, file)))}) {
    CHECK(same.name == "");
    CHECK(same.highest_rung == "gradients");
    CHECK(same.missing.empty());
    CHECK(same.compared == static_cast<Index>(own.order.size()));
  }
  const auto check_departure = [](const support::Departure& d, const char* name, const char* rung,
                                  const char* bucket, const char* hint) {
    CHECK(d.name == name);
    CHECK(d.rung == rung);
    CHECK(d.bucket == bucket);
    CHECK(d.hint == hint);
  };
  check_departure(departure([](auto& r) {
                    const std::vector<double> z = r.values["logits"];
                    for (std::size_t i = 0; i < z.size(); ++i)
                      r.values["logits"][i % 4 * 16 + i / 4] = z[i];
                  }),
                  "logits", "router logits", "layout", "transposed");
  check_departure(departure([](auto& r) {
                    for (std::int32_t& e : r.integers["expert"]) e = 3 - e;
                  }),
                  "expert", "indices", "layout", "the experts have other numbers");
  check_departure(departure([](auto& r) {
                    auto& y = r.values["results"];
                    std::rotate(y.begin(), y.begin() + static_cast<std::ptrdiff_t>(y.size() / 4),
                                y.end());
                  }),
                  "results", "experts", "layout",
                  "slices of the first axis in another order: permuted experts?");
  check_departure(departure([](auto& r) { r.values["gate"][5] *= 1 + 1e-11; }), "gate", "combine",
                  "rounding", "within 1000 times the tolerance");
  check_departure(departure([](auto& r) { r.values["y"][7] += .1; }), "y", "combine", "algorithm",
                  "");
  check_departure(departure([](auto& r) { r.values["loss"][0] = std::nan(""); }), "loss", "loss",
                  "algorithm", "not finite where ours is");
  const Conventions author = Conventions::author_tf();
  check_departure(support::compare_dump(c, file,
                                        dumped(support::run_golden<double>(c, file, &author))),
                  "slot", "slots", "convention",
                  "as under the preset author_tf: then all agrees");

  const auto reshaped = [&](const char* name, const Shape& shape, bool swaps) {
    SafeTensors dump = dumped(own);
    StoredTensor& stored = dump.tensors.at(std::string("out.") + name);
    const Shape before = stored.shape;
    const std::vector<double> x = swaps
        ? support::transposed(own.values.at(name), static_cast<std::size_t>(before.num_rows()),
                              static_cast<std::size_t>(before.last()))
        : own.values.at(name);
    std::memcpy(stored.bytes.data(), x.data(), stored.bytes.size());
    stored.shape = shape;
    return support::compare_dump(c, file, dump);
  };
  CHECK(reshaped("y", {2, 8, 12}, false).name == "");  // (B, T, D) in place of (N, D)
  CHECK(reshaped("y", {16 * 12}, false).name == "");
  const support::Departure turned = reshaped("probabilities", {4, 16}, true);
  check_departure(turned, "probabilities", "router logits", "layout", "transposed");
  CHECK(turned.shape == Shape({16, 4}));
  CHECK(turned.their_shape == Shape({4, 16}));
  check_departure(reshaped("probabilities", {4, 16}, false), "probabilities", "router logits",
                  "layout", "the same values in another shape");
  check_departure(departure([](auto& r) {
                    auto& z = r.values["logits"];
                    for (std::size_t n = 0; n < 16; ++n) std::swap(z[n * 4], z[n * 4 + 3]);
                  }),
                  "logits", "router logits", "layout",
                  "slices of the last axis in another order: permuted experts?");
  const auto fused = [&](bool is_beside) {
    SafeTensors dump = dumped(own);
    dump.tensors.erase("out.gate");
    std::vector<double> both(3 * 32);
    for (std::size_t i = 0; i < 32; ++i)
      both[is_beside ? i / 2 * 6 + 2 + i % 2 : 64 + i] = own.values.at("gate")[i];
    dump.add("out.gate", is_beside ? Shape{16, 6} : Shape{48, 2}, both);
    return support::compare_dump(c, file, dump);
  };
  check_departure(fused(true), "gate", "combine", "layout",
                  "fused: ours is part 2 of 3 along the last axis");
  check_departure(fused(false), "gate", "combine", "layout",
                  "fused: ours is part 3 of 3 along the first axis");

  // Conventions of nobody's preset: named when they act one after the other, and when of a run
  // nothing but the outputs is known.
  const auto mixed = [&](bool outputs_only) {
    Conventions mine = Conventions::colossal();
    mine.priority = Priority::token_major, mine.gate = GateRule::renormalized_after_drop;
    mine.balance = BalanceRule::switch_top1;
    auto results = support::run_golden<double>(c, file, &mine);
    SafeTensors dump = dumped(results);
    for (auto at = dump.tensors.begin(); outputs_only && at != dump.tensors.end();)
      at = at->first == "out.y" || at->first == "out.balance_loss" ? ++at : dump.tensors.erase(at);
    return support::compare_dump(c, file, dump);
  };
  check_departure(mixed(false), "slot", "slots", "convention",
                  "as with balance = switch_top1, gate = renormalized_after_drop, "
                  "priority = token_major: then all agrees");
  check_departure(mixed(true), "y", "combine", "convention",
                  "as with balance = switch_top1, gate = renormalized_after_drop, "
                  "priority = token_major: then all agrees");

  const support::Departure d = departure([](auto& r) { r.values["y"][7] = 0; });
  CHECK(d.element == 7);
  CHECK(d.ours == own.values.at("y")[7]);
  CHECK(d.theirs == 0);
  CHECK(d.absolute == std::fabs(d.ours));
  CHECK(d.cosine < 1);
  CHECK(d.equation == "y[n] = sum over kept k of gate[n, k] slots[e, c]");
  SafeTensors other;
  other.add("hidden", Shape{1}, std::vector<double>{1});
  CHECK_THROWS_WITH_AS(support::compare_dump(c, file, other),
                       "widenet: compare: a dump must hold one of our names, such as logits; got "
                       "hidden", IoError);
}

TEST_CASE("compare: what no convention explains, but a look at the numbers does") {
  const check::OneThread one_thread;
  using Results = support::GoldenResults<double>;
  const auto says = [](const support::Departure& d, const char* name, const char* bucket,
                       const std::string& hint) {
    CHECK(d.name == name);
    CHECK(d.bucket == bucket);
    CHECK(d.hint == hint);
  };
  const Changed mixture("moe_colossal");
  const support::Departure odd = mixture([](Results& r) { r.values["y"][7] = std::nan(""); });
  says(odd, "y", "algorithm", "not finite where ours is");
  CHECK(odd.element == 7);
  CHECK(odd.ours == mixture.own.values.at("y")[7]);
  CHECK(std::isnan(odd.theirs));
  CHECK(odd.absolute == infinity<double>);
  CHECK(std::isnan(odd.cosine));
  says(mixture([](Results& r) { for (double& y : r.values["y"]) y = 0; }), "y", "algorithm",
       "all 0");
  says(mixture([](Results& r) { for (double& y : r.values["y"]) y *= -1.5; }), "y", "algorithm",
       "-1.5 times ours");
  says(mixture([](Results& r) { r.values["balance_loss"][0] /= 4; }), "balance_loss", "algorithm",
       "0.25 times ours");
  says(mixture([](Results& r) { r.values["balance_loss"][0] /= 4.1; }), "balance_loss",
       "algorithm", "");
  says(mixture([](Results& r) { r.values["y"] = r.values["grad.x"]; }), "y", "algorithm",
       "our grad.x");

  // The balance loss in the loss and in gradients.
  const double balance = mixture.own.values.at("balance_loss")[0];
  says(mixture([&](Results& r) { r.values["loss"][0] -= balance; }), "loss", "algorithm",
       "without the balance loss");
  says(mixture([&](Results& r) { r.values["loss"][0] += balance; }), "loss", "algorithm",
       "the balance loss counts twice");
  const Changed vision("vision_widenet");
  const double main = vision.own.values.at("main_loss")[0];
  says(vision([&](Results& r) { r.values["loss"][0] += r.values["loss"][0] - main; }), "loss",
       "algorithm", "the balance loss counts twice");
  const char* const router = "grad.shared.moe.router.weight";
  SafeTensors idle = mixture.file;
  std::vector<char>& d_y = idle.tensors.at("in.d_y").bytes;
  std::fill(d_y.begin(), d_y.end(), char(0));
  const auto share = support::run_golden<double>(mixture.c, idle).values.at(router);
  says(mixture([&](Results& r) { r.values[router] = share; }), router, "algorithm",
       "of the balance loss alone");
  says(mixture([&](Results& r) {
         for (std::size_t i = 0; i < share.size(); ++i) r.values[router][i] -= share[i];
       }),
       router, "algorithm", "without the balance loss");

  // Experts of a checkpoint in another order.
  SafeTensors turned = mixture.file;
  for (auto& entry : turned.tensors)
    if (entry.first.rfind("in.shared.moe.experts.", 0) == 0)
      std::rotate(entry.second.bytes.begin(), entry.second.bytes.begin() +
                      static_cast<std::ptrdiff_t>(entry.second.bytes.size() / 4),
                  entry.second.bytes.end());
  says(support::compare_dump(mixture.c, mixture.file,
                             dumped(support::run_golden<double>(mixture.c, turned))),
       "results", "layout", "as with the experts in the order 1, 2, 3, 0");

  // Token 5 is undecided between all four experts.
  const Changed ties("moe_ties");
  says(ties([](Results& r) { r.integers["expert"][10] = 2, r.integers["expert"][11] = 3; }),
       "expert", "algorithm", "a tie: the experts chosen are as probable as ours");
  says(ties([](Results& r) { r.integers["expert"][0] = 0; }), "expert", "algorithm", "");
  says(ties([](Results& r) { r.integers["expert"][10] = 9; }), "expert", "algorithm", "");
}

TEST_CASE("compare: what a case with results leaves out is noise") {
  const check::OneThread one_thread;
  const Changed training("training_adamw");
  const auto agrees = [&](const std::string& name) {
    const support::Departure d = training([&](auto& r) { r.values.at(name)[0] *= 2; });
    CHECK(d.missing.empty());
    return d.name.empty();
  };
  for (const char* name : {"last.", "adamw.m.", "adamw.v."})
    CHECK(agrees(std::string(name) + "shared.attn.k.bias"));
  CHECK_FALSE(agrees("last.shared.attn.q.bias"));
  SafeTensors own = training.file;  // a case without results determines all of them
  for (auto at = own.tensors.lower_bound("out."); at != own.tensors.end();)
    at = own.tensors.erase(at);
  support::GoldenResults<double> results = training.own;
  results.values.at("last.shared.attn.k.bias")[0] *= 2;
  CHECK(support::compare_dump(training.c, own, dumped(results)).name == "last.shared.attn.k.bias");
}
