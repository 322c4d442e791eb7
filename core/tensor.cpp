#include "adder/core/tensor.h"

#include "adder/core/bf16.h"
#include "adder/core/copy.h"
#include "adder/core/error.h"

#include <algorithm>
#include <cstring>

namespace adder {

Tensor::Tensor(Shape shape, DType type, Device device)
    : storage_(std::make_shared<Storage>(device, shape.count() * size_of(type))),
      shape_(shape),
      row_(shape.rank() ? shape[-1] : 1),
      pitch_(row_),
      dtype_(type) {}

void* Tensor::address() const {
  check(defined(), "an undefined tensor has no elements");
  return static_cast<char*>(storage_->data()) + offset_ * size_of(dtype_);
}

void Tensor::give_back(std::function<Tensor()> make) const {
  check(defined() && offset_ == 0 && contiguous() && count() * size_of(dtype_) == storage_->bytes(),
        "a tensor {} that is not all of its storage cannot be given back", to_string(shape_));
  storage_->give_back([make = std::move(make), type = dtype_, shape = shape_] {
    const Tensor made = make();
    check(made && made.dtype() == type && made.count() == shape.count() && made.offset_ == 0 && made.contiguous(),
          "what was made again is not the {} tensor {} that was given back", name(type), to_string(shape));
    return made.storage_;  // outlives `made`, the only other holder
  });
}

void Tensor::require(DType type) const {
  check(defined(), "an undefined tensor has no elements");
  if (dtype_ != type) fail("tensor {} holds {}, not {}", to_string(shape_), name(dtype_), name(type));
}

int64_t Tensor::stride(int64_t n) const {
  if (contiguous()) return n;
  if (row_ != n)  // not a check(): kernels ask often, and its arguments would be made each time
    fail("tensor {} has rows of {} elements {} apart, not of {}", to_string(shape_), row_, pitch_, n);
  return pitch_;
}

Tensor Tensor::slice_first(int64_t begin, int64_t end) const {
  check(rank() >= 1 && 0 <= begin && begin <= end && end <= size(0), "slice [{}, {}) of the first axis of {}", begin,
        end, to_string(shape_));
  const int64_t inner = shape_.count(1, rank());
  check(contiguous() || inner % row_ == 0, "slice of the first axis of {} would tear its rows of {} apart",
        to_string(shape_), row_);
  Tensor result = *this;
  result.link_ = {};
  result.shape_ = shape_.with(0, end - begin);
  const bool whole_rows = row_ > 0 && inner % row_ == 0;
  if (!whole_rows) result.row_ = result.pitch_ = inner;  // contiguous: any row length describes it
  result.offset_ += whole_rows ? begin * (inner / row_) * pitch_ : begin * inner;
  return result;
}

Tensor Tensor::slice_last(int64_t begin, int64_t end) const {
  check(rank() >= 1 && 0 <= begin && begin <= end && end <= size(-1), "slice [{}, {}) of the last axis of {}", begin,
        end, to_string(shape_));
  Tensor result = *this;
  result.link_ = {};
  if (row_ != size(-1)) {
    check(contiguous(), "slice of the last axis of {} whose rows have {} elements", to_string(shape_), row_);
    result.pitch_ = size(-1);
  }
  result.shape_ = shape_.with(-1, end - begin);
  result.row_ = end - begin;
  result.offset_ += begin;
  return result;
}

Tensor Tensor::reshape(Shape shape) const {
  check(defined(), "an undefined tensor cannot be reshaped to {}", to_string(shape));
  check(shape.count() == count(), "{} elements of {} cannot take the shape {}", count(), to_string(shape_),
        to_string(shape));
  Tensor result = *this;
  result.shape_ = shape;
  if (contiguous()) {
    result.row_ = result.pitch_ = shape.rank() ? shape[-1] : 1;
    return result;
  }
  check(keeps_rows(shape), "tensor {} with rows of {} elements {} apart cannot be seen as {} without a copy",
        to_string(shape_), row_, pitch_, to_string(shape));
  return result;
}

bool Tensor::keeps_rows(const Shape& shape) const {
  if (contiguous()) return true;
  int64_t tail = 1;  // the row must be a product of the shape's last axes
  for (int axis = shape.rank() - 1; axis >= 0 && tail < row_; --axis) tail *= shape[axis];
  return tail == row_;
}

Tensor Tensor::detach() const { return with_link({}); }

Tensor Tensor::with_link(Link link) const {
  Tensor result = *this;
  result.link_ = std::move(link);
  return result;
}

namespace {

// Calls f(first element of row i) for every row.
template <class T, class F>
void each_row(const Tensor& t, F&& f) {
  T* data = t.data<T>();
  for (int64_t i = 0; i < t.rows(); ++i) f(i, data + i * t.pitch());
}

// A tensor element as a double and back.
double value(float x) { return x; }
double value(double x) { return x; }
double value(int32_t x) { return x; }
double value(bf16 x) { return to_float(x); }
template <class T>
T element(double x) {
  if constexpr (std::is_same_v<T, bf16>) return to_bf16(static_cast<float>(x));
  else return static_cast<T>(x);
}

template <class F>
decltype(auto) with_element(DType type, F&& f) {
  switch (type) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::bf16: return f(bf16{});
    case DType::i32: break;
  }
  return f(int32_t{});
}

// Calls f(Cuda) and returns true if t lies on a GPU.
template <class F>
bool on_gpu(const Tensor& t, F&& f) {
  if constexpr (built_with_cuda) {
    if (t.device() == Device::cuda) {
      f(Cuda{compute_stream()});
      return true;
    }
  }
  return false;
}

}  // namespace

