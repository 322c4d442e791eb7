#include "adder/core/error.h"
#include "adder/kernels/blas.h"
#include "adder/kernels/ssd/chunks.h"

namespace adder {
namespace ssd {
namespace {

// One (batch row, head): its chunks in order, the state carried from one to the next.
template <class T>
struct HeadPass {
  const Ssd& op;
  const SsdResult& to;
  const Chunks& chunks;
  const Decays<T>& decays;
  const Tensor& CB;
  Sizes n;
  std::vector<T> M, scaled, S;  // [Q, Q], [Q, max(width, state)], [width, state]

  void run(int64_t b, int64_t h) {
    const int64_t cells = n.width * n.state;
    if (op.initial_state) std::copy_n(op.initial_state.data<T>() + (b * n.heads + h) * cells, cells, S.begin());
    for (const Chunk& chunk : chunks.of_row(b)) {
      if (chunk.enters()) std::copy_n(S.begin(), cells, to.states.data<T>() + (chunk.state * n.heads + h) * cells);
      output(chunk, h);
      if (!chunk.last || to.final_state) next_state(chunk, h);
    }
    if (to.final_state) std::copy_n(S.begin(), cells, to.final_state.data<T>() + (b * n.heads + h) * cells);
  }

  // Y_i = e^{cs_i} S C_i + Σ_{j<=i} (C_i·B_j) e^{cs_i - cs_j} Δ_j x_j
  void output(const Chunk& chunk, int64_t h) {
    const int64_t q = chunk.size(), g = h / n.heads_per_group();
    const ChunkDecay<T> decay(decays, chunk, h);
    const auto x = view<T>(op.x, chunk, h), C = view<T>(op.C, chunk, g), y = view<T>(to.y, chunk, h);
    if (chunk.enters()) {
      for (int64_t i = 0; i < q; ++i) {
        const T e = decay.from_start(i);
        for (int64_t k = 0; k < n.state; ++k) scaled[i * n.state + k] = e * C.row(i)[k];
      }
      blas::gemm<T>(q, n.width, n.state, 1, {scaled.data(), n.state}, {S.data(), n.state, true}, 0, y.data, y.stride);
    }
    const T* cb = CB.data<T>() + g * chunks.squares + chunk.square;
    for (int64_t i = 0; i < q; ++i) {
      T* row = M.data() + i * q;
      for (int64_t j = 0; j <= i; ++j) row[j] = cb[i * q + j] * decay.between(i, j) * decay.delta[j];
      std::fill(row + i + 1, row + q, T{0});
    }
    blas::gemm<T>(q, n.width, q, 1, {M.data(), q}, {x.data, x.stride}, chunk.enters() ? 1 : 0, y.data, y.stride);
    skip_and_gate(chunk, h, x, y);
  }

  void skip_and_gate(const Chunk& chunk, int64_t h, const View<T>& x, const View<T>& y) const {
    const bool per_channel = op.D && op.D.rank() == 2;
    const T* D = op.D ? op.D.data<T>() + (per_channel ? h * n.width : h) : nullptr;
    for (int64_t i = 0; i < chunk.size(); ++i) {
      T* row = y.row(i);
      if (D && per_channel)
        for (int64_t p = 0; p < n.width; ++p) row[p] += D[p] * x.row(i)[p];
      else if (D)
        for (int64_t p = 0; p < n.width; ++p) row[p] += D[0] * x.row(i)[p];
      if (!op.z) continue;
      const T* z = view<T>(op.z, chunk, h).row(i);
      std::copy_n(row, n.width, view<T>(to.ungated, chunk, h).row(i));
      for (int64_t p = 0; p < n.width; ++p) row[p] *= math::silu(z[p]);
    }
  }

  // S' = e^{cs_Q} S + Σ_j e^{cs_Q - cs_j} Δ_j x_j B_jᵀ
  void next_state(const Chunk& chunk, int64_t h) {
    const ChunkDecay<T> decay(decays, chunk, h);
    const auto x = view<T>(op.x, chunk, h), B = view<T>(op.B, chunk, h / n.heads_per_group());
    for (int64_t j = 0; j < chunk.size(); ++j) {
      const T w = decay.to_end(j) * decay.delta[j];
      for (int64_t p = 0; p < n.width; ++p) scaled[j * n.width + p] = w * x.row(j)[p];
    }
    blas::gemm<T>(n.width, n.state, chunk.size(), 1, {scaled.data(), n.width, true}, {B.data, B.stride},
                  chunk.enters() ? decay.from_start(decay.last) : T{0}, S.data(), n.state);
  }
};

template <class T>
void forward(const Ssd& op, const SsdResult& to) {
  const Sizes n = sizes_of(op);
  const Chunks chunks = chunks_of(op);
  const Decays<T> decays(op, chunks);
  const Tensor CB = products_CB(op, chunks);
  const auto Q = static_cast<size_t>(chunks.longest);
#pragma omp parallel if (n.large())
  {
    HeadPass<T> pass{op, to, chunks, decays, CB, n, std::vector<T>(Q * Q),
                     std::vector<T>(Q * static_cast<size_t>(std::max(n.width, n.state))),
                     std::vector<T>(static_cast<size_t>(n.width * n.state))};
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t b = 0; b < n.batch; ++b)
      for (int64_t h = 0; h < n.heads; ++h) pass.run(b, h);
  }
}

template <class T>
Tensor step(const SsdStep& s) {
  const int64_t batch = s.x.size(0), heads = s.x.size(1), width = s.x.size(2), groups = s.B.size(1), N = s.B.size(2);
  Tensor y(s.x.shape(), s.x.dtype());
  const auto item = [](const Tensor& t, int64_t b, int64_t i) {
    return t.data<T>() + b * t.stride(t.size(1) * t.size(2)) + i * t.size(2);
  };
#pragma omp parallel for collapse(2) if (s.state.count() > 1 << 14)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t g = h / (heads / groups);
      const T raw = s.dt.data<T>()[b * s.dt.stride(heads) + h] + (s.dt_bias ? s.dt_bias.data<T>()[h] : T{0});
      const T free = s.softplus ? math::softplus(raw) : raw, least = static_cast<T>(s.dt_min),
              most = static_cast<T>(s.dt_max);
      const T delta = free < least ? least : free > most ? most : free;
      const T decay = math::exp(std::max(-math::exp(s.A_log.data<T>()[h]) * delta, static_cast<T>(least_log_decay)));
      const T *x = item(s.x, b, h), *B = item(s.B, b, g), *C = item(s.C, b, g);
      T* S = s.state.data<T>() + (b * heads + h) * width * N;
      for (int64_t p = 0; p < width; ++p, S += N) {
        const T input = delta * x[p];
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < N; ++k) {
          S[k] = decay * S[k] + input * B[k];
          sum += S[k] * C[k];
        }
        if (s.D) sum += s.D.data<T>()[s.D.rank() == 2 ? h * width + p : h] * x[p];
        if (s.z) sum *= math::silu(item(s.z, b, h)[p]);
        item(y, b, h)[p] = sum;
      }
    }
  return y;
}

}  // namespace
}  // namespace ssd

void ssd_forward(Cpu, const Ssd& op, const SsdResult& to) {
  with_float("Ssd", op.x.dtype(), [&]<class T>(T) { ssd::forward<T>(op, to); });
}

Tensor ssd_step(Cpu, const SsdStep& step) {
  return with_float("ssd_step", step.x.dtype(), [&]<class T>(T) { return ssd::step<T>(step); });
}

}  // namespace adder
