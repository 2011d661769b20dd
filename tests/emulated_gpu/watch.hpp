// What the emulated GPU tells watch.cpp, so that it can judge the accesses of kernels.

#ifndef WIDENET_TESTS_EMULATED_GPU_WATCH_HPP
#define WIDENET_TESTS_EMULATED_GPU_WATCH_HPP

#include <cstddef>

struct Dimension { unsigned x = 0; };
inline Dimension threadIdx, blockIdx, blockDim;

namespace emulated_gpu::watch {

/// Of a block of `size` bytes of device memory the first `bytes` may be used from now on. Nobody
/// has written what they hold.
void set_usable(const void* block, std::size_t bytes, std::size_t size);

/// What runs from here on follows all that ran before, and may read its parameters.
void begin_launch(const char* name, const void* parameters, std::size_t bytes);

/// The thread that threadIdx and blockIdx name runs from here on: its warp has passed
/// `num_barriers`, and its stack ends at `stack_end`.
void begin_thread(long num_barriers, const void* stack_end);
void end_thread();

/// What that thread does in code that is not a kernel's.
void read(const void* from, std::size_t bytes);
void write(const void* to, std::size_t bytes);

}  // namespace emulated_gpu::watch

#endif
