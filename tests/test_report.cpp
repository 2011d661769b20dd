// Tests for the report of a run: what a run records, and the page that is made of it.
#include "examples/support/run_record.hpp"
#include "examples/support/run_report.hpp"
#include "examples/support/vision_report.hpp"

#include <doctest/doctest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>

using namespace widenet;
using namespace widenet::support;

namespace {

/// A run in a folder that goes when the test ends.
struct Run {
  RunFiles files{(std::filesystem::temp_directory_path() /
                  ("widenet_test_report_" + std::to_string(getpid()))).string()};
  Run() { std::filesystem::create_directories(files.folder); }
  ~Run() { std::filesystem::remove_all(files.folder); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t i = text.find(part); i != std::string::npos; i = text.find(part, i + 1)) ++n;
  return n;
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const IoError& error) {
    return error.what();
  }
  return "no error";
}

/// The text with one part replaced, which must be there.
std::string with(std::string text, const std::string& part, const std::string& other) {
  const std::size_t at = text.find(part);
  REQUIRE(at != std::string::npos);
  return text.replace(at, part.size(), other);
}

VisionConfig tiny_config() {
  VisionConfig config;
  config.image_height = config.image_width = 4, config.classes = 3;
  config.encoder.width = 8, config.encoder.heads = 2, config.encoder.expert_hidden = 7;
  config.encoder.experts = 3, config.encoder.blocks = 2;
  return config;
}

Tensor<float> images(Index n) { return Tensor<float>::uniform({n, 1, 4, 4}, Rng(1), -1, 1); }
const std::vector<std::int32_t> labels = {2, 0, 1};

struct TinyRun {
  VisionModel<float> model{tiny_config(), Rng(0)};
  mutable AdamW<float> optimizer{model.parameters(), 1e-2};
  Tensor<float> watched = images(3);

  RouteLog log(const RunFiles& run, Index first_step, Index num_steps) const {
    return {run, first_step, num_steps, model.config().encoder, model.parameters(), 0.01,
            watched_images(model.config(), watched, labels), [this] {
              const auto out = model.forward(watched);
              return Watched{cross_entropy(out.logits, labels), out.balance_loss, out.routings};
            }};
  }
  /// Trains from one step to another and records it, or only trains.
  void train(const RunFiles* run, Index from, Index to, Index num_steps) const {
    const RouteLog* routes = nullptr;
    std::unique_ptr<RouteLog> own;
    std::unique_ptr<JsonLinesFile> metrics;
    if (run) {
      own = std::make_unique<RouteLog>(log(*run, from, num_steps));
      routes = own.get();
      metrics = std::make_unique<JsonLinesFile>(run->metrics(), from > 0);
    }
    for (Index step = from; step < to; ++step) {
      const JsonLine look = routes ? routes->before_step(step) : JsonLine();
      const auto out = model.forward(images(3), Training{Rng(5), step});
      const auto loss = cross_entropy(out.logits, labels);
      optimizer.zero_grad();
      total_loss(loss, out.balance_loss).backward();
      optimizer.step();
      if (metrics)
        metrics->write(JsonLine().add("step", step).add("loss", loss.item())
                           .add("balance_loss", out.balance_loss.item())
                           .add("dropped", mean_dropped(out.routings))
                           .add("accuracy", accuracy(out.logits, labels)).add(look));
    }
    if (routes) routes->finish(to);
    if (run) save_checkpoint(run->model(), model, optimizer, {to, 0, {}});
  }
  std::vector<float> weights() const {
    std::vector<float> all;
    for (const Parameter<float>& p : model.parameters()) {
      const std::vector<float> values = p.tensor.to_vector();
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }
  RunResult result() const {
    Evaluation evaluation(3);
    evaluation.add(model.config(), watched, labels, model.forward(watched));
    RunResult result;
    result.title = "A <tiny> run", result.summary = {{"test accuracy", "33 %"}};
    result.settings = {{"steps", "6"}};
    evaluation.add_to(result);
    return result;
  }
};

/// A whole run of six steps.
std::string page_of_tiny_run(const Run& run) {
  const TinyRun tiny;
  tiny.train(&run.files, 0, 6, 6);
  write_result(run.files.result(), tiny.result());
  return report_html(report_of_run(run.files));
}

/// Three tokens and a padded one in two texts, two experts, two blocks, one choice each.
const char* const words_line =
    "{\"step\": 7, \"sequences\": 2, \"tokens\": 3, \"top_k\": 1, \"experts\": 2, \"capacity\": 2, "
    "\"blocks\": [1, 3], \"load\": [[3, 0], [1, 2]], \"kept\": [[2, 0], [1, 2]], "
    "\"entropy\": [0.5, 0.25], \"changed\": [0.6666666666666666], \"token\": [0, 1, 2], "
    "\"choices\": [{\"expert\": [0, 0, 0], \"slot\": [0, 1, -1], \"gate\": [0.75, 0.5, 0.875]}, "
    "{\"expert\": [0, 1, 1], \"slot\": [0, 0, 1], \"gate\": [0.625, 0.5, 1]}], "
    "\"words\": [[\"a\", \"<b>\"], [\"a\", \"\"]]}\n";

std::string routes_error(const std::string& text) {
  const Run run;
  write_file(run.files.routes(), text);
  const std::string error = error_of([&] { read_routes(run.files.routes()); });
  const std::size_t at = error.find(run.files.folder + "/");
  return at == std::string::npos ? error : with(error, run.files.folder + "/", "");
}

}  // namespace

