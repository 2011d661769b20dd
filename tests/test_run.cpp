// Tests for examples/support/run.hpp: options on the command line, the files of a run.
#include "examples/support/run.hpp"

#include <doctest/doctest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

using namespace widenet;
using namespace widenet::support;

namespace {

struct Settings {
  std::string data = "digits", task = "vision";
  Index steps = 1200;
  std::uint64_t seed = 0;
  double rate = 1e-3;
  bool resume = false;
};

CommandLine command_line(Settings& s) {
  CommandLine line("train", "trains");
  line.add("--data", s.data, "a folder")
      .add("--task", s.task, "what to do", {"vision", "language"})
      .add("--steps", s.steps, "how many")
      .add("--seed", s.seed, "of everything random")
      .add("--rate", s.rate, "at the peak")
      .add("--resume", s.resume, "go on");
  return line;
}

bool parse(Settings& s, std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "program");
  return command_line(s).parse(static_cast<int>(arguments.size()), arguments.data());
}

std::string error_of(const std::vector<const char*>& arguments) {
  Settings s;
  try {
    parse(s, arguments);
  } catch (const ValueError& error) {
    return error.what();
  }
  return "no error";
}

/// A file with some content that goes when the test ends.
struct File {
  std::string path = (std::filesystem::temp_directory_path() /
                      ("widenet_test_run_" + std::to_string(getpid()))).string();
  explicit File(const std::string& content) { std::ofstream(path) << content; }
  ~File() { std::filesystem::remove(path); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  std::string content() const {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
  }
};

std::string metrics_after_cut(const std::string& content, Index step) {
  const File file(content);
  cut_metrics(file.path, step);
  return file.content();
}

}  // namespace

TEST_SUITE("support: run") {
  TEST_CASE("options set variables, and leave the others alone") {
    Settings s;
    CHECK(parse(s, {"--steps", "7", "--data", "", "--rate", "2.5e-4", "--resume"}));
    CHECK(s.steps == 7);
    CHECK(s.data == "");
    CHECK(s.rate == 2.5e-4);
    CHECK(s.resume);
    CHECK(s.task == "vision");
    CHECK(s.seed == 0);
    CHECK(parse(s, {"--seed", "9223372036854775807", "--task", "language", "--steps", "8"}));
    CHECK(s.seed == 9223372036854775807u);
    CHECK(s.task == "language");
    CHECK(s.steps == 8);
    CHECK(parse(s, {}));
  }

  TEST_CASE("a wrong option is named with its value") {
    CHECK(error_of({"--step", "3"}) ==
          "widenet: train: an option must be one of --data --task --steps --seed --rate --resume; "
          "got --step; hint: --help explains them");
    CHECK(error_of({"--resume", "--seed"}) ==
          "widenet: train: --seed must be followed by a value; got the end");
    CHECK(error_of({"--steps", "-3"}) ==
          "widenet: train: --steps must be a whole number; got \"-3\"");
    CHECK(error_of({"--steps", "9223372036854775808"}) ==
          "widenet: train: --steps must be a whole number; got \"9223372036854775808\"");
    CHECK(error_of({"--steps", "99999999999999999999"}) ==
          "widenet: train: --steps must be a whole number; got \"99999999999999999999\"");
    CHECK(error_of({"--steps", ""}) == "widenet: train: --steps must be a whole number; got \"\"");
    CHECK(error_of({"--steps", "0"}) == "widenet: train: --steps must be at least 1; got 0");
    for (const std::string text : {"nan", "inf", "1e999", "1x", "", "0x10"})
      CHECK(error_of({"--rate", text.c_str()}) ==
            "widenet: train: --rate must be a number; got \"" + text + "\"");
    CHECK(error_of({"--rate", "-1"}) ==
          "widenet: train: --rate must not be negative; got -1");
    CHECK(error_of({"--rate", "0"}) == "no error");
    CHECK(error_of({"--task", "speech"}) ==
          "widenet: train: --task must be one of vision|language; got \"speech\"");
  }

  TEST_CASE("help lists every option with its default") {
    Settings s;
    CHECK(!parse(s, {"--steps", "3", "--help"}));
    CHECK(!parse(s, {"-h"}));
    s = {};
    CHECK(command_line(s).usage() ==
          "train: trains\n"
          "\n"
          "  --data TEXT             a folder (digits)\n"
          "  --task vision|language  what to do (vision)\n"
          "  --steps N               how many (1200)\n"
          "  --seed N                of everything random (0)\n"
          "  --rate X                at the peak (0.001)\n"
          "  --resume                go on\n");
  }

  TEST_CASE("metrics are cut to the steps before the checkpoint") {
    const std::string first = "{\"step\": 0, \"loss\": 2}\n", second = "{\"step\": 1}\n";
    CHECK(metrics_after_cut(first + second, 2) == first + second);
    CHECK(metrics_after_cut(first + second, 1) == first);
    CHECK(metrics_after_cut(first + "{\"step\": 1}", 9) == first);  // half written
    CHECK(metrics_after_cut("", 9) == "");
    const File stepless("{\"loss\": 2}\n");
    CHECK_THROWS_AS(cut_metrics(stepless.path, 9), IoError);
    CHECK(stepless.content() == "{\"loss\": 2}\n");
  }

  TEST_CASE("a curve has the lines that have its field") {
    const File file("{\"step\": 0, \"loss\": 2.5}\n{\"step\": 1}\n{\"step\": 2, \"loss\": null}\n");
    const Curve curve = read_curve(file.path, "loss");
    CHECK(curve.step == std::vector<double>{0, 2});
    CHECK(curve.value[0] == 2.5);
    CHECK(std::isnan(curve.value[1]));
    CHECK(read_curve(file.path, "accuracy").step.empty());
  }
}
