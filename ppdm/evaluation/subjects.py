"""Cases: what a prediction is made from and held against, read from disk onto one grid.

Axes: a volume (D, H, W), physical values: SUV in PET, whatever the files hold in MRI.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ppdm.data.manifest import Pair
from ppdm.data.regions import read_names
from ppdm.data.resample import Order, resample_to
from ppdm.data.volume import Volume, check_same_grid, read_volume


class CaseError(ValueError):
    """A case lacks what is asked of it; the message says what was got, what was expected and how to mend it."""


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies on disk.

    Attributes:
        name: ``subject``, or ``subject/scan`` where a subject has several.
        target: what was wanted.
        source: what was translated, None if it is not there.
        mask: where quality is measured, None for the whole volume.
        suv_factor: SUV = stored value · suv_factor in PET; None where nothing is to be converted.
        labels: regions whose uptake is looked at in PET, None without.
    """

    name: str
    target: Path
    source: Path | None = None
    mask: Path | None = None
    suv_factor: float | None = None
    labels: Path | None = None

    def digest(self, *others: Path) -> str:
        """12 hexadecimal digits that change with the content of these files, or of the others given.

        Raises:
            OSError: a file cannot be read.
        """
        digest = hashlib.sha256(repr(self.suv_factor).encode())
        labels = [self.labels] if self.labels else []
        for path in (self.target, self.source, self.mask, *labels, *others):
            digest.update(hashlib.sha256(path.read_bytes() if path else b"").digest())
        return digest.hexdigest()[:12]


def files_of(pairs: Sequence[Pair]) -> list[CaseFiles]:
    """The files of pairs; scans of one subject are told apart by the names of their sources, else by numbers."""
    scans: dict[str, list[Pair]] = {}
    for pair in pairs:
        scans.setdefault(pair.subject, []).append(pair)
    return [
        CaseFiles(_name(pair, scans[pair.subject]), pair.target, pair.source, pair.mask, pair.suv_factor, pair.labels)
        for pair in pairs
    ]


@dataclass(frozen=True, eq=False)
class Case:
    """What a prediction is made from and held against.

    Attributes:
        name: as in :class:`CaseFiles`.
        target: (D, H, W) float32; PET in SUV.
        source: the same shape and kind, None if it is not there.
        mask: the same shape, inside where above 0; None for the whole volume.
        grid: a volume on the grid of them all.
        suv_factor: what turned stored values into SUV; None where nothing was converted.
        labels: the same shape, whole numbers, 0 outside of every region; None without.
        regions: the names of its numbers; None where it has no table.
    """

    name: str
    target: Tensor
    source: Tensor | None
    mask: Tensor | None
    grid: Volume
    suv_factor: float | None = None
    labels: Tensor | None = None
    regions: Mapping[int, str] | None = None

    @property
    def in_suv(self) -> bool:
        """Whether values were turned into SUV."""
        return self.suv_factor is not None


def read_case(files: CaseFiles, *, resample: bool = False) -> Case:
    """Read a case: all of it on the grid of the source, or of the target where there is no source.

    Args:
        files: where it lies.
        resample: whether a target or mask on another grid is interpolated onto that of the source; else it is refused.

    Raises:
        VolumeError: a file cannot be read, or lies on another grid.
        RegionError: the table of the labels cannot be read.
        CaseError: labels that are no whole numbers.
    """
    first = files.source or files.target
    grid = read_volume(first)

    def read(path: Path, order: Order = 1) -> Tensor:
        volume = grid if path == first else read_volume(path)
        if resample:
            volume = resample_to(volume, grid, order, name=str(path))
        check_same_grid(grid, volume, (str(first), str(path)))
        return torch.from_numpy(volume.data)

    factor = 1.0 if files.suv_factor is None else files.suv_factor
    target = read(files.target) * factor
    source = read(files.source) * factor if files.source else None
    mask = read(files.mask, 0) if files.mask else None
    labels, names = _regions(files.labels, read) if files.labels else (None, None)
    return Case(files.name, target, source, mask, grid, files.suv_factor, labels, names)


def _regions(path: Path, read: Callable[[Path, Order], Tensor]) -> tuple[Tensor, Mapping[int, str] | None]:
    labels = read(path, 0)
    if not torch.equal(labels, labels.round()) or bool((labels < 0).any()):
        raise CaseError(f"{path} holds values that are no whole numbers from 0 on; labels of regions are, so mend it.")
    return labels, read_names(path)


def read_prediction(path: Path, case: Case) -> Tensor:
    """Read a prediction that was made before, stored as its target is: (D, H, W) float32; PET in SUV.

    Raises:
        VolumeError: it cannot be read, or lies on another grid.
        CaseError: it has voxels that are not finite, which no score may pass over.
    """
    volume = read_volume(path, announce=False)
    if volume.replaced:
        raise CaseError(f"{path} has {volume.replaced} NaN or infinite voxels; a prediction has none, so mend it.")
    check_same_grid(case.grid, volume, (f"The target of {case.name}", str(path)))
    return torch.from_numpy(volume.data) * (1.0 if case.suv_factor is None else case.suv_factor)


def _name(pair: Pair, scans: Sequence[Pair]) -> str:
    if len(scans) == 1:
        return pair.subject
    names = [scan.source.name.split(".")[0] for scan in scans]
    place = scans.index(pair)
    return f"{pair.subject}/{names[place] if len(set(names)) == len(names) else place + 1}"
