// accuracy: every output and gradient of the operators on the GPU beside f64 on the CPU, as a table.
#include "adder/bench/accuracy_subjects.h"
#include "adder/core/bf16.h"
#include "adder/core/error.h"
#include "adder/distributed/run.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>

using namespace adder;
using namespace adder::accuracy;

namespace {

struct Options {
  std::string filter;
};

Flags flags(Options& o) {
  Flags flags("Runs operators on the GPU, in bf16 or with --dtype f32, and in f64 on the CPU on the same rounded "
              "numbers, and prints the relative RMS error of every output and gradient beside e0, what rounding inputs "
              "and results costs f64. Fails if an error exceeds its gate, the larger of 5e-3 and e0.",
              "./adder bench accuracy --filter Ssd");
  flags.group("Benchmark");
  flags.add("filter", o.filter, "only operators whose line has this in its name");
  return flags;
}

// What a number is after it was stored in a dtype.
double stored(double x, DType type) {
  if (type == DType::f64) return x;
  const auto single = static_cast<float>(x);
  return type == DType::f32 ? single : to_float(to_bf16(single));
}

// Elements [first, first + count) of the stream of that name: in f64, as a dtype holds them; or i32.
Tensor numbers(const std::string& name, const Init& init, const Shape& shape, int64_t first, DType type) {
  const Random random(1, name);
  const Tensor t(shape, type == DType::i32 ? type : DType::f64);
  const auto at = [&](int64_t i) { return init(random, static_cast<uint64_t>(first + i)); };
#pragma omp parallel for
  for (int64_t i = 0; i < t.count(); ++i) {
    if (type == DType::i32) t.data<int32_t>()[i] = static_cast<int32_t>(at(i));
    else t.data<double>()[i] = stored(at(i), type);
  }
  return t;
}

// Sums of squares over all rows.
struct Sums {
  double wrong = 0, exact = 0, rounding = 0, ideal = 0;

  // `type`: what the GPU's result is stored in.
  void add(const Tensor& got, const Tensor& expected, const Tensor& unrounded) {
    const DType type = got.dtype();
    const Tensor here = to_device(got, Device::cpu), wide = to(here, DType::f64);
    const double *g = wide.data<double>(), *e = expected.data<double>(), *u = unrounded.data<double>();
    double w = 0, x = 0, r = 0, d = 0;
#pragma omp parallel for reduction(+ : w, x, r, d)
    for (int64_t i = 0; i < wide.count(); ++i) {
      const double rounded = stored(e[i], type) - u[i];
      w += (g[i] - e[i]) * (g[i] - e[i]);
      x += e[i] * e[i];
      r += rounded * rounded;
      d += u[i] * u[i];
    }
    wrong += w, exact += x, rounding += r, ideal += d;
  }
  double error() const { return std::sqrt(exact > 0 ? wrong / exact : wrong); }
  double e0() const { return std::sqrt(ideal > 0 ? rounding / ideal : rounding); }
  double of_gate() const { return error() / std::max(5e-3, e0()); }
};

// The operator on the GPU or, `place` being the CPU, in f64.
class Side {
 public:
  // `rounded`: f64 gets what the dtypes of the GPU can hold.
  Side(const Subject& subject, DType flow, Device place, bool rounded)
      : subject_(subject), flow_(flow), place_(place), rounded_(rounded) {
    for (const Input& in : subject.inputs)
      if (!in.by_row()) shared_[in.name] = leaf_of(in, numbers(in.name, in.init, in.shape, 0, held(in)));
  }

  // Outputs and gradients of rows [first, last). Gradients of what the rows share add up in gradients().
  // `dtypes` are those of the GPU's outputs; empty: these are they.
  Named run(int64_t first, int64_t last, const std::vector<DType>& dtypes) const {
    Named t = shared_;
    for (const Input& in : subject_.inputs) {
      if (!in.by_row()) continue;
      const bool exact = place_ == Device::cpu && in.kind != Kind::index;
      const Tensor x(in.shape.with(0, last - first), exact ? DType::f64 : held(in), place_);
      rows(in.name, in.init, x, first, held(in));
      t[in.name] = in.kind == Kind::index ? x : leaf(x);
    }
    const std::vector<Tensor> y = subject_.f(t);
    std::vector<Tensor> dy;
    Named results;
    for (size_t i = 0; i < y.size(); ++i) {
      const DType type = !rounded_ ? DType::f64 : dtypes.empty() ? y[i].dtype() : dtypes[i];
      const std::string name = "d" + subject_.outputs[i];
      dy.push_back(rows(name, init::normal(1), Tensor(y[i].shape(), y[i].dtype(), place_), first, type));
      results[subject_.outputs[i]] = y[i].detach();
    }
    backward(y, dy);
    for (const Input& in : subject_.inputs)
      if (in.by_row() && in.kind != Kind::index)
        if (const Tensor g = gradient(t[in.name])) results["d" + in.name] = g;
    return results;
  }

  Named gradients() const {
    Named result;
    for (const auto& [name, t] : shared_) result["d" + name] = gradient(t);
    return result;
  }

