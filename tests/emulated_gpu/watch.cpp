// Judges every access of the kernels that the emulated GPU runs, and ends the program at the first
// that a GPU need not survive, or need not do the same way twice:
//
//   - of memory that is not the device's: of the host's, or of another thread's stack
//   - of device memory that no buffer holds, or beyond the end of a buffer
//   - reading what nobody has written since the buffer was made
//   - races: two threads of a launch that access the same value, one of them to write it, without
//     a barrier of their warp in between. Threads of different warps have no barrier.
//
// The emulated build is compiled with -fsanitize=thread, so before every load and store it calls a
// function of the compiler's race detector. That one is for CPUs, and is not linked: the functions
// are the ones below. This file and cublas.cpp are compiled without the flag.

#include "watch.hpp"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <unordered_map>

#include <sys/mman.h>

namespace emulated_gpu::watch {
namespace {

using Address = std::uintptr_t;
constexpr Address word = 4;  // larger values are watched in words, smaller ones in bytes

Address address(const void* pointer) { return reinterpret_cast<Address>(pointer); }

/// Of a word or a byte: the last launch that wrote any of it, the last write of it as a whole, and
/// its reads since the last barrier in one warp; 0 is no launch.
struct Accesses {
  std::uint32_t any_write_launch = 0;
  std::uint32_t write_launch = 0, writer = 0, write_barriers = 0;
  std::uint32_t read_launch = 0, read_warp = 0, read_barriers = 0, readers = 0;  // lanes, by bit
  bool is_read_elsewhere = false;                                                // in other warps
};

/// What was accessed, by address: a table of the addresses around the first block of device memory,
/// of which the system keeps the pages that are in use.
class Table {
 public:
  Table() {
    void* const words = mmap(nullptr, reach / word * sizeof(Accesses), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (words == MAP_FAILED) std::perror("emulated GPU: no addresses to watch"), std::abort();
    words_ = static_cast<Accesses*>(words);
  }
  Accesses& of_word(Address at) {
    if (begin_ == 0) begin_ = at - reach / 2;
    return words_[(at - begin_) / word];
  }
  /// Races between bytes are their own; but what copies words writes their bytes, and vice versa.
  Accesses& of_byte(Address at) {
    Accesses& byte = bytes_[at];
    byte.any_write_launch = of_word(at).any_write_launch;
    return byte;
  }

 private:
  static constexpr Address reach = Address(1) << 35;  // twice the emulated device's memory
  Address begin_ = 0;
  Accesses* words_ = nullptr;
  std::unordered_map<Address, Accesses> bytes_;
};

struct Block {
  Address end;
  std::uint32_t birth;  // what was launched before it has not written its values
};

struct Range {
  Address begin = 0, end = 0;
  bool holds(Address at) const { return begin <= at && at < end; }
};

struct State {
  Table table;
  std::map<Address, Block> blocks;
  std::uint32_t launch = 0;
  const char* name = "";
  Range parameters;
};

struct Thread {
  bool is_running = false;
  std::uint32_t number = 0, num_barriers = 0;
  Address stack_end = 0;
};

State& state() {
  static State* const state = new State;
  return *state;
}
thread_local Thread thread;  // other threads of the host are not the GPU's

std::uint32_t thread_of_launch() { return blockIdx.x * blockDim.x + threadIdx.x; }

[[noreturn]] void die(const char* why, Address at) {
  thread.is_running = false;  // a handler of the signal is not the GPU's either
  std::fprintf(stderr, "emulated GPU: thread %u of block %u %s at %p, in %s\n", threadIdx.x,
               blockIdx.x, why, reinterpret_cast<void*>(at), state().name);
  std::abort();
}

/// Whether the present thread comes after what a thread did when it had passed so many barriers.
bool is_after(std::uint32_t other, std::uint32_t num_barriers) {
  return other == thread.number ||
         (other / 32 == thread.number / 32 && num_barriers < thread.num_barriers);
}

void judge_read(Accesses& a, Address at, std::uint32_t birth) {
  const std::uint32_t launch = state().launch, warp = thread.number / 32;
  if (a.any_write_launch <= birth) die("reads what nobody has written", at);
  if (a.write_launch == launch && !is_after(a.writer, a.write_barriers))
    die("reads what another thread writes", at);
  if (a.read_launch != launch)
    a.read_warp = warp, a.readers = 0, a.is_read_elsewhere = false;
  else if (a.read_warp != warp)
    a.is_read_elsewhere = true;
  else if (a.read_barriers != thread.num_barriers)
    a.readers = 0;
  a.read_launch = launch;
  if (a.read_warp != warp) return;
  a.read_barriers = thread.num_barriers;
  a.readers |= 1u << thread.number % 32;
}

void judge_write(Accesses& a, Address at) {
  const std::uint32_t launch = state().launch;
  if (a.write_launch == launch && !is_after(a.writer, a.write_barriers))
    die("writes what another thread writes", at);
  if (a.read_launch == launch) {
    const bool is_same_warp = a.read_warp == thread.number / 32 && !a.is_read_elsewhere;
    const bool is_mine = (a.readers & ~(1u << thread.number % 32)) == 0;
    if (!is_same_warp || (!is_mine && a.read_barriers >= thread.num_barriers))
      die("writes what another thread reads", at);
  }
  a.write_launch = launch, a.writer = thread.number, a.write_barriers = thread.num_barriers;
}

void judge(Address begin, std::size_t bytes, bool is_write) {
  const std::map<Address, Block>& blocks = state().blocks;
  const auto next = blocks.upper_bound(begin);
  if (next == blocks.begin()) die("reaches for what is not the device's memory", begin);
  const Block& block = std::prev(next)->second;
  if (begin + bytes > block.end) die("reaches beyond the end of a buffer", begin);
  const bool is_words = bytes >= word;
  for (Address at = begin; at < begin + bytes; at += is_words ? word : 1) {
    Accesses& accesses = is_words ? state().table.of_word(at) : state().table.of_byte(at);
    is_write ? judge_write(accesses, at) : judge_read(accesses, at, block.birth);
    if (is_write) state().table.of_word(at).any_write_launch = state().launch;
  }
}

/// An access by code that the compiler has instrumented. All that the running thread has on its
/// stack lies between this function's frame and the end.
__attribute__((noinline)) void on_access_of_kernel(const void* pointer, std::size_t bytes,
                                                   bool is_write) {
  const Address at = address(pointer), frame = address(__builtin_frame_address(0));
  if (frame <= at && at < thread.stack_end) return;
  if (!is_write && state().parameters.holds(at)) return;
  for (const Dimension* d : {&threadIdx, &blockIdx, &blockDim})
    if (!is_write && pointer == &d->x) return;
  judge(at, bytes, is_write);
}
inline void on_access(const void* pointer, std::size_t bytes, bool is_write) {
  if (thread.is_running) on_access_of_kernel(pointer, bytes, is_write);
}

}  // namespace

void set_usable(const void* pointer, std::size_t bytes, std::size_t size) {
  State& s = state();
  const Address block = address(pointer);
  s.blocks.erase(s.blocks.lower_bound(block), s.blocks.lower_bound(block + size));
  if (bytes > 0) s.blocks[block] = {block + bytes, ++s.launch};
}
void begin_launch(const char* name, const void* parameters, std::size_t bytes) {
  State& s = state();
  ++s.launch;
  s.name = name;
  s.parameters = {address(parameters), address(parameters) + bytes};
}
void begin_thread(long num_barriers, const void* stack_end) {
  thread = {true, thread_of_launch(), static_cast<std::uint32_t>(num_barriers),
            address(stack_end)};
}
void end_thread() { thread.is_running = false; }
void read(const void* from, std::size_t bytes) {
  thread = {false, thread_of_launch(), 0, 0};
  judge(address(from), bytes, false);
}
void write(const void* to, std::size_t bytes) {
  thread = {false, thread_of_launch(), 0, 0};
  judge(address(to), bytes, true);
}

}  // namespace emulated_gpu::watch

// WHAT THE COMPILER CALLS -------------------------------------------------------------------------

using emulated_gpu::watch::on_access;

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* at, std::size_t bytes) { on_access(at, bytes, false); }
void __tsan_write_range(void* at, std::size_t bytes) { on_access(at, bytes, true); }

