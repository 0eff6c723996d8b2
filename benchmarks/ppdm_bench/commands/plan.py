"""``ppdm-bench plan``: which methods, sizes and batches fit a card."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.requested import requested_configurations, requested_sizes
from ppdm_bench.commands.terminal import ensure_writable, notify, report_results
from ppdm_bench.commands.values import (
    comma_separated,
    integer_option,
    one_of,
    or_usage_error,
    read_budget,
    read_factor,
    read_if_given,
    read_names,
    read_option,
)

if TYPE_CHECKING:
    from ppdm_bench.predictor.target import Target


def plan(
    budget: Annotated[
        str | None, typer.Option(help="Memory that may be used, such as 24GB. Default: all memory of the card.")
    ] = None,
    gpu: options.Gpu = None,
    res: Annotated[
        int | None, integer_option("Edge of cubic volumes in voxels, such as 256. Give this, --shape or --like.")
    ] = None,
    shape: options.Shape = None,
    like: options.Like = None,
    method: options.Methods = None,
    purpose: Annotated[
        str | None,
        typer.Option("--phase", metavar="PHASES", help="Phases: train, sample; default: all phases of a method."),
    ] = None,
    factor: Annotated[str | None, typer.Option(help="Puzzle factors, such as 2,4; default: the methods' own.")] = None,
    precision: options.Precision = "fp32",
    checkpointing: options.Checkpointing = "none",
    batch_size: options.BatchSize = 1,
    sources: options.Sources = 1,
    width: options.Width = None,
    preset: options.Preset = "matched",
    start: options.Start = None,
    steps: Annotated[
        int | None,
        integer_option("Training steps: also predict their hours on --gpu, and seconds per volume. Default: none."),
    ] = None,
    columns: options.Columns = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for records, table and figure; default: write nothing.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Find what fits a card: the methods that fit at a size, and the largest volume and batch that fit."""
    chosen = read_names("--columns", columns)
    capacity = read_if_given("--budget", read_budget, budget)
    purposes = read_if_given("--phase", comma_separated(one_of("train", "sample")), purpose)
    factors = read_if_given("--factor", comma_separated(read_factor), factor) or []
    (size,), spacing = requested_sizes(None if res is None else str(res), shape, like)
    with redirect_stdout(sys.stderr):
        from ppdm_bench.devices import emulation_warning, predicted_sheet
        from ppdm_bench.planning.planning_output import CapacityPlan, PlanInterrupted, collect, failures, present

        settings = {
            "presets": read_option("--preset", comma_separated(str), preset),
            "factors": factors,
            "precisions": [precision],
            "checkpointing": [checkpointing],
            "width": width,
            "batch_size": batch_size,
            "sources": sources,
        }
        configurations = requested_configurations(method, [size], settings, start)
        card = _card(capacity, gpu)
        sheet = None if steps is None else or_usage_error(predicted_sheet, "predict", gpu, [precision])
        if card.gpu and (slow := emulation_warning(card.gpu, card.compute_capability, [precision])):
            notify(slow)
        folder = ensure_writable(out) if out is not None else None
        interrupted = False
        try:
            records = collect(CapacityPlan(configurations, purposes, card, spacing, steps=steps, sheet=sheet))
        except PlanInterrupted as stopped:
            records, interrupted = stopped.records, True
        text, written = present(records, folder, chosen) if records else ("no question was answered", [])
    code = report_results(text, records, written, failures(records), json)
    if interrupted:
        raise KeyboardInterrupt
    raise typer.Exit(code)


def _card(capacity: int | None, gpu: str | None) -> "Target":
    """Return the card to plan for: a named one or that of this machine, with all of its memory or with the budget."""
    from ppdm_bench.devices import card_of
    from ppdm_bench.planning.planning_output import too_small

    card = or_usage_error(card_of, gpu, capacity)
    if card.capacity is None:
        raise typer.BadParameter(
            'this machine has no GPU whose memory could be the budget; give a budget such as 24GB, or --gpu "RTX 4090"',
            param_hint="'--budget'",
        )
    if reason := too_small(card):
        raise typer.BadParameter(reason, param_hint="'--budget'")
    return card
