#include "adder/distributed/collectives.h"

#include "adder/core/error.h"

#include <utility>

namespace adder {
namespace {

int axis_number(const Tensor& x, PartAxis axis) { return axis == PartAxis::first ? 0 : x.rank() - 1; }

// Part r of size, a view.
Tensor part_of(const Tensor& x, int64_t r, int64_t size, PartAxis axis) {
  const int64_t n = x.size(axis_number(x, axis)) / size;
  if (axis == PartAxis::first) return x.slice_first(r * n, (r + 1) * n);
  return (x.row() == x.size(-1) || x.contiguous() ? x : contiguous(x)).slice_last(r * n, (r + 1) * n);
}

void check_parts(const char* what, const Tensor& x, const Communicator& group, PartAxis axis, bool whole) {
  check(x.defined() && x.rank() >= 1, "{}: x has no axis to cut", what);
  const int64_t n = x.size(axis_number(x, axis));
  check(!whole || n % group.size() == 0, "{}: the {} axis of x {} cannot be cut into {} equal parts", what,
        axis == PartAxis::first ? "first" : "last", to_string(x.shape()), group.size());
}

Tensor summed(const Tensor& x, const Communicator& group) {
  if (group.size() == 1) return x;
  const Tensor y = clone(x);  // the operand may be held elsewhere
  group.all_reduce(y);
  return y;
}

Tensor gathered(const Tensor& x, const Communicator& group, PartAxis axis) {
  if (group.size() == 1) return x;
  const int64_t p = group.size();
  const Tensor part = contiguous(x);
  Tensor whole(part.shape().with(0, part.size(0) * p), x.dtype(), x.device());
  group.all_gather(part, whole);
  if (axis == PartAxis::first || part.rank() == 1) return whole;
  Tensor y(x.shape().with(-1, x.size(-1) * p), x.dtype(), x.device());
  for (int64_t r = 0; r < p; ++r) copy(part_of(whole, r, p, PartAxis::first), part_of(y, r, p, axis));
  return y;
}

Tensor scattered(const Tensor& x, const Communicator& group, PartAxis axis) {
  if (group.size() == 1) return x;
  const int64_t p = group.size();
  Tensor part(part_of(x, 0, p, axis).shape(), x.dtype(), x.device());
  if (axis == PartAxis::first || x.rank() == 1) {
    group.reduce_scatter(contiguous(x), part);
    return part;
  }
  const Tensor parts(part.shape().with(0, part.size(0) * p), x.dtype(), x.device());  // one after the other
  for (int64_t r = 0; r < p; ++r) copy(part_of(x, r, p, axis), part_of(parts, r, p, PartAxis::first));
  group.reduce_scatter(parts, part);
  return part;
}

Tensor shifted(const Tensor& x, const Communicator& group, int64_t by) {
  const Tensor sent = contiguous(x), y = empty_like(x);
  group.shift(sent, y, by);
  return y;
}

}  // namespace

Tensor Replicate::forward() { return std::exchange(x, {}); }
void Replicate::backward(const Tensor& dy, Grads& to) const { to.give(0, summed(dy, group)); }

Tensor SumPartial::forward() { return summed(std::exchange(x, {}), group); }
void SumPartial::backward(const Tensor& dy, Grads& to) const { to.give(0, dy); }

Tensor TakePart::forward() {
  check_parts("TakePart", x, group, axis, true);
  return part_of(std::exchange(x, {}), group.rank(), group.size(), axis);
}
void TakePart::backward(const Tensor& dy, Grads& to) const { to.give(0, gathered(dy, group, axis)); }

Tensor JoinParts::forward() {
  check_parts("JoinParts", x, group, axis, false);
  return gathered(std::exchange(x, {}), group, axis);
}
void JoinParts::backward(const Tensor& dy, Grads& to) const {
  to.give(0, part_of(dy, group.rank(), group.size(), axis));
}

Tensor GatherParts::forward() {
  check_parts("GatherParts", x, group, axis, false);
  return gathered(std::exchange(x, {}), group, axis);
}
void GatherParts::backward(const Tensor& dy, Grads& to) const { to.give(0, scattered(dy, group, axis)); }

Tensor ScatterPartial::forward() {
  check_parts("ScatterPartial", x, group, axis, true);
  return scattered(std::exchange(x, {}), group, axis);
}
void ScatterPartial::backward(const Tensor& dy, Grads& to) const { to.give(0, gathered(dy, group, axis)); }

Tensor Shift::forward() { return shifted(std::exchange(x, {}), group, by); }
void Shift::backward(const Tensor& dy, Grads& to) const { to.give(0, shifted(dy, group, -by)); }

}  // namespace adder
