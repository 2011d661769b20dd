// Tests for chapter 11: blocks, sharing, individual LayerNorms, routing groups.
#include "check.hpp"

#include <map>

using namespace widenet;

namespace {

// An encoder with the list of its parameters.
template <class T>
struct Model {
  EncoderConfig config;
  ParameterSet<T> parameters;
  Encoder<T> encoder;

  explicit Model(const EncoderConfig& c, std::uint64_t seed = 1)
      : config(c), parameters(Rng(seed)), encoder(c, parameters) {}

  std::map<std::string, Tensor<T>> by_name() const {
    std::map<std::string, Tensor<T>> map;
    for (const Parameter<T>& p : parameters.list()) map[p.name] = p.tensor;
    return map;
  }
  // Initial LayerNorms are all alike, and initial biases zero: random values tell them apart.
  void randomise() const {
    Index stream = 100;
    for (const Parameter<T>& p : parameters.list()) {
      std::vector<T> values = p.tensor.to_vector();
      const std::vector<T> shift = check::normal<T>(p.tensor.shape(), stream++).to_vector();
      for (std::size_t i = 0; i < values.size(); ++i) values[i] += T(0.3) * shift[i];
      p.tensor.value().assign(values);
    }
  }
};

EncoderConfig small() {
  EncoderConfig c;
  c.width = 12;
  c.heads = 3;
  c.blocks = 3;
  c.experts = 3;
  c.expert_hidden = 7;
  c.dense_hidden = 5;
  return c;
}

// Nothing is dropped: every expert has a slot for every token.
EncoderConfig roomy() {
  EncoderConfig c = small();
  c.capacity_factor = {3, 2};
  return c;
}

// "blocks.2.attn.q.weight" -> "shared.attn.q.weight"
std::string shared_name(const std::string& name) {
  const std::size_t dot = name.find('.', 7);
  return name.compare(0, 7, "blocks.") == 0 ? "shared" + name.substr(dot) : name;
}

// The encoder written out with the operations of the chapters before, keeping every value. `at`
// gives a parameter by block and name.
template <class T>
EncoderOutput<T> by_hand(const EncoderConfig& c, Tensor<T> x, const Training* training,
                         const std::function<Tensor<T>(Index, const std::string&)>& at) {
  EncoderOutput<T> out;
  const Index first_moe = c.blocks - c.num_moe_blocks();
  const Index groups = c.routing_groups < 0 ? c.num_moe_blocks() : c.routing_groups;
  const auto linear_at = [&](Index i, const std::string& name, const Tensor<T>& h) {
    return linear(h, at(i, name + ".weight"), at(i, name + ".bias"));
  };
  const auto norm = [&](Index i, const std::string& name, const Tensor<T>& h) {
    const Tensor<T> gamma = at(i, name + ".weight");
    return c.norm == Norm::rms_norm
               ? rms_norm(h, gamma, T(c.layer_norm_eps))
               : layer_norm(h, gamma, at(i, name + ".bias"), T(c.layer_norm_eps));
  };
  const auto drop = [&](Purpose purpose, Index i, const Tensor<T>& h) {
    return training ? dropout(h, c.dropout, training->stream(purpose, i)) : h;
  };
  const auto attend = [&](Index i, const Tensor<T>& h) {
    return drop(Purpose::attention_dropout, i,
                linear_at(i, "attn.o", attention(linear_at(i, "attn.q", h),
                                                 linear_at(i, "attn.k", h),
                                                 linear_at(i, "attn.v", h), c.heads)));
  };
  int last_group = -1;
  const auto feed = [&](Index i, const Tensor<T>& h) {
    if (i < first_moe) {
      const auto hidden =
          drop(Purpose::hidden_dropout, i, gelu(linear_at(i, "ffn.fc1", h), c.gelu));
      return drop(Purpose::output_dropout, i, linear_at(i, "ffn.fc2", hidden));
    }
    const Tensor<T> tokens = h.reshaped({h.shape().num_rows(), c.width});
    const int group = static_cast<int>((i - first_moe) * groups / c.num_moe_blocks());
    if (group != last_group) {
      last_group = group;
      Buffer<T> noise;
      if (training)
        noise = router_noise<T>(c.conventions.noise, tokens.shape()[0], c.experts,
                                training->stream(Purpose::router_noise, i));
      out.routings.push_back(route(router_logits(tokens, at(i, "moe.router.weight")),
                                   {c.top_k, c.capacity_factor, c.conventions}, noise));
      out.balance_losses.push_back(balance_loss(out.routings.back(), c.conventions.balance));
    }
    const Routing<T>& r = out.routings.back();
    ExpertDropout<T> mask;
    if (training && c.dropout > 0)
      mask = {{training->stream(Purpose::hidden_dropout, i), c.dropout},
              {training->stream(Purpose::output_dropout, i), c.dropout}, true};
    const auto results =
        experts(dispatch(tokens, r), at(i, "moe.experts.{}.fc1.weight"),
                at(i, "moe.experts.{}.fc1.bias"), at(i, "moe.experts.{}.fc2.weight"),
                at(i, "moe.experts.{}.fc2.bias"), r, c.gelu, mask);
    return combine(results, r.gate, r).reshaped(h.shape());
  };
  for (Index i = 0; i < c.blocks; ++i) {
    if (c.is_pre_norm) {
      x = x + attend(i, norm(i, "norm1", x));
      x = x + feed(i, norm(i, "norm2", x));
    } else {
      x = norm(i, "norm1", x + attend(i, x));
      x = norm(i, "norm2", x + feed(i, x));
    }
  }
  if (c.is_pre_norm && c.has_final_norm) x = norm(-1, "norm", x);
  out.tokens = x;
  for (const Tensor<T>& loss : out.balance_losses)
    out.balance_loss = out.balance_loss ? out.balance_loss + loss : loss;
  if (!out.balance_loss) out.balance_loss = Tensor<T>::zeros({});
  return out;
}

// The parameter of a block, shared or its own, or one that belongs to no block.
template <class T>
std::function<Tensor<T>(Index, const std::string&)> finder(const Model<T>& model) {
  return [map = model.by_name()](Index block, const std::string& name) {
    for (const std::string& full :
         {"blocks." + std::to_string(block) + "." + name, "shared." + name, name}) {
      const auto found = map.find(full);
      if (found != map.end()) return found->second;
    }
    FAIL("no parameter " << name);
    return Tensor<T>();
  };
}

// Tokens and balance loss as one scalar: random weights times tokens, plus half the balance loss.
template <class T>
Tensor<T> scalar_of(const EncoderOutput<T>& out) {
  return sum(multiply(out.tokens, check::normal<T>(out.tokens.shape(), 99))) +
         0.5 * out.balance_loss;
}

// Tokens, balance loss, and the gradients of all parameters and of x.
template <class T>
std::vector<T> value_and_gradients(const Model<T>& model, const Tensor<T>& x,
                                   const EncoderOutput<T>& out) {
  for (const Parameter<T>& p : model.parameters.list()) p.tensor.zero_gradient();
  x.zero_gradient();
  std::vector<T> all = out.tokens.to_vector();
  all.push_back(out.balance_loss.item());
  scalar_of(out).backward();
  for (const Parameter<T>& p : model.parameters.list())
    check::append(all, p.tensor.gradient().to_vector());
  check::append(all, x.gradient().to_vector());
  return all;
}

// All of the encoders of the paper, in miniature.
std::vector<EncoderConfig> family() {
  std::vector<EncoderConfig> configs(14, small());
  configs[1].share_attention = configs[1].share_router = configs[1].share_experts = false;
  configs[2].experts = 0;                                      // dense, shared
  configs[3].experts = 0, configs[3].share_experts = false;    // ViT
  configs[3].share_attention = false;
  configs[4].moe_blocks = 1, configs[4].share_experts = false;  // ViT-MoE
  configs[5].blocks = 5, configs[5].moe_blocks = 4, configs[5].routing_groups = 3;
  configs[5].share_router = configs[5].share_experts = false;
  configs[6].is_pre_norm = false;
  configs[7].has_final_norm = false, configs[7].share_layer_norm = true;
  configs[8].top_k = 1, configs[8].gelu = Gelu::erf;
  configs[9].blocks = 5, configs[9].routing_groups = 2;
  configs[10].conventions.noise = RouterNoise::one_over_experts_squared;
  configs[10].conventions.priority = Priority::choice_major;
  configs[10].conventions.balance = BalanceRule::switch_top1;
  configs[10].conventions.capacity_rounding = Rounding::ceil;
  configs[11].conventions.unusable_slots = 1, configs[11].layer_norm_eps = 1e-3;
  configs[12].norm = Norm::rms_norm;
  configs[13].norm = Norm::rms_norm, configs[13].is_pre_norm = false;
  return configs;
}

}  // namespace

