// Tests for examples/support/statistics.hpp: mean and deviation over seeds.
#include "examples/support/statistics.hpp"

#include <doctest/doctest.h>

#include <cmath>

using namespace widenet;
using namespace widenet::support;

TEST_CASE("statistics over seeds, worked by hand") {
  const Statistics s = statistics_of({2, 4, 9});  // mean 5; squares 9 + 1 + 16 = 26, over 2
  CHECK(s.count == 3);
  CHECK(s.mean == 5);
  CHECK(s.deviation == std::sqrt(13.0));
  CHECK(mean_and_deviation(s, 2) == "5.00 +- 3.61");
  CHECK(mean_and_deviation(s, 0, 100) == "500 +- 361");

  const Statistics one = statistics_of({0.25});
  CHECK(one.mean == 0.25);
  CHECK(std::isnan(one.deviation));
  CHECK(mean_and_deviation(one, 2) == "0.25");
  CHECK_THROWS_WITH_AS(statistics_of({}),
                       "widenet: statistics_of: there must be at least 1 value; got 0", ValueError);
}
