// Tests for examples/support/trace.hpp: a trace has the bits of the pass that it follows.
#include "check.hpp"
#include "support/golden.hpp"
#include "support/trace.hpp"

#include <algorithm>
#include <map>
#include <set>

using namespace widenet;
using support::Trace;
using support::trace;

namespace {

// AN ENCODER AS A MODEL ---------------------------------------------------------------------------

template <class T>
struct Input {
  Tensor<T> x;  // (B, T, D)
  Buffer<std::uint8_t> key_mask;
  RoutedTokens routed;
  Buffer<T> noise;  // of the only routing, or empty
};

template <class T>
struct Model {
  struct Config {
    EncoderConfig encoder;
  } settings;
  ParameterSet<T> set;
  Encoder<T> encoder;

  explicit Model(const EncoderConfig& c) : settings{c}, set(Rng(1)), encoder(c, set) {
    Index stream = 100;  // initial LayerNorms are all alike, and biases zero: tell them apart
    for (const Parameter<T>& p : set.list()) {
      std::vector<T> values = p.tensor.to_vector();
      const std::vector<T> shift = check::normal<T>(p.tensor.shape(), stream++).to_vector();
      for (std::size_t i = 0; i < values.size(); ++i) values[i] += T(0.3) * shift[i];
      p.tensor.value().assign(values);
    }
  }
  const Config& config() const { return settings; }
  const std::vector<Parameter<T>>& parameters() const { return set.list(); }
  EncoderOutput<T> forward(const Input<T>& in, const Training& training, const Replay<T>& = {},
                           BlockRecord<T>* record = nullptr) const {
    return encoder.forward(in.x.detached(), &training, replay(in), in.key_mask, in.routed, record);
  }
  EncoderOutput<T> forward(const Input<T>& in, const Replay<T>& = {},
                           BlockRecord<T>* record = nullptr) const {
    return encoder.forward(in.x.detached(), nullptr, replay(in), in.key_mask, in.routed, record);
  }
  static Replay<T> replay(const Input<T>& in) {
    Replay<T> replay;
    if (in.noise.size() > 0) replay.noise.push_back(in.noise);
    return replay;
  }
};

EncoderConfig small() {
  EncoderConfig c;
  c.width = 12, c.heads = 3, c.blocks = 3, c.experts = 3;
  c.expert_hidden = 7, c.dense_hidden = 5;
  c.capacity_factor = {3, 4};  // 5 slots for 10 tokens
  return c;
}

// THE SAME BY HAND --------------------------------------------------------------------------------

// One block, every tensor of it kept.
template <class T>
struct Kept {
  Tensor<T> x, normed1, q, k, v, mixed, attention, middle, normed2, moe, y;
  Tensor<T> norm1_input, norm2_input;
  Tensor<T> hidden, activated, results;     // of a dense block, or results (E, C, D)
  std::vector<Tensor<T>> h, g;              // of every expert, (C, F)
  Routing<T> routing;
};

// The encoder in the operations of chapters 8 and 10, but the experts: one linear after another in
// place of `experts`, in tensors of their own. `at` gives a parameter by block and name.
template <class T>
struct ByHand {
  EncoderConfig c;
  std::function<Tensor<T>(Index, const std::string&)> at;
  const Training* training = nullptr;
  std::vector<Kept<T>> blocks = {};
  std::vector<Routing<T>> routings = {};
  Tensor<T> tokens = {}, balance_loss = {};

  Tensor<T> keep(const Tensor<T>& x) const { return x.require_gradient(); }
  Tensor<T> project(Index i, const std::string& name, const Tensor<T>& x) const {
    return linear(x, at(i, name + ".weight"), at(i, name + ".bias"));
  }
  Tensor<T> drop(Purpose purpose, Index i, const Tensor<T>& x) const {
    return dropout_in(training, purpose, i, x, c.dropout);
  }
  Tensor<T> norm(Index i, const std::string& name, const Tensor<T>& x) const {
    return layer_norm(x, at(i, name + ".weight"), at(i, name + ".bias"), c.layer_norm_eps);
  }

  void run(Tensor<T> x, const Input<T>& in) {
    for (Index i = 0; i < c.blocks; ++i) {
      Kept<T> b;
      b.x = keep(x);
      const Tensor<T> h = c.is_pre_norm ? b.normed1 = keep(norm(i, "norm1", x)) : x;
      b.v = keep(project(i, "attn.v", h));
      b.k = keep(project(i, "attn.k", h));
      b.q = keep(project(i, "attn.q", h));
      b.mixed = keep(attention(b.q, b.k, b.v, c.heads, in.key_mask));
      b.attention =
          keep(drop(Purpose::attention_dropout, i, project(i, "attn.o", b.mixed)));
      const Tensor<T> sum = keep(x + b.attention);
      b.norm1_input = c.is_pre_norm ? b.x : sum;
      b.middle = c.is_pre_norm ? sum : b.normed1 = keep(norm(i, "norm1", sum));
      const Tensor<T> f = c.is_pre_norm ? b.normed2 = keep(norm(i, "norm2", b.middle)) : b.middle;
      b.moe = keep(c.is_moe(i) ? mixture(i, b, f, in.routed) : dense(i, b, f));
      const Tensor<T> last = keep(b.middle + b.moe);
      b.norm2_input = c.is_pre_norm ? b.middle : last;
      x = b.y = c.is_pre_norm ? last : b.normed2 = keep(norm(i, "norm2", last));
      blocks.push_back(b);
    }
    tokens = c.is_pre_norm && c.has_final_norm ? norm(-1, "norm", x) : x;
    for (const Routing<T>& r : routings) {
      const Tensor<T> loss = widenet::balance_loss(r, c.conventions.balance);
      balance_loss = balance_loss ? balance_loss + loss : loss;
    }
    if (!balance_loss) balance_loss = Tensor<T>::zeros({});
  }

