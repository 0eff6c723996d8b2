"""The error of a prediction, magnified, and its spectrum: without and with the puzzle-gradient loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.orientation import CONVENTION, PLANES
from ppdm_bench.report.figures.style import SMALL, TEXT, Column
from ppdm_bench.report.figures.volumes import COLOUR_MAPS, style_colour_bar, write_directions
from ppdm_bench.report.library import Library
from ppdm_bench.report.loss_pairs import gradient_of, same_but_for_loss
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.snapshot import Snapshot, View
from ppdm_bench.report.tables.render import Heading, Table, TableRow
from ppdm_bench.units import plural

_BLOCKS = 12  # blocks of the puzzle along each side of a magnified picture
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))  # line styles of the axes D, H, W


@dataclass(frozen=True)
class ErrorPair:
    """The predictions of one subject without (`off`) and with (`on`) the loss."""

    snapshot: Snapshot
    on: View
    off: View

    @property
    def factor(self) -> tuple[int, ...]:
        """Factor of the puzzle along D, H, W."""
        return _factor(self.on)


def show(library: Library) -> FigureContent:
    """Return errors and spectra without and with the loss, one row per task."""
    cases = [case for snapshot in library.snapshots for case in _error_pairs(snapshot)[:1]]
    cases = list({case.snapshot.task: case for case in cases}.values())
    if not cases:
        raise MissingRecords(
            "picture data (snapshot.npz) of a method trained with the puzzle-gradient loss and of the same without it; "
            "`ppdm-bench quality --vary loss.mode=off+loss.gradient=0` writes them beside its records"
        )
    subjects = "; ".join(
        f"{c.snapshot.task}, {c.snapshot.subject} ({c.off.label} against {c.on.label}, "
        f"{plural(c.on.steps or 0, 'evaluation')})"
        for c in cases
    )
    about = (
        "Pictures: the error, prediction minus target, in the middle of the axial slice; blue is negative, red "
        "positive, with one scale for both pictures of a row. Curves: mean power of the lines of the error along each "
        "axis that the puzzle divides, in dB relative to the mean power of the curve (0 dB). Dotted lines are the "
        "harmonics of the block grid, where a grid would show a peak. One subject per task, the first of its split: "
        f"{subjects}. {CONVENTION}"
    )
    notes = "Made from picture data: " + ", ".join(dict.fromkeys(case.snapshot.place for case in cases)) + "."
    return FigureContent(_table(cases), lambda column: _figure(cases, column), about, [], notes=notes)


def _error_pairs(snapshot: Snapshot) -> list[ErrorPair]:
    views = [view for view in snapshot.of("prediction") if view.spectra and max(_factor(view)) > 1]
    return [
        ErrorPair(snapshot, on, off)
        for off in views
        if not gradient_of(off.design)
        for on in views
        if gradient_of(on.design) and on.steps == off.steps and same_but_for_loss(on.design, off.design)
    ]


def _factor(view: View) -> tuple[int, ...]:
    space = view.design.get("representation") or {}
    factor = space.get("factor", 1) if space.get("type") == "puzzle" else 1
    return tuple(factor) if isinstance(factor, list) else (int(factor),) * 3


def _relative(view: View, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies in cycles per voxel, and power relative to its mean in dB."""
    power = view.spectra[axis]
    frequencies = np.linspace(0, 0.5, power.size)
    return frequencies, 10 * np.log10(np.maximum(power / power.mean(), 1e-8))


def _table(cases: Sequence[ErrorPair]) -> Table:
    """Return a row for each frequency of each curve."""
    lines = []
    for case in cases:
        for loss, view in (("off", case.off), ("on", case.on)):
            for axis, name in _divided(case):
                about = (case.snapshot.task, case.snapshot.subject, loss, view.label, name)
                source = f"{case.snapshot.place}#{view.config_id}"
                lines += [
                    TableRow((*about, float(k), float(p)), (source,))
                    for k, p in zip(*_relative(view, axis), strict=True)
                ]
    headings = [Heading(name) for name in ("task", "subject", "loss", "method", "axis")]
    headings.append(Heading("cycles_per_voxel", "cycles/voxel", "{:.4f}".format, True))
    return Table([*headings, Heading("power_db", "power, dB", "{:.2f}".format, True)], lines)


