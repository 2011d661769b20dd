// Tests for chapter 9, layers.
#include "check.hpp"

using namespace widenet;
using check::tensor;

namespace {

using Values = std::vector<double>;

std::vector<std::string> names(const ParameterSet<double>& parameters) {
  std::vector<std::string> result;
  for (const auto& p : parameters.list()) result.push_back(p.name);
  return result;
}

/// The tensors to check gradients of: x and all parameters, which get values that are not 0.
std::vector<Tensor<double>> inputs_of(const ParameterSet<double>& parameters,
                                      const Tensor<double>& x) {
  std::vector<Tensor<double>> inputs = {x};
  for (const auto& p : parameters.list()) {
    const Index stream = static_cast<Index>(inputs.size());
    p.tensor.value().assign((0.7 * check::normal(p.tensor.shape(), stream)).to_vector());
    inputs.push_back(p.tensor);
  }
  return inputs;
}

}  // namespace

TEST_CASE("layers: a step of training has a stream for each purpose, block and micro-batch") {
  const Training training{Rng(5), /*step=*/3, /*micro_batch=*/2};
  const Words w = training.stream(Purpose::hidden_dropout, 4).words(1);
  const Words expected = Rng(5)
                             .for_purpose(Purpose::hidden_dropout)
                             .at_block(4)
                             .at_step(3)
                             .at_micro_batch(2)
                             .words(1);
  CHECK(w.x0 == expected.x0);
  CHECK(w.x3 == expected.x3);
}

TEST_CASE("layers: dropout happens in training only") {
  const auto x = check::normal({7, 11}, 0);
  const Training training{Rng(5), 3};
  const auto dropped = dropout_in(&training, Purpose::output_dropout, 1, x, 0.5).to_vector();
  CHECK(dropped == dropout(x, 0.5, training.stream(Purpose::output_dropout, 1)).to_vector());
  CHECK(dropped != x.to_vector());
  CHECK(dropout_in<double>(nullptr, Purpose::output_dropout, 1, x, 0.5).data() == x.data());
}

TEST_CASE("layers: a parameter set lists what it made, in order, and counts it") {
  ParameterSet<double> parameters(Rng(1));
  const Linear<double> first(parameters, "a", 3, 5);
  const LayerNorm<double> second(parameters, "b", 7);
  CHECK(names(parameters) ==
        std::vector<std::string>{"a.weight", "a.bias", "b.weight", "b.bias"});
  CHECK(parameters.count() == 3 * 5 + 5 + 7 + 7);
  CHECK(parameters.list()[0].tensor.data() == first.weight.data());
  for (const auto& p : parameters.list()) CHECK(p.tensor.needs_gradient());
  CHECK((Parameter<double>{"experts.{}.w1", {}}.is_stack()));
  CHECK_FALSE((Parameter<double>{"experts.w1", {}}.is_stack()));
}

TEST_CASE("layers: a set that only counts allocates nothing") {
  const MemoryUse before = memory_use();
  ParameterSet<double> parameters(Rng(1), /*counts_only=*/true);
  const Linear<double> layer(parameters, "a", 30000, 50000);
  const LayerNorm<double> norm(parameters, "b", 70000);
  CHECK_FALSE(layer.weight);
  CHECK(parameters.count() == Index(30000) * 50000 + 50000 + 2 * 70000);
  CHECK(parameters.list().empty());
  CHECK(memory_use().in_use == before.in_use);
  CHECK(memory_use().num_allocations == before.num_allocations);
}

TEST_CASE("layers: initial values follow from seed and name, not from what was made before") {
  ParameterSet<double> one(Rng(1)), other(Rng(1)), seed_2(Rng(2));
  const Values w = one.glorot("w", {3, 5}).to_vector();
  const Values first = other.normal("first", {3, 5}, 1).to_vector();
  CHECK(other.normal("second", {3, 5}, 1).to_vector() != first);
  CHECK(other.glorot("w", {3, 5}).to_vector() == w);
  CHECK(seed_2.glorot("w", {3, 5}).to_vector() != w);
  CHECK(one.glorot("v", {3, 5}).to_vector() != w);
}

