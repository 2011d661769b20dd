// Capacity with the fraction divided first.
#include <algorithm>

const char* hint =
    "numerator / denominator of integers is cut off before it is used: divide once, at the end";

int capacity(int numerator, int denominator, int K, int N, int E) {
  return std::max(1, numerator / denominator * K * N / E);
}
