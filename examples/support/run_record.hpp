// run_record.hpp - what a run leaves for its report besides weights and metrics, written and read.
//
//   routes.jsonl   where the tokens of a few inputs go: counts of choices at some 25 steps, and at
//                  the last of them every choice, with the inputs
//   result.json    what the finished model did with its test data
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_RUN_RECORD_HPP
#define WIDENET_EXAMPLES_SUPPORT_RUN_RECORD_HPP

#include "support/progress.hpp"
#include "support/report.hpp"
#include "support/run.hpp"
#include "widenet.hpp"

#include <algorithm>   // max
#include <cmath>       // lround, sqrt
#include <cstdint>     // int32_t, uint8_t
#include <cstdio>      // remove, snprintf
#include <fstream>     // ifstream
#include <functional>  // function
#include <limits>      // numeric_limits
#include <memory>      // unique_ptr
#include <numeric>     // iota
#include <string>      // string
#include <utility>     // move, pair
#include <vector>      // vector

namespace widenet::support {

// PICTURES ----------------------------------------------------------------------------------------

/// An image, perhaps smaller than what the model saw, with what was read in it.
struct Picture {
  Index rows = 0, columns = 0, channels = 1;  // 1 channel, or red, green and blue
  std::vector<std::uint8_t> pixels = {};      // (rows, columns, channels)
  int label = 0, prediction = 0;
  double probability = 0;  // of the prediction
};

/// The picture of an image with values in [-1, 1], as a model takes it. Where it would have more
/// than 64 pixels on a side, each square of several pixels is one, their mean; a patch stays whole.
///
///   Shapes    image (channels, rows, columns) of the configuration
inline Picture picture_of(const VisionConfig& config, const float* image) {
  const Index rows = config.image_height, columns = config.image_width, P = config.patch;
  Index square = 1;  // its side, a divisor of the patch
  while (square < P && (P % square != 0 || std::max(rows, columns) / square > 64)) ++square;
  Picture picture{rows / square, columns / square, config.channels == 3 ? 3 : 1};
  const Index averaged = config.channels / picture.channels;  // channels that become one
  const auto mean = [&](Index y, Index x, Index c) {
    double sum = 0;
    for (Index i = c * averaged; i < (c + 1) * averaged; ++i)
      for (Index dy = 0; dy < square; ++dy)
        for (Index dx = 0; dx < square; ++dx)
          sum += image[(i * rows + y * square + dy) * columns + x * square + dx];
    return sum / double(averaged * square * square);
  };
  for (Index y = 0; y < picture.rows; ++y)
    for (Index x = 0; x < picture.columns; ++x)
      for (Index c = 0; c < picture.channels; ++c)
        picture.pixels.push_back(
            static_cast<std::uint8_t>(std::lround(127.5 * (mean(y, x, c) + 1))));
  return picture;
}

inline std::string json(const Picture& picture) {
  std::string pixels;
  for (const std::uint8_t pixel : picture.pixels) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", static_cast<unsigned>(pixel));
    pixels += two;
  }
  return JsonLine()
      .add("rows", picture.rows).add("columns", picture.columns)
      .add("channels", picture.channels).add("label", picture.label)
      .add("prediction", picture.prediction).add("probability", picture.probability)
      .add("pixels", pixels).text();
}

// READING JSON ------------------------------------------------------------------------------------

/// A number; null reads as NaN.
inline double number_of(const Json& json) {
  return json.type() == Json::Type::null ? std::numeric_limits<double>::quiet_NaN()
                                         : json.number();
}
inline void read_json(const Json& json, double& value) { value = number_of(json); }
inline void read_json(const Json& json, Index& value) { value = json.integer(); }
inline void read_json(const Json& json, std::string& value) { value = json.string(); }

