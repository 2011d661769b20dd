// golden.hpp - cases of golden data: inputs and settings in a safetensors file, run through the
// header, with every intermediate as the result.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_GOLDEN_HPP
#define WIDENET_EXAMPLES_SUPPORT_GOLDEN_HPP

#include "widenet.hpp"

#include <algorithm>         // min
#include <cmath>             // fabs
#include <cstdint>           // int32_t, uint64_t, uint8_t
#include <fstream>           // ifstream
#include <initializer_list>  // initializer_list
#include <iterator>          // istreambuf_iterator
#include <map>               // map
#include <set>               // set
#include <string>            // string
#include <utility>           // move
#include <vector>            // vector

namespace widenet::support {

/// One case. The file holds in.NAME, and from another implementation out.NAME and out32.NAME.
struct GoldenCase {
  std::string name, op, source, path, sha256;
  Json settings;
  std::vector<std::string> zero;          // results that are 0 but for rounding
  std::map<std::string, double> error32;  // how far results in float32 may be from those in float64
};

/// Reads manifest.json of a folder of golden data.
///
///   Errors    IoError if it cannot be read or a field is missing
inline std::vector<GoldenCase> read_manifest(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  std::ifstream in(path, std::ios::binary);
  require<IoError>(in.good(), "golden: ", path, ": the file must open");
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  const Json manifest = Json::parse(text, path);
  std::vector<GoldenCase> cases;
  for (const Json& entry : manifest.at("cases").items()) {
    GoldenCase c;
    c.name = entry.at("name").string(), c.op = entry.at("op").string();
    c.source = entry.at("source").string(), c.sha256 = entry.at("sha256").string();
    c.path = folder + "/" + c.name + ".safetensors";
    c.settings = entry.at("settings");
    for (const Json& name : entry.at("zero").items()) c.zero.push_back(name.string());
    for (const auto& error : entry.at("error32").members())
      c.error32[error.first] = error.second.number();
    cases.push_back(std::move(c));
  }
  return cases;
}

/// The results of a case in T, in the order of computation.
template <class T>
struct GoldenResults {
  std::vector<std::string> order;
  std::map<std::string, std::vector<T>> values;
  std::map<std::string, std::vector<std::int32_t>> integers;
  std::map<std::string, Shape> shapes;
};

/// Reads the fields of a configuration that are given; the others keep their defaults.
struct GivenFields {
  const Json& json;
  template <class Value>
  void operator()(const char* name, Value& value) const {
    if (json.find(name)) widenet::detail::ConfigReader{json}(name, value);
  }
  template <class Enum>
  void operator()(const char* name, Enum& value, std::initializer_list<const char*> names) const {
    if (json.find(name)) widenet::detail::ConfigReader{json}(name, value, names);
  }
};

/// Runs one case: reads inputs as they are asked for, collects results.
template <class T>
class GoldenRun {
 public:
  GoldenRun(const std::string& op, const Json& settings, const SafeTensors& file,
            const Conventions* conventions = nullptr)
      : settings_(settings), file_(file), conventions_(conventions) {
    const std::map<std::string, void (GoldenRun::*)()> known = {
        {"linear", &GoldenRun::linear_op}, {"tied_decoder", &GoldenRun::tied_decoder_op},
        {"layer_norm", &GoldenRun::layer_norm_op}, {"rms_norm", &GoldenRun::rms_norm_op},
        {"gelu", &GoldenRun::gelu_op},
        {"relu", &GoldenRun::relu_op}, {"tanh", &GoldenRun::tanh_op},
        {"softmax", &GoldenRun::softmax_op}, {"multiply", &GoldenRun::multiply_op},
        {"embedding", &GoldenRun::embedding_op},
        {"add_to_sequences", &GoldenRun::add_to_sequences_op},
        {"prepend_token", &GoldenRun::prepend_token_op},
        {"slice_tokens", &GoldenRun::slice_tokens_op},
        {"mean_tokens", &GoldenRun::mean_tokens_op},
        {"extract_patches", &GoldenRun::extract_patches_op},
        {"attention", &GoldenRun::attention_op}, {"cross_entropy", &GoldenRun::cross_entropy_op},
        {"mixture", &GoldenRun::mixture_case}, {"block", &GoldenRun::block_case},
        {"encoder", &GoldenRun::encoder_case}, {"vision", &GoldenRun::vision_case},
        {"language", &GoldenRun::language_case}, {"optimiser", &GoldenRun::optimiser_case},
        {"training", &GoldenRun::training_case}};
    const auto found = known.find(op);
    require<ConfigError>(found != known.end(), "golden: an operation must be known; got ", op);
    (this->*found->second)();
    if (!conventions) require_all_are_asked_for(op);  // others may leave some inputs out
  }
  GoldenResults<T> results;

