// Token shards: tokenized documents in one HDF5 file.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace adder {

class Descriptor;

/// A shard's file, format 2, all datasets contiguous, D documents. It begins with a seal (data/seal.h), which leaves
/// /tokens out.
///   /tokens       [token]    uint16, or uint32 if the vocabulary is above 65536: documents one after the other, each
///                            closed by the end-of-document token
///   /doc_offsets  [D + 1]    uint64: document d is tokens[doc_offsets[d] .. doc_offsets[d + 1])
///   /source_id    [D]        uint8: index into /sources
///   /text_bytes   [D]        uint64: bytes of the document's text, for nats per byte
///   /sources      [source]   the sources' names (the Pile's pile_set_name)
///   /token_crcs   [block]    uint32: zlib's crc32 of each 1 MiB of the tokens' bytes, the last block shorter
/// Attributes of /: tokenizer (its name), vocabulary, end_of_document, tokens, documents.
struct ShardInfo {
  static constexpr const char* kind = "adder token shard 2";  // its seal's first line
  static constexpr int64_t block_bytes = int64_t{1} << 20;    // of one checksum

  std::string tokenizer;
  int64_t vocabulary = 0;
  int32_t end_of_document = 0;

  int64_t token_width() const { return vocabulary > 65536 ? 4 : 2; }  // bytes
};

/// Writes a shard document by document. The tokens wait in PATH.tokens, the shard is built as PATH.partial; only
/// finish() gives it its name, so a kill leaves no half shard. A second writer of the same path is refused.
class TokenShardWriter {
 public:
  TokenShardWriter(const std::string& path, const ShardInfo& info);
  ~TokenShardWriter();

  /// The document's tokens without its end, which the writer adds. At most 256 different sources.
  void add(std::span<const int32_t> tokens, const std::string& source, int64_t text_bytes);
  int64_t documents() const;
  void finish();  // fails if there are no documents

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// An open shard. Opening reads everything but the tokens and checks it; what is wrong is named in one sentence: no
/// shard, cut short, another format or tokenizer, a checksum or counts that do not match. Tokens are read with pread,
/// past HDF5 and its global lock: any number of threads may read. Each block of them is compared with its checksum when
/// it is first read, so that damage is found before it is used.
class TokenShard {
 public:
  explicit TokenShard(const std::string& path, const std::string& tokenizer = "");  // empty: any tokenizer

  const ShardInfo& info() const { return info_; }
  const std::string& path() const { return path_; }
  int64_t tokens() const { return static_cast<int64_t>(offsets_.back()); }
  int64_t documents() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t begin(int64_t document) const { return static_cast<int64_t>(offsets_[static_cast<size_t>(document)]); }
  int64_t end(int64_t document) const { return begin(document + 1); }
  int64_t text_bytes(int64_t document) const { return static_cast<int64_t>(bytes_[static_cast<size_t>(document)]); }
  int64_t text_bytes() const;
  int source(int64_t document) const { return source_ids_[static_cast<size_t>(document)]; }
  const std::vector<std::string>& sources() const { return sources_; }
  int64_t document_of(int64_t token) const;  // log(documents)

  /// tokens[first .. first + to.size()); fails outside the shard, and naming the block if one is damaged.
  void read(int64_t first, std::span<int32_t> to) const;

  /// Reads every token and compares the checksums again. About a second a gigabyte.
  void verify() const;

  /// Tells shards with different contents apart: from the counts and the checksums, without reading the tokens.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  void read_bytes(int64_t first_byte, std::span<char> to) const;
  void check_block(int64_t i) const;
  void read_metadata();
  void check_counts() const;

  std::string path_;
  ShardInfo info_;
  std::vector<uint64_t> offsets_, bytes_;
  std::vector<uint8_t> source_ids_;
  std::vector<std::string> sources_;
  std::vector<uint32_t> token_crcs_;
  int64_t token_width_ = 2;    // bytes of a token
  int64_t tokens_offset_ = 0;  // of /tokens in the file
  uint64_t fingerprint_ = 0;
  std::shared_ptr<const Descriptor> file_;
  std::shared_ptr<std::atomic<bool>[]> checked_;  // [block]
};

}  // namespace adder
