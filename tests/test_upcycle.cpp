// Tests for up-cycling: when a mixture of copies equals the dense model that it was made of.
#include "check.hpp"
#include "support/foreign.hpp"
#include "support/upcycle.hpp"

using namespace widenet;

namespace {

/// Weights and LayerNorms that differ from block to block.
template <class Model>
Model randomized(const Model& model) {
  Index stream = 0;
  for (const auto& p : model.parameters()) {
    const auto values = check::normal<float>(p.tensor.shape(), ++stream).to_vector();
    std::vector<float> scaled;
    const float base = p.name.find("norm") != std::string::npos &&
                               p.name.find("weight") != std::string::npos ? 1.0f : 0.0f;
    for (const float value : values) scaled.push_back(base + 0.3f * value);
    p.tensor.value().assign(scaled);
  }
  return model;
}

/// A ViT of three blocks; they share attention and FFN, or nothing.
VisionModel<float> vit(bool shares) {
  VisionConfig c = VisionConfig::toy();
  c.class_token = ClassToken::trained;
  c.encoder.experts = 0, c.encoder.width = 12, c.encoder.dense_hidden = 20;
  c.encoder.gelu = Gelu::erf;
  c.encoder.share_attention = c.encoder.share_router = c.encoder.share_experts = shares;
  return randomized(VisionModel<float>(c, Rng(3)));
}

/// The ALBERT that transformers wrote.
LanguageModel<float> albert() {
  const SafeTensors file =
      support::import_foreign("hf_albert", std::string("data/foreign/hf_albert")).file;
  const LanguageModel<float> model(
      language_config_from_json(file.metadata.at("config"), "hf_albert"), Rng(0));
  widenet::detail::assign(model.parameters(),
                          widenet::detail::gather(file, model.parameters(), "hf_albert"));
  return model;
}

support::Upcycling how(Index E, Index K, GateRule gate = GateRule::raw) {
  support::Upcycling h;
  h.experts = E, h.top_k = K, h.gate = gate;
  return h;
}

template <class Model>
support::Closeness close(const Model& dense, const support::Upcycling& h) {
  return support::closeness(dense, support::upcycled(dense, h, Rng(5)), 6);
}

template <class Model>
std::vector<float> values_of(const Model& model, const std::string& name) {
  for (const auto& p : model.parameters())
    if (p.name == name) return p.tensor.to_vector();
  FAIL("no parameter named ", name);
  return {};
}

}  // namespace

TEST_CASE("upcycle: with one expert and gate 1 the bits of the source") {
  const check::OneThread one_thread;
  const auto is_same = [](const support::Closeness& c) {  // to cuBLAS one expert is another shape
    return WIDENET_CUDA ? c.relative < 1e-5 : c.is_same;
  };
  CHECK(is_same(close(albert(), how(1, 1))));
  CHECK(is_same(close(vit(true), how(1, 1))));
  support::Upcycling individual = how(1, 1);
  individual.shares = false;
  CHECK(is_same(close(vit(false), individual)));
  CHECK(is_same(close(albert(), individual)));
  // Three different blocks cannot be one: this is what it costs on random weights.
  CHECK(close(vit(false), how(1, 1)).relative > 0.1);
}

TEST_CASE("upcycle: with more experts equal to rounding where gates add up to 1") {
  const check::OneThread one_thread;
  for (const GateRule gate : {GateRule::renormalized, GateRule::raw})
    for (const bool shares : {true, false}) {
      const bool is_raw = gate == GateRule::raw;
      support::Upcycling some = how(4, 2, gate), all = how(4, 4, gate);
      some.shares = all.shares = shares;
      for (const support::Closeness& c :
           {close(albert(), some), close(shares ? vit(true) : vit(false), some)}) {
        CHECK(c.dropped_fraction == 0);
        CHECK((is_raw ? c.relative > 0.05 : c.relative < 2e-6));
        CHECK(c.relative < 1);
      }
      CHECK(close(albert(), all).relative < 2e-6);  // all raw gates add up to 1, too
    }
}

