// Tests for chapter 4, random numbers.
#include "check.hpp"

#include <numeric>
#include <set>

using namespace widenet;

namespace {

using Block = std::array<std::uint32_t, 4>;

Block block(Words w) { return {w.x0, w.x1, w.x2, w.x3}; }

std::vector<Index> first_five(const std::vector<Index>& order) {
  return {order.begin(), order.begin() + 5};
}

double mean_of(Index n, const std::function<double(Index)>& f) {
  double total = 0;
  for (Index i = 0; i < n; ++i) total += f(i);
  return total / double(n);
}

}  // namespace

TEST_CASE("random numbers: Philox gives the known answers of Random123") {
  const std::uint32_t ones = 0xffffffff;
  CHECK(block(philox({0, 0, 0, 0}, 0, 0)) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(block(philox({ones, ones, ones, ones}, ones, ones)) ==
        Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(block(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0)) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("random numbers: the counter holds index, block, step, purpose and micro-batch") {
  const Rng rng = Rng(0x123456789abcdef0)
                      .for_purpose(Purpose::router_noise)
                      .at_block(5)
                      .at_step(0xfedcba98)
                      .at_micro_batch(0x7654);
  CHECK(rng.seed() == 0x123456789abcdef0);
  const Index i = (Index(0x321) << 32) + 0x87654321;
  CHECK(block(rng.words(i)) == block(philox({0x87654321, (5u << 16) + 0x321, 0xfedcba98,
                                             (3u << 24) + 0x7654}, 0x9abcdef0, 0x12345678)));
  const Words w = rng.words(2);
  CHECK(Block{rng.word(8), rng.word(9), rng.word(10), rng.word(11)} == block(w));
  CHECK(rng.uniform(9) == (w.x1 + 0.5) / 4294967296.0);
}

TEST_CASE("random numbers: every purpose, block, step, micro-batch and seed has its own stream") {
  std::set<Block> seen;
  Index count = 0;
  for (const std::uint64_t seed : {std::uint64_t(0), std::uint64_t(1), std::uint64_t(1) << 32})
    for (int purpose = 0; purpose <= static_cast<int>(Purpose::check); ++purpose)
      for (const Index at_block : {0, 1, 65535})
        for (const Index step : {Index(0), Index(1), (Index(1) << 32) - 1})
          for (const Index micro_batch : {0, 1, (1 << 24) - 1})
            for (const Index i : {Index(0), Index(1), Index(1) << 32}) {
              const Rng rng = Rng(seed).for_purpose(static_cast<Purpose>(purpose));
              seen.insert(block(
                  rng.at_block(at_block).at_step(step).at_micro_batch(micro_batch).words(i)));
              ++count;
            }
  CHECK(static_cast<Index>(seen.size()) == count);
}

TEST_CASE("random numbers: every name has its own stream") {
  CHECK(block(Rng(0).named("a").words(0)) == block(Rng(0).at_step(0xe40c292c).words(0)));  // FNV-1a
  CHECK(block(Rng(0).named("norm1.weight").words(0)) != block(Rng(0).named("norm1.bias").words(0)));
}

TEST_CASE("random numbers: a value does not depend on how many are made, or in which order") {
  const Rng rng = Rng(5).at_step(3);
  const auto few = Tensor<double>::randn({3, 5}, rng).to_vector();
  const auto many = Tensor<double>::randn({97, 101}, rng, 2.0).to_vector();  // on several threads
  for (std::size_t i = many.size(); i-- > 0;) {
    REQUIRE(many[i] == 2.0 * normal(rng, static_cast<Index>(i)));
    if (i < few.size()) REQUIRE(few[i] == normal(rng, static_cast<Index>(i)));
  }
  const auto uniforms = Tensor<double>::uniform({97, 101}, rng, -1, 3).to_vector();
  for (std::size_t i = 0; i < uniforms.size(); ++i)
    REQUIRE(uniforms[i] == -1 + 4 * rng.uniform(static_cast<Index>(i)));
  check::same_bits_for_all_threads([&] {
    return Tensor<float>::randn({97, 101}, rng).to_vector();
  });
}

TEST_CASE("random numbers: normals are those of Box and Muller") {
  const Rng rng(11);
  const double pi = std::acos(-1.0);
  std::vector<double> values, expected;
  for (Index i = 0; i < 4000; i += 2) {
    const double radius = std::sqrt(-2 * std::log(rng.uniform(i)));
    check::append(values, {normal(rng, i), normal(rng, i + 1)});
    check::append(expected, {radius * std::cos(2 * pi * rng.uniform(i + 1)),
                             radius * std::sin(2 * pi * rng.uniform(i + 1))});
  }
  check::close(values, expected);
}

// Every bound is five standard deviations of what it bounds.
TEST_CASE("random numbers: uniform values have the moments of the uniform distribution") {
  const Index n = 1 << 19;
  const Rng rng = Rng(17).for_purpose(Purpose::shuffle).at_step(2);
  const auto u = [&](Index i) { return rng.uniform(i) - 0.5; };
  const double bound = 5 / std::sqrt(double(n));
  CHECK(std::fabs(mean_of(n, u)) < bound * std::sqrt(1.0 / 12));
  CHECK(std::fabs(mean_of(n, [&](Index i) { return u(i) * u(i); }) - 1.0 / 12) <
        bound * std::sqrt(1.0 / 180));
  for (const Index lag : {1, 2, 3, 4, 32})
    CHECK(std::fabs(mean_of(n, [&](Index i) { return u(i) * u(i + lag); })) < bound / 12);

  std::array<double, 256> counts = {};  // of the first 8 bits; chi^2 has 255 degrees of freedom
  double smallest = 1, largest = 0;
  for (Index i = 0; i < n; ++i) {
    ++counts[rng.word(i) >> 24];
    smallest = std::min(smallest, rng.uniform(i));
    largest = std::max(largest, rng.uniform(i));
  }
  double chi2 = 0;
  for (const double count : counts) chi2 += (count - n / 256) * (count - n / 256) / (n / 256);
  CHECK(std::fabs(chi2 - 255) < 5 * std::sqrt(2 * 255.0));
  CHECK(smallest > 0);
  CHECK(smallest < 20.0 / double(n));
  CHECK(largest < 1);
  CHECK(largest > 1 - 20.0 / double(n));
}

TEST_CASE("random numbers: uniform values never reach 0 or 1") {
  CHECK(Rng::fraction(0) == 0x1p-33);
  CHECK(Rng::fraction(0xffffffff) == 1 - 0x1p-33);
}

TEST_CASE("random numbers: normal values have the moments of the normal distribution") {
  const Index n = 1 << 19;
  const std::vector<double> x = Tensor<double>::randn({n + 4}, Rng(19)).to_vector();
  const auto at = [&](Index i) { return x[static_cast<std::size_t>(i)]; };
  const auto moment = [&](int power) {
    return mean_of(n, [&](Index i) { return std::pow(at(i), power); });
  };
  const double bound = 5 / std::sqrt(double(n));
  CHECK(std::fabs(moment(1)) < bound);
  CHECK(std::fabs(moment(2) - 1) < bound * std::sqrt(2.0));
  CHECK(std::fabs(moment(3)) < bound * std::sqrt(15.0));
  CHECK(std::fabs(moment(4) - 3) < bound * std::sqrt(96.0));
  for (const Index lag : {1, 2, 3, 4}) {
    CHECK(std::fabs(mean_of(n, [&](Index i) { return at(i) * at(i + lag); })) < bound);
    CHECK(std::fabs(mean_of(n, [&](Index i) {
            return (at(i) * at(i) - 1) * (at(i + lag) * at(i + lag) - 1);
          })) < bound * 2);
  }
  const double beyond_3 = 0.002699796063;  // erfc(3 / sqrt(2))
  CHECK(std::fabs(mean_of(n, [&](Index i) { return std::fabs(at(i)) > 3 ? 1 : 0; }) - beyond_3) <
        bound * std::sqrt(beyond_3));
}

TEST_CASE("random numbers: a permutation holds every index once") {
  for (const Index n : {0, 1, 2, 97, 1000}) {
    std::vector<Index> order = permutation(n, Rng(4)), all(static_cast<std::size_t>(n));
    std::iota(all.begin(), all.end(), Index(0));
    if (n > 2) CHECK(order != all);
    std::sort(order.begin(), order.end());
    CHECK(order == all);
  }
  CHECK(permutation(97, Rng(4)) != permutation(97, Rng(5)));
  CHECK(permutation(97, Rng(4)) != permutation(97, Rng(4).at_step(1)));
}

TEST_CASE("random numbers: permutations are those of data/make_digits.py") {
  CHECK(first_five(permutation(1797, Rng(0))) == std::vector<Index>{1719, 1311, 1228, 1085, 1534});
  CHECK(permutation(1797, Rng(0)).back() == 902);
  CHECK(permutation(7, Rng((std::uint64_t(1) << 40) + 1)) ==
        std::vector<Index>{6, 0, 5, 2, 3, 4, 1});
}

TEST_CASE("random numbers: a permutation leaves every index in every place equally often") {
  std::array<std::array<double, 5>, 5> counts = {};
  const Index trials = 10000;
  for (Index t = 0; t < trials; ++t) {
    const std::vector<Index> order = permutation(5, Rng(6).at_step(t));
    for (std::size_t place = 0; place < 5; ++place)
      ++counts[place][static_cast<std::size_t>(order[place])];
  }
  for (const auto& row : counts)
    for (const double count : row)
      CHECK(std::fabs(count - trials / 5) < 5 * std::sqrt(trials * 0.2 * 0.8));
}

TEST_CASE("random numbers: errors") {
  CHECK_THROWS_WITH_AS(Rng(0).at_block(65536),
                       "widenet: Rng: block must lie in [0, 65536); got 65536", ValueError);
  CHECK_THROWS_WITH_AS(Rng(0).at_step(-1),
                       "widenet: Rng: step must lie in [0, 4294967296); got -1", ValueError);
  CHECK_THROWS_WITH_AS(Rng(0).at_micro_batch(1 << 24),
                       "widenet: Rng: micro-batch must lie in [0, 16777216); got 16777216",
                       ValueError);
}
