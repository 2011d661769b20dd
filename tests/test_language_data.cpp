// Tests for examples/support: sequences, GLUE and SQuAD files, masked words, the toy language.
#include "examples/support/glue.hpp"
#include "examples/support/sequence.hpp"
#include "examples/support/squad.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>

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

Tokenizer letters() {
  return Tokenizer::wordpiece({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d",
                               "##a", "##b", "##c", "##d"},
                              false);
}

}  // namespace

TEST_SUITE("support: sequence") {
  TEST_CASE("one text, and two") {
    const Tokenizer t = letters();
    CHECK(encode(t, "a b", "", 9).token == Ids{2, 5, 6, 3});
    CHECK(encode(t, "a b", "", 9).type == Ids{0, 0, 0, 0});
    CHECK(encode(t, "a b", "c", 9).token == Ids{2, 5, 6, 3, 7, 3});
    CHECK(encode(t, "a b", "c", 9).type == Ids{0, 0, 0, 0, 1, 1});
    CHECK(encode(t, "", "", 3).token == Ids{2, 3});
  }

  TEST_CASE("what is too long loses its end, the longer text first") {
    const Tokenizer t = letters();
    CHECK(encode(t, "a b c d", "", 4).token == Ids{2, 5, 6, 3});
    CHECK(encode(t, "a b c d", "d c", 8).token == Ids{2, 5, 6, 7, 3, 8, 7, 3});
    CHECK(encode(t, "a b", "a b", 6).token == Ids{2, 5, 6, 3, 5, 3});  // a tie: the second
    CHECK(encode(t, "a", "a b c d", 5).token == Ids{2, 5, 3, 5, 3});
    CHECK(error_of([&] { encode(t, "a", "", 2); }) ==
          "widenet: encode: max_tokens must be at least 3; got 2");
    CHECK(error_of([&] { encode(t, "a", "b", 4); }) ==
          "widenet: encode: max_tokens must be at least 5; got 4");
  }

  TEST_CASE("a batch is padded to its longest sequence") {
    const Tokenizer t = letters();
    const TokenBatch batch = batch_of({encode(t, "a", "b", 9), encode(t, "a", "", 9)}, t.pad);
    CHECK(batch.B == 2);
    CHECK(batch.T == 5);
    CHECK(batch.token == Ids{2, 5, 3, 6, 3, 2, 5, 3, 0, 0});
    CHECK(batch.type == Ids{0, 0, 0, 1, 1, 0, 0, 0, 0, 0});
    CHECK(batch.mask == std::vector<std::uint8_t>{1, 1, 1, 1, 1, 1, 1, 1, 0, 0});
    CHECK(batch_of({encode(t, "a", "b", 9)}, t.pad).mask.empty());
    CHECK(error_of([] { batch_of({}, 0); }) ==
          "widenet: batch_of: there must be a sequence; got none");
  }
}

