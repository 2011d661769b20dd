// Tests for import and export: models that transformers and timm wrote compute the same here.
#include "check.hpp"
#include "support/compare.hpp"
#include "support/foreign.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

using namespace widenet;

namespace {

const std::string folder = "data/foreign/";

template <class T>
using Outputs = std::map<std::string, std::vector<T>>;

/// Fills parameters from a file of float32.
template <class T>
void load(const std::vector<Parameter<T>>& parameters, const SafeTensors& file) {
  for (const Parameter<T>& p : parameters) {
    std::vector<T> values;
    widenet::detail::for_each_stored(p, [&](const std::string& name, const Shape& shape, Index) {
      REQUIRE(file.at(name).shape == shape);
      for (const float value : file.values<float>(name)) values.push_back(T(value));
    });
    p.tensor.value().assign(values);
  }
}

template <class T>
Tensor<T> tensor_of(const SafeTensors& file, const std::string& name) {
  const std::vector<float> values = file.values<float>(name);
  return {file.at(name).shape, std::vector<T>(values.begin(), values.end())};
}

/// The tokens after the encoder and the logits.
template <class T>
Outputs<T> vision_outputs(const SafeTensors& file, const SafeTensors& run) {
  const VisionConfig c = vision_config_from_json(file.metadata.at("config"), "the import");
  const VisionModel<T> model(c, Rng(0));
  load(model.parameters(), file);
  const Tensor<T> images = tensor_of<T>(run, "in.images");
  const auto of = [&](const std::string& name) { return tensor_of<T>(file, name); };
  ParameterSet<T> parameters(Rng(0));
  const Encoder<T> encoder(c.encoder, parameters);
  load(parameters.list(), file);
  const Tensor<T> patches = linear(extract_patches(images, c.patch), of("patch_embed.proj.weight"),
                                   of("patch_embed.proj.bias"));
  const Tensor<T> x = add_to_sequences(prepend_token(of("cls_token"), patches), of("pos_embed"));
  return {{"tokens", encoder.forward(x, nullptr, {}).tokens.to_vector()},
          {"logits", model.forward(images).logits.to_vector()}};
}

template <class T>
Outputs<T> language_outputs(const SafeTensors& file, const SafeTensors& run) {
  const LanguageModel<T> model(
      language_config_from_json(file.metadata.at("config"), "the import"), Rng(0));
  load(model.parameters(), file);
  TokenBatch batch;
  batch.B = run.at("in.token").shape[0], batch.T = run.at("in.token").shape[1];
  batch.token = run.values<std::int32_t>("in.token");
  batch.type = run.values<std::int32_t>("in.type");
  for (const std::int32_t m : run.values<std::int32_t>("in.mask"))
    batch.mask.push_back(static_cast<std::uint8_t>(m));
  const Tensor<T> tokens = model.forward(batch).tokens;
  std::vector<std::int32_t> places;
  for (Index i = 0; i < batch.B * batch.T; ++i) places.push_back(static_cast<std::int32_t>(i));
  return {{"tokens", tokens.to_vector()},
          {"pooled", model.pooled(tokens).to_vector()},
          {"masked_logits", model.masked_logits(tokens, places).to_vector()},
          {"order_logits", model.order_logits(tokens).to_vector()},
          {"class_logits", model.class_logits(tokens).to_vector()}};
}

template <class T>
Outputs<T> switch_outputs(const SafeTensors& file, const SafeTensors& run) {
  Routing<T> r;
  const Tensor<T> y =
      support::switch_mixture<T>(file, 1).forward(tensor_of<T>(run, "in.x"), &r);
  CHECK(r.kept.to_vector() == run.values<std::int32_t>("out.kept"));
  return {{"y", y.to_vector()}, {"logits", r.logits.to_vector()}, {"gate", r.gate.to_vector()}};
}

struct Model {
  const char *name, *kind;
};
const Model models[] = {{"hf_albert", "hf_albert"},
                        {"hf_vit", "hf_vit"},
                        {"hf_vit_5", "hf_vit"},
                        {"timm_vit", "timm_vit"},
                        {"hf_switch", "hf_switch"},
                        {"hf_albert_bf16", "hf_albert"},
                        {"timm_vit_f16", "timm_vit"}};

/// Those outputs that theirs has, too.
template <class T>
Outputs<T> outputs(const std::string& kind, const SafeTensors& file, const SafeTensors& run) {
  Outputs<T> all = kind == "hf_albert"   ? language_outputs<T>(file, run)
                   : kind == "hf_switch" ? switch_outputs<T>(file, run)
                                         : vision_outputs<T>(file, run);
  for (auto output = all.begin(); output != all.end();)
    output = run.tensors.count("out." + output->first) > 0 ? std::next(output) : all.erase(output);
  for (const auto& entry : run.tensors)
    if (entry.first.rfind("out.", 0) == 0 && entry.second.dtype == "F64")
      REQUIRE(all.count(entry.first.substr(4)) == 1);
  return all;
}

std::string text_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

SafeTensors run_of(const std::string& name) {
  return read_safetensors(folder + name + "/run.safetensors");
}

/// The largest error of any output in double, relative to the largest value of that output.
double error_of(const std::string& kind, const SafeTensors& file, const SafeTensors& run) {
  double error = 0;
  for (const auto& output : outputs<double>(kind, file, run)) {
    const std::vector<double> expected = run.values<double>("out." + output.first);
    error = std::fmax(error, support::distance(output.second, expected) /
                                 support::largest_of(expected));
  }
  return error;
}

/// What an import leaves for an export is taken away.
SafeTensors without_notes(SafeTensors file) {
  file.metadata = {{"config", file.metadata.at("config")}};
  for (auto entry = file.tensors.begin(); entry != file.tensors.end();)
    entry = entry->first.rfind("foreign.", 0) == 0 ? file.tensors.erase(entry) : std::next(entry);
  return file;
}

template <class Model>
SafeTensors file_of(const Model& model) {
  SafeTensors file;
  widenet::detail::store(file, model.parameters());
  file.metadata["config"] = to_json(model.config());
  return file;
}

/// The same tensors and metadata, except for these keys of the latter.
void same_file(const SafeTensors& a, const SafeTensors& b, const std::set<std::string>& but = {}) {
  CHECK(a.tensors.size() == b.tensors.size());
  for (const auto& entry : b.tensors) {
    INFO(entry.first);
    const StoredTensor& found = a.at(entry.first);
    CHECK(found.dtype == entry.second.dtype);
    CHECK(found.shape == entry.second.shape);
    CHECK(found.bytes == entry.second.bytes);
  }
  CHECK(a.metadata.size() == b.metadata.size());
  for (const auto& entry : b.metadata)
    if (but.count(entry.first) == 0) CHECK(a.metadata.at(entry.first) == entry.second);
}

}  // namespace

