# The means of Adam are not corrected for starting at zero.
# seen in: BERT's and ALBERT's optimisers
# case: optimiser_adamw
# expect: first.a, algorithm
/ adam_direction(/,/^}/ s|return T(1 / (1 - std::pow(beta, double(t))));|return T(t) / T(t);|
