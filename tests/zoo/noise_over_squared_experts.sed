# Noise of deviation 1 / E^2 where 1 / E is meant.
# seen in: Colossal-AI
# case: balance_load
# expect: balance_loss, convention, as with router_noise = one_over_experts_squared
s|RouterNoise::one_over_experts           ? noise_scale / double(E)$|RouterNoise::one_over_experts           ? noise_scale / double(E * E)|