  Tensor<T> dense(Index i, Kept<T>& b, const Tensor<T>& x) const {
    b.hidden = keep(project(i, "ffn.fc1", x));
    b.activated = drop(Purpose::hidden_dropout, i, gelu(b.hidden, c.gelu));
    return drop(Purpose::output_dropout, i, project(i, "ffn.fc2", b.activated));
  }

  Tensor<T> mixture(Index i, Kept<T>& b, const Tensor<T>& x, const RoutedTokens& routed) {
    Tensor<T> all = x.reshaped({x.shape().num_rows(), c.width});
    if (routed.row.size() > 0) all = take_rows(all, routed.token, routed.row);
    if (c.routes(i)) {
      Buffer<T> noise;
      if (training)
        noise = router_noise<T>(c.conventions.noise, all.shape()[0], c.experts,
                                training->stream(Purpose::router_noise, i));
      const Tensor<T> logits = keep(router_logits(all, at(i, "moe.router.weight")));
      routings.push_back(route(logits, {c.top_k, c.capacity_factor, c.conventions}, noise));
      keep(routings.back().probabilities), keep(routings.back().gate);
    }
    const Routing<T>& r = b.routing = routings.back();
    Tensor<T> results;  // (1, E * C, D), expert after expert
    for (Index e = 0; e < r.E; ++e) {
      const Tensor<T> y = expert(i, b, all, e).reshaped({1, r.C, c.width});
      results = results ? concat_tokens(results, y) : y;
    }
    b.results = keep(results.reshaped({r.E, r.C, c.width}));
    const Tensor<T> y = combine(b.results, r.gate, r);
    return (routed.row.size() > 0 ? take_rows(y, routed.row, routed.token) : y)
        .reshaped(x.shape());
  }

