"""The table of speed: training steps per second and seconds per volume, as data and for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ppdm_bench.records import Record
from ppdm_bench.report.rows import common_settings, varying_settings
from ppdm_bench.report.tables.render import Columns, Heading, Page, data_frame, table_of
from ppdm_bench.report.timings import Timing, TimingRow, gather_times
from ppdm_bench.units import count, setting_text, significant

if TYPE_CHECKING:
    import pandas as pd

_MIN_REPETITIONS = 10  # required by the protocol
_FAILURES = {"oom": "OOM", "skipped": "not run"}

_DTYPES = {
    **dict.fromkeys(("method", "variant", "shape"), "object"),
    "batch_size": "Int64",
    **dict.fromkeys(("precision", "checkpointing"), "object"),
    "width": "Int64",
    **dict.fromkeys(("device", "gpu", "torch", "phase"), "object"),
    "evaluations": "Int64",
    "kind": "object",
    "n": "Int64",
    **dict.fromkeys(("seconds", "q1", "q3", "first_call", "per_second", "flop", "flop_per_second", "share"), "float64"),
    **dict.fromkeys(("low", "high", "arithmetic", "bandwidth", "launches"), "float64"),
    **dict.fromkeys(("status", "reason"), "object"),
}


def speed_table(rows: Iterable[TimingRow]) -> pd.DataFrame:
    """Return one row for the training step of a configuration, and one for a volume per number of evaluations.

    Columns: method, variant, settings, phase, evaluations (network evaluations of a volume), kind, n (repetitions),
    seconds (median), q1 and q3 (quartiles), first_call (seconds of the first step, or of the first volume, which has
    one evaluation), per_second (steps, or volumes: a batch has several), flop (convolutions and matrix products),
    flop_per_second, share (relative to the rate of matrix products), status, reason. An estimated time has its own row
    of kind `predicted`. A time predicted for a card has instead low and high, the range in which it is expected, and
    the shares of arithmetic, bandwidth and launches.
    """
    return data_frame([line for row in rows for found in row.timings for line in _lines(row, *found)], _DTYPES)


def speed_page(records: Iterable[Record]) -> Page:
    """Return the table for people, one row per configuration, and :func:`speed_table` as data.

    Records that are not about time are ignored.

    Raises:
        ValueError: no record has a time.
    """
    rows = gather_times(records)
    table = table_of(rows, _columns(rows)).without_empty()  # no columns for phases that were not requested
    return Page([_title(rows), table, *_remarks(rows)], speed_table(rows))


def _lines(row: TimingRow, phase: str, evaluations: int | None, timing: Timing) -> list[dict[str, Any]]:
    settings = row.configuration.settings
    about = settings | {"method": row.configuration.method, "variant": row.configuration.variant, "phase": phase}
    about |= {"evaluations": evaluations, "shape": "x".join(map(str, timing.record.shape))}
    first, third = timing.quartiles or (None, None)
    measured = about | {
        **{name: getattr(timing.record, name) for name in ("kind", "n", "status", "reason")},
        "seconds": timing.seconds,
        "q1": first,
        "q3": third,
        "first_call": row.firsts.get(phase),
        "per_second": _per_second(phase, timing),
        "flop": timing.flops,
        "flop_per_second": timing.rate,
        "share": timing.share,
        **dict(zip(("low", "high"), timing.interval or (None, None), strict=True)),
        **timing.parts,
    }
    if timing.estimate is None:
        return [measured]
    estimated = {name: getattr(timing.estimate, name) for name in ("kind", "status", "reason")}
    return [measured, about | estimated | {"seconds": timing.estimate.value}]


def _per_second(phase: str, timing: Timing) -> float | None:
    if not timing.seconds:
        return None
    return (1 if phase == "train" else timing.record.batch_size or 1) / timing.seconds


def _title(rows: Sequence[TimingRow]) -> str:
    record = (rows[0].step or next(iter(rows[0].volumes.values()))).record
    env = record.env
    where = record.gpu or ", ".join(filter(None, (env.get("cpu", ""), f"{env.get('threads', '?')} threads")))
    several = len({row.configuration.settings["gpu"] for row in rows}) > 1
    kind = "Predicted time" if record.kind == "predicted" else "Time"
    return f"{kind}{'' if several else f' on {where}'}: {common_settings([row.configuration for row in rows])}."


def _columns(rows: Sequence[TimingRow]) -> Columns[TimingRow]:
    """Return the columns for people; first calls are shown only if they compile a network."""
    first = any(row.firsts and row.configuration.settings["compile"] for row in rows)
    compiled = "First: the call that compiles the network, once per process; the first volume has one evaluation."
    measured = any(not timing.is_predicted for row in rows for _, _, timing in row.timings)
    medians = "Medians; steps/s with quartiles, all quartiles in the CSV." if measured else ""
    own = "ev.: network evaluations per volume; own: the number of the method."
    flop = "FLOP: convolutions and matrix products, counted; recomputation by checkpointing counts again."
    limits = "Limited by: shares of the predicted time that wait for arithmetic, for memory, or for launches."
    return {
        Heading("method"): lambda row: row.configuration.name,
        **{Heading(name): _setting(name) for name in varying_settings([row.configuration for row in rows])},
        Heading("steps_per_second", "steps/s", note=medians): lambda row: _steps_per_second(row.step),
        Heading("first_step", "first step, s", rank=2, note=compiled): _first("train", first),
        Heading("training_limits", "training limited by", rank=1, note=limits): lambda row: _limits(row.step),
        Heading("training_flops", "training FLOP/s (share)", rank=2, note=flop): lambda row: _rate(row.step),
        Heading("first_volume", "first volume, s", rank=2): _first("sample", first),
        **{Heading(f"seconds_{k}", f"s/volume, {k} ev.", rank=1): _seconds(k) for k in _asked_of_all(rows)},
        Heading("seconds_own", "s/volume, own ev.", note=own): lambda row: (
            f"{_volume(row.volumes[row.own])} ({row.own})" if row.own in row.volumes else None
        ),
        Heading("volumes_per_second", "volumes/s, own ev.", rank=1): _volumes_per_second,
        Heading("sampling_limits", "sampling limited by", rank=2): lambda row: _limits(
            next(reversed(row.volumes.values()), None)
        ),
        Heading("sampling_flops", "sampling FLOP/s (share)", rank=2, note=flop): _sampling_rate,
    }


def _asked_of_all(rows: Sequence[TimingRow]) -> list[int]:
    """Return the numbers of evaluations that all sampled configurations share."""
    sampled = [set(row.volumes) for row in rows if row.volumes]
    return sorted(set.intersection(*sampled)) if sampled else []


def _setting(name: str) -> Callable[[TimingRow], str]:
    return lambda row: setting_text(name, row.configuration.settings[name])


def _first(phase: str, shown: bool) -> Callable[[TimingRow], str | None]:
    return lambda row: significant(row.firsts[phase]) if shown and phase in row.firsts else None


def _seconds(evaluations: int) -> Callable[[TimingRow], str | None]:
    return lambda row: _volume(row.volumes.get(evaluations))


def _steps_per_second(timing: Timing | None) -> str | None:
    ends = timing and (timing.quartiles or timing.interval)
    if timing is None or timing.seconds is None or not ends:
        return _failed(timing)
    slow, fast = (significant(1 / seconds) for seconds in reversed(ends))
    return f"{significant(1 / timing.seconds)} ({slow} to {fast})"


def _volume(timing: Timing | None) -> str | None:
    if timing is not None and timing.estimate is not None and timing.estimate.value is not None:
        return f"≈{significant(timing.estimate.value)} est."
    return _failed(timing) if timing is None or timing.seconds is None else significant(timing.seconds)


def _volumes_per_second(row: TimingRow) -> str | None:
    timing = row.volumes.get(row.own or 0)
    rate = None if timing is None else _per_second("sample", timing)
    return None if rate is None else significant(rate)


def _sampling_rate(row: TimingRow) -> str | None:
    """Return the rate for the volume with the most evaluations, where work outside the network has the least share."""
    return _rate(next((timing for timing in reversed(row.volumes.values()) if timing.seconds is not None), None))


def _limits(timing: Timing | None) -> str | None:
    return ", ".join(f"{name} {share:.0%}" for name, share in timing.parts.items()) if timing and timing.parts else None


def _rate(timing: Timing | None) -> str | None:
    if timing is None or timing.rate is None or timing.share is None:
        return None
    return f"{count(timing.rate)} ({timing.share:.0%})"


def _failed(timing: Timing | None) -> str | None:
    return None if timing is None else _FAILURES.get(timing.record.status, timing.record.status)


def _remarks(rows: Sequence[TimingRow]) -> list[str]:
    remarks = []
    if ceilings := [record for row in rows for record in row.ceilings]:
        rates = [record.value for record in ceilings if record.value is not None]
        what = "; ".join(dict.fromkeys(record.reason for record in ceilings))
        ends = " to ".join(dict.fromkeys(count(rate) for rate in (min(rates), max(rates))))
        remarks.append(f"Share: of {ends}FLOP/s, the rate of a {what}, measured in the same process.")
    timings = [(row.configuration.name, phase, timing) for row in rows for phase, _, timing in row.timings]
    if any(timing.interval for _, _, timing in timings):
        remarks.append(
            "Predicted from data sheets and published timings of other networks; nothing was measured. In brackets: "
            "the range in which eight of ten published timings lie (results/validation/timings.md)."
        )
    if estimates := dict.fromkeys(timing.estimate.reason for _, _, timing in timings if timing.estimate):
        remarks.append(f"est.: an estimate. {'; '.join(estimates)}.")
    if any(row.repetitions is not None and row.repetitions < _MIN_REPETITIONS for row in rows):
        remarks.append(
            f"Quick: fewer than the {_MIN_REPETITIONS} repetitions of the protocol; a first look, not a result."
        )
    failed = [(name, phase, timing.record) for name, phase, timing in timings if timing.record.status != "ok"]
    return [*remarks, *dict.fromkeys(f"{name}, {phase}: {record.reason}." for name, phase, record in failed)]
