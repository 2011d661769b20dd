// Tests for chapter 12: patches, class token, pooling, whole models, counts of parameters.
#include "check.hpp"

#include <algorithm>
#include <map>

using namespace widenet;

namespace {

VisionConfig small() {
  VisionConfig c;
  c.image_height = 4, c.image_width = 6, c.channels = 3, c.patch = 2, c.classes = 5;
  c.encoder.width = 12, c.encoder.heads = 3, c.encoder.blocks = 2;
  c.encoder.experts = 3, c.encoder.expert_hidden = 7, c.encoder.dense_hidden = 5;
  return c;
}

template <class T>
std::map<std::string, Tensor<T>> by_name(const VisionModel<T>& model) {
  std::map<std::string, Tensor<T>> map;
  for (const Parameter<T>& p : model.parameters()) map[p.name] = p.tensor;
  return map;
}

}  // namespace

TEST_CASE("extract_patches: known values in the order row, column, channel; errors") {
  // Value 100 c + 10 row + column; two images, the second 1000 more.
  std::vector<double> images;
  for (int b = 0; b < 2; ++b)
    for (int c = 0; c < 2; ++c)
      for (int row = 0; row < 4; ++row)
        for (int column = 0; column < 6; ++column)
          images.push_back(1000 * b + 100 * c + 10 * row + column);
  const auto patches = extract_patches(check::tensor({2, 2, 4, 6}, images), 2);
  CHECK(patches.shape() == Shape{2, 6, 8});
  const std::vector<double> p = patches.to_vector();
  const auto patch = [&](std::ptrdiff_t i) {
    return std::vector<double>(p.begin() + 8 * i, p.begin() + 8 * i + 8);
  };
  CHECK(patch(0) == std::vector<double>{0, 100, 1, 101, 10, 110, 11, 111});
  CHECK(patch(1) == std::vector<double>{2, 102, 3, 103, 12, 112, 13, 113});
  CHECK(patch(5) == std::vector<double>{24, 124, 25, 125, 34, 134, 35, 135});
  CHECK(patch(9) == std::vector<double>{1020, 1120, 1021, 1121, 1030, 1130, 1031, 1131});
  const auto whole = extract_patches(check::tensor({1, 1, 2, 2}, {1, 2, 3, 4}), 1);
  check::close(whole, {1, 2, 3, 4});

  const auto throws = [](const Shape& shape, Index P, const char* got) {
    const std::string text =
        "widenet: extract_patches: images must be (B, channels, height, width) with sides "
        "divisible by P = " + std::string(got);
    CHECK_THROWS_WITH_AS(extract_patches(Tensor<float>::zeros(shape), P), text.c_str(), ShapeError);
  };
  throws({1, 4, 6}, 2, "2; got (1, 4, 6)");
  throws({1, 1, 4, 5}, 2, "2; got (1, 1, 4, 5)");
  throws({1, 1, 5, 4}, 2, "2; got (1, 1, 5, 4)");
  throws({1, 1, 4, 4}, 0, "0; got (1, 1, 4, 4)");
}

TEST_CASE("vision model: it is patches, class token, positions, encoder, pooling, head") {
  for (const Pooling pooling : {Pooling::mean, Pooling::class_token})
    for (const bool has_pre_logits : {false, true})
      for (const ClassToken class_token : {ClassToken::zero, ClassToken::trained}) {
        VisionConfig c = small();
        c.pooling = pooling, c.has_pre_logits = has_pre_logits, c.class_token = class_token;
        c.encoder.dropout = 0.2;
        const VisionModel<double> model(c, Rng(5));
        const auto at = by_name(model);
        if (class_token == ClassToken::trained)
          at.at("cls_token").value().assign(check::normal({12}, 8).to_vector());
        ParameterSet<double> parameters(Rng(5));  // weights are a function of seed and name
        const Encoder<double> encoder(c.encoder, parameters);
        const auto images = check::normal({3, 3, 4, 6}, 0);
        const Training training{Rng(6), 2};
        for (const Training* t : {static_cast<const Training*>(nullptr), &training}) {
          const auto found = t ? model.forward(images, *t) : model.forward(images);
          auto x = linear(extract_patches(images, 2), at.at("patch_embed.proj.weight"),
                          at.at("patch_embed.proj.bias"));
          const bool is_trained = class_token == ClassToken::trained;
          x = prepend_token(is_trained ? at.at("cls_token") : Tensor<double>::zeros({12}), x);
          x = add_to_sequences(x, at.at("pos_embed"));
          if (t) x = dropout(x, 0.2, t->stream(Purpose::embedding_dropout, 0));
          const auto out = encoder.forward(x, t, {});
          auto pooled = pooling == Pooling::mean ? mean_tokens(out.tokens)
                                                 : slice_tokens(out.tokens, 0, 1).reshaped({3, 12});
          if (has_pre_logits)
            pooled = tanh(linear(pooled, at.at("pre_logits.weight"), at.at("pre_logits.bias")));
          const auto logits = linear(pooled, at.at("head.weight"), at.at("head.bias"));
          CHECK(found.logits.shape() == Shape{3, 5});
          CHECK(check::same_bits(found.logits.to_vector(), logits.to_vector()));
          CHECK(found.balance_loss.item() == out.balance_loss.item());
          CHECK(found.balance_losses.size() == 2);
          CHECK(found.routings.size() == 2);
          CHECK(found.routings[0].N == 3 * 7);
        }
      }
}

