// Text that any Linux machine holds: a corpus to train on with nothing to download.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace adder {

struct MachineTextOptions {
  std::string prefix = "/usr";          // where include/, share/ and lib/ lie
  std::string repository = "";          // adder's own sources; empty: left out
  int64_t wanted_bytes = 8'000'000;     // less than this is an error
  int64_t most_bytes = 10'000'000;      // more than this is left out
  int64_t package_bytes = 2'000'000;    // at most, of one package
  double source_share = 0.4;            // at most, of the whole text
};

struct SourceReport {
  std::string source;     // the pile_set_name
  int64_t documents = 0;  // written
  int64_t bytes = 0;      // written
  int64_t packages = 0;   // seen
  int64_t repeated = 0;   // files that share their first 512 bytes with an earlier one
  int64_t not_text = 0;   // files that are empty, damaged, too large for any package, or not UTF-8 text
  int64_t over_limit = 0; // files left out by the limits of package, source and total

  /// "C++ headers: 812 documents, 9.60 MB of 11 packages; left out: 310 repeated, 2 not text, 951 over the limits"
  std::string line() const;
};

/// Gathers text and writes it to `path` (.jsonl.zst) with one pile_set_name a source:
///   C++ headers    what the build's own packages installed (libstdc++, libc, Linux, HDF5, Open MPI, Eigen, fmt, ...)
///   Documentation  share/doc, .gz files unpacked; one package a folder
///   Perl, CMake    the modules of share/perl*, lib/*/perl*, share/cmake*
///   adder          this repository
/// A file that shares its first 512 bytes with an earlier one (in the order of sources and sorted paths) is dropped, so
/// no document is in both the training and the validation text. What the limits leave out is chosen by hashes, package
/// by package; the documents are written in the order of a hash, so the sources are mixed and the file is the same
/// whenever the machine is the same. Fails if the sources together cannot give wanted_bytes within source_share.
std::vector<SourceReport> write_machine_text(const std::string& path, const MachineTextOptions& options);

}  // namespace adder
