"""Second verification: what was measured runs again in a child that may take no more memory than was predicted.

The first verification compares two numbers. This one asks what a user asks: does it run on a card of that size?
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ppdm_bench.commands.terminal import Whole, progress
from ppdm_bench.configuration import Configuration
from ppdm_bench.isolation.runner import run_child
from ppdm_bench.isolation.sweep import Case, Ledger, Sweep
from ppdm_bench.memory.command import WORKER
from ppdm_bench.records import Record

VERIFIED = "verified_at"

# What PyTorch's allocator may take on CUDA is what it reserves; on the CPU the tracker counts live tensors.
_LIMITED = {"cuda": "peak_reserved", "cpu": "peak_allocated"}

# What a verification shares with the measurement that it is of.
_SHARED = (
    *("config_id", "command", "method", "variant", "shape", "spacing", "batch_size", "phase", "precision"),
    *("checkpointing", "channels_last", "compile", "steps", "options", "kind", "device", "env"),
)


def verify_in(folder: Path, records: Sequence[Record], timeout: float) -> list[Record]:
    """Verify every measurement among records under a progress bar; each result is on disk before the next begins.

    Args:
        folder: of ``records.jsonl``. What was verified there before, at the same limit by the same code in the same
            environment, is not run again.
        records: predictions and measurements of one run.
        timeout: seconds for one of them.

    Returns:
        A record of ``verified_at`` each: the limit, ok where it sufficed and oom where it did not.
    """
    ledger, found, pairs = Ledger(folder), [], verifiable(records)
    sweep = Sweep(WORKER, timeout, ledger.earlier)
    with progress() as bar:
        whole = Whole(bar, [1.0] * len(pairs))
        for measured, limit in pairs:
            whole.show(f"verifying {_name(measured)}")
            verified = verify(measured, limit, sweep)
            ledger.keep([verified])
            found.append(verified)
            whole.ended()
    return found


def verifiable(records: Sequence[Record]) -> list[tuple[Record, int]]:
    """Each measured peak with the bytes that were predicted to suffice for it.

    What was predicted to exceed the card is left out: there the card is the limit.
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
    """Run what was measured again, in a child that may take so many bytes; what the sweep knows of it stands."""
    request = {
        "configuration": _configuration(measured).to_dict(),
        "phase": measured.phase,
        "device": measured.device,
        "limit": limit,
    }
    case = Case(VERIFIED, {name: getattr(measured, name) for name in _SHARED}, request)
    for known in sweep.settled(case):
        if known.metric == VERIFIED and known.value == limit:
            return known
    # Not by Sweep.measure: one that did not suffice says nothing of another, each has a limit of its own.
    answer = run_child(WORKER, request, sweep.timeout)
    if answer.status == "timeout":
        return sweep.timed_out(case, answer.reason)[0]
    env = {**case.common["env"], **answer.env}
    return case.failed(answer.status, answer.reason, env=env, value=limit, stat="limit", n=1)[0]


def verdict(verified: Sequence[Record]) -> str:
    """What the verifications say, in words; nothing if there were none."""
    ran, short = ([r for r in verified if r.status == status] for status in ("ok", "oom"))
    lines = [f"Second verification: {len(ran)} of {len(ran) + len(short)} ran within the memory that was predicted."]
    lines += [f"{_name(record)} did not within {record.value:,} bytes: {record.reason}" for record in short]
    return "\n".join([*lines, ""]) if ran or short else ""


def unverified(verified: Sequence[Record]) -> list[str]:
    """What could not be verified, a sentence each."""
    return [f"{_name(r)}, verification: {r.reason}" for r in verified if r.status not in ("ok", "oom")]


def _configuration(record: Record) -> Configuration:
    names = {f.name for f in fields(Configuration)}
    return Configuration.from_dict({name: value for name, value in record.options.items() if name in names})


def _name(record: Record) -> str:
    recomputed = "" if record.checkpointing == "none" else f"checkpointing {record.checkpointing}"
    return " ".join(filter(None, (record.method, record.variant, record.phase, record.precision, recomputed)))
