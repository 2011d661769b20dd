# Attention looks at padding.
# seen in: every port that loses the mask on the way; transformers #2401: results change with
# the other sequences of a batch
# case: attention_masked
# expect: y, algorithm
s/const std::uint8_t\* mask = key_mask ? .*/const std::uint8_t* mask = key_mask \&\& T_ < 0 ? key_mask : nullptr;/
