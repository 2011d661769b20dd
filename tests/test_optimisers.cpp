// Tests for chapter 14, optimisers and schedules.
#include "check.hpp"

using namespace widenet;
using check::tensor;

namespace {

using Values = std::vector<double>;

/// Two parameters of prime sizes, and what stands in for their gradients at step t.
struct Problem {
  std::vector<Parameter<double>> parameters;
  std::vector<Values> w;  // the same values, for a reference to work on

  Problem() {
    for (const Shape& shape : {Shape{3, 5}, Shape{7}}) {
      const Index i = static_cast<Index>(parameters.size());
      parameters.push_back({"p" + std::to_string(i), check::normal(shape, i).require_gradient()});
      w.push_back(parameters.back().tensor.to_vector());
    }
  }
  Values gradient(std::size_t i, Index t) const {
    return check::normal(parameters[i].tensor.shape(), 10 * t + static_cast<Index>(i)).to_vector();
  }
  void set_gradients(Index t) const {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      parameters[i].tensor.zero_gradient();
      parameters[i].tensor.backward(Buffer<double>(gradient(i, t)));
    }
  }
  void check_values() const {
    for (std::size_t i = 0; i < w.size(); ++i) check::close(parameters[i].tensor, w[i]);
  }
};

const Schedule schedule = {/*peak=*/0.1, /*warmup=*/2, /*total=*/5, Schedule::Decay::cosine,
                           /*start=*/0.02, /*end=*/0.01};

}  // namespace

TEST_CASE("SGD: five steps with a schedule, momentum and decay are those of the formula") {
  for (const double momentum : {0.0, 0.9})
    for (const double decay : {0.0, 0.03}) {
      Problem problem;
      SGD<double> optimizer(problem.parameters, /*learning_rate=*/1, momentum, decay);
      std::vector<Values> m = {Values(15, 0), Values(7, 0)};
      for (Index t = 0; t < 5; ++t) {
        problem.set_gradients(t);
        optimizer.set_learning_rate(schedule(t));
        optimizer.step();
        for (std::size_t i = 0; i < m.size(); ++i)
          for (std::size_t j = 0; j < m[i].size(); ++j) {
            double& w = problem.w[i][j];
            m[i][j] = momentum * m[i][j] + problem.gradient(i, t)[j] + decay * w;
            w -= schedule(t) * m[i][j];
          }
        problem.check_values();
      }
      CHECK(optimizer.num_steps() == 5);
      CHECK(optimizer.state().size() == 2);
      CHECK(optimizer.state()[1].name == "sgd.m.p1");
      check::close(optimizer.state()[1].tensor, m[1]);
    }
}

TEST_CASE("AdamW: five steps with a schedule are those of the formula") {
  for (const AdamWOptions& o : {AdamWOptions(), AdamWOptions{0.8, 0.95, 1e-3, 0.2},
                                AdamWOptions{0, 0, 1e-8, 0}}) {
    Problem problem;
    AdamW<double> optimizer(problem.parameters, /*learning_rate=*/1, o);
    std::vector<Values> m = {Values(15, 0), Values(7, 0)}, v = m;
    for (Index t = 1; t <= 5; ++t) {
      problem.set_gradients(t);
      const double rate = schedule(t);
      optimizer.set_learning_rate(rate);
      optimizer.step();
      for (std::size_t i = 0; i < m.size(); ++i)
        for (std::size_t j = 0; j < m[i].size(); ++j) {
          double &w = problem.w[i][j], g = problem.gradient(i, t)[j];
          m[i][j] = o.beta1 * m[i][j] + (1 - o.beta1) * g;
          v[i][j] = o.beta2 * v[i][j] + (1 - o.beta2) * g * g;
          const double m_hat = m[i][j] / (1 - std::pow(o.beta1, double(t)));
          const double v_hat = v[i][j] / (1 - std::pow(o.beta2, double(t)));
          w -= rate * (m_hat / (std::sqrt(v_hat) + o.eps) + o.weight_decay * w);
        }
      problem.check_values();
    }
    CHECK(optimizer.num_steps() == 5);
    CHECK(optimizer.state()[0].name == "adamw.m.p0");
    CHECK(optimizer.state()[3].name == "adamw.v.p1");
    check::close(optimizer.state()[0].tensor, m[0]);
    check::close(optimizer.state()[3].tensor, v[1]);
  }
}

