"""The three tasks of the paper, on phantoms: which images of a subject form a pair.

A recipe says everything that makes a set of subjects; a subject is made from its recipe, its split and its number
alone. Subjects of different splits have different anatomies, as their seeds differ; all doses and contrasts of one
subject share its anatomy and, in PET, its uptake and its counts.

Axes: volumes (D, H, W) float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ppdm.data.manifest import SPLITS
from ppdm.simulation.mri import MRIProtocol, scan_mri
from ppdm.simulation.pet import SCANNERS, Scan, Scanner, draw_uptake, simulate
from ppdm.simulation.phantom import ANATOMIES, TISSUES, Anatomy, Grid

Protocol = MRIProtocol | Scanner
Images = Mapping[str, np.ndarray]

MASK, LABELS = "mask", "labels"

# The labels whose uptake is looked at: organs and lesions, by their index in TISSUES. Fluids, fat and bone are none.
_ORGANS = ("grey_matter", "white_matter", "deep_grey", "lesion", "lung", "liver", "spleen", "kidney", "myocardium")
REGIONS: Mapping[int, str] = {TISSUES.index(name): name for name in _ORGANS}


class TaskError(ValueError):
    """A task or a recipe that there is not; the message says what was got and what is expected."""


@dataclass(frozen=True)
class Recipe:
    """Everything that makes a set of subjects, but their number: equal recipes make equal subjects.

    Made by :meth:`Task.recipe`, which knows what each task needs.

    Attributes:
        task: one of :data:`TASKS`.
        anatomy: one of :data:`ppdm.simulation.phantom.ANATOMIES`.
        grid: shape and voxel size.
        protocol: how subjects are scanned.
        doses: PET: by how much the counts of the sources are divided; empty for MRI.
        seed: of the whole set.
    """

    task: str
    anatomy: str
    grid: Grid
    protocol: Protocol
    doses: tuple[int, ...]
    seed: int

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Names of the source and the target of each pair of a subject."""
        task = find_task(self.task)
        sources = [f"{task.source}-dose{dose}" for dose in self.doses] or [task.source]
        return tuple((source, task.target) for source in sources)

    def describe(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """A translation that the toolkit has subjects for.

    Attributes:
        name: as it is asked for.
        summary: what is translated to what, in a line.
        anatomy: the one that is scanned unless another is asked for.
        protocols: of each anatomy.
        source, target: names of the images; a dose is added to that of the source.
        doses: the default dose factors of a PET task; empty for MRI.
        images: makes the images of a subject, by name.
    """

    name: str
    summary: str
    anatomy: str
    protocols: Mapping[str, Protocol]
    source: str
    target: str
    doses: tuple[int, ...]
    images: Callable[[Anatomy, Recipe, np.random.Generator], Images]

    @property
    def in_suv(self) -> bool:
        """Whether its images hold SUV."""
        return bool(self.doses)

    def recipe(
        self,
        grid: Grid | None = None,
        *,
        anatomy: str | None = None,
        protocol: Protocol | None = None,
        doses: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Recipe:
        """A recipe of this task.

        Args:
            grid: 64³ voxels over the anatomy if absent.
            anatomy: head or torso; the task's own if absent.
            protocol: that of the anatomy if absent.
            doses: dose factors of a PET task, whole numbers from 2 up; the task's own if absent.
            seed: whole number from 0 up.

        Raises:
            TaskError: an argument that does not suit the task.
        """
        anatomy = self.anatomy if anatomy is None else anatomy
        if anatomy not in ANATOMIES:
            raise TaskError(f"anatomy {anatomy!r} is none of {', '.join(ANATOMIES)}")
        protocol = self.protocols[anatomy] if protocol is None else protocol
        if type(protocol) is not type(self.protocols[anatomy]):
            wanted = type(self.protocols[anatomy]).__name__
            raise TaskError(f"{self.name} is scanned by a {wanted}, got {protocol!r}")
        if type(seed) is not int or seed < 0:
            raise TaskError(f"a seed is a whole number from 0 up, got {seed!r}")
        doses = self.doses if doses is None else tuple(doses)
        self._check_doses(doses)
        return Recipe(self.name, anatomy, Grid.covering(anatomy) if grid is None else grid, protocol, doses, seed)

    def _check_doses(self, doses: tuple[int, ...]) -> None:
        if doses and not self.doses:
            raise TaskError(f"{self.name} has no dose; leave the doses out")
        if self.doses and not doses:
            raise TaskError(f"{self.name} needs at least one dose factor, such as 20")
        if not all(type(dose) is int and dose >= 2 for dose in doses) or len(set(doses)) < len(doses):
            raise TaskError(f"dose factors are different whole numbers from 2 up, got {doses!r}")


@dataclass(frozen=True)
class Subject:
    """Everything made of one subject.

    Attributes:
        name: the split and the number, such as ``train-003``.
        split: train, val or test.
        images: by name, such as ``T1w``; MRI in arbitrary units, PET in SUV.
        mask: 1 inside the body, 0 outside: where quality is measured.
        labels: the dominant tissue of each voxel, its index in :data:`ppdm.simulation.phantom.TISSUES`.
    """

    name: str
    split: str
    images: Images
    mask: np.ndarray
    labels: np.ndarray

    def volumes(self) -> Images:
        """Everything that is kept of a subject, by name."""
        return {**self.images, MASK: self.mask, LABELS: self.labels}


def make_subject(recipe: Recipe, split: str, index: int) -> Subject:
    """Make one subject; nothing of it depends on the other subjects of the set.

    Raises:
        TaskError: an unknown task or split, or a negative index.
    """
    task = find_task(recipe.task)
    if split not in SPLITS or index < 0:
        raise TaskError(f"a subject has a split, one of {', '.join(SPLITS)}, and a number; got {split!r}, {index}")
    body, scanner = np.random.SeedSequence([recipe.seed, SPLITS.index(split), index]).spawn(2)
    anatomy = ANATOMIES[recipe.anatomy](body, recipe.grid)
    images = task.images(anatomy, recipe, np.random.default_rng(scanner))
    return Subject(subject_name(split, index), split, images, anatomy.body.astype(np.float32), anatomy.labels())


def subject_name(split: str, index: int) -> str:
    """The name of a subject, usable as a folder."""
    return f"{split}-{index:03d}"


def split_sizes(subjects: int) -> dict[str, int]:
    """How many of so many subjects are in each split: 15 % in test and in val, at least one each from three on.

    From three on, a larger set holds every subject of a smaller one, in the same split.

    Raises:
        TaskError: no subjects.
    """
    if subjects < 1:
        raise TaskError(f"a set has at least one subject, got {subjects}")
    # Val lags behind test by one, so that one subject more never makes both grow, which would take one from train.
    test = max(1, round(0.15 * subjects)) if subjects > 1 else 0
    val = max(1, round(0.15 * (subjects - 1))) if subjects > 2 else 0
    return {"train": subjects - val - test, "val": val, "test": test}


def find_task(name: str) -> Task:
    """The task of a name.

    Raises:
        TaskError: there is none.
    """
    if name not in TASKS:
        raise TaskError(f"task {name!r} is none of {', '.join(TASKS)}")
    return TASKS[name]


def _mri(anatomy: Anatomy, recipe: Recipe, rng: np.random.Generator) -> Images:
    assert isinstance(recipe.protocol, MRIProtocol)
    return scan_mri(anatomy, recipe.protocol, rng)


def _pet_denoise(anatomy: Anatomy, recipe: Recipe, rng: np.random.Generator) -> Images:
    scan = _pet_scan(anatomy, recipe, rng)
    return {f"AC-dose{dose}": scan.low[dose] for dose in recipe.doses} | {"AC": scan.ac}


def _pet_joint(anatomy: Anatomy, recipe: Recipe, rng: np.random.Generator) -> Images:
    scan = _pet_scan(anatomy, recipe, rng)
    return {f"NAC-dose{dose}": scan.nac_low[dose] for dose in recipe.doses} | {"AC": scan.ac}


def _pet_scan(anatomy: Anatomy, recipe: Recipe, rng: np.random.Generator) -> Scan:
    assert isinstance(recipe.protocol, Scanner)
    uptake, counts = rng.spawn(2)  # what is drawn of the counts does not change who is scanned
    activity, mu = draw_uptake(anatomy, uptake)
    return simulate(activity, mu, anatomy.grid.spacing, recipe.protocol, counts, recipe.doses)


_ANY_MRI = dict.fromkeys(ANATOMIES, MRIProtocol())
_TASKS = (
    Task(
        "pet-denoise",
        "low-count to full-count PET, both with attenuation correction",
        "head",
        SCANNERS,
        "AC",
        "AC",
        (20,),
        _pet_denoise,
    ),
    Task(
        "pet-joint",
        "low-count PET without attenuation correction to full-count PET with it",
        "torso",
        SCANNERS,
        "NAC",
        "AC",
        (20,),
        _pet_joint,
    ),
    Task("mri-t1t2", "T1-weighted to T2-weighted MRI", "head", _ANY_MRI, "T1w", "T2w", (), _mri),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}
