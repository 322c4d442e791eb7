#include "adder/layers/language_model.h"

#include "adder/autograd/recompute.h"
#include "adder/core/error.h"
#include "adder/core/traced.h"
#include "adder/kernels/cross_entropy.h"
#include "adder/kernels/dropout.h"
#include "adder/kernels/view.h"

#include <cmath>

namespace adder::layers {
namespace {

// The mixer's options in a model of so many residual branches.
Mamba2Options scaled(Mamba2Options o, const LanguageModelOptions& model) {
  o.out_scale /= std::sqrt(static_cast<double>(model.layers * (model.d_intermediate > 0 ? 2 : 1)));
  return o;
}

// The scope, with room for the model: see Params::make_room().
Params with_room(Params p, const Mesh& mesh, const LanguageModelOptions& o) {
  p.make_room([&](const Params& sizes) { LanguageModel(sizes, mesh, o); });
  return p;
}

const LanguageModelOptions& valid(const LanguageModelOptions& o) {
  o.validate();
  return o;
}

}  // namespace

void LanguageModelOptions::validate() const {
  check(vocabulary > 0 && pad_vocabulary > 0 && layers > 0,
        "LanguageModel: vocabulary {}, pad_vocabulary {} and layers {} must be positive", vocabulary, pad_vocabulary,
        layers);
  check(dropout >= 0 && dropout < 1, "LanguageModel: a dropout of {} is not in [0, 1)", dropout);
  mixer.validate();
}

double LanguageModelOptions::training_flops() const {
  const Mamba2Options& m = mixer;
  const int64_t in = 2 * m.mlp() + m.ssm() + m.conv_channels() + m.heads(), mlp = 3 * d_intermediate;
  const int64_t block = m.d_model * (in + m.d_inner() + mlp), states = m.ssm() * m.d_state;
  return static_cast<double>(6 * (layers * block + m.d_model * table_rows()) + 21 * layers * states);
}

Block::Block(Params p, const Mesh& mesh, const LanguageModelOptions& o)
    : name(p.path()),
      norm(p / "norm", o.mixer.d_model, o.eps),
      mixer(p / "mixer", mesh, scaled(o.mixer, o)),
      dropout(o.dropout),
      mixer_key(Random(p.seed(), p.path() + "/mixer/dropout").key()),
      mlp_key(Random(p.seed(), p.path() + "/mlp/dropout").key()) {
  if (o.d_intermediate == 0) return;
  mlp_norm.emplace(p / "mlp_norm", o.mixer.d_model, o.eps);
  mlp.emplace(p / "mlp", o.mixer.d_model, o.d_intermediate, scaled({}, o).out_scale);
}

std::array<Tensor, 2> Block::operator()(const Tensor& x, const Tensor& residual, const Context& context) const {
  const Traced traced(name);
  const auto [y, sum] = norm(x, residual);
  const Tensor out = mixer(y, context);
  if (forgets(context)) norm.forget(y, sum);
  return feed_forward(dropped(out, mixer_key, context), sum, context);
}

std::array<Tensor, 2> Block::operator()(const Tensor& x, const Tensor& residual, Mamba2State& state,
                                        const Context& context) const {
  const Traced traced(name);
  const auto [y, sum] = norm(x, residual);
  const Tensor out = mixer(y, state, context);
  if (forgets(context)) norm.forget(y, sum);
  return feed_forward(dropped(out, mixer_key, context), sum, context);
}

std::array<Tensor, 2> Block::step(const Tensor& x, const Tensor& residual, const Mamba2State& state) const {
  const Traced traced(name);
  const auto [out, sum] = mixer.step(norm, x, residual, state);
  return feed_forward(out, sum, {});
}

std::array<Tensor, 2> Block::feed_forward(const Tensor& x, const Tensor& residual, const Context& context) const {
  if (!mlp) return {x, residual};
  const auto [y, sum] = (*mlp_norm)(x, residual);
  const Tensor out = (*mlp)(y);
  if (forgets(context)) mlp_norm->forget(y, sum);
  return {dropped(out, mlp_key, context), sum};
}

Tensor Block::dropped(const Tensor& x, uint64_t key, const Context& context) const {
  if (context.mode == Mode::evaluate || dropout == 0) return x;
  return apply(Dropout{.x = x, .p = dropout, .key = key, .position = context.position});
}

LanguageModel::LanguageModel(Params p, const Mesh& mesh, const LanguageModelOptions& o)
    : options(valid(o)),
      embedding(with_room(p, mesh, o) / "embedding", o.table_rows(), o.mixer.d_model),
      norm(p / "norm", o.mixer.d_model, o.eps) {
  for (int64_t i = 0; i < o.layers; ++i) blocks.emplace_back(p / "block" / i, mesh, o);
  head = o.tied ? embedding.weight : Linear(p / "head", o.mixer.d_model, o.table_rows()).weight;
}

Tensor LanguageModel::hidden(const Tensor& tokens, Context context) const {
  check(tokens.rank() == 2, "LanguageModel: tokens {} are not [batch, time]", to_string(tokens.shape()));
  context.recompute = options.recompute;
  Tensor x = embedding(tokens), residual;
  for (const Block& block : blocks) {
    const auto run = [block, context](const Tensor& a, const Tensor& b) { return block(a, b, context); };
    const auto [y, sum] = options.recompute == Recompute::block ? recompute(run, x, residual) : run(x, residual);
    x = y, residual = sum;
  }
  return norm(x, residual)[0];
}

Tensor LanguageModel::loss(const Batch& given, Mode mode) const {
  const Batch batch = to_device(given, device());
  const Context context{.mode = mode, .document = batch.document,
                        .position = batch.position ? clone(batch.position) : Tensor()};  // the caller's may move on
  const Tensor x = hidden(batch.tokens, context);
  const Traced traced("loss");
  return apply(LinearCrossEntropy{.x = x, .weight = head, .targets = batch.targets, .scale = batch.scale,
                                  .vocabulary = options.vocabulary, .z_loss = options.z_loss,
                                  .with_gradients = recording()});
}

Tensor LanguageModel::token_losses(const Batch& given) const {
  NoGrad none;
  const Batch batch = to_device(given, device());
  return adder::token_losses(hidden(batch.tokens, {.document = batch.document}), head.detach(), batch.targets,
                             options.vocabulary);
}

Tensor LanguageModel::logits(const Tensor& x) const {
  const Tensor all = apply(Matmul{.x = x, .weight = head, .bias = {}, .wide = true});
  return apply(Split{.x = all, .sizes = {options.vocabulary, options.table_rows() - options.vocabulary}})[0];
}

Tensor LanguageModel::forward(const Tensor& tokens, const Context& given) const {
  const Context context{.mode = given.mode, .document = to_device(given.document, device()),
                        .position = to_device(given.position, device())};
  return logits(hidden(to_device(tokens, device()), context));
}

LanguageModel::State LanguageModel::zero_state(int64_t batch) const {
  State state;
  for (const Block& block : blocks) state.push_back(block.mixer.zero_state(batch));
  return state;
}

Tensor LanguageModel::prefill(const Tensor& tokens, State& state, const Tensor& document) const {
  NoGrad none;
  check(state.size() == blocks.size(), "LanguageModel: a state of {} blocks for {}", state.size(), blocks.size());
  check(tokens.rank() == 2 && tokens.size(1) > 0, "LanguageModel: a prompt {} is not [batch, time]",
        to_string(tokens.shape()));
  const Context context{.document = to_device(document, device())};
  Tensor x = embedding(to_device(tokens, device())), residual;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto [y, sum] = blocks[i](x, residual, state[i], context);
    x = y, residual = sum;
  }
  const int64_t batch = tokens.size(0), time = tokens.size(1), width = options.mixer.d_model;
  const Tensor all = norm(x, residual)[0].reshape({batch, time * width});
  return contiguous(logits(contiguous(all.slice_last((time - 1) * width, time * width))));
}

Tensor LanguageModel::step(const Tensor& token, const State& state) const {
  NoGrad none;
  check(state.size() == blocks.size(), "LanguageModel: a state of {} blocks for {}", state.size(), blocks.size());
  Tensor x = embedding(to_device(token, device())), residual;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto [y, sum] = blocks[i].step(x, residual, state[i]);
    x = y, residual = sum;
  }
  return logits(norm(x, residual)[0]);
}

}  // namespace adder::layers
