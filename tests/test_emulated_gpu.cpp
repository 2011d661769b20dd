// The emulated GPU, and what it shows of the CUDA build: empty in every other build.
#include "widenet.hpp"

#if WIDENET_CUDA && defined(WIDENET_TESTS_EMULATED_GPU_CUDA_RUNTIME_H)

#include <doctest/doctest.h>

#include <csignal>
#include <cstdio>
#include <string>
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

TEST_CASE("emulated GPU: tensor cores round the factors, and shapes choose the order of a sum") {
  const float x = 1 + 0x1p-9f, y = 1 + 0x1p-12f;
  CHECK(emulated_gpu::rounded(x, emulated_gpu::unseen_bits(CUBLAS_COMPUTE_32F_FAST_TF32)) == x);
  CHECK(emulated_gpu::rounded(y, emulated_gpu::unseen_bits(CUBLAS_COMPUTE_32F_FAST_TF32)) == 1);
  CHECK(emulated_gpu::rounded(x, emulated_gpu::unseen_bits(CUBLAS_COMPUTE_32F_FAST_16BF)) == 1);
  CHECK(emulated_gpu::rounded(y, emulated_gpu::unseen_bits(CUBLAS_COMPUTE_32F)) == y);
}

TEST_CASE("CUDA: a failure names the call, the place and the reason") {
  const auto is_told = [](const char* call, const char* reason, const auto& f) {
    std::string text;
    try {
      f();
    } catch (const wn::CudaError& error) {
      text = error.what();
    }
    INFO(text);
    const std::string begin = std::string("widenet: CUDA: ") + call;
    CHECK(text.rfind(begin, 0) == 0);
    CHECK(text.find(" must succeed at widenet.hpp:") != std::string::npos);
    CHECK(text.find(std::string("; got ") + reason) != std::string::npos);
  };
  is_told("cudaGetLastError()", "9 (invalid configuration argument)",
          [] { wn::for_each(-300, [](wn::Index) {}); });
  const wn::Buffer<float> x(6);
  is_told("cublasGemmEx_64(", "7 (an invalid value)", [&] {
    wn::gemm(false, false, 2, 3, 1, x.data(), 1, x.data(), 2, 0.0f, x.data(), 3);
  });
  emulated_gpu::fail_next(cudaErrorIllegalAddress);
  is_told("cudaMemcpy(", "700 (an illegal memory access was encountered)",
          [&] { x.to_vector(); });
  { const wn::Buffer<float> unused(12345); }
  emulated_gpu::fail_next(cudaErrorIllegalAddress);
  is_told("cudaFree(block)", "700 (", [] { wn::release_cached_memory(); });
  wn::release_cached_memory();  // the pool goes on
  CHECK(wn::memory_use().cached == 0);
}

TEST_CASE("CUDA: buffers without values ask nothing of the GPU") {
  const wn::Buffer<float> none = wn::Buffer<float>::zeros(0);
  CHECK(none.clone().to_vector().empty());
  CHECK_NOTHROW(none.assign({}));
}

TEST_CASE("CUDA: uploads are queued, and none overwrites what another has yet to copy") {
  for (const std::size_t size : {std::size_t(1), std::size_t(70000)}) {
    std::vector<wn::Buffer<std::int32_t>> all;
    for (std::int32_t i = 0; i < 20; ++i)
      all.emplace_back(std::vector<std::int32_t>(size, i));
    for (std::int32_t i = 0; i < 20; ++i)
      CHECK(all[static_cast<std::size_t>(i)].to_vector() == std::vector<std::int32_t>(size, i));
  }
}

TEST_CASE("CUDA: products of floats keep 24 bits, of doubles 53") {
  const auto times_one = [](auto x) {
    using Matrix = wn::Tensor<decltype(x)>;
    return wn::matmul(Matrix::full({1, 1}, x), Matrix::full({1, 1}, 1)).item();
  };
  const bool sees_all_bits = WIDENET_TF32 == 0 && WIDENET_BF16 == 0;
  CHECK((times_one(1 + 0x1p-23f) == 1 + 0x1p-23f) == sees_all_bits);
  CHECK(times_one(1 + 0x1p-52) == 1 + 0x1p-52);
}

