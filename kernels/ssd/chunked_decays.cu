// Δ and cs for the chunked form, and its sizes. Floor: dt read, Δ and cs written: 10 T H bytes.
#include "adder/kernels/ssd/chunked.cuh"
#include "adder/kernels/ssd/documents.cuh"
#include "adder/kernels/warp.cuh"

#include <algorithm>

namespace adder::ssd::chunked {
namespace {

constexpr int heads_a_block = 32, threads = 256;
constexpr double log2_e = 1.4426950408889634;

struct Arguments {
  const bf16* dt;
  int64_t stride;  // of dt
  const float *A_log, *bias;
  int64_t time, heads, chunks;
  TimeStep step;
  float *delta, *sum;
};

// A block takes a chunk and 32 heads: it reads dt by rows of heads and writes by runs of tokens.
__global__ void __launch_bounds__(threads) decays(Arguments p) {
  __shared__ float raw[Q][heads_a_block + 1];
  const int64_t chunk = blockIdx.x % p.chunks, row = blockIdx.x / p.chunks, first = int64_t{blockIdx.y} * heads_a_block;
  for (int i = static_cast<int>(threadIdx.x); i < Q * heads_a_block; i += threads) {
    const int t = i / heads_a_block, h = i % heads_a_block;
    if (const int64_t token = chunk * Q + t; token < p.time && first + h < p.heads)
      raw[t][h] = value(p.dt[(row * p.time + token) * p.stride + first + h]);
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int h = static_cast<int>(threadIdx.x / 32); h < heads_a_block && first + h < p.heads; h += threads / 32) {
    const int64_t head = first + h;
    const float A = -expf(p.A_log[head]), bias = p.bias == nullptr ? 0.0f : p.bias[head];
    float delta[2];
    double a[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {  // tokens behind the last one neither decay nor add anything
      const bool there = chunk * Q + 2 * lane + k < p.time;
      delta[k] = there ? p.step(raw[2 * lane + k][h] + bias) : 0.0f;
      a[k] = there ? static_cast<double>(log_decay(delta[k], A)) : 0.0;
    }
    const double end = warp_scan(a[0] + a[1]);
    const int64_t at = ((row * p.chunks + chunk) * p.heads + head) * Q + 2 * lane;
    *reinterpret_cast<float2*>(p.delta + at) = {delta[0], delta[1]};
    *reinterpret_cast<float2*>(p.sum + at) = {static_cast<float>((end - a[1]) * log2_e),
                                              static_cast<float>(end * log2_e)};
  }
}

}  // namespace

Decays::Decays(Cuda on, const Ssd& op) {
  const int64_t batch = op.x.size(0), time = op.x.size(1), heads = op.x.size(2), chunks = (time + Q - 1) / Q;
  delta = Tensor({batch, chunks, heads, Q}, DType::f32, Device::cuda);
  sum = empty_like(delta);
  const Arguments p{.dt = op.dt.data<bf16>(), .stride = op.dt.stride(heads), .A_log = op.A_log.data<float>(),
                    .bias = floats(op.dt_bias), .time = time, .heads = heads, .chunks = chunks,
                    .step = TimeStep(op),
                    .delta = delta.data<float>(), .sum = sum.data<float>()};
  launch(decays, dim3(blocks(batch * chunks, 1), blocks(heads, heads_a_block)), threads, 0, on, p);
  start = document_starts(on, op);
}

Problem::Problem(const Ssd& op, const Decays& decays)
    : batch(op.x.size(0)), time(op.x.size(1)), heads(op.x.size(2)), groups(op.B.size(2)),
      chunks((op.x.size(1) + Q - 1) / Q), P(static_cast<int>(op.x.size(3))), N(static_cast<int>(op.B.size(3))),
      delta(decays.delta.data<float>()), sum(decays.sum.data<float>()),
      start(decays.start ? decays.start.data<int32_t>() : nullptr) {}

Tensor state_tiles(const Problem& p) {
  return Tensor({p.batch, p.chunks, p.heads, P_tile, N_tile(p)}, DType::bf16, Device::cuda);
}

int64_t head_splits(const Problem& p, int64_t wanted) {
  const int64_t blocks = p.batch * p.chunks * p.groups;
  const int64_t heads = p.heads_per_group(), splits = std::clamp<int64_t>(wanted / blocks, 1, heads);
  const int64_t each = (heads + splits - 1) / splits;
  return (heads + each - 1) / each;  // none without heads
}

}  // namespace adder::ssd::chunked
