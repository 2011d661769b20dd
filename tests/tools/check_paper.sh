#!/usr/bin/env bash
# Tiny experiments, killed and resumed, must come to the numbers of those that were not; those that
# are done must not be done again, and those that are changed must.
set -um  # -m: what runs in the background is a process group

folder=build/check_paper
rm -rf "$folder"
mkdir -p "$folder"
fail() { echo "FAILED  paper: $*"; exit 1; }

paper() {
  local out=$1
  shift
  ${RUN:-} build/examples/paper --out "$folder/$out" --tables bd --seeds 2 --vision-steps 2 \
    --reading-steps 2 --judging-steps 2 "$@" > "$folder/$out.txt" 2>&1
}
lines() { cat "$1" 2> /dev/null | wc -l; }
numbers() { sed -E 's/"seconds(_mean|_deviation)?": [^,}]*(, [0-9.e-]+\])?//g' "$1/results.json"; }

paper whole || fail "ends with an error: $(tail -n 3 "$folder/whole.txt")"
whole=$(lines "$folder/whole/runs.jsonl")
[ "$whole" = 18 ] || fail "5 models of table b, 4 of d and 2 seeds are 18 runs, not $whole"

for signal in KILL INT; do
  before=$(lines "$folder/parts/runs.jsonl")
  paper parts &
  pid=$!
  while [ "$(lines "$folder/parts/runs.jsonl")" -lt $((before + 3)) ] && kill -0 $pid 2> /dev/null
  do sleep 0.02; done
  kill -$signal -- -$pid 2> /dev/null || fail "ended before it could be stopped"
  { wait $pid; } 2> /dev/null
  [ $signal = KILL ] || grep -q "the same command goes on" "$folder/parts.txt" ||
    fail "says nothing when it is stopped: $(tail -n 3 "$folder/parts.txt")"
  stopped=$(lines "$folder/parts/runs.jsonl")
  [ "$stopped" -lt "$whole" ] || fail "did not stop"
done
printf '{"version": "half wri' >> "$folder/parts/runs.jsonl"
paper parts || fail "does not resume: $(tail -n 3 "$folder/parts.txt")"
grep -q "^$((whole - stopped)) runs" "$folder/parts.txt" || fail "does again what is done"
[ "$(lines "$folder/parts/runs.jsonl")" = "$whole" ] || fail "has more runs than it needs"
diff <(numbers "$folder/whole") <(numbers "$folder/parts") > "$folder/difference.txt" ||
  fail "other numbers after a resume: $(head -n 4 "$folder/difference.txt")"
[ "$(numbers "$folder/whole" | grep -c accuracy_mean)" = 12 ] || fail "a row lacks its accuracy"

paper parts --judging-steps 3 || fail "ends with an error: $(tail -n 3 "$folder/parts.txt")"
grep -q "^10 runs" "$folder/parts.txt" || fail "does not run what was changed, and that only"
page=$folder/whole/index.html
for part in "<svg" "</html>" "in the paper"; do
  grep -q "$part" "$page" || fail "the page lacks $part"
done
found=$(grep -noE 'https?:|src=|<(link|img|iframe|object|embed|base)\b|url\(|@import' "$page" |
  head -n 3)
[ -z "$found" ] || fail "the page refers to something else: $found"
${RUN:-} build/examples/paper --out "$folder/none" --tables z > "$folder/none.txt" 2>&1 &&
  fail "takes tables that are none"
grep -q "must be some of the letters" "$folder/none.txt" || fail "does not say which are"
echo "ok      paper: killed, stopped and resumed after $stopped of $whole runs, the same numbers"
