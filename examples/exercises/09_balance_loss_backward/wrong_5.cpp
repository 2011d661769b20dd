// Balance loss backward without the factor E.
#include <vector>

const char* hint = "the factor E of the loss is missing";

std::vector<double> balance_loss_backward(const std::vector<double>& p,
                                          const std::vector<int>& expert, int N, int K, int E) {
  std::vector<double> m(E), dz(p.size());
  for (int i = 0; i < N * K; ++i) m[expert[i]] += 1.0 / (N * K);
  for (int n = 0; n < N; ++n) {
    double sum = 0;
    for (int e = 0; e < E; ++e) sum += m[e] / N * p[n * E + e];
    for (int e = 0; e < E; ++e) dz[n * E + e] = p[n * E + e] * (m[e] / N - sum);
  }
  return dz;
}
