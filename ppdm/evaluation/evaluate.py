"""How good translations are: a prediction of each case's target, and every metric of it.

Axes: a volume (D, H, W), physical values: SUV in PET, the target's units in MRI.

What makes numbers comparable is fixed before any prediction is seen:

- the data range of PSNR and SSIM is that of the scaling (:func:`data_range`), one for all subjects and methods;
- metrics are taken inside the case's mask where it has one (above 0), else in the whole volume; the seam index, which
  needs whole lines of voxels, always in the whole volume;
- the seam index is taken at the same lattices for everything that is compared (:func:`lattices`): a grid of period 4
  stands at a quarter and at half of the sampling frequency, one of period 2 at half alone, so the index of one lattice
  cannot stand beside that of another;
- in PET the bias of uptake is taken in every labelled region, and in each connected part of what is named lesion;
- where a representation is learned, the PSNR of targets that it encodes and decodes stands beside (:func:`ceiling`);
- the input stands beside the predictions (:func:`untranslated`): it says what doing nothing gives.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from torch import Tensor

from ppdm.checkpoint import Trained
from ppdm.data.regions import LESIONS
from ppdm.data.scaling import PercentileScaling, Scaling, SUVScaling
from ppdm.evaluation.subjects import Case, CaseError, CaseFiles
from ppdm.method import Method
from ppdm.metrics import MetricError, Preset, connected_regions, default_preset, seam_index, suv_bias
from ppdm.pixel_puzzle import Factor
from ppdm.translation import other_spacing, reconstruct_volume, translate_volume

PSNR, SEAM = "psnr", "seam_index"
CEILING = "reconstruction_"  # before the name of a metric of a target that was encoded and decoded
UPTAKE = ("suv_mean_bias", "suv_max_bias")


def predict(trained: Trained, case: Case, seed: int = 0) -> Tensor:
    """The translation of a case's source, (D, H, W) float32 on the CPU, in the units of its target.

    Raises:
        CaseError: the case has no source.
        IntensityError, TranslationError: as for :func:`ppdm.translation.translate_volume`.
    """
    source = _source(case)
    _warn_of_spacing(trained, case)
    return translate_volume(trained, source, seed=seed, suv_factor=1.0 if case.in_suv else None)


def ceiling(trained: Trained, case: Case) -> Tensor:
    """The case's target, encoded and decoded again: (D, H, W) float32 on the CPU, in its own units.

    Raises:
        CaseError: the case has no source, which MRI's scaling is taken from.
        IntensityError, TranslationError: as for :func:`ppdm.translation.reconstruct_volume`.
    """
    return reconstruct_volume(trained, _source(case), case.target, 1.0 if case.in_suv else None)


def untranslated(scaling: Scaling, case: Case) -> Tensor:
    """The source itself as a prediction: in PET as it is, in MRI mapped linearly onto the range of the targets.

    The map is the scaling's, from which a network starts too; so what a method adds to it is seen.

    Raises:
        CaseError: the case has no source.
        IntensityError: it has no contrast.
    """
    source = _source(case)
    if isinstance(scaling, SUVScaling):
        return source
    source_scale, target_scale = scaling.scales(source.numpy())
    return target_scale.inverse(source_scale.forward(source))


def data_range(scaling: Scaling) -> float:
    """The span that PSNR and SSIM are relative to: of the scaling's targets in MRI, from 0 to its ceiling in PET.

    Training fixed it, from its own targets or by decree (20 SUV); no image that is scored changes it.
    """
    return scaling.target.high - scaling.target.low if isinstance(scaling, PercentileScaling) else scaling.ceiling


def lattices(methods: Iterable[Method]) -> list[Factor]:
    """The lattices at which a grid could stand in what any of the methods makes; 2 where none has one."""
    cells = dict.fromkeys(method.representation.cell for method in methods)
    found: list[Factor] = [cell[0] if len(set(cell)) == 1 else cell for cell in cells if max(cell) > 1]
    return found or [2]


def convention(span: float, grids: Iterable[Factor] = (2,)) -> Preset:
    """The project's own preset, with a seam index for each lattice: ``seam_index_r4``, ``seam_index_r1x2x2``.

    Args:
        span: the data range.
        grids: the lattices.
    """
    preset = default_preset(span)
    return replace(preset, metrics={**preset.metrics, **{_seam_name(r): partial(_seam, r) for r in grids}})


@dataclass(frozen=True)
class Score:
    """One metric of one prediction.

    Attributes:
        metric: its name in the preset.
        value: finite, or None where there is none.
        reason: why there is none, in words.
        samples: what the value is the mean of, such as one bias a lesion; empty where it is one number.
    """

    metric: str
    value: float | None
    reason: str = ""
    samples: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """Of the value; empty for that of the volumes."""
        return unit_of(self.metric)


def scores(preset: Preset, prediction: Tensor, case: Case) -> list[Score]:
    """Every metric of a preset; one that cannot be computed does not lose the others."""
    metrics = dict(preset.metrics)
    if case.mask is not None and bool((case.mask > 0).any()):
        metrics |= preset.masked
    found = [_score(name, partial(metric, prediction, case.target, case.mask)) for name, metric in metrics.items()]
    return found + (list(_uptake(prediction, case)) if preset.uptake and case.in_suv else [])


def ceiling_scores(preset: Preset, reconstruction: Tensor, case: Case) -> list[Score]:
    """PSNR of a reconstructed target as the preset has it, ``reconstruction_psnr``; nothing if it has none."""
    chosen = [
        {name: metric for name, metric in metrics.items() if name.startswith(PSNR)}
        for metrics in (preset.metrics, preset.masked)
    ]
    found = scores(replace(preset, metrics=chosen[0], masked=chosen[1], uptake=False), reconstruction, case)
    return [replace(score, metric=CEILING + score.metric) for score in found]


def unit_of(metric: str) -> str:
    """The unit of a metric by its name in a preset; empty for that of the volumes."""
    metric = metric.removeprefix(CEILING)
    if metric.startswith((PSNR, SEAM)):
        return "dB"
    return "%" if metric.endswith("_error") or metric.startswith(UPTAKE) else "" if metric == "mae" else "1"


def check_kind(trained: Trained, cases: Sequence[CaseFiles], name: str) -> None:
    """Refuse a method of MRI for PET and one of PET for MRI, before anything is computed.

    As in training, what has an ``suv_factor`` is PET and what has none is MRI.

    Args:
        trained: the method.
        cases: what it is to translate.
        name: what the message calls it.

    Raises:
        CaseError: the two do not go together.
    """
    in_suv = isinstance(trained.scaling, SUVScaling)
    for files in cases:
        if in_suv and files.suv_factor is None:
            raise CaseError(
                f"{name} was trained on PET, but {files.name} has no suv_factor; give it in the manifest (1 where "
                "files hold SUV), or a method that was trained on MRI."
            )
        if not in_suv and files.suv_factor is not None:
            raise CaseError(
                f"{name} was trained on MRI, but {files.name} has an suv_factor, which makes it PET; give a method "
                "that was trained on PET, or pairs without factors."
            )


def _source(case: Case) -> Tensor:
    if case.source is None:
        raise CaseError(f"{case.name} has no source, which a prediction is made from; give one.")
    return case.source


def _warn_of_spacing(trained: Trained, case: Case) -> None:
    if sizes := other_spacing(trained, case.grid.spacing):
        warnings.warn(
            f"Scans have voxels of {sizes[0]} mm, and {trained.method.name} was trained on {sizes[1]} mm.", stacklevel=3
        )


def _seam_name(factor: Factor) -> str:
    return f"{SEAM}_r{factor if isinstance(factor, int) else 'x'.join(map(str, factor))}"


def _seam(factor: Factor, prediction: Tensor, target: Tensor, _: Tensor | None) -> Tensor:
    return seam_index(prediction, target, factor)


def _uptake(prediction: Tensor, case: Case) -> Iterator[Score]:
    """Bias of SUVmean and of SUVmax in each region that the case has, the mean over lesions where there are several."""
    if case.labels is None:
        return
    there = {int(number) for number in case.labels.unique()} - {0}
    names = case.regions if case.regions is not None else {number: str(number) for number in sorted(there)}
    for number, name in names.items():
        if number in there:
            inside = case.labels == number
            parts = connected_regions(inside) if name in LESIONS else inside.long()
            yield from _region_scores(name, prediction, case.target, parts)


def _region_scores(name: str, prediction: Tensor, target: Tensor, parts: Tensor) -> Iterator[Score]:
    metrics = [f"{metric}_{name}" for metric in UPTAKE]
    try:
        biases = suv_bias(prediction, target, parts).values()
    except MetricError as fault:
        yield from (Score(metric, None, str(fault)) for metric in metrics)
        return
    for metric, each in zip(metrics, ([b.suv_mean for b in biases], [b.suv_max for b in biases]), strict=True):
        yield Score(metric, fmean(each), samples=tuple(each) if name in LESIONS else ())


def _score(metric: str, compute: "partial[Tensor | float]") -> Score:
    try:
        value = float(compute())
    except MetricError as fault:
        return Score(metric, None, str(fault))
    if not math.isfinite(value):
        return Score(metric, None, f"It is {value:g}: the prediction equals its target wherever it is measured.")
    return Score(metric, value)
