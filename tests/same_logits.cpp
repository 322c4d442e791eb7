// same_logits RUN TOKENS FILE: whether FILE, which the recipe logits wrote for an exported model, holds the logits of
// the model in the run folder RUN for the sequences in TOKENS, a line each. Ends with 1 and a sentence if not.
#include "adder/core/error.h"
#include "adder/data/restore.h"
#include "adder/data/saved_run.h"
#include "adder/data/tensor_file.h"
#include "adder/distributed/run.h"
#include "adder/kernels/view.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <sstream>
#include <vector>

using namespace adder;

int main(int argc, char** argv) try {
  check(argc == 4, "same_logits RUN TOKENS FILE");
  const SavedRun saved = saved_run(argv[1]);
  Params params(Device::cpu);
  const layers::LanguageModel model(params, Mesh{}, model_options(saved));
  restore(saved.folder, {state(params)});
  const TensorFile file(argv[3]);
  const NoGrad none;
  std::ifstream lines(argv[2]);
  int64_t sequences = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    const std::vector<int32_t> tokens(std::istream_iterator<int32_t>(words), {});
    if (tokens.empty()) continue;
    const auto logits = to_host(contiguous(model.forward(from_host({1, static_cast<int64_t>(tokens.size())}, tokens))));
    double largest = 0, difference = 0;
    for (const double x : logits) largest = std::max(largest, std::abs(x));
    file.read(fmt::format("logits/{}", sequences++), DType::f32, static_cast<int64_t>(logits.size()),
              [&](const Tensor& chunk, int64_t first) {
                const auto x = to_host(chunk);
                for (size_t i = 0; i < x.size(); ++i)
                  difference = std::max(difference, std::abs(x[i] - logits[static_cast<size_t>(first) + i]));
              });
    // The same f32 weights through the same kernels; only the table may have lost its padding.
    check(difference <= 1e-6 * largest, "{}: logits/{} is off by {} of at most {}", argv[3], sequences - 1, difference,
          largest);
  }
  check(sequences > 0, "{}: has no token ids", argv[2]);
} catch (...) {
  return exit_status();
}
