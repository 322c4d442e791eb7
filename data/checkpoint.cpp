#include "adder/data/checkpoint.h"

#include "adder/core/error.h"
#include "adder/data/checkpoint_layout.h"
#include "adder/data/manifest.h"
#include "adder/data/tensor_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace adder {

namespace fs = std::filesystem;

namespace {

// A manifest of this rank's pieces alone, without checksums.
Manifest held_by(const std::vector<State>& states, int64_t rank) {
  Manifest manifest;
  for (const State& state : states) {
    check(!state.name.empty() && state.name.find('/') == std::string::npos, "checkpoint: \"{}\" cannot name a state",
          state.name);
    check(manifest.values.emplace(state.name, Values{}).second, "checkpoint: two states are named {}", state.name);
  }
  layout::each_piece(states, [&](const std::string& name, const Piece& piece) {
    check_piece(piece);
    const StoredTensor tensor{.dtype = piece.tensor.dtype(),
                              .shape = piece.shape,
                              .axis = piece.axis,
                              .pieces = {{.begin = piece.begin, .end = piece.end(), .file = rank, .crc = 0}}};
    check(manifest.tensors.emplace(name, tensor).second, "checkpoint: two tensors are named {}", name);
  });
  return manifest;
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  check(file.good(), "{}: cannot be written ({})", path, std::strerror(errno));
  file.close();
  sync(path);
}

void make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  check(!error, "{}: the folder cannot be made ({})", path, error.message());
}

void rename(const std::string& from, const std::string& to) {
  check(std::rename(from.c_str(), to.c_str()) == 0, "{}: cannot be renamed to {} ({})", from, to, std::strerror(errno));
}

// Removes a checkpoint that a kill may not leave half there: it loses its name first.
void remove_checkpoint(const std::string& path) {
  const std::string unnamed = path + ".old.tmp";
  rename(path, unnamed);
  fs::remove_all(unnamed);
}

void remove_leftovers(const std::string& folder) {
  for (const std::string& name : layout::entries(folder))
    if (name.starts_with("step_") && name.ends_with(".tmp")) fs::remove_all(fs::path(folder) / name);
}

}  // namespace

