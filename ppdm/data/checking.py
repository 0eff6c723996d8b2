"""Check all pairs in one pass, before training or translation, and report every fault.

Every file of a pair is checked, even if the others have faults. Each fault gives the file, what was found, what was
expected and the remedy. For an unreadable file, only the first fault of its content is reported.

Faults are problems that training, translation or evaluation would refuse, or that make a pair useless: a file that is
not a readable volume, different grids, an image without contrast, an empty mask, labels that are not whole numbers or
have no region, a table of regions that cannot be read, a region without uptake, two equal volumes of a pair, one image
in two splits, an `suv_factor` for only some pairs. Remarks are unusual properties that a user should notice:
voxels that are not finite, voxels far from cubes, integers with a slope, a disagreement of sform and qform, negative or
implausible uptake, CT without air, and a scan whose voxel size, size or contrast is far from the median of all pairs.

Only one scan is in memory at a time, with the mask and the labels of its pair. Headers are checked before volumes are
read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from ppdm.data.contents import Annotation, Contents, as_text, examine, examine_labels, examine_mask, geometry_of
from ppdm.data.geometry import Geometry
from ppdm.data.manifest import Pair, mixed_units
from ppdm.data.resample import share_outside
from ppdm.data.volume import VolumeError, check_same_grid

SPACING_RATIO = 1.2  # ratio of a voxel size to the median of all pairs above which there is a remark
SHAPE_RATIO = 1.5
CONTRAST_RATIO = 5.0

_FEWEST = 3  # minimum number of pairs for a meaningful median


@dataclass(frozen=True)
class Report:
    """Result of checking one pair.

    Attributes:
        subject, split: subject and split of the pair.
        sources: contents of the sources by name, in their order; None for a file that cannot be read.
        target: contents of the target; None if the file cannot be read.
        faults: the reasons to refuse the pair; empty for a sound pair.
        remarks: unusual properties of the pair.
    """

    subject: str
    split: str
    sources: Mapping[str, Contents | None]
    target: Contents | None
    faults: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether the pair has no fault."""
        return not self.faults

    @property
    def source(self) -> Contents | None:
        """Contents of the source, or of the first of several sources."""
        return next(iter(self.sources.values()))

    @property
    def scans(self) -> Mapping[str, Contents | None]:
        """Contents of all sources by name, and of the target."""
        return {**self.sources, "target": self.target}

    @property
    def readable(self) -> tuple[Contents, ...]:
        """Contents of the files that could be read: the sources, then the target."""
        return tuple(scan for scan in (*self.sources.values(), self.target) if scan is not None)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Voxels along D, H, W of the first readable volume: the source, if possible."""
        return self.readable[0].geometry.shape if self.readable else None

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Voxel size in mm along D, H, W of the first readable volume: the source, if possible."""
        return self.readable[0].geometry.spacing if self.readable else None

    @property
    def source_range(self) -> tuple[float, float] | None:
        """Smallest and largest physical value of the source."""
        return (self.source.low, self.source.high) if self.source else None

    @property
    def target_range(self) -> tuple[float, float] | None:
        """Smallest and largest physical value of the target."""
        return (self.target.low, self.target.high) if self.target else None


@dataclass(frozen=True)
class Findings:
    """Result of checking all pairs.

    Attributes:
        reports: one report for each pair, in the order of the pairs.
        faults: faults of the whole set or of the manifest.
    """

    reports: tuple[Report, ...]
    faults: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether there is no fault."""
        return not self.faults and all(report.sound for report in self.reports)


def check_pair(pair: Pair, *, resample: bool = False) -> Report:
    """Check all files of a pair and report every fault; no fault is raised.

    Args:
        pair: the pair; its files need not exist.
        resample: whether volumes will be resampled onto the grid of the first source; different grids then give a
            remark instead of a fault.
    """
    faults: list[str] = []
    annotation_faults: list[str] = []
    examine_scan = partial(examine, suv_factor=pair.suv_factor)
    examine_source = partial(examine_scan, in_hu=pair.source_intensity is not None)
    read = [_read(examine_source, path, faults) for path in pair.sources.values()]
    grid = read[0][1]
    mask, labels = (
        _read_annotation(examine_file, path, grid, pair.source, annotation_faults) if path else None
        for examine_file, path in ((examine_mask, pair.mask), (examine_labels, pair.labels))
    )
    examine_target = partial(examine_scan, in_hu=pair.target_intensity is not None, mask=mask, labels=labels)
    read.append(_read(examine_target, pair.target, faults))
    scans, grids = zip(*read, strict=True)
    *sources, target = scans
    faults += [scan.fault for scan in scans if scan and scan.fault]
    remarks = [remark for each in (*scans, mask, labels) if each for remark in each.remarks]
    for path, other in zip(pair.scans[1:], grids[1:], strict=True):
        for fault in _grid_fault(grid, other, (pair.source, path)):
            if resample and grid and other and share_outside(other, grid) == 1:
                faults.append(f"{path} and {pair.source} do not overlap; check their affines.")
            elif resample:
                remarks.append(f"{path} is not on the grid of {pair.source} and is resampled onto it.")
            else:
                faults.append(fault)
    for one, twin in combinations(filter(None, scans), 2):
        if one.content == twin.content:
            faults.append(f"{one.path} and {twin.path} hold the same voxels, expected two images; check the names.")
    faults += annotation_faults
    if target and not annotation_faults:
        faults += target.faults_inside
    named = dict(zip(pair.sources, sources, strict=True))
    return Report(pair.subject, pair.split, named, target, tuple(faults), tuple(remarks))


def check_pairs(
    pairs: Sequence[Pair],
    faults: Sequence[str] = (),
    *,
    resample: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Check every pair separately and compare it with the others; no fault is raised.

    Args:
        pairs: the sound rows of a manifest.
        faults: faults of the manifest; they come first in the findings.
        resample: as for :func:`check_pair`.
        progress: called after every pair with the number of finished pairs and the total.
    """
    reports: list[Report] = []
    for pair in pairs:
        reports.append(check_pair(pair, resample=resample))
        progress(len(reports), len(pairs))
    leaks, repeats = _same_content(reports)
    outliers = _outliers(reports, [pair.suv_factor or 1.0 for pair in pairs])
    return Findings(
        tuple(
            replace(report, faults=(*report.faults, *leaks[i]), remarks=(*report.remarks, *repeats[i], *outliers[i]))
            for i, report in enumerate(reports)
        ),
        (*faults, *mixed_units(pairs)),
    )


