// Divergence as a sum.
#include <vector>

const char* hint = "y is a mean over elements and pairs: divide by L D (L - 1) D";

double layer_norm_divergence(const std::vector<double>& x, int L, int D) {
  double total = 0;
  for (int l = 0; l < L; ++l)
    for (int j = 0; j < L; ++j) {
      if (j == l) continue;
      for (int d = 0; d < D; ++d)
        for (int i = 0; i < D; ++i)
          total += (x[l * D + d] - x[j * D + i]) * (x[l * D + d] - x[j * D + i]);
    }
  return total;
}
