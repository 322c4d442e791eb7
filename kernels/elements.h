// Where the elements of a tensor lie, for CPU kernels: rows may be apart.
#pragma once

#include "adder/core/error.h"
#include "adder/core/tensor.h"

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <type_traits>

namespace adder {

/// x(i) is the address of element i, counted in row-major order; `piece` elements from a multiple of `piece` on lie
/// side by side (throws if they do not). Of an undefined tensor every address is null.
template <class T>
class Elements {
 public:
  Elements(const Tensor& t, int64_t piece) {
    if (!t) return;
    data_ = t.data<T>();
    if (t.contiguous()) return;
    row_ = t.row();
    pitch_ = t.pitch();
    check(row_ % piece == 0, "tensor {} has only {} elements side by side where a kernel reads {}",
          to_string(t.shape()), row_, piece);
  }
  T* operator()(int64_t i) const {
    if (data_ == nullptr || i < row_) return data_ == nullptr ? nullptr : data_ + i;
    return data_ + i / row_ * pitch_ + i % row_;
  }

 private:
  T* data_ = nullptr;
  int64_t row_ = std::numeric_limits<int64_t>::max(), pitch_ = 0;
};

/// The tensor itself, or a copy if its last axis does not lie side by side.
inline Tensor with_whole_rows(const Tensor& t) {
  return !t || t.contiguous() || t.row() % t.size(-1) == 0 ? t : contiguous(t);
}

/// Calls f(n, a, b, ...) for every n elements that lie side by side in all tensors, in parallel. All defined ones have
/// one shape; an undefined one gives null.
template <class T, class F, class... Tensors>
void each_piece(F&& f, const Tensors&... tensors) {
  int64_t count = 0, piece = std::numeric_limits<int64_t>::max();
  for (const Tensor* t : std::array<const Tensor*, sizeof...(tensors)>{&tensors...}) {
    if (!*t) continue;
    count = t->count();
    if (!t->contiguous()) piece = std::min(piece, t->row());
  }
  if (count == 0) return;
  if (piece > count) piece = 4096;  // nothing lies apart: pieces that stay in the first-level cache
  const std::tuple elements{Elements<T>(tensors, piece)...};
#pragma omp parallel for if (count > 1 << 15)
  for (int64_t i = 0; i < count; i += piece)
    std::apply([&](const auto&... e) { f(std::min(piece, count - i), e(i)...); }, elements);
}

/// to = value, or to += value.
template <class T>
void put(T& to, T value, bool accumulate) {
  to = accumulate ? to + value : value;
}

/// Calls f(std::true_type{}) or f(std::false_type{}): a loop over an elementary function vectorises only if the
/// compiler knows whether it adds.
template <class F>
void with_flag(bool flag, F&& f) {
  if (flag) f(std::true_type{});
  else f(std::false_type{});
}

/// Throws unless a and b have one shape, dtype and device: "Add: a f32 [2, 3] but b f64 [2, 3]".
inline void check_alike(const char* op, const char* name_a, const Tensor& a, const char* name_b, const Tensor& b) {
  check(a.defined() && b.defined(), "{}: {} is undefined", op, a ? name_b : name_a);
  check(a.shape() == b.shape() && a.dtype() == b.dtype() && a.device() == b.device(), "{}: {} {} {} but {} {} {}", op,
        name_a, name(a.dtype()), to_string(a.shape()), name_b, name(b.dtype()), to_string(b.shape()));
}

}  // namespace adder
