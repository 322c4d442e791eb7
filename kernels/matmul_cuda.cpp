// Products: those of few rows by a kernel of ours, the others through cuBLASLt.
// Floor: 2 m n k FLOPs at tensor core speed, or the operands' bytes at memory speed.
#include "adder/kernels/matmul.h"

#include "adder/core/cuda.cuh"
#include "adder/core/error.h"
#include "adder/kernels/matmul_few_rows.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <memory>
#include <mutex>

namespace adder {
namespace {

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) adder::fail("{}: {}", what, cublasLtGetStatusString(status));
}

template <auto destroy>
struct Destroy {
  template <class T>
  void operator()(T* handle) const {
    destroy(handle);
  }
};
using Handle = std::unique_ptr<cublasLtContext, Destroy<cublasLtDestroy>>;
using Operation = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy<cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy<cublasLtMatrixLayoutDestroy>>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy<cublasLtMatmulPreferenceDestroy>>;

constexpr int64_t workspace_bytes = 32 << 20;  // what NVIDIA recommends for Hopper

cudaDataType_t type_of(const Tensor& t) {
  if (t.dtype() == DType::f32) return CUDA_R_32F;
  if (t.dtype() == DType::bf16) return CUDA_R_16BF;
  no_such_dtype("multiply on the GPU", t.dtype());
}

// The largest power of two, up to 16, that the address is a multiple of.
int64_t alignment(const Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.address());
  return std::min<int64_t>(16, static_cast<int64_t>(address & (~address + 1)));
}

// cuBLAS counts by columns: a row-major matrix is the transpose of a column-major one with the same stride. So it makes
// cᵀ = op(b)ᵀ op(a)ᵀ, with b first.
struct Plan {
  Operation operation;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm;
};

Layout layout_of(const Tensor& t, int64_t stride, int64_t batch) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type_of(t), static_cast<uint64_t>(t.size(-1)),
                                   static_cast<uint64_t>(t.size(-2)), std::max(stride, t.size(-1))), "cuBLASLt layout");
  Layout result(layout);
  const auto count = static_cast<int32_t>(batch);
  const int64_t apart = t.size(-2) * stride;
  check(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
        "cuBLASLt layout");
  check(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &apart, sizeof apart),
        "cuBLASLt layout");
  return result;
}

template <class T>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof value), "cuBLASLt operation");
}

template <class T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value), "cuBLASLt preference");
}

