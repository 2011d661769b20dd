// Trains any vision model of the paper, at toy size or its own, on IDX or CIFAR files.
//
//   train_vision --help                        all options
//   train_vision --preset widenet_b            WideNet-B at toy size on the bundled digits
//   train_vision --preset vit_l --data cifar-10-batches-bin --flip --mixup
//
// Writes model.safetensors, metrics.jsonl, routes.jsonl, result.json and report.html into OUT.
// Ctrl-C saves and stops; --resume goes on, to the same bits as if it had never stopped.

#include "support/conventions.hpp"
#include "support/images.hpp"
#include "support/presets.hpp"
#include "support/progress.hpp"
#include "support/recipes.hpp"
#include "support/run.hpp"
#include "support/run_report.hpp"
#include "support/vision_report.hpp"
#include "widenet.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

namespace wn = widenet;
namespace support = widenet::support;
using wn::Index;

namespace {

const std::vector<std::string> optimizers = {"sgd", "adamw", "lamb"};  // as OptimizerKind
const std::vector<std::string> decays = {"constant", "linear", "cosine"};  // as Schedule::Decay

/// Settings of our own, for small sets and short runs; the other recipes are the paper's.
support::VisionRecipe toy_recipe() {
  support::VisionRecipe r;
  r.name = "toy";
  r.optimizer = support::OptimizerKind::adamw;
  r.learning_rate = 3e-3, r.weight_decay = 0.05, r.decay = wn::Schedule::Decay::cosine;
  r.batch = 64, r.epochs = 10, r.warmup_epochs = 1;
  r.label_smoothing = 0.1;
  r.augmentation = {{0, 15}, 0.5, false, false};
  return r;
}

struct Options {
  support::VisionRecipe recipe = toy_recipe();
  std::string data = "data/digits", out = "build/train_vision";
  std::string recipe_name = "toy", preset = "widenet_b", start, optimizer, decay;
  bool paper_size = false, no_sharing = false, share_layer_norm = false, resume = false;
  bool no_flip = false, no_mixup = false;
  Index classes = 10, side = 0, patch = 0, held_out = 0;
  Index blocks = 0, hidden = 0, experts = 0, top_k = 0, moe_blocks = 0, groups = 0;
  bool no_experts = false;
  double capacity = 0;
  Index steps = 0, micro_batches = 1, save_every = 0;
  std::uint64_t seed = 0;
};

/// The recipe sets what other options default to, so it is looked for before they are.
support::VisionRecipe recipe_of(int argc, char** argv) {
  std::string name = "toy";
  for (int i = 1; i + 1 < argc; ++i)
    if (std::string(argv[i]) == "--recipe") name = argv[i + 1];
  return support::recipe_named<support::VisionRecipe>(
      {toy_recipe(), support::imagenet_recipe(), support::cifar10_finetune_recipe(),
       support::cifar10_scratch_recipe()}, name);
}

support::CommandLine command_line(Options& o) {
  support::VisionRecipe& r = o.recipe;
  o.optimizer = optimizers[static_cast<std::size_t>(r.optimizer)];
  o.decay = decays[static_cast<std::size_t>(r.decay)];
  support::CommandLine line(
      "train_vision", "trains a vision model of the paper\n\n"
      "Presets: toy, vit_b, vit_l, vit_moe_b, vit_moe_l, widenet_b, widenet_l, widenet_h.\n"
      "Recipes: toy, imagenet, cifar10_finetune, cifar10_scratch; the options below --recipe\n"
      "default to it. A size of 0 stands for that of the preset, the recipe or the data.");
  line.add("--data", o.data, "folder of IDX, CIFAR-10 or CIFAR-100 files")
      .add("--classes", o.classes, "classes of IDX files")
      .add("--held-out", o.held_out, "test on so many of the training images instead", 0)
      .add("--out", o.out, "folder for model, metrics and report")
      .add("--preset", o.preset, "which model")
      .add("--start", o.start, "start from this model.safetensors instead; its classifier is new")
      .add("--paper-size", o.paper_size, "as in the paper; else a sixteenth as wide")
      .add("--image", o.side, "side that images are resized to", 0)
      .add("--patch", o.patch, "side of a patch", 0)
      .add("--blocks", o.blocks, "blocks L", 0)
      .add("--hidden", o.hidden, "hidden width F of experts and dense networks", 0)
      .add("--experts", o.experts, "experts E", 0)
      .add("--no-experts", o.no_experts, "dense networks instead")
      .add("--top-k", o.top_k, "experts K of a token", 0)
      .add("--capacity", o.capacity, "capacity factor, to a hundredth")
      .add("--moe-blocks", o.moe_blocks, "how many blocks, the last ones, have experts", 0)
      .add("--groups", o.groups, "how many blocks route; the others follow", 0)
      .add("--no-sharing", o.no_sharing, "attention, router, experts for each block")
      .add("--share-layer-norm", o.share_layer_norm, "one pair of LayerNorms for all blocks")
      .add("--recipe", o.recipe_name, "how it is trained")
      .add("--steps", o.steps, "steps of training", 0)
      .add("--epochs", r.epochs, "epochs of training, unless steps are given", 0)
      .add("--warmup-epochs", r.warmup_epochs, "of these; of so many parts of the steps", 0)
      .add("--batch", r.batch, "images of a step")
      .add("--micro-batches", o.micro_batches, "parts that a batch is worked on in")
      .add("--optimizer", o.optimizer, "optimiser", optimizers)
      .add("--rate", r.learning_rate, "learning rate at its peak")
      .add("--end-rate", r.end_rate, "where warm-up begins and decay ends")
      .add("--decay", o.decay, "decay of the learning rate", decays)
      .add("--weight-decay", r.weight_decay, "decay of all weights")
      .add("--momentum", r.momentum, "of sgd")
      .add("--clip", r.clip_norm, "largest norm of all gradients together")
      .add("--dropout", r.dropout, "fraction dropped")
      .add("--smoothing", r.label_smoothing, "label smoothing")
      .add("--lambda", r.balance_weight, "weight of the balance loss")
      .add("--crop", r.augmentation.smallest_crop, "smallest fraction of an image; 1: no crop")
      .add("--flip", r.augmentation.flips, "flip one image in two")
      .add("--no-flip", o.no_flip, "flip none, whatever the recipe")
      .add("--mixup", r.augmentation.mixes, "mix pairs of images")
      .add("--no-mixup", o.no_mixup, "mix none, whatever the recipe")
      .add("--randaugment", r.augmentation.rand_augment.layers, "operations of RandAugment", 0)
      .add("--magnitude", r.augmentation.rand_augment.magnitude, "their magnitude")
      .add("--seed", o.seed, "seed of everything random")
      .add("--save-every", o.save_every, "save after so many steps, too", 0)
      .add("--resume", o.resume, "go on where a run was stopped");
  return line;
}

/// What the recipe does to images and the options do not want. Digits should not be flipped.
void switch_off(Options& o) {
  support::Augmentation& a = o.recipe.augmentation;
  a.flips = a.flips && !o.no_flip;
  a.mixes = a.mixes && !o.no_mixup;
}

/// The model that the options ask for, for these images.
///
///   Errors    ConfigError if they do not fit together
wn::VisionConfig config_of(const Options& o, const support::ImageSet& data) {
  support::VisionPresets presets = support::vision_presets();
  presets.insert(presets.begin(), {"toy", wn::VisionConfig::toy()});
  wn::VisionConfig c = support::preset_named(presets, o.preset);
  if (o.preset != "toy" && !o.paper_size) c = support::toy_size(c);
  c.channels = data.channels, c.classes = data.classes;
  if (!o.paper_size) {
    c.image_height = data.rows, c.image_width = data.columns;
    c.patch = std::max(data.rows, data.columns) > 16 ? 4 : 2;
  }
  if (o.side > 0) c.image_height = c.image_width = o.side;
  if (o.patch > 0) c.patch = o.patch;
  wn::EncoderConfig& e = c.encoder;
  if (o.blocks > 0) e.blocks = o.blocks;
  if (o.hidden > 0) e.dense_hidden = e.expert_hidden = o.hidden;
  if (o.experts > 0) e.experts = o.experts;
  if (o.no_experts) e.experts = 0, e.moe_blocks = -1;
  if (o.top_k > 0) e.top_k = o.top_k;
  if (o.capacity > 0) e.capacity_factor = {std::lround(100 * o.capacity), 100};
  if (o.moe_blocks > 0) e.moe_blocks = o.moe_blocks;
  if (o.groups > 0) e.routing_groups = o.groups;
  if (o.no_sharing) e.share_attention = e.share_router = e.share_experts = false;
  e.share_layer_norm = e.share_layer_norm || o.share_layer_norm;
  e.dropout = o.recipe.dropout;
  return c;
}

/// A new model, or with --start the weights of another, which may have been made for other classes:
/// then the classifier is new.
wn::VisionModel<float> model_for(const Options& o, const support::ImageSet& data) {
  const wn::Rng rng(o.seed);
  if (o.start.empty()) return wn::VisionModel<float>(config_of(o, data), rng);
  const wn::VisionModel<float> start = wn::load_vision_model<float>(o.start);
  wn::VisionConfig config = start.config();
  wn::require<wn::ValueError>(config.channels == data.channels,
                              "train_vision: --start must be a model for images of ",
                              data.channels, " channels; got ", config.channels);
  config.classes = data.classes, config.encoder.dropout = o.recipe.dropout;
  const wn::VisionModel<float> model(config, rng);
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const wn::Parameter<float>& parameter = model.parameters()[i];
    if (parameter.name.compare(0, 5, "head.") != 0)
      parameter.tensor.value().assign(start.parameters()[i].tensor.to_vector());
  }
  return model;
}

