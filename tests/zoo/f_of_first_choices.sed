# f counts the first choices alone, though K = 2.
# seen in: Mesh TensorFlow, DeepSpeed, Tutel; wrong for the loss of WideNet's authors
# case: moe_paper
# expect: balance_loss, convention, as with balance = switch_top1
# lines: 2
s/const bool has_first = rule == BalanceRule::switch_top1,/const bool has_first = true,/
s/rule == BalanceRule::khot_over_k ? n \* N \* K : n \* N;/n * N;/
