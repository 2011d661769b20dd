// Checks another implementation against this one, number by number: run it without arguments.
#include "support/compare.hpp"
#include "support/conventions.hpp"
#include "support/transfer.hpp"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace wn = widenet;
namespace support = widenet::support;

namespace {

const char* const usage =
    R"(validate conventions [PRESET]      the formulas of all presets, or of one
validate run CASE OUT [PRESET]     run a case, under another preset if given; write every result
validate compare CASE DUMP [--json]  where does a dump of the same case first depart?

CASE is a file of data/golden, or one of yours with the same names: inputs as in.NAME. DUMP holds
results as out.NAME; tests/reference/dump_torch.py writes one from PyTorch or numpy.

A result is in tolerance if no element is off by more than
  float64   1e-12 of the largest value, at least 4 units in its last place
  float32   twice the error that our own float32 may make, plus 4 such units
  int32     nothing
Status: 0 agrees, 1 departs, 2 cannot be compared.
)";

int run(const std::string& path, const std::string& to, const char* preset) {
  const wn::SafeTensors file = wn::read_safetensors(path);
  const auto presets = wn::Conventions::presets();
  wn::require<wn::ConfigError>(!preset || presets.count(preset) == 1,
                               "validate: a preset must be known; got ", preset ? preset : "");
  const auto results = support::run_golden<double>(support::read_case(path, file), file,
                                                   preset ? &presets.at(preset) : nullptr);
  wn::SafeTensors out;
  out.metadata = file.metadata;
  for (const auto& r : results.values)
    out.add("out." + r.first, results.shapes.at(r.first), r.second);
  for (const auto& r : results.integers)
    out.add("out." + r.first, results.shapes.at(r.first), r.second);
  wn::write_safetensors(to, out);
  std::printf("%zu results in %s\n", results.order.size(), to.c_str());
  return 0;
}

void print(const support::Departure& d) {
  std::printf("compared %td results; %zu of ours are not in the dump\n", d.compared,
              d.missing.size());
  std::printf("highest rung reached: %s\n",
              d.highest_rung.empty() ? "none" : d.highest_rung.c_str());
  if (d.name.empty()) return void(std::puts("all agree"));
  std::printf("first departure: %s (%s: %s)\n", d.name.c_str(), d.rung.c_str(), d.equation.c_str());
  if (d.element < 0)
    std::puts("  the sizes differ");
  else
    std::printf("  element %td: ours %.17g, theirs %.17g\n"
                "  absolute %.3g (tolerance %.3g), relative %.3g, %.3g units in the last place, "
                "cosine %.12f\n",
                d.element, d.ours, d.theirs, d.absolute, d.tolerance, d.relative, d.ulps, d.cosine);
  std::printf("  kind: %s%s%s\n", d.bucket.c_str(), d.hint.empty() ? "" : ", ", d.hint.c_str());
}

void print_json(const support::Departure& d) {
  const auto text = [](const std::string& s) { return wn::Json::quote(s); };
  const auto number = [](double x) {  // JSON has no NaN
    wn::PlainText out;
    out << std::setprecision(17) << x;
    return std::isfinite(x) ? out.str() : std::string("null");
  };
  const std::string name = d.name.empty() ? "null" : text(d.name);
  std::printf("{\"agrees\":%s,\"compared\":%td,\"missing\":%zu,\"highest_rung\":%s,\"first\":%s,"
              "\"rung\":%s,\"equation\":%s,\"kind\":%s,\"hint\":%s,\"element\":%td,\"ours\":%s,"
              "\"theirs\":%s,\"absolute\":%s,\"relative\":%s,\"ulps\":%s,\"cosine\":%s,"
              "\"tolerance\":%s}\n",
              d.name.empty() ? "true" : "false", d.compared, d.missing.size(),
              text(d.highest_rung).c_str(), name.c_str(), text(d.rung).c_str(),
              text(d.equation).c_str(), text(d.bucket).c_str(), text(d.hint).c_str(), d.element,
              number(d.ours).c_str(), number(d.theirs).c_str(), number(d.absolute).c_str(),
              number(d.relative).c_str(), number(d.ulps).c_str(), number(d.cosine).c_str(),
              number(d.tolerance).c_str());
}

int compare(const std::string& path, const std::string& dump, bool json) {
  const wn::SafeTensors file = wn::read_safetensors(path);
  const support::Departure d =
      support::compare_dump(support::read_case(path, file), file, wn::read_safetensors(dump));
  json ? print_json(d) : print(d);
  return d.name.empty() ? 0 : 1;
}

int conventions(const char* only) {
  for (const auto& preset : wn::Conventions::presets())
    if (!only || preset.first == only)
      std::printf("%s\n%s\n", preset.first.c_str(), support::describe(preset.second).c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const std::string command = words.empty() ? "" : words[0];
  try {
    if (command == "conventions" && words.size() <= 2)
      return conventions(words.size() == 2 ? argv[2] : nullptr);
    if (command == "run" && (words.size() == 3 || words.size() == 4))
      return run(words[1], words[2], words.size() == 4 ? argv[4] : nullptr);
    const bool json = words.size() == 4 && words[3] == "--json";
    if (command == "compare" && (words.size() == 3 || json))
      return compare(words[1], words[2], json);
    const support::Answer answer = support::transfer(words);
    if (!answer.text.empty()) return std::fputs(answer.text.c_str(), stdout), answer.status;
  } catch (const wn::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  for (const char* text : {usage, support::transfer_usage})
    std::fputs(text, words.empty() ? stdout : stderr);
  return words.empty() ? 0 : 2;
}
