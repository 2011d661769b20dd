// What the benchmarks share: the clock, medians, memory of the process, threads.
#ifndef WIDENET_TESTS_BENCH_MEASURE_HPP
#define WIDENET_TESTS_BENCH_MEASURE_HPP

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <vector>
#ifdef _OPENMP
#  include <omp.h>
#endif
#ifdef __GLIBC__
#  include <malloc.h>
#endif

namespace bench {

inline double now() {  // seconds
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

inline void use_threads([[maybe_unused]] int threads) {
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
}

/// VmRSS (resident now) or VmHWM (its highest value) of this process; 0 where there is no /proc.
inline double memory_mb(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == field + ":") {
      double kilobytes = 0;
      status >> kilobytes;
      return kilobytes / 1024;
    }
  return 0;
}

/// Lets VmHWM begin anew from what is resident now.
inline void restart_memory_peak() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  std::ofstream("/proc/self/clear_refs") << 5;
}

}  // namespace bench

#endif  // WIDENET_TESTS_BENCH_MEASURE_HPP
