#include "adder/kernels/cross_entropy.h"

#include "adder/core/error.h"
#include "adder/kernels/matmul.h"
#include "adder/kernels/vector_math.h"

#include <limits>

namespace adder {
namespace {

// A row is reduced in this many columns side by side: vector registers, and an order that is always the same.
constexpr int64_t lanes = 32;

template <class T>
T largest(const T* row, int64_t n) {
  T most[lanes];
  std::fill(most, most + lanes, -std::numeric_limits<T>::infinity());
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes)
    for (int64_t l = 0; l < lanes; ++l) most[l] = row[j + l] > most[l] ? row[j + l] : most[l];
  for (; j < n; ++j) most[0] = row[j] > most[0] ? row[j] : most[0];
  return *std::max_element(most, most + lanes);
}

// sum of exp(row - most)
template <class T>
T sum_of_exp(const T* row, int64_t n, T most) {
  T sum[lanes] = {};
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes)
    for (int64_t l = 0; l < lanes; ++l) sum[l] += math::exp(row[j + l] - most);
  for (; j < n; ++j) sum[0] += math::exp(row[j] - most);
  for (int64_t half = lanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}

template <class T>
double value_or_one(const Tensor& t) {
  return t ? static_cast<double>(*t.data<T>()) : 1.0;
}

}  // namespace

void cross_entropy_forward(Cpu, const Tensor& logits, const Tensor& targets, double z_loss, const Tensor& losses,
                           const Tensor& logsumexp) {
  const int64_t tokens = logits.size(0), n = logits.size(1);
  with_float("LinearCrossEntropy", logits.dtype(), [&]<class T>(T) {
    const int32_t* target = targets.data<int32_t>();
    const T* data = logits.data<T>();
    const int64_t pitch = logits.stride(n);
    T *loss = losses.data<T>(), *lse = logsumexp.data<T>();
#pragma omp parallel for if (tokens * n > 1 << 14)
    for (int64_t i = 0; i < tokens; ++i) {
      if (target[i] == not_counted) {
        loss[i] = lse[i] = 0;
        continue;
      }
      const T* row = data + i * pitch;
      const T most = largest(row, n), log_sum = math::log(sum_of_exp(row, n, most));
      lse[i] = most + log_sum;
      // The large parts cancel first: of logits near 1e4 the loss keeps its digits.
      loss[i] = (most - row[target[i]]) + log_sum + static_cast<T>(z_loss) * lse[i] * lse[i];
    }
  });
}

void sum_losses(Cpu, const Tensor& losses, const Tensor& targets, const Tensor& scale, const Tensor& to) {
  with_float("LinearCrossEntropy", losses.dtype(), [&]<class T>(T) {
    const int32_t* target = targets.data<int32_t>();
    const T* loss = losses.data<T>();
    double sum = 0;
    int64_t counted = 0;
    for (int64_t i = 0; i < losses.count(); ++i) {
      sum += static_cast<double>(loss[i]);
      counted += target[i] != not_counted;
    }
    *to.data<T>() = counted == 0 ? T{0} : static_cast<T>(sum * value_or_one<double>(scale));
  });
}

void cross_entropy_backward(Cpu, const CrossEntropyBackward& b) {
  const int64_t tokens = b.logits.size(0), n = b.logits.size(1);
  with_float("LinearCrossEntropy", b.logits.dtype(), [&]<class T>(T) {
    const int32_t* target = b.targets.data<int32_t>();
    const T *lse = b.logsumexp.data<T>(), *from = b.logits.data<T>();
    T* to = b.dlogits.data<T>();
    const int64_t pitch_from = b.logits.stride(n), pitch_to = b.dlogits.stride(n);
    const T factor = static_cast<T>(value_or_one<T>(b.dloss) * value_or_one<double>(b.scale));
#pragma omp parallel for if (tokens * n > 1 << 14)
    for (int64_t i = 0; i < tokens; ++i) {
      const T* row = from + i * pitch_from;
      T* gradient = to + i * pitch_to;
      if (target[i] == not_counted) {
        std::fill(gradient, gradient + n, T{0});
        continue;
      }
      const T shift = lse[i], weight = factor * (1 + 2 * static_cast<T>(b.z_loss) * lse[i]);
#pragma omp simd  // the gradient may lie where the logits are
      for (int64_t j = 0; j < n; ++j) gradient[j] = weight * math::exp(row[j] - shift);
      gradient[target[i]] -= factor;
    }
  });
}

