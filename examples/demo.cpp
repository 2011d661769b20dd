// The main job: trains a WideNet on real handwritten digits and shows what it learned.
//
//   demo [--data FOLDER] [--out FOLDER] [--steps N] [--seed S] [--resume] [--validate] [--seeds N]
//        [--help]
//
// Writes model.safetensors, metrics.jsonl, routes.jsonl, result.json and report.html into OUT.
// Ctrl-C saves and stops; --resume goes on, to the same bits as if it had never stopped. --validate
// tests on the last 200 training images instead and trains on the others: settings are chosen with
// it. --seeds N trains N times and prints the mean accuracy.

#include "support/digits.hpp"
#include "support/progress.hpp"
#include "support/run.hpp"
#include "support/run_report.hpp"
#include "support/vision_report.hpp"
#include "widenet.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace wn = widenet;
namespace support = widenet::support;

namespace {

struct Options {
  std::string data = "data/digits", out = "build/demo";
  wn::Index steps = 1200, batch = 64, seeds = 1;
  std::uint64_t seed = 0;
  bool resume = false, validate = false;
};

/// The command line, which sets the options.
support::CommandLine command_line(Options& options) {
  support::CommandLine line("demo", "trains a WideNet on handwritten digits");
  line.add("--data", options.data, "folder of the digits")
      .add("--out", options.out, "folder for model, metrics and report")
      .add("--steps", options.steps, "steps of training")
      .add("--seed", options.seed, "seed of everything random")
      .add("--resume", options.resume, "go on where a run was stopped")
      .add("--validate", options.validate, "test on the last 200 training images instead")
      .add("--seeds", options.seeds, "train so many times, with seed, seed + 1, ...");
  return line;
}

constexpr double balance_weight = 0.01;  // the lambda of the paper

wn::VisionConfig demo_config() {
  wn::VisionConfig config = wn::VisionConfig::toy();
  config.encoder.width = 64;
  config.encoder.blocks = 6;
  config.encoder.expert_hidden = 128;
  return config;
}

struct Trained {
  wn::VisionModel<float> model;
  bool is_finished = true;
  double seconds = 0;
};

Trained train(const Options& options, const support::LabelledImages& data,
              const support::LabelledImages& testing, const support::RunFiles& run,
              std::uint64_t seed) {
  const wn::Rng rng(seed);
  Trained result{wn::VisionModel<float>(demo_config(), rng)};
  const wn::VisionModel<float>& model = result.model;
  wn::AdamW<float> optimizer(model.parameters(), 0, {0.9, 0.99, 1e-8, 0.05});
  wn::Schedule schedule;
  schedule.peak = 3e-3, schedule.warmup = options.steps / 10, schedule.total = options.steps;
  schedule.decay = wn::Schedule::Decay::cosine;

  wn::Index first_step = 0;
  if (options.resume) {
    const wn::TrainingState state = wn::load_checkpoint(run.model(), model, optimizer);
    wn::require<wn::ValueError>(
        state.seed == seed && state.notes.count("steps") &&
            state.notes.at("steps") == std::to_string(options.steps),
        "demo: --resume must have the --seed and --steps of the run that it goes on with; got ",
        seed, ", ", options.steps);
    first_step = state.step;
    support::cut_metrics(run.metrics(), first_step);
  }
  const auto save = [&](wn::Index step) {
    wn::save_checkpoint(run.model(), model, optimizer,
                        {step, seed, {{"steps", std::to_string(options.steps)}}});
  };
  const support::LabelledImages watched = testing.slice(0, std::min<wn::Index>(16, testing.count));
  const support::RouteLog routes(
      run, first_step, options.steps, model.config().encoder, model.parameters(), balance_weight,
      support::watched_images(model.config(), watched.tensor(), watched.labels), [&] {
        const auto out = model.forward(watched.tensor());
        return support::Watched{wn::cross_entropy(out.logits, watched.labels), out.balance_loss,
                                out.routings};
      });
  support::JsonLinesFile metrics(run.metrics(), options.resume);
  const support::Interrupt interrupt;
  const auto start = std::chrono::steady_clock::now();
  support::ProgressLine progress(first_step, options.steps);
  for (wn::Index step = first_step; step < options.steps; ++step) {
    const support::JsonLine look = routes.before_step(step);
    const support::Batch batch = support::batch_of_step(data, options.batch, rng, step);
    const auto out = model.forward(batch.images, wn::Training{rng, step});
    const auto main_loss = wn::cross_entropy(out.logits, batch.labels, 0.1);
    const auto loss = wn::total_loss(main_loss, out.balance_loss, balance_weight);
    optimizer.zero_grad();
    loss.backward();
    wn::clip_global_norm(model.parameters(), 1.0);
    optimizer.set_learning_rate(schedule(step));
    optimizer.step();

    const double dropped = support::mean_dropped(out.routings);
    const double balance = out.balance_loss.item();
    metrics.write(support::JsonLine()
                      .add("step", step)
                      .add("loss", main_loss.item())
                      .add("balance_loss", balance)
                      .add("dropped", dropped)
                      .add("accuracy", wn::accuracy(out.logits, batch.labels))
                      .add(look));
    progress.update(step + 1, main_loss.item(), balance, dropped,
                    options.batch * model.config().num_tokens());
    if (interrupt.requested() && step + 1 < options.steps) {
      save(step + 1);
      routes.finish(step + 1);
      progress.note("Stopped after step " + std::to_string(step + 1) + " and saved " + run.model() +
                    "; go on with --resume.");
      result.is_finished = false;
      return result;
    }
  }
  result.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  save(options.steps);
  routes.finish(options.steps);
  return result;
}

support::Evaluation evaluate(const wn::VisionModel<float>& model,
                             const support::LabelledImages& data) {
  const wn::NoGrad no_graph;
  const wn::Tensor<float> images = data.tensor();
  support::Evaluation result(10);
  result.add(model.config(), images, data.labels, model.forward(images));
  return result;
}

void print_confusion(const std::vector<std::vector<wn::Index>>& confusion) {
  std::cout << "\n  label   predicted\n        ";
  for (int c = 0; c < 10; ++c) std::cout << std::setw(4) << c;
  for (std::size_t label = 0; label < 10; ++label) {
    std::cout << "\n  " << std::setw(3) << label << "   ";
    for (const wn::Index count : confusion[label])
      std::cout << std::setw(4) << (count ? std::to_string(count) : ".");
  }
  std::cout << "\n\n";
}

std::string percent(double fraction) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(2) << 100 * fraction << " %";
  return text.str();
}

