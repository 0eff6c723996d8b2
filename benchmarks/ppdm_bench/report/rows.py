"""Rows from records of memory, one per configuration and kind, for tables and figures.

A row never contains records of two kinds, so that predicted and measured numbers cannot be mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ppdm_bench.grouping import grouped
from ppdm_bench.records import PHASES, PURPOSES, Record
from ppdm_bench.units import CONDITIONS, SETTINGS, setting_text

PEAKS = ("peak_allocated", "peak_reserved", "peak_process")
_PHASES = {"train": "training", "sample": "sampling", "autoencoder_train": "autoencoder training", "decode": "decoding"}
STATUS_NAMES = {"oom": "OOM", "timeout": "timeout", "error": "error", "killed": "killed", "skipped": "skipped"}


@dataclass(frozen=True)
class PeakRow:
    """The records of one configuration and one kind.

    Attributes:
        kind: `measured`, `predicted` or `published`.
        method, variant: as in the records.
        settings: the other settings of the configuration, by name, without the phase.
        records: records by (phase, metric); of two records of one metric, the later one.
    """

    kind: str
    method: str
    variant: str
    settings: dict[str, Any]
    records: dict[tuple[str, str], Record]

    @property
    def name(self) -> str:
        """Method and variant: `ppdm r=4`."""
        return f"{self.method} {self.variant}".strip()

    def settings_text(self, settings: Iterable[str]) -> str:
        """Return these settings in words."""
        return ", ".join(filter(None, (setting_text(name, self.settings[name]) for name in settings)))

    @property
    def on_cpu(self) -> bool:
        """Whether the records are for the CPU."""
        return str(self.settings["device"]).startswith("cpu")

    @property
    def phases(self) -> list[str]:
        """The phases with a recorded peak, training and sampling first."""
        return _ordered_phases(phase for phase, metric in self.records if metric in PEAKS)

    def of_phase(self, phase: str) -> list[Record]:
        """Return the records of a phase."""
        return [record for (p, _), record in self.records.items() if p == phase]

    def value(self, phase: str, metric: str) -> float | None:
        """Return the value of a metric; None without one, and for a measured run that failed.

        A failed run did not reach its peak. A prediction has a value even if it exceeds the memory of the card.
        """
        record = self.records.get((phase, metric))
        if record is None or (record.status != "ok" and self.kind == "measured"):
            return None
        return record.value

    def largest_phase(self, purpose: str = "") -> str | None:
        """Return the phase with the largest peak, of all phases or of those of a purpose (``train``, ``sample``)."""
        phases = [p for p in self.phases if self.value(p, "peak_allocated") and purpose in ("", PURPOSES.get(p, p))]
        return max(phases, key=lambda phase: self.value(phase, "peak_allocated") or 0, default=None)

    def outcome(self, phase: str) -> tuple[str, str]:
        """Return status and reason of a phase: those of the first failed peak, else of one with a reason.

        Both are empty if the phase was not run.
        """
        found = [record for record in self.of_phase(phase) if record.metric in PEAKS]
        first = min(found, key=lambda r: (r.status == "ok", not r.reason), default=None)
        return (first.status, first.reason) if first else ("", "")

    def verified(self, phase: str) -> bool | None:
        """Return whether a repeated run fitted the predicted memory; None if there was no repetition."""
        record = self.records.get((phase, "verified_at"))
        return None if record is None or record.status not in ("ok", "oom") else record.status == "ok"

    def parameters(self) -> float | None:
        """Return the number of parameters: that of the configuration, else of the first phase that has one."""
        values = (self.value(phase, "parameters") for phase in ("", *self.phases))
        return next((v for v in values if v is not None), None)


def gather_peaks(records: Iterable[Record]) -> list[PeakRow]:
    """Return one row for each configuration and kind that has a peak, in the order of the records."""
    rows: dict[tuple[object, ...], PeakRow] = {}
    for record in records:
        settings = settings_of(record)
        key = (record.kind, record.method, record.variant, *settings.values())
        row = rows.setdefault(key, PeakRow(record.kind, record.method, record.variant, settings, {}))
        row.records[record.phase, record.metric] = record
    return [row for row in rows.values() if row.phases]


def settings_of(record: Record) -> dict[str, Any]:
    """Return the settings of the configuration of a record, without method, variant and phase."""
    width = record.options.get("width")
    found = {
        "width": width if isinstance(width, int) else None,
        "gpu": record.gpu,
        "torch": str(record.env.get("torch") or ""),
    }
    return {name: found[name] if name in found else getattr(record, name) for name in (*SETTINGS, *CONDITIONS)}


def all_phases(rows: Sequence[PeakRow]) -> list[str]:
    """Return the phases of all rows, training and sampling first."""
    return _ordered_phases(phase for row in rows for phase in row.phases)


def phase_name(phase: str) -> str:
    """Return the name of a phase for people: ``autoencoder training``."""
    return _PHASES.get(phase, phase)


def _ordered_phases(phases: Iterable[str]) -> list[str]:
    found = dict.fromkeys(phases)
    return [*(phase for phase in PHASES if phase in found), *(phase for phase in found if phase not in PHASES)]


def varying_settings(rows: Sequence[PeakRow]) -> list[str]:
    """Return the settings in which rows of one kind differ.

    Rows of two kinds are not compared: a prediction may come from another machine than the measurement of the same
    configuration.
    """
    groups = grouped(rows, lambda row: row.kind).values()
    names = (*SETTINGS, *CONDITIONS)
    return [name for name in names if any(len({row.settings[name] for row in group}) > 1 for group in groups)]


def common_settings(rows: Sequence[PeakRow]) -> str:
    """Return the settings that all rows share, in words: `256×256×256, batch size 1, fp32`."""
    shared = [name for name in SETTINGS if len({row.settings[name] for row in rows}) == 1]
    return rows[0].settings_text(shared) if rows else ""


def reference_of(row: PeakRow, rows: Iterable[PeakRow], method: str) -> PeakRow | None:
    """Return the row of the reference `method` with which `row` is compared; None if there is none.

    It has the same kind and the same settings, except width, and uses no checkpointing: a row with checkpointing is
    compared with the plain reference too. Of several rows, one of the same variant and width is preferred, else the
    first.
    """
    free = ("width", "checkpointing")
    plain = [other for other in rows if other.method == method and other.settings["checkpointing"] == "none"]
    candidates = [other for other in plain if other.kind == row.kind and _equal_settings(row, other, free)]
    return max(
        candidates,
        key=lambda other: (other.variant == row.variant, other.settings["width"] == row.settings["width"]),
        default=None,
    )


def prediction_of(row: PeakRow, rows: Iterable[PeakRow]) -> PeakRow | None:
    """Return the predicted row for the configuration of the measured `row`, the last of several; None without one.

    Both must be for a GPU, or both for the CPU. A published row has none: its network is not one of this project.
    """
    if row.kind != "measured":
        return None
    same = [r for r in rows if r.kind == "predicted" and (r.method, r.variant) == (row.method, row.variant)]
    free = ("device", "gpu", "torch")
    return next((r for r in reversed(same) if _equal_settings(row, r, free) and r.on_cpu == row.on_cpu), None)


def _equal_settings(one: PeakRow, other: PeakRow, free: tuple[str, ...]) -> bool:
    return all(value == other.settings[name] for name, value in one.settings.items() if name not in free)
