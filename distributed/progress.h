// Progress: where a run stands, for the person who watches it. On a terminal one line is rewritten in place; elsewhere
// (a log file, a pipe) a line is written every ten seconds and at the first and the last step.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <string_view>

namespace adder {

/// What the line shows; a number that is NaN is left out, but for the loss.
struct Standing {
  static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
  int64_t step = 0, steps = 0;
  double loss = unknown, grad_norm = unknown, learning_rate = unknown;
  double tokens_per_second = unknown, seconds_left = unknown;
  double utilisation = unknown;  // of the model FLOP/s, a share
};

/// "step 1,200/4,800  loss 1.2345  grad norm 0.420  lr 3.00e-04  12.3k tokens/s (30.0 % MFU)  1h12m left"
std::string to_text(const Standing& standing);
/// The same in so many columns, if it can be: first the learning rate goes, then the gradient norm and the MFU.
std::string to_text(Standing standing, size_t columns);

/// Seconds a step takes, smoothed over about half a minute.
class Pace {
 public:
  /// A step took this long.
  void add(double seconds);
  double seconds_per_step() const { return weight_ > 0 ? seconds_ / weight_ : Standing::unknown; }

 private:
  double seconds_ = 0, weight_ = 0;  // decaying sums
};

class Progress {
 public:
  explicit Progress(std::FILE* to);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(const Standing& standing);
  /// A line of its own, which stays.
  void say(std::string_view line);

 private:
  void clear();

  std::FILE* to_;
  bool terminal_;
  bool open_ = false;  // the cursor stands behind an unfinished line
  std::chrono::steady_clock::time_point next_{};
};

/// 1234567 -> "1,234,567"
std::string grouped(int64_t number);

}  // namespace adder
