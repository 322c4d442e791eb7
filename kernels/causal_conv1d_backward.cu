// Backward.
// Floor, N = batch x time x channels, bf16: 6 N bytes (x, dy in; dx out) at memory speed; walkers read width - 1 of 64
// tokens twice, of x three times, and write 4 (width + 1) bytes of partial sums per channel and 512 tokens. The plain
// kernels write g = dy silu'(s) in f32 and read it again width times, out of cache.
#include "adder/kernels/causal_conv1d.cuh"

#include "adder/core/launch.cuh"
#include "adder/kernels/accumulate.h"
#include "adder/kernels/math.cuh"
#include "adder/kernels/matmul.h"

namespace adder {
namespace {

using namespace conv;
constexpr int threads = 256;

template <class T>
struct Backward {
  Operands<T> in;
  Rows<const T> dy, dfinal;
  Rows<T> dx, dstate;
  bool add_to_dx;
  float *dweight, *dbias;  // partial sums over `lanes` tiles: [row, channel, width] and [row, channel]; or null
  int64_t tiles, rows;     // tiles of a sequence, rows of partial sums

  bool can_walk() const { return in.can_walk() && dy.whole() && dfinal.whole() && dx.whole() && dstate.whole(); }
};

// The sums of a walker, and dx of the tokens behind it as far as it is known.
template <int width>
struct Sums {
  float dx[width - 1][n] = {};                 // of the tokens t - 1, t - 2, ...
  float weight[width][n] = {}, bias[n] = {};  // of dweight, the newest tap first, and of dbias

  // Adds what g of a token gives to dx; `done` becomes dx of the token width - 1 before it.
  __device__ void spread(const Taps<width>& w, const float (&g)[n], int taps, float (&done)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      done[j] = taps > width - 1 ? fmaf(w.weight[width - 1][j], g[j], dx[width - 2][j]) : dx[width - 2][j];
#pragma unroll
      for (int k = width - 2; k > 0; --k) dx[k][j] = taps > k ? fmaf(w.weight[k][j], g[j], dx[k - 1][j]) : dx[k - 1][j];
      dx[0][j] = taps > 0 ? w.weight[0][j] * g[j] : 0.0f;
    }
  }
  __device__ void add(const float (&g)[n], const float (&x)[n], const float (&past)[width - 1][n], int taps) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      bias[j] += g[j];
      weight[0][j] = fmaf(g[j], x[j], weight[0][j]);
    }
#pragma unroll
    for (int k = 1; k < width; ++k)
      if (k < taps)
#pragma unroll
        for (int j = 0; j < n; ++j) weight[k][j] = fmaf(g[j], past[k - 1][j], weight[k][j]);
  }
};

// dx of token t < time is known once g of t + width - 1 is: walks that much past its tile.
template <class T, int width>
__device__ void walk_tile(const Backward<T>& p, Walker<T, width>& at, Sums<width>& sums) {
  const Operands<T>& in = p.in;
  const Taps<width> w(in, at.c);
  // Tokens are counted from the tile's first: those before `known` have a g, and the gradient of the final state holds
  // something for those from `last_inputs` on.
  constexpr int past = width - 1;
  const int stop = at.count + past;
  const int known = p.dy ? static_cast<int>(min(in.time - at.begin, int64_t{stop})) : 0;
  const int last_inputs = p.dfinal ? static_cast<int>(min(in.final_begin(at.b) - at.begin, int64_t{stop})) : stop;
  const int64_t row = at.b * in.time + at.begin;
  const T *const from_x = in.x(row, at.c), *const from_dy = p.dy(row, at.c);
  T* const to_dx = p.dx(row, at.c);
  const int32_t* const id = in.document ? in.document(at.b, at.begin) : nullptr;
  for (int t = 0; t < stop; t += ahead<T>) {
    Lanes<T, n> x[ahead<T>], dy[ahead<T>];
    int32_t document[ahead<T>];
#pragma unroll
    for (int i = 0; i < ahead<T>; ++i) {
      if (t + i >= known) break;
      x[i] = read(from_x + (t + i) * in.x.stride);
      dy[i] = read(from_dy + (t + i) * p.dy.stride);
      document[i] = id ? id[t + i] : 0;
    }
#pragma unroll
    for (int i = 0; i < ahead<T>; ++i) {
      if (t + i >= stop) break;
      float g[n] = {}, done[n];
      int taps = 0;
      if (t + i < known) {
        const float now[n] = {x[i][0], x[i][1], x[i][2], x[i][3]};
        float s[n];
        at.enter(document[i]);
        at.sum(w, now, s);
#pragma unroll
        for (int j = 0; j < n; ++j) g[j] = in.silu ? dy[i][j] * math::silu_gradient(s[j]) : dy[i][j];
        taps = at.taps;
        if (t + i < at.count) sums.add(g, now, at.past, taps);
        at.pass(now);
      }
      sums.spread(w, g, taps, done);
      const int u = t + i - past;
      if (u >= last_inputs) {
        const Lanes<T, n> last = read(p.dfinal(at.b * past + at.begin + u - (in.time - past), at.c));
#pragma unroll
        for (int j = 0; j < n; ++j) done[j] += last[j];
      }
      if (u >= 0 && p.dx) {
        if (p.add_to_dx) {
          const Lanes<T, n> before = read<T>(to_dx + u * p.dx.stride);
#pragma unroll
          for (int j = 0; j < n; ++j) done[j] += before[j];
        }
        write(to_dx + u * p.dx.stride, done);
      } else if (u < 0 && at.begin == 0 && p.dstate) {
        write(p.dstate(at.b * past + past + u, at.c), done);
      }
    }
  }
}

