// Times whole training steps (forward, backward, AdamW, fp32) of one configuration.
//
//   train_step                                                       all, one and two threads
//   train_step CONFIG THREADS [--seconds S] [--set NAME=VALUE]...    one JSON line
//   train_step CONFIG THREADS --evaluate [--batch B]                 the same for evaluation
//   train_step CONFIG THREADS --compare FILE     against a step that the PyTorch peer exported
//
// NAME is one of experts, top_k, blocks, batch, hidden.

#include "configs.hpp"
#include "peak.hpp"
#include "widenet.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>
#ifdef _OPENMP
#  include <omp.h>
#endif

namespace {

using namespace bench;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double resident_mb() {  // the largest so far
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) / 1024;
}

void print_timing(const Config& config, int threads, bool evaluates, const std::vector<double>& ms,
                  const std::vector<double>& share, const std::vector<double>& peaks, double kept,
                  double operations, double before_mb, double loss) {
  const double middle = median(ms);
  std::printf(
      "{\"config\": \"%s\", \"threads\": %d, \"mode\": \"%s\", \"experts\": %td, \"top_k\": %td, "
      "\"blocks\": %td, \"batch\": %td, \"steps\": %zu, \"ms\": %.3f, \"min_ms\": %.3f, "
      "\"tokens_per_second\": %.0f, \"sequences_per_second\": %.1f, \"gflop\": %.4f, "
      "\"gflops\": %.1f, \"peak_gflops\": %.1f, \"percent_of_peak\": %.1f, "
      "\"peak_memory_mb\": %.1f, \"before_model_mb\": %.1f, \"tensor_memory_mb\": %.1f, "
      "\"kept_fraction\": %.4f, \"loss\": %.5f}\n",
      config.name.c_str(), threads, evaluates ? "evaluate" : "train", config.encoder().experts,
      config.encoder().top_k, config.encoder().blocks, config.batch, ms.size(), middle,
      *std::min_element(ms.begin(), ms.end()), double(config.tokens()) / middle * 1e3,
      double(config.batch) / middle * 1e3, operations * 1e-9, operations / middle * 1e-6,
      median(peaks), median(share), resident_mb(), before_mb,
      double(memory_use().peak_in_use) / (1 << 20), kept, loss);
}

void time_steps(const Config& config, int threads, bool evaluates, double seconds) {
  const double before_mb = resident_mb();
  Step step(config);
  double kept = 1;
  Index count = 0;
  const auto run = [&] {
    if (!evaluates) {
      kept = step.run(count++);
      return;
    }
    const NoGrad no_graph;
    const auto result = step.forward(nullptr);
    kept = 0;
    for (const auto& routing : result.routings)
      kept += (1 - routing.dropped_fraction()) / double(result.routings.size());
  };
  run(), run();
  std::vector<double> ms, peaks, share;
  double kept_sum = 0;
  for (const double begin = now(); ms.size() < 3 || now() - begin < seconds;) {
    const double peak_before = widenet::peak::gflops(threads), start = now();
    run();
    const double elapsed = now() - start, peak_after = widenet::peak::gflops(threads);
    ms.push_back(elapsed * 1e3);
    peaks.push_back((peak_before + peak_after) / 2);
    kept_sum += kept;
    const double operations = useful_operations(config, kept) / (evaluates ? 3 : 1);
    share.push_back(100 * operations / elapsed * 1e-9 / peaks.back());
  }
  const double kept_mean = kept_sum / double(ms.size());
  print_timing(config, threads, evaluates, ms, share, peaks, kept_mean,
               useful_operations(config, kept_mean) / (evaluates ? 3 : 1), before_mb,
               step.last_loss());
}

/// Prints how far a float result is from the reference, relative to its largest value.
double report(const std::string& name, const std::vector<float>& ours,
              const std::vector<float>& theirs) {
  const Difference d = compare(ours, theirs);
  std::printf("  %-44s %.1e of its largest value, cosine 1 - %.0e\n", name.c_str(), d.max_relative,
              1 - d.cosine);
  return d.max_relative;
}

