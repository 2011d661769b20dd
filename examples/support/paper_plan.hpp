// paper_plan.hpp - the experiments of the paper at toy scale.
//
// The models keep the shape of the paper's: a thirty-second of its widths, a quarter of its blocks
// and heads for images; for text a sixteenth of its widths. Figures of the paper that are given
// from memory are marked.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_PAPER_PLAN_HPP
#define WIDENET_EXAMPLES_SUPPORT_PAPER_PLAN_HPP

#include "support/paper_flops.hpp"
#include "support/paper_page.hpp"
#include "support/paper_tables.hpp"
#include "support/paper_training.hpp"
#include "support/presets.hpp"
#include "widenet.hpp"

#include <algorithm>  // max
#include <cmath>      // fabs, sqrt
#include <map>        // map
#include <memory>     // make_shared, shared_ptr
#include <string>     // string
#include <utility>    // move
#include <vector>     // vector

namespace widenet::support {

/// How long everything is trained.
struct PaperBudget {
  Index seeds = 5, vision_steps = 500, reading_steps = 1500, judging_steps = 300;
  bool is_quick = false;
};

inline PaperBudget quick_budget() { return {2, 120, 200, 100, true}; }

/// What everything is trained on. Settings are chosen with is_search: then the tests are the last
/// 200 training digits, and training sentences that no other run sees.
struct PaperData {
  bool is_search = false;
  LabelledImages training_digits, testing_digits;
  LanguageData language;
};

constexpr Index num_held_out_digits = 200, num_labelled = 2000, num_test_sentences = 1000,
                num_documents = 6000;

inline std::shared_ptr<const PaperData> paper_data(const std::string& folder, bool is_search) {
  auto data = std::make_shared<PaperData>();
  data->is_search = is_search;
  data->training_digits = load_images(folder, "train");
  if (is_search) {
    const Index n = data->training_digits.count - num_held_out_digits;
    data->testing_digits = data->training_digits.slice(n, num_held_out_digits);
    data->training_digits = data->training_digits.slice(0, n);
  } else {
    data->testing_digits = load_images(folder, "test");
  }
  std::vector<SentenceExample> training = toy_examples(num_labelled + num_test_sentences, Rng(1));
  std::vector<SentenceExample> testing(training.begin() + num_labelled, training.end());
  training.resize(static_cast<std::size_t>(num_labelled));
  if (!is_search) testing = toy_examples(num_test_sentences, Rng(2));
  data->language = language_data(num_documents, std::move(training), std::move(testing));
  return data;
}

// IMAGES ------------------------------------------------------------------------------------------

/// Learning rates, chosen by `paper --search`.
struct PaperRates {
  double vit = 5e-3, vit_moe = 5e-3, widenet = 5e-3;
};

inline VisionConfig paper_toy(VisionConfig c) {
  c = toy_size(c);
  c.encoder.width /= 2, c.encoder.dense_hidden /= 2, c.encoder.expert_hidden /= 2;
  c.has_pre_logits = false;  // with it, so short a training stays far behind
  return c;
}

/// Small, medium and large: B, L and H of the paper, which has no ViT-H.
inline const std::vector<std::string>& paper_sizes() {
  static const std::vector<std::string> sizes = {"small", "medium", "large"};
  return sizes;
}
inline VisionConfig paper_widenet(std::size_t size) {
  const VisionConfig sizes[] = {VisionConfig::widenet_b(), VisionConfig::widenet_l(),
                                VisionConfig::widenet_h()};
  return paper_toy(sizes[size]);
}
inline VisionConfig paper_vit(std::size_t size) {
  VisionConfig large = VisionConfig::widenet_h();
  large.encoder.share_attention = large.encoder.share_router = large.encoder.share_experts = false;
  large.encoder.experts = 0, large.pooling = Pooling::class_token;
  const VisionConfig sizes[] = {VisionConfig::vit_b(), VisionConfig::vit_l(), large};
  return paper_toy(sizes[size]);
}
inline VisionConfig paper_vit_moe(std::size_t size) {
  VisionConfig large = VisionConfig::widenet_h();
  large.encoder.share_attention = large.encoder.share_router = large.encoder.share_experts = false;
  large.encoder.moe_blocks = 4;
  const VisionConfig sizes[] = {VisionConfig::vit_moe_b(), VisionConfig::vit_moe_l(), large};
  return paper_toy(sizes[size]);
}

inline PaperSetting vision_setting(const VisionConfig& config, Index steps, double rate,
                                   const std::shared_ptr<const PaperData>& data) {
  const Stage stage{steps, 32, rate, 0.05, Schedule::Decay::cosine};
  PaperSetting s;
  s.text = "{\"task\": \"digits\", \"is_search\": " + json(data->is_search) + ", \"config\": " +
           to_json(config) + ", \"stage\": " + stage.text() + "}";
  s.parameters = count_parameters(config), s.flops = count_flops(config);
  s.work = 3 * double(s.flops) * double(steps * stage.batch);
  s.train = [config, stage, data](std::uint64_t seed) {
    return train_on_digits(config, stage, data->training_digits, data->testing_digits, seed);
  };
  return s;
}

/// A WideNet with something changed.
template <class Change>
VisionConfig changed(VisionConfig config, Change change) {
  change(config.encoder);
  return config;
}

// TEXT --------------------------------------------------------------------------------------------

struct LanguageRates {
  double reading = 4e-3, judging = 2e-3, unread = 2e-3;
};

inline LanguageConfig paper_language(LanguageConfig c, const LanguageData& data) {
  c = toy_size(c);
  c.encoder.dense_hidden /= 2, c.encoder.expert_hidden /= 2;
  c.embedding = 32;
  c.vocabulary = data.tokenizer.size(), c.max_tokens = toy_max_tokens, c.classes = num_toy_classes;
  c.encoder.routes_padding = false;
  return c;
}

/// The mean number of tokens of a test sentence, rounded.
inline Index mean_tokens(const LanguageData& data) {
  std::size_t sum = 0;
  for (const Sequence& s : data.test_inputs) sum += s.token.size();
  return static_cast<Index>((sum + data.test_inputs.size() / 2) / data.test_inputs.size());
}

inline PaperSetting language_setting(const LanguageConfig& preset, const PaperBudget& budget,
                                     const LanguageRates& rates,
                                     const std::shared_ptr<const PaperData>& data) {
  const LanguageConfig config = paper_language(preset, data->language);
  const LanguageStages stages{{budget.reading_steps, 32, rates.reading, 0.01},
                              {budget.judging_steps, 32, rates.judging, 0.01},
                              {budget.judging_steps, 32, rates.unread, 0.01},
                              {0.3, 20, 1}};
  PaperSetting s;
  s.text = "{\"task\": \"sentences\", \"is_search\": " + json(data->is_search) +
           ", \"labelled\": " + json(num_labelled) + ", \"config\": " + to_json(config) +
           ", \"hidden\": " + json(stages.mask.fraction) + ", \"longest_span\": " +
           json(stages.mask.longest_span) + ", \"reading\": " + stages.reading.text() +
           ", \"judging\": " + stages.judging.text() + ", \"unread\": " +
           stages.unread.text() + "}";
  s.parameters = count_parameters(config);
  s.flops = count_flops(config, mean_tokens(data->language));
  s.work = 3 * 32 *
           (double(count_flops(config, toy_max_tokens)) * double(budget.reading_steps) +
            2 * double(s.flops) * double(budget.judging_steps));
  s.train = [config, stages, data](std::uint64_t seed) {
    return train_on_sentences(config, stages, data->language, seed);
  };
  return s;
}

// THE EXPERIMENTS ---------------------------------------------------------------------------------

/// Makes the rows of the tables about digits.
struct VisionRows {
  std::shared_ptr<const PaperData> data;
  Index steps = 0;
  PaperRates rates = {};

