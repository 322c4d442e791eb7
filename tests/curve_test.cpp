#include "adder/core/error.h"
#include "adder/distributed/curve.h"

#include "catch.h"

#include <cmath>
#include <limits>

using namespace adder;

namespace {

constexpr double none = std::numeric_limits<double>::quiet_NaN();

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++found;
  return found;
}

// Whether every tag is closed in the order of nesting and every attribute quoted.
bool well_formed(const std::string& text) {
  std::vector<std::string> open;
  size_t at = 0;
  while ((at = text.find('<', at)) != std::string::npos) {
    const size_t end = text.find('>', at);
    if (end == std::string::npos) return false;
    const std::string tag = text.substr(at + 1, end - at - 1);
    if (count(tag, "\"") % 2 != 0 || tag.find('<') != std::string::npos) return false;
    const std::string name = tag.substr(tag[0] == '/', tag.find_first_of(" /", 1) - (tag[0] == '/'));
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return false;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    at = end;
  }
  return open.empty();
}

}  // namespace

TEST_CASE("curve: the figure is well-formed and holds title, labels, series and legend") {
  Curve curve{.title = "a < b & \"c\"", .x = {.label = "step"}, .y = {.label = "loss"}, .series = {}};
  curve.series.push_back({.name = "training", .x = {0, 1, 2}, .y = {3, 2, 1}});
  curve.series.push_back({.name = "held out", .x = {0, 2}, .y = {2.5, 1.5}, .mark = Mark::points, .colour = 1});
  const std::string text = svg(curve);
  CHECK(well_formed(text));
  for (const char* part : {"a &lt; b &amp; &quot;c&quot;", ">step<", ">loss<", ">training<", ">held out<"})
    CHECK_THAT(text, ContainsSubstring(part));
  CHECK(count(text, "<circle") == 3);                         // two values and the legend
  CHECK_THAT(text, ContainsSubstring("d=\"M72.0 "));           // step 0 stands at the left edge
}

TEST_CASE("curve: many points are thinned, and the spike survives") {
  Series s{.name = "loss"};
  for (int i = 0; i < 300'000; ++i) {
    s.x.push_back(i);
    s.y.push_back(i == 123'456 ? 50 : 2 + 0.1 * std::sin(i));
  }
  const std::string text = svg({.series = {s}});
  CHECK(count(text, "L") <= 2000);
  CHECK(count(text, "L") > 1000);
  const double top = 44, bottom = 450 - 58, air = (bottom - top) * 0.04 / 1.08;  // 4 % past the extremes
  CHECK_THAT(text, ContainsSubstring(fmt::format(" {:.1f}L", top + air)));
}

TEST_CASE("curve: values that are not finite, or not positive on a log axis, leave a gap") {
  const Series s{.name = "", .x = {1, 2, 3, 4, 5}, .y = {1, 2, none, 4, 5}};
  CHECK_THAT(svg({.series = {s}}), !ContainsSubstring("nan"));
  const Series t{.name = "", .x = {1, 2, 3, 4, 5}, .y = {1, 2, -1, 4, 5}};
  CHECK(svg({.y = {.log = true}, .series = {t}}) == svg({.y = {.log = true}, .series = {s}}));
}

TEST_CASE("curve: no value, one value and equal values still give a figure") {
  for (const bool log : {false, true})
    for (const std::vector<double>& y : {std::vector<double>{}, {none}, {2}, {3, 3}, {0, 0}}) {
      std::vector<double> x;
      for (size_t i = 0; i < y.size(); ++i) x.push_back(static_cast<double>(i));
      const std::string text = svg({.y = {.log = log}, .series = {{.name = "a", .x = x, .y = y}}});
      CHECK(well_formed(text));
      CHECK_THAT(text, !ContainsSubstring("nan") && !ContainsSubstring("inf"));
    }
  CHECK_THROWS_WITH(svg({.series = {{.name = "a", .x = {1}, .y = {}}}}), "curve \"a\": 1 x but 0 y");
}

TEST_CASE("curve: ticks are round numbers within the range") {
  CHECK(ticks(0, 4800, false) == std::vector<double>{0, 1000, 2000, 3000, 4000});
  CHECK(ticks(-1, 1.5, false) == std::vector<double>{-1, -0.5, 0, 0.5, 1, 1.5});
  CHECK(ticks(1, 1000, true) == std::vector<double>{1, 10, 100, 1000});
  CHECK(ticks(1, 100, true) == std::vector<double>{1, 2, 5, 10, 20, 50, 100});
  CHECK(ticks(1.9, 6.2, true) == std::vector<double>{2, 2.5, 3, 4, 5, 6});
  for (const double high : {1e-7, 0.3, 1.7, 42.0, 1e9})
    for (const bool log : {false, true}) {
      const auto marks = ticks(high / 1e5, high, log);
      CHECK(marks.size() >= 3);
      CHECK(marks.size() <= 10);
    }
  CHECK_THROWS_AS(ticks(2, 1, false), Error);
}

TEST_CASE("curve: the mean is centred but at the end, and skips what is not finite") {
  CHECK(smoothed({1, 2, 3, 4, 5}, 3) == std::vector<double>{1, 2, 3, 4, 4.5});
  CHECK(smoothed({0, 3, 0, 3, 0}, 3)[2] == 2);
  CHECK(smoothed({1, none, 3}, 3)[1] == 2);
  CHECK(std::isnan(smoothed({none}, 1)[0]));
  CHECK(smoothed({}, 5).empty());
}

TEST_CASE("curve: a mark is a dashed line inside the figure") {
  const Curve curve{.series = {{.x = {0, 100}, .y = {1, 2}}}, .marks = {50, 500}};
  const std::string text = svg(curve);
  const size_t first = text.find("stroke-dasharray");
  CHECK(first != std::string::npos);
  CHECK(text.find("stroke-dasharray", first + 1) == std::string::npos);  // 500 lies outside
}
