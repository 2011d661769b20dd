// The FMA peak of this moment, in fp32 GFLOP/s, read right before and after a timing.
//
// The speed of a machine changes with its clock and with its neighbours, so a time in milliseconds
// says little by itself; the part of the peak that was reached says more. One reading takes about
// ten milliseconds, after a pause and a few that are not counted.
//
// As a library for other languages (it exports `double peak_gflops(int threads)`):
//   g++ -std=c++17 -O2 -march=native -pthread -shared -fPIC -DWIDENET_PEAK_LIBRARY
//     -x c++ tests/bench/peak.hpp -o build/bench/libpeak.so
#ifndef WIDENET_TESTS_BENCH_PEAK_HPP
#define WIDENET_TESTS_BENCH_PEAK_HPP

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>
#include <vector>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

namespace widenet {
namespace peak {

// A vector register and its fused multiply-add.
#if defined(__AVX512F__)
constexpr const char* kind = "AVX-512";
constexpr int lanes = 16;
using Vector = __m512;
inline Vector splat(float x) { return _mm512_set1_ps(x); }
inline Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
inline float first_lane(Vector a) { return _mm512_cvtss_f32(a); }
#elif defined(__AVX2__) && defined(__FMA__)
constexpr const char* kind = "AVX2";
constexpr int lanes = 8;
using Vector = __m256;
inline Vector splat(float x) { return _mm256_set1_ps(x); }
inline Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
inline float first_lane(Vector a) { return _mm256_cvtss_f32(a); }
#else
// Four floats that a compiler may put into one register: a lower bound of the peak. std::fma is a
// library call where there is no such instruction, so there the product and the sum are separate.
constexpr const char* kind = "portable";
constexpr int lanes = 4;
struct Vector {
  float lane[lanes];
};
inline Vector splat(float x) { return {{x, x, x, x}}; }
inline Vector fma(Vector a, Vector b, Vector c) {
  for (int i = 0; i < lanes; ++i) {
#if defined(__FP_FAST_FMAF) || defined(__ARM_FEATURE_FMA)
    a.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
#else
    a.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
#endif
  }
  return a;
}
inline float first_lane(Vector a) { return a.lane[0]; }
#endif

// Two units with a latency of four or five cycles need eight to ten chains to stay busy; twelve
// chains and two constants still fit into sixteen registers.
constexpr int chains = 12;

// `iterations` steps of every chain. The values tend to 1, so none becomes denormal; the sum is
// returned because a result that nobody reads would be optimised away.
inline float run_chains(long iterations) {
  const Vector scale = splat(0.5f);
  const Vector shift = splat(0.5f);
  Vector a0 = splat(2.0f), a1 = splat(2.1f), a2 = splat(2.2f), a3 = splat(2.3f);
  Vector a4 = splat(2.4f), a5 = splat(2.5f), a6 = splat(2.6f), a7 = splat(2.7f);
  Vector a8 = splat(2.8f), a9 = splat(2.9f), a10 = splat(3.0f), a11 = splat(3.1f);
  for (long i = 0; i < iterations; ++i) {
    a0 = fma(a0, scale, shift);
    a1 = fma(a1, scale, shift);
    a2 = fma(a2, scale, shift);
    a3 = fma(a3, scale, shift);
    a4 = fma(a4, scale, shift);
    a5 = fma(a5, scale, shift);
    a6 = fma(a6, scale, shift);
    a7 = fma(a7, scale, shift);
    a8 = fma(a8, scale, shift);
    a9 = fma(a9, scale, shift);
    a10 = fma(a10, scale, shift);
    a11 = fma(a11, scale, shift);
  }
  return first_lane(a0) + first_lane(a1) + first_lane(a2) + first_lane(a3) + first_lane(a4) +
         first_lane(a5) + first_lane(a6) + first_lane(a7) + first_lane(a8) + first_lane(a9) +
         first_lane(a10) + first_lane(a11);
}

/// Returns the fp32 GFLOP/s that `threads` threads reach together (a fused operation counts twice).
///
/// The threads are started here and end here. An OpenMP team of its own would go on spinning after
/// the reading and slow down what is timed next; and a team that has just worked for the program
/// spins for some milliseconds: without the pause two threads beside that of PyTorch read half of
/// the peak. Then the clock has to rise again, so the first six milliseconds are not counted.
inline double gflops(int threads) {
  using Clock = std::chrono::steady_clock;
  constexpr auto pause = std::chrono::milliseconds(40);
  constexpr double uncounted_seconds = 0.006;
  // Six cycles an iteration where two fused operations start per cycle: 10 ms at 3.5 GHz.
  constexpr long iterations = 6000000;

  std::this_thread::sleep_for(pause);
  threads = std::max(1, threads);
  std::atomic<int> arrived{0};
  std::vector<float> sums(static_cast<std::size_t>(threads));
  std::vector<Clock::time_point> begins(sums.size());
  std::vector<Clock::time_point> ends(sums.size());
  const auto work = [&](std::size_t t) {
    const auto entered = Clock::now();
    float sum = 0.0f;
    while (std::chrono::duration<double>(Clock::now() - entered).count() < uncounted_seconds) {
      sum += run_chains(iterations / 100);
    }
    ++arrived;
    while (arrived.load() < threads) std::this_thread::yield();
    begins[t] = Clock::now();
    sum += run_chains(iterations);
    ends[t] = Clock::now();
    sums[t] = sum;
  };
  std::vector<std::thread> others;
  for (std::size_t t = 1; t < sums.size(); ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();

  volatile float keep_alive = 0.0f;
  for (const float sum : sums) keep_alive = keep_alive + sum;
  const auto begin = *std::min_element(begins.begin(), begins.end());
  const auto end = *std::max_element(ends.begin(), ends.end());
  const double operations = 2.0 * chains * lanes * static_cast<double>(iterations) * threads;
  return operations / std::chrono::duration<double>(end - begin).count() * 1e-9;
}

}  // namespace peak
}  // namespace widenet

#if defined(WIDENET_PEAK_LIBRARY)
extern "C" double peak_gflops(int threads) { return widenet::peak::gflops(threads); }
#endif

#endif  // WIDENET_TESTS_BENCH_PEAK_HPP
