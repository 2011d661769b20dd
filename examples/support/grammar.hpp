// grammar.hpp - a toy language to pre-train on, a task in it, and what simple counting makes of it.
//
//   document  five to nine sentences on one topic (farm, harbour or music), one per line; the first
//             may begin with "once", the last with "finally", the others with "then"
//   sentence  subject verb [object] [adverb] "."
//   subject   "it" or "they" for the subject of the sentence before, or a noun phrase
//   phrase    "the" [adjective] noun, then nothing, "near the" noun, "that" verb "the" noun, or
//             "that the" noun verb
//
// Agreement over distance: a verb has the number of its subject, across the nouns in between; so
// has a pronoun, across the end of a sentence. Topic: most verbs and nouns belong to one.
// Ambiguity: some nouns belong to two topics (crane, horn, scale, bow), some do not show their
// number (sheep, fish, series), some words are a noun or a verb (duck, plant, anchor, dance).
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_GRAMMAR_HPP
#define WIDENET_EXAMPLES_SUPPORT_GRAMMAR_HPP

#include "support/glue.hpp"
#include "support/wordpiece.hpp"
#include "widenet.hpp"

#include <algorithm>  // find, max_element
#include <cmath>      // log
#include <cstdint>    // int32_t
#include <limits>     // numeric_limits
#include <map>        // map
#include <string>     // string
#include <utility>    // move
#include <vector>     // vector

namespace widenet::support {

// WORDS -------------------------------------------------------------------------------------------

/// A word that has a number. A noun takes an s in the plural, a verb in the singular.
struct ToyWord {
  std::string base;
  int topics;                       // bit t: belongs to topic t
  bool is_transitive = false;       // of a verb
  bool shows_number = true;         // of a noun: "sheep" does not
  bool belongs_to(int topic) const { return (topics >> topic & 1) != 0; }
  bool is_of_one_topic() const { return topics == 1 || topics == 2 || topics == 4; }
};

constexpr int num_toy_topics = 3;  // 0 farm, 1 harbour, 2 music

inline const std::vector<ToyWord>& toy_nouns() {
  static const std::vector<ToyWord> nouns = [] {
    std::vector<ToyWord> list;
    const std::vector<std::string> of_topic[num_toy_topics] = {
        {"cow", "goat", "hen", "farmer", "duck", "plant"},
        {"sailor", "boat", "gull", "captain", "diver", "anchor"},
        {"singer", "violin", "drummer", "flute", "choir", "dance"}};
    for (int topic = 0; topic < num_toy_topics; ++topic)
      for (const std::string& noun : of_topic[topic]) list.push_back({noun, 1 << topic});
    list.insert(list.end(), {{"crane", 3}, {"horn", 5}, {"scale", 6}, {"bow", 6}});
    list.insert(list.end(), {{"sheep", 1, false, false}, {"fish", 2, false, false},
                             {"series", 4, false, false}});
    return list;
  }();
  return nouns;
}

inline const std::vector<ToyWord>& toy_verbs() {
  static const std::vector<ToyWord> verbs = [] {
    std::vector<ToyWord> list;
    const std::vector<std::string> intransitive[num_toy_topics] = {
        {"graze", "trot", "sleep"}, {"sail", "float", "duck"}, {"sing", "hum", "dance"}};
    const std::vector<std::string> transitive[num_toy_topics] = {
        {"feed", "chase", "plant"}, {"tow", "rescue", "anchor"}, {"tune", "praise", "record"}};
    for (int topic = 0; topic < num_toy_topics; ++topic) {
      for (const std::string& verb : intransitive[topic]) list.push_back({verb, 1 << topic, false});
      for (const std::string& verb : transitive[topic]) list.push_back({verb, 1 << topic, true});
    }
    list.insert(list.end(), {{"wait", 7, false}, {"see", 7, true}});
    return list;
  }();
  return verbs;
}

inline const std::vector<std::string>& toy_adjectives() {
  static const std::vector<std::string> list = {"old", "small", "brave"};
  return list;
}
inline const std::vector<std::string>& toy_prepositions() {
  static const std::vector<std::string> list = {"near", "behind"};
  return list;
}
inline const std::vector<std::string>& toy_adverbs() {
  static const std::vector<std::string> list = {"slowly", "again"};
  return list;
}

inline std::string toy_noun(const ToyWord& noun, bool is_plural) {
  return noun.shows_number && is_plural ? noun.base + "s" : noun.base;
}
inline std::string toy_verb(const ToyWord& verb, bool is_plural) {
  return is_plural ? verb.base : verb.base + "s";
}

/// The vocabulary, for Tokenizer::wordpiece: special tokens, every word once, and "##s", so that
/// number is a token of its own.
inline std::vector<std::string> toy_vocabulary() {
  std::vector<std::string> words = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##s"};
  const auto add = [&words](const std::string& word) {
    if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
  };
  for (const char* word : {".", "the", "that", "it", "they", "once", "then", "finally"}) add(word);
  for (const auto& list : {toy_adjectives(), toy_prepositions(), toy_adverbs()})
    for (const std::string& word : list) add(word);
  for (const auto& list : {toy_nouns(), toy_verbs()})
    for (const ToyWord& word : list) add(word.base);
  return words;
}

// SENTENCES ---------------------------------------------------------------------------------------

constexpr Index toy_text_block = 1000, toy_task_block = 1001;  // streams that nothing else uses

/// Draws in order from one stream of an Rng.
class Dice {
 public:
  explicit Dice(const Rng& rng) : rng_(rng) {}
  std::size_t below(std::size_t n) {
    return static_cast<std::size_t>(rng_.uniform(next_++) * double(n));
  }
  bool happens(double probability) { return rng_.uniform(next_++) < probability; }
  template <class T> const T& one_of(const std::vector<T>& list) {
    return list[below(list.size())];
  }

