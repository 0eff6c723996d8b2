"""Predicted against measured and published peaks."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from matplotlib.figure import Figure

from ppdm_bench.grouping import grouped
from ppdm_bench.report.figures.agreement import ComparedPeak, agreement_figure, measured_pairs, published_pairs
from ppdm_bench.report.figures.style import Column
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.tables.render import Columns, Heading, Table, table_of
from ppdm_bench.units import gib, shape_text


def show(library: Library) -> FigureContent:
    """Return predicted against measured and published peaks of allocated memory."""
    published = [p for p in published_pairs(library.records) if p.found.metric == "peak_allocated" and p.finished]
    pairs = [*measured_pairs(record for record in library.records if record.command == "memory"), *published]
    if not pairs:
        raise MissingRecords(
            "peaks that were both predicted and measured or published; `ppdm-bench memory --device cpu` or "
            "benchmarks/harness/validate.sh makes them"
        )
    groups = grouped(pairs, _group)
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
    records = [record for pair in pairs for record in (pair.found, pair.predicted)]

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

    return FigureContent(_table(pairs, library), draw, about, records)


def _table(pairs: Sequence[ComparedPeak], library: Library) -> Table:
    columns: Columns[ComparedPeak] = {
        Heading("method"): lambda pair: pair.found.method,
        Heading("variant"): lambda pair: pair.found.variant,
        Heading("shape"): lambda pair: shape_text(pair.found.shape),
        Heading("phase"): lambda pair: pair.found.phase,
        Heading("precision"): lambda pair: pair.found.precision,
        Heading("checkpointing"): lambda pair: pair.found.checkpointing,
        Heading("kind"): lambda pair: pair.found.kind,
        Heading("origin"): _origin,
        Heading("found_bytes", "peak, GiB", gib, True): lambda pair: pair.found.value,
        Heading("predicted_bytes", "predicted, GiB", gib, True): lambda pair: pair.predicted.value,
        Heading("relative_error", "error", "{:+.2%}".format, True): lambda pair: pair.error / 100,
    }
    return table_of(pairs, columns, sources=lambda pair: library.references((pair.found, pair.predicted)))


def _origin(pair: ComparedPeak) -> str:
    """Return the device of a measurement or the source of a publication."""
    if pair.found.kind == "published":
        source = pair.found.source.split(" at ")[0].split(",")[0]
        return f"published: {source or 'source not stated'}"
    return f"measured: {pair.found.env.get('gpu') or pair.found.device.upper()}"


def _group(pair: ComparedPeak) -> str:
    """Return a coarser origin than :func:`_origin`, because there are more sources than markers."""
    if pair.found.kind == "published":
        return f"published, GPU and release {'stated' if pair.stated else 'partly unstated'}"
    return _origin(pair)


def _summary(pairs: Sequence[ComparedPeak]) -> str:
    errors = [abs(pair.error) for pair in pairs]
    return f"n = {len(errors)}, median {median(errors):.2f} %, largest {max(errors):.2f} %"
