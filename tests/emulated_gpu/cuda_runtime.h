// A GPU that the host plays: as much of the CUDA runtime as the CUDA build of widenet.hpp calls, so
// that its kernels, its copies and its use of device memory can be tested where there is no GPU.
//
//   Lanes     the 32 threads of a warp are fibers that take turns; shuffles and ballots make them
//             wait for each other, and lanes that wait at different places are an error
//   Stream    calls that are asynchronous on a GPU are queued, and done as late as the rules allow:
//             when the host waits for them, not before
//   Memory    what cudaMalloc hands out is filled with NaN, and the host is killed if it touches it
//   Accesses  watch.cpp sees every access of a kernel, and ends the program at the first that a GPU
//             need not survive: of host memory, beyond the end of a buffer, of values that nobody
//             has written, of what another thread writes at the same time
//   Errors    null pointers are refused, and emulated_gpu::fail_next() lets the next call fail
//   Order     EMULATED_ORDER=reverse runs blocks, warps and lanes from the last to the first; a
//             kernel without races gives the same bits
//
// Not emulated: a GPU's speed, and its limits on registers and memory per block.

#ifndef WIDENET_TESTS_EMULATED_GPU_CUDA_RUNTIME_H
#define WIDENET_TESTS_EMULATED_GPU_CUDA_RUNTIME_H

#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#include "watch.hpp"

#define __device__
#define __host__
#define __global__

namespace emulated_gpu {

[[noreturn]] inline void die(const char* why) {
  std::fprintf(stderr, "emulated GPU: %s\n", why);
  std::abort();
}

inline bool is_reversed() {
  static const char* const order = std::getenv("EMULATED_ORDER");
  return order && std::string(order) == "reverse";
}

/// f(0), ..., f(n - 1), or the other way round.
template <class F>
void in_order(unsigned n, const F& f) {
  for (unsigned i = 0; i < n; ++i) f(is_reversed() ? n - 1 - i : i);
}

// MEMORY ------------------------------------------------------------------------------------------

/// Device memory: one range of addresses that only the GPU's own work may touch.
class Memory {
 public:
  static constexpr std::size_t capacity = std::size_t(1) << 34;

  Memory() {
    void* const range = mmap(nullptr, capacity, PROT_NONE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) die("no addresses for the device memory");
    begin_ = static_cast<char*>(range);
  }
  /// The address of `bytes` new bytes, or null if there is no room.
  void* allocate(std::size_t bytes) {
    bytes = (bytes + 255) / 256 * 256;
    void* block;
    if (auto reusable = free_.find(bytes); reusable != free_.end()) {
      block = reusable->second;
      free_.erase(reusable);
    } else {
      if (bytes > capacity - used_) return nullptr;
      block = begin_ + used_;
      used_ += bytes;
    }
    sizes_[block] = bytes;
    return block;
  }
  /// Returns how many bytes they are.
  std::size_t release(void* block) {
    const auto found = sizes_.find(block);
    if (found == sizes_.end()) die("cudaFree of what cudaMalloc never returned");
    const std::size_t bytes = found->second;
    free_.emplace(bytes, block);
    sizes_.erase(found);
    return bytes;
  }
  std::size_t num_free() const { return capacity - used_; }
  void open() { protect(PROT_READ | PROT_WRITE); }
  void close() { protect(PROT_NONE); }

 private:
  void protect(int access) {
    if (used_ > 0 && mprotect(begin_, (used_ + 4095) / 4096 * 4096, access) != 0)
      die("the device memory cannot be opened or closed");
  }

  char* begin_ = nullptr;
  std::size_t used_ = 0;
  std::multimap<std::size_t, void*> free_;
  std::map<void*, std::size_t> sizes_;
};

// LANES -------------------------------------------------------------------------------------------

/// The 32 lanes of a warp, each with a stack of its own. A lane runs until it ends or waits for the
/// others; when all wait at the same exchange, all go on.
class Warp {
 public:
  static constexpr int num_lanes = 32;

