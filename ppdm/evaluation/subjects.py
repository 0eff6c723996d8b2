"""Cases: the input of a prediction and its reference, read from disk onto one grid.

Axes: a volume (D, H, W) of physical values: SUV in PET, the values of the files in MRI and CT. Several sources of a
case are one tensor (S, D, H, W).
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ppdm.data.manifest import Pair
from ppdm.data.normalise import HounsfieldWindow
from ppdm.data.regions import RegionError, check_regions, names_file, read_labels, read_names
from ppdm.data.resample import Order, resample_to
from ppdm.data.volume import Volume, VolumeError, check_same_grid, files_of_scan, read_volume
from ppdm.sources import SOURCE


class CaseError(ValueError):
    """A case is incomplete or unsuitable; the message gives the value found, the value expected and the remedy."""


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case.

    Attributes:
        name: ``subject``, or ``subject/scan`` if the subject has several scans.
        target: the reference volume.
        source: the volume to translate; of several, the first; None if there is none.
        mask: the region in which quality is measured; None for the whole volume.
        suv_factor: SUV = stored value · suv_factor in PET; None if values are not converted.
        labels: regions in which the uptake of PET is compared; None if there are none.
        named: the sources by name, as in :class:`ppdm.data.manifest.Pair`.
        source_intensity, target_intensity: windows in HU of volumes that are CT; None for others.
    """

    name: str
    target: Path
    source: Path | None = None
    mask: Path | None = None
    suv_factor: float | None = None
    labels: Path | None = None
    named: Mapping[str, Path] = field(default_factory=dict, hash=False)
    source_intensity: HounsfieldWindow | None = None
    target_intensity: HounsfieldWindow | None = None

    @property
    def sources(self) -> Mapping[str, Path]:
        """The sources by name, in their order; empty if there is none."""
        return self.named or ({SOURCE: self.source} if self.source else {})

    @property
    def unit(self) -> str:
        """Unit of the target: SUV, HU, or empty for MRI."""
        return self._unit(self.target_intensity)

    @property
    def source_unit(self) -> str:
        """Unit of the sources, likewise."""
        return self._unit(self.source_intensity)

    def _unit(self, window: HounsfieldWindow | None) -> str:
        return "SUV" if self.suv_factor is not None else "HU" if window else ""

    def digest(self, *others: Path) -> str:
        """Return 12 hexadecimal digits that depend on the content of these files and of the others given.

        Raises:
            OSError: a file cannot be read.
            VolumeError: the other files of a scan cannot be found.
        """
        digest = hashlib.sha256(repr(self.suv_factor).encode())
        labels = [self.labels] if self.labels else []
        tables = [names_file(path) for path in labels if names_file(path).is_file()]
        for path in (self.target, *(self.sources.values() or [None]), self.mask, *labels, *tables, *others):
            for file in files_of_scan(path) if path else (None,):
                digest.update(hashlib.sha256(file.read_bytes() if file else b"").digest())
        return digest.hexdigest()[:12]


def files_of(pairs: Sequence[Pair]) -> list[CaseFiles]:
    """Return the files of pairs as cases.

    Several scans of one subject are named by their source files, or by numbers if those names are equal.
    """
    scans: dict[str, list[Pair]] = {}
    for pair in pairs:
        scans.setdefault(pair.subject, []).append(pair)
    return [
        CaseFiles(
            _name(pair, scans[pair.subject]),
            pair.target,
            pair.source,
            pair.mask,
            pair.suv_factor,
            pair.labels,
            pair.named,
            pair.source_intensity,
            pair.target_intensity,
        )
        for pair in pairs
    ]


