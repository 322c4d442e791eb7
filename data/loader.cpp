#include "adder/data/loader.h"

#include "adder/core/error.h"
#include "adder/data/permutation.h"

#include <algorithm>
#include <array>

namespace adder {

namespace {

/// The rows of a batch on the host, filled from the left.
class Rows {
 public:
  Rows(const TokenShard& shard, int64_t rows, int64_t time) : shard_(shard), time_(time) {
    batch_ = {Tensor({rows, time}, DType::i32), Tensor({rows, time}, DType::i32), Tensor({rows, time}, DType::i32)};
  }

  int64_t left() const { return time_ - filled_; }

  /// Appends the targets first .. first + count - 1 of a document, counted from its start, each with the token before.
  void append(int64_t document, int64_t first, int64_t count) {
    const int64_t begin = shard_.begin(document) + first, before = first > 0 ? 1 : 0;
    tokens_.resize(static_cast<size_t>(count + before));
    shard_.read(begin - before, tokens_);
    const int32_t* read = tokens_.data();
    const int32_t input = before ? *read++ : shard_.info().end_of_document;
    at(batch_.tokens)[0] = input;
    std::copy(read, read + count - 1, at(batch_.tokens) + 1);
    std::copy(read, read + count, at(batch_.targets));
    std::fill_n(at(batch_.document), count, documents_++);
    batch_.counted += count;
    filled_ += count;
  }

  /// The row's first `count` targets are not counted.
  void mask(int64_t count) {
    const int64_t masked = std::min(count, filled_);
    std::fill_n(at(batch_.targets) - filled_, masked, -1);
    batch_.counted -= masked;
  }

  /// Fills what is left of the row with one more document without targets, and goes to the next row.
  void end_row() {
    std::fill_n(at(batch_.tokens), left(), shard_.info().end_of_document);
    std::fill_n(at(batch_.targets), left(), -1);
    std::fill_n(at(batch_.document), left(), documents_);
    ++row_;
    filled_ = 0;
    documents_ = 0;
  }

  const Batch& batch() const { return batch_; }

 private:
  int32_t* at(const Tensor& t) const { return t.data<int32_t>() + row_ * time_ + filled_; }

