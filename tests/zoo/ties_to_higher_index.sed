# Of equal probabilities the expert with the higher number wins.
# seen in: torch.topk leaves it open (vllm #52679 and #54403); numpy.argsort reversed
# case: moe_ties
# expect: expert, algorithm, a tie
# lines: 4
/^void top_k(/,/^}/ {
  s/Index last_e = -1;/Index last_e = E;/
  s/e > last_e);/e < last_e);/
  s/? T(E - e) : -infinity/? T(e + 1) : -infinity/
  s/? E - static_cast<Index>(index) : k;/? static_cast<Index>(index) - 1 : k;/
}
