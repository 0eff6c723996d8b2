"""Scores from records of quality: the values of one configuration by metric, seed and scan.

If a subject has several scans (named ``subject/scan``), the subject's value is their mean: n counts subjects, which are
independent, and not scans. A configuration is identified by the fields of its method and not by its name, so that a
figure or a claim about bridges, or about full-3-D models, finds every such method.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, TypeVar

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.metrics import ideal, is_higher_better
from ppdm_bench.units import plural, shape_text

# The axes of a design; the other fields of a method concern its training, sampling and size.
DESIGN = ("representation", "window", "kernel", "target", "loss")

Scan = tuple[int | None, str]  # seed of the training (None if seeds are not distinguished), and name of the scan
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True)
class Scores:
    """The values of one configuration.

    Attributes:
        task, method, variant, precision: of the first record.
        data: data set and convention as JSON; equal for scores that can be compared.
        design: the resolved method; empty if nothing was trained.
        evaluations: network evaluations per volume; None without a network.
        train_steps: training steps; None without training.
        seconds: training time that determined the training steps; None if the steps were given.
        scans: values by metric and scan.
        failed: scans without a value, by metric.
        units: units by metric.
        records: the records of the values.
    """

    task: str
    data: str
    method: str
    variant: str
    precision: str
    design: Mapping[str, Any]
    evaluations: int | None
    train_steps: int | None
    seconds: float | None = None
    scans: dict[str, dict[Scan, float]] = field(default_factory=dict)
    failed: dict[str, set[Scan]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    @classmethod
    def empty_for(cls, record: Record) -> Scores:
        """Return empty scores of the configuration of a record."""
        data, design = data_and_convention(record), resolved_method(record)
        steps = (record.options.get("training") or {}).get("steps")
        seconds = (record.options.get("budgets") or {}).get("time")
        named = (record.method, record.variant, record.precision)
        return cls(record.task, data, *named, design, record.steps, steps, seconds)

    def add(self, record: Record, seed: int | None = None) -> None:
        """Add the value of a record; of two records of one scan, the later one counts."""
        scan = (seed, record.subject)
        self.records.append(record)
        self.units[record.metric] = record.unit
        values, failed = self.scans.setdefault(record.metric, {}), self.failed.setdefault(record.metric, set())
        values.pop(scan, None)
        failed.discard(scan)
        if record.value is not None and record.status == "ok":
            values[scan] = float(record.value)
        else:
            failed.add(scan)

    @property
    def label(self) -> str:
        """Method and variant."""
        return f"{self.method} {self.variant}".strip()

    @property
    def is_synthetic(self) -> bool:
        """Whether the data are phantoms; records of real scans name a manifest or a folder."""
        data = json.loads(self.data)[1]
        return not (isinstance(data, dict) and {"manifest", "targets"} & data.keys())

    @property
    def width(self) -> int | None:
        """Channels of the finest level of the network."""
        width = self.design.get("network", {}).get("width")
        return width if isinstance(width, int) else None

    @property
    def training_key(self) -> tuple[Hashable, ...]:
        """The fields that identify a training: data, budget, name, and design without the number of evaluations."""
        return self.data, self.train_steps, self.label, _design_without_steps(self.design)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the trainings."""
        return sorted({seed for scans in self.scans.values() for seed, _ in scans if seed is not None})

    def with_seeds(self, seeds: Collection[int]) -> Scores:
        """Return the scores of these seeds only."""
        scans = {
            name: {scan: v for scan, v in values.items() if scan[0] in seeds} for name, values in self.scans.items()
        }
        return replace(self, scans=scans, records=[record for record in self.records if seed_of(record) in seeds])

    def subject_means(self, metric: str) -> dict[str, float]:
        """Return the value of each subject: the mean over its scans and seeds."""
        return by_subject(self.scans.get(metric, {}))

    def means_by_seed(self, metric: str) -> dict[int, float]:
        """Return the mean over scans for each seed."""
        values = self.scans.get(metric, {}).items()
        return _means((seed, value) for (seed, _), value in values if seed is not None)

    def mean(self, metric: str) -> float | None:
        """Return the mean over subjects, None without values."""
        values = self.subject_means(metric)
        return fmean(values.values()) if values else None

    def ranked(self, metric: str) -> list[tuple[str, float]]:
        """Return all scans with their values, the best first; empty if the metric has an ideal value, such as 0."""
        if ideal(metric) is not None:
            return []
        values = [(name, value) for (_, name), value in self.scans[metric].items()]
        return sorted(values, key=lambda scan: scan[1], reverse=is_higher_better(metric))

    @property
    def ranking_metric(self) -> str:
        """The metric by which subjects are ranked: PSNR, else the first metric with values; empty if there is none."""
        return next((m for m in ("psnr", *self.scans) if self.scans.get(m) and ideal(m) is None), "")

    @property
    def ranking_value(self) -> float:
        """The mean over subjects of the ranking metric, negated if less is better; minus infinity without values."""
        mean = self.mean(self.ranking_metric)
        if mean is None:
            return float("-inf")
        return mean if is_higher_better(self.ranking_metric) else -mean

    def of_metric(self, metric: str) -> list[Record]:
        """Return the records of a metric."""
        return [record for record in self.records if record.metric == metric]


