// foreign.hpp - weights from elsewhere, and back: ALBERT, ViT and the experts of Switch from
// transformers, ViT from timm.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_FOREIGN_HPP
#define WIDENET_EXAMPLES_SUPPORT_FOREIGN_HPP

#include "support/half.hpp"
#include "widenet.hpp"

#include <algorithm>   // find, max, min
#include <cmath>       // isfinite
#include <cstdint>     // int32_t
#include <cstdlib>     // atol
#include <cstring>     // memcpy, strlen
#include <filesystem>  // create_directories, is_directory
#include <fstream>     // ifstream, ofstream
#include <iomanip>     // setprecision
#include <iterator>    // istreambuf_iterator
#include <map>         // map
#include <set>         // set
#include <sstream>     // istringstream
#include <string>      // getline, string, to_string
#include <system_error>  // error_code
#include <utility>     // move
#include <vector>      // vector

namespace widenet::support {

// THE TABLE OF NAMES ------------------------------------------------------------------------------

/// One tensor of theirs and what it is called here: read from left to right in an import, from
/// right to left in an export. Nothing is computed, values are only moved, so one undoes the other.
struct Renaming {
  std::vector<std::string> theirs;  // its names, by generation and prefix; one of them is in a file
  Shape shape;                      // of theirs
  std::vector<std::string> ours;    // one, or as many as the first axis of theirs is cut into
  Shape our_shape;                  // of each
  std::vector<Index> axes;          // which axis of theirs is the first, second, ... of ours
  bool is_required = true;          // false: a head, or whatever else a file may lack
};

/// The rows of a table as they come: stems of names without prefix and without ".weight".
class Renamings {
 public:
  explicit Renamings(std::vector<std::string> prefixes) : prefixes_(std::move(prefixes)) {}

  /// One tensor into one tensor.
  void add(const std::vector<std::string>& theirs, const Shape& shape, const std::string& ours,
           const Shape& our_shape, const std::vector<Index>& axes = {}) {
    add_parts(theirs, shape, {ours}, our_shape, axes);
  }
  /// A torch Linear: weight (out, in) and bias (out); ours is (in, out).
  void linear(const std::vector<std::string>& theirs, const std::string& ours, Index in,
              Index out) {
    linears(theirs, {ours}, in, out);
  }
  /// Several of them in one, one above the other: weight (n out, in) and bias (n out).
  void linears(const std::vector<std::string>& theirs, const std::vector<std::string>& ours,
               Index in, Index out) {
    const Index n = static_cast<Index>(ours.size());
    add_parts(with(theirs, ".weight"), {n * out, in}, with(ours, ".weight"), {in, out}, {1, 0});
    add_parts(with(theirs, ".bias"), {n * out}, with(ours, ".bias"), {out}, {});
  }
  void norm(const std::vector<std::string>& theirs, const std::string& ours, Index width) {
    for (const char* part : {".weight", ".bias"})
      add(with(theirs, part), {width}, ours + part, {width});
  }
  /// What follows may be missing in a file.
  void optional_from_here() { is_required_ = false; }
  /// What follows has these prefixes.
  void set_prefixes(std::vector<std::string> prefixes) { prefixes_ = std::move(prefixes); }
  std::vector<Renaming> rows;

