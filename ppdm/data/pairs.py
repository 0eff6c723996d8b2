"""Pairs of a manifest, converted to network values.

Axes: a volume (D, H, W), float32; several sources of a pair are one array (S, D, H, W).
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from ppdm.data.contents import NOT_HU, resembles_hu
from ppdm.data.manifest import Pair, load_pair, mixed_sources, mixed_units, read_manifest
from ppdm.data.normalise import HounsfieldWindow, Intensity, IntensityError, Range, percentile_range, pooled_range
from ppdm.data.scaling import PercentileScaling, Scaling, SUVScaling

ArrayPair = tuple[np.ndarray, np.ndarray]


class PairsError(ValueError):
    """Pairs are unsuitable for training; the message gives the pair and the remedy."""


class TrainingSet(Sequence[ArrayPair]):
    """The pairs of a manifest as network values, read from disk on access.

    Each source is scaled by its own percentiles, and all targets by constants pooled over the subjects. If every pair
    has an ``suv_factor``, all volumes are scaled in SUV instead. CT, which ``source_intensity`` and
    ``target_intensity`` of the pairs mark, is scaled by its window in HU. All pairs have the same sources. Training
    does not use the masks of the pairs, which only mark where quality is measured.

    Args:
        pairs: the training pairs; the constructor reads each volume once to compute the constants.
        keep: maximum bytes of volumes to keep in memory; other volumes are read again on each access.
        resample: whether to interpolate targets on other grids onto the grids of their sources; otherwise they are
            refused.
        scaling: scaling of another set to use for these pairs, also for their sources, as in translation; if given, no
            target statistic is computed.

    Attributes:
        scaling: the conversion from intensities to network values; an input of :class:`ppdm.checkpoint.Trained`.
        spacing: median voxel size in mm along D, H, W.
        sources: names of the sources of every pair, in their order.

    Raises:
        PairsError: there are no pairs, only some have a factor or an intensity, their sources differ, a volume has no
            contrast, or the scaling is for another modality.
        VolumeError: a volume cannot be read, or the volumes of a pair are not on one grid.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        keep: int = 8 << 30,
        *,
        resample: bool = False,
        scaling: Scaling | None = None,
    ) -> None:
        self.pairs, self.resample, self._room = tuple(pairs), resample, keep
        self._kept: dict[int, tuple[np.ndarray, ...]] = {}
        _check(self.pairs)
        in_suv = self.pairs[0].suv_factor is not None
        self.sources = tuple(self.pairs[0].sources)
        if scaling is not None and in_suv != isinstance(scaling, SUVScaling):
            wanted, got = ("PET", "MRI or CT") if isinstance(scaling, SUVScaling) else ("MRI or CT", "PET")
            raise PairsError(
                f"The scaling is for {wanted}, but these pairs are {got}; an suv_factor marks PET, so give pairs "
                "of one modality."
            )
        source_window, target_window = (_window(self.pairs, role) for role in ("source", "target"))
        if isinstance(scaling, PercentileScaling):
            source_window = scaling.source
        not_hu: list[Path] = []
        spacings: list[tuple[float, float, float]] = []
        self._sources: list[list[Range]] = []
        targets: list[Range] = []
        for index, pair in enumerate(self.pairs):
            volumes = load_pair(pair, resample=resample)
            self._keep(index, tuple(volume.data for volume in volumes))
            spacings.append(volumes[0].spacing)
            windows = [*[source_window] * len(self.sources), target_window]
            *sources, target = zip(pair.scans, (volume.data for volume in volumes), windows, strict=True)
            not_hu += [path for path, data, window in (*sources, target) if window and not resembles_hu(data)]
            if not in_suv:
                self._sources.append([window or _range(path, data, scaling) for path, data, window in sources])
                if scaling is None and target_window is None:
                    targets.append(_range(pair.target, volumes[-1].data))
        _warn_of_units(not_hu)
        d, h, w = np.median(spacings, axis=0).tolist()
        self.spacing = (d, h, w)
        self.scaling: Scaling = scaling or (
            SUVScaling(stored=all(pair.suv_factor == 1 for pair in self.pairs))
            if in_suv
            else PercentileScaling(target_window or pooled_range(targets), source=source_window)
        )

    @classmethod
    def from_manifest(
        cls, path: str | os.PathLike[str], split: str = "train", *, resample: bool = False
    ) -> "TrainingSet":
        """Make a training set from one split of a manifest.

        Raises:
            ManifestError: the manifest has faults.
            PairsError, VolumeError: as for the class.
        """
        pairs = [pair for pair in read_manifest(path) if pair.split == split]
        if not pairs:
            raise PairsError(f"{path} has no pairs in the split {split!r}; mark some rows with it.")
        return cls(pairs, resample=resample)

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> ArrayPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[ArrayPair]: ...
    def __getitem__(self, index: int | slice) -> ArrayPair | list[ArrayPair]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        *sources, target = self._kept.get(index) or self._read(index)
        source_scales, target_scale = self._scales(index, sources)
        scaled = [scale.forward(source) for scale, source in zip(source_scales, sources, strict=True)]
        return np.stack(scaled) if len(scaled) > 1 else scaled[0], target_scale.forward(target)

    def _scales(self, index: int, sources: Sequence[np.ndarray]) -> tuple[Sequence[Intensity], Intensity]:
        if isinstance(self.scaling, SUVScaling):
            scales = [self.scaling.scales(source, self.pairs[index].suv_factor) for source in sources]
            return [source for source, _ in scales], scales[0][1]
        return self._sources[index], self.scaling.target

    def _read(self, index: int) -> tuple[np.ndarray, ...]:
        return tuple(volume.data for volume in load_pair(self.pairs[index], resample=self.resample))

    def _keep(self, index: int, volumes: tuple[np.ndarray, ...]) -> None:
        size = sum(volume.nbytes for volume in volumes)
        if size <= self._room:
            self._room -= size
            self._kept[index] = volumes


def _check(pairs: Sequence[Pair]) -> None:
    if not pairs:
        raise PairsError("There are no pairs to train on; mark rows of the manifest with the split 'train'.")
    for fault in (*mixed_units(pairs), *mixed_sources(pairs)):
        raise PairsError(fault)


def _window(pairs: Sequence[Pair], role: str) -> HounsfieldWindow | None:
    """Return the window in HU of all sources or targets; None if they are not CT."""
    windows: list[HounsfieldWindow | None] = [getattr(pair, f"{role}_intensity") for pair in pairs]
    if other := next((i for i, window in enumerate(windows) if window != windows[0]), None):
        raise PairsError(
            f"The {role}_intensity of subject {pairs[0].subject} is {windows[0]}, and that of {pairs[other].subject} "
            f"{windows[other]}; give all pairs the same."
        )
    return windows[0]


def _warn_of_units(paths: Sequence[Path]) -> None:
    if paths:
        which = f"{paths[0]} has" if len(paths) == 1 else f"{len(paths)} volumes, such as {paths[0]}, have"
        warnings.warn(f"{which} {NOT_HU}.", stacklevel=3)


def _range(path: Path, volume: np.ndarray, scaling: Scaling | None = None) -> Range:
    """Return the range that maps to [-1, +1], from percentiles of the volume or those of a given scaling."""
    ends = (scaling.low, scaling.high) if isinstance(scaling, PercentileScaling) else ()
    try:
        return percentile_range(volume, *ends)
    except IntensityError as error:
        raise PairsError(f"{path}: {error}") from None
