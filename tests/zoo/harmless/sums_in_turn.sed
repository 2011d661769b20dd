# Rows are added up term by term, not in 32 lanes.
# lines: 2
/  static T reduce(Index n, T start, F f, Combine combine) {/,/^  }/ {
  /WIDENET_INDEPENDENT/ d
  s/partial\[l\] = combine(partial\[l\]/partial[0] = combine(partial[0]/
  s/partial\[i - rest\] = combine(partial\[i - rest\]/partial[0] = combine(partial[0]/
}
