// Compares the tags of widenet.hpp with a table of equations, and writes the page of `make
// equations`: every equation beside the lines that compute it and the test that pins it.
//
//   equations HEADER TABLE PAGE TEST.cpp...
//
// Prints one line for whatever is wrong, and then exits with 1; otherwise nothing. The table says
// in its first lines how it is written.

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using Lines = std::vector<std::string>;

bool starts_with(const std::string& text, const std::string& start) {
  return text.compare(0, start.size(), start) == 0;
}

std::string escaped(const std::string& text) {
  std::string html;
  for (const char c : text)
    html += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  return html;
}

Lines lines_of(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " cannot be read");
  Lines lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

// NOTATION ========================================================================================

std::string element(const std::string& name, const std::string& inside) {
  return "<" + name + ">" + inside + "</" + name + ">";
}

/// An equation in the notation of the table, as MathML. Throws what is wrong with it.
class Equation {
 public:
  explicit Equation(const std::string& text) : text_(text) {}
  std::string mathml() {
    const std::string inside = row('\0');
    return "<math display=\"block\">" + element("mrow", inside) + "</math>";
  }

 private:
  struct Atom {
    std::string html;
    bool is_operand = true;
    bool is_large = false;  // its limits stand below and above
    bool is_text = false;
  };

  char next() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool skip_spaces() {
    const std::size_t before = at_;
    while (next() == ' ') ++at_;
    return at_ > before;
  }

  /// Everything up to the character that closes it, which is skipped.
  std::string row(char end) {
    std::string html;
    Atom before{"", false};
    for (bool is_apart = skip_spaces(); next() != end;) {
      if (next() == '\0') throw std::runtime_error(std::string("there is no ") + end);
      Atom atom = with_scripts();
      bool is_followed = skip_spaces();
      while (next() == '/') {
        ++at_;
        skip_spaces();
        atom = {element("mfrac", atom.html + with_scripts().html)};
        is_followed = skip_spaces();
      }
      if (is_apart && before.is_operand && atom.is_operand)
        html += before.is_text || atom.is_text ? "<mspace width=\"0.33em\"/>"
                                               : "<mspace width=\"0.17em\"/>";
      html += atom.html;
      before = atom;
      is_apart = is_followed;
    }
    if (end != '\0') ++at_;
    return html;
  }

  Atom with_scripts() {
    const bool is_word = std::isalpha(next());
    Atom base = atom();
    std::string below, above;
    while (next() == '_' || next() == '^' || next() == '\'') {
      const char kind = text_[at_++];
      if (kind == '\'') above = "<mo>&#x2032;</mo>";
      else (kind == '_' ? below : above) = atom().html;
    }
    const std::string kind = base.is_large ? "munderover" : "msubsup";
    const std::string one = base.is_large ? "munder" : "msub";
    if (!below.empty() && !above.empty())
      base.html = element(kind, base.html + below + above);
    else if (!below.empty())
      base.html = element(one, base.html + below);
    else if (!above.empty())
      base.html = element("msup", base.html + above);
    if (is_word && next() == '(') base.html = element("mrow", base.html + atom().html);
    return base;
  }

  Atom atom() {
    const char c = next();
    if (c == '\0') throw std::runtime_error("something is missing at its end");
    ++at_;
    if (c == '{') return {element("mrow", row('}'))};
    if (c == '(' || c == '[') {
      const char end = c == '(' ? ')' : ']';
      return {element("mrow", element("mo", std::string(1, c)) + row(end) +
                                  element("mo", std::string(1, end)))};
    }
    if (c == '"') {
      const std::size_t end = text_.find('"', at_);
      if (end == std::string::npos) throw std::runtime_error("there is no second \"");
      const std::string words = text_.substr(at_, end - at_);
      at_ = end + 1;
      return {element("mtext", escaped(words)), true, false, true};
    }
    --at_;
    if (std::isalpha(c)) return word();
    if (!std::isdigit(c)) return sign();
    return {element("mn", run([](int x) { return std::isdigit(x) || x == '.'; }))};
  }

  template <class Belongs>
  std::string run(Belongs belongs) {
    const std::size_t begin = at_;
    while (at_ < text_.size() && belongs(text_[at_])) ++at_;
    return text_.substr(begin, at_ - begin);
  }