  const TokenShard& shard_;
  int64_t time_, row_ = 0, filled_ = 0;
  int32_t documents_ = 0;
  std::vector<int32_t> tokens_;
  Batch batch_;
};

}  // namespace

TokenFile::TokenFile(const std::string& path, const Mesh& mesh, LoaderOptions options)
    : TokenFile(path, (options.rank = mesh.data.rank(), options.ranks = mesh.data.size(), options)) {}

TokenFile::TokenFile(const std::string& path, const LoaderOptions& options)
    : options_(options), shard_(path, options.tokenizer), random_(options.seed, "samples") {
  const auto& o = options_;
  check(o.time > 0 && o.micro_batch > 0 && o.batch > 0 && o.ranks > 0,
        "{}: batch {}, micro-batch {}, time {}, ranks {}: all must be positive", path, o.batch, o.micro_batch, o.time,
        o.ranks);
  check(o.rank >= 0 && o.rank < o.ranks, "{}: rank {} of {}", path, o.rank, o.ranks);
  check(o.batch % (o.ranks * o.micro_batch) == 0,
        "a batch of {} cannot be cut into micro-batches of {} on {} ranks", o.batch, o.micro_batch, o.ranks);
  check(samples_per_epoch() > 0, "{}: {} tokens are fewer than one sample of {}", path, shard_.tokens(), o.time);
}

std::vector<Batch> TokenFile::next() {
  const int64_t share = options_.batch / options_.ranks, first = consumed_ + options_.rank * share;
  std::vector<Batch> batches;
  for (int64_t at = 0; at < share; at += options_.micro_batch) {
    Batch& batch = batches.emplace_back(samples(first + at, options_.micro_batch));
    batch.scale =
        full({1}, 1 / static_cast<double>(options_.batch * options_.time), DType::f64);  // every target counts
    batch.position =
        from_host({2}, std::array{static_cast<int32_t>(step()), static_cast<int32_t>(first + at - consumed_)});
  }
  consumed_ += options_.batch;
  return batches;
}

Batch TokenFile::samples(int64_t first, int64_t count) const {
  Rows rows(shard_, count, options_.time);
  for (int64_t k = first; k < first + count; ++k) {
    const int64_t epoch = k / samples_per_epoch();
    const auto number = static_cast<uint64_t>(epoch);
    const auto turn = static_cast<int64_t>(random_.bits(~uint64_t{0}, number) % static_cast<uint64_t>(shard_.tokens()));
    const Permutation order(samples_per_epoch(), random_, number);
    const int64_t start = (turn + order(k % samples_per_epoch()) * options_.time) % shard_.tokens();
    int64_t document = shard_.document_of(start), inside = start - shard_.begin(document);
    while (rows.left() > 0) {
      const int64_t length = shard_.end(document) - shard_.begin(document);
      rows.append(document, inside, std::min(rows.left(), length - inside));
      document = (document + 1) % shard_.documents();
      inside = 0;
    }
    rows.end_row();
  }
  return rows.batch();
}

void TokenFile::seek(int64_t consumed_samples) {
  check(consumed_samples >= 0, "{}: cannot go to sample {}", shard_.path(), consumed_samples);
  consumed_ = consumed_samples;
}

State TokenFile::state() {
  // What sample k is a function of. Unsigned numbers are kept as the int64_t of the same bits.
  const auto source = [this] {
    return Values{{"shard", static_cast<int64_t>(shard_.fingerprint())}, {"seed", static_cast<int64_t>(options_.seed)},
                  {"time", options_.time}};
  };
  return {.name = "data",
          .save = [this, source] {
            Values values = source();
            values["consumed_samples"] = consumed_;
            return values;
          },
          .load = [this, source](const Values& saved) {
            for (const auto& [name, now] : source())
              check(value<int64_t>(saved, name) == std::get<int64_t>(now),
                    "{}: the run was saved with the {} {}, not {}: it would not see the same samples", shard_.path(),
                    name, value<int64_t>(saved, name), std::get<int64_t>(now));
            seek(value<int64_t>(saved, "consumed_samples"));
          }};
}

HeldOut::HeldOut(const std::string& path, const HeldOutOptions& options)
    : options_(options), shard_(path, options.tokenizer), parts_(shard_.sources().size()) {
  const auto& o = options_;
  check(o.batch > 0 && o.time > 0 && o.context >= 0 && o.context < o.time,
        "{}: batch {}, time {}, context {}: the first two must be positive and the context shorter than the time", path,
        o.batch, o.time, o.context);
  const Permutation order(shard_.documents(), Random(0, "held out"), 0);
  std::vector<int64_t> chosen;
  for (int64_t i = 0, tokens = 0; i < shard_.documents() && (o.tokens <= 0 || tokens < o.tokens); ++i) {
    chosen.push_back(order(i));
    tokens += shard_.end(chosen.back()) - shard_.begin(chosen.back());
  }
  std::sort(chosen.begin(), chosen.end());
  for (const int64_t document : chosen) {
    auto& part = parts_[static_cast<size_t>(shard_.source(document))];
    part.documents.push_back(document);
    part.starts.push_back(part.starts.back() + shard_.end(document) - shard_.begin(document));
    part.text_bytes += shard_.text_bytes(document);
  }
  const int64_t stride = o.time - o.context;
  int64_t batches = 0;
  for (auto& part : parts_) {
    const int64_t after_first = std::max<int64_t>(part.starts.back() - o.time, 0);
    part.rows = part.documents.empty() ? 0 : 1 + (after_first + stride - 1) / stride;
    part.first_batch = batches;
    batches += (part.rows + o.batch - 1) / o.batch;
  }
}

int64_t HeldOut::batches() const {
  const auto& last = parts_.back();
  return last.first_batch + (last.rows + options_.batch - 1) / options_.batch;
}

HeldOut::SourceBatch HeldOut::batch(int64_t i) const {
  check(i >= 0 && i < batches(), "{}: batch {} of {}", shard_.path(), i, batches());
  const auto after = std::upper_bound(parts_.begin(), parts_.end(), i,
                                      [](int64_t index, const Part& part) { return index < part.first_batch; });
  const auto& part = *(after - 1);  // the last one that starts at or before i has rows: empty ones come before it
  const int64_t first = (i - part.first_batch) * options_.batch;
  const int64_t count = std::min(options_.batch, part.rows - first), stride = options_.time - options_.context;
  Rows rows(shard_, count, options_.time);
  for (int64_t row = first; row < first + count; ++row) {
    int64_t at = row * stride;
    auto index = std::upper_bound(part.starts.begin(), part.starts.end(), at) - part.starts.begin() - 1;
    while (rows.left() > 0 && at < part.starts.back()) {
      const auto k = static_cast<size_t>(index++);
      const int64_t taken = std::min(rows.left(), part.starts[k + 1] - at);
      rows.append(part.documents[k], at - part.starts[k], taken);
      at += taken;
    }
    if (row > 0) rows.mask(options_.context);
    rows.end_row();
  }
  return {rows.batch(), static_cast<int>(&part - parts_.data())};
}

int64_t HeldOut::text_bytes() const {
  int64_t sum = 0;
  for (const auto& part : parts_) sum += part.text_bytes;
  return sum;
}

int64_t HeldOut::targets() const {
  int64_t sum = 0;
  for (const auto& part : parts_) sum += part.starts.back();
  return sum;
}

}  // namespace adder
