// Exercise 3: what noisy_top_k has to give, and typical mistakes.
[[gnu::weak]] std::vector<double> noisy_top_k(const std::vector<double>& z,
                                              const std::vector<double>& normal, int N, int E,
                                              int K);

namespace exercise_3 {

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
  const int N = 7, E = 5, K = 2;
  const Tensor<double> z = randn({N, E}, 0), draws = randn({N, E}, 1);
  Values noise = draws.to_vector();
  for (double& value : noise) value /= E;
  const Routing<double> r = route(z, {}, Buffer<double>(noise));
  const Values gate = r.gate.to_vector();
  const Integers expert = r.expert.to_vector();
  Values expected(static_cast<std::size_t>(N * E));
  for (std::size_t i = 0; i < gate.size(); ++i)
    expected[i / K * E + static_cast<std::size_t>(expert[i])] = gate[i];
  return exercise::check(
      {"g", {{"n", N}, {"e", E}},
       "[eq 2]  g = TopK(softmax(z + noise)),  noise N(0, 1/E^2), not renormalised"},
      ::noisy_top_k,
      {{wrong_1::noisy_top_k, wrong_1::hint},
       {wrong_2::noisy_top_k, wrong_2::hint},
       {wrong_3::noisy_top_k, wrong_3::hint},
       {wrong_4::noisy_top_k, wrong_4::hint},
       {wrong_5::noisy_top_k, wrong_5::hint}},
      expected, [&](auto* f) { return f(z.to_vector(), draws.to_vector(), N, E, K); });
}

}  // namespace exercise_3
