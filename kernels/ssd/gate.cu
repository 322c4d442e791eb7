// Floor: dout, z and y read once, dy and dz written once.
#include "adder/kernels/ssd/gate.cuh"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/math.cuh"

namespace adder::ssd {
namespace {

constexpr int threads = 256;

// Either of dy and dz may have no elements: not wanted.
template <class T>
__global__ void __launch_bounds__(threads)
    gate_backward(Elements<T> dout, Elements<T> z, Elements<float> y, Elements<T> dy, Elements<T> dz) {
  constexpr int n = Elements<T>::n, m = Elements<float>::n;
  const int64_t i = (int64_t{blockIdx.x} * threads + threadIdx.x) * n, end = dout.count();
  if (i >= end) return;
  float d[n], gate[n], to[n];
  dout.load(i, end, d);
  z.load(i, end, gate);
  if (dy) {
#pragma unroll
    for (int j = 0; j < n; ++j) to[j] = d[j] * math::silu(gate[j]);
    dy.store(i, end, to);
  }
  if (!dz) return;
  float ungated[m];
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (j % m == 0) y.load(i + j, end, ungated);
    to[j] = d[j] * ungated[j % m] * math::silu_gradient(gate[j]);
  }
  dz.store(i, end, to);
}

void run(Cuda on, const Ssd& op, const Tensor& dout, const Tensor& dy, const Tensor& dz) {
  with_gpu_float("Ssd", dout.dtype(), [&]<class T>(T) {
    launch(gate_backward<T>, blocks(dout.count(), threads * Elements<T>::n), threads, 0, on, Elements<T>(dout),
           Elements<T>(op.z), Elements<float>(op.ungated), Elements<T>(dy), Elements<T>(dz));
  });
}

}  // namespace

void gate_gradient(Cuda on, const Ssd& op, const Tensor& dout, const Tensor& dz) {
  if (dz) run(on, op, dout, Tensor(), dz);
}

Tensor through_gate(Cuda on, const Ssd& op, const Tensor& dout, const Tensor& dz) {
  if (!op.z) return dout;
  Tensor dy = empty_like(dout);
  run(on, op, dout, dy, dz);
  return dy;
}

}  // namespace adder::ssd
