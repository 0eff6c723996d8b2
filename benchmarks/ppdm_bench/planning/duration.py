"""Predicted duration of the configurations that fit on a card: hours of training and seconds per volume."""

from collections.abc import Iterator, Sequence
from typing import Any

from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.memory.workload import fault
from ppdm_bench.predictor.cards import Sheet
from ppdm_bench.predictor.timing import Duration
from ppdm_bench.records import Record, config_id
from ppdm_bench.report.tables.render import Heading, Table, table_of
from ppdm_bench.timing.prediction import described_time, step_duration, volume_durations
from ppdm_bench.units import significant

HOURS, VOLUME = "training_hours", "volume_seconds"
_METRICS = {"train": HOURS, "sample": VOLUME}


def durations(fitting: Sequence[tuple[Configuration, str]], steps: int, sheet: Sheet) -> Iterator[Record]:
    """Predict the duration of each configuration and phase that fits on the card.

    Args:
        fitting: configurations with their phase; only the phases ``train`` and ``sample`` have a duration.
        steps: number of training steps.
        sheet: data sheet of the card.
    """
    for configuration, phase in fitting:
        if phase in _METRICS:
            yield _record(configuration, phase, steps, sheet)


def _record(configuration: Configuration, phase: str, steps: int, sheet: Sheet) -> Record:
    options = configuration.describe() | {"plan": {"card": sheet.name, "steps": steps}}
    common: dict[str, Any] = {
        "config_id": config_id(options),
        "command": "plan",
        **configuration.fields(),
        "phase": phase,
        "metric": _METRICS[phase],
        "kind": "predicted",
        "device": "cuda",
        "env": environment() | {"target_gpu": sheet.name},
    }
    evaluations = configuration.resolve().sampling.steps
    try:
        if phase == "train":
            step = step_duration(configuration, sheet)
            found, unit, count = Duration.combined([(steps / 3600, step)]), "h", None
        else:
            found, unit, count = volume_durations(configuration, sheet, [evaluations])[evaluations], "s", evaluations
    except Exception as error:  # the code of a method can raise any exception
        return Record(status="error", reason=fault(error), options=options, **common)
    options_with_time = options | {"predicted_time": described_time(found)}
    return Record(value=found.seconds, unit=unit, steps=count, stat="model", n=1, options=options_with_time, **common)


def durations_of(records: Sequence[Record]) -> list[Record]:
    """Select the predicted durations from the records."""
    return [record for record in records if record.metric in _METRICS.values() and record.status == "ok"]


def duration_table(records: Sequence[Record]) -> Table | None:
    """Return a table with one row per configuration with a predicted duration; None if there is none."""
    durations_found = durations_of(records)
    rows = list(dict.fromkeys((record.label, record.shape) for record in durations_found))

    def cell(row: tuple[Any, ...], metric: str) -> str | None:
        record = next((r for r in durations_found if (r.label, r.shape) == row and r.metric == metric), None)
        if record is None or record.value is None:
            return None
        low, high = record.options["predicted_time"]["interval"]
        return f"{significant(record.value)} ({significant(low)} to {significant(high)})"

    if not rows:
        return None
    plan = durations_found[0].options["plan"]
    note = (
        f"Predicted for {plan['card']}: training for {plan['steps']:,} steps, and a volume with the method's own "
        "number of evaluations. In brackets: the range in which eight of ten published timings lie."
    )
    return table_of(
        rows,
        {
            Heading("method"): lambda row: row[0],
            Heading(HOURS, "hours of training", note=note): lambda row: cell(row, HOURS),
            Heading(VOLUME, "s/volume"): lambda row: cell(row, VOLUME),
        },
    )
