#!/usr/bin/env bash
# The recipe generate: every way to choose a token, the same text from the same seed, what it refuses, its help.
source "$(dirname "$0")/script.sh"
"$recipes/train" "${tiny[@]}" --steps 20 --validate-every 0 --out run >train.log
writes() {  # a byte 0, which a shell's variables cannot hold, is left out
  "$recipes/generate" --run run --device cpu --prompt 'int ' --tokens 40 "$@" 2>err.log | tr -d '\0' ||
    fault "$* ends with $?"
}

greedy=$(writes --greedy)
[[ $greedy == 'int '* ]] || fault "the text does not begin with its prompt: $greedy"
for same in '--temperature 0' '--top-k 1' '--top-p 1e-9' '--min-p 1'; do
  [[ $(writes $same) == "$greedy" ]] || fault "$same is not the most probable text"
done
drawn=$(writes --seed 7)
[[ $(writes --seed 7) == "$drawn" ]] || fault "one seed writes two texts"
[[ $(writes --seed 8) != "$drawn" ]] || fault "two seeds write one text"
both=$(writes --greedy --prompt 'for (size_t')
[[ $both == "$greedy"*'for (size_t'* ]] || fault "of two prompts not both are written on, or not as alone: $both"
[[ $(writes --greedy --prompt '[a, b]') == "$greedy"*'[a, b]'* ]] || fault "a prompt in brackets is taken apart"
refuses 1 'nowhere' generate --run nowhere --prompt x
refuses 2 '--top-p' generate --run run --top-p 2
"$recipes/generate" --help >help.log || fault "--help ends with status $?"
grep -q -- '--repetition-penalty' help.log || fault "--help does not teach"

exit $((failures > 0))
