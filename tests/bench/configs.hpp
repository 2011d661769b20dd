// The six configurations of the benchmarks, WideNet-B, and what a step of each costs at least.
#ifndef WIDENET_TESTS_BENCH_CONFIGS_HPP
#define WIDENET_TESTS_BENCH_CONFIGS_HPP

#include "measure.hpp"
#include "widenet.hpp"

#include <string>
#include <vector>

namespace bench {

using namespace widenet;

struct Config {
  std::string name;
  bool is_vision = true;
  VisionConfig vision;
  LanguageConfig language;
  Index batch = 64;
  Index predictions = 0;  // masked words per sequence

  const EncoderConfig& encoder() const { return is_vision ? vision.encoder : language.encoder; }
  Index tokens_per_sequence() const {
    return is_vision ? vision.num_tokens() : language.max_tokens;
  }
  Index tokens() const { return batch * tokens_per_sequence(); }
};

inline EncoderConfig encoder_of(Index width, Index heads, Index hidden, Index blocks, Index experts,
                                Index top_k) {
  EncoderConfig encoder;
  encoder.width = width, encoder.heads = heads;
  encoder.expert_hidden = encoder.dense_hidden = hidden;
  encoder.blocks = blocks, encoder.experts = experts, encoder.top_k = top_k;
  return encoder;
}

inline Config vision_config(const std::string& name, Index image, Index channels, Index patch,
                            Index classes, Index batch, const EncoderConfig& encoder) {
  Config config;
  config.name = name, config.batch = batch;
  VisionConfig& v = config.vision;
  v.image_height = v.image_width = image, v.channels = channels, v.patch = patch;
  v.classes = classes, v.class_token = ClassToken::trained, v.pooling = Pooling::class_token;
  v.encoder = encoder;
  return config;
}

inline std::vector<Config> all_configs() {
  Config mlm;
  mlm.name = "mlm", mlm.is_vision = false, mlm.batch = 16, mlm.predictions = 20;
  mlm.language.vocabulary = 8192, mlm.language.max_tokens = 128, mlm.language.embedding = 64;
  mlm.language.encoder = encoder_of(256, 4, 1024, 6, 4, 2);
  return {vision_config("digits1", 8, 1, 2, 10, 64, encoder_of(64, 4, 256, 6, 4, 1)),
          vision_config("digits2", 8, 1, 2, 10, 64, encoder_of(64, 4, 256, 6, 4, 2)),
          vision_config("mnist", 28, 1, 4, 10, 64, encoder_of(128, 4, 512, 8, 4, 2)),
          vision_config("cifar", 32, 3, 4, 10, 64, encoder_of(192, 6, 768, 12, 8, 2)),
          mlm,
          vision_config("wideB", 224, 3, 16, 1000, 4, encoder_of(768, 12, 3072, 12, 4, 2))};
}

/// The six, and the paper's WideNet-B.
inline std::vector<Config> known_configs() {
  std::vector<Config> all = all_configs();
  all.push_back(
      vision_config("widenet_b", 224, 3, 16, 1000, 4, encoder_of(768, 12, 4096, 12, 4, 2)));
  return all;
}

/// Operations of the matrix products of one step, or of an evaluation: kept choices only, no
/// padding, nothing computed twice; the backward of a product costs two products.
inline double useful_operations(const Config& c, double kept_fraction, bool evaluates = false) {
  const EncoderConfig& e = c.encoder();
  const double N = double(c.tokens()), D = double(e.width), T = double(c.tokens_per_sequence());
  const double hidden_units = e.experts == 0 ? double(e.dense_hidden)
                              : kept_fraction * double(e.top_k) * double(e.expert_hidden);
  const double block = 8 * N * D * D + 4 * N * T * D + 2 * N * D * double(e.experts) +
                       4 * N * D * hidden_units;
  double ends = 0, without_gradient = 0;
  if (c.is_vision) {  // the images need no gradient
    const double patch = double(c.vision.patch * c.vision.patch * c.vision.channels);
    without_gradient = 2 * double(c.batch) * (T - 1) * patch * D;
    ends = without_gradient + 2 * double(c.batch) * D * double(c.vision.classes);
  } else {
    const double E = double(c.language.embedding), M = double(c.batch * c.predictions);
    ends = 2 * N * E * D + 2 * M * D * E + 2 * M * E * double(c.language.vocabulary);
  }
  const double forward = double(e.blocks) * block + ends;
  return evaluates ? forward : 3 * forward - without_gradient;
}

/// What a step or an evaluation took and gave. The clock stops when the loss has been read: by then
/// a GPU has done all that it was asked for.
struct Outcome {
  double seconds = 0, loss = 0;
  double kept = 1;   // of the choices, on average over the routings
  double slots = 1;  // per choice: the CPU's experts multiply what is kept, a GPU's all slots
  double rows() const { return WIDENET_CUDA ? slots : kept; }  // multiplied per choice
};
inline Outcome outcome(double seconds, double loss, const std::vector<Routing<float>>& routings) {
  Outcome o{seconds, loss, routings.empty() ? 1.0 : 0.0, routings.empty() ? 1.0 : 0.0};
  for (const auto& r : routings) {
    o.kept += (1 - r.dropped_fraction()) / double(routings.size());
    o.slots += double(r.E * r.C) / double(r.N * r.K) / double(routings.size());
  }
  return o;
}

/// One model of either kind, its batch and its optimiser.
class Step {
 public:
  explicit Step(const Config& config)
      : config_(config), rng_(1),
        vision_(config.is_vision ? config.vision : VisionConfig::toy(), rng_),
        language_(config.is_vision ? LanguageConfig::toy() : config.language, rng_),
        // The rate is so small that no routing changes much while it is timed.
        optimizer_(parameters(), 1e-5, {0.9, 0.999, 1e-8, 0.05}) {
    for (const Parameter<float>& p : parameters())  // a narrow router drops few choices
      if (p.name.find("router") != std::string::npos)
        kernel::fill_normal(p.tensor.data(), rng_, 0.02f, p.tensor.size());
    const Index B = config.batch;
    const auto below = [&](Index i, Index n) {
      return static_cast<std::int32_t>(rng_.uniform(i) * double(n));
    };
    if (config.is_vision) {
      const VisionConfig& v = config.vision;
      images_ = Tensor<float>::randn({B, v.channels, v.image_height, v.image_width}, rng_);
      for (Index b = 0; b < B; ++b) labels_.push_back(below(b, v.classes));
      return;
    }
    words_.B = B, words_.T = config.language.max_tokens;
    for (Index n = 0; n < B * words_.T; ++n)
      words_.token.push_back(below(n, config.language.vocabulary));
    for (Index b = 0; b < B; ++b)
      for (Index m = 0; m < config.predictions; ++m) {
        places_.push_back(static_cast<std::int32_t>(b * words_.T + 6 * m));
        labels_.push_back(below(1000000 + b * 100 + m, config.language.vocabulary));
      }
  }
  const std::vector<Parameter<float>>& parameters() const {
    return config_.is_vision ? vision_.parameters() : language_.parameters();
  }

