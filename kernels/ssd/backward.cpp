// The gradients of SSD. With G = dL/dS' the gradient of the state that leaves a chunk and S the state that enters it
// (Dao & Gu 2024, sec. 6, differentiated by hand):
//
//   dS   = e^{cs_Q} G + Σ_i e^{cs_i} dy_i C_iᵀ                              the gradient of the state that enters
//   u_j  = e^{cs_Q - cs_j} G B_j + Σ_{i>=j} (C_i·B_j) e^{cs_i - cs_j} dy_i      dx_j = Δ_j u_j + D dy_j
//   T_ij = e^{cs_i - cs_j} Δ_j (dy_i·x_j), i >= j                           the gradient of C_i·B_j
//   dB_j = Δ_j e^{cs_Q - cs_j} Gᵀ x_j + Σ_i T_ij C_i,    dC_i = e^{cs_i} Sᵀ dy_i + Σ_j T_ij B_j,
//                                                                           both summed over the group's heads
//   W_ij = T_ij (C_i·B_j),    τ_j = Δ_j e^{cs_Q - cs_j} x_j·(G B_j)
//   dcs_i = Σ_j W_ij - Σ_k W_ki + e^{cs_i} dy_i·(S C_i) - τ_i,    and dcs_Q gets Σ_j τ_j + e^{cs_Q} <G, S>
//   da_t = Σ_{i>=t} dcs_i,    dΔ_t = u_t·x_t + A da_t
//
// Row and column sums of W are taken of the same numbers, in T: what is left of their difference is the rounding of
// sums of a chunk's length. In f32 the gradient of dt keeps 3e-7, those of A_log and dt_bias, whose terms over the
// tokens cancel, a few 1e-6 (tests/ssd_test.cpp). From dcs on, sums over time and products with A are wide.
//
// Two passes: one backward in time for G, over (row, head); then every chunk and group by itself, its heads in order,
// so that sums over heads have one order whatever the number of threads.
#include "adder/core/error.h"
#include "adder/kernels/blas.h"
#include "adder/kernels/ssd/chunks.h"

namespace adder {
namespace ssd {
namespace {

// What both passes read.
template <class T>
struct Pass {
  const Ssd& op;
  const SsdGradients& to;
  Sizes n;
  Chunks chunks;
  Decays<T> decays;
  Tensor CB;
  Tensor dy;  // contiguous, before the gate
  Tensor dfinal;  // may be undefined
  Tensor G;       // as op.states: the gradient of each state that enters a chunk
  Tensor dD, dA, dbias;  // partial sums of each chunk: [chunks, head, width], [chunks, head] twice; the last two in f64

  const T* entering(const Chunk& c, int64_t h) const { return at(op.states, c.state, h); }
  /// The gradient of the state that leaves; null: zero.
  const T* leaving_gradient(const Chunk& c, int64_t h) const {
    if (c.last) return dfinal ? at(dfinal, c.row, h) : nullptr;
    return c.follow >= 0 ? at(G, c.follow, h) : nullptr;
  }
  T* at(const Tensor& t, int64_t i, int64_t h) const { return t.data<T>() + (i * n.heads + h) * n.width * n.state; }
};

// dy = dout silu(z) and dz = dout y silu'(z)
template <class T>
Tensor through_gate(const Ssd& op, const Tensor& dout, const Tensor& dz) {
  if (!op.z) return dout;
  Tensor dy = empty_like(dout);
  const int64_t run = op.x.size(2) * op.x.size(3), tokens = op.x.size(0) * op.x.size(1), stride_z = op.z.stride(run);
#pragma omp parallel for
  for (int64_t t = 0; t < tokens; ++t) {
    const T *d = dout.data<T>() + t * run, *z = op.z.data<T>() + t * stride_z, *y = op.ungated.data<T>() + t * run;
    T* to = dy.data<T>() + t * run;
    for (int64_t i = 0; i < run; ++i) to[i] = d[i] * math::silu(z[i]);
    if (!dz) continue;
    T* gradient = dz.data<T>() + t * dz.stride(run);
    for (int64_t i = 0; i < run; ++i) gradient[i] = d[i] * y[i] * math::silu_gradient(z[i]);
  }
  return dy;
}

// G of one (row, head), from the last chunk to the first.
template <class T>
void state_gradients(const Pass<T>& p, int64_t b, int64_t h, std::vector<T>& scaled) {
  const Sizes& n = p.n;
  const int64_t cells = n.width * n.state, first = p.chunks.row_first[static_cast<size_t>(b)];
  for (int64_t c = p.chunks.row_first[static_cast<size_t>(b) + 1] - 1; c >= first; --c) {
    const Chunk& chunk = p.chunks.list[static_cast<size_t>(c)];
    if (!chunk.enters()) continue;
    const ChunkDecay<T> decay(p.decays, chunk, h);
    const auto dy = view<T>(p.dy, chunk, h), C = view<T>(p.op.C, chunk, h / n.heads_per_group());
    for (int64_t i = 0; i < chunk.size(); ++i) {
      const T e = decay.from_start(i);
      for (int64_t k = 0; k < n.width; ++k) scaled[i * n.width + k] = e * dy.row(i)[k];
    }
    T* G = p.at(p.G, chunk.state, h);
    const T* leaving = p.leaving_gradient(chunk, h);
    if (leaving) std::copy_n(leaving, cells, G);
    blas::gemm<T>(n.width, n.state, chunk.size(), 1, {scaled.data(), n.width, true}, {C.data, C.stride},
                  leaving ? decay.from_start(decay.last) : T{0}, G, n.state);
  }
  if (const int64_t state = p.chunks.list[static_cast<size_t>(first)].state; p.to.initial_state && state >= 0)
    std::copy_n(p.at(p.G, state, h), cells, p.at(p.to.initial_state, b, h));
}

// All gradients of one chunk and group, but for the sums over chunks.
template <class T>
struct ChunkPass {
  const Pass<T>& p;
  std::vector<T> dCB, scores, dYX;  // [Q, Q]: Σ over heads of T; (C_i·B_j) e^{cs_i - cs_j}; dy_i·x_j
  std::vector<T> u, scaled, inter;  // [Q, width], [Q, max(width, state)] twice
  std::vector<Wide<T>> dcs, ddelta;  // [Q]

