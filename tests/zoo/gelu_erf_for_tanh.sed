# GELU is the one with erf where the weights were trained with that of tanh.
# seen in: transformers #2395; kornia #2786
# case: moe_paper
# expect: results, convention, as with gelu = erf
/^void expert_gelu_forward(/,/^}/ s/if (form == Gelu::tanh)/if (form != form)/
