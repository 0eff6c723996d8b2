"""Records of quality gathered into series: the values of one configuration, subject by subject.

A configuration is a method, its variant, its network evaluations and its precision. Where a subject has several scans
(named ``subject/scan``), the subject's value is their mean: n counts subjects, which are independent, and not scans.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ppdm_bench.records import Record
from ppdm_bench.report.direction import UPTAKE, base, ideal, is_higher_better

_NAMES = {
    "psnr": "PSNR",
    "reconstruction_psnr": "ceiling PSNR",  # of the target, encoded and decoded by a representation that is learned
    "ssim": "SSIM",
    "nmae": "NMAE",
    "nrmse": "NRMSE",
    "mae": "MAE",
    "seam_index": "seam index",
    "suv_mean_bias": "SUVmean",
    "suv_max_bias": "SUVmax",
}


@dataclass(frozen=True)
class Series:
    """The values of one configuration.

    Attributes:
        method, variant, steps, precision: as in the records.
        scans: values, by metric and name of the scan.
        units: by metric.
        failures: reasons why there is no value, by metric and name of the scan.
    """

    method: str
    variant: str
    steps: int | None
    precision: str
    scans: dict[str, dict[str, float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Method and variant."""
        return f"{self.method} {self.variant}".strip()

    def subjects(self, metric: str) -> dict[str, float]:
        """The value of each subject: the mean over its scans."""
        values: dict[str, list[float]] = {}
        for scan, value in self.scans.get(metric, {}).items():
            values.setdefault(scan.partition("/")[0], []).append(value)
        return {subject: fmean(found) for subject, found in values.items()}

    def ranked(self, metric: str) -> list[tuple[str, float]]:
        """All scans with their values, the best first; none where a metric is best in between."""
        if ideal(metric) is not None:
            return []
        return sorted(self.scans[metric].items(), key=lambda scan: scan[1], reverse=is_higher_better(metric))

    @property
    def ranking(self) -> str:
        """The metric that says which subject is the best: PSNR, else the first that has values, else none."""
        return next((m for m in ("psnr", *self.scans) if self.scans.get(m) and ideal(m) is None), "")

    @property
    def standing(self) -> float:
        """The mean over subjects of the metric that ranks, turned so that more is better."""
        mean = fmean(self.subjects(self.ranking).values())
        return mean if is_higher_better(self.ranking) else -mean

    def add(self, record: Record, scan: str = "") -> None:
        """Take a record in, under another name than its subject's if one is given; the later of two counts."""
        scan = scan or record.subject
        self.units[record.metric] = record.unit
        values = self.scans.setdefault(record.metric, {})
        failures = self.failures.setdefault(record.metric, {})
        values.pop(scan, None)
        failures.pop(scan, None)
        if record.value is not None and record.status == "ok":
            values[scan] = float(record.value)
        else:
            failures[scan] = record.reason


def gather(records: Iterable[Record]) -> list[Series]:
    """One series for each configuration, in the order they first came; records without a subject are passed over.

    Raises:
        ValueError: the records are of several data sets or conventions, so that their numbers cannot be compared.
    """
    records = [record for record in records if record.subject]
    if len(settings := {setting(record) for record in records}) > 1:
        raise ValueError(
            f"the records are of {len(settings)} data sets or conventions, and numbers of different ones cannot be "
            "compared; take those of one, see ppdm_bench.report.series.setting"
        )
    found: dict[tuple[object, ...], Series] = {}
    for record in records:
        key = (record.method, record.variant, record.steps, record.precision)
        found.setdefault(key, Series(*key)).add(record)
    return list(found.values())


def setting(record: Record) -> str:
    """What a record was measured on and how, as JSON: equal for records whose numbers can be compared."""
    known: list[Any] = [record.task, record.options.get("data"), record.options.get("convention")]
    return json.dumps(known, sort_keys=True)


def reference_of(series: Series, everything: Sequence[Series], label: str) -> Series | None:
    """The series of this label that another is compared with: that of its own evaluations, else the first."""
    if series.label == label:
        return None
    candidates = [other for other in everything if other.label == label]
    return next((other for other in candidates if other.steps == series.steps), candidates[0] if candidates else None)


def names_of(everything: Sequence[Series]) -> list[str]:
    """What tells series apart: the label, and evaluations and precision where one label has several."""
    names = []
    for series in everything:
        same = [other for other in everything if other.label == series.label]
        words = [series.label]
        if len({other.steps for other in same}) > 1:
            words.append(f"{series.steps} evaluation{'s' if series.steps != 1 else ''}")
        if len({other.precision for other in same}) > 1:
            words.append(series.precision)
        names.append(", ".join(words))
    return names


def unit_in(everything: Sequence[Series], metric: str) -> str:
    """The unit of a metric, which not every series may have."""
    return next((series.units[metric] for series in everything if metric in series.units), "")


def metric_name(metric: str, unit: str = "") -> str:
    """A metric for people: ``PSNR dB ↑``, ``sharpness →1``, ``seam index r=4 dB ↓``; the arrow says what is better."""
    lattice = re.fullmatch(r"seam_index_r(.+)", metric)
    which = f" r={lattice[1].replace('x', '×')}" if lattice else f" {region(metric)}" if is_regional(metric) else ""
    name = _NAMES.get(base(metric), base(metric).replace("_", " ")) + which
    arrow = "↑" if is_higher_better(metric) else f"→{best:g}" if (best := ideal(metric)) is not None else "↓"
    return " ".join(filter(None, (name, unit if unit != "1" else "", arrow)))


def is_regional(metric: str) -> bool:
    """Whether it is of one labelled region, so that there are many of its kind."""
    return metric.startswith(UPTAKE)


def region(metric: str) -> str:
    """The region that a regional metric is of, for people: `grey matter`."""
    return metric.removeprefix(f"{base(metric)}_").replace("_", " ")
