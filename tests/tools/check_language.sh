#!/usr/bin/env bash
# Runs train_language on small files of every kind: a pre-training that is interrupted with Ctrl-C
# and resumed must end with the same model and the same metrics as one that was not; its model must
# be a start for sentences and questions; what is wrong with options or files must be said.
set -um  # -m: what runs in the background hears SIGINT

folder=build/check_language
rm -rf "$folder"
mkdir -p "$folder"
fail() { echo "FAILED  train_language: $*"; exit 1; }

language() {
  local out=$1
  shift
  exec ${RUN:-} build/examples/train_language --out "$folder/$out" --preset widenet_albert_4 \
    --experts 4 --blocks 2 --hidden 16 --batch 4 "$@" > "$folder/$out.txt" 2>&1
}
lines() { cat "$1" 2> /dev/null | wc -l; }
said() {
  grep -qF -- "$2" "$folder/$1.txt" || fail "$1 does not say \"$2\": $(cat "$folder/$1.txt")"
}
fails() { (language "$@") && fail "$1 does not fail"; }

# A text of 40 sentences, examples of SST-2 with a bad row, questions of SQuAD 2.0.
for i in $(seq 40); do
  echo "Sentence number $i is \"not\" long."
  [ $((i % 10)) = 0 ] && echo
done > "$folder/text.txt"
printf 'sentence\tlabel\n"fine\t1\nbad , bad\t0\nlost\nso fine\t1\nnot fine\t0\n' \
  > "$folder/sst2.tsv"
printf 'index\tsentence\n0\tfine\n1\tbad\n' > "$folder/unlabelled.tsv"
cat > "$folder/squad.json" <<'END'
{"version": "v2.0", "data": [{"paragraphs": [{
"context": "Zo\u00eb owns a caf\u00e9 by the sea in Brest.",
"qas": [{"id": "a", "question": "Who?", "answers": [{"text": "Zo\u00eb", "answer_start": 0}]},
{"id": "b", "question": "Where?", "answers": [{"text": "Brest", "answer_start": 30}]},
{"id": "c", "question": "Why?", "is_impossible": true, "answers": []},
{"id": "d", "question": "What?", "answers": [{"text": "a caf\u00e9", "answer_start": 9}]}]}]}]}
END

pretrain="--task pretrain --text $folder/text.txt --steps 60"
(language whole $pretrain) || fail "ends with an error: $(tail -n 3 "$folder/whole.txt")"
said whole "of the hidden words"

(language parts $pretrain) &
pid=$!
while [ "$(lines "$folder/parts/metrics.jsonl")" -lt 5 ] && kill -0 $pid 2> /dev/null; do
  sleep 0.02
done
kill -INT $pid 2> /dev/null || fail "ended before it could be interrupted"
wait $pid || fail "ends with an error when it is interrupted: $(tail -n 3 "$folder/parts.txt")"
stopped=$(lines "$folder/parts/metrics.jsonl")
[ "$stopped" -lt 60 ] || fail "did not stop when it was interrupted"
(OMP_NUM_THREADS=1 language parts $pretrain --resume) ||
  fail "does not resume: $(tail -n 3 "$folder/parts.txt")"
for file in model.safetensors metrics.jsonl routes.jsonl; do
  cmp "$folder/whole/$file" "$folder/parts/$file" || fail "$file differs after a resume"
done

start="--start $folder/whole/model.safetensors --steps 5"
(language sst2 $start --task sst2 --train "$folder/sst2.tsv" --test "$folder/sst2.tsv") ||
  fail "$(tail -n 3 "$folder/sst2.txt")"
said sst2 "row 4: there must be 2 columns; got 1"
said sst2 "of 4 test sentences are classified right"
[ "$(cut -f 1 "$folder/sst2/predictions.tsv" | tr '\n' ' ')" = "index 0 1 3 4 " ] ||
  fail "predictions.tsv does not leave out the bad row"
dense="--preset albert_base --no-experts --steps 5 --micro-batches 2 --task sst2"
dense="$dense --train $folder/sst2.tsv"
(language dense $dense --test "$folder/sst2.tsv") || fail "$(tail -n 3 "$folder/dense.txt")"
grep -q "An ALBERT judges sentences" "$folder/dense/report.html" || fail "a dense model has no name"
(language dense $dense --test "$folder/unlabelled.tsv" --resume) ||
  fail "does not evaluate again: $(tail -n 3 "$folder/dense.txt")"
said dense "unlabelled.tsv has no labels"
(language at_once $dense --micro-batches 1 --test "$folder/sst2.tsv") ||
  fail "$(tail -n 3 "$folder/at_once.txt")"
losses() { sed -E 's/.*"loss": ([^,]*),.*/\1/' "$folder/$1/metrics.jsonl"; }
paste <(losses dense) <(losses at_once) |
  awk '{ d = $1 - $2; if (d > 0.001 || d < -0.001) exit 1 } END { if (NR != 5) exit 1 }' ||
  fail "a batch in parts has other losses: $(losses dense | tr '\n' ' ')"
(language test $start --task sst2 --train "$folder/sst2.tsv" --test "$folder/unlabelled.tsv") ||
  fail "$(tail -n 3 "$folder/test.txt")"
[ "$(lines "$folder/test/predictions.tsv")" = 3 ] || fail "there are no predictions"
(language squad $start --task squad --train "$folder/squad.json" --test "$folder/squad.json") ||
  fail "$(tail -n 3 "$folder/squad.txt")"
said squad "Of 4 questions: exact match"
grep -q '"d": ' "$folder/squad/predictions.json" || fail "there are no answers"
(language toy --task toy --steps 5 --experts 2) || fail "$(tail -n 3 "$folder/toy.txt")"
said toy "a bag of words:"
said toy "warning: with K = E every expert has every token: the balance loss is constant"
grep -q warning "$folder/squad.txt" && fail "squad has a warning without a reason"

fails other $pretrain --start "$folder/toy/model.safetensors"
said other "--start must be a model of 260 words and at least 32 tokens; got 62, 32"
cp -r "$folder/parts" "$folder/seed"
fails seed $pretrain --resume --seed 1
said seed "--resume must have the settings of the run that it goes on with, seed 0"
fails parts_of_batch $pretrain --micro-batches 3
said parts_of_batch "--micro-batches must divide --batch; got 3, 4"
fails files --task sst2 --train "$folder/sst2.tsv"
said files "--train and --test must be given"
for part in "<svg" "</html>"; do
  grep -q "$part" "$folder/whole/report.html" || fail "the report lacks $part"
done
echo "ok      train_language: stopped after $stopped of 60 steps, resumed, the same bits; all tasks"