Tensor empty_like(const Tensor& t) { return Tensor(t.shape(), t.dtype(), t.device()); }

Tensor zeros(Shape shape, DType type, Device device) { return full(shape, 0, type, device); }

Tensor full(Shape shape, double value, DType type, Device device) {
  Tensor t(shape, type, device);
  fill(t, value);
  return t;
}

Tensor from_host(Shape shape, std::span<const double> values, DType type, Device device) {
  check(static_cast<int64_t>(values.size()) == shape.count(), "{} values for a tensor {}", values.size(),
        to_string(shape));
  Tensor t(shape, type);
  with_element(type, [&]<class T>(T) {
    std::transform(values.begin(), values.end(), t.data<T>(), [](double x) { return element<T>(x); });
  });
  return to_device(t, device);
}

Tensor from_host(Shape shape, std::span<const int32_t> values, Device device) {
  check(static_cast<int64_t>(values.size()) == shape.count(), "{} values for a tensor {}", values.size(),
        to_string(shape));
  Tensor t(shape, DType::i32);
  std::copy(values.begin(), values.end(), t.data<int32_t>());
  return to_device(t, device);
}

void fill(const Tensor& t, double value) {
  check(t.defined(), "fill: an undefined tensor");
  if (on_gpu(t, [&](Cuda on) { fill(on, t, value); })) return;
  with_element(t.dtype(), [&]<class T>(T) {
    each_row<T>(t, [&](int64_t, T* row) { std::fill(row, row + t.row(), element<T>(value)); });
  });
}

namespace {

void copy_on_host(const Tensor& from, const Tensor& to) {
  // Both sides advance in pieces that are contiguous on each.
  const auto piece_length = [](const Tensor& t) { return t.contiguous() ? t.count() : t.row(); };
  const int64_t piece = std::min(piece_length(from), piece_length(to));
  const auto offset = [](const Tensor& t, int64_t i) {
    return t.contiguous() ? i : i / t.row() * t.pitch() + i % t.row();
  };
  check(piece_length(from) % piece == 0 && piece_length(to) % piece == 0, "copy: rows of {} and {} do not fit",
        from.row(), to.row());
  with_element(from.dtype(), [&]<class F>(F) {
    with_element(to.dtype(), [&]<class T>(T) {
      const F* source = from.data<F>();
      T* target = to.data<T>();
#pragma omp parallel for if (from.count() > 1 << 16)
      for (int64_t i = 0; i < from.count(); i += piece) {
        const F* s = source + offset(from, i);
        T* t = target + offset(to, i);
        if constexpr (std::is_same_v<F, T>) std::memcpy(t, s, static_cast<size_t>(piece) * sizeof(T));
        else
          for (int64_t j = 0; j < piece; ++j) t[j] = element<T>(value(s[j]));
      }
    });
  });
}

}  // namespace

void copy(const Tensor& from, const Tensor& to) {
  check(from.defined() && to.defined(), "copy: {} is undefined", from ? "the target" : "the source");
  check(from.shape() == to.shape(), "copy: from {} to {}", to_string(from.shape()), to_string(to.shape()));
  if (from.count() == 0) return;
  const bool same_device = from.device() == to.device();
  if (on_gpu(to, [&](Cuda on) {
        if (same_device) copy(on, from, to);
        else upload(on, contiguous(adder::to(from, to.dtype())).address(), to);
      }))
    return;
  if (same_device) return copy_on_host(from, to);
  const bool direct = to.contiguous() && to.dtype() == from.dtype();
  const Tensor host = direct ? to : Tensor(from.shape(), from.dtype());
  on_gpu(from, [&](Cuda on) { download(on, from, host.address()); });
  if (!direct) copy_on_host(host, to);
}

Tensor contiguous(const Tensor& t) { return t.contiguous() ? t : clone(t); }

Tensor clone(const Tensor& t) {
  Tensor result = empty_like(t);
  copy(t, result);
  return result;
}

Tensor to(const Tensor& t, DType type) {
  if (t.dtype() == type) return t;
  Tensor result(t.shape(), type, t.device());
  copy(t, result);
  return result;
}

Tensor to_device(const Tensor& t, Device device) {
  if (!t || t.device() == device) return t;
  Tensor result(t.shape(), t.dtype(), device);
  copy(t, result);
  return result;
}

std::vector<double> to_host(const Tensor& t) {
  check(t.defined(), "to_host: an undefined tensor");
  const Tensor host = to_device(t, Device::cpu);
  std::vector<double> values(static_cast<size_t>(t.count()));
  with_element(t.dtype(), [&]<class T>(T) {
    each_row<T>(host, [&](int64_t i, const T* row) {
      std::transform(row, row + host.row(), values.begin() + i * host.row(), [](T x) { return value(x); });
    });
  });
  return values;
}

double item(const Tensor& t) {
  check(t.defined() && t.count() == 1, "item: the tensor has {} elements, not one", t.defined() ? t.count() : 0);
  return to_host(t)[0];
}

bool bitwise_equal(const Tensor& a, const Tensor& b) {
  if (a.dtype() != b.dtype() || a.shape() != b.shape()) return false;
  const Tensor x = contiguous(to_device(a, Device::cpu)), y = contiguous(to_device(b, Device::cpu));
  return std::memcmp(x.address(), y.address(), static_cast<size_t>(a.count() * size_of(a.dtype()))) == 0;
}

}  // namespace adder
