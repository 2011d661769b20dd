// Tests for chapter 7, autograd.
#include "check.hpp"

using namespace widenet;
using check::tensor;

namespace {

using Values = std::vector<double>;

Tensor<double> parameter(const Shape& shape, const Values& values) {
  return tensor(shape, values).require_gradient();
}

}  // namespace

TEST_CASE("autograd: makes tensors of zeros, of one value, of random values") {
  CHECK(Tensor<float>::zeros({2, 2}).to_vector() == std::vector<float>{0, 0, 0, 0});
  CHECK(Tensor<float>::full({3}, 2.5f).to_vector() == std::vector<float>{2.5f, 2.5f, 2.5f});
  CHECK(Tensor<float>::full({}, 2.5f).item() == 2.5f);
  CHECK(Tensor<float>({1}, {2.5f}).item() == 2.5f);  // {2.5f} could be a vector or a Buffer
  CHECK(Tensor<float>({0}, {}).size() == 0);
  CHECK_FALSE(Tensor<float>());
  CHECK(Tensor<float>::zeros({2}));
  CHECK_THROWS_WITH_AS(tensor({2}, {1, 2}).item(),
                       "widenet: item: the tensor must have 1 value; got (2)", ShapeError);
}

TEST_CASE("autograd: a tensor that refers to nothing is no operand") {
  const char* const text = "widenet: Tensor: it must have values; got one that refers to nothing";
  const auto x = parameter({1}, {3});
  const Tensor<double> nothing;
  CHECK_THROWS_WITH_AS(gelu(nothing), text, ValueError);
  CHECK_THROWS_WITH_AS(sum(nothing), text, ValueError);
  CHECK_THROWS_WITH_AS(x + nothing, text, ValueError);
  CHECK_THROWS_WITH_AS(linear(nothing, x), text, ValueError);
  CHECK_THROWS_WITH_AS(nothing.item(), text, ValueError);
  CHECK_THROWS_WITH_AS(nothing.backward(), text, ValueError);
  CHECK_THROWS_WITH_AS(nothing.require_gradient(), text, ValueError);
  CHECK_THROWS_WITH_AS(nothing.gradient(), text, ValueError);
  CHECK_THROWS_WITH_AS(nothing.zero_gradient(), text, ValueError);
  Tensor<double> moved = x;
  const auto y = std::move(moved);
  CHECK(y.item() == 3);
  CHECK_THROWS_WITH_AS(moved.item(), text, ValueError);
}

TEST_CASE("autograd: an input used twice gets both gradients") {
  const auto x = parameter({1}, {3});
  multiply(x, x).backward();
  check::close(x.gradient().to_vector(), {6});
  x.zero_gradient();
  (x + x).backward();
  check::close(x.gradient().to_vector(), {2});
  x.zero_gradient();
  (multiply(x, 2.0 * x) + 5.0 * x).backward();  // 2 x^2 + 5 x
  check::close(x.gradient().to_vector(), {17});
}

TEST_CASE("autograd: a gradient is complete before it is passed on") {
  const auto x = parameter({1}, {2});
  const auto a = 3.0 * x, b = multiply(a, a), c = b + a;  // a is used by b and by c
  multiply(c, b).backward();  // (9 x^2 + 3 x) 9 x^2 = 81 x^4 + 27 x^3
  check::close(x.gradient().to_vector(), {324 * 8 + 81 * 4});
}

TEST_CASE("autograd: gradients accumulate until they are zeroed") {
  const auto x = parameter({2}, {1, 2});
  CHECK_FALSE(x.has_gradient());
  CHECK(x.gradient().to_vector() == Values{0, 0});  // nothing has contributed
  sum(3.0 * x).backward();
  sum(4.0 * x).backward();
  CHECK(x.gradient().to_vector() == Values{7, 7});
  x.zero_gradient();
  CHECK_FALSE(x.has_gradient());
  sum(5.0 * x).backward();
  CHECK(x.gradient().to_vector() == Values{5, 5});
}

TEST_CASE("autograd: a gradient that was read stays as it was read") {
  const auto x = parameter({2}, {1, 2});
  sum(3.0 * x).backward();
  const Buffer<double> first = x.gradient();
  sum(4.0 * x).backward();
  const Buffer<double> second = x.gradient();
  x.zero_gradient();
  sum(5.0 * x).backward();
  CHECK(first.to_vector() == Values{3, 3});
  CHECK(second.to_vector() == Values{7, 7});
  CHECK(x.gradient().to_vector() == Values{5, 5});
}

// Backward of y = a + b gives a and b the memory of dy. Then 5 a, which is older than y, adds to
// the gradient of a: were that done in place, b would get 6 as well, and so would dy.
TEST_CASE("autograd: a gradient with shared memory is copied when somebody writes to it") {
  const auto p = parameter({2}, {1, 2}), q = parameter({2}, {3, 4});
  const auto a = 2.0 * p, b = 3.0 * q;
  const auto scaled = 5.0 * a, y = a + b, z = y + scaled;
  const Buffer<double> dz(Values{1, 10});
  z.backward(dz);
  CHECK(p.gradient().to_vector() == Values{12, 120});
  CHECK(q.gradient().to_vector() == Values{3, 30});
  CHECK(dz.to_vector() == Values{1, 10});
}

