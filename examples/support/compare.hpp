// compare.hpp - where a dump of another implementation first departs from a case, and how.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_COMPARE_HPP
#define WIDENET_EXAMPLES_SUPPORT_COMPARE_HPP

#include "support/explain.hpp"
#include "support/golden.hpp"
#include "widenet.hpp"

#include <algorithm>  // any_of, fill, find, find_if, max, none_of, remove, rotate, sort, ...
#include <cmath>      // fabs, fmax, isfinite, isnan, nextafter, round
#include <cstdint>    // int32_t
#include <cstdlib>    // strtoll
#include <cstring>    // memcpy
#include <iomanip>    // setprecision
#include <limits>     // numeric_limits
#include <map>        // map
#include <string>     // string
#include <tuple>      // tie
#include <utility>    // pair
#include <vector>     // vector

namespace widenet::support {

/// The largest magnitude; NaN if a value is, so that no such tensor is small.
template <class T>
double largest_of(const std::vector<T>& x) {
  double largest = 0;
  for (const T value : x) {
    if (std::isnan(double(value))) return std::numeric_limits<double>::quiet_NaN();
    largest = std::fmax(largest, std::fabs(double(value)));
  }
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
    const bool flips = std::any_of(ours.integers.begin(), ours.integers.end(), [&](const auto& r) {
      return r.second != exact.integers.at(r.first);
    });
    if (run > 0 && flips) continue;
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

/// Refuses a dump with numbers of 16 bits: nothing anchors a tolerance for them.
///
///   Errors    IoError naming `who` and the tensor
inline void require_anchored(const SafeTensors& dump, const std::string& who) {
  for (const auto& tensor : dump.tensors)
    require<IoError>(tensor.second.dtype != "F16" && tensor.second.dtype != "BF16", who,
                     ": a dump must hold F64 or F32, for which there are tolerances; got ",
                     tensor.second.dtype, " for ", tensor.first);
}

/// A step of computation: its rung on the ladder from the weights to ten steps of training, its
/// equation, and its results. A name that ends in a dot stands for all that begin with it.
struct Step {
  const char *rung, *equation;
  std::vector<std::string> results;
};

/// The steps of a block in an order in which they can be computed. The gates come late: no expert
/// needs them.
inline std::vector<Step> steps_of_block(bool is_pre_norm, bool is_moe) {
  const char* const norm = "y = (x - mean) / sqrt(var + eps) gamma + beta";
  const char* const ffn = "y = gelu(x w1 + b1) w2 + b2";
  const Step norm1 = {"LayerNorm", norm, {"norm1"}}, norm2 = {"LayerNorm", norm, {"norm2"}};
  std::vector<Step> steps;
  const auto add = [&](const std::vector<Step>& more) {
    steps.insert(steps.end(), more.begin(), more.end());
  };
  if (is_pre_norm) add({norm1});
  add({{"attention", "q = h wq + bq, and k and v alike", {"q", "k", "v"}},
       {"attention", "softmax(q k^T / sqrt(Dh)) v", {"attention"}},
       {"attention", "o = attention wo + bo", {"o"}},
       {"attention", "middle = x + o", {"middle"}}});
  add({is_pre_norm ? norm2 : norm1});
  if (is_moe)
    add({{"router logits", "z = x w", {"logits"}},
         {"router logits", "p = softmax(z + noise)", {"probabilities"}},
         {"indices", "e(n, k) = the k-th largest of p[n, :], ties to the lower index",
          {"expert", "load"}},
         {"slots", "slot(n, k) = choices of e(n, k) served before, or -1 from C on",
          {"slot", "kept"}},
         {"experts", "slots[e, c] = x[n] where e = e(n, k) and c = slot(n, k), else 0", {"slots"}},
         {"experts", ffn, {"results"}},
         {"combine", "gate[n, k] = p[n, e(n, k)], or renormalised", {"gate"}},
         {"combine", "y[n] = sum over kept k of gate[n, k] slots[e, c]", {"y"}},
         {"balance loss", "importance[e] = sum over n of p[n, e]", {"importance"}},
         {"balance loss", "E sum over e of f[e] P[e]", {"balance_loss"}},
         {"combine", "tokens = middle + y", {"tokens"}}});
  else
    add({{"experts", ffn, {"y"}}, {"experts", "tokens = middle + y", {"tokens"}}});
  if (!is_pre_norm) add({norm2});
  return steps;
}

/// What comes before the blocks, and what comes after them.
inline const std::vector<Step>& first_steps() {
  static const std::vector<Step> all = {
      {"weights", "the inputs and weights are those of the case", {"in."}},
      {"embedding", "x of block 0: what stands for words or patches, plus places", {"embedding"}}};
  return all;
}
inline const std::vector<Step>& last_steps() {
  static const std::vector<Step> all = {
      {"balance loss", "of all routings: the sum of E sum over e of f[e] P[e], or their mean",
       {"balance_loss"}},
      {"outputs", "what the model or the operation returns", {}},
      {"loss", "main + lambda * balance", {"main_loss", "loss"}},
      {"gradients", "dL/dx", {"grad."}},
      {"optimiser", "the first step", {"first."}},
      {"ten steps", "weights and state after ten steps",
       {"losses", "last.", "sgd.", "adamw.", "lamb."}}};
  return all;
}

/// Where a result stands in the order of computation.
struct Place {
  Index block = 0;        // -1: before the blocks; `after_blocks`: behind the last one
  std::size_t step = 0;   // within the block
  const char *rung = "", *equation = "";
  static constexpr Index after_blocks = std::numeric_limits<Index>::max();
  bool operator<(const Place& other) const {
    return std::tie(block, step) < std::tie(other.block, other.step);
  }
};

/// The places of the results of a case. A routing stands in the block that computes it.
class Ladder {
 public:
  explicit Ladder(const GoldenCase& c) : op_(c.op) {
    GivenFields reader{c.settings};
    widenet::detail::visit_encoder(config_, reader);
    for (Index i = 0; i < config_.blocks; ++i)
      if (config_.routes(i)) block_of_routing_.push_back(i);
  }

  Place place_of(const std::string& name) const {
    const std::size_t dot = name.find('.'), end = name.find('.', dot + 1);
    const std::string kind = name.substr(0, dot);
    if (kind == "block" || kind == "routing" || kind == "balance_losses") {
      const Index i = std::strtoll(name.c_str() + dot + 1, nullptr, 10);
      const std::size_t t = static_cast<std::size_t>(i);
      const std::string part = end == std::string::npos ? "balance_loss" : name.substr(end + 1);
      const bool is_known = kind == "block" || t < block_of_routing_.size();
      return in_block(kind == "block" ? i : is_known ? block_of_routing_[t] : i, part);
    }
    const std::size_t first = step_of(first_steps(), name);
    if (first < first_steps().size()) return place(-1, first_steps(), first);
    if (op_ == "mixture" || op_ == "block") {
      const Place inside = in_block(0, name);
      if (inside.step < steps_of_block(true, true).size()) return inside;
    }
    return after_blocks(name);
  }

 private:
  /// The first step that has a result of this name; their number if none has.
  static std::size_t step_of(const std::vector<Step>& steps, const std::string& name) {
    const auto is_named = [&](const std::string& result) {
      return result.back() == '.' ? name.compare(0, result.size(), result) == 0 : name == result;
    };
    std::size_t i = 0;
    while (i < steps.size() &&
           std::none_of(steps[i].results.begin(), steps[i].results.end(), is_named))
      ++i;
    return i;
  }
  static Place place(Index block, const std::vector<Step>& steps, std::size_t i) {
    return {block, i, steps[i].rung, steps[i].equation};
  }
  Place in_block(Index i, const std::string& name) const {
    const bool is_layer = op_ == "mixture" || op_ == "block";
    const std::vector<Step> steps =
        steps_of_block(is_layer || config_.is_pre_norm, is_layer || config_.is_moe(i));
    const std::size_t step = step_of(steps, name);
    if (step < steps.size()) return place(i, steps, step);
    return {i, step, "outputs", "what the block returns"};
  }
  /// A single operation belongs to the rung where models use it.
  Place after_blocks(const std::string& name) const {
    const std::vector<Step>& steps = last_steps();
    const std::size_t outputs = 1, found = step_of(steps, name);
    Place there = place(Place::after_blocks, steps, found < steps.size() ? found : outputs);
    const std::map<std::string, const char*> used_as = {
        {"layer_norm", "norm1"}, {"rms_norm", "norm1"}, {"attention", "attention"},
        {"embedding", "embedding"}, {"extract_patches", "embedding"},
        {"prepend_token", "embedding"}, {"add_to_sequences", "embedding"}};
    const auto use = used_as.find(op_);
    if (name != "y" || use == used_as.end()) return there;
    const std::size_t first = step_of(first_steps(), use->second);
    const Place inside = first < first_steps().size() ? place(-1, first_steps(), first)
                                                      : in_block(0, use->second);
    there.rung = inside.rung, there.equation = inside.equation;
    return there;
  }
  std::string op_;
  EncoderConfig config_;
  std::vector<Index> block_of_routing_;
};

/// How a tensor of the dump departs from ours.
struct Mismatch {
  std::string name, rung, equation;
  Shape shape, their_shape;
  Index element = -1;    // that is off most, of whole numbers the first; -1: the sizes differ
  Index differing = 0;   // elements out of tolerance
  double ours = 0, theirs = 0, absolute = 0, relative = 0, ulps = 0, cosine = 1, tolerance = 0;
};

/// What was found: the first tensor that departs, or, with an empty name, that none does. If that
/// one holds real numbers, choices can have flipped behind it: `whole` is the first result of whole
/// numbers that departs, which may be the same.
struct Departure : Mismatch {
  std::string bucket, hint, highest_rung, last_agreeing;
  Mismatch whole;
  std::string whole_hint;
  Index compared = 0;
  std::vector<std::string> missing;  // ours that the dump lacks
};

/// Whether one shape is the other with neighbouring axes merged, such as (B, T, D) and (N, D).
inline bool is_regrouped(const Shape& a, const Shape& b) {
  if (a.num_values() != b.num_values()) return false;
  const std::vector<Index>&x = a.extents(), &y = b.extents();
  Index rows_a = 1, rows_b = 1;
  for (std::size_t i = 0, j = 0; i < x.size() || j < y.size();) {
    const bool takes_a = j == y.size() || (i < x.size() && rows_a <= rows_b);
    (takes_a ? rows_a : rows_b) *= takes_a ? x[i++] : y[j++];
    const bool is_finer = rows_a % rows_b == 0 || rows_b % rows_a == 0;
    if (!is_finer) return false;
  }
  return x.size() != y.size() || a == b;
}

/// The values of blocks of rows x columns with the two axes swapped.
inline Numbers transposed(const Numbers& x, std::size_t rows, std::size_t columns) {
  Numbers swapped;
  for (std::size_t block = 0; block < x.size(); block += rows * columns)
    for (std::size_t j = 0; j < columns; ++j)
      for (std::size_t i = 0; i < rows; ++i) swapped.push_back(x[block + i * columns + j]);
  return swapped;
}

/// Whether the slices of x along its first axis, of which there are `slices`, are those of y in
/// another order.
inline bool is_permuted(const Numbers& x, const Numbers& y, std::size_t slices, double tolerance) {
  const std::size_t size = x.size() / slices;
  std::vector<bool> used(slices);
  std::size_t matched = 0;
  for (std::size_t e = 0; e < slices; ++e)
    for (std::size_t f = 0; f < slices; ++f) {
      bool equal = !used[f];
      for (std::size_t i = 0; equal && i < size; ++i)
        equal = std::fabs(x[e * size + i] - y[f * size + i]) <= tolerance;
      if (!equal) continue;
      used[f] = true, ++matched;
      break;
    }
  return matched == slices;
}

/// Which of the parts of theirs, side by side in the rows or one after the other, is ours.
inline std::string fused_part(const Numbers& ours, const Numbers& theirs, const Shape& shape,
                              double tolerance) {
  const std::size_t columns = static_cast<std::size_t>(shape.last());
  const std::size_t rows = ours.size() / std::max<std::size_t>(1, columns);
  if (ours.empty() || theirs.size() % ours.size() != 0) return "";
  const std::size_t parts = theirs.size() / ours.size();
  for (const bool is_swapped : {false, true}) {
    const Numbers part_of = is_swapped ? transposed(ours, rows, columns) : ours;
    const std::size_t width = is_swapped ? rows : columns;
    for (const bool is_beside : {true, false})
      for (std::size_t part = 0; part < parts; ++part) {
        Numbers cut;
        for (std::size_t i = 0; i < ours.size(); ++i)
          cut.push_back(theirs[is_beside ? i / width * width * parts + part * width + i % width
                                         : part * ours.size() + i]);
        if (distance(part_of, cut) > tolerance) continue;
        PlainText text;
        text << "fused: ours is part " << part + 1 << " of " << parts
             << (is_beside ? " along the last axis" : " along the first axis")
             << (is_swapped ? ", transposed" : "");
        return text.str();
      }
  }
  return "";
}

/// What about the layout makes theirs another tensor than ours, if that is all: the order of axes,
/// parts fused into one, slices of an axis (experts) in another order, the shape.
inline std::string layout_of(const Numbers& ours, const Numbers& theirs, const Shape& shape,
                             const Shape& their_shape, double tolerance) {
  if (ours.size() != theirs.size()) return fused_part(ours, theirs, shape, tolerance);
  if (ours.empty()) return "";
  if (distance(ours, theirs) <= tolerance)
    return is_regrouped(shape, their_shape) ? "" : "the same values in another shape";
  if (shape.rank() >= 2) {
    const std::size_t columns = static_cast<std::size_t>(shape.last());
    const std::size_t rows = static_cast<std::size_t>(shape[shape.rank() - 2]);
    if (distance(transposed(ours, rows, columns), theirs) <= tolerance) return "transposed";
    const char* const permuted = " axis in another order: permuted experts?";
    if (is_permuted(ours, theirs, static_cast<std::size_t>(shape[0]), tolerance))
      return std::string("slices of the first") + permuted;
    const std::size_t all_rows = ours.size() / columns;
    if (is_permuted(transposed(ours, all_rows, columns), transposed(theirs, all_rows, columns),
                    columns, tolerance))
      return std::string("slices of the last") + permuted;
  }
  Numbers a = ours, b = theirs;
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

/// A number, truth value or string as JSON.
inline std::string literal_of(const Json& value) {
  PlainText text;
  text << std::setprecision(17);
  if (value.type() == Json::Type::number) text << value.number();
  if (value.type() == Json::Type::boolean) text << (value.boolean() ? "true" : "false");
  if (value.type() == Json::Type::string) text << Json::quote(value.string());
  return text.str();
}

/// Settings and their values, in JSON.
using Changes = std::map<std::string, std::string>;
inline Changes literals_of(const Json& settings) {
  Changes all;
  for (const auto& member : settings.members()) all[member.first] = literal_of(member.second);
  return all;
}
inline Json changed(const Json& settings, const Changes& changes) {
  Changes all = changes;
  all.merge(literals_of(settings));  // does not overwrite
  std::string text = "{";
  for (const auto& entry : all)
    text += (text == "{" ? "" : ",") + Json::quote(entry.first) + ":" + entry.second;
  return Json::parse(text + "}", "settings");
}

/// A dump beside a case: how far the results of a run agree with it.
class Walk {
 public:
  Walk(const GoldenCase& c, const SafeTensors& file, const SafeTensors& dump)
      : case_(c), file_(file), dump_(dump), ladder_(c), exact(run_with(file)) {
    for (const std::string& name : exact.order)
      if (is_input(name) ? has(name) : !is_noise(name)) order.push_back(name);
    std::map<std::string, Place> places;
    for (const std::string& name : order) places[name] = place_of(name);
    std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
      return places[a] < places[b];
    });
    num_inputs = std::size_t(std::count_if(order.begin(), order.end(), is_input));
    bool has_float = false;
    for (const auto& tensor : dump.tensors) has_float = has_float || tensor.second.dtype == "F32";
    if (has_float) error32_ = float_errors(c, file, exact, 9);
    for (const auto& result : exact.values)
      if (result.first.rfind("grad.", 0) == 0)
        scale_ = std::fmax(scale_, largest_of(result.second));
  }

  bool has(const std::string& name) const { return dump_.tensors.count(key_of(name)) > 0; }
  const StoredTensor& stored(const std::string& name) const { return dump_.at(key_of(name)); }
  Numbers theirs(const std::string& name) const { return numbers_of(dump_, key_of(name)); }
  static Numbers ours(const GoldenResults<double>& results, const std::string& name) {
    const auto whole = results.integers.find(name);
    if (whole == results.integers.end()) return results.values.at(name);
    return {whole->second.begin(), whole->second.end()};
  }
  bool is_whole(const std::string& name) const { return exact.integers.count(name) > 0; }
  bool is_float(const std::string& name) const { return stored(name).dtype == "F32"; }

  /// The run of the case with other inputs, which stand before its results.
  GoldenResults<double> run_with(const SafeTensors& inputs) const { return run(case_, inputs); }
  const SafeTensors& inputs() const { return file_; }
  /// Those of the dump, where it has some of the same shape.
  SafeTensors their_inputs() const {
    SafeTensors all = file_;
    for (auto& entry : all.tensors) {
      const std::string& name = entry.first;
      if (!is_input(name) || !has(name) || !has_our_shape(name)) continue;
      const Numbers x = theirs(name);
      SafeTensors one;
      const std::vector<std::int32_t> whole(x.begin(), x.end());
      is_whole(name) ? one.add(name, entry.second.shape, whole)
                     : one.add(name, entry.second.shape, x);
      entry.second = one.tensors.at(name);
    }
    return all;
  }
  static bool is_input(const std::string& name) { return name.rfind("in.", 0) == 0; }
  Place place_of(const std::string& name) const { return ladder_.place_of(name); }

  /// What a result is measured by, and what it may be off by.
  double largest(const std::string& name) const {
    const bool is_zero = std::find(case_.zero.begin(), case_.zero.end(), name) != case_.zero.end();
    return is_zero ? scale_ : largest_of(ours(exact, name));
  }
  double tolerance(const std::string& name) const {
    const bool is_zero = std::find(case_.zero.begin(), case_.zero.end(), name) != case_.zero.end();
    const double most = largest(name);
    const auto error = error32_.find(name);  // of an input there is none but its rounding
    return is_whole(name)   ? 0
           : is_float(name) ? (error == error32_.end() ? 0 : 2 * error->second) +
                                  4 * ulp_of<float>(most)
                            : std::fmax((is_zero ? 0 : 1e-12) * most, 4 * ulp_of<double>(most));
  }
  bool has_our_shape(const std::string& name) const {
    return is_regrouped(exact.shapes.at(name), stored(name).shape);
  }
  bool agrees(const GoldenResults<double>& results, const std::string& name) const {
    return distance(ours(results, name), theirs(name)) <= tolerance(name) &&
           is_regrouped(results.shapes.at(name), stored(name).shape);
  }
  /// The place in `order` of the first tensor from `begin` on that departs; the end if none does.
  std::size_t departure_of(const GoldenResults<double>& results, std::size_t begin = 0) const {
    std::size_t i = begin;
    while (i < order.size() && (!has(order[i]) || agrees(results, order[i]))) ++i;
    return i;
  }
  /// The same of whole numbers.
  std::size_t departure_of_whole_numbers() const {
    const auto departs = [&](const std::string& name) {
      return !is_input(name) && is_whole(name) && has(name) && !agrees(exact, name);
    };
    return std::size_t(std::find_if(order.begin(), order.end(), departs) - order.begin());
  }
  /// The same if the settings were others; 0 if that is no run.
  std::size_t departure_under(const Changes& changes) const {
    GoldenCase c = case_;
    c.settings = changed(case_.settings, changes);
    try {
      return departure_of(run(c, file_));
    } catch (const Error&) {
      return 0;
    }
  }

 private:
  std::string key_of(const std::string& name) const {
    return dump_.tensors.count("out." + name) > 0 ? "out." + name : name;
  }
  /// A case that holds results leaves out those that nothing determines: Adam divides the gradient
  /// of the key bias, 0 but for rounding, by its own size.
  bool is_noise(const std::string& name) const {
    const auto first = file_.tensors.lower_bound("out.");
    const bool holds_results = first != file_.tensors.end() && first->first.rfind("out.", 0) == 0;
    return holds_results && file_.tensors.count("out." + name) == 0;
  }
  static GoldenResults<double> run(const GoldenCase& c, const SafeTensors& inputs) {
    GoldenResults<double> results = run_golden<double>(c, inputs);
    for (const auto& entry : inputs.tensors) {
      if (!is_input(entry.first)) continue;
      results.order.push_back(entry.first);
      results.shapes[entry.first] = entry.second.shape;
      const Numbers x = numbers_of(inputs, entry.first);
      if (entry.second.dtype[0] == 'I') results.integers[entry.first].assign(x.begin(), x.end());
      else results.values[entry.first] = x;
    }
    return results;
  }
  const GoldenCase& case_;
  const SafeTensors &file_, &dump_;
  const Ladder ladder_;
  std::map<std::string, double> error32_;
  double scale_ = 0;

 public:
  GoldenResults<double> exact;
  std::vector<std::string> order;  // of computation: inputs that the dump has, results; no noise
  std::size_t num_inputs = 0;
};

/// The settings about which implementations disagree, with their values in JSON.
inline const std::vector<std::pair<std::string, std::vector<std::string>>>& known_forks() {
  static const std::vector<std::string> yes_or_no = {"true", "false"};
  static const std::vector<std::string> epsilons = {"1e-12", "1e-8", "1e-6", "1e-5"};
  static const std::vector<std::pair<std::string, std::vector<std::string>>> all = {
      {"router_noise", {"\"none\"", "\"one_over_experts\"", "\"one_over_experts_squared\"",
                        "\"jitter\"", "\"jitter_in_place\""}},
      {"first_choice_sees_noise", yes_or_no}, {"gate_sees_noise", yes_or_no},
      {"balance_sees_noise", yes_or_no}, {"top_k", {"1", "2", "3"}},
      {"gate", {"\"raw\"", "\"renormalized\"", "\"renormalized_after_drop\""}},
      {"gate_eps", {"0", "1e-9", "1e-6"}},
      {"unusable_slots", {"0", "1"}}, {"capacity_rounding", {"\"floor\"", "\"ceil\""}},
      {"capacity_rule", {"\"choices_over_experts\"", "\"tokens_over_experts\"",
                         "\"shares_first\"", "\"tokens_first\"", "\"single_precision\"",
                         "\"dropless\"", "\"absolute\""}},
      {"capacity_multiple", {"1", "2", "4"}}, {"capacity_minimum", {"1", "4"}},
      {"capacity_sequences", {"0", "1", "2", "4", "8"}},
      {"priority", {"\"token_major\"", "\"choice_major\"", "\"batch_priority\"",
                    "\"highest_gate\""}},
      {"dropped", {"\"zero\"", "\"gated_input\""}},
      {"balance", {"\"khot_over_k\"", "\"khot_sum\"", "\"switch_top1\"", "\"after_drop\"",
                   "\"after_drop_both\"", "\"importance\"", "\"importance_unbiased\"", "\"load\"",
                   "\"z_loss\""}},
      {"balance_reduction", {"\"sum\"", "\"mean\"", "\"together\""}},
      {"routes_padding", yes_or_no}, {"gelu", {"\"tanh\"", "\"erf\""}},
      {"gelu_at_output", yes_or_no}, {"layer_norm_eps", epsilons}, {"eps", epsilons},
      {"is_pre_norm", yes_or_no}, {"pooling", {"\"class_token\"", "\"mean\"", "\"patch_mean\""}},
      {"class_token", {"\"zero\"", "\"trained\""}}, {"smoothing", {"0", "0.1"}}};
  return all;
}

/// Conventions as settings.
inline Changes literals_of(Conventions c) {
  widenet::detail::ConfigWriter writer;
  widenet::detail::visit_conventions(c, writer);
  return literals_of(Json::parse(writer.out.str() + "}", "conventions"));
}

/// Changes of settings that move the first departure of a dump to a later place, or away.
struct Fork {
  Changes changes;
  std::string preset;      // under which it does so, too
  std::size_t departure = 0;
};

/// One change after the other (three at most), each the one that brings the first departure the
/// furthest; or a whole preset, if no single change brings it as far.
inline Fork fork_of(const Walk& walk, const Json& settings, std::size_t departure) {
  Fork best;
  best.departure = departure;
  const Changes own = literals_of(settings);
  for (int round = 0; round < 3 && best.departure < walk.order.size(); ++round) {
    Fork next = best;
    const auto consider = [&](const Changes& changes, const std::string& preset) {
      const std::size_t there = walk.departure_under(changes);
      if (there > next.departure) next = {changes, preset, there};
    };
    for (const auto& fork : known_forks())
      for (const std::string& value : fork.second) {
        const auto now = own.find(fork.first);
        if (now == own.end() || best.changes.count(fork.first) > 0 ||
            now->second == literal_of(Json::parse(value, fork.first)))
          continue;
        Changes changes = best.changes;
        changes[fork.first] = value;
        consider(changes, "");
      }
    if (round == 0 && own.count("router_noise") > 0)
      for (const auto& preset : Conventions::presets())
        consider(literals_of(preset.second), preset.first);
    if (next.departure == best.departure) break;
    best = next;
    if (!best.preset.empty()) break;
  }
  return best;
}

/// The member of what explains a run that changes the fewest settings.
inline Changes fewest_changes(const Explanation& set, const Json& settings) {
  const Changes own = literals_of(settings);
  Changes fewest;
  bool has_one = false;
  std::map<const void*, std::size_t> nearest;  // of formulas or forms, whatever the rest is
  for (const Match& match : set.matches) {
    const auto changes_of = [&](const Combination& c) {
      Changes changes;
      c.visit_knobs([&](const char* knob, const std::string& value) {
        const auto now = own.find(knob);
        if (now == own.end() || !set.is_relevant(c, knob)) return;
        const bool is_number = now->second.find_first_of("tf\"") != 0;
        const std::string literal = is_number || value == "true" || value == "false"
                                        ? literal_of(Json::parse(value, knob))
                                        : Json::quote(value);
        if (literal != now->second) changes[knob] = literal;
      });
      return changes;
    };
    const std::size_t columns = match.forms->size();
    const auto best = [&](const void* list, std::size_t count, std::size_t step) {
      const auto known = nearest.find(list);
      if (known != nearest.end()) return known->second;
      std::size_t at = 0;
      for (std::size_t i = 1; i < count; ++i)
        if (changes_of(match.at(i * step)).size() < changes_of(match.at(at)).size()) at = i * step;
      return nearest[list] = at;
    };
    const std::size_t row = best(match.formulas.get(), match.formulas->size(), columns);
    const std::size_t column = best(match.forms.get(), columns, 1);
    const Changes changes = changes_of(match.at(row + column));
    if (!has_one || changes.size() < fewest.size()) fewest = changes, has_one = true;
  }
  return fewest;
}

/// In which order the experts must stand so that their results are those of the dump, if it is
/// another: "as with the experts in the order 0, 2, 1". Every expert is tried at every place; one
/// that has no tokens stays at its own.
inline std::string order_of_experts(const Walk& walk, double tolerance) {
  const Numbers theirs = walk.theirs("results");
  const Index E = walk.exact.shapes.at("results")[0];
  if (E < 2 || theirs.size() != walk.exact.values.at("results").size()) return "";
  const std::size_t size = theirs.size() / static_cast<std::size_t>(E);
  std::vector<Index> expert_at(static_cast<std::size_t>(E), -1);
  for (Index shift = 0; shift < E; ++shift) {
    SafeTensors turned = walk.inputs();
    for (auto& entry : turned.tensors) {
      if (entry.first.rfind("in.shared.moe.experts.", 0) != 0) continue;
      auto& bytes = entry.second.bytes;
      const Index size_of_one = static_cast<Index>(bytes.size()) / E;
      std::rotate(bytes.begin(), bytes.begin() + shift * size_of_one, bytes.end());
    }
    const Numbers ours = walk.run_with(turned).values.at("results");
    for (std::size_t e = 0; e < expert_at.size(); ++e) {
      bool agrees = expert_at[e] < 0;
      for (std::size_t i = e * size; i < (e + 1) * size; ++i)
        agrees = agrees && std::fabs(ours[i] - theirs[i]) <= tolerance;
      if (agrees) expert_at[e] = (static_cast<Index>(e) + shift) % E;
    }
  }
  PlainText text;
  for (const Index e : expert_at) {
    if (e < 0) return "";
    text << (text.str().empty() ? "as with the experts in the order " : ", ") << e;
  }
  return text.str();
}

/// By how much the probabilities of the experts chosen differ from those of ours, at most: 0 if
/// only the order of ties is another. Infinite if that is not what the result is about.
inline double margin_of_choices(const Walk& walk, const std::string& name) {
  const double none = std::numeric_limits<double>::infinity();
  const std::string routing = name.substr(0, name.rfind('.') + 1);
  if (name != routing + "expert") return none;
  const Numbers ours = Walk::ours(walk.exact, name), theirs = walk.theirs(name);
  if (ours.size() != theirs.size()) return none;
  const Numbers& p = walk.exact.values.at(routing + "probabilities");
  const std::size_t E = static_cast<std::size_t>(walk.exact.shapes.at(routing + "load")[0]);
  const std::size_t K = static_cast<std::size_t>(walk.exact.shapes.at(name).last());
  double margin = 0;
  for (std::size_t nk = 0; nk < ours.size(); ++nk) {
    if (!(theirs[nk] >= 0 && theirs[nk] < double(E))) return none;
    const auto p_of = [&](double e) { return p[nk / K * E + static_cast<std::size_t>(e)]; };
    margin = std::fmax(margin, std::fabs(p_of(theirs[nk]) - p_of(ours[nk])));
  }
  return margin;
}

/// What the margin says about choices that depart.
inline std::string about_choices(const Walk& walk, const std::string& name) {
  const double margin = margin_of_choices(walk, name);
  PlainText text;
  if (margin == 0) text << "a tie: the experts chosen are as probable as ours";
  else if (std::isfinite(margin))
    text << "the experts chosen are up to " << std::setprecision(2) << margin
         << " more or less probable than ours";
  return text.str();
}

/// What has become of the balance loss in a loss or a gradient, if that explains the result.
inline std::string balance_in(const Walk& walk, const std::string& name) {
  const auto& all = walk.exact.values;
  const Numbers& ours = all.at(name);
  Numbers share;  // of the balance loss in ours
  if (name == "loss" && all.count("balance_loss") > 0) {
    share = all.at("balance_loss");
    if (all.count("main_loss") > 0) share[0] = ours[0] - all.at("main_loss")[0];
  } else if (name.rfind("grad.", 0) == 0 && walk.inputs().tensors.count("in.d_y") > 0) {
    SafeTensors inputs = walk.inputs();
    auto& d_y = inputs.tensors.at("in.d_y").bytes;
    std::fill(d_y.begin(), d_y.end(), char(0));
    share = walk.run_with(inputs).values.at(name);
  } else {
    return "";
  }
  const auto is = [&](double main, double balance) {  // theirs = main + balance, so often as given
    Numbers sum;
    for (std::size_t i = 0; i < ours.size(); ++i)
      sum.push_back(main * (ours[i] - share[i]) + balance * share[i]);
    return distance(sum, walk.theirs(name)) <= walk.tolerance(name);
  };
  return is(1, 0)   ? "without the balance loss"
         : is(1, 2) ? "the balance loss counts twice"
         : is(0, 1) ? "of the balance loss alone"
                    : "";
}

/// "c times ours", if theirs are. Any two numbers are in some ratio: for single ones it has to be,
/// one way or the other, a whole number.
inline std::string multiple_of(const Numbers& ours, const Numbers& theirs, double tolerance) {
  std::size_t at = 0;  // of the largest
  for (std::size_t i = 0; i < ours.size(); ++i)
    if (std::fabs(ours[i]) > std::fabs(ours[at])) at = i;
  const double ratio = theirs[at] / ours[at], size = std::fabs(ratio);
  const double whole = std::fmax(size, 1 / size);
  bool holds = ours.size() > 1 || std::fabs(whole - std::round(whole)) <=
                                      whole * tolerance / std::fabs(ours[at]);
  for (std::size_t i = 0; i < ours.size(); ++i)
    holds = holds && std::fabs(theirs[i] - ratio * ours[i]) <= tolerance * std::fmax(1, size);
  PlainText text;
  text << ratio << " times ours";
  return holds ? text.str() : "";
}

/// What is plain to see about a result that no convention explains.
inline std::string relation_of(const Walk& walk, const std::string& name) {
  const Numbers ours = Walk::ours(walk.exact, name), theirs = walk.theirs(name);
  if (ours.size() != theirs.size() || ours.empty()) return "";
  if (walk.is_whole(name))
    return margin_of_choices(walk, name) == 0 ? about_choices(walk, name) : "";
  for (const double x : theirs)
    if (!std::isfinite(x)) return "not finite where ours is";
  if (largest_of(theirs) == 0) return "all 0";
  const std::string balance = balance_in(walk, name);
  if (!balance.empty()) return balance;
  for (const auto& other : walk.exact.values)
    if (distance(other.second, theirs) <= walk.tolerance(name)) return "our " + other.first;
  return multiple_of(ours, theirs, walk.tolerance(name));
}

/// The tolerance of a result, in one line (Walk::tolerance).
inline const char* const tolerance_rule =
    "float64: 1e-12 of the largest value, at least 4 units in its last place; float32: twice the "
    "error that our own float32 may make, plus 4 such units; whole numbers: none";

/// How a tensor of the dump departs from ours.
inline Mismatch mismatch_of(const Walk& walk, const std::string& name) {
  const Numbers ours = Walk::ours(walk.exact, name), theirs = walk.theirs(name);
  const Place place = walk.place_of(name);
  Mismatch m;
  m.name = name, m.rung = place.rung, m.equation = place.equation;
  m.tolerance = walk.tolerance(name);
  m.shape = walk.exact.shapes.at(name), m.their_shape = walk.stored(name).shape;
  if (ours.size() != theirs.size() || ours.empty()) return m;
  const Difference d = compare(theirs, ours);
  const auto departs = [&](std::size_t i) {  // so does what is not finite
    return !(std::fabs(theirs[i] - ours[i]) <= m.tolerance);
  };
  std::size_t first = ours.size();
  for (std::size_t i = ours.size(); i-- > 0;)
    if (departs(i)) first = i, ++m.differing;
  const double largest = walk.largest(name);
  m.element = walk.is_whole(name) && first < ours.size() ? static_cast<Index>(first) : d.at;
  m.absolute = d.max_absolute, m.relative = d.max_relative, m.cosine = d.cosine;
  m.ulps = d.max_absolute /
           (walk.is_float(name) ? ulp_of<float>(largest) : ulp_of<double>(largest));
  const auto odd = std::find_if(theirs.begin(), theirs.end(),
                                [](double x) { return !std::isfinite(x); });
  if (odd != theirs.end()) {  // no difference can be computed
    m.element = odd - theirs.begin();
    m.absolute = m.relative = m.ulps = std::numeric_limits<double>::infinity();
    m.cosine = std::numeric_limits<double>::quiet_NaN();
  }
  m.ours = ours[static_cast<std::size_t>(m.element)];
  m.theirs = theirs[static_cast<std::size_t>(m.element)];
  return m;
}

/// What about the layout makes theirs another tensor than ours, if that is all.
inline std::string layout_of(const Walk& walk, const Mismatch& m) {
  const Numbers ours = Walk::ours(walk.exact, m.name), theirs = walk.theirs(m.name);
  const std::string hint = layout_of(ours, theirs, m.shape, m.their_shape, m.tolerance);
  if (!walk.is_whole(m.name))
    return hint.empty() && m.name == "results" ? order_of_experts(walk, m.tolerance) : hint;
  if (ours.size() == theirs.size() && m.name.find("expert") < m.name.size() &&
      is_renamed(ours, theirs))
    return "the experts have other numbers";
  // Whole numbers are few: that they are the same in another order says nothing.
  return hint == "the same values in another order" ? "" : hint;
}

/// What an input that departs has done to the results: which departs first, and which does where
/// we compute with their inputs, too, if that can be.
inline std::string effect_of_inputs(const Walk& walk, const std::string& input) {
  const std::size_t first = walk.departure_of(walk.exact, walk.num_inputs);
  const std::string effect = first == walk.order.size()
                                 ? "the results agree"
                                 : walk.order[first] + " is the first result to depart";
  if (!walk.has_our_shape(input)) return effect;
  try {
    const auto results = walk.run_with(walk.their_inputs());
    const std::size_t departure = walk.departure_of(results, walk.num_inputs);
    return effect + "; from their inputs " +
           (departure == walk.order.size() ? "we compute their results"
                                           : "we compute another " + walk.order[departure]);
  } catch (const Error&) {
    return effect;
  }
}

/// The conventions under which the first departure goes away, if there are any: in words.
inline std::string convention_of(const Walk& walk, const GoldenCase& c, const SafeTensors& file,
                                 const SafeTensors& dump, std::size_t departure) {
  Fork fork = fork_of(walk, c.settings, departure);
  const bool has_layer = c.op == "mixture" && (walk.has("y") || walk.has("balance_loss"));
  if (fork.departure < walk.order.size() && has_layer) {
    const LayerRun run = read_layer_run(file, dump);
    const Changes changes = fewest_changes(explain(run), c.settings);
    if (!changes.empty()) fork = {changes, "", walk.departure_under(changes)};
  }
  if (fork.departure <= departure) return "";
  std::string text = fork.preset.empty() ? "as with " : "as under the preset " + fork.preset;
  for (const auto& change : fork.changes)
    if (fork.preset.empty())
      text += (text == "as with " ? "" : ", ") + change.first + " = " + change.second;
  text.erase(std::remove(text.begin(), text.end(), '"'), text.end());
  return text + (fork.departure == walk.order.size()
                     ? ": then all agrees"
                     : ": then " + walk.order[fork.departure] + " departs");
}

/// Walks what a dump holds of a case in the order of computation until a tensor is out of tolerance
/// (tolerance_rule): first the inputs and weights, where the dump has some, then the results, block
/// by block. If that tensor holds real numbers, looks on for the first of whole numbers that
/// departs, such as choices that flipped: logits off by rounding must not hide it.
///
/// Says of which kind the departure is: of layout; of inputs that are not those of the case; one
/// that goes away under other conventions, which it names; one that looks like rounding; or else
/// one of the algorithm. A dump holds out.NAME or NAME, and need not hold everything; what a case
/// with results leaves out is noise, and not compared. With outputs of the layer alone `explain`
/// searches all conventions together; with more, the search is one change after the other.
///
///   Errors    IoError if no result of the dump is one of ours
inline Departure compare_dump(const GoldenCase& c, const SafeTensors& file,
                              const SafeTensors& dump) {
  require_anchored(dump, "compare");
  const Walk walk(c, file, dump);
  Departure found;
  const std::size_t departure = walk.departure_of(walk.exact);
  for (std::size_t i = 0; i < walk.order.size(); ++i) {
    const std::string& name = walk.order[i];
    if (!walk.has(name)) found.missing.push_back(name);
    else if (i >= walk.num_inputs && i <= departure) ++found.compared;
    if (i < departure && walk.has(name))
      found.highest_rung = walk.place_of(name).rung, found.last_agreeing = name;
  }
  const std::size_t num_results = walk.order.size() - walk.num_inputs;
  require<IoError>(found.missing.size() < num_results,
                   "compare: a dump must hold one of our names, such as ",
                   num_results == 0 ? "" : walk.order[walk.num_inputs], "; got ",
                   dump.tensors.empty() ? "nothing" : dump.tensors.begin()->first);
  if (departure == walk.order.size()) return found;

  const std::string& name = walk.order[departure];
  static_cast<Mismatch&>(found) = mismatch_of(walk, name);
  const std::size_t whole = walk.departure_of_whole_numbers();
  if (whole < walk.order.size()) {
    found.whole = mismatch_of(walk, walk.order[whole]);
    found.whole_hint = layout_of(walk, found.whole);
    if (found.whole_hint.empty()) found.whole_hint = about_choices(walk, found.whole.name);
  }
  found.hint = layout_of(walk, found);
  if (!found.hint.empty()) found.bucket = "layout";
  const bool is_close = !walk.is_whole(name) && found.element >= 0 &&
                        found.absolute <= 1000 * found.tolerance;
  const std::string rounding = "within 1000 times the tolerance";
  if (Walk::is_input(name)) {
    if (found.hint.empty()) {
      found.bucket = is_close ? "rounding" : "inputs";
      found.hint = is_close ? rounding : relation_of(walk, name);
    }
    found.hint += (found.hint.empty() ? "" : "; ") + effect_of_inputs(walk, name);
    return found;
  }
  if (!found.hint.empty()) return found;

  found.bucket = "convention";
  found.hint = convention_of(walk, c, file, dump, departure);
  if (!found.hint.empty()) return found;
  found.bucket = is_close ? "rounding" : "algorithm";
  found.hint = is_close ? rounding : relation_of(walk, name);
  return found;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_COMPARE_HPP
