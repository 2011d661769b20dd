// widenet.hpp - mixture-of-experts transformers in one header, after the paper
// "Go Wider Instead of Deeper" (Xue et al., AAAI 2022, arXiv 2107.11817).
//
// GOALS        true       what the paper and the stated source say; every deviation is labelled
// (ranked)     legible    a student can read each chapter after those above it
//              checkable  every operation has its gradient checked, every error its text pinned
//              fast       ahead of PyTorch on the same machine
//
// QUICK START  a WideNet that learns from images of shape (B, channels, height, width):
//
//     namespace wn = widenet;
//     wn::VisionConfig config = wn::VisionConfig::toy();
//     wn::Rng rng(42);
//     wn::VisionModel<float> model(config, rng);
//     wn::AdamW<float> optimizer(model.parameters(), 1e-3f);
//     for (int step = 0; step < 300; ++step) {
//       const auto out  = model.forward(images, wn::Training{rng, step});
//       const auto loss = wn::cross_entropy(out.logits, labels) + 0.01f * out.balance_loss;
//       optimizer.zero_grad();
//       loss.backward();
//       optimizer.step();
//     }
//
//              g++ -std=c++17 -O3 -march=native -ffp-contract=off -fopenmp program.cpp
//
// CONTENTS     (search for "[4]" to jump; a chapter uses only the chapters above it)
//   [1] CONFIGURATION            version, switches, compiler, includes
//   [2] ERRORS                   error types, require
//   [3] SHAPES AND MEMORY        Index, Shape, pool, Buffer
//   [4] RANDOM NUMBERS           Philox, Rng, permutation
//   [5] BACKEND                  mathematics, Team, parallel loops, gemm
//   [6] KERNELS                  loops over elements and rows, each written once
//   [7] AUTOGRAD                 Tensor, its graph, NoGrad
//   [8] OPERATIONS               linear, layer_norm, gelu, softmax, attention, ...
//   [9] LAYERS                   Parameter, Linear, LayerNorm, Attention, FeedForward
//   [10] MIXTURE OF EXPERTS      Conventions, Routing, router, dispatch, experts, combine
//   [11] ENCODER                 blocks, sharing, individual LayerNorms
//   [12] FRONTENDS AND HEADS     patches, class token, pooling, classifier
//   [13] LOSSES AND METRICS      cross entropy, accuracy, divergence of the LayerNorms
//   [14] OPTIMISERS AND SCHEDULES  SGD, AdamW, LAMB, clipping, warm-up
//   [15] CHECKPOINTS             JSON, safetensors, save, load
//   [16] CHECKING                gradcheck, compare
//   [17] EPILOGUE                macros go, namespaces close
//
// NOTATION     one letter, one meaning, everywhere (but in gemm, M, N and K are those of BLAS)
//   B sequences in a batch   T tokens per sequence, class token included   N = B*T tokens
//   D width                  H heads, Dh = D/H                             L blocks
//   E experts                K experts selected per token                  C slots per expert
//   F hidden width of an expert   P patch side                             V vocabulary
//   Lower case is the index: token n, choice k, expert e, slot c, feature d. dx is the gradient of
//   x, x_n is row n of x. The paper writes N for our B, L for our T, C for the capacity factor and
//   B for our C.
//
// CONVENTIONS
//   Arrays are row-major, batch first. Weights are (in, out), so y = x w + b reads as written.
//   LayerNorm has eps inside the root and the biased variance. Masks are minus infinity. Gradients
//   accumulate. A kernel is written once, for CPU and GPU. Results have the same bits for any
//   number of threads; with -ffp-contract=off (nvcc: -fmad=false) also for any instruction set and
//   compiler. Errors are exceptions; nothing prints, exits or aborts.
//   [eq 4] marks an equation of the paper, [d softmax] the backward formula of the operation
//   softmax; `make equations` shows each beside its code and its test.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_HPP
#define WIDENET_HPP

// [1] CONFIGURATION ===============================================================================

#define WIDENET_VERSION "0.1.0"

#ifndef WIDENET_CUDA
#  define WIDENET_CUDA 0  // 1: tensors live on the GPU; compile with nvcc --extended-lambda
#endif
#ifndef WIDENET_TF32
#  define WIDENET_TF32 0  // 1: the GPU multiplies floats with 10 bits of mantissa, several times
#endif                    //    faster; 0: with all 24, the reference
#ifndef WIDENET_BF16
#  define WIDENET_BF16 0  // 1: the GPU rounds the factors to bfloat16 (8 bits) and adds in float
#endif
#ifndef WIDENET_EIGEN
#  define WIDENET_EIGEN 0  // 1: matrices are multiplied by Eigen, as an oracle for our own kernel;
#endif                     //    its bits depend on the instruction set
#ifndef WIDENET_NO_VECTORS
#  define WIDENET_NO_VECTORS 0  // 1: gemm does without vector intrinsics: very slow, the same bits
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#  error "widenet: -ffast-math reorders sums and breaks infinities; compile without it"
#endif

#if WIDENET_CUDA
#  ifdef CUDA_API_PER_THREAD_DEFAULT_STREAM
#    error "widenet: memory is reused in the order of one stream; no --default-stream per-thread"
#  endif
#  if WIDENET_TF32 && WIDENET_BF16
#    error "widenet: WIDENET_TF32 and WIDENET_BF16 are two roundings of the same factors; take one"
#  endif
// Objects for CPU and GPU, or of different products, never link by mistake.
#  if WIDENET_TF32
#    define WIDENET_ABI v0_1_cuda_tf32
#  elif WIDENET_BF16
#    define WIDENET_ABI v0_1_cuda_bf16
#  else
#    define WIDENET_ABI v0_1_cuda
#  endif
#  define WIDENET_KERNEL __device__                // marks what runs inside a kernel
#  define WIDENET_HOST_DEVICE __host__ __device__  // marks what runs inside and outside
#  include <cublas_v2.h>
#elif WIDENET_EIGEN
#  define WIDENET_ABI v0_1_eigen
#else
#  define WIDENET_ABI v0_1_cpu
#endif
#if !WIDENET_CUDA
#  define WIDENET_KERNEL
#  define WIDENET_HOST_DEVICE
#endif

#if defined(__GNUC__) && !defined(__clang__)
#  define WIDENET_INDEPENDENT _Pragma("GCC ivdep")  // no two steps of a loop touch one element
#else
#  define WIDENET_INDEPENDENT  // clang warns in the user's program where it cannot make use of it
#endif

#if defined(_OPENMP) && !WIDENET_CUDA
#  include <omp.h>  // omp_get_max_threads, omp_get_thread_num, omp_in_parallel
#  define WIDENET_PARALLEL_FOR_IF_FORK _Pragma("omp parallel for schedule(static) if(fork)")
#else
#  define WIDENET_PARALLEL_FOR_IF_FORK
#endif

#if !WIDENET_CUDA
// The vector registers that gemm uses. Code for x86 that is compiled without -march holds the AVX2
// kernels, too, and asks the processor before it runs them.
#define WIDENET_VECTOR_TARGET
#if WIDENET_EIGEN
#  define EIGEN_DONT_PARALLELIZE  // gemm has its own threads
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wconversion"
#  pragma GCC diagnostic ignored "-Wpedantic"
#  pragma GCC diagnostic ignored "-Wunused-variable"
#  pragma GCC diagnostic ignored "-Wsign-conversion"
#  pragma GCC diagnostic ignored "-Wshadow"
#  pragma GCC diagnostic ignored "-Wold-style-cast"
#  include <Eigen/Core>
#  undef EIGEN_DONT_PARALLELIZE
#  pragma GCC diagnostic pop
#elif WIDENET_NO_VECTORS
#elif defined(__AVX512F__)
#  include <immintrin.h>
#  define WIDENET_VECTOR Avx512
#elif defined(__x86_64__)
#  include <immintrin.h>
#  define WIDENET_VECTOR Avx2
#  if !defined(__AVX2__) || !defined(__FMA__)
#    undef WIDENET_VECTOR_TARGET
#    define WIDENET_VECTOR_TARGET __attribute__((target("avx2,fma")))
#  endif
#elif defined(__aarch64__) && defined(__ARM_NEON)
#  include <arm_neon.h>
#  define WIDENET_VECTOR Neon
#endif
#endif

// Of `size` bytes of a block that the pool keeps, only the first `bytes` may be used now: for tools
// that watch every access, such as the address sanitizer.
#if defined(__SANITIZE_ADDRESS__) && !WIDENET_CUDA
#  include <sanitizer/asan_interface.h>
#  define WIDENET_SET_USABLE(block, bytes, size) \
    (ASAN_POISON_MEMORY_REGION(block, size), ASAN_UNPOISON_MEMORY_REGION(block, bytes))
#elif !defined(WIDENET_SET_USABLE)
#  define WIDENET_SET_USABLE(block, bytes, size) static_cast<void>(0)
#endif

#include <fcntl.h>     // open
#include <sys/stat.h>  // stat
#include <unistd.h>    // close, fsync, write

#include <algorithm>      // max, min, sort
#include <array>          // array
#include <atomic>         // atomic
#include <cerrno>         // errno
#include <cmath>          // fma, isfinite, sqrt
#include <cstdint>        // int32_t, uint32_t, uint64_t
#include <cstdio>         // rename, snprintf
#include <cstdlib>        // strtoll, strtoull
#include <cstring>        // memcpy, memset, strerror
#include <fstream>        // ifstream
#include <functional>     // function
#include <iomanip>        // setprecision
#include <limits>         // numeric_limits
#include <locale>         // locale
#include <map>            // map
#include <memory>         // shared_ptr
#include <mutex>          // lock_guard, mutex
#include <new>            // align_val_t
#include <sstream>        // istringstream, ostringstream
#include <stdexcept>      // runtime_error
#include <string>         // string
#include <type_traits>    // is_same
#include <utility>        // index_sequence, move, pair
#include <vector>         // vector

namespace widenet {
inline namespace WIDENET_ABI {

// [2] ERRORS ======================================================================================

struct Error       : std::runtime_error { using std::runtime_error::runtime_error; };
struct ShapeError  : Error { using Error::Error; };  // tensors that do not fit together
struct ValueError  : Error { using Error::Error; };  // a number or a call out of its range
struct ConfigError : Error { using Error::Error; };  // a configuration that names no model
struct IoError     : Error { using Error::Error; };  // a file that cannot be read or written
struct CudaError   : Error { using Error::Error; };  // the GPU or its driver refused

/// Text with numbers as C++ writes them, whatever the locale of the program.
struct PlainText : std::ostringstream {
  PlainText() { imbue(std::locale::classic()); }
};

/// Throws an E that says "widenet: <parts>". The parts are printed one after the other.
template <class E, class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  PlainText message;
  message << "widenet: ";
  (message << ... << parts);
  throw E(message.str());
}

/// Throws E unless `condition` holds: "widenet: <op>: <rule>; got <values>[; hint: <remedy>]".
template <class E, class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail<E>(parts...);
}

// [3] SHAPES AND MEMORY ===========================================================================

using Index = std::ptrdiff_t;  // sizes, offsets and loop counters: signed, 64 bits

/// The extents of a tensor, outermost first; the empty shape is that of a scalar.
///
///   Errors    ShapeError if an extent is negative or the number of values overflows Index
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<Index> extents) : Shape(std::vector<Index>(extents)) {}
  explicit Shape(std::vector<Index> extents) : extents_(std::move(extents)) {
    for (const Index extent : extents_) {
      require<ShapeError>(extent >= 0, "Shape: extents must not be negative; got ", *this);
      require<ShapeError>(extent == 0 || num_values_ <= std::numeric_limits<Index>::max() / extent,
                          "Shape: the number of values must fit 63 bits; got ", *this);
      num_values_ *= extent;
    }
  }
  Index rank() const { return static_cast<Index>(extents_.size()); }
  Index num_values() const { return num_values_; }
  Index operator[](Index axis) const { return extents_[static_cast<std::size_t>(axis)]; }
  Index last() const { return extents_.empty() ? 1 : extents_.back(); }
  /// How many rows of length last() there are: B*T for a shape (B, T, D).
  Index num_rows() const { return last() == 0 ? 0 : num_values_ / last(); }
  /// The same shape with another last extent: (B, T, D) becomes (B, T, F).
  Shape with_last(Index extent) const {
    std::vector<Index> extents = extents_;
    if (!extents.empty()) extents.back() = extent;
    return Shape(std::move(extents));
  }
  const std::vector<Index>& extents() const { return extents_; }
  friend bool operator==(const Shape& a, const Shape& b) { return a.extents_ == b.extents_; }
  friend bool operator!=(const Shape& a, const Shape& b) { return !(a == b); }
  friend std::ostream& operator<<(std::ostream& out, const Shape& shape) {  // "(3, 2, 4)"
    out << '(';
    for (Index i = 0; i < shape.rank(); ++i) out << (i ? ", " : "") << shape[i];
    return out << ')';
  }

 private:
  std::vector<Index> extents_;
  Index num_values_ = 1;
};

/// A positive rational number, such as a capacity factor of 6/5: integers follow from it exactly.
struct Rational {
  Index numerator = 1, denominator = 1;
  friend bool operator==(Rational a, Rational b) {
    return a.numerator * b.denominator == b.numerator * a.denominator;
  }
  friend std::ostream& operator<<(std::ostream& out, Rational r) {  // "6/5"
    return out << r.numerator << '/' << r.denominator;
  }
};

/// What the pool of tensor memory holds, in bytes; `num_allocations` counts the blocks that it ever
/// asked of the system. A training step in steady state leaves that count as it is.
struct MemoryUse {
  Index in_use = 0, cached = 0, peak_in_use = 0, num_allocations = 0;
};

namespace detail {

#if WIDENET_CUDA
/// Throws CudaError unless `status`, of the CUDA runtime or of cuBLAS, is success.
inline void check_cuda(int status, const char* text, const char* call, const char* place) {
  require<CudaError>(status == 0, "CUDA: ", call, " must succeed at ", place, "; got ", status,
                     " (", text, ")");
}
#  define WIDENET_STRING(x) #x
#  define WIDENET_LINE(x) "widenet.hpp:" WIDENET_STRING(x)
#  define WIDENET_CHECK(call)                                                                \
    [&] {                                                                                    \
      const cudaError_t status = (call);                                                     \
      ::widenet::detail::check_cuda(status, cudaGetErrorString(status), #call,               \
                                    WIDENET_LINE(__LINE__));                                 \
    }()
#  define WIDENET_CHECK_BLAS(call)                                                           \
    [&] {                                                                                    \
      const cublasStatus_t status = (call);                                                  \
      ::widenet::detail::check_cuda(status, cublasGetStatusString(status), #call,            \
                                    WIDENET_LINE(__LINE__));                                 \
    }()

inline void* allocate(std::size_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // the error is ours now
    return nullptr;
  }
  check_cuda(status, cudaGetErrorString(status), "cudaMalloc", WIDENET_LINE(__LINE__));
  return block;
}
inline void release(void* block) { WIDENET_CHECK(cudaFree(block)); }
inline std::string free_memory() {
  std::size_t free = 0, total = 0;
  WIDENET_CHECK(cudaMemGetInfo(&free, &total));
  return std::to_string(free) + " of " + std::to_string(total) + " bytes are free";
}

/// Pinned host memory between the caller's and the device's: the copy to the device then runs
/// beside the host. Uploads take turns at several pieces, so that each waits for one long before it
/// only, not for the work that was queued since; large ones, such as images, share the first piece.
struct Staging {
  struct Piece {
    void* host = nullptr;
    std::size_t capacity = 0;
    cudaEvent_t done = nullptr;
  };
  static constexpr std::size_t num_pieces = 16, large = std::size_t(1) << 18;  // bytes
  std::mutex mutex;
  Piece pieces[num_pieces];
  std::size_t turn = 0;

  static Staging& instance() {
    static Staging* const staging = new Staging;  // never destroyed, like the pool
    return *staging;
  }
  void upload(void* to, const void* from, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    Piece& p = pieces[bytes > large ? 0 : 1 + turn++ % (num_pieces - 1)];
    if (!p.done) WIDENET_CHECK(cudaEventCreateWithFlags(&p.done, cudaEventDisableTiming));
    WIDENET_CHECK(cudaEventSynchronize(p.done));  // its last upload may still be reading
    if (bytes > p.capacity) {
      if (p.host) WIDENET_CHECK(cudaFreeHost(p.host));
      p.host = nullptr, p.capacity = 0;
      WIDENET_CHECK(cudaMallocHost(&p.host, std::max(bytes, large)));
      p.capacity = std::max(bytes, large);
    }
    std::memcpy(p.host, from, bytes);
    WIDENET_CHECK(cudaMemcpyAsync(to, p.host, bytes, cudaMemcpyHostToDevice, 0));
    WIDENET_CHECK(cudaEventRecord(p.done, 0));
  }
};

inline void upload(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) Staging::instance().upload(to, from, bytes);
}
inline void download(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) WIDENET_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
inline void copy(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) WIDENET_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, 0));
}
inline void set_zero(void* to, std::size_t bytes) {
  if (bytes > 0) WIDENET_CHECK(cudaMemsetAsync(to, 0, bytes, 0));
}
#else
inline void* allocate(std::size_t bytes) {
  return ::operator new(bytes, std::align_val_t(64), std::nothrow);
}
inline void release(void* block) { ::operator delete(block, std::align_val_t(64)); }
inline std::string free_memory() { return "the system has no more"; }
inline void copy(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
inline void upload(void* to, const void* from, std::size_t bytes) { copy(to, from, bytes); }
inline void download(void* to, const void* from, std::size_t bytes) { copy(to, from, bytes); }
inline void set_zero(void* to, std::size_t bytes) {
  if (bytes > 0) std::memset(to, 0, bytes);
}
#endif

/// Keeps the blocks that buffers give back, by size class. A training step asks for the same sizes
/// every time, so from the third step on it allocates nothing. Blocks that other batch lengths
/// left behind are returned to the system as soon as all blocks together would exceed 5/4 of the
/// largest amount ever in use. Under CUDA all work is in one stream, so a block can be handed out
/// again before the kernels that use it have finished.
class Pool {
 public:
  static Pool& instance() {
    static Pool* const pool = new Pool;  // never destroyed: a static tensor may outlive it
    return *pool;
  }

  /// The next larger of 64 bytes times 1 to 15 times a power of two: it wastes 1/8 or 63 bytes.
  static std::size_t size_class(std::size_t bytes) {
    std::size_t step = 64;
    while (bytes > 16 * step) step *= 2;
    return std::max<std::size_t>(1, (bytes + step - 1) / step) * step;
  }
  void* take(std::size_t bytes) {
    const std::size_t size = size_class(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<void*>& blocks = blocks_of_size_[size];
    void* block = nullptr;
    if (!blocks.empty()) {
      block = blocks.back();
      blocks.pop_back();
      use_.cached -= static_cast<Index>(size);
    } else {
      const Index in_use = use_.in_use + static_cast<Index>(size);
      const Index peak = std::max(use_.peak_in_use, in_use);
      trim(std::max<Index>(0, peak + peak / 4 - in_use));
      block = allocate(size);
      if (!block) trim(0), block = allocate(size);
      if (!block)
        fail<Error>("memory: a buffer must fit; got ", bytes, " bytes asked, ", use_.in_use,
                    " in use, and ", free_memory());
      ++use_.num_allocations;
    }
    use_.in_use += static_cast<Index>(size);
    use_.peak_in_use = std::max(use_.peak_in_use, use_.in_use);
    WIDENET_SET_USABLE(block, bytes, size);
    return block;
  }
  void give(void* block, std::size_t bytes) {
    const std::size_t size = size_class(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    WIDENET_SET_USABLE(block, 0, size);
    blocks_of_size_[size].push_back(block);
    use_.in_use -= static_cast<Index>(size);
    use_.cached += static_cast<Index>(size);
  }
  void release_cached() {
    const std::lock_guard<std::mutex> lock(mutex_);
    trim(0);
    use_.peak_in_use = use_.in_use;
  }
  MemoryUse use() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return use_;
  }

 private:
  void trim(Index largest_cache) {  // largest blocks first
    for (auto it = blocks_of_size_.rbegin(); it != blocks_of_size_.rend(); ++it)
      while (use_.cached > largest_cache && !it->second.empty()) {
        release(it->second.back());
        it->second.pop_back();
        use_.cached -= static_cast<Index>(it->first);
      }
  }

  std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> blocks_of_size_;
  MemoryUse use_;
};

}  // namespace detail

/// What the pool of tensor memory holds now.
inline MemoryUse memory_use() { return detail::Pool::instance().use(); }

/// Returns the memory that no tensor uses to the system, and starts the peak anew.
inline void release_cached_memory() { detail::Pool::instance().release_cached(); }

/// A fixed number of values in host memory, or in device memory under CUDA. Copies share them.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(Index size) : size_(size) {  // the values are undefined
    constexpr Index limit = (Index(1) << 62) / static_cast<Index>(sizeof(T));
    require<ShapeError>(0 <= size && size <= limit,
                        "Buffer: the number of values must lie in [0, ", limit, "]; got ", size);
    if (size == 0) return;
    detail::Pool& pool = detail::Pool::instance();
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
    const auto give_back = [&pool, bytes](T* block) { pool.give(block, bytes); };
    data_ = std::shared_ptr<T>(static_cast<T*>(pool.take(bytes)), give_back);
  }
  Buffer(const std::vector<T>& values) : Buffer(static_cast<Index>(values.size())) {
    detail::upload(data(), values.data(), num_bytes());
  }
  static Buffer zeros(Index size) {
    const Buffer buffer(size);
    buffer.set_zero();
    return buffer;
  }
  T* data() const { return data_.get(); }
  Index size() const { return data_ ? size_ : 0; }  // 0 if moved from
  bool is_shared() const { return data_.use_count() > 1; }
  void set_zero() const { detail::set_zero(data(), num_bytes()); }
  Buffer clone() const {
    const Buffer copy(size());
    detail::copy(copy.data(), data(), num_bytes());
    return copy;
  }
  /// Copies the values out, waiting for the device.
  std::vector<T> to_vector() const {
    std::vector<T> values(static_cast<std::size_t>(size()));
    detail::download(values.data(), data(), num_bytes());
    return values;
  }
  /// Overwrites all values.
  void assign(const std::vector<T>& values) const {
    require<ShapeError>(static_cast<Index>(values.size()) == size(), "Buffer: assign needs ",
                        size(), " values; got ", values.size());
    detail::upload(data(), values.data(), num_bytes());
  }

 private:
  std::size_t num_bytes() const { return static_cast<std::size_t>(size()) * sizeof(T); }
  Index size_ = 0;
  std::shared_ptr<T> data_;
};

// [4] RANDOM NUMBERS ==============================================================================

struct Words { std::uint32_t x0, x1, x2, x3; };

/// Philox4x32-10: a keyed bijection of 128 bits that looks random.
///
///   Source    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011
WIDENET_HOST_DEVICE inline Words philox(Words x, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = 0xD2511F53ull * x.x0, b = 0xCD9E8D57ull * x.x2;
    x = {static_cast<std::uint32_t>(b >> 32) ^ x.x1 ^ key0, static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ x.x3 ^ key1, static_cast<std::uint32_t>(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return x;
}

/// What a random value is for: values for different purposes are independent.
enum class Purpose : std::uint32_t {
  user, initial_weight, shuffle, router_noise, priority, embedding_dropout, attention_dropout,
  hidden_dropout, output_dropout, augmentation, check
};

/// Random values as a function of what they are for, never of the order of calls.
///
///   words(i) = philox(counter, key),   key = seed,
///   counter  = (i mod 2^32,  block * 2^16 + i / 2^32,  step,  purpose * 2^24 + micro_batch)
///
/// An Rng never changes; `for_purpose`, `at_block`, `at_step` and `at_micro_batch` return another.
///
///   Errors    ValueError if a coordinate does not fit its bits
class Rng {
 public:
  explicit Rng(std::uint64_t seed) : seed_(seed) {}
  std::uint64_t seed() const { return seed_; }
  Rng for_purpose(Purpose purpose) const {
    Rng rng = *this;
    rng.purpose_ = static_cast<std::uint32_t>(purpose);
    return rng;
  }
  Rng at_block(Index block) const { return with(&Rng::block_, block, Index(1) << 16, "block"); }
  Rng at_step(Index step) const { return with(&Rng::step_, step, Index(1) << 32, "step"); }
  Rng at_micro_batch(Index m) const {
    return with(&Rng::micro_batch_, m, Index(1) << 24, "micro-batch");
  }
  /// A stream of its own for every name; used for initial weights.
  Rng named(const std::string& name) const {
    std::uint32_t hash = 2166136261u;  // FNV-1a
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
    return at_step(static_cast<Index>(hash));
  }
  WIDENET_HOST_DEVICE Words words(Index i) const {
    const std::uint64_t index = static_cast<std::uint64_t>(i);
    return philox({static_cast<std::uint32_t>(index),
                   (block_ << 16) + static_cast<std::uint32_t>(index >> 32), step_,
                   (purpose_ << 24) + micro_batch_},
                  static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32));
  }
  /// Value i of a stream of 32-bit words; four neighbours come from one call of philox.
  WIDENET_HOST_DEVICE std::uint32_t word(Index i) const {
    const Words w = words(i / 4);
    return i % 4 == 0 ? w.x0 : i % 4 == 1 ? w.x1 : i % 4 == 2 ? w.x2 : w.x3;
  }
  WIDENET_HOST_DEVICE static double fraction(std::uint32_t word) { return (word + 0.5) * 0x1p-32; }
  /// Value i of a stream that is uniform in (0, 1).
  WIDENET_HOST_DEVICE double uniform(Index i) const { return fraction(word(i)); }

 private:
  Rng with(std::uint32_t Rng::*coordinate, Index value, Index limit, const char* name) const {
    require<ValueError>(0 <= value && value < limit, "Rng: ", name, " must lie in [0, ", limit,
                        "); got ", value);
    Rng rng = *this;
    rng.*coordinate = static_cast<std::uint32_t>(value);
    return rng;
  }
  std::uint64_t seed_;
  std::uint32_t purpose_ = 0, block_ = 0, step_ = 0, micro_batch_ = 0;
};

/// A random order of 0, 1, ..., n-1: the indices sorted by the first 64 bits of words(index).
inline std::vector<Index> permutation(Index n, const Rng& rng) {
  std::vector<std::pair<std::uint64_t, Index>> keyed;
  for (Index i = 0; i < n; ++i) {
    const Words w = rng.words(i);
    keyed.emplace_back((static_cast<std::uint64_t>(w.x0) << 32) | w.x1, i);
  }
  std::sort(keyed.begin(), keyed.end());
  std::vector<Index> order;
  for (const auto& entry : keyed) order.push_back(entry.second);
  return order;
}

// [5] BACKEND =====================================================================================
//
// A kernel is a lambda marked WIDENET_KERNEL. Its calls run at the same time and in any order, so
// no two may write the same element. After this chapter no line asks which machine runs it.

/// Mathematics: what kernels call in place of libm, for float and double. Only + - * /, comparisons
/// and integers, so without contraction the bits are the same on every platform; no branches, so
/// that loops over elements become vector instructions. NaN gives NaN. Errors are the largest seen,
/// over all floats (derivatives: a third) or 200000 doubles, in units in the last place (ulp).
namespace math {

template <class T> struct Format;  // the layout of T, and constants that depend on it

template <> struct Format<float> {
  using Bits = std::uint32_t;
  static constexpr int fraction_bits = 23;
  static constexpr Bits bias = 127, sign = Bits(1) << 31;
  static constexpr float shift = 0x1.8p23f + 2 * bias;  // adding it rounds to an integer
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float exp_min = -105, exp_max = 89;  // 0 below, infinity above
  static constexpr float tanh_max = 10;                 // 1 above, and gelu(x) is 0 or x beyond:
  static constexpr float gelu_tanh_max = 11, gelu_erf_max = 15;
};

template <> struct Format<double> {
  using Bits = std::uint64_t;
  static constexpr int fraction_bits = 52;
  static constexpr Bits bias = 1023, sign = Bits(1) << 63;
  static constexpr double shift = 0x1.8p52 + 2 * bias;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45;
  static constexpr double exp_min = -746, exp_max = 710;
  static constexpr double tanh_max = 20, gelu_tanh_max = 22, gelu_erf_max = 39;
};

template <class T> using Bits = typename Format<T>::Bits;

template <class To, class From> WIDENET_HOST_DEVICE inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps all bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
template <class T> WIDENET_HOST_DEVICE inline T abs(T x) {
  return bit_cast<T>(bit_cast<Bits<T>>(x) & ~Format<T>::sign);
}
template <class T> WIDENET_HOST_DEVICE inline T with_sign_of(T x, T y) {  // y >= 0
  return bit_cast<T>(bit_cast<Bits<T>>(y) | (bit_cast<Bits<T>>(x) & Format<T>::sign));
}
/// condition ? x : y, by masks: around ?: GCC moves what may trap into branches, and then does not
/// vectorise (unless given -fno-trapping-math).
template <class T> WIDENET_HOST_DEVICE inline T select(bool condition, T x, T y) {
  const Bits<T> mask = Bits<T>(0) - Bits<T>(condition);
  return bit_cast<T>((bit_cast<Bits<T>>(x) & mask) | (bit_cast<Bits<T>>(y) & ~mask));
}
template <class T> WIDENET_HOST_DEVICE inline T at_most(T limit, T x) {  // keeps NaN
  return select(x > limit, limit, x);
}

template <class T> WIDENET_HOST_DEVICE inline T horner(T, T, T c0) { return c0; }
template <class T> WIDENET_HOST_DEVICE inline T horner(T x, T, T c0, T c1) { return c0 + x * c1; }
template <class T, class... More>
WIDENET_HOST_DEVICE inline T horner(T x, T x2, T c0, T c1, More... more) {
  return (c0 + x * c1) + x2 * horner(x, x2, more...);
}
/// polynomial(x, c0, c1, c2, ...) = c0 + c1 x + c2 x^2 + ...
/// by Horner's rule in x^2: the chain of operations, which bounds the speed, is half as long.
template <class T, class... C> WIDENET_HOST_DEVICE inline T polynomial(T x, C... c) {
  return horner(x, x * x, c...);
}

// (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2. The coefficients of this and the other polynomials
// are minimax; here they leave exp(r) a relative error of 2^-28 (degree 4) or 2^-57 (degree 9).
WIDENET_HOST_DEVICE inline float exp_rest(float r) {
  return polynomial(r, 0.49999994f, 0.1666652f, 0.04166824f, 0.008368824f, 0.0013823216f);
}
WIDENET_HOST_DEVICE inline double exp_rest(double r) {
  return polynomial(r, 0.5000000000000011, 0.1666666666666642, 0.04166666666652663,
                    0.008333333333490072, 0.0013888888944493408, 0.0001984126951694752,
                    2.4801492242627876e-05, 2.755757637207939e-06, 2.7630545569165417e-07,
                    2.500345451842985e-08);
}

/// x = n ln(2) + r with |r| <= ln(2) / 2, so exp(x) = 2^n (1 + p) with p = exp(r) - 1.
template <class T> struct Reduced {
  T p;
  Bits<T> m;  // its low bits are those of n + 2 * bias
};
template <class T> WIDENET_HOST_DEVICE inline Reduced<T> reduce(T x) {
  using F = Format<T>;
  const T shifted = x * T(1.4426950408889634) + F::shift, n = shifted - F::shift;
  const T high = x - n * F::ln2_high, low = n * F::ln2_low, r = high - low;  // high is exact
  return {high + (r * r * exp_rest(r) - low), bit_cast<Bits<T>>(shifted)};
}

/// exp(x) where exp_min - 60 < x < exp_max + 60. 2^n is multiplied in two halves, neither of which
/// overflows or underflows, so the result does so by itself, with denormals, 0 and infinity.
template <class T> WIDENET_HOST_DEVICE inline T bounded_exp(T x) {
  using F = Format<T>;
  const Reduced<T> y = reduce(x);
  const Bits<T> half = y.m >> 1, rest = y.m - half;
  const T power = bit_cast<T>(half << F::fraction_bits);
  return (T(1) + y.p) * power * bit_cast<T>(rest << F::fraction_bits);
}

/// exp(x).
///
///   Error     0.92 ulp in float, 0.85 in double, denormal results included
template <class T> WIDENET_HOST_DEVICE inline T exp(T x) {
  const T x_high = at_most(Format<T>::exp_max, x);
  return bounded_exp(select(x_high < Format<T>::exp_min, Format<T>::exp_min, x_high));
}

/// tanh(|x|) = q / (2 - q),   q = 1 - exp(-2 |x|) = (1 - 2^n) - 2^n p
///
/// Where x is small, n is 0 and q is -p, so that no digits are lost.
///
///   Error     2.5 ulp
template <class T> WIDENET_HOST_DEVICE inline T tanh(T x) {
  using F = Format<T>;
  const Reduced<T> y = reduce(T(-2) * at_most(F::tanh_max, abs(x)));
  const T power = bit_cast<T>((y.m - F::bias) << F::fraction_bits);
  const T q = (T(1) - power) - power * y.p;
  return with_sign_of(x, q / (T(2) - q));
}

// erf(x) / x - 1 for |x| <= 1, given x^2: relative error 2^-29 (degree 6) or 2^-55 (12).
WIDENET_HOST_DEVICE inline float erf_rest(float x2) {
  return polynomial(x2, 0.12837917f, -0.37612626f, 0.11283579f, -0.026853347f, 0.005187162f,
                    -0.0007997853f, 7.806904e-05f);
}
WIDENET_HOST_DEVICE inline double erf_rest(double x2) {
  return polynomial(x2, 0.1283791670955126, -0.376126389031841, 0.11283791670971101,
                    -0.026866170648032033, 0.005223977652700396, -0.0008548328536004038,
                    0.00012055386187269612, -1.4926880924052138e-05, 1.6481043322896035e-06,
                    -1.6556889031937035e-07, 1.601109360486349e-08, -1.6454461646565045e-09,
                    1.4322622910862757e-10);
}

// (a + 5) Q(a) exp(a^2 / 2) for a >= 0, given w = (a - 5) / (a + 5), where Q(a) = 1 - Phi(a) is the
// probability that a standard normal variable exceeds a: relative error 2^-26 (degree 9) or 2^-55
// (degree 21), up to where the normal density underflows.
WIDENET_HOST_DEVICE inline float tail_rest(float w) {
  return polynomial(w, 0.76919305f, -0.6653825f, 0.4953061f, -0.31353334f, 0.16500935f,
                    -0.069119886f, 0.0208649f, -0.0029561198f, -0.0009488575f, 0.00041642526f);
}
WIDENET_HOST_DEVICE inline double tail_rest(double w) {
  return polynomial(w, 0.769193049750063, -0.6653825028900566, 0.49530561596997513,
                    -0.31353315667131354, 0.16502036617041943, -0.06911863870600601,
                    0.02079506679941597, -0.0029933767751089357, -0.0007978693949308015,
                    0.0005448991026263635, -5.937574289752216e-05, -4.976300114181521e-05,
                    1.668124193493001e-05, 3.981482331181531e-06, -2.769246386544549e-06,
                    -3.3776015150047047e-07, 4.329205572540654e-07, 4.3671254946159654e-08,
                    -6.548239580883185e-08, -1.0275046056842671e-08, 7.23089420815551e-09,
                    2.039261186977251e-09);
}

// Q(a) exp(a^2 / 2) for a >= 0.
template <class T> WIDENET_HOST_DEVICE inline T tail_ratio(T a) {
  const T t = T(1) / (a + T(5)), v = a * t;
  return t * tail_rest(v + v - T(1));
}

/// erf(|x|) = |x| + |x| erf_rest(x^2) where |x| < 1, else 1 - 2 Q(sqrt(2) |x|)
///
///   Error     1.3 ulp
template <class T> WIDENET_HOST_DEVICE inline T erf(T x) {
  const T a = at_most(T(7), abs(x)), x2 = a * a;
  const T small = a + a * erf_rest(x2);
  const T large = T(1) - T(2) * bounded_exp(-x2) * tail_ratio(T(1.4142135623730951) * a);
  return with_sign_of(x, select(a < T(1), small, large));
}

/// log(x) = k ln(2) + log(1 + f),   log(1 + f) = 2 artanh(s) = 2 s + s R,   s = f / (2 + f)
///
/// with 1 + f in [sqrt(1/2), sqrt(2)) and 2 s = f - f^2 / 2 + s f^2 / 2, whose first term is exact.
/// R has relative error 2^-59 (degree 6 in s^2). log(0) is -infinity, of x < 0 it is NaN.
///
///   Error     0.5001 ulp in float, 0.79 in double, denormal x included
WIDENET_HOST_DEVICE inline double log(double x) {
  using Word = Bits<double>;
  constexpr Word fraction = (Word(1) << 52) - 1, one = Word(1023) << 52;
  constexpr Word root_half = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
  const bool is_denormal = x < 0x1p-1022;
  const Word bits = bit_cast<Word>(x * select(is_denormal, 0x1p54, 1.0)) - root_half + one;
  const double biased_k = bit_cast<double>((bits >> 52) | bit_cast<Word>(0x1p52)) - 0x1p52;
  const double k = biased_k - select(is_denormal, 1077.0, 1023.0);
  const double f = bit_cast<double>((bits & fraction) + root_half) - 1.0;
  const double s = f / (2.0 + f), s2 = s * s, half_f2 = 0.5 * f * f;
  const double R = s2 * polynomial(s2, 0.6666666666666734, 0.3999999999941682, 0.2857142874197659,
                                   0.22222198610384242, 0.18183562603581097, 0.15314090000706235,
                                   0.14795595918429474);
  const double low = s * (half_f2 + R) + k * Format<double>::ln2_low;
  const double y = k * Format<double>::ln2_high - ((half_f2 - low) - f);
  const double infinity = bit_cast<double>(Word(0x7ff) << 52);
  const double nan = bit_cast<double>(Word(0xfff) << 51);
  const double special = select(x == 0.0, -infinity, select(x < 0.0, nan, x));
  return select(x > 0.0, select(x < infinity, y, x), special);
}
WIDENET_HOST_DEVICE inline float log(float x) { return static_cast<float>(log(double(x))); }

/// sin(2 pi (u + quarters / 4)) = +-sin(pi/2 r) or +-cos(pi/2 r), as the low bits of n say, where
/// 4 u = n + r with |r| <= 1/2, without rounding, for |u| < 2^48.
///
///   Error     1.55 ulp; that of the polynomials is 2^-57 (sin, degree 5 in r^2), 2^-61 (cos, 6)
WIDENET_HOST_DEVICE inline double sin_of_turns(double u, std::uint64_t quarters) {
  using Word = Bits<double>;
  const double shifted = 4.0 * u + 0x1.8p52, r = 4.0 * u - (shifted - 0x1.8p52), r2 = r * r;
  const double sin_rest = r2 * polynomial(r2, -0.6459640975062448, 0.07969262624605838,
                                          -0.004681754132533649, 0.0001604411519122757,
                                          -3.598646755230161e-06, 5.634313008300205e-08);
  const double sin_r = r * 1.5707963267948966 + r * (6.123233995736766e-17 + sin_rest);
  const double cos_r = 1.0 + r2 * polynomial(r2, -1.2337005501361697, 0.2536695079010417,
                                             -0.02086348076318097, 0.0009192602726323812,
                                             -2.5202027446961032e-05, 4.7103340982981243e-07,
                                             -6.289399386465247e-09);
  const Word n = bit_cast<Word>(shifted) + quarters, is_odd = Word(0) - (n & 1);  // all bits
  const Word y = (bit_cast<Word>(sin_r) & ~is_odd) | (bit_cast<Word>(cos_r) & is_odd);
  return bit_cast<double>(y ^ ((n & 2) << 62));
}
WIDENET_HOST_DEVICE inline double sin_2pi(double u) { return sin_of_turns(u, 0); }
WIDENET_HOST_DEVICE inline double cos_2pi(double u) { return sin_of_turns(u, 1); }

/// GELU: gelu(x) = x S(x), where S is a sigmoid, S(x) + S(-x) = 1. With a = |x|,
///
///   gelu(x)  = max(x, 0) - a S(-a)
///   gelu'(x) = w where x < 0, else 1 - w,   w = S(-a) - a S'(a)
///
/// so nothing cancels at negative x. With one exp and one division each:
///
///   gelu_erf    S = Phi, so S(-a) = Q(a),  S'(a) = exp(-a^2 / 2) / sqrt(2 pi)
///   gelu_tanh   S(a) = 1 / (1 + exp(-z)),  z = 2 sqrt(2 / pi) (a + 0.044715 a^3)
///
///   Source    Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv 1606.08415
///   Error     5 ulp where x > -1. Below, exp magnifies the rounding of its argument, in float to
///             67 ulp in gelu_erf, 220 in gelu_tanh. Derivatives: 2 epsilon, absolute
///   Differs   others compute 1 + erf or 1 + tanh, which float rounds to 0 from about x = -5.5 on
template <class T> WIDENET_HOST_DEVICE inline T gelu_erf(T x) {
  const T a = at_most(Format<T>::gelu_erf_max, abs(x));
  return select(x > T(0), x, T(0)) - a * bounded_exp(T(-0.5) * a * a) * tail_ratio(a);
}
template <class T> WIDENET_HOST_DEVICE inline T gelu_erf_derivative(T x) {
  const T a = at_most(Format<T>::gelu_erf_max, abs(x)), e = bounded_exp(T(-0.5) * a * a);
  const T w = e * (tail_ratio(a) - a * T(0.3989422804014327));
  return select(x < T(0), w, T(1) - w);
}

template <class T> WIDENET_HOST_DEVICE inline T gelu_tanh(T x) {
  const T a = at_most(Format<T>::gelu_tanh_max, abs(x));
  const T e = bounded_exp(a * (T(-1.5957691216057308) + T(-0.071354816272600248) * (a * a)));
  return select(x > T(0), x, T(0)) - a * e / (T(1) + e);
}
template <class T> WIDENET_HOST_DEVICE inline T gelu_tanh_derivative(T x) {
  const T a = at_most(Format<T>::gelu_tanh_max, abs(x)), a2 = a * a;
  const T e = bounded_exp(a * (T(-1.5957691216057308) + T(-0.071354816272600248) * a2));
  const T s = T(1) / (T(1) + e), dz = T(1.5957691216057308) + T(0.21406444881780074) * a2;
  const T w = e * s * (T(1) - a * dz * s);
  return select(x < T(0), w, T(1) - w);
}

}  // namespace math

/// Value i of a stream of normal random numbers, by Box and Muller: four neighbours come from one
/// call of philox, its words 0 and 1 make the first two, its words 2 and 3 the others.
///
///   r = sqrt(-2 log u0),   normals  r cos(2 pi u1),  r sin(2 pi u1)
WIDENET_HOST_DEVICE inline double normal(const Rng& rng, Index i) {
  const Words w = rng.words(i / 4);
  const bool is_second = i % 4 >= 2;
  const double u0 = Rng::fraction(is_second ? w.x2 : w.x0);
  const double u1 = Rng::fraction(is_second ? w.x3 : w.x1);
  const double radius = std::sqrt(-2.0 * math::log(u0));
  return radius * (i % 2 == 0 ? math::cos_2pi(u1) : math::sin_2pi(u1));
}

inline constexpr Index num_lanes = 32;  // a warp
template <class T> inline constexpr T infinity = std::numeric_limits<T>::infinity();

/// The 32 lanes that share one row: a warp under CUDA, one thread that plays them all on the CPU.
/// Element i belongs to lane i % 32: a lane may read back what it wrote, without a barrier. The 32
/// partial results of a reduction are combined in a fixed tree, and every lane gets the result.
class Team {
 public:
  /// f(0) + f(1) + ... + f(n-1), lane by lane, then over the lanes.
  template <class T, class F> WIDENET_KERNEL T sum(Index n, F f) const {
    return reduce(n, T(0), f, Sum{});
  }
  /// The largest f(i); minus infinity for n = 0.
  template <class T, class F> WIDENET_KERNEL T max(Index n, F f) const {
    return reduce(n, -infinity<T>, f, Max{});
  }
  /// f(i) for every i < n.
  template <class F> WIDENET_KERNEL void each(Index n, F f) const {
    WIDENET_INDEPENDENT
    for (Index i = lane(); i < n; i += stride) f(i);
  }
  /// put(l, (start ? start[l] : 0) + f(0, l) + ... + f(n-1, l)), in order, for l < 32, l < width.
  template <class T, class F, class Put>
  WIDENET_KERNEL void add_down(Index n, Index width, const T* start, F f, Put put) const {
#if WIDENET_CUDA
    constexpr Index ahead = 8;  // so many values are read at once
    if (lane() >= width) return;
    T sum = start ? start[lane()] : T(0);
    for (Index begin = 0; begin < n; begin += ahead) {
      T next[ahead];
      for (Index i = 0; i < ahead; ++i) next[i] = begin + i < n ? f(begin + i, lane()) : T(0);
      for (Index i = 0; i < ahead; ++i) sum = begin + i < n ? sum + next[i] : sum;
    }
    put(lane(), sum);
#else
    T sums[num_lanes];
    const Index end = std::min(width, num_lanes);
    each(end, [&](Index l) { sums[l] = start ? start[l] : T(0); });
    for (Index i = 0; i < n; ++i) each(end, [&](Index l) { sums[l] += f(i, l); });
    each(end, [&](Index l) { put(l, sums[l]); });
#endif
  }
  /// take(i, rank) for every i < n with wanted(i), where rank = 0, 1, ... counts them in order of
  /// i; returns how many there are. What is wanted must not depend on what is taken.
  template <class Wanted, class Take>
  WIDENET_KERNEL Index enumerate(Index n, Wanted wanted, Take take) const {
    Index rank = 0;
#if WIDENET_CUDA
    __syncwarp();  // `take` may overwrite what another lane wrote; votes do not order memory
    constexpr Index rounds = 8;  // what eight votes are about is read at once: memory is far away
    for (Index begin = lane(); begin < n + lane(); begin += rounds * num_lanes) {
      bool is_wanted[rounds];
      for (Index r = 0; r < rounds; ++r) {
        const Index i = begin + r * num_lanes;
        is_wanted[r] = i < n && wanted(i);
      }
      for (Index r = 0; r < rounds; ++r) {
        const unsigned votes = __ballot_sync(~0u, is_wanted[r]);
        if (is_wanted[r])
          take(begin + r * num_lanes, rank + __popc(votes & ((1u << lane()) - 1)));
        rank += __popc(votes);
      }
    }
#else
    for (Index i = 0; i < n; ++i)
      if (wanted(i)) take(i, rank++);
#endif
    return rank;
  }
  WIDENET_KERNEL bool first() const { return lane() == 0; }  // for what is written once per row

 private:
  struct Sum {
    template <class T> WIDENET_KERNEL T operator()(T a, T b) const { return a + b; }
  };
  struct Max {
    template <class T> WIDENET_KERNEL T operator()(T a, T b) const { return b > a ? b : a; }
  };
#if WIDENET_CUDA
  static constexpr Index stride = num_lanes;
  __device__ static Index lane() { return threadIdx.x % num_lanes; }

  template <class T, class F, class Combine>
  __device__ static T reduce(Index n, T partial, F f, Combine combine) {
    for (Index i = lane(); i < n; i += num_lanes) partial = combine(partial, f(i));
    for (int half = num_lanes / 2; half > 0; half /= 2)
      partial = combine(partial, __shfl_xor_sync(~0u, partial, half));
    return partial;
  }
#else
  static constexpr Index stride = 1;
  static Index lane() { return 0; }

  template <Index half = num_lanes / 2, class T, class Combine>
  static T fold(T* partial, Combine combine) {
    for (Index l = 0; l < half; ++l) partial[l] = combine(partial[l], partial[l + half]);
    if constexpr (half > 1) fold<half / 2>(partial, combine);
    return partial[0];
  }
  template <class T, class F, class Combine>
  static T reduce(Index n, T start, F f, Combine combine) {
    T partial[num_lanes];
    for (T& p : partial) p = start;
    const Index rest = n - n % num_lanes;
    for (Index i = 0; i < rest; i += num_lanes) {  // the inner loop becomes vector instructions
      WIDENET_INDEPENDENT
      for (Index l = 0; l < num_lanes; ++l) partial[l] = combine(partial[l], f(i + l));
    }
    for (Index i = rest; i < n; ++i) partial[i - rest] = combine(partial[i - rest], f(i));
    return fold(partial, combine);
  }
#endif
};

#if WIDENET_CUDA
namespace detail {

template <class F> constexpr void require_kernel() {
  static_assert(std::is_trivially_copyable<F>::value,
                "a kernel captures numbers and pointers; what owns memory stays on the host");
}
template <class F> __global__ void run_elements(Index n, F f) {
  const Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) f(i);
}
template <class F> __global__ void run_rows(Index rows, F f) {
  const Index row = (Index(blockIdx.x) * blockDim.x + threadIdx.x) / num_lanes;
  if (row < rows) f(row, Team{});
}

}  // namespace detail
#else
namespace detail {

/// Loops over fewer elements than these, some microseconds of one core, wake no other thread.
inline constexpr Index work_of_one_thread = 8192;

}  // namespace detail
#endif

/// f(i) for every i < n.
template <class F> void for_each(Index n, F f) {
  if (n == 0) return;
#if WIDENET_CUDA
  detail::require_kernel<F>();
  detail::run_elements<<<static_cast<unsigned>((n + 255) / 256), 256>>>(n, f);
  WIDENET_CHECK(cudaGetLastError());
#else
  constexpr Index strip = 1024;
  const bool fork = n > detail::work_of_one_thread;
  static_cast<void>(fork);
  WIDENET_PARALLEL_FOR_IF_FORK
  for (Index begin = 0; begin < n; begin += strip) {
    const Index end = std::min(n, begin + strip);
    WIDENET_INDEPENDENT
    for (Index i = begin; i < end; ++i) f(i);
  }
#endif
}

/// f(row, team) for every row < rows, each of which is work on about `width` elements.
template <class F> void for_each_row(Index rows, [[maybe_unused]] Index width, F f) {
  if (rows == 0) return;
#if WIDENET_CUDA
  detail::require_kernel<F>();
  detail::run_rows<<<static_cast<unsigned>((rows + 7) / 8), 8 * num_lanes>>>(rows, f);
  WIDENET_CHECK(cudaGetLastError());
#else
  const bool fork = rows * width > detail::work_of_one_thread;
  static_cast<void>(fork);
  WIDENET_PARALLEL_FOR_IF_FORK
  for (Index row = 0; row < rows; ++row) f(row, Team{});
#endif
}

#if WIDENET_CUDA

/// Matrices as gemm sees them: row `i` of item (outer, inner) begins at
/// data + outer_index * outer + inner_index * inner + i * ld.
template <class T> struct Matrix {
  T* data;
  Index ld, outer = 0, inner = 0;
};

namespace detail {

/// The handle of the one stream. With a workspace of its own cuBLAS gives the same bits in every
/// run, whatever other streams and threads of the program do.
inline cublasHandle_t cublas() {
  static const Buffer<char> workspace(Index(32) << 20);  // what cuBLAS itself would take on sm_90
  static const cublasHandle_t handle = [] {
    cublasHandle_t made = nullptr;
    WIDENET_CHECK_BLAS(cublasCreate(&made));
    WIDENET_CHECK_BLAS(
        cublasSetWorkspace(made, workspace.data(), static_cast<std::size_t>(workspace.size())));
    return made;
  }();
  return handle;
}
template <class T> constexpr cudaDataType_t cuda_type() {
  return sizeof(T) == 4 ? CUDA_R_32F : CUDA_R_64F;
}
template <class T> constexpr cublasComputeType_t compute_type() {
  return sizeof(T) == 8   ? CUBLAS_COMPUTE_64F
         : WIDENET_BF16 ? CUBLAS_COMPUTE_32F_FAST_16BF
         : WIDENET_TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                        : CUBLAS_COMPUTE_32F;
}
inline cublasOperation_t operation(bool transpose) { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; }

template <class T>
void start_rows(T* C, Index ldc, Index stride, const T* bias, Index bias_stride, Index items,
                Index M, Index N) {
  for_each_row(items * M, N, [=] WIDENET_KERNEL(Index row, Team team) {
    T* const c = C + row / M * stride + row % M * ldc;
    const T* const b = bias + row / M * bias_stride;
    team.each(N, [=](Index j) { c[j] = b[j]; });
  });
}

}  // namespace detail

/// C = op(A) op(B) + beta C, or op(A) op(B) + bias: cuBLAS chooses the order of the sum, by shape.
/// To cuBLAS a row-major matrix is its transpose, so it is asked for C^T = op(B)^T op(A)^T.
template <class T>
void gemm(bool transpose_a, bool transpose_b, Index M, Index N, Index K, const T* A, Index lda,
          const T* B, Index ldb, T beta, T* C, Index ldc, const T* bias = nullptr) {
  if (M == 0 || N == 0) return;
  if (bias) detail::start_rows(C, ldc, Index(0), bias, Index(0), 1, M, N), beta = T(1);
  const T one = 1;
  constexpr cudaDataType_t type = detail::cuda_type<T>();
  WIDENET_CHECK_BLAS(cublasGemmEx_64(
      detail::cublas(), detail::operation(transpose_b), detail::operation(transpose_a), N, M, K,
      &one, B, type, ldb, A, type, lda, &beta, C, type, ldc, detail::compute_type<T>(),
      CUBLAS_GEMM_DEFAULT));
}

namespace detail {

/// Where the n items of A, of B and of C begin.
template <class T>
void point_to_items(T** to, const Matrix<const T>& A, const Matrix<const T>& B, const Matrix<T>& C,
                    Index inner, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) {
    const Index o = i / inner, h = i % inner;
    to[i] = const_cast<T*>(A.data) + o * A.outer + h * A.inner;
    to[n + i] = const_cast<T*>(B.data) + o * B.outer + h * B.inner;
    to[2 * n + i] = C.data + o * C.outer + h * C.inner;
  });
}

/// Whether all rows of all items begin at multiples of 16 bytes. Kernels that round factors for
/// speed read so much at once; of a list cuBLAS knows no pointers, and cannot choose others itself.
template <class T> bool is_aligned(const Matrix<T>& m) {
  const Index step = m.ld | m.outer | m.inner;
  return reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0 && step * Index(sizeof(T)) % 16 == 0;
}

}  // namespace detail

/// The same for outer * inner products of one shape. They are given by pointers: the heads of
/// attention lie side by side in the rows of a sequence, so no one stride leads to the next item.
template <class T>
void gemm_batched(bool transpose_a, bool transpose_b, Index outer, Index inner, Index M, Index N,
                  Index K, const Matrix<const T>& A, const Matrix<const T>& B, T beta,
                  const Matrix<T>& C) {
  const Index n = outer * inner;
  if (n == 0 || M == 0 || N == 0) return;
  const Buffer<T*> items(3 * n);
  detail::point_to_items(items.data(), A, B, C, inner, n);
  const auto at = [&](Index i) { return reinterpret_cast<void**>(items.data() + i); };
  const T one = 1;
  constexpr cudaDataType_t type = detail::cuda_type<T>();
  const bool may_round = detail::is_aligned(A) && detail::is_aligned(B) && detail::is_aligned(C);
  const cublasComputeType_t compute =
      may_round || sizeof(T) == 8 ? detail::compute_type<T>() : CUBLAS_COMPUTE_32F;
  WIDENET_CHECK_BLAS(cublasGemmBatchedEx_64(
      detail::cublas(), detail::operation(transpose_b), detail::operation(transpose_a), N, M, K,
      &one, at(n), type, B.ld, at(0), type, A.ld, &beta, at(2 * n), type, C.ld, n,
      compute, CUBLAS_GEMM_DEFAULT));
}

/// The same for E experts whose rows lie in slots. The counts stay on the device: all slots are
/// multiplied, and those that are empty hold zeros on at least one side of every sum. The price is
/// the share of empty slots; tests/bench/train_step reports it, padded_gflop beside gflop.
template <class T>
void gemm_grouped(bool transpose_a, bool transpose_b, Index E, Index M, Index N, Index K,
                  const Matrix<const T>& A, const Matrix<const T>& B, T beta, const Matrix<T>& C,
                  const Matrix<const T>& bias, const std::int32_t*) {
  if (E == 0 || M == 0 || N == 0) return;
  if (bias.data)
    detail::start_rows(C.data, C.ld, C.outer, bias.data, bias.outer, E, M, N), beta = T(1);
  const T one = 1;
  constexpr cudaDataType_t type = detail::cuda_type<T>();
  WIDENET_CHECK_BLAS(cublasGemmStridedBatchedEx_64(
      detail::cublas(), detail::operation(transpose_b), detail::operation(transpose_a), N, M, K,
      &one, B.data, type, B.ld, B.outer, A.data, type, A.ld, A.outer, &beta, C.data, type, C.ld,
      C.outer, E, detail::compute_type<T>(), CUBLAS_GEMM_DEFAULT));
}

#else

// Matrix products on the CPU. Here M, N and K are those of BLAS: C (M, N) = op(A) (M, K) op(B)
// (K, N), where op transposes if told to. `ld` is the distance of two rows in memory.
//
//   s = start[i, j];   for k = 0 .. K-1:  s = fma(op(A)[i, k], op(B)[k, j], s);   C[i, j] = s
//
// Every element of C is this one chain, rounded once per step. So its bits depend on its row of
// op(A), its column of op(B) and where it starts, and on nothing else: not on the threads, the rows
// beside it, the blocks below, or the instruction set.

/// A matrix in memory, or several: number (b, h) begins at data + b * outer + h * inner.
template <class T> struct Matrix {
  T* data;
  Index ld, outer = 0, inner = 0;
};

namespace detail {

/// One product. C starts from the row `bias` if there is one, and from beta C if not.
template <class T> struct Product {
  bool transpose_a, transpose_b;
  Index M, N, K;
  const T* A;
  Index lda;
  const T* B;
  Index ldb;
  T beta;
  T* C;
  Index ldc;
  const T* bias;
};

/// C *= beta where that is not left to the first step of the sums.
template <class T>
void scale_block(const Product<T>& p, Index i0, Index i1, Index j0, Index j1) {
  if (p.bias || p.beta == T(0) || p.beta == T(1)) return;
  for (Index i = i0; i < i1; ++i)
    for (Index j = j0; j < j1; ++j) p.C[i * p.ldc + j] *= p.beta;
}

#ifdef WIDENET_VECTOR

// A kind of vector register, and the tile of C that fits into 16 or 32 of them beside what is read
// of A and B: `rows` rows of two registers, or `narrow_rows` rows of one.

#if defined(__AVX512F__)
template <class T> struct Avx512;
template <> struct Avx512<float> {
  using Register = __m512;
  static constexpr Index width = 16, rows = 14, narrow_rows = 14;
  static Register load(const float* x) { return _mm512_loadu_ps(x); }
  static Register repeat(const float* x) { return _mm512_set1_ps(*x); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  static void store(float* x, Register a) { _mm512_storeu_ps(x, a); }
};
template <> struct Avx512<double> {
  using Register = __m512d;
  static constexpr Index width = 8, rows = 14, narrow_rows = 14;
  static Register load(const double* x) { return _mm512_loadu_pd(x); }
  static Register repeat(const double* x) { return _mm512_set1_pd(*x); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_pd(a, b, c); }
  static void store(double* x, Register a) { _mm512_storeu_pd(x, a); }
};
#elif defined(__x86_64__)
template <class T> struct Avx2;
template <> struct Avx2<float> {
  using Register = __m256;
  static constexpr Index width = 8, rows = 6, narrow_rows = 12;
  WIDENET_VECTOR_TARGET static Register load(const float* x) { return _mm256_loadu_ps(x); }
  WIDENET_VECTOR_TARGET static Register repeat(const float* x) { return _mm256_broadcast_ss(x); }
  WIDENET_VECTOR_TARGET static Register fma(Register a, Register b, Register c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  WIDENET_VECTOR_TARGET static void store(float* x, Register a) { _mm256_storeu_ps(x, a); }
};
template <> struct Avx2<double> {
  using Register = __m256d;
  static constexpr Index width = 4, rows = 6, narrow_rows = 12;
  WIDENET_VECTOR_TARGET static Register load(const double* x) { return _mm256_loadu_pd(x); }
  WIDENET_VECTOR_TARGET static Register repeat(const double* x) { return _mm256_broadcast_sd(x); }
  WIDENET_VECTOR_TARGET static Register fma(Register a, Register b, Register c) {
    return _mm256_fmadd_pd(a, b, c);
  }
  WIDENET_VECTOR_TARGET static void store(double* x, Register a) { _mm256_storeu_pd(x, a); }
};
#else
template <class T> struct Neon;
template <> struct Neon<float> {
  using Register = float32x4_t;
  static constexpr Index width = 4, rows = 8, narrow_rows = 12;
  static Register load(const float* x) { return vld1q_f32(x); }
  static Register repeat(const float* x) { return vld1q_dup_f32(x); }
  static Register fma(Register a, Register b, Register c) { return vfmaq_f32(c, a, b); }
  static void store(float* x, Register a) { vst1q_f32(x, a); }
};
template <> struct Neon<double> {
  using Register = float64x2_t;
  static constexpr Index width = 2, rows = 8, narrow_rows = 12;
  static Register load(const double* x) { return vld1q_f64(x); }
  static Register repeat(const double* x) { return vld1q_dup_f64(x); }
  static Register fma(Register a, Register b, Register c) { return vfmaq_f64(c, a, b); }
  static void store(double* x, Register a) { vst1q_f64(x, a); }
};
#endif

/// The operands of one tile; the pointers are where the tile begins.
template <class T> struct TileArgs {
  Index depth;  // steps of k
  const T* a;
  Index a_row, a_k;  // distance of two rows, of two steps
  const T* b;
  Index b_k;
  const T* start;
  Index start_row;
  T* c;
  Index c_row;
};

/// One tile of C, V registers wide: sum i belongs to row i / V, register i % V. A fold spells the
/// sums out, so that they stay in registers whatever the compiler thinks of unrolling. The next
/// tile of C is fetched beforehand.
template <class P, Index V, class T, class Sums> struct Tile;
template <class P, Index V, class T, std::size_t... Sum>
struct Tile<P, V, T, std::index_sequence<Sum...>> {
  static constexpr Index row(std::size_t i) { return static_cast<Index>(i) / V; }
  static constexpr Index column(std::size_t i) { return static_cast<Index>(i) % V * P::width; }

  WIDENET_VECTOR_TARGET static void run(const TileArgs<T>& args) {
    const TileArgs<T> t = args;
    const T *a = t.a, *b = t.b;
    typename P::Register sum[] = {P::load(t.start + row(Sum) * t.start_row + column(Sum))...};
    (__builtin_prefetch(t.c + row(Sum) * t.c_row + column(Sum) + V * P::width, 1), ...);
#  ifdef __clang__
#    pragma clang loop unroll(disable)  // the unrolled loop runs out of registers
#  endif
    for (Index k = t.depth; k > 0; --k, a += t.a_k, b += t.b_k) {
      const typename P::Register b_k[] = {P::load(b), P::load(b + (V - 1) * P::width)};
      __builtin_prefetch(b + 8 * t.b_k);
      if constexpr (V * sizeof(b_k[0]) > 64) __builtin_prefetch(b + 8 * t.b_k + P::width);
      ((sum[Sum] = P::fma(P::repeat(a + row(Sum) * t.a_row), b_k[Sum % V], sum[Sum])), ...);
    }
    (P::store(t.c + row(Sum) * t.c_row + column(Sum), sum[Sum]), ...);
  }
};

/// The tile of `rows` rows, which may be 1 to sizeof...(R).
template <class P, Index V, class T, std::size_t... R>
void run_tile(Index rows, const TileArgs<T>& args, std::index_sequence<R...>) {
  static constexpr void (*tiles[])(const TileArgs<T>&) = {
      Tile<P, V, T, std::make_index_sequence<(R + 1) * V>>::run...};
  tiles[rows - 1](args);
}

/// Copies n < 2 * Piece values, without a loop.
template <Index Piece, class T> void copy_few(T* to, const T* from, Index n) {
  if constexpr (Piece > 0) {
    if (n & Piece) std::memcpy(to, from, Piece * sizeof(T));
    copy_few<Piece / 2>(to + (n & Piece), from + (n & Piece), n);
  }
}

/// to[k * to_row + j] = b_j[k] for j, k < 4
template <class T>
void transpose_4x4(T* to, Index to_row, const T* b0, const T* b1, const T* b2, const T* b3) {
  for (Index k = 0; k < 4; ++k, to += to_row)
    to[0] = b0[k], to[1] = b1[k], to[2] = b2[k], to[3] = b3[k];
}
#ifdef __SSE2__  // about three times as fast as what compilers make of the loop
inline void transpose_4x4(float* to, Index to_row, const float* b0, const float* b1,
                          const float* b2, const float* b3) {
  __m128 x0 = _mm_loadu_ps(b0), x1 = _mm_loadu_ps(b1), x2 = _mm_loadu_ps(b2);
  __m128 x3 = _mm_loadu_ps(b3);
  _MM_TRANSPOSE4_PS(x0, x1, x2, x3);
  _mm_storeu_ps(to, x0), _mm_storeu_ps(to + to_row, x1);
  _mm_storeu_ps(to + 2 * to_row, x2), _mm_storeu_ps(to + 3 * to_row, x3);
}
inline void transpose_4x4(double* to, Index to_row, const double* b0, const double* b1,
                          const double* b2, const double* b3) {
  for (Index k = 0; k < 4; k += 2, to += 2 * to_row) {
    const __m128d x0 = _mm_loadu_pd(b0 + k), x1 = _mm_loadu_pd(b1 + k);
    const __m128d x2 = _mm_loadu_pd(b2 + k), x3 = _mm_loadu_pd(b3 + k);
    _mm_storeu_pd(to, _mm_unpacklo_pd(x0, x1)), _mm_storeu_pd(to + 2, _mm_unpacklo_pd(x2, x3));
    _mm_storeu_pd(to + to_row, _mm_unpackhi_pd(x0, x1));
    _mm_storeu_pd(to + to_row + 2, _mm_unpackhi_pd(x2, x3));
  }
}
#endif

/// panel[k * width + j] = op(B)[k, j] for k < depth and j < columns <= width. What a panel has to
/// the right of the last column is 0 or some value of B, and its sums are thrown away.
template <Index width, class T>
void pack_panel(T* panel, const T* B, Index ldb, bool transpose, Index depth, Index columns) {
  if (!transpose && columns == width) {
    for (Index k = 0; k < depth; ++k)
      std::memcpy(panel + k * width, B + k * ldb, width * sizeof(T));
  } else if (!transpose) {
    std::memset(panel, 0, static_cast<std::size_t>(depth * width) * sizeof(T));
    for (Index k = 0; k < depth; ++k) copy_few<width / 2>(panel + k * width, B + k * ldb, columns);
  } else {
    constexpr Index step = width < 4 ? width : 4;
    for (Index j = 0; j < width; j += step) {
      const auto row = [&](Index r) { return B + std::min(j + r, columns - 1) * ldb; };
      const T* const b[] = {row(0), row(1), row(2), row(3)};
      Index k = 0;
      for (; step == 4 && k + 4 <= depth; k += 4)
        transpose_4x4(panel + k * width + j, width, b[0] + k, b[1] + k, b[2] + k, b[3] + k);
      for (; k < depth; ++k)
        for (Index r = 0; r < step; ++r) panel[k * width + j + r] = b[r][k];
    }
  }
}

#endif  // WIDENET_VECTOR

// A block's sums stop after max_depth steps and go on from C with the next. So the piece of op(B)
// that a block needs, packed, fills half of a second level cache of 512 KiB.
inline constexpr Index max_depth = 256, max_height = 1920;
template <class T> inline constexpr Index max_width = 1024 / static_cast<Index>(sizeof(T));
inline constexpr Index max_tile_height = 14;

#ifdef WIDENET_VECTOR

/// Rows i0 .. i1-1 of columns j0 .. j1-1 of C, in tiles of V registers. op(B) is packed into panels
/// as wide as a tile, unless that would cost more than it saves; then the rows of op(A) pass by.
template <class P, Index V, class T>
void multiply_tiles(const Product<T>& p, Index i0, Index i1, Index j0, Index j1, T* workspace) {
  constexpr Index width = V * P::width, height = V == 1 ? P::narrow_rows : P::rows;
  static_assert(height <= max_tile_height, "the workspace must hold the rows of a tile");
  constexpr auto heights = std::make_index_sequence<static_cast<std::size_t>(height)>();
  static constexpr T zeros[static_cast<std::size_t>(width)] = {};
  T edge[static_cast<std::size_t>(height * width)] = {};  // a tile that sticks out of C
  T *const packed_a = workspace, *const packed_b = workspace + max_tile_height * max_depth;
  const Index num_pieces = std::max<Index>(1, (p.K + max_depth - 1) / max_depth);
  const Index num_tiles = (i1 - i0 + height - 1) / height;
  const bool pack_b = p.transpose_b || num_tiles > 4;
  const bool pack_a = p.transpose_a && p.M >= height && j1 - j0 > 2 * width;

  for (Index piece = 0; piece < num_pieces; ++piece) {
    const Index k0 = p.K * piece / num_pieces, depth = p.K * (piece + 1) / num_pieces - k0;
    const T* const B = p.B + (p.transpose_b ? k0 : k0 * p.ldb);
    for (Index j = j0; j < j1; j += width)
      if (pack_b || j + width > j1)
        pack_panel<width>(packed_b + (j - j0) * depth, B + j * (p.transpose_b ? p.ldb : 1), p.ldb,
                          p.transpose_b, depth, std::min(width, j1 - j));

    for (Index tile = 0; tile < num_tiles; ++tile) {
      const Index i = i0 + (i1 - i0) * tile / num_tiles;  // the tiles differ by one row at most
      const Index rows = i0 + (i1 - i0) * (tile + 1) / num_tiles - i;
      TileArgs<T> t{};
      t.depth = depth;
      if (pack_a) {  // always `height` columns of A, moved left where they would end outside
        const Index first = std::min(i, p.M - height);
        for (Index k = 0; k < depth; ++k)
          std::memcpy(packed_a + k * height, p.A + (k0 + k) * p.lda + first, height * sizeof(T));
        t.a = packed_a + (i - first), t.a_row = 1, t.a_k = height;
      } else if (p.transpose_a) {
        t.a = p.A + k0 * p.lda + i, t.a_row = 1, t.a_k = p.lda;
      } else {
        t.a = p.A + i * p.lda + k0, t.a_row = p.lda, t.a_k = 1;
        // The rows of the next tile are on their way while this one is worked on: short rows far
        // apart are not foreseen by the processor. A training step takes 5 to 10 % less.
        for (Index r = i + rows; r < std::min(i1, i + rows + height); ++r)
          for (Index k = 0; k < depth; k += 64 / static_cast<Index>(sizeof(T)))
            __builtin_prefetch(p.A + r * p.lda + k0 + k);
      }
      for (Index j = j0; j < j1; j += width) {
        const Index columns = std::min(width, j1 - j);
        t.b = packed_b + (j - j0) * depth, t.b_k = width;
        if (!pack_b && columns == width) t.b = B + j, t.b_k = p.ldb;
        T* const c = p.C + i * p.ldc + j;
        t.c = c, t.start = c, t.c_row = t.start_row = p.ldc;
        if (piece == 0 && p.bias) t.start = p.bias + j, t.start_row = 0;
        else if (piece == 0 && p.beta == T(0)) t.start = zeros, t.start_row = 0;
        if (columns == width) {
          run_tile<P, V>(rows, t, heights);
          continue;
        }
        if (t.start != zeros) {
          for (Index r = 0; r < rows; ++r)
            copy_few<width / 2>(edge + r * width, t.start + r * t.start_row, columns);
          t.start = edge, t.start_row = width;
        }
        t.c = edge, t.c_row = width;
        run_tile<P, V>(rows, t, heights);
        for (Index r = 0; r < rows; ++r)
          copy_few<width / 2>(c + r * p.ldc, edge + r * width, columns);
      }
    }
  }
}

inline bool has_vectors() {
#if defined(__x86_64__) && !(defined(__AVX2__) && defined(__FMA__))
  static const bool found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return found;
#else
  return true;
#endif
}

#endif  // WIDENET_VECTOR

#if WIDENET_EIGEN

/// The oracle. Eigen's bits depend on the height of a product, so a block has always 64 rows, some
/// of them zero.
template <class T>
void multiply_block(const Product<T>& p, Index i0, Index i1, Index j0, Index j1, T*) {
  using Dense = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using View = Eigen::Map<const Dense, 0, Eigen::OuterStride<>>;
  const Index rows = i1 - i0, columns = j1 - j0;
  Dense a = Dense::Zero(64, p.K), sum(64, columns);
  const View A(p.A + (p.transpose_a ? i0 : i0 * p.lda), p.transpose_a ? p.K : rows,
               p.transpose_a ? rows : p.K, Eigen::OuterStride<>(p.lda));
  const View B(p.B + (p.transpose_b ? j0 * p.ldb : j0), p.transpose_b ? columns : p.K,
               p.transpose_b ? p.K : columns, Eigen::OuterStride<>(p.ldb));
  if (p.transpose_a) a.topRows(rows) = A.transpose();
  else a.topRows(rows) = A;
  if (p.transpose_b) sum.noalias() = a * B.transpose();
  else sum.noalias() = a * B;

  scale_block(p, i0, i1, j0, j1);
  for (Index i = i0; i < i1; ++i)
    for (Index j = j0; j < j1; ++j) {
      T& c = p.C[i * p.ldc + j];
      c = sum(i - i0, j - j0) + (p.bias ? p.bias[j] : p.beta == T(0) ? T(0) : c);
    }
}

#else

template <class T>
void multiply_block(const Product<T>& p, Index i0, Index i1, Index j0, Index j1,
                    [[maybe_unused]] T* workspace) {
  scale_block(p, i0, i1, j0, j1);
#  ifdef WIDENET_VECTOR
  if (has_vectors()) {
    using P = WIDENET_VECTOR<T>;
    const Index rest = (j1 - j0) % (2 * P::width), j = rest > P::width ? j1 : j1 - rest;
    if (j0 < j) multiply_tiles<P, 2>(p, i0, i1, j0, j, workspace);
    if (j < j1) multiply_tiles<P, 1>(p, i0, i1, j, j1, workspace);
    return;
  }
#  endif
  for (Index i = i0; i < i1; ++i) {  // the definition; slow, very slow where fma is no instruction
    T* const c = p.C + i * p.ldc;
    for (Index j = j0; j < j1; ++j) c[j] = p.bias ? p.bias[j] : p.beta == T(0) ? T(0) : c[j];
    for (Index k = 0; k < p.K; ++k) {
      const T a = p.transpose_a ? p.A[k * p.lda + i] : p.A[i * p.lda + k];
      const T* const b = p.transpose_b ? p.B + k : p.B + k * p.ldb;
      const Index step = p.transpose_b ? p.ldb : 1;
      for (Index j = j0; j < j1; ++j) c[j] = std::fma(a, b[j * step], c[j]);
    }
  }
}

#endif

/// n products, cut into blocks that the threads take in turn. Number i is product(i). It has the
/// shape of `like`, but if there are counts: then it has count[i] rows, or, if op(A) is A^T, steps.
template <class T>
void multiply_all(Index n, const Product<T>& like, const std::int32_t* count,
                  const std::function<Product<T>(Index)>& product) {
  const auto sum = [&](const auto& f) {  // of f(M, K) over the products
    if (!count) return n * f(like.M, like.K);
    Index total = 0;
    for (Index i = 0; i < n; ++i)
      total += like.transpose_a ? f(like.M, Index{count[i]}) : f(Index{count[i]}, like.K);
    return total;
  };
  Index threads = 1;
  const Index work = sum([&](Index M, Index K) { return M * like.N * (K + 8); });
#ifdef _OPENMP
  // Our own choice: below 2^19 multiplications, some 10 microseconds of one core, wake no others.
  if (work >= Index{1} << 19 && !omp_in_parallel()) threads = omp_get_max_threads();
#endif
  // Large blocks read their operands less often, small ones keep all threads busy to the end. The
  // sums of A^T are long: cutting columns before rows packs less.
  Index height = WIDENET_EIGEN ? 64 : max_height, width = max_width<T>;
  const auto num_rows = [&](Index M) { return (M + height - 1) / height; };
  const auto num_columns = [&] { return (like.N + width - 1) / width; };
  const auto num_blocks = [&] {
    return sum([&](Index M, Index) { return num_rows(M) * num_columns(); });
  };
  if (!WIDENET_EIGEN && threads > 1) {
    const Index wanted = threads * (count || work >= Index{1} << 24 ? 4 : 1);
    const auto is_uneven = [&] {
      return num_blocks() < wanted || (!count && num_blocks() % threads != 0);
    };
    while (like.transpose_a && width > 64 && is_uneven()) width /= 2;
    for (Index parts = 2; like.M / parts >= 24 && is_uneven(); ++parts)
      height = (like.M + parts - 1) / parts;
    while (width > 32 && is_uneven()) width /= 2;
  }
  const Index end = num_blocks();
  if (end == 0) return;
  threads = std::min(threads, end);

  const Index size = max_depth * (max_tile_height + max_width<T>);
  static thread_local Buffer<T> workspace;
  if (workspace.size() < threads * size) workspace = Buffer<T>(threads * size);
  T* const space = workspace.data();
  std::atomic<Index> next{0};
  const auto run = [&](Index thread) {
    Index i = 0, first = 0;  // product i begins with block `first`
    Product<T> p = product(0);
    for (Index block = next++; block < end; block = next++) {
      while (block >= first + num_rows(p.M) * num_columns())
        first += num_rows(p.M) * num_columns(), p = product(++i);
      const Index row = (block - first) / num_columns(), end_row = num_rows(p.M);
      const Index j0 = (block - first) % num_columns() * width;
      multiply_block(p, p.M * row / end_row, p.M * (row + 1) / end_row, j0,
                     std::min(p.N, j0 + width), space + thread * size);
    }
  };
#ifdef _OPENMP
  if (threads > 1) {
#  pragma omp parallel num_threads(static_cast<int>(threads))
    run(omp_get_thread_num());
    return;
  }
#endif
  run(0);
}

}  // namespace detail

/// C = op(A) op(B) + beta C, or + the row `bias` (N) if there is one. If C starts from a bias or
/// from beta = 0, what it held before does not matter.
template <class T>
void gemm(bool transpose_a, bool transpose_b, Index M, Index N, Index K, const T* A, Index lda,
          const T* B, Index ldb, T beta, T* C, Index ldc, const T* bias = nullptr) {
  const detail::Product<T> p = {transpose_a, transpose_b, M,    N, K,   A,
                                lda,         B,           ldb, beta, C, ldc, bias};
  detail::multiply_all<T>(1, p, nullptr, [&](Index) { return p; });
}

/// The same for (B, H) products of one shape, as attention has them for every sequence and head.
template <class T>
void gemm_batched(bool transpose_a, bool transpose_b, Index num_outer, Index num_inner, Index M,
                  Index N, Index K, const Matrix<const T>& A, const Matrix<const T>& B, T beta,
                  const Matrix<T>& C) {
  const detail::Product<T> like = {transpose_a, transpose_b, M,    N,      K,    A.data, A.ld,
                                   B.data,      B.ld,        beta, C.data, C.ld, nullptr};
  detail::multiply_all<T>(num_outer * num_inner, like, nullptr, [&](Index i) {
    const Index b = i / num_inner, h = i % num_inner;
    detail::Product<T> p = like;
    p.A += b * A.outer + h * A.inner, p.B += b * B.outer + h * B.inner;
    p.C += b * C.outer + h * C.inner;
    return p;
  });
}

/// The same for E experts, of which expert e has filled count[e] slots only. They are rows of A and
/// C, and the other rows of C are left alone; or, if op(A) is A^T, what the sums run over.
template <class T>
void gemm_grouped(bool transpose_a, bool transpose_b, Index E, Index M, Index N, Index K,
                  const Matrix<const T>& A, const Matrix<const T>& B, T beta, const Matrix<T>& C,
                  const Matrix<const T>& bias, const std::int32_t* count) {
  const detail::Product<T> like = {transpose_a, transpose_b, M,    N,      K,    A.data,   A.ld,
                                   B.data,      B.ld,        beta, C.data, C.ld, bias.data};
  detail::multiply_all<T>(E, like, count, [&](Index e) {
    detail::Product<T> p = like;
    (transpose_a ? p.K : p.M) = count[e];
    p.A += e * A.outer, p.B += e * B.outer, p.C += e * C.outer;
    if (p.bias) p.bias += e * bias.outer;
    return p;
  });
}

#endif

/// z = x w, every element one chain of fused multiply-adds over k: everywhere the bits of our gemm.
template <class T>
void gemm_in_order(Index M, Index N, Index K, const T* x, const T* w, T* z) {
#if WIDENET_CUDA || WIDENET_EIGEN
  for_each(M * N, [=] WIDENET_KERNEL(Index i) {
    T sum = 0;
    for (Index k = 0; k < K; ++k) sum = std::fma(x[i / N * K + k], w[k * N + i % N], sum);
    z[i] = sum;
  });
#else
  gemm(false, false, M, N, K, x, K, w, N, T(0), z, N);
#endif
}

// [6] KERNELS =====================================================================================
//
// Outputs first, then inputs, then sizes; each backward mirrors its forward. The comment of a
// kernel is its equation; shapes and sources are with the operations.

/// Where a kernel leaves a gradient: the first contribution is stored, later ones are added to it.
template <class T>
struct Sink {
  T* data = nullptr;
  bool adds = false;
  WIDENET_HOST_DEVICE void put(Index i, T value) const { data[i] = adds ? data[i] + value : value; }
  WIDENET_HOST_DEVICE Sink at(Index offset) const { return {data + offset, adds}; }
  T beta() const { return adds ? T(1) : T(0); }  // for gemm
  explicit operator bool() const { return data != nullptr; }
};

/// Which values dropout keeps, and by how much it scales them: 0 or 1 / (1 - fraction).
template <class T>
struct DropoutMask {
  Rng rng{0};
  double fraction = 0;
  WIDENET_HOST_DEVICE T operator()(Index i) const {
    return rng.uniform(i) < fraction ? T(0) : T(1 / (1 - fraction));
  }
};

enum class Gelu { tanh, erf };
enum class Norm { layer_norm, rms_norm };

namespace kernel {

// Elements ----------------------------------------------------------------------------------------

/// to.put(i, value(i)) for every i < n, with the choice of Sink made once: where `value` is long,
/// compilers leave it in the loop, which then does not become vector instructions.
template <class T, class F> void put_each(Sink<T> to, Index n, F value) {
  T* const data = to.data;
  if (to.adds)
    for_each(n, [=] WIDENET_KERNEL(Index i) { data[i] += value(i); });
  else
    for_each(n, [=] WIDENET_KERNEL(Index i) { data[i] = value(i); });
}
template <class T> void fill(T* y, T value, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = value; });
}
template <class T> void fill_uniform(T* y, Rng rng, T low, T high, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = low + (high - low) * T(rng.uniform(i)); });
}
/// Value i comes from words(i / 4): its first two words make the normals 0 and 1, the others 2, 3.
template <class T> void fill_normal(T* y, Rng rng, T deviation, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = deviation * T(normal(rng, i)); });
}
/// y[i] = -scale log(-log(u)), u uniform in (0, 1)
template <class T> void fill_gumbel(T* y, Rng rng, T scale, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) {
    y[i] = scale * T(-math::log(-math::log(rng.uniform(i))));
  });
}
template <class T> void add(T* y, const T* a, const T* b, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = a[i] + b[i]; });
}
template <class T> void scale(T* y, const T* x, T factor, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = factor * x[i]; });
}
template <class T> void accumulate(Sink<T> dx, const T* dy, T factor, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { dx.put(i, factor * dy[i]); });
}
template <class T> void multiply(T* y, const T* a, const T* b, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = a[i] * b[i]; });
}
template <class T> void multiply_backward(Sink<T> da, const T* dy, const T* b, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { da.put(i, dy[i] * b[i]); });
}
/// y[n, d] = x[n, d] + block[n mod period, d]: the same rows of D values for every sequence.
template <class T>
void add_periodic(T* y, const T* x, const T* block, Index period, Index N, Index D) {
  for_each_row(N, D, [=] WIDENET_KERNEL(Index n, Team team) {
    const T *const x_n = x + n * D, *const block_n = block + n % period * D;
    team.each(D, [=](Index d) { y[n * D + d] = x_n[d] + block_n[d]; });
  });
}

template <class T> void relu_forward(T* y, const T* x, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = x[i] <= T(0) ? T(0) : x[i]; });  // keeps NaN
}
template <class T> void relu_backward(Sink<T> dx, const T* dy, const T* x, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { dx.put(i, x[i] > T(0) ? dy[i] : T(0)); });
}
template <class T> void tanh_forward(T* y, const T* x, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = math::tanh(x[i]); });
}
/// dx = dy (1 - y^2)    [d tanh]
template <class T> void tanh_backward(Sink<T> dx, const T* dy, const T* y, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { dx.put(i, dy[i] * (T(1) - y[i] * y[i])); });
}
template <class T> void gelu_forward(T* y, const T* x, Gelu form, Index n) {
  if (form == Gelu::tanh)
    for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = math::gelu_tanh(x[i]); });
  else
    for_each(n, [=] WIDENET_KERNEL(Index i) { y[i] = math::gelu_erf(x[i]); });
}
template <class T> void gelu_backward(Sink<T> dx, const T* dy, const T* x, Gelu form, Index n) {
  if (form == Gelu::tanh)
    put_each(dx, n, [=] WIDENET_KERNEL(Index i) {
      return dy[i] * math::gelu_tanh_derivative(x[i]);
    });
  else
    put_each(dx, n, [=] WIDENET_KERNEL(Index i) {
      return dy[i] * math::gelu_erf_derivative(x[i]);
    });
}
/// dx[i] = dy[0] for every i: the gradient of a sum.    [d sum]
template <class T> void spread(Sink<T> dx, const T* dy, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { dx.put(i, dy[0]); });
}
/// y[i] = mask(i) x[i]; its own backward, since the mask is a function of i.    [d dropout]
template <class T> void dropout(Sink<T> y, const T* x, DropoutMask<T> mask, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { y.put(i, mask(i) * x[i]); });
}

// Rows --------------------------------------------------------------------------------------------

/// sums[g, d] = value(g, 0, d) + ... + value(g, N-1, d), by teams of 32 columns. Chunks of 64 rows
/// are added up side by side, then the chunks in order: the same tree for every number of threads.
template <class T, class F>
void column_sums(Sink<T> sums, Index groups, Index N, Index D, F value) {
  constexpr Index chunk = 64;
  const Index num_chunks = (N + chunk - 1) / chunk, num_strips = (D + num_lanes - 1) / num_lanes;
  const Buffer<T> partial_sums(groups * num_chunks * D);
  T* const partial = partial_sums.data();
  const Index num_teams = groups * num_chunks * num_strips;
  for_each_row(num_teams, chunk * num_lanes, [=] WIDENET_KERNEL(Index i, Team team) {
    const Index first = i % num_strips * num_lanes, group_chunk = i / num_strips;
    const Index g = group_chunk / num_chunks, begin = group_chunk % num_chunks * chunk;
    const Index rows = N - begin < chunk ? N - begin : chunk;
    T* const p = partial + group_chunk * D + first;
    const auto at = [=](Index n, Index l) { return value(g, begin + n, first + l); };
    team.add_down<T>(rows, D - first, nullptr, at, [=](Index l, T sum) { p[l] = sum; });
  });
  for_each_row(groups * num_strips, num_chunks * num_lanes, [=] WIDENET_KERNEL(Index i, Team team) {
    const Index first = i % num_strips * num_lanes, g = i / num_strips;
    const auto at = [=](Index c, Index l) { return partial[(g * num_chunks + c) * D + first + l]; };
    const auto put = [=](Index l, T sum) { sums.put(g * D + first + l, sum); };
    team.add_down<T>(num_chunks, D - first, nullptr, at, put);
  });
}

template <class T>
void add_rows(Sink<T> sums, const T* x, Index N, Index D) {
  column_sums(sums, 1, N, D, [=] WIDENET_KERNEL(Index, Index n, Index d) { return x[n * D + d]; });
}

/// y[n, d] = (x[n, d] - mean[n]) rstd[n] gamma[d] + beta[d]    [eq 5]
/// Without beta it is RMSNorm: mean[n] is 0, whatever the values are.
template <class T>
void layer_norm_forward(T* y, T* mean, T* rstd,  //
                        const T* x, const T* gamma, const T* beta, Index N, Index D, T eps) {
  for_each_row(N, D, [=] WIDENET_KERNEL(Index n, Team team) {
    const T* x_n = x + n * D;
    T* y_n = y + n * D;
    const T m = beta ? team.sum<T>(D, [=](Index d) { return x_n[d]; }) / T(D) : T(0);
    const T variance = team.sum<T>(D, [=](Index d) { return (x_n[d] - m) * (x_n[d] - m); }) / T(D);
    const T r = T(1) / std::sqrt(variance + eps);
    if (beta)
      team.each(D, [=](Index d) { y_n[d] = (x_n[d] - m) * r * gamma[d] + beta[d]; });
    else
      team.each(D, [=](Index d) { y_n[d] = x_n[d] * r * gamma[d]; });
    if (team.first()) mean[n] = m, rstd[n] = r;
  });
}
/// dx = rstd (dh - mean(dh) - h mean(dh h)),  h = (x - mean) rstd,  dh = dy gamma   [d layer_norm]
/// Where the mean was not taken away, the term mean(dh) is not there.    [d rms_norm]
template <class T>
void layer_norm_backward_x(Sink<T> dx, const T* dy, const T* x, const T* gamma, const T* mean,
                           const T* rstd, bool is_centred, Index N, Index D) {
  for_each_row(N, D, [=] WIDENET_KERNEL(Index n, Team team) {
    const T *x_n = x + n * D, *dy_n = dy + n * D, m = mean[n], r = rstd[n];
    const Sink<T> dx_n = dx.at(n * D);
    const auto h = [=](Index d) { return (x_n[d] - m) * r; };
    const auto dh = [=](Index d) { return dy_n[d] * gamma[d]; };
    const T mean_dh = is_centred ? team.sum<T>(D, dh) / T(D) : T(0);
    const T mean_dh_h = team.sum<T>(D, [=](Index d) { return dh(d) * h(d); }) / T(D);
    team.each(D, [=](Index d) { dx_n.put(d, r * (dh(d) - mean_dh - h(d) * mean_dh_h)); });
  });
}
/// dgamma[d] = sum over n of dy[n, d] h[n, d]    [d layer_norm] [d rms_norm]
template <class T>
void layer_norm_backward_gamma(Sink<T> dgamma, const T* dy, const T* x, const T* mean,
                               const T* rstd, Index N, Index D) {
  column_sums(dgamma, 1, N, D, [=] WIDENET_KERNEL(Index, Index n, Index d) {
    return dy[n * D + d] * (x[n * D + d] - mean[n]) * rstd[n];
  });
}

/// y[n, :] = exp(x_n - max) / sum(exp(x_n - max))
template <class T>
void softmax_forward(T* y, const T* x, Index N, Index D) {
  for_each_row(N, D, [=] WIDENET_KERNEL(Index n, Team team) {
    const T* x_n = x + n * D;
    T* y_n = y + n * D;
    const T largest = team.max<T>(D, [=](Index d) { return x_n[d]; });
    team.each(D, [=](Index d) { y_n[d] = math::exp(x_n[d] - largest); });
    const T factor = T(1) / team.sum<T>(D, [=](Index d) { return y_n[d]; });
    team.each(D, [=](Index d) { y_n[d] *= factor; });
  });
}
/// dx = y (dy - sum(dy y))    [d softmax]
template <class T>
void softmax_backward(Sink<T> dx, const T* dy, const T* y, Index N, Index D) {
  for_each_row(N, D, [=] WIDENET_KERNEL(Index n, Team team) {
    const T *y_n = y + n * D, *dy_n = dy + n * D;
    const Sink<T> dx_n = dx.at(n * D);
    const T dot = team.sum<T>(D, [=](Index d) { return dy_n[d] * y_n[d]; });
    team.each(D, [=](Index d) { dx_n.put(d, y_n[d] * (dy_n[d] - dot)); });
  });
}

// Tokens ------------------------------------------------------------------------------------------

/// y[i, :] = x[index[i], :], or 0 where index[i] is -1.
template <class T>
void take_rows(Sink<T> y, const T* x, const std::int32_t* index, Index N, Index D) {
  for_each_row(N, D, [=] WIDENET_KERNEL(Index i, Team team) {
    const bool is_empty = index[i] < 0;
    const T* const row = x + (is_empty ? 0 : index[i]) * D;
    team.each(D, [=](Index d) { y.put(i * D + d, is_empty ? T(0) : row[d]); });
  });
}
/// y[i, :] = table[id[i], :]
template <class T>
void gather_rows(T* y, const T* table, const std::int32_t* id, Index N, Index D) {
  for_each_row(N, D, [=] WIDENET_KERNEL(Index n, Team team) {
    const T* row = table + id[n] * D;
    team.each(D, [=](Index d) { y[n * D + d] = row[d]; });
  });
}
/// dtable[v, :] = sum of dy[i, :] over the places i where v occurs: order[begin[u]], ..., in order
/// of i, where v = id[order[begin[u]]]. One team writes 32 columns of a row.    [d embedding]
template <class T>
void scatter_rows(Sink<T> dtable, const T* dy, const std::int32_t* id, const std::int32_t* order,
                  const std::int32_t* begin, Index num_used, Index D) {
  const Index num_strips = (D + num_lanes - 1) / num_lanes;
  for_each_row(num_used * num_strips, num_lanes, [=] WIDENET_KERNEL(Index i, Team team) {
    const Index u = i / num_strips, first = i % num_strips * num_lanes;
    const std::int32_t* const place = order + begin[u];
    T* const row = dtable.data + id[place[0]] * D + first;
    const auto at = [=](Index n, Index l) { return dy[place[n] * D + first + l]; };
    const auto put = [=](Index l, T sum) { row[l] = sum; };
    team.add_down<T>(begin[u + 1] - begin[u], D - first, row, at, put);
  });
}
/// Copies rows: y[b, t, :] = x[b, t, :] between arrays of Ty and Tx tokens per sequence, starting
/// at token ty and tx.
template <class T>
void copy_tokens(Sink<T> y, Index Ty, Index ty, const T* x, Index Tx, Index tx, Index B, Index T_,
                 Index D) {
  for_each_row(B * T_, D, [=] WIDENET_KERNEL(Index i, Team team) {
    const Sink<T> y_i = y.at((i / T_ * Ty + ty + i % T_) * D);
    const T* x_i = x + (i / T_ * Tx + tx + i % T_) * D;
    team.each(D, [=](Index d) { y_i.put(d, x_i[d]); });
  });
}
/// y[b, 0, :] = row for every sequence b of an array with Ty tokens.
template <class T>
void repeat_row(T* y, Index Ty, const T* row, Index B, Index D) {
  for_each_row(B, D, [=] WIDENET_KERNEL(Index b, Team team) {
    team.each(D, [=](Index d) { y[b * Ty * D + d] = row ? row[d] : T(0); });
  });
}
/// y[b, :] = mean over t of x[b, t, :]
template <class T>
void mean_tokens_forward(T* y, const T* x, Index B, Index T_, Index D) {
  const Index num_strips = (D + num_lanes - 1) / num_lanes;
  for_each_row(B * num_strips, T_ * num_lanes, [=] WIDENET_KERNEL(Index i, Team team) {
    const Index b = i / num_strips, first = i % num_strips * num_lanes;
    const auto at = [=](Index t, Index l) { return x[(b * T_ + t) * D + first + l]; };
    const auto put = [=](Index l, T total) { y[b * D + first + l] = total / T(T_); };
    team.add_down<T>(T_, D - first, nullptr, at, put);
  });
}
template <class T>
void mean_tokens_backward(Sink<T> dx, const T* dy, Index B, Index T_, Index D) {
  for_each_row(B * T_, D, [=] WIDENET_KERNEL(Index i, Team team) {
    team.each(D, [=](Index d) { dx.put(i * D + d, dy[i / T_ * D + d] / T(T_)); });
  });
}
/// sums[d] = sum over b of x[b, 0, d] of an array with T tokens.
template <class T>
void add_first_tokens(Sink<T> sums, const T* x, Index B, Index T_, Index D) {
  column_sums(sums, 1, B, D, [=] WIDENET_KERNEL(Index, Index b, Index d) {
    return x[b * T_ * D + d];
  });
}
/// Cuts images (B, channels, height, width) into patches of side P, rows of (y, x, channel):
/// patches[b, row, column, (y, x, ch)] = image[b, ch, row P + y, column P + x].
template <class T>
void extract_patches(T* patches, const T* image, Index B, Index channels, Index height, Index width,
                     Index P) {
  const Index rows = height / P, columns = width / P, size = P * P * channels;
  for_each_row(B * rows * columns, size, [=] WIDENET_KERNEL(Index i, Team team) {
    const Index b = i / (rows * columns), row = i / columns % rows, column = i % columns;
    team.each(size, [=](Index j) {
      const Index ch = j % channels, x = j / channels % P, y = j / channels / P;
      const Index line = (b * channels + ch) * height + row * P + y;
      patches[i * size + j] = image[line * width + column * P + x];
    });
  });
}

// Attention ---------------------------------------------------------------------------------------

/// Turns each row of scores s (B*H*T, stride S >= T) into probabilities, in place:
/// p[i] = exp(scale s[i] - largest) factor over the keys i that may be attended to, 0 elsewhere and
/// in the padding of the row, with factor = 1 / sum. A row without any such key becomes 0. Leaves
/// largest and factor of each row in `rows`; if they are known from before, takes them from there.
template <class T>
void attention_softmax(T* s, T* rows, bool is_known, const std::uint8_t* key_mask, T scale, Index B,
                       Index H, Index T_, Index S) {
  for_each_row(B * H * T_, S, [=] WIDENET_KERNEL(Index row, Team team) {
    T* const p = s + row * S;
    const std::uint8_t* mask = key_mask ? key_mask + row / (H * T_) * T_ : nullptr;
    const auto masked = [=](Index i) {
      return i < T_ && (!mask || mask[i < T_ ? i : 0]) ? p[i] * scale : -infinity<T>;
    };
    if (mask)
      team.each(S, [=](Index i) { p[i] = masked(i); });
    else
      team.each(S, [=](Index i) { p[i] = i < T_ ? p[i] * scale : -infinity<T>; });
    if (is_known) {
      const T largest = rows[2 * row], factor = rows[2 * row + 1];
      team.each(S, [=](Index i) { p[i] = math::exp(p[i] - largest) * factor; });
      return;
    }
    const T found = team.max<T>(S, [=](Index i) { return p[i]; });
    const T largest = found == -infinity<T> ? T(0) : found;
    team.each(S, [=](Index i) { p[i] = math::exp(p[i] - largest); });
    const T total = team.sum<T>(S, [=](Index i) { return p[i]; });
    const T factor = total > T(0) ? T(1) / total : T(0);
    team.each(S, [=](Index i) { p[i] *= factor; });
    if (team.first()) rows[2 * row] = largest, rows[2 * row + 1] = factor;
  });
}
/// ds = scale p (dp - sum(dp p)), in place of dp.    [d attention]
template <class T>
void attention_softmax_backward(T* dp, const T* p, T scale, Index rows, Index T_, Index S) {
  for_each_row(rows, S, [=] WIDENET_KERNEL(Index row, Team team) {
    const T* const p_r = p + row * S;
    T* const dp_r = dp + row * S;
    team.each(S, [=](Index i) { dp_r[i] = i < T_ ? dp_r[i] : T(0); });
    const T dot = team.sum<T>(S, [=](Index i) { return dp_r[i] * p_r[i]; });
    team.each(S, [=](Index i) { dp_r[i] = scale * p_r[i] * (dp_r[i] - dot); });
  });
}

// Mixture of experts ------------------------------------------------------------------------------

/// p = softmax(logits + noise)    [eq 2]
template <class T>
void router_probabilities(T* p, const T* logits, const T* noise, Index N, Index E) {
  for_each_row(N, E, [=] WIDENET_KERNEL(Index n, Team team) {
    T* const p_n = p + n * E;
    team.each(E, [=](Index e) { p_n[e] = logits[n * E + e] + (noise ? noise[n * E + e] : T(0)); });
    const T largest = team.max<T>(E, [=](Index e) { return p_n[e]; });
    team.each(E, [=](Index e) { p_n[e] = math::exp(p_n[e] - largest); });
    const T factor = T(1) / team.sum<T>(E, [=](Index e) { return p_n[e]; });
    team.each(E, [=](Index e) { p_n[e] *= factor; });
  });
}
/// expert[n, k] = the expert of the k-th largest p[n, :], ties to the lower index.    [eq 2]
template <class T>
void top_k(std::int32_t* expert, const T* p, Index N, Index E, Index K) {
  for_each_row(N, E * K, [=] WIDENET_KERNEL(Index n, Team team) {
    const T* const p_n = p + n * E;
    T last = infinity<T>;  // the previous choice: the next one follows it
    Index last_e = -1;
    for (Index k = 0; k < K; ++k) {
      const auto follows = [=](Index e) {
        return p_n[e] < last || (p_n[e] == last && e > last_e);
      };
      const T best = team.max<T>(E, [=](Index e) { return follows(e) ? p_n[e] : -infinity<T>; });
      const T index = team.max<T>(E, [=](Index e) {
        return follows(e) && p_n[e] == best ? T(E - e) : -infinity<T>;
      });
      last = best;
      last_e = index > -infinity<T> ? E - static_cast<Index>(index) : k;  // NaN: the loss shows it
      if (team.first()) expert[n * K + k] = static_cast<std::int32_t>(last_e);
    }
  });
}
/// gate[n, k] = p[n, expert[n, k]]    [eq 2]
template <class T>
void select_forward(T* gate, const T* p, const std::int32_t* expert, Index N, Index E, Index K) {
  for_each(N * K, [=] WIDENET_KERNEL(Index nk) { gate[nk] = p[nk / K * E + expert[nk]]; });
}
template <class T>
void select_backward(Sink<T> dp, const T* dgate, const std::int32_t* expert, Index N, Index E,
                     Index K) {
  for_each(N * E, [=] WIDENET_KERNEL(Index i) {
    T total = 0;
    for (Index nk = i / E * K; nk < (i / E + 1) * K; ++nk)
      if (expert[nk] == i % E) total += dgate[nk];
    dp.put(i, total);
  });
}
/// y[n, k] = g[n, k] / (s + eps),  s = sum of g[n, :]; with `slot` only choices that have a slot
/// count, and the others get 0.
template <class T>
void renormalize_forward(T* y, const T* g, const std::int32_t* slot, T eps, Index N, Index K) {
  for_each(N, [=] WIDENET_KERNEL(Index n) {
    const auto counts = [=](Index nk) { return !slot || slot[nk] >= 0; };
    T total = eps;
    for (Index nk = n * K; nk < (n + 1) * K; ++nk) total += counts(nk) ? g[nk] : T(0);
    for (Index nk = n * K; nk < (n + 1) * K; ++nk)
      y[nk] = counts(nk) && total != T(0) ? g[nk] / total : T(0);
  });
}
/// dg[n, k] = (dy[n, k] - sum over i of dy[n, i] y[n, i]) / (s + eps)    [d renormalize]
/// for those with a slot.
template <class T>
void renormalize_backward(Sink<T> dg, const T* dy, const T* y, const T* g, const std::int32_t* slot,
                          T eps, Index N, Index K) {
  for_each(N, [=] WIDENET_KERNEL(Index n) {
    const auto counts = [=](Index nk) { return !slot || slot[nk] >= 0; };
    T total = eps, dot = 0;
    for (Index nk = n * K; nk < (n + 1) * K; ++nk) {
      total += counts(nk) ? g[nk] : T(0);
      dot += dy[nk] * y[nk];
    }
    for (Index nk = n * K; nk < (n + 1) * K; ++nk)
      dg.put(nk, counts(nk) && total != T(0) ? (dy[nk] - dot) / total : T(0));
  });
}
/// The expert of the largest p[n, :], the lowest of equal ones, gets the score 2: above all others.
template <class T> void prefer_best(T* score, const T* p, Index N, Index E) {
  for_each(N, [=] WIDENET_KERNEL(Index n) {
    Index best = 0;
    for (Index e = 1; e < E; ++e) best = p[n * E + e] > p[n * E + best] ? e : best;
    score[n * E + best] = T(2);
  });
}
/// Draws which choices after the first ask for a slot: each with probability gate / threshold. The
/// others become expert -1, which nobody is, and slot -1.
template <class T>
void refuse_choices(std::int32_t* asking, std::int32_t* slot, const std::int32_t* expert,
                    const T* gate, Rng rng, T threshold, Index num_choices, Index K) {
  for_each(num_choices, [=] WIDENET_KERNEL(Index i) {
    const bool asks = i % K == 0 || T(rng.uniform(num_choices + i)) * threshold < gate[i];
    asking[i] = asks ? expert[i] : -1;
    slot[i] = -1;
  });
}
/// key[n] = gate[n, 0], the gate of the first choice of token n.
template <class T> void first_gates(T* key, const T* gate, Index N, Index K) {
  for_each(N, [=] WIDENET_KERNEL(Index n) { key[n] = gate[n * K]; });
}
/// Orders each group of n keys: order[first + rank] = row, where rank counts the larger keys of the
/// group and, among equal ones, the earlier; NaN is the smallest. All pairs are compared: n^2 work,
/// for orders of priority that only comparisons with other code ask for.
template <class T>
void order_by_key(std::int32_t* order, const T* key, Index groups, Index n) {
  for_each_row(groups * n, n, [=] WIDENET_KERNEL(Index row, Team team) {
    const Index first = row / n * n, i = row % n;
    const T* const k = key + first;
    const bool is_nan = k[i] != k[i];
    const std::int32_t rank = team.sum<std::int32_t>(n, [=](Index j) {
      const bool is_larger = is_nan ? k[j] == k[j] : k[j] > k[i];
      const bool is_equal = is_nan ? k[j] != k[j] : k[j] == k[i];
      return is_larger || (is_equal && j < i) ? 1 : 0;
    });
    if (team.first()) order[first + rank] = static_cast<std::int32_t>(row);
  });
}
/// Turns an order of the N tokens of each group (null: as they are numbered) into one of choices:
/// all first choices, then all second choices.
inline void order_choices_of(std::int32_t* choices, const std::int32_t* tokens, Index groups,
                             Index N, Index K) {
  for_each(groups * N * K, [=] WIDENET_KERNEL(Index at) {
    const Index i = at % (N * K), place = at / (N * K) * N + i % N;
    choices[at] = static_cast<std::int32_t>((tokens ? tokens[place] : place) * K + i / N);
  });
}
/// Queues up the choices of each expert in the given order (null: as they are numbered). Of every
/// group of N tokens the first `usable` get slots, those of the first group 0, 1, ..., and so on;
/// the others get -1. load counts the queues, kept who got a slot.
inline void assign_slots(std::int32_t* slot, std::int32_t* choice_of_slot, std::int32_t* load,
                         std::int32_t* kept, const std::int32_t* expert, const std::int32_t* order,
                         Index groups, Index num_choices, Index E, Index C, Index usable) {
  for_each_row(E, groups * num_choices, [=] WIDENET_KERNEL(Index e, Team team) {
    Index queued = 0, filled = 0;
    for (Index g = 0; g < groups; ++g) {
      const auto choice = [=](Index i) {
        return order ? Index(order[g * num_choices + i]) : g * num_choices + i;
      };
      const Index first = filled;
      const Index queue = team.enumerate(
          num_choices, [=](Index i) { return expert[choice(i)] == e; },
          [=](Index i, Index place) {
            const bool is_kept = place < usable;
            slot[choice(i)] = static_cast<std::int32_t>(is_kept ? first + place : -1);
            if (is_kept)
              choice_of_slot[e * C + first + place] = static_cast<std::int32_t>(choice(i));
          });
      queued += queue;
      filled += queue < usable ? queue : usable;
    }
    team.each(C - filled, [=](Index i) { choice_of_slot[e * C + filled + i] = -1; });
    if (team.first()) {
      load[e] = static_cast<std::int32_t>(queued);
      kept[e] = static_cast<std::int32_t>(filled);
    }
  });
}
/// Takes slots as given: choice_of_slot, load and kept follow from expert and slot.
inline void replay_slots(std::int32_t* choice_of_slot, std::int32_t* load, std::int32_t* kept,
                         const std::int32_t* expert, const std::int32_t* slot, Index num_choices,
                         Index E, Index C) {
  for_each_row(E, num_choices, [=] WIDENET_KERNEL(Index e, Team team) {
    team.each(C, [=](Index c) { choice_of_slot[e * C + c] = -1; });
    const Index queue = team.enumerate(
        num_choices, [=](Index i) { return expert[i] == e; }, [](Index, Index) {});
    const Index filled = team.enumerate(
        num_choices, [=](Index i) { return expert[i] == e && slot[i] >= 0; },
        [=](Index i, Index) { choice_of_slot[e * C + slot[i]] = static_cast<std::int32_t>(i); });
    if (team.first()) {
      load[e] = static_cast<std::int32_t>(queue);
      kept[e] = static_cast<std::int32_t>(filled);
    }
  });
}
/// count[g, e] = how many of the first `ranks` choices of the N tokens of group g are for e; only
/// those with a slot if `slot` is given.
inline void count_choices(Sink<std::int32_t> count, const std::int32_t* expert,
                          const std::int32_t* slot, Index groups, Index N, Index E, Index K,
                          Index ranks) {
  for_each_row(groups * E, N * ranks, [=] WIDENET_KERNEL(Index i, Team team) {
    const Index first = i / E * N, e = i % E;
    const std::int32_t total = team.sum<std::int32_t>(N * ranks, [=](Index j) {
      const Index nk = (first + j / ranks) * K + j % ranks;
      return expert[nk] == e && (!slot || slot[nk] >= 0) ? 1 : 0;
    });
    if (team.first()) count.put(i, total);
  });
}
/// For every group:
/// loss = E * sum over e of f[e] P[e],  f = count / count_total,  P = importance / tokens    [eq 4]
/// slope[e] = dloss / dp[n, e] = E f[e] / tokens: no gradient flows through f.  [d balance_loss]
/// count_total <= 0 stands for the sum of the counts, tokens <= 0 likewise.
template <class T>
void balance_forward(T* loss, T* slope, const std::int32_t* count, const T* importance,
                     Index count_total, Index tokens, Index groups, Index E) {
  for_each_row(groups, E, [=] WIDENET_KERNEL(Index g, Team team) {
    const std::int32_t* const count_g = count + g * E;
    const T sum = T(team.sum<std::int32_t>(E, [=](Index e) { return count_g[e]; }));
    const T total = count_total > 0 ? T(count_total) : sum > T(0) ? sum : T(1);
    const T N = tokens > 0 ? T(tokens) : sum > T(0) ? sum : T(1);
    const auto f = [=](Index e) { return T(count_g[e]) / total; };
    const T dot = team.sum<T>(E, [=](Index e) { return f(e) * (importance[g * E + e] / N); });
    team.each(E, [=](Index e) { slope[g * E + e] = T(E) * f(e) / N; });
    if (team.first()) loss[g] = T(E) * dot;
  });
}
/// For every group: loss = variance(I) / mean(I)^2 of the importance I, with the sum of squares
/// divided by E - ddof.
template <class T>
void importance_forward(T* loss, T* slope, const T* importance, Index ddof, Index groups, Index E) {
  for_each_row(groups, E, [=] WIDENET_KERNEL(Index g, Team team) {
    const T* const sums = importance + g * E;
    const T n = T(E - ddof > 0 ? E - ddof : 1);
    const T mean = team.sum<T>(E, [=](Index e) { return sums[e]; }) / T(E);
    const auto off = [=](Index e) { return sums[e] - mean; };
    const T variance = team.sum<T>(E, [=](Index e) { return off(e) * off(e); }) / n;
    team.each(E, [=](Index e) {
      slope[g * E + e] = T(2) * (off(e) / n - variance / (mean * T(E))) / (mean * mean);
    });
    if (team.first()) loss[g] = variance / (mean * mean);
  });
}
/// dp[n, e] = factor dloss slope[g, e] for the N tokens n of every group g.    [d balance_loss]
template <class T>
void balance_backward(Sink<T> dp, const T* dloss, const T* slope, T factor, Index groups, Index N,
                      Index E) {
  for_each(groups * N * E, [=] WIDENET_KERNEL(Index i) {
    dp.put(i, factor * dloss[0] * slope[i / (N * E) * E + i % E]);
  });
}
/// w[n, e] = Phi((z[n, e] - threshold) / s), the threshold the noisy logit of the last choice of n.
template <class T>
void win_forward(T* w, const T* z, const T* noise, const std::int32_t* expert, T s, Index N,
                 Index E, Index K) {
  for_each(N * E, [=] WIDENET_KERNEL(Index i) {
    const Index last = i / E * E + expert[i / E * K + K - 1];
    const T u = (z[i] - (z[last] + (noise ? noise[last] : T(0)))) / s;
    w[i] = T(0.5) * (T(1) + math::erf(u * T(0.7071067811865476)));
  });
}
/// dz[n, e] = q[n, e] - [e is the last choice] sum over i of q[n, i]    [d win_probabilities]
/// with q = dw phi(u) / s.
template <class T>
void win_backward(Sink<T> dz, const T* dw, const T* z, const T* noise, const std::int32_t* expert,
                  T s, Index N, Index E, Index K) {
  for_each_row(N, E, [=] WIDENET_KERNEL(Index n, Team team) {
    const Index last = expert[n * K + K - 1];
    const T threshold = z[n * E + last] + (noise ? noise[n * E + last] : T(0));
    const auto q = [=](Index e) {
      const T u = (z[n * E + e] - threshold) / s;
      return dw[n * E + e] * (T(0.3989422804014327) / s) * math::exp(T(-0.5) * u * u);
    };
    const T total = team.sum<T>(E, q);
    team.each(E, [=](Index e) { dz.put(n * E + e, e == last ? q(e) - total : q(e)); });
  });
}
/// loss[n] = logsumexp(z_n)^2
template <class T>
void z_loss_forward(T* loss, T* log_sum, const T* z, Index N, Index E) {
  for_each_row(N, E, [=] WIDENET_KERNEL(Index n, Team team) {
    const T largest = team.max<T>(E, [=](Index e) { return z[n * E + e]; });
    const T sum = team.sum<T>(E, [=](Index e) { return math::exp(z[n * E + e] - largest); });
    const T total = largest + math::log(sum);
    if (team.first()) log_sum[n] = total, loss[n] = total * total;
  });
}
/// dz = dloss 2 logsumexp(z_n) softmax(z_n) / N    [d z_loss]
template <class T>
void z_loss_backward(Sink<T> dz, const T* dloss, const T* z, const T* log_sum, Index N, Index E) {
  for_each(N * E, [=] WIDENET_KERNEL(Index i) {
    const T total = log_sum[i / E];
    dz.put(i, dloss[0] * T(2) * total / T(N) * math::exp(z[i] - total));
  });
}

/// slots[e, c, :] = factor x[n, :] for the choice (n, k) in slot c of expert e; 0 in empty slots.
/// factor is 1, or gate[n, k] if there are gates.
template <class T>
void to_slots(Sink<T> slots, const T* x, const T* gate, const std::int32_t* choice_of_slot,
              Index num_slots, Index K, Index D) {
  for_each_row(num_slots, D, [=] WIDENET_KERNEL(Index ec, Team team) {
    const Index nk = choice_of_slot[ec];
    const Sink<T> y = slots.at(ec * D);
    const T* const x_n = x + (nk < 0 ? 0 : nk / K) * D;
    if (nk < 0) {
      team.each(D, [=](Index d) { y.put(d, T(0)); });
    } else if (gate) {
      const T g = gate[nk];
      team.each(D, [=](Index d) { y.put(d, g * x_n[d]); });
    } else {
      team.each(D, [=](Index d) { y.put(d, x_n[d]); });
    }
  });
}
/// y[n, :] = sum over kept k of  factor slots[e, c, :],  k = 0 first; factor as in to_slots. [eq 1]
template <class T>
void from_slots(Sink<T> y, const T* slots, const T* gate, const std::int32_t* expert,
                const std::int32_t* slot, Index N, Index K, Index C, Index D) {
  for_each_row(N, K * D, [=] WIDENET_KERNEL(Index n, Team team) {
    Sink<T> y_n = y.at(n * D);
    for (Index nk = n * K; nk < (n + 1) * K; ++nk) {
      if (slot[nk] < 0) continue;
      const T* const x = slots + (expert[nk] * C + slot[nk]) * D;
      const Sink<T> to = y_n;
      if (gate) {
        const T g = gate[nk];
        team.each(D, [=](Index d) { to.put(d, g * x[d]); });
      } else {
        team.each(D, [=](Index d) { to.put(d, x[d]); });
      }
      y_n.adds = true;
    }
    if (!y_n.adds) team.each(D, [=](Index d) { y_n.put(d, T(0)); });
  });
}
/// dgate[n, k] = dot(dy[n, :], slots[e, c, :]); 0 where dropped.    [d combine]
template <class T>
void gate_backward(Sink<T> dgate, const T* dy, const T* slots, const std::int32_t* expert,
                   const std::int32_t* slot, Index num_choices, Index K, Index C, Index D) {
  for_each_row(num_choices, D, [=] WIDENET_KERNEL(Index nk, Team team) {
    const T* const dy_n = dy + nk / K * D;
    const T* const x = slots + (expert[nk] * C + (slot[nk] < 0 ? 0 : slot[nk])) * D;
    const T dot = slot[nk] < 0 ? T(0) : team.sum<T>(D, [=](Index d) { return dy_n[d] * x[d]; });
    if (team.first()) dgate.put(nk, dot);
  });
}
/// y[n, :] = x[n, :] * sum of gate[n, k] over the dropped k
template <class T>
void dropped_forward(Sink<T> y, const T* x, const T* gate, const std::int32_t* slot, Index N,
                     Index K, Index D) {
  for_each_row(N, D, [=] WIDENET_KERNEL(Index n, Team team) {
    T factor = 0;
    for (Index nk = n * K; nk < (n + 1) * K; ++nk) factor += slot[nk] < 0 ? gate[nk] : T(0);
    const T total = factor;
    team.each(D, [=](Index d) { y.put(n * D + d, total * x[n * D + d]); });
  });
}
/// dgate[n, k] = dot(dy[n, :], x[n, :]) where dropped, else 0.    [d dropped_inputs]
template <class T>
void dropped_gate_backward(Sink<T> dgate, const T* dy, const T* x, const std::int32_t* slot,
                           Index num_choices, Index K, Index D) {
  for_each_row(num_choices, D, [=] WIDENET_KERNEL(Index nk, Team team) {
    const T *const dy_n = dy + nk / K * D, *const x_n = x + nk / K * D;
    const T dot = slot[nk] >= 0 ? T(0) : team.sum<T>(D, [=](Index d) { return dy_n[d] * x_n[d]; });
    if (team.first()) dgate.put(nk, dot);
  });
}
/// Row c of expert e is that of a filled slot: y[e, c, f] = value(e C + c, f); of an empty one: 0.
template <class T, class F>
void fill_slots(T* y, const std::int32_t* kept, Index E, Index C, Index width, F value) {
  for_each_row(E * C, width, [=] WIDENET_KERNEL(Index ec, Team team) {
    T* const y_ec = y + ec * width;
    if (ec % C < kept[ec / C])
      team.each(width, [=](Index f) { y_ec[f] = value(ec, f); });
    else
      team.each(width, [=](Index f) { y_ec[f] = 0; });
  });
}
/// g = gelu(h)
template <class T>
void expert_gelu_forward(T* g, const T* h, const std::int32_t* kept, Gelu form, Index E, Index C,
                         Index F) {
  if (form == Gelu::tanh)
    fill_slots(g, kept, E, C, F, [=] WIDENET_KERNEL(Index ec, Index f) {
      return math::gelu_tanh(h[ec * F + f]);
    });
  else
    fill_slots(g, kept, E, C, F, [=] WIDENET_KERNEL(Index ec, Index f) {
      return math::gelu_erf(h[ec * F + f]);
    });
}
/// dh = dg gelu'(h), in place of dg, and g = gelu(h), in place of h: they share exp.  [d experts]
template <class T>
void expert_gelu_backward(T* dg, T* h, const std::int32_t* kept, Gelu form, Index E, Index C,
                          Index F) {
  if (form == Gelu::tanh)
    fill_slots(dg, kept, E, C, F, [=] WIDENET_KERNEL(Index ec, Index f) {
      const Index i = ec * F + f;
      const T dh = dg[i] * math::gelu_tanh_derivative(h[i]);
      h[i] = math::gelu_tanh(h[i]);
      return dh;
    });
  else
    fill_slots(dg, kept, E, C, F, [=] WIDENET_KERNEL(Index ec, Index f) {
      const Index i = ec * F + f;
      const T dh = dg[i] * math::gelu_erf_derivative(h[i]);
      h[i] = math::gelu_erf(h[i]);
      return dh;
    });
}
/// x[e, c, f] *= mask((n, k), f): the mask belongs to the choice, not to its slot, so that a token
/// does not notice who else chose its expert. Empty slots become 0.
template <class T>
void expert_dropout(T* x, const std::int32_t* choice_of_slot, const std::int32_t* kept,
                    DropoutMask<T> mask, Index E, Index C, Index width) {
  fill_slots(x, kept, E, C, width, [=] WIDENET_KERNEL(Index ec, Index f) {
    return x[ec * width + f] * mask(choice_of_slot[ec] * width + f);
  });
}
template <class T>
void clear_empty_slots(T* x, const std::int32_t* kept, Index E, Index C, Index width) {
  for_each_row(E * C, width, [=] WIDENET_KERNEL(Index ec, Team team) {
    if (ec % C >= kept[ec / C]) team.each(width, [=](Index f) { x[ec * width + f] = 0; });
  });
}
template <class T>
void add_slots(Sink<T> sums, const T* x, const std::int32_t* kept, Index E, Index C, Index width) {
  column_sums(sums, E, C, width, [=] WIDENET_KERNEL(Index e, Index c, Index f) {
    return c < kept[e] ? x[(e * C + c) * width + f] : T(0);
  });
}

// Losses and optimisers ---------------------------------------------------------------------------

/// loss[n] = -sum over v of  target[n, v] log p[n, v],  with the target (1 - s) at the label plus
/// s / V everywhere:  loss = logsumexp(x) - (1 - s) x[label] - s mean(x).
template <class T>
void cross_entropy_forward(T* loss, T* log_sum, const T* x, const std::int32_t* label, T smoothing,
                           Index N, Index V) {
  for_each_row(N, V, [=] WIDENET_KERNEL(Index n, Team team) {
    const T* const x_n = x + n * V;
    const T largest = team.max<T>(V, [=](Index v) { return x_n[v]; });
    const T sum = team.sum<T>(V, [=](Index v) { return math::exp(x_n[v] - largest); });
    const T mean =  // not asked for without smoothing: 0 times an infinite logit is NaN
        smoothing == T(0) ? T(0) : team.sum<T>(V, [=](Index v) { return x_n[v]; }) / T(V);
    if (!team.first()) return;
    const T log_total = largest + math::log(sum);
    log_sum[n] = log_total;
    loss[n] = log_total - (T(1) - smoothing) * x_n[label[n]] - smoothing * mean;
  });
}
/// dx = dloss / N (p - target): the loss is the mean over the rows.    [d cross_entropy]
template <class T>
void cross_entropy_backward(Sink<T> dx, const T* dloss, const T* x, const T* log_sum,
                            const std::int32_t* label, T smoothing, Index N, Index V) {
  for_each_row(N, V, [=] WIDENET_KERNEL(Index n, Team team) {
    const T* const x_n = x + n * V;
    const Sink<T> dx_n = dx.at(n * V);
    const T factor = dloss[0] / T(N), total = log_sum[n];
    const Index at = label[n];
    team.each(V, [=](Index v) {
      const T target = smoothing / T(V) + (v == at ? T(1) - smoothing : T(0));
      dx_n.put(v, factor * (math::exp(x_n[v] - total) - target));
    });
  });
}
/// loss[n] = Q logsumexp(x_n) - sum over v of q[n, v] x[n, v],  Q = sum over v of q[n, v]
template <class T>
void soft_cross_entropy_forward(T* loss, T* log_sum, const T* x, const T* q, Index N, Index V) {
  for_each_row(N, V, [=] WIDENET_KERNEL(Index n, Team team) {
    const T *const x_n = x + n * V, *const q_n = q + n * V;
    const T largest = team.max<T>(V, [=](Index v) { return x_n[v]; });
    const T sum = team.sum<T>(V, [=](Index v) { return math::exp(x_n[v] - largest); });
    const T Q = team.sum<T>(V, [=](Index v) { return q_n[v]; });
    const T dot =  // 0 times an infinite logit is NaN
        team.sum<T>(V, [=](Index v) { return q_n[v] == T(0) ? T(0) : q_n[v] * x_n[v]; });
    if (!team.first()) return;
    log_sum[n] = largest + math::log(sum);
    loss[n] = Q * log_sum[n] - dot;
  });
}
/// dx = dloss / N (Q p - q)    [d soft_cross_entropy]
template <class T>
void soft_cross_entropy_backward(Sink<T> dx, const T* dloss, const T* x, const T* log_sum,
                                 const T* q, Index N, Index V) {
  for_each_row(N, V, [=] WIDENET_KERNEL(Index n, Team team) {
    const T *const x_n = x + n * V, *const q_n = q + n * V;
    const T Q = team.sum<T>(V, [=](Index v) { return q_n[v]; });
    const T factor = dloss[0] / T(N), total = log_sum[n];
    team.each(V, [=](Index v) {
      dx.put(n * V + v, factor * (Q * math::exp(x_n[v] - total) - q_n[v]));
    });
  });
}
/// total[0] = factor * sum of x, by one team.
template <class T>
void sum_all(T* total, const T* x, T factor, Index n) {
  for_each_row(1, 1, [=] WIDENET_KERNEL(Index, Team team) {
    const T sum = team.sum<T>(n, [=](Index i) { return x[i]; });
    if (team.first()) total[0] = factor * sum;
  });
}
/// How many partial sums sum_squares makes of n values.
inline Index num_partial_sums(Index n) { return (n + 4095) / 4096; }
/// partial[i] = sum of the squares of chunk i of 4096 values.
template <class T>
void sum_squares(T* partial, const T* x, Index n) {
  constexpr Index chunk = 4096;
  for_each_row(num_partial_sums(n), chunk, [=] WIDENET_KERNEL(Index i, Team team) {
    const T* const p = x + i * chunk;
    const Index length = n - i * chunk < chunk ? n - i * chunk : chunk;
    const T sum = team.sum<T>(length, [=](Index j) { return p[j] * p[j]; });
    if (team.first()) partial[i] = sum;
  });
}
/// factor[0] = min(1, limit / norm),  norm[0] = sqrt(sum of partial)
template <class T>
void clip_factor(T* factor, T* norm, const T* partial, T limit, Index n) {
  for_each_row(1, 1, [=] WIDENET_KERNEL(Index, Team team) {
    const T length = std::sqrt(team.sum<T>(n, [=](Index i) { return partial[i]; }));
    if (!team.first()) return;
    norm[0] = length;
    factor[0] = length > limit ? limit / length : T(1);
  });
}
template <class T>
void scale_by(T* x, const T* factor, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { x[i] *= factor[0]; });
}
/// m = momentum m + (g + decay w);  w -= rate m
template <class T>
void sgd_step(T* w, T* m, const T* g, T rate, T momentum, T decay, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) {
    m[i] = momentum * m[i] + (g[i] + decay * w[i]);
    w[i] -= rate * m[i];
  });
}
/// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
/// u = correct1 m / (sqrt(correct2 v) + eps) + decay w,  correct = 1 / (1 - beta^t)
template <class T>
struct AdamDirection {
  T *m, *v;
  const T *g, *w;
  T old1, new1, old2, new2, eps, decay, correct1, correct2;
  WIDENET_HOST_DEVICE T operator()(Index i) const {
    m[i] = old1 * m[i] + new1 * g[i];
    v[i] = old2 * v[i] + new2 * g[i] * g[i];
    return correct1 * m[i] / (std::sqrt(correct2 * v[i]) + eps) + decay * w[i];
  }
};
/// w -= rate u, or u alone for LAMB, which scales it first
template <class T> void adamw_step(T* w, AdamDirection<T> u, T rate, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { w[i] -= rate * u(i); });
}
template <class T> void lamb_direction(T* to, AdamDirection<T> u, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { to[i] = u(i); });
}
/// ratio[0] = |w| / |u|, each from its partial sums of squares; 1 if one of the two is 0.
template <class T>
void trust_ratio(T* ratio, const T* w_partial, const T* u_partial, Index n) {
  for_each_row(1, 1, [=] WIDENET_KERNEL(Index, Team team) {
    const T ww = team.sum<T>(n, [=](Index i) { return w_partial[i]; });
    const T uu = team.sum<T>(n, [=](Index i) { return u_partial[i]; });
    if (team.first()) ratio[0] = ww > T(0) && uu > T(0) ? std::sqrt(ww) / std::sqrt(uu) : T(1);
  });
}
/// w -= rate ratio[0] u
template <class T>
void lamb_step(T* w, const T* u, const T* ratio, T rate, Index n) {
  for_each(n, [=] WIDENET_KERNEL(Index i) { w[i] -= rate * ratio[0] * u[i]; });
}

}  // namespace kernel

// [7] AUTOGRAD ====================================================================================
//
// Define-by-run, reverse mode. An operation computes its result y at once and leaves a closure
// that, given dL/dy, adds to dL/dx for its inputs x. Rules for whoever writes an operation:
//   - The closure never captures its own result: such a cycle of references would never be freed.
//   - Every tensor that the closure captures is also an input.
//   - It calls functions of chapters 5 and 6 only, which know where the values live.
// The exception is recomputed_blocks of chapter 11: its closure runs operations, and holds
// parameters that are no inputs. They are leaves, so no graph dies with them.

namespace detail {

inline bool& grad_mode() {
  thread_local bool is_on = true;
  return is_on;
}

template <class Signature> class Closure;

/// A function object that is kept, called unless it is empty, and destroyed, never copied:
/// std::function would have the compiler write a copy of every operation's captures, 3 % more code
/// and 8 % more time to compile.
template <class Result, class... Args> class Closure<Result(Args...)> {
 public:
  Closure() = default;
  template <class F> Closure(F f) : held_(new Held<F>(std::move(f))) {}
  Result operator()(Args... args) const { return held_->call(args...); }
  explicit operator bool() const { return held_ != nullptr; }

 private:
  struct Callable {
    virtual ~Callable() = default;
    virtual Result call(Args... args) = 0;
  };
  template <class F> struct Held final : Callable {
    explicit Held(F&& f) : f_(std::move(f)) {}
    Result call(Args... args) override { return f_(args...); }
    F f_;
  };
  std::unique_ptr<Callable> held_;
};

}  // namespace detail

/// While one of these lives, this thread records a graph, or none.
class GradMode {
 public:
  explicit GradMode(bool is_on) : before_(detail::grad_mode()) { detail::grad_mode() = is_on; }
  ~GradMode() { detail::grad_mode() = before_; }
  GradMode(const GradMode&) = delete;
  GradMode& operator=(const GradMode&) = delete;

 private:
  bool before_;
};

/// While one of these lives, operations keep nothing for backward.
class NoGrad : GradMode {
 public:
  NoGrad() : GradMode(false) {}
};

/// A handle to a node of the graph: values, and a gradient of the same shape. Copies share the
/// node, as in PyTorch. T is float or double.
template <class T>
class Tensor {
 public:
  using Backward = detail::Closure<void(const Buffer<T>& dy)>;
  using Restore = detail::Closure<Buffer<T>()>;

  Tensor() = default;  // refers to nothing, as an argument left out; its shape is a ValueError
  explicit Tensor(const Shape& shape) : Tensor(shape, Buffer<T>(shape.num_values())) {}
  Tensor(const Shape& shape, const Buffer<T>& value) : node_(std::make_shared<Node>()) {
    require<ShapeError>(value.size() == shape.num_values(), "Tensor: ", shape, " needs ",
                        shape.num_values(), " values; got ", value.size());
    node_->shape = shape;
    node_->value = value;
  }
  Tensor(const Shape& shape, const std::vector<T>& values) : Tensor(shape, Buffer<T>(values)) {}
  Tensor(const Shape& shape, std::initializer_list<T> x) : Tensor(shape, std::vector<T>(x)) {}
  static Tensor zeros(const Shape& shape) {
    return Tensor(shape, Buffer<T>::zeros(shape.num_values()));
  }
  static Tensor full(const Shape& shape, T value) {
    const Tensor x(shape);
    kernel::fill(x.data(), value, x.size());
    return x;
  }
  static Tensor randn(const Shape& shape, const Rng& rng, T deviation = T(1)) {
    const Tensor x(shape);
    kernel::fill_normal(x.data(), rng, deviation, x.size());
    return x;
  }
  static Tensor uniform(const Shape& shape, const Rng& rng, T low, T high) {
    const Tensor x(shape);
    kernel::fill_uniform(x.data(), rng, low, high, x.size());
    return x;
  }

  explicit operator bool() const { return node_ != nullptr; }
  const Shape& shape() const { return node().shape; }
  Index size() const { return node().shape.num_values(); }
  /// The values; those of a tensor that was told to forget them are computed again.
  const Buffer<T>& value() const {
    if (node().value.size() != size() && node_->restore) node_->value = node_->restore();
    return node_->value;
  }
  T* data() const { return value().data(); }
  std::vector<T> to_vector() const { return value().to_vector(); }
  /// The value of a tensor that has only one.
  T item() const {
    require<ShapeError>(size() == 1, "item: the tensor must have 1 value; got ", shape());
    return to_vector()[0];
  }
  /// The same values under another shape; a view that shares values and passes gradients on.
  Tensor reshaped(const Shape& shape) const {
    require<ShapeError>(shape.num_values() == size(), "reshaped: the number of values must stay ",
                        size(), "; got ", shape);
    const Tensor y(shape, value());
    y.record("reshaped", {*this}, [x = *this](const Buffer<T>& dy) { x.add_gradient(dy); });
    y.set_restore([x = *this] { return x.value(); });
    return y;
  }
  /// The same values without history: no gradient flows through it.
  Tensor detached() const { return Tensor(shape(), value()); }

  /// Whether backward() leaves a gradient here. Parameters ask for it; results of operations have
  /// one while backward() needs it, and keep it if asked to.
  bool needs_gradient() const { return node().needs_gradient; }
  const Tensor& require_gradient() const {
    node().needs_gradient = node().keeps_gradient = true;
    return *this;
  }
  bool has_gradient() const { return node().has_gradient; }
  /// dL/dx; zero as long as nothing has contributed to it.
  const Buffer<T>& gradient() const {
    if (!has_gradient()) {
      own_gradient();
      node_->gradient.set_zero();
      node_->has_gradient = true;
    }
    return node_->gradient;
  }
  /// Forgets the gradient but keeps its memory: the next contribution overwrites it.
  void zero_gradient() const { node().has_gradient = false; }

  // What follows is for those who write operations.

  /// Where to leave a contribution to this gradient.
  Sink<T> sink() const {
    if (!node_->has_gradient) {
      own_gradient();
      node_->has_gradient = true;
      return {node_->gradient.data(), false};
    }
    if (node_->gradient.is_shared()) node_->gradient = node_->gradient.clone();
    return {node_->gradient.data(), true};
  }
  /// Adds dy to this gradient; if it is the first contribution, the two share memory for as long as
  /// nobody writes to it.
  void add_gradient(const Buffer<T>& dy) const {
    if (!needs_gradient()) return;
    if (node_->has_gradient || node_->is_leaf)
      kernel::accumulate(sink(), dy.data(), T(1), size());
    else
      node_->gradient = dy, node_->has_gradient = true;
  }
  /// Makes this tensor the result of an operation, unless no input needs a gradient.
  void record(const char* operation, std::vector<Tensor> inputs, Backward backward) const {
    if (!detail::grad_mode()) return;
    bool is_needed = false;
    for (const Tensor& input : inputs) is_needed = is_needed || (input && input.needs_gradient());
    if (!is_needed) return;
    node_->needs_gradient = true;
    node_->is_leaf = false;
    node_->operation = operation;
    node_->inputs = std::move(inputs);
    node_->backward = std::move(backward);
  }
  /// Tells how to compute the values again, with the same bits.
  void set_restore(Restore restore) const {
    if (!node_->is_leaf) node_->restore = std::move(restore);
  }
  /// Lets the values go once everybody has read them; if backward asks, they are computed again.
  /// Does nothing unless set_restore told how: for results that are cheap to compute and large.
  void forget() const {
    if (node_->restore) node_->value = Buffer<T>();
  }

  /// Adds dL/dx into the gradient of every x that this tensor y depends on, given dy = dL/dy, and
  /// frees the graph on the way. A result is younger than its inputs, so with the youngest node
  /// first every gradient is complete before it is passed on. The order of contributions to a
  /// shared parameter is that of the graph, last block first, for every number of threads.
  ///
  ///   Errors    ShapeError if dy has the wrong size; ValueError if y depends on nothing that needs
  ///             a gradient, or if its graph has been walked before
  void backward(const Buffer<T>& dy) const {
    require<ShapeError>(dy.size() == size(), "backward: dy must have ", size(),
                        " values; got ", dy.size());
    require_unspent(*node_);
    require<ValueError>(needs_gradient(),
                        "backward: the tensor must depend on a parameter; got one that does not");
    add_gradient(dy);
    std::map<Index, Tensor, std::greater<Index>> pending{{node_->birth, *this}};
    while (!pending.empty()) {
      const Tensor y = pending.extract(pending.begin()).mapped();
      Node& node = *y.node_;
      require_unspent(node);
      if (!node.backward) continue;  // a leaf
      node.is_spent = true;  // before its backward, which may throw and have overwritten buffers
      {
        const NoGrad no_graph;
        node.backward(node.gradient);
      }
      for (const Tensor& input : node.inputs)
        if (input && input.needs_gradient() && input.has_gradient())
          pending.emplace(input.node_->birth, input);
      node.forget_history();
    }
  }
  /// The same for a scalar, with dy = 1.
  void backward() const {
    require<ShapeError>(size() == 1, "backward: without dy the tensor must have 1 value; got ",
                        shape());
    backward(Buffer<T>(std::vector<T>{T(1)}));
  }

 private:
  void own_gradient() const {
    Buffer<T>& gradient = node_->gradient;
    if (gradient.size() != size() || gradient.is_shared()) gradient = Buffer<T>(size());
  }

  static Index next_birth() {
    static std::atomic<Index> births{0};
    return births++;
  }

  struct Node {
    Shape shape;
    Buffer<T> value, gradient;
    bool needs_gradient = false, keeps_gradient = false, has_gradient = false;
    bool is_leaf = true, is_spent = false;
    const char* operation = "";
    std::vector<Tensor> inputs;
    Backward backward;
    Restore restore;
    Index birth = next_birth();

    /// After its backward a node keeps its values, and its gradient if asked to.
    void forget_history() {
      if (!keeps_gradient) gradient = Buffer<T>(), has_gradient = false;
      backward = {};
      restore = {};
      inputs.clear();
    }
    /// Frees a graph that was never walked without recursion, however long it is. The closures go
    /// first: whatever they hold is also an input, so no node dies with them.
    ~Node() {
      backward = {};
      restore = {};
      std::vector<Tensor> dying = std::move(inputs);
      while (!dying.empty()) {
        const Tensor tensor = std::move(dying.back());
        dying.pop_back();
        if (!tensor || tensor.node_.use_count() > 1) continue;  // somebody else needs it
        Node& node = *tensor.node_;
        node.backward = {};
        node.restore = {};
        for (Tensor& input : node.inputs) dying.push_back(std::move(input));
        node.inputs.clear();
      }
    }
  };
  Node& node() const {
    require<ValueError>(bool(node_), "Tensor: it must have values; got one that refers to nothing");
    return *node_;
  }
  static void require_unspent(const Node& node) {
    require<ValueError>(!node.is_spent, "backward: a graph can be walked once; got ",
                        node.operation, " a second time; hint: run forward again");
  }
  std::shared_ptr<Node> node_;
};

// [8] OPERATIONS ==================================================================================
//
// Value and backward of an operation stand side by side. Rows are what lies along the last axis:
// an operation on rows takes (N, D) and (B, T, D) alike.

namespace detail {

template <class T>
void require_same_shape(const char* operation, const Tensor<T>& a, const Tensor<T>& b) {
  require<ShapeError>(a.shape() == b.shape(), operation, ": the shapes must be equal; got ",
                      a.shape(), ", ", b.shape());
}

}  // namespace detail

/// y = a + b. The gradient of y becomes that of a and b without being copied.    [d add]
///
///   Shapes    a, b of one shape  ->  y of that shape
///   Errors    ShapeError if the shapes differ
template <class T>
Tensor<T> operator+(const Tensor<T>& a, const Tensor<T>& b) {
  detail::require_same_shape("add", a, b);
  const Tensor<T> y(a.shape());
  kernel::add(y.data(), a.data(), b.data(), y.size());
  y.record("add", {a, b}, [a, b](const Buffer<T>& dy) {
    a.add_gradient(dy);
    b.add_gradient(dy);
  });
  return y;
}

/// y = factor * x,   dx = factor * dy    [d scale]
template <class T>
Tensor<T> operator*(double factor, const Tensor<T>& x) {
  const Tensor<T> y(x.shape());
  kernel::scale(y.data(), x.data(), T(factor), y.size());
  y.record("scale", {x}, [x, factor](const Buffer<T>& dy) {
    kernel::accumulate(x.sink(), dy.data(), T(factor), x.size());
  });
  return y;
}

/// y = a * b, element by element.
///
///   Shapes    a, b of one shape  ->  y of that shape
///   Backward  da = dy b,  db = dy a    [d multiply]
///   Errors    ShapeError if the shapes differ
template <class T>
Tensor<T> multiply(const Tensor<T>& a, const Tensor<T>& b) {
  detail::require_same_shape("multiply", a, b);
  const Tensor<T> y(a.shape());
  kernel::multiply(y.data(), a.data(), b.data(), y.size());
  y.record("multiply", {a, b}, [a, b](const Buffer<T>& dy) {
    if (a.needs_gradient()) kernel::multiply_backward(a.sink(), dy.data(), b.data(), a.size());
    if (b.needs_gradient()) kernel::multiply_backward(b.sink(), dy.data(), a.data(), b.size());
  });
  return y;
}

/// The sum of all values, as a scalar; dx[i] = dy.    [d sum]
template <class T>
Tensor<T> sum(const Tensor<T>& x) {
  const Tensor<T> y(Shape{});
  kernel::sum_all(y.data(), x.data(), T(1), x.size());
  y.record("sum", {x}, [x](const Buffer<T>& dy) {
    kernel::spread(x.sink(), dy.data(), x.size());
  });
  return y;
}

/// Matrix product: sends every row of x through the same affine map.
///
///   y[n, f] = sum over d of  x[n, d] * w[d, f]  + bias[f]
///
///   Shapes    x (..., D), w (D, F), bias (F) or left out  ->  y (..., F)
///   Backward  dx = dy w^T,  dw = x^T dy,  dbias[f] = sum over n of  dy[n, f]    [d linear]
///   Errors    ShapeError if the shapes do not fit together
///   Differs   torch.nn.Linear keeps w as (out, in)
template <class T>
Tensor<T> linear(const Tensor<T>& x, const Tensor<T>& w, const Tensor<T>& bias = {}) {
  const Shape &s = x.shape(), &t = w.shape();
  require<ShapeError>(s.rank() >= 1 && t.rank() == 2 && s.last() == t[0] && t[0] > 0,
                      "linear: x (..., D) and w (D, F) must share D > 0; got ", s, ", ", t);
  const Index D = t[0], F = t[1], N = s.num_values() / D;
  require<ShapeError>(!bias || bias.shape() == Shape{F}, "linear: bias must be (F) = ", Shape{F},
                      "; got ", (bias ? bias : x).shape());
  const Tensor<T> y(s.with_last(F));
  gemm(false, false, N, F, D, x.data(), D, w.data(), F, T(0), y.data(), F,
       bias ? bias.data() : nullptr);
  y.record("linear", {x, w, bias}, [x, w, bias, N, D, F](const Buffer<T>& dy) {
    if (x.needs_gradient()) {
      const Sink<T> dx = x.sink();
      gemm(false, true, N, D, F, dy.data(), F, w.data(), F, dx.beta(), dx.data, D);
    }
    if (w.needs_gradient()) {
      const Sink<T> dw = w.sink();
      gemm(true, false, D, F, N, x.data(), D, dy.data(), F, dw.beta(), dw.data, F);
    }
    if (bias && bias.needs_gradient()) kernel::add_rows(bias.sink(), dy.data(), N, F);
  });
  return y;
}

/// Scores every row of x against every row of a table, as the decoder that is tied to an embedding.
///
///   y[n, v] = sum over d of  x[n, d] * table[v, d]  + bias[v]
///
///   Shapes    x (..., D), table (V, D), bias (V) or left out  ->  y (..., V)
///   Backward  dx = dy table,  dtable = dy^T x,  dbias[v] = sum over n of  dy[n, v]
///             [d tied_decoder]
///   Errors    ShapeError if the shapes do not fit together
///   Source    Press, Wolf, Using the Output Embedding, arXiv 1608.05859
template <class T>
Tensor<T> tied_decoder(const Tensor<T>& x, const Tensor<T>& table, const Tensor<T>& bias = {}) {
  const Shape &s = x.shape(), &t = table.shape();
  require<ShapeError>(s.rank() >= 1 && t.rank() == 2 && s.last() == t[1] && t[1] > 0,
                      "tied_decoder: x (..., D) and table (V, D) must share D > 0; got ", s, ", ",
                      t);
  const Index V = t[0], D = t[1], N = s.num_values() / D;
  require<ShapeError>(!bias || bias.shape() == Shape{V}, "tied_decoder: bias must be (V) = ",
                      Shape{V}, "; got ", (bias ? bias : x).shape());
  const Tensor<T> y(s.with_last(V));
  gemm(false, true, N, V, D, x.data(), D, table.data(), D, T(0), y.data(), V,
       bias ? bias.data() : nullptr);
  y.record("tied_decoder", {x, table, bias}, [x, table, bias, N, V, D](const Buffer<T>& dy) {
    if (x.needs_gradient()) {
      const Sink<T> dx = x.sink();
      gemm(false, false, N, D, V, dy.data(), V, table.data(), D, dx.beta(), dx.data, D);
    }
    if (table.needs_gradient()) {
      const Sink<T> dtable = table.sink();
      gemm(true, false, V, D, N, dy.data(), V, x.data(), D, dtable.beta(), dtable.data, D);
    }
    if (bias && bias.needs_gradient()) kernel::add_rows(bias.sink(), dy.data(), N, V);
  });
  return y;
}

/// y = x w, the linear map without bias.
template <class T>
Tensor<T> matmul(const Tensor<T>& x, const Tensor<T>& w) {
  return linear(x, w);
}

namespace detail {

/// What layer_norm does and, without beta, rms_norm.
template <class T>
struct RowNorm {
  Tensor<T> x, gamma, beta;
  double eps;
  Index D = x.shape().last(), N = x.shape().num_rows();
  Buffer<T> mean = Buffer<T>(N), rstd = Buffer<T>(N);

  Buffer<T> forward() const {
    const Buffer<T> y(N * D);
    kernel::layer_norm_forward(y.data(), mean.data(), rstd.data(), x.data(), gamma.data(),
                               beta ? beta.data() : nullptr, N, D, T(eps));
    return y;
  }
  void backward(const Buffer<T>& dy) const {
    if (x.needs_gradient())
      kernel::layer_norm_backward_x(x.sink(), dy.data(), x.data(), gamma.data(), mean.data(),
                                    rstd.data(), bool(beta), N, D);
    if (gamma.needs_gradient())
      kernel::layer_norm_backward_gamma(gamma.sink(), dy.data(), x.data(), mean.data(),
                                        rstd.data(), N, D);
    if (beta && beta.needs_gradient()) kernel::add_rows(beta.sink(), dy.data(), N, D);
  }
};

}  // namespace detail

/// Layer normalisation: gives every row mean 0 and variance 1, then scales and shifts.    [eq 5]
///
///   y[n, d] = h[n, d] * gamma[d] + beta[d],   h[n, d] = (x[n, d] - mean[n]) * rstd[n]
///   rstd[n] = 1 / sqrt(variance[n] + eps)     with the biased variance, divided by D
///
/// Nobody needs to keep y: with mean and rstd it is one pass over x to compute it again.
///
///   Shapes    x (..., D), gamma (D), beta (D)  ->  y (..., D)
///   Backward  dx = rstd * (dh - mean(dh) - h * mean(dh * h))    [d layer_norm]
///             with dh = dy * gamma, means over d
///             dgamma[d] = sum over n of  dy[n, d] * h[n, d],  dbeta[d] = sum over n of  dy[n, d]
///   Errors    ShapeError if gamma or beta is not as wide as x
///   Source    Ba et al., Layer Normalization, arXiv 1607.06450; eps of the authors of WideNet
///   Differs   PyTorch has eps = 1e-5, BERT and ALBERT 1e-12
template <class T>
Tensor<T> layer_norm(const Tensor<T>& x, const Tensor<T>& gamma, const Tensor<T>& beta,
                     double eps = 1e-6) {
  require<ShapeError>(x.shape().rank() >= 1, "layer_norm: x must be (..., D); got ", x.shape());
  const Index D = x.shape().last();
  require<ShapeError>(gamma.shape() == Shape{D} && beta.shape() == Shape{D},
                      "layer_norm: gamma and beta must be (D) = ", Shape{D}, "; got ",
                      gamma.shape(), ", ", beta.shape());
  const detail::RowNorm<T> norm{x, gamma, beta, eps};
  const Tensor<T> y(x.shape(), norm.forward());
  y.record("layer_norm", {x, gamma, beta}, [norm](const Buffer<T>& dy) { norm.backward(dy); });
  y.set_restore([norm] { return norm.forward(); });
  return y;
}

/// RMSNorm: gives every row a mean square of 1, then scales; no mean goes, no shift comes.
///
///   y[n, d] = h[n, d] * gamma[d],   h[n, d] = x[n, d] * rstd[n]
///   rstd[n] = 1 / sqrt(mean over d of  x[n, d]^2  + eps)
///
///   Shapes    x (..., D), gamma (D)  ->  y (..., D)
///   Backward  dx = rstd * (dh - h * mean(dh * h)),  dh = dy * gamma    [d rms_norm]
///             dgamma[d] = sum over n of  dy[n, d] * h[n, d]
///   Errors    ShapeError if gamma is not as wide as x
///   Source    Zhang, Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467
///   Differs   the paper has no eps; T5 and Switch 1e-6, Mixtral 1e-5
template <class T>
Tensor<T> rms_norm(const Tensor<T>& x, const Tensor<T>& gamma, double eps = 1e-6) {
  require<ShapeError>(x.shape().rank() >= 1, "rms_norm: x must be (..., D); got ", x.shape());
  require<ShapeError>(gamma.shape() == Shape{x.shape().last()}, "rms_norm: gamma must be (D) = ",
                      Shape{x.shape().last()}, "; got ", gamma.shape());
  const detail::RowNorm<T> norm{x, gamma, Tensor<T>(), eps};
  const Tensor<T> y(x.shape(), norm.forward());
  y.record("rms_norm", {x, gamma}, [norm](const Buffer<T>& dy) { norm.backward(dy); });
  y.set_restore([norm] { return norm.forward(); });
  return y;
}

/// Gaussian error linear unit.
///
///   tanh:  y = x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))     the authors of WideNet, ALBERT
///   erf:   y = x / 2 (1 + erf(x / sqrt(2)))                        ViT in PyTorch
///
///   Backward  dx = dy gelu'(x)    [d gelu]
///   Source    Hendrycks, Gimpel, Gaussian Error Linear Units, arXiv 1606.08415
///   Differs   the two forms are up to 4.73e-4 apart, at x = 2.7
template <class T>
Tensor<T> gelu(const Tensor<T>& x, Gelu form = Gelu::tanh) {
  const Tensor<T> y(x.shape());
  kernel::gelu_forward(y.data(), x.data(), form, x.size());
  y.record("gelu", {x}, [x, form](const Buffer<T>& dy) {
    kernel::gelu_backward(x.sink(), dy.data(), x.data(), form, x.size());
  });
  return y;
}

/// y = max(x, 0)
///
///   Backward  dx = dy where x > 0, else 0; at x = 0 it is 0    [d relu]
template <class T>
Tensor<T> relu(const Tensor<T>& x) {
  const Tensor<T> y(x.shape());
  kernel::relu_forward(y.data(), x.data(), x.size());
  y.record("relu", {x}, [x](const Buffer<T>& dy) {
    kernel::relu_backward(x.sink(), dy.data(), x.data(), x.size());
  });
  return y;
}

/// y = tanh(x)
///
///   Backward  dx = dy (1 - y^2)    [d tanh]
template <class T>
Tensor<T> tanh(const Tensor<T>& x) {
  const Tensor<T> y(x.shape());
  kernel::tanh_forward(y.data(), x.data(), x.size());
  y.record("tanh", {x}, [x, value = y.value()](const Buffer<T>& dy) {
    kernel::tanh_backward(x.sink(), dy.data(), value.data(), x.size());
  });
  return y;
}

/// Softmax of every row.
///
///   y[n, d] = exp(x[n, d]) / sum over j of exp(x[n, j])
///
///   Shapes    x (..., D)  ->  y (..., D)
///   Backward  dx = y * (dy - sum over j of dy[n, j] y[n, j])    [d softmax]
template <class T>
Tensor<T> softmax(const Tensor<T>& x) {
  const Tensor<T> y(x.shape());
  const Index D = x.shape().last(), N = x.shape().num_rows();
  kernel::softmax_forward(y.data(), x.data(), N, D);
  y.record("softmax", {x}, [x, value = y.value(), N, D](const Buffer<T>& dy) {
    kernel::softmax_backward(x.sink(), dy.data(), value.data(), N, D);
  });
  return y;
}

/// Sets each value to 0 with probability `fraction` and scales the others up.
///
///   y[i] = x[i] mask(i),   mask(i) = 0 if rng.uniform(i) < fraction, else 1 / (1 - fraction)
///
///   Backward  dx[i] = dy[i] mask(i)    [d dropout]
///   Errors    ValueError unless 0 <= fraction < 1
///   Source    Srivastava et al., Dropout, JMLR 2014
template <class T>
Tensor<T> dropout(const Tensor<T>& x, double fraction, const Rng& rng) {
  require<ValueError>(fraction >= 0 && fraction < 1,
                      "dropout: the fraction must lie in [0, 1); got ", fraction);
  if (fraction == 0) return x;
  const DropoutMask<T> mask{rng, fraction};
  const Tensor<T> y(x.shape());
  kernel::dropout(Sink<T>{y.data(), false}, x.data(), mask, x.size());
  y.record("dropout", {x}, [x, mask](const Buffer<T>& dy) {
    kernel::dropout(x.sink(), dy.data(), mask, x.size());
  });
  return y;
}

/// Takes some of the rows, each at most once, or puts them back among rows of zeros.
///
///   y[i, :] = x[index[i], :], or 0 where index[i] is -1
///
///   Shapes    x (M, D), index N integers in [-1, M), inverse M integers: inverse[index[i]] = i,
///             and -1 for the rows that are not taken  ->  y (N, D)
///   Backward  dx[j, :] = dy[inverse[j], :], or 0 where inverse[j] is -1    [d take_rows]
template <class T>
Tensor<T> take_rows(const Tensor<T>& x, const Buffer<std::int32_t>& index,
                    const Buffer<std::int32_t>& inverse) {
  require<ShapeError>(x.shape().rank() == 2 && x.shape()[0] == inverse.size(),
                      "take_rows: x must be (M, D) with M = ", inverse.size(), "; got ", x.shape());
  const Index M = inverse.size(), N = index.size(), D = x.shape()[1];
  const auto take = [x, index, N, D] {
    const Buffer<T> y(N * D);
    kernel::take_rows(Sink<T>{y.data(), false}, x.data(), index.data(), N, D);
    return y;
  };
  const Tensor<T> y(Shape{N, D}, take());
  y.record("take_rows", {x}, [x, inverse, M, D](const Buffer<T>& dy) {
    kernel::take_rows(x.sink(), dy.data(), inverse.data(), M, D);
  });
  y.set_restore(take);
  return y;
}

/// Looks up rows of a table.
///
///   y[n, :] = table[id[n], :]
///
///   Shapes    id: N integers in [0, V), table (V, D)  ->  y (N, D)
///   Backward  dtable[v, :] = sum over the n with id[n] = v, in order, of dy[n, :]    [d embedding]
///   Errors    ShapeError if the table is not (V, D); ValueError if an id is not in [0, V)
template <class T>
Tensor<T> embedding(const std::vector<std::int32_t>& id, const Tensor<T>& table) {
  require<ShapeError>(table.shape().rank() == 2, "embedding: the table must be (V, D); got ",
                      table.shape());
  const Index N = static_cast<Index>(id.size()), V = table.shape()[0], D = table.shape()[1];
  std::vector<std::int32_t> order, begin;  // the places of id, sorted by what they hold
  for (Index n = 0; n < N; ++n) {
    const std::int32_t v = id[static_cast<std::size_t>(n)];
    require<ValueError>(0 <= v && v < V, "embedding: ids must lie in [0, ", V, "); got id[", n,
                        "] = ", v);
    order.push_back(static_cast<std::int32_t>(n));
  }
  const auto at = [&id](std::int32_t n) { return id[static_cast<std::size_t>(n)]; };
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return at(a) < at(b); });
  for (std::size_t i = 0; i < order.size(); ++i)
    if (i == 0 || at(order[i]) != at(order[i - 1])) begin.push_back(static_cast<std::int32_t>(i));
  const Index num_used = static_cast<Index>(begin.size());
  begin.push_back(static_cast<std::int32_t>(order.size()));

  const Tensor<T> y(Shape{N, D});
  const Buffer<std::int32_t> ids(id), places(order), begins(begin);
  kernel::gather_rows(y.data(), table.data(), ids.data(), N, D);
  y.record("embedding", {table}, [table, ids, places, begins, num_used, D](const Buffer<T>& dy) {
    table.gradient();  // rows that no id names keep what they have, or 0
    kernel::scatter_rows(table.sink(), dy.data(), ids.data(), places.data(), begins.data(),
                         num_used, D);
  });
  return y;
}

/// y[b, t, d] = x[b, t, d] + block[t, d]: the same values for every sequence, as for positions.
///
///   Shapes    x (B, T, D), block (T, D)  ->  y (B, T, D)
///   Backward  dx = dy,  dblock = sum over b of dy[b, :, :]    [d add_to_sequences]
///   Errors    ShapeError if the block is not as large as a sequence
template <class T>
Tensor<T> add_to_sequences(const Tensor<T>& x, const Tensor<T>& block) {
  const Shape& s = x.shape();
  require<ShapeError>(s.rank() == 3 && block.shape() == Shape({s[1], s[2]}),
                      "add_to_sequences: x (B, T, D) and block (T, D) must fit; got ", s, ", ",
                      block.shape());
  const Tensor<T> y(s);
  kernel::add_periodic(y.data(), x.data(), block.data(), s[1], s[0] * s[1], s[2]);
  y.record("add_to_sequences", {x, block}, [x, block](const Buffer<T>& dy) {
    x.add_gradient(dy);
    if (block.needs_gradient())
      kernel::add_rows(block.sink(), dy.data(), x.shape()[0], block.size());
  });
  return y;
}

/// Concatenates along the tokens: y[b] = (a[b, 0], ..., a[b, Ta-1], b[b, 0], ..., b[b, Tb-1]).
///
///   Shapes    a (B, Ta, D), b (B, Tb, D)  ->  y (B, Ta + Tb, D)
///   Backward  da[b, t, :] = dy[b, t, :],  db[b, t, :] = dy[b, Ta + t, :]    [d concat_tokens]
///   Errors    ShapeError if B or D differ
template <class T>
Tensor<T> concat_tokens(const Tensor<T>& a, const Tensor<T>& b) {
  const Shape &s = a.shape(), &t = b.shape();
  require<ShapeError>(s.rank() == 3 && t.rank() == 3 && s[0] == t[0] && s[2] == t[2],
                      "concat_tokens: a and b must be (B, T, D) with one B and D; got ", s, ", ",
                      t);
  const Index B = s[0], Ta = s[1], Tb = t[1], D = s[2];
  const Tensor<T> y(Shape{B, Ta + Tb, D});
  const Sink<T> to{y.data(), false};
  kernel::copy_tokens(to, Ta + Tb, 0, a.data(), Ta, 0, B, Ta, D);
  kernel::copy_tokens(to, Ta + Tb, Ta, b.data(), Tb, 0, B, Tb, D);
  y.record("concat_tokens", {a, b}, [a, b, B, Ta, Tb, D](const Buffer<T>& dy) {
    if (a.needs_gradient())
      kernel::copy_tokens(a.sink(), Ta, 0, dy.data(), Ta + Tb, 0, B, Ta, D);
    if (b.needs_gradient())
      kernel::copy_tokens(b.sink(), Tb, 0, dy.data(), Ta + Tb, Ta, B, Tb, D);
  });
  return y;
}

/// Puts one token before every sequence: `token` (D), or zeros without a gradient if left out.
///
///   Shapes    token (D) or left out, x (B, T, D)  ->  y (B, T + 1, D)
///   Backward  dtoken = sum over b of dy[b, 0, :],  dx[b, t, :] = dy[b, t + 1, :]
///             [d prepend_token]
///   Errors    ShapeError if the token is not as wide as x
template <class T>
Tensor<T> prepend_token(const Tensor<T>& token, const Tensor<T>& x) {
  const Shape& s = x.shape();
  require<ShapeError>(s.rank() == 3 && (!token || token.shape() == Shape{s[2]}),
                      "prepend_token: x must be (B, T, D) and the token (D); got ", s, ", ",
                      (token ? token : x).shape());
  const Index B = s[0], T_ = s[1], D = s[2];
  const Tensor<T> y(Shape{B, T_ + 1, D});
  kernel::repeat_row(y.data(), T_ + 1, token ? token.data() : nullptr, B, D);
  kernel::copy_tokens(Sink<T>{y.data(), false}, T_ + 1, 1, x.data(), T_, 0, B, T_, D);
  y.record("prepend_token", {token, x}, [token, x, B, T_, D](const Buffer<T>& dy) {
    if (token && token.needs_gradient())
      kernel::add_first_tokens(token.sink(), dy.data(), B, T_ + 1, D);
    if (x.needs_gradient()) kernel::copy_tokens(x.sink(), T_, 0, dy.data(), T_ + 1, 1, B, T_, D);
  });
  return y;
}

/// The tokens first, ..., first + count - 1 of every sequence.
///
///   Shapes    x (B, T, D)  ->  y (B, count, D)
///   Backward  dx = dy in these tokens, 0 in the others    [d slice_tokens]
///   Errors    ShapeError if x is not (B, T, D); ValueError if the tokens are not in [0, T)
template <class T>
Tensor<T> slice_tokens(const Tensor<T>& x, Index first, Index count) {
  const Shape& s = x.shape();
  require<ShapeError>(s.rank() == 3, "slice_tokens: x must be (B, T, D); got ", s);
  require<ValueError>(first >= 0 && count >= 0 && first <= s[1] - count,
                      "slice_tokens: tokens must lie in [0, ", s[1], "); got ", count, " from ",
                      first);
  const Index B = s[0], T_ = s[1], D = s[2];
  const Tensor<T> y(Shape{B, count, D});
  kernel::copy_tokens(Sink<T>{y.data(), false}, count, 0, x.data(), T_, first, B, count, D);
  y.record("slice_tokens", {x}, [x, first, count, B, T_, D](const Buffer<T>& dy) {
    x.gradient();  // the other tokens get 0
    Sink<T> dx = x.sink();
    kernel::copy_tokens(dx, T_, first, dy.data(), count, 0, B, count, D);
  });
  return y;
}

/// The mean over the tokens of every sequence.
///
///   Shapes    x (B, T, D)  ->  y (B, D)
///   Backward  dx[b, t, :] = dy[b, :] / T    [d mean_tokens]
template <class T>
Tensor<T> mean_tokens(const Tensor<T>& x) {
  const Shape& s = x.shape();
  require<ShapeError>(s.rank() == 3 && s[1] > 0,
                      "mean_tokens: x must be (B, T, D) with T > 0; got ", s);
  const Index B = s[0], T_ = s[1], D = s[2];
  const Tensor<T> y(Shape{B, D});
  kernel::mean_tokens_forward(y.data(), x.data(), B, T_, D);
  y.record("mean_tokens", {x}, [x, B, T_, D](const Buffer<T>& dy) {
    kernel::mean_tokens_backward(x.sink(), dy.data(), B, T_, D);
  });
  return y;
}

namespace detail {

/// How attention looks at its arrays: B sequences of H heads. The heads of q (B, T, H, Dh) are
/// interleaved; scores are (B, H, T, S) with rows padded to S, a multiple of the lanes.
struct AttentionShape {
  Index B, T_, H, Dh;
  Index D() const { return H * Dh; }
  Index S() const { return (T_ + num_lanes - 1) / num_lanes * num_lanes; }
  Index num_scores() const { return B * H * T_ * S(); }
  template <class T> Matrix<T> heads(T* x) const { return {x, D(), T_ * D(), Dh}; }
  template <class T> Matrix<T> scores(T* x) const { return {x, S(), H * T_ * S(), T_ * S()}; }

  /// For every sequence and head: C = op(A) op(B) + beta C, where C is (rows, columns).
  template <class T>
  void multiply(bool transpose_a, bool transpose_b, Index columns, Index depth, Matrix<const T> A,
                Matrix<const T> B_, T beta, Matrix<T> C) const {
    gemm_batched(transpose_a, transpose_b, B, H, T_, columns, depth, A, B_, beta, C);
  }
};

/// p (B, H, T, S); `rows` keeps what makes the second time cheaper, with the same bits.
template <class T>
Buffer<T> attention_probabilities(const Tensor<T>& q, const Tensor<T>& k, const Buffer<T>& rows,
                                  bool is_known, const Buffer<std::uint8_t>& key_mask,
                                  AttentionShape a) {
  const Buffer<T> p(a.num_scores());
  const T *q_data = q.data(), *k_data = k.data();
  a.multiply(false, true, a.T_, a.Dh, a.heads(q_data), a.heads(k_data), T(0), a.scores(p.data()));
  kernel::attention_softmax(p.data(), rows.data(), is_known, key_mask.data(),
                            T(1 / std::sqrt(double(a.Dh))), a.B, a.H, a.T_, a.S());
  return p;
}

}  // namespace detail

/// Scaled dot-product attention with H heads; head h owns the features h Dh, ..., (h+1) Dh - 1.
///
///   p[b, h, i, :] = softmax over j of  q[b, h, i, :] . k[b, h, j, :] / sqrt(Dh)
///   y[b, h, i, :] = sum over j of  p[b, h, i, j] v[b, h, j, :]
///
/// Keys j with key_mask[b, j] = 0 are left out (their score is minus infinity); a sequence without
/// any key gives 0. The probabilities are computed again in backward, from the largest score and
/// the sum of each row: at 197 tokens they would be three to four times as large as the result.
///
///   Shapes    q, k, v (B, T, D), key_mask (B, T) of 0 and 1 or left out  ->  y (B, T, D)
///   Backward  dv = p^T dy,  dp = dy v^T,  ds = p * (dp - sum over j of dp p),
///             dq = ds k / sqrt(Dh),  dk = ds^T q / sqrt(Dh)    [d attention]
///   Errors    ShapeError if shapes differ, the mask does not fit, or H does not divide D
///   Source    Vaswani et al., Attention Is All You Need, arXiv 1706.03762
template <class T>
Tensor<T> attention(const Tensor<T>& q, const Tensor<T>& k, const Tensor<T>& v, Index heads,
                    const Buffer<std::uint8_t>& key_mask = {}) {
  const Shape& s = q.shape();
  require<ShapeError>(s.rank() == 3 && k.shape() == s && v.shape() == s,
                      "attention: q, k and v must be (B, T, D); got ", s, ", ", k.shape(), ", ",
                      v.shape());
  require<ShapeError>(heads > 0 && s[2] % heads == 0, "attention: the heads must divide D = ", s[2],
                      "; got H = ", heads);
  require<ShapeError>(key_mask.size() == 0 || key_mask.size() == s[0] * s[1],
                      "attention: key_mask must have B * T = ", s[0] * s[1], " values; got ",
                      key_mask.size());
  const detail::AttentionShape a{s[0], s[1], heads, s[2] / heads};
  const Tensor<T> y(s);
  const Buffer<T> rows(2 * a.B * a.H * a.T_);
  {
    const Buffer<T> p = detail::attention_probabilities(q, k, rows, false, key_mask, a);
    const T *p_data = p.data(), *v_data = v.data();
    a.multiply(false, false, a.Dh, a.T_, a.scores(p_data), a.heads(v_data), T(0),
               a.heads(y.data()));
  }
  y.record("attention", {q, k, v}, [q, k, v, rows, key_mask, a](const Buffer<T>& dy_buffer) {
    const Buffer<T> p_buffer = detail::attention_probabilities(q, k, rows, true, key_mask, a);
    const T *dy = dy_buffer.data(), *p = p_buffer.data();
    const T *q_data = q.data(), *k_data = k.data(), *v_data = v.data();
    if (v.needs_gradient()) {  // dv = p^T dy
      const Sink<T> dv = v.sink();
      a.multiply(true, false, a.Dh, a.T_, a.scores(p), a.heads(dy), dv.beta(), a.heads(dv.data));
    }
    const Buffer<T> ds_buffer(a.num_scores());  // first dp = dy v^T
    a.multiply(false, true, a.T_, a.Dh, a.heads(dy), a.heads(v_data), T(0),
               a.scores(ds_buffer.data()));
    kernel::attention_softmax_backward(ds_buffer.data(), p, T(1 / std::sqrt(double(a.Dh))),
                                       a.B * a.H * a.T_, a.T_, a.S());
    const T* ds = ds_buffer.data();
    if (q.needs_gradient()) {  // dq = ds k
      const Sink<T> dq = q.sink();
      a.multiply(false, false, a.Dh, a.T_, a.scores(ds), a.heads(k_data), dq.beta(),
                 a.heads(dq.data));
    }
    if (k.needs_gradient()) {  // dk = ds^T q
      const Sink<T> dk = k.sink();
      a.multiply(true, false, a.Dh, a.T_, a.scores(ds), a.heads(q_data), dk.beta(),
                 a.heads(dk.data));
    }
  });
  return y;
}

// [9] LAYERS ======================================================================================

/// A step of training: all that makes it random. Evaluation takes no such thing. A batch that does
/// not fit into memory can go in k micro-batches of equal size, 0 to k - 1, with the loss of each
/// divided by k: gradients add up to that of the whole batch, but that capacity and balance loss
/// are those of each micro-batch.
struct Training {
  Rng rng;
  Index step;
  Index micro_batch = 0;
  /// The random stream for one purpose in one block of this step.
  Rng stream(Purpose purpose, Index block) const {
    return rng.for_purpose(purpose).at_block(block).at_step(step).at_micro_batch(micro_batch);
  }
};

/// Dropout in training, nothing in evaluation (`training` is null).
template <class T>
Tensor<T> dropout_in(const Training* training, Purpose purpose, Index block, const Tensor<T>& x,
                     double fraction) {
  return training ? dropout(x, fraction, training->stream(purpose, block)) : x;
}

/// A tensor that is learned, under the name that it has in checkpoints. A name with "{}" is a
/// stack: slice j of the tensor, along its first axis, is stored under the name with j in place.
template <class T>
struct Parameter {
  std::string name;
  Tensor<T> tensor;
  bool is_stack() const { return name.find("{}") != std::string::npos; }
};

/// Makes the parameters of a model and keeps the list of them. Initial values are a function of the
/// seed and of the name. With `counts_only` it allocates nothing but adds up the sizes.
template <class T>
class ParameterSet {
 public:
  explicit ParameterSet(const Rng& rng, bool counts_only = false)
      : rng_(rng.for_purpose(Purpose::initial_weight)), counts_only_(counts_only) {}

  /// Uniform in (-a, a), a = sqrt(6 / (in + out)), for a weight (in, out) or a stack (E, in, out).
  ///
  ///   Source    Glorot, Bengio, AISTATS 2010
  Tensor<T> glorot(const std::string& name, const Shape& shape) {
    const double fans = double(shape[shape.rank() - 2] + shape.last());
    const T a = T(std::sqrt(6 / fans));
    return add(name, shape, [&] { return Tensor<T>::uniform(shape, rng_.named(name), -a, a); });
  }
  Tensor<T> normal(const std::string& name, const Shape& shape, double deviation) {
    return add(name, shape, [&] {
      return Tensor<T>::randn(shape, rng_.named(name), T(deviation));
    });
  }
  Tensor<T> constant(const std::string& name, const Shape& shape, T value) {
    return add(name, shape, [&] { return Tensor<T>::full(shape, value); });
  }
  const std::vector<Parameter<T>>& list() const { return list_; }
  Index count() const { return count_; }

 private:
  template <class Make>
  Tensor<T> add(const std::string& name, const Shape& shape, Make make) {
    require<ConfigError>(count_ <= (Index(1) << 60) - shape.num_values() / 8,
                         "ParameterSet: the number of parameters must fit 60 bits; got more at ",
                         name);
    count_ += shape.num_values();
    if (counts_only_) return {};
    list_.push_back({name, make().require_gradient()});
    return list_.back().tensor;
  }
  Rng rng_;
  bool counts_only_;
  Index count_ = 0;
  std::vector<Parameter<T>> list_;
};

/// y = x w + b, with Glorot-uniform w (in, out) and b = 0.
template <class T>
struct Linear {
  Tensor<T> weight, bias;
  Linear() = default;
  Linear(ParameterSet<T>& parameters, const std::string& name, Index in, Index out,
         double bias_deviation = 0)
      : weight(parameters.glorot(name + ".weight", {in, out})),
        bias(parameters.normal(name + ".bias", {out}, bias_deviation)) {}
  Tensor<T> operator()(const Tensor<T>& x) const { return linear(x, weight, bias); }
};

/// Layer normalisation with gamma = 1 (stored as weight) and beta = 0 (stored as bias); as RMSNorm
/// it has no beta.
template <class T>
struct LayerNorm {
  Tensor<T> weight, bias;
  LayerNorm() = default;
  LayerNorm(ParameterSet<T>& parameters, const std::string& name, Index width,
            Norm kind = Norm::layer_norm)
      : weight(parameters.constant(name + ".weight", {width}, T(1))) {
    if (kind == Norm::layer_norm) bias = parameters.constant(name + ".bias", {width}, T(0));
  }
  Tensor<T> operator()(const Tensor<T>& x, double eps) const {
    return bias ? layer_norm(x, weight, bias, eps) : rms_norm(x, weight, eps);
  }
};

/// What a layer leaves, for all tokens, with a forward pass that is asked for it: see BlockRecord.
template <class T>
struct AttentionRecord {
  Tensor<T> q, k, v, mixed;           // (B, T, D); mixed: the values as the heads weight them
  Buffer<std::uint8_t> key_mask;
};
template <class T>
struct HiddenRecord {
  Tensor<T> before_gelu, after_gelu;  // (B, T, F), or (E, C, F), where rows of empty slots hold
                                      // nothing of use; the latter after dropout, too
};

namespace detail {

/// Leaves a tensor in a record, and its gradient when backward has run.
template <class T>
[[gnu::cold, gnu::noinline]] void keep(Tensor<T>& place, const Tensor<T>& x) {
  place = x.require_gradient();
}

}  // namespace detail

/// Multi-head self-attention: y = attention(x Wq + bq, x Wk + bk, x Wv + bv) Wo + bo.
template <class T>
struct Attention {
  Linear<T> q, k, v, o;
  Attention() = default;
  Attention(ParameterSet<T>& parameters, const std::string& name, Index width)
      : q(parameters, name + ".q", width, width), k(parameters, name + ".k", width, width),
        v(parameters, name + ".v", width, width), o(parameters, name + ".o", width, width) {}
  Tensor<T> operator()(const Tensor<T>& x, Index heads, const Buffer<std::uint8_t>& key_mask = {},
                       AttentionRecord<T>* record = nullptr) const {
    // One after the other, so that dx is the same sum with every compiler.
    const Tensor<T> values = v(x), keys = k(x), queries = q(x);
    const Tensor<T> mixed = attention(queries, keys, values, heads, key_mask);
    if (record) {
      detail::keep(record->q, queries), detail::keep(record->k, keys);
      detail::keep(record->v, values), detail::keep(record->mixed, mixed);
      record->key_mask = key_mask;
    }
    return o(mixed);
  }
};

/// The dense feed-forward network: y = gelu(x W1 + b1) W2 + b2, dropout after each product;
/// with gelu_at_output gelu(y) in place of y.
template <class T>
struct FeedForward {
  Linear<T> fc1, fc2;
  FeedForward() = default;
  FeedForward(ParameterSet<T>& parameters, const std::string& name, Index width, Index hidden)
      : fc1(parameters, name + ".fc1", width, hidden, 1e-6),
        fc2(parameters, name + ".fc2", hidden, width, 1e-6) {}
  Tensor<T> operator()(const Tensor<T>& x, Gelu form, double dropout_fraction,
                       const Training* training, Index block, bool gelu_at_output = false,
                       HiddenRecord<T>* record = nullptr) const {
    Tensor<T> hidden = fc1(x);
    if (record) detail::keep(record->before_gelu, hidden);
    hidden = dropout_in(training, Purpose::hidden_dropout, block, gelu(hidden, form),
                        dropout_fraction);
    if (record) detail::keep(record->after_gelu, hidden);
    const Tensor<T> y = gelu_at_output ? gelu(fc2(hidden), form) : fc2(hidden);
    return dropout_in(training, Purpose::output_dropout, block, y, dropout_fraction);
  }
};

// [10] MIXTURE OF EXPERTS =========================================================================
//
//   MoE(x_n) = sum over kept k of  gate[n, k] * expert_{e(n, k)}(x_n)                       [eq 1]
//
// in five operations: the router scores every expert for every token; the K best are chosen; each
// choice queues up for a slot of its expert, and is dropped if there is none left; the experts work
// on what stands in their slots; the results go back to the tokens, weighted by the gates.

/// The law of the router's noise in training, s being the convention's noise_scale.
///   none
///   one_over_experts          z + (s / E) n,   n ~ N(0, 1)   the authors of WideNet, V-MoE  [eq 2]
///   one_over_experts_squared  z + (s / E^2) n                      Colossal-AI
///   uniform                   z + s u,   u uniform in (-1, 1)      keras-io, FastMoE
///   gumbel                    z + s g,   g = -log(-log(u)), u uniform in (0, 1)    DeepSpeed
///   jitter                    z = (x (1 + s u)) w                  Mesh TF, DeepSpeed
///   jitter_in_place           the same, and the experts see x (1 + s u), too       HF Switch
enum class RouterNoise {
  none, one_over_experts, one_over_experts_squared, uniform, gumbel, jitter, jitter_in_place
};

/// What a result is weighted by.
///   raw                       p[n, e(n, k)]                  the authors of WideNet, V-MoE, Switch
///   renormalized              p / (sum of p over the K choices + eps)    Mixtral, Mesh TF, Tutel
///   renormalized_after_drop   the sum over the choices that have a slot  DeepSpeed
enum class GateRule { raw, renormalized, renormalized_after_drop };

/// How many slots an expert has for N tokens, before rounding to a multiple and a minimum.
///   choices_over_experts  round(factor K N / E)                    the authors of WideNet   [eq 3]
///   tokens_over_experts   round(factor N / E), whatever K          Mesh TF, keras-io, labml
///   shares_first          K round(factor ceil(N / E))              Tutel
///   tokens_first          round(ceil(factor N) K / E)              FastMoE
///   single_precision      ceil(N / E * (factor K)), in floats      DeepSpeed
///   absolute              capacity_slots                           HF Switch
///   dropless              N                                        Mixtral
enum class CapacityRule {
  choices_over_experts, tokens_over_experts, shares_first, tokens_first, single_precision, absolute,
  dropless
};

enum class Rounding { floor, ceil };

/// Who is served first when an expert has fewer slots than choices.
///   token_major         token 0 with all its choices, then token 1, ...
///   choice_major        all first choices in order of tokens, then all second choices, ...
///   batch_priority      as choice_major, with the tokens in order of their largest gate
///   highest_gate        the choices in order of their gates
///   random              the choices in an order drawn anew at every step
enum class Priority { token_major, choice_major, batch_priority, highest_gate, random };

/// What a dropped choice adds to its token: nothing, or gate * x (HF Switch until 2025, labml).
enum class DroppedValue { zero, gated_input };

/// How load and importance make up the balance loss of a block. With N tokens, choices counted
/// before dropping, and P[e] = mean over n of p[n, e]:
///   khot_over_k      E sum f P,  f[e] = choices of e / (N K)      the authors of WideNet    [eq 4]
///   khot_sum         E sum f P,  f[e] = choices of e / N          Mixtral
///   switch_top1      E sum f P,  f[e] = first choices of e / N    Switch, GShard, V-MoE, DeepSpeed
///   after_drop       E sum f P,  f[e] = kept choices of e / all kept
///   after_drop_both  the same, with the sum of p also divided by all kept        FastMoE
///   importance           (deviation / mean)^2 of sum over n of p[n, e], divided by E    V-MoE
///   importance_unbiased  the same, divided by E - 1                                     Tutel
///   load             as importance, with w[n, e] in place of p[n, e]: the probability that new
///                    noise would lift z[n, e] above the K-th largest noisy logit of n    V-MoE
///   z_loss           mean over n of (log sum over e of exp z[n, e])^2      Mesh TF, HF Switch
enum class BalanceRule {
  khot_over_k, khot_sum, switch_top1, after_drop, after_drop_both, importance, importance_unbiased,
  load, z_loss
};

/// The losses of several routings make one: their sum (the authors), their mean (HF Switch), or the
/// loss of all their tokens together, as if of one routing (HF Mixtral).
enum class Reduction { sum, mean, together };

/// What implementations of mixtures of experts disagree about.
struct Conventions {
  bool router_bias = false;              // z = x w + b
  RouterNoise noise = RouterNoise::one_over_experts;
  double noise_scale = 1;
  bool first_choice_sees_noise = true;   // false: noise decides about the other choices only
  bool gate_sees_noise = true, balance_sees_noise = true;
  GateRule gate = GateRule::raw;
  double gate_eps = 0;                   // of a renormalised gate
  double second_choice_threshold = 0;    // in training a choice after the first asks for a slot
                                         // with probability min(1, gate / threshold); 0: always
  CapacityRule capacity = CapacityRule::choices_over_experts;
  Rounding capacity_rounding = Rounding::floor;
  Index capacity_multiple = 1, capacity_minimum = 1, capacity_slots = 64;
  Index capacity_sequences = 0;          // so many share the C slots, and the balance loss is the
                                         // mean over such groups; 0: the whole batch is one group
  Index unusable_slots = 0;              // 1: of C slots the last is never filled
  Priority priority = Priority::token_major;
  DroppedValue dropped = DroppedValue::zero;
  BalanceRule balance = BalanceRule::khot_over_k;
  Reduction reduction = Reduction::sum;

  // The presets set the conventions alone. What else an implementation does in its own way, such as
  // its capacity factor, K, its GELU or a router for every block, is a field of EncoderConfig.

  /// The equations of the paper; what it leaves open as in its authors' code.
  static Conventions paper() { return {}; }
  /// XueFuzhao/WideNet_Code: counts from one and compares with <, so one slot stays empty.
  static Conventions author_tf() {
    Conventions c;
    c.unusable_slots = 1;
    return c;
  }
  /// Colossal-AI 2023, Titans.
  static Conventions colossal() {
    Conventions c = served_by_choice(BalanceRule::khot_over_k);
    c.noise = RouterNoise::one_over_experts_squared;
    c.capacity_multiple = 2, c.capacity_minimum = 4;
    return c;
  }
  /// google-research/vmoe; with its batch priority set `priority`.
  static Conventions vmoe() {
    Conventions c = served_by_choice(BalanceRule::switch_top1);
    c.capacity_rounding = Rounding::ceil;
    c.capacity_multiple = 4, c.capacity_sequences = 8;
    return c;
  }
  /// tensorflow/mesh, top-2 gating with the policy "random" for the second expert; by default it
  /// keeps second choices at random in evaluation, too.
  static Conventions mesh_top2() {
    Conventions c = served_by_choice(BalanceRule::switch_top1);
    c.noise = RouterNoise::none;
    c.gate = GateRule::renormalized, c.gate_eps = 1e-9, c.second_choice_threshold = 0.2;
    c.capacity = CapacityRule::tokens_over_experts;
    c.capacity_minimum = 4, c.capacity_sequences = 1;
    return c;
  }
  /// microsoft/DeepSpeed, top2gating; it draws the second expert in evaluation, too.
  static Conventions deepspeed_top2() {
    Conventions c = served_by_choice(BalanceRule::switch_top1);
    c.noise = RouterNoise::gumbel;
    c.first_choice_sees_noise = c.gate_sees_noise = c.balance_sees_noise = false;
    c.gate = GateRule::renormalized_after_drop;
    c.capacity = CapacityRule::single_precision, c.capacity_minimum = 4;
    return c;
  }
  /// microsoft/tutel; its gate_noise is our noise_scale.
  static Conventions tutel() {
    Conventions c = served_by_choice(BalanceRule::switch_top1);
    c.gate = GateRule::renormalized;
    c.capacity = CapacityRule::shares_first;
    return c;
  }
  /// huggingface/transformers, Mixtral.
  static Conventions mixtral() {
    Conventions c;
    c.noise = RouterNoise::none;
    c.gate = GateRule::renormalized;
    c.capacity = CapacityRule::dropless;
    c.balance = BalanceRule::khot_sum, c.reduction = Reduction::together;
    return c;
  }
  /// huggingface/transformers, SwitchTransformers: K = 1.
  static Conventions hf_switch() {
    Conventions c;
    c.noise = RouterNoise::jitter_in_place, c.noise_scale = 0.01;
    c.capacity = CapacityRule::absolute, c.capacity_sequences = 1;
    c.balance = BalanceRule::switch_top1, c.reduction = Reduction::mean;
    return c;
  }
  /// The presets by name.
  static std::map<std::string, Conventions> presets() {
    return {{"paper", paper()},         {"author_tf", author_tf()},
            {"colossal", colossal()},   {"vmoe", vmoe()},
            {"mesh_top2", mesh_top2()}, {"deepspeed_top2", deepspeed_top2()},
            {"tutel", tutel()},         {"mixtral", mixtral()},
            {"hf_switch", hf_switch()}};
  }

  bool is_jittered() const {
    return noise == RouterNoise::jitter || noise == RouterNoise::jitter_in_place;
  }
  /// The standard deviation of normal noise on the logits; 0 under another law.
  double noise_deviation(Index E) const {
    return noise == RouterNoise::one_over_experts           ? noise_scale / double(E)
           : noise == RouterNoise::one_over_experts_squared ? noise_scale / (double(E) * double(E))
                                                            : 0;
  }

 private:
  static Conventions served_by_choice(BalanceRule rule) {
    Conventions c;
    c.priority = Priority::choice_major, c.balance = rule;
    return c;
  }
};

/// What cannot be learned with K of E experts under these conventions, in plain words.
inline std::vector<std::string> warnings(const Conventions& c, Index K, Index E) {
  std::vector<std::string> found;
  if (K == 1 && c.gate != GateRule::raw)
    found.push_back(
        "with K = 1 a renormalised gate is always 1: the router learns nothing from the task");
  if (K == E && (c.balance == BalanceRule::khot_over_k || c.balance == BalanceRule::khot_sum))
    found.push_back("with K = E every expert has every token: the balance loss is constant");
  return found;
}

/// The capacity of an expert, in integers but where a float is imitated; [eq 3] under the paper's.
///
///   C = max(minimum, factor K N / E, or another formula, rounded)
///
///   Errors    ValueError if an argument is not positive, or too large for 53 bits
///   Differs   the paper prints factor K N without the division, which would never drop anything
inline Index expert_capacity(const Conventions& c, Rational factor, Index K, Index N, Index E) {
  require<ValueError>(factor.numerator > 0 && factor.denominator > 0 && K > 0 && N > 0 && E > 0,
                      "expert_capacity: factor, K, N and E must be positive; got ", factor, ", ", K,
                      ", ", N, ", ", E);
  require<ValueError>(c.capacity_multiple > 0 && c.capacity_minimum > 0 && c.capacity_slots > 0,
                      "expert_capacity: capacity_multiple, capacity_minimum and capacity_slots "
                      "must be positive; got ", c.capacity_multiple, ", ", c.capacity_minimum, ", ",
                      c.capacity_slots);
  constexpr Index limit = Index(1) << 53;
  require<ValueError>(factor.numerator <= limit / K / N && factor.denominator <= limit / E &&
                          c.capacity_multiple <= limit && c.capacity_slots <= limit,
                      "expert_capacity: products and slots must not exceed 2^53; got ", factor,
                      ", ", K, ", ", N, ", ", E);
  const Index above = factor.numerator, below = factor.denominator, m = c.capacity_multiple;
  const auto up = [](Index a, Index b) { return (a + b - 1) / b; };
  const auto divide = [&](Index a, Index b) {
    return c.capacity_rounding == Rounding::ceil ? up(a, b) : a / b;
  };
  Index C = N;  // dropless
  if (c.capacity == CapacityRule::choices_over_experts) C = divide(above * K * N, below * E);
  if (c.capacity == CapacityRule::tokens_over_experts) C = divide(above * N, below * E);
  if (c.capacity == CapacityRule::shares_first) C = K * divide(above * up(N, E), below);
  if (c.capacity == CapacityRule::tokens_first) C = divide(up(above * N, below) * K, E);
  if (c.capacity == CapacityRule::absolute) C = c.capacity_slots;
  if (c.capacity == CapacityRule::single_precision) {
    const double tokens = double(N) / double(E), weight = double(above) / double(below) * double(K);
    C = static_cast<Index>(std::ceil(static_cast<float>(tokens) * static_cast<float>(weight)));
  }
  return std::max<Index>({1, c.capacity_minimum, up(C, m) * m});
}
inline Index expert_capacity(Rational factor, Index K, Index N, Index E,
                             Rounding rounding = Rounding::floor) {
  Conventions c;
  c.capacity_rounding = rounding;
  return expert_capacity(c, factor, K, N, E);
}

/// Where the N*K choices of a block go. Choice k of token n stands in slot[n*K + k] of expert
/// expert[n*K + k], or has slot -1 if it was dropped. No two choices share a slot. The arrays stay
/// where they were made; to_vector() copies one out.
template <class T>
struct Routing {
  Index N = 0, K = 0, E = 0;
  Index C = 0;                             // slots of an expert, as a buffer
  Index groups = 1;                        // of tokens that share capacity
  Tensor<T> logits, probabilities;         // (N, E), without noise; with it, as the choice sees it
  Tensor<T> balance_probabilities;         // (N, E), as the balance loss sees them
  Buffer<T> noise;                         // (N, E), empty in evaluation
  Buffer<T> jitter;                        // (N, D), factors of x, empty but for such a convention
  double noise_deviation = 0;              // of normal noise
  Tensor<T> gate;                          // (N, K)
  Index usable = 0;                        // slots of an expert that a group of tokens may fill
  Buffer<std::int32_t> expert, slot;       // (N, K)
  Buffer<std::int32_t> choice_of_slot;     // (E, C): n*K + k, or -1 where empty
  Buffer<std::int32_t> load, kept;         // (E): choices before and after dropping
  Buffer<T> importance;                    // (E): sum over n of balance_probabilities[n, e]
  Buffer<std::int32_t> token;              // (N): which token of the batch n is; empty: token n

  std::vector<bool> dropped() const {
    std::vector<bool> result;
    for (const std::int32_t s : slot.to_vector()) result.push_back(s < 0);
    return result;
  }
  double dropped_fraction() const {
    Index total = 0;
    for (const std::int32_t k : kept.to_vector()) total += k;
    return N * K == 0 ? 0 : 1 - double(total) / double(N * K);
  }
};

/// Choices and noise from elsewhere, in place of the router's own: to gradcheck with a frozen
/// routing, or to run these experts with another implementation's decisions.
template <class T>
struct Replay {
  struct Choices {
    Buffer<std::int32_t> expert, slot;  // (N, K)
    Buffer<T> gate = {};                // (N, K), without a gradient, or empty: those of our router
  };
  std::vector<Choices> choices;  // one per routing block, or empty
  std::vector<Buffer<T>> noise;  // (N, E), one per routing block, or empty
  std::vector<Buffer<T>> jitter;  // (N, D), likewise

  static Replay of(const std::vector<Routing<T>>& routings) {
    Replay replay;
    for (const Routing<T>& r : routings) {
      replay.choices.push_back({r.expert, r.slot});
      replay.noise.push_back(r.noise);
      replay.jitter.push_back(r.jitter);
    }
    return replay;
  }
};

/// The tokens of a batch that are routed, where padding is not: N of N' tokens. Padding then takes
/// no slot and counts in no mean; N is the number of the others, in capacity, too.
struct RoutedTokens {
  Buffer<std::int32_t> token;  // (N): their places in the batch, b T + t
  Buffer<std::int32_t> row;    // (N'): the row of each token in them, or -1; empty: all are routed
  RoutedTokens() = default;
  explicit RoutedTokens(const std::vector<std::uint8_t>& mask) {
    std::vector<std::int32_t> tokens, rows;
    for (const std::uint8_t is_token : mask) {
      rows.push_back(is_token ? static_cast<std::int32_t>(tokens.size()) : -1);
      if (is_token) tokens.push_back(static_cast<std::int32_t>(rows.size() - 1));
    }
    token = Buffer<std::int32_t>(tokens), row = Buffer<std::int32_t>(rows);
  }
};

/// Everything that `route` needs to know but the tensors.
struct RouteOptions {
  Index K = 2;
  Rational capacity_factor{6, 5};
  Conventions conventions;
  Index group_tokens = 0;  // so many neighbours share capacity; 0: all N
};

/// Router logits: z = x w, plus a bias if there is one. Every logit is one chain of fused
/// multiply-adds over d, in order, on the CPU and on the GPU, so that no choice depends on who
/// multiplies.
///
///   Shapes    x (N, D), w (D, E), bias (E) or left out  ->  z (N, E)
///   Backward  dx = dz w^T,  dw = x^T dz,  dbias[e] = sum over n of  dz[n, e]    [d router_logits]
///   Source    authors' code; the paper's f(x), which has no bias
///   Differs   HF Switch and others compute it in float whatever the model's type
template <class T>
Tensor<T> router_logits(const Tensor<T>& x, const Tensor<T>& w, const Tensor<T>& bias = {}) {
  const Shape &s = x.shape(), &t = w.shape();
  require<ShapeError>(s.rank() == 2 && t.rank() == 2 && s[1] == t[0],
                      "router_logits: x (N, D) and w (D, E) must share D; got ", s, ", ", t);
  const Index N = s[0], D = s[1], E = t[1];
  require<ShapeError>(!bias || bias.shape() == Shape{E}, "router_logits: bias must be (E) = ",
                      Shape{E}, "; got ", (bias ? bias : x).shape());
  const Tensor<T> z(Shape{N, E});
  gemm_in_order(N, E, D, x.data(), w.data(), z.data());
  if (bias) kernel::add_periodic(z.data(), z.data(), bias.data(), 1, N, E);
  z.record("router_logits", {x, w, bias}, [x, w, bias, N, D, E](const Buffer<T>& dz) {
    if (bias && bias.needs_gradient()) kernel::add_rows(bias.sink(), dz.data(), N, E);
    if (x.needs_gradient()) {
      const Sink<T> dx = x.sink();
      gemm(false, true, N, D, E, dz.data(), E, w.data(), E, dx.beta(), dx.data, D);
    }
    if (w.needs_gradient()) {
      const Sink<T> dw = w.sink();
      gemm(true, false, D, E, N, x.data(), D, dz.data(), E, dw.beta(), dw.data, E);
    }
  });
  return z;
}

/// p = softmax(z + noise) row by row; no gradient flows to the noise.    [eq 2]
///
///   Shapes    z (N, E), noise N*E values or none  ->  p (N, E)
///   Backward  dz = p (dp - sum over e of dp p)    [d router_probabilities]
template <class T>
Tensor<T> router_probabilities(const Tensor<T>& z, const Buffer<T>& noise = {}) {
  require<ShapeError>(z.shape().rank() == 2 && (noise.size() == 0 || noise.size() == z.size()),
                      "router_probabilities: logits must be (N, E) and noise as large; got ",
                      z.shape(), ", ", noise.size(), " values");
  const Index N = z.shape()[0], E = z.shape()[1];
  const Tensor<T> p(z.shape());
  kernel::router_probabilities(p.data(), z.data(), noise.data(), N, E);
  p.record("router_probabilities", {z}, [z, value = p.value(), N, E](const Buffer<T>& dp) {
    kernel::softmax_backward(z.sink(), dp.data(), value.data(), N, E);
  });
  return p;
}

/// gate[n, k] = p[n, expert[n, k]], not renormalised.    [eq 2]
///
///   Shapes    p (N, E), expert N*K integers in [0, E)  ->  gate (N, K)
///   Backward  dp[n, e] = dgate[n, k] where e was choice k of n, 0 elsewhere    [d select_gates]
template <class T>
Tensor<T> select_gates(const Tensor<T>& p, const Buffer<std::int32_t>& expert, Index K) {
  require<ShapeError>(p.shape().rank() == 2, "select_gates: p must be (N, E); got ", p.shape());
  const Index N = p.shape()[0], E = p.shape()[1];
  require<ShapeError>(expert.size() == N * K, "select_gates: there must be N * K = ", N * K,
                      " choices; got ", expert.size());
  const Tensor<T> gate(Shape{N, K});
  kernel::select_forward(gate.data(), p.data(), expert.data(), N, E, K);
  gate.record("select_gates", {p}, [p, expert, N, E, K](const Buffer<T>& dgate) {
    kernel::select_backward(p.sink(), dgate.data(), expert.data(), N, E, K);
  });
  return gate;
}

/// y[n, k] = gate[n, k] / (sum over k of gate[n, k] + eps). If slots are given, choices without a
/// slot neither count nor get anything. With K = 1 every y is 1, and the router gets no gradient.
///
///   Shapes    gate (N, K), slot N*K integers or none  ->  y (N, K)
///   Backward  dgate[n, k] = (dy[n, k] - sum over i of dy[n, i] y[n, i]) / (sum + eps)
///             [d renormalize]
///   Source    Mixtral, Mesh TF, Tutel; with slots DeepSpeed
template <class T>
Tensor<T> renormalize(const Tensor<T>& gate, const Buffer<std::int32_t>& slot, double eps) {
  require<ShapeError>(gate.shape().rank() == 2, "renormalize: gate must be (N, K); got ",
                      gate.shape());
  const Index N = gate.shape()[0], K = gate.shape()[1];
  require<ShapeError>(slot.size() == 0 || slot.size() == N * K,
                      "renormalize: there must be N * K = ", N * K, " slots or none; got ",
                      slot.size());
  const Tensor<T> y(gate.shape());
  kernel::renormalize_forward(y.data(), gate.data(), slot.data(), T(eps), N, K);
  y.record("renormalize", {gate}, [=, value = y.value()](const Buffer<T>& dy) {
    kernel::renormalize_backward(gate.sink(), dy.data(), value.data(), gate.data(), slot.data(),
                                 T(eps), N, K);
  });
  return y;
}

namespace detail {

/// The order in which choices are served, group by group, or an empty buffer if it is that of their
/// numbers.
template <class T>
Buffer<std::int32_t> order_of_priority(Priority priority, const Routing<T>& r, const Rng* rng) {
  if (priority == Priority::token_major || (priority == Priority::random && !rng)) return {};
  const Buffer<std::int32_t> order(r.N * r.K);
  if (priority == Priority::choice_major) {
    kernel::order_choices_of(order.data(), nullptr, r.groups, r.N / r.groups, r.K);
    return order;
  }
  const bool by_token = priority == Priority::batch_priority;
  const Index n = by_token ? r.N : r.N * r.K;
  const Buffer<T> key(n);
  if (by_token)
    kernel::first_gates(key.data(), r.gate.data(), r.N, r.K);
  else if (priority == Priority::highest_gate)
    copy(key.data(), r.gate.data(), static_cast<std::size_t>(n) * sizeof(T));
  else
    kernel::fill_uniform(key.data(), *rng, T(0), T(1), n);
  const Buffer<std::int32_t> first = by_token ? Buffer<std::int32_t>(n) : order;
  kernel::order_by_key(first.data(), key.data(), r.groups, n / r.groups);
  if (by_token)
    kernel::order_choices_of(order.data(), first.data(), r.groups, r.N / r.groups, r.K);
  return order;
}

/// A replay comes from outside: its experts and slots must exist, no slot may be used twice, and
/// the slots of an expert must be filled from the first on.
template <class T>
void require_valid_choices(const typename Replay<T>::Choices& choices, const Routing<T>& r) {
  const std::vector<std::int32_t> expert = choices.expert.to_vector();
  const std::vector<std::int32_t> slot = choices.slot.to_vector();
  std::vector<bool> is_used(static_cast<std::size_t>(r.E * r.C));
  for (std::size_t i = 0; i < expert.size(); ++i) {
    require<ValueError>(0 <= expert[i] && expert[i] < r.E && -1 <= slot[i] && slot[i] < r.C,
                        "route: replayed choices must have expert in [0, ", r.E,
                        ") and slot in [-1, ", r.C, "); got expert ", expert[i], ", slot ", slot[i],
                        " for choice ", i);
    if (slot[i] < 0) continue;
    const std::size_t at = static_cast<std::size_t>(expert[i] * r.C + slot[i]);
    require<ValueError>(!is_used[at],
                        "route: no two replayed choices may share a slot; got expert ", expert[i],
                        ", slot ", slot[i], " twice");
    is_used[at] = true;
  }
  for (std::size_t at = 1; at < is_used.size(); ++at)  // the experts work on their first slots only
    require<ValueError>(!is_used[at] || is_used[at - 1] || static_cast<Index>(at) % r.C == 0,
                        "route: replayed slots of an expert must be 0, 1, ... without a gap; got "
                        "expert ", static_cast<Index>(at) / r.C, ", slot ",
                        static_cast<Index>(at) % r.C, " after an empty one");
}

}  // namespace detail

/// Chooses experts and assigns slots, given the router's logits.
///
///   p = softmax(logits + noise)                                                            [eq 2]
///   e(n, k) = the k-th largest of p[n, :], ties to the lower index
///   slot(n, k) = number of choices of e(n, k) served before (n, k), or -1 if that is >= C  [eq 3]
///
/// That is the paper's convention. Where groups of tokens share capacity, each group counts from 0,
/// and an expert has C slots for each group.
///
///   Shapes    logits (N, E), noise N*E values or none
///   Errors    ShapeError if logits are not (N, E); ValueError unless 1 <= K <= E and N >= 1, and
///             if the groups do not divide N or unusable_slots is negative
///   Source    authors' code; V-MoE, vmoe/moe.py
template <class T>
Routing<T> route(const Tensor<T>& logits, const RouteOptions& options, const Buffer<T>& noise = {},
                 const Rng* priority_rng = nullptr,
                 const typename Replay<T>::Choices* replay = nullptr) {
  require<ShapeError>(logits.shape().rank() == 2, "route: logits must be (N, E); got ",
                      logits.shape());
  Routing<T> r;
  r.N = logits.shape()[0], r.E = logits.shape()[1], r.K = options.K;
  require<ValueError>(1 <= r.K && r.K <= r.E && r.N >= 1,
                      "route: 1 <= K <= E and N >= 1 must hold; got K = ", r.K, ", E = ", r.E,
                      ", N = ", r.N);
  const Conventions& rules = options.conventions;
  require<ValueError>(rules.unusable_slots >= 0, "route: unusable_slots must not be negative; got ",
                      rules.unusable_slots);
  const Index group = options.group_tokens > 0 ? options.group_tokens : r.N;
  require<ValueError>(r.N % group == 0, "route: group_tokens must divide N; got ", group, ", ",
                      r.N);
  r.groups = r.N / group;
  const Index capacity = expert_capacity(rules, options.capacity_factor, r.K, group, r.E);
  r.usable = std::min(std::max<Index>(0, capacity - rules.unusable_slots), group);
  r.C = std::min(capacity, group) * r.groups;  // an expert gets each token at most once
  r.logits = logits;
  r.noise = noise;
  r.noise_deviation = rules.noise_deviation(r.E);
  r.probabilities = router_probabilities(logits, noise);
  const bool is_seen_by_all =
      rules.first_choice_sees_noise && rules.gate_sees_noise && rules.balance_sees_noise;
  const Tensor<T> clean =
      is_seen_by_all || noise.size() == 0 ? r.probabilities : router_probabilities(logits);
  r.balance_probabilities = rules.balance_sees_noise ? r.probabilities : clean;
  r.choice_of_slot = Buffer<std::int32_t>(r.E * r.C);
  r.load = Buffer<std::int32_t>(r.E), r.kept = Buffer<std::int32_t>(r.E);
  const auto gates = [&] {
    r.gate = select_gates(rules.gate_sees_noise ? r.probabilities : clean, r.expert, r.K);
  };
  const auto renormalize_gates = [&](GateRule now, const Buffer<std::int32_t>& slot) {
    if (rules.gate == now) r.gate = renormalize(r.gate, slot, rules.gate_eps);
  };
  if (replay) {
    require<ShapeError>(replay->expert.size() == r.N * r.K && replay->slot.size() == r.N * r.K,
                        "route: a replay must have N * K = ", r.N * r.K, " choices; got ",
                        replay->expert.size(), " experts, ", replay->slot.size(), " slots");
    require<ShapeError>(replay->gate.size() == 0 || replay->gate.size() == r.N * r.K,
                        "route: a replay must have N * K = ", r.N * r.K, " gates or none; got ",
                        replay->gate.size());
    detail::require_valid_choices<T>(*replay, r);
    r.expert = replay->expert, r.slot = replay->slot;
    gates();
    renormalize_gates(GateRule::renormalized, {});
    kernel::replay_slots(r.choice_of_slot.data(), r.load.data(), r.kept.data(), r.expert.data(),
                         r.slot.data(), r.N * r.K, r.E, r.C);
  } else {
    r.expert = Buffer<std::int32_t>(r.N * r.K), r.slot = Buffer<std::int32_t>(r.N * r.K);
    Buffer<T> score = r.probabilities.value();
    if (!rules.first_choice_sees_noise) {
      score = score.clone();
      kernel::prefer_best(score.data(), clean.data(), r.N, r.E);
    }
    kernel::top_k(r.expert.data(), score.data(), r.N, r.E, r.K);
    gates();
    const Buffer<std::int32_t> order = detail::order_of_priority(rules.priority, r, priority_rng);
    renormalize_gates(GateRule::renormalized, {});
    Buffer<std::int32_t> asking = r.expert;
    if (rules.second_choice_threshold > 0 && priority_rng) {
      asking = Buffer<std::int32_t>(r.N * r.K);
      kernel::refuse_choices(asking.data(), r.slot.data(), r.expert.data(), r.gate.data(),
                             *priority_rng, T(rules.second_choice_threshold), r.N * r.K, r.K);
    }
    kernel::assign_slots(r.slot.data(), r.choice_of_slot.data(), r.load.data(), r.kept.data(),
                         asking.data(), order.data(), r.groups, group * r.K, r.E, r.C, r.usable);
    if (asking.data() != r.expert.data())  // those that did not ask count, too
      kernel::count_choices(Sink<std::int32_t>{r.load.data(), false}, r.expert.data(), nullptr, 1,
                            r.N, r.E, r.K, r.K);
  }
  renormalize_gates(GateRule::renormalized_after_drop, r.slot);
  if (replay && replay->gate.size() > 0) r.gate = Tensor<T>(Shape{r.N, r.K}, replay->gate);
  r.importance = Buffer<T>(r.E);
  kernel::add_rows(Sink<T>{r.importance.data(), false}, r.balance_probabilities.data(), r.N, r.E);
  return r;
}

namespace detail {

/// The probability that noise, drawn again, would lift a logit above the K-th largest noisy logit.
///
///   w[n, e] = Phi((z[n, e] - z'[n, e(n, K-1)]) / deviation),   z' = z + noise
///
///   Backward  dz = q, less its sum over e at the choice K-1, q = dw phi / deviation
///             [d win_probabilities]
///   Source    V-MoE, vmoe/nn/routing.py, _load_auxiliary_loss
template <class T>
Tensor<T> win_probabilities(const Routing<T>& r) {
  require<ValueError>(r.noise_deviation > 0,
                      "balance_loss: the rule load needs normal noise; got deviation ",
                      r.noise_deviation);
  const Tensor<T> w(r.logits.shape()), z = r.logits;
  const Index N = r.N, E = r.E, K = r.K;
  const T s = T(r.noise_deviation);
  kernel::win_forward(w.data(), z.data(), r.noise.data(), r.expert.data(), s, N, E, K);
  w.record("win_probabilities", {z},
           [z, noise = r.noise, expert = r.expert, s, N, E, K](const Buffer<T>& dw) {
    kernel::win_backward(z.sink(), dw.data(), z.data(), noise.data(), expert.data(), s, N, E, K);
  });
  return w;
}

}  // namespace detail

/// loss = mean over n of (log sum over e of exp z[n, e])^2: keeps router logits small.
///
///   Shapes    z (N, E)  ->  a scalar
///   Backward  dz = dloss 2 logsumexp(z_n) softmax(z_n) / N    [d z_loss]
///   Source    Zoph et al., ST-MoE, arXiv 2202.08906, equation 5
template <class T>
Tensor<T> z_loss(const Tensor<T>& z) {
  require<ShapeError>(z.shape().rank() == 2 && z.size() > 0, "z_loss: logits must be (N, E); got ",
                      z.shape());
  const Index N = z.shape()[0], E = z.shape()[1];
  const Buffer<T> losses(N), log_sum(N);
  const Tensor<T> loss(Shape{});
  kernel::z_loss_forward(losses.data(), log_sum.data(), z.data(), N, E);
  kernel::sum_all(loss.data(), losses.data(), T(1) / T(N), N);
  loss.record("z_loss", {z}, [z, log_sum, N, E](const Buffer<T>& dloss) {
    kernel::z_loss_backward(z.sink(), dloss.data(), z.data(), log_sum.data(), N, E);
  });
  return loss;
}

/// The balance loss of the tokens of some routings together; the mean over groups, if there are
/// several. With one routing and the rule khot_over_k it is 1 if the load is balanced.    [eq 4]
///
///   l = E * sum over e of  m[e] P[e],   m[e] = choices of e before dropping / (N K),
///                                       P[e] = mean over n of p[n, e]
///
///   Backward  dp[n, e] = E m[e] / N: no gradient flows through m    [d balance_loss]
///   Errors    ValueError if there are no routings, of different sizes, or without noise for `load`
///   Source    authors' code; Switch, arXiv 2101.03961, equation 4
template <class T>
Tensor<T> balance_loss(const std::vector<Routing<T>>& routings,
                       BalanceRule rule = BalanceRule::khot_over_k) {
  require<ValueError>(!routings.empty(), "balance_loss: there must be a routing; got none");
  const Routing<T>& r = routings[0];
  const Index G = r.groups, N = r.N / G, E = r.E, K = r.K;
  const Index n = static_cast<Index>(routings.size());
  for (const Routing<T>& other : routings)
    require<ValueError>(other.N == r.N && other.E == E && other.K == K && other.groups == G,
                        "balance_loss: routings must agree in N, E, K and groups; got ", r.N, ", ",
                        E, ", ", K, ", ", G, " and ", other.N, ", ", other.E, ", ", other.K, ", ",
                        other.groups);
  std::vector<Tensor<T>> p;  // of every routing what the loss is a function of
  if (rule == BalanceRule::z_loss) {
    Tensor<T> total = z_loss(r.logits);
    for (Index i = 1; i < n; ++i)
      total = total + z_loss(routings[static_cast<std::size_t>(i)].logits);
    return n == 1 ? total : 1 / double(n) * total;
  }
  for (const Routing<T>& each : routings)
    p.push_back(rule == BalanceRule::load ? detail::win_probabilities(each)
                                          : each.balance_probabilities);
  const bool has_after = rule == BalanceRule::after_drop || rule == BalanceRule::after_drop_both;
  const bool has_first = rule == BalanceRule::switch_top1, is_one = n == 1 && G == 1;
  Buffer<std::int32_t> count = has_after ? r.kept : r.load;
  if (!is_one || has_first) {
    count = Buffer<std::int32_t>(G * E);
    for (const Routing<T>& each : routings)
      kernel::count_choices(Sink<std::int32_t>{count.data(), &each != &r}, each.expert.data(),
                            has_after ? each.slot.data() : nullptr, G, N, E, K, has_first ? 1 : K);
  }
  Buffer<T> sums = r.importance;
  if (!is_one || rule == BalanceRule::load) {
    sums = Buffer<T>(G * E);
    for (const Tensor<T>& each : p)
      for (Index g = 0; g < G; ++g)
        kernel::add_rows(Sink<T>{sums.data() + g * E, &each != &p[0]}, each.data() + g * N * E, N,
                         E);
  }
  const Tensor<T> loss(Shape{});
  const Buffer<T> slope(G * E), losses = G == 1 ? loss.value() : Buffer<T>(G);
  if (rule == BalanceRule::importance || rule == BalanceRule::importance_unbiased ||
      rule == BalanceRule::load) {
    kernel::importance_forward(losses.data(), slope.data(), sums.data(),
                               rule == BalanceRule::importance_unbiased ? 1 : 0, G, E);
  } else {
    const Index total = has_after ? 0 : rule == BalanceRule::khot_over_k ? n * N * K : n * N;
    kernel::balance_forward(losses.data(), slope.data(), count.data(), sums.data(), total,
                            rule == BalanceRule::after_drop_both ? 0 : n * N, G, E);
  }
  if (G > 1) kernel::sum_all(loss.data(), losses.data(), T(1) / T(G), G);
  loss.record("balance_loss", p, [p, slope, G, N, E](const Buffer<T>& dloss) {
    for (const Tensor<T>& each : p)
      if (each.needs_gradient())
        kernel::balance_backward(each.sink(), dloss.data(), slope.data(), T(1) / T(G), G, N, E);
  });
  return loss;
}
/// The balance loss of one routing.
template <class T>
Tensor<T> balance_loss(const Routing<T>& r, BalanceRule rule = BalanceRule::khot_over_k) {
  return balance_loss(std::vector<Routing<T>>{r}, rule);
}

/// Dispatch: brings the tokens to the slots of the experts that they chose.
///
///   slots[e, c, :] = x[n, :]  for the choice (n, k) that stands in slot c of expert e; 0 if none
///
///   Shapes    x (N, D), routing N x K over E x C  ->  slots (E, C, D)
///   Backward  dx[n, :] = sum over kept k of  dslots[e(n, k), c(n, k), :]    [d dispatch]
///   Errors    ShapeError if x disagrees with the routing
///   Differs   Mesh TF multiplies with a one-hot (N, E, C) array; same result
template <class T>
Tensor<T> dispatch(const Tensor<T>& x, const Routing<T>& r) {
  require<ShapeError>(x.shape().rank() == 2 && x.shape()[0] == r.N,
                      "dispatch: x must be (N, D) with N = ", r.N, "; got ", x.shape());
  const Index D = x.shape()[1], N = r.N, K = r.K, E = r.E, C = r.C;
  const Buffer<std::int32_t> expert = r.expert, slot = r.slot, choice = r.choice_of_slot;
  const Tensor<T> slots(Shape{E, C, D});
  const T* no_gate = nullptr;
  kernel::to_slots(Sink<T>{slots.data(), false}, x.data(), no_gate, choice.data(), E * C, K, D);
  slots.record("dispatch", {x}, [x, expert, slot, N, K, C, D](const Buffer<T>& dslots) {
    const T* none = nullptr;
    kernel::from_slots(x.sink(), dslots.data(), none, expert.data(), slot.data(), N, K, C, D);
  });
  slots.set_restore([x, choice, E, K, C, D] {
    const Buffer<T> value(E * C * D);
    const T* none = nullptr;
    kernel::to_slots(Sink<T>{value.data(), false}, x.data(), none, choice.data(), E * C, K, D);
    return value;
  });
  return slots;
}

/// Dropout inside the experts: of the hidden units and of the results.
template <class T>
struct ExpertDropout {
  DropoutMask<T> hidden, output;
  bool is_on = false;
};

/// The experts: expert e sends the rows in its slots through its own two-layer network.
///
///   h = x w1[e] + b1[e],   y = gelu(h) w2[e] + b2[e]        for the filled slots of e; else 0
///
/// Only rows that are there are multiplied. Of all that is as large as the hidden layer only h is
/// kept; gelu(h) is computed again in backward.
///
///   Shapes    x (E, C, D), w1 (E, D, F), b1 (E, F), w2 (E, F, D), b2 (E, D)  ->  y (E, C, D)
///   Backward  dg = dy w2^T,  dh = dg gelu'(h),  dx = dh w1^T,  dw2 = gelu(h)^T dy,  dw1 = x^T dh,
///             db2 = sum of dy,  db1 = sum of dh, over the filled slots of each expert [d experts]
///   Errors    ShapeError if the shapes do not fit together
///   Differs   the authors' code applies GELU to y, too (gelu_at_output); the paper's FFN does not
template <class T>
Tensor<T> experts(const Tensor<T>& x, const Tensor<T>& w1, const Tensor<T>& b1, const Tensor<T>& w2,
                  const Tensor<T>& b2, const Routing<T>& r, Gelu form = Gelu::tanh,
                  const ExpertDropout<T>& drop = {}, bool gelu_at_output = false,
                  HiddenRecord<T>* record = nullptr) {
  const Index E = r.E, C = r.C, D = x.shape().last(), F = b1.shape().last();
  require<ShapeError>(x.shape() == Shape({E, C, D}), "experts: x must be (E, C, D) with E = ", E,
                      ", C = ", C, "; got ", x.shape());
  require<ShapeError>(w1.shape() == Shape({E, D, F}) && b1.shape() == Shape({E, F}) &&
                          w2.shape() == Shape({E, F, D}) && b2.shape() == Shape({E, D}),
                      "experts: w1 (E, D, F), b1 (E, F), w2 (E, F, D), b2 (E, D) must fit E = ", E,
                      ", D = ", D, "; got ", w1.shape(), ", ", b1.shape(), ", ", w2.shape(), ", ",
                      b2.shape());
  const Buffer<std::int32_t> kept = r.kept, choice = r.choice_of_slot;
  const auto in = [=](const T* p, Index width) { return Matrix<const T>{p, width, C * width}; };
  const auto out = [=](T* p, Index width) { return Matrix<T>{p, width, C * width}; };
  const auto weight = [](const Tensor<T>& w) {
    return Matrix<const T>{w.data(), w.shape()[2], w.shape()[1] * w.shape()[2]};
  };
  const auto row = [](const Tensor<T>& b) {
    return Matrix<const T>{b.data(), b.shape()[1], b.shape()[1]};
  };
  const Buffer<T> h(E * C * F);
  const Tensor<T> y(x.shape());
  gemm_grouped(false, false, E, C, F, D, in(x.data(), D), weight(w1), T(0), out(h.data(), F),
               row(b1), kept.data());
  Tensor<T> recorded, recorded_gelu;  // h, in memory of its own: backward overwrites the other; g
  if (record) detail::keep(recorded, Tensor<T>(Shape{E, C, F}, h.clone()));
  {
    const Buffer<T> g(E * C * F);
    kernel::expert_gelu_forward(g.data(), h.data(), kept.data(), form, E, C, F);
    if (drop.is_on)
      kernel::expert_dropout(g.data(), choice.data(), kept.data(), drop.hidden, E, C, F);
    if (record) {
      detail::keep(recorded_gelu, Tensor<T>(Shape{E, C, F}, g));
      record->before_gelu = recorded, record->after_gelu = recorded_gelu;
    }
    gemm_grouped(false, false, E, C, D, F, in(g.data(), F), weight(w2), T(0), out(y.data(), D),
                 row(b2), kept.data());
  }
  Buffer<T> o;  // y before a GELU
  if (gelu_at_output) {
    o = y.value().clone();
    kernel::expert_gelu_forward(y.data(), o.data(), kept.data(), form, E, C, D);
  }
  if (drop.is_on)
    kernel::expert_dropout(y.data(), choice.data(), kept.data(), drop.output, E, C, D);
  else
    kernel::clear_empty_slots(y.data(), kept.data(), E, C, D);

  y.record("experts", {x, w1, b1, w2, b2}, [=](const Buffer<T>& dy_given) {
    Buffer<T> dy = dy_given;
    if (drop.is_on) {
      dy = dy_given.clone();
      kernel::expert_dropout(dy.data(), choice.data(), kept.data(), drop.output, E, C, D);
    }
    if (gelu_at_output) {
      if (!drop.is_on) dy = dy_given.clone();
      kernel::expert_gelu_backward(dy.data(), o.data(), kept.data(), form, E, C, D);
    }
    const Matrix<const T> no_bias{nullptr, 0};
    const T* dy_data = dy.data();
    if (b2.needs_gradient()) kernel::add_slots(b2.sink(), dy_data, kept.data(), E, C, D);
    const Buffer<T> dh(E * C * F);  // first dg
    gemm_grouped(false, true, E, C, F, D, in(dy_data, D), weight(w2), T(0), out(dh.data(), F),
                 no_bias, kept.data());
    if (recorded_gelu) recorded_gelu.add_gradient(dh);
    if (drop.is_on)
      kernel::expert_dropout(dh.data(), choice.data(), kept.data(), drop.hidden, E, C, F);
    const Buffer<T> g = h;  // in its place
    kernel::expert_gelu_backward(dh.data(), g.data(), kept.data(), form, E, C, F);
    if (recorded) recorded.add_gradient(dh);
    kernel::clear_empty_slots(g.data(), kept.data(), E, C, F);
    if (w2.needs_gradient()) {
      if (drop.is_on)
        kernel::expert_dropout(g.data(), choice.data(), kept.data(), drop.hidden, E, C, F);
      const Sink<T> dw2 = w2.sink();
      gemm_grouped(true, false, E, F, D, C, in(g.data(), F), in(dy_data, D), dw2.beta(),
                   Matrix<T>{dw2.data, D, F * D}, no_bias, kept.data());
    }
    if (b1.needs_gradient()) {
      const T* dh_data = dh.data();
      kernel::add_slots(b1.sink(), dh_data, kept.data(), E, C, F);
    }
    if (w1.needs_gradient()) {
      const Sink<T> dw1 = w1.sink();
      gemm_grouped(true, false, E, D, F, C, in(x.data(), D), in(dh.data(), F), dw1.beta(),
                   Matrix<T>{dw1.data, F, D * F}, no_bias, kept.data());
    }
    if (x.needs_gradient()) {
      const Sink<T> dx = x.sink();
      gemm_grouped(false, true, E, C, D, F, in(dh.data(), F), weight(w1), dx.beta(),
                   out(dx.data, D), no_bias, kept.data());
      if (!dx.adds) kernel::clear_empty_slots(dx.data, kept.data(), E, C, D);
    }
  });
  return y;
}

/// Combine: sends the results of the experts back to their tokens, weighted by the gates.    [eq 1]
///
///   y[n, :] = sum over kept k of  gate[n, k] * slots[e(n, k), c(n, k), :]
///
/// A token that lost all its choices gets 0, and the residual connection passes it on unchanged.
///
///   Shapes    slots (E, C, D), gate (N, K), routing N x K over E x C  ->  y (N, D)
///   Backward  dgate[n, k]     = dot(dy[n, :], slots[e, c, :])    zero where dropped
///             dslots[e, c, :] = gate[n, k] * dy[n, :]            zero in empty slots  [d combine]
///   Errors    ShapeError if slots or gate disagrees with the routing
///   Source    V-MoE, vmoe/moe.py, ExpertIndicesDispatcher.combine
template <class T>
Tensor<T> combine(const Tensor<T>& slots, const Tensor<T>& gate, const Routing<T>& r) {
  const Shape &s = slots.shape(), gate_shape = {r.N, r.K};
  require<ShapeError>(s.rank() == 3 && s[0] == r.E && s[1] == r.C,
                      "combine: slots must be (E, C, D) with E = ", r.E, ", C = ", r.C, "; got ",
                      s);
  require<ShapeError>(gate.shape() == gate_shape, "combine: gate must be (N, K) = ", gate_shape,
                      "; got ", gate.shape());
  const Index D = s[2], N = r.N, K = r.K, E = r.E, C = r.C;
  const Buffer<std::int32_t> expert = r.expert, slot = r.slot, choice = r.choice_of_slot;
  const Tensor<T> y(Shape{N, D});
  const T* gates = gate.data();
  kernel::from_slots(Sink<T>{y.data(), false}, slots.data(), gates, expert.data(), slot.data(), N,
                     K, C, D);
  y.record("combine", {slots, gate}, [=](const Buffer<T>& dy) {
    if (gate.needs_gradient())
      kernel::gate_backward(gate.sink(), dy.data(), slots.data(), expert.data(), slot.data(), N * K,
                            K, C, D);
    if (slots.needs_gradient()) {
      const T* g = gate.data();
      kernel::to_slots(slots.sink(), dy.data(), g, choice.data(), E * C, K, D);
    }
  });
  return y;
}

/// What dropped choices add where the convention is DroppedValue::gated_input.
///
///   y[n, :] = x[n, :] * sum over dropped k of gate[n, k]
///
///   Shapes    x (N, D), gate (N, K)  ->  y (N, D)
///   Backward  dx = dy * that sum,  dgate[n, k] = dot(dy[n, :], x[n, :]) where dropped
///             [d dropped_inputs]
///   Errors    ShapeError if x or gate disagrees with the routing
template <class T>
Tensor<T> dropped_inputs(const Tensor<T>& x, const Tensor<T>& gate, const Routing<T>& r) {
  const Index N = r.N, K = r.K, D = x.shape().last();
  require<ShapeError>(x.shape() == Shape({N, D}) && gate.shape() == Shape({N, K}),
                      "dropped_inputs: x (N, D) and gate (N, K) must have N = ", N, ", K = ", K,
                      "; got ", x.shape(), ", ", gate.shape());
  const Tensor<T> y(x.shape());
  kernel::dropped_forward(Sink<T>{y.data(), false}, x.data(), gate.data(), r.slot.data(), N, K, D);
  y.record("dropped_inputs", {x, gate}, [x, gate, slot = r.slot, N, K, D](const Buffer<T>& dy) {
    const T* const dy_data = dy.data();
    const T* const g = gate.data();
    if (x.needs_gradient()) kernel::dropped_forward(x.sink(), dy_data, g, slot.data(), N, K, D);
    const T* const x_data = x.data();
    if (gate.needs_gradient())
      kernel::dropped_gate_backward(gate.sink(), dy_data, x_data, slot.data(), N * K, K, D);
  });
  return y;
}

/// The router of a model or block: w (D, E), Glorot uniform; a bias of 0 if the convention has one.
template <class T>
struct Router {
  Tensor<T> weight, bias;
  Router() = default;
  Router(ParameterSet<T>& parameters, const std::string& name, Index width, Index num_experts,
         bool has_bias = false)
      : weight(parameters.glorot(name + ".weight", {width, num_experts})) {
    if (has_bias) bias = parameters.constant(name + ".bias", {num_experts}, T(0));
  }
};

/// A set of E experts; expert j is slice j of each tensor.
template <class T>
struct Experts {
  Tensor<T> fc1_weight, fc1_bias, fc2_weight, fc2_bias;
  Experts() = default;
  Experts(ParameterSet<T>& parameters, const std::string& name, Index num_experts, Index width,
          Index hidden)
      : fc1_weight(parameters.glorot(name + ".{}.fc1.weight", {num_experts, width, hidden})),
        fc1_bias(parameters.normal(name + ".{}.fc1.bias", {num_experts, hidden}, 1e-6)),
        fc2_weight(parameters.glorot(name + ".{}.fc2.weight", {num_experts, hidden, width})),
        fc2_bias(parameters.normal(name + ".{}.fc2.bias", {num_experts, width}, 1e-6)) {}
  Tensor<T> operator()(const Tensor<T>& slots, const Routing<T>& routing, Gelu form = Gelu::tanh,
                       const ExpertDropout<T>& drop = {}, bool gelu_at_output = false,
                       HiddenRecord<T>* record = nullptr) const {
    return experts(slots, fc1_weight, fc1_bias, fc2_weight, fc2_bias, routing, form, drop,
                   gelu_at_output, record);
  }
};

/// The noise on the logits of one block; none under a law of jitter, which is on x.
template <class T>
Buffer<T> router_noise(RouterNoise law, Index N, Index E, const Rng& rng, double scale = 1) {
  Conventions c;
  c.noise = law, c.noise_scale = scale;
  if (law == RouterNoise::none || c.is_jittered()) return {};
  const Buffer<T> noise(N * E);
  if (law == RouterNoise::uniform)
    kernel::fill_uniform(noise.data(), rng, T(-scale), T(scale), N * E);
  else if (law == RouterNoise::gumbel)
    kernel::fill_gumbel(noise.data(), rng, T(scale), N * E);
  else
    kernel::fill_normal(noise.data(), rng, T(c.noise_deviation(E)), N * E);
  return noise;
}

// [11] ENCODER ====================================================================================
//
//   x = x + attention(LN_i^att(x)),   x = x + MoE(LN_i^moe(x))    for block i = 0, ..., L-1 [eq 6]
//
// WideNet shares attention, router and experts among the blocks; each block has its own two
// LayerNorms. Every other system of the paper is this encoder with other switches.

namespace detail {

/// check(holds, rule, values...) adds "<rule>; got <values>" to `found`, unless the rule holds.
inline auto rule_checker(std::vector<std::string>& found) {
  return [&found](bool holds, const char* rule, auto... got) {
    if (holds) return;
    PlainText line;
    line << rule << "; got ";
    const char* separator = "";
    ((line << separator << got, separator = ", "), ...);
    found.push_back(line.str());
  };
}

}  // namespace detail

/// One encoder: every system of the paper is a value of this struct.
struct EncoderConfig {
  Index width = 32;            // D
  Index heads = 4;             // H
  Index blocks = 3;            // L
  Index experts = 4;           // E; 0: no mixture of experts, every block has a dense FFN
  Index top_k = 2;             // K
  Index expert_hidden = 64;    // F of an expert
  Index dense_hidden = 64;     // F of a dense FFN
  Index moe_blocks = -1;       // how many blocks, the last ones, have experts; -1: all
  Index routing_groups = -1;   // blocks that route; the others reuse the routing of the one before
                               // them, in groups of equal depth; -1: every block routes
  Rational capacity_factor{6, 5};
  Rational evaluation_capacity_factor{0, 1};  // 0: that of training
  bool share_attention = true, share_router = true, share_experts = true, share_layer_norm = false;
  bool is_pre_norm = true;     // false: x = LN(x + f(x)), without a final LayerNorm
  bool has_final_norm = true;  // of a pre-norm encoder
  bool routes_padding = true;  // false: padding takes no slot and counts in no mean of the routers
  Norm norm = Norm::layer_norm;  // rms_norm: no mean and no beta, as in T5, Switch and Mixtral
  double layer_norm_eps = 1e-6;
  Gelu gelu = Gelu::tanh;
  bool gelu_at_output = false;  // true: also after the second product of an FFN or expert
  double dropout = 0;
  bool recompute_blocks = false;  // keep the input of each block only, run it again in backward;
                                  // then no gradient flows from losses of your own on `routings`
  Conventions conventions;

  Index num_moe_blocks() const { return experts == 0 ? 0 : moe_blocks < 0 ? blocks : moe_blocks; }
  bool is_moe(Index block) const { return block >= blocks - num_moe_blocks(); }
  /// Whether this block computes a routing of its own: the first of its group does.
  bool routes(Index block) const {
    if (!is_moe(block)) return false;
    const Index M = num_moe_blocks(), i = block - (blocks - M);
    const Index groups = routing_groups < 0 ? M : routing_groups;
    return i == 0 || i * groups / M != (i - 1) * groups / M;
  }

  /// The block after the last one that needs what this block routed.
  Index end_of_group(Index block) const {
    Index end = block + 1;
    while (end < blocks && is_moe(end) && !routes(end)) ++end;
    return end;
  }

  /// What is wrong, one line each; nothing if the configuration names a model.
  std::vector<std::string> violations() const {
    std::vector<std::string> found;
    const auto check = detail::rule_checker(found);
    check(width > 0 && heads > 0 && blocks > 0, "width, heads and blocks must be positive", width,
          heads, blocks);
    check(heads <= 0 || width % heads == 0, "heads must divide width", heads, width);
    check(experts >= 0, "experts must not be negative", experts);
    check(experts <= 0 || (1 <= top_k && top_k <= experts), "top_k must lie in [1, experts]", top_k,
          experts);
    check(experts <= 0 || expert_hidden > 0, "expert_hidden must be positive", expert_hidden);
    check(num_moe_blocks() >= blocks || dense_hidden > 0, "dense_hidden must be positive",
          dense_hidden);
    check(-1 <= moe_blocks && moe_blocks <= blocks, "moe_blocks must lie in [-1, blocks]",
          moe_blocks, blocks);
    check(routing_groups == -1 || (1 <= routing_groups && routing_groups <= num_moe_blocks()),
          "routing_groups must be -1 or lie in [1, number of MoE blocks]", routing_groups,
          num_moe_blocks());
    check(capacity_factor.numerator > 0 && capacity_factor.denominator > 0,
          "capacity_factor must be positive", capacity_factor);
    check(layer_norm_eps > 0 && std::isfinite(layer_norm_eps),
          "layer_norm_eps must be positive and finite", layer_norm_eps);
    check(dropout >= 0 && dropout < 1, "dropout must lie in [0, 1)", dropout);
    check(blocks <= 65536, "blocks must not exceed 65536", blocks);
    check(capacity_factor.numerator <= 1000000 && capacity_factor.denominator <= 1000000,
          "numerator and denominator of capacity_factor must not exceed 1000000", capacity_factor);
    const Rational evaluation = evaluation_capacity_factor;
    check(0 <= evaluation.numerator && evaluation.numerator <= 1000000 &&
              0 < evaluation.denominator && evaluation.denominator <= 1000000,
          "evaluation_capacity_factor must lie in [0, 1000000]", evaluation);
    const Conventions& c = conventions;
    check(c.unusable_slots >= 0, "unusable_slots must not be negative", c.unusable_slots);
    check(c.noise_scale >= 0 && c.gate_eps >= 0 && c.second_choice_threshold >= 0 &&
              std::isfinite(c.noise_scale + c.gate_eps + c.second_choice_threshold),
          "noise_scale, gate_eps and second_choice_threshold must be finite and not negative",
          c.noise_scale, c.gate_eps, c.second_choice_threshold);
    check(c.capacity_multiple > 0 && c.capacity_minimum > 0 && c.capacity_slots > 0,
          "capacity_multiple, capacity_minimum and capacity_slots must be positive",
          c.capacity_multiple, c.capacity_minimum, c.capacity_slots);
    check(c.capacity_multiple <= 1000000 && c.capacity_minimum <= 1000000 &&
              c.capacity_slots <= 1000000 && 0 <= c.capacity_sequences &&
              c.capacity_sequences <= 1000000,
          "capacity_sequences and the other numbers of capacity must lie in [0, 1000000]",
          c.capacity_sequences, c.capacity_multiple, c.capacity_minimum, c.capacity_slots);
    check(c.balance != BalanceRule::load || experts <= 0 || c.noise_deviation(experts) > 0,
          "balance rule load needs normal noise of a positive noise_scale", c.noise_scale);
    check(c.capacity_sequences == 0 || routes_padding,
          "capacity_sequences must be 0 where padding is not routed", c.capacity_sequences);
    check(c.reduction != Reduction::together || !recompute_blocks,
          "recompute_blocks needs a balance loss that is a sum or mean over blocks", "together");
    return found;
  }
};

namespace detail {

/// Throws one ConfigError that lists all violations.
inline void require_no_violations(const char* what, const std::vector<std::string>& found) {
  std::string all;
  for (const std::string& line : found) all += "\n  " + line;
  require<ConfigError>(found.empty(), what, ": the configuration must name a model", all);
}

}  // namespace detail

/// What the encoder gives back: tokens, and what its routers did.
template <class T>
struct EncoderOutput {
  Tensor<T> tokens;                        // (B, T, D)
  Tensor<T> balance_loss;                  // of all routings: their sum, unless the convention is
                                           // another; a scalar, 0 without MoE
  std::vector<Tensor<T>> balance_losses;   // one per routing
  std::vector<Routing<T>> routings;        // one per routing
};

/// The tensors of one block, for all tokens, as a forward pass that is given a record leaves them;
/// after backward they have their gradients (x of Encoder::forward, too, if block 0 is recorded).
/// Under recompute_blocks backward writes it anew, so it must live until then. A pass without a
/// record tests pointers, a few in each block, and no more. examples/support/trace.hpp reads a
/// token's way from it.
template <class T>
struct BlockRecord {
  struct Sublayer {        // f: pre-norm sum = input + f(norm(input)), post-norm norm(input + f)
    LayerNorm<T> norm;
    Tensor<T> input, normed, change, sum;  // (B, T, D): normed by norm, change by f
  };
  [[gnu::cold]] void keep_routing(const Tensor<T>& of_experts, const Routing<T>& r) {
    detail::keep(results, of_experts);
    routing = r;
    r.logits.require_gradient(), r.probabilities.require_gradient(), r.gate.require_gradient();
  }
  Index block = 0;         // which block to record
  Sublayer attention, ffn;
  AttentionRecord<T> heads;
  HiddenRecord<T> hidden;
  Tensor<T> results;       // (E, C, D), of the experts; nothing in a dense block
  Routing<T> routing;      // that the block used, its own or that of its group
};

/// The encoder with its parameters: one set of each shared layer, or one per block.
template <class T>
class Encoder {
 public:
  Encoder(const EncoderConfig& config, ParameterSet<T>& parameters) : config_(config) {
    const Index L = config.blocks, D = config.width, first_moe = L - config.num_moe_blocks();
    const auto name = [](bool is_shared, Index block, const char* layer) {
      return (is_shared ? "shared." : "blocks." + std::to_string(block) + ".") + layer;
    };
    for (Index i = 0; i < (config.share_attention ? 1 : L); ++i)
      attention_.emplace_back(parameters, name(config.share_attention, i, "attn"), D);
    for (Index i = 0; i < (config.share_experts ? std::min<Index>(1, first_moe) : first_moe); ++i)
      ffn_.emplace_back(parameters, name(config.share_experts, i, "ffn"), D, config.dense_hidden);
    for (Index i = first_moe; i < L; ++i) {
      if (config.routes(i) && (router_.empty() || !config.share_router))
        router_.emplace_back(parameters, name(config.share_router, i, "moe.router"), D,
                             config.experts, config.conventions.router_bias);
      if (experts_.empty() || !config.share_experts)
        experts_.emplace_back(parameters, name(config.share_experts, i, "moe.experts"),
                              config.experts, D, config.expert_hidden);
    }
    for (Index i = 0; i < (config.share_layer_norm ? 1 : L); ++i) {
      norm1_.emplace_back(parameters, name(config.share_layer_norm, i, "norm1"), D, config.norm);
      norm2_.emplace_back(parameters, name(config.share_layer_norm, i, "norm2"), D, config.norm);
    }
    if (config.is_pre_norm && config.has_final_norm)
      final_norm_ = LayerNorm<T>(parameters, "norm", D, config.norm);
  }

  /// x (B, T, D) -> tokens (B, T, D). `training` is null in evaluation.
  EncoderOutput<T> forward(Tensor<T> x, const Training* training, const Replay<T>& replay,
                           const Buffer<std::uint8_t>& key_mask = {},
                           const RoutedTokens& routed = {},
                           BlockRecord<T>* record = nullptr) const {
    EncoderOutput<T> out;
    const std::size_t routings = static_cast<std::size_t>(num_routings());
    require<ShapeError>(replay.choices.empty() || replay.choices.size() == routings,
                        "Encoder: a replay must have choices for ", routings, " routings; got ",
                        replay.choices.size());
    require<ShapeError>(replay.noise.empty() || replay.noise.size() == routings,
                        "Encoder: a replay must have noise for ", routings, " routings; got ",
                        replay.noise.size());
    require<ShapeError>(replay.jitter.empty() || replay.jitter.size() == routings,
                        "Encoder: a replay must have jitter for ", routings, " routings; got ",
                        replay.jitter.size());
    if (record) {
      const Index block = record->block;
      require<ValueError>(0 <= block && block < config_.blocks,
                          "Encoder: the block to record must be in [0, ", config_.blocks, "); got ",
                          block);
      *record = BlockRecord<T>();  // a dense block leaves no routing of the block before
      record->block = block;
    }
    const Pass pass{training != nullptr, training ? *training : Training{Rng(0), 0}, replay,
                    key_mask, routed, record};
    const bool recomputes = config_.recompute_blocks && detail::grad_mode();
    for (Index i = 0, end = 0; i < config_.blocks; i = end) {
      end = config_.end_of_group(i);
      x = recomputes ? recomputed_blocks(x, i, end, pass, out) : run_blocks(x, i, end, pass, out);
    }
    out.tokens = final_norm_.weight ? final_norm_(x, config_.layer_norm_eps) : x;
    out.balance_loss = reduced_balance_loss(out);
    return out;
  }

  Index num_routings() const { return num_routings_before(config_.blocks); }

 private:
  /// What all blocks of one forward pass are given.
  struct Pass {
    bool is_training;
    Training training_step;
    Replay<T> replay;
    Buffer<std::uint8_t> key_mask;
    RoutedTokens routed;
    BlockRecord<T>* record;
    const Training* training() const { return is_training ? &training_step : nullptr; }
    BlockRecord<T>* record_of(Index i) const {
      return record && record->block == i ? record : nullptr;
    }
  };

  Index num_routings_before(Index block) const {
    Index count = 0;
    for (Index i = 0; i < block; ++i) count += config_.routes(i) ? 1 : 0;
    return count;
  }

  Tensor<T> run_blocks(Tensor<T> x, Index begin, Index end, const Pass& pass,
                       EncoderOutput<T>& out) const {
    for (Index i = begin; i < end; ++i) {
      x = attend(x, i, pass);
      x = feed_forward(x, i, pass, out);
    }
    return x;
  }

  /// The same without their graph: backward runs them again, with the same bits, and walks the
  /// graph that they leave then. Their balance loss is younger than y, so that its gradient is
  /// known before that of y is passed on.
  ///
  ///   Source    Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174
  Tensor<T> recomputed_blocks(const Tensor<T>& x, Index begin, Index end, const Pass& pass,
                              EncoderOutput<T>& out) const {
    const std::size_t num_losses = out.balance_losses.size();
    const Tensor<T> y = [&] {
      const NoGrad no_graph;
      return run_blocks(x, begin, end, pass, out);
    }();
    const auto dbalance = std::make_shared<Buffer<T>>();
    y.record("recomputed_blocks", {x, of_block(norm1_, begin).weight},
             [self = *this, x, begin, end, pass, dbalance](const Buffer<T>& dy) {
      const GradMode graph(true);
      const Tensor<T> input = x.detached();
      if (x.needs_gradient()) input.require_gradient();
      EncoderOutput<T> again;
      const Tensor<T> result = self.run_blocks(input, begin, end, pass, again);
      std::vector<Tensor<T>> results{result};
      if (dbalance->size() > 0) results.push_back(again.balance_losses.back());
      const Tensor<T> both(Shape{});
      both.record("recomputed", results, [results, dy, dbalance](const Buffer<T>&) {
        results[0].add_gradient(dy);
        if (results.size() > 1) results[1].add_gradient(*dbalance);
      });
      both.backward();
      if (x.needs_gradient()) x.add_gradient(input.gradient());
    });
    if (out.balance_losses.size() > num_losses) {
      Tensor<T>& loss = out.balance_losses.back();
      loss = loss.detached();
      loss.record("recomputed_balance_loss", {y}, [y, dbalance](const Buffer<T>& dloss) {
        *dbalance = dloss;
        y.gradient();  // 0 if nothing else depends on y
      });
    }
    return y;
  }

  template <class Layer> static const Layer& of_block(const std::vector<Layer>& layers, Index i) {
    return layers[layers.size() == 1 ? 0 : static_cast<std::size_t>(i)];
  }

  /// x + f(LN(x)), or LN(x + f(x)).    [eq 6]
  /// What f = `sublayer` read is forgotten: LN computes it again.
  template <class Sublayer>
  Tensor<T> residual(const Tensor<T>& x, const LayerNorm<T>& norm,
                     typename BlockRecord<T>::Sublayer* record, Sublayer sublayer) const {
    const bool is_pre = config_.is_pre_norm;
    const Tensor<T> h = is_pre ? norm(x, config_.layer_norm_eps) : x;
    const Tensor<T> y = sublayer(h);
    if (is_pre && !record) h.forget();
    const Tensor<T> sum = x + y;
    const Tensor<T> normed = is_pre ? h : norm(sum, config_.layer_norm_eps);
    if (record) {
      record->norm = norm;
      detail::keep(record->input, x), detail::keep(record->normed, normed);
      detail::keep(record->change, y), detail::keep(record->sum, sum);
    }
    return is_pre ? sum : normed;
  }

  Tensor<T> attend(const Tensor<T>& x, Index i, const Pass& pass) const {
    BlockRecord<T>* const record = pass.record_of(i);
    return residual(x, of_block(norm1_, i), record ? &record->attention : nullptr,
                    [&](const Tensor<T>& h) {
      return dropout_in(pass.training(), Purpose::attention_dropout, i,
                        of_block(attention_, i)(h, config_.heads, pass.key_mask,
                                                record ? &record->heads : nullptr),
                        config_.dropout);
    });
  }

  Tensor<T> feed_forward(const Tensor<T>& x, Index i, const Pass& pass,
                         EncoderOutput<T>& out) const {
    const RoutedTokens& routed = pass.routed;
    BlockRecord<T>* const record = pass.record_of(i);
    HiddenRecord<T>* const hidden = record ? &record->hidden : nullptr;
    return residual(x, of_block(norm2_, i), record ? &record->ffn : nullptr,
                    [&](const Tensor<T>& h) {
      if (!config_.is_moe(i))
        return of_block(ffn_, i)(h, config_.gelu, config_.dropout, pass.training(), i,
                                 config_.gelu_at_output, hidden);
      const Tensor<T> all = h.reshaped({h.shape().num_rows(), config_.width});
      const bool takes_all = routed.row.size() == 0;
      Tensor<T> tokens = takes_all ? all : take_rows(all, routed.token, routed.row);
      if (config_.routes(i)) {
        tokens = route_block(tokens, x.shape()[0], i, pass, out);
        out.routings.back().token = routed.token;
      }
      const Routing<T>& routing = out.routings.back();
      const Tensor<T> slots = dispatch(tokens, routing);
      const Index first_moe = config_.blocks - config_.num_moe_blocks();
      const Experts<T>& layer = of_block(experts_, i - first_moe);
      const Tensor<T> results =
          layer(slots, routing, config_.gelu, expert_dropout(i, pass.training()),
                config_.gelu_at_output, hidden);
      if (record) record->keep_routing(results, routing);
      slots.forget();
      Tensor<T> y = combine(results, routing.gate, routing);
      if (config_.conventions.dropped == DroppedValue::gated_input)
        y = y + dropped_inputs(tokens, routing.gate, routing);
      tokens.forget();
      all.forget();
      return (takes_all ? y : take_rows(y, routed.row, routed.token)).reshaped(x.shape());
    });
  }

  /// Routes the tokens of B sequences; returns what the experts see: the tokens, unless the
  /// convention is a jitter in place.
  Tensor<T> route_block(const Tensor<T>& tokens, Index B, Index i, const Pass& pass,
                        EncoderOutput<T>& out) const {
    const Training* const training = pass.training();
    const Replay<T>& replay = pass.replay;
    const std::size_t t = static_cast<std::size_t>(num_routings_before(i));
    const Router<T>& router = of_block(router_, config_.share_router ? 0 : static_cast<Index>(t));
    const Conventions& rules = config_.conventions;
    const Index N = tokens.shape()[0];
    Buffer<T> noise, jitter;
    if (!replay.noise.empty())
      noise = replay.noise[t];
    else if (training)
      noise = router_noise<T>(rules.noise, N, config_.experts,
                              training->stream(Purpose::router_noise, i), rules.noise_scale);
    if (!replay.jitter.empty()) {
      jitter = replay.jitter[t];
    } else if (training && rules.is_jittered()) {
      jitter = Buffer<T>(tokens.size());
      kernel::fill_uniform(jitter.data(), training->stream(Purpose::router_noise, i),
                           T(1 - rules.noise_scale), T(1 + rules.noise_scale), tokens.size());
    }
    const Tensor<T> seen = jitter.size() == 0
                               ? tokens : multiply(tokens, Tensor<T>(tokens.shape(), jitter));
    const Rng order = training ? training->stream(Purpose::priority, i) : Rng(0);
    const Rational evaluation = config_.evaluation_capacity_factor;
    const Rational factor =
        training || evaluation.numerator == 0 ? config_.capacity_factor : evaluation;
    const Index sequences = std::min(B, rules.capacity_sequences);
    require<ShapeError>(sequences == 0 || B % sequences == 0,
                        "Encoder: capacity_sequences must divide the sequences of a batch; got ",
                        sequences, ", ", B, "; hint: a last batch that is shorter can be left out");
    const Index group = sequences == 0 ? 0 : N / B * sequences;  // 0: the whole batch
    out.routings.push_back(route(router_logits(seen, router.weight, router.bias),
                                 {config_.top_k, factor, rules, group}, noise,
                                 training ? &order : nullptr,
                                 replay.choices.empty() ? nullptr : &replay.choices[t]));
    out.routings.back().jitter = jitter;
    out.balance_losses.push_back(balance_loss(out.routings.back(), rules.balance));
    return rules.noise == RouterNoise::jitter_in_place ? seen : tokens;
  }

  /// sum over t of l_t, unless the convention is another.    [eq 7]
  Tensor<T> reduced_balance_loss(const EncoderOutput<T>& out) const {
    const std::vector<Tensor<T>>& losses = out.balance_losses;
    const Conventions& rules = config_.conventions;
    if (losses.empty()) return Tensor<T>::zeros({});
    if (rules.reduction == Reduction::together) return balance_loss(out.routings, rules.balance);
    Tensor<T> total = losses[0];
    for (std::size_t t = 1; t < losses.size(); ++t) total = total + losses[t];
    return rules.reduction == Reduction::sum ? total : 1 / double(losses.size()) * total;
  }

  ExpertDropout<T> expert_dropout(Index i, const Training* training) const {
    if (!training || config_.dropout == 0) return {};
    return {{training->stream(Purpose::hidden_dropout, i), config_.dropout},
            {training->stream(Purpose::output_dropout, i), config_.dropout}, true};
  }

  EncoderConfig config_;
  std::vector<Attention<T>> attention_;
  std::vector<FeedForward<T>> ffn_;
  std::vector<Router<T>> router_;
  std::vector<Experts<T>> experts_;
  std::vector<LayerNorm<T>> norm1_, norm2_;
  LayerNorm<T> final_norm_;
};

// [12] FRONTENDS AND HEADS ========================================================================

enum class ClassToken { zero, trained };   // zero: a constant without a gradient, as the authors
enum class Pooling { class_token, mean, patch_mean };  // mean: with the class token; patch_mean:
                                                       // without it

/// A vision transformer: patches, class token, positions, encoder, pooling, classifier.
struct VisionConfig {
  Index image_height = 8, image_width = 8, channels = 1;
  Index patch = 2;                            // P
  Index classes = 10;
  ClassToken class_token = ClassToken::zero;
  Pooling pooling = Pooling::mean;
  bool has_pre_logits = false;                // a Linear (D, D) and tanh before the classifier
  EncoderConfig encoder;

  /// The configuration of the quick start: 8x8 grey images, ten classes, three blocks.
  static VisionConfig toy() { return {}; }

  /// The models of the paper for ImageNet, 224x224 pixels in patches of 16; 1001 classes, with one
  /// for the background. For 1000 set `classes`; dropout is part of the recipe and is 0 here.
  ///
  ///               D  blocks  heads  dense F  expert F  MoE blocks  pooling       parameters
  ///   vit_b      768     12     12     3072         -           -  class token   87,158,249
  ///   vit_l     1024     24     16     4096         -           -  class token  305,376,233
  ///   vit_moe_b  768     12     12     3072      4096           2  mean         128,090,089
  ///   vit_moe_l 1024     24     16     4096      4096           4  mean         406,117,353
  ///   widenet_b  768     12     12    (3072)     4096         all  mean          29,691,369
  ///   widenet_l 1024     24     16    (4096)     4096         all  mean          40,942,569
  ///   widenet_h 1280     32     16    (5120)     5120         all  mean          63,343,081
  ///
  /// The ablations change fields of `encoder`. Of widenet_l(): share_layer_norm = true leaves
  /// 40,848,361 parameters, experts = 0 leaves 15,757,289 (the dense F then holds), blocks = 12
  /// leaves 40,893,417; routing_groups may be 1 to `blocks`. Without sharing and with
  /// moe_blocks = 4 it is vit_moe_l(). Of
  /// vit_l(): share_attention = share_experts = true leaves 15,757,289, and 24,149,993 with
  /// dense_hidden = 8192.
  ///
  ///   Source    authors' code; the paper's tables round these counts down to millions. How many
  ///             blocks of ViT-MoE are MoE is inferred from them
  ///   Differs   the patches of "WideNet-H/14" are of side 16 in its authors' configuration, too
  static VisionConfig vit_b() { return vit(768, 12, 12, 3072); }
  static VisionConfig vit_l() { return vit(1024, 24, 16, 4096); }
  static VisionConfig vit_moe_b() { return vit(768, 12, 12, 3072, 2); }
  static VisionConfig vit_moe_l() { return vit(1024, 24, 16, 4096, 4); }
  static VisionConfig widenet_b() { return imagenet(768, 12, 12, 3072, 4096); }
  static VisionConfig widenet_l() { return imagenet(1024, 24, 16, 4096, 4096); }
  static VisionConfig widenet_h() { return imagenet(1280, 32, 16, 5120, 5120); }

  Index num_patches() const { return image_height / patch * (image_width / patch); }
  Index num_tokens() const { return num_patches() + 1; }

  std::vector<std::string> violations() const {
    std::vector<std::string> found = encoder.violations();
    const auto check = detail::rule_checker(found);
    check(patch > 0 && image_height > 0 && image_width > 0 && image_height % patch == 0 &&
              image_width % patch == 0,
          "patch must divide image_height and image_width", patch, image_height, image_width);
    check(channels > 0 && classes > 0, "channels and classes must be positive", channels, classes);
    check(std::max({image_height, image_width, channels}) <= 1000000,
          "image_height, image_width and channels must not exceed 1000000", image_height,
          image_width, channels);
    return found;
  }

 private:
  static VisionConfig imagenet(Index width, Index blocks, Index heads, Index dense_hidden,
                               Index expert_hidden) {
    VisionConfig c;
    c.image_height = c.image_width = 224, c.channels = 3, c.patch = 16, c.classes = 1001;
    c.has_pre_logits = true;
    c.encoder.width = width, c.encoder.blocks = blocks, c.encoder.heads = heads;
    c.encoder.dense_hidden = dense_hidden, c.encoder.expert_hidden = expert_hidden;
    return c;
  }
  static VisionConfig vit(Index width, Index blocks, Index heads, Index dense_hidden,
                          Index moe_blocks = 0) {
    VisionConfig c = imagenet(width, blocks, heads, dense_hidden, 4096);
    c.encoder.share_attention = c.encoder.share_router = c.encoder.share_experts = false;
    if (moe_blocks > 0) c.encoder.moe_blocks = moe_blocks;
    else c.encoder.experts = 0, c.pooling = Pooling::class_token;
    return c;
  }
};

template <class T>
struct VisionOutput {
  Tensor<T> logits;                       // (B, classes)
  Tensor<T> balance_loss;                 // summed over the blocks, a scalar
  std::vector<Tensor<T>> balance_losses;  // per routing
  std::vector<Routing<T>> routings;       // per routing
};

/// Cuts images into patches of side P and flattens each, in the order row, column, channel.
///
///   Shapes    images (B, channels, height, width)  ->  patches (B, patches, P*P*channels)
///   Backward  none: images are data
///   Errors    ShapeError if images are not (B, channels, height, width) or P does not divide them
///   Source    An Image is Worth 16x16 Words, arXiv 2010.11929; the order is that of a flax kernel
///   Differs   PyTorch's convolution flattens in the order channel, row, column
template <class T>
Tensor<T> extract_patches(const Tensor<T>& images, Index P) {
  const Shape& s = images.shape();
  require<ShapeError>(s.rank() == 4 && P > 0 && s[2] % P == 0 && s[3] % P == 0,
                      "extract_patches: images must be (B, channels, height, width) with sides "
                      "divisible by P = ", P, "; got ", s);
  const Index count = s[2] / P * (s[3] / P);
  const Tensor<T> patches(Shape{s[0], count, P * P * s[1]});
  kernel::extract_patches(patches.data(), images.data(), s[0], s[1], s[2], s[3], P);
  return patches;
}

/// A WideNet, ViT or ViT-MoE for images. Copies share the parameters.
///
///   Example   VisionModel<float> model(VisionConfig::toy(), Rng(42));
///             auto out = model.forward(images, Training{rng, step});   // in training
///             auto out = model.forward(images);                        // in evaluation
template <class T>
class VisionModel {
 public:
  /// Errors    ConfigError that lists all violations
  VisionModel(const VisionConfig& config, const Rng& rng)
      : VisionModel(checked(config), ParameterSet<T>(rng)) {}

  /// Training: with router noise and dropout. The caller adds main loss + lambda * balance_loss.
  VisionOutput<T> forward(const Tensor<T>& images, const Training& training,
                          const Replay<T>& replay = {}, BlockRecord<T>* record = nullptr) const {
    return run(images, &training, replay, record);
  }
  /// Evaluation: nothing is random. Inside NoGrad nothing is kept for backward either.
  VisionOutput<T> forward(const Tensor<T>& images, const Replay<T>& replay = {},
                          BlockRecord<T>* record = nullptr) const {
    return run(images, nullptr, replay, record);
  }
  const VisionConfig& config() const { return config_; }
  const std::vector<Parameter<T>>& parameters() const { return parameters_.list(); }
  Index num_parameters() const { return parameters_.count(); }

  /// The number of parameters of a configuration, without allocating any.
  static Index count_all(const VisionConfig& config) {
    return VisionModel(checked(config), ParameterSet<T>(Rng(0), true)).num_parameters();
  }

 private:
  VisionModel(const VisionConfig& config, ParameterSet<T> parameters)
      : config_(config), parameters_(std::move(parameters)),
        patch_embed_(parameters_, "patch_embed.proj",
                     config.patch * config.patch * config.channels, config.encoder.width),
        class_token_(config.class_token == ClassToken::trained
                         ? parameters_.constant("cls_token", {config.encoder.width}, T(0))
                         : Tensor<T>()),
        positions_(parameters_.normal("pos_embed", {config.num_tokens(), config.encoder.width},
                                      0.02)),
        encoder_(config.encoder, parameters_) {
    const Index D = config.encoder.width;
    if (config.has_pre_logits) pre_logits_ = Linear<T>(parameters_, "pre_logits", D, D);
    head_ = Linear<T>(parameters_, "head", D, config.classes);
  }

  static const VisionConfig& checked(const VisionConfig& config) {
    detail::require_no_violations("VisionConfig", config.violations());
    return config;
  }

  VisionOutput<T> run(const Tensor<T>& images, const Training* training, const Replay<T>& replay,
                      BlockRecord<T>* record) const {
    const VisionConfig& c = config_;
    const Shape& s = images.shape();
    require<ShapeError>(s.rank() == 4 && s[0] > 0 && s[1] == c.channels && s[2] == c.image_height &&
                            s[3] == c.image_width,
                        "VisionModel: images must be (B, channels, height, width) = (B, ",
                        c.channels, ", ", c.image_height, ", ", c.image_width, "); got ", s);
    const Tensor<T> patches = patch_embed_(extract_patches(images, c.patch));
    Tensor<T> x = add_to_sequences(prepend_token(class_token_, patches), positions_);
    x = dropout_in(training, Purpose::embedding_dropout, 0, x, c.encoder.dropout);
    EncoderOutput<T> out = encoder_.forward(x, training, replay, {}, {}, record);
    const Index num_patches = out.tokens.shape()[1] - 1;
    Tensor<T> pooled = c.pooling == Pooling::mean ? mean_tokens(out.tokens)
                       : c.pooling == Pooling::patch_mean
                           ? mean_tokens(slice_tokens(out.tokens, 1, num_patches))
                           : slice_tokens(out.tokens, 0, 1).reshaped({s[0], c.encoder.width});
    if (c.has_pre_logits) pooled = tanh(pre_logits_(pooled));
    return {head_(pooled), out.balance_loss, std::move(out.balance_losses),
            std::move(out.routings)};
  }

  VisionConfig config_;
  ParameterSet<T> parameters_;
  Linear<T> patch_embed_;
  Tensor<T> class_token_, positions_;
  Encoder<T> encoder_;
  Linear<T> pre_logits_, head_;
};

/// The number of parameters of a model with this configuration; nothing is allocated.
inline Index count_parameters(const VisionConfig& config) {
  return VisionModel<float>::count_all(config);
}

/// An ALBERT-style language model: token, position and type embeddings of a narrow width with
/// LayerNorm, a projection to the width of the encoder, and heads on top of it.
struct LanguageConfig {
  Index vocabulary = 260;        // V
  Index max_tokens = 64;         // positions
  Index types = 2;               // segments
  Index embedding = 16;          // width of the embeddings
  Index classes = 2;             // of the sentence classifier
  EncoderConfig encoder = language_encoder();

  /// A small WideNet over bytes: 256 of them and four special tokens.
  static LanguageConfig toy() { return {}; }

  /// The models of the paper for text: 30000 words, embeddings of width 128, D = 768, 12 blocks and
  /// heads, F = 3072. ALBERT and BERT have post-norm blocks. WideNet has pre-norm blocks and the
  /// final LayerNorm that they need; `encoder.has_final_norm = false` leaves it out.
  ///
  ///   albert_base      11,683,584 parameters     bert_factorized  89,650,176
  ///   widenet_albert   25,889,280 with 4 experts, 44,782,080 with 8, 82,567,680 with 16; without
  ///                    the final LayerNorm 25,887,744, 44,780,544, 82,566,144
  ///
  ///   Source    table 2 rounds these counts; ALBERT, arXiv 1909.11942
  ///   Differs   ALBERT shares its LayerNorms, too; "BERT" is BERT with ALBERT's embeddings
  static LanguageConfig widenet_albert(Index experts) {
    LanguageConfig c;
    c.vocabulary = 30000, c.max_tokens = 512, c.embedding = 128;
    c.encoder.width = 768, c.encoder.blocks = c.encoder.heads = 12;
    c.encoder.dense_hidden = c.encoder.expert_hidden = 3072;
    c.encoder.experts = experts;
    return c;
  }
  static LanguageConfig albert_base() {
    LanguageConfig c = widenet_albert(0);
    c.encoder.share_layer_norm = true, c.encoder.is_pre_norm = false;
    return c;
  }
  static LanguageConfig bert_factorized() {
    LanguageConfig c = widenet_albert(0);
    c.encoder.share_attention = c.encoder.share_router = c.encoder.share_experts = false;
    c.encoder.is_pre_norm = false;
    return c;
  }

  static EncoderConfig language_encoder() {
    EncoderConfig encoder;
    encoder.layer_norm_eps = 1e-12;
    return encoder;
  }
  std::vector<std::string> violations() const {
    std::vector<std::string> found = encoder.violations();
    detail::rule_checker(found)(
        vocabulary > 0 && max_tokens > 0 && types > 0 && embedding > 0 && classes > 0,
        "vocabulary, max_tokens, types, embedding and classes must be positive", vocabulary,
        max_tokens, types, embedding, classes);
    return found;
  }
};

/// A batch of token sequences, all of length T.
struct TokenBatch {
  Index B = 0, T = 0;
  std::vector<std::int32_t> token = {};  // (B, T), ids in [0, V)
  std::vector<std::int32_t> type = {};   // (B, T), or empty: all of type 0
  std::vector<std::uint8_t> mask = {};   // (B, T), 0 where padding, or empty: no padding
};

template <class T>
struct LanguageOutput {
  Tensor<T> tokens;                       // (B, T, D)
  Tensor<T> balance_loss;                 // summed over the blocks, a scalar
  std::vector<Tensor<T>> balance_losses;  // per routing
  std::vector<Routing<T>> routings;       // per routing
};

/// A WideNet, ALBERT or BERT for text. Copies share the parameters.
///
///   x = (LN(token[id] + position[t] + type[s])) Wp + bp,   then the encoder
///
/// Heads are functions of the encoder's tokens: masked_logits for masked language modelling,
/// pooled, order_logits (which of two segments came first) and class_logits, span_logits.
///
///   Source    Lan et al., ALBERT, arXiv 1909.11942
///   Differs   BERT's embeddings are as wide as the model, without a projection
template <class T>
class LanguageModel {
 public:
  /// Errors    ConfigError that lists all violations
  LanguageModel(const LanguageConfig& config, const Rng& rng)
      : LanguageModel(checked(config), ParameterSet<T>(rng)) {}

  LanguageOutput<T> forward(const TokenBatch& batch, const Training& training,
                            const Replay<T>& replay = {}, BlockRecord<T>* record = nullptr) const {
    return run(batch, &training, replay, record);
  }
  LanguageOutput<T> forward(const TokenBatch& batch, const Replay<T>& replay = {},
                            BlockRecord<T>* record = nullptr) const {
    return run(batch, nullptr, replay, record);
  }

  /// Scores of all words for some places: gelu(x W + b), LN, then the table of the embeddings.
  ///
  ///   Shapes    tokens (B, T, D), M places b*T + t  ->  (M, V)
  Tensor<T> masked_logits(const Tensor<T>& tokens, const std::vector<std::int32_t>& places) const {
    const Shape& s = tokens.shape();
    const Tensor<T> x = embedding(places, tokens.reshaped({s.num_rows(), s.last()}));
    const Tensor<T> h = mlm_norm_(gelu(mlm_transform_(x), config_.encoder.gelu),
                                  config_.encoder.layer_norm_eps);
    return tied_decoder(h, words_, mlm_bias_);
  }
  /// tanh(first token W + b): (B, T, D) -> (B, D)
  Tensor<T> pooled(const Tensor<T>& tokens) const {
    return tanh(pooler_(slice_tokens(tokens, 0, 1).reshaped({tokens.shape()[0],
                                                             tokens.shape()[2]})));
  }
  Tensor<T> order_logits(const Tensor<T>& tokens) const { return order_(pooled(tokens)); }
  Tensor<T> class_logits(const Tensor<T>& tokens) const { return classifier_(pooled(tokens)); }
  /// Scores for every token to be the first (0) or the last (1) of an answer:
  /// (B, T, D) -> (B, T, 2)
  Tensor<T> span_logits(const Tensor<T>& tokens) const { return span_(tokens); }

  const LanguageConfig& config() const { return config_; }
  const std::vector<Parameter<T>>& parameters() const { return parameters_.list(); }
  Index num_parameters() const { return parameters_.count(); }
  /// The number of parameters of a configuration, without allocating any.
  static Index count_all(const LanguageConfig& config) {
    return LanguageModel(checked(config), ParameterSet<T>(Rng(0), true)).num_parameters();
  }
  /// The same up to and including the pooler.
  static Index count_body(const LanguageConfig& config) {
    return LanguageModel(checked(config), ParameterSet<T>(Rng(0), true)).num_body_parameters_;
  }

 private:
  LanguageModel(const LanguageConfig& c, ParameterSet<T> parameters)
      : config_(c), parameters_(std::move(parameters)),
        words_(parameters_.normal("embeddings.word.weight", {c.vocabulary, c.embedding}, 0.02)),
        positions_(parameters_.normal("embeddings.position.weight", {c.max_tokens, c.embedding},
                                      0.02)),
        types_(parameters_.normal("embeddings.type.weight", {c.types, c.embedding}, 0.02)),
        embedding_norm_(parameters_, "embeddings.norm", c.embedding, c.encoder.norm),
        projection_(parameters_, "embeddings.projection", c.embedding, c.encoder.width),
        encoder_(c.encoder, parameters_),
        pooler_(parameters_, "pooler", c.encoder.width, c.encoder.width),
        num_body_parameters_(parameters_.count()),
        mlm_transform_(parameters_, "mlm.transform", c.encoder.width, c.embedding),
        mlm_norm_(parameters_, "mlm.norm", c.embedding, c.encoder.norm),
        mlm_bias_(parameters_.constant("mlm.bias", {c.vocabulary}, T(0))),
        order_(parameters_, "order", c.encoder.width, 2),
        classifier_(parameters_, "classifier", c.encoder.width, c.classes),
        span_(parameters_, "span", c.encoder.width, 2) {}

  static const LanguageConfig& checked(const LanguageConfig& config) {
    detail::require_no_violations("LanguageConfig", config.violations());
    return config;
  }

  LanguageOutput<T> run(const TokenBatch& batch, const Training* training, const Replay<T>& replay,
                        BlockRecord<T>* record) const {
    const LanguageConfig& c = config_;
    const std::size_t N = static_cast<std::size_t>(batch.B * batch.T);
    require<ShapeError>(batch.B > 0 && batch.T > 0 && batch.T <= c.max_tokens &&
                            batch.token.size() == N &&
                            (batch.type.empty() || batch.type.size() == N) &&
                            (batch.mask.empty() || batch.mask.size() == N),
                        "LanguageModel: tokens, types and mask must be (B, T) with T <= ",
                        c.max_tokens, "; got (", batch.B, ", ", batch.T, ") and ",
                        batch.token.size(), ", ", batch.type.size(), ", ", batch.mask.size(),
                        " values");
    std::vector<std::int32_t> place;
    for (Index t = 0; t < batch.T; ++t) place.push_back(static_cast<std::int32_t>(t));
    const std::vector<std::int32_t> type = batch.type.empty() ? std::vector<std::int32_t>(N)
                                                              : batch.type;
    const Shape shape{batch.B, batch.T, c.embedding};
    Tensor<T> x = (embedding(batch.token, words_) + embedding(type, types_)).reshaped(shape);
    x = embedding_norm_(add_to_sequences(x, embedding(place, positions_)),
                        c.encoder.layer_norm_eps);
    x = projection_(dropout_in(training, Purpose::embedding_dropout, 0, x, c.encoder.dropout));
    const bool all_are_routed = batch.mask.empty() || c.encoder.routes_padding;
    EncoderOutput<T> out =
        encoder_.forward(x, training, replay, Buffer<std::uint8_t>(batch.mask),
                         all_are_routed ? RoutedTokens() : RoutedTokens(batch.mask), record);
    return {out.tokens, out.balance_loss, std::move(out.balance_losses), std::move(out.routings)};
  }

  LanguageConfig config_;
  ParameterSet<T> parameters_;
  Tensor<T> words_, positions_, types_;
  LayerNorm<T> embedding_norm_;
  Linear<T> projection_;
  Encoder<T> encoder_;
  Linear<T> pooler_;
  Index num_body_parameters_;
  Linear<T> mlm_transform_;
  LayerNorm<T> mlm_norm_;
  Tensor<T> mlm_bias_;
  Linear<T> order_, classifier_, span_;
};

/// The number of parameters as the papers count: up to and including the pooler, without the heads
/// of masked words, order, classes and spans.
inline Index count_parameters(const LanguageConfig& config) {
  return LanguageModel<float>::count_body(config);
}

// [13] LOSSES AND METRICS =========================================================================

/// Cross entropy, the mean over the rows, with label smoothing s.
///
///   loss = -1/N sum over n, v of  q[n, v] log softmax(x_n)[v],   q = (1 - s) [v = label] + s / V
///
///   Shapes    logits (N, V), N labels in [0, V)  ->  a scalar
///   Backward  dx = dloss / N (softmax(x) - q)    [d cross_entropy]
///   Errors    ShapeError if the numbers of rows differ; ValueError if a label is not in [0, V) or
///             s not in [0, 1)
///   Source    Szegedy et al., Rethinking the Inception Architecture, arXiv 1512.00567
template <class T>
Tensor<T> cross_entropy(const Tensor<T>& logits, const std::vector<std::int32_t>& labels,
                        double label_smoothing = 0) {
  const Shape& s = logits.shape();
  require<ShapeError>(s.rank() == 2 && s[0] == static_cast<Index>(labels.size()) && s[0] > 0,
                      "cross_entropy: logits must be (N, V) with a label for each row; got ", s,
                      ", ", labels.size(), " labels");
  require<ValueError>(label_smoothing >= 0 && label_smoothing < 1,
                      "cross_entropy: label_smoothing must lie in [0, 1); got ", label_smoothing);
  const Index N = s[0], V = s[1];
  for (std::size_t n = 0; n < labels.size(); ++n)
    require<ValueError>(0 <= labels[n] && labels[n] < V, "cross_entropy: labels must lie in [0, ",
                        V, "); got label[", n, "] = ", labels[n]);
  const Buffer<std::int32_t> label(labels);
  const Buffer<T> losses(N), log_sum(N);
  const T smoothing = T(label_smoothing);
  const Tensor<T> loss(Shape{});
  kernel::cross_entropy_forward(losses.data(), log_sum.data(), logits.data(), label.data(),
                                smoothing, N, V);
  kernel::sum_all(loss.data(), losses.data(), T(1) / T(N), N);
  loss.record("cross_entropy", {logits}, [=](const Buffer<T>& dloss) {
    kernel::cross_entropy_backward(logits.sink(), dloss.data(), logits.data(), log_sum.data(),
                                   label.data(), smoothing, N, V);
  });
  return loss;
}

/// Cross entropy with a distribution over the classes as target, as mixup makes them.
///
///   loss = -1/N sum over n, v of  q[n, v] log softmax(x_n)[v]
///
///   Shapes    logits and targets q (N, V)  ->  a scalar
///   Backward  dx = dloss / N (softmax(x) sum over v of q - q)    [d soft_cross_entropy]
///             none for q: targets are data
///   Errors    ShapeError unless both are (N, V) with N >= 1
template <class T>
Tensor<T> soft_cross_entropy(const Tensor<T>& logits, const Tensor<T>& targets) {
  const Shape& s = logits.shape();
  require<ShapeError>(s.rank() == 2 && s == targets.shape() && s[0] > 0,
                      "soft_cross_entropy: logits and targets must be (N, V); got ", s, ", ",
                      targets.shape());
  const Index N = s[0], V = s[1];
  const Buffer<T> losses(N), log_sum(N), q = targets.value();
  const Tensor<T> loss(Shape{});
  kernel::soft_cross_entropy_forward(losses.data(), log_sum.data(), logits.data(), q.data(), N, V);
  kernel::sum_all(loss.data(), losses.data(), T(1) / T(N), N);
  loss.record("soft_cross_entropy", {logits}, [=](const Buffer<T>& dloss) {
    kernel::soft_cross_entropy_backward(logits.sink(), dloss.data(), logits.data(), log_sum.data(),
                                        q.data(), N, V);
  });
  return loss;
}

/// main + lambda * balance: the loss of the paper, lambda applied once to the sum.    [eq 7]
template <class T>
Tensor<T> total_loss(const Tensor<T>& main, const Tensor<T>& balance, double lambda = 0.01) {
  return main + lambda * balance;
}

/// The index of the largest value of every row; of equal ones the first.
template <class T>
std::vector<std::int32_t> predictions(const Tensor<T>& logits) {
  const std::vector<T> values = logits.to_vector();
  const std::ptrdiff_t V = logits.shape().last();
  std::vector<std::int32_t> best;
  for (auto row = values.begin(); row != values.end(); row += V)
    best.push_back(static_cast<std::int32_t>(std::max_element(row, row + V) - row));
  return best;
}

/// The fraction of rows whose largest logit is at the label.
template <class T>
double accuracy(const Tensor<T>& logits, const std::vector<std::int32_t>& labels) {
  const std::vector<std::int32_t> predicted = predictions(logits);
  require<ShapeError>(predicted.size() == labels.size() && !labels.empty(),
                      "accuracy: there must be a label for each of the ", predicted.size(),
                      " rows; got ", labels.size());
  Index hits = 0;
  for (std::size_t n = 0; n < labels.size(); ++n) hits += predicted[n] == labels[n] ? 1 : 0;
  return double(hits) / double(labels.size());
}

/// The mean over tokens of the entropy of the router's probabilities, in nats: ln E when it cannot
/// tell the experts apart, 0 when it is certain.
template <class T>
double router_entropy(const Routing<T>& r) {
  double total = 0;
  for (const T p : r.probabilities.to_vector())
    if (p > T(0)) total -= double(p) * math::log(double(p));
  return total / double(r.N);
}

/// Which elements of two blocks are compared: each with all, as in the paper, or with its own only.
enum class ElementPairs { all, matched };

/// How far the LayerNorms of the blocks are from each other: the mean squared distance of an
/// element to those of the other blocks. x[l, d] is one of gamma and beta of block l.    [eq 8]
///
///   all      y = 1 / (L D) sum over l, d of
///                    1 / ((L - 1) D) sum over j != l and all i of  (x[l, d] - x[j, i])^2
///   matched  y = 1 / (L D) sum over l, d of
///                    1 / (L - 1) sum over j != l of  (x[l, d] - x[j, d])^2
///
/// Equal vectors have y = 0 by the second only, up to rounding. The sum over all pairs of n numbers
/// is 2 (n S2 - S1^2), S1 their sum and S2 that of their squares: O(L D). Pairs within a block are
/// taken off again; y does not change when the mean is, which keeps the digits.
///
///   Shapes    x: L vectors of D values; or the parameters of a model with individual LayerNorms
///             and a name: "norm1.weight", the gammas at attention, "norm1.bias", the betas,
///             "norm2.weight", "norm2.bias"
///   Errors    ShapeError unless L >= 2 and all vectors have the same D >= 1
///   Source    section 4.4 and figures 4 and 5; the factor of the inner sum is inferred
inline double layer_norm_divergence(const std::vector<std::vector<double>>& x,
                                    ElementPairs pairs = ElementPairs::all) {
  const std::size_t L = x.size(), D = x.empty() ? 0 : x[0].size();
  require<ShapeError>(L >= 2 && D >= 1,
                      "layer_norm_divergence: there must be L >= 2 blocks and D >= 1; got ", L,
                      ", ", D);
  double mean = 0, total = 0;
  for (const std::vector<double>& row : x) {
    require<ShapeError>(row.size() == D, "layer_norm_divergence: all vectors must have D = ", D,
                        " values; got ", row.size());
    for (const double value : row) mean += value / double(L * D);
  }
  const auto add_pairs = [&](double sign, std::size_t l, std::size_t rows, std::size_t d,
                             std::size_t columns) {
    double s1 = 0, s2 = 0;
    for (std::size_t j = l; j < l + rows; ++j)
      for (std::size_t i = d; i < d + columns; ++i)
        s1 += x[j][i] - mean, s2 += (x[j][i] - mean) * (x[j][i] - mean);
    total += sign * 2 * (double(rows * columns) * s2 - s1 * s1);
  };
  if (pairs == ElementPairs::matched) {
    for (std::size_t d = 0; d < D; ++d) add_pairs(1, 0, L, d, 1);
    return total / double(L * D * (L - 1));
  }
  add_pairs(1, 0, L, 0, D);
  for (std::size_t l = 0; l < L; ++l) add_pairs(-1, l, 1, 0, D);
  return total / double(L * D * (L - 1) * D);
}
template <class T>
double layer_norm_divergence(const std::vector<Parameter<T>>& parameters, const std::string& name,
                             ElementPairs pairs = ElementPairs::all) {
  std::vector<std::vector<double>> x;
  for (const Parameter<T>& p : parameters) {
    if (p.name != "blocks." + std::to_string(x.size()) + "." + name) continue;
    const std::vector<T> values = p.tensor.to_vector();
    x.emplace_back(values.begin(), values.end());
  }
  return layer_norm_divergence(x, pairs);
}

// [14] OPTIMISERS AND SCHEDULES ===================================================================
//
// A parameter without a gradient is left alone; a shared parameter is stepped once, with the sum of
// the gradients of all its uses.

/// What optimisers share: parameters, state of the same sizes, learning rate, number of steps.
template <class T>
class Optimizer {
 public:
  Optimizer(std::vector<Parameter<T>> parameters, double learning_rate,
            const std::vector<std::string>& state_names)
      : learning_rate_(learning_rate), parameters_(std::move(parameters)) {
    for (const std::string& state : state_names)
      for (const Parameter<T>& p : parameters_)
        state_.push_back({state + "." + p.name, Tensor<T>::zeros(p.tensor.shape())});
  }
  /// Forgets all gradients; what backward() leaves next counts from zero.
  void zero_grad() const {
    for (const Parameter<T>& p : parameters_) p.tensor.zero_gradient();
  }
  double learning_rate() const { return learning_rate_; }
  void set_learning_rate(double rate) {
    require<ValueError>(rate >= 0, "Optimizer: the rate must not be negative; got ", rate);
    learning_rate_ = rate;
  }
  /// How many steps have been made; a checkpoint carries it, as AdamW and LAMB
  /// correct by it.
  Index num_steps() const { return num_steps_; }
  void set_num_steps(Index steps) {
    require<ValueError>(steps >= 0, "Optimizer: steps must not be negative; got ", steps);
    num_steps_ = steps;
  }
  const std::vector<Parameter<T>>& parameters() const { return parameters_; }
  /// The state under names such as "adamw.m.head.weight".
  const std::vector<Parameter<T>>& state() const { return state_; }

 protected:
  T* state_of(std::size_t which, std::size_t parameter) const {
    return state_[which * parameters_.size() + parameter].tensor.data();
  }
  double learning_rate_;
  Index num_steps_ = 0;
  std::vector<Parameter<T>> parameters_, state_;
};

/// Stochastic gradient descent with momentum.
///
///   m = momentum m + g + decay w;   w = w - rate m
///
///   Errors    ValueError if rate or decay is negative or momentum not in [0, 1)
///   Differs   as PyTorch; others scale g by (1 - momentum) or by the rate before it enters m
template <class T>
class SGD : public Optimizer<T> {
 public:
  SGD(std::vector<Parameter<T>> parameters, double learning_rate, double momentum = 0,
      double weight_decay = 0)
      : Optimizer<T>(std::move(parameters), learning_rate, {"sgd.m"}), momentum_(momentum),
        weight_decay_(weight_decay) {
    require<ValueError>(learning_rate >= 0 && momentum >= 0 && momentum < 1 && weight_decay >= 0,
                        "SGD: rate, decay >= 0 and momentum in [0, 1) must hold; got ",
                        learning_rate, ", ", weight_decay, ", ", momentum);
  }
  void step() {
    ++this->num_steps_;
    for (std::size_t i = 0; i < this->parameters_.size(); ++i) {
      const Tensor<T>& w = this->parameters_[i].tensor;
      if (!w.has_gradient()) continue;
      kernel::sgd_step(w.data(), this->state_of(0, i), w.gradient().data(),
                       T(this->learning_rate_), T(momentum_), T(weight_decay_), w.size());
    }
  }

 private:
  double momentum_, weight_decay_;
};

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
};

namespace detail {

template <class Options>
void require_adam_options(const char* optimizer, double learning_rate, const Options& o) {
  require<ValueError>(learning_rate >= 0 && o.beta1 >= 0 && o.beta1 < 1 && o.beta2 >= 0 &&
                          o.beta2 < 1 && o.eps > 0 && o.weight_decay >= 0,
                      optimizer, ": rate, decay >= 0, eps > 0 and betas in [0, 1) must hold; got ",
                      learning_rate, ", ", o.weight_decay, ", ", o.eps, ", ", o.beta1, ", ",
                      o.beta2);
}

/// Step t of w, with moments m and v. In float 1 - T(0.999) is off by 1e-5, T(1 - 0.999) is not.
template <class T, class Options>
kernel::AdamDirection<T> adam_direction(const Options& o, Index t, const Tensor<T>& w, T* m, T* v) {
  const auto correct = [t](double beta) { return T(1 / (1 - std::pow(beta, double(t)))); };
  return {m, v, w.gradient().data(), w.data(), T(o.beta1), T(1 - o.beta1), T(o.beta2),
          T(1 - o.beta2), T(o.eps), T(o.weight_decay), correct(o.beta1), correct(o.beta2)};
}

}  // namespace detail

/// Adam with decoupled weight decay.
///
///   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///   w = w - rate (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay w)
///
///   Errors    ValueError if an option is out of its range
///   Source    Loshchilov, Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101
///   Differs   as PyTorch, decay is multiplied by the rate and reaches all parameters
template <class T>
class AdamW : public Optimizer<T> {
 public:
  AdamW(std::vector<Parameter<T>> parameters, double learning_rate, AdamWOptions options = {})
      : Optimizer<T>(std::move(parameters), learning_rate, {"adamw.m", "adamw.v"}),
        options_(options) {
    detail::require_adam_options("AdamW", learning_rate, options);
  }
  void step() {
    ++this->num_steps_;
    for (std::size_t i = 0; i < this->parameters_.size(); ++i) {
      const Tensor<T>& w = this->parameters_[i].tensor;
      if (!w.has_gradient()) continue;
      const auto u = detail::adam_direction(options_, this->num_steps_, w, this->state_of(0, i),
                                            this->state_of(1, i));
      kernel::adamw_step(w.data(), u, T(this->learning_rate_), w.size());
    }
  }

 private:
  AdamWOptions options_;
};

struct LAMBOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-6, weight_decay = 0.01;
};

/// Adam whose step, tensor by tensor, is as long as the rate times the length of the tensor.
///
///   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///   u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay w
///   w = w - rate |w| / |u| u,   the ratio is 1 where |w| or |u| is 0
///
/// A tensor here is what a checkpoint stores under one name: a shared tensor has one ratio for all
/// its blocks, and each expert of a stack has its own. t is num_steps() for all tensors, also for
/// one that had no gradient in some steps. Clipping is the caller's, as for the other optimisers.
///
///   Errors    ValueError if an option is out of its range
///   Source    You et al., Large Batch Optimization for Deep Learning, arXiv 1904.00962, algorithm
///             2, with the identity for phi; the paper's recipe: decay 0.1 on all tensors
///   Differs   ALBERT's has no bias correction and spares biases and LayerNorms of decay; others
///             clip the ratio
template <class T>
class LAMB : public Optimizer<T> {
 public:
  LAMB(std::vector<Parameter<T>> parameters, double learning_rate, LAMBOptions options = {})
      : Optimizer<T>(std::move(parameters), learning_rate, {"lamb.m", "lamb.v"}),
        options_(options) {
    detail::require_adam_options("LAMB", learning_rate, options);
  }
  void step() {
    ++this->num_steps_;
    for (std::size_t i = 0; i < this->parameters_.size(); ++i) {
      const Tensor<T>& w = this->parameters_[i].tensor;
      if (!w.has_gradient()) continue;
      const Buffer<T> u(w.size()), ratio(1);
      const auto adam = detail::adam_direction(options_, this->num_steps_, w,
                                               this->state_of(0, i), this->state_of(1, i));
      kernel::lamb_direction(u.data(), adam, w.size());
      const Index slices = this->parameters_[i].is_stack() ? w.shape()[0] : 1;
      const Index size = w.size() / slices, num_partial = kernel::num_partial_sums(size);
      const Buffer<T> w_partial(num_partial), u_partial(num_partial);
      for (Index at = 0; at < w.size(); at += size) {
        kernel::sum_squares(w_partial.data(), w.data() + at, size);
        kernel::sum_squares(u_partial.data(), u.data() + at, size);
        kernel::trust_ratio(ratio.data(), w_partial.data(), u_partial.data(), num_partial);
        kernel::lamb_step(w.data() + at, u.data() + at, ratio.data(), T(this->learning_rate_),
                          size);
      }
    }
  }

 private:
  LAMBOptions options_;
};

/// Scales all gradients so that their global norm is at most `limit`; returns the norm before, as a
/// buffer of one value, so that no device has to be waited for.
///
///   norm = sqrt(sum over all parameters and elements of g^2);   g = g min(1, limit / norm)
///
///   Errors    ValueError unless limit > 0
///   Source    Pascanu et al., arXiv 1211.5063
template <class T>
Buffer<T> clip_global_norm(const std::vector<Parameter<T>>& parameters, double limit) {
  require<ValueError>(limit > 0, "clip_global_norm: the limit must be positive; got ", limit);
  Index num_partial = 0;
  for (const Parameter<T>& p : parameters)
    if (p.tensor.has_gradient()) num_partial += kernel::num_partial_sums(p.tensor.size());
  const Buffer<T> partial(num_partial), norm(1), factor(1);
  T* at = partial.data();
  for (const Parameter<T>& p : parameters) {
    if (!p.tensor.has_gradient()) continue;
    kernel::sum_squares(at, p.tensor.gradient().data(), p.tensor.size());
    at += kernel::num_partial_sums(p.tensor.size());
  }
  kernel::clip_factor(factor.data(), norm.data(), partial.data(), T(limit), num_partial);
  for (const Parameter<T>& p : parameters)
    if (p.tensor.has_gradient())
      kernel::scale_by(p.tensor.gradient().data(), factor.data(), p.tensor.size());
  return norm;
}

/// The learning rate over the steps: linear warm-up from `start` to `peak`, then linear or cosine
/// decay to `end`, which is reached at step `total` and kept; or none.
///
///   warm-up  rate(t) = start + (peak - start) t / warmup                            t < warmup
///   linear   rate(t) = peak + (end - peak) u,        u = (t - warmup) / (total - warmup)
///   cosine   rate(t) = end + (peak - end) (1 + cos(pi u)) / 2
struct Schedule {
  enum class Decay { constant, linear, cosine };
  double peak = 1e-3;
  Index warmup = 0, total = 1;
  Decay decay = Decay::linear;
  double start = 0, end = 0;

  double operator()(Index step) const {
    require<ConfigError>(0 <= warmup && warmup <= total && total > 0,
                         "Schedule: 0 <= warmup <= total and total > 0 must hold; got ", warmup,
                         ", ", total);
    if (step < warmup) return start + (peak - start) * double(step) / double(warmup);
    if (decay == Decay::constant) return peak;
    if (step >= total) return end;
    const double u = double(step - warmup) / double(total - warmup);
    if (decay == Decay::linear) return peak + (end - peak) * u;
    return end + (peak - end) * (1 + math::cos_2pi(u / 2)) / 2;
  }
};

// [15] CHECKPOINTS ================================================================================

/// A JSON value. Strict (RFC 8259): no comments, no trailing commas, no duplicate keys, valid
/// UTF-8, at most 64 levels deep.
///
///   Errors    IoError that names the source, the offset and the rule
class Json {
 public:
  enum class Type { null, boolean, number, string, array, object };

  static Json parse(const std::string& text, const std::string& source) {
    Parser parser{text, std::make_shared<const std::string>(source)};
    Json value = parser.value(0);
    parser.skip_space();
    parser.expect(parser.at == text.size(), "nothing may follow the value");
    return value;
  }
  Type type() const { return type_; }
  bool is_object() const { return type_ == Type::object; }
  const std::vector<Json>& items() const { return typed(Type::array, "an array").items_; }
  const std::vector<std::pair<std::string, Json>>& members() const {
    return typed(Type::object, "an object").members_;
  }
  const std::string& string() const { return typed(Type::string, "a string").text_; }
  bool boolean() const { return typed(Type::boolean, "true or false").text_ == "true"; }
  double number() const {
    std::istringstream in(typed(Type::number, "a number").text_);
    in.imbue(std::locale::classic());
    double value = 0;
    in >> value;
    return value;
  }
  /// A number without fraction or exponent that fits 63 bits.
  Index integer() const {
    const std::string& digits = typed(Type::number, "an integer").text_;
    errno = 0;
    char* end = nullptr;
    const long long value = std::strtoll(digits.c_str(), &end, 10);
    require<IoError>(*end == 0 && errno == 0, "json: ", *source_,
                     ": a value must be an integer of 63 bits; got ", digits);
    return static_cast<Index>(value);
  }
  /// The member under this key, or null if there is none.
  const Json* find(const std::string& key) const {
    for (const auto& member : members())
      if (member.first == key) return &member.second;
    return nullptr;
  }
  const Json& at(const std::string& key) const {
    const Json* const found = find(key);
    require<IoError>(found != nullptr, "json: ", *source_, ": an object must have the key \"", key,
                     "\"; got one without");
    return *found;
  }

  /// The text as a JSON string, with its quotes.
  static std::string quote(const std::string& text) {
    std::string quoted = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') quoted += '\\';
      if (static_cast<unsigned char>(c) >= 0x20) {
        quoted += c;
      } else {
        char escape[8];
        std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
        quoted += escape;
      }
    }
    return quoted + '"';
  }

 private:
  struct Parser {
    const std::string& text;
    std::shared_ptr<const std::string> source;
    std::size_t at = 0;

    void expect(bool condition, const char* rule) const {
      require<IoError>(condition, "json: ", *source, ": offset ", at, ": ", rule);
    }
    char peek() const { return at < text.size() ? text[at] : '\0'; }
    void skip_space() {
      while (at < text.size() && std::strchr(" \t\r\n", text[at]) && text[at]) ++at;
    }
    bool take(char c) {
      skip_space();
      if (peek() != c || at >= text.size()) return false;
      return ++at, true;
    }
    Json value(int depth) {
      expect(depth < 64, "values must not be nested deeper than 64");
      skip_space();
      Json json;
      json.source_ = source;
      if (take('{')) {
        json.type_ = Type::object;
        std::map<std::string, bool> seen;
        if (take('}')) return json;
        do {
          skip_space();
          expect(peek() == '"', "a key must be a string");
          const std::string key = string();
          expect(seen.emplace(key, true).second, "a key must not occur twice");
          expect(take(':'), "a colon must follow a key");
          json.members_.emplace_back(key, value(depth + 1));
        } while (take(','));
        expect(take('}'), "a comma or } must follow a member");
      } else if (take('[')) {
        json.type_ = Type::array;
        if (take(']')) return json;
        do json.items_.push_back(value(depth + 1));
        while (take(','));
        expect(take(']'), "a comma or ] must follow an element");
      } else if (peek() == '"') {
        json.type_ = Type::string;
        json.text_ = string();
      } else {
        scalar(json);
      }
      return json;
    }
    void scalar(Json& json) {
      for (const char* word : {"null", "true", "false"})
        if (text.compare(at, std::strlen(word), word) == 0) {
          json.type_ = *word == 'n' ? Type::null : Type::boolean;
          json.text_ = word;
          at += json.text_.size();
          return;
        }
      const std::size_t begin = at;
      const auto digits = [this] {
        const std::size_t first = at;
        while (peek() >= '0' && peek() <= '9') ++at;
        expect(at > first, "a value or digit must stand here");
      };
      if (peek() == '-') ++at;
      const bool has_zero = peek() == '0';
      const std::size_t first = at;
      digits();
      expect(!has_zero || at == first + 1, "a number must not start with 0");
      if (peek() == '.') ++at, digits();
      if (peek() == 'e' || peek() == 'E') {
        ++at;
        if (peek() == '+' || peek() == '-') ++at;
        digits();
      }
      json.type_ = Type::number;
      json.text_ = text.substr(begin, at - begin);
    }
    std::string string() {
      std::string result;
      for (++at; peek() != '"';) {
        expect(at < text.size(), "a string must end");
        const unsigned char c = static_cast<unsigned char>(text[at]);
        expect(c >= 0x20, "a control character must be escaped");
        if (c == '\\') {
          ++at;
          append_escape(result);
        } else {
          append_utf8(result);
        }
      }
      ++at;
      return result;
    }
    void append_escape(std::string& result) {
      static const std::string letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
      const char c = peek();
      const std::size_t which = letters.find(c);
      if (c != '\0' && which != std::string::npos) {
        result += meanings[which];
        ++at;
        return;
      }
      expect(c == 'u', "an escape must be one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\u");
      std::uint32_t point = hex4();
      if (point >= 0xD800 && point < 0xDC00) {
        expect(text.compare(at, 2, "\\u") == 0, "a high surrogate must be followed by a low one");
        ++at;
        const std::uint32_t low = hex4();
        expect(low >= 0xDC00 && low < 0xE000, "a high surrogate must be followed by a low one");
        point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
      } else {
        expect(point < 0xDC00 || point >= 0xE000, "a low surrogate must follow a high one");
      }
      const auto put = [&result](std::uint32_t byte) { result += static_cast<char>(byte); };
      if (point < 0x80) return put(point);
      if (point < 0x800) {
        put(0xC0 | (point >> 6));
      } else if (point < 0x10000) {
        put(0xE0 | (point >> 12)), put(0x80 | ((point >> 6) & 0x3F));
      } else {
        put(0xF0 | (point >> 18)), put(0x80 | ((point >> 12) & 0x3F));
        put(0x80 | ((point >> 6) & 0x3F));
      }
      put(0x80 | (point & 0x3F));
    }
    std::uint32_t hex4() {  // at the u
      std::uint32_t value = 0;
      for (int i = 0; i < 4; ++i) {
        ++at;
        const char c = peek();
        const auto from = [c](char first, int meaning) {
          return static_cast<std::uint32_t>(c - first + meaning);
        };
        const std::uint32_t digit = c >= '0' && c <= '9'   ? from('0', 0)
                                    : c >= 'a' && c <= 'f' ? from('a', 10)
                                    : c >= 'A' && c <= 'F' ? from('A', 10)
                                                           : 16u;
        expect(digit < 16, "\\u must be followed by four hexadecimal digits");
        value = value * 16 + digit;
      }
      ++at;
      return value;
    }
    void append_utf8(std::string& result) {
      const auto byte = [this](std::size_t i) -> std::uint32_t {
        return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
      };
      const std::uint32_t c = byte(at);
      const std::size_t length = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2
                               : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
      bool is_valid = length > 0;
      for (std::size_t i = 1; i < length; ++i) is_valid = is_valid && (byte(at + i) & 0xC0) == 0x80;
      const std::uint32_t second = byte(at + 1);
      is_valid = is_valid && !(c == 0xE0 && second < 0xA0) && !(c == 0xED && second >= 0xA0) &&
                 !(c == 0xF0 && second < 0x90) && !(c == 0xF4 && second >= 0x90);
      expect(is_valid, "text must be valid UTF-8");
      result.append(text, at, length);
      at += length;
    }
  };

  const Json& typed(Type type, const char* name) const {
    require<IoError>(type_ == type, "json: ", *source_, ": a value must be ", name,
                     "; got another type");
    return *this;
  }
  Type type_ = Type::null;
  std::string text_;  // of a string, a number or a word
  std::vector<Json> items_;
  std::vector<std::pair<std::string, Json>> members_;
  std::shared_ptr<const std::string> source_ = std::make_shared<const std::string>("null");
};

/// A tensor as it lies in a safetensors file: little-endian values, row-major.
struct StoredTensor {
  std::string dtype;  // "F32", "F64", "I32", "U8", ...
  Shape shape;
  std::vector<char> bytes;
};

/// What a safetensors file holds.
struct SafeTensors {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;

  template <class V> static const char* dtype_of() {
    return std::is_same<V, float>::value          ? "F32"
           : std::is_same<V, double>::value       ? "F64"
           : std::is_same<V, std::int32_t>::value ? "I32"
           : std::is_same<V, std::int64_t>::value ? "I64"
           : std::is_same<V, std::uint8_t>::value ? "U8"
                                                  : "?";
  }
  /// Errors    IoError if the name is taken
  template <class V>
  void add(const std::string& name, const Shape& shape, const V* values) {
    StoredTensor stored{dtype_of<V>(), shape, {}};
    stored.bytes.resize(static_cast<std::size_t>(shape.num_values()) * sizeof(V));
    if (!stored.bytes.empty()) std::memcpy(stored.bytes.data(), values, stored.bytes.size());
    require<IoError>(tensors.emplace(name, std::move(stored)).second,
                     "safetensors: names must be unique; got ", name, " twice");
  }
  template <class V>
  void add(const std::string& name, const Shape& shape, const std::vector<V>& values) {
    require<ShapeError>(static_cast<Index>(values.size()) == shape.num_values(), "safetensors: ",
                        name, ": shape ", shape, " needs ", shape.num_values(), " values; got ",
                        values.size());
    add(name, shape, values.data());
  }
  /// The values of a tensor, which must have this type.
  ///
  ///   Errors    IoError if there is no such tensor or its type is another
  template <class V>
  std::vector<V> values(const std::string& name) const {
    const StoredTensor& stored = at(name);
    require<IoError>(stored.dtype == dtype_of<V>(), "safetensors: ", name, " must have type ",
                     dtype_of<V>(), "; got ", stored.dtype);
    std::vector<V> values(stored.bytes.size() / sizeof(V));
    if (!values.empty())
      std::memcpy(values.data(), stored.bytes.data(), values.size() * sizeof(V));
    return values;
  }
  const StoredTensor& at(const std::string& name) const {
    const auto found = tensors.find(name);
    require<IoError>(found != tensors.end(), "safetensors: a tensor must be there; got none named ",
                     name);
    return found->second;
  }
};

namespace detail {

inline Index bytes_of_dtype(const std::string& dtype) {
  static const std::map<std::string, Index> bytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2},
      {"F16", 2},  {"BF16", 2}, {"U32", 4}, {"I32", 4},     {"F32", 4},     {"U64", 8}, {"I64", 8},
      {"F64", 8}};
  const auto found = bytes.find(dtype);
  return found == bytes.end() ? 0 : found->second;
}

/// One tensor of a safetensors header, checked as far as it stands alone.
struct HeaderEntry {
  std::string name, dtype;
  Shape shape;
  Index begin, end;
};

inline HeaderEntry read_header_entry(const std::string& path, const std::string& name,
                                     const Json& json, Index data_bytes) {
  const auto expect = [&](bool condition, const char* rule) {
    require<IoError>(condition, "safetensors: ", path, ": tensor \"", name, "\": ", rule);
  };
  const std::string& dtype = json.at("dtype").string();
  const Index size = bytes_of_dtype(dtype);
  expect(size > 0, "its dtype must be known");
  Index num_values = 1;
  std::vector<Index> extents;
  for (const Json& item : json.at("shape").items()) {
    const Index extent = item.integer();
    expect(extent >= 0, "extents must not be negative");
    expect(extent == 0 || num_values <= std::numeric_limits<Index>::max() / 8 / extent,
           "the number of values must fit 60 bits");
    num_values *= extent;
    extents.push_back(extent);
  }
  const std::vector<Json>& offsets = json.at("data_offsets").items();
  expect(offsets.size() == 2, "data_offsets must be two integers");
  const Index begin = offsets[0].integer(), end = offsets[1].integer();
  require<IoError>(0 <= begin && begin <= end && end <= data_bytes, "safetensors: ", path,
                   ": tensor \"", name, "\": data_offsets must lie in the file; got [", begin, ", ",
                   end, "] of ", data_bytes, " bytes; hint: the file may have been cut off");
  expect(end - begin == num_values * size, "data_offsets must span the values of its shape");
  return {name, dtype, Shape(extents), begin, end};
}

/// A file that is being written beside its destination; it takes that name only when complete.
class NewFile {
 public:
  explicit NewFile(const std::string& path)
      : path_(path), temporary_(path + ".tmp" + std::to_string(::getpid())) {
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    check(descriptor_ >= 0, "open");
  }
  ~NewFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!is_complete_) ::unlink(temporary_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(const char* data, std::size_t size) {
    while (size > 0) {
      const ssize_t written = ::write(descriptor_, data, size);
      if (written < 0 && errno == EINTR) continue;
      check(written > 0, "write");
      data += written;
      size -= static_cast<std::size_t>(written);
    }
  }
  /// Brings the data to the disk, then gives the file its name, then brings the name to the disk.
  void complete() {
    check(::fsync(descriptor_) == 0, "sync");
    const int descriptor = descriptor_;
    descriptor_ = -1;
    check(::close(descriptor) == 0, "close");
    check(std::rename(temporary_.c_str(), path_.c_str()) == 0, "rename");
    is_complete_ = true;
    const std::size_t slash = path_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
    const int directory = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC);
    if (directory < 0) return;  // some file systems cannot sync a folder
    ::fsync(directory);
    ::close(directory);
  }

 private:
  void check(bool condition, const char* action) const {
    require<IoError>(condition, "write: ", path_, ": every ", action, " must succeed; got ",
                     std::strerror(errno), "; hint: a file of this name from before is unchanged");
  }
  std::string path_, temporary_;
  int descriptor_ = -1;
  bool is_complete_ = false;
};

}  // namespace detail

/// Writes a safetensors file: to a temporary file beside it, flushed to disk, then renamed. Until
/// the last moment an older file of this name stays as it was.
///
///   Errors    IoError if bytes do not fit a shape, or an open, write, sync or rename fails
///   Source    the format of huggingface/safetensors, README.md
inline void write_safetensors(const std::string& path, const SafeTensors& file) {
  PlainText header;
  header << "{\"__metadata__\":{";
  const char* separator = "";
  for (const auto& entry : file.metadata) {
    header << separator << Json::quote(entry.first) << ':' << Json::quote(entry.second);
    separator = ",";
  }
  header << '}';
  std::size_t offset = 0;
  for (const auto& entry : file.tensors) {
    const StoredTensor& t = entry.second;
    const Index bytes = static_cast<Index>(t.bytes.size()), size = detail::bytes_of_dtype(t.dtype);
    require<IoError>(size > 0 && bytes % size == 0 && bytes / size == t.shape.num_values(),
                     "safetensors: ", entry.first, ": the bytes must be values of its shape; got ",
                     bytes, " for ", t.dtype, " ", t.shape);
    header << ',' << Json::quote(entry.first) << ":{\"dtype\":" << Json::quote(t.dtype)
           << ",\"shape\":[";
    for (Index i = 0; i < t.shape.rank(); ++i) header << (i ? "," : "") << t.shape[i];
    header << "],\"data_offsets\":[" << offset << ',' << offset + t.bytes.size() << "]}";
    offset += t.bytes.size();
  }
  header << '}';
  std::string text = header.str();
  Json::parse(text, path);  // what could not be read again is not written
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data begin at a multiple of 8
  char length[8];
  for (std::size_t i = 0; i < 8; ++i)
    length[i] = static_cast<char>((static_cast<std::uint64_t>(text.size()) >> (8 * i)) & 0xFF);

  detail::NewFile out(path);
  out.write(length, sizeof length);
  out.write(text.data(), text.size());
  for (const auto& entry : file.tensors)
    out.write(entry.second.bytes.data(), entry.second.bytes.size());
  out.complete();
}

/// Reads a safetensors file. Everything is checked before memory for the data is allocated: length
/// and syntax of the header, types, shapes, and that the data of the tensors fill the file without
/// gap or overlap.
///
///   Errors    IoError that names the file, the place and the rule
inline SafeTensors read_safetensors(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  require<IoError>(in.good(), "safetensors: ", path, ": the file must open; got ",
                   std::strerror(errno));
  const Index file_bytes = static_cast<Index>(in.tellg());
  in.seekg(0);
  unsigned char length[8] = {};
  in.read(reinterpret_cast<char*>(length), 8);
  require<IoError>(!in.bad(), "safetensors: ", path, ": the file must be readable; got a folder");
  require<IoError>(file_bytes >= 8, "safetensors: ", path,
                   ": offset 0: a file must have 8 bytes of header length; got ", file_bytes);
  std::uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | length[i];
  require<IoError>(header_bytes <= 100000000, "safetensors: ", path,
                   ": offset 0: a header must have at most 100000000 bytes; got ", header_bytes);
  require<IoError>(static_cast<Index>(header_bytes) <= file_bytes - 8, "safetensors: ", path,
                   ": offset 0: a header must end in the file; got ", header_bytes, " bytes of ",
                   file_bytes - 8);
  std::string header(header_bytes, ' ');
  in.read(&header[0], static_cast<std::streamsize>(header_bytes));
  require<IoError>(!header.empty() && header[0] == '{', "safetensors: ", path,
                   ": offset 8: a header must begin with {");
  const std::size_t last = header.find_last_not_of(' ');
  require<IoError>(header[last] == '}', "safetensors: ", path, ": offset ", 8 + last,
                   ": a header must end with } and spaces");

  const Index data_bytes = file_bytes - 8 - static_cast<Index>(header_bytes);
  SafeTensors file;
  std::vector<detail::HeaderEntry> entries;
  const Json json = Json::parse(header, path);
  for (const auto& member : json.members()) {
    if (member.first == "__metadata__")
      for (const auto& entry : member.second.members())
        file.metadata[entry.first] = entry.second.string();
    else
      entries.push_back(detail::read_header_entry(path, member.first, member.second, data_bytes));
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::make_pair(a.begin, a.end) < std::make_pair(b.begin, b.end);
  });
  Index reached = 0;
  for (const detail::HeaderEntry& entry : entries) {
    require<IoError>(entry.begin == reached, "safetensors: ", path, ": tensor \"", entry.name,
                     "\": data must follow those before it without gap or overlap; got offset ",
                     entry.begin, " after ", reached);
    reached = entry.end;
  }
  require<IoError>(reached == data_bytes, "safetensors: ", path,
                   ": the data must fill the file; got ", reached, " of ", data_bytes, " bytes");
  for (const detail::HeaderEntry& entry : entries) {
    StoredTensor& stored = file.tensors[entry.name];
    stored.dtype = entry.dtype;
    stored.shape = entry.shape;
    stored.bytes.resize(static_cast<std::size_t>(entry.end - entry.begin));
    in.read(stored.bytes.data(), static_cast<std::streamsize>(stored.bytes.size()));
    require<IoError>(in.good() || stored.bytes.empty(), "safetensors: ", path, ": tensor \"",
                     entry.name, "\": its data must be readable");
  }
  return file;
}

namespace detail {

/// f(name, shape, offset) for every tensor that a parameter is stored as: itself, or the slices of
/// a stack, each under a name of its own.
template <class T, class F>
void for_each_stored(const Parameter<T>& p, F f) {
  if (!p.is_stack()) return f(p.name, p.tensor.shape(), Index(0));
  const std::vector<Index>& extents = p.tensor.shape().extents();
  const Shape slice(std::vector<Index>(extents.begin() + 1, extents.end()));
  for (Index j = 0; j < extents[0]; ++j) {
    std::string name = p.name;
    name.replace(name.find("{}"), 2, std::to_string(j));
    f(name, slice, j * slice.num_values());
  }
}

template <class T>
void store(SafeTensors& file, const std::vector<Parameter<T>>& parameters) {
  for (const Parameter<T>& p : parameters) {
    const std::vector<T> values = p.tensor.to_vector();
    for_each_stored(p, [&](const std::string& name, const Shape& shape, Index offset) {
      file.add(name, shape, values.data() + offset);
    });
  }
}

/// Puts the stored values together for every parameter; throws before anything is overwritten.
template <class T>
std::vector<std::vector<T>> gather(const SafeTensors& file,
                                   const std::vector<Parameter<T>>& parameters,
                                   const std::string& path) {
  std::vector<std::vector<T>> all;
  for (const Parameter<T>& p : parameters) {
    std::vector<T> values(static_cast<std::size_t>(p.tensor.size()));
    for_each_stored(p, [&](const std::string& name, const Shape& shape, Index offset) {
      const auto found = file.tensors.find(name);
      require<IoError>(found != file.tensors.end(), "load_checkpoint: ", path,
                       ": a tensor must be there for every parameter; got none named ", name);
      require<IoError>(found->second.shape == shape, "load_checkpoint: ", path, ": ", name,
                       " must have shape ", shape, "; got ", found->second.shape);
      const std::vector<T> slice = file.values<T>(name);
      std::copy(slice.begin(), slice.end(), values.begin() + offset);
    });
    all.push_back(std::move(values));
  }
  return all;
}

template <class T>
void assign(const std::vector<Parameter<T>>& parameters, const std::vector<std::vector<T>>& all) {
  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].tensor.value().assign(all[i]);
}

/// Visits every field of a configuration under its name in files: the one list of them, used to
/// write and to read. Enumerations come with the names of their values, in order.
template <class Config, class Visitor>
void visit_conventions(Config& c, Visitor& visit) {
  visit("router_bias", c.router_bias);
  visit("router_noise", c.noise,
        {"none", "one_over_experts", "one_over_experts_squared", "uniform", "gumbel", "jitter",
         "jitter_in_place"});
  visit("noise_scale", c.noise_scale);
  visit("first_choice_sees_noise", c.first_choice_sees_noise);
  visit("gate_sees_noise", c.gate_sees_noise), visit("balance_sees_noise", c.balance_sees_noise);
  visit("gate", c.gate, {"raw", "renormalized", "renormalized_after_drop"});
  visit("gate_eps", c.gate_eps);
  visit("second_choice_threshold", c.second_choice_threshold);
  visit("capacity_rule", c.capacity,
        {"choices_over_experts", "tokens_over_experts", "shares_first", "tokens_first",
         "single_precision", "absolute", "dropless"});
  visit("capacity_rounding", c.capacity_rounding, {"floor", "ceil"});
  visit("capacity_multiple", c.capacity_multiple), visit("capacity_minimum", c.capacity_minimum);
  visit("capacity_slots", c.capacity_slots), visit("capacity_sequences", c.capacity_sequences);
  visit("unusable_slots", c.unusable_slots);
  visit("priority", c.priority,
        {"token_major", "choice_major", "batch_priority", "highest_gate", "random"});
  visit("dropped", c.dropped, {"zero", "gated_input"});
  visit("balance", c.balance,
        {"khot_over_k", "khot_sum", "switch_top1", "after_drop", "after_drop_both", "importance",
         "importance_unbiased", "load", "z_loss"});
  visit("balance_reduction", c.reduction, {"sum", "mean", "together"});
}

template <class Config, class Visitor>
void visit_encoder(Config& c, Visitor& visit) {
  visit("width", c.width), visit("heads", c.heads), visit("blocks", c.blocks);
  visit("experts", c.experts), visit("top_k", c.top_k);
  visit("expert_hidden", c.expert_hidden), visit("dense_hidden", c.dense_hidden);
  visit("moe_blocks", c.moe_blocks), visit("routing_groups", c.routing_groups);
  visit("capacity_numerator", c.capacity_factor.numerator);
  visit("capacity_denominator", c.capacity_factor.denominator);
  visit("capacity_evaluation_numerator", c.evaluation_capacity_factor.numerator);
  visit("capacity_evaluation_denominator", c.evaluation_capacity_factor.denominator);
  visit("share_attention", c.share_attention), visit("share_router", c.share_router);
  visit("share_experts", c.share_experts), visit("share_layer_norm", c.share_layer_norm);
  visit("is_pre_norm", c.is_pre_norm), visit("has_final_norm", c.has_final_norm);
  visit("routes_padding", c.routes_padding);
  visit("norm", c.norm, {"layer_norm", "rms_norm"});
  visit("layer_norm_eps", c.layer_norm_eps), visit("dropout", c.dropout);
  visit("gelu", c.gelu, {"tanh", "erf"});
  visit("gelu_at_output", c.gelu_at_output);
  visit_conventions(c.conventions, visit);
}
template <class Config, class Visitor>
void visit_vision(Config& c, Visitor& visit) {
  visit("image_height", c.image_height), visit("image_width", c.image_width);
  visit("channels", c.channels), visit("patch", c.patch), visit("classes", c.classes);
  visit("class_token", c.class_token, {"zero", "trained"});
  visit("pooling", c.pooling, {"class_token", "mean", "patch_mean"});
  visit("has_pre_logits", c.has_pre_logits);
  visit_encoder(c.encoder, visit);
}

template <class Config, class Visitor>
void visit_language(Config& c, Visitor& visit) {
  visit("vocabulary", c.vocabulary), visit("max_tokens", c.max_tokens), visit("types", c.types);
  visit("embedding", c.embedding), visit("classes", c.classes);
  visit_encoder(c.encoder, visit);
}

struct ConfigWriter {
  PlainText out;
  const char* separator = "{";
  std::ostream& field(const char* name) {
    out << separator << Json::quote(name) << ':';
    separator = ",";
    return out;
  }
  void operator()(const char* name, Index value) { field(name) << value; }
  void operator()(const char* name, bool value) { field(name) << (value ? "true" : "false"); }
  void operator()(const char* name, double value) {
    field(name) << std::setprecision(17) << value;
  }
  template <class Enum>
  void operator()(const char* name, Enum value, std::initializer_list<const char*> names) {
    field(name) << Json::quote(names.begin()[static_cast<std::size_t>(value)]);
  }
};

struct ConfigReader {
  const Json& json;
  void operator()(const char* name, Index& value) const { value = json.at(name).integer(); }
  void operator()(const char* name, bool& value) const { value = json.at(name).boolean(); }
  void operator()(const char* name, double& value) const { value = json.at(name).number(); }
  template <class Enum>
  void operator()(const char* name, Enum& value, std::initializer_list<const char*> names) const {
    const std::string& text = json.at(name).string();
    const auto found = std::find(names.begin(), names.end(), text);
    require<IoError>(found != names.end(), "config: ", name, " must have a known value; got ",
                     text);
    value = static_cast<Enum>(found - names.begin());
  }
};

}  // namespace detail

/// The configuration as one JSON object.
inline std::string to_json(const VisionConfig& config) {
  detail::ConfigWriter writer;
  detail::visit_vision(config, writer);
  return writer.out.str() + "}";
}
inline std::string to_json(const LanguageConfig& config) {
  detail::ConfigWriter writer;
  detail::visit_language(config, writer);
  return writer.out.str() + "}";
}
/// Errors    IoError if a field is missing or has another type, ConfigError if no model fits
inline VisionConfig vision_config_from_json(const std::string& text, const std::string& source) {
  const Json json = Json::parse(text, source);
  VisionConfig config;
  detail::ConfigReader reader{json};
  detail::visit_vision(config, reader);
  detail::require_no_violations("VisionConfig", config.violations());
  return config;
}

inline LanguageConfig language_config_from_json(const std::string& text,
                                                const std::string& source) {
  const Json json = Json::parse(text, source);
  LanguageConfig config;
  detail::ConfigReader reader{json};
  detail::visit_language(config, reader);
  detail::require_no_violations("LanguageConfig", config.violations());
  return config;
}

/// Where training stands: which step comes next, and the seed of everything random.
struct TrainingState {
  Index step = 0;
  std::uint64_t seed = 0;
  std::map<std::string, std::string> notes = {};  // whatever else a program wants back
};

/// Writes weights, optimiser, step, seed and configuration: all that is needed to continue with the
/// same bits as if training had never stopped. Shared tensors are stored once, stacks slice by
/// slice.
///
///   Errors    IoError as write_safetensors, ValueError unless the step is one of Rng
template <template <class> class Model, class T>
void save_checkpoint(const std::string& path, const Model<T>& model, const Optimizer<T>& optimizer,
                     const TrainingState& state) {
  require<ValueError>(0 <= state.step && state.step < Index(1) << 32,
                      "save_checkpoint: step must lie in [0, 2^32); got ", state.step);
  SafeTensors file;
  detail::store(file, model.parameters());
  detail::store(file, optimizer.state());
  file.metadata = {{"format", "widenet checkpoint 1"},
                   {"version", WIDENET_VERSION},
                   {"config", to_json(model.config())},
                   {"step", std::to_string(state.step)},
                   {"seed", std::to_string(state.seed)},
                   {"optimizer_steps", std::to_string(optimizer.num_steps())}};
  for (const auto& note : state.notes) file.metadata["note." + note.first] = note.second;
  write_safetensors(path, file);
}

namespace detail {

inline const std::string& metadata_of(const SafeTensors& file, const std::string& path,
                                      const std::string& key) {
  const auto found = file.metadata.find(key);
  require<IoError>(found != file.metadata.end(), "load_checkpoint: ", path,
                   ": the metadata must have \"", key, "\"; got none");
  return found->second;
}

inline std::uint64_t metadata_number(const SafeTensors& file, const std::string& path,
                                     const std::string& key, std::uint64_t largest) {
  const std::string& text = metadata_of(file, path, key);
  errno = 0;
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text.c_str(), &end, 10);
  require<IoError>(!text.empty() && text[0] >= '0' && text[0] <= '9' && *end == 0 && errno == 0,
                   "load_checkpoint: ", path, ": ", key, " must be a whole number; got \"", text,
                   "\"");
  require<IoError>(value <= largest, "load_checkpoint: ", path, ": ", key, " must be at most ",
                   largest, "; got ", text);
  return value;
}

/// The fields of configuration a that b has not, as they stand in a file: "width":64, "heads":8.
inline std::string only_in(const std::string& a, const std::string& b) {
  const auto body = [](std::string s) { return s.substr(s.find('{') + 1, s.rfind('}') - 1); };
  std::istringstream fields(body(a));
  std::string found;
  for (std::string field; std::getline(fields, field, ',');)
    if ((',' + body(b) + ',').find(',' + field + ',') == std::string::npos)
      found += (found.empty() ? "" : ", ") + field;
  return found.empty() ? "none" : found;
}

}  // namespace detail

/// Reads a checkpoint into a model and its optimiser of the same configuration and kind. Nothing is
/// overwritten unless all of it fits.
///
///   Errors    IoError if the file is damaged or does not fit the model
template <template <class> class Model, class T>
TrainingState load_checkpoint(const std::string& path, const Model<T>& model,
                              Optimizer<T>& optimizer) {
  const SafeTensors file = read_safetensors(path);
  const std::string ours = to_json(model.config());
  const std::string& theirs = detail::metadata_of(file, path, "config");
  require<IoError>(ours == theirs, "load_checkpoint: ", path,
                   ": the configuration must be that of the model, with ",
                   detail::only_in(ours, theirs), "; got ", detail::only_in(theirs, ours));
  const auto weights = detail::gather(file, model.parameters(), path);
  const auto states = detail::gather(file, optimizer.state(), path);
  TrainingState state;
  constexpr std::uint64_t largest_step = (std::uint64_t(1) << 32) - 1;  // as for Rng
  state.step = static_cast<Index>(detail::metadata_number(file, path, "step", largest_step));
  state.seed = detail::metadata_number(file, path, "seed", ~std::uint64_t(0));
  const auto steps = detail::metadata_number(file, path, "optimizer_steps", largest_step);
  for (const auto& entry : file.metadata)
    if (entry.first.compare(0, 5, "note.") == 0) state.notes[entry.first.substr(5)] = entry.second;
  detail::assign(model.parameters(), weights);
  detail::assign(optimizer.state(), states);
  optimizer.set_num_steps(static_cast<Index>(steps));
  return state;
}

namespace detail {

/// Finds the largest extent in a configuration.
struct LargestField {
  Index largest = 0;
  void operator()(const char* name, Index value) {
    if (std::strncmp(name, "capacity_", 9) != 0) largest = std::max(largest, value);
  }
  template <class V> void operator()(const char*, V) {}
  template <class V> void operator()(const char*, V, std::initializer_list<const char*>) {}
};

/// Builds the model that a file describes and fills it. No file may make us build a larger model
/// than it holds: this is checked before anything of such a size is allocated.
template <class Model, class Config>
Model load_model(const SafeTensors& file, const std::string& path, const Config& config,
                 const LargestField& fields) {
  Index num_values = 0;
  for (const auto& entry : file.tensors) num_values += entry.second.shape.num_values();
  require<IoError>(fields.largest <= num_values && Model::count_all(config) <= num_values,
                   "load_model: ", path, ": the model must not be larger than the file; got ",
                   num_values, " values for ", to_json(config));
  const Model model(config, Rng(0));
  assign(model.parameters(), gather(file, model.parameters(), path));
  return model;
}

}  // namespace detail

/// Reads the model alone, with the configuration that the file holds.
///
///   Errors    IoError if the file is damaged or does not hold this kind of model
template <class T>
VisionModel<T> load_vision_model(const std::string& path) {
  const SafeTensors file = read_safetensors(path);
  const std::string& text = detail::metadata_of(file, path, "config");
  const VisionConfig config = vision_config_from_json(text, path + ": VisionConfig");
  detail::LargestField fields;
  detail::visit_vision(config, fields);
  return detail::load_model<VisionModel<T>>(file, path, config, fields);
}
template <class T>
LanguageModel<T> load_language_model(const std::string& path) {
  const SafeTensors file = read_safetensors(path);
  const std::string& text = detail::metadata_of(file, path, "config");
  const LanguageConfig config = language_config_from_json(text, path + ": LanguageConfig");
  detail::LargestField fields;
  detail::visit_language(config, fields);
  return detail::load_model<LanguageModel<T>>(file, path, config, fields);
}

// [16] CHECKING ===================================================================================

/// What gradcheck found.
struct GradReport {
  double max_error = 0;   // the largest error of an element, relative as stated at gradcheck
  std::string where;      // "input 1, element 7: 0.25 is not 0.31"
  double margin = std::numeric_limits<double>::infinity();  // to the nearest flip of a choice
  std::string nearest_flip;  // "routing 0, token 3: experts 1 and 2"
};

/// A scalar loss or another result, and the routings behind it.
struct Routed {
  Tensor<double> value;
  std::vector<Routing<double>> routings;
};

namespace detail {

/// The smallest difference, over all tokens, of the K-th and the (K+1)-th largest noisy logit: how
/// much a logit may move before a choice flips.
inline void find_margin(const std::vector<Routing<double>>& routings, GradReport& report) {
  for (std::size_t t = 0; t < routings.size(); ++t) {
    const Routing<double>& r = routings[t];
    if (r.K >= r.E) continue;
    std::vector<double> z = r.logits.to_vector();
    const std::vector<double> noise = r.noise.to_vector();
    for (std::size_t i = 0; i < noise.size(); ++i) z[i] += noise[i];
    for (Index n = 0; n < r.N; ++n) {
      std::vector<std::pair<double, Index>> row;
      for (Index e = 0; e < r.E; ++e) row.emplace_back(z[static_cast<std::size_t>(n * r.E + e)], e);
      std::sort(row.rbegin(), row.rend());
      const auto& in = row[static_cast<std::size_t>(r.K - 1)];
      const auto& out = row[static_cast<std::size_t>(r.K)];
      if (in.first - out.first >= report.margin) continue;
      report.margin = in.first - out.first;
      PlainText text;
      text << "routing " << t << ", token " << n << ": experts " << in.second << " and "
           << out.second;
      report.nearest_flip = text.str();
    }
  }
}

}  // namespace detail

/// Compares backward() with differences of L = sum over i of w[i] f()[i], for every element of
/// every input. w is random, because softmax and layer_norm hide from a plain sum. The first call
/// of f decides the routing; in all others it is frozen, since L jumps where a choice flips.
///
///   numeric dL/dx = (8 (L(x + h) - L(x - h)) - (L(x + 2h) - L(x - 2h))) / 12 h
///   error = |analytic - numeric| / max(largest |numeric| of the input, 1e-4 of that of all inputs)
///
/// With h = 3e-5 in double the error of the formula is near 1e-12 for a loss near 1, even where a
/// row of standard deviation 0.02 enters a LayerNorm. The floor is for inputs whose gradient is
/// zero in exact arithmetic, such as the bias of attention keys.
inline GradReport gradcheck(const std::function<Routed(const Replay<double>&)>& f,
                            const std::vector<Tensor<double>>& inputs, double h = 3e-5) {
  for (const Tensor<double>& x : inputs) x.require_gradient().zero_gradient();
  const Routed first = f({});
  const Replay<double> frozen = Replay<double>::of(first.routings);
  GradReport report;
  detail::find_margin(first.routings, report);
  const Tensor<double> w =
      Tensor<double>::randn(first.value.shape(), Rng(20107).for_purpose(Purpose::check));
  const std::vector<double> weights = w.to_vector();
  first.value.backward(w.value());

  const NoGrad no_graph;
  std::vector<std::vector<double>> numeric(inputs.size());
  std::vector<double> largest(inputs.size(), 0);
  for (std::size_t which = 0; which < inputs.size(); ++which) {
    const std::vector<double> x = inputs[which].to_vector();
    const auto loss_near_x = [&](std::size_t i, double step) {
      std::vector<double> near_x = x;
      near_x[i] += step;
      inputs[which].value().assign(near_x);
      const std::vector<double> y = f(frozen).value.to_vector();
      double loss = 0;
      for (std::size_t j = 0; j < y.size(); ++j) loss += weights[j] * y[j];
      return loss;
    };
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double near = loss_near_x(i, h) - loss_near_x(i, -h);
      const double far = loss_near_x(i, 2 * h) - loss_near_x(i, -2 * h);
      numeric[which].push_back((8 * near - far) / (12 * h));
      largest[which] = std::fmax(largest[which], std::fabs(numeric[which].back()));
    }
    inputs[which].value().assign(x);
  }
  const double floor =
      1e-4 * (largest.empty() ? 0 : *std::max_element(largest.begin(), largest.end()));
  for (std::size_t which = 0; which < inputs.size(); ++which) {
    const std::vector<double> analytic = inputs[which].gradient().to_vector();
    for (std::size_t i = 0; i < analytic.size(); ++i) {
      const double scale = std::fmax(std::fmax(largest[which], floor), 1e-300);
      const double error = std::fabs(analytic[i] - numeric[which][i]) / scale;
      if (error <= report.max_error || std::isnan(report.max_error)) continue;  // a NaN stays
      PlainText where;
      where << "input " << which << ", element " << i << ": " << analytic[i] << " is not "
            << numeric[which][i];
      report.max_error = error, report.where = where.str();
    }
  }
  return report;
}

/// The same for a function without routing.
inline GradReport gradcheck(const std::function<Tensor<double>()>& f,
                            const std::vector<Tensor<double>>& inputs, double h = 3e-5) {
  return gradcheck([&f](const Replay<double>&) { return Routed{f(), {}}; }, inputs, h);
}

/// How far two arrays are apart.
struct Difference {
  double max_absolute = 0;  // the largest |a - b|
  double max_relative = 0;  // that, divided by the largest |b|
  double max_ulps = 0;      // the largest distance in units of the last place of b
  Index at = -1;            // where |a - b| is largest
  double cosine = 1;        // of the angle between a and b
  bool is_finite = true;
};

/// Compares values a with a reference b of the same size. NaN makes the maxima NaN, `at` the first.
///
///   Errors    ShapeError if the sizes differ
template <class T>
Difference compare(const std::vector<T>& a, const std::vector<T>& b) {
  require<ShapeError>(a.size() == b.size(), "compare: the sizes must be equal; got ", a.size(),
                      ", ", b.size());
  Difference d;
  double aa = 0, bb = 0, ab = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = double(a[i]), y = double(b[i]), distance = x == y ? 0 : std::fabs(x - y);
    d.is_finite = d.is_finite && std::isfinite(x) && std::isfinite(y);
    const double ulp =
        double(std::nextafter(std::fabs(b[i]), std::numeric_limits<T>::infinity())) - std::fabs(y);
    const double ulps = distance == 0 ? 0 : distance / ulp;
    if (!(ulps <= d.max_ulps || std::isnan(d.max_ulps))) d.max_ulps = ulps;
    if (d.at < 0 || !(distance <= d.max_absolute || std::isnan(d.max_absolute)))
      d.max_absolute = distance, d.at = static_cast<Index>(i);
    largest = std::fmax(largest, std::fabs(y));
    aa += x * x, bb += y * y, ab += x * y;
  }
  d.max_relative = d.max_absolute == 0 ? 0 : d.max_absolute / largest;
  if (aa != 0 && bb != 0) d.cosine = ab / std::sqrt(aa) / std::sqrt(bb);
  return d;
}

// [17] EPILOGUE ===================================================================================

}  // namespace WIDENET_ABI
}  // namespace widenet

#undef WIDENET_ABI
#undef WIDENET_KERNEL
#undef WIDENET_HOST_DEVICE
#undef WIDENET_INDEPENDENT
#undef WIDENET_SET_USABLE
#undef WIDENET_PARALLEL_FOR_IF_FORK
#undef WIDENET_VECTOR
#undef WIDENET_VECTOR_TARGET
#undef WIDENET_STRING
#undef WIDENET_LINE
#undef WIDENET_CHECK
#undef WIDENET_CHECK_BLAS

#endif  // WIDENET_HPP
