// Tests for examples/support: files of digits, progress, metrics and the report.
#include "examples/support/idx.hpp"
#include "examples/support/progress.hpp"
#include "examples/support/report.hpp"

#include <doctest/doctest.h>

#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>

using namespace widenet;
using namespace widenet::support;

namespace {

/// A folder that goes when the test ends.
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               ("widenet_test_support_" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string write(const std::string& name, const std::vector<int>& bytes) const {
    std::ofstream file(path / name, std::ios::binary);
    for (const int byte : bytes) file.put(static_cast<char>(byte));
    return (path / name).string();
  }
  std::string read(const std::string& name) const {
    std::ifstream file(path / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
};

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// Two images of 2 x 3 and their labels.
const std::vector<int> tiny_images = {0, 0, 8, 3, 0, 0, 0, 2, 0,  0, 0, 2,   0,   0,
                                      0, 3, 1, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, 255};
const std::vector<int> tiny_labels = {0, 0, 8, 1, 0, 0, 0, 2, 7, 9};

std::vector<int> with(std::vector<int> bytes, std::size_t i, const std::vector<int>& replacement) {
  std::copy(replacement.begin(), replacement.end(),
            bytes.begin() + static_cast<std::ptrdiff_t>(i));
  return bytes;
}

std::vector<int> prefix(const std::vector<int>& bytes, std::size_t n) {
  return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n)};
}

// What read_idx says about two files, with the folder cut out.
std::string idx_error(const std::vector<int>& images, const std::vector<int>& labels,
                      Index num_classes = 10) {
  const Folder folder;
  const std::string i = folder.write("images", images), l = folder.write("labels", labels);
  std::string error = error_of([&] { read_idx(i, l, num_classes); });
  const std::string cut = folder.path.string() + "/";
  const std::size_t at = error.find(cut);
  return at == std::string::npos ? error : error.erase(at, cut.size());
}

}  // namespace