  // What stands in the slots of expert e; empty slots hold 0, and their results go nowhere.
  Tensor<T> expert(Index i, Kept<T>& b, const Tensor<T>& x, Index e) const {
    const Routing<T>& r = b.routing;
    std::vector<std::int32_t> index, inverse(static_cast<std::size_t>(r.N), -1), choice;
    const std::vector<std::int32_t> choices = r.choice_of_slot.to_vector();
    for (Index s = 0; s < r.C; ++s) {
      choice.push_back(choices[static_cast<std::size_t>(e * r.C + s)]);
      index.push_back(choice.back() < 0 ? -1 : choice.back() / static_cast<std::int32_t>(r.K));
      if (index.back() >= 0)
        inverse[static_cast<std::size_t>(index.back())] = static_cast<std::int32_t>(s);
    }
    const Tensor<T> slots =
        take_rows(x, Buffer<std::int32_t>(index), Buffer<std::int32_t>(inverse));
    const auto slice = [&](const char* name) {
      const Tensor<T> stack = at(i, std::string("moe.experts.{}.") + name);
      const std::vector<T> values = stack.to_vector();
      const Index size = stack.size() / r.E;
      const Shape shape = stack.shape().rank() == 3
                              ? Shape{stack.shape()[1], stack.shape()[2]} : Shape{size};
      return Tensor<T>(shape, std::vector<T>(values.begin() + e * size,
                                             values.begin() + (e + 1) * size));
    };
    const auto dropped = [&](Purpose purpose, const Tensor<T>& y) {
      if (!training || c.dropout == 0) return y;
      const DropoutMask<T> mask{training->stream(purpose, i), c.dropout};
      const Index width = y.shape().last();
      std::vector<T> factor;  // the mask counts choices: (n K + k) F + f
      for (const std::int32_t nk : choice)
        for (Index f = 0; f < width; ++f) factor.push_back(nk < 0 ? T(0) : mask(nk * width + f));
      return multiply(y, Tensor<T>(y.shape(), factor));
    };
    b.h.push_back(keep(linear(slots, slice("fc1.weight"), slice("fc1.bias"))));
    b.g.push_back(dropped(Purpose::hidden_dropout, gelu(b.h.back(), c.gelu)));
    return dropped(Purpose::output_dropout,
                   linear(b.g.back(), slice("fc2.weight"), slice("fc2.bias")));
  }
};

template <class T>
std::function<Tensor<T>(Index, const std::string&)> finder(
    const std::vector<Parameter<T>>& parameters) {
  std::map<std::string, Tensor<T>> map;
  for (const Parameter<T>& p : parameters) map[p.name] = p.tensor;
  return [map](Index block, const std::string& name) {
    for (const std::string& full :
         {"blocks." + std::to_string(block) + "." + name, "shared." + name, name}) {
      const auto found = map.find(full);
      if (found != map.end()) return found->second;
    }
    FAIL("no parameter " << name);
    return Tensor<T>();
  };
}

// A loss in which every value counts differently.
template <class T>
Tensor<T> weighed(const Tensor<T>& x) {
  return sum(multiply(x, check::normal<T>(x.shape(), 99)));
}

// COMPARISON --------------------------------------------------------------------------------------

template <class T>
std::vector<T> row(const Buffer<T>& x, Index n, Index width) {
  const std::vector<T> all = x.to_vector();
  return {all.begin() + n * width, all.begin() + (n + 1) * width};
}

// The value, and the gradient of a walk backward, of row n. (By hand each expert has a product of
// its own, so cuBLAS may add in another order.)
template <class T>
void same(const std::string& name, const support::Traced<T>& traced, const Tensor<T>& x, Index n,
          Index width = 0) {
  if (width == 0) width = x.shape().last();
  INFO(name);
  CHECK(check::same_products(traced.value, row(x.value(), n, width)));
  CHECK(check::same_products(traced.gradient, row(x.gradient(), n, width)));
}

// Whole traces against blocks by hand after their backward.
template <class T>
void same_way(const Trace<T>& t, const Kept<T>& b) {
  const Index n = t.token;
  same("input", t.input, b.x, n);
  same("norm1 input", t.norm1.input, b.norm1_input, n);
  same("norm1 output", t.norm1.output, b.normed1, n);
  same("q", t.q, b.q, n), same("k", t.k, b.k, n), same("v", t.v, b.v, n);
  same("mixed", t.mixed, b.mixed, n);
  same("attention output", t.attention_output, b.attention, n);
  same("middle", t.middle, b.middle, n);
  same("norm2 input", t.norm2.input, b.norm2_input, n);
  same("norm2 output", t.norm2.output, b.normed2, n);
  same("moe output", t.moe_output, b.moe, n);
  same("output", t.output, b.y, n);
  CHECK((t.routed_by >= 0) == (b.routing.N > 0));
  if (t.routed_by < 0) {
    same("hidden", t.hidden, b.hidden, n);
    CHECK(check::same_products(t.activated,
                               row(b.activated.value(), n, b.activated.shape().last())));
    CHECK(t.choices.empty());
    return;
  }
  const Routing<T>& r = b.routing;
  const std::vector<std::int32_t> tokens = r.token.to_vector();
  Index m = n;
  if (!tokens.empty()) m = std::find(tokens.begin(), tokens.end(), n) - tokens.begin();
  CHECK(t.is_routed == (m < r.N));
  if (!t.is_routed) return;
  same("logits", t.logits, r.logits, m);
  same("probabilities", t.probabilities, r.probabilities, m);
  CHECK(check::same_bits(t.noise, r.noise.size() > 0 ? row(r.noise, m, r.E) : std::vector<T>()));
  CHECK(check::same_bits(
      softmax(Tensor<T>({1, r.E}, t.noisy_logits)).to_vector(), t.probabilities.value));
  REQUIRE(t.choices.size() == static_cast<std::size_t>(r.K));
  for (Index k = 0; k < r.K; ++k) {
    const auto& choice = t.choices[static_cast<std::size_t>(k)];
    INFO("choice ", k);
    CHECK(choice.expert == row(r.expert, m, r.K)[static_cast<std::size_t>(k)]);
    CHECK(choice.slot == row(r.slot, m, r.K)[static_cast<std::size_t>(k)]);
    CHECK(choice.is_kept() == (choice.place <= t.capacity));
    CHECK(t.ranked[static_cast<std::size_t>(k)] == choice.expert);
    same("gate", choice.gate, r.gate, m * r.K + k, 1);
    if (!choice.is_kept()) {
      CHECK(choice.hidden.value.empty());
      CHECK(choice.output.gradient.empty());
      CHECK(choice.weighted.empty());
      continue;
    }
    const std::size_t e = static_cast<std::size_t>(choice.expert);
    same("expert hidden", choice.hidden, b.h[e], choice.slot);
    CHECK(check::same_products(choice.activated,
                               row(b.g[e].value(), choice.slot, b.g[e].shape().last())));
    same("expert output", choice.output, b.results, choice.expert * r.C + choice.slot);
  }
}

// What is left to check of a trace that has no tensor of its own: sums of what is there.
template <class T>
void is_consistent(const Trace<T>& t, const Kept<T>& b, const EncoderConfig& c,
                   const Buffer<std::uint8_t>& key_mask) {
  const Index D = c.width, Dh = D / c.heads, T_ = b.x.shape()[1];
  // mean and rstd: the normalised input is the output, before and after gamma and beta
  for (int which = 0; which < 2; ++which) {  // nvcc reads no list of them here
    const auto& norm = which == 0 ? t.norm1 : t.norm2;
    T mean = 0;
    for (const T value : norm.input.value) mean += value / T(D);
    CHECK(std::fabs(double(mean - norm.mean)) < (sizeof(T) == 4 ? 1e-6 : 1e-14));
    T variance = 0;
    for (const T value : norm.input.value) variance += (value - mean) * (value - mean) / T(D);
    CHECK(double(norm.rstd) * std::sqrt(double(variance) + c.layer_norm_eps) ==
          doctest::Approx(1).epsilon(1e-5));
  }
  // attention: a row of q k^T through softmax is the row, and with v it is what was mixed
  REQUIRE(t.attention.size() == static_cast<std::size_t>(c.heads));
  const Index first = t.sequence * T_;
  const std::vector<std::uint8_t> mask = key_mask.to_vector();
  for (Index h = 0; h < c.heads; ++h) {
    const std::vector<T>& p = t.attention[static_cast<std::size_t>(h)];
    REQUIRE(p.size() == static_cast<std::size_t>(T_));
    const Buffer<T> q(t.q.value), probabilities(p), scores(T_), mixed(Dh);
    gemm(false, true, 1, T_, Dh, q.data() + h * Dh, D, b.k.data() + first * D + h * Dh, D, T(0),
         scores.data(), T_);
    std::vector<T> score = scores.to_vector();
    for (std::size_t j = 0; j < score.size(); ++j) {
      score[j] *= T(1 / std::sqrt(double(Dh)));
      if (!mask.empty() && !mask[static_cast<std::size_t>(first) + j])
        score[j] = -std::numeric_limits<T>::infinity();
    }
    CHECK(check::same_products(softmax(Tensor<T>({1, T_}, score)).to_vector(), p));
    gemm(false, false, 1, Dh, T_, probabilities.data(), T_, b.v.data() + first * D + h * Dh, D,
         T(0), mixed.data(), Dh);
    CHECK(check::same_products(mixed.to_vector(), {t.mixed.value.begin() + h * Dh,
                                                   t.mixed.value.begin() + (h + 1) * Dh}));
  }
  // the products gate * output add up to the output of the MoE
  std::vector<T> total(static_cast<std::size_t>(D), T(0));
  for (const auto& choice : t.choices)
    for (std::size_t d = 0; d < choice.weighted.size(); ++d) total[d] += choice.weighted[d];
  if (t.routed_by >= 0 && c.conventions.dropped == DroppedValue::zero)
    CHECK(t.moe_output.value == total);  // +0 and -0 are equal
  // experts are ranked: each once, those not chosen by their probability
  std::set<Index> ranked(t.ranked.begin(), t.ranked.end());
  CHECK(ranked.size() == t.probabilities.value.size());
  for (std::size_t e = 1; e < t.ranked.size(); ++e)
    CHECK(t.probabilities.value[static_cast<std::size_t>(t.ranked[e - 1])] >=
          t.probabilities.value[static_cast<std::size_t>(t.ranked[e])]);
}

// Follows every token through every block of a model, and compares with three walks by hand: of the
// whole loss, of the main loss alone and of the balance loss alone.
template <class T, class M, class In>
void follows(const M& model, const In& input, const Training* training,
             const std::function<ByHand<T>()>& by_hand, const Buffer<std::uint8_t>& key_mask = {}) {
  const double lambda = 0.25;  // large enough to show
  const EncoderConfig& c = model.config().encoder;
  const auto walk = [&](double main, double balance) {
    ByHand<T> pass = by_hand();
    const support::detail::SavedGradients<T> saved(model.parameters());
    Tensor<T> loss = weighed(pass.tokens);
    if (main == 0) loss = balance * pass.balance_loss;
    else if (balance != 0) loss = total_loss(loss, pass.balance_loss, balance);
    loss.backward();
    return pass;
  };
  const ByHand<T> both = walk(1, lambda), main = walk(1, 0);
  const bool routes = !both.routings.empty();
  const ByHand<T> balance = routes ? walk(0, lambda) : main;
  const auto loss_of = [](const auto& out) { return weighed(out.tokens); };
  Index num_dropped = 0, num_kept = 0;
  for (Index block = 0; block < c.blocks; ++block) {
    const Kept<T>& b = both.blocks[static_cast<std::size_t>(block)];
    for (Index token = 0; token < b.x.shape().num_rows(); ++token) {
      INFO("block ", block, ", token ", token);
      const Trace<T> t = trace(model, input, token, block, training, loss_of, lambda);
      CHECK(t.block == block);
      CHECK(t.sequence * b.x.shape()[1] + t.position == token);
      CHECK(check::same_products<T>({t.main_loss}, {weighed(both.tokens).item()}));
      CHECK(check::same_products<T>({t.balance_loss}, {both.balance_loss.item()}));
      same_way(t, b);
      is_consistent(t, b, c, key_mask);
      for (const auto& choice : t.choices) (choice.is_kept() ? num_kept : num_dropped) += 1;
      if (!t.is_routed) continue;
      const std::vector<std::int32_t> tokens = b.routing.token.to_vector();
      const Index m = tokens.empty() ? token
                                     : std::find(tokens.begin(), tokens.end(), token) -
                                           tokens.begin();
      const auto logits = [&](const ByHand<T>& pass) {
        return row(pass.blocks[static_cast<std::size_t>(block)].routing.logits.gradient(), m,
                   b.routing.E);
      };
      CHECK(check::same_products(t.main_gradient, logits(main)));
      CHECK(check::same_products(t.balance_gradient, logits(balance)));
      double largest = 0;
      for (const T value : b.routing.logits.gradient().to_vector())
        largest = std::fmax(largest, std::fabs(double(value)));
      for (std::size_t e = 0; e < t.main_gradient.size(); ++e)
        CHECK(std::fabs(double(t.main_gradient[e] + t.balance_gradient[e] -
                               t.logits.gradient[e])) < (sizeof(T) == 4 ? 1e-5 : 1e-14) * largest);
    }
  }
  if (routes) {  // otherwise half of this would be tested by luck
    CHECK(num_kept > 0);
    CHECK(num_dropped > 0);
  }
}

template <class T>
void follows_encoder(const EncoderConfig& c, const Training* training = nullptr,
                     Input<T> input = {}) {
  const Model<T> model(c);
  if (!input.x) input.x = check::normal<T>({2, 5, c.width}, 0);
  follows<T>(model, input, training, [&] {
    ByHand<T> pass{c, finder(model.parameters()), training};
    pass.run(input.x.detached(), input);
    for (Kept<T>& b : pass.blocks) b.routing.token = input.routed.token;
    return pass;
  }, input.key_mask);
}

}  // namespace

