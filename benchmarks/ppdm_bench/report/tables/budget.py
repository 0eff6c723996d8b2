"""The table of ``plan``: which methods fit into a memory budget, ranked, and the same in words.

A method fits for a purpose if all of its phases fit: to train a latent method, its autoencoder must be trained too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppdm_bench.records import PURPOSES, Record
from ppdm_bench.report.tables.render import Columns, Heading, Page, data_frame, table_of
from ppdm_bench.units import GIB, gib, setting_text, shape_text

_VERBS = {"train": "train", "sample": "sample from"}

# From the weakest to the strongest; a copy of ppdm.network.options.CHECKPOINTING, which this module must not import.
_CHECKPOINTING = ("none", "norm", "block", "conv")

# Columns of the data. All metrics are integers: bytes, voxels, a factor, or 1 for yes.
_METRICS = ("needs", "fits", "largest_resolution", "smallest_factor", "largest_batch")
_DTYPES = {
    **dict.fromkeys(("method", "purpose", "shape"), "object"),
    "batch_size": "Int64",
    **dict.fromkeys(("precision", "checkpointing"), "object"),
    **dict.fromkeys(("budget", *_METRICS), "Int64"),
    **dict.fromkeys(("largest_phase", "fits_with", "kind", "status"), "object"),
}

_ENDS = ("", "_low", "_high")  # suffixes of the columns of a predicted duration

Option = tuple[str, str]  # precision and checkpointing


@dataclass
class PlanLine:
    """The answers for one method and one purpose, over all phases of the purpose.

    Attributes:
        purpose: ``train`` or ``sample``.
        asked: the requested option; all others save memory.
        phases: records by phase, option and metric.
    """

    method: str
    purpose: str
    asked: Option
    phases: dict[str, dict[Option, dict[str, Record]]] = field(default_factory=dict)

    def found(self, metric: str) -> dict[str, Record]:
        """Return the records of a metric for the requested option, by phase."""
        return {phase: of[self.asked][metric] for phase, of in self.phases.items() if metric in of[self.asked]}

    def value(self, metric: str) -> float | None:
        """Return the value for the requested option in the phase that limits the method; None if it is unknown."""
        values = [record.value for record in self.found(metric).values() if record.value is not None]
        if (metric == "fits" and len(values) < len(self.phases)) or not values:
            return None
        if metric == "needs" or (metric == "smallest_factor" and all(values)):
            return max(values)
        return min(values)

    @property
    def fits(self) -> bool:
        """Whether every phase fits with the requested option."""
        return bool(self.value("fits"))

    @property
    def cube(self) -> float | None:
        """Edge of the largest cube, in voxels."""
        return self.value("largest_resolution")

    @property
    def needs(self) -> dict[str, float]:
        """The memory that each phase needs; 0 if unknown."""
        return {phase: _value(of[self.asked].get("needs")) for phase, of in self.phases.items()}

    @property
    def largest_phase(self) -> str:
        """The phase that needs the most memory."""
        return max(self.needs, key=self.needs.__getitem__)

    @property
    def tried(self) -> list[Option]:
        """The predicted options that save memory."""
        return [*dict.fromkeys(option for of in self.phases.values() for option in of if option != self.asked)]

    @property
    def options(self) -> list[str]:
        """The mildest options with which the method fits, in words; empty if it fits as requested."""
        if self.fits:
            return []
        enough = [one for one in self.tried if all(self._suffices(one, phase) for phase in self.phases)]
        least = [a for a in enough if not any(b != a and self._includes(a, b) for b in enough)]
        words = sorted(map(self.option_text, least), key=lambda text: (text.count(" and "), text))
        factor = self.value("smallest_factor")
        return [*words, f"a factor of {factor:.0f}"] if factor else words

    def _suffices(self, option: Option, phase: str) -> bool:
        """Whether a phase fits with an option, or with a part of it."""
        return any(of["fits"].value for part, of in self.phases[phase].items() if self._includes(option, part))

    def _includes(self, option: Option, part: Option) -> bool:
        """Whether an option includes ``part``: the same precision or the requested one, and no more recomputation."""
        strength, enough = (_CHECKPOINTING.index(checkpointing) for _, checkpointing in (part, option))
        return part[0] in (self.asked[0], option[0]) and strength <= enough

    def option_text(self, option: Option) -> str:
        """Return what an option changes, in words."""
        precision, checkpointing = option
        words = [precision] * (precision != self.asked[0])
        return " and ".join(words + [f"{checkpointing} checkpointing"] * (checkpointing != self.asked[1]))

    @property
    def record(self) -> Record:
        """The record of a verdict, which has the request in its options; a failed one if there is one."""
        return min(self.found("fits").values(), key=lambda record: record.status == "ok")

    @property
    def notes(self) -> list[str]:
        """The reasons of the records, and the needs of all phases of a method with several phases."""
        found = [(p, r) for p, of in self.phases.items() for group in of.values() for r in group.values()]
        # The table shows a value of 0 as "none", which needs no note.
        noted = [(phase, record) for phase, record in found if record.reason and record.value != 0]
        notes = [f"{self.method}, {phase}, {r.metric.replace('_', ' ')}: {r.reason}" for phase, r in noted]
        if len(self.phases) > 1 and self.value("needs") is not None:
            needs = ", ".join(f"{phase.replace('_', ' ')} {gib(size)}" for phase, size in self.needs.items())
            notes.append(f"{self.method} has several phases, and the largest counts (GiB): {needs}.")
        return notes


def gather_plan(records: Iterable[Record]) -> list[PlanLine]:
    """Return one line per method and purpose: those that fit first, then by the largest cube and the smallest need."""
    lines: dict[tuple[str, ...], PlanLine] = {}
    for record in records:
        if record.command != "plan" or "budget" not in record.options["plan"]:
            continue  # a duration is shown in its own table
        plan, name = record.options["plan"], record.label
        purpose = PURPOSES.get(record.phase, record.phase)
        asked = plan["asked"]["precision"], plan["asked"]["checkpointing"]
        key = (name, purpose, record.shape, record.batch_size, record.options.get("width"), plan)
        line = lines.setdefault(tuple(map(str, key)), PlanLine(name, purpose, asked))
        phase = line.phases.setdefault(record.phase, {asked: {}})
        phase.setdefault((record.precision, record.checkpointing), {})[record.metric] = record
    order = list(dict.fromkeys(PURPOSES.values()))
    return sorted(
        (line for line in lines.values() if len(line.found("fits")) == len(line.phases)),
        key=lambda line: (
            order.index(line.purpose) if line.purpose in order else len(order),
            not line.fits,
            -(line.cube or 0),
            line.value("needs") or float("inf"),
        ),
    )


def plan_page(lines: Sequence[PlanLine], durations: Sequence[Record] = ()) -> Page:
    """Return the request, the answer in words and the table; the data are in bytes and voxels.

    Args:
        lines: from :func:`gather_plan`.
        durations: records of predicted hours of training and seconds per volume; the data have them with their ranges.
    """
    if not lines:
        return Page(["Nothing was asked."], data_frame([], _DTYPES))
    table = table_of(lines, _columns(lines[0].record), within=["purpose"])
    notes = [note for line in lines for note in line.notes]
    times = {(r.label, r.shape, PURPOSES[r.phase]): r for r in durations if r.value is not None}
    data = [_data(line) | _time(times.get((line.method, line.record.shape, line.purpose))) for line in lines]
    named = (f"{record.metric}{end}" for record in durations for end in _ENDS)
    frame = data_frame(data, _DTYPES | dict.fromkeys(named, "float64"))
    return Page([title_of(lines), *sentences(lines), table, *notes], frame)


def _columns(record: Record) -> Columns[PlanLine]:
    """Return the columns for people."""
    step = record.options["plan"]["step"]
    needs = (
        "Needs: memory that the card must have (GiB, 2³⁰ bytes), with the CUDA context and a margin for the error of "
        "the prediction; of a method with several phases, the largest."
    )
    cubes = (
        f"Cubes are multiples of {step} voxels, padded as each method needs; each largest value and the next larger "
        "one were predicted."
    )
    options = "Fits with: each option that suffices by itself, in its mildest form, or else a combination."
    return {
        Heading("purpose", "to"): lambda line: line.purpose,
        Heading("method"): lambda line: line.method,
        Heading("needs", "needs GiB", gib, number=True, best="min", note=needs): lambda line: line.value("needs"),
        Heading("fits"): _verdict,
        Heading("largest_resolution", "largest cube", number=True, note=cubes): lambda line: _largest(
            line, "largest_resolution", "³"
        ),
        Heading("smallest_factor", number=True): lambda line: (
            None if (factor := line.value("smallest_factor")) is None else f"{factor:.0f}" if factor else "none"
        ),
        Heading("largest_batch", number=True): lambda line: _largest(line, "largest_batch"),
        Heading("fits_with", note=options): lambda line: (
            None if line.fits or line.value("fits") is None else ", or ".join(line.options) or "no option"
        ),
    }


def _verdict(line: PlanLine) -> str:
    return line.record.status if line.value("fits") is None else "yes" if line.fits else "no"


def _largest(line: PlanLine, metric: str, unit: str = "") -> str | None:
    """Return a largest value in words; it is a lower bound (≥) if every predicted value fits."""
    value = line.value(metric)
    if not value:
        return None if value is None else "none"
    found = line.found(metric).values()
    tried = [one for record in found if record.value == value for one in record.options["verified"]]
    return f"{'≥ ' if all(one['fits'] for one in tried) else ''}{value:.0f}{unit}"


def _data(line: PlanLine) -> dict[str, Any]:
    record = line.record
    return {
        **{name: getattr(record, name) for name in ("batch_size", "precision", "checkpointing", "kind", "status")},
        **{name: line.value(name) for name in _METRICS},
        "method": line.method,
        "purpose": line.purpose,
        "shape": "x".join(map(str, record.shape)),
        "budget": record.options["plan"]["budget"],
        "largest_phase": line.largest_phase,
        "fits_with": ", or ".join(line.options),
    }


def _time(record: Record | None) -> dict[str, float | None]:
    """Return a predicted duration and the ends of its range, as columns of the data."""
    if record is None:
        return {}
    values = (record.value, *record.options["predicted_time"]["interval"])
    return {f"{record.metric}{end}": value for end, value in zip(_ENDS, values, strict=True)}


def _value(record: Record | None) -> float:
    return 0 if record is None or record.value is None else record.value


def title_of(lines: Sequence[PlanLine]) -> str:
    """Return the request in words."""
    first = lines[0].record
    words = [f"batch size {first.batch_size}", first.precision, setting_text("checkpointing", first.checkpointing)]
    return f"What fits in {_budget(first)} at {_size(first)}, {', '.join(words)} (predicted)"


def _budget(record: Record) -> str:
    return f"{round(record.options['plan']['budget'] / GIB, 2):g} GiB"


def _size(record: Record) -> str:
    edges = set(record.shape)
    return f"{edges.pop()}³" if len(edges) == 1 else shape_text(record.shape)


def sentences(lines: Sequence[PlanLine]) -> list[str]:
    """Return the answer in words, one sentence per purpose."""
    purposes = dict.fromkeys(line.purpose for line in lines)
    return [_sentence([line for line in lines if line.purpose == purpose]) for purpose in purposes]


def _sentence(lines: Sequence[PlanLine]) -> str:
    """Return the methods that fit, those that fit with each option, and the largest cubes of the others, in words."""
    record, purpose = lines[0].record, lines[0].purpose
    able = [line.method for line in lines if line.fits]
    parts = [f"you can {_VERBS.get(purpose, purpose)}: {', '.join(able) or 'no method as asked'}"]
    for how in dict.fromkeys(how for line in lines for how in line.options):
        parts.append(f"with {how}: {', '.join(line.method for line in lines if how in line.options)}")
    parts += [
        _largest_cube_text(line) for line in lines if not line.fits and not line.options and line.cube is not None
    ]
    return f"On {_budget(record)} at {_size(record)} " + "; ".join(parts) + "."


def _largest_cube_text(line: PlanLine) -> str:
    """Return the largest cubes of a method that does not fit, without and with its options, in words."""
    text = f"{line.method} fits up to {line.cube:.0f}³" if line.cube else f"{line.method} does not fit at any size"
    for option in line.tried:
        phases = line.phases.values()
        cube = min(_value((of.get(option) or of[line.asked]).get("largest_resolution")) for of in phases)
        if cube > (line.cube or 0):
            text += f", with {line.option_text(option)} up to {cube:.0f}³"
    return text
