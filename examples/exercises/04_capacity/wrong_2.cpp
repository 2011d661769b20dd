// Capacity as it is printed in the paper.
#include <algorithm>

const char* hint =
    "divide by E: the capacity is that of one expert; without it nothing is ever dropped";

int capacity(int numerator, int denominator, int K, int N, int E) {
  return std::max(1, numerator * K * N / denominator);
}