TEST_CASE("AdamW: the first step is the rate times the sign of the gradient") {
  const auto w = tensor({3}, {1, 2, 3}).require_gradient();
  AdamW<double> optimizer({{"w", w}}, 0.25, {0.9, 0.999, 1e-300, 0});
  w.backward(Buffer<double>(Values{1e-3, -7, 100}));
  optimizer.step();
  check::close(w, {0.75, 2.25, 2.75});
}

namespace {

double length(const Values& x) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  return std::sqrt(squares);
}

/// One tensor and its LAMB, from the equations.
struct LambReference {
  Values w, m, v;
  explicit LambReference(const Values& w0) : w(w0), m(w0.size(), 0), v(w0.size(), 0) {}
  void step(const Values& g, double t, double rate, const LAMBOptions& o) {
    Values u;
    for (std::size_t j = 0; j < w.size(); ++j) {
      m[j] = o.beta1 * m[j] + (1 - o.beta1) * g[j];
      v[j] = o.beta2 * v[j] + (1 - o.beta2) * g[j] * g[j];
      const double m_hat = m[j] / (1 - std::pow(o.beta1, t));
      const double v_hat = v[j] / (1 - std::pow(o.beta2, t));
      u.push_back(m_hat / (std::sqrt(v_hat) + o.eps) + o.weight_decay * w[j]);
    }
    const double ratio = length(w) > 0 && length(u) > 0 ? length(w) / length(u) : 1;
    for (std::size_t j = 0; j < w.size(); ++j) w[j] -= rate * ratio * u[j];
  }
};

}  // namespace

TEST_CASE("LAMB: five steps with a schedule are those of the formula, tensor by tensor") {
  // A matrix, a bias that begins at zero, a stack of three tensors, a vector of several chunks.
  const std::vector<Parameter<double>> parameters = {
      {"matrix", check::normal({3, 5}, 0)},
      {"bias", Tensor<double>::zeros({7})},
      {"experts.{}.weight", check::normal({3, 2, 5}, 1)},
      {"long", check::normal({2 * 4096 + 37}, 2)}};
  const std::vector<std::size_t> slices = {1, 1, 3, 1};
  for (const LAMBOptions& o : {LAMBOptions(), LAMBOptions{0.8, 0.95, 1e-3, 0.2},
                               LAMBOptions{0, 0, 1e-8, 0}}) {
    std::vector<Parameter<double>> ours;
    std::vector<std::vector<LambReference>> theirs;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Tensor<double>& p = parameters[i].tensor;
      ours.push_back({parameters[i].name, Tensor<double>(p.shape(), p.to_vector())});
      ours.back().tensor.require_gradient();
      theirs.emplace_back();
      const Values w = p.to_vector();
      const auto size = static_cast<std::ptrdiff_t>(w.size() / slices[i]);
      for (auto at = w.begin(); at != w.end(); at += size)
        theirs[i].emplace_back(Values(at, at + size));
    }
    LAMB<double> optimizer(ours, /*learning_rate=*/1, o);
    for (Index t = 1; t <= 5; ++t) {
      optimizer.set_learning_rate(schedule(t));
      optimizer.zero_grad();
      for (std::size_t i = 0; i < ours.size(); ++i) {
        const auto g = check::normal(ours[i].tensor.shape(), 10 * t + static_cast<Index>(i));
        ours[i].tensor.backward(g.value());
        const Values values = g.to_vector();
        auto at = values.begin();
        for (LambReference& reference : theirs[i]) {
          const auto end = at + static_cast<std::ptrdiff_t>(reference.w.size());
          reference.step(Values(at, end), double(t), schedule(t), o);
          at = end;
        }
      }
      optimizer.step();
      for (std::size_t i = 0; i < ours.size(); ++i) {
        INFO("step ", t, ", ", ours[i].name);
        Values expected;
        for (const LambReference& reference : theirs[i]) check::append(expected, reference.w);
        check::close(ours[i].tensor, expected);
      }
    }
    CHECK(optimizer.num_steps() == 5);
    CHECK(optimizer.state()[2].name == "lamb.m.experts.{}.weight");
    check::close(optimizer.state()[0].tensor, theirs[0][0].m);
    check::close(optimizer.state()[5].tensor, theirs[1][0].v);
  }
}