/// Runs the exported step with its weights, inputs and noise, and compares what comes out. Where a
/// choice is so close that rounding decides it, the two may differ: this counts such tokens.
int compare_with(const Config& config, const std::string& path) {
  const SafeTensors file = read_safetensors(path);
  Step step(config);
  step.load(file);
  Replay<float> noise;
  for (Index i = 0; i < config.encoder().blocks; ++i)
    noise.noise.push_back(file.values<float>("noise." + std::to_string(i)));
  const Step::Result result = step.forward(nullptr, noise);
  std::printf("%s\n", config.name.c_str());
  std::size_t num_flips = 0, num_slots = 0;
  for (std::size_t i = 0; i < result.routings.size(); ++i) {
    const auto expert = result.routings[i].expert.to_vector();
    const auto slot = result.routings[i].slot.to_vector();
    const auto their_expert = file.values<std::int32_t>("expert." + std::to_string(i));
    const auto their_slot = file.values<std::int32_t>("slot." + std::to_string(i));
    for (std::size_t c = 0; c < expert.size(); ++c) {
      num_flips += expert[c] != their_expert[c] ? 1u : 0u;
      num_slots += slot[c] != their_slot[c] ? 1u : 0u;
    }
  }
  std::printf("  choices that differ: %zu experts, %zu slots\n", num_flips, num_slots);
  result.loss.backward();
  double worst = 0;
  worst = std::max(worst, report("loss", {result.loss.item()}, file.values<float>("loss")));
  worst = std::max(worst, report("balance_loss", {result.balance_loss.item()},
                                 file.values<float>("balance_loss")));
  worst = std::max(worst,
                   report("logits", result.logits.to_vector(), file.values<float>("logits")));
  for (const Parameter<float>& p : step.parameters()) {
    const std::vector<float> gradient = p.tensor.gradient().to_vector();
    detail::for_each_stored(p, [&](const std::string& name, const Shape& shape, Index offset) {
      if (file.tensors.count("grad." + name) == 0) return;
      const std::vector<float> ours(gradient.begin() + offset,
                                    gradient.begin() + offset + shape.num_values());
      const double error = report("grad." + name, ours, file.values<float>("grad." + name));
      if (name != "shared.attn.k.bias") worst = std::max(worst, error);  // zero but for rounding
    });
  }
  const bool agrees = num_flips == 0 && num_slots == 0 && worst < 1e-3;
  std::printf("  %s: largest difference %.1e\n", agrees ? "agrees" : "DISAGREES", worst);
  return agrees ? 0 : 1;
}

void set(Config& config, const std::string& assignment) {
  const std::size_t equals = assignment.find('=');
  require<ValueError>(equals != std::string::npos, "train_step: --set must be NAME=VALUE; got ",
                      assignment);
  const std::string name = assignment.substr(0, equals);
  const Index value = std::stol(assignment.substr(equals + 1));
  EncoderConfig& e = config.is_vision ? config.vision.encoder : config.language.encoder;
  if (name == "experts") e.experts = value;
  else if (name == "top_k") e.top_k = value;
  else if (name == "blocks") e.blocks = value;
  else if (name == "batch") config.batch = value;
  else if (name == "hidden") e.expert_hidden = e.dense_hidden = value;
  else fail<ValueError>("train_step: --set knows experts, top_k, blocks, batch, hidden; got ",
                        name);
}

void use_threads([[maybe_unused]] int threads) {
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
}

int run(int argc, char** argv) {
  std::vector<Config> configs = all_configs();
  if (argc == 1) {
    for (const Config& config : configs)
      for (const int threads : {1, 2}) {
        use_threads(threads);
        time_steps(config, threads, false, 1);
      }
    return 0;
  }
  require<ValueError>(argc >= 3, "train_step: CONFIG and THREADS must be given");
  const auto found = std::find_if(configs.begin(), configs.end(),
                                  [&](const Config& c) { return c.name == argv[1]; });
  require<ValueError>(found != configs.end(), "train_step: CONFIG must be one of digits1 digits2 "
                      "mnist cifar mlm wideB; got ", argv[1]);
  const int threads = std::atoi(argv[2]);
  require<ValueError>(threads > 0, "train_step: THREADS must be positive; got ", argv[2]);
  use_threads(threads);
  bool evaluates = false;
  double seconds = 2;
  std::string compared;
  for (int i = 3; i < argc; ++i) {
    const std::string option = argv[i];
    const bool has_value = i + 1 < argc;
    if (option == "--evaluate") evaluates = true;
    else if (option == "--seconds" && has_value) seconds = std::atof(argv[++i]);
    else if (option == "--set" && has_value) set(*found, argv[++i]);
    else if (option == "--batch" && has_value) found->batch = std::atol(argv[++i]);
    else if (option == "--compare" && has_value) compared = argv[++i];
    else fail<ValueError>("train_step: unknown or incomplete option ", option);
  }
  if (!compared.empty()) return compare_with(*found, compared);
  time_steps(*found, threads, evaluates, seconds);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
