#include "adder/kernels/cross_entropy.h"

#include "adder/core/error.h"
#include "adder/core/memory.h"
#include "adder/kernels/elementwise.h"
#include "adder/kernels/matmul.h"
#include "adder/kernels/vector_math.h"

#include <bit>
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

// Tokens of a chunk, whose dlogits meet in the products of dx and dweight; and of a part of it, whose logits exist at a
// time. They differ only with bf16 operands, whose dlogits lie beside the logits.
struct Sizes {
  int64_t chunk, part;
};

Sizes sizes_for(Device device, DType type, int64_t columns) {
  const int64_t row = std::max<int64_t>(1, columns);
  // 4 MiB of f32 logits stay near the L2 cache; below 256 tokens the products would wait for the weight instead.
  int64_t chunk = std::max<int64_t>(256, (1 << 20) / row);
  if (device == Device::cuda) {
    // dx = dlogits W has 768 columns or so: below 4096 rows its tiles are too few for all processors; and every chunk
    // reads and writes the whole of dweight. The logits have columns enough: 512 tokens fill the processors.
    if (type == DType::bf16) {
      chunk = std::max<int64_t>(1024, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>((1 << 28) / row))));
      return {chunk, chunk / 8};
    }
    chunk = std::max<int64_t>(1024, (1 << 26) / row / 256 * 256);
  }
  return {chunk, chunk};
}

// Elements from one row of logits to the next.
int64_t pitch_of(int64_t columns) { return (columns + 63) / 64 * 64; }

// What forward, backward and token_losses share: the operands as matrices, and the logits of one part at a time.
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
    const Sizes sizes = chunk > 0 ? Sizes{chunk, chunk} : sizes_for(x.device(), x.dtype(), weight.size(0));
    chunk_ = std::min(sizes.chunk, tokens());
    part_ = std::min(sizes.part, tokens());
    buffer_ = new_buffer(part_, wide(x.dtype()));
  }

  /// Room for logits. Rows start at multiples of 64 elements: products and kernels read whole pieces.
  Tensor new_buffer(int64_t tokens, DType type) const {
    const int64_t n = weight_.size(0), pitch = pitch_of(n);
    const Tensor all({tokens, pitch}, type, x_.device());
    if (pitch > n) fill(all.slice_last(n, pitch), 0);  // of a last piece that is read, not counted
    return all.slice_last(0, n);
  }
  /// Calls f(begin, end) for every chunk.
  template <class F>
  void each(F&& f) const {
    for (int64_t begin = 0; begin < tokens(); begin += chunk_) f(begin, std::min(begin + chunk_, tokens()));
  }
  /// Calls f(begin, end, logits [end - begin, rows of the weight]) for every part of some tokens; f may overwrite the
  /// logits.
  template <class F>
  void each_part(int64_t first, int64_t last, F&& f) const {
    for (int64_t begin = first; begin < last; begin += part_) {
      const int64_t end = std::min(begin + part_, last);
      const Tensor logits = buffer_.slice_first(0, end - begin);
      multiply({.a = x_.slice_first(begin, end), .b = weight_, .c = logits, .transpose_b = true});
      f(begin, end, logits);
    }
  }
  int64_t chunk() const { return chunk_; }
  int64_t tokens() const { return x_.size(0); }
  const Tensor& x() const { return x_; }              // [tokens, d]
  const Tensor& weight() const { return weight_; }    // [rows, d]
  int64_t vocabulary() const { return vocabulary_; }  // the rows that are tokens
  const Tensor& targets() const { return targets_; }  // [tokens]

 private:
  Tensor x_, weight_, targets_, buffer_;
  int64_t vocabulary_, chunk_, part_;
};

struct TokenLosses {
  Tensor losses, logsumexp;  // [tokens]

  explicit TokenLosses(const Chunks& chunks)
      : losses({chunks.tokens()}, wide(chunks.x().dtype()), chunks.x().device()), logsumexp(empty_like(losses)) {
    if (chunks.x().device() == Device::cpu) check_targets(chunks.targets(), chunks.vocabulary());
  }
  /// Sets those of a part.
  void set(const Chunks& chunks, int64_t begin, int64_t end, const Tensor& logits, double z_loss) const {
    on(logits.device(), [&](auto backend) {
      cross_entropy_forward(backend, logits.slice_last(0, chunks.vocabulary()),
                            chunks.targets().slice_first(begin, end), z_loss, losses.slice_first(begin, end),
                            logsumexp.slice_first(begin, end));
    });
  }
};

// Where the gradients go; an undefined tensor: not wanted. dweight is added to.
struct Gradients {
  Slot dx;
  Tensor dweight, dloss;
};

