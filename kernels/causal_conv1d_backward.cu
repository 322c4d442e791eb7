// Backward.
// Floor, N = batch x time x channels, bf16: 6 N bytes (x, dy in; dx out) at memory speed. Of 64 tokens walkers read
// 2 (width - 1) of x and width - 1 of dy twice, and they write 4 (width + 1) bytes of partial sums per channel and 256
// tokens, which are read once. Instructions come second, which is why SiLU's slope takes few. The plain kernels write
// g = dy silu'(s) in f32 and read it again width times, out of cache.
#include "adder/kernels/causal_conv1d_walker.cuh"

#include "adder/core/launch.cuh"

namespace adder {
namespace {

using namespace conv;
constexpr int threads = 256;
constexpr int n = 4;               // channels of a walker: with 8 its sums leave too few warps to a processor
constexpr int blocks_at_once = 4;  // of walkers on a processor: what the registers allow

template <class T>
struct Backward {
  Operands<T> in;
  Rows<const T> dy, dfinal;
  Rows<T> dx, dstate;
  bool add_to_dx;
  float* partial;       // sums over `warps` tiles, of dweight, the newest tap first, and of dbias; or null
  int64_t tiles, rows;  // tiles of a sequence; rows of partial sums: [row, width + 1, channel]

  bool can_walk() const { return in.can_walk() && dy.whole() && dfinal.whole() && dx.whole() && dstate.whole(); }
};

// Twice g = dy silu'(s), of half of s: then SiLU's slope is (1 + t + (1 - t²) s / 2) / 2 with t = tanh(s / 2), four
// instructions in bf16. tanh.approx is right to 2^-11, dx is rounded to 2^-9. Halves and doubles are exact.
template <class T, bool with_silu>
__device__ float twice_g(float dy, float half) {
  if constexpr (!with_silu) return 2 * dy;
  if constexpr (sizeof(T) == 4) return 2 * (dy * math::silu_gradient(2 * half));
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(half));
  return fmaf(dy, fmaf(fmaf(-t, t, 1.0f), half, t), dy);
}

// The sums of a walker, and dx of the tokens behind it as far as it is known. It counts in twice g and half the weights.
template <int width>
struct Sums {
  float dx[width - 1][n] = {};   // of the tokens t - 1, t - 2, ...
  float sum[width + 1][n] = {};  // of 2 dweight, the newest tap first, and of 2 dbias

  // Adds what g of a token gives to dx; `done` becomes dx of the token width - 1 before it.
  __device__ void spread(const Taps<n, width>& w, const float (&g)[n], int taps, float (&done)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
#pragma unroll
      for (int k = width - 1; k >= 0; --k) {
        const float before = k > 0 ? dx[k - 1][j] : 0.0f;
        const float after = taps > k ? fmaf(w.weight[k][j], g[j], before) : before;
        (k == width - 1 ? done[j] : dx[k][j]) = after;
      }
    }
  }
  __device__ void add(const float (&g)[n], const float (&x)[n], const float (&past)[width - 1][n]) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      sum[width][j] += g[j];
#pragma unroll
      for (int k = 0; k < width; ++k) sum[k][j] = fmaf(g[j], k == 0 ? x[j] : past[k - 1][j], sum[k][j]);
    }
  }
};

// A walker backward. dx of token t < time is known once g of t + width - 1 is: it walks that much past its tile.
template <class T, int width, bool with_silu>
struct Back {
  static constexpr int past = width - 1;
  const Backward<T>& p;
  Walker<T, n, width>& at;
  Sums<width>& sums;
  const Taps<n, width> w;
  // Tokens are counted from the tile's first: those before `known` have a g, the gradient of the final state holds
  // something for those from `last_inputs` on, and those before `plain` are the tile's and only dx is to be written.
  int stop, known, last_inputs, plain;
  T* to;
  int stride;

  __device__ Back(const Backward<T>& p_, Walker<T, n, width>& at_, Sums<width>& sums_, int known_)
      : p(p_), at(at_), sums(sums_), w(p.in, at.c, 0.5f), stop(at.count + past), known(known_) {
    last_inputs = p.dfinal ? static_cast<int>(min(p.in.final_begin(at.b) - at.begin, int64_t{stop})) : stop;
    plain = p.dx && !p.add_to_dx ? min(at.count, min(known, last_inputs)) : 0;
    to = p.dx(at.b * p.in.time + at.begin, at.c);
    stride = static_cast<int>(p.dx.stride);
    at.look_back(p.in);
  }

  // g of the next token, which goes into the sums of the parameters' gradients if it is the tile's.
  __device__ void enter(const Lanes<T, n>& x, const Lanes<T, n>& dy, bool counts, float (&g)[n]) {
    float now[n], s[n];
#pragma unroll
    for (int j = 0; j < n; ++j) now[j] = x[j];
    at.sum(w, now, s);
#pragma unroll
    for (int j = 0; j < n; ++j) g[j] = twice_g<T, with_silu>(dy[j], s[j]);
    if (counts) sums.add(g, now, at.past);
    at.pass(now);
  }