/// Errors    IoError unless rows, columns and channels are those of the pixels
inline void read_json(const Json& json, Picture& picture) {
  read_json(json.at("rows"), picture.rows), read_json(json.at("columns"), picture.columns);
  read_json(json.at("channels"), picture.channels);
  picture.label = static_cast<int>(json.at("label").integer());
  picture.prediction = static_cast<int>(json.at("prediction").integer());
  read_json(json.at("probability"), picture.probability);
  const std::string& text = json.at("pixels").string();
  const auto side = [](Index n) { return 1 <= n && n <= 4096; };
  require<IoError>(side(picture.rows) && side(picture.columns) &&
                       (picture.channels == 1 || picture.channels == 3) &&
                       text.find_first_not_of("0123456789abcdef") == std::string::npos &&
                       static_cast<Index>(text.size()) ==
                           2 * picture.rows * picture.columns * picture.channels,
                   "picture: there must be two hexadecimal digits for each pixel; got ",
                   text.size(), " for ", picture.rows, " x ", picture.columns, " x ",
                   picture.channels);
  const std::string digits = "0123456789abcdef";
  for (std::size_t i = 0; i < text.size(); i += 2)
    picture.pixels.push_back(
        static_cast<std::uint8_t>(16 * digits.find(text[i]) + digits.find(text[i + 1])));
}
template <class A, class B> void read_json(const Json& json, std::pair<A, B>& values) {
  require<IoError>(json.items().size() == 2, "pair: there must be two values; got ",
                   json.items().size());
  read_json(json.items()[0], values.first), read_json(json.items()[1], values.second);
}
template <class T> void read_json(const Json& json, std::vector<T>& values) {
  for (const Json& item : json.items()) {
    values.emplace_back();
    read_json(item, values.back());
  }
}
/// A member that may be missing.
template <class T> void read_optional(const Json& json, const std::string& key, T& value) {
  if (const Json* const found = json.find(key)) read_json(*found, value);
}

/// The lines of a JSON lines file, without a last one that is half written; none if there is no
/// such file.
inline std::vector<Json> read_lines(const std::string& path) {
  std::vector<Json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line) && !in.eof();)
    lines.push_back(Json::parse(line, path + ", line " + std::to_string(lines.size() + 1)));
  return lines;
}

// RESULT.JSON -------------------------------------------------------------------------------------

/// What a finished model did with its test data. What is empty is not shown.
struct RunResult {
  std::string title, subtitle;
  std::string examples = "images";                // what the model reads
  NamedValues summary, settings;                  // the most important first
  std::string tested = "test";                    // or "validation"
  double accuracy = std::numeric_limits<double>::quiet_NaN();  // of it
  std::vector<std::vector<double>> load;          // [routing][expert]: fraction of the choices
  std::vector<double> dropped;                    // [routing]: fraction of the choices
  std::vector<std::vector<Index>> confusion;      // [label][prediction]: counts
  std::vector<Picture> pictures;                  // some test images, in the order of showing
};

/// Errors    IoError if the file cannot be written
inline void write_result(const std::string& path, const RunResult& result) {
  JsonLinesFile(path, false)
      .write(JsonLine()
                 .add("title", result.title).add("subtitle", result.subtitle)
                 .add("examples", result.examples).add("summary", result.summary)
                 .add("settings", result.settings).add("tested", result.tested)
                 .add("accuracy", result.accuracy).add("load", result.load)
                 .add("dropped", result.dropped).add("confusion", result.confusion)
                 .add("pictures", result.pictures));
}

/// An empty result if there is no such file.
///
///   Errors    IoError if the file is damaged
inline RunResult read_result(const std::string& path) {
  RunResult result;
  const std::vector<Json> lines = read_lines(path);
  if (lines.empty()) return result;
  const Json& json = lines[0];
  read_optional(json, "title", result.title), read_optional(json, "subtitle", result.subtitle);
  read_optional(json, "examples", result.examples);
  read_optional(json, "summary", result.summary);
  read_optional(json, "settings", result.settings), read_optional(json, "tested", result.tested);
  read_optional(json, "accuracy", result.accuracy), read_optional(json, "load", result.load);
  read_optional(json, "dropped", result.dropped);
  read_optional(json, "confusion", result.confusion);
  read_optional(json, "pictures", result.pictures);
  require<IoError>(result.load.size() == result.dropped.size(), "result: ", path,
                   ": load and dropped must have a value for each routing; got ",
                   result.load.size(), ", ", result.dropped.size());
  for (const auto& row : result.load)
    require<IoError>(!row.empty() && row.size() == result.load[0].size(), "result: ", path,
                     ": load must be a matrix; got a row of ", row.size());
  for (const auto& row : result.confusion)
    require<IoError>(row.size() == result.confusion.size(), "result: ", path,
                     ": confusion must be a square of ", result.confusion.size(),
                     "; got a row of ", row.size());
  return result;
}

// ROUTES.JSONL ------------------------------------------------------------------------------------

/// What is watched: a batch that stays the same, in evaluation.
struct Watched {
  Tensor<float> loss, balance_loss;
  std::vector<Routing<float>> routings;
};

