"""Step time of each cell; the cells are measured in turn, so that other load on the machine affects all cells alike.

Equal time is converted to the number of steps that fit into it at this step time. A training that the clock limits runs
fewer steps on a busy machine and cannot be reproduced; a training with a fixed number of steps can.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median
from typing import Any

import torch

from ppdm import Method
from ppdm.training.trainer import Training
from ppdm_bench.ablation.cells import Cell
from ppdm_bench.configuration import Shape
from ppdm_bench.environment import environment, provenance
from ppdm_bench.records import Record, RecordFile, config_id

ROUNDS = 3  # after one warm-up round

_MACHINE = ("cpu", "threads", "torch", "gpu")  # a step time is valid only on the same machine


@dataclass(frozen=True)
class StepTimes:
    """Measurement of the step times of cells as records ``step_seconds``; cells with the same training step share one.

    Attributes:
        cells: the cells that are not skipped.
        base: identifier of the base method.
        shape: (D, H, W) of the volumes in voxels.
        batch_size: number of pairs in a step.
        command: name of the calling command in the records.
    """

    cells: Sequence[Cell]
    base: str
    shape: Shape
    batch_size: int
    command: str = "ablate"

    def measure(
        self,
        device: str,
        file: RecordFile,
        show_progress: Callable[[str], None] = lambda text: None,
        *,
        of_any_machine: bool = False,
    ) -> dict[str, Record]:
        """Return the records by ``config_id``; those that this machine has already measured come from the file.

        Therefore a resumed run keeps its numbers of steps. The record of a cell that does not fit into the memory of
        the device has no value.

        Args:
            device: cuda or cpu.
            file: file of the records.
            show_progress: called with a text on the next measurement.
            of_any_machine: whether records of other machines in the file are used too.
        """
        known = _known_records(file, device, of_any_machine)
        missing = {self._id(cell): cell for cell in self.cells if self._id(cell) not in known}
        times = self._seconds(missing, device, show_progress)
        new = {name: self._record(missing[name], found, device) for name, found in times.items()}
        file.append(new.values())
        return {name: (known | new)[name] for name in map(self._id, self.cells)}

    def by_label(self, found: Mapping[str, Record]) -> dict[str, Record]:
        """Return the record of each cell by its label, taken from records by ``config_id``."""
        return {cell.label: self.of(cell, found) for cell in self.cells}

    def of(self, cell: Cell, found: Mapping[str, Record]) -> Record:
        """Return the record of one of the cells, taken from records by ``config_id``."""
        return self._labelled(cell, found[self._id(cell)])

    def of_one_machine(self, device: str, records: Sequence[Record]) -> dict[str, Record]:
        """Return the records, by ``config_id``, of one machine that has measured every cell; empty if there is none.

        Args:
            device: cuda, cpu, or auto for either.
            records: records to search; of several such machines, the last one is used.
        """
        wanted = {self._id(cell) for cell in self.cells}
        machines: dict[tuple[object, ...], dict[str, Record]] = {}
        for record in records:
            if record.metric == "step_seconds" and record.config_id in wanted and device in ("auto", record.device):
                machine = (record.device, *(record.env.get(name) for name in _MACHINE))
                machines.setdefault(machine, {})[record.config_id] = record
        whole = [found for found in machines.values() if found.keys() == wanted]
        return whole[-1] if whole else {}

    def _options(self, cell: Cell) -> dict[str, Any]:
        """Return the settings that affect the time of a step; those of optimisation and sampling do not."""
        content = cell.method.to_dict()
        resolved = {key: part for key, part in content.items() if key not in ("optimisation", "sampling")}
        return {"resolved": resolved, "shape": list(self.shape), "batch_size": self.batch_size}

    def _id(self, cell: Cell) -> str:
        return config_id(self._options(cell))

    def _labelled(self, cell: Cell, record: Record) -> Record:
        """Return the record with the label of the cell; cells that differ in the learning rate share a measurement."""
        return replace(record, variant=cell.label, options=record.options | {"cell": cell.describe(self.base)})

    def _seconds(
        self, cells: Mapping[str, Cell], device: str, show_progress: Callable[[str], None]
    ) -> dict[str, list[float]]:
        """Return the seconds of a step in each round; empty for a cell that does not fit into memory.

        For a method with several stages, they are the mean over a training: the step time of each stage is weighted by
        the share of its steps.
        """
        trainings: dict[str, list[Training]] = {}
        times: dict[str, list[float]] = {name: [] for name in cells}
        sources = max((len(cell.method.sources) for cell in cells.values()), default=1)  # equal for all cells
        pair = [torch.randn(self.batch_size, c, *self.shape, device=device) for c in (sources, 1)]
        for done, (name, cell) in product(range(ROUNDS + 1), cells.items()):
            if done and name not in trainings:
                continue
            show_progress(f"measuring step times, round {done + 1} of {ROUNDS + 1}: {cell.label}")
            try:
                if not done:
                    stages = range(len(cell.method.stages))
                    trainings[name] = [Training.start(cell.method, device=device, stage=stage) for stage in stages]
                first = cell.method.representation.share
                shares = (first, 1 - first) if first else (1.0,)
                seconds = sum(w * _time_step(one, pair, device) for w, one in zip(shares, trainings[name], strict=True))
            except torch.OutOfMemoryError:
                trainings.pop(name, None)
                times[name] = []
            else:
                times[name] += [seconds] if done else []
        return times

    def _record(self, cell: Cell, times: Sequence[float], device: str) -> Record:
        outcome: dict[str, Any] = {"value": median(times), "n": len(times)} if times else {}
        if not times:
            outcome = {"status": "oom", "reason": "a training step does not fit into the memory of the device"}
        about = provenance(self._options(cell)) | cell.configuration(self.shape, self.batch_size).fields()
        record = Record(
            **about | outcome,
            command=self.command,
            phase="train",
            metric="step_seconds",
            stat="median",
            samples=tuple(times),
            kind="measured",
            device=device,
        )
        return self._labelled(cell, record)


def steps_within(seconds: float, step_seconds: float, method: Method) -> int:
    """Return how many steps a time allows; every training stage of a method has at least one."""
    return max(len(method.stages), round(seconds / step_seconds))


def _known_records(file: RecordFile, device: str, of_any_machine: bool) -> dict[str, Record]:
    here = environment()
    return {
        record.config_id: record
        for record in file.read()
        if (record.metric, record.device, record.status) == ("step_seconds", device, "ok")
        and (of_any_machine or all(record.env.get(name) == here.get(name) for name in _MACHINE))
    }


def _time_step(training: Training, pair: Sequence[torch.Tensor], device: str) -> float:
    # Processor time of a single thread does not depend on the other processes of the machine, unlike elapsed time.
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    began = clock()
    training.step(pair[0], pair[1], training.method.learning_rate)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - began
