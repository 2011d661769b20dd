// Noisy top K without noise.
#include <cmath>
#include <vector>

const char* hint = "the noise is added to the logits before softmax; you leave it out";

std::vector<double> noisy_top_k(const std::vector<double>& z, const std::vector<double>& normal,
                                int N, int E, int K) {
  std::vector<double> g(z.size());
  for (int n = 0; n < N; ++n) {
    std::vector<double> p(E);
    double total = 0;
    for (int e = 0; e < E; ++e) {
      p[e] = std::exp(z[n * E + e]);
      total += p[e];
    }
    for (int e = 0; e < E; ++e) p[e] /= total;

    for (int k = 0; k < K; ++k) {
      int best = -1;  // the largest that is not yet chosen
      for (int e = 0; e < E; ++e)
        if (g[n * E + e] == 0 && (best < 0 || p[e] > p[best])) best = e;
      g[n * E + best] = p[best];
    }
  }
  return g;
}