  ChunkPass(const Pass<T>& pass) : p(pass) {
    const auto Q = static_cast<size_t>(p.chunks.longest), wide = static_cast<size_t>(std::max(p.n.width, p.n.state));
    for (auto* square : {&dCB, &scores, &dYX}) square->resize(Q * Q);
    for (auto* rows : {&u, &scaled, &inter}) rows->resize(Q * wide);
    dcs.resize(Q);
    ddelta.resize(Q);
  }

  void run(int64_t c, int64_t g) {
    const Chunk& chunk = p.chunks.list[static_cast<size_t>(c)];
    const int64_t q = chunk.size(), N = p.n.state;
    const auto B = view<T>(p.op.B, chunk, g), C = view<T>(p.op.C, chunk, g);
    const auto dB = view<T>(p.to.B, chunk, g), dC = view<T>(p.to.C, chunk, g);
    for (int64_t i = 0; i < q; ++i) {
      std::fill_n(dB.row(i), N, T{0});
      std::fill_n(dC.row(i), N, T{0});
    }
    std::fill_n(dCB.begin(), q * q, T{0});
    for (int64_t h = g * p.n.heads_per_group(); h < (g + 1) * p.n.heads_per_group(); ++h) {
      std::fill_n(dcs.begin(), q, Wide<T>{0});
      through_states(chunk, h, g);
      through_scores(chunk, h, g);
      to_inputs(c, chunk, h);
    }
    blas::gemm<T>(q, N, q, 1, {dCB.data(), q}, {B.data, B.stride}, 1, dC.data, dC.stride);
    blas::gemm<T>(q, N, q, 1, {dCB.data(), q, true}, {C.data, C.stride}, 1, dB.data, dB.stride);
  }

  // What flows through the state that enters (dC, dcs) and the one that leaves (u, dB, dcs).
  void through_states(const Chunk& chunk, int64_t h, int64_t g) {
    const int64_t q = chunk.size(), width = p.n.width, N = p.n.state;
    const ChunkDecay<T> decay(p.decays, chunk, h);
    const auto x = view<T>(p.op.x, chunk, h), dy = view<T>(p.dy, chunk, h);
    const auto B = view<T>(p.op.B, chunk, g), C = view<T>(p.op.C, chunk, g);
    const T* G = p.leaving_gradient(chunk, h);
    if (chunk.enters()) {
      scale_rows(dy, width, q, [&](int64_t i) { return decay.from_start(i); });
      blas::gemm<T>(q, N, width, 1, {scaled.data(), width}, {p.entering(chunk, h), N}, 0, inter.data(), N);
      add_and_dot(view<T>(p.to.C, chunk, g), C, q, [&](int64_t i, Wide<T> dot) { dcs[i] += dot; });
    }
    if (!G) {
      std::fill_n(u.begin(), q * width, T{0});
      return;
    }
    scale_rows(B, N, q, [&](int64_t j) { return decay.to_end(j); });
    blas::gemm<T>(q, width, N, 1, {scaled.data(), N}, {G, N, true}, 0, u.data(), width);
    scale_rows(x, width, q, [&](int64_t j) { return decay.to_end(j) * decay.delta[j]; });
    blas::gemm<T>(q, N, width, 1, {scaled.data(), width}, {G, N}, 0, inter.data(), N);
    Wide<T> all = 0;
    add_and_dot(view<T>(p.to.B, chunk, g), B, q, [&](int64_t j, Wide<T> tau) {
      dcs[j] -= tau;
      all += tau;
    });
    if (chunk.enters()) all += Wide<T>{decay.from_start(q - 1)} * dot(G, p.entering(chunk, h), width * N);
    dcs[q - 1] += all;
  }

