// What the checkers of the exercises share: inputs, comparison, report.
#ifndef WIDENET_EXERCISES_EXERCISE_HPP
#define WIDENET_EXERCISES_EXERCISE_HPP

#include "widenet.hpp"

#include <cmath>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

namespace exercise {

using namespace widenet;

using Values = std::vector<double>;
using Integers = std::vector<int>;

/// Normal random values; another stream gives other values.
inline Tensor<double> randn(const Shape& shape, Index stream) {
  return Tensor<double>::randn(shape, Rng(7).at_step(stream));
}

/// Logits (N, E) with which everybody likes expert 0 and few like the last one.
inline Tensor<double> lopsided_logits(int N, int E, Index stream = 40) {
  Values z = randn({N, E}, stream).to_vector();
  for (std::size_t i = 0; i < z.size(); ++i) {
    const int e = static_cast<int>(i) % E;
    z[i] += e == 0 ? 1 : e == E - 1 ? -2 : 0;
  }
  return {Shape{N, E}, z};
}

/// 13 tokens choose K = 2 of 5 experts with C = floor(3/5 * 2 * 13 / 5) = 3 slots each: some
/// choices are dropped, some slots stay empty.
inline Routing<double> lopsided_routing() {
  RouteOptions options;
  options.K = 2;
  options.capacity_factor = {3, 5};
  return route(lopsided_logits(13, 5), options);
}

/// An axis of a result: the letter of its index, and its size.
struct Axis {
  const char* index;
  int size;
};

/// What a function has to return: a name, axes, and the equation that says what it is. Where the
/// function is called several times, `cases` names the calls, one for each element.
struct Question {
  const char* result;
  std::vector<Axis> axes;
  const char* equation;
  std::vector<std::string> cases = {};

  /// "dx[n = 2, d = 4]"
  std::string element(int i) const {
    if (!cases.empty()) return cases[static_cast<std::size_t>(i)];
    std::string text;
    for (std::size_t a = axes.size(); a-- > 0; i /= axes[a].size)
      text = std::string(a == 0 ? "[" : ", ") + axes[a].index + " = " +
             std::to_string(i % axes[a].size) + text;
    return result + text + "]";
  }
  /// "7 * 5"
  std::string size() const {
    std::string text;
    for (const Axis& axis : axes) text += (text.empty() ? "" : " * ") + std::to_string(axis.size);
    return text;
  }
};

/// A typical mistake: a function that makes it, and the hint for those who make it, too.
template <class Function>
struct Mistake {
  Function* function;
  const char* hint;
};

inline bool agree(int a, int b) { return a == b; }
inline bool agree(double a, double b) { return std::fabs(a - b) <= 1e-9 * (1 + std::fabs(b)); }

/// The first element in which they disagree; their size if there is none.
template <class T>
std::size_t first_difference(const std::vector<T>& got, const std::vector<T>& expected) {
  std::size_t i = 0;
  while (i < expected.size() && agree(got[i], expected[i])) ++i;
  return i;
}

/// Runs the attempt, and says whether it is right; if not, where it goes wrong first, and the hint
/// of the mistake that leads to the same result.
///
/// `run` calls the function that it is given and returns what came of it.
template <class Function, class T, class Run>
bool check(const Question& question, Function* attempt,
           const std::vector<Mistake<Function>>& mistakes, const std::vector<T>& expected,
           Run run) {
  if (!attempt) {
    std::printf("not found: the file defines no function with the name and the parameters of the "
                "one in stub.cpp\n");
    return false;
  }
  const std::vector<T> got = run(attempt);
  bool is_zero = true;
  for (const T value : got) is_zero = is_zero && agree(value, T(0));
  if (is_zero) {
    std::printf("not done yet: %s %s\n", question.result, got.empty() ? "is empty" : "is 0");
    return false;
  }
  if (got.size() != expected.size()) {
    std::printf("wrong\n  %s has %zu values; it must have %s = %zu\n", question.result,
                got.size(), question.size().c_str(), expected.size());
    return false;
  }
  const std::size_t at = first_difference(got, expected);
  if (at == expected.size()) {
    std::printf("right, all %zu values\n", at);
    return true;
  }
  const char* const form = std::is_same<T, int>::value ? "%.0f" : "%.9g";
  char right[32], wrong[32];
  std::snprintf(right, sizeof right, form, double(expected[at]));
  std::snprintf(wrong, sizeof wrong, form, double(got[at]));
  std::printf("wrong\n  %s: expected %s, got %s\n  %s\n",
              question.element(static_cast<int>(at)).c_str(), right, wrong, question.equation);
  for (const Mistake<Function>& mistake : mistakes)
    if (first_difference(got, run(mistake.function)) == got.size()) {
      std::printf("  hint: %s\n", mistake.hint);
      break;
    }
  return false;
}

}  // namespace exercise

#endif
