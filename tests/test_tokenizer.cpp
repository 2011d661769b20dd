// Tests for examples/support/unicode.hpp and wordpiece.hpp: text to token ids.
#include "examples/support/wordpiece.hpp"

#include <doctest/doctest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

using namespace widenet;
using namespace widenet::support;
using namespace std::string_literals;

namespace {

using Ids = std::vector<std::int32_t>;

// The vocabulary and the table are printed by tests/reference/wordpiece_ids.py, which follows the
// rules of google-research/bert in plain Python.
const std::vector<std::string> words = {
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e", "i", "k", "n", "o", "s",
    "u", "z", "##a", "##b", "##c", "##d", "##e", "##n", "##s", "##z", "the", "un", "##aff",
    "##able", "##ff", "aff", "able", "want", "##want", "##ed", "runn", "##ing", "hello", "world",
    "1", "##2", "2", "##,", ".", ",", ";", ":", "!", "?", "-", "'", "\"", "(", ")", "[", "]", "=",
    "$", "+", "^", "`", "|", "~", "<", ">", "/", "@", "#", "_", "{", "}", "&", "*", "%", "\\",
    "\u00ab", "\u00bb", "\u2014", "\u2026", "\u3002", "\u3001", "\u300c", "\u300d", "\u00b7",
    "e\u0301", "caf\u00e9", "caf", "cafe", "Cafe", "\u00c9", "H", "Hello", "HELLO", "Un", "\u0130",
    "\u0131", "##\u0307", "\u00df", "ss", "\u00e6", "\u00f8", "\u0142", "\u03c3", "\u03c2",
    "\u03bf", "\u03b4\u03bf\u03c3", "##\u03c3", "##\u03c2", "\u0430", "\u0438", "\u0439",
    "##\u0438", "\u4e2d", "\u56fd", "\u6587", "##\u6587", "\u3042", "##\u3044", "\u304b", "\u304c",
    "\u30a2", "\u1112", "##\u1161", "##\u11ab", "\ud55c", "\u0928\u092e", "##\u0938", "##\u0924",
    "\u05e9", "##\u05dc", "##\u05d5", "\u0e2a", "\U0001f600", "##\U0001f600", "\u00bd", "\u2082",
    "\ufb01", "\uff21", "\uff41", "##\uff42", "\u20ac", "\u00a9", "\u2122", "##\u0301", "a##b",
    "[unused0]", "\U00020000", "\u03b4\u03bf\u03c2", "\u03b1", "##\u03b1", "##\u03bf", "\u8c48",
    "\ue000", "##\ue000", "\ua641", "\u0627", "\u05e9\u05e9", "\U00010428", "##\U00010428",
    "\u09c7", "##\u09be", "\U0001d158", "##\U0001d165", "\u4e3d"};

struct Case {
  std::string text;
  Ids uncased, cased;
};
const std::vector<Case> cases = {
    {"", {}, {}}, {" ", {}, {}}, {"\011\012\015\012", {}, {}}, {"a", {5}, {5}},
    {"unaffable", {26, 27, 28}, {26, 27, 28}},
    {"unwanted running", {26, 33, 34, 35, 36}, {26, 33, 34, 35, 36}},
    {"UNwanted\u00e9,running", {26, 33, 34, 21, 44, 35, 36}, {1, 44, 35, 36}},
    {"hello, world!", {37, 44, 38, 47}, {37, 44, 38, 47}},
    {"Hello HELLO hello", {37, 37, 37}, {91, 92, 37}}, {"  hello   world  ", {37, 38}, {37, 38}},
    {"hello\011world\012hello\015\012world", {37, 38, 37, 38}, {37, 38, 37, 38}},
    {"aab", {5, 17, 18}, {5, 17, 18}}, {"aazb", {5, 17, 24, 18}, {5, 17, 24, 18}},
    {"xaa", {1}, {1}}, {"aax", {1}, {1}}, {"unx", {1}, {1}}, {"a.b", {5, 43, 6}, {5, 43, 6}},
    {"a . b", {5, 43, 6}, {5, 43, 6}}, {"...", {43, 43, 43}, {43, 43, 43}},
    {"!?", {47, 48}, {47, 48}}, {"(a)", {52, 5, 53}, {52, 5, 53}}, {"a-b", {5, 49, 6}, {5, 49, 6}},
    {"don't", {1, 50, 1}, {1, 50, 1}}, {"\"a\"", {51, 5, 51}, {51, 5, 51}},
    {"$2", {57, 41}, {57, 41}}, {"2+2=2", {41, 58, 41, 56, 41}, {41, 58, 41, 56, 41}},
    {"a^b", {5, 59, 6}, {5, 59, 6}}, {"a`b", {5, 60, 6}, {5, 60, 6}},
    {"a|b~c", {5, 61, 6, 62, 7}, {5, 61, 6, 62, 7}}, {"<a>", {63, 5, 64}, {63, 5, 64}},
    {"a_b", {5, 68, 6}, {5, 68, 6}}, {"a/b@c", {5, 65, 6, 66, 7}, {5, 65, 6, 66, 7}},
    {"#a", {67, 5}, {67, 5}}, {"##a", {67, 67, 5}, {67, 67, 5}}, {"##", {67, 67}, {67, 67}},
    {"a##b", {5, 67, 67, 6}, {5, 67, 67, 6}}, {"[a]", {54, 5, 55}, {54, 5, 55}}, {"[", {54}, {54}},
    {"a,b", {5, 44, 6}, {5, 44, 6}}, {"12", {39, 40}, {39, 40}},
    {"1,2", {39, 44, 41}, {39, 44, 41}}, {"unaffableunaffable", {1}, {1}},
    {"caf\u00e9", {87}, {85}}, {"cafe\u0301", {87}, {87, 143}}, {"Caf\u00c9", {87}, {1}},
    {"e\u0301", {9}, {84}}, {"\u00c9", {9}, {89}}, {"\u0301", {}, {1}},
    {"a\u0301\u0301b", {5, 18}, {5, 143, 143, 18}}, {" \u0301 a", {5}, {1, 5}},
    {"\u0130", {10}, {94}}, {"\u0131", {95}, {95}}, {"I\u0307", {10}, {1}},
    {"\u00e6 \u00f8 \u0142 \u00df", {99, 100, 101, 97}, {99, 100, 101, 97}},
    {"\u00c6 \u00d8 \u0141 \u1e9e", {99, 100, 101, 97}, {1, 1, 1, 1}}, {"\u212b", {5}, {1}},
    {"\u212a", {11}, {1}}, {"\u2260", {56}, {1}}, {"\u226f", {64}, {1}}, {"\u037e", {45}, {1}},
    {"\u1fef", {60}, {1}}, {"\u0340", {}, {1}}, {"\u1fb3", {148}, {1}}, {"\u03c3", {102}, {102}},
    {"\u03c2", {103}, {103}}, {"\u03a3", {102}, {1}}, {"\u03b4\u03bf\u03c3", {105}, {105}},
    {"\u03b4\u03bf\u03c2", {147}, {147}}, {"\u0394\u039f\u03a3", {147}, {1}},
    {"\u0439", {109}, {110}}, {"\u0419", {109}, {1}}, {"\u0438\u0306", {109}, {1}},
    {"\u0410\u0418", {108, 111}, {1}}, {"\u0394\u039f\u03a3.", {147, 43}, {1, 43}},
    {"\u0394\u039f\u03a3,a", {147, 44, 5}, {1, 44, 5}}, {"\u03a3\u03a3", {102, 107}, {1}},
    {"a\u03a3 \u03a3a", {5, 107, 102, 17}, {1, 1}}, {"a\u03a3\u03a3", {5, 106, 107}, {1}},
    {"a\u0301\u03a3\u0301", {5, 107}, {1}}, {"a\u03a3\u0301a", {5, 106, 17}, {1}},
    {"a'\u03a3", {5, 50, 103}, {5, 50, 1}}, {"a\u03a3'", {5, 107, 50}, {1, 50}},
    {"a\u03a3'a", {5, 106, 50, 5}, {1, 50, 5}}, {"a\u03a3-a", {5, 107, 49, 5}, {1, 49, 5}},
    {"a-\u03a3", {5, 49, 102}, {5, 49, 1}}, {"1\u03a3", {39, 106}, {1}}, {"a1\u03a3", {1}, {1}},
    {"a.\u03a3", {5, 43, 103}, {5, 43, 1}}, {"a\u00ad\u03a3\u200b", {5, 107}, {1}},
    {"a\ufffd\u03a3\000a"s, {5, 106, 17}, {1}}, {"\u4e2d\u03a3", {112, 102}, {112, 1}},
    {"a\u4e2d\u03a3", {5, 112, 102}, {5, 112, 1}}, {"a\u03a3\u4e2d", {5, 107, 112}, {1, 112}},
    {"a\u03a3\u3042", {1}, {1}}, {"\u0391\u03a3\ua640", {1}, {1}}, {"\u02b0\u03a3", {1}, {1}},
    {"a\u03a3\u02b0", {1}, {1}}, {"a\u03a3\U00010400", {5, 106, 158}, {1}},
    {"\U00010400\u03a3\U000e0100", {157, 107}, {1}}, {"\u4e2d\u56fd", {112, 113}, {112, 113}},
    {"a\u4e2db", {5, 112, 6}, {5, 112, 6}}, {"\u4e2d\u0301\u56fd", {112, 113}, {112, 1, 113}},
    {"\u6587\u6587", {114, 114}, {114, 114}}, {"\u3042\u3044", {116, 117}, {116, 117}},
    {"\u304c", {118}, {119}}, {"\u304b\u3099", {118}, {1}}, {"\u30a2", {120}, {120}},
    {"\ud55c", {121, 122, 123}, {124}}, {"\u1112\u1161\u11ab", {121, 122, 123}, {121, 122, 123}},
    {"\u4e2d\u3002\u56fd\u3001", {112, 79, 113, 80}, {112, 79, 113, 80}},
    {"\u300c\u4e2d\u300d", {81, 112, 82}, {81, 112, 82}}, {"\uac00", {1}, {1}},
    {"\U00020000a", {146, 5}, {146, 5}}, {"\u0928\u092e\u0938\u094d\u0924", {125, 126, 127}, {1}},
    {"\u05e9\u05dc\u05d5", {128, 129, 130}, {128, 129, 130}},
    {"\u05e9\u05c1\u05dc\u05b8\u05d5", {128, 129, 130}, {1}}, {"\u0e2a\u0e31", {131}, {1}},
    {"\ua640", {154}, {1}}, {"\ufb49\u05e9", {156}, {1}}, {"\ufb2a", {128}, {1}},
    {"\U00010400\U00010428", {157, 158}, {1}}, {"\u09cb", {159, 160}, {1}},
    {"\U0001d15e", {1}, {1}}, {"\U0001d160", {1}, {1}}, {"\uf900", {151}, {1}},
    {"\u8c48\uf900", {151, 151}, {151, 1}}, {"\U0002f800", {163}, {1}},
    {"a\U00011046b", {5, 18}, {1}}, {"a\U0001e000b", {5, 18}, {1}},
    {"a\U00011047b", {5, 1, 6}, {5, 1, 6}}, {"a\000b"s, {5, 18}, {5, 18}},
    {"a\ufffdb", {5, 18}, {5, 18}}, {"a\u200bb", {5, 18}, {5, 18}}, {"a\u00adb", {5, 18}, {5, 18}},
    {"a\u200db", {5, 18}, {5, 18}}, {"a\ufeffb", {5, 18}, {5, 18}}, {"a\177b", {5, 18}, {5, 18}},
    {"a\302\205b", {5, 18}, {5, 18}}, {"a\013b", {5, 18}, {5, 18}}, {"a\014b", {5, 18}, {5, 18}},
    {"a\034b", {5, 18}, {5, 18}}, {"a\u2060b", {5, 18}, {5, 18}}, {"a\u061cb", {5, 18}, {5, 18}},
    {"a\ue000b", {5, 153, 18}, {5, 153, 18}}, {"a\U000e0041b", {5, 18}, {5, 18}},
    {"a\U000f0000b", {1}, {1}}, {"\ufe0f", {}, {1}}, {"\ue000", {152}, {152}},
    {"a\ue000\ue000", {5, 153, 153}, {5, 153, 153}}, {"a\U0010fffdb", {1}, {1}},
    {"a\U000110bdb", {5, 18}, {5, 18}}, {"a\U000e0001b", {5, 18}, {5, 18}},
    {"a\u00a0b", {5, 6}, {5, 6}}, {"a\u2003b", {5, 6}, {5, 6}}, {"a\u3000b", {5, 6}, {5, 6}},
    {"a\u2028b", {5, 6}, {5, 6}}, {"a\u2029b", {5, 6}, {5, 6}}, {"a\u202fb", {5, 6}, {5, 6}},
    {"a\u1680b", {5, 6}, {5, 6}}, {"a\u205fb", {5, 6}, {5, 6}}, {"a\u180eb", {5, 18}, {5, 18}},
    {"\u00aba\u00bb", {75, 5, 76}, {75, 5, 76}}, {"a\u2014b", {5, 77, 6}, {5, 77, 6}},
    {"a\u2026", {5, 78}, {5, 78}}, {"a\u00b7b", {5, 83, 6}, {5, 83, 6}},
    {"\u20ac2", {140, 40}, {140, 40}}, {"a\u00a9", {1}, {1}}, {"\u2122", {142}, {142}},
    {"\u00bd", {134}, {134}}, {"\u2082", {135}, {135}}, {"\u00a1a", {1, 5}, {1, 5}},
    {"\u00a7a", {1, 5}, {1, 5}}, {"\ufb01", {136}, {136}}, {"\uff21\uff42", {138, 139}, {137, 139}},
    {"\uff41\uff42", {138, 139}, {138, 139}}, {"\U0001f600", {132}, {132}},
    {"\U0001f600\U0001f600", {132, 133}, {132, 133}}, {"a\U0001f600", {5, 133}, {5, 133}},
    {"\U0001f468\u200d\U0001f469", {1}, {1}}, {"[unused0]", {54, 1, 55}, {54, 1, 55}},
    {"\u0378", {1}, {1}}};

enum : std::int32_t { unk = 1, a = 5, b = 6 };  // as in `words`

/// FNV-1a, 64 bits, of numbers of 32 bits, lowest byte first.
std::uint64_t fingerprint(const std::u32string& values) {
  std::uint64_t hash = 14695981039346656037u;
  for (const char32_t value : values)
    for (int shift = 0; shift < 32; shift += 8)
      hash = (hash ^ ((value >> shift) & 0xFF)) * 1099511628211u;
  return hash;
}

/// The points that a function holds for.
std::u32string members(bool (*holds)(char32_t)) {
  std::u32string found;
  for (char32_t c = 0; c <= 0x10FFFF; ++c)
    if (holds(c)) found += c;
  return found;
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

const std::vector<std::string> specials = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};

Tokenizer with(std::vector<std::string> more, bool is_cased = false) {
  more.insert(more.begin(), specials.begin(), specials.end());
  return Tokenizer::wordpiece(std::move(more), is_cased);
}

/// "id:begin-end" of every piece.
std::string spans(const Tokenizer& tokenizer, const std::string& text) {
  std::string result;
  for (const Piece& p : tokenizer.pieces(text))
    result += (result.empty() ? "" : " ") + std::to_string(p.id) + ":" + std::to_string(p.begin) +
              "-" + std::to_string(p.end);
  return result;
}

}  // namespace

