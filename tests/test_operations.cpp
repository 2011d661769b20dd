// Tests for chapter 8, operations. `check_op` holds every operation to the same rules.
#include "check.hpp"

using namespace widenet;
using check::tensor;

namespace {

using Values = std::vector<double>;
template <class T> using Inputs = std::vector<Tensor<T>>;

template <class T>
Inputs<T> normals(const std::vector<Shape>& shapes) {
  Inputs<T> inputs;
  for (const Shape& shape : shapes)
    inputs.push_back(check::normal<T>(shape, static_cast<Index>(inputs.size())));
  return inputs;
}

template <class T>
Tensor<T> copy_of(const Tensor<T>& x) {
  return {x.shape(), x.value().clone()};
}

/// The result of op, then the gradient of each input, empty where none was asked for.
template <class T, class Op>
std::vector<std::vector<T>> run(const Inputs<T>& inputs, Op op, const Tensor<T>& dy) {
  const Tensor<T> y = op(inputs);
  REQUIRE(y.shape() == dy.shape());
  std::vector<std::vector<T>> all = {y.to_vector()};
  y.backward(dy.value());
  for (const Tensor<T>& x : inputs)
    all.push_back(x.needs_gradient() ? x.gradient().to_vector() : std::vector<T>());
  return all;
}

template <class T, class Op>
std::vector<std::vector<T>> run_for_all(const Inputs<T>& inputs, Op op, const Tensor<T>& dy) {
  Inputs<T> copies;
  for (const Tensor<T>& x : inputs) copies.push_back(copy_of(x).require_gradient());
  return run(copies, op, dy);
}

/// Every gradient of op is right, and would not pass if it were off by 1.001; the graph is freed;
/// a second gradient is added to the first; what is not asked for makes no difference.
template <class Op>
void check_op(const std::vector<Shape>& shapes, Op op) {
  const Inputs<double> inputs = normals<double>(shapes);
  const auto f = [&] { return op(inputs); };
  check::poison_memory();
  check::gradients(f, inputs);
  check::gradients_bite(f, inputs);

  const Index in_use = memory_use().in_use;
  { const Tensor<double> y = f(); }
  CHECK(memory_use().in_use == in_use);

  const Tensor<double> dy = check::normal(f().shape(), 99);
  const auto all = run_for_all(inputs, op, dy);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    INFO("input ", i);
    Inputs<double> copies;
    for (const Tensor<double>& x : inputs) copies.push_back(copy_of(x));
    copies[i].require_gradient();
    CHECK(check::same_bits(run(copies, op, dy)[i + 1], all[i + 1]));

    const auto twice = run(copies, op, dy)[i + 1];
    double largest = 0;
    for (const double g : all[i + 1]) largest = std::max(largest, std::fabs(g));
    for (std::size_t j = 0; j < twice.size(); ++j)
      CHECK(std::fabs(twice[j] - 2 * all[i + 1][j]) <= 1e-14 * largest);
  }
}

/// Result and gradients in float have the same bits for any number of threads.
template <class Op>
void check_threads(const std::vector<Shape>& shapes, Op op) {
  const Inputs<float> inputs = normals<float>(shapes);
  const Tensor<float> dy = check::normal<float>(op(inputs).shape(), 99);
  check::same_bits_for_all_threads([&] {
    check::poison_memory();
    std::vector<float> bits;
    for (const auto& values : run_for_all(inputs, op, dy)) check::append(bits, values);
    return bits;
  });
}

/// Item b of x along the first axis.
template <class T>
std::vector<T> item(const std::vector<T>& x, Index b, Index count) {
  const std::ptrdiff_t size = static_cast<Index>(x.size()) / count;
  return {x.begin() + b * size, x.begin() + (b + 1) * size};
}
template <class T>
Tensor<T> item(const Tensor<T>& x, Index b) {
  std::vector<Index> extents = x.shape().extents();
  extents[0] = 1;
  return {Shape(extents), item(x.to_vector(), b, x.shape()[0])};
}

/// Each row, or sequence, of the first `num_batched` inputs gives the same bits alone and among the
/// others, and so does its gradient; or what products promise, if the operation has any.
enum class Made { by_rows, by_products };
template <class Op>
void check_batch(const std::vector<Shape>& shapes, Op op, std::size_t num_batched = 1,
                 Made made = Made::by_rows) {
  const Inputs<float> inputs = normals<float>(shapes);
  const Tensor<float> dy = check::normal<float>(op(inputs).shape(), 99);
  const auto all = run_for_all(inputs, op, dy);
  const Index B = shapes[0][0];
  for (Index b = 0; b < B; ++b) {
    INFO("item ", b);
    Inputs<float> alone = inputs;
    for (std::size_t i = 0; i < num_batched; ++i) alone[i] = item(inputs[i], b);
    const auto one = run_for_all(alone, op, item(dy, b));
    for (std::size_t i = 0; i <= num_batched; ++i) {
      const std::vector<float> among_others = item(all[i], b, B);
      CHECK((made == Made::by_rows ? check::same_bits(one[i], among_others)
                                   : check::same_products(one[i], among_others)));
    }
  }
}

