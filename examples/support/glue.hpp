// glue.hpp - reads the sentence files of the GLUE benchmark: SST-2, MNLI and CoLA.
//
// A file has one example per line and tabs between its columns. Quotes are data: nothing is quoted,
// nothing is escaped. Rows are counted from 1, the header included.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_GLUE_HPP
#define WIDENET_EXAMPLES_SUPPORT_GLUE_HPP

#include "support/wordpiece.hpp"
#include "widenet.hpp"

#include <algorithm>  // find
#include <cmath>      // sqrt
#include <cstdint>    // int32_t
#include <string>     // string
#include <vector>     // vector

namespace widenet::support {

/// One sentence or two, and their class.
struct SentenceExample {
  std::string first, second;  // second: "" if the task has one sentence
  std::int32_t label = -1;    // -1: the file does not say, as in a test set
  Index place = 0;            // of its row among those of the file, from 0, without the header
};

/// What a file holds: its examples, and what is wrong with the rows that are none, such as
/// "train.tsv: row 7: there must be 2 columns; got 3".
struct SentenceFile {
  std::vector<SentenceExample> examples;
  std::vector<std::string> bad_rows;
};

/// A task: the columns of its files, and the words for its classes.
struct GlueTask {
  std::string name;
  std::string first, second, label;  // names of columns; second: "" if there is none
  std::vector<std::string> classes;  // the label is the index in here
  std::vector<std::string> columns_without_header;  // empty: files begin with a header
};

/// The tasks by name: "sst2", "mnli", "cola".
///
///   Errors    ValueError if there is no such task
///   Source    the files of gluebenchmark.com; the order of classes is that of google-research/bert
inline GlueTask glue_task(const std::string& name) {
  if (name == "sst2") return {name, "sentence", "", "label", {"0", "1"}, {}};
  if (name == "mnli")
    return {name, "sentence1", "sentence2", "gold_label",
            {"contradiction", "entailment", "neutral"}, {}};
  if (name == "cola")  // only its test set has a header
    return {name, "sentence", "", "label", {"0", "1"}, {"source", "label", "mark", "sentence"}};
  fail<ValueError>("glue_task: a task must be one of sst2 mnli cola; got ", name);
}

/// The fields of a line between its tabs: always one more than there are tabs.
inline std::vector<std::string> tab_separated(const std::string& line) {
  std::vector<std::string> fields(1);
  for (const char c : line) {
    if (c == '\t') fields.emplace_back();
    else fields.back() += c;
  }
  return fields;
}

/// Examples from the text of a file; `source` names it in errors and bad rows. A row is bad if it
/// has not as many columns as the header, no sentence, or an unknown label (such as "-" in MNLI).
/// Without a label column all labels are -1.
///
///   Errors    IoError if the header lacks a column, or if no row is good
inline SentenceFile parse_sentences(const GlueTask& task, const std::string& text,
                                    const std::string& source) {
  const std::vector<std::string> lines = lines_of(text);
  require<IoError>(!lines.empty(), "read_sentences: ", source, ": there must be rows; got none");
  std::vector<std::string> columns = tab_separated(lines[0]);
  const auto column = [&](const std::string& name) {
    return static_cast<std::size_t>(std::find(columns.begin(), columns.end(), name) -
                                    columns.begin());
  };
  bool has_header = true;
  if (!task.columns_without_header.empty() && column(task.first) == columns.size())
    columns = task.columns_without_header, has_header = false;
  const std::size_t first = column(task.first), second = column(task.second);
  const std::size_t label = column(task.label);
  for (const std::string& name : {task.first, task.second})
    require<IoError>(name.empty() || column(name) < columns.size(), "read_sentences: ", source,
                     ": row 1 must name a column ", name, "; got \"", lines[0], "\"");

  SentenceFile file;
  for (std::size_t i = has_header ? 1 : 0; i < lines.size(); ++i) {
    const auto bad = [&](const std::string& why) {
      file.bad_rows.push_back(source + ": row " + std::to_string(i + 1) + ": " + why);
    };
    const std::vector<std::string> fields = tab_separated(lines[i]);
    if (fields.size() != columns.size()) {
      bad("there must be " + std::to_string(columns.size()) + " columns; got " +
          std::to_string(fields.size()));
      continue;
    }
    SentenceExample example;
    example.place = static_cast<Index>(i) - (has_header ? 1 : 0);
    example.first = fields[first];
    if (!task.second.empty()) example.second = fields[second];
    if (example.first.empty() || (!task.second.empty() && example.second.empty())) {
      bad("a sentence must not be empty; got one that is");
      continue;
    }
    if (label < columns.size()) {
      const auto found = std::find(task.classes.begin(), task.classes.end(), fields[label]);
      if (found == task.classes.end()) {
        std::string list;
        for (const std::string& name : task.classes) list += (list.empty() ? "" : " ") + name;
        bad("a label must be one of " + list + "; got \"" + fields[label] + "\"");
        continue;
      }
      example.label = static_cast<std::int32_t>(found - task.classes.begin());
    }
    file.examples.push_back(std::move(example));
  }
  require<IoError>(!file.examples.empty(), "read_sentences: ", source,
                   ": there must be a good row; got ", file.bad_rows.size(), " bad ones",
                   file.bad_rows.empty() ? "" : ", the first: " + file.bad_rows[0]);
  return file;
}

/// The same from a file.
///
///   Errors    IoError also if the file cannot be read
inline SentenceFile read_sentences(const GlueTask& task, const std::string& path) {
  return parse_sentences(task, read_text(path, "read_sentences"), path);
}

/// The correlation of two binary sequences, by which GLUE judges CoLA; 0 where one is constant.
///
///   phi = (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))
///
///   Errors    ShapeError if the sizes differ; ValueError if a value is neither 0 nor 1
///   Source    Matthews, Biochimica et Biophysica Acta 405, 1975
inline double matthews_correlation(const std::vector<std::int32_t>& predicted,
                                   const std::vector<std::int32_t>& labels) {
  require<ShapeError>(predicted.size() == labels.size(),
                      "matthews_correlation: the sizes must be equal; got ", predicted.size(),
                      ", ", labels.size());
  double count[2][2] = {};  // [predicted][label]
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const std::int32_t p = predicted[i], l = labels[i];
    require<ValueError>((p == 0 || p == 1) && (l == 0 || l == 1),
                        "matthews_correlation: values must be 0 or 1; got ", p, ", ", l, " at ", i);
    ++count[p][l];
  }
  const double product = (count[1][0] + count[1][1]) * (count[0][1] + count[1][1]) *
                         (count[0][0] + count[1][0]) * (count[0][0] + count[0][1]);
  if (product == 0) return 0;
  return (count[1][1] * count[0][0] - count[1][0] * count[0][1]) / std::sqrt(product);
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_GLUE_HPP
