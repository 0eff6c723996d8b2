#!/usr/bin/env bash
# Compares predictions with published CUDA counters and with measurements on the CPU. The files are written to
# results/validation; the median and the worst error of each comparison are printed at the end.
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

echo
for name in published cudnn; do
  echo "$name: $(grep "^n = " "results/validation/$name.md")"
done
"$python" - results/validation/cpu-*/memory.csv <<'END'
import csv, statistics, sys

for path in sys.argv[1:]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    found = [float(x) for row in rows for name, x in row.items() if x and name.endswith("prediction_error")]
    print(f"{path}: n = {len(found)}, median error {statistics.median(map(abs, found)):.2%}, ", end="")
    print(f"worst {max(found, key=abs):+.2%}")
END