  PaperRow vit(std::size_t size) const {
    return row("ViT " + paper_sizes()[size], paper_vit(size), rates.vit);
  }
  PaperRow vit_moe(std::size_t size) const {
    return row("ViT-MoE " + paper_sizes()[size], paper_vit_moe(size), rates.vit_moe);
  }
  PaperRow widenet(std::size_t size) const {
    return row("WideNet " + paper_sizes()[size], paper_widenet(size), rates.widenet);
  }
  PaperRow row(const std::string& name, const VisionConfig& config, double rate) const {
    return {name, vision_setting(config, steps, rate, data)};
  }
  template <class Change>
  PaperRow changed_widenet(const std::string& name, std::size_t size, Change change) const {
    return row(name, changed(paper_widenet(size), change), rates.widenet);
  }
};

/// A row with what the paper has for it.
inline PaperRow beside(PaperRow row, const PaperFigure& paper) {
  row.paper = paper;
  return row;
}
inline PaperRow named(PaperRow row, const std::string& name) {
  row.name = name;
  return row;
}

inline PaperTable vision_models(const VisionRows& make) {
  PaperTable t;
  t.id = "a", t.title = "ViT, ViT-MoE and WideNet";
  t.about =
      "Handwritten digits, read by three kinds of model in three sizes. A ViT has attention and a "
      "dense network of its own in every block; a ViT-MoE has four experts in place of the last "
      "dense network; a WideNet has one attention, one router and one set of four experts, which "
      "all its blocks share. The paper's figures are for ImageNet-1K and for its own sizes B, L "
      "and H, of which ours keep the shape.";
  t.rows = {beside(make.vit(0), {78.6, "87M"}),      beside(make.vit(1), {77.5, "305M"}),
            make.vit(2),                             beside(make.vit_moe(0), {77.9, "128M"}),
            beside(make.vit_moe(1), {77.4, "406M"}), make.vit_moe(2),
            beside(make.widenet(0), {77.5, "29M"}),  beside(make.widenet(1), {79.5, "40M"}),
            beside(make.widenet(2), {80.1, "63M"})};
  t.claims = {{"WideNet medium", "ViT medium", 2.0},
              {"WideNet medium", "ViT-MoE medium", 2.1},
              {"ViT small", "WideNet small", 1.1},
              {"WideNet medium", "WideNet small", 2.0},
              {"WideNet large", "WideNet medium", 0.6},
              {"ViT small", "ViT medium", 1.1}};
  t.paper_title = "paper, top-1 %";
  return t;
}

inline PaperTable num_experts(const VisionRows& make) {
  PaperTable t;
  t.id = "c", t.title = "How many experts";
  t.about =
      "WideNet small with 2 to 16 experts, of which every token still chooses 2, so that only the "
      "number of parameters grows. The paper finds that more than 4 overfit ImageNet, while text "
      "gains from more (table b); it shows that as curves, without figures. A lower loss in "
      "training without a higher accuracy in the test is what overfitting looks like.";
  t.columns.push_back({"training_loss", "training loss", 1, 3});
  t.num_drawn = 2;
  for (const Index experts : {2, 4, 8, 16})
    t.rows.push_back(make.changed_widenet(std::to_string(experts) + " experts", 0,
                                          [=](EncoderConfig& e) { e.experts = experts; }));
  t.claims = {{"4 experts", "8 experts"}, {"4 experts", "16 experts"}};
  return t;
}

inline PaperTable routing_groups(const VisionRows& make) {
  PaperTable t;
  t.id = "d", t.title = "How often tokens are routed";
  t.about =
      "WideNet medium has 6 blocks. In a group of blocks the first one routes, and the others send "
      "each token to the same experts with the same gates: 6 groups are a WideNet, 1 group routes "
      "once. The paper finds that fewer groups are worse, and shows it as a figure.";
  t.columns.push_back({"dropped", "dropped, %", 100, 1});
  for (const Index groups : {1, 2, 3})
    t.rows.push_back(make.changed_widenet(
        std::to_string(groups) + (groups > 1 ? " groups" : " group"), 1,
        [=](EncoderConfig& e) { e.routing_groups = groups; }));
  t.rows.push_back(named(make.widenet(1), "6 groups"));
  t.claims = {{"6 groups", "1 group"}, {"6 groups", "2 groups"}, {"6 groups", "3 groups"}};
  return t;
}

inline PaperTable ablations(const VisionRows& make) {
  const std::vector<std::string>& sizes = paper_sizes();
  const PaperFigure full[] = {{77.5, "29M"}, {79.5, "40M"}, {80.1, "63M"}};
  const PaperFigure shared_norm[] = {{76.3, "29M", true}, {78.3, "40M", true}, {76.6, "63M", true}};
  const PaperFigure dense[] = {{unknown, "9M", true, "NaN"}, {76.9, "15M", true},
                               {79.0, "23M", true}};
  const PaperFigure unshared[] = {{77.9, "128M", true}, {77.4, "406M", true},
                                  {unknown, "", false, "out of memory"}};
  PaperTable t;
  t.id = "e", t.title = "What WideNet is made of";
  t.about =
      "WideNet in three sizes; the same with one pair of LayerNorms for all blocks; the same with "
      "one shared dense network in place of the experts; and without sharing, which is ViT-MoE. "
      "Where the paper's figures are given from memory, its comparisons are in words: that sharing "
      "the LayerNorms or leaving out the experts costs accuracy is certain, and how ViT-MoE and "
      "WideNet compare stands in table (a).";
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    t.rows.push_back(beside(make.widenet(i), full[i]));
    t.rows.push_back(beside(
        make.changed_widenet("shared norms, " + sizes[i], i,
                             [](EncoderConfig& e) { e.share_layer_norm = true; }), shared_norm[i]));
    t.rows.push_back(beside(make.changed_widenet("no experts, " + sizes[i], i,
                                                 [](EncoderConfig& e) { e.experts = 0; }),
                            dense[i]));
    t.rows.push_back(beside(named(make.vit_moe(i), "no sharing, " + sizes[i]), unshared[i]));
    t.claims.push_back({"WideNet " + sizes[i], "shared norms, " + sizes[i]});
    t.claims.push_back({"WideNet " + sizes[i], "no experts, " + sizes[i]});
  }
  t.claims.push_back({"no sharing, small", "WideNet small"});
  t.claims.push_back({"WideNet medium", "no sharing, medium"});
  t.paper_title = "paper, top-1 %";
  return t;
}

