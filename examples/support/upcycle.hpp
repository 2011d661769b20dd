// upcycle.hpp - a dense ViT or ALBERT becomes a mixture of experts, each a copy of its FFN.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_UPCYCLE_HPP
#define WIDENET_EXAMPLES_SUPPORT_UPCYCLE_HPP

#include "widenet.hpp"

#include <algorithm>  // min
#include <cmath>      // fabs, fmax, isfinite, sqrt
#include <cstdint>    // int32_t
#include <cstring>    // memcmp
#include <limits>     // numeric_limits
#include <map>        // map
#include <string>     // string, to_string
#include <vector>     // vector

namespace widenet::support {

/// How a dense model becomes a sparse one.
struct Upcycling {
  Index experts = 4, top_k = 2;   // E, K
  bool shares = true;             // attention, router and experts among the blocks: a WideNet;
                                  // false: each block keeps its own, as in ViT-MoE
  Index block = -1;               // where blocks of the source become one, whose attention and FFN
                                  // it takes; -1: the mean of all
  GateRule gate = GateRule::raw;  // renormalised gates add up to 1, and copies to their original
  double router_deviation = 0.02;
};

namespace upcycling {

/// The tensors of the dense model that a parameter of the sparse one is the mean of; none for a
/// router.
template <class T>
std::vector<Tensor<T>> sources_of(const std::string& name,
                                  const std::map<std::string, Tensor<T>>& dense, Index blocks,
                                  Index block) {
  std::string plain = name;
  const std::string experts = "moe.experts.{}.", shared = "shared.";
  if (plain.find(experts) != std::string::npos)
    plain.replace(plain.find(experts), experts.size(), "ffn.");
  const auto found = dense.find(plain);
  if (found != dense.end()) return {found->second};
  if (plain.find("moe.router.") != std::string::npos) return {};
  const auto of_block = [&](Index i, const std::string& layer) {
    return dense.at("blocks." + std::to_string(i) + "." + layer);
  };
  if (plain.rfind(shared, 0) != 0)  // of one block here, of all of them there
    return {dense.at(shared + plain.substr(plain.find('.', plain.find('.') + 1) + 1))};
  const std::string layer = plain.substr(shared.size());
  if (block >= 0) return {of_block(block, layer)};
  std::vector<Tensor<T>> all;
  for (Index i = 0; i < blocks; ++i) all.push_back(of_block(i, layer));
  return all;
}

template <class T>
std::vector<T> mean_of(const std::vector<Tensor<T>>& tensors) {
  std::vector<T> mean = tensors[0].to_vector();
  if (tensors.size() == 1) return mean;
  std::vector<double> sum(mean.size());
  for (const Tensor<T>& x : tensors) {
    const std::vector<T> values = x.to_vector();
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += double(values[i]);
  }
  for (std::size_t i = 0; i < sum.size(); ++i) mean[i] = T(sum[i] / double(tensors.size()));
  return mean;
}

/// Errors    ValueError that names what an infinity or NaN was found in
template <class T>
void require_finite(const std::vector<T>& values, const char* rule, const std::string& where) {
  for (const T value : values)
    require<ValueError>(std::isfinite(value), rule, "; got ", value, " in ", where);
}

inline EncoderConfig& encoder_of(VisionConfig& c) { return c.encoder; }
inline EncoderConfig& encoder_of(LanguageConfig& c) { return c.encoder; }

}  // namespace upcycling

/// The configuration of the sparse model: that of the dense one, its norm position among the rest,
/// with E experts of the FFN's width and individual LayerNorms. In evaluation nobody is dropped.
///
///   Errors    ConfigError if the source is not dense, or block is not one of its blocks
template <class Config>
Config upcycled_config(Config config, const Upcycling& how) {
  EncoderConfig& e = upcycling::encoder_of(config);
  require<ConfigError>(e.experts == 0, "upcycle: the source must be dense; got ", e.experts,
                       " experts");
  require<ConfigError>(how.experts > 0 && -1 <= how.block && how.block < e.blocks,
                       "upcycle: there must be an expert, and block must lie in [-1, ", e.blocks,
                       "); got ", how.experts, ", ", how.block);
  e.experts = how.experts, e.top_k = how.top_k, e.moe_blocks = -1;
  e.expert_hidden = e.dense_hidden;
  e.share_attention = e.share_router = e.share_experts = how.shares;
  e.share_layer_norm = false;
  e.conventions.gate = how.gate;
  e.evaluation_capacity_factor = {how.experts, how.top_k};  // C = N
  return config;
}

/// Every expert is a copy of the source's FFN, the router is small and random, and each block keeps
/// its LayerNorms, or a copy of them if the source shares them.
///
///   y = sum over kept k of gate[n, k] FFN(x) = FFN(x) sum over kept k of gate[n, k]
///
/// With E = K = 1 the gate is 1 and the model computes the bits of its source, if this shares its
/// blocks or nothing is shared (`shares` = false). With more experts it equals the source to
/// rounding where the gates of a token add up to 1: if they are renormalised, or K = E. Raw gates
/// of fewer experts scale what the FFN adds by about K / E. What is lost where individual blocks
/// become one has no such bound: their hidden units do not correspond.
///
///   Errors    ConfigError as upcycled_config; ValueError if a weight of the source is not finite
///   Source    copies of the FFN, renormalised gates: Komatsuzaki et al., Sparse Upcycling, arXiv
///             2212.05055. One block from many, the mean or one of them: Bae et al., Relaxed
///             Recursive Transformers, arXiv 2410.20672
template <template <class> class Model, class T>
Model<T> upcycled(const Model<T>& dense, const Upcycling& how, const Rng& rng) {
  std::map<std::string, Tensor<T>> tensors;
  for (const Parameter<T>& p : dense.parameters()) {
    upcycling::require_finite(p.tensor.to_vector(), "upcycle: weights must be finite", p.name);
    tensors[p.name] = p.tensor;
  }
  const Model<T> model(upcycled_config(dense.config(), how), rng);
  for (const Parameter<T>& p : model.parameters()) {
    const auto sources =
        upcycling::sources_of(p.name, tensors, dense.config().encoder.blocks, how.block);
    if (sources.empty()) {
      const bool is_weight = p.tensor.shape().rank() == 2;
      const Tensor<T> router =
          Tensor<T>::randn(p.tensor.shape(), rng.for_purpose(Purpose::initial_weight).named(p.name),
                           T(is_weight ? how.router_deviation : 0));
      p.tensor.value().assign(router.to_vector());
      continue;
    }
    const std::vector<T> one = upcycling::mean_of(sources);
    std::vector<T> values;
    for (Index e = 0; e < (p.is_stack() ? how.experts : 1); ++e)
      values.insert(values.end(), one.begin(), one.end());
    p.tensor.value().assign(values);
  }
  return model;
}

/// How far the outputs of an upcycled model are from those of its source.
struct Closeness {
  double relative = 0;          // |y - y'| / |y|, of Euclidean norms; infinite if only |y| is 0
  double largest = 0;           // the largest |y[i] - y'[i]|
  double dropped_fraction = 0;  // of the choices of all routings
  bool is_same = true;          // bit by bit: 0 is not -0
};

/// Errors    ShapeError if there are not equally many outputs, ValueError if one is not finite
template <class T>
Closeness closeness(const std::vector<T>& source, const std::vector<T>& sparse,
                    const std::vector<Routing<T>>& routings) {
  require<ShapeError>(source.size() == sparse.size(),
                      "closeness: outputs must be equally many; got ", source.size(), ", ",
                      sparse.size());
  upcycling::require_finite(source, "closeness: outputs must be finite", "those of the source");
  upcycling::require_finite(sparse, "closeness: outputs must be finite", "those of the mixture");
  Closeness c;
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < source.size(); ++i) {
    const double d = double(sparse[i]) - double(source[i]);
    apart += d * d, size += double(source[i]) * double(source[i]);
    c.largest = std::fmax(c.largest, std::fabs(d));
  }
  c.relative = apart == 0 ? 0
               : size == 0 ? std::numeric_limits<double>::infinity()
                           : std::sqrt(apart / size);
  c.is_same = source.empty() ||
              std::memcmp(source.data(), sparse.data(), source.size() * sizeof(T)) == 0;
  for (const Routing<T>& r : routings)
    c.dropped_fraction += r.dropped_fraction() / double(routings.size());
  return c;
}

