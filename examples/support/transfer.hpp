// transfer.hpp - the commands of `validate` that bring models from elsewhere, and back.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_TRANSFER_HPP
#define WIDENET_EXAMPLES_SUPPORT_TRANSFER_HPP

#include "support/foreign.hpp"
#include "support/replay.hpp"
#include "support/upcycle.hpp"
#include "widenet.hpp"

#include <iomanip>  // setprecision, setw
#include <string>   // string, stol
#include <vector>   // vector

namespace widenet::support {

/// What a command says, and its exit status.
struct Answer {
  std::string text;
  int status = 0;
};

inline const char* const transfer_usage =
    R"(
validate import KIND FOLDER OUT    config.json and model.safetensors of a folder as a model of ours
validate export KIND FILE FOLDER   a model of ours as theirs; undoes an import, bit for bit
validate upcycle FILE OUT E K [BLOCK|individual]
                                   a dense model as a mixture of E copies of its FFN, K at a time;
                                   where blocks become one it is their mean, or that of BLOCK
validate replay CASE DUMP          which departs, the router or the experts?

KIND is hf_albert, hf_vit, timm_vit or hf_switch. Weights of FOLDER are F32, F16 or BF16; an export
makes the folder and writes F32. FILE is what import, upcycle or a training wrote. For a replay,
DUMP holds the experts of all choices and whatever else is known, under the names of CASE.
)";

/// Reads a folder of theirs, writes a model of ours; says which weights are not numbers.
inline Answer import_command(const std::string& kind, const std::string& folder,
                             const std::string& to) {
  const Imported imported = import_foreign(kind, folder);
  write_safetensors(to, imported.file);
  PlainText out;
  out << imported.matched.size() << " tensors of " << folder << " in " << to << '\n'
      << "not read: " << foreign::list_of(imported.rest) << '\n'
      << "initial values: " << foreign::list_of(imported.initial) << '\n';
  if (!imported.not_finite.empty())
    out << "with an infinity or NaN: " << foreign::list_of(imported.not_finite) << '\n';
  return {out.str()};
}

/// Reads a model of ours, writes a folder of theirs.
inline Answer export_command(const std::string& kind, const std::string& from,
                             const std::string& folder) {
  const Exported exported = export_foreign(kind, read_safetensors(from), from);
  write_foreign(folder, exported);
  PlainText out;
  out << exported.file.tensors.size() << " tensors and config.json in " << folder << '\n'
      << "left behind: " << foreign::list_of(exported.rest) << '\n';
  return {out.str()};
}

namespace transferring {

/// A small whole number.
///
///   Errors    ConfigError if the text is something else
inline Index number_of(const std::string& text, const char* what) {
  const bool is_number = !text.empty() && text.size() <= 6 &&
                         text.find_first_not_of("0123456789") == std::string::npos;
  require<ConfigError>(is_number, "upcycle: ", what,
                       " must be a whole number of at most six digits; got ", text);
  return static_cast<Index>(std::stol(text));
}

/// Writes the sparse model, and says how far it is from its source with gates of both kinds. With
/// K = 1 a renormalised gate could not learn, so raw gates are written.
template <class Model>
Answer upcycle_model(const Model& dense, Upcycling how, const std::string& to) {
  PlainText out;
  out << std::setprecision(3);
  for (const GateRule gate : {GateRule::raw, GateRule::renormalized}) {
    how.gate = gate;
    const Model sparse = upcycled(dense, how, Rng(0));
    const Closeness c = closeness(dense, sparse, 16);
    const bool is_raw = gate == GateRule::raw, is_written = is_raw == (how.top_k == 1);
    out << (is_raw ? "raw gates:          " : "renormalised gates: ");
    if (c.is_same) out << "the same bits as the source";
    else out << "relative difference of the outputs " << c.relative << ", largest " << c.largest;
    out << "; " << 100 * c.dropped_fraction << " % dropped" << (is_written ? "; written" : "")
        << '\n';
    if (!is_written) continue;
    SafeTensors file;
    widenet::detail::store(file, sparse.parameters());
    file.metadata["config"] = to_json(sparse.config());
    write_safetensors(to, file);
  }
  return {out.str()};
}

}  // namespace transferring

/// Reads a dense model of either kind, writes a mixture of copies.
///
///   Errors    IoError if the file holds no model; otherwise as upcycled and closeness
inline Answer upcycle_command(const std::string& from, const std::string& to, const std::string& E,
                              const std::string& K, const std::string& block) {
  Upcycling how;
  how.experts = transferring::number_of(E, "E"), how.top_k = transferring::number_of(K, "K");
  how.shares = block != "individual";
  if (how.shares && !block.empty()) how.block = transferring::number_of(block, "BLOCK");
  const SafeTensors file = read_safetensors(from);
  require<IoError>(file.metadata.count("config") > 0, "upcycle: ", from, ": the file must hold a "
                   "model; got no \"config\" in its metadata; hint: import makes one of hf_albert, "
                   "hf_vit and timm_vit");
  const Json config = Json::parse(file.metadata.at("config"), from);
  return config.find("vocabulary")
             ? transferring::upcycle_model(load_language_model<float>(from), how, to)
             : transferring::upcycle_model(load_vision_model<float>(from), how, to);
}

/// Asks a dump all questions of replay_dump.
inline Answer replay_command(const std::string& path, const std::string& dump) {
  const SafeTensors file = read_safetensors(path);
  PlainText out;
  bool agrees = true;
  for (const Judged& j : replay_dump(read_case(path, file), file, read_safetensors(dump))) {
    if (j.part == "before the router" && j.compared == 0) continue;
    out << std::left << std::setw(18) << j.part << "given " << std::setw(26) << j.given
        << (j.compared == 0 ? "unknown" : j.departs() ? "departs" : "agrees");
    if (j.departs()) out << ": " << j.name;
    if (j.element >= 0)
      out << ", element " << j.element << ": ours " << std::setprecision(9) << j.ours
          << ", theirs " << j.theirs << " (tolerance " << std::setprecision(3) << j.tolerance
          << ')';
    else if (j.departs())
      out << ": " << j.theirs << " values in place of " << j.ours;
    out << '\n';
    agrees = agrees && !j.departs();
  }
  return {out.str(), agrees ? 0 : 1};
}

/// The answer to a command line, if it is one of these commands; an empty text otherwise.
inline Answer transfer(const std::vector<std::string>& words) {
  const std::string command = words.empty() ? "" : words[0];
  const std::size_t n = words.size();
  if (command == "import" && n == 4) return import_command(words[1], words[2], words[3]);
  if (command == "export" && n == 4) return export_command(words[1], words[2], words[3]);
  if (command == "upcycle" && (n == 5 || n == 6))
    return upcycle_command(words[1], words[2], words[3], words[4], n == 6 ? words[5] : "");
  if (command == "replay" && n == 3) return replay_command(words[1], words[2]);
  return {};
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_TRANSFER_HPP
