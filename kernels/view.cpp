#include "adder/kernels/view.h"

#include "adder/core/error.h"

#include <numeric>
#include <utility>

namespace adder {
namespace {

// Part i of the last axis.
Tensor part(const Tensor& whole, const std::vector<int64_t>& sizes, size_t i) {
  const int64_t begin = std::accumulate(sizes.begin(), sizes.begin() + static_cast<int64_t>(i), int64_t{0});
  return whole.slice_last(begin, begin + sizes[i]);
}

// Whether t.reshape(shape) is a view: the row is a product of the last axes.
bool viewable(const Tensor& t, const Shape& shape) {
  if (t.contiguous()) return true;
  int64_t tail = 1;
  for (int axis = shape.rank() - 1; axis >= 0 && tail < t.row(); --axis) tail *= shape[axis];
  return tail == t.row();
}

}  // namespace

Tensor View::forward() {
  check(x.defined(), "View: x is undefined");
  Tensor y = x.reshape(shape);
  shape = x.shape();  // what backward needs
  x = {};
  return y;
}

void View::backward(const Tensor& dy, Grads& to) const {
  to.give(0, (viewable(dy, shape) ? dy : contiguous(dy)).reshape(shape));
}

std::vector<Tensor> Split::forward() {
  check(x.defined() && x.rank() >= 1, "Split: x has no last axis");
  int64_t sum = 0;
  for (const int64_t n : sizes) {
    check(n >= 0, "Split: a part of {} elements", n);
    sum += n;
  }
  check(sum == x.size(-1), "Split: x {} but the parts have {} elements", to_string(x.shape()), sum);
  shape = x.shape();
  dtype = x.dtype();
  device = x.device();
  const Tensor whole = std::exchange(x, {});
  std::vector<Tensor> parts;
  for (size_t i = 0; i < sizes.size(); ++i) parts.push_back(part(whole, sizes, i));
  return parts;
}

Tensor Split::gradient_buffer(int output) {
  if (!buffer) buffer = Tensor(shape, dtype, device);
  return part(buffer, sizes, static_cast<size_t>(output));
}

void Split::backward(std::span<const Tensor> dy, Grads& to) const {
  for (size_t i = 0; i < dy.size(); ++i)
    if (!dy[i] && sizes[i] > 0) fill(part(buffer, sizes, i), 0);
  to.give(0, buffer);
}

Tensor Concatenate::forward() {
  check(!parts.empty(), "Concatenate: no parts");
  int64_t sum = 0;
  for (const Tensor& t : parts) {
    check(t.defined() && t.rank() >= 1, "Concatenate: part {} has no last axis", sizes.size());
    const Tensor& first = parts[0];
    check(t.shape().with(-1, 0) == first.shape().with(-1, 0) && t.dtype() == first.dtype() &&
              t.device() == first.device(),
          "Concatenate: part 0 {} {} but part {} {} {}", name(first.dtype()), to_string(first.shape()), sizes.size(),
          name(t.dtype()), to_string(t.shape()));
    sizes.push_back(t.size(-1));
    sum += t.size(-1);
  }
  Tensor y(parts[0].shape().with(-1, sum), parts[0].dtype(), parts[0].device());
  for (size_t i = 0; i < parts.size(); ++i) copy(parts[i], part(y, sizes, i));
  parts.clear();
  return y;
}

void Concatenate::backward(const Tensor& dy, Grads& to) const {
  // A gradient whose rows span several axes cannot be sliced along the last one.
  const Tensor whole = dy.contiguous() || dy.row() == dy.size(-1) ? dy : contiguous(dy);
  for (size_t i = 0; i < sizes.size(); ++i) to.give(static_cast<int>(i), part(whole, sizes, i));
}

}  // namespace adder