 private:
  static std::vector<std::string> with(std::vector<std::string> names, const char* part) {
    for (std::string& name : names) name += part;
    return names;
  }
  void add_parts(const std::vector<std::string>& theirs, const Shape& shape,
                 const std::vector<std::string>& ours, const Shape& our_shape,
                 std::vector<Index> axes) {
    if (axes.empty())
      for (Index i = 0; i < shape.rank(); ++i) axes.push_back(i);
    std::vector<std::string> names;
    for (const std::string& stem : theirs)
      for (const std::string& prefix : prefixes_) names.push_back(prefix + stem);
    rows.push_back({names, shape, ours, our_shape, axes, is_required_});
  }
  std::vector<std::string> prefixes_;
  bool is_required_ = true;
};

namespace foreign {

/// The values of one tensor with its axes in another order: axis i of the result is axes[i].
inline std::vector<char> with_axes(const char* values, const Shape& shape,
                                   const std::vector<Index>& axes, Index bytes_per_value) {
  const std::size_t rank = axes.size(), size = static_cast<std::size_t>(bytes_per_value);
  std::vector<Index> stride(rank, 1), extent(rank), step(rank), at(rank, 0);
  for (std::size_t i = rank; i-- > 1;)
    stride[i - 1] = stride[i] * shape[static_cast<Index>(i)];
  for (std::size_t i = 0; i < rank; ++i) {
    extent[i] = shape[axes[i]];
    step[i] = stride[static_cast<std::size_t>(axes[i])];
  }
  std::vector<char> result(static_cast<std::size_t>(shape.num_values()) * size);
  Index from = 0;
  for (std::size_t to = 0; to < result.size(); to += size) {
    std::memcpy(result.data() + to, values + from * bytes_per_value, size);
    for (std::size_t i = rank; i-- > 0;) {  // the next index, as an odometer
      from += step[i];
      if (++at[i] < extent[i]) break;
      from -= step[i] * extent[i];
      at[i] = 0;
    }
  }
  return result;
}

/// One of the parts that the first axis of theirs is cut into.
inline Shape part_of(const Renaming& row) {
  std::vector<Index> extents = row.shape.extents();
  extents[0] /= static_cast<Index>(row.ours.size());
  return Shape(extents);
}

/// "a, b, c and 7 more"
inline std::string list_of(const std::vector<std::string>& names, std::size_t most = 12) {
  std::string text;
  for (std::size_t i = 0; i < std::min(most, names.size()); ++i)
    text += (i ? ", " : "") + names[i];
  if (names.size() > most) text += " and " + std::to_string(names.size() - most) + " more";
  return names.empty() ? "none" : text;
}

inline std::vector<std::string> names_of(const SafeTensors& file) {
  std::vector<std::string> names;
  for (const auto& entry : file.tensors) names.push_back(entry.first);
  return names;
}

[[noreturn]] inline void fail_unknown(const std::string& source, const SafeTensors& theirs,
                                      const std::vector<std::string>& expected) {
  fail<IoError>("import: ", source, ": some name must be known; got ", list_of(names_of(theirs)),
                "; hint: expected ", list_of(expected));
}

/// The names of a row that a file has: none, one, or several of one tensor, such as a decoder that
/// is tied to the embeddings.
///
///   Errors    IoError if their tensors differ
inline std::vector<std::string> names_in(const SafeTensors& file, const Renaming& row,
                                         const std::string& source) {
  std::vector<std::string> names;
  for (const std::string& name : row.theirs) {
    const auto found = file.tensors.find(name);
    if (found == file.tensors.end()) continue;
    const StoredTensor& tensor = found->second;
    const StoredTensor& first = names.empty() ? tensor : file.at(names[0]);
    require<IoError>(tensor.dtype == first.dtype && tensor.shape == first.shape &&
                         tensor.bytes == first.bytes,
                     "import: ", source, ": two names of a tensor must have the same values; got "
                     "others in ", names.empty() ? name : names[0], " than in ", name);
    names.push_back(name);
  }
  return names;
}

/// What a row belongs to that a file may lack as a whole: "mlm" of "mlm.norm.weight".
inline std::string head_of(const Renaming& row) {
  return row.ours[0].substr(0, row.ours[0].find('.'));
}

inline bool is_finite(const StoredTensor& tensor) {
  for (std::size_t at = 0; at < tensor.bytes.size(); at += sizeof(float)) {
    float value;
    std::memcpy(&value, tensor.bytes.data() + at, sizeof value);
    if (!std::isfinite(value)) return false;
  }
  return true;
}

}  // namespace foreign

/// What a table makes of a file.
struct Renamed {
  SafeTensors file;                      // under the new names
  std::vector<std::string> used, rest;   // names of theirs that the table knows, and the others
  std::vector<std::string> not_finite;   // used, with an infinity or NaN among the values
};

/// Their tensors under our names and in our layout, as float32: float16 and bfloat16 are widened,
/// which changes no value.
///
///   Errors    IoError that lists the names if none matches or some are missing; IoError if a head
///             is there in part, two names of a tensor have different values, or a tensor has
///             another shape or type
inline Renamed import_tensors(const std::vector<Renaming>& table, const SafeTensors& theirs,
                              const std::string& source) {
  Renamed result;
  std::vector<std::string> expected, missing;
  std::vector<std::vector<std::string>> names;  // of each row
  std::set<std::string> used, heads;
  for (const Renaming& row : table) {
    names.push_back(foreign::names_in(theirs, row, source));
    used.insert(names.back().begin(), names.back().end());
    if (row.is_required) expected.push_back(row.theirs[0]);
    else if (!names.back().empty()) heads.insert(foreign::head_of(row));
  }
  for (const std::string& name : foreign::names_of(theirs))
    (used.count(name) > 0 ? result.used : result.rest).push_back(name);
  if (used.empty()) foreign::fail_unknown(source, theirs, expected);
  for (std::size_t i = 0; i < table.size(); ++i)
    if (names[i].empty() && (table[i].is_required || heads.count(foreign::head_of(table[i])) > 0))
      missing.push_back(table[i].theirs[0]);
  require<IoError>(missing.empty(), "import: ", source,
                   ": every tensor of the model must be there; got none named ",
                   foreign::list_of(missing), "; hint: names that nothing reads: ",
                   foreign::list_of(result.rest));
  for (std::size_t r = 0; r < table.size(); ++r) {
    if (names[r].empty()) continue;
    const Renaming& row = table[r];
    const std::string& name = names[r][0];
    const StoredTensor& stored = theirs.at(name);
    require<IoError>(stored.shape == row.shape, "import: ", source, ": ", name,
                     " must have shape ", row.shape, "; got ", stored.shape);
    const StoredTensor tensor = widened(stored);
    require<IoError>(tensor.dtype == "F32", "import: ", source, ": ", name,
                     " must have type F32, F16 or BF16; got ", tensor.dtype,
                     "; hint: model.float() before saving");
    if (!foreign::is_finite(tensor)) result.not_finite.push_back(name);
    const Shape part = foreign::part_of(row);
    for (std::size_t i = 0; i < row.ours.size(); ++i) {
      const std::size_t bytes = tensor.bytes.size() / row.ours.size();
      result.file.tensors[row.ours[i]] = {
          tensor.dtype, row.our_shape,
          foreign::with_axes(tensor.bytes.data() + i * bytes, part, row.axes, 4)};
    }
  }
  return result;
}

/// Our tensors under their names and in their layout. Of the names that a row knows those in
/// `names` are taken, or the first one if `names` is empty; a row without any of `names` is left
/// out.
///
///   Errors    IoError if one of ours is missing, of another shape or not of float32
inline Renamed export_tensors(const std::vector<Renaming>& table, const SafeTensors& ours,
                              const std::set<std::string>& names = {}) {
  Renamed result;
  std::set<std::string> written;
  for (const Renaming& row : table) {
    std::vector<std::string> chosen;
    for (const std::string& name : row.theirs)
      if (names.count(name) > 0) chosen.push_back(name);
    if (names.empty()) chosen = {row.theirs[0]};
    if (chosen.empty()) continue;
    if (!row.is_required && ours.tensors.count(row.ours[0]) == 0) continue;
    const Shape part = foreign::part_of(row);
    std::vector<Index> back(row.axes.size()), extents;
    for (std::size_t i = 0; i < row.axes.size(); ++i) {
      back[static_cast<std::size_t>(row.axes[i])] = static_cast<Index>(i);
      extents.push_back(part[row.axes[i]]);
    }
    StoredTensor tensor{"F32", row.shape, {}};
    for (const std::string& name : row.ours) {
      const StoredTensor& stored = ours.at(name);
      require<IoError>(stored.shape == row.our_shape && stored.dtype == "F32", "export: ", name,
                       " must be F32 of shape ", row.our_shape, "; got ", stored.dtype, " of ",
                       stored.shape);
      const std::vector<char> bytes =
          foreign::with_axes(stored.bytes.data(), Shape(extents), back, 4);
      tensor.bytes.insert(tensor.bytes.end(), bytes.begin(), bytes.end());
      written.insert(name);
    }
    for (const std::string& name : chosen) {
      result.file.tensors[name] = tensor;
      result.used.push_back(name);
    }
  }
  for (const auto& entry : ours.tensors)
    if (written.count(entry.first) == 0) result.rest.push_back(entry.first);
  return result;
}

// SETTINGS ----------------------------------------------------------------------------------------

/// Reads config.json: what weights do not say. Every value is checked.
class ForeignSettings {
 public:
  ForeignSettings(const Json& json, std::string source)
      : json_(json), source_(std::move(source)) {}