// Every bound on a mean is five standard deviations of it.
TEST_CASE("layers: the laws of initial values") {
  ParameterSet<double> parameters(Rng(1));
  const Values w = parameters.glorot("w", {3, 101, 203}).to_vector();  // a stack of three
  const double a = std::sqrt(6.0 / (101 + 203)), n = double(w.size());
  double mean = 0, square = 0, largest = 0;
  for (const double x : w) {
    mean += x / n;
    square += x * x / n;
    largest = std::max(largest, std::fabs(x));
  }
  CHECK(largest < a);
  CHECK(largest > 0.999 * a);
  CHECK(std::fabs(mean) < 5 * a / std::sqrt(3 * n));
  CHECK(std::fabs(square - a * a / 3) < 5 * a * a * std::sqrt(4.0 / 45 / n));

  double normal_square = 0;
  const Values v = parameters.normal("v", {211, 97}, 0.02).to_vector();
  const double m = double(v.size());
  for (const double x : v) normal_square += x * x / m;
  CHECK(std::fabs(normal_square / 4e-4 - 1) < 5 * std::sqrt(2 / m));
  CHECK(parameters.constant("c", {3}, 2.5).to_vector() == Values{2.5, 2.5, 2.5});
}

TEST_CASE("layers: linear starts with bias 0, feed-forward with small biases") {
  ParameterSet<double> parameters(Rng(1));
  const Linear<double> layer(parameters, "a", 3, 5);
  CHECK(layer.weight.shape() == Shape{3, 5});
  check::close(layer.bias, {0, 0, 0, 0, 0});
  const FeedForward<double> ffn(parameters, "f", 3, 500);
  CHECK(ffn.fc1.weight.shape() == Shape{3, 500});
  CHECK(ffn.fc2.weight.shape() == Shape{500, 3});
  double square = 0;
  for (const double b : ffn.fc1.bias.to_vector()) square += b * b / 500;
  CHECK(std::fabs(square / 1e-12 - 1) < 5 * std::sqrt(2.0 / 500));
}

TEST_CASE("layers: linear is x w + b") {
  ParameterSet<double> parameters(Rng(1));
  const Linear<double> layer(parameters, "a", 3, 2);
  layer.weight.value().assign({1, 0, 0, 1, 2, -1});
  layer.bias.value().assign({10, 20});
  check::close(layer(tensor({2, 3}, {1, 2, 3, 4, 5, 6})), {17, 19, 26, 19});
}

TEST_CASE("layers: layer norm starts with gamma 1 and beta 0, and takes eps") {
  ParameterSet<double> parameters(Rng(1));
  const LayerNorm<double> norm(parameters, "n", 4);
  CHECK(norm.weight.to_vector() == Values{1, 1, 1, 1});
  CHECK(norm.bias.to_vector() == Values{0, 0, 0, 0});
  check::close(norm(tensor({1, 4}, {1, 3, 5, 7}), 4), {-1, -1.0 / 3, 1.0 / 3, 1});
}

TEST_CASE("layers: as RMSNorm a layer norm has no bias") {
  ParameterSet<double> parameters(Rng(1));
  const LayerNorm<double> norm(parameters, "n", 4, Norm::rms_norm);
  CHECK(names(parameters) == std::vector<std::string>{"n.weight"});
  CHECK(parameters.count() == 4);
  norm.weight.value().assign({1, 1, 2, 1});
  check::close(norm(tensor({1, 4}, {1, 3, 5, 7}), 4), {0.2, 0.6, 2, 1.4});
}