TEST_CASE("import: models of transformers and timm compute the same here, in double") {
  const check::OneThread one_thread;
  for (const Model& model : models) {
    INFO(model.name);
    const auto imported = support::import_foreign(model.kind, folder + model.name);
    CHECK(error_of(model.kind, imported.file, run_of(model.name)) <= 1e-12);
  }
}

TEST_CASE("import: and in float they are not twice as wrong as theirs may be") {
  // Errors are against the float64 outputs. How wrong theirs may be is the largest error of their
  // float32 over 33 runs with weights moved by at most half a unit in the last place: between 1 and
  // 20 such units of an output's largest value. 4 units are always allowed.
  const check::OneThread one_thread;
  const Json manifest = Json::parse(text_of(folder + "manifest.json"), "manifest.json");
  std::size_t num_models = 0;
  for (const Json& entry : manifest.at("models").items()) {
    const Model& model = models[num_models++];
    INFO(model.name);
    REQUIRE(entry.at("name").string() == model.name);
    const SafeTensors run = run_of(model.name);
    const auto imported = support::import_foreign(model.kind, folder + model.name);
    for (const auto& output : outputs<float>(model.kind, imported.file, run)) {
      INFO(output.first);
      const std::vector<double> exact = run.values<double>("out." + output.first);
      const double ulp = support::ulp_of<float>(support::largest_of(exact));
      const double allowed = 2 * entry.at("error32").at(output.first).number() + 4 * ulp;
      CHECK(support::distance(output.second, exact) <= allowed);
      CHECK(support::distance(run.values<float>("out32." + output.first), exact) <= allowed);
    }
  }
  CHECK(num_models == std::size(models));
}

TEST_CASE("import: what a tensor in the wrong place does to the outputs") {
  const check::OneThread one_thread;
  struct Mistake {
    const char *model, *what;
    std::function<void(SafeTensors&)> make;
  };
  const auto transpose = [](const std::string& name) {
    return [name](SafeTensors& file) {
      StoredTensor& t = file.tensors.at(name);
      REQUIRE(t.shape[0] == t.shape[1]);  // so that no shape gives it away
      t.bytes = support::foreign::with_axes(t.bytes.data(), t.shape, {1, 0}, 4);
    };
  };
  const auto swap = [](const std::string& a, const std::string& b) {
    return [a, b](SafeTensors& file) { std::swap(file.tensors.at(a), file.tensors.at(b)); };
  };
  const auto shift = [](const std::string& name) {  // every row is the next one's
    return [name](SafeTensors& file) {
      StoredTensor& t = file.tensors.at(name);
      std::rotate(t.bytes.begin(), t.bytes.begin() + t.shape.last() * 4, t.bytes.end());
    };
  };
  const auto forget = [](const std::string& name) {
    return [name](SafeTensors& file) {
      StoredTensor& t = file.tensors.at(name);
      t.bytes.assign(t.bytes.size(), 0);
    };
  };
  const auto setting = [](const std::string& from, const std::string& to) {
    return [from, to](SafeTensors& file) {
      std::string& config = file.metadata.at("config");
      REQUIRE(config.find(from) != std::string::npos);
      config.replace(config.find(from), from.size(), to);
    };
  };
  const Mistake mistakes[] = {
      {"hf_albert", "not transposed", transpose("shared.attn.o.weight")},
      {"hf_albert", "not transposed", transpose("pooler.weight")},
      {"hf_albert", "q is k", swap("shared.attn.q.weight", "shared.attn.k.weight")},
      {"hf_albert", "q is k", swap("shared.attn.q.bias", "shared.attn.k.bias")},
      {"hf_albert", "norms", swap("shared.norm1.weight", "shared.norm2.weight")},
      {"hf_albert", "shifted", shift("embeddings.position.weight")},
      {"hf_albert", "shifted", shift("embeddings.type.weight")},
      {"hf_albert", "forgotten", forget("embeddings.type.weight")},
      {"hf_albert", "forgotten", forget("mlm.bias")},
      {"hf_albert", "forgotten", forget("pooler.bias")},
      {"hf_albert", "eps", setting("eps\":9.9999999999999998e-13", "eps\":1e-6")},
      {"hf_albert", "gelu", setting("\"tanh\"", "\"erf\"")},
      {"hf_vit", "not transposed", transpose("blocks.1.attn.v.weight")},
      {"hf_vit", "q is k", swap("blocks.0.attn.q.weight", "blocks.0.attn.k.weight")},
      {"hf_vit", "blocks", swap("blocks.0.norm2.bias", "blocks.1.norm2.bias")},
      {"hf_vit", "shifted", shift("pos_embed")},
      {"hf_vit", "forgotten", forget("cls_token")},
      {"hf_vit", "eps", setting("eps\":9.9999999999999998e-13", "eps\":1e-6")},
      {"hf_vit", "gelu", setting("\"erf\"", "\"tanh\"")},
      {"hf_vit_5", "not transposed", transpose("pre_logits.weight")},
      {"hf_vit_5", "eps", setting("eps\":1.0000000000000001e-05", "eps\":1e-6")},
      {"timm_vit", "not transposed", transpose("blocks.0.attn.q.weight")},
      {"timm_vit", "q is k", swap("blocks.1.attn.q.weight", "blocks.1.attn.k.weight")},
      {"timm_vit", "shifted", shift("pos_embed")},
      {"timm_vit_f16", "pooling", setting("\"patch_mean\"", "\"mean\"")},
      {"timm_vit_f16", "heads", setting("heads\":2", "heads\":3")},
      {"hf_albert_bf16", "blocks", swap("blocks.0.norm1.bias", "blocks.1.norm1.bias")},
      {"hf_albert_bf16", "forgotten", forget("classifier.bias")},
      {"timm_vit", "eps", setting("eps\":9.9999999999999995e-07", "eps\":1e-12")},
      {"timm_vit", "gelu", setting("\"erf\"", "\"tanh\"")},
      {"hf_switch", "experts", swap("blocks.1.moe.experts.0.fc1.weight",
                                    "blocks.1.moe.experts.1.fc1.weight")},
      {"hf_switch", "relu", [](SafeTensors& file) {
         std::string& config = file.metadata.at("foreign.config");
         config.replace(config.find("\"relu\""), 6, "\"gelu_new\"");
       }}};
  for (const Mistake& mistake : mistakes) {
    INFO(mistake.model, ": ", mistake.what);
    for (const Model& model : models) {
      if (model.name != std::string(mistake.model)) continue;
      SafeTensors file = support::import_foreign(model.kind, folder + model.name).file;
      mistake.make(file);
      CHECK(error_of(model.kind, file, run_of(model.name)) > 1e-8);  // 10,000 times what may be
    }
  }
}

