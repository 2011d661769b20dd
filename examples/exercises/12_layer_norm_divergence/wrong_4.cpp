// Divergence of every pair once.
#include <vector>

const char* hint =
    "the sum is over ordered pairs of blocks; yours has every pair once, which is half of it";

double layer_norm_divergence(const std::vector<double>& x, int L, int D) {
  double total = 0;
  for (int l = 0; l < L; ++l)
    for (int j = l; j < L; ++j) {
      if (j == l) continue;
      for (int d = 0; d < D; ++d)
        for (int i = 0; i < D; ++i)
          total += (x[l * D + d] - x[j * D + i]) * (x[l * D + d] - x[j * D + i]);
    }
  return total / (double(L) * D * (L - 1) * D);
}
