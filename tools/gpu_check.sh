#!/usr/bin/env bash
# Checks and measures everything that needs an NVIDIA GPU, without a network.
#   tools/gpu_check.sh OUT
# Cheapest first; a failing step does not stop the next. OUT gets one log per step, the JSON files
# and summary.txt, a table of the steps. Exit code 1 when a step failed, was late or was skipped.
#
# STEPS    groups or steps, in this order (all):
#            check = build checks sanitizers tests        at most 9.5 minutes
#            bench = ops conv models train kernel         at most 9.5 minutes
#            long  = own compile                          at most 9.5 minutes
#            passes: optimize()'s optional rewrites, tuned first; in no group    at most 6 minutes
# BUDGET   seconds in all (1710); "STEPS=bench BUDGET=570" is one call of under 10 minutes
# PYTHON   interpreter with torch, triton, pybind11, pytest (python3)
# CHECKS   folder of built check programs; those that are missing are built from tests/cuda (build/checks)
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${1:?usage: tools/gpu_check.sh OUT}
PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-1710}
CHECKS=${CHECKS:-build/checks}
STEPS=" ${STEPS:-check bench long} "
STEPS=${STEPS/ check / build checks sanitizers tests }
STEPS=${STEPS/ bench / ops conv models train kernel }
STEPS=${STEPS/ long / own compile }
mkdir -p "$OUT/logs"
OUT=$(cd "$OUT" && pwd)
SUMMARY=$OUT/summary.txt
: >"$SUMMARY"
START=$SECONDS
FAILED=0
COUNT=0
export PYTHON CHECKS PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1 COLUMNS=170

say() { echo "$*" | tee -a "$SUMMARY"; }
wanted() { [[ $STEPS == *" $1 "* ]]; }
row() { say "$(printf '%-5s %5s s of %5s  %-34s %s' "$@")"; }

# step NAME LIMIT COMMAND...: run under a time limit, output to a log of its own, one row of result.
step() {
  local name=$1 limit=$2 left=$((BUDGET - (SECONDS - START))) begin=$SECONDS code state
  shift 2
  COUNT=$((COUNT + 1))
  local log
  log=$(printf '%s/logs/%02d-%s.log' "$OUT" "$COUNT" "${name//[^a-zA-Z0-9_.]/-}")
  if ((left < 2)); then
    row skip 0 "$limit" "$name" "the budget of $BUDGET s is spent"
    FAILED=1
    return 1
  fi
  ((limit = limit < left ? limit : left))
  echo "$*" >"$log"
  timeout -k 10 "$limit" "$@" >>"$log" 2>&1
  code=$?
  case $code in
    0) state=ok ;;
    124 | 130 | 137) state=LATE ;; # a benchmark has saved what it measured
    *) state=FAIL ;;
  esac
  row "$state" $((SECONDS - begin)) "$limit" "$name" "${log#"$OUT"/}$([[ $state == FAIL ]] && echo " (exit $code)")"
  if [[ $state != ok ]]; then
    FAILED=1
    tail -n 8 "$log" | cut -c1-160 | sed 's/^/        /' | tee -a "$SUMMARY"
  fi
  return $code
}
in_shell() { step "$1" "$2" bash -c "set -uo pipefail; $3"; }

# bench NAME LIMIT ARGUMENTS...: stops itself a little before the limit, and lists what it cut.
bench() {
  local name=$1 limit=$2
  shift 2
  step "bench $name" "$limit" "$PYTHON" -m cnnkernels.cli bench "$@" --budget $((limit * 8 / 10))
}

environment() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader
  command -v nvcc >/dev/null && nvcc --version | tail -n 2
  "$PYTHON" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__,
    "cuDNN", torch.backends.cudnn.version(), torch.cuda.get_device_name())'
}

arch() { # as in 9.0a
  "$PYTHON" -c 'import torch; c = torch.cuda.get_device_capability()
print(f"{c[0]}.{c[1]}" + ("a" if c[0] >= 9 else ""))'
}

loads() { # cpu, cuda or plan: whether that compiled part loads here
  "$PYTHON" - "$1" <<'PY'
import sys
from cnnkernels import _lib
reason = getattr(_lib, f"{sys.argv[1]}_missing")
print(sys.argv[1], "loads" if reason is None else reason)
sys.exit(reason is not None)
PY
}

