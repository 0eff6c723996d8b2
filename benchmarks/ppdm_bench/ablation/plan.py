"""Plan of an ablation: from the step times of the cells, the trainings with their steps and estimated durations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ppdm import Method
from ppdm.evaluation.evaluate import block_grids
from ppdm.metrics.texture import MIN_CELLS
from ppdm.pixel_puzzle import Factor
from ppdm.training.schedule import Schedule
from ppdm_bench.ablation.cells import Cell
from ppdm_bench.ablation.memory import PHASES
from ppdm_bench.ablation.step_time import StepTimes, steps_within
from ppdm_bench.commands.pair_sources import Shape, Subjects
from ppdm_bench.evaluation.comparison import RunSampling
from ppdm_bench.evaluation.trials import Trial
from ppdm_bench.records import Record, config_id

# Seconds to read, write and score one predicted volume (without its network evaluations), and to predict memory once.
_SCORING, _PREDICTION = 0.3, 3.0


@dataclass(frozen=True)
class Ablation:
    """An ablation as requested by the user.

    Attributes:
        base: base method of the cells.
        cells: all cells; the base is the first.
        sets: the subjects of each task.
        schedule: steps and batch size of every training at equal steps.
        seeds: seeds of the trainings.
        minutes: duration of every training at equal time; None means the time that the base needs for its steps.
        sampling: sampling settings.
        split: the split whose subjects are scored.
        memory_shapes: additional volume shapes for which memory is predicted.
    """

    base: Method
    cells: Sequence[Cell]
    sets: Sequence[Subjects]
    schedule: Schedule
    seeds: Sequence[int]
    minutes: float | None
    sampling: RunSampling
    split: str
    memory_shapes: Sequence[Shape] = ()

    @property
    def identity(self) -> str:
        """Identifier of the base method in records, which distinguishes cells of different bases."""
        return config_id(self.base.to_dict())

    @property
    def present(self) -> list[Cell]:
        """The cells that are not skipped."""
        return [cell for cell in self.cells if not cell.reason]

    @property
    def step_times(self) -> StepTimes:
        """How step times are measured: for the training volume of median size of the first set."""
        return StepTimes(self.present, self.identity, self.shape, self.schedule.batch_size)

    @property
    def shape(self) -> Shape:
        """Shape of the training volume of median size of the first set; synthetic volumes have one size."""
        shapes = self.sets[0].shapes("train")
        return shapes[len(shapes) // 2]

    @property
    def shapes(self) -> list[Shape]:
        """All volume shapes for which memory is predicted: the largest of each set, and ``memory_shapes``.

        Tables show the first.
        """
        largest = [one.shapes(split)[-1] for split in (self.split, "train") for one in self.sets]
        return list(dict.fromkeys([*largest, *self.memory_shapes]))

    @property
    def grids(self) -> list[Factor]:
        """The block grids for the seams of every cell: those of all cells for which the volumes are large enough."""
        found = block_grids(cell.method for cell in self.present)
        return [factor for factor in found if self._has_room(factor)] or [2]

    @property
    def too_large(self) -> list[Factor]:
        """The block grids for which the volumes are too small to compute the seam index."""
        return [factor for factor in block_grids(cell.method for cell in self.present) if not self._has_room(factor)]

    def _has_room(self, factor: Factor) -> bool:
        sizes = [shape for one in self.sets for split in (self.split, "train") for shape in one.shapes(split)]
        cell = factor if isinstance(factor, Sequence) else (factor,) * 3
        return all(size // r >= MIN_CELLS for shape in sizes for size, r in zip(shape, cell, strict=True))


@dataclass(frozen=True)
class CellTraining:
    """One training of one cell.

    Attributes:
        cell: the cell.
        trial: the training.
        budgets: the budgets that it fulfils: ``steps`` with their number, ``time`` with its seconds, or both if the
            time allows exactly that number of steps.
        seconds: estimated duration, evaluation included.
    """

    cell: Cell
    trial: Trial
    budgets: Mapping[str, float]
    seconds: float


def plan_trainings(plan: Ablation, step_times: Mapping[str, Record]) -> list[CellTraining]:
    """Return every training, task by task; a cell without a measured step time has none.

    Args:
        plan: the ablation.
        step_times: records ``step_seconds`` by the labels of the cells.
    """
    return [
        _training(plan, cell, subjects, seed, steps, budgets, step_times)
        for subjects in plan.sets
        for seed in plan.seeds
        for cell in plan.present
        if step_times[cell.label].value is not None
        for steps, budgets in _budgets(plan, cell, step_times).items()
    ]


def memory_seconds(plan: Ablation) -> list[float]:
    """Return the estimated seconds of each memory prediction."""
    return [_PREDICTION] * (len(PHASES) * len(plan.present) * len(plan.shapes))


def _budgets(plan: Ablation, cell: Cell, step_times: Mapping[str, Record]) -> dict[int, dict[str, float]]:
    """Return the numbers of steps for which a cell is trained, each with the budgets that it fulfils."""
    steps = plan.schedule.steps
    assert steps is not None
    found: dict[int, dict[str, float]] = {steps: {"steps": steps}}
    of_base = step_times[plan.cells[0].label].value
    if plan.minutes is not None:
        seconds = 60 * plan.minutes
    elif cell.timed and of_base is not None:
        seconds = steps * float(of_base)
    else:
        return found
    fitting = steps_within(seconds, _seconds_per_step(step_times[cell.label]), cell.method)
    found.setdefault(fitting, {})["time"] = seconds
    return found


def _training(
    plan: Ablation,
    cell: Cell,
    subjects: Subjects,
    seed: int,
    steps: int,
    budgets: Mapping[str, float],
    step_times: Mapping[str, Record],
) -> CellTraining:
    step_seconds = _seconds_per_step(step_times[cell.label])
    # A forward pass takes a third of a training step. It processes one volume and not a batch; the estimate ignores
    # this, because it saves little time for small volumes on a CPU.
    evaluations = sum(k or cell.method.sampling.steps for k in plan.sampling.steps)
    cases = len(subjects.shapes(plan.split))
    sampling = cases * (evaluations * step_seconds / 3 + _SCORING * len(plan.sampling.steps))
    schedule = replace(plan.schedule, steps=steps, seed=seed)
    trial = Trial(f"{cell.label} {steps} steps", cell.method, subjects, schedule)
    return CellTraining(cell, trial, budgets, steps * step_seconds + sampling)


def _seconds_per_step(record: Record) -> float:
    assert record.value is not None
    return float(record.value)
