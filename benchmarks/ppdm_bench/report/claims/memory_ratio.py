"""Memory of full 3-D relative to that of the claimed method at equal settings, by factor, kind and device."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ppdm_bench.records import Record
from ppdm_bench.report.claims.claim import Evidence
from ppdm_bench.report.claims.effects import has_cost_of, is_full_3d, network_size
from ppdm_bench.report.scores import factor_text, resolved_method
from ppdm_bench.units import shape_text


@dataclass(frozen=True)
class Ratios:
    """Memory of full 3-D divided by that of the claimed method, one ratio for each setting that both have.

    Attributes:
        name: name of the method with its factor.
        factor: the puzzle factor.
        kind: kind of the records of both methods.
        where: device in words.
        on_cpu: whether the device is the CPU, on which only small volumes are measured.
        ratios: one per setting.
        settings: the settings in words.
        sources: references of the records of both methods.
    """

    name: str
    factor: str
    kind: str
    where: str
    on_cpu: bool
    ratios: tuple[float, ...]
    settings: str
    sources: tuple[str, ...]


def memory_ratios(evidence: Evidence, metric: str, *, largest: bool = False) -> list[Ratios]:
    """Return the ratios of a metric of memory at the training peak; if `largest`, only of the largest common size."""
    found = [r for r in evidence.library.records if r.command == "memory" and r.metric == metric and r.phase == "train"]
    # A prediction has a complete value even if it exceeds the memory of the card.
    found = [r for r in found if r.value and (r.status == "ok" or r.kind == "predicted")]
    against = {_setting(r): r for r in found if is_full_3d(resolved_method(r))}
    groups: dict[tuple[str, str, str], list[tuple[Record, Record]]] = {}
    for own in found:
        method = resolved_method(own)
        other, factor = against.get(_setting(own)), factor_text(method)
        if other is not None and has_cost_of(method, evidence.method) and factor != "1":
            groups.setdefault((factor, own.kind, _where(own)), []).append((own, other))
    for pairs in groups.values() if largest else ():
        most = max(prod(own.shape) for own, _ in pairs)
        pairs[:] = [pair for pair in pairs if prod(pair[0].shape) == most]
    return [_ratios(evidence, key, pairs) for key, pairs in sorted(groups.items())]


def _ratios(evidence: Evidence, key: tuple[str, str, str], pairs: list[tuple[Record, Record]]) -> Ratios:
    factor, kind, where = key
    own = pairs[0][0]
    lists = (
        [shape_text(r.shape) for r, _ in sorted(pairs, key=lambda pair: prod(pair[0].shape))],
        [r.precision for r, _ in pairs],
        [f"checkpointing {r.checkpointing}" for r, _ in pairs],
    )
    settings = "; ".join(", ".join(dict.fromkeys(found)) for found in lists)
    # If a setting was recorded twice, the later pair counts.
    latest = {_setting(mine): (mine, other) for mine, other in pairs}
    ratios = tuple(float(other.value or 0) / float(mine.value or 1) for mine, other in latest.values())
    sources = evidence.library.references(record for pair in latest.values() for record in pair)
    name = f"{own.method} r={factor}"
    return Ratios(name, factor, kind, where, own.device.startswith("cpu"), ratios, settings, sources)


def _setting(record: Record) -> tuple[object, ...]:
    names = ("shape", "batch_size", "precision", "checkpointing", "channels_last", "compile", "kind", "device")
    return (
        *(getattr(record, name) for name in names),
        *network_size(resolved_method(record)),
        str(record.env.get("torch", "")).partition("+")[0],
        record.env.get("gpu"),
    )


def _where(record: Record) -> str:
    if record.kind == "predicted":
        return "predicted for a GPU" if record.device.startswith("cuda") else "predicted for the CPU"
    return f"measured on {record.env.get('gpu') or record.device.upper()}"
