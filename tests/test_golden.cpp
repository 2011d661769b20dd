// Tests against golden data: values and gradients that other implementations computed.
#include "check.hpp"
#include "support/compare.hpp"

#include <algorithm>
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
  const auto dumped = [&](auto results) {
    SafeTensors dump;
    for (const auto& r : results.values)
      dump.add("out." + r.first, results.shapes.at(r.first), r.second);
    for (const auto& r : results.integers) dump.add(r.first, results.shapes.at(r.first), r.second);
    return dump;
  };
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
                  "algorithm", "");
  const Conventions author = Conventions::author_tf();
  check_departure(support::compare_dump(c, file,
                                        dumped(support::run_golden<double>(c, file, &author))),
                  "slot", "slots", "convention", "as under the preset author_tf");

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