TEST_CASE_TEMPLATE("trace: the bits of every block, forward and backward", T, float, double) {
  const check::OneThread one_thread;
  const Training step{Rng(5), 3};
  EncoderConfig c = small();
  SUBCASE("WideNet in training") { follows_encoder<T>(c, &step); }
  SUBCASE("in evaluation") { follows_encoder<T>(c); }
  SUBCASE("blocks that are run again in backward") {
    c.recompute_blocks = true;
    c.blocks = 2;
    follows_encoder<T>(c, &step);
  }
  SUBCASE("post-norm, with dropout") {
    c.is_pre_norm = false, c.dropout = 0.2, c.blocks = 2;
    follows_encoder<T>(c, &step);
  }
  SUBCASE("dropout in dense blocks and experts, erf") {
    c.moe_blocks = 1, c.dropout = 0.3, c.blocks = 2, c.gelu = Gelu::erf;
    follows_encoder<T>(c, &step);
  }
  SUBCASE("no mixture") {
    c.experts = 0, c.blocks = 2;
    follows_encoder<T>(c, &step);
  }
  SUBCASE("a routing that two blocks share, nothing else shared") {
    c.routing_groups = 2;
    c.share_attention = c.share_experts = c.share_router = false;
    follows_encoder<T>(c, &step);
  }
  SUBCASE("groups, run again in backward") {
    c.routing_groups = 1, c.recompute_blocks = true, c.blocks = 2;
    follows_encoder<T>(c, &step);
  }
  SUBCASE("padding that is no key and is not routed") {
    const std::vector<std::uint8_t> mask = {1, 1, 1, 0, 0, 1, 1, 1, 1, 0};
    follows_encoder<T>(c, &step, {{}, Buffer<std::uint8_t>(mask), RoutedTokens(mask), {}});
  }
}