 private:
  Rng rng_;
  Index next_ = 0;
};

/// A verb of a sentence, and its subject.
struct ToyVerbSite {
  std::size_t place;             // among the words
  const ToyWord* verb;
  bool is_plural, shows_number;  // shows_number: the subject does
};

struct ToySentence {
  std::vector<std::string> words;
  std::vector<ToyVerbSite> verbs;
  bool is_subject_plural = false;
  bool has_plain_noun = false;  // one that belongs to the topic alone
  std::string text() const {
    std::string line;
    for (const std::string& word : words) line += (line.empty() ? "" : " ") + word;
    return line;
  }
};

/// Writes one sentence on a topic.
class ToyWriter {
 public:
  ToyWriter(int topic, Dice& dice) : topic_(topic), dice_(dice) {}

  /// `pronoun`: "" or a pronoun that is the subject, with the number given.
  ToySentence write(const std::string& opening, const std::string& pronoun, bool is_plural) {
    sentence_ = {};
    if (!opening.empty()) put(opening);
    bool shows_number = true;
    if (!pronoun.empty()) {
      put(pronoun);
      sentence_.is_subject_plural = is_plural;
    } else {
      sentence_.is_subject_plural = dice_.happens(0.5);
      put_phrase(sentence_.is_subject_plural, true, shows_number);
    }
    const bool is_transitive = dice_.happens(0.5);
    put_verb(is_transitive, sentence_.is_subject_plural, shows_number);
    bool unused = false;
    if (is_transitive) put_phrase(dice_.happens(0.5), false, unused);
    if (dice_.happens(0.3)) put(dice_.one_of(toy_adverbs()));
    put(".");
    return std::move(sentence_);
  }

 private:
  void put(const std::string& word) { sentence_.words.push_back(word); }

