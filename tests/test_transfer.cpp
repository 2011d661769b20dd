// Tests for the commands that bring models from elsewhere, and back.
#include "check.hpp"
#include "support/transfer.hpp"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

using namespace widenet;

namespace {

namespace fs = std::filesystem;

/// A folder that goes when the test ends.
struct Scratch {
  const fs::path path = fs::temp_directory_path() / "widenet_test_transfer";
  Scratch() { fs::create_directories(path / "back"); }
  ~Scratch() { fs::remove_all(path); }
  std::string operator/(const char* name) const { return (path / name).string(); }
};

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace

TEST_CASE("validate: import, upcycle, export") {
  const check::OneThread one_thread;
  const Scratch scratch;
  const std::string vit = scratch / "vit", sparse = scratch / "sparse", back = scratch / "back";
  const support::Answer imported =
      support::transfer({"import", "timm_vit", "data/foreign/timm_vit", vit});
  CHECK(imported.text == "32 tensors of data/foreign/timm_vit in " + vit +
                             "\nnot read: none\ninitial values: none\n");
  CHECK(imported.status == 0);

  CHECK(support::transfer({"upcycle", vit, sparse, "1", "1", "individual"}).text ==
        "raw gates:          the same bits as the source; 0 % dropped; written\n"
        "renormalised gates: the same bits as the source; 0 % dropped\n");
  CHECK(load_vision_model<float>(sparse).config().encoder.experts == 1);
  const std::string four = support::transfer({"upcycle", vit, sparse, "4", "2", "1"}).text;
  CHECK(four.find("raw gates:          relative difference of the outputs 0.") == 0);
  CHECK(four.find("renormalised gates: relative difference of the outputs 0.") < four.size());
  CHECK(four.find("0 % dropped; written\n") > four.find("renormalised"));
  const VisionModel<float> model = load_vision_model<float>(sparse);
  CHECK(model.config().encoder.top_k == 2);
  CHECK(model.config().encoder.conventions.gate == GateRule::renormalized);

  CHECK(support::transfer({"export", "timm_vit", vit, back}).text ==
        "32 tensors and config.json in " + back + "\nleft behind: none\n");
  CHECK(bytes_of(back + "/config.json") == bytes_of("data/foreign/timm_vit/config.json"));
  const SafeTensors theirs = read_safetensors("data/foreign/timm_vit/model.safetensors");
  for (const auto& entry : read_safetensors(back + "/model.safetensors").tensors)
    CHECK(entry.second.bytes == theirs.at(entry.first).bytes);

  const std::string albert = scratch / "albert";
  CHECK(support::transfer({"import", "hf_albert", "data/foreign/hf_albert", albert}).text ==
        "32 tensors of data/foreign/hf_albert in " + albert +
            "\nnot read: none\ninitial values: classifier.bias, classifier.weight, span.bias, "
            "span.weight\n");
  CHECK(support::transfer({"upcycle", albert, sparse, "1", "1"}).text.find(
            "raw gates:          the same bits as the source") == 0);
  CHECK_THROWS_WITH_AS(support::transfer({"upcycle", albert, sparse, "4x", "1"}),
                       "widenet: upcycle: E must be a whole number of at most six digits; got 4x",
                       ConfigError);
  CHECK_THROWS_WITH_AS(support::transfer({"upcycle", albert, sparse, "4", "2", "-1"}),
                       "widenet: upcycle: BLOCK must be a whole number of at most six digits; got "
                       "-1", ConfigError);
  CHECK(support::transfer({"import", "timm_vit"}).text.empty());
  CHECK(support::transfer({}).text.empty());

  // What is no whole model can go back, but not become a mixture; the folder is made.
  const std::string mixture = scratch / "switch", made = scratch / "made/deeper";
  CHECK(support::transfer({"import", "hf_switch", "data/foreign/hf_switch", mixture}).text.find(
            "9 tensors of data/foreign/hf_switch in " + mixture + "\nnot read: ") == 0);
  CHECK(support::transfer({"export", "hf_switch", mixture, made}).text ==
        "26 tensors and config.json in " + made + "\nleft behind: none\n");
  CHECK(bytes_of(made + "/config.json") == bytes_of("data/foreign/hf_switch/config.json"));
  CHECK_THROWS_WITH_AS(support::transfer({"upcycle", mixture, sparse, "2", "1"}),
                       ("widenet: upcycle: " + mixture + ": the file must hold a model; got no "
                        "\"config\" in its metadata; hint: import makes one of hf_albert, hf_vit "
                        "and timm_vit").c_str(), IoError);
}

TEST_CASE("validate: a NaN is said, and not made a mixture of") {
  const Scratch scratch;
  SafeTensors theirs = read_safetensors("data/foreign/hf_vit/model.safetensors");
  theirs.tensors.erase("classifier.bias");
  theirs.add("classifier.bias", Shape{5}, std::vector<float>{0, 0, std::nanf(""), 0, 0});
  write_safetensors(scratch / "back/model.safetensors", theirs);
  fs::copy_file("data/foreign/hf_vit/config.json", scratch / "back/config.json");
  const std::string vit = scratch / "vit", sparse = scratch / "sparse";
  CHECK(support::transfer({"import", "hf_vit", scratch / "back", vit}).text ==
        "40 tensors of " + (scratch / "back") + " in " + vit + "\nnot read: none\ninitial values: "
        "none\nwith an infinity or NaN: classifier.bias\n");
  CHECK_THROWS_WITH_AS(support::transfer({"upcycle", vit, sparse, "2", "1"}),
                       "widenet: upcycle: weights must be finite; got nan in head.bias",
                       ValueError);
  CHECK(!fs::exists(sparse));
}

TEST_CASE("validate: replay") {
  const check::OneThread one_thread;
  const Scratch scratch;
  const std::string path = "data/golden/moe_paper.safetensors", dump = scratch / "dump";
  const support::Answer same = support::transfer({"replay", path, path});
  CHECK(same.status == 0);
  CHECK(same.text == "router logits     given the inputs                agrees\n"
                     "choices           given their logits              agrees\n"
                     "slots             given their choices             agrees\n"
                     "gates             given their logits and choices  agrees\n"
                     "experts           given their routing             agrees\n");
  const SafeTensors file = read_safetensors(path);
  Conventions rules;
  rules.gate = GateRule::renormalized;
  const auto other =
      support::run_golden<double>(support::read_case(path, file), file, &rules);
  SafeTensors out;
  for (const auto& r : other.values) out.add(r.first, other.shapes.at(r.first), r.second);
  for (const auto& r : other.integers) out.add(r.first, other.shapes.at(r.first), r.second);
  write_safetensors(dump, out);
  const support::Answer renormalized = support::transfer({"replay", path, dump});
  CHECK(renormalized.status == 1);
  CHECK(renormalized.text.find("gates             given their logits and choices  departs: gate, "
                               "element 0: ours 0.") < renormalized.text.size());
  CHECK(renormalized.text.find("experts           given their routing             agrees\n") <
        renormalized.text.size());
}
