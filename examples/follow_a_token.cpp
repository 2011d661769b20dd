// One token's way through one block of a WideNet, forward and backward, to be read aloud.
//
//   follow_a_token                                   a small model, trained for a few seconds
//   follow_a_token --run build/demo --image 7        a model of your own, as demo and train_vision
//                                                    write it
//   follow_a_token --token 12 --block 2 --json token.json

#include "support/images.hpp"
#include "support/run.hpp"
#include "support/trace.hpp"
#include "widenet.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

namespace wn = widenet;
namespace support = widenet::support;
using wn::Index;
using Row = std::vector<float>;

namespace {

struct Options {
  std::string run, data = "data/digits", part = "test", token = "any", json;
  Index image = 0, images = 1, block = 1, step = 0;
  bool evaluation = false;
};

support::CommandLine command_line(Options& o) {
  support::CommandLine line("follow_a_token", "one token's way through one block");
  line.add("--run", o.run, "folder of a run with model.safetensors; else a small model is trained")
      .add("--data", o.data, "folder of IDX, CIFAR-10 or CIFAR-100 files")
      .add("--part", o.part, "which images", {"train", "test"})
      .add("--image", o.image, "which image", 0)
      .add("--images", o.images, "how many images go in together, from that one on")
      .add("--token", o.token, "which token of them; any: a token with a choice that is dropped")
      .add("--block", o.block, "which block, from 0", 0)
      .add("--evaluation", o.evaluation, "without noise and dropout")
      .add("--step", o.step, "the step whose noise and dropout it is", 0)
      .add("--json", o.json, "file for all numbers of the trace");
  return line;
}

/// 60 steps on the digits: long enough for experts and attention to have preferences.
wn::VisionModel<float> trained(const support::ImageSet& set) {
  wn::VisionConfig config = wn::VisionConfig::toy();
  config.classes = set.classes;
  const wn::Rng rng(1);
  const wn::VisionModel<float> model(config, rng);
  wn::AdamW<float> optimizer(model.parameters(), 3e-3);
  const support::Augmentation none{{0, 0}, 1, false, false};
  for (Index step = 0; step < 60; ++step) {
    const auto batch = support::training_batch(set, 32, none, 0, config.image_height,
                                               config.image_width, rng, step);
    const auto out = model.forward(batch.images, wn::Training{rng, step});
    const auto loss =
        wn::total_loss(wn::cross_entropy(out.logits, batch.labels), out.balance_loss);
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
  }
  return model;
}

// WORDS -------------------------------------------------------------------------------------------

std::string ordinal(Index n) {
  const bool is_teen = n / 10 % 10 == 1;
  const char* const ending = is_teen       ? "th"
                             : n % 10 == 1 ? "st"
                             : n % 10 == 2 ? "nd"
                             : n % 10 == 3 ? "rd"
                                           : "th";
  return std::to_string(n) + ending;
}

std::string number(double x, int digits = 2) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, x);
  return std::string(text) == "-0." + std::string(static_cast<std::size_t>(digits), '0')
             ? text + 1 : text;
}

/// The first numbers of a vector.
std::string list(const Row& x, double factor = 1, std::size_t shown = 6) {
  std::string text = "(";
  for (std::size_t i = 0; i < std::min(x.size(), shown); ++i)
    text += (i ? ", " : "") + number(factor * double(x[i]));
  return text + (x.size() > shown ? ", ...)" : ")");
}

double length_of(const Row& x) {
  double squares = 0;
  for (const float value : x) squares += double(value) * double(value);
  return std::sqrt(squares);
}

std::string words(const std::vector<Index>& items, const char* what) {
  std::string text = std::string(what) + (items.size() == 1 ? " " : "s ");
  for (std::size_t i = 0; i < items.size(); ++i)
    text += (i == 0 ? "" : i + 1 < items.size() ? ", " : " and ") + std::to_string(items[i]);
  return text;
}

void table(const char* name, const Row& x, double factor = 1) {
  std::printf("     %-16s", name);
  for (const float value : x) std::printf("%8s", number(factor * double(value), 3).c_str());
  std::printf("\n");
}

