// Tensors on the GPU: copies in every direction, and their memory.
#include "adder/core/tensor.h"

#include "adder/autograd/gradient_check.h"
#include "adder/core/error.h"
#include "adder/tests/places.h"

using namespace adder;

namespace {

constexpr Device cpu = Device::cpu, cuda = Device::cuda;

// A view of `shape` whose rows lie 3 elements further apart than they are long, 2 from the start.
Tensor apart(Shape shape, DType type, Device device) {
  return full(shape.with(-1, shape[-1] + 3), -7, type, device).slice_last(2, 2 + shape[-1]);
}

}  // namespace

TEST_CASE("cuda tensor: a copy to the GPU and back gives the same bits, rows apart or not", "[gpu][small]") {
  if (no_gpu()) return;
  const auto shape =
      GENERATE(Shape{1}, Shape{5, 7}, Shape{3, 2, 64}, Shape{2, 700'001});  // rows beyond a staging block
  const DType type = GENERATE(DType::f32, DType::f64, DType::bf16, DType::i32);
  const Tensor x = to(random_normal(shape, 1, 1000), type);
  CHECK(bitwise_equal(to_device(to_device(x, cuda), cpu), x));
  const Tensor host = apart(shape, type, cpu), a = apart(shape, type, cuda), b = apart(shape, type, cuda);
  copy(x, host);
  copy(host, a);
  copy(a, b);
  const Tensor back = apart(shape, type, cpu);
  copy(b, back);
  CHECK(bitwise_equal(back, x));
  const Tensor dense = clone(b);
  CHECK(dense.contiguous());
  CHECK(bitwise_equal(dense, x));
}

TEST_CASE("cuda tensor: what lies between the rows is left alone", "[gpu][small]") {
  if (no_gpu()) return;
  const int64_t n = GENERATE(3, 8);
  const Tensor whole = full({4, 16}, -7, DType::f32, cuda), expected = full({4, 16}, -7);
  for (const Tensor& t : {whole, expected}) {
    fill(t.slice_last(4, 4 + n), 5);
    copy(to_device(full({2, n}, 6), t.device()), t.slice_first(1, 3).slice_last(4, 4 + n));
  }
  CHECK(bitwise_equal(whole, expected));
}

TEST_CASE("cuda tensor: conversions round as the CPU does", "[gpu][small]") {
  if (no_gpu()) return;
  const DType from = GENERATE(DType::f32, DType::f64, DType::bf16, DType::i32);
  const DType type = GENERATE(DType::f32, DType::f64, DType::bf16, DType::i32);
  const Tensor x = to(random_normal({3, 1001}, 1, 1000), from);
  CHECK(bitwise_equal(to(to_device(x, cuda), type), to(x, type)));
  const Tensor there({3, 1001}, type, cuda), here({3, 1001}, type);
  copy(x, there);  // from device to device and from dtype to dtype at once
  copy(to_device(x, cuda), here);
  CHECK(bitwise_equal(there, to(x, type)));
  CHECK(bitwise_equal(here, to(x, type)));
}

TEST_CASE("cuda tensor: a value, a fill, an empty tensor", "[gpu][small]") {
  if (no_gpu()) return;
  CHECK(item(full({1}, 2.5, DType::bf16, cuda)) == 2.5);
  CHECK(to_host(full({3}, -1, DType::i32, cuda)) == std::vector<double>{-1, -1, -1});
  CHECK(to_host(zeros({0, 4}, DType::f32, cuda)).empty());
  CHECK(bitwise_equal(from_host({2}, std::vector<int32_t>{3, 4}, cuda), from_host({2}, std::vector<int32_t>{3, 4})));
}

TEST_CASE("cuda tensor: many uploads under way keep their numbers", "[gpu][small]") {
  if (no_gpu()) return;
  std::vector<Tensor> there;
  for (int i = 0; i < 200; ++i) there.push_back(full({1}, i, DType::f32, cpu));
  for (Tensor& t : there) t = to_device(t, cuda);  // more than there are staging blocks
  for (int i = 0; i < 200; ++i) CHECK(item(there[static_cast<size_t>(i)]) == i);
}

TEST_CASE("cuda tensor: memory goes back to the pool and is handed out again", "[gpu][small]") {
  if (no_gpu()) return;
  const int64_t before = memory_use(cuda).in_use;
  const void* address = nullptr;
  {
    const Tensor t({1000, 1000}, DType::f32, cuda);
    address = t.address();
    CHECK(memory_use(cuda).in_use - before >= 4'000'000);
    CHECK(memory_use(cuda).peak >= memory_use(cuda).in_use);
  }
  CHECK(memory_use(cuda).in_use == before);
  CHECK(Tensor({1000, 1000}, DType::f32, cuda).address() == address);
  release_cached(cuda);
  CHECK(memory_use(cuda).reserved < before + 4'000'000);
  CHECK_THROWS_WITH(Tensor({int64_t{1} << 44}, DType::f32, cuda), ContainsSubstring("out of memory"));
  CHECK(item(full({1}, 3, DType::f32, cuda)) == 3);  // and nothing else is hurt
}

TEST_CASE("cuda tensor: a tensor of more than 2^31 elements is filled, copied and converted to its end", "[gpu]") {
  if (no_gpu()) return;
  const int64_t rows = (int64_t{1} << 21) + 3, n = 1024 + 5;
  const Tensor t = full({rows, n}, 2, DType::bf16, cuda);
  const Tensor end = t.slice_first(rows - 1, rows), view = t.slice_last(1, n);
  fill(end, 3);
  const Tensor moved = contiguous(view);
  CHECK(to_host(moved.slice_first(rows - 2, rows)).front() == 2);
  CHECK(to_host(moved.slice_first(rows - 2, rows)).back() == 3);
  release_cached(cuda);
}
