"""The table of speed: training steps a second and seconds a volume, as data (CSV) and for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppdm_bench.records import Record
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.rows import common, varying
from ppdm_bench.report.tables.text import markdown_grid, text_grid
from ppdm_bench.report.timings import Pace, Timing, gather_times
from ppdm_bench.units import count, setting_text, significant

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["save", "speed_table", "to_csv", "to_markdown", "to_text"]

_ENOUGH = 10  # repetitions that the protocol asks for
_FAILURES = {"oom": "OOM", "skipped": "not run"}

_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("method", "variant", "shape"), "object"),
    "batch_size": "Int64",
    **dict.fromkeys(("precision", "checkpointing"), "object"),
    "width": "Int64",
    **dict.fromkeys(("device", "gpu", "torch", "phase"), "object"),
    "evaluations": "Int64",
    "kind": "object",
    "n": "Int64",
    **dict.fromkeys(("seconds", "q1", "q3", "first_call", "per_second", "flop", "flop_per_second", "share"), "float64"),
    **dict.fromkeys(("status", "reason"), "object"),
}


def speed_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row for the training step of each configuration, and for a volume of each number of evaluations.

    Columns: method, variant, settings, phase, evaluations (of the network, for a volume), kind, n (repetitions),
    seconds (median), q1 and q3 (quartiles), first_call (seconds of the first step, of the first
    volume, which is of one evaluation), per_second (steps; volumes, all of a batch counted), flop (convolutions and
    matrix products), flop_per_second, share (of what matrix products reach), status, reason. A time that was estimated
    has a row of its own, of kind `predicted`.

    Args:
        records: long-form records; those that are not about time are passed over.

    Raises:
        ValueError: no record is of a time.
    """
    import pandas as pd

    lines = [line for pace in gather_times(records) for found in pace.timings for line in _lines(pace, *found)]
    return pd.DataFrame({c: pd.Series([line.get(c) for line in lines], dtype=t) for c, t in _COLUMNS.items()})


def to_csv(records: Iterable[Record]) -> str:
    """Return the table as CSV with six significant digits, the same text every time."""
    return speed_table(records).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def to_text(records: Iterable[Record]) -> str:
    """Return the table for people as aligned text: a row a configuration, its columns below explained."""
    return _page(gather_times(records), text_grid)


def to_markdown(records: Iterable[Record]) -> str:
    """Return the same as Markdown."""
    return _page(gather_times(records), markdown_grid)


def save(records: Sequence[Record], stem: Path) -> tuple[Path, Path]:
    """Write the table as `<stem>.csv` and `<stem>.md`, each whole or not at all, and return the two paths."""
    contents = {".csv": to_csv(records), ".md": to_markdown(records)}
    csv, markdown = (replace_file(stem.with_name(stem.name + end), text.encode()) for end, text in contents.items())
    return csv, markdown


def _lines(pace: Pace, phase: str, evaluations: int | None, timing: Timing) -> list[dict[str, Any]]:
    settings = pace.row.settings
    about = settings | {"method": pace.row.method, "variant": pace.row.variant, "phase": phase}
    about |= {"evaluations": evaluations, "shape": "x".join(map(str, timing.record.shape))}
    first, third = timing.quartiles or (None, None)
    measured = about | {
        "kind": timing.record.kind,
        "n": timing.record.n,
        "seconds": timing.seconds,
        "q1": first,
        "q3": third,
        "first_call": pace.firsts.get(phase),
        "per_second": _per_second(phase, timing),
        "flop": timing.flops,
        "flop_per_second": timing.rate,
        "share": timing.share,
        "status": timing.record.status,
        "reason": timing.record.reason,
    }
    guess = timing.estimate
    if guess is None:
        return [measured]
    return [
        measured,
        about | {name: getattr(guess, name) for name in ("kind", "status", "reason")} | {"seconds": guess.value},
    ]


def _per_second(phase: str, timing: Timing) -> float | None:
    if not timing.seconds:
        return None
    return (1 if phase == "train" else timing.record.batch_size or 1) / timing.seconds


def _page(paces: Sequence[Pace], show: Callable[[list[str], list[list[str]]], str]) -> str:
    cells = _cells(paces)
    cells = {header: column for header, column in cells.items() if set(column) != {"–"}}  # what nobody asked for
    rows = [list(row) for row in zip(*cells.values(), strict=True)]
    return "\n\n".join((_title(paces), show(list(cells), rows), *_notes(paces))) + "\n"


def _title(paces: Sequence[Pace]) -> str:
    env = (paces[0].step or next(iter(paces[0].volumes.values()))).record.env
    where = env.get("gpu") or ", ".join(filter(None, (env.get("cpu", ""), f"{env.get('threads', '?')} threads")))
    return f"Time on {where}: {common([pace.row for pace in paces])}."


