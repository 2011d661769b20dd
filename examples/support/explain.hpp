// explain.hpp - which conventions reproduce a run of the mixture-of-experts layer by another
// implementation, outputs alone; and an input that would tell those that do apart.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_EXPLAIN_HPP
#define WIDENET_EXAMPLES_SUPPORT_EXPLAIN_HPP

#include "half.hpp"
#include "widenet.hpp"

#include <algorithm>         // any_of, copy_n, fill_n, find, max_element, min, sort, ...
#include <bitset>            // bitset
#include <cmath>             // erf, exp, fabs, fma, fmax, isfinite, log, sqrt, tanh
#include <cstdint>           // int32_t, int64_t, uint8_t
#include <cstring>           // memcpy
#include <initializer_list>  // initializer_list
#include <map>               // map
#include <memory>            // make_shared, shared_ptr
#include <numeric>           // iota
#include <set>               // set
#include <string>            // string
#include <tuple>             // make_tuple, tie, tuple
#include <utility>           // pair
#include <vector>            // vector

namespace widenet::support {

using Numbers = std::vector<double>;
using Integers = std::vector<std::int32_t>;

/// The values of a tensor as doubles; of BOOL 0 and 1.
///
///   Errors    IoError if its type is none of those read
inline Numbers numbers_of(const SafeTensors& file, const std::string& name) {
  const StoredTensor tensor = widened(file.at(name));
  const auto all = [&](auto zero) {
    std::vector<decltype(zero)> values(tensor.bytes.size() / sizeof zero);
    if (!values.empty()) std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
    return Numbers(values.begin(), values.end());
  };
  const std::string& dtype = tensor.dtype;
  if (dtype == "F64") return all(0.0);
  if (dtype == "F32") return all(0.0f);
  if (dtype == "I64") return all(std::int64_t(0));
  if (dtype == "I32") return all(std::int32_t(0));
  require<IoError>(dtype == "U8" || dtype == "BOOL", "dump: ", name,
                   " must have type F64, F32, F16, BF16, I64, I32, U8 or BOOL; got ", dtype);
  return all(std::uint8_t(0));
}

/// The rounding unit of a type of floats: half of what 1 and the next number are apart; else 0.
inline double rounding_unit_of(const std::string& dtype) {
  return dtype == "F64"    ? 0x1p-53
         : dtype == "F32"  ? 0x1p-24
         : dtype == "F16"  ? 0x1p-11
         : dtype == "BF16" ? 0x1p-8
                           : 0;
}

// What is explained ===============================================================================

/// One run of the layer, or of the layers of several blocks with one balance loss: what went in,
/// and the results that are known. Arrays that are not there are empty.
struct LayerRun {
  std::size_t N = 0, D = 0, E = 0, F = 0;
  std::size_t L = 1;             // blocks; the N tokens are those of all, block after block
  std::size_t B = 1;             // sequences of a block, of N / (L B) tokens each
  Index K = 0;                   // 0: not known
  Rational factor{0, 1};         // of capacity; 0: not known
  double noise_scale = 0;        // 0: not known
  double threshold = -1;         // second_choice_threshold; -1: not known
  double rounding_unit = 0x1p-53;  // the largest of a result
  Numbers x, w, b, w1, b1, w2, b2, gamma, beta;  // weights of each block, also if they are shared
  Numbers noise;                 // (N, E), as it was added to the logits
  Numbers draws;                 // (N, E), as it was drawn: a law makes noise of it
  Numbers jitter;                // (N, D), factors of x
  Numbers coins;                 // (N, K): choice k > 0 asks for a slot if coin * threshold < gate
  Integers order;                // (N K): in which order a random priority served the choices
  std::map<std::string, Numbers> results;
  std::size_t block_tokens() const { return N / L; }
};

/// The number in a text such as 6/5, 2 or 1.25.
///
///   Errors    IoError if the text is none
inline Rational rational_of(const std::string& text) {
  Rational r{0, 1};
  bool is_number = !text.empty(), is_behind_point = false;
  std::size_t i = 0;
  for (; i < text.size() && text[i] != '/'; ++i) {
    const bool is_digit = text[i] >= '0' && text[i] <= '9';
    is_number = is_number && (is_digit || (text[i] == '.' && !is_behind_point)) && i < 9;
    if (is_digit) r.numerator = 10 * r.numerator + (text[i] - '0');
    if (is_digit && is_behind_point) r.denominator *= 10;
    is_behind_point = is_behind_point || text[i] == '.';
  }
  if (i < text.size()) {
    const Rational below = rational_of(text.substr(i + 1));
    r.numerator *= below.denominator, r.denominator *= below.numerator;
  }
  require<IoError>(is_number && r.denominator > 0,
                   "explain: a capacity factor must be like 6/5 or 1.25; got ", text);
  return r;
}

/// A weight of every block, (L, ...): as the file has it or, of the given shape, the same for all.
///
///   Errors    IoError if it has another shape
inline Numbers weight_of(const SafeTensors& file, const std::string& name, const Shape& shape,
                         Index L) {
  if (file.tensors.count("in." + name) == 0) return {};
  std::vector<Index> extents = shape.extents();
  extents.insert(extents.begin(), L);
  const Shape found = file.at("in." + name).shape, of_blocks(extents);
  const bool is_swapped = shape.rank() > 1 && found.rank() == shape.rank() &&
                          found.num_values() == shape.num_values();
  PlainText wanted;
  wanted << shape;
  if (L > 1) wanted << " or, one for each block, " << of_blocks;
  require<IoError>(found == shape || found == of_blocks, "explain: ", name, " must be ",
                   wanted.str(), "; got ", found,
                   is_swapped ? "; hint: weights are (in, out), a Linear of PyTorch is (out, in)"
                              : "");
  const Numbers values = numbers_of(file, "in." + name);
  Numbers all = values;
  for (Index l = 1; l < L && found == shape; ++l)
    all.insert(all.end(), values.begin(), values.end());
  return all;
}

/// Reads inputs in.NAME of one file and results out.NAME (or NAME) of another, which may be the
/// same. What is known besides is in the metadata: top_k, capacity_factor, batch, noise_scale and
/// second_choice_threshold, each as text, or `case`, as in the golden data.
///
///   Shapes    x (N, D) or (B, T, D); of several blocks (L, B, T, D)
///   Errors    IoError if an input that every run has is missing, if sizes disagree, or if neither
///             y nor balance_loss is known
inline LayerRun read_layer_run(const SafeTensors& file, const SafeTensors& results) {
  LayerRun run;
  const auto input = [&](const std::string& name) {
    return file.tensors.count("in." + name) ? numbers_of(file, "in." + name) : Numbers();
  };
  const std::string experts = "shared.moe.experts.{}.";
  for (const std::string& name : {std::string("x"), std::string("shared.moe.router.weight"),
                                  experts + "fc1.weight", experts + "fc2.weight"})
    require<IoError>(file.tensors.count("in." + name) == 1, "explain: a dump must hold in.", name,
                     "; got none");
  const Shape x = file.at("in.x").shape, w1 = file.at("in." + experts + "fc1.weight").shape;
  require<IoError>(x.rank() >= 2 && x.rank() <= 4 && w1.rank() >= 3 && x.num_values() > 0 &&
                       w1[w1.rank() - 2] == x.last(),
                   "explain: x must be (N, D), (B, T, D) or (L, B, T, D), and fc1.weight (E, D, F) "
                   "or (L, E, D, F); got ", x, ", ", w1);
  const Index D = x.last(), E = w1[w1.rank() - 3], F = w1.last(), L = x.rank() == 4 ? x[0] : 1;
  run.D = static_cast<std::size_t>(D), run.N = static_cast<std::size_t>(x.num_rows());
  run.E = static_cast<std::size_t>(E), run.F = static_cast<std::size_t>(F);
  run.L = static_cast<std::size_t>(L);
  if (x.rank() >= 3) run.B = static_cast<std::size_t>(x[x.rank() - 3]);
  run.x = input("x");
  run.w = weight_of(file, "shared.moe.router.weight", {D, E}, L);
  run.b = weight_of(file, "shared.moe.router.bias", {E}, L);
  run.w1 = weight_of(file, experts + "fc1.weight", {E, D, F}, L);
  run.b1 = weight_of(file, experts + "fc1.bias", {E, F}, L);
  run.w2 = weight_of(file, experts + "fc2.weight", {E, F, D}, L);
  run.b2 = weight_of(file, experts + "fc2.bias", {E, D}, L);
  for (Index l = 0; l < L; ++l)
    for (const auto& part : {std::make_pair(".norm2.weight", &run.gamma),
                             std::make_pair(".norm2.bias", &run.beta)}) {
      const Numbers values = input("blocks." + std::to_string(l) + part.first);
      part.second->insert(part.second->end(), values.begin(), values.end());
    }
  run.noise = input("noise"), run.draws = input("draws"), run.jitter = input("jitter");
  run.coins = input("coins");
  const Numbers order = input("order");
  run.order = Integers(order.begin(), order.end());
  for (std::size_t i = 0; i < order.size(); ++i)  // numbers within a block
    run.order[i] += static_cast<std::int32_t>(i * run.L / order.size() * (order.size() / run.L));
  if (run.b1.empty()) run.b1.assign(run.L * run.E * run.F, 0);
  if (run.b2.empty()) run.b2.assign(run.L * run.E * run.D, 0);
  const auto require_size = [](const char* name, const Numbers& values, std::size_t size) {
    require<IoError>(values.empty() || values.size() == size, "explain: ", name, " must have ",
                     size, " values; got ", values.size());
  };
  require_size("norm2.weight of all blocks", run.gamma, run.L * run.D);
  require_size("norm2.bias of all blocks", run.beta, run.L * run.D);
  require_size("noise", run.noise, run.N * run.E);
  require_size("draws", run.draws, run.N * run.E);
  require_size("jitter", run.jitter, run.N * run.D);

  const auto about = [&](const char* name) {
    const auto found = file.metadata.find(name);
    return found == file.metadata.end() ? std::string() : found->second;
  };
  if (about("case").empty() || !about("batch").empty()) {
    const auto number = [&](const char* name, double otherwise) {
      if (about(name).empty()) return otherwise;
      const Rational r = rational_of(about(name));
      return double(r.numerator) / double(r.denominator);
    };
    run.K = static_cast<Index>(number("top_k", 0));
    run.B = static_cast<std::size_t>(number("batch", double(run.B)));
    if (!about("capacity_factor").empty()) run.factor = rational_of(about("capacity_factor"));
    run.noise_scale = number("noise_scale", run.noise_scale);
    run.threshold = number("second_choice_threshold", run.threshold);
  } else {
    const Json known = Json::parse(about("case"), "case").at("settings");
    run.K = known.at("top_k").integer();
    run.factor = {known.at("capacity_numerator").integer(),
                  known.at("capacity_denominator").integer()};
    if (known.find("batch")) run.B = static_cast<std::size_t>(known.at("batch").integer());
    if (known.find("noise_scale")) run.noise_scale = known.at("noise_scale").number();
    if (known.find("second_choice_threshold"))
      run.threshold = known.at("second_choice_threshold").number();
  }
  const std::size_t num_tokens = run.block_tokens();
  require<IoError>(run.B > 0 && num_tokens % run.B == 0 && 0 <= run.K && run.K <= Index(run.E),
                   "explain: batch must divide the tokens and top_k lie in [1, E]; got ", run.B,
                   " of ", num_tokens, ", ", run.K, " of ", run.E);
  require<IoError>(run.coins.empty() || run.K > 0, "explain: coins (N, K) need top_k; got none");
  require_size("coins", run.coins, run.N * static_cast<std::size_t>(run.K));
  for (const char* name : {"logits", "probabilities", "expert", "slot", "gate", "load", "kept", "y",
                           "balance_loss"}) {
    const std::string key = results.tensors.count(std::string("out.") + name)
                                ? std::string("out.") + name : std::string(name);
    if (results.tensors.count(key) == 0) continue;
    run.results[name] = numbers_of(results, key);
    run.rounding_unit = std::fmax(run.rounding_unit, rounding_unit_of(results.at(key).dtype));
  }
  require<IoError>(run.results.count("y") + run.results.count("balance_loss") > 0,
                   "explain: a dump must hold out.y or out.balance_loss; got neither");
  return run;
}

/// The run of one file, if there may be conventions that reproduce it.
///
///   Errors    IoError as above, and if y is not as large as x or x is not finite
inline LayerRun read_explainable_run(const SafeTensors& file) {
  const LayerRun run = read_layer_run(file, file);
  const auto y = run.results.find("y");
  require<IoError>(y == run.results.end() || y->second.size() == run.x.size(),
                   "explain: y must have ", run.x.size(), " values, as many as x; got ",
                   y == run.results.end() ? 0 : y->second.size());
  for (std::size_t i = 0; i < run.x.size(); ++i)
    require<IoError>(std::isfinite(run.x[i]), "explain: x must be finite; got x[", i, "] = ",
                     run.x[i]);
  return run;
}

// One run under one combination of conventions ====================================================

/// The nonlinearity of an expert. ReLU and the quick form x / (1 + exp(-1.702 x)) of CLIP are known
/// here, but not offered by the library.
enum class Activation { tanh, erf, quick, relu };

/// Passes on the fields of a configuration as texts: visit(name, value).
template <class Visit>
struct FieldTexts {
  Visit& visit;
  void operator()(const char* name, bool value) { visit(name, value ? "true" : "false"); }
  void operator()(const char* name, Index value) { visit(name, std::to_string(value)); }
  void operator()(const char* name, double value) {
    PlainText text;
    text << value;
    visit(name, text.str());
  }
  template <class Enum>
  void operator()(const char* name, Enum value, std::initializer_list<const char*> names) {
    visit(name, names.begin()[static_cast<std::size_t>(value)]);
  }
};

/// A value for every knob.
struct Combination {
  Conventions rules;
  Rational factor{6, 5};
  Index K = 2;
  Activation activation = Activation::tanh;
  bool activation_at_output = false;
  bool is_rms = false;   // x / sqrt(mean of x^2 + eps) gamma in place of the LayerNorm
  double norm_eps = 0;   // 0: no LayerNorm

