// Pre-trains a language model on text, fine-tunes it on sentences or questions, and evaluates it.
//
//   train_language --task pretrain [--text FILE]                     hidden words, sentence order
//   train_language --task toy [--start MODEL]                        what is wrong with a sentence
//   train_language --task sst2|mnli|cola --train FILE --test FILE    GLUE's TSV files
//   train_language --task squad --train FILE --test FILE             SQuAD 1.1 or 2.0
//
// Without files everything runs on a toy language that the program generates. --preset names a
// model of the paper, --recipe a way to train it; --help lists all options. Writes its model,
// metrics.jsonl, routes.jsonl, result.json, report.html and predictions into the folder OUT. Ctrl-C
// saves and stops; --resume goes on, to the same bits as if it had never stopped; after the last
// step it evaluates again, on another --test if one is given.

#include "support/conventions.hpp"
#include "support/glue.hpp"
#include "support/grammar.hpp"
#include "support/masked_lm.hpp"
#include "support/presets.hpp"
#include "support/progress.hpp"
#include "support/recipes.hpp"
#include "support/run.hpp"
#include "support/run_report.hpp"
#include "support/squad.hpp"
#include "widenet.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

namespace wn = widenet;
namespace support = widenet::support;

namespace {

using Model = wn::LanguageModel<float>;

// OPTIONS -----------------------------------------------------------------------------------------

/// Settings of our own, for the toy language; the other recipes are the paper's.
support::LanguageRecipe toy_recipe() { return {"toy", 1500, 150, 32, 32, 3e-3, {6, 5}, 0.01, 0}; }

struct Options {
  support::LanguageRecipe recipe = toy_recipe();
  std::string task = "toy", text, training, testing, vocabulary, start;
  std::string out = "build/train_language";
  std::string recipe_name = "toy", preset = "toy", optimizer = "adamw";
  bool is_cased = false, paper_size = false, resume = false;
  double weight_decay = 0.01, capacity = 0;
  wn::Index blocks = 0, hidden = 0, experts = 0, micro_batches = 1, stride = 0, save_every = 0;
  bool no_experts = false;
  std::uint64_t seed = 0;
};

/// The recipe sets what other options default to, so it is looked for before they are.
support::LanguageRecipe recipe_of(int argc, char** argv) {
  std::string name = "toy";
  for (int i = 1; i + 1 < argc; ++i)
    if (std::string(argv[i]) == "--recipe") name = argv[i + 1];
  std::vector<support::LanguageRecipe> recipes = support::finetuning_recipes();
  recipes.insert(recipes.begin(), {toy_recipe(), support::albert_pretraining_recipe()});
  return support::recipe_named(recipes, name);
}

support::CommandLine command_line(Options& o) {
  support::LanguageRecipe& r = o.recipe;
  if (r.name != "toy") o.optimizer = "lamb";
  support::CommandLine line(
      "train_language", "pre-trains, fine-tunes and evaluates a language model of the paper\n\n"
      "Presets: toy, albert_base, bert_factorized, widenet_albert_4, widenet_albert_8,\n"
      "widenet_albert_16.\n"
      "Recipes: toy, albert_pretraining, squad1, squad2, mnli, sst2; the options below --recipe\n"
      "default to it. A size of 0 stands for that of the preset or the recipe.");
  line.add("--task", o.task, "what to learn", {"pretrain", "toy", "sst2", "mnli", "cola", "squad"})
      .add("--text", o.text, "text to pre-train on; none: the toy language")
      .add("--train", o.training, "file of training examples")
      .add("--test", o.testing, "file of examples to evaluate on")
      .add("--vocab", o.vocabulary, "vocab.txt of WordPiece; none: bytes, toy words for toy text")
      .add("--cased", o.is_cased, "the vocabulary has capitals and accents")
      .add("--start", o.start, "a pre-trained model.safetensors to start from")
      .add("--out", o.out, "folder of all that is written")
      .add("--preset", o.preset, "which model")
      .add("--paper-size", o.paper_size, "as in the paper; else a sixteenth as wide")
      .add("--blocks", o.blocks, "blocks L", 0)
      .add("--hidden", o.hidden, "hidden width F of experts and dense networks", 0)
      .add("--experts", o.experts, "experts E", 0)
      .add("--no-experts", o.no_experts, "dense networks instead")
      .add("--recipe", o.recipe_name, "how it is trained")
      .add("--steps", r.steps, "steps of training")
      .add("--warmup", r.warmup, "of these with a growing rate, at most half of them", 0)
      .add("--batch", r.batch, "sequences in a step")
      .add("--micro-batches", o.micro_batches, "parts that a batch is worked on in")
      .add("--length", r.tokens, "tokens in a sequence, at most", 8)
      .add("--optimizer", o.optimizer, "optimiser", {"adamw", "lamb"})
      .add("--rate", r.learning_rate, "learning rate at its peak")
      .add("--weight-decay", o.weight_decay, "decay of all weights")
      .add("--capacity", o.capacity, "capacity factor, to a hundredth; 0: the recipe's")
      .add("--dropout", r.dropout, "fraction dropped")
      .add("--lambda", r.balance_weight, "weight of the balance loss")
      .add("--stride", o.stride, "SQuAD: tokens to the next window; 0: --length / 3, at most 128",
           0)
      .add("--seed", o.seed, "seed of everything random")
      .add("--save-every", o.save_every, "save after so many steps, too", 0)
      .add("--resume", o.resume, "go on where the run in --out stopped, or evaluate again");
  return line;
}

bool is_toy_language(const Options& o) {
  return o.task == "toy" || (o.task == "pretrain" && o.text.empty());
}

support::Tokenizer tokenizer_for(const Options& o) {
  if (!o.vocabulary.empty()) return support::Tokenizer::wordpiece(o.vocabulary, o.is_cased);
  if (is_toy_language(o)) return support::Tokenizer::wordpiece(support::toy_vocabulary(), true);
  return support::Tokenizer::bytes();
}

/// What the recipe says about a model, whether it is new or pre-trained.
void follow_recipe(const Options& o, wn::LanguageConfig& config) {
  config.encoder.dropout = o.recipe.dropout;
  config.encoder.capacity_factor = o.recipe.capacity_factor;
  if (o.capacity > 0) config.encoder.capacity_factor = {std::lround(100 * o.capacity), 100};
  config.encoder.routes_padding = false;
}

/// The model that the options ask for, for this vocabulary.
wn::LanguageConfig config_of(const Options& o, wn::Index vocabulary) {
  wn::LanguageConfig toy = wn::LanguageConfig::toy();
  toy.embedding = 32;
  toy.encoder.width = 64, toy.encoder.blocks = 4;
  toy.encoder.expert_hidden = toy.encoder.dense_hidden = 128;
  support::LanguagePresets presets = support::language_presets();
  presets.insert(presets.begin(), {"toy", toy});
  wn::LanguageConfig config = support::preset_named(presets, o.preset);
  if (o.preset != "toy" && !o.paper_size) config = support::toy_size(config);
  config.vocabulary = vocabulary;
  config.max_tokens = std::max(o.recipe.tokens, o.paper_size ? config.max_tokens : 0);
  wn::EncoderConfig& e = config.encoder;
  if (o.blocks > 0) e.blocks = o.blocks;
  if (o.hidden > 0) e.dense_hidden = e.expert_hidden = o.hidden;
  if (o.experts > 0) e.experts = o.experts, e.top_k = std::min<wn::Index>(2, o.experts);
  if (o.no_experts) e.experts = 0, e.moe_blocks = -1;
  follow_recipe(o, config);
  return config;
}

/// A new model, or with --start the weights of another, which may have been made for other classes:
/// then the classifier is new.
Model model_for(const Options& o, const support::Tokenizer& tokenizer, wn::Index classes) {
  const wn::Rng rng(o.seed);
  if (o.start.empty()) {
    wn::LanguageConfig config = config_of(o, tokenizer.size());
    config.classes = classes;
    return Model(config, rng);
  }
  const Model start = wn::load_language_model<float>(o.start);
  wn::LanguageConfig config = start.config();
  wn::require<wn::ValueError>(
      config.vocabulary == tokenizer.size() && config.max_tokens >= o.recipe.tokens,
      "train_language: --start must be a model of ", tokenizer.size(), " words and at least ",
      o.recipe.tokens, " tokens; got ", config.vocabulary, ", ", config.max_tokens);
  config.classes = classes;
  follow_recipe(o, config);
  const Model model(config, rng);
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const wn::Parameter<float>& parameter = model.parameters()[i];
    if (parameter.name.compare(0, 10, "classifier") != 0)
      parameter.tensor.value().assign(start.parameters()[i].tensor.to_vector());
  }
  return model;
}

