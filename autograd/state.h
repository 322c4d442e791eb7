// State: what a run must find again when it resumes, as named tensors and named values.
//
//   State{.name = "loader", .save = [&] { return Values{{"consumed_samples", consumed}}; },
//         .load = [&](const Values& v) { consumed = value<int64_t>(v, "consumed_samples"); }}
//
// Optimizer, loader and the like hand one out; checkpoints (data/checkpoint.h) know nothing of their owners.
#pragma once

#include "adder/autograd/params.h"
#include "adder/core/error.h"

#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace adder {

/// This rank's piece of a tensor that may lie cut over the ranks. `tensor` holds the indices [begin, begin + its size)
/// of `axis` of the whole; axis -1 counts flat, row-major elements: all of them, or a range that an optimizer owns.
struct Piece {
  std::string name;  // "first_moment/block/3/weight"
  Shape shape;       // of the whole tensor
  int axis = -1;
  int64_t begin = 0;
  Tensor tensor;     // contiguous; saved from and loaded into

  /// A tensor that every rank holds whole.
  static Piece whole(const std::string& name, const Tensor& tensor);
  /// A tensor cut as the parameter is, such as a moment; named kind/parameter, or as the parameter if `kind` is empty.
  static Piece like(const Param& param, const std::string& kind, const Tensor& tensor);
  int64_t end() const { return begin + (axis < 0 ? tensor.count() : tensor.size(axis)); }
};
/// Throws unless the tensor is what the piece says of it.
void check_piece(const Piece& piece);

using Value = std::variant<int64_t, double, std::string>;
using Values = std::map<std::string, Value>;

/// The value of that name; throws if it is missing or of another type.
template <class T>
const T& value(const Values& values, const std::string& name) {
  const auto found = values.find(name);
  check(found != values.end(), "the saved state has no value {}", name);
  const T* held = std::get_if<T>(&found->second);
  check(held != nullptr, "the saved state holds {} as another type", name);
  return *held;
}

/// One owner's part of a run. Tensors are handles: they are filled in place. `load` is called before tensors are
/// compared and filled, so that it can refuse changed settings by name; it may be called again with older values.
/// `filled` is called once all tensors of all states are filled.
struct State {
  std::string name;  // "optimizer"; no '/'
  std::vector<Piece> tensors = {};
  std::function<Values()> save = {};
  std::function<void(const Values&)> load = {};
  std::function<void()> filled = {};
};
/// The master weights, named "parameters"; their rounded copies follow what is loaded.
State state(const Params& params);

}  // namespace adder