  /// Calls visit(knob, value) with texts, in the words of a configuration.
  template <class Visit>
  void visit_knobs(Visit visit) const {
    FieldTexts<Visit> texts{visit};
    PlainText ratio;
    ratio << factor;
    texts("top_k", K), visit("capacity_factor", ratio.str());
    Conventions c = rules;
    widenet::detail::visit_conventions(c, texts);
    texts("gelu", activation, {"tanh", "erf", "quick", "relu"});
    texts("gelu_at_output", activation_at_output);
    if (norm_eps == 0) return;
    texts("norm", is_rms, {"layer_norm", "rms_norm"}), texts("layer_norm_eps", norm_eps);
  }
};

/// What the layer sees: x, or its norm.
inline Numbers normed(const LayerRun& run, bool is_rms, double eps) {
  Numbers y = run.x;
  const double D = double(run.D);
  for (std::size_t n = 0; eps > 0 && n < run.N; ++n) {
    double* const row = y.data() + n * run.D;
    const std::size_t l = n / run.block_tokens();
    double mean = 0, square = 0;
    for (std::size_t d = 0; !is_rms && d < run.D; ++d) mean += row[d] / D;
    for (std::size_t d = 0; d < run.D; ++d) square += (row[d] - mean) * (row[d] - mean) / D;
    for (std::size_t d = 0; d < run.D; ++d)
      row[d] = (row[d] - mean) / std::sqrt(square + eps) * run.gamma[l * run.D + d] +
               (is_rms || run.beta.empty() ? 0 : run.beta[l * run.D + d]);
  }
  return y;
}

/// The router of one run: logits, what noise adds to them, probabilities with and without it.
struct Scores {
  Numbers z, noise, p, clean;
};

inline Numbers softmax_of(const Numbers& z, const Numbers& noise, std::size_t E) {
  Numbers p = z;
  for (std::size_t i = 0; i < noise.size(); ++i) p[i] += noise[i];
  for (double* row = p.data(); row != p.data() + p.size(); row += E) {
    const double largest = *std::max_element(row, row + E);
    double total = 0;
    for (std::size_t e = 0; e < E; ++e) total += row[e] = std::exp(row[e] - largest);
    for (std::size_t e = 0; e < E; ++e) row[e] /= total;
  }
  return p;
}

/// The noise that conventions add to the logits in this run.
inline Numbers noise_of(const LayerRun& run, const Conventions& c) {
  if (c.noise == RouterNoise::none || c.is_jittered()) return {};
  if (!run.noise.empty()) return run.noise;
  const double deviation = c.noise_deviation(Index(run.E));
  Numbers noise = run.draws;
  for (double& value : noise) value *= deviation > 0 ? deviation : c.noise_scale;
  return noise;
}

/// x as the router sees it.
inline Numbers jittered(const LayerRun& run, const Conventions& rules, Numbers x) {
  if (rules.is_jittered() && !run.jitter.empty())
    for (std::size_t i = 0; i < x.size(); ++i) x[i] *= run.jitter[i];
  return x;
}

inline Scores scores_of(const LayerRun& run, const Conventions& rules, const Numbers& seen) {
  Scores s;
  s.z.assign(run.N * run.E, 0);
  for (std::size_t n = 0; n < run.N; ++n) {
    const std::size_t l = n / run.block_tokens();
    const double* const w = run.w.data() + l * run.D * run.E;
    for (std::size_t e = 0; e < run.E; ++e) {
      double& z = s.z[n * run.E + e];
      for (std::size_t d = 0; d < run.D; ++d)
        z = std::fma(seen[n * run.D + d], w[d * run.E + e], z);
      if (rules.router_bias) z += run.b[l * run.E + e];
    }
  }
  s.noise = noise_of(run, rules);
  s.clean = softmax_of(s.z, {}, run.E);
  s.p = s.noise.empty() ? s.clean : softmax_of(s.z, s.noise, run.E);
  return s;
}

/// The K best experts of every token, best first, of equal ones the lower first; their gates; and
/// which of them ask for a slot (empty: all).
struct Picked {
  Index K = 0;
  Integers expert;
  Numbers gate;
  std::vector<bool> asks = {};
};

inline Picked choices_of(const LayerRun& run, const Scores& s, const Combination& c) {
  Picked choices;
  choices.K = c.K;
  std::vector<std::size_t> ranks(run.E);
  for (std::size_t n = 0; n < run.N; ++n) {
    const double *const p = s.p.data() + n * run.E, *const clean = s.clean.data() + n * run.E;
    std::iota(ranks.begin(), ranks.end(), std::size_t(0));
    std::stable_sort(ranks.begin(), ranks.end(),
                     [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
    if (!c.rules.first_choice_sees_noise) {
      const std::size_t best =
          static_cast<std::size_t>(std::max_element(clean, clean + run.E) - clean);
      std::stable_partition(ranks.begin(), ranks.end(), [&](std::size_t e) { return e == best; });
    }
    for (std::size_t k = 0; k < static_cast<std::size_t>(c.K); ++k) {
      choices.expert.push_back(static_cast<std::int32_t>(ranks[k]));
      choices.gate.push_back((c.rules.gate_sees_noise ? p : clean)[ranks[k]]);
    }
  }
  return choices;
}

/// How many tokens share capacity.
inline std::size_t group_of(const LayerRun& run, Index sequences) {
  const std::size_t s = std::min(run.B, static_cast<std::size_t>(sequences));
  return s == 0 ? run.block_tokens() : run.block_tokens() / run.B * s;
}

/// The choices, in the order in which they are served.
inline std::vector<std::size_t> queue_of(const LayerRun& run, const Picked& c, Priority priority) {
  const std::size_t K = static_cast<std::size_t>(c.K);
  std::vector<std::size_t> order(run.N * K), tokens(run.N);
  if (priority == Priority::random) return {run.order.begin(), run.order.end()};
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::iota(tokens.begin(), tokens.end(), std::size_t(0));
  if (priority == Priority::highest_gate)
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return c.gate[a] > c.gate[b]; });
  if (priority == Priority::batch_priority)
    std::stable_sort(tokens.begin(), tokens.end(), [&](std::size_t a, std::size_t b) {
      return c.gate[a * K] > c.gate[b * K];
    });
  if (priority == Priority::choice_major || priority == Priority::batch_priority)
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = tokens[i % run.N] * K + i / run.N;
  return order;
}

/// The places of the choices in the queues of their experts in each group, -1 of those that do not
/// ask.
inline Integers places_of(const LayerRun& run, const Picked& c, Priority priority,
                          std::size_t group) {
  const std::size_t K = static_cast<std::size_t>(c.K);
  Integers place(run.N * K, -1), asked(run.N / group * run.E, 0);
  for (const std::size_t i : queue_of(run, c, priority))
    if (c.asks.empty() || c.asks[i])
      place[i] = asked[i / (group * K) * run.E + static_cast<std::size_t>(c.expert[i])]++;
  return place;
}

/// Slots of the choices, -1 without one, where an expert serves `usable` choices of each group.
inline Integers slots_of(const LayerRun& run, const Picked& c, const Integers& place,
                         std::size_t group, Index usable) {
  const std::size_t K = static_cast<std::size_t>(c.K);
  Integers slot = place, served(run.N / group * run.E, 0);
  for (std::size_t i = 0; i < slot.size(); ++i) {
    if (place[i] >= usable) slot[i] = -1;
    if (slot[i] >= 0)
      ++served[i / (group * K) * run.E + static_cast<std::size_t>(c.expert[i])];
  }
  const std::size_t groups = run.block_tokens() / group;
  for (std::size_t i = 0; i < slot.size(); ++i) {  // behind those of the groups before in its block
    const std::size_t own = i / (group * K);
    for (std::size_t g = own / groups * groups; slot[i] >= 0 && g < own; ++g)
      slot[i] += served[g * run.E + static_cast<std::size_t>(c.expert[i])];
  }
  return slot;
}

/// The gates of the choices as results are weighted by them.
inline Numbers gates_of(const Picked& c, const Integers& slot, GateRule rule, double eps) {
  Numbers gate = c.gate;
  const std::size_t K = static_cast<std::size_t>(c.K);
  for (std::size_t n = 0; rule != GateRule::raw && n < gate.size(); n += K) {
    const auto counts = [&](std::size_t i) {
      return rule == GateRule::renormalized || slot[i] >= 0;
    };
    double total = eps;
    for (std::size_t i = n; i < n + K; ++i) total += counts(i) ? gate[i] : 0;
    for (std::size_t i = n; i < n + K; ++i)
      gate[i] = counts(i) && total > 0 ? gate[i] / total : 0;
  }
  return gate;
}

/// Which choices ask for a slot, by the coins of the run.
inline std::vector<bool> asks_of(const LayerRun& run, const Picked& c, const Conventions& rules) {
  if (run.coins.empty() || rules.second_choice_threshold <= 0) return {};
  const bool is_renormalized = rules.gate == GateRule::renormalized;
  const Numbers gate = is_renormalized ? gates_of(c, {}, rules.gate, rules.gate_eps) : c.gate;
  std::vector<bool> asks;
  for (std::size_t i = 0; i < gate.size(); ++i)
    asks.push_back(i % static_cast<std::size_t>(c.K) == 0 ||
                   run.coins[i] * rules.second_choice_threshold < gate[i]);
  return asks;
}

inline double activated(Activation form, double x) {
  switch (form) {
    case Activation::tanh:
      return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::erf: return 0.5 * x * (1 + std::erf(x * 0.7071067811865476));
    case Activation::quick: return x / (1 + std::exp(-1.702 * x));
    case Activation::relu: break;
  }
  return x > 0 ? x : 0;
}

/// Expert e of the block of token n, before its nonlinearity: h = x w1 + b1, (F).
inline void expert_hidden(const LayerRun& run, const Numbers& x, std::size_t n, std::size_t e,
                          Numbers& h) {
  const std::size_t D = run.D, F = run.F, own = n / run.block_tokens() * run.E + e;
  const double* const b = run.b1.data() + own * F;
  h.assign(b, b + F);
  for (std::size_t d = 0; d < D; ++d)
    for (std::size_t f = 0; f < F; ++f) h[f] += x[n * D + d] * run.w1[(own * D + d) * F + f];
}
/// What the expert makes of h: act(h) w2 + b2, (D).
inline void expert_result(const LayerRun& run, const Numbers& h, std::size_t n, std::size_t e,
                          Activation form, double* y) {
  const std::size_t D = run.D, F = run.F, own = n / run.block_tokens() * run.E + e;
  std::copy_n(run.b2.begin() + std::ptrdiff_t(own * D), D, y);
  for (std::size_t f = 0; f < F; ++f) {
    const double g = activated(form, h[f]);
    for (std::size_t d = 0; d < D; ++d) y[d] += g * run.w2[(own * F + f) * D + d];
  }
}

/// What every expert would make of every token: (N, E, D).
inline Numbers expert_results(const LayerRun& run, const Numbers& x, Activation form,
                              bool is_at_output) {
  Numbers y(run.N * run.E * run.D), h;
  for (std::size_t i = 0; i < run.N * run.E; ++i) {
    expert_hidden(run, x, i / run.E, i % run.E, h);
    expert_result(run, h, i / run.E, i % run.E, form, y.data() + i * run.D);
  }
  for (std::size_t i = 0; is_at_output && i < y.size(); ++i) y[i] = activated(form, y[i]);
  return y;
}

/// y = sum over k of gate[k] rows[k], (D): of a kept choice its row is what the expert made of the
/// token; of a dropped one it is what the experts see, or none.
inline void combine_rows(const double* gate, const std::vector<const double*>& rows, std::size_t D,
                         double* y) {
  std::fill_n(y, D, 0.0);
  for (std::size_t k = 0; k < rows.size(); ++k)
    for (std::size_t d = 0; rows[k] != nullptr && d < D; ++d) y[d] += gate[k] * rows[k][d];
}

/// The balance loss of `group` tokens from each of `begins` on, taken together.
inline double balance_of(const LayerRun& run, const Scores& s, const Picked& c,
                         const Integers& slot, const Conventions& rules, std::size_t group,
                         const std::vector<std::size_t>& begins) {
  const std::size_t E = run.E, K = static_cast<std::size_t>(c.K);
  const BalanceRule rule = rules.balance;
  const Numbers& seen = rules.balance_sees_noise ? s.p : s.clean;
  const double deviation = rules.noise_deviation(Index(E)), n = double(group * begins.size());
  const bool is_after = rule == BalanceRule::after_drop || rule == BalanceRule::after_drop_both;
  Numbers count(E), sum(E);
  double total = 0, squares = 0;
  for (const std::size_t begin : begins)
    for (std::size_t t = begin; t < begin + group; ++t) {
      const double* const z = s.z.data() + t * E;
      for (std::size_t i = t * K; i < (t + 1) * K; ++i) {
        const std::size_t e = static_cast<std::size_t>(c.expert[i]);
        if (is_after ? slot[i] >= 0 : rule != BalanceRule::switch_top1 || i % K == 0)
          ++count[e], ++total;
      }
      const std::size_t last = static_cast<std::size_t>(c.expert[(t + 1) * K - 1]);
      const double threshold = z[last] + (s.noise.empty() ? 0 : s.noise[t * E + last]);
      const double largest = *std::max_element(z, z + E);
      double exponentials = 0;
      for (std::size_t e = 0; e < E; ++e) {
        exponentials += std::exp(z[e] - largest);
        sum[e] += rule == BalanceRule::load
                      ? 0.5 * (1 + std::erf((z[e] - threshold) / deviation * 0.7071067811865476))
                      : seen[t * E + e];
      }
      const double log_sum = largest + std::log(exponentials);
      squares += log_sum * log_sum;
    }
  double mean = 0, variance = 0, dot = 0;
  for (std::size_t e = 0; e < E; ++e) mean += sum[e] / double(E), dot += count[e] * sum[e];
  for (std::size_t e = 0; e < E; ++e) variance += (sum[e] - mean) * (sum[e] - mean);
  const double kept = std::fmax(1, total);
  switch (rule) {
    case BalanceRule::khot_over_k: return double(E) * dot / (n * double(K)) / n;
    case BalanceRule::khot_sum:
    case BalanceRule::switch_top1: return double(E) * dot / n / n;
    case BalanceRule::after_drop: return double(E) * dot / kept / n;
    case BalanceRule::after_drop_both: return double(E) * dot / kept / kept;
    case BalanceRule::importance:
    case BalanceRule::load: return variance / double(E) / (mean * mean);
    case BalanceRule::importance_unbiased:
      return variance / double(E > 1 ? E - 1 : 1) / (mean * mean);
    case BalanceRule::z_loss: break;
  }
  return squares / n;
}
/// The balance loss of all blocks: in each the mean over groups of tokens.
inline double balance_of(const LayerRun& run, const Scores& s, const Picked& c,
                         const Integers& slot, const Conventions& rules) {
  const std::size_t group = group_of(run, rules.capacity_sequences), block = run.block_tokens();
  double loss = 0;
  for (std::size_t begin = 0; begin < block; begin += group) {
    std::vector<std::size_t> begins;
    for (std::size_t l = 0; l < run.L; ++l) begins.push_back(l * block + begin);
    if (rules.reduction == Reduction::together)
      loss += balance_of(run, s, c, slot, rules, group, begins);
    else
      for (const std::size_t each : begins)
        loss += balance_of(run, s, c, slot, rules, group, {each});
  }
  const std::size_t parts = rules.reduction == Reduction::mean ? run.L : 1;
  return loss / double(block / group * parts);
}

/// How many choices of each group an expert serves.
inline Index usable_of(const LayerRun& run, const Combination& c) {
  const Index group = Index(group_of(run, c.rules.capacity_sequences));
  const Index capacity = expert_capacity(c.rules, c.factor, c.K, group, Index(run.E));
  return std::min(std::max<Index>(0, capacity - c.rules.unusable_slots), group);
}

/// The outputs of one run under many combinations: y (N, D) and then the balance loss. What the
/// experts make of the tokens, most of the work, is computed once for all that agree in it.
class LayerOutputs {
 public:
  explicit LayerOutputs(const LayerRun& run) : run_(run) {}
  Numbers operator()(const Combination& c) {
    const Conventions& rules = c.rules;
    const Numbers x = normed(run_, c.is_rms, c.norm_eps), router_sees = jittered(run_, rules, x);
    const bool is_in_place = rules.noise == RouterNoise::jitter_in_place && !run_.jitter.empty();
    const Numbers& experts_see = is_in_place ? router_sees : x;
    const Scores s = scores_of(run_, rules, router_sees);
    Picked choices = choices_of(run_, s, c);
    choices.asks = asks_of(run_, choices, rules);
    const std::size_t group = group_of(run_, rules.capacity_sequences);
    const Integers place = places_of(run_, choices, rules.priority, group);
    const Integers slot = slots_of(run_, choices, place, group, usable_of(run_, c));
    const Numbers gate = gates_of(choices, slot, rules.gate, rules.gate_eps);
    Numbers& results = results_[{c.is_rms, c.norm_eps, is_in_place, c.activation,
                                 c.activation_at_output}];
    if (results.empty())
      results = expert_results(run_, experts_see, c.activation, c.activation_at_output);
    Numbers outputs(run_.N * run_.D);
    const std::size_t K = static_cast<std::size_t>(c.K), D = run_.D;
    std::vector<const double*> rows(K);
    for (std::size_t n = 0; n < run_.N; ++n) {
      for (std::size_t k = 0; k < K; ++k) {
        const std::size_t i = n * K + k, e = static_cast<std::size_t>(choices.expert[i]);
        rows[k] = slot[i] >= 0                            ? results.data() + (n * run_.E + e) * D
                  : rules.dropped == DroppedValue::zero   ? nullptr
                                                          : experts_see.data() + n * D;
      }
      combine_rows(gate.data() + n * K, rows, D, outputs.data() + n * D);
    }
    outputs.push_back(balance_of(run_, s, choices, slot, rules));
    return outputs;
  }

