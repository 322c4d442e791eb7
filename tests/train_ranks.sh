# What the tests of training on several ranks share; sourced behind script.sh.

wrong() { fault "$*; it said: $(cat out.log err.log)"; }
# runs RANKS STATUS FLAGS...
runs() {
  local ranks=$1 status=$2 got=0
  shift 2
  timeout -s KILL 100 mpirun -n "$ranks" "$recipes/train" "$@" >out.log 2>err.log || got=$?
  [[ $got == "$status" ]] || wrong "exit status $got instead of $status: $ranks ranks, $*"
}
says() { [[ $(cat out.log err.log | grep -cE -- "$2") == "$1" ]] || wrong "not $1 times \"$2\""; }
numbers() { sed -nE "s/.*\"step\":([0-9]+).*\"$2\":([-0-9.e+]+).*/\1 \2/p" "$1/metrics.jsonl"; }

# The losses of two runs, step by step, within 1e-5 over 50 steps: what "the same run" means in f32 across numbers of
# ranks. What the order of a sum changed keeps growing, so 1e-4 behind them.
same() {
  local metric
  for metric in loss validation_loss validation_nats_per_byte; do
    [[ $(numbers "$1" $metric | wc -l) -gt 0 ]] || wrong "$1 has no $metric"
    paste -d' ' <(numbers "$1" $metric) <(numbers "$2" $metric) |
      awk '{ most = $1 > 50 ? 1e-4 : 1e-5 }
        $1 != $3 || $2 - $4 > most || $4 - $2 > most { print "step", $1, $2, "and", $4; bad = 1 }
        END { exit bad }' ||
      wrong "$metric of $1 and $2 differ"
  done
}
