#include "adder/data/machine_text.h"

#include "adder/core/error.h"
#include "adder/data/text.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <unordered_set>

namespace adder {

namespace fs = std::filesystem;

namespace {

struct Package {
  std::string name;
  std::vector<fs::path> roots;  // files or folders
};

struct Source {
  std::string name;
  std::vector<std::string> endings;  // of the file names taken; "" takes names without a dot; none takes every name
  std::vector<Package> packages;
};

struct File {
  std::string path;
  int64_t bytes;     // unpacked
  uint64_t package;  // a hash of its package's name
  uint64_t order;    // a hash of the path
};

std::vector<fs::path> entries(const fs::path& folder) {
  std::vector<fs::path> list;
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(folder, missing)) list.push_back(entry.path());
  std::sort(list.begin(), list.end());
  return list;
}

// The entries of `folder` whose names start with `start`.
std::vector<fs::path> entries_like(const fs::path& folder, const std::string& start) {
  auto list = entries(folder);
  std::erase_if(list, [&](const fs::path& path) { return !path.filename().string().starts_with(start); });
  return list;
}

// Where the headers of one package lie, as names below include/, include/<machine>/, lib/ and lib/<machine>/.
struct HeaderNames {
  std::string package;
  std::vector<std::string> names;
};
const std::vector<HeaderNames> header_names{
    {"libstdc++", {"c++"}},
    {"libc", {"bits", "sys", "gnu", "arpa", "net", "netinet", "rpc", "stdio.h", "stdlib.h", "string.h", "math.h"}},
    {"linux", {"linux", "asm-generic", "asm"}},
    {"gcc", {"gcc"}},
    {"openmpi", {"openmpi", "mpi"}},
    {"hwloc", {"hwloc", "hwloc.h"}},
    {"openblas", {"openblas-openmp", "openblas-pthread", "cblas.h", "f77blas.h"}},
    {"eigen", {"eigen3"}},
    {"hdf5", {"hdf5"}},
    {"fmt", {"fmt"}},
    {"cli11", {"CLI"}},
    {"nlohmann-json", {"nlohmann"}},
    {"zstd", {"zstd.h", "zdict.h", "zstd_errors.h"}},
    {"zlib", {"zlib.h", "zconf.h"}},
    {"catch2", {"catch2"}},
    {"numa", {"numa.h", "numaif.h"}},
    {"infiniband", {"infiniband", "rdma"}},
    {"libevent", {"event2"}},
    {"libnl", {"libnl3"}},
};

Source headers(const fs::path& prefix) {
  std::vector<fs::path> bases{prefix / "include", prefix / "lib"};
  for (const auto& base : {prefix / "include", prefix / "lib"})
    for (const auto& entry : entries(base))
      if (entry.filename().string().find("-linux-gnu") != std::string::npos) bases.push_back(entry);
  Source source{"C++ headers", {"", ".h", ".hh", ".hpp", ".hxx", ".ipp", ".tcc"}, {}};
  for (const auto& [name, names] : header_names) {
    Package package{name, {}};
    for (const auto& base : bases)
      for (const auto& each : names)
        if (fs::exists(base / each)) package.roots.push_back(base / each);
    if (!package.roots.empty()) source.packages.push_back(package);
  }
  return source;
}

Source documentation(const fs::path& prefix) {
  Source source{"Documentation", {}, {}};
  for (const auto& folder : entries(prefix / "share/doc"))
    source.packages.push_back({folder.filename().string(), {folder}});
  return source;
}

Source perl(const fs::path& prefix) {
  Source source{"Perl", {".pm", ".pl", ".pod", ".t", ".al"}, {}};
  for (const auto& folder : entries_like(prefix / "share", "perl")) {
    if (folder.filename() == "perl5") {  // one entry a package
      for (const auto& entry : entries(folder)) source.packages.push_back({entry.filename().string(), {entry}});
    } else {
      source.packages.push_back({folder.filename().string(), {folder}});
    }
  }
  for (const auto& machine : entries(prefix / "lib"))
    if (machine.filename().string().find("-linux-gnu") != std::string::npos)
      for (const auto& folder : entries_like(machine, "perl"))
        source.packages.push_back({folder.filename().string(), {folder}});
  return source;
}

std::vector<Source> sources(const MachineTextOptions& options) {
  const fs::path prefix = options.prefix;
  std::vector<Source> list{headers(prefix), documentation(prefix), perl(prefix)};
  Source cmake{"CMake", {}, {}};
  for (const auto& folder : entries_like(prefix / "share", "cmake"))
    cmake.packages.push_back({folder.filename().string(), {folder}});
  list.push_back(cmake);
  if (!options.repository.empty())
    list.push_back({"adder",
                    {".h", ".cpp", ".cu", ".cmake", ".md", "CMakeLists.txt"},
                    {{"adder", {options.repository}}}});
  return list;
}

bool takes(const Source& source, const fs::path& path) {
  const auto name = path.filename().string();
  if (name.starts_with('.')) return false;
  return source.endings.empty() || std::any_of(source.endings.begin(), source.endings.end(), [&](const auto& ending) {
           return ending.empty() ? name.find('.') == std::string::npos : name.ends_with(ending);
         });
}

// Regular files, links not followed, so that nothing is met twice by another name and no circle is walked.
std::set<fs::path> files_of(const Package& package, const Source& source) {
  std::set<fs::path> files;
  for (const auto& root : package.roots) {
    if (fs::is_regular_file(root)) files.insert(root);
    if (!fs::is_directory(root)) continue;
    const auto quiet = fs::directory_options::skip_permission_denied;
    for (auto entry = fs::recursive_directory_iterator(root, quiet); entry != fs::recursive_directory_iterator();
         ++entry) {
      const auto name = entry->path().filename().string();
      const bool folder = entry->is_directory() && !entry->is_symlink();
      if (folder && (name.starts_with('.') || name.starts_with("build"))) entry.disable_recursion_pending();
      if (!entry->is_symlink() && entry->is_regular_file() && takes(source, entry->path())) files.insert(entry->path());
    }
  }
  return files;
}

/// The file's text, unpacked; nothing if it is empty, damaged, longer than `most`, or not text.
std::optional<std::string> text_of(const std::string& path, int64_t most) {
  if (std::error_code error; static_cast<int64_t>(fs::file_size(path, error)) > most || error) return std::nullopt;
  std::string text;
  try {
    InputFile file(path);
    for (size_t wanted = 1 << 14, before = 0; text.size() == before && static_cast<int64_t>(before) <= most;
         wanted *= 2) {
      text.resize(before + wanted);
      text.resize(before + file.read(std::span(text).subspan(before)));
      before += wanted;
    }
  } catch (const Error&) {
    return std::nullopt;
  }
  if (text.empty() || static_cast<int64_t>(text.size()) > most) return std::nullopt;
  if (text.find('\0') != std::string::npos || invalid_utf8(text)) return std::nullopt;
  return text;
}

// Takes files while they fit: package by package, so that a text has others of its kind beside it, in the order of
// their hashes.
std::vector<File> sample(std::vector<File> files, int64_t most_bytes) {
  std::sort(files.begin(), files.end(), [](const File& a, const File& b) {
    return std::tie(a.package, a.order, a.path) < std::tie(b.package, b.order, b.path);
  });
  int64_t bytes = 0;
  std::erase_if(files, [&](const File& file) {
    if (bytes + file.bytes > most_bytes) return true;
    bytes += file.bytes;
    return false;
  });
  return files;
}

int64_t bytes_of(const std::vector<File>& files) {
  int64_t bytes = 0;
  for (const auto& file : files) bytes += file.bytes;
  return bytes;
}

/// The files of one source within the limits of its packages, without repetitions.
std::vector<File> gather(const Source& source, const MachineTextOptions& options,
                         std::unordered_set<uint64_t>& beginnings, SourceReport& report) {
  std::vector<File> all;
  for (const auto& package : source.packages) {
    std::vector<File> files;
    for (const auto& path : files_of(package, source)) {
      const auto text = text_of(path.string(), options.package_bytes);
      report.not_text += !text;
      if (!text) continue;
      if (beginnings.insert(hash_bytes(std::string_view(*text).substr(0, 512))).second) {
        files.push_back(
            {path.string(), static_cast<int64_t>(text->size()), hash_bytes(package.name), hash_bytes(path.string())});
      } else {
        ++report.repeated;
      }
    }
    const auto fitting = sample(files, options.package_bytes);
    report.over_limit += static_cast<int64_t>(files.size() - fitting.size());
    report.packages += !fitting.empty();
    all.insert(all.end(), fitting.begin(), fitting.end());
  }
  return all;
}

/// The most bytes L that one source may give: T(L) = sum min(have, L) is the total, with T <= most and L <= share T.
/// L / T(L) grows with L, so bisection finds it.
int64_t source_limit(const std::vector<std::vector<File>>& have, const MachineTextOptions& options) {
  int64_t low = 0, high = options.most_bytes;
  while (low < high) {
    const int64_t limit = low + (high - low + 1) / 2;
    int64_t total = 0;
    for (const auto& files : have) total += std::min(bytes_of(files), limit);
    const bool allowed = total <= options.most_bytes &&
                         static_cast<double>(limit) <= options.source_share * static_cast<double>(total);
    (allowed ? low : high) = allowed ? limit : limit - 1;
  }
  return low;
}

/// What each source gives. Whole files fall short of the limit by different amounts, so it is lowered until no source
/// has more than its share of what there is.
std::vector<std::vector<File>> choose(const std::vector<std::vector<File>>& have, const MachineTextOptions& options) {
  for (int64_t limit = source_limit(have, options);;) {
    std::vector<std::vector<File>> chosen;
    int64_t total = 0, largest = 0;
    for (const auto& files : have) {
      chosen.push_back(sample(files, limit));
      total += bytes_of(chosen.back());
      largest = std::max(largest, bytes_of(chosen.back()));
    }
    const auto allowed = static_cast<int64_t>(options.source_share * static_cast<double>(total));
    if (largest <= allowed) return chosen;
    limit = allowed;
  }
}

}  // namespace