  const ToyWord& word_of_topic(const std::vector<ToyWord>& list, bool is_transitive) {
    for (;;) {
      const ToyWord& word = dice_.one_of(list);
      if (word.belongs_to(topic_) && word.is_transitive == is_transitive) return word;
    }
  }
  void put_verb(bool is_transitive, bool is_plural, bool shows_number) {
    const ToyWord& verb = word_of_topic(toy_verbs(), is_transitive);
    sentence_.verbs.push_back({sentence_.words.size(), &verb, is_plural, shows_number});
    put(toy_verb(verb, is_plural));
  }
  /// "the" [adjective] noun.
  void put_noun(bool is_plural, bool& shows_number) {
    put("the");
    if (dice_.happens(0.3)) put(dice_.one_of(toy_adjectives()));
    const ToyWord& noun = word_of_topic(toy_nouns(), false);
    shows_number = noun.shows_number;
    sentence_.has_plain_noun = sentence_.has_plain_noun || noun.is_of_one_topic();
    put(toy_noun(noun, is_plural));
  }
  void put_phrase(bool is_plural, bool has_more, bool& shows_number) {
    put_noun(is_plural, shows_number);
    const std::size_t kind = has_more ? dice_.below(4) : 0;
    if (kind == 0) return;
    const bool is_other_plural = dice_.happens(0.5);
    bool shows_other = true;
    if (kind == 1) {
      put(dice_.one_of(toy_prepositions()));
      put_noun(is_other_plural, shows_other);
    } else if (kind == 2) {
      put("that");
      put_verb(true, is_plural, shows_number);
      put_noun(is_other_plural, shows_other);
    } else {
      put("that");
      put_noun(is_other_plural, shows_other);
      put_verb(true, is_other_plural, shows_other);
    }
  }