TEST_CASE("vision model: the class token is a constant zero or is trained") {
  VisionConfig c = small();
  const VisionModel<double> zero(c, Rng(5));
  c.class_token = ClassToken::trained;
  const VisionModel<double> trained(c, Rng(5));
  CHECK(by_name(zero).count("cls_token") == 0);
  CHECK(trained.num_parameters() == zero.num_parameters() + 12);
  const auto images = check::normal({3, 3, 4, 6}, 0);
  const auto out = trained.forward(images);  // it begins at zero
  CHECK(check::same_bits(out.logits.to_vector(), zero.forward(images).logits.to_vector()));

  out.logits.backward(check::normal({3, 5}, 1).value());
  const auto at = by_name(trained);
  const std::vector<double> token = at.at("cls_token").gradient().to_vector();
  std::vector<double> position = at.at("pos_embed").gradient().to_vector();
  position.resize(12);  // both are added to token 0 of every image
  check::close(token, position);
  CHECK(std::any_of(token.begin(), token.end(), [](double d) { return std::fabs(d) > 1e-3; }));
}

TEST_CASE("vision model: every parameter of a WideNet gets a gradient in one step") {
  VisionConfig c = small();
  c.has_pre_logits = true, c.class_token = ClassToken::trained;
  const VisionModel<double> model(c, Rng(5));
  const auto out = model.forward(check::normal({4, 3, 4, 6}, 0), Training{Rng(6), 0});
  total_loss(cross_entropy(out.logits, {0, 1, 2, 3}), out.balance_loss).backward();
  for (const Parameter<double>& p : model.parameters()) {
    INFO(p.name);
    CHECK(p.tensor.has_gradient());
    const std::vector<double> d = p.tensor.gradient().to_vector();
    CHECK(std::any_of(d.begin(), d.end(), [](double value) { return value != 0; }));
  }
}

TEST_CASE("vision model: evaluation is deterministic, with a graph or without") {
  VisionConfig c = small();
  c.encoder.dropout = 0.3;
  const VisionModel<float> model(c, Rng(5)), same(c, Rng(5)), other(c, Rng(6));
  const auto images = check::normal<float>({3, 3, 4, 6}, 0);
  const auto logits = [&](const VisionModel<float>& m) {
    return m.forward(images).logits.to_vector();
  };
  const std::vector<float> first = logits(model);
  CHECK(check::same_bits(logits(model), first));
  CHECK(check::same_bits(logits(same), first));
  CHECK(logits(other) != first);
  {
    const NoGrad no_graph;
    const auto out = model.forward(images);
    CHECK(check::same_bits(out.logits.to_vector(), first));
    CHECK(!out.logits.needs_gradient());
  }
  const auto trained = [&](Index step) {
    return model.forward(images, Training{Rng(1), step}).logits.to_vector();
  };
  CHECK(trained(0) == trained(0));
  CHECK(trained(0) != trained(1));
  CHECK(trained(0) != first);
}

TEST_CASE("vision model: an image's logits do not depend on the others if nothing is dropped") {
  VisionConfig c = small();
  c.encoder.capacity_factor = {3, 2};
  const VisionModel<float> model(c, Rng(5));
  const auto images = check::normal<float>({5, 3, 4, 6}, 0);
  const std::vector<float> x = images.to_vector();
  const std::vector<float> together = model.forward(images).logits.to_vector();
  for (std::ptrdiff_t b = 0; b < 5; ++b) {
    const std::vector<float> one(x.begin() + 72 * b, x.begin() + 72 * b + 72);
    const auto alone = model.forward(Tensor<float>({1, 3, 4, 6}, one)).logits.to_vector();
    CHECK(check::same_products(alone, std::vector<float>(together.begin() + 5 * b,
                                                         together.begin() + 5 * b + 5)));
  }
}