TEST_CASE("LAMB: a step is as long as the rate times the tensor; a tensor of zeros takes Adam's") {
  const auto w = tensor({2}, {3, 4}).require_gradient();
  const auto zero = tensor({2}, {0, 0}).require_gradient();
  LAMB<double> optimizer({{"w", w}, {"zero", zero}}, 0.1, {0.9, 0.999, 1e-300, 0});
  w.backward(Buffer<double>(Values{1e-3, -7}));
  zero.backward(Buffer<double>(Values{-2, 5}));
  optimizer.step();  // u is the sign of g, |u| = sqrt 2, |w| = 5
  check::close(w, {3 - 0.5 / std::sqrt(2.0), 4 + 0.5 / std::sqrt(2.0)});
  check::close(zero, {0.1, -0.1});
}

TEST_CASE("LAMB: a tensor without gradient and decay stays where it is") {
  const auto w = tensor({2}, {3, 4}).require_gradient();
  LAMB<double> optimizer({{"w", w}}, 0.1, {0.9, 0.999, 1e-6, 0});
  w.gradient();  // zeros, so that |u| is 0
  optimizer.step();
  CHECK(w.to_vector() == Values{3, 4});
  w.zero_gradient();
  optimizer.step();
  CHECK(w.to_vector() == Values{3, 4});
  CHECK(optimizer.num_steps() == 2);
}

TEST_CASE("optimisers: a parameter without a gradient is left alone") {
  const auto used = tensor({2}, {1, 2}).require_gradient();
  const auto unused = tensor({2}, {3, 4}).require_gradient();
  const std::vector<Parameter<double>> parameters = {{"used", used}, {"unused", unused}};
  SGD<double> sgd(parameters, 0.5, /*momentum=*/0.9, /*weight_decay=*/0.1);
  AdamW<double> adamw(parameters, 0.5);
  sum(used + unused).backward();
  sgd.step();
  adamw.step();
  const Values before = unused.to_vector(), momentum = sgd.state()[1].tensor.to_vector();
  CHECK(momentum != Values{0, 0});
  sgd.zero_grad();
  CHECK_FALSE(used.has_gradient());
  CHECK_FALSE(unused.has_gradient());
  sum(used).backward();
  const Values used_before = used.to_vector();
  sgd.step();
  adamw.step();
  CHECK(unused.to_vector() == before);
  CHECK(sgd.state()[1].tensor.to_vector() == momentum);
  CHECK(used.to_vector() != used_before);
}

TEST_CASE("optimisers: a shared parameter is stepped once, with the sum of its gradients") {
  const auto w = tensor({1}, {1}).require_gradient();
  SGD<double> optimizer({{"w", w}}, 0.5);
  (3.0 * w + 4.0 * w).backward();
  optimizer.step();
  check::close(w, {1 - 0.5 * 7});
}

