# f counts what is left after dropping, so that overload hides itself.
# seen in: FastMoE, SwitchGate
# case: moe_overflow
# expect: balance_loss, convention, as with balance = after_drop
s/const bool has_after = rule == BalanceRule::after_drop ||/const bool has_after = rule == BalanceRule::khot_over_k ||/