TEST_CASE("encoder: the blocks are the equations, bit for bit, in training and evaluation") {
  // By hand nothing is forgotten and computed again, so this also tests that forgetting is safe.
  std::size_t which = 0;
  for (EncoderConfig c : family()) {
    c.dropout = 0.2;
    const Model<double> model(c);
    model.randomise();
    const auto x = check::normal({2, 5, c.width}, 0).require_gradient();
    const Training training{Rng(3), 7, 2};
    for (const Training* t : {static_cast<const Training*>(nullptr), &training}) {
      INFO("config ", which, t ? ", training" : ", evaluation");
      const auto found = model.encoder.forward(x, t, {});
      const auto expected = by_hand<double>(c, x, t, finder(model));
      CHECK(found.balance_losses.size() == expected.balance_losses.size());
      CHECK(static_cast<Index>(found.routings.size()) == model.encoder.num_routings());
      const auto a = value_and_gradients(model, x, found);
      const auto b = value_and_gradients(model, x, expected);
      CHECK(check::same_bits(a, b));
    }
    ++which;
  }
}

TEST_CASE("encoder: gradients of shared parameters are the sums over unshared copies") {
  struct Row {
    bool dense, attention, router, experts, norm;  // what the second encoder does not share
  };
  const std::vector<Row> rows = {
      {false, true, true, true, true},    {false, true, false, false, false},
      {false, false, true, false, false}, {false, false, false, true, false},
      {false, false, false, false, true}, {true, true, true, true, true}};
  for (const Row& row : rows) {
    EncoderConfig c = small();
    c.dropout = 0.1;
    c.share_layer_norm = true;
    if (row.dense) c.experts = 0;
    const Model<double> shared(c);
    shared.randomise();
    c.share_attention = !row.attention, c.share_router = !row.router;
    c.share_experts = !row.experts, c.share_layer_norm = !row.norm;
    const Model<double> copies(c, /*seed=*/2);
    const auto source = shared.by_name();
    for (const Parameter<double>& p : copies.parameters.list())
      p.tensor.value().assign(source.at(shared_name(p.name)).to_vector());

    const auto x = check::normal({3, 5, c.width}, 1).require_gradient();
    const Training training{Rng(3), 0};
    const auto a = shared.encoder.forward(x, &training, {});
    const auto b = copies.encoder.forward(x, &training, {});
    CHECK(check::same_bits(a.tokens.to_vector(), b.tokens.to_vector()));
    if (!row.dense) REQUIRE(a.routings[0].dropped_fraction() > 0);
    scalar_of(a).backward();
    scalar_of(b).backward();

    std::map<std::string, std::vector<double>> sums;
    std::map<std::string, int> num_copies;
    for (const Parameter<double>& p : copies.parameters.list()) {
      std::vector<double>& total = sums[shared_name(p.name)];
      const std::vector<double> d = p.tensor.gradient().to_vector();
      total.resize(d.size());
      for (std::size_t i = 0; i < d.size(); ++i) total[i] += d[i];
      ++num_copies[shared_name(p.name)];
    }
    for (const auto& entry : source) {
      INFO(entry.first);
      const std::vector<double> d = entry.second.gradient().to_vector();
      const bool key_bias = entry.first == "shared.attn.k.bias";  // zero in exact arithmetic
      double largest = 0;
      for (const double value : d) largest = std::fmax(largest, std::fabs(value));
      if (!key_bias) CHECK(largest > 1e-3);
      double error = 0;
      for (std::size_t i = 0; i < d.size(); ++i)
        error = std::fmax(error, std::fabs(d[i] - sums[entry.first][i]));
      CHECK(error <= 1e-12 * (1 + largest));
    }
    const std::string probe = row.attention ? "shared.attn.q.weight"
                              : row.router  ? "shared.moe.router.weight"
                              : row.experts ? "shared.moe.experts.{}.fc1.weight"
                                            : "shared.norm1.weight";
    CHECK(num_copies[probe] == 3);
  }
}

