#include "adder/layers/decoder.h"

#include "adder/core/error.h"
#include "adder/kernels/arg_max.h"

#include <utility>

namespace adder::layers {

Decoder::Decoder(const LanguageModel& model, LanguageModel::State state, const Tensor& logits)
    : model_(model),
      state_(std::move(state)),
      logits_(logits),
      token_({logits.size(0)}, DType::i32, model.device()),
      step_(model.device(), [this] {
        const Tensor next = model_.step(token_, state_);
        arg_max(next, token_);
        return next;
      }) {
  arg_max(logits_, token_);
}

void Decoder::choose(std::span<const int32_t> tokens) const { copy(from_host({token_.count()}, tokens), token_); }

void Decoder::step() { logits_ = step_(); }

}  // namespace adder::layers
