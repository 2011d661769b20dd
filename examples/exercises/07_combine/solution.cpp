// Combine.
#include <vector>

std::vector<double> combine(const std::vector<double>& slots, const std::vector<double>& gate,
                            const std::vector<int>& expert, const std::vector<int>& slot, int N,
                            int K, int E, int C, int D) {
  std::vector<double> y(N * D);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) {
      const int e = expert[n * K + k], c = slot[n * K + k];
      if (c < 0) continue;
      for (int d = 0; d < D; ++d) y[n * D + d] += gate[n * K + k] * slots[(e * C + c) * D + d];
    }
  return y;
}
