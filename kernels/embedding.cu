// Floor, N = positions x channels, bf16: forward 4 N bytes; backward 2 N and the table written once, at memory speed.
// Backward adds in a fixed order: positions are sorted by token, keeping their order, then each row of the table is one
// sum. The sort moves 8 bytes of a table of positions / 1024 rows a token of the vocabulary, mostly in the L2 cache,
// and waits for five kernels of a few microseconds.
#include "adder/kernels/embedding.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/warp.cuh"

#include <algorithm>
#include <limits>

namespace adder {
namespace {

template <class T>
__global__ void look_up(const int32_t* token, int64_t vocabulary, int64_t channels, Elements<T> weight, Elements<T> y) {
  constexpr int n = Elements<T>::n;
  const int64_t i = blockIdx.x, v = token[i];
  for (int64_t j = int64_t{threadIdx.x} * n; j < channels; j += int64_t{blockDim.x} * n) {
    float x[n];
    if (v >= 0 && v < vocabulary) {
      weight.load(v * channels + j, (v + 1) * channels, x);
    } else {
#pragma unroll
      for (int c = 0; c < n; ++c) x[c] = __int_as_float(0x7fffffff);  // NaN
    }
    y.store(i * channels + j, (i + 1) * channels, x);
  }
}

// The sort, by counting. Its tables are in device memory; chunks = blocks of `chunk` positions.
struct Sort {
  const int32_t* token;
  int64_t positions, vocabulary;
  int32_t* counts;  // [chunk, vocabulary]: positions of a token in a chunk, then, if there are any, in those before it
  int32_t* rank;    // [position]: positions of the same token before it in its chunk
  int32_t* start;   // [vocabulary + 1]: where the positions of a token start in `order`, counted from ...
  int32_t* tile;    // ... where those of the first of `tile_tokens` tokens do
  int32_t* order;   // [position]
  int32_t* often;   // [1 + ...]: how many tokens have more than `few` positions, and which, in any order

  __device__ bool known(int32_t v) const { return v >= 0 && v < vocabulary; }
  __device__ int32_t start_of(int64_t v) const;
};

constexpr int chunk = 1024, rankers = 256;  // positions whose order within a token is found together; by a block each
constexpr int tile_tokens = 256;
constexpr int few = 32;  // positions that a warp sums alone

__device__ int32_t Sort::start_of(int64_t v) const { return tile[v / tile_tokens] + start[v]; }

__global__ void rank_in_chunks(Sort s) {
  __shared__ int4 fours[chunk / 4];
  auto* const tokens = reinterpret_cast<int32_t*>(fours);
  const int64_t b = blockIdx.x / (chunk / rankers), first = b * chunk;
  const int me = static_cast<int>(blockIdx.x % (chunk / rankers) * rankers + threadIdx.x), warp = me / 32 * 32;
  for (int j = static_cast<int>(threadIdx.x); j < chunk; j += rankers)
    tokens[j] = first + j < s.positions ? s.token[first + j] : -1;
  if (blockIdx.x == 0 && threadIdx.x == 0) s.often[0] = 0;
  __syncthreads();
  const int32_t mine = tokens[me];
  int before = 0, after = 0;
  const auto count = [&](int from, int to, int& same) {
    for (int j = from / 4; j < to / 4; ++j)
      same += (fours[j].x == mine) + (fours[j].y == mine) + (fours[j].z == mine) + (fours[j].w == mine);
  };
  count(0, warp, before);
  count(warp + 32, chunk, after);
  const unsigned same = __match_any_sync(all_lanes, mine), below = (1u << me % 32) - 1;
  before += __popc(same & below);
  if (!s.known(mine)) return;
  s.rank[first + me] = before;
  if (after == 0 && (same & ~below) == 1u << me % 32) s.counts[b * s.vocabulary + mine] = before + 1;
}

// A token a thread, and one more.
__global__ void sum_chunks(Sort s, int64_t chunks) {
  const int64_t v = int64_t{blockIdx.x} * tile_tokens + threadIdx.x;
  int32_t sum = 0;
  constexpr int at_once = 8;
  for (int64_t b = 0; b < chunks && v < s.vocabulary; b += at_once) {
    int32_t here[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) here[k] = b + k < chunks ? s.counts[(b + k) * s.vocabulary + v] : 0;
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      if (here[k] > 0) s.counts[(b + k) * s.vocabulary + v] = sum;
      sum += here[k];
    }
  }
  // Where a token stands in the list is chance; its sum is that of one block, wherever it stands.
  if (sum > few) s.often[1 + atomicAdd(s.often, 1)] = static_cast<int32_t>(v);
  int32_t total = 0;
  const int32_t before = block_scan(sum, total) - sum;
  if (v <= s.vocabulary) s.start[v] = before;
  if (threadIdx.x == 0) s.tile[blockIdx.x] = total;
}

// tile = running sum of the totals before it; one block.
__global__ void scan_tiles(Sort s, int64_t tiles) {
  int32_t before = 0;
  for (int64_t first = 0; first < tiles; first += blockDim.x) {
    const int64_t mine = first + threadIdx.x;
    const int32_t here = mine < tiles ? s.tile[mine] : 0;
    int32_t total = 0;
    const int32_t sum = block_scan(here, total);
    if (mine < tiles) s.tile[mine] = before + sum - here;
    before += total;
  }
}

__global__ void put_in_order(Sort s) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= s.positions || !s.known(s.token[i])) return;
  const int32_t v = s.token[i];
  s.order[s.start_of(v) + s.counts[i / chunk * s.vocabulary + v] + s.rank[i]] = static_cast<int32_t>(i);
}