std::string name_of(const Options& o) {
  if (!o.start.empty()) return o.start;
  return o.preset + (o.paper_size ? "" : " at toy size") + (o.no_experts ? ", no experts" : "");
}

/// One of the three optimisers, behind what they share.
struct AnyOptimizer {
  std::unique_ptr<wn::Optimizer<float>> base;
  std::function<void()> step;

  template <class Kind> void use(std::unique_ptr<Kind> optimizer) {
    step = [raw = optimizer.get()] { raw->step(); };
    base = std::move(optimizer);
  }
};

AnyOptimizer optimizer_of(const Options& o, const std::vector<wn::Parameter<float>>& parameters) {
  const support::VisionRecipe& r = o.recipe;
  AnyOptimizer result;
  if (o.optimizer == "sgd")
    result.use(std::make_unique<wn::SGD<float>>(parameters, 0, r.momentum, r.weight_decay));
  else if (o.optimizer == "adamw")
    result.use(std::make_unique<wn::AdamW<float>>(
        parameters, 0, wn::AdamWOptions{0.9, 0.999, 1e-8, r.weight_decay}));
  else
    result.use(std::make_unique<wn::LAMB<float>>(
        parameters, 0, wn::LAMBOptions{0.9, 0.999, 1e-6, r.weight_decay}));
  return result;
}

