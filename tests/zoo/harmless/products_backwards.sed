# The sums of matrix products go from the last term to the first.
# lines: 1
/^void multiply_block(/,/^}/ s/for (Index k = 0; k < p.K; ++k) {/for (Index k = p.K - 1; k >= 0; --k) {/
