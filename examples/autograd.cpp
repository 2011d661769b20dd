// Reverse-mode differentiation on three numbers: build a graph, walk it backward, check it.
#include "widenet.hpp"

#include <cmath>
#include <cstdio>

namespace wn = widenet;

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// An operation of our own: y = x sigmoid(x), and a closure that, given dy = dL/dy, adds to dL/dx.
wn::Tensor<double> swish(const wn::Tensor<double>& x) {
  std::vector<double> values = x.to_vector();
  for (double& v : values) v *= sigmoid(v);
  const wn::Tensor<double> y(x.shape(), values);
  y.record("swish", {x}, [x](const wn::Buffer<double>& dy) {
    std::vector<double> dx = dy.to_vector();
    const std::vector<double> at = x.to_vector();
    for (std::size_t i = 0; i < dx.size(); ++i) {
      const double s = sigmoid(at[i]);
      dx[i] *= s * (1 + at[i] * (1 - s));
    }
    x.add_gradient(wn::Buffer<double>(dx));
  });
  return y;
}

}  // namespace

int main() {
  // L = sum of w * tanh(x), so dL/dx = w (1 - tanh(x)^2) and dL/dw = tanh(x).
  const wn::Tensor<double> x({3}, std::vector<double>{-1, 0, 2});
  const wn::Tensor<double> w({3}, std::vector<double>{1, 2, 3});
  x.require_gradient();
  w.require_gradient();

  const wn::Tensor<double> loss = wn::sum(wn::multiply(w, wn::tanh(x)));
  loss.backward();

  std::printf("L = %.6f\n", loss.item());
  const std::vector<double> dx = x.gradient().to_vector(), dw = w.gradient().to_vector();
  for (std::size_t i = 0; i < 3; ++i)
    std::printf("dL/dx[%zu] = %.6f   dL/dw[%zu] = %.6f\n", i, dx[i], i, dw[i]);

  // Gradients accumulate: a second backward adds to what is there, until it is cleared.
  wn::sum(wn::multiply(w, wn::tanh(x))).backward();
  std::printf("after a second backward dL/dw[2] = %.6f\n", w.gradient().to_vector()[2]);
  w.zero_gradient();
  std::printf("after zero_gradient     dL/dw[2] = %.6f\n", w.gradient().to_vector()[2]);

  // The same gradients by differences: nothing here trusts backward().
  const wn::GradReport report = wn::gradcheck([&] { return wn::multiply(w, wn::tanh(x)); }, {x, w});
  std::printf("gradcheck: %s\n", report.max_error < 1e-9 ? "agrees to 1e-9" : report.where.c_str());
  const wn::GradReport own = wn::gradcheck([&] { return swish(x); }, {x});
  std::printf("of swish:  %s\n", own.max_error < 1e-9 ? "agrees to 1e-9" : own.where.c_str());

  // In evaluation no graph is built, so nothing is kept for backward.
  const wn::NoGrad no_graph;
  std::printf("needs a gradient inside NoGrad: %s\n", wn::tanh(x).needs_gradient() ? "yes" : "no");
}
