#include "adder/data/file.h"

#include "adder/core/error.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

namespace adder {

namespace {
constexpr size_t buffer_bytes = size_t{1} << 18;

struct ZstdDeleter {
  void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
  void operator()(ZSTD_CStream* stream) const { ZSTD_freeCStream(stream); }
};

void sync(const std::string& path, int flags) {
  const int descriptor = open(path.c_str(), flags);
  check(descriptor >= 0, "{}: cannot be opened for syncing ({})", path, std::strerror(errno));
  const int failed = fsync(descriptor);
  const int why = errno;
  close(descriptor);
  check(failed == 0, "{}: cannot be written to the disk ({})", path, std::strerror(why));
}
}  // namespace

// zlib reads a file that is not gzip as it is, so it stands below zstd too.
struct InputFile::Streams {
  ~Streams() {
    if (gzip) gzclose(gzip);
  }
  gzFile gzip = nullptr;
  std::unique_ptr<ZSTD_DStream, ZstdDeleter> zstd;
  std::vector<char> buffer;
  ZSTD_inBuffer input{nullptr, 0, 0};
  bool inside_frame = true;
};

InputFile::InputFile(const std::string& path) : path_(path), streams_(std::make_shared<Streams>()) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  check(std::filesystem::exists(status), "{}: no such file", path);
  check(!std::filesystem::is_directory(status), "{}: is a folder, not a file", path);
  errno = 0;
  streams_->gzip = gzopen(path.c_str(), "rb");
  check(streams_->gzip != nullptr, "{}: cannot be read ({})", path, std::strerror(errno));
  gzbuffer(streams_->gzip, buffer_bytes);
  if (!path.ends_with(".zst")) return;
  streams_->zstd.reset(ZSTD_createDStream());
  const int widest = ZSTD_dParam_getBounds(ZSTD_d_windowLogMax).upperBound;  // zstd --long
  ZSTD_DCtx_setParameter(streams_->zstd.get(), ZSTD_d_windowLogMax, widest);
  streams_->buffer.resize(buffer_bytes);
}

int64_t InputFile::position() const { return gzoffset(streams_->gzip); }

size_t InputFile::read_stored(std::span<char> to) {
  size_t done = 0;
  while (done < to.size()) {
    const auto wanted = static_cast<unsigned>(std::min<size_t>(to.size() - done, size_t{1} << 30));
    const int count = gzread(streams_->gzip, to.data() + done, wanted);
    int error = Z_OK;
    const char* why = gzerror(streams_->gzip, &error);
    check(error != Z_BUF_ERROR, "{}: the file is cut short", path_);
    check(count >= 0 && (error == Z_OK || error == Z_STREAM_END), "{}: damaged or unreadable ({})", path_, why);
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

size_t InputFile::read_zstd(std::span<char> to) {
  auto& [gzip, zstd, buffer, input, inside_frame] = *streams_;
  ZSTD_outBuffer output{to.data(), to.size(), 0};
  while (output.pos < output.size) {
    if (input.pos == input.size) input = {buffer.data(), read_stored(buffer), 0};
    const bool ended = input.size == 0;
    const size_t before = output.pos;
    const size_t state = ended && !inside_frame ? 0 : ZSTD_decompressStream(zstd.get(), &output, &input);
    check(!ZSTD_isError(state), "{}: damaged zstd file ({})", path_, ZSTD_getErrorName(state));
    if (!ended || output.pos > before) inside_frame = state != 0;
    if (!ended || output.pos > before) continue;
    check(!inside_frame, "{}: the file is cut short", path_);
    break;
  }
  return output.pos;
}

size_t InputFile::read(std::span<char> to) { return streams_->zstd ? read_zstd(to) : read_stored(to); }

struct OutputFile::Streams {
  ~Streams() {
    if (file) fclose(file);
  }
  FILE* file = nullptr;
  std::unique_ptr<ZSTD_CStream, ZstdDeleter> zstd;
  std::vector<char> buffer;
};

OutputFile::OutputFile(const std::string& path)
    : path_(path), partial_(path + ".partial"), streams_(std::make_unique<Streams>()) {
  streams_->file = fopen(partial_.c_str(), "wb");
  check(streams_->file != nullptr, "{}: cannot be written ({})", partial_, std::strerror(errno));
  if (!path.ends_with(".zst")) return;
  streams_->zstd.reset(ZSTD_createCStream());
  ZSTD_CCtx_setParameter(streams_->zstd.get(), ZSTD_c_checksumFlag, 1);
  streams_->buffer.resize(ZSTD_CStreamOutSize());
}

OutputFile::~OutputFile() {
  if (!committed_) std::remove(partial_.c_str());
}

void OutputFile::store(std::string_view bytes) {
  check(fwrite(bytes.data(), 1, bytes.size(), streams_->file) == bytes.size(), "{}: cannot be written ({})", partial_,
        std::strerror(errno));
}

void OutputFile::compress(std::string_view bytes, bool last) {
  ZSTD_inBuffer input{bytes.data(), bytes.size(), 0};
  for (size_t left = 1; left != 0 && (last || input.pos < input.size);) {
    ZSTD_outBuffer output{streams_->buffer.data(), streams_->buffer.size(), 0};
    left = ZSTD_compressStream2(streams_->zstd.get(), &output, &input, last ? ZSTD_e_end : ZSTD_e_continue);
    check(!ZSTD_isError(left), "{}: zstd failed ({})", partial_, ZSTD_getErrorName(left));
    store({streams_->buffer.data(), output.pos});
    if (!last) left = 1;
  }
}

void OutputFile::write(std::string_view bytes) {
  if (streams_->zstd) {
    compress(bytes, false);
  } else {
    store(bytes);
  }
}

void OutputFile::commit() {
  if (streams_->zstd) compress({}, true);
  const bool flushed = fclose(streams_->file) == 0;
  streams_->file = nullptr;
  check(flushed, "{}: cannot be written ({})", partial_, std::strerror(errno));
  publish(partial_, path_);
  committed_ = true;
}

uint32_t crc_of(const void* bytes, size_t count, uint32_t before) {
  return static_cast<uint32_t>(crc32_z(before, static_cast<const Bytef*>(bytes), count));
}

void publish(const std::string& partial, const std::string& path) {
  sync(partial, O_RDONLY);
  check(std::rename(partial.c_str(), path.c_str()) == 0, "{}: cannot be renamed to {} ({})", partial, path,
        std::strerror(errno));
  const auto folder = std::filesystem::path(path).parent_path().string();
  sync(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
}

}  // namespace adder