/// The inputs of that batch, for people: pictures, or words.
struct WatchedInputs {
  std::vector<Picture> pictures = {};
  Index patch_rows = 0, patch_columns = 0;         // patches of a picture; token 0 is none of them
  std::vector<std::vector<std::string>> words = {};  // [sequence][token], "" where padding
};

/// A token as text that a page can show: UTF-8 stays, any other byte is its hexadecimal number, and
/// a space is seen.
inline std::string visible(const std::string& word) {
  if (word == " ") return "\u2423";
  const unsigned byte = word.size() == 1 ? std::uint8_t(word[0]) : 'a';
  if (0x20 <= byte && byte < 0x7f) return word;
  char number[8];
  std::snprintf(number, sizeof number, "<%02X>", byte);
  return number;
}

/// The share of tokens whose first choice in one routing is another in the next.
template <class T> std::vector<double> changed_shares(const std::vector<Routing<T>>& routings) {
  std::vector<std::vector<std::int32_t>> expert;
  for (const Routing<T>& r : routings) expert.push_back(r.expert.to_vector());
  std::vector<double> shares;
  for (std::size_t t = 1; t < routings.size(); ++t) {
    const std::size_t K = static_cast<std::size_t>(routings[t].K);
    double changed = 0;
    for (std::size_t i = 0; i < expert[t].size(); i += K)
      changed += expert[t][i] == expert[t - 1][i] ? 0 : 1;
    shares.push_back(changed / double(routings[t].N));
  }
  return shares;
}

/// The norm of the gradient of all routers together; a gradient that is not there is 0.
inline double router_gradient_norm(const std::vector<Parameter<float>>& parameters) {
  double sum = 0;
  for (const Parameter<float>& p : parameters)
    if (p.name.find("moe.router") != std::string::npos && p.tensor.has_gradient())
      for (const float g : p.tensor.gradient().to_vector()) sum += double(g) * double(g);
  return std::sqrt(sum);
}

/// Looks at a model while it trains: before steps 0, n/24, 2n/24, ... of n, and after the last.
/// Each look writes a line to routes.jsonl and measures, by two small backward passes of its own,
/// how hard main loss and balance loss pull at the router. Training keeps its bits: a look draws no
/// random numbers, and leaves no gradient behind.
///
/// A model without routers is not looked at, and has no such file.
class RouteLog {
 public:
  static constexpr Index num_looks = 24;

  /// `look` runs the model on the watched batch.
  RouteLog(const RunFiles& run, Index first_step, Index num_steps, const EncoderConfig& encoder,
           const std::vector<Parameter<float>>& parameters, double balance_weight,
           WatchedInputs inputs, std::function<Watched()> look)
      : num_steps_(num_steps), parameters_(parameters), balance_weight_(balance_weight),
        inputs_(std::move(inputs)), look_(std::move(look)) {
    for (Index i = 0; i < encoder.blocks; ++i)
      if (encoder.routes(i)) blocks_.push_back(i);
    const bool is_continued = first_step > 0;
    if (!is_continued) std::remove(run.result().c_str()), std::remove(run.routes().c_str());
    if (blocks_.empty()) return;
    if (is_continued) cut_metrics(run.routes(), first_step);
    file_ = std::make_unique<JsonLinesFile>(run.routes(), is_continued);
  }

  bool is_due(Index step) const {
    return step == 0 || step * num_looks / num_steps_ != (step - 1) * num_looks / num_steps_;
  }

  /// To be called before the gradients of a step are computed. Gives what metrics.jsonl gets of it:
  /// router_gradient_main and router_gradient_balance, the latter times the weight of that loss.
  JsonLine before_step(Index step) const {
    if (!file_ || !is_due(step)) return {};
    zero_gradients();
    Watched watched = look_();
    const Index sequences = num_sequences();
    file_->write(counts(step, sequences, watched.routings));
    watched.loss.backward();
    const double main = router_gradient_norm(parameters_);
    zero_gradients();
    watched = look_();  // the first graph is gone
    watched.balance_loss.backward();
    const double balance = balance_weight_ * router_gradient_norm(parameters_);
    zero_gradients();
    return JsonLine().add("router_gradient_main", main).add("router_gradient_balance", balance);
  }

