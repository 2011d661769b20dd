// report.hpp - one self-contained HTML page about a training run, and the plots it is made of.
//
// The page loads nothing; its figures are SVG that this file draws, and all of it can be read
// without scripts: the only one saves figures as files. Colours come from the style sheet, so that
// one drawing serves light and dark. Every figure says in a sentence what to see, can be read aloud
// (title and description), and has its numbers in a table.
//
// Text is escaped here. Only arguments named ..._html hold markup.
//
// SPDX-License-Identifier: MIT

#ifndef WIDENET_EXAMPLES_SUPPORT_REPORT_HPP
#define WIDENET_EXAMPLES_SUPPORT_REPORT_HPP

#include "widenet.hpp"

#include <algorithm>  // clamp, max, min, sort
#include <cmath>      // ceil, floor, isfinite, isnan, log10, pow
#include <fstream>    // ofstream
#include <limits>     // numeric_limits
#include <locale>     // locale
#include <sstream>    // ostringstream
#include <string>     // string
#include <utility>    // pair
#include <vector>     // vector

namespace widenet::support {

// TEXT --------------------------------------------------------------------------------------------

inline std::string escape_html(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '&') result += "&amp;";
    else if (c == '<') result += "&lt;";
    else if (c == '>') result += "&gt;";
    else if (c == '"') result += "&quot;";
    else result += c;
  }
  return result;
}

/// A number with so many decimals; "none" if it is not finite.
inline std::string fixed(double value, int decimals) {
  if (!std::isfinite(value)) return "none";
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << std::fixed;
  out.precision(decimals);
  out << value;
  return out.str();
}
/// The same for people: "1,437.5".
inline std::string grouped(double value, int decimals = 0) {
  std::string text = fixed(value, decimals);
  if (!std::isfinite(value)) return text;
  const std::size_t first = text[0] == '-' ? 1 : 0;
  for (std::size_t i = std::min(text.size(), text.find('.')); i > first + 3;)
    text.insert(i -= 3, ",");
  return text;
}
inline std::string percent(double fraction, int decimals = 1) {
  const char* const unit = std::isfinite(fraction) ? "\u202f%" : "";  // after a thin space
  return fixed(100 * fraction, decimals) + unit;
}

/// An SVG text; `where` holds position, anchor and class.
inline std::string svg_text(double x, double y, const std::string& where, const std::string& text) {
  return "<text x=\"" + fixed(x, 2) + "\" y=\"" + fixed(y, 2) + "\" " + where + ">" +
         escape_html(text) + "</text>";
}
inline std::string svg_rect(double x, double y, double width, double height,
                            const std::string& attributes, const std::string& hint = "") {
  return "<rect x=\"" + fixed(x, 1) + "\" y=\"" + fixed(y, 1) + "\" width=\"" + fixed(width, 1) +
         "\" height=\"" + fixed(height, 1) + "\" " + attributes +
         (hint.empty() ? "/>" : "><title>" + escape_html(hint) + "</title></rect>");
}
inline std::string svg_begin(double width, double height, const std::string& title,
                             const std::string& description) {
  return "<svg viewBox=\"0 0 " + fixed(width, 0) + " " + fixed(height, 0) +
         "\" role=\"img\" aria-label=\"" + escape_html(title + ". " + description) + "\"><title>" +
         escape_html(title) + "</title><desc>" + escape_html(description) + "</desc>";
}

/// The numbers of a figure, folded away. The first row is the head, the first column names rows.
inline std::string number_table(const std::vector<std::vector<std::string>>& rows) {
  std::string html = "<details><summary>Numbers</summary><div class=\"scroll\"><table>";
  for (std::size_t r = 0; r < rows.size(); ++r) {
    html += r == 0 ? "<thead><tr>" : "<tr>";
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      const std::string cell = escape_html(rows[r][c]);
      if (r == 0) html += "<th scope=\"col\">" + cell + "</th>";
      else html += c == 0 ? "<th scope=\"row\">" + cell + "</th>" : "<td>" + cell + "</td>";
    }
    html += r == 0 ? "</tr></thead><tbody>" : "</tr>";
  }
  return html + "</tbody></table></div></details>";
}

