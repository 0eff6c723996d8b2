"""Two sets of records held against each other: what became worse, what better, and what is in one of them alone.

Rows are matched by what was asked, not by the commit that answered. Predictions are exact, and so is memory counted on
the CPU; memory of a GPU may differ a little; times are compared as distributions; quality subject by subject.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ppdm_bench.records import Record, RecordError, RecordFile
from ppdm_bench.report.metrics import loss
from ppdm_bench.report.statistics import LEVEL, paired_difference
from ppdm_bench.report.tables.render import Heading, Page, table_of
from ppdm_bench.units import gib, significant

__all__ = ["VERDICTS", "Change", "changes", "changes_page", "environments", "read_set", "to_records"]

VERDICTS = ("worse", "better", "unchanged", "unclear", "only old", "only new")
MEMORY_TOLERANCE = 0.01  # of a measurement on a GPU: library workspaces differ from run to run

# What says how a thing was done, not how well; and a time that was taken once.
_NEUTRAL = ("parameters", "train_steps", "first_call_seconds")
_OF_A_CODE = ("resolved", "weights", "verified")  # options that a later commit may write otherwise

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Change:
    """What became of one number.

    Attributes:
        verdict: one of :data:`VERDICTS`; ``unclear`` differs by more than the threshold, but not beyond the noise.
        old, new: values: of quality the means over the subjects that both have.
        share: new / old − 1; None where old is 0, or where rows began or ceased to fail.
        how: by what it was decided.
        record: one of those behind it, of the new set where that has any.
    """

    label: str
    metric: str
    unit: str
    verdict: str
    old: float | None
    new: float | None
    share: float | None = None
    how: str = ""
    record: Record | None = field(default=None, repr=False)


@dataclass
class _Group:
    """All records of one number: one, or one a subject."""

    records: dict[str, Record] = field(default_factory=dict)

    @property
    def any(self) -> Record:
        return next(iter(self.records.values()))


def read_set(path: Path) -> list[Record]:
    """The records of a file, or of all ``records.jsonl`` (also compressed, ``.gz``) of a folder and below.

    Raises:
        RecordError: there is none, or it cannot be read.
    """
    files = sorted(path.rglob("records.jsonl*")) if path.is_dir() else [path] * path.exists()
    records = [record for file in files for record in RecordFile(file).read()]
    if not records:
        raise RecordError(f"{path} holds no records; give a records.jsonl, or a folder with such files")
    return records


def environments(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """What differs between the environments of the two sets, a line each."""
    lines = []
    for name in (
        "gpu",
        "cpu",
        "threads",
        "torch",
        "cuda",
        "driver",
        "python",
        "platform",
        "ppdm",
        "commit",
        "capacity",
    ):
        was, now = (sorted({str(r.env.get(name, "")) for r in records}) for records in (old, new))
        if was != now:
            lines.append(f"{name}: {', '.join(filter(None, was)) or '–'} → {', '.join(filter(None, now)) or '–'}")
    return lines


def changes(old: Iterable[Record], new: Iterable[Record], threshold: float = 0.05) -> list[Change]:
    """Every number of either set with its verdict, the worse ones first.

    Args:
        old, new: records; of a row that is there twice the later counts.
        threshold: relative difference from which on a time or a mean counts.
    """
    before, after = _groups(old), _groups(new)
    found = []
    for key in dict.fromkeys((*before, *after)):
        one, other = before.get(key), after.get(key)
        if one and other:
            found.append(_compared(one, other, threshold))
        else:
            record = (one or other or _Group()).any
            value, verdict = _mean((one or other or _Group()).records), "only old" if one else "only new"
            old_value, new_value = (value, None) if one else (None, value)
            found.append(
                Change(_label(record), record.metric, record.unit, verdict, old_value, new_value, record=record)
            )
    return sorted(found, key=lambda change: VERDICTS.index(change.verdict))


def _groups(records: Iterable[Record]) -> dict[Key, _Group]:
    groups: dict[Key, _Group] = {}
    for record in records:
        groups.setdefault(_key(record), _Group()).records[record.subject] = record
    return groups


def _key(record: Record) -> Key:
    """What was asked: a record's identifier also holds what the code made of it, which a commit may change."""
    options = {name: value for name, value in record.options.items() if name not in _OF_A_CODE}
    return (
        *(record.kind, record.command, record.method, record.variant, record.task, record.shape, record.spacing),
        *(record.batch_size, record.phase, record.precision, record.checkpointing, record.channels_last),
        *(record.compile, record.steps, record.metric, record.stat, record.seed, record.device.partition(":")[0]),
        json.dumps(options, sort_keys=True),
    )