  struct Result {
    Tensor<float> loss, logits, balance_loss;
    std::vector<Routing<float>> routings;
  };
  Result forward(const Training* training, const Replay<float>& replay = {}) const {
    if (config_.is_vision) {
      auto out = training ? vision_.forward(images_, *training, replay)
                          : vision_.forward(images_, replay);
      return {total_loss(cross_entropy(out.logits, labels_), out.balance_loss), out.logits,
              out.balance_loss, out.routings};
    }
    auto out = training ? language_.forward(words_, *training, replay)
                        : language_.forward(words_, replay);
    const Tensor<float> logits = language_.masked_logits(out.tokens, places_);
    return {total_loss(cross_entropy(logits, labels_), out.balance_loss), logits, out.balance_loss,
            out.routings};
  }
  /// Forward, backward, AdamW.
  Outcome run(Index step) {
    const double begin = now();
    const Training training{rng_, step};
    const Result result = forward(&training);
    optimizer_.zero_grad();
    result.loss.backward();
    optimizer_.step();
    const double loss = double(result.loss.item());
    return outcome(now() - begin, loss, result.routings);
  }
  /// Forward alone, without a graph.
  Outcome evaluate() const {
    const double begin = now();
    const NoGrad no_graph;
    const Result result = forward(nullptr);
    const double loss = double(result.loss.item());
    return outcome(now() - begin, loss, result.routings);
  }
  /// Takes weights and inputs from a file of the PyTorch peer, which lacks only heads that the
  /// loss does not use.
  void load(const SafeTensors& file) {
    for (const Parameter<float>& p : parameters())
      detail::for_each_stored(p, [&](const std::string& name, const Shape& shape, Index offset) {
        const std::string part = name.substr(0, name.find('.'));
        if (part == "pooler" || part == "order" || part == "classifier" || part == "span") return;
        std::vector<float> all = p.tensor.to_vector();
        const std::vector<float> values = file.values<float>(name);
        require<ShapeError>(file.at(name).shape == shape, "load: ", name, " must be ", shape,
                            "; got ", file.at(name).shape);
        std::copy(values.begin(), values.end(), all.begin() + offset);
        p.tensor.value().assign(all);
      });
    labels_ = file.values<std::int32_t>("labels");
    if (config_.is_vision) {
      images_ = Tensor<float>(images_.shape(), file.values<float>("images"));
    } else {
      words_.token = file.values<std::int32_t>("words");
      places_ = file.values<std::int32_t>("predicted");
    }
  }

 private:
  Config config_;
  Rng rng_;
  VisionModel<float> vision_;
  LanguageModel<float> language_;
  AdamW<float> optimizer_;
  Tensor<float> images_;
  TokenBatch words_;
  std::vector<std::int32_t> places_, labels_;
};

}  // namespace bench

#endif  // WIDENET_TESTS_BENCH_CONFIGS_HPP
