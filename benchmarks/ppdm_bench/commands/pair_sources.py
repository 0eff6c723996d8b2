"""Where a command's pairs come from: a manifest of one's own scans, or phantoms of a task."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ppdm.data.manifest import Pair, read_manifest
from ppdm.simulation.generation import cached_set
from ppdm.simulation.phantom import Grid
from ppdm.simulation.tasks import Recipe, find_task

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ManifestSubjects:
    """The pairs of a manifest.

    Attributes:
        path: of the CSV.
        resample: whether targets on other grids are interpolated onto those of their sources.
    """

    path: Path
    resample: bool = False

    def __str__(self) -> str:
        return str(self.path)

    def pairs(self, progress: Progress) -> list[Pair]:
        """Every pair of every split.

        Raises:
            ManifestError: the manifest has faults.
        """
        return read_manifest(self.path)

    def describe(self) -> Mapping[str, Any]:
        """What is to be the same when a run is continued; files may have been moved, their values are compared."""
        return {"task": None, "resample": self.resample}

    def notes(self) -> Mapping[str, Any]:
        """What is worth knowing beside."""
        return {"manifest": str(self.path.absolute())}


@dataclass(frozen=True)
class PhantomSubjects:
    """Synthetic subjects of a task, made on first use and kept in the cache.

    Attributes:
        task: one of :data:`ppdm.simulation.tasks.TASKS`.
        subjects: how many, over all splits.
        size: voxels along the longest axis of a grid over the anatomy.
        data_seed: of the whole set.
        grid: cubic, oblong or thick; see :meth:`ppdm.simulation.phantom.Grid.covering`.

    Raises:
        ValueError: there is no such task, or no grid of that size.
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
        """What makes them."""
        task = find_task(self.task)
        return task.recipe(Grid.covering(task.anatomy, self.size, self.grid), seed=self.data_seed)

    def pairs(self, progress: Progress) -> list[Pair]:
        """Every pair of every split; the progress is in subjects."""
        return cached_set(self.recipe(), self.subjects, progress=progress)

    def describe(self) -> Mapping[str, Any]:
        """What is to be the same when a run is continued."""
        return {"task": asdict(self), "resample": self.resample}

    def notes(self) -> Mapping[str, Any]:
        """Nothing beside that."""
        return {}


Subjects = ManifestSubjects | PhantomSubjects
