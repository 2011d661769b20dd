// vision_report.hpp - what a page about a vision model shows of its test images, routings and
// settings.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_VISION_REPORT_HPP
#define WIDENET_EXAMPLES_SUPPORT_VISION_REPORT_HPP

#include "support/report.hpp"
#include "support/run.hpp"
#include "widenet.hpp"

#include <algorithm>  // max
#include <cmath>      // lround
#include <cstdint>    // int32_t, uint8_t
#include <string>     // string
#include <vector>     // vector

namespace widenet::support {

/// The fraction of the choices that was dropped, the mean over the routings; 0 without any.
template <class T>
double mean_dropped(const std::vector<Routing<T>>& routings) {
  double dropped = 0;
  for (const Routing<T>& r : routings) dropped += r.dropped_fraction() / double(routings.size());
  return dropped;
}

/// One curve of metrics.jsonl.
inline Series noisy_series(const std::string& path, const std::string& field,
                           const std::string& name, int colour) {
  const Curve curve = read_curve(path, field);
  return {name, curve.step, curve.value, colour, true};
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

  /// Fills in what a page shows of this: load and drops of every routing, confusion, images.
  void add_to(Report& report, const VisionConfig& config) const {
    for (std::size_t t = 0; t < load_.size(); ++t) {
      report.load.push_back(load_[t]);
      for (double& share : report.load.back()) share /= num_choices_[t];
      report.dropped_per_block.push_back(num_dropped_[t] / num_choices_[t]);
    }
    if (confusion_.size() <= 20) report.confusion = confusion_;
    report.routing_block = shown_block(config);
    report.digits = wrong_;
    for (const Digit& digit : right_)
      if (report.digits.size() < num_shown) report.digits.push_back(digit);
  }

 private:
  static constexpr std::size_t num_shown = 24;

  /// The routing in the middle, whose experts the images show.
  static std::size_t shown_routing(std::size_t routings) { return routings / 2; }
  static Index shown_block(const VisionConfig& config) {
    std::vector<Index> blocks;
    for (Index i = 0; i < config.encoder.blocks; ++i)
      if (config.encoder.routes(i)) blocks.push_back(i);
    return blocks.empty() ? 0 : blocks[shown_routing(blocks.size())];
  }

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
    std::vector<std::int32_t> expert;
    std::vector<bool> dropped;
    std::size_t K = 1, tokens = 0;
    if (!out.routings.empty()) {
      const Routing<float>& routing = out.routings[shown_routing(out.routings.size())];
      expert = routing.expert.to_vector(), dropped = routing.dropped();
      K = static_cast<std::size_t>(routing.K), tokens = expert.size() / K / labels.size();
    }
    for (std::size_t i = 0; i < labels.size(); ++i) {
      std::vector<Digit>& list = predicted[i] == labels[i] ? right_ : wrong_;
      if (list.size() >= num_shown) continue;
      Digit digit;
      digit.rows = config.image_height, digit.columns = config.image_width;
      digit.patch = config.patch;
      const std::size_t area = size / static_cast<std::size_t>(config.channels);
      for (std::size_t j = 0; j < area; ++j) {
        float sum = 0;
        for (std::size_t at = i * size + j; at < (i + 1) * size; at += area) sum += values[at];
        digit.pixels.push_back(static_cast<std::uint8_t>(
            std::lround(127.5f * (sum / float(config.channels) + 1))));
      }
      digit.label = labels[i], digit.prediction = predicted[i];
      digit.probability = p[i * V + static_cast<std::size_t>(predicted[i])];
      for (std::size_t t = 1; t < tokens; ++t)  // token 0 is the class token
        digit.expert.push_back(dropped[(i * tokens + t) * K] ? -1 : expert[(i * tokens + t) * K]);
      list.push_back(digit);
    }
  }

  Index num_images_ = 0, num_right_ = 0;
  double loss_ = 0;
  std::vector<std::vector<Index>> confusion_;  // [label][prediction]
  std::vector<std::vector<double>> load_;      // [routing][expert]: choices
  std::vector<double> num_choices_, num_dropped_;  // [routing]
  std::vector<Digit> wrong_, right_;
};

/// The settings of a model, as a page lists them.
inline NamedValues settings_of(const VisionConfig& config) {
  const EncoderConfig& encoder = config.encoder;
  const auto text = [](Index value) { return std::to_string(value); };
  NamedValues settings = {
      {"image", text(config.image_height) + " x " + text(config.image_width)},
      {"patch", text(config.patch) + " x " + text(config.patch)},
      {"width D", text(encoder.width)},
      {"heads H", text(encoder.heads)},
      {"blocks L", text(encoder.blocks)}};
  if (encoder.num_moe_blocks() < encoder.blocks)
    settings.push_back({"dense width F", text(encoder.dense_hidden)});
  if (encoder.experts == 0) return settings;
  if (encoder.num_moe_blocks() < encoder.blocks)
    settings.push_back({"blocks with experts", text(encoder.num_moe_blocks())});
  settings.insert(settings.end(),
                  {{"experts E", text(encoder.experts)},
                   {"choices per token K", text(encoder.top_k)},
                   {"expert width F", text(encoder.expert_hidden)},
                   {"capacity factor", text(encoder.capacity_factor.numerator) + "/" +
                                           text(encoder.capacity_factor.denominator)}});
  return settings;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_VISION_REPORT_HPP
