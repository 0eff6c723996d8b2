"""Predicted against measured and published peaks."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from matplotlib.figure import Figure

from ppdm_bench.report.figures.agreement import ComparedPeak, agreement_figure, measured_pairs, published_pairs
from ppdm_bench.report.figures.style import Column
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import Missing, Shown
from ppdm_bench.report.tables.render import Heading, Line, Table
from ppdm_bench.units import gib, shape_text


def show(library: Library) -> Shown:
    """Return all pairs of allocated memory.

    Raises:
        Missing: there are none.
    """
    published = [p for p in published_pairs(library.records) if p.found.metric == "peak_allocated" and p.finished]
    pairs = [*measured_pairs(record for record in library.records if record.command == "memory"), *published]
    if not pairs:
        raise Missing(
            "peaks that were both predicted and measured or published; `ppdm-bench memory --device cpu` or "
            "benchmarks/harness/validate.sh makes them"
        )
    groups = {name: [pair for pair in pairs if _group(pair) == name] for name in dict.fromkeys(map(_group, pairs))}
    errors = {name: _summary(own) for name, own in groups.items()}
    about = (
        "Predicted peak of live tensor memory (peak_allocated) against the measured or published peak. First panel: "
        "both, with the line of equality. Second panel: relative error of the prediction; the scale is linear up to "
        "0.1 % and logarithmic beyond. "
        f"Colours: {'; '.join(f'{name} ({text})' for name, text in errors.items())}. On the CPU, prediction and "
        "measurement count the same tensors. Published peaks come from code and GPUs of third parties, with the "
        "rounding of their sources; runs published as out of memory are left out. The figure uses no images and no "
        "seeds."
    )
    records = {id(record): record for pair in pairs for record in (pair.found, pair.predicted)}

    def draw(column: Column) -> Figure:
        between = " " if column == "double" else "\n"
        return agreement_figure(
            groups,
            title="Predicted against measured or published peak of allocated memory.",
            against="measured or published",
            labels={name: f"{name}{between}({text})" for name, text in errors.items()},
            column=column,
            legend_columns=1,
        )

    return Shown(_table(pairs, library), draw, about, list(records.values()))


def _table(pairs: Sequence[ComparedPeak], library: Library) -> Table:
    headings = [
        *(Heading(name, name) for name in ("method", "variant", "shape")),
        *(Heading(name, name) for name in ("phase", "precision", "checkpointing", "kind", "origin")),
        Heading("found_bytes", "peak, GiB", gib, number=True),
        Heading("predicted_bytes", "predicted, GiB", gib, number=True),
        Heading("relative_error", "error", lambda error: f"{error:+.2%}", number=True),
    ]
    lines = []
    for pair in pairs:
        f, predicted = pair.found, pair.predicted.value or 0
        about = (f.method, f.variant, shape_text(f.shape), f.phase, f.precision, f.checkpointing, f.kind, _origin(pair))
        error = float(predicted) / float(f.value or 1) - 1
        lines.append(Line((*about, f.value, predicted, error), library.references((f, pair.predicted))))
    return Table(headings, lines)


def _origin(pair: ComparedPeak) -> str:
    """Return the device of a measurement or the source of a publication."""
    if pair.found.kind == "published":
        source = pair.found.source.split(" at ")[0].split(",")[0]
        return f"published: {source or 'source not stated'}"
    return f"measured: {pair.found.env.get('gpu') or pair.found.device.upper()}"


def _group(pair: ComparedPeak) -> str:
    """Return a coarser origin, because there are more sources than markers."""
    if pair.found.kind == "published":
        return f"published, GPU and release {'stated' if pair.stated else 'partly unstated'}"
    return _origin(pair)


def _summary(pairs: Sequence[ComparedPeak]) -> str:
    errors = [abs(pair.error) for pair in pairs]
    return f"n = {len(errors)}, median {median(errors):.2f} %, largest {max(errors):.2f} %"