  /// To be called when training ends or stops after so many steps: writes every choice, too.
  void finish(Index step) const {
    if (!file_) return;
    const NoGrad no_graph;
    const std::vector<Routing<float>> routings = look_().routings;
    JsonLine line = counts(step, num_sequences(), routings);
    std::vector<JsonLine> choices;
    for (const Routing<float>& r : routings)
      choices.push_back(JsonLine()
                            .add("expert", r.expert.to_vector())
                            .add("slot", r.slot.to_vector())
                            .add("gate", r.gate.to_vector()));
    line.add("token", routings[0].token.to_vector()).add("choices", choices)
        .add("words", inputs_.words).add("pictures", inputs_.pictures)
        .add("patch_rows", inputs_.patch_rows).add("patch_columns", inputs_.patch_columns);
    file_->write(line);
  }

 private:
  Index num_sequences() const {
    return static_cast<Index>(std::max(inputs_.words.size(), inputs_.pictures.size()));
  }
  void zero_gradients() const {
    for (const Parameter<float>& p : parameters_) p.tensor.zero_gradient();
  }
  JsonLine counts(Index step, Index sequences, const std::vector<Routing<float>>& routings) const {
    std::vector<std::vector<std::int32_t>> load, kept;
    std::vector<double> entropy;
    for (const Routing<float>& r : routings) {
      load.push_back(r.load.to_vector()), kept.push_back(r.kept.to_vector());
      entropy.push_back(router_entropy(r));
    }
    const Routing<float>& r = routings.at(0);
    return JsonLine()
        .add("step", step).add("sequences", sequences).add("tokens", r.N).add("top_k", r.K)
        .add("experts", r.E).add("capacity", r.C).add("blocks", blocks_).add("load", load)
        .add("kept", kept).add("entropy", entropy).add("changed", changed_shares(routings));
  }

  Index num_steps_;
  std::vector<Parameter<float>> parameters_;
  double balance_weight_;
  WatchedInputs inputs_;
  std::function<Watched()> look_;
  std::vector<Index> blocks_;
  std::unique_ptr<JsonLinesFile> file_;
};

/// One look: what each expert was asked for and what it had room for.
struct Look {
  Index step = 0, sequences = 0, tokens = 0, top_k = 0, experts = 0, capacity = 0;
  std::vector<Index> blocks = {};              // [routing]: where it is
  std::vector<std::vector<Index>> load = {}, kept = {};  // [routing][expert]: choices before and
                                                         // after dropping
  std::vector<double> entropy = {};            // [routing]: of the router's probabilities, in nats
  std::vector<double> changed = {};            // [routing - 1]: as changed_shares
};

/// What one routing does with every choice n*K + k.
struct Choices {
  std::vector<Index> expert, slot;
  std::vector<double> gate;
};

struct Routes {
  std::vector<Look> looks;
  std::vector<Choices> choices;  // of the last look; empty if it has none
  std::vector<Index> token;      // (N): its place b*T + t in the batch
  WatchedInputs inputs;

  bool has_choices() const { return !choices.empty(); }
  const Look& last() const { return looks.back(); }
  /// T, with padding.
  Index tokens_per_sequence() const {
    return inputs.words.empty() ? inputs.patch_rows * inputs.patch_columns + 1
                                : static_cast<Index>(inputs.words[0].size());
  }
};

