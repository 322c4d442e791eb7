// A sweep as its kernels see it.
#pragma once

#include "adder/kernels/ssd/chunked.cuh"

namespace adder::ssd::chunked {

struct Walk {
  Tokens x, B;
  const float* begin;  // [batch, head, segment, P, N], or null: zero
  bf16* states;        // or null
  float* end;          // as begin, or null
  float* decay;  // [batch, head, segment]: what is left of the segment's first state at its end, or masked; or null
  bool reverse;
  bool but_last = false;  // nobody wants the end of the last segment on the way

  __device__ bool skips(int64_t segment, int segments) const {
    return but_last && segment == (reverse ? 0 : segments - 1);
  }
};

/// One or two of them, beside each other, where wgmma::available().
void sweep_sm90(Cuda on, const Problem& p, const Walk* walks, size_t count, const Segments& cut);

}  // namespace adder::ssd::chunked
