"""``ppdm-bench predict``: predict the peak memory of an unmodified training script."""

import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.terminal import locked_folder, progress, report_results
from ppdm_bench.commands.values import integer_option, or_usage_error, read_budget, read_if_given, seconds_option


def predict(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", help="The training command, such as: -- python train.py --epochs 3"),
    ] = None,
    gpu: options.Gpu = None,
    capacity: Annotated[
        str | None, typer.Option(help="Memory of the card, such as 24GB. Default: all of --gpu, or no verdict.")
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(metavar="RELEASE", help="Release of PyTorch to predict for; default: the command's own."),
    ] = None,
    device: Annotated[
        Literal["cuda", "cpu"], typer.Option(help="Device to predict for; cpu applies no rules of CUDA.")
    ] = "cuda",
    steps: Annotated[int, integer_option("Optimizer steps to take; three show growth from step to step.")] = 3,
    keep_files: Annotated[
        bool, typer.Option("--keep-files", help="Let the program write its files. Default: they are deleted.")
    ] = False,
    timeout: Annotated[float, seconds_option("Time limit of the program, in seconds.")] = 600,
    out: Annotated[
        Path | None, typer.Option(help="Folder for records, figure and the program's output; default: write nothing.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Predict the peak memory of a training script: does it fit a card, and where does the memory go?

    The script runs unmodified in a child process, on tensors without data, for a few optimizer steps.
    """
    size = read_if_given("--capacity", read_budget, capacity)
    if device == "cpu" and (gpu or torch):
        raise typer.BadParameter("--gpu and --torch are for CUDA; leave out --device cpu")
    from ppdm_bench.predictor.script.invocation import read_command

    words = command or []
    or_usage_error(read_command, words)
    with redirect_stdout(sys.stderr):
        from ppdm_bench.devices import card_of
        from ppdm_bench.isolation.sweep import RECORDS, Ledger
        from ppdm_bench.memory.script import program, records_of, save, text_of
        from ppdm_bench.predictor.script.prediction import predict_script

        card = or_usage_error(card_of, gpu, size)
        target = or_usage_error(replace, card, torch=torch) if device == "cuda" else None
        with locked_folder(out) if out is not None else nullcontext() as folder:
            with progress() as bar:
                bar.add_task(f"predicting {program(words)}", total=None)
                prediction = predict_script(words, steps, target or "cpu", keep_files, timeout)
            records = records_of(prediction, {"command": words, "steps": steps, "keep_files": keep_files})
            written = []
            if folder is not None:
                Ledger(folder).keep(records)
                written = [folder / RECORDS, *save(prediction, folder)]
    report_results(text_of(prediction), records, written, [], json)
