# The weights of the experts are stacked in the reverse order, their biases are not.
# seen in: importers that sort names as text: experts.10 before experts.2
# case: moe_paper
# expect: results, algorithm
s/return Matrix<const T>{w.data(), w.shape()\[2\], w.shape()\[1\] \* w.shape()\[2\]};/return Matrix<const T>{w.data() + (E - 1) * w.shape()[1] * w.shape()[2], w.shape()[2], -w.shape()[1] * w.shape()[2]};/
s/const auto weight = \[\](const Tensor<T>& w) {/const auto weight = [E](const Tensor<T>\& w) {/
# lines: 2