TEST_CASE("import and export: the names' table knows every tensor, and export undoes import") {
  const std::map<std::string, std::size_t> num_rest = {{"hf_switch", 17}};
  for (const Model& model : models) {
    INFO(model.name);
    const SafeTensors theirs = read_safetensors(folder + model.name + "/model.safetensors");
    const auto imported = support::import_foreign(model.kind, folder + model.name);
    const auto rest = num_rest.find(model.name);
    CHECK(imported.rest.size() == (rest == num_rest.end() ? 0 : rest->second));
    CHECK(imported.matched.size() + imported.rest.size() == theirs.tensors.size());
    CHECK(imported.not_finite.empty());
    const auto exported = support::export_foreign(model.kind, imported.file, "the import");
    std::string config = text_of(folder + model.name + "/config.json");
    if (config.find("bfloat16") < config.size())  // what is exported is float32
      config.replace(config.find("bfloat16"), 8, "float32");
    CHECK(exported.config == config);
    CHECK(exported.file.tensors.size() == theirs.tensors.size());
    CHECK(exported.file.metadata == std::map<std::string, std::string>{{"format", "pt"}});
    for (const auto& entry : exported.file.tensors) {
      INFO(entry.first);
      const StoredTensor original = support::widened(theirs.at(entry.first));
      CHECK(entry.second.dtype == original.dtype);
      CHECK(entry.second.shape == original.shape);
      CHECK(entry.second.bytes == original.bytes);
    }
    CHECK(exported.rest == imported.initial);
    same_file(support::import_foreign(model.kind, exported.file, config, "the export").file,
              imported.file, {"foreign.config"});
  }
}

