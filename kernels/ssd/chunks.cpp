#include "adder/kernels/ssd/chunks.h"

#include "adder/core/error.h"
#include "adder/kernels/blas.h"

namespace adder {

namespace ssd {

// 64 keeps the tiles of a chunk, and the states that backward reads, in the first two caches.
constexpr int64_t default_chunk = 64;

Chunks chunks_of(const Ssd& op) {
  const int64_t batch = op.x.size(0), time = op.x.size(1), length = op.chunk ? op.chunk : default_chunk;
  const int32_t* document = op.document ? op.document.data<int32_t>() : nullptr;
  const int64_t stride = op.document ? op.document.stride(time) : 0;
  const bool initial = op.initial_state.defined() || op.has_initial_state;
  Chunks chunks{.row_first = {0}};
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t* const row = document ? document + b * stride : nullptr;
    const auto boundary = [&](int64_t t) { return row && row[t] != row[t - 1]; };
    for (int64_t begin = 0; begin < time;) {
      int64_t end = begin + 1;
      while (end < time && end - begin < length && !boundary(end)) ++end;
      const bool enters = begin == 0 ? initial : !boundary(begin);
      chunks.list.push_back({.row = b, .begin = begin, .end = end, .state = enters ? chunks.states++ : -1, .follow = -1,
                             .square = chunks.squares, .last = end == time});
      chunks.squares += (end - begin) * (end - begin);
      if (begin > 0) chunks.list[chunks.list.size() - 2].follow = chunks.list.back().state;
      chunks.longest = std::max(chunks.longest, end - begin);
      begin = end;
    }
    chunks.row_first.push_back(static_cast<int64_t>(chunks.list.size()));
  }
  return chunks;
}

template <class T>
Decays<T>::Decays(const Ssd& op, const Chunks& chunks)
    : delta({op.x.size(0), op.x.size(2), op.x.size(1)}, op.x.dtype()),
      high(empty_like(delta)),
      low(empty_like(delta)) {
  const Sizes n = sizes_of(op);
  const T *dt = op.dt.data<T>(), *A_log = op.A_log.data<T>(), *bias = op.dt_bias ? op.dt_bias.data<T>() : nullptr;
  const int64_t stride = op.dt.stride(n.heads);
  const T least = static_cast<T>(op.dt_min), most = static_cast<T>(op.dt_max);
#pragma omp parallel for collapse(2) if (n.large())
  for (int64_t b = 0; b < n.batch; ++b)
    for (int64_t h = 0; h < n.heads; ++h) {
      const int64_t at = (b * n.heads + h) * n.time;
      T *d = delta.data<T>() + at, *hi = high.data<T>() + at, *lo = low.data<T>() + at;
      const T A = -math::exp(A_log[h]), shift = bias ? bias[h] : T{0};
      for (int64_t t = 0; t < n.time; ++t) d[t] = dt[(b * n.time + t) * stride + h] + shift;
      if (op.softplus)
        for (int64_t t = 0; t < n.time; ++t) d[t] = math::softplus(d[t]);
      for (int64_t t = 0; t < n.time; ++t) d[t] = d[t] < least ? least : d[t] > most ? most : d[t];  // NaN stays
      for (const Chunk& chunk : chunks.of_row(b)) {
        Wide<T> sum = 0;
        for (int64_t t = chunk.begin; t < chunk.end; ++t) {
          const Wide<T> a = Wide<T>{d[t]} * A;
          sum += a < least_log_decay ? Wide<T>{least_log_decay} : a;
          hi[t] = static_cast<T>(sum);
          lo[t] = static_cast<T>(sum - hi[t]);
        }
      }
    }
}
template struct Decays<float>;
template struct Decays<double>;

Tensor products_CB(const Ssd& op, const Chunks& chunks) {
  const Sizes n = sizes_of(op);
  const auto count = static_cast<int64_t>(chunks.list.size());
  Tensor result({n.groups, chunks.squares}, op.x.dtype());
  with_float("Ssd", op.x.dtype(), [&]<class T>(T) {
#pragma omp parallel for collapse(2) if (n.large())
    for (int64_t c = 0; c < count; ++c)
      for (int64_t g = 0; g < n.groups; ++g) {
        const Chunk& chunk = chunks.list[static_cast<size_t>(c)];
        const auto B = view<T>(op.B, chunk, g), C = view<T>(op.C, chunk, g);
        blas::gemm<T>(chunk.size(), chunk.size(), n.state, 1, {C.data, C.stride}, {B.data, B.stride, true}, 0,
                      result.data<T>() + g * chunks.squares + chunk.square, chunk.size());
      }
  });
  return result;
}

}  // namespace ssd

int64_t ssd_states(Cpu, const Ssd& op) { return ssd::chunks_of(op).states; }

}  // namespace adder
