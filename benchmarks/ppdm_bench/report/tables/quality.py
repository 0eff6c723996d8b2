"""The table of quality: mean ± sd of every configuration, and its paired difference from a reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppdm_bench.records import Record
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.series import Series, gather, is_regional, metric_name, names_of, reference_of
from ppdm_bench.report.statistics import ENOUGH, RESAMPLES, paired_difference, smallest_p, summary
from ppdm_bench.report.tables.text import markdown_grid, text_grid
from ppdm_bench.units import shape_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "headline",
    "number",
    "quality_table",
    "save",
    "signed",
    "to_csv",
    "to_markdown",
    "to_text",
]

_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("name", "method", "variant"), "object"),
    "steps": "Int64",
    **dict.fromkeys(("precision", "metric", "unit"), "object"),
    **dict.fromkeys(("n", "failed"), "Int64"),
    **dict.fromkeys(("mean", "sd"), "float64"),
    **dict.fromkeys(("best", "worst", "reference"), "object"),
    "pairs": "Int64",
    **dict.fromkeys(("difference", "low", "high", "p"), "float64"),
}

_Table = tuple[list[str], list[list[str]]]


def quality_table(records: Iterable[Record], *, reference: str = "") -> pd.DataFrame:
    """Return one row for each configuration and metric.

    Columns: name (what tells configurations apart), method, variant, steps (network evaluations), precision, metric,
    unit, n (subjects), failed (scans without a value), mean, sd, best and worst (scan); then against the reference, of
    the subjects that both have: reference, pairs, difference, low, high (bootstrap, 95 %), p (Wilcoxon, two-sided).

    Args:
        records: long-form records of one data set; those without a subject are passed over.
        reference: method and variant that the others are compared with; empty: none.

    Raises:
        ValueError: the records are of several data sets or conventions.
    """
    import pandas as pd

    everything = gather(records)
    lines = [
        {"name": name} | _line(series, metric, reference_of(series, everything, reference))
        for name, series in zip(names_of(everything), everything, strict=True)
        for metric in series.scans
    ]
    return pd.DataFrame({c: pd.Series([line.get(c) for line in lines], dtype=t) for c, t in _COLUMNS.items()})


def headline(records: Sequence[Record]) -> str:
    """Return what the records of subjects have in common, in words: the data, the convention, the data range."""
    scored = [record for record in records if record.subject]
    first = scored[0]
    shapes = {record.shape for record in scored if record.shape}
    convention, data = first.options.get("convention", {}), first.options.get("data", {})
    # The name of the project's own convention reads as a method over predictions of other tools.
    foreign = convention.get("preset") == "ppdm" and any("predictions" in record.options for record in scored)
    words = [
        f"Quality on {first.task}" if first.task else "Quality",
        data.get("split", ""),
        _subjects(len({record.subject.partition("/")[0] for record in scored})),
        shape_text(shapes.pop()) if len(shapes) == 1 else "several sizes" if shapes else "",
        f"preset {convention['preset']}" if "preset" in convention and not foreign else "",
        f"data range {convention['data_range']:.6g}" if convention.get("data_range") else "",
    ]
    return ", ".join(filter(None, words)) + "."


def to_csv(frame: pd.DataFrame) -> str:
    """Return the table as CSV with six significant digits, the same text every time."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def to_text(frame: pd.DataFrame, title: str) -> str:
    """Return the tables for people as aligned text: means, then differences, then what they mean."""
    return _blocks(frame, title, text_grid)


def to_markdown(frame: pd.DataFrame, title: str) -> str:
    """Return the same as Markdown."""
    return _blocks(frame, title, markdown_grid)


def save(frame: pd.DataFrame, title: str, stem: Path) -> tuple[Path, Path]:
    """Write the table as `<stem>.csv` and `<stem>.md`, each whole or not at all, and return the two paths."""
    contents = {".csv": to_csv(frame), ".md": to_markdown(frame, title)}
    csv, markdown = (replace_file(stem.with_name(stem.name + end), text.encode()) for end, text in contents.items())
    return csv, markdown


def _line(series: Series, metric: str, against: Series | None) -> dict[str, Any]:
    values, ranked = series.subjects(metric), series.ranked(metric)
    found = summary(list(values.values())) if values else None
    return {
        "method": series.method,
        "variant": series.variant,
        "steps": series.steps,
        "precision": series.precision,
        "metric": metric,
        "unit": series.units[metric],
        "n": len(values),
        "failed": len(series.failures[metric]),
        "mean": found and found.mean,
        "sd": found and found.sd,
        "best": ranked[0][0] if ranked else "",
        "worst": ranked[-1][0] if ranked else "",
    } | _compared(values, metric, against)