def _divided(case: ErrorPair) -> list[tuple[int, str]]:
    """Return the numbers and names of the axes that the puzzle divides."""
    return [(axis, name) for axis, name in enumerate("DHW") if case.factor[axis] > 1]


def _figure(cases: Sequence[ErrorPair], column: Column) -> Figure:
    figure = style.new_figure(column, height=0.95 + (2.0 if column == "double" else 3.5) * len(cases))
    double = column == "double"
    down = 1 if double else 2  # in a single column, the curves are below the pictures
    grid = figure.add_gridspec(down * len(cases), 3 if double else 2, width_ratios=(1, 1, 1.6) if double else (1, 1))
    for row, case in zip(range(0, down * len(cases), down), cases, strict=True):
        off, on = (figure.add_subplot(grid[row, place]) for place in (0, 1))
        spectrum = figure.add_subplot(grid[row, 2] if double else grid[row + 1, :])
        _magnified(off, on, case)
        _spectrum(spectrum, case)
    entries = {
        line.get_label(): line for axes in figure.axes for line in axes.lines if "along" in str(line.get_label())
    }
    style.legend(figure, list(entries.values()), columns=3 if double else 2)
    style.title(figure, "The error, magnified, and its spectrum, without and with the puzzle-gradient loss.")
    return figure


def _magnified(off: Axes, on: Axes, case: ErrorPair) -> None:
    target = case.snapshot.of("target")[0].sections["axial"]
    errors = [view.sections["axial"] - target for view in (case.off, case.on)]
    size = [_BLOCKS * r for r in (case.factor[1], case.factor[0])]
    rows, columns = (_middle(n, k) for n, k in zip(target.shape, size, strict=True))
    crops = [error[rows, columns] for error in errors]
    reach = float(np.percentile(np.abs(np.stack(crops)), 99.5)) or 1.0
    aspect = case.snapshot.spacing[1] / case.snapshot.spacing[0]
    for axes, crop, name in zip((off, on), crops, ("without the loss", "with the loss"), strict=True):
        axes.imshow(crop, cmap=COLOUR_MAPS["error"], vmin=-reach, vmax=reach, interpolation="nearest", aspect=aspect)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(linewidth=0.4, color="0.6")
        axes.set_title(name, fontsize=TEXT)
        write_directions(axes, PLANES["axial"], "error")
    scale = ScalarMappable(Normalize(-reach, reach), COLOUR_MAPS["error"])
    bar = on.figure.colorbar(scale, ax=[off, on], location="right", extend="both", aspect=18, pad=0.02, shrink=0.9)
    style_colour_bar(bar, 4, symmetric=True)
    bar.set_label(f"prediction − target ({case.snapshot.unit or 'a.u.'})", fontsize=SMALL)
    off.set_ylabel(f"{case.snapshot.task}\n{case.snapshot.subject}", fontsize=SMALL)


def _middle(n: int, wanted: int) -> slice:
    size = min(n, wanted)
    return slice((n - size) // 2, (n - size) // 2 + size)


def _spectrum(axes: Axes, case: ErrorPair) -> None:
    axes.axhline(0, color=style.GREY, linewidth=0.7, zorder=0.9)
    for view, colour, name in ((case.off, style.VERMILION, "without"), (case.on, style.BLUE, "with")):
        for axis, letter in _divided(case):
            look: dict[str, Any] = {"color": colour, "linewidth": 0.9, "linestyle": _DASHES[axis]}
            axes.plot(*_relative(view, axis), **look, label=f"{name} the loss, along {letter}")
    for harmonic in sorted({i / r for r in case.factor if r > 1 for i in range(1, r // 2 + 1)}):
        axes.axvline(harmonic, color=style.GREY, linewidth=0.8, linestyle=style.DOTTED, zorder=0.9)
    axes.set_xscale("log")
    axes.set_xlim(1 / min(case.snapshot.shape), 0.53)
    style.plain_axes(axes, "y", "frequency (cycles per voxel)", "error power\n(dB relative to mean)")
    style.log_ticks(axes.xaxis)