// TRAINING ----------------------------------------------------------------------------------------

/// What a step computes: the loss to learn from, the model's output, and what to tell about it.
struct Step {
  wn::Tensor<float> loss;
  wn::LanguageOutput<float> out;
  std::vector<std::pair<std::string, double>> metrics;
  wn::Index num_tokens = 0;
};
using Objective = std::function<Step(const Model& model, wn::Index step, wn::Index micro_batch)>;

/// What is looked at while the model trains: a batch as words, and what the model makes of it.
struct Watch {
  support::WatchedInputs inputs;
  std::function<Step(const Model& model)> look;
};

constexpr wn::Index num_watched = 16;  // sequences, at most

support::WatchedInputs watched_words(const wn::TokenBatch& batch,
                                     const support::Tokenizer& tokenizer) {
  support::WatchedInputs inputs;
  for (wn::Index b = 0; b < batch.B; ++b) {
    inputs.words.emplace_back();
    for (wn::Index i = b * batch.T; i < (b + 1) * batch.T; ++i) {
      const std::size_t at = static_cast<std::size_t>(i);
      const bool is_padding = !batch.mask.empty() && batch.mask[at] == 0;
      inputs.words.back().push_back(
          is_padding ? "" : support::visible(tokenizer.word(batch.token[at])));
    }
  }
  return inputs;
}

