// The tape: apply() runs an operator and records it, backward() walks back over what was recorded.
//
// An operator is a struct. Its members are its arguments and what backward needs; `inputs()` names the tensors that may
// get a gradient, in the order of the gradients:
//
//   struct Scale {
//     Tensor x;                                        // [...]
//     double factor = 1;
//     auto inputs() { return std::tie(x); }            // an undefined tensor is allowed and gets no gradient
//     Tensor forward();                                // or std::array<Tensor, n>, or std::vector<Tensor>
//     void backward(const Tensor& dy, Grads& to) const;  // one dy per output, undefined where nothing
//   };                                                   // arrived; or all of them as a span
//   Tensor y = apply(Scale{.x = x, .factor = 2});
//
// forward() drops every member that backward() does not read: what is left in the struct is what the tape holds.
// The inputs lose their links before forward() runs, so nothing kept can form a cycle or a chain.
#pragma once

#include "adder/core/grads.h"
#include "adder/core/tensor.h"

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

namespace adder {

/// An input of a recorded operator: where it came from (empty: no gradient wanted) and the shape in which it was used,
/// which may be another than that in which it was made: reshaping is no operator.
struct Edge {
  Link link;
  Shape shape;
};

/// One recorded operator: links to where its inputs came from, and the gradients of its outputs while backward runs.
class Node {
 public:
  /// The number orders nodes by creation: the newest runs first.
  Node(std::vector<Edge> inputs, size_t outputs);
  virtual ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  /// Runs the operator's backward and frees what it kept.
  virtual void run(std::span<const Tensor> gradients, Grads& to) = 0;
  /// A tensor for the gradient of an output, not initialised; and whether it belongs to the node, so that it must be
  /// written in place and never replaced.
  virtual Tensor gradient_buffer(int output) = 0;
  virtual bool owns_gradients() const { return false; }
  virtual Shape output_shape(int output) const = 0;

 private:
  friend class Engine;
  std::vector<Edge> inputs_;
  size_t outputs_;
  std::vector<Tensor> gradients_;  // by output while backward runs; undefined: nothing arrived yet
  std::shared_ptr<const std::string> traced_;  // what was traced when it was recorded (core/traced.h)
  uint64_t number_;
  bool queued_ = false;
};

/// Whether operators are recorded on this thread.
bool recording();

/// While it lives, operators on this thread are not recorded.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

/// While it lives, operators on this thread are recorded (recompute needs it inside a backward).
class Record {
 public:
  Record();
  ~Record();
  Record(const Record&) = delete;
  Record& operator=(const Record&) = delete;

 private:
  bool before_;
};

/// A tensor whose gradient is collected: in `gradient` if given (same shape, any pitch), else in a tensor of its own.
Tensor leaf(const Tensor& value, const Tensor& gradient = {});
/// The gradient collected so far; undefined if none arrived since the last clear.
Tensor gradient(const Tensor& leaf);
/// The next gradient overwrites.
void clear_gradient(const Tensor& leaf);

/// Backward from a loss of one element; returns its value, off the tape. Frees the tape as it goes.
Tensor backward(const Tensor& loss);
/// Backward from several outputs with the given gradients (undefined: zero).
void backward(std::span<const Tensor> outputs, std::span<const Tensor> gradients);
/// The number that the next node will have.
uint64_t next_node_number();
/// The same for a part of the tape: throws if it leads to a node, other than a leaf, older than `oldest`.
void backward_part(std::span<const Tensor> outputs, std::span<const Tensor> gradients, uint64_t oldest);

namespace detail {

[[noreturn]] void already_run();  // throws: backward went over this part of the tape before

struct Signature {
  Shape shape;
  DType dtype;
  Device device;
};

// The outputs of forward() as a list, whatever it returns.
inline std::span<Tensor> outputs_of(Tensor& y) { return {&y, 1}; }
template <size_t n>
std::span<Tensor> outputs_of(std::array<Tensor, n>& y) { return y; }
inline std::span<Tensor> outputs_of(std::vector<Tensor>& y) { return y; }

template <class Op, class F>
void for_each_input(Op& op, F&& f) {
  auto&& inputs = op.inputs();
  if constexpr (requires { std::tuple_size<std::remove_cvref_t<decltype(inputs)>>::value; })
    std::apply([&](auto&... t) { (f(t), ...); }, inputs);
  else
    for (Tensor& t : inputs) f(t);
}

template <class Op, class Outputs>
class OpNode final : public Node {
 public:
  OpNode(Op op, std::vector<Edge> inputs, std::span<const Tensor> outputs)
      : Node(std::move(inputs), outputs.size()), op_(std::move(op)) {
    for (const Tensor& y : outputs)
      signatures_.push_back(y ? Signature{y.shape(), y.dtype(), y.device()}
                              : Signature{Shape{0}, DType::f32, Device::cpu});
  }
  void run(std::span<const Tensor> dy, Grads& to) override {
    if (!op_) already_run();
    Op kept = std::move(*op_);
    op_.reset();
    for_each_input(kept, [](Tensor& t) {  // what was forgotten is made again here, not inside a kernel's parallel loop
      if (t) t.address();
    });
    const Op& op = kept;
    if constexpr (requires { op.backward(dy, to); }) op.backward(dy, to);
    else if constexpr (std::is_same_v<Outputs, Tensor>) op.backward(dy[0], to);
    else
      [&]<size_t... i>(std::index_sequence<i...>) { op.backward(dy[i]..., to); }(
          std::make_index_sequence<std::tuple_size_v<Outputs>>());
  }
  Tensor gradient_buffer(int output) override {
    if (!op_) already_run();
    if constexpr (has_buffer) return op_->gradient_buffer(output);
    const Signature& s = signatures_[static_cast<size_t>(output)];
    return Tensor(s.shape, s.dtype, s.device);
  }
  bool owns_gradients() const override { return has_buffer; }
  Shape output_shape(int output) const override { return signatures_[static_cast<size_t>(output)].shape; }

 private:
  static constexpr bool has_buffer = requires(Op op) { op.gradient_buffer(0); };
  std::optional<Op> op_;  // empty once backward has run
  std::vector<Signature> signatures_;
};

}  // namespace detail

/// Runs an operator and, if recording and an input needs a gradient, puts it on the tape.
template <class Op>
auto apply(Op op) {
  std::vector<Edge> edges;
  bool record = false;
  detail::for_each_input(op, [&](Tensor& t) {
    edges.push_back({recording() ? t.link() : Link{}, t.shape()});
    record = record || edges.back().link;
    if (t) t = t.detach();
  });
  if constexpr (requires { Op::records_always; }) record = recording();
  auto outputs = [&] {
    NoGrad inside;
    return op.forward();
  }();
  if (!record) return outputs;
  const auto list = detail::outputs_of(outputs);
  const std::shared_ptr<Node> node =
      std::make_shared<detail::OpNode<Op, decltype(outputs)>>(std::move(op), std::move(edges), list);
  for (int i = 0; Tensor& y : list) {
    if (y) y = y.with_link({node, i});
    ++i;
  }
  return outputs;
}

}  // namespace adder
