// Exercise 1: LayerNorm backward. See README.md; to check it:  make exercise N=1
#include <cmath>
#include <vector>

/// dx (N, D), given x (N, D), gamma (D) and dy (N, D). Element (n, d) of x is x[n * D + d].
std::vector<double> layer_norm_backward(const std::vector<double>& x,
                                        const std::vector<double>& gamma,
                                        const std::vector<double>& dy, int N, int D, double eps) {
  return {};
}