double dropped_fraction(const wn::LanguageOutput<float>& out) {
  double dropped = 0;
  for (const auto& routing : out.routings)
    dropped += routing.dropped_fraction() / double(out.routings.size());
  return dropped;
}

/// What both optimisers have: for LAMB as in the paper's recipe for images, for AdamW our own.
wn::LAMBOptions adam_options(const Options& o) {
  if (o.optimizer == "lamb") return {0.9, 0.999, 1e-6, o.weight_decay};
  return {0.9, 0.99, 1e-8, o.weight_decay};
}

/// All settings that decide the bits of a run, besides the configuration and the seed.
std::string fingerprint(const Options& o) {
  const support::LanguageRecipe& r = o.recipe;
  const wn::LAMBOptions adam = adam_options(o);
  return support::JsonLine()
      .add("task", o.task).add("text", o.text).add("train", o.training).add("vocab", o.vocabulary)
      .add("cased", o.is_cased).add("start", o.start).add("steps", r.steps).add("warmup", r.warmup)
      .add("batch", r.batch).add("micro_batches", o.micro_batches).add("length", r.tokens)
      .add("optimizer", o.optimizer).add("rate", r.learning_rate)
      .add("beta1", adam.beta1).add("beta2", adam.beta2).add("eps", adam.eps)
      .add("weight_decay", adam.weight_decay).add("lambda", r.balance_weight)
      .add("stride", o.stride).text();
}

/// What one step did, the mean over its micro-batches.
struct StepResult {
  double loss = 0, balance_loss = 0, dropped = 0;
  std::vector<std::pair<std::string, double>> metrics = {};
  wn::Index num_tokens = 0;
};

/// Leaves the gradients of a step: of the batch in micro-batches, the loss of each divided by their
/// number.
StepResult accumulate_gradients(const Model& model, const Objective& objective, const Options& o,
                                wn::Index step) {
  const double share = 1 / double(o.micro_batches);
  StepResult result;
  for (wn::Index m = 0; m < o.micro_batches; ++m) {
    const Step part = objective(model, step, m);
    const auto loss = wn::total_loss(part.loss, part.out.balance_loss, o.recipe.balance_weight);
    (share * loss).backward();
    result.loss += share * double(part.loss.item());
    result.balance_loss += share * double(part.out.balance_loss.item());
    result.dropped += share * dropped_fraction(part.out);
    result.metrics.resize(part.metrics.size());
    for (std::size_t i = 0; i < part.metrics.size(); ++i) {
      result.metrics[i].first = part.metrics[i].first;
      result.metrics[i].second += share * part.metrics[i].second;
    }
    result.num_tokens += part.num_tokens;
  }
  return result;
}

