// Tests for chapter 5: mathematics.
#include "check.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace wn = widenet;

// Known values are from 50-digit arithmetic, and the bounds are the errors that the header states.

namespace {

/// |y - truth| in units in the last place of the true value, as T would have it.
template <class T>
double ulp_error(T y, long double truth) {
  if (static_cast<long double>(y) == truth) return 0;
  int exponent = 0;
  std::frexp(truth, &exponent);
  exponent = std::max(exponent, std::numeric_limits<T>::min_exponent);
  const long double ulp = std::ldexp(1.0L, exponent - std::numeric_limits<T>::digits);
  return static_cast<double>(std::fabs(static_cast<long double>(y) - truth) / ulp);
}

/// The largest error of f against g at n arguments from low to high. NaN counts as infinite.
template <class T, class F, class G>
double max_ulp_error(F f, G g, double low, double high, int n = 20011) {
  double worst = 0;
  for (int i = 0; i <= n; ++i) {
    const T x = static_cast<T>(low + (high - low) * i / n);
    const double error = ulp_error(f(x), g(static_cast<long double>(x)));
    if (!(error <= worst)) worst = error == error ? error : HUGE_VAL;
  }
  return worst;
}

/// The same at n arguments +-2^e, e from low to high.
template <class T, class F, class G>
double max_ulp_error_of_powers(F f, G g, double low, double high, bool negative = false) {
  const T sign = static_cast<T>(negative ? -1 : 1);
  const auto at = [sign](auto e) { return sign * static_cast<T>(std::exp2(double(e))); };
  return max_ulp_error<double>(
      [&](double e) { return static_cast<T>(f(at(e))); },
      [&](long double e) { return g(static_cast<long double>(at(e))); }, low, high);
}

const long double two_pi = 6.283185307179586476925286766559L;
const long double root_8_over_pi = 1.595769121605730711759784239738L;  // 2 sqrt(2 / pi)

long double exact_normal_cdf(long double x) { return std::erfc(-x * std::sqrt(0.5L)) / 2; }
long double exact_gelu_erf(long double x) { return x * exact_normal_cdf(x); }
long double exact_gelu_erf_derivative(long double x) {
  return exact_normal_cdf(x) + x * std::exp(-x * x / 2) / std::sqrt(two_pi);
}
long double exact_gelu_tanh(long double x) {
  return x / (1 + std::exp(-root_8_over_pi * (x + 0.044715L * x * x * x)));
}
long double exact_gelu_tanh_derivative(long double x) {
  const long double e = std::exp(-root_8_over_pi * (x + 0.044715L * x * x * x)), s = 1 / (1 + e);
  return s + x * root_8_over_pi * (1 + 3 * 0.044715L * x * x) * e * s * s;
}

// Each function of wn::math as an object, to be called with float and with double.
const auto exp_ = [](auto x) { return wn::math::exp(x); };
const auto tanh_ = [](auto x) { return wn::math::tanh(x); };
const auto erf_ = [](auto x) { return wn::math::erf(x); };
const auto log_ = [](auto x) { return wn::math::log(x); };
const auto sin_2pi_ = [](double u) { return wn::math::sin_2pi(u); };
const auto cos_2pi_ = [](double u) { return wn::math::cos_2pi(u); };
const auto gelu_erf_ = [](auto x) { return wn::math::gelu_erf(x); };
const auto gelu_tanh_ = [](auto x) { return wn::math::gelu_tanh(x); };
const auto gelu_erf_derivative_ = [](auto x) { return wn::math::gelu_erf_derivative(x); };
const auto gelu_tanh_derivative_ = [](auto x) { return wn::math::gelu_tanh_derivative(x); };

const auto exact_exp = [](long double x) { return std::exp(x); };
const auto exact_tanh = [](long double x) { return std::tanh(x); };
const auto exact_erf = [](long double x) { return std::erf(x); };
const auto exact_log = [](long double x) { return std::log(x); };

template <class T> constexpr T infinity = std::numeric_limits<T>::infinity();
template <class T> constexpr T not_a_number = std::numeric_limits<T>::quiet_NaN();

}  // namespace

