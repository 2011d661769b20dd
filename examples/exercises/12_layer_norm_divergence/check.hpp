// Exercise 12: what layer_norm_divergence has to give, and typical mistakes.
[[gnu::weak]] double layer_norm_divergence(const std::vector<double>& x, int L, int D);

namespace exercise_12 {

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
  struct Case { int L, D; };
  const std::vector<Case> cases = {{3, 5}, {5, 7}, {2, 11}};
  std::vector<Values> x;
  Values expected;
  std::vector<std::string> names;
  for (const Case& c : cases) {
    x.push_back(randn({c.L, c.D}, c.L).to_vector());
    std::vector<Values> rows;
    for (int l = 0; l < c.L; ++l)
      rows.emplace_back(x.back().begin() + l * c.D, x.back().begin() + (l + 1) * c.D);
    expected.push_back(layer_norm_divergence(rows));
    names.push_back("y for L = " + std::to_string(c.L) + ", D = " + std::to_string(c.D));
  }
  return exercise::check(
      {"y", {}, "[eq 8]  y = mean over l, d and over j != l, i of (x[l, d] - x[j, i])^2", names},
      ::layer_norm_divergence,
      {{wrong_1::layer_norm_divergence, wrong_1::hint},
       {wrong_2::layer_norm_divergence, wrong_2::hint},
       {wrong_3::layer_norm_divergence, wrong_3::hint},
       {wrong_4::layer_norm_divergence, wrong_4::hint},
       {wrong_5::layer_norm_divergence, wrong_5::hint}},
      expected, [&](auto* f) {
        Values all;
        for (std::size_t i = 0; i < x.size(); ++i) all.push_back(f(x[i], cases[i].L, cases[i].D));
        return all;
      });
}

}  // namespace exercise_12
