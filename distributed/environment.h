// Environment: MPI from its start to its end. Run has one; a program without Run makes its own, first of all.
#pragma once

namespace adder {

/// While one lives, Communicator::world() is what mpirun or srun started. A program that neither of them started has
/// no use for MPI, whose start takes a second: it stays a single process.
///
/// The end waits for the other ranks, so an Environment that goes because an exception was thrown leaves it to
/// exit_status() (distributed/program.h), which ends every rank instead.
class Environment {
 public:
  Environment();
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  bool started_ = false;  // by this one
};

/// Whether mpirun, srun or another launcher of MPI programs started this process, going by its environment variables.
bool launched();
/// Whether MPI has been started and not ended.
bool running();
/// Ends MPI, after all ranks have called it.
void finalize();
/// Ends every rank of the program at once; mpirun returns the status.
[[noreturn]] void abort_all(int status);

/// "Open MPI v4.1.4, ..."
const char* library_version();

}  // namespace adder
