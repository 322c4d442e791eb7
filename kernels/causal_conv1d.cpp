#include "adder/kernels/causal_conv1d.h"

#include "adder/core/error.h"
#include "adder/kernels/vector_math.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace adder {
namespace {

constexpr int64_t block = 128;   // tokens of one tile, and of one partial sum of dweight
constexpr int64_t lanes = 2048;  // channels of one tile: a few rows fit the second-level cache, long ones stream best

/// The rows of a tensor along its last axis.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  T* operator[](int64_t i) const { return data + i * stride; }
  Rows from(int64_t row, int64_t column) const { return data ? Rows{data + row * stride + column, stride} : Rows{}; }
  explicit operator bool() const { return data != nullptr; }
};

template <class T>
Rows<T> rows(const Tensor& t) {
  if (!t) return {};
  check(t.contiguous() || t.row() == t.size(-1), "CausalConv1d: a tensor {} whose rows have {} elements",
        to_string(t.shape()), t.row());
  return {t.data<std::remove_const_t<T>>(), t.contiguous() ? t.size(-1) : t.pitch()};
}

/// out = start + sum over n rows of weight * row, the newest tap first. out may be start.
template <int n, class T>
void add_taps(T* out, const T* start, const T* const* weight, const T* const* row, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    T sum = start[c];
    for (int k = 0; k < n; ++k) sum += weight[k][c] * row[k][c];
    out[c] = sum;
  }
}

/// out = start + sum_{first <= k < n} weight[k] row(k), four taps a pass; the order of the sum is that of k.
template <class T, class Row>
void weighted_sum(T* out, const T* start, Rows<const T> weight, int64_t first, int64_t n, int64_t channels, Row row) {
  if (first >= n && out != start) std::copy_n(start, channels, out);
  for (int64_t k = first; k < n; k += 4, start = out) {
    const T *w[4], *r[4];
    const int64_t taps = std::min<int64_t>(4, n - k);
    for (int64_t i = 0; i < taps; ++i) {
      w[i] = weight[k + i];
      r[i] = row(k + i);
    }
    switch (taps) {
      case 1: add_taps<1>(out, start, w, r, channels); break;
      case 2: add_taps<2>(out, start, w, r, channels); break;
      case 3: add_taps<3>(out, start, w, r, channels); break;
      default: add_taps<4>(out, start, w, r, channels);
    }
  }
}

template <class T>
void activate(T* y, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) y[c] = math::silu(y[c]);
}

/// One sequence, seen by a tile of channels: its tokens t >= 0, the rows of the initial state at t < 0, and which of
/// them are connected.
template <class T>
struct Sequence {
  Rows<const T> x, state;
  const int32_t* document;
  int64_t time, width;

  const T* operator[](int64_t t) const { return t >= 0 ? x[t] : state[width - 1 + t]; }
  int64_t oldest() const { return state ? 1 - width : 0; }
  /// Whether t belongs to the document of t - 1.
  bool continues(int64_t t) const { return t <= 0 || !document || document[t] == document[t - 1]; }
  /// Output t reads the inputs (t - taps, t].
  int64_t taps(int64_t t) const {
    int64_t n = 1;
    while (n < width && t - n >= oldest() && continues(t - n + 1)) ++n;
    return n;
  }
  /// Input t is read by the outputs [t, t + readers).
  int64_t readers(int64_t t) const {
    int64_t n = 1;
    while (n < width && t + n < time && continues(t + n)) ++n;
    return n;
  }
  /// The first input of the final state; the rows before it are zero.
  int64_t final_begin() const {
    int64_t t = time;
    while (t > time - (width - 1) && t > oldest() && (t == time || continues(t))) --t;
    return t;
  }
};

/// The operands as pointers, and the weights with channels side by side.
template <class T>
struct Operands {
  Rows<const T> x, state;
  Rows<const int32_t> document;
  int64_t batch, time, channels, width;
  std::vector<T> taps;  // [width, channel], the newest first
  std::vector<T> bias;  // [channel], zero if there is none

