#!/usr/bin/env bash
# Checks the prediction: against published CUDA peaks, and against measurement on the CPU, into results/validation.
# Usage: benchmarks/harness/validate.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python

"$python" -m ppdm_bench.memory.validate --out results/validation
cpu=(--device cpu --factor 2 --width 16 --precision fp32,bf16 --checkpointing none,norm,block,conv --timeout 1800)
"$python" -m ppdm_bench memory --res 32 "${cpu[@]}" --out results/validation/cpu-32
for res in 48 64; do
  "$python" -m ppdm_bench memory --res "$res" --method ppdm --method ddpm3d "${cpu[@]}" --out "results/validation/cpu-$res"
done
