// A tensor as kernels see it: elements counted in row-major order, rows that may lie apart, 16 bytes at a time.
//
// Memory-bound kernels give each thread one piece of per_piece<T> elements: 4 f32 or 8 bf16. Where every piece lies
// side by side and is aligned, it moves in one access; elsewhere element by element. Arithmetic is in float.
#pragma once

#include "adder/core/cuda.cuh"
#include "adder/core/tensor.h"

#include <cstdint>
#include <limits>

namespace adder {

template <class T>
inline constexpr int per_piece = 16 / static_cast<int>(sizeof(T));

__device__ inline float value(float x) { return x; }
__device__ inline float value(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

/// Rounded to nearest, ties to even.
template <class T>
__device__ T element(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
}

/// n elements as they lie in memory, which move sixteen bytes at a time: of bf16 half the registers of the floats, and
/// several can be on their way before the first is looked at.
template <class T, int n = per_piece<T>>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Lanes {
  unsigned word[n * sizeof(T) / 4];

  __device__ float operator[](int j) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(word[j]);
    else return __uint_as_float(j % 2 == 0 ? word[j / 2] << 16 : word[j / 2] & 0xffff0000u);
  }
  /// x, rounded.
  __device__ static Lanes of(const float (&x)[n]) {
    Lanes p;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int j = 0; j < n; ++j) p.word[j] = __float_as_uint(x[j]);
    } else {
#pragma unroll
      for (int j = 0; j < n; j += 2)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p.word[j / 2]) : "f"(x[j + 1]), "f"(x[j]));
    }
    return p;
  }
  /// Into a zero.
  __device__ void set(int j, T x) {
    if constexpr (sizeof(T) == 4) word[j] = __float_as_uint(x);
    else word[j / 2] |= static_cast<unsigned>(x.bits) << (j % 2 * 16);
  }
};

/// Elements that lie side by side: a row whose address was computed once.
template <class T, int n>
struct Line {
  T* p;
  bool whole;  // pieces are aligned, and the length is a multiple of n

  /// Elements [j, j + n), those from `end` on zero; j is a multiple of n, `end` the length.
  __device__ Lanes<T, n> load(int j, int end) const {
    Lanes<T, n> x{};
    if (whole) {
      if (j < end) x = *reinterpret_cast<const Lanes<T, n>*>(p + j);
    } else {
#pragma unroll
      for (int c = 0; c < n; ++c)
        if (j + c < end) x.set(c, p[j + c]);
    }
    return x;
  }
  __device__ void load(int j, int end, float (&x)[n]) const {
    const Lanes<T, n> piece = load(j, end);
#pragma unroll
    for (int c = 0; c < n; ++c) x[c] = piece[c];
  }
  /// Elements [j, min(j + n, end)) = x, added to what is there if `add`; rounded.
  __device__ void put(int j, int end, float (&x)[n], bool add = false) const {
    if (add) {
      const Lanes<T, n> before = load(j, end);
#pragma unroll
      for (int c = 0; c < n; ++c) x[c] += before[c];
    }
    if (whole) {
      if (j < end) *reinterpret_cast<Lanes<T, n>*>(p + j) = Lanes<T, n>::of(x);
    } else {
#pragma unroll
      for (int c = 0; c < n; ++c)
        if (j + c < end) p[j + c] = element<T>(x[c]);
    }
  }
};

/// Passed to kernels by value. T is float, bf16, double or int32_t. A kernel that reads bf16 beside f32 takes pieces of
/// one length of both.
template <class T, int per_access = per_piece<T>>
class Elements {
 public:
  static constexpr int n = per_access;

