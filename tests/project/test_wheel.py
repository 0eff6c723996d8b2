"""The wheel for users: three typed packages, and a command that runs from any folder."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("build")
pytest.importorskip("hatchling")

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"ppdm", "ppdm_baselines", "ppdm_bench"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, cwd: Path, *words: str) -> str:
    """Run the command through the entry point of the wheel, in folder `cwd`, and return its output."""
    entry_points = configparser.ConfigParser()
    entry_points.read(next(unpacked.glob("*.dist-info")) / "entry_points.txt")
    module, _, function = entry_points["console_scripts"]["ppdm-bench"].partition(":")
    code = f"""
import sys
sys.argv[0] = "ppdm-bench"
from {module} import {function} as command
assert sys.modules["{module}"].__file__.startswith({str(unpacked)!r}), sys.modules["{module}"].__file__
command()
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_three_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    (information,) = tops - PACKAGES
    assert tops >= PACKAGES
    assert information.startswith("ppdm-")
    assert information.endswith(".dist-info")


def test_every_package_is_typed_and_complete(unpacked):
    folders = {"ppdm": ".", "ppdm_baselines": "baselines", "ppdm_bench": "benchmarks"}
    for package, folder in folders.items():
        assert (unpacked / package / "py.typed").is_file()
        source = {path.relative_to(ROOT / folder) for path in (ROOT / folder / package).rglob("*.py")}
        assert {path.relative_to(unpacked) for path in (unpacked / package).rglob("*.py")} == source


def test_the_metadata_has_the_version_and_dependencies_of_the_project(unpacked):
    from ppdm import __version__

    metadata = (next(unpacked.glob("*.dist-info")) / "METADATA").read_text()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nRequires-Dist: torch>=" in metadata
    assert "\nRequires-Dist: nvidia-ml-py>=" in metadata
    assert "torchvision" not in metadata


def test_the_command_runs_in_an_empty_folder_and_writes_nothing(unpacked, tmp_path):
    from ppdm import __version__

    assert run(unpacked, tmp_path, "--version") == f"ppdm-bench {__version__}\n"
    assert "memory" in run(unpacked, tmp_path, "--help")
    assert "--method" in run(unpacked, tmp_path, "memory", "--help")
    assert list(tmp_path.iterdir()) == []


def test_outside_a_checkout_the_environment_has_no_commit(unpacked, tmp_path):
    import json

    found = json.loads(run(unpacked, tmp_path, "env", "--json"))
    assert (found["commit"], found["dirty"]) == ("", False)