inline PaperTable comparable_compute(const VisionRows& make) {
  PaperTable t;
  t.id = "f", t.title = "Fewer blocks, wider networks";
  t.about =
      "At a comparable number of operations: ViT medium; the same with one attention and one dense "
      "network shared by all blocks; that with a dense network twice as wide; and WideNet with "
      "half the blocks, where two experts of each token do twice the work of one dense network. "
      "WideNet medium stands below for comparison.";
  const auto without_experts = [](EncoderConfig& e) { e.experts = 0; };
  const auto twice_as_wide = [](EncoderConfig& e) { e.experts = 0, e.dense_hidden *= 2; };
  const auto half_the_blocks = [](EncoderConfig& e) { e.blocks /= 2; };
  t.rows = {beside(make.vit(1), {77.5, "305M"}),
            beside(make.changed_widenet("ViT, shared", 1, without_experts), {76.9, "15M", true}),
            beside(make.changed_widenet("ViT, shared, wider", 1, twice_as_wide),
                   {75.8, "24M", true}),
            beside(make.changed_widenet("WideNet, half as deep", 1, half_the_blocks),
                   {78.2, "40M"}),  // certain as 0.7 above ViT-L
            beside(make.widenet(1), {79.5, "40M"})};
  t.claims = {{"WideNet, half as deep", "ViT medium", 0.7},
              {"WideNet medium", "ViT medium", 2.0},
              {"ViT, shared", "ViT, shared, wider", unknown, "accuracy", "no less"}};
  t.paper_title = "paper, top-1 %";
  return t;
}

