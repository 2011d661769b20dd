# The balance loss is computed, but not added to the loss.
# seen in: transformers #28255 and #29503; trl #4070
# case: vision_widenet
# expect: loss, algorithm, without the balance loss
s/return main + lambda \* balance;/return main + 0.0 * lambda * balance;/
