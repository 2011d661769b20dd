# Rows, and columns over the tokens of a batch, are added up from the last term to the first.
# lines: 3
s/combine(partial\[l\], f(i + l))/combine(partial[l], f(rest - 1 - i - l))/
s/combine(partial\[i - rest\], f(i))/combine(partial[i - rest], f(n - 1 + rest - i))/
/^void column_sums(/,/^}/ {
  s/value(g, begin + n, first + l)/value(g, begin + rows - 1 - n, first + l)/
}
