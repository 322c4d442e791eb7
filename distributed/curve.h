// Curve: a figure of y over x as an SVG file, for a person to open in a browser.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace adder {

struct Axis {
  std::string label = {};
  bool log = false;  // points that are not positive are left out
};

enum class Mark : unsigned char {
  line,
  faint,   // a thin pale line behind the others: raw values under their mean
  points,  // a dot for each value, joined by a thin line; with more than 60 values, a line
};

/// Values of one kind; x ascends. A value that is not finite leaves a gap. A series without a name has no legend entry.
struct Series {
  std::string name = {};
  std::vector<double> x = {}, y = {};  // [point]
  Mark mark = Mark::line;
  int colour = 0;  // 0 blue, 1 orange, 2 green, 3 red, 4 purple, 5 brown; then again
};

struct Curve {
  std::string title = {};
  Axis x = {}, y = {};
  std::vector<Series> series = {};
  std::vector<double> marks = {};  // x where a dashed line stands: a run went on there
};

/// The figure, 800 x 450 px. Of a series of more than 2000 points, the smallest and the largest of each of 1000 narrow
/// columns are drawn, so that no spike is lost.
std::string svg(const Curve& curve);

/// The mean over a window of values around each one. At the start, where a loss falls steeply, the window shrinks so
/// that it stays centred; at the end it is cut off. Values that are not finite do not count.
std::vector<double> smoothed(const std::vector<double>& y, int64_t window);

/// Positions between low and high (low < high) that one would write on an axis: steps of 1, 2 or 5 times a power of
/// ten; on a log axis the powers of ten, and multiples of them where these are few.
std::vector<double> ticks(double low, double high, bool log);

}  // namespace adder
