"""Quality against its cost: peak memory, time per volume, network evaluations. One panel per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator

from ppdm_bench.grouping import grouped
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.capacity import size_of
from ppdm_bench.report.figures.style import SMALL, Column, Marker
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper.cost import (
    METRIC,
    CostPoint,
    rows_of_largest_cube,
    trained_points,
    undominated,
    with_largest_peaks,
    with_times_of_one_device,
)
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.rows import common_settings, phase_name
from ppdm_bench.report.scores import Scores, best_evaluations, by_origin, group_title, of_common_network
from ppdm_bench.report.tables.render import Columns, Heading, Table, table_of
from ppdm_bench.units import GIB, gib, plural, shape_text, significant


def show_memory(library: Library) -> FigureContent:
    """Return quality against the largest peak of memory over all phases of a method."""
    points = best_evaluations(trained_points(library), lambda point: point.training_key)
    rows = rows_of_largest_cube(library)
    cost_points = with_largest_peaks(points, rows)
    if not cost_points:
        raise MissingRecords(
            "peak training memory of the methods whose quality was recorded; `ppdm-bench memory --res 256` makes it"
        )
    largest = size_of(rows[0])
    about = (
        f"PSNR against the peak of memory (peak_allocated) at {largest}³ voxels, {common_settings(rows)}. The memory "
        "of a method is its largest peak over all phases: training, sampling, and for a latent method the training of "
        "its autoencoder and decoding; the table names the phase. Quality is that of the best number of network "
        "evaluations that was scored. The memory is that of the networks whose quality is shown if all of a data set "
        "have a record; otherwise it is that of the registered networks, and the quality is that of smaller ones. A "
        "method without a record has the memory of a method with the same representation. Hollow: predicted memory. Up "
        "and to the left is better; the grey line joins the points for which no other point is better in both. "
        f"{_scope(points)}"
    )
    return _shown(
        library, cost_points, about, f"largest peak of all phases at {largest}³ (GiB)", "peak_bytes", frontier=True
    )


def show_seconds(library: Library) -> FigureContent:
    """Return quality against time per volume, for the device and size with the most times of scored methods."""
    points = trained_points(library)
    cost_points = with_times_of_one_device(library, points)
    if not cost_points:
        raise MissingRecords(
            "seconds per volume (volume_seconds) at the evaluations whose quality was recorded; `ppdm-bench speed` "
            "makes them"
        )
    kind, device, shape = cost_points[0].kind, cost_points[0].device, cost_points[0].cost_shape
    size = f" of {shape_text(shape)}" if shape else ""
    about = (
        f"PSNR against the {kind} time of one translation{f'{size} voxels' if size else ''} "
        f"({device}); a line joins the numbers of network evaluations of one design. Up and to the left is "
        f"better. {_scope(points)}"
    )
    card = f", {device}" if kind == "predicted" else ""
    return _shown(library, cost_points, about, f"time per volume{size}{card} (s)", "volume_seconds")


def show_evaluations(library: Library) -> FigureContent:
    """Return quality against network evaluations."""
    points = [point for point in trained_points(library) if point.evaluations]
    if len({point.evaluations for point in points}) < 2:
        raise MissingRecords(
            "quality at two numbers of network evaluations; `ppdm-bench quality --evaluations 1,2,4,10` makes it"
        )
    cost_points = [CostPoint(point, float(point.evaluations or 1)) for point in points]
    about = (
        "PSNR against network evaluations per volume: means over subjects; a line joins the numbers of network "
        f"evaluations of one design. {_scope(points)}"
    )
    return _shown(library, cost_points, about, "network evaluations per volume", "")


def _scope(points: Sequence[Scores]) -> str:
    texts = []
    for group in grouped(points, lambda point: point.data).values():
        steps = sorted({point.train_steps for point in group if point.train_steps})
        widths = sorted({point.width for point in group if point.width})
        seeds = sorted({seed for point in group for seed in point.seeds})
        span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}" if steps else "?"
        width = " or ".join(map(str, widths)) or "?"
        texts.append(
            (group[0], f"{group_title(group)}, {plural(len(seeds), 'seed')}, {span} training steps, width {width}")
        )
    return " ".join(f"{origin.capitalize()}: {'; '.join(said)}." for origin, said in by_origin(texts).items())


def _shown(
    library: Library, points: Sequence[CostPoint], about: str, axis: str, key: str, *, frontier: bool = False
) -> FigureContent:
    panels = _panels(points)
    drawn = {point.curve for group in panels for point in group}
    about += (
        " Drawn are the data sets that compare the most methods of each task, with the network that most of them "
        "share and one design per method and representation, the first recorded: "
        f"{len(drawn)} of {len({p.curve for p in points})}; the table has all."
    )
    colours = style.method_colours(library.records)
    return FigureContent(
        _table(library, points, axis, key),
        lambda column: _figure(panels, colours, axis, frontier, column),
        about,
        [record for point in points for record in point.records],
    )


def _table(library: Library, points: Sequence[CostPoint], axis: str, key: str) -> Table:
    def mean(metric: str, text: str, show: Callable[[float], str]) -> Columns[CostPoint]:
        return {Heading(metric, text, show, True): lambda point: point.scores.mean(metric)}

    columns: Columns[CostPoint] = {
        Heading("task"): lambda point: point.scores.task,
        Heading("method"): lambda point: point.scores.method,
        Heading("variant"): lambda point: point.scores.variant,
        Heading("evaluations", number=True): lambda point: point.scores.evaluations,
        Heading("train_steps", "training steps", number=True): lambda point: point.scores.train_steps,
        Heading("width", number=True): lambda point: point.scores.width,
        Heading("subjects", number=True): lambda point: len(point.scores.subject_means(METRIC)),
        Heading("seeds", number=True): lambda point: len(point.scores.seeds),
    }
    for metric, text in {"psnr": "PSNR, dB", "ssim": "SSIM", "nmae": "NMAE", "sharpness": "sharpness"}.items():
        if any(point.scores.subject_means(metric) for point in points):
            columns |= mean(metric, text, "{:.2f}".format if metric == "psnr" else "{:.3f}".format)
    name = axis.replace(" (", ", ").rstrip(")")
    if key.endswith("bytes"):
        columns[Heading(key, name, gib, True)] = lambda point: round(point.cost * GIB)
        columns[Heading("phase", show=phase_name)] = lambda point: point.cost_record and point.cost_record.phase
    elif key:
        columns[Heading(key, name, significant, True)] = lambda point: point.cost
    if key:
        columns[Heading("cost_kind", "kind")] = lambda point: point.kind
    return table_of(points, columns, sources=lambda point: library.references(point.records))


def _panels(points: Sequence[CostPoint]) -> list[list[CostPoint]]:
    """Return the points of each panel: for each task the data set that compares the most methods.

    Data sets with several subjects are preferred. Another data set of a task is added if it has further methods.
    """
    sets = grouped(points, lambda point: point.scores.data).values()
    panels = [_one_curve_per_space(of_common_network(same, lambda point: point.scores)) for same in sets]
    panels = [panel for panel in panels if len({point.curve for point in panel}) > 1] or panels
    shown: list[list[CostPoint]] = []
    for task in dict.fromkeys(panel[0].scores.task for panel in panels):
        methods: set[str] = set()
        for panel in sorted((one for one in panels if one[0].scores.task == task), key=_rank, reverse=True):
            own = {point.scores.method for point in panel}
            if not own <= methods:
                shown.append(panel)
                methods |= own
    return sorted(shown, key=lambda panel: len({point.scores.method for point in panel}) == 1)


def _one_curve_per_space(group: Sequence[CostPoint]) -> list[CostPoint]:
    """Return the points of one curve per method and representation, the first recorded one."""
    first: dict[str, str] = {}
    for point in group:
        first.setdefault(point.space, point.curve)
    return [point for point in group if first[point.space] == point.curve]


def _rank(panel: Sequence[CostPoint]) -> tuple[bool, int, int, int]:
    subjects = max(len(point.scores.subject_means(METRIC)) for point in panel)
    return subjects > 1, len({s.scores.method for s in panel}), len({s.curve for s in panel}), subjects


def _figure(
    panels: Sequence[Sequence[CostPoint]], colours: dict[str, str], axis: str, frontier: bool, column: Column
) -> Figure:
    figure, grid = style.panels(column, len(panels), 2.0, head=0.45)
    methods = {point.name: point.scores.method for panel in panels for point in panel}
    marks = style.markers(methods)
    if len(set(methods.values())) > 1:  # variants of one method share its colour
        marks = style.markers_of_colours({name: colours[method] for name, method in methods.items()})
    labels: list[list[Annotation]] = []
    for axes, panel in zip(grid, panels, strict=True):
        style.plain_axes(axes, "both", axis, "PSNR (dB)")
        axes.set_title(group_title([point.scores for point in panel]), fontsize=SMALL)
        axes.margins(y=0.15)  # labels that are moved apart stay below the title
        axes.set_xscale("log")
        labels.append(_draw(axes, panel, marks, frontier))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        costs = [point.cost for point in panel]
        axes.set_xlim(min(costs) / 1.3, max(costs) * 1.3)
        whole = axis.startswith("network")
        style.log_ticks(axes.xaxis, style.spaced_ticks(costs, 1.4) if whole else ())
    hollow = all(point.kind != "measured" for panel in panels for point in panel)
    what = axis.split(" (")[0] if axis.startswith("network") else f"the {axis.split(' (')[0]}"
    style.title(figure, f"Quality against {what}.{' Hollow: predicted.' if hollow else ''}")
    style.move_apart(figure, labels)
    return figure


def _draw(axes: Axes, panel: Sequence[CostPoint], marks: dict[str, Marker], frontier: bool) -> list[Annotation]:
    """Draw the curves and return their labels."""
    if frontier:
        best = undominated(panel)
        axes.plot([s.cost for s in best], [s.quality for s in best], color="0.7", linewidth=0.9, zorder=1)
    labels = []
    for name, points in grouped(panel, lambda point: point.name).items():
        curve, marker = sorted(points, key=lambda point: point.cost), marks[name]
        look = style.look_of(marker, curve[0].kind != "measured", markersize=4, markeredgewidth=0.9)
        costs, values = [point.cost for point in curve], [point.quality for point in curve]
        axes.plot(costs, values, linewidth=0.8, zorder=2, **look)
        labels.append(style.end_label(axes, costs[-1], values[-1], name, marker.colour))
    return labels
