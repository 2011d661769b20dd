// masked_lm.hpp - text for pre-training: documents, pairs of segments, masked words.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_MASKED_LM_HPP
#define WIDENET_EXAMPLES_SUPPORT_MASKED_LM_HPP

#include "support/sequence.hpp"
#include "widenet.hpp"

#include <algorithm>  // max, min, sort
#include <cmath>      // nearbyint
#include <cstdint>    // int32_t
#include <string>     // string
#include <utility>    // move
#include <vector>     // vector

namespace widenet::support {

// DOCUMENTS ---------------------------------------------------------------------------------------

/// The tokens of a document, sentence by sentence.
using Document = std::vector<Ids>;

/// Documents from plain text: one sentence per line, blank lines between documents. Lines without a
/// token, such as blank ones, are no sentences.
///
///   Errors    IoError if there is no sentence
inline std::vector<Document> parse_documents(const std::string& text, const Tokenizer& tokenizer,
                                             const std::string& source) {
  std::vector<Document> documents;
  bool is_new = true;
  for (const std::string& line : lines_of(text)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      is_new = true;
      continue;
    }
    Ids sentence = tokenizer.ids(line);
    if (sentence.empty()) continue;
    if (is_new) documents.emplace_back();
    documents.back().push_back(std::move(sentence));
    is_new = false;
  }
  require<IoError>(!documents.empty(), "read_documents: ", source,
                   ": there must be a line of text; got none");
  return documents;
}

/// The same from a file.
inline std::vector<Document> read_documents(const std::string& path, const Tokenizer& tokenizer) {
  return parse_documents(read_text(path, "read_documents"), tokenizer, path);
}

// PAIRS OF SEGMENTS -------------------------------------------------------------------------------

/// What random values are drawn for; each has a stream of its own.
enum class Draw : Index { length, cut, order, candidate, span, fate, word };

inline Rng stream(const Rng& rng, Draw draw) {
  return rng.for_purpose(Purpose::user).at_block(static_cast<Index>(draw));
}

/// Parts of at most `limit` tokens, cut where a word begins; a longer word is cut in its midst.
inline std::vector<Ids> split_sentence(const Ids& sentence, std::size_t limit,
                                       const Tokenizer& tokenizer) {
  std::vector<Ids> parts;
  for (std::size_t begin = 0; begin < sentence.size();) {
    std::size_t end = std::min(begin + limit, sentence.size());
    std::size_t word = end;  // where the word that would be cut begins
    while (word > begin && word < sentence.size() && tokenizer.is_continuation(sentence[word]))
      --word;
    if (word > begin) end = word;
    parts.emplace_back(sentence.begin() + static_cast<Index>(begin),
                       sentence.begin() + static_cast<Index>(end));
    begin = end;
  }
  return parts;
}

/// Sentences that follow one another in a document, as tokens, and the places where two of them
/// meet: there it may be cut into two segments.
struct Passage {
  Ids tokens;
  std::vector<std::size_t> cuts;  // before tokens[cut]
};

/// Cuts documents into passages for sequences of at most `max_tokens`: whole sentences are gathered
/// until the next one does not fit, or in one case of ten until they reach a random shorter length.
/// So nothing is lost, but for a token alone, and no end of a segment amid a sentence tells whether
/// it came first. A sentence that stays alone may be cut in its middle; one longer than half a
/// sequence is cut into parts before.
///
///   Errors    ValueError if max_tokens < 5; IoError if the documents give no passage
///   Source    google-research/albert, create_pretraining_data.py
///   Differs   there sentences are gathered until they are too many, and the longer segment loses
///             tokens at either end, so that the two may not meet; a short length is drawn for a
///             whole document; a lone sentence is paired with another document
inline std::vector<Passage> gather_passages(const std::vector<Document>& documents,
                                            Index max_tokens, const Tokenizer& tokenizer,
                                            const Rng& rng) {
  require<ValueError>(max_tokens >= 5, "gather_passages: max_tokens must be at least 5; got ",
                      max_tokens);
  const std::size_t room = static_cast<std::size_t>(max_tokens - 3);  // [CLS], [SEP], [SEP]
  const Rng length_rng = stream(rng, Draw::length);
  Index draws = 0;
  const auto target = [&] {
    const Index i = draws++;
    if (length_rng.uniform(2 * i) >= 0.1) return room;
    return 2 + static_cast<std::size_t>(length_rng.uniform(2 * i + 1) * double(room - 1));
  };
  std::vector<Passage> passages;
  for (const Document& document : documents) {
    std::vector<Ids> sentences;
    for (const Ids& sentence : document)
      for (Ids& part : split_sentence(sentence, room / 2, tokenizer))
        sentences.push_back(std::move(part));
    Passage passage;
    std::size_t enough = target();
    for (std::size_t i = 0; i < sentences.size(); ++i) {
      Ids& tokens = passage.tokens;
      if (!tokens.empty()) passage.cuts.push_back(tokens.size());
      tokens.insert(tokens.end(), sentences[i].begin(), sentences[i].end());
      const bool is_last = i + 1 == sentences.size();
      if (!is_last && tokens.size() < enough && tokens.size() + sentences[i + 1].size() <= room)
        continue;
      if (passage.cuts.empty()) passage.cuts.push_back(tokens.size() / 2);
      if (tokens.size() > 1) passages.push_back(std::move(passage));
      passage = {};
      enough = target();
    }
  }
  require<IoError>(!passages.empty(), "gather_passages: the documents must give a passage; got ",
                   documents.size(), " documents of one token");
  return passages;
}