// The operations as functions of a list of inputs.
const auto add = [](const auto& x) { return x[0] + x[1]; };
const auto scale = [](const auto& x) { return -2.5 * x[0]; };
const auto multiply_ = [](const auto& x) { return multiply(x[0], x[1]); };
const auto sum_ = [](const auto& x) { return sum(x[0]); };
const auto matmul_ = [](const auto& x) { return matmul(x[0], x[1]); };
const auto linear_ = [](const auto& x) { return linear(x[0], x[1], x[2]); };
const auto tied_decoder_ = [](const auto& x) { return tied_decoder(x[0], x[1], x[2]); };
const auto layer_norm_ = [](const auto& x) { return layer_norm(x[0], x[1], x[2]); };
const auto rms_norm_ = [](const auto& x) { return rms_norm(x[0], x[1]); };
const auto gelu_tanh = [](const auto& x) { return gelu(x[0], Gelu::tanh); };
const auto gelu_erf = [](const auto& x) { return gelu(x[0], Gelu::erf); };
const auto relu_ = [](const auto& x) { return relu(x[0]); };
const auto tanh_ = [](const auto& x) { return tanh(x[0]); };
const auto softmax_ = [](const auto& x) { return softmax(x[0]); };
const auto dropout_ = [](const auto& x) { return dropout(x[0], 0.3, Rng(3)); };
const auto add_to_sequences_ = [](const auto& x) { return add_to_sequences(x[0], x[1]); };
const auto concat_ = [](const auto& x) { return concat_tokens(x[0], x[1]); };
const auto prepend_ = [](const auto& x) { return prepend_token(x[1], x[0]); };
const auto slice_ = [](const auto& x) { return slice_tokens(x[0], 2, 3); };
const auto mean_ = [](const auto& x) { return mean_tokens(x[0]); };
const auto attention_of = [](Index heads, const Buffer<std::uint8_t>& key_mask = {}) {
  return [heads, key_mask](const auto& x) { return attention(x[0], x[1], x[2], heads, key_mask); };
};

}  // namespace

TEST_CASE("add: known values, gradients, bits, errors") {
  check::close(tensor({2}, {1, 2}) + tensor({2}, {10, -20}), {11, -18});
  check_op({{3, 5}, {3, 5}}, add);
  check_threads({{97, 101}, {97, 101}}, add);
  CHECK_THROWS_WITH_AS(tensor({2, 1}, {1, 2}) + tensor({2}, {1, 2}),
                       "widenet: add: the shapes must be equal; got (2, 1), (2)", ShapeError);
}

TEST_CASE("scale: known values, gradients, bits") {
  check::close(-2 * tensor({3}, {1, 2, -3}), {-2, -4, 6});
  CHECK((0.5 * Tensor<float>::full({1}, 3)).item() == 1.5f);
  check_op({{3, 5}}, scale);
  check_threads({{97, 101}}, scale);
}

TEST_CASE("multiply: known values, gradients, bits, errors") {
  check::close(multiply(tensor({2}, {3, 2}), tensor({2}, {10, -20})), {30, -40});
  check_op({{3, 5}, {3, 5}}, multiply_);
  check_threads({{97, 101}, {97, 101}}, multiply_);
  CHECK_THROWS_WITH_AS(multiply(tensor({1, 2}, {1, 2}), tensor({2, 1}, {1, 2})),
                       "widenet: multiply: the shapes must be equal; got (1, 2), (2, 1)",
                       ShapeError);
}

TEST_CASE("sum: known values, gradients, bits") {
  check::close(sum(tensor({2, 3}, {1, 2, 3, 4, 5, 60})), {75});
  CHECK(sum(tensor({2, 1}, {1, 2})).shape() == Shape{});
  CHECK(sum(Tensor<double>(Shape{0})).item() == 0);
  check_op({{7, 11}}, sum_);
  check_threads({{97, 101}}, sum_);
}

