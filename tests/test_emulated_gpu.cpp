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

// Each pair: what a GPU need not survive, and the nearest thing that is right.
TEST_CASE("emulated GPU: an access that a GPU need not survive is an error") {
  const wn::Buffer<float> buffer = wn::Buffer<float>::zeros(100);
  float* const x = buffer.data();
  const auto is_fatal = [](const auto& launch) {
    return is_deadly([&] { launch(), cudaDeviceSynchronize(); });
  };

  SUBCASE("of the host's memory") {
    float local = 0;
    const std::vector<float> global(1);
    for (const float* from : {&local, const_cast<float*>(global.data())})
      CHECK(is_fatal([&] { wn::for_each(1, [=](wn::Index i) { x[i] = *from; }); }));
    CHECK(!is_fatal([&] { wn::for_each(1, [=](wn::Index i) { x[i] = local; }); }));
  }
  SUBCASE("beyond the end of a buffer, though the pool's block is larger") {
    const auto write_all = [=](wn::Index n) { wn::for_each(n, [=](wn::Index i) { x[i] = 1; }); };
    CHECK(is_fatal([&] { write_all(101); }));
    CHECK(!is_fatal([&] { write_all(100); }));
    CHECK(is_fatal([&] {
      const wn::Buffer<float> y(100);
      wn::gemm(false, false, 11, 10, 1, x, 1, x, 10, 0.0f, y.data(), 10);
    }));
  }
  SUBCASE("of a buffer that is gone") {
    CHECK(is_fatal([&] {
      const float* const gone = wn::Buffer<float>::zeros(7).data();
      wn::for_each(1, [=](wn::Index i) { x[i] = gone[i]; });
    }));
  }
  SUBCASE("reading what nobody has written") {
    const auto copy = [=](bool is_zero, wn::Index i) {
      { const wn::Buffer<float> before = wn::Buffer<float>::zeros(10); }
      const wn::Buffer<float> y(10);  // in the same memory
      if (is_zero) y.set_zero();
      const float* const from = y.data();
      wn::for_each(1, [=](wn::Index) { x[i] = from[i]; });
    };
    CHECK(is_fatal([&] { copy(false, 3); }));
    CHECK(!is_fatal([&] { copy(true, 3); }));
  }
  SUBCASE("races between warps") {
    const auto write = [=](wn::Index step) {
      wn::for_each_row(3, 1, [=](wn::Index row, wn::Team team) {
        if (team.first()) x[row * step] = 1;
      });
    };
    const auto read = [=](wn::Index ahead) {
      wn::for_each(64, [=](wn::Index i) { x[i] = x[(i + ahead) % 64]; });
    };
    CHECK(is_fatal([&] { write(0); }));
    CHECK(!is_fatal([&] { write(1); }));
    CHECK(is_fatal([&] { read(32); }));
    CHECK(!is_fatal([&] { read(0); }));
    CHECK(!is_fatal([&] { write(1), write(1), read(0); }));  // launches are in order
  }
  SUBCASE("races between lanes, of which only barriers keep them") {
    enum class Between { nothing, vote, barrier };
    const auto exchange = [=](Between between, bool writes_first) {
      wn::for_each_row(1, 1, [=](wn::Index, wn::Team) {
        const unsigned lane = threadIdx.x, next = (lane + 1) % 32;
        writes_first ? x[lane] = 1 : x[32 + lane] = x[next];
        if (between == Between::vote) __ballot_sync(~0u, true);
        if (between == Between::barrier) __syncwarp();
        writes_first ? x[32 + lane] = x[next] : x[lane] = 1;
      });
    };
    for (const bool writes_first : {true, false}) {
      CHECK(is_fatal([&] { exchange(Between::nothing, writes_first); }));
      CHECK(is_fatal([&] { exchange(Between::vote, writes_first); }));
      CHECK(!is_fatal([&] { exchange(Between::barrier, writes_first); }));
    }
  }
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

TEST_CASE("CUDA: slots that are given are filled after all are cleared") {
  const wn::Index n = 90, E = 3, C = 40;
  std::vector<std::int32_t> expert, slot, choice_of_slot(E * C, -1);
  for (std::int32_t i = 0; i < n; ++i) {
    expert.push_back(i % 3);
    slot.push_back(i < 6 ? -1 : C - i / 3);  // from the last slot down; two are dropped
    if (slot.back() >= 0)
      choice_of_slot[static_cast<std::size_t>(expert.back() * C + slot.back())] = i;
  }
  wn::Buffer<std::int32_t> choices(E * C), load(E), kept(E);
  wn::kernel::replay_slots(choices.data(), load.data(), kept.data(),
                           wn::Buffer<std::int32_t>(expert).data(),
                           wn::Buffer<std::int32_t>(slot).data(), n, E, C);
  CHECK(choices.to_vector() == choice_of_slot);
  CHECK(load.to_vector() == std::vector<std::int32_t>{30, 30, 30});
  CHECK(kept.to_vector() == std::vector<std::int32_t>{28, 28, 28});
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
