#!/usr/bin/env bash
# Writes a Markdown transcript: the wheel is installed into an empty environment and used outside of the checkout.
# Usage: make wheel, then for every version of Python:
#   benchmarks/harness/wheel_smoke.sh python3.11 >> results/harness/wheel.md
#   benchmarks/harness/wheel_smoke.sh python3.13 --without-torch   # if only a CUDA build exists, which is gigabytes large
set -euo pipefail
python=$(command -v "${1:?usage: wheel_smoke.sh PYTHON [--without-torch]}")
torch=with; [ "${2:-}" = --without-torch ] && torch=without
root=$(cd "$(dirname "$0")/../.." && pwd)
wheel=("$root"/dist/ppdm-*.whl)
[ "${#wheel[@]}" = 1 ] && [ -f "${wheel[0]}" ] || { echo "dist/ must hold one wheel: make clean wheel" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unset PYTHONPATH VIRTUAL_ENV
export PPDM_CACHE=$work/cache COLUMNS=100 OMP_NUM_THREADS=1

"$python" -m venv empty
export PATH=$work/empty/bin:$PATH
if [ $torch = with ]; then
  python -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "${wheel[0]}" >&2
else
  python -m pip install --quiet --disable-pip-version-check --no-deps "${wheel[0]}" >&2
  others=$(python -c 'from importlib.metadata import requires
print(*(r for r in requires("ppdm") if "extra ==" not in r and not r.startswith("torch>")))')
  # shellcheck disable=SC2086  # a requirement has no spaces
  python -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" $others >&2
fi

run() { printf '$ %s\n' "$*"; "$@" 2>&1 | sed "s#$work/##g"; }

python -c 'import platform
print(f"\n## Python {platform.python_version()} on {platform.system()} {platform.machine()}\n")'
python -c 'import importlib.metadata as m
names = ("ppdm", "torch", "numpy", "scipy", "nibabel", "pandas", "matplotlib", "typer")
found = {d.metadata["Name"]: d.version for d in m.distributions()}
print(", ".join(f"{n} {found[n]}" for n in names if n in found), end="")
print(".\n" if "torch" in found else "; **without PyTorch**, so only what needs none.\n")'
# The imported packages must be those of the wheel, not of the checkout.
python -c 'import sys, ppdm, ppdm_baselines, ppdm_bench' 2>/dev/null || [ $torch = without ]
python -c 'import sys, ppdm, ppdm_bench
assert all(m.__file__.startswith(sys.prefix) for m in (ppdm, ppdm_bench)), (ppdm.__file__, ppdm_bench.__file__)'
echo '```'
run ppdm-bench --version
run ppdm-bench --show-completion bash
run ppdm-bench data make mri-t1t2 --subjects 3 --size 16 --out set
run ppdm-bench data check set/pairs.csv
if [ $torch = with ]; then
  run ppdm-bench memory --res 32 --width 8 --method ppdm --method ddpm3d --device predict --out memory
  run ppdm-bench train --manifest set/pairs.csv --width 8 --steps 3 --device cpu --out run
  run ppdm-bench translate run set/test-000/T1w.nii.gz made.nii.gz --device cpu
  run ppdm-bench evaluate run --manifest set/pairs.csv --evaluations 1 --device cpu --out evaluation
else
  cp -r "$root/results/memory" memory
fi
run ppdm-bench compare memory memory
run ppdm-bench figures memory --out figures | grep -v 'not drawn'  # figures that need other records
echo '```'
