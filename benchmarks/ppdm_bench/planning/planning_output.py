"""Output of ``ppdm-bench plan``: records of every answer, and the table and figure made from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppdm_bench.commands.terminal import progress
from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.isolation.sweep import RECORDS, Ledger
from ppdm_bench.memory.command import target_environment
from ppdm_bench.memory.host import host_sentence
from ppdm_bench.planning.duration import duration_table, durations, durations_of
from ppdm_bench.planning.outlook import NoOutlook, OutlookCase, Question, ask_all, predictor
from ppdm_bench.planning.questions import Bounds, CapacityAnswer, question
from ppdm_bench.planning.search import CasePrediction, SearchResult
from ppdm_bench.predictor.cards import Sheet
from ppdm_bench.predictor.target import GIB, Target
from ppdm_bench.records import PURPOSES, Record, config_id
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.largest_cube import budget_figure
from ppdm_bench.report.tables.budget import gather_plan, plan_page
from ppdm_bench.report.tables.render import Page


@dataclass(frozen=True)
class CapacityPlan:
    """Requests of ``ppdm-bench plan``.

    Attributes:
        configurations: requested configurations.
        purposes: ``train`` or ``sample``, each with the phases of a learned representation; None means both.
        target: the card, with its capacity.
        spacing: voxel spacing in mm of the scan that gives the volume size.
        bounds: bounds of the search.
        steps: number of training steps, to predict the duration; None predicts no duration.
        sheet: data sheet of the card; needed with ``steps``.
    """

    configurations: Sequence[Configuration]
    purposes: Sequence[str] | None
    target: Target
    spacing: tuple[float, ...] = ()
    bounds: Bounds = field(default_factory=Bounds)
    steps: int | None = None
    sheet: Sheet | None = None

    @property
    def asked(self) -> list[tuple[Configuration, str]]:
        """Every configuration with each of its phases."""
        return [
            (one, phase)
            for one in self.configurations
            for phase in one.resolve().phases
            if self.purposes is None or PURPOSES[phase] in self.purposes
        ]


class PlanInterrupted(KeyboardInterrupt):
    """Ctrl-C during a plan; ``records`` contains the answers found before."""

    def __init__(self, records: list[Record]) -> None:
        super().__init__()
        self.records = records


def collect(plan: CapacityPlan, workers: int | None = None) -> list[Record]:
    """Answer all questions with a progress bar and return the records.

    Raises:
        PlanInterrupted: Ctrl-C was received.
    """
    asked = plan.asked
    questions = [question(one, phase, plan.target, plan.bounds) for one, phase in asked]
    found: dict[int, list[Record]] = {}
    times: list[Record] = []

    def keep(number: int, answer: CapacityAnswer | NoOutlook) -> None:
        one, phase = asked[number]
        if isinstance(answer, NoOutlook):
            found[number] = [_record(plan, one, one, phase, "fits", status="error", reason=str(answer))]
        else:
            found[number] = _records(plan, answer)

    def records() -> list[Record]:
        return [record for _, those in sorted(found.items()) for record in those] + times

    try:
        _answer(plan, questions, workers, keep)
        if plan.steps is not None and plan.sheet is not None:
            fitting = [asked[number] for number, those in sorted(found.items()) if those[0].value]
            times += durations(fitting, plan.steps, plan.sheet)
    except KeyboardInterrupt:
        raise PlanInterrupted(records()) from None
    return records()


def _answer(
    plan: CapacityPlan,
    questions: Sequence[Question[CapacityAnswer]],
    workers: int | None,
    keep: Callable[[int, CapacityAnswer | NoOutlook], None],
) -> None:
    with progress() as bar, predictor(plan.target, workers) as submit:
        shown = bar.add_task("loading", total=len(questions))

        def show(answered: int, made: int, case: OutlookCase) -> None:
            what = case.configuration
            text = f"{made} predictions; {what.name} {case.phase} {'×'.join(map(str, what.shape))}"
            bar.update(shown, completed=answered, description=text)

        ask_all(questions, submit, show, keep)


def present(records: Sequence[Record], folder: Path | None, columns: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """Return the table and its summary as text, and the written files; without a folder nothing is written.

    The files also contain earlier answers in the folder to the same request: budget, size, batch size and options.
    """
    if folder is None:
        return _page(records).plus(host_sentence(records)).to_text(columns), []
    ledger = Ledger(folder)
    ledger.keep(records)
    requests = {_request(record) for record in records}
    shown = [*(one for one in ledger.earlier if one.command == "plan" and _request(one) in requests), *records]
    page = _page(shown)
    written = [folder / RECORDS, *page.save(folder / "plan", columns)]
    lines = gather_plan(shown)
    if any(line.cube is not None for line in lines):
        written += style.save(budget_figure(lines), folder / "plan")
    return page.plus(host_sentence(shown)).to_text(columns), written


def _page(records: Sequence[Record]) -> Page:
    """Return the page: table, summary and durations."""
    return plan_page(gather_plan(records), durations_of(records)).plus(duration_table(records))


def _request(record: Record) -> tuple[object, ...]:
    return record.shape, record.batch_size, str(record.options["plan"])


def failures(records: Sequence[Record]) -> list[str]:
    """Return one sentence for each failed question."""
    return [record.reason for record in records if record.status == "error"]


def _records(plan: CapacityPlan, answer: CapacityAnswer) -> list[Record]:
    asked, phase, bounds = answer.requested, answer.phase, plan.bounds

    def edge(case: int) -> int:
        return case * bounds.step

    def factor(case: int) -> int:
        return bounds.factors[-case] if case else 0

    def found(one: Configuration, metric: str, found: SearchResult, named: Callable[[int], int]) -> Record:
        return _record(plan, asked, one, phase, metric, **_found(found, named))

    records = [*_verdict(plan, asked, asked, phase, answer.fits), found(asked, "largest_resolution", answer.cube, edge)]
    if answer.batch is not None:
        records.append(found(asked, "largest_batch", answer.batch, int))
    if answer.factor is not None:
        records.append(found(asked, "smallest_factor", answer.factor, factor))
    for one, prediction in answer.options.items():
        records += _verdict(plan, asked, one, phase, prediction)
    if answer.least_memory_cube:
        records.append(found(answer.least_memory_cube[0], "largest_resolution", answer.least_memory_cube[1], edge))
    return records


def _verdict(
    plan: CapacityPlan, asked: Configuration, one: Configuration, phase: str, prediction: CasePrediction
) -> list[Record]:
    records = [_record(plan, asked, one, phase, "fits", value=int(prediction.fits), unit="1")]
    if not prediction.brief:
        records.append(_record(plan, asked, one, phase, "needs", value=prediction.need))
    if prediction.host is not None:
        records.append(_record(plan, asked, one, phase, "peak_host", value=prediction.host))
    return records


def _found(found: SearchResult, named: Callable[[int], int]) -> dict[str, Any]:
    """Return the result of a search as fields of a record, with its two decisive predictions and a note if needed."""
    ends = [case for case in (found.value, found.value + 1) if case in found.predictions]
    verified = [{"case": named(c), "fits": found.predictions[c].fits, "needs": found.predictions[c].need} for c in ends]
    value = {"value": named(found.value), "unit": "1", "options": {"verified": verified}}
    if found.exception is not None:
        smaller = next(case for case, prediction in sorted(found.predictions.items()) if not prediction.fits)
        return value | {
            "reason": f"memory does not grow steadily: {named(found.exception)} fits too, {named(smaller)} does not"
        }
    if found.value == 0:
        return value | {"reason": f"not even {named(1)} fits"}
    return value if found.bounded else value | {"reason": f"the search ended at {named(found.limit)}"}


def _record(
    plan: CapacityPlan, asked: Configuration, one: Configuration, phase: str, metric: str, **content: Any
) -> Record:
    """Return a record about ``one``, a configuration whose options may differ from the request ``asked``."""
    target = plan.target
    how = {
        "budget": target.capacity,
        "asked": {"precision": asked.precision, "checkpointing": asked.checkpointing},
        "step": plan.bounds.step,
    }
    options = one.describe() | {"plan": how}
    return Record(
        command="plan",
        config_id=config_id(options),
        **one.fields(),
        spacing=plan.spacing,
        phase=phase,
        metric=metric,
        stat="verdict" if metric == "fits" else "limit",
        n=1,
        kind="predicted",
        device="cuda",
        env=environment() | target_environment(target),
        **content | {"options": options | content.get("options", {})},
    )


def too_small(target: Target) -> str | None:
    """Return why nothing can be planned for a card; None if planning is possible."""
    if target.capacity is None or target.capacity > target.beside:
        return None
    return f"a budget must exceed {target.beside / GIB:.2f} GiB, which the CUDA context and the safety margin need"
