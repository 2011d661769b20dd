// Balance loss backward that reaches the chosen experts only.
#include <vector>

const char* hint =
    "P[e] is made of the probabilities of all tokens, also of those that did not choose e";

std::vector<double> balance_loss_backward(const std::vector<double>& p,
                                          const std::vector<int>& expert, int N, int K, int E) {
  std::vector<double> m(E), dz(p.size());
  for (int i = 0; i < N * K; ++i) m[expert[i]] += 1.0 / (N * K);
  for (int n = 0; n < N; ++n) {
    std::vector<double> dp(E);
    for (int k = 0; k < K; ++k) dp[expert[n * K + k]] = E * m[expert[n * K + k]] / N;
    double sum = 0;
    for (int e = 0; e < E; ++e) sum += dp[e] * p[n * E + e];
    for (int e = 0; e < E; ++e) dz[n * E + e] = p[n * E + e] * (dp[e] - sum);
  }
  return dz;
}
