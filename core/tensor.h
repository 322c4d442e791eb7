// Tensor: a cheap shared handle on a row-major array whose rows may lie apart.
//
// Element i, counted in row-major order, lies at data + (i / row) * pitch + i % row. A contiguous tensor has
// pitch == row. Slices of the first and of the last axis are views, and so is a reshape that keeps each row whole:
// the output [batch, time, z + x + B + C + dt] of one product splits into its parts, and x into [.., head, head_dim],
// without a copy. A product takes the pitch as its leading dimension, a kernel as its stride.
#pragma once

#include "adder/core/device.h"
#include "adder/core/dtype.h"
#include "adder/core/memory.h"
#include "adder/core/shape.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace adder {

class Node;  // autograd/tape.h: what recorded a tensor

/// Where on the tape a tensor came from: output number `output` of `node`. Empty: not recorded.
struct Link {
  std::shared_ptr<Node> node;
  int output = 0;
  explicit operator bool() const { return node != nullptr; }
};

class Tensor {
 public:
  Tensor() = default;  // undefined: stands for "not given"

  /// A new contiguous tensor, not initialised.
  Tensor(Shape shape, DType type, Device device = Device::cpu);

  bool defined() const { return storage_ != nullptr; }
  explicit operator bool() const { return defined(); }

  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t size(int axis) const { return shape_[axis]; }  // negative counts from the end
  int64_t count() const { return shape_.count(); }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_->device(); }

  int64_t row() const { return row_; }      // elements that lie side by side
  int64_t pitch() const { return pitch_; }  // elements from one row's start to the next one's
  int64_t rows() const { return row_ == 0 ? 0 : count() / row_; }
  /// Elements from one token to the next when a token is the n elements of the last axes: n if contiguous, the pitch if
  /// n is the row. Throws otherwise.
  int64_t stride(int64_t n) const;
  bool contiguous() const { return pitch_ == row_ || rows() <= 1; }

  /// First element. Throws unless T is the dtype. Constness of the handle is not constness of the elements.
  template <class T>
  T* data() const {
    require(dtype_of<T>);
    return static_cast<T*>(address());
  }
  // Views share memory. A reshape stays where it is on the tape; a slice is off it (kernels/view.h: Split records one).

  /// Elements [begin, end) of the first axis.
  Tensor slice_first(int64_t begin, int64_t end) const;
  /// Elements [begin, end) of the last axis.
  Tensor slice_last(int64_t begin, int64_t end) const;
  /// The same elements in another shape; throws if that would tear a row apart.
  Tensor reshape(Shape shape) const;
  /// Whether reshape() can do it: always, if contiguous.
  bool keeps_rows(const Shape& shape) const;
  /// [rows, last axis]: what a product or a row-wise kernel sees.
  Tensor matrix() const { return reshape({count() / std::max<int64_t>(1, size(-1)), size(-1)}); }

  /// The same data without its place on the tape.
  Tensor detach() const;
  const Link& link() const { return link_; }
  Tensor with_link(Link link) const;

  /// Gives the memory back until an element is asked for; then `make` must return the same elements in a tensor that
  /// nobody else holds. Views, older ones too, share that. The tensor must be all of its storage, and nothing that
  /// `make` holds may be a view of it. For what the tape keeps there is forget() in autograd/recompute.h.
  void give_back(std::function<Tensor()> make) const;

  /// Whether another handle shares the memory.
  bool shared() const { return storage_.use_count() > 1; }
  /// Whether both are views of one storage.
  bool same_storage(const Tensor& other) const { return storage_ == other.storage_; }
  /// Untyped first element; kernels use data<T>().
  void* address() const;

 private:
  void require(DType type) const;

  std::shared_ptr<Storage> storage_;
  Link link_;
  Shape shape_{0};
  int64_t offset_ = 0;
  int64_t row_ = 0, pitch_ = 0;
  DType dtype_ = DType::f32;
};

// New tensors.
Tensor empty_like(const Tensor& t);  // contiguous, same shape, dtype and device
Tensor zeros(Shape shape, DType type = DType::f32, Device device = Device::cpu);
Tensor full(Shape shape, double value, DType type = DType::f32, Device device = Device::cpu);
/// From host values, row-major, converted to the dtype.
Tensor from_host(Shape shape, std::span<const double> values, DType type = DType::f32, Device device = Device::cpu);
Tensor from_host(Shape shape, std::span<const int32_t> values, Device device = Device::cpu);  // i32

// Whole-tensor copies; any pitch on both sides. Only copies to the host wait for the GPU.
void fill(const Tensor& t, double value);
/// to = from: same shape, converting between dtypes, from any device to any device.
void copy(const Tensor& from, const Tensor& to);
Tensor contiguous(const Tensor& t);  // itself if it is already
Tensor clone(const Tensor& t);
Tensor to(const Tensor& t, DType type);
Tensor to_device(const Tensor& t, Device device);  // itself if it is there already, or undefined
/// All elements, row-major, on the host.
std::vector<double> to_host(const Tensor& t);
/// The value of a tensor of one element.
double item(const Tensor& t);

/// Same dtype, shape and bits, on any devices.
bool bitwise_equal(const Tensor& a, const Tensor& b);

}  // namespace adder
