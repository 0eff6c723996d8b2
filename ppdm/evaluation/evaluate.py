"""Evaluation of translations: predict each case's target and compute every metric of the prediction.

Axes: a volume (D, H, W) of physical values: SUV in PET, the target's units in MRI.

The conventions below are fixed before any prediction is made, so that numbers are comparable:

- The data range of PSNR and SSIM is that of the scaling (:func:`data_range`), the same for all subjects and methods.
- CT has metrics of its own, in HU and with a fixed data range (:func:`ppdm.metrics.ct_preset`).
- Metrics are computed inside the case's mask (above 0) if it has one, else in the whole volume. The seam index needs
  whole lines of voxels, so it is always computed in the whole volume.
- The seam index is computed on the same block grids for all compared methods (:func:`block_grids`). A grid of period 4
  has peaks at a quarter and at half of the sampling frequency, a grid of period 2 only at half. Therefore indices of
  different block grids are not comparable. The border ratio is computed on the same grids, inside the mask.
- In PET, the bias of uptake is computed in every labelled region, and in each connected component of a lesion label.
- With several samples, their mean is scored. A further score shows whether their standard deviation is large where the
  error is large (:func:`deviation_score`). Methods that use no noise in sampling have one sample and no such score.
- If a representation is learned, the PSNR of encoded and decoded targets is reported too (:func:`reconstruct_target`).
- The untranslated input is scored too (:func:`untranslated`), as a baseline.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ppdm.checkpoint import Trained
from ppdm.data.normalise import HounsfieldWindow
from ppdm.data.regions import LESIONS
from ppdm.data.scaling import PercentileScaling, Scaling, SUVScaling
from ppdm.evaluation.subjects import CaseError, CaseFiles, EvaluationCase
from ppdm.method import Method
from ppdm.metrics import (
    MetricError,
    Preset,
    border_ratio,
    connected_regions,
    ct_preset,
    default_preset,
    seam_index,
    suv_bias,
)
from ppdm.metrics.hounsfield import SPAN
from ppdm.metrics.uncertainty import DEVIATION_RANK, deviation_rank
from ppdm.pixel_puzzle import Factor
from ppdm.sources import described_sources
from ppdm.translation import other_spacing, reconstruct_volume, translate_samples, translate_volume

PSNR, SEAM, BORDER = "psnr", "seam_index", "border_ratio"
RECONSTRUCTION = "reconstruction_"  # prefix of the metrics of an encoded and decoded target
UPTAKE = ("suv_mean_bias", "suv_max_bias")


def predict(trained: Trained, case: EvaluationCase, seed: int = 0) -> Tensor:
    """Translate a case's source; returns (D, H, W) float32 on the CPU, in the units of its target.

    Raises:
        CaseError: the case has no source.
        IntensityError, TranslationError: as for :func:`ppdm.translation.translate_volume`.
    """
    source = _source_for(trained, case)
    return translate_volume(trained, source, seed=seed, suv_factor=1.0 if case.in_suv else None)


def predict_samples(trained: Trained, case: EvaluationCase, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Translate a case's source several times; return the mean and the standard deviation, each as :func:`predict`.

    Raises:
        CaseError: the case has no source.
        IntensityError, TranslationError: as for :func:`ppdm.translation.translate_samples`.
    """
    source = _source_for(trained, case)
    return translate_samples(trained, source, samples, seed=seed, suv_factor=1.0 if case.in_suv else None)


def reconstruct_target(trained: Trained, case: EvaluationCase) -> Tensor:
    """Encode and decode the case's target; returns (D, H, W) float32 on the CPU, in the target's units.

    Raises:
        CaseError: the case has no source, from which the scaling of MRI is computed.
        IntensityError, TranslationError: as for :func:`ppdm.translation.reconstruct_volume`.
    """
    return reconstruct_volume(trained, _source(case), case.target, 1.0 if case.in_suv else None)


