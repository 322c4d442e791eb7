#include "adder/data/safetensors.h"

#include "adder/core/error.h"
#include "adder/core/json.h"
#include "adder/data/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <set>

namespace adder {

static_assert(std::endian::native == std::endian::little, "tensors are read as they lie in the file");

namespace {


constexpr int64_t prefix = 8;                      // bytes of the header's length
constexpr int64_t longest_header = 100'000'000;    // as other readers have it
constexpr int64_t chunk_bytes = int64_t{4} << 20;  // read at a time

struct Stored {
  const char* name;
  int64_t bytes;  // of an element
  DType as;       // what it becomes in memory
};
constexpr Stored stored_types[] = {{"F64", 8, DType::f64}, {"F32", 4, DType::f32}, {"I32", 4, DType::i32},
                                   {"F16", 2, DType::f32}, {"BF16", 2, DType::bf16}};

const Stored* find_type(const std::string& name) {
  const auto* found = std::ranges::find_if(stored_types, [&](const Stored& s) { return s.name == name; });
  return found == std::end(stored_types) ? nullptr : found;
}

const char* stored_name(DType type) {
  return std::ranges::find_if(stored_types, [&](const Stored& s) { return s.as == type; })->name;
}

// IEEE half precision: sign, 5 bits of exponent (bias 15), 10 of fraction.
float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const auto digits = static_cast<float>(exponent == 0 ? fraction : fraction + 1024);
  float magnitude = std::ldexp(digits, std::max(exponent, 1) - 25);
  if (exponent == 31) magnitude = fraction == 0 ? INFINITY : NAN;
  return bits >> 15 ? -magnitude : magnitude;
}

void read_bytes(const Descriptor& file, const std::string& path, void* to, int64_t count, int64_t from) {
  for (int64_t done = 0; done < count;) {
    const ssize_t n = pread(file.get(), static_cast<char*>(to) + done, static_cast<size_t>(count - done), from + done);
    if (n < 0 && errno == EINTR) continue;
    check(n >= 0, "{}: cannot be read ({})", path, std::strerror(errno));
    check(n > 0, "{}: the file ends at byte {}", path, from + done);
    done += n;
  }
}

void check_names(const Json& object) {
  std::set<std::string_view> names;
  for (const auto& [name, value] : object.fields()) {
    check(names.insert(name).second, "\"{}\" is there twice", name);
    if (value.is_object()) check_names(value);
  }
}

Json parse_header(const std::string& text, const std::string& path) {
  try {
    Json header = Json::parse(text);
    check_names(header);
    return header;
  } catch (const Error& error) {
    fail("{}: the header is malformed ({})", path, error.what());
  }
}

int64_t natural(const Json& entry) {
  check(entry.is_integer() && entry.integer() >= 0, "{} is not a size", entry.text());
  return entry.integer();
}

// Throws what is wrong with a tensor's entry.
SafetensorsEntry to_entry(const Json& stored) {
  check(stored.is_object() && stored.fields().size() == 3, "not {{dtype, shape, data_offsets}} but {}", stored.text());
  SafetensorsEntry entry{.dtype = stored.at("dtype").string(), .shape = {}};
  const Stored* type = find_type(entry.dtype);
  check(type != nullptr, "the dtype {} is not one of F64, F32, F16, BF16 and I32", stored.at("dtype").text());
  const Json &shape = stored.at("shape"), &offsets = stored.at("data_offsets");
  check(shape.is_array() && shape.values().size() <= size_t{Shape::max_rank},
        "the shape {} is not a list of up to {} sizes", shape.text(), int{Shape::max_rank});
  int64_t bytes = type->bytes;
  for (const Json& axis : shape.values()) {
    const int64_t size = natural(axis);
    check(size == 0 || bytes <= INT64_MAX / size, "the shape {} is too large", shape.text());
    bytes *= size;
    entry.shape = entry.shape.plus(size);
  }
  check(offsets.is_array() && offsets.values().size() == 2, "the offsets {} are not [begin, end]", offsets.text());
  entry.begin = natural(offsets.values()[0]), entry.end = natural(offsets.values()[1]);
  check(entry.begin <= entry.end && entry.end - entry.begin == bytes, "{} {} takes {} bytes but its range is {}",
        entry.dtype, shape.text(), bytes, offsets.text());
  return entry;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path)
    : path_(path), file_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  check(file_.get() >= 0, "{}: cannot be opened ({})", path, std::strerror(errno));
  struct stat status {};
  check(fstat(file_.get(), &status) == 0, "{}: cannot be read ({})", path, std::strerror(errno));
  check(S_ISREG(status.st_mode), "{}: is not a file", path);
  const int64_t size = status.st_size;
  check(size >= prefix, "{}: {} bytes are too few for a safetensors file", path, size);
  uint64_t length = 0;
  read_bytes(file_, path, &length, prefix, 0);
  check(length <= uint64_t{longest_header} && static_cast<int64_t>(length) <= size - prefix,
        "{}: a header of {} bytes does not fit a file of {}", path, length, size);
  data_ = prefix + static_cast<int64_t>(length);
  std::string header(length, ' ');
  read_bytes(file_, path, header.data(), static_cast<int64_t>(length), prefix);
  parse(header);
  check_ranges(size - data_);
}