 private:
  // Inputs and results --------------------------------------------------------------------------

  const std::string& stored(const std::string& name) const {  // its name in the file
    return *asked_for_.insert("in." + name).first;
  }
  void require_all_are_asked_for(const std::string& op) const {
    for (const auto& entry : file_.tensors)
      require<ConfigError>(entry.first.rfind("in.", 0) != 0 || asked_for_.count(entry.first) > 0,
                           "golden: ", op, " must have use for every input; got ", entry.first,
                           "; hint: a misspelled name would be taken for an input left out");
  }
  bool has(const std::string& name) const { return file_.tensors.count(stored(name)) > 0; }
  std::vector<T> values(const std::string& name) const {
    const std::vector<double> numbers = file_.values<double>(stored(name));
    return std::vector<T>(numbers.begin(), numbers.end());
  }
  std::vector<std::int32_t> integers(const std::string& name) const {
    return file_.values<std::int32_t>(stored(name));
  }
  Shape shape(const std::string& name) const { return file_.at(stored(name)).shape; }
  /// An input whose gradient is among the results.
  Tensor<T> in(const std::string& name) {
    if (inputs_.count(name) == 0)
      inputs_[name] = Tensor<T>(shape(name), values(name)).require_gradient();
    return inputs_[name];
  }
  Tensor<T> maybe(const std::string& name) { return has(name) ? in(name) : Tensor<T>(); }
  Tensor<T> constant(const std::string& name) const { return {shape(name), values(name)}; }

  void out(const std::string& name, const Tensor<T>& x) { out(name, x.shape(), x.to_vector()); }
  void out(const std::string& name, const Shape& s, const std::vector<T>& x) {
    results.order.push_back(name);
    results.values[name] = x, results.shapes[name] = s;
  }
  void out(const std::string& name, const Shape& s, const Buffer<std::int32_t>& x) {
    results.order.push_back(name);
    results.integers[name] = x.to_vector(), results.shapes[name] = s;
  }
  void out(const std::string& prefix, const Routing<T>& r) {
    const Shape choices{r.N, r.K}, experts{r.E};
    out(prefix + "logits", r.logits);
    out(prefix + "probabilities", r.probabilities);
    out(prefix + "expert", choices, r.expert);
    out(prefix + "slot", choices, r.slot);
    out(prefix + "gate", r.gate);
    out(prefix + "load", experts, r.load);
    out(prefix + "kept", experts, r.kept);
    out(prefix + "importance", experts, r.importance.to_vector());
  }
  /// loss, and the gradients of all inputs.
  void finish(const Tensor<T>& loss) {
    out("loss", loss);
    if (loss.needs_gradient()) loss.backward();
    for (const auto& input : inputs_) out_gradient(input.first, input.second);
  }
  void out_gradient(const std::string& name, const Tensor<T>& x) {
    x.gradient();  // zero, if nothing has contributed
    out("grad." + name, x.shape(), x.gradient().to_vector());
  }
  /// y and the loss sum(y d_y) of a single operation.
  void finish_with(const Tensor<T>& y) {
    out("y", y);
    finish(sum(multiply(y, constant("d_y"))));
  }
  /// The configuration in the settings.
  template <class Config>
  Config config(void (*visit)(Config&, GivenFields&)) const {
    Config c;
    GivenFields reader{settings_};
    visit(c, reader);
    if (conventions_) conventions_of(c) = *conventions_;
    return c;
  }
  static Conventions& conventions_of(EncoderConfig& c) { return c.conventions; }
  template <class Config>
  static Conventions& conventions_of(Config& c) { return c.encoder.conventions; }
  Gelu form() const {
    const std::string& name = settings_.at("gelu").string();
    require<ConfigError>(name == "tanh" || name == "erf",
                         "golden: gelu must be \"tanh\" or \"erf\"; got ", name);
    return name == "erf" ? Gelu::erf : Gelu::tanh;
  }
  double number(const char* name) const { return settings_.at(name).number(); }
  Index integer(const char* name) const { return settings_.at(name).integer(); }

