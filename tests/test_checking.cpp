// Tests for chapter 16: gradcheck of a whole model, frozen routing, margins, compare.
#include "check.hpp"

#include <limits>

using namespace widenet;

namespace {

constexpr double unbounded = std::numeric_limits<double>::infinity();

VisionConfig tiny() {
  VisionConfig c;
  c.image_height = 4, c.image_width = 6, c.channels = 2, c.patch = 2, c.classes = 3;
  c.encoder.width = 4, c.encoder.heads = 2, c.encoder.blocks = 2;
  c.encoder.experts = 3, c.encoder.expert_hidden = 5, c.encoder.dense_hidden = 7;
  c.encoder.capacity_factor = {9, 10};  // fewer slots than choices: some are dropped for sure
  return c;
}

// Values that leave the initial ones: biases that are zero and LayerNorms that are one hide errors.
void randomise(const VisionModel<double>& model) {
  Index stream = 100;
  for (const Parameter<double>& p : model.parameters()) {
    std::vector<double> values = p.tensor.to_vector();
    const std::vector<double> shift = check::normal(p.tensor.shape(), stream++).to_vector();
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += 0.3 * shift[i];
    p.tensor.value().assign(values);
  }
}

// y = x, with a backward that is `factor` times the right one.
Tensor<double> misreport(const Tensor<double>& x, double factor) {
  const Tensor<double> y(x.shape(), x.value().clone());
  y.record("misreport", {x}, [x, factor](const Buffer<double>& dy) {
    kernel::accumulate(x.sink(), dy.data(), factor, x.size());
  });
  return y;
}

// The loss of one training step as a function of all parameters.
struct WholeModel {
  VisionModel<double> model;
  double logits_factor = 1, balance_factor = 1;
  Tensor<double> images = check::normal({2, 2, 4, 6}, 0);

  explicit WholeModel(const VisionConfig& config) : model(config, Rng(5)) { randomise(model); }

  Routed operator()(const Replay<double>& replay) const {
    const auto out = model.forward(images, Training{Rng(6), 3}, replay);
    const auto main = cross_entropy(misreport(out.logits, logits_factor), {2, 0}, 0.1);
    return {total_loss(main, misreport(out.balance_loss, balance_factor), 0.5), out.routings};
  }
  GradReport check() const {
    std::vector<Tensor<double>> inputs;
    for (const Parameter<double>& p : model.parameters()) inputs.push_back(p.tensor);
    return gradcheck(*this, inputs);
  }
};

}  // namespace

TEST_CASE("gradcheck: a whole WideNet, with all that a training step has") {
  const check::OneThread one_thread;
  const std::vector<std::function<void(VisionConfig&)>> changes = {
      [](VisionConfig&) {},
      [](VisionConfig& c) { c.encoder.dropout = 0.1, c.has_pre_logits = true; },
      [](VisionConfig& c) {
        c.class_token = ClassToken::trained, c.pooling = Pooling::class_token;
        c.encoder.gelu = Gelu::erf;
      },
      [](VisionConfig& c) {
        c.encoder.share_attention = c.encoder.share_router = c.encoder.share_experts = false;
        c.encoder.is_pre_norm = false;
      },
      [](VisionConfig& c) {
        c.encoder.blocks = 3, c.encoder.moe_blocks = 2, c.encoder.routing_groups = 1;
        c.encoder.share_layer_norm = true;
      }};
  for (const Index K : {1, 2})
    for (std::size_t i = 0; i < changes.size(); ++i) {
      VisionConfig c = tiny();
      c.encoder.top_k = K;
      changes[i](c);
      const WholeModel whole(c);
      const auto routings = whole({}).routings;
      double dropped = 0;
      for (const auto& r : routings) {
        dropped += r.dropped_fraction();
        CHECK(r.noise.size() == 14 * 3);
      }
      REQUIRE(dropped > 0);
      const GradReport report = whole.check();
      INFO("K = ", K, ", change ", i, ": ", report.where);
      CHECK(report.max_error < 1e-6);
      CHECK(report.margin > 0);
      CHECK(report.margin < 1);
      CHECK(report.nearest_flip.compare(0, 8, "routing ") == 0);
    }
}

