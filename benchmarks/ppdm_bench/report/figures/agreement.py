"""Predicted against measured or published peaks: the pairs, one figure for all of them, and two tables.

A pair belongs to the same configuration and phase. Measurements are paired by `rows.prediction_of`, published values by
their `config_id`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import SMALL, TEXT, Column, Marker
from ppdm_bench.report.rows import gather_peaks, prediction_of
from ppdm_bench.report.tables.render import Columns, Heading, Table, TableRow, table_of, to_markdown
from ppdm_bench.units import GIB, shape_text

# The published memory counters and their names in tables and legends.
COUNTERS = {
    "peak_allocated": "allocated",
    "peak_reserved": "reserved",
    "reserved_growth": "reserved by the call",
    "refused": "request refused",
}
UNSTATED = "not stated"

_LINEAR = 5.0  # percent; with larger errors, the scale is logarithmic, so that 0.1 % stays visible
_HALF_DIGITS = (0.05, 0.005, 0.0005)  # GiB: half of the last digit of a value with one, two or three decimals

Look = Literal["gpu", "origin"]


@dataclass(frozen=True)
class ComparedPeak:
    """A measured or published peak and its prediction.

    Attributes:
        found: the measured or published record; its status is `oom` if the run was out of memory.
        predicted: the predicted record of the same metric.
        context: all predicted records of the configuration and phase, by metric.
        verified: whether a repeated run fitted the predicted memory; None if there was no repetition.
    """

    found: Record
    predicted: Record
    context: Mapping[str, Record] = field(default_factory=dict)
    verified: bool | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has a value to compare with."""
        return self.found.status == "ok" and bool(self.found.value)

    @property
    def found_gib(self) -> float:
        """The measured or published peak in GiB; 0 if the run was out of memory."""
        return _gib(self.found) or 0.0 if self.finished else 0.0

    @property
    def predicted_gib(self) -> float:
        """The predicted peak in GiB."""
        return _gib(self.predicted) or 0.0

    @property
    def error(self) -> float:
        """Relative error of the prediction, predicted / found − 1, in percent; 0 if the run was out of memory."""
        return 100 * (self.predicted_gib / self.found_gib - 1) if self.finished else 0.0

    @property
    def rounding(self) -> float:
        """Half of the last published digit, in percent of the value; 0 if the value was published in bytes."""
        if self.found.kind != "published" or not self.finished:
            return 0.0
        value = self.found_gib
        half = max((h for n, h in enumerate(_HALF_DIGITS, 1) if abs(round(value, n) - value) < 1e-8), default=0.0)
        return 100 * half / value

    @property
    def agrees(self) -> bool:
        """Whether the error is at most the rounding of the published value or 0.5 %."""
        return abs(self.error) <= max(0.5, self.rounding)

    @property
    def gpu(self) -> str:
        """The GPU; if unknown, the device, else the source."""
        return str(self.found.env.get("gpu") or self.found.device or self.found.source or UNSTATED)

    @property
    def stated(self) -> bool:
        """Whether the source states both the GPU and the release of PyTorch."""
        return not any(text.startswith(UNSTATED) for text in (self.gpu, str(self.found.env.get("torch", ""))))

    @property
    def capacity(self) -> float | None:
        """Memory of the GPU in GiB: as recorded, else from its name (`H100 80GB`)."""
        recorded = self.found.env.get("capacity")
        if isinstance(recorded, int | float):
            return recorded / GIB
        named = re.search(r"(\d+) ?G(?:i?B)\b", self.gpu)
        return float(named[1]) if named else None


Groups = Mapping[str, Sequence[ComparedPeak]]