/// A figure: heading, what to see, the equation if there is one, the drawing.
inline std::string figure(const std::string& heading, const std::string& sentence,
                          const std::string& equation_html, const std::string& drawing_html,
                          const std::string& classes = "") {
  return "<figure class=\"" + classes + "\"><figcaption><h3>" + escape_html(heading) + "</h3><p>" +
         escape_html(sentence) + "</p>" +
         (equation_html.empty() ? "" : "<p class=\"equation\">" + equation_html + "</p>") +
         "</figcaption>\n" + drawing_html + "</figure>\n";
}

// LINE CHART --------------------------------------------------------------------------------------

struct Series {
  std::string name = {};
  std::vector<double> x = {}, y = {};  // values that are not finite leave a gap
  int colour = 0;                      // 0 to 3
  bool is_noisy = false;               // drawn faint, with its running mean in bold
};

struct LineChart {
  std::string title, x_title, y_title;
  std::vector<Series> series = {};
  bool is_percent = false;
  double reference = std::numeric_limits<double>::quiet_NaN();  // a dashed horizontal line
  std::string reference_name = {};
};

/// A linear scale from values to pixels, with ticks at 1, 2 or 5 times a power of ten.
struct Axis {
  double low, high, from, to, step;

  /// A rounded axis starts and ends at a tick.
  Axis(double low_value, double high_value, double from_pixel, double to_pixel, bool is_rounded)
      : low(low_value), high(high_value), from(from_pixel), to(to_pixel) {
    if (!(high > low)) low -= 0.5, high += 0.5;
    const double rough = (high - low) / 4, power = std::pow(10, std::floor(std::log10(rough)));
    const double ratio = rough / power;
    step = power * (ratio > 5 ? 10 : ratio > 2 ? 5 : ratio > 1 ? 2 : 1);
    if (is_rounded) low = std::floor(low / step) * step, high = std::ceil(high / step) * step;
  }
  double at(double value) const { return from + (value - low) / (high - low) * (to - from); }
  std::vector<double> ticks() const {
    std::vector<double> values;
    for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i)
      values.push_back(i * step + 0.0);  // -0 + 0 is 0
    return values;
  }
  std::string tick_text(double value, bool is_percent) const {
    const double unit = is_percent ? 100 * step : step;
    const int decimals = static_cast<int>(std::max(0.0, -std::floor(std::log10(unit) + 1e-9)));
    return is_percent ? percent(value, decimals) : grouped(value, decimals);
  }
};

/// The mean of the finite y around each point, over at most a twentieth of all points.
inline std::vector<double> running_mean(const std::vector<double>& y) {
  const std::size_t n = y.size(), reach = n / 40;
  std::vector<double> means;
  for (std::size_t i = 0; i < n; ++i) {
    double sum = 0, count = 0;
    for (std::size_t j = i - std::min(i, reach); j < std::min(n, i + reach + 1); ++j)
      if (std::isfinite(y[j])) sum += y[j], ++count;
    means.push_back(sum / count);  // NaN if there are none
  }
  return means;
}

/// The points of a curve. Of more than 400, each point drawn is the mean of several.
inline std::string svg_curve(const std::vector<double>& x, const std::vector<double>& y,
                             const Axis& x_axis, const Axis& y_axis) {
  const std::size_t n = x.size(), group = n / 400 + 1;
  std::string path;
  bool is_pen_down = false;
  for (std::size_t begin = 0; begin < n; begin += group) {
    const std::size_t end = std::min(n, begin + group);
    double sum_x = 0, sum_y = 0;
    for (std::size_t i = begin; i < end; ++i) sum_x += x[i], sum_y += y[i];
    const double count = static_cast<double>(end - begin);
    const bool is_finite = std::isfinite(sum_x) && std::isfinite(sum_y);
    if (is_finite)
      path += (is_pen_down ? "L" : "M") + fixed(x_axis.at(sum_x / count), 1) + " " +
              fixed(y_axis.at(sum_y / count), 1);
    is_pen_down = is_finite;
  }
  return path;
}

