#include "adder/data/restore.h"

#include "adder/core/error.h"
#include "adder/data/checkpoint_layout.h"
#include "adder/data/manifest.h"
#include "adder/data/tensor_file.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

namespace adder {

namespace fs = std::filesystem;

namespace {

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  check(file.good() && text.good(), "{}: cannot be read", path);
  return text.str();
}

// The manifest of a checkpoint whose files are all there and bit for bit as they were written; throws otherwise. HDF5
// may crash on damaged files and so must not see one.
Manifest verified(const std::string& path, int64_t step) {
  Manifest manifest = parse_manifest(read_text(layout::manifest(path)), layout::manifest(path));
  if (manifest.format != Manifest::current_format) return manifest;
  check(manifest.step == step, "{}: the manifest is of step {}", path, manifest.step);
  check_complete(manifest, layout::manifest(path));
  for (size_t rank = 0; rank < manifest.files.size(); ++rank) {
    const std::string file = layout::file(path, static_cast<int64_t>(rank));
    const StoredFile& expected = manifest.files[rank];
    std::error_code error;
    const auto bytes = fs::file_size(file, error);
    check(!error, "{}: cannot be read ({})", file, error.message());
    check(static_cast<int64_t>(bytes) == expected.bytes, "{}: has {} bytes, not {}", file, bytes, expected.bytes);
    check(file_crc(file) == expected.crc, "{}: its checksum does not match", file);
  }
  return manifest;
}

// A piece as runs of elements that lie side by side in the whole tensor: its elements [r length, (r + 1) length) are
// the whole's [r stride + first, r stride + first + length).
struct Runs {
  int64_t count, stride, first, length;
};

Runs runs_of(const Shape& shape, int axis, int64_t begin, int64_t end) {
  if (axis < 0) return {1, std::max<int64_t>(1, shape.count()), begin, end - begin};
  const int64_t inner = shape.count(axis + 1, shape.rank());
  return {shape.count(0, axis), std::max<int64_t>(1, shape[axis] * inner), begin * inner, (end - begin) * inner};
}

// Copies what the elements [from, from + count) of the source share with the target; returns how many.
int64_t copy_shared(const Tensor& chunk, int64_t from, const Runs& source, const Tensor& to, const Runs& target) {
  int64_t copied = 0;
  for (int64_t e = 0; e < chunk.count();) {
    const int64_t run = (from + e) / source.length, inside = (from + e) % source.length;
    const int64_t begin = run * source.stride + source.first + inside;  // in the whole tensor
    const int64_t end = begin + std::min(chunk.count() - e, source.length - inside);
    const int64_t start = begin < target.first ? 0 : (begin - target.first) / target.stride;
    for (int64_t r = start; r < target.count && r * target.stride + target.first < end; ++r) {
      const int64_t origin = r * target.stride + target.first;
      const int64_t low = std::max(begin, origin), high = std::min(end, origin + target.length);
      if (low >= high) continue;
      const int64_t at = r * target.length + low - origin;
      copy(chunk.slice_first(e + low - begin, e + high - begin), to.slice_first(at, at + high - low));
      copied += high - low;
    }
    e += end - begin;
  }
  return copied;
}

// Fills the states' tensors from the files at `path`; throws if a dataset is not what was saved.
void fill_tensors(const Manifest& manifest, const std::string& path, const std::vector<State>& states) {
  std::map<int64_t, TensorFile> files;
  layout::each_piece(states, [&](const std::string& name, const Piece& piece) {
    const StoredTensor& stored = manifest.tensors.at(name);
    const Runs target = runs_of(piece.shape, piece.axis, piece.begin, piece.end());
    const Tensor to = piece.tensor.reshape({piece.tensor.count()});
    int64_t copied = 0;
    for (const StoredPiece& s : stored.pieces) {
      const bool apart = stored.axis == piece.axis && (s.end <= piece.begin || piece.end() <= s.begin);
      if (apart) continue;
      const Runs source = runs_of(stored.shape, stored.axis, s.begin, s.end);
      const std::string file = layout::file(path, s.file), dataset = layout::dataset(name, s.begin);
      const uint32_t crc = files.try_emplace(s.file, file).first->second.read(
          dataset, stored.dtype, source.count * source.length,
          [&](const Tensor& chunk, int64_t first) { copied += copy_shared(chunk, first, source, to, target); });
      check(crc == s.crc, "{}: {}: its checksum does not match", file, dataset);
    }
    check(copied == to.count(), "{}: {} has {} of the {} elements needed", path, name, copied, to.count());
  });
}

bool converts(DType from, DType to) {
  const auto is_float = [](DType t) { return t == DType::f32 || t == DType::f64; };
  return from == to || (is_float(from) && is_float(to));
}

// Throws, naming the first difference, unless the checkpoint holds what the states ask for and, of the states that are
// there (all: of any state), nothing else.
void check_fits(const Manifest& manifest, const std::string& path, const std::vector<State>& states, bool all) {
  std::set<std::string> names, wanted;
  for (const State& state : states) names.insert(state.name);
  layout::each_piece(states, [&](const std::string& name, const Piece& piece) {
    check_piece(piece);
    const auto found = manifest.tensors.find(name);
    check(found != manifest.tensors.end(), "{}: has no tensor {}, which this run has with shape {}", path, name,
          to_string(piece.shape));
    const StoredTensor& stored = found->second;
    check(stored.shape == piece.shape, "{}: {} has shape {} but this run has {}", path, name, to_string(stored.shape),
          to_string(piece.shape));
    check(converts(stored.dtype, piece.tensor.dtype()), "{}: {} is {} but this run has {}", path, name,
          adder::name(stored.dtype), adder::name(piece.tensor.dtype()));
    wanted.insert(name);
  });
  for (const auto& [name, tensor] : manifest.tensors)
    check(wanted.contains(name) || (!all && !names.contains(name.substr(0, name.find('/')))),
          "{}: holds the tensor {} {}, which this run has not", path, name, to_string(tensor.shape));
}

void hand_values(const Manifest& manifest, const std::string& path, const std::vector<State>& states, bool all) {
  std::set<std::string> names;
  for (const State& state : states) {
    names.insert(state.name);
    const auto found = manifest.values.find(state.name);
    check(found != manifest.values.end(), "{}: does not hold the state {}", path, state.name);
    if (state.load) state.load(found->second);
  }
  for (const auto& [name, values] : manifest.values)
    check(!all || names.contains(name), "{}: holds the state {}, which this run has not", path, name);
}

}  // namespace