void SafetensorsFile::parse(const std::string& header) {
  const Json all = parse_header(header, path_);
  for (const auto& [name, stored] : all.fields()) {
    try {
      if (name == "__metadata__")
        for (const auto& [key, value] : stored.fields()) metadata_[key] = value.string();
      else tensors_[name] = to_entry(stored);
    } catch (const std::exception& error) {
      fail("{}: {}: {}", path_, name, error.what());
    }
  }
}

// The ranges, in order, lie end to end and fill the file.
void SafetensorsFile::check_ranges(int64_t bytes) const {
  std::vector<std::pair<const SafetensorsEntry*, const std::string*>> order;
  for (const auto& [name, entry] : tensors_) order.emplace_back(&entry, &name);
  std::ranges::sort(order, {}, [](const auto& e) { return std::tuple(e.first->begin, e.first->end, *e.second); });
  int64_t end = 0;
  for (const auto& [entry, name] : order) {
    check(entry->end <= bytes, "{}: {} ends at byte {} of {}", path_, *name, entry->end, bytes);
    const int64_t begin = entry->begin;
    check(begin >= end, "{}: {} begins at byte {}, where another tensor goes on to {}", path_, *name, begin, end);
    check(begin == end, "{}: {} begins at byte {}, after a gap from {}", path_, *name, begin, end);
    end = entry->end;
  }
  check(end == bytes, "{}: the tensors take {} bytes of {}", path_, end, bytes);
}

const SafetensorsEntry& SafetensorsFile::entry(const std::string& name) const {
  const auto found = tensors_.find(name);
  check(found != tensors_.end(), "{}: has no tensor {}", path_, name);
  return found->second;
}

void SafetensorsFile::read(const std::string& name, const Tensor& to) const {
  const SafetensorsEntry& from = entry(name);
  const Stored& type = *find_type(from.dtype);
  check(from.shape == to.shape(), "{}: {} has shape {}, not {}", path_, name, to_string(from.shape),
        to_string(to.shape()));
  check((type.as == DType::i32) == (to.dtype() == DType::i32), "{}: {} is {} and cannot become {}", path_, name,
        from.dtype, adder::name(to.dtype()));
  check(to.contiguous(), "{}: the rows of the tensor that {} is read into lie apart", path_, name);
  const Tensor all = to.reshape({to.count()});
  for (int64_t first = 0; first < to.count();) {
    const int64_t n = std::min(to.count() - first, chunk_bytes / type.bytes);
    const Tensor chunk({n}, type.as);
    const int64_t at = data_ + from.begin + first * type.bytes;
    if (from.dtype == "F16") {
      std::vector<uint16_t> halves(static_cast<size_t>(n));
      read_bytes(file_, path_, halves.data(), n * type.bytes, at);
      std::ranges::transform(halves, chunk.data<float>(), half_to_float);
    } else {
      read_bytes(file_, path_, chunk.address(), n * type.bytes, at);
    }
    copy(chunk, all.slice_first(first, first + n));
    first += n;
  }
}

Tensor SafetensorsFile::read(const std::string& name) const {
  const SafetensorsEntry& from = entry(name);
  const DType type = find_type(from.dtype)->as;
  Tensor to(from.shape, type == DType::bf16 ? DType::f32 : type);
  read(name, to);
  return to;
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& t : tensors) order.push_back(&t);
  std::ranges::sort(order, {}, [](const NamedTensor* t) { return std::pair(-size_of(t->tensor.dtype()), t->name); });
  Json header = Json::object();
  for (const auto& [name, value] : metadata) header["__metadata__"].push_back(name, value);
  int64_t begin = 0;
  for (const NamedTensor* t : order) {
    check(t->tensor.contiguous() && t->shape.count() == t->tensor.count(), "{}: {} {} cannot be written as {}", path,
          t->name, to_string(t->tensor.shape()), to_string(t->shape));
    check(t->name != "__metadata__" && !header.find(t->name), "{}: there are two tensors {}", path, t->name);
    Json shape = Json::array();
    for (int axis = 0; axis < t->shape.rank(); ++axis) shape.push_back(t->shape[axis]);
    const int64_t end = begin + t->tensor.count() * size_of(t->tensor.dtype());
    header.push_back(t->name, Json::object({{"dtype", stored_name(t->tensor.dtype())}, {"shape", shape},
                                            {"data_offsets", Json::array({begin, end})}}));
    begin = end;
  }
  std::string text = header.text();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors begin on 8 bytes
  const uint64_t length = text.size();
  OutputFile file(path);
  file.write({reinterpret_cast<const char*>(&length), sizeof length});
  file.write(text);
  for (const NamedTensor* t : order) {
    const int64_t bytes = t->tensor.count() * size_of(t->tensor.dtype());
    const Tensor host = to_device(t->tensor, Device::cpu);
    file.write({static_cast<const char*>(host.address()), static_cast<size_t>(bytes)});
  }
  file.commit();
}

}  // namespace adder
