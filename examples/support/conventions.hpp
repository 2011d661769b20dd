// conventions.hpp - conventions in words: the formulas of each preset, and configurations that
// follow one.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_CONVENTIONS_HPP
#define WIDENET_EXAMPLES_SUPPORT_CONVENTIONS_HPP

#include "widenet.hpp"

#include <algorithm>         // count
#include <initializer_list>  // initializer_list
#include <map>               // map
#include <string>            // string

namespace widenet::support {

/// The formulas of the conventions in plain text, one line for each.
inline std::string describe(const Conventions& c) {
  const auto at = [](auto value, std::initializer_list<const char*> texts) {
    return texts.begin()[static_cast<std::size_t>(value)];
  };
  const bool is_noisy = c.noise != RouterNoise::none, is_raw = c.gate == GateRule::raw;
  const bool is_rounded = c.capacity != CapacityRule::absolute &&
                          c.capacity != CapacityRule::dropless;
  PlainText out;
  out << "router    z = x w" << (c.router_bias ? " + b" : "") << "\nnoise     "
      << at(c.noise, {"none", "z + (s / E) n, n ~ N(0, 1)", "z + (s / E^2) n, n ~ N(0, 1)",
                      "z + s u, u ~ U(-1, 1)", "z + s g, g = -log(-log(u)), u ~ U(0, 1)",
                      "z = (x (1 + s u)) w, u ~ U(-1, 1)",
                      "x (1 + s u) in place of x for router and experts, u ~ U(-1, 1)"});
  if (is_noisy)
    out << ", s = " << c.noise_scale << ", in training; in the choice"
        << (c.first_choice_sees_noise ? "" : " (but the first)")
        << (c.gate_sees_noise ? ", in the gate" : ", not in the gate")
        << (c.balance_sees_noise ? ", in the balance loss" : ", not in the balance loss");
  out << "\nchoice    the K largest of p = softmax(z), ties to the lower expert";
  if (c.second_choice_threshold > 0)
    out << "; after the first, in training, with probability min(1, gate / "
        << c.second_choice_threshold << ")";
  out << "\ngate      " << at(c.gate, {"p", "p / (sum of p over the K choices",
                                         "p / (sum of p over the choices that have a slot"});
  if (!is_raw) out << " + " << c.gate_eps << "); with K = 1 always 1: the router learns nothing "
                      "from the task";
  out << "\ncapacity  C = "
      << at(c.capacity, {"round(factor K N / E)", "round(factor N / E)",
                         "K round(factor ceil(N / E))", "round(ceil(factor N) K / E)",
                         "ceil(float(N / E) float(factor K))", "", "N, nothing is dropped"});
  if (c.capacity == CapacityRule::absolute) out << c.capacity_slots;
  if (is_rounded && c.capacity != CapacityRule::single_precision)
    out << at(c.capacity_rounding, {", rounded down", ", rounded up"});
  if (c.capacity_multiple > 1) out << ", up to a multiple of " << c.capacity_multiple;
  if (is_rounded) out << ", at least " << c.capacity_minimum;
  if (c.unusable_slots > 0) out << ", of which " << c.unusable_slots << " stays empty";
  out << "; N = the tokens of ";
  if (c.capacity_sequences > 0)
    out << c.capacity_sequences << (c.capacity_sequences > 1 ? " sequences" : " sequence");
  else
    out << "the batch";
  out << "\npriority  "
      << at(c.priority, {"by token, all choices of a token together",
                         "all first choices by token, then all second choices, ...",
                         "all first choices by largest gate, then all second choices, ...",
                         "by gate", "random"})
      << "\ndropped   adds " << at(c.dropped, {"0", "gate x"}) << "\nbalance   "
      << at(c.balance, {"E sum f P, f = choices / (N K), P = mean p",
                        "E sum f P, f = choices / N, P = mean p",
                        "E sum f P, f = first choices / N, P = mean p",
                        "E sum f P, f = kept / all kept, P = mean p",
                        "E sum f P, f = kept / all kept, P = sum p / all kept",
                        "variance / mean^2 of the sums of p, dividing by E",
                        "variance / mean^2 of the sums of p, dividing by E - 1",
                        "variance / mean^2 of the sums of Phi((z - K-th largest noisy z) / s)",
                        "mean of logsumexp(z)^2"})
      << (c.capacity_sequences > 0 ? "; mean over the groups of N tokens" : "")
      << at(c.reduction, {"; summed over blocks", "; mean over blocks",
                          "; over the tokens of all blocks together"}) << "\n";
  return out.str();
}

/// Takes over a preset of Conventions together with what the configuration of an encoder holds of
/// it: sharing, K, capacity factors, GELU, the kind of norm and its eps. ReLU and SwiGLU are not
/// offered.
///
///   Errors    ConfigError if there is no such preset
inline void follow(EncoderConfig& config, const std::string& preset) {
  const std::map<std::string, Conventions> all = Conventions::presets();
  require<ConfigError>(all.count(preset) == 1, "follow: a preset must be known; got ",
                       preset);
  const auto is_any = [&](std::initializer_list<const char*> names) {
    return std::count(names.begin(), names.end(), preset) > 0;
  };
  config.conventions = all.at(preset);
  if (!is_any({"paper", "author_tf"}))
    config.share_attention = config.share_router = config.share_experts = false;
  config.capacity_factor = {6, 5}, config.evaluation_capacity_factor = {0, 1};
  if (is_any({"colossal", "mesh_top2"}))
    config.capacity_factor = {5, 4}, config.evaluation_capacity_factor = {2, 1};
  if (is_any({"vmoe"}))
    config.capacity_factor = {21, 20}, config.evaluation_capacity_factor = {4, 1};
  config.top_k = is_any({"hf_switch"}) ? 1 : 2;
  config.gelu = is_any({"colossal"}) ? Gelu::erf : Gelu::tanh;
  config.gelu_at_output = is_any({"author_tf"});
  config.norm = is_any({"mixtral", "hf_switch"}) ? Norm::rms_norm : Norm::layer_norm;
  config.layer_norm_eps = is_any({"mixtral"}) ? 1e-5 : 1e-6;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_CONVENTIONS_HPP
