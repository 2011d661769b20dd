// Tests for chapter 5: matrix products, bit by bit against the chain that defines them. With
// WIDENET_EIGEN=1 the same products are compared with a tolerance: Eigen adds in another order.
#include "check.hpp"

#if !WIDENET_CUDA  // the loops below read what gemm reads

using namespace widenet;

namespace {

/// Random values of an array of its own, with `gap` canaries between two rows.
template <class T>
struct Values {
  Index rows, columns, ld;
  std::vector<T> at;
  Values(Index r, Index c, Index gap, Index stream)
      : rows(r), columns(c), ld(c + gap),
        at(normal_values(std::max<Index>(1, r * (c + gap)), stream)) {}
  static std::vector<T> normal_values(Index n, Index stream) {
    return check::normal<T>({n}, stream).to_vector();
  }
};

/// c = start; for k in order: c = fma(op(A)[i, k], op(B)[k, j], c)
template <class T>
void define(bool ta, bool tb, Index M, Index N, Index K, const T* A, Index lda, const T* B,
            Index ldb, T beta, T* C, Index ldc, const T* bias) {
  for (Index i = 0; i < M; ++i)
    for (Index j = 0; j < N; ++j) {
      T& c = C[i * ldc + j];
      T sum = bias ? bias[j] : beta == T(0) ? T(0) : beta == T(1) ? c : beta * c;
      for (Index k = 0; k < K; ++k)
        sum = std::fma(ta ? A[k * lda + i] : A[i * lda + k], tb ? B[j * ldb + k] : B[k * ldb + j],
                       sum);
      c = sum;
    }
}

template <class T>
bool agree(const std::vector<T>& got, const std::vector<T>& expected) {
#if WIDENET_EIGEN
  const double tolerance = std::is_same<T, float>::value ? 1e-4 : 1e-12;
  for (std::size_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(double(got[i] - expected[i])) <= tolerance)) return false;
  return got.size() == expected.size();
#else
  return check::same_bits(got, expected);
#endif
}

template <class T>
void check_product(bool ta, bool tb, Index M, Index N, Index K, T beta, bool has_bias, Index gap) {
  const Values<T> A(ta ? K : M, ta ? M : K, gap, 1), B(tb ? N : K, tb ? K : N, gap, 2);
  const Values<T> bias(1, N, 0, 3);
  Values<T> expected(M, N, gap, 4);
  std::vector<T> got = expected.at;
  if (beta == T(0) || has_bias)  // what C held does not matter, not even if it is NaN
    for (Index i = 0; i < M; ++i)
      for (Index j = 0; j < N; ++j)
        got[static_cast<std::size_t>(i * expected.ld + j)] = std::numeric_limits<T>::quiet_NaN();
  const T* const row = has_bias ? bias.at.data() : nullptr;
  define(ta, tb, M, N, K, A.at.data(), A.ld, B.at.data(), B.ld, beta, expected.at.data(),
         expected.ld, row);
  gemm(ta, tb, M, N, K, A.at.data(), A.ld, B.at.data(), B.ld, beta, got.data(), expected.ld, row);
  INFO("transpose ", ta, tb, "  M ", M, "  N ", N, "  K ", K, "  beta ", beta, "  bias ", has_bias,
       "  gap ", gap);
  CHECK(agree(got, expected.at));
}

template <class T>
void check_all_forms(Index M, Index N, Index K, Index gap) {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true}) {
      for (const T beta : {T(0), T(1), T(0.5)}) check_product<T>(ta, tb, M, N, K, beta, false, gap);
      check_product<T>(ta, tb, M, N, K, T(0), true, gap);
    }
}

}  // namespace

TEST_CASE("gemm: every element is its chain, for small sizes around the tiles") {
  for (const Index M : {1, 2, 5, 6, 7, 13, 29})
    for (const Index N : {1, 3, 4, 8, 15, 16, 17, 33})
      for (const Index K : {0, 1, 3, 16, 19}) {
        check_all_forms<float>(M, N, K, 0);
        check_all_forms<double>(M, N, K, 3);
      }
}

