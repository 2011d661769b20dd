// Balance loss with the square of the load.
#include <vector>

const char* hint =
    "the factor beside m is P, the mean probability; yours is m itself, which has no gradient";

double balance_loss(const std::vector<double>& p, const std::vector<int>& expert,
                    const std::vector<int>& slot, int N, int K, int E) {
  std::vector<double> m(E);
  for (int i = 0; i < N * K; ++i) m[expert[i]] += 1.0 / (N * K);

  double loss = 0;
  for (int e = 0; e < E; ++e) loss += E * m[e] * m[e];
  return loss;
}