def of_common_seeds(one: Scores, other: Scores) -> tuple[Scores, Scores]:
    """Return both with their common seeds, so that both are means over the same seeds; unchanged if there are none."""
    common = {*one.seeds} & {*other.seeds}
    return (one.with_seeds(common), other.with_seeds(common)) if common else (one, other)


def by_subject(values: Mapping[Scan, float]) -> dict[str, float]:
    """Return the mean of each subject over its scans and seeds."""
    return _means((name.partition("/")[0], value) for (_, name), value in values.items())


def _means(pairs: Iterable[tuple[K, float]]) -> dict[K, float]:
    groups = grouped(pairs, lambda pair: pair[0])
    return {key: fmean(value for _, value in found) for key, found in groups.items()}


def by_configuration(records: Iterable[Record]) -> list[Scores]:
    """Return the scores of each network, training budget, number of evaluations and precision.

    They are in the order of the records; records without a subject are ignored. If scores of one label have several
    widths, their variants have the width; if they then still have several training lengths, also the number of steps.

    Raises:
        ValueError: the records are of several data sets or conventions, so that their numbers cannot be compared.
    """
    records = [record for record in records if record.subject]
    if len(settings := {data_and_convention(record) for record in records}) > 1:
        raise ValueError(
            f"the records are of {len(settings)} data sets or conventions, whose numbers cannot be compared; select "
            "the records of one, see ppdm_bench.report.scores.data_and_convention"
        )
    found: dict[tuple[object, ...], Scores] = {}
    for record in records:
        empty = Scores.empty_for(record)
        key = (record.method, record.variant, record.steps, record.precision, empty.width, empty.train_steps)
        found.setdefault(key, empty).add(record)
    by_width = _distinguished(found.values(), lambda one: f"width {one.width}" if one.width else "")
    return _distinguished(by_width, lambda one: f"{one.train_steps} training steps" if one.train_steps else "")


def with_seeds_joined(everything: Iterable[Scores]) -> list[Scores]:
    """Return the scores with those as one that differ only in the seed of the training, without the seed in the name.

    A subject then has the mean over the seeds.
    """

    def without_seed(one: Scores) -> tuple[Hashable, ...]:
        seeds = {f"s{seed_of(record)}" for record in one.records}
        variant = " ".join(word for word in one.variant.split() if word not in seeds)
        design = _design_without_steps(one.design)
        return one.method, variant, one.evaluations, one.precision, one.data, one.train_steps, design

    joined = []
    for (_, variant, *_), alike in grouped(everything, without_seed).items():
        if len(alike) > 1:
            one = replace(alike[0], variant=str(variant), scans={}, failed={}, units={}, records=[])
            for record in (record for same in alike for record in same.records):
                one.add(record, seed_of(record))
            alike = [one]
        joined += alike
    return joined


