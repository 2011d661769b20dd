// Tests for chapter 3, shapes and memory.
#include "check.hpp"

using namespace widenet;

namespace {

template <class T>
std::string text(const T& value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

Index total(const MemoryUse& use) { return use.in_use + use.cached; }

/// A toy model that trains on batches of random images.
struct Trainer {
  VisionModel<float> model{VisionConfig::toy(), Rng(1)};
  AdamW<float> optimizer{model.parameters(), 1e-3};

  void step(Index t, Index batch_size) {
    const auto images = check::normal<float>({batch_size, 1, 8, 8}, t);
    std::vector<std::int32_t> labels;
    for (Index b = 0; b < batch_size; ++b) labels.push_back(static_cast<std::int32_t>(b % 10));
    const auto out = model.forward(images, Training{Rng(2), t});
    const auto loss = total_loss(cross_entropy(out.logits, labels), out.balance_loss);
    optimizer.zero_grad();
    loss.backward();
    clip_global_norm(model.parameters(), 1);
    optimizer.step();
  }
};

}  // namespace

TEST_CASE("memory: a shape knows its extents, rows and text") {
  const Shape shape = {5, 3, 2};
  CHECK(shape.rank() == 3);
  CHECK(shape.num_values() == 30);
  CHECK(shape[0] == 5);
  CHECK(shape[2] == 2);
  CHECK(shape.last() == 2);
  CHECK(shape.num_rows() == 15);
  CHECK(shape.with_last(7) == Shape{5, 3, 7});
  CHECK(shape.extents() == std::vector<Index>{5, 3, 2});
  CHECK(text(shape) == "(5, 3, 2)");
  CHECK(text(Shape{4}) == "(4)");
}

TEST_CASE("memory: the empty shape is that of a scalar") {
  CHECK(Shape{}.rank() == 0);
  CHECK(Shape{}.num_values() == 1);
  CHECK(Shape{}.last() == 1);
  CHECK(Shape{}.num_rows() == 1);
  CHECK(text(Shape{}) == "()");
}

TEST_CASE("memory: an extent may be 0") {
  CHECK(Shape{3, 0}.num_values() == 0);
  CHECK(Shape{3, 0}.num_rows() == 0);
  CHECK(Shape{0, 3}.num_values() == 0);
  CHECK(Tensor<float>(Shape{3, 0}).to_vector().empty());
}

TEST_CASE("memory: shapes are equal if all extents are") {
  CHECK(Shape{2, 3} == Shape(std::vector<Index>{2, 3}));
  CHECK(Shape{2, 3} != Shape{3, 2});
  CHECK(Shape{2, 3} != Shape{2, 3, 1});
  CHECK(Shape{} != Shape{1});
}

TEST_CASE("memory: errors of shapes") {
  CHECK_THROWS_WITH_AS((Shape{2, -1, 3}),
                       "widenet: Shape: extents must not be negative; got (2, -1, 3)", ShapeError);
  const Index large = Index(1) << 31;
  CHECK((Shape{large, large}.num_values()) == Index(1) << 62);
  CHECK_THROWS_WITH_AS(
      (Shape{large, large, 2}),
      "widenet: Shape: the number of values must fit 63 bits; got (2147483648, 2147483648, 2)",
      ShapeError);
  CHECK_NOTHROW(Shape{std::numeric_limits<Index>::max()});
  CHECK_THROWS_AS((Shape{std::numeric_limits<Index>::max(), 2}), ShapeError);
}

TEST_CASE("memory: rational numbers are equal by value") {
  CHECK(Rational{6, 5} == Rational{12, 10});
  CHECK_FALSE(Rational{6, 5} == Rational{5, 6});
  CHECK(Rational{} == Rational{1, 1});
  CHECK(text(Rational{6, 5}) == "6/5");
}

TEST_CASE("memory: copies of a buffer share the values, clones do not") {
  const Buffer<float> a(std::vector<float>{1, 2, 3});
  CHECK(a.size() == 3);
  CHECK_FALSE(a.is_shared());
  const Buffer<float> b = a, c = a.clone();
  CHECK(a.is_shared());
  CHECK(b.data() == a.data());
  CHECK(c.data() != a.data());
  a.assign({4, 5, 6});
  CHECK(b.to_vector() == std::vector<float>{4, 5, 6});
  CHECK(c.to_vector() == std::vector<float>{1, 2, 3});
  a.set_zero();
  CHECK(b.to_vector() == std::vector<float>{0, 0, 0});
  CHECK(Buffer<float>::zeros(2).to_vector() == std::vector<float>{0, 0});
  CHECK(Buffer<float>(0).data() == nullptr);
  CHECK(Buffer<float>(0).to_vector().empty());
  CHECK_THROWS_WITH_AS(a.assign({1, 2}), "widenet: Buffer: assign needs 3 values; got 2",
                       ShapeError);
}

TEST_CASE("memory: a buffer that was moved from is empty") {
  Buffer<float> a(std::vector<float>{1, 2, 3});
  const Buffer<float> b = std::move(a);
  CHECK(b.to_vector() == std::vector<float>{1, 2, 3});
  CHECK(a.size() == 0);
  CHECK(a.to_vector().empty());
  CHECK(a.clone().size() == 0);
}

TEST_CASE("memory: a tensor is as large as its shape says") {
  CHECK_THROWS_WITH_AS(check::tensor({2, 3}, {1, 2}),
                       "widenet: Tensor: (2, 3) needs 6 values; got 2", ShapeError);
}

TEST_CASE("memory: size classes are multiples of 64 bytes that waste at most 1/8") {
  const auto size_class = detail::Pool::size_class;
  CHECK(size_class(0) == 64);
  CHECK(size_class(1) == 64);
  CHECK(size_class(64) == 64);
  CHECK(size_class(65) == 128);
  CHECK(size_class(1024) == 1024);
  CHECK(size_class(1025) == 9 * 128);
  CHECK(size_class(2048) == 2048);
  CHECK(size_class(2049) == 9 * 256);
  std::size_t previous = 0;
  for (std::size_t bytes = 449; bytes < 1000000; bytes += 61) {
    const std::size_t size = size_class(bytes);
    REQUIRE(size % 64 == 0);
    REQUIRE(size >= bytes);
    REQUIRE(8 * (size - bytes) <= size);
    REQUIRE(size_class(size) == size);
    REQUIRE(size >= previous);
    previous = size;
  }
}

TEST_CASE("memory: a buffer reuses the block of one of its size class") {
  release_cached_memory();
  const float* block = nullptr;
  {
    const Buffer<float> a(100);
    block = a.data();
    CHECK(reinterpret_cast<std::uintptr_t>(block) % 64 == 0);
  }
  const MemoryUse before = memory_use();
  const Buffer<float> b(97);  // 388 bytes and 400 bytes both need 448
  CHECK(b.data() == block);
  const Buffer<float> c(97);
  CHECK(c.data() != block);
  const MemoryUse after = memory_use();
  CHECK(after.num_allocations == before.num_allocations + 1);
  CHECK(after.in_use == before.in_use + 2 * 448);
  CHECK(after.cached == before.cached - 448);
}

TEST_CASE("memory: the cache can be released") {
  { const Buffer<float> a(1000), b(2000); }
  CHECK(memory_use().cached > 0);
  const Index in_use = memory_use().in_use;
  release_cached_memory();
  CHECK(memory_use().cached == 0);
  CHECK(memory_use().in_use == in_use);
  CHECK(memory_use().peak_in_use == in_use);
  const Buffer<float> c(16);
  CHECK(memory_use().peak_in_use == in_use + 64);
}

TEST_CASE("memory: old sizes leave the cache before it grows beyond 5/4 of the peak") {
  release_cached_memory();
  const Index before = memory_use().in_use;
  for (Index size = 1000; size < 40000; size += 500) {  // every size needs blocks of its own
    { const Buffer<float> a(size), b(size); }
    const MemoryUse use = memory_use();
    REQUIRE(4 * total(use) <= 5 * use.peak_in_use);
    REQUIRE(use.in_use == before);
  }
}

TEST_CASE("memory: after two steps training allocates nothing") {
  Trainer trainer;
  trainer.step(/*t=*/0, /*batch_size=*/7);  // makes the gradients of the parameters
  trainer.step(1, 7);                       // starts with them
  const MemoryUse second = memory_use();
  for (Index t = 2; t < 6; ++t) trainer.step(t, 7);
  CHECK(memory_use().num_allocations == second.num_allocations);
  CHECK(memory_use().in_use == second.in_use);
}

TEST_CASE("memory: 200 batches of varying length need little more than the longest of them") {
  Trainer().step(/*t=*/0, /*batch_size=*/13);  // makes what gemm keeps for the next product
  release_cached_memory();
  const Index before = memory_use().in_use;
  {
    Trainer trainer;
    trainer.step(0, 13);
    trainer.step(1, 13);
    const Index in_use = memory_use().in_use, peak = memory_use().peak_in_use;
    for (Index t = 2; t < 202; ++t) {
      trainer.step(t, 1 + static_cast<Index>(Rng(3).word(t) % 13));
      const MemoryUse use = memory_use();
      REQUIRE(use.in_use == in_use);
      REQUIRE(use.peak_in_use == peak);
      REQUIRE(4 * total(use) <= 5 * peak);
    }
  }
  CHECK(memory_use().in_use == before);
}

TEST_CASE("memory: what has more bytes than 62 bits count is refused") {
  CHECK_THROWS_AS(Buffer<double>(Index(1) << 61), ShapeError);  // 2^64 bytes
  CHECK_THROWS_AS(Tensor<double>(Shape{Index(1) << 30, (Index(1) << 31) + 1}), ShapeError);
  CHECK_THROWS_AS(Buffer<float>(-1), ShapeError);
}

#if defined(__SANITIZE_ADDRESS__) && !WIDENET_CUDA
TEST_CASE("memory: the address sanitizer sees where a buffer ends, though its block is larger") {
  const float* gone = nullptr;
  for (const Index size : {3, 64, 300}) {
    const Buffer<float> buffer(size);
    gone = buffer.data();
    CHECK(!__asan_address_is_poisoned(buffer.data() + size - 1));
    CHECK(__asan_address_is_poisoned(buffer.data() + size));
  }
  CHECK(__asan_address_is_poisoned(gone));
}
#endif

// The address sanitizer ends a program that asks for too much.
#if defined(__SANITIZE_ADDRESS__)
#  define HAS_ADDRESS_SANITIZER
#elif defined(__has_feature)
#  if __has_feature(address_sanitizer)
#    define HAS_ADDRESS_SANITIZER
#  endif
#endif

#ifndef HAS_ADDRESS_SANITIZER
TEST_CASE("memory: a buffer that does not fit is an error, and the pool goes on") {
  const Buffer<float> a(16);
  try {
    const Buffer<float> huge(Index(1) << 55);
    FAIL("2^57 bytes cannot be had");
  } catch (const Error& error) {
    const std::string expected = "widenet: memory: a buffer must fit; got 144115188075855872 bytes "
                                 "asked, " + std::to_string(memory_use().in_use) + " in use, and ";
    CHECK(std::string(error.what()).substr(0, expected.size()) == expected);
  }
  CHECK_NOTHROW(Buffer<float>(16));
}
#endif
