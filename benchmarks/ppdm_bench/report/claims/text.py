"""The claims with their verdicts, for people (Markdown) and programs (CSV)."""

from __future__ import annotations

from collections.abc import Sequence

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.claims.claim import Claim, Effect, Finding
from ppdm_bench.report.library import Library, provenance
from ppdm_bench.report.tables.render import Heading, Table, TableRow, to_markdown

Verdicts = Sequence[tuple[Claim, Finding]]

_EFFECT = ("what", "kind", "value", "low", "high", "unit", "n", "passed")
_SHOWN_REFERENCES = 4  # a row lists so many references of a file, and counts the others


def effects_table(decided: Verdicts) -> Table:
    """Return a row for each effect of each claim; a claim without effects has one row."""
    headings = [Heading(name) for name in ("claim", "verdict", "effect", "kind")]
    headings += [Heading(name, number=True) for name in ("value", "low", "high")]
    headings += [Heading(name) for name in ("unit", "of", "passed", "scope")]
    lines = []
    for claim, finding in decided:
        for effect in finding.effects or (None,):
            cells = (getattr(effect, name, None) for name in _EFFECT)
            sources = effect.sources if effect else ()
            lines.append(TableRow((claim.key, finding.verdict, *cells, finding.scope), sources))
    return Table(headings, lines)


def to_claims_text(decided: Verdicts) -> str:
    """Return the verdict and the reason of each claim, one line each."""
    width = max(len(claim.key) for claim, _ in decided)
    lines = []
    for claim, finding in decided:
        basis = f" ({finding.basis})" if finding.basis else ""
        lines += [f"{claim.key:{width}}  {finding.verdict}{basis}: {claim.sentence}", f"{'':{width}}  {finding.why}"]
    return "\n".join(lines)


def to_claims_markdown(decided: Verdicts, library: Library) -> str:
    """Return the verdicts, then the rule, effects, records and scope of each claim."""
    summary = Table(
        [Heading(name) for name in ("claim", "verdict", "decided by")],
        [TableRow((claim.sentence, f"**{finding.verdict}**", finding.basis)) for claim, finding in decided],
    )
    own = any(not point.is_synthetic for point in library.points)
    blocks = [
        "# The claims of the abstract and what the records show",
        "Made by `ppdm-bench claims` from the records: each verdict follows from the rule below the claim. "
        f"*Supported* holds for the named scope; for quality, these are phantoms{' or own data' if own else ''} and "
        "small budgets. *Not supported* means that the records do not show the claim; it does not prove the contrary. "
        "*Not measured* means that records are missing. Predicted and measured numbers have separate rows.",
        to_markdown(summary).rstrip(),
        *(_claim_section(claim, finding) for claim, finding in decided),
        f"{len(library.records)} records were read. "
        f"Those that decide: {provenance(_deciding_records(decided, library))}",
    ]
    return "\n\n".join(blocks) + "\n"


def _deciding_records(decided: Verdicts, library: Library) -> list[Record]:
    named = {source for _, finding in decided for effect in finding.effects for source in effect.sources}
    return [record for record in library.records if library.reference(record) in named]


def _claim_section(claim: Claim, finding: Finding) -> str:
    blocks = [
        f"## {claim.sentence}",
        f"**{finding.verdict[0].upper()}{finding.verdict[1:]}**: {finding.why}.",
        f"*Rule.* {claim.rule}",
    ]
    if finding.effects:
        headings = [Heading("effect"), Heading("kind"), Heading("value", number=True)]
        headings += [Heading(name) for name in ("interval", "of", "rule", "records")]
        blocks.append(to_markdown(Table(headings, [_effect_row(effect) for effect in finding.effects])).rstrip())
    if finding.scope:
        blocks.append(f"*Scope.* {finding.scope}.")
    return "\n\n".join(blocks)


def _effect_row(effect: Effect) -> TableRow:
    ends = (effect.low, effect.high)
    interval = "–" if None in ends else " to ".join(_number(end, effect.unit) for end in ends if end is not None)
    rule = {True: "passes", False: "fails", None: "decides nothing"}[effect.passed]
    value = _number(effect.value, effect.unit) + ("×" if effect.unit == "×" else f" {effect.unit}")
    return TableRow((effect.what, effect.kind, value, interval, effect.n, rule, _references(effect.sources)))


def _number(value: float, unit: str) -> str:
    text = f"{value:+.2f}" if unit == "dB" else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−")


def _references(sources: Sequence[str]) -> str:
    """Return the configurations of each file, and the number of those that are left out."""
    parts = []
    for file, found in grouped(sources, lambda source: source.partition("#")[0]).items():
        names = [source.partition("#")[2] for source in found]
        more = f" and {len(names) - _SHOWN_REFERENCES} more" if len(names) > _SHOWN_REFERENCES else ""
        parts.append(f"`{file}`: {', '.join(names[:_SHOWN_REFERENCES])}{more}")
    return "; ".join(parts)
