#include "adder/data/token_shard.h"

#include "adder/core/error.h"
#include "adder/data/file.h"
#include "adder/data/seal.h"
#include "adder/data/text.h"
#include "adder/distributed/run_folder.h"

#include <fcntl.h>
#include <hdf5.h>
#include <sys/file.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <utility>

namespace adder {

static_assert(std::endian::native == std::endian::little, "shards are read as they lie in the file");

namespace {

constexpr const char* kind = "adder token shard 2";
constexpr int64_t block_bytes = int64_t{1} << 20;  // of one checksum

/// An HDF5 identifier, closed with its own function; opening it may fail.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  bool opened() const { return id_ >= 0; }
  operator hid_t() const { return id_; }
  herr_t end() { return close_(std::exchange(id_, -1)); }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

/// HDF5 prints nothing any more: every call is checked and its failure told in one sentence. It stays so, because after
/// meeting a damaged file HDF5 would complain once more at the end of the process.
void quiet() { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

uint32_t crc(std::span<const char> bytes) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()));
}

template <class T>
std::span<const char> bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class T>
hid_t number_type() {
  if constexpr (sizeof(T) == 1) return H5T_STD_U8LE;
  if constexpr (sizeof(T) == 2) return H5T_STD_U16LE;
  if constexpr (sizeof(T) == 4) return H5T_STD_U32LE;
  if constexpr (sizeof(T) == 8) return H5T_STD_U64LE;
}

Handle string_type(size_t size) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, std::max<size_t>(size, 1));
  return type;
}

// ---- writing

class Builder {
 public:
  explicit Builder(const std::string& path) : path_(path), file_(create(path)) {
    check(file_.opened(), "{}: HDF5 cannot create the file ({})", path, std::strerror(errno));
  }

  Handle dataset(const std::string& name, hid_t type, size_t size) {
    const hsize_t extent = size;
    const Handle space(H5Screate_simple(1, &extent, nullptr), H5Sclose);
    Handle set(H5Dcreate2(file_, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose);
    done(set);
    return set;
  }

  template <class T>
  void write(const std::string& name, const std::vector<T>& values) {
    const Handle set = dataset(name, number_type<T>(), values.size());
    done(H5Dwrite(set, number_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()));
  }

  void write_strings(const std::string& name, const std::vector<std::string>& values) {
    size_t size = 1;
    for (const auto& value : values) size = std::max(size, value.size());
    std::string cells;
    for (const auto& value : values) cells += value + std::string(size - value.size(), '\0');
    const Handle type = string_type(size), set = dataset(name, type, values.size());
    done(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, cells.data()));
  }

  void attribute(const char* name, int64_t value) { attribute(name, H5T_STD_I64LE, &value); }
  void attribute(const char* name, const std::string& value) {
    attribute(name, string_type(value.size()), value.data());
  }

  void done(hid_t result) { check(result >= 0, "{}: HDF5 cannot write; is the disk full?", path_); }
  void close() {
    done(H5Fflush(file_, H5F_SCOPE_GLOBAL));
    done(file_.end());
  }

 private:
  static Handle create(const std::string& path) {
    const Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
    H5Pset_userblock(creation, Seal::size);
    quiet();
    return {H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, H5P_DEFAULT), H5Fclose};
  }

  void attribute(const char* name, hid_t type, const void* value) {
    const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
    const Handle set(H5Acreate2(file_, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    done(set);
    done(H5Awrite(set, type, value));
  }

  std::string path_;
  Handle file_;
};

FILE* open_for_update(const std::string& path) {
  const int id = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  FILE* const file = id < 0 ? nullptr : fdopen(id, "w+b");
  check(file != nullptr, "{}: cannot be written ({})", path, std::strerror(errno));
  return file;
}

int64_t width_of(int64_t vocabulary) { return vocabulary > 65536 ? 4 : 2; }

}  // namespace

struct TokenShardWriter::State {
  ~State() {
    if (!waiting) return;
    std::remove(waiting_path().c_str());
    if (!partial.empty()) std::remove(partial.c_str());
    fclose(waiting);
  }

  std::string waiting_path() const { return path + ".tokens"; }

  // Opens the file that the tokens wait in, for this writer alone.
  void open_waiting() {
    const std::string name = waiting_path();
    waiting = open_for_update(name);
    const bool taken =
        flock(fileno(waiting), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;  // some disks cannot lock
    if (taken) fclose(std::exchange(waiting, nullptr));
    check(!taken, "{}: another program is writing it", path);
    check(ftruncate(fileno(waiting), 0) == 0, "{}: cannot be written ({})", name, std::strerror(errno));
  }

  void put(std::span<const int32_t> tokens) {
    if (tokens.empty()) return;  // an empty document: its end follows
    size_t written = 0;
    if (width_of(info.vocabulary) == 4) {
      written = fwrite(tokens.data(), 4, tokens.size(), waiting);
    } else {
      narrow.assign(tokens.begin(), tokens.end());
      written = fwrite(narrow.data(), 2, narrow.size(), waiting);
    }
    check(written == tokens.size(), "{}: tokens cannot be written ({})", path, std::strerror(errno));
    offsets.back() += tokens.size();
  }

  /// Copies the waiting tokens into /tokens block by block; returns where they lie in the file.
  int64_t move_tokens(Builder& file) {
    const auto width = static_cast<size_t>(width_of(info.vocabulary));
    const hid_t type = width == 2 ? H5T_STD_U16LE : H5T_STD_U32LE;
    const Handle set = file.dataset("tokens", type, offsets.back()), all(H5Dget_space(set), H5Sclose);
    std::vector<char> block(block_bytes);
    std::vector<uint32_t> crcs;
    check(fflush(waiting) == 0, "{}: tokens cannot be written ({})", path, std::strerror(errno));
    rewind(waiting);
    for (hsize_t first = 0; first < offsets.back();) {
      const hsize_t count = std::min<hsize_t>(block.size() / width, offsets.back() - first);
      check(fread(block.data(), width, count, waiting) == count, "{}: tokens cannot be read back", path);
      const Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose);
      file.done(H5Sselect_hyperslab(all, H5S_SELECT_SET, &first, nullptr, &count, nullptr));
      file.done(H5Dwrite(set, type, memory, all, H5P_DEFAULT, block.data()));
      crcs.push_back(crc(std::span(block).first(count * width)));
      first += count;
    }
    file.write("token_crcs", crcs);
    const haddr_t offset = H5Dget_offset(set);
    check(offset != HADDR_UNDEF, "{}: HDF5 does not say where the tokens lie", path);
    return static_cast<int64_t>(offset);
  }

