// compare.hpp - where a dump of another implementation first departs from a case, and how.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_COMPARE_HPP
#define WIDENET_EXAMPLES_SUPPORT_COMPARE_HPP

#include "support/golden.hpp"
#include "widenet.hpp"

#include <algorithm>  // find, sort, stable_sort
#include <cmath>      // fabs, fmax, isfinite, nextafter
#include <cstdint>    // int32_t, int64_t
#include <cstring>    // memcpy
#include <limits>     // numeric_limits
#include <map>        // map
#include <string>     // string
#include <tuple>      // tuple
#include <vector>     // vector

namespace widenet::support {

/// The largest magnitude.
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

/// The unit in the last place of x >= 0 in T.
template <class T>
double ulp_of(double x) {
  const T y = static_cast<T>(x);
  return double(std::nextafter(y, std::numeric_limits<T>::infinity())) - double(y);
}

/// How wrong our float may be: its largest errors over runs with the inputs, and with inputs moved
/// by at most half a unit in the last place. One run alone may be right by luck. Runs in which a
/// choice flips do not count.
inline std::map<std::string, double> float_errors(const GoldenCase& c, const SafeTensors& file,
                                                  const GoldenResults<double>& exact,
                                                  Index num_runs = 33,
                                                  const Conventions* conventions = nullptr) {
  std::map<std::string, double> errors;
  for (Index run = 0; run < num_runs; ++run) {
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
    const auto ours = run_golden<float>(c, moved, conventions);
    if (run > 0 && ours.integers != exact.integers) continue;
    for (const auto& result : ours.values) {
      double& error = errors[result.first];
      error = std::fmax(error, distance(result.second, exact.values.at(result.first)));
    }
  }
  return errors;
}

/// A case file that says itself what it is.
///
///   Errors    IoError if its metadata do not
inline GoldenCase read_case(const std::string& path, const SafeTensors& file) {
  const auto about = file.metadata.find("case");
  require<IoError>(about != file.metadata.end(), "golden: ", path,
                   ": the metadata must have \"case\"; got none");
  const Json json = Json::parse(about->second, path);
  GoldenCase c;
  c.path = path, c.name = json.at("name").string(), c.op = json.at("op").string();
  c.settings = json.at("settings");
  for (const Json& name : json.at("zero").items()) c.zero.push_back(name.string());
  return c;
}

/// The rungs of a run, bottom up, and the equation of each.
struct Rung {
  const char *name, *equation;
};
inline const std::vector<Rung>& rungs() {
  static const std::vector<Rung> all = {
      {"LayerNorm", "y = (x - mean) / sqrt(var + eps) gamma + beta"},
      {"attention", "softmax(q k^T / sqrt(Dh)) v"},
      {"router logits", "z = x w, p = softmax(z + noise)"},
      {"indices", "e(n, k) = the k-th largest of p[n, :], ties to the lower index"},
      {"slots", "slot(n, k) = choices of e(n, k) served before, or -1 from C on"},
      {"experts", "y = gelu(x w1 + b1) w2 + b2"},
      {"combine", "y[n] = sum over kept k of gate[n, k] slots[e, c]"},
      {"balance loss", "E sum over e of f[e] P[e]"},
      {"outputs", "what the model returns"},
      {"loss", "main + lambda * balance"},
      {"gradients", "dL/dx"},
      {"optimiser", "the first step"},
      {"ten steps", "weights and state after ten steps"}};
  return all;
}

/// Where a result stands: its routing, then its rung.
inline std::tuple<Index, std::size_t> place_of(const std::string& op, const std::string& name) {
  const auto begins = [&](const char* text) { return name.rfind(text, 0) == 0; };
  Index routing = 1 << 20;
  std::string part = name;
  if (begins("routing.") || begins("balance_losses.")) {
    const std::size_t dot = name.find('.'), end = name.find('.', dot + 1);
    routing = std::strtoll(name.c_str() + dot + 1, nullptr, 10);
    part = end == std::string::npos ? "balance_loss" : name.substr(end + 1);
  }
  const bool is_stage = routing < 1 << 20 || op == "mixture" || op == "block";
  const std::map<std::string, std::size_t> stages = {
      {"norm1", 0}, {"norm2", 0}, {"q", 1}, {"k", 1}, {"v", 1}, {"attention", 1}, {"o", 1},
      {"middle", 1}, {"logits", 2}, {"probabilities", 2}, {"expert", 3}, {"load", 3}, {"slot", 4},
      {"kept", 4}, {"slots", 5}, {"results", 5}, {"gate", 6}, {"y", 6}, {"importance", 7},
      {"balance_loss", 7}};
  const auto stage = stages.find(part);
  if (begins("grad.")) return {routing, 10};
  if (begins("first.")) return {routing, 11};
  if (begins("last.") || begins("sgd.") || begins("adamw.") || begins("lamb.") || name == "losses")
    return {routing, 12};
  if (name == "loss" || name == "main_loss") return {routing, 9};
  if (is_stage && stage != stages.end()) return {routing, stage->second};
  return {routing, part == "balance_loss" ? 7 : 8};
}

/// What was found about the first tensor that departs, or, with an empty name, that none does.
struct Departure {
  std::string name, rung, equation, bucket, hint, highest_rung;
  Index element = -1;
  double ours = 0, theirs = 0, absolute = 0, relative = 0, ulps = 0, cosine = 1, tolerance = 0;
  Index compared = 0;
  std::vector<std::string> missing;  // ours that the dump lacks
};

/// The values of any type of number as doubles.
inline std::vector<double> numbers_of(const SafeTensors& file, const std::string& name) {
  const auto all = [&](auto zero) {
    const auto values = file.values<decltype(zero)>(name);
    return std::vector<double>(values.begin(), values.end());
  };
  const std::string& dtype = file.at(name).dtype;
  return dtype == "F64" ? all(0.0) : dtype == "F32" ? all(0.0f)
         : dtype == "I64" ? all(std::int64_t(0)) : all(std::int32_t(0));
}

/// Whether theirs is ours with the last two axes swapped, or with the slices along one axis in
/// another order; says which.
inline std::string layout_of(const std::vector<double>& ours, const std::vector<double>& theirs,
                             const Shape& shape, double tolerance) {
  if (ours.size() != theirs.size() || ours.empty()) return "";
  if (shape.rank() >= 2) {
    const std::size_t columns = static_cast<std::size_t>(shape.last());
    const std::size_t rows = static_cast<std::size_t>(shape[shape.rank() - 2]);
    std::vector<double> swapped;
    for (std::size_t block = 0; block < ours.size(); block += rows * columns)
      for (std::size_t j = 0; j < columns; ++j)
        for (std::size_t i = 0; i < rows; ++i) swapped.push_back(ours[block + i * columns + j]);
    if (distance(swapped, theirs) <= tolerance) return "transposed";
    const std::size_t slices = static_cast<std::size_t>(shape[0]), size = ours.size() / slices;
    std::vector<bool> used(slices);
    std::size_t matched = 0;
    for (std::size_t e = 0; e < slices; ++e)
      for (std::size_t f = 0; f < slices; ++f) {
        bool equal = !used[f];
        for (std::size_t i = 0; equal && i < size; ++i)
          equal = std::fabs(ours[e * size + i] - theirs[f * size + i]) <= tolerance;
        if (!equal) continue;
        used[f] = true, ++matched;
        break;
      }
    if (matched == slices) return "slices of the first axis in another order: permuted experts?";
  }
  std::vector<double> a = ours, b = theirs;
  std::sort(a.begin(), a.end());
  std::sort(b.begin(), b.end());
  return distance(a, b) <= tolerance ? "the same values in another order" : "";
}

/// Whether theirs are our whole numbers under other names of the experts.
inline bool is_renamed(const std::vector<double>& ours, const std::vector<double>& theirs) {
  std::map<double, double> to, from;
  for (std::size_t i = 0; i < ours.size(); ++i)
    if (to.emplace(ours[i], theirs[i]).first->second != theirs[i] ||
        from.emplace(theirs[i], ours[i]).first->second != ours[i])
      return false;
  return true;
}

/// Walks the results of a case in the order of computation, whole numbers first within a routing,
/// until one of the dump is out of tolerance:
///
///   float64   1e-12 of the largest value, at least 4 units in its last place
///   float32   twice the error that our own float may make (float_errors), plus 4 such units
///
/// A dump holds out.NAME or NAME, and need not hold everything.
///
///   Errors    IoError if no name of the dump is one of ours
inline Departure compare_dump(const GoldenCase& c, const SafeTensors& file,
                              const SafeTensors& dump) {
  const auto exact = run_golden<double>(c, file);
  const auto error32 = float_errors(c, file, exact, 9);
  std::vector<std::string> order = exact.order;
  std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    return place_of(c.op, a) < place_of(c.op, b);
  });
  double scale = 0;
  for (const auto& result : exact.values)
    if (result.first.rfind("grad.", 0) == 0) scale = std::fmax(scale, largest_of(result.second));
  Departure found;
  const auto reference = [&](const GoldenResults<double>& r, const std::string& name) {
    const auto whole = r.integers.find(name);
    if (whole == r.integers.end()) return r.values.at(name);
    return std::vector<double>(whole->second.begin(), whole->second.end());
  };
  for (const std::string& name : order) {
    const std::string key = dump.tensors.count("out." + name) > 0 ? "out." + name : name;
    if (dump.tensors.count(key) == 0) {
      found.missing.push_back(name);
      continue;
    }
    const bool is_whole = exact.integers.count(name) > 0;
    const bool is_float = dump.at(key).dtype == "F32";
    const bool is_zero = std::find(c.zero.begin(), c.zero.end(), name) != c.zero.end();
    const std::vector<double> ours = reference(exact, name);
    const std::vector<double> theirs = numbers_of(dump, key);
    const double largest = is_zero ? scale : largest_of(ours);
    const double tolerance =
        is_whole   ? 0
        : is_float ? 2 * error32.at(name) + 4 * ulp_of<float>(largest)
                   : std::fmax((is_zero ? 0 : 1e-12) * largest, 4 * ulp_of<double>(largest));
    const Rung& rung = rungs()[std::get<1>(place_of(c.op, name))];
    ++found.compared;
    if (distance(ours, theirs) <= tolerance) {
      found.highest_rung = rung.name;
      continue;
    }
    found.name = name, found.rung = rung.name, found.equation = rung.equation;
    found.tolerance = tolerance;
    if (ours.size() == theirs.size()) {
      const Difference d = compare(theirs, ours);
      found.element = d.at, found.absolute = d.max_absolute, found.relative = d.max_relative;
      found.cosine = d.cosine;
      found.ulps = d.max_absolute / (is_float ? ulp_of<float>(largest) : ulp_of<double>(largest));
      found.ours = ours[static_cast<std::size_t>(d.at)];
      found.theirs = theirs[static_cast<std::size_t>(d.at)];
    }
    found.hint = is_whole && ours.size() == theirs.size() && name.find("expert") < name.size() &&
                         is_renamed(ours, theirs)
                     ? "the experts have other numbers"
                     : layout_of(ours, theirs, exact.shapes.at(name), tolerance);
    found.bucket = !found.hint.empty() ? "layout" : "algorithm";
    if (found.bucket == "algorithm")
      for (const auto& preset : Conventions::presets()) {
        const auto other = run_golden<double>(c, file, &preset.second);
        if (distance(reference(other, name), theirs) > tolerance) continue;
        found.bucket = "convention", found.hint = "as under the preset " + preset.first;
        break;
      }
    if (found.bucket == "algorithm" && !is_whole && found.absolute <= 1000 * tolerance)
      found.bucket = "rounding", found.hint = "within 1000 times the tolerance";
    return found;
  }
  require<IoError>(found.compared > 0, "compare: a dump must hold one of our names, such as ",
                   order.empty() ? "" : order[0], "; got ",
                   dump.tensors.empty() ? "nothing" : dump.tensors.begin()->first);
  return found;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_COMPARE_HPP
