#include "adder/distributed/environment.h"

#include "adder/core/error.h"
#include "adder/distributed/mpi_call.h"

#include <mpi.h>

#include <cstdlib>
#include <exception>
#include <string>

namespace adder {

void check_mpi(int code, const char* call, std::source_location at) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error(fmt::format("{}: {}", call, text), at);
}

bool launched() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_FD"})
    if (std::getenv(name) != nullptr) return true;
  return false;
}

bool running() {
  int begun = 0, ended = 0;
  MPI_Initialized(&begun);
  MPI_Finalized(&ended);
  return begun && !ended;
}

Environment::Environment() {
  if (running() || !launched()) return;
  int level = 0;
  // Threads compute, and only the main one calls MPI.
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level), "MPI_Init_thread");
  started_ = true;
  check(level >= MPI_THREAD_FUNNELED, "this MPI allows no threads (level {})", level);
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

Environment::~Environment() {
  if (started_ && std::uncaught_exceptions() == 0) finalize();
}

void finalize() {
  if (running()) MPI_Finalize();
}

void abort_all(int status) {
  MPI_Abort(MPI_COMM_WORLD, status);
  std::abort();  // unreachable: MPI_Abort does not return
}

const char* library_version() {
  static const std::string version = [] {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
    int length = 0;
    MPI_Get_library_version(text, &length);  // may be called before MPI_Init
    return std::string(text, static_cast<size_t>(length));
  }();
  return version.c_str();
}

}  // namespace adder