build() { # only what does not load
  local targets=() found
  for part in cpu cuda plan; do loads $part || targets+=("$part"); done
  ((${#targets[@]})) || return 0
  found=$(arch) || return 1
  CNNKERNELS_TARGETS=$(IFS=';'; echo "${targets[*]}") TORCH_CUDA_ARCH_LIST=$found \
    "$PYTHON" setup.py build_ext --inplace || return 1
  for part in "${targets[@]}"; do loads "$part" || return 1; done
}

build_check() { # SOURCE: the sources it links are named in its head comment, as patterns
  local sources found number
  found=$(arch) || return 1
  number=${found/./}
  eval "sources=($(head -n 14 "$1" | grep -o 'csrc/[^ ]*\.cu\b' | sort -u | tr '\n' ' '))"
  nvcc -O3 -std=c++17 -Icsrc --expt-relaxed-constexpr \
    -gencode "arch=compute_$number,code=sm_$number" \
    "$1" "${sources[@]}" -o "$CHECKS/$(basename "$1" .cu)" -lcuda
}

build_checks() {
  local code=0
  mkdir -p "$CHECKS"
  for source in tests/cuda/check_*.cu; do
    [[ -x $CHECKS/$(basename "$source" .cu) ]] || build_check "$source" &
  done
  for job in $(jobs -p); do wait "$job" || code=1; done
  return $code
}
export -f environment arch loads build build_check build_checks

each_check() { # COMMAND...: with every check program's path
  for source in tests/cuda/check_*.cu; do
    local program=$CHECKS/$(basename "$source" .cu)
    [[ -x $program ]] && "$@" "$program"
  done
}
plain() { step "$(basename "$1")" 60 "$1"; }
sanitized() { # the small cases alone of a program that knows the argument
  local small
  small=$(grep -o '"small"' "tests/cuda/$(basename "$1").cu" | head -n 1 | tr -d '"')
  for tool in memcheck racecheck; do
    # shellcheck disable=SC2086
    step "$(basename "$1") $tool" 60 compute-sanitizer --tool $tool --error-exitcode 9 "$1" $small
  done
}

say "state  used    limit  step                               log"
in_shell environment 60 environment ||
  { say "no usable NVIDIA GPU, torch or triton here: nothing to check"; exit 1; }
wanted build && in_shell build 240 build
wanted build && step doctor 60 "$PYTHON" -m cnnkernels.cli doctor
if wanted checks || wanted sanitizers; then in_shell "check programs: build" 120 build_checks; fi
wanted checks && each_check plain
if wanted sanitizers; then
  command -v compute-sanitizer >/dev/null && each_check sanitized
fi
if wanted tests; then
  parallel=$("$PYTHON" -c 'import xdist' 2>/dev/null && echo "-n 8")
  # shellcheck disable=SC2086
  step "tests marked gpu" 180 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider $parallel \
    -o timeout=100 --tb=short
  grep -ahE '^(FAILED|ERROR) |[0-9]+ (passed|failed)' "$OUT"/logs/*-tests-marked-gpu.log |
    tail -n 25 | cut -c1-180 | sed 's/^/        /' | tee -a "$SUMMARY"
fi

wanted ops && bench ops 220 ops --maps alex_c1 --seconds 0.2 --no-warm --out "$OUT"
wanted conv && bench conv 100 conv --batch 64 --seconds 0.2 --out "$OUT"
wanted models && bench models 110 models --photographs --compile none --out "$OUT"
wanted train && bench train 60 train --out "$OUT"
if wanted kernel; then
  layer="64x56x56x64->64 3x3/1"
  bench "kernel, sweep" 25 kernel conv2d_relu:cuda --shape "$layer" --sweep --out "$OUT"
  bench "kernel, ncu" 40 kernel conv2d_relu:cuda --shape "$layer" --quick --ncu
fi
if wanted own; then # the whole table: own kernels alone and the automatic choice
  for dtype in bf16 fp16 tf32; do
    bench "conv, own kernels, $dtype" 100 conv --batch 64,256 --dtype $dtype --own --no-warm \
      --seconds 0.1 --out "$OUT/own-$dtype"
  done
fi
if wanted compile; then # slow compilers; what the budget cuts is listed
  bench "conv, compilers" 150 conv --batch 64 --no-residual --compile max-autotune,frozen \
    --no-warm --seconds 0.1 --out "$OUT/compile"
  bench "models, compilers" 110 models alexnet vgg16 googlenet resnet50 --batch 64 \
    --compile default,max-autotune,frozen --no-energy --out "$OUT/compile"
fi
if wanted passes; then
  step "tune" 180 "$PYTHON" -m cnnkernels.cli tune resnet50 googlenet --batch 64 --minutes 2.5
  bench "models, optional passes" 170 models resnet50 googlenet --batch 64 --dtype bf16 --compile \
    none --no-energy --passes projection,pair,merge+concat,merge+concat+split --out "$OUT/passes"
fi

for file in "$OUT"/*.json "$OUT"/*/*.json; do
  [[ -f $file ]] || continue
  "$PYTHON" -m cnnkernels.cli bench show "$file" --brief >>"$OUT/results.txt" 2>&1
done
say "total $((SECONDS - START)) s; logs in $OUT/logs, benchmarks in $OUT/results.txt"
exit $FAILED
