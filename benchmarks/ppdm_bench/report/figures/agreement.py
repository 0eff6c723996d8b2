"""Predicted against published peaks: a scatter, the relative errors, and what was published as out of memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import SMALL, TEXT
from ppdm_bench.units import GIB

# The counters that are published, as a table and a legend name them.
COUNTERS = {
    "peak_allocated": "allocated",
    "peak_reserved": "reserved",
    "reserved_growth": "reserved by the call",
    "refused": "request refused",
}
UNSTATED = "not stated"

_MARKERS = tuple(zip(style.MARKERS, style.SERIES, strict=True))
_LINEAR = 5.0  # percent; errors beyond are drawn on a scale that shows a tenth of a percent beside them

Look = Literal["gpu", "origin"]


@dataclass(frozen=True)
class Pair:
    """One published value and what was predicted for it, in GiB.

    `published` is None where the run ran out of memory; `reserved` and `capacity` then say why, where they are known;
    `fits` is the prediction's verdict, `assumed` the part of the predicted peak that no counter has proven, `rounding`
    half of the last digit that was published. `stated`: whether the source names GPU and release.
    """

    name: str
    counter: str
    gpu: str
    versions: tuple[str, str]
    published: float | None
    predicted: float
    reserved: float | None
    assumed: float
    capacity: float | None
    fits: bool

    @property
    def stated(self) -> bool:
        return _are_known(self.gpu, self.versions[0])

    @property
    def origin(self) -> str:
        """What was counted, and whether its conditions are known."""
        return f"{self.counter}, {'stated' if self.stated else 'partly unstated'}"

    @property
    def error(self) -> float:
        """Predicted over published, less one, in percent."""
        return 100 * (self.predicted / self.published - 1) if self.published else 0.0

    @property
    def agrees(self) -> bool:
        """Whether the prediction is what was published, but for its rounding or half a percent."""
        return not self.published or abs(self.error) <= max(0.5, 100 * self.rounding / self.published)

    @property
    def rounding(self) -> float:
        """Half of the last digit that was published, GiB; 0 where bytes were."""
        digits = (n for n in (1, 2, 3) if abs(round(self.published or 0, n) - (self.published or 0)) < 1e-8)
        return max((0.5 * 10.0**-n for n in digits), default=0.0)


def validation_figure(records: Iterable[Record], look: Look = "gpu") -> Figure:
    """Return predicted against published peaks (two columns wide).

    Left: the peaks on logarithmic axes, with the line of equality. Right: the relative error, with a bar for the
    rounding of what was published. Runs published as out of memory stand apart, unless the refused request was
    published too: what the allocator is predicted to take from the driver, and the capacity of the GPU.

    Args:
        records: pairs that share config_id, phase and metric (:data:`COUNTERS`), one published, one predicted; a run
            published as out of memory has the status `oom`, and its prediction a record of `peak_reserved` too. The
            GPU is the published record's `env["gpu"]` (else its device, else its source); its capacity is
            `env["capacity"]` in bytes, else what its name says (`H100 80GB`).
        look: what gives a point its colour and marker: the GPU, or the counter and whether conditions are stated.

    Raises:
        ValueError: no published peak has a prediction.
    """
    pairs = _pairs(list(records))
    finished = [pair for pair in pairs if pair.published is not None]
    failed = [pair for pair in pairs if pair.published is None]
    if not finished:
        raise ValueError(
            "there is nothing to compare: no published value has a prediction of its config_id, phase and metric"
        )
    # One look for all panels; with more groups than looks they come round again.
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(getattr(pair, look), []).append(pair)
    looks = dict(zip(sorted(groups) if look == "origin" else groups, _MARKERS * len(pairs), strict=False))
    figure = style.new_figure("double", height=3.3)
    panels = figure.subplots(1, 3 if failed else 2, width_ratios=(1, 1, 0.42) if failed else (1, 1))
    for panel, draw in zip(panels[:2], (_scatter, _errors), strict=True):
        draw(panel, finished, [([p for p in groups[name] if p.published], marker) for name, marker in looks.items()])
    if failed:
        _out_of_memory(panels[2], failed, {pair.gpu: looks[getattr(pair, look)] for pair in failed})
    counted = dict.fromkeys(pair.counter for pair in finished)
    origin = "" if look == "gpu" else " Stated: whether the source names GPU and release."
    style.title(figure, f"Predicted against published memory ({', '.join(counted)}).{origin}")
    style.legend(figure, _legend({name: len(groups[name]) for name in looks}, looks, failed), columns=3)
    return figure


def agreement_table(records: Iterable[Record]) -> str:
    """Return the same pairs as Markdown: a row a value, then the summary that the figure shows.

    Args:
        records: as for :func:`validation_figure`.
    """
    heads = ("run", "counter", "GPU", "torch", "cuDNN", "published GiB", "predicted GiB", "error", "agrees")
    lines = ["| " + " | ".join((*heads, "of it assumed GiB", "predicted reserved GiB", "predicted to fit")) + " |"]
    lines.append("|---|---|---|---|---|---:|---:|---:|---|---:|---:|---|")
    pairs = _pairs(list(records))
    for pair in pairs:
        cells = (
            pair.name,
            pair.counter,
            pair.gpu,
            *pair.versions,
            "OOM" if pair.published is None else _shortest(pair.published),
            f"{pair.predicted:.3f}",
            *(("", "") if pair.published is None else (_percent(pair.error), "yes" if pair.agrees else "**no**")),
            f"{pair.assumed:.3f}" if pair.assumed else "0",
            "" if pair.reserved is None else f"{pair.reserved:.2f}",
            "yes" if pair.fits else "no",
        )
        lines.append("| " + " | ".join(cells) + " |")
    finished = [pair for pair in pairs if pair.published is not None]
    return "\n".join([*lines, "", "; ".join(", ".join(part) for part in _summary(finished)), ""])


def _shortest(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _percent(value: float) -> str:
    return f"{value:+.2f} %".replace("-", "−")


def _pairs(records: Sequence[Record]) -> list[Pair]:
    predicted = {(r.config_id, r.phase, r.metric): r for r in records if r.kind == "predicted" and r.value is not None}
    published = [r for r in records if r.kind == "published" and r.metric in COUNTERS and r.status in ("ok", "oom")]
    refused = {(r.config_id, r.phase) for r in published if r.metric == "refused"}
    pairs = []
    for record in published:
        run = record.config_id, record.phase
        allocated = predicted.get((*run, "peak_allocated"))
        if allocated is None or (record.status == "oom" and run in refused):
            continue
        value, reserved, assumed = (
            _gibibytes(predicted.get((*run, metric))) for metric in (record.metric, "peak_reserved", "assumed")
        )
        pairs.append(
            Pair(
                name=_name(record),
                counter=COUNTERS[record.metric],
                gpu=_gpu(record),
                versions=(str(record.env.get("torch", "")), str(record.env.get("cudnn", "of the release"))),
                published=_gibibytes(record) if record.status == "ok" and record.value else None,
                predicted=value or 0.0,
                reserved=reserved,
                assumed=assumed or 0.0,
                capacity=_capacity(record),
                fits=allocated.status == "ok",
            )
        )
    return pairs


def _gibibytes(record: Record | None) -> float | None:
    return None if record is None or record.value is None else record.value / GIB


def _name(record: Record) -> str:
    """What tells published runs apart: method (of several), variant, size, checkpointing and step."""
    size = "×".join(map(str, record.shape))
    recomputed = "" if record.checkpointing == "none" else f"checkpointing {record.checkpointing}"
    step = f"step {record.options['step']}" if len(record.options.get("step", "")) == 1 else ""
    told = (record.options["published"], record.method, record.precision) if "published" in record.options else ()
    return ", ".join(filter(None, (*told, record.variant, size, recomputed, step)))


def _gpu(record: Record) -> str:
    return str(record.env.get("gpu") or record.device or record.source or UNSTATED)


def is_stated(record: Record) -> bool:
    """Whether the source of a published record names GPU and release."""
    return _are_known(_gpu(record), str(record.env.get("torch", "")))


def _are_known(*conditions: str) -> bool:
    return not any(each.startswith(UNSTATED) for each in conditions)


def _capacity(record: Record) -> float | None:
    stated = record.env.get("capacity")
    if isinstance(stated, (int, float)):
        return stated / GIB
    named = re.search(r"(\d+) ?G(?:i?B)\b", _gpu(record))
    return float(named[1]) if named else None


Marker = tuple[str, str]
Groups = Sequence[tuple[Sequence[Pair], Marker]]


def points(axes: Axes, x: Sequence[float], y: Sequence[float], marker: Marker) -> None:
    """Draw hollow markers: all of them have to do with predictions."""
    shape, colour = marker
    axes.plot(x, y, linestyle="", marker=shape, markersize=4, markerfacecolor="none", color=colour, markeredgewidth=0.8)


def _scatter(axes: Axes, pairs: Sequence[Pair], groups: Groups) -> None:
    values = [value for pair in pairs for value in (pair.published or 0, pair.predicted) if value]
    low, high = min(values) / 1.4, max(values) * 1.4
    axes.plot([low, high], [low, high], color=style.GREY, linewidth=0.7, zorder=1)
    for own, marker in groups:
        points(axes, [pair.published or 0 for pair in own], [pair.predicted for pair in own], marker)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    plain_log(axes, "xy")
    finish(axes, "published (GiB)", "predicted (GiB)", "both")
    # Off the line of equality, where no point lies unless the prediction is far off.
    corners: Sequence[dict[str, Any]] = ({"x": 0.04, "y": 0.96, "va": "top"}, {"x": 0.97, "y": 0.04, "ha": "right"})
    for corner, part in zip(corners, _summary(pairs), strict=False):
        axes.text(s="\n".join(part), transform=axes.transAxes, fontsize=SMALL, linespacing=1.35, **corner)


def _summary(pairs: Sequence[Pair]) -> Iterator[tuple[str, str, str]]:
    """The number of values, their median and worst error; then, where some conditions are unstated, without these."""
    stated = [pair for pair in pairs if pair.stated]
    for name, part in {"": pairs, "conditions stated: ": stated if stated != pairs else []}.items():
        if part:
            middle, worst = median(abs(pair.error) for pair in part), max((pair.error for pair in part), key=abs)
            yield f"{name}n = {len(part)}", f"median error {middle:.2f} %", f"worst {_percent(worst)}"


def _errors(axes: Axes, pairs: Sequence[Pair], groups: Groups) -> None:
    axes.axhline(0, color=style.GREY, linewidth=0.7, zorder=1)
    largest = 0.2
    for own, marker in groups:
        x = [pair.published or 1 for pair in own]
        reach = [100 * pair.rounding / (pair.published or 1) for pair in own]
        axes.errorbar(x, [p.error for p in own], reach, linestyle="", ecolor="0.7", elinewidth=0.8, zorder=1.5)
        points(axes, x, [pair.error for pair in own], marker)
        largest = max(largest, *(abs(p.error) + bar for p, bar in zip(own, reach, strict=True)), 0.0)
    if largest > _LINEAR:
        axes.set_yscale("symlog", linthresh=0.1, linscale=0.6)
        ticks = [sign * 10.0**n for n in range(-1, 3) if 10.0**n < 1.5 * largest for sign in (-1, 1)]
        axes.set_yticks(sorted([0.0, *ticks]), [f"{tick:g}".replace("-", "−") for tick in sorted([0.0, *ticks])])
        axes.yaxis.set_minor_formatter(NullFormatter())
        largest *= 1.5  # room on such a scale
    axes.set(xscale="log", ylim=(-1.15 * largest, 1.15 * largest))
    axes.margins(x=0.08)
    plain_log(axes, "x")
    finish(axes, "published (GiB)", "predicted / published − 1 (%)", "y")


def _out_of_memory(axes: Axes, pairs: Sequence[Pair], markers: dict[str, Marker]) -> None:
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
    style.plain_axes(axes, grid)  # type: ignore[arg-type]
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)


def _legend(numbers: dict[str, int], looks: dict[str, Marker], failed: Sequence[Pair]) -> list[Artist]:
    style: dict[str, Any] = {"linestyle": "", "markersize": 4, "markerfacecolor": "none", "markeredgewidth": 0.8}
    handles: list[Artist] = []
    for name, (shape, colour) in looks.items():
        handles.append(Line2D([], [], marker=shape, color=colour, label=f"{name} ({numbers[name]})", **style))
    handles.append(Line2D([], [], color="0.7", linewidth=0.8, label="bar: rounding of the published value"))
    if failed:
        handles.append(
            Line2D([], [], color="0.3", linewidth=1.2, label="out of memory: predicted allocated (marker: reserved)")
        )
        handles.append(Line2D([], [], color="black", linewidth=0.9, linestyle=(0, (4, 2)), label="capacity of the GPU"))
    return handles
