"""Data sets on disk are made only once, can be resumed, and never mix recipes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppdm.data.manifest import read_manifest, write_manifest
from ppdm.data.volume import read_volume
from ppdm.simulation import generation
from ppdm.simulation.generation import (
    GenerationError,
    cache_folder,
    cached_set,
    cached_sets,
    make_set,
    recipe_key,
)
from ppdm.simulation.phantom import Grid
from ppdm.simulation.tasks import Subject, find_task, subject_name

pytestmark = pytest.mark.slow

GRID = Grid((6, 8, 7), (28.0, 28.0, 28.0))
RECIPE = find_task("mri-t1t2").recipe(GRID)


@pytest.fixture
def quick(monkeypatch):
    """Replace subjects with random images, made in this process, and return the list of those made."""
    made = []

    def make(recipe, split, index):
        made.append((split, index))
        rng = np.random.default_rng([recipe.seed, len(split), index])
        images = {name: rng.random(GRID.shape, np.float32) for pair in recipe.pairs for name in pair}
        labels = np.zeros(GRID.shape, np.uint8)
        return Subject(subject_name(split, index), images, np.ones(GRID.shape, np.float32), labels)

    monkeypatch.setattr(generation, "make_subject", make)
    return made


def _files(folder: Path) -> dict[str, int]:
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_set_has_pairs_on_one_grid_with_masks(quick, tmp_path):
    pairs = make_set(RECIPE, 4, tmp_path, jobs=1)
    assert [(pair.subject, pair.split) for pair in pairs] == [
        ("train-000", "train"),
        ("train-001", "train"),
        ("val-000", "val"),
        ("test-000", "test"),
    ]
    for pair in pairs:
        source, target, mask = (read_volume(path) for path in (pair.source, pair.target, pair.mask))
        assert source.data.shape == target.data.shape == mask.data.shape == GRID.shape
        assert source.spacing == pytest.approx(GRID.spacing)
        assert pair.suv_factor is None
    write_manifest(tmp_path / "pairs.csv", pairs)
    assert read_manifest(tmp_path / "pairs.csv") == pairs


def test_pet_pairs_have_suv_factor_1(quick, tmp_path):
    recipe = find_task("pet-joint").recipe(GRID, doses=(4, 20))
    pairs = make_set(recipe, 1, tmp_path, jobs=1)
    assert [pair.source.name for pair in pairs] == ["NAC-dose4.nii.gz", "NAC-dose20.nii.gz"]
    assert {pair.suv_factor for pair in pairs} == {1.0}


def test_a_second_run_makes_only_the_missing_subjects(quick, tmp_path):
    make_set(RECIPE, 4, tmp_path, jobs=1)
    before = _files(tmp_path)
    assert len(make_set(RECIPE, 4, tmp_path, jobs=1)) == 4
    assert _files(tmp_path) == before
    assert len(quick) == 4
    assert len(make_set(RECIPE, 6, tmp_path, jobs=1)) == 6
    assert len(quick) == 6
    assert before.items() <= _files(tmp_path).items()


def test_progress_counts_the_subjects_that_existed(quick, tmp_path):
    make_set(RECIPE, 4, tmp_path, jobs=1)
    seen = []
    make_set(RECIPE, 6, tmp_path, jobs=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 6), (5, 6), (6, 6)]


def test_an_error_keeps_the_subjects_that_were_made(quick, tmp_path, monkeypatch):
    good = generation.make_subject

    def fails_in_val(recipe, split, index):
        if split == "val":
            raise MemoryError("no room")
        return good(recipe, split, index)

    monkeypatch.setattr(generation, "make_subject", fails_in_val)
    with pytest.raises(MemoryError):
        make_set(RECIPE, 4, tmp_path, jobs=1)
    monkeypatch.setattr(generation, "make_subject", good)
    make_set(RECIPE, 4, tmp_path, jobs=1)
    assert sorted(quick) == [("test", 0), ("train", 0), ("train", 1), ("val", 0)]


def test_an_error_during_writing_leaves_no_partial_subject(quick, tmp_path, monkeypatch):
    """An error in its second file leaves no subject; the next run removes the partial files."""
    writes, real = [], generation.write_volume

    def fails_second(path, *arguments):
        writes.append(path)
        if len(writes) == 2:
            raise OSError(28, "No space left on device")
        real(path, *arguments)

    monkeypatch.setattr(generation, "write_volume", fails_second)
    with pytest.raises(OSError, match="No space"):
        make_set(RECIPE, 1, tmp_path, jobs=1)
    assert not (tmp_path / "train-000").exists()
    make_set(RECIPE, 1, tmp_path, jobs=1)
    assert {entry.name for entry in tmp_path.iterdir()} == {".lock", "recipe.json", "train-000"}


def test_a_partial_recipe_file_is_removed_by_the_next_run(quick, tmp_path):
    """The partial file that a killed process left does not stop the next run."""
    (tmp_path / f".recipe.json.{'0' * 32}").write_text("{")
    assert len(make_set(RECIPE, 1, tmp_path, jobs=1)) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {".lock", "recipe.json", "train-000"}


def test_another_recipe_is_refused_with_the_difference(quick, tmp_path):
    make_set(RECIPE, 1, tmp_path, jobs=1)
    before = _files(tmp_path)
    other = find_task("mri-t1t2").recipe(GRID, seed=7)
    with pytest.raises(GenerationError, match=r"holds another set \(recipe.seed is 0 there, and 7 is asked for\)"):
        make_set(other, 1, tmp_path, jobs=1)
    assert _files(tmp_path) == before


def test_a_folder_with_a_damaged_recipe_is_refused(quick, tmp_path):
    make_set(RECIPE, 1, tmp_path, jobs=1)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(GenerationError, match="holds another set"):
        make_set(RECIPE, 1, tmp_path, jobs=1)


def test_a_folder_with_other_files_is_refused_and_unchanged(quick, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(GenerationError, match=r"is not empty \(it holds 'thesis.tex'\)"):
        make_set(RECIPE, 1, tmp_path, jobs=1)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_the_recipe_and_versions_are_written_to_the_folder(quick, tmp_path):
    make_set(RECIPE, 1, tmp_path, jobs=1)
    origin = json.loads((tmp_path / "recipe.json").read_text())
    assert origin["recipe"]["task"] == "mri-t1t2"
    assert origin["recipe"]["grid"] == {"shape": [6, 8, 7], "spacing": [28.0, 28.0, 28.0]}
    assert origin["made_by"]["numpy"] == np.__version__


def test_the_recipe_key_changes_with_everything_that_affects_voxels(monkeypatch):
    keys = [recipe_key(RECIPE)]
    for recipe in (
        find_task("mri-t1t2").recipe(GRID, seed=1),
        find_task("mri-t1t2").recipe(Grid(GRID.shape, (28, 28, 29))),
        find_task("pet-denoise").recipe(GRID),
        find_task("pet-denoise").recipe(GRID, doses=(4,)),
    ):
        keys.append(recipe_key(recipe))
    monkeypatch.setattr(generation.np, "__version__", "0.0")
    keys.append(recipe_key(RECIPE))
    monkeypatch.setattr(generation, "_digest_of_code", lambda: "other")
    keys.append(recipe_key(RECIPE))
    assert len(set(keys)) == len(keys)
    assert recipe_key(RECIPE) == keys[-1]


def test_a_cached_set_is_found_again_and_listed(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("PPDM_CACHE", str(tmp_path))
    assert cached_sets() == []
    first = cached_set(RECIPE, 3, jobs=1)
    assert cached_set(RECIPE, 3, jobs=1) == first
    assert len(quick) == 3
    (entry,) = cached_sets()
    assert entry.name == f"mri-t1t2-{recipe_key(RECIPE)}"
    assert entry.subjects == 3
    assert entry.bytes == sum(f.stat().st_size for f in tmp_path.rglob("*.nii.gz"))


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("PPDM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ppdm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ppdm"


_SCRIPT = """
import signal
import sys
from quick_anatomies import noise
from ppdm.simulation.generation import make_set
from ppdm.simulation.phantom import ANATOMIES, Grid
from ppdm.simulation.tasks import find_task

