// What the CPU's forward and backward pass of SSD share: chunks, decays, strides.
#pragma once

#include "adder/core/tensor.h"
#include "adder/kernels/ssd/ssd.h"
#include "adder/kernels/vector_math.h"

#include <algorithm>
#include <span>
#include <type_traits>
#include <vector>

namespace adder::ssd {

/// The sums of decays are kept in two numbers of T, rounded from one of these.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, float>, double, long double>;

/// a_t below this is cut.
inline constexpr double least_log_decay = -40;

/// Tokens [begin, end) of one batch row, all of one document.
struct Chunk {
  int64_t row, begin, end;
  int64_t state;   // number of the state that enters, among those that are kept; -1: none enters
  int64_t follow;  // the same of the next chunk of the row, so of the state that leaves; -1: none needs it
  int64_t square;  // where its [size, size] elements begin among those of all chunks
  bool last;       // of its row: the state that leaves is the final one
  int64_t size() const { return end - begin; }
  bool enters() const { return state >= 0; }
};
struct Chunks {
  std::vector<Chunk> list;       // by row, then time
  std::vector<int64_t> row_first;  // [batch + 1]: the chunks of row b are [row_first[b], row_first[b + 1])
  int64_t longest = 0;
  int64_t states = 0;   // chunks that a state enters
  int64_t squares = 0;  // Σ size²: a short document costs its own square, not that of the longest chunk
  std::span<const Chunk> of_row(int64_t b) const {
    const auto row = static_cast<size_t>(b);
    return std::span(list).subspan(static_cast<size_t>(row_first[row]),
                                   static_cast<size_t>(row_first[row + 1] - row_first[row]));
  }
};
Chunks chunks_of(const Ssd& op);

/// Where the numbers of one (batch row, head) or (batch row, group) lie.
struct Sizes {
  int64_t batch, time, heads, width, groups, state;
  int64_t heads_per_group() const { return heads / groups; }
  bool large() const { return batch * time * heads * (width + state) > 1 << 14; }  // worth waking threads for
};
inline Sizes sizes_of(const Ssd& op) {
  return {op.x.size(0), op.x.size(1), op.x.size(2), op.x.size(3), op.B.size(2), op.B.size(3)};
}

/// A tensor [batch, time, item, n] as the matrix [tokens of a chunk, n] of one item: first element and row stride.
template <class T>
struct View {
  T* data;
  int64_t stride;
  T* row(int64_t i) const { return data + i * stride; }
};
template <class T>
View<T> view(const Tensor& t, const Chunk& chunk, int64_t item) {
  const int64_t n = t.size(3), stride = t.stride(t.size(2) * n);
  return {t.data<T>() + (chunk.row * t.size(1) + chunk.begin) * stride + item * n, stride};
}

/// Δ and, from the start of each chunk, the sum of a up to and including each token, as high + low.
template <class T>
struct Decays {
  Tensor delta, high, low;  // [batch, head, time]
  explicit Decays(const Ssd& op, const Chunks& chunks);
};

/// The decays of one chunk and head. std::min with the zero second lets NaN through.
template <class T>
struct ChunkDecay {
  const T *delta, *high, *low;
  int64_t last;  // its last token

  ChunkDecay(const Decays<T>& all, const Chunk& chunk, int64_t head) {
    const int64_t at = (chunk.row * all.delta.size(1) + head) * all.delta.size(2) + chunk.begin;
    delta = all.delta.template data<T>() + at;
    high = all.high.template data<T>() + at;
    low = all.low.template data<T>() + at;
    last = chunk.size() - 1;
  }
  /// e^{cs_i}: what is left at token i of the state that entered.
  T from_start(int64_t i) const { return math::exp(high[i] + low[i]); }
  /// e^{cs_Q - cs_j}: what is left of token j at the end.
  T to_end(int64_t j) const { return math::exp(std::min((high[last] - high[j]) + (low[last] - low[j]), T{0})); }
  /// e^{cs_i - cs_j}, j <= i.
  T between(int64_t i, int64_t j) const { return math::exp(std::min((high[i] - high[j]) + (low[i] - low[j]), T{0})); }
};

/// C Bᵀ of every chunk and group: [group, squares], the matrix [size, size] of a chunk at its `square`.
Tensor products_CB(const Ssd& op, const Chunks& chunks);

}  // namespace adder::ssd
