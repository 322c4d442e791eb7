// All gradients of a chunk and group on Hopper: one block, two warpgroups. One sees the chunk with tokens i as rows and
// gathers dC and d(C Bᵀ), the other with tokens j as rows and gathers dB: inside a head neither waits for the other.
//
// With S the state that enters and G the gradient of the state that leaves (formulas and letters of backward.cpp), for
// each head of the group, all products by wgmma, in square brackets their rows and columns and what the sum runs over:
//
//   rows i     1. dYX = dy xᵀ [i, j; p], whose diagonal is dy·x
//              2. T = e^{cs_i - cs_j} Δ_j dYX, added to d(C Bᵀ);  rows and columns of W = T ⊙ C Bᵀ are summed
//              3. C Sᵀ [i, p; n], whose product with e^{cs_i} dy goes to dcs;  dC += (e^{cs_i} dy) S [i, n; p];  <G, S>
//                 by both views, meanwhile
//   columns j  1. u = B Gᵀ [j, p; n];  dB += (Δ_j e^{cs_Q - cs_j} x) G [j, n; p];  M = e^{cs_i - cs_j} B Cᵀ meanwhile
//              2. u *= e^{cs_Q - cs_j};  τ = Δ x·u;  u += M dy [j, p; i]
//              3. u·x;  dx = Δ u + D dy
//   both       after eight heads, a warp each: dcs, its sums from behind, ddt
//
// and after the last head dC += d(C Bᵀ) B, dB += d(C Bᵀ)ᵀ C. No sum over N is left to single threads, and a left
// operand lies in registers as sums do, so that M and weighted dy and x never pass through shared memory. The next two
// heads are on their way while one is worked on. In a chunk where documents meet or one begins, the weights of dC and dB
// come after the products, and what is masked is selected away: what is not a number in a state of one document stays
// out of another's. Floor: x, dy, S, G read and dx written.
#include "adder/kernels/ssd/chunked_backward_sm90.cuh"

namespace adder::ssd::chunked {
namespace {

using namespace hopper;

// What both views are made of. A warp holds 16 tokens of its warpgroup's 64 over all heads. `documents`: whether several
// of them meet in the chunk.
template <int N_tile, bool documents>
struct View {
  static constexpr int tiles = N_tile / 8;
  using Stage = typename Shared<N_tile>::Stage;
  const Gradients& a;
  Shared<N_tile>& shared;
  int warp, row;             // of the block; its first token
  int r[2], q;               // this lane's tokens, and its first column in a tile
  float products[8][4];      // C Bᵀ, or B Cᵀ
  float gradient[tiles][4];  // dC, or dB
  uint32_t pairs;            // bit 4 t + i: whether products[t][i] is of one document, i no earlier than j

  __device__ View(const Gradients& a_, Shared<N_tile>& shared_, int warp_, const bf16* own, const bf16* other,
                  bool rows)
      : a(a_),
        shared(shared_),
        warp(warp_),
        row(warp_ % 4 * 16),
        r{row + lane() / 4, row + lane() / 4 + 8},
        q(lane() % 4 * 2),
        gradient{},
        pairs(0) {
    begin();
    multiply_rows<N_tile>(products, own, other);
    commit();
    wgmma::wait<0>(products);
#pragma unroll
    for (int t = 0; t < 8; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = t * 8 + q + i % 2, own_row = r[i / 2];
        const bool counts = (rows ? column <= own_row : column >= own_row) &&
                            (!documents || shared.document[column] == shared.document[own_row]);
        pairs |= uint32_t{counts} << (4 * t + i);
      }
    asm volatile("" : "+r"(pairs));  // or the compiler makes comparisons of them again
  }
  __device__ bool counts(int t, int i) const { return pairs >> (4 * t + i) & 1; }

  __device__ void leave_rows(float (&to)[Q], const float (&sums)[2]) const {
    if (lane() % 4 != 0) return;
    to[r[0]] = sums[0];
    to[r[1]] = sums[1];
  }

