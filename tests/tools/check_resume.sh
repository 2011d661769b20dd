#!/usr/bin/env bash
# A run that is interrupted with Ctrl-C and resumed must end with the same model and the same
# metrics as one that was not:  check_resume.sh PROGRAM [OPTION...]
#
# The program takes --steps, --out and --resume, writes OUT/model.safetensors, OUT/metrics.jsonl
# (one line per step) and OUT/report.html.
set -um  # -m: what runs in the background hears SIGINT

name=$1
shift
options=("$@")
steps=60
folder=build/check_$name
rm -rf "$folder"
mkdir -p "$folder"
fail() { echo "FAILED  $name ${options[*]}: $*"; exit 1; }

run() {
  local out=$1
  shift
  exec ${RUN:-} "build/examples/$name" "${options[@]}" --steps $steps --out "$folder/$out" "$@" \
    > "$folder/$out.txt" 2>&1
}
lines() { cat "$1" 2> /dev/null | wc -l; }

(run whole) || fail "ends with an error: $(tail -n 3 "$folder/whole.txt")"

(run parts) &
pid=$!
while [ "$(lines "$folder/parts/metrics.jsonl")" -lt 5 ] && kill -0 $pid 2> /dev/null; do
  sleep 0.02
done
kill -INT $pid 2> /dev/null || fail "ended before it could be interrupted"
wait $pid || fail "ends with an error when it is interrupted: $(tail -n 3 "$folder/parts.txt")"
stopped=$(lines "$folder/parts/metrics.jsonl")
[ "$stopped" -lt $steps ] || fail "did not stop when it was interrupted"

(OMP_NUM_THREADS=1 run parts --resume) || fail "does not resume: $(tail -n 3 "$folder/parts.txt")"
for file in model.safetensors metrics.jsonl routes.jsonl; do
  cmp "$folder/whole/$file" "$folder/parts/$file" || fail "$file differs after a resume"
done
for part in "<svg" "</html>"; do
  grep -q "$part" "$folder/whole/report.html" || fail "the report lacks $part"
done
echo "ok      $name: stopped after $stopped of $steps steps, resumed with one thread, the same bits"