TEST_CASE("linear: known values, gradients, bits, errors") {
  const auto x = tensor({2, 3}, {1, 2, 3, 4, 5, 6}), w = tensor({3, 2}, {1, 0, 0, 1, 2, -1});
  check::close(matmul(x, w), {7, -1, 16, -1});
  check::close(linear(x, w), {7, -1, 16, -1});
  check::close(linear(x, w, tensor({2}, {10, 20})), {17, 19, 26, 19});
  CHECK(linear(check::normal({2, 5, 3}, 0), w).shape() == Shape{2, 5, 2});
  check::close(linear(tensor({3}, {1, 2, 3}), w), {7, -1});
  CHECK(linear(Tensor<double>(Shape{0, 3}), w).shape() == Shape{0, 2});

  check_op({{67, 5}, {5, 3}, {3}}, linear_);
  check_op({{2, 3, 7}, {7, 5}, {5}}, linear_);
  check_op({{11, 13}, {13, 17}}, matmul_);
  check_threads({{211, 67}, {67, 131}, {131}}, linear_);
  check_batch({{31, 67}, {67, 53}, {53}}, linear_, 1, Made::by_products);
  check_batch({{5, 7, 13}, {13, 11}, {11}}, linear_, 1, Made::by_products);

  CHECK_THROWS_WITH_AS(
      linear(x, x), "widenet: linear: x (..., D) and w (D, F) must share D > 0; got (2, 3), (2, 3)",
      ShapeError);
  CHECK_THROWS_AS(linear(tensor({}, {1}), w), ShapeError);
  CHECK_THROWS_AS(linear(x, tensor({3}, {1, 2, 3})), ShapeError);
  CHECK_THROWS_WITH_AS(linear(x, w, tensor({1}, {0})),
                       "widenet: linear: bias must be (F) = (2); got (1)", ShapeError);
  CHECK_THROWS_WITH_AS(  // the bias alone would be the result, were there anything to add it to
      linear(Tensor<double>(Shape{2, 0}), Tensor<double>(Shape{0, 3})),
      "widenet: linear: x (..., D) and w (D, F) must share D > 0; got (2, 0), (0, 3)", ShapeError);
}

TEST_CASE("tied_decoder: known values, gradients, bits, errors") {
  const auto x = tensor({2, 3}, {1, 2, 3, 4, 5, 6}), table = tensor({2, 3}, {1, 0, 2, 0, 1, -1});
  check::close(tied_decoder(x, table), {7, -1, 16, -1});
  check::close(tied_decoder(x, table, tensor({2}, {10, 20})), {17, 19, 26, 19});
  CHECK(tied_decoder(check::normal({2, 5, 3}, 0), table).shape() == Shape{2, 5, 2});

  check_op({{67, 5}, {3, 5}, {3}}, tied_decoder_);
  check_op({{2, 3, 7}, {5, 7}}, [](const auto& in) { return tied_decoder(in[0], in[1]); });
  check_threads({{211, 67}, {131, 67}, {131}}, tied_decoder_);
  check_batch({{31, 67}, {53, 67}, {53}}, tied_decoder_, 1, Made::by_products);

  CHECK_THROWS_WITH_AS(tied_decoder(x, tensor({3, 2}, {1, 2, 3, 4, 5, 6})),
                       "widenet: tied_decoder: x (..., D) and table (V, D) must share D > 0; got "
                       "(2, 3), (3, 2)",
                       ShapeError);
  CHECK_THROWS_AS(tied_decoder(Tensor<double>(Shape{2, 0}), Tensor<double>(Shape{3, 0})),
                  ShapeError);
  CHECK_THROWS_WITH_AS(tied_decoder(x, table, tensor({1}, {0})),
                       "widenet: tied_decoder: bias must be (V) = (2); got (1)", ShapeError);
}

TEST_CASE("layer_norm: known values, gradients, bits, errors") {
  const auto x = tensor({1, 4}, {1, 3, 5, 7}), one = tensor({4}, {1, 1, 1, 1});
  const auto beta = tensor({4}, {0, 0, 0, 10});  // mean 4, variance 5, so rstd is 1/3 for eps = 4
  check::close(layer_norm(x, one, beta, 4), {-1, -1.0 / 3, 1.0 / 3, 11});
  check::close(layer_norm(x, tensor({4}, {3, 6, 9, 0}), beta, 4), {-3, -2, 3, 10});
  const double rstd = 1 / std::sqrt(5 + 1e-6);  // the default eps
  check::close(layer_norm(x, one, tensor({4}, {0, 0, 0, 0})),
               {-3 * rstd, -rstd, rstd, 3 * rstd});

  check_op({{3, 37}, {37}, {37}}, layer_norm_);
  check_op({{2, 3, 5}, {5}, {5}}, layer_norm_);
  check_op({{67, 3}, {3}, {3}}, layer_norm_);  // two chunks of rows
  check_threads({{131, 67}, {67}, {67}}, layer_norm_);
  check_batch({{31, 67}, {67}, {67}}, layer_norm_);

  CHECK_THROWS_WITH_AS(layer_norm(tensor({}, {1}), one, one),
                       "widenet: layer_norm: x must be (..., D); got ()", ShapeError);
  CHECK_THROWS_WITH_AS(
      layer_norm(check::normal({3, 37}, 0), check::normal({37}, 0), one),
      "widenet: layer_norm: gamma and beta must be (D) = (37); got (37), (4)", ShapeError);
}