def _distinguished(everything: Collection[Scores], words: Callable[[Scores], str]) -> list[Scores]:
    """Return the scores; if scores of one label have different words, their variants have the words."""
    of_label = grouped(everything, lambda one: one.label)
    several = {label for label, same in of_label.items() if len({words(one) for one in same}) > 1}
    return [
        replace(one, variant=f"{one.variant} {words(one)}".strip()) if one.label in several else one
        for one in everything
    ]


def by_design(records: Iterable[Record]) -> list[Scores]:
    """Return the scores of each design, training budget and data set, with all seeds, in the order of the records.

    Records without a subject, records of learning curves, and scores without a value are left out. Means of several
    samples are left out if single samples were scored too: they cost a multiple of the network evaluations.
    """
    found: dict[tuple[Any, ...], Scores] = {}
    for record in records:
        if record.subject and record.kind == "measured" and not is_of_curve(record):
            one = Scores.empty_for(record)
            named = () if one.design else (one.method, one.variant)
            samples = record.options.get("samples")
            key = (one.data, _design_without_steps(one.design), one.evaluations, one.train_steps, named, samples)
            found.setdefault(key, one).add(record, seed_of(record))
    valid = {key: one for key, one in found.items() if any(one.scans.values())}
    return [one for key, one in valid.items() if key[-1] is None or (*key[:-1], None) not in valid]


def seed_of(record: Record) -> int | None:
    """Return the seed of the training; None without a training."""
    return (record.options.get("training") or {}).get("seed")


def is_of_curve(record: Record) -> bool:
    """Whether a record is a point of a learning curve (``quality --curve``)."""
    return "curve" in record.options


def data_and_convention(record: Record) -> str:
    """Return data set and convention as JSON; the text is equal for records whose numbers can be compared.

    The list of metrics is left out, because it depends on the block grids of the methods and does not change any value.
    """
    convention = {**(record.options.get("convention") or {})}
    convention.pop("metrics", None)
    return json.dumps([record.task, record.options.get("data"), convention], sort_keys=True)


def configuration_of(record: Record) -> str:
    """Return a text that is equal for scores of one configuration: its data and its options.

    The name is part of it only for existing predictions: runs are identified by their weights.
    """
    options = {name: value for name, value in record.options.items() if name not in ("convention", "files")}
    name = "" if "weights" in options else record.label
    return json.dumps([data_and_convention(record), options, name], sort_keys=True)


def _design_without_steps(design: Mapping[str, Any]) -> str:
    sampling = {name: value for name, value in (design.get("sampling") or {}).items() if name != "steps"}
    return json.dumps({**design, "sampling": sampling}, sort_keys=True)


def best_evaluations(items: Iterable[Scores], key: Callable[[Scores], Hashable]) -> list[Scores]:
    """Return for each key the scores at the best number of network evaluations; of equally good ones, the first."""
    return [max(alike, key=lambda one: one.ranking_value) for alike in grouped(items, key).values()]


def reference_of(series: Scores, everything: Sequence[Scores], label: str) -> Scores | None:
    """Return the scores of the reference label: with the same number of evaluations, else the first."""
    if series.label == label:
        return None
    candidates = [other for other in everything if other.label == label]
    return next((one for one in candidates if one.evaluations == series.evaluations), next(iter(candidates), None))


def names_of(everything: Sequence[Scores]) -> list[str]:
    """Return distinct names: the label, with evaluations and precision if scores of one label differ in them."""
    names = []
    for series in everything:
        same = [other for other in everything if other.label == series.label]
        words = [series.label]
        if len({other.evaluations for other in same}) > 1:
            words.append(plural(series.evaluations or 0, "evaluation"))
        if len({other.precision for other in same}) > 1:
            words.append(series.precision)
        names.append(", ".join(words))
    return names


def unit_in(everything: Sequence[Scores], metric: str) -> str:
    """Return the unit of a metric, from the first scores that have the metric."""
    return next((series.units[metric] for series in everything if metric in series.units), "")