TEST_CASE("optimisers: the number of steps can be restored") {
  const auto run = [](Index stop) {  // `stop`: where a second optimizer takes over
    Problem problem;
    AdamW<double> first(problem.parameters, 0.1), second(problem.parameters, 0.1);
    for (Index t = 0; t < 5; ++t) {
      if (t == stop) {
        for (std::size_t s = 0; s < first.state().size(); ++s)
          second.state()[s].tensor.value().assign(first.state()[s].tensor.to_vector());
        second.set_num_steps(first.num_steps());
      }
      problem.set_gradients(t);
      (t < stop ? first : second).step();
    }
    return problem.parameters[0].tensor.to_vector();
  };
  CHECK(check::same_bits(run(5), run(3)));
}

TEST_CASE("optimisers: the same bits for any number of threads") {
  check::same_bits_for_all_threads([] {
    const auto w = check::normal<float>({97, 101}, 0).require_gradient();
    AdamW<float> adamw({{"w", w}}, 0.1);
    SGD<float> sgd({{"w", w}}, 0.1, 0.9, 0.1);
    LAMB<float> lamb({{"w", w}}, 0.1);
    for (Index t = 1; t < 4; ++t) {
      w.zero_gradient();
      w.backward(check::normal<float>({97, 101}, t).value());
      clip_global_norm(adamw.parameters(), 1);
      adamw.step();
      sgd.step();
      lamb.step();
    }
    return w.to_vector();
  });
}

TEST_CASE("optimisers: errors") {
  const std::vector<Parameter<double>> none;
  CHECK_THROWS_WITH_AS(SGD<double>(none, -1),
                       "widenet: SGD: rate, decay >= 0 and momentum in [0, 1) must hold; got -1, "
                       "0, 0",
                       ValueError);
  CHECK_THROWS_WITH_AS(SGD<double>(none, 0.5, 1, 0.25),
                       "widenet: SGD: rate, decay >= 0 and momentum in [0, 1) must hold; got 0.5, "
                       "0.25, 1",
                       ValueError);
  CHECK_THROWS_AS(SGD<double>(none, 1, -0.1), ValueError);
  CHECK_THROWS_AS(SGD<double>(none, 1, 0, -0.1), ValueError);
  CHECK_THROWS_WITH_AS(AdamW<double>(none, 0.5, {1, 0.25, 0.125, 2}),
                       "widenet: AdamW: rate, decay >= 0, eps > 0 and betas in [0, 1) must hold; "
                       "got 0.5, 2, 0.125, 1, 0.25",
                       ValueError);
  CHECK_THROWS_AS(AdamW<double>(none, -1), ValueError);
  CHECK_THROWS_AS(AdamW<double>(none, 1, {0.9, 1, 1e-8, 0}), ValueError);
  CHECK_THROWS_AS(AdamW<double>(none, 1, {0.9, 0.999, 0, 0}), ValueError);
  CHECK_THROWS_AS(AdamW<double>(none, 1, {0.9, 0.999, 1e-8, -1}), ValueError);
  CHECK_THROWS_AS(AdamW<double>(none, std::nan("")), ValueError);
  CHECK_THROWS_WITH_AS(LAMB<double>(none, 0.5, {0.25, 1, 0.125, 2}),
                       "widenet: LAMB: rate, decay >= 0, eps > 0 and betas in [0, 1) must hold; "
                       "got 0.5, 2, 0.125, 0.25, 1",
                       ValueError);
  SGD<double> sgd(none, 1);
  CHECK_THROWS_WITH_AS(sgd.set_learning_rate(-0.5),
                       "widenet: Optimizer: the rate must not be negative; got -0.5", ValueError);
  CHECK_THROWS_AS(sgd.set_learning_rate(std::nan("")), ValueError);
  CHECK_THROWS_WITH_AS(sgd.set_num_steps(-1),
                       "widenet: Optimizer: steps must not be negative; got -1", ValueError);
  CHECK(sgd.learning_rate() == 1);
  CHECK(sgd.num_steps() == 0);
}