folder, jobs, endless = sys.argv[1], int(sys.argv[2]), sys.argv[3:]  # processes of the pool read this, too
made = []


def make(seed, grid):
    made.append(seed)
    if endless and len(made) == 2:
        print("at work on the second", flush=True)
        signal.pause()
    return noise(seed, grid)


ANATOMIES["head"] = make
if __name__ == "__main__":
    seen = []
    recipe = find_task("mri-t1t2").recipe(Grid((6, 8, 7), (28.0, 28.0, 28.0)))
    make_set(recipe, 3, folder, jobs=jobs, progress=lambda done, total: seen.append(done))
    print(seen[-1] - seen[0])
"""


def _start(folder: Path, script: Path, jobs: int, *words: str) -> subprocess.Popen[str]:
    script.write_text(_SCRIPT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(script), str(folder), str(jobs), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)


def _assert_whole(folder: Path) -> None:
    assert {entry.name for entry in folder.iterdir()} - {".lock", "recipe.json"} == {"train-000", "val-000", "test-000"}
    for subject in folder.glob("*-000"):
        images = {f"{name}.nii.gz" for name in ("T1w", "T2w", "mask", "labels")}
        assert {file.name for file in subject.iterdir()} == {*images, "labels.tsv"}
        for file in subject.glob("*.nii.gz"):
            read_volume(file)


def test_two_processes_make_a_set_only_once(tmp_path):
    folder = tmp_path / "set"
    with _start(folder, tmp_path / "make.py", jobs=1) as one, _start(folder, tmp_path / "make.py", jobs=1) as other:
        made = [int(process.communicate()[0]) for process in (one, other)]
    assert sorted(made) == [0, 3]
    _assert_whole(folder)


def test_a_killed_run_loses_only_the_current_subject(tmp_path):
    """SIGKILL during a run loses only the subject that was being made."""
    folder = tmp_path / "set"
    with _start(folder, tmp_path / "make.py", 1, "endless") as process:
        assert process.stdout.readline() == "at work on the second\n"
        os.killpg(process.pid, signal.SIGKILL)
    before = _files(folder / "train-000")
    with _start(folder, tmp_path / "make.py", jobs=2) as process:  # with two worker processes
        assert int(process.communicate()[0]) == 2
    assert _files(folder / "train-000") == before
    _assert_whole(folder)
