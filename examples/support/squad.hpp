// squad.hpp - question answering as in SQuAD 1.1 and 2.0: files, windows, answers and scores.
//
// Places in a context are code points, as in the files, never bytes.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_SQUAD_HPP
#define WIDENET_EXAMPLES_SUPPORT_SQUAD_HPP

#include "support/sequence.hpp"
#include "widenet.hpp"

#include <algorithm>  // find_if, max, min, sort
#include <cstdint>    // int32_t
#include <map>        // map
#include <string>     // string, u32string
#include <vector>     // vector

namespace widenet::support {

// FILES -------------------------------------------------------------------------------------------

struct SquadAnswer {
  std::string text;
  Index start = 0;  // in the context; -1: the first answer, which does not stand where it should
};

struct SquadQuestion {
  std::string id, question;
  std::size_t context = 0;           // index into SquadData::contexts
  std::vector<SquadAnswer> answers;  // empty: there is none
};

struct SquadData {
  std::string version;
  std::vector<std::string> contexts;
  std::vector<SquadQuestion> questions;
  std::vector<std::string> bad_questions;  // what is wrong with those that were left out
  std::vector<std::string> misplaced;      // first answers that do not stand where they should
};

/// Whether a question can be learned from: it has no answer, or the first is where it should be.
inline bool can_be_learned(const SquadQuestion& question) {
  return question.answers.empty() || question.answers[0].start >= 0;
}

/// Code points begin, ..., end - 1 of a text.
inline std::string slice_points(const std::u32string& text, Index begin, Index end) {
  return encode_utf8(text.substr(static_cast<std::size_t>(begin),
                                 static_cast<std::size_t>(end - begin)));
}

/// Whether an answer has a code point and stands in the context where it says.
inline bool stands_in(const std::u32string& context, const SquadAnswer& answer) {
  const Index length = static_cast<Index>(decode_utf8(answer.text).size());
  const Index size = static_cast<Index>(context.size());
  const bool is_inside = length > 0 && answer.start >= 0 && answer.start <= size - length;
  return is_inside && slice_points(context, answer.start, answer.start + length) == answer.text;
}

/// Questions and contexts from the text of a SQuAD file. A question whose id has come before is
/// left out, and reported. The first answer, the one to learn from, is reported if it is empty or
/// does not stand where the file says; the question stays, since scores need no places. In SQuAD
/// 2.0 a question with "is_impossible" has no answer, whatever "answers" holds.
///
///   Errors    IoError if it is no JSON, or if a key is missing or has another type
inline SquadData parse_squad(const std::string& text, const std::string& source) {
  const Json json = Json::parse(text, source);
  SquadData data;
  if (const Json* const version = json.find("version")) data.version = version->string();
  std::map<std::string, bool> seen;
  for (const Json& article : json.at("data").items())
    for (const Json& paragraph : article.at("paragraphs").items()) {
      data.contexts.push_back(paragraph.at("context").string());
      const std::u32string context = decode_utf8(data.contexts.back());
      for (const Json& item : paragraph.at("qas").items()) {
        SquadQuestion question{item.at("id").string(), item.at("question").string(),
                               data.contexts.size() - 1, {}};
        const std::string name = source + ": question " + question.id + ": ";
        if (!seen.emplace(question.id, true).second) {
          data.bad_questions.push_back(name + "its id has come before");
          continue;
        }
        const Json* const impossible = item.find("is_impossible");
        if (!impossible || !impossible->boolean())
          for (const Json& answer : item.at("answers").items())
            question.answers.push_back({answer.at("text").string(),
                                        answer.at("answer_start").integer()});
        if (!question.answers.empty() && !stands_in(context, question.answers[0])) {
          SquadAnswer& first = question.answers[0];
          data.misplaced.push_back(name + "the answer \"" + first.text + "\" does not stand at " +
                                   std::to_string(first.start));
          first.start = -1;
        }
        data.questions.push_back(std::move(question));
      }
    }
  return data;
}

/// The same from a file.
inline SquadData read_squad(const std::string& path) {
  return parse_squad(read_text(path, "read_squad"), path);
}

// SCORES ------------------------------------------------------------------------------------------

/// What Python's \w matches, with what is_punctuation, is_mark and is_control know and the common
/// blocks of symbols and of private use: letters, digits and the underscore.
inline bool is_word_character(char32_t c) {
  static constexpr PointRange symbols[] = {
    {0xA2, 0xA9}, {0xAC, 0xAC}, {0xAE, 0xB1}, {0xB4, 0xB4}, {0xB8, 0xB8}, {0xD7, 0xD7},
    {0xF7, 0xF7}, {0x20A0, 0x20CF}, {0x2190, 0x245F}, {0x249C, 0x24B5}, {0x2500, 0x2775},
    {0x2794, 0x2BFF}, {0xE000, 0xF8FF}, {0x1F300, 0x1FAFF}, {0xF0000, 0x10FFFF}};
  return c == '_' || !(is_space(c) || is_control(c) || is_punctuation(c) || is_mark(c) ||
                       is_in(symbols, c));
}

/// The words of an answer that count: lower case, without the 32 punctuation characters of ASCII,
/// without the words a, an and the, cut at white space.
///
///   Source    evaluate-v1.1.py and evaluate-v2.0.py of SQuAD, normalize_answer
///   Differs   a capital sigma becomes U+03C3 wherever it stands, U+0130 stays; rare symbols count
///             as letters
inline std::vector<std::string> answer_words(const std::string& answer) {
  std::u32string kept;
  for (const char32_t point : decode_utf8(answer))
    if (point >= 0x80 || !is_punctuation(point)) kept += lower_case(point);
  std::vector<std::string> words;
  std::u32string word;
  const auto end_word = [&] {
    if (!word.empty()) words.push_back(encode_utf8(word));
    word.clear();
  };
  for (std::size_t i = 0; i < kept.size();) {
    std::size_t end = i;  // a run of word characters, or one other character
    while (end < kept.size() && is_word_character(kept[end])) ++end;
    const std::u32string run = kept.substr(i, end > i ? end - i : 1);
    i += run.size();
    const bool is_control_space = run[0] == 0xB || run[0] == 0xC || run[0] == 0x85 ||
                                  (run[0] >= 0x1C && run[0] <= 0x1F);  // to Python's split()
    if (is_space(run[0]) || is_control_space || run == U"a" || run == U"an" || run == U"the")
      end_word();
    else word += run;
  }
  end_word();
  return words;
}

/// Whether two answers have the same words in the same order.
inline bool is_exact_match(const std::string& prediction, const std::string& answer) {
  return answer_words(prediction) == answer_words(answer);
}

/// The harmonic mean of precision and recall of the words, each counted as often as it occurs.
///
///   F1 = 2 p r / (p + r),   p = common / words predicted,   r = common / words of the answer
///
/// Without a word on either side it is 1 if both have none, otherwise 0.
///
///   Source    evaluate-v2.0.py of SQuAD, compute_f1; that of 1.1 gives 0 if both have none
inline double answer_f1(const std::string& prediction, const std::string& answer) {
  const std::vector<std::string> a = answer_words(prediction), b = answer_words(answer);
  if (a.empty() || b.empty()) return a == b ? 1 : 0;
  std::map<std::string, Index> left;
  for (const std::string& word : b) ++left[word];
  double common = 0;
  for (const std::string& word : a)
    if (left[word]-- > 0) ++common;
  if (common == 0) return 0;
  const double precision = common / double(a.size()), recall = common / double(b.size());
  return 2 * precision * recall / (precision + recall);
}

/// Means over questions, in percent; of all, of those with an answer and of those without.
struct SquadScores {
  double exact = 0, f1 = 0;
  double answerable_exact = 0, answerable_f1 = 0, impossible_exact = 0;
  Index count = 0, num_answerable = 0, num_missing = 0;  // missing: without a prediction, score 0
};

/// Scores the predictions, by question id, as SQuAD does: for each question the best over its
/// answers; the right prediction for a question without one is "".
///
///   Source    evaluate-v2.0.py, get_raw_scores and make_eval_dict
///   Differs   a question without a prediction scores 0, as in 1.1; 2.0 leaves it out
inline SquadScores squad_scores(const SquadData& data,
                                const std::map<std::string, std::string>& predictions) {
  SquadScores scores;
  for (const SquadQuestion& question : data.questions) {
    std::vector<std::string> answers;
    for (const SquadAnswer& answer : question.answers)
      if (!answer_words(answer.text).empty()) answers.push_back(answer.text);
    if (answers.empty()) answers.emplace_back();
    const bool is_answerable = !question.answers.empty();
    ++scores.count;
    if (is_answerable) ++scores.num_answerable;
    const auto prediction = predictions.find(question.id);
    if (prediction == predictions.end()) {
      ++scores.num_missing;
      continue;
    }
    double exact = 0, f1 = 0;
    for (const std::string& answer : answers) {
      exact = std::max(exact, is_exact_match(prediction->second, answer) ? 100.0 : 0.0);
      f1 = std::max(f1, 100 * answer_f1(prediction->second, answer));
    }
    scores.exact += exact, scores.f1 += f1;
    if (is_answerable) scores.answerable_exact += exact, scores.answerable_f1 += f1;
    else scores.impossible_exact += exact;
  }
  const auto over = [](double& sum, Index n) { sum = n == 0 ? 0 : sum / double(n); };
  over(scores.exact, scores.count), over(scores.f1, scores.count);
  over(scores.answerable_exact, scores.num_answerable);
  over(scores.answerable_f1, scores.num_answerable);
  over(scores.impossible_exact, scores.count - scores.num_answerable);
  return scores;
}

// WINDOWS -----------------------------------------------------------------------------------------

struct SquadOptions {
  Index max_tokens = 384;      // of a window
  Index stride = 128;          // how many tokens the next window begins later
  Index question_tokens = 64;  // longer questions lose their end
  Index answer_tokens = 30;    // no longer answer is given
};

/// A question beside a part of its context: [CLS] question [SEP] part [SEP].
struct SquadWindow {
  std::size_t question = 0;        // index into SquadData::questions
  Sequence sequence;
  Index first = 0;                 // place of the part's first token in the sequence
  std::vector<Piece> pieces;       // of the part, with their places in the whole context
  std::vector<bool> is_best;       // no other window shows the token amid more context
  Index answer_first = 0, answer_last = 0;  // places of the answer's tokens; 0, [CLS]: not here
};

/// The windows of one question, the first answer marked in those that show all of it; in none if
/// it is misplaced.
///
/// A token is in several windows; it is best placed where min(tokens to its left, to its right) is
/// largest, in the first such window.
///
///   Errors    ValueError if a window has no room for a token of context, or the stride is not
///             positive
///   Source    google-research/bert, run_squad.py; of equal windows it prefers the longest: always
///             the first
inline std::vector<SquadWindow> squad_windows(const SquadData& data, std::size_t question_index,
                                              const Tokenizer& tokenizer,
                                              const SquadOptions& options) {
  const SquadQuestion& question = data.questions[question_index];
  Ids words = tokenizer.ids(question.question);
  if (static_cast<Index>(words.size()) > options.question_tokens)
    words.resize(static_cast<std::size_t>(options.question_tokens));
  const std::vector<Piece> pieces = tokenizer.pieces(data.contexts[question.context]);
  const Index room = options.max_tokens - static_cast<Index>(words.size()) - 3;
  require<ValueError>(room > 0 && options.stride > 0, "squad_windows: a window must have room for ",
                      "context, and the stride must be positive; got ", options.max_tokens,
                      " tokens for a question of ", words.size(), ", stride ", options.stride);

  Index answer_first = -1, answer_last = -1;  // among the pieces
  if (!question.answers.empty() && can_be_learned(question)) {
    const Index begin = question.answers[0].start;
    const Index end = begin + static_cast<Index>(decode_utf8(question.answers[0].text).size());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (pieces[i].end <= begin || pieces[i].begin >= end) continue;
      if (answer_first < 0) answer_first = static_cast<Index>(i);
      answer_last = static_cast<Index>(i);
    }
  }

