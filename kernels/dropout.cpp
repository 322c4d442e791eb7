#include "adder/kernels/dropout.h"

#include "adder/core/error.h"

#include <algorithm>

namespace adder {
namespace {

constexpr int64_t lanes = 64, tile = 4 * lanes;  // Philox blocks made side by side, and their words

uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

// Words of the blocks [first, first + lanes): words[4 i + j] = philox({first + i, step}, key)[j]. The rounds of
// core/random.h with the lanes innermost, which vectorises.
void philox_words(uint64_t first, uint64_t step, uint64_t key, uint32_t* words) {
  uint32_t c0[lanes], c1[lanes], c2[lanes], c3[lanes];
  for (int64_t i = 0; i < lanes; ++i) {
    c0[i] = low(first + static_cast<uint64_t>(i));
    c1[i] = high(first + static_cast<uint64_t>(i));
    c2[i] = low(step);
    c3[i] = high(step);
  }
  uint32_t k0 = low(key), k1 = high(key);
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (int64_t i = 0; i < lanes; ++i) {
      const uint64_t a = uint64_t{0xD2511F53} * c0[i], b = uint64_t{0xCD9E8D57} * c2[i];
      c0[i] = high(b) ^ c1[i] ^ k0;
      c1[i] = low(b);
      c2[i] = high(a) ^ c3[i] ^ k1;
      c3[i] = low(a);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int64_t i = 0; i < lanes; ++i) {
    words[4 * i] = c0[i];
    words[4 * i + 1] = c1[i];
    words[4 * i + 2] = c2[i];
    words[4 * i + 3] = c3[i];
  }
}

}  // namespace

void dropout(Cpu, const Dropout& op, const Tensor& x, const Tensor& y) {
  const int32_t* position = op.position.data<int32_t>();
  const int64_t count = x.count(), row = count / std::max<int64_t>(1, x.size(0));
  const auto step = static_cast<uint64_t>(position[0]);
  const int64_t first = position[1] * row, end = first + count;  // global indices of this batch: they are one range
  const auto threshold = static_cast<uint32_t>(op.p * 0x1p32);
  with_float("Dropout", x.dtype(), [&]<class T>(T) {
    const T *from = x.data<T>(), scale = static_cast<T>(1 / (1 - op.p));
    T* to = y.data<T>();
#pragma omp parallel for if (count > 1 << 14)
    for (int64_t g = first / tile * tile; g < end; g += tile) {
      uint32_t words[tile];
      philox_words(static_cast<uint64_t>(g / 4), step, op.key, words);
      const int64_t begin = std::max(first, g), n = std::min(end, g + tile) - begin;
      const uint32_t* word = words + (begin - g);
      const T* source = from + (begin - first);
      T* target = to + (begin - first);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) target[i] = word[i] >= threshold ? source[i] * scale : T{0};
    }
  });
}

Tensor Dropout::forward() {
  check(x.defined() && x.rank() >= 1, "Dropout: x has no batch axis");
  check(p >= 0 && p < 1, "Dropout: probability {} is outside [0, 1)", p);
  const Tensor from = std::exchange(x, {});
  if (p == 0) {
    position = {};
    return from;
  }
  check(position.defined() && position.dtype() == DType::i32 && position.shape() == Shape{2},
        "Dropout: position {} is not i32 [2]",
        position ? fmt::format("{} {}", name(position.dtype()), to_string(position.shape())) : "(undefined)");
  position = clone(position);  // the caller's may move on before backward
  Tensor y = empty_like(from);
  on(y.device(), [&](auto backend) { dropout(backend, *this, contiguous(from), y); });
  return y;
}

void Dropout::backward(const Tensor& dy, Grads& to) const {
  if (p == 0) return to.give(0, dy);
  const Tensor dx = empty_like(dy);
  on(dy.device(), [&](auto backend) { dropout(backend, *this, contiguous(dy), dx); });
  to.give(0, dx);
}

}  // namespace adder
