#include "adder/distributed/curve.h"

#include "adder/core/error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace adder {
namespace {

constexpr double width = 800, height = 450;
constexpr double left = 72, right = 32, top = 44, bottom = 58;  // margins
constexpr size_t most_points = 2000, most_dots = 60;
constexpr std::array colours{"#2563a8", "#d9600a", "#2e8540", "#c0272d", "#6b4fa0", "#8a5a2b"};

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '<') result += "&lt;";
    else if (c == '>') result += "&gt;";
    else if (c == '&') result += "&amp;";
    else if (c == '"') result += "&quot;";
    else if (static_cast<unsigned char>(c) >= 0x20) result += c;
  }
  return result;
}

// 12,500 and 0.05 as one writes them; 300k, 2M, 1.5B and 3e-05 where they would be long.
std::string label(double value) {
  const double size = std::abs(value);
  if (size >= 1e12 || (size > 0 && size < 1e-3)) return fmt::format("{:.3g}", value);
  if (size >= 1e9) return fmt::format("{:.4g}B", value / 1e9);
  if (size >= 1e6) return fmt::format("{:.4g}M", value / 1e6);
  if (size >= 1e5) return fmt::format("{:.6g}k", value / 1e3);
  if (size < 1000 || size != std::floor(size)) return fmt::format("{:.6g}", value);
  const auto whole = static_cast<int64_t>(size);
  return fmt::format("{}{},{:03}", value < 0 ? "-" : "", whole / 1000, whole % 1000);
}

// Where values of one axis lie on the page.
class Scale {
 public:
  // Covers all finite values; from and to are the pixels of the lowest and the highest.
  Scale(const Curve& curve, bool vertical, double from, double to)
      : axis_(vertical ? curve.y : curve.x), from_(from), to_(to) {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const Series& s : curve.series)
      for (size_t i = 0; i < s.y.size(); ++i) {
        const double value = vertical ? s.y[i] : s.x[i];
        if (!std::isfinite(s.x[i]) || !std::isfinite(s.y[i]) || !visible(value)) continue;
        low = std::min(low, value);
        high = std::max(high, value);
      }
    if (low > high) low = axis_.log ? 1 : 0, high = axis_.log ? 10 : 1;
    if (low == high) {
      const double half = axis_.log ? 0 : std::max(std::abs(low) * 0.1, 0.5);
      low = axis_.log ? low / 2 : low - half, high = axis_.log ? high * 2 : high + half;
    }
    low_ = at(low), high_ = at(high);
    if (vertical) {  // some air above and below
      const double air = (high_ - low_) * 0.04;
      low_ -= air, high_ += air;
    }
  }
  double operator()(double value) const { return from_ + (at(value) - low_) / (high_ - low_) * (to_ - from_); }
  bool visible(double value) const { return std::isfinite(value) && (!axis_.log || value > 0); }
  std::vector<double> marks() const {
    return axis_.log ? ticks(std::exp(low_), std::exp(high_), true) : ticks(low_, high_, false);
  }

 private:
  double at(double value) const { return axis_.log ? std::log(value) : value; }
  Axis axis_;
  double from_, to_, low_ = 0, high_ = 1;
};

struct Point {
  double x, y;  // pixels; y is NaN in a gap
};

// The points of a series on the page, thinned to the lowest and the highest of each column.
std::vector<Point> placed(const Series& s, const Scale& x, const Scale& y) {
  check(s.x.size() == s.y.size(), "curve \"{}\": {} x but {} y", s.name, s.x.size(), s.y.size());
  constexpr double gap = std::numeric_limits<double>::quiet_NaN();
  std::vector<Point> all;
  for (size_t i = 0; i < s.x.size(); ++i)
    if (x.visible(s.x[i])) all.push_back({x(s.x[i]), y.visible(s.y[i]) ? y(s.y[i]) : gap});
  if (all.size() <= most_points) return all;
  std::vector<Point> kept;
  const double column_width = (width - left - right) / (most_points / 2 - 2);
  const auto column = [&](const Point& p) { return std::floor((p.x - left) / column_width); };
  for (auto begin = all.begin(); begin != all.end();) {
    const auto end = std::find_if(begin, all.end(), [&](const Point& p) { return column(p) != column(*begin); });
    const auto finite_end = std::stable_partition(begin, end, [](const Point& p) { return std::isfinite(p.y); });
    if (begin == finite_end) kept.push_back(*begin);
    else {
      auto [low, high] =
          std::minmax_element(begin, finite_end, [](const Point& a, const Point& b) { return a.y < b.y; });
      if (high < low) std::swap(low, high);  // in the order of x
      kept.push_back(*low);
      if (low != high) kept.push_back(*high);
    }
    begin = end;
  }
  return kept;
}

std::string path_of(const std::vector<Point>& points) {
  std::string path;
  bool drawing = false;
  for (const Point& p : points) {
    if (std::isfinite(p.y)) path += fmt::format("{}{:.1f} {:.1f}", drawing ? 'L' : 'M', p.x, p.y);
    drawing = std::isfinite(p.y);
  }
  return path;
}

// Grid, tick labels, axis labels, title.
std::string frame(const Curve& curve, const Scale& x, const Scale& y) {
  const double end = width - right, floor = height - bottom;
  std::string grid, text;
  for (const double value : x.marks()) {
    grid += fmt::format("M{:.1f} {}V{}", x(value), top, floor);
    text += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", x(value), floor + 18,
                        label(value));
  }
  for (const double value : y.marks()) {
    grid += fmt::format("M{} {:.1f}H{}", left, y(value), end);
    text += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", left - 8, y(value) + 4,
                        label(value));
  }
  return fmt::format(
      "<path d=\"{}\" stroke=\"#e4e4e4\" fill=\"none\"/>\n<path d=\"M{} {}V{}H{}\" stroke=\"#888\" fill=\"none\"/>\n"
      "{}<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n"
      "<text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n"
      "<text x=\"{}\" y=\"26\" font-size=\"16\" fill=\"#111\">{}</text>\n",
      grid, left, top, floor, end, text, (left + end) / 2, height - 16, escaped(curve.x.label), (top + floor) / 2,
      escaped(curve.y.label), left, escaped(curve.title));
}