  Operands(const Tensor& x_, const Tensor& weight, const Tensor& bias_, int64_t time_)
      : x(rows<const T>(x_)), batch(x_.size(0)), time(time_), channels(x_.size(-1)), width(weight.size(1)),
        taps(static_cast<size_t>(width * channels)), bias(static_cast<size_t>(channels)) {
    const Rows<const T> w = rows<const T>(weight);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t k = 0; k < width; ++k) taps[static_cast<size_t>(k * channels + c)] = w[c][width - 1 - k];
    if (bias_) std::copy_n(bias_.data<T>(), channels, bias.data());
  }
  explicit Operands(const CausalConv1d& conv) : Operands(conv.x, conv.weight, conv.bias, conv.x.size(1)) {
    state = rows<const T>(conv.initial_state);
    document = rows<const int32_t>(conv.document);
  }
  Sequence<T> sequence(int64_t b, int64_t c) const {
    return {x.from(b * time, c), state.from(b * (width - 1), c), document ? document[b] : nullptr, time, width};
  }
  Rows<const T> weights(int64_t c) const { return {taps.data() + c, channels}; }
  bool large() const { return batch * time * channels > 1 << 15; }  // worth waking the other threads
};

template <class T>
void write_final_state(const Operands<T>& o, Rows<T> final_state) {
  for (int64_t b = 0; b < o.batch; ++b) {
    const Sequence<T> s = o.sequence(b, 0);
    const int64_t first = o.time - (o.width - 1), begin = s.final_begin();
    for (int64_t t = first; t < o.time; ++t) {
      T* to = final_state[b * (o.width - 1) + t - first];
      if (t < begin) std::fill_n(to, o.channels, T{0});
      else std::copy_n(s[t], o.channels, to);
    }
  }
}

template <class T>
void forward(const CausalConv1d& conv, const Tensor& y_, const Tensor& final_state) {
  const Operands<T> o(conv);
  const Rows<T> y = rows<T>(y_);
#pragma omp parallel for collapse(3) if (o.large())
  for (int64_t b = 0; b < o.batch; ++b)
    for (int64_t begin = 0; begin < o.time; begin += block)
      for (int64_t c = 0; c < o.channels; c += lanes) {
        const Sequence<T> s = o.sequence(b, c);
        const int64_t count = std::min(lanes, o.channels - c);
        for (int64_t t = begin; t < std::min(o.time, begin + block); ++t) {
          T* out = y[b * o.time + t] + c;
          weighted_sum(out, o.bias.data() + c, o.weights(c), 0, s.taps(t), count, [&](int64_t k) { return s[t - k]; });
          if (conv.silu) activate(out, count);
        }
      }
  if (final_state) write_final_state(o, rows<T>(final_state));
}

/// Backward of one tile. Every pointer is at its sequence's first row and the tile's first channel.
template <class T>
struct BackwardTile {
  Sequence<T> s;
  Rows<const T> weights;
  const T* bias;
  int64_t channels;  // of this tile
  bool silu, add_to_dx;
  Rows<const T> dy, dfinal;
  Rows<T> dx, dstate;
  Rows<T> sums;  // [width + 1, channel]: this tile's part of dweight, the newest tap first, then of dbias
  Rows<T> ring;  // the last width rows of g, row t at t % width

  /// dx at [begin, end), dstate with the first tile, and the sums. Row t of dx is complete once g_{t+width-1} is known.
  void run(int64_t begin, int64_t end) const {
    for (int64_t k = 0; sums && k <= s.width; ++k) std::fill_n(sums[k], channels, T{0});
    const int64_t past = s.width - 1;
    for (int64_t t = begin; t < end + past; ++t) {
      if (dy && t < s.time) {
        write_g(t);
        if (sums && t < end) add_to_sums(t);
      }
      const int64_t done = t - past;
      if (done >= begin && dx) write_dx(dx[done], add_to_dx, done);
      if (begin == 0 && done < 0 && dstate) write_dx(dstate[past + done], false, done);
    }
  }