TEST_CASE("export: models of ours come back as they went") {
  // Without the notes of an import, as after a training.
  for (const Model& model : models) {
    if (model.kind == std::string("hf_switch")) continue;
    const SafeTensors ours =
        without_notes(support::import_foreign(model.kind, folder + model.name).file);
    for (const char* kind : {"hf_albert", "hf_vit", "timm_vit"}) {
      const bool is_text = model.kind == std::string("hf_albert");
      if (is_text != (kind == std::string("hf_albert")) ||
          (model.name == std::string("hf_vit_5") && kind != std::string(model.kind)) ||
          (model.name == std::string("timm_vit_f16") && kind != std::string(model.kind)))
        continue;  // a model of one kind that another has no counterpart of
      INFO(model.name, " as ", kind);
      SafeTensors start = ours;
      if (kind == std::string("timm_vit")) {
        std::string& config = start.metadata.at("config");
        const std::size_t at = config.find("layer_norm_eps\":") + 16;
        config.replace(at, config.find(',', at) - at, "9.9999999999999995e-07");
      }
      const auto exported = support::export_foreign(kind, start, "ours");
      if (model.name != std::string("hf_vit_5")) CHECK(exported.rest.empty());
      same_file(without_notes(support::import_foreign(kind, exported.file, exported.config,
                                                      "theirs").file), start);
    }
  }

  // Any number of classes, dropout, one group of layers or several.
  for (const bool shares : {true, false}) {
    LanguageConfig c;
    c.vocabulary = 11, c.classes = 5;
    EncoderConfig& e = c.encoder;
    e.experts = 0, e.is_pre_norm = false, e.dropout = 0.1, e.gelu = Gelu::erf;
    e.share_attention = e.share_router = e.share_experts = e.share_layer_norm = shares;
    const SafeTensors ours = file_of(LanguageModel<float>(c, Rng(1)));
    const auto exported = support::export_foreign("hf_albert", ours, "ours");
    CHECK(exported.rest.empty());
    CHECK(exported.config.find("\"4\": \"LABEL_4\"}") < exported.config.size());
    const auto back =
        support::import_foreign("hf_albert", exported.file, exported.config, "theirs");
    CHECK(back.initial.empty());
    same_file(without_notes(back.file), ours);

    // A file without a classifier: its settings tell the number of classes all the same.
    SafeTensors headless = exported.file;
    headless.tensors.erase("classifier.weight"), headless.tensors.erase("classifier.bias");
    const auto initial =
        support::import_foreign("hf_albert", headless, exported.config, "theirs");
    CHECK(initial.initial == std::vector<std::string>{"classifier.bias", "classifier.weight"});
    CHECK(initial.file.metadata.at("config") == to_json(c));
  }
  for (const char* kind : {"hf_vit", "timm_vit"}) {
    INFO(kind);
    const bool is_timm = kind == std::string("timm_vit");
    VisionConfig c = VisionConfig::toy();
    c.classes = 7, c.class_token = ClassToken::trained, c.pooling = Pooling::class_token;
    EncoderConfig& e = c.encoder;
    e.experts = 0, e.share_attention = e.share_router = e.share_experts = false, e.dropout = 0.25;
    const SafeTensors ours = file_of(VisionModel<float>(c, Rng(1)));
    const auto exported = support::export_foreign(kind, ours, "ours");
    // What timm and transformers cannot do without.
    const char* const needed = is_timm ? "\"pretrained_cfg\": {\"input_size\": [1, 8, 8], "
                                       : "\"6\": \"LABEL_6\"}";
    CHECK(exported.config.find(needed) < exported.config.size());
    same_file(without_notes(support::import_foreign(kind, exported.file, exported.config,
                                                    "theirs").file), ours);
  }
}

TEST_CASE("import: 16 bits are widened without a change") {
  struct Known {
    std::uint32_t bits, wide;
  };
  const Known halves[] = {{0x0000, 0x00000000}, {0x8000, 0x80000000},   // 0, -0
                          {0x0001, 0x33800000}, {0x83FF, 0xB87FC000},   // 2^-24, -1023 * 2^-24
                          {0x0400, 0x38800000}, {0x3C00, 0x3F800000},   // 2^-14, 1
                          {0x3C01, 0x3F802000}, {0x3555, 0x3EAAA000},   // 1 + 2^-10, 1365 / 4096
                          {0xC000, 0xC0000000}, {0x7BFF, 0x477FE000},   // -2, 65504
                          {0x7C00, 0x7F800000}, {0xFC00, 0xFF800000},   // infinities
                          {0x7E00, 0x7FC00000}, {0xFE01, 0xFFC02000},   // quiet NaN
                          {0x7C01, 0x7F802000}};                        // signalling NaN
  const Known brains[] = {{0x0000, 0x00000000}, {0x8000, 0x80000000},   // 0, -0
                          {0x0001, 0x00010000}, {0x807F, 0x807F0000},   // 2^-133, -127 * 2^-133
                          {0x3F80, 0x3F800000}, {0x4049, 0x40490000},   // 1, 3.140625
                          {0x7F7F, 0x7F7F0000}, {0xFF80, 0xFF800000},   // the largest, -infinity
                          {0x7FC1, 0x7FC10000}, {0xFF81, 0xFF810000}};  // quiet, signalling NaN
  const auto stored = [](const char* dtype, const Known* known, std::size_t n) {
    StoredTensor t{dtype, Shape{static_cast<Index>(n)}, {}};
    for (std::size_t i = 0; i < n; ++i)
      for (const std::uint32_t shift : {0u, 8u})
        t.bytes.push_back(static_cast<char>(known[i].bits >> shift & 0xFF));
    return t;
  };
  const auto check_all = [&](const char* dtype, const Known* known, std::size_t n) {
    const StoredTensor wide = support::widened(stored(dtype, known, n));
    CHECK(wide.dtype == "F32");
    CHECK(wide.shape == Shape{static_cast<Index>(n)});
    REQUIRE(wide.bytes.size() == 4 * n);
    for (std::size_t i = 0; i < n; ++i) {
      INFO(dtype, " ", known[i].bits);
      std::uint32_t bits = 0;
      std::memcpy(&bits, wide.bytes.data() + 4 * i, 4);
      CHECK(bits == known[i].wide);
    }
  };
  check_all("F16", halves, std::size(halves));
  check_all("BF16", brains, std::size(brains));
  Index num_wrong = 0;
  for (int bits = 0; bits < 0x10000; ++bits) {  // as the formula says
    const int e = bits >> 10 & 31, m = bits & 1023;
    const double magnitude = e == 31 ? (m ? std::nan("") : HUGE_VAL)
                             : e > 0 ? std::ldexp(1024 + m, e - 25)
                                     : std::ldexp(m, -24);
    const float value = support::float_of_float16(static_cast<std::uint16_t>(bits));
    num_wrong += std::signbit(value) != (bits >= 0x8000);
    num_wrong += std::isnan(magnitude) ? !std::isnan(value)
                                       : double(std::fabs(value)) != magnitude;
  }
  CHECK(num_wrong == 0);
  const StoredTensor whole{"I16", Shape{1}, {'\1', '\2'}};
  CHECK(support::widened(whole).dtype == "I16");
  CHECK(support::widened(whole).bytes == whole.bytes);
}

