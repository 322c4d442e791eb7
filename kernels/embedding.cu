// Floor, N = positions x channels, bf16: forward 4 N bytes; backward 2 N and the table written once, at memory speed.
// Backward without atomics: positions are sorted by token, keeping their order, then each row of the table is one sum.
#include "adder/kernels/embedding.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/warp.cuh"

#include <algorithm>
#include <limits>

namespace adder {
namespace {

constexpr int chunk = 1024;  // positions whose order within a token one block finds

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
  int32_t* counts;  // [chunk, vocabulary]: positions of a token in a chunk, then in the chunks before it
  int32_t* starts;  // [vocabulary + 1]: where the positions of a token start in `order`
  int32_t* rank;    // [position]: positions of the same token before it in its chunk
  int32_t* order;   // [position]
};

__device__ bool known(const Sort& s, int32_t token) { return token >= 0 && token < s.vocabulary; }

__global__ void rank_in_chunks(Sort s) {
  __shared__ int32_t tokens[chunk];
  const int64_t i = int64_t{blockIdx.x} * chunk + threadIdx.x;
  const int me = static_cast<int>(threadIdx.x), last = static_cast<int>(min(int64_t{chunk}, s.positions - i + me));
  const int32_t mine = i < s.positions ? s.token[i] : -1;
  tokens[me] = mine;
  __syncthreads();
  if (!known(s, mine)) return;
  int before = 0, all = 0;
  for (int j = 0; j < last; ++j) {
    const bool same = tokens[j] == mine;
    all += same;
    before += same && j < me;
  }
  s.rank[i] = before;
  if (before + 1 == all) s.counts[blockIdx.x * s.vocabulary + mine] = all;
}

__global__ void sum_chunks(Sort s, int64_t chunks) {
  const int64_t v = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (v >= s.vocabulary) return;
  int32_t sum = 0;
  for (int64_t b = 0; b < chunks; ++b) {
    int32_t& count = s.counts[b * s.vocabulary + v];
    const int32_t here = count;
    count = sum;
    sum += here;
  }
  s.starts[v + 1] = sum;
}

// starts = running sum of the counts; one block.
__global__ void scan_tokens(Sort s) {
  int32_t before = 0;
  for (int64_t v = 0; v < s.vocabulary; v += blockDim.x) {
    const int64_t mine = v + threadIdx.x;
    int32_t total = 0;
    const int32_t sum = block_scan(mine < s.vocabulary ? s.starts[mine + 1] : 0, total);
    if (mine < s.vocabulary) s.starts[mine + 1] = before + sum;
    before += total;
  }
  if (threadIdx.x == 0) s.starts[0] = 0;
}

__global__ void put_in_order(Sort s) {
  const int64_t i = int64_t{blockIdx.x} * chunk + threadIdx.x;
  if (i >= s.positions || !known(s, s.token[i])) return;
  const int32_t v = s.token[i];
  s.order[s.starts[v] + s.counts[blockIdx.x * s.vocabulary + v] + s.rank[i]] = static_cast<int32_t>(i);
}

constexpr int columns = 32, most_lanes = 8, few = 32;

// A row of the table for tokens of at most `few` positions by one warp (lanes = 1), of the others by a block: lane l
// sums the positions l, l + 8, ..., then the lanes are summed in order.
template <class T, class To, int lanes>
__global__ void sum_positions(Sort s, Elements<T> dy, int64_t channels, Elements<To> to, bool accumulate) {
  constexpr int n = Elements<T>::n, tokens = most_lanes / lanes;
  const int64_t v = int64_t{blockIdx.x} * tokens + threadIdx.y / lanes;
  const int64_t j = (int64_t{blockIdx.y} * columns + threadIdx.x) * n;
  if (v >= s.vocabulary) return;
  const int64_t first = s.starts[v], last = s.starts[v + 1];
  if ((last - first <= few) != (lanes == 1) || (accumulate && first == last)) return;
  float sum[n] = {};
  if (j < channels) {
#pragma unroll 4
    for (int64_t p = first + threadIdx.y % lanes; p < last; p += lanes) {
      const int64_t i = s.order[p];
      float row[n];
      dy.load(i * channels + j, (i + 1) * channels, row);
#pragma unroll
      for (int c = 0; c < n; ++c) sum[c] += row[c];
    }
  }
  if constexpr (lanes > 1) {
    __shared__ float parts[lanes][columns][n];
#pragma unroll
    for (int c = 0; c < n; ++c) parts[threadIdx.y][threadIdx.x][c] = sum[c];
    __syncthreads();
    if (threadIdx.y != 0) return;
#pragma unroll
    for (int c = 0; c < n; ++c)
      for (int l = 1; l < lanes; ++l) sum[c] += parts[l][threadIdx.x][c];
  }
#pragma unroll
  for (int c = 0; c < n; ++c) {
    if (j + c >= channels) continue;
    To* const target = to(v * channels + j + c);
    *target = element<To>(accumulate ? value(*target) + sum[c] : sum[c]);
  }
}

template <class T, class To>
void sum_tokens(Cuda on, const Sort& s, const Tensor& dy, const Slot& dweight) {
  const int64_t channels = dweight.tensor.size(1);
  const unsigned tiles = blocks(channels, columns * Elements<T>::n);
  const dim3 block(columns, most_lanes);
  const Elements<T> from(dy, channels);
  const Elements<To> to(dweight.tensor, channels);
  launch(sum_positions<T, To, 1>, dim3(blocks(s.vocabulary, most_lanes), tiles), block, 0, on, s, from, channels, to,
         dweight.accumulate);
  launch(sum_positions<T, To, most_lanes>, dim3(blocks(s.vocabulary, 1), tiles), block, 0, on, s, from, channels, to,
         dweight.accumulate);
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
  const int64_t chunks = (positions + chunk - 1) / chunk;
  const auto table = [](int64_t rows, int64_t n) { return Tensor({rows, n}, DType::i32, Device::cuda); };
  const Tensor counts = table(chunks, vocabulary), starts = table(1, vocabulary + 1), rank = table(1, positions),
               order = table(1, positions);
  fill(counts, 0);
  const Sort s{tokens.data<int32_t>(),   positions, vocabulary, counts.data<int32_t>(), starts.data<int32_t>(),
               rank.data<int32_t>(), order.data<int32_t>()};
  launch(rank_in_chunks, blocks(chunks, 1), chunk, 0, on, s);
  launch(sum_chunks, blocks(vocabulary, 256), 256, 0, on, s, chunks);
  launch(scan_tokens, 1, 1024, 0, on, s);
  launch(put_in_order, blocks(chunks, 1), chunk, 0, on, s);
  if (dy.dtype() == DType::bf16 && dweight.tensor.dtype() == DType::f32)
    return sum_tokens<bf16, float>(on, s, dy, dweight);
  with_gpu_float("Embedding", dy.dtype(), [&]<class T>(T) { sum_tokens<T, T>(on, s, dy, dweight); });
}

}  // namespace adder
