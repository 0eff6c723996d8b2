"""Translation tasks on phantoms: three of the paper, and one with two sources. A task selects the images of a pair.

A recipe completely describes a set of subjects. A subject depends only on its recipe, its split and its number.
Subjects of different splits have different seeds and therefore different anatomies. All doses and contrasts of one
subject share its anatomy and, in PET, its uptake and its counts.

Axes: volumes (D, H, W) float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ppdm.data.manifest import SPLITS
from ppdm.simulation.mri import MRIProtocol, flair_protocol, scan_mri
from ppdm.simulation.pet import SCANNERS, Scan, Scanner, draw_uptake, simulate
from ppdm.simulation.phantom import ANATOMIES, TISSUES, Anatomy, Grid

Protocol = MRIProtocol | Scanner
Images = Mapping[str, np.ndarray]

MASK, LABELS = "mask", "labels"

# Labels of the regions in which uptake is evaluated: organs and lesions, by index in TISSUES; no fluids, fat or bone.
_ORGANS = ("grey_matter", "white_matter", "deep_grey", "lesion", "lung", "liver", "spleen", "kidney", "myocardium")
REGIONS: Mapping[int, str] = {TISSUES.index(name): name for name in _ORGANS}


class TaskError(ValueError):
    """Invalid task or recipe; the message states the received and the expected value."""


@dataclass(frozen=True)
class Recipe:
    """Complete description of a set of subjects except their number: equal recipes give equal subjects.

    Create recipes with :meth:`Task.recipe`, which checks the requirements of each task.

    Attributes:
        task: one of :data:`TASKS`.
        anatomy: one of :data:`ppdm.simulation.phantom.ANATOMIES`.
        grid: shape and voxel size.
        protocol: scan protocol.
        doses: factors by which the counts of the PET sources are divided; empty for MRI.
        seed: seed of the whole set.
    """

    task: str
    anatomy: str
    grid: Grid
    protocol: Protocol
    doses: tuple[int, ...]
    seed: int

    @property
    def pairs(self) -> tuple[tuple[str, ...], ...]:
        """The pairs of a subject: for each, the names of the sources, then the name of the target."""
        task = find_task(self.task)
        if not self.doses:
            return ((*task.sources, task.target),)
        return tuple((f"{task.sources[0]}-dose{dose}", task.target) for dose in self.doses)

    def describe(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """A translation task with synthetic subjects.

    Attributes:
        name: name of the task.
        summary: source and target of the translation, in one line.
        anatomy: the default anatomy.
        protocols: default protocol of each anatomy.
        sources, target: names of the images; a dose is appended to the name of a PET source.
        doses: the default dose factors of a PET task; empty for MRI.
        images: function that creates the images of a subject, by name.
        at_field: function that makes the MRI protocol of a field strength in tesla; None for PET.
    """

    name: str
    summary: str
    anatomy: str
    protocols: Mapping[str, Protocol]
    sources: tuple[str, ...]
    target: str
    doses: tuple[int, ...]
    images: Callable[[Anatomy, Recipe, np.random.Generator], Images]
    at_field: Callable[[float], MRIProtocol] | None = None

    @property
    def in_suv(self) -> bool:
        """Whether the images of the task are in SUV."""
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
        """Create a recipe of this task.

        Args:
            grid: voxel grid; 64³ voxels over the anatomy if absent.
            anatomy: head or torso; the task's default if absent.
            protocol: scan protocol; the anatomy's default if absent.
            doses: dose factors of a PET task, integers of at least 2; the task's default if absent.
            seed: integer of at least 0.

        Raises:
            TaskError: an argument that does not fit the task.
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
    """The complete data of one subject.

    Attributes:
        name: the split and the number, such as ``train-003``.
        images: images by name, such as ``T1w``; MRI in arbitrary units, PET in SUV.
        mask: 1 inside the body and 0 outside; quality is measured inside.
        labels: the dominant tissue of each voxel, as its index in :data:`ppdm.simulation.phantom.TISSUES`.
    """

    name: str
    images: Images
    mask: np.ndarray
    labels: np.ndarray

    def volumes(self) -> Images:
        """Return all volumes that are written to disk, by name."""
        return {**self.images, MASK: self.mask, LABELS: self.labels}


def make_subject(recipe: Recipe, split: str, index: int) -> Subject:
    """Create one subject, independent of the other subjects in the set.

    Raises:
        TaskError: an unknown task or split, or a negative index.
    """
    task = find_task(recipe.task)
    if split not in SPLITS or index < 0:
        raise TaskError(f"a subject has a split, one of {', '.join(SPLITS)}, and a number; got {split!r}, {index}")
    body, scanner = np.random.SeedSequence([recipe.seed, SPLITS.index(split), index]).spawn(2)
    anatomy = ANATOMIES[recipe.anatomy](body, recipe.grid)
    images = task.images(anatomy, recipe, np.random.default_rng(scanner))
    return Subject(subject_name(split, index), images, anatomy.body.astype(np.float32), anatomy.labels())


def subject_name(split: str, index: int) -> str:
    """Return the name of a subject, usable as a folder name."""
    return f"{split}-{index:03d}"


def split_sizes(subjects: int) -> dict[str, int]:
    """Return the number of subjects per split: 15 % each for val and test.

    Three or more subjects give at least one to each split. Then a larger set contains every subject of a smaller one,
    in the same split.

    Raises:
        TaskError: no subjects.
    """
    if subjects < 1:
        raise TaskError(f"a set has at least one subject, got {subjects}")
    # Val uses one subject less than test, so that both never grow at the same time, which would shrink train.
    test = max(1, round(0.15 * subjects)) if subjects > 1 else 0
    val = max(1, round(0.15 * (subjects - 1))) if subjects > 2 else 0
    return {"train": subjects - val - test, "val": val, "test": test}


def find_task(name: str) -> Task:
    """Return the task with this name.

    Raises:
        TaskError: there is no such task.
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
    uptake, counts = rng.spawn(2)  # separate generators, so that the counts' samples do not change the subject
    activity, mu = draw_uptake(anatomy, uptake)
    return simulate(activity, mu, anatomy.grid.spacing, recipe.protocol, counts, recipe.doses)


_ANY_MRI, _ANY_FLAIR = dict.fromkeys(ANATOMIES, MRIProtocol()), dict.fromkeys(ANATOMIES, flair_protocol())
_TASKS = (
    Task(
        "pet-denoise",
        "low-count to full-count PET, both with attenuation correction",
        "head",
        SCANNERS,
        ("AC",),
        "AC",
        (20,),
        _pet_denoise,
    ),
    Task(
        "pet-joint",
        "low-count PET without attenuation correction to full-count PET with it",
        "torso",
        SCANNERS,
        ("NAC",),
        "AC",
        (20,),
        _pet_joint,
    ),
    Task("mri-t1t2", "T1-weighted to T2-weighted MRI", "head", _ANY_MRI, ("T1w",), "T2w", (), _mri, MRIProtocol),
    Task(
        "mri-flair",
        "T1-weighted and T2-weighted to FLAIR MRI, two sources",
        "head",
        _ANY_FLAIR,
        ("T1w", "T2w"),
        "FLAIR",
        (),
        _mri,
        flair_protocol,
    ),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}
PAPER_TASKS = tuple(task.name for task in _TASKS[:3])  # of arXiv 2606.15323; commands use them by default