  const Index total = static_cast<Index>(pieces.size());
  std::vector<SquadWindow> windows;
  for (Index begin = 0;; begin += std::min(room, options.stride)) {
    const Index end = std::min(begin + room, total);
    SquadWindow window;
    window.question = question_index;
    window.pieces.assign(pieces.begin() + begin, pieces.begin() + end);
    Ids part;
    for (const Piece& piece : window.pieces) part.push_back(piece.id);
    window.sequence = joined(tokenizer, words, part);
    window.first = static_cast<Index>(words.size()) + 2;
    if (answer_first >= begin && answer_last < end) {
      window.answer_first = window.first + answer_first - begin;
      window.answer_last = window.first + answer_last - begin;
    }
    windows.push_back(std::move(window));
    if (end == total) break;
  }

  // Window w shows pieces w * step, w * step + 1, ...
  const Index step = std::min(room, options.stride);
  std::vector<Index> best(pieces.size(), -1);
  std::vector<std::size_t> owner(pieces.size());
  for (std::size_t w = 0; w < windows.size(); ++w) {
    const Index begin = static_cast<Index>(w) * step;
    const Index length = static_cast<Index>(windows[w].pieces.size());
    for (Index i = 0; i < length; ++i) {
      const Index context = std::min(i, length - 1 - i);
      const std::size_t at = static_cast<std::size_t>(begin + i);
      if (context > best[at]) best[at] = context, owner[at] = w;
    }
  }
  for (std::size_t w = 0; w < windows.size(); ++w)
    for (std::size_t i = 0; i < windows[w].pieces.size(); ++i)
      windows[w].is_best.push_back(owner[w * static_cast<std::size_t>(step) + i] == w);
  return windows;
}