TEST_CASE("math: known values") {
  namespace m = wn::math;
  CHECK(m::exp(0.0) == 1.0);
  CHECK(m::exp(1.0) == 2.718281828459045);
  CHECK(m::exp(1.0f) == 2.7182817f);
  CHECK(ulp_error(m::exp(-10.0), 4.5399929762484851535591515560551e-5L) <= 0.85);
  CHECK(m::log(1.0) == 0.0);
  CHECK(m::log(2.0) == 0.6931471805599453);
  CHECK(m::log(10.0) == 2.302585092994046);
  CHECK(m::log(10.0f) == 2.3025851f);
  CHECK(ulp_error(m::tanh(0.5), 0.46211715726000975850231848364367L) <= 2.5);
  CHECK(ulp_error(m::tanh(0.5f), 0.46211715726000975850231848364367L) <= 2.5);
  CHECK(ulp_error(m::erf(0.5), 0.52049987781304653768274665389197L) <= 1.3);
  CHECK(ulp_error(m::erf(2.0), 0.99532226501895273416206925636725L) <= 1.3);
  CHECK(m::cos_2pi(0.0) == 1.0);
  CHECK(m::cos_2pi(0.25) == 0.0);
  CHECK(m::cos_2pi(0.5) == -1.0);
  CHECK(m::cos_2pi(0.75) == 0.0);
  CHECK(m::sin_2pi(0.0) == 0.0);
  CHECK(m::sin_2pi(0.25) == 1.0);
  CHECK(m::sin_2pi(0.5) == 0.0);
  CHECK(m::sin_2pi(0.75) == -1.0);
  CHECK(ulp_error(m::sin_2pi(0.125), std::sqrt(0.5L)) <= 1.55);
  CHECK(ulp_error(m::cos_2pi(0.375), -std::sqrt(0.5L)) <= 1.55);
  CHECK(ulp_error(m::gelu_erf(1.0), 0.84134474606854294858523254563214L) <= 1);
  CHECK(ulp_error(m::gelu_erf(-1.0), -0.15865525393145705141476745436786L) <= 3);
  CHECK(ulp_error(m::gelu_tanh(1.0), 0.84119199060827670478199577704518L) <= 1);
  CHECK(ulp_error(m::gelu_erf_derivative(1.0), 1.0833154705876862983830627385676L) <= 1);
  CHECK(ulp_error(m::gelu_tanh_derivative(1.0), 1.0829640838457825551396424186696L) <= 1);
  CHECK(m::gelu_erf_derivative(0.0) == 0.5);
  CHECK(m::gelu_tanh_derivative(0.0) == 0.5);
}

TEST_CASE("math: the errors stay within the stated bounds") {
  CHECK(max_ulp_error<float>(exp_, exact_exp, -103.9, 88.72) <= 0.92);
  CHECK(max_ulp_error<float>(exp_, exact_exp, -1, 1) <= 0.92);
  CHECK(max_ulp_error<double>(exp_, exact_exp, -745.1, 709.78) <= 0.85);
  CHECK(max_ulp_error<double>(exp_, exact_exp, -1, 1) <= 0.85);
  CHECK(max_ulp_error<float>(tanh_, exact_tanh, -11, 11) <= 2.5);
  CHECK(max_ulp_error<double>(tanh_, exact_tanh, -21, 21) <= 2.5);
  CHECK(max_ulp_error<float>(erf_, exact_erf, -8, 8) <= 1.3);
  CHECK(max_ulp_error<double>(erf_, exact_erf, -8, 8) <= 1.3);
  CHECK(max_ulp_error<float>(log_, exact_log, 0.4, 2.5) <= 0.501);
  CHECK(max_ulp_error<double>(log_, exact_log, 0.4, 2.5) <= 0.79);
  const auto exact_sin = [](long double u) { return std::sin(two_pi * u); };
  const auto exact_cos = [](long double u) { return std::cos(two_pi * u); };
  // From 1/4 to 1, two_pi * u is too coarse near the zeros: 0.002 turns around them are left out.
  CHECK(max_ulp_error<double>(sin_2pi_, exact_sin, 0, 0.498) <= 1.55);
  CHECK(max_ulp_error<double>(sin_2pi_, exact_sin, 0.502, 0.998) <= 1.55);
  CHECK(max_ulp_error<double>(cos_2pi_, exact_cos, 0, 0.248) <= 1.55);
  CHECK(max_ulp_error<double>(cos_2pi_, exact_cos, 0.252, 0.748) <= 1.55);
  CHECK(max_ulp_error<double>(cos_2pi_, exact_cos, 0.752, 1) <= 1.55);
}