 private:
  const LayerRun& run_;
  std::map<std::tuple<bool, double, bool, Activation, bool>, Numbers> results_;
};
inline Numbers outputs_of(const LayerRun& run, const Combination& c) {
  return LayerOutputs(run)(c);
}

// The search ======================================================================================

/// Whether a rule of capacity rounds as a convention says; whether it knows a capacity factor.
inline bool has_rounding(CapacityRule rule) { return rule < CapacityRule::single_precision; }
inline bool has_factor(CapacityRule rule) { return rule <= CapacityRule::single_precision; }

/// A capacity, but for the tokens that share it.
struct CapacityFormula {
  CapacityRule rule;
  Rounding rounding;
  Index multiple, minimum, slots, unusable;
  Rational factor;
  auto key() const {
    return std::make_tuple(rule, rounding, multiple, minimum, slots, unusable, factor.numerator,
                           factor.denominator);
  }
  void apply(Combination& c) const {
    c.rules.capacity = rule, c.rules.capacity_rounding = rounding, c.factor = factor;
    c.rules.capacity_multiple = multiple, c.rules.capacity_minimum = minimum;
    c.rules.capacity_slots = slots, c.rules.unusable_slots = unusable;
  }
  /// Whether this is the capacity of c; if not `with_sizes`, whatever the factor or the slots are.
  bool is_of(const Combination& c, bool with_sizes) const {
    const Conventions& r = c.rules;
    return rule == r.capacity && multiple == r.capacity_multiple &&
           minimum == r.capacity_minimum && unusable == r.unusable_slots &&
           (!has_rounding(rule) || rounding == r.capacity_rounding) &&
           (!with_sizes || rule != CapacityRule::absolute || slots == r.capacity_slots) &&
           (!with_sizes || !has_factor(rule) || factor == c.factor);
  }
};

/// A law of noise and its scale.
struct ScaledLaw {
  RouterNoise law;
  double scale;
  void apply(Combination& c) const { c.rules.noise = law, c.rules.noise_scale = scale; }
};

/// A law of noise that has the effects seen, and a balance loss.
struct BalanceForm {
  ScaledLaw noise;
  BalanceRule rule;
  bool sees_noise;
  Reduction reduction;
  auto key() const { return std::make_tuple(noise.law, noise.scale, rule, sees_noise, reduction); }
  void apply(Combination& c) const {
    noise.apply(c);
    c.rules.balance = rule, c.rules.balance_sees_noise = sees_noise;
    c.rules.reduction = reduction;
  }
};

/// Combinations that reproduce a run: `base` with each of the formulas and each of the forms.
struct Match {
  Combination base;
  std::shared_ptr<const std::vector<CapacityFormula>> formulas;
  std::shared_ptr<const std::vector<BalanceForm>> forms;
  std::size_t size() const { return formulas->size() * forms->size(); }
  Combination at(std::size_t i) const {
    Combination c = base;
    (*formulas)[i / forms->size()].apply(c), (*forms)[i % forms->size()].apply(c);
    return c;
  }
};

/// The set of combinations that reproduce a run.
struct Explanation {
  std::vector<Match> matches;
  std::map<std::string, std::set<std::string>> searched;  // values of each knob
  std::set<std::string> given;                            // knobs of which the run says the value
  bool has_blocks = false, has_noise = false, has_draws = false, has_coins = false;