  /// "gamma", "x", "softmax"; w1 is w with index 1; dx, dgamma, dw1 are gradients.
  Atom word() {
    const std::string name = run([](int x) { return std::isalpha(x); });
    const std::string index = run([](int x) { return std::isdigit(x); });
    static const std::map<std::string, std::string> signs = {
        {"in", "&#x2208;"}, {"times", "&#xd7;"}, {"odot", "&#x2299;"}, {"cdot", "&#x22c5;"},
        {"to", "&#x2192;"}};
    if (name == "sum") return {"<mo movablelimits=\"false\">&#x2211;</mo>", true, true};
    if (name == "quad") return {"<mspace width=\"1.6em\"/>", false};
    if (name == "top") return {"<mo>&#x22a4;</mo>"};
    if (name == "infinity") return {"<mi>&#x221e;</mi>"};
    if (name == "Normal") return {"<mi>&#x1d4a9;</mi>"};
    if (name == "ldots") return {"<mo>&#x2026;</mo>", false};
    if (signs.count(name)) return {element("mo", signs.at(name)), false};
    if (name == "sqrt" && next() == '{') return {element("msqrt", atom().html)};
    if (name == "floor" && next() == '{')
      return {element("mrow", "<mo>&#x230a;</mo>" + atom().html + "<mo>&#x230b;</mo>")};
    static const Lines gradients_of = {"gamma", "beta", "gate", "slots", "loss", "table", "block",
                                       "token"};
    const std::string rest = name.substr(1);
    const bool is_gradient =
        name[0] == 'd' && (rest.size() == 1 || std::count(gradients_of.begin(), gradients_of.end(),
                                                          rest) == 1);
    std::string html = identifier(is_gradient ? rest : name);
    if (!index.empty()) html = element("msub", html + element("mn", index));
    if (is_gradient)
      html = element("mrow", "<mi mathvariant=\"normal\">d</mi>" + html);
    return {html};
  }

  static std::string identifier(const std::string& name) {
    static const Lines greek = {"alpha", "beta",  "gamma", "delta",   "eps", "zeta", "eta", "theta",
                                "iota",  "kappa", "lambda", "mu",     "nu",  "xi",   "omicron",
                                "pi",    "rho",   "",      "sigma",   "tau", "upsilon", "phi",
                                "chi",   "psi",   "omega"};
    std::string lower = name;
    lower[0] = static_cast<char>(std::tolower(lower[0]));
    const auto letter = std::find(greek.begin(), greek.end(), lower);
    if (letter == greek.end()) return element("mi", name);
    const long code = (lower == name ? 0x3b1 : 0x391) + (letter - greek.begin());
    return element("mi", "&#" + std::to_string(code) + ";");
  }

  Atom sign() {
    static const std::vector<std::pair<std::string, std::string>> signs = {
        {"<=", "&#x2264;"}, {">=", "&#x2265;"}, {"!=", "&#x2260;"}, {"-", "&#x2212;"},
        {"<", "&lt;"},      {">", "&gt;"},      {"~", "&#x223c;"},  {"=", "="},
        {"+", "+"},         {",", ","},         {":", ":"}};
    for (const auto& [written, html] : signs)
      if (text_.compare(at_, written.size(), written) == 0) {
        at_ += written.size();
        return {element("mo", html), false};
      }
    throw std::runtime_error(std::string("a sign is unknown: ") + next());
  }

  std::string text_;
  std::size_t at_ = 0;
};

// THE HEADER ======================================================================================

/// A declaration of the header with the comment above it; or the comment of a chapter.
struct Place {
  int chapter = 0;
  std::string name;
  std::size_t comment = 0, code = 0, end = 0;  // lines, counted from 0; end is behind the last
};

/// As the table names it: "10 combine".
std::string code_of(const Place& place) {
  return std::to_string(place.chapter) + " " + place.name;
}

struct Tag {
  std::string name;
  std::size_t line;
  Place place;
};

std::string trimmed(const std::string& line) {
  const std::size_t first = line.find_first_not_of(' ');
  return first == std::string::npos ? "" : line.substr(first);
}
bool is_comment(const std::string& line) { return starts_with(trimmed(line), "//"); }

/// The chapter on a banner such as "// [6] KERNELS ====", else 0.
int banner(const std::string& line) {
  if (!starts_with(line, "// [") || line.back() != '=') return 0;
  return std::stoi(line.substr(4));
}

