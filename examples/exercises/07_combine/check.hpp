// Exercise 7: what combine has to give, and typical mistakes.
[[gnu::weak]] std::vector<double> combine(const std::vector<double>& slots,
                                          const std::vector<double>& gate,
                                          const std::vector<int>& expert,
                                          const std::vector<int>& slot, int N, int K, int E, int C,
                                          int D);

namespace exercise_7 {

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
  const Routing<double> r = lopsided_routing();
  const int N = int(r.N), K = int(r.K), E = int(r.E), C = int(r.C), D = 7;
  const Tensor<double> slots = randn({E, C, D}, 1);
  return exercise::check(
      {"y", {{"n", N}, {"d", D}},
       "[eq 1]  y[n, :] = sum over kept k of gate[n, k] slots[e(n, k), c(n, k), :]"},
      ::combine,
      {{wrong_1::combine, wrong_1::hint},
       {wrong_2::combine, wrong_2::hint},
       {wrong_3::combine, wrong_3::hint},
       {wrong_4::combine, wrong_4::hint}},
      combine(slots, r.gate, r).to_vector(), [&](auto* f) {
        return f(slots.to_vector(), r.gate.to_vector(), r.expert.to_vector(), r.slot.to_vector(), N,
                 K, E, C, D);
      });
}

}  // namespace exercise_7
