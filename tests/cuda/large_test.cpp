// Tensors of more than 2^31 elements. The last of 257 batch rows lies beyond that and has the numbers of the first: so
// must its results be, bit for bit, because rows do not know of each other. What sums over rows has one upstream
// gradient, that of the first row and then that of the last, and must be the same but for the order of the sum.
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/accumulate.h"
#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/cross_entropy.h"
#include "adder/kernels/elementwise.h"
#include "adder/kernels/embedding.h"
#include "adder/kernels/gated_rms_norm.h"
#include "adder/kernels/matmul.h"
#include "adder/kernels/rms_norm.h"
#include "adder/kernels/ssd/ssd.h"
#include "adder/tests/places.h"

using namespace adder;

namespace {

constexpr Device cuda = Device::cuda;
constexpr int64_t batch = 257, last = batch - 1;
constexpr int64_t time_ = 8193, channels = 1024;  // 256 rows of them are more than 2^31

// The first row, and the last.
Tensor row(const Tensor& t, int64_t i) { return t.slice_first(i, i + 1); }

// Whether the GPU lacks the 64 GB that these tests may take: then they are skipped.
bool no_room() {
  if (no_gpu()) return true;
  release_cached(cuda);
  static const bool enough = [] {
    try {
      const Tensor all({16'000'000'000}, DType::f32, cuda);
    } catch (const Error&) {
      return false;
    }
    release_cached(cuda);
    return true;
  }();
  if (!enough) WARN("skipped: the GPU has less than 64 GB free");
  return !enough;
}

// Random numbers, a block of them again and again; the last row like the first.
Tensor noise(const Shape& shape, uint64_t seed, DType type = DType::bf16, double scale = 1, double mean = 0) {
  const Tensor t(shape, type, cuda), flat = t.reshape({t.count()});
  int64_t filled = std::min<int64_t>(t.count(), 1'000'003);
  copy(random_normal({filled}, seed, scale, mean, type), flat.slice_first(0, filled));
  for (int64_t n = 0; filled < t.count(); filled += n) {
    n = std::min(filled, t.count() - filled);
    copy(flat.slice_first(0, n), flat.slice_first(filled, filled + n));
  }
  if (shape[0] == batch) copy(row(t, 0), row(t, last));
  return t;
}

// Zero but for one row.
Tensor gradient_of_row(const Tensor& like, int64_t i, uint64_t seed) {
  const Tensor t = zeros(like.shape(), like.dtype(), cuda);
  copy(noise(like.shape().with(0, 1), seed, like.dtype()), row(t, i));
  return t;
}

struct Result {
  std::vector<Tensor> rows, shared;  // on the host: of one row; sums over rows
};

// f and its backward, from gradients of row i alone. The first `by_row` inputs have batch rows.
Result run(const TensorFunction& f, std::vector<Tensor> inputs, size_t by_row, int64_t i) {
  for (Tensor& t : inputs) t = leaf(t);
  std::vector<Tensor> y = f(inputs), dy;
  Result result;
  const auto keep = [&](const Tensor& t) { result.rows.push_back(to_device(row(t, i), Device::cpu)); };
  for (Tensor& t : y) {
    dy.push_back(gradient_of_row(t, i, 90 + dy.size()));
    keep(t.detach());
  }
  backward(y, dy);
  y.clear();
  for (size_t k = 0; k < inputs.size(); ++k) {
    if (k < by_row) keep(gradient(inputs[k]));
    else result.shared.push_back(to_device(gradient(inputs[k]), Device::cpu));
  }
  return result;
}

void check_last_row(const TensorFunction& f, const std::vector<Tensor>& inputs, size_t by_row) {
  const Result first = run(f, inputs, by_row, 0), end = run(f, inputs, by_row, last);
  for (size_t k = 0; k < first.rows.size(); ++k) {
    INFO("output or gradient " << k);
    CHECK(relative_rms(end.rows[k], first.rows[k]) == 0);  // infinite if anything is not finite
    CHECK(relative_rms(zeros(first.rows[k].shape()), first.rows[k]) == 1);  // and it is not nothing
  }
  for (size_t k = 0; k < first.shared.size(); ++k) {
    INFO("sum over rows " << k);
    CHECK(relative_rms(end.shared[k], first.shared[k]) < 1e-4);  // f32 sums of ten thousand numbers, in another order
    CHECK(relative_rms(zeros(first.shared[k].shape()), first.shared[k]) == 1);
  }
}

// x, dt, B, C, z are by row.
void check_ssd(int64_t time, int64_t heads, int64_t width, int64_t state, bool z) {
  std::vector<Tensor> inputs{noise({batch, time, heads, width}, 1), noise({batch, time, heads}, 2, DType::bf16, 1, -3),
                             noise({batch, time, 1, state}, 3), noise({batch, time, 1, state}, 4),
                             noise({heads}, 5, DType::f32, 0.5, 1), noise({heads}, 6, DType::f32)};
  if (z) inputs.insert(inputs.begin(), noise({batch, time, heads, width}, 7));
  const TensorFunction f = [&](std::span<const Tensor> t) {
    const auto own = t.subspan(z ? 1 : 0);
    return std::vector{apply(Ssd{.x = own[0], .dt = own[1], .A_log = own[4], .B = own[2], .C = own[3], .D = own[5],
                                 .z = z ? t[0] : Tensor(), .dt_bias = {}, .initial_state = {}, .document = {}})[0]};
  };
  check_last_row(f, inputs, inputs.size() - 2);
}

}  // namespace

TEST_CASE("large: SSD on tensor cores", "[gpu][large]") {
  if (no_room()) return;
  check_ssd(time_, 16, 64, 64, true);
}

TEST_CASE("large: SSD token by token", "[gpu][large]") {
  if (no_room()) return;
  check_ssd(65'537, 2, 64, 61, false);  // 61 states do not suit tensor cores
}

TEST_CASE("large: causal convolution, by walkers and plainly", "[gpu][large]") {
  if (no_room()) return;
  const int64_t n = GENERATE(1024, 1023);  // walkers take four channels at a time
  const int64_t time = n == channels ? time_ : 8209;  // 256 rows of either are more than 2^31
  const TensorFunction f = [](std::span<const Tensor> t) {
    return std::vector{apply(CausalConv1d{.x = t[0], .weight = t[1], .bias = t[2]})[0]};
  };
  check_last_row(f, {noise({batch, time, n}, 1), noise({n, 4}, 2, DType::f32, 0.5), noise({n}, 3, DType::f32)}, 1);
}

TEST_CASE("large: RmsNorm in the residual stream", "[gpu][large]") {
  if (no_room()) return;
  const Shape shape{batch, time_, channels};
  const std::vector<Tensor> inputs{noise(shape, 1), noise(shape, 2, DType::f32),
                                   noise({channels}, 3, DType::f32, 0.1, 1)};
  const Tensor alone = to_device(row(inputs[0], last), Device::cpu);
  const Tensor stream = to_device(row(inputs[1], last), Device::cpu);
  const TensorFunction f = [&](std::span<const Tensor> t) {
    const auto [y, s] = apply(RmsNorm{.x = t[0], .residual = t[1], .weight = t[2]});
    const Tensor sum = to(alone, DType::f32);
    accumulate(stream, sum);
    CHECK(relative_rms(to_device(row(s, last), Device::cpu), sum) == 0);  // one f32 addition, the same everywhere
    return std::vector{y};
  };
  check_last_row(f, inputs, 2);
}

TEST_CASE("large: gated RmsNorm", "[gpu][large]") {
  if (no_room()) return;
  const TensorFunction f = [](std::span<const Tensor> t) {
    return std::vector{apply(GatedRmsNorm{.y = t[0], .z = t[1], .weight = t[2]})};
  };
  const Shape shape{batch, time_, channels};
  check_last_row(f, {noise(shape, 1), noise(shape, 2), noise({channels}, 3, DType::f32, 0.1, 1)}, 2);
}

TEST_CASE("large: operators that work element by element", "[gpu][large]") {
  if (no_room()) return;
  const TensorFunction f = [](std::span<const Tensor> t) {
    const Tensor gated = apply(SiluMultiply{.y = t[0], .gate = t[1]});
    return std::vector{apply(Add{.a = gated, .b = t[0]})};  // whose gradient is added to that of t[0]
  };
  const Shape shape{batch, time_, channels};
  check_last_row(f, {noise(shape, 1), noise(shape, 2)}, 2);
}

TEST_CASE("large: copies with rows apart, conversions and sums in place", "[gpu][large]") {
  if (no_room()) return;
  const int64_t gap = GENERATE(3, 8);  // 8: rows are copied sixteen bytes at a time
  const Tensor x = noise({batch, time_, channels}, 1), sum = full(x.shape(), 1, DType::f32, cuda);
  const Tensor apart = zeros({batch, time_, gap + channels}, DType::bf16, cuda);
  const Tensor view = apart.slice_last(gap, gap + channels);
  accumulate(x, sum);
  copy(x, view);
  const Tensor wide = to(view, DType::f32), dense = contiguous(view);
  CHECK(bitwise_equal(row(dense, last), row(x, 0)));
  CHECK(bitwise_equal(to(row(wide, last), DType::bf16), row(x, 0)));
  CHECK(bitwise_equal(row(sum, last), row(sum, 0)));
  CHECK(max_difference(row(sum, last), row(wide, last)) <= 1.001);  // 1 and a rounding
  CHECK(bitwise_equal(row(apart.slice_last(gap - 1, gap), last), zeros({1, time_, 1}, DType::bf16)));
}

TEST_CASE("large: sums over rows", "[gpu][large]") {
  if (no_room()) return;
  const Tensor x = zeros({batch, time_, channels}, DType::bf16, cuda), own = noise({1, time_, channels}, 1);
  Tensor sums[2];
  for (const int64_t i : {int64_t{0}, last}) {
    fill(x, 0);
    copy(own, row(x, i));
    Tensor& to = sums[i == 0 ? 0 : 1] = Tensor({channels}, DType::f32, cuda);
    sum_rows(Cuda{compute_stream()}, x, to, false);
  }
  CHECK(relative_rms(zeros({channels}), sums[0]) == 1);
  CHECK(relative_rms(sums[1], sums[0]) < 1e-5);  // eight thousand numbers in f32, cut elsewhere
}

TEST_CASE("large: an embedding", "[gpu][large]") {
  if (no_room()) return;
  constexpr int64_t vocabulary = 5000;
  const Tensor host({batch, time_}, DType::i32);
  for (int64_t i = 0; i < host.count(); ++i)
    host.data<int32_t>()[i] = static_cast<int32_t>(i % time_ * 7919 % vocabulary * (i / time_ % last + 1) % vocabulary);
  const Tensor tokens = to_device(host, cuda), weight = noise({vocabulary, channels}, 1);
  Result results[2];
  for (const int64_t i : {int64_t{0}, last}) {
    const Tensor table = leaf(weight, zeros(weight.shape(), DType::f32, cuda));
    const Tensor y = apply(Embedding{.tokens = tokens, .weight = table});
    Result& result = results[i == 0 ? 0 : 1];
    result.rows.push_back(to_device(row(y.detach(), i), Device::cpu));
    const Tensor dy = gradient_of_row(y, i, 2);
    backward({&y, 1}, {&dy, 1});
    result.shared.push_back(to_device(gradient(table), Device::cpu));
  }
  CHECK(relative_rms(results[1].rows[0], results[0].rows[0]) == 0);
  CHECK(relative_rms(results[1].shared[0], results[0].shared[0]) < 1e-6);  // one or two numbers, and zeros
}

TEST_CASE("large: cross-entropy with the logits of one large chunk", "[gpu][large]") {
  if (no_room()) return;
  constexpr int64_t vocabulary = 50'288, own = 167, d = 64;  // 256 rows of 167 tokens are more than 2^31 logits
  const Tensor x = noise({batch, own, d}, 1), weight = noise({vocabulary, d}, 2, DType::bf16, 0.1);
  Result results[2];
  for (const int64_t i : {int64_t{0}, last}) {
    const Tensor host = full({batch, own}, not_counted, DType::i32);
    for (int64_t t = 0; t < own; ++t) host.data<int32_t>()[i * own + t] = static_cast<int32_t>(t * 301);
    const Tensor targets = to_device(host, cuda), input = leaf(x);
    const Tensor table = leaf(weight, zeros(weight.shape(), DType::f32, cuda));
    Result& result = results[i == 0 ? 0 : 1];
    const Tensor loss = backward(apply(LinearCrossEntropy{.x = input, .weight = table, .targets = targets,
                                                          .chunk = batch * own}));
    result.rows = {to_device(row(gradient(input), i), Device::cpu), to_device(loss, Device::cpu)};
    result.shared = {to_device(gradient(table), Device::cpu)};
  }
  // A product may cut the sums of its tiles elsewhere: f32, and of dx rounded to bf16.
  CHECK(relative_rms(zeros({1, own, d}), results[0].rows[0]) == 1);
  CHECK(relative_rms(results[1].rows[0], results[0].rows[0]) < 1e-3);
  CHECK(relative_rms(results[1].rows[1], results[0].rows[1]) < 1e-6);
  CHECK(relative_rms(results[1].shared[0], results[0].shared[0]) < 1e-4);
}
