"""The table of peak memory, with one row per configuration: data in bytes, and text in GiB for people."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ppdm_bench.records import PHASES, Record
from ppdm_bench.report.rows import (
    STATUS_NAMES,
    PeakRow,
    all_phases,
    gather_peaks,
    prediction_of,
    reference_of,
    varying_settings,
)
from ppdm_bench.report.tables.render import NO_VALUE, Heading, Page, Table, TableRow, TextCell, data_frame, frame_rows
from ppdm_bench.units import count, gib, ratio, setting_text, significant

if TYPE_CHECKING:
    import pandas as pd

# Columns of every table. Task and width are added if they are known, other conditions if rows differ in them.
_BASE = ("shape", "batch_size", "precision", "checkpointing")


@dataclass(frozen=True)
class _ComparedRow:
    """A row, the rows with which it is compared, and the budget in bytes."""

    row: PeakRow
    reference: PeakRow | None
    prediction: PeakRow | None
    budget: int | None


class _Column(NamedTuple):
    """A column of every phase.

    Attributes:
        name: name in the data, after the phase; without `value`, also the metric whose value is shown.
        heading: heading for people, after the phase; empty for a column that only the data have.
        show: formats a value for people.
        dtype: type in the data.
        value: returns the value of a row in a phase, None if there is none; by default the value of the metric.
        rank, note: as in `Heading`.
        always: whether the data have the column even if no row has a value.
    """

    name: str
    heading: str = ""
    show: Callable[[Any], str] = gib
    dtype: str = "Int64"
    value: Callable[[_ComparedRow, str], Any] | None = None
    rank: int = 0
    note: str = ""
    always: bool = False

    def of(self, compared: _ComparedRow, phase: str) -> Any:
        """Return the value in a phase."""
        if self.value is not None:
            return self.value(compared, phase)
        size = compared.row.value(phase, self.name)
        return None if size is None else round(size)


def _quotient(row: PeakRow | None, divisor: PeakRow | None, phase: str) -> float | None:
    if row is None or divisor is None:
        return None
    above, below = row.value(phase, "peak_allocated"), divisor.value(phase, "peak_allocated")
    return above / below if above is not None and below else None


def _error(compared: _ComparedRow, phase: str) -> float | None:
    found = _quotient(compared.prediction, compared.row, phase)
    return None if found is None else found - 1


def _fits(compared: _ComparedRow, phase: str) -> bool | None:
    """Whether a phase fits the budget: by the predicted need, else by the memory of the measured run."""
    row, budget = compared.row, compared.budget
    if budget is None:
        return None
    if (needs := row.value(phase, "needs")) is not None:
        return needs <= budget
    record = row.records.get((phase, "peak_allocated"))
    if record is not None and record.env.get("capacity") == budget and record.status in ("ok", "oom"):
        return record.status == "ok"  # the run was limited to this budget
    values = (row.value(phase, metric) for metric in ("peak_process", "peak_reserved", "peak_allocated"))
    peak = next((value for value in values if value is not None), None)
    return None if peak is None else peak <= budget


def _seconds(compared: _ComparedRow, phase: str, which: str) -> float | None:
    """Return the predicted time of a step or a volume (`value`), or an end of its range (`low`, `high`)."""
    record = compared.row.records.get((phase, {"train": "step_seconds", "sample": "volume_seconds"}.get(phase, "")))
    predicted = None if record is None else record.options.get("predicted_time")
    if record is None or predicted is None:
        return None
    return record.value if which == "value" else float(predicted["interval"][which == "high"])


def _yes_or_no(true: bool) -> str:
    return "yes" if true else "no"


_COLUMNS = (
    _Column("peak_allocated", "GiB", always=True, note="GiB (2³⁰ bytes): peak of live tensors (peak_allocated)."),
    _Column(
        *("needs", "needs GiB"),
        note="Needs: memory that a card must have, with the CUDA context and a margin for the error of the prediction.",
    ),
    _Column(
        *("peak_reserved", "reserved GiB"),
        rank=2,
        note="Reserved: memory that the allocator takes from the driver if nothing limits it; less can suffice.",
    ),
    _Column("peak_process", "process GiB", rank=3),
    _Column(
        *("peak_host", "host GiB"),
        rank=3,
        note="Host: RAM that weights and volumes take at the peak of a translation, beside Python and its libraries.",
    ),
    _Column("assumed", "assumed GiB"),
    _Column("ratio", "ratio", ratio, "float64", lambda c, phase: _quotient(c.row, c.reference, phase), rank=1),
    _Column(
        *("prediction_error", "prediction error", "{:+.2%}".format, "float64", _error),
        rank=1,
        note="Prediction error: predicted / measured − 1.",
    ),
    _Column(
        *("verified", "verified", _yes_or_no, "boolean", lambda c, phase: c.row.verified(phase)),
        rank=1,
        note="Verified: whether it ran again in a process limited to the predicted memory.",
    ),
    _Column("fits", "fits", _yes_or_no, "boolean", _fits),
    _Column(
        *("seconds", "seconds", significant, "float64", lambda c, phase: _seconds(c, phase, "value")),
        note="Seconds: predicted time of a training step, and of a volume with the method's own number of network "
        "evaluations; in brackets, the range in which eight of ten published timings lie.",
    ),
    _Column("seconds_low", dtype="float64", value=lambda c, phase: _seconds(c, phase, "low")),
    _Column("seconds_high", dtype="float64", value=lambda c, phase: _seconds(c, phase, "high")),
    _Column("status", dtype="object", value=lambda c, phase: c.row.outcome(phase)[0], always=True),
    _Column("reason", dtype="object", value=lambda c, phase: c.row.outcome(phase)[1], always=True),
)


def memory_table(records: Iterable[Record], *, reference: str = "", budget: int | None = None) -> pd.DataFrame:
    """Return the table of peak memory as data: one row per configuration and kind, in the order of the records.

    Columns: method, variant, the settings, kind, parameters; then for every phase (`train`, `sample`, ...) `<phase>_`
    followed by `peak_allocated`, `needs`, `peak_reserved`, `peak_process`, `peak_host` if recorded (bytes), `assumed`
    (bytes of a predicted peak that follow a rule which no published measurement confirms yet), `seconds` (the predicted
    time of a step or a volume, between `seconds_low` and `seconds_high`), `ratio` (peak_allocated relative to that of
    the reference), `prediction_error` (predicted / measured - 1, in the measured row), `verified` (whether a repeated
    run fitted the predicted memory), `fits`, `status`, `reason`. A phase that was not run has an empty status.

    Args:
        records: long-form records; those that are not about memory are ignored.
        reference: the method to which ratios refer, with the same settings and kind and without checkpointing;
            `ratio_reference` names its row. Empty for no ratios.
        budget: memory of the card in bytes. A prediction fits if it needs no more, a measurement if its process took no
            more.
    """
    rows = gather_peaks(records)
    compared = [_ComparedRow(row, reference_of(row, rows, reference), prediction_of(row, rows), budget) for row in rows]
    always = {"ratio": bool(reference), "fits": budget is not None}
    known = [name for name in ("task", "width") if any(row.settings[name] for row in rows)]
    settings = [*_BASE, *(name for name in dict.fromkeys((*known, *varying_settings(rows))) if name not in _BASE)]
    dtypes = dict.fromkeys(("method", "variant", *settings, "kind"), "object")
    dtypes |= {name: "Int64" for name in ("batch_size", "width", "parameters") if name in (*settings, "parameters")}
    lines = [_about(one) for one in compared]
    for phase in all_phases(rows):
        for column in _COLUMNS:
            values = [column.of(one, phase) for one in compared]
            if column.always or always.get(column.name) or any(value is not None for value in values):
                dtypes[f"{phase}_{column.name}"] = column.dtype
                for line, value in zip(lines, values, strict=True):
                    line[f"{phase}_{column.name}"] = value
    return data_frame(lines, dtypes | {"ratio_reference": "object"} if reference else dtypes)


def _about(compared: _ComparedRow) -> dict[str, Any]:
    row, against = compared.row, compared.reference
    return {
        **row.settings,
        "method": row.method,
        "variant": row.variant,
        "kind": row.kind,
        "shape": "x".join(map(str, row.settings["shape"])),
        "parameters": row.parameters(),
        "ratio_reference": f"{against.name}, checkpointing none" if against else "",
    }


def memory_page(frame: pd.DataFrame, *, assumed: bool = False) -> Page:
    """Return the result of :func:`memory_table` for people in GiB: shared settings as title, failures as remarks.

    If `assumed`, the table shows the assumed part of each prediction.
    """
    lines, settings = frame_rows(frame), [*_settings_of(frame), "kind"]
    differing = [name for name in settings if frame[name].nunique(dropna=False) > 1]
    headings = [Heading("method")]
    headings += [Heading(name, name.replace("_", " "), _setting) for name in differing]
    headings += [Heading("parameters", "parameters", count, number=True, rank=2)]
    headings += [heading for phase in _phases_of(frame) for heading in _phase_headings(frame, phase, assumed)]
    rows = [TableRow(tuple(_cell(line, heading.key) for heading in headings)) for line in lines]
    table = Table(headings, rows, within=settings).without_empty()
    return Page([_title(frame, settings), table, *_remarks(frame, lines)], frame)


def _phase_headings(frame: pd.DataFrame, phase: str, assumed: bool) -> list[Heading]:
    measured = bool((frame["kind"] == "measured").any())  # a predicted peak_process is peak_reserved plus a constant
    shown = {"peak_process": measured, "assumed": assumed}
    against = " or ".join(dict.fromkeys(filter(None, frame.get("ratio_reference", ()))))
    notes = {
        "ratio": f"Ratio: relative to {against}, with the same kind and all other settings equal." if against else ""
    }
    return [
        Heading(
            f"{phase}_{column.name}",
            f"{phase.replace('_', ' ')} {column.heading}",
            column.show,
            number=column.dtype in ("Int64", "float64"),
            rank=column.rank + (phase not in PHASES[:2]),  # training and sampling first
            best="min" if column.name == "peak_allocated" else "",
            note=notes.get(column.name, column.note),
        )
        for column in sorted(_COLUMNS, key=lambda column: column.rank)
        if column.heading and f"{phase}_{column.name}" in frame.columns and shown.get(column.name, True)
    ]


def _cell(line: dict[str, Any], key: str) -> Any:
    """Return a value; a peak also shows how the run ended."""
    if key == "method":
        return f"{line['method']} {line['variant']}".strip()
    if key.endswith("_seconds") and line[key] is not None:
        ends = (significant(line[f"{key}_{end}"]) for end in ("low", "high"))
        return TextCell(line[key], f"{significant(line[key])} ({' to '.join(ends)})")
    if not key.endswith("_peak_allocated"):
        return line[key]
    failure = STATUS_NAMES.get(line[key.replace("peak_allocated", "status")], "")
    words = ("" if line[key] is None else gib(line[key]), failure)
    return TextCell(line[key], " ".join(filter(None, words)) or NO_VALUE)


def _phases_of(frame: pd.DataFrame) -> list[str]:
    return [str(c).removesuffix("_peak_allocated") for c in frame.columns if str(c).endswith("_peak_allocated")]


def _settings_of(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns[2 : list(frame.columns).index("kind")]]


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return _yes_or_no(value)
    return str(value).replace("x", "×") if re.fullmatch(r"\d+x\d+x\d+", str(value)) else str(value)


def _title(frame: pd.DataFrame, settings: Sequence[str]) -> str:
    """Return the settings that all rows share, in words."""
    values = {name: set(frame[name].tolist()) for name in settings if frame[name].notna().all()}
    shared = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
    words = ["Peak memory", *(_setting(setting_text(name, value)) for name, value in shared.items())]
    return ", ".join(filter(None, words))


def _remarks(frame: pd.DataFrame, lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return the remarks below the table: how much is assumed, and a sentence for each failed phase of a row."""
    phases, sized = _phases_of(frame), frame["shape"].nunique() > 1
    shares = [
        line[f"{phase}_assumed"] / line[f"{phase}_peak_allocated"]
        for line in lines
        for phase in phases
        if line.get(f"{phase}_assumed") and line[f"{phase}_peak_allocated"]
    ]
    remarks = [
        f"Up to {max(shares, default=0):.0%} of a predicted peak is assumed: it follows a rule that no published "
        "measurement confirms yet (--assumed shows how much)."
    ] * bool(shares)
    for line in lines:
        name = " ".join(filter(None, (line["method"], line["variant"], _setting(line["shape"]) if sized else "")))
        reasons = {phase: line[f"{phase}_reason"] for phase in phases if line[f"{phase}_reason"]}
        remarks += [" ".join(f"{name}, {line['kind']}, {phase}: {why}".split()) for phase, why in reasons.items()]
    return remarks