TEST_SUITE("support: idx") {
  TEST_CASE("reads images and labels") {
    const Folder folder;
    const IdxData data =
        read_idx(folder.write("images", tiny_images), folder.write("labels", tiny_labels), 10);
    CHECK(data.count == 2);
    CHECK(data.rows == 2);
    CHECK(data.columns == 3);
    CHECK(data.images == std::vector<std::uint8_t>{1, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, 255});
    CHECK(data.labels == std::vector<int>{7, 9});
  }

  TEST_CASE("reads the digits of data/digits") {
    const auto root = std::filesystem::path(__FILE__).parent_path().parent_path();
    const std::string folder = (root / "data" / "digits").string() + "/";
    const auto read = [&](const std::string& part) {
      return read_idx(folder + part + "-images-idx3-ubyte", folder + part + "-labels-idx1-ubyte",
                      10);
    };
    const IdxData train = read("train"), test = read("test");
    CHECK(train.count == 1437);
    CHECK(test.count == 360);
    for (const IdxData* data : {&train, &test}) {
      CHECK(data->rows == 8);
      CHECK(data->columns == 8);
      CHECK(*std::max_element(data->images.begin(), data->images.end()) == 16);
      CHECK(*std::max_element(data->labels.begin(), data->labels.end()) == 9);
    }
    CHECK(std::count(train.labels.begin(), train.labels.end(), 3) == 157);  // of 183
    CHECK(std::count(test.labels.begin(), test.labels.end(), 3) == 26);
    const std::vector<std::uint8_t> row(test.images.begin(), test.images.begin() + 8);
    CHECK(row == std::vector<std::uint8_t>{0, 0, 7, 13, 16, 5, 0, 0});  // the top of a 3
    CHECK(test.labels[0] == 3);
  }

  TEST_CASE("data/make_digits.py permutes as the header does") {
    const std::vector<Index> order = permutation(1797, Rng(0));
    const std::vector<Index> first(order.begin(), order.begin() + 8);
    CHECK(first == std::vector<Index>{1719, 1311, 1228, 1085, 1534, 1744, 568, 1208});  // Python's
  }

  TEST_CASE("names a file that is missing, or is none") {
    const Folder folder;
    const std::string labels = folder.write("labels", tiny_labels);
    const std::string missing = (folder.path / "none").string();
    CHECK(error_of([&] { read_idx(missing, labels, 10); }) ==
          "widenet: read_idx: " + missing + ": must be a file; got: No such file or directory");
    CHECK(error_of([&] { read_idx(folder.path.string(), labels, 10); }) ==
          "widenet: read_idx: " + folder.path.string() + ": must be a file; got: Is a directory");
  }

  TEST_CASE("refuses a wrong magic number") {
    CHECK(idx_error(tiny_labels, tiny_labels) ==
          "widenet: read_idx: images: at byte 0: the magic number must be 0x00000803, unsigned "
          "bytes with 3 extents; got 0x00000801");
    CHECK(idx_error(tiny_images, tiny_images) ==
          "widenet: read_idx: labels: at byte 0: the magic number must be 0x00000801, unsigned "
          "bytes with 1 extents; got 0x00000803");
    CHECK(idx_error(with(tiny_images, 2, {0x0D}), tiny_labels) ==  // floats
          "widenet: read_idx: images: at byte 0: the magic number must be 0x00000803, unsigned "
          "bytes with 3 extents; got 0x00000D03");
    CHECK(idx_error(with(tiny_images, 0, {0x1F, 0x8B}), tiny_labels) ==
          "widenet: read_idx: images: at byte 0: the magic number must be 0x00000803, unsigned "
          "bytes with 3 extents; got 0x1F8B0803; hint: the file is compressed, gunzip it");
  }

  TEST_CASE("refuses every truncation, and trailing bytes") {
    CHECK(idx_error({}, tiny_labels) ==
          "widenet: read_idx: images: at byte 0: the header must have 16 bytes; got the end of "
          "the file");
    CHECK(idx_error(prefix(tiny_images, 15), tiny_labels) ==
          "widenet: read_idx: images: at byte 15: the header must have 16 bytes; got the end of "
          "the file");
    CHECK(idx_error(prefix(tiny_images, 27), tiny_labels) ==
          "widenet: read_idx: images: at byte 4: the extents must multiply to the 11 bytes from "
          "byte 16 to the end of the file; got 2 x 2 x 3");
    CHECK(idx_error(prefix(tiny_images, 22), tiny_labels) ==  // one whole image
          "widenet: read_idx: images: at byte 4: the extents must multiply to the 6 bytes from "
          "byte 16 to the end of the file; got 2 x 2 x 3");
    for (std::size_t n = 0; n < tiny_images.size(); ++n)
      CHECK(idx_error(prefix(tiny_images, n), tiny_labels) != "no error");
    for (std::size_t n = 0; n < tiny_labels.size(); ++n)
      CHECK(idx_error(tiny_images, prefix(tiny_labels, n)) != "no error");

    std::vector<int> longer = tiny_images;
    longer.push_back(0);
    CHECK(idx_error(longer, tiny_labels) ==
          "widenet: read_idx: images: at byte 4: the extents must multiply to the 13 bytes from "
          "byte 16 to the end of the file; got 2 x 2 x 3");
    longer = tiny_labels;
    longer.push_back(0);
    CHECK(idx_error(tiny_images, longer) ==
          "widenet: read_idx: labels: at byte 4: the extents must multiply to the 3 bytes from "
          "byte 8 to the end of the file; got 2");
  }

  TEST_CASE("refuses extents that overflow or are zero") {
    // 2^32 - 1 cubed, which has 96 bits.
    CHECK(idx_error(with(tiny_images, 4, std::vector<int>(12, 255)), tiny_labels) ==
          "widenet: read_idx: images: at byte 4: the extents must multiply to the 12 bytes from "
          "byte 16 to the end of the file; got 4294967295 x 4294967295 x 4294967295");
    // 2^31 * 2^31 * 4 = 2^64, which is 0 in 64 bits, as is the size of no values.
    const std::vector<int> powers = {128, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 4};
    CHECK(idx_error(prefix(with(tiny_images, 4, powers), 16), tiny_labels) ==
          "widenet: read_idx: images: at byte 4: the extents must multiply to the 0 bytes from "
          "byte 16 to the end of the file; got 2147483648 x 2147483648 x 4");
    CHECK(idx_error(with(tiny_images, 8, {0, 0, 0, 0}), tiny_labels) ==
          "widenet: read_idx: images: at byte 8: an extent must be at least 1; got 0");
  }

  TEST_CASE("refuses labels that do not fit the images or the classes") {
    CHECK(idx_error(tiny_images, {0, 0, 8, 1, 0, 0, 0, 3, 7, 9, 1}) ==
          "widenet: read_idx: labels: at byte 4: there must be 2 labels, one per image; got 3");
    CHECK(idx_error(tiny_images, tiny_labels, 9) ==
          "widenet: read_idx: labels: at byte 9: a label must be below the 9 classes; got 9");
    CHECK(idx_error(tiny_images, with(tiny_labels, 8, {255})) ==
          "widenet: read_idx: labels: at byte 8: a label must be below the 10 classes; got 255");
  }
}

