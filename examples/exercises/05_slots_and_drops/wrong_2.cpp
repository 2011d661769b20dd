// Slots for first choices first.
#include <vector>

const char* hint =
    "all choices of a token are served together, token after token: no first choices first";

std::vector<int> assign_slots(const std::vector<int>& expert, int N, int K, int E, int C) {
  std::vector<int> slot(N * K), queue(E);
  for (int k = 0; k < K; ++k)
    for (int n = 0; n < N; ++n) {
      const int place = queue[expert[n * K + k]]++;
      slot[n * K + k] = place < C ? place : -1;
    }
  return slot;
}
