"""Figures of quality: the values of every subject by configuration, and quality against network evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.names import metric_label, plain_label, without_common_words
from ppdm_bench.report.figures.style import TEXT
from ppdm_bench.report.metrics import SEAMS, is_regional
from ppdm_bench.report.scores import Scores, best_evaluations, by_configuration, unit_in, with_seeds_joined

if TYPE_CHECKING:
    import pandas as pd

MAX_CONFIGURATIONS = 6  # colours and a legend cannot distinguish more

_FIRST = ("psnr", "ssim", "sharpness", *SEAMS)  # the metrics that come first
_COLUMNS = 4
_SHORT: dict[str, Any] = {"markersize": 4, "markeredgewidth": 1.0}  # the bar of one seed
_ROW, _FRAME = 0.17, 0.95  # inches


def subjects_figure(records: Iterable[Record], title: str) -> Figure:
    """Return one row per configuration and one column per metric, with a dot per subject and a bar at the mean.

    Each configuration is shown at the number of network evaluations with the best mean. Trainings that differ only in
    their seed share a row: a dot is the mean over the seeds, and a short bar the mean of one seed. With more than six
    configurations, those without a network (such as the input) are left out, because their values would compress the
    scale of all others. The solid grey line is the mean of the first row with a network, the dashed one that of the
    input.

    Args:
        records: long-form records of one data set; those without a subject are ignored.
        title: text above the figure.

    Raises:
        ValueError: no record has a value, or the records are of several data sets.
    """
    import seaborn  # takes more than a second to load

    everything, metrics = with_values(records)
    joined = with_seeds_joined(everything)
    shown = best_evaluations(joined, lambda series: (series.label, series.precision))
    networks = [series for series in shown if series.evaluations is not None]
    shown = networks if len(networks) > MAX_CONFIGURATIONS else shown
    columns = [metric for first in _FIRST for metric in metrics if metric.startswith(first)]
    columns = list(dict.fromkeys([*columns, *metrics]))[:_COLUMNS]
    names = without_common_words([series.label for series in shown])
    names = [plain_label(name) for name in names]
    figure = style.new_figure("double", height=_FRAME + _ROW * len(shown))
    for place, metric in enumerate(columns):
        axes = figure.add_subplot(1, len(columns), place + 1)
        values = _frame(shown, metric)
        rows: dict[str, Any] = {"x": metric, "y": "row", "order": range(len(shown)), "orient": "h", "ax": axes}
        means = values.groupby("row")[metric].mean()
        if networks and shown.index(networks[0]) in means:
            axes.axvline(means[shown.index(networks[0])], color="0.6", linewidth=0.8, zorder=1)
        seaborn.stripplot(values, **rows, jitter=False, size=2.5, color=style.SKY, zorder=2)
        bar: dict[str, Any] = {"marker": "|", "linestyle": "", "markersize": 8, "markeredgewidth": 1.6, "zorder": 3}
        axes.plot(means, means.index, color=style.BLUE, **bar)
        for row, series in enumerate(shown):
            if len(by_seed := series.means_by_seed(metric)) > 1:
                axes.plot(list(by_seed.values()), [row] * len(by_seed), color=style.VERMILION, **bar | _SHORT)
        unmodified = _frame([series for series in everything if series.label == "input"], metric)[metric]
        low, high = axes.get_xlim()
        if len(unmodified) and low <= unmodified.mean() <= high:
            axes.axvline(unmodified.mean(), color="0.6", linewidth=0.8, linestyle=style.DASHED, zorder=1)
        style.plain_axes(axes, "x")
        axes.set_title(style.wrap_label(metric_label(metric, unit_in(everything, metric)), 16), fontsize=TEXT)
        axes.set(xlabel="", ylabel="")  # seaborn writes the names of the columns
        axes.set(ylim=(len(shown) - 0.4, -0.6), yticks=range(len(shown)), yticklabels=names if place == 0 else [])
        axes.xaxis.set_major_locator(MaxNLocator(4))
    several = " Each at its best number of network evaluations." if len(shown) < len(joined) else ""
    dots = "Dots: subjects; bars: means"
    if len(joined) < len(everything):
        dots = "Dots: subjects, means over the seeds of the training; long bars: means; short bars: means of one seed"
    style.title(
        figure,
        f"{title}{several} {dots}; lines: means of the first method and, dashed, of the input.",
    )
    return figure


def evaluations_figure(records: Iterable[Record], title: str) -> Figure:
    """Return one panel per metric: the mean over subjects against network evaluations, and each subject as a thin line.

    Configurations without a network (the input, existing predictions) are dashed lines. The arguments are those of
    :func:`subjects_figure`.

    Raises:
        ValueError: no record has a value, or the records are of several data sets.
    """
    import seaborn

    everything, metrics = with_values(records)
    labels = list(dict.fromkeys(series.label for series in everything))
    colours = {label: style.SERIES[(n - 1) % len(style.SERIES)] if n else style.GREY for n, label in enumerate(labels)}
    steps = sorted({series.evaluations for series in everything if series.evaluations})
    figure, grid = style.panels("double", len(metrics), 1.5, head=0.5, across=3 if len(metrics) <= 6 else 4)
    for axes, metric in zip(grid, metrics, strict=True):
        values = _frame([series for series in everything if series.evaluations is not None], metric)
        lines: dict[str, Any] = {"x": "steps", "y": metric, "hue": "label", "palette": colours, "legend": False}
        seaborn.lineplot(values, **lines, units="subject", estimator=None, linewidth=0.5, alpha=0.35, ax=axes)
        means = {"marker": "o", "markersize": 3, "markeredgewidth": 0, "linewidth": 1.3}
        seaborn.lineplot(values, **lines, **means, errorbar=None, ax=axes)
        fixed = _frame([series for series in everything if series.evaluations is None], metric)
        for label, mean in fixed.groupby("label")[metric].mean().items():
            axes.axhline(mean, color=colours[str(label)], linewidth=1.0, linestyle=style.DASHED)
        axes.set(xscale="log", ylabel="")
        style.plain_axes(axes, "y", "network evaluations")
        style.log_ticks(axes.xaxis, style.spaced_ticks(steps))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(metric_label(metric, unit_in(everything, metric)), fontsize=TEXT)
    style.title(figure, f"{title} Thick: mean over subjects; thin: each subject.")
    networks = {series.label for series in everything if series.evaluations is not None}
    entries = [
        style.entry(plain_label(label), color=colour, linestyle="-" if label in networks else style.DASHED)
        for label, colour in colours.items()
    ]
    style.legend(figure, entries, columns=4)
    return figure


def with_values(records: Iterable[Record]) -> tuple[list[Scores], list[str]]:
    """Return the scores, and the metrics that have values.

    Raises:
        ValueError: no record has a value.
    """
    everything = by_configuration(records)
    found = (m for series in everything for m, scans in series.scans.items() if scans and not is_regional(m))
    metrics = list(dict.fromkeys(found))  # without regional metrics, which are too many for a figure
    if not metrics:
        raise ValueError("there is nothing to draw: no record has a subject and a value")
    return everything, metrics


def _frame(shown: Sequence[Scores], metric: str) -> pd.DataFrame:
    """Return one row per configuration and subject."""
    import pandas as pd

    columns = ["row", "label", "steps", "subject", metric]
    values = [
        (row, series.label, series.evaluations, subject, value)
        for row, series in enumerate(shown)
        for subject, value in series.subject_means(metric).items()
    ]
    return pd.DataFrame(values, columns=columns)