TEST_CASE("export: settings of 16 bits become settings of 32, and nothing else changes") {
  const auto settings = [](const char* text) { return support::foreign::with_float32(text); };
  CHECK(settings(R"({"dtype": "float16", "a": 1})") == R"({"dtype": "float32", "a": 1})");
  CHECK(settings("{\"torch_dtype\"\n : \"bfloat16\"}") == "{\"torch_dtype\"\n : \"float32\"}");
  CHECK(settings(R"({"dtype": null})") == R"({"dtype": null})");
  CHECK(settings(R"({"id2label": {"0": "dtype"}, "dtype": "float16"})") ==
        R"({"id2label": {"0": "dtype"}, "dtype": "float32"})");
  CHECK(settings("{}") == "{}");
}

TEST_CASE("import: heads that a file lacks") {
  const auto albert = support::import_foreign("hf_albert", folder + "hf_albert");
  CHECK(albert.initial == std::vector<std::string>{"classifier.bias", "classifier.weight",
                                                   "span.bias", "span.weight"});
  const auto vit = support::import_foreign("hf_vit", folder + "hf_vit_5");
  CHECK(vit.initial == std::vector<std::string>{"head.bias", "head.weight"});
  const std::vector<float> head = vit.file.values<float>("head.weight");
  for (std::size_t i = 0; i < head.size(); ++i) CHECK(head[i] == (i % 13 == 0 ? 1 : 0));

  // A classifier beside a pooler: the pooler counts for nothing and is reported.
  SafeTensors theirs = read_safetensors(folder + "hf_vit_5/model.safetensors");
  theirs.add("classifier.weight", Shape{2, 12}, std::vector<float>(24));
  theirs.add("classifier.bias", Shape{2}, std::vector<float>(2));
  theirs.tensors.at("pooler.dense.bias") = {"BF16", Shape{12}, std::vector<char>(24, '\1')};
  const auto both = support::import_foreign(
      "hf_vit", theirs, text_of(folder + "hf_vit_5/config.json"), "config.json");
  CHECK(both.rest == std::vector<std::string>{"pooler.dense.bias", "pooler.dense.weight"});
  CHECK(both.initial.empty());
  const auto exported = support::export_foreign("hf_vit", both.file, "both");
  CHECK(exported.file.at("pooler.dense.weight").bytes == theirs.at("pooler.dense.weight").bytes);
  CHECK(exported.file.tensors.size() == theirs.tensors.size());
  CHECK(exported.file.at("pooler.dense.bias").dtype == "F32");
}

TEST_CASE("import: what is tied may be there twice, with the same values") {
  SafeTensors theirs = read_safetensors(folder + "hf_albert/model.safetensors");
  const std::string config = text_of(folder + "hf_albert/config.json");
  const auto once = support::import_foreign("hf_albert", theirs, config, "FILE");
  const std::string word = "albert.embeddings.word_embeddings.weight";
  theirs.tensors["predictions.decoder.weight"] = theirs.at(word);
  theirs.tensors["predictions.decoder.bias"] = theirs.at("predictions.bias");
  const auto twice = support::import_foreign("hf_albert", theirs, config, "FILE");
  CHECK(twice.rest.empty());
  same_file(twice.file, once.file, {"foreign.names"});
  const auto exported = support::export_foreign("hf_albert", twice.file, "twice");
  CHECK(exported.file.tensors.size() == theirs.tensors.size());
  CHECK(exported.file.at("predictions.decoder.weight").bytes == theirs.at(word).bytes);
  theirs.tensors.at("predictions.decoder.weight").bytes[0] ^= 1;
  CHECK_THROWS_WITH_AS(support::import_foreign("hf_albert", theirs, config, "FILE"),
                       "widenet: import: FILE: two names of a tensor must have the same values; "
                       "got others in albert.embeddings.word_embeddings.weight than in "
                       "predictions.decoder.weight", IoError);
}

TEST_CASE("import: a plain architecture of timm needs no model_args") {
  const std::string newer = "\"pretrained_cfg\": {\"input_size\": [3, 6, 4]}";
  const auto plain = [](const std::string& architecture, const std::string& size) {
    const std::string config = "{\"architecture\": \"" + architecture +
                               "\", \"num_classes\": 5, \"global_pool\": \"token\", " + size + "}";
    return support::import_foreign(
        "timm_vit", read_safetensors(folder + "timm_vit/model.safetensors"), config, "FILE");
  };
  const auto expected = support::import_foreign("timm_vit", folder + "timm_vit");
  same_file(plain("vit_tiny_patch16_224", newer).file, expected.file, {"foreign.config"});
  same_file(plain("deit_tiny_patch2_6", newer).file, expected.file, {"foreign.config"});
  same_file(plain("vit_tiny_patch2_6", "\"input_size\": [3, 6, 4]").file, expected.file,
            {"foreign.config"});
  const auto heads = [](const char* name) { return support::timm_heads(name, "FILE"); };
  CHECK(heads("vit_small_patch32_384") == 6);
  CHECK(heads("deit_base_patch16_384") == 12);
  CHECK(heads("vit_large_patch14_224") == 16);
  CHECK(heads("vit_huge_patch14_224") == 16);
  for (const char* name : {"", "vit_base_patch16_clip_224", "vit_base_patch16", "vit_a_patch16_224",
                           "beit_base_patch16_224", "vit_base_patch_224", "vit_base_patch16_xp"})
    CHECK_THROWS_WITH_AS(plain(name, newer),
                         ("widenet: import: FILE: architecture must be a plain ViT, such as "
                          "vit_base_patch16_224; got " + std::string(name)).c_str(), ConfigError);
}

