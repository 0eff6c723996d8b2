"""Records of quality gathered into points: one design, trained under one budget, on one data set, with its seeds.

A point knows what was trained by the fields of its method, and not by its name: a figure or a claim that asks for a
bridge, or for a full-3-D model, finds them wherever they come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ppdm_bench.records import Record

__all__ = [
    "Point",
    "alike",
    "design_of",
    "factor_text",
    "gather_points",
    "group_title",
    "is_bridge",
    "most_evaluations",
    "resolved",
]

# What makes a design; all else of a method is how it is trained, sampled or sized.
DESIGN = ("representation", "window", "kernel", "target", "loss")


@dataclass(frozen=True)
class Point:
    """One design on one data set.

    Attributes:
        task: as in the records.
        data: what its numbers can be compared with, as JSON: the data set, the convention, the split.
        shape: of the volumes; of several, the first.
        method, variant: as in the records of the first seed.
        design: the resolved method, empty for what was not trained.
        evaluations: of the network, None without one.
        train_steps: the budget, None without one.
        scans: values by metric, then by (seed, scan).
        units: by metric.
        records: what it is made from.
    """

    task: str
    data: str
    shape: tuple[int, ...]
    method: str
    variant: str
    design: Mapping[str, Any]
    evaluations: int | None
    train_steps: int | None
    scans: dict[str, dict[tuple[int | None, str], float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Method and variant."""
        return f"{self.method} {self.variant}".strip()

    @property
    def width(self) -> int | None:
        """Channels of the finest level of its network."""
        width = self.design.get("network", {}).get("width")
        return width if isinstance(width, int) else None

    @property
    def seeds(self) -> list[int]:
        """The seeds that it was trained from."""
        return sorted({seed for scans in self.scans.values() for seed, _ in scans if seed is not None})

    def subjects(self, metric: str) -> dict[str, float]:
        """The value of each subject: the mean over its scans and over the seeds."""
        values: dict[str, list[float]] = {}
        for (_, scan), value in self.scans.get(metric, {}).items():
            values.setdefault(scan.partition("/")[0], []).append(value)
        return {subject: fmean(found) for subject, found in values.items()}

    def of_seeds(self, metric: str) -> dict[int, float]:
        """The mean over subjects for each seed."""
        values: dict[int, list[float]] = {}
        for (seed, _), value in self.scans.get(metric, {}).items():
            if seed is not None:
                values.setdefault(seed, []).append(value)
        return {seed: fmean(found) for seed, found in values.items()}

    def mean(self, metric: str) -> float | None:
        """The mean over subjects, None without values."""
        values = self.subjects(metric)
        return fmean(values.values()) if values else None

    def of_metric(self, metric: str) -> list[Record]:
        """The records behind a metric."""
        return [record for record in self.records if record.metric == metric]


def gather_points(records: Iterable[Record]) -> list[Point]:
    """Return the points of all records that have a subject, in the order they first came.

    Of a value that was recorded twice (same design, seed and scan) the later counts. A failure is no value.
    """
    points: dict[tuple[Any, ...], Point] = {}
    for record in records:
        if not record.subject or record.kind != "measured":
            continue
        design, training = resolved(record), record.options.get("training") or {}
        data, steps = _data(record), training.get("steps")
        named = (record.method, record.variant) if not design else ()
        key = (data, json.dumps(_apart_from_steps(design), sort_keys=True), record.steps, steps, named)
        found = points.get(key)
        if found is None:
            about = (record.task, data, record.shape, record.method, record.variant, design, record.steps, steps)
            found = points[key] = Point(*about)
        _add(found, record, training.get("seed"))
    return [point for point in points.values() if any(point.scans.values())]


def _add(point: Point, record: Record, seed: int | None) -> None:
    point.records.append(record)
    point.units[record.metric] = record.unit
    scans = point.scans.setdefault(record.metric, {})
    if record.value is not None and record.status == "ok":
        scans[seed, record.subject] = float(record.value)
    else:
        scans.pop((seed, record.subject), None)


def _data(record: Record) -> str:
    """Data set and convention, but not the list of metrics: it grows with the methods, and changes no value."""
    convention = {**(record.options.get("convention") or {})}
    convention.pop("metrics", None)
    return json.dumps([record.task, record.options.get("data"), convention], sort_keys=True)


def _apart_from_steps(design: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in design.items() if name != "sampling"} | {
        "sampling": {k: v for k, v in (design.get("sampling") or {}).items() if k != "steps"}
    }


def resolved(record: Record) -> dict[str, Any]:
    """The method of a record with all of its fields; empty for what has none."""
    found = record.options.get("resolved")
    return found if isinstance(found, dict) else {}


def design_of(content: Mapping[str, Any], *, without: Sequence[str] = ()) -> str:
    """Return the axes of a resolved method as JSON, but for those that are left out; empty for none."""
    axes = {name: content[name] for name in DESIGN if name in content and name not in without}
    return json.dumps(axes, sort_keys=True) if axes else ""


def alike(one: Point, other: Point) -> bool:
    """Whether two points can be compared: one data set, one budget, one width of the network."""
    return (one.data, one.train_steps, one.width) == (other.data, other.train_steps, other.width)


def is_bridge(design: Mapping[str, Any]) -> bool:
    """Whether sampling starts from the source: every kernel but those that end in noise."""
    kernel = (design.get("kernel") or {}).get("type", "")
    return bool(kernel) and kernel != "gaussian"


def factor_text(design: Mapping[str, Any]) -> str:
    """The puzzle's factor as it stands in names of metrics: `2`, `1x2x2`; empty without a puzzle."""
    space = design.get("representation") or {}
    factor = space.get("factor") if space.get("type") == "puzzle" else None
    return "x".join(map(str, factor)) if isinstance(factor, list) else str(factor) if factor else ""


def most_evaluations(points: Iterable[Point]) -> list[Point]:
    """Of points that differ in their evaluations alone, that with the most."""
    most: dict[tuple[Any, ...], Point] = {}
    for point in points:
        key = (point.data, point.train_steps, point.label, json.dumps(_apart_from_steps(point.design), sort_keys=True))
        known = most.setdefault(key, point)
        if (point.evaluations or 0) > (known.evaluations or 0):
            most[key] = point
    return list(most.values())


def group_title(points: Sequence[Point]) -> str:
    """What points of one data set share, in words: `mri-t1t2, 3 subjects of val, 36×48×44`."""
    first = points[0]
    split = (json.loads(first.data)[1] or {}).get("split", "")
    subjects = len({s for point in points for s in point.subjects("psnr")} or {s for p in points for s in _any(p)})
    where = f"{subjects} subject{'s' if subjects != 1 else ''}" + (f" of {split}" if split else "")
    return ", ".join(filter(None, (first.task, where, "×".join(map(str, first.shape)))))


def _any(point: Point) -> set[str]:
    return {scan.partition("/")[0] for scans in point.scans.values() for _, scan in scans}
