// The emulated GPU, and what it shows of the CUDA build: empty in every other build.
#include "widenet.hpp"

#if WIDENET_CUDA && defined(WIDENET_TESTS_EMULATED_GPU_CUDA_RUNTIME_H)

#include <doctest/doctest.h>

#include <csignal>
#include <cstdio>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

namespace wn = widenet;

namespace {

/// Whether f() kills its process.
template <class F>
bool is_deadly(const F& f) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    for (int signal : {SIGABRT, SIGSEGV}) std::signal(signal, SIG_DFL);
    f();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status);
}

}  // namespace

TEST_CASE("emulated GPU: the host cannot touch device memory") {
  const wn::Buffer<float> x(std::vector<float>{1, 2, 3});
  CHECK(x.to_vector() == std::vector<float>{1, 2, 3});
  CHECK(is_deadly([&] { std::printf("%g", double(x.data()[0])); }));
  CHECK(is_deadly([&] { x.data()[0] = 1; }));
  CHECK(!is_deadly([&] { x.to_vector(); }));
}

TEST_CASE("emulated GPU: lanes that wait at different places are an error") {
  const auto vote_if = [](auto is_voter) {
    emulated_gpu::launch_rows(1, 32, [=] {
      if (is_voter(threadIdx.x)) __ballot_sync(~0u, true);
    });
    cudaDeviceSynchronize();
  };
  CHECK(is_deadly([&] { vote_if([](unsigned lane) { return lane < 31; }); }));
  CHECK(!is_deadly([&] { vote_if([](unsigned) { return true; }); }));
}

TEST_CASE("emulated GPU: new memory is NaN") {
  float* block = nullptr;
  float value = 0;
  REQUIRE(cudaMalloc(&block, sizeof(float)) == cudaSuccess);
  cudaMemcpy(&value, block, sizeof(float), cudaMemcpyDeviceToHost);
  CHECK(value != value);
  cudaFree(block);
}

TEST_CASE("CUDA: a training step in steady state copies nothing back but the loss that is read") {
  wn::VisionConfig config = wn::VisionConfig::toy();
  config.encoder.dropout = 0.1;
  const wn::Rng rng(1);
  const wn::VisionModel<float> model(config, rng);
  const auto images = wn::Tensor<float>::randn({8, 1, 8, 8}, rng);
  const std::vector<std::int32_t> labels{0, 1, 2, 3, 4, 5, 6, 7};
  const auto train = [&](auto& optimizer, bool reads_loss) {
    const long before = emulated_gpu::Device::instance().num_waits;
    for (int step = 0; step < 4; ++step) {
      const auto out = model.forward(images, wn::Training{rng, step});
      const auto loss = wn::total_loss(wn::cross_entropy(out.logits, labels), out.balance_loss);
      optimizer.zero_grad();
      loss.backward();
      wn::clip_global_norm(model.parameters(), 1.0);
      optimizer.step();
      if (reads_loss) loss.item();
    }
    return emulated_gpu::Device::instance().num_waits - before;
  };
  wn::AdamW<float> adamw(model.parameters(), 1e-3);
  wn::LAMB<float> lamb(model.parameters(), 1e-3);
  train(adamw, true), train(lamb, true);  // memory is allocated
  CHECK(train(adamw, false) == 0);
  CHECK(train(lamb, false) == 0);
  CHECK(train(adamw, true) == 4);
}

#endif
