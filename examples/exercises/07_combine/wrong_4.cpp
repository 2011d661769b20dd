// Combine with the gates renormalised.
#include <vector>

const char* hint =
    "the gates stay what they are when a choice is dropped: the others do not make up for it";

std::vector<double> combine(const std::vector<double>& slots, const std::vector<double>& gate,
                            const std::vector<int>& expert, const std::vector<int>& slot, int N,
                            int K, int E, int C, int D) {
  std::vector<double> y(N * D);
  for (int n = 0; n < N; ++n) {
    double kept = 0;
    for (int k = 0; k < K; ++k) kept += slot[n * K + k] < 0 ? 0 : gate[n * K + k];
    for (int k = 0; k < K; ++k) {
      const int e = expert[n * K + k], c = slot[n * K + k];
      if (c < 0) continue;
      for (int d = 0; d < D; ++d)
        y[n * D + d] += gate[n * K + k] / kept * slots[(e * C + c) * D + d];
    }
  }
  return y;
}
