// Tests for the models of the paper: their parameters, and that each of them learns.
#include "check.hpp"
#include "support/presets.hpp"

#include <cstdio>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>

using namespace widenet;

namespace {

VisionConfig changed(VisionConfig c, const std::function<void(EncoderConfig&)>& change) {
  change(c.encoder);
  return c;
}
LanguageConfig changed(LanguageConfig c, const std::function<void(EncoderConfig&)>& change) {
  change(c.encoder);
  return c;
}

const auto without_moe = [](EncoderConfig& e) { e.experts = 0; };
const auto shared_norms = [](EncoderConfig& e) { e.share_layer_norm = true; };
const auto shared = [](EncoderConfig& e) { e.share_attention = e.share_experts = true; };
const auto without_final_norm = [](EncoderConfig& e) { e.has_final_norm = false; };

/// Still smaller than toy size: a gradcheck of all parameters takes a second.
EncoderConfig tiny(EncoderConfig c) {
  c = support::toy_size(c);
  c.width = 8, c.heads = 2, c.blocks = 2, c.dense_hidden = 5, c.expert_hidden = 6;
  c.experts = std::min<Index>(c.experts, 3);
  return c;
}
VisionConfig tiny(VisionConfig c) {
  c.encoder = tiny(c.encoder);
  c.image_height = c.image_width = 4, c.channels = 1, c.patch = 2, c.classes = 3;
  return c;
}
LanguageConfig tiny(LanguageConfig c) {
  c.encoder = tiny(c.encoder);
  c.vocabulary = 11, c.max_tokens = 5, c.embedding = 4;
  return c;
}

/// Three sequences of five tokens, the last one with padding.
TokenBatch token_batch() {
  TokenBatch batch;
  batch.B = 3, batch.T = 5;
  batch.token = {1, 4, 5, 6, 2, 1, 7, 8, 9, 2, 1, 3, 2, 0, 0};
  batch.type = {0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0};
  batch.mask = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0};
  return batch;
}

/// The loss of a small task, and the routings behind it.
Routed loss_of(const VisionModel<double>& model, const Replay<double>& replay) {
  const VisionConfig& c = model.config();
  const auto images = check::normal({3, c.channels, c.image_height, c.image_width}, 0);
  const auto out = model.forward(images, replay);
  return {total_loss(cross_entropy(out.logits, {0, 1, 2}), out.balance_loss), out.routings};
}
/// Masked words, the order of the segments, classes and spans all at once.
Routed loss_of(const LanguageModel<double>& model, const Replay<double>& replay) {
  const auto out = model.forward(token_batch(), replay);
  const auto words = cross_entropy(model.masked_logits(out.tokens, {1, 7, 12}), {4, 8, 2});
  const auto order = cross_entropy(model.order_logits(out.tokens), {0, 1, 1});
  const auto classes = cross_entropy(model.class_logits(out.tokens), {1, 0, 1});
  const auto span = sum(model.span_logits(out.tokens));
  return {total_loss(words + order + classes + 0.1 * span, out.balance_loss), out.routings};
}

/// What all models of the paper have alike; dropout is part of a recipe.
void check_common(const EncoderConfig& e) {
  CHECK(double(e.capacity_factor.numerator) / double(e.capacity_factor.denominator) == 1.2);
  CHECK(e.evaluation_capacity_factor.numerator == 0);  // that of training
  CHECK(e.routing_groups == -1);                       // every block routes
  CHECK(e.routes_padding);
  CHECK(e.norm == Norm::layer_norm);
  CHECK(e.gelu == Gelu::tanh);
  CHECK(!e.gelu_at_output);
  CHECK(e.dropout == 0);
}

template <class Model>
Index sum_of_sizes(const Model& model) {
  Index sizes = 0;
  for (const auto& p : model.parameters()) sizes += p.tensor.size();
  return sizes;
}