 private:
  DType held(const Input& in) const {
    if (in.kind == Kind::index) return DType::i32;
    if (!rounded_) return DType::f64;
    return in.kind == Kind::flow || in.kind == Kind::weight ? flow_ : DType::f32;
  }
  Tensor leaf_of(const Input& in, const Tensor& value) const {
    if (place_ == Device::cpu) return leaf(value);
    return leaf(to_device(to(value, held(in)), place_), zeros(in.shape, DType::f32, place_));
  }

  // Fills `to` with rows of a stream, from row `first` on, one by one, so that the host never holds all of them.
  static Tensor rows(const std::string& name, const Init& init, const Tensor& to, int64_t first, DType type) {
    const int64_t row = to.count() / to.size(0);
    for (int64_t r = 0; r < to.size(0); ++r)
      copy(numbers(name, init, to.shape().with(0, 1), (first + r) * row, type), to.slice_first(r, r + 1));
    return to;
  }

  const Subject& subject_;
  DType flow_;
  Device place_;
  bool rounded_;
  Named shared_;
};

std::map<std::string, Sums> measure(const Subject& subject, DType flow) {
  Named got, shared;
  std::vector<DType> dtypes;
  {
    const Side gpu(subject, flow, Device::cuda, true);
    got = gpu.run(0, subject.rows, {});
    shared = gpu.gradients();
    for (const std::string& name : subject.outputs) dtypes.push_back(got[name].dtype());
  }
  std::map<std::string, Sums> sums;
  const Side exact(subject, flow, Device::cpu, true), ideal(subject, flow, Device::cpu, false);
  for (int64_t r = 0; r < subject.rows; ++r) {
    const Named expected = exact.run(r, r + 1, dtypes), unrounded = ideal.run(r, r + 1, dtypes);
    for (const auto& [name, t] : got) sums[name].add(t.slice_first(r, r + 1), expected.at(name), unrounded.at(name));
  }
  const Named expected = exact.gradients(), unrounded = ideal.gradients();
  for (const auto& [name, t] : shared) sums[name].add(t, expected.at(name), unrounded.at(name));
  return sums;
}

// What the lines of one operator have between them: outputs, then gradients.
std::vector<std::string> columns_of(const std::vector<Subject>& all, const std::string& op) {
  std::vector<std::string> outputs, gradients;
  const auto add = [](std::vector<std::string>& to, const std::string& name) {
    if (std::ranges::find(to, name) == to.end()) to.push_back(name);
  };
  for (const Subject& s : all) {
    if (s.op != op) continue;
    for (const std::string& name : s.outputs) add(outputs, name);
    for (const Input& in : s.inputs)
      if (in.kind != Kind::index && op != "AdamW") add(gradients, "d" + in.name);
  }
  outputs.insert(outputs.end(), gradients.begin(), gradients.end());
  return outputs;
}

// One line of the table; whether all of it is below the gate.
bool line(const Subject& subject, const std::vector<std::string>& columns, const std::map<std::string, Sums>& sums) {
  std::string most;
  double worst = -1;
  fmt::print("| {} |", subject.size);
  for (const std::string& name : columns) {
    const auto at = sums.find(name);
    if (at == sums.end()) {
      fmt::print(" – |");
      continue;
    }
    const Sums& s = at->second;
    fmt::print(" {:.3g} / {:.3g} |", 1e3 * s.error(), 1e3 * s.e0());
    if (!(s.of_gate() <= worst)) worst = s.of_gate(), most = name;
  }
  fmt::print(" {:.2f} ({}) |\n", worst, most);
  std::fflush(stdout);
  return worst <= 1;
}

}  // namespace

int main(int argc, char** argv) try {
  Options o;
  const Run run(argc, argv, flags(o), {.alone = true});
  check(run.device() == Device::cuda, "bench accuracy: there is no GPU to compare with the CPU");
  fmt::print("{}, {} against f64 on the CPU: relative RMS error / e0, in thousandths\n", describe_gpu(),
             name(run.dtype()));
  const std::vector<Subject> all = subjects();
  std::string op;
  std::vector<std::string> columns, above;
  for (const Subject& subject : all) {
    if (subject.title().find(o.filter) == std::string::npos) continue;
    if (subject.op != op) {
      op = subject.op;
      columns = columns_of(all, op);
      fmt::print("\n| {} | {} | most of its gate |\n|{}\n", op, fmt::join(columns, " | "),
                 fmt::join(std::vector<std::string>(columns.size() + 2, "---|"), ""));
    }
    if (!line(subject, columns, measure(subject, run.dtype()))) above.push_back(subject.title());
    release_cached(Device::cuda);
    release_cached(Device::cpu);
  }
  check(!op.empty(), "bench accuracy: no operator has \"{}\" in its name", o.filter);
  check(above.empty(), "bench accuracy: above the gate: {}", fmt::join(above, "; "));
  fmt::print("\nall below the gate\n");
} catch (...) {
  return adder::exit_status();
}
