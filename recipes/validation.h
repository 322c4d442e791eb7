// Validation: the nats of every held-out target, by source.
#pragma once

#include "adder/data/loader.h"
#include "adder/distributed/communicator.h"
#include "adder/layers/language_model.h"

#include <map>
#include <numeric>
#include <span>
#include <string>

namespace adder {

struct Validation {
  double nats_per_byte = 0;                      // all nats over all bytes of text
  double nats_per_token = 0;
  std::map<std::string, double> by_source = {};  // nats per byte of each pile_set_name
};

/// Every target of the held-out text once, the batches shared out over the ranks; nats over bytes of text.
inline Validation validate(const layers::LanguageModel& model, const HeldOut& held_out, const Communicator& ranks) {
  const Tensor sums = zeros({static_cast<int64_t>(held_out.sources().size())}, DType::f64);
  const std::span nats(sums.data<double>(), held_out.sources().size());
  for (int64_t i = ranks.rank(); i < held_out.batches(); i += ranks.size()) {
    const auto batch = held_out.batch(i);
    const auto losses = to_host(model.token_losses(batch));
    nats[static_cast<size_t>(batch.source)] += std::accumulate(losses.begin(), losses.end(), 0.0);
  }
  ranks.all_reduce(sums);
  Validation result;
  const double all = std::accumulate(nats.begin(), nats.end(), 0.0);
  result.nats_per_byte = all / static_cast<double>(held_out.text_bytes());
  result.nats_per_token = all / static_cast<double>(held_out.targets());
  for (size_t s = 0; s < nats.size(); ++s)
    if (const int64_t bytes = held_out.text_bytes(static_cast<int>(s)); bytes > 0)
      result.by_source[held_out.sources()[s]] = nats[s] / static_cast<double>(bytes);
  return result;
}

}  // namespace adder