TEST_CASE("trace: which block routed") {
  EncoderConfig c = small();
  c.blocks = 5, c.moe_blocks = 4, c.routing_groups = 2;
  const Model<float> model(c);
  const Input<float> input{check::normal<float>({1, 5, 12}, 0), {}, {}, {}};
  const Index routed_by[] = {-1, 1, 1, 3, 3};
  for (Index block = 0; block < 5; ++block)
    CHECK(trace(model, input, 0, block).routed_by == routed_by[block]);
}

// The models build x before the encoder; the by-hand walk starts at theirs.
TEST_CASE("trace: a vision model") {
  const check::OneThread one_thread;
  VisionConfig config = VisionConfig::toy();
  config.patch = 4, config.encoder = small();
  const VisionModel<float> model(config, Rng(3));
  const Tensor<float> images = check::normal<float>({2, 1, 8, 8}, 1);
  const std::vector<std::int32_t> labels = {3, 8};
  const Training step{Rng(5), 3};
  const auto at = finder(model.parameters());
  ByHand<float> pass{config.encoder, at, &step};
  pass.run(add_to_sequences(prepend_token({}, linear(extract_patches(images, 4),
                                                     at(-1, "patch_embed.proj.weight"),
                                                     at(-1, "patch_embed.proj.bias"))),
                            at(-1, "pos_embed")), {});
  const Tensor<float> logits =
      linear(mean_tokens(pass.tokens), at(-1, "head.weight"), at(-1, "head.bias"));
  total_loss(cross_entropy(logits, labels), pass.balance_loss).backward();
  for (Index block = 0; block < 3; ++block)
    for (const Index token : {0, 4, 7, 9}) {
      INFO("block ", block, ", token ", token);
      const auto t = trace(model, images, token, block, &step, [&](const auto& out) {
        return cross_entropy(out.logits, labels);
      });
      CHECK(t.main_loss == cross_entropy(logits, labels).item());
      same_way(t, pass.blocks[static_cast<std::size_t>(block)]);
      is_consistent(t, pass.blocks[static_cast<std::size_t>(block)], config.encoder, {});
    }
}

