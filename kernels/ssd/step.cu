// Floor: the state read and written once, 8 bytes a cell, at memory speed. A warp has four rows of one head, so that
// four accesses of 16 bytes a lane are under way; they begin before anything is computed. Where all processors have
// blocks enough even so it has eight: what is done once a warp then takes half the instructions.
#include "adder/core/launch.cuh"
#include "adder/kernels/ssd/recurrent.cuh"
#include "adder/kernels/ssd/time_step.cuh"

namespace adder {
namespace ssd {
namespace {

constexpr int step_warps = 4;
constexpr int64_t many_blocks = 2048;
constexpr unsigned fetching_blocks = 1024;    // that may be on the GPU before the kernel ahead is done

template <class T>
struct Step {
  int64_t width, state;
  unsigned heads, heads_of_group, blocks;  // blocks: of a head
  TimeStep time_step;
  const T *x, *dt, *B, *C, *z;
  int64_t stride_x, stride_dt, stride_B, stride_C, stride_z;  // between batch rows
  const float *A_log, *D, *bias;
  bool per_channel;
  float* S;
  T* y;
};

// Columns come `n` at a time: four where rows of the state, of B and of C are aligned.
template <class T, int n>
__device__ void load(const T* from, float (&x)[n]) {
  if constexpr (n == 1) {
    x[0] = value(*from);
  } else {
    const auto piece = *reinterpret_cast<const Lanes<T, n>*>(from);
#pragma unroll
    for (int j = 0; j < n; ++j) x[j] = piece[j];
  }
}

// Asks for what the block will read and the kernel ahead does not make: `bytes` of the state first.
template <class T>
__device__ void fetch(const Step<T>& p, const float* S, int64_t bytes, int64_t h, int64_t row) {
  prefetch(S, static_cast<unsigned>(bytes));
  prefetch(p.A_log + h);
  if (p.bias != nullptr) prefetch(p.bias + h);
  if (p.D != nullptr) prefetch(p.D + (p.per_channel ? h * p.width + row : h));
}

// The compiler would write most rows number by number.
template <int n>
__device__ void store(float* to, const float (&x)[n]) {
  if constexpr (n == 4)
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                 : "memory");
  else
    *to = x[0];
}

template <class T, int n, int step_rows>  // rows of a warp
__global__ void __launch_bounds__(32 * step_warps) step(Step<T> p) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const unsigned index = blockIdx.x / p.blocks;
  const int64_t item = index, b = index / p.heads, h = index % p.heads, g = index % p.heads / p.heads_of_group;
  const int64_t row = int64_t{(blockIdx.x - index * p.blocks) * step_warps + warp} * step_rows;
  const T *x = p.x + b * p.stride_x + h * p.width, *B = p.B + b * p.stride_B + g * p.state;
  const T* C = p.C + b * p.stride_C + g * p.state;
  float* S = p.S + (item * p.width + row) * p.state;
  const int rows = static_cast<int>(min(int64_t{step_rows}, p.width - row));
  let_next_start();
  if (n > 1 && threadIdx.x == 0 && blockIdx.x < fetching_blocks)
    fetch(p, S, 4 * p.state * min(int64_t{step_warps * step_rows}, p.width - row), h, row);
  wait_for_previous();
  if (row >= p.width) return;
  float cells[step_rows][n], to_cells[n], from_cells[n];  // of the state, B and C
  const auto read = [&](int64_t column) {
    if (column >= p.state) return;
#pragma unroll
    for (int r = 0; r < step_rows; ++r)
      if (r < rows) load<float, n>(S + r * p.state + column, cells[r]);
    load<T, n>(B + column, to_cells);
    load<T, n>(C + column, from_cells);
  };
  read(int64_t{lane} * n);
  const float raw = value(p.dt[b * p.stride_dt + h]) + (p.bias != nullptr ? p.bias[h] : 0.0f), A_log = p.A_log[h];
  float input[step_rows], sums[step_rows] = {};
#pragma unroll
  for (int r = 0; r < step_rows; ++r) input[r] = r < rows ? value(x[row + r]) : 0.0f;
  // Of the row whose y this lane writes.
  const int64_t at = h * p.width + row + lane;
  const bool writes = lane < rows;
  const float skip = writes && p.D != nullptr ? p.D[p.per_channel ? at : h] * value(x[row + lane]) : 0.0f;
  const float gate = writes && p.z != nullptr ? value(p.z[b * p.stride_z + at]) : 0.0f;
  const float delta = p.time_step(raw), decay = decay_of(delta, -expf(A_log));
#pragma unroll
  for (int r = 0; r < step_rows; ++r) input[r] *= delta;
  for (int64_t column = int64_t{lane} * n; column < p.state; column += 32 * n) {
#pragma unroll
    for (int r = 0; r < step_rows; ++r) {
      if (r >= rows) break;
#pragma unroll
      for (int j = 0; j < n; ++j) {
        cells[r][j] = fmaf(input[r], to_cells[j], decay * cells[r][j]);
        sums[r] += cells[r][j] * from_cells[j];
      }
      store(S + r * p.state + column, cells[r]);
    }
    read(column + 32 * n);
  }
  float y = scattered_sum(sums);
  if (!writes) return;
  if (p.D != nullptr) y += skip;
  if (p.z != nullptr) y *= math::silu(gate);
  p.y[b * (p.heads * p.width) + at] = element<T>(y);
}

// Whether rows of n numbers can be read four at a time.
template <class T>
bool in_fours(const T* data, int64_t n, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0 && n % 4 == 0 && stride % 4 == 0;
}

template <class T>
void run(Cuda on, const SsdStep& s, const Tensor& y) {
  const int64_t batch = s.x.size(0), heads = s.x.size(1), width = s.x.size(2);
  const int64_t groups = s.B.size(1), state = s.B.size(2);
  const auto blocks_of = [&](int rows) { return blocks(width, step_warps * rows); };  // a head
  const bool many = batch * heads * blocks_of(8) >= many_blocks;
  const unsigned all = blocks(batch * heads * blocks_of(many ? 8 : 4), 1);
  const Step<T> p{.width = width, .state = state, .heads = static_cast<unsigned>(heads),
                  .heads_of_group = static_cast<unsigned>(heads / groups), .blocks = blocks_of(many ? 8 : 4),
                  .time_step = TimeStep(s), .x = s.x.data<T>(), .dt = s.dt.data<T>(), .B = s.B.data<T>(),
                  .C = s.C.data<T>(), .z = s.z ? s.z.data<T>() : nullptr, .stride_x = s.x.stride(heads * width),
                  .stride_dt = s.dt.stride(heads), .stride_B = s.B.stride(groups * state),
                  .stride_C = s.C.stride(groups * state), .stride_z = s.z ? s.z.stride(heads * width) : 0,
                  .A_log = s.A_log.data<float>(), .D = s.D ? s.D.data<float>() : nullptr,
                  .bias = s.dt_bias ? s.dt_bias.data<float>() : nullptr, .per_channel = s.D && s.D.rank() == 2,
                  .S = s.state.data<float>(), .y = y.data<T>()};
  const bool aligned = in_fours(p.S, state, state) && in_fours(p.B, state, p.stride_B) &&
                       in_fours(p.C, state, p.stride_C);
  const auto kernel = aligned ? (many ? step<T, 4, 8> : step<T, 4, 4>) : (many ? step<T, 1, 8> : step<T, 1, 4>);
  launch_early(kernel, all, 32 * step_warps, 0, on, p);
}

}  // namespace
}  // namespace ssd

Tensor ssd_step(Cuda on, const SsdStep& step) {
  Tensor y(step.x.shape(), step.x.dtype(), Device::cuda);
  with_gpu_float("ssd_step", step.x.dtype(), [&]<class T>(T) { ssd::run<T>(on, step, y); });
  return y;
}

}  // namespace adder
