#include "adder/layers/activation_memory.h"

#include "adder/core/memory.h"
#include "adder/kernels/cross_entropy.h"
#include "adder/kernels/ssd/chunked.h"

#include <algorithm>

namespace adder::layers {
namespace {

// On a GPU: tokens of an SSD's chunk; what one that goes token by token takes for itself at most; what products take.
constexpr int64_t chunk_on_gpu = 64, token_by_token = 1 << 30, product_workspace = 32 << 20;

// The tensors of a block, in bytes.
struct Sizes {
  const LanguageModelOptions& o;
  const Mamba2Options& m = o.mixer;
  MicroBatch batch;
  bool cuda = batch.device == Device::cuda;
  int64_t tokens = batch.rows * batch.time, chunk = cuda ? chunk_on_gpu : m.chunk > 0 ? m.chunk : 64;
  int64_t chunks = batch.rows * ((batch.time + chunk - 1) / chunk);
  int64_t narrow = size_of(batch.dtype), wide = std::max<int64_t>(4, narrow);

  int64_t flowing = room(m.d_model, narrow), stream = room(m.d_model, wide);  // a branch's input or output; residual
  int64_t projected = room(2 * m.mlp() + m.ssm() + m.conv_channels() + m.heads(), narrow);
  int64_t mixed = room(m.conv_channels(), narrow), scanned = room(m.ssm(), narrow);
  int64_t ungated = m.rms_norm ? 0 : room(m.ssm(), wide);
  int64_t normed = m.rms_norm || m.mlp() > 0 ? room(m.d_inner(), narrow) : 0;
  int64_t hidden = room(o.d_intermediate, narrow), both_hidden = room(2 * o.d_intermediate, narrow);
  // On the CPU, the states that enter chunks: none enters the first of a row.
  int64_t states = cuda ? 0 : pooled((chunks - batch.rows) * m.ssm() * m.d_state * wide);

  static int64_t pooled(int64_t bytes) { return bytes > 0 ? pooled_bytes(bytes) : 0; }
  int64_t room(int64_t numbers, int64_t size) const { return pooled(tokens * numbers * size); }
};

// What backward of the SSD takes for itself (kernels/ssd).
int64_t scan_scratch(const Sizes& s) {
  const Mamba2Options& m = s.m;
  if (!s.cuda) {
    const int64_t products = s.room(m.groups * s.chunk, s.wide), skip = Sizes::pooled(s.chunks * m.ssm() * s.wide);
    const int64_t before_gate = m.rms_norm ? 0 : s.scanned;
    return s.states + products + skip + before_gate + 3 * s.room(m.heads(), s.wide);
  }
  if (s.batch.dtype != DType::bf16 || !ssd::chunked::takes(m.head_dim, m.d_state)) return token_by_token;
  const int64_t tile = 64 * (m.d_state <= 64 ? 64 : 128);
  // Few chunks are worked on by several blocks, each of which leaves its part of dB and dC.
  const int64_t parts = std::clamp<int64_t>(512 / (s.chunks * m.groups), 1, m.heads() / m.groups);
  return 2 * Sizes::pooled(s.chunks * m.heads() * tile * s.narrow) + 2 * s.room(m.heads(), s.wide) +
         (parts > 1 ? 2 * s.room(parts * m.groups * m.d_state, s.wide) : 0);
}

struct BlockMemory {
  int64_t kept = 0;  // from forward to backward
  int64_t more = 0;  // at most, while backward runs
};

BlockMemory mixer_memory(const Sizes& s, Recompute recompute) {
  const bool again = recompute == Recompute::cheap || recompute == Recompute::scan, all = !again;
  const bool scan_again = recompute == Recompute::scan, own_normed = s.normed > 0;
  // Without a norm what out_proj reads is the SSD's output or, beside an MLP part, a copy of it.
  const bool keeps_scanned = again ? !scan_again : s.m.rms_norm || !own_normed;
  BlockMemory memory{.kept = s.stream + s.projected + s.states + s.ungated + (keeps_scanned ? s.scanned : 0)};
  if (all) memory.kept += s.flowing + s.mixed + s.normed;

  const int64_t arriving = s.stream + (s.narrow < s.wide ? s.flowing : 0);
  const int64_t output = arriving + (again ? s.normed : 0) + std::max(s.normed, s.scanned) +
                         (scan_again ? s.scanned + s.mixed + scan_scratch(s) / 2 : 0);
  int64_t scan = s.stream + s.projected + s.scanned + 2 * s.mixed + scan_scratch(s);
  if (all) scan -= s.mixed + s.normed;
  if (keeps_scanned) scan -= s.scanned;
  int64_t input = s.stream + s.projected + 2 * s.flowing - s.states - (keeps_scanned ? s.scanned : 0);
  if (all) input -= s.flowing + s.mixed + s.normed;
  memory.more = std::max({output, scan, input});
  return memory;
}

BlockMemory mlp_memory(const Sizes& s, Recompute recompute) {
  if (s.hidden == 0) return {};
  const bool again = recompute == Recompute::cheap || recompute == Recompute::scan;
  return {.kept = s.stream + (again ? 0 : s.flowing) + s.both_hidden + s.hidden,
          .more = s.stream + s.both_hidden + std::max(s.hidden, (again ? 2 : 1) * s.flowing - s.hidden)};
}

BlockMemory block_memory(const Sizes& s, Recompute recompute) {
  const BlockMemory mixer = mixer_memory(s, recompute), mlp = mlp_memory(s, recompute);
  const BlockMemory inside{mixer.kept + mlp.kept, std::max(mixer.more - mlp.kept, mlp.more)};
  if (recompute != Recompute::block) return inside;
  return {.kept = s.flowing + s.stream, .more = inside.kept + inside.more};
}

// While it makes its gradients (cross_entropy.h): the stream, x and dx, dweight, logits, losses.
int64_t head_memory(const Sizes& s) {
  const int64_t rows = s.o.table_rows(), numbers = 2 * s.room(1, s.wide);
  return s.stream + 2 * s.flowing + numbers + Sizes::pooled(rows * s.m.d_model * s.wide) +
         logits_bytes(s.batch.device, s.batch.dtype, s.tokens, rows);
}

}  // namespace

int64_t activation_bytes(const LanguageModelOptions& model, const MicroBatch& batch) {
  const Sizes sizes{.o = model, .batch = batch};
  const BlockMemory block = block_memory(sizes, model.recompute);
  const int64_t workspace = batch.device == Device::cuda ? product_workspace : 0;
  return workspace + model.layers * block.kept + std::max(head_memory(sizes), block.more);
}

}  // namespace adder::layers
