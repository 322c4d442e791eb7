#include "adder/optim/adamw.h"

#include "adder/core/error.h"
#include "adder/core/traced.h"
#include "adder/kernels/adamw.h"

#include <array>
#include <cmath>
#include <limits>
#include <utility>

namespace adder {
namespace {

// Where a view begins in the flat memory it belongs to, in elements.
int64_t offset_in(const Tensor& flat, const Tensor& view) {
  return (static_cast<const char*>(view.address()) - static_cast<const char*>(flat.address())) / size_of(flat.dtype());
}

Tensor control(const Tensor& controls, int64_t i) { return controls.slice_first(i, i + 1); }

}  // namespace

AdamW::AdamW(const Params& params, const Mesh& mesh, const AdamWOptions& options)
    : params_(params),
      mesh_(mesh),
      options_(options),
      controls_(zeros({AdamWControls::size}, DType::f64, params.device())) {
  check(0 <= options.beta1 && options.beta1 < 1 && 0 <= options.beta2 && options.beta2 < 1,
        "AdamW: beta1 {} and beta2 {} must lie in [0, 1)", options.beta1, options.beta2);
  check(options.eps > 0, "AdamW: eps {} must be positive", options.eps);
  check(options.weight_decay >= 0, "AdamW: weight decay {} is negative", options.weight_decay);
  check(mesh.tensor.size() == 1, "AdamW: the norm of gradients that lie on {} tensor-parallel ranks is not known to it",
        mesh.tensor.size());
  for (const ParamBlock& block : params.blocks()) {
    const Shape shape{block.used};
    blocks_.push_back({.exp_avg = zeros(shape, params.dtype(), params.device()),
                       .exp_avg_sq = zeros(shape, params.dtype(), params.device()), .ranges = {}});
  }
  // Parameters lie in the blocks in creation order. Neighbours that are updated alike are one range, which ends where
  // its successor begins: the gaps stay zero.
  std::vector<std::vector<AdamWRange>> ranges(blocks_.size());
  size_t block = 0;
  for (const Param& p : params.all()) {
    while (!p.value.same_storage(params.blocks()[block].values)) ++block;
    const int64_t begin = offset_in(params.blocks()[block].values, p.value), end = begin + p.value.count();
    const auto part = [&](const Tensor& flat) { return flat.slice_first(begin, end).reshape(p.value.shape()); };
    moments_.push_back({p.name, part(blocks_[block].exp_avg), part(blocks_[block].exp_avg_sq)});
    std::vector<AdamWRange>& here = ranges[block];
    const double decay = p.options.decay ? options.weight_decay : 0;
    if (!here.empty()) here.back().end = begin;
    if (!here.empty() && here.back().weight_decay == decay && here.back().lr_scale == p.options.lr_scale)
      here.back().end = end;
    else here.push_back({begin, end, decay, p.options.lr_scale});
  }
  for (size_t i = 0; i < blocks_.size(); ++i) blocks_[i].ranges = adamw_ranges(ranges[i], params.device());
}

AdamW::AdamW(const Params& params, const AdamWOptions& options) : AdamW(params, Mesh{}, options) {
  const int64_t processes = Communicator::world().size();
  check(processes == 1, "AdamW: no mesh was given, but the program has {} processes", processes);
}

void AdamW::sum_over_processes() const {
  for (const Communicator& group : {mesh_.data, mesh_.sequence})
    for (const ParamBlock& block : params_.blocks())
      if (group.size() > 1) group.all_reduce(block.gradients.slice_first(0, block.used));
}

Tensor AdamW::step(double learning_rate, const StepOptions& options) {
  prepare(learning_rate, options);
  const Tensor norm = update();
  watch();
  return norm;
}

void AdamW::prepare(double learning_rate, const StepOptions& options) const {
  check(params_.all().size() == moments_.size(), "AdamW: made for {} parameters, but now there are {}",
        moments_.size(), params_.all().size());
  check(std::isfinite(learning_rate) && learning_rate >= 0, "AdamW: learning rate {}", learning_rate);
  check(options.clip >= 0, "AdamW: gradients cannot be clipped to a norm of {}", options.clip);
  const double max_norm = options.clip > 0 ? options.clip : std::numeric_limits<double>::infinity();
  static_assert(AdamWControls::learning_rate == 0 && AdamWControls::max_norm == 1);
  copy(from_host({2}, std::array{learning_rate, max_norm}, DType::f64), controls_.slice_first(0, 2));
}

Tensor AdamW::update() {
  const Traced traced("optimizer");
  params_.settle_gradients();
  sum_over_processes();
  std::vector<Tensor> gradients;
  for (const ParamBlock& block : params_.blocks()) gradients.push_back(block.gradients.slice_first(0, block.used));
  on(params_.device(), [&](auto backend) {
    sum_of_squares(backend, gradients, control(controls_, AdamWControls::squares));
    adamw_controls(backend, controls_);
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const ParamBlock& block = params_.blocks()[i];
      adamw_update(backend, {.parameter = block.values.slice_first(0, block.used),
                             .gradient = gradients[i],
                             .exp_avg = blocks_[i].exp_avg,
                             .exp_avg_sq = blocks_[i].exp_avg_sq,
                             .rounded = block.rounded ? block.rounded.slice_first(0, block.used) : Tensor(),
                             .controls = controls_,
                             .ranges = blocks_[i].ranges,
                             .beta1 = options_.beta1,
                             .beta2 = options_.beta2,
                             .epsilon = options_.eps});
    }
  });
  params_.clear_gradients();
  return control(controls_, AdamWControls::norm);
}

