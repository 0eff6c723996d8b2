"""Peak memory against resolution, for every method, with the sizes of common cards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.capacity import CARDS, cubic, largest_set, size_of
from ppdm_bench.report.figures.methods import method_looks
from ppdm_bench.report.figures.style import MARKERS, TEXT, Column
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import Missing, Shown
from ppdm_bench.report.rows import PHASE_NAMES, Row, all_phases, common
from ppdm_bench.report.tables.render import Best, Heading, Line, Table
from ppdm_bench.units import GIB, gib

_PANELS = ("train", "sample")
_LABEL_GAP = 6.0  # points between the names of cards

Looks = dict[str, tuple[str, str, float]]


def show(library: Library) -> Shown:
    """Of one setting, the curve of every method; the table has every setting.

    Raises:
        Missing: no setting was recorded at two cubic sizes.
    """
    everything = cubic(library.records)
    rows = largest_set(everything)
    sizes = sorted({size_of(row) for row in rows})
    if len(sizes) < 2:
        raise Missing(
            "peak memory at two cubic sizes or more; `ppdm-bench memory --res 64`, then 128, with one --out makes it"
        )
    records = [r for row in rows for r in row.records.values() if r.metric in ("peak_allocated", "peak_reserved")]
    cubes = ", ".join(f"{n}³" for n in sizes)
    kinds = " and ".join(sorted({row.kind for row in rows}))
    about = (
        "Peak of live tensor memory (peak_allocated) of one training step and of one sampling run on cubes of "
        f"{cubes} voxels; {common(rows)}. Values are {kinds}: predicted ones are hollow and dashed, measured ones "
        "solid. Dashed grey lines: nominal memory of common GPUs; a card's driver and CUDA context keep some of it "
        "back. No images and no seeds are involved: memory depends on sizes alone."
    )
    looks = _looks(rows, library)
    return Shown(_table(everything, library), lambda column: _figure(rows, looks, column), about, records)


_PEAKS: Sequence[tuple[str, str, int, Best]] = (
    ("peak_allocated", "allocated", 0, "min"),
    ("peak_reserved", "reserved", 2, ""),  # not in LaTeX
)


def _table(rows: Sequence[Row], library: Library) -> Table:
    phases = all_phases(rows)
    headings = [
        Heading("method", "method"),
        Heading("variant", "variant"),
        Heading("voxels_per_axis", "size", lambda n: f"{n}³", number=True),
        *(Heading(name, name.replace("_", " ")) for name in ("precision", "checkpointing")),
        Heading("batch_size", "batch size", number=True),
        Heading("device", "device"),
        Heading("kind", "kind"),
        *(
            Heading(f"{phase}_{metric}_bytes", f"{PHASE_NAMES.get(phase, phase)} {name}, GiB", gib, True, rank, best)
            for phase in phases
            for metric, name, rank, best in _PEAKS
        ),
    ]
    lines = [
        Line(
            (
                row.method,
                row.variant,
                size_of(row),
                *(row.settings[name] for name in ("precision", "checkpointing", "batch_size", "device")),
                row.kind,
                *(_whole(row.value(phase, m)) for phase in phases for m in ("peak_allocated", "peak_reserved")),
            ),
            library.references(row.records.values()),
        )
        for row in sorted(rows, key=lambda row: (row.settings["device"] == "cpu", size_of(row)))
    ]
    return Table(headings, lines, within=("voxels_per_axis", "precision", "checkpointing", "device", "kind"))


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _figure(rows: Sequence[Row], looks: Looks, column: Column) -> Figure:
    names = list(dict.fromkeys(row.name for row in rows))
    legend_rows = -(-len(names) // (5 if column == "double" else 2)) + 1
    figure = style.new_figure(column, height=(2.9 if column == "double" else 5.0) + 0.15 * legend_rows)
    shape = (1, len(_PANELS)) if column == "double" else (len(_PANELS), 1)
    panels = figure.subplots(*shape, sharex=True, squeeze=False).flatten()
    for axes, phase in zip(panels, _PANELS, strict=True):
        style.plain_axes(axes, "both")
        _draw(axes, rows, phase, looks)
        axes.set_title(PHASE_NAMES[phase], fontsize=TEXT)
    _share_scale(panels)
    for axes in panels:
        _axes(axes, sorted({size_of(row) for row in rows}))
    style.title(figure, f"Peak allocated memory against resolution: {common(rows)}.")
    style.legend(figure, _legend(rows, looks), columns=5 if column == "double" else 2)
    figure.draw_without_rendering()  # the height of a panel is known once title and legend have their place
    for axes in panels:
        _cards(axes)
    return figure


def _looks(rows: Sequence[Row], library: Library) -> Looks:
    """A colour a method, a marker and a size a curve: where curves coincide, the smaller marks lie in the larger."""
    colours = method_looks(library.records)
    names = dict.fromkeys((row.name, row.method) for row in rows)
    size = 6.5 / max(1, len(names) - 1)
    return {
        name: (colours.get(method, (style.GREY, ""))[0], MARKERS[n % len(MARKERS)], max(2.6, 6.5 - 0.55 * size * n))
        for n, (name, method) in enumerate(names)
    }


def _draw(axes: Axes, rows: Sequence[Row], phase: str, looks: Looks) -> None:
    for name, (colour, marker, size) in looks.items():
        for kind in dict.fromkeys(row.kind for row in rows):
            own = [(size_of(r), v) for r in rows if r.name == name and r.kind == kind if (v := _peak(r, phase))]
            if own:
                solid = kind == "measured"
                axes.plot(
                    *zip(*sorted(own), strict=True),
                    color=colour,
                    marker=marker,
                    markersize=size,
                    linewidth=1.0,
                    linestyle="-" if solid else (0, (4, 1.5)),
                    markerfacecolor=colour if solid else "white",
                    markeredgewidth=0.8,
                )


def _peak(row: Row, phase: str) -> float | None:
    value = row.value(phase, "peak_allocated")
    return None if value is None else value / GIB


def _share_scale(panels: Iterable[Axes]) -> None:
    """Both phases on one scale, so that they can be compared."""
    panels = list(panels)
    for axes in panels:
        axes.set_yscale("log")
    ends = [end for axes in panels for end in axes.get_ylim()]
    for axes in panels:
        axes.set_ylim(min(ends), max(ends))


def _axes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.08, sizes[-1] * 1.08)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:.0f}³"))
    axes.tick_params(axis="x", labelbottom=True)
    axes.yaxis.set_major_locator(FixedLocator([d * 10.0**p for p in range(-3, 5) for d in (1, 2, 5)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("voxels", fontsize=TEXT)
    axes.set_ylabel("peak allocated memory (GiB)", fontsize=TEXT)


def _cards(axes: Axes) -> None:
    """Lines at the memory of common cards."""
    low, high = axes.get_ylim()
    before = float("-inf")
    for card in (card for card in CARDS if low < card < high):
        axes.axhline(card, color=style.GREY, linewidth=0.5, linestyle=(0, (4, 2)), zorder=0.8)
        place = axes.transData.transform((axes.get_xlim()[0], card))[1] * 72 / axes.figure.dpi
        before = max(place, before + _LABEL_GAP)  # names that would lie on one another are moved apart
        axes.annotate(
            f"{card} GB",
            (1.0, card),
            xycoords=("axes fraction", "data"),
            xytext=(2, before - place),
            textcoords="offset points",
            va="center",
            fontsize=5.5,
            color="0.35",
            annotation_clip=False,
        )


def _legend(rows: Sequence[Row], looks: Looks) -> list[Line2D]:
    white = {"markerfacecolor": "white", "markeredgewidth": 0.8}
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=size, linewidth=1.0, label=name, **white)  # type: ignore[arg-type]
        for name, (colour, marker, size) in looks.items()
    ]
    lines = {"measured": "-", "predicted": (0, (4, 1.5)), "published": ":"}
    for kind in dict.fromkeys(row.kind for row in rows):
        handles.append(Line2D([], [], color="0.3", linewidth=1.0, linestyle=lines[kind], label=kind))  # type: ignore[arg-type]
    return handles
