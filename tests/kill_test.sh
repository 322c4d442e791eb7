#!/usr/bin/env bash
# Training that is killed at random moments, saves included, and started again each time is the training that never
# stopped, bit for bit. ADDER_KILLS=50 kills more often, ADDER_SEED=N at other moments.
set -euo pipefail
source_folder=$1 build_folder=$2
train=$build_folder/recipes/train
kills=${ADDER_KILLS:-12} seed=${ADDER_SEED:-$RANDOM}
RANDOM=$seed
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# A tiny model that saves every step: most of its time goes into saves.
flags=(--text "$source_folder/core" --steps 200 --batch 2 --micro-batch 2 --time 16 --layers 1 --d-model 16 --d-state 4
  --head-dim 8 --validate-every 0 --save-every 1 --validation-share 0.2 --dropout 0.1 --threads 1)

# What a run computed: metrics without times, and the last checkpoint's bytes. A run that is killed after its last step
# validates again.
computed() {
  sed -E 's/"(time|tokens_per_second)":[^,}]*,?//g' "$1/metrics.jsonl" | uniq
  sha256sum "$1"/checkpoints/step_00000200/rank_0000.h5 | cut -d' ' -f1
}
milliseconds() { date +%s%3N; }

begun=$(milliseconds)
"$train" "${flags[@]}" --out whole >whole.log
# A life of up to a sixth of the whole run: starts, steps, saves, whatever the machine's speed.
life=$((($(milliseconds) - begun) / 6 + 1))

# Starts the run once more, to its end, and compares.
finish() {
  "$train" "${flags[@]}" --out cut >cut.log 2>&1 || { echo "FAILED: $(cat cut.log) (seed $seed)"; exit 1; }
  [[ $(computed cut) == "$(computed whole)" ]] || {
    echo "FAILED: killed and resumed, run $runs is another run (seed $seed):"
    diff <(computed whole) <(computed cut)
    exit 1
  }
}

killed=0 inside=0 resumed=0 runs=1
while ((killed < kills)); do
  "$train" "${flags[@]}" --out cut >cut.log 2>&1 &
  wait_microseconds=$((RANDOM % life * 1000 + RANDOM % 1000))
  sleep "$(printf '%d.%06d' $((wait_microseconds / 1000000)) $((wait_microseconds % 1000000)))"
  status=0
  kill -KILL $! 2>/dev/null || true
  wait $! 2>/dev/null || status=$?
  if ((status == 137)); then
    killed=$((killed + 1))
    if compgen -G 'cut/checkpoints/*.tmp' >/dev/null; then inside=$((inside + 1)); fi
    if compgen -G 'cut/checkpoints/step_????????' >/dev/null; then resumed=$((resumed + 1)); fi
  elif ((status != 0)); then
    echo "FAILED: it ended by itself with status $status after $killed kills (seed $seed): $(cat cut.log)"
    exit 1
  fi
  if [[ -e cut/checkpoints/step_00000200 ]] && ((killed < kills)); then  # another run, with the kills that are left
    finish
    runs=$((runs + 1))
    rm -rf cut
  fi
done
finish
echo "$killed kills in $runs runs, $resumed of them after a save, $inside inside one, seed $seed"
((resumed > 0)) || { echo "FAILED: every kill came before the first save"; exit 1; }