template <class Model>
void check_gradients(const Model& model) {
  std::vector<Tensor<double>> inputs;
  for (const auto& p : model.parameters()) inputs.push_back(p.tensor);
  const auto f = [&](const Replay<double>& replay) { return loss_of(model, replay); };
  const GradReport report = gradcheck(f, inputs);
  INFO(report.where);
  CHECK(report.max_error < 1e-6);
  CHECK(report.margin > 1e-3);  // no difference of gradcheck flips a choice
}

/// Twenty steps of LAMB, and the same with a stop in the middle, where all is saved.
template <template <class> class Model, class Config>
void check_learning(const std::string& name, const Config& config) {
  const std::string path = (std::filesystem::temp_directory_path() /
                            ("widenet_family_" + name + ".safetensors")).string();
  const auto train = [&](bool stops) {
    Model<double> model(config, Rng(1));
    LAMB<double> optimizer(model.parameters(), 3e-2);
    std::vector<double> losses;
    for (Index step = 0; step < 20; ++step) {
      if (stops && step == 10) {
        save_checkpoint(path, model, optimizer, {step, 1, {}});
        model = Model<double>(config, Rng(2));
        optimizer = LAMB<double>(model.parameters(), 3e-2);
        CHECK(load_checkpoint(path, model, optimizer).step == 10);
      }
      const auto loss = loss_of(model, {}).value;
      losses.push_back(loss.item());
      optimizer.zero_grad();
      loss.backward();
      optimizer.step();
    }
    return losses;
  };
  const std::vector<double> losses = train(false);
  CHECK(losses.back() < 0.7 * losses.front());
  CHECK(check::same_bits(train(true), losses));
  std::remove(path.c_str());
}

/// The loss of a step of training at toy size: four images of noise, to be known by heart.
Tensor<float> toy_loss(const VisionModel<float>& model, const Training& training) {
  const auto out = model.forward(check::normal<float>({4, 1, 8, 8}, 0), training);
  return total_loss(cross_entropy(out.logits, {0, 1, 2, 3}), out.balance_loss);
}
/// The same for sentences: masked words, the order of the segments, classes.
Tensor<float> toy_loss(const LanguageModel<float>& model, const Training& training) {
  const auto out = model.forward(token_batch(), training);
  const auto words = cross_entropy(model.masked_logits(out.tokens, {1, 7, 12}), {4, 8, 2});
  const auto order = cross_entropy(model.order_logits(out.tokens), {0, 1, 1});
  const auto classes = cross_entropy(model.class_logits(out.tokens), {1, 0, 1});
  return total_loss(words + order + classes, out.balance_loss);
}

/// Twenty steps of AdamW leave no more than this fraction of the loss, and move every tensor.
template <class Model>
void check_toy_learning(const Model& model, double most) {
  AdamW<float> optimizer(model.parameters(), 5e-3, AdamWOptions{0.9, 0.999, 1e-8, 0});
  std::vector<std::vector<float>> before;
  for (const auto& p : model.parameters()) before.push_back(p.tensor.to_vector());
  double first = 0, last = 0;
  for (Index step = 0; step < 20; ++step) {
    const auto loss = toy_loss(model, Training{Rng(1), step});
    last = double(loss.item());
    if (step == 0) first = last;
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
  }
  CHECK(last < most * first);
  for (std::size_t i = 0; i < before.size(); ++i) {
    const auto& p = model.parameters()[i];
    INFO(p.name);
    // A bias of keys adds the same to all logits of a query: its gradient is rounding alone.
    if (p.name.find(".k.bias") != std::string::npos) continue;
    const bool is_used = p.name.compare(0, 5, "span.") != 0;  // the loss has no span
    CHECK((p.tensor.to_vector() != before[i]) == is_used);
  }
}

}  // namespace

