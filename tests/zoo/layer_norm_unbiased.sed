# The variance of LayerNorm is divided by D - 1.
# seen in: harvardnlp/annotated-transformer
# case: layer_norm
# expect: y, algorithm
/^void layer_norm_forward(/,/^}/ s|(x_n\[d\] - m); }) / T(D);|(x_n[d] - m); }) / T(D - 1);|
