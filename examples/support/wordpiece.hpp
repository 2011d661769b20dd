// wordpiece.hpp - text to token ids: BERT's WordPiece over a vocab.txt, or plain bytes.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_WORDPIECE_HPP
#define WIDENET_EXAMPLES_SUPPORT_WORDPIECE_HPP

#include "support/unicode.hpp"
#include "widenet.hpp"

#include <algorithm>      // min
#include <cstdint>        // int32_t, uint8_t
#include <fstream>        // ifstream
#include <iterator>       // istreambuf_iterator
#include <string>         // string, u32string
#include <unordered_map>  // unordered_map
#include <utility>        // move
#include <vector>         // vector

namespace widenet::support {

/// A token, and where in the text it comes from: code points begin, ..., end - 1.
struct Piece {
  std::int32_t id;
  Index begin, end;
};

/// The lines of a text, without their ends (LF or CRLF). A last line needs no end.
inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const bool has_return = end > begin && text[end - 1] == '\r';
    lines.push_back(text.substr(begin, end - begin - (has_return ? 1 : 0)));
    begin = end + 1;
  }
  return lines;
}

/// All bytes of a file.
///
///   Errors    IoError naming `reader` and the file
inline std::string read_text(const std::string& path, const std::string& reader) {
  std::ifstream in(path, std::ios::binary);
  require<IoError>(in.good(), reader, ": ", path, ": must be readable; got: not opened");
  in.peek();  // here a folder fails, which opens
  require<IoError>(!in.bad(), reader, ": ", path, ": must be readable; got: a folder");
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Cuts text into tokens. Tokens that mark places rather than text have ids of their own:
/// pad (fills up a sequence), cls (begins one), sep (ends a segment), mask (hides a token).
///
///   WordPiece   characters that are no text are dropped: NUL, U+FFFD, control characters, bytes
///               that are not UTF-8; without case, letters become lower case without accents; words
///               end at white space; punctuation and Chinese characters are words by themselves; a
///               word is cut from the left into the longest pieces that the vocabulary has, the
///               later ones under "##". A word that cannot be cut so, or with more than
///               `longest_word` characters, is one unknown token.
///   bytes       every byte is a token; nothing is unknown, and nothing is dropped
///
///   Errors    IoError if a vocab.txt cannot be read; ValueError naming the line if a word is not
///             UTF-8, stands in two lines, or if [PAD], [UNK], [CLS], [SEP] or [MASK] is missing
///   Source    google-research/bert, tokenization.py, BasicTokenizer and WordpieceTokenizer
///   Differs   from the source in marks out of order, see fold in unicode.hpp, and in a vocab.txt
///             with equal words, of which the source takes the last, or with white space around a
///             word, which it strips. transformers (5.23, its tokenizer in Rust) cuts words of at
///             most 100 characters, drops private use too, makes every capital sigma U+03C3, has
///             the classes of an older Unicode, does not split the Chinese characters
///             U+2B820-2B91F, and takes "[MASK]" and the like in a text for special tokens, which
///             here, as in the source, are text.
///   Example   const Tokenizer tokenizer = Tokenizer::wordpiece("vocab.txt", /*is_cased=*/false);
///             for (const Piece& piece : tokenizer.pieces("Hello, world")) use(piece.id);
class Tokenizer {
 public:
  std::int32_t pad = 0, unknown = 0, cls = 0, sep = 0, mask = 0;
  Index longest_word = 200;

  /// 256 bytes after four special tokens: byte b is token 4 + b.
  static Tokenizer bytes() {
    Tokenizer tokenizer;
    tokenizer.words_ = {"[PAD]", "[CLS]", "[SEP]", "[MASK]"};
    tokenizer.pad = 0, tokenizer.cls = 1, tokenizer.sep = 2, tokenizer.mask = 3;
    tokenizer.unknown = -1;  // there is none
    for (int b = 0; b < 256; ++b) tokenizer.words_.emplace_back(1, static_cast<char>(b));
    return tokenizer;
  }

  /// With the words of a vocabulary, in the order of their ids. An empty word takes its id, but
  /// stands for nothing.
  static Tokenizer wordpiece(std::vector<std::string> words, bool is_cased,
                             const std::string& source = "the vocabulary") {
    Tokenizer tokenizer;
    tokenizer.is_wordpiece_ = true, tokenizer.is_cased_ = is_cased;
    tokenizer.words_ = std::move(words);
    for (std::size_t i = 0; i < tokenizer.words_.size(); ++i) {
      const std::string& word = tokenizer.words_[i];
      require<ValueError>(encode_utf8(decode_utf8(word)) == word, "Tokenizer: ", source, ": line ",
                          i + 1, ": a word must be UTF-8; got other bytes");
      if (word.empty()) continue;
      const auto added = tokenizer.ids_.emplace(word, static_cast<std::int32_t>(i));
      require<ValueError>(added.second, "Tokenizer: ", source, ": line ", i + 1,
                          ": a word must stand in one line only; got \"", word, "\" of line ",
                          added.first->second + 1);
    }
    const auto special = [&](const char* name) {
      const auto found = tokenizer.ids_.find(name);
      require<ValueError>(found != tokenizer.ids_.end(), "Tokenizer: ", source,
                          ": the vocabulary must have [PAD], [UNK], [CLS], [SEP] and [MASK]; got ",
                          tokenizer.words_.size(), " words without ", name);
      return found->second;
    };
    tokenizer.pad = special("[PAD]"), tokenizer.unknown = special("[UNK]");
    tokenizer.cls = special("[CLS]"), tokenizer.sep = special("[SEP]");
    tokenizer.mask = special("[MASK]");
    return tokenizer;
  }

  /// With the words of a vocab.txt, one in a line.
  static Tokenizer wordpiece(const std::string& path, bool is_cased) {
    return wordpiece(lines_of(read_text(path, "Tokenizer")), is_cased, path);
  }

  /// V, the special tokens included.
  Index size() const { return static_cast<Index>(words_.size()); }
  const std::string& word(std::int32_t id) const {
    require<ValueError>(0 <= id && id < size(), "Tokenizer: a token must lie in [0, ", size(),
                        "); got ", id);
    return words_[static_cast<std::size_t>(id)];
  }
  bool is_special(std::int32_t id) const {
    return id == pad || id == cls || id == sep || id == mask;
  }
  /// Whether a token goes on with a word, or with a character, that one before it begins.
  bool is_continuation(std::int32_t id) const {
    if (!is_wordpiece_) return id >= 4 + 0x80 && id < 4 + 0xC0;
    return word(id).compare(0, 2, "##") == 0 && word(id).size() > 2;
  }

  std::vector<Piece> pieces(const std::string& text) const {
    return is_wordpiece_ ? wordpieces(text) : byte_pieces(text);
  }
  std::vector<std::int32_t> ids(const std::string& text) const {
    std::vector<std::int32_t> result;
    for (const Piece& piece : pieces(text)) result.push_back(piece.id);
    return result;
  }

 private:
  static std::vector<Piece> byte_pieces(const std::string& text) {
    std::vector<Piece> result;
    Index place = 0;
    for (std::size_t at = 0; at < text.size(); ++place)
      for (std::size_t left = decode_point(text, at).length; left > 0; --left, ++at)
        result.push_back({4 + static_cast<std::uint8_t>(text[at]), place, place + 1});
    return result;
  }

  /// Characters of a word, and for each the code point of the text that it comes from.
  struct Word {
    std::u32string characters;
    std::vector<Index> place;
  };

  /// NUL, U+FFFD (which also stands for bytes that are not UTF-8), control and format characters.
  static bool is_dropped(char32_t c) { return c == replacement_character || is_control(c); }

  /// Whether a word ends with the letter at a place, so that a capital sigma there becomes U+03C2
  /// and not U+03C3: a cased letter stands before it and none behind, whatever is case-ignorable or
  /// dropped between them. White space and Chinese characters are neither, and so end the search.
  ///
  ///   Source    The Unicode Standard, table 3-17, Final_Sigma; str.lower() of Python
  static bool ends_word(const std::u32string& points, std::size_t place) {
    const auto is_passed = [](char32_t c) { return is_dropped(c) || is_case_ignorable(c); };
    std::size_t before = place, behind = place + 1;
    while (before > 0 && is_passed(points[before - 1])) --before;
    while (behind < points.size() && is_passed(points[behind])) ++behind;
    const bool goes_on = behind < points.size() && is_cased(points[behind]);
    return before > 0 && is_cased(points[before - 1]) && !goes_on;
  }

  /// The characters that the vocabulary is asked for in place of a point of the text.
  std::u32string characters(const std::u32string& points, std::size_t place) const {
    const char32_t capital_sigma = 0x3A3, final_sigma = 0x3C2;
    if (is_cased_) return {points[place]};
    if (points[place] == capital_sigma && ends_word(points, place)) return {final_sigma};
    return fold(points[place]);
  }

  std::vector<Piece> wordpieces(const std::string& text) const {
    std::vector<Piece> result;
    Word word;
    const auto end_word = [&] {
      if (!word.place.empty()) cut(word, result);
      word = {};
    };
    const std::u32string points = decode_utf8(text);
    for (std::size_t place = 0; place < points.size(); ++place) {
      const char32_t point = points[place];
      if (is_dropped(point)) continue;
      if (is_space(point)) {
        end_word();
        continue;
      }
      for (const char32_t c : characters(points, place)) {
        const bool stands_alone = is_chinese(point) || is_punctuation(c);
        if (stands_alone) end_word();
        word.characters += c;
        word.place.push_back(static_cast<Index>(place));
        if (stands_alone) end_word();
      }
    }
    end_word();
    return result;
  }

  /// Greedy: the longest piece that begins the word, then the longest that goes on, and so forth.
  void cut(const Word& word, std::vector<Piece>& result) const {
    const std::size_t size = word.characters.size();
    const std::size_t first_piece = result.size();
    const auto add = [&](std::int32_t id, std::size_t begin, std::size_t end) {
      result.push_back({id, word.place[begin], word.place[end - 1] + 1});
    };
    if (static_cast<Index>(size) > longest_word) return add(unknown, 0, size);
    for (std::size_t begin = 0; begin < size;) {
      std::size_t end = size;
      auto found = ids_.end();
      for (; end > begin; --end) {
        const std::string piece = encode_utf8(word.characters.substr(begin, end - begin));
        found = ids_.find(begin == 0 ? piece : "##" + piece);
        if (found != ids_.end()) break;
      }
      if (found == ids_.end()) {
        result.resize(first_piece);
        return add(unknown, 0, size);
      }
      add(found->second, begin, end);
      begin = end;
    }
  }

  bool is_wordpiece_ = false, is_cased_ = false;
  std::vector<std::string> words_;
  std::unordered_map<std::string, std::int32_t> ids_;
};

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_WORDPIECE_HPP
