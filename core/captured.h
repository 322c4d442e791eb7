// Captured: a function of tensors whose kernels on the GPU are queued at once, as a CUDA graph, instead of one by one.
//
//   auto step = captured(device, [&] { return model.step(token, state); });
//   copy(next, token);
//   Tensor logits = step();
//
// The first call runs the function. The second one records it: what it queues becomes a graph, with memory of its own.
// From then on a call replays the graph, and the function does not run. So it must do the same work each time: one that
// reads its inputs from tensors that live as long as the graph, into which the caller copies new numbers between the
// calls, and that changes nothing on the host but what it changes back. What it returns lies at the same addresses
// after every call, and the next call overwrites it.
//
// What waits for the GPU, or copies between host and GPU, cannot be recorded: then the function runs for good, and
// eager_because() says why. The bits are the same either way, unless what the recording had changed on the host before
// it was given up matters to the call that runs instead: gradients that count as there, but were never computed.
// Inside another recording it becomes a part of that graph, and has none. While the function is recorded, no other
// thread may queue work on the GPU. On the CPU a call is a call.
#pragma once

#include "adder/core/device.h"

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace adder {

class Graph;

/// What f queues on the compute stream, which is not done; null where that cannot be, and `why` then says so.
std::shared_ptr<Graph> record(const std::function<void()>& f, std::string& why);
void replay(const Graph& graph);
/// Whether the compute stream is being recorded.
bool capturing();

template <class F>
class Captured {
 public:
  using Result = std::invoke_result_t<F&>;  // Tensors, or nothing

  Captured(Device device, F f) : device_(device), f_(std::move(f)) {}
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;

  Result operator()() {
    if constexpr (built_with_cuda) {
      if (device_ == Device::cuda && calls_++ == 1 && why_.empty()) {
        graph_ = record([this] { run(); }, why_);
        if (!graph_) result_ = {};  // its memory was to be the graph's
      }
      if (graph_) {
        replay(*graph_);
        return static_cast<Result>(result_);
      }
    }
    return f_();
  }
  /// Whether calls replay a graph by now.
  bool is_graph() const { return graph_ != nullptr; }
  /// Why it cannot be one; empty otherwise.
  const std::string& eager_because() const { return why_; }
  /// Runs the function from now on.
  void stay_eager(std::string why) { why_ = std::move(why), graph_ = nullptr; }

 private:
  struct Nothing {};
  void run() {
    if constexpr (std::is_void_v<Result>) f_();
    else result_ = f_();
  }

  Device device_;
  F f_;
  int64_t calls_ = 0;
  std::string why_;
  std::shared_ptr<Graph> graph_;
  std::conditional_t<std::is_void_v<Result>, Nothing, Result> result_ = {};
};

template <class F>
Captured<F> captured(Device device, F f) {
  return Captured<F>(device, std::move(f));
}

}  // namespace adder
