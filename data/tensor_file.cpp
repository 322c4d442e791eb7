#include "adder/data/tensor_file.h"

#include "adder/core/error.h"
#include "adder/data/file.h"
#include "adder/data/hdf5.h"

#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace adder {

using hdf5::Handle;

namespace {

constexpr int64_t chunk_bytes = int64_t{4} << 20;

// A file that HDF5 could not close, because the disk is full, crashes its clean-up at exit. We close all that we open
// and need none; it can only be declined before HDF5's first call.
[[maybe_unused]] const bool no_cleanup_at_exit = H5dont_atexit() >= 0;

/// While it lives HDF5 prints nothing.
class Quiet {
 public:
  Quiet() {
    H5Eget_auto2(H5E_DEFAULT, &print_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
  ~Quiet() { H5Eset_auto2(H5E_DEFAULT, print_, data_); }

 private:
  H5E_auto2_t print_ = nullptr;
  void* data_ = nullptr;
};

// What HDF5 says of the last failure: the system's reason where it quotes one, else its innermost sentence. The next
// call of HDF5, closing a handle included, forgets it.
std::string reason() {
  std::string said;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* error, void* to) {
        auto& text = *static_cast<std::string*>(to);
        if (text.empty() && error->desc) text = error->desc;
        return herr_t{0};
      },
      &said);
  const std::string quote = "error message = '";
  const auto begin = said.find(quote);
  if (begin == std::string::npos) return said;
  const auto from = begin + quote.size();
  return said.substr(from, said.find('\'', from) - from);
}

// Passes a result on; throws if it says that HDF5 failed to `verb` what is named.
template <class T>
T done(T result, const char* verb, const std::string& what) {
  if (result < 0) fail("{}: HDF5 cannot {} ({})", what, verb, reason());
  return result;
}

hid_t file_type(DType type) {
  switch (type) {
    case DType::f32: return H5T_IEEE_F32LE;
    case DType::f64: return H5T_IEEE_F64LE;
    case DType::bf16: return H5T_STD_U16LE;
    case DType::i32: break;
  }
  return H5T_STD_I32LE;
}

hid_t memory_type(DType type) {
  switch (type) {
    case DType::f32: return H5T_NATIVE_FLOAT;
    case DType::f64: return H5T_NATIVE_DOUBLE;
    case DType::bf16: return H5T_NATIVE_UINT16;
    case DType::i32: break;
  }
  return H5T_NATIVE_INT32;
}

// A dataset's sizes; a single number is a vector of one.
struct Extent {
  std::array<hsize_t, Shape::max_rank> sizes{};
  int rank = 0;

  hsize_t inner() const {  // elements of one index of the first axis
    hsize_t n = 1;
    for (int axis = 1; axis < rank; ++axis) n *= sizes[static_cast<size_t>(axis)];
    return n;
  }
};

Extent extent_of(const Shape& shape) {
  Extent extent;
  for (int axis = 0; axis < shape.rank(); ++axis)
    extent.sizes[static_cast<size_t>(extent.rank++)] = static_cast<hsize_t>(shape[axis]);
  if (extent.rank == 0) extent.sizes[static_cast<size_t>(extent.rank++)] = 1;
  return extent;
}

// Calls pass(memory space, file space, first element, elements) for stretches of a dataset, whole indices of its first
// axis, of about chunk_bytes.
template <class F>
void each_chunk(const Extent& extent, hid_t space, DType type, const std::string& what, F&& pass) {
  const hsize_t inner = extent.inner(), rows = extent.sizes[0];
  if (inner == 0) return;
  const hsize_t step = std::max<hsize_t>(1, static_cast<hsize_t>(chunk_bytes / size_of(type)) / inner);
  Extent start{.sizes = {}, .rank = extent.rank}, size = extent;
  for (hsize_t row = 0; row < rows; row += step) {
    start.sizes[0] = row;
    size.sizes[0] = std::min(step, rows - row);
    done(H5Sselect_hyperslab(space, H5S_SELECT_SET, start.sizes.data(), nullptr, size.sizes.data(), nullptr), "select",
         what);
    const hsize_t count = size.sizes[0] * inner;
    const Handle memory(done(H5Screate_simple(1, &count, nullptr), "describe", what), H5Sclose);
    pass(memory, static_cast<int64_t>(row * inner), static_cast<int64_t>(count));
  }
}

/// A file descriptor.
class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : id_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    check(id_ >= 0, "{}: cannot be opened ({})", path, std::strerror(errno));
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(id_); }
  operator int() const { return id_; }

 private:
  int id_;
};

}  // namespace

struct TensorFileWriter::File {
  Handle id;
};

TensorFileWriter::TensorFileWriter(const std::string& path) : path_(path) {
  const Quiet quiet;
  const Handle access = hdf5::without_locks();  // our own folder lock guards the files
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  file_.reset(new File{{done(id, "create the file", path_), H5Fclose}});
}

