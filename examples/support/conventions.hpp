// conventions.hpp - conventions in words: the formulas of each preset, configurations that follow
// one, and what cannot be learned.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_CONVENTIONS_HPP
#define WIDENET_EXAMPLES_SUPPORT_CONVENTIONS_HPP

#include "widenet.hpp"

#include <algorithm>         // count
#include <initializer_list>  // initializer_list
#include <iostream>          // cerr, ostream
#include <map>               // map
#include <string>            // string

namespace widenet::support {

/// The text that belongs to a value of an enum.
template <class Enum>
const char* text_at(Enum value, std::initializer_list<const char*> texts) {
  return texts.begin()[static_cast<std::size_t>(value)];
}

/// Breaks lines of more than 100 columns after a semicolon, a comma or else a word; they go on in
/// column 11.
inline std::string folded(const std::string& lines) {
  const char* const ends[] = {"; ", ", ", " "};
  std::string all, line;
  for (const char c : lines) {
    line += c;
    if (c == '\n') all += line, line.clear();
    if (line.size() <= 100) continue;
    std::size_t end = std::string::npos;
    for (const char* text : ends)
      if (end == std::string::npos) end = line.rfind(text);
    const std::size_t space = line.find(' ', end);
    all += line.substr(0, space) + '\n';
    line = std::string(10, ' ') + line.substr(space + 1);
  }
  return all + line;
}

/// The formulas of the conventions in plain text, one line for each; a long one is folded.
inline std::string describe(const Conventions& c) {
  const bool is_noisy = c.noise != RouterNoise::none, is_raw = c.gate == GateRule::raw;
  const bool is_rounded = c.capacity != CapacityRule::absolute &&
                          c.capacity != CapacityRule::dropless;
  PlainText out;
  out << "router    z = x w" << (c.router_bias ? " + b" : "") << "\nnoise     "
      << text_at(c.noise, {"none", "z + (s / E) n, n ~ N(0, 1)", "z + (s / E^2) n, n ~ N(0, 1)",
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
  out << "\ngate      " << text_at(c.gate, {"p", "p / (sum of p over the K choices",
                                            "p / (sum of p over the choices that have a slot"});
  if (!is_raw) out << " + " << c.gate_eps << "); with K = 1 always 1: the router learns nothing "
                      "from the task";
  out << "\ncapacity  C = "
      << text_at(c.capacity, {"round(factor K N / E)", "round(factor N / E)",
                              "K round(factor ceil(N / E))", "round(ceil(factor N) K / E)",
                              "ceil(float(N / E) float(factor K))", "", "N, nothing is dropped"});
  if (c.capacity == CapacityRule::absolute) out << c.capacity_slots;
  if (is_rounded && c.capacity != CapacityRule::single_precision)
    out << text_at(c.capacity_rounding, {", rounded down", ", rounded up"});
  if (c.capacity_multiple > 1) out << ", up to a multiple of " << c.capacity_multiple;
  if (is_rounded) out << ", at least " << c.capacity_minimum;
  if (c.unusable_slots > 0) out << ", of which " << c.unusable_slots << " stays empty";
  out << "; N = the tokens of ";
  if (c.capacity_sequences > 0)
    out << c.capacity_sequences << (c.capacity_sequences > 1 ? " sequences" : " sequence");
  else
    out << "the batch";
  out << "\npriority  "
      << text_at(c.priority, {"by token, all choices of a token together",
                              "all first choices by token, then all second choices, ...",
                              "all first choices by largest gate, then all second choices, ...",
                              "by gate", "random"})
      << "\ndropped   adds " << text_at(c.dropped, {"0", "gate x"}) << "\nbalance   "
      << text_at(c.balance, {"E sum f P, f = choices / (N K), P = mean p",
                             "E sum f P, f = choices / N, P = mean p",
                             "E sum f P, f = first choices / N, P = mean p",
                             "E sum f P, f = kept / all kept, P = mean p",
                             "E sum f P, f = kept / all kept, P = sum p / all kept",
                             "variance / mean^2 of the sums of p, dividing by E",
                             "variance / mean^2 of the sums of p, dividing by E - 1",
                             "variance / mean^2 of the sums of Phi((z - K-th largest noisy z) / s)",
                             "mean of logsumexp(z)^2"})
      << (c.capacity_sequences > 0 ? "; mean over the groups of N tokens" : "")
      << text_at(c.reduction, {"; summed over blocks", "; mean over blocks",
                               "; over the tokens of all blocks together"}) << "\n";
  return folded(out.str());
}

/// Whether a name is one of a few.
inline bool is_any(const std::string& name, std::initializer_list<const char*> names) {
  return std::count(names.begin(), names.end(), name) > 0;
}

/// The preset of a name.
///
///   Errors    ConfigError naming `who` if there is none
inline Conventions conventions_named(const std::string& preset, const std::string& who) {
  const std::map<std::string, Conventions> all = Conventions::presets();
  std::string names;
  for (const auto& entry : all) names += (names.empty() ? "" : ", ") + entry.first;
  require<ConfigError>(all.count(preset) == 1, who, ": a preset must be one of ", names, "; got ",
                       preset);
  return all.at(preset);
}

/// Takes over a preset of Conventions together with what the configuration of an encoder holds of
/// it: sharing, K, capacity factors, GELU, the kind of norm and its eps, whatever they were before.
/// ReLU and SwiGLU are not offered; what a source leaves open is as in the paper preset.
///
///   Errors    ConfigError if there is no such preset
inline void follow(EncoderConfig& config, const std::string& preset) {
  config.conventions = conventions_named(preset, "follow");
  config.share_attention = config.share_router = config.share_experts =
      is_any(preset, {"paper", "author_tf"});
  config.capacity_factor = {6, 5}, config.evaluation_capacity_factor = {0, 1};
  if (is_any(preset, {"colossal", "mesh_top2"}))
    config.capacity_factor = {5, 4}, config.evaluation_capacity_factor = {2, 1};
  if (preset == "vmoe")
    config.capacity_factor = {21, 20}, config.evaluation_capacity_factor = {4, 1};
  config.top_k = preset == "hf_switch" ? 1 : 2;
  config.gelu = preset == "colossal" ? Gelu::erf : Gelu::tanh;
  config.gelu_at_output = preset == "author_tf";
  config.norm = is_any(preset, {"mixtral", "hf_switch"}) ? Norm::rms_norm : Norm::layer_norm;
  config.layer_norm_eps = preset == "mixtral" ? 1e-5 : 1e-6;
}

/// The same for a vision model: the class token of the authors, and their pooling, which is
/// Colossal-AI's, too. The other presets leave both as they are.
inline void follow(VisionConfig& config, const std::string& preset) {
  follow(config.encoder, preset);
  if (is_any(preset, {"paper", "author_tf"})) config.class_token = ClassToken::zero;
  if (is_any(preset, {"paper", "author_tf", "colossal"})) config.pooling = Pooling::mean;
}

/// The formulas of a preset, and what `follow` sets besides them, in plain text.
///
///   Errors    ConfigError naming `who` if there is no such preset
inline std::string describe_preset(const std::string& preset, const std::string& who) {
  const Conventions rules = conventions_named(preset, who);
  VisionConfig config;  // no preset sets these two values: where they stay, it says nothing
  config.class_token = ClassToken::trained, config.pooling = Pooling::class_token;
  follow(config, preset);
  const EncoderConfig& c = config.encoder;
  const Rational training = c.capacity_factor, evaluation = c.evaluation_capacity_factor;
  const auto value_of = [](Rational r) { return double(r.numerator) / double(r.denominator); };
  const auto ours_of = [&](std::initializer_list<const char*> silent) {
    return is_any(preset, silent) ? " (our choice)" : "";
  };
  PlainText out;
  out << describe(rules) << "sharing   attention, router and experts "
      << (c.share_router ? "are shared by all blocks" : "of each block are its own")
      << "\nK         " << c.top_k << "\nfactor    ";
  if (rules.capacity == CapacityRule::absolute || rules.capacity == CapacityRule::dropless)
    out << "none";
  else if (evaluation.numerator > 0)
    out << value_of(training) << ", in evaluation " << value_of(evaluation);
  else
    out << value_of(training) << ", in evaluation, too" << ours_of({"deepspeed_top2", "tutel"});
  out << "\nGELU      "
      << text_at(c.gelu, {"x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2",
                          "x (1 + erf(x / sqrt(2))) / 2"})
      << (c.gelu_at_output ? ", again after the second product of an expert" : "")
      << (preset == "mixtral" ? ", in place of SwiGLU (not offered)" : "")
      << (preset == "hf_switch" ? ", in place of ReLU (not offered)" : "")
      << ours_of({"mesh_top2", "deepspeed_top2", "tutel"}) << "\nnorm      "
      << text_at(c.norm, {"LayerNorm", "RMSNorm"}) << ", eps " << c.layer_norm_eps
      << ours_of({"mesh_top2", "deepspeed_top2", "tutel"}) << "\ntoken     "
      << text_at(config.class_token, {"the class token is 0, without a gradient",
                                      "as the model has it"})
      << "\npooling   "
      << text_at(config.pooling, {"as the model has it", "mean, with the class token", ""}) << '\n';
  return folded(out.str());
}

/// The same for every preset, or for one, under their names.
inline std::string describe_presets(const std::string& only, const std::string& who) {
  std::string all;
  if (!only.empty()) conventions_named(only, who);
  for (const auto& preset : Conventions::presets())
    if (only.empty() || preset.first == only)
      all += preset.first + '\n' + describe_preset(preset.first, who) + '\n';
  return all;
}

/// Prints what a model of this configuration cannot learn, one line each.
inline void print_warnings(const EncoderConfig& config, std::ostream& out = std::cerr) {
  if (config.num_moe_blocks() == 0) return;
  for (const std::string& line : warnings(config.conventions, config.top_k, config.experts))
    out << "widenet: warning: " << line << '\n';
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_CONVENTIONS_HPP
