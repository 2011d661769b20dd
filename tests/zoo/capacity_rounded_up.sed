# The capacity is rounded up where it is to be rounded down.
# seen in: V-MoE, DeepSpeed; 39 slots in place of 38 for 64 tokens
# case: moe_tokens_first
# expect: slots, convention, as with capacity_rounding = ceil
s/return c.capacity_rounding == Rounding::ceil ? up(a, b) : a \/ b;/return up(a, b);/