/// All settings that decide the bits of a run, besides the configuration.
std::string fingerprint(const Options& o, Index steps) {
  const support::VisionRecipe& r = o.recipe;
  const support::Augmentation& a = r.augmentation;
  return support::JsonLine()
      .add("start", o.start).add("data", o.data).add("held_out", o.held_out).add("steps", steps)
      .add("epochs", r.epochs).add("warmup_epochs", r.warmup_epochs).add("batch", r.batch)
      .add("micro_batches", o.micro_batches).add("optimizer", o.optimizer)
      .add("rate", r.learning_rate).add("end_rate", r.end_rate).add("decay", o.decay)
      .add("weight_decay", r.weight_decay).add("momentum", r.momentum).add("clip", r.clip_norm)
      .add("smoothing", r.label_smoothing).add("lambda", r.balance_weight)
      .add("crop", a.smallest_crop).add("flip", a.flips).add("mixup", a.mixes)
      .add("randaugment", a.rand_augment.layers).add("magnitude", a.rand_augment.magnitude)
      .text();
}

/// The learning rate over the steps: warm-up takes the share of them that it has of the epochs.
wn::Schedule schedule_of(const Options& o, Index steps) {
  const support::VisionRecipe& r = o.recipe;
  wn::Schedule schedule;
  schedule.peak = r.learning_rate, schedule.start = schedule.end = r.end_rate;
  schedule.total = steps;
  schedule.warmup = r.epochs > 0 ? steps * std::min(r.warmup_epochs, r.epochs) / r.epochs : 0;
  for (std::size_t i = 0; i < decays.size(); ++i)
    if (decays[i] == o.decay) schedule.decay = static_cast<wn::Schedule::Decay>(i);
  return schedule;
}

/// What one step did, the mean over its micro-batches.
struct StepResult {
  double loss = 0, balance_loss = 0, dropped = 0, accuracy = 0;
};