TEST_CASE("trace: a language model with padding, in evaluation") {
  const check::OneThread one_thread;
  LanguageConfig config = LanguageConfig::toy();
  config.encoder = small(), config.encoder.routes_padding = false;
  config.encoder.is_pre_norm = false;
  const LanguageModel<double> model(config, Rng(3));
  TokenBatch batch;
  batch.B = 2, batch.T = 5;
  batch.token = {7, 1, 2, 9, 0, 4, 4, 5, 0, 0}, batch.mask = {1, 1, 1, 1, 0, 1, 1, 1, 0, 0};
  const auto loss_of = [&](const auto& out) {
    return cross_entropy(model.class_logits(out.tokens), {0, 1});
  };
  const auto at = finder(model.parameters());
  const Input<double> input{{}, Buffer<std::uint8_t>(batch.mask), RoutedTokens(batch.mask), {}};
  ByHand<double> pass{config.encoder, at};
  const auto embedded = [&](const std::vector<std::int32_t>& id, const char* table) {
    return embedding(id, at(-1, std::string("embeddings.") + table + ".weight"));
  };
  const Tensor<double> words = (embedded(batch.token, "word") +
                                embedded(std::vector<std::int32_t>(10), "type"))
                                   .reshaped({2, 5, config.embedding});
  const Tensor<double> x = layer_norm(
      add_to_sequences(words, embedded({0, 1, 2, 3, 4}, "position")),
      at(-1, "embeddings.norm.weight"), at(-1, "embeddings.norm.bias"), 1e-6);
  pass.run(linear(x, at(-1, "embeddings.projection.weight"),
                  at(-1, "embeddings.projection.bias")), input);
  for (Kept<double>& b : pass.blocks) b.routing.token = input.routed.token;
  total_loss(loss_of(pass), pass.balance_loss).backward();
  for (Index token = 0; token < 10; ++token) {
    INFO("token ", token);
    const auto t = trace(model, batch, token, 1, nullptr, loss_of);
    CHECK(t.is_routed == (batch.mask[static_cast<std::size_t>(token)] == 1));
    CHECK(t.noise.empty());
    same_way(t, pass.blocks[1]);
    is_consistent(t, pass.blocks[1], config.encoder, input.key_mask);
  }
}

TEST_CASE("trace: golden data of another implementation") {
  const SafeTensors file = read_safetensors("data/golden/block.safetensors");
  Json settings;
  for (const auto& c : support::read_manifest("data/golden"))
    if (c.name == "block") settings = c.settings;
  EncoderConfig c;
  const support::GivenFields fields{settings};
  detail::visit_encoder(c, fields);
  const Model<double> model(c);
  for (const auto& p : model.parameters())
    p.tensor.value().assign(file.values<double>("in." + p.name));
  const Shape shape = file.at("in.x").shape;
  const Input<double> input{{shape, file.values<double>("in.x")}, {}, {},
                            Buffer<double>(file.values<double>("in.noise"))};
  const Tensor<double> d_y(shape, file.values<double>("in.d_y"));
  const auto out_row = [&](const char* name, Index n, Index width) {
    const std::vector<double> all = file.values<double>(std::string("out.") + name);
    return std::vector<double>(all.begin() + n * width, all.begin() + (n + 1) * width);
  };
  const Index D = c.width, K = c.top_k, N = shape.num_rows();
  const Index C = file.at("out.results").shape[1];
  Index num_dropped = 0;
  for (Index n = 0; n < N; ++n) {
    INFO("token ", n);
    const auto t = trace(model, input, n, 0, nullptr,
                         [&](const auto& out) { return sum(multiply(out.tokens, d_y)); }, 1);
    check::close(t.norm1.output.value, out_row("norm1", n, D));
    check::close(t.q.value, out_row("q", n, D));
    check::close(t.k.value, out_row("k", n, D));
    check::close(t.v.value, out_row("v", n, D));
    check::close(t.mixed.value, out_row("attention", n, D));
    check::close(t.attention_output.value, out_row("o", n, D));
    check::close(t.middle.value, out_row("middle", n, D));
    check::close(t.norm2.output.value, out_row("norm2", n, D));
    check::close(t.logits.value, out_row("logits", n, c.experts));
    check::close(t.noise, row(input.noise, n, c.experts));
    check::close(t.probabilities.value, out_row("probabilities", n, c.experts));
    check::close(t.moe_output.value, out_row("y", n, D));
    check::close(t.output.value, out_row("tokens", n, D));
    check::close(t.input.gradient, out_row("grad.x", n, D));
    for (std::size_t e = 1; e < 4; ++e)
      CHECK(t.probabilities.value[static_cast<std::size_t>(t.ranked[e - 1])] >=
            t.probabilities.value[static_cast<std::size_t>(t.ranked[e])]);
    for (Index k = 0; k < K; ++k) {
      const auto& choice = t.choices[static_cast<std::size_t>(k)];
      const std::size_t at = static_cast<std::size_t>(n * K + k);
      CHECK(choice.expert == file.values<std::int32_t>("out.expert")[at]);
      CHECK(choice.slot == file.values<std::int32_t>("out.slot")[at]);
      check::close(choice.gate.value, {file.values<double>("out.gate")[at]});
      if (choice.is_kept())
        check::close(choice.output.value, out_row("results", choice.expert * C + choice.slot, D));
      else
        ++num_dropped;
    }
  }
  CHECK(num_dropped > 0);
}

