"""Sets of phantom subjects on disk: generated once, on all cores, and never incomplete.

A set's folder holds `recipe.json`, one folder per subject with its images, mask and labels, and optionally a manifest.
Each subject is written to a temporary folder that is then renamed, so that every subject folder is complete and an
interrupted run resumes where it stopped. Only one process at a time generates a set; another process that needs the
set waits until it is complete.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from filelock import FileLock

from ppdm.atomic_io import leftovers, write_together
from ppdm.data.manifest import Pair
from ppdm.data.regions import names_file, names_table
from ppdm.data.volume import Volume, write_volume
from ppdm.simulation.tasks import LABELS, MASK, REGIONS, Recipe, find_task, make_subject, split_sizes, subject_name

RECIPE = "recipe.json"

_LOCK, _PARTIAL = ".lock", ".partial-"

Progress = Callable[[int, int], None]


class GenerationError(ValueError):
    """A set cannot be generated here; the message states why and how to fix it."""


def make_set(
    recipe: Recipe,
    subjects: int,
    folder: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Pair]:
    """Generate the subjects of a recipe that a folder does not hold yet.

    Args:
        recipe: description of the set.
        subjects: total number of subjects; :func:`ppdm.simulation.tasks.split_sizes` gives the number per split.
        folder: output folder; it holds only subjects of this recipe.
        jobs: number of processes; one per core if absent.
        progress: called with the number of finished subjects and the total number.

    Returns:
        The pairs of all subjects, training first.

    Raises:
        GenerationError: the folder holds another set, or files that do not belong to a set.
        TaskError: fewer than one subject.
        OSError: the folder cannot be written.
    """
    folder = Path(folder).absolute()
    wanted = [(split, index) for split, count in split_sizes(subjects).items() for index in range(count)]
    with _exclusive(folder):
        _claim(folder, recipe)
        missing = [who for who in wanted if not (folder / subject_name(*who)).is_dir()]
        progress(len(wanted) - len(missing), len(wanted))
        for done, _ in enumerate(_all_made(recipe, missing, folder, jobs), start=len(wanted) - len(missing) + 1):
            progress(done, len(wanted))
    return [pair for split, index in wanted for pair in _pairs(recipe, split, folder / subject_name(split, index))]


def cached_set(
    recipe: Recipe, subjects: int, *, jobs: int | None = None, progress: Progress = lambda *_: None
) -> list[Pair]:
    """Generate a set in the cache (:func:`cache_folder`), under a key of everything that determines its voxels."""
    return make_set(
        recipe, subjects, cache_folder() / f"{recipe.task}-{recipe_key(recipe)}", jobs=jobs, progress=progress
    )


def cache_folder() -> Path:
    """Return the default folder of sets: $PPDM_CACHE, or `ppdm` in the user's cache folder."""
    if named := os.environ.get("PPDM_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppdm"


@dataclass(frozen=True)
class CachedSet:
    """A set in the cache: folder name, number of subjects, and total size of its volumes in bytes."""

    name: str
    subjects: int
    bytes: int


def cached_sets() -> list[CachedSet]:
    """Return all sets in the cache, sorted by name."""
    folders = sorted(path.parent for path in cache_folder().glob(f"*/{RECIPE}"))
    return [
        CachedSet(
            folder.name,
            sum(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()),
            sum(file.stat().st_size for file in folder.glob("*/*.nii.gz")),
        )
        for folder in folders
    ]


def recipe_key(recipe: Recipe) -> str:
    """Return 16 hexadecimal digits that change with everything that may change a voxel: recipe, code, numpy, scipy."""
    return hashlib.sha256(json.dumps(_origin(recipe), sort_keys=True).encode()).hexdigest()[:16]


def _origin(recipe: Recipe) -> dict[str, Any]:
    """Return recipe, software versions and code digest of a set, as JSON values."""
    made_by = {"numpy": np.__version__, "scipy": scipy.__version__, "code": _digest_of_code()}
    return {"recipe": json.loads(json.dumps(recipe.describe())), "made_by": made_by}


def _digest_of_code() -> str:
    """Return a digest of the source files that determine voxel values; a changed comment only causes a new set."""
    here = Path(__file__).parent
    files = [here / "fields.py", here / "mri.py", here / "tasks.py"]
    files += [*(here / "phantom").glob("*.py"), *(here / "pet").glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; the system releases the lock when the process ends for any reason."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _LOCK):
        for left_over in folder.glob(f"{_PARTIAL}*"):  # the lock guarantees that no process is writing them
            shutil.rmtree(left_over)
        for left_over in leftovers(folder):
            left_over.unlink()
        yield


def _claim(folder: Path, recipe: Recipe) -> None:
    """Check that a folder is empty or holds this set, and write its recipe file."""
    path, origin = folder / RECIPE, _origin(recipe)
    if path.exists():
        if (found := _read_json(path)) != origin:
            raise GenerationError(
                f"{folder} holds another set ({_difference(found, origin)}); give another folder, or delete that one"
            )
        return
    if unknown := [entry.name for entry in folder.iterdir() if entry.name != _LOCK]:
        raise GenerationError(f"{folder} is not empty (it holds {unknown[0]!r}) and is not a set; give another folder")
    write_together({path: (json.dumps(origin, indent=1) + "\n").encode()})


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError):
        return None


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """Describe the first value in which two descriptions differ, for a message."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                return _difference(found.get(name), wanted.get(name), f"{path}{'.' if path else ''}{name}")
    return f"{path or RECIPE} is {found!r} there, and {wanted!r} is asked for"


def _all_made(recipe: Recipe, who: list[tuple[str, int]], folder: Path, jobs: int | None) -> Iterator[None]:
    """Generate subjects in parallel; yield once per finished subject."""
    jobs = min(len(who), jobs or available_cores())
    if jobs <= 1:
        for split, index in who:
            _make_one(recipe, split, index, folder)
            yield
        return
    # Spawned, not forked: a fork of a process with threads (torch, BLAS) may hang.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_make_one, recipe, split, index, folder) for split, index in who]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, do not start the remaining subjects


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_one(recipe: Recipe, split: str, index: int, folder: Path) -> None:
    subject = make_subject(recipe, split, index)
    place = folder / subject.name
    aside = folder / f"{_PARTIAL}{subject.name}-{uuid.uuid4().hex}"
    aside.mkdir()
    for name, array in subject.volumes().items():
        volume = Volume.from_array(array, recipe.grid.spacing)
        write_volume(_file(aside, name), volume.data, volume)
    names_file(_file(aside, LABELS)).write_bytes(names_table(REGIONS))
    try:
        os.replace(aside, place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(aside)  # a worker whose parent was killed has finished the same subject in the meantime


def _pairs(recipe: Recipe, split: str, folder: Path) -> list[Pair]:
    in_suv = find_task(recipe.task).in_suv
    factor, labels = (1.0, _file(folder, LABELS)) if in_suv else (None, None)  # the images already hold SUV
    pairs = []
    for *names, target in recipe.pairs:
        sources = {name: _file(folder, name) for name in names}
        first, named = sources[names[0]], sources if len(names) > 1 else {}
        shared = (_file(folder, target), _file(folder, MASK), factor, labels)
        pairs.append(Pair(folder.name, split, first, *shared, named=named))
    return pairs


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.nii.gz"
