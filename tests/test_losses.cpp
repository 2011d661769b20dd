// Tests for chapter 13, losses and metrics.
#include "check.hpp"

using namespace widenet;
using check::tensor;

namespace {

using Values = std::vector<double>;
using Labels = std::vector<std::int32_t>;

const double log_3 = std::log(3.0);  // the softmax of (0, log 3) is (1/4, 3/4)

}  // namespace

TEST_CASE("cross_entropy: known values") {
  const auto logits = tensor({2, 2}, {0, log_3, 0, log_3});
  CHECK(cross_entropy(logits, {1, 1}).shape() == Shape{});
  check::close(cross_entropy(logits, {1, 1}), {-std::log(0.75)});
  check::close(cross_entropy(logits, {1, 0}), {-(std::log(0.75) + std::log(0.25)) / 2});
  // Smoothing by 0.2 makes the target (0.1, 0.9).
  check::close(cross_entropy(logits, {1, 1}, 0.2), {-0.9 * std::log(0.75) - 0.1 * std::log(0.25)});
}

TEST_CASE("cross_entropy: known gradients") {
  const auto logits = tensor({2, 2}, {0, log_3, 0, log_3}).require_gradient();
  cross_entropy(logits, {1, 0}).backward();  // (p - target) / N
  check::close(logits.gradient().to_vector(), {0.125, -0.125, -0.375, 0.375});
  logits.zero_gradient();
  (6.0 * cross_entropy(logits, {1, 0}, 0.2)).backward();
  check::close(logits.gradient().to_vector(), {0.45, -0.45, -1.95, 1.95});
}

TEST_CASE("cross_entropy: large logits neither overflow nor lose the small ones") {
  check::close(cross_entropy(tensor({1, 3}, {1000, 1000 + log_3, -1e6}), {0}), {-std::log(0.25)});
  check::close(cross_entropy(tensor({1, 2}, {-1000, 1000}), {0}), {2000});
}

TEST_CASE("cross_entropy: a class that is impossible costs nothing unless it is the target") {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto logits = tensor({1, 3}, {0, log_3, -infinity}).require_gradient();
  const auto loss = cross_entropy(logits, {1});
  check::close(loss, {-std::log(0.75)});
  loss.backward();
  check::close(logits.gradient().to_vector(), {0.25, -0.25, 0});
}

TEST_CASE("cross_entropy: gradients, with and without smoothing") {
  const auto logits = check::normal({7, 37}, 0);
  const Labels labels = {0, 36, 5, 5, 31, 32, 17};
  for (const double smoothing : {0.0, 0.1}) {
    const auto f = [&] { return cross_entropy(logits, labels, smoothing); };
    check::poison_memory();
    check::gradients(f, {logits});
    check::gradients_bite(f, {logits});
  }
}

TEST_CASE("cross_entropy: a second gradient is added to the first") {
  const auto logits = check::normal({3, 5}, 0).require_gradient();
  cross_entropy(logits, {0, 1, 2}, 0.1).backward();
  Values once = logits.gradient().to_vector();
  cross_entropy(logits, {0, 1, 2}, 0.1).backward();
  for (double& g : once) g *= 2;
  check::close(logits.gradient().to_vector(), once);
}

TEST_CASE("cross_entropy: the same bits for any number of threads") {
  const auto logits = check::normal<float>({211, 37}, 0).require_gradient();
  Labels labels;
  for (Index n = 0; n < 211; ++n) labels.push_back(static_cast<std::int32_t>(n % 37));
  check::same_bits_for_all_threads([&] {
    logits.zero_gradient();
    const auto loss = cross_entropy(logits, labels, 0.1);
    loss.backward();
    std::vector<float> bits = loss.to_vector();
    check::append(bits, logits.gradient().to_vector());
    return bits;
  });
}

TEST_CASE("cross_entropy: errors") {
  const auto logits = check::normal({2, 3}, 0);
  CHECK_THROWS_WITH_AS(cross_entropy(logits, {0}),
                       "widenet: cross_entropy: logits must be (N, V) with a label for each row; "
                       "got (2, 3), 1 labels",
                       ShapeError);
  CHECK_THROWS_AS(cross_entropy(check::normal({6}, 0), {0, 1, 2, 0, 1, 2}), ShapeError);
  CHECK_THROWS_WITH_AS(cross_entropy(Tensor<double>(Shape{0, 3}), {}),
                       "widenet: cross_entropy: logits must be (N, V) with a label for each row; "
                       "got (0, 3), 0 labels",
                       ShapeError);
  CHECK_THROWS_WITH_AS(cross_entropy(logits, {0, 3}),
                       "widenet: cross_entropy: labels must lie in [0, 3); got label[1] = 3",
                       ValueError);
  CHECK_THROWS_WITH_AS(cross_entropy(logits, {-1, 0}),
                       "widenet: cross_entropy: labels must lie in [0, 3); got label[0] = -1",
                       ValueError);
  CHECK_THROWS_WITH_AS(cross_entropy(logits, {0, 1}, 1),
                       "widenet: cross_entropy: label_smoothing must lie in [0, 1); got 1",
                       ValueError);
  CHECK_THROWS_AS(cross_entropy(logits, {0, 1}, -0.1), ValueError);
}