TEST_CASE("trace: places in the queue under all conventions") {
  const check::OneThread one_thread;
  const Training step{Rng(5), 3};
  std::map<std::string, Conventions> all = Conventions::presets();
  all["batch_priority"].priority = Priority::batch_priority;
  all["highest_gate"].priority = Priority::highest_gate;
  all["highest_gate"].gate = GateRule::renormalized;
  all["random"].priority = Priority::random;
  all["groups"].capacity_sequences = 1;
  all["drawn"].second_choice_threshold = 0.5;
  all["drawn"].gate = GateRule::renormalized_after_drop;
  all["gated_input"].dropped = DroppedValue::gated_input;
  Index num_refused = 0;
  for (const auto& named : all) {
    INFO(named.first);
    EncoderConfig c = small();
    c.blocks = 1, c.conventions = named.second;
    c.conventions.capacity_minimum = 1, c.conventions.capacity_multiple = 1;
    if (c.conventions.capacity_sequences == 8) c.conventions.capacity_sequences = 2;
    if (c.conventions.capacity == CapacityRule::absolute) c.conventions.capacity_slots = 2;
    const Model<float> model(c);
    const Input<float> input{check::normal<float>({2, 8, 12}, 0), {}, {}, {}};
    const Index groups = c.conventions.capacity_sequences == 1 ? 2 : 1;
    std::map<std::pair<Index, Index>, std::vector<Index>> queue;  // by group and expert
    bool is_served_in_order = true;
    for (Index n = 0; n < 16; ++n) {
      const auto t = trace(model, input, n, 0, &step, [](const auto& out) {
        return weighed(out.tokens);
      });
      for (const auto& choice : t.choices) {
        CHECK(choice.is_kept() == (1 <= choice.place && choice.place <= t.capacity));
        if (choice.place == 0) ++num_refused;
        if (choice.place == 0) continue;
        std::vector<Index>& places = queue[{n / (16 / groups), choice.expert}];
        if (choice.is_kept() && groups == 1) CHECK(choice.slot == choice.place - 1);
        if (!places.empty() && places.back() > choice.place) is_served_in_order = false;
        places.push_back(choice.place);
      }
      std::vector<float> total(12, 0.0f);
      for (const auto& choice : t.choices)
        for (std::size_t d = 0; d < choice.weighted.size(); ++d) total[d] += choice.weighted[d];
      if (c.conventions.dropped == DroppedValue::zero) CHECK(t.moe_output.value == total);
      double squared = 0;
      for (const float d : t.logits.gradient) squared += double(d) * double(d);
      CHECK(squared > 0);
    }
    for (auto& entry : queue) {  // 1, 2, ..., without a gap
      std::sort(entry.second.begin(), entry.second.end());
      for (std::size_t i = 0; i < entry.second.size(); ++i)
        CHECK(entry.second[i] == static_cast<Index>(i) + 1);
    }
    if (c.conventions.priority == Priority::token_major) CHECK(is_served_in_order);
    else CHECK_FALSE(is_served_in_order);
  }
  CHECK(num_refused > 0);  // mesh_top2 draws
}

TEST_CASE("trace: leaves no trace") {
  const check::OneThread one_thread;
  const VisionModel<float> model(VisionConfig::toy(), Rng(3));
  const Tensor<float> images = check::normal<float>({2, 1, 8, 8}, 1);
  const Training step{Rng(5), 3};
  const auto loss_of = [](const auto& out) { return cross_entropy(out.logits, {3, 8}); };
  // one parameter without a gradient, all others with one
  const auto& parameters = model.parameters();
  loss_of(model.forward(images, step)).backward();
  parameters[2].tensor.zero_gradient();
  const auto gradients = [&] {
    std::vector<float> all;
    for (const auto& p : parameters) {
      all.push_back(p.tensor.has_gradient() ? 1.0f : 0.0f);
      if (p.tensor.has_gradient()) check::append(all, p.tensor.gradient().to_vector());
    }
    return all;
  };
  const std::vector<float> before = gradients();
  const auto t = trace(model, images, 20, 1, &step, loss_of);
  CHECK(check::same_bits(gradients(), before));
  CHECK_THROWS_AS(trace(model, images, 20, 1, &step,
                        [](const auto&) -> Tensor<float> { fail<ValueError>("no loss"); }),
                  ValueError);
  CHECK(check::same_bits(gradients(), before));

  // a pass with a record has the bits of one without, and so has its backward
  BlockRecord<float> record;
  record.block = 1;
  std::vector<float> walked[2];
  for (const int is_recorded : {0, 1}) {
    for (const auto& p : parameters) p.tensor.zero_gradient();
    const auto out = model.forward(images, step, {}, is_recorded ? &record : nullptr);
    std::vector<float> hidden;
    if (is_recorded) hidden = record.hidden.before_gelu.to_vector();
    total_loss(loss_of(out), out.balance_loss).backward();
    if (is_recorded)  // backward works in the place of the other copy
      CHECK(check::same_bits(record.hidden.before_gelu.to_vector(), hidden));
    walked[is_recorded] = out.logits.to_vector();
    check::append(walked[is_recorded], gradients());
  }
  CHECK(check::same_bits(walked[0], walked[1]));

  // without a loss no graph, no gradient; the values are the same
  const auto only = trace(model, images, 20, 1, &step);
  CHECK(only.output.gradient.empty());
  CHECK(only.main_gradient.empty());
  CHECK(check::same_bits(only.output.value, t.output.value));
  CHECK(check::same_bits(only.choices[0].hidden.value, t.choices[0].hidden.value));
}

TEST_CASE("trace: the same for every number of threads") {
  const VisionModel<float> model(VisionConfig::toy(), Rng(3));
  const Tensor<float> images = check::normal<float>({2, 1, 8, 8}, 1);
  check::same_bits_for_all_threads([&] {
    const Training step{Rng(5), 3};
    const auto t = trace(model, images, 20, 1, &step, [](const auto& out) {
      return cross_entropy(out.logits, {3, 8});
    });
    std::vector<float> all = t.output.value;
    check::append(all, t.attention[1]);
    check::append(all, t.input.gradient);
    check::append(all, t.main_gradient);
    return all;
  });
}

