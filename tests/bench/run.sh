#!/usr/bin/env bash
# Takes all readings of the benchmarks and writes them to build/bench/bench.json: an array with one
# object per reading. `make bench` runs it, and build/bench/report then makes a page of the file.
# On two cores it takes about eight minutes; with --short two, for a look: no wideB, few readings.
#
# What is to be compared is interleaved: whole rounds are repeated, so that a busy minute of the
# machine hits all rows alike. Every reading carries the FMA peak beside it. Asserts nothing; a
# benchmark that fails says so, and the others go on.
set -u

case ${1:-} in
  --short)
    rounds=1 seconds=0.2 micro_seconds=0.005 compile_rounds=1
    configs="digits1 digits2 mnist mlm cifar"
    experts="4 64" blocks="4 8 16" batches="32 64 128" ;;
  '')
    rounds=3 seconds=1 micro_seconds=0.04 compile_rounds=3
    configs="digits1 digits2 mnist mlm cifar wideB"
    experts="4 8 16 32 64" blocks="2 4 8 16 32" batches="16 32 64 128 256" ;;
  *) echo "run.sh: the only option is --short; got $1" >&2; exit 2 ;;
esac

folder=build/bench
lines=$folder/readings.txt
: > "$lines"
failed=0

# reading SECTION COMMAND...: every line that the command prints is a JSON object; it becomes an
# entry of the array, and its first member tells the section.
reading() {
  local section=$1
  shift
  if ${RUN:-} "$@" > "$folder/reading.txt"; then
    sed "s/^{/{\"section\": \"$section\", /" "$folder/reading.txt" >> "$lines"
  else
    echo "failed: $*" >&2
    failed=$((failed + 1))
  fi
}

# step SECTION CONFIG THREADS OPTION...
step() {
  local section=$1
  shift
  echo "$section: $*"
  reading "$section" "$folder/train_step" "$@"
}

machine() {
  local processor= compiler
  compiler=$($CXX --version | head -n 1 | sed 's/ (.*)//' | tr -d '"\\')
  [ -r /proc/cpuinfo ] && processor=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)
  printf '{"processor": "%s", "cores": %s, "compiler": "%s", "date": "%s", "rounds": %s}\n' \
    "${processor:-$(uname -m)}" "$(getconf _NPROCESSORS_ONLN)" "$compiler" \
    "$(date -u '+%Y-%m-%d %H:%M UTC')" "$rounds"
}
RUN='' reading machine machine

for round in $(seq "$rounds"); do
  echo "round $round of $rounds"
  for config in $configs; do
    for threads in 1 2; do
      if [ "$config" = wideB ]; then
        step train "$config" "$threads" --seconds 0 --steps 1
      else
        step train "$config" "$threads" --seconds "$seconds"
      fi
    done
  done
  # Scaling, on mnist with two threads: its experts, blocks and batches, K = 1 beside a dense
  # model, and blocks that are computed again.
  quick="--seconds 0 --steps 2"
  for value in $experts; do step experts mnist 2 $quick --set "experts=$value"; done
  for value in $blocks; do step blocks mnist 2 $quick --set "blocks=$value"; done
  for value in $blocks; do
    step recompute mnist 2 $quick --set recompute=1 --set "blocks=$value"
  done
  for value in $batches; do step batch mnist 2 $quick --set "batch=$value"; done
  step dense mnist 2 --seconds "$seconds" --set top_k=1
  step dense mnist 2 --seconds "$seconds" --set experts=0
done

for config in $configs; do
  for batch in 1 64; do
    if [ "$config-$batch" = wideB-64 ]; then
      step evaluate "$config" 2 --evaluate --seconds 0 --steps 1 --set "batch=$batch"
    else
      step evaluate "$config" 2 --evaluate --seconds 0.4 --set "batch=$batch"
    fi
  done
done

for threads in 1 2; do
  echo "parts: $threads threads"
  reading parts "$folder/micro" "$threads" $configs --seconds "$micro_seconds"
done

echo "compile times"
ROUNDS=$compile_rounds RUN='' reading compile tests/bench/compile_time.sh

{ echo '['; sed '$!s/$/,/' "$lines"; echo ']'; } > "$folder/bench.json"
rm -f "$lines" "$folder/reading.txt"
[ "$failed" = 0 ] || echo "$failed benchmarks failed; the page lacks their readings" >&2
