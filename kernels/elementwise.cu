// Cost: every operand is read once and every result written once, 64 bytes of an operand a thread, so that at any time
// 64 KB or more are on their way to a processor; arithmetic stays below the memory's pace. Floor: the
// bytes at memory speed, for example SiluMultiply backward in bf16: 3 in, 2 out, 10 bytes an element.
#include "adder/kernels/elementwise.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/math.cuh"

namespace adder {
namespace {

constexpr int threads = 256, pieces = 4;  // pieces of a thread, all on their way before the first is used

// y = f(x...), or y += f(x...). In place too: a thread writes only where it has read.
template <class T, class F, class... X>
__global__ void map(F f, Elements<T> y, bool add, X... x) {
  constexpr int n = Elements<T>::n, step = threads * n;
  const int64_t first = int64_t{blockIdx.x} * pieces * step + threadIdx.x * n, end = y.count();
  Lanes<T> in[pieces][sizeof...(X)];
#pragma unroll
  for (int k = 0; k < pieces; ++k) {
    int operand = 0;
    if (const int64_t i = first + k * step; i < end) ((in[k][operand++] = x.load(i, end)), ...);
  }
#pragma unroll
  for (int k = 0; k < pieces; ++k) {
    const int64_t i = first + k * step;
    if (i >= end) return;
    float out[n];
#pragma unroll
    for (int j = 0; j < n; ++j) {
      if constexpr (sizeof...(X) == 1) out[j] = f(in[k][0][j]);
      else out[j] = f(in[k][0][j], in[k][1][j]);
    }
    y.put(i, end, out, add);
  }
}

template <class F, class... X>
void run(const char* op, Cuda on, F f, const Slot& y, const X&... x) {
  with_gpu_float(op, y.tensor.dtype(), [&]<class T>(T) {
    constexpr int n = Elements<T>::n;
    const auto elements = [](const Tensor& t) { return Elements<T>(t); };
    launch(map<T, F, decltype(elements(x))...>, blocks(y.tensor.count(), pieces * threads * n), threads, 0, on, f,
           Elements<T>(y.tensor), y.accumulate, elements(x)...);
  });
}

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Times {
  __device__ float operator()(float a, float b) const { return a * b; }
};
struct By {
  float factor;
  __device__ float operator()(float x) const { return factor * x; }
};
struct ByGiven {
  const float* factor;
  __device__ float operator()(float x) const { return *factor * x; }
};
struct SiluOf {
  __device__ float operator()(float x) const { return math::silu(x); }
};
struct SiluSlope {
  __device__ float operator()(float x, float dy) const { return dy * math::silu_gradient(x); }
};
struct Gated {
  __device__ float operator()(float y, float gate) const { return y * math::silu(gate); }
};

// Both gradients in one pass; a side that is not wanted has no elements.
template <class T>
__global__ void gated_backward(Elements<T> y, Elements<T> gate, Elements<T> dout, Elements<T> dy, bool add_y,
                               Elements<T> dgate, bool add_gate) {
  constexpr int n = Elements<T>::n;
  const int64_t i = (int64_t{blockIdx.x} * threads + threadIdx.x) * n, end = dout.count();
  if (i >= end) return;
  float a[n], g[n], d[n], out[n];
  gate.load(i, end, g);
  dout.load(i, end, d);
  if (dy) {
#pragma unroll
    for (int j = 0; j < n; ++j) out[j] = d[j] * math::silu(g[j]);
    dy.put(i, end, out, add_y);
  }
  if (dgate) {
    y.load(i, end, a);
#pragma unroll
    for (int j = 0; j < n; ++j) out[j] = d[j] * a[j] * math::silu_gradient(g[j]);
    dgate.put(i, end, out, add_gate);
  }
}

}  // namespace

void add(Cuda on, const Tensor& a, const Tensor& b, const Tensor& y) { run("Add", on, Sum{}, {y, false}, a, b); }

void multiply(Cuda on, const Tensor& a, const Tensor& b, const Slot& y) { run("Multiply", on, Times{}, y, a, b); }

void scale(Cuda on, const Tensor& x, double factor, const Slot& y) {
  run("Scale", on, By{static_cast<float>(factor)}, y, x);
}

void scale(Cuda on, const Tensor& x, const Tensor& factor, const Slot& y) {
  run("Scale", on, ByGiven{factor.data<float>()}, y, x);
}

void silu_forward(Cuda on, const Tensor& x, const Tensor& y) { run("Silu", on, SiluOf{}, {y, false}, x); }

void silu_backward(Cuda on, const Tensor& x, const Tensor& dy, const Slot& dx) {
  run("Silu", on, SiluSlope{}, dx, x, dy);
}

void silu_multiply_forward(Cuda on, const SiluMultiply& op, const Tensor& out) {
  run("SiluMultiply", on, Gated{}, {out, false}, op.y, op.gate);
}

void silu_multiply_backward(Cuda on, const SiluMultiply& op, const Tensor& dout, const Slot& dy, const Slot& dgate) {
  with_gpu_float("SiluMultiply", dout.dtype(), [&]<class T>(T) {
    launch(gated_backward<T>, blocks(dout.count(), threads * Elements<T>::n), threads, 0, on, Elements<T>(op.y),
           Elements<T>(op.gate), Elements<T>(dout), Elements<T>(dy.tensor), dy.accumulate, Elements<T>(dgate.tensor),
           dgate.accumulate);
  });
}

}  // namespace adder
