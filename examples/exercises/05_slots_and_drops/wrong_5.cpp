// Slots with the last one left empty.
#include <vector>

const char* hint =
    "the last slot stays empty; so it does in the authors' code, but not in the equation";

std::vector<int> assign_slots(const std::vector<int>& expert, int N, int K, int E, int C) {
  std::vector<int> slot(N * K), queue(E);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) {
      const int place = queue[expert[n * K + k]]++;
      slot[n * K + k] = place + 1 < C ? place : -1;
    }
  return slot;
}