TEST_CASE("CUDA: only what begins at multiples of 16 bytes is rounded for speed") {
  float* const x = nullptr;
  CHECK(wn::detail::is_aligned(wn::Matrix<float>{x, 8, 80, 4}));
  CHECK(!wn::detail::is_aligned(wn::Matrix<float>{x + 1, 8, 80, 4}));
  CHECK(!wn::detail::is_aligned(wn::Matrix<float>{x, 6, 80, 4}));
  CHECK(!wn::detail::is_aligned(wn::Matrix<float>{x, 8, 78, 4}));
  CHECK(!wn::detail::is_aligned(wn::Matrix<float>{x, 8, 80, 6}));
  const auto q = wn::Tensor<float>::randn({2, 8, 12}, wn::Rng(1));
  CHECK_NOTHROW(wn::attention(q, q, q, 2).to_vector());  // heads of 6: the emulated one would stop
}

TEST_CASE("CUDA: long queues are in the order of the choices") {
  const wn::Index n = 1000, E = 3, C = 300;
  std::vector<std::int32_t> expert, slot;
  std::int32_t queued[E] = {};
  for (wn::Index i = 0; i < n; ++i) {
    expert.push_back(static_cast<std::int32_t>(i * i * 7 % 11 % E));
    const std::int32_t place = queued[expert.back()]++;
    slot.push_back(place < C ? place : -1);
  }
  wn::Buffer<std::int32_t> found(n), choices(E * C), load(E), kept(E);
  wn::kernel::assign_slots(found.data(), choices.data(), load.data(), kept.data(),
                           wn::Buffer<std::int32_t>(expert).data(), nullptr, 1, n, E, C, C);
  CHECK(found.to_vector() == slot);
  CHECK(load.to_vector() == std::vector<std::int32_t>(queued, queued + E));
}

TEST_CASE("CUDA: the products of all heads are two pieces of work") {
  const auto q = wn::Tensor<float>::randn({3, 5, 8}, wn::Rng(1));
  wn::attention(q, q, q, 2);
  const long before = emulated_gpu::Device::instance().num_queued;
  wn::attention(q, q, q, 2);
  CHECK(emulated_gpu::Device::instance().num_queued - before == 2 + 1 + 2);  // scores, softmax, y
}

TEST_CASE("CUDA: a step in steady state waits for nothing but the loss that is read") {
  wn::VisionConfig config = wn::VisionConfig::toy();
  config.encoder.dropout = 0.1;
  const wn::Rng rng(1);
  const wn::VisionModel<float> model(config, rng);
  const auto images = wn::Tensor<float>::randn({8, 1, 8, 8}, rng);
  const std::vector<std::int32_t> labels{0, 1, 2, 3, 4, 5, 6, 7};
  const auto train = [&](auto& optimizer, bool reads_loss) {
    const emulated_gpu::Device& gpu = emulated_gpu::Device::instance();
    cudaDeviceSynchronize();
    const long before = gpu.num_waits + gpu.num_event_waits;
    for (int step = 0; step < 4; ++step) {
      const auto out = model.forward(images, wn::Training{rng, step});
      const auto loss = wn::total_loss(wn::cross_entropy(out.logits, labels), out.balance_loss);
      optimizer.zero_grad();
      loss.backward();
      wn::clip_global_norm(model.parameters(), 1.0);
      optimizer.step();
      if (reads_loss) loss.item();
    }
    return gpu.num_waits + gpu.num_event_waits - before;
  };
  wn::AdamW<float> adamw(model.parameters(), 1e-3);
  wn::LAMB<float> lamb(model.parameters(), 1e-3);
  train(adamw, true), train(lamb, true);  // memory is allocated
  CHECK(train(adamw, false) == 0);
  CHECK(train(lamb, false) == 0);
  CHECK(train(adamw, true) == 4);
}

#endif
