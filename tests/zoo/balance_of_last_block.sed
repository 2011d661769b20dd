# Of the losses of all blocks only the last is kept.
# seen in: megablocks #85: which layers count depends on a list that others clear
# case: encoder_widenet
# expect: balance_loss, algorithm, our balance_losses.
s/return rules.reduction == Reduction::sum ? total : 1 \/ double(losses.size()) \* total;/return losses.back();/
