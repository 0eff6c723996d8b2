"""Candidates for evaluation: trained methods, existing predictions, and the input itself."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ppdm import Method
from ppdm.checkpoint import Trained, load
from ppdm.data.formats import SCANS
from ppdm.data.formats import scans_in as scans_by_name
from ppdm.data.scaling import Scaling
from ppdm.evaluation.evaluate import predict, predict_samples, reconstruct_target, untranslated
from ppdm.evaluation.subjects import CaseError, CaseFiles, EvaluationCase, read_prediction
from ppdm.translation import adapt
from ppdm_bench.configuration import variant_of
from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.units import plural

INPUT = "input"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A source of predictions, one for each case.

    Attributes:
        method, variant: names in the records; candidates with the same names differ only in their steps.
        predict: returns the prediction of a case, (D, H, W), in the units of its target.
        options: all settings that affect the predictions, without the case, as JSON values.
        steps: network evaluations for one volume; None without a network.
        own_steps: the number of network evaluations that the method uses by default.
        precision: precision of the network's arithmetic.
        device: device on which predictions are made.
        seed: seed of the noise.
        files: existing predictions by case name.
        untouched: whether the prediction is the unchanged input.
        origin: run or folder from which the candidate comes.
        ceiling: returns the target of a case after encoding and decoding by a learned representation; None without one.
        deviation: returns the standard deviation of the samples whose mean is the prediction; None for one sample.
    """

    method: str
    variant: str
    predict: Callable[[EvaluationCase], Tensor]
    options: Mapping[str, Any]
    steps: int | None = None
    own_steps: int | None = None
    precision: str = ""
    device: str = "cpu"
    seed: int | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    untouched: bool = False
    origin: Path | None = None
    ceiling: Callable[[EvaluationCase], Tensor] | None = None
    deviation: Callable[[EvaluationCase], Tensor] | None = None

    @property
    def label(self) -> str:
        """Method and variant, as one string."""
        return f"{self.method} {self.variant}".strip()

    @property
    def text(self) -> str:
        """Name for progress bars and titles."""
        evaluations = "" if self.steps is None else plural(self.steps, "evaluation")
        return ", ".join(filter(None, (self.label, evaluations)))


def input_candidate(scaling: Scaling) -> Candidate:
    """Return the candidate whose prediction is the source, see :func:`ppdm.evaluation.evaluate.untranslated`."""
    return Candidate(INPUT, "", partial(untranslated, scaling), {"scaling": scaling.to_dict()}, untouched=True)


