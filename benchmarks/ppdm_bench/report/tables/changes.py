"""Comparison of two sets of records: what became worse, what became better, and what only one set has.

Records of the same measurement are matched, whichever commit made them. Evaluations are matched by method and subject:
first with all their options, then with fewer (see `_LEVELS`), as long as the match is unambiguous. Predictions and
memory on the CPU are compared exactly, GPU memory with a tolerance, times as distributions, and quality subject by
subject.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record, RecordError, RecordFile
from ppdm_bench.report.metrics import loss
from ppdm_bench.report.statistics import LEVEL, paired_difference
from ppdm_bench.report.tables.render import Columns, Heading, Page, table_of
from ppdm_bench.units import gib, plural, shape_text, significant

VERDICTS = ("worse", "better", "unchanged", "unclear", "only old", "only new")
MEMORY_TOLERANCE = 0.01  # of a measurement on a GPU: library workspaces differ from run to run

# Metrics without a better direction, and a time that was measured only once.
_NEUTRAL = ("parameters", "train_steps", "first_call_seconds")
# Options that may differ between commits or subjects, although the measurement is the same.
_NOT_ASKED = ("resolved", "weights", "verified", "files")

_ENVIRONMENT = ["gpu", "cpu", "threads", "torch", "cuda", "driver", "python", "platform", "ppdm", "commit", "capacity"]
Key = tuple[Any, ...]
Group = dict[str, Record]  # all records of one number by subject: one record, or one for each subject

# Evaluations without a counterpart of equal options are matched by these fields, the longest list first. Metrics of
# different conventions or data ranges are never compared.
_LEVELS = (
    ("task", "method", "variant", "steps", "seed", "training_seed"),
    ("task", "method", "variant", "steps"),
    ("method", "variant", "steps"),
    ("method", "steps"),
    ("method",),
)


@dataclass(frozen=True)
class Subjects:
    """Subjects of an evaluation: those that both sets have, and those of one set only."""

    both: tuple[str, ...] = ()
    only_old: tuple[str, ...] = ()
    only_new: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """The change of one number between two sets of records.

    Attributes:
        record: one of the records, from the new set if possible.
        verdict: one of :data:`VERDICTS`; ``unclear`` is a difference above the threshold, but within the noise.
        old, new: the two values; for quality, means over the common subjects.
        share: new / old − 1; None if a value is missing, if old is 0, or if a measurement failed in one set only.
        how: the criterion of the verdict, in words.
        subjects: the subjects of an evaluation.
    """

    record: Record = field(repr=False)
    verdict: str
    old: float | None
    new: float | None
    share: float | None = None
    how: str = ""
    subjects: Subjects = Subjects()

    @property
    def compared(self) -> bool:
        """Whether both sets have the number."""
        return self.verdict not in ("only old", "only new")


def read_records(path: Path) -> list[Record]:
    """Return the records of a file, or of every ``records.jsonl`` (also ``.gz`` and ``.xz``) in a folder.

    Raises:
        RecordError: there are no records, or a file cannot be read.
    """
    files = sorted(path.rglob("records.jsonl*")) if path.is_dir() else [path] * path.exists()
    records = [record for file in files for record in RecordFile(file).read()]
    if not records:
        raise RecordError(f"{path} contains no records; give a records.jsonl, or a folder with such files")
    return records


def environments(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """Return the differences between the environments of the two sets, one line each."""
    lines = []
    for name in _ENVIRONMENT:
        was, now = (sorted({str(r.env.get(name, "")) for r in records}) for records in (old, new))
        if was != now:
            lines.append(f"{name}: {', '.join(filter(None, was)) or '–'} → {', '.join(filter(None, now)) or '–'}")
    return lines


def changes(old: Iterable[Record], new: Iterable[Record], threshold: float = 0.05) -> list[Change]:
    """Return every number of the two sets with its verdict, the worse ones first.

    Args:
        old, new: records; of repeated records, the last one counts.
        threshold: relative difference; smaller differences of a time or a mean do not count.
    """
    pairs = _matched(_groups(old), _groups(new))
    found = [_compared(one, other, threshold) if one and other else _unmatched(one, other) for one, other in pairs]
    return sorted(found, key=lambda change: VERDICTS.index(change.verdict))


def _groups(records: Iterable[Record]) -> dict[Key, Group]:
    groups: dict[Key, Group] = {}
    for record in records:
        groups.setdefault(_key(record), {})[record.subject] = record
    return groups


def _first(group: Group) -> Record:
    return next(iter(group.values()))


def _matched(before: dict[Key, Group], after: dict[Key, Group]) -> list[tuple[Group, Group]]:
    """Pair the groups of both sets by all options, then evaluations by fewer fields; others are paired with nothing."""
    pairs: list[tuple[Group, Group]] = []
    for level in (None, *_LEVELS):
        old, new = (groups if level is None else _unique(groups, level) for groups in (before, after))
        met = [(old[key], new[key]) for key in old if key in new and old[key].keys() & new[key].keys()]
        done = {id(group) for pair in met for group in pair}
        before, after = ({k: g for k, g in groups.items() if id(g) not in done} for groups in (before, after))
        pairs += met
    return [*pairs, *((group, {}) for group in before.values()), *(({}, group) for group in after.values())]


def _unique(groups: dict[Key, Group], level: tuple[str, ...]) -> dict[Key, Group]:
    """Return the groups of evaluations whose values of these fields no other group has."""
    scored = (group for group in groups.values() if _first(group).subject)
    found = grouped(scored, lambda group: _evaluation(_first(group), level))
    return {key: same[0] for key, same in found.items() if len(same) == 1}


def _evaluation(record: Record, level: tuple[str, ...]) -> Key:
    training, convention = (record.options.get(name) or {} for name in ("training", "convention"))
    fields = vars(record) | {"training_seed": training.get("seed")}
    measured = (convention.get("preset"), convention.get("data_range"))
    return (record.kind, record.metric, record.unit, record.stat, *measured, *(fields[name] for name in level))


def _key(record: Record) -> Key:
    """Return what identifies a measurement, without the options that differ between commits (unlike ``config_id``)."""
    options = {name: value for name, value in record.options.items() if name not in _NOT_ASKED}
    return (
        *(record.kind, record.command, record.method, record.variant, record.task),
        *(() if record.subject else (record.shape, record.spacing)),  # the volumes of subjects may differ in size
        *(record.batch_size, record.phase, record.precision, record.checkpointing, record.channels_last),
        *(record.compile, record.steps, record.metric, record.stat, record.seed, record.device.partition(":")[0]),
        json.dumps(options, sort_keys=True),
    )


def _name(record: Record) -> str:
    steps = "" if record.steps is None else plural(record.steps, "evaluation")
    return ", ".join(filter(None, (record.label, record.task, steps)))


def _label(record: Record) -> str:
    words = [record.label, record.task, record.phase, shape_text(record.shape), record.precision]
    words += [f"{record.checkpointing} checkpointing"] * (record.checkpointing not in ("none", ""))
    words += [] if record.steps is None else [plural(record.steps, "evaluation")]
    words += [f"seed {record.seed}"] * (record.seed is not None)
    return ", ".join(filter(None, (*words, record.kind)))


def _unmatched(one: Group, other: Group) -> Change:
    group = one or other
    values = [record.value for record in group.values() if record.value is not None]
    mean, names = fmean(values) if values else None, tuple(filter(None, group))
    if one:
        return replace(_change(_first(group), "only old", mean, None), subjects=Subjects(only_old=names))
    return replace(_change(_first(group), "only new", None, mean), subjects=Subjects(only_new=names))


def _compared(one: Group, other: Group, threshold: float) -> Change:
    both = [subject for subject in one if subject in other]
    change = _decided([(one[subject], other[subject]) for subject in both], _first(other), threshold)
    if (was := _name(_first(one))) != _name(_first(other)):
        change = replace(change, how=f"{change.how}; old: {was}")
    rest = [tuple(name for name in group if name not in both) for group in (one, other)]
    return replace(change, subjects=Subjects(tuple(filter(None, both)), *rest))


def _decided(pairs: Sequence[tuple[Record, Record]], record: Record, threshold: float) -> Change:
    failed = [[one.status != "ok" and one.kind == "measured" for one in pair] for pair in pairs]
    broken = sum(now - was for was, now in failed)
    whole = [
        pair for pair, bad in zip(pairs, failed, strict=True) if not any(bad) and all(r.value is not None for r in pair)
    ]
    was, now = (
        (fmean(float(r.value or 0) for r in side) for side in zip(*whole, strict=True)) if whole else (None, None)
    )
    if broken:
        status = f"status {pairs[0][0].status} → {pairs[0][1].status}" if len(pairs) == 1 else f"{broken:+d} failures"
        return replace(_change(record, "worse" if broken > 0 else "better", was, now, status), share=None)
    if was is None or now is None:
        return _change(record, "unchanged", None, None, "no value in either")
    verdict, how = _verdict(whole, was, now, threshold)
    return _change(record, verdict, was, now, how)


def _change(record: Record, verdict: str, was: float | None, now: float | None, how: str = "") -> Change:
    share = now / was - 1 if was and now is not None else None
    return Change(record, verdict, was, now, share, how)


def _verdict(pairs: Sequence[tuple[Record, Record]], was: float, now: float, threshold: float) -> tuple[str, str]:
    first, second = pairs[0]
    worse, share = loss(first.metric, was, now), abs(now - was) / abs(was) if was else float(now != was)
    sign = "worse" if worse > 0 else "better"
    if first.metric in _NEUTRAL:
        return "unchanged", "neither better nor worse" if now == was else "differs, but is neither better nor worse"
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
    """Judge quality: it changed if the difference exceeds the threshold and its interval does not contain zero."""
    losses = [loss(a.metric, float(a.value or 0), float(b.value or 0)) for a, b in pairs]
    difference = paired_difference(losses, [0.0] * len(losses))
    how = f"{plural(difference.n, 'subject')}, p {difference.p:.3g}"
    if share <= threshold:
        return "unchanged", how
    if difference.low is None or difference.high is None:
        return "unclear", "one subject: no interval"
    clear = difference.low > 0 or difference.high < 0
    return (sign if clear else "unclear"), f"{how}, {LEVEL:.0%} interval of the paired difference"


def _distributions(first: Record, second: Record, threshold: float) -> tuple[str, str]:
    """Judge times: they changed if the medians differ by more than the threshold and a test tells the samples apart."""
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
    """Return one record per change: the record of the new set, with the value new / old − 1.

    The option ``compare`` contains the verdict, its criterion, and both values with their unit. If a value is missing,
    the status is ``skipped``, and the reason states the verdict.
    """
    return [_as_record(change) for change in found]


def _as_record(change: Change) -> Record:
    numbers: dict[str, Any] = {name: getattr(change, name) for name in ("verdict", "old", "new")}
    numbers |= {"unit": change.record.unit, "by": change.how}
    if change.subjects != Subjects():
        numbers["subjects"] = asdict(change.subjects)
    reason = change.verdict + (f": {change.how}" if change.how else "")
    # A metric has a fixed unit (UNITS), so that its relative change needs another name.
    return replace(
        change.record,
        status="skipped" if change.share is None else "ok",
        reason=reason if change.share is None else "",
        command="compare",
        metric=f"{change.record.metric}_change",
        value=change.share,
        unit="1",
        stat="relative",
        subject="",
        samples=(),
        options=change.record.options | {"compare": numbers},
    )


def changes_page(found: Sequence[Change], notes: Sequence[str]) -> Page:
    """Return the differences between the environments, the subjects, the changes, and the count of each verdict."""
    shown = [change for change in found if change.verdict != "unchanged"]
    counts = {verdict: sum(change.verdict == verdict for change in found) for verdict in VERDICTS}
    environment = "Environments differ: " + "; ".join(notes) if notes else "The environments are the same."
    tables = [table_of(shown, _COLUMNS)] * bool(shown)
    total = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    return Page([environment, *_subject_lines(found), *tables, total])


def _subject_lines(found: Sequence[Change]) -> list[str]:
    """Return the compared subjects, and those of one set that were never compared, in words."""
    both = dict.fromkeys(name for change in found for name in change.subjects.both)
    only_old = dict.fromkeys(name for change in found for name in change.subjects.only_old if name not in both)
    only_new = dict.fromkeys(name for change in found for name in change.subjects.only_new if name not in both)
    names = {"compared": both, "only old": only_old, "only new": only_new}
    return [f"Subjects {what}: {', '.join(subjects)}" for what, subjects in names.items() if subjects]


def _value(value: float | None, unit: str) -> str | None:
    if value is None:
        return None
    return f"{gib(value)} GiB" if unit == "B" else f"{significant(value, 4)} {unit if unit != '1' else ''}".strip()


_COLUMNS: Columns[Change] = {
    Heading("verdict"): lambda change: change.verdict,
    Heading("row"): lambda change: _label(change.record),
    Heading("metric"): lambda change: change.record.metric,
    Heading("old", number=True): lambda change: _value(change.old, change.record.unit),
    Heading("new", number=True): lambda change: _value(change.new, change.record.unit),
    Heading("change", "change", "{:+.2%}".format, number=True): lambda change: change.share,
    Heading("by", rank=1): lambda change: change.how,
}
