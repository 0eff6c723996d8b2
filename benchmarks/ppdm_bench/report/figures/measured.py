"""Predicted against measured peaks of our own methods: how far off a prediction is, by method and by size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.agreement import finish, plain_log, points
from ppdm_bench.report.figures.style import TEXT
from ppdm_bench.report.rows import Row, gather, prediction_of
from ppdm_bench.units import GIB, shape_text

__all__ = ["measured_figure", "measured_table"]

_MARKERS = (
    ("o", style.BLUE),
    ("s", style.VERMILION),
    ("^", style.GREEN),
    ("D", style.PURPLE),
    ("v", style.ORANGE),
    ("P", style.SKY),
    ("X", style.GREY),
)
_QUANTITIES = {"peak_allocated": "allocated", "peak_reserved": "reserved"}
_SPREAD = 0.3  # methods of one size stand beside one another, so far from the middle to either side


@dataclass(frozen=True)
class Pair:
    """One measured peak and what was predicted for it, in bytes.

    Attributes:
        row: the measured row.
        phase, metric: of the peak.
    """

    row: Row
    phase: str
    metric: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the volume, in voxels."""
        shape = self.row.settings["shape"]
        return shape if isinstance(shape, tuple) else ()


Markers = dict[str, tuple[str, str]]


def measured_figure(records: Iterable[Record]) -> Figure:
    """Return predicted against measured peaks (two columns wide).

    Left: allocated and reserved memory on logarithmic axes, with the line of equality. Right, one above the other: the
    relative error of each by the size of the volume, methods beside one another.

    Args:
        records: long-form records. A measurement without a prediction of its configuration is passed over, and so is
            one that failed.

    Raises:
        ValueError: no measured peak has a prediction.
    """
    pairs = _some(records)
    metrics = [metric for metric in _QUANTITIES if any(pair.metric == metric for pair in pairs)]
    markers = dict(zip(dict.fromkeys(pair.row.method for pair in pairs), _MARKERS * len(pairs), strict=False))
    figure = style.new_figure("double", height=3.6)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25), squeeze=False)[0]
    _scatter(left.subplots(), pairs, markers)
    panels = right.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        _errors(axes, [pair for pair in pairs if pair.metric == metric], _shapes(pairs), markers)
        axes.set_title(f"{_QUANTITIES[metric]} memory", fontsize=TEXT, loc="left")
    panels[-1].set_xlabel("volume (voxels)", fontsize=TEXT)
    style.title(figure, f"Predicted against measured peak memory{_machines(pairs)}.")
    style.legend(figure, _legend(pairs, markers), columns=4)
    return figure


def measured_table(records: Iterable[Record]) -> str:
    """Return the errors as Markdown: a row a method and size, then all together.

    Args:
        records: as for :func:`measured_figure`.

    Raises:
        ValueError: no measured peak has a prediction.
    """
    pairs = _some(records)
    groups: dict[tuple[str, tuple[int, ...]], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.row.method, pair.shape), []).append(pair)
    head = ["method", "volume", *(f"{name} {part}" for name in _QUANTITIES.values() for part in _PARTS), "verified"]
    lines = [
        head,
        ["---", "---", *["---:"] * (len(head) - 2)],
        *([name, shape_text(shape), *_cells(own)] for (name, shape), own in groups.items()),
        ["all", "", *_cells(pairs)],
    ]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"Relative error of predicted peaks, predicted / measured − 1{_machines(pairs)}.\n\n{text}\n\n{_LEGEND}\n"


_PARTS = ("n", "median size of error", "lowest", "highest")
_LEGEND = (
    "n: measured peaks, over variants, phases, precisions and checkpointing. Verified: how many phases ran again with "
    "the process capped at the predicted memory, of those that were tried."
)