/// On random images, or random words, in evaluation: logits, or tokens.
template <class T>
Closeness closeness(const VisionModel<T>& dense, const VisionModel<T>& sparse, Index B) {
  const NoGrad no_graph;
  const VisionConfig& c = dense.config();
  const Tensor<T> images =
      Tensor<T>::randn({B, c.channels, c.image_height, c.image_width}, Rng(1), T(1));
  const auto out = sparse.forward(images);
  return closeness(dense.forward(images).logits.to_vector(), out.logits.to_vector(), out.routings);
}
template <class T>
Closeness closeness(const LanguageModel<T>& dense, const LanguageModel<T>& sparse, Index B) {
  const NoGrad no_graph;
  const LanguageConfig& c = dense.config();
  TokenBatch batch;
  batch.B = B, batch.T = std::min<Index>(c.max_tokens, 64);
  const Rng rng(1);
  for (Index i = 0; i < batch.B * batch.T; ++i)
    batch.token.push_back(static_cast<std::int32_t>(
        std::min(c.vocabulary - 1, static_cast<Index>(rng.uniform(i) * double(c.vocabulary)))));
  const auto out = sparse.forward(batch);
  return closeness(dense.forward(batch).tokens.to_vector(), out.tokens.to_vector(), out.routings);
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_UPCYCLE_HPP
