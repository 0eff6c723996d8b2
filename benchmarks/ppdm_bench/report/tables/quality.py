"""The table of quality: mean ± sd of every configuration, and its paired difference from a reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter, methodcaller
from typing import TYPE_CHECKING, Any

from ppdm_bench.records import Record
from ppdm_bench.report.metrics import ideal, is_regional, metric_name
from ppdm_bench.report.scores import Scores, by_configuration, names_of, reference_of, size_text
from ppdm_bench.report.statistics import ENOUGH_SUBJECTS, RESAMPLES, common_difference, mean_and_sd, smallest_p
from ppdm_bench.report.tables.render import Columns, Heading, Page, Table, TextCell, data_frame, frame_rows, table_of
from ppdm_bench.units import plural

if TYPE_CHECKING:
    import pandas as pd

_DTYPES = {
    **dict.fromkeys(("name", "method", "variant"), "object"),
    "steps": "Int64",
    **dict.fromkeys(("precision", "metric", "unit"), "object"),
    **dict.fromkeys(("n", "failed"), "Int64"),
    **dict.fromkeys(("mean", "sd"), "float64"),
    **dict.fromkeys(("best", "worst", "reference"), "object"),
    "pairs": "Int64",
    **dict.fromkeys(("difference", "low", "high", "p"), "float64"),
}

_Row = dict[str, Any]


def quality_table(records: Iterable[Record], *, reference: str = "") -> pd.DataFrame:
    """Return one row for each configuration and metric.

    Columns: name (distinguishes configurations), method, variant, steps (network evaluations), precision, metric, unit,
    n (subjects), failed (scans without a value), mean, sd, best and worst (scan); then against the reference, over the
    subjects that both have: reference, pairs, difference, low, high (bootstrap, 95 %), p (Wilcoxon, two-sided).

    Args:
        records: long-form records of one data set; those without a subject are ignored.
        reference: method and variant with which the others are compared; empty for no comparison.

    Raises:
        ValueError: the records are of several data sets or conventions.
    """
    everything = by_configuration(records)
    lines = [
        {"name": name} | _line(series, metric, reference_of(series, everything, reference))
        for name, series in zip(names_of(everything), everything, strict=True)
        for metric in series.scans
    ]
    return data_frame(lines, _DTYPES)


def headline(records: Sequence[Record]) -> str:
    """Return in words what the records with a subject share: the data, the convention, the data range."""
    scored = [record for record in records if record.subject]
    first = scored[0]
    convention, data = first.options.get("convention", {}), first.options.get("data", {})
    # Above predictions of other tools, the name of the project's own convention would look like the name of a method.
    foreign = convention.get("preset", "").startswith("ppdm") and any(
        "predictions" in record.options for record in scored
    )
    words = [
        f"Quality on {first.task}" if first.task else "Quality",
        data.get("split", ""),
        plural(len({record.subject.partition("/")[0] for record in scored}), "subject"),
        size_text(scored),
        f"preset {convention['preset']}" if "preset" in convention and not foreign else "",
        f"data range {convention['data_range']:.6g}" if convention.get("data_range") else "",
    ]
    return ", ".join(filter(None, words)) + "."


def quality_page(frame: pd.DataFrame, title: str, *, metrics: Sequence[str] = ()) -> Page:
    """Return the tables for people: means, then differences from the reference.

    Args:
        frame: from :func:`quality_table`; it becomes the data of the page.
        title: what the records share, see :func:`headline`.
        metrics: metrics to show; empty for all. A metric without values is reported below the tables.
    """
    everything = frame_rows(frame)
    there = dict.fromkeys(row["metric"] for row in everything)
    unknown = [name for name in metrics if name not in there]
    missing = [f"There are no values of {name}; there are: {', '.join(there)}." for name in unknown]
    if chosen := [metric for metric in metrics if metric in there]:
        everything = [row for row in everything if row["metric"] in chosen]
    rows = [row for row in everything if not is_regional(row["metric"])]
    parts: list[str | Table] = [f"{title} Mean ± sd over subjects."]
    parts += [_means(rows)] * bool(rows)
    if regional := [row for row in everything if is_regional(row["metric"])]:
        parts += ["Bias of uptake in regions, mean ± sd over the subjects that have them.", _means(regional)]
    if compared := [row for row in rows if row["reference"]]:
        against = ", ".join(dict.fromkeys(row["reference"] for row in compared))
        parts += [f"Difference from {against}, subject by subject.", table_of(compared, _DIFFERENCE, ("metric",))]
    return Page([*parts, *_remarks(rows, compared), *missing], frame)


def _line(series: Scores, metric: str, against: Scores | None) -> _Row:
    values, ranked = series.subject_means(metric), series.ranked(metric)
    mean, sd = mean_and_sd(list(values.values())) if values else (None, None)
    return {
        "method": series.method,
        "variant": series.variant,
        "steps": series.evaluations,
        "precision": series.precision,
        "metric": metric,
        "unit": series.units[metric],
        "n": len(values),
        "failed": len(series.failed[metric]),
        "mean": mean,
        "sd": sd,
        "best": ranked[0][0] if ranked else "",
        "worst": ranked[-1][0] if ranked else "",
    } | _compared(values, metric, against)


def _compared(values: dict[str, float], metric: str, against: Scores | None) -> _Row:
    found = against and common_difference(values, against.subject_means(metric))
    if not against or not found:
        return {"reference": ""}
    difference = {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}
    return {"reference": against.label, "pairs": found.n} | difference


def _means(rows: Sequence[_Row]) -> Table:
    """Return a table with one row per configuration and one column per metric."""
    cells: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["name"]
        cells.setdefault(name, {"method": name, "evaluations": row["steps"]})[row["metric"]] = TextCell(*_mean(row))
    arrows = "Arrows: ↑ more is better, ↓ less is better, →1 near 1 is best."
    headings = [Heading("method"), Heading("evaluations", number=True)]
    for place, (metric, unit) in enumerate({row["metric"]: row["unit"] for row in rows}.items()):
        note = arrows if ideal(metric) != 0 else "→0: near 0 is best."
        headings.append(Heading(metric, metric_name(metric, unit), number=True, rank=int(place > 0), note=note))
    return table_of(list(cells.values()), {heading: methodcaller("get", heading.key) for heading in headings})


def _mean(row: _Row) -> tuple[float | None, str]:
    if row["mean"] is None:
        return None, "failed"
    fewer = f" (n={row['n']})" if row["failed"] else ""
    return row["mean"], mean_text(row["mean"], row["sd"], row["unit"]) + fewer


def mean_text(mean: float, sd: float | None, unit: str) -> str:
    """Return a mean with its standard deviation for people: `29.31 ± 0.52`."""
    return number(mean, unit) + ("" if sd is None else f" ± {number(sd, unit)}")


def interval(low: float | None, high: float | None, unit: str) -> str:
    """Return an interval for people; empty if an end is missing."""
    return "" if low is None or high is None else f"{signed(low, unit)} to {signed(high, unit)}"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"


_INTERVAL = f"Interval: percentile bootstrap of the mean difference ({RESAMPLES:,} resamples of subjects)."
_DIFFERENCE: Columns[_Row] = {
    Heading("name", "method"): itemgetter("name"),
    Heading("metric"): lambda row: metric_name(row["metric"], row["unit"]),
    Heading("difference", number=True): lambda row: signed(row["difference"], row["unit"]),
    Heading("interval", "95 % interval", note=_INTERVAL): lambda row: interval(row["low"], row["high"], row["unit"]),
    Heading(
        *("p", "p", _p),
        number=True,
        note="p: Wilcoxon signed-rank test, two-sided, not corrected for the number of comparisons.",
    ): itemgetter("p"),
    Heading("pairs", "n", number=True): itemgetter("pairs"),
}


def _remarks(rows: Sequence[_Row], compared: Sequence[_Row]) -> list[str]:
    remarks = []
    if compared and (n := min(row["pairs"] for row in compared)) < ENOUGH_SUBJECTS:
        remarks.append(
            f"With {plural(n, 'subject')}, p cannot fall below {_p(smallest_p(n))} (0.05 needs {ENOUGH_SUBJECTS} "
            "subjects), and the interval, if there is one, covers less than 95 %."
        )
    if failed := sum(row["failed"] for row in rows):
        remarks.append(f"{plural(failed, 'value')} could not be computed; the records give the reasons.")
    return remarks


def number(value: float, unit: str) -> str:
    """Return a value with the number of decimals that is usual for its unit."""
    digits = {"dB": 2, "%": 1, "1": 4, "HU": 1}.get(unit)
    return (f"{value:.4g}" if digits is None else f"{value:.{digits}f}").replace("-", "−")


def signed(value: float, unit: str) -> str:
    """Return a value with its sign and the number of decimals that is usual for its unit."""
    size = number(abs(value), unit)
    return ("" if not float(size) else "+" if value > 0 else "−") + size
