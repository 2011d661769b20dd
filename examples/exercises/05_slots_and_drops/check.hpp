// Exercise 5: what assign_slots has to give, and typical mistakes.
[[gnu::weak]] std::vector<int> assign_slots(const std::vector<int>& expert, int N, int K, int E,
                                            int C);

namespace exercise_5 {

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
  const Routing<double> r = lopsided_routing();
  const int N = int(r.N), K = int(r.K), E = int(r.E), C = int(r.C);
  return exercise::check(
      {"slot", {{"n", N}, {"k", K}},
       "[eq 3]  slot(n, k) = choices of the same expert served before, or -1 if that is >= C"},
      ::assign_slots,
      {{wrong_1::assign_slots, wrong_1::hint},
       {wrong_2::assign_slots, wrong_2::hint},
       {wrong_3::assign_slots, wrong_3::hint},
       {wrong_4::assign_slots, wrong_4::hint},
       {wrong_5::assign_slots, wrong_5::hint},
       {wrong_6::assign_slots, wrong_6::hint}},
      r.slot.to_vector(), [&](auto* f) { return f(r.expert.to_vector(), N, K, E, C); });
}

}  // namespace exercise_5