/// An advisory lock on a folder; the system lets go of it when the process ends, however it ends.
struct Checkpoint::Lock {
  explicit Lock(const std::string& folder) : id(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    check(id >= 0, "{}: cannot be opened ({})", folder, std::strerror(errno));
    // Some network disks cannot lock a folder: then nobody is told apart.
    const bool taken = flock(id, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (taken) close(id);
    check(!taken, "{}: another run is using it", folder);
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() { close(id); }
  int id;
};

CheckpointRanks checkpoint_ranks(const Communicator& world) {
  return {world.rank(), world.size(), [world](const std::string& own) { return world.exchange(own); }};
}

Checkpoint::Checkpoint(const std::string& run_folder, std::vector<State> states, CheckpointOptions options)
    : run_folder_(run_folder),
      folder_(layout::folder(run_folder)),
      states_(std::move(states)),
      options_(std::move(options)) {
  check(options_.keep >= 1, "checkpoint: {} cannot be kept, at least one must", options_.keep);
  together([&] {
    held_by(states_, options_.ranks.rank);  // what could never be saved is refused now
    if (first()) open_folder();
    return std::string();
  });
  if (options_.fresh) return;
  const Warn warn = first() ? options_.warn : [](const std::string&) {};
  const auto steps = together([&] {
    resumed_ = last_ = restore(run_folder_, states_, {.all = true, .warn = warn});
    return resumed_ ? fmt::format("step {}", *resumed_) : "no checkpoint";
  });
  for (const std::string& step : steps)
    check(step == steps[0], "{}: one rank found {}, another {}", folder_, steps[0], step);
}

Checkpoint::~Checkpoint() = default;

// Runs one phase on every rank and exchanges what it returns; if it fails on one, all throw that sentence.
std::vector<std::string> Checkpoint::together(const std::function<std::string()>& phase) const {
  std::string said;
  try {
    said = fmt::format("+{}", phase());
  } catch (const std::exception& error) {
    said = fmt::format("-{}", error.what());
  }
  std::vector<std::string> all = options_.ranks.exchange(said);
  for (std::string& text : all) {
    check(text[0] == '+', "{}", text.substr(1));
    text.erase(0, 1);
  }
  return all;
}

void Checkpoint::open_folder() {
  make_folder(folder_);
  lock_ = std::make_unique<Lock>(folder_);
  check(access(folder_.c_str(), W_OK) == 0, "{}: cannot be written ({})", folder_, std::strerror(errno));
  remove_leftovers(folder_);
  sync(run_folder_);  // the folder's name, which a save relies on
  if (!options_.fresh || layout::steps(folder_).empty()) return;
  int64_t n = 1;
  while (fs::exists(fmt::format("{}.{}", folder_, n))) ++n;
  rename(folder_, fmt::format("{}.{}", folder_, n));
  make_folder(folder_);
  sync(run_folder_);
  lock_ = std::make_unique<Lock>(folder_);
}

void Checkpoint::save(int64_t step) {
  if (last_ == step) return;
  check(step >= 0 && last_.value_or(-1) < step, "{}: step {} cannot be saved after step {}", folder_, step,
        last_.value_or(-1));
  const std::string partial = layout::checkpoint(folder_, step) + ".tmp";
  try {
    const auto held = together([&] {
      if (first()) remove_leftovers(folder_);
      if (first()) make_folder(partial);
      return to_text(held_by(states_, options_.ranks.rank));
    });
    const auto written = together([&] {
      Manifest plan;
      for (const std::string& text : held) merge(plan, parse_manifest(text, folder_));
      return to_text(write_file(plan, partial));
    });
    together([&] {
      if (first()) publish(written, step, partial);
      return std::string();
    });
  } catch (...) {
    std::error_code ignored;
    if (first()) fs::remove_all(partial, ignored);
    throw;
  }
  last_ = step;
  if (first()) remove_old();
}

// Writes this rank's file: the pieces that the plan gives it. Returns the manifest of that file.
Manifest Checkpoint::write_file(const Manifest& plan, const std::string& to) const {
  const int64_t rank = options_.ranks.rank;
  const std::string path = layout::file(to, rank);
  Manifest manifest;
  TensorFileWriter file(path);
  layout::each_piece(states_, [&](const std::string& name, const Piece& piece) {
    const StoredTensor& planned = plan.tensors.at(name);
    for (StoredPiece p : planned.pieces) {
      if (p.file != rank) continue;
      p.crc = file.write(layout::dataset(name, p.begin), piece.tensor);
      manifest.tensors[name] = {planned.dtype, planned.shape, planned.axis, {p}};
    }
  });
  file.close();
  manifest.files = {{.bytes = static_cast<int64_t>(fs::file_size(path)), .crc = file_crc(path)}};
  if (first())
    for (const State& state : states_) manifest.values[state.name] = state.save ? state.save() : Values{};
  return manifest;
}

// Puts the ranks' manifests together and gives the finished folder its name.
void Checkpoint::publish(const std::vector<std::string>& ranks, int64_t step, const std::string& from) {
  Manifest manifest;
  for (const std::string& text : ranks) merge(manifest, parse_manifest(text, from));
  manifest.step = step;
  check_complete(manifest, from);
  write_text(layout::manifest(from), to_text(manifest));
  sync(from);
  const std::string path = layout::checkpoint(folder_, step);
  if (fs::exists(path)) remove_checkpoint(path);  // one that was refused
  rename(from, path);
  sync(folder_);
}

// Removes those past the last kept ones, and those of later steps: they were refused.
void Checkpoint::remove_old() const {
  int64_t kept = 0;
  for (const int64_t step : layout::steps(folder_)) {
    if (step <= *last_ && kept++ < options_.keep) continue;
    try {
      remove_checkpoint(layout::checkpoint(folder_, step));
    } catch (const std::exception& error) {
      options_.warn(fmt::format("an old checkpoint stays: {}", error.what()));
    }
  }
}

}  // namespace adder
