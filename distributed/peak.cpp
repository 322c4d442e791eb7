#include "adder/distributed/peak.h"

#include <algorithm>

namespace adder {
namespace {

// From data sheets, in TFLOP/s; where these count the zeros of sparse matrices, half of what they say.
struct Peak {
  std::string_view name;  // a part of what the driver calls it; the first that fits counts
  double bf16, tf32, f32;
};

constexpr Peak peaks[] = {
    {"H100 PCIe", 756, 378, 51},
    {"H100 NVL", 835, 417, 60},
    {"H100", 989, 494, 67},
    {"H200 NVL", 835, 417, 60},
    {"H200", 989, 494, 67},
    {"A100", 312, 156, 19.5},
    {"A10", 125, 62.5, 31.2},
    {"L40S", 362, 183, 91.6},
    {"L4", 121, 60, 30.3},
    {"RTX 3090", 71, 35.6, 35.6},
    {"RTX 4090", 165, 82.6, 82.6}};

// Whether the name stands in the text as words: L4 is no part of L40.
bool stands_in(std::string_view name, std::string_view text) {
  const auto is_word = [](char c) { return c != ' ' && c != '-'; };
  for (size_t at = text.find(name); at != std::string_view::npos; at = text.find(name, at + 1)) {
    const size_t end = at + name.size();
    if ((at == 0 || !is_word(text[at - 1])) && (end == text.size() || !is_word(text[end]))) return true;
  }
  return false;
}

}  // namespace

double peak_flops(std::string_view gpu, DType type, bool tf32) {
  const auto* const peak = std::ranges::find_if(peaks, [&](const Peak& p) { return stands_in(p.name, gpu); });
  if (peak == std::end(peaks) || stands_in("MIG", gpu)) return 0;
  return 1e12 * (type == DType::bf16 ? peak->bf16 : tf32 ? peak->tf32 : peak->f32);
}

}  // namespace adder