  // Operations ----------------------------------------------------------------------------------

  void linear_op() { finish_with(linear(in("x"), in("w"), maybe("b"))); }
  void tied_decoder_op() { finish_with(tied_decoder(in("x"), in("w"), maybe("b"))); }
  void layer_norm_op() {
    finish_with(layer_norm(in("x"), in("gamma"), in("beta"), number("eps")));
  }
  void rms_norm_op() { finish_with(rms_norm(in("x"), in("gamma"), number("eps"))); }
  void gelu_op() { finish_with(gelu(in("x"), form())); }
  void relu_op() { finish_with(relu(in("x"))); }
  void tanh_op() { finish_with(tanh(in("x"))); }
  void softmax_op() { finish_with(softmax(in("x"))); }
  void multiply_op() { finish_with(multiply(in("x"), constant("mask"))); }
  void embedding_op() { finish_with(embedding(integers("id"), in("table"))); }
  void add_to_sequences_op() { finish_with(add_to_sequences(in("x"), in("block"))); }
  void prepend_token_op() { finish_with(prepend_token(in("token"), in("x"))); }
  void slice_tokens_op() {
    finish_with(slice_tokens(in("x"), integer("first"), integer("count")));
  }
  void mean_tokens_op() { finish_with(mean_tokens(in("x"))); }
  void extract_patches_op() { finish_with(extract_patches(constant("x"), integer("patch"))); }
  void attention_op() {
    finish_with(attention(in("q"), in("k"), in("v"), integer("heads"), key_mask("key_mask")));
  }
  void cross_entropy_op() {
    finish(cross_entropy(in("x"), integers("labels"), number("smoothing")));
  }
  Buffer<std::uint8_t> key_mask(const std::string& name) const {
    return Buffer<std::uint8_t>(mask(name));
  }
  std::vector<std::uint8_t> mask(const std::string& name) const {
    if (!has(name)) return {};
    const std::vector<std::int32_t> stored = integers(name);
    return {stored.begin(), stored.end()};
  }

  // One mixture of experts, one block -----------------------------------------------------------

