#include "adder/core/captured.h"

#include "adder/core/cuda.cuh"
#include "adder/core/memory.h"

#include <atomic>
#include <exception>

namespace adder {
namespace {

std::atomic<bool> capturing_now = false;

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
struct DestroyExec {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using Recorded = std::unique_ptr<CUgraph_st, DestroyGraph>;

// The compute stream is captured for as long as it lives, and new blocks of memory come from the pool.
class Capture {
 public:
  // Relaxed: calls that would disturb others, such as those for memory, are not refused. What waits for the stream is.
  explicit Capture(const PrivatePool& pool) : stream_(compute_stream()), pool_(pool) {
    pool_.open();
    const cudaError_t status = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed);
    if (status != cudaSuccess) pool_.close();
    check(status, "the recording of a CUDA graph");
    capturing_now = true;
  }
  ~Capture() {
    cudaGraph_t graph = nullptr;
    if (capturing_now) end(graph);
    const Recorded unused(graph);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaError_t end(cudaGraph_t& graph) {
    capturing_now = false;
    pool_.close();
    const cudaError_t status = cudaStreamEndCapture(stream_, &graph);
    cudaGetLastError();  // the caller has it
    return status;
  }

 private:
  cudaStream_t stream_;
  const PrivatePool& pool_;
};

}  // namespace

class Graph {
 public:
  const PrivatePool& memory() const { return memory_; }
  cudaError_t make(cudaGraph_t recorded) {
    cudaGraphExec_t made = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&made, recorded, 0);
    cudaGetLastError();
    made_.reset(made);
    return status;
  }
  cudaGraphExec_t get() const { return made_.get(); }

 private:
  PrivatePool memory_{Device::cuda};  // handed to others, it is written after the graph's last run, in stream order
  std::unique_ptr<CUgraphExec_st, DestroyExec> made_;
};

bool capturing() { return capturing_now; }

std::shared_ptr<Graph> record(const std::function<void()>& f, std::string& why) {
  if (capturing()) return why = "it is recorded as a part of another CUDA graph", nullptr;
  auto graph = std::make_shared<Graph>();
  cudaGraph_t nodes = nullptr;
  cudaError_t status = cudaSuccess;
  try {
    Capture capture(graph->memory());
    f();
    status = capture.end(nodes);
  } catch (const std::exception& e) {
    why = e.what();
  }
  const Recorded recorded(nodes);
  if (why.empty() && status == cudaSuccess) status = graph->make(recorded.get());
  if (why.empty() && status != cudaSuccess) why = cudaGetErrorString(status);
  return why.empty() ? graph : nullptr;
}

void replay(const Graph& graph) { check(cudaGraphLaunch(graph.get(), compute_stream()), "a CUDA graph"); }

}  // namespace adder
