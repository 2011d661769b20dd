// Capacity in floating point.
#include <algorithm>

const char* hint =
    "7/5 is no binary number, and floor makes a whole slot of what it is off: stay in integers";

int capacity(int numerator, int denominator, int K, int N, int E) {
  return std::max(1, int(double(numerator) / denominator * K * N / E));
}
