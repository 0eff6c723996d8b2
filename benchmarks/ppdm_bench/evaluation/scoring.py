"""Scoring of every candidate on every case: predict, score and record, one case after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ppdm.data.volume import VolumeError
from ppdm.evaluation.evaluate import Score, deviation_score, reconstruction_scores, scores, unit_of
from ppdm.evaluation.subjects import CaseFiles, EvaluationCase, read_case
from ppdm.metrics import Preset
from ppdm_bench.environment import provenance
from ppdm_bench.evaluation.candidates import Candidate, candidates_to_draw
from ppdm_bench.records import Record

CACHE_BYTES = 1 << 30  # bytes of predictions that are cached for pictures


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation to carry out: what is scored, on which cases, and by which metrics.

    Attributes:
        cases, candidates: every candidate is evaluated on every case.
        preset: the metrics.
        span: data range of the preset; None if the preset defines its own.
        task: name of the data in the records.
        data: origin of the cases, as JSON values.
        resample: whether targets on other grids are interpolated onto those of their sources.
        command: name of the calling command in the records.
    """

    cases: Sequence[CaseFiles]
    candidates: Sequence[Candidate]
    preset: Preset
    span: float | None
    task: str
    data: Mapping[str, Any]
    resample: bool = False
    command: str = "evaluate"
    _made: dict[tuple[str, int | None, str], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def predict(self, candidate: Candidate, case: EvaluationCase) -> Tensor:
        """Return the prediction of a case, (D, H, W); the caller must not modify it.

        A prediction may take a thousand network evaluations, and pictures need some predictions again. Therefore the
        predictions that :func:`candidates_to_draw` selects are cached, up to `CACHE_BYTES` in total.
        """
        key = (candidate.label, candidate.steps, case.name)
        if key in self._made:
            return self._made[key]
        made = candidate.predict(case)
        pictured = any(candidate is one for one in candidates_to_draw(self.candidates))
        if pictured and sum(x.nbytes for x in (*self._made.values(), made)) <= CACHE_BYTES:
            self._made[key] = made
        return made

    @property
    def convention(self) -> dict[str, Any]:
        """The convention of the metrics, as JSON values."""
        return {"preset": self.preset.name, "data_range": self.span, "metrics": [*self.preset.metrics]}

    def fields(self, candidate: Candidate, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that all records of a candidate share; ``options`` determine their identifier."""
        return {
            **provenance(options),
            "command": self.command,
            "method": candidate.method,
            "variant": candidate.variant,
            "task": self.task,
            "phase": "sample" if candidate.steps else "",
            "precision": candidate.precision,
            "steps": candidate.steps,
            "kind": "measured",
            "seed": candidate.seed,
            "device": candidate.device,
        }


def carry_out(
    plan: EvaluationPlan, progress: Callable[[str], None] = lambda _: None, known: Sequence[Record] = ()
) -> Iterator[list[Record]]:
    """Score every candidate on every case, case by case, and yield the records of each prediction when it is scored.

    If reading, translation or scoring fails, a record gives the reason, and the other predictions are scored.

    Args:
        plan: the evaluation to carry out.
        progress: called with a text on the next prediction.
        known: records of earlier runs. They are reused if the same code in the same environment scored the candidate on
            files with the same content.
    """
    for files in plan.cases:
        read = cache(partial(read_case, files, resample=plan.resample))
        for candidate in plan.candidates:
            progress(f"{files.name}: {candidate.text}")
            common = _common_fields(plan, candidate, files)
            yield _earlier_scores(common, known) or _score(plan, candidate, read, common)


def _score(
    plan: EvaluationPlan, candidate: Candidate, read: Callable[[], EvaluationCase], common: dict[str, Any]
) -> list[Record]:
    try:
        case = read()
        prediction = plan.predict(candidate, case)
        found = scores(plan.preset, prediction, case)
        if candidate.deviation is not None:
            found.append(deviation_score(candidate.deviation(case), prediction, case))
        if candidate.ceiling is not None:
            found += reconstruction_scores(plan.preset, candidate.ceiling(case), case)
    except torch.OutOfMemoryError as error:
        return _without_value(plan, common | {"status": "oom", "reason": str(error).split(". ")[0]})
    except (ValueError, RuntimeError) as error:  # volumes and methods can fail in many ways
        return _without_value(plan, common | {"status": "error", "reason": str(error)})
    common |= {"shape": tuple(case.target.shape), "spacing": case.grid.spacing}
    return [_record(score, plan.preset.unit, common) for score in found]


def _record(score: Score, unit: str, common: dict[str, Any]) -> Record:
    known = {"value": score.value, "samples": score.samples}
    outcome = known if score.value is not None else {"status": "error", "reason": score.reason}
    return Record(metric=score.metric, unit=unit_of(score.metric, unit), **common | outcome)


def _without_value(plan: EvaluationPlan, common: dict[str, Any]) -> list[Record]:
    return [Record(metric=metric, unit=unit_of(metric, plan.preset.unit), **common) for metric in plan.preset.metrics]


def _earlier_scores(common: Mapping[str, Any], known: Sequence[Record]) -> list[Record]:
    if common["env"]["dirty"] or not common["options"]["files"]:  # code or files may have changed
        return []
    same = [record for record in known if _identity(vars(record)) == _identity(common)]
    return same if all(record.status == "ok" for record in same) else []


def _identity(fields: Mapping[str, Any]) -> list[Any]:
    return [*(fields[name] for name in ("config_id", "subject", "device", "env")), fields["options"].get("files")]


def _common_fields(plan: EvaluationPlan, candidate: Candidate, files: CaseFiles) -> dict[str, Any]:
    about = {"data": dict(plan.data), "convention": plan.convention, "sampling_seed": candidate.seed}
    common = plan.fields(candidate, {**candidate.options, **about})
    # The digest is added after the identifier, so that all cases of a candidate share the identifier.
    options = common["options"] | {"files": _files_digest(candidate, files)}
    return common | {"n": 1, "subject": files.name, "options": options}


def _files_digest(candidate: Candidate, files: CaseFiles) -> str:
    """Return the digest of the files of a case, ``+`` and one with the prediction file; empty if one is unreadable."""
    prediction = candidate.files.get(files.name)
    try:
        return files.digest() + (f"+{files.digest(prediction)}" if prediction else "")
    except (OSError, VolumeError):
        return ""
