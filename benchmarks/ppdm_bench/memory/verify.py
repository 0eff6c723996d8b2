"""Second verification: repeat each measurement in a child process that is limited to the predicted memory.

The first verification compares predicted and measured bytes. The second one answers the user's question: does the code
run on a card of the predicted size?
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ppdm_bench.commands.terminal import OverallProgress, progress
from ppdm_bench.configuration import Configuration
from ppdm_bench.isolation.runner import run_child
from ppdm_bench.isolation.sweep import Ledger, Sweep, SweepCase
from ppdm_bench.memory.command import WORKER
from ppdm_bench.records import Record
from ppdm_bench.units import plural

VERIFIED = "verified_at"

# On CUDA the limit applies to the memory that PyTorch's allocator reserves; on the CPU it applies to live tensors.
_LIMITED = {"cuda": "peak_reserved", "cpu": "peak_allocated"}

# Fields that a verification copies from its measurement.
_SHARED = (
    *("config_id", "command", "method", "variant", "shape", "spacing", "batch_size", "phase", "precision"),
    *("checkpointing", "channels_last", "compile", "steps", "options", "kind", "device", "env"),
)


def verify_in(folder: Path, records: Sequence[Record], timeout: float) -> list[Record]:
    """Verify every measurement with a progress bar; each result is on disk before the next run begins.

    Args:
        folder: folder of ``records.jsonl``. Earlier verifications with the same limit, code and environment are not
            repeated.
        records: predictions and measurements of one run.
        timeout: time limit in seconds of one verification.

    Returns:
        One record of ``verified_at`` per measurement: the value is the limit; the status is ok if the run succeeded
        within the limit, and oom if it ran out of memory.
    """
    ledger, found, pairs = Ledger(folder), [], verifiable(records)
    sweep = Sweep(WORKER, timeout, ledger.earlier)
    with progress() as bar:
        whole = OverallProgress(bar, [1.0] * len(pairs))
        for measured, limit in pairs:
            whole.show(f"verifying {_name(measured)}")
            verified = verify(measured, limit, sweep)
            ledger.keep([verified])
            found.append(verified)
            whole.ended()
    return found


def verifiable(records: Sequence[Record]) -> list[tuple[Record, int]]:
    """Return each measured peak with its predicted memory in bytes.

    Measurements that were predicted not to fit on the card are omitted, because the card itself is then the limit.
    """
    predicted = {
        (record.config_id, record.phase, record.metric, record.device): int(record.value)
        for record in records
        if record.kind == "predicted" and record.status == "ok" and record.value is not None
    }
    measured = [r for r in records if r.kind == "measured" and r.metric == "peak_allocated" and r.status == "ok"]
    keys = [(r.config_id, r.phase, _LIMITED[r.device], r.device) for r in measured]
    return [(record, predicted[key]) for record, key in zip(measured, keys, strict=True) if key in predicted]


def verify(measured: Record, limit: int, sweep: Sweep) -> Record:
    """Repeat a measurement in a child process limited to ``limit`` bytes; a valid earlier result is reused."""
    request = {
        "configuration": _configuration(measured).to_dict(),
        "phase": measured.phase,
        "device": measured.device,
        "limit": limit,
    }
    case = SweepCase(VERIFIED, {name: getattr(measured, name) for name in _SHARED}, request)
    for known in sweep.settled(case):
        if known.metric == VERIFIED and known.value == limit:
            return known
    # Sweep.measure would skip larger cases after an oom; here each case has its own limit, so none may be skipped.
    answer = run_child(WORKER, request, sweep.timeout)
    if answer.status == "timeout":
        return case.timed_out(sweep.timeout, answer.reason)[0]
    env = {**case.common["env"], **answer.env}
    return case.failed(answer.status, answer.reason, env=env, value=limit, stat="limit", n=1)[0]


def verdict(verified: Sequence[Record]) -> str:
    """Return the results of the verifications as text; an empty string if there were none."""
    ran, short = ([r for r in verified if r.status == status] for status in ("ok", "oom"))
    runs = f"{len(ran)} of {plural(len(ran) + len(short), 'run')}"
    lines = [f"Second verification: {runs} succeeded within the predicted memory."]
    lines += [f"{_name(record)} failed within {record.value:,} bytes: {record.reason}" for record in short]
    return "\n".join([*lines, ""]) if ran or short else ""


def unverified(verified: Sequence[Record]) -> list[str]:
    """Return one sentence for each failed verification."""
    return [f"{_name(r)}, verification: {r.reason}" for r in verified if r.status not in ("ok", "oom")]


def _configuration(record: Record) -> Configuration:
    names = {f.name for f in fields(Configuration)}
    return Configuration.from_dict({name: value for name, value in record.options.items() if name in names})


def _name(record: Record) -> str:
    recomputed = "" if record.checkpointing == "none" else f"checkpointing {record.checkpointing}"
    return " ".join(filter(None, (record.method, record.variant, record.phase, record.precision, recomputed)))
