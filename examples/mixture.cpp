// A mixture of experts in a training loop of your own: its five operations, no model around them.
#include "widenet.hpp"

#include <cstdio>

namespace wn = widenet;

int main() {
  // To learn: x[1] where x[0] is positive, else -x[2].
  const wn::Index N = 96, D = 6, E = 4, F = 16;
  const wn::Rng rng(1);
  const wn::Tensor<float> x = wn::Tensor<float>::randn({N, D}, rng);
  const std::vector<float> values = x.to_vector();
  std::vector<float> wanted;
  for (std::size_t n = 0; n < values.size(); n += D)
    wanted.push_back(values[n] > 0 ? values[n + 1] : -values[n + 2]);
  const wn::Tensor<float> target({N, 1}, wanted);

  wn::ParameterSet<float> parameters(rng);
  const wn::Router<float> router(parameters, "router", D, E);
  const wn::Experts<float> experts(parameters, "experts", E, D, F);
  const wn::Linear<float> head(parameters, "head", D, 1);
  wn::AdamW<float> optimizer(parameters.list(), 1e-2);

  const wn::RouteOptions options;  // two choices, capacity factor 6/5, the paper's conventions
  for (int step = 0; step <= 300; ++step) {
    const wn::Rng draws = wn::Training{rng, step}.stream(wn::Purpose::router_noise, 0);
    const auto noise = wn::router_noise<float>(options.conventions.noise, N, E, draws);
    const auto routing = wn::route(wn::router_logits(x, router.weight), options, noise);
    const auto results = experts(wn::dispatch(x, routing), routing);
    const auto y = head(x + wn::combine(results, routing.gate, routing));
    const auto error = y + -1 * target;
    const auto loss = 1.0 / N * wn::sum(wn::multiply(error, error));
    optimizer.zero_grad();
    (loss + 0.01 * wn::balance_loss(routing)).backward();
    optimizer.step();
    if (step % 100 == 0)
      std::printf("step %3d  mean squared error %.3f  dropped %2.0f %%\n", step,
                  double(loss.item()), 100 * routing.dropped_fraction());
  }
}
