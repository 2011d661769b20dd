// Balance loss with a sum in place of the mean.
#include <vector>

const char* hint =
    "P is a mean over the tokens; yours is the sum, so the loss would grow with the batch";

double balance_loss(const std::vector<double>& p, const std::vector<int>& expert,
                    const std::vector<int>& slot, int N, int K, int E) {
  std::vector<double> m(E), P(E);
  for (int i = 0; i < N * K; ++i) m[expert[i]] += 1.0 / (N * K);
  for (int n = 0; n < N; ++n)
    for (int e = 0; e < E; ++e) P[e] += p[n * E + e];

  double loss = 0;
  for (int e = 0; e < E; ++e) loss += E * m[e] * P[e];
  return loss;
}
