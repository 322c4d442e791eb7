#include "adder/autograd/params.h"

#include "adder/autograd/tape.h"
#include "adder/core/error.h"

#include <algorithm>
#include <unordered_set>

namespace adder {

namespace init {
Init constant(double value) {
  return [=](const Random&, uint64_t) { return value; };
}
Init uniform(double low, double high) {
  return [=](const Random& random, uint64_t i) { return low + (high - low) * random.uniform(i); };
}
Init normal(double deviation) {
  return [=](const Random& random, uint64_t i) { return deviation * random.normal(i); };
}
}  // namespace init

namespace {
constexpr int64_t block_bytes = int64_t{64} << 20;
// Every tensor starts on a cache line.
int64_t aligned(int64_t elements) { return (elements + 63) / 64 * 64; }
}  // namespace

struct Params::Arena {
  Device device;
  Options options;
  std::deque<Param> params;  // a deque: pointers to entries stay valid
  std::vector<ParamBlock> blocks;
  std::unordered_set<std::string> names;
  std::vector<Tensor> leaves;
  int64_t count = 0;  // elements
  bool plans = false;           // blocks end after the tensor that fills them: for make_room()
  std::deque<int64_t> planned;  // capacities of the next blocks, if they are known

  int64_t block_elements() const { return block_bytes / size_of(options.dtype); }
  ParamBlock& begin_block(int64_t least);
  /// Where the next tensor goes.
  ParamBlock& block_for(int64_t elements);