TEST_SUITE("support: glue") {
  TEST_CASE("SST-2: a header, quotes are data") {
    const SentenceFile file = parse_sentences(
        glue_task("sst2"),
        "sentence\tlabel\n\"a fine film\t1\nit 's \"so\" bad \t0\r\n''\"\t1", "train.tsv");
    REQUIRE(file.examples.size() == 3);
    CHECK(file.bad_rows.empty());
    CHECK(file.examples[0].first == "\"a fine film");
    CHECK(file.examples[0].second == "");
    CHECK(file.examples[0].label == 1);
    CHECK(file.examples[1].first == "it 's \"so\" bad ");
    CHECK(file.examples[1].label == 0);
    CHECK(file.examples[2].first == "''\"");
  }

  TEST_CASE("the columns stand in any order, and a test set has no labels") {
    const SentenceFile file =
        parse_sentences(glue_task("sst2"), "index\tsentence\n0\tgood\n1\tbad\n", "test.tsv");
    REQUIRE(file.examples.size() == 2);
    CHECK(file.examples[1].first == "bad");
    CHECK(file.examples[1].label == -1);
  }

  TEST_CASE("MNLI: two sentences among many columns, \"-\" is no label") {
    const std::string text =
        "index\tpromptID\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\t7n\t( x )\tA man \"sits.\tNobody sits.\tneutral\tcontradiction\n"
        "1\t8n\t( x )\tA dog.\tAn animal.\tentailment\tentailment\n"
        "2\t9n\t( x )\tA dog.\tA cat.\tneutral\t-\n"
        "3\t9n\t( x )\tA dog.\tIt barks.\tneutral\tneutral\n";
    const SentenceFile file = parse_sentences(glue_task("mnli"), text, "dev.tsv");
    REQUIRE(file.examples.size() == 3);
    CHECK(file.examples[0].first == "A man \"sits.");
    CHECK(file.examples[0].second == "Nobody sits.");
    CHECK(file.examples[0].label == 0);
    CHECK(file.examples[1].label == 1);
    CHECK(file.examples[2].label == 2);
    CHECK(file.bad_rows ==
          std::vector<std::string>{"dev.tsv: row 4: a label must be one of contradiction "
                                   "entailment neutral; got \"-\""});
  }

  TEST_CASE("CoLA: no header but in the test set") {
    const SentenceFile train = parse_sentences(
        glue_task("cola"), "gj04\t1\t\tOur friends won't buy this.\ncj99\t0\t*\tThe more.\n", "x");
    REQUIRE(train.examples.size() == 2);
    CHECK(train.examples[0].first == "Our friends won't buy this.");
    CHECK(train.examples[0].label == 1);
    CHECK(train.examples[1].label == 0);
    CHECK(train.examples[1].place == 1);
    const SentenceFile test =
        parse_sentences(glue_task("cola"), "index\tsentence\n0\tBill whistled.\n", "x");
    REQUIRE(test.examples.size() == 1);
    CHECK(test.examples[0].first == "Bill whistled.");
    CHECK(test.examples[0].label == -1);
    CHECK(test.examples[0].place == 0);
  }

  TEST_CASE("a bad row is reported with its number, and the others are read") {
    const SentenceFile file = parse_sentences(
        glue_task("sst2"), "sentence\tlabel\nfine\t1\tmore\n\ngood\t1\n\t0\nbad\t2\nbad\t\n", "f");
    REQUIRE(file.examples.size() == 1);
    CHECK(file.examples[0].first == "good");
    CHECK(file.examples[0].place == 2);  // of row 4
    CHECK(file.bad_rows == std::vector<std::string>{
                               "f: row 2: there must be 2 columns; got 3",
                               "f: row 3: there must be 2 columns; got 1",
                               "f: row 5: a sentence must not be empty; got one that is",
                               "f: row 6: a label must be one of 0 1; got \"2\"",
                               "f: row 7: a label must be one of 0 1; got \"\""});
  }

  TEST_CASE("a file without examples is refused") {
    const auto refused = [](const std::string& task, const std::string& text) {
      return error_of([&] { parse_sentences(glue_task(task), text, "f"); });
    };
    CHECK(refused("sst2", "") == "widenet: read_sentences: f: there must be rows; got none");
    CHECK(refused("sst2", "text\tlabel\na\t1\n") ==
          "widenet: read_sentences: f: row 1 must name a column sentence; got \"text\tlabel\"");
    CHECK(refused("mnli", "sentence1\tgold_label\na\tneutral\n") ==
          "widenet: read_sentences: f: row 1 must name a column sentence2; got "
          "\"sentence1\tgold_label\"");
    CHECK(refused("sst2", "sentence\tlabel\n") ==
          "widenet: read_sentences: f: there must be a good row; got 0 bad ones");
    CHECK(refused("cola", "a\tb\n") ==
          "widenet: read_sentences: f: there must be a good row; got 1 bad ones, the first: f: row "
          "1: there must be 4 columns; got 2");
    CHECK(error_of([] { glue_task("rte"); }) ==
          "widenet: glue_task: a task must be one of sst2 mnli cola; got rte");
    CHECK(error_of([] { read_sentences(glue_task("sst2"), "no such file"); }) ==
          "widenet: read_sentences: no such file: must be readable; got: not opened");
  }

  TEST_CASE("Matthews' correlation, worked by hand") {
    // TP 3, FP 1, FN 2, TN 4: (12 - 2) / sqrt(4 * 5 * 5 * 6)
    CHECK(std::fabs(matthews_correlation({1, 1, 1, 1, 0, 0, 0, 0, 0, 0},
                                         {1, 1, 1, 0, 1, 1, 0, 0, 0, 0}) -
                    10 / std::sqrt(600.0)) < 1e-15);
    CHECK(matthews_correlation({0, 1, 1}, {0, 1, 1}) == 1);
    CHECK(matthews_correlation({1, 0, 0}, {0, 1, 1}) == -1);
    CHECK(matthews_correlation({1, 1, 1}, {0, 1, 1}) == 0);
    CHECK(matthews_correlation({}, {}) == 0);
    CHECK(error_of([] { matthews_correlation({0}, {0, 1}); }) ==
          "widenet: matthews_correlation: the sizes must be equal; got 1, 2");
    CHECK(error_of([] { matthews_correlation({0, 2}, {0, 1}); }) ==
          "widenet: matthews_correlation: values must be 0 or 1; got 2, 1 at 1");
  }
}