def _compared(values: dict[str, float], metric: str, against: Series | None) -> dict[str, Any]:
    known = {} if against is None else against.subjects(metric)
    both = [subject for subject in values if subject in known]
    if against is None or not both:
        return {"reference": ""}
    found = paired_difference([values[s] for s in both], [known[s] for s in both])
    difference = {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}
    return {"reference": against.label, "pairs": found.n} | difference


def _blocks(frame: pd.DataFrame, title: str, show: Any) -> str:
    lines = frame.astype(object).where(frame.notna(), None).to_dict("records")
    regional = [line for line in lines if is_regional(line["metric"])]
    lines = [line for line in lines if not is_regional(line["metric"])]
    compared = [line for line in lines if line["reference"]]
    blocks = [f"{title} Mean ± sd over subjects.", show(*_means(lines))]
    if regional:
        blocks += ["Bias of uptake in regions, mean ± sd over the subjects that have them.", show(*_means(regional))]
    if compared:
        against = ", ".join(dict.fromkeys(line["reference"] for line in compared))
        blocks += [f"Difference from {against}, subject by subject.", show(*_differences(compared))]
    return "\n\n".join([*blocks, *_notes(lines, compared)]) + "\n"


def _means(lines: Sequence[dict[Any, Any]]) -> _Table:
    """A row a configuration, a column a metric."""
    metrics = {line["metric"]: metric_name(line["metric"], line["unit"]) for line in lines}
    cells = {(line["name"], line["metric"]): _mean(line) for line in lines}
    steps = {line["name"]: line["steps"] for line in lines}
    rows = [
        [name, "–" if k is None else str(k), *(cells.get((name, metric), "–") for metric in metrics)]
        for name, k in steps.items()
    ]
    return ["method", "evaluations", *metrics.values()], rows


def _mean(line: dict[Any, Any]) -> str:
    if line["mean"] is None:
        return "failed"
    spread = "" if line["sd"] is None else f" ± {number(line['sd'], line['unit'])}"
    fewer = f" (n={line['n']})" if line["failed"] else ""
    return number(line["mean"], line["unit"]) + spread + fewer


def _differences(lines: Sequence[dict[Any, Any]]) -> _Table:
    headers = ["method", "metric", "difference", "95 % interval", "p", "n"]
    return headers, [_difference(line) for line in lines]


def _difference(line: dict[Any, Any]) -> list[str]:
    ends = [line["low"], line["high"]]
    interval = "–" if None in ends else "{} to {}".format(*(signed(end, line["unit"]) for end in ends))
    name = metric_name(line["metric"], line["unit"])
    return [line["name"], name, signed(line["difference"], line["unit"]), interval, _p(line["p"]), str(line["pairs"])]


def _notes(lines: Sequence[dict[Any, Any]], compared: Sequence[dict[Any, Any]]) -> list[str]:
    notes = ["Arrows: ↑ more is better, ↓ less is, →1 near 1 is."]
    if compared:
        notes[0] += (
            f" Interval: percentile bootstrap of the mean difference ({RESAMPLES:,} resamples of subjects). "
            "p: Wilcoxon signed-rank test, two-sided, not corrected for the number of comparisons."
        )
        if (n := min(line["pairs"] for line in compared)) < ENOUGH:
            notes.append(
                f"With {_subjects(n)} p cannot fall below {_p(smallest_p(n))}: the test cannot reach .05, which takes "
                f"{ENOUGH}, and the interval, if there is one, is narrower than 95 %."
            )
    if failed := sum(line["failed"] for line in lines):
        notes.append(f"{failed} value{'s' if failed > 1 else ''} could not be computed; the records say why.")
    return notes


def _subjects(n: int) -> str:
    return f"{n} subject{'s' if n > 1 else ''}"


def number(value: float, unit: str) -> str:
    """A value with the decimals that its unit is read with."""
    digits = {"dB": 2, "%": 1, "1": 4}.get(unit)
    return (f"{value:.4g}" if digits is None else f"{value:.{digits}f}").replace("-", "−")


def signed(value: float, unit: str) -> str:
    """The same with its sign."""
    size = number(abs(value), unit)
    return ("" if not float(size) else "+" if value > 0 else "−") + size


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"