/// Trains to the last step, or until Ctrl-C: then it saves, and returns false.
template <class Optimizer>
bool train_with(Optimizer&& optimizer, const Options& o, const Model& model,
                const Objective& objective, const Watch& watch) {
  const support::RunFiles run{o.out};
  const wn::Index steps = o.recipe.steps;
  wn::Schedule schedule = o.recipe.schedule();
  schedule.warmup = std::min(schedule.warmup, steps / 2);
  const std::string settings = fingerprint(o);
  wn::Index first_step = 0;
  if (o.resume) {
    const wn::TrainingState state = wn::load_checkpoint(run.model(), model, optimizer);
    const std::string before = state.notes.count("run") ? state.notes.at("run") : "none";
    wn::require<wn::ValueError>(state.seed == o.seed && before == settings,
                                "train_language: --resume must have the settings of the run that "
                                "it goes on with, seed ", state.seed, " and ", before,
                                "; got seed ", o.seed, " and ", settings);
    first_step = state.step;
    support::cut_metrics(run.metrics(), first_step);
  }
  const auto save = [&](wn::Index step) {
    wn::save_checkpoint(run.model(), model, optimizer, {step, o.seed, {{"run", settings}}});
  };
  const support::RouteLog routes(run, first_step, steps, model.config().encoder,
                                 model.parameters(), o.recipe.balance_weight, watch.inputs, [&] {
                                   const Step step = watch.look(model);
                                   return support::Watched{step.loss, step.out.balance_loss,
                                                           step.out.routings};
                                 });
  support::JsonLinesFile metrics(run.metrics(), o.resume);
  const support::Interrupt interrupt;
  support::ProgressLine progress(first_step, steps);
  for (wn::Index step = first_step; step < steps; ++step) {
    const support::JsonLine look = routes.before_step(step);
    optimizer.zero_grad();
    const StepResult did = accumulate_gradients(model, objective, o, step);
    wn::clip_global_norm(model.parameters(), 1.0);
    optimizer.set_learning_rate(schedule(step));
    optimizer.step();

    support::JsonLine line;
    line.add("step", step).add("loss", did.loss).add("balance_loss", did.balance_loss);
    line.add("dropped", did.dropped);
    for (const auto& metric : did.metrics) line.add(metric.first, metric.second);
    metrics.write(line.add(look));
    progress.update(step + 1, did.loss, did.balance_loss, did.dropped, did.num_tokens);
    if (interrupt.requested() && step + 1 < steps) {
      save(step + 1);
      routes.finish(step + 1);
      progress.note("Stopped after step " + std::to_string(step + 1) + " and saved " +
                    run.model() + "; go on with --resume.");
      return false;
    }
    if (o.save_every > 0 && (step + 1) % o.save_every == 0) save(step + 1);
  }
  save(steps);
  routes.finish(steps);
  return true;
}

bool train(const Options& o, const Model& model, const Objective& objective, const Watch& watch) {
  support::print_warnings(model.config().encoder);
  const std::vector<wn::Parameter<float>>& parameters = model.parameters();
  const wn::LAMBOptions adam = adam_options(o);
  if (o.optimizer == "lamb")
    return train_with(wn::LAMB<float>(parameters, 0, adam), o, model, objective, watch);
  const wn::AdamWOptions options{adam.beta1, adam.beta2, adam.eps, adam.weight_decay};
  return train_with(wn::AdamW<float>(parameters, 0, options), o, model, objective, watch);
}

std::string percent(double fraction) { return support::fixed(100 * fraction, 2) + " %"; }

void tell(const std::string& what) { std::cout << what << std::endl; }

/// Says what was done with some examples of a file: the first ten reports, and how many more.
void warn(const std::string& what_was_done, const std::vector<std::string>& reports,
          const std::string& path) {
  for (std::size_t i = 0; i < reports.size() && i < 10; ++i)
    std::cerr << what_was_done << ": " << reports[i] << '\n';
  if (reports.size() > 10)
    std::cerr << what_was_done << ": " << reports.size() - 10 << " more of " << path << '\n';
}

/// What a report calls a model.
std::string kind_of(const wn::EncoderConfig& e) {
  if (e.experts > 0) return e.share_experts ? "A WideNet" : "A mixture of experts";
  if (e.is_pre_norm) return "A dense encoder";
  return e.share_experts ? "An ALBERT" : "A BERT";
}

/// The report, with the load of the experts in `out`, the last batch of the evaluation.
void report(const Options& o, const Model& model, const wn::LanguageOutput<float>& out,
            const std::string& what_it_does, const std::string& examples,
            const support::NamedValues& summary) {
  const support::RunFiles run{o.out};
  support::RunResult result;
  const wn::EncoderConfig& e = model.config().encoder;
  result.title = kind_of(e) + what_it_does;
  result.examples = examples, result.summary = summary;
  if (e.experts > 0 && e.share_attention && e.share_router && e.share_experts &&
      !e.share_layer_norm)
    result.subtitle = "One attention, one router and one set of experts, shared by all blocks; "
                      "each block has LayerNorms of its own.";
  result.summary.push_back({"parameters", support::grouped(double(model.num_parameters()))});
  result.settings = {{"task", o.task},
                     {"preset", o.preset},
                     {"recipe", o.recipe.name},
                     {"tokens T", std::to_string(o.recipe.tokens)},
                     {"steps", std::to_string(o.recipe.steps)},
                     {"batch B", std::to_string(o.recipe.batch)},
                     {"start", o.start.empty() ? "random weights" : o.start},
                     {"seed", std::to_string(o.seed)}};
  for (const auto& routing : out.routings) {
    result.load.emplace_back();
    for (const std::int32_t load : routing.load.to_vector())
      result.load.back().push_back(double(load) / double(routing.N * routing.K));
    result.dropped.push_back(routing.dropped_fraction());
  }
  support::write_result(run.result(), result);
  support::write_run_report(run);
  tell("Model: " + run.model() + "   Report: " + run.report());
}

