"""Rules for the source code: import directions, names of methods, and public names."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ppdm_baselines import METHODS, PRESETS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "ppdm", ROOT / "baselines" / "ppdm_baselines", ROOT / "benchmarks" / "ppdm_bench")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

# `ppdm` is also the name of the package. Apart from the method itself, these files use it for versions, environments,
# the cache folder and the convention of the metrics.
MAY_NAME_PPDM = {
    "ppdm/model.py",
    "ppdm/checkpoint.py",
    "ppdm/simulation/generation.py",
    "ppdm/metrics/preset.py",
    "benchmarks/ppdm_bench/environment.py",
    "benchmarks/ppdm_bench/report/tables/changes.py",
    "benchmarks/ppdm_bench/report/tables/quality.py",
    "benchmarks/ppdm_bench/version.py",
}
# These files name the default of --method.
DEFAULTS = {f"benchmarks/ppdm_bench/commands/{name}.py": ["ppdm"] for name in ("train", "ablate")}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def test_imports_keep_the_contracts_of_import_linter():
    pytest.importorskip("importlinter")
    done = python("from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


def names_in(path: Path) -> list[str]:
    """Return the names of methods among the string constants of a file."""
    constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    return [value for value in constants if value in NAMES]


NAMES = frozenset(name for methods in PRESETS.values() for name in methods)


def test_no_method_is_named_outside_its_own_file():
    homes: dict[str, set[str]] = {name: set() for name in NAMES}
    for path in (path for package in PACKAGES for path in package.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        named = names_in(path)
        if place in DEFAULTS:
            assert named == DEFAULTS[place], place
        else:
            for name in set(named):
                homes[name].add(place)
    for name, places in homes.items():
        own = MAY_NAME_PPDM if name == "ppdm" else {f"baselines/ppdm_baselines/{name}.py"}
        assert places <= own, f"{name} is named in {sorted(places - own)}"
        assert places, f"{name} is named nowhere"


def test_a_method_is_registered_under_its_own_name():
    assert all(name == method.name for methods in PRESETS.values() for name, method in methods.items())
    assert set(METHODS) == set(NAMES)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "ppdm",
            "puzzle unpuzzle UNet UNetOptions Backbone Method PPDM register train evaluate fit translate load sample "
            "training_loss __version__",
        ),
        ("ppdm_baselines", "METHODS AUTHORS PRESETS REFERENCE SOURCES"),
        (
            "ppdm_bench",
            "predict_peak predict_script measure_peak Target Peak PredictionError ScriptPrediction ScriptError",
        ),
    ],
)
def test_each_package_has_exactly_these_public_names(module, names):
    package = import_module(module)
    assert set(names.split()) == set(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = package.nothing_of_that_name


@pytest.mark.slow
def test_the_public_functions_of_puzzle_and_prediction_work():
    code = """
import torch, ppdm
from ppdm_bench import Target, measure_peak, predict_peak
x = torch.arange(64.).reshape(1, 1, 4, 4, 4)
assert ppdm.unpuzzle(ppdm.puzzle(x, (1, 2, 2)), (1, 2, 2)).equal(x)
build, step = (lambda: torch.nn.Linear(100, 100)), (lambda net: net(torch.randn(8, 100)).sum().backward())
measured = measure_peak(build, step, iterations=2, device="cpu")
assert predict_peak(build, step, iterations=2, target="cpu").peak_allocated == measured.peak_allocated
estimate = predict_peak(build, step, iterations=2, target=Target(torch="2.9.0", capacity=80 * 2**30))
assert sum(estimate.breakdown.values()) == estimate.peak_allocated <= estimate.peak_reserved
assert estimate.fits is True
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_tables_and_figures_need_no_pytorch():
    places = [path.relative_to(PACKAGES[2]).with_suffix("") for path in (PACKAGES[2] / "report").rglob("*.py")]
    modules = [".".join(("ppdm_bench", *place.parts)).removesuffix(".__init__") for place in places]
    assert len(modules) > 40
    names = ["ppdm_bench", "ppdm_bench.records", *modules]
    done = python(f"import sys\nfor name in {names}: __import__(name)\nprint('torch' in sys.modules)")
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_no_source_file_contains_a_marker_of_unfinished_work():
    for path in (path for package in PACKAGES for path in package.rglob("*.py")):
        text = path.read_text()
        for word in ("TODO", "FIXME", "NotImplementedError", "pragma: no cover"):
            assert word not in text, f"{path.relative_to(ROOT)}: {word}"