inline PaperTable divergence(const VisionRows& make) {
  PaperTable t;
  t.id = "g", t.title = "How far the LayerNorms diverge";
  t.figure_title = "Divergence before experts and dense networks";
  t.about =
      "After training, the mean squared distance of an element of gamma (or beta) of one block to "
      "those of the other blocks (equation 8 of the paper), a thousandfold. Of all elements, as "
      "the paper has it, it stays above 0 where all blocks hold the same vector; of matched ones "
      "it does not. The LayerNorms before attention and before the experts or dense network are "
      "told apart. The paper finds more in WideNet than in ViT, and shows it as figures.";
  t.rows = {make.vit(1), make.vit_moe(1), make.widenet(1)};
  t.columns.clear();
  t.num_drawn = 2;
  for (const std::string pairs : {"all", "matched"})
    for (const std::string norm : {"ffn", "attention"})
      for (const std::string which : {"gamma", "beta"}) {
        const std::string column = norm + "_" + which + "_" + pairs;
        t.columns.push_back({column, which + ", " + norm + ", " + pairs, 1000, 1});
        if (pairs == "all")
          t.claims.push_back({"WideNet medium", "ViT medium", unknown, column,
                              "more " + which + " before " + norm});
      }
  return t;
}

inline PaperTable language_models(const PaperBudget& budget, const LanguageRates& rates,
                                  const std::shared_ptr<const PaperData>& data) {
  const LanguageData& d = data->language;
  const auto row = [&](const char* name, const LanguageConfig& preset, double paper,
                       const char* size) {
    return beside({name, language_setting(preset, budget, rates, data)}, {paper, size});
  };
  const auto baseline = [](const char* name, double accuracy) {
    PaperRow result;
    result.name = name, result.baseline = accuracy;
    return result;
  };
  PaperTable t;
  t.id = "b", t.title = "Language: ALBERT, BERT and WideNet";
  t.about =
      "A generated language with agreement over distance, topics and ambiguous words. Models read "
      "its text (hidden words, order of segments) and then learn from " +
      grouped(double(num_labelled)) + " sentences to say what is wrong with one: nothing, the "
      "number of a verb, or its topic. Of the text 30 % of the words are hidden, each by itself, "
      "where ALBERT hides 15 % in spans of up to three. Beside them what counting makes of the "
      "same sentences. The paper's figures are means over SQuAD 1.1 and 2.0, MNLI and SST-2.";
  t.rows = {row("ALBERT-like", LanguageConfig::albert_base(), 84.0, "12M"),
            row("BERT-like", LanguageConfig::bert_factorized(), 85.0, "89M"),
            row("WideNet, 4 experts", LanguageConfig::widenet_albert(4), 84.7, "26M"),
            row("WideNet, 8 experts", LanguageConfig::widenet_albert(8), 85.2, "45M"),
            row("WideNet, 16 experts", LanguageConfig::widenet_albert(16), 85.8, "83M"),
            baseline("most frequent class", majority_accuracy(d.training, d.testing)),
            baseline("bag of words", naive_bayes_accuracy(d.training, d.testing, 1)),
            baseline("pairs of words", naive_bayes_accuracy(d.training, d.testing, 2))};
  t.columns.push_back({"unread_accuracy", "not pre-trained, %", 100, 1});
  t.columns.push_back({"word_accuracy", "hidden words, %", 100, 1});
  t.columns.push_back({"order_accuracy", "orders, %", 100, 1});
  t.claims = {{"BERT-like", "ALBERT-like", 1.0},
              {"WideNet, 4 experts", "ALBERT-like", 0.7},
              {"WideNet, 8 experts", "BERT-like", 0.2},
              {"WideNet, 16 experts", "BERT-like", 0.8},
              {"WideNet, 8 experts", "WideNet, 4 experts", 0.5},
              {"WideNet, 16 experts", "WideNet, 8 experts", 0.6}};
  t.paper_title = "paper, mean %";
  return t;
}

