"""Learning curves: quality on the split val against the training time, or the steps, of every method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.names import plain_label
from ppdm_bench.report.figures.style import SMALL, Column, Marker
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.scores import Scores, group_title, is_of_curve, of_common_network, seed_of, seeds_text
from ppdm_bench.report.tables.render import Columns, Heading, Table, table_of

METRIC = "psnr"
THIRD = 1 / 3  # of the training; the table has the gain in the last third


@dataclass(frozen=True)
class Curve:
    """Mean quality of one design at several shares of its training, over subjects and seeds.

    Attributes:
        scores: the scores by share of the steps, in ascending order.
        total: steps of the whole training.
        seconds: training time, from the step time of the method; None if the budget was a number of steps.
    """

    scores: dict[float, Scores]
    total: int
    seconds: float | None

    @property
    def last(self) -> Scores:
        """The scores at the end."""
        return self.scores[max(self.scores)]

    @property
    def records(self) -> list[Record]:
        """The records of all shares."""
        return [record for one in self.scores.values() for record in one.records]

    @property
    def means(self) -> dict[float, float]:
        """Mean over subjects, by share."""
        return {share: fmean(one.subject_means(METRIC).values()) for share, one in self.scores.items()}

    @property
    def end(self) -> float:
        """Mean at the end."""
        return self.means[max(self.scores)]

    @property
    def late_gain(self) -> float | None:
        """Gain in dB over the last third, from the last score at or before its start; None for an incomplete curve."""
        early = [mean for share, mean in self.means.items() if share <= 1 - THIRD + 1e-6]
        return self.end - early[-1] if early and max(self.scores) == 1 else None

    def place(self, share: float, in_seconds: bool) -> float:
        """Return the place of a share on the horizontal axis, in minutes or steps."""
        return share * self.seconds / 60 if in_seconds and self.seconds is not None else share * self.total


def curves_of(records: Sequence[Record]) -> list[Curve]:
    """Return the learning curves in records, one for each data set, design, budget and number of evaluations."""
    found: dict[str, Curve] = {}
    scored = [one for one in records if is_of_curve(one) and one.metric == METRIC and one.value is not None]
    for record in sorted(scored, key=lambda one: one.options["curve"]["share"]):
        curve, one = record.options["curve"], Scores.empty_for(record)
        key = json.dumps([one.data, one.design or one.label, one.evaluations, curve["of"], one.seconds], sort_keys=True)
        whole = found.setdefault(key, Curve({}, int(curve["of"]), one.seconds))
        whole.scores.setdefault(float(curve["share"]), one).add(record, seed_of(record))
    return list(found.values())


def show(library: Library) -> FigureContent:
    """Return the learning curves of every data set, each method at its best number of evaluations."""
    curves = [curve for curve in curves_of(library.records) if curve.total]
    inputs = {curve.last.data: curve.end for curve in curves_of(library.records) if not curve.total}
    if not curves:
        raise MissingRecords("scores during training; `ppdm-bench quality --curve 6` makes them")
    best = [max(same, key=lambda curve: curve.end) for same in grouped(curves, _apart_from_evaluations).values()]
    sets = grouped(best, lambda curve: curve.last.data).values()
    panels = [of_common_network(panel, lambda curve: curve.last) for panel in sets]
    timed = all(curve.seconds is not None for curve in curves)
    about = (
        "PSNR of the averaged weights at fixed shares of each training, on subjects of the split val, against "
        + (
            "the training time: the number of steps times the step time of the method, measured before all trainings"
            if timed
            else "the number of steps"
        )
        + ". Each method is shown at the number of network evaluations that is best at its end, with the network that "
        "most methods share; the table has all. "
        "Grey: the input. The learning rate falls to 0 only at the end. "
        f"{'; '.join(group_title([panel[0].last]) for panel in panels)}; "
        f"{seeds_text(curve.last for curve in curves)}."
    )
    colours = style.method_colours(library.records)
    drawn = [curve for panel in panels for curve in panel]
    marks = style.markers_of_colours({curve.last.label: colours[curve.last.method] for curve in drawn})
    records = [record for curve in curves for record in curve.records]
    return FigureContent(_table(curves, library), lambda column: _figure(panels, marks, inputs, column), about, records)


def _apart_from_evaluations(curve: Curve) -> str:
    design = {name: part for name, part in curve.last.design.items() if name != "sampling"}
    return json.dumps([curve.last.data, curve.last.label, design, curve.total, curve.seconds])


def _table(curves: Sequence[Curve], library: Library) -> Table:
    decibel = "{:.2f}".format

    def mean_at(share: float) -> Columns[Curve]:
        return {
            Heading(f"psnr_{share:.3f}", f"PSNR at {share:.0%}, dB", decibel, True): lambda one: one.means.get(share)
        }

    columns: Columns[Curve] = {
        Heading("task"): lambda curve: curve.last.task,
        Heading("method"): lambda curve: curve.last.method,
        Heading("variant"): lambda curve: curve.last.variant,
        Heading("evaluations", number=True): lambda curve: curve.last.evaluations,
        Heading("width", number=True): lambda curve: curve.last.width,
        Heading("train_steps", "training steps", number=True): lambda curve: curve.total,
        Heading("train_seconds", "training time, s", "{:.0f}".format, True): lambda curve: curve.seconds,
        Heading("subjects", number=True): lambda curve: len(curve.last.subject_means(METRIC)),
        Heading("seeds", number=True): lambda curve: len(curve.last.seeds),
    }
    for share in sorted({share for curve in curves for share in curve.scores}):
        columns |= mean_at(share)
    columns[Heading("late_gain_db", "gain of the last third, dB", decibel, True)] = lambda curve: curve.late_gain
    return table_of(curves, columns, sources=lambda curve: library.references(curve.records))


def _figure(
    panels: Sequence[Sequence[Curve]], marks: dict[str, Marker], inputs: dict[str, float], column: Column
) -> Figure:
    names = dict.fromkeys(curve.last.label for panel in panels for curve in panel)
    looks = _looks({name: marks[name] for name in names})
    columns = 3 if column == "double" else 1
    head = 0.5 + 0.16 * -(-len(names) // columns)
    figure, grid = style.panels(column, len(panels), 2.2, head, across=2 if len(panels) in (2, 4) else 3)
    for axes, panel in zip(grid, panels, strict=True):
        in_seconds = all(curve.seconds is not None for curve in panel)
        style.plain_axes(axes, "both", "training time (min)" if in_seconds else "training steps", "PSNR (dB)")
        axes.set_title(group_title([panel[0].last]).replace(", ", "\n", 1), fontsize=SMALL)
        if (before := inputs.get(panel[0].last.data)) is not None:
            axes.axhline(before, color="0.6", linewidth=0.9, linestyle=style.DASHED, zorder=1)
        for curve in panel:
            places = [curve.place(share, in_seconds) for share in curve.means]
            axes.plot(places, [*curve.means.values()], **looks[curve.last.label], zorder=2)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlim(left=0)
    style.title(figure, "Learning curves: quality on val against training. Grey: the input.")
    entries = [style.entry(plain_label(name), **look) for name, look in looks.items()]
    style.legend(figure, entries, columns)
    return figure


def _looks(marks: Mapping[str, Marker]) -> dict[str, dict[str, Any]]:
    """Return the look of each line; lines of one colour also differ in their dashes."""
    looks: dict[str, dict[str, Any]] = {}
    for name, marker in marks.items():
        alike = sum(look["color"] == marker.colour for look in looks.values())
        look = {"color": marker.colour, "marker": marker.shape, "linestyle": style.DASHES[alike % len(style.DASHES)]}
        looks[name] = look | {"markersize": 3.5, "linewidth": 0.9, "markeredgewidth": 0}
    return looks
