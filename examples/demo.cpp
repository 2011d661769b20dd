// The main job: trains a WideNet on real handwritten digits and shows what it learned.
//
//   demo [--data FOLDER] [--out FOLDER] [--steps N] [--seed S] [--resume] [--validate] [--seeds N]
//
// Writes OUT/model.safetensors, OUT/metrics.jsonl and OUT/report.html. Ctrl-C saves and stops;
// --resume goes on, to the same bits as if it had never stopped. --validate tests on the last 200
// training images instead and trains on the others: settings are chosen with it. --seeds N trains N
// times and prints the mean accuracy.

#include "support/digits.hpp"
#include "support/progress.hpp"
#include "support/report.hpp"
#include "widenet.hpp"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
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

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string {
      wn::require<wn::ValueError>(i + 1 < argc, "demo: ", name, " must be followed by a value");
      return argv[++i];
    };
    const auto number = [&] {
      const std::string text = value();
      wn::require<wn::ValueError>(
          !text.empty() && text.size() < 10 &&
              text.find_first_not_of("0123456789") == std::string::npos,
          "demo: ", name, " must be a whole number; got ", text);
      return static_cast<wn::Index>(std::stol(text));
    };
    if (name == "--data") options.data = value();
    else if (name == "--out") options.out = value();
    else if (name == "--steps") options.steps = number();
    else if (name == "--seed") options.seed = static_cast<std::uint64_t>(number());
    else if (name == "--seeds") options.seeds = number();
    else if (name == "--resume") options.resume = true;
    else if (name == "--validate") options.validate = true;
    else
      wn::fail<wn::ValueError>("demo: an option must be one of --data --out --steps --seed --seeds "
                               "--resume --validate; got ", name);
  }
  wn::require<wn::ValueError>(options.steps > 0 && options.seeds > 0,
                              "demo: --steps and --seeds must be at least 1; got ", options.steps,
                              ", ", options.seeds);
  return options;
}

wn::VisionConfig demo_config() {
  wn::VisionConfig config = wn::VisionConfig::toy();
  config.encoder.width = 64;
  config.encoder.blocks = 6;
  config.encoder.expert_hidden = 128;
  return config;
}

/// Where a run keeps its files.
struct Run {
  std::string folder;
  std::string model() const { return folder + "/model.safetensors"; }
  std::string metrics() const { return folder + "/metrics.jsonl"; }
  std::string report() const { return folder + "/report.html"; }
};

/// After a stop the metrics may be ahead of the checkpoint: keeps the lines before `step`.
void cut_metrics(const std::string& path, wn::Index step) {
  std::ifstream in(path);
  std::string kept, line;
  while (std::getline(in, line)) {
    if (in.eof()) break;  // without its line end a line may be half written
    if (wn::Json::parse(line, path).at("step").integer() < step) kept += line + '\n';
  }
  in.close();
  std::ofstream(path) << kept;
}

struct Trained {
  wn::VisionModel<float> model;
  bool is_finished = true;
  double seconds = 0;
};

Trained train(const Options& options, const support::LabelledImages& data, const Run& run,
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
    cut_metrics(run.metrics(), first_step);
  }
  const auto save = [&](wn::Index step) {
    wn::save_checkpoint(run.model(), model, optimizer,
                        {step, seed, {{"steps", std::to_string(options.steps)}}});
  };
  support::JsonLinesFile metrics(run.metrics(), options.resume);
  const support::Interrupt interrupt;
  const auto start = std::chrono::steady_clock::now();
  support::ProgressLine progress(first_step, options.steps);
  for (wn::Index step = first_step; step < options.steps; ++step) {
    const support::Batch batch = support::batch_of_step(data, options.batch, rng, step);
    const auto out = model.forward(batch.images, wn::Training{rng, step});
    const auto main_loss = wn::cross_entropy(out.logits, batch.labels, 0.1);
    const auto loss = wn::total_loss(main_loss, out.balance_loss);
    optimizer.zero_grad();
    loss.backward();
    wn::clip_global_norm(model.parameters(), 1.0);
    optimizer.set_learning_rate(schedule(step));
    optimizer.step();

    double dropped = 0;
    for (const auto& routing : out.routings)
      dropped += routing.dropped_fraction() / double(out.routings.size());
    const double balance = out.balance_loss.item();
    metrics.write(support::JsonLine()
                      .add("step", step)
                      .add("loss", main_loss.item())
                      .add("balance_loss", balance)
                      .add("dropped", dropped)
                      .add("accuracy", wn::accuracy(out.logits, batch.labels)));
    progress.update(step + 1, main_loss.item(), balance, dropped,
                    options.batch * model.config().num_tokens());
    if (interrupt.requested() && step + 1 < options.steps) {
      save(step + 1);
      progress.note("Stopped after step " + std::to_string(step + 1) + " and saved " + run.model() +
                    "; go on with --resume.");
      result.is_finished = false;
      return result;
    }
  }
  result.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  save(options.steps);
  return result;
}

struct Evaluation {
  double accuracy = 0;
  wn::VisionOutput<float> out;
  std::vector<std::int32_t> predicted;
  std::vector<std::vector<wn::Index>> confusion;
};