namespace {

// Two paragraphs; the answers stand behind characters of two and four bytes.
const std::string squad_text = R"({"version": "v2.0", "data": [{"title": "x", "paragraphs": [
  {"context": "Caf\u00e9 \ud83d\ude00 by Zo\u00eb, the owner.", "qas": [
    {"id": "q1", "question": "By whom?", "is_impossible": false,
     "answers": [{"text": "Zo\u00eb", "answer_start": 10},
                 {"text": "the owner", "answer_start": 15}]},
    {"id": "q2", "question": "Why?", "is_impossible": true, "answers": [],
     "plausible_answers": [{"text": "by", "answer_start": 7}]}]},
  {"context": "A bridge.", "qas": [
    {"id": "q3", "question": "What?", "answers": [{"text": "A bridge", "answer_start": 0}]}]}]}]})";

struct ScoredAnswer {
  std::string prediction, answer;
  bool is_exact;
  double f1;
};

/// A context of seven tokens and a question of two.
SquadData small_squad() {
  SquadData data;
  data.contexts = {"a b c d a b c"};
  data.questions = {{"q", "a b", 0, {{"c d", 4}}}};
  return data;
}

SpanLogits flat_logits(const SquadWindow& window) {
  const std::vector<float> zero(window.sequence.token.size(), 0.0f);
  return {zero, zero};
}

}  // namespace

