// Balance loss of first choices.
#include <vector>

const char* hint = "m counts all K choices of a token, not the first alone";

double balance_loss(const std::vector<double>& p, const std::vector<int>& expert,
                    const std::vector<int>& slot, int N, int K, int E) {
  std::vector<double> m(E), P(E);
  for (int i = 0; i < N * K; i += K) m[expert[i]] += 1.0 / N;
  for (int n = 0; n < N; ++n)
    for (int e = 0; e < E; ++e) P[e] += p[n * E + e] / N;

  double loss = 0;
  for (int e = 0; e < E; ++e) loss += E * m[e] * P[e];
  return loss;
}
