# The factor E is missing: the loss of a balanced load is 1 / E.
# seen in: copies of E sum f P that take the mean over experts for the sum
# case: moe_paper
# expect: balance_loss, algorithm, 0.25 times ours
s/if (team.first()) loss\[g\] = T(E) \* dot;/if (team.first()) loss[g] = dot;/
