// Capacity rounded up.
#include <algorithm>

const char* hint = "the result is rounded down, not up";

int capacity(int numerator, int denominator, int K, int N, int E) {
  return std::max(1, (numerator * K * N + denominator * E - 1) / (denominator * E));
}
