// LanguageModel: embedding, blocks of norm -> Mamba-2 [-> norm -> gated MLP] on a residual stream, norm, output.
//
// The residual stream is fp32 whatever the blocks compute in: each norm adds the last block's output to it and hands on
// both (kernels/rms_norm.h). The output shares the embedding's table unless untied.
#pragma once

#include "adder/core/batch.h"
#include "adder/layers/embedding.h"
#include "adder/layers/gated_mlp.h"
#include "adder/layers/mamba2.h"
#include "adder/layers/rms_norm.h"

#include <optional>
#include <string>
#include <vector>

namespace adder::layers {

struct LanguageModelOptions {
  int64_t vocabulary = 257;
  int64_t pad_vocabulary = 8;    // the table has a multiple of so many rows; padding is never predicted
  int64_t layers = 24;
  int64_t d_intermediate = 0;    // width of a gated MLP after every mixer; 0: none
  bool tied = true;              // the output's weight is the embedding
  double dropout = 0;            // of each branch's output
  double eps = 1e-5;
  double z_loss = 0;
  Recompute recompute = Recompute::cheap;  // what backward makes again instead of keeping it
  Mamba2Options mixer = {};

  /// FLOPs of one token in training, forward and backward, multiply and add counted: 6 for each weight of a product and
  /// 21 for each channel and state of an SSD. Megatron-LM's convention; what is computed again does not count.
  double training_flops() const;
  int64_t table_rows() const { return (vocabulary + pad_vocabulary - 1) / pad_vocabulary * pad_vocabulary; }
  void validate() const;
};

/// One residual block.
struct Block {
  std::string name;  // "block/3", for the profiler
  RmsNorm norm;
  Mamba2 mixer;
  std::optional<RmsNorm> mlp_norm;
  std::optional<GatedMlp> mlp;
  double dropout;
  uint64_t mixer_key, mlp_key;  // of the dropout masks

  Block(Params p, const Mesh& mesh, const LanguageModelOptions& o);
  /// The last branch's output and the residual stream (undefined before the first block) -> the same after this block.
  std::array<Tensor, 2> operator()(const Tensor& x, const Tensor& residual, const Context& context) const;
  std::array<Tensor, 2> operator()(const Tensor& x, const Tensor& residual, Mamba2State& state,
                                   const Context& context) const;
  std::array<Tensor, 2> step(const Tensor& x, const Tensor& residual, const Mamba2State& state) const;

 private:
  std::array<Tensor, 2> feed_forward(const Tensor& x, const Tensor& residual, const Context& context) const;
  Tensor dropped(const Tensor& x, uint64_t key, const Context& context) const;
};

struct LanguageModel {
  using State = std::vector<Mamba2State>;  // by block

  LanguageModelOptions options;
  Embedding embedding;
  std::vector<Block> blocks;
  RmsNorm norm;
  Tensor head;  // [table_rows, d_model]: the embedding if tied

  /// Where the model is, and where it takes the batches, tokens and prompts that it is given.
  Device device() const { return head.device(); }

  LanguageModel(Params p, const Mesh& mesh, const LanguageModelOptions& o);

  /// batch.scale x the sum of the nats of its counted targets, [1]: over the micro-batches and ranks of a step these
  /// add to the mean. If the tape records, this computes the output projection's gradients too (cross_entropy.h).
  Tensor loss(const Batch& batch, Mode mode = Mode::train) const;
  /// Nats of every target, [batch, time]; 0 where it is not counted. Not recorded.
  Tensor token_losses(const Batch& batch) const;
  /// i32 [batch, time] -> logits [batch, time, vocabulary], at least f32. All of them at once: for short texts.
  Tensor forward(const Tensor& tokens, const Context& context = {}) const;

  // Decoding: not recorded. A state belongs to a batch of sequences.
  State zero_state(int64_t batch) const;
  /// The state after `tokens` i32 [batch, time], and the logits of what follows, [batch, vocabulary]. The state belongs
  /// to the first token's document.
  Tensor prefill(const Tensor& tokens, State& state, const Tensor& document = {}) const;
  /// One more token i32 [batch] of each sequence: the logits of what follows, whose rows may lie apart. The state is
  /// moved on where it lies, so that a CUDA graph can do it (layers/decoder.h).
  Tensor step(const Tensor& token, const State& state) const;

 private:
  Tensor hidden(const Tensor& tokens, Context context) const;
  Tensor logits(const Tensor& x) const;
};

}  // namespace adder::layers