  void write_g(int64_t t) const {
    T* g = ring[t % s.width];
    const T* from = dy[t];
    if (!silu) {
      std::copy_n(from, channels, g);
      return;
    }
    weighted_sum(g, bias, weights, 0, s.taps(t), channels, [&](int64_t k) { return s[t - k]; });
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) g[c] = from[c] * math::silu_gradient(g[c]);
  }

  void add_to_sums(int64_t t) const {
    const T* g = ring[t % s.width];
    for (int64_t k = 0, n = s.taps(t); k < n; ++k) {
      T* dw = sums[k];
      const T* x = s[t - k];
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) dw[c] += g[c] * x[c];
    }
    T* db = sums[s.width];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) db[c] += g[c];
  }

  void write_dx(T* to, bool add, int64_t t) const {
    static constexpr T zero[lanes] = {};
    weighted_sum(to, add ? to : zero, weights, std::max<int64_t>(0, -t), dy ? s.readers(t) : 0, channels,
                 [&](int64_t k) { return ring[(t + k) % s.width]; });
    const int64_t row = t - (s.time - (s.width - 1));  // of the final state
    if (!dfinal || row < 0 || t < s.final_begin()) return;
    const T* from = dfinal[row];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) to[c] += from[c];
  }
};

/// dweight and dbias: the tiles' sums [tile, width + 1, channel] added in order.
template <class T>
void add_sums(const Tensor& sums, const Slot& dweight, const Slot& dbias) {
  const int64_t tiles = sums.size(0), width = sums.size(1) - 1, channels = sums.size(2);
  const Rows<const T> from = rows<const T>(sums);
  const Rows<T> dw = rows<T>(dweight.tensor);
  T* db = dbias.tensor ? dbias.tensor.data<T>() : nullptr;
#pragma omp parallel for collapse(2) if (sums.count() > 1 << 15)
  for (int64_t k = 0; k <= width; ++k)
    for (int64_t c = 0; c < channels; c += lanes) {
      const int64_t count = std::min(lanes, channels - c);
      T sum[lanes] = {};
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const T* row = from[tile * (width + 1) + k] + c;
        for (int64_t i = 0; i < count; ++i) sum[i] += row[i];
      }
      for (int64_t i = 0; i < count; ++i) {
        if (k < width && dw) dw[c + i][width - 1 - k] = (dweight.accumulate ? dw[c + i][width - 1 - k] : T{0}) + sum[i];
        if (k == width && db) db[c + i] = (dbias.accumulate ? db[c + i] : T{0}) + sum[i];
      }
    }
}

template <class T>
void backward(const CausalConv1d& conv, const Tensor& dy, const Tensor& dfinal, const CausalConv1dGradients& to) {
  const Operands<T> o(conv);
  const bool parameters = to.weight.tensor || to.bias.tensor;
  const int64_t blocks = std::max<int64_t>(1, (o.time + block - 1) / block), past = o.width - 1;
  const Tensor sums =
      parameters ? Tensor({o.batch * blocks, o.width + 1, o.channels}, dtype_of<T>, Device::cpu) : Tensor();
  const Rows<const T> dy_rows = rows<const T>(dy), dfinal_rows = rows<const T>(dfinal);
  const Rows<T> dx = rows<T>(to.x.tensor), dstate = rows<T>(to.initial_state), sum_rows = rows<T>(sums);
#pragma omp parallel if (o.large())
  {
    const int64_t stride = std::min(lanes, o.channels);
    std::vector<T> ring(static_cast<size_t>(o.width * stride));
#pragma omp for collapse(3)
    for (int64_t b = 0; b < o.batch; ++b)
      for (int64_t i = 0; i < blocks; ++i)
        for (int64_t c = 0; c < o.channels; c += lanes)
          BackwardTile<T>{.s = o.sequence(b, c), .weights = o.weights(c), .bias = o.bias.data() + c,
                          .channels = std::min(lanes, o.channels - c), .silu = conv.silu, .add_to_dx = to.x.accumulate,
                          .dy = dy_rows.from(b * o.time, c), .dfinal = dfinal_rows.from(b * past, c),
                          .dx = dx.from(b * o.time, c), .dstate = dstate.from(b * past, c),
                          .sums = sum_rows.from((b * blocks + i) * (o.width + 1), c), .ring = {ring.data(), stride}}
              .run(i * block, std::min(o.time, (i + 1) * block));
  }
  if (parameters) add_sums<T>(sums, to.weight, to.bias);
}

void check_operand(const Tensor& t, const char* name, const Shape& shape, const Tensor& x, DType type) {
  check(!t || t.shape() == shape, "CausalConv1d: x {} needs {} {}, not {}", to_string(x.shape()), name,
        to_string(shape), to_string(t ? t.shape() : shape));
  check(!t || t.dtype() == type, "CausalConv1d: {} holds {}, not {}", name, adder::name(t ? t.dtype() : type),
        adder::name(type));
  check(!t || t.device() == x.device(), "CausalConv1d: {} lies on {} but x on {}", name,
        adder::name(t ? t.device() : x.device()), adder::name(x.device()));
}

