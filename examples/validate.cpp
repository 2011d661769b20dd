// Checks another implementation against this one, number by number: run it without arguments.
#include "support/arguments.hpp"
#include "support/compare.hpp"
#include "support/conventions.hpp"
#include "support/explain.hpp"
#include "support/transfer.hpp"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace wn = widenet;
namespace support = widenet::support;

namespace {

const char* const usage =
    R"(validate conventions [PRESET]      the formulas of all presets, or of one
validate run CASE OUT [PRESET]     run a case, under another preset if given; write every result
validate compare CASE DUMP [--json]  where does a dump of the same case first depart?
validate explain RUN... [--next FILE] [--json]  which conventions reproduce a run of the layer, or
                                   several? --next: writes an input that tells the rest of them
                                   apart; run it in your code, and explain both runs

CASE is a file of data/golden, or one of yours with the same names: inputs as in.NAME. DUMP holds
results as out.NAME; inputs and weights that it holds as in.NAME are compared first. RUN holds both.
tests/reference/dump_torch.py writes them from PyTorch or numpy, and its first lines list what a RUN
needs and what helps.

A result is in tolerance if no element is off by more than
  float64   1e-12 of the largest value, at least 4 units in its last place
  float32   twice the error that our own float32 may make, plus 4 such units
  int32     nothing
Status: 0 agrees, 1 departs, 2 cannot be compared.
)";

int run(const std::string& path, const std::string& to, const std::string& preset) {
  const wn::SafeTensors file = wn::read_safetensors(path);
  const support::GoldenCase c = support::read_case(path, file);
  wn::Conventions other;
  if (!preset.empty()) other = support::conventions_named(preset, "validate");
  const wn::Conventions* const conventions = preset.empty() ? nullptr : &other;
  const auto results = support::run_golden<double>(c, file, conventions);
  support::print_warnings(support::encoder_of(c, conventions));
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
  std::printf("tolerance: %s\n", support::tolerance_rule);
  std::printf("compared %td results; %zu of ours are not in the dump\n", d.compared,
              d.missing.size());
  std::printf("highest rung reached: %s\n",
              d.highest_rung.empty()
                  ? "none" : (d.highest_rung + " (" + d.last_agreeing + ")").c_str());
  if (d.name.empty()) return void(std::puts("all agree"));
  std::printf("first departure: %s (%s: %s)\n", d.name.c_str(), d.rung.c_str(), d.equation.c_str());
  wn::PlainText shapes;
  shapes << "  shape: expected " << d.shape << ", theirs " << d.their_shape;
  std::puts(shapes.str().c_str());
  if (d.element >= 0)
    std::printf("  element %td: ours %.17g, theirs %.17g\n"
                "  absolute %.3g (tolerance %.3g), relative %.3g, %.3g units in the last place, "
                "cosine %.12f\n"
                "  elements out of tolerance: %td of %td\n",
                d.element, d.ours, d.theirs, d.absolute, d.tolerance, d.relative, d.ulps, d.cosine,
                d.differing, d.shape.num_values());
  std::printf("  kind: %s%s%s\n", d.bucket.c_str(), d.hint.empty() ? "" : ", ", d.hint.c_str());
  const support::Mismatch& whole = d.whole;
  if (whole.name.empty() || whole.name == d.name) return;
  std::printf("first departure of whole numbers: %s (%s: %s)\n", whole.name.c_str(),
              whole.rung.c_str(), whole.equation.c_str());
  if (whole.element >= 0)
    std::printf("  element %td: ours %.17g, theirs %.17g; %td of %td differ\n", whole.element,
                whole.ours, whole.theirs, whole.differing, whole.shape.num_values());
  if (!d.whole_hint.empty()) std::printf("  %s\n", d.whole_hint.c_str());
}