  /// Whether a knob says anything under these conventions about such a run: the reduction over
  /// blocks if there are several; the law of noise and who sees it if there is any; its scale and
  /// the threshold of second choices if what was drawn is known. The rule `load` knows the
  /// deviation of the noise also where there is none.
  bool is_relevant(const Combination& c, const std::string& knob) const {
    const Conventions& r = c.rules;
    if (knob == "gate_eps") return r.gate != GateRule::raw;
    if (knob == "capacity_slots") return r.capacity == CapacityRule::absolute;
    if (knob == "capacity_rounding") return has_rounding(r.capacity);
    if (knob == "capacity_factor") return has_factor(r.capacity);
    if (knob == "balance_reduction") return has_blocks;
    if (knob == "second_choice_threshold") return has_coins && c.K > 1;
    if (knob == "router_noise") return has_noise || r.balance == BalanceRule::load;
    if (knob == "noise_scale")
      return r.balance == BalanceRule::load ||
             (has_draws && r.noise != RouterNoise::none && !r.is_jittered());
    return has_noise || knob.find("sees_noise") == std::string::npos;
  }

  std::size_t size() const {
    std::size_t total = 0;
    for (const Match& match : matches) total += match.size();
    return total;
  }
  Combination at(std::size_t i) const {
    for (const Match& match : matches) {
      if (i < match.size()) return match.at(i);
      i -= match.size();
    }
    fail<ValueError>("Explanation: an index must lie in [0, ", size(), "); got too large a one");
  }
  /// What a combination says about the rules but for capacity and balance loss, and about the rest.
  auto rules_of(const Combination& c) const {
    const Conventions& r = c.rules;
    return std::make_tuple(
        r.router_bias, has_noise && r.first_choice_sees_noise, has_noise && r.gate_sees_noise,
        r.gate, r.gate == GateRule::raw ? 0 : r.gate_eps, r.priority, r.dropped,
        r.capacity_sequences, has_coins && c.K > 1 ? r.second_choice_threshold : 0);
  }
  static auto rest_of(const Combination& c) {
    return std::make_tuple(c.K, c.activation, c.activation_at_output, c.is_rms, c.norm_eps);
  }
  /// Whether these conventions are in the set; with `rules_only` whatever K, the factor or an
  /// absolute capacity, GELU and the norm are.
  bool contains(const Combination& c, bool rules_only = false) const {
    const Conventions& r = c.rules;
    const auto rules = rules_of(c);
    const bool is_noisy = is_relevant(c, "router_noise"), is_scaled = is_relevant(c, "noise_scale");
    for (const Match& match : matches) {
      const Combination& b = match.base;
      if (rules_of(b) != rules || (!rules_only && rest_of(b) != rest_of(c))) continue;
      const bool has_formula =
          std::any_of(match.formulas->begin(), match.formulas->end(),
                      [&](const CapacityFormula& f) { return f.is_of(c, !rules_only); });
      const bool has_form = std::any_of(
          match.forms->begin(), match.forms->end(), [&](const BalanceForm& f) {
            return f.rule == r.balance && (!is_noisy || f.noise.law == r.noise) &&
                   (!has_noise || f.sees_noise == r.balance_sees_noise) &&
                   (!has_blocks || f.reduction == r.reduction) &&
                   (!is_scaled || f.noise.scale == r.noise_scale);
          });
      if (has_formula && has_form) return true;
    }
    return false;
  }
  /// Of each knob the values that occur in the set.
  std::map<std::string, std::set<std::string>> found() const {
    std::map<std::string, std::set<std::string>> values;
    std::set<const void*> seen;
    for (const Match& match : matches) {
      const std::size_t columns = match.forms->size();
      for (std::size_t i = 0; i < match.size(); ++i) {
        const bool is_formula_new = i % columns == 0 && seen.count(match.formulas.get()) == 0;
        const bool is_form_new = i < columns && seen.count(match.forms.get()) == 0;
        if (i == 0 || is_formula_new || is_form_new) note(match.at(i), values);
      }
      seen.insert(match.formulas.get()), seen.insert(match.forms.get());
    }
    return values;
  }
  void note(const Combination& c, std::map<std::string, std::set<std::string>>& values) const {
    c.visit_knobs([&](const char* knob, const std::string& value) {
      if (is_relevant(c, knob)) values[knob].insert(value);
    });
  }
};

/// How far a result may be off, of its largest value: float64 1e-12, float32 8 sqrt(D + F) rounding
/// units, and types of 16 bits, whose sums are taken in float32, 8 of their own.
inline double tolerance_of(const LayerRun& run, double largest) {
  const double unit = run.rounding_unit, terms = double(run.D + run.F);
  if (unit <= 0x1p-53) return 1e-12 * largest;
  return 8 * (unit > 0x1p-24 ? 1 : std::sqrt(terms)) * unit * largest;
}

/// The combinations that are in two sets: those that reproduce two runs of one kind, such as a run
/// and a later one of the input that tells apart what the first has left.
///
///   Errors    ValueError if one of the runs says what was drawn, or has blocks, and the other not
inline Explanation both_of(const Explanation& a, const Explanation& b) {
  require<ValueError>(a.has_blocks == b.has_blocks && a.has_noise == b.has_noise &&
                          a.has_draws == b.has_draws && a.has_coins == b.has_coins &&
                          a.given == b.given,
                      "explain: runs must be of one kind: all of one block or of several, with the "
                      "same metadata, and with or without noise, draws and coins; got others");
  Explanation both = a;
  both.matches.clear();
  const auto key_of = [&a](const Combination& c) {
    return std::make_tuple(a.rules_of(c), Explanation::rest_of(c));
  };
  std::map<decltype(key_of(Combination())), std::vector<const Match*>> others;
  for (const Match& match : b.matches) others[key_of(match.base)].push_back(&match);
  for (const Match& match : a.matches)
    for (const Match* const other : others[key_of(match.base)]) {
      const auto formulas = std::make_shared<std::vector<CapacityFormula>>();
      const auto forms = std::make_shared<std::vector<BalanceForm>>();
      const auto is_in = [](const auto& list, const auto& value) {
        return std::any_of(list.begin(), list.end(), [&](const auto& each) {
          return each.key() == value.key();
        });
      };
      for (const CapacityFormula& f : *match.formulas)
        if (is_in(*other->formulas, f)) formulas->push_back(f);
      for (const BalanceForm& f : *match.forms)
        if (is_in(*other->forms, f)) forms->push_back(f);
      if (!formulas->empty() && !forms->empty())
        both.matches.push_back({match.base, formulas, forms});
    }
  for (const auto& knob : b.searched) both.searched[knob.first].insert(knob.second.begin(),
                                                                       knob.second.end());
  return both;
}

/// Searches the combinations of all knobs, stage by stage: what is alike in one stage is computed
/// once, and what disagrees with a result is not followed.
///
///   norm, bias, noise -> K, choices -> gates -> priority, capacity -> weights, GELU -> balance
class ConventionSearch {
 public:
  explicit ConventionSearch(const LayerRun& run) : run_(run) {
    for (const auto& result : run.results) {
      double largest = 0;
      for (const double value : result.second) largest = std::fmax(largest, std::fabs(value));
      tolerance_[result.first] = tolerance_of(run, largest);
    }
    explanation.has_blocks = run.L > 1, explanation.has_coins = !run.coins.empty();
    explanation.has_noise = !run.noise.empty() || !run.draws.empty() || !run.jitter.empty();
    explanation.has_draws = !run.draws.empty() && run.noise.empty();
    if (run.K > 0) explanation.given.insert("top_k");
    if (run.factor.numerator > 0) explanation.given.insert("capacity_factor");
    if (run.noise_scale > 0) explanation.given.insert("noise_scale");
    if (run.threshold >= 0) explanation.given.insert("second_choice_threshold");
    note_values();
    for (const auto& norm : norms()) {
      Combination c;
      std::tie(c.is_rms, c.norm_eps) = norm;
      x_ = normed(run, c.is_rms, c.norm_eps), experts_see_.clear();
      for (const bool has_bias : {false, true}) {
        c.rules.router_bias = has_bias;
        if (has_bias <= !run.b.empty()) try_noises(c);
      }
    }
  }
  Explanation explanation;