/// The code of a line: without comment, and without what strings hold.
std::string bare(const std::string& line) {
  std::string code;
  bool is_inside = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '"' && (i == 0 || line[i - 1] != '\'')) is_inside = !is_inside;
    if (!is_inside && line.compare(i, 2, "//") == 0) break;
    if (!is_inside) code += line[i];
  }
  return code;
}

/// The name of what a line declares: the word before its first parenthesis, or after enum class.
std::string declared_name(const std::string& line) {
  const auto is_name = [](char c) { return std::isalnum(c) || c == '_' || c == '+' || c == '*'; };
  std::size_t end = line.find('(');
  for (const std::string word : {"enum class ", "enum ", "struct ", "class "}) {
    const std::size_t found = line.find(word);
    if (end != std::string::npos || found == std::string::npos) continue;
    end = found + word.size();
    while (end < line.size() && is_name(line[end])) ++end;
  }
  if (end == std::string::npos) return "";
  std::size_t begin = end;
  while (begin > 0 && is_name(line[begin - 1])) --begin;
  return line.substr(begin, end - begin);
}

/// What the comment around line i belongs to.
Place place_of(const Lines& header, std::size_t i, int chapter) {
  Place place{chapter, "", i, i, i};
  while (place.comment > 0 && is_comment(header[place.comment - 1])) --place.comment;
  while (place.code < header.size() && is_comment(header[place.code])) ++place.code;
  place.end = place.code;
  if (place.code == header.size() || header[place.code].empty()) {
    place.name = "banner";
    if (banner(header[place.comment])) place.comment += 2;  // the title, and an empty line
    return place;
  }
  int depth = 0, parentheses = 0;  // braces inside of parentheses do not open a body
  bool was_open = false;
  while (place.end < header.size() && (!was_open || depth > 0)) {
    const std::string code = bare(header[place.end++]);
    const bool is_template = starts_with(trimmed(code), "template") &&
                             code.find('(') == std::string::npos;
    if (place.name.empty() && !is_template) place.name = declared_name(code);
    for (const char c : code) {
      parentheses += c == '(' ? 1 : c == ')' ? -1 : 0;
      if (parentheses > 0) continue;
      depth += c == '{' ? 1 : c == '}' ? -1 : 0;
      was_open = was_open || c == '{';
    }
    if (!was_open && code.find(';') != std::string::npos) break;
  }
  return place;
}

/// The tags in the comments of the chapters: [eq 4], [d softmax].
std::vector<Tag> tags_of(const Lines& header) {
  std::vector<Tag> tags;
  int chapter = 0;
  for (std::size_t i = 0; i < header.size(); ++i) {
    if (banner(header[i])) chapter = banner(header[i]);
    if (chapter == 0 || !is_comment(header[i])) continue;
    for (const std::string kind : {"[eq ", "[d "})
      for (std::size_t at = 0; (at = header[i].find(kind, at)) != std::string::npos; ++at) {
        const std::size_t end = header[i].find(']', at);
        if (end == std::string::npos) continue;
        tags.push_back({header[i].substr(at + 1, end - at - 1), i, place_of(header, i, chapter)});
      }
  }
  return tags;
}

/// The operations of chapters 8, 10 and 13, by the line where they record their backward.
std::map<std::size_t, std::string> recorded_operations(const Lines& header) {
  const std::string call = ".record(\"";
  std::map<std::size_t, std::string> operations;
  int chapter = 0;
  for (std::size_t i = 0; i < header.size(); ++i) {
    if (banner(header[i])) chapter = banner(header[i]);
    const std::size_t at = header[i].find(call);
    if (at == std::string::npos || (chapter != 8 && chapter != 10 && chapter != 13)) continue;
    const std::size_t begin = at + call.size();
    operations[i] = header[i].substr(begin, header[i].find('"', begin) - begin);
  }
  return operations;
}

// THE TABLE =======================================================================================

struct Test {
  std::string name, where;  // "tests/test_moe.cpp:503"
};

struct Entry {
  std::string part, tag, title, says;
  Lines math, code, tests;
  std::size_t line = 0;
  // What was found:
  std::vector<Place> places;
  std::vector<Test> pins;
  std::string mathml;
};

class Problems {
 public:
  template <class... Words>
  void add(const Words&... words) {
    (std::cout << ... << words) << "\n";
    ++count_;
  }
  int count() const { return count_; }

