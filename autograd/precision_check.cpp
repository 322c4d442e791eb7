#include "adder/autograd/precision_check.h"

#include "adder/autograd/tape.h"
#include "adder/core/error.h"

#include <cmath>
#include <limits>

namespace adder {
namespace {

constexpr double infinite = std::numeric_limits<double>::infinity();
constexpr double bound = 5e-3;

bool floating(const Tensor& t) { return t && t.dtype() != DType::i32; }

// Rounds to a dtype and comes back.
Tensor rounded(const Tensor& t, DType type) { return to(to(t, type), DType::f64); }

// Outputs of f and the gradients of its floating inputs, off the tape; undefined where there is none.
std::vector<Tensor> run(const TensorFunction& f, std::vector<Tensor> inputs, DType rounding, uint64_t seed) {
  for (Tensor& t : inputs)
    if (floating(t)) t = leaf(t);
  const std::vector<Tensor> outputs = f(inputs);
  std::vector<Tensor> dy, results;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Tensor& y = outputs[i];
    results.push_back(y.detach());
    dy.push_back(y ? to_device(to(rounded(random_normal(y.shape(), seed * 1000 + i), rounding), y.dtype()), y.device())
                   : Tensor());
  }
  backward(outputs, dy);
  for (const Tensor& t : inputs) results.push_back(floating(t) ? gradient(t) : Tensor());
  return results;
}

}  // namespace

std::string name(const Place& place) { return fmt::format("{} {}", name(place.device), name(place.type)); }

PrecisionCheck check_precision(const TensorFunction& f, const std::vector<Tensor>& inputs, Place place, uint64_t seed) {
  std::vector<Tensor> there, exact, unrounded;
  for (const Tensor& t : inputs) {
    const bool keep = !floating(t) || (t.dtype() == DType::f32 && place.type == DType::bf16);
    const Tensor x = keep ? t : to(t, place.type);
    there.push_back(to_device(x, place.device));
    exact.push_back(floating(t) ? to(x, DType::f64) : t);
    unrounded.push_back(floating(t) ? to(t, DType::f64) : t);
  }
  const auto got = run(f, there, place.type, seed), again = run(f, there, place.type, seed);
  const auto expected = run(f, exact, place.type, seed), ideal = run(f, unrounded, DType::f64, seed);

  PrecisionCheck result;
  const size_t outputs = got.size() - inputs.size();
  for (size_t i = 0; i < got.size(); ++i) {
    const std::string what =
        i < outputs ? fmt::format("output {}", i) : fmt::format("gradient of input {}", i - outputs);
    double error = 0;
    std::string note;
    if (got[i].defined() != expected[i].defined()) error = infinite, note = " is missing on one side";
    else if (!got[i]) continue;
    else if (!bitwise_equal(got[i], again[i])) error = infinite, note = " has other bits in a second run";
    else {
      error = relative_rms(got[i], expected[i]);
      const double e0 = relative_rms(rounded(expected[i], place.type), ideal[i]);
      if (e0 > bound) error *= bound / e0;
    }
    if (!(error <= result.error))
      result = {std::isnan(error) ? infinite : error, fmt::format("{}: {}{}", what, error, note)};
  }
  return result;
}

}  // namespace adder