  // What flows through the products of the chunk's own tokens: u, T (into dCB), dcs.
  void through_scores(const Chunk& chunk, int64_t h, int64_t g) {
    const int64_t q = chunk.size(), width = p.n.width;
    const ChunkDecay<T> decay(p.decays, chunk, h);
    const auto x = view<T>(p.op.x, chunk, h), dy = view<T>(p.dy, chunk, h);
    blas::gemm<T>(q, q, width, 1, {dy.data, dy.stride}, {x.data, x.stride, true}, 0, dYX.data(), q);
    const T* cb = p.CB.template data<T>() + g * p.chunks.squares + chunk.square;
    T* columns = scaled.data();  // Σ_i W_ij
    std::fill_n(columns, q, T{0});
    for (int64_t i = 0; i < q; ++i) {
      T *score_row = scores.data() + i * q, *d_row = dCB.data() + i * q;
      const T *product_row = dYX.data() + i * q, *cb_row = cb + i * q;
      T row = 0;
#pragma omp simd reduction(+ : row)
      for (int64_t j = 0; j <= i; ++j) {
        const T e = decay.between(i, j), t = e * decay.delta[j] * product_row[j], w = t * cb_row[j];
        score_row[j] = e * cb_row[j];
        d_row[j] += t;
        columns[j] += w;
        row += w;
      }
      std::fill(score_row + i + 1, score_row + q, T{0});
      dcs[i] += row;
    }
    for (int64_t j = 0; j < q; ++j) dcs[j] -= columns[j];
    blas::gemm<T>(q, width, q, 1, {scores.data(), q, true}, {dy.data, dy.stride}, 1, u.data(), width);
  }

  // From u and dcs to dx, ddt and the sums for D, A and the bias.
  void to_inputs(int64_t c, const Chunk& chunk, int64_t h) {
    const int64_t q = chunk.size(), width = p.n.width;
    const ChunkDecay<T> decay(p.decays, chunk, h);
    const auto x = view<T>(p.op.x, chunk, h), dy = view<T>(p.dy, chunk, h), dx = view<T>(p.to.x, chunk, h);
    const bool per_channel = p.op.D && p.op.D.rank() == 2;
    const T* D = p.op.D ? p.op.D.template data<T>() + (per_channel ? h * width : h) : nullptr;
    T* dD = p.to.D ? p.dD.template data<T>() + (c * p.n.heads + h) * width : nullptr;
    if (dD) std::fill_n(dD, width, T{0});
    for (int64_t j = 0; j < q; ++j) {
      const T *u_row = u.data() + j * width, delta = decay.delta[j];
      ddelta[j] = dot(u_row, x.row(j), width);
      for (int64_t k = 0; k < width; ++k) dx.row(j)[k] = delta * u_row[k];
      if (D)
        for (int64_t k = 0; k < width; ++k) dx.row(j)[k] += D[per_channel ? k : 0] * dy.row(j)[k];
      if (dD)
        for (int64_t k = 0; k < width; ++k) dD[k] += dy.row(j)[k] * x.row(j)[k];
    }
    time_steps(c, chunk, h, decay);
  }

