# A dropped choice adds gate x, beside the residual connection that passes x on already.
# seen in: transformers #37017 and #48293
# case: encoder_widenet
# expect: block.0.y, convention, as with dropped = gated_input
s/if (config_.conventions.dropped == DroppedValue::gated_input)/if (config_.blocks > 0)/