  // The gradient, rounded in its place, or as f32 in the part of this block.
  __device__ void store(const Place& at, bf16* to, int64_t stride, float* parts) const {
    const Problem& p = a.p;
    const int N = p.N;
#pragma unroll
    for (int t = 0; t < tiles; ++t)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int n = t * 8 | q;
        if (r[i] >= at.rows || n >= N) continue;
        const float x = gradient[t][2 * i], y = gradient[t][2 * i + 1];
        const int64_t token = at.token + r[i];
        if (parts == nullptr) store_pair(to + token * stride + at.group * N + n, x, y);
        else
          *reinterpret_cast<float2*>(
              parts + ((at.split * p.batch * p.time + token) * p.groups + at.group) * N + n) = {x, y};
      }
  }
};

// Tokens i as rows.
template <int N_tile, bool documents>
struct Rows : View<N_tile, documents> {
  using Base = View<N_tile, documents>;
  using Base::a, Base::shared, Base::row, Base::r, Base::q, Base::products, Base::gradient;
  float dCB[8][4];
  bool enters[2], any_enters;  // whether the state that enters reaches this lane's tokens, any token

  __device__ Rows(const Gradients& a_, Shared<N_tile>& shared_, int warp_, const Place& at)
      : Base(a_, shared_, warp_, shared_.C, shared_.B, true), dCB{} {
    const auto reached = [&](int i) { return !documents || shared.document[i] < at.chunk * Q; };
    enters[0] = reached(r[0]);
    enters[1] = reached(r[1]);
    any_enters = reached(0);
#pragma unroll
    for (int t = 0; t < 8; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)  // what W is made with: its diagonal would cancel
        if (!this->counts(t, i) || t * 8 + q + i % 2 == r[i / 2]) products[t][i] = 0;
  }

  __device__ void head(typename Base::Stage& s, const float* delta, const float* sum, const float*, Parts<1>& parts,
                       const Place&, int64_t) {
    Left dy[4], weighted[4];
    float dYX[8][4], CS[8][4], from_start[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) from_start[i] = enters[i] ? power_of_2(sum[r[i]]) : masked;
    load_rows(dy, s.dy, row);
    if constexpr (documents)
      if (any_enters) add_selected(gradient, from_start, dy, s.S);  // else S, perhaps NaN, is nothing to this chunk
    begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply_add<false>(dYX, dy[k], along_k(s.x, k * 16), k > 0);
    commit();
    wgmma::wait<0>(dYX);
    keep(dy);
    float rows[2] = {0, 0}, columns[2][8] = {};
    scores(dYX, delta, sum, rows, columns, parts);
    begin();
    multiply_rows<N_tile>(CS, shared.C, s.S);
    commit();
    load_rows(dy, s.dy, row);  // once more, rather than to keep it
    if constexpr (!documents) {
      weigh(weighted, dy, from_start);
      hold(weighted);
      begin();
      add_product(gradient, weighted, s.S);
      commit();
    }
    for (float& x : rows) x = row_sum(x);
    this->leave_rows(parts.row[0], rows);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      parts.column[row / 16][half * 32 + column_of_lane()] = column_sum(columns[half]);
    states_dot<N_tile>(s.S, s.G, this->warp, parts);
    wgmma::wait<documents ? 0 : 1>(CS);
    float dots[2];
    row_products(dots, CS, dy);
#pragma unroll
    for (int i = 0; i < 2; ++i) dots[i] = times<documents>(from_start[i], dots[i]);
    this->leave_rows(parts.enter[0], dots);
    if constexpr (!documents) {
      wgmma::wait<0>(gradient);
      keep(weighted);
    }
  }

