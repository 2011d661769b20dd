# The means of Adam are not corrected for starting at zero.
# seen in: BERT's and ALBERT's optimisers
# case: optimiser_adamw
# expect: first.a, algorithm
# lines: 2
/^class AdamW/,/^};/ s|= T(1 / (1 - std::pow(options_.beta\([12]\), t)));|= T(t) / T(t);|
