// A random order that is not stored.
#pragma once

#include "adder/core/random.h"

#include <bit>
#include <cstdint>

namespace adder {

/// A bijection of 0..size-1, one for each (random, number): four rounds of a Feistel network, whose halves cover at
/// least `size` values, repeated until the result is inside (Luby & Rackoff 1988; cycle walking: Black & Rogaway 2002).
/// Fewer than four walks are expected.
class Permutation {
 public:
  Permutation(int64_t size, const Random& random, uint64_t number)
      : size_(static_cast<uint64_t>(size)), random_(random), number_(number) {
    half_ = (std::bit_width(size_ > 0 ? size_ - 1 : 0) + 1) / 2;
  }

  int64_t operator()(int64_t index) const {
    auto value = static_cast<uint64_t>(index);
    do value = mix(value);
    while (value >= size_);
    return static_cast<int64_t>(value);
  }

 private:
  static constexpr uint64_t rounds = 4;

  uint64_t mix(uint64_t value) const {
    const uint64_t mask = (uint64_t{1} << half_) - 1;
    uint64_t left = value >> half_, right = value & mask;
    for (uint64_t round = 0; round < rounds; ++round) {
      const uint64_t next = left ^ (random_.bits(right, number_ * rounds + round) & mask);
      left = right;
      right = next;
    }
    return left << half_ | right;
  }

  uint64_t size_;
  Random random_;
  uint64_t number_;
  int half_;
};

}  // namespace adder
