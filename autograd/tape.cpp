#include "adder/autograd/tape.h"

#include "adder/core/error.h"
#include "adder/core/traced.h"
#include "adder/kernels/accumulate.h"

#include <algorithm>
#include <atomic>
#include <utility>

namespace adder {
namespace {

thread_local bool recording_now = true;
std::atomic<uint64_t> nodes_created = 0;

// Collects the gradient of one tensor. Never runs: backward ends here.
class Leaf final : public Node {
 public:
  Leaf(Tensor buffer, Shape shape, DType dtype, Device device)
      : Node({}, 1), buffer_(std::move(buffer)), signature_{shape, dtype, device} {}
  void run(std::span<const Tensor>, Grads&) override {}
  Tensor gradient_buffer(int) override {
    if (!buffer_) buffer_ = Tensor(signature_.shape, signature_.dtype, signature_.device);
    return buffer_;
  }
  bool owns_gradients() const override { return true; }
  Shape output_shape(int) const override { return signature_.shape; }

  bool empty = true;  // the next gradient overwrites the buffer
  Tensor buffer() const { return buffer_; }

 private:
  Tensor buffer_;
  detail::Signature signature_;
};

Leaf& leaf_of(const Tensor& t) {
  auto* node = dynamic_cast<Leaf*>(t.link().node.get());
  check(node != nullptr, "gradient: this tensor is not a leaf");
  return *node;
}

}  // namespace

Node::Node(std::vector<Edge> inputs, size_t outputs)
    : inputs_(std::move(inputs)), outputs_(outputs), traced_(Traced::innermost()), number_(nodes_created++) {}

// A long tape must not be freed by recursion: the first node to go frees those that it alone held, one after another.
Node::~Node() {
  thread_local std::vector<Edge>* pending = nullptr;
  if (pending != nullptr) {
    std::move(inputs_.begin(), inputs_.end(), std::back_inserter(*pending));
    return;
  }
  std::vector<Edge> work = std::move(inputs_);
  pending = &work;
  while (!work.empty()) {
    const Edge last = std::move(work.back());
    work.pop_back();
  }
  pending = nullptr;
}

/// One backward pass: a heap of nodes that have gradients waiting, the newest on top.
class Engine {
 public:
  explicit Engine(uint64_t oldest = 0) : oldest_(oldest) {}

  void run(std::span<const Tensor> outputs, std::span<const Tensor> gradients) try {
    for (size_t i = 0; i < outputs.size(); ++i)
      if (const Link& link = outputs[i].link(); link && gradients[i]) give(link, gradients[i]);
    std::shared_ptr<const std::string> traced;
    std::optional<Traced> range;  // a profiler shows the backward of a layer under the name of its forward
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), older);
      const std::shared_ptr<Node> node = std::move(heap_.back());
      heap_.pop_back();
      const std::vector<Tensor> dy = std::move(node->gradients_);
      node->gradients_.clear();
      node->queued_ = false;
      if (node->traced_ != traced) {
        range.reset();
        if ((traced = node->traced_)) range.emplace(*traced);
      }
      Destinations to(*this, node->inputs_);
      node->run(dy, to);
      to.finish();
    }
  } catch (...) {  // nothing half done stays on the tape or in a leaf
    for (const auto& node : heap_) {
      node->queued_ = false;
      node->gradients_.clear();
    }
    for (const auto& leaf : written_) static_cast<Leaf&>(*leaf).empty = true;
    throw;
  }

  static bool older(const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) { return a->number_ < b->number_; }

 private:
  // What one operator's backward sees. If one tensor is two of its inputs, or if the place of a gradient does not have
  // the shape that the operator used, the gradient waits in a tensor of its own until the operator is done.
  class Destinations final : public Grads {
   public:
    Destinations(Engine& engine, const std::vector<Edge>& edges) : engine_(engine), edges_(edges) {}
    bool wants(int i) const override { return static_cast<bool>(edge(i).link); }
    Slot slot(int i) override {
      const Edge& e = edge(i);
      const bool taken = is_taken(e.link);
      taken_.push_back(e.link);
      if (!taken) {
        const Slot place = engine_.slot(e.link);
        if (place.tensor.keeps_rows(e.shape)) return {place.tensor.reshape(e.shape), place.accumulate};
        if (!place.accumulate) fill(place.tensor, 0);
        waiting_.push_back({e.link, Tensor(e.shape, place.tensor.dtype(), place.tensor.device())});
      } else {
        const Tensor like = e.link.node->gradient_buffer(e.link.output);
        waiting_.push_back({e.link, Tensor(e.shape, like.dtype(), like.device())});
      }
      return {waiting_.back().second, false};
    }
    void give(int i, Tensor gradient) override {
      if (!wants(i)) return;
      if (is_taken(edge(i).link)) waiting_.push_back({edge(i).link, std::move(gradient)});
      else engine_.give(edge(i).link, std::move(gradient));
    }
    void finish() {
      for (auto& [link, gradient] : waiting_) engine_.give(link, std::move(gradient));
    }

   private:
    const Edge& edge(int i) const { return edges_.at(static_cast<size_t>(i)); }
    bool is_taken(const Link& link) const {
      return std::any_of(taken_.begin(), taken_.end(),
                         [&](const Link& t) { return t.node == link.node && t.output == link.output; });
    }

    Engine& engine_;
    const std::vector<Edge>& edges_;
    std::vector<Link> taken_;                         // those whose place was asked for
    std::vector<std::pair<Link, Tensor>> waiting_;
  };

  // The stored gradient of an output, undefined if nothing arrived; queues the node that will read it.
  Tensor& stored(const Link& link) {
    Node& node = *link.node;
    check(node.number_ >= oldest_,
          "recompute: the function reads a tensor that was recorded outside of it; make it an argument");
    node.gradients_.resize(node.outputs_);
    if (!node.queued_) {
      node.queued_ = true;
      heap_.push_back(link.node);
      std::push_heap(heap_.begin(), heap_.end(), older);
    }
    return node.gradients_[static_cast<size_t>(link.output)];
  }

  Slot slot(const Link& link) {
    if (auto* leaf = dynamic_cast<Leaf*>(link.node.get())) {
      written_.push_back(link.node);
      return {leaf->gradient_buffer(0), !std::exchange(leaf->empty, false)};
    }
    Tensor& gradient = stored(link);
    if (!gradient) {
      gradient = link.node->gradient_buffer(link.output);
      return {gradient, false};
    }
    // One gradient may have been given to two inputs: whoever adds to it must have it alone.
    if (!link.node->owns_gradients() && gradient.shared()) gradient = clone(gradient);
    return {gradient, true};
  }

  // Stored gradients have the shape of the output, and rows no longer than its last axis.
  void give(const Link& link, Tensor incoming) {
    check(incoming.defined(), "backward: an operator gave an undefined gradient");
    const Shape shape = link.node->output_shape(link.output);
    if (!incoming.contiguous() && (incoming.shape() != shape || incoming.row() != shape[-1]))
      incoming = contiguous(incoming);
    incoming = incoming.reshape(shape).detach();
    if (!link.node->owns_gradients()) {
      if (Tensor& gradient = stored(link); !gradient) {
        gradient = std::move(incoming);
        return;
      }
    }
    const Slot place = slot(link);
    if (place.accumulate) accumulate(incoming, place.tensor);
    else copy(incoming, place.tensor);
  }

  uint64_t oldest_;
  std::vector<std::shared_ptr<Node>> heap_;
  std::vector<std::shared_ptr<Node>> written_;  // leaves
};