/// Curves with their names at their ends.
inline std::string line_chart(const LineChart& chart) {
  constexpr double width = 480, height = 250, left = 52, right = 384, top = 34, bottom = 206;
  constexpr double infinity = std::numeric_limits<double>::infinity();
  double x_low = infinity, x_high = -infinity, y_low = infinity, y_high = -infinity;
  const auto extend = [](double value, double& low, double& high) {
    if (std::isfinite(value)) low = std::min(low, value), high = std::max(high, value);
  };
  for (const Series& s : chart.series) {
    require<ShapeError>(s.x.size() == s.y.size(), "line_chart: x and y of \"", s.name,
                        "\" must be equally long; got ", s.x.size(), ", ", s.y.size());
    for (const double x : s.x) extend(x, x_low, x_high);
    for (const double y : s.y) extend(y, y_low, y_high);
  }
  const double margin = 0.06 * std::max(0.0, y_high - y_low);  // room for the reference's name
  extend(chart.reference - margin, y_low, y_high);
  extend(chart.reference, y_low, y_high);
  if (!(x_low <= x_high && y_low <= y_high)) return "<p class=\"empty\">No finite values.</p>";
  const Axis x_axis(x_low, x_high, left, right, false), y_axis(y_low, y_high, bottom, top, true);

  std::string drawing = svg_text(left - 8, top - 18, "text-anchor=\"start\" class=\"quiet\"",
                                 chart.y_title);
  for (const double y : y_axis.ticks())
    drawing += svg_rect(left, y_axis.at(y) - 0.5, right - left, 1, "class=\"grid\"") +
               svg_text(left - 8, y_axis.at(y) + 4.5, "text-anchor=\"end\" class=\"quiet\"",
                        y_axis.tick_text(y, chart.is_percent));
  for (const double x : x_axis.ticks())
    drawing += svg_text(x_axis.at(x), bottom + 20, "text-anchor=\"middle\" class=\"quiet\"",
                        x_axis.tick_text(x, false));
  drawing += svg_text((left + right) / 2, bottom + 40, "text-anchor=\"middle\" class=\"quiet\"",
                      chart.x_title);
  if (std::isfinite(chart.reference)) {
    const double y = y_axis.at(chart.reference);
    drawing += "<path class=\"reference\" d=\"M" + fixed(left, 1) + " " + fixed(y, 1) + "H" +
               fixed(right, 1) + "\"/>" +
               svg_text(right, y + 15, "text-anchor=\"end\" class=\"quiet halo\"",
                        chart.reference_name);
  }

  struct Label { double y; std::string name, value; int colour; };
  std::vector<Label> labels;
  std::string description;
  std::vector<std::vector<std::string>> table = {{chart.x_title}};
  const int decimals = chart.is_percent ? 1 : y_axis.step < 0.02 ? 4 : 3;
  const auto value_text = [&](double value) {
    return chart.is_percent ? percent(value, decimals) : grouped(value, decimals);
  };
  for (const Series& s : chart.series) {
    const std::vector<double> bold = s.is_noisy ? running_mean(s.y) : s.y;
    const std::string colour = " s" + std::to_string(s.colour);
    const std::string begin = "<path class=\"curve" + colour;
    if (s.is_noisy)
      drawing += begin + " faint\" d=\"" + svg_curve(s.x, s.y, x_axis, y_axis) + "\"/>";
    drawing += begin + "\" d=\"" + svg_curve(s.x, bold, x_axis, y_axis) + "\"/>";
    std::size_t first = 0, last = bold.size();
    while (last > 0 && !std::isfinite(bold[last - 1])) --last;
    while (first < last && !std::isfinite(bold[first])) ++first;
    if (first == last) continue;
    labels.push_back({y_axis.at(bold[last - 1]), s.name, value_text(bold[last - 1]), s.colour});
    description += s.name + " goes from " + value_text(bold[first]) + " to " +
                   value_text(bold[last - 1]) + ". ";
  }

  std::sort(labels.begin(), labels.end(), [](auto& a, auto& b) { return a.y < b.y; });
  constexpr double spacing = 40;  // two lines of text on a phone
  for (std::size_t i = 1; i < labels.size(); ++i)
    labels[i].y = std::max(labels[i].y, labels[i - 1].y + spacing);
  for (std::size_t i = labels.size(); i-- > 0;) {  // and back up, where they ran out of the chart
    const double limit = i + 1 == labels.size() ? bottom - 17 : labels[i + 1].y - spacing;
    labels[i].y = std::min(labels[i].y, limit);
  }
  for (const Label& label : labels) {
    const std::string colour = "class=\"ink s" + std::to_string(label.colour) + "\"";
    drawing += svg_text(right + 9, label.y, colour, label.name) +
               svg_text(right + 9, label.y + 17, "class=\"ink s" + std::to_string(label.colour) +
                        " strong\"", label.value);
  }

  // Ten rows of the longest series; the others at their points nearest before.
  std::size_t longest = 0;
  for (std::size_t i = 0; i < chart.series.size(); ++i) {
    table[0].push_back(chart.series[i].name);
    if (chart.series[i].x.size() > chart.series[longest].x.size()) longest = i;
  }
  const std::vector<double>& steps = chart.series[longest].x;
  const std::size_t num_rows = std::min<std::size_t>(10, steps.size());
  for (std::size_t row = 1; row <= num_rows; ++row) {
    const double step = steps[row * steps.size() / num_rows - 1];
    table.push_back({grouped(step)});
    for (const Series& s : chart.series) {
      double value = std::numeric_limits<double>::quiet_NaN();
      for (std::size_t i = 0; i < s.x.size() && s.x[i] <= step; ++i) value = s.y[i];
      table.back().push_back(value_text(value));
    }
  }
  return svg_begin(width, height, chart.title, description) + drawing + "</svg>\n" +
         number_table(table);
}

