#!/usr/bin/env bash
# The training recipe as its user meets it: it trains, stops, goes on bit for bit, refuses bad input in one sentence.
source "$(dirname "$0")/script.sh"

# A small model on adder's own sources.
small=(--text "$source_folder/core" --steps 40 --batch 4 --micro-batch 2 --time 32 --layers 2 --d-model 32 --d-state 8
  --head-dim 16 --validate-every 20 --save-every 10 --validation-share 0.2 --dropout 0.1)

# A plan needs no text and leaves nothing behind; where there is a corpus it counts epochs.
"$recipes/train" "${small[@]}" --out whole --plan >plan.log
grep -q 'epochs not known' plan.log || fault "a plan without a corpus: $(cat plan.log)"
[[ ! -e whole ]] || fault "a plan made $(ls whole)"

"$recipes/train" "${small[@]}" --out whole >whole.log
"$recipes/train" "${small[@]}" --out whole --plan | grep -qE '[0-9.]+ epochs of' ||
  fault "a plan does not see the corpus"
grep -qE '^validation: [0-9.]+ nats per byte, [0-9.]+ bits per byte \(order-5 counts: [0-9.]+\)$' whole.log ||
  fault "no line of validation in $(cat whole.log)"
for file in run.json metrics.jsonl loss.svg tokens_per_second.svg checkpoints/step_00000040/manifest.json; do
  [[ -s whole/$file ]] || fault "no $file in the run folder"
done
[[ $(ls whole/checkpoints | wc -l) == 2 ]] || fault "kept $(ls whole/checkpoints), not the last two"

# Stopped by a signal after a few steps, resumed by the same command: the same run, on a GPU as a graph or not.
for signal in INT USR1; do
  "$recipes/train" "${small[@]}" --out "$signal" >stop.log 2>&1 &
  process=$!
  until [[ $(cat "$signal/metrics.jsonl" 2>/dev/null | wc -l) -ge 3 ]]; do sleep 0.02; done
  kill -"$signal" "$process"
  wait "$process" || fault "SIG$signal ended the run with status $?"
  grep -q 'the same command goes on from there' stop.log || fault "SIG$signal: no word on how to go on: $(cat stop.log)"
  "$recipes/train" "${small[@]}" --out "$signal" --graph off >go.log
  [[ $(computed "$signal") == "$(computed whole)" ]] ||
    fault "stopped by SIG$signal and resumed is not the run that never stopped"
done

# Changed flags are refused, and nothing is overwritten.
before=$(cd whole && find . -type f ! -name lock -exec sha256sum {} + | sort)
refuses 2 '--learning-rate was' train "${small[@]}" --out whole --learning-rate 0.1
grep -qE -- '--learning-rate was 0\.(01|0015) and is now 0\.1;' err.log || fault "not both values: $(cat err.log)"
refuses 2 'stepz' train "${small[@]}" --out whole --stepz 3
refuses 2 '--layers' train "${small[@]}" --out whole --layers none
refuses 2 '--graph on: a step can be a CUDA graph in one process' train "${small[@]}" --out graph --device cpu \
  --graph on
refuses 1 'cannot be cut into heads of 7' train "${small[@]}" --out heads --head-dim 7
after=$(cd whole && find . -type f ! -name lock -exec sha256sum {} + | sort)
[[ $before == "$after" ]] || fault "a refused command changed the run folder"

# Other text is refused, and with --fresh the shards are made of it; each source has its own line of validation.
mkdir anew
cp -r whole/data anew/data
refuses 1 'choose another folder with --data' train "${small[@]}" --text "$source_folder/optim" --out anew
"$recipes/train" "${small[@]}" --text "$source_folder/optim" --out anew --fresh >anew.log || fault "$(cat anew.log)"
for source in core optim; do
  grep -q "\"validation_nats_per_byte/$source\"" anew/metrics.jsonl || fault "no validation of $source: $(cat anew.log)"
done

# So is more or less of this machine's text, unless the shards do not say how much they were made of.
note="this machine's text (validation share 0.2)"
echo "$note, at most 8.5 MB" >anew/data/made_from
refuses 1 "$note, at most 8.5 MB, not from $note, at most 3 MB" train "${small[@]:2}" --data anew/data --out less \
  --machine-text 3
echo "$note" >anew/data/made_from
"$recipes/train" "${small[@]:2}" --data anew/data --out less --machine-text 3 >less.log || fault "$(cat less.log)"

# A run that diverges says so, and saves nothing, though its tenth lost step is the last one and one to save.
refuses 1 'step 11: the gradient was not finite ten times in a row, last with samples 40 to 43' train "${small[@]}" \
  --out lost --learning-rate 1e30 --warmup 0 --clip 0 --steps 11 --save-every 11 --validate-every 0
[[ -z $(ls lost/checkpoints 2>/dev/null) ]] || fault "a lost run saved $(ls lost/checkpoints)"

# Two processes with the default batch: on GPUs if each gets one, else on the CPU without a word asked.
OMP_NUM_THREADS=1 mpirun -n 2 --bind-to none --oversubscribe "$recipes/train" --text "$source_folder/core" --steps 2 \
  --time 32 --layers 1 --validation-share 0.2 --out two >two.log 2>&1 ||
  fault "two processes do not train: $(cat two.log)"
grep -qE '^computing on (the CPU in f32, 2 processes of 1 thread$|2 GPUs, )' two.log ||
  fault "not together: $(cat two.log)"

# Bad text names file and line and leaves no shard.
printf '{"text": "fine"}\n{"text": 5}\n' >bad.jsonl
refuses 1 'bad.jsonl' train --text bad.jsonl --out bad
refuses 1 'nowhere.jsonl' train --text nowhere.jsonl --out bad
printf '{"text": "caf\xff"}\n' >latin.jsonl
refuses 1 'latin.jsonl' train --text latin.jsonl --out bad
[[ ! -e bad/data/train.h5 ]] || fault "bad text left a shard"

# A damaged checkpoint is refused by name and the one before it used; a damaged token file is refused.
printf 'x' | dd of=INT/checkpoints/step_00000040/rank_0000.h5 bs=1 seek=2000 conv=notrunc status=none
"$recipes/train" "${small[@]}" --out INT >damaged.log 2>&1 ||
  fault "no fall-back to the previous checkpoint: $(cat damaged.log)"
grep -q 'step_00000040' damaged.log || fault "the damaged checkpoint is not named: $(cat damaged.log)"
[[ $(computed INT) == "$(computed whole)" ]] || fault "going on from the previous checkpoint is another run"
truncate -s -100 INT/data/validation.h5
refuses 1 'validation.h5' train "${small[@]}" --out INT

"$recipes/train" --help >help.log || fault "--help ends with status $?"
grep -q -- '--learning-rate' help.log || fault "--help does not name --learning-rate"
exit $((failures > 0))