  /// Router, dispatch, experts, combine; every stage a result.
  Tensor<T> mixture_of(const Tensor<T>& x, const EncoderConfig& c, Index B, Tensor<T>& balance) {
    const Conventions& rules = c.conventions;
    const Tensor<T> seen = has("jitter") ? multiply(x, constant("jitter")) : x;
    const Tensor<T> logits =
        router_logits(seen, in("shared.moe.router.weight"), maybe("shared.moe.router.bias"));
    const Index group = x.shape()[0] / B * std::min(B, rules.capacity_sequences);
    const Buffer<T> noise = has("noise") ? Buffer<T>(values("noise")) : Buffer<T>();
    const bool is_replayed = has("replay.expert"), is_drawn = has("order") || has("coins");
    const auto choices = is_replayed ? replayed("") : typename Replay<T>::Choices();
    const Rng draw(is_drawn ? seed() : 0);
    const Routing<T> r = route(logits, {c.top_k, c.capacity_factor, rules, group}, noise,
                               is_drawn ? &draw : nullptr, is_replayed ? &choices : nullptr);
    require_drawn(r, draw);
    out("", r);
    const Tensor<T> tokens = rules.noise == RouterNoise::jitter_in_place ? seen : x;
    const Tensor<T> slots = dispatch(tokens, r);
    const std::string name = "shared.moe.experts.{}.";
    const Tensor<T> y =
        experts(slots, in(name + "fc1.weight"), in(name + "fc1.bias"), in(name + "fc2.weight"),
                in(name + "fc2.bias"), r, c.gelu, {}, c.gelu_at_output);
    Tensor<T> combined = combine(y, r.gate, r);
    if (rules.dropped == DroppedValue::gated_input)
      combined = combined + dropped_inputs(tokens, r.gate, r);
    balance = balance_loss(r, rules.balance);
    out("slots", slots);
    out("results", y);
    out("y", combined);
    out("balance_loss", balance);
    return combined;
  }
  /// The header draws an order of priority and coins itself: those of a case must be the same.
  void require_drawn(const Routing<T>& r, const Rng& draw) const {
    if (has("order"))
      require<ValueError>(
          integers("order") ==
              widenet::detail::order_of_priority(Priority::random, r, &draw).to_vector(),
          "golden: order must be what the header draws from the seed; got another");
    const std::vector<T> coins = has("coins") ? values("coins") : std::vector<T>();
    require<ShapeError>(coins.empty() || static_cast<Index>(coins.size()) == r.N * r.K,
                        "golden: coins must be (N, K); got ", coins.size(), " values");
    for (std::size_t i = 0; i < coins.size(); ++i) {
      const double drawn = draw.uniform(r.N * r.K + static_cast<Index>(i));
      require<ValueError>(std::fabs(drawn - double(coins[i])) < 1e-6, "golden: coins must be what "
                          "the header draws from the seed, ", drawn, " at ", i, "; got ", coins[i]);
    }
  }
  void mixture_case() {
    const auto c = config<EncoderConfig>(widenet::detail::visit_encoder);
    Tensor<T> balance;
    const Tensor<T> y = mixture_of(in("x"), c, integer("batch"), balance);
    finish(sum(multiply(y, constant("d_y"))) + balance);
  }
  void block_case() {
    const auto c = config<EncoderConfig>(widenet::detail::visit_encoder);
    const Tensor<T> x = in("x");
    const auto named = [&](const std::string& name, const Tensor<T>& y) { return out(name, y), y; };
    const auto norm = [&](const std::string& which, const Tensor<T>& y) {
      const std::string name = "blocks.0." + which;
      const Tensor<T> gamma = in(name + ".weight");
      return named(which, c.norm == Norm::rms_norm
                              ? rms_norm(y, gamma, c.layer_norm_eps)
                              : layer_norm(y, gamma, in(name + ".bias"), c.layer_norm_eps));
    };
    const auto project = [&](const std::string& which, const Tensor<T>& y) {
      const std::string name = "shared.attn." + which;
      return named(which, linear(y, in(name + ".weight"), in(name + ".bias")));
    };
    const Tensor<T> h = norm("norm1", x);
    const Tensor<T> q = project("q", h), k = project("k", h), v = project("v", h);
    const Tensor<T> attended = named("attention", attention(q, k, v, c.heads));
    const Tensor<T> middle = named("middle", x + project("o", attended));
    const Tensor<T> tokens = norm("norm2", middle).reshaped({x.shape().num_rows(), c.width});
    Tensor<T> balance;
    const Tensor<T> y = mixture_of(tokens, c, x.shape()[0], balance);
    const Tensor<T> result = named("tokens", middle + y.reshaped(x.shape()));
    finish(sum(multiply(result, constant("d_y"))) + balance);
  }