TEST_SUITE("support: progress") {
  TEST_CASE("formats times") {
    CHECK(clock_text(0) == "0:00");
    CHECK(clock_text(42.4) == "0:42");
    CHECK(clock_text(59.6) == "1:00");
    CHECK(clock_text(725) == "12:05");
    CHECK(clock_text(3599.7) == "1:00:00");
    CHECK(clock_text(11222) == "3:07:02");
    CHECK(clock_text(-1) == "-:--");
    CHECK(clock_text(std::nan("")) == "-:--");
    CHECK(clock_text(INFINITY) == "-:--");
  }

  TEST_CASE("formats a line of at most 80 columns") {
    const std::string text = progress_text({7, 1500, 2.30259, 4.016, 0.1042, 85123, 42});
    CHECK(text ==
          "step    7/1500  loss 2.303  balance 4.02  dropped 10.4%  85k tokens/s  0:42 left");
    CHECK(text.size() <= 80);
    CHECK(progress_text({1, 9, std::nan(""), 1, 0, 9999, INFINITY}) ==
          "step 1/9  loss nan  balance 1.00  dropped  0.0%  9999 tokens/s  -:-- left");
  }

  TEST_CASE("prints a plain line every five seconds, and the last") {
    std::ostringstream out;
    {
      ProgressLine line(/*first_step=*/100, /*num_steps=*/110, out, /*is_terminal=*/false);
      for (Index step = 101; step <= 110; ++step)
        line.update(step, 1, 2, 0, /*tokens=*/300, /*seconds=*/static_cast<double>(step - 100));
    }
    CHECK(out.str() ==
          "step 101/110  loss 1.000  balance 2.00  dropped  0.0%  300 tokens/s  0:09 left\n"
          "step 106/110  loss 1.000  balance 2.00  dropped  0.0%  300 tokens/s  0:04 left\n"
          "step 110/110  loss 1.000  balance 2.00  dropped  0.0%  300 tokens/s  0:00 left\n");
  }

  TEST_CASE("rewrites one line on a terminal") {
    std::ostringstream out;
    {
      ProgressLine line(0, 3, out, /*is_terminal=*/true);
      line.update(1, 1, 2, 0, 10, 1.00);
      line.update(2, 1, 2, 0, 10, 1.05);  // too soon
      line.note("epoch 1: 97 %");
      line.update(3, 1, 2, 0, 10, 1.06);  // the last one always
    }
    CHECK(out.str() ==
          "\r\x1b[?7lstep 1/3  loss 1.000  balance 2.00  dropped  0.0%  10 tokens/s  0:02 left"
          "\x1b[K\x1b[?7h"
          "\r\x1b[Kepoch 1: 97 %\n"
          "\r\x1b[?7lstep 3/3  loss 1.000  balance 2.00  dropped  0.0%  28 tokens/s  0:00 left"
          "\x1b[K\x1b[?7h\n");
  }

  TEST_CASE("the first Ctrl-C sets a flag, the second kills") {
    {
      const Interrupt interrupt;
      CHECK(!interrupt.requested());
      std::raise(SIGINT);
      CHECK(interrupt.requested());
    }
    const Interrupt again;
    CHECK(!again.requested());
    const pid_t child = fork();
    if (child == 0) {
      std::raise(SIGINT);
      std::raise(SIGINT);
      _exit(0);  // not reached
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == SIGINT);
  }
}