TEST_CASE("gradcheck: a backward that is scaled by 1.001 fails") {
  const check::OneThread one_thread;
  WholeModel whole(tiny());
  whole.logits_factor = 1.001;
  const double main_only = whole.check().max_error;
  CHECK(main_only > 1e-4);
  CHECK(main_only < 1e-2);
  whole.logits_factor = 1, whole.balance_factor = 1.001;
  CHECK(whole.check().max_error > 1e-5);

  const auto x = check::normal({3, 5}, 0), w = check::normal({5, 2}, 1);
  const auto scaled = [&] { return misreport(linear(x, w), 1.001); };
  const double error = gradcheck(scaled, {x, w}).max_error;
  CHECK(std::fabs(error - 1e-3) < 1e-5);
  CHECK(gradcheck([&] { return linear(x, w); }, {x, w}).max_error < 1e-9);
}

TEST_CASE("gradcheck: it sees a single wrong element, NaN, and a missing gradient") {
  const auto x = check::normal({3, 5}, 0);
  const auto with_element_7 = [&](double factor) {
    return gradcheck(
        [&] {
          const Tensor<double> y(x.shape(), x.value().clone());
          y.record("almost", {x}, [x, factor](const Buffer<double>& dy) {
            std::vector<double> wrong = dy.to_vector();
            wrong[7] *= factor;
            x.add_gradient(Buffer<double>(wrong));
          });
          return y;
        },
        {x});
  };
  CHECK(with_element_7(1).max_error < 1e-9);
  const GradReport wrong = with_element_7(2);
  CHECK(wrong.max_error > 1e-3);
  CHECK(wrong.where.compare(0, 20, "input 0, element 7: ") == 0);
  CHECK(!(with_element_7(std::nan("")).max_error < 1e9));
  // Nothing flows to x although the result depends on it.
  const auto w = check::normal({3, 5}, 1);
  const GradReport missing = gradcheck([&] { return multiply(x.detached(), w); }, {x, w});
  CHECK(std::fabs(missing.max_error - 1) < 1e-6);
}

TEST_CASE("gradcheck: softmax is seen, which a plain sum would hide") {
  const auto x = check::normal({3, 5}, 0);
  CHECK(gradcheck([&] { return softmax(x); }, {x}).max_error < 1e-8);
  CHECK(gradcheck([&] { return misreport(softmax(x), 1.001); }, {x}).max_error > 1e-4);
}

TEST_CASE("gradcheck: inputs keep their values and get their gradients") {
  const auto x = check::normal({3, 5}, 0), w = check::normal({5, 2}, 1);
  const std::vector<double> before = x.to_vector();
  gradcheck([&] { return linear(x, w); }, {x, w});
  CHECK(check::same_bits(x.to_vector(), before));
  const std::vector<double> first = x.gradient().to_vector();
  gradcheck([&] { return linear(x, w); }, {x, w});  // what was there does not add up
  CHECK(check::same_bits(x.gradient().to_vector(), first));
}

TEST_CASE("gradcheck: the routing is frozen") {
  // One token, two experts that it likes almost equally: a step of h changes the choice.
  const auto z = check::tensor({1, 2}, {0.3, 0.3 + 1e-5});
  const auto worth = check::tensor({2, 1, 1}, {1, 100});
  RouteOptions options;
  options.K = 1, options.capacity_factor = {2, 1};
  const auto routed = [&](const Replay<double>& replay) {
    const Routing<double> r = route(z, options, {}, nullptr,
                                    replay.choices.empty() ? nullptr : &replay.choices[0]);
    return Routed{combine(worth, r.gate, r), {r}};
  };
  const GradReport frozen = gradcheck(routed, {z});
  CHECK(frozen.max_error < 1e-8);
  CHECK(std::fabs(frozen.margin - 1e-5) < 1e-12);
  CHECK(frozen.nearest_flip == "routing 0, token 0: experts 1 and 0");
  const auto unfrozen = [&] { return routed({}).value; };
  CHECK(gradcheck(unfrozen, {z}).max_error > 0.1);
}

