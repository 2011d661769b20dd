// paper_training.hpp - one training of `make paper`: a model at toy size reads digits, or reads a
// generated language and then judges its sentences.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_PAPER_TRAINING_HPP
#define WIDENET_EXAMPLES_SUPPORT_PAPER_TRAINING_HPP

#include "support/digits.hpp"
#include "support/grammar.hpp"
#include "support/masked_lm.hpp"
#include "support/paper_runs.hpp"
#include "support/progress.hpp"
#include "support/vision_report.hpp"
#include "widenet.hpp"

#include <algorithm>  // max
#include <cstdint>    // int32_t, uint64_t
#include <ctime>      // clock
#include <string>     // string
#include <utility>    // move
#include <vector>     // vector

namespace widenet::support {

/// The time that this process has computed, in seconds of a processor.
inline double processor_seconds() { return double(std::clock()) / CLOCKS_PER_SEC; }

/// How a stage of training goes: AdamW, linear warm-up over a tenth of the steps, then decay.
struct Stage {
  Index steps = 0, batch = 32;
  double rate = 0, weight_decay = 0;
  Schedule::Decay decay = Schedule::Decay::linear;

  Schedule schedule() const { return {rate, steps / 10, std::max<Index>(1, steps), decay}; }
  std::string text() const {
    return JsonLine().add("steps", steps).add("batch", batch).add("rate", rate)
        .add("weight_decay", weight_decay)
        .add("decay", decay == Schedule::Decay::linear ? "linear" : "cosine").text();
  }
};

/// What a step learns from.
struct StepLoss {
  Tensor<float> main, balance;
};

/// Trains the parameters on loss_of_step(step), with the paper's lambda = 0.01. Returns the mean of
/// the main loss over the last tenth of the steps; 0 without any.
template <class LossOfStep>
double train_stage(const std::vector<Parameter<float>>& parameters, const Stage& stage,
                   LossOfStep loss_of_step) {
  AdamW<float> optimizer(parameters, 0, {0.9, 0.99, 1e-8, stage.weight_decay});
  const Schedule schedule = stage.schedule();
  const Index num_last = std::max<Index>(1, stage.steps / 10);
  double last = 0;
  for (Index step = 0; step < stage.steps; ++step) {
    const StepLoss loss = loss_of_step(step);
    optimizer.zero_grad();
    total_loss(loss.main, loss.balance).backward();
    clip_global_norm(parameters, 1.0);
    optimizer.set_learning_rate(schedule(step));
    optimizer.step();
    if (step >= stage.steps - num_last) last += double(loss.main.item()) / double(num_last);
  }
  return last;
}

/// The divergences of the individual LayerNorms, [eq 8]: of gamma and beta, over the norms before
/// attention and before the FFN together, over all pairs of elements and over matched ones.
inline void add_divergences(Measured& measured, const EncoderConfig& encoder,
                            const std::vector<Parameter<float>>& parameters) {
  if (encoder.share_layer_norm || encoder.blocks < 2) return;
  for (const std::string norm : {"norm1", "norm2"})
    for (const std::string what : {"weight", "bias"})
      for (const ElementPairs pairs : {ElementPairs::all, ElementPairs::matched}) {
        const std::string name = std::string(norm == "norm1" ? "attention" : "ffn") +
                                 (what == "weight" ? "_gamma" : "_beta") +
                                 (pairs == ElementPairs::all ? "_all" : "_matched");
        measured[name] = layer_norm_divergence(parameters, norm + "." + what, pairs);
      }
}

// DIGITS ------------------------------------------------------------------------------------------

/// Trains on some digits and tests on others. Measures accuracy, the loss of the test and of the
/// training, the fraction of dropped choices, the divergences, and seconds of training.
inline Measured train_on_digits(const VisionConfig& config, const Stage& stage,
                                const LabelledImages& training, const LabelledImages& testing,
                                std::uint64_t seed) {
  const double start = processor_seconds();
  const Rng rng(seed);
  const VisionModel<float> model(config, rng);
  Measured m;
  m["training_loss"] = train_stage(model.parameters(), stage, [&](Index step) {
    const Batch batch = batch_of_step(training, stage.batch, rng, step);
    const auto out = model.forward(batch.images, Training{rng, step});
    return StepLoss{cross_entropy(out.logits, batch.labels, 0.1), out.balance_loss};
  });
  m["seconds"] = processor_seconds() - start;
  const NoGrad no_graph;
  const auto out = model.forward(testing.tensor());
  m["accuracy"] = accuracy(out.logits, testing.labels);
  m["loss"] = cross_entropy(out.logits, testing.labels).item();
  m["dropped"] = mean_dropped(out.routings);
  add_divergences(m, config.encoder, model.parameters());
  return m;
}

// SENTENCES ---------------------------------------------------------------------------------------

/// Text to read, and sentences to judge: encoded, with their labels.
struct LanguageData {
  Tokenizer tokenizer = Tokenizer::wordpiece(toy_vocabulary(), true);
  std::vector<Passage> passages, held_out_passages;
  std::vector<SentenceExample> training, testing;
  std::vector<Sequence> inputs, test_inputs;
};

constexpr Index toy_max_tokens = 32;

inline LanguageData language_data(Index num_documents, std::vector<SentenceExample> training,
                                  std::vector<SentenceExample> testing) {
  LanguageData data;
  const Rng rng(0);
  data.passages = gather_passages(
      parse_documents(toy_text(num_documents, rng), data.tokenizer, "the toy language"),
      toy_max_tokens, data.tokenizer, rng);
  const Index num_held_out = static_cast<Index>(data.passages.size()) / 20;
  data.held_out_passages.assign(data.passages.end() - num_held_out, data.passages.end());
  data.passages.resize(data.passages.size() - data.held_out_passages.size());
  data.training = std::move(training), data.testing = std::move(testing);
  for (const SentenceExample& e : data.training)
    data.inputs.push_back(encode(data.tokenizer, e.first, e.second, toy_max_tokens));
  for (const SentenceExample& e : data.testing)
    data.test_inputs.push_back(encode(data.tokenizer, e.first, e.second, toy_max_tokens));
  return data;
}

/// How a model reads the text and then judges sentences, or judges them without having read.
struct LanguageStages {
  Stage reading, judging, unread;
  MaskOptions mask = {};  // of reading
};

/// Masked words and order of segments. Measures the loss and, on text that was held out, how many
/// words and orders are found.
inline void read_text(const LanguageModel<float>& model, const Stage& stage,
                      const MaskOptions& mask, const LanguageData& data, std::uint64_t seed,
                      Measured& measured) {
  const Rng rng(seed);
  measured["reading_loss"] = train_stage(model.parameters(), stage, [&](Index step) {
    const MaskedBatch masked =
        masked_batch_of_step(data.passages, stage.batch, data.tokenizer, mask, rng, step);
    const auto out = model.forward(masked.batch, Training{rng, step});
    return StepLoss{cross_entropy(model.masked_logits(out.tokens, masked.places), masked.labels) +
                        cross_entropy(model.order_logits(out.tokens), masked.order),
                    out.balance_loss};
  });
  const NoGrad no_graph;
  const Index n = static_cast<Index>(data.held_out_passages.size());
  const MaskedBatch masked =
      masked_batch_of_step(data.held_out_passages, n, data.tokenizer, mask, Rng(seed + 1), 0);
  const auto out = model.forward(masked.batch);
  measured["word_accuracy"] =
      accuracy(model.masked_logits(out.tokens, masked.places), masked.labels);
  measured["order_accuracy"] = accuracy(model.order_logits(out.tokens), masked.order);
}

/// Learns to judge sentences; returns the accuracy on those of the test.
inline double judge_sentences(const LanguageModel<float>& model, const Stage& stage,
                              const LanguageData& data, std::uint64_t seed) {
  const Rng rng(seed);
  train_stage(model.parameters(), stage, [&](Index step) {
    std::vector<Sequence> chosen;
    std::vector<std::int32_t> labels;
    for (const std::size_t i : examples_of_step(data.inputs.size(), stage.batch, rng, step)) {
      chosen.push_back(data.inputs[i]);
      labels.push_back(data.training[i].label);
    }
    const auto out = model.forward(batch_of(chosen, data.tokenizer.pad), Training{rng, step});
    return StepLoss{cross_entropy(model.class_logits(out.tokens), labels), out.balance_loss};
  });
  const NoGrad no_graph;
  std::vector<std::int32_t> labels;
  for (const SentenceExample& example : data.testing) labels.push_back(example.label);
  const auto out = model.forward(batch_of(data.test_inputs, data.tokenizer.pad));
  return accuracy(model.class_logits(out.tokens), labels);
}

/// Pre-trains and fine-tunes a model, and fine-tunes another of the same initial weights that has
/// not read. Measures the accuracy of both, those of read_text, and seconds of training.
inline Measured train_on_sentences(const LanguageConfig& config, const LanguageStages& stages,
                                   const LanguageData& data, std::uint64_t seed) {
  const double start = processor_seconds();
  const Rng rng(seed);
  Measured m;
  if (stages.reading.steps > 0) {
    const LanguageModel<float> model(config, rng);
    read_text(model, stages.reading, stages.mask, data, seed, m);
    m["accuracy"] = judge_sentences(model, stages.judging, data, seed);
    m["seconds"] = processor_seconds() - start;
  }
  const LanguageModel<float> unread(config, rng);
  m["unread_accuracy"] = judge_sentences(unread, stages.unread, data, seed);
  return m;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_PAPER_TRAINING_HPP