 private:
  using Mask = std::vector<bool>;
  struct Tail {
    std::pair<GateRule, double> gate;  // and its eps
    DroppedValue dropped;
    Activation activation;
    bool is_at_output;
  };
  using TailSet = std::bitset<7 * 2 * 4 * 2>;  // of all tails

  // What is searched ----------------------------------------------------------------------------

  std::vector<std::pair<bool, double>> norms() const {
    if (run_.gamma.empty()) return {{false, 0}};
    std::vector<std::pair<bool, double>> all;
    for (const bool is_rms : {false, true})
      for (const double eps : {1e-12, 1e-8, 1e-6, 1e-5}) all.emplace_back(is_rms, eps);
    return all;
  }
  static std::vector<std::pair<GateRule, double>> gate_rules() {
    std::vector<std::pair<GateRule, double>> all = {{GateRule::raw, 0}};
    for (const GateRule rule : {GateRule::renormalized, GateRule::renormalized_after_drop})
      for (const double eps : {0.0, 1e-9, 1e-6}) all.emplace_back(rule, eps);
    return all;
  }
  std::vector<Index> ks() const {
    std::vector<Index> all;
    for (Index K = 1; K <= std::min<Index>(8, Index(run_.E)); ++K) all.push_back(K);
    return run_.K > 0 ? std::vector<Index>{run_.K} : all;
  }
  std::vector<Rational> factors() const {
    if (run_.factor.numerator > 0) return {run_.factor};
    return {{1, 2}, {3, 4}, {1, 1}, {21, 20}, {11, 10}, {6, 5},
            {5, 4}, {3, 2}, {2, 1}, {12, 5},  {4, 1}};
  }
  std::vector<bool> sees() const {  // what sees the noise
    return explanation.has_noise ? std::vector<bool>{true, false} : std::vector<bool>{true};
  }
  std::vector<double> scales() const {
    if (run_.noise_scale > 0) return {run_.noise_scale};
    return {1, 2, 0.5, 0.1, 0.01};
  }
  std::vector<double> thresholds(Index K) const {
    if (run_.coins.empty() || K == 1) return {0};
    if (run_.threshold >= 0) return {run_.threshold};
    return {0, 0.1, 0.2, 0.5};
  }
  std::vector<Reduction> reductions() const {
    if (run_.L == 1) return {Reduction::sum};
    return {Reduction::sum, Reduction::mean, Reduction::together};
  }
  std::vector<Index> scopes() const {
    std::vector<Index> all = {0};
    const Index B = Index(run_.B);
    for (Index s = 1; s <= std::max<Index>(8, B); ++s)
      if (B % std::min(B, s) == 0 && (s <= B || s == 2 || s == 4 || s == 8)) all.push_back(s);
    return all;
  }
  std::vector<Priority> priorities(Index K) const {
    std::vector<Priority> all = {Priority::token_major, Priority::choice_major,
                                 Priority::batch_priority, Priority::highest_gate};
    if (run_.order.size() == run_.N * static_cast<std::size_t>(K)) all.push_back(Priority::random);
    return all;
  }
  std::vector<CapacityFormula> formulas(Index group) const {
    std::vector<CapacityFormula> all;
    for (int rule = 0; rule <= static_cast<int>(CapacityRule::dropless); ++rule)
      for (const Rounding rounding : {Rounding::floor, Rounding::ceil})
        for (const Index multiple : {1, 2, 4})
          for (const Index minimum : {1, 4})
            for (const Index unusable : {0, 1})
              for (const Rational factor : factors()) {
                CapacityFormula f{static_cast<CapacityRule>(rule), rounding, multiple, minimum,
                                  64, unusable, factor};
                if ((!has_rounding(f.rule) && rounding == Rounding::ceil) ||
                    (!has_factor(f.rule) && !(factor == factors()[0])))
                  continue;
                const bool is_absolute = f.rule == CapacityRule::absolute;
                for (Index slots = 1; is_absolute && slots <= group; ++slots)
                  f.slots = slots, all.push_back(f);
                f.slots = 64;
                if (!is_absolute || group < 64) all.push_back(f);
              }
    return all;
  }
  /// The formulas for a group of tokens by what is usable under them.
  using Capacities = std::map<Index, std::shared_ptr<std::vector<CapacityFormula>>>;
  const Capacities& capacities(Index K, Index group) {
    Capacities& found = capacities_[{K, group}];
    if (!found.empty()) return found;
    for (const CapacityFormula& f : formulas(group)) {
      Combination c;
      f.apply(c);
      const Index C = expert_capacity(c.rules, c.factor, K, group, Index(run_.E));
      auto& alike = found[std::min(std::max<Index>(0, C - f.unusable), group)];
      if (!alike) alike = std::make_shared<std::vector<CapacityFormula>>();
      alike->push_back(f);
    }
    return found;
  }
  /// Whether the scale of a law decides about the noise, not about the rule `load` alone.
  bool is_scaled(RouterNoise law) const {
    Conventions c;
    c.noise = law;
    return explanation.has_draws && law != RouterNoise::none && !c.is_jittered();
  }
  /// The laws that this run may have followed, those of the same effect together.
  std::vector<std::vector<ScaledLaw>> laws() const {
    const bool has_noise = !run_.noise.empty() || !run_.draws.empty();
    const bool has_jitter = !run_.jitter.empty(), has_none = !has_noise && !has_jitter;
    std::vector<std::vector<ScaledLaw>> all;
    std::vector<std::pair<Numbers, int>> effects;
    for (int i = 0; i <= static_cast<int>(RouterNoise::jitter_in_place); ++i) {
      Conventions c;
      c.noise = static_cast<RouterNoise>(i);
      const bool is_there = c.noise == RouterNoise::none || has_none ||
                            (c.is_jittered() ? has_jitter : has_noise);
      if (!is_there) continue;
      for (const double scale : scales()) {
        c.noise_scale = scale;
        const std::pair<Numbers, int> effect{noise_of(run_, c),
                                             has_jitter && c.is_jittered() ? i : 0};
        const auto known = std::find(effects.begin(), effects.end(), effect);
        const std::size_t at = static_cast<std::size_t>(known - effects.begin());
        if (known == effects.end()) effects.push_back(effect), all.emplace_back();
        all[at].push_back({c.noise, scale});
        if (!is_scaled(c.noise)) break;
      }
    }
    return all;
  }
  void note_values() {
    auto& values = explanation.searched;
    Combination c;
    c.K = ks()[0], formulas(Index(run_.N))[0].apply(c), laws()[0][0].apply(c);
    std::tie(c.is_rms, c.norm_eps) = norms()[0];
    const auto note = [&] { explanation.note(c, values); };
    for (const auto& norm : norms()) std::tie(c.is_rms, c.norm_eps) = norm, note();
    for (const auto& gate : gate_rules())
      std::tie(c.rules.gate, c.rules.gate_eps) = gate, note();
    const std::vector<CapacityFormula> all_formulas = formulas(Index(run_.N));
    const CapacityFormula& first = all_formulas[0];
    for (const CapacityFormula& f : all_formulas) {  // one field changed: this shows all values
      const int fields = (f.rounding != first.rounding) + (f.multiple != first.multiple) +
                         (f.minimum != first.minimum) + (f.unusable != first.unusable) +
                         (f.slots != first.slots) + !(f.factor == first.factor);
      if (fields <= 1) f.apply(c), note();
    }
    for (const auto& alike : laws())
      for (const ScaledLaw& law : alike) law.apply(c), note();
    for (const Index K : ks()) c.K = K, note();
    for (const Index scope : scopes()) c.rules.capacity_sequences = scope, note();
    for (const Index K : ks())
      for (const Priority priority : priorities(K)) c.rules.priority = priority, note();
    for (const Index K : ks())
      for (const double threshold : thresholds(K))
        c.K = K, c.rules.second_choice_threshold = threshold, note();
    for (const Reduction reduction : reductions()) c.rules.reduction = reduction, note();
    for (int i = 0; i < 9; ++i) c.rules.balance = static_cast<BalanceRule>(i), note();
    c.rules.balance = BalanceRule::load;
    for (const auto& alike : laws())
      for (const ScaledLaw& law : alike)
        for (const double scale : scales()) ScaledLaw{law.law, scale}.apply(c), note();
    for (int i = 0; i < 4; ++i) c.activation = static_cast<Activation>(i), note();
    for (const bool yes : {true, false}) {
      c.rules.first_choice_sees_noise = c.rules.gate_sees_noise = yes;
      c.rules.balance_sees_noise = c.activation_at_output = yes;
      c.rules.router_bias = yes && !run_.b.empty();
      c.rules.dropped = yes ? DroppedValue::gated_input : DroppedValue::zero;
      note();
    }
  }