TEST_CASE("math: small and denormal arguments lose no digits") {
  for (const bool negative : {false, true}) {
    CHECK(max_ulp_error_of_powers<float>(tanh_, exact_tanh, -149, 2, negative) <= 2.5);
    CHECK(max_ulp_error_of_powers<double>(tanh_, exact_tanh, -1074, 2, negative) <= 2.5);
    CHECK(max_ulp_error_of_powers<float>(erf_, exact_erf, -149, 2, negative) <= 1.3);
    CHECK(max_ulp_error_of_powers<double>(erf_, exact_erf, -1074, 2, negative) <= 1.3);
    CHECK(max_ulp_error_of_powers<float>(exp_, exact_exp, -149, 6, negative) <= 0.92);
    CHECK(max_ulp_error_of_powers<float>(gelu_erf_, exact_gelu_erf, -140, 0, negative) <= 5);
    CHECK(max_ulp_error_of_powers<float>(gelu_tanh_, exact_gelu_tanh, -140, 0, negative) <= 4);
  }
  CHECK(max_ulp_error_of_powers<float>(log_, exact_log, -149, 127.9) <= 0.501);
  CHECK(max_ulp_error_of_powers<double>(log_, exact_log, -1074, 1023.9) <= 0.79);
  const auto exact_sin = [](long double u) { return std::sin(two_pi * u); };
  CHECK(max_ulp_error_of_powers<double>(sin_2pi_, exact_sin, -1000, -3) <= 1.55);
}

TEST_CASE_TEMPLATE("math: GELU and its derivative", T, float, double) {
  // Relative to the result where x > -1, and below to x: the tail decays like exp(-x^2 / 2), which
  // turns one rounding of the exponent into many ulp of a result that is almost 0.
  CHECK(max_ulp_error<T>(gelu_erf_, exact_gelu_erf, -1, 20) <= 5);
  CHECK(max_ulp_error<T>(gelu_tanh_, exact_gelu_tanh, -1, 20) <= 4);
  CHECK(max_ulp_error<T>(gelu_erf_derivative_, exact_gelu_erf_derivative, 0, 20) <= 3);
  CHECK(max_ulp_error<T>(gelu_tanh_derivative_, exact_gelu_tanh_derivative, 0, 20) <= 2);
  CHECK(max_ulp_error<T>(gelu_erf_, exact_gelu_erf, -13, -1) <= 80);
  CHECK(max_ulp_error<T>(gelu_tanh_, exact_gelu_tanh, -9, -1) <= 200);
  const T epsilon = std::numeric_limits<T>::epsilon();
  for (T x = -16; x <= 16; x += T(1) / 64) {
    const auto difference = [x](auto f, auto g) {
      return std::fabs(static_cast<T>(static_cast<long double>(f(x)) - g(x)));
    };
    const T scale = std::max(T(1), std::fabs(x));
    CHECK(difference(gelu_erf_, exact_gelu_erf) <= epsilon * scale);
    CHECK(difference(gelu_tanh_, exact_gelu_tanh) <= epsilon * scale);
    CHECK(difference(gelu_erf_derivative_, exact_gelu_erf_derivative) <= 2 * epsilon);
    CHECK(difference(gelu_tanh_derivative_, exact_gelu_tanh_derivative) <= 2 * epsilon);
    CHECK(std::fabs(gelu_erf_derivative_(x) + gelu_erf_derivative_(-x) - 1) <= epsilon);
    CHECK(std::fabs(gelu_tanh_derivative_(x) + gelu_tanh_derivative_(-x) - 1) <= epsilon);
  }
}

