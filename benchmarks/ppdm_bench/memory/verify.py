"""Second verification: what was measured runs again in a child that may take no more memory than was predicted.

The first verification compares two numbers. This one asks what a user asks: does it run on a card of that size?
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.runner import run_child
from ppdm_bench.terminal import progress as progress_bar

VERIFIED = "verified_at"
_FINDINGS = ("ok", "oom")

# What PyTorch's allocator may take on CUDA is what it reserves; on the CPU the tracker counts live tensors.
_LIMITED = {"cuda": "peak_reserved", "cpu": "peak_allocated"}


def verify_in(folder: Path, records: Sequence[Record], timeout: float) -> list[Record]:
    """Verify every measurement among records under a progress bar; each result is on disk before the next begins.

    Args:
        folder: of ``records.jsonl``; what stands verified there, by the same code in the same environment, is taken.
        records: predictions and measurements of one run.
        timeout: seconds for one of them.
    """
    file, found = RecordFile(folder / "records.jsonl"), []
    known = file.read()
    pairs = verifiable(records)
    with progress_bar() as bar:
        task = bar.add_task("verifying", total=len(pairs))
        for measured, limit in pairs:
            bar.update(task, description=f"verifying {measured.method} {measured.variant} {measured.phase}")
            verified = _settled(measured, limit, known)
            if verified is None:
                verified = verify(measured, limit, timeout)
                file.append([verified])
            found.append(verified)
            bar.advance(task)
    return found


def verifiable(records: Sequence[Record]) -> list[tuple[Record, int]]:
    """Each measured peak with the bytes that were predicted to suffice for it.

    What was predicted to exceed the card is left out: the card itself is its limit.
    """
    predicted = {
        (record.config_id, record.phase, record.metric, record.device): int(record.value)
        for record in records
        if record.kind == "predicted" and record.status == "ok" and record.value is not None
    }
    measured = [r for r in records if r.kind == "measured" and r.metric == "peak_allocated" and r.status == "ok"]
    keys = [(r.config_id, r.phase, _LIMITED[r.device], r.device) for r in measured]
    return [(record, predicted[key]) for record, key in zip(measured, keys, strict=True) if key in predicted]


def verify(measured: Record, limit: int, timeout: float) -> Record:
    """Run what was measured again, in a child that may take so many bytes.

    Returns:
        A record of ``verified_at``, the limit: ok where that sufficed, oom where it did not.
    """
    request = {
        "configuration": _configuration(measured).to_dict(),
        "phase": measured.phase,
        "device": measured.device,
        "limit": limit,
    }
    answer = run_child("ppdm_bench.memory.worker", request, timeout)
    shared: dict[str, Any] = {f.name: getattr(measured, f.name) for f in fields(Record)}
    del shared["created"]
    return Record(
        **shared
        | {
            "metric": VERIFIED,
            "value": limit,
            "stat": "limit",
            "env": dict(answer.env) or environment(),
            "status": answer.status,
            "reason": answer.reason,
        }
    )


def verdict(verified: Sequence[Record]) -> str:
    """What the verifications say, in words; nothing if there were none."""
    settled = [record for record in verified if record.status in _FINDINGS]
    within = sum(record.status == "ok" for record in settled)
    lines = [f"Second verification: {within} of {len(settled)} ran within the memory that was predicted."]
    lines += [f"{_name(r)} needs more than the {r.value} B predicted: {r.reason}" for r in settled if r.status == "oom"]
    return "\n".join(lines) if settled else ""


def unverified(verified: Sequence[Record]) -> list[str]:
    """What could not be verified, a sentence each."""
    return [f"{_name(r)}, verification: {r.reason}" for r in verified if r.status not in _FINDINGS]


def _settled(measured: Record, limit: int, known: Sequence[Record]) -> Record | None:
    env = environment()
    if env["dirty"]:  # changed code: nobody knows whether it is the same
        return None
    wanted = (measured.config_id, measured.phase, measured.device, VERIFIED, limit, env)
    same = (r for r in reversed(known) if (r.config_id, r.phase, r.device, r.metric, r.value, r.env) == wanted)
    return next((record for record in same if record.status in _FINDINGS), None)


def _configuration(record: Record) -> Configuration:
    names = {f.name for f in fields(Configuration)}
    return Configuration.from_dict({name: value for name, value in record.options.items() if name in names})


def _name(record: Record) -> str:
    words = (record.method, record.variant, record.phase, record.precision, f"checkpointing {record.checkpointing}")
    return " ".join(filter(None, words))