Evaluation evaluate(const wn::VisionModel<float>& model, const support::LabelledImages& data) {
  const wn::NoGrad no_graph;
  Evaluation result;
  result.out = model.forward(data.tensor());
  result.accuracy = wn::accuracy(result.out.logits, data.labels);
  result.predicted = wn::predictions(result.out.logits);
  result.confusion.assign(10, std::vector<wn::Index>(10));
  for (std::size_t i = 0; i < data.labels.size(); ++i)
    ++result.confusion[static_cast<std::size_t>(data.labels[i])]
                      [static_cast<std::size_t>(result.predicted[i])];
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

/// One curve of metrics.jsonl.
support::Series curve(const std::string& path, const std::string& field, const std::string& name,
                      int colour) {
  support::Series series{name, {}, {}, colour, true};
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const wn::Json json = wn::Json::parse(line, path);
    series.x.push_back(json.at("step").number());
    const wn::Json& value = json.at(field);
    series.y.push_back(value.type() == wn::Json::Type::null ? NAN : value.number());
  }
  return series;
}

/// Twenty-four test digits, the wrong ones first.
std::vector<support::Digit> gallery(const support::LabelledImages& data, const Evaluation& result,
                                    std::size_t block, wn::Index patch) {
  const std::vector<float> p = wn::softmax(result.out.logits).to_vector();
  const std::vector<std::int32_t> expert = result.out.routings[block].expert.to_vector();
  const std::vector<bool> dropped = result.out.routings[block].dropped();
  const auto K = static_cast<std::size_t>(result.out.routings[block].K);
  const std::size_t size = static_cast<std::size_t>(data.rows * data.columns);
  const std::size_t tokens = expert.size() / K / data.labels.size();
  std::vector<support::Digit> digits;
  for (const bool show_right : {false, true})
    for (std::size_t i = 0; i < data.labels.size() && digits.size() < 24; ++i) {
      if ((result.predicted[i] == data.labels[i]) != show_right) continue;
      support::Digit digit;
      digit.rows = data.rows, digit.columns = data.columns, digit.patch = patch;
      for (std::size_t j = 0; j < size; ++j)
        digit.pixels.push_back(
            static_cast<std::uint8_t>(std::lround(127.5f * (data.pixels[i * size + j] + 1))));
      digit.label = data.labels[i], digit.prediction = result.predicted[i];
      digit.probability = p[i * 10 + static_cast<std::size_t>(result.predicted[i])];
      for (std::size_t t = 1; t < tokens; ++t)  // token 0 is the class token
        digit.expert.push_back(dropped[(i * tokens + t) * K] ? -1 : expert[(i * tokens + t) * K]);
      digits.push_back(digit);
    }
  return digits;
}

void write_report(const Run& run, const Options& options, const Trained& trained,
                  const support::LabelledImages& data, const Evaluation& result) {
  const wn::VisionConfig& config = trained.model.config();
  const wn::EncoderConfig& encoder = config.encoder;
  support::Report report;
  report.title = "A WideNet reads handwritten digits";
  report.subtitle = "One attention, one router and one set of experts, shared by all blocks; "
                    "each block has LayerNorms of its own.";
  report.summary = {{options.validate ? "validation accuracy" : "test accuracy",
                     percent(result.accuracy)},
                    {"images tested", std::to_string(data.count)},
                    {"parameters", support::grouped(double(trained.model.num_parameters()))}};
  if (trained.seconds > 0 && !options.resume)
    report.summary.push_back({"training time", support::fixed(trained.seconds, 0) + " s"});
  report.configuration = {
      {"image", std::to_string(config.image_height) + " x " + std::to_string(config.image_width)},
      {"patch", std::to_string(config.patch) + " x " + std::to_string(config.patch)},
      {"width D", std::to_string(encoder.width)},
      {"heads H", std::to_string(encoder.heads)},
      {"blocks L", std::to_string(encoder.blocks)},
      {"experts E", std::to_string(encoder.experts)},
      {"choices per token K", std::to_string(encoder.top_k)},
      {"expert width F", std::to_string(encoder.expert_hidden)},
      {"capacity factor", std::to_string(encoder.capacity_factor.numerator) + "/" +
                              std::to_string(encoder.capacity_factor.denominator)},
      {"steps", std::to_string(options.steps)},
      {"batch", std::to_string(options.batch)},
      {"seed", std::to_string(options.seed)}};
  report.loss = {curve(run.metrics(), "loss", "training", 0)};
  report.balance_loss = {curve(run.metrics(), "balance_loss", "training", 1)};
  report.dropped = {curve(run.metrics(), "dropped", "training", 2)};
  report.accuracy = {curve(run.metrics(), "accuracy", "training", 0),
                     {options.validate ? "validation" : "test",
                      {double(options.steps)}, {result.accuracy}, 3, false}};
  for (const auto& routing : result.out.routings) {
    report.load.emplace_back();
    for (const std::int32_t load : routing.load.to_vector())
      report.load.back().push_back(double(load) / double(routing.N * routing.K));
    report.dropped_per_block.push_back(routing.dropped_fraction());
  }
  report.confusion = result.confusion;
  report.routing_block = encoder.blocks / 2;
  report.digits = gallery(data, result, static_cast<std::size_t>(report.routing_block),
                          config.patch);
  support::write_report(run.report(), report);
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
    const Run run{options.seeds == 1 ? options.out : options.out + "/seed" + std::to_string(seed)};
    std::filesystem::create_directories(run.folder);
    const Trained trained = train(options, training, run, seed);
    if (!trained.is_finished) return 0;
    const Evaluation result = evaluate(trained.model, testing);
    accuracies.push_back(result.accuracy);
    std::cout << "seed " << seed << ": " << percent(result.accuracy) << " of " << testing.count
              << (options.validate ? " validation" : " test") << " digits are read correctly";
    if (!options.resume)
      std::cout << ", after " << std::fixed << std::setprecision(0) << trained.seconds << " s";
    std::cout << ".\n";
    if (options.seeds == 1) print_confusion(result.confusion);
    write_report(run, options, trained, testing, result);
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
    return demo(parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
