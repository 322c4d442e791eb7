// Backward of the chunked form, from its parts; what comes before and after the kernels of the chunks.
#include "adder/kernels/matmul.h"
#include "adder/kernels/ssd/chunked_backward.cuh"
#include "adder/kernels/ssd/gate.cuh"

namespace adder::ssd::chunked {
namespace {

constexpr int threads = 256;

// Σ over the first axis of f32 parts, rounded: [parts, elements] -> [elements].
__global__ void __launch_bounds__(threads)
    sum_parts(const float* parts, int64_t count, int64_t elements, Elements<bf16> to) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i >= elements) return;
  float sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += parts[k * elements + i];
  *to(i) = element<bf16>(sum);
}

bool on_bytes(const Tensor& t, uintptr_t n) { return reinterpret_cast<uintptr_t>(t.address()) % n == 0; }

// Kernels read whole vectors: a tensor that begins elsewhere is copied.
Tensor from_whole(const Tensor& t) { return !t || on_bytes(t, 16) ? t : clone(t); }

// Rows of tokens that are read and written 16 bytes at a time.
bool whole_rows(const Tensor& t) { return on_bytes(t, 16) && t.stride(t.size(2) * t.size(3)) % 8 == 0; }

// What a block of this GPU may have.
int64_t shared_memory() {
  static const int bytes = [] {
    int device = 0, n = 0;
    check(cudaGetDevice(&device), "the GPU");
    check(cudaDeviceGetAttribute(&n, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "the GPU's shared memory");
    return n;
  }();
  return bytes;
}

}  // namespace

bool fits(const Ssd& op) {
  const int64_t P = op.x.size(3), N = op.B.size(3);
  const bool pairs = !op.z || (on_bytes(op.z, 4) && op.z.stride(op.x.size(2) * P) % 2 == 0);
  return op.x.dtype() == DType::bf16 && takes(P, N) && op.x.size(1) < std::numeric_limits<int>::max() &&
         whole_rows(op.x) && whole_rows(op.B) && whole_rows(op.C) && pairs &&
         gradients_shared(static_cast<int>(N)) <= shared_memory();
}
bool fits(const SsdGradients& to) { return whole_rows(to.x) && whole_rows(to.B) && whole_rows(to.C); }

void backward(Cuda on, const Ssd& op, const Tensor& dout, const Tensor& dfinal, const SsdGradients& to) {
  const Tensor dy = from_whole(through_gate(on, op, dout, to.z));
  const Decays decays(on, op);
  const Problem p(op, decays);
  const Tensor S = state_tiles(p), G = state_tiles(p);
  sweep(on, p, {.x = op.x, .B = op.B, .begin = op.has_initial_state ? op.states : Tensor(), .states = S},
        {.x = dy, .B = op.C, .begin = from_whole(dfinal), .states = G, .end = to.initial_state, .reverse = true});

  const int64_t chunks = p.batch * p.chunks, splits = head_splits(p, 512);  // four waves, or as near as the heads allow
  const bool per_channel = op.D && op.D.rank() == 2;
  const Tensor D = from_whole(op.D);
  const Tensor dA({chunks, p.heads}, DType::f32, Device::cuda), dbias = empty_like(dA);
  const Tensor dD = to.D ? Tensor({chunks, p.heads * (per_channel ? p.P : 1)}, DType::f32, Device::cuda) : Tensor();
  const Shape in_parts{splits, p.batch * p.time * p.groups * p.N};
  const Tensor dB = splits > 1 ? Tensor(in_parts, DType::f32, Device::cuda) : Tensor(),
               dC = dB ? empty_like(dB) : Tensor();
  const auto stride = [](const Tensor& t) { return t.stride(t.size(2) * t.size(3)); };
  launch_gradients(on, {.p = p,
                        .x = Tokens(op.x),
                        .B = Tokens(op.B),
                        .C = Tokens(op.C),
                        .dy = Tokens(dy),
                        .S = S.data<bf16>(),
                        .G = G.data<bf16>(),
                        .dt = op.dt.data<bf16>(),
                        .stride_dt = op.dt.stride(p.heads),
                        .A_log = op.A_log.data<float>(),
                        .bias = floats(op.dt_bias),
                        .D = floats(D),
                        .D_per_channel = per_channel,
                        .step = TimeStep(op),
                        .dx = to.x.data<bf16>(),
                        .dB = to.B.data<bf16>(),
                        .dC = to.C.data<bf16>(),
                        .ddt = to.dt.data<bf16>(),
                        .stride_dx = stride(to.x),
                        .stride_dB = stride(to.B),
                        .stride_dC = stride(to.C),
                        .stride_ddt = to.dt.stride(p.heads),
                        .dB_parts = dB ? dB.data<float>() : nullptr,
                        .dC_parts = dC ? dC.data<float>() : nullptr,
                        .dA_log = dA.data<float>(),
                        .dbias = dbias.data<float>(),
                        .dD = dD ? dD.data<float>() : nullptr,
                        .splits = splits});

  sum_rows(on, dA, to.A_log, false);
  if (to.dt_bias) sum_rows(on, dbias, to.dt_bias, false);
  if (dD) sum_rows(on, dD, to.D.reshape({to.D.count()}), false);
  for (const auto& [parts, sum] : {std::pair(dB, to.B), std::pair(dC, to.C)})
    if (parts)
      launch(sum_parts, blocks(sum.count(), threads), threads, 0, on, floats(parts), splits, sum.count(),
             Elements<bf16>(sum));
}

}  // namespace adder::ssd::chunked
