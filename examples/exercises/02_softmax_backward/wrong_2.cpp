// Softmax backward with a plain sum of dp.
#include <vector>

const char* hint =
    "what is subtracted is the sum of dp p, an average of dp by p, not the sum of dp";

std::vector<double> softmax_backward(const std::vector<double>& p, const std::vector<double>& dp,
                                     int N, int E) {
  std::vector<double> dz(p.size());
  for (int n = 0; n < N; ++n) {
    double sum = 0;
    for (int e = 0; e < E; ++e) sum += dp[n * E + e];
    for (int e = 0; e < E; ++e) dz[n * E + e] = p[n * E + e] * (dp[n * E + e] - sum);
  }
  return dz;
}
