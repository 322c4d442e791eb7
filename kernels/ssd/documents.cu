#include "adder/kernels/ssd/documents.cuh"

#include "adder/kernels/warp.cuh"

namespace adder::ssd {
namespace {

constexpr int threads = 1024, warps = threads / 32;

// A block takes a row: the latest start so far, tile by tile.
__global__ void __launch_bounds__(threads) find_starts(const int32_t* document, int64_t time, int32_t* start) {
  __shared__ int32_t last[warps];
  document += blockIdx.x * time;
  start += blockIdx.x * time;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int32_t before = -1;
  for (int64_t base = 0; base < time; base += threads) {
    const int64_t t = base + threadIdx.x;
    int32_t latest = t < time && starts_document(document, t) ? static_cast<int32_t>(t) : -1;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) latest = max(latest, __shfl_up_sync(all_lanes, latest, step));
    if (lane == 31) last[warp] = latest;
    __syncthreads();
    int32_t all = before;
    for (int w = 0; w < warps; ++w) {
      if (w < warp) latest = max(latest, last[w]);
      all = max(all, last[w]);
    }
    if (t < time) start[t] = max(latest, before);
    before = all;
    __syncthreads();  // `last` has been read
  }
}

}  // namespace

Tensor document_starts(Cuda on, const Ssd& op) {
  if (!op.document) return {};
  const int64_t batch = op.document.size(0), time = op.document.size(1);
  Tensor start({batch, time}, DType::i32, Device::cuda);
  launch(find_starts, blocks(batch, 1), threads, 0, on, op.document.data<int32_t>(), time, start.data<int32_t>());
  return start;
}

}  // namespace adder::ssd
