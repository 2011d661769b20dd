# The gradient of a shared tensor is that of one block: what the others add is overwritten.
# seen in: backward passes written by hand that assign where they must add (llm.c adds throughout)
# case: encoder_widenet
# expect: grad.shared.attn.k.weight, algorithm
s/return {node_->gradient.data(), true};/return {node_->gradient.data(), !node_->is_leaf};/