  bool has(const std::string& key) const { return json_.find(key) != nullptr; }
  const Json& at(const std::string& key) const { return json_.at(key); }
  ForeignSettings inside(const std::string& key) const {
    return {json_.at(key), source_ + ": " + key};
  }
  /// A number of things, so small that no product of two overflows.
  Index count(const std::string& key) const {
    return checked(key, typed(key, Json::Type::number, "a number").integer());
  }
  /// (height, width), of a number for both or of a list.
  std::vector<Index> sides(const std::string& key) const {
    const Json& value = json_.at(key);
    if (value.type() == Json::Type::number) return {count(key), count(key)};
    typed(key, Json::Type::array, "a number or a list of them");
    std::vector<Index> found;
    for (const Json& item : value.items()) found.push_back(checked(key, item.integer()));
    require<ConfigError>(found.size() == 2 || found.size() == 3, "import: ", source_, ": ", key,
                         " must be (height, width); got ", found.size(), " numbers");
    return {found[found.size() - 2], found.back()};  // timm has the channels before them
  }
  double eps(const std::string& key) const {
    const double value = typed(key, Json::Type::number, "a number").number();
    require<ConfigError>(value > 0 && value < 1, "import: ", source_, ": ", key,
                         " must lie in (0, 1); got ", value);
    return value;
  }
  /// The fraction that dropout takes; 0 if nothing is said.
  double dropout(const std::string& key) const {
    if (!has(key)) return 0;
    const double value = typed(key, Json::Type::number, "a number").number();
    require<ConfigError>(0 <= value && value < 1, "import: ", source_, ": ", key,
                         " must lie in [0, 1); got ", value);
    return value;
  }
  /// How many classes have a name in id2label; 0 if nothing is said.
  Index num_labels() const {
    const Json* const labels = json_.find("id2label");
    return labels && labels->is_object() ? static_cast<Index>(labels->members().size()) : 0;
  }
  const std::string& text(const std::string& key) const {
    return typed(key, Json::Type::string, "a text").string();
  }
  Gelu gelu(const std::string& key) const {
    const std::string& name = text(key);
    const bool is_tanh = name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_tanh";
    require<ConfigError>(is_tanh || name == "gelu", "import: ", source_, ": ", key,
                         " must be \"gelu\" (erf), or \"gelu_new\", \"gelu_pytorch_tanh\" or "
                         "\"gelu_tanh\" (tanh); got \"", name, "\"");
    return is_tanh ? Gelu::tanh : Gelu::erf;
  }
  /// What has no counterpart here but one value; nothing is checked if the key is not there.
  void only(const std::string& key, const std::string& expected) const {
    if (!has(key)) return;
    const Json& value = json_.at(key);
    const std::string got = value.type() == Json::Type::string    ? value.string()
                            : value.type() == Json::Type::boolean ? word(value.boolean())
                            : value.type() == Json::Type::number  ? std::to_string(value.integer())
                                                                  : "another type";
    require<ConfigError>(got == expected, "import: ", source_, ": ", key, " must be ", expected,
                         "; got ", got);
  }
  void only_keys(const std::set<std::string>& known) const {
    for (const auto& member : json_.members())
      require<ConfigError>(known.count(member.first) > 0, "import: ", source_,
                           ": every key must be known not to alter the model; got ", member.first);
  }
  const std::string& source() const { return source_; }

