// Tests against golden data: values and gradients that other implementations computed.
#include "check.hpp"
#include "support/golden.hpp"

#include <algorithm>
#include <limits>
#include <set>

using namespace widenet;

namespace {

const char* const folder = "data/golden";

template <class T>
double largest_of(const std::vector<T>& x) {
  double largest = 0;
  for (const T value : x) largest = std::fmax(largest, std::fabs(double(value)));
  return largest;
}

/// The largest |a - b|; infinite if the sizes differ or a value is not finite.
template <class A, class B>
double distance(const std::vector<A>& a, const std::vector<B>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(double(a[i]) - double(b[i]));
    if (!std::isfinite(d)) return std::numeric_limits<double>::infinity();
    largest = std::fmax(largest, d);
  }
  return largest;
}

/// The unit in the last place of x in T.
template <class T>
double ulp(double x) {
  const T y = static_cast<T>(x);
  return double(std::nextafter(y, std::numeric_limits<T>::infinity())) - double(y);
}

/// What all gradients of a case are measured by where one of them is zero in exact arithmetic.
double largest_gradient(const SafeTensors& file) {
  double largest = 0;
  for (const auto& entry : file.tensors)
    if (entry.first.compare(0, 9, "out.grad.") == 0)
      largest = std::fmax(largest, largest_of(file.values<double>(entry.first)));
  return largest;
}

bool is_in(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// The largest errors of our float over 33 runs: with the inputs, and with inputs moved by at most
/// half a unit in the last place. Runs in which a choice flips do not count.
std::map<std::string, double> float_errors(const support::GoldenCase& c, const SafeTensors& file) {
  std::map<std::string, double> errors;
  for (Index run = 0; run < 33; ++run) {
    SafeTensors moved = file;
    const Rng rng = Rng(3).at_step(run);
    Index count = 0;
    for (auto& entry : moved.tensors) {
      if (entry.first.compare(0, 3, "in.") != 0 || entry.second.dtype != "F64") continue;
      std::vector<double> x = file.values<double>(entry.first);
      for (double& value : x)
        value *= 1 + (run == 0 ? 0 : (rng.uniform(count++) - 0.5) * 0x1p-23);
      if (!x.empty()) std::memcpy(entry.second.bytes.data(), x.data(), entry.second.bytes.size());
    }
    const auto ours = support::run_golden<float>(c, moved);
    bool flips = false;
    for (const auto& integers : ours.integers)
      flips = flips || integers.second != file.values<std::int32_t>("out." + integers.first);
    if (flips) continue;
    for (const auto& result : ours.values)
      if (file.tensors.count("out." + result.first) > 0)
        errors[result.first] = std::fmax(
            errors[result.first],
            distance(result.second, file.values<double>("out." + result.first)));
  }
  return errors;
}

/// How many times as wrong as the other our float may be: twice, but for one tensor. Our router
/// multiplies with 1 / sum where PyTorch divides by the sum, so its probabilities add up to 1 within
/// two units in the last place instead of one, which the gradient of a certain token shows.
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
        CHECK(largest_of(expected) <= 4 * ulp<double>(scale));
        CHECK(largest_of(ours.values.at(name)) <= 4 * ulp<double>(scale));
        continue;
      }
      const double largest = largest_of(expected);
      CHECK(distance(ours.values.at(name), expected) <=
            std::fmax(1e-12 * largest, 4 * ulp<double>(largest)));
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
    const std::map<std::string, double> error32 = float_errors(c, file);
    const double scale = largest_gradient(file);
    for (const auto& entry : file.tensors) {
      if (entry.first.compare(0, 6, "out32.") != 0) continue;
      const std::string name = entry.first.substr(6);
      INFO(name);
      const std::vector<double> exact = file.values<double>("out." + name);
      const double largest = is_in(c.zero, name) ? scale : largest_of(exact);
      const double floor = 4 * ulp<float>(largest);
      CHECK(distance(ours.values.at(name), exact) <=
            factor(c.name, name) * c.error32.at(name) + floor);
      CHECK(distance(file.values<float>(entry.first), exact) <= 2 * error32.at(name) + floor);
    }
  }
}