std::string SourceReport::line() const {
  return fmt::format(
      "{}: {} documents, {:.2f} MB of {} package{}; left out: {} repeated, {} not text, {} over the limits", source,
      documents, static_cast<double>(bytes) / 1e6, packages, packages == 1 ? "" : "s", repeated, not_text, over_limit);
}

std::vector<SourceReport> write_machine_text(const std::string& path, const MachineTextOptions& options) {
  const auto list = sources(options);
  std::vector<SourceReport> reports;
  std::vector<std::vector<File>> have;
  std::unordered_set<uint64_t> beginnings;
  for (const auto& source : list) {
    reports.push_back({.source = source.name});
    have.push_back(gather(source, options, beginnings, reports.back()));
  }
  const auto chosen = choose(have, options);
  std::map<std::pair<uint64_t, std::string>, size_t> ordered;  // (order, path) -> source
  int64_t total = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    for (const auto& file : chosen[i]) ordered.emplace(std::pair(file.order, file.path), i);
    reports[i].documents = static_cast<int64_t>(chosen[i].size());
    reports[i].bytes = bytes_of(chosen[i]);
    reports[i].over_limit += static_cast<int64_t>(have[i].size() - chosen[i].size());
    total += reports[i].bytes;
  }
  check(total >= options.wanted_bytes,
        "{}: {} bytes of text with no source above {:.0f} %, fewer than the {} wanted; bring your own with --text",
        options.prefix, total, 100 * options.source_share, options.wanted_bytes);
  TextWriter writer(path);
  for (const auto& [key, i] : ordered) {
    const auto text = text_of(key.second, options.package_bytes);
    check(text.has_value(), "{}: changed while it was being read", key.second);
    writer.add({*text, list[i].name});
  }
  writer.finish();
  return reports;
}

}  // namespace adder
