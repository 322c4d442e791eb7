#include "adder/core/random.h"

#include <cmath>
#include <numbers>

namespace adder {
namespace {

// FNV-1a, then mixed with the seed by one Philox block.
uint64_t key_of(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3u;
  const auto r = philox({static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32), 0, 0},
                        {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uint64_t{r[1]} << 32 | r[0];
}

std::array<uint64_t, 2> block(uint64_t key, uint64_t index, uint64_t step) {
  const auto r = philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(step),
                         static_cast<uint32_t>(step >> 32)},
                        {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
  return {uint64_t{r[1]} << 32 | r[0], uint64_t{r[3]} << 32 | r[2]};
}

double unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

}  // namespace

Random::Random(uint64_t seed, std::string_view name) : key_(key_of(seed, name)) {}

uint64_t Random::bits(uint64_t index, uint64_t step) const { return block(key_, index, step)[0]; }

double Random::uniform(uint64_t index, uint64_t step) const { return unit(bits(index, step)); }

double Random::normal(uint64_t index, uint64_t step) const {
  const auto [a, b] = block(key_, index, step);
  const double radius = std::sqrt(-2 * std::log(1 - unit(a)));  // 1 - u is in (0, 1]
  return radius * std::cos(2 * std::numbers::pi * unit(b));
}

}  // namespace adder