TEST_CASE("layer_norm: rows that are constant give beta, far ones lose few digits") {
  const auto one = tensor({3}, {1, 1, 1}), beta = tensor({3}, {4, 5, 6});
  check::close(layer_norm(tensor({1, 3}, {7, 7, 7}), one, beta), {4, 5, 6});
  const auto far = layer_norm(tensor({1, 3}, {1e6, 1e6 + 1, 1e6 + 2}), one, beta).to_vector();
  const auto near = layer_norm(tensor({1, 3}, {0, 1, 2}), one, beta).to_vector();
  for (std::size_t d = 0; d < 3; ++d) CHECK(std::fabs(far[d] - near[d]) < 1e-9);
}

TEST_CASE("rms_norm: known values, gradients, bits, errors") {
  const auto x = tensor({1, 4}, {1, 3, 5, 7}), one = tensor({4}, {1, 1, 1, 1});
  // The mean square is 21, so rstd is 1/5 for eps = 4.
  check::close(rms_norm(x, one, 4), {0.2, 0.6, 1, 1.4});
  check::close(rms_norm(x, tensor({4}, {10, 5, -1, 0}), 4), {2, 3, -1, 0});
  const double rstd = 1 / std::sqrt(21 + 1e-6);  // the default eps
  check::close(rms_norm(x, one), {rstd, 3 * rstd, 5 * rstd, 7 * rstd});
  check::close(rms_norm(tensor({1, 3}, {0, 0, 0}), tensor({3}, {1, 1, 1})), {0, 0, 0});
  // Where the mean of a row is 0, it is LayerNorm without beta.
  const auto centred = tensor({2, 3}, {-1, 0, 1, 2, -3, 1}), gamma = tensor({3}, {2, 3, 4});
  check::close(rms_norm(centred, gamma), layer_norm(centred, gamma, tensor({3}, {0, 0, 0}))
                                             .to_vector());

  check_op({{3, 37}, {37}}, rms_norm_);
  check_op({{2, 3, 5}, {5}}, rms_norm_);
  check_op({{67, 3}, {3}}, rms_norm_);  // two chunks of rows
  check_threads({{131, 67}, {67}}, rms_norm_);
  check_batch({{31, 67}, {67}}, rms_norm_);

  CHECK_THROWS_WITH_AS(rms_norm(tensor({}, {1}), one),
                       "widenet: rms_norm: x must be (..., D); got ()", ShapeError);
  CHECK_THROWS_WITH_AS(rms_norm(x, tensor({3}, {1, 1, 1})),
                       "widenet: rms_norm: gamma must be (D) = (4); got (3)", ShapeError);
}

TEST_CASE("gelu: known values, gradients, bits") {
  const auto x = tensor({5}, {0, 1, -1, 2, -100});
  check::close(gelu(x, Gelu::erf),  // x Phi(x)
               {0, 0.8413447460685429, -0.15865525393145707, 1.9544997361036416, 0});
  check::close(gelu(x, Gelu::tanh), {0, 0.8411919906082768, -0.15880800939172324,
                                     1.954597694087775, 0});
  check::close(gelu(x), gelu(x, Gelu::tanh).to_vector());
  check_op({{3, 5}}, gelu_tanh);
  check_op({{3, 5}}, gelu_erf);
  check_threads({{97, 101}}, gelu_tanh);
  check_threads({{97, 101}}, gelu_erf);
}

TEST_CASE("gelu: the forms are their formulas, and up to 4.73e-4 apart") {
  Values x, tanh_form, erf_form;
  for (int i = -600; i <= 600; ++i) {
    const double v = i / 100.0;
    x.push_back(v);
    const double inner = std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v);
    tanh_form.push_back(v / 2 * (1 + std::tanh(inner)));
    erf_form.push_back(v / 2 * std::erfc(-v / std::sqrt(2.0)));
  }
  const auto in = tensor({1201}, x);
  check::close(gelu(in, Gelu::tanh), tanh_form);
  check::close(gelu(in, Gelu::erf), erf_form);
  const Difference apart = compare(gelu(in, Gelu::tanh).to_vector(), erf_form);
  CHECK(std::fabs(apart.max_absolute - 4.73e-4) < 0.01e-4);
  CHECK(std::fabs(std::fabs(x[static_cast<std::size_t>(apart.at)]) - 2.7) < 0.05);
}

TEST_CASE("relu: known values, gradients, bits") {
  const auto x = tensor({4}, {-2, 0, 0.5, 3}).require_gradient();
  const auto y = relu(x);
  check::close(y, {0, 0, 0.5, 3});
  y.backward(Buffer<double>(Values{1, 2, 3, 4}));
  check::close(x.gradient().to_vector(), {0, 0, 3, 4});
  const Values odd = relu(tensor({3}, {std::nan(""), -0.0, -HUGE_VAL})).to_vector();
  CHECK(std::isnan(odd[0]));
  CHECK(check::same_bits(Values{odd[1], odd[2]}, Values{0, 0}));
  check_op({{3, 5}}, relu_);
  check_threads({{97, 101}}, relu_);
}

