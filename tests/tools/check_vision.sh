#!/usr/bin/env bash
# Runs train_vision: every preset at toy size, every recipe, small files of CIFAR; a run that is
# interrupted and resumed must end with the same bits; what is wrong with options must be said.
set -u

folder=build/check_vision
rm -rf "$folder"
mkdir -p "$folder/ten" "$folder/hundred"
fail() { echo "FAILED  train_vision: $*"; exit 1; }

vision() {
  local out=$1
  shift
  ${RUN:-} build/examples/train_vision --out "$folder/$out" --batch 16 --steps 3 "$@" \
    > "$folder/$out.txt" 2>&1
}
said() {
  grep -qF -- "$2" "$folder/$1.txt" || fail "$1 does not say \"$2\": $(cat "$folder/$1.txt")"
}
works() { vision "$@" || fail "$1 ends with an error: $(tail -n 3 "$folder/$1.txt")"; }
fails() { vision "$@" && fail "$1 does not fail"; }

# Images of CIFAR, each of one grey that tells its label.
image() {
  printf "$1"
  head -c 3072 /dev/zero | tr '\0' "$2"
}
for i in 1 2 3 4 5; do
  for j in 1 2 3 4; do image '\001' '\100'; image '\011' '\300'; done \
    > "$folder/ten/data_batch_$i.bin"
done
{ image '\001' '\100'; image '\011' '\300'; } > "$folder/ten/test_batch.bin"
for j in 1 2 3 4 5 6 7 8; do image '\023\143' '\200'; done > "$folder/hundred/train.bin"
cp "$folder/hundred/train.bin" "$folder/hundred/test.bin"

for preset in toy vit_b vit_l vit_moe_b vit_moe_l widenet_b widenet_l widenet_h; do
  works $preset --preset $preset
  said $preset "test images are read correctly"
done

# The recipes: what the checkpoint says of them is what the paper has.
noted() {
  local out=$1
  shift
  for setting in "$@"; do
    head -c 8192 "$folder/$out/model.safetensors" | tr -d '\\' | grep -aqF -- "$setting" ||
      fail "the checkpoint of $out does not have $setting"
  done
}
defaults() {
  ${RUN:-} build/examples/train_vision --recipe $1 --help > "$folder/help.txt" ||
    fail "--help fails"
  shift
  for line in "$@"; do said help "$line"; done
}
for recipe in toy imagenet cifar10_finetune cifar10_scratch; do
  works $recipe --recipe $recipe --preset toy
done
noted imagenet '"optimizer": "lamb",' '"rate": 0.01,' '"end_rate": 1e-05,' '"decay": "linear",' \
  '"weight_decay": 0.1,' '"clip": 1,' '"smoothing": 0.1,' '"lambda": 0.01,' '"crop": 0.05,' \
  '"flip": true,' '"mixup": true,' '"randaugment": 2,' '"magnitude": 15}' lamb.m.head.weight \
  '"dropout":0.10000000000000001,' '"capacity_numerator":6,"capacity_denominator":5,' \
  '"experts":4,"top_k":2,'
noted cifar10_finetune '"optimizer": "sgd",' '"momentum": 0.9,' '"rate": 0.03,' \
  '"decay": "cosine",' '"clip": 1,' sgd.m.head.weight
noted cifar10_scratch '"optimizer": "lamb",' '"rate": 0.001,' '"weight_decay": 0.001,' \
  lamb.m.head.weight '"capacity_numerator":6,"capacity_denominator":5,' '"experts":4,"top_k":2,'
defaults imagenet "images of a step (4096)" "unless steps are given (300)" "of the steps (30)"
defaults cifar10_finetune "images of a step (512)" "unless steps are given (100)"
defaults cifar10_scratch "images of a step (256)"

# Of 20 steps the warm-up takes a tenth: 1e-5, ..., 0.01, and down in a straight line.
works rates --recipe imagenet --preset toy --batch 4 --steps 20
sed -E 's/.*"rate": ([^,]*),.*/\1/' "$folder/rates/metrics.jsonl" | awk '
  { wanted = NR < 4 ? 1e-5 + 0.00999 * (NR - 1) / 2 : 0.01 - 0.00999 * (NR - 3) / 18
    if ($1 > wanted + 1e-9 || $1 < wanted - 1e-9) exit 1 }
  END { if (NR != 20) exit 1 }' || fail "other rates than those of the recipe"

# Whatever is changed about a recipe changes the losses: all of it is used.
losses() { sed -E 's/.*"loss": ([^,]*),.*/\1/' "$folder/$1/metrics.jsonl"; }
differs() {
  works changed --preset toy --batch 4 --recipe "$@"
  [ "$(losses changed)" != "$(losses $1_4)" ] || fail "$2 changes nothing about $1"
}
for recipe in imagenet cifar10_finetune; do
  works ${recipe}_4 --preset toy --batch 4 --recipe $recipe
done
for change in "--optimizer adamw" "--rate 0.02" "--end-rate 0.001" "--decay cosine" --no-flip \
  "--weight-decay 0" "--clip 0.1" "--dropout 0" "--smoothing 0" "--lambda 1" "--crop 1" \
  --no-mixup "--randaugment 0" "--magnitude 5"; do
  differs imagenet $change
done
differs cifar10_finetune --momentum 0
works plain --preset toy --batch 4 --recipe imagenet --flip --mixup --no-flip --no-mixup
noted plain '"flip": false,' '"mixup": false,' '"randaugment": 2,'
works ten --data "$folder/ten" --randaugment 2 --flip --mixup --micro-batches 2 --steps 20
said ten "learns from 40 images of 10 classes."
said ten "100.00 % of 2 test images"
grep -q warning "$folder/ten.txt" && fail "ten has a warning without a reason"
works hundred --data "$folder/hundred" --batch 4 --top-k 4
said hundred "learns from 8 images of 100 classes."
said hundred "warning: with K = E every expert has every token: the balance loss is constant"
works tuned --recipe cifar10_finetune --start "$folder/ten/model.safetensors" \
  --data "$folder/hundred" --batch 4
said tuned "learns from 8 images of 100 classes."
fails grey --start "$folder/ten/model.safetensors"
said grey "--start must be a model for images of 1 channels; got 3"

tests/tools/check_resume.sh train_vision --held-out 200 --optimizer lamb --rate 0.02 \
  --micro-batches 4 --mixup --flip --randaugment 2 --dropout 0.1 --save-every 7 || exit 1

${RUN:-} build/examples/train_vision --help > "$folder/help.txt" || fail "--help fails"
said help "--preset"
said help "--no-flip"
said help "--no-mixup"
fails preset --preset vit
said preset "must be one of toy vit_b vit_l vit_moe_b vit_moe_l widenet_b widenet_l widenet_h"
fails recipe --recipe none
said recipe "must be one of toy imagenet cifar10_finetune cifar10_scratch; got none"
fails parts --micro-batches 3
said parts "--micro-batches must divide --batch; got 3, 16"
fails patch --patch 3 --top-k 9
said patch "patch must divide image_height and image_width; got 3, 8, 8"
said patch "top_k must lie in [1, experts]; got 9, 4"
fails data --data "$folder"
said data "there must be train-images-idx3-ubyte (IDX), data_batch_1.bin (CIFAR-10) or train.bin"
fails toy --resume --preset toy --rate 1
said toy "--resume must have the settings of the run that it goes on with"
echo "ok      train_vision: presets, recipes, files, errors"