void AdamW::watch() {
  in_a_row_before_ = std::exchange(in_a_row_, Later(control(controls_, AdamWControls::skipped_in_a_row)));
}

int64_t AdamW::bytes() const {
  int64_t sum = 0;
  for (const Block& block : blocks_) sum += 2 * block.exp_avg.count() * size_of(block.exp_avg.dtype());
  return sum;
}

Tensor AdamW::skipped() const { return control(controls_, AdamWControls::skipped); }

int64_t AdamW::skipped_in_a_row() const {
  // A row of them is waited for, a step after a good one is not.
  const bool exact = in_a_row_.here() || in_a_row_before_.value() > 0;
  return static_cast<int64_t>((exact ? in_a_row_ : in_a_row_before_).value());
}

AdamW::Counts AdamW::counts() const {
  const auto c = to_host(controls_);
  const auto count = [&](size_t i) { return static_cast<int64_t>(c[i]); };
  return {count(AdamWControls::applied), count(AdamWControls::skipped), count(AdamWControls::skipped_in_a_row)};
}

void AdamW::restore(const Counts& counts) {
  check(counts.applied >= 0 && counts.skipped >= counts.skipped_in_a_row && counts.skipped_in_a_row >= 0,
        "AdamW: {} steps applied, {} skipped, {} of them in a row", counts.applied, counts.skipped,
        counts.skipped_in_a_row);
  const std::array values{static_cast<double>(counts.applied), static_cast<double>(counts.skipped),
                          static_cast<double>(counts.skipped_in_a_row)};
  static_assert(AdamWControls::skipped_in_a_row == AdamWControls::applied + 2);
  copy(from_host({3}, values, DType::f64),
       controls_.slice_first(AdamWControls::applied, AdamWControls::skipped_in_a_row + 1));
  in_a_row_ = in_a_row_before_ = static_cast<double>(counts.skipped_in_a_row);
}

State AdamW::state() {
  State state{.name = "optimizer"};
  for (size_t i = 0; i < moments_.size(); ++i) {
    state.tensors.push_back(Piece::like(params_.all()[i], "exp_avg", moments_[i].exp_avg));
    state.tensors.push_back(Piece::like(params_.all()[i], "exp_avg_sq", moments_[i].exp_avg_sq));
  }
  state.save = [this] {
    const Counts c = counts();
    return Values{{"applied", c.applied}, {"skipped", c.skipped}, {"skipped_in_a_row", c.skipped_in_a_row}};
  };
  state.load = [this](const Values& v) {
    restore({.applied = value<int64_t>(v, "applied"), .skipped = value<int64_t>(v, "skipped"),
             .skipped_in_a_row = value<int64_t>(v, "skipped_in_a_row")});
  };
  return state;
}

}  // namespace adder
