#!/usr/bin/env bash
# All that only a real GPU can show, written to tests/bench/GPU.md:  gpu.sh [PART...]
#
#   tests      the tests, and which golden cases have the bits of the CPU
#   demo       the demo, and runs that one of CPU and GPU begins and the other ends
#   sanitizer  compute-sanitizer: memcheck, racecheck, initcheck, synccheck on whole training steps
#   torch      training steps beside PyTorch's on the same GPU, in fp32, tf32 and bf16
#
# `make bench-gpu` compiles what it needs and runs it: all parts, unless ARGS names some. Each part
# leaves its section in build/gpu, and GPU.md is put together from those that are there: so a GPU
# that is lent for minutes can do one part after the other. Of the part torch, CONFIGS, PRECISIONS,
# FORMS and STEP_SECONDS say how much; a precision that is measured again replaces its table only.
#
# Where no GPU answers it says so, and leaves GPU.md as it is.
set -u

folder=build/gpu cuda=build/cuda page=tests/bench/GPU.md
mkdir -p "$folder"
if ! nvidia-smi -L > "$folder/nvidia-smi.txt" 2>&1; then
  echo "bench-gpu: compiled only; not run, because no GPU answers here"
  exit 0
fi
failed=0

# check NAME COMMAND...: one line of a section; the output goes to build/gpu/NAME.txt.
check() {
  local name=$1 log=$folder/$1.txt start=$SECONDS result
  shift
  if "$@" > "$log" 2>&1; then result=ok; else result=FAILED; failed=$((failed + 1)); fi
  echo "bench-gpu: ${name//_/ }: $result, $((SECONDS - start)) s" >&2
  echo "- ${name//_/ }: $result ($((SECONDS - start)) s)"
}

part_tests() {
  echo "## Tests"
  echo
  check tests "$cuda/widenet_tests" --test-suite-exclude=slow
  sed -n 's/^\[doctest\] \(test cases: .*\)/- \1/p' "$folder/tests.txt"
  # Row kernels have the bits of the CPU; products have their own, and what is made of them.
  tests/tools/check_bits.sh build/examples/validate "$cuda/examples/validate" > "$folder/bits.txt"
  sed -n 's/^check-bits: /- golden cases on CPU and GPU: /p' "$folder/bits.txt"
  local rows='layer_norm|gelu_|softmax|relu|tanh|cross_entropy|dropout|embedding|mean_tokens'
  rows+='|extract_patches|slice_tokens|prepend_token|add_to_sequences|optimiser_'
  check row_kernels_have_the_bits_of_the_CPU \
    bash -c "! grep -E '^FAILED  data/golden/($rows)' $folder/bits.txt"
}

# run_of PROGRAM OUT OPTION...: a demo of 1,200 steps that leaves the test digits alone.
run_of() { "$1/examples/demo" --validate --out "$folder/$2" "${@:3}"; }
# hand_over FIRST SECOND OUT: FIRST is interrupted soon after its first step, SECOND goes on.
hand_over() {
  rm -rf "${folder:?}/$3"
  run_of "$1" "$3" & local pid=$!
  while [ ! -s "$folder/$3/metrics.jsonl" ] && kill -0 $pid; do sleep 0.02; done
  sleep 0.5
  kill -INT $pid && wait $pid && run_of "$2" "$3" --resume
}

part_demo() {
  set -m  # what runs in the background hears SIGINT
  echo "## Demo"
  echo
  rm -rf "$folder/demo"
  check demo "$cuda/examples/demo" --out "$folder/demo"
  check begun_on_the_CPU_ended_on_the_GPU hand_over build "$cuda" from_cpu
  check begun_on_the_GPU_ended_on_the_CPU hand_over "$cuda" build from_gpu
  echo
  sed 's/.*\r//; s/^/    /' "$folder/demo.txt" | tail -n 8
}

part_sanitizer() {
  echo "## compute-sanitizer"
  echo
  if ! command -v compute-sanitizer > /dev/null; then
    echo "- not run: there is no compute-sanitizer here"
    return
  fi
  local tool example case
  for tool in memcheck racecheck initcheck synccheck; do
    for example in autograd routing_by_hand checkpoint; do
      check "${tool}_$example" compute-sanitizer --tool $tool --error-exitcode 1 \
        "$cuda/examples/$example"
    done
    for case in encoder_widenet language_widenet moe_mesh_top2 moe_tutel training_lamb; do
      check "${tool}_$case" compute-sanitizer --tool $tool --error-exitcode 1 \
        "$cuda/examples/validate" run "data/golden/$case.safetensors" "$folder/$case.out"
    done
  done
}

part_torch() {
  local python=${PYTHON:-python3} precision
  local configs=digits1:256,digits2:256,mnist:256,cifar:256,mlm:64,wideB:64,widenet_b:64
  if ! "$python" -c 'import numpy, safetensors, torch; assert torch.cuda.is_available()'; then
    echo "bench-gpu: $python has no torch that sees the GPU: PYTHON=... says which has" >&2
    failed=$((failed + 1))
    return
  fi
  for precision in ${PRECISIONS:-fp32 tf32 bf16}; do
    "$python" tests/bench/bench_torch.py --device cuda --precision "$precision" \
      --program "$cuda/train_step_$precision" --exact-program "$cuda/train_step_fp32" \
      --configs "${CONFIGS:-$configs,widenet_b:256}" \
      --forms "${FORMS:-eager,eager-batched,model,graphs-batched}" --rounds 2 \
      --seconds "${STEP_SECONDS:-1}" --exports "$folder/exports" \
      --json "$folder/torch_$precision.json" > "$folder/torch_$precision.md" ||
      failed=$((failed + 1))
  done
  echo "## Training steps beside PyTorch $("$python" -c 'import torch; print(torch.__version__)')"
  cat << 'TEXT'

Forward, backward and AdamW from the same weights and batch, until the GPU has finished; medians,
one form after the other. `eager` and `model` multiply per expert and ask the GPU for the loads in
every block; `-batched` pads to the capacity, as ours does; `model` is torch.compile, `graphs` that
with CUDA graphs. The ratio is the time of PyTorch's fastest form over ours: above 1 ours is ahead.
Padded over useful products: all that is multiplied over what belongs to kept choices. GB: tensors.
TEXT
  for precision in fp32 tf32 bf16; do
    [ -s "$folder/torch_$precision.md" ] || continue
    printf '\n%s:\n\n' "$precision"
    cat "$folder/torch_$precision.md"
  done
}

parts=("$@")
[ $# -gt 0 ] || parts=(tests demo sanitizer torch)
for part in "${parts[@]}"; do
  case $part in
    tests|demo|sanitizer|torch) "part_$part" > "$folder/$part.md" ;;
    *) echo "bench-gpu: the parts are tests, demo, sanitizer, torch; got $part" >&2; exit 2 ;;
  esac
done

{
  echo "# On a GPU"
  echo
  echo "Written by \`make bench-gpu\` on $(date -u '+%Y-%m-%d')."
  echo
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader |
    sed 's/^/- GPU, memory, driver: /'
  echo "- CUDA: $("${NVCC:-nvcc}" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')"
  for part in tests demo sanitizer torch; do
    [ -s "$folder/$part.md" ] && { echo; cat "$folder/$part.md"; }
  done
} > "$page"
echo "bench-gpu: $page, $failed failed"
[ "$failed" = 0 ]
