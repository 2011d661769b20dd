// Softmax backward.
#include <vector>

std::vector<double> softmax_backward(const std::vector<double>& p, const std::vector<double>& dp,
                                     int N, int E) {
  std::vector<double> dz(p.size());
  for (int n = 0; n < N; ++n) {
    double sum = 0;
    for (int e = 0; e < E; ++e) sum += dp[n * E + e] * p[n * E + e];
    for (int e = 0; e < E; ++e) dz[n * E + e] = p[n * E + e] * (dp[n * E + e] - sum);
  }
  return dz;
}