def untranslated(scaling: Scaling, case: EvaluationCase) -> Tensor:
    """Return the source as a prediction: unchanged in PET and from CT to CT, else mapped to the range of the targets.

    The linear map is that of the scaling. The input of a network is scaled in the same way, so the difference in score
    is the contribution of the method. With several sources, the prediction is the mean of the mapped sources.

    Raises:
        CaseError: the case has no source.
        IntensityError: the source has no contrast.
    """
    source = _source(case)
    if source.ndim == 4:
        return torch.stack([untranslated(scaling, replace(case, source=one)) for one in source]).mean(0)
    if isinstance(scaling, SUVScaling) or (scaling.source and scaling.unit):
        return source
    source_scale, target_scale = scaling.scales(source.numpy())
    return target_scale.inverse(source_scale.forward(source))


def data_range(scaling: Scaling) -> float:
    """Return the data range of PSNR and SSIM: the range of the scaling's targets in MRI, 0 to its ceiling in PET.

    It is fixed before evaluation: by the training targets in MRI, by a constant in PET (20 SUV) and in CT (4024 HU,
    whatever the window of the training). It does not depend on the scored images.
    """
    if scaling.unit == "HU":
        return SPAN
    return scaling.target.high - scaling.target.low if isinstance(scaling, PercentileScaling) else scaling.ceiling


def block_grids(methods: Iterable[Method]) -> list[Factor]:
    """Return the block grids that the output of any of the methods may show; 2 if no method has one.

    A block grid is the grid of puzzle cells, given by its puzzle factor.
    """
    cells = dict.fromkeys(method.representation.cell for method in methods)
    found: list[Factor] = [cell[0] if len(set(cell)) == 1 else cell for cell in cells if max(cell) > 1]
    return found or [2]


def convention(span: float, grids: Iterable[Factor] = (2,), unit: str = "") -> Preset:
    """Return the project's preset, with seam index and border ratio per block grid, such as ``border_ratio_r1x2x2``.

    Args:
        span: data range of PSNR and SSIM.
        grids: block grids of both.
        unit: unit of the targets; for HU, the preset is that of CT, whose data range is fixed.
    """
    preset, grids = ct_preset() if unit == "HU" else default_preset(span), list(grids)
    seams = {_name_on_grid(SEAM, r): partial(_seam, r) for r in grids}
    borders = {_name_on_grid(BORDER, r): partial(_border, r) for r in grids}
    return replace(preset, metrics={**preset.metrics, **seams, **borders})


@dataclass(frozen=True)
class Score:
    """One metric of one prediction.

    Attributes:
        metric: its name in the preset.
        value: a finite number, or None if the metric cannot be computed.
        reason: why there is no value; empty if there is one.
        samples: the numbers whose mean is the value, such as one bias for each lesion; empty for a single number.
    """

    metric: str
    value: float | None
    reason: str = ""
    samples: tuple[float, ...] = ()


def scores(preset: Preset, prediction: Tensor, case: EvaluationCase) -> list[Score]:
    """Compute every metric of a preset; a metric that fails does not affect the others."""
    metrics = dict(preset.metrics)
    if case.mask is not None and bool((case.mask > 0).any()):
        metrics |= preset.masked
    found = [_score(name, partial(metric, prediction, case.target, case.mask)) for name, metric in metrics.items()]
    return found + (list(_uptake(prediction, case)) if preset.uptake and case.in_suv else [])


def reconstruction_scores(preset: Preset, reconstruction: Tensor, case: EvaluationCase) -> list[Score]:
    """Return the preset's PSNR of a reconstructed target, ``reconstruction_psnr``; empty if the preset has no PSNR."""
    chosen = [
        {name: metric for name, metric in metrics.items() if name.startswith(PSNR)}
        for metrics in (preset.metrics, preset.masked)
    ]
    found = scores(replace(preset, metrics=chosen[0], masked=chosen[1], uptake=False), reconstruction, case)
    return [replace(score, metric=RECONSTRUCTION + score.metric) for score in found]


def deviation_score(deviation: Tensor, prediction: Tensor, case: EvaluationCase) -> Score:
    """Return the rank correlation of the deviation over samples and the error, ``deviation_rank``, inside the mask."""
    return _score(DEVIATION_RANK, partial(deviation_rank, deviation, prediction, case.target, case.mask))


