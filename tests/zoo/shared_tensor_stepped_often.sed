# The optimiser steps a shared tensor once for each of the two blocks that use it.
# seen in: Colossal-AI lists shared weights under every block's name; safetensors #202
# case: training_sgd
# expect: losses, algorithm
s/^      kernel::sgd_step(/      for (int use = this->parameters_[i].name.rfind("shared.", 0) == 0 ? 0 : 1; use < 2; ++use) kernel::sgd_step(/