TEST_CASE("encoder: every switch changes the number of parameters by what it says") {
  const Index D = 12, E = 3, F = 7, G = 5, L = 3;  // G: hidden width of a dense FFN
  const Index attention = 4 * D * D + 4 * D, router = D * E, norm = 2 * D;
  const Index experts = E * (2 * D * F + F + D), dense = 2 * D * G + G + D;
  const auto count = [](const EncoderConfig& c) {
    ParameterSet<float> only(Rng(0), true);
    const Encoder<float> encoder(c, only);
    const Model<float> model(c);
    Index sizes = 0;
    for (const auto& p : model.parameters.list()) sizes += p.tensor.size();
    CHECK(sizes == only.count());
    CHECK(sizes == model.parameters.count());
    return only.count();
  };
  const Index base = attention + router + experts + (2 * L + 1) * norm;
  CHECK(count(small()) == base);
  const auto with = [&](const std::function<void(EncoderConfig&)>& change) {
    EncoderConfig c = small();
    change(c);
    return count(c) - base;
  };
  CHECK(with([](auto& c) { c.share_attention = false; }) == (L - 1) * attention);
  CHECK(with([](auto& c) { c.share_router = false; }) == (L - 1) * router);
  CHECK(with([](auto& c) { c.share_experts = false; }) == (L - 1) * experts);
  CHECK(with([](auto& c) { c.share_layer_norm = true; }) == -2 * (L - 1) * norm);
  CHECK(with([](auto& c) { c.has_final_norm = false; }) == -norm);
  CHECK(with([](auto& c) { c.norm = Norm::rms_norm; }) == -(2 * L + 1) * norm / 2);
  CHECK(with([](auto& c) { c.is_pre_norm = false; }) == -norm);
  CHECK(with([](auto& c) { c.experts = 0; }) == dense - router - experts);
  CHECK(with([](auto& c) { c.experts = 4; }) == D + experts / E);
  CHECK(with([](auto& c) { c.moe_blocks = 1; }) == dense);
  CHECK(with([](auto& c) { c.moe_blocks = 1, c.share_experts = false; }) == 2 * dense);
  CHECK(with([](auto& c) { c.moe_blocks = 0; }) == dense - router - experts);
  CHECK(with([](auto& c) { c.blocks = 7; }) == 4 * 2 * norm);
  CHECK(with([](auto& c) { c.routing_groups = 1; }) == 0);
  CHECK(with([](auto& c) { c.routing_groups = 2, c.share_router = false; }) == router);
  CHECK(with([](auto& c) {
    c.experts = 0, c.share_attention = c.share_experts = false;
  }) == L * attention + L * dense - attention - router - experts);
}

