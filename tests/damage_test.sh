#!/usr/bin/env bash
# A flipped bit or a cut in any file that training reads again is refused by name or changes nothing: a damaged
# checkpoint gives way to the one before it, a damaged token file ends the run with one sentence and nothing lost.
# ADDER_DAMAGES=500 does more damage, ADDER_SEED=N other damage.
source "$(dirname "$0")/script.sh"
damages=${ADDER_DAMAGES:-40} seed=${ADDER_SEED:-$RANDOM}
RANDOM=$seed

flags=("${tiny[@]}" --steps 24 --validate-every 12 --save-every 4)
harm() {
  echo "FAILED: $* (damage $damage to $file, byte $at of $size, seed $seed): $(cat -v out.log err.log)"
  exit 1
}

"$recipes/train" "${flags[@]}" --out whole >whole.log
expected=$(computed whole)
files=(checkpoints/step_000000{20,24}/{manifest.json,rank_0000.h5} data/{train,validation}.h5)

refused=0 harmless=0
for ((damage = 1; damage <= damages; ++damage)); do
  rm -rf run
  cp -r whole run
  file=${files[RANDOM % ${#files[@]}]}
  size=$(stat -c %s "run/$file")
  at=$(((RANDOM << 15 | RANDOM) % size))
  if ((RANDOM % 4 == 0)); then
    truncate -s "$at" "run/$file"
  else
    byte=$(od -An -tu1 -j "$at" -N 1 "run/$file")
    printf "\\x$(printf %02x $((byte ^ 1 << RANDOM % 8)))" | dd of="run/$file" bs=1 seek="$at" conv=notrunc status=none
  fi
  cmp -s "run/$file" "whole/$file" && harm "nothing was damaged"
  status=0
  "$recipes/train" "${flags[@]}" --out run >out.log 2>err.log || status=$?
  if [[ $file == data/* ]]; then
    [[ $status == 1 && $(wc -l <err.log) == 1 ]] || harm "status $status, not one sentence"
    grep -q "^error: run/$file: " err.log || harm "the file is not named"
    cp "whole/$file" "run/$file"
    "$recipes/train" "${flags[@]}" --out run >out.log 2>err.log || harm "it does not go on with the whole file"
    refused=$((refused + 1))
  elif [[ $file == *24/* ]]; then
    [[ $status == 0 && $(wc -l <err.log) == 1 ]] || harm "status $status, not one sentence"
    grep -q "^warning: run/$file: .*refused" err.log || harm "the file is not named"
    grep -q 'going on from step 20' out.log || harm "the checkpoint before it is not used"
    refused=$((refused + 1))
  else
    [[ $status == 0 && ! -s err.log ]] || harm "status $status: an older checkpoint that nobody needs"
    harmless=$((harmless + 1))
  fi
  [[ $(computed run) == "$expected" ]] || harm "another result"
done
echo "$damages damages, $refused refused by name, $harmless harmless, seed $seed"