TEST_SUITE("support: squad") {
  TEST_CASE("a file: contexts, questions, answers by code points") {
    const SquadData data = parse_squad(squad_text, "dev.json");
    CHECK(data.version == "v2.0");
    CHECK(data.bad_questions.empty());
    REQUIRE(data.contexts.size() == 2);
    REQUIRE(data.questions.size() == 3);
    CHECK(data.questions[0].id == "q1");
    REQUIRE(data.questions[0].answers.size() == 2);
    CHECK(data.questions[0].answers[0].text == "Zo\u00eb");
    CHECK(data.questions[0].answers[1].start == 15);
    CHECK(data.questions[1].answers.empty());
    CHECK(data.questions[2].context == 1);
    CHECK(data.questions[2].question == "What?");
  }

  TEST_CASE("a first answer that does not stand where it should is reported, not learned from") {
    const auto with = [](const std::string& answers) {
      return parse_squad(
          R"({"data": [{"paragraphs": [{"context": "\u00e9t\u00e9", "qas": [{"id": "q", )"
          R"("question": "?", "answers": [)" + answers + "]}]}]}]}", "f");
    };
    const auto misplaced = [&](const std::string& answers) {
      const SquadData data = with(answers);
      REQUIRE(data.questions.size() == 1);
      CHECK(data.bad_questions.empty());
      CHECK(data.questions[0].answers.size() == 1);
      CHECK(can_be_learned(data.questions[0]) == data.misplaced.empty());
      return data.misplaced.empty() ? "no error" : data.misplaced[0];
    };
    CHECK(misplaced(R"({"text": "t", "answer_start": 1})") == "no error");
    CHECK(misplaced(R"({"text": "\u00e9", "answer_start": 2})") == "no error");
    CHECK(misplaced(R"({"text": "\u00e9", "answer_start": 0})") == "no error");
    CHECK(misplaced(R"({"text": "t", "answer_start": 2})") ==
          "f: question q: the answer \"t\" does not stand at 2");
    CHECK(misplaced(R"({"text": "\u00e9t", "answer_start": 2})") ==
          "f: question q: the answer \"\u00e9t\" does not stand at 2");
    CHECK(misplaced(R"({"text": "t", "answer_start": -1})") ==
          "f: question q: the answer \"t\" does not stand at -1");
    CHECK(misplaced(R"({"text": "t", "answer_start": 9223372036854775807})") ==
          "f: question q: the answer \"t\" does not stand at 9223372036854775807");
    CHECK(misplaced(R"({"text": "", "answer_start": 0})") ==
          "f: question q: the answer \"\" does not stand at 0");
    const SquadData second = with(
        R"({"text": "t", "answer_start": 1}, {"text": "\u00e9", "answer_start": 1})");
    CHECK(second.misplaced.empty());  // only the first is learned from
    CHECK(second.questions[0].answers.size() == 2);
    CHECK(can_be_learned(with("").questions[0]));  // no answer is one to learn
    const SquadData twice = parse_squad(
        R"({"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "q", "question": "1", )"
        R"("answers": []}, {"id": "q", "question": "2", "answers": []}]}]}]})", "f");
    CHECK(twice.questions.size() == 1);
    CHECK(twice.bad_questions ==
          std::vector<std::string>{"f: question q: its id has come before"});
  }

  // The official script reads the texts of the answers, never their places.
  TEST_CASE("a question with misplaced answers counts in the scores") {
    const SquadData data = parse_squad(
        R"({"data": [{"paragraphs": [{"context": "a b c", "qas": [)"
        R"({"id": "1", "question": "?", "answers": [{"text": "b", "answer_start": 2}]},)"
        R"({"id": "2", "question": "?", "answers": [{"text": "wxyz", "answer_start": 9},)"
        R"({"text": "c", "answer_start": 0}]},)"
        R"({"id": "3", "question": "?", "answers": [{"text": "", "answer_start": 0}]}]}]}]})", "f");
    CHECK(data.misplaced.size() == 2);
    const SquadScores all = squad_scores(data, {{"1", "b"}, {"2", "C"}, {"3", ""}});
    CHECK(all.count == 3);
    CHECK(all.num_answerable == 3);
    CHECK(all.exact == 100);
    const SquadScores one = squad_scores(data, {{"1", "b"}, {"2", "a"}, {"3", "b"}});
    CHECK(std::fabs(one.exact - 100.0 / 3) < 1e-12);
    const std::vector<SquadWindow> windows = squad_windows(data, 1, letters(), {20, 9, 64, 30});
    REQUIRE(windows.size() == 1);
    CHECK(windows[0].answer_first == 0);  // it is nowhere
    CHECK(windows[0].answer_last == 0);
    CHECK(best_answer(data, windows, {flat_logits(windows[0])}, {}, false).text == "a");
  }

  TEST_CASE("what is no SQuAD file is refused") {
    const auto refused = [](const std::string& text) {
      return error_of([&] { parse_squad(text, "f"); });
    };
    CHECK(refused("{}") ==
          "widenet: json: f: an object must have the key \"data\"; got one without");
    CHECK(refused(R"({"data": [{"paragraphs": [{"context": 3, "qas": []}]}]})") ==
          "widenet: json: f: a value must be a string; got another type");
    CHECK(refused(R"({"data": [{"paragraphs": [{"qas": []}]}]})") ==
          "widenet: json: f: an object must have the key \"context\"; got one without");
    CHECK(refused("{\"data\": [").find("widenet: json: f: offset 10") == 0);
    CHECK(error_of([] { read_squad("no such file"); }) ==
          "widenet: read_squad: no such file: must be readable; got: not opened");
  }

  // Printed by tests/reference/squad_scores.py.
  TEST_CASE("exact match and F1 are the official ones") {
    const std::vector<ScoredAnswer> table = {
      {"the cat", "cat", true, 1}, {"a  cat", "The Cat!", true, 1},
      {"cat sat", "the cat sat down", false, 0.8}, {"cat", "dog", false, 0}, {"", "", true, 1},
      {"", "cat", false, 0}, {"the", "", true, 1}, {"an", "a", true, 1}, {"a", "the cat", false, 0},
      {"cat cat", "cat", false, 0.6666666666666666}, {"cat", "cat cat", false, 0.6666666666666666},
      {"a cat a dog", "dog cat", false, 1}, {"well-known", "wellknown", true, 1},
      {"can't", "cant", true, 1}, {"U.S.A.", "usa", true, 1}, {"$5", "5", true, 1},
      {"5 %", "5", true, 1}, {"theatre", "atre", false, 0}, {"other the", "other", true, 1},
      {"\u00c9cole", "\u00e9cole", true, 1}, {"ecole", "\u00e9cole", false, 0},
      {"\u0416\u0418\u0417\u041d\u042c", "\u0436\u0438\u0437\u043d\u044c", true, 1},
      {"the\u2013end", "\u2013end", true, 1}, {"a\u2014b", "\u2014b", true, 1},
      {"th\u00e9", "", false, 0}, {"the\u0301", "\u0301", true, 1}, {"a\u00b2", "\u00b2", false, 0},
      {"a\u20ac", "\u20ac", true, 1}, {"cat\u00a0sat", "cat sat", true, 1},
      {"cat\u3000sat", "cat sat", true, 1}, {"cat\013sat", "cat sat", true, 1},
      {"cat\034sat", "cat sat", true, 1}, {"cat\302\205sat", "cat sat", true, 1},
      {"\u00aba\u00bb", "\u00ab\u00bb", false, 0}, {"\u2018the\u2019", "\u2018\u2019", false, 0},
      {"a_b", "ab", true, 1}, {"__", "", true, 1}, {"the-end", "theend", true, 1},
      {"a.m.", "am", true, 1}, {"an.", "", true, 1}, {"\u0391", "\u03b1", true, 1},
      {"1,000", "1000", true, 1}, {"one two three four", "two four six", false, 0.5714285714285714},
      {"\u4e2d \u56fd", "\u4e2d\u56fd", false, 0}, {"a\u4e2d", "\u4e2d", false, 0},
      {"the\u200bcat", "\u200bcat", true, 1},
      {"x \U0001f600", "\U0001f600", false, 0.6666666666666666}, {"A\u00d7B", "\u00d7b", true, 1},
      {"a\ue000", "\ue000", true, 1}, {"the\U000f0000", "\U000f0000", true, 1}};
    for (const ScoredAnswer& row : table) {
      INFO(row.prediction, " / ", row.answer);
      CHECK(is_exact_match(row.prediction, row.answer) == row.is_exact);
      CHECK(std::fabs(answer_f1(row.prediction, row.answer) - row.f1) < 1e-15);
      CHECK(answer_f1(row.answer, row.prediction) == answer_f1(row.prediction, row.answer));
    }
  }

  TEST_CASE("scores are means of the best over the answers") {
    const SquadData data = parse_squad(squad_text, "f");
    SquadScores s = squad_scores(data, {{"q1", "Owner"}, {"q2", ""}, {"q3", "old bridge"}});
    CHECK(std::fabs(s.exact - 200.0 / 3) < 1e-12);
    CHECK(std::fabs(s.f1 - (100 + 100 + 200.0 / 3) / 3) < 1e-12);
    CHECK(s.answerable_exact == 50);
    CHECK(std::fabs(s.answerable_f1 - (100 + 200.0 / 3) / 2) < 1e-12);
    CHECK(s.impossible_exact == 100);
    CHECK(s.count == 3);
    CHECK(s.num_answerable == 2);
    CHECK(s.num_missing == 0);
    s = squad_scores(data, {{"q2", "by"}, {"q1", "zo\u00eb"}});
    CHECK(std::fabs(s.exact - 100.0 / 3) < 1e-12);
    CHECK(s.impossible_exact == 0);
    CHECK(s.num_missing == 1);
    CHECK(squad_scores({}, {}).exact == 0);
  }

  TEST_CASE("windows slide over the context, and each token is best placed in one") {
    const SquadOptions options{9, 2, 64, 30};  // room for 4 of the 7 tokens
    const std::vector<SquadWindow> windows = squad_windows(small_squad(), 0, letters(), options);
    REQUIRE(windows.size() == 3);
    CHECK(windows[0].sequence.token == Ids{2, 5, 6, 3, 5, 6, 7, 8, 3});
    CHECK(windows[0].sequence.type == Ids{0, 0, 0, 0, 1, 1, 1, 1, 1});
    CHECK(windows[1].sequence.token == Ids{2, 5, 6, 3, 7, 8, 5, 6, 3});
    CHECK(windows[2].sequence.token == Ids{2, 5, 6, 3, 5, 6, 7, 3});
    CHECK(windows[0].first == 4);
    CHECK(windows[1].pieces[0].begin == 4);
    CHECK(windows[0].is_best == std::vector<bool>{true, true, true, false});
    CHECK(windows[1].is_best == std::vector<bool>{false, true, true, false});
    CHECK(windows[2].is_best == std::vector<bool>{false, true, true});
    CHECK(windows[0].answer_first == 6);
    CHECK(windows[0].answer_last == 7);
    CHECK(windows[1].answer_first == 4);
    CHECK(windows[1].answer_last == 5);
    CHECK(windows[2].answer_first == 0);
    CHECK(windows[2].answer_last == 0);
    const std::vector<SquadWindow> wider =
        squad_windows(small_squad(), 0, letters(), {10, 2, 64, 30});
    CHECK(wider[0].is_best == std::vector<bool>{true, true, true, true, false});  // a tie
  }

  TEST_CASE("windows at their limits") {
    SquadData data = small_squad();
    CHECK(squad_windows(data, 0, letters(), {12, 1, 64, 30}).size() == 1);  // all of it fits
    CHECK(squad_windows(data, 0, letters(), {11, 1, 64, 30}).size() == 2);
    CHECK(squad_windows(data, 0, letters(), {6, 100, 64, 30}).size() == 7);  // no token is left out
    CHECK(squad_windows(data, 0, letters(), {9, 2, 1, 30})[0].sequence.token ==
          Ids{2, 5, 3, 5, 6, 7, 8, 5, 3});  // the question is cut
    CHECK(error_of([&] { squad_windows(data, 0, letters(), {5, 1, 64, 30}); }) ==
          "widenet: squad_windows: a window must have room for context, and the stride must be "
          "positive; got 5 tokens for a question of 2, stride 1");
    CHECK(error_of([&] { squad_windows(data, 0, letters(), {9, 0, 64, 30}); }) ==
          "widenet: squad_windows: a window must have room for context, and the stride must be "
          "positive; got 9 tokens for a question of 2, stride 0");
    data.contexts[0] = "";
    data.questions[0].answers.clear();
    const std::vector<SquadWindow> empty = squad_windows(data, 0, letters(), {9, 2, 64, 30});
    REQUIRE(empty.size() == 1);
    CHECK(best_answer(data, empty, {flat_logits(empty[0])}, {}, false).text == "");
  }

  TEST_CASE("an answer inside a word takes the whole token") {
    SquadData data;
    data.contexts = {"\u00e9 abcd d"};
    data.questions = {{"q", "a", 0, {{"bc", 3}}}};
    const SquadWindow window = squad_windows(data, 0, letters(), {20, 9, 64, 30})[0];
    CHECK(window.pieces.size() == 6);  // the first is unknown
    CHECK(window.answer_first == window.first + 2);
    CHECK(window.answer_last == window.first + 3);
    const Tokenizer words = Tokenizer::wordpiece({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
                                                  "abcd", "d"}, false);
    CHECK(squad_windows(data, 0, words, {20, 9, 64, 30})[0].answer_first == 4);
    CHECK(squad_windows(data, 0, words, {20, 9, 64, 30})[0].answer_last == 4);
  }

  TEST_CASE("the best answer is the best span that begins where its window shows it best") {
    const SquadData data = small_squad();
    SquadOptions options{9, 2, 64, 30};
    const std::vector<SquadWindow> windows = squad_windows(data, 0, letters(), options);
    std::vector<SpanLogits> logits;
    for (const SquadWindow& window : windows) logits.push_back(flat_logits(window));
    logits[0].first[7] = 9;  // "d", but window 1 shows it better
    logits[1].first[6] = 3;  // the second "a"
    logits[1].last[7] = 2;   // the second "b"
    logits[1].last[5] = 8;   // before it
    logits[1].last[8] = 50;  // [SEP]
    logits[1].first[0] = 2, logits[1].last[0] = 2;
    SquadPrediction best = best_answer(data, windows, logits, options, false);
    CHECK(best.text == "d");  // 0 + 8
    CHECK(best.score == 8);
    CHECK(best.no_answer == 0);
    logits[1].last[5] = 0;
    best = best_answer(data, windows, logits, options, false);
    CHECK(best.text == "a b");
    CHECK(best.score == 5);
    options.answer_tokens = 1;
    CHECK(best_answer(data, windows, logits, options, false).text == "a");
    for (SpanLogits& l : logits)
      for (float& x : l.first) x -= 100;  // a bad answer is an answer
    CHECK(best_answer(data, windows, logits, options, false).text == "a");
    CHECK(best_answer(data, windows, logits, options, false).score == -97);
    CHECK(error_of([&] { best_answer(data, windows, {}, options, false); }) ==
          "widenet: best_answer: there must be logits for each window; got 3, 0");
    logits[2].last.resize(3);
    CHECK(error_of([&] { best_answer(data, windows, logits, options, false); }) ==
          "widenet: best_answer: there must be two logits for each of the 8 tokens; got 8, 3");
  }

  TEST_CASE("no answer, if [CLS] is better in every window") {
    const SquadData data = small_squad();
    const SquadOptions options{9, 2, 64, 30};
    const std::vector<SquadWindow> windows = squad_windows(data, 0, letters(), options);
    std::vector<SpanLogits> logits;
    for (const SquadWindow& window : windows) {
      logits.push_back(flat_logits(window));
      logits.back().first[0] = 4, logits.back().last[0] = 3;
    }
    logits[1].first[6] = 5;
    CHECK(best_answer(data, windows, logits, options, true).text == "");
    CHECK(best_answer(data, windows, logits, options, false).text == "a");
    CHECK(best_answer(data, windows, logits, options, true).no_answer == 7);
    CHECK(best_answer(data, windows, logits, options, true, 2).text == "a");  // not by more than 2
    CHECK(best_answer(data, windows, logits, options, true, 1.9).text == "");
    logits[2].last[0] = 1;  // the smallest counts: 5 is not better than 5
    CHECK(best_answer(data, windows, logits, options, true).text == "a");
  }
}