TEST_SUITE("support: metrics") {
  TEST_CASE("numbers are short and read back as the same bits") {
    CHECK(json(0.1) == "0.1");
    CHECK(json(0.1f) == "0.1");
    CHECK(json(3.0) == "3");
    CHECK(json(-0.0) == "-0");
    CHECK(json(1e22) == "1e+22");
    CHECK(json(7) == "7");
    CHECK(json(true) == "true");
    CHECK(json(std::numeric_limits<std::int64_t>::min()) == "-9223372036854775808");
    const double odd[] = {1.0 / 3, 0.1 + 0.2, 5e-324, 2.2250738585072014e-308,
                          1.7976931348623157e308};
    for (const double x : odd) CHECK(std::strtod(json(x).c_str(), nullptr) == x);
    const float odd_floats[] = {1.0f / 3, 16777217.0f, 1e-45f, 3.4028235e38f};
    for (const float x : odd_floats) CHECK(std::strtof(json(x).c_str(), nullptr) == x);
  }

  TEST_CASE("what JSON cannot say is null or escaped") {
    CHECK(json(std::nan("")) == "null");
    CHECK(json(INFINITY) == "null");
    CHECK(json(-std::numeric_limits<double>::infinity()) == "null");
    CHECK(json("a\"b\\c\n\x01") == "\"a\\\"b\\\\c\\u000a\\u0001\"");
    CHECK(json(std::vector<double>{1, std::nan(""), 0.5}) == "[1, null, 0.5]");
    CHECK(json(std::vector<std::vector<int>>{{1, 2}, {}}) == "[[1, 2], []]");
  }

  TEST_CASE("one object per line; a continued run appends") {
    const Folder folder;
    const std::string path = (folder.path / "metrics.jsonl").string();
    for (const bool is_continued : {false, true}) {
      JsonLinesFile file(path, is_continued);
      file.write(JsonLine().add("step", is_continued ? 2 : 1).add("loss", 0.25));
    }
    CHECK(folder.read("metrics.jsonl") ==
          "{\"step\": 1, \"loss\": 0.25}\n{\"step\": 2, \"loss\": 0.25}\n");
    { JsonLinesFile(path, false).write(JsonLine().add("load", std::vector<float>{0.5f, 0.5f})); }
    CHECK(folder.read("metrics.jsonl") == "{\"load\": [0.5, 0.5]}\n");

    const std::string impossible = (folder.path / "none" / "metrics.jsonl").string();
    CHECK(error_of([&] { JsonLinesFile(impossible, false); }) ==
          "widenet: metrics: " + impossible + ": must be writable; got: not opened");
    if (std::filesystem::exists("/dev/full"))
      CHECK(error_of([] { JsonLinesFile("/dev/full", true).write(JsonLine().add("step", 1)); }) ==
            "widenet: metrics: /dev/full: the disk must take every line; got: a failed write");
  }
}

namespace {

Report small_report() {
  Report report;
  report.title = "A <b>title</b> & \"more\"";
  report.subtitle = "<script>alert(1)</script>";
  report.summary = {{"Test <accuracy>", "98 %"}};
  report.configuration = {{"path", "a<b>&c"}};
  const LineChart loss{"Loss", "step", "loss",
                       {{"<train>", {1, 2, 3, 4}, {2, std::nan(""), 1.5, 1}, 0, true}}};
  const LineChart accuracy{"Accuracy", "step", "accuracy",
                           {{"validation", {2, 4}, {0.5, 0.975}},
                            {"training", {2, 4}, {0.5, 0.98}, 2}}, true};
  report.sections = {{"Curves & more", figure("Loss", "It falls.", "", line_chart(loss)) +
                                           figure("Accuracy", "", "", line_chart(accuracy))},
                     {"Empty", ""},
                     {"Bars", figure("Bars", "", "<i>x</i>",
                                     bar_chart("Bars", {"a", "b"}, {0.05, 0.0125}))}};
  return report;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t i = text.find(part); i != std::string::npos; i = text.find(part, i + 1)) ++n;
  return n;
}

