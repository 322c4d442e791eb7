// A Mamba-2 language model as its formulas say (layers/mamba2.h, layers/language_model.h): loops over tokens in double
// precision, and weights by their names in a safetensors file of the authors' form.
#pragma once

#include "adder/data/safetensors.h"
#include "adder/layers/language_model.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace adder {

struct PlainMamba2 {
  using Row = std::vector<double>;
  const SafetensorsFile& file;
  layers::LanguageModelOptions o;

  static double silu(double x) { return x / (1 + std::exp(-x)); }
  static double softplus(double x) { return std::log1p(std::exp(x)); }
  Row tensor(const std::string& name) const { return to_host(file.read(name)); }
  static size_t size(int64_t n) { return static_cast<size_t>(n); }
  static Row part(const Row& row, size_t from, size_t count) {
    const auto begin = row.begin() + static_cast<std::ptrdiff_t>(from);
    return Row(begin, begin + static_cast<std::ptrdiff_t>(count));
  }
  // weight x [+ bias]
  Row linear(const std::string& name, const Row& x) const {
    const Row w = tensor(name + ".weight");
    Row y = file.tensors().contains(name + ".bias") ? tensor(name + ".bias") : Row(w.size() / x.size());
    for (size_t i = 0; i < y.size(); ++i)
      for (size_t j = 0; j < x.size(); ++j) y[i] += w[i * x.size() + j] * x[j];
    return y;
  }
  Row rms_norm(const std::string& name, Row x, int64_t groups) const {
    const Row w = tensor(name + ".weight");
    const size_t width = x.size() / static_cast<size_t>(groups);
    for (size_t g = 0; g < x.size(); g += width) {
      double sum = 0;
      for (size_t i = g; i < g + width; ++i) sum += x[i] * x[i];
      for (size_t i = g; i < g + width; ++i) x[i] *= w[i] / std::sqrt(sum / static_cast<double>(width) + 1e-5);
    }
    return x;
  }
  std::vector<Row> mixer(const std::string& name, const std::vector<Row>& us) const {
    const auto& m = o.mixer;
    const size_t mlp = size(m.mlp()), ssm = size(m.ssm()), heads = size(m.heads()), P = size(m.head_dim);
    const size_t N = size(m.d_state), G = size(m.groups), channels = ssm + 2 * G * N, width = size(m.d_conv);
    const Row kernel = tensor(name + "conv1d.weight");
    const Row bias = m.conv_bias ? tensor(name + "conv1d.bias") : Row(channels);
    const Row A_log = tensor(name + "A_log"), D = tensor(name + "D"), dt_bias = tensor(name + "dt_bias");
    Row state(heads * P * N);
    std::vector<Row> inputs, out;
    for (const Row& u : us) {
      const Row p = linear(name + "in_proj", u);
      const Row z0 = part(p, 0, mlp), x0 = part(p, mlp, mlp), z = part(p, 2 * mlp, ssm);
      const Row dt = part(p, 2 * mlp + ssm + channels, heads);
      inputs.push_back(part(p, 2 * mlp + ssm, channels));
      Row v = bias;  // x, B, C
      for (size_t c = 0; c < channels; ++c) {
        for (size_t k = 0; k < width && k < inputs.size(); ++k)
          v[c] += kernel[c * width + width - 1 - k] * inputs[inputs.size() - 1 - k][c];
        v[c] = silu(v[c]);
      }
      Row y(ssm);
      for (size_t h = 0; h < heads; ++h) {
        const double step = std::min(std::max(softplus(dt[h] + dt_bias[h]), m.dt_min), m.dt_max);
        const size_t B = ssm + h / (heads / G) * N, C = B + G * N;
        for (size_t i = h * P; i < (h + 1) * P; ++i) {
          y[i] = D[m.D_per_channel ? i : h] * v[i];
          for (size_t n = 0; n < N; ++n) {
            double& s = state[i * N + n];
            s = std::exp(-std::exp(A_log[h]) * step) * s + step * v[i] * v[B + n];
            y[i] += s * v[C + n];
          }
        }
      }
      if (m.norm_before_gate) y = rms_norm(name + "norm", y, m.groups);
      for (size_t i = 0; i < ssm; ++i) y[i] *= silu(z[i]);
      if (m.rms_norm && !m.norm_before_gate) y = rms_norm(name + "norm", y, m.groups);
      Row joined(mlp);
      for (size_t i = 0; i < mlp; ++i) joined[i] = silu(z0[i]) * x0[i];
      joined.insert(joined.end(), y.begin(), y.end());
      out.push_back(linear(name + "out_proj", joined));
    }
    return out;
  }
  Row logits(const std::vector<int32_t>& tokens) const {
    const Row table = tensor("backbone.embedding.weight");
    const size_t width = size(o.mixer.d_model);
    std::vector<Row> x;
    for (const int32_t t : tokens) x.push_back(part(table, size(t) * width, width));
    const auto add = [&](const std::vector<Row>& y) {
      for (size_t t = 0; t < x.size(); ++t)
        for (size_t i = 0; i < width; ++i) x[t][i] += y[t][i];
    };
    const auto each = [&](const std::vector<Row>& rows, const std::function<Row(const Row&)>& f) {
      std::vector<Row> y;
      for (const Row& row : rows) y.push_back(f(row));
      return y;
    };
    for (int64_t i = 0; i < o.layers; ++i) {
      const std::string name = "backbone.layers." + std::to_string(i) + ".";
      add(mixer(name + "mixer.", each(x, [&](const Row& r) { return rms_norm(name + "norm", r, 1); })));
      if (o.d_intermediate == 0) continue;
      add(each(x, [&](const Row& r) {
        const Row yg = linear(name + "mlp.fc1", rms_norm(name + "norm2", r, 1));
        Row y = part(yg, 0, yg.size() / 2);
        for (size_t k = 0; k < y.size(); ++k) y[k] *= silu(yg[y.size() + k]);
        return linear(name + "mlp.fc2", y);
      }));
    }
    Row all;
    for (const Row& r : x) {
      const Row y = linear(o.tied ? "backbone.embedding" : "lm_head", rms_norm("backbone.norm_f", r, 1));
      all.insert(all.end(), y.begin(), y.begin() + o.vocabulary);
    }
    return all;
  }
};

}  // namespace adder
