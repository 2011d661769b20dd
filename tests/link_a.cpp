// The second translation unit of test_link.cpp: both include the header, and they link. This one
// has seen the macro I of C's complex numbers before.
#include <complex.h>

#include "widenet.hpp"

widenet::Tensor<double> square_elsewhere(const widenet::Tensor<double>& x) {
  return widenet::multiply(x, x);
}

widenet::Index memory_in_use_elsewhere() { return widenet::memory_use().in_use; }
