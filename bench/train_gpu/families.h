// What kind of work a kernel does, by the name that the compiler gave it.
//
// A kernel in an unnamed namespace, as all of adder's are, carries the name of its file:
// _ZN5adder3ssd7chunked49_GLOBAL__N__0a9a5444_16_chunked_sweep_cu_fd1fe9a14walkILi128ELb0EE... is walk<128, false> of
// chunked_sweep.cu. So a new kernel in an old file, or a new file of the SSD, needs no edit here; what is in no family
// gets its own line in the table.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>

namespace adder {

/// Where a kernel comes from. All is empty but of adder's own kernels, and the file is if it does not show.
struct Origin {
  std::string_view file;  // "chunked_sweep"
  std::string_view name;  // "walk"
  bool ssd = false;       // in the namespace ssd
  constexpr bool ours() const { return !name.empty(); }
};

namespace family {
using Name = std::string_view;
inline constexpr Name in_proj = "products: in_proj", out_proj = "products: out_proj", blocks = "products: blocks",
                      head = "products: head", ssd_forward = "SSD, forward", ssd_backward = "SSD, backward",
                      conv_forward = "convolution, forward", conv_backward = "convolution, backward",
                      norm_forward = "norms, forward", norm_backward = "norms, backward",
                      gated_forward = "gated norms, forward", gated_backward = "gated norms, backward",
                      embedding_forward = "embedding, forward", embedding_backward = "embedding, backward",
                      cross_entropy = "cross-entropy", adamw = "AdamW and gradient norm",
                      sums = "sums of partial results", elementwise = "scaling, adding, gates", dropout = "dropout",
                      copies = "copies and fills", communication = "communication";
/// In the order of the table.
inline constexpr Name all[] = {in_proj, out_proj, blocks, head, ssd_forward, ssd_backward, conv_forward, conv_backward,
                               norm_forward, norm_backward, gated_forward, gated_backward, embedding_forward,
                               embedding_backward, cross_entropy, adamw, sums, elementwise, dropout, copies,
                               communication};
/// Until its neighbours tell more.
inline constexpr Name product = "products", ssd = "SSD";
}  // namespace family

namespace mangled {

/// The number that s begins with; s goes on behind it.
constexpr size_t number(std::string_view& s) {
  size_t n = 0;
  for (; !s.empty() && s[0] >= '0' && s[0] <= '9'; s.remove_prefix(1)) n = 10 * n + static_cast<size_t>(s[0] - '0');
  return n;
}

/// "_GLOBAL__N__0a9a5444_16_chunked_sweep_cu_fd1fe9a1" -> "chunked_sweep"
constexpr std::string_view file(std::string_view space) {
  space.remove_prefix(std::string_view("_GLOBAL__N__").size());
  space.remove_prefix(std::min(space.find('_') + 1, space.size()));
  const size_t length = number(space);
  if (length + 1 > space.size() || !space.substr(1, length).ends_with("_cu")) return {};
  return space.substr(1, length - 3);
}

}  // namespace mangled

constexpr Origin origin_of(std::string_view kernel) {
  if (!kernel.starts_with("_ZN5adder")) return {};
  Origin from;
  kernel.remove_prefix(3);
  while (const size_t length = mangled::number(kernel)) {
    const std::string_view piece = kernel.substr(0, length);
    kernel.remove_prefix(piece.size());
    if (piece.starts_with("_GLOBAL__N__")) from.file = mangled::file(piece);
    if (piece == "ssd") from.ssd = true;
    from.name = piece;
  }
  return from;
}

/// The family of a kernel: copies without a name, product where it is not adder's but cuBLASLt's, ssd where it serves
/// both directions; empty if it is in none.
constexpr family::Name family_of(std::string_view kernel) {
  struct Rule {
    std::string_view file, name;  // what the file begins with, what the kernel's name has in it
    family::Name family;
  };
  constexpr Rule rules[] = {{"causal_conv1d_backward", "", family::conv_backward},
                            {"causal_conv1d", "", family::conv_forward},
                            {"rms_norm", "backward", family::norm_backward},
                            {"rms_norm", "", family::norm_forward},
                            {"gated_rms_norm", "backward", family::gated_backward},
                            {"gated_rms_norm", "", family::gated_forward},
                            {"embedding", "look_up", family::embedding_forward},
                            {"embedding", "", family::embedding_backward},
                            {"cross_entropy", "", family::cross_entropy},
                            {"adamw", "", family::adamw},
                            {"matmul", "sum", family::sums},
                            {"matmul", "", family::product},
                            {"accumulate", "", family::elementwise},
                            {"elementwise", "", family::elementwise},
                            {"dropout", "", family::dropout},
                            {"tensor", "", family::copies}};
  if (kernel.empty()) return family::copies;
  if (kernel.starts_with("nccl")) return family::communication;
  const Origin from = origin_of(kernel);
  if (!from.ours()) return family::product;
  constexpr auto has = [](std::string_view text, std::string_view part) { return text.find(part) != text.npos; };
  if (from.ssd) {
    if (has(from.file, "forward")) return family::ssd_forward;
    return has(from.file, "backward") ? family::ssd_backward : family::ssd;
  }
  for (const Rule& rule : rules)
    if (from.file.starts_with(rule.file) && has(from.name, rule.name)) return rule.family;
  return {};
}

// Names as nvcc 13 gives them.
static_assert(family_of("_ZN5adder3ssd7chunked49_GLOBAL__N__0a9a5444_16_chunked_sweep_cu_fd1fe9a14walkILi128ELb0EEEv"
                        "NS1_7ProblemENS2_4WalkES5_il") == family::ssd);
static_assert(family_of("_ZN5adder50_GLOBAL__N__a5187618_17_gated_rms_norm_cu_5711311f8backwardIfLi1ELb0EEEvNS0_"
                        "8BackwardIT_EE") == family::gated_backward);
static_assert(family_of("_ZN5adder41_GLOBAL__N__9ea84a52_9_matmul_cu_25b226089sum_blockIffEEvv") == family::sums);
static_assert(family_of("_ZN5adder41_GLOBAL__N__9ea84a52_9_unknown_cu_25b226089sum_blockIffEEvv").empty());
static_assert(family_of("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_TNN") == family::product);
static_assert(family_of("_ZN8cublasLt19splitKreduce_kernelILi32EEvv") == family::product);

}  // namespace adder