Operation operation_of(const Product& p) {
  const bool round = tf32_allowed() && p.a.dtype() == DType::f32;
  cublasLtMatmulDesc_t handle = nullptr;
  check(cublasLtMatmulDescCreate(&handle, round ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "cuBLASLt operation");
  Operation operation(handle);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (p.bias) set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  return operation;
}

using Proposal = cublasLtMatmulHeuristicResult_t;

// How a proposed algorithm is set up, in the numbers of cublasLt.h; -1: it has no such setting.
template <class T>
int64_t setting(const Proposal& way, cublasLtMatmulAlgoConfigAttributes_t attribute) {
  T value{};
  size_t size = 0;
  return cublasLtMatmulAlgoConfigGetAttribute(&way.algo, attribute, &value, sizeof value, &size) ==
                 CUBLAS_STATUS_SUCCESS ? static_cast<int64_t>(value) : -1;
}
int64_t tile_of(const Proposal& way) { return setting<uint32_t>(way, CUBLASLT_ALGO_CONFIG_TILE_ID); }
int64_t cluster_of(const Proposal& way) { return setting<uint16_t>(way, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID); }
int64_t custom_of(const Proposal& way) { return setting<uint32_t>(way, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION); }

std::string to_string(const Proposal& way) {
  return fmt::format("algorithm {} tile {} stages {} cluster {} splits {} scheme {} custom {}, {:.2f} waves",
                     setting<int32_t>(way, CUBLASLT_ALGO_CONFIG_ID), tile_of(way),
                     setting<uint32_t>(way, CUBLASLT_ALGO_CONFIG_STAGES_ID), cluster_of(way),
                     setting<int32_t>(way, CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
                     setting<uint32_t>(way, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME), custom_of(way), way.wavesCount);
}

// Where cuBLASLt's first proposal was measured, on an H200, to take a tenth longer than a later one: bf16 products of a
// published size of model, in rows of a, columns of c and the inner size. Elsewhere the table changes nothing.
struct Preferred {
  int64_t least_rows, most_rows, n, k;
  bool transpose_b;
  int64_t tile, cluster, custom;

  bool is_for(const Product& p, const ProductSizes& s) const {
    return p.a.dtype() == DType::bf16 && !p.transpose_a && p.transpose_b == transpose_b && s.batch == 1 && s.n == n &&
           s.k == k && s.m >= least_rows && s.m <= most_rows;
  }
  bool is(const Proposal& way) const {
    return tile_of(way) == tile && cluster_of(way) == cluster && custom_of(way) == custom;
  }
};
constexpr int64_t any_number = std::numeric_limits<int64_t>::max();
constexpr Preferred preferred[] = {
    {8192, any_number, 768, 1536, true, 29, 3, 1},     // out_proj of 130m, y
    {8192, any_number, 1536, 768, false, 29, 3, 1},    //                   dx
    {8192, any_number, 4096, 2048, false, 29, 3, 1},   // out_proj of 1.3b, dx
    {512, 512, 50288, 768, true, 201, 5, 2},           // a part of 130m's logits
};

class Products {
 public:
  Products() {
    cublasLtHandle_t handle = nullptr;
    check(cublasLtCreate(&handle), "cuBLASLt");
    handle_.reset(handle);
  }

  void run(Cuda on, const Product& p, const ProductSizes& s) {
    const std::lock_guard lock(mutex_);
    run(on, p, plan_of(p, s));
  }

  std::vector<ProductWay> ways(Cuda on, const Product& p, const ProductSizes& s) {
    const std::lock_guard lock(mutex_);
    std::vector<ProductWay> all;
    for (const auto& way : proposals(described(p, s), p, CUBLASLT_REDUCTION_SCHEME_MASK, 32)) {
      const auto plan = std::make_shared<Plan>(described(p, s));
      plan->algorithm = way.algo;
      all.push_back({to_string(way), [this, on, p, plan] {
                       const std::lock_guard again(mutex_);
                       run(on, p, *plan);
                     }});
    }
    return all;
  }

 private:
  void run(Cuda on, const Product& p, const Plan& plan) {
    if (p.bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias.address());
    const float alpha = static_cast<float>(p.alpha), beta = static_cast<float>(p.beta);
    check(cublasLtMatmul(handle_.get(), plan.operation.get(), &alpha, p.b.address(), plan.b.get(), p.a.address(),
                         plan.a.get(), &beta, p.c.address(), plan.c.get(), p.c.address(), plan.c.get(),
                         &plan.algorithm, workspace_.address(), workspace_bytes, on.stream), "cuBLASLt product");
  }

  // All that the choice of an algorithm depends on.
  using Key = std::array<int64_t, 13>;

  const Plan& plan_of(const Product& p, const ProductSizes& s) {
    const int64_t kind = p.transpose_a | p.transpose_b << 1 | (p.c.dtype() == DType::f32) << 2 |
                         (p.a.dtype() == DType::f32) << 3 | p.bias.defined() << 4 | tf32_allowed() << 5;
    const Key key{s.batch,      s.m, s.n, s.k, s.stride_a, s.stride_b, s.stride_c, kind, alignment(p.a), alignment(p.b),
                  alignment(p.c), p.bias ? alignment(p.bias) : 0, p.beta != 0};
    auto found = plans_.find(key);
    if (found == plans_.end()) found = plans_.emplace(key, chosen(p, s)).first;
    return found->second;
  }

  // Without an algorithm.
  Plan described(const Product& p, const ProductSizes& s) const {
    Plan plan{operation_of(p), layout_of(p.a, s.stride_a, s.batch), layout_of(p.b, s.stride_b, s.batch),
              layout_of(p.c, s.stride_c, s.batch), {}};
    if (p.bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias.address());
    return plan;
  }

  Plan chosen(const Product& p, const ProductSizes& s) const {
    Plan plan = described(p, s);
    // Split sums may be added in a step of their own, in f32, but never into the result as they come.
    const auto* const better = std::ranges::find_if(preferred, [&](const Preferred& x) { return x.is_for(p, s); });
    const bool ask_for_all = better != std::end(preferred);
    const auto found = proposals(plan, p, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, ask_for_all ? 32 : 1);
    adder::check(!found.empty(), "multiply: cuBLASLt has no algorithm for a {} {} times b {} {} into c {} {}",
                 name(p.a.dtype()), adder::to_string(p.a.shape()), name(p.b.dtype()), adder::to_string(p.b.shape()),
                 name(p.c.dtype()), adder::to_string(p.c.shape()));
    const auto wanted = std::ranges::find_if(found, [&](const Proposal& x) { return ask_for_all && better->is(x); });
    plan.algorithm = (wanted == found.end() ? found.front() : *wanted).algo;
    return plan;
  }

  // What cuBLASLt expects to be fastest, first that; split sums added by one of the `schemes`.
  std::vector<Proposal> proposals(const Plan& plan, const Product& p, uint32_t schemes, int most) const {
    cublasLtMatmulPreference_t handle = nullptr;
    check(cublasLtMatmulPreferenceCreate(&handle), "cuBLASLt preference");
    const Preference preference(handle);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_bytes});
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
    const auto bytes = [](const Tensor& t) { return static_cast<uint32_t>(alignment(t)); };
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes(p.b));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes(p.a));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes(p.c));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes(p.c));
    std::vector<Proposal> found(static_cast<size_t>(most));
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_.get(), plan.operation.get(), plan.b.get(), plan.a.get(), plan.c.get(),
                                       plan.c.get(), preference.get(), most, found.data(), &count);
    found.resize(status == CUBLAS_STATUS_SUCCESS ? static_cast<size_t>(count) : 0);
    std::erase_if(found, [](const Proposal& x) { return x.state != CUBLAS_STATUS_SUCCESS; });
    return found;
  }

  Handle handle_;
  // For the compute stream alone. Zero at first, so that no product reads what nobody wrote.
  Tensor workspace_ = zeros({workspace_bytes / 4}, DType::f32, Device::cuda);
  std::mutex mutex_;
  std::map<Key, Plan> plans_;
};

Products& products() {
  static Products* const all = new Products;  // never destroyed: the driver may be gone by then
  return *all;
}

}  // namespace

void multiply(Cuda on, const Product& p) {
  const ProductSizes s = sizes_of(p);
  adder::check(p.a.dtype() == p.b.dtype() && (p.c.dtype() == p.a.dtype() || p.c.dtype() == DType::f32) &&
                   (!p.bias || p.bias.dtype() == p.c.dtype()),
               "multiply: a {} times b {} into c {}", name(p.a.dtype()), name(p.b.dtype()), name(p.c.dtype()));
  if (p.c.count() == 0) return;
  if (s.k == 0) {  // an empty sum
    adder::check(!p.bias, "multiply: a bias with an empty inner axis");
    if (p.beta == 0) fill(p.c, 0);
    return;
  }
  if (has_few_rows(p, s)) return multiply_few_rows(on, p, s);
  products().run(on, p, s);
}

std::vector<ProductWay> ways_to_multiply(Cuda on, const Product& p) { return products().ways(on, p, sizes_of(p)); }

}  // namespace adder
