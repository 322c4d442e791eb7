// What a block of the Hopper gradients has in shared memory, how it comes there, and products of it.
#pragma once

#include "adder/kernels/ssd/chunked_backward.cuh"
#include "adder/kernels/ssd/fragments_sm90.cuh"
#include "adder/kernels/wgmma_products.cuh"

namespace adder::ssd::chunked::hopper {

using namespace mma;
using namespace wgmma;

inline constexpr int stages = 3, warps = gradient_threads / 32;

template <int N_tile>
struct alignas(1024) Shared {
  struct Stage {
    bf16 x[Q * P_tile], dy[Q * P_tile], S[P_tile * N_tile], G[P_tile * N_tile];
  };
  Stage stage[stages];
  bf16 B[Q * N_tile], C[Q * N_tile];
  bf16 dx[Q * P_tile];
  float D[stages][P_tile];         // 0 if there is none
  float delta[16][Q], sum[16][Q];  // of the last heads: their last step reads those of eight, others are on their way
  Parts<1> parts[9];               // of eight heads and the next one
  int document[Q];
  uint64_t meetings;  // of meet()
};
static_assert(sizeof(Shared<128>) <= 227 * 1024);

// What a block works on.
struct Place {
  int b, chunk, group, split, h0;
  int heads, rows;  // heads from h0 on; tokens
  int64_t token;    // the first one, of all rows
};

// A barrier of the whole block that both warpgroups reach in code of their own. `number`: how often it was before.
__device__ inline void meet(uint64_t& barrier, int number) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(&barrier));
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(address) : "memory");
  uint32_t there = 0;
  while (there == 0)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(there) : "r"(address), "r"(number % 2) : "memory");
  __syncwarp();
}
__device__ inline void begin_meetings(uint64_t& barrier) {
  if (threadIdx.x == 0)
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(&barrier))),
                 "n"(gradient_threads) : "memory");
}

// Waits for this thread's copies but those of the last `pending` commits.
template <int pending>
__device__ void wait_for_older_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// A state, which the sweep has left as it lies in panels.
template <int N_tile>
__device__ void copy_state_async(bf16* to, const bf16* from) {
#pragma unroll
  for (int i = 0; i < P_tile * N_tile; i += gradient_threads * 8) {
    const int at = i + static_cast<int>(threadIdx.x) * 8;
    copy_async(to + at, from + at, true);
  }
}

// One commit, empty behind the last head.
template <int N_tile>
__device__ void load_head(const Gradients& a, const Place& at, int k, Shared<N_tile>& shared) {
  const Problem& p = a.p;
  if (k < at.heads) {
    auto& to = shared.stage[k % stages];
    const int64_t h = at.h0 + k, state = (at.b * p.chunks + at.chunk) * p.heads + h;
    copy_panels_async<gradient_threads, P_tile>(to.x, a.x.at(at.token, h), a.x.stride, at.rows, p.P);
    copy_panels_async<gradient_threads, P_tile>(to.dy, a.dy.at(at.token, h), a.dy.stride, at.rows, p.P);
    copy_state_async<N_tile>(to.S, a.S + state * (P_tile * N_tile));
    copy_state_async<N_tile>(to.G, a.G + state * (P_tile * N_tile));
    const int i = static_cast<int>(threadIdx.x) * 4, channel = static_cast<int>(threadIdx.x) - 64;
    if (i < Q) copy_async(shared.delta[k % 16] + i, p.delta + state * Q + i, true);
    else if (i < 2 * Q) copy_async(shared.sum[k % 16] + i - Q, p.sum + state * Q + i - Q, true);
    else if (channel >= 0 && channel < P_tile) {
      const bool there = a.D != nullptr && channel < p.P;
      const float* D = a.D_per_channel ? a.D + h * p.P + channel : a.D + h;
      copy_async<4>(shared.D[k % stages] + channel, there ? D : p.delta, there);
    }
  }
  commit_copies();
}

// s = a bᵀ: 64 rows each of N_tile elements, in panels.
template <int N_tile>
__device__ void multiply_rows(float (&s)[8][4], const bf16* a, const bf16* b) {
#pragma unroll
  for (int k = 0; k < N_tile; k += 16) {
    const int from = k / panel * panel_size;
    multiply_add<false, false>(s, along_k(a + from, k % panel), along_k(b + from, k % panel), k > 0);
  }
}
// s += a b, with b 64 rows of as many elements as s has columns, in panels.
template <int tiles>
__device__ void add_product(float (&s)[tiles][4], const Left (&a)[4], const bf16* b) {
#pragma unroll
  for (int k = 0; k < 4; ++k) multiply_add<true>(s, a[k], across_k(b, k * 16, panel_size * sizeof(bf16)));
}
// Operands in registers stay what they are up to here, where products that read them are done.
__device__ inline void keep(const Left (&a)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
    asm volatile("" ::"r"(a[k].r[0]), "r"(a[k].r[1]), "r"(a[k].r[2]), "r"(a[k].r[3]) : "memory");
}

__device__ inline void weigh(Left (&to)[4], const Left (&from)[4], const float (&weight)[2]) {
  each_word([&](int k, int i, int, int row) {
    const float2 x = unpack(from[k].r[i]);
    to[k].r[i] = pack(weight[row] * x.x, weight[row] * x.y);
  });
}
// s += weight (a b), rows of masked weights selected away, whatever b holds: for chunks in which documents meet.
template <int tiles>
__device__ void add_selected(float (&s)[tiles][4], const float (&weight)[2], const Left (&a)[4], const bf16* b) {
#pragma unroll
  for (int n = 0; n < tiles; n += 8) {
    float product[8][4] = {};
    hold(product);
    begin();
    add_product(product, a, b + n / 8 * panel_size);
    commit();
    wgmma::wait<0>(product);
    keep(a);
#pragma unroll
    for (int t = 0; t < 8; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n + t][i] += times<true>(weight[i / 2], product[t][i]);
  }
  hold(s);
}

// <G, S>, a warp's part of eight: the diagonal of products of 16 rows of S with the same rows of G.
template <int N_tile>
__device__ void states_dot(bf16* S_tile, bf16* G_tile, int warp, Parts<1>& parts) {
  const int p = warp / 2 * 16, n = warp % 2 * (N_tile / 2), from = n / panel * panel_size;
  const Tile<panel> G_panel{G_tile + from};
  const uint32_t S = rows_at(S_tile + from, p),
                 G = shared_address(G_panel.at(p + lane() % 8 + lane() / 16 * 8, lane() / 8 % 2 * 8));
  float product[2][4] = {};
#pragma unroll
  for (int k = 0; k < N_tile / 2; k += 16) {
    Left l;
    Right g;
    load_at(l.r, S ^ (n % panel | k) * 2);
    load_at(g.r, G ^ (n % panel | k) * 2);
    multiply_add(product[0], l, g, 0);
    multiply_add(product[1], l, g, 1);
  }
  const int r = lane() / 4, q = lane() % 4 * 2;
  const float sum = warp_sum(r == q       ? product[0][0] + product[1][2]
                             : r == q + 1 ? product[0][1] + product[1][3]
                                          : 0.0f);
  if (lane() == 0) parts.states[warp] = sum;
}

}  // namespace adder::ssd::chunked::hopper
