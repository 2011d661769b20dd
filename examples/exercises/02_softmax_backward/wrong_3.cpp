// Softmax backward with the sum over the wrong axis.
#include <vector>

const char* hint =
    "the sum runs over the row of token n; yours runs over the tokens, down the column of e";

std::vector<double> softmax_backward(const std::vector<double>& p, const std::vector<double>& dp,
                                     int N, int E) {
  std::vector<double> dz(p.size());
  for (int n = 0; n < N; ++n) {
    for (int e = 0; e < E; ++e) {
      double sum = 0;
      for (int m = 0; m < N; ++m) sum += dp[m * E + e] * p[m * E + e];
      dz[n * E + e] = p[n * E + e] * (dp[n * E + e] - sum);
    }
  }
  return dz;
}
