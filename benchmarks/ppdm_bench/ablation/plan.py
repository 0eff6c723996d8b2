"""What an ablation is to do, from the pace of its cells: which trainings, of how many steps, and how long it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ppdm import Method
from ppdm.evaluation.evaluate import lattices
from ppdm.metrics.texture import MIN_CELLS
from ppdm.pixel_puzzle import Factor
from ppdm.simulation.tasks import split_sizes
from ppdm.training.schedule import Schedule
from ppdm_bench.ablation.cells import Cell
from ppdm_bench.ablation.memory import PHASES
from ppdm_bench.commands.pair_sources import PhantomSubjects
from ppdm_bench.evaluation.comparison import Sampling
from ppdm_bench.evaluation.trials import Trial
from ppdm_bench.records import Record, config_id

# Seconds beside the network's own: of reading, writing and scoring a prediction, and of a prediction of memory.
_SCORING, _PREDICTION = 0.3, 3.0


@dataclass(frozen=True)
class Ablation:
    """What is asked for.

    Attributes:
        base: the method that the cells lie around.
        cells: the base first.
        sets: the subjects of each task.
        schedule: steps and batch size of every training at equal steps.
        seeds: of the trainings.
        minutes: the time of every training at equal time; if absent, what the base takes for its steps.
        sampling: how volumes are drawn.
        split: which subjects are scored.
        memory_shapes: sizes beside that of the subjects for which memory is predicted.
    """

    base: Method
    cells: Sequence[Cell]
    sets: Sequence[PhantomSubjects]
    schedule: Schedule
    seeds: Sequence[int]
    minutes: float | None
    sampling: Sampling
    split: str
    memory_shapes: Sequence[tuple[int, int, int]] = ()

    @property
    def identity(self) -> str:
        """Identifies the base in records: cells around another one are other cells."""
        return config_id(self.base.to_dict())

    @property
    def present(self) -> list[Cell]:
        """The cells that are not left out."""
        return [cell for cell in self.cells if not cell.reason]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the first set's volumes."""
        return self.sets[0].recipe().grid.shape

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Every size for which memory is predicted."""
        return list(dict.fromkeys([*(one.recipe().grid.shape for one in self.sets), *self.memory_shapes]))

    @property
    def grids(self) -> list[Factor]:
        """The lattices at which every cell's seam index is taken: of all cells, as far as the volumes have room."""
        found = lattices(cell.method for cell in self.present)
        return [factor for factor in found if self._has_room(factor)] or [2]

    @property
    def too_large(self) -> list[Factor]:
        """The lattices whose seam index the volumes are too small for."""
        return [factor for factor in lattices(cell.method for cell in self.present) if not self._has_room(factor)]

    def _has_room(self, factor: Factor) -> bool:
        sizes = [one.recipe().grid.shape for one in self.sets]
        cell = factor if isinstance(factor, Sequence) else (factor,) * 3
        return all(size // r >= MIN_CELLS for shape in sizes for size, r in zip(shape, cell, strict=True))


@dataclass(frozen=True)
class Work:
    """One training of one cell.

    Attributes:
        cell: which.
        trial: what is trained.
        budgets: what it stands for: ``steps`` with their number, ``time`` with its seconds, or both where the steps
            that fit into the time are that number.
        seconds: that it will take, evaluation included.
    """

    cell: Cell
    trial: Trial
    budgets: Mapping[str, float]
    seconds: float


def works(plan: Ablation, paces: Mapping[str, Record]) -> list[Work]:
    """Every training, task by task; the cells that a pace could not be measured of have none.

    Args:
        plan: what is asked for.
        paces: ``step_seconds`` by the cells' labels.
    """
    return [
        _work(plan, cell, subjects, seed, steps, budgets, paces)
        for subjects in plan.sets
        for seed in plan.seeds
        for cell in plan.present
        if paces[cell.label].value is not None
        for steps, budgets in _budgets(plan, cell, paces).items()
    ]


def memory_each(plan: Ablation) -> list[float]:
    """Seconds that each prediction of memory takes."""
    return [_PREDICTION] * (len(PHASES) * len(plan.present) * len(plan.shapes))


def equal_time(plan: Ablation, paces: Mapping[str, Record]) -> float:
    """Seconds of every training at equal time."""
    steps = plan.schedule.steps
    assert steps is not None
    return 60 * plan.minutes if plan.minutes is not None else steps * _pace(paces[plan.cells[0].label])


def _budgets(plan: Ablation, cell: Cell, paces: Mapping[str, Record]) -> dict[int, dict[str, float]]:
    """The numbers of steps that a cell is trained for, and the budgets that each stands for."""
    steps = plan.schedule.steps
    assert steps is not None
    found: dict[int, dict[str, float]] = {steps: {"steps": steps}}
    known = paces[plan.cells[0].label].value is not None
    if plan.minutes is not None or (cell.timed and known):
        seconds = equal_time(plan, paces)
        fitting = max(1, round(seconds / _pace(paces[cell.label])))
        found.setdefault(fitting, {})["time"] = seconds
    return found


def _work(
    plan: Ablation,
    cell: Cell,
    subjects: PhantomSubjects,
    seed: int,
    steps: int,
    budgets: Mapping[str, float],
    paces: Mapping[str, Record],
) -> Work:
    pace = _pace(paces[cell.label])
    # A forward pass is a third of a step, of one volume instead of a batch; on a CPU small ones gain little from that.
    evaluations = sum(k or cell.method.sampling.steps for k in plan.sampling.steps)
    cases = split_sizes(subjects.subjects)[plan.split] * len(subjects.recipe().pairs)
    sampling = cases * (evaluations * pace / 3 + _SCORING * len(plan.sampling.steps))
    schedule = replace(plan.schedule, steps=steps, seed=seed)
    trial = Trial(f"{cell.label} {steps} steps", cell.method, subjects, schedule)
    return Work(cell, trial, budgets, steps * pace + sampling)


def _pace(record: Record) -> float:
    assert record.value is not None
    return float(record.value)