  using Flat = Tensor ParamBlock::*;
  /// What lies in `to` where the contiguous view lies in `from`; undefined if it lies elsewhere.
  Tensor counterpart(const Tensor& view, Flat from, Flat to) const {
    for (const ParamBlock& block : blocks) {
      const Tensor& flat = block.*from;
      if (!flat || !view.same_storage(flat)) continue;
      const int64_t begin = (static_cast<const char*>(view.address()) - static_cast<const char*>(flat.address())) /
                            size_of(flat.dtype());
      return (block.*to).slice_first(begin, begin + view.count()).reshape(view.shape());
    }
    return {};
  }
};

ParamBlock& Params::Arena::begin_block(int64_t least) {
  int64_t capacity = std::max(aligned(least), block_elements());
  if (!planned.empty()) {
    capacity = std::max(capacity, planned.front());
    planned.pop_front();
  }
  const auto flat = [&](DType type) { return options.sizes_only ? Tensor() : zeros({capacity}, type, device); };
  const DType compute = options.compute.value_or(options.dtype);
  blocks.push_back({.values = flat(options.dtype), .gradients = flat(options.dtype),
                    .rounded = compute != options.dtype ? flat(compute) : Tensor(), .used = 0, .capacity = capacity});
  return blocks.back();
}

ParamBlock& Params::Arena::block_for(int64_t elements) {
  if (blocks.empty()) return begin_block(elements);
  ParamBlock& last = blocks.back();
  const int64_t end = aligned(last.used + elements);
  if (plans && last.used < block_elements()) last.capacity = std::max(last.capacity, end);
  return end > last.capacity ? begin_block(elements) : last;
}

namespace {

// The part of `size` indices along the shard axis that this rank holds.
struct Range {
  int64_t begin, end;
};

Range part_of(const std::string& name, int64_t size, const ParamOptions& o, int64_t shard, int64_t shards) {
  if (o.shard_axis < 0) return {0, size};
  check(o.replicas >= 1 && shards % o.replicas == 0, "{}: {} replicas on {} ranks", name, o.replicas, shards);
  const int64_t pieces = shards / o.replicas, piece = shard / o.replicas;
  check(size % pieces == 0, "{}: {} rows cannot be cut into {} equal parts", name, size, pieces);
  return {size / pieces * piece, size / pieces * (piece + 1)};
}

// Fills this rank's part (range of the shard axis), on the host, with the initial values of the whole tensor.
void initialise_on_host(const Tensor& value, const Shape& whole, int axis, const Range& range, const Init& init,
                const Random& random) {
  const int64_t inner = axis < 0 ? whole.count() : whole.count(axis + 1, whole.rank());
  const int64_t outer = axis < 0 ? 1 : whole.count(0, axis), size = axis < 0 ? 1 : whole[axis];
  const int64_t begin = axis < 0 ? 0 : range.begin, length = axis < 0 ? 1 : range.end - range.begin;
  with_float("Params", value.dtype(), [&]<class T>(T) {
    T* data = value.data<T>();
#pragma omp parallel for collapse(2)
    for (int64_t o = 0; o < outer; ++o)
      for (int64_t i = 0; i < length * inner; ++i)
        data[o * length * inner + i] =
            static_cast<T>(init(random, static_cast<uint64_t>((o * size + begin) * inner + i)));
  });
}

void initialise(const Tensor& value, const Shape& whole, int axis, const Range& range, const Init& init,
                const Random& random) {
  const Tensor host = value.device() == Device::cpu ? value : Tensor(value.shape(), value.dtype());
  initialise_on_host(host, whole, axis, range, init, random);
  if (value.device() != Device::cpu) copy(host, value);
}

}  // namespace

Params::Params(Device device, const Options& options) : arena_(std::make_shared<Arena>()) {
  check(options.shards >= 1 && options.shard >= 0 && options.shard < options.shards, "Params: shard {} of {}",
        options.shard, options.shards);
  const DType compute = options.compute.value_or(options.dtype);
  check(compute == options.dtype || (compute == DType::bf16 && options.dtype == DType::f32),
        "Params: masters in {} cannot be computed with in {}", name(options.dtype), name(compute));
  arena_->device = device;
  arena_->options = options;
}

std::string Params::join(std::string_view name) const {
  check(!name.empty() && name.find('/') == std::string_view::npos, "Params: \"{}\" is not a name", name);
  return path_.empty() ? std::string(name) : path_ + "/" + std::string(name);
}

Params Params::operator/(std::string_view name) const { return {arena_, join(name)}; }
Params Params::operator/(int64_t index) const { return {arena_, join(std::to_string(index))}; }

void Params::make_room(const std::function<void(Params)>& model) {
  if (arena_->plans) return;  // this is that model
  const auto plan = std::make_shared<Arena>(Arena{.device = device(), .options = arena_->options, .plans = true});
  plan->options.sizes_only = true;
  model(Params(plan, path_));
  std::deque<int64_t> sizes;
  int64_t all = 0;
  for (const ParamBlock& block : plan->blocks) {
    all += block.used;
    // What is left for a last block, if that is little, belongs to the one before.
    if (block.used < arena_->block_elements() && !sizes.empty()) sizes.back() += block.used;
    else sizes.push_back(block.used);
  }
  const std::vector<ParamBlock>& blocks = arena_->blocks;
  if (sizes.empty() || (!blocks.empty() && blocks.back().used + all <= blocks.back().capacity)) return;
  arena_->planned = std::move(sizes);
  arena_->begin_block(0);
}

Tensor Params::create(std::string_view name, const Shape& shape, const Init& init, const ParamOptions& options) {
  check(static_cast<bool>(init), "{}: no initial value", join(name));
  check(options.shard_axis < shape.rank(), "{}: shard axis {} of {}", join(name), options.shard_axis, to_string(shape));
  Arena& arena = *arena_;
  const std::string full_name = join(name);
  check(arena.names.insert(full_name).second, "Params: the name {} is taken", full_name);
  const int axis = options.shard_axis;
  const Range range =
      part_of(full_name, axis < 0 ? 0 : shape[axis], options, arena.options.shard, arena.options.shards);
  const Shape local = axis < 0 ? shape : shape.with(axis, range.end - range.begin);

  const bool has_copies = compute() != dtype();
  ParamBlock& block = arena.block_for(local.count());
  const int64_t begin = block.used, end = begin + local.count();
  block.used = aligned(end);
  arena.count += local.count();
  if (arena.options.sizes_only) return {};
  const auto part = [&](const Tensor& whole) { return whole.slice_first(begin, end).reshape(local); };
  const Tensor value = part(block.values), gradient = part(block.gradients);

  initialise(value, shape, axis, range, init, Random(seed(), full_name));
  if (has_copies) copy(value, part(block.rounded));
  const Tensor result = leaf(has_copies && options.product ? part(block.rounded) : value, gradient);
  arena.leaves.push_back(result);
  arena.params.push_back({full_name, shape, axis < 0 ? 0 : range.begin, value, gradient, options, result});
  return result;
}

Tensor Params::create_packed(std::string_view name, int64_t columns, const std::vector<Part>& parts) {
  Arena& arena = *arena_;
  const Params inner = *this / name;
  std::vector<Range> ranges;
  int64_t rows = 0;
  const bool product = !parts.empty() && parts[0].options.product;
  for (const Part& part : parts) {
    check(static_cast<bool>(part.init), "{}: no initial value", inner.join(part.name));
    check(part.options.product == product, "{}: some parts are weights of a product, and some are not", inner.path());
    check(part.options.shard_axis <= 0, "{}: a packed part is cut by rows or not at all", inner.join(part.name));
    ranges.push_back(
        part_of(inner.join(part.name), part.rows, part.options, arena.options.shard, arena.options.shards));
    rows += ranges.back().end - ranges.back().begin;
  }
  const auto shape = [&](int64_t n) { return columns > 0 ? Shape{n, columns} : Shape{n}; };
  // The storage is one tensor; its entry is then replaced by the entries of the parts.
  const Tensor packed = Params(arena_, path_).create(name, shape(rows), init::constant(0), {.product = product});
  if (arena.options.sizes_only) return packed;
  const Param whole = std::move(arena.params.back());
  arena.params.pop_back();
  int64_t begin = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const int64_t length = ranges[i].end - ranges[i].begin;
    const std::string part_name = inner.join(part.name);
    check(arena.names.insert(part_name).second, "Params: the name {} is taken", part_name);
    const Tensor value = whole.value.slice_first(begin, begin + length);
    initialise(value, shape(part.rows), 0, ranges[i], part.init, Random(seed(), part_name));
    arena.params.push_back({part_name, shape(part.rows), ranges[i].begin, value,
                            whole.gradient.slice_first(begin, begin + length), part.options, packed});
    begin += length;
  }
  if (compute() != dtype())
    copy(whole.value, arena.counterpart(whole.value, &ParamBlock::values, &ParamBlock::rounded));
  return packed;
}

