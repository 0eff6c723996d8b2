"""How long a training step of each cell takes, measured in turn, so that what else the machine does strikes all alike.

Equal time means so many steps as fit into it at this pace. A training that watched the clock itself would get fewer
steps whenever the machine is busy, and could not be repeated; a number of steps can.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

import torch

from ppdm import Method
from ppdm.training.trainer import Training
from ppdm_bench.ablation.cells import Cell
from ppdm_bench.environment import environment
from ppdm_bench.records import Record, RecordFile, config_id

ROUNDS = 3  # after one that is not counted

Shape = tuple[int, int, int]
_MACHINE = ("cpu", "threads", "torch", "gpu")  # a pace that was measured on another is none here


def paces(
    cells: Sequence[Cell],
    base: str,
    shape: Shape,
    batch_size: int,
    device: str,
    file: RecordFile,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Record]:
    """The record ``step_seconds`` of each cell by its label, from the file where this machine has measured it.

    So a run that is continued has the steps that it began with. A cell that does not fit into the device's memory has
    a record without a value.

    Args:
        cells: those that are not left out.
        base: identifies the method that they lie around.
        shape: of the volumes.
        batch_size: pairs a step.
        device: cuda or cpu.
        file: where they are kept.
        tell: called with what is measured next.
    """
    return of_cells(cells, base, shape, batch_size, measured(cells, base, shape, batch_size, device, file, tell))


def measured(
    cells: Sequence[Cell],
    base: str,
    shape: Shape,
    batch_size: int,
    device: str,
    file: RecordFile,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Record]:
    """The records of :func:`paces` by their ``config_id``: cells whose step is the same have one in common."""
    wanted = {cell.label: _options(cell.method, shape, batch_size) for cell in cells}
    known = _known(file, device)
    missing = {config_id(wanted[cell.label]): cell for cell in cells if config_id(wanted[cell.label]) not in known}
    times = _measure(missing, shape, batch_size, device, tell)
    new = {name: _record(missing[name], base, found, wanted, device) for name, found in times.items()}
    file.append(new.values())
    return {name: (known | new)[name] for name in map(config_id, wanted.values())}


def of_cells(
    cells: Sequence[Cell], base: str, shape: Shape, batch_size: int, found: Mapping[str, Record]
) -> dict[str, Record]:
    """The record of each cell by its label, out of records by their ``config_id``."""
    return {cell.label: _of(cell, base, found[config_id(_options(cell.method, shape, batch_size))]) for cell in cells}


def of_one_machine(
    cells: Sequence[Cell], shape: Shape, batch_size: int, device: str, records: Sequence[Record]
) -> dict[str, Record]:
    """The records of a machine, whichever, that has measured every cell, by their ``config_id``; none without one.

    Args:
        cells, shape, batch_size: as for :func:`paces`.
        device: cuda, cpu, or auto for either.
        records: to look among; of several such machines, that which came last.
    """
    wanted = {config_id(_options(cell.method, shape, batch_size)) for cell in cells}
    machines: dict[tuple[object, ...], dict[str, Record]] = {}
    for record in records:
        if record.metric == "step_seconds" and record.config_id in wanted and device in ("auto", record.device):
            machine = (record.device, *(record.env.get(name) for name in _MACHINE))
            machines.setdefault(machine, {})[record.config_id] = record
    whole = [found for found in machines.values() if found.keys() == wanted]
    return whole[-1] if whole else {}


def _of(cell: Cell, base: str, record: Record) -> Record:
    """The same record for a cell whose step is the same, such as one of another learning rate."""
    return replace(record, variant=cell.label, options=record.options | {"cell": cell.describe(base)})


def _options(method: Method, shape: Shape, batch_size: int) -> dict[str, Any]:
    """What a step depends on: not how long the training is, nor how volumes are drawn."""
    resolved = {key: part for key, part in method.to_dict().items() if key not in ("optimisation", "sampling")}
    return {"resolved": resolved, "shape": list(shape), "batch_size": batch_size}


def _known(file: RecordFile, device: str) -> dict[str, Record]:
    here = environment()
    return {
        record.config_id: record
        for record in file.read()
        if (record.metric, record.device, record.status) == ("step_seconds", device, "ok")
        and all(record.env.get(name) == here.get(name) for name in _MACHINE)
    }


def _measure(
    cells: Mapping[str, Cell], shape: Shape, batch_size: int, device: str, tell: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of each step, round after round; none for what does not fit into memory.

    Of a method with several stages, the mean over a training: each stage's step weighed with its share of the steps.
    """
    trainings: dict[str, list[Training]] = {}
    times: dict[str, list[float]] = {name: [] for name in cells}
    pair = torch.randn(2, batch_size, 1, *shape, device=device)
    for done, (name, cell) in product(range(ROUNDS + 1), cells.items()):
        if done and name not in trainings:
            continue
        tell(f"measuring the pace, round {done + 1} of {ROUNDS + 1}: {cell.label}")
        try:
            if not done:
                stages = range(len(cell.method.stages))
                trainings[name] = [Training.start(cell.method, device=device, stage=stage) for stage in stages]
            first = cell.method.representation.share
            shares = (first, 1 - first) if first else (1.0,)
            seconds = sum(w * _step(one, pair, device) for w, one in zip(shares, trainings[name], strict=True))
        except torch.OutOfMemoryError:
            trainings.pop(name, None)
            times[name] = []
        else:
            times[name] += [seconds] if done else []
    return times


def _step(training: Training, pair: torch.Tensor, device: str) -> float:
    began = time.perf_counter()
    training.step(pair[0], pair[1], training.method.optimisation.learning_rate)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _record(cell: Cell, base: str, times: Sequence[float], wanted: Mapping[str, dict[str, Any]], device: str) -> Record:
    options, network = wanted[cell.label], cell.method.network
    outcome: dict[str, Any] = {"value": median(times), "n": len(times)} if times else {}
    if not times:
        outcome = {"status": "oom", "reason": "a training step does not fit into the memory of the device"}
    return Record(
        config_id=config_id(options),
        command="ablate",
        method=cell.method.name,
        variant=cell.label,
        shape=tuple(options["shape"]),
        batch_size=options["batch_size"],
        phase="train",
        precision=network.precision,
        checkpointing=network.checkpointing,
        channels_last=network.channels_last,
        compile=network.compile,
        metric="step_seconds",
        unit="s",
        stat="median",
        samples=tuple(times),
        kind="measured",
        device=device,
        env=environment(),
        options=options | {"cell": cell.describe(base)},
        **outcome,
    )