TEST_CASE("count_parameters: it is the number that a model has") {
  std::vector<VisionConfig> configs(8, small());
  configs[1].has_pre_logits = true, configs[1].class_token = ClassToken::trained;
  configs[2].encoder.experts = 0;
  configs[3].encoder.share_attention = configs[3].encoder.share_router = false;
  configs[4].encoder.share_experts = false, configs[4].encoder.moe_blocks = 1;
  configs[5].encoder.share_layer_norm = true;
  configs[6].encoder.is_pre_norm = false;
  configs[7] = VisionConfig::toy();
  for (const VisionConfig& c : configs) {
    const VisionModel<float> model(c, Rng(0));
    Index sizes = 0;
    for (const Parameter<float>& p : model.parameters()) sizes += p.tensor.size();
    CHECK(count_parameters(c) == sizes);
    CHECK(model.num_parameters() == sizes);
  }
}

TEST_CASE("training: 20 steps have the same bits for any number of threads, and learn") {
  VisionConfig c = VisionConfig::toy();
  c.encoder.dropout = 0.1;
  const auto images = check::normal<float>({11, 1, 8, 8}, 0);
  const std::vector<std::int32_t> labels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0};
  std::vector<float> losses;
  check::same_bits_for_all_threads([&] {
    const VisionModel<float> model(c, Rng(42));
    AdamW<float> optimizer(model.parameters(), 3e-3);
    losses.clear();
    for (Index step = 0; step < 20; ++step) {
      const auto out = model.forward(images, Training{Rng(42), step});
      const auto loss = total_loss(cross_entropy(out.logits, labels, 0.1), out.balance_loss);
      losses.push_back(loss.item());
      optimizer.zero_grad();
      loss.backward();
      clip_global_norm(model.parameters(), 1);
      optimizer.step();
    }
    std::vector<float> bits = losses;
    for (const Parameter<float>& p : model.parameters()) check::append(bits, p.tensor.to_vector());
    return bits;
  });
  CHECK(losses.back() < 0.6f * losses.front());
  for (const float loss : losses) CHECK(std::isfinite(loss));
}

TEST_CASE("vision model: errors") {
  const VisionModel<float> model(small(), Rng(0));
  for (const Shape& shape :
       {Shape{3, 4, 6}, Shape{0, 3, 4, 6}, Shape{1, 1, 4, 6}, Shape{1, 3, 6, 4}}) {
    std::ostringstream text;
    text << "widenet: VisionModel: images must be (B, channels, height, width) = (B, 3, 4, 6); got "
         << shape;
    const auto images = Tensor<float>::zeros(shape);
    CHECK_THROWS_WITH_AS(model.forward(images), text.str().c_str(), ShapeError);
  }
  VisionConfig c = small();
  c.patch = 4, c.classes = 0, c.encoder.heads = 5, c.encoder.dropout = -1;
  const char* const all_at_once =
      "widenet: VisionConfig: the configuration must name a model\n"
      "  heads must divide width; got 5, 12\n"
      "  dropout must lie in [0, 1); got -1\n"
      "  patch must divide image_height and image_width; got 4, 4, 6\n"
      "  channels and classes must be positive; got 3, 0";
  CHECK_THROWS_WITH_AS(VisionModel<float>(c, Rng(0)), all_at_once, ConfigError);
  CHECK_THROWS_WITH_AS(count_parameters(c), all_at_once, ConfigError);
  for (const Index patch : {-2, 0, 5}) {
    c = small();
    c.patch = patch;
    CHECK_THROWS_WITH_AS(count_parameters(c),
                         ("widenet: VisionConfig: the configuration must name a model\n"
                          "  patch must divide image_height and image_width; got " +
                          std::to_string(patch) + ", 4, 6").c_str(),
                         ConfigError);
  }
  c = small();
  c.patch = c.image_height = c.image_width = Index(1) << 32;  // P * P would overflow
  CHECK_THROWS_WITH_AS(count_parameters(c),
                       "widenet: VisionConfig: the configuration must name a model\n"
                       "  image_height, image_width and channels must not exceed 1000000; got "
                       "4294967296, 4294967296, 3",
                       ConfigError);
}