TEST_SUITE("support: unicode") {
  TEST_CASE("UTF-8 there and back, for every code point") {
    for (char32_t c = 0; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 37) {
      if (c >= 0xD800 && c < 0xE000) continue;
      const std::u32string point{c};
      if (decode_utf8(encode_utf8(point)) != point) FAIL_CHECK("code point ", std::uint32_t(c));
    }
    CHECK(encode_utf8(U"\u007F\u0080\u07FF\u0800\uFFFF\U00010000\U0010FFFF") ==
          "\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80\xEF\xBF\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF");
    CHECK(encode_utf8({char32_t(0xD800), char32_t(0x110000)}) == "\uFFFD\uFFFD");
  }

  TEST_CASE("what is not UTF-8 becomes U+FFFD, one for what could have begun a character") {
    const char32_t bad = 0xFFFD;
    CHECK(decode_utf8("a\x80" "b") == std::u32string{'a', bad, 'b'});
    CHECK(decode_utf8("\xC0\xAF") == std::u32string{bad, bad});                // overlong
    CHECK(decode_utf8("\xE0\x9F\xBF") == std::u32string{bad, bad, bad});       // overlong
    CHECK(decode_utf8("\xED\xA0\x80") == std::u32string{bad, bad, bad});       // a surrogate
    CHECK(decode_utf8("\xF4\x90\x80\x80") == std::u32string(4, bad));          // above U+10FFFF
    CHECK(decode_utf8("\xF0\x8F\xBF\xBF") == std::u32string(4, bad));          // overlong
    CHECK(decode_utf8("\xFF\xFE") == std::u32string{bad, bad});
    CHECK(decode_utf8("\xE2\x82") == std::u32string{bad});                     // cut off
    CHECK(decode_utf8("\xF0\x9F\x98" "a") == std::u32string{bad, 'a'});        // three of four
    CHECK(decode_utf8("\xE2(\xA1") == std::u32string{bad, '(', bad});
    CHECK(decode_utf8("\xC3") == std::u32string{bad});
    CHECK(decode_utf8("\xC3\xC3\xA9") == std::u32string{bad, 0xE9});
  }

  // The numbers are printed by tests/reference/unicode_tables.py.
  TEST_CASE("classes are those of Unicode 14 for every code point") {
    CHECK(fingerprint(members(is_space)) == 0xD7AB30D770E46CB7);
    CHECK(fingerprint(members(is_control)) == 0x230DC780819B6214);
    CHECK(fingerprint(members(is_punctuation)) == 0x85222DDFBEF9DEEF);
    CHECK(fingerprint(members(is_mark)) == 0xB1915C436B0692E3);
    CHECK(fingerprint(members(is_cased)) == 0x4C5D77274D0A406B);
    CHECK(fingerprint(members(is_case_ignorable)) == 0x7DD136423DB6D418);
    CHECK(members(is_space).size() == 22);
    CHECK(members(is_mark).size() == 1950);
  }

  TEST_CASE("folds are those of Unicode 14 for every code point") {
    std::u32string folded;
    for (char32_t c = 0; c <= 0x10FFFF; ++c)
      if (fold(c) != std::u32string{c}) (folded += c) += fold(c);
    CHECK(folded.size() == 52483);
    CHECK(fingerprint(folded) == 0x40D0770F49AA050D);
    CHECK(fold(U'\u1ED8') == U"o");  // with two accents
    CHECK(fold(U'\uD55C') == U"\u1112\u1161\u11AB");
    CHECK(fold(U'\uAC00') == U"\u1100\u1161");
    CHECK(fold(U'\u0301').empty());
    CHECK(fold(U'\u09CB') == U"\u09C7\u09BE");
    CHECK(fold(U'\uF900') == U"\u8C48");
    CHECK(fold(U'\uFA0E') == U"\uFA0E");  // in that block, yet no compatibility form
    CHECK(fold(U'\U0001D160') == U"\U0001D158\U0001D165\U0001D16E");
    CHECK(fold(U'\U0002FA1D') == U"\U0002A600");
    CHECK(fold(U'\U00010400') == U"\U00010428");
  }

  TEST_CASE("capitals are those of Unicode 14 for every code point") {
    std::u32string lowered;
    for (char32_t c = 0; c <= 0x10FFFF; ++c)
      if (lower_case(c) != c) (lowered += c) += lower_case(c);
    CHECK(lowered.size() == 2864);
    CHECK(fingerprint(lowered) == 0xFFBC89A6DB926C94);
    CHECK(lower_case(U'\u00C9') == U'\u00E9');
    CHECK(lower_case(U'\u0130') == U'\u0130');
    CHECK(lower_case(U'\u03A3') == U'\u03C3');
  }

  TEST_CASE("Chinese characters are neither kana nor Hangul; private use is of no class") {
    CHECK(is_chinese(U'\U00020000'));
    CHECK(is_chinese(U'\U0002A6DF'));
    CHECK(!is_chinese(U'\U0002A6E0'));
    CHECK(!is_chinese(U'\u3042'));
    CHECK(!is_chinese(U'\uD55C'));
    for (const char32_t c : U"\uE000\uF8FF\U000F0000\U000FFFFD\U00100000\U0010FFFD"s) {
      CHECK(!(is_space(c) || is_control(c) || is_punctuation(c) || is_mark(c)));
      CHECK(fold(c) == std::u32string{c});
    }
  }
}