TEST_CASE_TEMPLATE("math: limits", T, float, double) {
  namespace m = wn::math;
  const T largest = std::numeric_limits<T>::max(), inf = infinity<T>;
  for (const T x : {largest, inf}) {
    CHECK(m::exp(x) == inf);
    CHECK(m::exp(-x) == 0);
    CHECK(m::tanh(x) == 1);
    CHECK(m::tanh(-x) == -1);
    CHECK(m::erf(x) == 1);
    CHECK(m::erf(-x) == -1);
    CHECK(m::gelu_erf(x) == x);
    CHECK(m::gelu_tanh(x) == x);
    CHECK(m::gelu_erf(-x) == 0);
    CHECK(m::gelu_tanh(-x) == 0);
    CHECK(m::gelu_erf_derivative(x) == 1);
    CHECK(m::gelu_tanh_derivative(x) == 1);
    CHECK(m::gelu_erf_derivative(-x) == 0);
    CHECK(m::gelu_tanh_derivative(-x) == 0);
  }
  CHECK(m::log(inf) == inf);
  CHECK(m::log(T(0)) == -inf);
  CHECK(m::log(T(-0.0)) == -inf);
  CHECK(std::isnan(m::log(T(-1))));
  CHECK(std::isnan(m::log(-inf)));
  CHECK(std::isnan(m::exp(not_a_number<T>)));
  CHECK(std::isnan(m::tanh(not_a_number<T>)));
  CHECK(std::isnan(m::erf(not_a_number<T>)));
  CHECK(std::isnan(m::log(not_a_number<T>)));
  CHECK(std::isnan(m::gelu_erf(not_a_number<T>)));
  CHECK(std::isnan(m::gelu_tanh(not_a_number<T>)));
  CHECK(std::isnan(m::gelu_erf_derivative(not_a_number<T>)));
  CHECK(std::isnan(m::gelu_tanh_derivative(not_a_number<T>)));
  CHECK(std::isnan(m::cos_2pi(not_a_number<double>)));
  CHECK(std::signbit(m::tanh(T(-0.0))));
  CHECK(std::signbit(m::erf(T(-0.0))));
}

TEST_CASE("math: where exp overflows and underflows") {
  namespace m = wn::math;
  CHECK(m::exp(0x1.62e42ep6f) == 0x1.ffff08p127f);  // the last float before infinity
  CHECK(m::exp(0x1.62e430p6f) == infinity<float>);
  CHECK(m::exp(-0x1.9fe368p6f) == 0x1p-149f);  // the last before 0
  CHECK(m::exp(-0x1.9fe36ap6f) == 0);
  CHECK(m::exp(709.782712893384) < infinity<double>);
  CHECK(m::exp(709.7827128933841) == infinity<double>);
  CHECK(m::exp(-745.1332191019411) == 0x1p-1074);
  CHECK(m::exp(-745.1332191019412) == 0);
}

TEST_CASE("math: the bits are the same on every platform") {
  // FNV-1a over the bytes of the results, lowest first, of 10^5 arguments of all sizes.
  std::uint64_t hash = 14695981039346656037u;
  const auto add = [&hash](auto y) {
    using Bits = wn::math::Bits<decltype(y)>;
    const Bits bits = y == y ? wn::math::bit_cast<Bits>(y) : Bits(0);  // the sign of NaN is free
    for (unsigned byte = 0; byte < sizeof(y); ++byte)
      hash = (hash ^ (static_cast<std::uint64_t>(bits >> (8 * byte)) & 255)) * 1099511628211u;
  };
  const auto add_all = [&add](auto x) {
    add(exp_(x)), add(tanh_(x)), add(erf_(x)), add(log_(x));
    add(gelu_erf_(x)), add(gelu_erf_derivative_(x));
    add(gelu_tanh_(x)), add(gelu_tanh_derivative_(x));
  };
  std::uint64_t random = 1;
  for (int i = 0; i < 25000; ++i) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    const double u = static_cast<double>(random >> 11) * 0x1p-53;
    const double x = 40 * u - 20;
    add_all(x), add_all(static_cast<float>(x));
    add_all(wn::math::bit_cast<double>(random));
    add_all(wn::math::bit_cast<float>(static_cast<std::uint32_t>(random >> 32)));
    add(sin_2pi_(u)), add(cos_2pi_(u));
  }
  CHECK(hash == 0x869dff3069fe207eu);
}