  /// `piece` elements from a multiple of `piece` on (a row of a row-wise kernel, or 1) must lie side by side. Of an
  /// undefined tensor there are no elements.
  explicit Elements(const Tensor& t, int64_t piece = 1) {
    if (!t) return;
    data_ = t.data<T>();
    count_ = t.count();
    whole_lines_ = piece % n == 0;
    whole_ = reinterpret_cast<uintptr_t>(data_) % alignof(Lanes<T, n>) == 0 && (piece == 1 || whole_lines_);
    if (t.contiguous()) return;
    row_ = t.row();
    pitch_ = t.pitch();
    if (row_ % piece != 0) fail("rows of a tensor lie apart where a kernel reads them as one");
    whole_ = whole_ && row_ % n == 0 && pitch_ % n == 0;
    // i / row = high half of i * magic, exact as long as i * row < 2^64.
    if (count_ > std::numeric_limits<int64_t>::max() / row_) fail("a tensor too large for its rows to lie apart");
    magic_ = row_ == 1 ? 0 : std::numeric_limits<uint64_t>::max() / static_cast<uint64_t>(row_) + 1;
  }

  __host__ __device__ explicit operator bool() const { return data_ != nullptr; }
  __host__ __device__ int64_t count() const { return count_; }

  /// Address of element i.
  __device__ T* operator()(int64_t i) const { return place(i).p; }

  /// The row, of as many elements as `piece` said, that starts at element i.
  __device__ Line<T, n> line(int64_t i) const { return {place(i).p, whole_ && whole_lines_}; }

  /// Elements [i, i + n), those from `end` on zero. i is a multiple of n, counted from the row that `piece` named.
  __device__ Lanes<T, n> load(int64_t i, int64_t end) const {
    Place at = place(i);
    if (whole_ && i + n <= end) return *reinterpret_cast<const Lanes<T, n>*>(at.p);
    Lanes<T, n> x{};
#pragma unroll
    for (int j = 0; j < n; ++j) {
      if (i + j < end) x.set(j, *at.p);
      step(at);
    }
    return x;
  }
  __device__ void load(int64_t i, int64_t end, float (&x)[n]) const {
    const Lanes<T, n> p = load(i, end);
#pragma unroll
    for (int j = 0; j < n; ++j) x[j] = p[j];
  }

  /// Elements [i, min(i + n, end)) = x, rounded.
  __device__ void store(int64_t i, int64_t end, const float (&x)[n]) const {
    Place at = place(i);
    if (whole_ && i + n <= end) {
      *reinterpret_cast<Lanes<T, n>*>(at.p) = Lanes<T, n>::of(x);
    } else {
#pragma unroll
      for (int j = 0; j < n; ++j) {
        if (i + j < end) *at.p = element<T>(x[j]);
        step(at);
      }
    }
  }

  /// The same, added to what is there if `add`.
  __device__ void put(int64_t i, int64_t end, float (&x)[n], bool add) const {
    if (add) {
      float before[n];
      load(i, end, before);
#pragma unroll
      for (int j = 0; j < n; ++j) x[j] += before[j];
    }
    store(i, end, x);
  }

 private:
  struct Place {
    T* p;
    int64_t left;  // elements to the end of the row
  };
  __device__ Place place(int64_t i) const {
    if (i < row_) return {data_ + i, row_ - i};
    const int64_t r = row_ == 1 ? i : static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(i), magic_));
    const int64_t column = i - r * row_;
    return {data_ + r * pitch_ + column, row_ - column};
  }
  __device__ void step(Place& at) const {
    ++at.p;
    if (--at.left > 0) return;
    at.p += pitch_ - row_;
    at.left = row_;
  }

  T* data_ = nullptr;
  int64_t count_ = 0;
  int64_t row_ = std::numeric_limits<int64_t>::max(), pitch_ = 0;
  uint64_t magic_ = 0;
  bool whole_ = false, whole_lines_ = false;
};

/// Calls f(T{}) with the type of a dtype that the GPU computes in: float, or bf16 with arithmetic in float.
template <class F>
decltype(auto) with_gpu_float(const char* op, DType type, F&& f) {
  if (type == DType::f32) return f(float{});
  if (type == DType::bf16) return f(bf16{});
  no_such_dtype(op, type);
}

}  // namespace adder
