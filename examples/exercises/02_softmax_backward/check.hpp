// Exercise 2: what softmax_backward has to give, and typical mistakes.
[[gnu::weak]] std::vector<double> softmax_backward(const std::vector<double>& p,
                                                   const std::vector<double>& dp, int N, int E);

namespace exercise_2 {

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

inline bool check() {
  using namespace exercise;
  const int N = 7, E = 5;
  const Tensor<double> z = randn({N, E}, 0).require_gradient(), dp = randn({N, E}, 1);
  const Tensor<double> p = softmax(z);
  const Values given = p.to_vector();
  p.backward(dp.value());
  return exercise::check(
      {"dz", {{"n", N}, {"e", E}},
       "dz[n, e] = p[n, e] (dp[n, e] - sum over j of dp[n, j] p[n, j])"},
      ::softmax_backward,
      {{wrong_1::softmax_backward, wrong_1::hint},
       {wrong_2::softmax_backward, wrong_2::hint},
       {wrong_3::softmax_backward, wrong_3::hint},
       {wrong_4::softmax_backward, wrong_4::hint}},
      z.gradient().to_vector(), [&](auto* f) { return f(given, dp.to_vector(), N, E); });
}

}  // namespace exercise_2