inline std::vector<PaperTable> paper_tables(const PaperBudget& budget,
                                            const std::shared_ptr<const PaperData>& data) {
  const VisionRows make{data, budget.vision_steps};
  return {vision_models(make),   language_models(budget, {}, data), num_experts(make),
          routing_groups(make),  ablations(make),                   comparable_compute(make),
          divergence(make)};
}

// CHOOSING SETTINGS -------------------------------------------------------------------------------

/// What `paper --search digits` tries: learning rates for the medium models.
inline PaperTable digits_search(const PaperBudget& budget,
                                const std::shared_ptr<const PaperData>& data) {
  PaperTable digits;
  digits.id = "digits", digits.title = "Held-out training digits, by learning rate";
  digits.columns[0].title = "accuracy, %";
  for (const double rate : {2.5e-3, 5e-3, 1e-2}) {
    const VisionRows make{data, budget.vision_steps, {rate, rate, rate}};
    for (const PaperRow& row : {make.vit(1), make.vit_moe(1), make.widenet(1)})
      digits.rows.push_back(named(row, row.name + ", " + json(rate)));
  }
  return digits;
}

/// What `paper --search sentences` tries: rates of reading and of judging, for three models.
inline PaperTable sentences_search(const PaperBudget& budget,
                                   const std::shared_ptr<const PaperData>& data) {
  PaperTable sentences;
  sentences.id = "sentences";
  sentences.title = "Held-out training sentences, by learning rates of reading and judging";
  sentences.columns[0].title = "accuracy, %";
  sentences.columns.push_back({"unread_accuracy", "not pre-trained, %", 100, 1});
  for (const double reading : {4e-3, 6e-3})
    for (const double judging : {1e-3, 2e-3, 3e-3}) {
      const PaperTable table = language_models(budget, {reading, judging, judging}, data);
      for (const std::size_t row : {0u, 1u, 2u})
        sentences.rows.push_back(named(
            table.rows[row], table.rows[row].name + ", " + json(reading) + ", " + json(judging)));
    }
  return sentences;
}