TEST_CASE("presets: the models of the paper for images, field by field") {
  struct Row {
    std::string name;
    Index D, blocks, heads, dense, experts, expert, moe_blocks;  // dense, expert: F
    Pooling pooling;
  };
  const Pooling token = Pooling::class_token, mean = Pooling::mean;
  const Row rows[] = {{"vit_b", 768, 12, 12, 3072, 0, 0, 0, token},
                      {"vit_l", 1024, 24, 16, 4096, 0, 0, 0, token},
                      {"vit_moe_b", 768, 12, 12, 3072, 4, 4096, 2, mean},
                      {"vit_moe_l", 1024, 24, 16, 4096, 4, 4096, 4, mean},
                      {"widenet_b", 768, 12, 12, 3072, 4, 4096, 12, mean},
                      {"widenet_l", 1024, 24, 16, 4096, 4, 4096, 24, mean},
                      {"widenet_h", 1280, 32, 16, 5120, 4, 5120, 32, mean}};
  const auto presets = support::vision_presets();
  CHECK(presets.size() == std::size(rows));
  for (const Row& row : rows) {
    INFO(row.name);
    const VisionConfig c = support::preset_named(presets, row.name);
    const EncoderConfig& e = c.encoder;
    CHECK(e.width == row.D);
    CHECK(e.blocks == row.blocks);
    CHECK(e.heads == row.heads);
    CHECK(e.dense_hidden == row.dense);
    CHECK(e.experts == row.experts);
    if (row.experts > 0) CHECK(e.expert_hidden == row.expert);
    CHECK(e.top_k == 2);
    CHECK(e.num_moe_blocks() == row.moe_blocks);
    CHECK(c.pooling == row.pooling);
    const bool is_widenet = row.moe_blocks == row.blocks;
    CHECK(e.share_attention == is_widenet);
    CHECK(e.share_router == is_widenet);
    CHECK(e.share_experts == is_widenet);
    CHECK(!e.share_layer_norm);
    CHECK(c.image_height == 224);
    CHECK(c.image_width == 224);
    CHECK(c.channels == 3);
    CHECK(c.patch == 16);
    CHECK(c.classes == 1001);
    CHECK(c.class_token == ClassToken::zero);
    CHECK(c.has_pre_logits);
    check_common(e);
    CHECK(e.is_pre_norm);
    CHECK(e.has_final_norm);
    CHECK(e.layer_norm_eps == 1e-6);
  }
}

TEST_CASE("presets: the models of the paper for text, field by field") {
  struct Row {
    std::string name;
    Index experts;
    bool is_shared, shares_norms, is_pre_norm;
  };
  const Row rows[] = {{"albert_base", 0, true, true, false},
                      {"bert_factorized", 0, false, false, false},
                      {"widenet_albert_4", 4, true, false, true},
                      {"widenet_albert_8", 8, true, false, true},
                      {"widenet_albert_16", 16, true, false, true}};
  const auto presets = support::language_presets();
  CHECK(presets.size() == std::size(rows));
  for (const Row& row : rows) {
    INFO(row.name);
    const LanguageConfig c = support::preset_named(presets, row.name);
    const EncoderConfig& e = c.encoder;
    CHECK(c.vocabulary == 30000);
    CHECK(c.max_tokens == 512);
    CHECK(c.types == 2);
    CHECK(c.embedding == 128);
    CHECK(e.width == 768);
    CHECK(e.blocks == 12);
    CHECK(e.heads == 12);
    CHECK(e.experts == row.experts);
    CHECK(e.top_k == 2);
    CHECK(e.num_moe_blocks() == (row.experts > 0 ? 12 : 0));
    CHECK((row.experts > 0 ? e.expert_hidden : e.dense_hidden) == 3072);
    CHECK(e.share_attention == row.is_shared);
    CHECK(e.share_router == row.is_shared);
    CHECK(e.share_experts == row.is_shared);
    CHECK(e.share_layer_norm == row.shares_norms);
    check_common(e);
    CHECK(e.is_pre_norm == row.is_pre_norm);
    if (row.is_pre_norm) CHECK(e.has_final_norm);  // post-norm blocks have none
    CHECK(e.layer_norm_eps == 1e-12);
  }
}

