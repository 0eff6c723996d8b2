#!/usr/bin/env bash
# Checks the prediction: against published CUDA peaks, and against measurement on the CPU, into results/validation.
# Usage: benchmarks/harness/validate.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python

"$python" -m ppdm_bench.memory.validate --out results/validation
for res in 32 48 64; do
  "$python" -m ppdm_bench memory --device cpu --res "$res" --factor 2 --width 16 --precision fp32,bf16 \
    --checkpointing none,norm,block,conv --timeout 1800 --out "results/validation/cpu-$res"
done
