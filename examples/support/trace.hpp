// trace.hpp - one token's way through one block, forward and backward, with the numbers used there.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_TRACE_HPP
#define WIDENET_EXAMPLES_SUPPORT_TRACE_HPP

#include "support/progress.hpp"
#include "widenet.hpp"

#include <algorithm>    // fill, find, stable_sort
#include <cstddef>      // nullptr_t, size_t
#include <cstdint>      // int32_t
#include <string>       // string
#include <type_traits>  // is_same_v
#include <vector>       // vector

namespace widenet::support {

/// A value on the way, and dL/d(value), empty without a loss.
template <class T>
struct Traced {
  std::vector<T> value, gradient;
};

template <class T>
struct TracedNorm {
  Traced<T> input, output;               // (D)
  T mean = 0, rstd = 0;                  // rstd = 1 / sqrt(variance + eps)
};

/// One of the K choices of a token.
template <class T>
struct TracedChoice {
  Index expert = -1, place = 0;          // place in the queue of the expert, 1 being served first;
                                         // 0: was drawn not to ask (second_choice_threshold)
  Index slot = -1;                       // -1: dropped
  Traced<T> gate;                        // (1)
  Traced<T> hidden, output;              // (F), before GELU; (D). Empty if dropped, as the next two
  std::vector<T> activated, weighted;    // (F), after GELU and dropout; (D), gate * output
  bool is_kept() const { return slot >= 0; }
};

/// One token's way through one block. Letters are those of widenet.hpp.
///
///   pre-norm    h = LN1(x),  middle = x + attention(h),       y = middle + MoE(LN2(middle))
///   post-norm   h = x,       middle = LN1(x + attention(h)),  y = LN2(middle + MoE(middle))
///
/// A gradient is that of the whole loss, over every path: dL/d(middle), say, is what comes back
/// along the residual and what comes back through the MoE. Gradients of logits, probabilities and
/// gates are also over all blocks that share the routing.
template <class T>
struct Trace {
  Index token = 0, sequence = 0, position = 0;  // token = sequence * T + position
  Index block = 0, routed_by = -1;         // routed_by: the block whose routing it uses; -1: dense
  bool is_pre_norm = true, is_routed = false;   // padding may be left out of the routing
  double lambda = 0;                       // L = main_loss + lambda * balance_loss
  T main_loss = 0, balance_loss = 0;       // the first only if there is a loss

  Traced<T> input, output;                 // (D), x and y
  TracedNorm<T> norm1, norm2;
  Traced<T> q, k, v;                       // (D), head h owns elements h Dh to (h + 1) Dh - 1
  std::vector<std::vector<T>> attention;   // (H, T), probabilities over the keys
  Traced<T> mixed;                         // (D), sum over the keys of probability times v
  Traced<T> attention_output, middle;      // (D), the first after the projection and dropout

  Traced<T> logits;                        // (E), without noise
  std::vector<T> main_gradient, balance_gradient;  // (E), of main_loss and lambda * balance_loss
  std::vector<T> noise, noisy_logits;      // (E), noise is empty in evaluation
  std::vector<T> jitter;                   // (D), factors of what the router reads; mostly empty
  Traced<T> probabilities;                 // (E), of the noisy logits
  std::vector<Index> ranked;               // (E): the K choices, then the others by probability
  Index capacity = 0;                      // places with a slot in the queue of an expert
  std::vector<TracedChoice<T>> choices;    // (K)