void equation(const std::string& text, const char* tag = "") {
  std::printf(*tag ? "     %-72s  %s\n" : "     %s\n", text.c_str(), tag);
}
void vector_of(const char* name, const Row& x, double factor = 1) {
  std::printf("     %-16s = %s\n", name, list(x, factor).c_str());
}
void step(const char* title) {
  static int count = 0;
  std::printf("\n%2d. %s\n", ++count, title);
}
void say(const std::string& sentence) {  // in lines of 92 characters
  std::string line;
  const auto flush = [&line] {
    std::printf("     %s\n", line.c_str());
    line.clear();
  };
  for (std::size_t at = 0; at < sentence.size();) {
    const std::size_t end = std::min(sentence.find(' ', at), sentence.size());
    if (!line.empty() && line.size() + 1 + end - at > 92) flush();
    line += (line.empty() ? "" : " ") + sentence.substr(at, end - at);
    at = end + 1;
  }
  flush();
}

// FORWARD -----------------------------------------------------------------------------------------

void tell_norm(const support::TracedNorm<float>& norm, const char* in, const char* out) {
  std::printf("     mean of %s = %s,  1 / sigma = %s\n", in, number(double(norm.mean), 3).c_str(),
              number(double(norm.rstd), 3).c_str());
  vector_of(out, norm.output.value);
}