TEST_CASE("soft_cross_entropy: known values") {
  const auto logits = tensor({2, 2}, {0, log_3, 0, log_3}).require_gradient();
  const auto loss = soft_cross_entropy(logits, tensor({2, 2}, {0.3, 0.7, 1, 0}));
  CHECK(loss.shape() == Shape{});
  check::close(loss, {-(0.3 * std::log(0.25) + 0.7 * std::log(0.75) + std::log(0.25)) / 2});
  loss.backward();  // (p - target) / N
  check::close(logits.gradient().to_vector(), {-0.025, 0.025, -0.375, 0.375});
  // Targets that add up to 2 count twice.
  logits.zero_gradient();
  const auto twice = soft_cross_entropy(logits, tensor({2, 2}, {0.6, 1.4, 2, 0}));
  check::close(twice, {2 * loss.item()});
  twice.backward();
  check::close(logits.gradient().to_vector(), {-0.05, 0.05, -0.75, 0.75});
}

TEST_CASE("soft_cross_entropy: certain targets, with and without smoothing, are labels") {
  const auto logits = check::normal({7, 37}, 0);
  const Labels labels = {0, 36, 5, 5, 31, 32, 17};
  for (const double smoothing : {0.0, 0.1}) {
    Values targets(7 * 37, smoothing / 37);
    for (std::size_t n = 0; n < 7; ++n)
      targets[n * 37 + static_cast<std::size_t>(labels[n])] += 1 - smoothing;
    check::close(soft_cross_entropy(logits, tensor({7, 37}, targets)),
                 {cross_entropy(logits, labels, smoothing).item()});
  }
}

TEST_CASE("soft_cross_entropy: large logits, impossible classes") {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto logits = tensor({1, 3}, {1000, 1000 + log_3, -infinity}).require_gradient();
  const auto loss = soft_cross_entropy(logits, tensor({1, 3}, {0.5, 0.5, 0}));
  check::close(loss, {-0.5 * (std::log(0.25) + std::log(0.75))});
  loss.backward();
  check::close(logits.gradient().to_vector(), {-0.25, 0.25, 0});
}

TEST_CASE("soft_cross_entropy: gradients, added to earlier ones; same bits; errors") {
  const auto logits = check::normal({7, 37}, 0), targets = softmax(check::normal({7, 37}, 1));
  const auto f = [&] { return soft_cross_entropy(logits, targets); };
  check::poison_memory();
  check::gradients(f, {logits});
  check::gradients_bite(f, {logits});

  logits.zero_gradient();
  f().backward();
  Values once = logits.gradient().to_vector();
  f().backward();
  for (double& g : once) g *= 2;
  check::close(logits.gradient().to_vector(), once);
  check::same_bits_for_all_threads([&] {
    logits.zero_gradient();
    f().backward();
    return logits.gradient().to_vector();
  });

  CHECK_THROWS_WITH_AS(soft_cross_entropy(logits, check::normal({7, 36}, 0)),
                       "widenet: soft_cross_entropy: logits and targets must be (N, V); got "
                       "(7, 37), (7, 36)",
                       ShapeError);
  CHECK_THROWS_AS(soft_cross_entropy(check::normal({7}, 0), check::normal({7}, 0)), ShapeError);
  CHECK_THROWS_AS(soft_cross_entropy(Tensor<double>(Shape{0, 3}), Tensor<double>(Shape{0, 3})),
                  ShapeError);
}

TEST_CASE("total_loss: main + lambda balance") {
  const auto main = tensor({}, {2}).require_gradient();
  const auto balance = tensor({}, {5}).require_gradient();
  check::close(total_loss(main, balance), {2.05});
  const auto loss = total_loss(main, balance, 0.1);
  check::close(loss, {2.5});
  loss.backward();
  check::close(main.gradient().to_vector(), {1});
  check::close(balance.gradient().to_vector(), {0.1});
}

