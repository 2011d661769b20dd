// The three products of cuBLAS that the CUDA build of widenet.hpp calls, on the emulated GPU. Every
// element is one chain of fused multiply-adds over k, as in the CPU build, so that both builds give
// the same bits. A real cuBLAS chooses another order, and not the same for every shape: with
// EMULATED_BLAS=by_shape this one does so, too. Factors are rounded as the compute type says.

#ifndef WIDENET_TESTS_EMULATED_GPU_CUBLAS_V2_H
#define WIDENET_TESTS_EMULATED_GPU_CUBLAS_V2_H

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <string>

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_NOT_SUPPORTED = 15
};
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
  return status == CUBLAS_STATUS_SUCCESS         ? "success"
         : status == CUBLAS_STATUS_INVALID_VALUE ? "an invalid value"
                                                 : "not supported";
}
inline cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  static int any;
  *handle = &any;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void* workspace, std::size_t bytes) {
  const bool is_aligned = reinterpret_cast<std::size_t>(workspace) % 256 == 0;
  return workspace && bytes > 0 && is_aligned ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

namespace emulated_gpu {

inline bool chooses_by_shape() {
  const char* const order = std::getenv("EMULATED_BLAS");
  return order && std::string(order) == "by_shape";
}

/// How many of the 23 bits of a float's fraction tensor cores do not see.
inline unsigned unseen_bits(cublasComputeType_t compute) {
  return compute == CUBLAS_COMPUTE_32F_FAST_TF32   ? 13
         : compute == CUBLAS_COMPUTE_32F_FAST_16BF ? 16
                                                   : 0;
}
inline double rounded(double x, unsigned) { return x; }
float rounded(float x, unsigned unseen);  // to nearest, ties to even

/// Column-major: C (m, n) = op(A) (m, k) op(B) (k, n) + beta C; C is not read if beta is 0.
struct Product {
  cublasOperation_t op_a, op_b;
  std::int64_t m, n, k, lda, ldb, ldc, count;
  cudaDataType_t type;
  cublasComputeType_t compute;
  double beta;

  cublasStatus_t status() const {  // what cuBLAS demands of leading dimensions and types
    const auto at_least = [](std::int64_t ld, std::int64_t rows) { return ld >= 1 && ld >= rows; };
    const bool is_valid = m >= 0 && n >= 0 && k >= 0 && count >= 0 && at_least(lda, op_a ? k : m) &&
                          at_least(ldb, op_b ? n : k) && at_least(ldc, m);
    if (!is_valid) return CUBLAS_STATUS_INVALID_VALUE;
    return (type == CUDA_R_64F) == (compute == CUBLAS_COMPUTE_64F) ? CUBLAS_STATUS_SUCCESS
                                                                   : CUBLAS_STATUS_NOT_SUPPORTED;
  }
  void run(const void* a, const void* b, void* c) const;  // in cublas.cpp
};

inline double scalar(const void* x, cudaDataType_t type) {
  return type == CUDA_R_64F ? *static_cast<const double*>(x)
                            : static_cast<double>(*static_cast<const float*>(x));
}
inline Product product(cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m,
                       std::int64_t n, std::int64_t k, const void* alpha, cudaDataType_t type,
                       std::int64_t lda, std::int64_t ldb, const void* beta, std::int64_t ldc,
                       std::int64_t count, cublasComputeType_t compute) {
  if (scalar(alpha, type) != 1.0) die("cuBLAS: only alpha = 1 is emulated");
  return {op_a, op_b, m, n, k, lda, ldb, ldc, count, type, compute, scalar(beta, type)};
}
/// run(item) for every item, when the stream comes to it.
template <class Run>
cublasStatus_t enqueue(const Product& p, const Run& run) {
  if (p.status() == CUBLAS_STATUS_SUCCESS)
    Device::instance().enqueue([p, run] {
      watch::begin_launch("cuBLAS", nullptr, 0);
      blockDim.x = Warp::num_lanes, threadIdx.x = 0;
      in_order(static_cast<unsigned>(p.count), [&](unsigned i) {
        blockIdx.x = i;  // items are in no order, as blocks are not
        run(p, i);
      });
    });
  return p.status();
}

}  // namespace emulated_gpu

inline cublasStatus_t cublasGemmEx_64(cublasHandle_t, cublasOperation_t op_a,
                                      cublasOperation_t op_b, std::int64_t m, std::int64_t n,
                                      std::int64_t k, const void* alpha, const void* a,
                                      cudaDataType_t type, std::int64_t lda, const void* b,
                                      cudaDataType_t, std::int64_t ldb, const void* beta, void* c,
                                      cudaDataType_t, std::int64_t ldc, cublasComputeType_t compute,
                                      cublasGemmAlgo_t) {
  using emulated_gpu::Product;
  return emulated_gpu::enqueue(
      emulated_gpu::product(op_a, op_b, m, n, k, alpha, type, lda, ldb, beta, ldc, 1, compute),
      [=](const Product& p, unsigned) { p.run(a, b, c); });
}

inline cublasStatus_t cublasGemmBatchedEx_64(
    cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m, std::int64_t n,
    std::int64_t k, const void* alpha, const void* const* a, cudaDataType_t type, std::int64_t lda,
    const void* const* b, cudaDataType_t, std::int64_t ldb, const void* beta, void* const* c,
    cudaDataType_t, std::int64_t ldc, std::int64_t count, cublasComputeType_t compute,
    cublasGemmAlgo_t) {
  using emulated_gpu::Product;
  const auto begins_well = [=](const void* x, std::int64_t ld) {  // what fast kernels read at once
    return emulated_gpu::unseen_bits(compute) == 0 ||
           (reinterpret_cast<std::size_t>(x) % 16 == 0 && ld % 4 == 0);
  };
  return emulated_gpu::enqueue(  // the pointers lie on the device
      emulated_gpu::product(op_a, op_b, m, n, k, alpha, type, lda, ldb, beta, ldc, count, compute),
      [=](const Product& p, unsigned i) {
        for (const void* const* pointers : {a, b, const_cast<const void* const*>(c)})
          emulated_gpu::watch::read(pointers + i, sizeof(void*));
        if (!begins_well(a[i], lda) || !begins_well(b[i], ldb) || !begins_well(c[i], ldc))
          emulated_gpu::die("cuBLAS: a fast product reads a misaligned address");
        p.run(a[i], b[i], c[i]);
      });
}

inline cublasStatus_t cublasGemmStridedBatchedEx_64(
    cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, std::int64_t m, std::int64_t n,
    std::int64_t k, const void* alpha, const void* a, cudaDataType_t type, std::int64_t lda,
    long long stride_a, const void* b, cudaDataType_t, std::int64_t ldb, long long stride_b,
    const void* beta, void* c, cudaDataType_t, std::int64_t ldc, long long stride_c,
    std::int64_t count, cublasComputeType_t compute, cublasGemmAlgo_t) {
  using emulated_gpu::Product;
  const long long bytes = type == CUDA_R_64F ? 8 : 4;
  return emulated_gpu::enqueue(
      emulated_gpu::product(op_a, op_b, m, n, k, alpha, type, lda, ldb, beta, ldc, count, compute),
      [=](const Product& p, unsigned i) {
        const auto at = [&](const void* x, long long stride) {
          return static_cast<const char*>(x) + i * stride * bytes;
        };
        p.run(at(a, stride_a), at(b, stride_b), const_cast<char*>(at(c, stride_c)));
      });
}

#endif