// PRE-TRAINING ------------------------------------------------------------------------------------

constexpr wn::Index num_toy_documents = 6000;

/// The losses of a batch: of hidden words and of the order of segments, added as in ALBERT.
Step pretraining_step(const Model& model, const support::MaskedBatch& masked,
                      const wn::LanguageOutput<float>& out) {
  const auto words = model.masked_logits(out.tokens, masked.places);
  const auto order = model.order_logits(out.tokens);
  const auto word_loss = wn::cross_entropy(words, masked.labels);
  const auto order_loss = wn::cross_entropy(order, masked.order);
  return {word_loss + order_loss, out,
          {{"word_loss", word_loss.item()}, {"order_loss", order_loss.item()},
           {"accuracy", wn::accuracy(words, masked.labels)},
           {"order_accuracy", wn::accuracy(order, masked.order)}},
          masked.batch.B * masked.batch.T};
}

int pretrain(const Options& o) {
  const support::Tokenizer tokenizer = tokenizer_for(o);
  const wn::Rng rng(o.seed);
  const std::vector<support::Document> documents =
      o.text.empty()
          ? support::parse_documents(support::toy_text(num_toy_documents, wn::Rng(0)), tokenizer,
                                     "the toy language")
          : support::read_documents(o.text, tokenizer);
  std::vector<support::Passage> passages =
      support::gather_passages(documents, o.recipe.tokens, tokenizer, rng);
  // The last twentieth is held out; what a batch lacks is filled from before.
  const std::size_t num_held_out = std::max<std::size_t>(passages.size() / 20,
                                                         static_cast<std::size_t>(o.recipe.batch));
  wn::require<wn::ValueError>(
      passages.size() >= num_held_out + static_cast<std::size_t>(o.recipe.batch),
      "train_language: the text must give two batches of ", o.recipe.batch, " passages; got ",
      passages.size(), "; hint: a longer text, or a smaller --batch or --length");
  const std::vector<support::Passage> held_out(
      passages.end() - static_cast<wn::Index>(num_held_out), passages.end());
  passages.resize(passages.size() - num_held_out);

  const Model model = model_for(o, tokenizer, 2);
  tell("A model with " + std::to_string(model.num_parameters()) + " parameters learns from " +
       std::to_string(documents.size()) + " documents, cut into " +
       std::to_string(passages.size()) + " passages of two segments.");
  const support::MaskOptions mask;
  const support::MaskedBatch watched = support::masked_batch_of_step(
      held_out, std::min(num_watched, o.recipe.batch), tokenizer, mask, wn::Rng(o.seed + 1), 0);
  const Watch watch{watched_words(watched.batch, tokenizer), [&](const Model& m) {
    return pretraining_step(m, watched, m.forward(watched.batch));
  }};
  const bool is_finished = train(o, model, [&](const Model& m, wn::Index step, wn::Index part) {
    const support::MaskedBatch batch = support::masked_batch_of_step(
        passages, o.recipe.batch, tokenizer, mask, rng, step, part, o.micro_batches);
    return pretraining_step(m, batch, m.forward(batch.batch, wn::Training{rng, step, part}));
  }, watch);
  if (!is_finished) return 0;

  const wn::NoGrad no_graph;
  const wn::Index num_batches = static_cast<wn::Index>(num_held_out) / o.recipe.batch;
  std::map<std::string, double> mean;
  std::map<std::int32_t, wn::Index> words;
  wn::Index num_words = 0, most_frequent = 0;
  wn::LanguageOutput<float> last;
  for (wn::Index step = 0; step < num_batches; ++step) {
    const support::MaskedBatch batch = support::masked_batch_of_step(
        held_out, o.recipe.batch, tokenizer, mask, wn::Rng(o.seed + 1), step);
    last = model.forward(batch.batch);
    for (const auto& metric : pretraining_step(model, batch, last).metrics)
      mean[metric.first] += metric.second / double(num_batches);
    for (const std::int32_t word : batch.labels)
      most_frequent = std::max(most_frequent, ++words[word]), ++num_words;
  }
  const std::string hidden = percent(mean["accuracy"]), order = percent(mean["order_accuracy"]);
  tell("On text it has not seen: " + hidden + " of the hidden words (always the most frequent " +
       "one: " + percent(double(most_frequent) / double(num_words)) + "), " + order +
       " of the orders (chance: 50 %), word loss " + support::fixed(mean["word_loss"], 3) + ".");
  report(o, model, last, " learns a language", "hidden words",
         {{"hidden words found", hidden}, {"orders found", order}});
  return 0;
}

// SENTENCES ---------------------------------------------------------------------------------------

constexpr wn::Index num_toy_training = 12000, num_toy_testing = 1000;

