// Exercise 1: what layer_norm_backward has to give, and typical mistakes.
[[gnu::weak]] std::vector<double> layer_norm_backward(const std::vector<double>& x,
                                                      const std::vector<double>& gamma,
                                                      const std::vector<double>& dy, int N, int D,
                                                      double eps);

namespace exercise_1 {

namespace wrong_1 {
#include "wrong_1.cpp"
}
namespace wrong_2 {
#include "wrong_2.cpp"
}
namespace wrong_3 {
#include "wrong_3.cpp"
}
namespace wrong_4 {
#include "wrong_4.cpp"
}
namespace wrong_5 {
#include "wrong_5.cpp"
}

inline bool check() {
  using namespace exercise;
  const int N = 7, D = 5;
  const double eps = 0.01;  // large enough to be seen
  const Tensor<double> x = randn({N, D}, 0).require_gradient(), gamma = randn({D}, 1);
  const Tensor<double> beta = randn({D}, 2), dy = randn({N, D}, 3);
  layer_norm(x, gamma, beta, eps).backward(dy.value());
  return exercise::check(
      {"dx", {{"n", N}, {"d", D}},
       "[eq 5]  dx = rstd (dh - mean(dh) - h mean(dh h)),  dh = dy gamma"},
      ::layer_norm_backward,
      {{wrong_1::layer_norm_backward, wrong_1::hint},
       {wrong_2::layer_norm_backward, wrong_2::hint},
       {wrong_3::layer_norm_backward, wrong_3::hint},
       {wrong_4::layer_norm_backward, wrong_4::hint},
       {wrong_5::layer_norm_backward, wrong_5::hint}},
      x.gradient().to_vector(), [&](auto* f) {
        return f(x.to_vector(), gamma.to_vector(), dy.to_vector(), N, D, eps);
      });
}

}  // namespace exercise_1