TEST_CASE("import: an infinity or NaN is read, and said") {
  SafeTensors theirs = read_safetensors(folder + "hf_vit/model.safetensors");
  const std::string config = text_of(folder + "hf_vit/config.json");
  std::vector<float> bias(12);
  bias[3] = std::nanf(""), bias[5] = HUGE_VALF;
  theirs.tensors.erase("vit.layernorm.bias");
  theirs.add("vit.layernorm.bias", Shape{12}, bias);
  const auto imported = support::import_foreign("hf_vit", theirs, config, "FILE");
  CHECK(imported.not_finite == std::vector<std::string>{"vit.layernorm.bias"});
  CHECK(check::same_bits(imported.file.values<float>("norm.bias"), bias));
}

TEST_CASE("import: damaged files are refused, by name and place") {
  const std::string scratch =
      (std::filesystem::temp_directory_path() / "widenet_test_foreign").string();
  const std::string weights = scratch + "/model.safetensors", config = scratch + "/config.json";
  const std::string good = text_of(folder + "hf_vit/model.safetensors");
  const std::string settings = text_of(folder + "hf_vit/config.json");
  std::filesystem::create_directories(scratch);
  const auto write = [](const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  };
  const auto import = [&](const std::string& bytes, const std::string& text) {
    write(weights, bytes), write(config, text);
    return support::import_foreign("hf_vit", scratch);
  };
  CHECK(import(good, settings).rest.empty());
  const std::string at_weights = "widenet: safetensors: " + weights + ": ";
  CHECK_THROWS_WITH_AS(import(good.substr(0, 5), settings),
                       (at_weights + "offset 0: a file must have 8 bytes of header length; got 5")
                           .c_str(), IoError);
  CHECK_THROWS_WITH_AS(import(good.substr(0, 100), settings),
                       doctest::Contains((at_weights + "offset 0: a header must end in the file; "
                                                       "got ").c_str()), IoError);
  CHECK_THROWS_WITH_AS(import(good.substr(0, good.size() - 1), settings),
                       doctest::Contains("data_offsets must lie in the file"), IoError);
  CHECK_THROWS_WITH_AS(
      import(good + "x", settings),
      doctest::Contains((at_weights + "the data must fill the file; got ").c_str()), IoError);
  std::string lie = good;
  lie[7] = '\x7F';
  CHECK_THROWS_WITH_AS(import(lie, settings),
                       doctest::Contains((at_weights + "offset 0: a header must have at most "
                                                       "100000000 bytes; got ").c_str()), IoError);
  std::string twice = good;
  twice.replace(twice.find("layer.1.layernorm_after.bias"), 7, "layer.0");
  CHECK_THROWS_WITH_AS(import(twice, settings), doctest::Contains("a key must not occur twice"),
                       IoError);
  CHECK_THROWS_WITH_AS(import(good, "{\"model_type\": "), doctest::Contains(
                           ("widenet: json: " + config + ": offset 15: ").c_str()), IoError);
  CHECK_THROWS_WITH_AS(import(good, "[]"), ("widenet: json: " + config +
                       ": a value must be an object; got another type").c_str(), IoError);
  CHECK_THROWS_WITH_AS(import(good, "{}"), doctest::Contains(
                           "an object must have the key \"image_size\"; got one without"), IoError);
  // Fields that are nobody's business do not matter.
  CHECK(import(good, "{\"x\": [null, {\"y\": \"z\"}]," + settings.substr(1)).rest.empty());
  std::filesystem::remove(weights);
  CHECK_THROWS_WITH_AS(support::import_foreign("hf_vit", scratch),
                       ("widenet: import: " + weights + ": the file must open; hint: weights in "
                        "parts, or of another format, must be saved as one file of safetensors")
                           .c_str(), IoError);
  std::filesystem::remove(config);
  const std::string no_config = "widenet: import: " + config + ": the file must open; hint: FOLDER "
                                "is what save_pretrained of transformers or save_for_hf of timm "
                                "wrote";
  CHECK_THROWS_WITH_AS(support::import_foreign("hf_vit", scratch), no_config.c_str(), IoError);
  std::filesystem::create_directory(config);
  CHECK_THROWS_WITH_AS(support::import_foreign("hf_vit", scratch), no_config.c_str(), IoError);
  std::filesystem::remove_all(scratch);
}

TEST_CASE("import: what it writes is read as a model") {
  const std::string path = (std::filesystem::temp_directory_path() /
                            "widenet_test_foreign.safetensors").string();
  const auto imported = support::import_foreign("timm_vit", folder + "timm_vit");
  write_safetensors(path, imported.file);
  const VisionModel<float> model = load_vision_model<float>(path);
  const SafeTensors run = run_of("timm_vit");
  CHECK(check::same_bits(model.forward(tensor_of<float>(run, "in.images")).logits.to_vector(),
                         vision_outputs<float>(imported.file, run).at("logits")));
  std::remove(path.c_str());
}