support::SentenceFile sentences(const support::GlueTask& task, const std::string& path) {
  support::SentenceFile file = support::read_sentences(task, path);
  warn("left out", file.bad_rows, path);
  return file;
}

struct Predicted {
  std::vector<std::int32_t> labels;
  wn::LanguageOutput<float> last;  // of the last batch
};

Predicted predict(const Model& model, const std::vector<support::Sequence>& sequences,
                  wn::Index batch_size, std::int32_t pad) {
  const wn::NoGrad no_graph;
  Predicted result;
  for (std::size_t i = 0; i < sequences.size(); i += static_cast<std::size_t>(batch_size)) {
    const std::size_t end = std::min(sequences.size(), i + static_cast<std::size_t>(batch_size));
    const auto begin = sequences.begin() + static_cast<wn::Index>(i);
    result.last = model.forward(
        support::batch_of({begin, sequences.begin() + static_cast<wn::Index>(end)}, pad));
    for (const std::int32_t label : wn::predictions(model.class_logits(result.last.tokens)))
      result.labels.push_back(label);
  }
  return result;
}

/// Writes index and class of every test sentence, as GLUE wants it. Rows that were left out have
/// none.
void write_predictions(const std::string& path, const std::vector<std::int32_t>& labels,
                       const std::vector<support::SentenceExample>& examples,
                       const std::vector<std::string>& classes) {
  std::ofstream out(path);
  out << "index\tprediction\n";
  for (std::size_t i = 0; i < labels.size(); ++i)
    out << examples[i].place << '\t' << classes[static_cast<std::size_t>(labels[i])] << '\n';
  out.flush();
  wn::require<wn::IoError>(out.good(), "train_language: ", path,
                           ": must be writable; got: a failed write");
}

int classify(const Options& o) {
  const bool is_toy = o.task == "toy";
  const support::Tokenizer tokenizer = tokenizer_for(o);
  support::GlueTask task;
  std::vector<support::SentenceExample> training, testing;
  if (is_toy) {
    task.classes = {"fine", "agreement", "topic"};
    training = support::toy_examples(num_toy_training, wn::Rng(1));
    testing = support::toy_examples(num_toy_testing, wn::Rng(2));
  } else {
    task = support::glue_task(o.task);
    training = sentences(task, o.training).examples;
    testing = sentences(task, o.testing).examples;
    for (const support::SentenceExample& example : training)
      wn::require<wn::IoError>(example.label >= 0, "train_language: ", o.training,
                               ": training examples must have labels; got a file without");
  }
  std::vector<support::Sequence> inputs, test_inputs;
  std::vector<std::int32_t> test_labels;
  for (const support::SentenceExample& e : training)
    inputs.push_back(support::encode(tokenizer, e.first, e.second, o.recipe.tokens));
  for (const support::SentenceExample& e : testing) {
    test_inputs.push_back(support::encode(tokenizer, e.first, e.second, o.recipe.tokens));
    test_labels.push_back(e.label);
  }

  const auto num_full = std::count_if(inputs.begin(), inputs.end(), [&](const auto& input) {
    return static_cast<wn::Index>(input.token.size()) == o.recipe.tokens;
  });

  const wn::Rng rng(o.seed);
  const Model model = model_for(o, tokenizer, static_cast<wn::Index>(task.classes.size()));
  tell("A model with " + std::to_string(model.num_parameters()) + " parameters learns from " +
       std::to_string(training.size()) + " sentences in " + std::to_string(task.classes.size()) +
       " classes.");
  if (num_full > 0)
    tell(std::to_string(num_full) + " of them fill --length, " + std::to_string(o.recipe.tokens) +
         " tokens; what is longer has lost its end.");
  // Test sentences, or where these have no labels, training sentences.
  const bool has_labels = test_labels[0] >= 0;
  const std::vector<support::Sequence>& source = has_labels ? test_inputs : inputs;
  const std::size_t count = std::min({static_cast<std::size_t>(num_watched), source.size(),
                                      static_cast<std::size_t>(o.recipe.batch)});
  const wn::TokenBatch watched = support::batch_of(
      {source.begin(), source.begin() + static_cast<wn::Index>(count)}, tokenizer.pad);
  std::vector<std::int32_t> watched_labels;
  for (std::size_t i = 0; i < count; ++i)
    watched_labels.push_back(has_labels ? test_labels[i] : training[i].label);
  const Watch watch{watched_words(watched, tokenizer), [&](const Model& m) {
    const auto out = m.forward(watched);
    return Step{wn::cross_entropy(m.class_logits(out.tokens), watched_labels), out, {}, 0};
  }};
  const bool is_finished = train(o, model, [&](const Model& m, wn::Index step, wn::Index part) {
    std::vector<support::Sequence> chosen;
    std::vector<std::int32_t> labels;
    const auto all = support::examples_of_step(inputs.size(), o.recipe.batch, rng, step);
    for (const std::size_t i : support::part_of(all, part, o.micro_batches)) {
      chosen.push_back(inputs[i]);
      labels.push_back(training[i].label);
    }
    const wn::TokenBatch batch = support::batch_of(chosen, tokenizer.pad);
    const auto out = m.forward(batch, wn::Training{rng, step, part});
    const auto logits = m.class_logits(out.tokens);
    return Step{wn::cross_entropy(logits, labels), out,
                {{"accuracy", wn::accuracy(logits, labels)}}, batch.B * batch.T};
  }, watch);
  if (!is_finished) return 0;

  const Predicted predicted = predict(model, test_inputs, o.recipe.batch, tokenizer.pad);
  write_predictions(o.out + "/predictions.tsv", predicted.labels, testing, task.classes);
  support::NamedValues summary;
  if (test_labels[0] >= 0) {
    wn::Index hits = 0;
    for (std::size_t i = 0; i < test_labels.size(); ++i)
      hits += predicted.labels[i] == test_labels[i] ? 1 : 0;
    const std::string accuracy = percent(double(hits) / double(test_labels.size()));
    const std::string majority = percent(support::majority_accuracy(training, testing));
    const std::string bag = percent(support::naive_bayes_accuracy(training, testing, 1));
    tell(accuracy + " of " + std::to_string(test_labels.size()) +
         " test sentences are classified right (the most frequent class: " + majority +
         ", a bag of words: " + bag + ").");
    summary = {{"test accuracy", accuracy}, {"most frequent class", majority},
               {"bag of words", bag}};
    if (o.task == "cola") {
      const std::string phi =
          support::fixed(support::matthews_correlation(predicted.labels, test_labels), 3);
      tell("Matthews' correlation: " + phi + ".");
      summary.insert(summary.begin(), {"Matthews' correlation", phi});
    }
  } else {
    tell(o.testing + " has no labels: see " + o.out + "/predictions.tsv.");
  }
  report(o, model, predicted.last, " judges sentences", "sentences", summary);
  return 0;
}

