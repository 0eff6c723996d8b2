#!/usr/bin/env bash
# Writes a Markdown transcript: a training that is killed with SIGKILL and resumed ends with the same bytes as one that
# was not interrupted.
# Usage: benchmarks/harness/kill_and_resume.sh > results/training/kill_and_resume.md
set -euo pipefail
ppdm_bench=(python3 -m ppdm_bench)
[ -x .venv/bin/python ] && ppdm_bench=(.venv/bin/python -m ppdm_bench)
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
options=(--task mri-t1t2 --subjects 4 --size 24 --width 8 --batch-size 2 --steps 120 --augment flip --validate-every 40
  --save-every 15 --seed 7 --device cpu)

shown() { printf '$ %s\n' "${*//$runs/runs}"; }
run() { shown ppdm-bench "$@"; "${ppdm_bench[@]}" "$@" 2>&1 | sed "s#$runs#runs#g"; }
steps() { tail -n 1 "$runs/cut/log.jsonl" 2>/dev/null | grep -o '"step": [0-9]*' | tail -n 1 | grep -o '[0-9]*' || true; }

echo '# A training killed twice and continued'
echo
echo "Made by \`benchmarks/harness/kill_and_resume.sh\` at commit $(git rev-parse --short HEAD)."
echo
echo '```'
run train "${options[@]}" --out "$runs/whole"
for beyond in 20 70; do
  resume=(); [ -e "$runs/cut" ] && resume=(--resume)
  shown ppdm-bench train "${options[@]}" --out "$runs/cut" "${resume[@]}" '&'
  "${ppdm_bench[@]}" train "${options[@]}" --out "$runs/cut" "${resume[@]}" >/dev/null 2>&1 &
  child=$!
  until [ "$(steps)" ] && [ "$(steps)" -ge "$beyond" ]; do sleep 0.05; done
  kill -KILL "$child"
  wait "$child" 2>/dev/null || true
  echo "\$ kill -KILL %1    # the log ends with step $(steps)"
  shown ls "$runs/cut"
  ls "$runs/cut"
done
run train "${options[@]}" --out "$runs/cut" --resume
shown sha256sum "$runs/whole/model.safetensors" "$runs/cut/model.safetensors"
(cd "$runs" && sha256sum whole/model.safetensors cut/model.safetensors)
cmp "$runs/whole/model.safetensors" "$runs/cut/model.safetensors" && echo 'identical'
echo '```'