  // Models --------------------------------------------------------------------------------------

  void load(const std::vector<Parameter<T>>& parameters) {
    for (const Parameter<T>& p : parameters) {
      require<ShapeError>(shape(p.name) == p.tensor.shape(), "golden: ", p.name,
                          " must have shape ", p.tensor.shape(), "; got ", shape(p.name));
      p.tensor.value().assign(values(p.name));
      inputs_[p.name] = p.tensor;
    }
  }
  /// Decisions of another router, where support/replay.hpp has added them to the case.
  typename Replay<T>::Choices replayed(const std::string& routing) const {
    const std::string name = "replay." + routing;
    return {Buffer<std::int32_t>(integers(name + "expert")),
            Buffer<std::int32_t>(integers(name + "slot")),
            has(name + "gate") ? Buffer<T>(values(name + "gate")) : Buffer<T>()};
  }
  Replay<T> replay() const {
    Replay<T> replay;
    for (Index t = 0; has("replay." + std::to_string(t) + ".expert"); ++t)
      replay.choices.push_back(replayed(std::to_string(t) + "."));
    for (Index t = 0; has("noise." + std::to_string(t)); ++t)
      replay.noise.push_back(Buffer<T>(values("noise." + std::to_string(t))));
    return replay;
  }
  std::uint64_t seed() const { return static_cast<std::uint64_t>(integer("seed")); }
  bool is_training() const { return has("mask.embedding"); }
  Training training() const { return {Rng(seed()), integer("step")}; }
  /// The header draws masks of dropout itself: those of a case must be the same.
  void require_mask(const std::string& name, Purpose purpose, Index block, const Shape& s,
                    double fraction) const {
    require<ShapeError>(shape(name) == s, "golden: ", name, " must have shape ", s, "; got ",
                        shape(name));
    const DropoutMask<T> mask{training().stream(purpose, block), fraction};
    const std::vector<std::int32_t> given = integers(name);
    for (std::size_t i = 0; i < given.size(); ++i)
      require<ValueError>((mask(static_cast<Index>(i)) != T(0)) == (given[i] == 1), "golden: ",
                          name, " must be what the header draws from the seed; got ", given[i],
                          " at ", i);
  }
  /// embedding: what dropout sees before the encoder, (B, T, D), or (B, T, W) before a projection.
  void require_masks(const EncoderConfig& c, const Shape& embedding) const {
    const Index B = embedding[0], tokens = embedding[1], D = c.width;
    require_mask("mask.embedding", Purpose::embedding_dropout, 0, embedding, c.dropout);
    for (Index i = 0; i < c.blocks; ++i) {
      const std::string name = "mask." + std::to_string(i) + ".";
      const auto of_choices = [&](Index width) {
        return c.is_moe(i) ? Shape{B * tokens, c.top_k, width} : Shape{B, tokens, width};
      };
      require_mask(name + "attention", Purpose::attention_dropout, i, {B, tokens, D}, c.dropout);
      require_mask(name + "hidden", Purpose::hidden_dropout, i,
                   of_choices(c.is_moe(i) ? c.expert_hidden : c.dense_hidden), c.dropout);
      require_mask(name + "output", Purpose::output_dropout, i, of_choices(D), c.dropout);
    }
  }