  // T and W; dy·x. Tiles above the diagonal are nothing.
  __device__ void scores(const float (&dYX)[8][4], const float* delta, const float* sum, float (&rows)[2],
                         float (&columns)[2][8], Parts<1>& parts) {
    const float cs[2] = {sum[r[0]], sum[r[1]]};
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      if (t * 8 >= row + 16) continue;
      if (t / 2 * 16 == row && lane() / 8 == lane() % 4)  // this lane has one of the diagonal
        parts.skip[0][r[t % 2]] = lane() / 4 % 2 == 0 ? dYX[t][t % 2 * 2] : dYX[t][t % 2 * 2 + 1];
      const float2 d = *reinterpret_cast<const float2*>(delta + (t * 8 | q)),
                   cs_j = *reinterpret_cast<const float2*>(sum + (t * 8 | q));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool odd = i % 2 == 1;
        const float e = power_of_2(cs[i / 2] - (odd ? cs_j.y : cs_j.x)), cb = products[t][i];
        const float T = this->counts(t, i) ? e * (odd ? d.y : d.x) * dYX[t][i] : 0.0f;
        dCB[t][i] += T;
        rows[i / 2] += T * cb;
        columns[t / 4][t % 4 * 2 + i % 2] += T * cb;
      }
    }
  }

  // dC += d(C Bᵀ) B, with d(C Bᵀ) as a sum of two bf16: rounded, and what that left. Both go to the other view too.
  __device__ void finish(const Place& at) {
    Left high[4], low[4];
    each_word([&](int k, int i, int t, int half) {
      const float x = dCB[t][2 * half], y = dCB[t][2 * half + 1];
      const uint32_t both = pack(x, y);
      high[k].r[i] = both;
      low[k].r[i] = pack(x - unpack(both).x, y - unpack(both).y);
    });
    store_rows(high, shared.stage[0].x, row);
    store_rows(low, shared.stage[0].dy, row);
    meet(shared.meetings, at.heads + 1);
    begin();
    add_product(gradient, high, shared.B);
    add_product(gradient, low, shared.B);
    commit();
    wgmma::wait<0>(gradient);
    keep(high);
    keep(low);
    this->store(at, a.dC, a.stride_dC, a.dC_parts);
  }
};

// Tokens j as rows.
template <int N_tile, bool documents>
struct Columns : View<N_tile, documents> {
  using Base = View<N_tile, documents>;
  using Base::a, Base::shared, Base::row, Base::r, Base::q, Base::products, Base::gradient;

  __device__ Columns(const Gradients& a_, Shared<N_tile>& shared_, int warp_, const Place&)
      : Base(a_, shared_, warp_, shared_.B, shared_.C, false) {}

