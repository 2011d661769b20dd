// Trains a toy WideNet up to step TO, from the checkpoint FILE if there is one, and leaves FILE:
//   go_on FILE TO
#include "widenet.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace wn = widenet;

int main(int argc, char** argv) {
  if (argc != 3) return std::fputs("go_on: FILE and TO must be given\n", stderr), 2;
  const wn::Rng rng(11);
  const wn::Tensor<float> images = wn::Tensor<float>::randn({4, 1, 8, 8}, rng);
  wn::VisionConfig config = wn::VisionConfig::toy();
  config.encoder.dropout = 0.1;
  const wn::VisionModel<float> model(config, rng);
  wn::AdamW<float> optimizer(model.parameters(), 1e-3);

  wn::TrainingState state;
  if (std::ifstream(argv[1]).good()) state = wn::load_checkpoint(argv[1], model, optimizer);
  for (; state.step < std::atoi(argv[2]); ++state.step) {
    const auto out = model.forward(images, wn::Training{rng, state.step});
    const auto loss = wn::total_loss(wn::cross_entropy(out.logits, {3, 1, 4, 1}), out.balance_loss);
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
  }
  wn::save_checkpoint(argv[1], model, optimizer, state);
}
