#!/usr/bin/env bash
# The training recipe on two GPUs: it trains as on one, goes on on one and on two again, repeats itself to the bit, and
# refuses more processes than GPUs; a rank that ends, ends all. Skipped where there are fewer than two.
source "$(dirname "$0")/script.sh"
source "$(dirname "$0")/train_ranks.sh"
export OMP_NUM_THREADS=1

# By the driver's own word, so that an adder that overlooks GPUs fails here.
if [[ -v CUDA_VISIBLE_DEVICES ]]; then gpus=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .) || true
else gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true; fi
((gpus >= 2)) || { echo "skipped: $gpus GPUs here, not two"; exit 0; }

flags=(--device cuda --dtype f32 --text "$source_folder/core" --steps 50 --batch 8 --micro-batch 2 --time 32 --layers 2
  --d-model 32 --d-state 16 --head-dim 16 --learning-rate 1e-3 --validate-every 25 --save-every 20
  --validation-share 0.2 --dropout 0.1 --threads 1)

runs 1 0 "${flags[@]}" --out one
runs 2 0 "${flags[@]}" --out two --data one/data
says 1 '^ranks 0, 1 on GPUs 0, 1 of '
says 1 '^computing on 2 GPUs, .* in f32(, peak .*)?$'
[[ $(numbers two loss | wc -l) == 50 ]] || wrong "metrics of $(numbers two loss | wc -l) steps, not of 50"
same one two
runs 2 0 "${flags[@]}" --out again --data one/data
[[ $(computed two) == "$(computed again)" ]] || wrong "two runs on two GPUs differ"

# Begun on two GPUs, gone on on one and then, without --device, on two again.
cp -r two cut
rm -r cut/checkpoints/step_00000050
runs 1 0 "${flags[@]}" --out cut --data one/data --save-every 5
says 1 'going on from step 40'
rm -r cut/checkpoints/step_00000050
runs 2 0 "${flags[@]:2}" --out cut --data one/data
says 1 'going on from step 45'
says 1 '^computing on 2 GPUs, .* in f32(, peak .*)?$'
[[ $(numbers cut loss | wc -l) == 50 ]] || wrong "metrics of $(numbers cut loss | wc -l) steps, not of 50"
same one cut

# In bf16, which is what GPUs compute in unless told otherwise; and gradients that are not finite are skipped by all.
runs 2 0 "${flags[@]}" --dtype bf16 --out half --data one/data
runs 2 1 "${flags[@]}" --out wild --data one/data --learning-rate 1e38 --warmup 0 --clip 0 --save-every 100
says 1 '^error.*the gradient was not finite ten times in a row'
[[ $(grep -c '"grad_norm":"' wild/metrics.jsonl) == 10 ]] || wrong "not ten skipped steps"  # "NaN" or an infinity

# More processes than GPUs.
ranks=$((gpus + 1)) short="$((gpus + 1)) processes on $(hostname) but $gpus GPUs"
runs $ranks 2 "${flags[@]}" --out many --data one/data
says 1 "^error.*: --device cuda: $short; start as many processes as GPUs"
runs $ranks 0 "${flags[@]:2}" --steps 2 --batch $ranks --micro-batch 1 --out many --data one/data
says 1 "^computing on the CPU: $short$"

# However one of two ranks ends, the other does too, soon, though it waits for it on its GPU.
ends() {
  local status=$1 got=0 before=$SECONDS
  timeout -s KILL 100 mpirun -n 2 "$build_folder/tests/adder_mpi_ends" --device cuda --how "$2" >out.log 2>err.log ||
    got=$?
  [[ $got == "$status" ]] || wrong "exit status $got instead of $status: --how $2"
  ((SECONDS - before < 60)) || wrong "it took $((SECONDS - before)) seconds: --how $2"
}
ends 0 well
ends 1 throw
says 1 'error on rank 1: no more of step 5'
ends 3 die

exit $((failures > 0))