void write_report(const support::RunFiles& run, const Options& options, const Trained& trained,
                  const support::Evaluation& evaluation) {
  support::RunResult result;
  result.title = "A WideNet reads handwritten digits";
  result.subtitle = "One attention, one router and one set of experts, shared by all blocks; "
                    "each block has LayerNorms of its own.";
  result.tested = options.validate ? "validation" : "test";
  result.summary = {{result.tested + " accuracy", percent(evaluation.accuracy())},
                    {"images tested", std::to_string(evaluation.num_images())},
                    {"parameters", support::grouped(double(trained.model.num_parameters()))}};
  if (trained.seconds > 0 && !options.resume)
    result.summary.push_back({"training time", support::fixed(trained.seconds, 0) + " s"});
  result.settings = {{"steps", std::to_string(options.steps)},
                     {"batch", std::to_string(options.batch)},
                     {"seed", std::to_string(options.seed)}};
  evaluation.add_to(result);
  support::write_result(run.result(), result);
  support::write_run_report(run);
}

int demo(const Options& options) {
  support::LabelledImages training = support::load_images(options.data, "train");
  support::LabelledImages testing;
  if (options.validate) {
    testing = training.slice(training.count - 200, 200);
    training = training.slice(0, training.count - 200);
  } else {
    testing = support::load_images(options.data, "test");
  }
  std::cout << "A WideNet with " << wn::count_parameters(demo_config())
            << " parameters learns from " << training.count << " handwritten digits." << std::endl;
  std::vector<double> accuracies;
  for (wn::Index i = 0; i < options.seeds; ++i) {
    const std::uint64_t seed = options.seed + static_cast<std::uint64_t>(i);
    const support::RunFiles run{
        options.seeds == 1 ? options.out : options.out + "/seed" + std::to_string(seed)};
    std::filesystem::create_directories(run.folder);
    const Trained trained = train(options, training, testing, run, seed);
    if (!trained.is_finished) return 0;
    const support::Evaluation result = evaluate(trained.model, testing);
    accuracies.push_back(result.accuracy());
    std::cout << "seed " << seed << ": " << percent(result.accuracy()) << " of " << testing.count
              << (options.validate ? " validation" : " test") << " digits are read correctly";
    if (!options.resume)
      std::cout << ", after " << std::fixed << std::setprecision(0) << trained.seconds << " s";
    std::cout << ".\n";
    if (options.seeds == 1) print_confusion(result.confusion());
    write_report(run, options, trained, result);
    std::cout << "Model: " << run.model() << "   Report: " << run.report() << std::endl;
  }
  if (options.seeds > 1) {
    double mean = 0, variance = 0;
    for (const double a : accuracies) mean += a / double(options.seeds);
    for (const double a : accuracies) variance += (a - mean) * (a - mean);
    std::cout << "mean of " << options.seeds << " seeds: " << percent(mean)
              << ", standard deviation "
              << percent(std::sqrt(variance / double(options.seeds - 1))) << std::endl;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    const support::CommandLine line = command_line(options);
    if (line.parse(argc, argv)) return demo(options);
    std::cout << line.usage();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
