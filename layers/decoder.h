// Decoder: goes on from a state of a language model, a token of every sequence a step. On a GPU the step is one CUDA
// graph: the state is moved on where it lies, and the token comes from and goes to one small tensor on the device, so
// that the most probable text is written without an answer from the host.
//
//   Decoder decoder(model, std::move(state), model.prefill(prompt, state));
//   while (...) {
//     text.push_back(to_host(decoder.token()));   // or decoder.choose(tokens) by decoder.logits()
//     decoder.step();
//   }
#pragma once

#include "adder/core/captured.h"
#include "adder/layers/language_model.h"

#include <functional>
#include <span>
#include <string>

namespace adder::layers {

class Decoder {
 public:
  /// From the state and the logits [batch, vocabulary] that prefill left; both are the decoder's from now on.
  Decoder(const LanguageModel& model, LanguageModel::State state, const Tensor& logits);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  /// What follows: [batch, vocabulary], rows may lie apart. A step overwrites it.
  const Tensor& logits() const { return logits_; }
  /// The next token of each sequence, i32 [batch] on the model's device: the most probable one (kernels/arg_max.h says
  /// what is there instead if the logits are no numbers) unless it was chosen. A step overwrites it.
  const Tensor& token() const { return token_; }
  void choose(std::span<const int32_t> tokens) const;
  /// Takes the token in. Does not wait for the GPU.
  void step();

  /// Whether the step is a CUDA graph by now: from the second one on, unless eager_because() says why not.
  bool is_graph() const { return step_.is_graph(); }
  const std::string& eager_because() const { return step_.eager_because(); }
  /// For comparison: kernel by kernel from now on.
  void stay_eager() { step_.stay_eager("it was asked for"); }

 private:
  const LanguageModel& model_;
  LanguageModel::State state_;
  Tensor logits_, token_;
  Captured<std::function<Tensor()>> step_;
};

}  // namespace adder::layers
