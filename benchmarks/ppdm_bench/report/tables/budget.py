"""What a budget of memory carries: the ranked table, the same in words, and bars of the largest cube."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ppdm_bench.records import PHASES, Record
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import SMALL, TEXT, Column
from ppdm_bench.report.rows import PHASE_NAMES
from ppdm_bench.report.tables.text import markdown_grid, text_grid
from ppdm_bench.units import GIB, gib, setting_text, shape_text, significant

_HEADERS = ("phase", "method", "needs GiB", "fits", "largest cube", "smallest factor", "largest batch", "fits with")
_NUMBERS = ("needs GiB", "largest cube", "smallest factor", "largest batch")
_DO = {"train": "train", "sample": "sample from", "autoencoder_train": "train the autoencoder of", "decode": "decode"}
_COLOURS = {"train": style.BLUE, "sample": style.ORANGE, "autoencoder_train": style.GREEN, "decode": style.PURPLE}


@dataclass
class Line:
    """What is known of one method in one phase.

    Attributes:
        asked: records of it as it was asked about, by metric.
        switched: records of it with other switches, by precision and checkpointing, then by metric.
    """

    method: str
    phase: str
    asked: dict[str, Record] = field(default_factory=dict)
    switched: dict[tuple[str, str], dict[str, Record]] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """The value as asked, if there is one."""
        record = self.asked.get(metric)
        return None if record is None else record.value

    @property
    def fits(self) -> bool:
        """Whether it fits as asked."""
        return bool(self.value("fits"))

    @property
    def cube(self) -> float | None:
        """Edge of the largest cube, in voxels."""
        return self.value("largest_resolution")

    @property
    def switch(self) -> str | None:
        """What makes it fit, the fewest switches first; None if nothing that was tried does."""
        fitting = [key for key, records in self.switched.items() if records["fits"].value]
        return min((_switch_text(self, key) for key in fitting), key=lambda text: text.count(" and "), default=None)

    @property
    def record(self) -> Record:
        """One that says what was asked."""
        return self.asked["fits"]

    @property
    def notes(self) -> list[str]:
        """What is not plain about an answer."""
        found = [r for group in (self.asked, *self.switched.values()) for r in group.values() if r.reason]
        return [f"{self.method}, {self.phase}, {r.metric.replace('_', ' ')}: {r.reason}" for r in found]


def gather(records: Iterable[Record]) -> list[Line]:
    """A line a method and phase, ranked: what fits first, then the larger cube, then the smaller need."""
    lines: dict[tuple[object, ...], Line] = {}
    for record in records:
        if record.command != "plan":
            continue
        asked = record.options["plan"]["asked"]
        width = record.options.get("width")
        name = f"{record.method} {record.variant}".strip()
        key = (name, record.phase, record.shape, record.batch_size, width, record.options["plan"])
        line = lines.setdefault(_hashable(key), Line(name, record.phase))
        switches = record.precision, record.checkpointing
        same = switches == (asked["precision"], asked["checkpointing"])
        (line.asked if same else line.switched.setdefault(switches, {}))[record.metric] = record
    order = {phase: place for place, phase in enumerate(PHASES)}
    whole = [line for line in lines.values() if "fits" in line.asked]
    return sorted(
        whole,
        key=lambda line: (
            order.get(line.phase, len(order)),
            not line.fits,
            -(line.cube or 0),
            line.value("needs") or float("inf"),
        ),
    )


def to_text(lines: Sequence[Line]) -> str:
    """The table as aligned text, with what was asked above and the answer in words below."""
    return "\n".join([_title(lines), text_grid(_HEADERS, _cells(lines), _NUMBERS), "", *_legend(lines)]) + "\n"


def to_markdown(lines: Sequence[Line]) -> str:
    """The same as Markdown."""
    return "\n\n".join([_title(lines), markdown_grid(_HEADERS, _cells(lines), _NUMBERS), *_legend(lines)]) + "\n"


def to_csv(lines: Sequence[Line]) -> str:
    """The same as data: bytes, voxels, and empty where nothing is known."""
    import pandas as pd

    rows = [
        {
            "method": line.method,
            "phase": line.phase,
            "shape": "x".join(map(str, line.record.shape)),
            "batch_size": line.record.batch_size,
            "precision": line.record.precision,
            "checkpointing": line.record.checkpointing,
            "budget": line.record.options["plan"]["budget"],
            **{name: line.value(name) for name in ("needs", "fits", "largest_resolution", "smallest_factor")},
            "largest_batch": line.value("largest_batch"),
            "fits_with": line.switch,
            "kind": line.record.kind,
            "status": line.record.status,
        }
        for line in lines
    ]
    whole = ("needs", "fits", "largest_resolution", "smallest_factor", "largest_batch")
    frame = pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))
    return frame.to_csv(index=False, lineterminator="\n")


def save(lines: Sequence[Line], stem: Path) -> list[Path]:
    """Write `<stem>.csv` and `<stem>.md` and return the two paths."""
    contents = {".csv": to_csv(lines), ".md": to_markdown(lines)}
    return [replace_file(stem.with_name(stem.name + end), text.encode()) for end, text in contents.items()]


def sentences(lines: Sequence[Line]) -> list[str]:
    """The answer in words, a sentence a phase."""
    return [
        _sentence([line for line in lines if line.phase == phase])
        for phase in dict.fromkeys(line.phase for line in lines)
    ]


def budget_figure(lines: Sequence[Line], column: Column = "double") -> Figure:
    """Return bars of the largest cube that fits, by method and phase, hatched because they are predicted.

    A thin line stands at the size that was asked about, where it is a cube.

    Raises:
        ValueError: there is no largest cube to draw.
    """
    drawn = [line for line in lines if line.cube is not None]
    if not drawn:
        raise ValueError("there is nothing to draw: no record holds a largest resolution")
    methods = list(dict.fromkeys(line.method for line in drawn))
    phases = list(dict.fromkeys(line.phase for line in drawn))
    height, places = 0.86, {method: place * (len(phases) + 0.7) for place, method in enumerate(methods)}
    figure = style.new_figure(column, height=1.15 + 0.15 * (max(places.values()) + len(phases)))
    axes = figure.add_subplot()
    style.plain_axes(axes, grid="x")
    for line in drawn:
        place, edge = places[line.method] + phases.index(line.phase), line.cube or 0
        axes.barh(place, edge, height=height, **style.bar_style(line.record.kind, _colour(line.phase)))
        axes.annotate(
            f"{edge:.0f}³" if edge else "none",
            (edge, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=SMALL,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    middle = (len(phases) - 1) / 2
    names = [style.folded(method, 40) for method in methods]
    axes.set_yticks([place + middle for place in places.values()], names, fontsize=TEXT)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(places.values()) + len(phases) - 0.2, -0.8)
    axes.set_xlim(0, 1.1 * max([line.cube or 0 for line in drawn] + _wanted(drawn)) or 1)
    axes.set_xlabel("edge of the largest cube that fits (voxels)", fontsize=TEXT)
    for edge in _wanted(drawn):
        axes.axvline(edge, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.9)
    style.title(figure, _title(drawn))
    handles = [Patch(facecolor=_colour(phase), label=PHASE_NAMES.get(phase, phase)) for phase in phases]
    handles += style.kind_patches([line.record.kind for line in drawn])
    asked = [Line2D([], [], label="asked about", color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)))]
    style.legend(figure, [*handles, *(asked if _wanted(drawn) else [])], columns=5)
    return figure


def _wanted(lines: Sequence[Line]) -> list[float]:
    shape = set(lines[0].record.shape)
    return [float(shape.pop())] if len(shape) == 1 else []


def _colour(phase: str) -> str:
    return _COLOURS.get(phase, style.SKY)


def _hashable(key: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(map(str, key))


def _switch_text(line: Line, key: tuple[str, str]) -> str:
    precision, checkpointing = key
    words = [precision] * (precision != line.record.precision)
    return " and ".join(words + [f"{checkpointing} checkpointing"] * (checkpointing != line.record.checkpointing))


def _cells(lines: Sequence[Line]) -> list[list[str]]:
    return [_row(line) for line in lines]


def _row(line: Line) -> list[str]:
    return [
        PHASE_NAMES.get(line.phase, line.phase),
        line.method,
        _shown(line.value("needs"), gib),
        line.record.status if line.record.value is None else "yes" if line.fits else "no",
        _shown(line.cube, lambda edge: _limit(line, "largest_resolution", f"{edge:.0f}³") if edge else "none"),
        _shown(line.value("smallest_factor"), lambda factor: f"{factor:.0f}" if factor else "none"),
        _shown(line.value("largest_batch"), lambda n: _limit(line, "largest_batch", f"{n:.0f}") if n else "none"),
        "–" if line.fits or not line.switched else line.switch or "no switch",
    ]


def _limit(line: Line, metric: str, text: str) -> str:
    """A largest value; beyond it, where nothing was looked at, there may be more."""
    return text if any(not look["fits"] for look in line.asked[metric].options["verified"]) else f"≥ {text}"


def _shown(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else show(value)


def _title(lines: Sequence[Line]) -> str:
    if not lines:
        return "Nothing was asked."
    first = lines[0].record
    words = [f"batch size {first.batch_size}", first.precision, setting_text("checkpointing", first.checkpointing)]
    return f"What fits in {_budget(first)} at {_size(first)}, {', '.join(words)} (predicted)"


def _budget(record: Record) -> str:
    return f"{round(record.options['plan']['budget'] / GIB, 2):g} GB"


def _size(record: Record) -> str:
    edges = set(record.shape)
    return f"{edges.pop()}³" if len(edges) == 1 else shape_text(record.shape)


def _legend(lines: Sequence[Line]) -> list[str]:
    if not lines:
        return []
    record = lines[0].record
    context, step = record.env.get("context", 0) / GIB, record.options["plan"]["step"]
    return [
        *sentences(lines),
        f"Needs: the least that PyTorch's allocator must be given (2³⁰ bytes), beside {significant(context)} GiB of "
        f"CUDA context, which the budget must hold too. Cubes are multiples of {step} voxels, padded to what a "
        "method needs; of each largest value, it and the next larger were predicted. Switches are tried together "
        "first, and alone where they suffice together.",
        *(note for line in lines for note in line.notes),
    ]


def _sentence(lines: Sequence[Line]) -> str:
    """What fits at once, what fits with switches, and how far the others come."""
    record, phase = lines[0].record, lines[0].phase
    if able := [line.method for line in lines if line.fits]:
        parts = [f"you can {_DO.get(phase, phase)}: {', '.join(able)}"]
    else:
        parts = [f"there is no {PHASE_NAMES.get(phase, phase)} as asked"]
    switched = [line for line in lines if line.switch and not line.fits]
    for how in dict.fromkeys(line.switch for line in switched):
        parts.append(f"with {how}: {', '.join(line.method for line in switched if line.switch == how)}")
    parts += [_reach(line) for line in lines if not line.fits and not line.switch and line.cube is not None]
    return f"On {_budget(record)} at {_size(record)} " + "; ".join(parts) + "."


def _reach(line: Line) -> str:
    """How far a method comes that does not fit, without and with its switches."""
    text = f"{line.method} fits up to {line.cube:.0f}³" if line.cube else f"{line.method} does not fit at any size"
    for key, records in line.switched.items():
        if (found := records.get("largest_resolution")) and found.value:
            text += f", with {_switch_text(line, key)} up to {found.value:.0f}³"
    factor = line.value("smallest_factor")
    return text + (f", or at this size with a factor of {factor:.0f}" if factor else "")