  __device__ void head(typename Base::Stage& s, const float* delta, const float* sum, const float* D, Parts<1>& parts,
                       const Place& at, int64_t h) {
    Left x[4], weighted[4], M[4], dy[4];
    float u[8][4], to_end[2], leaving[2], step[2], dots[2];
    const int *document = shared.document, last = document[Q - 1];
    const bool leaves[2] = {!documents || document[r[0]] == last, !documents || document[r[1]] == last};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      step[i] = delta[r[i]];
      to_end[i] = leaves[i] ? power_of_2(sum[Q - 1] - sum[r[i]]) : masked;
      leaving[i] = leaves[i] ? to_end[i] * step[i] : masked;
    }
    if constexpr (documents) {
      load_rows(x, s.x, row);
      add_selected(gradient, leaving, x, s.G);
    }
    begin();
    multiply_rows<N_tile>(u, shared.B, s.G);
    commit();
    if constexpr (!documents) {
      load_rows(x, s.x, row);
      weigh(weighted, x, leaving);
      hold(weighted);
      begin();
      add_product(gradient, weighted, s.G);
      commit();
    }
    scores(M, sum);
    wgmma::wait<0>(u, gradient);
    if constexpr (!documents) keep(weighted);
    load_rows(x, s.x, row);  // once more, rather than to keep it
#pragma unroll
    for (int t = 0; t < 8; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) u[t][i] = times<documents>(to_end[i / 2], u[t][i]);
    row_products(dots, u, x);
    hold(u);
    hold(M);
    begin();
    add_product(u, M, s.dy);
    commit();
#pragma unroll
    for (int i = 0; i < 2; ++i) dots[i] = leaves[i] ? step[i] * dots[i] : 0.0f;
    this->leave_rows(parts.leave[0], dots);
    if (a.D_per_channel) channels(x, s, parts);
    states_dot<N_tile>(s.S, s.G, this->warp, parts);
    load_rows(dy, s.dy, row);
    wgmma::wait<0>(u);
    keep(M);
    row_products(dots, u, x);
    this->leave_rows(parts.input[0], dots);
    store_dx(u, dy, step, D, at, h);
  }

  // Mᵀ = e^{cs_i - cs_j} (C_i·B_j), i >= j, as left operands.
  __device__ void scores(Left (&M)[4], const float* sum) const {
    const float cs_j[2] = {sum[r[0]], sum[r[1]]};
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      uint32_t(&to)[4] = M[t / 2].r;
      to[t % 2 * 2] = to[t % 2 * 2 + 1] = 0;
      if (t * 8 + 7 < row) continue;
      const float2 cs = *reinterpret_cast<const float2*>(sum + (t * 8 | q));
      float m[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float e = power_of_2((i % 2 == 0 ? cs.x : cs.y) - cs_j[i / 2]);
        m[i] = this->counts(t, i) ? e * products[t][i] : 0.0f;
      }
      to[t % 2 * 2] = pack(m[0], m[1]);
      to[t % 2 * 2 + 1] = pack(m[2], m[3]);
    }
  }

  // dy ⊙ x, summed over the warp's tokens.
  __device__ void channels(const Left (&x)[4], typename Base::Stage& s, Parts<1>& parts) const {
    Left dy[4];
    load_rows(dy, s.dy, row);
    float sums[2][8] = {};
    each_word([&](int k, int i, int t, int) {
      const float2 v = unpack(x[k].r[i]), w = unpack(dy[k].r[i]);
      sums[t / 4][t % 4 * 2] += v.x * w.x;
      sums[t / 4][t % 4 * 2 + 1] += v.y * w.y;
    });
#pragma unroll
    for (int half = 0; half < 2; ++half)
      parts.channel[row / 16][half * 32 + column_of_lane()] = column_sum(sums[half]);
  }

  // dx = Δ u + D dy, through a tile, to memory by whole pieces. A warp touches its own rows of the tile alone.
  __device__ void store_dx(const float (&u)[8][4], const Left (&dy)[4], const float (&step)[2], const float* D,
                           const Place& at, int64_t h) const {
    Left out[4];
    each_word([&](int k, int i, int t, int half) {
      const float2 w = unpack(dy[k].r[i]), d = *reinterpret_cast<const float2*>(D + (t * 8 | q));
      out[k].r[i] = pack(step[half] * u[t][2 * half] + d.x * w.x, step[half] * u[t][2 * half + 1] + d.y * w.y);
    });
    store_rows(out, shared.dx, row);
    __syncwarp();
    constexpr int pieces = P_tile / 8, rows = 32 / pieces;  // of a row; at a time
    static_assert(rows == 4);
    const int P = a.p.P, first = row + lane() / pieces, column = lane() % pieces * 8;
    const bf16* from = shared.dx + first * P_tile;
    bf16* to = a.dx + (at.token + first) * a.stride_dx + h * P + column;
#pragma unroll
    for (int t = 0; t < 16; t += rows) {  // the row's number modulo 8 is that of the first one, or 4 more
      if (first + t < at.rows && column < P)
        *reinterpret_cast<uint4*>(to) =
            *reinterpret_cast<const uint4*>(from + t * P_tile + (column ^ lane() / pieces * 8 ^ t % 8 * 8));
      to += rows * a.stride_dx;
    }
  }

  // dB += d(C Bᵀ)ᵀ C
  __device__ void finish(const Place& at) {
    Left high[4], low[4];
    meet(shared.meetings, at.heads + 1);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      high[k] = left_transposed(Tile<Q>{shared.stage[0].x}, row, k * 16);
      low[k] = left_transposed(Tile<Q>{shared.stage[0].dy}, row, k * 16);
    }
    begin();
    add_product(gradient, high, shared.C);
    add_product(gradient, low, shared.C);
    commit();
    wgmma::wait<0>(gradient);
    keep(high);
    keep(low);
    this->store(at, a.dB, a.stride_dB, a.dB_parts);
  }
};

