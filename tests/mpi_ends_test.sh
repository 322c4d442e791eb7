#!/usr/bin/env bash
# However one of several ranks ends, all end within seconds, with one sentence and an exit status that tells.
source "$(dirname "$0")/script.sh"
program=$build_folder/tests/adder_mpi_ends
export OMP_NUM_THREADS=1

fault() {
  echo "FAILED: $*; it said: $(cat out.log err.log)"
  failures=$((failures + 1))
}

# ends STATUS ARGUMENTS...: four ranks end with that status, and soon: from the last step of the run, or from the start
# where there was no step. What mpirun takes to start, which on some machines is many seconds, is not what is tested.
limit=20  # seconds; on a quiet machine it takes one or two
start=0   # seconds that a start takes
ends() {
  local status=$1 got=0 began=$(date +%s) last=0 took
  shift
  timeout -s KILL 100 mpirun -n 4 "$program" "$@" >out.log 2>err.log || got=$?
  took=$(($(date +%s) - began))
  [[ ! -e run/metrics.jsonl ]] || last=$(stat -c %Y run/metrics.jsonl)
  ((last < began)) || took=$(($(date +%s) - last))
  [[ $got == "$status" ]] || fault "exit status $got instead of $status: $*"
  ((took <= limit + (last < began ? start : 0))) || fault "it took $took seconds: $*"
}
says() { [[ $(cat out.log err.log | grep -cF -- "$2") == "$1" ]] || fault "not $1 times \"$2\""; }

before=$SECONDS
ends 0 --how well
start=$((SECONDS - before))
says 1 done
[[ $(wc -l <run/metrics.jsonl) == 10 ]] || fault "metrics of $(wc -l <run/metrics.jsonl) steps, not of 10"
grep -q '"ranks": 4' run/run.json || fault "run.json does not say 4 ranks"

ends 1 --how throw
says 1 "error on rank 3: no more of step 5"
says 1 "error on rank"

ends 1 --how throw-all
says 1 "error on rank 0: everyone is tired at step 5"
says 1 "error on rank"

ends 3 --how die

ends 2 --how nothing
says 1 "error on rank"
ends 0 --help
says 1 "Ends in one way or another."
program=$recipes/generate ends 2 --run nowhere
says 1 "error on rank"
says 1 "generate is the work of one process, and 4 were started"

# A signal to the ranks, and a time limit, end all of them after the same step.
ends 0 --how wait --time-limit 1s
says 1 "stopped by the time limit after step"
rm -rf run
mpirun -n 4 "$program" --how wait >out.log 2>err.log &
process=$!
until [[ $(cat run/metrics.jsonl 2>/dev/null | wc -l) -ge 3 ]]; do sleep 0.05; done
signal_ranks "$process"
wait "$process" || fault "a signal ended it with status $?"
says 1 "stopped by SIGUSR1 after step"

# Without mpirun the same program is one process.
"$program" --how throw >out.log 2>err.log && fault "no failure"
says 1 "error: no more of step 5"

exit $((failures > 0))