void warn_on_stderr(const std::string& sentence) { fmt::print(stderr, "warning: {}\n", sentence); }

std::optional<int64_t> restore(const std::string& run_folder, const std::vector<State>& states,
                               const RestoreOptions& options) {
  const std::string folder = layout::folder(run_folder);
  std::string reasons;
  const auto refuse = [&](const Error& error) {
    options.warn(fmt::format("{}; this checkpoint is refused", error.what()));
    reasons += (reasons.empty() ? "" : "; ") + std::string(error.what());
  };
  for (const int64_t step : layout::steps(folder)) {
    const std::string path = layout::checkpoint(folder, step);
    Manifest manifest;
    try {
      manifest = verified(path, step);
    } catch (const Error& error) {
      refuse(error);
      continue;
    }
    // What does not fit is not damage: an older checkpoint would not be the answer.
    check(manifest.format == Manifest::current_format, "{}: has format {}, this program reads {}", path,
          manifest.format, int64_t{Manifest::current_format});
    hand_values(manifest, path, states, options.all);
    check_fits(manifest, path, states, options.all);
    try {
      fill_tensors(manifest, path, states);
      for (const State& state : states)
        if (state.filled) state.filled();
      return step;
    } catch (const Error& error) {
      refuse(error);
    }
  }
  check(reasons.empty(), "{}: no checkpoint is whole: {}", folder, reasons);
  return std::nullopt;
}

}  // namespace adder
