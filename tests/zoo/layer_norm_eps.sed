# eps of LayerNorm is the library's default, not that of the checkpoint.
# seen in: transformers, AlbertMLMHead: 1e-5 where the configuration says 1e-12
# case: layer_norm
# expect: y, convention, as with eps = 1e-5
/^void layer_norm_forward(/,/^}/ s/std::sqrt(variance + eps)/std::sqrt(variance + T(1e-5) + 0 * eps)/