// All heads, by one warpgroup; the other one is at the same head.
template <template <int, bool> class ViewOf, int N_tile, bool documents>
__device__ void walk(const Gradients& a, Shared<N_tile>& shared, int warp, const Place& at) {
  ViewOf<N_tile, documents> view(a, shared, warp, at);
  for (int k = 0;; ++k) {
    wait_for_older_copies<stages - 2>();
    published();
    meet(shared.meetings, k);  // this head is there, the last one is done: its stage may be written over, its sums read
    load_head(a, at, k + stages - 1, shared);
    if (k > 0 && (k % warps == 0 || k == at.heads)) {
      const int done = (k - 1) / warps * warps + warp;
      if (done < k)
        time_steps(a, at.b, at.chunk, at.h0 + done, shared.parts[done % 9], shared.delta[done % 16],
                   shared.sum[done % 16], shared.document);
    }
    if (k >= at.heads) break;
    view.head(shared.stage[k % stages], shared.delta[k % 16], shared.sum[k % 16], shared.D[k % stages],
              shared.parts[k % 9], at, at.h0 + k);
  }
  view.finish(at);
}

template <int N_tile, bool documents>
__global__ void __launch_bounds__(gradient_threads, 1) gradients_sm90(const __grid_constant__ Gradients a) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<N_tile>*>(memory);
  const Problem& p = a.p;
  Place at;
  const auto chunks = static_cast<unsigned>(p.chunks), splits = static_cast<unsigned>(a.splits);
  const int per_group = static_cast<int>(p.heads_per_group()), each = (per_group + a.splits - 1) / a.splits;
  at.chunk = static_cast<int>(blockIdx.x % chunks);
  at.b = static_cast<int>(blockIdx.x / chunks);
  at.group = static_cast<int>(blockIdx.y / splits);
  at.split = static_cast<int>(blockIdx.y % splits);
  at.h0 = at.group * per_group + at.split * each;
  at.heads = min(each, per_group - at.split * each);
  at.token = at.b * p.time + int64_t{at.chunk} * Q;
  at.rows = p.tokens_of(at.chunk);

  copy_panels_async<gradient_threads, N_tile>(shared.B, a.B.at(at.token, at.group), a.B.stride, at.rows, p.N);
  copy_panels_async<gradient_threads, N_tile>(shared.C, a.C.at(at.token, at.group), a.C.stride, at.rows, p.N);
  commit_copies();
  for (int k = 0; k < stages - 1; ++k) load_head(a, at, k, shared);
  begin_meetings(shared.meetings);
  if (threadIdx.x < Q) shared.document[threadIdx.x] = p.document(at.b, at.chunk, static_cast<int>(threadIdx.x));
  wait_for_older_copies<stages - 1>();
  published();
  __syncthreads();
  const int warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x / 32), 0);  // the compiler sees: of all lanes
  const auto views = [&](auto meet_here) {
    if (warp < warps / 2) walk<Rows, N_tile, meet_here()>(a, shared, warp, at);
    else walk<Columns, N_tile, meet_here()>(a, shared, warp, at);
  };
  // Most chunks lie inside one document, which began before.
  const bool inside = shared.document[0] == shared.document[Q - 1] && shared.document[0] < at.chunk * Q;
  if (!documents || inside) views(std::false_type{});
  else if constexpr (documents) views(std::true_type{});
}

}  // namespace

int64_t gradients_shared_sm90(int N) { return N <= 64 ? sizeof(Shared<64>) : sizeof(Shared<128>); }

void launch_gradients_sm90(Cuda on, const Gradients& a) {
  with_constants(a.p, [&](auto tile, auto documents) {
    constexpr int N = tile();
    launch(gradients_sm90<N, documents()>, dim3(blocks(a.p.batch * a.p.chunks, 1), blocks(a.p.groups * a.splits, 1)),
           gradient_threads, sizeof(Shared<N>), on, a);
  });
}

}  // namespace adder::ssd::chunked
