// Exercise 8: what balance_loss has to give, and typical mistakes.
[[gnu::weak]] double balance_loss(const std::vector<double>& p, const std::vector<int>& expert,
                                  const std::vector<int>& slot, int N, int K, int E);

namespace exercise_8 {

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
  struct Case { int N, K, E; };
  const std::vector<Case> cases = {{13, 2, 5}, {17, 3, 7}, {11, 2, 3}};
  std::vector<Routing<double>> routings;
  Values expected;
  std::vector<std::string> names;
  for (const Case& c : cases) {
    routings.push_back(route(lopsided_logits(c.N, c.E), {c.K, {3, 5}, {}}));
    expected.push_back(balance_loss(routings.back()).item());
    names.push_back("loss for N = " + std::to_string(c.N) + ", K = " + std::to_string(c.K) +
                    ", E = " + std::to_string(c.E));
  }
  return exercise::check(
      {"loss", {}, "[eq 4]  loss = E * sum over e of m[e] P[e]", names},
      ::balance_loss,
      {{wrong_1::balance_loss, wrong_1::hint},
       {wrong_2::balance_loss, wrong_2::hint},
       {wrong_3::balance_loss, wrong_3::hint},
       {wrong_4::balance_loss, wrong_4::hint},
       {wrong_5::balance_loss, wrong_5::hint},
       {wrong_6::balance_loss, wrong_6::hint}},
      expected, [&](auto* f) {
        Values all;
        for (const Routing<double>& r : routings)
          all.push_back(f(r.probabilities.to_vector(), r.expert.to_vector(), r.slot.to_vector(),
                          int(r.N), int(r.K), int(r.E)));
        return all;
      });
}

}  // namespace exercise_8