// HEAT MAP AND BARS -------------------------------------------------------------------------------

struct Cell {
  std::string text;    // what stands in it
  std::string colour;  // "above", "below" or "wrong"
  double strength;     // 0 transparent to 1 full
};

struct HeatMap {
  std::string title, description, row_title, column_title;
  std::vector<std::string> rows, columns;
  std::vector<std::vector<Cell>> cells;
};

inline std::string heat_map(const HeatMap& map) {
  require<ShapeError>(map.cells.size() == map.rows.size(), "heat_map: \"", map.title,
                      "\" must have ", map.rows.size(), " rows; got ", map.cells.size());
  const double left = 64, top = 44, columns = static_cast<double>(map.columns.size());
  const double cell_width = std::min(64.0, (480 - left) / std::max(1.0, columns));
  const double cell_height = std::clamp(cell_width, 30.0, 40.0);
  const double height = top + cell_height * static_cast<double>(map.rows.size()) + 2;
  const bool has_text = cell_width >= 36;
  std::string drawing = svg_text(left, 14, "class=\"quiet\"", map.column_title) +
                        svg_text(left - 10, 14, "text-anchor=\"end\" class=\"quiet\"",
                                 map.row_title);
  std::vector<std::vector<std::string>> table = {{map.row_title + " / " + map.column_title}};
  for (std::size_t c = 0; c < map.columns.size(); ++c) {
    const double x = left + cell_width * (static_cast<double>(c) + 0.5);
    drawing += svg_text(x, top - 9, "text-anchor=\"middle\"", map.columns[c]);
    table[0].push_back(map.columns[c]);
  }
  for (std::size_t r = 0; r < map.rows.size(); ++r) {
    const double y = top + cell_height * static_cast<double>(r), middle = y + cell_height / 2 + 5;
    drawing += svg_text(left - 10, middle, "text-anchor=\"end\"", map.rows[r]);
    table.push_back({map.rows[r]});
    require<ShapeError>(map.cells[r].size() == map.columns.size(), "heat_map: row ", r, " of \"",
                        map.title, "\" must have ", map.columns.size(), " cells; got ",
                        map.cells[r].size());
    for (std::size_t c = 0; c < map.cells[r].size(); ++c) {
      const Cell& cell = map.cells[r][c];
      const double x = left + cell_width * static_cast<double>(c);
      const double strength = cell.strength > 0 ? 0.9 * std::min(1.0, cell.strength) : 0;
      const std::string hint = map.row_title + " " + map.rows[r] + ", " + map.column_title + " " +
                               map.columns[c] + ": " + (cell.text.empty() ? "0" : cell.text);
      drawing += svg_rect(x + 1, y + 1, cell_width - 2, cell_height - 2,
                          "rx=\"3\" class=\"cell\"") +
                 svg_rect(x + 1, y + 1, cell_width - 2, cell_height - 2,
                          "rx=\"3\" class=\"" + cell.colour + "\" fill-opacity=\"" +
                              fixed(strength, 2) + "\"", hint);
      if (has_text)
        drawing += svg_text(x + cell_width / 2, middle,
                            strength > 0.55 ? "text-anchor=\"middle\" class=\"cover\""
                                            : "text-anchor=\"middle\" class=\"inside\"", cell.text);
      table.back().push_back(cell.text.empty() ? "0" : cell.text);
    }
  }
  return svg_begin(480, height, map.title, map.description) + drawing + "</svg>\n" +
         number_table(table);
}

