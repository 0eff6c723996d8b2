"""Every method on one subject of each task: input, target, predictions, and their errors with one scale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.figures.image_grid import ImageGrid
from ppdm_bench.report.figures.names import plain_label
from ppdm_bench.report.figures.orientation import CONVENTION, PLANES, PlaneName
from ppdm_bench.report.figures.style import SMALL, Column
from ppdm_bench.report.figures.volumes import (
    HU_WINDOWS,
    Colours,
    colour_bar,
    draw_picture,
    write_directions,
    write_on_image,
)
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.snapshot import Snapshot, View
from ppdm_bench.report.tables.render import Columns, Heading, Table, table_of
from ppdm_bench.units import plural

_PLANES: dict[Column, tuple[PlaneName, ...]] = {
    "single": ("axial", "coronal"),
    "double": ("axial", "coronal", "sagittal"),
}
MAX_PREDICTIONS = 12  # on a page
_ROWS = 9  # more rows become two blocks side by side, if there is a single task
_SPACE = 0.15  # between the blocks, relative to a picture
_HEIGHTS = {1: (0.42,), 2: (0.68, 0.18)}  # vertical places of one or two colour bars in a cell

ViewScores = dict[int, tuple[float, int | None]]  # PSNR and training steps, by identity of the view


def show(library: Library) -> FigureContent:
    """Return the pictures of each task, from the snapshot with the most methods, then the most variants."""
    best = [max(same, key=_breadth) for same in grouped(library.snapshots, lambda snapshot: snapshot.task).values()]
    shown = [snapshot for snapshot in best if _methods(snapshot)]
    # If a task compares methods, a task with variants of only one method would just add rows.
    shown = [snapshot for snapshot in shown if _breadth(snapshot)[0] > 1] or shown
    if not shown:
        raise MissingRecords("picture data (snapshot.npz); `ppdm-bench quality` writes them beside its records")
    scores, records = _scores(shown, library)
    subjects = "; ".join(f"{s.task}, {s.subject}: {', '.join(_text(view) for view in _methods(s))}" for s in shown)
    worse = ", ".join(dict.fromkeys(view.label for s in shown for view in _worse(s, scores)))
    about = (
        "Input, target and the prediction of every method for the first subject of the split, a choice that does not "
        "depend on the results. Beside each picture is its error, prediction minus target (blue negative, red "
        "positive), with one scale per task. In the pictures: training steps and PSNR of this subject, for the input "
        f"its own PSNR. {f'Predictions with a lower PSNR than the input: {worse}. ' if worse else ''}{subjects} "
        f"(in brackets: network evaluations). {CONVENTION} One subject shows nothing about the mean of a method: see "
        "the tables."
    )
    notes = "Made from picture data: " + ", ".join(snapshot.place for snapshot in shown) + "."
    return FigureContent(
        _table(shown, scores), lambda column: _figure(shown, scores, column), about, records, notes=notes
    )


def _breadth(snapshot: Snapshot) -> tuple[int, int]:
    """Return the number of methods and of predictions in a snapshot."""
    views = _methods(snapshot)
    return len({_method(view) for view in views}), len(views)


def _method(view: View) -> str:
    return view.label.split(" ")[0]


def _methods(snapshot: Snapshot) -> list[View]:
    """Return the first design of each method, and further designs if there is room."""
    views = snapshot.of("prediction")
    first = {id(own[0]) for own in grouped(views, _method).values()}
    chosen = {id(view) for view in sorted(views, key=lambda view: id(view) not in first)[:MAX_PREDICTIONS]}
    return [view for view in views if id(view) in chosen]


def _text(view: View) -> str:
    return plain_label(view.label) + ("" if view.steps is None else f" ({view.steps})")


def _scores(shown: Sequence[Snapshot], library: Library) -> tuple[ViewScores, list[Record]]:
    """Return PSNR and training steps of the views, and the records of the PSNR.

    The records of a snapshot lie in its folder; those of the input have the method `input`.
    """
    scores: ViewScores = {}
    found: list[Record] = []
    for snapshot in shown:
        folder = snapshot.place.rpartition("/")[0]
        records = [
            r
            for r in library.records
            if r.metric == "psnr"
            and (r.task, r.subject) == (snapshot.task, snapshot.subject)
            and library.file_of[id(r)].rpartition("/")[0] == folder
        ]
        for view in (*snapshot.of("input"), *_methods(snapshot)):
            asked = view.config_id, view.steps
            own = [
                r for r in records if ((r.config_id, r.steps) == asked if view.config_id else r.method == view.label)
            ]
            if own and own[-1].value is not None:
                scores[id(view)] = float(own[-1].value), (own[-1].options.get("training") or {}).get("steps")
                found.append(own[-1])
    return scores, found


def _worse(snapshot: Snapshot, scores: ViewScores) -> list[View]:
    """Return the predictions with a lower PSNR than the input."""
    inputs = [scores[id(view)][0] for view in snapshot.of("input") if id(view) in scores]
    scored = [view for view in _methods(snapshot) if id(view) in scores]
    return [view for view in scored if scores[id(view)][0] < inputs[0]] if inputs else []


def _error(snapshot: Snapshot, view: View, plane: PlaneName) -> np.ndarray:
    return view.sections[plane] - snapshot.of("target")[0].sections[plane]


def _table(shown: Sequence[Snapshot], scores: ViewScores) -> Table:
    columns: Columns[tuple[Snapshot, View]] = {
        Heading("task"): lambda row: row[0].task,
        Heading("subject"): lambda row: row[0].subject,
        Heading("method"): lambda row: row[1].label,
        Heading("evaluations", number=True): lambda row: row[1].steps,
        Heading("train_steps", "training steps", number=True): lambda row: scores.get(id(row[1]), (None, None))[1],
        Heading("psnr", "PSNR, dB", "{:.2f}".format, True): lambda row: scores.get(id(row[1]), (None, None))[0],
    }
    for plane in PLANES:
        heading = Heading(f"{plane}_mae", f"mean error, {plane}", "{:.3g}".format, True)
        columns[heading] = partial(_mean_error, plane=plane)
    rows = [(snapshot, view) for snapshot in shown for view in _methods(snapshot)]
    return table_of(rows, columns, sources=lambda row: (f"{row[0].place}#{row[1].config_id}",))


def _mean_error(row: tuple[Snapshot, View], plane: PlaneName) -> float:
    return float(np.abs(_error(*row, plane)).mean())


def _figure(shown: Sequence[Snapshot], scores: ViewScores, column: Column) -> Figure:
    """Draw pairs of columns, a picture and its error: all planes of a single task, else the axial slice of each task.

    CT has a column for each of its windows beside the error. Rows are the input, the target, and the predictions by
    label; many rows of a single task become two blocks of fewer planes. The empty cells beside input and target have
    the colour bars.
    """
    rows = list(dict.fromkeys(view.label for s in shown for view in (*s.of("input"), *s.of("target"), *_methods(s))))
    in_blocks = len(shown) == 1 and len(rows) > _ROWS
    planes = _PLANES[column][: -1 if in_blocks else None] if len(shown) == 1 else ("axial",)
    places = [(s, plane) for s in shown for plane in planes]
    sizes = [PLANES[plane].size(s.shape, s.spacing) for s, plane in places]
    # Each group of columns has its own scale; with one scale, a head would be small beside a torso.
    sizes = [(width / height, 1.0) for width, height in sizes] if len(shown) > 1 else sizes
    counts = [len(_windows(s, s.of("target")[0])) + 1 for s, _ in places]
    starts = [0, *accumulate(counts)]
    widths = [width for (width, _), count in zip(sizes, counts, strict=True) for _ in range(count)]
    length = -(-len(rows) // 2) if in_blocks else len(rows)
    no_room = in_blocks and column == "single"
    grid = ImageGrid(
        f"Every method on one subject of each task, with {'' if no_room else 'training steps and '}PSNR.",
        column,
        [*widths, _SPACE * widths[0], *widths] if in_blocks else widths,
        [max(height for _, height in sizes)] * length,
        names=not in_blocks,
        bars=False,
        captions="every" if in_blocks else "first",
    )

    def place_of(label: str, number: int) -> tuple[int, int]:
        """Return row and column of the picture with this number in the row of a label."""
        block, row = divmod(rows.index(label), length)
        return row, block * (len(widths) + 1) + number

    for row, label in enumerate([] if in_blocks else rows):
        grid.name(row, plain_label(label))
    for place, ((snapshot, plane), size) in enumerate(zip(places, sizes, strict=True)):
        first, last = starts[place], starts[place + 1] - 1
        if not in_blocks:
            grid.caption(0, first, plane if len(shown) == 1 else f"{snapshot.task}, {plane}")
        colours: Colours = "pet" if snapshot.unit == "SUV" else "gray"
        reach = _reach(snapshot)
        for view in (*snapshot.of("input"), *snapshot.of("target"), *_methods(snapshot)):
            words = _score_words(view, scores) if place == 0 or len(shown) > 1 else []
            if in_blocks and place == 0:
                text = ", ".join([plain_label(view.label), *(words[-1:] if no_room else words)])
                grid.caption(*place_of(view.label, 0), text, columns=len(widths))
            for number, (tissue, limits) in enumerate(_windows(snapshot, view).items()):
                axes = grid.cell(*place_of(view.label, first + number), size)
                draw_picture(axes, view.sections[plane], colours, limits, size)
                if view.role != "prediction":
                    write_directions(axes, PLANES[plane], colours)
                if tissue and view.role == "target":
                    write_on_image(axes, 0.02, 0.14, tissue, colours, ha="left", va="bottom")
                if words and number == 0 and not in_blocks:
                    _write_score(axes, view, words, colours)
            if view.role == "prediction":
                picture = _error(snapshot, view, plane)
                draw_picture(grid.cell(*place_of(view.label, last), size), picture, "error", (-reach, reach), size)
        if place == 0 or len(shown) > 1:
            _bars(grid, snapshot, rows, last, size, colours, reach)
    grid.footnote(CONVENTION)
    return grid.figure


def _bars(
    grid: ImageGrid,
    snapshot: Snapshot,
    rows: Sequence[str],
    column: int,
    size: tuple[float, float],
    colours: Colours,
    reach: float,
) -> None:
    """Draw the colour bars of values and errors into the empty cells beside input and target."""
    target = snapshot.of("target")[0]
    unit = snapshot.unit or "a.u."
    cells = [rows.index(view.label) for view in (*snapshot.of("input"), target)][-2:]
    values = [
        (f"{tissue or 'target'} ({unit})", colours, limits) for tissue, limits in _windows(snapshot, target).items()
    ]
    groups: list[list[tuple[str, Colours, tuple[float, float]]]] = [
        values,
        [(f"error ({unit})", "error", (-reach, reach))],
    ]
    for row, bars in zip(reversed(cells), groups, strict=False):
        cell = grid.cell(row, column, size)
        cell.axis("off")
        for (label, name, limits), height in zip(bars, _HEIGHTS[len(bars)], strict=True):
            cell.text(0.5, height + 0.2, label, fontsize=SMALL, ha="center", va="baseline", transform=cell.transAxes)
            bar = cell.inset_axes((0.12, height, 0.76, 0.12))
            colour_bar(bar, limits, name, (True, True), "horizontal")
            _keep_labels_apart(bar)


def _keep_labels_apart(bar: Axes) -> None:
    """Show all labels of a horizontal bar if they do not overlap, else the first and the last, else only the last.

    The pointed ends shorten the bar when it is drawn, so that the labels need more room than they have here.
    """
    low, high = bar.get_xlim()
    ticks = zip(bar.get_xticks(), bar.get_xticklabels(), strict=True)
    every = [(tick, label.get_window_extent()) for tick, label in ticks if low <= tick <= high]
    gap = SMALL / 2 * bar.figure.dpi / 72
    for shown in (every, [every[0], every[-1]], every[-1:]):
        if all(one.x1 + gap <= other.x0 for (_, one), (_, other) in pairwise(shown)):
            break
    kept = {tick for tick, _ in shown}
    bar.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−") if value in kept else "")


def _score_words(view: View, scores: ViewScores) -> list[str]:
    """Return training steps and PSNR of a view in words, as far as they are known."""
    psnr, steps = scores.get(id(view), (None, None))
    return ([plural(steps, "step")] if steps else []) + ([f"{psnr:.1f} dB"] if psnr is not None else [])


def _write_score(axes: Axes, view: View, words: Sequence[str], colours: Colours) -> None:
    ground = {"facecolor": "black" if colours == "gray" else "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    place: dict[str, Any] = {"ha": "left", "va": "bottom", "linespacing": 1.1, "fontsize": 6, "bbox": ground}
    write_on_image(axes, 0.02, 0.02 if view.role == "prediction" else 0.14, "\n".join(words), colours, **place)


def _windows(snapshot: Snapshot, view: View) -> dict[str, tuple[float, float]]:
    """Return the windows of a view by tissue: two for CT; an MRI input has its own, other views that of the target."""
    if (view.unit if view.role == "input" else snapshot.unit) == "HU":
        return {tissue.split()[0]: window for tissue, window in HU_WINDOWS.items()}  # the columns are narrow
    if view.role == "input" and snapshot.unit != "SUV":
        return {"": _ends(view)}
    low, high = _ends(snapshot.of("target")[0])
    return {"": (0.0 if snapshot.unit else low, high)}


def _ends(view: View) -> tuple[float, float]:
    values = np.concatenate([picture.ravel() for picture in view.sections.values()])
    low, high = np.percentile(values, (0.5, 99.8)).tolist()
    return low, high if high > low else low + 1.0


def _reach(snapshot: Snapshot) -> float:
    """Return the limit of the scale of errors."""
    errors = [np.abs(_error(snapshot, view, plane)).ravel() for view in _methods(snapshot) for plane in PLANES]
    return float(np.percentile(np.concatenate(errors), 99.5)) or 1.0
