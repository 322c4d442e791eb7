// Element types: f32 and bf16 to train, i32 for tokens and labels, f64 on the CPU as the oracle.
#pragma once

#include <cstdint>

namespace adder {

enum class DType : unsigned char { f32, f64, bf16, i32 };

/// Storage format of bfloat16: the upper half of an f32. Arithmetic happens in float.
struct bf16 {
  uint16_t bits;
};

const char* name(DType type);
/// Bytes of one element.
int64_t size_of(DType type);

template <class T>
inline constexpr DType dtype_of = [] { static_assert(sizeof(T) == 0, "not an element type"); }();
template <>
inline constexpr DType dtype_of<float> = DType::f32;
template <>
inline constexpr DType dtype_of<double> = DType::f64;
template <>
inline constexpr DType dtype_of<bf16> = DType::bf16;
template <>
inline constexpr DType dtype_of<int32_t> = DType::i32;

/// Throws: the operator `op` does not compute in this type.
[[noreturn]] void no_such_dtype(const char* op, DType type);

/// Calls f(T{}) with the C++ type of a floating dtype that the CPU computes in: float or double.
template <class F>
decltype(auto) with_float(const char* op, DType type, F&& f) {
  if (type == DType::f32) return f(float{});
  if (type == DType::f64) return f(double{});
  no_such_dtype(op, type);
}

}  // namespace adder