  Warp() {
    for (Lane& lane : lanes_) {
      lane.stack.resize(std::size_t(1) << 17);
      getcontext(&lane.context);
      lane.context.uc_stack.ss_sp = lane.stack.data();
      lane.context.uc_stack.ss_size = lane.stack.size();
      lane.context.uc_link = nullptr;
      makecontext(&lane.context, &Warp::live, 0);
    }
  }
  static Warp& instance() {
    static Warp* const warp = new Warp;
    return *warp;
  }
  /// kernel() in all lanes of the warp whose first thread is `first_thread` of its block.
  void run(unsigned first_thread, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    for (Lane& lane : lanes_) lane.is_done = false, lane.num_exchanges = lane.num_barriers = 0;
    do {
      in_order(num_lanes, [&](unsigned l) {
        threadIdx.x = first_thread + l;
        resume(l);
      });
      for (const Lane& lane : lanes_)
        if (lane.is_done != lanes_[0].is_done || lane.num_exchanges != lanes_[0].num_exchanges)
          die("the lanes of a warp wait at different places");
    } while (!lanes_[0].is_done);
  }
  /// The lane that runs begins, or goes on, to be watched.
  void watch_this_lane() {
    const Lane& lane = lanes_[current_];
    watch::begin_thread(lane.num_barriers, lane.stack.data() + lane.stack.size());
  }
  /// get(what all lanes brought to this exchange, this lane). Exchanges use two boards in turn:
  /// nobody can be two ahead, so nobody overwrites what another has yet to read.
  template <class Get>
  static auto exchange(unsigned long long mine, const Get& get, bool is_barrier = false) {
    watch::end_thread();  // what follows is not the kernel's
    return instance().exchange_in_lane(mine, get, is_barrier);
  }

 private:
  struct Lane {
    std::vector<char> stack;
    ucontext_t context;
    std::jmp_buf state;
    bool is_started = false, is_done = false;
    long num_exchanges = 0, num_barriers = 0;  // shuffles and votes are no barriers: they do not
  };                                           // order what lanes write and read

  template <class Get>
  auto exchange_in_lane(unsigned long long mine, const Get& get, bool is_barrier) {
    Lane& lane = lanes_[current_];
    unsigned long long* const board = boards_[lane.num_exchanges++ % 2];
    board[current_] = mine;
    const unsigned l = current_;
    if (_setjmp(lane.state) == 0) _longjmp(scheduler_, 1);
    if (is_barrier) ++lane.num_barriers;
    const auto got = get(board, l);
    watch_this_lane();
    return got;
  }

  /// The life of a lane: kernel after kernel.
  static void live() {
    Warp& warp = instance();
    for (;;) {
      (*warp.kernel_)();
      Lane& lane = warp.lanes_[warp.current_];
      lane.is_done = true;
      if (_setjmp(lane.state) == 0) _longjmp(warp.scheduler_, 1);
    }
  }
  void resume(unsigned l) {
    current_ = l;
    if (_setjmp(scheduler_) != 0) return;
    Lane& lane = lanes_[l];
    if (lane.is_started) _longjmp(lane.state, 1);
    lane.is_started = true;
    setcontext(&lane.context);
  }

  Lane lanes_[num_lanes];
  std::jmp_buf scheduler_;
  const std::function<void()>* kernel_ = nullptr;
  unsigned current_ = 0;
  unsigned long long boards_[2][num_lanes] = {};
};

// STREAM ------------------------------------------------------------------------------------------

class Device {
 public:
  static Device& instance() {
    static Device* const device = new Device;  // never destroyed: globals of a program may hold
    return *device;                            // device memory to the end
  }
  void enqueue(std::function<void()> work) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    stream_.push_back([notes = std::exchange(notes_, {}), work = std::move(work)] {
      for (const auto& note : notes) note();
      work();
    });
    ++num_queued;
    if (stream_.size() > 4096) synchronize();  // a GPU's queue is bounded, too
  }
  /// note() when the stream comes to the next piece of work.
  void before_next(std::function<void()> note) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    notes_.push_back(std::move(note));
  }
  void synchronize() { run_until(num_queued); }
  /// Does the first `end` pieces of all the work that was ever queued, as far as they are not done.
  /// Returns whether there was anything to do.
  bool run_until(long end) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    const long left = end - (num_queued - static_cast<long>(stream_.size()));
    if (left <= 0) return false;
    memory_.open();
    for (long i = 0; i < left; ++i) stream_.front()(), stream_.pop_front();
    memory_.close();
    return true;
  }
  template <class F>
  auto with_memory(const F& f) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return f(memory_);
  }
  int last_error = 0, next_error = 0;
  long num_queued = 0;       // kernels, products and copies
  long num_waits = 0;        // of the host, for results or memory
  long num_event_waits = 0;  // of the host, for what was queued before an event and is not done yet

 private:
  std::recursive_mutex mutex_;
  std::deque<std::function<void()>> stream_;
  std::vector<std::function<void()>> notes_;
  Memory memory_;
};

