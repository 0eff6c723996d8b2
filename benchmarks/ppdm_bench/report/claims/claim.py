"""The claims of the paper's abstract as data: what is claimed, the rule that decides, and what came of it.

A verdict comes from the rule alone. `not supported` says that our evidence does not carry the claim, which may be for
want of evidence, and is no proof of the contrary; `not measured` says that records for the rule are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ppdm_bench.report.library import Library

__all__ = ["Claim", "Effect", "Evidence", "Finding", "Verdict", "concluded"]

Verdict = Literal["supported", "not supported", "not measured"]


@dataclass(frozen=True)
class Evidence:
    """What claims are decided from.

    Attributes:
        library: the records.
        method: the method that is claimed about, resolved as it is registered.
        tasks: on which it is claimed.
    """

    library: Library
    method: Mapping[str, Any]
    tasks: Sequence[str]


@dataclass(frozen=True)
class Effect:
    """One number that a rule looks at.

    Attributes:
        what: in words.
        kind: measured or predicted, never both.
        value, low, high: the effect and its interval; what the interval is, `n` says.
        unit: dB, ×, …
        n: of how many, and what the interval is.
        passed: what the rule says of it; None where it decides nothing and is shown beside.
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
    """What became of a claim.

    Attributes:
        verdict: of the rule.
        why: in a sentence.
        effects: what it looked at.
        scope: data, sizes and budgets for which it holds.
    """

    verdict: Verdict
    why: str
    effects: tuple[Effect, ...]
    scope: str

    @property
    def basis(self) -> str:
        """The kinds of the numbers that decided."""
        return " and ".join(sorted({e.kind for e in self.effects if e.passed is not None}))


@dataclass(frozen=True)
class Claim:
    """One sentence of the abstract.

    Attributes:
        key: a word for it.
        sentence: what is claimed.
        rule: what decides, in words, with every threshold.
        decide: the same as code.
    """

    key: str
    sentence: str
    rule: str
    decide: Callable[[Evidence], Finding]


def concluded(effects: Sequence[Effect], missing: Sequence[str], scope: str) -> Finding:
    """The conclusion of a rule that asks for everything: all effects pass, and nothing is missing.

    One effect that fails decides, whatever is missing.

    Args:
        effects: those that decide, and others.
        missing: what else the rule asks for, in words.
        scope: for which the effects hold.
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
