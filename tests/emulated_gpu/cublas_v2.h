// The three products of cuBLAS that the CUDA build of widenet.hpp calls, on the emulated GPU. Every
// element is one chain of fused multiply-adds over k, as in the CPU build, so that both builds give
// the same bits; a real cuBLAS chooses another order.

#ifndef WIDENET_TESTS_EMULATED_GPU_CUBLAS_V2_H
#define WIDENET_TESTS_EMULATED_GPU_CUBLAS_V2_H

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_64F = 1 };
enum cublasComputeType_t {
  CUBLAS_COMPUTE_32F,
  CUBLAS_COMPUTE_32F_FAST_16BF,
  CUBLAS_COMPUTE_32F_FAST_TF32,
  CUBLAS_COMPUTE_64F
};
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };
using cublasHandle_t = int*;

inline const char* cublasGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "success" : "invalid value";
}
inline cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  static int any;
  *handle = &any;
  return CUBLAS_STATUS_SUCCESS;
}

namespace emulated_gpu {

/// Column-major: C (m, n) = op(A) (m, k) op(B) (k, n) + beta C; C is not read if beta is 0.
template <class T>
void multiply(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
              const void* a, std::int64_t lda, const void* b, std::int64_t ldb, T beta, void* c,
              std::int64_t ldc) {
  const T* const A = static_cast<const T*>(a);
  const T* const B = static_cast<const T*>(b);
  T* const C = static_cast<T*>(c);
  for (std::int64_t j = 0; j < n; ++j)
    for (std::int64_t i = 0; i < m; ++i) {
      T sum = beta == T(0) ? T(0) : beta * C[i + j * ldc];
      for (std::int64_t p = 0; p < k; ++p)
        sum = std::fma(transpose_b ? B[j + p * ldb] : B[p + j * ldb],
                       transpose_a ? A[p + i * lda] : A[i + p * lda], sum);
      C[i + j * ldc] = sum;
    }
}

struct Product {
  cublasOperation_t op_a, op_b;
  std::int64_t m, n, k, lda, ldb, ldc;
  cudaDataType_t type;
  double beta;

  bool is_valid() const {  // what cuBLAS demands of leading dimensions
    return m >= 0 && n >= 0 && k >= 0 && lda >= std::max<std::int64_t>(1, op_a ? k : m) &&
           ldb >= std::max<std::int64_t>(1, op_b ? n : k) && ldc >= std::max<std::int64_t>(1, m);
  }
  void run(const void* a, const void* b, void* c) const {
    if (type == CUDA_R_64F)
      multiply<double>(op_a, op_b, m, n, k, a, lda, b, ldb, beta, c, ldc);
    else
      multiply<float>(op_a, op_b, m, n, k, a, lda, b, ldb, static_cast<float>(beta), c, ldc);
  }
};

inline double scalar(const void* x, cudaDataType_t type) {
  return type == CUDA_R_64F ? *static_cast<const double*>(x)
                            : static_cast<double>(*static_cast<const float*>(x));
}
inline Product product(cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m,
                       std::int64_t n, std::int64_t k, const void* alpha, cudaDataType_t type,
                       std::int64_t lda, std::int64_t ldb, const void* beta, std::int64_t ldc) {
  if (scalar(alpha, type) != 1.0) die("cuBLAS: only alpha = 1 is emulated");
  return {op_a, op_b, m, n, k, lda, ldb, ldc, type, scalar(beta, type)};
}

}  // namespace emulated_gpu

inline cublasStatus_t cublasGemmEx_64(cublasHandle_t, cublasOperation_t op_a,
                                      cublasOperation_t op_b, std::int64_t m, std::int64_t n,
                                      std::int64_t k, const void* alpha, const void* a,
                                      cudaDataType_t type, std::int64_t lda, const void* b,
                                      cudaDataType_t, std::int64_t ldb, const void* beta, void* c,
                                      cudaDataType_t, std::int64_t ldc, cublasComputeType_t,
                                      cublasGemmAlgo_t) {
  const auto p = emulated_gpu::product(op_a, op_b, m, n, k, alpha, type, lda, ldb, beta, ldc);
  if (!p.is_valid()) return CUBLAS_STATUS_INVALID_VALUE;
  emulated_gpu::Device::instance().enqueue([=] { p.run(a, b, c); });
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasGemmBatchedEx_64(
    cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m, std::int64_t n,
    std::int64_t k, const void* alpha, const void* const* a, cudaDataType_t type, std::int64_t lda,
    const void* const* b, cudaDataType_t, std::int64_t ldb, const void* beta, void* const* c,
    cudaDataType_t, std::int64_t ldc, std::int64_t count, cublasComputeType_t, cublasGemmAlgo_t) {
  const auto p = emulated_gpu::product(op_a, op_b, m, n, k, alpha, type, lda, ldb, beta, ldc);
  if (!p.is_valid() || count < 0) return CUBLAS_STATUS_INVALID_VALUE;
  emulated_gpu::Device::instance().enqueue([=] {  // the pointers lie on the device
    emulated_gpu::in_order(static_cast<unsigned>(count),
                           [&](unsigned i) { p.run(a[i], b[i], c[i]); });
  });
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasGemmStridedBatchedEx_64(
    cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m, std::int64_t n,
    std::int64_t k, const void* alpha, const void* a, cudaDataType_t type, std::int64_t lda,
    long long stride_a, const void* b, cudaDataType_t, std::int64_t ldb, long long stride_b,
    const void* beta, void* c, cudaDataType_t, std::int64_t ldc, long long stride_c,
    std::int64_t count, cublasComputeType_t, cublasGemmAlgo_t) {
  const auto p = emulated_gpu::product(op_a, op_b, m, n, k, alpha, type, lda, ldb, beta, ldc);
  if (!p.is_valid() || count < 0) return CUBLAS_STATUS_INVALID_VALUE;
  const std::size_t bytes = type == CUDA_R_64F ? 8 : 4;
  emulated_gpu::Device::instance().enqueue([=] {
    emulated_gpu::in_order(static_cast<unsigned>(count), [&](unsigned i) {
      const auto at = [&](const void* x, long long stride) {
        return static_cast<const char*>(x) + std::ptrdiff_t(i) * stride * std::ptrdiff_t(bytes);
      };
      p.run(at(a, stride_a), at(b, stride_b), const_cast<char*>(at(c, stride_c)));
    });
  });
  return CUBLAS_STATUS_SUCCESS;
}

#endif
