"""The pairs that a command works on: a manifest of the user's scans, or synthetic subjects of a task."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from ppdm.data.checking import check_pairs
from ppdm.data.geometry import Geometry
from ppdm.data.manifest import SPLITS, ManifestError, Pair, mixed_units, read_manifest, with_intensities
from ppdm.data.normalise import HounsfieldWindow
from ppdm.data.volume import check_same_grid, read_geometry
from ppdm.evaluation.subjects import CaseError, files_of
from ppdm.metrics.similarity import SSIM_WINDOW
from ppdm.simulation.generation import cached_set
from ppdm.simulation.phantom import Grid
from ppdm.simulation.tasks import TASKS, Recipe, find_task, split_sizes
from ppdm.sources import SOURCE
from ppdm_bench.commands.terminal import progress
from ppdm_bench.isolation.sweep import RECORDS
from ppdm_bench.records import RecordFile
from ppdm_bench.units import plural

ProgressCallback = Callable[[int, int], None]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ManifestSubjects:
    """The pairs of a manifest.

    Attributes:
        path: CSV file.
        resample: whether targets on other grids are interpolated onto the grids of their sources.
        source_intensity, target_intensity: windows in HU of CT, which replace those of the manifest.
    """

    path: Path
    resample: bool = False
    source_intensity: HounsfieldWindow | None = None
    target_intensity: HounsfieldWindow | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def task(self) -> str:
        """Name of the data in records and folders: the name of the file without ``.csv``."""
        return self.path.stem

    def pairs(self, progress: ProgressCallback) -> list[Pair]:
        """Return every pair of every split.

        Raises:
            ManifestError: the manifest is invalid, or a CT window is given for PET.
        """
        return with_intensities(self._rows, source=self.source_intensity, target=self.target_intensity)

    def sources(self) -> tuple[str, ...]:
        """Return the names of the sources of every pair, in their order.

        Raises:
            ManifestError: the manifest is invalid.
        """
        return tuple(self._rows[0].sources)

    def describe(self) -> Mapping[str, Any]:
        """Return the options that a resumed run must share. Paths are left out, because files may move."""
        windows = {"source_intensity": self.source_intensity, "target_intensity": self.target_intensity}
        given = {name: str(window) for name, window in windows.items() if window is not None}
        return {"task": None, "resample": self.resample, **given}

    def identify(self) -> Mapping[str, Any]:
        """Return what identifies the data in records; a changed manifest or file gives another identity."""
        return {**self.describe(), "manifest": self.task, "digest": self.digest}

    @cached_property
    def digest(self) -> str:
        """12 hexadecimal digits of all rows in their order: split, names, units and the content of every file.

        Paths, dates, comments and other columns do not count, so that the data may be moved and the table edited.
        Every file is read once, as it is stored.
        """
        rows = [
            f"{pair.split} {one.name} {[*one.sources]} {one.source_intensity} {one.target_intensity} {one.digest()}\n"
            for pair, one in zip(self._rows, files_of(self._rows), strict=True)
        ]
        return hashlib.sha256("".join(rows).encode()).hexdigest()[:12]

    def shapes(self, split: str) -> list[Shape]:
        """Return the shape (D, H, W) of each pair of a split, the smallest first."""
        return sorted((grid.shape for one, grid in self._grids if one == split), key=prod)

    @cached_property
    def _rows(self) -> list[Pair]:
        """The pairs as the manifest lists them; read once, because reading checks that every file exists."""
        return read_manifest(self.path)

    @cached_property
    def _grids(self) -> list[tuple[str, Geometry]]:
        """The split and the grid of each pair."""
        return [(pair.split, read_geometry(pair.source)) for pair in self._rows]

    def check(self) -> None:
        """Check the headers of all files: each pair must be on one grid, and either all pairs or none must be PET.

        Raises:
            ManifestError: the manifest is invalid, or only some pairs have an SUV factor.
            VolumeError: a header cannot be read, or the files of a pair are on different grids.
        """
        for fault in mixed_units(self._rows):
            raise ManifestError(f"{self.path}: {fault}")
        for pair, (_, grid) in zip(self._rows, self._grids, strict=True):
            for path in filter(None, (*pair.scans[1:], pair.mask, pair.labels)):
                other = read_geometry(path)
                if not self.resample:
                    check_same_grid(grid, other, (str(pair.source), str(path)))

    def check_contents(self, splits: Sequence[str], progress: ProgressCallback) -> None:
        """Check the voxels of the pairs of these splits; ``progress`` counts pairs.

        Raises:
            ManifestError: a pair has a fault (:mod:`ppdm.data.checking`); the message gives the first.
        """
        pairs = [pair for pair in self.pairs(progress) if pair.split in splits]
        found = check_pairs(pairs, resample=self.resample, progress=progress)
        faults = [fault for report in found.reports for fault in report.faults]
        if faults:
            others = len(faults) - 1
            command = f"ppdm-bench data check {self}{' --resample' * self.resample}"
            raise ManifestError(faults[0] + (f" `{command}` lists {others} more." if others else ""))

    def notes(self) -> Mapping[str, Any]:
        """Return information that the options file of a run contains, and that a resumed run need not share."""
        return {"manifest": str(self.path.absolute())}


@dataclass(frozen=True)
class PhantomSubjects:
    """Synthetic subjects of a task, simulated on first use and cached.

    Attributes:
        task: a name in :data:`ppdm.simulation.tasks.TASKS`.
        subjects: number of subjects, over all splits.
        size: voxels along the longest axis of a grid over the anatomy.
        data_seed: random seed of the set.
        grid: cubic, oblong or thick; see :meth:`ppdm.simulation.phantom.Grid.covering`.

    Raises:
        ValueError: the task does not exist, or the size does not suit the grid.
    """

    task: str
    subjects: int = 10
    size: int = 64
    data_seed: int = 0
    grid: str = "cubic"
    resample: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.recipe()

    def __str__(self) -> str:
        return f"{self.task} with {plural(self.subjects, 'subject')}"

    def recipe(self) -> Recipe:
        """Return the recipe of the subjects."""
        task = find_task(self.task)
        return task.recipe(Grid.covering(task.anatomy, self.size, self.grid), seed=self.data_seed)

    def pairs(self, progress: ProgressCallback) -> list[Pair]:
        """Return every pair of every split; ``progress`` counts subjects."""
        return cached_set(self.recipe(), self.subjects, progress=progress)

    def sources(self) -> tuple[str, ...]:
        """Return the names of the sources of every pair, in their order."""
        names = find_task(self.task).sources
        return names if len(names) > 1 else (SOURCE,)

    def describe(self) -> Mapping[str, Any]:
        """Return the options that a resumed run must share."""
        return {"task": asdict(self), "resample": self.resample}

    def identify(self) -> Mapping[str, Any]:
        """Return what identifies the data in records."""
        return self.describe()

    def shapes(self, split: str) -> list[Shape]:
        """Return the shape (D, H, W) of each pair of a split."""
        recipe = self.recipe()
        return [recipe.grid.shape] * (split_sizes(self.subjects)[split] * len(recipe.pairs))

    def check(self) -> None:
        """Do nothing: the constructor has checked the recipe."""

    def check_contents(self, splits: Sequence[str], progress: ProgressCallback) -> None:
        """Do nothing: simulated volumes have no faults."""

    def notes(self) -> Mapping[str, Any]:
        """Return an empty mapping: the recipe describes the subjects completely."""
        return {}


Subjects = ManifestSubjects | PhantomSubjects


def check_sets(sets: Sequence[Subjects], split: str, batch_size: int) -> None:
    """Check before any training that the sets can be used for training and scoring; no voxels are read.

    Args:
        sets: the sets.
        split: the split to score.
        batch_size: number of pairs per training step.

    Raises:
        CaseError: the split to train on or the split to score has no pairs, a volume to score is too small for SSIM,
            or the sizes cannot form a batch.
        ManifestError, VolumeError: a manifest or the header of a file is invalid.
    """
    for one in sets:
        one.check()
        counts = pair_counts(one)
        require_pairs(one, counts, "train", "mark some rows with it")
        require_pairs(one, counts, split, "choose another --split")
        if small := [shape for shape in one.shapes(split) if min(shape) < SSIM_WINDOW]:
            raise CaseError(
                f"{one} has a volume of {small[0]} voxels in the split {split!r}; SSIM needs {SSIM_WINDOW} "
                "or more along every axis. Give larger volumes."
            )
        first, *others = dict.fromkeys(one.shapes("train"))
        if others and batch_size > 1:
            raise CaseError(
                f"{one} has training volumes of different shapes, such as {first} and {others[-1]}: a batch of "
                f"{batch_size} needs one shape; crop them alike, or give --batch-size 1."
            )


def check_contents(sets: Sequence[Subjects], splits: Sequence[str], folders: Sequence[Path]) -> None:
    """Check the voxels of all pairs to train on and to score, except those of sets with scores in one of the folders.

    The check comes before the training: if a file were repaired later, a resumed training would have other data.

    Args:
        sets: as for :func:`check_sets`.
        splits: the splits to score.
        folders: folders of records.

    Raises:
        ManifestError: a pair has a fault.
    """
    scored = [record.options.get("data") for folder in folders for record in RecordFile(folder / RECORDS).read()]
    with progress() as bar:
        shown = bar.add_task("checking the scans", total=None)
        for one in sets:
            if any({**one.identify(), "split": split} not in scored for split in splits):
                bar.update(shown, description=f"checking the scans of {one}")
                one.check_contents(
                    ("train", *splits), lambda done, total: bar.update(shown, completed=done, total=total)
                )


def pair_counts(source: Subjects) -> dict[str, int]:
    """Return the number of pairs in every split."""
    return {name: len(source.shapes(name)) for name in SPLITS}


def require_pairs(source: Subjects, counts: Mapping[str, int], split: str, remedy: str) -> None:
    """Check that a split has pairs.

    Raises:
        CaseError: the split has no pairs; the message gives the number of pairs in every split, and the remedy.
    """
    if not counts.get(split):
        there = ", ".join(f"{counts.get(name, 0)} in {name}" for name in SPLITS)
        raise CaseError(f"{source} has no pair in the split {split!r}, but {there}; {remedy}.")


def distinct_sets(sets: Sequence[Subjects]) -> list[Subjects]:
    """Return the sets without duplicates; each needs its own name, because results are stored by name.

    Raises:
        ValueError: two sets have one name, or the name of a manifest is that of a synthetic task or begins with a dot.
    """
    named: dict[str, Subjects] = {}
    for one in sets:
        if (known := named.setdefault(one.task, one)) != one:
            raise ValueError(f"{known} and {one} are both called {one.task!r} in results; rename one of the files")
        if isinstance(one, ManifestSubjects) and (one.task in TASKS or one.task.startswith(".")):
            why = "is that of a synthetic task" if one.task in TASKS else "begins with a dot"
            raise ValueError(f"results on {one} would be called {one.task!r}, which {why}; rename the file")
    return list(named.values())