TEST_CASE("import: files and settings that do not fit are refused, by name") {
  const auto import = [](const std::string& name, const std::string& kind,
                         const std::function<void(SafeTensors&, std::string&)>& change) {
    SafeTensors theirs = read_safetensors(folder + name + "/model.safetensors");
    std::string config = text_of(folder + name + "/config.json");
    change(theirs, config);
    return support::import_foreign(kind, theirs, config, "FILE");
  };
  const auto replace = [](const std::string& from, const std::string& to) {
    return [from, to](SafeTensors&, std::string& config) {
      REQUIRE(config.find(from) != std::string::npos);
      config.replace(config.find(from), from.size(), to);
    };
  };
  const auto nothing = [](SafeTensors&, std::string&) {};
  CHECK_THROWS_WITH_AS(import("hf_vit", "vit", nothing),
                       "widenet: import: a kind must be one of hf_albert, hf_vit, timm_vit, "
                       "hf_switch; got vit", ConfigError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", [](SafeTensors& file, std::string&) {
        file.tensors = {{"layer.weight", {"F32", Shape{1}, std::vector<char>(4)}},
                        {"other.weight", {"F32", Shape{1}, std::vector<char>(4)}}};
      }),
      "widenet: import: FILE: some name must be known; got layer.weight, other.weight; hint: "
      "expected vit.embeddings.cls_token, vit.embeddings.position_embeddings, "
      "vit.embeddings.patch_embeddings.projection.weight, "
      "vit.embeddings.patch_embeddings.projection.bias, "
      "vit.encoder.layer.0.layernorm_before.weight, vit.encoder.layer.0.layernorm_before.bias, "
      "vit.encoder.layer.0.attention.attention.query.weight, "
      "vit.encoder.layer.0.attention.attention.query.bias, "
      "vit.encoder.layer.0.attention.attention.key.weight, "
      "vit.encoder.layer.0.attention.attention.key.bias, "
      "vit.encoder.layer.0.attention.attention.value.weight, "
      "vit.encoder.layer.0.attention.attention.value.bias and 26 more", IoError);
  CHECK_THROWS_WITH_AS(
      import("timm_vit", "timm_vit", [](SafeTensors& file, std::string&) {
        file.tensors.erase("patch_embed.proj.weight");
      }),
      doctest::Contains("widenet: import: FILE: some name must be known; got blocks.0."), IoError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", [](SafeTensors& file, std::string&) {
        file.tensors.erase("vit.layernorm.bias");
        file.tensors.erase("vit.encoder.layer.1.output.dense.weight");
      }),
      "widenet: import: FILE: every tensor of the model must be there; got none named "
      "vit.encoder.layer.1.output.dense.weight, vit.layernorm.bias; hint: names that nothing "
      "reads: none", IoError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", [](SafeTensors& file, std::string&) {
        const auto moved = [&](const char* from, const char* to) {
          file.tensors[to] = file.at(from);
          file.tensors.erase(from);
        };
        moved("vit.layernorm.bias", "vit.layernorm.beta");
        moved("classifier.bias", "head.bias");  // a head that is there in part
      }),
      "widenet: import: FILE: every tensor of the model must be there; got none named "
      "vit.layernorm.bias, classifier.bias; hint: names that nothing reads: head.bias, "
      "vit.layernorm.beta", IoError);
  CHECK_THROWS_WITH_AS(
      import("hf_albert", "hf_albert", [](SafeTensors& file, std::string&) {
        file.tensors.erase("predictions.LayerNorm.weight");
      }),
      "widenet: import: FILE: every tensor of the model must be there; got none named "
      "predictions.LayerNorm.weight; hint: names that nothing reads: none", IoError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit",
             replace("\"4\": \"LABEL_4\"", "\"4\": \"A\", \"5\": \"B\"")),
      "widenet: import: FILE: classifier.weight must have a row for each class, 6; got shape "
      "(5, 12)", IoError);
  CHECK_THROWS_WITH_AS(
      import("timm_vit", "timm_vit", replace("\"num_classes\": 5", "\"num_classes\": 4")),
      "widenet: import: FILE: head.weight must have a row for each class, 4; got shape (5, 12)",
      IoError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", [](SafeTensors& file, std::string&) {
        file.tensors.at("classifier.weight").shape = Shape{60};
      }),
      "widenet: import: FILE: classifier.weight must have a row for each class, 5; got shape (60)",
      IoError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", replace("hidden_dropout_prob\": 0.0", "hidden_dropout_prob\": 1")),
      "widenet: import: FILE: hidden_dropout_prob must lie in [0, 1); got 1", ConfigError);
  CHECK_THROWS_WITH_AS(
      import("timm_vit", "timm_vit", replace("\"depth\": 2", "\"proj_drop_rate\": 0.5")),
      "widenet: import: FILE: pos_drop_rate and proj_drop_rate must be equal; got 0, 0.5",
      ConfigError);
  CHECK_THROWS_WITH_AS(import("hf_vit", "hf_vit", replace("patch_size\": 2", "patch_size\": 1")),
                       "widenet: import: FILE: vit.embeddings.position_embeddings must have shape "
                       "(1, 25, 12); got (1, 7, 12)", IoError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", [](SafeTensors& file, std::string&) {
        file.tensors.at("vit.layernorm.bias") = {"F64", Shape{12}, std::vector<char>(96)};
      }),
      "widenet: import: FILE: vit.layernorm.bias must have type F32, F16 or BF16; got F64; hint: "
      "model.float() before saving", IoError);
  CHECK_THROWS_WITH_AS(import("hf_vit", "hf_vit", replace("\"hidden_act\": \"gelu\"",
                                                          "\"hidden_act\": \"quick_gelu\"")),
                       "widenet: import: FILE: hidden_act must be \"gelu\" (erf), or \"gelu_new\", "
                       "\"gelu_pytorch_tanh\" or \"gelu_tanh\" (tanh); got \"quick_gelu\"",
                       ConfigError);
  CHECK_THROWS_WITH_AS(import("hf_vit", "hf_vit", replace("\"layer_norm_eps\"", "\"eps\"")),
                       "widenet: json: FILE: an object must have the key \"layer_norm_eps\"; got "
                       "one without", IoError);
  for (const char* eps : {"0", "-1e-6", "1", "1e999"})
    CHECK_THROWS_WITH_AS(import("hf_vit", "hf_vit", replace("1e-12", eps)),
                         doctest::Contains("layer_norm_eps must lie in (0, 1); got "), ConfigError);
  CHECK_THROWS_WITH_AS(import("hf_vit", "hf_vit", replace("1e-12", "\"1e-12\"")),
                       "widenet: import: FILE: layer_norm_eps must be a number; got another type",
                       ConfigError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", replace("hidden_act\": \"gelu\"", "hidden_act\": null")),
      "widenet: import: FILE: hidden_act must be a text; got another type", ConfigError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", replace("patch_size\": 2", "patch_size\": \"2\"")),
      "widenet: import: FILE: patch_size must be a number; got another type", ConfigError);
  for (const char* layers : {"0", "-1", "1099511627776"})
    CHECK_THROWS_WITH_AS(
        import("hf_vit", "hf_vit", replace("hidden_layers\": 2",
                                           std::string("hidden_layers\": ") + layers)),
        doctest::Contains("num_hidden_layers must lie in [1, 2^20]; got "), ConfigError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", replace("hidden_layers\": 2", "hidden_layers\": 1000000")),
      "widenet: import: FILE: the settings must describe the weights beside them; got 1000000 "
      "blocks or experts for 40 tensors", IoError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", replace("attention_heads\": 3", "attention_heads\": 5")),
      "widenet: import: the configuration must name a model\n  heads must divide width; got 5, 12",
      ConfigError);
  CHECK_THROWS_WITH_AS(import("hf_vit", "hf_albert", nothing),
                       "widenet: import: FILE: model_type must be albert; got vit", ConfigError);
  CHECK_THROWS_WITH_AS(
      import("hf_albert", "hf_albert", replace("inner_group_num\": 1", "inner_group_num\": 2")),
      "widenet: import: FILE: inner_group_num must be 1; got 2", ConfigError);
  CHECK_THROWS_WITH_AS(
      import("timm_vit", "timm_vit", [](SafeTensors& file, std::string&) {
        file.add("blocks.0.ls1.gamma", Shape{12}, std::vector<float>(12));
      }),
      "widenet: import: FILE: no weight may alter the model; got blocks.0.ls1.gamma", ConfigError);
  CHECK_THROWS_WITH_AS(
      import("timm_vit", "timm_vit", replace("\"depth\": 2", "\"init_values\": 1e-5")),
      "widenet: import: FILE: model_args: every key must be known not to alter the model; got "
      "init_values", ConfigError);
  CHECK_THROWS_WITH_AS(import("timm_vit", "timm_vit", replace("\"depth\": 2", "\"depth\": 3")),
                       "widenet: import: FILE: depth must be that of the file, 2", ConfigError);
  CHECK_THROWS_WITH_AS(
      import("timm_vit", "timm_vit", [](SafeTensors& file, std::string&) {
        file.tensors.erase("blocks.0.norm1.weight");
      }),
      doctest::Contains("widenet: import: FILE: blocks must be 0 to -1, each with norm1.weight; "
                        "got blocks.0."), ConfigError);
  CHECK_THROWS_WITH_AS(
      import("hf_switch", "hf_switch", replace("\"num_experts\": 4", "\"num_experts\": 3000")),
      "widenet: import: FILE: the settings must describe the weights beside them; got 3000 blocks "
      "or experts for 26 tensors", IoError);
  CHECK_THROWS_WITH_AS(support::import_foreign("hf_vit", "no/such/folder"),
                       doctest::Contains("widenet: import: no/such/folder/config.json: the file "
                                         "must open; hint: "), IoError);
}