TEST_CASE("tanh: known values, gradients, bits") {
  check::close(tanh(tensor({4}, {0, std::log(2.0), -std::log(3.0), 100})), {0, 0.6, -0.8, 1});
  check_op({{3, 5}}, tanh_);
  check_threads({{97, 101}}, tanh_);
}

TEST_CASE("softmax: known values, gradients, bits") {
  const double a = std::log(2.0), b = std::log(5.0);
  check::close(softmax(tensor({2, 3}, {0, a, b, 7, 7, 7})),
               {0.125, 0.25, 0.625, 1.0 / 3, 1.0 / 3, 1.0 / 3});
  const double infinity = std::numeric_limits<double>::infinity();
  check::close(softmax(tensor({2, 2}, {1000, 1000, 3, -infinity})), {0.5, 0.5, 1, 0});
  check_op({{3, 5}}, softmax_);
  check_op({{2, 3, 37}}, softmax_);
  check_threads({{97, 101}}, softmax_);
  check_batch({{31, 37}}, softmax_);
}

TEST_CASE("softmax: denormal probabilities are not flushed to zero") {
  const Tensor<float> x(Shape{1, 2}, std::vector<float>{0, -100});
  const float p = softmax(x).to_vector()[1];
  CHECK(p == math::exp(-100.0f));
  CHECK(p > 0);
}

TEST_CASE("dropout: the mask follows its stream, in backward as in forward") {
  const Index n = 100003;
  const double fraction = 0.3;
  const Rng rng = Rng(3).at_step(1);
  const auto x = Tensor<double>::full({n}, 1).require_gradient();
  const auto y = dropout(x, fraction, rng);
  y.backward(Tensor<double>::full({n}, 1).value());
  const Values values = y.to_vector();
  CHECK(check::same_bits(values, x.gradient().to_vector()));
  Index dropped = 0;
  for (Index i = 0; i < n; ++i) {
    const bool is_dropped = rng.uniform(i) < fraction;
    REQUIRE(values[static_cast<std::size_t>(i)] == (is_dropped ? 0 : 1 / (1 - fraction)));
    dropped += is_dropped ? 1 : 0;
  }
  CHECK(std::fabs(double(dropped) - fraction * n) < 5 * std::sqrt(n * fraction * (1 - fraction)));
  CHECK_FALSE(check::same_bits(values, dropout(x, fraction, rng.at_step(2)).to_vector()));
}

TEST_CASE("dropout: gradients, bits, errors") {
  check_op({{7, 11}}, dropout_);
  check_threads({{97, 101}}, dropout_);
  const auto x = tensor({2}, {1, 2});
  check::close(dropout(x, 0, Rng(3)), {1, 2});
  CHECK_THROWS_WITH_AS(dropout(x, 1, Rng(3)),
                       "widenet: dropout: the fraction must lie in [0, 1); got 1", ValueError);
  CHECK_THROWS_WITH_AS(dropout(x, -0.5, Rng(3)),
                       "widenet: dropout: the fraction must lie in [0, 1); got -0.5", ValueError);
  CHECK_THROWS_AS(dropout(x, std::nan(""), Rng(3)), ValueError);
}

TEST_CASE("take_rows: known values, there and back; errors") {
  const auto x = tensor({4, 2}, {1, 2, 3, 4, 5, 6, 7, 8});
  const Buffer<std::int32_t> index(std::vector<std::int32_t>{2, 0, 3});
  const Buffer<std::int32_t> inverse(std::vector<std::int32_t>{1, -1, 0, 2});
  const auto y = take_rows(x, index, inverse);
  check::close(y, {5, 6, 1, 2, 7, 8});
  check::close(take_rows(y, inverse, index), {1, 2, 0, 0, 5, 6, 7, 8});
  CHECK_THROWS_WITH_AS(take_rows(y, index, inverse),
                       "widenet: take_rows: x must be (M, D) with M = 4; got (3, 2)", ShapeError);
  CHECK_THROWS_AS(take_rows(tensor({4}, {1, 2, 3, 4}), index, inverse), ShapeError);
}

TEST_CASE("take_rows: gradients, and values that were forgotten come back") {
  const auto x = check::normal({4, 37}, 0);
  const Buffer<std::int32_t> index(std::vector<std::int32_t>{2, 0, 3});
  const Buffer<std::int32_t> inverse(std::vector<std::int32_t>{1, -1, 0, 2});
  const auto there = [&] { return take_rows(x, index, inverse); };
  const auto back = [&] { return take_rows(there(), inverse, index); };
  for (const auto& f : {std::function<Tensor<double>()>(there),
                        std::function<Tensor<double>()>(back)}) {
    check::poison_memory();
    check::gradients(f, {x});
    check::gradients_bite(f, {x});
  }
  const auto y = there();
  const std::vector<double> before = y.to_vector();
  y.forget();
  check::poison_memory();
  CHECK(check::same_bits(y.to_vector(), before));
}