/// Leaves the gradients of a step: of the batch in micro-batches, the loss of each divided by their
/// number.
StepResult accumulate_gradients(const wn::VisionModel<float>& model,
                                const support::ImageBatch& batch, const Options& o,
                                const wn::Rng& rng, Index step) {
  const Index k = o.micro_batches, n = o.recipe.batch / k;
  const std::vector<float> pixels = batch.images.to_vector(), targets = batch.targets.to_vector();
  const auto part = [n](const wn::Tensor<float>& whole, const std::vector<float>& values, Index m) {
    std::vector<Index> extents = whole.shape().extents();
    const Index size = whole.size() / extents[0] * n;
    extents[0] = n;
    return wn::Tensor<float>(wn::Shape(extents), {values.begin() + m * size,
                                                  values.begin() + (m + 1) * size});
  };
  StepResult result;
  for (Index m = 0; m < k; ++m) {
    const auto out = model.forward(part(batch.images, pixels, m), wn::Training{rng, step, m});
    const auto main_loss = wn::soft_cross_entropy(out.logits, part(batch.targets, targets, m));
    const auto loss = wn::total_loss(main_loss, out.balance_loss, o.recipe.balance_weight);
    (float(1.0 / double(k)) * loss).backward();
    const std::vector<std::int32_t> labels(batch.labels.begin() + m * n,
                                           batch.labels.begin() + (m + 1) * n);
    result.loss += double(main_loss.item()) / double(k);
    result.balance_loss += double(out.balance_loss.item()) / double(k);
    result.dropped += support::mean_dropped(out.routings) / double(k);
    result.accuracy += wn::accuracy(out.logits, labels) / double(k);
  }
  return result;
}

struct Trained {
  wn::VisionModel<float> model;
  Index steps = 0;
  bool is_finished = true;
  double seconds = 0;
};

Trained train(const Options& o, const wn::VisionModel<float>& model, const support::ImageSet& data,
              const support::ImageSet& testing, const support::RunFiles& run) {
  const wn::Rng rng(o.seed);
  const wn::VisionConfig& config = model.config();
  const support::VisionRecipe& r = o.recipe;
  Trained result{model};
  result.steps = o.steps > 0 ? o.steps : r.epochs * (data.count / r.batch);
  const Index steps = result.steps;
  wn::require<wn::ValueError>(steps > 0, "train_vision: there must be a step; got ", r.epochs,
                              " epochs of ", data.count, " images in batches of ", r.batch,
                              "; hint: ", data.count < r.batch ? "a smaller --batch" : "--steps");
  const wn::Schedule schedule = schedule_of(o, steps);
  const AnyOptimizer optimizer = optimizer_of(o, model.parameters());
  const std::string settings = fingerprint(o, steps);

  Index first_step = 0;
  if (o.resume) {
    const wn::TrainingState state = wn::load_checkpoint(run.model(), model, *optimizer.base);
    const std::string before = state.notes.count("run") ? state.notes.at("run") : "none";
    wn::require<wn::ValueError>(state.seed == o.seed && before == settings,
                                "train_vision: --resume must have the settings of the run that it "
                                "goes on with, seed ", state.seed, " and ", before, "; got seed ",
                                o.seed, " and ", settings);
    first_step = state.step;
    support::cut_metrics(run.metrics(), first_step);
  }
  const auto save = [&](Index step) {
    wn::save_checkpoint(run.model(), model, *optimizer.base, {step, o.seed, {{"run", settings}}});
  };
  const support::ImageBatch watched = support::evaluation_batch(
      testing, 0, std::min({Index(16), r.batch / o.micro_batches, testing.count}),
      config.image_height, config.image_width);
  const support::RouteLog routes(
      run, first_step, steps, config.encoder, model.parameters(), r.balance_weight,
      support::watched_images(config, watched.images, watched.labels), [&] {
        const auto out = model.forward(watched.images);
        return support::Watched{wn::cross_entropy(out.logits, watched.labels), out.balance_loss,
                                out.routings};
      });
  support::JsonLinesFile metrics(run.metrics(), o.resume);
  const support::Interrupt interrupt;
  const auto start = std::chrono::steady_clock::now();
  support::ProgressLine progress(first_step, steps);
  for (Index step = first_step; step < steps; ++step) {
    const support::JsonLine look = routes.before_step(step);
    const support::ImageBatch batch =
        support::training_batch(data, r.batch, r.augmentation, r.label_smoothing,
                                config.image_height, config.image_width, rng, step);
    optimizer.base->zero_grad();
    const StepResult did = accumulate_gradients(model, batch, o, rng, step);
    wn::clip_global_norm(model.parameters(), r.clip_norm);
    optimizer.base->set_learning_rate(schedule(step));
    optimizer.step();
    metrics.write(support::JsonLine()
                      .add("step", step)
                      .add("loss", did.loss)
                      .add("balance_loss", did.balance_loss)
                      .add("dropped", did.dropped)
                      .add("accuracy", did.accuracy)
                      .add("rate", schedule(step))
                      .add(look));
    progress.update(step + 1, did.loss, did.balance_loss, did.dropped,
                    r.batch * config.num_tokens());
    if (interrupt.requested() && step + 1 < steps) {
      save(step + 1);
      routes.finish(step + 1);
      progress.note("Stopped after step " + std::to_string(step + 1) + " and saved " + run.model() +
                    "; go on with --resume.");
      result.is_finished = false;
      return result;
    }
    if (o.save_every > 0 && (step + 1) % o.save_every == 0) save(step + 1);
  }
  result.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  save(steps);
  routes.finish(steps);
  return result;
}

