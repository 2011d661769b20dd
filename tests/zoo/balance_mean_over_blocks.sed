# The mean over blocks where their sum is meant: the same lambda is N times weaker.
# seen in: megablocks, transformers; WideNet sums
# case: encoder_widenet
# expect: balance_loss, convention, as with balance_reduction = mean
s/return rules.reduction == Reduction::sum ? total : 1 \/ double(losses.size()) \* total;/return 1 \/ double(losses.size()) * total;/