TEST_CASE("encoder: blocks of one group reuse the routing of its first block") {
  const auto routing_blocks = [](Index blocks, Index moe_blocks, Index groups) {
    EncoderConfig c = small();
    c.blocks = blocks, c.moe_blocks = moe_blocks, c.routing_groups = groups;
    std::vector<Index> found;
    for (Index i = 0; i < blocks; ++i)
      if (c.routes(i)) found.push_back(i);
    return found;
  };
  using Blocks = std::vector<Index>;
  CHECK(routing_blocks(6, -1, -1) == Blocks{0, 1, 2, 3, 4, 5});
  CHECK(routing_blocks(6, -1, 1) == Blocks{0});
  CHECK(routing_blocks(6, -1, 2) == Blocks{0, 3});
  CHECK(routing_blocks(6, -1, 3) == Blocks{0, 2, 4});
  CHECK(routing_blocks(6, 4, 2) == Blocks{2, 4});
  CHECK(routing_blocks(5, -1, 2) == Blocks{0, 3});
  CHECK(routing_blocks(6, 0, -1).empty());

  EncoderConfig c = small();
  c.blocks = 6, c.routing_groups = 2;
  const Model<double> model(c);
  model.randomise();
  const auto out = model.encoder.forward(check::normal({2, 5, 12}, 0), nullptr, {});
  CHECK(out.routings.size() == 2);
  REQUIRE(out.balance_losses.size() == 2);
  CHECK(out.balance_loss.item() == out.balance_losses[0].item() + out.balance_losses[1].item());
}

