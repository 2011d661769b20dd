# The gate is the noisy probability where the clean one is meant.
# seen in: ports of DeepSpeed, whose noise decides about the choice alone
# case: moe_clean_gate
# expect: gate, convention, as with gate_sees_noise = true
s/select_gates(rules.gate_sees_noise ? r.probabilities : clean,/select_gates(r.probabilities,/