TEST_CASE("embedding: known values, gradients, bits, errors") {
  const auto table = tensor({3, 2}, {1, 2, 3, 4, 5, 6});
  table.require_gradient();
  const auto y = embedding({2, 0, 2}, table);
  CHECK(y.shape() == Shape{3, 2});
  check::close(y, {5, 6, 1, 2, 5, 6});
  y.backward(Buffer<double>(Values{1, 2, 10, 20, 100, 200}));
  check::close(table.gradient().to_vector(), {10, 20, 0, 0, 101, 202});
  CHECK(embedding({}, table).shape() == Shape{0, 2});

  check_op({{7, 5}}, [](const auto& x) { return embedding({3, 6, 3, 0, 3, 6, 5, 3}, x[0]); });
  std::vector<std::int32_t> many;
  for (Index i = 0; i < 1009; ++i) many.push_back(static_cast<std::int32_t>(Rng(3).word(i) % 13));
  check_threads({{13, 37}}, [&](const auto& x) { return embedding(many, x[0]); });

  CHECK_THROWS_WITH_AS(embedding({0, 3}, table),
                       "widenet: embedding: ids must lie in [0, 3); got id[1] = 3", ValueError);
  CHECK_THROWS_WITH_AS(embedding({-1}, table),
                       "widenet: embedding: ids must lie in [0, 3); got id[0] = -1", ValueError);
  CHECK_THROWS_WITH_AS(embedding({0}, tensor({2}, {1, 2})),
                       "widenet: embedding: the table must be (V, D); got (2)", ShapeError);
}

TEST_CASE("add_to_sequences: known values, gradients, bits, errors") {
  const auto x = tensor({2, 2, 1}, {1, 2, 3, 4}), block = tensor({2, 1}, {10, 20});
  check::close(add_to_sequences(x, block), {11, 22, 13, 24});
  CHECK(add_to_sequences(Tensor<double>(Shape{2, 0, 3}), Tensor<double>(Shape{0, 3})).size() == 0);
  check_op({{2, 3, 5}, {3, 5}}, add_to_sequences_);
  check_op({{67, 2, 3}, {2, 3}}, add_to_sequences_);
  check_threads({{67, 11, 13}, {11, 13}}, add_to_sequences_);
  check_batch({{5, 7, 11}, {7, 11}}, add_to_sequences_);
  CHECK_THROWS_WITH_AS(add_to_sequences(x, tensor({1, 2}, {1, 2})),
                       "widenet: add_to_sequences: x (B, T, D) and block (T, D) must fit; got "
                       "(2, 2, 1), (1, 2)",
                       ShapeError);
  CHECK_THROWS_AS(add_to_sequences(block, block), ShapeError);
}

TEST_CASE("concat_tokens: known values, gradients, bits, errors") {
  const auto a = tensor({2, 1, 2}, {1, 2, 3, 4});
  const auto b = tensor({2, 2, 2}, {10, 20, 30, 40, 50, 60, 70, 80});
  const auto y = concat_tokens(a, b);
  CHECK(y.shape() == Shape{2, 3, 2});
  check::close(y, {1, 2, 10, 20, 30, 40, 3, 4, 50, 60, 70, 80});
  check_op({{2, 3, 5}, {2, 7, 5}}, concat_);
  check_threads({{11, 13, 37}, {11, 17, 37}}, concat_);
  check_batch({{5, 3, 7}, {5, 2, 7}}, concat_, 2);
  CHECK_THROWS_WITH_AS(concat_tokens(a, tensor({1, 2, 2}, {1, 2, 3, 4})),
                       "widenet: concat_tokens: a and b must be (B, T, D) with one B and D; got "
                       "(2, 1, 2), (1, 2, 2)",
                       ShapeError);
  CHECK_THROWS_AS(concat_tokens(a, check::normal({2, 1, 3}, 0)), ShapeError);
  CHECK_THROWS_AS(concat_tokens(check::normal({2, 2}, 0), a), ShapeError);
}

