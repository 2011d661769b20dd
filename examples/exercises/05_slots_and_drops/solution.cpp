// Slots and drops.
#include <vector>

std::vector<int> assign_slots(const std::vector<int>& expert, int N, int K, int E, int C) {
  std::vector<int> slot(N * K), queue(E);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) {
      const int place = queue[expert[n * K + k]]++;
      slot[n * K + k] = place < C ? place : -1;
    }
  return slot;
}
