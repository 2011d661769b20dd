// Times whole training steps (forward, backward, AdamW, fp32) of one configuration; compiled with
// -DWIDENET_CUDA=1 those of a GPU, where THREADS is 1 and no peak is measured.
//
//   train_step                                                       all, one and two threads
//   train_step CONFIG THREADS [OPTION]...        one JSON line
//   train_step CONFIG THREADS --compare FILE     against a step that the PyTorch peer exported
//
//   --seconds S        how long to time, at least; 2 unless given
//   --steps N          how many steps to time, at least; 3 unless given
//   --set NAME=VALUE   another experts, top_k, blocks, batch or hidden; experts=0 is a dense model;
//                      recompute=1 keeps the inputs of blocks only
//   --evaluate         forward alone, without a graph
//   --load FILE        the weights and the batch that the PyTorch peer exported

#include "configs.hpp"
#include "measure.hpp"
#include "peak.hpp"
#include "widenet.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

using namespace bench;

constexpr double burst_seconds = 0.2;  // short steps run in a row for so long between two peaks

struct Options {
  int threads = 1;
  bool evaluates = false;
  double seconds = 2;
  std::size_t steps = 3;
  std::string loaded, compared;  // files
};

/// The means of what the steps gave; the loss of the last.
void print_timing(const Config& config, const Options& options, const std::vector<double>& ms,
                  const std::vector<double>& share, const std::vector<double>& peaks,
                  const Outcome& mean, double before_mb) {
  const double middle = median(ms), tensors_mb = double(memory_use().peak_in_use) / (1 << 20);
  const double operations = useful_operations(config, mean.kept, options.evaluates);
  const double padded = useful_operations(config, mean.rows(), options.evaluates);
  std::printf(
      "{\"config\": \"%s\", \"threads\": %d, \"mode\": \"%s\", \"experts\": %td, \"top_k\": %td, "
      "\"blocks\": %td, \"batch\": %td, \"recompute\": %s, \"steps\": %zu, \"ms\": %.3f, "
      "\"min_ms\": %.3f, "
      "\"tokens_per_second\": %.0f, \"sequences_per_second\": %.1f, \"gflop\": %.4f, "
      "\"padded_gflop\": %.4f, "
      "\"gflops\": %.1f, \"peak_gflops\": %.1f, \"percent_of_peak\": %.1f, "
      "\"peak_memory_mb\": %.1f, \"before_model_mb\": %.1f, \"tensor_memory_mb\": %.1f, "
      "\"kept_fraction\": %.4f, \"loss\": %.5f}\n",
      config.name.c_str(), options.threads, options.evaluates ? "evaluate" : "train",
      config.encoder().experts, config.encoder().top_k, config.encoder().blocks, config.batch,
      config.encoder().recompute_blocks ? "true" : "false", ms.size(), middle,
      *std::min_element(ms.begin(), ms.end()), double(config.tokens()) / middle * 1e3,
      double(config.batch) / middle * 1e3, operations * 1e-9, padded * 1e-9,
      operations / middle * 1e-6, median(peaks), median(share),
      WIDENET_CUDA ? tensors_mb : memory_mb("VmHWM"), WIDENET_CUDA ? 0 : before_mb, tensors_mb,
      mean.kept, mean.loss);
  std::fflush(stdout);
}