bool dotted(const Series& s) { return s.mark == Mark::points && s.y.size() <= most_dots; }

std::string drawn(const Series& s, const Scale& x, const Scale& y) {
  const char* colour = colours[static_cast<size_t>(s.colour) % colours.size()];
  const std::vector<Point> points = placed(s, x, y);
  const bool faint = s.mark == Mark::faint, dots = dotted(s);
  std::string text = fmt::format(
      "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-opacity=\"{}\" "
      "stroke-linejoin=\"round\"/>\n",
      path_of(points), colour, faint || dots ? 1 : 2, faint ? 0.3 : 1);
  if (!dots) return text;
  for (const Point& p : points)
    if (std::isfinite(p.y))
      text += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.2\" fill=\"{}\"/>\n", p.x, p.y, colour);
  return text;
}

// Upper right: what falls from left to right leaves it free.
std::string legend(const std::vector<Series>& series) {
  size_t rows = 0, letters = 0;
  for (const Series& s : series)
    if (!s.name.empty()) ++rows, letters = std::max(letters, s.name.size());
  if (rows == 0) return "";
  const double box = 50 + 7.2 * static_cast<double>(letters), x = width - right - box - 8, y = top + 8;
  std::string text = fmt::format(
      "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"4\" fill=\"#fff\" fill-opacity=\"0.85\" "
      "stroke=\"#ddd\"/>\n", x, y, box, 20 * rows + 8);
  double middle = y + 14;
  for (const Series& s : series) {
    if (s.name.empty()) continue;
    const char* colour = colours[static_cast<size_t>(s.colour) % colours.size()];
    text += fmt::format("<path d=\"M{} {}h24\" stroke=\"{}\" stroke-width=\"{}\" stroke-opacity=\"{}\"/>\n", x + 8,
                        middle, colour, s.mark == Mark::faint || dotted(s) ? 1 : 2, s.mark == Mark::faint ? 0.4 : 1);
    if (dotted(s))
      text += fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"3.2\" fill=\"{}\"/>\n", x + 20, middle, colour);
    text += fmt::format("<text x=\"{}\" y=\"{}\">{}</text>\n", x + 40, middle + 4, escaped(s.name));
    middle += 20;
  }
  return text;
}

}  // namespace

std::string svg(const Curve& curve) {
  const Scale x(curve, false, left, width - right), y(curve, true, height - bottom, top);
  std::string text = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"12.5\" fill=\"#444\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n",
      width, height);
  text += frame(curve, x, y);
  for (const double mark : curve.marks)
    if (x.visible(mark) && x(mark) > left && x(mark) < width - right)
      text += fmt::format("<path d=\"M{:.1f} {}V{}\" stroke=\"#999\" stroke-dasharray=\"4 4\"/>\n", x(mark), top,
                          height - bottom);
  for (const bool faint : {true, false})
    for (const Series& s : curve.series)
      if ((s.mark == Mark::faint) == faint) text += drawn(s, x, y);
  return text + legend(curve.series) + "</svg>\n";
}

std::vector<double> smoothed(const std::vector<double>& y, int64_t window) {
  check(window >= 1, "smoothed: a window of {} values", window);
  const auto count = static_cast<int64_t>(y.size());
  std::vector<double> sums(y.size() + 1, 0.0), counts(y.size() + 1, 0.0), result(y.size());
  for (size_t i = 0; i < y.size(); ++i) {
    const bool finite = std::isfinite(y[i]);
    sums[i + 1] = sums[i] + (finite ? y[i] : 0);
    counts[i + 1] = counts[i] + finite;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t half = std::min(window / 2, i);
    const auto begin = static_cast<size_t>(i - half), end = static_cast<size_t>(std::min(i + half + 1, count));
    result[static_cast<size_t>(i)] = (sums[end] - sums[begin]) / (counts[end] - counts[begin]);  // 0/0: NaN, a gap
  }
  return result;
}

std::vector<double> ticks(double low, double high, bool log) {
  check(low < high && (!log || low > 0), "ticks from {} to {}", low, high);
  std::vector<double> marks;
  if (!log) {
    const double rough = (high - low) / 6, power = std::pow(10, std::floor(std::log10(rough)));
    const double step = power * (rough < 1.5 * power ? 1 : rough < 3.5 * power ? 2 : rough < 7.5 * power ? 5 : 10);
    for (double i = std::ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) marks.push_back(i * step + 0.0);
    return marks;
  }
  const double decades = std::log10(high / low);
  if (decades < 0.3) return ticks(low, high, false);
  std::vector<double> factors{1};
  if (decades < 0.9) factors = {1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8};
  else if (decades < 1.6) factors = {1, 1.5, 2, 3, 5, 7};
  else if (decades < 3) factors = {1, 2, 5};
  const double stride = std::max(1.0, std::ceil(decades / 8));
  for (double power = std::floor(std::log10(low)); power <= std::ceil(std::log10(high)); ++power)
    for (const double factor : factors)
      if (const double mark = factor * std::pow(10, power);
          std::fmod(power, stride) == 0 && mark >= low * (1 - 1e-9) && mark <= high * (1 + 1e-9))
        marks.push_back(mark);
  return marks;
}

}  // namespace adder