 private:
  int count_ = 0;
};

std::vector<Entry> read_table(const std::string& path, Problems& problems) {
  std::vector<Entry> entries;
  std::string part;
  std::size_t number = 0;
  for (const std::string& line : lines_of(path)) {
    ++number;
    const std::size_t space = line.find(' ');
    const std::string key = line.substr(0, space);
    const std::string value = space == std::string::npos ? "" : trimmed(line.substr(space));
    if (line.empty() || line[0] == '#') continue;
    if (key == "=") {
      part = value;
    } else if (line[0] == '[' && line.find("] ") != std::string::npos) {
      const std::size_t end = line.find("] ");
      entries.push_back({part, line.substr(1, end - 1), line.substr(end + 2), "", {}, {}, {},
                         number, {}, {}, ""});
    } else if (!entries.empty() && key == "math") {
      entries.back().math.push_back(value);
    } else if (!entries.empty() && key == "says") {
      entries.back().says += (entries.back().says.empty() ? "" : " ") + value;
    } else if (!entries.empty() && key == "code") {
      entries.back().code.push_back(value);
    } else if (!entries.empty() && key == "test") {
      entries.back().tests.push_back(value);
    } else {
      problems.add(path, ":", number, ": is no line of the table: ", line);
    }
  }
  return entries;
}

/// The test cases by name.
std::map<std::string, std::vector<Test>> tests_in(const Lines& files) {
  std::map<std::string, std::vector<Test>> tests;
  for (const std::string& file : files) {
    std::size_t number = 0;
    for (const std::string& line : lines_of(file)) {
      ++number;
      if (!starts_with(line, "TEST_CASE")) continue;
      const std::size_t begin = line.find('"') + 1, end = line.find('"', begin);
      if (begin == 0 || end == std::string::npos) continue;
      const std::string name = line.substr(begin, end - begin);
      tests[name].push_back({name, file + ":" + std::to_string(number)});
    }
  }
  return tests;
}

/// Fills in what the entries point to, and says what they miss.
void resolve(std::vector<Entry>& entries, const std::string& table, const std::string& header_path,
             const Lines& header, const std::map<std::string, std::vector<Test>>& tests,
             Problems& problems) {
  const std::vector<Tag> tags = tags_of(header);
  std::map<std::string, int> seen;
  int equations = 0;
  for (Entry& entry : entries) {
    const std::string at = table + ":" + std::to_string(entry.line) + ": [" + entry.tag + "] ";
    if (++seen[entry.tag] > 1) problems.add(at, "is listed twice");
    if (starts_with(entry.tag, "eq ") && entry.tag != "eq " + std::to_string(++equations))
      problems.add(at, "stands where [eq ", equations, "] belongs");
    if (entry.math.empty()) problems.add(at, "has no equation");
    if (entry.code.empty()) problems.add(at, "has no code");
    if (entry.tests.empty()) problems.add(at, "has no test");
    for (const std::string& math : entry.math) try {
      entry.mathml += Equation(math).mathml() + "\n";
    } catch (const std::exception& error) {
      problems.add(at, error.what(), ": ", math);
    }
    for (const std::string& code : entry.code) {
      std::vector<Place> found;
      for (const Tag& tag : tags)
        if (tag.name == entry.tag && code_of(tag.place) == code) found.push_back(tag.place);
      if (found.empty())
        problems.add(at, "is missing in ", header_path, " above ", code);
      else
        entry.places.push_back(found[0]);
      if (found.size() > 1) problems.add(at, "is doubled in ", header_path, " above ", code);
    }
    for (const std::string& name : entry.tests) {
      const auto found = tests.find(name);
      if (found == tests.end())
        problems.add(at, "is pinned by no test of this name: ", name);
      else if (found->second.size() > 1)
        problems.add(at, "is pinned by more than one test of this name: ", name);
      else
        entry.pins.push_back(found->second[0]);
    }
  }

  const auto entry_of = [&entries](const std::string& tag) {
    return std::find_if(entries.begin(), entries.end(),
                        [&](const Entry& entry) { return entry.tag == tag; });
  };
  for (const Tag& tag : tags) {
    const auto entry = entry_of(tag.name);
    const std::string code = code_of(tag.place);
    if (entry == entries.end() ||
        std::find(entry->code.begin(), entry->code.end(), code) == entry->code.end())
      problems.add(header_path, ":", tag.line + 1, ": [", tag.name, "] above ", code,
                   " is not in ", table);
  }
  // What records a backward has its formula, and a formula has what records it.
  std::map<std::string, int> recorded;
  for (const auto& [line, name] : recorded_operations(header)) {
    ++recorded[name];
    const auto entry = entry_of("d " + name);
    const auto holds = [line = line](const Place& p) { return p.code <= line && line < p.end; };
    if (entry == entries.end() ||
        std::none_of(entry->places.begin(), entry->places.end(), holds))
      problems.add(header_path, ":", line + 1, ": the operation ", name, " has no [d ", name, "]");
  }
  for (const Entry& entry : entries)
    if (starts_with(entry.tag, "d ") && recorded.count(entry.tag.substr(2)) == 0)
      problems.add(table, ":", entry.line, ": [", entry.tag, "] belongs to no operation of ",
                   header_path);
}

