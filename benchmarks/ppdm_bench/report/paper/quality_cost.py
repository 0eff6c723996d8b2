"""Quality against its cost: peak memory, time per volume, network evaluations. One panel per task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.capacity import cubic, largest_set, size_of
from ppdm_bench.report.figures.names import plain_label
from ppdm_bench.report.figures.style import SMALL, Column, Marker
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import Missing, Shown
from ppdm_bench.report.rows import common, phase_name
from ppdm_bench.report.scores import Scores, best_evaluations, by_origin, factor_text, group_title, resolved
from ppdm_bench.report.tables.render import Columns, Heading, Table, table_of
from ppdm_bench.units import GIB, gib, plural, shape_text, significant

METRIC = "psnr"


@dataclass(frozen=True)
class Spot:
    """A point with its cost.

    Attributes:
        point: the quality.
        cost: value on the horizontal axis.
        behind: the record of the cost; None for network evaluations.
    """

    point: Scores
    cost: float
    behind: Record | None = None

    @property
    def kind(self) -> str:
        """Kind of the cost, measured or predicted."""
        return self.behind.kind if self.behind else "measured"

    @property
    def records(self) -> list[Record]:
        """The records of quality and cost."""
        return [*self.point.of_metric(METRIC), *filter(None, [self.behind])]

    @property
    def quality(self) -> float:
        """Mean over subjects."""
        return self.point.mean(METRIC) or 0.0

    @property
    def name(self) -> str:
        """Method and representation, as written in the figure."""
        variant = self.point.variant.replace("default", "").strip()
        factor = factor_text(self.point.design)
        return plain_label(f"{self.point.method} {variant or (factor and f'r={factor}')}".strip())

    @property
    def space(self) -> str:
        """What the cost depends on: method, representation and window."""
        return _space(self.point.method, self.point.design)

    @property
    def curve(self) -> str:
        """One design with one training budget, for all numbers of evaluations."""
        p = self.point
        fields = [p.label, p.train_steps, p.design.get("kernel"), p.design.get("loss"), p.design.get("target")]
        return json.dumps(fields)


def show_memory(library: Library) -> Shown:
    """Return quality against the largest peak of memory over all phases of a method."""
    points = best_evaluations(_trained(library), lambda point: point.trained)
    rows = largest_set(cubic(library.records), of_one_width=False)
    largest = max((size_of(row) for row in rows), default=0)
    rows = [row for row in rows if size_of(row) == largest]
    peaks = [row.records[phase, "peak_allocated"] for row in rows if (phase := row.largest_phase())]
    sets = grouped(points, lambda point: point.data).values()
    by_point = {id(point): peak for same in sets for point, peak in _with_peaks(same, peaks)}
    found = [(point, by_point[id(point)]) for point in points if id(point) in by_point]
    spots = [Spot(point, (peak.value or 0.0) / GIB, peak) for point, peak in found]
    if not spots:
        raise Missing(
            "peak training memory of the methods whose quality was recorded; `ppdm-bench memory --res 256` makes it"
        )
    about = (
        f"PSNR against the peak of memory (peak_allocated) at {largest}³ voxels, {common(rows)}. The memory of a "
        "method is its largest peak over all phases: training, sampling, and for a latent method the training of its "
        "autoencoder and decoding; the table names the phase. Quality is that of the best number of network "
        "evaluations that was scored. The memory is that of the networks whose quality is shown if all of a data set "
        "have a record; otherwise it is that of the registered networks, and the quality is that of smaller ones. A "
        "method without a record has the memory of a method with the same representation. Hollow: predicted memory. Up "
        "and to the left is better; the grey line joins the points for which no other point is better in both. "
        f"{_scope(points)}"
    )
    return _shown(library, spots, about, f"largest peak of all phases at {largest}³ (GiB)", "peak_bytes", frontier=True)


def show_seconds(library: Library) -> Shown:
    """Return quality against the time per volume, on the device and at the size that have times of the most scores."""
    points = _trained(library)
    times = [r for r in library.records if r.metric == "volume_seconds" and r.status == "ok" and r.value]
    alike = grouped(times, lambda record: (*_device(record), record.shape))
    timed = {key: _with_times(points, same) for key, same in alike.items()}
    # The most scores; of equal ones those that were measured, then the largest volumes, whose time matters most.
    best = max(timed, key=lambda key: (len(timed[key]), key[0] == "measured", key[2]), default=None)
    if best is None or not timed[best]:
        raise Missing(
            "seconds per volume (volume_seconds) at the evaluations whose quality was recorded; `ppdm-bench speed` "
            "makes them"
        )
    spots, (kind, device, shape) = timed[best], best
    size = f" of {shape_text(shape)}" if shape else ""
    about = (
        f"PSNR against the {kind} time of one translation{f'{size} voxels' if size else ''} "
        f"({device}); a line joins the numbers of network evaluations of one design. Up and to the left is "
        f"better. {_scope(points)}"
    )
    card = f", {device}" if kind == "predicted" else ""
    return _shown(library, spots, about, f"time per volume{size}{card} (s)", "volume_seconds")


def _device(record: Record) -> tuple[str, str]:
    """Return the kind of a time, and the device for which it is."""
    return record.kind, record.gpu or f"{record.device}, {record.env.get('threads')} threads"


def _with_times(points: Sequence[Scores], times: Sequence[Record]) -> list[Spot]:
    """Return the points that have a time, which is that of their own network; `times` are those of one size."""
    found: dict[tuple[str, str, int | None], Record] = {}
    for record in times:
        data = "" if record.shape else _data(record.task, record.options.get("data"))
        design = resolved(record)
        found[data, _space(record.method, design) + _network(design), record.steps] = record
    sized = bool(times[0].shape)
    spots = []
    for point in points:
        data = "" if sized else _data(*json.loads(point.data)[:2])
        space = _space(point.method, point.design) + _network(point.design)
        timed = found.get((data, space, point.evaluations))
        if timed is not None and timed.value is not None:
            spots.append(Spot(point, float(timed.value), timed))
    return spots


def show_evaluations(library: Library) -> Shown:
    """Return quality against network evaluations."""
    points = [point for point in _trained(library) if point.evaluations]
    if len({point.evaluations for point in points}) < 2:
        raise Missing(
            "quality at two numbers of network evaluations; `ppdm-bench quality --evaluations 1,2,4,10` makes it"
        )
    spots = [Spot(point, float(point.evaluations or 1)) for point in points]
    about = (
        "PSNR against network evaluations per volume: means over subjects; a line joins the numbers of network "
        f"evaluations of one design. {_scope(points)}"
    )
    return _shown(library, spots, about, "network evaluations per volume", "")


def _trained(library: Library) -> list[Scores]:
    points = [p for p in library.points if p.design and p.subjects(METRIC)]
    if not points:
        raise Missing("quality of trained methods (psnr by subject); `ppdm-bench quality` makes it")
    return points


def _with_peaks(points: Sequence[Scores], peaks: Sequence[Record]) -> list[tuple[Scores, Record]]:
    """Return the points of a data set that have a peak: that of their own network if all have it, else the first."""
    own: dict[str, Record] = {}
    first: dict[str, Record] = {}
    for method, peak in [*((peak.method, peak) for peak in peaks), *(("", peak) for peak in peaks)]:
        design = resolved(peak)
        own.setdefault(_space(method, design) + _network(design), peak)
        first.setdefault(_space(method, design), peak)
    exact, near = [], []
    for point in points:
        names = [_space(method, point.design) for method in (point.method, "")]
        exact += [(point, own[key]) for name in names if (key := name + _network(point.design)) in own][:1]
        near += [(point, first[name]) for name in names if name in first][:1]
    return exact if len(exact) == len(points) else near


def _network(design: Mapping[str, Any]) -> str:
    """Return the shape of the network, apart from its arithmetic."""
    network = {**(design.get("network") or {})}
    for name in ("precision", "checkpointing", "channels_last", "compile"):
        network.pop(name, None)
    return json.dumps(network, sort_keys=True)


def _space(method: str, design: Mapping[str, Any]) -> str:
    """Return what memory and time depend on at one size: representation and window."""
    return json.dumps([method, design.get("representation"), (design.get("window") or {}).get("type")], sort_keys=True)


def _data(task: str, data: Any) -> str:
    return json.dumps([task, data], sort_keys=True)


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
    library: Library, spots: Sequence[Spot], about: str, axis: str, key: str, *, frontier: bool = False
) -> Shown:
    panels = _panels(spots)
    drawn = {spot.curve for group in panels for spot in group}
    about += (
        " Drawn are the data sets that compare the most methods of each task, with one design per method and "
        f"representation, the first recorded: {len(drawn)} of {len({s.curve for s in spots})}; the table has all."
    )
    colours = {method: marker.colour for method, marker in style.method_markers(library.records).items()}
    return Shown(
        _table(library, spots, axis, key),
        lambda column: _figure(panels, colours, axis, frontier, column),
        about,
        [record for spot in spots for record in spot.records],
    )


def _table(library: Library, spots: Sequence[Spot], axis: str, key: str) -> Table:
    def mean(metric: str, text: str, show: Callable[[float], str]) -> Columns[Spot]:
        return {Heading(metric, text, show, True): lambda spot: spot.point.mean(metric)}

    columns: Columns[Spot] = {
        Heading("task"): lambda spot: spot.point.task,
        Heading("method"): lambda spot: spot.point.method,
        Heading("variant"): lambda spot: spot.point.variant,
        Heading("evaluations", number=True): lambda spot: spot.point.evaluations,
        Heading("train_steps", "training steps", number=True): lambda spot: spot.point.train_steps,
        Heading("width", number=True): lambda spot: spot.point.width,
        Heading("subjects", number=True): lambda spot: len(spot.point.subjects(METRIC)),
        Heading("seeds", number=True): lambda spot: len(spot.point.seeds),
    }
    for metric, text in {"psnr": "PSNR, dB", "ssim": "SSIM", "nmae": "NMAE", "sharpness": "sharpness"}.items():
        if any(spot.point.subjects(metric) for spot in spots):
            columns |= mean(metric, text, "{:.2f}".format if metric == "psnr" else "{:.3f}".format)
    name = axis.replace(" (", ", ").rstrip(")")
    if key.endswith("bytes"):
        columns[Heading(key, name, gib, True)] = lambda spot: round(spot.cost * GIB)
        columns[Heading("phase", show=phase_name)] = lambda spot: spot.behind and spot.behind.phase
    elif key:
        columns[Heading(key, name, significant, True)] = lambda spot: spot.cost
    if key:
        columns[Heading("cost_kind", "kind")] = lambda spot: spot.kind
    return table_of(spots, columns, sources=lambda spot: library.references(spot.records))


def _panels(spots: Sequence[Spot]) -> list[list[Spot]]:
    """Return the spots of each panel: the data set of each task that compares the most methods.

    Data sets with several subjects come first. Another data set of a task follows if it has methods that the first
    lacks.
    """
    panels = [_plain(group) for group in grouped(spots, lambda spot: spot.point.data).values()]
    panels = [panel for panel in panels if len({spot.curve for spot in panel}) > 1] or panels
    shown: list[list[Spot]] = []
    for task in dict.fromkeys(panel[0].point.task for panel in panels):
        methods: set[str] = set()
        for panel in sorted((one for one in panels if one[0].point.task == task), key=_rank, reverse=True):
            own = {spot.point.method for spot in panel}
            if not own <= methods:
                shown.append(panel)
                methods |= own
    return sorted(shown, key=lambda panel: len({spot.point.method for spot in panel}) == 1)


def _plain(group: Sequence[Spot]) -> list[Spot]:
    """Return one curve per method and representation, the first recorded."""
    first: dict[str, str] = {}
    for spot in group:
        first.setdefault(spot.space, spot.curve)
    return [spot for spot in group if first[spot.space] == spot.curve]


def _rank(panel: Sequence[Spot]) -> tuple[bool, int, int, int]:
    subjects = max(len(spot.point.subjects(METRIC)) for spot in panel)
    return subjects > 1, len({s.point.method for s in panel}), len({s.curve for s in panel}), subjects


def _figure(
    panels: Sequence[Sequence[Spot]], colours: dict[str, str], axis: str, frontier: bool, column: Column
) -> Figure:
    figure, grid = style.panels(column, len(panels), 2.0, head=0.45)
    methods = {spot.name: spot.point.method for panel in panels for spot in panel}
    marks = style.markers(methods)
    if len(set(methods.values())) > 1:  # variants of one method share its colour
        marks = style.markers_of_colours({name: colours[method] for name, method in methods.items()})
    labels: list[list[Annotation]] = []
    for axes, panel in zip(grid, panels, strict=True):
        style.plain_axes(axes, "both", axis, "PSNR (dB)")
        axes.set_title(group_title([spot.point for spot in panel]), fontsize=SMALL)
        axes.margins(y=0.15)  # labels that are moved apart stay below the title
        axes.set_xscale("log")
        labels.append(_draw(axes, panel, marks, frontier))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        costs = [spot.cost for spot in panel]
        axes.set_xlim(min(costs) / 1.3, max(costs) * 1.3)
        whole = axis.startswith("network")
        style.log_ticks(axes.xaxis, style.spaced(costs, 1.4) if whole else ())
    hollow = all(spot.kind != "measured" for panel in panels for spot in panel)
    what = axis.split(" (")[0] if axis.startswith("network") else f"the {axis.split(' (')[0]}"
    style.title(figure, f"Quality against {what}.{' Hollow: predicted.' if hollow else ''}")
    style.move_apart(figure, labels)
    return figure


def _draw(axes: Axes, panel: Sequence[Spot], marks: dict[str, Marker], frontier: bool) -> list[Annotation]:
    """Draw the curves and return their labels."""
    if frontier:
        best = _undominated(panel)
        axes.plot([s.cost for s in best], [s.quality for s in best], color="0.7", linewidth=0.9, zorder=1)
    labels = []
    for name, spots in grouped(panel, lambda spot: spot.name).items():
        curve, marker = sorted(spots, key=lambda spot: spot.cost), marks[name]
        face = marker.colour if curve[0].kind == "measured" else "white"
        look: dict[str, Any] = {"markersize": 4, "markeredgewidth": 0.9, "markerfacecolor": face, "linewidth": 0.8}
        costs, values = [spot.cost for spot in curve], [spot.quality for spot in curve]
        axes.plot(costs, values, color=marker.colour, marker=marker.shape, zorder=2, **look)
        labels.append(style.end_label(axes, costs[-1], values[-1], name, marker.colour))
    return labels


def _undominated(spots: Sequence[Spot]) -> list[Spot]:
    """Return the spots for which no other is better in cost and quality, the cheapest first."""
    best: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (s.cost, -s.quality)):
        if not best or spot.quality > best[-1].quality:
            best.append(spot)
    return best