  // Stages --------------------------------------------------------------------------------------

  /// Whether a result is what the run says, or part number `part` of `parts` equal ones is.
  template <class Values>
  bool agrees(const char* name, const Values& ours, std::size_t part = 0,
              std::size_t parts = 1) const {
    const auto theirs = run_.results.find(name);
    if (theirs == run_.results.end()) return true;
    if (theirs->second.size() != ours.size() * parts) return false;
    const double* const own = theirs->second.data() + part * ours.size();
    const double tolerance = tolerance_.at(name);
    for (std::size_t i = 0; i < ours.size(); ++i)
      if (!(std::fabs(double(ours[i]) - own[i]) <= tolerance)) return false;
    return true;
  }

  void try_noises(Combination c) {
    for (const auto& alike : laws()) {
      laws_ = alike;
      alike[0].apply(c);
      const Numbers router_sees = jittered(run_, c.rules, x_);
      const bool is_in_place = c.rules.noise == RouterNoise::jitter_in_place;
      if (experts_see_ != (is_in_place ? router_sees : x_)) {
        experts_see_ = is_in_place ? router_sees : x_;
        rows_.assign(run_.N * run_.E, {});
      }
      const Scores s = scores_of(run_, c.rules, router_sees);
      if (!agrees("logits", s.z) || !agrees("probabilities", s.p)) continue;
      for (const Index K : ks())
        for (const bool first : sees()) {
          c.K = K, c.rules.first_choice_sees_noise = first;
          try_choices(c, s);
        }
    }
  }

  void try_choices(Combination c, const Scores& s) {
    for (const bool gate : sees()) {
      c.rules.gate_sees_noise = gate;
      Picked choices = choices_of(run_, s, c);
      if (!agrees("expert", choices.expert)) continue;
      Integers load(run_.L * run_.E);
      for (std::size_t i = 0; i < choices.expert.size(); ++i) ++load[expert_of(choices, i)];
      if (!agrees("load", load)) continue;
      tails_.clear(), forms_.clear();
      for (const double threshold : thresholds(c.K)) {
        c.rules.second_choice_threshold = threshold;
        for (const auto& rule : gate_rules()) {
          std::tie(c.rules.gate, c.rules.gate_eps) = rule;
          choices.asks = asks_of(run_, choices, c.rules);
          try_queues(c, s, choices);
          if (choices.asks.empty()) break;  // whatever the gates are
        }
      }
    }
  }
  /// The expert of a choice among those of all blocks.
  std::size_t expert_of(const Picked& choices, std::size_t i) const {
    const std::size_t n = i / static_cast<std::size_t>(choices.K);
    return n / run_.block_tokens() * run_.E + static_cast<std::size_t>(choices.expert[i]);
  }
  void try_queues(Combination c, const Scores& s, const Picked& choices) {
    for (const Index scope : scopes())
      for (const Priority priority : priorities(c.K)) {
        c.rules.capacity_sequences = scope, c.rules.priority = priority;
        try_slots(c, s, choices);
      }
  }