/// Two segments, the second of which begins where the first ends.
struct SegmentPair {
  Ids first, second;
};

/// A passage as two segments, cut at a random one of its places.
inline SegmentPair cut_in_two(const Passage& passage, const Rng& rng) {
  const double u = stream(rng, Draw::cut).uniform(0);
  const std::size_t cut = passage.cuts[std::size_t(u * double(passage.cuts.size()))];
  const auto middle = passage.tokens.begin() + static_cast<Index>(cut);
  return {{passage.tokens.begin(), middle}, {middle, passage.tokens.end()}};
}

// MASKED WORDS ------------------------------------------------------------------------------------

struct MaskOptions {
  double fraction = 0.15;      // of the tokens of a sequence, special ones counted
  Index max_predictions = 20;  // per sequence
  Index longest_span = 3;      // words
};

/// Words first, ..., first + count - 1 of a sequence.
struct WordSpan {
  std::size_t first, count;
};

/// Chooses spans of words that have `num_tokens` tokens together, or as many below as fit. Words
/// are visited in a random order; at each a span of n words begins, unless it meets one that is
/// already chosen. A span that would be too much is tried again one word shorter.
///
///   p(n) = (1/n) / sum over m of 1/m,   m = 1, ..., min(longest_span, words up to the end)
///
///   Source    google-research/albert, create_masked_lm_predictions
inline std::vector<WordSpan> choose_spans(const std::vector<Index>& tokens_of_word,
                                          Index num_tokens, Index longest_span, const Rng& rng) {
  const std::size_t num_words = tokens_of_word.size();
  const Rng span_rng = stream(rng, Draw::span);
  std::vector<bool> is_chosen(num_words);
  std::vector<WordSpan> spans;
  for (const Index first : permutation(static_cast<Index>(num_words),
                                       stream(rng, Draw::candidate))) {
    if (num_tokens == 0) break;
    const Index longest = std::min(longest_span, static_cast<Index>(num_words) - first);
    double total = 0;
    for (Index n = 1; n <= longest; ++n) total += 1.0 / double(n);
    Index count = 1;
    double u = span_rng.uniform(first) * total - 1;
    for (; u >= 0 && count < longest; u -= 1.0 / double(count)) ++count;
    const auto size = [&](Index n) {
      Index tokens = 0;
      for (Index i = first; i < first + n; ++i)
        tokens += tokens_of_word[static_cast<std::size_t>(i)];
      return tokens;
    };
    while (count > 0 && size(count) > num_tokens) --count;
    bool is_free = count > 0;
    for (Index i = first; i < first + count; ++i)
      is_free = is_free && !is_chosen[static_cast<std::size_t>(i)];
    if (!is_free) continue;
    for (Index i = first; i < first + count; ++i) is_chosen[static_cast<std::size_t>(i)] = true;
    spans.push_back({static_cast<std::size_t>(first), static_cast<std::size_t>(count)});
    num_tokens -= size(count);
  }
  return spans;
}

/// A place of a sequence, and the token that was there.
struct MaskedToken {
  std::size_t place;
  std::int32_t label;
};

