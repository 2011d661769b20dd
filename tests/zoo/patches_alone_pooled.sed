# The mean goes over the patches, without the class token.
# seen in: timm, global_pool="avg"; WideNet's authors take it along
# case: vision_widenet
# expect: logits, convention, as with pooling = patch_mean
s/c.pooling == Pooling::mean ? mean_tokens(out.tokens)/c.pooling == Pooling::mean ? mean_tokens(slice_tokens(out.tokens, 1, num_patches))/