/// Of `size` bytes of device memory only the first `bytes` may be used by the work that follows.
inline void set_usable(const void* block, std::size_t bytes, std::size_t size) {
  Device::instance().before_next([=] { watch::set_usable(block, bytes, size); });
}
#define WIDENET_SET_USABLE(block, bytes, size) emulated_gpu::set_usable(block, bytes, size)

/// The next call that can fail does so.
inline void fail_next(int error) { Device::instance().next_error = error; }
inline int failure() { return std::exchange(Device::instance().next_error, 0); }

/// Everything that was queued before it was recorded.
struct Event {
  long end = 0;
};

inline bool is_valid_launch(unsigned blocks, unsigned threads) {
  const bool is_valid = blocks > 0 && threads > 0 && threads <= 1024 &&
                        threads % Warp::num_lanes == 0;
  if (!is_valid) Device::instance().last_error = 9;  // cudaErrorInvalidConfiguration
  return is_valid;
}
/// kernel<<<blocks, threads>>>(), for kernels whose lanes exchange something.
template <class Kernel>
void launch_rows(unsigned blocks, unsigned threads, const Kernel& kernel) {
  if (!is_valid_launch(blocks, threads)) return;
  const char* const name = __PRETTY_FUNCTION__;
  Device::instance().enqueue([=] {
    blockDim.x = threads;
    watch::begin_launch(name, &kernel, sizeof(kernel));
    const std::function<void()> run = [&f = kernel] {
      const Kernel& watched = f;
      Warp::instance().watch_this_lane();
      watched();
      watch::end_thread();
    };
    in_order(blocks, [&](unsigned block) {
      blockIdx.x = block;
      in_order(threads / Warp::num_lanes,
               [&](unsigned w) { Warp::instance().run(w * Warp::num_lanes, run); });
    });
  });
}
/// The same for kernels whose threads do not know of each other: no fibers are needed.
template <class Kernel>
void launch_elements(unsigned blocks, unsigned threads, const Kernel& kernel) {
  if (!is_valid_launch(blocks, threads)) return;
  const char* const name = __PRETTY_FUNCTION__;
  Device::instance().enqueue([=] {
    blockDim.x = threads;
    watch::begin_launch(name, &kernel, sizeof(kernel));
    in_order(blocks, [&](unsigned block) {
      blockIdx.x = block;
      in_order(threads, [&f = kernel](unsigned thread) {
        const Kernel& watched = f;
        threadIdx.x = thread;
        watch::begin_thread(0, __builtin_frame_address(0));
        watched();
        watch::end_thread();
      });
    });
  });
}

}  // namespace emulated_gpu

// WHAT KERNELS CALL -------------------------------------------------------------------------------