void print_json(const support::Departure& d) {
  const auto text = [](const std::string& s) { return wn::Json::quote(s); };
  const auto number = [](double x) {  // JSON has no NaN
    wn::PlainText out;
    out << std::setprecision(17) << x;
    return std::isfinite(x) ? out.str() : std::string("null");
  };
  const auto extents = [](const wn::Shape& shape) {
    std::string all;
    for (const wn::Index extent : shape.extents())
      all += (all.empty() ? "" : ",") + std::to_string(extent);
    return "[" + all + "]";
  };
  const std::string name = d.name.empty() ? "null" : text(d.name);
  const support::Mismatch& m = d.whole;
  wn::PlainText whole;
  whole << "{\"name\":" << text(m.name) << ",\"rung\":" << text(m.rung)
        << ",\"element\":" << m.element << ",\"ours\":" << number(m.ours)
        << ",\"theirs\":" << number(m.theirs) << ",\"differing\":" << m.differing
        << ",\"remark\":" << text(d.whole_hint) << "}";
  std::printf("{\"agrees\":%s,\"rule\":%s,\"compared\":%td,\"missing\":%zu,"
              "\"highest_rung\":%s,\"last_agreeing\":%s,\"first\":%s,"
              "\"rung\":%s,\"equation\":%s,\"kind\":%s,\"hint\":%s,\"element\":%td,\"ours\":%s,"
              "\"theirs\":%s,\"absolute\":%s,\"relative\":%s,\"ulps\":%s,\"cosine\":%s,"
              "\"tolerance\":%s,\"differing\":%td,\"shape\":%s,\"their_shape\":%s,"
              "\"first_of_whole_numbers\":%s}\n",
              d.name.empty() ? "true" : "false", text(support::tolerance_rule).c_str(), d.compared,
              d.missing.size(), text(d.highest_rung).c_str(), text(d.last_agreeing).c_str(),
              name.c_str(), text(d.rung).c_str(),
              text(d.equation).c_str(), text(d.bucket).c_str(), text(d.hint).c_str(), d.element,
              number(d.ours).c_str(), number(d.theirs).c_str(), number(d.absolute).c_str(),
              number(d.relative).c_str(), number(d.ulps).c_str(), number(d.cosine).c_str(),
              number(d.tolerance).c_str(), d.differing, extents(d.shape).c_str(),
              extents(d.their_shape).c_str(), m.name.empty() ? "null" : whole.str().c_str());
}

int compare(const std::string& path, const std::string& dump, bool json) {
  const wn::SafeTensors file = wn::read_safetensors(path);
  const support::Departure d =
      support::compare_dump(support::read_case(path, file), file, wn::read_safetensors(dump));
  json ? print_json(d) : print(d);
  return d.name.empty() ? 0 : 1;
}

/// What the members of a set have in common and what they leave open.
struct Findings {
  std::vector<std::pair<std::string, std::string>> given, determined;
  std::vector<std::pair<std::string, std::vector<std::string>>> open;
  std::vector<std::string> free, silent, presets;  // silent: knobs that show in no such run
};

Findings findings_of(const support::Explanation& set) {
  Findings findings;
  const auto found = set.found();
  for (const auto& knob : set.searched) {
    const auto values = found.find(knob.first);
    if (values == found.end()) continue;
    const std::vector<std::string> all(values->second.begin(), values->second.end());
    if (set.given.count(knob.first) == 1) findings.given.emplace_back(knob.first, all[0]);
    else if (knob.second.size() < 2) continue;
    else if (all.size() == 1) findings.determined.emplace_back(knob.first, all[0]);
    else if (values->second == knob.second) findings.free.push_back(knob.first);
    else findings.open.emplace_back(knob.first, all);
  }
  support::Combination().visit_knobs([&](const char* knob, const std::string&) {
    if (found.count(knob) == 0) findings.silent.push_back(knob);
  });
  for (const auto& preset : wn::Conventions::presets()) {
    support::Combination c;
    c.rules = preset.second;
    if (set.contains(c, true)) findings.presets.push_back(preset.first);
  }
  return findings;
}

std::string joined(const std::vector<std::string>& words, const char* separator) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : separator) + word;
  return all;
}

/// The lines or the JSON members of knobs with one value each.
std::string listed(const std::vector<std::pair<std::string, std::string>>& knobs, bool json) {
  std::vector<std::string> all;
  for (const auto& knob : knobs)
    all.push_back(json ? wn::Json::quote(knob.first) + ":" + wn::Json::quote(knob.second)
                       : "  " + knob.first + " = " + knob.second + "\n");
  return joined(all, json ? "," : "");
}

