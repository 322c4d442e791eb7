// SSD on tensor cores, in chunks of Q = 64 tokens: bf16, head_dim P <= 64, state N <= 128, both multiples of 8.
//
// The equations are those of ssd.h and backward.cpp. Products have bf16 factors and f32 sums; Δ, cs, decays, states
// that are carried and all that is summed over tokens or heads are f32 (cs is summed in f64 and rounded once). Rounded
// to bf16 on the way: a state as a factor of a product, (C·B) e^{cs_i - cs_j} Δ_j, w_j x_j where a state takes it up,
// and on Hopper e^{cs_i} dy_i and w_j x_j where dC and dB are made; nothing that goes into the gradients of A and Δ but
// the states.
//
//   decays     Δ and cs of every token and head; where its document starts
//   sweep      one block a (row, head): S from chunk to chunk, in registers, each one's entering S written down. With
//              few rows and heads the row is cut in segments: their states from zero first, then those that enter them
//   outputs    one block a (chunk, group): C Bᵀ once, in registers; then y = M x + e^{cs} C Sᵀ + D x head after head
//   gradients  the same: dx, ddt and sums for D, A and the bias head by head; dB, dC and d(C Bᵀ) stay in registers over
//              the heads, so no sum over heads ever leaves the block (unless few chunks force the heads on several
//              blocks: then the parts are added in order)
//
// Forward is decays, sweep, outputs; on Hopper decays and one kernel that keeps S on the chip and does what those two
// do (chunked_forward_sm90.cu; each head has its own C Bᵀ, and segments have their sweep before it). Backward is
// decays, two sweeps in one launch (S forward, dS backward), gradients: the states are computed again and not kept.
//
// Cost of T tokens without z, with X = 2 T H P bytes and S = 2 T H P N / Q bytes of states (P, N rounded up to 64 or
// 128: small ones pay for the tile): forward moves 3 X + 2 S bytes and does 2 T H (2 P N + Q P / 2) FLOPs, backward 5 X
// + 4 S and 2 T H (5 P N + Q P): bound by memory, 0.55 + 1.0 ms at B 8, L 4096, H 80, P 64, N 128 and 4.3 TB/s. On
// Hopper forward moves 2 X and does 2 T H (2 P N + Q N + Q P): 0.16 ms of memory, and of tensor cores, there. Rows in
// segments read x and B twice. While it runs, forward needs S bytes, on Hopper none but the states that enter segments,
// and backward 2 S.
//
// The number of segments depends on the number of rows, heads and sweeps: the same problem gives the same bits, but a
// row alone may differ from the row in a batch by rounding.
//
// A NaN stays in its row and document; but inside one chunk, where a mask is a zero in a product, it may reach other
// tokens, those of another document included. One in B or Δ, and backward in C, may then go on from there: the document
// that leaves the chunk (backward: the one that enters it) is NaN from it on, and so is its state.
#pragma once

#include "adder/kernels/ssd/ssd.h"

namespace adder::ssd::chunked {

/// Whether it is made for such heads and states.
inline bool takes(int64_t head_dim, int64_t state) {
  return head_dim <= 64 && head_dim % 8 == 0 && state <= 128 && state % 8 == 0;
}
/// Whether operands (dtype, sizes, 16-byte alignment) and GPU (shared memory) suit it.
bool fits(const Ssd& op);
/// The same of where the gradients go; forward does not know, but keeps the same for both ways of doing it.
bool fits(const SsdGradients& to);
void forward(Cuda on, const Ssd& op, const SsdResult& to);
void backward(Cuda on, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to);

}  // namespace adder::ssd::chunked
