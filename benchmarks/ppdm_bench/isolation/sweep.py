"""A sweep: cases one after the other, each in a fresh child process, kept as they come and continued where it was cut.

Whoever measures something says what a child is told and which records its answer makes. What is measured again, what is
left out and why, and what lies on the disk at every moment is decided here, and is the same for every command.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdm_bench.isolation.runner import Answer, run_child
from ppdm_bench.records import Record, RecordFile, config_id
from ppdm_bench.units import setting_text, shape_text

RECORDS = "records.jsonl"

# Options that are the size of a case: a case that is nowhere smaller than another, and else the same, needs as much
# memory or more. A smaller puzzle factor is none of them: it needs less for weights, and pads less.
SIZES = ("shape", "batch_size")

_FINDINGS = {"ok", "oom"}


@dataclass(frozen=True)
class Case:
    """What one child is to find out, or one prediction.

    Attributes:
        metric: what it is about: that of its last record, and of the rows that stand for it where it failed.
        common: fields that all its records share; among them ``config_id``, ``options`` and ``env``.
        request: what the child is told, as JSON values.
        parts: where it is about several values of the metric, the fields that tell them apart, such as ``steps``.
    """

    metric: str
    common: Mapping[str, Any]
    request: Mapping[str, Any]
    parts: Sequence[Mapping[str, Any]] = ({},)

    def failed(self, status: str, reason: str, **fields: Any) -> list[Record]:
        """The rows of a case that came to nothing."""
        about = {"kind": "measured", **self.common, "status": status, "reason": reason, **fields}
        return [Record(metric=self.metric, **{**about, **part}) for part in self.parts]


class Sweep:
    """Measures cases, or says why not.

    Args:
        worker: the module of the children, see :func:`ppdm_bench.isolation.runner.run_child`.
        timeout: seconds for one case.
        known: records of earlier runs.
    """

    def __init__(self, worker: str, timeout: float, known: Iterable[Record] = ()) -> None:
        self.worker, self.timeout = worker, timeout
        self._known: dict[str, list[Record]] = {}
        for record in known:
            self._known.setdefault(record.config_id, []).append(record)
        everything = (record for same in self._known.values() for record in same)
        self._exhausted = [r for r in everything if r.status == "oom" and not r.env.get("dirty")]

    def settled(self, case: Case) -> list[Record]:
        """What an earlier run of the same code in the same environment found out about a case, if that stands.

        Success and out-of-memory stand; a timeout stands until there is more time. An error, a kill and what was
        skipped as a whole are tried again, and so is a case that was cut while its records were written.
        """
        if case.common["env"].get("dirty"):  # changed code: nobody knows whether it is the same
            return []
        same = (record for record in self._known.get(case.common["config_id"], ()) if _is_of(record, case))
        latest = {(record.metric, record.kind, record.steps): record for record in same}.values()
        heads = [record for record in latest if record.metric == case.metric]
        whole = all(any(_has(record, part) for record in heads) for part in case.parts)
        return list(latest) if whole and self._stands(heads) else []

    def _stands(self, heads: Sequence[Record]) -> bool:
        statuses = {record.status for record in heads}
        if statuses == {"timeout"}:
            return all(_given(record) >= self.timeout for record in heads)
        return bool(statuses & _FINDINGS) and statuses <= {*_FINDINGS, "skipped"}

    def measure(
        self, case: Case, make: Callable[[Answer, dict[str, Any]], list[Record]], doubt: str = ""
    ) -> list[Record]:
        """The records of a case: found before, skipped with a reason, or those of a child.

        Args:
            case: what is to be found out.
            make: records of an answer of status ok, from it and the fields that they share.
            doubt: why it is not worth a try; what was found out before is told all the same. Empty if it is.
        """
        if found := self.settled(case):
            return found
        if reason := doubt or self._hopeless(case):
            return case.failed("skipped", reason)
        answer = run_child(self.worker, case.request, self.timeout)
        env = {**case.common["env"], **answer.env}
        if answer.status == "ok":
            made = make(answer, {**case.common, "env": env, "reason": answer.reason})
            return sorted(made, key=lambda record: record.metric == case.metric)
        if answer.status == "timeout":
            return self.timed_out(case, answer.reason)
        if answer.status == "oom":
            self._exhausted += case.failed("oom", answer.reason)
        return case.failed(answer.status, answer.reason, env=env)

    def timed_out(self, case: Case, reason: str) -> list[Record]:
        """The rows of a case that took too long; they say how long it was given."""
        return case.failed("timeout", reason, options={**case.common["options"], "timeout": self.timeout})

    def _hopeless(self, case: Case) -> str:
        """Why a case cannot but run out of memory, or nothing: one that is nowhere larger has."""
        for record in self._exhausted:
            if record.metric == case.metric and _is_of(record, case, *SIZES) and _is_within(record, case):
                size = (shape_text(record.shape), setting_text("batch_size", record.batch_size))
                return f"the same at {', '.join(filter(None, size))} ran out of memory already, and this is no smaller"
        return ""


def _given(record: Record) -> float:
    """How many seconds a case had that took too long."""
    seconds = record.options.get("timeout")
    return seconds if isinstance(seconds, int | float) else 0


def _has(record: Record, fields: Mapping[str, Any]) -> bool:
    return all(getattr(record, name) == value for name, value in fields.items())


def _is_of(record: Record, case: Case, *free: str) -> bool:
    """Whether a record has the fields and options of a case, but for some; how long it was given is none of them."""
    unlike = {"options", *free} | ({"config_id", "spacing"} if free else set())
    if not _has(record, {name: value for name, value in case.common.items() if name not in unlike}):
        return False
    one, other = (
        config_id({name: value for name, value in options.items() if name not in (*free, "timeout")})
        for options in (record.options, case.common["options"])
    )
    return one == other


def _is_within(record: Record, case: Case) -> bool:
    """Whether the size of a record is nowhere larger than that of a case."""
    one, other = ([*fields.get("shape", ()), fields.get("batch_size") or 1] for fields in (vars(record), case.common))
    return all(a <= b for a, b in zip(one, other, strict=True))


class Ledger:
    """The records of a folder: those that it held, and those that a run adds, each on the disk when it is kept.

    Args:
        folder: of ``records.jsonl``; it should be held alone, see :func:`ppdm_bench.commands.terminal.alone_in`.

    Raises:
        RecordError: there are records that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._file = RecordFile(folder / RECORDS)
        self.earlier: Sequence[Record] = self._file.read()
        self._contents = {record.content() for record in self.earlier}

    def keep(self, records: Sequence[Record]) -> None:
        """Add records, but for those that stand there already, word for word.

        Raises:
            RecordError: they cannot be written; a part of them may have been.
        """
        new = [record for record in records if record.content() not in self._contents]
        self._file.append(new)
        self._contents |= {record.content() for record in new}
