// Divergence with the block itself.
#include <vector>

const char* hint =
    "a block is not compared with itself: j differs from l, and so the mean is over L - 1 blocks";

double layer_norm_divergence(const std::vector<double>& x, int L, int D) {
  double total = 0;
  for (int l = 0; l < L; ++l)
    for (int j = 0; j < L; ++j) {
      for (int d = 0; d < D; ++d)
        for (int i = 0; i < D; ++i)
          total += (x[l * D + d] - x[j * D + i]) * (x[l * D + d] - x[j * D + i]);
    }
  return total / (double(L) * D * L * D);
}
