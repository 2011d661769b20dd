// Tests for the commands that bring models from elsewhere, and back.
#include "check.hpp"
#include "support/transfer.hpp"

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