def measured_pairs(records: Iterable[Record], metrics: Sequence[str] = ("peak_allocated",)) -> list[ComparedPeak]:
    """Return the measured peaks for whose configuration and phase there is a prediction."""
    rows = gather_peaks(records)
    pairs = []
    for row in rows:
        if (prediction := prediction_of(row, rows)) is None:
            continue
        for phase, metric in product(row.phases, metrics):
            if row.value(phase, metric) and prediction.value(phase, metric) is not None:
                found, predicted = (one.records[phase, metric] for one in (row, prediction))
                pairs.append(ComparedPeak(found, predicted, verified=row.verified(phase)))
    return pairs


def published_pairs(records: Sequence[Record]) -> list[ComparedPeak]:
    """Return the published values that have a prediction.

    A run that was published as out of memory is left out if its refused request was published too.
    """
    predicted: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if record.kind == "predicted" and record.value is not None:
            predicted.setdefault((record.config_id, record.phase), {})[record.metric] = record
    published = [r for r in records if r.kind == "published" and r.metric in COUNTERS and r.status in ("ok", "oom")]
    refused = {(r.config_id, r.phase) for r in published if r.metric == "refused"}
    pairs = []
    for record in published:
        run = record.config_id, record.phase
        context = predicted.get(run, {})
        if {"peak_allocated", record.metric} <= context.keys() and not (record.status == "oom" and run in refused):
            pairs.append(ComparedPeak(record, context[record.metric], context))
    return pairs


def validation_figure(records: Iterable[Record], look: Look = "gpu") -> Figure:
    """Return predicted against published peaks (two columns wide).

    Args:
        records: published records and their predictions, with the same config_id, phase and metric
            (:data:`COUNTERS`). A run published as out of memory has the status `oom`; its prediction also has a record
            of `peak_reserved`. The capacity of the GPU is `env["capacity"]` in bytes, else part of its name.
        look: what colours distinguish: the GPU (`gpu`), or counter and completeness of the source (`origin`).

    Raises:
        ValueError: no published peak has a prediction.
    """
    pairs = published_pairs(list(records))
    finished = [pair for pair in pairs if pair.finished]
    if not finished:
        raise ValueError(
            "there is nothing to compare: no published value has a prediction of its config_id, phase and metric"
        )
    groups = grouped(pairs, (lambda pair: pair.gpu) if look == "gpu" else _origin)
    groups = groups if look == "gpu" else dict(sorted(groups.items()))
    counted = ", ".join(dict.fromkeys(COUNTERS[pair.found.metric] for pair in finished))
    origin = "" if look == "gpu" else " Stated: whether the source names GPU and release."
    title = f"Predicted against published memory ({counted}).{origin}"
    labels = {name: f"{name} ({len(own)})" for name, own in groups.items()}
    return agreement_figure(groups, title=title, against="published", labels=labels, summary=True)


def measured_figure(records: Iterable[Record]) -> Figure:
    """Return predicted against measured peaks (two columns wide), with errors of allocated and reserved memory.

    A measurement that failed or has no prediction is left out.

    Raises:
        ValueError: no measured peak has a prediction.
    """
    pairs = _require_measured_pairs(records)
    groups = grouped(pairs, lambda pair: pair.found.method)
    title = f"Predicted against measured peak memory{_machines(pairs)}."
    labels = {name: f"{name} ({len(own)})" for name, own in groups.items()}
    return agreement_figure(groups, title=title, against="measured", labels=labels, legend_columns=4)


