"""Compare predicted with published times: a table of all values, the errors of both halves, and a figure.

    python benchmarks/harness/time_truth.py results/validation        write timings.csv, timings.md and a figure
    python benchmarks/harness/time_truth.py --fit                     print the constants fitted to the first half

Every published step is rebuilt and traced without a GPU, which takes about four minutes. `ppdm_bench.timing.published`
defines how the values are divided into halves. The constants in `ppdm_bench.predictor.timing` are those that ``--fit``
prints. As a harder test, each source is also predicted by constants that were fitted without it.
"""

import argparse
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median, quantiles

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ppdm.atomic_io import write_together
from ppdm_bench.grouping import grouped
from ppdm_bench.predictor.timing import FITTED, INTERVAL, LIMITS, RATIO, Constants, Duration, Limit
from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.timing.published import PublishedKernels, can_be_rebuilt, halves, read_timings, source_of
from ppdm_bench.units import shape_text

# Start value, lower and upper bound of each constant. The start values are typical ones, chosen before any fit.
BOUNDS = {
    "full half": (1.6, 1.1, 6),
    "full tf32": (1.6, 1.1, 6),
    "full fp32": (1.5, 1.1, 6),
    "narrow half": (20, 0.1, 200),
    "narrow tf32": (20, 0.1, 200),
    "volta": (1, 0.5, 2),
    "turing": (1, 0.5, 2),
    "input": (1, 0.5, 3),
    "weight": (1, 0.5, 3),
    "memory": (1.3, 1.05, 4),
    "copy": (1.5, 1.05, 5),
    "launch": (1e-5, 2e-6, 6e-5),
}

# Weight of the logarithmic distance of a constant from its start value, relative to one published value. Of 0.05, 0.15,
# 0.3, 0.5, 1, 1.5, 2, 3 and 5, it has the lowest mean error on the first half if each source is predicted without it.
PRIOR = 1.5
OUTLIER = 0.2  # logarithmic error above which the weight of a value decreases

Array = NDArray[np.float64]
Predict = Callable[[Record, Constants], Duration]


@dataclass(frozen=True)
class Judged:
    """One published value and its predictions.

    Attributes:
        record: the published value.
        half: ``fit`` or ``judge``.
        predicted: prediction with the constants of the package.
        apart: seconds predicted with constants fitted without the source of this value.
    """

    record: Record
    half: str
    predicted: Duration
    apart: float

    @property
    def published(self) -> float:
        """Published seconds."""
        return float(self.record.value or 0)

    @property
    def ratio(self) -> float:
        """Predicted divided by published time."""
        return self.predicted.seconds / self.published

    @property
    def error(self) -> float:
        """Absolute relative error of the prediction."""
        return abs(self.ratio - 1)

    @property
    def apart_ratio(self) -> float:
        """Time predicted without the source of the value, divided by the published time."""
        return self.apart / self.published