def _label(record: Record) -> str:
    shape = "×".join(map(str, record.shape))
    words = [f"{record.method} {record.variant}".strip(), record.task, record.phase, shape, record.precision]
    words += [f"{record.checkpointing} checkpointing"] * (record.checkpointing not in ("none", ""))
    words += [f"{record.steps} evaluations"] * (record.steps is not None)
    words += [f"seed {record.seed}"] * (record.seed is not None)
    return ", ".join(filter(None, (*words, record.kind)))


def _mean(records: dict[str, Record]) -> float | None:
    values = [record.value for record in records.values() if record.value is not None]
    return fmean(values) if values else None


def _compared(one: _Group, other: _Group, threshold: float) -> Change:
    both = [subject for subject in one.records if subject in other.records]
    if not both:
        return _change(other.any, "unclear", None, None, "no subject is in both")
    pairs = [(one.records[subject], other.records[subject]) for subject in both]
    failed = [
        [record.status != "ok" and record.kind == "measured" for record in side] for side in zip(*pairs, strict=True)
    ]
    broken, mended = sum(failed[1]) - sum(failed[0]), sum(failed[0]) - sum(failed[1])
    whole = [(a, b) for a, b, x, y in zip(*zip(*pairs, strict=True), *failed, strict=True) if not x and not y]
    whole = [(a, b) for a, b in whole if a.value is not None and b.value is not None]
    was, now = (
        (fmean(float(r.value or 0) for r in side) for side in zip(*whole, strict=True)) if whole else (None, None)
    )
    if broken > 0 or mended > 0:
        status = f"status {pairs[0][0].status} → {pairs[0][1].status}" if len(pairs) == 1 else f"{broken:+d} failures"
        return replace(_change(other.any, "worse" if broken > 0 else "better", was, now, status), share=None)
    if was is None or now is None:
        return _change(other.any, "unchanged", None, None, "no value in either")
    verdict, how = _verdict([(a, b) for a, b in whole], was, now, threshold)
    return _change(other.any, verdict, was, now, how)


def _change(record: Record, verdict: str, was: float | None, now: float | None, how: str) -> Change:
    share = now / was - 1 if was and now is not None else None
    return Change(_label(record), record.metric, record.unit, verdict, was, now, share, how, record)


def _verdict(pairs: Sequence[tuple[Record, Record]], was: float, now: float, threshold: float) -> tuple[str, str]:
    first, second = pairs[0]
    worse, share = loss(first.metric, was, now), abs(now - was) / abs(was) if was else float(now != was)
    sign = "worse" if worse > 0 else "better"
    if first.metric in _NEUTRAL:
        return "unchanged", "no measure of worth" if now == was else "differs, but is no measure of worth"
    if first.kind == "predicted" or (first.unit == "B" and first.device.startswith("cpu")):
        return ("unchanged" if now == was else sign), "exact"
    if first.unit == "B":
        return ("unchanged" if share <= MEMORY_TOLERANCE else sign), f"tolerance {MEMORY_TOLERANCE:.0%}"
    if first.subject:
        return _paired(pairs, share, threshold, sign)
    if len(first.samples) > 1 and len(second.samples) > 1:
        return _distributions(first, second, threshold)
    return ("unchanged" if share <= threshold else sign), "single values"


