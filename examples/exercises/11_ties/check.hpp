// Exercise 11: what top_k has to give, and typical mistakes.
[[gnu::weak]] std::vector<int> top_k(const std::vector<double>& p, int N, int E, int K);

namespace exercise_11 {

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
  const int N = 7, E = 5, K = 3;
  const Values z = {1, 3, 2, 3, 1,  //
                    2, 0, 2, 1, 1,  //
                    0, 1, 3, 1, 2,  // the tie is about the last choice
                    3, 3, 3, 1, 0,  //
                    1, 2, 0, 2, 2,  //
                    0, 3, 1, 2, 1,  //
                    4, 0, 1, 2, 3};
  RouteOptions options;
  options.K = K;
  const Routing<double> r = route(Tensor<double>({N, E}, z), options);
  return exercise::check(
      {"expert", {{"n", N}, {"k", K}},
       "[eq 2]  e(n, k) = the k-th largest of p[n, :], ties to the lower index"},
      ::top_k,
      {{wrong_1::top_k, wrong_1::hint},
       {wrong_2::top_k, wrong_2::hint},
       {wrong_3::top_k, wrong_3::hint},
       {wrong_4::top_k, wrong_4::hint},
       {wrong_5::top_k, wrong_5::hint}},
      r.expert.to_vector(), [&](auto* f) { return f(r.probabilities.to_vector(), N, E, K); });
}

}  // namespace exercise_11