// THE PAGE ========================================================================================

/// Lines of the header with their numbers; comments quiet, the tag marked.
std::string listing(const Lines& header, const Place& place, const std::string& tag) {
  std::string html = "<pre tabindex=\"0\"><code>";
  const std::string mark = "[" + tag + "]";
  for (std::size_t i = place.comment; i < place.end; ++i) {
    const std::string& line = header[i];
    const std::size_t comment = is_comment(line) ? line.find("//") : bare(line).size();
    std::string text = escaped(line);
    if (is_comment(line)) {
      const std::size_t at = text.find(mark);
      if (at != std::string::npos) text.replace(at, mark.size(), element("mark", mark));
      text = element("i", text);
    } else if (comment < line.size() && line.compare(comment, 2, "//") == 0) {
      text = escaped(line.substr(0, comment)) + element("i", escaped(line.substr(comment)));
    }
    html += "<span>" + std::to_string(i + 1) + "</span>" + text + "\n";
  }
  return html + "</code></pre>";
}

std::string anchor(const std::string& tag) {
  std::string name = tag;
  std::replace(name.begin(), name.end(), ' ', '-');
  return name;
}

extern const char* const style_sheet;

std::string page_of(const std::vector<Entry>& entries, const Lines& header,
                    const std::string& header_path) {
  const std::string title = "From equation to line to test";
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" "
      "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n" + element("title", title) +
      "<style>" + style_sheet + "</style></head>\n<body><main>\n<header>" + element("h1", title) +
      "<p>Every equation of the paper and every backward formula of " + header_path +
      ", beside the lines that compute it and the test that pins it. d<i>x</i> is the gradient of "
      "the loss with respect to <i>x</i>; the letters are those of the top of the header.</p>"
      "</header>\n<nav>";
  std::string part;
  for (const Entry& entry : entries) {
    if (entry.part != part) html += (part.empty() ? "<p><b>" : "</p><p><b>") + entry.part + "</b>";
    part = entry.part;
    html += " <a href=\"#" + anchor(entry.tag) + "\">" + entry.tag + "</a>";
  }
  html += "</p></nav>\n";
  part.clear();
  for (const Entry& entry : entries) {
    if (entry.part != part) html += element("h2", escaped(entry.part)) + "\n";
    part = entry.part;
    html += "<article id=\"" + anchor(entry.tag) + "\"><div>" +
            element("h3", element("span", "[" + entry.tag + "]") + " " + escaped(entry.title)) +
            "<div class=\"math\" tabindex=\"0\">" + entry.mathml + "</div>";
    if (!entry.says.empty()) html += element("p", escaped(entry.says));
    html += "<p class=\"label\">Pinned by</p><ul>";
    for (const Test& test : entry.pins)
      html += element("li", escaped(test.name) + " " + element("code", escaped(test.where)));
    html += "</ul></div><div>";
    for (std::size_t i = 0; i < entry.places.size(); ++i) {
      const Place& place = entry.places[i];
      html += std::string(i == 0 ? "<details open>" : "<details>") + "<summary>" +
              (place.name == "banner" ? "" : element("b", place.name) + ", ") + "chapter " +
              std::to_string(place.chapter) + " " +
              element("code", header_path + ":" + std::to_string(place.comment + 1)) +
              "</summary>" + listing(header, place, entry.tag) + "</details>\n";
    }
    html += "</div></article>\n";
  }
  return html + "</main></body></html>\n";
}

