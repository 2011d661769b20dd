// Tests for examples/support: sequences, GLUE and SQuAD files, masked words, the toy language.
#include "examples/support/glue.hpp"
#include "examples/support/sequence.hpp"

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
    const SentenceFile test =
        parse_sentences(glue_task("cola"), "index\tsentence\n0\tBill whistled.\n", "x");
    REQUIRE(test.examples.size() == 1);
    CHECK(test.examples[0].first == "Bill whistled.");
    CHECK(test.examples[0].label == -1);
  }

  TEST_CASE("a bad row is reported with its number, and the others are read") {
    const SentenceFile file = parse_sentences(
        glue_task("sst2"), "sentence\tlabel\nfine\t1\tmore\n\ngood\t1\n\t0\nbad\t2\nbad\t\n", "f");
    REQUIRE(file.examples.size() == 1);
    CHECK(file.examples[0].first == "good");
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
