// Times the parts of a training step by themselves, in the shapes of the six configurations.
//
//   micro [THREADS [CONFIG...]] [--seconds S]     one JSON line per part, direction, configuration
//
// Rates count what the operation is for: the products of kept choices, the values of a result, or,
// for the optimiser, the bytes it has to read and write (weight, two moments; the gradient once).

#include "configs.hpp"
#include "measure.hpp"
#include "peak.hpp"
#include "widenet.hpp"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace {

using namespace bench;

/// How much a call does, and in which unit a second's worth of it is given.
struct Work {
  double amount;
  std::string unit;
  double per_second(double seconds) const { return amount / seconds * 1e-9; }
};
Work operations(double count) { return {count, "GFLOP/s"}; }
Work values(double count) { return {count, "Gvalue/s"}; }
Work bytes(double count) { return {count, "GB/s"}; }

class Meter {
 public:
  Meter(std::string config, int threads, double seconds)
      : config_(std::move(config)), threads_(threads), seconds_(seconds) {}

  /// Prints the median of at least three calls of `run`, each after one of `prepare`, which is not
  /// timed.
  void time(const std::string& part, const char* direction, Work work,
            const std::function<void()>& run, const std::function<void()>& prepare = [] {}) const {
    for (int i = 0; i < 2; ++i) prepare(), run();
    const double peak_before = widenet::peak::gflops(threads_), begin = now();
    std::vector<double> seconds;
    while (seconds.size() < 3 || now() - begin < seconds_) {
      prepare();
      const double start = now();
      run();
      seconds.push_back(now() - start);
    }
    const double peak = (peak_before + widenet::peak::gflops(threads_)) / 2;
    const double rate = work.per_second(median(seconds));
    const std::string share = work.unit == operations(0).unit ? std::to_string(100 * rate / peak)
                                                              : "null";
    std::printf("{\"config\": \"%s\", \"threads\": %d, \"part\": \"%s\", \"direction\": \"%s\", "
                "\"calls\": %zu, \"us\": %.1f, \"rate\": %.3f, \"unit\": \"%s\", "
                "\"percent_of_peak\": %s, \"peak_gflops\": %.1f}\n",
                config_.c_str(), threads_, part.c_str(), direction, seconds.size(),
                median(seconds) * 1e6, rate, work.unit.c_str(), share.c_str(), peak);
    std::fflush(stdout);
  }

  /// Forward without a graph; then backward alone, to all of `leaves`, with a random dy.
  void time_operation(const std::string& part, Work work, Work backward_work,
                      const std::vector<Tensor<float>>& leaves,
                      const std::function<Tensor<float>()>& operation) const {
    time(part, "forward", work, [&] {
      const NoGrad no_graph;
      operation();
    });
    for (const Tensor<float>& leaf : leaves) leaf.require_gradient();
    Tensor<float> y = operation();
    const Tensor<float> dy = Tensor<float>::randn(y.shape(), Rng(3));
    time(part, "backward", backward_work, [&] { y.backward(dy.value()); },
         [&] {
           for (const Tensor<float>& leaf : leaves) leaf.zero_gradient();
           y = operation();
         });
  }

 private:
  std::string config_;
  int threads_;
  double seconds_;
};

Tensor<float> random(const Shape& shape, float deviation = 1) {
  return Tensor<float>::randn(shape, Rng(2), deviation);
}

/// y = x w with x (M, K) and w (K, N), and the two products of its backward.
void time_product(const Meter& meter, const std::string& part, Index M, Index N, Index K) {
  const Tensor<float> x = random({M, K}), w = random({K, N}), y = random({M, N});
  const Work work = operations(2.0 * double(M) * double(N) * double(K));
  meter.time(part, "y", work, [&] {
    gemm(false, false, M, N, K, x.data(), K, w.data(), N, 0.0f, y.data(), N);
  });
  meter.time(part, "dx", work, [&] {
    gemm(false, true, M, K, N, y.data(), N, w.data(), N, 0.0f, x.data(), K);
  });
  meter.time(part, "dw", work, [&] {  // beta = 1, as in all blocks but the last
    gemm(true, false, K, N, M, x.data(), K, y.data(), N, 1.0f, w.data(), N);
  });
}

