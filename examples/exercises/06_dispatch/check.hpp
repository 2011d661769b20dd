// Exercise 6: what dispatch has to give, and typical mistakes.
[[gnu::weak]] std::vector<double> dispatch(const std::vector<double>& x,
                                           const std::vector<int>& expert,
                                           const std::vector<int>& slot, int N, int K, int E, int C,
                                           int D);

namespace exercise_6 {

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
  const Routing<double> r = lopsided_routing();
  const int N = int(r.N), K = int(r.K), E = int(r.E), C = int(r.C), D = 7;
  const Tensor<double> x = randn({N, D}, 1);
  return exercise::check(
      {"slots", {{"e", E}, {"c", C}, {"d", D}},
       "slots[e, c, :] = x[n, :] for the choice (n, k) in slot c of expert e; 0 if there is none"},
      ::dispatch,
      {{wrong_1::dispatch, wrong_1::hint},
       {wrong_2::dispatch, wrong_2::hint},
       {wrong_3::dispatch, wrong_3::hint},
       {wrong_4::dispatch, wrong_4::hint},
       {wrong_5::dispatch, wrong_5::hint}},
      dispatch(x, r).to_vector(), [&](auto* f) {
        return f(x.to_vector(), r.expert.to_vector(), r.slot.to_vector(), N, K, E, C, D);
      });
}

}  // namespace exercise_6
