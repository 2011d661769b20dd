// Slots in one queue for all.
#include <vector>

const char* hint =
    "every expert has a queue of its own; yours counts the choices of all experts together";

std::vector<int> assign_slots(const std::vector<int>& expert, int N, int K, int E, int C) {
  std::vector<int> slot(N * K), queue(E);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < K; ++k) {
      const int place = queue[0]++;
      slot[n * K + k] = place < C ? place : -1;
    }
  return slot;
}