TEST_SUITE("support: record of a run") {
  TEST_CASE("looking at a model changes no bit of its training") {
    const Run run;
    const TinyRun watched, alone;
    watched.train(&run.files, 0, 6, 6);
    alone.train(nullptr, 0, 6, 6);
    CHECK(watched.weights() == alone.weights());
    watched.log(run.files, 6, 6).before_step(6);
    for (const Parameter<float>& p : watched.model.parameters())
      CHECK_MESSAGE(!p.tensor.has_gradient(), p.name);
  }

  TEST_CASE("a run that stops and goes on records the same lines") {
    std::string whole_routes, whole_metrics;
    {
      const Run run;
      const TinyRun tiny;
      tiny.train(&run.files, 0, 30, 30);
      whole_routes = read_file(run.files.routes()), whole_metrics = read_file(run.files.metrics());
    }
    for (const Index stop : {5, 10, 29}) {
      const Run run;
      const TinyRun tiny;
      tiny.train(&run.files, 0, stop, 30);
      CHECK(count(read_file(run.files.routes()), "\"choices\"") == 1);
      tiny.train(&run.files, stop, 30, 30);
      CHECK((read_file(run.files.routes()) == whole_routes));  // which are long
      CHECK((read_file(run.files.metrics()) == whole_metrics));
    }
    CHECK(count(whole_routes, "\n") == 25);  // 24 looks and the last
    CHECK(count(whole_metrics, "router_gradient_main") == 24);
    CHECK(count(whole_routes, "\"choices\"") == 1);
  }

  TEST_CASE("a new run takes away what the one before left") {
    const Run run;
    const TinyRun tiny;
    tiny.train(&run.files, 0, 3, 3);
    write_result(run.files.result(), tiny.result());
    tiny.log(run.files, 0, 3);
    CHECK(!std::filesystem::exists(run.files.result()));
    CHECK(read_file(run.files.routes()) == "");
  }

  TEST_CASE("the gradients are those of each loss alone") {
    const Run run;
    const TinyRun tiny;
    const Json line = Json::parse(tiny.log(run.files, 0, 3).before_step(0).text(), "line");
    const auto norm = [&](bool is_main) {
      const auto out = tiny.model.forward(tiny.watched);
      tiny.optimizer.zero_grad();
      is_main ? cross_entropy(out.logits, labels).backward() : out.balance_loss.backward();
      double sum = 0;
      for (const Parameter<float>& p : tiny.model.parameters())
        if (p.name == "shared.moe.router.weight")
          for (const float g : p.tensor.gradient().to_vector()) sum += double(g) * double(g);
      tiny.optimizer.zero_grad();
      return std::sqrt(sum);
    };
    CHECK(norm(true) > 0);
    CHECK(line.at("router_gradient_main").number() == norm(true));
    CHECK(line.at("router_gradient_balance").number() == 0.01 * norm(false));
  }

  TEST_CASE("what is recorded is what the model did") {
    const Run run;
    const TinyRun tiny;
    tiny.train(&run.files, 0, 6, 6);
    const auto out = tiny.model.forward(tiny.watched);
    const Routes routes = read_routes(run.files.routes());
    CHECK(routes.looks.size() == 7);
    const Look& look = routes.last();
    CHECK(look.step == 6);
    CHECK(look.sequences == 3);
    CHECK(look.tokens == 15);
    CHECK(look.blocks == std::vector<Index>{0, 1});
    CHECK(look.changed == changed_shares(out.routings));
    CHECK(routes.token.size() == 15);
    for (std::size_t t = 0; t < 2; ++t) {
      const Routing<float>& r = out.routings[t];
      const std::vector<std::int32_t> load = r.load.to_vector(), slot = r.slot.to_vector(),
                                      expert = r.expert.to_vector();
      const std::vector<float> gate = r.gate.to_vector();
      CHECK(look.load[t] == std::vector<Index>(load.begin(), load.end()));
      CHECK(look.entropy[t] == router_entropy(r));
      CHECK(routes.choices[t].slot == std::vector<Index>(slot.begin(), slot.end()));
      CHECK(routes.choices[t].expert == std::vector<Index>(expert.begin(), expert.end()));
      for (std::size_t i = 0; i < gate.size(); ++i)
        CHECK(float(routes.choices[t].gate[i]) == gate[i]);  // the very bits
    }
    CHECK(routes.inputs.pictures[0].label == 2);
    CHECK(routes.inputs.patch_rows == 2);
  }

  TEST_CASE("a token changes its expert if its first choice is another") {
    std::vector<Routing<float>> routings(3);
    const std::vector<std::vector<std::int32_t>> experts = {
        {0, 1, 1, 0, 2, 1}, {0, 2, 1, 2, 1, 2}, {1, 0, 2, 0, 2, 0}};
    for (std::size_t t = 0; t < 3; ++t) {
      routings[t].N = 3, routings[t].K = 2;
      routings[t].expert = Buffer<std::int32_t>(experts[t]);
    }
    CHECK(changed_shares(routings) == std::vector<double>{1.0 / 3, 1});
    routings.resize(1);
    CHECK(changed_shares(routings).empty());
  }

  TEST_CASE("a model without experts has no routes") {
    const Run run;
    VisionConfig config = tiny_config();
    config.encoder.experts = 0;
    const VisionModel<float> model(config, Rng(0));
    const RouteLog log(run.files, 0, 3, config.encoder, model.parameters(), 0.01, {}, [] {
      return Watched{};
    });
    CHECK(log.before_step(0).text() == "{}");
    log.finish(3);
    const RouteLog again(run.files, 2, 3, config.encoder, model.parameters(), 0.01, {}, [] {
      return Watched{};
    });
    CHECK(!std::filesystem::exists(run.files.routes()));
  }

  TEST_CASE("a picture has the mean of each square of pixels") {
    VisionConfig config;
    config.image_height = 2, config.image_width = 130, config.patch = 2;
    std::vector<float> image(260, -1.0f);
    image[0] = image[131] = 1;  // two of the four pixels of the first square
    const Picture picture = picture_of(config, image.data());
    CHECK(picture.rows == 1);
    CHECK(picture.columns == 65);
    CHECK(picture.pixels[0] == 128);
    CHECK(picture.pixels[1] == 0);
    config.image_width = 2, config.channels = 3;
    const std::vector<float> colour = {1, 1, 1, 1, -1, -1, -1, -1, 0, 0, 0, 0};
    const Picture small = picture_of(config, colour.data());
    CHECK(small.channels == 3);
    CHECK(std::vector<std::uint8_t>(small.pixels.begin(), small.pixels.begin() + 3) ==
          std::vector<std::uint8_t>{255, 0, 128});
  }

  TEST_CASE("results read back as they were") {
    const Run run;
    RunResult result = TinyRun().result();
    result.pictures[0].pixels[0] = 171;
    write_result(run.files.result(), result);
    const RunResult back = read_result(run.files.result());
    CHECK(back.title == result.title);
    CHECK(back.summary == result.summary);
    CHECK(back.load == result.load);
    CHECK(back.dropped == result.dropped);
    CHECK(back.confusion == result.confusion);
    CHECK(back.accuracy == result.accuracy);
    CHECK(back.pictures.size() == 3);
    CHECK(back.pictures[0].pixels == result.pictures[0].pixels);
    CHECK(back.pictures[0].probability == result.pictures[0].probability);
    CHECK(read_result("nowhere").title == "");
    const std::string text = read_file(run.files.result());
    write_file(run.files.result(), with(text, "\"pixels\": \"ab", "\"pixels\": \"a"));
    CHECK(error_of([&] { read_result(run.files.result()); }) ==
          "widenet: picture: there must be two hexadecimal digits for each pixel; got 31 for 4 x 4 "
          "x 1");
    write_file(run.files.result(), with(text, "\"dropped\": [", "\"dropped\": [0, "));
    CHECK(error_of([&] { read_result(run.files.result()); }) ==
          "widenet: result: " + run.files.result() +
              ": load and dropped must have a value for each routing; got 2, 3");
  }

  TEST_CASE("damaged routes are refused with the line and the rule") {
    CHECK(routes_error(words_line) == "no error");
    CHECK(routes_error("") == "no error");
    CHECK(routes_error(std::string(words_line) + "{\"step\": 8, \"half") == "no error");  // killed
    CHECK(routes_error("{\"step\": 1}\n") ==
          "widenet: json: routes.jsonl, line 1: an object must have the key \"sequences\"; got one "
          "without");
    CHECK(routes_error("{\"step\": 1\n") ==
          "widenet: json: routes.jsonl, line 1: offset 10: a comma or } must follow a member");
    CHECK(routes_error(with(words_line, "[0.5, 0.25]", "[0.5]")) ==
          "widenet: routes: routes.jsonl, line 1: load, kept, entropy and changed must have a "
          "value for each of the 2 routings, the last one less; got 2, 2, 1, 1");
    CHECK(routes_error(with(words_line, "\"top_k\": 1", "\"top_k\": 3")) ==
          "widenet: routes: routes.jsonl, line 1: sequences, tokens and capacity must be positive, "
          "and top_k in [1, experts]; got 2, 3, 2, 3, 2");
    CHECK(routes_error(with(words_line, "[3, 0]", "[3]")) ==
          "widenet: routes: routes.jsonl, line 1: load and kept must have a value for each of the "
          "2 experts; got 1");
    CHECK(routes_error(with(words_line, "[0, 1, -1]", "[0, 1, 2]")) ==
          "widenet: routes: routes.jsonl, line 1: experts must lie in [0, 2) and slots in [-1, 2); "
          "got 0, 2 for choice 2");
    CHECK(routes_error(with(words_line, "[0.75, 0.5, 0.875]", "[0.75]")) ==
          "widenet: routes: routes.jsonl, line 1: expert, slot and gate must have N * K = 3 "
          "values; got 3, 3, 1");
    CHECK(routes_error(with(words_line, "[\"a\", \"\"]", "[\"a\"]")) ==
          "widenet: routes: routes.jsonl, line 1: all sequences must have 2 words; got 1");
    CHECK(routes_error(with(words_line, ", [\"a\", \"\"]", "")) ==
          "widenet: routes: routes.jsonl, line 1: there must be words or a picture for each of the "
          "2 sequences; got 1, 0");
    CHECK(routes_error(with(words_line, "\"token\": [0, 1, 2]", "\"token\": [0, 1, 4]")) ==
          "widenet: routes: routes.jsonl, line 1: places must lie in [0, 4); got 4");
    CHECK(routes_error(with(words_line, "\"token\": [0, 1, 2]", "\"token\": []")) ==
          "widenet: routes: routes.jsonl, line 1: there must be a place for each of the 3 tokens "
          "of 2 x 2; got 0");
    const std::string other = with(words_line, "\"blocks\": [1, 3]", "\"blocks\": [0, 3]");
    CHECK(routes_error(words_line + other) ==
          "widenet: routes: routes.jsonl, line 2: blocks and experts must be those of the first "
          "line; got 2 blocks, 2 experts");
  }

  TEST_CASE("bytes that are no text are shown as numbers") {
    CHECK(visible("word") == "word");
    CHECK(visible(" ") == "\u2423");
    CHECK(visible("\n") == "<0A>");
    CHECK(visible("\xC3") == "<C3>");
    CHECK(visible("caf\u00e9") == "caf\u00e9");
  }
}

