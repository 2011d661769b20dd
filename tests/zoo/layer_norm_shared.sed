# All blocks use the LayerNorms of the first one.
# seen in: WideNet as a loop over one ALBERT layer, which has them inside
# case: encoder_widenet
# expect: block.1.norm1, algorithm
s/return layers\[layers.size() == 1 ? 0 : static_cast<std::size_t>(i)\];/return layers[0 * static_cast<std::size_t>(i)];/
