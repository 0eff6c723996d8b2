"""Trials: trainings of methods and their variations on tasks with one budget, each in its own folder."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ppdm import Method
from ppdm.training.log import StepReport, last_step, untrained_note
from ppdm.training.run import LOG, Run
from ppdm.training.schedule import Schedule, parts
from ppdm_bench.commands.pair_sources import ProgressCallback, Subjects
from ppdm_bench.commands.training_run import train_run
from ppdm_bench.configuration import find_method, with_width
from ppdm_bench.evaluation.candidates import Candidate
from ppdm_bench.evaluation.scoring import EvaluationPlan
from ppdm_bench.isolation.sweep import RECORDS
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.variation import Assignment, assignments_text, effective, parse_assignments, vary, with_assignments

RUNS = "runs"


@dataclass(frozen=True)
class Trial:
    """A method to train on a task.

    Attributes:
        variation: difference from the registered method, such as ``kernel.gamma=1``; empty for the method itself.
        method: the varied method.
        subjects: the training data.
        schedule: duration and seed of the training.
        seconds: training time from which the steps of the schedule were computed; None if they were given.
        parts: number of equal parts of the training, after each of which the model is kept and scored; 0 for none.
    """

    variation: str
    method: Method
    subjects: Subjects
    schedule: Schedule
    seconds: float | None = None
    parts: int = 0

    @property
    def label(self) -> str:
        """Method and variation."""
        return f"{self.method.name} {self.variation}".strip()

    @property
    def budget(self) -> dict[str, dict[str, float]]:
        """The option of records that states the training time; empty if the steps were not computed from one."""
        return {} if self.seconds is None else {"budgets": {"time": self.seconds}}

    @property
    def kept_after(self) -> dict[int, float]:
        """The share of all steps at each step after which the model is kept; only steps of the last stage count."""
        steps, first = self.schedule.steps, parts(self.method)[-1].begin
        if steps is None:
            return {}
        shares = (part / self.parts for part in range(1, self.parts))
        return {step: share for share in shares if share > first and 0 < (step := round(share * steps)) < steps}

    def folder(self, out: Path) -> Path:
        """Return the folder of the run; tables distinguish runs of one method by the name of this folder."""
        seed = f" s{self.schedule.seed}" if self.schedule.seed else ""
        name = re.sub(r"[^A-Za-z0-9_.=,+()-]+", "-", f"{self.variation or 'default'}{seed}").strip("-")
        return out / self.subjects.task / RUNS / self.method.name / name


@dataclass(frozen=True)
class Outcome:
    """Result of a trial: its run, or the reason why there is none.

    Attributes:
        lost: whether its cluster job was lost, which is no failure of the trial itself.
        note: advice about a finished training; empty if there is none.
    """

    trial: Trial
    run: Path
    fault: str = ""
    lost: bool = False
    note: str = ""


def plan_trials(
    tasks: Sequence[Subjects],
    methods: Sequence[str],
    variations: Sequence[str],
    schedule: Schedule,
    seeds: Sequence[int],
    width: int | None = None,
    starts: Sequence[str] = (),
) -> list[Trial]:
    """Return a trial of every method and each of its variations, on every task with every seed, without duplicates.

    Args:
        tasks: the training data of each task.
        methods: registered names, or ``module:ATTRIBUTE``.
        variations: ``name=a,b``, applied to each method, one at a time.
        schedule: the budget of every trial.
        seeds: seeds of weights, order, times and noise.
        width: channels of the finest level; None means each method's own.
        starts: ``name=value``, set in each method before the variations are applied.

    Raises:
        ValueError: a method or a variation does not exist.
    """
    start = effective(one for text in starts for one in parse_assignments(text))
    points = [point for name in methods for point in _points(with_width(find_method(name), width), start, variations)]
    return [
        Trial(variation, method, subjects, replace(schedule, seed=seed))
        for subjects in tasks
        for variation, method in points
        for seed in seeds
    ]


def check_resumable(wanted: Sequence[Trial], out: Path) -> None:
    """Check before any training that no folder of a trial has a run on other data.

    Raises:
        RunError: a folder has such a run.
    """
    for trial in wanted:
        Run(trial.folder(out), resume=True, asked=trial.subjects.identify()).check({})


def carry_out_trials(
    wanted: Sequence[Trial],
    out: Path,
    device: str,
    preparing: ProgressCallback = lambda made, total: None,
    show: Callable[[Trial, StepReport], None] = lambda trial, report: None,
) -> Iterator[Outcome]:
    """Train the trials in sequence; a finished trial is not trained again, an interrupted one resumes.

    A trial that cannot be trained, such as one that diverges, is reported and does not affect the others.

    Args:
        wanted: the trials to train.
        out: folder of all trials.
        device: device for the training.
        preparing: called with the number of phantoms that exist and the number required.
        show: called after every step.

    Raises:
        Interrupted: Ctrl-C or SIGTERM was received; the current trial has a checkpoint.
        OSError: the folder cannot be written.
    """
    for trial in wanted:
        folder = trial.folder(out)
        run = Run(folder, resume=True, asked=trial.subjects.identify())
        try:
            train_run(
                trial.method,
                trial.subjects,
                trial.schedule,
                run,
                device,
                preparing,
                lambda report, trial=trial: show(trial, report),  # type: ignore[misc]
                keep_after=trial.kept_after,
            )
        except ValueError as error:
            yield Outcome(trial, folder, f"{trial.subjects.task}, {trial.label}: {error}")
        else:
            note = untrained_note(run.log)
            yield Outcome(trial, folder, note=note and f"{trial.subjects.task}, {trial.label}: {note}")


def with_budgets(plan: EvaluationPlan, outcomes: Sequence[Outcome]) -> EvaluationPlan:
    """Return the plan of ``quality`` with the budget of each training in the options of its candidate."""
    budgets = {outcome.run: outcome.trial.budget for outcome in outcomes}
    known = [
        one if one.origin is None else replace(one, options={**one.options, **budgets[one.origin]})
        for one in plan.candidates
    ]
    return replace(plan, candidates=known, command="quality")


def record_costs(plan: EvaluationPlan, folder: Path) -> list[Record]:
    """Record the training cost of each run of a plan, unless the folder already has it.

    The records are ``train_seconds``, ``train_steps`` and, after a training on several GPUs, ``train_peak_allocated``.

    Args:
        plan: the evaluation whose candidates come from runs.
        folder: folder of its records.

    Returns:
        The records of all costs, as in the file.
    """
    file = RecordFile(folder / RECORDS)
    known = {(record.config_id, record.metric): record for record in file.read() if not record.subject}
    runs = {one.origin: one for one in plan.candidates if one.origin is not None}
    costs = [record for candidate in runs.values() for record in _costs(plan, candidate)]
    file.append(record for record in costs if (record.config_id, record.metric) not in known)
    return [known.get((record.config_id, record.metric), record) for record in costs]


def _costs(plan: EvaluationPlan, candidate: Candidate) -> Iterator[Record]:
    assert candidate.origin is not None
    steps, seconds, peaks = last_step(candidate.origin / LOG)
    options = {key: value for key, value in candidate.options.items() if key != "sampling_seed"}
    about = plan.fields(candidate, options | {"data": dict(plan.data)})
    seed = candidate.options["training"]["seed"]
    about |= {"phase": "train", "precision": "", "steps": None, "seed": seed}
    costs: list[tuple[str, float, str, tuple[int, ...]]]
    costs = [("train_seconds", seconds, "s", ()), ("train_steps", steps, "1", ())]
    if peaks:  # of several GPUs
        costs.append(("train_peak_allocated", max(peaks), "B", peaks))
    for metric, value, unit, samples in costs:
        stat, n = ("max", len(samples)) if samples else ("", 1)
        yield Record(**about, metric=metric, value=value, unit=unit, stat=stat, n=n, samples=samples)


def _points(method: Method, start: Sequence[Assignment], variations: Sequence[str]) -> Iterator[tuple[str, Method]]:
    """Yield the start method and its variations without duplicates, each with a label."""
    method = with_assignments(method, start) if start else method
    seen = {}
    for label, point in [("", method), *((p.label, p.method) for text in variations for p in vary(method, text))]:
        if point not in seen:
            seen[point] = label
            yield "+".join(filter(None, (assignments_text(start), label))), point
