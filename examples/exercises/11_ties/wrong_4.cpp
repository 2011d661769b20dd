// Top K with every value once.
#include <vector>

const char* hint =
    "an equal value is a choice of its own: the second of a tie comes before any smaller value";

std::vector<int> top_k(const std::vector<double>& p, int N, int E, int K) {
  std::vector<int> expert;
  for (int n = 0; n < N; ++n) {
    double last = 2;
    for (int k = 0; k < K; ++k) {
      int best = -1;
      for (int e = 0; e < E; ++e)
        if (p[n * E + e] < last && (best < 0 || p[n * E + e] > p[n * E + best])) best = e;
      last = p[n * E + best];
      expert.push_back(best);
    }
  }
  return expert;
}
