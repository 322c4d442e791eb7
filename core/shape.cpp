#include "adder/core/shape.h"

#include "adder/core/error.h"

#include <algorithm>

namespace adder {

Shape::Shape(std::initializer_list<int64_t> sizes) {
  check(sizes.size() <= max_rank, "a shape has at most {} axes, not {}", int{max_rank}, sizes.size());
  for (int64_t size : sizes) {
    check(size >= 0, "a shape's axis cannot have the size {}", size);
    sizes_[static_cast<size_t>(rank_++)] = size;
  }
  check_count();
}

void Shape::check_count() const {
  int64_t n = 8;  // bytes of the largest element
  for (int i = 0; i < rank_; ++i)
    check(!__builtin_mul_overflow(n, std::max<int64_t>(1, sizes_[static_cast<size_t>(i)]), &n),
          "a tensor {} is too large", to_string(*this));
}

int64_t Shape::operator[](int axis) const {
  const int i = axis < 0 ? axis + rank_ : axis;
  check(i >= 0 && i < rank_, "axis {} of a shape of {} axes", axis, rank_);
  return sizes_[static_cast<size_t>(i)];
}

int64_t Shape::count(int from, int to) const {
  int64_t n = 1;
  for (int i = from; i < to; ++i) n *= (*this)[i];
  return n;
}

Shape Shape::with(int axis, int64_t size) const {
  Shape result = *this;
  check((*this)[axis] >= 0 && size >= 0, "a shape's axis cannot have the size {}", size);
  result.sizes_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)] = size;
  result.check_count();
  return result;
}

Shape Shape::axes(int from, int to) const {
  Shape result;
  for (int i = from; i < to; ++i) result = result.plus((*this)[i]);
  return result;
}

Shape Shape::plus(int64_t size) const {
  check(rank_ < max_rank, "a shape has at most {} axes", int{max_rank});
  Shape result = *this;
  result.sizes_[static_cast<size_t>(result.rank_++)] = size;
  result.check_count();
  return result;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace adder