void time_steps(const Config& config, const Options& options) {
  const double before_mb = memory_mb("VmRSS");
  Step step(config);
  if (!options.loaded.empty()) {
    step.load(read_safetensors(options.loaded));
    restart_memory_peak();
  }
  Index count = 0;
  const auto run = [&] { return options.evaluates ? step.evaluate() : step.run(count++); };
  const auto peak = [&] { return WIDENET_CUDA ? 0 : widenet::peak::gflops(options.threads); };
  if (run().seconds < 1) run();  // from the third step on no memory is allocated
  if (WIDENET_CUDA) run(), run();
  std::vector<double> ms, peaks, share;
  Outcome mean{0, 0, 0, 0};
  for (const double begin = now(); ms.size() < options.steps || now() - begin < options.seconds;) {
    std::vector<double> gflops;  // of steps in a row, as in training: the peak stops between them
    const double peak_before = peak(), burst = now();
    do {
      const Outcome o = run();
      gflops.push_back(useful_operations(config, o.kept, options.evaluates) / o.seconds * 1e-9);
      ms.push_back(o.seconds * 1e3);
      mean.kept += o.kept, mean.slots += o.slots, mean.loss = o.loss;
    } while (now() - burst < burst_seconds);
    const double around = (peak_before + peak()) / 2;
    for (const double g : gflops) {
      peaks.push_back(around);
      share.push_back(WIDENET_CUDA ? 0 : 100 * g / around);
    }
  }
  mean.kept /= double(ms.size()), mean.slots /= double(ms.size());
  print_timing(config, options, ms, share, peaks, mean, before_mb);
}

double largest_of(const std::vector<float>& values) {
  double largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(double(value)));
  return largest;
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
      if (file.tensors.count("grad." + name) == 0) return;  // of a head that is not used
      const std::vector<float> ours(gradient.begin() + offset,
                                    gradient.begin() + offset + shape.num_values());
      const std::vector<float> theirs = file.values<float>("grad." + name);
      if (name == "shared.attn.k.bias") {  // zero but for rounding: softmax knows no common shift
        const double largest = std::max(largest_of(ours), largest_of(theirs)) /
                               largest_of(file.values<float>("grad.shared.attn.q.bias"));
        std::printf("  %-44s %.1e of that of q, instead of zero\n", name.c_str(), largest);
        worst = std::max(worst, largest);
        return;
      }
      worst = std::max(worst, report("grad." + name, ours, theirs));
    });
  }
  const bool agrees = num_flips == 0 && num_slots == 0 && worst < 1e-4;
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
  else if (name == "recompute") e.recompute_blocks = value != 0;
  else fail<ValueError>("train_step: --set knows experts, top_k, blocks, batch, hidden, recompute; "
                        "got ", name);
}

int run(int argc, char** argv) {
  std::vector<Config> configs = known_configs();
  Options options;
  if (argc == 1) {
    options.seconds = 1;
    for (const Config& config : all_configs())
      for (const int threads : {1, 2}) {
        use_threads(options.threads = threads);
        time_steps(config, options);
      }
    return 0;
  }
  require<ValueError>(argc >= 3, "train_step: CONFIG and THREADS must be given");
  const auto found = std::find_if(configs.begin(), configs.end(),
                                  [&](const Config& c) { return c.name == argv[1]; });
  require<ValueError>(found != configs.end(), "train_step: CONFIG must be one of digits1 digits2 "
                      "mnist cifar mlm wideB widenet_b; got ", argv[1]);
  options.threads = std::atoi(argv[2]);
  require<ValueError>(options.threads > 0, "train_step: THREADS must be positive; got ", argv[2]);
  use_threads(options.threads);
  for (int i = 3; i < argc; ++i) {
    const std::string option = argv[i];
    const bool has_value = i + 1 < argc;
    if (option == "--evaluate") options.evaluates = true;
    else if (option == "--seconds" && has_value) options.seconds = std::atof(argv[++i]);
    else if (option == "--steps" && has_value) options.steps = std::stoul(argv[++i]);
    else if (option == "--set" && has_value) set(*found, argv[++i]);
    else if (option == "--load" && has_value) options.loaded = argv[++i];
    else if (option == "--compare" && has_value) options.compared = argv[++i];
    else fail<ValueError>("train_step: unknown or incomplete option ", option);
  }
  require<ValueError>(options.steps > 0, "train_step: --steps must be positive");
  if (!options.compared.empty()) return compare_with(*found, options.compared);
  time_steps(*found, options);
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
