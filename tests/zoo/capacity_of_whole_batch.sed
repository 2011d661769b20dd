# The sequences of a batch share capacity, so its other sequences change who is dropped.
# seen in: FastMoE #83; Tutel #230 and #250
# case: moe_mesh_top2
# expect: slot, convention, as with capacity_sequences = 0
s/const Index group = options.group_tokens > 0 ? options.group_tokens : r.N;/const Index group = options.group_tokens > r.N ? options.group_tokens : r.N;/
