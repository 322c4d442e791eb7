#include "adder/data/token_shard.h"

#include "adder/core/error.h"
#include "adder/data/file.h"
#include "adder/data/hdf5.h"
#include "adder/data/seal.h"
#include "adder/data/text.h"
#include "adder/distributed/run_folder.h"

#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <utility>

namespace adder {

using hdf5::Handle, hdf5::unsigned_type;

static_assert(std::endian::native == std::endian::little, "shards are read as they lie in the file");

namespace {

constexpr int64_t block_bytes = ShardInfo::block_bytes;

template <class T>
std::span<const char> bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// A shard's HDF5 file, open to read all but its tokens.
class Opened {
 public:
  explicit Opened(const std::string& path) : path_(path), file_(open(path)) {}

  int64_t attribute(const char* name) {
    int64_t value = 0;
    const Handle attribute = find(name);
    readable(H5Aread(attribute, H5T_NATIVE_INT64, &value), name);
    return value;
  }

  std::string text_attribute(const char* name) {
    const Handle attribute = find(name), type(H5Aget_type(attribute), H5Tclose);
    std::string value(H5Tget_size(type), '\0');
    readable(H5Aread(attribute, type, value.data()), name);
    return value.c_str();
  }

  Handle dataset(const std::string& name) {
    Handle set(H5Dopen2(file_, name.c_str(), H5P_DEFAULT), H5Dclose);
    check(set.opened(), "{}: damaged, or not a token file: no readable /{}", path_, name);
    return set;
  }

  size_t size(hid_t set) {
    const Handle space(H5Dget_space(set), H5Sclose);
    return static_cast<size_t>(std::max<hssize_t>(H5Sget_simple_extent_npoints(space), 0));
  }

  template <class T>
  std::vector<T> read(const std::string& name) {
    const Handle set = dataset(name);
    std::vector<T> values(size(set));
    readable(H5Dread(set, unsigned_type(sizeof(T)), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), name);
    return values;
  }

  std::vector<std::string> strings(const std::string& name) {
    const Handle set = dataset(name), type(H5Dget_type(set), H5Tclose);
    const size_t width = H5Tget_size(type);
    std::string cells(width * size(set), '\0');
    readable(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, cells.data()), name);
    std::vector<std::string> values;
    for (size_t at = 0; at < cells.size(); at += width) values.emplace_back(cells.substr(at, width).c_str());
    return values;
  }

 private:
  static Handle open(const std::string& path) {
    hdf5::quiet();
    const Handle access = hdf5::without_locks();  // a shard never changes
    Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
    check(file.opened(), "{}: HDF5 cannot open it", path);
    return file;
  }

  Handle find(const char* name) {
    Handle attribute(H5Aopen(file_, name, H5P_DEFAULT), H5Aclose);
    check(attribute.opened(), "{}: damaged, or not a token file: no readable attribute \"{}\"", path_, name);
    return attribute;
  }

  void readable(herr_t result, const std::string& name) {
    check(result >= 0, "{}: damaged: HDF5 cannot read \"{}\"", path_, name);
  }

  std::string path_;
  Handle file_;
};

}  // namespace

TokenShard::TokenShard(const std::string& path, const std::string& tokenizer)
    : path_(path), file_(std::make_shared<Descriptor>(open(path.c_str(), O_RDONLY | O_CLOEXEC))) {
  check(file_->get() >= 0, "{}: cannot be read ({})", path, std::strerror(errno));
  const Seal seal = check_seal(file_->get(), path, ShardInfo::kind);
  read_metadata();
  check(seal.begin == tokens_offset_ && seal.end == tokens_offset_ + tokens() * token_width_,
        "{}: damaged: /tokens does not lie where the seal says", path);
  check_counts();
  check(tokenizer.empty() || tokenizer == info_.tokenizer, "{}: written by the tokenizer \"{}\", but \"{}\" is wanted",
        path_, info_.tokenizer, tokenizer);
}

