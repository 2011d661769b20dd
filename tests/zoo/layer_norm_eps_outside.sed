# eps is added to the deviation, outside of the root.
# seen in: harvardnlp/annotated-transformer
# case: layer_norm_wide_eps
# expect: y, algorithm
/^void layer_norm_forward(/,/^}/ s/std::sqrt(variance + eps)/(std::sqrt(variance) + eps)/
