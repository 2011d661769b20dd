// Capacity that forgets the choices.
#include <algorithm>

const char* hint = "every token makes K choices: K N of them are to be shared out, not N";

int capacity(int numerator, int denominator, int K, int N, int E) {
  return std::max(1, numerator * N / (denominator * E));
}