  // Stores dx of token u, known at last.
  __device__ void leave(int u, float (&dx)[n]) const {
    const int64_t b = at.b, token = at.begin + u;
    if (u >= last_inputs) {
      const Lanes<T, n> last = read<n>(p.dfinal(b * past + token - (p.in.time - past), at.c));
#pragma unroll
      for (int j = 0; j < n; ++j) dx[j] += last[j];
    }
    if (u >= 0 && p.dx) {
      if (p.add_to_dx) {
        const Lanes<T, n> before = read<n>(to + u * stride);
#pragma unroll
        for (int j = 0; j < n; ++j) dx[j] += before[j];
      }
      write(to + u * stride, dx, at.inside);
    } else if (token < 0 && p.dstate) {
      write(p.dstate(b * past + past + token, at.c), dx, at.inside);
    }
  }

  __device__ void walk(const Stream<T, n>& x, const Stream<T, n>& dy) {
    auto next = at.documents(p.in, 0);
    unsigned documents = 0, recent = 0;  // bit i: a document begins at the token i on; i back
    for (int t = 0; t < stop; t += group, documents >>= group) {
      x.ask(t + ahead);
      dy.ask(t + ahead);
      mma::commit_copies();
      if (t % 32 == 0) {
        documents = at.begins(next);
        next = at.documents(p.in, t + 32);
      }
      wait_for_group();
      const Lanes<T, n>*const pieces = x(t), *const dpieces = dy(t);
      const bool cut = documents % (1 << group) != 0 || recent % (1 << (past - 1)) != 0;
      if (!cut && t >= past && t + group <= plain) {
        recent <<= group;
#pragma unroll
        for (int i = 0; i < group; ++i) {
          float g[n], dx[n];
          enter(pieces[i * 32], dpieces[i * 32], true, g);
          sums.spread(w, g, width, dx);
          write(to + (t + i - past) * stride, dx, at.inside);
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < min(group, stop - t); ++i) {
          const unsigned begins = documents >> i & 1;
          recent = recent << 1 | begins;
          if (begins) at.forget();
          float g[n] = {}, dx[n];
          if (t + i < known) enter(pieces[i * 32], dpieces[i * 32], t + i < at.count, g);
          sums.spread(w, g, recent ? __ffs(static_cast<int>(recent)) : width, dx);
          leave(t + i - past, dx);
        }
      }
    }
  }
};

template <class T, int width, bool with_silu>
__global__ void __launch_bounds__(32 * warps, blocks_at_once) walk(Backward<T> p) {
  __shared__ Lanes<T, n> waiting[warps][2][depth][32];
  Walker<T, n, width> at(p.in, p.tiles);
  Sums<width> sums;
  if (at.b < p.in.batch) {
    const int64_t row = at.b * p.in.time + at.begin;
    const int known = p.dy ? static_cast<int>(min(p.in.time - at.begin, int64_t{at.count + width - 1})) : 0;
    Lanes<T, n>(*const room)[depth][32] = waiting[threadIdx.y];
    const T *const from = p.in.x(row, at.c), *const dfrom = p.dy ? p.dy(row, at.c) : from;  // without dy not read
    const Stream<T, n> x{&room[0][0][threadIdx.x], from, static_cast<int>(p.in.x.stride), known};
    const Stream<T, n> dy{&room[1][0][threadIdx.x], dfrom, static_cast<int>(p.dy.stride), known};
#pragma unroll
    for (int t = 0; t < ahead; t += group) {
      x.ask(t);
      dy.ask(t);
      mma::commit_copies();
    }
    Back<T, width, with_silu>(p, at, sums, known).walk(x, dy);
    mma::wait_for_copies();  // past the tile they write zeros
  }
  if (p.partial == nullptr) return;

  // The sums of the block's tiles, in order, by way of the same memory.
  constexpr int numbers = (width + 1) * columns<n>;
  static_assert(sizeof(float) * warps * numbers <= sizeof(waiting));
  float* const parts = reinterpret_cast<float*>(waiting);
  __syncthreads();
#pragma unroll
  for (int k = 0; k <= width; ++k)
#pragma unroll
    for (int j = 0; j < n; ++j)
      parts[threadIdx.y * numbers + k * columns<n> + threadIdx.x * n + j] = 0.5f * sums.sum[k][j];
  __syncthreads();
  const int64_t across = (p.in.channels + columns<n> - 1) / columns<n>, row = blockIdx.x / across;
  for (int i = threadIdx.y * 32 + threadIdx.x; i < numbers; i += 32 * warps) {
    const int64_t c = blockIdx.x % across * columns<n> + i % columns<n>;
    float sum = 0;
#pragma unroll
    for (int tile_ = 0; tile_ < warps; ++tile_) sum += parts[tile_ * numbers + i];
    if (c < p.in.channels) p.partial[(row * (width + 1) + i / columns<n>) * p.in.channels + c] = sum;
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
  for (int64_t each = row * warps; g != nullptr && each < min((row + 1) * warps, in.batch * p.tiles); ++each) {
    const int64_t b = each / p.tiles, begin = each % p.tiles * tile, end = min(in.time, begin + tile);
    int64_t taps = in.taps(b, begin - 1);
    for (int64_t t = begin; t < end; ++t) {
      taps = in.continues(b, t) ? min(in.width, taps + 1) : 1;
      const float now = g[(b * in.time + t) * in.channels + c];
      if (k == in.width) sum += now;
      else if (k < taps) sum = fmaf(now, value(*in.input(b, t - k, c)), sum);
    }
  }
  p.partial[i] = sum;
}

// Adds up the rows of partial sums, in order, a warp every eighth.
struct Parameters {
  const float* partial;
  int64_t rows, channels, width;
  Rows<float> dweight, dbias;  // or null
  bool add_to_dweight, add_to_dbias;
};
constexpr int sharers = 8;

__global__ void __launch_bounds__(32 * sharers) add_up(Parameters p) {
  __shared__ float parts[sharers][32];
  const int64_t numbers = (p.width + 1) * p.channels, i = int64_t{blockIdx.x} * 32 + threadIdx.x;
  float sum = 0;
#pragma unroll 8
  for (int64_t row = threadIdx.y; row < p.rows; row += sharers)
    if (i < numbers) sum += p.partial[row * numbers + i];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || i >= numbers) return;
#pragma unroll
  for (int k = 1; k < sharers; ++k) sum += parts[k][threadIdx.x];
  const int64_t k = i / p.channels, c = i % p.channels;
  const Rows<float>& to = k < p.width ? p.dweight : p.dbias;
  if (!to) return;
  float* const at = k < p.width ? to(c, p.width - 1 - k) : to(0, c);
  const bool add = k < p.width ? p.add_to_dweight : p.add_to_dbias;
  *at = add ? *at + sum : sum;
}