/// Horizontal bars from 0, each with its name before and its value after it.
inline std::string bar_chart(const std::string& title, const std::vector<std::string>& names,
                             const std::vector<double>& fractions) {
  require<ShapeError>(names.size() == fractions.size(), "bar_chart: there must be ", names.size(),
                      " fractions, one per name; got ", fractions.size());
  constexpr double left = 84, longest = 300, row = 34;
  double most = 1e-3;  // 0.1 %: below that, bars shrink instead of filling the width
  for (const double f : fractions) if (std::isfinite(f)) most = std::max(most, f);
  std::string drawing, description;
  std::vector<std::vector<std::string>> table = {{"", "fraction"}};
  for (std::size_t i = 0; i < names.size(); ++i) {
    const double y = row * static_cast<double>(i), f = fractions[i];
    const double length = std::isfinite(f) ? longest * f / most : 0;
    drawing += svg_text(left - 10, y + 22, "text-anchor=\"end\"", names[i]) +
               svg_rect(left, y + 6, length, row - 12, "rx=\"3\" class=\"below\"") +
               svg_text(left + length + 10, y + 22, "class=\"strong\"", percent(f));
    description += names[i] + ": " + percent(f) + ". ";
    table.push_back({names[i], percent(f, 2)});
  }
  return svg_begin(480, row * static_cast<double>(names.size()), title, description) + drawing +
         "</svg>\n" + number_table(table);
}

// THE PAGE ----------------------------------------------------------------------------------------

using NamedValues = std::vector<std::pair<std::string, std::string>>;

inline std::vector<std::string> numbered(const std::string& prefix, std::size_t n) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < n; ++i) names.push_back(prefix + std::to_string(i));
  return names;
}

/// What the page shows. A part that is left empty is left out.
struct Report {
  struct Section {
    std::string heading, html;
  };
  std::string title, subtitle;
  NamedValues summary;                 // a few figures, the most important first
  std::vector<Section> sections = {};  // each with figures
  NamedValues configuration = {};      // all settings
  std::string style = {};              // what the sections need besides style_sheet()
};

inline const char* style_sheet();
inline const char* script();
/// The digest of script(), the only one that the page allows; tests/tools/check_report.sh says what
/// it must be.
constexpr const char* script_digest = "sha256-uLbGOfZwjVghxWY+DczymAn75j5vycioTnS23rRQMhg=";

/// The page: well-formed XML, too.
inline std::string report_html(const Report& report) {
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
      "style-src 'unsafe-inline'; img-src data:; script-src '" + std::string(script_digest) +
      "'\"/>\n<meta name=\"color-scheme\" content=\"light dark\"/>\n<title>" +
      escape_html(report.title) + "</title>\n<style>" + style_sheet() + report.style +
      "</style></head>\n<body><main>\n<header><h1>" + escape_html(report.title) + "</h1><p>" +
      escape_html(report.subtitle) + "</p></header>\n";
  const auto list = [&html](const char* name, const NamedValues& values) {
    html += std::string("<dl class=\"") + name + "\">";
    for (const auto& [key, value] : values)
      html += "<div><dt>" + escape_html(key) + "</dt><dd>" + escape_html(value) + "</dd></div>\n";
    html += "</dl>\n";
  };
  if (!report.summary.empty()) list("summary", report.summary);
  for (const Report::Section& section : report.sections)
    if (!section.html.empty())
      html += "<section><h2>" + escape_html(section.heading) + "</h2><div class=\"figures\">\n" +
              section.html + "</div></section>\n";
  if (!report.configuration.empty()) {
    html += "<section><h2>Settings</h2>";
    list("settings", report.configuration);
    html += "</section>\n";
  }
  return html + "<noscript><p class=\"empty\">Everything on this page can be read without scripts; "
         "with scripts on, each figure can also be saved as SVG.</p></noscript></main>\n<script>" +
         script() + "</script></body></html>\n";
}

/// Writes the page to a file.
///
///   Errors    IoError if the file cannot be written
inline void write_report(const std::string& path, const Report& report) {
  std::ofstream file(path, std::ios::binary);
  file << report_html(report) << std::flush;
  require<IoError>(file.good(), "write_report: ", path, ": must be writable; got: a failed write");
}

