# All first choices are served before all second ones.
# seen in: V-MoE, Mesh TensorFlow, DeepSpeed; WideNet's authors go token by token
# case: moe_overflow
# expect: slot, convention, as with priority = choice_major
s/if (priority == Priority::token_major || (priority == Priority::random && !rng)) return {};/if (priority == Priority::token_major) priority = Priority::choice_major;/