TEST_CASE("count_parameters: the models of the paper for images, exactly, without memory") {
  const MemoryUse before = memory_use();
  const VisionConfig b = VisionConfig::widenet_b(), l = VisionConfig::widenet_l(),
                     h = VisionConfig::widenet_h();
  struct Row {
    VisionConfig config;
    Index count;
    int millions;  // as the paper prints them, rounded down
  };
  const std::vector<Row> rows = {
      {VisionConfig::vit_b(), 87158249, 87},
      {VisionConfig::vit_l(), 305376233, 305},
      {VisionConfig::vit_moe_b(), 128090089, 128},
      {VisionConfig::vit_moe_l(), 406117353, 406},
      {b, 29691369, 29},
      {l, 40942569, 40},
      {h, 63343081, 63},
      {changed(b, without_moe), 9225449, 9},
      {changed(l, without_moe), 15757289, 15},
      {changed(h, without_moe), 23997161, 23},
      {changed(b, shared_norms), 29657577, 29},
      {changed(l, shared_norms), 40848361, 40},
      {changed(h, shared_norms), 63184361, 63},
      {changed(VisionConfig::vit_l(), shared), 15757289, 15},
      {changed(changed(VisionConfig::vit_l(), shared),
               [](EncoderConfig& e) { e.dense_hidden = 8192; }), 24149993, 24},
      {changed(l, [](EncoderConfig& e) { e.blocks = 12; }), 40893417, 40}};
  for (const Row& row : rows) {
    INFO("width ", row.config.encoder.width, ", ", row.count);
    CHECK(count_parameters(row.config) == row.count);
    CHECK(row.count / 1000000 == row.millions);
    CHECK(VisionModel<double>::count_all(row.config) == row.count);
    const Index D = row.config.encoder.width;
    VisionConfig other = row.config;
    other.class_token = ClassToken::trained;
    CHECK(count_parameters(other) == row.count + D);
    other = row.config;
    other.classes = 1000;
    CHECK(count_parameters(other) == row.count - (D + 1));
    other = row.config;
    other.has_pre_logits = false;
    CHECK(count_parameters(other) == row.count - (D * D + D));
  }
  for (const VisionConfig& c : {b, l, h}) {  // the formula for a WideNet, written out
    const Index D = c.encoder.width, F = c.encoder.expert_hidden, E = 4, P = 16;
    const Index embed = 3 * P * P * D + D + 197 * D, head = D * D + D + 1001 * D + 1001;
    const Index attention = 4 * D * D + 4 * D, ffn = 2 * D * F + F + D;
    CHECK(count_parameters(c) == embed + attention + E * ffn + D * E +
                                     (2 * c.encoder.blocks + 1) * 2 * D + head);
  }
  const MemoryUse after = memory_use();
  CHECK(after.num_allocations == before.num_allocations);
  CHECK(after.in_use == before.in_use);
  CHECK(after.cached == before.cached);
}

TEST_CASE("count_parameters: the models of the paper for text, exactly, without memory") {
  const MemoryUse before = memory_use();
  const auto widenet = [](Index experts) { return LanguageConfig::widenet_albert(experts); };
  struct Row {
    LanguageConfig config;
    Index count;
  };
  const std::vector<Row> rows = {{LanguageConfig::albert_base(), 11683584},
                                 {LanguageConfig::bert_factorized(), 89650176},
                                 {widenet(4), 25889280},
                                 {widenet(8), 44782080},
                                 {widenet(16), 82567680},
                                 {changed(widenet(4), without_final_norm), 25887744},
                                 {changed(widenet(8), without_final_norm), 44780544},
                                 {changed(widenet(16), without_final_norm), 82566144}};
  for (const Row& row : rows) {
    INFO(row.count);
    CHECK(count_parameters(row.config) == row.count);
    // The heads: masked words and order of segments as in ALBERT, two classes, spans.
    CHECK(LanguageModel<float>::count_all(row.config) == row.count + 130226 + 2 * (768 * 2 + 2));
  }
  const MemoryUse after = memory_use();
  CHECK(after.num_allocations == before.num_allocations);
  CHECK(after.in_use == before.in_use);
}

