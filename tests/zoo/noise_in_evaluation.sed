# The router draws noise in evaluation, too.
# seen in: Colossal-AI 2022; DeepSpeed #8620; MoE-LLaVA #60
# case: encoder_evaluation
# expect: routing.0.probabilities, algorithm
# lines: 2
/  Tensor<T> route_block(/,/^  }/ s/else if (training)$/else/
/  Tensor<T> route_block(/,/^  }/ s/training->stream(Purpose::router_noise, i), rules.noise_scale/Training{Rng(5), 0}.stream(Purpose::router_noise, i), rules.noise_scale/
