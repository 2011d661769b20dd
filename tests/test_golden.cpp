// Tests against golden data: values and gradients that other implementations computed.
#include "check.hpp"
#include "support/compare.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iomanip>
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

TEST_CASE("golden data: an input that nobody reads is an error, not an input left out") {
  SafeTensors file = read_safetensors(std::string(folder) + "/linear.safetensors");
  const support::GoldenCase c = support::read_case("linear", file);
  file.tensors["in.bias"] = file.at("in.b");
  file.tensors.erase("in.b");
  const char* const text =
      "widenet: golden: linear must have use for every input; got in.bias; "
      "hint: a misspelled name would be taken for an input left out";
  CHECK_THROWS_WITH_AS(support::run_golden<double>(c, file), text, ConfigError);
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

TEST_CASE("compare: how wrong a float may be counts all runs, whatever integers a case is given") {
  const check::OneThread one_thread;
  const SafeTensors file = read_safetensors(std::string(folder) + "/vision_widenet.safetensors");
  const support::GoldenCase c = support::read_case("vision_widenet", file);
  const auto own = support::run_golden<double>(c, file);
  const support::Walk walk(c, file, dumped(own));
  CHECK(walk.exact.integers.count("in.labels") == 1);
  const auto errors = support::float_errors(c, file, walk.exact, 9);
  CHECK(errors == support::float_errors(c, file, own, 9));
  CHECK(errors != support::float_errors(c, file, own, 1));
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
  other.tensors["out.y"] = {"BF16", Shape{1}, {0, 0}};
  CHECK_THROWS_WITH_AS(support::compare_dump(c, file, other),
                       "widenet: compare: a dump must hold F64 or F32, for which there are "
                       "tolerances; got BF16 for out.y", IoError);
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

TEST_CASE("compare: the order of computation, block by block") {
  // Each list is in order; the names are placed one by one.
  const auto is_in_order = [](const char* op, const char* settings,
                              const std::vector<std::string>& names) {
    support::GoldenCase c;
    c.op = op, c.settings = Json::parse(settings, "settings");
    const support::Ladder ladder(c);
    for (std::size_t i = 1; i < names.size(); ++i) {
      INFO(names[i - 1], " before ", names[i]);
      CHECK(ladder.place_of(names[i - 1]) < ladder.place_of(names[i]));
      CHECK_FALSE(ladder.place_of(names[i]) < ladder.place_of(names[i - 1]));
    }
  };
  is_in_order("vision", R"({"blocks":2,"experts":4})",
              {"in.shared.attn.k.weight", "embedding", "block.0.norm1", "block.0.q",
               "block.0.attention", "block.0.o", "block.0.middle", "block.0.norm2",
               "routing.0.logits", "routing.0.probabilities", "routing.0.expert", "routing.0.slot",
               "block.0.slots", "block.0.results", "routing.0.gate", "block.0.y",
               "routing.0.importance", "balance_losses.0", "block.0.tokens", "block.1.norm1",
               "routing.1.logits", "block.1.y", "balance_losses.1", "balance_loss", "logits",
               "loss", "grad.head.bias", "first.head.bias", "last.head.bias"});
  is_in_order("encoder", R"({"blocks":2,"experts":4,"is_pre_norm":false})",
              {"block.0.q", "block.0.attention", "block.0.o", "block.0.middle", "block.0.norm1",
               "routing.0.logits", "block.0.y", "block.0.norm2", "block.1.q", "block.1.norm1"});
  // The index of a routing is not that of its block: groups of two blocks, one dense block.
  is_in_order("encoder", R"({"blocks":4,"experts":4,"routing_groups":2})",
              {"block.0.norm2", "routing.0.logits", "block.0.y", "block.1.norm2", "block.1.y",
               "block.2.norm2", "routing.1.logits", "block.2.y", "block.3.norm1", "tokens"});
  is_in_order("encoder", R"({"blocks":2,"experts":4,"moe_blocks":1})",
              {"block.0.norm2", "block.0.y", "block.1.norm2", "routing.0.logits", "block.1.y"});

  const auto rung_of = [](const char* op, const char* name) {
    support::GoldenCase c;
    c.op = op, c.settings = Json::parse(R"({"blocks":2,"experts":4,"moe_blocks":1})", "settings");
    return std::string(support::Ladder(c).place_of(name).rung);
  };
  CHECK(rung_of("vision", "in.images") == "weights");
  CHECK(rung_of("vision", "embedding") == "embedding");
  CHECK(rung_of("vision", "block.0.norm2") == "LayerNorm");
  CHECK(rung_of("vision", "block.0.middle") == "attention");
  CHECK(rung_of("vision", "routing.0.logits") == "router logits");
  CHECK(rung_of("vision", "logits") == "outputs");
  CHECK(rung_of("vision", "block.0.y") == "experts");  // dense
  CHECK(rung_of("vision", "block.1.y") == "combine");
  CHECK(rung_of("mixture", "logits") == "router logits");
  CHECK(rung_of("layer_norm", "y") == "LayerNorm");
  CHECK(rung_of("attention", "y") == "attention");
  CHECK(rung_of("add_to_sequences", "y") == "embedding");
  CHECK(rung_of("linear", "y") == "outputs");
  CHECK(rung_of("training", "losses") == "ten steps");
}

TEST_CASE("compare: attention that is wrong is not the fault of the LayerNorm behind it") {
  const check::OneThread one_thread;
  for (const char* name : {"block", "block_author_tf", "block_mixtral"}) {
    const Changed block(name);
    support::GoldenCase other = block.c;
    other.settings = support::changed(other.settings, {{"heads", "4"}});  // of 3
    const auto theirs = support::run_golden<double>(other, block.file);
    const support::Departure d = support::compare_dump(block.c, block.file, dumped(theirs));
    CHECK(support::distance(theirs.values.at("norm2"), block.own.values.at("norm2")) > 0.01);
    CHECK(d.name == "attention");
    CHECK(d.rung == "attention");
    CHECK(d.equation == "softmax(q k^T / sqrt(Dh)) v");
    CHECK(d.last_agreeing == "v");
    CHECK(d.compared == 5);
  }
}

TEST_CASE("compare: of a whole model, the block and the step in it where it departs") {
  const check::OneThread one_thread;
  using Results = support::GoldenResults<double>;
  const auto says = [](const support::Departure& d, const char* name, const char* rung,
                       const char* last_agreeing) {
    CHECK(d.name == name);
    CHECK(d.rung == rung);
    CHECK(d.last_agreeing == last_agreeing);
  };
  const auto add = [](Results& r, const std::vector<std::string>& names) {
    for (const std::string& name : names) r.values.at(name)[1] += 0.5;
  };
  const Changed vision("vision_widenet");
  says(vision([&](Results& r) { add(r, {"embedding", "block.0.norm1"}); }), "embedding",
       "embedding", "");
  says(vision([&](Results& r) { add(r, {"block.1.middle", "block.1.norm2", "block.2.q"}); }),
       "block.1.middle", "attention", "block.1.o");
  says(vision([&](Results& r) { add(r, {"routing.1.logits", "block.1.y", "block.2.norm1"}); }),
       "routing.1.logits", "router logits", "block.1.norm2");
  const Changed groups("encoder_routing_groups");  // of blocks 0 and 1, 2 and 3
  says(groups([&](Results& r) { add(r, {"routing.1.logits", "block.1.y"}); }), "block.1.y",
       "combine", "block.1.results");
  says(groups([&](Results& r) { add(r, {"routing.1.logits", "block.2.y"}); }), "routing.1.logits",
       "router logits", "block.2.norm2");
  const Changed post("encoder_post_norm");
  says(post([&](Results& r) { add(r, {"block.1.norm1", "routing.1.logits", "block.1.norm2"}); }),
       "block.1.norm1", "LayerNorm", "block.1.middle");
  const Changed last("encoder_last_blocks");  // 0 and 1 are dense
  says(last([&](Results& r) { add(r, {"block.1.y", "routing.0.logits"}); }), "block.1.y", "experts",
       "block.1.norm2");
}

TEST_CASE("compare: inputs and weights that are not those of the case") {
  const check::OneThread one_thread;
  const Changed layer("moe_colossal");
  const std::string router = "in.shared.moe.router.weight";
  // A dump that holds the inputs of a run and, unless told otherwise, the results that follow.
  const auto departure = [&](const std::string& name, const Shape& shape,
                             const std::vector<double>& x, bool has_other_results) {
    SafeTensors inputs = layer.file;
    inputs.tensors.erase(name);
    inputs.add(name, shape, x);
    SafeTensors dump =
        dumped(has_other_results ? support::run_golden<double>(layer.c, inputs) : layer.own);
    for (const auto& entry : inputs.tensors)
      if (entry.first.rfind("in.", 0) == 0) dump.tensors[entry.first] = entry.second;
    return support::compare_dump(layer.c, layer.file, dump);
  };
  const std::vector<double> w = layer.file.values<double>(router);  // (12, 4)
  const support::Departure turned =
      departure(router, {4, 12}, support::transposed(w, 12, 4), false);
  CHECK(turned.name == router);
  CHECK(turned.rung == "weights");
  CHECK(turned.equation == "the inputs and weights are those of the case");
  CHECK(turned.bucket == "layout");
  CHECK(turned.hint == "transposed; the results agree");
  CHECK(turned.compared == 0);
  CHECK(turned.highest_rung == "weights");  // others agree

  std::vector<double> x = layer.file.values<double>("in.x");
  x[5] += 1;
  const support::Departure moved = departure("in.x", {16, 12}, x, true);
  CHECK(moved.name == "in.x");
  CHECK(moved.bucket == "inputs");
  CHECK(moved.element == 5);
  CHECK(moved.differing == 1);
  CHECK(moved.absolute == doctest::Approx(1));
  CHECK(moved.hint == "logits is the first result to depart; from their inputs we compute their "
                      "results");
  const support::Departure both = departure("in.x", {16, 12}, x, false);
  CHECK(both.hint == "the results agree; from their inputs we compute another logits");
  x = layer.file.values<double>("in.x");
  x[5] += 1e-10;
  CHECK(departure("in.x", {16, 12}, x, false).bucket == "rounding");
  CHECK(departure("in.x", {16, 12}, layer.file.values<double>("in.d_y"), true).hint ==
        "our in.d_y; logits is the first result to depart; from their inputs we compute their "
        "results");
  x[5] = std::nan("");
  CHECK(departure("in.x", {16, 12}, x, false).name == "in.x");

  // float32 rounds inputs, and no more.
  SafeTensors rounded = dumped(layer.own);
  const std::vector<double> biases = layer.file.values<double>("in.shared.moe.experts.{}.fc1.bias");
  std::vector<float> narrow(biases.begin(), biases.end());
  const auto agrees = [&](float factor) {
    SafeTensors dump = rounded;
    narrow[3] = static_cast<float>(biases[3]) * factor;
    dump.add("in.shared.moe.experts.{}.fc1.bias", Shape{4, 10}, narrow);
    return support::compare_dump(layer.c, layer.file, dump).name.empty();
  };
  CHECK(agrees(1));
  CHECK_FALSE(agrees(1.001f));

  // Whole numbers, too.
  const Changed language("language_widenet");
  SafeTensors dump = dumped(language.own);
  std::vector<std::int32_t> token = language.file.values<std::int32_t>("in.token");
  token[2] += 1, token[4] -= 1;
  dump.add("in.token", language.file.at("in.token").shape, token);
  const support::Departure d = support::compare_dump(language.c, language.file, dump);
  CHECK(d.name == "in.token");
  CHECK(d.element == 2);
  CHECK(d.differing == 2);
  CHECK(d.bucket == "inputs");
}

TEST_CASE("compare: choices that flip are reported behind real numbers that depart") {
  const check::OneThread one_thread;
  using Results = support::GoldenResults<double>;
  const Changed layer("moe_colossal");
  const auto flipped = [](Results& r) {
    for (double& z : r.values["logits"]) z *= 1 + 1e-11;
    std::swap(r.integers["expert"][6], r.integers["expert"][7]);
  };
  const support::Departure d = layer(flipped);
  CHECK(d.name == "logits");
  CHECK(d.bucket == "rounding");
  CHECK(d.whole.name == "expert");
  CHECK(d.whole.rung == "indices");
  CHECK(d.whole.element == 6);
  CHECK(d.whole.differing == 2);
  CHECK(d.whole.ours == layer.own.integers.at("expert")[6]);
  CHECK(d.whole.theirs == layer.own.integers.at("expert")[7]);
  const std::vector<double>& p = layer.own.values.at("probabilities");
  PlainText margin;
  margin << "the experts chosen are up to " << std::setprecision(2)
         << std::fabs(p[12 + static_cast<std::size_t>(d.whole.ours)] -
                      p[12 + static_cast<std::size_t>(d.whole.theirs)])
         << " more or less probable than ours";
  CHECK(d.whole_hint == margin.str());

  const support::Departure first = layer([](Results& r) { ++r.integers["slot"][3]; });
  CHECK(first.name == "slot");
  CHECK(first.whole.name == "slot");
  CHECK(first.element == 3);
  CHECK(layer([](Results& r) { r.values["y"][0] += 1; }).whole.name.empty());
  // In another block, behind everything else.
  const Changed encoder("encoder_widenet");
  const support::Departure far = encoder([](Results& r) {
    r.values["routing.0.probabilities"][3] += 1e-9, --r.integers["routing.2.kept"][1];
  });
  CHECK(far.name == "routing.0.probabilities");
  CHECK(far.whole.name == "routing.2.kept");
  CHECK(far.whole.element == 1);
}

TEST_CASE("compare: no tensor with a NaN is small") {
  CHECK(support::largest_of(std::vector<double>{1, -3, 2}) == 3);
  CHECK(std::isnan(support::largest_of(std::vector<double>{1, std::nan(""), 2})));
  CHECK(std::isnan(support::largest_of(std::vector<float>{std::nanf(""), 1})));
  CHECK(support::largest_of(std::vector<double>{1, -infinity<double>}) == infinity<double>);
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
