# The balance loss is added twice, by the model and by the trainer.
# seen in: transformers #44242; megablocks #113
# case: vision_widenet
# expect: loss, algorithm, the balance loss counts twice
s/return main + lambda \* balance;/return main + 2.0 * lambda * balance;/
