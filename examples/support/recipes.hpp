// recipes.hpp - how the paper trains, as values with names.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_RECIPES_HPP
#define WIDENET_EXAMPLES_SUPPORT_RECIPES_HPP

#include "support/augment.hpp"
#include "widenet.hpp"

#include <string>  // string
#include <vector>  // vector

namespace widenet::support {

enum class OptimizerKind { sgd, adamw, lamb };

/// How a model is trained on images. What the paper and its authors' code do not say is 0 or off.
struct VisionRecipe {
  std::string name;
  OptimizerKind optimizer = OptimizerKind::lamb;
  double learning_rate = 0;  // the peak
  double end_rate = 0;       // where warm-up begins and decay ends
  double weight_decay = 0, momentum = 0;
  Schedule::Decay decay = Schedule::Decay::linear;
  Index batch = 0, epochs = 0, warmup_epochs = 0;
  double clip_norm = 1;
  double dropout = 0, label_smoothing = 0, balance_weight = 0.01;
  Augmentation augmentation = {{0, 0}, 1, false, false};

  /// The learning rate by step, for so many steps per epoch.
  Schedule schedule(Index steps_per_epoch) const {
    return {learning_rate, warmup_epochs * steps_per_epoch, epochs * steps_per_epoch, decay,
            end_rate, end_rate};
  }
};

/// ImageNet-1K from scratch; LAMB with beta2 = 0.999, eps = 1e-6 and decay on all weights.
///
///   Source    section 4.1 of the paper; the augmentation is that of its authors' code
inline VisionRecipe imagenet_recipe() {
  VisionRecipe r;
  r.name = "imagenet";
  r.learning_rate = 0.01, r.end_rate = 1e-5, r.weight_decay = 0.1;
  r.batch = 4096, r.epochs = 300, r.warmup_epochs = 30;
  r.dropout = 0.1, r.label_smoothing = 0.1;
  r.augmentation = {{2, 15}, 0.05, true, true};
  return r;
}

/// CIFAR-10 with the weights from ImageNet.
inline VisionRecipe cifar10_finetune_recipe() {
  VisionRecipe r;
  r.name = "cifar10_finetune";
  r.optimizer = OptimizerKind::sgd, r.momentum = 0.9;
  r.learning_rate = 0.03, r.decay = Schedule::Decay::cosine;
  r.batch = 512, r.epochs = 100;
  return r;
}

/// CIFAR-10 from scratch, images of 32x32, E = 4, K = 2, capacity factor 1.2. The number of epochs
/// is not given.
inline VisionRecipe cifar10_scratch_recipe() {
  VisionRecipe r;
  r.name = "cifar10_scratch";
  r.learning_rate = 1e-3, r.weight_decay = 1e-3;
  r.batch = 256;
  return r;
}

/// How a model is trained on text: LAMB, linear warm-up and linear decay to 0.
struct LanguageRecipe {
  std::string name;
  Index steps = 0, warmup = 0, batch = 0, tokens = 0;  // tokens per sequence
  double learning_rate = 0;
  Rational capacity_factor{6, 5};
  double balance_weight = 0.01, dropout = 0;

  Schedule schedule() const { return {learning_rate, warmup, steps, Schedule::Decay::linear}; }
};

/// Masked words and order of segments, as ALBERT is trained; at most 20 predictions a sequence.
///
///   Source    Lan et al., ALBERT, arXiv 1909.11942; what WideNet changes of it is not known
inline LanguageRecipe albert_pretraining_recipe() {
  return {"albert_pretraining", 125000, 3125, 4096, 512, 0.00176, {6, 5}, 0.01, 0};
}

/// The fine-tuning tasks.
///
///   Source    the paper's table of settings for fine-tuning
inline std::vector<LanguageRecipe> finetuning_recipes() {
  return {{"squad1", 3649, 365, 48, 384, 5e-5, {2, 1}, 0, 0.1},
          {"squad2", 8144, 814, 48, 512, 3e-5, {6, 5}, 0.01, 0},
          {"mnli", 10000, 1000, 128, 512, 3e-5, {6, 5}, 0.01, 0},
          {"sst2", 5234, 314, 128, 512, 4e-5, {6, 5}, 0.01, 0}};
}

/// The recipe of this name.
///
///   Errors    ValueError that lists the names
template <class Recipe>
Recipe recipe_named(const std::vector<Recipe>& recipes, const std::string& name) {
  std::string names;
  for (const Recipe& recipe : recipes) {
    if (recipe.name == name) return recipe;
    names += (names.empty() ? "" : " ") + recipe.name;
  }
  fail<ValueError>("recipe: the name must be one of ", names, "; got ", name);
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_RECIPES_HPP