  void try_slots(Combination c, const Scores& s, const Picked& choices) {
    const std::size_t group = group_of(run_, c.rules.capacity_sequences);
    const Integers place = places_of(run_, choices, c.rules.priority, group);
    const bool is_known = run_.results.count("slot") + run_.results.count("kept") > 0;
    const std::pair<GateRule, double> asked_by{c.rules.gate, c.rules.gate_eps};
    for (const auto& capacity : capacities(c.K, Index(group))) {
      const TailSet alike = tails(choices, place, capacity.first);
      if (alike.none()) continue;
      const Integers slot = slots_of(run_, choices, place, group, capacity.first);
      if (is_known && !gives_slots(choices, slot)) continue;
      Mask mask(slot.size());
      for (std::size_t i = 0; i < slot.size(); ++i) mask[i] = slot[i] >= 0;
      auto& forms = forms_[{mask, group}];
      if (!forms) forms = balance_forms(c, s, choices, slot);
      if (forms->empty()) continue;
      for (std::size_t i = 0; i < all_tails_.size(); ++i) {
        const Tail& tail = all_tails_[i];
        if (!alike[i] || (!choices.asks.empty() && tail.gate != asked_by)) continue;
        std::tie(c.rules.gate, c.rules.gate_eps) = tail.gate, c.rules.dropped = tail.dropped;
        c.activation = tail.activation, c.activation_at_output = tail.is_at_output;
        explanation.matches.push_back({c, capacity.second, forms});
      }
    }
  }
  bool gives_slots(const Picked& choices, const Integers& slot) const {
    Integers kept(run_.L * run_.E);
    for (std::size_t i = 0; i < slot.size(); ++i) kept[expert_of(choices, i)] += slot[i] >= 0;
    return agrees("slot", slot) && agrees("kept", kept);
  }

  static std::vector<Tail> all_tails() {
    std::vector<Tail> all;
    for (const auto& rule : gate_rules())
      for (const DroppedValue dropped : {DroppedValue::zero, DroppedValue::gated_input})
        for (int form = 0; form < 4; ++form)
          for (const bool is_at_output : {false, true})
            all.push_back({rule, dropped, static_cast<Activation>(form), is_at_output});
    return all;
  }
  /// The weights and nonlinearities that give y if an expert serves `usable` choices. Of a token
  /// it matters which of its choices are kept, and nothing about the others: that is computed once,
  /// and the first tokens rule out most.
  TailSet tails(const Picked& choices, const Integers& place, Index usable) {
    const std::size_t K = static_cast<std::size_t>(choices.K);
    TailSet found;
    found.set();
    for (std::size_t n = 0; found.any() && n < run_.N; ++n) {
      Mask kept(K);
      for (std::size_t k = 0; k < K; ++k)
        kept[k] = 0 <= place[n * K + k] && place[n * K + k] < usable;
      const auto known = tails_.emplace(std::make_pair(n, kept), TailSet());
      if (known.second) known.first->second = tails_of_token(choices, n, kept);
      found &= known.first->second;
    }
    return found;
  }
  TailSet tails_of_token(const Picked& choices, std::size_t n, const Mask& kept) {
    const std::size_t K = static_cast<std::size_t>(choices.K), D = run_.D;
    Picked own{choices.K, {}, {}};
    Integers slot;
    for (std::size_t k = 0; k < K; ++k) {
      own.expert.push_back(choices.expert[n * K + k]), own.gate.push_back(choices.gate[n * K + k]);
      slot.push_back(kept[k] ? 0 : -1);
    }
    TailSet found;
    Numbers gate, y(D);
    std::vector<const double*> rows(K);
    for (std::size_t i = 0; i < all_tails_.size(); ++i) {
      const Tail& tail = all_tails_[i];
      if (i == 0 || tail.gate != all_tails_[i - 1].gate)
        gate = gates_of(own, slot, tail.gate.first, tail.gate.second);
      for (std::size_t k = 0; k < K; ++k)
        rows[k] = kept[k] ? row_of(n, static_cast<std::size_t>(own.expert[k]), tail)
                  : tail.dropped == DroppedValue::zero ? nullptr : experts_see_.data() + n * D;
      combine_rows(gate.data(), rows, D, y.data());
      found[i] = agrees("gate", gate, n, run_.N) && agrees("y", y, n, run_.N);
    }
    return found;
  }
  /// What an expert makes of a token, under every nonlinearity computed once.
  const double* row_of(std::size_t n, std::size_t e, const Tail& tail) {
    Numbers& rows = rows_[n * run_.E + e];
    if (rows.empty()) {
      Numbers h;
      expert_hidden(run_, experts_see_, n, e, h);
      for (int form = 0; form < 4; ++form) {
        rows.resize(rows.size() + 2 * run_.D);
        double* const row = rows.data() + rows.size() - 2 * run_.D;
        expert_result(run_, h, n, e, static_cast<Activation>(form), row);
        for (std::size_t d = 0; d < run_.D; ++d)
          row[run_.D + d] = activated(static_cast<Activation>(form), row[d]);
      }
    }
    const std::size_t at = 2 * static_cast<std::size_t>(tail.activation) + tail.is_at_output;
    return rows.data() + at * run_.D;
  }
  std::shared_ptr<const std::vector<BalanceForm>> balance_forms(Combination c, const Scores& s,
                                                                const Picked& choices,
                                                                const Integers& slot) const {
    const auto found = std::make_shared<std::vector<BalanceForm>>();
    std::map<double, bool> gives_loss;  // of each deviation of the noise, which `load` looks at
    const auto consider = [&](const BalanceForm& form) {
      form.apply(c);
      const bool is_load = form.rule == BalanceRule::load;
      const double deviation = is_load ? c.rules.noise_deviation(Index(run_.E)) : 0;
      if (is_load && deviation <= 0) return;
      if (gives_loss.count(deviation) == 0)
        gives_loss[deviation] =
            run_.results.count("balance_loss") == 0 ||
            agrees("balance_loss", Numbers{balance_of(run_, s, choices, slot, c.rules)});
      if (gives_loss[deviation]) found->push_back(form);
    };
    for (int i = 0; i < 9; ++i)
      for (const bool loss_sees : sees())
        for (const Reduction reduction : reductions()) {
          const BalanceRule rule = static_cast<BalanceRule>(i);
          const bool is_alike = !explanation.has_noise && rule != BalanceRule::load;
          gives_loss.clear();
          for (const ScaledLaw& law : laws_) {
            if (is_alike && law.law != laws_[0].law) break;
            std::vector<double> all_scales = {law.scale};
            if (rule == BalanceRule::load && !is_scaled(law.law)) all_scales = scales();
            for (const double scale : all_scales)
              consider({{law.law, scale}, rule, loss_sees, reduction});
          }
        }
    return found;
  }

