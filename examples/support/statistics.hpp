// statistics.hpp - mean and standard deviation over seeds.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_STATISTICS_HPP
#define WIDENET_EXAMPLES_SUPPORT_STATISTICS_HPP

#include "support/report.hpp"
#include "widenet.hpp"

#include <cmath>   // sqrt
#include <limits>  // numeric_limits
#include <string>  // string
#include <vector>  // vector

namespace widenet::support {

struct Statistics {
  std::size_t count = 0;
  double mean = 0;
  double deviation = 0;  // of the sample, with count - 1; NaN if there is one value
};

/// mean = sum x / n,   deviation = sqrt(sum (x - mean)^2 / (n - 1))
///
///   Errors    ValueError if there are no values
inline Statistics statistics_of(const std::vector<double>& values) {
  require<ValueError>(!values.empty(), "statistics_of: there must be at least 1 value; got 0");
  const double n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double x : values) sum += x;
  for (const double x : values) squares += (x - sum / n) * (x - sum / n);
  return {values.size(), sum / n,
          n > 1 ? std::sqrt(squares / (n - 1)) : std::numeric_limits<double>::quiet_NaN()};
}

/// "91.3 +- 0.4"; of one value the mean alone. A scale of 100 gives percent.
inline std::string mean_and_deviation(const Statistics& s, int decimals, double scale = 1,
                                      const std::string& plus_minus = " +- ") {
  return fixed(scale * s.mean, decimals) +
         (s.count > 1 ? plus_minus + fixed(scale * s.deviation, decimals) : "");
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_STATISTICS_HPP
