# The capacity is computed and nothing is dropped: every expert has a slot for every token.
# seen in: transformers #48293, whose cumulative sum goes along an axis of one element
# case: moe_overflow
# expect: slot, convention, as with capacity_rule = dropless
s/== CapacityRule::choices_over_experts) C = divide(above \* K \* N, below \* E);/== CapacityRule::choices_over_experts) C = N;/
