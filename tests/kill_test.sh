#!/usr/bin/env bash
# Training that is killed at random moments, saves included, and started again each time is the training that never
# stopped, bit for bit. ADDER_KILLS=50 kills more often, ADDER_SEED=N at other moments.
source "$(dirname "$0")/script.sh"
kills=${ADDER_KILLS:-12} seed=${ADDER_SEED:-$RANDOM}
RANDOM=$seed

# It saves every step: most of its time goes into saves.
flags=("${tiny[@]}" --steps 100 --validate-every 0 --save-every 1)
milliseconds() { date +%s%3N; }

milliseconds_of() {
  local begun=$(milliseconds)
  "$@" >whole.log
  echo $(($(milliseconds) - begun))
}
whole=$(milliseconds_of "$recipes/train" "${flags[@]}" --out whole)
begin=$(milliseconds_of "$recipes/train" "${tiny[@]}" --steps 1 --validate-every 0 --out begin)
# A life of up to a start and a sixth of the rest: starts, steps, saves, whatever the machine's speed.
life=$((begin + (whole > begin ? whole - begin : 0) / 6 + 1))

# Starts the run once more, to its end, and compares.
finish() {
  "$recipes/train" "${flags[@]}" --out cut >cut.log 2>&1 || { echo "FAILED: $(cat cut.log) (seed $seed)"; exit 1; }
  [[ $(computed cut) == "$(computed whole)" ]] || {
    echo "FAILED: killed and resumed, run $runs is another run (seed $seed):"
    diff <(computed whole) <(computed cut)
    exit 1
  }
}

killed=0 inside=0 resumed=0 runs=1
while ((killed < kills)); do
  "$recipes/train" "${flags[@]}" --out cut >cut.log 2>&1 &
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
  if [[ -e cut/checkpoints/step_00000100 ]] && ((killed < kills)); then  # another run, with the kills that are left
    finish
    runs=$((runs + 1))
    rm -rf cut
  fi
done
finish
echo "$killed kills in $runs runs, $resumed of them after a save, $inside inside one, seed $seed"
((resumed > 0)) || { echo "FAILED: every kill came before the first save"; exit 1; }
