// What forward does to a chunk's outputs, whichever products make them: M from C Bᵀ, and y's last steps.
#pragma once

#include "adder/kernels/math.cuh"
#include "adder/kernels/ssd/chunked.cuh"

namespace adder::ssd::chunked {

/// M_ij = (C_i·B_j) e^{cs_i - cs_j} Δ_j where j <= i is of i's document, else 0. Of the rows r and r + 8 of a lane.
template <bool documents>
struct Scores {
  const float *sum, *delta;
  const int* document;
  int q, ahead, own[2];  // ahead: of column q before row r
  float cs[2];

  __device__ Scores(const float* sum_, const float* delta_, const int* document_, int r)
      : sum(sum_), delta(delta_), document(document_), q(mma::lane_again() % 4 * 2), ahead(q - r), own{},
        cs{sum[r], sum[r + 8]} {
    if (documents) own[0] = document[r], own[1] = document[r + 8];
  }
  /// Columns [block, block + 16), from those of C Bᵀ.
  __device__ mma::Left operator()(const float (&CB)[8][4], int block) const {
    mma::Left M;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = block + half * 8;
      const float2 there = *reinterpret_cast<const float2*>(sum + q + first),
                   step = *reinterpret_cast<const float2*>(delta + q + first);
      const int2 theirs = documents ? *reinterpret_cast<const int2*>(document + q + first) : int2{};
      float m[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool counts = ahead <= i / 2 * 8 - first - i % 2 &&
                            (!documents || (i % 2 ? theirs.y : theirs.x) == own[i / 2]);
        const float weight = power_of_2(cs[i / 2] - (i % 2 ? there.y : there.x));
        m[i] = counts ? CB[first / 8][i] * weight * (i % 2 ? step.y : step.x) : 0.0f;
      }
      M.r[2 * half] = mma::pack(m[0], m[1]);
      M.r[2 * half + 1] = mma::pack(m[2], m[3]);
    }
    return M;
  }
};

/// Where y goes, and through what.
struct Outputs {
  const float* D;  // or null
  bool D_per_channel;
  const bf16* z;  // or null
  int64_t stride_z;
  bf16* y;         // [batch, time, head, P]
  float* ungated;  // as y, with z

  Outputs(const Ssd& op, const SsdResult& to)
      : D(floats(op.D)), D_per_channel(op.D && op.D.rank() == 2), z(op.z ? op.z.data<bf16>() : nullptr),
        stride_z(op.z ? op.z.stride(op.x.size(2) * op.x.size(3)) : 0), y(to.y.data<bf16>()),
        ungated(floats(to.ungated)) {}

  /// D of a head, if it has one for all its channels.
  __device__ float skip(int64_t h) const { return D == nullptr || D_per_channel ? 0.0f : D[h]; }

  struct Place {
    int64_t b, chunk, h;
  };
  /// + D x, through the gate, rounded, and out by whole pieces. Each warp has 16 rows of y, `first` and on, and touches
  /// them alone in both tiles, whose pieces it finds by exclusive or.
  __device__ void finish(const Problem& p, const Place& at, float own_skip, const bf16* x, bf16* tile, int first,
                         float (&sums)[8][4]) const {
    const int rows = p.tokens_of(at.chunk), l = mma::lane_again();
    const int64_t next = p.heads * p.P, h = at.h;  // from a token to the next
    const int64_t token = at.b * p.time + at.chunk * Q;
    const auto out = [&] {
      __syncwarp();
      const int column = l % 8 * 8, from = (first + l / 8) * P_tile | (l % 8 ^ l / 8) * 8;
      bf16* to = y + (token + first + l / 8) * next + h * p.P + column;
#pragma unroll
      for (int r = 0; r < 16; r += 4, to += 4 * next)
        if (first + l / 8 + r < rows && column < p.P)
          *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(tile + (from ^ r % 8 * 8) + r * P_tile);
      __syncwarp();
    };
    const int q = l % 4 * 2, own = (first + l / 4) * P_tile | (l / 4 * 8 + q);
    const auto each_pair = [&](auto&& f) {  // f(two neighbours, where they lie in a tile, row, column)
#pragma unroll
      for (int t = 0; t < 8; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          f(sums[t][2 * half], sums[t][2 * half + 1], (own ^ t * 8) + half * 8 * P_tile, first + l / 4 + half * 8,
            t * 8 | q);
    };
    const auto add_skip = [&](auto per_channel) {
      each_pair([&](float& y0, float& y1, int place, int, int column) {
        const float2 u = mma::load_pair(x + place);
        float D0 = own_skip, D1 = own_skip;
        if (per_channel() && column < p.P) D0 = D[h * p.P + column], D1 = D[h * p.P + column + 1];
        y0 += D0 * u.x;
        y1 += D1 * u.y;
      });
    };
    if (D_per_channel) add_skip(std::true_type{});
    else if (D != nullptr) add_skip(std::false_type{});
    each_pair([&](float y0, float y1, int place, int, int) { mma::store_pair(tile + place, y0, y1); });
    if (z == nullptr) return out();
    each_pair([&](float y0, float y1, int place, int row, int column) {
      if (row >= rows || column >= p.P) return;
      *reinterpret_cast<float2*>(ungated + (token + row) * next + h * p.P + column) = {y0, y1};
      const float2 u = mma::load_pair(z + (token + row) * stride_z + h * p.P + column);
      mma::store_pair(tile + place, y0 * math::silu(u.x), y1 * math::silu(u.y));
    });
    out();
  }
};

/// Forward from the decays on, where wgmma::available(): chunked_forward_sm90.cu. The initial state lies in to.states.
void forward_sm90(Cuda on, const Ssd& op, const SsdResult& to, const Problem& p);

}  // namespace adder::ssd::chunked
