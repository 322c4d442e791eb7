#include "adder/data/token_shard.h"

#include "adder/core/error.h"
#include "adder/data/file.h"
#include "adder/data/hdf5.h"
#include "adder/data/seal.h"

#include <fcntl.h>
#include <hdf5.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace adder {

using hdf5::Handle, hdf5::unsigned_type;

namespace {

Handle string_type(size_t size) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, std::max<size_t>(size, 1));
  return type;
}

/// A shard's HDF5 file while it is built.
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
    const Handle set = dataset(name, unsigned_type(sizeof(T)), values.size());
    done(H5Dwrite(set, unsigned_type(sizeof(T)), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()));
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
    hdf5::quiet();
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
    if (info.token_width() == 4) {
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
    const auto width = static_cast<size_t>(info.token_width());
    const hid_t type = unsigned_type(info.token_width());
    const Handle set = file.dataset("tokens", type, offsets.back()), all(H5Dget_space(set), H5Sclose);
    std::vector<char> block(ShardInfo::block_bytes);
    std::vector<uint32_t> crcs;
    check(fflush(waiting) == 0, "{}: tokens cannot be written ({})", path, std::strerror(errno));
    rewind(waiting);
    for (hsize_t first = 0; first < offsets.back();) {
      const hsize_t count = std::min<hsize_t>(block.size() / width, offsets.back() - first);
      check(fread(block.data(), width, count, waiting) == count, "{}: tokens cannot be read back", path);
      const Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose);
      file.done(H5Sselect_hyperslab(all, H5S_SELECT_SET, &first, nullptr, &count, nullptr));
      file.done(H5Dwrite(set, type, memory, all, H5P_DEFAULT, block.data()));
      crcs.push_back(crc_of(block.data(), count * width));
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
  write_seal(s.partial, ShardInfo::kind, begin, begin + static_cast<int64_t>(s.offsets.back()) * s.info.token_width());
  publish(s.partial, s.path);
  s.partial.clear();
}

}  // namespace adder
