// Exercise 9: what balance_loss_backward has to give, and typical mistakes.
[[gnu::weak]] std::vector<double> balance_loss_backward(const std::vector<double>& p,
                                                        const std::vector<int>& expert, int N,
                                                        int K, int E);

namespace exercise_9 {

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
  const int N = 13, K = 2, E = 5;
  const Tensor<double> z = lopsided_logits(N, E).require_gradient();
  const Routing<double> r = route(z, {K, {6, 5}, {}});
  const Values p = r.probabilities.to_vector();
  balance_loss(r).backward();
  return exercise::check(
      {"dz", {{"n", N}, {"e", E}},
       "[eq 4]  dp[n, e] = E m[e] / N, through softmax: dz = p (dp - sum over e of dp p)"},
      ::balance_loss_backward,
      {{wrong_1::balance_loss_backward, wrong_1::hint},
       {wrong_2::balance_loss_backward, wrong_2::hint},
       {wrong_3::balance_loss_backward, wrong_3::hint},
       {wrong_4::balance_loss_backward, wrong_4::hint},
       {wrong_5::balance_loss_backward, wrong_5::hint}},
      z.gradient().to_vector(), [&](auto* f) { return f(p, r.expert.to_vector(), N, K, E); });
}

}  // namespace exercise_9