@dataclass(frozen=True, eq=False)
class EvaluationCase:
    """The input of a prediction and its reference.

    Attributes:
        name: as in :class:`CaseFiles`.
        target: (D, H, W) float32; PET in SUV.
        source: same shape, dtype and unit; several sources are (S, D, H, W); None if there is none.
        mask: same shape; values above 0 are inside; None for the whole volume.
        grid: a volume on the common grid.
        suv_factor: the factor that converted stored values to SUV; None if values were not converted.
        labels: same shape, int64, 0 outside every region; None if there are none.
        regions: region names by label number; None if there is no table of names.
        labels_fault: why the labels are unusable; empty if they are usable or there are none.
        source_names: names of the sources, in their order.
        source_unit, unit: units of source and target: SUV, HU, or empty for arbitrary ones.
    """

    name: str
    target: Tensor
    source: Tensor | None
    mask: Tensor | None
    grid: Volume
    suv_factor: float | None = None
    labels: Tensor | None = None
    regions: Mapping[int, str] | None = None
    labels_fault: str = ""
    source_names: tuple[str, ...] = (SOURCE,)
    source_unit: str = ""
    unit: str = ""

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """The sources (D, H, W) by name, in their order, for pictures; a single one is called ``input``."""
        if self.source is None:
            return {}
        if self.source.ndim == 3:
            return {"input": self.source}
        return dict(zip(self.source_names, self.source, strict=True))

    @property
    def in_suv(self) -> bool:
        """Whether values were converted to SUV."""
        return self.suv_factor is not None


def read_case(files: CaseFiles, *, resample: bool = False) -> EvaluationCase:
    """Read a case onto the grid of its first source, or of its target if it has no source.

    Args:
        files: the files of the case.
        resample: whether to interpolate volumes on other grids onto that grid; otherwise they are refused.

    Raises:
        VolumeError: a file other than the labels cannot be read, or is on another grid.
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
    sources = [read(path) * factor for path in files.sources.values()]
    source = (torch.stack(sources) if len(sources) > 1 else sources[0]) if sources else None
    mask = read(files.mask, 0) if files.mask else None
    labels, names, fault = None, None, ""
    if files.labels:
        try:
            labels, names = _read_regions(files.labels, grid, first, resample)
        except (VolumeError, RegionError) as error:  # metrics of the whole volume do not need the labels
            fault = str(error)
    units = (files.source_unit, files.unit)
    about = (files.suv_factor, labels, names, fault, tuple(files.sources) or (SOURCE,), *units)
    return EvaluationCase(files.name, target, source, mask, grid, *about)


def _read_regions(path: Path, grid: Volume, owner: Path, resample: bool) -> tuple[Tensor, Mapping[int, str] | None]:
    """Return labels on the grid of a volume, whose file is `owner`, and the table of their names."""
    labels = read_labels(path)
    if labels.replaced:
        warnings.warn(f"{path}: {labels.replaced} NaN or infinite voxels are in no region.", stacklevel=3)
    if resample:
        labels = labels.on(grid.geometry, str(path))
    check_same_grid(grid, labels.geometry, (str(owner), str(path)))
    numbers, names = torch.from_numpy(labels.numbers), read_names(path)
    check_regions(numbers.unique().tolist(), names, path)
    return numbers, names


def read_prediction(path: Path, case: EvaluationCase) -> Tensor:
    """Read a stored prediction, in the same units as the target's file; returns (D, H, W) float32, PET in SUV.

    Raises:
        VolumeError: the file cannot be read, or is on another grid.
        CaseError: the prediction has voxels that are not finite; a score must not ignore them.
    """
    volume = read_volume(path, announce=False)
    if volume.replaced:
        raise CaseError(
            f"{path} has {volume.replaced} NaN or infinite voxels; repair it, because a score must not ignore them."
        )
    check_same_grid(case.grid, volume, (f"The target of {case.name}", str(path)))
    return torch.from_numpy(volume.data) * (1.0 if case.suv_factor is None else case.suv_factor)


def _name(pair: Pair, scans: Sequence[Pair]) -> str:
    if len(scans) == 1:
        return pair.subject
    names = [scan.source.name.split(".")[0] for scan in scans]
    place = scans.index(pair)
    return f"{pair.subject}/{names[place] if len(set(names)) == len(names) else place + 1}"