// Calls see(begin, end, logits) for every part before its logits become dlogits.
template <class F>
void run_backward(const Chunks& chunks, const LinearCrossEntropy& op, const Gradients& to, F&& see) {
  const DType type = chunks.x().dtype();
  const Tensor rounded = type == DType::bf16 ? chunks.new_buffer(chunks.chunk(), type) : Tensor();
  const int64_t vocabulary = chunks.vocabulary(), columns = chunks.weight().size(0);
  chunks.each([&](int64_t first, int64_t last) {
    Tensor dlogits;
    chunks.each_part(first, last, [&](int64_t begin, int64_t end, const Tensor& logits) {
      see(begin, end, logits);
      dlogits = rounded ? rounded.slice_first(begin - first, end - first) : logits;
      on(logits.device(), [&](auto backend) {
        cross_entropy_backward(backend, {.logits = logits.slice_last(0, vocabulary),
                                         .dlogits = dlogits.slice_last(0, vocabulary),
                                         .targets = chunks.targets().slice_first(begin, end),
                                         .logsumexp = op.logsumexp.slice_first(begin, end),
                                         .dloss = to.dloss,
                                         .scale = op.scale,
                                         .z_loss = op.z_loss});
      });
      if (vocabulary < columns) fill(dlogits.slice_last(vocabulary, columns), 0);
    });
    if (rounded) dlogits = rounded.slice_first(0, last - first);
    if (to.dx.tensor)
      multiply({.a = dlogits, .b = chunks.weight(), .c = to.dx.tensor.matrix().slice_first(first, last),
                .beta = to.dx.accumulate ? 1.0 : 0.0});
    if (to.dweight)
      multiply({.a = dlogits, .b = chunks.x().slice_first(first, last), .c = to.dweight, .transpose_a = true,
                .beta = 1});
  });
}

}  // namespace

int64_t logits_bytes(Device device, DType type, int64_t tokens, int64_t rows) {
  const Sizes sizes = sizes_for(device, type, rows);
  const auto room = [&](int64_t most, DType of) {
    return pooled_bytes(std::min(most, tokens) * pitch_of(rows) * size_of(of));
  };
  return room(sizes.part, wide(type)) + (type == DType::bf16 ? room(sizes.chunk, type) : 0);
}

Tensor LinearCrossEntropy::forward() {
  const Chunks chunks(x, weight, targets, vocabulary, chunk);
  check(!scale || (scale.count() == 1 && scale.dtype() == DType::f64 && scale.device() == x.device()),
        "LinearCrossEntropy: scale is {} {}, not f64 [1] where x is", scale ? name(scale.dtype()) : "",
        scale ? to_string(scale.shape()) : "");
  const TokenLosses tokens(chunks);
  logsumexp = tokens.logsumexp;
  const auto see = [&](int64_t begin, int64_t end, const Tensor& logits) {
    tokens.set(chunks, begin, end, logits, z_loss);
  };
  if (with_gradients) {
    dx = Tensor(x.shape(), x.dtype(), x.device());
    dweight = zeros(weight.shape(), wide(x.dtype()), x.device());
    run_backward(chunks, *this, {.dx = {dx, false}, .dweight = dweight, .dloss = {}}, see);
  } else {
    chunks.each_part(0, chunks.tokens(), see);
  }
  const Tensor loss({1}, wide(x.dtype()), x.device());
  on(x.device(), [&](auto backend) { sum_losses(backend, tokens.losses, chunks.targets(), scale, loss); });
  if (with_gradients) x = weight = targets = scale = logsumexp = {};
  return loss;
}

void LinearCrossEntropy::backward(const Tensor& dloss, Grads& to) const {
  if (with_gradients) {
    on(dloss.device(), [&](auto backend) {
      if (to.wants(0)) {
        adder::scale(backend, dx, dloss, {dx, false});
        to.give(0, dx);
      }
      if (to.wants(1)) {
        const Slot slot = to.slot(1);
        adder::scale(backend, adder::to(dweight, slot.tensor.dtype()), dloss, slot);
      }
    });
    return;
  }
  if (!to.wants(0) && !to.wants(1)) return;
  const Slot slot_x = to.wants(0) ? to.slot(0) : Slot{}, slot_weight = to.wants(1) ? to.slot(1) : Slot{};
  if (slot_weight.tensor && !slot_weight.accumulate) fill(slot_weight.tensor, 0);
  run_backward(Chunks(x, weight, targets, vocabulary, chunk), *this,
               {.dx = slot_x, .dweight = slot_weight.tensor, .dloss = dloss}, [](auto&&...) {});
}

Tensor token_losses(const Tensor& x, const Tensor& weight, const Tensor& targets, int64_t vocabulary, int64_t chunk) {
  const Chunks chunks(x, weight, targets, vocabulary, chunk);
  const TokenLosses tokens(chunks);
  chunks.each_part(0, chunks.tokens(), [&](int64_t begin, int64_t end, const Tensor& logits) {
    tokens.set(chunks, begin, end, logits, 0);
  });
  return tokens.losses.reshape(targets.shape());
}

}  // namespace adder