/// Puts a link under each figure that saves it as one SVG file, as it is seen: its drawings, the
/// texts and coloured boxes beside them. The script holds no < and no &, which XML would not have.
inline const char* script() {
  return R"js(
'use strict';
var kept = ['fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-opacity', 'stroke-dasharray',
  'stroke-linejoin', 'stroke-linecap', 'paint-order', 'opacity', 'font-family', 'font-size',
  'font-weight', 'shape-rendering', 'image-rendering'];
function coloured(from) {
  var copy = from.cloneNode(true), copies = copy.querySelectorAll('*');
  function dress(source, target) {
    var style = getComputedStyle(source);
    kept.forEach(function (name) { target.style.setProperty(name, style.getPropertyValue(name)); });
    target.removeAttribute('class');
  }
  dress(from, copy);
  from.querySelectorAll('*').forEach(function (element, i) { dress(element, copies[i]); });
  return copy;
}
function drawing(figure) {
  var space = document.querySelector('svg').namespaceURI;
  var whole = document.createElementNS(space, 'svg'), style = getComputedStyle(figure);
  var caption = figure.querySelector('figcaption').getBoundingClientRect();
  var frame = figure.getBoundingClientRect(), left = frame.left, top = caption.bottom - 8;
  var bottom = top;
  function put(parent, name, attributes, text) {
    var element = document.createElementNS(space, name);
    Object.keys(attributes).forEach(function (key) { element.setAttribute(key, attributes[key]); });
    if (text) { element.textContent = text; }
    return parent.appendChild(element);
  }
  put(whole, 'title', {}, figure.querySelector('h3').textContent);
  var paper = put(whole, 'rect', {fill: style.backgroundColor});
  function visit(node) {
    if (node.nodeType === 3) {
      var range = document.createRange();
      range.selectNodeContents(node);
      var line = range.getBoundingClientRect(), look = getComputedStyle(node.parentNode);
      if (line.width === 0 || node.data.trim() === '') { return; }
      put(whole, 'text', {x: line.left - left, y: line.bottom - top - 0.25 * line.height,
        fill: look.color, 'font-family': look.fontFamily, 'font-size': look.fontSize,
        'font-weight': look.fontWeight}, node.data.trim());
      return;
    }
    if (node.nodeType !== 1 || node.matches('figcaption, details, input, .save')) { return; }
    var box = node.getBoundingClientRect(), seen = getComputedStyle(node);
    if (box.width * box.height === 0) { return; }
    bottom = Math.max(bottom, box.bottom);
    var place = {x: box.left - left, y: box.top - top, width: box.width, height: box.height};
    if (node.namespaceURI === space) {
      var copy = whole.appendChild(coloured(node));
      Object.keys(place).forEach(function (key) { copy.setAttribute(key, place[key]); });
      copy.style.overflow = 'visible';
      return;
    }
    if (seen.backgroundColor !== 'rgba(0, 0, 0, 0)') {
      put(whole, 'rect', Object.assign({fill: seen.backgroundColor, rx: 4}, place));
    }
    node.childNodes.forEach(visit);
  }
  figure.childNodes.forEach(visit);
  var size = {width: frame.width, height: bottom - top + 16};
  Object.keys(size).forEach(function (key) {
    whole.setAttribute(key, size[key]);
    paper.setAttribute(key, size[key]);
  });
  whole.setAttribute('viewBox', '0 0 ' + size.width + ' ' + size.height);
  return new XMLSerializer().serializeToString(whole);
}
document.querySelectorAll('figure').forEach(function (figure) {
  var name = figure.querySelector('h3').textContent, link = document.createElement('a');
  link.className = 'save';
  link.textContent = 'Save as SVG';
  link.setAttribute('aria-label', 'Save as SVG: ' + name);
  link.download = name.toLowerCase().replace(/[^a-z0-9]+/g, '-').slice(0, 60) + '.svg';
  link.href = '#';
  link.addEventListener('click', function () {
    if (link.href.startsWith('blob:')) { URL.revokeObjectURL(link.href); }
    link.href = URL.createObjectURL(new Blob([drawing(figure)], {type: 'image/svg+xml'}));
  });
  figure.appendChild(link);
});
)js";
}