TEST_CASE("gemm: every element is its chain, across the blocks") {
  check_all_forms<float>(67, 263, 301, 1);  // a long sum goes on from C
  check_all_forms<double>(67, 139, 263, 0);
  check_all_forms<float>(491, 37, 23, 0);   // more rows than a block
  check_all_forms<float>(1, 521, 17, 0);
}

TEST_CASE("gemm: the number of threads changes no bit") {
  const Index M = 509, N = 127, K = 300;
  const Values<float> A(M, K, 0, 1), B(K, N, 0, 2);
  check::same_bits_for_all_threads([&] {
    std::vector<float> C(static_cast<std::size_t>(M * N));
    gemm(false, false, M, N, K, A.at.data(), K, B.at.data(), N, 0.0f, C.data(), N);
    return C;
  });
}

TEST_CASE("gemm: the rows beside a row change none of its bits") {
  const Index N = 41, K = 300;
  const Values<float> A(211, K, 0, 1), B(K, N, 0, 2);
  std::vector<float> all(211 * 41), one(41);
  gemm(false, false, 211, N, K, A.at.data(), K, B.at.data(), N, 0.0f, all.data(), N);
  for (const Index row : {0, 1, 100, 210}) {
    gemm(false, false, 1, N, K, A.at.data() + row * K, K, B.at.data(), N, 0.0f, one.data(), N);
    CHECK(check::same_bits(one, {all.begin() + row * N, all.begin() + (row + 1) * N}));
  }
}

TEST_CASE("gemm_batched: products of heads that lie side by side") {
  const Index batches = 3, heads = 2, T = 17, Dh = 5, D = heads * Dh, S = 32;
  const Values<float> q(batches * T, D, 0, 1), k(batches * T, D, 0, 2);
  std::vector<float> expected(static_cast<std::size_t>(batches * heads * T * S), -7);
  std::vector<float> got = expected;
  for (Index b = 0; b < batches; ++b)
    for (Index h = 0; h < heads; ++h)
      define(false, true, T, T, Dh, q.at.data() + b * T * D + h * Dh, D,
             k.at.data() + b * T * D + h * Dh, D, 0.0f,
             expected.data() + (b * heads + h) * T * S, S, static_cast<const float*>(nullptr));
  gemm_batched<float>(false, true, batches, heads, T, T, Dh, {q.at.data(), D, T * D, Dh},
                      {k.at.data(), D, T * D, Dh}, 0.0f, {got.data(), S, heads * T * S, T * S});
  CHECK(agree(got, expected));  // the padding of the rows is left alone
}

TEST_CASE("gemm_grouped: each expert multiplies the slots that are filled") {
  const Index E = 4, C = 53, D = 13, F = 19;
  const std::vector<std::int32_t> count = {53, 0, 1, 30};
  const Values<double> x(E * C, D, 0, 1), w(E * D, F, 0, 2), bias(E, F, 0, 3), dy(E * C, F, 0, 4);
  std::vector<double> expected(static_cast<std::size_t>(E * C * F), -7), got = expected;
  std::vector<double> dw_expected(static_cast<std::size_t>(E * D * F), 2), dw = dw_expected;
  for (Index e = 0; e < E; ++e) {
    const Index n = count[static_cast<std::size_t>(e)];
    define(false, false, n, F, D, x.at.data() + e * C * D, D, w.at.data() + e * D * F, F, 0.0,
           expected.data() + e * C * F, F, bias.at.data() + e * F);
    define(true, false, D, F, n, x.at.data() + e * C * D, D, dy.at.data() + e * C * F, F, 1.0,
           dw_expected.data() + e * D * F, F, static_cast<const double*>(nullptr));
  }
  gemm_grouped<double>(false, false, E, C, F, D, {x.at.data(), D, C * D}, {w.at.data(), F, D * F},
                       0.0, {got.data(), F, C * F}, {bias.at.data(), F, F}, count.data());
  CHECK(agree(got, expected));  // rows of empty slots are left alone
  gemm_grouped<double>(true, false, E, D, F, C, {x.at.data(), D, C * D}, {dy.at.data(), F, C * F},
                       1.0, {dw.data(), F, D * F}, {nullptr, 0}, count.data());
  CHECK(agree(dw, dw_expected));
}

#endif
