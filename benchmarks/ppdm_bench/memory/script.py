"""Output of ``ppdm-bench predict``: text, records and a figure."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppdm_bench.environment import provenance
from ppdm_bench.memory.command import target_environment
from ppdm_bench.memory.explain import course_of_steps
from ppdm_bench.memory.feasibility import shortage
from ppdm_bench.predictor.known_values import PLACEHOLDERS
from ppdm_bench.predictor.lines import Line
from ppdm_bench.predictor.modules import ROOT
from ppdm_bench.predictor.script.prediction import Growth, Holder, MadeUp, ScriptPrediction
from ppdm_bench.records import Record
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures import memory_timeline
from ppdm_bench.units import GIB, plural, significant

_SHOWN = 8  # maximum number of lines about growth, and about made-up values


def records_of(prediction: ScriptPrediction, options: dict[str, Any]) -> list[Record]:
    """Return the records of a prediction; ``options``: the command and its options."""
    peak, target = prediction.peak, prediction.target
    common: dict[str, Any] = {
        "command": "predict",
        "method": program(prediction.command),
        "phase": "train",
        "kind": "predicted",
        "device": "cuda" if target else "cpu",
        "n": 1,
        **provenance(options),
    }
    own = {"torch": prediction.torch} | (target_environment(target) if target else {})
    common["env"] = common["env"] | own  # a copy, because all records of the process share the original
    short = shortage(target, peak) if target else ""
    verdict: dict[str, Any] = {"stat": "max", **({"status": "oom", "reason": short} if short else {})}
    made = [Record(metric=kind, value=size, stat="at peak", **common) for kind, size in peak.breakdown.items()]
    made += [
        Record(metric="holder", value=h.size, stat=f"rank {rank}", subject=_holder_text(h), **common)
        for rank, h in enumerate(prediction.holders, start=1)
    ]
    made += [
        Record(metric="alive_after_step", value=size, stat=f"step {step}", **common)
        for step, size in enumerate(prediction.after_step, start=1)
    ]
    made += [
        Record(metric="growth_per_step", value=g.bytes_per_step, stat="mean", subject=_growth_text(g), **common)
        for g in prediction.growth
    ]
    made += [
        Record(metric="made_up_values", value=m.times, unit="1", stat="count", subject=_read_text(m), **common)
        for m in prediction.made_up
        if m.line
    ]
    made.append(Record(metric="assumed", value=peak.assumed, stat="at peak", **common))
    for metric, value in (("peak_reserved", peak.peak_reserved), ("needs", peak.needs)):
        if value is not None:
            made.append(Record(metric=metric, value=value, **verdict, **common))
    return [*made, Record(metric="peak_allocated", value=peak.peak_allocated, **verdict, **common)]


def text_of(prediction: ScriptPrediction) -> str:
    """Return a prediction as text for the terminal."""
    peak, target = prediction.peak, prediction.target
    how = f"predicted in {prediction.seconds:.0f} s for {_target(prediction)}"
    words = [f"{program(prediction.command)}: {plural(prediction.steps, 'step')}, {how}", ""]
    rows = [
        ("peak of live tensors (allocated)", peak.peak_allocated),
        ("reserved by PyTorch's allocator", peak.peak_reserved),
        ("needed by the process, with CUDA context", peak.needs),
    ]
    if target and target.capacity:
        rows.append((f"{'fits' if peak.fits else 'DOES NOT FIT'} on a card with", target.capacity))
    words += [f"{name:42} {_bytes(size):>10}" for name, size in rows if size is not None]
    words += ["", "parts of the peak"]
    parts = [(kind, size) for kind, size in peak.breakdown.items() if size]
    words += [f"  {kind:12} {_bytes(size):>10}  {size / peak.peak_allocated:6.1%}" for kind, size in parts]
    words += ["", "largest blocks at the peak"]
    words += [f"  {_bytes(h.size):>10}  {h.kind:11}  {_holder_text(h)}" for h in prediction.holders]
    words += ["", *_growth(prediction), *_made_up(prediction.made_up)]
    return "\n".join([*words, *(f"note: {note}" for note in prediction.notes)])


def save(prediction: ScriptPrediction, folder: Path) -> list[Path]:
    """Write the memory timeline (PNG, PDF), the largest blocks (CSV, Markdown) and the program's output.

    Raises:
        OSError: a file cannot be written.
    """
    assert prediction.peak.timeline is not None
    name = program(prediction.command)
    blocks = [
        memory_timeline.TimelineBlock(h.size, h.kind, _place(h.line), h.module, h.stage, h.operator, h.shape, h.dtype)
        for h in prediction.holders
    ]
    timeline = course_of_steps(prediction.peak.timeline, blocks, name)
    stem = folder / f"predict-{Path(name).stem}"
    output = stem.with_name(stem.name + "-output.txt")
    replace_file(output, prediction.output.encode())
    return [*memory_timeline.save_timeline(timeline, stem), output]


def program(command: Sequence[str]) -> str:
    """Return the name of the program in a command: its script, its module, or its first word."""
    words = [word for word in command if "=" not in word] or list(command)
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return next((Path(word).name for word in words if word.endswith(".py")), Path(words[0]).name)


def _target(prediction: ScriptPrediction) -> str:
    target = prediction.target
    if target is None:
        return "the CPU"
    card = target.gpu or f"a CUDA device of compute capability {'.'.join(map(str, target.compute_capability))}"
    return f"{card} with PyTorch {'.'.join(map(str, target.release))}"


def _growth(prediction: ScriptPrediction) -> list[str]:
    alive = " -> ".join(_bytes(size) for size in prediction.after_step)
    if len(prediction.after_step) < 3:
        return [f"live after each step: {alive} (growth needs at least three steps)"]
    if not prediction.growth:
        return [f"live after each step: {alive}; nothing grows from step to step"]
    total = sum(each.bytes_per_step for each in prediction.growth)
    lines = [f"live after each step: {alive}; each step adds {_bytes(total)}, allocated at"]
    lines += [f"  {_bytes(each.bytes_per_step)} per step  {_growth_text(each)}" for each in prediction.growth[:_SHOWN]]
    return lines


def _made_up(found: Sequence[MadeUp]) -> list[str]:
    named = [each for each in found if each.line]
    if not named:
        return []
    lines = [f"values that depend on data were made up ({PLACEHOLDERS}) at"]
    lines += [f"  {_read_text(each)}" for each in sorted(named, key=lambda each: each.branch is None)[:_SHOWN]]
    if len(named) > _SHOWN:
        lines.append(f"  and {len(named) - _SHOWN} other lines")
    return lines


def _read_text(each: MadeUp) -> str:
    times = plural(each.times, "time")
    if each.branch is None:
        return f"{_place(each.line)} ({times})"
    where = "" if each.branch == each.line else f" in line {each.branch.number}"
    return f"{_place(each.line)} ({times}), which decided a branch{where}"


def _holder_text(holder: Holder) -> str:
    shape = "×".join(map(str, holder.shape))
    module = "" if holder.module in ("", ROOT) else f"module {holder.module}"
    words = (_place(holder.line), module, holder.stage, holder.operator)
    return ", ".join(filter(None, (*words, f"{shape} {holder.dtype}".strip())))


def _growth_text(growth: Growth) -> str:
    blocks = f"{growth.blocks_per_step:.3g} block{'s' * (growth.blocks_per_step != 1)}"
    return f"{_place(growth.line)}, {growth.operator}, {blocks} per step"


def _place(line: Line | None) -> str:
    """Return a line as ``train.py:40``, relative to the current folder or to the libraries."""
    if line is None:
        return ""
    file = line.file.rpartition("site-packages/")[2]
    near = os.path.relpath(file) if os.path.isabs(file) else file
    return f"{file if near.startswith('..') else near}:{line.number}"


def _bytes(size: int) -> str:
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{significant(size / scale)} {unit}"
    return f"{size} B"
