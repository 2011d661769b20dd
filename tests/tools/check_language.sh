#!/usr/bin/env bash
# Runs train_language on small files of every kind: a pre-training that is interrupted with Ctrl-C
# and resumed must end with the same model and the same metrics as one that was not; its model must
# be a start for sentences and questions; a recipe must set what the paper's table says; what is
# wrong with options or files must be said.
set -um  # -m: what runs in the background hears SIGINT

folder=build/check_language
rm -rf "$folder"
mkdir -p "$folder"
fail() { echo "FAILED  train_language: $*"; exit 1; }

program() {
  local out=$1
  shift
  exec ${RUN:-} build/examples/train_language --out "$folder/$out" --preset widenet_albert_4 \
    --experts 4 --blocks 2 --hidden 16 "$@" > "$folder/$out.txt" 2>&1
}
language() { program "$1" --batch 4 "${@:2}"; }
lines() { cat "$1" 2> /dev/null | wc -l; }
said() {
  grep -qF -- "$2" "$folder/$1.txt" || fail "$1 does not say \"$2\": $(cat "$folder/$1.txt")"
}
fails() { (language "$@") && fail "$1 does not fail"; }
interrupt() {  # Ctrl-C for the process $2, which runs into $1, after $3 steps
  while [ "$(lines "$folder/$1/metrics.jsonl")" -lt "$3" ] && kill -0 "$2" 2> /dev/null; do
    sleep 0.02
  done
  kill -INT "$2" 2> /dev/null || fail "$1 ended before it could be interrupted"
  wait "$2" || fail "$1 ends with an error when it is interrupted: $(tail -n 3 "$folder/$1.txt")"
}
has() {  # what the checkpoint of $1 must say of its settings
  local header setting
  header=$(head -c 8000 "$folder/$1/model.safetensors" | tr -cd '[:print:]' | tr -d '\\" ')
  for setting in "${@:2}"; do
    [[ $header == *[{,]$setting[,}]* ]] || fail "$1 has not $setting: $header"
  done
}

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
{"id": "d", "question": "What?", "answers": [{"text": "a caf\u00e9", "answer_start": 9}]},
{"id": "e", "question": "Whose?", "answers": [{"text": "Zo\u00eb", "answer_start": 5}]}]}]}]}
END

pretrain="--task pretrain --text $folder/text.txt --steps 60"
(language whole $pretrain) || fail "ends with an error: $(tail -n 3 "$folder/whole.txt")"
said whole "of the hidden words"

(language parts $pretrain) &
interrupt parts $! 5
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
said squad "learns from 4 questions in"
said squad "not learned from: $folder/squad.json: question e: the answer"
said squad "scored by its texts: $folder/squad.json: question e: the answer"
said squad "Of 5 questions: exact match"
grep -q '"d": ' "$folder/squad/predictions.json" || fail "there are no answers"
(language toy --task toy --steps 5 --experts 2) || fail "$(tail -n 3 "$folder/toy.txt")"
said toy "a bag of words:"
said toy "warning: with K = E every expert has every token: the balance loss is constant"
grep -q warning "$folder/squad.txt" && fail "squad has a warning without a reason"
has toy warmup:150 length:32 optimizer:adamw rate:0.003 beta1:0.9 beta2:0.99 eps:1e-08 \
  weight_decay:0.01 lambda:0.01 capacity_numerator:6 capacity_denominator:5 dropout:0

# The paper's settings of two tasks; and windows of 512 tokens of a context of 801, 128 apart.
{ printf 'sentence\tlabel\n'; for i in $(seq 130); do printf 'so fine\t%d\n' $((i % 2)); done; } \
  > "$folder/many.tsv"
questions() {  # $1 of them, $2 times the context
  local context i separator=
  context=$(for i in $(seq "$2"); do printf 'Go by sea. '; done)
  printf '{"data": [{"paragraphs": [{"context": "%s", "qas": [' "$context"
  for i in $(seq "$1"); do
    printf '%s{"id": "%d", "question": "How?", "answers": [{"text": "sea", "answer_start": 6}]}' \
      "$separator" "$i"
    separator=,
  done
  printf ']}]}]}'
}
questions 50 1 > "$folder/many.json"
questions 1 73 > "$folder/long.json"
paper="optimizer:lamb beta1:0.9 beta2:0.999 eps:1e-06 weight_decay:0.01"
for recipe in sst2 squad1; do
  task=${recipe%1} file=$folder/many.tsv
  [ $task = squad ] && file=$folder/many.json
  (program as_$recipe --recipe $recipe --task $task --train "$file" --test "$file") &
  interrupt as_$recipe $! 1
done
has as_sst2 $paper steps:5234 warmup:314 batch:128 length:512 max_tokens:512 rate:4e-05 \
  lambda:0.01 capacity_numerator:6 capacity_denominator:5 dropout:0
has as_squad1 $paper steps:3649 warmup:365 batch:48 length:384 max_tokens:384 rate:5e-05 \
  lambda:0 capacity_numerator:2 capacity_denominator:1 dropout:0.10000000000000001
grep -aq '"lamb.m' "$folder/as_squad1/model.safetensors" || fail "LAMB was not what it learned with"
(language long --steps 1 --length 512 --task squad --train "$folder/long.json" \
  --test "$folder/long.json") || fail "$(tail -n 3 "$folder/long.txt")"
said long "learns from 1 questions in 4 windows"

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
echo "ok      train_language: stopped after $stopped of 60 steps, resumed, the same bits; all else"
