#!/usr/bin/env bash
# The training recipe under mpirun: two ranks train as one does, stop together, go on at another number of ranks; what
# is wrong on one rank ends all, and gradients that are not finite end the run after ten steps.
source "$(dirname "$0")/script.sh"
source "$(dirname "$0")/train_ranks.sh"
export OMP_NUM_THREADS=1

flags=(--device cpu --text "$source_folder/core" --steps 120 --batch 8 --micro-batch 2 --time 32 --layers 2
  --d-model 32 --d-state 8 --head-dim 16 --learning-rate 1e-3 --validate-every 60 --save-every 30
  --validation-share 0.2 --dropout 0.1 --threads 1)
runs 1 0 "${flags[@]}" --out one
runs 2 0 "${flags[@]}" --out two --data one/data
says 1 '^validation: '
[[ $(numbers two loss | wc -l) == 120 ]] || wrong "metrics of $(numbers two loss | wc -l) steps, not of 120"
same one two

# Begun by 4 ranks and stopped by a signal, gone on by 1, by 2 and by 4.
lines() { if [[ -e cut/metrics.jsonl ]]; then wc -l <cut/metrics.jsonl; else echo 0; fi; }
for ranks in 4 1 2; do
  before=$(lines)
  mpirun -n "$ranks" "$recipes/train" "${flags[@]}" --out cut --data one/data >out.log 2>err.log &
  until (($(lines) >= before + 3)) || ! kill -0 $! 2>/dev/null; do sleep 0.01; done
  signal_ranks $! || true
  wait $! || wrong "a signal ended it with status $?"
  says 1 'stopped by SIGUSR1 after step'
  ((before == 0)) || says 1 'going on from step'
  [[ $(ls cut/checkpoints | wc -l) -le 2 ]] || wrong "checkpoints $(ls cut/checkpoints)"
done
runs 2 0 "${flags[@]}" --out cut --data one/data --time-limit 0.001s
says 1 'stopped by the time limit after step'
runs 4 0 "${flags[@]}" --out cut --data one/data
says 1 'going on from step'
[[ $(numbers cut loss | wc -l) == 120 ]] || wrong "metrics of $(numbers cut loss | wc -l) steps, not of 120"
same one cut

# What is wrong with a batch, a flag or a file is said once, and all ranks end.
runs 3 1 "${flags[@]}" --out three --data one/data
says 1 'a batch of 8 cannot be cut into micro-batches of 2 on 3 ranks'
says 1 '^error'
runs 2 2 "${flags[@]}" --out two --data one/data --learning-rate 1
says 1 'learning-rate was 0.001 and is now 1'
says 1 '^error'
cp -r two hurt
truncate -s 1000 hurt/checkpoints/step_00000120/rank_0001.h5
runs 2 0 "${flags[@]}" --out hurt --data one/data
says 1 'warning: hurt/checkpoints/step_00000120/rank_0001.h5: has 1000 bytes'
says 1 'going on from step 90'
same one hurt

# Weights that overflow at the first step: no gradient is finite after it. Ten steps are skipped, then the run ends.
for ranks in 1 2; do
  rm -rf wild
  runs "$ranks" 1 "${flags[@]}" --out wild --data one/data --learning-rate 1e38 --warmup 0 --clip 0 --save-every 100
  said='the gradient was not finite ten times in a row, last with samples [0-9]+ to [0-9]+; nothing is saved'
  says 1 "^error.*step [0-9]+: $said"
  [[ $(grep -c '"grad_norm":"NaN"' wild/metrics.jsonl) == 10 ]] || wrong "not ten skipped steps"
  grep -q '"skipped":10.0' wild/metrics.jsonl || wrong "the skipped steps are not counted"
  [[ -z $(ls wild/checkpoints) ]] || wrong "it saved $(ls wild/checkpoints)"
done

exit $((failures > 0))
