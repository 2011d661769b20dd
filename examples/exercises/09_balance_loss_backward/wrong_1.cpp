// Balance loss backward that stops at the probabilities.
#include <vector>

const char* hint =
    "this is dp; it has to go back through softmax to the logits, as in exercise 2";

std::vector<double> balance_loss_backward(const std::vector<double>& p,
                                          const std::vector<int>& expert, int N, int K, int E) {
  std::vector<double> m(E), dz(p.size());
  for (int i = 0; i < N * K; ++i) m[expert[i]] += 1.0 / (N * K);
  for (int n = 0; n < N; ++n) {
    for (int e = 0; e < E; ++e) dz[n * E + e] = E * m[e] / N;
  }
  return dz;
}
