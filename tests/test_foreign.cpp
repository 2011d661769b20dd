// Tests for import and export: models that transformers and timm wrote compute the same here.
#include "check.hpp"
#include "support/compare.hpp"
#include "support/foreign.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

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
          {"order_logits", model.order_logits(tokens).to_vector()}};
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
                        {"hf_switch", "hf_switch"}};

template <class T>
Outputs<T> outputs(const std::string& kind, const SafeTensors& file, const SafeTensors& run) {
  return kind == "hf_albert"   ? language_outputs<T>(file, run)
         : kind == "hf_switch" ? switch_outputs<T>(file, run)
                               : vision_outputs<T>(file, run);
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
      {"hf_albert", "eps", setting("eps\":9.9999999999999998e-13", "eps\":1e-6")},
      {"hf_albert", "gelu", setting("\"tanh\"", "\"erf\"")},
      {"hf_vit", "not transposed", transpose("blocks.1.attn.v.weight")},
      {"hf_vit", "q is k", swap("blocks.0.attn.q.weight", "blocks.0.attn.k.weight")},
      {"hf_vit", "blocks", swap("blocks.0.norm2.bias", "blocks.1.norm2.bias")},
      {"hf_vit", "eps", setting("eps\":9.9999999999999998e-13", "eps\":1e-6")},
      {"hf_vit", "gelu", setting("\"erf\"", "\"tanh\"")},
      {"hf_vit_5", "not transposed", transpose("pre_logits.weight")},
      {"hf_vit_5", "eps", setting("eps\":1.0000000000000001e-05", "eps\":1e-6")},
      {"timm_vit", "not transposed", transpose("blocks.0.attn.q.weight")},
      {"timm_vit", "q is k", swap("blocks.1.attn.q.weight", "blocks.1.attn.k.weight")},
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
    const auto exported = support::export_foreign(model.kind, imported.file, "the import");
    CHECK(exported.config == text_of(folder + model.name + "/config.json"));
    CHECK(exported.file.tensors.size() == imported.matched.size());
    for (const auto& entry : exported.file.tensors) {
      INFO(entry.first);
      const StoredTensor& original = theirs.at(entry.first);
      CHECK(entry.second.dtype == original.dtype);
      CHECK(entry.second.shape == original.shape);
      CHECK(entry.second.bytes == original.bytes);
    }
    for (const std::string& name : imported.initial)
      CHECK(std::count(exported.rest.begin(), exported.rest.end(), name) == 1);
  }
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
  const auto both = support::import_foreign(
      "hf_vit", theirs, text_of(folder + "hf_vit_5/config.json"), "config.json");
  CHECK(both.rest == std::vector<std::string>{"pooler.dense.bias", "pooler.dense.weight"});
  CHECK(both.initial.empty());
}

TEST_CASE("import: what it writes is read as a model, and models of ours can be exported") {
  const std::string path = (std::filesystem::temp_directory_path() /
                            "widenet_test_foreign.safetensors").string();
  const auto imported = support::import_foreign("timm_vit", folder + "timm_vit");
  write_safetensors(path, imported.file);
  const VisionModel<float> model = load_vision_model<float>(path);
  const SafeTensors run = run_of("timm_vit");
  CHECK(check::same_bits(model.forward(tensor_of<float>(run, "in.images")).logits.to_vector(),
                         vision_outputs<float>(imported.file, run).at("logits")));

  // Without the notes of an import, as after training: into every kind of ViT and back.
  SafeTensors ours = imported.file;
  ours.metadata = {{"config", ours.metadata.at("config")}};
  for (const char* kind : {"timm_vit", "hf_vit"}) {
    INFO(kind);
    const auto exported = support::export_foreign(kind, ours, path);
    CHECK(exported.rest.empty());
    const auto back = support::import_foreign(kind, exported.file, exported.config, "exported");
    CHECK(back.rest.empty());
    CHECK(back.file.metadata.at("config") == ours.metadata.at("config"));
    for (const auto& entry : ours.tensors) CHECK(back.file.at(entry.first).bytes ==
                                                 entry.second.bytes);
  }
  SafeTensors albert = support::import_foreign("hf_albert", folder + "hf_albert").file;
  albert.metadata = {{"config", albert.metadata.at("config")}};
  const auto exported = support::export_foreign("hf_albert", albert, path);
  const auto back =
      support::import_foreign("hf_albert", exported.file, exported.config, "exported");
  CHECK(back.file.metadata.at("config") == albert.metadata.at("config"));
  CHECK(back.file.tensors.size() == albert.tensors.size());
  CHECK(back.initial.empty());
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
      "vit.encoder.layer.1.output.dense.weight, vit.layernorm.bias", IoError);
  CHECK_THROWS_WITH_AS(import("hf_vit", "hf_vit", replace("patch_size\": 2", "patch_size\": 1")),
                       "widenet: import: FILE: vit.embeddings.position_embeddings must have shape "
                       "(1, 25, 12); got (1, 7, 12)", IoError);
  CHECK_THROWS_WITH_AS(
      import("hf_vit", "hf_vit", [](SafeTensors& file, std::string&) {
        file.tensors.at("vit.layernorm.bias") = {"F16", Shape{12}, std::vector<char>(24)};
      }),
      "widenet: import: FILE: vit.layernorm.bias must have type F32; got F16; hint: "
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
                       "widenet: json: FILE: a value must be a number; got another type", IoError);
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
                       "widenet: import: no/such/folder/config.json: the file must open", IoError);
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
                                         "pre-norm, with a trained class token, and share nothing; "
                                         "got {"), ConfigError);
  c.encoder.experts = 0, c.class_token = ClassToken::trained, c.pooling = Pooling::class_token;
  c.encoder.share_attention = c.encoder.share_experts = false, c.encoder.layer_norm_eps = 1e-5;
  CHECK_THROWS_WITH_AS(refused(c), doctest::Contains("have a layer_norm_eps of 1e-6; got {"),
                       ConfigError);
  c.encoder.layer_norm_eps = 1e-6;
  CHECK_THROWS_WITH_AS(refused(c), "widenet: safetensors: a tensor must be there; got none named "
                                   "cls_token", IoError);
  CHECK_THROWS_WITH_AS(support::export_foreign("hf_switch", SafeTensors(), "FILE"),
                       "widenet: export: hf_switch: the file must come from an import of "
                       "hf_switch; got FILE", ConfigError);
}
