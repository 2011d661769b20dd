// Ties.
#include <vector>

std::vector<int> top_k(const std::vector<double>& p, int N, int E, int K) {
  std::vector<int> expert;
  for (int n = 0; n < N; ++n) {
    std::vector<bool> is_chosen(E);
    for (int k = 0; k < K; ++k) {
      int best = -1;
      for (int e = 0; e < E; ++e)
        if (!is_chosen[e] && (best < 0 || p[n * E + e] > p[n * E + best])) best = e;
      is_chosen[best] = true;
      expert.push_back(best);
    }
  }
  return expert;
}
