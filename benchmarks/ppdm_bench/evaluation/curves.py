"""Learning curves: scores on the split val of the models that were kept during a training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ppdm.checkpoint import NAME
from ppdm.training.on_manifest import kept_model
from ppdm_bench.evaluation.candidates import Candidate
from ppdm_bench.evaluation.comparison import MetricOptions, RunSampling, compare_runs
from ppdm_bench.evaluation.scoring import EvaluationPlan, carry_out
from ppdm_bench.evaluation.trials import Outcome
from ppdm_bench.isolation.sweep import Ledger
from ppdm_bench.records import Record

CURVE_SPLIT = "val"


def score_curves(
    outcomes: Sequence[Outcome], sampling: RunSampling, folder: Path, show_progress: Callable[[str], None]
) -> tuple[list[Record], list[str]]:
    """Score the kept and the final models of trainings on one task, and record the scores.

    The records have an option ``curve`` with the share of finished steps and the total number of steps. By this option,
    tables, figures and claims about trained methods leave them out.

    Args:
        outcomes: trainings of one task; those without learning curves (``parts`` is 0) are left out.
        sampling: sampling settings.
        folder: folder of the records.
        show_progress: called with a text on the next prediction.

    Returns:
        The records, and a sentence for each training with missing models.
    """
    ledger, lacking = Ledger(folder), []
    records: list[Record] = []
    for outcome in outcomes:
        models = {step: kept_model(outcome.run, step) for step in outcome.trial.kept_after}
        if absent := [step for step, model in models.items() if not (model / NAME).exists()]:
            lacking.append(
                f"{outcome.trial.subjects.task}, {outcome.trial.label}: the models after {_steps(absent)} were not "
                "kept, because the training began without --curve; the curve lacks them"
            )
        for plan in _plans(outcome, [step for step in models if step not in absent], sampling):
            for made in carry_out(plan, partial(_show_curve_progress, show_progress, plan.task), ledger.earlier):
                records += ledger.keep(made)
    return records, lacking


def _plans(outcome: Outcome, steps: Sequence[int], sampling: RunSampling) -> Iterator[EvaluationPlan]:
    trial, total = outcome.trial, outcome.trial.schedule.steps
    if not trial.parts or total is None:
        return
    for step in (*steps, total):
        model = outcome.run if step == total else kept_model(outcome.run, step)
        plan = compare_runs([model], trial.subjects, CURVE_SPLIT, MetricOptions(), sampling)
        done = {"share": trial.kept_after.get(step, 1.0), "of": total}
        yield replace(
            plan, candidates=[_as_curve_point(one, done, trial.budget) for one in plan.candidates], command="quality"
        )


def _as_curve_point(candidate: Candidate, done: dict[str, float], budget: dict[str, dict[str, float]]) -> Candidate:
    if candidate.untouched:  # the input has the same score for all trainings and shares
        done, budget = {"share": 0.0, "of": 0}, {}
    return replace(candidate, options={**candidate.options, **budget, "curve": done})


def _show_curve_progress(show_progress: Callable[[str], None], task: str, text: str) -> None:
    show_progress(f"{task}, learning curve, {text}")


def _steps(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:3]))}{', …' * (len(numbers) > 3)} steps"