// ANSWERS -----------------------------------------------------------------------------------------

/// Logits of a window: for each of its tokens to be the first or the last of the answer.
struct SpanLogits {
  std::vector<float> first, last;
};

struct SquadPrediction {
  std::string text;     // "": there is no answer
  double score = 0;     // first + last logit of the best span
  double no_answer = 0;  // the same of [CLS], the smallest over the windows
};

/// The best answer over the windows of a question: the span of the context, of at most
/// `answer_tokens` tokens, that begins where its window shows it best and has the largest first +
/// last logit; with `may_be_impossible` (SQuAD 2.0) none, if [CLS] is better than the span by more
/// than `threshold`. Of equal spans the first wins.
///
///   Errors    ShapeError if there are not as many logits as tokens
///   Source    google-research/bert, run_squad.py
///   Differs   there the 20 best firsts and lasts are combined; here all are
inline SquadPrediction best_answer(const SquadData& data, const std::vector<SquadWindow>& windows,
                                   const std::vector<SpanLogits>& logits,
                                   const SquadOptions& options, bool may_be_impossible,
                                   double threshold = 0) {
  require<ShapeError>(!windows.empty() && windows.size() == logits.size(),
                      "best_answer: there must be logits for each window; got ", windows.size(),
                      ", ", logits.size());
  SquadPrediction best;
  const Piece *first = nullptr, *last = nullptr;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    const SquadWindow& window = windows[w];
    const std::size_t size = window.sequence.token.size();
    const std::vector<float>&f = logits[w].first, &l = logits[w].last;
    require<ShapeError>(f.size() >= size && l.size() >= size,
                        "best_answer: there must be two logits for each of the ", size,
                        " tokens; got ", f.size(), ", ", l.size());
    const double none = double(f[0]) + double(l[0]);
    best.no_answer = w == 0 ? none : std::min(best.no_answer, none);
    const std::size_t offset = static_cast<std::size_t>(window.first);
    for (std::size_t i = 0; i < window.pieces.size(); ++i) {
      if (!window.is_best[i]) continue;
      const std::size_t end = std::min(window.pieces.size(),
                                       i + static_cast<std::size_t>(options.answer_tokens));
      for (std::size_t j = i; j < end; ++j) {
        const double score = double(f[offset + i]) + double(l[offset + j]);
        if (first && !(score > best.score)) continue;
        best.score = score, first = &window.pieces[i], last = &window.pieces[j];
      }
    }
  }
  if (first && !(may_be_impossible && best.no_answer - best.score > threshold)) {
    const SquadQuestion& question = data.questions[windows[0].question];
    best.text = slice_points(decode_utf8(data.contexts[question.context]), first->begin, last->end);
  }
  return best;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_SQUAD_HPP
