"""Figures of quality: every subject's value under each configuration, and quality against network evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import SMALL, TEXT
from ppdm_bench.report.metrics import is_regional, metric_name
from ppdm_bench.report.scores import Scores, by_configuration, most_evaluations, names_of, unit_in

__all__ = ["evaluations_figure", "subjects_figure", "with_values"]


def subjects_figure(records: Iterable[Record], title: str) -> Figure:
    """Return a panel a metric: a dot for each subject and method, a line for each subject, a bar for the mean.

    Of a method with several numbers of network evaluations, the most are shown.

    Args:
        records: long-form records of one data set; those without a subject are passed over.
        title: stands above the figure.

    Raises:
        ValueError: no record holds a value, or the records are of several data sets.
    """
    everything, metrics = with_values(records)
    shown = most_evaluations(everything, lambda series: (series.label, series.precision))
    figure, panels = _panels(len(metrics), height=1.3)
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_subjects(axes, shown, metric)
        axes.set_title(metric_name(metric, unit_in(everything, metric)), fontsize=TEXT)
        axes.set(xticks=[], xlim=(-0.5, len(shown) - 0.5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    style.title(figure, f"{title} Dots: subjects, joined by lines; bars: their means.")
    names = [name for name, series in zip(names_of(everything), everything, strict=True) if series in shown]
    style.legend(figure, [_dot(label=name, color=_colour(place)) for place, name in enumerate(names)], columns=4)
    return figure


def evaluations_figure(records: Iterable[Record], title: str) -> Figure:
    """Return a panel a metric: mean over subjects against network evaluations, each subject thin behind it.

    What has no network (the input, predictions that were made before) is a dashed line.

    Args:
        records: as for :func:`subjects_figure`.
        title: stands above the figure.

    Raises:
        ValueError: no record holds a value, or the records are of several data sets.
    """
    everything, metrics = with_values(records)
    labels = list(dict.fromkeys(series.label for series in everything))
    figure, panels = _panels(len(metrics), height=1.5)
    for axes, metric in zip(panels, metrics, strict=True):
        for number, label in enumerate(labels):
            _draw_curve(axes, [series for series in everything if series.label == label], metric, _colour(number))
        axes.set_title(metric_name(metric, unit_in(everything, metric)), fontsize=TEXT)
        _evaluations_axis(axes, sorted({series.evaluations for series in everything if series.evaluations}))
    style.title(figure, f"{title} Thick: mean over subjects; thin: each subject.")
    style.legend(figure, [_legend_line(label, n, everything) for n, label in enumerate(labels)], columns=4)
    return figure


def with_values(records: Iterable[Record]) -> tuple[list[Scores], list[str]]:
    """The series, and the metrics of which any has a value.

    Raises:
        ValueError: none has one.
    """
    everything = by_configuration(records)
    found = (m for series in everything for m, scans in series.scans.items() if scans and not is_regional(m))
    metrics = list(dict.fromkeys(found))  # of regions there are too many for a panel each; the table has them
    if not metrics:
        raise ValueError("there is nothing to draw: no record has a subject and a value")
    return everything, metrics


def _dot(**style: Any) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", markersize=4, **style)


def _panels(number: int, height: float) -> tuple[Figure, list[Axes]]:
    across = 3 if number <= 6 else 4
    rows = math.ceil(number / across)
    figure = style.new_figure("double", height=0.5 + height * rows)
    panels = [figure.add_subplot(rows, across, place + 1) for place in range(number)]
    for axes in panels:
        style.plain_axes(axes, "y")
    return figure, panels


def _draw_subjects(axes: Axes, everything: Sequence[Scores], metric: str) -> None:
    values = [series.subjects(metric) for series in everything]
    for subject in dict.fromkeys(name for found in values for name in found):
        line = [(place, found[subject]) for place, found in enumerate(values) if subject in found]
        axes.plot(*zip(*line, strict=True), color="0.75", linewidth=0.6, zorder=1)
    for place, found in enumerate(values):
        if found:
            y = list(found.values())
            axes.plot([place] * len(y), y, linestyle="", marker="o", markersize=3, color=_colour(place), zorder=2)
            axes.plot([place - 0.3, place + 0.3], [fmean(y)] * 2, color="black", linewidth=1.2, zorder=3)


def _draw_curve(axes: Axes, curve: Sequence[Scores], metric: str, colour: str) -> None:
    points = {series.evaluations: series.subjects(metric) for series in curve if series.scans.get(metric)}
    if None in points:
        axes.axhline(fmean(points[None].values()), color=colour, linewidth=1.0, linestyle=(0, (4, 2)))
        return
    steps = sorted(k for k in points if k is not None)
    for subject in dict.fromkeys(name for found in points.values() for name in found):
        line = [(k, points[k][subject]) for k in steps if subject in points[k]]
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=0.5, alpha=0.35)
    axes.plot(steps, [fmean(points[k].values()) for k in steps], color=colour, marker="o", markersize=3, linewidth=1.3)


def _evaluations_axis(axes: Axes, steps: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("network evaluations", fontsize=SMALL)


def _legend_line(label: str, number: int, everything: Sequence[Scores]) -> Line2D:
    still = any(series.label == label and series.evaluations is None for series in everything)
    return Line2D([], [], label=label, color=_colour(number), linestyle=(0, (4, 2)) if still else "-")


def _colour(number: int) -> str:
    return style.SERIES[(number - 1) % len(style.SERIES)] if number else style.GREY
