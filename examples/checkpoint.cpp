// Stop, save, load and go on: the weights have the same bits as if training had never stopped.
#include "widenet.hpp"

#include <cstdio>
#include <cstring>

namespace wn = widenet;

namespace {

const wn::Rng rng(7);
const wn::Tensor<float> images = wn::Tensor<float>::randn({16, 1, 8, 8}, rng);
const std::vector<std::int32_t> labels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5};

void train(const wn::VisionModel<float>& model, wn::AdamW<float>& optimizer, int from, int to) {
  for (int step = from; step < to; ++step) {
    const auto out = model.forward(images, wn::Training{rng, step});
    const auto loss = wn::total_loss(wn::cross_entropy(out.logits, labels), out.balance_loss);
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
  }
}

}  // namespace

int main() {
  const char* const path = "checkpoint_example.safetensors";
  const wn::VisionConfig config = wn::VisionConfig::toy();

  const wn::VisionModel<float> straight(config, rng);
  wn::AdamW<float> optimizer(straight.parameters(), 1e-3);
  train(straight, optimizer, 0, 10);
  wn::save_checkpoint(path, straight, optimizer, {10, rng.seed(), {{"author", "an example"}}});
  train(straight, optimizer, 10, 20);

  const wn::VisionModel<float> resumed(config, wn::Rng(12345));  // other initial weights
  wn::AdamW<float> fresh(resumed.parameters(), 1e-3);
  const wn::TrainingState state = wn::load_checkpoint(path, resumed, fresh);
  std::printf("loaded step %td, seed %llu, note \"%s\"\n", state.step,
              static_cast<unsigned long long>(state.seed), state.notes.at("author").c_str());
  train(resumed, fresh, static_cast<int>(state.step), 20);

  bool is_same = true;
  for (std::size_t i = 0; i < straight.parameters().size(); ++i) {
    const std::vector<float> a = straight.parameters()[i].tensor.to_vector();
    const std::vector<float> b = resumed.parameters()[i].tensor.to_vector();
    is_same = is_same && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }
  std::printf("after 20 steps all weights have the same bits: %s\n", is_same ? "yes" : "no");

  const wn::SafeTensors file = wn::read_safetensors(path);
  std::printf("the file holds %zu tensors, among them\n", file.tensors.size());
  for (const char* name : {"shared.attn.q.weight", "shared.moe.experts.3.fc1.weight",
                           "blocks.2.norm1.weight", "adamw.m.head.weight"}) {
    const wn::Shape& shape = file.at(name).shape;
    std::printf("  %-34s (%td%s%s)\n", name, shape[0], shape.rank() > 1 ? ", " : "",
                shape.rank() > 1 ? std::to_string(shape[1]).c_str() : "");
  }

  try {  // a file that was cut off is refused, and says where
    std::FILE* const cut = std::fopen(path, "wb");
    std::fwrite("\x10\0\0\0\0\0\0\0{\"a\":", 1, 13, cut);
    std::fclose(cut);
    wn::load_checkpoint(path, resumed, fresh);
  } catch (const wn::IoError& error) {
    std::printf("%s\n", error.what());
  }
  std::remove(path);
}