namespace detail {

inline Look read_look(const Json& json, const std::string& where) {
  Look look;
  read_json(json.at("step"), look.step), read_json(json.at("sequences"), look.sequences);
  read_json(json.at("tokens"), look.tokens), read_json(json.at("top_k"), look.top_k);
  read_json(json.at("experts"), look.experts), read_json(json.at("capacity"), look.capacity);
  read_json(json.at("blocks"), look.blocks), read_json(json.at("load"), look.load);
  read_json(json.at("kept"), look.kept), read_json(json.at("entropy"), look.entropy);
  read_json(json.at("changed"), look.changed);
  const std::size_t R = look.blocks.size();
  require<IoError>(R >= 1 && look.load.size() == R && look.kept.size() == R &&
                       look.entropy.size() == R && look.changed.size() == R - 1,
                   "routes: ", where, ": load, kept, entropy and changed must have a value for "
                   "each of the ", R, " routings, the last one less; got ", look.load.size(), ", ",
                   look.kept.size(), ", ", look.entropy.size(), ", ", look.changed.size());
  require<IoError>(look.sequences >= 1 && look.tokens >= 1 && look.capacity >= 1 &&
                       1 <= look.top_k && look.top_k <= look.experts,
                   "routes: ", where, ": sequences, tokens and capacity must be positive, and "
                   "top_k in [1, experts]; got ", look.sequences, ", ", look.tokens, ", ",
                   look.capacity, ", ", look.top_k, ", ", look.experts);
  for (const auto* matrix : {&look.load, &look.kept})
    for (const std::vector<Index>& row : *matrix)
      require<IoError>(static_cast<Index>(row.size()) == look.experts, "routes: ", where,
                       ": load and kept must have a value for each of the ", look.experts,
                       " experts; got ", row.size());
  return look;
}

inline void read_choices(const Json& json, const std::string& where, Routes& routes) {
  const Look& look = routes.last();
  const Index N = look.tokens, K = look.top_k;
  WatchedInputs& inputs = routes.inputs;
  read_optional(json, "words", inputs.words), read_optional(json, "pictures", inputs.pictures);
  read_optional(json, "patch_rows", inputs.patch_rows);
  read_optional(json, "patch_columns", inputs.patch_columns);
  for (const Json& one : json.at("choices").items()) {
    Choices c;
    read_json(one.at("expert"), c.expert), read_json(one.at("slot"), c.slot);
    read_json(one.at("gate"), c.gate);
    const auto size = static_cast<std::size_t>(N * K);
    require<IoError>(c.expert.size() == size && c.slot.size() == size && c.gate.size() == size,
                     "routes: ", where, ": expert, slot and gate must have N * K = ", size,
                     " values; got ", c.expert.size(), ", ", c.slot.size(), ", ", c.gate.size());
    for (std::size_t i = 0; i < size; ++i)
      require<IoError>(0 <= c.expert[i] && c.expert[i] < look.experts && -1 <= c.slot[i] &&
                           c.slot[i] < look.capacity,
                       "routes: ", where, ": experts must lie in [0, ", look.experts,
                       ") and slots in [-1, ", look.capacity, "); got ", c.expert[i], ", ",
                       c.slot[i], " for choice ", i);
    routes.choices.push_back(std::move(c));
  }
  require<IoError>(routes.choices.size() == look.blocks.size(), "routes: ", where,
                   ": there must be choices for each of the ", look.blocks.size(),
                   " routings; got ", routes.choices.size());
  require<IoError>(
      inputs.words.empty() != inputs.pictures.empty() &&
          static_cast<Index>(std::max(inputs.words.size(), inputs.pictures.size())) ==
              look.sequences,
      "routes: ", where, ": there must be words or a picture for each of the ", look.sequences,
      " sequences; got ", inputs.words.size(), ", ", inputs.pictures.size());
  for (const Picture& picture : inputs.pictures)
    require<IoError>(inputs.patch_rows >= 1 && inputs.patch_columns >= 1 &&
                         picture.rows % inputs.patch_rows == 0 &&
                         picture.columns % inputs.patch_columns == 0,
                     "routes: ", where, ": patches must divide the picture of ", picture.rows,
                     " x ", picture.columns, "; got ", inputs.patch_rows, " x ",
                     inputs.patch_columns);
  const Index T = routes.tokens_per_sequence();
  for (const auto& sequence : inputs.words)
    require<IoError>(static_cast<Index>(sequence.size()) == T, "routes: ", where,
                     ": all sequences must have ", T, " words; got ", sequence.size());
  read_optional(json, "token", routes.token);
  if (routes.token.empty() && N == look.sequences * T) {
    routes.token.resize(static_cast<std::size_t>(N));
    std::iota(routes.token.begin(), routes.token.end(), Index(0));
  }
  require<IoError>(static_cast<Index>(routes.token.size()) == N, "routes: ", where,
                   ": there must be a place for each of the ", N, " tokens of ", look.sequences,
                   " x ", T, "; got ", routes.token.size());
  for (const Index place : routes.token)
    require<IoError>(0 <= place && place < look.sequences * T, "routes: ", where,
                     ": places must lie in [0, ", look.sequences * T, "); got ", place);
}

}  // namespace detail

/// Reads routes.jsonl; no looks if there is no such file.
///
///   Errors    IoError that names the line and the rule if the file is damaged
inline Routes read_routes(const std::string& path) {
  Routes routes;
  const std::vector<Json> lines = read_lines(path);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string where = path + ", line " + std::to_string(i + 1);
    routes.looks.push_back(detail::read_look(lines[i], where));
    const Look &first = routes.looks[0], &look = routes.last();
    require<IoError>(look.blocks == first.blocks && look.experts == first.experts, "routes: ",
                     where, ": blocks and experts must be those of the first line; got ",
                     look.blocks.size(), " blocks, ", look.experts, " experts");
    if (i + 1 == lines.size() && lines[i].find("choices"))
      detail::read_choices(lines[i], where, routes);
  }
  return routes;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_RUN_RECORD_HPP