  const LayerRun& run_;
  std::map<std::string, double> tolerance_;
  std::map<std::pair<Index, Index>, Capacities> capacities_;
  Numbers x_, experts_see_;
  std::vector<Numbers> rows_;  // of each token and expert, what comes out under every nonlinearity
  std::vector<ScaledLaw> laws_;
  const std::vector<Tail> all_tails_ = all_tails();
  std::map<std::pair<std::size_t, Mask>, TailSet> tails_;  // of a token and its choices kept
  std::map<std::pair<Mask, std::size_t>, std::shared_ptr<const std::vector<BalanceForm>>> forms_;
};

/// The combinations of conventions that reproduce a run to rounding.
inline Explanation explain(const LayerRun& run) {
  return std::move(ConventionSearch(run).explanation);
}

// Telling the rest apart ==========================================================================

/// An input for the same weights under which combinations of a set give different outputs. Those
/// compared are a sample of a large set; of the knobs about which they disagree some are decided,
/// because no two of them that differ there have the same outputs.
struct TellingInput {
  LayerRun run;
  std::size_t compared = 0, classes = 0, tried = 0;  // combinations; different outputs; inputs
  std::vector<std::string> decides, leaves;          // knobs
};

/// A random input of the kind of `run`: T tokens in each of B sequences of each block.
inline LayerRun random_input(const LayerRun& run, std::size_t B, std::size_t T, double scale,
                             const Rng& rng) {
  LayerRun next = run;
  next.results.clear();
  next.B = B, next.N = run.L * B * T;
  Index stream = 0;
  const auto normal = [&](std::size_t size, double deviation) {
    const auto values =
        Tensor<double>::randn({Index(size)}, rng.at_block(stream++)).to_vector();
    Numbers scaled(values.begin(), values.end());
    for (double& value : scaled) value *= deviation;
    return scaled;
  };
  const auto spread = [](const Numbers& x, double centre) {
    double squares = 0;
    for (const double value : x) squares += (value - centre) * (value - centre);
    return std::sqrt(squares / double(std::max<std::size_t>(1, x.size())));
  };
  next.x = normal(next.N * run.D, scale * spread(run.x, 0));
  if (!run.noise.empty()) next.noise = normal(next.N * run.E, spread(run.noise, 0));
  if (!run.draws.empty()) next.draws = normal(next.N * run.E, spread(run.draws, 0));
  if (!run.jitter.empty()) {
    next.jitter = normal(next.N * run.D, spread(run.jitter, 1));
    for (double& value : next.jitter) value += 1;
  }
  if (!run.coins.empty()) {
    const auto coins = Tensor<double>::uniform({Index(run.coins.size() / run.N * next.N)},
                                               rng.at_block(stream++), 0, 1).to_vector();
    next.coins.assign(coins.begin(), coins.end());
  }
  if (!run.order.empty()) {
    const Numbers keys = normal(next.N * run.E, 1);
    const std::size_t K = run.order.size() / run.N;
    next.order.resize(next.N * K);
    std::iota(next.order.begin(), next.order.end(), 0);
    const std::ptrdiff_t block = static_cast<std::ptrdiff_t>(next.block_tokens() * K);
    for (auto begin = next.order.begin(); begin != next.order.end(); begin += block)
      std::sort(begin, begin + block, [&](std::int32_t a, std::int32_t b) {
        return keys[static_cast<std::size_t>(a)] < keys[static_cast<std::size_t>(b)];
      });
  }
  return next;
}

/// Up to `most` combinations of a set: all, or of as many of its matches as possible.
inline std::vector<Combination> sample_of(const Explanation& set, std::size_t most) {
  std::vector<Combination> members;
  const std::size_t size = set.size(), n = set.matches.size();
  if (size <= most) {
    for (std::size_t i = 0; i < size; ++i) members.push_back(set.at(i));
    return members;
  }
  const Rng rng(11);
  std::set<std::pair<std::size_t, std::size_t>> taken;
  for (std::size_t i = 0; i < most; ++i) {
    const std::size_t m = i * std::max(n, most) / most % n;
    const double u = rng.uniform(Index(i));
    const std::size_t at = static_cast<std::size_t>(u * double(set.matches[m].size()));
    if (taken.insert({m, at}).second) members.push_back(set.matches[m].at(at));
  }
  return members;
}

/// The outputs of combinations, those alike to rounding in one class: of each its class. Only what
/// the dump has counts.
inline std::vector<std::size_t> classes_of(const LayerRun& next, const LayerRun& run,
                                           const std::vector<Combination>& members) {
  const bool sees_y = run.results.count("y") > 0, sees_loss = run.results.count("balance_loss") > 0;
  LayerOutputs outputs(next);
  std::vector<Numbers> classes;
  std::vector<std::size_t> all;
  for (const Combination& member : members) {
    const Numbers y = outputs(member);
    double largest = 0;
    for (std::size_t k = 0; k + 1 < y.size(); ++k) largest = std::fmax(largest, std::fabs(y[k]));
    const auto is_alike = [&](const Numbers& other) {
      for (std::size_t k = 0; k < y.size(); ++k) {
        const bool is_loss = k + 1 == y.size();
        if (is_loss ? !sees_loss : !sees_y) continue;
        const double scale = is_loss ? std::fabs(y[k]) : largest;
        if (std::fabs(y[k] - other[k]) > 4 * tolerance_of(run, scale)) return false;
      }
      return true;
    };
    const auto known = std::find_if(classes.begin(), classes.end(), is_alike);
    all.push_back(static_cast<std::size_t>(known - classes.begin()));
    if (known == classes.end()) classes.push_back(y);
  }
  return all;
}

/// Draws inputs of 1 to 24 tokens in as many sequences as there were, or up to four times as many
/// if there were several, and keeps the one under which (up to `most` of) the combinations of a set
/// give the most different outputs: those further apart than rounding in y or, if the dump has it,
/// the balance loss.
inline TellingInput telling_input(const LayerRun& run, const Explanation& set,
                                  std::size_t num_inputs = 40, std::size_t most = 100) {
  TellingInput best;
  const Rng rng(11);
  const std::vector<Combination> members = sample_of(set, most);
  std::vector<std::size_t> class_of;  // under the best input
  best.compared = members.size();
  for (std::size_t i = 0; i < num_inputs && best.classes < members.size(); ++i) {
    const Rng draw = rng.at_step(Index(i) + 1);
    const std::size_t B = run.B == 1 ? 1 : run.B << (i % 3);
    const bool fits = std::all_of(members.begin(), members.end(), [&](const Combination& member) {
      const std::size_t s = static_cast<std::size_t>(member.rules.capacity_sequences);
      return s == 0 || B % std::min(B, s) == 0;
    });
    if (!fits) continue;
    const std::size_t T = 1 + static_cast<std::size_t>(draw.uniform(0) * 24);
    const LayerRun next = random_input(run, B, T, i % 2 ? 3 : 1, draw);
    const std::vector<std::size_t> found = classes_of(next, run, members);
    const std::size_t classes = 1 + *std::max_element(found.begin(), found.end());
    ++best.tried;
    if (classes > best.classes) best.run = next, best.classes = classes, class_of = found;
  }
  std::map<std::string, std::map<std::string, std::set<std::size_t>>> classes;  // of each value
  for (std::size_t i = 0; i < class_of.size(); ++i)
    members[i].visit_knobs([&](const char* knob, const std::string& value) {
      if (set.is_relevant(members[i], knob)) classes[knob][value].insert(class_of[i]);
    });
  for (const auto& knob : classes) {
    std::set<std::size_t> together;
    std::size_t total = 0;
    for (const auto& value : knob.second) {
      together.insert(value.second.begin(), value.second.end());
      total += value.second.size();
    }
    if (knob.second.size() > 1)
      (total == together.size() ? best.decides : best.leaves).push_back(knob.first);
  }
  return best;
}

/// A run as the file of a case, its results left out: an implementation that has run it can be
/// explained again and, if it is of one block, `validate run` runs it, under the conventions of a
/// combination.
inline SafeTensors case_of(const LayerRun& run, const Combination& c) {
  SafeTensors file;
  const Index B = Index(run.B), D = Index(run.D), E = Index(run.E), F = Index(run.F);
  const Index L = Index(run.L), N = Index(run.block_tokens()), T = N / B;
  const auto add = [&](const std::string& name, const Shape& of_block, const Numbers& values) {
    std::vector<Index> extents = of_block.extents();
    if (L > 1) extents.insert(extents.begin(), L);
    if (!values.empty()) file.add("in." + name, Shape(extents), values);
  };
  const std::string experts = "shared.moe.experts.{}.";
  add("x", L > 1 ? Shape{B, T, D} : Shape{N, D}, run.x);
  add("d_y", {N, D}, Numbers(run.x.size(), 1));
  add("shared.moe.router.weight", {D, E}, run.w), add("shared.moe.router.bias", {E}, run.b);
  add(experts + "fc1.weight", {E, D, F}, run.w1), add(experts + "fc1.bias", {E, F}, run.b1);
  add(experts + "fc2.weight", {E, F, D}, run.w2), add(experts + "fc2.bias", {E, D}, run.b2);
  for (std::size_t l = 0; l < run.L; ++l) {
    const auto part = [&](const char* name, const Numbers& values) {
      const Numbers own(values.begin() + std::ptrdiff_t(std::min(values.size(), l * run.D)),
                        values.begin() + std::ptrdiff_t(std::min(values.size(), (l + 1) * run.D)));
      if (!own.empty()) file.add("in.blocks." + std::to_string(l) + name, Shape{D}, own);
    };
    part(".norm2.weight", run.gamma), part(".norm2.bias", run.beta);
  }
  add("noise", {N, E}, run.noise), add("draws", {N, E}, run.draws);
  add("jitter", {N, D}, run.jitter);
  add("coins", {N, Index(run.coins.size() / run.N)}, run.coins);
  Integers order = run.order;  // numbers within a block
  for (std::int32_t& i : order) i %= static_cast<std::int32_t>(order.size() / run.L);
  if (!order.empty()) file.add("in.order", Shape{Index(order.size())}, order);
  const auto know = [&](const char* name, auto value, bool is_known) {
    PlainText text;
    text << value;
    if (is_known) file.metadata[name] = text.str();
  };
  know("batch", run.B, true), know("top_k", run.K, run.K > 0);
  know("capacity_factor", run.factor, run.factor.numerator > 0);
  know("noise_scale", run.noise_scale, run.noise_scale > 0);
  know("second_choice_threshold", run.threshold, run.threshold >= 0);
  if (L > 1) return file;
  EncoderConfig config;
  config.width = D, config.experts = E, config.expert_hidden = F, config.top_k = c.K;
  config.capacity_factor = c.factor, config.conventions = c.rules;
  config.gelu = c.activation == Activation::erf ? Gelu::erf : Gelu::tanh;
  config.gelu_at_output = c.activation_at_output;
  config.norm = c.is_rms ? Norm::rms_norm : Norm::layer_norm;
  if (c.norm_eps > 0) config.layer_norm_eps = c.norm_eps;
  widenet::detail::ConfigWriter writer;
  widenet::detail::visit_encoder(config, writer);
  writer("batch", B);
  file.metadata["case"] = "{\"name\":\"telling\",\"op\":\"mixture\",\"zero\":[],\"settings\":" +
                          writer.out.str() + "}}";
  return file;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_EXPLAIN_HPP
