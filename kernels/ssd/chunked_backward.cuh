// What the gradient kernel of the chunked form is told, and its last step.
#pragma once

#include "adder/kernels/ssd/chunked.cuh"
#include "adder/kernels/warp.cuh"

namespace adder::ssd::chunked {

inline constexpr int gradient_threads = 256;

struct Gradients {
  Problem p;
  Tokens x, B, C, dy;
  const bf16 *S, *G;     // state_tiles: what enters each chunk; the gradient of what leaves it
  const bf16* dt;
  int64_t stride_dt;
  const float *A_log, *bias, *D;
  bool D_per_channel;
  TimeStep step;
  bf16 *dx, *dB, *dC, *ddt;
  int64_t stride_dx, stride_dB, stride_dC, stride_ddt;
  float *dB_parts, *dC_parts;  // [split, batch, time, group, N] if a group's heads lie in several blocks, else null
  float *dA_log, *dbias, *dD;  // [batch, chunk, head], dD also [.., P]: sums over the chunk; dD may be null
  int64_t splits;
};

/// Sums over one chunk and head that the warps leave for the last step, by token and, where several warps share a
/// token, by theirs.
template <int shares>
struct Parts {
  float row[shares][Q], column[4][Q];        // of W; by 16 rows
  float enter[shares][Q], leave[shares][Q];  // e^{cs_i} dy_i·(S C_i); τ
  float input[shares][Q], skip[shares][Q];   // u·x; dy·x
  float channel[4][P_tile];                  // dy ⊙ x, by 16 tokens, if D is per channel
  float states[gradient_threads / 32];       // <G, S>
};
template <int count>
__device__ float sum_of(const float (&parts)[count][Q], int t) {
  float sum = parts[0][t];
#pragma unroll
  for (int k = 1; k < count; ++k) sum += parts[k][t];
  return sum;
}

/// From the sums to dcs, da and ddt, and to this chunk's share of dA_log, dbias and dD. One warp, two tokens a lane.
template <int shares>
__device__ void time_steps(const Gradients& a, int64_t b, int64_t chunk, int64_t h, const Parts<shares>& s,
                           const float* delta, const float* sum, const int* document) {
  const Problem& p = a.p;
  const int lane = static_cast<int>(threadIdx.x % 32);
  double dcs[2];
  float tau[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    tau[i] = sum_of(s.leave, t);
    dcs[i] = static_cast<double>(sum_of(s.row, t)) - sum_of(s.column, t) + sum_of(s.enter, t) - tau[i];
  }
  double end = warp_sum(static_cast<double>(tau[0]) + tau[1]);
  if (document[Q - 1] < chunk * Q) {  // the state that enters leaves again
    double states = 0;
    for (const float part : s.states) states += part;
    end += static_cast<double>(power_of_2(sum[Q - 1])) * states;
  }
  if (lane == 31) dcs[1] += end;
  // da: dcs of this token and those behind it in its document, what lies between two documents selected away.
  const int own = document[2 * lane], next = document[2 * lane + 1];
  double from_here = own == next ? dcs[0] + dcs[1] : dcs[0];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const double behind = __shfl_down_sync(all_lanes, from_here, step);
    if (lane + step < 32 && document[2 * (lane + step)] == own) from_here += behind;
  }
  const double behind = __shfl_down_sync(all_lanes, from_here, 1);
  const double da[2] = {from_here, lane < 31 && document[2 * lane + 2] == next ? dcs[1] + behind : dcs[1]};

  const float A = -expf(a.A_log[h]), bias = a.bias == nullptr ? 0.0f : a.bias[h];
  double sums[3] = {0, 0, 0};  // for A_log, bias, D
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    const int64_t token = b * p.time + chunk * Q + t;
    if (t >= p.tokens_of(chunk)) continue;
    double d = sum_of(s.input, t);
    if (!is_cut(delta[t], A)) {
      d += A * da[i];
      sums[0] += static_cast<double>(delta[t]) * A * da[i];
    }
    const float gradient = a.step.gradient(value(a.dt[token * a.stride_dt + h]) + bias, static_cast<float>(d));
    a.ddt[token * a.stride_ddt + h] = element<bf16>(gradient);
    sums[1] += gradient;
    sums[2] += sum_of(s.skip, t);
  }
#pragma unroll
  for (double& x : sums) x = warp_sum(x);
  const int64_t at = (b * p.chunks + chunk) * p.heads + h;
  if (lane == 0) {
    a.dA_log[at] = static_cast<float>(sums[0]);
    a.dbias[at] = static_cast<float>(sums[1]);
    if (a.dD != nullptr && !a.D_per_channel) a.dD[at] = static_cast<float>(sums[2]);
  }
  if (a.dD != nullptr && a.D_per_channel)
    for (int i = lane; i < p.P; i += 32) a.dD[at * p.P + i] = sum_of(s.channel, i);
}

void launch_gradients(Cuda on, const Gradients& a);
/// Bytes of shared memory that it needs.
int64_t gradients_shared(int N);

// The same where wgmma::available(), which launch_gradients and gradients_shared see to.
void launch_gradients_sm90(Cuda on, const Gradients& a);
int64_t gradients_shared_sm90(int N);

}  // namespace adder::ssd::chunked
