// LayerNorm backward with the variance taken for a constant.
#include <cmath>
#include <vector>

const char* hint = "the variance depends on x, too: subtract h * mean(dh * h)";

std::vector<double> layer_norm_backward(const std::vector<double>& x,
                                        const std::vector<double>& gamma,
                                        const std::vector<double>& dy, int N, int D, double eps) {
  std::vector<double> dx(x.size()), dh(D);
  for (int n = 0; n < N; ++n) {
    double mean = 0, variance = 0;
    for (int d = 0; d < D; ++d) mean += x[n * D + d] / D;
    for (int d = 0; d < D; ++d) variance += (x[n * D + d] - mean) * (x[n * D + d] - mean) / D;
    const double rstd = 1 / std::sqrt(variance + eps);

    double mean_dh = 0;
    for (int d = 0; d < D; ++d) {
      dh[d] = dy[n * D + d] * gamma[d];
      mean_dh += dh[d] / D;
    }
    for (int d = 0; d < D; ++d) dx[n * D + d] = rstd * (dh[d] - mean_dh);
  }
  return dx;
}
