"""Step time of each cell; the cells are measured in turn, so that other load on the machine affects all of them alike.

Equal time is converted to the number of steps that fit at this step time. A training limited by the clock would run
fewer steps on a busy machine and could not be reproduced; a training with a fixed number of steps can.
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

ROUNDS = 3  # after one warm-up round

Shape = tuple[int, int, int]
_MACHINE = ("cpu", "threads", "torch", "gpu")  # a step time is valid only on the same machine


def paces(
    cells: Sequence[Cell],
    base: str,
    shape: Shape,
    batch_size: int,
    device: str,
    file: RecordFile,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Record]:
    """The record ``step_seconds`` of each cell by its label, from the file if this machine has measured it.

    Therefore a resumed run keeps its numbers of steps. A cell that does not fit into the memory of the device has a
    record without a value.

    Args:
        cells: the cells that are not skipped.
        base: identifier of the base method.
        shape: shape of the volumes.
        batch_size: number of pairs in a step.
        device: cuda or cpu.
        file: file of the records.
        tell: called with a text on the next measurement.
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
    """The records of :func:`paces` by ``config_id``; cells with the same training step share one record."""
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
    """The record of each cell by its label, taken from records by ``config_id``."""
    return {cell.label: _of(cell, base, found[config_id(_options(cell.method, shape, batch_size))]) for cell in cells}


def of_one_machine(
    cells: Sequence[Cell], shape: Shape, batch_size: int, device: str, records: Sequence[Record]
) -> dict[str, Record]:
    """The records, by ``config_id``, of any one machine that has measured every cell; empty if there is none.

    Args:
        cells, shape, batch_size: as for :func:`paces`.
        device: cuda, cpu, or auto for either.
        records: records to search; of several such machines, the last one is used.
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
    """The same record for a cell with the same training step, such as one with another learning rate."""
    return replace(record, variant=cell.label, options=record.options | {"cell": cell.describe(base)})


def _options(method: Method, shape: Shape, batch_size: int) -> dict[str, Any]:
    """The settings that affect the time of a step; those of optimisation and sampling do not."""
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
    """Seconds of a step in each round; empty for a cell that does not fit into memory.

    For a method with several stages, this is the mean over a training: the step time of each stage is weighted by its
    share of the steps.
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
