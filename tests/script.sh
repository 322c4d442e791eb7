# What the shell tests share. Each begins with: source "$(dirname "$0")/script.sh"; its arguments are the source folder,
# the build folder and cmake. It runs in a folder of its own and ends with: exit $((failures > 0))
set -euo pipefail
source_folder=$1 build_folder=$2 cmake=${3:-cmake}
recipes=$build_folder/recipes
export OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
# More ranks than cores and none bound to one; root in a container.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

failures=0
fault() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# refuses STATUS SENTENCE RECIPE ARGUMENTS...: it ends with that status and one line that holds the sentence.
refuses() {
  local status=$1 sentence=$2 recipe=$3 got=0
  shift 3
  "$recipes/$recipe" "$@" >out.log 2>err.log || got=$?
  [[ $got == "$status" ]] || fault "exit status $got instead of $status: $recipe $*"
  grep -qF -- "$sentence" err.log || fault "no \"$sentence\" in: $(cat err.log)"
  [[ $(grep -c '^error: ' err.log) == 1 ]] || fault "not one error line: $(cat err.log)"
}

# computed RUN: its metrics without times and memory, and its newest checkpoint's bytes. A finished run that is started
# again validates again; that counts once.
computed() {
  sed -E '/"memory/d; s/"(time|tokens_per_second|model_flops_utilisation)":[^,}]*,?//g' "$1/metrics.jsonl" | uniq
  (cd "$1/checkpoints" && sha256sum "$(printf '%s\n' step_???????? | tail -n 1)"/rank_*.h5)
}

# signal_ranks MPIRUN: a SIGUSR1 to its ranks on this host. Not every version of Open MPI passes on one that it gets.
signal_ranks() { kill -USR1 $(cat "/proc/$1/task/$1/children"); }

# A model that trains in no time, on adder's own sources.
tiny=(--device cpu --text "$source_folder/core" --batch 2 --micro-batch 2 --time 16 --layers 1 --d-model 16
  --d-state 4 --head-dim 8 --validation-share 0.2 --dropout 0.1 --threads 1)
