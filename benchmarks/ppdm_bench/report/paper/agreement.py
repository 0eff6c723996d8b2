"""Predicted against measured and published peaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.agreement import is_stated
from ppdm_bench.report.figures.style import SMALL, TEXT, Column
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import Missing, Shown
from ppdm_bench.report.rows import gather, prediction_of
from ppdm_bench.report.tables.render import Heading, Line, Table
from ppdm_bench.units import GIB, gib, shape_text

_LOOKS = (
    ("s", style.VERMILION),
    ("o", style.BLUE),
    ("^", style.GREEN),
    ("D", style.PURPLE),
    ("v", style.ORANGE),
)


@dataclass(frozen=True)
class Pair:
    """A peak that was found and what was predicted for it."""

    found: Record
    predicted: Record

    @property
    def error(self) -> float:
        """Predicted over found, less one."""
        return float(self.predicted.value or 0) / float(self.found.value or 1) - 1

    @property
    def origin(self) -> str:
        """How the peak came about: its device, or the source of the publication."""
        if self.found.kind == "published":
            source = self.found.source.split(" at ")[0].split(",")[0]
            return f"published: {source or 'source not stated'}"
        device = self.found.env.get("gpu") or self.found.device.upper()
        return f"measured: {device}"

    @property
    def group(self) -> str:
        """The same as a figure can tell it apart: there are more sources than markers."""
        if self.found.kind == "published":
            return f"published, GPU and release {'stated' if is_stated(self.found) else 'partly unstated'}"
        return self.origin


def show(library: Library) -> Shown:
    """Every pair of one configuration and phase.

    Raises:
        Missing: there is none.
    """
    pairs = [*_measured(library.records), *_published(library.records)]
    if not pairs:
        raise Missing(
            "peaks that were both predicted and measured or published; `ppdm-bench memory --device cpu` or "
            "benchmarks/harness/validate.sh makes them"
        )
    table = Table(
        [
            Heading("method", "method"),
            Heading("variant", "variant"),
            Heading("shape", "shape"),
            *(Heading(name, name) for name in ("phase", "precision", "checkpointing", "kind", "origin")),
            Heading("found_bytes", "peak, GiB", gib, number=True),
            Heading("predicted_bytes", "predicted, GiB", gib, number=True),
            Heading("relative_error", "error", lambda error: f"{error:+.2%}", number=True),
        ],
        [
            Line(
                (p.found.method, p.found.variant, shape_text(p.found.shape), p.found.phase, p.found.precision,
                 p.found.checkpointing, p.found.kind, p.origin, p.found.value, p.predicted.value, p.error),
                library.references((p.found, p.predicted)),
            )
            for p in pairs
        ],
    )  # fmt: skip
    records = {id(record): record for pair in pairs for record in (pair.found, pair.predicted)}
    said = "; ".join(f"{group} ({text})" for group, text in _summaries(pairs).items())
    about = (
        "Predicted against found peak of live tensor memory (peak_allocated). Left or top: both, with the line of "
        "equality; right or bottom: the relative error. Every prediction is hollow; colours tell what it is held "
        f"against: {said}. On the CPU prediction and measurement count the same tensors; published peaks are of third "
        "parties' code on their GPUs, rounded as their sources have them. Runs that were published as out of memory "
        "are left out. No images and no seeds are involved."
    )
    return Shown(table, lambda column: _figure(pairs, column), about, list(records.values()))


def _measured(records: Sequence[Record]) -> list[Pair]:
    rows = gather(record for record in records if record.command == "memory")
    pairs = []
    for row in rows:
        prediction = prediction_of(row, rows)
        for phase in row.phases if prediction else ():
            assert prediction is not None
            if row.value(phase, "peak_allocated") and prediction.value(phase, "peak_allocated"):
                key = (phase, "peak_allocated")
                pairs.append(Pair(row.records[key], prediction.records[key]))
    return pairs


def _published(records: Sequence[Record]) -> list[Pair]:
    peaks = [r for r in records if r.metric == "peak_allocated" and r.value]
    predicted = {(r.config_id, r.phase): r for r in peaks if r.kind == "predicted"}
    found = [r for r in peaks if r.kind == "published" and r.status == "ok"]
    return [Pair(r, predicted[r.config_id, r.phase]) for r in found if (r.config_id, r.phase) in predicted]


def _summaries(pairs: Sequence[Pair]) -> dict[str, str]:
    said = {}
    for group in dict.fromkeys(pair.group for pair in pairs):
        errors = [abs(pair.error) for pair in pairs if pair.group == group]
        said[group] = f"n = {len(errors)}, median {median(errors):.2%}, largest {max(errors):.2%}"
    return said


def _figure(pairs: Sequence[Pair], column: Column) -> Figure:
    looks = dict(zip(dict.fromkeys(pair.group for pair in pairs), _LOOKS * len(pairs), strict=False))
    figure = style.new_figure(column, height=3.0 if column == "double" else 4.9)
    panels = figure.subplots(*((1, 2) if column == "double" else (2, 1)))
    peaks = [value / GIB for pair in pairs for value in (pair.found.value, pair.predicted.value) if value]
    low, high = min(peaks) / 1.4, max(peaks) * 1.4
    panels[0].plot([low, high], [low, high], color=style.GREY, linewidth=0.7, zorder=1)
    panels[1].axhline(0, color=style.GREY, linewidth=0.7, zorder=1)
    for group, look in looks.items():
        own = [pair for pair in pairs if pair.group == group]
        found = [float(pair.found.value or 0) / GIB for pair in own]
        _points(panels[0], found, [float(pair.predicted.value or 0) / GIB for pair in own], look)
        _points(panels[1], found, [100 * pair.error for pair in own], look)
    panels[0].set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    panels[1].set(xscale="log", xlim=(low, high))
    reach = 1.15 * max(1.0, *(abs(100 * pair.error) for pair in pairs))
    panels[1].set_ylim(-reach, reach)
    _finish(panels[0], "predicted peak (GiB)", "xy")
    _finish(panels[1], "predicted / found − 1 (%)", "x")
    handles = []
    for (group, text), (marker, colour) in zip(_summaries(pairs).items(), looks.values(), strict=True):
        label = f"{group} ({text})" if column == "double" else f"{group}\n({text})"
        handles.append(
            Line2D([], [], linestyle="", marker=marker, color=colour, markersize=4, markerfacecolor="none", label=label)
        )
    style.title(figure, "Predicted against found peak of allocated memory; every prediction is hollow.")
    style.legend(figure, handles, columns=1)
    return figure


def _points(axes: Axes, x: Sequence[float], y: Sequence[float], look: tuple[str, str]) -> None:
    marker, colour = look
    axes.plot(
        x, y, linestyle="", marker=marker, markersize=4, markerfacecolor="none", color=colour, markeredgewidth=0.8
    )


def _finish(axes: Axes, label: str, log: str) -> None:
    style.plain_axes(axes, "both")
    for axis in [{"x": axes.xaxis, "y": axes.yaxis}[name] for name in log]:
        axis.set_major_locator(LogLocator(subs=(1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    if "y" not in log:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("measured or published peak (GiB)", fontsize=TEXT)
    axes.set_ylabel(label, fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)