template <class T, int width>
__global__ void __launch_bounds__(32 * lanes, 2) walk(Backward<T> p) {
  Walker<T, width> at(p.in, p.tiles);
  Sums<width> sums;
  if (at.inside) walk_tile(p, at, sums);
  if (p.dweight == nullptr && p.dbias == nullptr) return;

  // The tiles of the block in order: warp k sums dweight of tap k, warp `width` dbias.
  __shared__ float4 parts[width + 1][lanes][32];
#pragma unroll
  for (int k = 0; k <= width; ++k) {
    const float(&s)[n] = k < width ? sums.weight[k] : sums.bias;
    parts[k][threadIdx.y][threadIdx.x] = {s[0], s[1], s[2], s[3]};
  }
  __syncthreads();
  const int k = static_cast<int>(threadIdx.y);
  const int64_t across = (p.in.channels + columns - 1) / columns, row = blockIdx.x / across;
  const int64_t c = blockIdx.x % across * columns + threadIdx.x * n;
  if (k > width || c >= p.in.channels) return;
  float s[n] = {};
  for (int lane = 0; lane < lanes; ++lane) {
    const float4 part = parts[k][lane][threadIdx.x];
    s[0] += part.x, s[1] += part.y, s[2] += part.z, s[3] += part.w;
  }
#pragma unroll
  for (int j = 0; j < n; ++j) {
    const int64_t i = row * p.in.channels + c + j;
    if (k < width && p.dweight != nullptr) p.dweight[i * width + width - 1 - k] = s[j];
    if (k == width && p.dbias != nullptr) p.dbias[i] = s[j];
  }
}

template <class T>
__global__ void plain_g(Backward<T> p, float* g) {
  const Operands<T>& in = p.in;
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x, c = i % in.channels, row = i / in.channels;
  if (row >= in.batch * in.time) return;
  const float dy = value(*p.dy(row, c));
  g[i] = in.silu ? dy * math::silu_gradient(in.sum(row / in.time, row % in.time, c)) : dy;
}

// g is null if no gradient of y arrived.
template <class T>
__global__ void plain_dx(Backward<T> p, const float* g) {
  const Operands<T>& in = p.in;
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x, c = i % in.channels, row = i / in.channels;
  const int64_t past = in.width - 1, b = row / (past + in.time), t = row % (past + in.time) - past;
  if (b >= in.batch) return;
  const Rows<T>& rows = t < 0 ? p.dstate : p.dx;
  if (!rows) return;
  float sum = 0;
  for (int64_t k = 0; g != nullptr && k < in.width && t + k < in.time; ++k) {
    if (k > 0 && !in.continues(b, t + k)) break;
    if (t + k >= 0) sum = fmaf(*in.weight(c, past - k), g[(b * in.time + t + k) * in.channels + c], sum);
  }
  if (p.dfinal && t >= in.final_begin(b)) sum += value(*p.dfinal(b * past + t - (in.time - past), c));
  T* const to = t < 0 ? rows(b * past + past + t, c) : rows(b * in.time + t, c);
  *to = element<T>(p.add_to_dx && t >= 0 ? value(*to) + sum : sum);
}

