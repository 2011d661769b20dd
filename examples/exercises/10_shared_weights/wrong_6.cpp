// Gradients of shared weights with w transposed.
#include <cmath>
#include <vector>

const char* hint =
    "da goes back through w transposed: dx[n, i] is the sum over j of da[n, j] w[i, j]";

std::vector<double> shared_weights_backward(const std::vector<double>& x,
                                            const std::vector<double>& w,
                                            const std::vector<double>& dy, int N, int D, int L) {
  // Forward: inputs[l] is what goes into block l, hidden[l] = tanh(inputs[l] w).
  std::vector<std::vector<double>> inputs{x}, hidden;
  for (int l = 0; l < L; ++l) {
    std::vector<double> h(N * D), y = inputs[l];
    for (int n = 0; n < N; ++n)
      for (int j = 0; j < D; ++j) {
        double a = 0;
        for (int i = 0; i < D; ++i) a += inputs[l][n * D + i] * w[i * D + j];
        h[n * D + j] = std::tanh(a);
        y[n * D + j] += h[n * D + j];
      }
    hidden.push_back(h);
    inputs.push_back(y);
  }

  // Backward: dx is the gradient of what comes out of block l, and then of what goes in.
  std::vector<double> dw(D * D), dx = dy;
  for (int l = L - 1; l >= 0; --l) {
    std::vector<double> da(N * D);
    for (int i = 0; i < N * D; ++i) da[i] = dx[i] * (1 - hidden[l][i] * hidden[l][i]);
    for (int n = 0; n < N; ++n)
      for (int i = 0; i < D; ++i)
        for (int j = 0; j < D; ++j) {
          dw[i * D + j] += inputs[l][n * D + i] * da[n * D + j];
          dx[n * D + i] += da[n * D + j] * w[j * D + i];
        }
  }
  return dw;
}
