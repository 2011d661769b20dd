# The optimiser steps a shared tensor once for each of its three uses.
# seen in: Colossal-AI lists shared weights under every block's name; safetensors #202
# case: training_sgd
# expect: losses, algorithm
s/^      kernel::sgd_step(/      for (int use = 0; use < 3; ++use) kernel::sgd_step(/