  /// forward(record) without a record, after its blocks, each recorded in a pass of its own, and
  /// its routings are among the results, in the order in which they are computed.
  template <class Forward>
  auto traced(const EncoderConfig& c, Forward forward) {
    std::size_t num_routings = 0;
    for (Index i = 0; i < c.blocks; ++i) {
      const NoGrad no_graph;
      BlockRecord<T> record;
      record.block = i;
      const auto output = forward(&record);
      if (i == 0 && !has("x")) out("embedding", record.attention.input);
      const std::string name = "block." + std::to_string(i) + ".";
      out_attention(name, c, record);
      if (c.routes(i)) {
        const std::string t = std::to_string(num_routings);
        out("routing." + t + ".", output.routings[num_routings]);
        out("balance_losses." + t, output.balance_losses[num_routings++]);
      }
      if (record.results) out(name + "results", record.results);
      out(name + "y", record.ffn.change);
      if (!c.is_pre_norm) out(name + "norm2", record.ffn.normed);
    }
    const auto output = forward(nullptr);
    out("balance_loss", output.balance_loss);
    return output;
  }
  /// A block up to what its mixture of experts, or feed-forward network, is given.
  void out_attention(const std::string& name, const EncoderConfig& c,
                     const BlockRecord<T>& record) {
    if (c.is_pre_norm) out(name + "norm1", record.attention.normed);
    out(name + "q", record.heads.q), out(name + "k", record.heads.k);
    out(name + "v", record.heads.v), out(name + "attention", record.heads.mixed);
    out(name + "o", record.attention.change), out(name + "middle", record.attention.sum);
    out(name + (c.is_pre_norm ? "norm2" : "norm1"),
        c.is_pre_norm ? record.ffn.normed : record.attention.normed);
  }
  template <class Model, class Input>
  auto traced_model(const Model& model, const Input& x, const Shape& embedding) {
    const EncoderConfig& c = model.config().encoder;
    if (is_training()) require_masks(c, embedding);
    return traced(c, [&](BlockRecord<T>* record) {
      return is_training() ? model.forward(x, training(), replay(), record)
                           : model.forward(x, replay(), record);
    });
  }
  void encoder_case() {
    ParameterSet<T> parameters(Rng(0));
    const auto c = config<EncoderConfig>(widenet::detail::visit_encoder);
    const Encoder<T> encoder(c, parameters);
    load(parameters.list());
    const auto output = traced(c, [&](BlockRecord<T>* record) {
      return encoder.forward(in("x"), nullptr, replay(), {}, {}, record);
    });
    out("tokens", output.tokens);
    finish(sum(multiply(output.tokens, constant("d_y"))) + output.balance_loss);
  }
  void vision_case() {
    const VisionModel<T> model(config<VisionConfig>(widenet::detail::visit_vision), Rng(0));
    load(model.parameters());
    const VisionConfig& c = model.config();
    const auto output = traced_model(model, constant("images"),
                                     {shape("images")[0], c.num_tokens(), c.encoder.width});
    out("logits", output.logits);
    const Tensor<T> main = cross_entropy(output.logits, integers("labels"));
    out("main_loss", main);
    finish(total_loss(main, output.balance_loss));
  }
  void language_case() {
    const LanguageModel<T> model(config<LanguageConfig>(widenet::detail::visit_language), Rng(0));
    load(model.parameters());
    TokenBatch batch;
    batch.B = shape("token")[0], batch.T = shape("token")[1];
    batch.token = integers("token"), batch.type = integers("type"), batch.mask = mask("mask");
    const auto output =
        traced_model(model, batch, {batch.B, batch.T, model.config().embedding});
    out("tokens", output.tokens);
    const Tensor<T> masked = model.masked_logits(output.tokens, integers("places"));
    const Tensor<T> order = model.order_logits(output.tokens);
    const Tensor<T> classes = model.class_logits(output.tokens);
    const Tensor<T> span = model.span_logits(output.tokens);
    out("masked_logits", masked), out("pooled", model.pooled(output.tokens));
    out("order_logits", order), out("class_logits", classes), out("span_logits", span);
    // The scores of all tokens to be the first of an answer: column 0 of span.
    const Tensor<T> first = linear(span, Tensor<T>(Shape{2, 1}, std::vector<T>{1, 0}))
                                .reshaped({batch.B, batch.T});
    const Tensor<T> main =
        cross_entropy(masked, integers("labels")) + cross_entropy(order, integers("order")) +
        cross_entropy(classes, integers("order")) + cross_entropy(first, integers("answer"));
    out("main_loss", main);
    finish(total_loss(main, output.balance_loss));
  }

