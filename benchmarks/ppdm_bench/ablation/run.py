"""Execution of an ablation: each cell is trained, scored and recorded before the next cell begins."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from ppdm.evaluation.subjects import EvaluationCase
from ppdm.training.log import StepReport
from ppdm_bench.ablation.cells import Cell
from ppdm_bench.ablation.memory import record_peaks
from ppdm_bench.ablation.plan import Ablation, CellTraining
from ppdm_bench.environment import provenance
from ppdm_bench.evaluation.candidates import Candidate
from ppdm_bench.evaluation.comparison import MetricOptions, compare_runs
from ppdm_bench.evaluation.evaluation_output import failures
from ppdm_bench.evaluation.scoring import EvaluationPlan, carry_out
from ppdm_bench.evaluation.snapshots import save_snapshot
from ppdm_bench.evaluation.trials import Outcome, Trial, carry_out_trials, record_costs
from ppdm_bench.isolation.sweep import RECORDS, Ledger
from ppdm_bench.records import Record, RecordFile, config_id

ShowProgress = Callable[[str, float], None]  # current activity, and the completed fraction of it


@dataclass(frozen=True)
class CellResult:
    """Result of one training, or of one memory prediction.

    Attributes:
        records: the records of the result.
        fault: reason of a failure, as one sentence.
        scored: evaluation of a training, from which pictures are made when all trainings have ended.
        note: advice about a finished training; empty if there is none.
    """

    records: Sequence[Record]
    fault: str = ""
    scored: EvaluationPlan | None = None
    note: str = ""


def record_memory(plan: Ablation, out: Path, show_progress: ShowProgress) -> Iterator[CellResult]:
    """Record the peak memory of every cell, phase by phase."""
    file = RecordFile(out / RECORDS)
    batch_size = plan.schedule.batch_size
    for records in record_peaks(
        plan.present, plan.identity, plan.shapes, batch_size, file, lambda text: show_progress(text, 0.0)
    ):
        bad = [record for record in records if record.status not in ("ok", "oom")]
        yield CellResult(records, f"{bad[0].variant}, memory: {bad[0].reason}" if bad else "")


def train_and_score(
    plan: Ablation, wanted: Sequence[CellTraining], out: Path, show_progress: ShowProgress
) -> Iterator[CellResult]:
    """Run every training and score it when it has ended; finished trainings and scores are reused.

    Raises:
        Interrupted: Ctrl-C or SIGTERM was received; the same command resumes.
        OSError: the folder cannot be written.
    """

    def preparing(made: int, total: int) -> None:
        show_progress(f"making subjects, {made} of {total}", 0.0)

    def show(trial: Trial, report: StepReport) -> None:
        text = f"{trial.subjects.task}, {trial.variation}: loss {report.loss:.4f}"
        show_progress(text, 0.9 * min(report.share, 1.0))

    outcomes = carry_out_trials([work.trial for work in wanted], out, plan.sampling.device, preparing, show)
    yield from score_outcomes(plan, wanted, outcomes, out, show_progress)


def score_outcomes(
    plan: Ablation, wanted: Sequence[CellTraining], outcomes: Iterable[Outcome], out: Path, show_progress: ShowProgress
) -> Iterator[CellResult]:
    """Score and record the result of every training; a lost job is reported, but not recorded as a result."""
    ledger = Ledger(out)
    for work, outcome in zip(wanted, outcomes, strict=True):
        if outcome.lost:
            yield CellResult([], outcome.fault)
        elif outcome.fault:
            yield CellResult(ledger.keep([_failed_training(plan, work, outcome.fault)]), outcome.fault)
        else:
            assessment, records = _score(plan, work, outcome.run, out, ledger, lambda text: show_progress(text, 0.9))
            yield CellResult(records, "; ".join(failures(records)), assessment, outcome.note)


def save_picture_data(scored: Sequence[EvaluationPlan], records: Sequence[Record], out: Path) -> list[Path]:
    """Write picture data, one file per task: the first subject, predicted by the first training of every cell."""
    written = []
    for task in dict.fromkeys(one.task for one in scored):
        of_task = [one for one in scored if one.task == task]
        cells = {one.candidates[0].label: one.candidates for one in reversed(of_task) if one.candidates}
        everything = [candidate for candidates in reversed(cells.values()) for candidate in candidates]
        known = [record for record in records if record.task == task]
        written += save_snapshot(replace(of_task[0], candidates=everything), known, out / task)
    return written


def record_left_out(plan: Ablation, step_times: Mapping[str, Record], out: Path) -> Sequence[Record]:
    """Record the reason for every task and cell that is not trained."""
    reasons = {cell.label: cell.reason for cell in plan.cells if cell.reason}
    reasons |= {label: record.reason for label, record in step_times.items() if record.status != "ok"}
    of = {cell.label: cell for cell in plan.cells}
    more = {"budgets": {"steps": plan.schedule.steps}}
    made = [
        _without_value(plan, of[label], subjects.task, "skipped", reason, more)
        for subjects in plan.sets
        for label, reason in reasons.items()
    ]
    return Ledger(out).keep(made)


def _score(
    plan: Ablation, work: CellTraining, run: Path, out: Path, ledger: Ledger, show_progress: Callable[[str], None]
) -> tuple[EvaluationPlan, list[Record]]:
    measuring = MetricOptions(grids=plan.grids)
    subjects = work.trial.subjects
    found = compare_runs([run], subjects, plan.split, measuring, plan.sampling)
    seconds: dict[int | None, list[float]] = {}
    candidates = [_as_cell_candidate(plan, work, one, seconds) for one in found.candidates if not one.untouched]
    assessment = replace(found, candidates=candidates, command="ablate")
    records: list[Record] = []
    for made in carry_out(assessment, lambda text: show_progress(f"{subjects.task}, {text}"), ledger.earlier):
        records += ledger.keep(made)
    paced = [_volume_seconds(assessment, one, seconds[one.steps]) for one in candidates if seconds.get(one.steps)]
    records += ledger.keep(paced) or _earlier_volume_seconds(assessment, ledger.earlier)
    return assessment, [*records, *record_costs(assessment, out)]


def _as_cell_candidate(
    plan: Ablation, work: CellTraining, candidate: Candidate, seconds: dict[int | None, list[float]]
) -> Candidate:
    """Return the candidate with the label of the cell; its predictions are timed."""

    def predict(case: EvaluationCase) -> Tensor:
        began = time.perf_counter()
        volume = candidate.predict(case)  # it returns a CPU tensor, so that the device has finished
        seconds.setdefault(candidate.steps, []).append(time.perf_counter() - began)
        return volume

    options = {**candidate.options, "cell": work.cell.describe(plan.identity), "budgets": dict(work.budgets)}
    options["batch_size"] = plan.schedule.batch_size
    return replace(candidate, variant=work.cell.label, predict=predict, options=options)


def _volume_seconds(assessment: EvaluationPlan, candidate: Candidate, seconds: Sequence[float]) -> Record:
    """Return the record of the seconds per translation, including reading and scaling."""
    return Record(
        **assessment.fields(candidate, _timed_options(assessment, candidate)),
        metric="volume_seconds",
        value=median(seconds),
        stat="median",
        n=len(seconds),
        samples=tuple(seconds),
    )


def _timed_options(assessment: EvaluationPlan, candidate: Candidate) -> dict[str, Any]:
    return {**candidate.options, "data": dict(assessment.data), "sampling_seed": candidate.seed}


def _earlier_volume_seconds(assessment: EvaluationPlan, earlier: Sequence[Record]) -> list[Record]:
    """Return the records ``volume_seconds`` that an earlier run measured when it scored these candidates."""
    wanted = [config_id(_timed_options(assessment, candidate)) for candidate in assessment.candidates]
    return [one for one in earlier if one.metric == "volume_seconds" and one.config_id in wanted]


def _failed_training(plan: Ablation, work: CellTraining, fault: str) -> Record:
    more = {"budgets": dict(work.budgets), "training": {"seed": work.trial.schedule.seed}}
    return _without_value(plan, work.cell, work.trial.subjects.task, "error", fault, more)


def _without_value(plan: Ablation, cell: Cell, task: str, status: str, reason: str, more: dict[str, Any]) -> Record:
    return Record(
        **provenance({"cell": cell.describe(plan.identity), **more}),
        command="ablate",
        method=cell.method.name,
        variant=cell.label,
        task=task,
        phase="train",
        metric="psnr",
        unit="dB",
        kind="measured",
        status=status,
        reason=reason,
        device=plan.sampling.device,
    )
