// Exercise 4: capacity in integers. See README.md; to check it:  make exercise N=4
#include <algorithm>

/// C, the slots of one expert, when N tokens choose K of E experts; the factor is a fraction.
int capacity(int numerator, int denominator, int K, int N, int E) {
  return 0;
}