  // Optimisers ----------------------------------------------------------------------------------

  /// use(optimiser), with the optimiser and its options that the settings name.
  template <class Use>
  void with_optimiser(const std::vector<Parameter<T>>& parameters, Use use) const {
    const std::string& rule = settings_.at("rule").string();
    if (rule == "sgd") {
      SGD<T> optimiser(parameters, number("rate"), number("momentum"), number("decay"));
      return use(optimiser);
    }
    require<ConfigError>(rule == "adamw" || rule == "lamb",
                         "golden: an optimiser must be known; got ", rule);
    const double beta1 = number("beta1"), beta2 = number("beta2"), eps = number("eps");
    if (rule == "adamw") {
      AdamW<T> optimiser(parameters, number("rate"), {beta1, beta2, eps, number("decay")});
      return use(optimiser);
    }
    LAMB<T> optimiser(parameters, number("rate"), {beta1, beta2, eps, number("decay")});
    use(optimiser);
  }
  void out_state(const Optimizer<T>& optimiser) {
    for (const Parameter<T>& p : optimiser.parameters()) out("last." + p.name, p.tensor);
    for (const Parameter<T>& s : optimiser.state()) out(s.name, s.tensor);
  }
  /// Ten steps with given gradients.
  void optimiser_case() {
    std::vector<Parameter<T>> parameters;
    for (const char* name : {"a", "b", "c"})
      parameters.push_back({name, constant(std::string("w.") + name).require_gradient()});
    with_optimiser(parameters, [&](auto& optimiser) {
      for (int t = 1; t <= 10; ++t) {
        optimiser.zero_grad();
        for (const Parameter<T>& p : parameters)
          p.tensor.add_gradient(Buffer<T>(values("g" + std::to_string(t) + "." + p.name)));
        optimiser.step();
        if (t > 1) continue;
        for (const Parameter<T>& p : parameters) out("first." + p.name, p.tensor);
      }
      out_state(optimiser);
    });
  }
  /// Ten steps of a model on one batch.
  void training_case() {
    const VisionModel<T> model(config<VisionConfig>(widenet::detail::visit_vision), Rng(0));
    load(model.parameters());
    with_optimiser(model.parameters(), [&](auto& optimiser) {
      std::vector<T> losses;
      for (int t = 1; t <= 10; ++t) {
        const auto output = model.forward(constant("images"));
        const Tensor<T> loss =
            total_loss(cross_entropy(output.logits, integers("labels")), output.balance_loss);
        optimiser.zero_grad();
        loss.backward();
        optimiser.step();
        losses.push_back(loss.item());
      }
      out("losses", Shape{10}, losses);
      out_state(optimiser);
    });
  }

  const Json& settings_;
  const SafeTensors& file_;
  const Conventions* conventions_;  // in place of those in the settings, if not null
  std::map<std::string, Tensor<T>> inputs_;
  mutable std::set<std::string> asked_for_;
};

/// Every intermediate of a case, computed in T, under other conventions than its own if given.
///
///   Errors    ConfigError or IoError if the case does not make sense
template <class T>
GoldenResults<T> run_golden(const GoldenCase& c, const SafeTensors& file,
                            const Conventions* conventions = nullptr) {
  return GoldenRun<T>(c.op, c.settings, file, conventions).results;
}

/// The encoder of a case of golden data, under other conventions than its own if given.
inline EncoderConfig encoder_of(const GoldenCase& c, const Conventions* conventions = nullptr) {
  EncoderConfig config;
  GivenFields reader{c.settings};
  widenet::detail::visit_encoder(config, reader);
  if (conventions) config.conventions = *conventions;
  return config;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_GOLDEN_HPP