TEST_CASE("encoder: the balance loss is the sum over the routings, and 0 without any") {
  const Model<double> model(small());
  model.randomise();
  const auto x = check::normal({2, 5, 12}, 0);
  const auto out = model.encoder.forward(x, nullptr, {});
  REQUIRE(out.balance_losses.size() == 3);
  double total = 0;
  for (std::size_t t = 0; t < 3; ++t) {
    total += out.balance_losses[t].item();
    CHECK(out.balance_losses[t].item() == balance_loss(out.routings[t]).item());
  }
  CHECK(std::fabs(out.balance_loss.item() - total) < 1e-12);
  EncoderConfig dense = small();
  dense.experts = 0;
  const auto nothing = Model<double>(dense).encoder.forward(x, nullptr, {});
  CHECK(nothing.balance_loss.item() == 0);
  CHECK(nothing.routings.empty());
}

TEST_CASE("encoder: noise and dropout differ by block, step and micro-batch, none in evaluation") {
  const Model<double> model(small());
  const auto x = check::normal({2, 5, 12}, 0);
  const auto noise = [&](Index step, Index micro_batch, std::size_t t) {
    const Training training{Rng(3), step, micro_batch};
    return model.encoder.forward(x, &training, {}).routings[t].noise.to_vector();
  };
  const std::vector<double> one = noise(0, 0, 0);
  CHECK(one.size() == 30);
  CHECK(one == noise(0, 0, 0));
  CHECK(one != noise(0, 0, 1));
  CHECK(one != noise(1, 0, 0));
  CHECK(one != noise(0, 1, 0));
  const auto evaluated = model.encoder.forward(x, nullptr, {});
  for (const auto& r : evaluated.routings) CHECK(r.noise.size() == 0);

  EncoderConfig c = small();
  c.conventions.noise = RouterNoise::none, c.dropout = 0.5;
  const Model<double> dropping(c);
  const Training first{Rng(3), 0}, second{Rng(3), 1};
  const auto tokens = [&](const Training* t) {
    return dropping.encoder.forward(x, t, {}).tokens.to_vector();
  };
  CHECK(tokens(&first) == tokens(&first));
  CHECK(tokens(&first) != tokens(&second));
  CHECK(tokens(&first) != tokens(nullptr));
}

TEST_CASE("encoder: random priority is reproducible and differs by step") {
  EncoderConfig c = small();
  c.conventions.priority = Priority::random;
  c.conventions.noise = RouterNoise::none;
  const Model<double> model(c);
  model.randomise();
  const auto x = check::normal({4, 5, 12}, 0);
  const auto slots = [&](Index step) {
    const Training training{Rng(3), step};
    return model.encoder.forward(x, &training, {}).routings[0].slot.to_vector();
  };
  CHECK(slots(0) == slots(0));
  CHECK(slots(0) != slots(1));
}

TEST_CASE("encoder: a replay repeats a run, and must fit") {
  const Model<double> model(small());
  model.randomise();
  const auto x = check::normal({2, 5, 12}, 0);
  const Training training{Rng(3), 0};
  const auto first = model.encoder.forward(x, &training, {});
  const auto replay = Replay<double>::of(first.routings);
  const auto again = model.encoder.forward(x, nullptr, replay);  // the noise comes from the replay
  CHECK(check::same_bits(again.tokens.to_vector(), first.tokens.to_vector()));

  // Other choices are obeyed: all first choices to expert 2, the second ones dropped.
  Replay<double> other;
  for (int t = 0; t < 3; ++t) {
    std::vector<std::int32_t> expert, slot;
    for (std::int32_t n = 0; n < 10; ++n) {
      check::append(expert, {2, 0});
      check::append(slot, {n < 8 ? n : -1, -1});
    }
    other.choices.push_back({Buffer<std::int32_t>(expert), Buffer<std::int32_t>(slot)});
  }
  const auto obeyed = model.encoder.forward(x, nullptr, other);
  CHECK(obeyed.routings[2].kept.to_vector() == std::vector<std::int32_t>{0, 0, 8});

  Replay<double> one;
  one.choices = {other.choices[0]};
  CHECK_THROWS_WITH_AS(model.encoder.forward(x, nullptr, one),
                       "widenet: Encoder: a replay must have choices for 3 routings; got 1",
                       ShapeError);
  one.choices.clear();
  one.noise.resize(2);
  CHECK_THROWS_WITH_AS(model.encoder.forward(x, nullptr, one),
                       "widenet: Encoder: a replay must have noise for 3 routings; got 2",
                       ShapeError);
}

