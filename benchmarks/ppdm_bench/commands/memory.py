"""``ppdm-bench memory``: peak memory of every method, predicted and measured."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.requested import requested_configurations, requested_jobs, requested_settings, requested_sizes
from ppdm_bench.commands.terminal import locked_folder, notify, report_results, with_earlier_records
from ppdm_bench.commands.values import (
    comma_separated,
    one_of,
    or_usage_error,
    read_budget,
    read_if_given,
    read_names,
    read_option,
    seconds_option,
)
from ppdm_bench.records import PHASES

if TYPE_CHECKING:
    from ppdm_bench.records import Record


def memory(
    res: options.Res = None,
    shape: options.Shape = None,
    like: options.Like = None,
    method: options.Methods = None,
    factor: options.Factors = "2,4,8",
    phase: Annotated[
        str, typer.Option(help="Phases: train, sample, autoencoder_train, decode. A method without a phase skips it.")
    ] = ",".join(PHASES),
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
        typer.Option(help="Device; auto: measure if there is a GPU, else predict."),
    ] = "auto",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Memory that may be used, such as 24GB: adds a verdict and limits measurements. Default: no limit."
        ),
    ] = None,
    gpu: options.Gpu = None,
    time: Annotated[
        bool, typer.Option("--time", help="Also predict seconds per training step and per volume on the card of --gpu.")
    ] = False,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Also measure what is predicted not to fit. Default: skip it.")
    ] = False,
    timeout: Annotated[float, seconds_option("Time limit of one measurement or one prediction, in seconds.")] = 600,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run each measured step again, limited to the predicted memory.")
    ] = False,
    assumed: Annotated[
        bool,
        typer.Option("--assumed", help="Show the part of each prediction that no published measurement confirms yet."),
    ] = False,
    constants: Annotated[
        Path | None,
        typer.Option(help="Predict with the context and workspace fitted in this file; default: built-in constants."),
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD", help="Only plot the memory of this method over time; repeatable. Default: none."
        ),
    ] = None,
    launcher: options.Launcher = None,
    launcher_option: options.LauncherOptions = None,
    columns: options.Columns = None,
    out: options.Results = Path("runs/memory"),
    json: options.Json = False,
) -> None:
    """Predict the peak memory of every method; with a GPU, measure it too."""
    chosen = read_names("--columns", columns)
    phases = read_option("--phase", comma_separated(one_of(*PHASES)), phase)
    capacity = read_if_given("--budget", read_budget, budget)
    sizes, spacing = requested_sizes(res, shape, like)
    settings = requested_settings(preset, factor, precision, checkpointing, width, batch_size, sources)
    jobs = requested_jobs(launcher, launcher_option)
    if jobs is not None and (verify or explain):
        raise typer.BadParameter("--verify and --explain run on this machine; leave --launcher out")
    if time and (gpu is None or explain):
        remedy = "leave it out, --explain predicts times too" if explain else 'name one, such as --gpu "A100 80GB"'
        raise typer.BadParameter(f"a time is predicted for a card: {remedy}", param_hint="'--time'")
    with redirect_stdout(sys.stderr):  # a user's own method may print
        from ppdm_bench.configuration import check_phases
        from ppdm_bench.devices import card_of, emulation_warning, measuring_device, predicted_sheet
        from ppdm_bench.memory.command import MemoryPlan
        from ppdm_bench.memory.constants import with_constants
        from ppdm_bench.memory.jobs import JobOptions, collect_jobs
        from ppdm_bench.memory.memory_output import collect, explain_all, failures, present
        from ppdm_bench.memory.verify import unverified, verdict, verify_in

        configurations = requested_configurations(explain or method, sizes, settings, start, vary)
        or_usage_error(check_phases, configurations, phases)
        precisions = [one.precision for one in configurations]
        sheet = or_usage_error(predicted_sheet, "predict", gpu, precisions) if time else None
        if gpu is not None:
            card = or_usage_error(card_of, gpu, capacity)
            capacity = card.capacity
            if slow := emulation_warning(card.gpu, card.compute_capability, precisions):
                notify(slow)
        if jobs is None:
            where, target = or_usage_error(measuring_device, device, capacity, gpu)
            target = or_usage_error(with_constants, constants, target)
        if verify and (explain or where == "predict"):
            raise typer.BadParameter("--verify repeats measurements; measure with --device cuda or cpu")
        verified: list[Record] = []
        lost: list[str] = []
        with locked_folder(out) as folder:
            if jobs is not None:
                request = JobOptions(
                    *(phases, device, spacing, timeout, capacity, not no_gate),
                    *(constants and constants.absolute(), gpu, time),
                )
                records, lost = collect_jobs(configurations, request, folder, jobs)
                shown = with_earlier_records(records, folder)
                text, written = present(shown, folder, capacity, assumed, chosen) if records else ("", [])
            elif explain:
                records, text, written = explain_all(
                    MemoryPlan(configurations, phases, "predict", target, spacing, timeout), folder
                )
            else:
                plan = MemoryPlan(configurations, phases, where, target, spacing, timeout, capacity, not no_gate, sheet)
                records = collect(plan, folder)
                verified = verify_in(folder, records, timeout) if verify else []
                records = [*(record for record in records if record not in verified), *verified]
                text, written = present(with_earlier_records(records, folder), folder, capacity, assumed, chosen)
                text += verdict(verified)
    failed = failures(records) + unverified(verified) + lost
    raise typer.Exit(report_results(text, records, written, failed, json))
