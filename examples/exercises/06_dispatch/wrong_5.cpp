// Dispatch of a token for each choice.
#include <vector>

const char* hint =
    "the choices are n * K + k, but the tokens are n: yours takes token (n * K + k) mod N";

std::vector<double> dispatch(const std::vector<double>& x, const std::vector<int>& expert,
                             const std::vector<int>& slot, int N, int K, int E, int C, int D) {
  std::vector<double> slots(E * C * D);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) {
      const int e = expert[n * K + k], c = slot[n * K + k];
      if (c < 0) continue;
      for (int d = 0; d < D; ++d) slots[(e * C + c) * D + d] = x[(n * K + k) % N * D + d];
    }
  return slots;
}