TEST_CASE("export: models that theirs cannot be are refused") {
  const auto refused = [](const VisionConfig& c) {
    SafeTensors file;
    file.metadata["config"] = to_json(c);
    return support::export_foreign("timm_vit", file, "FILE");
  };
  VisionConfig c = VisionConfig::toy();
  CHECK_THROWS_WITH_AS(refused(c),
                       doctest::Contains("widenet: export: timm_vit: the model must be dense, "
                                         "pre-norm, with LayerNorm and a trained class token, and "
                                         "share nothing; got {"), ConfigError);
  c.encoder.experts = 0, c.class_token = ClassToken::trained, c.pooling = Pooling::class_token;
  c.encoder.share_attention = c.encoder.share_experts = false, c.encoder.layer_norm_eps = 1e-5;
  CHECK_THROWS_WITH_AS(refused(c), doctest::Contains("have a layer_norm_eps of 1e-6; got {"),
                       ConfigError);
  c.encoder.layer_norm_eps = 1e-6, c.encoder.norm = Norm::rms_norm;
  CHECK_THROWS_WITH_AS(refused(c), doctest::Contains("the model must be dense, pre-norm, with "
                                                     "LayerNorm and a trained"), ConfigError);
  LanguageConfig text;
  text.encoder.experts = 0, text.encoder.is_pre_norm = false, text.encoder.share_layer_norm = true;
  for (const Norm norm : {Norm::rms_norm, Norm::layer_norm}) {
    text.encoder.norm = norm;
    const SafeTensors file = file_of(LanguageModel<float>(text, Rng(1)));
    if (norm == Norm::layer_norm) {
      CHECK(support::export_foreign("hf_albert", file, "FILE").rest.empty());
      continue;
    }
    CHECK_THROWS_WITH_AS(support::export_foreign("hf_albert", file, "FILE"),
                         doctest::Contains("widenet: export: hf_albert: the model must be dense, "
                                           "post-norm, with LayerNorm, and share all layers or "
                                           "none; got {"), ConfigError);
  }
  c.encoder.norm = Norm::layer_norm;
  CHECK_THROWS_WITH_AS(refused(c), "widenet: safetensors: a tensor must be there; got none named "
                                   "cls_token", IoError);
  CHECK_THROWS_WITH_AS(support::export_foreign("hf_switch", SafeTensors(), "FILE"),
                       "widenet: export: hf_switch: the file must come from an import of "
                       "hf_switch; got FILE", ConfigError);
}
