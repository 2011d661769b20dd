// Tests for examples/support/paper_*.hpp: operations, finished runs, comparisons, tables, page.
#include "check.hpp"
#include "support/paper_page.hpp"
#include "support/paper_plan.hpp"

#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

using namespace widenet;
using namespace widenet::support;

namespace {

/// A path of its own for each test, gone when the test ends.
struct File {
  std::string path = (std::filesystem::temp_directory_path() /
                      ("widenet_test_paper_" + std::to_string(getpid()))).string();
  File() = default;
  ~File() { std::filesystem::remove(path); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  std::string content() const {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& content) const { std::ofstream(path) << content; }
};

/// A setting that measures its seed.
PaperSetting setting(const std::string& text) {
  PaperSetting s;
  s.text = text, s.work = 1;
  s.train = [](std::uint64_t seed) {
    return Measured{{"accuracy", double(seed) / 10}, {"loss", unknown}, {"seconds", 1}};
  };
  return s;
}

std::vector<PaperRun> three_runs(const std::string& text = "{}") {
  return {{"one", setting(text), 0}, {"two", setting(text), 1}, {"three", setting(text), 2}};
}

bool run_all(const std::vector<PaperRun>& runs, const std::string& path, Index num_processes) {
  std::ostringstream told;
  return run_missing(runs, path, num_processes, told);
}

template <class Call> std::string error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

PaperVerdict verdict(double paper, double ours, double error) {
  return {{"A", "B", paper}, ours, error};
}

/// Values for every run of some tables, as if all were finished: row r of a table has accuracy
/// 0.5 + r / 100, a hundredth more with every second seed.
std::map<std::string, Measured> made_up(const std::vector<PaperTable>& tables, Index num_seeds) {
  std::map<std::string, Measured> finished;
  for (const PaperTable& table : tables) {
    double r = 0;
    for (const PaperRow& row : table.rows) {
      ++r;
      for (Index seed = 0; !row.is_baseline() && seed < num_seeds; ++seed) {
        Measured& m = finished[PaperRun{"", row.setting, std::uint64_t(seed)}.key()];
        for (const PaperColumn& column : table.columns)
          m[column.name] = 0.5 + r / 100 + double(seed % 2) / 100;
        m["seconds"] = 2, m["accuracy"] = 0.5 + r / 100 + double(seed % 2) / 100;
      }
    }
  }
  return finished;
}

/// Two rows and a claim that made-up numbers contradict.
PaperTable small_table() {
  PaperTable t;
  t.id = "x", t.title = "A < B", t.about = "About & so on.";
  t.rows = {{"wide", setting("{\"is\": \"wide\"}"), {79.5, "40M"}},
            {"deep", setting("{\"is\": \"deep\"}"), {77.5, "305M"}}};
  t.rows.push_back({"guess"});
  t.rows.back().baseline = 0.25;
  t.claims = {{"wide", "deep", 2.0}};
  t.paper_title = "paper";
  return t;
}

std::map<std::string, Measured> small_runs(const PaperTable& t, double wide, double deep) {
  std::map<std::string, Measured> finished;
  for (std::uint64_t seed : {0u, 1u}) {
    const double shift = seed == 0 ? -0.01 : 0.01;
    finished[PaperRun{"", t.rows[0].setting, seed}.key()] = {{"accuracy", wide + shift},
                                                              {"seconds", 3}};
    finished[PaperRun{"", t.rows[1].setting, seed}.key()] = {{"accuracy", deep - shift},
                                                              {"seconds", 4}};
  }
  return finished;
}

}  // namespace

TEST_SUITE("support: paper") {
  TEST_CASE("operations of one example, counted by hand") {
    VisionConfig c;
    c.image_height = c.image_width = 4, c.patch = 2, c.channels = 3, c.classes = 7;
    c.encoder.width = 6, c.encoder.heads = 2, c.encoder.blocks = 2;
    c.encoder.experts = 3, c.encoder.top_k = 2;
    c.encoder.expert_hidden = 5, c.encoder.dense_hidden = 11;
    // 4 patches of 12 values to 6: 2 * 4 * 12 * 6. Five tokens: four products of 6 x 6 each and
    // two of 5 x 5 x 6; 2 experts of 2 products 6 x 5; a router 6 x 3. Classifier 6 x 7.
    const Index patches = 576, attention = 5 * 4 * 2 * 36 + 2 * 2 * 25 * 6;
    const Index experts = 5 * 2 * 2 * 2 * 30, router = 5 * 2 * 18, head = 84;
    CHECK(attention == 2040);
    CHECK(count_flops(c) == patches + 2 * (attention + experts + router) + head);
    CHECK(count_flops(c) == 7500);
    c.has_pre_logits = true;
    CHECK(count_flops(c) == 7500 + 72);
    c.encoder.routing_groups = 1;
    CHECK(count_flops(c) == 7500 + 72 - router);
    c.encoder.routing_groups = -1, c.encoder.moe_blocks = 1;
    CHECK(count_flops(c) == 7500 + 72 - router - experts + 5 * 2 * 2 * 66);
    c.encoder.experts = 0;
    CHECK(count_flops(c) == patches + 2 * (attention + 5 * 2 * 2 * 66) + head + 72);

    LanguageConfig l;
    l.embedding = 4, l.classes = 3, l.encoder = c.encoder;
    CHECK(count_flops(l, 5) == 5 * 2 * 24 + 2 * (attention + 5 * 2 * 2 * 66) + 72 + 36);
    // ViT-B/16 is known for 17.6 G multiplications and additions.
    CHECK(count_flops(VisionConfig::vit_b()) == 35128837632);
  }

  TEST_CASE("a run is one line of the file, and comes back as it went") {
    const File file;
    CHECK(finished_runs(file.path).empty());
    CHECK(run_all(three_runs(), file.path, 2));
    const auto runs = finished_runs(file.path);
    REQUIRE(runs.size() == 3);
    const Measured& two = runs.at(three_runs()[1].key());
    CHECK(two.at("accuracy") == 0.1);
    CHECK(std::isnan(two.at("loss")));
    CHECK(run_line("{\"seed\": 1", {{"a", 0.5}, {"b", unknown}}) ==
          "{\"seed\": 1, \"measured\": {\"a\": 0.5, \"b\": null}}");
    CHECK(three_runs("{\"steps\": 3}")[2].key() ==
          "{\"version\": \"" WIDENET_VERSION "\", \"setting\": {\"steps\": 3}, \"seed\": 2");
  }

  TEST_CASE("what is done is not done again; what is changed, lost or half written is") {
    const File file;
    CHECK(run_all({three_runs()[0], three_runs()[1]}, file.path, 1));
    const std::string two = file.content();
    CHECK(missing_runs(three_runs(), file.path).size() == 1);
    CHECK(run_all(three_runs(), file.path, 1));
    const std::string three = file.content();
    CHECK(three.substr(0, two.size()) == two);
    CHECK(missing_runs(three_runs(), file.path).empty());
    CHECK(run_all(three_runs(), file.path, 1));
    CHECK(file.content() == three);

    CHECK(missing_runs(three_runs("{\"rate\": 2}"), file.path).size() == 3);
    auto twice = three_runs("{\"rate\": 2}");
    twice.push_back(twice[0]);
    CHECK(missing_runs(twice, file.path).size() == 3);

    file.write(three.substr(0, three.size() - 1));  // all of the last line but its end
    CHECK(missing_runs(three_runs(), file.path).size() == 1);
    CHECK(file.content() == two);
    file.write(three.substr(0, two.size() + 9));
    CHECK(run_all(three_runs(), file.path, 1));
    CHECK(file.content() == three);
    file.write("{}\n");
    CHECK_THROWS_AS(finished_runs(file.path), IoError);
  }

  TEST_CASE("a run that fails is named, and those that are done are kept") {
    const File file;
    std::vector<PaperRun> runs = three_runs();
    runs[1].setting.train = [](std::uint64_t) -> Measured { fail<ValueError>("made up"); };
    CHECK(error_of([&] { run_all(runs, file.path, 1); }) ==
          "widenet: paper: every run must end well; got a failure of two, seed 1");
    CHECK(finished_runs(file.path).size() == 1);
  }

  TEST_CASE("Ctrl-C lets the runs in progress end and starts no more") {
    const File file;
    std::vector<PaperRun> runs = three_runs();
    runs[0].setting.train = [](std::uint64_t) {
      kill(getppid(), SIGINT);
      return Measured{{"accuracy", 0.5}};
    };
    CHECK(!run_all(runs, file.path, 1));
    CHECK(finished_runs(file.path).size() == 1);
    CHECK(run_all(runs, file.path, 1));
    CHECK(finished_runs(file.path).size() == 3);
  }

  TEST_CASE("a difference of means has the standard error of both") {
    const PaperVerdict v = verdict_of({"A", "B", 1}, {0.01, 0.03}, {0, 0, 0.03}, 100);
    CHECK(v.ours == doctest::Approx(1));
    CHECK(v.error == doctest::Approx(std::sqrt(2.0 / 2 + 3.0 / 3)));
    CHECK(!v.is_clear());
    CHECK(verdict_of({"A", "B", 1}, {0.0, 0.2}, {0.5, 0.5}, 1).is_clear());
    CHECK(!verdict_of({"A", "B", 1}, {0.9}, {0.1}, 1).is_clear());  // one seed says nothing of that
  }

  TEST_CASE("a sentence says which way ours points") {
    CHECK(sentence_of(verdict(2, 1.24, 0.4), 1) ==
          "A against B: +2.0 in the paper, +1.2 \u00b1 0.4 here: the same way.");
    CHECK(sentence_of(verdict(2, -1.24, 0.4), 1) ==
          "A against B: +2.0 in the paper, \u22121.2 \u00b1 0.4 here: the other way.");
    CHECK(sentence_of(verdict(2, -0.7, 0.4), 1) ==
          "A against B: +2.0 in the paper, \u22120.7 \u00b1 0.4 here: the other way, within the "
          "noise of the seeds.");
    CHECK(sentence_of(verdict(unknown, 0.7, 0.4), 1) ==
          "A against B: more in the paper, +0.7 \u00b1 0.4 here: the same way, within the noise of "
          "the seeds.");
    CHECK(sentence_of(verdict(2, -1.24, unknown), 2) ==
          "A against B: +2.0 in the paper, \u22121.24 here: the other way, with one seed.");
    CHECK(sentence_of(verdict(2, 0, 0.4), 1) ==
          "A against B: +2.0 in the paper, 0.0 \u00b1 0.4 here: no difference.");
    CHECK(signed_text(-0.04, 1) == "0.0");
  }

  TEST_CASE("the table, its comparisons and results.json have the numbers of the runs") {
    const PaperTable table = small_table();
    const auto finished = small_runs(table, 0.5, 0.7513);
    const PaperResult result = result_of(table, 2, finished);
    REQUIRE(result.verdicts.size() == 1);
    CHECK(sentence_of(result.verdicts[0], 1) ==
          "wide against deep: +2.0 in the paper, \u221225.1 \u00b1 1.4 here: the other way.");
    CHECK(table_of(result).find("<td>50.0 \u00b1 1.4</td>") != std::string::npos);
    const VerdictCount count =
        count_verdicts({result, result_of(table, 2, small_runs(table, 1, 0))});
    CHECK(count.same == 1);
    CHECK(count.other == 1);
    CHECK(count.unclear == 0);

    const Json json = Json::parse(results_json({result}, 2, true), "results.json");
    CHECK(json.at("quick").boolean());
    CHECK(json.at("seeds").integer() == 2);
    const Json& x = json.at("tables").items().at(0);
    CHECK(x.at("title").string() == "A < B");
    const Json& wide = x.at("rows").items().at(0);
    CHECK(wide.at("accuracy").items().at(1).number() == 0.5 + 0.01);
    CHECK(wide.at("accuracy_mean").number() == statistics_of({0.5 - 0.01, 0.5 + 0.01}).mean);
    CHECK(wide.at("accuracy_deviation").number() ==
          statistics_of({0.5 - 0.01, 0.5 + 0.01}).deviation);
    CHECK(wide.at("paper").number() == 79.5);
    CHECK(wide.at("seconds_mean").number() == 3);
    CHECK(x.at("rows").items().at(2).at("accuracy_mean").number() == 0.25);
    const Json& claim = x.at("claims").items().at(0);
    CHECK(claim.at("ours").number() == result.verdicts[0].ours);
    CHECK(claim.at("standard_error").number() == result.verdicts[0].error);
    CHECK(!claim.at("is_same_way").boolean());
    CHECK(claim.at("sentence").string() == sentence_of(result.verdicts[0], 1));
  }

  TEST_CASE("a figure from memory is marked in table, chart, page and results.json") {
    PaperTable table = small_table();
    const auto result = [&] { return result_of(table, 2, small_runs(table, 0.5, 0.75)); };
    const auto has = [](const std::string& text, const std::string& part) {
      return text.find(part) != std::string::npos;
    };
    CHECK(has(table_of(result()), "<td>77.5</td><td>305M</td>"));
    CHECK(!has(chart_of(result()), "recalled"));
    CHECK(!has(verdicts_of(result()), "question mark"));
    CHECK(has(row_json(table.rows[1], {}), "\"paper\": 77.5, \"paper_is_recalled\": false, "
                                           "\"paper_parameters\": \"305M\""));
    table.rows[1].paper.is_recalled = true;
    CHECK(has(table_of(result()), "<td>77.5\u202f?</td><td>305M</td>"));
    CHECK(has(table_of(result()), "<td>79.5</td>"));
    CHECK(has(chart_of(result()), "class=\"mean recalled ink s1\""));
    CHECK(has(chart_of(result()), "deep: 77.50\u202f?"));
    CHECK(has(verdicts_of(result()), "question mark"));
    CHECK(has(row_json(table.rows[1], {}), "\"paper\": 77.5, \"paper_is_recalled\": true"));
    table.rows[1].paper = {unknown, "9M", true, "NaN"};
    CHECK(has(table_of(result()), "<td class=\"words\">NaN\u202f?</td><td>9M</td>"));
    CHECK(!has(chart_of(result()), "recalled"));
    CHECK(has(row_json(table.rows[1], {}), "\"paper_words\": \"NaN\", "
                                           "\"paper_is_recalled\": true"));
  }

  TEST_CASE("what a table lacks is named") {
    PaperTable table = small_table();
    CHECK(error_of([&] { result_of(table, 3, small_runs(table, 0.5, 0.75)); }) ==
          "widenet: paper: wide, seed 2, must be finished; got no such run");
    table.claims[0].less = "deeper";
    CHECK(error_of([&] { result_of(table, 2, small_runs(table, 0.5, 0.75)); }) ==
          "widenet: paper: table (x) must have a row \"deeper\"; got none");
    CHECK(cell_text({unknown, 0.5}, {"", ""}) == "diverged");
    CHECK(cell_text({0.5}, {"", ""}) == "50.0");
  }

  TEST_CASE("the page holds every experiment, and escapes its text") {
    const auto data = paper_data("data/digits", false);
    PaperBudget budget;
    CHECK(budget.seeds == 5);
    budget.seeds = 2;
    const std::vector<PaperTable> tables = paper_tables(budget, data);
    const auto finished = made_up(tables, 2);
    std::vector<PaperResult> results;
    std::string ids;
    for (const PaperTable& table : tables) {
      std::set<std::string> names;
      for (const PaperRow& row : table.rows) names.insert(row.name);
      CHECK(names.size() == table.rows.size());
      ids += table.id;
      results.push_back(result_of(table, 2, finished));
    }
    CHECK(ids == "abcdefg");
    std::set<std::string> recalled;
    std::map<std::string, std::string> sure;
    for (const PaperTable& table : tables)
      for (const PaperRow& row : table.rows) {
        if (row.paper.is_recalled) recalled.insert(row.name);
        else if (!row.paper.text().empty()) sure[row.name] = row.paper.text();
      }
    CHECK(recalled == std::set<std::string>{
              "shared norms, small", "shared norms, medium", "shared norms, large",
              "no experts, small", "no experts, medium", "no experts, large", "no sharing, small",
              "no sharing, medium", "ViT, shared", "ViT, shared, wider"});
    CHECK(sure == std::map<std::string, std::string>{
              {"ViT small", "78.6"}, {"ViT medium", "77.5"}, {"ViT-MoE small", "77.9"},
              {"ViT-MoE medium", "77.4"}, {"WideNet small", "77.5"}, {"WideNet medium", "79.5"},
              {"WideNet large", "80.1"}, {"WideNet, half as deep", "78.2"},
              {"no sharing, large", "out of memory"}, {"ALBERT-like", "84.0"},
              {"BERT-like", "85.0"}, {"WideNet, 4 experts", "84.7"},
              {"WideNet, 8 experts", "85.2"}, {"WideNet, 16 experts", "85.8"}});
    for (const PaperTable& table : tables)
      for (const PaperClaim& claim : table.claims) {
        if (!std::isfinite(claim.paper)) continue;
        INFO(table.id, ": ", claim.more, " against ", claim.less);
        const PaperFigure more = table.rows[row_named(table, claim.more)].paper;
        const PaperFigure less = table.rows[row_named(table, claim.less)].paper;
        CHECK(!more.is_recalled);  // what is from memory is compared in words only
        CHECK(!less.is_recalled);
        CHECK(fixed(more.value - less.value, 1) == fixed(claim.paper, 1));
      }
    // Table (b) says how its words are hidden.
    CHECK(tables[1].about.find("30 % of the words are hidden, each by itself") !=
          std::string::npos);
    CHECK(tables[1].rows[0].setting.text.find("\"hidden\": 0.3, \"longest_span\": 1") !=
          std::string::npos);
    results[1].remarks = language_remarks(results[1]);
    results[0].table.about = "A & B";
    const std::string html = report_html(paper_report(budget, results, finished));
    CHECK(html.find("A &amp; B") != std::string::npos);
    CHECK(html.find("A & B") == std::string::npos);
    CHECK(html.find("in the paper, ") != std::string::npos);
    CHECK(html.find("the other way") != std::string::npos);
    CHECK(html.find("Pre-training changes") != std::string::npos);
    CHECK(html.find(">nan") == std::string::npos);
    // 28 settings, each with 2 seeds, of 2 seconds each.
    CHECK(html.find("<dt>trainings</dt><dd>56</dd>") != std::string::npos);
    CHECK(html.find("<dt>processor time</dt><dd>1:52</dd>") != std::string::npos);
    for (const std::string id : {"a", "b", "c", "d", "e", "f", "g"})
      CHECK(html.find("<h2>(" + id + ") ") != std::string::npos);
    // Runs that tables share are run once: 23 settings of digits and 5 of sentences.
    std::set<std::string> keys;
    for (const PaperRun& run : runs_of(tables, 1)) keys.insert(run.key());
    CHECK(keys.size() == 28);
  }

  TEST_CASE("remarks on language follow the numbers") {
    PaperResult result;
    result.table.rows = {{"model", setting("{}")}, {"guess"}};
    result.rows = {{{"accuracy", {0.70, 0.72}}, {"unread_accuracy", {0.60, 0.61}}},
                   {{"accuracy", {0.5}}}};
    const auto remarks = [&] { return language_remarks(result); };
    CHECK(remarks()[0] == "Counting: the best baseline, guess, has 50.0 %; the lowest model, "
                          "model, has 71.0 %, 21.0 points more.");
    CHECK(remarks()[1] == "Pre-training changes accuracy by +10.5 \u00b1 0.5 points, the mean over "
                          "models and seeds: it helps.");
    result.rows[0]["unread_accuracy"] = {0.80, 0.81};
    CHECK(remarks()[1].find("\u22129.5 \u00b1 0.5 points") != std::string::npos);
    CHECK(remarks()[1].find("it harms.") != std::string::npos);
    result.rows[0]["unread_accuracy"] = {0.62, 0.70};  // 5 points with an error of 3
    CHECK(remarks()[1].find("it is not shown to help.") != std::string::npos);
    result.rows[1]["accuracy"] = {0.9};
    CHECK(remarks()[0].find("no more than that.") != std::string::npos);
  }

  TEST_CASE("trainings learn, and measure the same bits again") {
    const LabelledImages digits = load_images("data/digits", "train").slice(0, 200);
    VisionConfig config = paper_widenet(0);
    const auto train = [&](Index steps) {
      const Stage stage{steps, 16, 1e-2, 0.05, Schedule::Decay::cosine};
      Measured m = train_on_digits(config, stage, digits, digits, 1);
      m.erase("seconds");
      return m;
    };
    const Measured once = train(40);
    CHECK(once == train(40));
    CHECK(once.at("training_loss") < train(1).at("training_loss"));
    CHECK(once.at("ffn_gamma_matched") > 0);

    const LanguageData data = language_data(60, toy_examples(40, Rng(1)), toy_examples(20, Rng(2)));
    const LanguageConfig language = paper_language(LanguageConfig::widenet_albert(4), data);
    const auto read = [&](Index steps) {
      const LanguageStages stages{{steps, 8, 6e-3}, {2, 8, 1e-3}, {2, 8, 1e-3}};
      Measured m = train_on_sentences(language, stages, data, 1);
      m.erase("seconds");
      return m;
    };
    const Measured few = read(2);
    CHECK(few == read(2));
    CHECK(few.count("accuracy") + few.count("unread_accuracy") + few.count("word_accuracy") == 3);
    CHECK(read(30).at("reading_loss") < few.at("reading_loss") - 0.5);
  }
}
