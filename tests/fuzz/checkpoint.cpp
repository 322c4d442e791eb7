// restore: a whole tensor file under a manifest that was forged, with the right checksums in front. What it accepts has
// filled the states.
#include "adder/data/checkpoint.h"
#include "adder/data/tensor_file.h"
#include "adder/tests/fuzz/fuzz.h"

#include <zlib.h>

#include <optional>

using namespace adder;

namespace {

struct Run {
  Tensor matrix = full({4, 3}, 1), vector = full({5}, 2, DType::f64);
  int64_t samples = 7;
  std::vector<State> states() {
    State data{.name = "data",
               .save = [this] { return Values{{"samples", samples}, {"best", 0.5}, {"name", "x"}}; },
               .load = [this](const Values& v) { samples = value<int64_t>(v, "samples"); }};
    State parameters{.name = "parameters", .tensors = {Piece::whole("matrix", matrix), Piece::whole("vector", vector)}};
    return {parameters, data};
  }
};

const std::string folder = "checkpoints/step_00000003";

// Saves a checkpoint and returns how its manifest tells of its file.
std::string saved() {
  Run run;
  Checkpoint(fuzz::scratch().path(), run.states(), {.fresh = true}).save(3);
  const std::string file = fuzz::scratch() / folder + "/rank_0000.h5";
  return fmt::format("\"files\": [{{\"bytes\": {}, \"crc\": \"{:08x}\"}}],\n", std::filesystem::file_size(file),
                     file_crc(file));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string files = saved();
  const std::string text = files + std::string(reinterpret_cast<const char*>(data), size);
  const auto crc = static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(text.data()), text.size()));
  fuzz::scratch().write(folder + "/manifest.json", fmt::format("{{\"crc\": \"{:08x}\",\n{}", crc, text));
  Run run;
  fill(run.matrix, -1);
  fuzz::accepts([&] {
    const Warn silent = [](const std::string&) {};
    const std::optional<int64_t> step = restore(fuzz::scratch().path(), run.states(), {.warn = silent});
    fuzz::must(step == 3 && item(run.matrix.slice_first(3, 4).slice_last(2, 3)) == 1);
  });
  return 0;
}
