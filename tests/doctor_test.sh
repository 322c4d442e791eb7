#!/usr/bin/env bash
# The doctor shows every rank and every collective, and says in words what is wrong.
source "$(dirname "$0")/script.sh"
unset OMP_NUM_THREADS

doctor() { said=$("$@" 2>&1) || fault "exit status $? of $*"; }
says() { grep -qE -- "$1" <<<"$said" || fault "no \"$1\" in: $said"; }

doctor "$recipes/doctor" --threads 1
says '1 rank$'
says "^$(hostname): (GPU 0: .* GiB, driver|no GPU|this adder was built without CUDA$)"
says '^ +0 .* 1 +[0-9.]+ +[0-9.]+  '

if commit=$(git -C "$source_folder" rev-parse HEAD 2>&-); then  # its own, wherever it runs
  git init -q "$work/other" && cd "$work/other"
  doctor "$recipes/doctor" --threads 1
  says "adder ${commit:0:12} "
  cd - >/dev/null
fi

doctor mpirun -n 2 "$recipes/doctor" --threads $(($(nproc) + 1))
says '2 ranks$'
says '^ +1 '
for collective in all_reduce all_gather reduce_scatter broadcast shift; do
  says "^$collective +([0-9]+ us +[0-9.]+ GB/s *){3}$"
done
says 'wrong: ranks 0-1 run [0-9]+ threads on [0-9]+ cores? .*--threads'

exit $((failures > 0))