TEST_CASE("count_parameters: every switch of sharing costs what it should") {
  const VisionConfig config = VisionConfig::widenet_b();
  const Index D = 768, F = 4096, E = 4, L = 12, once = count_parameters(config);
  const auto count = [&](const std::function<void(EncoderConfig&)>& change) {
    return count_parameters(changed(config, change));
  };
  const Index attention = 4 * (D * D + D), expert = 2 * D * F + F + D, router = D * E;
  CHECK(count([](auto& e) { e.share_attention = false; }) == once + (L - 1) * attention);
  CHECK(count([](auto& e) { e.share_router = false; }) == once + (L - 1) * router);
  CHECK(count([](auto& e) { e.share_experts = false; }) == once + (L - 1) * E * expert);
  CHECK(count([](auto& e) { e.share_layer_norm = true; }) == once - (L - 1) * 2 * 2 * D);
  CHECK(count([](auto& e) { e.experts = 5; }) == once + expert + D);
  CHECK(count([](auto& e) { e.expert_hidden += 1; }) == once + E * (2 * D + 1));
  CHECK(count([](auto& e) { e.blocks += 1; }) == once + 2 * 2 * D);
  CHECK(count([](auto& e) { e.routing_groups = 3; }) == once);
  CHECK(count([](auto& e) { e.share_router = false, e.routing_groups = 3; }) == once + 2 * router);
  CHECK(count([](auto& e) { e.top_k = 1; }) == once);
  const Index dense = 2 * D * 3072 + 3072 + D;
  CHECK(count([](auto& e) { e.moe_blocks = 5; }) == once + dense);
  CHECK(count([](auto& e) { e.moe_blocks = 5, e.share_experts = false; }) ==
        once + 7 * dense + 4 * E * expert);
  CHECK(count(without_moe) == once - E * expert - router + dense);
}

TEST_CASE("count_parameters: it is the number that a model of each kind has") {
  for (const auto& preset : support::vision_presets()) {
    INFO(preset.first);
    for (const auto& change : {std::function<void(EncoderConfig&)>(without_moe),
                               std::function<void(EncoderConfig&)>(shared_norms),
                               std::function<void(EncoderConfig&)>(shared),
                               std::function<void(EncoderConfig&)>([](EncoderConfig&) {})}) {
      const VisionConfig c = changed(support::toy_size(preset.second), change);
      const VisionModel<float> model(c, Rng(0));
      CHECK(count_parameters(c) == sum_of_sizes(model));
      CHECK(model.num_parameters() == sum_of_sizes(model));
    }
  }
  for (const auto& preset : support::language_presets()) {
    INFO(preset.first);
    const LanguageConfig c = support::toy_size(preset.second);
    const LanguageModel<float> model(c, Rng(0));
    CHECK(LanguageModel<float>::count_all(c) == sum_of_sizes(model));
    Index heads = 0;
    for (const auto& p : model.parameters())
      for (const char* head : {"mlm.", "order.", "classifier.", "span."})
        if (p.name.compare(0, std::strlen(head), head) == 0) heads += p.tensor.size();
    CHECK(count_parameters(c) == sum_of_sizes(model) - heads);
  }
}

TEST_CASE("presets: names, toy sizes, errors") {
  const auto vision = support::vision_presets();
  CHECK(support::preset_named(vision, "widenet_l").encoder.blocks == 24);
  CHECK_THROWS_WITH_AS(support::preset_named(vision, "widenet"),
                       "widenet: preset: the name must be one of vit_b vit_l vit_moe_b vit_moe_l "
                       "widenet_b widenet_l widenet_h; got widenet",
                       ValueError);
  const VisionConfig toy = support::toy_size(VisionConfig::vit_moe_l());
  CHECK(toy.encoder.width == 64);
  CHECK(toy.encoder.heads == 4);
  CHECK(toy.encoder.blocks == 6);
  CHECK(toy.encoder.num_moe_blocks() == 1);
  CHECK(toy.encoder.dense_hidden == 256);
  CHECK(toy.num_tokens() == 17);
  CHECK(support::toy_size(LanguageConfig::widenet_albert(8)).encoder.experts == 8);
}

