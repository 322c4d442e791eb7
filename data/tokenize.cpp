#include "adder/data/tokenize.h"

#include "adder/core/error.h"
#include "adder/data/token_shard.h"

#include <cmath>
#include <map>
#include <optional>

namespace adder {
namespace {

// What is known of a source while its documents pass.
struct Source {
  int64_t documents = 0;
  bool validates = false;  // a hash was below the share
  std::optional<std::pair<uint64_t, Document>> smallest;
};

constexpr size_t most_sources = 1000;  // that may have a document waiting in memory

}  // namespace

TokenizeReport tokenize(const std::vector<std::string>& inputs, const std::string& train_path,
                        const std::string& validation_path, const TokenizeOptions& options,
                        const std::function<void(const TextProgress&)>& progress) {
  check(options.validation > 0 && options.validation < 1, "tokenize: the validation share is {}, not between 0 and 1",
        options.validation);
  const ByteTokenizer tokenizer;
  const ShardInfo info{tokenizer.name(), tokenizer.vocabulary(), tokenizer.end_of_document()};
  TokenShardWriter train(train_path, info), validation(validation_path, info);
  const auto write = [&](TokenShardWriter& to, const Document& document) {
    to.add(tokenizer.encode(document.text), document.source, static_cast<int64_t>(document.text.size()));
  };

  // Until a hash below the share is met in a source, its document with the smallest hash waits.
  std::map<std::string, Source> sources;
  const auto visit = [&](const Document& document) {
    const uint64_t hash = hash_bytes(document.text);
    Source& source = sources[document.source];
    ++source.documents;
    if (std::ldexp(static_cast<double>(hash), -64) < options.validation) {
      write(validation, document);
      if (source.smallest) write(train, source.smallest->second);
      source.smallest.reset();
      source.validates = true;
    } else if (!source.validates && sources.size() <= most_sources &&
               (!source.smallest || hash < source.smallest->first)) {
      if (source.smallest) write(train, source.smallest->second);
      source.smallest.emplace(hash, document);
    } else {
      write(train, document);
    }
  };
  const TextProgress text = read_text(inputs, visit, progress);

  const Source* least = nullptr;  // of all that wait, the one with the smallest hash
  for (auto& [name, source] : sources) {
    if (!source.smallest) continue;
    if (static_cast<double>(source.documents) * options.validation >= 1) {
      write(validation, source.smallest->second);
      source.smallest.reset();
    } else if (!least || source.smallest->first < least->smallest->first) {
      least = &source;
    }
  }
  const bool none = validation.documents() == 0;
  for (const auto& [name, source] : sources)
    if (source.smallest) write(none && &source == least ? validation : train, source.smallest->second);
  check(train.documents() > 0 && validation.documents() > 0,
        "{} documents of text: at least two different ones are needed, to train on and to validate with (a text file is "
        "one for every 64 KiB, a .jsonl one for every line)",
        text.documents);
  train.finish();
  validation.finish();
  return {text, train.documents(), validation.documents()};
}

}  // namespace adder
