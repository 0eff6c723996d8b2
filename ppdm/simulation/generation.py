"""Sets of phantom subjects on disk: made once, by all cores, and never half.

A set's folder holds `recipe.json`, one folder for each subject with its images, mask and labels, and, where it
was asked for, a manifest. Subjects are made aside and renamed into place, so that a folder that is there is complete:
what was interrupted goes on where it stopped. One process at a time makes a set; another that wants it waits and finds
it made.
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
from ppdm.data.regions import names_table, table_name
from ppdm.data.volume import Volume, write_volume
from ppdm.simulation.tasks import LABELS, MASK, REGIONS, Recipe, find_task, make_subject, split_sizes, subject_name

RECIPE = "recipe.json"
CACHE_VARIABLE = "PPDM_CACHE"

_LOCK, _PARTIAL = ".lock", ".partial-"

Progress = Callable[[int, int], None]


class GenerationError(ValueError):
    """A set cannot be made here; the message says why and how to mend it."""


def make_set(
    recipe: Recipe,
    subjects: int,
    folder: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Pair]:
    """Make the subjects of a recipe that a folder does not hold yet.

    Args:
        recipe: what to make.
        subjects: how many in all; :func:`ppdm.simulation.tasks.split_sizes` says how many of each split.
        folder: where; it holds subjects of this recipe alone.
        jobs: processes; one for each core if absent.
        progress: called with the subjects that are there and those that are wanted.

    Returns:
        The pairs of all subjects, training first.

    Raises:
        GenerationError: the folder holds another set, or files that are none of a set's.
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
    """The same in the cache, under a key of everything that makes the set; see :func:`cache_folder`."""
    return make_set(
        recipe, subjects, cache_folder() / f"{recipe.task}-{recipe_key(recipe)}", jobs=jobs, progress=progress
    )


def cache_folder() -> Path:
    """Where sets are kept that nobody gave a folder for: $PPDM_CACHE, or `ppdm` in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppdm"


@dataclass(frozen=True)
class CachedSet:
    """A set in the cache: its folder's name, how many subjects it has, and the bytes of its files."""

    name: str
    subjects: int
    bytes: int


def cached_sets() -> list[CachedSet]:
    """What the cache holds, by name."""
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
    """16 hexadecimal digits that change with anything that changes a voxel: the recipe, our code, numpy and scipy."""
    return hashlib.sha256(json.dumps(_origin(recipe), sort_keys=True).encode()).hexdigest()[:16]


def _origin(recipe: Recipe) -> dict[str, Any]:
    """What made a set, as JSON values."""
    made_by = {"numpy": np.__version__, "scipy": scipy.__version__, "code": _digest_of_code()}
    return {"recipe": json.loads(json.dumps(recipe.describe())), "made_by": made_by}


def _digest_of_code() -> str:
    """A digest of the sources that decide a voxel's value; a comment changes it too, which costs a set, not a fault."""
    here = Path(__file__).parent
    files = [here / "fields.py", here / "mri.py", here / "tasks.py"]
    files += [*(here / "phantom").glob("*.py"), *(here / "pet").glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder alone; the lock falls with the process that held it, however that ended."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _LOCK):
        for left_over in folder.glob(f"{_PARTIAL}*"):  # nobody is at work on them now
            shutil.rmtree(left_over)
        for left_over in leftovers(folder):
            left_over.unlink()
        yield


def _claim(folder: Path, recipe: Recipe) -> None:
    """See that a folder is empty or holds this very set, and write down whose it is."""
    path, origin = folder / RECIPE, _origin(recipe)
    if path.exists():
        if (found := _read_json(path)) != origin:
            raise GenerationError(
                f"{folder} holds another set ({_difference(found, origin)}); give another folder, or delete that one"
            )
        return
    if strangers := [entry.name for entry in folder.iterdir() if entry.name != _LOCK]:
        raise GenerationError(f"{folder} is not empty (it holds {strangers[0]!r}) and is no set; give another folder")
    write_together({path: (json.dumps(origin, indent=1) + "\n").encode()})


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError):
        return None


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """The first value in which two descriptions differ, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                return _difference(found.get(name), wanted.get(name), f"{path}{'.' if path else ''}{name}")
    return f"{path or RECIPE} is {found!r} there, and {wanted!r} is asked for"


def _all_made(recipe: Recipe, who: list[tuple[str, int]], folder: Path, jobs: int | None) -> Iterator[None]:
    """Make subjects, several at a time; yields once for each that is there."""
    jobs = min(len(who), jobs or _cores())
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
            pool.shutdown(cancel_futures=True)  # after a fault or Ctrl-C, what was not begun is not begun


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_one(recipe: Recipe, split: str, index: int, folder: Path) -> None:
    subject = make_subject(recipe, split, index)
    place = folder / subject.name
    aside = folder / f"{_PARTIAL}{subject.name}-{uuid.uuid4().hex}"
    aside.mkdir()
    for name, array in subject.volumes().items():
        volume = Volume.from_array(array, recipe.grid.spacing)
        write_volume(_file(aside, name), volume.data, volume)
    labels = _file(aside, LABELS)
    labels.with_name(table_name(labels.name)).write_bytes(names_table(REGIONS))
    try:
        os.replace(aside, place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(aside)  # a process whose parent was killed has finished the same subject meanwhile


def _pairs(recipe: Recipe, split: str, folder: Path) -> list[Pair]:
    in_suv = find_task(recipe.task).in_suv
    factor, labels = (1.0, _file(folder, LABELS)) if in_suv else (None, None)  # the images hold SUV themselves
    return [
        Pair(folder.name, split, _file(folder, source), _file(folder, target), _file(folder, MASK), factor, labels)
        for source, target in recipe.pairs
    ]


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.nii.gz"
