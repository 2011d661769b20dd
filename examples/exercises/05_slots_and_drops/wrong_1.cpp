// Slots that are never used up.
#include <vector>

const char* hint =
    "an expert has C slots, 0 to C - 1: who comes later is dropped and has slot -1";

std::vector<int> assign_slots(const std::vector<int>& expert, int N, int K, int E, int C) {
  std::vector<int> slot(N * K), queue(E);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) {
      const int place = queue[expert[n * K + k]]++;
      slot[n * K + k] = place;
    }
  return slot;
}
