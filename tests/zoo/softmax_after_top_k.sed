# The softmax goes over the K chosen logits: the gates of a token add up to 1.
# seen in: Megatron-LM #894 and #955; FastMoE, NaiveGate
# case: moe_paper
# expect: gate, convention, as with gate = renormalized:
s/if (rules.gate == now) r.gate = renormalize/if (now == GateRule::renormalized) r.gate = renormalize/