def main() -> None:
    """Write the table and the figure, or print fitted constants."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("results/validation"), help="folder for the files")
    parser.add_argument("--fit", action="store_true", help="print the constants fitted to the first half, and stop")
    arguments = parser.parse_args()
    published, records = PublishedKernels(), read_timings()
    fitting, _ = halves(records)
    if arguments.fit:
        print(fitted(published.predict, fitting))
        return
    judged = judge(published.predict, records)
    place = arguments.out / "timings.csv"
    write_together({place: as_csv(judged).encode()})
    present(place, records, arguments.out)
    print(f"written: {place}, timings.md, timings.png, timings.pdf")


def present(path: Path, records: Sequence[Record], out: Path) -> None:
    """Write page and figure from the CSV file of all values."""
    judged = list(read_judged(path, records))
    page = table(judged, [record for record in records if not can_be_rebuilt(record)])
    write_together({out / "timings.md": page.encode()})
    style.save(figure(judged), out / "timings")


def read_judged(path: Path, records: Sequence[Record]) -> Iterator[Judged]:
    """Yield the predictions in the CSV file, with their published records."""
    published = {record.config_id: record for record in records}
    for row in csv.DictReader(path.read_text().splitlines()):
        parts: dict[Limit, float] = {name: float(row[name]) for name in LIMITS}
        predicted = Duration(float(row["predicted_seconds"]), parts)
        yield Judged(published[row["config_id"]], row["half"], predicted, float(row["seconds_without_source"]))


def judge(predict: Predict, records: Sequence[Record]) -> list[Judged]:
    """Predict every value that can be rebuilt, with the constants of the package and without its own source."""
    fitting, judging = halves(records)
    sources = dict.fromkeys(source_of(record) for record in [*fitting, *judging])
    without = {s: fitted(predict, [r for r in fitting if source_of(r) != s]) for s in sources}
    return [
        Judged(record, half, predict(record, FITTED), predict(record, without[source_of(record)]).seconds)
        for half, those in (("fit", fitting), ("judge", judging))
        for record in those
    ]


def fitted(predict: Predict, records: Sequence[Record]) -> Constants:
    """Fit the constants to published values by least squares of logarithms, with less weight for outliers."""
    start, least, most = (np.array(column) for column in zip(*BOUNDS.values(), strict=True))
    values = np.array([float(record.value or 0) for record in records])

    def residuals(guess: Array) -> Array:
        constants = constants_of(guess)
        found = np.array([predict(record, constants).seconds for record in records])
        return np.concatenate([_soft_residuals(np.log(found / values)), PRIOR * np.log(guess / start)])

    found = least_squares(residuals, start, bounds=(least, most), x_scale=start)
    return constants_of(found.x)


def _soft_residuals(residuals: Array) -> Array:
    """Transform errors so that their squares grow only linearly above `OUTLIER`."""
    square = 2 * (np.sqrt(1 + (residuals / OUTLIER) ** 2) - 1)
    return OUTLIER * np.sign(residuals) * np.sqrt(square)


def constants_of(guess: Array) -> Constants:
    """Return constants from numbers in the order of `BOUNDS`."""
    value = dict(zip(BOUNDS, map(float, guess), strict=True))
    return replace(
        FITTED,
        full={kind: value[f"full {kind}"] for kind in ("half", "tf32", "fp32")},
        narrow={"half": value["narrow half"], "tf32": value["narrow tf32"], "fp32": 0.0},
        generation={(7, 0): value["volta"], (7, 5): value["turing"]},
        stage={"forward": 1.0, "input": value["input"], "weight": value["weight"]},
        memory=value["memory"],
        copy=value["copy"],
        launch=value["launch"],
    )


def ratios(judged: Sequence[Judged]) -> list[float]:
    """Errors of the ratio of two values of one source on the same card, with equal precision and software."""
    return [abs(a.ratio / b.ratio - 1) for a, b in comparable(judged)]


def comparable(judged: Sequence[Judged]) -> Iterator[tuple[Judged, Judged]]:
    """Pairs of values of one source on the same card, with equal precision and software."""

    def place(one: Judged) -> tuple[str, ...]:
        r = one.record
        return source_of(r), str(r.env["gpu"]), r.precision, str(r.env["torch"])

    for group in grouped(judged, place).values():
        yield from combinations(group, 2)


def ratio_interval(judged: Sequence[Judged]) -> float:
    """Factor of error for 80 % of the published ratios, each source predicted by constants fitted without it."""
    halves = ([one for one in judged if one.half == half] for half in ("fit", "judge"))
    residuals = [abs(np.log(a.apart_ratio / b.apart_ratio)) for half in halves for a, b in comparable(half)]
    return float(np.exp(np.quantile(residuals, 0.8)))


def interval(judged: Sequence[Judged]) -> tuple[float, float]:
    """10 % and 90 % quantiles of published / predicted, each source predicted by constants fitted without it."""
    found = quantiles((one.published / one.apart for one in judged), n=10)
    return found[0], found[-1]


def table(judged: Sequence[Judged], left_out: Sequence[Record]) -> str:
    """Return the page: errors by half and source, all values, and the values that could not be rebuilt."""
    (low, high), apart = interval(judged), ratio_interval(judged)
    lines = [
        "# Predicted times against published ones",
        "",
        "| source | half | values | median error | 90 % of errors below | bias | median error without the source |",
        "|---|---|---:|---:|---:|---:|---:|",
        *_summary(judged),
        "",
        *_of_ratios(judged),
        f"Interval of a prediction: published / predicted is between {low:.2f} and {high:.2f} for eight of ten values, "
        f"when each source is predicted by constants fitted without it (in the code: {INTERVAL[0]} to {INTERVAL[1]}).",
        "",
        f"Interval of a ratio: eight of ten published ratios on one card are within a factor of {apart:.2f} of the "
        f"predicted ones, in the same way (in the code: {RATIO}).",
        "",
        "| source | network | size | batch | precision | card | PyTorch | half | published, s | predicted, s | error "
        "| limited by |",
        "|---|---|---|---:|---|---|---|---|---:|---:|---:|---|",
        *map(_line, judged),
        "",
        "Published values that could not be rebuilt, and neither fit nor judge:",
        "",
        *(f"- {r.method}: {r.options['read']}. {r.options['includes']}. {r.source}" for r in left_out),
    ]
    return "\n".join(lines) + "\n"


def _summary(judged: Sequence[Judged]) -> Iterator[str]:
    for half in ("fit", "judge"):
        own = [one for one in judged if one.half == half]
        for source, those in {"all": own, **grouped(own, lambda one: source_of(one.record))}.items():
            errors = [one.error for one in those]
            most = quantiles(errors, n=10)[-1] if len(errors) > 1 else errors[0]
            cells = [source, half, str(len(those)), f"{median(errors):.0%}", f"{most:.0%}"]
            bias, apart = median(one.ratio for one in those), median(abs(one.apart_ratio - 1) for one in those)
            yield f"| {' | '.join([*cells, f'{bias:.2f}', f'{apart:.0%}'])} |"


def _of_ratios(judged: Sequence[Judged]) -> Iterator[str]:
    for half in ("fit", "judge"):
        found = ratios([one for one in judged if one.half == half])
        within = sum(x <= 0.12 for x in found) / len(found)
        yield (
            f"Ratios of two sizes or networks on one card, half *{half}*: {len(found)} pairs, median error "
            f"{median(found):.0%}, {within:.0%} of them within 12 %."
        )
        yield ""


def _line(one: Judged) -> str:
    r = one.record
    cells = [
        source_of(r),
        f"{r.method} {r.variant}".strip(),
        shape_text(r.shape),
        str(r.batch_size),
        r.precision,
        str(r.env["gpu"]),
        str(r.env["torch"]),
        one.half,
        f"{r.value:.4g}",
        f"{one.predicted.seconds:.3g}",
        f"{one.ratio - 1:+.0%}",
        one.predicted.limit,
    ]
    return f"| {' | '.join(cells)} |"


def as_csv(judged: Sequence[Judged]) -> str:
    """Return all values as CSV, with their predictions and the parts of the predicted time."""
    text = io.StringIO()
    names = ["config_id", "source", "method", "variant", "shape", "batch_size", "precision", "gpu", "torch", "half"]
    numbers = ["published_seconds", "predicted_seconds", *LIMITS, "seconds_without_source"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *numbers])
    for one in judged:
        r, predicted = one.record, one.predicted
        values = [r.value, predicted.seconds, *(predicted.parts[name] for name in LIMITS), one.apart]
        text_cells = [r.config_id, source_of(r), r.method, r.variant, shape_text(r.shape), r.batch_size, r.precision]
        writer.writerow([*text_cells, r.env["gpu"], r.env["torch"], one.half, *(f"{x:.5g}" for x in values)])
    return text.getvalue()


def figure(judged: Sequence[Judged]) -> Figure:
    """Plot predicted against published seconds of the second half, with hollow points: nothing was measured here."""
    drawn = style.new_figure("single", 3.2)
    axes = drawn.subplots()
    judging = [one for one in judged if one.half == "judge"]
    of_source = grouped(judging, lambda one: source_of(one.record))
    looks = style.markers(of_source)
    for source, those in of_source.items():
        x, y = [one.published for one in those], [one.predicted.seconds for one in those]
        style.hollow_points(axes, x, y, looks[source])
    seen = [x for one in judging for x in (one.published, one.predicted.seconds)]
    ends = [min(seen) / 2, 2 * max(seen)]
    axes.plot(ends, ends, color="0.4", linewidth=0.8)
    axes.fill_between(ends, [0.8 * x for x in ends], [1.2 * x for x in ends], color="0.9", linewidth=0)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    style.plain_axes(axes, "both", "published, s", "predicted, s")
    style.legend(drawn, [style.points_entry(source, looks[source], fillstyle="none") for source in looks], 1)
    return drawn


if __name__ == "__main__":
    main()
