// From text to token shards: the training and the validation one.
#pragma once

#include "adder/data/text.h"
#include "adder/data/tokenizer.h"

#include <functional>
#include <string>
#include <vector>

namespace adder {

struct TokenizeOptions {
  double validation = 0.05;  // share of the documents
};

struct TokenizeReport {
  TextProgress text;
  int64_t train_documents = 0, validation_documents = 0;
};

/// Reads the inputs (see read_text) and writes both shards. A document is a validation document if the hash of its text
/// is below the share, so the split depends neither on the order nor on the other documents and equal texts fall on one
/// side. A source of which no hash is below the share, though a document of it was to be expected there, gives the one
/// with the smallest hash; where no source gives any, all together give one.
/// Fails, leaving no shard behind, if a side stays empty.
TokenizeReport tokenize(const std::vector<std::string>& inputs, const std::string& train_path,
                        const std::string& validation_path, const TokenizeOptions& options = {},
                        const std::function<void(const TextProgress&)>& progress = {});

}  // namespace adder