inline void __syncwarp() {
  const auto get_nothing = [](const unsigned long long*, unsigned) { return 0; };
  emulated_gpu::Warp::exchange(0, get_nothing, true);
}
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int lane_mask) {
  if (lanes != ~0u) emulated_gpu::die("only shuffles among all lanes are emulated");
  static_assert(sizeof(T) <= sizeof(unsigned long long), "a lane hands over at most 8 bytes");
  unsigned long long mine = 0, theirs;
  std::memcpy(&mine, &value, sizeof(T));
  theirs = emulated_gpu::Warp::exchange(
      mine, [=](const unsigned long long* board, unsigned lane) {
        return board[lane ^ static_cast<unsigned>(lane_mask)];
      });
  std::memcpy(&value, &theirs, sizeof(T));
  return value;
}
inline unsigned __ballot_sync(unsigned lanes, bool vote) {
  if (lanes != ~0u) emulated_gpu::die("only votes of all lanes are emulated");
  return emulated_gpu::Warp::exchange(
      vote, [](const unsigned long long* board, unsigned) {
        unsigned votes = 0;
        for (unsigned l = 0; l < 32; ++l) votes |= static_cast<unsigned>(board[l]) << l;
        return votes;
      });
}
inline unsigned __popc(unsigned bits) { return static_cast<unsigned>(__builtin_popcount(bits)); }

// WHAT THE HOST CALLS -----------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorIllegalAddress = 700
};
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice
};
using cudaEvent_t = emulated_gpu::Event*;
enum { cudaEventDisableTiming = 2 };

inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess                     ? "no error"
         : status == cudaErrorInvalidValue         ? "invalid argument"
         : status == cudaErrorMemoryAllocation     ? "out of memory"
         : status == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                   : "an illegal memory access was encountered";
}
inline cudaError_t cudaGetLastError() {
  return static_cast<cudaError_t>(std::exchange(emulated_gpu::Device::instance().last_error, 0));
}
inline cudaError_t cudaDeviceSynchronize() {
  ++emulated_gpu::Device::instance().num_waits;
  emulated_gpu::Device::instance().synchronize();
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, int /*stream*/) {
  if (!to) return cudaErrorInvalidValue;
  emulated_gpu::Device::instance().enqueue([=] {
    emulated_gpu::watch::begin_launch("cudaMemset", nullptr, 0);
    emulated_gpu::watch::write(to, bytes);
    std::memset(to, value, bytes);
  });
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** block, std::size_t bytes) {
  ++emulated_gpu::Device::instance().num_waits;
  *block = static_cast<T*>(emulated_gpu::Device::instance().with_memory(
      [&](emulated_gpu::Memory& memory) { return memory.allocate(bytes); }));
  if (*block) {
    emulated_gpu::set_usable(*block, bytes, bytes);
    cudaMemsetAsync(*block, 0xff, bytes, 0);
    return cudaSuccess;
  }
  emulated_gpu::Device::instance().last_error = cudaErrorMemoryAllocation;
  return cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* block) {  // waits for the device, as CUDA's does
  if (const int error = emulated_gpu::failure()) return static_cast<cudaError_t>(error);
  cudaDeviceSynchronize();
  if (block)
    emulated_gpu::Device::instance().with_memory([&](emulated_gpu::Memory& memory) {
      emulated_gpu::set_usable(block, 0, memory.release(block));
    });
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = emulated_gpu::Device::instance().with_memory(
      [](emulated_gpu::Memory& memory) { return memory.num_free(); });
  *total = emulated_gpu::Memory::capacity;
  return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** block, std::size_t bytes) {
  *block = std::malloc(bytes);
  return *block ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeHost(void* block) {  // waits, too
  cudaDeviceSynchronize();
  std::free(block);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes,
                                   cudaMemcpyKind kind, int /*stream*/) {
  if (const int error = emulated_gpu::failure()) return static_cast<cudaError_t>(error);
  if (!to || !from) return cudaErrorInvalidValue;
  emulated_gpu::Device::instance().enqueue([=] {
    emulated_gpu::watch::begin_launch("cudaMemcpy", nullptr, 0);
    if (kind != cudaMemcpyHostToDevice) emulated_gpu::watch::read(from, bytes);
    if (kind != cudaMemcpyDeviceToHost) emulated_gpu::watch::write(to, bytes);
    std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, 0);
  return status == cudaSuccess ? cudaDeviceSynchronize() : status;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new emulated_gpu::Event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, int /*stream*/) {
  event->end = emulated_gpu::Device::instance().num_queued;
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (emulated_gpu::Device::instance().run_until(event->end))
    ++emulated_gpu::Device::instance().num_event_waits;
  return cudaSuccess;
}

#endif