TEST_CASE("clip_global_norm: known values") {
  const auto a = tensor({1, 2}, {0, 0}).require_gradient();
  const auto b = tensor({2}, {0, 0}).require_gradient();
  const auto without = tensor({1}, {0}).require_gradient();
  const std::vector<Parameter<double>> parameters = {{"a", a}, {"without", without}, {"b", b}};
  a.backward(Buffer<double>(Values{1, -4}));
  b.backward(Buffer<double>(Values{8, 0}));  // the norm is 9
  check::close(clip_global_norm(parameters, 9.5).to_vector(), {9});
  check::close(a.gradient().to_vector(), {1, -4});
  check::close(clip_global_norm(parameters, 3).to_vector(), {9});
  check::close(a.gradient().to_vector(), {1.0 / 3, -4.0 / 3});
  check::close(b.gradient().to_vector(), {8.0 / 3, 0});
  check::close(clip_global_norm(parameters, 3).to_vector(), {3});
  CHECK_FALSE(without.has_gradient());
}

TEST_CASE("clip_global_norm: a norm over several chunks, over no gradients, of zeros") {
  const Index n = 2 * 4096 + 37;
  const auto w = check::normal({n}, 0).require_gradient();
  const auto g = check::normal({n}, 1);
  w.backward(g.value());
  double squares = 0;
  for (const double x : g.to_vector()) squares += x * x;
  const std::vector<Parameter<double>> parameters = {{"w", w}};
  check::close(clip_global_norm(parameters, 1).to_vector(), {std::sqrt(squares)});
  check::close(w.gradient().to_vector(), ((1 / std::sqrt(squares)) * g).to_vector());
  w.zero_gradient();
  check::close(clip_global_norm(parameters, 1).to_vector(), {0});
  CHECK_FALSE(w.has_gradient());
  w.gradient();
  check::close(clip_global_norm(parameters, 1).to_vector(), {0});
  check::close(w.gradient().to_vector(), Values(static_cast<std::size_t>(n), 0));
}

TEST_CASE("clip_global_norm: errors") {
  const std::vector<Parameter<double>> none;
  CHECK_THROWS_WITH_AS(clip_global_norm(none, 0),
                       "widenet: clip_global_norm: the limit must be positive; got 0", ValueError);
  CHECK_THROWS_AS(clip_global_norm(none, std::nan("")), ValueError);
}

TEST_CASE("Schedule: known values") {
  Schedule s;
  s.peak = 8;
  s.warmup = 4;
  s.total = 12;
  s.start = 4;
  s.end = 2;
  const auto rates = [&s](const std::vector<Index>& steps) {
    Values result;
    for (const Index step : steps) result.push_back(s(step));
    return result;
  };
  check::close(rates({0, 1, 3, 4}), {4, 5, 7, 8});  // warm-up
  s.decay = Schedule::Decay::linear;
  check::close(rates({4, 6, 8, 11, 12, 100}), {8, 6.5, 5, 2.75, 2, 2});
  s.decay = Schedule::Decay::cosine;
  check::close(rates({4, 6, 8, 10, 12, 100}),
               {8, 5 + 3 * std::sqrt(0.5), 5, 5 - 3 * std::sqrt(0.5), 2, 2});
  s.decay = Schedule::Decay::constant;
  check::close(rates({0, 2, 4, 12, 100}), {4, 6, 8, 8, 8});
}

TEST_CASE("Schedule: without warm-up, and with nothing but warm-up") {
  Schedule s;
  s.peak = 8;
  s.total = 2;
  check::close({s(0), s(1), s(2)}, {8, 4, 0});
  s.warmup = 2;
  check::close({s(0), s(1), s(2)}, {0, 4, 0});
}

TEST_CASE("Schedule: errors") {
  Schedule s;
  s.warmup = 5;
  s.total = 4;
  CHECK_THROWS_WITH_AS(s(0),
                       "widenet: Schedule: 0 <= warmup <= total and total > 0 must hold; got 5, 4",
                       ConfigError);
  s.warmup = -1;
  CHECK_THROWS_AS(s(0), ConfigError);
  s.warmup = s.total = 0;
  CHECK_THROWS_AS(s(0), ConfigError);
}