def _paired(pairs: Sequence[tuple[Record, Record]], share: float, threshold: float, sign: str) -> tuple[str, str]:
    """Quality: the interval of the mean paired loss must lie on one side of zero, and the difference count."""
    losses = [loss(a.metric, float(a.value or 0), float(b.value or 0)) for a, b in pairs]
    difference = paired_difference(losses, [0.0] * len(losses))
    how = f"{difference.n} subjects, p {difference.p:.3g}"
    if share <= threshold:
        return "unchanged", how
    if difference.low is None or difference.high is None:
        return "unclear", "one subject: no interval"
    clear = difference.low > 0 or difference.high < 0
    return (sign if clear else "unclear"), f"{how}, {LEVEL:.0%} interval of the paired difference"


def _distributions(first: Record, second: Record, threshold: float) -> tuple[str, str]:
    """Times: medians that differ by more than the threshold, and samples that are not of one distribution."""
    from scipy.stats import mannwhitneyu  # takes a second to load

    was, now = median(first.samples), median(second.samples)
    p = float(mannwhitneyu(first.samples, second.samples, alternative="two-sided").pvalue)
    how = f"Mann-Whitney p {p:.2g}, n {len(first.samples)} and {len(second.samples)}"
    if abs(now - was) <= threshold * abs(was):
        return "unchanged", how
    if p >= 1 - LEVEL:
        return "unclear", how
    return ("worse" if loss(first.metric, was, now) > 0 else "better"), how


def to_records(found: Iterable[Change]) -> list[Record]:
    """A record of each change, about what the new set's row is about: its value is new / old − 1.

    Under ``compare`` the options hold the verdict, both values with their unit, and by what it was decided. Without
    both values the status is ``skipped`` and the reason says the verdict.
    """
    return [_as_record(change) for change in found if change.record]


def _as_record(change: Change) -> Record:
    assert change.record is not None
    numbers = {"verdict": change.verdict, "old": change.old, "new": change.new, "unit": change.unit, "by": change.how}
    said = change.verdict + (f": {change.how}" if change.how else "")
    # UNITS fixes what is measured in bytes; a share of such a metric is another one.
    return replace(
        change.record,
        status="skipped" if change.share is None else "ok",
        reason=said if change.share is None else "",
        command="compare",
        metric=f"{change.metric}_change",
        value=change.share,
        unit="1",
        stat="relative",
        subject="",
        samples=(),
        options=change.record.options | {"compare": numbers},
    )


def changes_page(found: Sequence[Change], notes: Sequence[str]) -> Page:
    """Return the differences of the environments, a row for each number that changed, and the count of each verdict."""
    shown = [change for change in found if change.verdict != "unchanged"]
    counts = {verdict: sum(change.verdict == verdict for change in found) for verdict in VERDICTS}
    environment = "Environments differ: " + "; ".join(notes) if notes else "The environments are the same."
    tables = [table_of(shown, _COLUMNS)] * bool(shown)
    return Page([environment, *tables, ", ".join(f"{n} {verdict}" for verdict, n in counts.items())])


def _value(value: float | None, unit: str) -> str | None:
    if value is None:
        return None
    return f"{gib(value)} GiB" if unit == "B" else f"{significant(value, 4)} {unit if unit != '1' else ''}".strip()


_COLUMNS: dict[Heading, Callable[[Change], Any]] = {
    Heading("verdict", "verdict"): lambda change: change.verdict,
    Heading("row", "row"): lambda change: change.label,
    Heading("metric", "metric"): lambda change: change.metric,
    Heading("old", "old", number=True): lambda change: _value(change.old, change.unit),
    Heading("new", "new", number=True): lambda change: _value(change.new, change.unit),
    Heading("change", "change", "{:+.2%}".format, number=True): lambda change: change.share,
    Heading("by", "by", rank=1): lambda change: change.how,
}