const char* const style_sheet = R"css(
:root{color-scheme:light dark;--paper:#faf9f7;--card:#fff;--ink:#1f2328;--quiet:#686e76;
--line:#e6e3dd;--blue:#2f62a8;--mark:#f6e7c1}
@media (prefers-color-scheme:dark){:root{--paper:#141619;--card:#1b1e22;--ink:#e4e2dd;
--quiet:#979da5;--line:#2d3137;--blue:#82b1ee;--mark:#54431a}}
*{box-sizing:border-box;margin:0}
body{background:var(--paper);color:var(--ink);line-height:1.5;font-size:16px;
font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1360px;margin:0 auto;padding:56px 24px 96px}
h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;font-weight:650}
header p{color:var(--quiet);font-size:18px;max-width:46em;margin-top:10px}
nav{margin-top:28px;padding-top:16px;border-top:2px solid var(--ink);font-size:14px}
nav p{margin-bottom:6px}nav b{font-weight:600;margin-right:6px}
a{color:var(--blue);text-decoration:none;white-space:nowrap;margin-right:8px}
a:hover{text-decoration:underline}
h2{font-size:22px;letter-spacing:-.01em;font-weight:650;margin:56px 0 16px}
article{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,762px);gap:12px 32px;
background:var(--card);border:1px solid var(--line);border-radius:10px;padding:22px 24px;
margin-bottom:20px;scroll-margin-top:16px}
article:target{border-color:var(--blue)}
h3{font-size:17px;font-weight:650;line-height:1.35}
h3 span{color:var(--blue);font-family:var(--mono);font-size:14px;font-weight:500;
white-space:nowrap;margin-right:4px}
.math{overflow-x:auto;overflow-y:hidden;margin:14px 0}
math{font-size:18px;text-align:left;font-family:"STIX Two Math","Cambria Math","Latin Modern Math",
"DejaVu Math TeX Gyre",math}
math[display=block]{display:block math;margin:0;padding:7px 1px;width:max-content}
mtext{font-family:Georgia,"Times New Roman",serif;font-size:.92em}
article p{font-size:15px;color:var(--quiet)}
.label{margin-top:12px}
ul{list-style:none;padding:0;font-size:14px}
li{margin-top:4px;padding-left:12px;text-indent:-12px;overflow-wrap:anywhere}
:root{--mono:ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{font-family:var(--mono);font-size:11.5px}
li code,summary code{color:var(--quiet)}
details+details{margin-top:6px}
summary{cursor:pointer;font-size:14px;width:fit-content;color:var(--quiet)}
summary b{color:var(--ink);font-weight:600}
pre{overflow:auto;max-height:440px;margin:8px 0 12px;padding:10px 0;border-radius:6px;
background:var(--paper);border:1px solid var(--line);line-height:1.45}
pre code{display:block;width:max-content;min-width:100%;padding-right:14px}
pre span{display:inline-block;width:5ch;margin-right:1.5ch;text-align:right;color:var(--quiet);
opacity:.7;user-select:none;position:sticky;left:0;background:var(--paper)}
pre i{font-style:normal;color:var(--quiet)}
mark{background:var(--mark);color:var(--ink);border-radius:3px}
:focus-visible{outline:2px solid var(--blue);outline-offset:2px;border-radius:3px}
@media (max-width:1260px){article{grid-template-columns:minmax(0,1fr)}}
@media (max-width:560px){main{padding:32px 12px 64px}h1{font-size:27px}header p{font-size:16px}
article{padding:16px 14px}h2{margin-top:40px}math{font-size:16px}}
@media print{pre{max-height:none;overflow:visible}article{break-inside:avoid-page}}
)css";

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 4) throw std::runtime_error("usage: equations HEADER TABLE PAGE TEST.cpp...");
    const std::string header_path = argv[1], table = argv[2], page = argv[3];
    const Lines header = lines_of(header_path);
    Problems problems;
    std::vector<Entry> entries = read_table(table, problems);
    resolve(entries, table, header_path, header, tests_in({argv + 4, argv + argc}), problems);
    std::ofstream file(page, std::ios::binary);
    file << page_of(entries, header, header_path) << std::flush;
    if (!file) throw std::runtime_error(page + " cannot be written");
    return problems.count() > 0 ? 1 : 0;
  } catch (const std::exception& error) {
    std::cout << "equations: " << error.what() << "\n";
    return 1;
  }
}
