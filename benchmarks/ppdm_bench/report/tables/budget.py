"""The table of ``plan``: what fits into a budget of memory, ranked, and the same in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppdm_bench.records import PHASES, Record
from ppdm_bench.report.rows import PHASE_NAMES
from ppdm_bench.report.tables.render import Heading, Page, data_frame, table_of
from ppdm_bench.units import GIB, gib, setting_text, shape_text, significant

__all__ = ["Line", "gather", "plan_page", "sentences", "title_of"]

_DO = {"train": "train", "sample": "sample from", "autoencoder_train": "train the autoencoder of", "decode": "decode"}

# Columns of the data. The value of a metric is whole: bytes, voxels, a factor, or 1 for yes.
_METRICS = ("needed", "fits", "largest_resolution", "smallest_factor", "largest_batch")
_DTYPES = {
    **dict.fromkeys(("method", "phase", "shape"), "object"),
    "batch_size": "Int64",
    **dict.fromkeys(("precision", "checkpointing"), "object"),
    **dict.fromkeys(("budget", *_METRICS), "Int64"),
    **dict.fromkeys(("fits_with", "kind", "status"), "object"),
}


@dataclass
class Line:
    """The answers for one method in one phase.

    Attributes:
        asked: records of the requested configuration, by metric.
        switched: records with other switches, by precision and checkpointing, then by metric.
    """

    method: str
    phase: str
    asked: dict[str, Record] = field(default_factory=dict)
    switched: dict[tuple[str, str], dict[str, Record]] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """The value for the requested configuration, or None."""
        record = self.asked.get(metric)
        return None if record is None else record.value

    @property
    def fits(self) -> bool:
        """Whether the requested configuration fits."""
        return bool(self.value("fits"))

    @property
    def cube(self) -> float | None:
        """Edge of the largest cube, in voxels."""
        return self.value("largest_resolution")

    @property
    def switch(self) -> str | None:
        """The switches that make it fit, as few as possible; None if no tried switch does."""
        fitting = [key for key, records in self.switched.items() if records["fits"].value]
        return min((_switch_text(self, key) for key in fitting), key=lambda text: text.count(" and "), default=None)

    @property
    def record(self) -> Record:
        """The record of the verdict, which holds the request."""
        return self.asked["fits"]

    @property
    def notes(self) -> list[str]:
        """Reasons for answers that need one."""
        found = [r for group in (self.asked, *self.switched.values()) for r in group.values() if r.reason]
        return [f"{self.method}, {self.phase}, {r.metric.replace('_', ' ')}: {r.reason}" for r in found]


def gather(records: Iterable[Record]) -> list[Line]:
    """Return one line per method and phase, ranked: those that fit first, then by larger cube and smaller need."""
    lines: dict[tuple[str, ...], Line] = {}
    for record in records:
        if record.command != "plan":
            continue
        plan, name = record.options["plan"], f"{record.method} {record.variant}".strip()
        key = (name, record.phase, record.shape, record.batch_size, record.options.get("width"), plan)
        line = lines.setdefault(tuple(map(str, key)), Line(name, record.phase))
        switches = record.precision, record.checkpointing
        same = switches == (plan["asked"]["precision"], plan["asked"]["checkpointing"])
        (line.asked if same else line.switched.setdefault(switches, {}))[record.metric] = record
    order = {phase: place for place, phase in enumerate(PHASES)}
    return sorted(
        (line for line in lines.values() if "fits" in line.asked),
        key=lambda line: (
            order.get(line.phase, len(order)),
            not line.fits,
            -(line.cube or 0),
            line.value("needed") or float("inf"),
        ),
    )


def plan_page(lines: Sequence[Line]) -> Page:
    """Return the request, the answer in words and the table; as data in bytes and voxels."""
    if not lines:
        return Page(["Nothing was asked."], data_frame([], _DTYPES))
    table = table_of(lines, _columns(lines[0].record), within=["phase"])
    notes = [note for line in lines for note in line.notes]
    return Page([title_of(lines), *sentences(lines), table, *notes], data_frame([*map(_data, lines)], _DTYPES))


def _columns(record: Record) -> dict[Heading, Callable[[Line], Any]]:
    """The columns for people."""
    context, step = record.env.get("context", 0) / GIB, record.options["plan"]["step"]
    needs = (
        f"Needs: the smallest limit of PyTorch's allocator that suffices (2³⁰ bytes), without {significant(context)} "
        "GiB of CUDA context, which the budget must hold too."
    )
    cubes = (
        f"Cubes are multiples of {step} voxels, padded as each method needs; each largest value and the next larger "
        "one were predicted."
    )
    switches = "Switches are tried together first, and one by one if they suffice together."
    return {
        Heading("phase", "phase"): lambda line: PHASE_NAMES.get(line.phase, line.phase),
        Heading("method", "method"): lambda line: line.method,
        Heading("needed", "needs GiB", gib, number=True, best="min", note=needs): lambda line: line.value("needed"),
        Heading("fits", "fits"): _verdict,
        Heading("largest_resolution", "largest cube", number=True, note=cubes): lambda line: _largest(
            line, "largest_resolution", "³"
        ),
        Heading("smallest_factor", "smallest factor", number=True): lambda line: (
            None if (factor := line.value("smallest_factor")) is None else f"{factor:.0f}" if factor else "none"
        ),
        Heading("largest_batch", "largest batch", number=True): lambda line: _largest(line, "largest_batch"),
        Heading("fits_with", "fits with", note=switches): lambda line: (
            None if line.fits or not line.switched else line.switch or "no switch"
        ),
    }


def _verdict(line: Line) -> str:
    return line.record.status if line.record.value is None else "yes" if line.fits else "no"


def _largest(line: Line, metric: str, unit: str = "") -> str | None:
    """Return a largest value; it is a lower bound if no larger value was predicted not to fit."""
    value = line.value(metric)
    if not value:
        return None if value is None else "none"
    bounded = any(not look["fits"] for look in line.asked[metric].options["verified"])
    return f"{'' if bounded else '≥ '}{value:.0f}{unit}"


def _data(line: Line) -> dict[str, Any]:
    record = line.record
    return {
        **{name: getattr(record, name) for name in ("batch_size", "precision", "checkpointing", "kind", "status")},
        **{name: line.value(name) for name in _METRICS},
        "method": line.method,
        "phase": line.phase,
        "shape": "x".join(map(str, record.shape)),
        "budget": record.options["plan"]["budget"],
        "fits_with": line.switch,
    }


def sentences(lines: Sequence[Line]) -> list[str]:
    """Return the answer in words, one sentence per phase."""
    phases = dict.fromkeys(line.phase for line in lines)
    return [_sentence([line for line in lines if line.phase == phase]) for phase in phases]


def _switch_text(line: Line, key: tuple[str, str]) -> str:
    precision, checkpointing = key
    words = [precision] * (precision != line.record.precision)
    return " and ".join(words + [f"{checkpointing} checkpointing"] * (checkpointing != line.record.checkpointing))


def title_of(lines: Sequence[Line]) -> str:
    """Return the request in words."""
    first = lines[0].record
    words = [f"batch size {first.batch_size}", first.precision, setting_text("checkpointing", first.checkpointing)]
    return f"What fits in {_budget(first)} at {_size(first)}, {', '.join(words)} (predicted)"


def _budget(record: Record) -> str:
    return f"{round(record.options['plan']['budget'] / GIB, 2):g} GB"


def _size(record: Record) -> str:
    edges = set(record.shape)
    return f"{edges.pop()}³" if len(edges) == 1 else shape_text(record.shape)


def _sentence(lines: Sequence[Line]) -> str:
    """The methods that fit, those that fit with switches, and the largest cubes of the others."""
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
    """The largest cube of a method that does not fit, without and with its switches."""
    text = f"{line.method} fits up to {line.cube:.0f}³" if line.cube else f"{line.method} does not fit at any size"
    for key, records in line.switched.items():
        if (found := records.get("largest_resolution")) and found.value:
            text += f", with {_switch_text(line, key)} up to {found.value:.0f}³"
    factor = line.value("smallest_factor")
    return text + (f", or at this size with a factor of {factor:.0f}" if factor else "")