// THE TEXT OF THE PAGE ----------------------------------------------------------------------------

inline std::vector<std::string> paper_introduction() {
  return {"Each table is one experiment. A row is a model, trained once for each seed; the seed "
          "decides initial weights, order of examples and all else that is random. Small dots are "
          "seeds, the large one is their mean, the line reaches one standard deviation to both "
          "sides. Columns give mean \u00b1 standard deviation.",
          "Below each table stands what the paper found, a difference between two rows, and ours "
          "with its standard error. Where ours points the other way, it says so; where ours is "
          "smaller than twice its standard error, it says that, too. The paper's models are a "
          "thousand times larger and read a thousand times more: agreement is no proof of the "
          "paper, disagreement none against it."};
}

inline std::vector<std::string> paper_method(const PaperBudget& budget) {
  return {"Digits: the 1,437 training and 360 test images of data/digits, 8 x 8 pixels in patches "
          "of 2 x 2. The models have a thirty-second of the paper's widths, a quarter of its "
          "blocks and heads, and no layer before the classifier. One training image in two is "
          "moved by up to a pixel.",
          "Sentences: 6,000 generated documents to read, " + grouped(double(num_labelled)) +
          " labelled sentences to learn from and 1,000 others to be tested on. The models have a "
          "sixteenth of the paper's width, a quarter of its blocks, and a thirty-second of the "
          "width of its dense networks and experts. Of the text, 30 % of the words are hidden, "
          "each by itself: with ALBERT's 15 % in spans of up to three, so short a training learned "
          "little of the language. A model that is not pre-trained has the same initial weights.",
          "All models of an experiment make the same number of steps: " +
          std::to_string(budget.vision_steps) + " on digits, " +
          std::to_string(budget.reading_steps) + " of reading and " +
          std::to_string(budget.judging_steps) + " of judging sentences, with 32 examples each. "
          "AdamW (0.9, 0.99), gradients clipped to a norm of 1, warm-up over a tenth of the steps, "
          "then cosine decay on digits and linear decay on text; label smoothing 0.1 on digits; "
          "balance loss times 0.01; capacity factor 1.2; no dropout.",
          "Learning rates, and how many words are hidden, were chosen with one seed or two by "
          "accuracy on 200 training digits and 1,000 training sentences held out of those runs, "
          "the same for all rows of a table: paper --search tries the rates again. The number of "
          "steps is what fits into half an hour. Tests were looked at for this page only.",
          "MFLOP are the operations of the matrix products of one example, forward: every choice "
          "counts, nothing as dropped; text has as many tokens as a test sentence has in the mean. "
          "Seconds are processor time of one training with one thread, on the machine that made "
          "this page. Parameters are counted as the paper does, without the heads of "
          "pre-training."};
}