def resolved_method(record: Record) -> dict[str, Any]:
    """Return the method of a record with all of its fields; empty if the record has none."""
    found = record.options.get("resolved")
    return found if isinstance(found, dict) else {}


def design_of(content: Mapping[str, Any], *, without: Sequence[str] = ()) -> str:
    """Return the axes of a resolved method as JSON, except those in ``without``; empty if it has no axes."""
    axes = {name: content[name] for name in DESIGN if name in content and name not in without}
    return json.dumps(axes, sort_keys=True) if axes else ""


def network_text(design: Mapping[str, Any]) -> str:
    """Return the architecture of a network as JSON, without its precision, checkpointing and memory layout."""
    network = {**(design.get("network") or {})}
    for name in ("precision", "checkpointing", "channels_last", "compile"):
        network.pop(name, None)
    return json.dumps(network, sort_keys=True)


def of_common_network(items: Iterable[T], of: Callable[[T], Scores]) -> list[T]:
    """Return the items whose scores have the network that most of them share."""
    return max(grouped(items, lambda item: network_text(of(item).design)).values(), key=len, default=[])


def is_comparable(one: Scores, other: Scores) -> bool:
    """Whether two scores can be compared: same data set, same budget of steps or time, same width of the network."""
    same_budget = one.train_steps == other.train_steps or (one.seconds is not None and one.seconds == other.seconds)
    return same_budget and (one.data, one.width) == (other.data, other.width)


def is_bridge(design: Mapping[str, Any]) -> bool:
    """Whether sampling starts from the source, as for every kernel except Gaussian diffusion."""
    kernel = (design.get("kernel") or {}).get("type", "")
    return bool(kernel) and kernel != "gaussian"


def factor_text(design: Mapping[str, Any]) -> str:
    """Return the puzzle factor as in the names of metrics: `2`, `1x2x2`; empty without a puzzle."""
    space = design.get("representation") or {}
    factor = space.get("factor") if space.get("type") == "puzzle" else None
    return "x".join(map(str, factor)) if isinstance(factor, list) else str(factor) if factor else ""


def seam_metric(factor: str, measure: str) -> str:
    """Return the metric of seams on the block grid of this factor; empty if the factor makes no blocks."""
    return f"{measure}_r{factor}" if factor not in ("", "1", "1x1x1") else ""


def group_title(points: Sequence[Scores]) -> str:
    """Return the data of scores in words, for a title: `mri-t1t2, 3 subjects of val, 36×48×44`."""
    first = points[0]
    split = (json.loads(first.data)[1] or {}).get("split", "")
    metrics = {metric for point in points for metric in point.scans}
    names = {s for point in points for s in point.subject_means("psnr")}
    names = names or {s for point in points for metric in metrics for s in point.subject_means(metric)}
    where = plural(len(names), "subject") + (f" of {split}" if split else "")
    size = size_text(record for point in points for record in point.records)
    return ", ".join(filter(None, (first.task, where, size)))


def size_text(records: Iterable[Record]) -> str:
    """Return the size of the volumes in words: `36×48×44`, or `several sizes`; empty if no record has a shape."""
    shapes = {record.shape for record in records if record.shape}
    return "several sizes" if len(shapes) > 1 else "".join(map(shape_text, shapes))


def seeds_text(scores: Iterable[Scores]) -> str:
    """Return the seeds of scores in words: `seeds 0, 1`."""
    seeds = sorted({seed for one in scores for seed in one.seeds})
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def by_origin(texts: Iterable[tuple[Scores, str]]) -> dict[str, list[str]]:
    """Return texts about scores by the origin of their data, `phantoms` and `own data`, each text once."""
    found: dict[str, dict[str, None]] = {"phantoms": {}, "own data": {}}
    for scores, text in texts:
        found["phantoms" if scores.is_synthetic else "own data"][text] = None
    return {origin: list(distinct) for origin, distinct in found.items() if distinct}