/// The first tag that is not closed where it must be, or "" if all are.
std::string unbalanced_tag(const std::string& html) {
  std::vector<std::string> open;
  for (std::size_t i = html.find('<'); i != std::string::npos; i = html.find('<', i + 1)) {
    const std::size_t end = html.find('>', i);
    if (end == std::string::npos) return html.substr(i);
    const std::string tag = html.substr(i + 1, end - i - 1);
    if (count(tag, "<") > 0 || count(tag, "\"") % 2 == 1) return tag;
    const std::string name = tag.substr(0, tag.find_first_of(" \n"));
    if (name == "!DOCTYPE" || name == "meta" || name == "br" || tag.back() == '/') continue;
    if (name[0] != '/') open.push_back(name);
    else if (open.empty() || '/' + open.back() != name) return tag;
    else open.pop_back();
  }
  return open.empty() ? "" : open.back();
}

}  // namespace

TEST_SUITE("support: report") {
  TEST_CASE("numbers for people") {
    CHECK(grouped(1437) == "1,437");
    CHECK(grouped(-1234567.891, 2) == "-1,234,567.89");
    CHECK(grouped(999.6) == "1,000");
    CHECK(grouped(-100) == "-100");
    CHECK(grouped(std::nan("")) == "none");
    CHECK(percent(0.0213) == "2.1\u202f%");
    CHECK(percent(std::nan("")) == "none");
  }

  TEST_CASE("the page is well-formed and escapes its text") {
    const std::string html = report_html(small_report());
    CHECK(unbalanced_tag(html) == "");
    CHECK(count(html, "<h2>Curves &amp; more</h2>") == 1);
    CHECK(count(html, "<h1>A &lt;b&gt;title&lt;/b&gt; &amp; &quot;more&quot;</h1>") == 1);
    CHECK(count(html, "&lt;script&gt;alert(1)&lt;/script&gt;") == 1);
    CHECK(count(html, "Test &lt;accuracy&gt;") == 1);
    CHECK(count(html, "<dd>a&lt;b&gt;&amp;c</dd>") == 1);
    CHECK(count(html, ">&lt;train&gt;</text>") == 1);
    CHECK(unbalanced_tag("<p><b></p></b>") == "/p");
    CHECK(unbalanced_tag("<svg><rect></svg>") == "/svg");
    CHECK(unbalanced_tag("<p>") == "p");
    CHECK(unbalanced_tag("<p class=\"a></p>") != "");
  }

  TEST_CASE("the page loads nothing, and runs nothing but its own script") {
    const std::string html = report_html(small_report());
    for (const char* part : {"http://", "https://", "src=", "href=", "url(", "@import", "<link",
                             "onclick", "nan\"", "inf\"", "none\""})
      CHECK_MESSAGE(count(html, part) == 0, part);
    CHECK(count(html, "default-src 'none'") == 1);
    CHECK(count(html, std::string("script-src '") + script_digest + "'") == 1);
    CHECK(count(html, "<script>") == 1);
    CHECK(count(html, "<noscript>") == 1);
    CHECK(count(script(), "<") + count(script(), "&") == 0);  // or it would be no XML
  }

  TEST_CASE("every drawing has a name, a description and its numbers") {
    const std::string html = report_html(small_report());
    CHECK(count(html, "<svg ") == 3);
    CHECK(count(html, "role=\"img\" aria-label=\"") == 3);
    CHECK(count(html, "<desc>") == 3);
    CHECK(count(html, "<details>") == 3);
    CHECK(count(html, "validation goes from 50.0\u202f% to 97.5\u202f%.") == 2);
    CHECK(count(html, "<h3>Loss</h3><p>It falls.</p>") == 1);
    CHECK(count(html, "<p class=\"equation\"><i>x</i></p>") == 1);
  }

  TEST_CASE("a curve has its points where the axes say") {
    const Axis axis(0, 1, 0, 100, false);
    CHECK(svg_curve({0, 0.5, 1}, {1, 0.25, 0}, axis, axis) == "M0.0 100.0L50.0 25.0L100.0 0.0");
    CHECK(svg_curve({0, 0.25, 0.5, 1}, {1, INFINITY, 0, 1}, axis, axis) ==
          "M0.0 100.0M50.0 0.0L100.0 100.0");  // a gap
    std::vector<double> x, y;
    for (int i = 0; i < 5000; ++i) x.push_back(i / 5000.0), y.push_back(i % 2);
    const std::string path = svg_curve(x, y, axis, axis);
    CHECK(count(path, "L") < 400);  // means of several points each
    CHECK(path.substr(0, 9) == "M0.1 46.2");  // the mean of 13 points: 6 of them are 1
    const std::vector<double> means = running_mean({0, 1, std::nan(""), 5});
    CHECK(means[1] == 1);  // too few points to average
    CHECK(std::isnan(means[2]));
    CHECK(running_mean(y)[2500] == doctest::Approx(0.5).epsilon(0.01));
  }

  TEST_CASE("axes have round ticks") {
    CHECK(Axis(0.3, 2.2, 0, 100, true).ticks() == std::vector<double>{0, 0.5, 1, 1.5, 2, 2.5});
    CHECK(Axis(1, 1500, 0, 100, false).ticks() == std::vector<double>{500, 1000, 1500});
    CHECK(Axis(3, 3, 0, 100, true).at(3) == 50);
    CHECK(!std::signbit(Axis(0, 2, 0, 100, true).ticks()[0]));
    CHECK(Axis(0, 1, 0, 100, true).tick_text(0.5, true) == "50\u202f%");
    CHECK(Axis(0, 2000, 0, 100, true).tick_text(1500, false) == "1,500");
  }

  TEST_CASE("names at the ends of curves keep apart, inside the chart") {
    const auto drawing = [](std::vector<double> ends) {
      LineChart chart{"Three", "step", "y"};
      for (const double end : ends) chart.series.push_back({"s", {0, 1}, {1 - end, end}});
      return line_chart(chart);
    };
    const std::string low = drawing({0, 0.01, 0.02}), high = drawing({1, 0.99, 0.98});
    for (const char* y : {"109.00", "149.00", "189.00"})
      CHECK_MESSAGE(count(low, std::string("x=\"393.00\" y=\"") + y + "\"") == 1, y);
    for (const char* y : {"34.00", "74.00", "114.00"})
      CHECK_MESSAGE(count(high, std::string("x=\"393.00\" y=\"") + y + "\"") == 1, y);
  }

  TEST_CASE("a cell is as strong as it is told, within bounds") {
    const std::string svg = heat_map({"Map", "", "row", "column", {"a"}, {"0", "1", "2"},
                                      {{{"x", "above", 7}, {"y", "below", 0.5},
                                        {"z", "wrong", std::nan("")}}}});
    CHECK(count(svg, "class=\"above\" fill-opacity=\"0.90\"") == 1);
    CHECK(count(svg, "class=\"below\" fill-opacity=\"0.45\"") == 1);
    CHECK(count(svg, "class=\"wrong\" fill-opacity=\"0.00\"") == 1);
    CHECK(count(svg, "<title>row a, column 1: y</title>") == 1);
    CHECK(count(svg, "class=\"cover\">x<") == 1);  // light on dark
    CHECK(count(svg, "class=\"inside\">y<") == 1);
  }

  TEST_CASE("what is empty is left out") {
    const std::string html = report_html({});
    CHECK(unbalanced_tag(html) == "");
    CHECK(count(html, "<section") + count(html, "<figure") + count(html, "<dl") == 0);
    CHECK(count(report_html(small_report()), "<section") == 3);  // Settings is one
    CHECK(line_chart({"Loss", "step", "loss", {{"train", {1}, {std::nan("")}}}}) ==
          "<p class=\"empty\">No finite values.</p>");
  }

  TEST_CASE("names what does not fit together") {
    CHECK(error_of([] { line_chart({"Loss", "step", "loss", {{"train", {1, 2}, {1}}}}); }) ==
          "widenet: line_chart: x and y of \"train\" must be equally long; got 2, 1");
    CHECK(error_of([] {
            heat_map({"Map", "", "row", "column", {"a"}, {"0", "1"}, {{{"x", "above", 1}}}});
          }) == "widenet: heat_map: row 0 of \"Map\" must have 2 cells; got 1");
    CHECK(error_of([] { bar_chart("", {"a", "b"}, {1}); }) ==
          "widenet: bar_chart: there must be 2 fractions, one per name; got 1");
    const Folder folder;
    const std::string impossible = (folder.path / "none" / "report.html").string();
    CHECK(error_of([&] { write_report(impossible, {}); }) ==
          "widenet: write_report: " + impossible + ": must be writable; got: a failed write");
  }

  TEST_CASE("a file holds the page") {
    const Folder folder;
    write_report((folder.path / "report.html").string(), small_report());
    CHECK(folder.read("report.html") == report_html(small_report()));
  }
}