TEST_CASE("gradcheck: the margin to the nearest flip") {
  const auto x = check::tensor({1}, {1});
  const auto report_of = [&](Index K, const std::vector<std::vector<double>>& routings,
                             const std::vector<double>& noise = {}) {
    RouteOptions options;
    options.K = K;
    std::vector<Routing<double>> all;
    for (const std::vector<double>& z : routings)
      all.push_back(route(check::tensor({static_cast<Index>(z.size()) / 3, 3}, z), options,
                          Buffer<double>(noise)));
    return gradcheck([&](const Replay<double>&) { return Routed{x, all}; }, {x});
  };
  const GradReport one = report_of(1, {{1, 3, 2.5, 0, 1, .875}});
  CHECK(one.margin == .125);
  CHECK(one.nearest_flip == "routing 0, token 1: experts 1 and 2");
  const GradReport two = report_of(2, {{1, 3, 2.5, 0, 1, .875}});
  CHECK(two.margin == .875);
  CHECK(two.nearest_flip == "routing 0, token 1: experts 2 and 0");
  const GradReport later = report_of(1, {{1, 3, 2.5}, {5, 4.75, 0}});
  CHECK(later.margin == .25);
  CHECK(later.nearest_flip == "routing 1, token 0: experts 0 and 1");
  CHECK(report_of(1, {{1, 3, 2.5}}, {0, 0, .25}).margin == .25);
  CHECK(report_of(1, {{2, 2, 0}}).margin == 0);
  const GradReport all = report_of(3, {{1, 3, 2.5}});
  CHECK(all.margin == unbounded);
  CHECK(all.nearest_flip == "");
}

TEST_CASE("compare: known values, errors") {
  const Difference d = compare<double>({1, 2, 4.5}, {1, 2, 4});
  CHECK(d.max_absolute == .5);
  CHECK(d.max_relative == .125);
  CHECK(d.at == 2);
  CHECK(d.is_finite);
  CHECK(std::fabs(d.cosine - 23 / std::sqrt(25.25 * 21)) < 1e-15);

  const float above = std::nextafter(std::nextafter(1.5f, 2.0f), 2.0f);
  CHECK(compare<float>({above, 1}, {1.5f, 1}).max_ulps == 2);
  const Difference same = compare<float>({1, -2}, {1, -2});
  CHECK(same.max_absolute == 0);
  CHECK(same.max_relative == 0);
  CHECK(same.max_ulps == 0);
  CHECK(same.at == 0);
  CHECK(std::fabs(same.cosine - 1) < 1e-15);
  CHECK(std::fabs(compare<double>({1, 0}, {-1, 0}).cosine + 1) < 1e-15);
  CHECK(compare<double>({1, 0}, {0, 3}).cosine == 0);
  CHECK(compare<double>({1}, {0}).max_relative == unbounded);
  for (const double odd : {std::nan(""), unbounded, -unbounded}) {
    CHECK(!compare<double>({1, odd}, {1, 2}).is_finite);
    CHECK(!compare<double>({1, 2}, {odd, 2}).is_finite);
  }
  const double nan = std::nan("");
  for (const auto& pair : {std::make_pair(nan, 2.0), std::make_pair(2.0, nan)}) {
    const Difference none = compare<double>({1, pair.first, 4, 3}, {1, pair.second, 3, 3});
    for (const double x : {none.max_absolute, none.max_relative, none.max_ulps, none.cosine})
      CHECK(std::isnan(x));
    CHECK(none.at == 1);
  }
  const Difference alike = compare<double>({unbounded, 1}, {unbounded, 1});
  CHECK(alike.max_absolute == 0);
  CHECK(alike.max_ulps == 0);
  CHECK(compare<double>({1, unbounded}, {1, -unbounded}).max_absolute == unbounded);
  CHECK(compare<double>({}, {}).at == -1);
  CHECK_THROWS_WITH_AS(compare<double>({1, 2}, {1}),
                       "widenet: compare: the sizes must be equal; got 2, 1", ShapeError);
}
