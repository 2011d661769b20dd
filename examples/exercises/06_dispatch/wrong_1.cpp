// Dispatch with the axes in another order.
#include <vector>

const char* hint =
    "slots is (E, C, D): slot c of expert e is row e * C + c; yours is row c * E + e";

std::vector<double> dispatch(const std::vector<double>& x, const std::vector<int>& expert,
                             const std::vector<int>& slot, int N, int K, int E, int C, int D) {
  std::vector<double> slots(E * C * D);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) {
      const int e = expert[n * K + k], c = slot[n * K + k];
      if (c < 0) continue;
      for (int d = 0; d < D; ++d) slots[(c * E + e) * D + d] = x[n * D + d];
    }
  return slots;
}
