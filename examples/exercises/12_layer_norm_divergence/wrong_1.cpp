// Divergence of matched elements.
#include <vector>

const char* hint =
    "element d is compared with all elements of the other blocks, not with element d only";

double layer_norm_divergence(const std::vector<double>& x, int L, int D) {
  double total = 0;
  for (int l = 0; l < L; ++l)
    for (int j = 0; j < L; ++j) {
      if (j == l) continue;
      for (int d = 0; d < D; ++d)
        total += (x[l * D + d] - x[j * D + d]) * (x[l * D + d] - x[j * D + d]);
    }
  return total / (double(L) * D * (L - 1));
}