void tell_attention(const support::Trace<float>& t, Index num_tokens) {
  for (std::size_t h = 0; h < t.attention.size(); ++h) {
    const Row& p = t.attention[h];
    std::vector<std::size_t> order(p.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    std::stable_sort(order.begin(), order.end(), [&p](auto a, auto b) { return p[a] > p[b]; });
    std::printf("     head %zu looks most at", h);
    for (std::size_t i = 0; i < std::min<std::size_t>(3, order.size()); ++i)
      std::printf("%s token %td (%s)", i ? "," : "",
                  t.sequence * num_tokens + static_cast<Index>(order[i]),
                  number(double(p[order[i]])).c_str());
    std::printf("\n");
  }
  say("Each row of probabilities adds up to 1 over the " + std::to_string(num_tokens) +
      " tokens of the image; an even look would be " + number(1.0 / double(num_tokens)) +
      " for each.");
  vector_of("p v, all heads", t.mixed.value);
}

bool is_queue_shown(const wn::Routing<float>& r) { return r.N <= 40 && r.groups == 1; }

/// Who asked for an expert, in order, and where the places end.
void tell_queue(const wn::Routing<float>& r, const std::vector<Index>& place, Index e) {
  if (!is_queue_shown(r)) return;
  std::vector<Index> queue(static_cast<std::size_t>(r.N), -1);
  const std::vector<std::int32_t> expert = r.expert.to_vector();
  for (std::size_t i = 0; i < place.size(); ++i)
    if (expert[i] == e && place[i] > 0)
      queue[static_cast<std::size_t>(place[i] - 1)] = static_cast<Index>(i) / r.K;
  std::string text = "queue of expert " + std::to_string(e) + ":";
  for (std::size_t i = 0; i < queue.size() && queue[i] >= 0; ++i)
    text += (static_cast<Index>(i) == r.usable ? " | " : " ") + std::to_string(queue[i]);
  say(text);
}

void tell_choices(const support::Trace<float>& t, const wn::Routing<float>& r,
                  const std::vector<Index>& place) {
  const std::string token = "Token " + std::to_string(t.token);
  if (is_queue_shown(r))
    say("Tokens queue up in the order in which they are served; behind the bar no place is left.");
  for (std::size_t k = 0; k < t.choices.size(); ++k) {
    const auto& choice = t.choices[k];
    tell_queue(r, place, choice.expert);
    const std::string expert = "expert " + std::to_string(choice.expert);
    const std::string asks = token + (k == 0 ? " asks for " : " also asks for ") + expert +
                             ", with gate " + number(double(choice.gate.value[0]), 3) + ".";
    const std::string places = std::to_string(t.capacity) + " places";
    say(choice.place == 0
            ? token + " was drawn not to ask for " + expert + ", its " +
                  ordinal(static_cast<Index>(k) + 1) + " choice."
        : choice.is_kept()
            ? asks + " It is the " + ordinal(choice.place) + " in a queue for " + places +
                  ": it is kept, in slot " + std::to_string(choice.slot) + "."
            : asks + " It is the " + ordinal(choice.place) + " in a queue for " + places +
                  ": it is dropped.");
  }
}

/// What the noise did to the choice.
std::string effect_of_noise(const support::Trace<float>& t) {
  if (!t.jitter.empty())
    return "The noise is in what the router read: each number times a random factor near 1.";
  if (t.noise.empty()) return "There was no noise.";
  std::vector<Index> clean(t.ranked.size());
  std::iota(clean.begin(), clean.end(), Index(0));
  std::stable_sort(clean.begin(), clean.end(), [&t](Index a, Index b) {
    return t.logits.value[static_cast<std::size_t>(a)] >
           t.logits.value[static_cast<std::size_t>(b)];
  });
  const auto K = static_cast<std::ptrdiff_t>(t.choices.size());
  std::vector<Index> quiet(clean.begin(), clean.begin() + K);
  std::vector<Index> noisy(t.ranked.begin(), t.ranked.begin() + K);
  if (quiet == noisy) return "The noise did not change which experts come first.";
  std::sort(quiet.begin(), quiet.end());
  const std::string without = words(quiet, "expert");
  std::sort(noisy.begin(), noisy.end());
  return quiet == noisy ? "The noise changed the order of the experts chosen, not which they are."
                        : "The noise changed the choice: without it, it would be " + without + ".";
}

void tell_experts(const support::Trace<float>& t, const std::string& u) {
  for (const auto& choice : t.choices) {
    if (!choice.is_kept()) {
      std::printf("     expert %td: no place, no work.\n", choice.expert);
      continue;
    }
    const auto open = std::count_if(choice.hidden.value.begin(), choice.hidden.value.end(),
                                    [](float x) { return x > 0; });
    std::printf("     expert %td:\n", choice.expert);
    vector_of(("  " + u + " W1 + b1").c_str(), choice.hidden.value);
    vector_of("  gelu", choice.activated);
    vector_of("  output", choice.output.value);
    vector_of("  gate * output", choice.weighted);
    say("GELU lets " + std::to_string(open) + " of " + std::to_string(choice.hidden.value.size()) +
        " hidden units through; the others, below 0, it presses to between -0.17 and 0.");
  }
}

void forward(const support::Trace<float>& t, const wn::VisionConfig& config,
             const std::vector<wn::Routing<float>>& routings, const wn::Training* training) {
  std::printf("\nFORWARD\n");
  const bool is_pre = t.is_pre_norm;
  step("The token comes in.");
  vector_of("x", t.input.value);
  say("These are " + std::to_string(t.input.value.size()) + " numbers; the first 6 are shown, as "
      "of all vectors.");

  if (is_pre) {
    step("LayerNorm of attention.");
    equation("h = (x - mean) / sigma * gamma + beta,   sigma = sqrt(variance + eps)", "[eq 5]");
    tell_norm(t.norm1, "x", "h");
  }
  step("Query, key and value.");
  equation(is_pre ? "q = h Wq + bq,  k = h Wk + bk,  v = h Wv + bv"
                  : "q = x Wq + bq,  k = x Wk + bk,  v = x Wv + bv");
  vector_of("q", t.q.value), vector_of("k", t.k.value), vector_of("v", t.v.value);
  say("The query is what the token looks for, the key what it is found by, the value what it "
      "gives.");
  step("Attention.");
  equation("p[j] = softmax over j of  q . k[j] / sqrt(Dh),   in every head");
  tell_attention(t, config.num_tokens());
  step("Attention goes back to the token.");
  equation(is_pre ? "a = (p v) Wo + bo,   m = x + a" : "a = (p v) Wo + bo,   m = LN(x + a)",
           "[eq 6]");
  vector_of("a", t.attention_output.value);
  if (is_pre)
    vector_of("m", t.middle.value);
  else
    tell_norm(t.norm1, "x + a", "m");
  say("What attention found has length " + number(length_of(t.attention_output.value)) +
      "; it is added to a token of length " + number(length_of(t.input.value)) + ".");
  if (is_pre) {
    step("LayerNorm of the experts.");
    equation("u = (m - mean) / sigma * gamma + beta", "[eq 5]");
    tell_norm(t.norm2, "m", "u");
  }
  const std::string u = is_pre ? "u" : "m", inner = "gelu(" + u + " W1 + b1) W2 + b2";
  const std::string network = config.encoder.gelu_at_output ? "gelu(" + inner + ")" : inner;
  if (t.routed_by < 0) {
    step("The feed-forward network; this block has no experts.");
    equation("f = " + network);
    vector_of((u + " W1 + b1").c_str(), t.hidden.value), vector_of("gelu", t.activated);
  } else {
    const wn::EncoderConfig& c = config.encoder;
    Index index = 0;
    for (Index i = 0; i < t.routed_by; ++i) index += c.routes(i) ? 1 : 0;
    const wn::Routing<float>& r = routings[static_cast<std::size_t>(index)];
    step("The router.");
    if (t.routed_by != t.block)
      say("This block uses again what block " + std::to_string(t.routed_by) + " decided.");
    equation("z = " + u + " Wr,   p = softmax(z + noise)", "[eq 2]");
    std::printf("     %-16s", "expert");
    for (Index e = 0; e < r.E; ++e) std::printf("%8td", e);
    std::printf("\n");
    table("z", t.logits.value);
    if (!t.noise.empty()) table("noise", t.noise), table("z + noise", t.noisy_logits);
    table("p", t.probabilities.value);
    say(effect_of_noise(t));
    step("The queue.");
    equation(std::to_string(t.capacity) + " places at each expert, for " +
                 std::to_string(r.N / r.groups) + " tokens with " + std::to_string(r.K) +
                 " choices each", "[eq 3]");
    tell_choices(t, r, support::places_in_queue(r, c.conventions, training, t.routed_by));
    step("The experts.");
    equation("output = " + network + ",   each expert with its own W1, b1, W2, b2");
    tell_experts(t, u);
  }
  step("Back to the token.");
  const std::string sum = is_pre ? "y = m + f" : "y = LN(m + f)";
  if (t.routed_by < 0)
    equation(sum, "[eq 6]");
  else
    equation("f = sum over kept choices of gate * output,   " + sum, "[eq 1, 6]");
  vector_of("f", t.moe_output.value);
  if (is_pre)
    vector_of("y", t.output.value);
  else
    tell_norm(t.norm2, "m + f", "y");
  const bool is_lost = t.is_routed && length_of(t.moe_output.value) == 0;
  say(is_lost ? "The token lost all its choices: it goes on as it was."
              : std::string(t.routed_by < 0 ? "The network" : "The mixture of experts") +
                    " adds a vector of length " +
                    number(length_of(t.moe_output.value)) + " to one of length " +
                    number(length_of(t.middle.value)) + ".");
}

// BACKWARD ----------------------------------------------------------------------------------------

/// The experts whose logits a gradient pulls up or pushes down in the next step.
std::string pull(const Row& gradient, const char* who) {
  std::vector<Index> up, down;
  const double little = 1e-4 * length_of(gradient);
  for (std::size_t e = 0; e < gradient.size(); ++e)
    if (std::fabs(double(gradient[e])) > little)
      (gradient[e] < 0 ? up : down).push_back(static_cast<Index>(e));
  if (up.empty() && down.empty()) return std::string(who) + " does not care.";
  return std::string(who) + " would rather see " + words(up, "expert") + ", and less of " +
         words(down, "expert") + ".";
}

void backward(const support::Trace<float>& t, const wn::EncoderConfig& config) {
  // one power of a thousand for all gradients, so that the first has digits to show
  double scale = 1;
  int zeros = 0;
  while (length_of(t.output.gradient) * scale < 1 && zeros < 18) scale *= 1000, zeros += 3;
  std::printf("\nBACKWARD\n\n");
  equation("L = main loss + lambda * balance loss = " + number(double(t.main_loss), 4) + " + " +
               number(t.lambda) + " * " + number(double(t.balance_loss), 4), "[eq 7]");
  say("The main loss is the cross entropy of what was put in, the balance loss that of all routers "
      "together.");
  say("dL/dx says how fast L grows with each number of x; training goes the other way." +
      (zeros ? " All gradients are shown times 10^" + std::to_string(zeros) + "." : std::string()));

  step("At the end of the block.");
  vector_of("dL/dy", t.output.gradient, scale);
  say("Its length is " + number(scale * length_of(t.output.gradient)) + ".");
  step("Through the sum y = m + f.");
  vector_of("dL/df", t.moe_output.gradient, scale);
  say(t.moe_output.gradient == t.output.gradient
          ? "A sum passes the gradient on as it is, to both sides."
          : "It went through the LayerNorm behind the sum, and then to both sides.");
  if (t.is_routed) {
    step("Through the gates.");
    equation("dL/d(output) = gate * dL/df,   dL/d(gate) = dL/df . output");
    if (config.end_of_group(t.routed_by) > t.routed_by + 1)
      say("Blocks " + std::to_string(t.routed_by) + " to " +
          std::to_string(config.end_of_group(t.routed_by) - 1) +
          " share this routing: gradients of gates and logits are sums over them.");
    for (const auto& choice : t.choices) {
      std::printf("     expert %td:\n", choice.expert);
      if (choice.is_kept()) vector_of("  dL/d(output)", choice.output.gradient, scale);
      std::printf("     %-16s = %s\n", "  dL/d(gate)",
                  number(scale * double(choice.gate.gradient[0])).c_str());
      if (!choice.is_kept() && choice.gate.gradient[0] == 0)
        say("It was dropped, so its gate made no difference to this loss.");
      else
        say(std::string("More of this expert here would ") +
            (choice.gate.gradient[0] > 0 ? "raise" : "lower") + " the loss.");
    }
    step("Inside the experts that worked.");
    equation("dL/d(hidden) = (dL/d(output) W2^T) * gelu'(hidden)");
    for (const auto& choice : t.choices)
      if (choice.is_kept()) {
        std::printf("     expert %td:\n", choice.expert);
        vector_of("  dL/d(hidden)", choice.hidden.gradient, scale);
      }
    step("To the router, from its two teachers.");
    equation("dL/dz[e] = p[e] (dL/dp[e] - sum over j of dL/dp[j] p[j]),   for each loss");
    std::printf("     %-16s", "expert");
    for (std::size_t e = 0; e < t.ranked.size(); ++e) std::printf("%8zu", e);
    std::printf("\n");
    table("main loss", t.main_gradient, scale);
    table("balance loss", t.balance_gradient, scale);
    table("together", t.logits.gradient, scale);
    say(pull(t.main_gradient, "For this token the main loss"));
    for (const auto& choice : t.choices)
      if (!choice.is_kept() && choice.gate.gradient[0] == 0)
        say("Expert " + std::to_string(choice.expert) + " did nothing for this token: the main "
            "loss moves its logit only because " +
            (config.conventions.gate == wn::GateRule::raw ? "probabilities" : "gates") +
            " add up to 1.");
    say(pull(t.balance_gradient, "The balance loss"));
    say("The balance loss is that of all blocks, times lambda: what this block does moves the "
        "routers after it, too.");
  } else if (t.routed_by < 0) {
    step("Inside the feed-forward network.");
    vector_of("dL/d(hidden)", t.hidden.gradient, scale);
  }
  if (t.is_pre_norm) {
    step("Through the second LayerNorm, and along the residual.");
    vector_of("dL/du", t.norm2.output.gradient, scale);
    vector_of("dL/dm", t.middle.gradient, scale);
    say("dL/dm is dL/dy plus what came back through experts, router and LayerNorm.");
  } else {
    step("In the middle of the block.");
    vector_of("dL/dm", t.middle.gradient, scale);
  }
  step("Through attention.");
  vector_of("dL/da", t.attention_output.gradient, scale);
  if (t.attention_output.gradient == t.middle.gradient)
    say("The sum m = x + a, too, passes the gradient on as it is.");
  vector_of("dL/d(p v)", t.mixed.gradient, scale);
  vector_of("dL/dq", t.q.gradient, scale);
  vector_of("dL/dk", t.k.gradient, scale);
  vector_of("dL/dv", t.v.gradient, scale);
  say("The query answers for this token alone; key and value for every token that looked here.");
  step("Where the block began.");
  if (t.is_pre_norm) vector_of("dL/dh", t.norm1.output.gradient, scale);
  vector_of("dL/dx", t.input.gradient, scale);
  if (t.is_pre_norm)
    say("dL/dx is dL/dm plus what came back through attention and LayerNorm.");
  say("Its length is " + number(scale * length_of(t.input.gradient)) + ", after " +
      number(scale * length_of(t.output.gradient)) +
      " at the end of the block: this goes on to the block before.");
}

// THE PROGRAM -------------------------------------------------------------------------------------

/// The first token with a choice that is kept and one that is dropped, or else one that is dropped,
/// or else 0.
Index interesting(const std::vector<wn::Routing<float>>& routings, std::size_t routing) {
  if (routing >= routings.size()) return 0;
  const wn::Routing<float>& r = routings[routing];
  const std::vector<std::int32_t> slot = r.slot.to_vector();
  Index found = 0, best = 0;
  for (Index n = 0; n < r.N && best < 2; ++n) {
    Index kept = 0, dropped = 0;
    for (Index k = 0; k < r.K; ++k)
      (slot[static_cast<std::size_t>(n * r.K + k)] < 0 ? dropped : kept) += 1;
    const Index worth = dropped == 0 ? 0 : kept == 0 ? 1 : 2;
    if (worth > best) best = worth, found = n;
  }
  return found;
}

void draw(const support::ImageSet& set, Index image) {
  if (set.columns > 32 || set.channels > 1) return;
  const support::Image pixels = support::image_at(set, image);
  for (Index y = 0; y < set.rows; ++y) {
    std::string line;
    for (Index x = 0; x < set.columns; ++x)
      line += std::string(2, " .:-=+*#%@"[pixels.at(0, y, x) * 9 / 255]);
    line.erase(line.find_last_not_of(' ') + 1);
    std::printf("     %s\n", line.c_str());
  }
}

void introduce(const Options& o, const support::ImageSet& set, const wn::VisionConfig& c,
               Index token, Index block) {
  const wn::EncoderConfig& e = c.encoder;
  const std::string origin = o.run.empty() ? "trained here for 60 steps" : "from " + o.run;
  std::printf("A model of %td blocks, %s: D = %td, H = %td", e.blocks, origin.c_str(), e.width,
              e.heads);
  if (e.experts > 0)
    std::printf(", E = %td, K = %td, F = %td", e.experts, e.top_k, e.expert_hidden);
  std::printf(".\n");
  const Index position = token % c.num_tokens(), image = o.image + token / c.num_tokens();
  const Index columns = c.image_width / c.patch;
  std::printf("Image %td of the %s images, labelled %d:\n\n", image, o.part.c_str(),
              set.labels[static_cast<std::size_t>(image)]);
  draw(set, image);
  std::printf("\nToken %td is ", token);
  if (position == 0)
    std::printf("the class token, which stands before the patches");
  else
    std::printf("the patch of %td x %td pixels in row %td, column %td of patches, from 0", c.patch,
                c.patch, (position - 1) / columns, (position - 1) % columns);
  std::printf(".\nWe follow it through block %td%s.\n", block,
              o.evaluation ? ", in evaluation" : ", in a step of training");
}

int run(const Options& o) {
  const support::ImageSet set = support::load_image_set(o.data, o.part);
  wn::require<wn::ValueError>(o.image + o.images <= set.count, "follow_a_token: --image and "
                              "--images must lie in [0, ", set.count, "]; got ", o.image, ", ",
                              o.images);
  const std::string path =
      std::filesystem::is_directory(o.run) ? support::RunFiles{o.run}.model() : o.run;
  const wn::VisionModel<float> model =
      o.run.empty() ? trained(support::load_image_set(o.data, "train"))
                    : wn::load_vision_model<float>(path);
  const wn::VisionConfig& config = model.config();
  wn::require<wn::ValueError>(config.channels == set.channels && set.classes <= config.classes,
                              "follow_a_token: images must have the channels of the model and no "
                              "more classes, ", config.channels, ", ", config.classes, "; got ",
                              set.channels, ", ", set.classes);
  const auto batch = support::evaluation_batch(set, o.image, o.images, config.image_height,
                                               config.image_width);
  const wn::Training training{wn::Rng(1), o.step};
  const wn::Training* const random = o.evaluation ? nullptr : &training;
  const auto routings = [&] {
    const wn::NoGrad no_graph;
    return (random ? model.forward(batch.images, training) : model.forward(batch.images)).routings;
  }();
  const wn::EncoderConfig& encoder = config.encoder;
  const Index block = o.block;
  wn::require<wn::ValueError>(block < encoder.blocks, "follow_a_token: --block must lie in [0, ",
                              encoder.blocks, "); got ", block);
  std::size_t num_routings = 0;
  for (Index i = 0; i <= block; ++i) num_routings += encoder.routes(i) ? 1u : 0u;
  const Index token = o.token == "any"
                          ? interesting(routings, num_routings - 1)
                          : support::whole_number(o.token, "follow_a_token: --token");
  const auto trace = support::trace(model, batch.images, token, block, random,
                                    [&](const auto& out) {
    return wn::cross_entropy(out.logits, batch.labels);
  });
  introduce(o, set, config, token, block);
  forward(trace, config, routings, random);
  backward(trace, encoder);
  if (!o.json.empty()) {
    std::ofstream file(o.json);
    file << support::to_json(trace) << '\n';
    wn::require<wn::IoError>(file.good(), "follow_a_token: ", o.json, ": must be writable");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    const support::CommandLine line = command_line(options);
    if (line.parse(argc, argv)) return run(options);
    std::printf("%s", line.usage().c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
