"""The claims of the paper's abstract as data: sentence, rule and finding.

The rule alone decides the verdict. `not supported` means that the evidence does not show the claim, possibly because
there is too little of it; it does not prove the contrary. `not measured` means that records for the rule are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ppdm_bench.report.library import Library

Verdict = Literal["supported", "not supported", "not measured"]


@dataclass(frozen=True)
class Evidence:
    """The evidence that decides claims.

    Attributes:
        library: the records.
        method: the claimed method, resolved as registered.
        tasks: the claimed tasks.
    """

    library: Library
    method: Mapping[str, Any]
    tasks: Sequence[str]


@dataclass(frozen=True)
class Effect:
    """One number that a rule uses.

    Attributes:
        what: the quantity in words.
        kind: measured or predicted, never both.
        value, low, high: the effect and its interval, which `n` describes.
        unit: dB, ×, …
        n: number of subjects, settings or repetitions, and the kind of the interval.
        passed: whether the effect fulfils the rule; None if it decides nothing.
        sources: files and configurations of the records.
    """

    what: str
    kind: str
    value: float
    low: float | None
    high: float | None
    unit: str
    n: str
    passed: bool | None
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """The result of a rule.

    Attributes:
        verdict: supported, not supported or not measured.
        why: the reason in one sentence.
        effects: the numbers that the rule used.
        scope: data, sizes and budgets for which the verdict holds.
    """

    verdict: Verdict
    why: str
    effects: tuple[Effect, ...]
    scope: str

    @property
    def basis(self) -> str:
        """The kinds of the deciding numbers."""
        return " and ".join(sorted({e.kind for e in self.effects if e.passed is not None}))


@dataclass(frozen=True)
class Claim:
    """One sentence of the abstract.

    Attributes:
        key: short name.
        sentence: the claim.
        rule: the rule in words, with every threshold.
        decide: the rule as code.
    """

    key: str
    sentence: str
    rule: str
    decide: Callable[[Evidence], Finding]


def require_all(effects: Sequence[Effect], missing: Sequence[str], scope: str) -> Finding:
    """Return the finding of a rule that requires all deciding effects to pass, and no record to be missing.

    A single failed effect decides, even if records are missing. `missing` names the missing records in words.
    """
    deciding = [effect for effect in effects if effect.passed is not None]
    failed = [effect.what for effect in deciding if not effect.passed]
    if failed:
        return Finding("not supported", f"the rule fails for {'; '.join(failed)}", tuple(effects), scope)
    if missing or not deciding:
        wanted = "; ".join(missing) or "every record that the rule asks for"
        return Finding("not measured", f"missing: {wanted}", tuple(effects), scope)
    many = len(deciding)
    why = f"all {many} effects pass" if many > 1 else "its effect passes"
    return Finding("supported", why, tuple(effects), scope)
