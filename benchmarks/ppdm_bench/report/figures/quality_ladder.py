"""Figure of quality for many configurations: a row each, with its name, and a column a metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.quality import with_values
from ppdm_bench.report.figures.style import SMALL, TEXT
from ppdm_bench.report.metrics import metric_name
from ppdm_bench.report.scores import Scores, most_evaluations, unit_in

__all__ = ["MANY", "ladder_figure"]

MANY = 6  # configurations; more are a ladder, as neither colours nor a legend tell them apart

_COLUMNS = 4
_ROW, _FRAME = 0.17, 0.75  # inches


def ladder_figure(records: Iterable[Record], title: str) -> Figure:
    """Return a row for each configuration and a column for each of the first metrics: dots subjects, bars their means.

    What has no network, such as the input, is left out: its values would squeeze all others, and are in the table. Of
    a method with several numbers of network evaluations, the most are shown. The line is the mean of the first row.

    Args:
        records: long-form records of one data set; those without a subject are passed over.
        title: stands above the figure.

    Raises:
        ValueError: no record of a network holds a value, or the records are of several data sets.
    """
    everything, metrics = with_values(records)
    sampled = [series for series in everything if series.evaluations is not None]
    shown = most_evaluations(sampled, lambda series: (series.label, series.precision))
    if not shown:
        raise ValueError("there is nothing to draw: no record of a network has a subject and a value")
    columns = [m for m in (*_first(metrics), *metrics) if m in metrics]
    columns = list(dict.fromkeys(columns))[:_COLUMNS]
    figure = style.new_figure("double", height=_FRAME + _ROW * len(shown))
    panels = [figure.add_subplot(1, len(columns), place + 1) for place in range(len(columns))]
    for axes, metric in zip(panels, columns, strict=True):
        style.plain_axes(axes, "x")
        _draw(axes, shown, metric)
        axes.set_title(metric_name(metric, unit_in(everything, metric)), fontsize=TEXT)
        axes.set(yticks=range(len(shown)), ylim=(len(shown) - 0.4, -0.6), yticklabels=[])
        axes.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_yticklabels(_short([series.label for series in shown]), fontsize=SMALL)
    style.title(figure, f"{title} Dots: subjects; bars: means; line: the mean of the first row.")
    return figure


def _first(metrics: Sequence[str]) -> list[str]:
    """What is looked at before all else: the error, the structure, and what an average hides."""
    return ["psnr", "ssim", "sharpness", *(metric for metric in metrics if metric.startswith("seam_index"))]


def _short(labels: Sequence[str]) -> list[str]:
    """Labels without the words that all begin with; one that is no more than these keeps its last."""
    split = [label.split(" ") for label in labels]
    shared = sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*split, strict=False)))
    return [" ".join(words[shared:]) or " ".join(words) for words in split]


def _draw(axes: Axes, shown: Sequence[Scores], metric: str) -> None:
    for row, series in enumerate(shown):
        values = list(series.subjects(metric).values())
        if not values:
            continue
        mean = fmean(values)
        if row == 0:
            axes.axvline(mean, color="0.6", linewidth=0.8, zorder=1)
        axes.plot(values, [row] * len(values), linestyle="", marker="o", markersize=2.5, color=style.SKY, zorder=2)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=style.BLUE, linewidth=1.6, zorder=3)