/// Hides tokens of a sequence, to be predicted: min(max_predictions, max(1, round(fraction T))) of
/// them, halves rounded to even, in spans of whole words. Each becomes [MASK] with probability 0.8,
/// stays with 0.1, and with 0.1 becomes any token of the vocabulary. The special tokens stay.
///
///   Errors    ValueError if an option is out of its range
///   Source    as choose_spans
inline std::vector<MaskedToken> mask_words(Sequence& sequence, const Tokenizer& tokenizer,
                                           const MaskOptions& options, const Rng& rng) {
  require<ValueError>(options.fraction > 0 && options.fraction <= 1 &&
                          options.max_predictions > 0 && options.longest_span > 0,
                      "mask_words: fraction in (0, 1], max_predictions and longest_span > 0 must "
                      "hold; got ", options.fraction, ", ", options.max_predictions, ", ",
                      options.longest_span);
  std::vector<std::size_t> begin;  // of each word
  std::vector<Index> tokens_of_word;
  bool goes_on = false;  // a special token ends a word
  for (std::size_t t = 0; t < sequence.token.size(); ++t) {
    const std::int32_t id = sequence.token[t];
    if (tokenizer.is_special(id)) {
      goes_on = false;
      continue;
    }
    if (goes_on && tokenizer.is_continuation(id)) {
      ++tokens_of_word.back();
    } else {
      begin.push_back(t);
      tokens_of_word.push_back(1);
    }
    goes_on = true;
  }
  const double wanted = std::nearbyint(options.fraction * double(sequence.token.size()));
  const Index num_tokens = std::min(options.max_predictions, std::max<Index>(1, Index(wanted)));
  std::vector<MaskedToken> masked;
  const Rng fate_rng = stream(rng, Draw::fate), word_rng = stream(rng, Draw::word);
  for (const WordSpan& span : choose_spans(tokens_of_word, num_tokens, options.longest_span, rng))
    for (std::size_t w = span.first; w < span.first + span.count; ++w)
      for (std::size_t t = begin[w]; t < begin[w] + std::size_t(tokens_of_word[w]); ++t) {
        masked.push_back({t, sequence.token[t]});
        const Index i = static_cast<Index>(t);
        const double fate = fate_rng.uniform(i);
        if (fate < 0.8) sequence.token[t] = tokenizer.mask;
        else if (fate >= 0.9)
          sequence.token[t] = std::int32_t(word_rng.uniform(i) * double(tokenizer.size()));
      }
  std::sort(masked.begin(), masked.end(),
            [](const MaskedToken& a, const MaskedToken& b) { return a.place < b.place; });
  return masked;
}

// BATCHES -----------------------------------------------------------------------------------------

/// Sequences with hidden tokens, and what there is to predict.
struct MaskedBatch {
  TokenBatch batch;
  Ids places, labels;  // of the hidden tokens: b*T + t, and the token that was there
  Ids order;           // (B), 1 if the two segments were swapped
};

/// The batch of a step, a function of the seed and the step: each visit of a passage cuts it anew,
/// swaps the segments half the time, and hides other tokens. Or part m of k of it, with the tokens
/// that the whole would have.
///
///   Errors    as examples_of_step and part_of
///   Differs   ALBERT does all this when it writes its files, 40 times for each document, and
///             gathers other passages each time
inline MaskedBatch masked_batch_of_step(const std::vector<Passage>& passages, Index batch_size,
                                        const Tokenizer& tokenizer, const MaskOptions& options,
                                        const Rng& rng, Index step, Index m = 0, Index k = 1) {
  MaskedBatch result;
  std::vector<Sequence> sequences;
  std::vector<std::vector<MaskedToken>> masked;
  const std::vector<std::size_t> all = examples_of_step(passages.size(), batch_size, rng, step);
  for (const std::size_t example : part_of(all, m, k)) {
    const Index place = m * (batch_size / k) + static_cast<Index>(sequences.size());
    const Rng here = rng.at_step(step).at_micro_batch(place);
    const SegmentPair pair = cut_in_two(passages[example], here);
    const bool is_swapped = stream(here, Draw::order).uniform(0) < 0.5;
    sequences.push_back(is_swapped ? joined(tokenizer, pair.second, pair.first)
                                   : joined(tokenizer, pair.first, pair.second));
    masked.push_back(mask_words(sequences.back(), tokenizer, options, here));
    result.order.push_back(is_swapped ? 1 : 0);
  }
  result.batch = batch_of(sequences, tokenizer.pad);
  for (std::size_t b = 0; b < masked.size(); ++b)
    for (const MaskedToken& token : masked[b]) {
      result.places.push_back(
          static_cast<std::int32_t>(b * static_cast<std::size_t>(result.batch.T) + token.place));
      result.labels.push_back(token.label);
    }
  return result;
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_MASKED_LM_HPP