TEST_CASE("accuracy: predictions are the first of the largest logits") {
  const auto logits = tensor({4, 3}, {1, 2, 0,  5, 5, 1,  0, -1, 0.5,  -3, -1, -2});
  CHECK(predictions(logits) == Labels{1, 0, 2, 1});
  CHECK(accuracy(logits, {1, 0, 2, 1}) == 1);
  CHECK(accuracy(logits, {1, 1, 2, 0}) == 0.5);
  CHECK_THROWS_WITH_AS(accuracy(logits, {1, 2}),
                       "widenet: accuracy: there must be a label for each of the 4 rows; got 2",
                       ShapeError);
  CHECK_THROWS_AS(accuracy(Tensor<double>(Shape{0, 3}), {}), ShapeError);
}

TEST_CASE("router_entropy: ln E for a router without preference, 0 for a certain one") {
  Routing<double> routing;
  routing.N = 3;
  routing.E = 4;
  routing.probabilities =
      tensor({3, 4}, {0.25, 0.25, 0.25, 0.25,  0, 1, 0, 0,  0.5, 0, 0, 0.5});
  check::close({router_entropy(routing)}, {(std::log(4.0) + std::log(2.0)) / 3});
}

TEST_CASE("layer_norm_divergence: known values") {
  const auto all = ElementPairs::all, matched = ElementPairs::matched;
  const std::vector<Values> far = {{1}, {4}}, same = {{1, 3}, {1, 3}}, three = {{0}, {1}, {3}};
  check::close({layer_norm_divergence(far, all), layer_norm_divergence(far, matched)}, {9, 9});
  check::close({layer_norm_divergence(same, all), layer_norm_divergence(same, matched)}, {2, 0});
  check::close({layer_norm_divergence(three, all)}, {(1.0 + 9 + 4) / 3});
}

TEST_CASE("layer_norm_divergence: the closed form is the sum, also far from zero") {
  const std::size_t L = 5, D = 7;
  for (const double offset : {0.0, 1e6}) {
    std::vector<Values> x;
    for (std::size_t l = 0; l < L; ++l) {
      x.push_back(check::normal({static_cast<Index>(D)}, static_cast<Index>(l)).to_vector());
      for (double& value : x.back()) value = std::ldexp(std::round(std::ldexp(value, 20)), -20);
    }
    double all = 0, matched = 0;
    for (std::size_t l = 0; l < L; ++l)
      for (std::size_t d = 0; d < D; ++d)
        for (std::size_t j = 0; j < L; ++j)
          for (std::size_t i = 0; i < D && j != l; ++i) {
            const double square = std::pow(x[l][d] - x[j][i], 2);
            all += square / double(D * L) / double(D * (L - 1));
            if (i == d) matched += square / double(D * L) / double(L - 1);
          }
    for (Values& row : x)
      for (double& value : row) value += offset;  // exact: twenty bits after the point
    CHECK(std::fabs(layer_norm_divergence(x) - all) < 1e-9 * all);
    CHECK(std::fabs(layer_norm_divergence(x, ElementPairs::matched) - matched) < 1e-9 * matched);
  }
}

TEST_CASE("layer_norm_divergence: of the blocks of a model; errors") {
  VisionConfig config = VisionConfig::toy();
  config.encoder.blocks = 11;  // "blocks.1." is not "blocks.10."
  const VisionModel<float> model(config, Rng(0));
  const auto& parameters = model.parameters();
  CHECK(layer_norm_divergence(parameters, "norm1.weight") == 0);  // all are 1
  for (const Parameter<float>& p : parameters)
    if (p.name == "blocks.10.norm1.weight") p.tensor.value().assign(std::vector<float>(32, 3));
  // Of 11 * 10 ordered pairs of blocks 20 are at distance 2.
  check::close({layer_norm_divergence(parameters, "norm1.weight"),
                layer_norm_divergence(parameters, "norm1.weight", ElementPairs::matched),
                layer_norm_divergence(parameters, "norm1.bias"),
                layer_norm_divergence(parameters, "norm2.weight")},
               {20 * 4 / 110.0, 20 * 4 / 110.0, 0, 0});

  config.encoder.share_layer_norm = true;
  const VisionModel<float> shared(config, Rng(0));
  CHECK_THROWS_WITH_AS(layer_norm_divergence(shared.parameters(), "norm1.weight"),
                       "widenet: layer_norm_divergence: there must be L >= 2 blocks and D >= 1; "
                       "got 0, 0",
                       ShapeError);
  CHECK_THROWS_WITH_AS(layer_norm_divergence({{1, 2}, {3}}),
                       "widenet: layer_norm_divergence: all vectors must have D = 2 values; got 1",
                       ShapeError);
}
