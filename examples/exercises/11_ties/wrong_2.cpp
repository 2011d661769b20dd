// Top K with an expert chosen twice.
#include <algorithm>
#include <vector>

const char* hint =
    "in a tie you choose the same expert twice: remember who is chosen, not which value";

std::vector<int> top_k(const std::vector<double>& p, int N, int E, int K) {
  std::vector<int> expert;
  for (int n = 0; n < N; ++n) {
    std::vector<double> values(p.begin() + n * E, p.begin() + (n + 1) * E);
    std::sort(values.rbegin(), values.rend());
    for (int k = 0; k < K; ++k) {
      int best = 0;
      while (p[n * E + best] != values[k]) ++best;
      expert.push_back(best);
    }
  }
  return expert;
}
