"""Evaluation plans from the user's options: runs on pairs, or folders of predictions with a folder of targets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ppdm import Method
from ppdm.data.normalise import HounsfieldWindow, percentile_range, pooled_range
from ppdm.data.scaling import PercentileScaling, Scaling, SUVScaling
from ppdm.data.volume import read_volume
from ppdm.evaluation.evaluate import block_grids, check_kind, convention, data_range, in_units_of
from ppdm.evaluation.subjects import CaseError, CaseFiles, files_of
from ppdm.metrics import PRESETS, Preset
from ppdm.metrics.hounsfield import SPAN
from ppdm.pixel_puzzle import Factor
from ppdm_bench.commands.pair_sources import ProgressCallback, Subjects, require_pairs
from ppdm_bench.evaluation.candidates import (
    Candidate,
    input_candidate,
    read_folders,
    read_predictions,
    read_runs,
    run_candidates,
)
from ppdm_bench.evaluation.scoring import EvaluationPlan
from ppdm_bench.records import Record


@dataclass(frozen=True)
class MetricOptions:
    """Options of the metrics.

    Attributes:
        convention: convention of a challenge, a name in :data:`ppdm.metrics.PRESETS`; None means the project's own.
        span: data range; None means that of the scaling. Only for the project's own convention.
        grids: block grids on which seams are measured; None means those of the methods. Only for the project's own
            convention.

    Raises:
        ValueError: the convention does not exist, or does not support an option.
    """

    convention: str | None = None
    span: float | None = None
    grids: Sequence[Factor] | None = None

    def __post_init__(self) -> None:
        if self.convention is None:
            return
        if self.convention not in PRESETS:
            raise ValueError(f"there is no convention {self.convention!r}; there are {', '.join(PRESETS)}")
        if self.span is not None or self.grids is not None:
            raise ValueError(f"the convention {self.convention} fixes data range and metrics; leave these options out")

    def preset(
        self, spans: Mapping[str, float], grids: Sequence[Factor], unit: str = ""
    ) -> tuple[Preset, float | None]:
        """Return the metrics and their data range.

        Args:
            spans: data range of each run's scaling, by the name of the run.
            grids: the block grids of the methods.
            unit: unit of the targets; for HU the data range is fixed.

        Raises:
            CaseError: the data ranges of the runs differ, and the user gave none; or the user gave one for HU.
        """
        if self.convention is not None:
            return PRESETS[self.convention], None
        if unit == "HU":
            if self.span is not None:
                raise CaseError(f"CT is scored with the fixed data range of {SPAN:g} HU; leave --data-range out.")
            return convention(SPAN, self.grids or grids, unit), SPAN
        if self.span is None and len(set(spans.values())) > 1:
            known = ", ".join(f"{name}: {span:g}" for name, span in spans.items())
            raise CaseError(f"The runs were trained on targets of different ranges ({known}); give one --data-range.")
        span = next(iter(spans.values())) if self.span is None else self.span
        return convention(span, self.grids or grids), span


@dataclass(frozen=True)
class RunSampling:
    """Sampling settings of runs.

    Attributes:
        device: cuda or cpu.
        steps: numbers of network evaluations, one candidate for each; None selects the method's own number.
        precision: precision of the network; None means that of the training.
        seed: seed of the noise.
        samples: number of samples per volume whose mean is scored, for methods whose sampling uses noise; None means
            one sample.
    """

    device: str = "cpu"
    steps: Sequence[int | None] = (None,)
    precision: str | None = None
    seed: int = 0
    samples: int | None = None

    def samples_differ(self, method: Method) -> bool:
        """Whether several samples are requested and differ, for any of the numbers of network evaluations."""
        counts = [method.sampling.steps if count is None else count for count in self.steps]
        points = (replace(method, sampling=replace(method.sampling, steps=count)) for count in counts)
        return self.samples is not None and any(point.is_random for point in points)


SAMPLES_NEED_NOISE = (
    "--samples is for methods whose sampling uses noise, and none of these does: all samples would be equal; leave it "
    "out, or train with --set sampling.stochastic=true"
)


def compare_runs(
    runs: Sequence[Path],
    source: Subjects,
    split: str,
    how: MetricOptions,
    sampling: RunSampling,
    progress: ProgressCallback = lambda done, total: None,
    predictions: Sequence[Path] = (),
    known: Sequence[Method] = (),
    earlier: Sequence[Record] = (),
) -> EvaluationPlan:
    """Plan a comparison of runs, folders of existing predictions, and the input, on the pairs of a split.

    The data range is that of the runs; without runs it is computed from the targets, as in :func:`compare_folders`.

    Args:
        runs, predictions: folders of runs and of predictions.
        source, split: the pairs.
        how, sampling: options of the metrics and of the sampling.
        progress: called with the number of phantoms that exist and the number required.
        known, earlier: as for :func:`ppdm_bench.evaluation.candidates.read_runs`.

    Raises:
        CaseError: there are no pairs, or runs, predictions and pairs are incompatible.
        CheckpointError: a run cannot be read.
        ManifestError: the manifest is invalid.
        TranslationError: a method does not support the sampling settings.
    """
    loaded = read_runs(runs, sampling.device, known, earlier)
    everything = source.pairs(progress)
    require_pairs(source, Counter(pair.split for pair in everything), split, "choose another --split")
    cases = files_of([pair for pair in everything if pair.split == split])
    for run in loaded:
        check_kind(run.trained, cases, str(run.place))
    methods = [run.trained for run in loaded]
    cases = in_units_of(methods, cases)
    scaling = methods[0].scaling if methods else _scaling(cases)
    spans = {str(run.place): data_range(run.trained.scaling) for run in loaded} or {str(source): data_range(scaling)}
    preset, span = how.preset(spans, block_grids(trained.method for trained in methods), cases[0].unit)
    candidates = [input_candidate(scaling)]
    for run in loaded:
        candidates += run_candidates(run, sampling.steps, sampling.precision, sampling.seed, sampling.samples)
    taken = list(dict.fromkeys((candidate.method, candidate.variant) for candidate in candidates))
    candidates += read_predictions(predictions, cases, taken)
    data = {**source.identify(), "split": split}
    return EvaluationPlan(cases, candidates, preset, span, source.task, data, source.resample)


def compare_folders(
    predictions: Sequence[Path],
    targets: Path,
    beside: Mapping[str, Path | None],
    suv_factor: float | None,
    how: MetricOptions,
    intensities: Mapping[str, HounsfieldWindow],
) -> EvaluationPlan:
    """Plan a comparison of folders of predictions with a folder of targets; given sources are candidates too.

    The data range is computed from the targets as for training: it is the median of their percentile ranges. For PET it
    is 20 SUV, for CT (which ``intensities`` declare) 4024 HU.

    Raises:
        CaseError: the files do not match.
        IntensityError, VolumeError: a target has no contrast, or cannot be read.
    """
    cases, candidates = read_folders(predictions, targets, beside, suv_factor)
    windows: Mapping[str, Any] = intensities
    cases = [replace(case, **windows) for case in cases]
    scaling = _scaling(cases)
    preset, span = how.preset({str(targets): data_range(scaling)}, block_grids([]), cases[0].unit)
    if beside.get("source") is not None:
        candidates.insert(0, input_candidate(scaling))
    name = targets.absolute().name
    return EvaluationPlan(cases, candidates, preset, span, name, {"targets": name, "suv_factor": suv_factor})


def reference_label(candidates: Sequence[Candidate], reference: str | None, earlier: Sequence[Record] = ()) -> str:
    """Return the label of the row that differences are taken from; ``reference`` is its label, run or folder.

    It may also be a label of earlier records that the tables show. Without ``reference``, it is the first candidate.

    Raises:
        ValueError: no candidate has this label or path.
    """
    if reference is None:
        return candidates[0].label
    for candidate in candidates:
        if reference == candidate.label or (candidate.origin is not None and Path(reference) == candidate.origin):
            return candidate.label
    before = [record.label for record in earlier if record.subject]
    if reference in before:
        return reference
    known = ", ".join(dict.fromkeys([*(candidate.label for candidate in candidates), *before]))
    raise ValueError(f"there is no {reference!r} to take differences from; there are {known}")


def _scaling(cases: Sequence[CaseFiles]) -> Scaling:
    if cases[0].suv_factor is not None:
        return SUVScaling()
    target = cases[0].target_intensity or pooled_range(
        [percentile_range(read_volume(case.target).data) for case in cases]
    )
    return PercentileScaling(target, source=cases[0].source_intensity)
