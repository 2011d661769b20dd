// Trains a WideNet on random images in 25 lines: the program of README.
#include "widenet.hpp"

#include <cstdio>

namespace wn = widenet;

int main() {
  const wn::Rng rng(42);
  const wn::Tensor<float> images = wn::Tensor<float>::randn({32, 1, 8, 8}, rng);
  std::vector<std::int32_t> labels;
  for (std::int32_t i = 0; i < 32; ++i) labels.push_back(i % 10);

  const wn::VisionConfig config = wn::VisionConfig::toy();
  const wn::VisionModel<float> model(config, rng);
  wn::AdamW<float> optimizer(model.parameters(), 1e-3);
  for (int step = 0; step <= 300; ++step) {
    const auto out = model.forward(images, wn::Training{rng, step});
    const auto loss = wn::cross_entropy(out.logits, labels) + 0.01 * out.balance_loss;
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    if (step % 100 == 0) std::printf("step %3d  loss %.2f\n", step, double(loss.item()));
  }
}
