"""Rows from records of speed, one per configuration: times per training step, and per volume by evaluations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import quantiles

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.rows import PeakRow, settings_of
from ppdm_bench.report.scores import resolved_method

_TIMES = ("step_seconds", "volume_seconds")
_ESTIMATE = "volume_seconds_estimate"
_FIRST = "first_call_seconds"
_COUNTED = ("step_flops", "volume_flops")


@dataclass(frozen=True)
class Timing:
    """The time of a training step, or of a volume with one number of network evaluations.

    Attributes:
        record: the measured time, or the reason why there is none.
        flops: number of floating-point operations.
        share: rate relative to that of matrix products, from 0 to 1.
        estimate: the record of an extrapolated time, if the measurement did not finish.
    """

    record: Record
    flops: float | None = None
    share: float | None = None
    estimate: Record | None = None

    @property
    def seconds(self) -> float | None:
        """The median over repetitions; None if the measurement did not finish."""
        return self.record.value if self.record.status == "ok" else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The first and the third quartile of the repetitions."""
        if self.seconds is None or len(self.record.samples) < 2:
            return None
        first, _, third = quantiles(self.record.samples, n=4, method="inclusive")
        return first, third

    @property
    def is_predicted(self) -> bool:
        """Whether the time is predicted for a card."""
        return self.record.kind == "predicted"

    @property
    def interval(self) -> tuple[float, float] | None:
        """The range in seconds in which a predicted time is expected; None for a measured time."""
        predicted = self.record.options.get("predicted_time") if self.is_predicted else None
        return (predicted["interval"][0], predicted["interval"][1]) if predicted and self.seconds is not None else None

    @property
    def parts(self) -> dict[str, float]:
        """Shares of a predicted time by what limits them; empty for a measured time."""
        predicted = self.record.options.get("predicted_time") if self.is_predicted else None
        if not predicted or not self.seconds:
            return {}
        return {name: seconds / self.seconds for name, seconds in predicted["parts"].items()}

    @property
    def rate(self) -> float | None:
        """Operations per second."""
        return self.flops / self.seconds if self.flops and self.seconds else None


@dataclass
class TimingRow:
    """The times of one configuration.

    Attributes:
        configuration: name and settings, as a row without records.
        own: the method's own number of network evaluations per volume, if known.
        repetitions: the requested minimum number; None if the records do not have it.
        step: time of the training step, if requested.
        volumes: time per volume by network evaluations, ascending.
        ceilings: rates of matrix products, one record per process.
        firsts: seconds of the first call by phase, which include the compilation of the network; older records have
            none.
    """

    configuration: PeakRow
    own: int | None
    repetitions: int | None
    step: Timing | None = None
    volumes: dict[int, Timing] = field(default_factory=dict)
    ceilings: list[Record] = field(default_factory=list)
    firsts: dict[str, float] = field(default_factory=dict)

    @property
    def timings(self) -> list[tuple[str, int | None, Timing]]:
        """Phase, evaluations and time of each measurement."""
        steps = [("train", None, self.step)] if self.step else []
        return [*steps, *(("sample", k, timing) for k, timing in self.volumes.items())]


def gather_times(records: Iterable[Record]) -> list[TimingRow]:
    """Return the times of each configuration, in the order of the records; other records are ignored.

    Of two records of one measurement, the later one counts.

    Raises:
        ValueError: no record has a time.
    """
    metrics = (*_TIMES, _ESTIMATE, _FIRST, *_COUNTED, "flops_share", "matmul_flops_per_second")
    mine = (record for record in records if record.metric in metrics)
    groups = grouped(mine, lambda record: (record.method, record.variant, *settings_of(record).values())).values()
    found = [_timing_row(group) for group in groups if any(record.metric in _TIMES for record in group)]
    if not found:
        raise ValueError("there is nothing to show: no record has a time (metric step_seconds or volume_seconds)")
    return found


def _timing_row(group: list[Record]) -> TimingRow:
    first = group[0]
    configuration = PeakRow("measured", first.method, first.variant, settings_of(first), {})
    steps = (resolved_method(first).get("sampling") or {}).get("steps")
    own = steps if isinstance(steps, int) else None
    row = TimingRow(configuration, own, first.options.get("protocol", {}).get("repetitions"))
    latest = {(record.metric, record.steps): record for record in group}
    for (metric, steps), record in sorted(latest.items(), key=lambda item: item[0][1] or 0):
        if metric in _TIMES:
            timing = _timing(record, latest)
            if steps is None and metric == "step_seconds":
                row.step = timing
            elif steps is not None:
                row.volumes[steps] = timing
    row.firsts = {r.phase: r.value for r in group if r.metric == _FIRST and r.value is not None}
    row.ceilings = [r for r in group if r.metric == "matmul_flops_per_second" and r.value]
    return row


def _timing(record: Record, latest: dict[tuple[str, int | None], Record]) -> Timing:
    def value(metric: str) -> float | None:
        found = latest.get((metric, record.steps))
        return found.value if found and record.status == "ok" else None

    flops = value("step_flops" if record.metric == "step_seconds" else "volume_flops")
    estimate = latest.get((_ESTIMATE, record.steps)) if record.status != "ok" else None
    return Timing(record, flops, value("flops_share"), estimate)