TEST_CASE("presets: a gradcheck of every parameter of each") {
  const check::OneThread one_thread;
  std::set<std::string> seen;  // at tiny size some are the same
  for (const auto& preset : support::vision_presets()) {
    INFO(preset.first);
    if (seen.insert(to_json(tiny(preset.second))).second)
      check_gradients(VisionModel<double>(tiny(preset.second), Rng(3)));
  }
  for (const auto& preset : support::language_presets()) {
    INFO(preset.first);
    if (seen.insert(to_json(tiny(preset.second))).second)
      check_gradients(LanguageModel<double>(tiny(preset.second), Rng(3)));
  }
  CHECK(seen.size() == 6);
}

TEST_CASE("presets: each learns, and goes on with the same bits after it was saved and loaded") {
  const check::OneThread one_thread;
  for (const auto& preset : support::vision_presets()) {
    INFO(preset.first);
    check_learning<VisionModel>(preset.first, tiny(preset.second));
  }
  for (const auto& preset : support::language_presets()) {
    INFO(preset.first);
    check_learning<LanguageModel>(preset.first, tiny(preset.second));
  }
}

TEST_CASE("presets: each learns at toy size, in single precision") {
  const check::OneThread one_thread;
  for (const auto& preset : support::vision_presets()) {
    INFO(preset.first);
    const VisionModel<float> model(support::toy_size(preset.second), Rng(1));
    check_toy_learning(model, 0.1);  // of 8 seeds at most 0.043
  }
  for (const auto& preset : support::language_presets()) {
    INFO(preset.first);
    const LanguageModel<float> model(support::toy_size(preset.second), Rng(1));
    check_toy_learning(model, 0.6);  // of 8 seeds at most 0.53
  }
}

TEST_CASE("language model: it is embeddings, LayerNorm, dropout, projection, encoder") {
  LanguageConfig c = tiny(LanguageConfig::widenet_albert(4));
  c.encoder.dropout = 0.2;
  const LanguageModel<double> model(c, Rng(5));
  std::map<std::string, Tensor<double>> at;
  for (const auto& p : model.parameters()) at[p.name] = p.tensor;
  at.at("embeddings.norm.weight").value().assign(check::normal({4}, 1).to_vector());
  ParameterSet<double> parameters(Rng(5));  // weights are a function of seed and name
  const Encoder<double> encoder(c.encoder, parameters);
  const TokenBatch batch = token_batch();
  const Training training{Rng(6), 2};
  for (const Training* t : {static_cast<const Training*>(nullptr), &training}) {
    const auto found = t ? model.forward(batch, *t) : model.forward(batch);
    auto x = (embedding(batch.token, at.at("embeddings.word.weight")) +
              embedding(batch.type, at.at("embeddings.type.weight"))).reshaped({3, 5, 4});
    x = add_to_sequences(x, embedding({0, 1, 2, 3, 4}, at.at("embeddings.position.weight")));
    x = layer_norm(x, at.at("embeddings.norm.weight"), at.at("embeddings.norm.bias"), 1e-12);
    if (t) x = dropout(x, 0.2, t->stream(Purpose::embedding_dropout, 0));
    x = linear(x, at.at("embeddings.projection.weight"), at.at("embeddings.projection.bias"));
    const auto out = encoder.forward(x, t, {}, Buffer<std::uint8_t>(batch.mask));
    CHECK(check::same_bits(found.tokens.to_vector(), out.tokens.to_vector()));
    CHECK(found.balance_loss.item() == out.balance_loss.item());
  }
}

