// Combine with dropped choices.
#include <vector>

const char* hint =
    "a dropped choice, slot -1, brings 0; yours brings what stands in slot 0 of its expert";

std::vector<double> combine(const std::vector<double>& slots, const std::vector<double>& gate,
                            const std::vector<int>& expert, const std::vector<int>& slot, int N,
                            int K, int E, int C, int D) {
  std::vector<double> y(N * D);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) {
      const int e = expert[n * K + k], c = slot[n * K + k] < 0 ? 0 : slot[n * K + k];
      for (int d = 0; d < D; ++d) y[n * D + d] += gate[n * K + k] * slots[(e * C + c) * D + d];
    }
  return y;
}
