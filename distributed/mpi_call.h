// The result of every MPI call is checked. For sources that include mpi.h.
#pragma once

#include <source_location>

namespace adder {

/// Throws unless an MPI call has succeeded, with MPI's own words.
void check_mpi(int code, const char* call, std::source_location at = std::source_location::current());

}  // namespace adder