TEST_CASE("upcycle: what is copied, and from which block") {
  const VisionModel<float> dense = vit(false);
  support::Upcycling h = how(3, 2);
  const auto sparse_of = [&](Index block) {
    h.block = block;
    return support::upcycled(dense, h, Rng(5));
  };
  const std::vector<float> first = values_of(dense, "blocks.0.ffn.fc1.weight");
  const std::vector<float> second = values_of(dense, "blocks.1.ffn.fc1.weight");
  const std::vector<float> third = values_of(dense, "blocks.2.ffn.fc1.weight");
  const auto stacked = [](const std::vector<float>& one) {
    std::vector<float> all;
    for (int e = 0; e < 3; ++e) check::append(all, one);
    return all;
  };
  const std::string fc1 = "shared.moe.experts.{}.fc1.weight";
  CHECK(values_of(sparse_of(0), fc1) == stacked(first));
  CHECK(values_of(sparse_of(2), fc1) == stacked(third));
  std::vector<float> mean;
  for (std::size_t i = 0; i < first.size(); ++i)
    mean.push_back(
        static_cast<float>((double(first[i]) + double(second[i]) + double(third[i])) / 3));
  CHECK(values_of(sparse_of(-1), fc1) == stacked(mean));
  CHECK(values_of(sparse_of(1), "shared.attn.q.bias") == values_of(dense, "blocks.1.attn.q.bias"));
  for (const char* name : {"blocks.0.norm1.weight", "blocks.2.norm2.bias", "norm.weight",
                           "pos_embed", "cls_token", "head.weight", "patch_embed.proj.weight"})
    CHECK(values_of(sparse_of(-1), name) == values_of(dense, name));
  double square = 0;  // the router is small, but no two experts are alike to it
  const std::vector<float> router = values_of(sparse_of(-1), "shared.moe.router.weight");
  for (const float w : router) square += double(w) * double(w) / double(router.size());
  CHECK(std::sqrt(square) > 0.01);
  CHECK(std::sqrt(square) < 0.03);

  const LanguageModel<float> post = support::upcycled(albert(), how(2, 1), Rng(5));
  CHECK(!post.config().encoder.is_pre_norm);
  CHECK(post.config().encoder.layer_norm_eps == 1e-12);
  CHECK(post.config().encoder.gelu == Gelu::tanh);
  CHECK(values_of(post, "blocks.1.norm1.weight") == values_of(albert(), "shared.norm1.weight"));
  CHECK(values_of(post, "mlm.bias") == values_of(albert(), "mlm.bias"));
}

TEST_CASE("upcycle: how close") {
  using Values = std::vector<float>;
  const std::vector<Routing<float>> none;
  const auto of = [&](const Values& a, const Values& b) { return support::closeness(a, b, none); };
  CHECK(of({3, 4}, {3, 4}).is_same);
  CHECK(of({3, 4}, {3, 4}).relative == 0);
  const support::Closeness near = of({3, 4}, {3, 4.5f});
  CHECK(!near.is_same);
  CHECK(near.relative == 0.1);
  CHECK(near.largest == 0.5);
  CHECK(!of({0.0f}, {-0.0f}).is_same);  // equal, but not bit by bit
  CHECK(of({0.0f}, {-0.0f}).relative == 0);
  CHECK(of({0, 0}, {0, 1e-30f}).relative == HUGE_VAL);
  CHECK(of({}, {}).is_same);
  CHECK_THROWS_WITH_AS(of({1}, {1, 2}),
                       "widenet: closeness: outputs must be equally many; got 1, 2", ShapeError);
  CHECK_THROWS_WITH_AS(of({1, HUGE_VALF}, {1, 2}),
                       "widenet: closeness: outputs must be finite; got inf in those of the source",
                       ValueError);
  CHECK_THROWS_WITH_AS(of({1, 2}, {1, std::nanf("")}),
                       "widenet: closeness: outputs must be finite; got nan in those of the "
                       "mixture", ValueError);

  // A NaN is refused even in a tensor that no output of the closeness depends on.
  const LanguageModel<float> dense = albert();
  for (const auto& p : dense.parameters()) {
    if (p.name != "span.bias") continue;
    p.tensor.value().assign({1, std::nanf("")});
    CHECK_THROWS_WITH_AS(support::upcycled(dense, how(2, 1), Rng(5)),
                         "widenet: upcycle: weights must be finite; got nan in span.bias",
                         ValueError);
  }
}

TEST_CASE("upcycle: sources and settings that do not fit") {
  const VisionModel<float> dense = vit(false);
  CHECK_THROWS_WITH_AS(support::upcycled(VisionModel<float>(VisionConfig::toy(), Rng(0)), how(2, 1),
                                         Rng(5)),
                       "widenet: upcycle: the source must be dense; got 4 experts", ConfigError);
  CHECK_THROWS_WITH_AS(support::upcycled(dense, how(0, 1), Rng(5)),
                       "widenet: upcycle: there must be an expert, and block must lie in [-1, 3); "
                       "got 0, -1", ConfigError);
  support::Upcycling fourth = how(2, 1);
  fourth.block = 3;
  CHECK_THROWS_WITH_AS(support::upcycled(dense, fourth, Rng(5)),
                       "widenet: upcycle: there must be an expert, and block must lie in [-1, 3); "
                       "got 2, 3", ConfigError);
  CHECK_THROWS_AS(support::upcycled(dense, how(2, 3), Rng(5)), ConfigError);
}
