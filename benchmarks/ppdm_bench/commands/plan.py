"""``ppdm-bench plan``: what can be run on a card."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppdm_bench.commands.options import (
    Start,
    asked_configurations,
    asked_sizes,
    comma_separated,
    count,
    one_of,
    read_budget,
    read_factor,
    read_option,
)
from ppdm_bench.commands.terminal import say, told, writable

if TYPE_CHECKING:
    from ppdm_bench.predictor.target import Target


def plan(
    budget: Annotated[
        str | None, typer.Option(help="Memory of the card, such as 24GB; default: the GPU at hand.")
    ] = None,
    res: Annotated[
        int | None, typer.Option(parser=count(), metavar="N", help="Cubic volumes of this size, such as 256.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Volumes of this size, D,H,W in voxels.")] = None,
    like: Annotated[Path | None, typer.Option(help="Volumes of the size of this NIfTI scan.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", help="A registered method, or module:ATTRIBUTE of your own; repeatable. Default: all."
        ),
    ] = None,
    purpose: Annotated[
        str | None, typer.Option("--for", metavar="PHASES", help="train, sample; default: every phase of a method.")
    ] = None,
    factor: Annotated[
        str | None, typer.Option(help="Puzzle factors that are asked about, such as 2,4; default: the methods' own.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16.")] = "fp32",
    checkpointing: Annotated[str, typer.Option(help="Activations recomputed: none, norm, block, conv.")] = "none",
    batch_size: Annotated[int, typer.Option(parser=count(), metavar="N", help="Volumes at once.")] = 1,
    width: Annotated[
        int | None, typer.Option(parser=count(), metavar="N", help="Channels of the finest level.")
    ] = None,
    preset: Annotated[str, typer.Option(help="matched (one U-Net for all), authors (each paper's).")] = "matched",
    start: Start = None,
    out: Annotated[Path | None, typer.Option(help="Folder for records, table and figure; default: none.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the records as one JSON array, and nothing else.")
    ] = False,
) -> None:
    """What can I run? For a budget and a size: what fits, and the largest that does."""
    capacity = read_option("--budget", read_budget, budget) if budget is not None else None
    phases = read_option("--for", comma_separated(one_of("train", "sample")), purpose) if purpose is not None else None
    factors = read_option("--factor", comma_separated(read_factor), factor) if factor is not None else []
    (size,), spacing = asked_sizes(None if res is None else str(res), shape, like)
    with redirect_stdout(sys.stderr):
        from ppdm_bench.planning.results import Plan, collect, failures, present

        settings = {
            "presets": read_option("--preset", comma_separated(str), preset),
            "factors": factors,
            "precisions": [precision],
            "checkpointing": [checkpointing],
            "width": width,
            "batch_size": batch_size,
        }
        asked = asked_configurations(method, [size], settings, start)
        card = _card(capacity)
        folder = writable(out) if out is not None else None
        records = collect(Plan(asked, phases, card, spacing))
        text, written = present(records, folder)
    if json:
        from ppdm_bench.records import write_json_array

        text = write_json_array(records)
    print(text)
    failed = failures(records)
    if written:
        raise typer.Exit(told(written, failed, sys.stderr if json else sys.stdout))
    for failure in failed:
        say(failure)
    raise typer.Exit(1 if failed else 0)


def _card(capacity: int | None) -> "Target":
    """The card that is planned for: the one at hand, with its own memory or that which was asked."""
    from ppdm_bench.planning.results import too_small
    from ppdm_bench.predictor.target import Target

    card = Target.of_this_machine()
    if capacity is None and card.capacity is None:
        raise typer.BadParameter(
            "there is no GPU here whose memory could be the budget; give one, such as 24GB", param_hint="'--budget'"
        )
    card = card if capacity is None else replace(card, capacity=capacity)
    if reason := too_small(card):
        raise typer.BadParameter(reason, param_hint="'--budget'")
    return card