template <class T>
void run(Cuda on, const Backward<T>& p) {
  const int64_t channels = p.in.channels, across = (channels + columns<n> - 1) / columns<n>;
  if (p.can_walk())
    return with_shape(p.in.width, p.in.silu, [&](auto width, auto with_silu) {
      launch(walk<T, width(), with_silu()>, blocks(p.rows * across, 1), dim3(32, warps), 0, on, p);
    });
  const Tensor g = p.dy ? Tensor({p.in.batch * p.in.time, channels}, DType::f32, Device::cuda) : Tensor();
  float* const to = g ? g.data<float>() : nullptr;
  if (g) launch(plain_g<T>, blocks(g.count(), threads), threads, 0, on, p, to);
  const int64_t inputs = p.in.batch * (p.in.time + p.in.width - 1);
  launch(plain_dx<T>, blocks(inputs * channels, threads), threads, 0, on, p, to);
  if (p.partial != nullptr)
    launch(plain_sums<T>, blocks(p.rows * (p.in.width + 1) * channels, threads), threads, 0, on, p, to);
}

}  // namespace

void causal_conv1d_backward(Cuda on, const CausalConv1d& conv, const Tensor& dy, const Tensor& dfinal_state,
                            const CausalConv1dGradients& to) {
  with_gpu_float("CausalConv1d", conv.x.dtype(), [&]<class T>(T) {
    const Operands<T> in(conv);
    const int64_t tiles = in.tiles(), rows = (in.batch * tiles + warps - 1) / warps, numbers = in.width + 1;
    const bool parameters = to.weight.tensor || to.bias.tensor;
    const Tensor sums = parameters ? Tensor({rows, numbers, in.channels}, DType::f32, Device::cuda) : Tensor();
    float* const partial = sums ? sums.data<float>() : nullptr;
    run(on, Backward<T>{.in = in, .dy = Rows<const T>(dy), .dfinal = Rows<const T>(dfinal_state),
                        .dx = Rows<T>(to.x.tensor), .dstate = Rows<T>(to.initial_state),
                        .add_to_dx = to.x.accumulate, .partial = partial, .tiles = tiles, .rows = rows});
    if (!parameters) return;
    launch(add_up, blocks(numbers * in.channels, 32), dim3(32, sharers), 0, on,
           Parameters{.partial = partial, .rows = rows, .channels = in.channels, .width = in.width,
                      .dweight = Rows<float>(to.weight.tensor), .dbias = Rows<float>(to.bias.tensor),
                      .add_to_dweight = to.weight.accumulate, .add_to_dbias = to.bias.accumulate});
  });
}

}  // namespace adder
