// LayerNorm backward without gamma.
#include <cmath>
#include <vector>

const char* hint = "dh is dy * gamma: the gradient has to pass the scale on its way to x";

std::vector<double> layer_norm_backward(const std::vector<double>& x,
                                        const std::vector<double>& gamma,
                                        const std::vector<double>& dy, int N, int D, double eps) {
  std::vector<double> dx(x.size()), h(D), dh(D);
  for (int n = 0; n < N; ++n) {
    double mean = 0, variance = 0;
    for (int d = 0; d < D; ++d) mean += x[n * D + d] / D;
    for (int d = 0; d < D; ++d) variance += (x[n * D + d] - mean) * (x[n * D + d] - mean) / D;
    const double rstd = 1 / std::sqrt(variance + eps);

    double mean_dh = 0, mean_dh_h = 0;
    for (int d = 0; d < D; ++d) {
      h[d] = (x[n * D + d] - mean) * rstd;
      dh[d] = dy[n * D + d];
      mean_dh += dh[d] / D;
      mean_dh_h += dh[d] * h[d] / D;
    }
    for (int d = 0; d < D; ++d) dx[n * D + d] = rstd * (dh[d] - mean_dh - h[d] * mean_dh_h);
  }
  return dx;
}
