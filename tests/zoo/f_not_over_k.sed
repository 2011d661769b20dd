# f adds up to K: the division by K is missing.
# seen in: transformers, Mixtral; K times the intended weight
# case: moe_paper
# expect: balance_loss, convention, as with balance = khot_sum
s/rule == BalanceRule::khot_over_k ? n \* N \* K : n \* N;/n * N;/
