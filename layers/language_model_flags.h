// The flags of a language model's shape, shared by the recipes that train one and those that read it back.
#pragma once

#include "adder/distributed/flags.h"
#include "adder/kernels/ssd/chunked.h"
#include "adder/layers/language_model_sizes.h"

#include <memory>

namespace adder {

/// A size sets the learning rate too, if one is given; `size_on_gpu` is the default of the size there.
inline void add_flags(Flags& flags, layers::LanguageModelOptions& o, double* learning_rate = nullptr,
                      std::string size_on_gpu = {}) {
  layers::Mamba2Options& m = o.mixer;
  flags.group("Model");
  const auto size = std::make_shared<std::string>();
  flags.add("size", *size,
            fmt::format("sets layers, d-model, d-state{} head-dim{}; other flags change them",
                        learning_rate ? "," : " and", learning_rate ? " and learning-rate" : ""),
            {.choices = layers::size_names(), .may_change = true, .preset = [size, learning_rate, &o] {
               const layers::LanguageModelSize& chosen = set_size(o, *size);
               if (learning_rate != nullptr) *learning_rate = chosen.learning_rate;
             }, .on_gpu = std::move(size_on_gpu)});
  flags.add("layers", o.layers, "blocks", {.min = 1});
  flags.add("d-model", m.d_model, "width of the residual stream", {.min = 1});
  flags.add("d-state", m.d_state, "state size N of every channel; a GPU is fast up to 128, in multiples of 8",
            {.min = 1});
  flags.add("d-conv", m.d_conv, "width of the convolution", {.min = 1});
  flags.add("expand", m.expand, "inner channels over d-model", {.min = 1});
  flags.add("head-dim", m.head_dim, "channels P of a head; a GPU is fast up to 64, in multiples of 8", {.min = 1});
  flags.add("groups", m.groups, "groups of B and C; divides the heads", {.min = 1});
  flags.add("d-ssm", m.d_ssm, "inner channels through the SSD, the rest is a gated MLP; 0: all", {.min = 0});
  flags.add("norm-groups", m.norm_groups, "groups of the gated norm; 0: as --groups", {.min = 0});
  flags.add("rms-norm", m.rms_norm, "normalise before the output projection");
  flags.add("norm-before-gate", m.norm_before_gate, "normalise, then gate");
  flags.add("d-per-channel", m.D_per_channel, "a skip weight D per channel instead of per head");
  flags.add("bias", m.bias, "biases in the projections");
  flags.add("conv-bias", m.conv_bias, "bias of the convolution");
  flags.add("a-min", m.A_min, "least initial -A", {.min = 1e-6});
  flags.add("a-max", m.A_max, "largest initial -A", {.min = 1e-6});
  flags.add("dt-init-min", m.dt_init_min, "least initial time step", {.min = 1e-9});
  flags.add("dt-init-max", m.dt_init_max, "largest initial time step", {.min = 1e-9});
  flags.add("dt-min", m.dt_min, "lower limit of the time step", {.min = 0});
  flags.add("dt-max", m.dt_max, "upper limit of the time step", {.min = 0});
  flags.add("chunk", m.chunk, "tokens of an SSD chunk on the CPU, 0: chosen by the kernel; a GPU has its own",
            {.min = 0, .max = 1024, .may_change = true});
  flags.add("d-intermediate", o.d_intermediate, "width of a gated MLP after every mixer; 0: none", {.min = 0});
  flags.add("pad-vocabulary", o.pad_vocabulary, "the embedding has a multiple of so many rows", {.min = 1});
  flags.add("tied", o.tied, "the output shares the embedding");
  flags.add("eps", m.eps, "epsilon of the gated norms", {.min = 0});
  flags.add("norm-eps", o.eps, "epsilon of the other norms", {.min = 0});
  flags.add("dropout", o.dropout, "of each block's output, in training", {.min = 0, .max = 0.999});
  flags.add("z-loss", o.z_loss, "weight of the squared log-normaliser in the loss", {.min = 0});
  const auto& names = layers::recompute_names;
  const auto recompute = std::make_shared<std::string>(names[static_cast<size_t>(o.recompute)]);
  flags.add("recompute", *recompute,
            "what backward makes again instead of keeping it. cheap: what norms and convolutions put out; scan: what "
            "the SSD puts out too; block: whole blocks, for the least memory and the most time",
            {.choices = {std::begin(names), std::end(names)}, .may_change = true, .preset = [recompute, &o] {
               o.recompute = static_cast<layers::Recompute>(std::ranges::find(names, *recompute) - names);
             }});
}

/// What to say before such a model is trained in bf16 on a GPU, if its SSD is slow there (kernels/ssd/chunked.h);
/// otherwise empty.
inline std::string slow_on_gpu(const layers::Mamba2Options& m) {
  if (ssd::chunked::takes(m.head_dim, m.d_state)) return {};
  return fmt::format("with --head-dim {} and --d-state {} the SSD goes token by token, slowly: its kernels for tensor "
                     "cores take multiples of 8, up to 64 and 128", m.head_dim, m.d_state);
}

}  // namespace adder
