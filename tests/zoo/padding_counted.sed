# Padding takes slots and counts in f and P.
# seen in: transformers #28505; Megatron-LM #1984
# case: language_evaluation
# settings: "routes_padding":false
# expect: routing.0.logits, convention, as with routes_padding = true
s/const bool all_are_routed = batch.mask.empty() ||.*/const bool all_are_routed = true;/