inline NamedValues paper_settings(const PaperBudget& budget) {
  const PaperRates digits;
  const LanguageRates text;
  return {{"seeds", std::to_string(budget.seeds)},
          {"rate, ViT", json(digits.vit)},
          {"rate, ViT-MoE", json(digits.vit_moe)},
          {"rate, WideNet", json(digits.widenet)},
          {"rate of reading", json(text.reading)},
          {"rate of judging", json(text.judging)},
          {"the same, not pre-trained", json(text.unread)},
          {"weight decay, digits", "0.05"},
          {"weight decay, text", "0.01"},
          {"version", WIDENET_VERSION}};
}

// REMARKS -----------------------------------------------------------------------------------------

/// What pre-training changes and how far the models are from the baselines, for table (b).
inline std::vector<std::string> language_remarks(const PaperResult& result) {
  double lowest = 1, baseline = 0, sum = 0, squares = 0;
  std::string lowest_name, baseline_name;
  std::size_t count = 0;
  for (std::size_t r = 0; r < result.rows.size(); ++r) {
    const PaperRow& row = result.table.rows[r];
    const std::vector<double>& accuracy = result.rows[r].at("accuracy");
    const double mean = statistics_of(accuracy).mean;
    if (row.is_baseline()) {
      if (mean > baseline) baseline = mean, baseline_name = row.name;
      continue;
    }
    if (mean < lowest) lowest = mean, lowest_name = row.name;
    const std::vector<double>& unread = result.rows[r].at("unread_accuracy");
    for (std::size_t i = 0; i < accuracy.size(); ++i) {
      const double gain = 100 * (accuracy[i] - unread[i]);
      sum += gain, squares += gain * gain, ++count;
    }
  }
  const double n = static_cast<double>(count), mean = sum / n;
  const double error = std::sqrt(std::max(0.0, squares / n - mean * mean) / (n - 1));
  return {"Counting: the best baseline, " + baseline_name + ", has " + fixed(100 * baseline, 1) +
              " %; the lowest model, " + lowest_name + ", has " + fixed(100 * lowest, 1) + " %, " +
              (lowest > baseline ? fixed(100 * (lowest - baseline), 1) + " points more."
                                 : "no more than that."),
          "Pre-training changes accuracy by " + signed_text(mean, 1) + " \u00b1 " +
              fixed(error, 1) + " points, the mean over models and seeds: " +
              (std::fabs(mean) <= 2 * error ? "it is not shown to help."
               : mean > 0 ? "it helps." : "it harms.")};
}

/// The page about the tables that were run.
///
///   Errors    ValueError if a run is missing
inline Report paper_report(const PaperBudget& budget, const std::vector<PaperResult>& results,
                           const std::map<std::string, Measured>& finished) {
  std::map<std::string, double> seconds;  // of each run once
  for (const PaperResult& result : results)
    for (const PaperRun& run : runs_of({result.table}, budget.seeds))
      seconds[run.key()] = finished.at(run.key()).at("seconds");
  double total = 0;
  for (const auto& [key, value] : seconds) total += value;
  const VerdictCount count = count_verdicts(results);
  Report report;
  report.title = "Go wider instead of deeper, at toy scale";
  report.subtitle =
      budget.is_quick
          ? "The quick run: fewer seeds and a fraction of the steps, to see that everything works. "
            "Its models are hardly trained and its comparisons say little; make paper is the whole "
            "run."
          : "The tables and figures of the paper by Xue et al. (AAAI 2022), run again with models "
            "that a laptop trains in seconds.";
  report.summary = {{"trainings", grouped(double(seconds.size()))},
                    {"seeds", std::to_string(budget.seeds)},
                    {"processor time", clock_text(total)},
                    {"the paper's way", std::to_string(count.same)},
                    {"the other way", std::to_string(count.other)},
                    {"within the noise", std::to_string(count.unclear)}};
  report.sections = {{"How to read this page", text_of(paper_introduction())}};
  for (const PaperResult& result : results) report.sections.push_back(section_of(result));
  report.sections.push_back({"How it was measured", text_of(paper_method(budget))});
  report.configuration = paper_settings(budget);
  report.style = paper_style();
  return report;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_PAPER_PLAN_HPP
