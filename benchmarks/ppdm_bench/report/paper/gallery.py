"""Every method on one subject of each task: input, target, predictions, and their errors on one scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppdm_bench.report.figures.panel import COLOUR_MAPS
from ppdm_bench.report.figures.planes import CONVENTION, PLANES, PlaneName
from ppdm_bench.report.figures.sheet import Sheet
from ppdm_bench.report.figures.style import Column
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import Missing, Shown
from ppdm_bench.report.snapshot import Snapshot, View
from ppdm_bench.report.tables.render import Heading, Line, Table

_PLANES: dict[Column, tuple[PlaneName, ...]] = {
    "single": ("axial", "coronal"),
    "double": ("axial", "coronal", "sagittal"),
}
MOST = 7  # predictions that a page of rows holds


def show(library: Library) -> Shown:
    """The snapshot of each task that shows the most methods, and of these the most variants.

    Raises:
        Missing: there are no picture data.
    """
    best: dict[str, Snapshot] = {}
    for snapshot in library.snapshots:
        known = best.get(snapshot.task)
        if known is None or _breadth(snapshot) > _breadth(known):
            best[snapshot.task] = snapshot
    shown = [snapshot for snapshot in best.values() if _methods(snapshot)]
    # Beside a task that compares methods, one that has variants of a single one would only add rows.
    shown = [snapshot for snapshot in shown if _breadth(snapshot)[0] > 1] or shown
    if not shown:
        raise Missing("picture data (snapshot.npz); `ppdm-bench quality` writes them beside its records")
    said = "; ".join(f"{s.task}, {s.subject}: {', '.join(_named(view) for view in _methods(s))}" for s in shown)
    about = (
        "Input, target and the prediction of every method on the first subject of the split, which was chosen before "
        "anything was seen of the results; beside each picture its error, prediction less target, blue below zero and "
        f"red above, on one scale a task. {said}. {CONVENTION} One subject says nothing of a method's mean: "
        "see the tables."
    )
    notes = "Made from picture data: " + ", ".join(snapshot.place for snapshot in shown) + "."
    return Shown(_table(shown), lambda column: _figure(shown, column), about, [], notes=notes)


def _breadth(snapshot: Snapshot) -> tuple[int, int]:
    """How many methods a snapshot shows, and how many predictions."""
    views = _methods(snapshot)
    return len({_method(view) for view in views}), len(views)


def _method(view: View) -> str:
    return view.label.split(" ")[0]


def _methods(snapshot: Snapshot) -> list[View]:
    """The first design of each method first, then further ones as far as there is room."""
    views = snapshot.of("prediction")
    seen: dict[str, View] = {}
    for view in views:
        seen.setdefault(_method(view), view)
    further = [view for view in views if all(view is not one for one in seen.values())]
    chosen = [*seen.values(), *further][:MOST]
    return [view for view in views if any(view is one for one in chosen)]


def _named(view: View) -> str:
    return view.label + ("" if view.steps is None else f" ({view.steps})")


def _error(snapshot: Snapshot, view: View, plane: PlaneName) -> np.ndarray:
    return view.sections[plane] - snapshot.of("target")[0].sections[plane]


def _table(shown: Sequence[Snapshot]) -> Table:
    headings = [
        *(Heading(name, name) for name in ("task", "subject", "method")),
        Heading("evaluations", "evaluations", number=True),
        *(
            Heading(f"{plane}_mae", f"mean error, {plane}", lambda error: f"{error:.3g}", number=True)
            for plane in PLANES
        ),
    ]
    lines = []
    for snapshot in shown:
        for view in _methods(snapshot):
            sizes = [float(np.abs(_error(snapshot, view, plane)).mean()) for plane in PLANES]
            source = f"{snapshot.place}#{view.config_id}"
            lines.append(Line((snapshot.task, snapshot.subject, view.label, view.steps, *sizes), (source,)))
    return Table(headings, lines)


def _figure(shown: Sequence[Snapshot], column: Column) -> Figure:
    """Pairs of columns, a picture and its error: the planes of a single task, or the axial slice of each of several.

    Rows are volumes: the input, the target, and what has one name on all tasks.
    """
    places = [(s, plane) for s in shown for plane in (_PLANES[column] if len(shown) == 1 else ("axial",))]
    sizes = [PLANES[plane].size(s.shape, s.spacing) for s, plane in places]
    # Each pair of columns has a scale of its own: a torso beside a head would leave the head small.
    sizes = [(width / height, 1.0) for width, height in sizes] if len(shown) > 1 else sizes
    rows = list(dict.fromkeys(view.label for s in shown for view in (*s.of("input"), *s.of("target"), *_methods(s))))
    sheet = Sheet(
        "Every method on one subject of each task.",
        column,
        [width for width, _ in sizes for _ in range(2)],
        [max(height for _, height in sizes)] * len(rows),
        names=True,
        bars=False,
        captions="first",
    )
    for row, label in enumerate(rows):
        sheet.name(row, label)
    for place, ((snapshot, plane), size) in enumerate(zip(places, sizes, strict=True)):
        sheet.caption(0, 2 * place, plane if len(shown) == 1 else snapshot.task)
        sheet.caption(0, 2 * place + 1, "error")
        for view in (*snapshot.of("input"), *snapshot.of("target"), *_methods(snapshot)):
            cells = [sheet.cell(rows.index(view.label), 2 * place, size)]
            if view.role == "prediction":
                cells.append(sheet.cell(rows.index(view.label), 2 * place + 1, size))
            _draw(cells, snapshot, view, plane, size)
    reaches = (f"{s.task} ±{_reach(s):.3g}{f' {s.unit}' if s.unit else ''}" for s in shown)
    sheet.footnote(f"Scale of errors: {', '.join(reaches)}.")
    return sheet.figure


def _draw(cells: Sequence[Axes], snapshot: Snapshot, view: View, plane: PlaneName, size: tuple[float, float]) -> None:
    """The picture, and beside it the error if there is one."""
    # MRI contrasts have scales of their own; PET has that of the target throughout.
    low, high = _ends(view) if view.role == "input" and not snapshot.unit else _window(snapshot)
    extent = (0.0, size[0], 0.0, size[1])
    colours = COLOUR_MAPS["pet" if snapshot.unit else "gray"]
    cells[0].imshow(view.sections[plane], cmap=colours, vmin=low, vmax=high, extent=extent)
    for axes in cells[1:]:
        reach = _reach(snapshot)
        error = _error(snapshot, view, plane)
        axes.imshow(error, cmap=COLOUR_MAPS["error"], vmin=-reach, vmax=reach, extent=extent)


def _window(snapshot: Snapshot) -> tuple[float, float]:
    """The window of the target, which the predictions share."""
    return (0.0, _ends(snapshot.of("target")[0])[1]) if snapshot.unit else _ends(snapshot.of("target")[0])


def _ends(view: View) -> tuple[float, float]:
    values = np.concatenate([picture.ravel() for picture in view.sections.values()])
    low, high = np.percentile(values, (0.5, 99.8)).tolist()
    return low, high if high > low else low + 1.0


def _reach(snapshot: Snapshot) -> float:
    errors = [np.abs(_error(snapshot, view, plane)).ravel() for view in _methods(snapshot) for plane in PLANES]
    return float(np.percentile(np.concatenate(errors), 99.5)) or 1.0