TEST_CASE("autograd: the gradient of a parameter has memory of its own") {
  const auto a = parameter({2}, {1, 2}), b = parameter({2}, {3, 4});
  const Buffer<double> dy(Values{1, 10});
  (a + b).backward(dy);
  CHECK(a.gradient().data() != b.gradient().data());
  CHECK(a.gradient().data() != dy.data());
}

TEST_CASE("autograd: only what asks for a gradient, or depends on what does, has one") {
  const auto x = tensor({2}, {1, 2}), w = parameter({2}, {3, 4});
  CHECK_FALSE(multiply(x, x).needs_gradient());
  const auto y = multiply(x, w);
  CHECK(y.needs_gradient());
  sum(y).backward();
  CHECK_FALSE(x.has_gradient());
  CHECK(w.gradient().to_vector() == Values{1, 2});
  CHECK_FALSE(y.has_gradient());  // it had one only for as long as backward needed it
}

TEST_CASE("autograd: a result keeps its gradient if asked to") {
  const auto x = parameter({2}, {1, 2});
  const auto y = (3.0 * x).require_gradient();
  sum(multiply(y, y)).backward();
  CHECK(y.gradient().to_vector() == Values{6, 12});
  CHECK(x.gradient().to_vector() == Values{18, 36});
}

TEST_CASE("autograd: backward from a parameter adds dy to its gradient") {
  const auto x = parameter({2}, {1, 2});
  x.backward(Buffer<double>(Values{5, 6}));
  x.backward(Buffer<double>(Values{1, 1}));
  CHECK(x.gradient().to_vector() == Values{6, 7});
}

TEST_CASE("autograd: inside NoGrad no graph is recorded") {
  const auto x = parameter({2}, {1, 2});
  {
    const NoGrad outer;
    { const NoGrad inner; }
    CHECK_FALSE((2.0 * x).needs_gradient());
  }
  CHECK((2.0 * x).needs_gradient());
}

TEST_CASE("autograd: a detached tensor shares values and has no history") {
  const auto x = parameter({2}, {1, 2});
  const auto y = 3.0 * x, constant = y.detached();
  CHECK(constant.data() == y.data());
  CHECK_FALSE(constant.needs_gradient());
  sum(multiply(y, constant)).backward();
  CHECK(x.gradient().to_vector() == Values{9, 18});  // 3 * constant
}

TEST_CASE("autograd: a reshaped tensor shares values and passes gradients on") {
  const auto x = parameter({2, 3}, {1, 2, 3, 4, 5, 6});
  const auto y = x.reshaped({3, 2});
  CHECK(y.shape() == Shape{3, 2});
  CHECK(y.data() == x.data());
  y.backward(Buffer<double>(Values{1, 2, 3, 4, 5, 6}));
  CHECK(x.gradient().to_vector() == Values{1, 2, 3, 4, 5, 6});
  CHECK_THROWS_WITH_AS(x.reshaped({4, 2}),
                       "widenet: reshaped: the number of values must stay 6; got (4, 2)",
                       ShapeError);
}

TEST_CASE("autograd: the memory of a graph is freed, whether it was walked or not") {
  const auto x = parameter({1000}, Values(1000, 0.5));
  x.gradient();
  const Index before = memory_use().in_use;
  {
    const auto y = sum(multiply(tanh(x), 2.0 * x));
    CHECK(memory_use().in_use > before + 3 * 8000);
  }
  CHECK(memory_use().in_use == before);
  const auto y = sum(multiply(tanh(x), 2.0 * x));
  y.backward();
  CHECK(memory_use().in_use == before + 64);  // y keeps its value
}

TEST_CASE("autograd: backward frees the graph on the way") {
  release_cached_memory();
  const Index n = 100000, before = memory_use().in_use;
  const auto x = parameter({n}, Values(static_cast<std::size_t>(n), 0.5));
  Tensor<double> y = x;
  for (int i = 0; i < 20; ++i) y = 1.0 * y;
  y = sum(y);
  const Index built = memory_use().in_use - before;
  CHECK(built > 20 * n * 8);
  y.backward();
  CHECK(memory_use().peak_in_use - before < built + 4 * n * 8);  // not 20 gradients at once
}

TEST_CASE("autograd: a long graph is freed without recursion, walked or not") {
  const int length = 100000;
  const auto x = parameter({1}, {1});
  const auto make_chain = [&] {
    Tensor<double> y = x;
    for (int i = 0; i < length; ++i) y = 1.0 * y;
    return y;
  };
  const Index before = memory_use().in_use;
  { const auto y = make_chain(); }
  CHECK(memory_use().in_use == before);
  make_chain().backward();
  CHECK(x.gradient().to_vector() == Values{1});
}

TEST_CASE("autograd: a long graph with two ways at every node is freed and walked once") {
  const int length = 100000;
  const auto x = parameter({1}, {1});
  const auto make_ladder = [&] {
    Tensor<double> y = x;
    for (int i = 0; i < length; ++i) y = 0.5 * (y + y);
    return y;
  };
  { const auto y = make_ladder(); }
  make_ladder().backward();
  CHECK(x.gradient().to_vector() == Values{1});
}

