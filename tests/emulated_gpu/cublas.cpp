// The arithmetic of the emulated cuBLAS.

#include "cublas_v2.h"

#include <cmath>
#include <cstring>

namespace emulated_gpu {
namespace {

template <class T>
void multiply(const Product& p, const T* A, const T* B, T* C) {
  const unsigned unseen = unseen_bits(p.compute);
  const std::int64_t shape = (31 * p.m) ^ (17 * p.n) ^ (7 * p.k) ^ p.count;
  const std::int64_t chains = chooses_by_shape() ? 1 + shape % 5 : 1;
  for (std::int64_t j = 0; j < p.n; ++j)
    for (std::int64_t i = 0; i < p.m; ++i) {
      const auto chain = [&](std::int64_t first, T sum) {
        for (std::int64_t l = first; l < p.k; l += chains)
          sum = std::fma(rounded(p.op_b ? B[j + l * p.ldb] : B[l + j * p.ldb], unseen),
                         rounded(p.op_a ? A[l + i * p.lda] : A[i + l * p.lda], unseen), sum);
        return sum;
      };
      T& c = C[i + j * p.ldc];
      T sum = chain(0, p.beta == 0 ? T(0) : static_cast<T>(p.beta) * c);
      for (std::int64_t first = 1; first < chains; ++first) sum += chain(first, T(0));
      c = sum;
    }
}

/// Columns of `rows` values each, `ld` values apart, all of which are read or written.
template <class T, class Access>
void watch_columns(const T* x, std::int64_t rows, std::int64_t columns, std::int64_t ld,
                   const Access& access) {
  for (std::int64_t j = 0; j < columns; ++j)
    access(x + j * ld, static_cast<std::size_t>(rows) * sizeof(T));
}

template <class T>
void watch_and_multiply(const Product& p, const T* A, const T* B, T* C) {
  watch_columns(A, p.op_a ? p.k : p.m, p.op_a ? p.m : p.k, p.lda, watch::read);
  watch_columns(B, p.op_b ? p.n : p.k, p.op_b ? p.k : p.n, p.ldb, watch::read);
  if (p.beta != 0) watch_columns(C, p.m, p.n, p.ldc, watch::read);
  watch_columns(C, p.m, p.n, p.ldc, watch::write);
  multiply(p, A, B, C);
}

}  // namespace

float rounded(float x, unsigned unseen) {
  if (unseen == 0 || !std::isfinite(x)) return x;
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits += (1u << (unseen - 1)) - 1 + (bits >> unseen & 1);
  bits &= ~0u << unseen;
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}

void Product::run(const void* a, const void* b, void* c) const {
  if (type == CUDA_R_64F)
    watch_and_multiply(*this, static_cast<const double*>(a), static_cast<const double*>(b),
                       static_cast<double*>(c));
  else
    watch_and_multiply(*this, static_cast<const float*>(a), static_cast<const float*>(b),
                       static_cast<float*>(c));
}

}  // namespace emulated_gpu