constexpr int n = 4, held = 2;             // a lane sums `held` pieces of n channels
constexpr int columns = 32 * n * held;     // of a warp
constexpr int tokens_at_once = 8;          // of a block, a warp each
constexpr int lanes = 16;                  // warps that share a token of many positions

// The rows of dy at positions order[first], order[first + step], ... before order[last], added one after the other, of
// which `at_once` are on their way.
template <int at_once, class T>
__device__ void sum_positions(const Sort& s, const Elements<T, n>& dy, int channels, int64_t first, int64_t last,
                              int step, float (&sum)[held][n]) {
  const int j = static_cast<int>(blockIdx.y * columns + threadIdx.x * n);
  for (int64_t p = first; p < last; p += at_once * step) {
    int32_t i[at_once];
    Lanes<T, n> x[at_once][held] = {};
#pragma unroll
    for (int b = 0; b < at_once; ++b) i[b] = p + b * step < last ? s.order[p + b * step] : -1;
#pragma unroll
    for (int b = 0; b < at_once; ++b)
      if (i[b] >= 0)
#pragma unroll
        for (int k = 0; k < held; ++k) x[b][k] = dy.line(int64_t{i[b]} * channels).load(j + k * 32 * n, channels);
#pragma unroll
    for (int b = 0; b < at_once; ++b)
#pragma unroll
      for (int k = 0; k < held; ++k)
#pragma unroll
        for (int c = 0; c < n; ++c) sum[k][c] += x[b][k][c];
  }
}

template <class To>
__device__ void put_row(const Elements<To, n>& to, int64_t v, int channels, float (&sum)[held][n], bool accumulate) {
  const int j = static_cast<int>(blockIdx.y * columns + threadIdx.x * n);
#pragma unroll
  for (int k = 0; k < held; ++k) to.line(v * channels).put(j + k * 32 * n, channels, sum[k], accumulate);
}

// A row of the table by a warp, unless its positions are more than a few.
template <class T, class To>
__global__ void sum_rare(Sort s, Elements<T, n> dy, int channels, Elements<To, n> to, bool accumulate) {
  const int64_t v = int64_t{blockIdx.x} * tokens_at_once + threadIdx.y;
  if (v >= s.vocabulary) return;
  const int64_t first = s.start_of(v), last = s.start_of(v + 1);
  if (last - first > few || (accumulate && first == last)) return;
  float sum[held][n] = {};
  sum_positions<2>(s, dy, channels, first, last, 1, sum);
  put_row(to, v, channels, sum, accumulate);
}

