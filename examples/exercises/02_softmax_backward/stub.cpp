// Exercise 2: softmax backward. See README.md; to check it:  make exercise N=2
#include <vector>

/// dz (N, E), given p = softmax(z) and dp, both (N, E). Element (n, e) of p is p[n * E + e].
std::vector<double> softmax_backward(const std::vector<double>& p, const std::vector<double>& dp,
                                     int N, int E) {
  return {};
}