#define ACCESSES_OF(bytes)                                                         \
  void __tsan_read##bytes(void* at) { on_access(at, bytes, false); }               \
  void __tsan_write##bytes(void* at) { on_access(at, bytes, true); }               \
  void __tsan_unaligned_read##bytes(void* at) { on_access(at, bytes, false); }     \
  void __tsan_unaligned_write##bytes(void* at) { on_access(at, bytes, true); }
ACCESSES_OF(1)
ACCESSES_OF(2)
ACCESSES_OF(4)
ACCESSES_OF(8)
ACCESSES_OF(16)

// The host's own; kernels have none.
#define ATOMICS_OF(bits)                                                                        \
  using Int##bits = std::int##bits##_t;                                                         \
  Int##bits __tsan_atomic##bits##_load(const volatile Int##bits* a, int) {                      \
    return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                                \
  }                                                                                             \
  void __tsan_atomic##bits##_store(volatile Int##bits* a, Int##bits x, int) {                   \
    __atomic_store_n(a, x, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                             \
  Int##bits __tsan_atomic##bits##_exchange(volatile Int##bits* a, Int##bits x, int) {           \
    return __atomic_exchange_n(a, x, __ATOMIC_SEQ_CST);                                         \
  }                                                                                             \
  Int##bits __tsan_atomic##bits##_fetch_add(volatile Int##bits* a, Int##bits x, int) {          \
    return __atomic_fetch_add(a, x, __ATOMIC_SEQ_CST);                                          \
  }                                                                                             \
  Int##bits __tsan_atomic##bits##_fetch_sub(volatile Int##bits* a, Int##bits x, int) {          \
    return __atomic_fetch_sub(a, x, __ATOMIC_SEQ_CST);                                          \
  }                                                                                             \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile Int##bits* a, Int##bits* expected, \
                                                    Int##bits x, int, int) {                    \
    return __atomic_compare_exchange_n(a, expected, x, false, __ATOMIC_SEQ_CST,                 \
                                       __ATOMIC_SEQ_CST);                                       \
  }                                                                                             \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile Int##bits* a, Int##bits* expected,   \
                                                  Int##bits x, int, int) {                      \
    return __tsan_atomic##bits##_compare_exchange_strong(a, expected, x, 0, 0);                 \
  }
ATOMICS_OF(8)
ATOMICS_OF(32)
ATOMICS_OF(64)

}  // extern "C"
