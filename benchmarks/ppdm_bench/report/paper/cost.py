"""Quality of a configuration with its cost: the peak memory, or the time per volume, of the same network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.figures.capacity import cubic_rows, of_largest_size, setting_with_most_sizes
from ppdm_bench.report.figures.names import plain_label
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import MissingRecords
from ppdm_bench.report.rows import PeakRow
from ppdm_bench.report.scores import Scores, factor_text, network_text, resolved_method
from ppdm_bench.units import GIB

METRIC = "psnr"


@dataclass(frozen=True)
class CostPoint:
    """A point of the figure: quality and cost of one configuration.

    Attributes:
        scores: the quality.
        cost: value on the horizontal axis.
        cost_record: the record of the cost; None for network evaluations.
    """

    scores: Scores
    cost: float
    cost_record: Record | None = None

    @property
    def kind(self) -> str:
        """Kind of the cost, measured or predicted."""
        return self.cost_record.kind if self.cost_record else "measured"

    @property
    def device(self) -> str:
        """The device of a time; empty for network evaluations."""
        return _device(self.cost_record) if self.cost_record else ""

    @property
    def cost_shape(self) -> tuple[int, ...]:
        """The volume size of the cost; empty if it does not depend on one, or is that of the scored volumes."""
        return self.cost_record.shape if self.cost_record else ()

    @property
    def records(self) -> list[Record]:
        """The records of quality and cost."""
        return [*self.scores.of_metric(METRIC), *filter(None, [self.cost_record])]

    @property
    def quality(self) -> float:
        """Mean over subjects."""
        return self.scores.mean(METRIC) or 0.0

    @property
    def name(self) -> str:
        """Method and representation, as written in the figure."""
        variant = self.scores.variant.replace("default", "").strip()
        factor = factor_text(self.scores.design)
        return plain_label(f"{self.scores.method} {variant or (factor and f'r={factor}')}".strip())

    @property
    def space(self) -> str:
        """The fields on which the cost depends as JSON: method, representation and window."""
        return _space(self.scores.method, self.scores.design)

    @property
    def curve(self) -> str:
        """The fields that points of one curve share: a design with a training budget."""
        p = self.scores
        fields = [p.label, p.train_steps, p.design.get("kernel"), p.design.get("loss"), p.design.get("target")]
        return json.dumps(fields)


def trained_points(library: Library) -> list[Scores]:
    """Return the scores of trained methods.

    Raises:
        MissingRecords: there are none.
    """
    points = [p for p in library.points if p.design and p.subject_means(METRIC)]
    if not points:
        raise MissingRecords("quality of trained methods (psnr by subject); `ppdm-bench quality` makes it")
    return points


def rows_of_largest_cube(library: Library) -> list[PeakRow]:
    """Return the rows of memory of the largest cube, in the setting with the most sizes; empty if there are none."""
    return of_largest_size(setting_with_most_sizes(cubic_rows(library.records), for_curves=False))


def with_largest_peaks(points: Sequence[Scores], rows: Sequence[PeakRow]) -> list[CostPoint]:
    """Return the points whose memory is known, with the largest peak over all phases, data set by data set.

    If every point of a data set has a record of its own network, the memory is that of these networks; otherwise it is
    that of the first network with the same method, representation and window.
    """
    own: dict[str, Record] = {}
    first: dict[str, Record] = {}
    peaks = [row.records[phase, "peak_allocated"] for row in rows if (phase := row.largest_phase())]
    for method, peak in [*((peak.method, peak) for peak in peaks), *(("", peak) for peak in peaks)]:
        design = resolved_method(peak)
        own.setdefault(_space(method, design) + network_text(design), peak)
        first.setdefault(_space(method, design), peak)
    found: dict[int, Record] = {}
    for same in grouped(points, lambda point: point.data).values():
        exact, near = [], []
        for point in same:
            names = [_space(method, point.design) for method in (point.method, "")]
            exact += [(id(point), own[key]) for name in names if (key := name + network_text(point.design)) in own][:1]
            near += [(id(point), first[name]) for name in names if name in first][:1]
        found |= exact if len(exact) == len(same) else near
    known = [(point, found[id(point)]) for point in points if id(point) in found]
    return [CostPoint(point, (peak.value or 0.0) / GIB, peak) for point, peak in known]


def with_times_of_one_device(library: Library, points: Sequence[Scores]) -> list[CostPoint]:
    """Return the points whose time per volume is known, for the device and size with the most of them.

    Of equally many, measured times are preferred, then large volumes, whose time matters most. Empty if there are none.
    """
    times = [r for r in library.records if r.metric == "volume_seconds" and r.status == "ok" and r.value]
    alike = grouped(times, lambda record: (record.kind, _device(record), record.shape))
    timed = {key: _with_times(points, same) for key, same in alike.items()}
    best = max(timed, key=lambda key: (len(timed[key]), key[0] == "measured", key[2]), default=None)
    return [] if best is None else timed[best]


def _device(record: Record) -> str:
    return record.gpu or f"{record.device}, {record.env.get('threads')} threads"


def undominated(points: Sequence[CostPoint]) -> list[CostPoint]:
    """Return the points for which no other point is better in cost and quality, the cheapest first."""
    best: list[CostPoint] = []
    for point in sorted(points, key=lambda s: (s.cost, -s.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def _with_times(points: Sequence[Scores], times: Sequence[Record]) -> list[CostPoint]:
    """Return the points for whose network there is a time; all `times` have one volume size."""
    found: dict[tuple[str, str, int | None], Record] = {}
    for record in times:
        data = "" if record.shape else _data(record.task, record.options.get("data"))
        design = resolved_method(record)
        found[data, _space(record.method, design) + network_text(design), record.steps] = record
    sized = bool(times[0].shape)
    cost_points = []
    for point in points:
        data = "" if sized else _data(*json.loads(point.data)[:2])
        space = _space(point.method, point.design) + network_text(point.design)
        timed = found.get((data, space, point.evaluations))
        if timed is not None and timed.value is not None:
            cost_points.append(CostPoint(point, float(timed.value), timed))
    return cost_points


def _space(method: str, design: Mapping[str, Any]) -> str:
    """Return the fields on which memory and time depend at one size: method, representation and window."""
    return json.dumps([method, design.get("representation"), (design.get("window") or {}).get("type")], sort_keys=True)


def _data(task: str, data: Any) -> str:
    return json.dumps([task, data], sort_keys=True)