def _cells(paces: Sequence[Pace]) -> dict[str, list[str]]:
    """The columns for people: header, and a cell for each configuration."""
    rows = [pace.row for pace in paces]
    cells = {"method": [row.name for row in rows]}
    cells |= {
        name.replace("_", " "): [setting_text(name, row.settings[name]) or "–" for row in rows]
        for name in varying(rows)
    }
    cells["steps/s"] = [_steps_a_second(pace.step) for pace in paces]
    if _tell_firsts(paces):
        cells["first step, s"] = [_first(pace, "train") for pace in paces]
    cells["training FLOP/s (share)"] = [_achieved(pace.step) for pace in paces]
    if _tell_firsts(paces):
        cells["first volume, s"] = [_first(pace, "sample") for pace in paces]
    shared = _asked_of_all(paces)
    for k in shared:
        cells[f"s/volume, {k} ev."] = [_volume(pace.volumes.get(k)) for pace in paces]
    cells["s/volume, own ev."] = [_own(pace) for pace in paces]
    cells["volumes/s, own ev."] = [_volumes_a_second(pace) for pace in paces]
    cells["sampling FLOP/s (share)"] = [_achieved(_largest(pace)) for pace in paces]
    return cells


def _asked_of_all(paces: Sequence[Pace]) -> list[int]:
    """The numbers of evaluations that every configuration has that was sampled from at all."""
    sampled = [set(pace.volumes) for pace in paces if pace.volumes]
    return sorted(set.intersection(*sampled)) if sampled else []


def _steps_a_second(timing: Timing | None) -> str:
    if timing is None or timing.seconds is None or timing.quartiles is None:
        return _failed(timing)
    slow, fast = (significant(1 / seconds) for seconds in reversed(timing.quartiles))
    return f"{significant(1 / timing.seconds)} ({slow} to {fast})"


def _volume(timing: Timing | None) -> str:
    if timing is not None and timing.estimate is not None and timing.estimate.value is not None:
        return f"≈{significant(timing.estimate.value)} est."
    return _failed(timing) if timing is None or timing.seconds is None else significant(timing.seconds)


def _own(pace: Pace) -> str:
    if pace.own not in pace.volumes:
        return "–"
    return f"{_volume(pace.volumes[pace.own])} ({pace.own})"


def _volumes_a_second(pace: Pace) -> str:
    timing = pace.volumes.get(pace.own or 0)
    rate = None if timing is None else _per_second("sample", timing)
    return "–" if rate is None else significant(rate)


def _tell_firsts(paces: Sequence[Pace]) -> bool:
    """Whether people are told of first calls: where a network is compiled in one; what others take is in the CSV."""
    return any(pace.firsts and pace.row.settings["compile"] for pace in paces)


def _first(pace: Pace, phase: str) -> str:
    return significant(pace.firsts[phase]) if phase in pace.firsts else "–"


def _largest(pace: Pace) -> Timing | None:
    """The volume with the most evaluations that were run: what comes before and after them weighs least there."""
    run = [timing for timing in pace.volumes.values() if timing.seconds is not None]
    return run[-1] if run else None


def _achieved(timing: Timing | None) -> str:
    if timing is None or timing.rate is None or timing.share is None:
        return "–"
    return f"{count(timing.rate)} ({timing.share:.0%})"


def _failed(timing: Timing | None) -> str:
    return "–" if timing is None else _FAILURES.get(timing.record.status, timing.record.status)


def _notes(paces: Sequence[Pace]) -> list[str]:
    notes = [
        "Medians; steps/s with quartiles, those of all in the CSV. ev.: network evaluations a volume; own: the "
        "method's. FLOP: convolutions and matrix products, counted; what checkpointing computes again counts again."
    ]
    if _tell_firsts(paces):
        notes.append("First: the call in which a network is compiled, once a process; a volume's is of one evaluation.")
    if ceilings := [record for pace in paces for record in pace.ceilings]:
        rates = [record.value for record in ceilings if record.value is not None]
        what = "; ".join(dict.fromkeys(record.reason for record in ceilings))
        ends = " to ".join(dict.fromkeys(count(rate) for rate in (min(rates), max(rates))))
        notes.append(f"Share: of {ends}FLOP/s, which a {what} reaches, measured in the same process.")
    estimates = [t.estimate for pace in paces for _, _, t in pace.timings if t.estimate]
    if estimates:
        notes.append("est.: an estimate. " + "; ".join(dict.fromkeys(record.reason for record in estimates)) + ".")
    if any(pace.repetitions is not None and pace.repetitions < _ENOUGH for pace in paces):
        notes.append(f"Quick: fewer than the {_ENOUGH} repetitions of the protocol; a glance, not a result.")
    return notes + _failures(paces)


def _failures(paces: Sequence[Pace]) -> list[str]:
    """What was not found out and why, each reason once."""
    found = {
        (pace.row.name, phase, timing.record.reason): None
        for pace in paces
        for phase, _, timing in pace.timings
        if timing.record.status != "ok"
    }
    return [f"{name}, {phase}: {reason}." for name, phase, reason in found]
