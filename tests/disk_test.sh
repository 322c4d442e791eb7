#!/usr/bin/env bash
# A full disk, a folder that cannot be written and a second run in the same folder end in one sentence, nothing is lost,
# and the same command goes on once there is room. ADDER_SEED=N fills the disk at other moments.
set -euo pipefail
source_folder=$1 build_folder=$2
train=$build_folder/recipes/train
seed=${ADDER_SEED:-$RANDOM}
RANDOM=$seed
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
work=$(mktemp -d)
mounted=
trap '[[ -z $mounted ]] || umount "$work/small"; chattr -R -i "$work" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"

failures=0
fault() {
  echo "FAILED: $* (seed $seed): $(cat out.log err.log)"
  failures=$((failures + 1))
}
flags=(--text "$source_folder/core" --steps 24 --batch 2 --micro-batch 2 --time 16 --layers 1 --d-model 16 --d-state 4
  --head-dim 8 --validate-every 12 --save-every 1 --validation-share 0.2 --dropout 0.1 --threads 1)
computed() {
  sed -E 's/"(time|tokens_per_second)":[^,}]*,?//g' "$1/metrics.jsonl"
  sha256sum "$1"/checkpoints/step_00000024/rank_0000.h5 | cut -d' ' -f1
}
# ends STATUS SENTENCE COMMAND...: it ends with that status and one line of error that holds the sentence.
ends() {
  local status=$1 sentence=$2 got=0
  shift 2
  "$@" >out.log 2>err.log || got=$?
  [[ $got == "$status" ]] || fault "status $got instead of $status: $*"
  [[ $(grep -c '^error: ' err.log) == 1 && $(wc -l <err.log) == 1 ]] || fault "not one sentence: $*"
  grep -qE -- "$sentence" err.log || fault "no \"$sentence\": $*"
}

"$train" "${flags[@]}" --out whole >out.log 2>err.log
expected=$(computed whole)

# A disk that is full at one moment or another. Where nothing may be mounted, no file may grow past a limit.
full='No space left|disk full|cannot write|cannot be written'
mkdir small
if mount -t tmpfs -o size=4m tmpfs small 2>/dev/null; then mounted=yes; fi
needed=$(du -sk whole | cut -f1)
for ((k = 1; k <= 12; ++k)); do
  rm -rf small/*
  if [[ -n $mounted ]]; then
    mount -o "remount,size=$((needed * k / 12 + RANDOM % 32 + 4))k" small
    "$train" "${flags[@]}" --out small/run >out.log 2>err.log && break  # it fits
    [[ $(wc -l <err.log) == 1 ]] || fault "not one sentence on a disk of $k twelfths"
    grep -qE "$full" err.log || fault "a full disk is not named"
    mount -o remount,size=64m small
  else
    ends 1 'File too large|cannot' bash -c 'trap "" XFSZ; ulimit -f "$0"; "$@"' $((k * 2)) "$train" "${flags[@]}" --out small/run
  fi
  "$train" "${flags[@]}" --out small/run >out.log 2>err.log || fault "with room again it does not go on"
  [[ $(computed small/run) == "$expected" ]] || fault "after a full disk it is another run"
done

# A folder that cannot be written: root may write anywhere but where the disk says no.
cp -r whole still
if ((EUID != 0)); then
  chmod a-w still still/checkpoints
  ends 1 'still.*(Permission denied|cannot be written)' "$train" "${flags[@]}" --out still
  chmod u+w still still/checkpoints
elif chattr +i still still/checkpoints still/lock 2>/dev/null; then
  ends 1 'still.*(not permitted|cannot be written)' "$train" "${flags[@]}" --out still
  chattr -i still still/checkpoints still/lock
fi
[[ $(computed still) == "$expected" ]] || fault "a folder that could not be written has changed"
: >file
ends 1 'run folder file/run cannot be made' "$train" "${flags[@]}" --out file/run
ends 1 'file/data' "$train" "${flags[@]}" --out other --data file/data

# Two runs in one folder: the second is refused, the first goes on.
"$train" "${flags[@]}" --out two >first.log 2>&1 &
until [[ -s two/metrics.jsonl ]]; do sleep 0.01; done
kill -STOP $!
ends 1 "run folder two is in use by process $!" "$train" "${flags[@]}" --out two
kill -CONT $!
wait $! || fault "the first of two runs was disturbed: $(cat first.log)"
[[ $(computed two) == "$expected" ]] || fault "the first of two runs is another run"

exit $((failures > 0))