// One partial sum: of dweight at tap k, or of dbias (k = width), over the tokens of a row's tiles.
template <class T>
__global__ void plain_sums(Backward<T> p, const float* g) {
  const Operands<T>& in = p.in;
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x, c = i % in.channels;
  const int64_t k = i / in.channels % (in.width + 1), row = i / in.channels / (in.width + 1);
  if (row >= p.rows) return;
  float sum = 0;
  for (int64_t each = row * lanes; g != nullptr && each < min((row + 1) * lanes, in.batch * p.tiles); ++each) {
    const int64_t b = each / p.tiles, begin = each % p.tiles * tile, end = min(in.time, begin + tile);
    int64_t taps = in.taps(b, begin - 1);
    for (int64_t t = begin; t < end; ++t) {
      taps = in.continues(b, t) ? min(in.width, taps + 1) : 1;
      const float now = g[(b * in.time + t) * in.channels + c];
      if (k == in.width) sum += now;
      else if (k < taps) sum = fmaf(now, value(*in.input(b, t - k, c)), sum);
    }
  }
  const int64_t at = row * in.channels + c;
  if (k < in.width && p.dweight != nullptr) p.dweight[at * in.width + in.width - 1 - k] = sum;
  if (k == in.width && p.dbias != nullptr) p.dbias[at] = sum;
}

template <class T>
void run(Cuda on, const Backward<T>& p) {
  const int64_t channels = p.in.channels, across = (channels + columns - 1) / columns;
  if (p.can_walk())
    return with_width(p.in.width, [&](auto width) {
      launch(walk<T, width()>, blocks(p.rows * across, 1), dim3(32, lanes), 0, on, p);
    });
  const Tensor g = p.dy ? Tensor({p.in.batch * p.in.time, channels}, DType::f32, Device::cuda) : Tensor();
  float* const to = g ? g.data<float>() : nullptr;
  if (g) launch(plain_g<T>, blocks(g.count(), threads), threads, 0, on, p, to);
  const int64_t inputs = p.in.batch * (p.in.time + p.in.width - 1);
  launch(plain_dx<T>, blocks(inputs * channels, threads), threads, 0, on, p, to);
  if (p.dweight != nullptr || p.dbias != nullptr)
    launch(plain_sums<T>, blocks(p.rows * (p.in.width + 1) * channels, threads), threads, 0, on, p, to);
}

// Sums partial sums into a slot, whose rows may lie apart.
void add_up(Cuda on, const Tensor& partial, const Slot& slot) {
  const Tensor& to = slot.tensor;
  const Tensor sum = to.contiguous() ? to : Tensor(to.shape(), DType::f32, Device::cuda);
  sum_rows(on, partial, sum.reshape({sum.count()}), to.contiguous() && slot.accumulate);
  if (to.contiguous()) return;
  if (slot.accumulate) accumulate(on, sum, to);
  else copy(sum, to);
}

}  // namespace

void causal_conv1d_backward(Cuda on, const CausalConv1d& conv, const Tensor& dy, const Tensor& dfinal_state,
                            const CausalConv1dGradients& to) {
  with_gpu_float("CausalConv1d", conv.x.dtype(), [&]<class T>(T) {
    const Operands<T> in(conv);
    const int64_t tiles = in.tiles(), rows = (in.batch * tiles + lanes - 1) / lanes;
    const auto partial = [&](const Slot& slot, int64_t width) {
      return slot.tensor ? Tensor({rows, in.channels * width}, DType::f32, Device::cuda) : Tensor();
    };
    const Tensor dweight = partial(to.weight, in.width), dbias = partial(to.bias, 1);
    run(on, Backward<T>{.in = in, .dy = Rows<const T>(dy), .dfinal = Rows<const T>(dfinal_state),
                        .dx = Rows<T>(to.x.tensor), .dstate = Rows<T>(to.initial_state),
                        .add_to_dx = to.x.accumulate, .dweight = dweight ? dweight.data<float>() : nullptr,
                        .dbias = dbias ? dbias.data<float>() : nullptr, .tiles = tiles, .rows = rows});
    if (dweight) add_up(on, dweight, to.weight);
    if (dbias) add_up(on, dbias, to.bias);
  });
}

}  // namespace adder
