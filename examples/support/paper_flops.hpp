// paper_flops.hpp - how many operations a model needs for one example.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_PAPER_FLOPS_HPP
#define WIDENET_EXAMPLES_SUPPORT_PAPER_FLOPS_HPP

#include "widenet.hpp"

namespace widenet::support {

/// The useful operations of a forward pass over one sequence of T tokens: those of the matrix
/// products, a multiplication and an addition counting two. Per block
///
///   attention   8 T D^2 + 4 T^2 D
///   experts     4 K T D F, and 2 T D E for the router of a block that routes
///   dense FFN   4 T D F
///
/// All K choices of a token count, none as dropped, and no empty slot. A step of training needs
/// three times as many: backward has two products for each.
inline Index count_flops(const EncoderConfig& c, Index T) {
  const Index D = c.width;
  Index flops = 0;
  for (Index block = 0; block < c.blocks; ++block) {
    flops += 8 * T * D * D + 4 * T * T * D;
    flops += c.is_moe(block) ? 4 * c.top_k * T * D * c.expert_hidden : 4 * T * D * c.dense_hidden;
    if (c.routes(block)) flops += 2 * T * D * c.experts;
  }
  return flops;
}

/// The same of an image: patches, encoder, pre-logits layer, classifier.
inline Index count_flops(const VisionConfig& c) {
  const Index D = c.encoder.width;
  return 2 * c.num_patches() * c.patch * c.patch * c.channels * D +
         count_flops(c.encoder, c.num_tokens()) + (c.has_pre_logits ? 2 * D * D : 0) +
         2 * D * c.classes;
}

/// The same of a text of T tokens that is put into a class: projection, encoder, pooler,
/// classifier.
inline Index count_flops(const LanguageConfig& c, Index T) {
  const Index D = c.encoder.width;
  return 2 * T * c.embedding * D + count_flops(c.encoder, T) + 2 * D * D + 2 * D * c.classes;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_PAPER_FLOPS_HPP
