// The steps of a softmax over one row, on the CPU in f64: what a sampler does between its filters.
#pragma once

#include <span>

namespace adder {

/// The largest number, or infinity if one is NaN or +infinity; of none, -infinity.
double largest(std::span<const double> x);
/// x_i = exp((x_i - shift) / temperature). Returns their sum.
double exponentials(std::span<double> x, double shift, double temperature);

}  // namespace adder
