// Exercise 4: what capacity has to give, and typical mistakes.
[[gnu::weak]] int capacity(int numerator, int denominator, int K, int N, int E);

namespace exercise_4 {

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
  struct Case { int numerator, denominator, K, N, E; };
  const std::vector<Case> cases = {{6, 5, 2, 23, 5}, {6, 5, 1, 5, 7},    {1, 13, 2, 3, 5},
                                   {7, 5, 2, 85, 7}, {13, 10, 2, 45, 3}, {6, 5, 2, 197, 4}};
  Integers expected;
  std::vector<std::string> names;
  for (const Case& c : cases) {
    expected.push_back(
        static_cast<int>(expert_capacity({c.numerator, c.denominator}, c.K, c.N, c.E)));
    names.push_back("capacity(" + std::to_string(c.numerator) + ", " +
                    std::to_string(c.denominator) + ", K = " + std::to_string(c.K) + ", N = " +
                    std::to_string(c.N) + ", E = " + std::to_string(c.E) + ")");
  }
  return exercise::check(
      {"C", {}, "[eq 3]  C = max(1, floor(factor K N / E))", names},
      ::capacity,
      {{wrong_1::capacity, wrong_1::hint},
       {wrong_2::capacity, wrong_2::hint},
       {wrong_3::capacity, wrong_3::hint},
       {wrong_4::capacity, wrong_4::hint},
       {wrong_5::capacity, wrong_5::hint},
       {wrong_6::capacity, wrong_6::hint}},
      expected, [&](auto* f) {
        Integers all;
        for (const Case& c : cases) all.push_back(f(c.numerator, c.denominator, c.K, c.N, c.E));
        return all;
      });
}

}  // namespace exercise_4
