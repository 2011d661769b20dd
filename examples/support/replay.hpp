// replay.hpp - our experts with the decisions of another router, and our router with its logits:
// which of the two departs.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_REPLAY_HPP
#define WIDENET_EXAMPLES_SUPPORT_REPLAY_HPP

#include "support/compare.hpp"
#include "support/golden.hpp"
#include "widenet.hpp"

#include <algorithm>  // all_of, find, max, min
#include <cmath>      // fabs, floor, fmax, isfinite
#include <cstdint>    // int32_t
#include <cstdlib>    // strtoll
#include <iterator>   // distance
#include <map>        // map
#include <set>        // set
#include <string>     // string, to_string
#include <vector>     // vector

namespace widenet::support {

/// One question to a dump, and the first element whose answer is another than ours.
struct Judged {
  std::string part;       // "router logits", "choices", "slots", "gates", "experts", ...
  std::string given;      // what of theirs we started from
  Index compared = 0;     // tensors; 0: the dump does not say, or it cannot be judged
  std::string name = "";  // of the tensor that departs, or empty
  Index element = -1;     // -1: they are not equally many
  double ours = 0, theirs = 0, tolerance = 0;  // of that element; or how many there are
  bool departs() const { return !name.empty(); }
};

namespace replaying {

/// The name under which a dump holds a result, or "".
inline std::string key_of(const SafeTensors& dump, const std::string& name) {
  return dump.tensors.count("out." + name) > 0 ? "out." + name
         : dump.tensors.count(name) > 0        ? name
                                               : "";
}

/// Compares one tensor; the first that departs stays.
inline void judge(Judged& judged, const std::string& name, const std::vector<double>& ours,
                  const std::vector<double>& theirs, double tolerance) {
  ++judged.compared;
  if (judged.departs() || distance(ours, theirs) <= tolerance) return;
  judged.name = name, judged.tolerance = tolerance;
  if (ours.size() != theirs.size()) {
    judged.ours = double(ours.size()), judged.theirs = double(theirs.size());
    return;
  }
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (std::fabs(ours[i] - theirs[i]) <= tolerance) continue;
    judged.element = static_cast<Index>(i), judged.ours = ours[i], judged.theirs = theirs[i];
    return;
  }
}

/// What is in tolerance: 1e-12 of the largest value in float64; in float32 twice the error of our
/// own. At least 4 units in the last place.
inline double tolerance_of(const std::vector<double>& ours, bool is_float, double error32) {
  const double largest = largest_of(ours);
  return is_float ? 2 * error32 + 4 * ulp_of<float>(largest)
                  : std::fmax(1e-12 * largest, 4 * ulp_of<double>(largest));
}

/// The configuration of a case's encoder and how many sequences it has.
struct CaseOfExperts {
  EncoderConfig config;
  Index B = 1;
  bool is_stage = false;  // one mixture or block; otherwise a model with several routings
};
inline CaseOfExperts case_of_experts(const GoldenCase& c, const SafeTensors& file) {
  static const std::map<std::string, const char*> inputs = {{"mixture", "in.x"},
                                                            {"block", "in.x"},
                                                            {"encoder", "in.x"},
                                                            {"vision", "in.images"},
                                                            {"language", "in.token"}};
  const auto input = inputs.find(c.op);
  require<ConfigError>(input != inputs.end(),
                       "replay: the case must be a mixture, block, encoder, vision or language; "
                       "got ", c.op);
  CaseOfExperts result;
  GivenFields reader{c.settings};
  widenet::detail::visit_encoder(result.config, reader);
  require<ConfigError>(result.config.experts > 0, "replay: the case must have experts; got ",
                       result.config.experts);
  result.is_stage = c.op == "mixture" || c.op == "block";
  result.B = c.op == "mixture" ? c.settings.at("batch").integer() : file.at(input->second).shape[0];
  return result;
}

/// Conventions that leave room for every slot that a replay may use.
inline Conventions with_room(Conventions c) {
  c.capacity = CapacityRule::dropless;
  return c;
}

inline std::vector<std::int32_t> whole_numbers(const std::vector<double>& values) {
  std::vector<std::int32_t> result;
  for (const double value : values) {
    require<IoError>(value >= -1 && value < 2147483648.0 && value == std::floor(value),
                     "replay: experts and slots must be whole numbers from -1 on; got ", value);
    result.push_back(static_cast<std::int32_t>(value));
  }
  return result;
}

/// The slots of choices in the order of their numbers, if nobody is dropped.
inline std::vector<std::int32_t> slots_in_order(const std::vector<std::int32_t>& expert) {
  std::map<std::int32_t, std::int32_t> next;
  std::vector<std::int32_t> slot;
  for (const std::int32_t e : expert) slot.push_back(next[e]++);
  return slot;
}

/// The same order without gaps, from 0 on: experts do not care where a row stands. Two choices in
/// one slot stay in one.
inline std::vector<std::int32_t> without_gaps(const std::vector<std::int32_t>& expert,
                                              const std::vector<std::int32_t>& slot) {
  std::map<std::int32_t, std::set<std::int32_t>> taken;
  std::vector<std::int32_t> packed;
  for (std::size_t i = 0; i < slot.size(); ++i)
    if (slot[i] >= 0) taken[expert[i]].insert(slot[i]);
  for (std::size_t i = 0; i < slot.size(); ++i) {
    const std::set<std::int32_t>& of_expert = taken[expert[i]];
    packed.push_back(slot[i] < 0 ? -1
                                 : static_cast<std::int32_t>(std::distance(
                                       of_expert.begin(), of_expert.find(slot[i]))));
  }
  return packed;
}

/// One of their routings, and what its case says about it.
struct TheirRouting {
  std::string prefix;  // of its results: "" or "routing.0."
  Index N = 0;
  std::vector<double> logits, noise, gate;
  std::vector<std::int32_t> expert, slot, packed;  // packed: slots without gaps
  bool has_slots = false, is_float = false;
};

/// Our decisions given their logits.
template <class T>
Routing<T> our_decisions(const TheirRouting& r, const std::vector<double>& logits,
                         const CaseOfExperts& about, const std::vector<double>& noise,
                         const typename Replay<T>::Choices* choices = nullptr) {
  const EncoderConfig& e = about.config;
  const Rational evaluation = e.evaluation_capacity_factor;
  const bool is_training = about.is_stage || evaluation.numerator == 0;
  const Index group = r.N / about.B * std::min(about.B, e.conventions.capacity_sequences);
  return route(Tensor<T>(Shape{r.N, e.experts}, std::vector<T>(logits.begin(), logits.end())),
               {e.top_k, is_training ? e.capacity_factor : evaluation,
                choices ? with_room(e.conventions) : e.conventions, group},
               Buffer<T>(std::vector<T>(noise.begin(), noise.end())), nullptr, choices);
}

/// Logits whose K largest are these choices.
inline std::vector<double> logits_of_choices(const TheirRouting& r, Index K, Index E) {
  std::vector<double> logits(static_cast<std::size_t>(r.N * E), -100);
  for (std::size_t i = 0; i < r.expert.size(); ++i) {
    const Index n = static_cast<Index>(i) / K, k = static_cast<Index>(i) % K;
    logits[static_cast<std::size_t>(n * E + r.expert[i])] = double(K - k);
  }
  return logits;
}

/// Choices given their logits, slots given their choices, gates given both. Of logits that are not
/// all finite neither choices nor gates follow.
template <class T>
void judge_decisions(const TheirRouting& r, const CaseOfExperts& about, Judged& choices,
                     Judged& slots, Judged& gates) {
  const auto numbers = [](const Buffer<std::int32_t>& x) {
    const std::vector<std::int32_t> values = x.to_vector();
    return std::vector<double>(values.begin(), values.end());
  };
  const auto theirs = [](const std::vector<std::int32_t>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  const EncoderConfig& e = about.config;
  const bool is_finite = std::all_of(r.logits.begin(), r.logits.end(),
                                     [](double z) { return std::isfinite(z); });
  const Priority order = e.conventions.priority;
  Routing<T> ours;
  if (is_finite) {
    ours = our_decisions<T>(r, r.logits, about, r.noise);
    judge(choices, r.prefix + "expert", numbers(ours.expert), theirs(r.expert), 0);
  }
  const bool is_other = !is_finite || ours.expert.to_vector() != r.expert;
  if (is_other) ours = our_decisions<T>(r, logits_of_choices(r, e.top_k, e.experts), about, {});
  if (r.has_slots &&
      (!is_other || order == Priority::token_major || order == Priority::choice_major))
    judge(slots, r.prefix + "slot", numbers(ours.slot), theirs(r.slot), 0);
  if (r.gate.empty() || !is_finite) return;
  const auto gate = [&](auto zero) {
    using V = decltype(zero);
    const typename Replay<V>::Choices same{Buffer<std::int32_t>(r.expert),
                                           Buffer<std::int32_t>(r.packed)};
    const auto values =
        our_decisions<V>(r, r.logits, about, r.noise, &same).gate.to_vector();
    return std::vector<double>(values.begin(), values.end());
  };
  const std::vector<double> exact = gate(0.0);
  judge(gates, r.prefix + "gate", exact, r.gate,
        tolerance_of(exact, r.is_float, distance(gate(0.0f), exact)));
}

/// The rows of (E, C, D) in which the kept choices stand, in the order of the choices: whatever C.
inline std::vector<double> rows_of_choices(const std::vector<double>& slots, const Shape& shape,
                                           const std::vector<std::int32_t>& expert,
                                           const std::vector<std::int32_t>& slot) {
  std::vector<double> rows;
  if (shape.rank() != 3) return rows;
  for (std::size_t i = 0; i < expert.size(); ++i) {
    if (slot[i] < 0 || slot[i] >= shape[1] || expert[i] >= shape[0]) continue;
    const auto row = slots.begin() + (expert[i] * shape[1] + slot[i]) * shape[2];
    rows.insert(rows.end(), row, row + shape[2]);
  }
  return rows;
}

}  // namespace replaying

/// Runs a case with the decisions of a dump: with its experts, and its slots, gates and noise where
/// it has them. Five questions, each from what they had at that point, so that an error counts
/// where it is made and not behind it:
///
///   router logits  of the first routing, given the inputs
///   choices        given their logits and the noise
///   slots          given their choices
///   gates          given their logits, choices and slots
///   experts        and all that follows, given their routing; without gradients, for a gate from
///                  outside has none
///
/// From the second routing on, logits stand on the experts of the blocks before, and count with
/// them. Slots are not judged if the choices differ and the order of service depends on the gates.
///
///   Errors    ConfigError if the case has no experts; IoError if the dump does not hold the
///             experts of every routing; ValueError if its choices make no routing
inline std::vector<Judged> replay_dump(const GoldenCase& c, const SafeTensors& file,
                                       const SafeTensors& dump) {
  require_anchored(dump, "replay");
  const replaying::CaseOfExperts about = replaying::case_of_experts(c, file);
  const EncoderConfig& e = about.config;
  const auto own = run_golden<double>(c, file);
  SafeTensors replayed = file;
  const auto set = [&](const std::string& name, const Shape& shape, const auto& values) {
    replayed.tensors.erase("in." + name);
    replayed.add("in." + name, shape, values);
  };
  std::vector<replaying::TheirRouting> routings;
  for (const std::string& name : own.order) {
    const std::size_t end = name.size() < 6 ? 0 : name.size() - 6;
    if (name.substr(end) != "expert") continue;
    replaying::TheirRouting r;
    r.prefix = name.substr(0, end), r.N = own.shapes.at(name)[0];
    const std::string number = about.is_stage ? "" : std::to_string(routings.size());
    const std::string dot = about.is_stage ? "" : ".";
    const auto theirs = [&](const std::string& what) {
      const std::string key = replaying::key_of(dump, r.prefix + what);
      return key.empty() ? std::vector<double>() : numbers_of(dump, key);
    };
    r.expert = replaying::whole_numbers(theirs("expert"));
    require<IoError>(static_cast<Index>(r.expert.size()) == r.N * e.top_k,
                     "replay: a dump must hold ", name, " with ", r.N * e.top_k, " values; got ",
                     r.expert.size());
    for (const char* what : {"expert", "slot", "gate"}) {
      const std::string key = replaying::key_of(dump, r.prefix + what);
      if (key.empty() || dump.at(key).shape.rank() != 2) continue;
      require<IoError>(dump.at(key).shape[0] == r.N, "replay: ", key, " must be (N, K) = (", r.N,
                       ", ", e.top_k, "); got ", dump.at(key).shape);
    }
    r.slot = replaying::whole_numbers(theirs("slot"));
    r.has_slots = !r.slot.empty();
    if (!r.has_slots) r.slot = replaying::slots_in_order(r.expert);
    require<IoError>(r.slot.size() == r.expert.size(), "replay: a dump must hold ", r.prefix,
                     "slot with ", r.N * e.top_k, " values; got ", r.slot.size());
    r.packed = replaying::without_gaps(r.expert, r.slot);
    r.gate = theirs("gate");
    require<IoError>(r.gate.empty() || r.gate.size() == r.expert.size(), "replay: ", r.prefix,
                     "gate must have ", r.expert.size(), " values; got ", r.gate.size());
    const std::string noise = "noise" + dot + number, noise_key = replaying::key_of(dump, noise);
    if (!noise_key.empty())
      set(noise, {r.N, e.experts}, numbers_of(dump, noise_key));
    if (replayed.tensors.count("in." + noise) > 0)
      r.noise = replayed.values<double>("in." + noise);
    const Shape choices{r.N, e.top_k};
    set("replay." + number + dot + "expert", choices, r.expert);
    set("replay." + number + dot + "slot", choices, r.packed);
    if (!r.gate.empty()) set("replay." + number + dot + "gate", choices, r.gate);
    r.logits = theirs("logits");
    require<IoError>(r.logits.empty() ||
                         static_cast<Index>(r.logits.size()) == r.N * e.experts,
                     "replay: ", r.prefix, "logits must have ", r.N * e.experts, " values; got ",
                     r.logits.size());
    const std::string source =
        replaying::key_of(dump, r.prefix + (r.gate.empty() ? "logits" : "gate"));
    r.is_float = !source.empty() && dump.at(source).dtype == "F32";
    routings.push_back(r);
  }
  const Conventions rules = replaying::with_room(e.conventions);
  const auto exact = run_golden<double>(c, replayed, &rules);
  const auto error32 = float_errors(c, replayed, exact, 9, &rules);

  Judged before{"before the router", "the inputs"}, logits{"router logits", "the inputs"};
  Judged choices{"choices", "their logits"}, slots{"slots", "their choices"};
  Judged gates{"gates", "their logits and choices"}, experts{"experts", "their routing"};
  for (replaying::TheirRouting& r : routings) {
    if (r.logits.empty()) r.logits = exact.values.at(r.prefix + "logits");
    if (r.is_float) replaying::judge_decisions<float>(r, about, choices, slots, gates);
    else replaying::judge_decisions<double>(r, about, choices, slots, gates);
  }
  // The routing by which a result stands in slots, (E, C, D); null if it does not.
  const auto routing_of_slots = [&](const std::string& name) -> const replaying::TheirRouting* {
    const std::size_t dot = name.rfind('.');
    const std::string part = dot == std::string::npos ? name : name.substr(dot + 1);
    const bool is_of_block = name.rfind("block.", 0) == 0;
    if ((part != "slots" && part != "results") || is_of_block == about.is_stage) return nullptr;
    std::size_t num_before = 0;  // routings up to the block
    for (Index i = 0; is_of_block && i <= std::strtoll(name.c_str() + 6, nullptr, 10); ++i)
      num_before += std::size_t(e.routes(i));
    return &routings.at(is_of_block ? num_before - 1 : 0);
  };
  const std::set<std::string> first = {"logits", "probabilities", "routing.0.logits",
                                       "routing.0.probabilities"};
  const std::set<std::string> no_expert = {"loss", "main_loss", "balance_loss", "importance"};
  bool is_behind = false;
  for (const std::string& name : exact.order) {
    const std::string key = replaying::key_of(dump, name);
    const bool is_router = first.count(name) > 0;
    is_behind = is_behind || is_router;
    const bool is_value = exact.values.count(name) > 0 && name.find("gate") == std::string::npos;
    const bool is_later = name.rfind("routing.", 0) != 0 || name.find(".logits") < name.size() ||
                          name.find(".probabilities") < name.size();
    if (key.empty() || !is_value || !is_later || name.rfind("grad.", 0) == 0 ||
        name.rfind("balance", 0) == 0 || no_expert.count(name) > 0)
      continue;
    std::vector<double> ours = exact.values.at(name), theirs = numbers_of(dump, key);
    if (const replaying::TheirRouting* const r = routing_of_slots(name)) {
      theirs = replaying::rows_of_choices(theirs, dump.at(key).shape, r->expert, r->slot);
      ours = replaying::rows_of_choices(ours, exact.shapes.at(name), r->expert, r->packed);
    }
    const double tolerance =
        replaying::tolerance_of(ours, dump.at(key).dtype == "F32", error32.at(name));
    replaying::judge(is_router ? logits : is_behind ? experts : before, name, ours, theirs,
                     tolerance);
  }
  return {before, logits, choices, slots, gates, experts};
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_REPLAY_HPP
