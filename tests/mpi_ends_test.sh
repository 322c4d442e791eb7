#!/usr/bin/env bash
# However one of several ranks ends, all end within seconds, with one sentence and an exit status that tells.
set -euo pipefail
source_folder=$1 build_folder=$2
program=$build_folder/tests/adder_mpi_ends
export OMP_NUM_THREADS=1 OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

failures=0
fault() {
  echo "FAILED: $*; it said: $(cat out.log err.log)"
  failures=$((failures + 1))
}

# ends STATUS SECONDS ARGUMENTS...: four ranks end with that status within that time.
ends() {
  local status=$1 seconds=$2 got=0 begun=$SECONDS
  shift 2
  timeout -s KILL 60 mpirun -n 4 "$program" "$@" >out.log 2>err.log || got=$?
  [[ $got == "$status" ]] || fault "exit status $got instead of $status: $*"
  ((SECONDS - begun <= seconds)) || fault "it took $((SECONDS - begun)) seconds: $*"
}
says() { [[ $(cat out.log err.log | grep -cF -- "$2") == "$1" ]] || fault "not $1 times \"$2\""; }

limit=20  # seconds; on a quiet machine it takes two

ends 0 $limit --how well
says 1 done
[[ $(wc -l <run/metrics.jsonl) == 10 ]] || fault "metrics of $(wc -l <run/metrics.jsonl) steps, not of 10"
grep -q '"ranks": 4' run/run.json || fault "run.json does not say 4 ranks"

ends 1 $limit --how throw
says 1 "error on rank 3: no more of step 5"
says 1 "error on rank"

ends 1 $limit --how throw-all
says 1 "error on rank 0: everyone is tired at step 5"
says 1 "error on rank"

ends 3 $limit --how die

ends 2 $limit --how nothing
says 1 "error on rank"
ends 0 $limit --help
says 1 "Ends in one way or another."

# A signal to mpirun, and a time limit, end all ranks after the same step.
ends 0 $limit --how wait --time-limit 1s
says 1 "stopped by the time limit after step"
rm -rf run
mpirun -n 4 "$program" --how wait >out.log 2>err.log &
process=$!
until [[ $(cat run/metrics.jsonl 2>/dev/null | wc -l) -ge 3 ]]; do sleep 0.05; done
kill -USR1 "$process"
wait "$process" || fault "a signal ended it with status $?"
says 1 "stopped by SIGUSR1 after step"

# Without mpirun the same program is one process.
"$program" --how throw >out.log 2>err.log && fault "no failure"
says 1 "error: no more of step 5"

exit $((failures > 0))
