"""``ppdm-bench speed``: seconds per training step and per volume."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.requested import requested_configurations, requested_settings, requested_sizes
from ppdm_bench.commands.terminal import locked_folder, notify, report_results, with_earlier_records
from ppdm_bench.commands.values import (
    comma_separated,
    one_of,
    or_usage_error,
    read_evaluations,
    read_names,
    read_option,
    seconds_option,
)

if TYPE_CHECKING:
    from ppdm_bench.predictor.cards import Sheet
    from ppdm_bench.predictor.target import Target


def speed(
    res: options.Res = None,
    shape: options.Shape = None,
    like: options.Like = None,
    method: options.Methods = None,
    factor: options.Factors = "2,4,8",
    phase: Annotated[str, typer.Option(help="Phases: train, sample.")] = "train,sample",
    evaluations: Annotated[
        str | None,
        typer.Option(help="Network evaluations per volume; default: 1,4,10,own, where own means the method's number."),
    ] = None,
    precision: options.Precision = "fp32",
    checkpointing: options.Checkpointing = "none",
    batch_size: options.BatchSize = 1,
    sources: options.Sources = 1,
    width: options.Width = None,
    preset: options.Preset = "matched",
    vary: options.Variations = None,
    start: options.Start = None,
    device: Annotated[
        Literal["auto", "cuda", "cpu", "predict"],
        typer.Option(help="Device; auto: a GPU if there is one; predict: predict the times for the card of --gpu."),
    ] = "auto",
    gpu: options.Gpu = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few repetitions and 1,4 network evaluations: rough times, not a result.")
    ] = False,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Also time what is predicted not to fit the GPU. Default: skip it.")
    ] = False,
    timeout: Annotated[float, seconds_option("Time limit for one phase of one configuration, in seconds.")] = 600,
    columns: options.Columns = None,
    out: options.Results = Path("runs/speed"),
    json: options.Json = False,
) -> None:
    """Time training steps and volumes. Run the same command again to add what is missing."""
    chosen = read_names("--columns", columns)
    phases = read_option("--phase", comma_separated(one_of("train", "sample")), phase)
    evaluations = ("1,4" if quick else "1,4,10,own") if evaluations is None else evaluations
    counts = read_option("--evaluations", comma_separated(read_evaluations), evaluations)
    sizes, spacing = requested_sizes(res, shape, like)
    settings = requested_settings(preset, factor, precision, checkpointing, width, batch_size, sources)
    with redirect_stdout(sys.stderr):  # a user's own method may print
        from ppdm_bench.timing.clock import FULL, QUICK
        from ppdm_bench.timing.command import TimingPlan
        from ppdm_bench.timing.timing_output import collect, failures, present

        configurations = requested_configurations(method, sizes, settings, start, vary)
        where, sheet, card = _device_and_card(device, gpu, [one.precision for one in configurations], no_gate)
        protocol = QUICK if quick else FULL
        plan = TimingPlan(configurations, phases, where, counts, protocol, spacing, timeout, card, sheet)
        with locked_folder(out) as folder:
            if quick and sheet is None:
                often = f"{protocol.repetitions} repetitions or {protocol.seconds:g} s"
                notify(f"quick: {often}; these are rough times, not a result")
            records = collect(plan, folder)
            text, written = present(with_earlier_records(records, folder), folder, chosen)
    raise typer.Exit(report_results(text, records, written, failures(records), json))


def _device_and_card(
    device: str, gpu: str | None, precisions: Sequence[str], no_gate: bool
) -> tuple[str, "Sheet | None", "Target | None"]:
    """Return the measuring device, the data sheet for a prediction, and the card whose memory each case must fit."""
    from ppdm_bench.devices import predicted_sheet, training_device
    from ppdm_bench.predictor.cards import card_named
    from ppdm_bench.predictor.target import Target

    sheet = or_usage_error(predicted_sheet, device, gpu, precisions)
    if sheet is not None:
        card = card_named(sheet.name)
        return "predict", sheet, None if no_gate or card is None else card.target()
    where = training_device(device)
    return where, None, Target.of_this_machine() if where == "cuda" and not no_gate else None