  Traced<T> hidden;                        // (F), of a dense block, before GELU
  std::vector<T> activated;                // (F), of a dense block, after GELU and dropout
  Traced<T> moe_output;                    // (D), combined; or what the dense FFN gives
};

/// The place of every choice in the queue of its expert: 1 is served first, 0 did not ask. Order
/// and draws are those of `route`, made again by the same functions from the same numbers.
///
///   Shapes    a routing of N tokens, made by `block`  ->  N K places
template <class T>
std::vector<Index> places_in_queue(const Routing<T>& routing, const Conventions& rules,
                                   const Training* training, Index block) {
  const NoGrad no_graph;
  Routing<T> r = routing;
  const Index n = r.N * r.K;
  const Rng rng = training ? training->stream(Purpose::priority, block) : Rng(0);
  r.gate = select_gates(rules.gate_sees_noise ? r.probabilities : router_probabilities(r.logits),
                        r.expert, r.K);
  const std::vector<std::int32_t> order =
      widenet::detail::order_of_priority(rules.priority, r, training ? &rng : nullptr).to_vector();
  std::vector<std::int32_t> asking = r.expert.to_vector();
  if (training && rules.second_choice_threshold > 0) {
    if (rules.gate == GateRule::renormalized) r.gate = renormalize(r.gate, {}, rules.gate_eps);
    const Buffer<std::int32_t> asks(n), no_slot(n);
    kernel::refuse_choices(asks.data(), no_slot.data(), r.expert.data(), r.gate.data(), rng,
                           T(rules.second_choice_threshold), n, r.K);
    asking = asks.to_vector();
  }
  std::vector<Index> place(asking.size(), 0), queue(static_cast<std::size_t>(r.E), 0);
  for (std::size_t i = 0; i < place.size(); ++i) {
    if (static_cast<Index>(i) % (n / r.groups) == 0) std::fill(queue.begin(), queue.end(), 0);
    const std::size_t choice = order.empty() ? i : static_cast<std::size_t>(order[i]);
    if (asking[choice] >= 0) place[choice] = ++queue[static_cast<std::size_t>(asking[choice])];
  }
  return place;
}

namespace detail {

/// Row n of an array of rows of a width.
template <class T>
std::vector<T> row_of(const Buffer<T>& x, Index n, Index width) {
  if (x.size() == 0) return {};
  const std::vector<T> all = x.to_vector();
  return {all.begin() + n * width, all.begin() + (n + 1) * width};
}

/// Gives parameters the gradients back that they had.
template <class T>
class SavedGradients {
 public:
  explicit SavedGradients(const std::vector<Parameter<T>>& parameters) : parameters_(parameters) {
    for (const Parameter<T>& p : parameters_)
      saved_.push_back(p.tensor.has_gradient() ? p.tensor.gradient().clone() : Buffer<T>());
    clear();
  }
  ~SavedGradients() {
    clear();
    for (std::size_t i = 0; i < saved_.size(); ++i)
      if (saved_[i].size() > 0) parameters_[i].tensor.add_gradient(saved_[i]);
  }
  SavedGradients(const SavedGradients&) = delete;
  SavedGradients& operator=(const SavedGradients&) = delete;

