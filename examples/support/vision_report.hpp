// vision_report.hpp - what a run with a vision model records of its test images.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_VISION_REPORT_HPP
#define WIDENET_EXAMPLES_SUPPORT_VISION_REPORT_HPP

#include "support/run_record.hpp"
#include "widenet.hpp"

#include <cstdint>  // int32_t
#include <vector>   // vector

namespace widenet::support {

/// The fraction of the choices that was dropped, the mean over the routings; 0 without any.
template <class T>
double mean_dropped(const std::vector<Routing<T>>& routings) {
  double dropped = 0;
  for (const Routing<T>& r : routings) dropped += r.dropped_fraction() / double(routings.size());
  return dropped;
}

/// Pictures of images (B, channels, height, width) with their labels, for a RouteLog.
inline WatchedInputs watched_images(const VisionConfig& config, const Tensor<float>& images,
                                    const std::vector<std::int32_t>& labels) {
  WatchedInputs inputs;
  inputs.patch_rows = config.image_height / config.patch;
  inputs.patch_columns = config.image_width / config.patch;
  const std::vector<float> values = images.to_vector();
  const std::size_t size = values.size() / labels.size();
  for (std::size_t i = 0; i < labels.size(); ++i) {
    inputs.pictures.push_back(picture_of(config, values.data() + i * size));
    inputs.pictures.back().label = labels[i];
  }
  return inputs;
}

/// What a model did with test images, which can come in several batches.
class Evaluation {
 public:
  explicit Evaluation(Index classes)
      : confusion_(static_cast<std::size_t>(classes),
                   std::vector<Index>(static_cast<std::size_t>(classes))) {}

  /// Another batch: images (B, channels, rows, columns) with values in [-1, 1].
  void add(const VisionConfig& config, const Tensor<float>& images,
           const std::vector<std::int32_t>& labels, const VisionOutput<float>& out) {
    const std::vector<std::int32_t> predicted = predictions(out.logits);
    for (std::size_t i = 0; i < labels.size(); ++i) {
      ++confusion_[static_cast<std::size_t>(labels[i])][static_cast<std::size_t>(predicted[i])];
      num_right_ += labels[i] == predicted[i] ? 1 : 0;
    }
    num_images_ += static_cast<Index>(labels.size());
    loss_ += double(cross_entropy(out.logits, labels).item()) * double(labels.size());
    count_choices(out);
    choose_images(config, images, labels, predicted, out);
  }

  Index num_images() const { return num_images_; }
  double accuracy() const { return double(num_right_) / double(num_images_); }
  double loss() const { return loss_ / double(num_images_); }
  const std::vector<std::vector<Index>>& confusion() const { return confusion_; }

  /// Fills in what result.json keeps of this: accuracy, load, drops, confusion, images.
  void add_to(RunResult& result) const {
    result.accuracy = accuracy();
    for (std::size_t t = 0; t < load_.size(); ++t) {
      result.load.push_back(load_[t]);
      for (double& share : result.load.back()) share /= num_choices_[t];
      result.dropped.push_back(num_dropped_[t] / num_choices_[t]);
    }
    if (confusion_.size() <= 20) result.confusion = confusion_;
    result.pictures = wrong_;
    for (const Picture& picture : right_)
      if (result.pictures.size() < num_shown) result.pictures.push_back(picture);
  }

 private:
  static constexpr std::size_t num_shown = 24;

  void count_choices(const VisionOutput<float>& out) {
    load_.resize(out.routings.size());
    num_dropped_.resize(out.routings.size()), num_choices_.resize(out.routings.size());
    for (std::size_t t = 0; t < out.routings.size(); ++t) {
      const Routing<float>& r = out.routings[t];
      const std::vector<std::int32_t> load = r.load.to_vector();
      load_[t].resize(load.size());
      for (std::size_t e = 0; e < load.size(); ++e) load_[t][e] += load[e];
      num_choices_[t] += double(r.N * r.K);
      num_dropped_[t] += r.dropped_fraction() * double(r.N * r.K);
    }
  }

  /// Keeps the first wrong ones and the first right ones.
  void choose_images(const VisionConfig& config, const Tensor<float>& images,
                     const std::vector<std::int32_t>& labels,
                     const std::vector<std::int32_t>& predicted, const VisionOutput<float>& out) {
    const std::vector<float> p = softmax(out.logits).to_vector(), values = images.to_vector();
    const std::size_t V = p.size() / labels.size(), size = values.size() / labels.size();
    for (std::size_t i = 0; i < labels.size(); ++i) {
      std::vector<Picture>& list = predicted[i] == labels[i] ? right_ : wrong_;
      if (list.size() >= num_shown) continue;
      list.push_back(picture_of(config, values.data() + i * size));
      list.back().label = labels[i], list.back().prediction = predicted[i];
      list.back().probability = p[i * V + static_cast<std::size_t>(predicted[i])];
    }
  }

  Index num_images_ = 0, num_right_ = 0;
  double loss_ = 0;
  std::vector<std::vector<Index>> confusion_;  // [label][prediction]
  std::vector<std::vector<double>> load_;      // [routing][expert]: choices
  std::vector<double> num_choices_, num_dropped_;  // [routing]
  std::vector<Picture> wrong_, right_;
};

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_VISION_REPORT_HPP