TEST_CASE("trace: as JSON, to the bit") {
  const VisionModel<float> model(VisionConfig::toy(), Rng(3));
  const Tensor<float> images = check::normal<float>({2, 1, 8, 8}, 1);
  const Training step{Rng(5), 3};
  const auto t = trace(model, images, 20, 1, &step, [](const auto& out) {
    return cross_entropy(out.logits, {3, 8});
  });
  const Json json = Json::parse(support::to_json(t), "trace");
  const auto numbers = [](const Json& array) {
    std::vector<float> values;
    for (const Json& item : array.items()) values.push_back(static_cast<float>(item.number()));
    return values;
  };
  CHECK(json.at("token").integer() == 20);
  CHECK(json.at("sequence").integer() == 1);
  CHECK(json.at("is_pre_norm").boolean());
  CHECK(check::same_bits(numbers(json.at("input").at("value")), t.input.value));
  CHECK(check::same_bits(numbers(json.at("norm2").at("output").at("gradient")),
                         t.norm2.output.gradient));
  CHECK(static_cast<float>(json.at("norm1").at("rstd").number()) == t.norm1.rstd);
  CHECK(check::same_bits(numbers(json.at("attention").items()[2]), t.attention[2]));
  CHECK(check::same_bits(numbers(json.at("balance_gradient")), t.balance_gradient));
  const Json& choice = json.at("choices").items()[1];
  CHECK(choice.at("place").integer() == t.choices[1].place);
  CHECK(check::same_bits(numbers(choice.at("weighted")), t.choices[1].weighted));
  CHECK(check::same_bits(numbers(choice.at("gate").at("gradient")), t.choices[1].gate.gradient));
}

TEST_CASE("trace: errors") {
  const VisionModel<float> model(VisionConfig::toy(), Rng(3));
  const Tensor<float> images = check::normal<float>({2, 1, 8, 8}, 1);
  CHECK_THROWS_WITH_AS(trace(model, images, 34, 0),
                       "widenet: trace: the token must lie in [0, B T) = [0, 34); got 34",
                       ValueError);
  CHECK_THROWS_WITH_AS(trace(model, images, -1, 0),
                       "widenet: trace: the token must lie in [0, B T) = [0, 34); got -1",
                       ValueError);
  CHECK_THROWS_WITH_AS(trace(model, images, 0, 3),
                       "widenet: trace: the block must lie in [0, L) = [0, 3); got 3", ValueError);
}

TEST_CASE("record: the units of experts have gradients before and after GELU") {
  const VisionModel<float> model(VisionConfig::toy(), Rng(3));
  BlockRecord<float> record;
  record.block = 1;
  const auto out = model.forward(check::normal<float>({2, 1, 8, 8}, 1), Training{Rng(4), 0}, {},
                                 &record);
  cross_entropy(out.logits, {3, 7}).backward();
  Tensor<float> w2;
  for (const Parameter<float>& p : model.parameters())
    if (p.name == "shared.moe.experts.{}.fc2.weight") w2 = p.tensor;
  REQUIRE(w2);
  const auto dy = record.results.gradient().to_vector(), w = w2.to_vector();
  const auto dg = record.hidden.after_gelu.gradient().to_vector();
  const auto kept = record.routing.kept.to_vector();
  const Index E = w2.shape()[0], F = w2.shape()[1], D = w2.shape()[2], C = record.routing.C;
  double largest = 0, apart = 0;
  for (Index e = 0; e < E; ++e)  // dg = dy W2^T
    for (Index c = 0; c < kept[static_cast<std::size_t>(e)]; ++c)
      for (Index f = 0; f < F; ++f) {
        double sum = 0;
        for (Index d = 0; d < D; ++d)
          sum += double(dy[static_cast<std::size_t>((e * C + c) * D + d)]) *
                 double(w[static_cast<std::size_t>((e * F + f) * D + d)]);
        largest = std::max(largest, std::abs(sum));
        apart = std::max(apart, std::abs(sum - double(dg[static_cast<std::size_t>(
                                                      (e * C + c) * F + f)])));
      }
  CHECK(largest > 1e-6);
  CHECK(apart <= 1e-5 * largest);
}

TEST_CASE("record: made anew by every pass, of a block that exists") {
  VisionConfig config = VisionConfig::toy();
  config.encoder.moe_blocks = 1;
  const VisionModel<float> model(config, Rng(3));
  const Tensor<float> images = check::normal<float>({2, 1, 8, 8}, 1);
  BlockRecord<float> record;
  record.block = config.encoder.blocks - 1;
  model.forward(images, Replay<float>{}, &record);
  CHECK(record.results);
  CHECK(record.routing.K > 0);
  record.block = 0;  // dense
  model.forward(images, Replay<float>{}, &record);
  CHECK(!record.results);
  CHECK(record.routing.expert.size() == 0);
  CHECK(record.ffn.sum);
  for (const Index block : {Index(-1), config.encoder.blocks}) {
    record.block = block;
    CHECK_THROWS_WITH_AS(model.forward(images, Replay<float>{}, &record),
                         doctest::Contains("widenet: Encoder: the block to record must be in [0, "),
                         ValueError);
  }
}
