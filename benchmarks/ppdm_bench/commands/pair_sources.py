"""Sources of the pairs of a command: a manifest of the user's scans, or synthetic subjects of a task."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ppdm.data.manifest import Pair, read_manifest, with_intensities
from ppdm.data.normalise import HounsfieldWindow
from ppdm.simulation.generation import cached_set
from ppdm.simulation.phantom import Grid
from ppdm.simulation.tasks import Recipe, find_task
from ppdm.sources import SOURCE

Progress = Callable[[int, int], None]


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

    def pairs(self, progress: Progress) -> list[Pair]:
        """Return every pair of every split.

        Raises:
            ManifestError: the manifest is invalid, or its PET is to be read as CT.
        """
        return with_intensities(read_manifest(self.path), source=self.source_intensity, target=self.target_intensity)

    def sources(self) -> tuple[str, ...]:
        """Return the names of the sources of every pair, in their order.

        Raises:
            ManifestError: the manifest is invalid.
        """
        return tuple(read_manifest(self.path)[0].sources)

    def describe(self) -> Mapping[str, Any]:
        """Return the options that a resumed run must share. Paths are left out, because files may have moved."""
        windows = {"source_intensity": self.source_intensity, "target_intensity": self.target_intensity}
        given = {name: str(window) for name, window in windows.items() if window is not None}
        return {"task": None, "resample": self.resample, **given}

    def notes(self) -> Mapping[str, Any]:
        """Return further information for the options file of a run."""
        return {"manifest": str(self.path.absolute())}


@dataclass(frozen=True)
class PhantomSubjects:
    """Synthetic subjects of a task, generated on first use and cached.

    Attributes:
        task: a name in :data:`ppdm.simulation.tasks.TASKS`.
        subjects: number of subjects, over all splits.
        size: voxels along the longest axis of a grid over the anatomy.
        data_seed: random seed of the whole set.
        grid: cubic, oblong or thick; see :meth:`ppdm.simulation.phantom.Grid.covering`.

    Raises:
        ValueError: the task does not exist, or there is no grid of that size.
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
        return f"{self.task} with {self.subjects} subjects"

    def recipe(self) -> Recipe:
        """Return the recipe of the subjects."""
        task = find_task(self.task)
        return task.recipe(Grid.covering(task.anatomy, self.size, self.grid), seed=self.data_seed)

    def pairs(self, progress: Progress) -> list[Pair]:
        """Return every pair of every split; the progress counts subjects."""
        return cached_set(self.recipe(), self.subjects, progress=progress)

    def sources(self) -> tuple[str, ...]:
        """Return the names of the sources of every pair, in their order."""
        names = find_task(self.task).sources
        return names if len(names) > 1 else (SOURCE,)

    def describe(self) -> Mapping[str, Any]:
        """Return the options that a resumed run must share."""
        return {"task": asdict(self), "resample": self.resample}

    def notes(self) -> Mapping[str, Any]:
        """Return an empty mapping: the recipe describes the subjects completely."""
        return {}


Subjects = ManifestSubjects | PhantomSubjects
