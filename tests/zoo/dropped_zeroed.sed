# A token that lost all its choices becomes zero: the residual connection does not pass it on.
# seen in: MoE layers put in place of a residual FFN as a whole
# case: encoder_routing_groups
# expect: block.0.y, algorithm
# lines: 7
/^      tokens.forget();$/ i\
      {\
        const std::vector<bool> is_lost = routing.dropped();\
        std::vector<T> minus(static_cast<std::size_t>(all.size()), T(0));\
        for (std::size_t at = 0; at < minus.size(); ++at) {\
          const std::size_t n = at / static_cast<std::size_t>(config_.width);\
          if (is_lost[2 * n] && is_lost[2 * n + 1]) minus[at] = T(-1);\
        } y = y + multiply(x.reshaped(all.shape()), Tensor<T>(all.shape(), minus)); }
