"""Time per training step, and time per volume against network evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import MARKERS, SERIES, SMALL, TEXT
from ppdm_bench.report.rows import common_settings, varying_settings
from ppdm_bench.report.timings import TimingRow, gather_times
from ppdm_bench.units import significant


def speed_figure(records: Iterable[Record]) -> Figure:
    """Return bars of the time per training step, and the time per volume against network evaluations (log-log).

    Points and bars are medians, thin lines quartiles. An estimate is a hollow point at the end of a dashed line. Times
    that are predicted for a card are hollow, with their expected range. A configuration without a time per step has a
    name, but no bar. Records that are not about time are ignored.

    Raises:
        ValueError: no record has a time.
    """
    rows = gather_times(records)
    differing = varying_settings([row.configuration for row in rows])
    names = [style.wrap_row_label(row.configuration, differing, 30) for row in rows]
    figure = style.new_figure("double", height=max(2.6, 1.1 + 0.2 * sum(name.count("\n") + 1 for name in names)))
    bars, curves = figure.subplots(1, 2, width_ratios=(1, 1.15))
    style.plain_axes(bars, "x", "time per training step (s)")
    style.plain_axes(curves, "both", "network evaluations (log axis)", "time per volume (s, log axis)")
    for place, row in enumerate(rows):
        _draw_bar(bars, place, row)
        _draw_curve(curves, place, row)
    bars.set(ylim=(len(rows) - 0.4, -0.6))
    bars.set_yticks(range(len(rows)), names, fontsize=SMALL)
    ends = [
        max(step.seconds, *(step.quartiles or step.interval or ()))
        for row in rows
        if (step := row.step) and step.seconds
    ]
    bars.set_xlim(0, 1.22 * max(ends, default=1))  # room for the labels
    if not any(row.step for row in rows):  # names and colours are still needed for the other panel
        bars.set_xticks([])
        bars.set_xlabel("no training step was timed", fontsize=TEXT)
    if any(timing.seconds for row in rows for timing in row.volumes.values()):
        _log_axes(curves, sorted({k for row in rows for k in row.volumes}))
    else:  # a logarithmic axis needs values
        curves.set_axis_off()
        curves.text(0.5, 0.5, "no volume was timed", transform=curves.transAxes, ha="center", fontsize=TEXT)
    style.title(figure, _title(rows))
    if any(timing.estimate for row in rows for timing in row.volumes.values()):
        look: dict[str, Any] = {"marker": "o", "markersize": 4, "markerfacecolor": "white", "linestyle": style.DASHED}
        style.legend(figure, [style.entry("estimated from fewer evaluations", color="0.3", **look)], columns=1)
    return figure


def _title(rows: Sequence[TimingRow]) -> str:
    shared = common_settings([row.configuration for row in rows])
    if cards := dict.fromkeys(t.record.gpu for row in rows for _, _, t in row.timings if t.is_predicted):
        return (
            f"Predicted time per training step and per volume on {' and '.join(cards)}, with the same colours: "
            f"{shared}. Lines: expected range."
        )
    return f"Time per training step and per volume, with the same colours: {shared}. Medians and quartiles."


def _look(place: int) -> dict[str, Any]:
    again, number = divmod(place, len(SERIES))  # after the last colour, colours repeat with another marker
    return {"color": SERIES[number], "marker": MARKERS[again % len(MARKERS)]}


def _draw_bar(axes: Axes, place: int, row: TimingRow) -> None:
    """Draw a bar with its value, and the marker of the configuration in the other panel."""
    look, timing = _look(place), row.step
    seconds = timing.seconds if timing else None
    end = 0.0
    if timing is not None and seconds is not None:
        axes.barh(place, seconds, height=0.62, **style.bar_style(timing.record.kind, look["color"]))
        first, end = timing.quartiles or timing.interval or (seconds, seconds)
        axes.plot([first, end], [place, place], color="black", linewidth=1.0)
    axes.plot(0, place, markersize=5, markeredgecolor="white", markeredgewidth=0.6, clip_on=False, zorder=4, **look)
    failed = "" if timing is None else timing.record.status.replace("oom", "OOM")
    text = failed if seconds is None else significant(seconds)
    right = max(seconds or 0.0, end)
    style.write_beside(axes, right, place, text, 6)


def _draw_curve(axes: Axes, place: int, row: TimingRow) -> None:
    look = _look(place)
    run = {k: timing for k, timing in row.volumes.items() if timing.seconds is not None}
    times = [timing.seconds or 0 for timing in run.values()]
    hollow = {"markerfacecolor": "white"} if any(timing.is_predicted for timing in run.values()) else {}
    axes.plot(list(run), times, markersize=4, linewidth=1.2, **look | hollow)
    for k, timing in run.items():
        if ends := timing.quartiles or timing.interval:
            axes.plot([k, k], ends, color=look["color"], linewidth=0.8)
    guesses = {k: t.estimate.value for k, t in row.volumes.items() if t.estimate and t.estimate.value}
    if guesses:
        path = [*list(zip(run, times, strict=True))[-1:], *guesses.items()]
        axes.plot(*zip(*path, strict=True), color=look["color"], linewidth=0.9, linestyle=style.DASHED)
        axes.plot(list(guesses), list(guesses.values()), linestyle="", markersize=4, markerfacecolor="white", **look)


def _log_axes(axes: Axes, counts: Sequence[int]) -> None:
    axes.set(xscale="log", yscale="log")
    if len(counts) > 1:
        style.log_ticks(axes.xaxis, style.spaced_ticks(counts))
    else:  # the ticks of a logarithmic scale would not include the only count
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xticks([], minor=True)
    style.log_ticks(axes.yaxis)