TEST_SUITE("support: report of a run") {
  TEST_CASE("sentences state what was measured") {
    CHECK(movement("Loss", {2.3, 1, std::nan("")}) == "Loss falls from 2.30 to 1.00");
    CHECK(movement("Share", {0.1, 0.25}, true) ==
          "Share rises from 10.0\u202f% to 25.0\u202f%");
    CHECK(movement("Loss", {1.001, 1.002}) == "Loss stays at 1.00");
    CHECK(movement("Loss", {std::nan("")}) == "Loss was never finite");
    CHECK(count_of(1, "token") == "1 token");
    CHECK(ordinal(1) + ordinal(2) + ordinal(3) + ordinal(4) + ordinal(11) == "1st2nd3rd4th11th");
    CHECK(count_of(1200, "token") == "1,200 tokens");
    CHECK(some_of(5, 3) == std::vector<std::size_t>{0, 2, 4});
    CHECK(some_of(2, 3) == std::vector<std::size_t>{0, 1});
    CHECK(some_of(7, 1) == std::vector<std::size_t>{6});
  }

  TEST_CASE("all curves of a file are read at once") {
    const Run run;
    write_file(run.files.metrics(),
               "{\"step\": 0, \"loss\": 2, \"name\": \"x\"}\n{\"step\": 1, \"loss\": null}\n{\"st");
    const Metrics metrics = read_metrics(run.files.metrics());
    CHECK(metrics.at("loss").step == std::vector<double>{0, 1});
    CHECK(std::isnan(metrics.at("loss").value[1]));
    CHECK(!has_curve(metrics, "name"));
    CHECK(read_metrics("nowhere").empty());
    write_file(run.files.metrics(), "{\"loss\": 2}\n");
    CHECK(error_of([&] { read_metrics(run.files.metrics()); }) ==
          "widenet: json: " + run.files.metrics() +
              ", line 1: an object must have the key \"step\"; got one without");
  }

  TEST_CASE("the queue of an expert goes by slots, and the dropped come last") {
    const Choices choices{{0, 1, 0, 0, 1}, {2, 0, -1, 0, 1}, {1, 1, 1, 1, 1}};
    CHECK(queue_of(choices, 0) == std::vector<std::size_t>{3, 0, 2});
    CHECK(queue_of(choices, 1) == std::vector<std::size_t>{1, 4});
    CHECK(queue_of(choices, 2).empty());
  }

  TEST_CASE("an expert likes what it kept with the highest gates, each word once") {
    const Run run;
    write_file(run.files.routes(), words_line);
    const Routes routes = read_routes(run.files.routes());
    const std::vector<Liked> first = liked_by(routes, 0, 10), second = liked_by(routes, 1, 10);
    REQUIRE(first.size() == 2);
    CHECK(first[0].place == 0);  // "a" with 0.75 in block 1; the 0.875 was dropped
    CHECK(first[0].gate == 0.75);
    CHECK(first[0].block == 1);
    CHECK(first[1].gate == 0.5);
    REQUIRE(second.size() == 2);
    CHECK(second[0].place == 2);
    CHECK(second[0].block == 3);
    CHECK(liked_by(routes, 1, 1).size() == 1);
  }

  TEST_CASE("words, drops and blocks stand where they belong") {
    const Run run;
    write_file(run.files.routes(), words_line);
    write_file(run.files.metrics(), "{\"step\": 0, \"loss\": 2}\n");
    const std::string html = report_html(report_of_run(run.files));
    CHECK(count(html, "The longest queue: expert 0 of block 1 is asked 3 times and has 2 slots") ==
          1);
    CHECK(count(html, "Expert 0: 3 asked, 1 dropped. Expert 1: 0 asked, 0 dropped.") == 2);
    CHECK(count(html, "Of 3 tokens, 1 keeps the same first expert through all 2 blocks") == 1);
    CHECK(count(html, "66.7\u202f% of tokens change their first expert from block 1 to 3<") == 1);
    CHECK(count(html, "Expert 1 gets the highest gate, 1.00") == 1);
    CHECK(count(html, "class=\"t0 e0 lost\">a<sub>\u00d7</sub>") == 1);
    CHECK(count(html, "class=\"t1 e0\">&lt;b&gt;<sub>0</sub>") == 1);
    CHECK(count(html, "class=\"t1 e1\">&lt;b&gt;<sub>1</sub>") == 1);
    CHECK(count(html, "<b class=\"e0\">0</b></td><td>0.88</td><td class=\"lost\">none</td>") == 1);
    CHECK(count(html, "aria-label=\"block 3\"") == 2);  // once for each text
    CHECK(count(html, "id=\"i1t1\"") == 0);             // padding is no token
  }

  TEST_CASE("padding is no token, even if it is routed") {
    const Run run;
    write_file(run.files.routes(), with(words_line, "\"token\": [0, 1, 2]",
                                        "\"token\": [0, 1, 3]"));
    const Routes routes = read_routes(run.files.routes());
    const StepperSize size = stepper_size(routes);
    CHECK(StepperInput(routes, size, 0).row == std::vector<std::int64_t>{0, 1});
    CHECK(StepperInput(routes, size, 1).row == std::vector<std::int64_t>{-1, -1});
    CHECK(liked_by(routes, 1, 10).size() == 1);
  }

  TEST_CASE("a whole run has every figure") {
    const Run run;
    const std::string html = page_of_tiny_run(run);
    CHECK(html.size() < 2u << 20);
    CHECK(count(html, "<h1>A &lt;tiny&gt; run</h1>") == 1);
    for (const char* part :
         {"<h3>Loss ", "right on images never seen", "<h3>Balance loss ", "dropped choices",
          "<h3>Router entropy ", " pulls at the router ", "<h3>The busiest expert of a block has ",
          "<h3>In the end shares go from ", "same first expert through all 2 blocks",
          "gets the highest gate", " of tokens change their first expert from block ",
          "\u03b3 of the LayerNorms at attention diverge by ",
          "\u03b2 of the LayerNorms at the experts diverge by ", "Confusion matrix",
          "<h2>Settings</h2>"})
      CHECK_MESSAGE(count(html, part) >= 1, part);
    CHECK(count(html, "class=\"empty wide\"") == 0);
    for (const char* part : {"http://", "https://", "src=", "url(", "@import", "<link", "nan\"",
                             "inf\"", "NaN", "<script>alert"})
      CHECK_MESSAGE(count(html, part) == 0, part);
    CHECK(count(html, "href=") == count(html, "href=\"data:image/bmp;base64,"));
    CHECK(count(html, "role=\"img\"") == count(html, "<svg "));
    CHECK(count(html, "<svg ") == count(html, "<desc>"));
    CHECK(count(html, "class=\"patches\" style=\"aspect-ratio:4/4;") == 3 * 2);  // images, blocks
    CHECK(count(html, "<table class=\"way ") == 3 * 5);
    CHECK(count(html, "checked=\"checked\"") == 1 + 3 * 2);
  }

  TEST_CASE("the divergence is the header's") {
    const Run run;
    const std::string html = page_of_tiny_run(run);
    const auto model = load_vision_model<float>(run.files.model());
    for (const char* name : {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"})
      CHECK_MESSAGE(count(html, " diverge by " +
                                    fixed(layer_norm_divergence(model.parameters(), name), 4)) >= 1,
                    name);
  }

  TEST_CASE("what a run lacks is named, not an error") {
    const Run run;
    page_of_tiny_run(run);
    std::filesystem::remove(run.files.routes());
    std::string html = report_html(report_of_run(run.files));
    CHECK(count(html, "there is no routes.jsonl in this folder") == 2);
    CHECK(count(html, "<h3>In the end shares go from ") == 1);
    std::filesystem::remove(run.files.result());
    html = report_html(report_of_run(run.files));
    CHECK(count(html, "there is no result.json in this folder") == 1);
    CHECK(count(html, "<h1>A run in " + run.files.folder + "</h1>") == 1);
    std::filesystem::remove(run.files.model());
    html = report_html(report_of_run(run.files));
    CHECK(count(html, "there is no model.safetensors in this folder") == 1);
    CHECK(count(html, "<h3>Loss ") == 1);
    write_file(run.files.metrics(), "{\"step\": 0, \"loss\": 2}\n");  // of an earlier version
    html = report_html(report_of_run(run.files));
    CHECK(count(html, "metrics.jsonl has no router_gradient_main") == 1);
    std::filesystem::remove(run.files.metrics());
    CHECK(error_of([&] { report_of_run(run.files); }) ==
          "widenet: report: " + run.files.folder +
              ": a run must have left model.safetensors or metrics.jsonl; got neither");
  }

  TEST_CASE("a damaged checkpoint is an error") {
    const Run run;
    page_of_tiny_run(run);
    const std::string bytes = read_file(run.files.model());
    write_file(run.files.model(), bytes.substr(0, bytes.size() - 1));
    CHECK(error_of([&] { report_of_run(run.files); }) != "no error");
    SafeTensors other;
    other.add("x", Shape{1}, std::vector<float>{1}.data());
    write_safetensors(run.files.model(), other);
    CHECK(error_of([&] { report_of_run(run.files); }) ==
          "widenet: report: " + run.files.model() +
              ": the metadata must have \"config\"; got none");
  }

  TEST_CASE("a model without experts has a page without them") {
    const Run run;
    VisionConfig config = tiny_config();
    config.encoder.experts = 0;
    const VisionModel<float> model(config, Rng(0));
    const AdamW<float> optimizer(model.parameters(), 1e-3);
    save_checkpoint(run.files.model(), model, optimizer, {0, 0, {}});
    write_file(run.files.metrics(), "{\"step\": 0, \"loss\": 2, \"balance_loss\": 0}\n");
    const std::string html = report_html(report_of_run(run.files));
    CHECK(count(html, "this model has none; nothing is routed.") == 1);
    CHECK(count(html, "Balance loss") == 0);
    CHECK(count(html, "of the LayerNorms at attention diverge by 0.0000") == 2);
  }

  TEST_CASE("a large model fits into two megabytes") {
    Routes routes;
    Look look{9, 2, 2 * 197, 2, 8, 200};
    for (Index b = 0; b < 32; ++b) look.blocks.push_back(b);
    look.load.assign(32, std::vector<Index>(8, 99)), look.kept = look.load;
    look.entropy.assign(32, 1.0), look.changed.assign(31, 0.5);
    routes.looks.assign(25, look);
    for (Index n = 0; n < look.tokens; ++n) routes.token.push_back(n);
    Choices choices;
    for (Index i = 0; i < look.tokens * 2; ++i) {
      choices.expert.push_back(i % 8), choices.slot.push_back(i / 8 % 200);
      choices.gate.push_back(0.123456);
    }
    routes.choices.assign(32, choices);
    routes.inputs.patch_rows = routes.inputs.patch_columns = 14;
    Picture picture{56, 56, 3};
    picture.pixels.assign(56 * 56 * 3, 200);
    routes.inputs.pictures.assign(2, picture);
    RunResult result;
    result.pictures.assign(24, picture);
    const std::string html = work_figures(routes, result, "image") +
                             going_figures(routes, "image") + reading_figures(result);
    CHECK(html.size() < 2u << 20);
    CHECK(html.size() > 100000u);
    CHECK(count(html, "Shown are 12 of 32 blocks.") == 2);
  }

  TEST_CASE("a bitmap has its rows from below, blue first, in fours") {
    const Picture picture{2, 1, 3, {1, 2, 3, 4, 5, 6}};
    const std::vector<std::uint8_t> bytes = bitmap(picture, 0, 0, 2, 1);
    CHECK(bytes.size() == 54 + 8);
    CHECK(bytes[2] == 62);
    CHECK(std::vector<std::uint8_t>(bytes.begin() + 54, bytes.end()) ==
          std::vector<std::uint8_t>{6, 5, 4, 0, 3, 2, 1, 0});
    CHECK(base64({'M', 'a', 'n'}) == "TWFu");
    CHECK(base64({'M', 'a'}) == "TWE=");
    CHECK(base64({'M'}) == "TQ==");
    CHECK(base64({255, 239, 190}) == "/+++");
  }

  TEST_CASE("a small grey picture has its ink where the pixels are") {
    const Picture picture{1, 3, 1, {0, 255, 128}};
    CHECK(svg_pixels(picture, 0, 0, 1, 3) ==
          "<g class=\"pixels\" shape-rendering=\"crispEdges\">"
          "<path fill-opacity=\"0.50\" d=\"M2 0h1v1h-1z\"/>"
          "<path fill-opacity=\"1.00\" d=\"M1 0h1v1h-1z\"/></g>");
    CHECK(count(svg_pixels(picture, 0, 1, 1, 1), "M0 0h1v1h-1z") == 1);  // a part
  }
}