// The others by a block each: warp l sums the positions l, l + lanes, ..., then the sums are added in order.
template <class T, class To>
__global__ void sum_often(Sort s, Elements<T, n> dy, int channels, Elements<To, n> to, bool accumulate) {
  __shared__ float parts[lanes][held][n][32];
  if (static_cast<int>(blockIdx.x) >= s.often[0]) return;
  const int64_t v = s.often[1 + blockIdx.x];
  float sum[held][n] = {};
  sum_positions<8>(s, dy, channels, s.start_of(v) + threadIdx.y, s.start_of(v + 1), lanes, sum);
#pragma unroll
  for (int k = 0; k < held; ++k)
#pragma unroll
    for (int c = 0; c < n; ++c) parts[threadIdx.y][k][c][threadIdx.x] = sum[k][c];
  __syncthreads();
  if (threadIdx.y != 0) return;
#pragma unroll
  for (int k = 0; k < held; ++k)
#pragma unroll
    for (int c = 0; c < n; ++c)
      for (int l = 1; l < lanes; ++l) sum[k][c] += parts[l][k][c][threadIdx.x];
  put_row(to, v, channels, sum, accumulate);
}

template <class T, class To>
void sum_tokens(Cuda on, const Sort& s, int64_t most_often, const Tensor& dy, const Slot& dweight) {
  const int64_t channels = dweight.tensor.size(1);
  const unsigned tiles = blocks(channels, columns);
  const Elements<T, n> from(dy, channels);
  const Elements<To, n> to(dweight.tensor, channels);
  launch(sum_rare<T, To>, dim3(blocks(s.vocabulary, tokens_at_once), tiles), dim3(32, tokens_at_once), 0, on, s, from,
         static_cast<int>(channels), to, dweight.accumulate);
  launch(sum_often<T, To>, dim3(blocks(most_often, 1), tiles), dim3(32, lanes), 0, on, s, from,
         static_cast<int>(channels), to, dweight.accumulate);
}

}  // namespace

void embedding_forward(Cuda on, const Tensor& tokens, const Tensor& weight, const Tensor& y) {
  const int64_t channels = weight.size(1);
  with_gpu_float("Embedding", weight.dtype(), [&]<class T>(T) {
    const int64_t pieces = (channels + Elements<T>::n - 1) / Elements<T>::n;
    launch(look_up<T>, blocks(tokens.count(), 1),
           static_cast<unsigned>(std::min<int64_t>(256, (pieces + 31) / 32 * 32)), 0, on, tokens.data<int32_t>(),
           weight.size(0), channels, Elements<T>(weight, channels), Elements<T>(y, channels));
  });
}

void embedding_backward(Cuda on, const Tensor& tokens, const Tensor& dy, const Slot& dweight) {
  const int64_t positions = tokens.count(), vocabulary = dweight.tensor.size(0);
  if (positions > std::numeric_limits<int32_t>::max()) fail("Embedding: more than 2^31 - 1 positions");
  if (dweight.tensor.size(1) > 1 << 30) fail("Embedding: more than 2^30 channels on the GPU");
  const int64_t chunks = (positions + chunk - 1) / chunk, tiles = vocabulary / tile_tokens + 1;
  const int64_t most_often = positions / (few + 1);
  const auto table = [](int64_t rows, int64_t length) { return Tensor({rows, length}, DType::i32, Device::cuda); };
  const Tensor counts = table(chunks, vocabulary), rank = table(1, positions), start = table(1, vocabulary + 1),
               tile = table(1, tiles), order = table(1, positions), often = table(1, 1 + most_often);
  fill(counts, 0);
  const Sort s{.token = tokens.data<int32_t>(), .positions = positions, .vocabulary = vocabulary,
               .counts = counts.data<int32_t>(), .rank = rank.data<int32_t>(), .start = start.data<int32_t>(),
               .tile = tile.data<int32_t>(), .order = order.data<int32_t>(), .often = often.data<int32_t>()};
  launch(rank_in_chunks, blocks(chunks * (chunk / rankers), 1), rankers, 0, on, s);
  launch(sum_chunks, blocks(tiles, 1), tile_tokens, 0, on, s, chunks);
  launch(scan_tiles, 1, 1024, 0, on, s, tiles);
  launch(put_in_order, blocks(positions, 256), 256, 0, on, s);
  if (dy.dtype() == DType::bf16 && dweight.tensor.dtype() == DType::f32)
    return sum_tokens<bf16, float>(on, s, most_often, dy, dweight);
  with_gpu_float("Embedding", dy.dtype(), [&]<class T>(T) { sum_tokens<T, T>(on, s, most_often, dy, dweight); });
}

}  // namespace adder