int explain(const std::vector<std::string>& paths, const std::string& next_path, bool json) {
  const auto read = [](const std::string& path) {
    return support::read_explainable_run(wn::read_safetensors(path));
  };
  const support::LayerRun run = read(paths[0]);
  support::Explanation set = support::explain(run);
  for (std::size_t i = 1; i < paths.size(); ++i)
    set = support::both_of(set, support::explain(read(paths[i])));
  const Findings findings = findings_of(set);
  const support::TellingInput next =
      set.size() > 1 ? support::telling_input(run, set) : support::TellingInput();
  const bool writes = !next_path.empty() && next.classes > 1;
  if (writes) wn::write_safetensors(next_path, support::case_of(next.run, set.at(0)));

  const auto quoted = [](const std::vector<std::string>& texts) {
    std::vector<std::string> all;
    for (const std::string& text : texts) all.push_back(wn::Json::quote(text));
    return "[" + joined(all, ",") + "]";
  };
  std::vector<std::string> open;
  for (const auto& knob : findings.open)
    open.push_back(json ? wn::Json::quote(knob.first) + ":" + quoted(knob.second)
                        : "  " + knob.first + ": " + joined(knob.second, ", ") + "\n");
  if (json) {
    std::printf("{\"combinations\":%zu,\"given\":{%s},\"determined\":{%s},\"open\":{%s},"
                "\"free\":%s,\"silent\":%s,\"presets\":%s,\"next\":%s,\"compared\":%zu,"
                "\"told_apart\":%zu,\"decides\":%s,\"leaves\":%s}\n",
                set.size(), listed(findings.given, json).c_str(),
                listed(findings.determined, json).c_str(), joined(open, ",").c_str(),
                quoted(findings.free).c_str(), quoted(findings.silent).c_str(),
                quoted(findings.presets).c_str(),
                writes ? wn::Json::quote(next_path).c_str() : "null", next.compared, next.classes,
                quoted(next.decides).c_str(), quoted(next.leaves).c_str());
    return set.size() > 0 ? 0 : 1;
  }
  std::printf("%zu combinations of conventions reproduce the run%s\n", set.size(),
              paths.size() > 1 ? "s" : "");
  if (set.size() == 0) {
    std::puts("nothing that is searched gives these results: is an input missing, such as noise, "
              "is a weight transposed, or is there something else in the layer?");
    return 1;
  }
  if (!findings.given.empty()) std::printf("given:\n%s", listed(findings.given, json).c_str());
  std::printf("determined:\n%s", listed(findings.determined, json).c_str());
  if (!open.empty()) std::printf("one of these (not all of which go together):\n%s",
                                 joined(open, "").c_str());
  if (!findings.free.empty()) std::printf("free: %s\n", joined(findings.free, ", ").c_str());
  if (!findings.silent.empty())
    std::printf("without effect in such a run: %s\n", joined(findings.silent, ", ").c_str());
  std::printf("presets among them: %s\n",
              findings.presets.empty() ? "none" : joined(findings.presets, ", ").c_str());
  if (next.classes > 1)
    std::printf("an input of %zu tokens in %zu sequences parts %zu of them into %zu classes%s\n"
                "  it decides: %s\n  it leaves open in part: %s\n",
                next.run.N, next.run.B * next.run.L, next.compared, next.classes,
                writes ? (": " + next_path).c_str() : "; --next FILE writes it",
                next.decides.empty() ? "nothing" : joined(next.decides, ", ").c_str(),
                next.leaves.empty() ? "nothing" : joined(next.leaves, ", ").c_str());
  else if (set.size() > 1)
    std::printf("no input was found that tells them apart (%zu tried)\n", next.tried);
  return 0;
}

int conventions(const std::string& only) {
  std::fputs(support::describe_presets(only, "validate").c_str(), stdout);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  using Words = std::vector<std::string>;
  using Options = support::Arguments;
  struct Command {
    const char* name;
    std::size_t least, most;  // words after it; those that are not given are empty
    int (*run)(const Words& words, const Options& options);
  };
  const Command commands[] = {
      {"conventions", 0, 1, [](const Words& w, const Options&) { return conventions(w[1]); }},
      {"run", 2, 3, [](const Words& w, const Options&) { return run(w[1], w[2], w[3]); }},
      {"compare", 2, 2,
       [](const Words& w, const Options& o) { return compare(w[1], w[2], o.json); }},
      {"explain", 1, 99, [](const Words&, const Options& o) {
         return explain({o.words.begin() + 1, o.words.end()}, o.next, o.json);
       }}};
  std::string command;
  try {
    const support::Arguments arguments = support::arguments_of(given);
    Words words = arguments.words;
    const std::size_t num_words = words.size();
    if (num_words > 0) command = words[0];
    words.resize(std::max<std::size_t>(num_words, 4));
    for (const Command& c : commands)
      if (command == c.name && c.least + 1 <= num_words && num_words <= c.most + 1)
        return c.run(words, arguments);
    const support::Answer answer = support::transfer(arguments.words);
    if (!answer.text.empty()) return std::fputs(answer.text.c_str(), stdout), answer.status;
  } catch (const wn::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  const bool asks = command.empty() || command == "help" || command == "--help" || command == "-h";
  for (const char* text : {usage, support::transfer_usage})
    std::fputs(text, asks ? stdout : stderr);
  if (!asks)
    std::fprintf(stderr, "\nwidenet: validate: a command of these must have its words; got %s\n",
                 joined(given, " ").c_str());
  return asks ? 0 : 2;
}
