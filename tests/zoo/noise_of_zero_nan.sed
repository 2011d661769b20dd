# The load divides by the deviation of the noise, which in evaluation is 0.
# seen in: FastMoE #180; davidmrau/mixture-of-experts #9
# case: moe_evaluation
# settings: "balance":"load"
# expect: balance_loss, algorithm, not finite
# lines: 2
s/^  r.noise_deviation = rules.noise_deviation(r.E);/  r.noise_deviation = noise.size() > 0 ? rules.noise_deviation(r.E) : 0;/
/^Tensor<T> win_probabilities(/,/^}/ s/require<ValueError>(r.noise_deviation > 0,/require<ValueError>(r.noise_deviation >= 0,/
