// A project of somebody else's, which finds widenet where it was installed.
#include <widenet.hpp>

#include <cstdio>

int main() {
  const widenet::Shape shape = {2, 3};
  const widenet::Tensor<float> x(shape);
#ifdef _OPENMP
  const char* const threads = "with OpenMP";
#else
  const char* const threads = "without OpenMP";
#endif
  std::printf("widenet %s, %d values, %s\n", WIDENET_VERSION,
              static_cast<int>(x.shape().num_values()), threads);
}