void TokenShard::read_metadata() {
  Opened file(path_);
  info_ = {file.text_attribute("tokenizer"), file.attribute("vocabulary"),
           static_cast<int32_t>(file.attribute("end_of_document"))};
  token_width_ = info_.token_width();
  offsets_ = file.read<uint64_t>("doc_offsets");
  bytes_ = file.read<uint64_t>("text_bytes");
  source_ids_ = file.read<uint8_t>("source_id");
  sources_ = file.strings("sources");
  token_crcs_ = file.read<uint32_t>("token_crcs");
  checked_.reset(new std::atomic<bool>[token_crcs_.size()]());
  fingerprint_ = 0;
  for (const auto part : {bytes_of(offsets_), bytes_of(bytes_), bytes_of(source_ids_), bytes_of(token_crcs_)})
    fingerprint_ = hash_bytes(
        fmt::format("{:016x} {} {:08x}", fingerprint_, part.size(), crc_of(part.data(), part.size())));
  check(!offsets_.empty() && std::cmp_equal(offsets_.back(), file.attribute("tokens")) &&
            std::cmp_equal(offsets_.size() - 1, file.attribute("documents")),
        "{}: damaged: {} tokens and {} documents by its attributes, {} and {} by /doc_offsets", path_,
        file.attribute("tokens"), file.attribute("documents"), offsets_.empty() ? 0 : offsets_.back(),
        offsets_.empty() ? 0 : offsets_.size() - 1);
  const Handle set = file.dataset("tokens"), type(H5Dget_type(set), H5Tclose);
  const Handle layout(H5Dget_create_plist(set), H5Pclose);
  check(H5Tequal(type, unsigned_type(token_width_)) > 0 &&
            H5Pget_layout(layout) == H5D_CONTIGUOUS && H5Dget_offset(set) != HADDR_UNDEF,
        "{}: /tokens is not contiguous uint{}, which a vocabulary of {} needs", path_, 8 * token_width_,
        info_.vocabulary);
  check(file.size(set) == offsets_.back(), "{}: damaged: /tokens holds {} tokens, /doc_offsets ends at {}", path_,
        file.size(set), offsets_.back());
  tokens_offset_ = static_cast<int64_t>(H5Dget_offset(set));
}

void TokenShard::check_counts() const {
  check(0 <= info_.end_of_document && info_.end_of_document < info_.vocabulary,
        "{}: damaged: the end of a document is token {} of {}", path_, info_.end_of_document, info_.vocabulary);
  const size_t count = offsets_.size() - 1;
  check(count > 0 && offsets_.front() == 0 &&
            std::adjacent_find(offsets_.begin(), offsets_.end(), std::greater_equal<>()) == offsets_.end(),
        "{}: damaged: /doc_offsets does not rise from 0", path_);
  check(bytes_.size() == count && source_ids_.size() == count,
        "{}: damaged: {} documents, but /text_bytes counts {} and /source_id {}", path_, count, bytes_.size(),
        source_ids_.size());
  const auto largest = *std::max_element(source_ids_.begin(), source_ids_.end());
  check(largest < sources_.size(), "{}: damaged: source {} of {}", path_, largest, sources_.size());
  const int64_t blocks = (tokens() * token_width_ + block_bytes - 1) / block_bytes;
  check(std::cmp_equal(token_crcs_.size(), blocks), "{}: damaged: {} checksums for {} blocks of tokens", path_,
        token_crcs_.size(), blocks);
}

int64_t TokenShard::text_bytes() const {
  return static_cast<int64_t>(std::accumulate(bytes_.begin(), bytes_.end(), uint64_t{0}));
}

int64_t TokenShard::document_of(int64_t token) const {
  check(token >= 0 && token < tokens(), "{}: token {} of {}", path_, token, tokens());
  return std::upper_bound(offsets_.begin(), offsets_.end(), static_cast<uint64_t>(token)) - offsets_.begin() - 1;
}

void TokenShard::read_bytes(int64_t first_byte, std::span<char> to) const {
  while (!to.empty()) {
    const ssize_t count = pread(file_->get(), to.data(), to.size(), tokens_offset_ + first_byte);
    if (count < 0 && errno == EINTR) continue;
    check(count >= 0, "{}: cannot be read ({})", path_, std::strerror(errno));
    check(count > 0, "{}: cut short while it was open", path_);
    first_byte += count;
    to = to.subspan(static_cast<size_t>(count));
  }
}

void TokenShard::read(int64_t first, std::span<int32_t> to) const {
  const auto count = static_cast<int64_t>(to.size());
  check(first >= 0 && count <= tokens() - first, "{}: tokens {} to {} of {}", path_, first, first + count, tokens());
  const int64_t begin = first * token_width_, end = (first + count) * token_width_;
  for (int64_t i = begin / block_bytes; i * block_bytes < end; ++i)
    if (!checked_[i]) check_block(i);
  if (token_width_ == 4) return read_bytes(begin, {reinterpret_cast<char*>(to.data()), 4 * to.size()});
  std::vector<uint16_t> narrow(to.size());
  read_bytes(begin, {reinterpret_cast<char*>(narrow.data()), 2 * narrow.size()});
  std::copy(narrow.begin(), narrow.end(), to.begin());
}

void TokenShard::check_block(int64_t i) const {
  std::vector<char> block(static_cast<size_t>(std::min(block_bytes, tokens() * token_width_ - i * block_bytes)));
  read_bytes(i * block_bytes, block);
  const uint32_t stored = token_crcs_[static_cast<size_t>(i)], computed = crc_of(block.data(), block.size());
  check(computed == stored, "{}: damaged: block {} of /tokens has checksum {:08x}, not {:08x}", path_, i, computed,
        stored);
  checked_[i] = true;
}

void TokenShard::verify() const {
  for (size_t i = 0; i < token_crcs_.size(); ++i) check_block(static_cast<int64_t>(i));
}

}  // namespace adder
