// Five tokens, three experts, two choices each: a mixture of experts to check on paper, with drops.
#include "widenet.hpp"

#include <cmath>
#include <cstdio>

namespace wn = widenet;

int main() {
  // Router probabilities; their logarithms are logits, since softmax(log p) = p.
  const std::vector<double> p = {0.6, 0.3, 0.1,   // token 0 chooses experts 0 and 1
                                 0.5, 0.1, 0.4,   // token 1: 0 and 2
                                 0.7, 0.2, 0.1,   // token 2: 0 and 1
                                 0.2, 0.5, 0.3,   // token 3: 1 and 2
                                 0.4, 0.4, 0.2};  // token 4: a tie, so 0 before 1
  std::vector<double> logits;
  for (const double value : p) logits.push_back(std::log(value));

  wn::RouteOptions options;
  options.K = 2;
  options.capacity_factor = {3, 5};  // C = floor(3/5 * K * N / E) = floor(6/5 * 5/3) = 2 slots
  const wn::Routing<double> routing =
      wn::route(wn::Tensor<double>({5, 3}, logits).require_gradient(), options);

  std::printf("capacity C = %td slots per expert\n\n", routing.C);
  std::printf("token  choice  expert  gate  slot\n");
  const auto expert = routing.expert.to_vector(), slot = routing.slot.to_vector();
  const auto gate = routing.gate.to_vector();
  for (std::size_t i = 0; i < expert.size(); ++i)
    std::printf("%5zu  %6zu  %6d  %.2f  %s\n", i / 2, i % 2, expert[i], gate[i],
                slot[i] < 0 ? "dropped" : std::to_string(slot[i]).c_str());

  // Balance loss: E * sum over e of m[e] P[e], m counted before dropping.
  const auto load = routing.load.to_vector(), kept = routing.kept.to_vector();
  const auto importance = routing.importance.to_vector();
  std::printf("\nexpert  load  kept  m[e]  P[e]\n");
  double by_hand = 0;
  for (std::size_t e = 0; e < 3; ++e) {
    const double m = load[e] / 10.0, P = importance[e] / 5;
    by_hand += 3 * m * P;
    std::printf("%6zu  %4d  %4d  %.2f  %.2f\n", e, load[e], kept[e], m, P);
  }
  std::printf("balance loss %.4f, by hand %.4f\n", wn::balance_loss(routing).item(), by_hand);

  // Expert e multiplies by e + 1; a token with value 1 gets the sum of gate * (e + 1) over its kept
  // choices. Token 4 loses both choices and gets 0: a residual connection would pass it on.
  const wn::Tensor<double> slots = wn::dispatch(wn::Tensor<double>::full({5, 1}, 1), routing);
  std::vector<double> results = slots.to_vector();
  for (std::size_t i = 0; i < results.size(); ++i)
    results[i] *= static_cast<double>(i / static_cast<std::size_t>(routing.C)) + 1;
  const wn::Tensor<double> y =
      wn::combine(wn::Tensor<double>(slots.shape(), results), routing.gate, routing);
  std::printf("\ntoken  result\n");
  const std::vector<double> values = y.to_vector();
  for (std::size_t n = 0; n < 5; ++n) std::printf("%5zu  %.2f\n", n, values[n]);
}
