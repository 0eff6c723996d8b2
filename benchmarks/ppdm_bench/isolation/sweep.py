"""Sweep: run cases one after another, each in a new child process, and save each result, so that a sweep can resume.

The caller defines the request to the child and the records made from its answer. This module decides which cases are
measured again, which are skipped and why, and when records are written. The rules are the same for all commands.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdm_bench.grouping import grouped
from ppdm_bench.isolation.runner import ChildAnswer, run_child
from ppdm_bench.records import Record, RecordFile, config_id
from ppdm_bench.units import setting_text, shape_text

RECORDS = "records.jsonl"

# Options that define the size of a case: if two cases are equal otherwise, and one is not smaller in any of these, it
# needs at least as much memory. The puzzle factor is not one of them: a smaller factor has fewer weights and less
# padding.
SIZES = ("shape", "batch_size")

_FINAL = {"ok", "oom"}


@dataclass(frozen=True)
class SweepCase:
    """One measurement in a child process, or one prediction.

    Attributes:
        metric: main metric: that of the last record, and of the records of a failure.
        common: fields that all records of the case share, including ``config_id``, ``options`` and ``env``.
        request: request to the child, as JSON values.
        parts: fields that distinguish several values of the metric in one case, such as ``steps``.
    """

    metric: str
    common: Mapping[str, Any]
    request: Mapping[str, Any]
    parts: Sequence[Mapping[str, Any]] = ({},)

    def failed(self, status: str, reason: str, **fields: Any) -> list[Record]:
        """Return the records of a case without a result."""
        about = {"kind": "measured", **self.common, "status": status, "reason": reason, **fields}
        return [Record(metric=self.metric, **{**about, **part}) for part in self.parts]

    def timed_out(self, timeout: float, reason: str) -> list[Record]:
        """Return the records of a case that exceeded the time limit of ``timeout`` seconds; they contain the limit."""
        return self.failed("timeout", reason, options={**self.common["options"], "timeout": timeout})


class Sweep:
    """Measure cases, or record why a case is not measured.

    Args:
        worker: module that the children run, see :func:`ppdm_bench.isolation.runner.run_child`.
        timeout: time limit for one case in seconds.
        known: records of earlier runs.
    """

    def __init__(self, worker: str, timeout: float, known: Iterable[Record] = ()) -> None:
        self.worker, self.timeout = worker, timeout
        self._known = grouped(known, lambda record: record.config_id)
        everything = (record for same in self._known.values() for record in same)
        self._exhausted = [r for r in everything if r.status == "oom" and not r.env.get("dirty")]

    def settled(self, case: SweepCase) -> list[Record]:
        """Return the valid records of a case from earlier runs of the same code in the same environment.

        Success and out-of-memory remain valid; a timeout is valid until the time limit is increased. A case is measured
        again after an error or a kill, if it was skipped completely, or if its records are incomplete.
        """
        if case.common["env"].get("dirty"):  # uncommitted changes: the code may differ from that of the earlier run
            return []
        same = (record for record in self._known.get(case.common["config_id"], ()) if _matches(record, case))
        latest = {(record.metric, record.kind, record.steps): record for record in same}.values()
        main_records = [record for record in latest if record.metric == case.metric]
        whole = all(any(_has(record, part) for record in main_records) for part in case.parts)
        return list(latest) if whole and self._is_final(main_records) else []

    def _is_final(self, main_records: Sequence[Record]) -> bool:
        statuses = {record.status for record in main_records}
        if statuses == {"timeout"}:
            return all(_exceeded_limit(record) >= self.timeout for record in main_records)
        return bool(statuses & _FINAL) and statuses <= {*_FINAL, "skipped"}

    def measure(
        self, case: SweepCase, make: Callable[[ChildAnswer, dict[str, Any]], list[Record]], doubt: str = ""
    ) -> list[Record]:
        """Return the records of a case: from an earlier run, a skip with its reason, or from a child process.

        Args:
            case: the case to measure.
            make: makes the records from an answer of status ok and the fields that they share.
            doubt: reason to skip the case if there are no earlier records; empty to measure it.
        """
        if found := self.settled(case):
            return found
        if reason := doubt or self._known_to_exceed_memory(case):
            return case.failed("skipped", reason)
        answer = run_child(self.worker, case.request, self.timeout)
        env = {**case.common["env"], **answer.env}
        if answer.status == "ok":
            made = make(answer, {**case.common, "env": env, "reason": answer.reason})
            return sorted(made, key=lambda record: record.metric == case.metric)
        if answer.status == "timeout":
            return case.timed_out(self.timeout, answer.reason)
        if answer.status == "oom":
            self._exhausted += case.failed("oom", answer.reason)
        return case.failed(answer.status, answer.reason, env=env)

    def _known_to_exceed_memory(self, case: SweepCase) -> str:
        """Return why a case must run out of memory: a case that is not larger did; empty if no such case did."""
        for record in self._exhausted:
            if record.metric == case.metric and _matches(record, case, *SIZES) and _is_within(record, case):
                size = (shape_text(record.shape), setting_text("batch_size", record.batch_size))
                return (
                    f"the same case at {', '.join(filter(None, size))} ran out of memory, and this one is not smaller"
                )
        return ""


def _exceeded_limit(record: Record) -> float:
    """Time limit in seconds that a recorded case exceeded."""
    seconds = record.options.get("timeout")
    return seconds if isinstance(seconds, int | float) else 0


def _has(record: Record, fields: Mapping[str, Any]) -> bool:
    return all(getattr(record, name) == value for name, value in fields.items())


def _matches(record: Record, case: SweepCase, *free: str) -> bool:
    """Whether a record has the fields and options of a case, except those in ``free`` and the time limit."""
    unlike = {"options", *free} | ({"config_id", "spacing"} if free else set())
    if not _has(record, {name: value for name, value in case.common.items() if name not in unlike}):
        return False
    one, other = (
        config_id({name: value for name, value in options.items() if name not in (*free, "timeout")})
        for options in (record.options, case.common["options"])
    )
    return one == other


def _is_within(record: Record, case: SweepCase) -> bool:
    """Whether no size of a record is larger than that of a case."""
    one, other = ([*fields.get("shape", ()), fields.get("batch_size") or 1] for fields in (vars(record), case.common))
    return all(a <= b for a, b in zip(one, other, strict=True))


class Ledger:
    """The records of a folder: earlier ones, and those that a run adds. :meth:`keep` writes them to disk immediately.

    Args:
        folder: folder of ``records.jsonl``; lock it against other processes with
            :func:`ppdm_bench.commands.terminal.locked_folder`.

    Raises:
        RecordError: the existing records cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._file = RecordFile(folder / RECORDS)
        self.earlier: Sequence[Record] = self._file.read()
        self._contents = {record.content() for record in self.earlier}

    def keep(self, records: Sequence[Record]) -> Sequence[Record]:
        """Add records, except those whose content equals that of an existing record; return all given records.

        Raises:
            RecordError: the records cannot be written; some of them may already be written.
        """
        new = [record for record in records if record.content() not in self._contents]
        self._file.append(new)
        self._contents |= {record.content() for record in new}
        return records
