# With K = 1 the gate is renormalised: always 1, so the router learns nothing from the task.
# seen in: Megatron-LM #894 and #955
# case: moe_one_choice
# expect: gate, convention, as with gate = renormalized: then all agrees
s/if (rules.gate == now) r.gate = renormalize/if (r.K == 1 \&\& now == GateRule::renormalized) r.gate = renormalize/
