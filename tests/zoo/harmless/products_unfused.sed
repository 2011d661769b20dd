# Matrix products round after the multiplication, too.
# lines: 1
/^void multiply_block(/,/^}/ s/c\[j\] = std::fma(a, b\[j \* step\], c\[j\]);/c[j] += a * b[j * step];/
