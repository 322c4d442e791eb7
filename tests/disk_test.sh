#!/usr/bin/env bash
# A full disk, a folder that cannot be written and a second run in the same folder end in one sentence, nothing is lost,
# and the same command goes on once there is room. ADDER_SEED=N fills the disk at other moments.
source "$(dirname "$0")/script.sh"
seed=${ADDER_SEED:-$RANDOM}
RANDOM=$seed
mounted=
trap '[[ -z $mounted ]] || umount "$work/small"; chmod -R u+w "$work"; rm -rf "$work"' EXIT

flags=("${tiny[@]}" --steps 24 --validate-every 12 --save-every 1)
unlike() { fault "$* (seed $seed): $(cat out.log err.log)"; }
# ends STATUS SENTENCE COMMAND...: it ends with that status and one line of error that holds the sentence.
ends() {
  local status=$1 sentence=$2 got=0
  shift 2
  "$@" >out.log 2>err.log || got=$?
  [[ $got == "$status" ]] || unlike "status $got instead of $status: $*"
  [[ $(grep -c '^error: ' err.log) == 1 && $(wc -l <err.log) == 1 ]] || unlike "not one sentence: $*"
  grep -qE -- "$sentence" err.log || unlike "no \"$sentence\": $*"
}

"$recipes/train" "${flags[@]}" --out whole >out.log 2>err.log
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
    "$recipes/train" "${flags[@]}" --out small/run >out.log 2>err.log && break  # it fits
    [[ $(wc -l <err.log) == 1 ]] || unlike "not one sentence on a disk of $k twelfths"
    grep -qE "$full" err.log || unlike "a full disk is not named"
    mount -o remount,size=64m small
  else
    ends 1 'File too large|cannot' bash -c 'trap "" XFSZ; ulimit -f "$0"; "$@"' $((k * 2)) \
      "$recipes/train" "${flags[@]}" --out small/run
  fi
  "$recipes/train" "${flags[@]}" --out small/run >out.log 2>err.log || unlike "with room again it does not go on"
  [[ $(computed small/run) == "$expected" ]] || unlike "after a full disk it is another run"
done

# A folder that cannot be written. Root may write anywhere, but for a process that gives up the capability to.
cp -r whole still
chmod a-w still still/checkpoints
like_any_user=()
if ((EUID == 0)); then like_any_user=(setpriv --bounding-set=-dac_override --inh-caps=-dac_override); fi
if "${like_any_user[@]}" bash -c ': >still/probe' 2>/dev/null || ! "${like_any_user[@]}" true; then
  echo "SKIPPED: the folder that cannot be written, since nothing here keeps root from writing into it"
else
  ends 1 'still.*(Permission denied|cannot be written)' "${like_any_user[@]}" "$recipes/train" "${flags[@]}" --out still
fi
chmod u+w still still/checkpoints
rm -f still/probe
[[ $(computed still) == "$expected" ]] || unlike "a folder that could not be written has changed"
: >file
ends 1 'run folder file/run cannot be made' "$recipes/train" "${flags[@]}" --out file/run
ends 1 'file/data' "$recipes/train" "${flags[@]}" --out other --data file/data

# Two runs in one folder: the second is refused, the first goes on.
"$recipes/train" "${flags[@]}" --out two >first.log 2>&1 &
until [[ -s two/metrics.jsonl ]] || ! kill -0 $! 2>/dev/null; do sleep 0.01; done
kill -STOP $!
ends 1 "run folder two is in use by process $!" "$recipes/train" "${flags[@]}" --out two
kill -CONT $!
wait $! || fault "the first of two runs was disturbed: $(cat first.log)"
[[ $(computed two) == "$expected" ]] || fault "the first of two runs is another run"

exit $((failures > 0))
