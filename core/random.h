// Random numbers without state: each is a pure function of (seed, name, index), so a parameter's initial values do not
// depend on how it is sharded, and dropout repeats its bits when a block is recomputed.
// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace adder {

/// One Philox4x32-10 block: 128 random bits for a 128-bit counter under a 64-bit key.
constexpr std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

/// A stream of random numbers addressed by index.
class Random {
 public:
  /// Streams of different seeds or names are independent.
  Random(uint64_t seed, std::string_view name);

  uint64_t key() const { return key_; }
  /// 64 random bits for an index (and, where one is needed, a step).
  uint64_t bits(uint64_t index, uint64_t step = 0) const;
  /// Uniform in [0, 1), 53 bits.
  double uniform(uint64_t index, uint64_t step = 0) const;
  /// Standard normal (Box-Muller).
  double normal(uint64_t index, uint64_t step = 0) const;

 private:
  uint64_t key_;
};

}  // namespace adder
