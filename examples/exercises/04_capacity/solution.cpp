// Capacity in integers.
#include <algorithm>

int capacity(int numerator, int denominator, int K, int N, int E) {
  return std::max(1, numerator * K * N / (denominator * E));
}
