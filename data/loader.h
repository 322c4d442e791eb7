// The loader: batches of token shards, for training and for validation.
#pragma once

#include "adder/autograd/state.h"
#include "adder/core/batch.h"
#include "adder/core/random.h"
#include "adder/data/token_shard.h"
#include "adder/distributed/mesh.h"

#include <cstdint>
#include <string>
#include <vector>

namespace adder {

struct LoaderOptions {
  int64_t batch = 32;        // samples a step, over all ranks
  int64_t micro_batch = 32;  // samples a forward pass of one rank
  int64_t time = 512;        // targets a sample
  uint64_t seed = 1;
  int64_t rank = 0, ranks = 1;  // rank r takes the r-th part of each step's samples
  std::string tokenizer = "";   // the shard must have been written by it; empty: any
};

/// Training samples. Sample k is a pure function of (seed, shard, time, k): the shard is a ring of tokens, closed where
/// its last document ends; epoch k / samples_per_epoch() turns it by a random number of tokens, cuts it into windows
/// of `time` targets (fewer than `time` tokens are left out) and visits them in a random order. The only state is
/// consumed_samples(): ranks, micro-batches and the step's batch may change between runs.
class TokenFile {
 public:
  TokenFile(const std::string& path, const LoaderOptions& options);  // fails unless batch = ranks * n * micro_batch
  TokenFile(const std::string& path, const Mesh& mesh, LoaderOptions options);  // rank and ranks are those of mesh.data

  /// This rank's micro-batches of the next step, [micro_batch, time] each.
  std::vector<Batch> next();
  Batch samples(int64_t first, int64_t count) const;  // samples first .. first + count - 1

  int64_t step() const { return consumed_ / options_.batch; }
  int64_t consumed_samples() const { return consumed_; }
  void seek(int64_t consumed_samples);
  /// The position, for checkpoints; refuses to go on in another shard, or with another seed or time. Refers to this.
  State state();
  int64_t samples_per_epoch() const { return shard_.tokens() / options_.time; }
  double epoch() const { return static_cast<double>(consumed_) / static_cast<double>(samples_per_epoch()); }
  const TokenShard& shard() const { return shard_; }

 private:
  LoaderOptions options_;
  TokenShard shard_;
  Random random_;
  int64_t consumed_ = 0;
};

struct HeldOutOptions {
  int64_t batch = 32;   // rows at most
  int64_t time = 512;   // positions a row
  int64_t context = 0;  // positions of a row that only repeat what the row before counted, so that few targets stand
                        // at the start of a row, with nothing before them; costs time / (time - context)
  int64_t tokens = 0;   // enough documents for so many tokens, chosen at random but always the same; 0: all
  std::string tokenizer = "";
};

/// Validation batches. Every token of every chosen document is a counted target exactly once. Each source's documents
/// are packed into rows, and a batch holds rows of one source only, so that
///   nats per byte of a source = sum over its batches of (mean loss * counted) / text_bytes(source).
/// Batch i is a pure function of (shard, options, i).
class HeldOut {
 public:
  struct SourceBatch : Batch {
    int source = 0;  // index into sources()
  };

  HeldOut(const std::string& path, const HeldOutOptions& options);

  int64_t batches() const;
  SourceBatch batch(int64_t i) const;
  const std::vector<std::string>& sources() const { return shard_.sources(); }
  int64_t text_bytes(int source) const { return parts_.at(static_cast<size_t>(source)).text_bytes; }
  int64_t text_bytes() const;
  int64_t targets() const;  // the sum of counted over all batches
  const TokenShard& shard() const { return shard_; }

 private:
  struct Part {                      // the chosen documents of one source
    std::vector<int64_t> documents;  // rising
    std::vector<int64_t> starts{0};  // of the documents in the packed tokens; one more than documents
    int64_t text_bytes = 0, rows = 0, first_batch = 0;
  };

  HeldOutOptions options_;
  TokenShard shard_;
  std::vector<Part> parts_;  // [source]
};

}  // namespace adder
