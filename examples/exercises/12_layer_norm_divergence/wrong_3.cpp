// Divergence divided by L squared.
#include <vector>

const char* hint = "the inner mean is over the L - 1 other blocks, not over L";

double layer_norm_divergence(const std::vector<double>& x, int L, int D) {
  double total = 0;
  for (int l = 0; l < L; ++l)
    for (int j = 0; j < L; ++j) {
      if (j == l) continue;
      for (int d = 0; d < D; ++d)
        for (int i = 0; i < D; ++i)
          total += (x[l * D + d] - x[j * D + i]) * (x[l * D + d] - x[j * D + i]);
    }
  return total / (double(L) * D * L * D);
}
