// Tests for chapter 5, backend: teams and parallel loops. The host plays the lanes of a team.
#include "check.hpp"

#if !WIDENET_CUDA

using namespace widenet;

namespace {

template <class T>
std::vector<T> values(Index n) {
  return check::normal<T>({n}, 0).to_vector();
}

/// The sum as the header promises it: lane by lane, then over the lanes in a tree.
template <class T>
T lane_sum(const std::vector<T>& x) {
  T lane[32] = {};
  for (std::size_t i = 0; i < x.size(); ++i) lane[i % 32] += x[i];
  for (int half = 16; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

template <class T>
void check_team() {
  Index differs_from_plain = 0;
  for (const Index n : {0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 1000, 1031}) {
    INFO(n, " values");
    const std::vector<T> x = values<T>(n);
    const auto at = [&x](Index i) { return x[static_cast<std::size_t>(i)]; };
    CHECK(Team{}.sum<T>(n, at) == lane_sum(x));
    T plain = 0, largest = -std::numeric_limits<T>::infinity();
    for (const T value : x) plain += value, largest = std::max(largest, value);
    CHECK(Team{}.max<T>(n, at) == largest);
    differs_from_plain += plain == lane_sum(x) ? 0 : 1;
  }
  CHECK(differs_from_plain > 5);  // so the order of the sum is seen
}

}  // namespace

TEST_CASE("backend: a team adds lane by lane, then in a tree, and finds the maximum") {
  check_team<float>();
  check_team<double>();
  const auto identity = [](Index i) { return static_cast<std::int32_t>(i); };
  CHECK(Team{}.sum<std::int32_t>(100, identity) == 4950);
}

TEST_CASE("backend: a team visits each element once") {
  for (const Index n : {0, 1, 31, 32, 33, 100}) {
    std::vector<int> visits(static_cast<std::size_t>(n) + 1);
    Team{}.each(n, [&](Index i) { ++visits[static_cast<std::size_t>(i)]; });
    std::vector<int> expected(static_cast<std::size_t>(n), 1);
    expected.push_back(0);
    CHECK(visits == expected);
  }
  CHECK(Team{}.first());
}

TEST_CASE("backend: a team adds down its columns, each in the order of the rows") {
  const auto f = [](Index i, Index l) { return i == 0 ? -1e8f : float(l); };
  std::vector<float> start;
  for (Index l = 0; l < 33; ++l) start.push_back(1e8f + float(l));
  for (const bool has_start : {true, false})
    for (const Index n : {0, 2})
      for (const Index width : {0, 1, 31, 32, 33}) {
        std::vector<float> sums(33, -1), expected(33, -1);
        Team{}.add_down<float>(n, width, has_start ? start.data() : nullptr, f,
                               [&](Index l, float s) { sums[static_cast<std::size_t>(l)] = s; });
        for (std::size_t l = 0; l < std::min<std::size_t>(32, std::size_t(width)); ++l) {
          const float from = has_start ? start[l] : 0;
          expected[l] = n == 0 ? from : (from - 1e8f) + float(l);
        }
        CHECK(sums == expected);
      }
}

TEST_CASE("backend: a team counts what is wanted, in order") {
  std::vector<std::pair<Index, Index>> taken;
  const Index count = Team{}.enumerate(
      101, [](Index i) { return i % 37 == 5; },
      [&](Index i, Index rank) { taken.emplace_back(i, rank); });
  CHECK(count == 3);
  CHECK(taken == std::vector<std::pair<Index, Index>>{{5, 0}, {42, 1}, {79, 2}});
  const auto never = [](Index) { return false; };
  CHECK(Team{}.enumerate(101, never, [](Index, Index) { FAIL("nothing is wanted"); }) == 0);
}

TEST_CASE("backend: a loop visits each index once, for any number of threads") {
  for (const Index n : {0, 1, 2, 1023, 1024, 1025, 2047, 2049, 8191, 8192, 8193, 9216, 9217, 20011})
    check::same_bits_for_all_threads([n] {
      std::vector<int> visits(static_cast<std::size_t>(n) + 1);
      for_each(n, [p = visits.data()](Index i) { ++p[i]; });
      std::vector<int> expected(static_cast<std::size_t>(n), 1);
      expected.push_back(0);
      CHECK(visits == expected);
      return visits;
    });
}

TEST_CASE("backend: a loop over rows visits each row once, for any number of threads") {
  for (const Index rows : {0, 1, 2, 3, 31, 1009})
    check::same_bits_for_all_threads([rows] {
      std::vector<int> visits(static_cast<std::size_t>(rows) + 1);
      for_each_row(rows, 10000, [p = visits.data()](Index row, Team) { ++p[row]; });
      std::vector<int> expected(static_cast<std::size_t>(rows), 1);
      expected.push_back(0);
      CHECK(visits == expected);
      return visits;
    });
}

TEST_CASE("backend: sums over columns are chunks of 64 rows, added in order") {
  for (const Index N : {1, 63, 64, 65, 131}) {
    const Index D = 37;
    const std::vector<float> x = values<float>(N * D);
    std::vector<float> expected(static_cast<std::size_t>(D));
    for (Index d = 0; d < D; ++d)
      for (Index begin = 0; begin < N; begin += 64) {
        float chunk = 0;
        for (Index n = begin; n < std::min(N, begin + 64); ++n)
          chunk += x[static_cast<std::size_t>(n * D + d)];
        expected[static_cast<std::size_t>(d)] += chunk;
      }
    check::same_bits_for_all_threads([&] {
      std::vector<float> sums(static_cast<std::size_t>(D), std::nanf(""));
      kernel::add_rows(Sink<float>{sums.data(), false}, x.data(), N, D);
      CHECK(sums == expected);
      kernel::add_rows(Sink<float>{sums.data(), true}, x.data(), N, D);
      for (std::size_t d = 0; d < sums.size(); ++d) CHECK(sums[d] == 2 * expected[d]);
      return sums;
    });
  }
}

#endif
