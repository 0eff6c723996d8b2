"""Predicted against published peaks: a scatter, the residuals, and the runs that were published as out of memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ppdm_bench.records import Record
from ppdm_bench.report import canvas
from ppdm_bench.report.canvas import SMALL, TEXT
from ppdm_bench.report.units import GIB, significant

# Published peaks are given to a tenth of a GiB.
ROUNDING = 0.05

_MARKERS = (
    ("o", canvas.BLUE),
    ("s", canvas.VERMILION),
    ("^", canvas.GREEN),
    ("D", canvas.PURPLE),
    ("v", canvas.ORANGE),
)


@dataclass(frozen=True)
class Pair:
    """One published run and what was predicted for it, in GiB.

    `published` is None where the run ran out of memory; `reserved` and `capacity` then say why, where they are known;
    `fits` is the prediction's verdict.
    """

    name: str
    gpu: str
    published: float | None
    predicted: float
    reserved: float | None
    capacity: float | None
    fits: bool

    @property
    def residual(self) -> float:
        """Predicted minus published, GiB."""
        return self.predicted - (self.published or 0)


def validation_figure(records: Iterable[Record]) -> Figure:
    """Return predicted against published peaks (two columns wide).

    Left: the peaks on logarithmic axes, with the line of equality. Right: predicted minus published, with the
    half-width of the publication's rounding as a band. Runs published as out of memory stand apart: what the allocator
    is predicted to take from the driver, and the capacity of the GPU.

    Args:
        records: pairs of `peak_allocated` that share config_id and phase, one published, one predicted; a run published
            as out of memory has the status `oom`, and its prediction a record of `peak_reserved` too. The GPU is the
            published record's `env["gpu"]` (else its device, else its source); its capacity is `env["capacity"]` in
            bytes, else what its name says (`H100 80GB`).

    Raises:
        ValueError: no published peak has a prediction.
    """
    pairs = _pairs(list(records))
    finished = [pair for pair in pairs if pair.published is not None]
    failed = [pair for pair in pairs if pair.published is None]
    if not finished:
        raise ValueError(
            "there is nothing to compare: no published peak_allocated has a prediction of its config_id and phase"
        )
    # One look for a GPU, in all panels; with more GPUs than looks they come round again.
    markers = dict(zip(dict.fromkeys(pair.gpu for pair in pairs), _MARKERS * len(pairs), strict=False))
    figure = canvas.new_figure("double", height=3.3)
    panels = figure.subplots(1, 3 if failed else 2, width_ratios=(1, 1, 0.42) if failed else (1, 1))
    _scatter(panels[0], finished, markers)
    _residuals(panels[1], finished, markers)
    if failed:
        _out_of_memory(panels[2], failed, markers)
    canvas.title(
        figure, "Predicted against published peak of allocated memory (peak_allocated); every prediction is hollow."
    )
    canvas.legend(figure, _legend(pairs, markers), columns=3)
    return figure


def agreement_table(records: Iterable[Record]) -> str:
    """Return the same pairs as Markdown: a row a run, then the summary that the figure shows.

    Args:
        records: as for :func:`validation_figure`.
    """
    pairs = _pairs(list(records))
    lines = ["| run | GPU | published GiB | predicted GiB | difference | predicted reserved GiB | predicted to fit |"]
    lines.append("|---|---|---:|---:|---:|---:|---|")
    for pair in pairs:
        published = "OOM" if pair.published is None else f"{pair.published:.1f}"
        difference = "" if pair.published is None else f"{pair.residual:+.3f}".replace("-", "−")
        reserved = "" if pair.reserved is None else f"{pair.reserved:.2f}"
        cells = (
            pair.name,
            pair.gpu,
            published,
            f"{pair.predicted:.3f}",
            difference,
            reserved,
            "yes" if pair.fits else "no",
        )
        lines.append("| " + " | ".join(cells) + " |")
    finished = [pair for pair in pairs if pair.published is not None]
    return "\n".join(lines) + "\n\n" + _summary(finished).replace("\n", "; ") + "\n"


def _pairs(records: Sequence[Record]) -> list[Pair]:
    predicted = {(r.config_id, r.phase, r.metric): r for r in records if r.kind == "predicted" and r.value is not None}
    pairs = []
    for record in records:
        if record.kind != "published" or record.metric != "peak_allocated" or record.status not in ("ok", "oom"):
            continue
        allocated = predicted.get((record.config_id, record.phase, "peak_allocated"))
        reserved = predicted.get((record.config_id, record.phase, "peak_reserved"))
        published = record.value / GIB if record.status == "ok" and record.value else None
        if allocated is not None:
            whole, fits = _gibibytes(reserved), allocated.status == "ok"
            predicted_peak = _gibibytes(allocated) or 0.0
            pairs.append(Pair(_name(record), _gpu(record), published, predicted_peak, whole, _capacity(record), fits))
    return pairs


def _gibibytes(record: Record | None) -> float | None:
    return None if record is None or record.value is None else record.value / GIB


def _name(record: Record) -> str:
    """What tells published runs apart: variant, size, checkpointing, and the step if the source has several."""
    size = "×".join(map(str, record.shape))
    recomputed = "" if record.checkpointing == "none" else f"checkpointing {record.checkpointing}"
    step = f"step {record.options['step']}" if "step" in record.options else ""
    return ", ".join(filter(None, (record.variant, size, recomputed, step)))


def _gpu(record: Record) -> str:
    return str(record.env.get("gpu") or record.device or record.source or "not stated")


def _capacity(record: Record) -> float | None:
    stated = record.env.get("capacity")
    if isinstance(stated, (int, float)):
        return stated / GIB
    named = re.search(r"(\d+) ?G(?:i?B)\b", _gpu(record))
    return float(named[1]) if named else None


Markers = dict[str, tuple[str, str]]


def points(axes: Axes, x: Sequence[float], y: Sequence[float], marker: tuple[str, str]) -> None:
    """Draw hollow markers: all of them have to do with predictions."""
    shape, colour = marker
    axes.plot(x, y, linestyle="", marker=shape, markersize=4, markerfacecolor="none", color=colour, markeredgewidth=0.8)


def _scatter(axes: Axes, pairs: Sequence[Pair], markers: Markers) -> None:
    values = [value for pair in pairs for value in (pair.published or 0, pair.predicted)]
    low, high = min(values) / 1.4, max(values) * 1.4
    axes.plot([low, high], [low, high], color=canvas.GREY, linewidth=0.7, zorder=1)
    for gpu, marker in markers.items():
        own = [pair for pair in pairs if pair.gpu == gpu]
        points(axes, [pair.published or 0 for pair in own], [pair.predicted for pair in own], marker)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    plain_log(axes, "xy")
    finish(axes, "published peak (GiB)", "predicted peak (GiB)", "both")
    # Above the line of equality, where no point lies unless the prediction is far off.
    axes.text(0.04, 0.96, _summary(pairs), transform=axes.transAxes, va="top", fontsize=SMALL, linespacing=1.35)


def _summary(pairs: Sequence[Pair]) -> str:
    worst = max(pairs, key=lambda pair: abs(pair.residual))
    relative = [abs(pair.residual) / pair.published for pair in pairs if pair.published]
    return (
        f"n = {len(pairs)}\nrelative error: median {median(relative):.2%}\n"
        f"largest {max(relative):.2%}\nlargest residual {worst.residual:+.2f} GiB"
    ).replace("-", "−")


def _residuals(axes: Axes, pairs: Sequence[Pair], markers: Markers) -> None:
    axes.axhspan(-ROUNDING, ROUNDING, color="0.88", linewidth=0, zorder=0.5)
    axes.axhline(0, color=canvas.GREY, linewidth=0.7, zorder=1)
    for gpu, marker in markers.items():
        own = [pair for pair in pairs if pair.gpu == gpu]
        points(axes, [pair.published or 0 for pair in own], [pair.residual for pair in own], marker)
    reach = 1.15 * max(2 * ROUNDING, *(abs(pair.residual) for pair in pairs))
    axes.set(xscale="log", ylim=(-reach, reach))
    axes.margins(x=0.08)
    plain_log(axes, "x")
    finish(axes, "published peak (GiB)", "predicted − published (GiB)", "y")


def _out_of_memory(axes: Axes, pairs: Sequence[Pair], markers: Markers) -> None:
    """For each run a dash where allocated memory is predicted, a hollow marker for reserved, the capacity dashed."""
    for place, pair in enumerate(pairs, start=1):
        axes.plot([place - 0.3, place + 0.3], [pair.predicted] * 2, color=markers[pair.gpu][1], linewidth=1.2)
        if pair.reserved is not None:
            points(axes, [place], [pair.reserved], markers[pair.gpu])
        if pair.capacity is not None:
            axes.plot(
                [place - 0.45, place + 0.45], [pair.capacity] * 2, color="black", linewidth=0.9, linestyle=(0, (4, 2))
            )
    tops = [value for p in pairs for value in (p.predicted, p.reserved, p.capacity) if value is not None]
    axes.set(xlim=(0.3, len(pairs) + 0.7), ylim=(0, 1.15 * max(tops)), xticks=range(1, len(pairs) + 1))
    finish(axes, "runs published as\nout of memory", "predicted memory (GiB)", "y")


def plain_log(axes: Axes, which: str) -> None:
    """Label a logarithmic axis with plain numbers at 1, 2 and 5."""
    for axis in [{"x": axes.xaxis, "y": axes.yaxis}[name] for name in which]:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def finish(axes: Axes, x: str, y: str, grid: str) -> None:
    """Name the axes, in the look that all figures share."""
    canvas.plain_axes(axes, grid)  # type: ignore[arg-type]
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)


def _legend(pairs: Sequence[Pair], markers: Markers) -> list[Artist]:
    style: dict[str, Any] = {"linestyle": "", "markersize": 4, "markerfacecolor": "none", "markeredgewidth": 0.8}
    handles: list[Artist] = []
    for gpu, (shape, colour) in markers.items():
        number = sum(pair.gpu == gpu for pair in pairs)
        handles.append(Line2D([], [], marker=shape, color=colour, label=f"{gpu} ({number})", **style))
    handles.append(
        Line2D(
            [], [], color="0.88", linewidth=6, label=f"rounding of the published peak, ±{significant(ROUNDING, 1)} GiB"
        )
    )
    if any(pair.published is None for pair in pairs):
        handles.append(
            Line2D([], [], color="0.3", linewidth=1.2, label="out of memory: predicted allocated (marker: reserved)")
        )
        handles.append(Line2D([], [], color="black", linewidth=0.9, linestyle=(0, (4, 2)), label="capacity of the GPU"))
    return handles