TensorFileWriter::~TensorFileWriter() {
  if (!file_) return;
  const Quiet quiet;
  file_.reset();
  // Where that failed HDF5 holds on to the file: its space is given back all the same.
  [[maybe_unused]] const int emptied = truncate(path_.c_str(), 0);
}

uint32_t TensorFileWriter::write(const std::string& dataset, const Tensor& tensor) {
  check(tensor.defined() && tensor.contiguous(), "{}: {} is not contiguous", path_, dataset);
  const Quiet quiet;
  const std::string what = path_ + ": " + dataset;
  const Extent extent = extent_of(tensor.shape());
  const Handle space(done(H5Screate_simple(extent.rank, extent.sizes.data(), nullptr), "describe", what), H5Sclose);
  const Handle links(done(H5Pcreate(H5P_LINK_CREATE), "describe", what), H5Pclose);
  const Handle layout(done(H5Pcreate(H5P_DATASET_CREATE), "describe", what), H5Pclose);
  done(H5Pset_create_intermediate_group(links, 1), "describe", what);
  done(H5Pset_fill_time(layout, H5D_FILL_TIME_NEVER), "describe", what);
  done(H5Pset_obj_track_times(layout, false), "describe", what);  // the same state gives the same bytes
  const Handle set(
      done(H5Dcreate2(file_->id, dataset.c_str(), file_type(tensor.dtype()), space, links, layout, H5P_DEFAULT),
           "create the dataset", what),
      H5Dclose);
  const Tensor flat = tensor.reshape({tensor.count()});
  uint32_t crc = 0;
  each_chunk(extent, space, tensor.dtype(), what, [&](hid_t memory, int64_t first, int64_t count) {
    Tensor chunk = flat.slice_first(first, first + count);
    if (chunk.device() != Device::cpu) {
      const Tensor host({count}, tensor.dtype());
      copy(chunk, host);
      chunk = host;
    }
    crc = crc_of(chunk.address(), static_cast<size_t>(count * size_of(chunk.dtype())), crc);
    done(H5Dwrite(set, memory_type(chunk.dtype()), memory, space, H5P_DEFAULT, chunk.address()), "write", what);
  });
  return crc;
}

void TensorFileWriter::close() {
  const Quiet quiet;
  done(H5Fflush(file_->id, H5F_SCOPE_GLOBAL), "write", path_);
  done(file_->id.end(), "close the file", path_);
  sync(path_);
  file_.reset();
}

struct TensorFile::File {
  Handle id;
};

TensorFile::TensorFile(const std::string& path) : path_(path) {
  const Quiet quiet;
  const Handle access = hdf5::without_locks();
  file_.reset(new File{{done(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), "open the file", path_), H5Fclose}});
}

TensorFile::~TensorFile() = default;

uint32_t TensorFile::read(const std::string& dataset, DType type, int64_t count,
                          const std::function<void(const Tensor& chunk, int64_t first)>& use) const {
  const Quiet quiet;
  const std::string what = path_ + ": " + dataset;
  const Handle set(done(H5Dopen2(file_->id, dataset.c_str(), H5P_DEFAULT), "open the dataset", what), H5Dclose);
  const Handle space(done(H5Dget_space(set), "read", what), H5Sclose);
  const Handle stored(done(H5Dget_type(set), "read", what), H5Tclose);
  check(H5Tequal(stored, file_type(type)) > 0, "{} does not hold {}", what, name(type));
  Extent extent;
  extent.rank = done(H5Sget_simple_extent_ndims(space), "read", what);
  const auto elements = done(H5Sget_simple_extent_npoints(space), "read", what);
  check(extent.rank >= 1 && extent.rank <= Shape::max_rank && elements == count, "{} has {} elements, not {}", what,
        elements, count);
  done(H5Sget_simple_extent_dims(space, extent.sizes.data(), nullptr), "read", what);
  uint32_t crc = 0;
  each_chunk(extent, space, type, what, [&](hid_t memory, int64_t first, int64_t length) {
    const Tensor chunk({length}, type);
    done(H5Dread(set, memory_type(type), memory, space, H5P_DEFAULT, chunk.address()), "read", what);
    crc = crc_of(chunk.address(), static_cast<size_t>(length * size_of(type)), crc);
    use(chunk, first);
  });
  return crc;
}

uint32_t file_crc(const std::string& path) {
  const Descriptor file(path);
  std::vector<char> buffer(size_t{1} << 20);
  for (uint32_t crc = 0;;) {
    const ssize_t count = ::read(file, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    check(count >= 0, "{}: cannot be read ({})", path, std::strerror(errno));
    if (count == 0) return crc;
    crc = crc_of(buffer.data(), static_cast<size_t>(count), crc);
  }
}

void sync(const std::string& path) {
  const Descriptor file(path);
  check(fsync(file) == 0, "{}: cannot be written to the disk ({})", path, std::strerror(errno));
}

}  // namespace adder
