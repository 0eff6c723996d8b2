"""Learning curves: the models that a training kept on its way, scored on the split val."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ppdm.checkpoint import NAME
from ppdm.training.on_manifest import kept_model
from ppdm_bench.evaluation.assessment import Assessment, carry_out
from ppdm_bench.evaluation.candidates import Candidate
from ppdm_bench.evaluation.comparison import Measuring, RunSampling, compare_runs
from ppdm_bench.evaluation.trials import Outcome
from ppdm_bench.isolation.sweep import Ledger
from ppdm_bench.records import Record

SPLIT = "val"


def score_curves(
    outcomes: Sequence[Outcome], sampling: RunSampling, folder: Path, tell: Callable[[str], None]
) -> tuple[list[Record], list[str]]:
    """Score the kept models of trainings on one task, and the final ones, and record the scores.

    The records have an option ``curve`` with the share of the steps that were done and their total number. Therefore
    tables, figures and claims on trained methods leave them out.

    Args:
        outcomes: trainings of one task; those without parts are left out.
        sampling: sampling settings.
        folder: folder of the records.
        tell: called with a text on the next prediction.

    Returns:
        The records, and a sentence for each training that lacks models.
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
            for made in carry_out(plan, partial(_tell, tell, plan.task), ledger.earlier):
                records += ledger.keep(made)
    return records, lacking


def _plans(outcome: Outcome, steps: Sequence[int], sampling: RunSampling) -> Iterator[Assessment]:
    trial, total = outcome.trial, outcome.trial.schedule.steps
    if not trial.parts or total is None:
        return
    for step in (*steps, total):
        model = outcome.run if step == total else kept_model(outcome.run, step)
        plan = compare_runs([model], trial.subjects, SPLIT, Measuring(), sampling, lambda done, total: None)
        done = {"share": trial.kept_after.get(step, 1.0), "of": total}
        yield replace(
            plan, candidates=[_on_curve(one, done, trial.budget) for one in plan.candidates], command="quality"
        )


def _on_curve(candidate: Candidate, done: dict[str, float], budget: dict[str, dict[str, float]]) -> Candidate:
    if candidate.untouched:  # equal for all trainings and all shares
        done, budget = {"share": 0.0, "of": 0}, {}
    return replace(candidate, options={**candidate.options, **budget, "curve": done})


def _tell(tell: Callable[[str], None], task: str, text: str) -> None:
    tell(f"{task}, learning curve, {text}")


def _steps(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:3]))}{', …' * (len(numbers) > 3)} steps"
