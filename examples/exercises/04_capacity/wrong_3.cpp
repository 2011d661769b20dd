// Capacity that may be 0.

const char* hint = "an expert has one slot at least: max(1, ...)";

int capacity(int numerator, int denominator, int K, int N, int E) {
  return numerator * K * N / (denominator * E);
}