def candidates_to_draw(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return one candidate for every method and variant except the input.

    It is the candidate with the method's own number of network evaluations or, if there is none, with the most.
    """
    alike = grouped((one for one in candidates if not one.untouched), lambda one: one.label)
    return [max(several, key=lambda one: (one.steps == one.own_steps, one.steps or 0)) for several in alike.values()]


@dataclass(frozen=True, eq=False)
class RunToScore:
    """A loaded run, with its name in tables.

    Attributes:
        place: its folder, or its file of weights.
        trained: the model.
        weights: digest of the weights, 12 hexadecimal digits.
        variant: see :func:`read_runs`.
    """

    place: Path
    trained: Trained
    weights: str
    variant: str


def read_runs(
    runs: Sequence[Path], device: str, known: Sequence[Method], earlier: Sequence[Record]
) -> list[RunToScore]:
    """Load the checkpoints of runs, and name their rows.

    The name of a row consists of the differences from the registered method
    (:func:`ppdm_bench.configuration.variant_of`) and the seed of the training unless it is 0 (:func:`row_name`). If two
    runs then have the same name, the names of their folders are added.

    Args:
        runs: folders, or files of weights.
        device: cuda or cpu.
        known: methods that count as registered, such as a user's own.
        earlier: records in the same tables; a run with other weights gets another name.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    loaded = [load(run, device=device) for run in runs]
    weights = [_weights_digest(one.network) for one in loaded]
    places = [(run.parent if run.is_file() else run).absolute().name for run in runs]
    labels = [(one.method.name, row_name(one.method, one.seed, known)) for one in loaded]
    taken = {(r.method, r.variant) for r in earlier if r.options.get("weights") not in {None, *weights}}
    variants = _unique_variants(labels, places, [*taken])
    return [RunToScore(*each) for each in zip(runs, loaded, weights, variants, strict=True)]


def row_name(method: Method, seed: int, known: Sequence[Method]) -> str:
    """Return the variant in the name of a row, see :func:`read_runs`.

    Args:
        method: the method.
        seed: seed of its training.
        known: methods that count as registered.
    """
    return f"{variant_of(method, known)} {f's{seed}' if seed else ''}".strip()


def run_candidates(
    run: RunToScore, steps: Sequence[int | None], precision: str | None, seed: int, samples: int | None
) -> list[Candidate]:
    """Return one candidate for each distinct number of network evaluations; None selects the method's own number.

    With ``samples``, a method whose sampling uses noise predicts the mean of that number of samples, which its variant
    states: `r=2 mean of 8`.

    Raises:
        TranslationError: the method does not support these steps or this precision.
    """
    counts = dict.fromkeys(run.trained.method.sampling.steps if k is None else k for k in steps)
    adapted = [adapt(run.trained, steps=k, precision=precision) for k in counts]
    made = [_trained_candidate(run, one, seed) for one in adapted]
    if samples is None:
        return made
    return [
        _with_samples(candidate, one, samples, seed) if one.method.is_random else candidate
        for candidate, one in zip(made, adapted, strict=True)
    ]


def read_folders(
    predictions: Sequence[Path], targets: Path, beside: Mapping[str, Path | None], suv_factor: float | None
) -> tuple[list[CaseFiles], list[Candidate]]:
    """Return cases and candidates from folders; files are matched by their names without suffix.

    Args:
        predictions, targets: the folders.
        beside: folders of the other files of a case (source, mask, labels), by their names in
            :class:`ppdm.evaluation.subjects.CaseFiles`.
        suv_factor: factor that converts all values to SUV; None for no conversion.

    Raises:
        CaseError: a path is not a folder, a folder is empty, or a file has no counterpart.
    """
    wanted = scans_in(targets)
    others: dict[str, dict[str, Any]] = {}
    for role, folder in beside.items():
        if folder is not None:
            others[role] = scans_in(folder)
            _require_counterparts(folder, others[role], targets, wanted, both=False)
    cases = [
        CaseFiles(name, path, suv_factor=suv_factor, **{role: found[name] for role, found in others.items()})
        for name, path in wanted.items()
    ]
    made = [scans_in(folder) for folder in predictions]
    for folder, files in zip(predictions, made, strict=True):
        _require_counterparts(folder, files, targets, wanted, both=True)
    return cases, _existing_predictions(predictions, made)


def read_predictions(
    folders: Sequence[Path], cases: Sequence[CaseFiles], taken: Sequence[tuple[str, str]]
) -> list[Candidate]:
    """Return candidates from folders of predictions, with one file per case: ``<case>.nii.gz`` or ``<case>.nii``.

    Files of other cases are ignored, so that a folder may hold predictions of all splits.

    Args:
        folders: the folders.
        cases: the cases; the file of a case ``subject/scan`` is in a subfolder with the name of the subject.
        taken: method and variant of the other candidates.

    Raises:
        CaseError: a path is not a folder, or a case has no file.
    """
    return _existing_predictions(folders, [_prediction_files(folder, cases) for folder in folders], taken)


def _prediction_files(folder: Path, cases: Sequence[CaseFiles]) -> dict[str, Path]:
    if not folder.is_dir():
        raise CaseError(f"{folder} is not a folder; name one that holds .nii or .nii.gz files.")
    places = {case.name: [folder / f"{case.name}{suffix}" for suffix in (".nii.gz", ".nii")] for case in cases}
    found = {name: path for name, paths in places.items() for path in paths if path.is_file()}
    if absent := [name for name in places if name not in found]:
        raise CaseError(
            f"{len(absent)} of {plural(len(places), 'case')} have no prediction in {folder} ({_few(absent)}); name "
            f"each file after its case, such as {places[absent[0]][0]}."
        )
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def scans_in(folder: Path) -> dict[str, Path]:
    """Return the scans of a folder by name without suffix, sorted; a subfolder with a DICOM series is one scan.

    Raises:
        CaseError: the path is not a folder, the folder has no scan, or two scans have the same name.
    """
    if not folder.is_dir():
        raise CaseError(f"{folder} is not a folder; name one that holds scans ({SCANS}).")
    found = scans_by_name(folder)
    if not found:
        raise CaseError(f"{folder} holds no scan ({SCANS}); name the folder that does.")
    for first, *others in found.values():
        if others:
            raise CaseError(f"{folder} has both {first.name} and {others[0].name}; remove one of the two.")
    return {name: path for name, (path,) in found.items()}


def _trained_candidate(run: RunToScore, trained: Trained, seed: int) -> Candidate:
    method = trained.method
    return Candidate(
        method.name,
        run.variant,
        partial(predict, trained, seed=seed),
        {
            "width": method.width,
            "resolved": method.to_dict(),
            "training": {"steps": trained.steps, "seed": trained.seed},
            "weights": run.weights,
        },
        steps=method.sampling.steps,
        own_steps=run.trained.method.sampling.steps,
        precision=method.network.precision,
        device=next(trained.network.parameters()).device.type,
        seed=seed,
        origin=run.place,
        ceiling=partial(reconstruct_target, trained) if method.representation.is_learned else None,
    )


def _with_samples(candidate: Candidate, trained: Trained, samples: int, seed: int) -> Candidate:
    # The last case is cached, so that one sampling gives its mean and its standard deviation.
    moments = lru_cache(maxsize=1)(partial(predict_samples, trained, samples=samples, seed=seed))
    return replace(
        candidate,
        variant=f"{candidate.variant} mean of {samples}".strip(),
        predict=lambda case: moments(case)[0],
        deviation=lambda case: moments(case)[1],
        options={**candidate.options, "samples": samples},
    )


def _existing_predictions(
    folders: Sequence[Path], found: Sequence[Mapping[str, Path]], taken: Sequence[tuple[str, str]] = ()
) -> list[Candidate]:
    """Return the candidate of each folder; ``found`` gives its files by case."""
    labels = [(folder.absolute().name, "") for folder in folders]
    variants = _unique_variants(labels, [folder.absolute().parent.name for folder in folders], taken)
    return [
        Candidate(name, variant, partial(_read_file, files), {"predictions": name}, files=files, origin=folder)
        for folder, files, (name, _), variant in zip(folders, found, labels, variants, strict=True)
    ]


def _read_file(files: Mapping[str, Path], case: EvaluationCase) -> Tensor:
    return read_prediction(files[case.name], case)


def _weights_digest(network: nn.Module) -> str:
    """Return the digest of the weights, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _unique_variants(
    labels: Sequence[tuple[str, str]], places: Sequence[str], taken: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """Return unique variants: a shared label is extended by the place of the run and, if necessary, by a number."""
    shared = Counter([*labels, *taken])
    seen = Counter([(INPUT, ""), *taken])
    variants = []
    for (method, variant), place in zip(labels, places, strict=True):
        name = f"{variant} {place}".strip() if shared[method, variant] > 1 else variant
        seen[method, name] += 1
        variants.append(name if seen[method, name] == 1 else f"{name} #{seen[method, name]}")
    return variants


def _require_counterparts(
    folder: Path, found: Mapping[str, Path], targets: Path, wanted: Mapping[str, Path], both: bool
) -> None:
    """Raise an error if a target has no counterpart or, with ``both``, if a file in ``found`` has no target."""
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys()) if both else []
    for names, there, absent in ((missing, targets, folder), (extra, folder, targets)):
        if names:
            raise CaseError(
                f"{len(names)} of the files in {there} have no counterpart in {absent} ({_few(names)}); files are "
                "matched by name, so add the missing files or remove these."
            )