def agreement_figure(
    groups: Groups,
    *,
    title: str,
    against: str,
    labels: Mapping[str, str],
    column: Column = "double",
    legend_columns: int = 3,
    summary: bool = False,
) -> Figure:
    """Return predicted against measured or published peaks, with the line of equality and the relative errors.

    With measured peaks, every metric has its own panel of errors. A grey bar is the rounding of a published value. Runs
    that were published as out of memory have their own panel: predicted allocated and reserved memory, and the capacity
    of the GPU.

    Args:
        groups: pairs by group; each group has its own marker.
        title: text above the figure.
        against: kind of the values with which predictions are compared: measured, published.
        labels: entries of the legend, by group.
        column: width of the figure; in a single column the panels are stacked.
        legend_columns: columns of the legend.
        summary: whether the first panel states the number of pairs, the median error and the largest error.
    """
    pairs = [pair for own in groups.values() for pair in own]
    finished, failed = ([p for p in pairs if p.finished is ok] for ok in (True, False))
    metrics = list(dict.fromkeys(pair.found.metric for pair in finished))
    metrics = metrics if against == "measured" else [""]
    marks = style.markers(groups)
    figure = style.new_figure(column, height=3.3 if column == "double" else 5.0)
    if column == "single":
        first, *errors = figure.subplots(1 + len(metrics), 1)
        last = None
    else:
        grid = figure.add_gridspec(len(metrics), 3 if failed else 2, width_ratios=(1, 1, 0.42) if failed else (1, 1))
        first = figure.add_subplot(grid[:, 0])
        errors = [figure.add_subplot(grid[row, 1]) for row in range(len(metrics))]
        last = figure.add_subplot(grid[:, 2]) if failed else None
    _scatter(first, groups, marks, against)
    if summary:
        _write_summary(first, finished)
    for axes, metric in zip(errors, metrics, strict=True):
        own = {name: [p for p in found if metric in ("", p.found.metric)] for name, found in groups.items()}
        _errors(axes, own, marks, against)
        if metric:
            axes.set_title(f"{COUNTERS[metric]} memory", fontsize=TEXT, loc="left")
    if last is not None:
        _out_of_memory(last, groups, marks)
    style.title(figure, title)
    entries = _legend(labels, marks, rounded=any(p.rounding for p in finished), failed=bool(failed))
    style.legend(figure, entries, columns=legend_columns)
    return figure


def agreement_table(records: Iterable[Record]) -> str:
    """Return the pairs of :func:`validation_figure` as Markdown: one row per published value, then the summary."""
    pairs = published_pairs(list(records))
    columns: Columns[ComparedPeak] = {
        Heading("run"): lambda pair: _run(pair.found),
        Heading("counter"): lambda pair: COUNTERS[pair.found.metric],
        Heading("GPU"): lambda pair: pair.gpu,
        Heading("torch"): lambda pair: pair.found.env.get("torch"),
        Heading("cuDNN"): lambda pair: pair.found.env.get("cudnn", "of the release"),
        Heading("published GiB", number=True): lambda pair: f"{round(pair.found_gib, 3):g}" if pair.finished else "OOM",
        Heading("predicted GiB", "", "{:.3f}".format, True): lambda pair: pair.predicted_gib,
        Heading("error", "", "{:+.2f} %".format, True): lambda pair: pair.error if pair.finished else None,
        Heading("agrees"): lambda pair: ("yes" if pair.agrees else "**no**") if pair.finished else None,
        Heading("assumed GiB", "", "{:.3f}".format, True): lambda pair: _gib(pair.context.get("assumed")) or None,
        Heading("predicted reserved GiB", "", "{:.2f}".format, True): lambda pair: _gib(
            pair.context.get("peak_reserved")
        ),
        Heading("predicted to fit"): lambda pair: "yes" if pair.context["peak_allocated"].status == "ok" else "no",
    }
    summary = "; ".join(", ".join(part) for part in _summary([pair for pair in pairs if pair.finished]))
    return f"{to_markdown(table_of(pairs, columns))}\n{summary}\n"


def measured_table(records: Iterable[Record]) -> str:
    """Return the errors of :func:`measured_figure` as Markdown: one row per method and size, then one row for all.

    Raises:
        ValueError: no measured peak has a prediction.
    """
    pairs = _require_measured_pairs(records)
    groups = grouped(pairs, lambda pair: (pair.found.method, shape_text(pair.found.shape)))
    parts = ("n", "median absolute error", "lowest", "highest")
    head = ["method", "volume", *(f"{COUNTERS[metric]} {part}" for metric in _MEASURED for part in parts), "verified"]
    rows = [*([*names, *_error_cells(own)] for names, own in groups.items()), ["all", "", *_error_cells(pairs)]]
    title = f"Relative error of predicted peaks, predicted / measured − 1{_machines(pairs)}."
    headings = [Heading(name, number=place > 1) for place, name in enumerate(head)]
    return f"{title}\n\n{to_markdown(Table(headings, [TableRow(tuple(row)) for row in rows]))}\n{_MEASURED_NOTE}\n"


