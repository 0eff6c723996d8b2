"""Which records of memory belong into one picture, and the sizes of cards that it is held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ppdm_bench.records import Record
from ppdm_bench.report.rows import Row, gather

__all__ = ["CARDS", "cubic", "largest_set", "size_of"]

# Nominal sizes of GPUs in GB; a card's "24 GB" are 24 GiB but for what ECC and the driver keep back.
CARDS = (8, 12, 16, 24, 40, 48, 80, 141)


def size_of(row: Row) -> int:
    """Voxels along an axis of a cubic row."""
    shape = row.settings["shape"]
    assert isinstance(shape, tuple)
    return int(shape[0])


def cubic(records: Iterable[Record]) -> list[Row]:
    """The rows of ``ppdm-bench memory`` on cubes."""
    rows = gather(record for record in records if record.command == "memory")
    return [row for row in rows if isinstance(s := row.settings["shape"], tuple) and s and len(set(s)) == 1]


def largest_set(rows: Sequence[Row]) -> list[Row]:
    """The rows of one setting: of those with the most sizes, that with the most rows; plain settings win a draw.

    A setting is precision, checkpointing, batch size, preset, memory format, compilation, and CPU or GPU: rows that
    differ in it are not points of one curve.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_setting(row), []).append(row)
    return max(groups.values(), key=_rank, default=[])


def _rank(rows: Sequence[Row]) -> tuple[object, ...]:
    first = rows[0]
    plain = first.settings["checkpointing"] == "none", first.settings["precision"] == "fp32"
    return len({size_of(row) for row in rows}), not _on_cpu(first), len(rows), plain


def _setting(row: Row) -> tuple[object, ...]:
    names = ("precision", "checkpointing", "batch_size", "channels_last", "compile")
    return (*(row.settings[name] for name in names), _preset(row), _on_cpu(row))


def _preset(row: Row) -> object:
    return next((r.options.get("preset") for r in row.records.values()), None)


def _on_cpu(row: Row) -> bool:
    return str(row.settings["device"]).startswith("cpu")
