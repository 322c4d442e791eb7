// What the benchmarks of kernels share: times on the GPU, the machine's two ceilings, and random operands.
#pragma once

#include "adder/bench/best_product.h"
#include "adder/bench/costs.h"
#include "adder/core/random.h"
#include "adder/core/timer.h"
#include "adder/kernels/matmul.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>

namespace adder {

/// `standard normal` scale + mean, on the GPU. The numbers repeat after a prime count that no stride divides.
inline Tensor normal(const Shape& shape, uint64_t seed, double scale = 1, double mean = 0, DType type = DType::bf16) {
  constexpr int64_t period = 1'000'003;
  static const Random random(1, "bench");
  static const std::vector<double> standard = [] {
    std::vector<double> values(period);
    for (size_t i = 0; i < values.size(); ++i) values[i] = random.normal(i);
    return values;
  }();
  std::vector<double> values(period);
  std::transform(standard.begin(), standard.end(), values.begin(), [&](double x) { return scale * x + mean; });
  const Tensor block = from_host({period}, values, type, Device::cuda), result(shape, type, Device::cuda);
  const Tensor flat = result.reshape({result.count()});
  const auto start = static_cast<int64_t>(random.bits(seed, 1) % period);
  for (int64_t to = -start; to < flat.count(); to += period) {
    const int64_t begin = std::max<int64_t>(to, 0), end = std::min(to + period, flat.count());
    copy(block.slice_first(begin - to, end - to), flat.slice_first(begin, end));
  }
  return result;
}

/// Random i32 in [0, below), on the GPU.
inline Tensor tokens(const Shape& shape, uint64_t seed, int64_t below) {
  std::vector<int32_t> values(static_cast<size_t>(shape.count()));
  const Random random(seed, "tokens");
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<int32_t>(random.bits(i) % static_cast<uint64_t>(below));
  return from_host(shape, values, Device::cuda);
}

/// Times work of which nothing is in the L2 cache.
class Stopwatch {
 public:
  using Function = std::function<void()>;

  explicit Stopwatch(int64_t repeats) : repeats_(repeats) {}

  /// The median time of f, each time after `before`, which does not count. Before each time 256 MiB of something else
  /// are read, so that the cache holds nothing of the operands; meanwhile the host gets ahead.
  double milliseconds(const Function& f, const Function& before = {}) const {
    constexpr int64_t warm_up = 3;
    Timer timer;
    for (int64_t i = 0; i < warm_up + repeats_; ++i) {
      if (before) before();
      on(Device::cuda, [&](auto backend) { sum_rows(backend, other_, sums_, false); });
      if (i >= warm_up) timer.start();
      f();
      if (i >= warm_up) timer.stop();
    }
    std::vector<double> times = timer.milliseconds();
    std::ranges::nth_element(times, times.begin() + repeats_ / 2);
    return times[static_cast<size_t>(repeats_ / 2)];
  }

 private:
  int64_t repeats_;
  Tensor other_ = zeros({1 << 16, 1 << 10}, DType::f32, Device::cuda), sums_{{1 << 10}, DType::f32, Device::cuda};
};

/// What the GPU reaches at most.
struct Ceilings {
  double bandwidth = 0, rate = 0;  // bytes read and written, and FLOPs of a large product, a millisecond

  explicit Ceilings(const Stopwatch& watch, DType type = DType::bf16) {
    const int64_t n = int64_t{1} << 28;
    {
      const Tensor from = normal({n}, 1), to = empty_like(from);
      bandwidth = 4.0 * static_cast<double>(n) / watch.milliseconds([&] { copy(from, to); });
    }
    for (const int64_t size : {4096, 8192}) {
      const Tensor a = normal({size, size}, 2, 1, 0, type), b = normal({size, size}, 3, 1, 0, type), c = empty_like(a);
      const double flops = 2.0 * static_cast<double>(size * size * size);
      const auto multiplied = [&] { multiply({.a = a, .b = b, .c = c, .transpose_b = true}); };
      rate = std::max(rate, flops / watch.milliseconds(multiplied));
    }
  }
  /// Milliseconds below which nobody gets: the larger of bytes at the bandwidth and FLOPs at the rate.
  double floor(const Cost& cost) const { return std::max(cost.bytes / bandwidth, cost.flops / rate); }
  /// "copy 4.25 TB/s (read + written), bf16 product 789 TFLOP/s"
  std::string describe(DType type = DType::bf16) const {
    return fmt::format("copy {:.2f} TB/s (read + written), {} product {:.0f} TFLOP/s", bandwidth / 1e9, name(type),
                       rate / 1e9);
  }
};

class Bench {
 public:
  using Function = Stopwatch::Function;

  /// Measures the ceilings and prints them.
  Bench(std::string filter, int64_t repeats) : filter_(std::move(filter)), watch_(repeats), ceilings_(watch_) {
    fmt::print("{}\n", ceilings_.describe());
    fmt::print("{:<70} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}\n", "", "ms", "MB", "GFLOP", "floor ms", "x floor", "best");
  }

  bool wants(const std::string& title) const { return title.find(filter_) != std::string::npos; }

  /// Times f, each time after `before`, which does not count, and prints the line.
  void line(const std::string& title, const Cost& cost, const Function& f, const Function& before = {}) const {
    print(title, cost, watch_.milliseconds(f, before), "");
  }

  /// Times multiply(p) and prints the line, with the time of cuBLASLt's best algorithm over its own. It counts with the
  /// better of two, before and after the others, as the best of them do.
  void product_line(const std::string& title, const Cost& cost, const Product& p) const {
    const auto ours = [&] { return watch_.milliseconds([&] { multiply(p); }); };
    const double first = ours();
    const BestProduct best = best_product(p, [&](const Function& f) { return watch_.milliseconds(f); });
    const double time = std::min(first, ours());
    print(title, cost, time, fmt::format("{:8.2f}  {}", best.milliseconds / time, best.name));
  }

 private:
  void print(const std::string& title, const Cost& cost, double time, const std::string& more) const {
    const double floor = ceilings_.floor(cost);
    fmt::print("{:<70} {:9.4f} {:9.1f} {:9.1f} {:9.4f} {:8.2f}{}\n", title, time, cost.bytes / 1e6, cost.flops / 1e9,
               floor, time / floor, more);
    std::fflush(stdout);
  }

  std::string filter_;
  Stopwatch watch_;
  Ceilings ceilings_;
};

}  // namespace adder
