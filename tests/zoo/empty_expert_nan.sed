# An expert without tokens divides by zero.
# seen in: transformers #48205
# case: moe_empty_expert
# expect: balance_loss, algorithm, not finite
s|const auto f = \[=\](Index e) { return T(count_g\[e\]) / total; };|const auto f = [=](Index e) { return T(count_g[e]) * T(count_g[e]) / T(count_g[e]) / total; };|