namespace {

void check_targets(const Tensor& targets, int64_t vocabulary) {
  const int32_t* target = targets.data<int32_t>();
  for (int64_t i = 0; i < targets.count(); ++i)
    check(target[i] == not_counted || (0 <= target[i] && target[i] < vocabulary),
          "LinearCrossEntropy: target {} at position {} is outside the vocabulary of {}", target[i], i, vocabulary);
}

// The dtype of logits and losses.
DType wide(DType type) { return type == DType::bf16 ? DType::f32 : type; }

// Tokens whose logits exist at a time.
int64_t chunk_size(Device device, int64_t vocabulary) {
  const int64_t row = std::max<int64_t>(1, vocabulary);
  // 4 MiB of f32 logits stay near the L2 cache; below 256 tokens the products would wait for the weight instead.
  if (device == Device::cpu) return std::max<int64_t>(256, (1 << 20) / row);
  // Whole tiles of the products, and enough of them; 2^26 logits are 256 MiB, and 128 MiB more are their gradients.
  return std::max<int64_t>(1024, (1 << 26) / row / 256 * 256);
}

// What forward, backward and token_losses share: the operands as matrices, and the logits of one chunk at a time.
class Chunks {
 public:
  Chunks(const Tensor& x, const Tensor& weight, const Tensor& targets, int64_t vocabulary, int64_t chunk) {
    check(x.rank() >= 1 && weight.rank() == 2 && x.size(-1) == weight.size(1), "LinearCrossEntropy: x {} but weight {}",
          to_string(x.shape()), to_string(weight.shape()));
    check(x.dtype() == weight.dtype(), "LinearCrossEntropy: x is {} but weight is {}", name(x.dtype()),
          name(weight.dtype()));
    check(weight.device() == x.device() && targets.device() == x.device(),
          "LinearCrossEntropy: x is on {}, weight on {} and targets on {}", name(x.device()), name(weight.device()),
          name(targets.device()));
    check(targets.shape() == x.shape().axes(0, x.rank() - 1), "LinearCrossEntropy: x {} but targets {}",
          to_string(x.shape()), to_string(targets.shape()));
    check(0 <= vocabulary && vocabulary <= weight.size(0), "LinearCrossEntropy: a vocabulary of {} but weight {}",
          vocabulary, to_string(weight.shape()));
    check(chunk >= 0, "LinearCrossEntropy: chunks of {} tokens", chunk);
    x_ = x.matrix();
    targets_ = contiguous(targets).reshape({targets.count()});
    weight_ = weight;
    vocabulary_ = vocabulary > 0 ? vocabulary : weight.size(0);
    chunk_ = std::min(chunk > 0 ? chunk : chunk_size(x.device(), weight_.size(0)), tokens());
    buffer_ = new_buffer(wide(x.dtype()));
  }

  /// Room for the logits of a chunk. Rows start at multiples of 64 elements: products and kernels read whole pieces.
  Tensor new_buffer(DType type) const {
    const int64_t n = weight_.size(0), pitch = (n + 63) / 64 * 64;
    const Tensor all({chunk_, pitch}, type, x_.device());
    if (pitch > n) fill(all.slice_last(n, pitch), 0);  // of a last piece that is read, not counted
    return all.slice_last(0, n);
  }
  /// Calls f(begin, end, logits [end - begin, rows of the weight]) for every chunk; f may overwrite the logits.
  template <class F>
  void each(F&& f) const {
    for (int64_t begin = 0; begin < tokens(); begin += chunk_) {
      const int64_t end = std::min(begin + chunk_, tokens());
      const Tensor logits = buffer_.slice_first(0, end - begin);
      multiply({.a = x_.slice_first(begin, end), .b = weight_, .c = logits, .transpose_b = true});
      f(begin, end, logits);
    }
  }
  int64_t tokens() const { return x_.size(0); }
  const Tensor& x() const { return x_; }              // [tokens, d]
  const Tensor& weight() const { return weight_; }    // [rows, d]
  int64_t vocabulary() const { return vocabulary_; }  // the rows that are tokens
  const Tensor& targets() const { return targets_; }  // [tokens]

