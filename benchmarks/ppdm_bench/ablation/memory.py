"""Peak memory of each cell: predicted for CUDA, and measured where there is a GPU, as ``ppdm-bench memory`` does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from ppdm_bench.ablation.cells import Cell
from ppdm_bench.configuration import Shape
from ppdm_bench.devices import measuring_device
from ppdm_bench.environment import environment
from ppdm_bench.memory.command import MemoryPlan, carry_out
from ppdm_bench.records import Record, RecordFile, config_id
from ppdm_bench.units import shape_text

PHASES = ("train", "sample")


def record_peaks(
    cells: Sequence[Cell],
    base: str,
    shapes: Sequence[Shape],
    batch_size: int,
    file: RecordFile,
    show_progress: Callable[[str], None],
) -> Iterator[list[Record]]:
    """Yield the records of each cell, size, phase and kind as soon as they exist; those in the file are reused.

    Args:
        cells: the cells that are not skipped.
        base: identifier of the base method.
        shapes: shapes of the volumes.
        batch_size: number of volumes in a batch.
        file: file of the records.
        show_progress: called with a text on the next activity.
    """
    where, target = measuring_device("auto", None)
    kinds = {"predicted"} if where == "predict" else {"predicted", "measured"}
    known = [record for record in file.read() if not record.subject]
    for shape, cell, phase in product(shapes, cells, PHASES):
        plan = MemoryPlan([cell.configuration(shape, batch_size)], [phase], where, target)
        made = _reusable(plan, known)
        if {record.kind for record in made} != kinds:
            show_progress(f"memory of {cell.label}, {phase}, {shape_text(shape)}")
            made = [_as_cell_record(cell, base, record) for found in carry_out(plan) for record in found]
            file.append(made)
        yield made


def _reusable(plan: MemoryPlan, records: Sequence[Record]) -> list[Record]:
    """Return the records of an earlier run of the same commit; none if there are uncommitted changes."""
    here, wanted = environment(), (config_id(plan.configurations[0].describe()), plan.phases[0])
    same = [record for record in records if (record.config_id, record.phase) == wanted]
    if here["dirty"] or any(record.status not in ("ok", "oom") for record in same):
        return []
    return [record for record in same if all(record.env.get(name) == here[name] for name in ("commit", "torch"))]


def _as_cell_record(cell: Cell, base: str, record: Record) -> Record:
    options = record.options | {"cell": cell.describe(base)}
    return replace(record, command="ablate", variant=cell.label, options=options)
