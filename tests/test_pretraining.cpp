// Tests for examples/support: masked_lm.hpp and grammar.hpp.
#include "examples/support/grammar.hpp"
#include "examples/support/masked_lm.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

using namespace widenet;
using namespace widenet::support;

namespace {

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// |count - n p| <= 5 standard deviations of a binomial count: fails once in two million.
void check_count(double count, double n, double p) {
  INFO(count, " of ", n, ", expected ", n * p);
  CHECK(std::fabs(count - n * p) <= 5 * std::sqrt(n * p * (1 - p)));
}

/// Words with the ids 5, 6, ...; with continuations every other one goes on with a word.
Tokenizer numbered_words(int count, bool has_continuations = false) {
  std::vector<std::string> words = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
  for (int i = 0; i < count; ++i)
    words.push_back((has_continuations && i % 2 == 1 ? "##w" : "w") + std::to_string(i));
  return Tokenizer::wordpiece(words, true);
}

Ids counting(std::int32_t from, int count) {
  Ids ids;
  for (int i = 0; i < count; ++i) ids.push_back(from + i);
  return ids;
}

}  // namespace

TEST_SUITE("support: masked words") {
  TEST_CASE("documents: a sentence per line, blank lines between") {
    const Tokenizer t = Tokenizer::wordpiece(
        {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"}, false);
    const std::vector<Document> documents =
        parse_documents("\n\na b\nc\r\n \t\r\n\nb\n\n", t, "f");
    CHECK(documents == std::vector<Document>{{{5, 6}, {7}}, {{6}}});
    CHECK(parse_documents("a\n\x01\nb\n\n\x01\n", t, "f") ==
          std::vector<Document>{{{5}, {6}}});  // a line without a token is no sentence
    CHECK(error_of([&] { parse_documents(" \n\n", t, "f"); }) ==
          "widenet: read_documents: f: there must be a line of text; got none");
    CHECK(error_of([&] { read_documents("no such file", t); }) ==
          "widenet: read_documents: no such file: must be readable; got: not opened");
  }

  TEST_CASE("long sentences are cut where a word begins, and nothing is lost") {
    const Tokenizer t = Tokenizer::wordpiece(
        {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"}, false);
    CHECK(split_sentence({5, 5, 5}, 3, t) == std::vector<Ids>{{5, 5, 5}});
    CHECK(split_sentence({5, 5, 5, 5}, 3, t) == std::vector<Ids>{{5, 5, 5}, {5}});
    CHECK(split_sentence({5, 5, 6, 6, 5}, 3, t) == std::vector<Ids>{{5}, {5, 6, 6}, {5}});
    CHECK(split_sentence({5, 6, 6, 6, 6}, 2, t) == std::vector<Ids>{{5, 6}, {6, 6}, {6}});
    CHECK(split_sentence({}, 2, t).empty());
  }

  TEST_CASE("passages follow one another, fit, and keep every token") {
    const Tokenizer t = numbered_words(900);
    std::vector<Document> documents(3);
    for (int s = 0; s < 300; ++s)
      documents[static_cast<std::size_t>(s / 100)].push_back(counting(5 + 3 * s, 3));
    const std::vector<Passage> passages = gather_passages(documents, 21, t, Rng(3));
    std::size_t full = 0;
    std::int32_t next = 5;
    for (const Passage& p : passages) {
      REQUIRE(p.tokens.size() <= 18);  // six sentences
      CHECK(p.tokens == counting(next, static_cast<int>(p.tokens.size())));
      CHECK((p.tokens[0] - 5) / 300 == (p.tokens.back() - 5) / 300);  // one document
      next += static_cast<std::int32_t>(p.tokens.size());
      if (p.tokens.size() < 18) continue;
      ++full;
      CHECK(p.cuts == std::vector<std::size_t>{3, 6, 9, 12, 15});
    }
    CHECK(next == 905);
    CHECK(full >= passages.size() / 2);
    CHECK(full < passages.size());
  }

  TEST_CASE("a sentence that does not fit begins the next passage") {
    const Tokenizer t = numbered_words(4000);
    const Rng size_rng(7);
    std::vector<Document> documents(5);
    std::set<std::int32_t> starts;
    std::int32_t next = 5;
    for (Index s = 0; s < 200; ++s) {
      const int size = 4 + static_cast<int>(size_rng.uniform(s) * 13);  // 4, ..., 16
      documents[static_cast<std::size_t>(s / 40)].push_back(counting(next, size));
      starts.insert(next);
      next += size;
    }
    starts.insert(next);
    const std::vector<Passage> passages = gather_passages(documents, 53, t, Rng(3));
    std::int32_t begin = 5;
    std::size_t num_early = 0;  // short on purpose, or the last of a document
    for (const Passage& p : passages) {
      const std::int32_t end = begin + static_cast<std::int32_t>(p.tokens.size());
      REQUIRE(p.tokens.size() <= 50);
      REQUIRE(p.tokens == counting(begin, end - begin));
      CHECK(starts.count(begin) == 1);  // begins and ends as a sentence does
      CHECK(starts.count(end) == 1);
      std::vector<std::size_t> cuts;
      for (auto start = starts.upper_bound(begin); *start < end; ++start)
        cuts.push_back(static_cast<std::size_t>(*start - begin));
      if (cuts.empty()) cuts.push_back(p.tokens.size() / 2);
      CHECK(p.cuts == cuts);
      const auto after = starts.upper_bound(end);
      if (after == starts.end() || *after - begin <= 50) ++num_early;
      begin = end;
    }
    CHECK(begin == next);  // nothing is lost
    CHECK(num_early <= passages.size() / 4);
  }

  TEST_CASE("a passage is cut where two sentences meet, at any of the places alike") {
    const Passage passage{counting(5, 10), {2, 5, 9}};
    double counts[10] = {};
    for (Index i = 0; i < 3000; ++i) {
      const SegmentPair pair = cut_in_two(passage, Rng(3).at_step(i));
      Ids both = pair.first;
      both.insert(both.end(), pair.second.begin(), pair.second.end());
      REQUIRE(both == passage.tokens);
      REQUIRE(!pair.second.empty());
      counts[pair.first.size()] += 1;
    }
    check_count(counts[2], 3000, 1.0 / 3);
    check_count(counts[5], 3000, 1.0 / 3);
    check_count(counts[9], 3000, 1.0 / 3);
  }

  TEST_CASE("one sequence in ten is shorter on purpose") {
    const Tokenizer t = numbered_words(1);
    const std::vector<Document> documents(1, Document(200000, Ids{5}));
    const std::vector<Passage> passages = gather_passages(documents, 13, t, Rng(1));
    double shorter = 0, shortest = 0;
    for (const Passage& p : passages) {
      shorter += p.tokens.size() < 10 ? 1 : 0;
      shortest += p.tokens.size() == 2 ? 1 : 0;
    }
    // A short length is uniform in 2, ..., 10, so one in nine of them is 10 after all.
    check_count(shorter, double(passages.size()), 0.1 * 8 / 9);
    check_count(shortest, double(passages.size()), 0.1 / 9);
  }

  TEST_CASE("a lone sentence is cut in its middle; a lone token gives no passage") {
    const Tokenizer t = numbered_words(9);
    const std::vector<Passage> passages = gather_passages({{{5, 6, 7}}, {{8}}}, 9, t, Rng(1));
    REQUIRE(passages.size() == 1);
    CHECK(passages[0].tokens == Ids{5, 6, 7});
    CHECK(passages[0].cuts == std::vector<std::size_t>{1});
    CHECK(error_of([&] { gather_passages({{{8}}, {{9}}}, 9, t, Rng(1)); }) ==
          "widenet: gather_passages: the documents must give a passage; got 2 documents of one "
          "token");
    CHECK(error_of([&] { gather_passages({}, 4, t, Rng(1)); }) ==
          "widenet: gather_passages: max_tokens must be at least 5; got 4");
  }

  TEST_CASE("spans have 1, 2 or 3 words as 6 : 3 : 2, and begin anywhere alike") {
    const double n = 20000;
    double of_length[4] = {}, of_first[10] = {};
    for (Index i = 0; i < Index(n); ++i) {
      const WordSpan span =
          choose_spans(std::vector<Index>(12, 1), 12, 3, Rng(5).at_step(i))[0];
      of_first[std::min<std::size_t>(span.first, 9)] += 1;
      if (span.first < 10) of_length[span.count] += 1;
    }
    const double all = of_length[1] + of_length[2] + of_length[3];
    check_count(of_length[1], all, 6.0 / 11);
    check_count(of_length[2], all, 3.0 / 11);
    check_count(of_length[3], all, 2.0 / 11);
    for (int first = 0; first < 9; ++first) check_count(of_first[first], n, 1.0 / 12);
  }

  TEST_CASE("near the end spans are shorter: of 1 or 2 words as 2 : 1") {
    double of_length[3] = {};
    for (Index i = 0; i < 20000; ++i) {
      const WordSpan span = choose_spans({1, 1}, 2, 3, Rng(5).at_step(i))[0];
      if (span.first == 0) of_length[span.count] += 1;
    }
    check_count(of_length[1], of_length[1] + of_length[2], 2.0 / 3);
  }

  TEST_CASE("spans are apart, and never too many tokens") {
    for (Index i = 0; i < 500; ++i) {
      const std::vector<Index> sizes = {1, 3, 1, 1, 2, 1, 4, 1, 1, 1};
      std::vector<int> hits(sizes.size());
      Index tokens = 0;
      for (const WordSpan& span : choose_spans(sizes, 5, 3, Rng(6).at_step(i)))
        for (std::size_t w = span.first; w < span.first + span.count; ++w) {
          ++hits[w];
          tokens += sizes[w];
        }
      CHECK(tokens <= 5);
      CHECK(tokens >= 1);
      for (const int h : hits) CHECK(h <= 1);
    }
    CHECK(choose_spans({7}, 5, 3, Rng(1)).empty());  // too long a word
    CHECK(choose_spans({}, 5, 3, Rng(1)).empty());
  }

  TEST_CASE("15 % of the tokens, at least one and at most 20, halves to even") {
    const Tokenizer t = numbered_words(1000);
    const auto predictions_for = [&](int length) {
      Sequence s = joined(t, counting(5, length - 4), {7});
      return mask_words(s, t, {}, Rng(2)).size();
    };
    CHECK(predictions_for(4) == 1);    // 0.6
    CHECK(predictions_for(10) == 2);   // 1.5
    CHECK(predictions_for(30) == 4);   // 4.5
    CHECK(predictions_for(100) == 15);
    CHECK(predictions_for(133) == 20);  // 19.95
    CHECK(predictions_for(512) == 20);
  }

  TEST_CASE("of the hidden tokens 80 % are masked, 10 % stay, 10 % are any token") {
    const Tokenizer t = numbered_words(495);  // with the special ones 500
    const Sequence original = joined(t, counting(5, 60), counting(65, 65));
    double n = 0, masked = 0, kept = 0, any = 0;
    std::vector<double> at(original.token.size());
    std::set<std::int32_t> seen;
    for (Index i = 0; i < 2000; ++i) {
      Sequence s = original;
      const std::vector<MaskedToken> hidden = mask_words(s, t, {}, Rng(8).at_step(i));
      Sequence restored = s;
      for (const MaskedToken& h : hidden) {
        CHECK(h.label == original.token[h.place]);
        restored.token[h.place] = h.label;
        const std::int32_t now = s.token[h.place];
        n += 1, at[h.place] += 1;
        if (now == t.mask) masked += 1;
        else if (now == h.label) kept += 1;
        else any += 1, seen.insert(now);
      }
      CHECK(restored.token == original.token);  // nothing else has changed
    }
    // A random token may be the mask or the same by chance: each one time in 500.
    check_count(masked, n, 0.8 + 0.1 / 500);
    check_count(kept, n, 0.1 + 0.1 / 500);
    check_count(any, n, 0.1 * 498 / 500);
    CHECK(seen.size() > 490);
    CHECK(n >= 0.98 * 19 * 2000);  // 128 tokens: 19 each, but where no span fits
    CHECK(n <= 19 * 2000);
    CHECK(at[0] == 0);  // special tokens are never hidden
    CHECK(at[61] == 0);
    CHECK(at[127] == 0);
    for (std::size_t place = 1; place < 127; ++place)
      if (place != 61) CHECK(at[place] > 0);
  }

  TEST_CASE("a word is hidden whole, with its continuations") {
    const Tokenizer t = numbered_words(200, true);  // odd ids begin a word, even ones go on
    const Sequence original = joined(t, counting(5, 60), counting(65, 40));
    for (Index i = 0; i < 200; ++i) {
      Sequence s = original;
      std::set<std::size_t> places;
      for (const MaskedToken& h : mask_words(s, t, {}, Rng(9).at_step(i))) places.insert(h.place);
      CHECK(places.size() % 2 == 0);
      for (const std::size_t place : places) {
        const bool is_start = original.token[place] % 2 == 1;
        CHECK(places.count(is_start ? place + 1 : place - 1) == 1);
      }
    }
  }

  TEST_CASE("the draws of a token do not depend on each other") {
    const Tokenizer t = numbered_words(1000);
    double together = 0, n = 0;
    for (Index i = 0; i < 3000; ++i) {
      Sequence s = joined(t, counting(5, 60), counting(65, 65));
      const std::vector<MaskedToken> hidden = mask_words(s, t, {}, Rng(8).at_step(i));
      for (std::size_t j = 0; j + 1 < hidden.size(); ++j) {
        if (hidden[j + 1].place != hidden[j].place + 1) continue;
        n += 1;  // neighbours: both stay one time in a hundred
        if (s.token[hidden[j].place] == hidden[j].label &&
            s.token[hidden[j + 1].place] == hidden[j + 1].label)
          together += 1;
      }
    }
    CHECK(n > 10000);
    check_count(together, n, (0.1 + 1e-4) * (0.1 + 1e-4));
  }

  TEST_CASE("options out of range are refused") {
    const Tokenizer t = numbered_words(9);
    Sequence s = joined(t, {5}, {6});
    const auto refused = [&](const MaskOptions& options) {
      return error_of([&] { mask_words(s, t, options, Rng(1)); });
    };
    CHECK(refused({0, 20, 3}) ==
          "widenet: mask_words: fraction in (0, 1], max_predictions and longest_span > 0 must "
          "hold; got 0, 20, 3");
    CHECK(refused({1.5, 20, 3}) != "no error");
    CHECK(refused({0.15, 0, 3}) != "no error");
    CHECK(refused({0.15, 20, 0}) != "no error");
    CHECK(refused({1, 20, 3}) == "no error");
  }
}

TEST_SUITE("support: masked batches") {
  TEST_CASE("half of the segments are swapped, and the label says so") {
    const Tokenizer t = numbered_words(40);
    std::vector<Passage> passages;
    for (std::int32_t i = 0; i < 20; ++i)
      passages.push_back({{5 + 2 * i, 5, 6 + 2 * i, 6}, {2}});
    double swapped = 0, n = 0, changed = 0;
    MaskedBatch before;
    for (Index step = 0; step < 1000; ++step) {
      const MaskedBatch batch = masked_batch_of_step(passages, 10, t, {}, Rng(4), step);
      REQUIRE(batch.order.size() == 10);
      for (std::size_t b = 0; b < 10; ++b) {
        const std::size_t at = b * static_cast<std::size_t>(batch.batch.T);
        Ids row(batch.batch.token.begin() + static_cast<Index>(at),
                batch.batch.token.begin() + static_cast<Index>(at) + 7);
        for (std::size_t i = 0; i < batch.places.size(); ++i)  // undo the masks
          if (std::size_t(batch.places[i]) / 7 == b)
            row[std::size_t(batch.places[i]) % 7] = batch.labels[i];
        CHECK(row[0] == t.cls);
        CHECK((row[2] == 6 ? 1 : 0) == batch.order[b]);
        CHECK(std::abs(row[1] - row[4]) == 1);  // the partner is the right one
        swapped += batch.order[b], n += 1;
        if (step > 0) changed += batch.order[b] != before.order[b] ? 1 : 0;
      }
      before = batch;
    }
    check_count(swapped, n, 0.5);
    check_count(changed, n - 10, 0.5);
  }

  TEST_CASE("each visit of a passage cuts it anew") {
    const Tokenizer t = numbered_words(9);
    const std::vector<Passage> passages = {{{5, 6, 7, 8}, {1, 2}}};
    double counts[5] = {};
    for (Index step = 0; step < 1000; ++step) {
      const MaskedBatch batch = masked_batch_of_step(passages, 1, t, {}, Rng(4), step);
      Ids token = batch.batch.token;
      for (std::size_t i = 0; i < batch.places.size(); ++i)
        token[std::size_t(batch.places[i])] = batch.labels[i];
      const Index length = std::find(token.begin(), token.end(), t.sep) - token.begin() - 1;
      counts[batch.order[0] == 1 ? 4 - length : length] += 1;
    }
    check_count(counts[1], 1000, 0.5);
    check_count(counts[2], 1000, 0.5);
    CHECK(counts[1] + counts[2] == 1000);
  }

  TEST_CASE("a batch is a function of the seed and the step") {
    const Tokenizer t = Tokenizer::wordpiece(toy_vocabulary(), true);
    const std::vector<Passage> passages =
        gather_passages(parse_documents(toy_text(40, Rng(1)), t, "toy"), 32, t, Rng(1));
    const auto batch = [&](std::uint64_t seed, Index step) {
      return masked_batch_of_step(passages, 8, t, {}, Rng(seed), step);
    };
    const MaskedBatch a = batch(1, 3), same = batch(1, 3);
    CHECK(a.batch.token == same.batch.token);
    CHECK(a.places == same.places);
    CHECK(a.labels == same.labels);
    CHECK(a.order == same.order);
    CHECK(a.batch.token != batch(1, 4).batch.token);
    CHECK(a.batch.token != batch(2, 3).batch.token);
    CHECK(a.batch.B == 8);
    CHECK(a.batch.T <= 32);
    CHECK(a.batch.type.size() == a.batch.token.size());
    for (const std::int32_t place : a.places)  // none is padding
      CHECK((a.batch.mask.empty() || a.batch.mask[std::size_t(place)] == 1));
  }

  TEST_CASE("the parts of a batch are the batch") {
    const Tokenizer t = Tokenizer::wordpiece(toy_vocabulary(), true);
    std::vector<Passage> passages;  // all equally long, so that nothing is padded
    for (std::int32_t i = 0; i < 12; ++i)
      passages.push_back({{5 + i, 6, 7, 8, 9, 5 + i}, {1, 3, 4}});
    const MaskedBatch whole = masked_batch_of_step(passages, 6, t, {}, Rng(1), 5);
    MaskedBatch sum;
    for (Index m = 0; m < 3; ++m) {
      const MaskedBatch part = masked_batch_of_step(passages, 6, t, {}, Rng(1), 5, m, 3);
      CHECK(part.batch.B == 2);
      for (const std::int32_t place : part.places)
        sum.places.push_back(place + static_cast<std::int32_t>(sum.batch.token.size()));
      const auto append = [](Ids& list, const Ids& more) {
        list.insert(list.end(), more.begin(), more.end());
      };
      append(sum.batch.token, part.batch.token);
      append(sum.labels, part.labels);
      append(sum.order, part.order);
    }
    CHECK(sum.batch.token == whole.batch.token);
    CHECK(sum.places == whole.places);
    CHECK(sum.labels == whole.labels);
    CHECK(sum.order == whole.order);
    CHECK(error_of([&] { masked_batch_of_step(passages, 6, t, {}, Rng(1), 5, 0, 4); }) ==
          "widenet: part_of: there must be a part m of k equal ones; got m = 0, k = 4 of 6");
    CHECK(error_of([&] { part_of(Ids{1, 2}, 2, 2); }) ==
          "widenet: part_of: there must be a part m of k equal ones; got m = 2, k = 2 of 2");
  }

  TEST_CASE("an epoch visits every passage once, the next one in another order") {
    const Tokenizer t = numbered_words(60);
    std::vector<Passage> passages;
    for (std::int32_t i = 0; i < 12; ++i)
      passages.push_back({{5 + i, 5 + i, 30, 31, 5 + i}, {1, 4}});
    const auto visits = [&](Index first_step) {
      Ids seen;
      for (Index step = first_step; step < first_step + 3; ++step) {
        const MaskedBatch m = masked_batch_of_step(passages, 4, t, {}, Rng(2), step);
        Ids token = m.batch.token;
        for (std::size_t i = 0; i < m.places.size(); ++i)
          token[std::size_t(m.places[i])] = m.labels[i];
        for (std::size_t b = 0; b < 4; ++b) seen.push_back(token[8 * b + 1]);
      }
      return seen;
    };
    Ids first = visits(0), second = visits(3);
    CHECK(first != second);
    std::sort(first.begin(), first.end());
    std::sort(second.begin(), second.end());
    CHECK(first == counting(5, 12));
    CHECK(second == counting(5, 12));
    CHECK(error_of([&] { masked_batch_of_step(passages, 13, t, {}, Rng(2), 0); }) ==
          "widenet: examples_of_step: the batch size must lie in [1, 12], the number of examples; "
          "got 13");
    CHECK(error_of([&] { masked_batch_of_step(passages, 0, t, {}, Rng(2), 0); }) ==
          "widenet: examples_of_step: the batch size must lie in [1, 12], the number of examples; "
          "got 0");
  }
}

namespace {

/// A word of the toy language, taken apart: as a noun and as a verb, with its numbers.
struct Reading {
  const ToyWord* word = nullptr;
  bool can_be_singular = false, can_be_plural = false;
};
Reading read(const std::vector<ToyWord>& list, const std::string& text, bool is_noun) {
  Reading reading;
  for (const ToyWord& word : list)
    for (const bool is_plural : {false, true})
      if ((is_noun ? toy_noun(word, is_plural) : toy_verb(word, is_plural)) == text) {
        reading.word = &word;
        (is_plural ? reading.can_be_plural : reading.can_be_singular) = true;
      }
  return reading;
}

/// Parses a sentence by the grammar, as written at the top of grammar.hpp, and says what is wrong
/// with it: "" or "agreement" or "topic" or "grammar".
class ToyParser {
 public:
  explicit ToyParser(const std::string& sentence) : words_(word_runs({sentence, "", 0}, 1)) {}

  std::string fault() {
    if (at("once") || at("then") || at("finally")) ++place_;
    Reading subject;
    if (at("it") || at("they")) {
      static const ToyWord any{"", 7};
      subject = {&any, at("it"), at("they")};
      ++place_;
    } else {
      subject = phrase();
    }
    if (verb(subject).is_transitive) noun();
    if (among(toy_adverbs())) ++place_;
    if (!at(".") || place_ + 1 != words_.size()) is_wrong_ = true;
    if (is_wrong_) return "grammar";
    return disagrees_ ? "agreement" : topics_ == 0 ? "topic" : "";
  }

 private:
  bool at(const std::string& word) const {
    return place_ < words_.size() && words_[place_] == word;
  }
  bool among(const std::vector<std::string>& list) const {
    return place_ < words_.size() && std::count(list.begin(), list.end(), words_[place_]) > 0;
  }
  std::string take() { return place_ < words_.size() ? words_[place_++] : ""; }
  Reading noun() {
    if (take() != "the") is_wrong_ = true;
    if (among(toy_adjectives())) ++place_;
    const Reading reading = read(toy_nouns(), take(), true);
    if (!reading.word) is_wrong_ = true;
    else topics_ &= reading.word->topics;
    return reading;
  }
  ToyWord verb(const Reading& subject) {
    const Reading reading = read(toy_verbs(), take(), false);
    if (!reading.word) is_wrong_ = true;
    if (!reading.word || !subject.word) return {"", 7};
    topics_ &= reading.word->topics;
    if (!(reading.can_be_singular && subject.can_be_singular) &&
        !(reading.can_be_plural && subject.can_be_plural))
      disagrees_ = true;
    return *reading.word;
  }
  Reading phrase() {
    const Reading head = noun();
    if (among(toy_prepositions())) {
      ++place_;
      noun();
    } else if (at("that")) {
      ++place_;
      if (at("the")) {
        const Reading other = noun();
        if (!verb(other).is_transitive) is_wrong_ = true;
      } else {
        if (!verb(head).is_transitive) is_wrong_ = true;
        noun();
      }
    }
    return head;
  }
  std::vector<std::string> words_;
  std::size_t place_ = 0;
  bool is_wrong_ = false, disagrees_ = false;
  int topics_ = 7;
};

}  // namespace

TEST_SUITE("support: toy language") {
  TEST_CASE("every sentence of the text parses, agrees and keeps to a topic") {
    const std::string text = toy_text(200, Rng(3));
    int num_sentences = 0, num_documents = 0;
    for (const std::string& line : lines_of(text)) {
      if (line.empty()) {
        ++num_documents;
        continue;
      }
      INFO(line);
      CHECK(ToyParser(line).fault() == "");
      ++num_sentences;
    }
    CHECK(num_documents == 200);
    CHECK(num_sentences >= 5 * 200);
    CHECK(num_sentences <= 9 * 200);
  }

  TEST_CASE("the parser sees what is wrong") {
    CHECK(ToyParser("the cows near the goat graze .").fault() == "");
    CHECK(ToyParser("the cows near the goat grazes .").fault() == "agreement");
    CHECK(ToyParser("the cow near the goat sails .").fault() == "topic");
    CHECK(ToyParser("the series sing .").fault() == "");
    CHECK(ToyParser("the cow near the goat .").fault() == "grammar");
    CHECK(ToyParser("then they duck .").fault() == "");
    CHECK(ToyParser("then it duck .").fault() == "agreement");
    CHECK(ToyParser("the sheep that the crane chases graze slowly .").fault() == "");
    CHECK(ToyParser("the crane sings .").fault() == "topic");
  }

  TEST_CASE("the vocabulary has every word of the language once") {
    const std::vector<std::string> words = toy_vocabulary();
    const Tokenizer t = Tokenizer::wordpiece(words, true);  // which refuses a word given twice
    const std::string text = toy_text(300, Rng(5));
    std::set<std::int32_t> seen;
    for (const std::int32_t id : t.ids(text)) seen.insert(id);
    CHECK(seen.count(t.unknown) == 0);
    CHECK(seen.size() == words.size() - 5);
    CHECK(words.size() == 62);
  }

  TEST_CASE("documents are functions of the seed and their number") {
    CHECK(toy_text(7, Rng(1)) == toy_text(9, Rng(1)).substr(0, toy_text(7, Rng(1)).size()));
    CHECK(toy_text(7, Rng(1)) != toy_text(7, Rng(2)));
    CHECK(toy_text(0, Rng(1)) == "");
  }

  TEST_CASE("a pronoun has the number of the subject before it") {
    int checked = 0;
    std::string before;
    for (const std::string& line : lines_of(toy_text(300, Rng(6)))) {
      const std::vector<std::string> now = word_runs({line, "", 0}, 1);
      const std::vector<std::string> then = word_runs({before, "", 0}, 1);
      before = line;
      if (now.empty() || then.empty()) continue;
      const auto is_opening = [](const std::string& word) {
        return word == "once" || word == "then" || word == "finally";
      };
      const std::string& pronoun = now[is_opening(now[0]) ? 1 : 0];
      if (pronoun != "it" && pronoun != "they") continue;
      const std::size_t first = is_opening(then[0]) ? 1 : 0;
      std::string subject = then[first];
      if (subject == "the") {
        const bool has_adjective =
            std::count(toy_adjectives().begin(), toy_adjectives().end(), then[first + 1]) > 0;
        const Reading noun = read(toy_nouns(), then[first + (has_adjective ? 2 : 1)], true);
        REQUIRE(noun.word);
        if (!noun.word->shows_number) continue;
        subject = noun.can_be_plural ? "they" : "it";
      }
      INFO(line);
      CHECK(pronoun == subject);
      ++checked;
    }
    CHECK(checked > 300);
  }

  TEST_CASE("every example has the fault of its label, a third of them each") {
    const std::vector<SentenceExample> examples = toy_examples(3000, Rng(4));
    const std::string names[] = {"", "agreement", "topic"};
    double counts[num_toy_classes] = {};
    for (const SentenceExample& example : examples) {
      INFO(example.first);
      CHECK(ToyParser(example.first).fault() == names[example.label]);
      counts[example.label] += 1;
    }
    for (const double count : counts) check_count(count, 3000, 1.0 / 3);
  }

  TEST_CASE("majority and naive Bayes, worked by hand") {
    const std::vector<SentenceExample> training = {
        {"a b", "", 0}, {"a a", "", 0}, {"b", "c", 1}, {"a b", "", 0}};
    CHECK(majority_accuracy(training, {{"x", "", 0}, {"x", "", 1}, {"x", "", 0}}) == 2.0 / 3);
    // count(a, 0) = 4, count(b, 0) = 2 of 6; count(b, 1) = count(c, 1) = 1 of 2; V = 3.
    // "b b b": 3/4 (3/9)^3 = 0.028 against 1/4 (2/5)^3 = 0.016
    // "c": 3/4 (1/9) = 0.083 against 1/4 (2/5) = 0.1;  "d" counts as unseen: 0.083 against 0.05
    CHECK(naive_bayes_accuracy(training, {{"b b b", "", 0}, {"c", "", 1}, {"d", "", 0}}, 1) == 1);
    CHECK(naive_bayes_accuracy(training, {{"b b b", "", 1}, {"c", "", 0}, {"d", "", 1}}, 1) == 0);
    CHECK(word_runs({" a  b ", "c", 0}, 2) == std::vector<std::string>{"a", "a b", "b", "c"});
    CHECK(error_of([&] { naive_bayes_accuracy(training, {}, 1); }) ==
          "widenet: naive_bayes_accuracy: there must be examples; got 4, 0");
  }

  TEST_CASE("counting words does not solve the task") {
    const std::vector<SentenceExample> training = toy_examples(4000, Rng(1));
    const std::vector<SentenceExample> testing = toy_examples(1000, Rng(2));
    CHECK(majority_accuracy(training, testing) < 0.40);
    CHECK(naive_bayes_accuracy(training, testing, 1) < 0.42);
    CHECK(naive_bayes_accuracy(training, testing, 2) < 0.50);  // neighbours help a little
    CHECK(naive_bayes_accuracy(training, training, 2) > 0.45);  // it does learn: by heart
  }
}
