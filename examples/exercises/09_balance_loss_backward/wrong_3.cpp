// Balance loss backward with the other factor.
#include <vector>

const char* hint = "m is constant and P varies, so dp holds m; yours holds P";

std::vector<double> balance_loss_backward(const std::vector<double>& p,
                                          const std::vector<int>& expert, int N, int K, int E) {
  std::vector<double> m(E), dz(p.size());
  for (int i = 0; i < N * E; ++i) m[i % E] += p[i] / N;
  for (int n = 0; n < N; ++n) {
    double sum = 0;
    for (int e = 0; e < E; ++e) sum += E * m[e] / N * p[n * E + e];
    for (int e = 0; e < E; ++e) dz[n * E + e] = p[n * E + e] * (E * m[e] / N - sum);
  }
  return dz;
}