# One pair


def _read(
    examine_scan: Callable[[Path], Contents], path: Path, faults: list[str]
) -> tuple[Contents | None, Geometry | None]:
    """Read a scan and its grid; the grid needs only a readable header. Read errors are appended to `faults`."""
    try:
        scan = examine_scan(path)
    except VolumeError as error:
        faults.append(str(error))
        return None, geometry_of(path)
    return scan, scan.geometry


def _grid_fault(a: Geometry | None, b: Geometry | None, paths: tuple[Path, Path]) -> Iterator[str]:
    try:
        if a and b:
            check_same_grid(a, b, (str(paths[0]), str(paths[1])))
    except VolumeError as error:
        yield str(error)


def _read_annotation(
    examine_file: Callable[[Path], Annotation], path: Path, grid: Geometry | None, source: Path, faults: list[str]
) -> Annotation | None:
    """Read a mask or labels; faults of the file, of its values and of its grid are appended to `faults`."""
    try:
        annotation = examine_file(path)
    except VolumeError as error:
        faults.append(str(error))
        faults += _grid_fault(grid, geometry_of(path), (source, path))
        return None
    faults += annotation.faults
    faults += _grid_fault(grid, annotation.geometry, (source, path))
    return annotation


# All pairs


def _same_content(reports: Sequence[Report]) -> tuple[list[list[str]], list[list[str]]]:
    """For every report, return its images that are also in another split (faults) or of another subject (remarks)."""
    leaks: list[list[str]] = [[] for _ in reports]
    repeats: list[list[str]] = [[] for _ in reports]
    first: dict[str, tuple[Report, Contents]] = {}
    for i, report in enumerate(reports):
        for scan in report.readable:
            if scan.fault:  # empty images are equal and already reported
                continue
            owner, twin = first.setdefault(scan.content, (report, scan))
            same = f"{scan.path} holds the same voxels as {twin.path}"
            if owner.split != report.split:
                leaks[i].append(
                    f"{same}, which is in {owner.split}, and this one in {report.split}; keep it in one split."
                )
            elif owner.subject != report.subject:
                repeats[i].append(f"{same} of subject {owner.subject}, so it counts twice.")
    return leaks, repeats


def _outliers(reports: Sequence[Report], units: Sequence[float]) -> list[list[str]]:
    """For every report, describe the properties of its scans that are far from the median.

    `units` holds the factor from stored values to SUV of each report, 1 for scans that are not PET.
    """
    remarks: list[list[str]] = [[] for _ in reports]
    for role in dict.fromkeys(name for report in reports for name in report.scans):
        scans = {i: scan for i, report in enumerate(reports) if (scan := report.scans.get(role))}
        for name, limit, values in (
            ("voxel size in mm", SPACING_RATIO, {i: scan.geometry.spacing for i, scan in scans.items()}),
            ("size in voxels", SHAPE_RATIO, {i: scan.geometry.shape for i, scan in scans.items()}),
            ("contrast (percentiles 0.1 to 99.9)", CONTRAST_RATIO, _contrasts(scans, units)),
        ):
            for i, text in _far_from_median(values, limit).items():
                remarks[i].append(f"{scans[i].path}: its {name} is {text}.")
    return remarks


def _contrasts(scans: Mapping[int, Contents], units: Sequence[float]) -> dict[int, tuple[float]]:
    return {i: ((scan.window.high - scan.window.low) * units[i],) for i, scan in scans.items() if scan.window}


def _far_from_median(values: Mapping[int, tuple[float, ...]], limit: float) -> dict[int, str]:
    """Describe the values that differ from the median by more than a factor `limit`; all values are positive."""
    if len(values) < _FEWEST:
        return {}
    median = np.median(list(values.values()), axis=0)
    return {
        i: f"{as_text(value)}, the median of all pairs {as_text(median)}"
        for i, value in values.items()
        if np.abs(np.log(np.asarray(value) / median)).max() > np.log(limit)
    }