void time_products(const Meter& meter, const Config& config) {
  const EncoderConfig& e = config.encoder();
  const Index choices = config.tokens() * e.top_k / e.experts;  // of one expert
  time_product(meter, "projection", config.tokens(), e.width, e.width);
  time_product(meter, "expert in", choices, e.expert_hidden, e.width);
  time_product(meter, "expert out", choices, e.width, e.expert_hidden);
}

void time_rows(const Meter& meter, const Config& config) {
  const EncoderConfig& e = config.encoder();
  const Index B = config.batch, T = config.tokens_per_sequence(), N = B * T, D = e.width;
  {
    const Tensor<float> q = random({B, T, D}), k = random({B, T, D}), v = random({B, T, D});
    const double products = 4.0 * double(N) * double(T) * double(D);
    meter.time_operation("attention", operations(products), operations(2 * products), {q, k, v},
                         [&] { return attention(q, k, v, e.heads); });
  }
  {
    const Tensor<float> x = random({N, D}), gamma = random({D}), beta = random({D});
    const Work work = values(double(x.size()));
    meter.time_operation("LayerNorm", work, work, {x, gamma, beta},
                         [&] { return layer_norm(x, gamma, beta, e.layer_norm_eps); });
  }
  {
    const Tensor<float> x = random({B * e.heads * T, T});
    const Work work = values(double(x.size()));
    meter.time_operation("softmax", work, work, {x}, [&] { return softmax(x); });
  }
  const Tensor<float> x = random({N * e.top_k, e.expert_hidden});
  const Work work = values(double(x.size()));
  meter.time_operation("GELU", work, work, {x}, [&] { return gelu(x); });
}

void time_mixture(const Meter& meter, const Config& config) {
  const EncoderConfig& e = config.encoder();
  const Index N = config.tokens(), D = e.width, E = e.experts;
  const Tensor<float> x = random({N, D}), w = random({D, E}, 0.02f);  // evenly loaded experts
  const auto routed = [&] {
    const Buffer<float> noise = router_noise<float>(e.conventions.noise, N, E, Rng(4));
    return route(router_logits(x, w), {e.top_k, e.capacity_factor, e.conventions}, noise);
  };
  meter.time_operation("router", values(double(N * E)), values(double(N * E)), {x, w},
                       [&] { return routed().gate; });
  const Routing<float> r = [&] {
    const NoGrad no_graph;
    return routed();
  }();
  const double kept = (1 - r.dropped_fraction()) * double(N * e.top_k);
  const Work moved = values(kept * double(D));
  meter.time_operation("dispatch", moved, moved, {x}, [&] { return dispatch(x, r); });

  const Tensor<float> slots = dispatch(x, r).detached(), gate = r.gate.detached();
  ParameterSet<float> parameters{Rng(5)};
  const Experts<float> layer(parameters, "experts", E, D, e.expert_hidden);
  const double products = kept * 4 * double(D) * double(e.expert_hidden);
  meter.time_operation("experts", operations(products), operations(2 * products),
                       {slots, layer.fc1_weight, layer.fc1_bias, layer.fc2_weight, layer.fc2_bias},
                       [&] { return layer(slots, r, e.gelu, {}, false); });
  meter.time_operation("combine", moved, moved, {slots, gate},
                       [&] { return combine(slots, gate, r); });
}

void time_optimiser(const Meter& meter, const Config& config) {
  const Index count = config.is_vision ? count_parameters(config.vision)
                                       : count_parameters(config.language);
  const Tensor<float> w = random({count}), g = random({count});
  w.require_gradient();
  w.add_gradient(g.value());
  AdamW<float> optimizer({{"w", w}}, 1e-5);
  const double bytes_per_parameter = 7 * sizeof(float);
  meter.time("AdamW", "step", bytes(bytes_per_parameter * double(count)),
             [&] { optimizer.step(); });
}

int run(int argc, char** argv) {
  int threads = 2;
  double seconds = 0.06;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--seconds" && i + 1 < argc) seconds = std::atof(argv[++i]);
    else if (i == 1) threads = std::atoi(argv[i]);
    else names.push_back(argument);
  }
  require<ValueError>(threads > 0, "micro: THREADS must be positive; got ", threads);
  use_threads(threads);
  for (const Config& config : all_configs()) {
    if (!names.empty() && std::find(names.begin(), names.end(), config.name) == names.end())
      continue;
    const Meter meter(config.name, threads, seconds);
    time_products(meter, config);
    time_rows(meter, config);
    time_mixture(meter, config);
    time_optimiser(meter, config);
  }
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