void check_parameters(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check(weight.rank() == 2 && weight.size(0) == x.size(-1) && weight.size(1) >= 1, "CausalConv1d: x {} but weight {}",
        to_string(x.shape()), to_string(weight.shape()));
  const DType type = x.dtype() == DType::bf16 ? DType::f32 : x.dtype();
  check_operand(weight, "weight", weight.shape(), x, type);
  check_operand(bias, "bias", {x.size(-1)}, x, type);
}

}  // namespace

void causal_conv1d_forward(Cpu, const CausalConv1d& conv, const Tensor& y, const Tensor& final_state) {
  with_float("CausalConv1d", conv.x.dtype(), [&]<class T>(T) { forward<T>(conv, y, final_state); });
}

void causal_conv1d_backward(Cpu, const CausalConv1d& conv, const Tensor& dy, const Tensor& dfinal_state,
                            const CausalConv1dGradients& to) {
  with_float("CausalConv1d", conv.x.dtype(), [&]<class T>(T) { backward<T>(conv, dy, dfinal_state, to); });
}

void causal_conv1d_step(Cpu, const CausalConv1dStep& step, const Tensor& y_) {
  with_float("CausalConv1d", step.x.dtype(), [&]<class T>(T) {
    const Operands<T> o(step.x, step.weight, step.bias, 1);
    const int64_t past = o.width - 1;
    const Rows<T> y = rows<T>(y_);
#pragma omp parallel for if (o.large())
    for (int64_t b = 0; b < o.batch; ++b) {
      const Rows<T> state = rows<T>(step.state).from(b * past, 0);
      weighted_sum(y[b], o.bias.data(), o.weights(0), 0, o.width, o.channels,
                   [&](int64_t k) { return k ? state[past - k] : o.x[b]; });
      if (step.silu) activate(y[b], o.channels);
      for (int64_t i = 0; i < past; ++i) std::copy_n(i + 1 < past ? state[i + 1] : o.x[b], o.channels, state[i]);
    }
  });
}

std::array<Tensor, 2> CausalConv1d::forward() {
  check(x.rank() == 3, "CausalConv1d: x {} is not [batch, time, channel]", to_string(x.shape()));
  check_parameters(x, weight, bias);
  const Shape state{x.size(0), weight.size(1) - 1, x.size(2)};
  check_operand(initial_state, "an initial state", state, x, x.dtype());
  check_operand(document, "document", {x.size(0), x.size(1)}, x, DType::i32);
  const Tensor y(x.shape(), x.dtype(), x.device());
  const Tensor final = final_state ? Tensor(state, x.dtype(), x.device()) : Tensor();
  on(x.device(), [&](auto backend) { causal_conv1d_forward(backend, *this, y, final); });
  return {y, final};
}

void CausalConv1d::backward(const Tensor& dy, const Tensor& dfinal_state, Grads& to) const {
  const auto slot = [&](int i) { return to.wants(i) ? to.slot(i) : Slot{{}, false}; };
  // The state's gradient is a tensor of its own: initial_state may be the very tensor x is.
  const Tensor dstate = to.wants(3) ? empty_like(initial_state) : Tensor();
  const CausalConv1dGradients gradients{slot(0), slot(1), slot(2), dstate};
  on(x.device(), [&](auto backend) { causal_conv1d_backward(backend, *this, dy, dfinal_state, gradients); });
  if (dstate) to.give(3, dstate);
}

Tensor causal_conv1d_step(const CausalConv1dStep& step) {
  check(step.x.rank() == 2, "CausalConv1d: x {} of a step is not [batch, channel]", to_string(step.x.shape()));
  check_parameters(step.x, step.weight, step.bias);
  const Shape state{step.x.size(0), step.weight.size(1) - 1, step.x.size(1)};
  check(step.state.defined(), "CausalConv1d: a step needs a state {}", to_string(state));
  check_operand(step.state, "a state", state, step.x, step.x.dtype());
  const Tensor y(step.x.shape(), step.x.dtype(), step.x.device());
  on(step.x.device(), [&](auto backend) { causal_conv1d_step(backend, step, y); });
  return y;
}

}  // namespace adder
