// Where documents start, on the GPU.
#pragma once

#include "adder/core/launch.cuh"
#include "adder/kernels/ssd/ssd.h"

namespace adder::ssd {

/// Whether token t of a row starts a document behind another one. `document` is the row's, or null: all are one.
__device__ inline bool starts_document(const int32_t* document, int64_t t) {
  return document != nullptr && t > 0 && document[t] != document[t - 1];
}

/// The first token of each token's document, i32 [batch, time]; -1 for a row's first document, which the initial state
/// enters. Undefined without documents. Rows are shorter than 2^31 tokens.
Tensor document_starts(Cuda on, const Ssd& op);

}  // namespace adder::ssd
