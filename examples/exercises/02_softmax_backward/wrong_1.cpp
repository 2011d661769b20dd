// Softmax backward with the diagonal of its Jacobian only.
#include <vector>

const char* hint =
    "a logit moves all the probabilities of its row, not only its own: p (1 - p) dp is not enough";

std::vector<double> softmax_backward(const std::vector<double>& p, const std::vector<double>& dp,
                                     int N, int E) {
  std::vector<double> dz(p.size());
  for (int n = 0; n < N; ++n) {
    for (int e = 0; e < E; ++e)
      dz[n * E + e] = p[n * E + e] * (1 - p[n * E + e]) * dp[n * E + e];
  }
  return dz;
}
