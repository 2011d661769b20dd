// presets.hpp - the models of the paper by name, and each of them at toy size.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_PRESETS_HPP
#define WIDENET_EXAMPLES_SUPPORT_PRESETS_HPP

#include "widenet.hpp"

#include <algorithm>  // max
#include <string>     // string
#include <utility>    // pair
#include <vector>     // vector

namespace widenet::support {

using VisionPresets = std::vector<std::pair<std::string, VisionConfig>>;
using LanguagePresets = std::vector<std::pair<std::string, LanguageConfig>>;

inline VisionPresets vision_presets() {
  return {{"vit_b", VisionConfig::vit_b()},         {"vit_l", VisionConfig::vit_l()},
          {"vit_moe_b", VisionConfig::vit_moe_b()}, {"vit_moe_l", VisionConfig::vit_moe_l()},
          {"widenet_b", VisionConfig::widenet_b()}, {"widenet_l", VisionConfig::widenet_l()},
          {"widenet_h", VisionConfig::widenet_h()}};
}

inline LanguagePresets language_presets() {
  return {{"albert_base", LanguageConfig::albert_base()},
          {"bert_factorized", LanguageConfig::bert_factorized()},
          {"widenet_albert_4", LanguageConfig::widenet_albert(4)},
          {"widenet_albert_8", LanguageConfig::widenet_albert(8)},
          {"widenet_albert_16", LanguageConfig::widenet_albert(16)}};
}

/// The same system with a sixteenth of every width, a quarter of the heads, and a quarter of the
/// blocks, of those with experts at least one: D is 48, 64 or 80 for B, L and H.
inline EncoderConfig toy_size(EncoderConfig c) {
  c.width /= 16, c.heads /= 4, c.blocks /= 4;
  c.dense_hidden /= 16, c.expert_hidden /= 16;
  if (c.moe_blocks > 0) c.moe_blocks = std::max<Index>(1, c.moe_blocks / 4);
  return c;
}

/// The same for images of 8x8 grey pixels in ten classes, as in VisionConfig::toy().
inline VisionConfig toy_size(VisionConfig c) {
  const VisionConfig toy = VisionConfig::toy();
  c.image_height = toy.image_height, c.image_width = toy.image_width, c.channels = toy.channels;
  c.patch = toy.patch, c.classes = toy.classes;
  c.encoder = toy_size(c.encoder);
  return c;
}

/// The same for sequences of up to 64 bytes, as in LanguageConfig::toy().
inline LanguageConfig toy_size(LanguageConfig c) {
  const LanguageConfig toy = LanguageConfig::toy();
  c.vocabulary = toy.vocabulary, c.max_tokens = toy.max_tokens, c.embedding = toy.embedding;
  c.encoder = toy_size(c.encoder);
  return c;
}

/// The configuration of this name.
///
///   Errors    ValueError that lists the names
template <class Presets>
auto preset_named(const Presets& presets, const std::string& name) {
  std::string names;
  for (const auto& preset : presets) {
    if (preset.first == name) return preset.second;
    names += (names.empty() ? "" : " ") + preset.first;
  }
  fail<ValueError>("preset: the name must be one of ", names, "; got ", name);
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_PRESETS_HPP