TEST_CASE("prepend_token: known values, gradients, bits, errors") {
  const auto token = tensor({2}, {8, 9}), x = tensor({2, 1, 2}, {1, 2, 3, 4});
  const auto y = prepend_token(token, x);
  CHECK(y.shape() == Shape{2, 2, 2});
  check::close(y, {8, 9, 1, 2, 8, 9, 3, 4});
  check::poison_memory();
  check::close(prepend_token({}, x), {0, 0, 1, 2, 0, 0, 3, 4});
  check_op({{3, 2, 5}, {5}}, prepend_);
  check_op({{3, 2, 5}}, [](const auto& in) { return prepend_token({}, in[0]); });
  check_threads({{131, 3, 37}, {37}}, prepend_);
  check_batch({{5, 3, 7}, {7}}, prepend_);
  CHECK_THROWS_WITH_AS(prepend_token(tensor({1}, {1}), x),
                       "widenet: prepend_token: x must be (B, T, D) and the token (D); got "
                       "(2, 1, 2), (1)",
                       ShapeError);
  CHECK_THROWS_WITH_AS(prepend_token({}, token),
                       "widenet: prepend_token: x must be (B, T, D) and the token (D); got (2), "
                       "(2)",
                       ShapeError);
}

TEST_CASE("slice_tokens: known values, gradients, bits, errors") {
  const auto x = tensor({2, 3, 1}, {1, 2, 3, 4, 5, 6}).require_gradient();
  const auto y = slice_tokens(x, 1, 2);
  CHECK(y.shape() == Shape{2, 2, 1});
  check::close(y, {2, 3, 5, 6});
  y.backward(Buffer<double>(Values{1, 2, 3, 4}));
  check::close(x.gradient().to_vector(), {0, 1, 2, 0, 3, 4});
  CHECK(slice_tokens(x, 3, 0).shape() == Shape{2, 0, 1});
  check_op({{2, 7, 5}}, slice_);
  check_threads({{31, 13, 37}}, slice_);
  check_batch({{5, 7, 11}}, slice_);
  CHECK_THROWS_WITH_AS(slice_tokens(x, 2, 2),
                       "widenet: slice_tokens: tokens must lie in [0, 3); got 2 from 2",
                       ValueError);
  CHECK_THROWS_WITH_AS(slice_tokens(x, -1, 2),
                       "widenet: slice_tokens: tokens must lie in [0, 3); got 2 from -1",
                       ValueError);
  const Index most = std::numeric_limits<Index>::max();
  CHECK_THROWS_AS(slice_tokens(x, most, most), ValueError);
  CHECK_THROWS_WITH_AS(slice_tokens(tensor({2}, {1, 2}), 0, 1),
                       "widenet: slice_tokens: x must be (B, T, D); got (2)", ShapeError);
}

TEST_CASE("mean_tokens: known values, gradients, bits, errors") {
  const auto y = mean_tokens(tensor({2, 2, 2}, {1, 2, 3, 6, 10, 20, 30, 60}));
  CHECK(y.shape() == Shape{2, 2});
  check::close(y, {2, 4, 20, 40});
  check_op({{2, 7, 5}}, mean_);
  check_threads({{31, 13, 37}}, mean_);
  check_batch({{5, 7, 11}}, mean_);
  CHECK_THROWS_WITH_AS(mean_tokens(tensor({2}, {1, 2})),
                       "widenet: mean_tokens: x must be (B, T, D) with T > 0; got (2)", ShapeError);
  CHECK_THROWS_WITH_AS(mean_tokens(Tensor<double>(Shape{2, 0, 3})),
                       "widenet: mean_tokens: x must be (B, T, D) with T > 0; got (2, 0, 3)",
                       ShapeError);
}

// Two tokens, two heads of one feature. Keys are 0 and 1, so the scores of query q are 0 and q.
TEST_CASE("attention: known values") {
  const double a = std::log(3.0), b = std::log(7.0);
  const auto q = tensor({1, 2, 2}, {a, -a, 0, b}), k = tensor({1, 2, 2}, {0, 0, 1, 1});
  const auto v = tensor({1, 2, 2}, {4, 8, 8, 16});
  check::close(attention(q, k, v, 2), {7, 10, 6, 15});
  // One head of four features divides the scores by 2.
  const auto wide_q = tensor({1, 2, 4}, {2 * a, 5, 5, 5, 0, 5, 5, 5});
  const auto wide_k = tensor({1, 2, 4}, {0, 0, 0, 0, 1, 0, 0, 0});
  const auto wide_v = tensor({1, 2, 4}, {4, 40, 0, 1, 8, 80, 0, 1});
  check::close(attention(wide_q, wide_k, wide_v, 1), {7, 70, 0, 1, 6, 60, 0, 1});
}

TEST_CASE("attention: keys that are masked are left out; without any key the result is 0") {
  const double a = std::log(3.0);
  const auto q = tensor({2, 2, 1}, {a, 0, a, 0}), k = tensor({2, 2, 1}, {0, 1, 0, 1});
  const auto v = tensor({2, 2, 1}, {4, 8, 4, 8});
  const auto masked = [&](const std::vector<std::uint8_t>& mask) {
    return attention(q, k, v, 1, Buffer<std::uint8_t>(mask));
  };
  check::close(masked({1, 1, 1, 1}), {7, 6, 7, 6});
  check::close(masked({1, 0, 1, 1}), {4, 4, 7, 6});
  check::close(masked({0, 1, 1, 0}), {8, 8, 4, 4});
  check::close(masked({0, 0, 1, 1}), {0, 0, 7, 6});
}