def unit_of(metric: str, volumes: str = "") -> str:
    """Return the unit of a metric, from its name in a preset and from the unit of the volumes."""
    metric = metric.removeprefix(RECONSTRUCTION)
    if metric.startswith((PSNR, SEAM, BORDER)):
        return "dB"
    return "%" if metric.endswith("_error") or metric.startswith(UPTAKE) else volumes if metric == "mae" else "1"


def in_units_of(trained: Iterable[Trained], cases: Sequence[CaseFiles]) -> list[CaseFiles]:
    """Return cases whose volumes are CT if a method was trained on CT, whatever the manifest says.

    Predictions of methods that were not trained on CT have the units of their targets too, so all share the metrics.
    """
    ct = next((one.scaling for one in trained if one.scaling.unit == "HU"), None)
    if not isinstance(ct, PercentileScaling) or not isinstance(ct.target, HounsfieldWindow):
        return list(cases)
    windows: dict[str, Any] = {"source_intensity": ct.source, "target_intensity": ct.target}
    return [replace(files, **windows) for files in cases]


def check_kind(trained: Trained, cases: Sequence[CaseFiles], name: str) -> None:
    """Check, before any computation, that a method and its cases have the same modality (PET or not) and sources.

    As in training, a case with an ``suv_factor`` is PET and a case without one is MRI or CT. Sources are matched by
    name; a single source may have any name.

    Args:
        trained: the trained method.
        cases: the cases to translate.
        name: name of the method in the error message.

    Raises:
        CaseError: the modalities differ, or the sources.
    """
    wanted = trained.method.sources
    for files in cases:
        if {*files.sources} != {*wanted} and (len(files.sources) > 1 or len(wanted) > 1):
            raise CaseError(
                f"{name} was trained on {described_sources(wanted)}, but {files.name} has "
                f"{described_sources(tuple(files.sources))}; give pairs with the sources of the training."
            )
    in_suv = isinstance(trained.scaling, SUVScaling)
    for files in cases:
        if in_suv and files.suv_factor is None:
            raise CaseError(
                f"{name} was trained on PET, but {files.name} has no suv_factor; give it in the manifest (1 where "
                "files hold SUV), or a method that was trained on MRI."
            )
        if not in_suv and files.suv_factor is not None:
            kind = "CT" if trained.scaling.unit else "MRI"
            raise CaseError(
                f"{name} was trained on {kind}, but {files.name} has an suv_factor, which makes it PET; give a method "
                "that was trained on PET, or pairs without factors."
            )


def _source(case: EvaluationCase) -> Tensor:
    if case.source is None:
        raise CaseError(f"{case.name} has no source, and a prediction needs one; give a source.")
    return case.source


def _source_for(trained: Trained, case: EvaluationCase) -> Tensor:
    """Return the source of a case, or its sources in the order of the method; warn if the voxel sizes differ."""
    source = _source(case)
    if len(trained.method.sources) > 1:
        source = source[[case.source_names.index(name) for name in trained.method.sources]]
    if sizes := other_spacing(trained, case.grid.spacing):
        warnings.warn(
            f"Scans have voxels of {sizes[0]} mm, and {trained.method.name} was trained on {sizes[1]} mm.", stacklevel=2
        )
    return source


def _name_on_grid(metric: str, factor: Factor) -> str:
    return f"{metric}_r{factor if isinstance(factor, int) else 'x'.join(map(str, factor))}"


def _seam(factor: Factor, prediction: Tensor, target: Tensor, _: Tensor | None) -> Tensor:
    return seam_index(prediction, target, factor)


def _border(factor: Factor, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    return border_ratio(prediction, target, factor, mask)


def _uptake(prediction: Tensor, case: EvaluationCase) -> Iterator[Score]:
    """Yield the bias of SUVmean and SUVmax in each region of the case; the mean over lesions if there are several."""
    if case.labels_fault:
        yield from (Score(f"{metric}_labels", None, case.labels_fault) for metric in UPTAKE)
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


def _score(metric: str, compute: Callable[[], Tensor | float]) -> Score:
    try:
        value = float(compute())
    except MetricError as fault:
        return Score(metric, None, str(fault))
    if not math.isfinite(value):
        return Score(metric, None, f"It is {value:g}: the prediction equals its target wherever it is measured.")
    return Score(metric, value)
