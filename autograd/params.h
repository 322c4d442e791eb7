// Params: where a parameter gets its name, initial value, sharding, optimizer group and memory, once, where it is made.
//
//   Params params(Device::cpu, {.seed = 1});
//   Tensor w = (params / "block" / 3).create("weight", {out, in}, init::uniform(bound), {.shard_axis = 0});
//
// Params is a scope (a path) over a shared arena. The arena holds tensors in creation order in large blocks; a gradient
// block mirrors each, so that an optimizer or a reduction runs over few flat ranges. Nothing moves later.
// Initial values are computed on the host in f64 from (seed, name, global element index) and rounded once: the same on
// every device and under every sharding.
//
// In a bf16 run the f32 master stays the parameter. A weight of a matrix product (options.product) has a rounded copy,
// which is what create() returns and products read; its gradient is collected in f32, in the place of the master's. All
// other parameters are read as they are. Whoever writes masters calls round(); an optimizer writes both.
#pragma once

#include "adder/core/random.h"
#include "adder/core/tensor.h"

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace adder {

/// The initial value of the element with a global row-major index.
using Init = std::function<double(const Random& random, uint64_t index)>;

namespace init {
Init constant(double value);
Init uniform(double low, double high);
Init normal(double deviation);
}  // namespace init

struct ParamOptions {
  bool decay = true;      // weight decay applies
  double lr_scale = 1;    // its learning rate over the schedule's
  bool product = false;   // the weight of a matrix product: in a bf16 run a rounded copy is read
  int shard_axis = -1;    // the axis that tensor parallelism cuts; -1: every rank holds all of it
  int64_t replicas = 1;   // neighbouring ranks that hold the same part of the shard axis; their gradients are summed
};

/// A logical tensor: what checkpoints, exports and logs name.
struct Param {
  std::string name;     // "block/3/mixer/in_proj/x"
  Shape shape;          // of the whole tensor over all ranks
  int64_t offset;       // where this rank's part begins on the shard axis
  Tensor value;         // this rank's part: the f32 (or f64) master
  Tensor gradient;      // mirrors it; stale until the first backward after clear_gradients()
  ParamOptions options;
  Tensor tensor;        // what create() returned: the leaf that the part belongs to, of the master or of its rounded
                        // copy; gradient(tensor) undefined: none arrived
};

/// A flat range of parameters and their gradients; the gaps between tensors are zero in all.
struct ParamBlock {
  Tensor values, gradients;  // [capacity]
  Tensor rounded;            // bf16 [capacity]: the values, rounded; undefined unless the run computes in bf16
  int64_t used = 0;          // elements in use, from the front
  int64_t capacity = 0;      // elements
};

class Params {
 public:
  struct Options {
    uint64_t seed = 1;
    DType dtype = DType::f32;  // of the masters; f64: a run in double precision, the oracle
    std::optional<DType> compute = {};  // what products read: bf16 with f32 masters, else (and by default) the dtype
    int64_t shard = 0;         // this rank among `shards` along the shard axes
    int64_t shards = 1;
    bool sizes_only = false;   // nothing is allocated: every parameter is undefined, and all() is empty; what count()
                               // and blocks() say of sizes is true
  };
  explicit Params(Device device, const Options& options = {1, DType::f32, {}, 0, 1, false});

  /// The scope of that name below this one.
  Params operator/(std::string_view name) const;
  Params operator/(int64_t index) const;
  const std::string& path() const { return path_; }

  /// For whoever is about to create many parameters: `model` creates them first on a scope that only counts (as with
  /// sizes_only). Their blocks then end where a tensor ends; of others what is too small for the next tensor is unused.
  void make_room(const std::function<void(Params)>& model);

  /// A parameter named path/name; throws if the name is taken. The tensor returned is a leaf on the tape.
  Tensor create(std::string_view name, const Shape& shape, const Init& init, const ParamOptions& options = {});

  /// A named part of a packed parameter: `rows` rows over all ranks.
  struct Part {
    std::string name;
    int64_t rows;
    Init init;
    ParamOptions options = {};
  };
  /// One matrix [sum of this rank's rows, columns] (columns 0: a vector) whose parts, adjacent rows, are logical
  /// tensors named path/name/part, each with its own initial values, sharding and decay; all are products or none is.
  Tensor create_packed(std::string_view name, int64_t columns, const std::vector<Part>& parts);

  // The whole arena, whatever the scope.
  const std::deque<Param>& all() const;
  std::span<const ParamBlock> blocks() const;
  int64_t count() const;  // elements of all logical tensors on this rank
  uint64_t seed() const;
  DType dtype() const;
  DType compute() const;
  Device device() const;
  /// The master of a tensor that create() or create_packed() returned, or of rows of it, off the tape: itself, unless
  /// it is a copy. Throws if the tensor belongs to another arena.
  Tensor master(const Tensor& tensor) const;
  /// Makes the rounded copies anew, after masters were written.
  void round() const;
  /// The next backward overwrites every gradient.
  void clear_gradients() const;
  /// Makes every gradient valid: zero where none arrived since the last clear.
  void settle_gradients() const;

 private:
  struct Arena;
  Params(std::shared_ptr<Arena> arena, std::string path) : arena_(std::move(arena)), path_(std::move(path)) {}
  std::string join(std::string_view name) const;

  std::shared_ptr<Arena> arena_;
  std::string path_;
};

}  // namespace adder