  int topic_;
  Dice& dice_;
  ToySentence sentence_;
};

/// Documents as plain text, one sentence per line and a blank line after each document. Document d
/// is a function of the seed and d.
inline std::string toy_text(Index num_documents, const Rng& rng) {
  std::string text;
  for (Index d = 0; d < num_documents; ++d) {
    Dice dice(rng.for_purpose(Purpose::user).at_block(toy_text_block).at_step(d));
    ToyWriter writer(static_cast<int>(dice.below(num_toy_topics)), dice);
    const std::size_t num_sentences = 5 + dice.below(5);
    bool is_plural = false;
    for (std::size_t s = 0; s < num_sentences; ++s) {
      const char* const opening = s == 0 ? "once" : s + 1 == num_sentences ? "finally" : "then";
      const bool has_opening = dice.happens(0.5), has_pronoun = s > 0 && dice.happens(0.5);
      const ToySentence sentence = writer.write(
          has_opening ? opening : "", has_pronoun ? (is_plural ? "they" : "it") : "", is_plural);
      is_plural = sentence.is_subject_plural;
      text += sentence.text() + '\n';
    }
    text += '\n';
  }
  return text;
}

// THE TASK ----------------------------------------------------------------------------------------

/// What may be wrong with a sentence.
enum class ToyFault : std::int32_t { none, agreement, topic };
constexpr Index num_toy_classes = 3;

/// Sentences with their ToyFault as label, a third of each: in `agreement` one verb has the number
/// that its subject has not; in `topic` one verb belongs to another topic. Single words say next to
/// nothing, for the sentences of all three are drawn alike: each has a verb of its topic whose
/// subject shows its number, and that verb is the one that is changed.
inline std::vector<SentenceExample> toy_examples(Index count, const Rng& rng) {
  std::vector<SentenceExample> examples;
  for (Index i = 0; i < count; ++i) {
    Dice dice(rng.for_purpose(Purpose::user).at_block(toy_task_block).at_step(i));
    const auto fault = static_cast<ToyFault>(dice.below(num_toy_classes));
    for (bool is_found = false; !is_found;) {
      const int topic = static_cast<int>(dice.below(num_toy_topics));
      ToySentence sentence = ToyWriter(topic, dice).write("", "", false);
      std::vector<ToyVerbSite> sites;
      for (const ToyVerbSite& site : sentence.verbs)
        if (site.shows_number && site.verb->is_of_one_topic())
          sites.push_back(site);
      is_found = sentence.has_plain_noun && !sites.empty();
      if (!is_found) continue;
      const ToyVerbSite site = dice.one_of(sites);
      const ToyWord* verb = site.verb;
      while (fault == ToyFault::topic && (verb->belongs_to(topic) || !verb->is_of_one_topic() ||
                                          verb->is_transitive != site.verb->is_transitive))
        verb = &dice.one_of(toy_verbs());
      sentence.words[site.place] =
          toy_verb(*verb, site.is_plural != (fault == ToyFault::agreement));
      examples.push_back({sentence.text(), "", static_cast<std::int32_t>(fault), i});
    }
  }
  return examples;
}

// BASELINES ---------------------------------------------------------------------------------------

/// The accuracy of always saying the most frequent label of the training examples.
inline double majority_accuracy(const std::vector<SentenceExample>& training,
                                const std::vector<SentenceExample>& testing) {
  std::map<std::int32_t, Index> counts;
  for (const SentenceExample& example : training) ++counts[example.label];
  const auto most = std::max_element(
      counts.begin(), counts.end(),
      [](const auto& a, const auto& b) { return a.second < b.second; });
  Index hits = 0;
  for (const SentenceExample& example : testing)
    if (most != counts.end() && example.label == most->first) ++hits;
  return testing.empty() ? 0 : double(hits) / double(testing.size());
}

/// The runs of 1, ..., longest words of both sentences, cut at spaces.
inline std::vector<std::string> word_runs(const SentenceExample& example, std::size_t longest) {
  std::vector<std::string> runs;
  for (const std::string& sentence : {example.first, example.second}) {
    std::vector<std::string> words(1);
    for (const char c : sentence) {
      if (c != ' ') words.back() += c;
      else if (!words.back().empty()) words.emplace_back();
    }
    if (words.back().empty()) words.pop_back();
    for (std::size_t begin = 0; begin < words.size(); ++begin) {
      std::string run;
      for (std::size_t n = 0; n < longest && begin + n < words.size(); ++n) {
        run += (n == 0 ? "" : " ") + words[begin + n];
        runs.push_back(run);
      }
    }
  }
  return runs;
}

/// The accuracy of naive Bayes over runs of words: 1 is the bag of words, 2 adds neighbours.
///
///   label = argmax over c of  log P(c) + sum over runs w of log (count(w, c) + 1) / (count(c) + V)
///
///   Errors    ValueError if there are no examples
inline double naive_bayes_accuracy(const std::vector<SentenceExample>& training,
                                   const std::vector<SentenceExample>& testing,
                                   std::size_t longest) {
  require<ValueError>(!training.empty() && !testing.empty(),
                      "naive_bayes_accuracy: there must be examples; got ", training.size(), ", ",
                      testing.size());
  struct Class {
    double num_examples = 0, num_runs = 0;
    std::map<std::string, double> count;
  };
  std::map<std::int32_t, Class> classes;
  std::map<std::string, bool> vocabulary;
  for (const SentenceExample& example : training) {
    Class& c = classes[example.label];
    ++c.num_examples;
    for (const std::string& run : word_runs(example, longest)) {
      ++c.count[run], ++c.num_runs;
      vocabulary[run] = true;
    }
  }
  Index hits = 0;
  for (const SentenceExample& example : testing) {
    std::int32_t best_label = 0;
    double best = -std::numeric_limits<double>::infinity();
    for (const auto& [label, c] : classes) {
      double score = std::log(c.num_examples);
      for (const std::string& run : word_runs(example, longest)) {
        const auto found = c.count.find(run);
        score += std::log((found == c.count.end() ? 1 : found->second + 1) /
                          (c.num_runs + double(vocabulary.size())));
      }
      if (score > best) best = score, best_label = label;
    }
    if (best_label == example.label) ++hits;
  }
  return double(hits) / double(testing.size());
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_GRAMMAR_HPP
