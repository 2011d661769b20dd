// Runs golden cases with the header at hand, a changed one in the zoo, in numbers of type
// ZOO_NUMBER, and writes all results:
//   run CASE OUT SETTINGS [CASE OUT SETTINGS]...   SETTINGS: other ones in JSON, or "-"
// A case with other settings is written to OUT.case.
#include "support/golden.hpp"

#include <cstdio>
#include <exception>
#include <string>

namespace wn = widenet;
namespace support = widenet::support;

#ifndef ZOO_NUMBER
#  define ZOO_NUMBER double
#endif

namespace {

/// What a case says about itself, with other settings: new ones, or in place of those it has.
std::string changed(std::string about, const std::string& settings) {
  const wn::Json others = wn::Json::parse("{" + settings + "}", "settings");
  for (const auto& setting : others.members()) {
    const std::size_t at = about.find(wn::Json::quote(setting.first) + ":");
    if (at != std::string::npos) about.erase(at, about.find(',', at) + 1 - at);
  }
  return about.insert(about.find('{', about.find("\"settings\"")) + 1, settings + ",");
}

void run(const std::string& path, const std::string& to, const std::string& settings) {
  wn::SafeTensors file = wn::read_safetensors(path);
  std::string& about = file.metadata["case"];
  if (settings != "-") {
    about = changed(about, settings);
    wn::write_safetensors(to + ".case", file);
  }
  const wn::Json json = wn::Json::parse(about, path);
  support::GoldenCase c;
  c.op = json.at("op").string(), c.settings = json.at("settings");
  const auto results = support::run_golden<ZOO_NUMBER>(c, file);
  wn::SafeTensors out;
  for (const auto& r : results.values)
    out.add("out." + r.first, results.shapes.at(r.first), r.second);
  for (const auto& r : results.integers)
    out.add("out." + r.first, results.shapes.at(r.first), r.second);
  wn::write_safetensors(to, out);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    for (int i = 1; i + 2 < argc; i += 3) run(argv[i], argv[i + 1], argv[i + 2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