TEST_CASE("padding: where it is not routed it takes no slot and counts nowhere") {
  LanguageConfig config = tiny(LanguageConfig::widenet_albert(3));
  TokenBatch batch = token_batch(), other = batch;
  other.token[13] = 5, other.token[14] = 9;  // the padding
  const auto all_of = [&](const TokenBatch& b) {
    const auto out = LanguageModel<double>(config, Rng(3)).forward(b);
    std::vector<double> values = out.tokens.to_vector();
    values.resize(13 * 8);  // the tokens that are not padding
    values.push_back(out.balance_loss.item());
    for (const auto& routing : out.routings) {
      check::append(values, routing.importance.to_vector());
      for (const std::int32_t kept : routing.kept.to_vector()) values.push_back(kept);
    }
    return values;
  };
  CHECK(!check::same_bits(all_of(batch), all_of(other)));
  config.encoder.routes_padding = false;
  CHECK(check::same_bits(all_of(batch), all_of(other)));

  const auto out = LanguageModel<double>(config, Rng(3)).forward(batch);
  CHECK(out.routings.size() == 2);
  for (const auto& routing : out.routings) {
    CHECK(routing.N == 13);
    CHECK(routing.C == expert_capacity({6, 5}, 2, 13, 3));
    CHECK(routing.token.to_vector() ==
          std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
    std::int32_t load = 0;
    for (const std::int32_t l : routing.load.to_vector()) load += l;
    CHECK(load == 2 * 13);
  }
  batch.mask = {1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0};
  CHECK(LanguageModel<double>(config, Rng(3)).forward(batch).routings[0].token.to_vector() ==
        std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 10, 11, 12});

  batch.mask.assign(15, 1);
  const std::vector<double> masked = all_of(batch);
  config.encoder.routes_padding = true;
  CHECK(check::same_bits(all_of(batch), masked));
  batch.mask.clear();
  CHECK(check::same_bits(all_of(batch), masked));
  config.encoder.routes_padding = false;
  CHECK(check::same_bits(all_of(batch), masked));

  batch.mask.assign(15, 0);
  CHECK_THROWS_WITH_AS(all_of(batch),
                       "widenet: route: 1 <= K <= E and N >= 1 must hold; got K = 2, E = 3, N = 0",
                       ValueError);
}

TEST_CASE("padding: the routing does not depend on how far sequences are padded") {
  LanguageConfig config = tiny(LanguageConfig::widenet_albert(3));
  config.encoder.routes_padding = false;
  config.max_tokens = 9;
  const LanguageModel<float> model(config, Rng(3));
  const TokenBatch batch = token_batch();
  TokenBatch longer;
  longer.B = 3, longer.T = 9;
  for (Index b = 0; b < 3; ++b)
    for (Index t = 0; t < 9; ++t) {
      const auto at = static_cast<std::size_t>(5 * b + t);
      longer.token.push_back(t < 5 ? batch.token[at] : 0);
      longer.type.push_back(t < 5 ? batch.type[at] : 0);
      longer.mask.push_back(t < 5 ? batch.mask[at] : 0);
    }
  const auto a = model.forward(batch, Training{Rng(1), 0});
  const auto b = model.forward(longer, Training{Rng(1), 0});
  CHECK(check::same_products<float>({a.balance_loss.item()}, {b.balance_loss.item()}));
  for (std::size_t t = 0; t < a.routings.size(); ++t) {
    CHECK(check::same_products(a.routings[t].gate.to_vector(), b.routings[t].gate.to_vector()));
    CHECK(a.routings[t].slot.to_vector() == b.routings[t].slot.to_vector());
  }
}

TEST_CASE("padding: a gradcheck where it is not routed") {
  const check::OneThread one_thread;
  for (const bool is_pre_norm : {true, false}) {
    LanguageConfig config = tiny(LanguageConfig::widenet_albert(3));
    config.encoder.routes_padding = false, config.encoder.is_pre_norm = is_pre_norm;
    check_gradients(LanguageModel<double>(config, Rng(3)));
  }
}

namespace {

/// The gradients of all parameters, one after the other.
std::vector<double> gradients_of(const VisionModel<double>& model) {
  std::vector<double> all;
  for (const auto& p : model.parameters()) check::append(all, p.tensor.gradient().to_vector());
  return all;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  return compare(a, b).max_relative;
}

}  // namespace

