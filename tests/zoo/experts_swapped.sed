# The experts are stacked in the reverse order; the router still knows them by the old numbers.
# seen in: importers that sort names as text: experts.10 before experts.2
# case: moe_paper
# expect: results, layout, as with the experts in the order 3, 2, 1, 0
# lines: 4
s/  const auto weight = \[\](const Tensor<T>& w) {/  const auto weight = [E](const Tensor<T>\& w) {/
s/return Matrix<const T>{w.data(), w.shape()\[2\], w.shape()\[1\] \* w.shape()\[2\]};/return Matrix<const T>{w.data() + (E - 1) * w.shape()[1] * w.shape()[2], w.shape()[2], -w.shape()[1] * w.shape()[2]};/
s/  const auto row = \[\](const Tensor<T>& b) {/  const auto row = [E](const Tensor<T>\& b) {/
s/return Matrix<const T>{b.data(), b.shape()\[1\], b.shape()\[1\]};/return Matrix<const T>{b.data() + (E - 1) * b.shape()[1], b.shape()[1], -b.shape()[1]};/