 private:
  Tensor x_, weight_, targets_, buffer_;
  int64_t vocabulary_, chunk_;
};

struct TokenLosses {
  Tensor losses, logsumexp;  // [tokens]
};

TokenLosses forward_chunks(const Chunks& chunks, double z_loss) {
  const Tensor& x = chunks.x();
  const Shape shape{chunks.tokens()};
  const DType type = wide(x.dtype());
  const TokenLosses result{Tensor(shape, type, x.device()), Tensor(shape, type, x.device())};
  if (x.device() == Device::cpu) check_targets(chunks.targets(), chunks.vocabulary());
  on(x.device(), [&](auto backend) {
    chunks.each([&](int64_t begin, int64_t end, const Tensor& logits) {
      cross_entropy_forward(backend, logits.slice_last(0, chunks.vocabulary()),
                            chunks.targets().slice_first(begin, end), z_loss, result.losses.slice_first(begin, end),
                            result.logsumexp.slice_first(begin, end));
    });
  });
  return result;
}

}  // namespace

Tensor LinearCrossEntropy::forward() {
  const Chunks chunks(x, weight, targets, vocabulary, chunk);
  check(!scale || (scale.count() == 1 && scale.dtype() == DType::f64 && scale.device() == x.device()),
        "LinearCrossEntropy: scale is {} {}, not f64 [1] where x is", scale ? name(scale.dtype()) : "",
        scale ? to_string(scale.shape()) : "");
  const TokenLosses tokens = forward_chunks(chunks, z_loss);
  logsumexp = tokens.logsumexp;
  const Tensor loss({1}, wide(x.dtype()), x.device());
  on(x.device(), [&](auto backend) { sum_losses(backend, tokens.losses, chunks.targets(), scale, loss); });
  return loss;
}

void LinearCrossEntropy::backward(const Tensor& dloss, Grads& to) const {
  if (!to.wants(0) && !to.wants(1)) return;
  const Slot dx = to.wants(0) ? to.slot(0) : Slot{}, dw = to.wants(1) ? to.slot(1) : Slot{};
  const Chunks chunks(x, weight, targets, vocabulary, chunk);
  if (dw.tensor && !dw.accumulate) fill(dw.tensor, 0);  // the chunks then add
  const int64_t vocabulary = chunks.vocabulary(), rows = chunks.weight().size(0);
  const Tensor rounded = x.dtype() == DType::bf16 ? chunks.new_buffer(DType::bf16) : Tensor();
  chunks.each([&](int64_t begin, int64_t end, const Tensor& logits) {
    const Tensor dlogits = rounded ? rounded.slice_first(0, end - begin) : logits;
    on(x.device(), [&](auto backend) {
      cross_entropy_backward(backend, {.logits = logits.slice_last(0, vocabulary),
                                       .dlogits = dlogits.slice_last(0, vocabulary),
                                       .targets = chunks.targets().slice_first(begin, end),
                                       .logsumexp = logsumexp.slice_first(begin, end),
                                       .dloss = dloss,
                                       .scale = scale,
                                       .z_loss = z_loss});
    });
    if (vocabulary < rows) fill(dlogits.slice_last(vocabulary, rows), 0);
    if (dx.tensor)
      multiply({.a = dlogits, .b = chunks.weight(), .c = dx.tensor.matrix().slice_first(begin, end),
                .beta = dx.accumulate ? 1.0 : 0.0});
    if (dw.tensor)
      multiply({.a = dlogits, .b = chunks.x().slice_first(begin, end), .c = dw.tensor, .transpose_a = true, .beta = 1});
  });
}

Tensor token_losses(const Tensor& x, const Tensor& weight, const Tensor& targets, int64_t vocabulary, int64_t chunk) {
  return forward_chunks(Chunks(x, weight, targets, vocabulary, chunk), 0).losses.reshape(targets.shape());
}

}  // namespace adder
