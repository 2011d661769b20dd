# A token that loses one expert gives the other its weight.
# seen in: DeepSpeed, top2gating
# case: moe_overflow
# expect: gate, convention, as with gate = renormalized_after_drop
s/if (rules.gate == now) r.gate = renormalize/if (now != GateRule::renormalized) r.gate = renormalize/