TEST_CASE("encoder: the LayerNorms are individual") {
  const Model<double> model(small());
  model.randomise();
  const auto at = model.by_name();
  const auto x = check::normal({2, 5, 12}, 0);
  const auto run = [&] { return model.encoder.forward(x, nullptr, {}); };
  const auto before = run();
  for (Index i = 0; i < 3; ++i) {
    const auto& gamma = at.at("blocks." + std::to_string(i) + ".norm2.weight");
    const std::vector<double> kept = gamma.to_vector();
    std::vector<double> changed = kept;
    changed[5] += 0.25;
    gamma.value().assign(changed);
    const auto after = run();
    gamma.value().assign(kept);
    for (Index t = 0; t < 3; ++t) {  // the routers of earlier blocks notice nothing
      const auto step = static_cast<std::size_t>(t);
      CHECK(check::same_bits(after.routings[step].logits.to_vector(),
                             before.routings[step].logits.to_vector()) == (t < i));
    }
  }
  scalar_of(run()).backward();
  for (const char* name : {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"})
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < i; ++j) {
        const auto gradient = [&](int block) {
          return at.at("blocks." + std::to_string(block) + "." + name).gradient().to_vector();
        };
        CHECK(gradient(i) != gradient(j));
      }
}

TEST_CASE("encoder: a token's output does not depend on its batch-mates while nothing is dropped") {
  const Index B = 7, T = 5, D = 12;
  const auto run = [&](const EncoderConfig& c, auto zero) {
    using V = decltype(zero);
    const Model<V> model(c);
    model.randomise();
    const auto all = check::normal<V>({B, T, D}, 0);
    const auto together = model.encoder.forward(all, nullptr, {});
    for (const auto& r : together.routings) REQUIRE(r.dropped_fraction() == 0);
    const std::vector<V> x = all.to_vector(), y = together.tokens.to_vector();
    for (const Index count : {1, 2, 3})
      for (Index b = 0; b + count <= B; b += count) {
        const auto from = static_cast<std::ptrdiff_t>(b * T * D);
        const auto to = static_cast<std::ptrdiff_t>((b + count) * T * D);
        const Tensor<V> some(Shape{count, T, D},
                             std::vector<V>(x.begin() + from, x.begin() + to));
        const auto apart = model.encoder.forward(some, nullptr, {});
        CHECK(check::same_products(apart.tokens.to_vector(),
                                   std::vector<V>(y.begin() + from, y.begin() + to)));
      }
  };
  run(roomy(), 0.0f);
  run(roomy(), 0.0);
  EncoderConfig c = roomy();
  c.is_pre_norm = false, c.top_k = 1, c.capacity_factor = {3, 1}, c.moe_blocks = 2;
  run(c, 0.0f);
}

TEST_CASE("encoder: tokens that the mask leaves out do not reach the others") {
  const Model<double> model(roomy());
  model.randomise();
  const Buffer<std::uint8_t> mask(std::vector<std::uint8_t>{1, 1, 0, 1, 0});
  std::vector<double> x = check::normal({1, 5, 12}, 0).to_vector();
  const auto run = [&] {
    const auto tokens = check::tensor({1, 5, 12}, x);
    return model.encoder.forward(tokens, nullptr, {}, mask).tokens.to_vector();
  };
  const std::vector<double> before = run();
  x[2 * 12 + 3] += 1, x[4 * 12 + 7] -= 2;
  const std::vector<double> after = run();
  for (std::size_t t = 0; t < 5; ++t) {
    const auto same = [&](std::size_t d) { return before[t * 12 + d] == after[t * 12 + d]; };
    bool all = true;
    for (std::size_t d = 0; d < 12; ++d) all = all && same(d);
    CHECK(all == (t != 2 && t != 4));
  }
}

TEST_CASE("encoder: the same bits for any number of threads") {
  EncoderConfig c = small();
  c.width = 36, c.heads = 3, c.expert_hidden = 41, c.dropout = 0.1;
  for (const bool pre_norm : {true, false}) {
    c.is_pre_norm = pre_norm;
    const Model<float> model(c);
    const auto x = check::normal<float>({5, 11, 36}, 0).require_gradient();
    check::same_bits_for_all_threads([&] {
      const Training training{Rng(3), 4};
      return value_and_gradients(model, x, model.encoder.forward(x, &training, {}));
    });
  }
}

TEST_CASE("tensor: forget() lets values go and brings the same bits back") {
  const auto x = check::normal<float>({7, 37}, 0).require_gradient();
  const auto y = layer_norm(x, check::normal<float>({37}, 1), check::normal<float>({37}, 2));
  const auto view = y.reshaped({37, 7});
  const std::vector<float> before = y.to_vector();
  view.forget();
  y.forget();
  const Index in_use = memory_use().in_use;
  CHECK(check::same_bits(view.to_vector(), before));
  CHECK(memory_use().in_use > in_use);
  CHECK(check::same_bits(y.to_vector(), before));
  x.forget();  // nothing tells how to compute a leaf again
  CHECK(x.to_vector().size() == 7 * 37);
}

// All that a step computes: tokens, losses, and the gradients of everything.
template <class T>
std::vector<T> step_of(EncoderConfig c, bool recomputes, bool uses_tokens, bool uses_balance,
                       const std::vector<std::uint8_t>& mask = {}) {
  c.recompute_blocks = recomputes;
  const Model<T> model(c);
  model.randomise();
  const Training training{Rng(5), 3};
  const Tensor<T> x = check::normal<T>({2, 5, 12}, 1).require_gradient();
  const auto out = model.encoder.forward(x, &training, {}, mask,
                                         mask.empty() ? RoutedTokens() : RoutedTokens(mask));
  Tensor<T> loss = sum(multiply(out.tokens, check::normal<T>(out.tokens.shape(), 2)));
  if (!uses_tokens) loss = out.balance_loss;
  else if (uses_balance) loss = loss + 0.5 * out.balance_loss;
  loss.backward();
  std::vector<T> all = out.tokens.to_vector();
  const auto append = [&all](const std::vector<T>& values) {
    all.insert(all.end(), values.begin(), values.end());
  };
  append(out.balance_loss.to_vector());
  append(x.gradient().to_vector());
  for (const Parameter<T>& p : model.parameters.list()) append(p.tensor.gradient().to_vector());
  return all;
}

TEST_CASE("encoder: blocks that are run again in backward leave the same bits") {
  std::vector<EncoderConfig> configs(7, small());  // K = 2, noise, drops
  for (EncoderConfig& c : configs) c.dropout = 0.2;
  configs[1].is_pre_norm = false, configs[1].top_k = 1;
  configs[2].share_attention = configs[2].share_router = configs[2].share_experts = false;
  configs[3].blocks = 5, configs[3].moe_blocks = 4, configs[3].routing_groups = 2;
  configs[4].experts = 0;
  configs[5].conventions.priority = Priority::random;
  configs[6].share_layer_norm = true;
  for (const EncoderConfig& c : configs) {
    INFO("configuration ", &c - configs.data());
    for (const auto& [tokens, balance] : {std::pair(true, true), {true, false}, {false, true}}) {
      if (c.experts == 0 && !tokens) continue;
      CHECK(check::same_bits(step_of<float>(c, true, tokens, balance),
                             step_of<float>(c, false, tokens, balance)));
    }
  }
  const std::vector<std::uint8_t> mask = {1, 1, 1, 0, 0, 1, 1, 1, 1, 0};
  CHECK(check::same_bits(step_of<double>(small(), true, true, true, mask),
                         step_of<double>(small(), false, true, true, mask)));
}

TEST_CASE("encoder: with recomputation a block more keeps its input and its routing only") {
  const auto kept = [](bool recomputes, Index blocks) {
    EncoderConfig c = small();
    c.blocks = blocks, c.expert_hidden = 64, c.recompute_blocks = recomputes;
    const Model<float> model(c);
    const Training training{Rng(5), 3};
    const Tensor<float> x = check::normal<float>({4, 64, 12}, 1).require_gradient();
    const Index before = memory_use().in_use;
    const auto out = model.encoder.forward(x, &training, {});
    return memory_use().in_use - before;
  };
  const Index N = 4 * 64, input = N * 12 * 4;
  const Index routing = N * 3 * (3 + 2) * 4;  // logits, noise, p; gate, expert and slot of K = 2
  kept(true, 1);  // workspaces
  const Index growth = (kept(true, 7) - kept(true, 3)) / 4;
  CHECK(growth >= input);
  CHECK(growth <= (input + routing) * 9 / 8 + 20 * 64);  // rounded up by the pool
  CHECK(kept(false, 7) - kept(false, 3) > 4 * 10 * growth);
}

TEST_CASE("encoder: a model may go, and its blocks are run again all the same") {
  EncoderConfig c = small();
  c.recompute_blocks = true;
  const Tensor<double> x = check::normal({2, 5, 12}, 1).require_gradient();
  const Tensor<double> loss = [&] {
    const Model<double> model(c);
    return sum(model.encoder.forward(x, nullptr, {}).tokens);
  }();
  loss.backward();
  CHECK(std::isfinite(x.gradient().to_vector()[0]));
}

TEST_CASE("encoder: a batch of no sequences is an error, not a division by zero") {
  ParameterSet<float> parameters{Rng(5)};
  const Encoder<float> encoder(EncoderConfig(), parameters);
  CHECK_THROWS_WITH_AS(encoder.forward(Tensor<float>::zeros({0, 5, 32}), nullptr, {}),
                       "widenet: route: 1 <= K <= E and N >= 1 must hold; got K = 2, E = 4, N = 0",
                       ValueError);
}

TEST_CASE("encoder: a configuration's violations are listed all at once") {
  const auto violations = [](const std::function<void(EncoderConfig&)>& change) {
    EncoderConfig c;
    change(c);
    std::string all;
    for (const std::string& line : c.violations()) all += line + "\n";
    return all;
  };
  CHECK(violations([](EncoderConfig&) {}) == "");
  for (const EncoderConfig& c : family()) CHECK(c.violations().empty());
  CHECK(violations([](EncoderConfig& c) {
          c.width = 30, c.heads = 4, c.top_k = 5, c.expert_hidden = 0, c.moe_blocks = 1;
          c.dense_hidden = -1, c.routing_groups = 2, c.capacity_factor = {0, 5};
          c.layer_norm_eps = 0, c.dropout = 1, c.conventions.unusable_slots = -1;
        }) == "heads must divide width; got 4, 30\n"
              "top_k must lie in [1, experts]; got 5, 4\n"
              "expert_hidden must be positive; got 0\n"
              "dense_hidden must be positive; got -1\n"
              "routing_groups must be -1 or lie in [1, number of MoE blocks]; got 2, 1\n"
              "capacity_factor must be positive; got 0/5\n"
              "layer_norm_eps must be positive and finite; got 0\n"
              "dropout must lie in [0, 1); got 1\n"
              "unusable_slots must not be negative; got -1\n");
  CHECK(violations([](EncoderConfig& c) { c.blocks = 65537; }) ==
        "blocks must not exceed 65536; got 65537\n");
  CHECK(violations([](EncoderConfig& c) { c.capacity_factor = {1000001, 1}; }) ==
        "numerator and denominator of capacity_factor must not exceed 1000000; got 1000001/1\n");
  CHECK(violations([](EncoderConfig& c) { c.width = c.heads = c.blocks = 0; }) ==
        "width, heads and blocks must be positive; got 0, 0, 0\n");
  CHECK(violations([](EncoderConfig& c) { c.experts = -1; }) ==
        "experts must not be negative; got -1\n");
  for (const Index moe_blocks : {-2, 4})
    CHECK(violations([&](EncoderConfig& c) { c.moe_blocks = moe_blocks; }) ==
          "moe_blocks must lie in [-1, blocks]; got " + std::to_string(moe_blocks) + ", 3\n");
  for (const Index groups : {0, 4})
    CHECK(violations([&](EncoderConfig& c) { c.routing_groups = groups; }) ==
          "routing_groups must be -1 or lie in [1, number of MoE blocks]; got " +
              std::to_string(groups) + ", 3\n");
}