  // From dcs and what x gave to Δ: through the sum, the product with A, the clamp and softplus.
  void time_steps(int64_t c, const Chunk& chunk, int64_t h, const ChunkDecay<T>& decay) {
    const int64_t stride = p.op.dt.stride(p.n.heads), stride_to = p.to.dt.stride(p.n.heads);
    const int64_t token = chunk.row * p.n.time + chunk.begin;
    const T *dt = p.op.dt.template data<T>() + token * stride + h, *A_log = p.op.A_log.template data<T>();
    T* ddt = p.to.dt.template data<T>() + token * stride_to + h;
    const T bias = p.op.dt_bias ? p.op.dt_bias.template data<T>()[h] : T{0}, A = -math::exp(A_log[h]);
    Wide<T> da = 0, dA = 0, dbias = 0;
    for (int64_t t = chunk.size() - 1; t >= 0; --t) {
      da += dcs[t];
      Wide<T> d = ddelta[t];
      if (!(Wide<T>{decay.delta[t]} * A < least_log_decay)) {
        d += A * da;
        dA += decay.delta[t] * da;
      }
      const T raw = dt[t * stride] + bias, free = p.op.softplus ? math::softplus(raw) : raw;
      if (free < static_cast<T>(p.op.dt_min) || free > static_cast<T>(p.op.dt_max)) d = 0;
      if (p.op.softplus) d *= math::sigmoid(raw);
      ddt[t * stride_to] = static_cast<T>(d);
      dbias += d;
    }
    const int64_t at = c * p.n.heads + h;
    p.dA.template data<double>()[at] = static_cast<double>(dA * A);
    p.dbias.template data<double>()[at] = static_cast<double>(dbias);
  }

  template <class F>
  void scale_rows(const View<T>& from, int64_t width, int64_t q, F&& factor) {
    for (int64_t i = 0; i < q; ++i) {
      const T f = factor(i);
      for (int64_t k = 0; k < width; ++k) scaled[i * width + k] = f * from.row(i)[k];
    }
  }

  // gradient_i += inter_i, and receive(i, inter_i · with_i)
  template <class F>
  void add_and_dot(const View<T>& gradient, const View<T>& with, int64_t q, F&& receive) {
    const int64_t N = p.n.state;
    for (int64_t i = 0; i < q; ++i) {
      const T* row = inter.data() + i * N;
      for (int64_t k = 0; k < N; ++k) gradient.row(i)[k] += row[k];
      receive(i, dot(row, with.row(i), N));
    }
  }

  static T dot(const T* a, const T* b, int64_t count) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < count; ++k) sum += a[k] * b[k];
    return sum;
  }
};

// to[i] = Σ over the chunks of partial[c, i], in order
template <class T>
void sum_chunks(const Tensor& partial, const Tensor& to) {
  const int64_t n = to.count(), m = partial.size(0), inner = partial.count() / m / n;
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < m; ++c)
      for (int64_t k = 0; k < inner; ++k) {
        const int64_t at = (c * n + i) * inner + k;
        sum += partial.dtype() == DType::f64 ? partial.data<double>()[at] : static_cast<double>(partial.data<T>()[at]);
      }
    to.data<T>()[i] = static_cast<T>(sum);
  }
}

template <class T>
void backward(const Ssd& op, const Tensor& dout, const Tensor& dfinal, const SsdGradients& to) {
  const Sizes n = sizes_of(op);
  Chunks chunks = chunks_of(op);
  const auto count = static_cast<int64_t>(chunks.list.size());
  const Decays<T> decays(op, chunks);
  const Tensor CB = products_CB(op, chunks), dy = through_gate<T>(op, dout, to.z);
  const Pass<T> pass{.op = op, .to = to, .n = n, .chunks = std::move(chunks), .decays = decays, .CB = CB, .dy = dy,
                     .dfinal = dfinal, .G = empty_like(op.states),
                     .dD = to.D ? Tensor({count, n.heads, n.width}, op.x.dtype()) : Tensor(),
                     .dA = Tensor({count, n.heads}, DType::f64), .dbias = Tensor({count, n.heads}, DType::f64)};
  const auto Q = static_cast<size_t>(pass.chunks.longest);
#pragma omp parallel if (n.large())
  {
    std::vector<T> scaled(Q * static_cast<size_t>(n.width));
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t b = 0; b < n.batch; ++b)
      for (int64_t h = 0; h < n.heads; ++h) state_gradients(pass, b, h, scaled);
    ChunkPass<T> chunk_pass(pass);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t c = 0; c < count; ++c)
      for (int64_t g = 0; g < n.groups; ++g) chunk_pass.run(c, g);
  }
  sum_chunks<T>(pass.dA, to.A_log);
  if (to.dt_bias) sum_chunks<T>(pass.dbias, to.dt_bias);
  if (to.D) sum_chunks<T>(pass.dD, to.D);
}

}  // namespace
}  // namespace ssd

void ssd_backward(Cpu, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to) {
  with_float("Ssd", op.x.dtype(), [&]<class T>(T) { ssd::backward<T>(op, dy, dfinal, to); });
}

}  // namespace adder