void detail::already_run() {
  fail("backward: this part of the tape has run already; run the forward pass again");
}

bool recording() { return recording_now; }
NoGrad::NoGrad() : before_(std::exchange(recording_now, false)) {}
NoGrad::~NoGrad() { recording_now = before_; }
Record::Record() : before_(std::exchange(recording_now, true)) {}
Record::~Record() { recording_now = before_; }

Tensor leaf(const Tensor& value, const Tensor& gradient) {
  check(!gradient || gradient.shape() == value.shape(), "leaf: value {} but gradient {}", to_string(value.shape()),
        to_string(gradient.shape()));
  return value.with_link({std::make_shared<Leaf>(gradient, value.shape(), value.dtype(), value.device()), 0});
}

Tensor gradient(const Tensor& leaf) {
  const Leaf& node = leaf_of(leaf);
  return node.empty ? Tensor() : node.buffer();
}

void clear_gradient(const Tensor& leaf) { leaf_of(leaf).empty = true; }

uint64_t next_node_number() { return nodes_created; }

void backward(std::span<const Tensor> outputs, std::span<const Tensor> gradients) {
  backward_part(outputs, gradients, 0);
}

void backward_part(std::span<const Tensor> outputs, std::span<const Tensor> gradients, uint64_t oldest) {
  check(outputs.size() == gradients.size(), "backward: {} outputs but {} gradients", outputs.size(), gradients.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Tensor &y = outputs[i], &dy = gradients[i];
    check(!dy || (dy.shape() == y.shape() && dy.dtype() == y.dtype()), "backward: output {} {} but gradient {} {}",
          name(y.dtype()), to_string(y.shape()), dy ? name(dy.dtype()) : "", dy ? to_string(dy.shape()) : "");
  }
  NoGrad inside;
  Engine(oldest).run(outputs, gradients);
}

Tensor backward(const Tensor& loss) {
  check(loss.defined() && loss.count() == 1, "backward: a loss has one element, not {}",
        loss.defined() ? loss.count() : 0);
  check(static_cast<bool>(loss.link()), "backward: the loss was not recorded, no parameter leads to it");
  const Traced traced("backward");
  const Tensor one = full(loss.shape(), 1, loss.dtype(), loss.device());
  backward({&loss, 1}, {&one, 1});
  return loss.detach();
}

}  // namespace adder
