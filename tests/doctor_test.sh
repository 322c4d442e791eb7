#!/usr/bin/env bash
# The doctor shows every rank and every collective, and says in words what is wrong.
set -euo pipefail
source_folder=$1 build_folder=$2
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
unset OMP_NUM_THREADS

failures=0
doctor() { said=$("$@" 2>&1) || { echo "FAILED: exit status $? of $*"; failures=$((failures + 1)); }; }
says() { grep -qE -- "$1" <<<"$said" || { printf 'FAILED: no "%s" in:\n%s\n' "$1" "$said"; failures=$((failures + 1)); }; }

doctor "$build_folder/recipes/doctor" --threads 1
says '1 rank$'
says "^$(hostname): (GPU 0: .* GiB, driver|no GPU|this adder was built without CUDA$)"
says '^ +0 .* 1 +[0-9.]+ +[0-9.]+  '

doctor mpirun -n 2 "$build_folder/recipes/doctor" --threads $(($(nproc) + 1))
says '2 ranks$'
says '^ +1 '
for collective in all_reduce all_gather reduce_scatter broadcast shift; do says "^$collective +([0-9]+ us +[0-9.]+ GB/s *){3}$"; done
says 'wrong: ranks 0-1 run [0-9]+ threads on [0-9]+ cores? .*--threads'

exit $((failures > 0))
