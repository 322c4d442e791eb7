#!/usr/bin/env bash
# Training that is killed at random moments, every third time inside a save, and started again each time is the training
# that never stopped, bit for bit. ADDER_KILLS=50 kills more often, ADDER_SEED=N at other moments.
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

# Whether there is a temporary folder that this life made, not one that was killed before.
saving() {
  local folder
  for folder in cut/checkpoints/*.tmp; do
    if [[ $folder -nt born ]]; then return; fi
  done
  return 1
}
# sleeps MICROSECONDS
sleeps() { sleep "$(printf '%d.%06d' $(($1 / 1000000)) $(($1 % 1000000)))"; }
# stop_inside_save PROCESS: waits for a save, lets a moment of it pass and stops the process; if the save was over by
# then, waits for the next one. A save lasts as long as the disk wants: no fixed moment would hit one everywhere.
stop_inside_save() {
  while kill -CONT "$1" 2>/dev/null; do
    until saving || ! kill -0 "$1" 2>/dev/null; do :; done
    if ((RANDOM % 2)); then sleeps $((RANDOM % 4000)); fi
    kill -STOP "$1" 2>/dev/null || true
    if saving; then return; fi
  done
}

killed=0 inside=0 resumed=0 runs=1
while ((killed < kills)); do
  : >born
  "$recipes/train" "${flags[@]}" --out cut >cut.log 2>&1 &
  sleeps $((RANDOM % life * 1000 + RANDOM % 1000))
  if ((killed % 3 == 2)); then stop_inside_save $!; fi
  status=0
  kill -KILL $! 2>/dev/null || true
  wait $! 2>/dev/null || status=$?
  if ((status == 137)); then
    killed=$((killed + 1))
    if saving; then inside=$((inside + 1)); fi
    if compgen -G 'cut/checkpoints/step_????????' >/dev/null; then resumed=$((resumed + 1)); fi
  elif ((status != 0)); then
    echo "FAILED: it ended by itself with status $status after $killed kills (seed $seed): $(cat cut.log)"
    exit 1
  fi
  if [[ -e cut/checkpoints/step_00000100 ]] && ((killed < kills)); then  # another run, with the kills that are left
    finish
    runs=$((runs + 1))
    ((runs <= kills)) || { echo "FAILED: runs end before they can be killed"; exit 1; }
    rm -rf cut
  fi
done
finish
echo "$killed kills in $runs runs, $resumed of them after a save, $inside inside one, seed $seed"
((inside > 0 || kills < 3)) || { echo "FAILED: no kill came inside a save"; exit 1; }
((resumed > 0)) || { echo "FAILED: every kill came before the first save"; exit 1; }