TEST_CASE("attention: gradients") {
  check_op({{2, 5, 6}, {2, 5, 6}, {2, 5, 6}}, attention_of(3));
  check_op({{1, 37, 3}, {1, 37, 3}, {1, 37, 3}}, attention_of(1));  // more tokens than lanes
  const auto mask = [](const std::vector<std::uint8_t>& m) { return Buffer<std::uint8_t>(m); };
  check_op({{2, 5, 6}, {2, 5, 6}, {2, 5, 6}},
           attention_of(2, mask({1, 0, 1, 1, 0,  1, 1, 1, 0, 0})));
  check_op({{2, 3, 2}, {2, 3, 2}, {2, 3, 2}}, attention_of(1, mask({0, 0, 0,  1, 0, 1})));
}

TEST_CASE("attention: a sequence without keys has zero gradients") {
  auto in = normals<double>({{1, 3, 2}, {1, 3, 2}, {1, 3, 2}});
  const auto op = attention_of(1, Buffer<std::uint8_t>(std::vector<std::uint8_t>{0, 0, 0}));
  for (const auto& values : run_for_all(in, op, check::normal({1, 3, 2}, 99)))
    check::close(values, Values(6, 0));
}

TEST_CASE("attention: masked tokens do not matter, neither their values nor their number") {
  const auto in = normals<float>({{1, 7, 6}, {1, 7, 6}, {1, 7, 6}});
  const std::vector<std::uint8_t> mask = {1, 1, 1, 1, 1, 0, 0};
  Inputs<float> changed, cut;
  for (const auto& x : in) {
    changed.push_back(concat_tokens(slice_tokens(x, 0, 5), Tensor<float>::full({1, 2, 6}, 1e6f)));
    cut.push_back(slice_tokens(x, 0, 5));
  }
  const auto op = attention_of(2, Buffer<std::uint8_t>(mask));
  const auto first_five = [](const Tensor<float>& y) { return slice_tokens(y, 0, 5).to_vector(); };
  CHECK(check::same_bits(first_five(op(in)), first_five(op(changed))));
  CHECK(compare(first_five(op(in)), attention_of(2)(cut).to_vector()).max_relative < 1e-6);
}

// Rows of scores are padded to the 32 lanes: what stands there must not matter.
TEST_CASE("attention: the padding of scores does not matter") {
  const std::vector<Shape> shapes(3, {2, 37, 6});
  const auto in = normals<double>(shapes);
  const auto dy = check::normal({2, 37, 6}, 99);
  const auto with_padding = [&](double value) {
    const Index num_scores = 2 * 3 * 37 * 64;
    { const auto p = Tensor<double>::full({num_scores}, value), ds = 2 * p; }  // leaves `value`
    std::vector<double> all;
    for (const auto& values : run_for_all(in, attention_of(3), dy)) check::append(all, values);
    return all;
  };
  const auto expected = with_padding(0);
  for (const double value : {1e300, std::numeric_limits<double>::infinity(), std::nan("")})
    CHECK(check::same_bits(with_padding(value), expected));
}

TEST_CASE("attention: bits") {
  const std::vector<Shape> shapes(3, {5, 37, 22});
  check_threads(shapes, attention_of(2));
  check_batch(shapes, attention_of(2), 3, Made::by_products);
  std::vector<std::uint8_t> mask;
  for (Index i = 0; i < 5 * 37; ++i) mask.push_back(Rng(3).word(i) % 3 > 0);
  check_threads(shapes, attention_of(2, Buffer<std::uint8_t>(mask)));
}

TEST_CASE("attention: errors") {
  const auto x = check::normal({2, 3, 4}, 0), y = check::normal({2, 3, 2}, 0);
  CHECK_THROWS_WITH_AS(
      attention(x, y, x, 2),
      "widenet: attention: q, k and v must be (B, T, D); got (2, 3, 4), (2, 3, 2), (2, 3, 4)",
      ShapeError);
  CHECK_THROWS_AS(attention(x, x, y, 2), ShapeError);
  CHECK_THROWS_WITH_AS(attention(x, x, x, 3),
                       "widenet: attention: the heads must divide D = 4; got H = 3", ShapeError);
  CHECK_THROWS_AS(attention(x, x, x, 0), ShapeError);
  CHECK_THROWS_WITH_AS(attention(x, x, x, 2, Buffer<std::uint8_t>(std::vector<std::uint8_t>{1})),
                       "widenet: attention: key_mask must have B * T = 6 values; got 1",
                       ShapeError);
}