 private:
  void clear() const {
    for (const Parameter<T>& p : parameters_) p.tensor.zero_gradient();
  }
  std::vector<Parameter<T>> parameters_;
  std::vector<Buffer<T>> saved_;
};

/// The row of a token in what its routing routed; -1 if the token is padding that is not routed.
template <class T>
Index routed_row(const Routing<T>& r, Index token) {
  const std::vector<std::int32_t> tokens = r.token.to_vector();
  if (tokens.empty()) return token;
  const auto found = std::find(tokens.begin(), tokens.end(), static_cast<std::int32_t>(token));
  return found == tokens.end() ? -1 : found - tokens.begin();
}

/// Reads what the record holds of the token: the values, or after backward the gradients.
template <class T>
void read_record(Trace<T>& trace, const BlockRecord<T>& record, bool is_backward) {
  const auto read = [is_backward](Traced<T>& to, const Tensor<T>& x, Index row, Index width = 0) {
    (is_backward ? to.gradient : to.value) = row_of(is_backward ? x.gradient() : x.value(), row,
                                                    width > 0 ? width : x.shape().last());
  };
  const Index n = trace.token;
  const auto &attention = record.attention, &ffn = record.ffn;
  read(trace.input, attention.input, n);
  read(trace.norm1.input, trace.is_pre_norm ? attention.input : attention.sum, n);
  read(trace.norm1.output, attention.normed, n);
  read(trace.q, record.heads.q, n);
  read(trace.k, record.heads.k, n);
  read(trace.v, record.heads.v, n);
  read(trace.mixed, record.heads.mixed, n);
  read(trace.attention_output, attention.change, n);
  read(trace.middle, ffn.input, n);
  read(trace.norm2.input, trace.is_pre_norm ? ffn.input : ffn.sum, n);
  read(trace.norm2.output, ffn.normed, n);
  read(trace.moe_output, ffn.change, n);
  read(trace.output, trace.is_pre_norm ? ffn.sum : ffn.normed, n);
  if (trace.routed_by < 0) {
    read(trace.hidden, record.hidden.before_gelu, n);
    return;
  }
  if (!trace.is_routed) return;
  const Routing<T>& r = record.routing;
  const Index row = routed_row(r, n);
  read(trace.logits, r.logits, row);
  read(trace.probabilities, r.probabilities, row);
  for (std::size_t k = 0; k < trace.choices.size(); ++k) {
    TracedChoice<T>& choice = trace.choices[k];
    read(choice.gate, r.gate, row * r.K + static_cast<Index>(k), 1);
    if (!choice.is_kept()) continue;
    const Index at = choice.expert * r.C + choice.slot;
    read(choice.hidden, record.hidden.before_gelu, at);
    read(choice.output, record.results, at);
  }
}

/// Mean and 1 / sigma are no tensors of the graph: the kernel that made them makes them again, from
/// the same rows.
template <class T>
void read_norm(TracedNorm<T>& norm, const LayerNorm<T>& layer, const Tensor<T>& x, Index row,
               double eps) {
  const Index N = x.shape().num_rows(), D = x.shape().last();
  const Buffer<T> y(x.size()), mean(N), rstd(N);
  kernel::layer_norm_forward(y.data(), mean.data(), rstd.data(), x.data(), layer.weight.data(),
                             layer.bias ? layer.bias.data() : nullptr, N, D, T(eps));
  norm.mean = row_of(mean, row, 1)[0], norm.rstd = row_of(rstd, row, 1)[0];
}

/// Nor are the probabilities: attention computes them again for backward, too. This is the call of
/// its forward pass, on the same tensors.
template <class T>
void read_attention(Trace<T>& trace, const AttentionRecord<T>& record, Index H) {
  const Shape& s = record.q.shape();
  const widenet::detail::AttentionShape a{s[0], s[1], H, s[2] / H};
  const Buffer<T> rows(2 * a.B * a.H * a.T_);
  const Buffer<T> p = widenet::detail::attention_probabilities(record.q, record.k, rows, false,
                                                               record.key_mask, a);
  for (Index h = 0; h < H; ++h) {
    std::vector<T> row = row_of(p, (trace.sequence * H + h) * a.T_ + trace.position, a.S());
    row.resize(static_cast<std::size_t>(a.T_));  // the rest is padding
    trace.attention.push_back(row);
  }
}

/// The token's way to its experts.
template <class T>
void read_routing(Trace<T>& trace, const BlockRecord<T>& record, const Conventions& rules,
                  const Training* training) {
  const Routing<T>& r = record.routing;
  const Index row = routed_row(r, trace.token);
  trace.is_routed = row >= 0, trace.capacity = r.usable;
  if (row < 0) return;
  trace.noise = row_of(r.noise, row, r.E);
  if (r.jitter.size() > 0) trace.jitter = row_of(r.jitter, row, r.jitter.size() / r.N);
  trace.noisy_logits = row_of(r.logits.value(), row, r.E);
  for (std::size_t e = 0; e < trace.noise.size(); ++e) trace.noisy_logits[e] += trace.noise[e];
  const std::vector<std::int32_t> expert = row_of(r.expert, row, r.K);
  const std::vector<std::int32_t> slot = row_of(r.slot, row, r.K);
  const std::vector<Index> place = places_in_queue(r, rules, training, trace.routed_by);
  for (std::size_t k = 0; k < expert.size(); ++k) {
    TracedChoice<T> choice;
    choice.expert = expert[k], choice.slot = slot[k];
    choice.place = place[static_cast<std::size_t>(row * r.K) + k];
    trace.choices.push_back(choice);
    trace.ranked.push_back(choice.expert);
  }
  const std::vector<T> p = row_of(r.probabilities.value(), row, r.E);
  std::vector<Index> others;
  for (Index e = 0; e < r.E; ++e)
    if (std::find(expert.begin(), expert.end(), e) == expert.end()) others.push_back(e);
  std::stable_sort(others.begin(), others.end(), [&p](Index a, Index b) {
    return p[static_cast<std::size_t>(a)] > p[static_cast<std::size_t>(b)];
  });
  trace.ranked.insert(trace.ranked.end(), others.begin(), others.end());
}

/// What the second product multiplies, and what combine adds: gate * output, rounded to T.
template <class T>
void read_products(Trace<T>& trace, const BlockRecord<T>& record) {
  const Tensor<T>& activated = record.hidden.after_gelu;
  if (trace.routed_by < 0)
    trace.activated = row_of(activated.value(), trace.token, activated.shape().last());
  for (TracedChoice<T>& choice : trace.choices) {
    if (!choice.is_kept()) continue;
    choice.activated = row_of(activated.value(), choice.expert * record.routing.C + choice.slot,
                              activated.shape().last());
    for (const T y : choice.output.value) choice.weighted.push_back(choice.gate.value[0] * y);
  }
}

}  // namespace detail

/// Follows a token through a block of a model. The pass is a real one, whose tensors of that block
/// are kept; `token` counts the tokens of the batch, sequence after sequence, the class token of an
/// image included. With `training` it is that step, and random like it; without, an evaluation.
///
/// With a loss, a function from the model's output to a scalar, gradients of
/// L = main_loss + lambda * balance_loss follow. Two more passes, which have the same bits, tell
/// the router's two teachers apart. Gradients that parameters have are as before.
///
///   Shapes    input: images (B, channels, height, width), or a TokenBatch
///   Errors    ValueError if there is no such token or block
///   Example   trace(model, images, 17, 1);
///             trace(model, images, 17, 1, &step,
///                   [&](const auto& out) { return cross_entropy(out.logits, labels); });
template <template <class> class Model, class T, class Input, class Loss = std::nullptr_t>
Trace<T> trace(const Model<T>& model, const Input& input, Index token, Index block,
               const Training* training = nullptr, Loss main_loss = nullptr,
               double lambda = 0.01) {
  constexpr bool has_loss = !std::is_same_v<Loss, std::nullptr_t>;
  const EncoderConfig& config = model.config().encoder;
  require<ValueError>(0 <= block && block < config.blocks, "trace: the block must lie in ",
                      "[0, L) = [0, ", config.blocks, "); got ", block);
  BlockRecord<T> record;
  record.block = block;
  const GradMode mode(has_loss);
  const auto forward = [&] {
    return training ? model.forward(input, *training, {}, &record)
                    : model.forward(input, {}, &record);
  };
  auto out = forward();
  const Shape s = record.attention.input.shape();
  require<ValueError>(0 <= token && token < s.num_rows(), "trace: the token must lie in ",
                      "[0, B T) = [0, ", s.num_rows(), "); got ", token);

  Trace<T> trace;
  trace.token = token, trace.sequence = token / s[1], trace.position = token % s[1];
  trace.block = block, trace.is_pre_norm = config.is_pre_norm, trace.lambda = lambda;
  if (config.is_moe(block))
    for (trace.routed_by = block; !config.routes(trace.routed_by);) --trace.routed_by;
  trace.balance_loss = out.balance_loss.item();
  if (trace.routed_by >= 0)
    detail::read_routing(trace, record, config.conventions, training);
  detail::read_record(trace, record, false);
  detail::read_norm(trace.norm1, record.attention.norm,
                    trace.is_pre_norm ? record.attention.input : record.attention.sum, token,
                    config.layer_norm_eps);
  detail::read_norm(trace.norm2, record.ffn.norm,
                    trace.is_pre_norm ? record.ffn.input : record.ffn.sum, token,
                    config.layer_norm_eps);
  detail::read_attention(trace, record.heads, config.heads);
  detail::read_products(trace, record);

  if constexpr (has_loss) {
    const detail::SavedGradients<T> saved(model.parameters());
    const Tensor<T> loss = main_loss(out);
    trace.main_loss = loss.item();
    total_loss(loss, out.balance_loss, lambda).backward();
    detail::read_record(trace, record, true);
    if (trace.is_routed) {
      const Index row = detail::routed_row(record.routing, token), E = config.experts;
      const auto logits_gradient = [&] {
        return detail::row_of(record.routing.logits.gradient(), row, E);
      };
      out = forward();
      main_loss(out).backward();
      trace.main_gradient = logits_gradient();
      out = forward();
      (lambda * out.balance_loss).backward();
      trace.balance_gradient = logits_gradient();
    }
  }
  return trace;
}

// JSON --------------------------------------------------------------------------------------------

template <class T>
std::string json(const Traced<T>& x) {
  return JsonLine().add("value", x.value).add("gradient", x.gradient).text();
}
template <class T>
std::string json(const TracedNorm<T>& norm) {
  return JsonLine().add("mean", norm.mean).add("rstd", norm.rstd).add("input", norm.input)
      .add("output", norm.output).text();
}
template <class T>
std::string json(const TracedChoice<T>& c) {
  return JsonLine().add("expert", c.expert).add("place", c.place).add("slot", c.slot)
      .add("gate", c.gate).add("hidden", c.hidden).add("activated", c.activated)
      .add("output", c.output).add("weighted", c.weighted).text();
}

/// The trace as one JSON object, with the names of its fields and in the order of the way. Every
/// number reads back to the same bits.
template <class T>
std::string to_json(const Trace<T>& t) {
  return JsonLine()
      .add("token", t.token).add("sequence", t.sequence).add("position", t.position)
      .add("block", t.block).add("routed_by", t.routed_by).add("is_pre_norm", t.is_pre_norm)
      .add("is_routed", t.is_routed).add("lambda", t.lambda).add("main_loss", t.main_loss)
      .add("balance_loss", t.balance_loss).add("input", t.input).add("norm1", t.norm1)
      .add("q", t.q).add("k", t.k).add("v", t.v).add("attention", t.attention)
      .add("mixed", t.mixed).add("attention_output", t.attention_output).add("middle", t.middle)
      .add("norm2", t.norm2).add("jitter", t.jitter).add("logits", t.logits)
      .add("main_gradient", t.main_gradient).add("balance_gradient", t.balance_gradient)
      .add("noise", t.noise).add("noisy_logits", t.noisy_logits)
      .add("probabilities", t.probabilities).add("ranked", t.ranked)
      .add("capacity", t.capacity).add("choices", t.choices).add("hidden", t.hidden)
      .add("activated", t.activated).add("moe_output", t.moe_output).add("output", t.output)
      .text();
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_TRACE_HPP