_MEASURED = ("peak_allocated", "peak_reserved")
_MEASURED_NOTE = (
    "n: measured peaks, over variants, phases, precisions and checkpointing. Verified: phases that ran again with the "
    "process limited to the predicted memory, of those that were tried."
)


def _require_measured_pairs(records: Iterable[Record]) -> list[ComparedPeak]:
    pairs = measured_pairs(records, _MEASURED)
    if not pairs:
        raise ValueError("there is nothing to compare: no measured peak has a prediction of its configuration")
    return pairs


def _origin(pair: ComparedPeak) -> str:
    return f"{COUNTERS[pair.found.metric]}, {'stated' if pair.stated else 'partly unstated'}"


def _gib(record: Record | None) -> float | None:
    return None if record is None or record.value is None else record.value / GIB


def _run(record: Record) -> str:
    """Return the name of a published run: source, variant, size, checkpointing and step."""
    recomputed = "" if record.checkpointing == "none" else f"checkpointing {record.checkpointing}"
    step = f"step {record.options['step']}" if len(record.options.get("step", "")) == 1 else ""
    source = (record.options["published"], record.method, record.precision) if "published" in record.options else ()
    return ", ".join(filter(None, (*source, record.variant, shape_text(record.shape), recomputed, step)))


def _machines(pairs: Sequence[ComparedPeak]) -> str:
    """Return the GPUs of the measurements and the releases of PyTorch."""
    found = dict.fromkeys(
        f"{p.found.env.get('gpu') or p.found.device}, torch {p.found.env.get('torch') or UNSTATED}" for p in pairs
    )
    return " (" + "; ".join(found) + ")"


def _error_cells(pairs: Sequence[ComparedPeak]) -> list[str]:
    cells = []
    for metric in _MEASURED:
        errors = [pair.error for pair in pairs if pair.found.metric == metric]
        ends = [f"{end(errors):+.2f}%".replace("-", "−") if errors else "–" for end in (min, max)]
        cells += [str(len(errors)), f"{median(map(abs, errors)):.2f}%" if errors else "–", *ends]
    tried = [p.verified for p in pairs if p.found.metric == "peak_allocated" and p.verified is not None]
    return [*cells, f"{sum(tried)} of {len(tried)}" if tried else "–"]


def _summary(pairs: Sequence[ComparedPeak]) -> Iterator[tuple[str, str, str]]:
    """Yield the number of pairs with their median and largest error; then the same for fully stated conditions."""
    stated = [pair for pair in pairs if pair.stated]
    for name, part in {"": pairs, "conditions stated: ": stated if stated != pairs else []}.items():
        if part:
            middle, worst = median(abs(pair.error) for pair in part), max((pair.error for pair in part), key=abs)
            yield f"{name}n = {len(part)}", f"median error {middle:.2f} %", f"worst {worst:+.2f} %".replace("-", "−")


def _scatter(axes: Axes, groups: Groups, marks: Mapping[str, Marker], against: str) -> None:
    finished = {name: [pair for pair in own if pair.finished] for name, own in groups.items()}
    values = [size for own in finished.values() for p in own for size in (p.found_gib, p.predicted_gib) if size]
    low, high = min(values) / 1.4, max(values) * 1.4
    axes.plot([low, high], [low, high], color=style.GREY, linewidth=0.7, zorder=1)
    for name, own in finished.items():
        style.hollow_points(axes, [p.found_gib for p in own], [p.predicted_gib for p in own], marks[name])
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    style.plain_axes(axes, "both", f"{against} peak (GiB)", "predicted peak (GiB)")
    for axis in (axes.xaxis, axes.yaxis):
        style.log_ticks(axis)


