# The means of Adam are not corrected for starting at zero.
# seen in: BERT's and ALBERT's optimisers
# case: optimiser_adamw
# expect: first.a, algorithm
/^class AdamW/,/^};/ s|const T correct2 = T(1 / (1 - std::pow(options_.beta2, t)));|const T correct2 = T(t) / T(t);|
