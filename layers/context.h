// What the layers of a model are told about the batch they see, passed down by value.
#pragma once

#include "adder/core/tensor.h"

#include <string_view>

namespace adder::layers {

/// What the tape does not keep of a block for backward, which makes it again; the bits are the same.
enum class Recompute : unsigned char {
  none,   // all is kept
  cheap,  // what norms and convolutions put out is made again
  scan,   // and what the SSD puts out
  block,  // all but the block's input is
};
inline constexpr std::string_view recompute_names[] = {"none", "cheap", "scan", "block"};

enum class Mode : unsigned char { evaluate, train };  // train: dropout is on

struct Context {
  Mode mode = Mode::evaluate;
  Tensor document = {};  // i32 [batch, time]; undefined: every row is one document
  Recompute recompute = Recompute::cheap;  // of a LanguageModel: as its options say
  Tensor position = {};  // i32 [2], for dropout: the optimizer's step, and the number of row 0 in the global batch
};

/// Whether a layer gives back the memory of what is cheap to make again.
inline bool forgets(const Context& c) { return c.recompute == Recompute::cheap || c.recompute == Recompute::scan; }

}  // namespace adder::layers
