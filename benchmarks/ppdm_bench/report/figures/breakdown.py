"""Stacked bars of the parts of the peak memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.capacity import few_names
from ppdm_bench.report.figures.style import SMALL, Column
from ppdm_bench.report.rows import PeakRow, common_settings, gather_peaks, phase_name, varying_settings
from ppdm_bench.units import GIB, significant

_MAX_STACKS = 18

# The parts from permanent to short-lived memory; the last one is the rest of the peak.
PARTS = {
    "params": ("parameters", style.BLUE),
    "grads": ("gradients", style.SKY),
    "optimizer": ("optimiser state", style.GREEN),
    "inputs": ("inputs", style.YELLOW),
    "activations": ("activations", style.ORANGE),
    "workspace": ("workspace", style.VERMILION),
    "other": ("not attributed", "0.75"),
}


@dataclass(frozen=True)
class Stack:
    """A stacked bar: the parts of one peak in GiB, whose sum is the peak."""

    label: str
    kind: str
    parts: dict[str, float]

    @property
    def peak(self) -> float:
        """Height of the stack in GiB."""
        return sum(self.parts.values())


def breakdown_figure(records: Iterable[Record], *, column: Column = "double") -> Figure:
    """Return stacked bars with the parts of the peak of every configuration and phase.

    A figure of two columns has GiB on the left and shares on the right, so that small peaks are readable too. A figure
    of one column has only shares, with the peaks in GiB beside them. Predicted stacks are hatched. More than 18 stacks
    are reduced to eight names (see `capacity.few_names`) and the first kind of checkpointing.

    Args:
        records: long-form records with a breakdown (params, grads, optimizer, inputs, activations, workspace).
        column: width of the figure, `single` (3.5 in) or `double` (7.16 in).

    Raises:
        ValueError: no record has a breakdown, or the parts add up to more than the peak.
    """
    rows = gather_peaks(records)
    characters = 26 if column == "single" else 48
    stacks = _stacks(rows, characters)
    everything = len(stacks)
    if everything > _MAX_STACKS:
        rows = _reduced(rows)
        stacks = _stacks(rows, characters)
    if not stacks:
        raise ValueError(
            "there is nothing to draw: no record has a breakdown of the peak (metrics params, activations, ...)"
        )
    shares = (False, True) if column == "double" else (True,)
    lines = max(stack.label.count("\n") for stack in stacks) + 1
    figure = style.new_figure(column, height=1.45 + (0.09 + 0.11 * lines) * len(stacks))
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, share in zip(panels, shares, strict=True):
        _draw(axes, stacks, share, labelled=axes is panels[0])
    shared = common_settings(rows)
    omitted = f" The records have {everything - len(stacks)} more peaks." if everything > len(stacks) else ""
    style.title(figure, f"Parts of the peak of allocated memory{f': {shared}' if shared else ''}.{omitted}")
    style.legend(figure, _legend(stacks), columns=5 if column == "double" else 2)
    return figure


def _reduced(rows: Sequence[PeakRow]) -> list[PeakRow]:
    names, first = few_names(grouped(rows, lambda row: row.name)), rows[0].settings["checkpointing"]
    return [row for row in rows if row.name in names and row.settings["checkpointing"] == first]


def _stacks(rows: Sequence[PeakRow], characters: int) -> list[Stack]:
    """Return the stacks in the order of the rows; stacks that differ only in kind are adjacent."""
    differing = varying_settings(rows)
    stacks = []
    for row, phase in ((one, phase) for one in rows for phase in one.phases):
        if parts := _parts(row, phase):
            label = ", ".join(filter(None, (row.name, phase_name(phase), row.settings_text(differing))))
            stacks.append(Stack(style.wrap_label(label, characters), row.kind, parts))
    return [stack for group in grouped(stacks, lambda stack: stack.label).values() for stack in group]


def _parts(row: PeakRow, phase: str) -> dict[str, float]:
    """Return the parts in GiB in the order of PARTS, with the rest of the peak as the last part."""
    values = {part: row.value(phase, part) for part in PARTS}
    parts = {part: value / GIB for part, value in values.items() if value}
    peak, whole = (row.value(phase, "peak_allocated") or 0) / GIB, sum(parts.values())
    if parts and peak and whole > 1.001 * peak:
        raise ValueError(
            f"the breakdown of {row.name}, {phase}, adds up to {significant(whole, 4)} GiB, more than its peak of "
            f"{significant(peak, 4)} GiB: the records contradict each other"
        )
    # A rest of 0.1 % is due to rounding and would be invisible.
    return parts | ({"other": peak - whole} if parts and peak > 1.001 * whole else {})


def _draw(axes: Axes, stacks: Sequence[Stack], share: bool, labelled: bool) -> None:
    style.plain_axes(axes, "x", "share of the peak (%)" if share else "peak allocated memory (GiB)")
    for place, stack in enumerate(stacks):
        left, scale = 0.0, 100 / stack.peak if share else 1.0
        for part, size in stack.parts.items():
            look: dict[str, Any] = {"color": PARTS[part][1], "hatch": style.HATCHES[stack.kind], "edgecolor": "white"}
            axes.barh(place, size * scale, left=left, height=0.72, lw=0.4, **look)
            left += size * scale
        if labelled:
            text = f"{significant(stack.peak)} GiB" if share else significant(stack.peak)
            style.write_beside(axes, left, place, text, 3)
    highest = max(stack.peak for stack in stacks)
    axes.set_xlim(0, 100 if share else highest * 1.18)
    axes.set_ylim(len(stacks) - 0.4, -0.6)
    axes.set_yticks(range(len(stacks)), [stack.label for stack in stacks], fontsize=SMALL)
    axes.tick_params(axis="y", length=0)


def _legend(stacks: Sequence[Stack]) -> list[Artist]:
    used = {part for stack in stacks for part, size in stack.parts.items() if size > 0.002 * stack.peak}
    kinds = {stack.kind for stack in stacks}
    parts: list[Artist] = [
        Patch(facecolor=colour, label=name) for part, (name, colour) in PARTS.items() if part in used
    ]
    fills = [
        Patch(facecolor="0.6", edgecolor="white", hatch=h, lw=0.4, label=k)
        for k, h in style.HATCHES.items()
        if k in kinds
    ]
    return parts + fills