inline const char* style_sheet() {
  return R"css(
:root{color-scheme:light dark;--paper:#faf9f7;--card:#fff;--ink:#1f2328;--quiet:#686e76;
--line:#e6e3dd;--cell:#f3f1ed;--s0:#2f62a8;--s1:#b0601a;--s2:#2b7a5b;--s3:#7d4a94;--wrong:#b3362f}
@media (prefers-color-scheme:dark){:root{--paper:#141619;--card:#1b1e22;--ink:#e4e2dd;
--quiet:#979da5;--line:#2d3137;--cell:#23272c;--s0:#82b1ee;--s1:#e3a367;--s2:#74c7a2;
--s3:#c79adb;--wrong:#ee837a}}
*{box-sizing:border-box;margin:0}
body{background:var(--paper);color:var(--ink);line-height:1.5;
font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
font-size:16px;font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main{max-width:1104px;margin:0 auto;padding:56px 24px 96px}
h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;font-weight:650;text-wrap:balance}
header p{color:var(--quiet);font-size:18px;max-width:44em;margin-top:10px}
h2{font-size:22px;letter-spacing:-.01em;font-weight:650;margin:56px 0 16px}
h3{font-size:16px;font-weight:650}
.summary{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:20px 28px;
margin-top:32px;padding-top:20px;border-top:2px solid var(--ink)}
.summary div{display:flex;flex-direction:column}
.summary dt{color:var(--quiet);font-size:14px}
.summary dd{font-size:26px;font-weight:600;letter-spacing:-.01em;line-height:1.3}
.summary div:first-child dd{color:var(--s0)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:20px}
figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px;
min-width:0;display:flex;flex-direction:column}
figcaption p{color:var(--quiet);font-size:14.5px;margin:4px 0 16px;max-width:42em}
figcaption .equation{font:16px/1.6 "STIX Two Text",Cambria,Georgia,"Times New Roman",serif;
color:var(--ink);margin-top:-8px}
.equation sub{line-height:0;font-size:.72em}
svg{display:block;width:100%;height:auto;overflow:visible;font-size:13.5px;fill:var(--ink)}
.quiet{fill:var(--quiet)}.strong{font-weight:600}.grid{fill:var(--line)}.cell{fill:var(--cell)}
.halo{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
.curve{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.faint{stroke-width:1;opacity:.3}
.curve.s0{stroke:var(--s0)}.curve.s1{stroke:var(--s1)}
.curve.s2{stroke:var(--s2)}.curve.s3{stroke:var(--s3)}
.ink.s0{fill:var(--s0)}.ink.s1{fill:var(--s1)}.ink.s2{fill:var(--s2)}.ink.s3{fill:var(--s3)}
.reference{fill:none;stroke:var(--quiet);stroke-width:1.2;stroke-dasharray:4 4}
.above{fill:var(--s0)}.below{fill:var(--s1)}.wrong{fill:var(--wrong)}
.cover{fill:var(--card);font-weight:600}.inside{fill:var(--ink)}
.key{display:flex;align-items:flex-start;gap:8px;color:var(--quiet);font-size:13px;
line-height:1.3;margin-bottom:14px;text-align:center}
.key i{flex:1;height:10px;margin-top:4px;border-radius:3px;
background:linear-gradient(90deg,var(--s1),var(--cell))}
.key i+span+i{background:linear-gradient(90deg,var(--cell),var(--s0))}
.wide{grid-column:1/-1}.empty{color:var(--quiet)}noscript p{margin-top:40px;font-size:14.5px}
.save{color:var(--quiet);font-size:14px;padding-top:10px;width:fit-content}
details{font-size:14px;color:var(--quiet);margin-top:auto;padding-top:12px}
summary{cursor:pointer;width:fit-content}
summary:focus-visible,a:focus-visible{outline:2px solid var(--s0);outline-offset:3px;
border-radius:3px}
.scroll{overflow-x:auto;margin-top:8px}
table{border-collapse:collapse;color:var(--ink)}
th,td{padding:3px 12px 3px 0;text-align:right;font-weight:400;border-bottom:1px solid var(--line)}
th{color:var(--quiet);white-space:nowrap}
.settings{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));
gap:0 32px}
.settings div{display:flex;justify-content:space-between;gap:16px;padding:6px 0;font-size:15px;
border-bottom:1px solid var(--line)}
.settings dt{color:var(--quiet)}.settings dd{text-align:right;overflow-wrap:anywhere}
@media (max-width:560px){main{padding:32px 16px 64px}h1{font-size:27px}header p{font-size:16px}
h2{margin-top:40px}figure{padding:16px}.figures svg{font-size:16.5px}.summary dd{font-size:22px}
.summary{grid-template-columns:1fr 1fr;gap:14px 20px}}
@media print{body{background:none}figure{break-inside:avoid}details,.save{display:none}}
)css";
}

}  // namespace widenet::support

#endif  // WIDENET_EXAMPLES_SUPPORT_REPORT_HPP
