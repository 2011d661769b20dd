# LayerNorm divides by the deviation, softmax by the sum, instead of multiplying by 1 / x.
# lines: 6
/^void layer_norm_forward(/,/^}/ s/(x_n\[d\] - m) \* r \*/(x_n[d] - m) \/ std::sqrt(variance + eps) */
s/const T factor = T(1) \/ team.sum/const T factor = team.sum/
s/y_n\[d\] \*= factor;/y_n[d] \/= factor;/
s/p_n\[e\] \*= factor;/p_n[e] \/= factor;/
s/p\[i\] \*= factor;/p[i] = total > T(0) ? p[i] \/ total : T(0);/