const std::deque<Param>& Params::all() const { return arena_->params; }
std::span<const ParamBlock> Params::blocks() const { return arena_->blocks; }
uint64_t Params::seed() const { return arena_->options.seed; }
DType Params::dtype() const { return arena_->options.dtype; }
DType Params::compute() const { return arena_->options.compute.value_or(dtype()); }
Device Params::device() const { return arena_->device; }

int64_t Params::count() const { return arena_->count; }

Tensor Params::master(const Tensor& tensor) const {
  check(tensor.contiguous(), "Params: {} is no whole parameter and no rows of one", to_string(tensor.shape()));
  for (const Arena::Flat from : {&ParamBlock::values, &ParamBlock::rounded})
    if (const Tensor master = arena_->counterpart(tensor, from, &ParamBlock::values)) return master;
  fail("Params: {} {} is no parameter of this model", name(tensor.dtype()), to_string(tensor.shape()));
}

void Params::round() const {
  for (const ParamBlock& block : blocks())
    if (block.rounded) copy(block.values.slice_first(0, block.used), block.rounded.slice_first(0, block.used));
}

void Params::clear_gradients() const {
  for (const Tensor& t : arena_->leaves) clear_gradient(t);
}

void Params::settle_gradients() const {
  for (const Param& p : all())
    if (!gradient(p.tensor)) fill(p.gradient, 0);
}

}  // namespace adder