support::Evaluation evaluate(const wn::VisionModel<float>& model, const support::ImageSet& data) {
  const wn::NoGrad no_graph;
  const wn::VisionConfig& c = model.config();
  support::Evaluation result(c.classes);
  constexpr Index batch_size = 100;
  for (Index first = 0; first < data.count; first += batch_size) {
    const support::ImageBatch batch =
        support::evaluation_batch(data, first, std::min(batch_size, data.count - first),
                                  c.image_height, c.image_width);
    result.add(c, batch.images, batch.labels, model.forward(batch.images));
  }
  return result;
}

void write_report(const support::RunFiles& run, const Options& o, const Trained& trained,
                  const support::Evaluation& evaluation) {
  support::RunResult result;
  result.title = name_of(o);
  result.subtitle = "Trained on " + o.data + " with the recipe \"" + o.recipe.name + "\".";
  result.tested = o.held_out > 0 ? "validation" : "test";
  result.summary = {{result.tested + " accuracy", support::percent(evaluation.accuracy(), 2)},
                    {"images tested", std::to_string(evaluation.num_images())},
                    {"parameters", support::grouped(double(trained.model.num_parameters()))}};
  if (!o.resume)
    result.summary.push_back({"training time", support::fixed(trained.seconds, 0) + " s"});
  result.settings = {{"steps", std::to_string(trained.steps)},
                     {"batch", std::to_string(o.recipe.batch)},
                     {"micro-batches", std::to_string(o.micro_batches)},
                     {"optimiser", o.optimizer},
                     {"learning rate", support::json(o.recipe.learning_rate)},
                     {"weight decay", support::json(o.recipe.weight_decay)},
                     {"seed", std::to_string(o.seed)}};
  evaluation.add_to(result);
  support::write_result(run.result(), result);
  support::write_run_report(run);
}

int run(const Options& o) {
  wn::require<wn::ValueError>(o.recipe.batch % o.micro_batches == 0,
                              "train_vision: --micro-batches must divide --batch; got ",
                              o.micro_batches, ", ", o.recipe.batch);
  support::ImageSet training = support::load_image_set(o.data, "train", o.classes);
  const support::ImageSet testing = o.held_out > 0
                                        ? support::split_off(training, o.held_out)
                                        : support::load_image_set(o.data, "test", o.classes);
  const wn::VisionModel<float> model = model_for(o, training);
  std::cout << name_of(o) << ", " << model.num_parameters() << " parameters, learns from "
            << training.count << " images of " << training.classes << " classes." << std::endl;
  support::print_warnings(model.config().encoder);
  const support::RunFiles files{o.out};
  std::filesystem::create_directories(files.folder);
  const Trained trained = train(o, model, training, testing, files);
  if (!trained.is_finished) return 0;
  const support::Evaluation result = evaluate(trained.model, testing);
  write_report(files, o, trained, result);
  std::cout << support::fixed(100 * result.accuracy(), 2) << " % of " << testing.count
            << (o.held_out > 0 ? " validation" : " test") << " images are read correctly, at a "
            << "cross entropy of " << support::fixed(result.loss(), 4) << ".\nModel: "
            << files.model() << "   Report: " << files.report() << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    options.recipe = recipe_of(argc, argv);
    const support::CommandLine line = command_line(options);
    if (argc > 1 && line.parse(argc, argv)) {
      options.paper_size = options.paper_size && options.preset != "toy";
      switch_off(options);
      return run(options);
    }
    std::cout << line.usage();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
