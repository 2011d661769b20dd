// Tests that a program of two translation units, this one and link_a.cpp, is one program.
#include "check.hpp"

using namespace widenet;

Tensor<double> square_elsewhere(const Tensor<double>& x);
Index memory_in_use_elsewhere();

TEST_CASE("link: a graph crosses translation units") {
  const auto x = check::tensor({1}, {3}).require_gradient();
  const auto y = square_elsewhere(2.0 * x);
  CHECK(y.item() == 36);
  y.backward();
  CHECK(x.gradient().to_vector() == std::vector<double>{24});
}

TEST_CASE("link: NoGrad reaches other translation units") {
  const auto x = check::tensor({1}, {3}).require_gradient();
  const NoGrad no_graph;
  CHECK_FALSE(square_elsewhere(x).needs_gradient());
}

TEST_CASE("link: there is one pool of memory") {
  const Index before = memory_in_use_elsewhere();
  const Buffer<float> buffer(1000);
  CHECK(memory_in_use_elsewhere() == before + 4096);
  CHECK(memory_in_use_elsewhere() == memory_use().in_use);
}
