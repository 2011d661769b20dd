// Balance loss without the factor E.
#include <vector>

const char* hint =
    "the factor E is missing: it makes the loss 1 when the load is perfectly balanced";

double balance_loss(const std::vector<double>& p, const std::vector<int>& expert,
                    const std::vector<int>& slot, int N, int K, int E) {
  std::vector<double> m(E), P(E);
  for (int i = 0; i < N * K; ++i) m[expert[i]] += 1.0 / (N * K);
  for (int n = 0; n < N; ++n)
    for (int e = 0; e < E; ++e) P[e] += p[n * E + e] / N;

  double loss = 0;
  for (int e = 0; e < E; ++e) loss += m[e] * P[e];
  return loss;
}