def _some(records: Iterable[Record]) -> list[Pair]:
    rows = gather(records)
    pairs = [pair for row in rows for pair in _pairs(row, prediction_of(row, rows))]
    if not pairs:
        raise ValueError("there is nothing to compare: no measured peak has a prediction of its configuration")
    return pairs


def _pairs(row: Row, prediction: Row | None) -> list[Pair]:
    if prediction is None:
        return []
    found = [(p, m, row.value(p, m), prediction.value(p, m)) for p in row.phases for m in _QUANTITIES]
    return [Pair(row, phase, metric, real, told) for phase, metric, real, told in found if real and told is not None]


def _cells(pairs: Sequence[Pair]) -> list[str]:
    cells = []
    for metric in _QUANTITIES:
        errors = [pair.error for pair in pairs if pair.metric == metric]
        middle = f"{median(map(abs, errors)):.2%}" if errors else "–"
        ends = [f"{end(errors):+.2%}".replace("-", "−") if errors else "–" for end in (min, max)]
        cells += [str(len(errors)), middle, *ends]
    tried = [pair.row.verified(pair.phase) for pair in pairs if pair.metric == "peak_allocated"]
    tried = [verified for verified in tried if verified is not None]
    return [*cells, f"{sum(map(bool, tried))} of {len(tried)}" if tried else "–"]


def _machines(pairs: Sequence[Pair]) -> str:
    """Where it was measured: the GPU and the release of PyTorch."""
    settings = [pair.row.settings for pair in pairs]
    found = dict.fromkeys(f"{s['gpu'] or s['device']}, torch {s['torch'] or 'not stated'}" for s in settings)
    return " (" + "; ".join(found) + ")"


def _shapes(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    return sorted({pair.shape for pair in pairs}, key=lambda shape: (prod(shape), shape))


def _scatter(axes: Axes, pairs: Sequence[Pair], markers: Markers) -> None:
    values = [value / GIB for pair in pairs for value in (pair.measured, pair.predicted)]
    low, high = min(values) / 1.4, max(values) * 1.4
    axes.plot([low, high], [low, high], color=style.GREY, linewidth=0.7, zorder=1)
    for method, marker in markers.items():
        own = [pair for pair in pairs if pair.row.method == method]
        points(axes, [pair.measured / GIB for pair in own], [pair.predicted / GIB for pair in own], marker)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set_box_aspect(1)
    plain_log(axes, "xy")
    finish(axes, "measured peak (GiB)", "predicted peak (GiB)", "both")


def _errors(axes: Axes, pairs: Sequence[Pair], shapes: Sequence[tuple[int, ...]], markers: Markers) -> None:
    axes.axhline(0, color=style.GREY, linewidth=0.7, zorder=1)
    step = 2 * _SPREAD / max(len(markers) - 1, 1)
    for number, (method, marker) in enumerate(markers.items()):
        own = [pair for pair in pairs if pair.row.method == method]
        beside = number * step - _SPREAD if len(markers) > 1 else 0.0
        points(axes, [shapes.index(pair.shape) + beside for pair in own], [100 * pair.error for pair in own], marker)
    reach = 1.2 * max(0.5, *(abs(100 * pair.error) for pair in pairs))
    axes.set(ylim=(-reach, reach), xlim=(-0.5, len(shapes) - 0.5), xticks=range(len(shapes)))
    axes.set_xticklabels([_size(shape) for shape in shapes])
    finish(axes, "", "error (%)", "y")
    axes.xaxis.set_minor_locator(NullLocator())


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}³" if len(set(shape)) == 1 else shape_text(shape)


def _legend(pairs: Sequence[Pair], markers: Markers) -> list[Artist]:
    return [
        Line2D(
            [],
            [],
            linestyle="",
            marker=shape,
            markersize=4,
            markerfacecolor="none",
            markeredgewidth=0.8,
            color=colour,
            label=f"{method} ({sum(pair.row.method == method for pair in pairs)})",
        )
        for method, (shape, colour) in markers.items()
    ]
