#include "adder/kernels/embedding.h"

#include "adder/kernels/elements.h"

#include <omp.h>

namespace adder {
namespace {

// "[1, 3]": where element i of a tensor is.
std::string position(const Shape& shape, int64_t i) {
  std::string text;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    text = fmt::format("{}{}{}", i % shape[axis], text.empty() ? "" : ", ", text);
    i /= shape[axis];
  }
  return "[" + text + "]";
}

}  // namespace

void embedding_forward(Cpu, const Tensor& tokens, const Tensor& weight, const Tensor& y) {
  const int32_t* token = tokens.data<int32_t>();
  const int64_t vocabulary = weight.size(0), channels = weight.size(1), count = tokens.count();
  for (int64_t i = 0; i < count; ++i)
    check(token[i] >= 0 && token[i] < vocabulary, "Embedding: token {} at {} is outside the vocabulary of {}", token[i],
          position(tokens.shape(), i), vocabulary);
  with_float("Embedding", weight.dtype(), [&]<class T>(T) {
    const Elements<T> from(weight, channels), to(y, channels);
#pragma omp parallel for if (count * channels > 1 << 15)
    for (int64_t i = 0; i < count; ++i) std::copy_n(from(token[i] * channels), channels, to(i * channels));
  });
}

void embedding_backward(Cpu, const Tensor& tokens, const Tensor& dy, const Slot& dweight) {
  const int32_t* token = tokens.data<int32_t>();
  const int64_t vocabulary = dweight.tensor.size(0), channels = dweight.tensor.size(1), count = tokens.count();
  // Each thread owns a range of channels (whole cache lines) and walks all positions in order: nothing is shared, and
  // each sum has one order whatever the ranges are.
  const int64_t threads = omp_get_max_threads(), width = ((channels + threads - 1) / threads + 15) / 16 * 16;
  with_float("Embedding", dy.dtype(), [&]<class T>(T) {
    const Elements<T> from(dy, channels), to(dweight.tensor, channels);
#pragma omp parallel for if (dy.count() > 1 << 14)
    for (int64_t j = 0; j < channels; j += width) {
      const int64_t n = std::min(width, channels - j);
      if (!dweight.accumulate)
        for (int64_t v = 0; v < vocabulary; ++v) std::fill_n(to(v * channels) + j, n, T{0});
      for (int64_t i = 0; i < count; ++i) {
        const T* d = from(i * channels) + j;
        T* sum = to(token[i] * channels) + j;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) sum[c] += d[c];
      }
    }
  });
}

Tensor Embedding::forward() {
  check(weight.defined() && weight.rank() == 2, "Embedding: weight {} is not [vocabulary, channel]",
        weight ? to_string(weight.shape()) : "(undefined)");
  check(tokens.defined() && tokens.dtype() == DType::i32, "Embedding: the tokens are {}, not i32",
        tokens ? name(tokens.dtype()) : "undefined");
  check(tokens.device() == weight.device(), "Embedding: the tokens lie on {} but the weight on {}",
        name(tokens.device()), name(weight.device()));
  tokens = contiguous(tokens);
  Tensor y(tokens.shape().plus(weight.size(1)), weight.dtype(), weight.device());
  on(y.device(), [&](auto backend) { embedding_forward(backend, tokens, with_whole_rows(weight), y); });
  weight = {};
  return y;
}

void Embedding::backward(const Tensor& dy, Grads& to) const {
  on(dy.device(), [&](auto backend) { embedding_backward(backend, tokens, with_whole_rows(dy), to.slot(0)); });
}

}  // namespace adder