TEST_SUITE("support: wordpiece") {
  TEST_CASE("the ids are those of BERT on awkward texts") {
    const Tokenizer uncased = Tokenizer::wordpiece(words, false);
    const Tokenizer cased = Tokenizer::wordpiece(words, true);
    for (const Case& c : cases) {
      INFO(c.text);
      CHECK(uncased.ids(c.text) == c.uncased);
      CHECK(cased.ids(c.text) == c.cased);
    }
    CHECK(cases.size() == 181);
  }

  TEST_CASE("special tokens in a text are text") {
    const Tokenizer tokenizer = with({"[", "]", "mask"});
    CHECK(tokenizer.ids("[MASK]") == Ids{5, 7, 6});
    CHECK(tokenizer.ids("mask[SEP]") == Ids{7, 5, unk, 6});
  }

  TEST_CASE("bytes that are not UTF-8 are dropped, and words go on over them") {
    const Tokenizer tokenizer = Tokenizer::wordpiece(words, false);
    CHECK(tokenizer.ids("a\xFF" "b") == tokenizer.ids("ab"));
    CHECK(tokenizer.ids("\xC3(a\xE2\x82 b\x80") == tokenizer.ids("(a b"));
    CHECK(tokenizer.ids("\xF0\x9F\x98").empty());
  }

  TEST_CASE("a word of 200 characters is cut, one of 201 is unknown") {
    Tokenizer tokenizer = Tokenizer::wordpiece(words, false);
    CHECK(tokenizer.ids(std::string(200, 'a')).size() == 200);
    CHECK(tokenizer.ids(std::string(201, 'a')) == Ids{unk});
    CHECK(tokenizer.ids("b " + std::string(201, 'a') + ".b") == Ids{b, unk, 43, b});
    CHECK(spans(tokenizer, std::string(201, 'a')) == "1:0-201");
    tokenizer.longest_word = 100;  // as in transformers
    CHECK(tokenizer.ids(std::string(100, 'a')).size() == 100);
    CHECK(tokenizer.ids(std::string(101, 'a')) == Ids{unk});
    std::string accents;  // characters are counted without their accents
    for (int i = 0; i < 200; ++i) accents += "e\u0301";
    CHECK(with({"e", "##e"}).ids(accents).size() == 200);
    const std::string huge(1000000, 'z');
    CHECK(tokenizer.ids(huge) == Ids{unk});
  }

  TEST_CASE("pieces know their place, in code points") {
    const Tokenizer tokenizer = Tokenizer::wordpiece(words, false);
    CHECK(spans(tokenizer, "hello") == "37:0-5");
    CHECK(spans(tokenizer, " unaffable.") == "26:1-3 27:3-6 28:6-10 43:10-11");
    CHECK(spans(tokenizer, "\u4E2Dcaf\u00E9\u56FD") == "112:0-1 87:1-5 113:5-6");
    CHECK(spans(tokenizer, "cafe\u0301 a") == "87:0-4 5:6-7");  // the accent belongs to no piece
    CHECK(spans(tokenizer, "\uD55C a") == "121:0-1 122:0-1 123:0-1 5:2-3");  // one syllable
    CHECK(spans(tokenizer, "\U0001F600 a") == "132:0-1 5:2-3");
    CHECK(spans(tokenizer, "a\xFF" "b") == "5:0-1 18:2-3");  // a bad byte is one place
    CHECK(spans(tokenizer, "qqq a") == "1:0-3 5:4-5");
  }

  TEST_CASE("which tokens go on with a word") {
    const Tokenizer tokenizer = with({"a", "##b", "##", "#"});
    CHECK(!tokenizer.is_continuation(5));
    CHECK(tokenizer.is_continuation(6));
    CHECK(!tokenizer.is_continuation(7));
    CHECK(!tokenizer.is_continuation(tokenizer.unknown));
    CHECK(tokenizer.is_special(tokenizer.sep));
    CHECK(!tokenizer.is_special(tokenizer.unknown));
    CHECK(error_of([&] { tokenizer.word(9); }) ==
          "widenet: Tokenizer: a token must lie in [0, 9); got 9");
    CHECK(error_of([&] { tokenizer.word(-1); }) ==
          "widenet: Tokenizer: a token must lie in [0, 9); got -1");
  }

  TEST_CASE("bytes: no file, nothing unknown, nothing dropped") {
    const Tokenizer tokenizer = Tokenizer::bytes();
    CHECK(tokenizer.size() == 260);
    CHECK(tokenizer.ids("A\n\0\xFF"s) == Ids{4 + 'A', 4 + '\n', 4, 4 + 255});
    CHECK(tokenizer.ids("").empty());
    CHECK(spans(tokenizer, "\u00E9a\xFF") == "199:0-1 173:0-1 101:1-2 259:2-3");
    CHECK(tokenizer.is_continuation(173));
    CHECK(!tokenizer.is_continuation(199));
    CHECK(tokenizer.word(4 + 'x') == "x");
    CHECK(tokenizer.word(tokenizer.mask) == "[MASK]");
    std::string text;
    for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
    std::string back;
    for (const std::int32_t id : tokenizer.ids(text)) back += tokenizer.word(id);
    CHECK(back == text);
  }

  TEST_CASE("lines end in LF or CRLF; the last needs no end") {
    using Lines = std::vector<std::string>;
    CHECK(lines_of("") == Lines{});
    CHECK(lines_of("a") == Lines{"a"});
    CHECK(lines_of("a\nb\n") == Lines{"a", "b"});
    CHECK(lines_of("a\r\n\r\nb") == Lines{"a", "", "b"});
    CHECK(lines_of("\n\n") == Lines{"", ""});
    CHECK(lines_of("a\rb\r\r\n") == Lines{"a\rb\r"});
  }

  TEST_CASE("vocab.txt: the line number is the id, whatever the line ends") {
    const std::filesystem::path path = std::filesystem::temp_directory_path() /
                                       ("widenet_test_vocab_" + std::to_string(getpid()));
    std::ofstream(path, std::ios::binary)
        << "[PAD]\r\n[UNK]\r\n\r\n[CLS]\r\n[SEP]\r\na\r\n\r\n[MASK]\r\n##b";
    const Tokenizer tokenizer = Tokenizer::wordpiece(path.string(), false);
    std::filesystem::remove(path);
    CHECK(tokenizer.size() == 9);
    CHECK(tokenizer.ids("ab") == Ids{5, 8});
    CHECK(tokenizer.mask == 7);
    CHECK(tokenizer.ids(" ").empty());  // the empty word stands for nothing
    CHECK(error_of([&] { Tokenizer::wordpiece(path.string(), false); }) ==
          "widenet: Tokenizer: " + path.string() + ": must be readable; got: not opened");
    CHECK(error_of([] { Tokenizer::wordpiece(".", false); }) ==
          "widenet: Tokenizer: .: must be readable; got: a folder");
  }

  TEST_CASE("a vocabulary that is no vocabulary is refused, with the line") {
    const auto refused = [](const std::vector<std::string>& more) {
      return error_of([&] { with(more); });
    };
    CHECK(refused({"a", "b", "a"}) ==
          "widenet: Tokenizer: the vocabulary: line 8: a word must stand in one line only; got "
          "\"a\" of line 6");
    CHECK(refused({"a", "\xFF"}) ==
          "widenet: Tokenizer: the vocabulary: line 7: a word must be UTF-8; got other bytes");
    CHECK(refused({"", ""}) == "no error");
    CHECK(error_of([] { Tokenizer::wordpiece({"[PAD]", "[UNK]", "[CLS]", "[SEP]"}, true); }) ==
          "widenet: Tokenizer: the vocabulary: the vocabulary must have [PAD], [UNK], [CLS], [SEP] "
          "and [MASK]; got 4 words without [MASK]");
  }
}