TEST_CASE("autograd: forgotten values are computed again, with the same bits") {
  const auto x = check::normal<float>({31, 67}, 0).require_gradient();
  const auto gamma = check::normal<float>({67}, 1), beta = check::normal<float>({67}, 2);
  const auto w = check::normal<float>({67, 5}, 3).require_gradient();
  const float eps = 0.5f;  // large enough to be seen
  const auto gradients = [&](bool forgets) {
    x.zero_gradient();
    w.zero_gradient();
    const auto h = layer_norm(x, gamma, beta, eps), view = h.reshaped({67, 31}), y = linear(h, w);
    std::vector<float> all = view.to_vector();
    if (forgets) {
      const Index before = memory_use().in_use;
      h.forget();
      CHECK(memory_use().in_use == before);  // the view still holds the values
      view.forget();
      CHECK(memory_use().in_use <= before - 31 * 67 * 4);
    }
    y.backward(check::normal<float>({31, 5}, 4).value());
    check::append(all, x.gradient().to_vector());
    check::append(all, w.gradient().to_vector());
    return all;
  };
  const auto expected = gradients(false);
  CHECK(check::same_bits(gradients(true), expected));

  const auto h = layer_norm(x, gamma, beta, eps), view = h.reshaped({67, 31});
  const auto values = view.to_vector();
  h.forget();
  view.forget();
  CHECK(check::same_bits(view.to_vector(), values));
  CHECK(check::same_bits(h.to_vector(), values));
}

TEST_CASE("autograd: what cannot be computed again is not forgotten") {
  const auto x = tensor({1, 2}, {1, 2}), one = tensor({2}, {1, 1});
  x.forget();
  CHECK(x.to_vector() == Values{1, 2});
  const NoGrad no_graph;
  const auto h = layer_norm(x, one, one);
  h.forget();
  CHECK(h.to_vector().size() == 2);
}

TEST_CASE("autograd: errors of backward") {
  const auto x = parameter({2}, {1, 2});
  CHECK_THROWS_WITH_AS(x.backward(),
                       "widenet: backward: without dy the tensor must have 1 value; got (2)",
                       ShapeError);
  CHECK_THROWS_WITH_AS((2.0 * x).backward(Buffer<double>(Values{1})),
                       "widenet: backward: dy must have 2 values; got 1", ShapeError);
  CHECK_THROWS_WITH_AS(sum(tensor({2}, {1, 2})).backward(),
                       "widenet: backward: the tensor must depend on a parameter; got one that "
                       "does not",
                       ValueError);
}

TEST_CASE("autograd: a graph can be walked once") {
  const std::string text = "widenet: backward: a graph can be walked once; got multiply a second "
                           "time; hint: run forward again";
  const auto x = parameter({1}, {3});
  const auto y = multiply(x, x);
  y.backward();
  CHECK_THROWS_WITH_AS(y.backward(), text.c_str(), ValueError);
  CHECK(x.gradient().to_vector() == Values{6});
  // Half of this graph was walked before: without an error x would miss its part of the gradient.
  CHECK_THROWS_WITH_AS((2.0 * y).backward(), text.c_str(), ValueError);
}

// A backward may have added to some gradients, or overwritten what it kept, before it throws.
TEST_CASE("autograd: a graph whose backward threw is not walked again") {
  const auto x = parameter({1}, {3});
  const auto make = [&](const char* operation) {
    const Tensor<double> y(x.shape(), x.value().clone());
    y.record(operation, {x}, [x](const Buffer<double>& dy) {
      x.add_gradient(dy);
      fail<Error>("no memory");
    });
    return y;
  };
  const auto y = make("y"), z = make("z");
  CHECK_THROWS_WITH_AS(y.backward(), "widenet: no memory", Error);
  CHECK_THROWS_WITH_AS(y.backward(),
                       "widenet: backward: a graph can be walked once; got y a second time; "
                       "hint: run forward again", ValueError);
  CHECK_THROWS_WITH_AS((2.0 * z).backward(), "widenet: no memory", Error);
  CHECK_THROWS_WITH_AS((2.0 * z).backward(),
                       "widenet: backward: a graph can be walked once; got z a second time; "
                       "hint: run forward again", ValueError);
  CHECK(x.gradient().to_vector() == Values{3});
}

TEST_CASE("autograd: gradcheck notices a backward that is off by 1.001") {
  const auto x = check::normal({3, 5}, 0), y = check::normal({3, 5}, 1);
  check::gradients([&] { return multiply(x, y); }, {x, y});
  CHECK(gradcheck([&] { return check::spoiled(multiply(x, y)); }, {x, y}).max_error > 1e-7);
  CHECK(gradcheck([&] { return multiply(check::spoiled(x), y); }, {x, y}).max_error > 1e-7);
  CHECK(gradcheck([&] { return multiply(check::spoiled(x), y); }, {y}).max_error < 1e-7);
}