def _write_summary(axes: Axes, pairs: Sequence[ComparedPeak]) -> None:
    """Write the summary into two corners, which only very large errors reach."""
    corners: Sequence[dict[str, Any]] = ({"x": 0.04, "y": 0.96, "va": "top"}, {"x": 0.97, "y": 0.04, "ha": "right"})
    for corner, part in zip(corners, _summary(pairs), strict=False):
        axes.text(s="\n".join(part), transform=axes.transAxes, fontsize=SMALL, linespacing=1.35, **corner)


def _errors(axes: Axes, groups: Groups, marks: Mapping[str, Marker], against: str) -> None:
    axes.axhline(0, color=style.GREY, linewidth=0.7, zorder=1)
    largest = 0.2
    for name, own in groups.items():
        shown = [pair for pair in own if pair.finished]
        x = [pair.found_gib for pair in shown]
        bars = [pair.rounding for pair in shown]
        if any(bars):
            axes.errorbar(x, [p.error for p in shown], bars, linestyle="", ecolor="0.7", elinewidth=0.8, zorder=1.5)
        style.hollow_points(axes, x, [pair.error for pair in shown], marks[name])
        largest = max(largest, *(abs(p.error) + bar for p, bar in zip(shown, bars, strict=True)), 0.0)
    style.plain_axes(axes, "y", f"{against} peak (GiB)", "error of the prediction (%)")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if largest > _LINEAR:
        axes.set_yscale("symlog", linthresh=0.1, linscale=0.6)
        decades = [10.0**n for n in range(-1, 3) if 10.0**n < 1.5 * largest]
        axes.set_yticks([*(-tick for tick in reversed(decades)), 0.0, *decades], minor=False)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        largest *= 1.5
    axes.set(xscale="log", ylim=(-1.15 * largest, 1.15 * largest))
    axes.margins(x=0.08)
    style.log_ticks(axes.xaxis)


def _out_of_memory(axes: Axes, groups: Groups, marks: Mapping[str, Marker]) -> None:
    """Draw for each run the predicted allocated (line) and reserved memory (marker), and the capacity (dashed)."""
    failed = [(pair, marks[name]) for name, own in groups.items() for pair in own if not pair.finished]
    tops = []
    for place, (pair, marker) in enumerate(failed, start=1):
        reserved, capacity = _gib(pair.context.get("peak_reserved")), pair.capacity
        axes.plot([place - 0.3, place + 0.3], [pair.predicted_gib] * 2, color=marker.colour, linewidth=1.2)
        if reserved is not None:
            style.hollow_points(axes, [place], [reserved], marker)
        if capacity is not None:
            ends = [place - 0.45, place + 0.45]
            axes.plot(ends, [capacity] * 2, color="black", linewidth=0.9, linestyle=style.DASHED)
        tops += [value for value in (pair.predicted_gib, reserved, capacity) if value is not None]
    axes.set(xlim=(0.3, len(failed) + 0.7), ylim=(0, 1.15 * max(tops)), xticks=range(1, len(failed) + 1))
    style.plain_axes(axes, "y", "runs published as\nout of memory", "predicted memory (GiB)")


def _legend(labels: Mapping[str, str], marks: Mapping[str, Marker], rounded: bool, failed: bool) -> list[Artist]:
    of_rounding = style.entry("bar: rounding of the published value", color="0.7", linewidth=0.8)
    of_failed = [
        style.entry("out of memory: predicted allocated (marker: reserved)", color="0.3", linewidth=1.2),
        style.entry("capacity of the GPU", color="black", linewidth=0.9, linestyle=style.DASHED),
    ]
    points = [style.points_entry(label, marks[name]) for name, label in labels.items()]
    return [*points, *[of_rounding] * rounded, *of_failed * failed]
