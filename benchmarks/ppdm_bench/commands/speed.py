"""``ppdm-bench speed``: how long a training step takes, and a volume."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from ppdm_bench.commands.options import (
    Start,
    Variations,
    asked_configurations,
    asked_settings,
    asked_sizes,
    comma_separated,
    count,
    one_of,
    read_evaluations,
    read_option,
    read_seconds,
)
from ppdm_bench.commands.terminal import alone_in, say, told


def speed(
    res: Annotated[
        str | None, typer.Option(metavar="N", help="Cubic volumes of these sizes, such as 128 or 64,128.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Volumes of this size, D,H,W in voxels.")] = None,
    like: Annotated[Path | None, typer.Option(help="Volumes of the size of this NIfTI scan.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A registered method, or module:ATTRIBUTE of your own; repeatable. Default: all."),
    ] = None,
    factor: Annotated[str, typer.Option(help="Puzzle factors, such as 2,4,8 or 1x2x2.")] = "2,4,8",
    phase: Annotated[str, typer.Option(help="train, sample.")] = "train,sample",
    evaluations: Annotated[
        str | None, typer.Option(help="Network evaluations a volume; default 1,4,10,own. The method's own: own.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16.")] = "fp32",
    checkpointing: Annotated[str, typer.Option(help="Activations recomputed: none, norm, block, conv.")] = "none",
    batch_size: Annotated[int, typer.Option(parser=count(), metavar="N", help="Volumes at once.")] = 1,
    width: Annotated[
        int | None, typer.Option(parser=count(), metavar="N", help="Channels of the finest level.")
    ] = None,
    preset: Annotated[str, typer.Option(help="matched (one U-Net for all), authors (each paper's).")] = "matched",
    vary: Variations = None,
    start: Start = None,
    device: Annotated[str, typer.Option(help="auto, cuda, cpu.")] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="Few repetitions and 1,4 evaluations: a glance, not a result.")
    ] = False,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Time what is predicted not to fit into the GPU, too; else it is skipped.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(parser=read_seconds, metavar="SECONDS", help="Seconds for one phase of one configuration.")
    ] = 600,
    out: Annotated[Path, typer.Option(help="Folder for records, tables and figures.")] = Path("runs/speed"),
    json: Annotated[
        bool, typer.Option("--json", help="Print the records as one JSON array, and nothing else.")
    ] = False,
) -> None:
    """Training steps a second, and seconds a volume against network evaluations; what was done is not done again."""
    phases = read_option("--phase", comma_separated(one_of("train", "sample")), phase)
    choice = read_option("--device", one_of("auto", "cuda", "cpu"), device)
    wanted_evaluations = evaluations or ("1,4" if quick else "1,4,10,own")
    counts = read_option("--evaluations", comma_separated(read_evaluations), wanted_evaluations)
    sizes, spacing = asked_sizes(res, shape, like)
    wanted = asked_settings(preset, factor, precision, checkpointing, width, batch_size)
    with redirect_stdout(sys.stderr):  # whatever a method of the user's own may print
        from ppdm_bench.devices import training_device
        from ppdm_bench.predictor.target import Target
        from ppdm_bench.timing.clock import FULL, QUICK
        from ppdm_bench.timing.command import Plan
        from ppdm_bench.timing.results import collect, failures, present

        asked = asked_configurations(method, sizes, wanted, start, vary)
        where = training_device(choice)
        card = Target.of_this_machine() if where == "cuda" and not no_gate else None
        protocol = QUICK if quick else FULL
        plan = Plan(asked, phases, where, counts, protocol, spacing, timeout, card)
        with alone_in(out) as folder:
            if quick:
                often = f"{protocol.repetitions} repetitions or {protocol.seconds:g} s"
                say(f"quick: {often}; a glance at the times, not a result")
            records = collect(plan, folder)
            text, written = present(records, folder)
    if json:
        from ppdm_bench.records import write_json_array

        text = write_json_array(records)
    print(text)
    raise typer.Exit(told(written, failures(records), sys.stderr if json else sys.stdout))
