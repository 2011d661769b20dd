// What the test files share: tensors of known or random values, comparisons, numbers of threads.
#ifndef WIDENET_TESTS_CHECK_HPP
#define WIDENET_TESTS_CHECK_HPP

#include "widenet.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>
#ifdef _OPENMP
#  include <omp.h>
#endif

namespace check {

using namespace widenet;

inline Tensor<double> tensor(const Shape& shape, const std::vector<double>& values) {
  return {shape, values};
}

/// Normal random values; another stream gives other values.
template <class T = double>
Tensor<T> normal(const Shape& shape, Index stream) {
  return Tensor<T>::randn(shape, Rng(7).at_step(stream));
}

/// |a - b| <= 1e-12 (1 + |b|), element by element.
inline void close(const std::vector<double>& values, const std::vector<double>& expected) {
  REQUIRE(values.size() == expected.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    INFO("element ", i, ": ", values[i], " should be ", expected[i]);
    CHECK(std::fabs(values[i] - expected[i]) <= 1e-12 * (1 + std::fabs(expected[i])));
  }
}
inline void close(const Tensor<double>& x, const std::vector<double>& expected) {
  close(x.to_vector(), expected);
}

/// Every gradient of f, to 1e-7 of the largest in its tensor.
inline void gradients(const std::function<Tensor<double>()>& f,
                      const std::vector<Tensor<double>>& inputs) {
  const GradReport report = gradcheck(f, inputs);
  INFO(report.where);
  CHECK(report.max_error < 1e-7);
}

/// x with a backward that is off by one part in a thousand.
inline Tensor<double> spoiled(const Tensor<double>& x) {
  const Tensor<double> y(x.shape(), x.value());
  y.record("spoiled", {x}, [x](const Buffer<double>& dy) {
    kernel::accumulate(x.sink(), dy.data(), 1.001, x.size());
  });
  return y;
}

/// For each input: were the backward of f scaled by 1.001, then `gradients` would fail.
inline void gradients_bite(const std::function<Tensor<double>()>& f,
                           const std::vector<Tensor<double>>& inputs) {
  for (const Tensor<double>& input : inputs)
    CHECK(gradcheck([&f] { return spoiled(f()); }, {input}).max_error > 0.9e-3);
}

/// Leaves NaN in the memory that the next operations get: values that nobody writes show up.
inline void poison_memory() {
  std::vector<Buffer<double>> blocks;
  std::size_t bytes = 64;
  for (; bytes <= 1 << 16; bytes = detail::Pool::size_class(bytes + 1))
    for (int copy = 0; copy < 6; ++copy) {
      blocks.emplace_back(static_cast<Index>(bytes / sizeof(double)));
      kernel::fill(blocks.back().data(), std::nan(""), blocks.back().size());
    }
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// Whether results of products that differ in shape agree where they should: in all bits, but on a
/// real GPU, where cuBLAS chooses the order of a sum by the shape, to rounding in some layers only.
template <class T>
bool same_products(const std::vector<T>& a, const std::vector<T>& b) {
#ifdef WIDENET_TESTS_EMULATED_GPU_CUBLAS_V2_H
  const bool is_ordered = !emulated_gpu::chooses_by_shape();
#else
  const bool is_ordered = WIDENET_CUDA == 0;
#endif
  if (is_ordered) return same_bits(a, b);
  return a.size() == b.size() &&
         compare(a, b).max_relative < 1000 * double(std::numeric_limits<T>::epsilon());
}

/// Calls f with 1, 2, 3 and 4 threads; whatever it returns must have the same bits each time.
template <class F>
void same_bits_for_all_threads(F f) {
#ifdef _OPENMP
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto expected = f();
  for (const int num_threads : {2, 3, 4}) {
    omp_set_num_threads(num_threads);
    INFO(num_threads, " threads");
    CHECK(same_bits(f(), expected));
  }
  omp_set_num_threads(before);
#else
  CHECK(same_bits(f(), f()));
#endif
}

/// One thread for as long as it lives: many operations on small tensors are faster so.
class OneThread {
 public:
#ifdef _OPENMP
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;

 public:
#else
  OneThread() {}
#endif
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;
};

template <class T>
void append(std::vector<T>& all, const std::vector<T>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

}  // namespace check

#endif  // WIDENET_TESTS_CHECK_HPP