TEST_CASE("micro-batches: gradients add up to that of the batch, but for the balance loss") {
  const auto all = check::normal({6, 1, 4, 4}, 0);
  const std::vector<double> pixels = all.to_vector();
  const std::vector<std::int32_t> labels = {0, 1, 2, 2, 0, 1};
  const auto part = [&](std::ptrdiff_t k) {  // images 2 k and 2 k + 1
    return check::tensor({2, 1, 4, 4}, {pixels.begin() + 32 * k, pixels.begin() + 32 * (k + 1)});
  };
  for (const auto& preset : {VisionConfig::vit_b(), VisionConfig::widenet_b()})
    for (const double lambda : {0.0, 1.0}) {
      VisionConfig config = tiny(preset);
      config.encoder.capacity_factor = {3, 2};  // nothing is dropped
      const VisionModel<double> model(config, Rng(3));
      SGD<double> optimizer(model.parameters(), 0);
      const auto loss_of_batch = [&](const Tensor<double>& images,
                                     const std::vector<std::int32_t>& label) {
        const auto out = model.forward(images);
        for (const auto& routing : out.routings) CHECK(routing.dropped_fraction() == 0);
        return total_loss(cross_entropy(out.logits, label), out.balance_loss, lambda);
      };
      loss_of_batch(all, labels).backward();
      const std::vector<double> whole = gradients_of(model);

      optimizer.zero_grad();
      std::vector<double> sum(whole.size());
      for (std::ptrdiff_t k = 0; k < 3; ++k) {
        const std::vector<std::int32_t> label(labels.begin() + 2 * k, labels.begin() + 2 * (k + 1));
        optimizer.zero_grad();
        ((1.0 / 3) * loss_of_batch(part(k), label)).backward();
        const std::vector<double> one = gradients_of(model);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += one[i];
      }
      optimizer.zero_grad();
      for (std::ptrdiff_t k = 0; k < 3; ++k) {
        const std::vector<std::int32_t> label(labels.begin() + 2 * k, labels.begin() + 2 * (k + 1));
        ((1.0 / 3) * loss_of_batch(part(k), label)).backward();
      }
      const std::vector<double> accumulated = gradients_of(model);
      CHECK(largest_difference(accumulated, sum) < 1e-14);
      const bool has_balance = config.encoder.experts > 0 && lambda > 0;
      if (has_balance) CHECK(largest_difference(accumulated, whole) > 1e-3);
      else CHECK(largest_difference(accumulated, whole) < 1e-13);
      optimizer.step();
      CHECK(optimizer.num_steps() == 1);
    }
}

TEST_CASE("micro-batches: each has noise and dropout of its own") {
  VisionConfig config = tiny(VisionConfig::widenet_b());
  config.encoder.dropout = 0.2;
  const VisionModel<double> model(config, Rng(3));
  const auto images = check::normal({2, 1, 4, 4}, 0);
  const auto run = [&](Index micro_batch) {
    const auto out = model.forward(images, Training{Rng(1), 7, micro_batch});
    std::vector<double> values = out.routings[0].noise.to_vector();
    check::append(values, out.logits.to_vector());
    return values;
  };
  CHECK(check::same_bits(run(0), run(0)));
  const std::vector<double> first = run(0), second = run(1);
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i] != second[i]);
}

TEST_SUITE("slow") {

TEST_CASE("widenet_b: at its real size a step at batch 4 takes less than 4 GB") {
  release_cached_memory();
  const Index before = memory_use().in_use;
  {
    const VisionConfig config = VisionConfig::widenet_b();
    const VisionModel<float> model(config, Rng(0));
    CHECK(sum_of_sizes(model) == 29691369);
    LAMB<float> optimizer(model.parameters(), 1e-2);
    const auto images = check::normal<float>({4, 3, 224, 224}, 0);
    const auto loss_at = [&](Index step) {
      const auto out = model.forward(images, Training{Rng(0), step});
      const auto loss = total_loss(cross_entropy(out.logits, {0, 10, 100, 1000}), out.balance_loss);
      optimizer.zero_grad();
      loss.backward();
      optimizer.step();
      return loss.item();
    };
    const float first = loss_at(0), second = loss_at(1);
    CHECK(std::isfinite(first));
    CHECK(second < first);
  }
  const Index most = memory_use().peak_in_use - before;
  MESSAGE("widenet_b at batch 4: ", most / 1000000, " MB of tensors");
  CHECK(most < Index(4000000000));
  release_cached_memory();
}

}  // TEST_SUITE