// Weights that send query, key and value to known places: x = (q, k, v, -) of two tokens with one
// head, where v reaches the result times 2, plus 1.
TEST_CASE("layers: attention projects to queries, keys, values and back") {
  ParameterSet<double> parameters(Rng(1));
  const Attention<double> layer(parameters, "attn", 4);
  CHECK(names(parameters) == std::vector<std::string>{"attn.q.weight", "attn.q.bias",
                                                      "attn.k.weight", "attn.k.bias",
                                                      "attn.v.weight", "attn.v.bias",
                                                      "attn.o.weight", "attn.o.bias"});
  const auto only = [](std::size_t row, std::size_t column, double value) {
    Values w(16, 0);
    w[4 * row + column] = value;
    return w;
  };
  layer.q.weight.value().assign(only(0, 0, 2));  // undoes the division by sqrt(4)
  layer.k.weight.value().assign(only(1, 0, 1));
  layer.v.weight.value().assign(only(2, 3, 1));
  layer.o.weight.value().assign(only(3, 1, 2));
  layer.o.bias.value().assign({1, 1, 1, 1});
  const auto x = tensor({1, 2, 4}, {std::log(3.0), 0, 4, 100, 0, 1, 8, 100});
  check::close(layer(x, 1), {1, 15, 1, 1, 1, 13, 1, 1});
  const Buffer<std::uint8_t> mask(std::vector<std::uint8_t>{1, 0});
  check::close(layer(x, 1, mask), {1, 9, 1, 1, 1, 9, 1, 1});
}

TEST_CASE("layers: feed-forward is a product, gelu and a product, with dropout after each") {
  ParameterSet<double> parameters(Rng(1));
  const FeedForward<double> ffn(parameters, "ffn", 5, 7);
  const auto x = check::normal({2, 3, 5}, 9);
  inputs_of(parameters, x);
  const auto w1 = ffn.fc1.weight.to_vector(), b1 = ffn.fc1.bias.to_vector();
  const auto w2 = ffn.fc2.weight.to_vector(), b2 = ffn.fc2.bias.to_vector(), in = x.to_vector();
  const Training training{Rng(5), 3};
  for (const Training* mode : {static_cast<const Training*>(nullptr), &training}) {
    const double fraction = 0.4;
    const auto mask = [&](Purpose purpose, std::size_t i) {
      if (!mode) return 1.0;
      const double u = training.stream(purpose, 2).uniform(static_cast<Index>(i));
      return u < fraction ? 0 : 1 / (1 - fraction);
    };
    Values expected;
    for (std::size_t n = 0; n < 6; ++n)
      for (std::size_t j = 0; j < 5; ++j) {
        double y = b2[j];
        for (std::size_t f = 0; f < 7; ++f) {
          double h = b1[f];
          for (std::size_t d = 0; d < 5; ++d) h += in[5 * n + d] * w1[7 * d + f];
          const double gelu = h / 2 * std::erfc(-h / std::sqrt(2.0));
          y += gelu * mask(Purpose::hidden_dropout, 7 * n + f) * w2[5 * f + j];
        }
        expected.push_back(y * mask(Purpose::output_dropout, 5 * n + j));
      }
    check::close(ffn(x, Gelu::erf, fraction, mode, /*block=*/2), expected);
  }
}

TEST_CASE("layers: gradients of everything that is learned") {
  const auto x = check::normal({2, 5, 6}, 0);
  {
    ParameterSet<double> parameters(Rng(1));
    const Linear<double> layer(parameters, "a", 6, 7);
    const auto f = [&] { return layer(x); };
    check::gradients(f, inputs_of(parameters, x));
    check::gradients_bite(f, inputs_of(parameters, x));
  }
  {
    ParameterSet<double> parameters(Rng(1));
    const LayerNorm<double> layer(parameters, "n", 6);
    const auto f = [&] { return layer(x, 1e-6); };
    check::gradients(f, inputs_of(parameters, x));
    check::gradients_bite(f, inputs_of(parameters, x));
  }
  {
    ParameterSet<double> parameters(Rng(1));
    const FeedForward<double> layer(parameters, "f", 6, 7);
    const Training training{Rng(5), 3};
    const auto f = [&] { return layer(x, Gelu::tanh, 0.3, &training, 0); };
    check::gradients(f, inputs_of(parameters, x));
    check::gradients_bite(f, inputs_of(parameters, x));
  }
  {
    ParameterSet<double> parameters(Rng(1));
    const Attention<double> layer(parameters, "a", 6);
    const auto f = [&] { return layer(x, 2); };
    std::vector<Tensor<double>> inputs = inputs_of(parameters, x);
    check::gradients(f, inputs);
    inputs.erase(inputs.begin() + 4);  // the bias of the keys moves all scores of a row alike:
    check::gradients_bite(f, inputs);  // its gradient is 0
  }
}
