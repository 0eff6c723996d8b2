"""The seams of every subject with and without the puzzle-gradient loss."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppdm_bench.grouping import grouped
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import SMALL, Column
from ppdm_bench.report.library import Library
from ppdm_bench.report.loss_pairs import SEAMLESS_DB, LossPair, gradient_of, loss_pairs
from ppdm_bench.report.metrics import SEAMS
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.scores import by_origin, group_title, seeds_text
from ppdm_bench.report.tables.render import Columns, Heading, Table, table_of

_ABOUT = {
    "seam_index": "Seam index in dB for the block grid of the puzzle: power of the error spectrum at the harmonics of "
    "the grid, relative to the power at neighbouring frequencies. 0 dB means no grid; smooth errors have up to 1.5 dB.",
    "border_ratio": "Border ratio in dB for the block grid of the puzzle: mean squared difference of neighbouring "
    "voxels in two blocks, divided by that in one block, relative to the target's own. 0 dB means no seams; images "
    "without seams have up to 1.5 dB.",
}


def show(library: Library) -> FigureContent:
    """Return seams of pairs that differ only in the loss, at the most evaluations; by the border ratio if recorded."""
    everything = loss_pairs(library.points)
    # The border ratio detects all seams that the seam index detects, and others.
    everything = [pair for pair in everything if pair.measure == SEAMS[0]] or everything
    if not everything:
        raise MissingRecords(
            "a method trained with the puzzle-gradient loss and the same without it, scored by a measure of seams; "
            "`ppdm-bench ablate` makes them"
        )
    alike = grouped(everything, lambda pair: (pair.on.data, pair.on.label, pair.on.train_steps, pair.metric))
    pairs = [max(same, key=lambda pair: pair.on.evaluations or 0) for same in alike.values()]
    groups = by_origin((pair.on, group_title([pair.on, pair.off])) for pair in pairs)
    data = ". ".join(f"{origin.capitalize()}: {'; '.join(titles)}" for origin, titles in groups.items())
    about = (
        f"{' '.join(text for measure, text in _ABOUT.items() if measure in {pair.measure for pair in pairs})} A thin "
        "line joins the values of one subject without and with the puzzle-gradient loss, at equal training and network "
        "evaluations; bars are means; w is the weight of the loss. "
        f"{data}; {seeds_text(scores for pair in pairs for scores in (pair.on, pair.off))}."
    )
    records = [record for pair in pairs for record in pair.records]
    return FigureContent(_table(pairs, library), lambda column: _figure(pairs, column), about, records)


def _table(pairs: Sequence[LossPair], library: Library) -> Table:
    decibel = "{:.2f}".format
    columns: Columns[LossPair] = {
        Heading("task"): lambda pair: pair.on.task,
        Heading("with", "with the loss"): lambda pair: pair.on.label,
        Heading("gradient_weight", "weight", "{:g}".format, True): lambda pair: gradient_of(pair.on.design),
        Heading("mode"): lambda pair: pair.on.design["loss"]["mode"],
        Heading("metric"): lambda pair: pair.metric,
        Heading("evaluations", number=True): lambda pair: pair.on.evaluations,
        Heading("subjects", number=True): lambda pair: len(pair.values(pair.metric)[0]),
        Heading("off_db", "off, dB", decibel, True): lambda pair: pair.off.mean(pair.metric),
        Heading("on_db", "on, dB", decibel, True): lambda pair: pair.on.mean(pair.metric),
        Heading("difference_db", "on − off, dB", decibel, True): lambda pair: pair.difference and pair.difference.mean,
        Heading("low_db", "low", decibel, True): lambda pair: pair.difference and pair.difference.low,
        Heading("high_db", "high", decibel, True): lambda pair: pair.difference and pair.difference.high,
    }
    return table_of(pairs, columns, sources=lambda pair: library.references(pair.records))


def _figure(pairs: Sequence[LossPair], column: Column) -> Figure:
    groups = grouped(pairs, lambda pair: (pair.on.data, pair.measure))
    figure, grid = style.panels(column, len(groups), 1.7, head=0.8, across=3)
    for axes, group in zip(grid, groups.values(), strict=True):
        style.plain_axes(axes, "y", y=f"{group[0].measure.replace('_', ' ')} (dB)")
        _draw(axes, group)
        axes.set_title(group_title([group[0].on]).replace(", ", "\n", 1), fontsize=SMALL)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    handles = [
        style.entry("without the loss", linestyle="", marker="o", markersize=4, color=style.VERMILION),
        style.entry("with it (w: weight)", linestyle="", marker="s", markersize=4, color=style.BLUE),
        style.entry("mean", color="black", linewidth=1.1),
        style.entry("reached without seams", color=style.GREY, linewidth=0.7, linestyle=style.DASHED),
    ]
    style.title(figure, "Seams with and without the puzzle-gradient loss (0 dB: none).")
    style.legend(figure, handles, columns=4 if column == "double" else 2)
    return figure


def _draw(axes: Axes, pairs: Sequence[LossPair]) -> None:
    axes.axhline(0, color=style.GREY, linewidth=0.7, zorder=0.9)
    for place, pair in enumerate(pairs):
        left, right = place - 0.18, place + 0.18
        for on, off in zip(*pair.values(pair.metric), strict=True):
            axes.plot([left, right], [off, on], color="0.75", linewidth=0.6, zorder=1)
        for x, scores, colour, marker in ((left, pair.off, style.VERMILION, "o"), (right, pair.on, style.BLUE, "s")):
            values = [*scores.subject_means(pair.metric).values()]
            axes.plot([x] * len(values), values, linestyle="", marker=marker, markersize=3, color=colour)
            axes.plot([x - 0.12, x + 0.12], [fmean(values)] * 2, color="black", linewidth=1.1, zorder=3)
    axes.axhline(SEAMLESS_DB, color=style.GREY, linewidth=0.7, linestyle=style.DASHED, zorder=0.9)
    low, high = axes.dataLim.intervaly
    high = 1.1 * max(high, 1.15 * SEAMLESS_DB)  # a smaller range would magnify noise
    axes.set(xticks=range(len(pairs)), xlim=(-0.6, len(pairs) - 0.4), ylim=(1.1 * min(low, 0) - 0.05 * high, high))
    axes.set_xticklabels([_pair_label(pair) for pair in pairs], fontsize=SMALL)


def _pair_label(pair: LossPair) -> str:
    block_grid = pair.block_grid.replace("x", "×")
    where = {"all": "all voxels", "cell": "within blocks"}.get(pair.on.design["loss"]["mode"], "")
    return f"r={block_grid}, w={gradient_of(pair.on.design):g}\n{where}"
