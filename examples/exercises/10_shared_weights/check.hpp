// Exercise 10: what shared_weights_backward has to give, and typical mistakes.
[[gnu::weak]] std::vector<double> shared_weights_backward(const std::vector<double>& x,
                                                          const std::vector<double>& w,
                                                          const std::vector<double>& dy, int N,
                                                          int D, int L);

namespace exercise_10 {

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
namespace wrong_6 {
#include "wrong_6.cpp"
}

inline bool check() {
  using namespace exercise;
  const int N = 7, D = 5, L = 3;
  const Tensor<double> x = randn({N, D}, 0), dy = randn({N, D}, 2);
  const Tensor<double> w = randn({D, D}, 1).require_gradient();
  Tensor<double> y = x;
  for (int l = 0; l < L; ++l) y = y + tanh(matmul(y, w));
  y.backward(dy.value());
  return exercise::check(
      {"dw", {{"i", D}, {"j", D}},
       "[eq 6]  dw = sum over blocks l of x_l^T da_l;  dx_l = dx_(l+1) + da_l w^T"},
      ::shared_weights_backward,
      {{wrong_1::shared_weights_backward, wrong_1::hint},
       {wrong_2::shared_weights_backward, wrong_2::hint},
       {wrong_3::shared_weights_backward, wrong_3::hint},
       {wrong_4::shared_weights_backward, wrong_4::hint},
       {wrong_5::shared_weights_backward, wrong_5::hint},
       {wrong_6::shared_weights_backward, wrong_6::hint}},
      w.gradient().to_vector(), [&](auto* f) {
        return f(x.to_vector(), w.to_vector(), dy.to_vector(), N, D, L);
      });
}

}  // namespace exercise_10
