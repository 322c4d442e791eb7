// What cuBLASLt's best algorithm takes for a product, of all that it proposes: the one that a program would find that
// tries them, and what multiply(), which does not, is measured against.
#pragma once

#include "adder/core/error.h"
#include "adder/kernels/matmul.h"

#include <algorithm>
#include <concepts>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace adder {

struct BestProduct {
  double milliseconds = std::numeric_limits<double>::infinity();
  std::string name;
};

/// `time` gives the milliseconds of a function; the five that seem best count with the better of two. An algorithm that
/// refuses the product is passed over.
inline BestProduct best_product(const Product& p, const std::function<double(const std::function<void()>&)>& time) {
  const auto ways = on(Device::cuda, [&](auto backend) {
    if constexpr (std::same_as<decltype(backend), Cuda>) return ways_to_multiply(backend, p);
    else return std::vector<ProductWay>();
  });
  std::vector<std::pair<double, const ProductWay*>> tried;
  for (const ProductWay& way : ways) {
    try {
      tried.emplace_back(time(way.multiply), &way);
    } catch (const Error&) {
    }
  }
  std::ranges::sort(tried);
  BestProduct best;
  for (size_t i = 0; i < std::min<size_t>(5, tried.size()); ++i)
    if (const double again = std::min(tried[i].first, time(tried[i].second->multiply)); again < best.milliseconds)
      best = {again, tried[i].second->name};
  return best;
}

}  // namespace adder