  std::string path, partial;
  ShardInfo info;
  FILE* waiting = nullptr;  // the tokens
  std::vector<uint16_t> narrow;
  std::vector<uint64_t> offsets{0}, bytes;
  std::vector<uint8_t> source_ids;
  std::vector<std::string> sources;
};

TokenShardWriter::TokenShardWriter(const std::string& path, const ShardInfo& info)
    : state_(std::make_unique<State>()) {
  state_->path = path;
  state_->info = info;
  state_->open_waiting();
}

TokenShardWriter::~TokenShardWriter() = default;

int64_t TokenShardWriter::documents() const { return static_cast<int64_t>(state_->bytes.size()); }

void TokenShardWriter::add(std::span<const int32_t> tokens, const std::string& source, int64_t text_bytes) {
  auto& s = *state_;
  for (const int32_t token : tokens)
    check(token >= 0 && token < s.info.vocabulary, "{}: token {} is outside the vocabulary of {}", s.path, token,
          s.info.vocabulary);
  auto found = std::find(s.sources.begin(), s.sources.end(), source);
  if (found == s.sources.end()) {
    check(s.sources.size() < 256, "{}: more than 256 sources, \"{}\" is one too many", s.path, source);
    found = s.sources.insert(s.sources.end(), source);
  }
  s.source_ids.push_back(static_cast<uint8_t>(found - s.sources.begin()));
  s.bytes.push_back(static_cast<uint64_t>(text_bytes));
  s.offsets.push_back(s.offsets.back());
  s.put(tokens);
  s.put({&s.info.end_of_document, 1});
}

void TokenShardWriter::finish() {
  auto& s = *state_;
  check(documents() > 0, "{}: no documents to write", s.path);
  s.partial = s.path + ".partial";
  int64_t begin = 0;
  {
    Builder file(s.partial);
    begin = s.move_tokens(file);
    file.write("doc_offsets", s.offsets);
    file.write("text_bytes", s.bytes);
    file.write("source_id", s.source_ids);
    file.write_strings("sources", s.sources);
    file.attribute("tokenizer", s.info.tokenizer);
    file.attribute("vocabulary", s.info.vocabulary);
    file.attribute("end_of_document", int64_t{s.info.end_of_document});
    file.attribute("tokens", static_cast<int64_t>(s.offsets.back()));
    file.attribute("documents", documents());
    file.close();
  }
  write_seal(s.partial, kind, begin, begin + static_cast<int64_t>(s.offsets.back()) * width_of(s.info.vocabulary));
  publish(s.partial, s.path);
  s.partial.clear();
}

// ---- reading

namespace {

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
    readable(H5Dread(set, number_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), name);
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
    quiet();
    const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    H5Pset_file_locking(access, false, true);  // locks fail on some parallel file systems; a shard never changes
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
  const Seal seal = check_seal(file_->get(), path, kind);
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
  token_width_ = width_of(info_.vocabulary);
  offsets_ = file.read<uint64_t>("doc_offsets");
  bytes_ = file.read<uint64_t>("text_bytes");
  source_ids_ = file.read<uint8_t>("source_id");
  sources_ = file.strings("sources");
  token_crcs_ = file.read<uint32_t>("token_crcs");
  checked_.reset(new std::atomic<bool>[token_crcs_.size()]());
  fingerprint_ = 0;
  for (const auto part : {bytes_of(offsets_), bytes_of(bytes_), bytes_of(source_ids_), bytes_of(token_crcs_)})
    fingerprint_ = hash_bytes(fmt::format("{:016x} {} {:08x}", fingerprint_, part.size(), crc(part)));
  check(!offsets_.empty() && std::cmp_equal(offsets_.back(), file.attribute("tokens")) &&
            std::cmp_equal(offsets_.size() - 1, file.attribute("documents")),
        "{}: damaged: {} tokens and {} documents by its attributes, {} and {} by /doc_offsets", path_,
        file.attribute("tokens"), file.attribute("documents"), offsets_.empty() ? 0 : offsets_.back(),
        offsets_.empty() ? 0 : offsets_.size() - 1);
  const Handle set = file.dataset("tokens"), type(H5Dget_type(set), H5Tclose);
  const Handle layout(H5Dget_create_plist(set), H5Pclose);
  check(H5Tequal(type, token_width_ == 2 ? H5T_STD_U16LE : H5T_STD_U32LE) > 0 &&
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
  const uint32_t stored = token_crcs_[static_cast<size_t>(i)], computed = crc(block);
  check(computed == stored, "{}: damaged: block {} of /tokens has checksum {:08x}, not {:08x}", path_, i, computed,
        stored);
  checked_[i] = true;
}

void TokenShard::verify() const {
  for (size_t i = 0; i < token_crcs_.size(); ++i) check_block(static_cast<int64_t>(i));
}

}  // namespace adder
