// Shape: the sizes of up to six axes, the last one contiguous in memory.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace adder {

class Shape {
 public:
  static constexpr int max_rank = 6;

  Shape() = default;  // rank 0: one element
  Shape(std::initializer_list<int64_t> sizes);

  int rank() const { return rank_; }
  /// Size of an axis; negative counts from the end: shape[-1] is the last axis.
  int64_t operator[](int axis) const;
  /// Product of the axes [from, to); 1 when empty.
  int64_t count(int from, int to) const;
  int64_t count() const { return count(0, rank_); }
  /// The same shape with one axis resized; negative counts from the end.
  Shape with(int axis, int64_t size) const;
  /// The axes [from, to).
  Shape axes(int from, int to) const;
  /// This shape followed by one more axis.
  Shape plus(int64_t size) const;

  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  void check_count() const;  // throws if the number of elements does not fit into 64 bits

  std::array<int64_t, max_rank> sizes_{};  // zero past the rank, so that == compares what counts
  int rank_ = 0;
};

/// "[2, 3, 4]"
std::string to_string(const Shape& shape);

}  // namespace adder
