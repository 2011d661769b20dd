// sequence.hpp - one or two texts as one sequence of tokens, and sequences as a batch.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_SEQUENCE_HPP
#define WIDENET_EXAMPLES_SUPPORT_SEQUENCE_HPP

#include "support/wordpiece.hpp"
#include "widenet.hpp"

#include <algorithm>  // max, min
#include <cstdint>    // int32_t
#include <string>     // string
#include <vector>     // vector

namespace widenet::support {

using Ids = std::vector<std::int32_t>;

/// Tokens with their segments: 0 up to the first [SEP], 1 after it.
struct Sequence {
  Ids token, type;
};

/// [CLS] first [SEP], and if there is a second part, second [SEP] after it.
inline Sequence joined(const Tokenizer& tokenizer, const Ids& first, const Ids& second) {
  Sequence sequence;
  const auto add = [&](std::int32_t token, std::int32_t type) {
    sequence.token.push_back(token);
    sequence.type.push_back(type);
  };
  add(tokenizer.cls, 0);
  for (const std::int32_t token : first) add(token, 0);
  add(tokenizer.sep, 0);
  if (second.empty()) return sequence;
  for (const std::int32_t token : second) add(token, 1);
  add(tokenizer.sep, 1);
  return sequence;
}

/// Drops tokens at the end of the longer part, of the second if they are equally long, until both
/// together have at most `limit`.
///
///   Source    google-research/bert, run_classifier.py, _truncate_seq_pair
inline void truncate_pair(Ids& first, Ids& second, std::size_t limit) {
  while (first.size() + second.size() > limit)
    (first.size() > second.size() ? first : second).pop_back();
}

/// One text, or two, as a sequence of at most `max_tokens`.
///
///   Errors    ValueError if max_tokens leaves no room for a token of each text
inline Sequence encode(const Tokenizer& tokenizer, const std::string& first,
                       const std::string& second, Index max_tokens) {
  const Index num_special = second.empty() ? 2 : 3;
  const Index least = second.empty() ? 3 : 5;  // [CLS] a [SEP], or [CLS] a [SEP] b [SEP]
  require<ValueError>(max_tokens >= least, "encode: max_tokens must be at least ", least, "; got ",
                      max_tokens);
  Ids a = tokenizer.ids(first), b = tokenizer.ids(second);
  truncate_pair(a, b, static_cast<std::size_t>(max_tokens - num_special));
  return joined(tokenizer, a, b);
}

/// Sequences as a batch, padded to the longest; the mask is empty if nothing is padded.
///
///   Errors    ValueError if there is no sequence
inline TokenBatch batch_of(const std::vector<Sequence>& sequences, std::int32_t pad) {
  require<ValueError>(!sequences.empty(), "batch_of: there must be a sequence; got none");
  std::size_t longest = 0, shortest = sequences[0].token.size();
  for (const Sequence& s : sequences) {
    longest = std::max(longest, s.token.size());
    shortest = std::min(shortest, s.token.size());
  }
  TokenBatch batch;
  batch.B = static_cast<Index>(sequences.size()), batch.T = static_cast<Index>(longest);
  for (const Sequence& s : sequences)
    for (std::size_t t = 0; t < longest; ++t) {
      const bool is_text = t < s.token.size();
      batch.token.push_back(is_text ? s.token[t] : pad);
      batch.type.push_back(is_text ? s.type[t] : 0);
      if (shortest < longest) batch.mask.push_back(is_text ? 1 : 0);
    }
  return batch;
}

/// Which of `count` examples make up the batch of a step: a function of the seed and the step, so
/// that training can stop and go on. Every epoch visits them in a new order; what does not fill a
/// batch is left out.
///
///   Errors    ValueError if there are fewer examples than a batch has
inline std::vector<std::size_t> examples_of_step(std::size_t count, Index batch_size,
                                                 const Rng& rng, Index step) {
  const Index num_examples = static_cast<Index>(count);
  require<ValueError>(0 < batch_size && batch_size <= num_examples,
                      "examples_of_step: the batch size must lie in [1, ", num_examples,
                      "], the number of examples; got ", batch_size);
  const Index steps_per_epoch = num_examples / batch_size;
  const std::vector<Index> order = permutation(
      num_examples, rng.for_purpose(Purpose::shuffle).at_step(step / steps_per_epoch));
  const auto first = order.begin() + step % steps_per_epoch * batch_size;
  return {first, first + batch_size};
}

/// Part m of k of a list: the examples of a batch that micro-batch m works on.
///
///   Errors    ValueError unless k divides the size of the list and m is in [0, k)
template <class T> std::vector<T> part_of(const std::vector<T>& list, Index m, Index k) {
  const Index size = static_cast<Index>(list.size());
  require<ValueError>(k > 0 && size % k == 0 && 0 <= m && m < k,
                      "part_of: there must be a part m of k equal ones; got m = ", m, ", k = ", k,
                      " of ", size);
  return {list.begin() + m * (size / k), list.begin() + (m + 1) * (size / k)};
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_SEQUENCE_HPP
