#include "adder/data/tokenize.h"

#include "adder/core/error.h"
#include "adder/data/token_shard.h"

#include <cmath>
#include <optional>

namespace adder {

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

  // Until a hash below the share is met, the document with the smallest hash waits here.
  std::optional<std::pair<uint64_t, Document>> smallest;
  const auto visit = [&](const Document& document) {
    const uint64_t hash = hash_bytes(document.text);
    if (std::ldexp(static_cast<double>(hash), -64) < options.validation) {
      write(validation, document);
      if (smallest) write(train, smallest->second);
      smallest.reset();
    } else if (validation.documents() == 0 && (!smallest || hash < smallest->first)) {
      if (smallest) write(train, smallest->second);
      smallest.emplace(hash, document);
    } else {
      write(train, document);
    }
  };
  const TextProgress text = read_text(inputs, visit, progress);
  if (smallest) write(validation, smallest->second);
  check(train.documents() > 0 && validation.documents() > 0,
        "{} documents of text: at least two different ones are needed, to train on and to validate with",
        text.documents);
  train.finish();
  validation.finish();
  return {text, train.documents(), validation.documents()};
}

}  // namespace adder