// QUESTIONS ---------------------------------------------------------------------------------------

support::SquadData questions(const std::string& path, const std::string& misplaced_are) {
  support::SquadData data = support::read_squad(path);
  warn("left out", data.bad_questions, path);
  warn(misplaced_are, data.misplaced, path);
  return data;
}

/// The mean cross entropy of the first and of the last tokens of the answers, over T tokens each.
///
///   Shapes    logits (B, T, 2), B places of first and of last tokens  ->  a scalar
wn::Tensor<float> span_loss(const wn::Tensor<float>& logits,
                            const std::vector<std::int32_t>& first_and_last) {
  const wn::Index B = logits.shape()[0], T = logits.shape()[1];
  std::vector<std::int32_t> order;  // (B, T, 2) -> (B, 2, T)
  for (wn::Index b = 0; b < B; ++b)
    for (wn::Index which = 0; which < 2; ++which)
      for (wn::Index t = 0; t < T; ++t)
        order.push_back(static_cast<std::int32_t>((b * T + t) * 2 + which));
  const auto rows = wn::embedding(order, logits.reshaped({B * T * 2, 1})).reshaped({B * 2, T});
  return wn::cross_entropy(rows, first_and_last);
}

int answer(const Options& o) {
  const support::Tokenizer tokenizer = tokenizer_for(o);
  const support::SquadData training = questions(o.training, "not learned from");
  const support::SquadData testing = questions(o.testing, "scored by its texts");
  support::SquadOptions options;
  options.max_tokens = o.recipe.tokens;
  options.stride = o.stride > 0 ? o.stride : std::min(options.stride, o.recipe.tokens / 3);
  options.question_tokens = std::min<wn::Index>(options.question_tokens, o.recipe.tokens / 2);
  std::vector<support::SquadWindow> windows;
  wn::Index num_learned = 0;
  for (std::size_t q = 0; q < training.questions.size(); ++q) {
    if (!support::can_be_learned(training.questions[q])) continue;
    ++num_learned;
    for (support::SquadWindow& window : support::squad_windows(training, q, tokenizer, options)) {
      window.pieces = {}, window.is_best = {};  // training does without
      windows.push_back(std::move(window));
    }
  }
  bool may_be_impossible = false;
  for (const support::SquadQuestion& question : testing.questions)
    may_be_impossible = may_be_impossible || question.answers.empty();

  const wn::Rng rng(o.seed);
  const Model model = model_for(o, tokenizer, 2);
  tell("A model with " + std::to_string(model.num_parameters()) + " parameters learns from " +
       std::to_string(num_learned) + " questions in " + std::to_string(windows.size()) +
       " windows.");
  std::vector<support::Sequence> watched_parts;
  std::vector<std::int32_t> watched_places;
  const std::size_t most = static_cast<std::size_t>(std::min(num_watched, o.recipe.batch));
  for (std::size_t q = 0; q < testing.questions.size() && watched_parts.size() < most; ++q)
    for (const support::SquadWindow& window :
         support::squad_windows(testing, q, tokenizer, options)) {
      if (watched_parts.size() == most) break;
      watched_parts.push_back(window.sequence);
      watched_places.push_back(static_cast<std::int32_t>(window.answer_first));
      watched_places.push_back(static_cast<std::int32_t>(window.answer_last));
    }
  const wn::TokenBatch watched = support::batch_of(watched_parts, tokenizer.pad);
  const Watch watch{watched_words(watched, tokenizer), [&](const Model& m) {
    const auto out = m.forward(watched);
    return Step{span_loss(m.span_logits(out.tokens), watched_places), out, {}, 0};
  }};
  const bool is_finished = train(o, model, [&](const Model& m, wn::Index step, wn::Index part) {
    std::vector<support::Sequence> chosen;
    std::vector<std::int32_t> places;
    const auto all = support::examples_of_step(windows.size(), o.recipe.batch, rng, step);
    for (const std::size_t i : support::part_of(all, part, o.micro_batches)) {
      chosen.push_back(windows[i].sequence);
      places.push_back(static_cast<std::int32_t>(windows[i].answer_first));
      places.push_back(static_cast<std::int32_t>(windows[i].answer_last));
    }
    const wn::TokenBatch batch = support::batch_of(chosen, tokenizer.pad);
    const auto out = m.forward(batch, wn::Training{rng, step, part});
    return Step{span_loss(m.span_logits(out.tokens), places), out, {}, batch.B * batch.T};
  }, watch);
  if (!is_finished) return 0;

  const wn::NoGrad no_graph;
  std::map<std::string, std::string> predictions;
  wn::LanguageOutput<float> last;
  support::JsonLine json;
  for (std::size_t q = 0; q < testing.questions.size(); ++q) {
    const auto parts = support::squad_windows(testing, q, tokenizer, options);
    std::vector<support::SpanLogits> logits;
    for (const support::SquadWindow& part : parts) {
      last = model.forward(support::batch_of({part.sequence}, tokenizer.pad));
      const std::vector<float> values = model.span_logits(last.tokens).to_vector();
      logits.emplace_back();
      for (std::size_t t = 0; t < values.size(); t += 2) {
        logits.back().first.push_back(values[t]);
        logits.back().last.push_back(values[t + 1]);
      }
    }
    const std::string& id = testing.questions[q].id;
    predictions[id] =
        support::best_answer(testing, parts, logits, options, may_be_impossible).text;
    json.add(id, predictions[id]);
  }
  support::JsonLinesFile(o.out + "/predictions.json", false).write(json);
  const support::SquadScores scores = support::squad_scores(testing, predictions);
  const std::string exact = support::fixed(scores.exact, 2), f1 = support::fixed(scores.f1, 2);
  tell("Of " + std::to_string(scores.count) + " questions: exact match " + exact + ", F1 " + f1 +
       (may_be_impossible ? "; without an answer: " + support::fixed(scores.impossible_exact, 2)
                          : "") + ".");
  report(o, model, last, " answers questions", "questions",
         {{"F1", f1}, {"exact match", exact}});
  return 0;
}

int run(const Options& o) {
  const bool needs_files = o.task != "pretrain" && o.task != "toy";
  wn::require<wn::ValueError>(needs_files == !o.training.empty() &&
                                  needs_files == !o.testing.empty(),
                              "train_language: --train and --test must be given for sst2, mnli, "
                              "cola and squad, and for no other task; got \"", o.training, "\", \"",
                              o.testing, "\" for ", o.task);
  wn::require<wn::ValueError>(o.recipe.batch % o.micro_batches == 0,
                              "train_language: --micro-batches must divide --batch; got ",
                              o.micro_batches, ", ", o.recipe.batch);
  wn::require<wn::ValueError>(o.text.empty() || o.task == "pretrain",
                              "train_language: --text must be for the task pretrain; got ", o.task);
  std::filesystem::create_directories(o.out);
  if (o.task == "pretrain") return pretrain(o);
  return o.task == "squad" ? answer(o) : classify(o);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    options.recipe = recipe_of(argc, argv);
    const support::CommandLine line = command_line(options);
    if (argc > 1 && line.parse(argc, argv)) return run(options);
    std::cout << line.usage();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
