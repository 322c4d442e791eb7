#!/usr/bin/env bash
# The recipes export and logits as their user meets them: a trained model goes out in both forms and gives the logits
# that it gives in its run folder.
source "$(dirname "$0")/script.sh"
same_logits=$build_folder/tests/adder_same_logits

"$recipes/train" --text "$source_folder/core" --steps 2 --batch 2 --micro-batch 2 --time 32 --layers 2 --d-model 32 \
  --d-state 8 --head-dim 16 --groups 2 --no-tied --validation-share 0.2 --out run >train.log

printf '1 2 3 256\n\n0\n' >ids.txt
for form in transformers state-spaces; do
  "$recipes/export" --run run --form "$form" --out "$form" >export.log
  "$recipes/export" --run run --form "$form" --out "$form-again" >export.log
  diff -r "$form" "$form-again" || fault "$form: two exports of one run differ"
  "$recipes/logits" --device cpu --model "$form" --tokens ids.txt --out "$form.h5" >logits.log
  grep -q 'logits of 2 sequences' logits.log || fault "$form: $(cat logits.log)"
  "$same_logits" run ids.txt "$form.h5" || fault "$form: other logits than the run's"
done
# Numbers of another model, or of other tokens, are told from these.
"$recipes/logits" --device cpu --model transformers --tokens ids.txt --norm-groups 1 --out other.h5 >logits.log
! "$same_logits" run ids.txt other.h5 2>/dev/null || fault "another norm gives the same logits"
printf '1 2 3 255\n0\n' >other.txt
! "$same_logits" run other.txt transformers.h5 2>/dev/null || fault "other tokens give the same logits"
grep -q '"model_type": "mamba2"' transformers/config.json ||
  fault "transformers/config.json: $(cat transformers/config.json)"
grep -q '"ngroups": 2' state-spaces/config.json ||
  fault "state-spaces/config.json: $(cat state-spaces/config.json)"

refuses 1 'transformers/config.json: is there already' export --run run --out transformers
refuses 1 'nowhere' export --run nowhere --out new
refuses 2 '--form' export --run run --out new --form gguf
[[ ! -e new ]] || fault "a refused export left a folder"

before=$(sha256sum transformers.h5)
printf '1 2\n3 257\n' >bad.txt
refuses 1 'bad.txt:2: "257" is not a token id below 257' \
  logits --model transformers --tokens bad.txt --out transformers.h5
printf '1 2x\n' >bad.txt
refuses 1 'bad.txt:1: "2x"' logits --model transformers --tokens bad.txt --out transformers.h5
printf '\n' >bad.txt
refuses 1 'bad.txt: has no token ids' logits --model transformers --tokens bad.txt --out transformers.h5
refuses 1 'run/config.json: cannot be read' logits --model run --tokens ids.txt --out transformers.h5
truncate -s -1 transformers/model.safetensors
refuses 1 'transformers/model.safetensors: ' logits --model transformers --tokens ids.txt --out transformers.h5
[[ $before == "$(sha256sum transformers.h5)" ]] || fault "a refused command changed its output"
exit $((failures > 0))