 private:
  static const char* word(bool value) { return value ? "true" : "false"; }
  const Json& typed(const std::string& key, Json::Type type, const char* what) const {
    const Json& value = json_.at(key);
    require<ConfigError>(value.type() == type, "import: ", source_, ": ", key, " must be ", what,
                         "; got another type");
    return value;
  }
  Index checked(const std::string& key, Index value) const {
    require<ConfigError>(0 < value && value <= (Index(1) << 20), "import: ", source_, ": ", key,
                         " must lie in [1, 2^20]; got ", value);
    return value;
  }
  const Json& json_;
  std::string source_;
};

// KINDS -------------------------------------------------------------------------------------------

namespace foreign {

/// What every layer of ours has in common with theirs, under their names for it.
struct BlockNames {
  std::vector<std::string> norm1, norm2, q, k, v, o, fc1, fc2, qkv;
};
inline void add_block(Renamings& table, const BlockNames& theirs, const std::string& layers,
                      const std::string& norms, const EncoderConfig& e) {
  const std::string attn = layers + "attn.", ffn = layers + "ffn.";
  table.norm(theirs.norm1, norms + "norm1", e.width);
  if (theirs.qkv.empty()) {
    table.linear(theirs.q, attn + "q", e.width, e.width);
    table.linear(theirs.k, attn + "k", e.width, e.width);
    table.linear(theirs.v, attn + "v", e.width, e.width);
  } else {
    table.linears(theirs.qkv, {attn + "q", attn + "k", attn + "v"}, e.width, e.width);
  }
  table.linear(theirs.o, attn + "o", e.width, e.width);
  table.norm(theirs.norm2, norms + "norm2", e.width);
  table.linear(theirs.fc1, ffn + "fc1", e.width, e.dense_hidden);
  table.linear(theirs.fc2, ffn + "fc2", e.dense_hidden, e.width);
}

/// Class token, positions and patches, whose convolution (D, channels, P, P) is (P P channels, D)
/// here.
inline void add_patches(Renamings& table, const std::string& token, const std::string& positions,
                        const std::string& patches, const VisionConfig& c) {
  const Index D = c.encoder.width, P = c.patch, T = c.num_tokens();
  table.add({token}, {1, 1, D}, "cls_token", {D});
  table.add({positions}, {1, T, D}, "pos_embed", {T, D});
  table.add({patches + ".weight"}, {D, c.channels, P, P}, "patch_embed.proj.weight",
            {P * P * c.channels, D}, {2, 3, 1, 0});
  table.add({patches + ".bias"}, {D}, "patch_embed.proj.bias", {D});
}

/// The rows of a matrix in a file; 0 if it is no matrix.
inline Index rows_of(const StoredTensor& tensor) {
  return tensor.shape.rank() == 2 ? tensor.shape[0] : 0;
}

/// How many classes a file has a classifier for, which must be as many as its settings name, if
/// they do; `otherwise` if it has none.
inline Index classes_of(const SafeTensors& theirs, const std::string& name, Index named,
                        Index otherwise, const std::string& source) {
  const auto found = theirs.tensors.find(name);
  if (found == theirs.tensors.end()) return otherwise;
  const Index rows = rows_of(found->second);
  require<IoError>(rows > 0 && (named == 0 || rows == named), "import: ", source, ": ", name,
                   " must have a row for each class", named > 0 ? ", " + std::to_string(named) : "",
                   "; got shape ", found->second.shape);
  return rows;
}

/// config.json must not ask for more than lies beside it.
inline void require_held(Index count, const SafeTensors& theirs, const std::string& source) {
  const Index held = static_cast<Index>(theirs.tensors.size());
  require<IoError>(count <= held, "import: ", source,
                   ": the settings must describe the weights beside them; got ", count,
                   " blocks or experts for ", held, " tensors");
}

}  // namespace foreign

/// HF ViT: the names of files on the hub, and those that transformers 5 has in memory.
///
///   Source    transformers, models/vit/modeling_vit.py, and conversion_mapping.py
inline std::vector<Renaming> hf_vit_table(const VisionConfig& c) {
  const EncoderConfig& e = c.encoder;
  Renamings table({"vit.", ""});
  foreign::add_patches(table, "embeddings.cls_token", "embeddings.position_embeddings",
                       "embeddings.patch_embeddings.projection", c);
  for (Index i = 0; i < e.blocks; ++i) {
    const std::string block = std::to_string(i) + ".";
    const auto both = [&](const std::string& hub, const std::string& memory) {
      return std::vector<std::string>{"encoder.layer." + block + hub, "layers." + block + memory};
    };
    foreign::BlockNames names;
    names.norm1 = both("layernorm_before", "layernorm_before");
    names.norm2 = both("layernorm_after", "layernorm_after");
    names.q = both("attention.attention.query", "attention.q_proj");
    names.k = both("attention.attention.key", "attention.k_proj");
    names.v = both("attention.attention.value", "attention.v_proj");
    names.o = both("attention.output.dense", "attention.o_proj");
    names.fc1 = both("intermediate.dense", "mlp.fc1");
    names.fc2 = both("output.dense", "mlp.fc2");
    foreign::add_block(table, names, "blocks." + block, "blocks." + block, e);
  }
  table.norm({"layernorm"}, "norm", e.width);
  table.optional_from_here();
  if (c.has_pre_logits) table.linear({"pooler.dense"}, "pre_logits", e.width, e.width);
  table.set_prefixes({""});
  if (!c.has_pre_logits) table.linear({"classifier"}, "head", e.width, c.classes);
  return table.rows;
}

/// timm's ViT: queries, keys and values in one Linear.
///
///   Source    timm, models/vision_transformer.py, VisionTransformer
inline std::vector<Renaming> timm_vit_table(const VisionConfig& c) {
  const EncoderConfig& e = c.encoder;
  Renamings table({""});
  foreign::add_patches(table, "cls_token", "pos_embed", "patch_embed.proj", c);
  for (Index i = 0; i < e.blocks; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    foreign::BlockNames names;
    names.norm1 = {block + "norm1"}, names.norm2 = {block + "norm2"};
    names.qkv = {block + "attn.qkv"}, names.o = {block + "attn.proj"};
    names.fc1 = {block + "mlp.fc1"}, names.fc2 = {block + "mlp.fc2"};
    foreign::add_block(table, names, block, block, e);
  }
  table.norm({"norm"}, "norm", e.width);
  table.optional_from_here();
  table.linear({"head"}, "head", e.width, c.classes);
  return table.rows;
}

/// HF ALBERT: one group of layers for all blocks, or a group for each.
///
///   Source    transformers, models/albert/modeling_albert.py
inline std::vector<Renaming> hf_albert_table(const LanguageConfig& c) {
  const EncoderConfig& e = c.encoder;
  const Index D = e.width, W = c.embedding;
  Renamings table({"albert.", ""});
  table.add({"embeddings.word_embeddings.weight", "predictions.decoder.weight"},
            {c.vocabulary, W}, "embeddings.word.weight", {c.vocabulary, W});
  table.add({"embeddings.position_embeddings.weight"}, {c.max_tokens, W},
            "embeddings.position.weight", {c.max_tokens, W});
  table.add({"embeddings.token_type_embeddings.weight"}, {c.types, W}, "embeddings.type.weight",
            {c.types, W});
  table.norm({"embeddings.LayerNorm"}, "embeddings.norm", W);
  table.linear({"encoder.embedding_hidden_mapping_in"}, "embeddings.projection", W, D);
  for (Index g = 0; g < (e.share_attention ? 1 : e.blocks); ++g) {
    const std::string layer =
        "encoder.albert_layer_groups." + std::to_string(g) + ".albert_layers.0.";
    const std::string ours = e.share_attention ? "shared." : "blocks." + std::to_string(g) + ".";
    foreign::BlockNames names;
    names.norm1 = {layer + "attention.LayerNorm"}, names.norm2 = {layer + "full_layer_layer_norm"};
    names.q = {layer + "attention.query"}, names.k = {layer + "attention.key"};
    names.v = {layer + "attention.value"}, names.o = {layer + "attention.dense"};
    names.fc1 = {layer + "ffn"}, names.fc2 = {layer + "ffn_output"};
    foreign::add_block(table, names, ours, ours, e);
  }
  table.optional_from_here();
  table.linear({"pooler"}, "pooler", D, D);
  table.set_prefixes({""});
  table.linear({"predictions.dense"}, "mlm.transform", D, W);
  table.norm({"predictions.LayerNorm"}, "mlm.norm", W);
  table.add({"predictions.bias", "predictions.decoder.bias"}, {c.vocabulary}, "mlm.bias",
            {c.vocabulary});
  table.linear({"sop_classifier.classifier"}, "order", D, 2);
  table.linear({"classifier"}, "classifier", D, c.classes);
  table.linear({"qa_outputs"}, "span", D, 2);
  return table.rows;
}

/// What of a SwitchTransformers encoder is a mixture of experts: of every sparse block i the
/// router and the experts, as blocks.i.moe. They have no biases.
struct SwitchConfig {
  Index width = 0, hidden = 0, experts = 0, slots = 0;  // D, F, E, C of a sequence
  std::vector<Index> sparse_blocks;
  std::string activation;                               // "relu", or as for ForeignSettings::gelu
};

/// Source    transformers, models/switch_transformers/modeling_switch_transformers.py
inline std::vector<Renaming> hf_switch_table(const SwitchConfig& c) {
  Renamings table({""});
  for (const Index i : c.sparse_blocks) {
    const std::string mlp = "encoder.block." + std::to_string(i) + ".layer.1.mlp.";
    const std::string ours = "blocks." + std::to_string(i) + ".moe.";
    table.add({mlp + "router.classifier.weight"}, {c.experts, c.width}, ours + "router.weight",
              {c.width, c.experts}, {1, 0});
    for (Index e = 0; e < c.experts; ++e) {
      const std::string name = mlp + "experts.expert_" + std::to_string(e) + ".";
      const std::string expert = ours + "experts." + std::to_string(e) + ".";
      table.add({name + "wi.weight"}, {c.hidden, c.width}, expert + "fc1.weight",
                {c.width, c.hidden}, {1, 0});
      table.add({name + "wo.weight"}, {c.width, c.hidden}, expert + "fc2.weight",
                {c.hidden, c.width}, {1, 0});
    }
  }
  return table.rows;
}

/// Our configuration of their ViT. A model with a classifier has no pooler that counts; one without
/// keeps it as pre_logits, and its logits are its pooled output.
///
///   Errors    ConfigError or IoError if a setting is missing or has no counterpart here
inline VisionConfig hf_vit_config(const ForeignSettings& settings, const SafeTensors& file) {
  settings.only("model_type", "vit"), settings.only("qkv_bias", "true");
  settings.only("position_embedding_type", "absolute");
  VisionConfig c;
  const std::vector<Index> sides = settings.sides("image_size");
  c.image_height = sides[0], c.image_width = sides[1];
  c.channels = settings.count("num_channels"), c.patch = settings.count("patch_size");
  c.class_token = ClassToken::trained, c.pooling = Pooling::class_token;
  EncoderConfig& e = c.encoder;
  e.width = settings.count("hidden_size"), e.blocks = settings.count("num_hidden_layers");
  e.heads = settings.count("num_attention_heads");
  e.dense_hidden = settings.count("intermediate_size");
  e.gelu = settings.gelu("hidden_act"), e.layer_norm_eps = settings.eps("layer_norm_eps");
  e.experts = 0, e.share_attention = e.share_router = e.share_experts = false;
  e.dropout = settings.dropout("hidden_dropout_prob");
  foreign::require_held(e.blocks, file, settings.source());
  const bool has_classifier = file.tensors.count("classifier.weight") > 0;
  c.classes = foreign::classes_of(file, "classifier.weight", settings.num_labels(), e.width,
                                  settings.source());
  c.has_pre_logits = !has_classifier && (file.tensors.count("pooler.dense.weight") > 0 ||
                                         file.tensors.count("vit.pooler.dense.weight") > 0);
  if (c.has_pre_logits) settings.only("pooler_act", "tanh");
  return c;
}

/// The number of heads of an architecture of timm, which its config.json need not say: vit or deit,
/// a size, the patch and the side of an image, as in vit_base_patch16_224. Models with more in
/// their names have other parts than these.
///
///   Errors    ConfigError if the name is another
///   Source    timm, models/vision_transformer.py and deit.py
inline Index timm_heads(const std::string& architecture, const std::string& source) {
  static const std::map<std::string, Index> heads = {
      {"tiny", 3}, {"small", 6}, {"base", 12}, {"large", 16}, {"huge", 16}, {"giant", 16},
      {"gigantic", 16}};
  std::istringstream in(architecture);
  std::vector<std::string> words;
  for (std::string word; std::getline(in, word, '_');) words.push_back(word);
  const auto is_number = [](const std::string& word) {
    return !word.empty() && word.find_first_not_of("0123456789") == std::string::npos;
  };
  const bool is_plain = words.size() == 4 && (words[0] == "vit" || words[0] == "deit") &&
                        heads.count(words[1]) > 0 && words[2].rfind("patch", 0) == 0 &&
                        is_number(words[2].substr(5)) && is_number(words[3]);
  require<ConfigError>(is_plain, "import: ", source, ": architecture must be a plain ViT, such as "
                       "vit_base_patch16_224; got ", architecture);
  return heads.at(words[1]);
}

/// Our configuration of timm's ViT. Its config.json does not know eps, which is 1e-6 unless a key
/// layer_norm_eps, of our own, says otherwise. What the weights say is read from them; model_args
/// holds what differs from the architecture that is named.
///
///   Errors    ConfigError or IoError as for hf_vit_config, or if weights alter the model in a way
///             that it has no counterpart for, such as ls1.gamma
inline VisionConfig timm_vit_config(const ForeignSettings& settings, const SafeTensors& file) {
  static const Json no_args = Json::parse("{}", "model_args");
  const ForeignSettings args =
      settings.has("model_args") ? settings.inside("model_args")
                                 : ForeignSettings(no_args, settings.source());
  const Index heads = timm_heads(settings.text("architecture"), settings.source());
  args.only_keys({"img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim",
                  "depth", "num_heads", "mlp_ratio", "qkv_bias", "fc_norm", "act_layer",
                  "weight_init", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate",
                  "attn_drop_rate", "drop_path_rate"});
  args.only("qkv_bias", "true"), args.only("fc_norm", "false");
  for (const auto& entry : file.tensors)
    for (const char* part : {".ls1.", ".ls2.", ".q_norm.", ".k_norm.", "norm_pre.", "fc_norm.",
                             "reg_token", "pre_logits."})
      require<ConfigError>(entry.first.find(part) == std::string::npos, "import: ",
                           settings.source(), ": no weight may alter the model; got ",
                           entry.first);
  VisionConfig c;
  const std::vector<Index> sides =
      args.has("img_size")             ? args.sides("img_size")
      : settings.has("pretrained_cfg") ? settings.inside("pretrained_cfg").sides("input_size")
                                       : settings.sides("input_size");  // of older files
  c.image_height = sides[0], c.image_width = sides[1];
  for (const char* name : {"patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"})
    if (file.tensors.count(name) == 0)
      foreign::fail_unknown(settings.source(), file,
                            {"patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "..."});
  const Shape& patches = file.at("patch_embed.proj.weight").shape;
  require<IoError>(patches.rank() == 4 && patches.num_values() > 0, "import: ", settings.source(),
                   ": patch_embed.proj.weight must be (D, channels, P, P); got ", patches);
  c.channels = patches[1], c.patch = patches[2];
  const std::string& pool = settings.text("global_pool");
  require<ConfigError>(pool == "token" || pool == "avg", "import: ", settings.source(),
                       ": global_pool must be \"token\" or \"avg\"; got \"", pool, "\"");
  c.class_token = ClassToken::trained;
  c.pooling = pool == "token" ? Pooling::class_token : Pooling::patch_mean;
  EncoderConfig& e = c.encoder;
  e.width = patches[0], e.heads = args.has("num_heads") ? args.count("num_heads") : heads;
  e.blocks = 0;
  while (file.tensors.count("blocks." + std::to_string(e.blocks) + ".norm1.weight") > 0) ++e.blocks;
  for (const auto& entry : file.tensors)  // blocks that come after a gap
    require<ConfigError>(entry.first.rfind("blocks.", 0) != 0 ||
                             std::atol(entry.first.c_str() + 7) < e.blocks,
                         "import: ", settings.source(), ": blocks must be 0 to ", e.blocks - 1,
                         ", each with norm1.weight; got ", entry.first);
  require<ConfigError>(!args.has("depth") || args.count("depth") == e.blocks, "import: ",
                       settings.source(), ": depth must be that of the file, ", e.blocks);
  e.dense_hidden = foreign::rows_of(file.at("blocks.0.mlp.fc1.weight"));
  e.gelu = args.has("act_layer") ? args.gelu("act_layer") : Gelu::erf;
  e.layer_norm_eps = settings.has("layer_norm_eps") ? settings.eps("layer_norm_eps") : 1e-6;
  e.experts = 0, e.share_attention = e.share_router = e.share_experts = false;
  e.dropout = args.dropout("proj_drop_rate");
  require<ConfigError>(args.dropout("pos_drop_rate") == e.dropout, "import: ", settings.source(),
                       ": pos_drop_rate and proj_drop_rate must be equal; got ",
                       args.dropout("pos_drop_rate"), ", ", e.dropout);
  const bool has_head = file.tensors.count("head.weight") > 0;
  const Index named = has_head && settings.has("num_classes") ? settings.count("num_classes") : 0;
  c.classes = foreign::classes_of(file, "head.weight", named, e.width, settings.source());
  return c;
}

/// Our configuration of their ALBERT.
///
///   Errors    ConfigError or IoError as for hf_vit_config
inline LanguageConfig hf_albert_config(const ForeignSettings& settings, const SafeTensors& file) {
  settings.only("model_type", "albert"), settings.only("inner_group_num", "1");
  settings.only("position_embedding_type", "absolute");
  LanguageConfig c;
  c.vocabulary = settings.count("vocab_size"), c.embedding = settings.count("embedding_size");
  c.max_tokens = settings.count("max_position_embeddings");
  c.types = settings.count("type_vocab_size");
  EncoderConfig& e = c.encoder;
  e.width = settings.count("hidden_size"), e.blocks = settings.count("num_hidden_layers");
  e.heads = settings.count("num_attention_heads");
  e.dense_hidden = settings.count("intermediate_size");
  e.gelu = settings.gelu("hidden_act"), e.layer_norm_eps = settings.eps("layer_norm_eps");
  e.experts = 0, e.is_pre_norm = false;
  const Index groups = settings.count("num_hidden_groups");
  require<ConfigError>(groups == 1 || groups == e.blocks, "import: ", settings.source(),
                       ": num_hidden_groups must be 1 or num_hidden_layers = ", e.blocks, "; got ",
                       groups);
  e.share_attention = e.share_router = e.share_experts = e.share_layer_norm = groups == 1;
  e.dropout = settings.dropout("hidden_dropout_prob");
  if (groups > 1) foreign::require_held(groups, file, settings.source());
  const Index named = settings.num_labels();
  c.classes = foreign::classes_of(file, "classifier.weight", named, named > 0 ? named : 2,
                                  settings.source());
  return c;
}

/// Errors    ConfigError or IoError as for hf_vit_config
inline SwitchConfig hf_switch_config(const ForeignSettings& settings, const SafeTensors& file) {
  settings.only("model_type", "switch_transformers"), settings.only("router_bias", "false");
  SwitchConfig c;
  c.width = settings.count("d_model"), c.hidden = settings.count("d_ff");
  c.experts = settings.count("num_experts"), c.slots = settings.count("expert_capacity");
  c.activation = settings.text("dense_act_fn");
  if (c.activation != "relu") settings.gelu("dense_act_fn");
  const Index layers = settings.count("num_layers");
  const Index step = settings.count("encoder_sparse_step");
  foreign::require_held(std::max(layers, c.experts), file, settings.source());
  for (Index i = 0; i < layers; ++i)
    if (step == 1 || i % step == 1) c.sparse_blocks.push_back(i);
  foreign::require_held(static_cast<Index>(c.sparse_blocks.size()) * c.experts, file,
                        settings.source());
  return c;
}

// IMPORT ------------------------------------------------------------------------------------------

/// A model of ours made of theirs.
struct Imported {
  SafeTensors file;                  // to write; load_vision_model or load_language_model reads it
  std::vector<std::string> matched;  // their names that were read
  std::vector<std::string> rest;     // and those that were not, such as a pooler that nobody asks
  std::vector<std::string> initial;  // ours that their file does not hold: heads
  std::vector<std::string> not_finite;  // matched, with an infinity or NaN among the values
};

namespace foreign {

/// The initial values of what their file does not hold. A model without a classifier gets the
/// identity, so that its logits are what it pools.
template <class Model>
void add_initial(const Model& model, Imported& imported) {
  SafeTensors initial;
  widenet::detail::store(initial, model.parameters());
  for (auto& entry : initial.tensors) {
    if (!imported.file.tensors.emplace(entry.first, entry.second).second) continue;
    imported.initial.push_back(entry.first);
    if (entry.first != "head.weight") continue;
    std::vector<float> identity(static_cast<std::size_t>(entry.second.shape.num_values()));
    const std::size_t D = static_cast<std::size_t>(entry.second.shape[0]);
    for (std::size_t d = 0; d < D; ++d) identity[d * D + d] = 1;
    std::memcpy(imported.file.tensors.at(entry.first).bytes.data(), identity.data(),
                identity.size() * sizeof(float));
  }
}

inline Imported renamed(const std::vector<Renaming>& table, const SafeTensors& theirs,
                        const std::string& source) {
  Renamed r = import_tensors(table, theirs, source);
  for (const std::string& name : r.rest)
    r.file.tensors["foreign." + name] = widened(theirs.at(name));
  return {std::move(r.file), std::move(r.used), std::move(r.rest), {}, std::move(r.not_finite)};
}

template <class Model, class Config>
void complete(const Config& config, Imported& imported) {
  add_initial(Model(config, Rng(0)), imported);
  imported.file.metadata["config"] = to_json(config);
}

}  // namespace foreign

inline const std::vector<std::string>& foreign_kinds() {
  static const std::vector<std::string> kinds = {"hf_albert", "hf_vit", "timm_vit", "hf_switch"};
  return kinds;
}

/// Makes theirs ours, in float32. Their settings are those of a config.json. With their names they
/// stay in the metadata of the result, and tensors that nothing reads stay as foreign.NAME, so that
/// an export writes the same file again.
///
///   hf_albert   AlbertModel and its heads: pre-training, masked words, classes, spans
///   hf_vit      ViTModel, or ViTForImageClassification, under the names of either generation
///   timm_vit    VisionTransformer with a class token, without LayerScale, registers or fc_norm
///   hf_switch   router and experts of the sparse blocks of an encoder
///
///   Errors    ConfigError if the kind is not known or a setting has no counterpart here; IoError
///             as import_tensors, and if a setting is missing or has another type
inline Imported import_foreign(const std::string& kind, const SafeTensors& theirs,
                               const std::string& config, const std::string& source) {
  const Json json = Json::parse(config, source);
  const ForeignSettings settings(json, source);
  const std::vector<std::string>& kinds = foreign_kinds();
  require<ConfigError>(std::find(kinds.begin(), kinds.end(), kind) != kinds.end(),
                       "import: a kind must be one of ", foreign::list_of(kinds), "; got ", kind);
  Imported imported;
  if (kind == "hf_albert") {
    const LanguageConfig c = hf_albert_config(settings, theirs);
    widenet::detail::require_no_violations("import", c.violations());
    imported = foreign::renamed(hf_albert_table(c), theirs, source);
    foreign::complete<LanguageModel<float>>(c, imported);
  } else if (kind == "hf_switch") {
    const SwitchConfig c = hf_switch_config(settings, theirs);
    imported = foreign::renamed(hf_switch_table(c), theirs, source);
  } else {
    const bool is_timm = kind == "timm_vit";
    const VisionConfig c =
        is_timm ? timm_vit_config(settings, theirs) : hf_vit_config(settings, theirs);
    widenet::detail::require_no_violations("import", c.violations());
    imported = foreign::renamed(is_timm ? timm_vit_table(c) : hf_vit_table(c), theirs, source);
    foreign::complete<VisionModel<float>>(c, imported);
  }
  imported.file.metadata["foreign.kind"] = kind;
  imported.file.metadata["foreign.config"] = config;
  std::string names;
  for (const std::string& name : imported.matched) names += (names.empty() ? "" : " ") + name;
  imported.file.metadata["foreign.names"] = names;
  return imported;
}

/// Reads FOLDER/config.json and FOLDER/model.safetensors, as transformers and timm lay them out.
///
///   Errors    IoError if one cannot be read; otherwise as above
inline Imported import_foreign(const std::string& kind, const std::string& folder) {
  const std::string path = folder + "/config.json", weights = folder + "/model.safetensors";
  std::error_code error;
  require<IoError>(!std::filesystem::is_directory(path, error) && std::ifstream(path).good(),
                   "import: ", path, ": the file must open; hint: FOLDER is what save_pretrained "
                   "of transformers or save_for_hf of timm wrote");
  require<IoError>(std::ifstream(weights).good(), "import: ", weights,
                   ": the file must open; hint: weights in parts, or of another format, must be "
                   "saved as one file of safetensors");
  std::ifstream in(path, std::ios::binary);
  const std::string config{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  return import_foreign(kind, read_safetensors(weights), config, path);
}

// EXPORT ------------------------------------------------------------------------------------------

/// Theirs made of ours.
struct Exported {
  SafeTensors file;
  std::string config;             // for their config.json
  std::vector<std::string> rest;  // ours that they have no name for, such as other heads
};

namespace foreign {

/// What kind of model theirs is, or ConfigError that says what must hold.
inline void require_theirs(bool holds, const std::string& kind, const char* rule,
                           const std::string& config) {
  require<ConfigError>(holds, "export: ", kind, ": the model must be ", rule, "; got ", config);
}

/// The same settings for weights in float32: those of 16 bits would round them when they are read.
inline std::string with_float32(std::string config) {
  const char* const blank = " \t\r\n";
  for (const char* key : {"\"dtype\"", "\"torch_dtype\""})
    for (std::size_t at = config.find(key); at < config.size(); at = config.find(key, at + 1)) {
      const std::size_t colon = config.find_first_not_of(blank, at + std::strlen(key));
      if (colon == std::string::npos || config[colon] != ':') continue;
      const std::size_t begin = config.find_first_not_of(blank, colon + 1);
      if (begin == std::string::npos || config[begin] != '"') continue;
      config.replace(begin, config.find('"', begin + 1) + 1 - begin, "\"float32\"");
    }
  return config;
}

/// What settings of transformers call the classes: "id2label": {"0": "LABEL_0", ...}
inline std::string quoted_labels(Index classes) {
  PlainText out;
  out << "\"id2label\": {";
  for (Index i = 0; i < classes; ++i)
    out << (i ? ", " : "") << '"' << i << "\": \"LABEL_" << i << '"';
  out << "},\n  \"label2id\": {";
  for (Index i = 0; i < classes; ++i)
    out << (i ? ", " : "") << "\"LABEL_" << i << "\": " << i;
  return out.str() + "}";
}

inline std::string quoted_gelu(Gelu form) {
  return form == Gelu::tanh ? "\"gelu_new\"" : "\"gelu\"";
}

inline std::string hf_vit_settings(const VisionConfig& c) {
  const EncoderConfig& e = c.encoder;
  PlainText out;
  out << std::setprecision(17) << "{\n  \"architectures\": [\""
      << (c.has_pre_logits ? "ViTModel" : "ViTForImageClassification")
      << "\"],\n  \"model_type\": \"vit\",\n  \"hidden_size\": " << e.width
      << ",\n  \"num_hidden_layers\": " << e.blocks << ",\n  \"num_attention_heads\": " << e.heads
      << ",\n  \"intermediate_size\": " << e.dense_hidden
      << ",\n  \"hidden_act\": " << quoted_gelu(e.gelu)
      << ",\n  \"layer_norm_eps\": " << e.layer_norm_eps << ",\n  \"image_size\": ["
      << c.image_height << ", " << c.image_width << "],\n  \"patch_size\": " << c.patch
      << ",\n  \"num_channels\": " << c.channels << ",\n  \"qkv_bias\": true";
  if (!c.has_pre_logits) out << ",\n  " << quoted_labels(c.classes);
  out << ",\n  \"hidden_dropout_prob\": " << e.dropout
      << ",\n  \"attention_probs_dropout_prob\": 0\n}\n";
  return out.str();
}

inline std::string timm_vit_settings(const VisionConfig& c) {
  const EncoderConfig& e = c.encoder;
  const char* const pool = c.pooling == Pooling::class_token ? "token" : "avg";
  PlainText out;
  out << std::setprecision(17)
      << "{\n  \"architecture\": \"vit_base_patch16_224\",\n  \"num_classes\": " << c.classes
      << ",\n  \"num_features\": " << e.width << ",\n  \"global_pool\": \"" << pool
      << "\",\n  \"model_args\": {\"img_size\": [" << c.image_height << ", " << c.image_width
      << "], \"patch_size\": " << c.patch << ", \"in_chans\": " << c.channels
      << ", \"embed_dim\": " << e.width << ", \"depth\": " << e.blocks
      << ", \"num_heads\": " << e.heads
      << ", \"mlp_ratio\": " << double(e.dense_hidden) / double(e.width)
      << ", \"global_pool\": \"" << pool << "\", \"fc_norm\": false, \"pos_drop_rate\": "
      << e.dropout << ", \"proj_drop_rate\": " << e.dropout << ", \"act_layer\": \""
      << (e.gelu == Gelu::tanh ? "gelu_tanh" : "gelu")
      << "\"},\n  \"pretrained_cfg\": {\"input_size\": [" << c.channels << ", " << c.image_height
      << ", " << c.image_width << "], \"fixed_input_size\": true, \"num_classes\": " << c.classes
      << ", \"first_conv\": \"patch_embed.proj\", \"classifier\": \"head\"}\n}\n";
  return out.str();
}

inline std::string hf_albert_settings(const LanguageConfig& c) {
  const EncoderConfig& e = c.encoder;
  PlainText out;
  out << std::setprecision(17)
      << "{\n  \"architectures\": [\"AlbertForPreTraining\"],\n  \"model_type\": \"albert\""
      << ",\n  \"vocab_size\": " << c.vocabulary << ",\n  \"embedding_size\": " << c.embedding
      << ",\n  \"hidden_size\": " << e.width << ",\n  \"num_hidden_layers\": " << e.blocks
      << ",\n  \"num_hidden_groups\": " << (e.share_attention ? 1 : e.blocks)
      << ",\n  \"inner_group_num\": 1,\n  \"num_attention_heads\": " << e.heads
      << ",\n  \"intermediate_size\": " << e.dense_hidden
      << ",\n  \"hidden_act\": " << quoted_gelu(e.gelu)
      << ",\n  \"layer_norm_eps\": " << e.layer_norm_eps
      << ",\n  \"max_position_embeddings\": " << c.max_tokens
      << ",\n  \"type_vocab_size\": " << c.types << ",\n  " << quoted_labels(c.classes)
      << ",\n  \"hidden_dropout_prob\": " << e.dropout
      << ",\n  \"attention_probs_dropout_prob\": 0\n}\n";
  return out.str();
}

}  // namespace foreign

/// Makes ours theirs, in float32: the inverse of an import if the file came from one of the same
/// kind, with tensors that the import did not read and, if theirs were float32, bit for bit;
/// otherwise under the first of their names and with settings that say the same as ours.
///
///   Errors    ConfigError if theirs cannot be such a model; IoError if a tensor is missing
inline Exported export_foreign(const std::string& kind, const SafeTensors& ours,
                               const std::string& source) {
  const auto metadata = [&](const char* key) {
    const auto found = ours.metadata.find(key);
    return found == ours.metadata.end() ? std::string() : found->second;
  };
  const bool is_back = metadata("foreign.kind") == kind;
  std::istringstream words(is_back ? metadata("foreign.names") : "");
  const std::set<std::string> names{std::istream_iterator<std::string>(words), {}};
  const std::string theirs = is_back ? metadata("foreign.config") : "", config = metadata("config");
  std::string settings;
  std::vector<Renaming> table;
  if (kind == "hf_switch") {
    require<ConfigError>(is_back, "export: hf_switch: the file must come from an import of "
                                  "hf_switch; got ", source);
    const Json json = Json::parse(theirs, source);
    table = hf_switch_table(hf_switch_config(ForeignSettings(json, source), ours));
  } else if (kind == "hf_albert") {
    const LanguageConfig c = language_config_from_json(config, source);
    const EncoderConfig& e = c.encoder;
    foreign::require_theirs(e.experts == 0 && !e.gelu_at_output && !e.is_pre_norm &&
                                e.norm == Norm::layer_norm &&
                                e.share_attention == e.share_experts &&
                                e.share_attention == e.share_layer_norm,
                            kind, "dense, post-norm, with LayerNorm, and share all layers or none",
                            config);
    table = hf_albert_table(c), settings = foreign::hf_albert_settings(c);
  } else if (kind == "hf_vit" || kind == "timm_vit") {
    const VisionConfig c = vision_config_from_json(config, source);
    const EncoderConfig& e = c.encoder;
    foreign::require_theirs(e.experts == 0 && !e.gelu_at_output && e.is_pre_norm &&
                                e.norm == Norm::layer_norm && e.has_final_norm &&
                                !e.share_attention && !e.share_experts && !e.share_layer_norm &&
                                c.class_token == ClassToken::trained,
                            kind, "dense, pre-norm, with LayerNorm and a trained class token, and "
                            "share nothing", config);
    if (kind == "hf_vit") {
      foreign::require_theirs(c.pooling == Pooling::class_token, kind, "pooled by its class token",
                              config);
      table = hf_vit_table(c), settings = foreign::hf_vit_settings(c);
    } else {
      foreign::require_theirs(c.pooling != Pooling::mean && !c.has_pre_logits &&
                                  (is_back || e.layer_norm_eps == 1e-6),
                              kind, "without pre_logits, pooled by class_token or patch_mean, and "
                                    "have a layer_norm_eps of 1e-6", config);
      table = timm_vit_table(c), settings = foreign::timm_vit_settings(c);
    }
  } else {
    fail<ConfigError>("export: a kind must be one of ", foreign::list_of(foreign_kinds()), "; got ",
                      kind);
  }
  Renamed r = export_tensors(table, ours, names);
  r.file.metadata["format"] = "pt";
  const std::string unread = "foreign.";
  std::vector<std::string> rest;
  for (const std::string& name : r.rest)
    if (is_back && name.rfind(unread, 0) == 0)
      r.file.tensors[name.substr(unread.size())] = ours.at(name);
    else
      rest.push_back(name);
  return {std::move(r.file), is_back ? foreign::with_float32(theirs) : settings, std::move(rest)};
}

/// Writes FOLDER/config.json and FOLDER/model.safetensors, and makes the folder if there is none.
///
///   Errors    IoError if one cannot be written
inline void write_foreign(const std::string& folder, const Exported& exported) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  write_safetensors(folder + "/model.safetensors", exported.file);
  const std::string path = folder + "/config.json";
  std::ofstream out(path, std::ios::binary);
  out << exported.config;
  out.close();
  require<IoError>(out.good(), "export: ", path, ": the file must be writable");
}

// SWITCH ------------------------------------------------------------------------------------------

/// The mixture of experts of one sparse block of a Switch encoder. Its experts are
///
///   y = activation(x w1) w2,      relu where it is Switch's own
///
/// without biases; a token whose expert is full gets 0.
///
///   Source    transformers, SwitchTransformersSparseMLP
template <class T>
struct SwitchMixture {
  Tensor<T> router;           // (D, E)
  std::vector<Tensor<T>> w1;  // E of (D, F)
  std::vector<Tensor<T>> w2;  // E of (F, D)
  RouteOptions options;
  bool is_relu = true;
  Gelu gelu = Gelu::tanh;

  /// x (B, T, D) -> y (B, T, D); each sequence has its own capacity.
  Tensor<T> forward(const Tensor<T>& x, Routing<T>* routing = nullptr) const {
    const Index N = x.shape().num_rows(), D = x.shape().last();
    const Tensor<T> tokens = x.reshaped({N, D});
    RouteOptions per_sequence = options;
    per_sequence.group_tokens = x.shape()[1];
    const Routing<T> r = route(router_logits(tokens, router), per_sequence);
    const Tensor<T> slots = dispatch(tokens, r).reshaped({1, r.E * r.C, D});
    Tensor<T> y;
    for (Index e = 0; e < r.E; ++e) {
      const std::size_t i = static_cast<std::size_t>(e);
      const Tensor<T> h = linear(slice_tokens(slots, e * r.C, r.C), w1[i]);
      const Tensor<T> result = linear(is_relu ? relu(h) : widenet::gelu(h, gelu), w2[i]);
      const Routing<T> own = of_expert(r, e);
      const Tensor<T> part = combine(result, own.gate, own);
      y = e == 0 ? part : y + part;
    }
    if (routing) *routing = r;
    return y.reshaped(x.shape());
  }

 private:
  /// The same routing as if there were no other expert.
  static Routing<T> of_expert(const Routing<T>& r, Index e) {
    Routing<T> own = r;
    std::vector<std::int32_t> expert = r.expert.to_vector(), slot = r.slot.to_vector();
    const std::vector<std::int32_t> choice = r.choice_of_slot.to_vector();
    for (std::size_t i = 0; i < expert.size(); ++i)
      if (expert[i] == e) expert[i] = 0;
      else expert[i] = 0, slot[i] = -1;
    own.E = 1;
    own.expert = Buffer<std::int32_t>(expert), own.slot = Buffer<std::int32_t>(slot);
    own.choice_of_slot = Buffer<std::int32_t>(
        std::vector<std::int32_t>(choice.begin() + e * r.C, choice.begin() + (e + 1) * r.C));
    return own;
  }
};

/// Reads the mixture of block i from what import_foreign made of a Switch encoder.
///
///   Errors    IoError or ConfigError if it is not one, or block i is not sparse
template <class T>
SwitchMixture<T> switch_mixture(const SafeTensors& file, Index block) {
  const auto found = file.metadata.find("foreign.config");
  require<IoError>(found != file.metadata.end(),
                   "switch_mixture: the metadata must have \"foreign.config\"; got none");
  const Json json = Json::parse(found->second, "foreign.config");
  const ForeignSettings settings(json, "foreign.config");
  const SwitchConfig c = hf_switch_config(settings, file);
  const auto tensor = [&](const std::string& name) {
    const std::vector<float> values = file.values<float>(name);
    return Tensor<T>(file.at(name).shape, std::vector<T>(values.begin(), values.end()));
  };
  const std::string moe = "blocks." + std::to_string(block) + ".moe.";
  SwitchMixture<T> mixture;
  mixture.router = tensor(moe + "router.weight");
  for (Index e = 0; e < c.experts; ++e) {
    const std::string expert = moe + "experts." + std::to_string(e) + ".";
    mixture.w1.push_back(tensor(expert + "fc1.weight"));
    mixture.w2.push_back(tensor(expert + "fc2.weight"));
  }
  mixture.options.K = 1;
  mixture.options.conventions = Conventions::hf_switch();
  mixture.options.conventions.capacity_slots = c.slots;
  mixture.is_relu = c.activation == "relu";
  if (!mixture.is_relu) mixture.gelu = settings.gelu("dense_act_fn");
  return mixture;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_FOREIGN_HPP
