"""``ppdm-bench train``: train a method."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.requested import requested_subjects
from ppdm_bench.commands.terminal import INTERRUPTED, notify
from ppdm_bench.commands.values import (
    integer_option,
    number_option,
    or_usage_error,
    read_factor,
    read_flip_axes,
    read_if_given,
    read_interval,
    read_option,
)


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run: model, log, options, checkpoints.")],
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="CSV file of pairs: subject,split,source,target[,mask][,labels][,suv_factor]; several sources have "
            "columns such as source.t1,source.t2. Give this or --task."
        ),
    ] = None,
    task: options.TaskName = None,
    subjects: options.PhantomCount = None,
    size: options.PhantomSize = None,
    grid: options.PhantomGrid = None,
    data_seed: options.PhantomSeed = None,
    resample: options.Resample = False,
    source_intensity: options.SourceIntensity = None,
    target_intensity: options.TargetIntensity = None,
    bridge_from: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where a bridge with several sources starts: mean, or the name of a source; default: the method's.",
        ),
    ] = None,
    method: options.MethodName = "ppdm",
    preset: options.Preset = "matched",
    factor: Annotated[
        str | None, typer.Option(help="Puzzle factor, such as 4 or 1x2x2; default: the method's.")
    ] = None,
    width: options.Width = None,
    steps: Annotated[int | None, integer_option("Training steps (updates of the weights); default: 1000.")] = None,
    minutes: Annotated[
        float | None,
        number_option(
            "minutes",
            "Training time instead of --steps; the learning rate then follows the clock, so that no two runs are "
            "equal. Default: none.",
        ),
    ] = None,
    batch_size: options.BatchSize = 1,
    accumulate: Annotated[int, integer_option("Gradient accumulation steps.")] = 1,
    learning_rate: Annotated[
        float | None, number_option("a rate", "Learning rate after the warm-up; default: the method's.")
    ] = None,
    augment: Annotated[
        str, typer.Option(help="Augmentation: none, flip (left-right), or flip:dhw for chosen axes.")
    ] = "none",
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(help="Precision of convolutions; fp16 with loss scaling, for cards before Ampere."),
    ] = "fp32",
    checkpointing: options.Checkpointing = "none",
    start: options.Start = None,
    seed: Annotated[int, integer_option("Random seed. On the CPU, the same seed gives the same weights.", 0)] = 0,
    validate_every: Annotated[
        int | None, integer_option("Steps between validation losses on the split val; default: no validation.")
    ] = None,
    save_every: Annotated[
        str, typer.Option(help="Checkpoint interval: steps such as 200, or minutes such as 5min.")
    ] = "5min",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the run in --out, if there is one. Repeat the other options; with more --steps, a finished "
            "run continues too.",
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Start from the weights of this run (folder or .safetensors file); default: random weights.",
        ),
    ] = None,
    threads: Annotated[int | None, integer_option("CPU threads; default: PyTorch's, usually one per core.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write the losses to OUT/tensorboard, for TensorBoard.")
    ] = False,
    device: options.Device = "auto",
) -> None:
    """Train a method on pairs of scans, or on synthetic subjects."""
    r = read_if_given("--factor", read_factor, factor)
    axes = read_option("--augment", read_flip_axes, augment)
    save_steps, save_minutes = read_option("--save-every", read_interval, save_every)
    phantoms: dict[str, Any] = {"subjects": subjects, "size": size, "grid": grid, "data_seed": data_seed}
    source = requested_subjects(manifest, task, resample, source_intensity, target_intensity, **phantoms)
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give one budget: --steps or --minutes")
    if minutes is None:
        steps = steps or 1000

    from ppdm.training.augment import Flip
    from ppdm.training.loop import Interrupted
    from ppdm.training.on_manifest import with_sources_of
    from ppdm.training.run import Run
    from ppdm.training.schedule import Schedule
    from ppdm_bench.commands.training_run import train_with_progress
    from ppdm_bench.configuration import Configuration, with_variations

    configuration = Configuration(method, (1, 1, 1), preset, r, width, precision, checkpointing, batch_size)
    (configuration,) = or_usage_error(with_variations, [configuration], start or [], [], notify)
    resolved = or_usage_error(configuration.resolve)
    if learning_rate is not None:
        resolved = replace(resolved, optimisation=replace(resolved.optimisation, learning_rate=learning_rate))
    resolved = or_usage_error(with_sources_of, resolved, source.sources(), bridge_from)
    flips = Flip(axes) if axes else None
    schedule = or_usage_error(Schedule, steps, minutes, batch_size, accumulate, flips, seed, validate_every)
    save_interval: dict[str, Any] = {"save_steps": save_steps, "save_minutes": save_minutes}
    run = Run(out, resume=resume, asked=source.describe(), notes=source.notes(), **save_interval)
    board = out / "tensorboard" if tensorboard else None
    try:
        result = train_with_progress(resolved, source, schedule, run, device, threads, board, init_from)
    except Interrupted as stopped:
        notify(f"{stopped}; the same command with --resume continues from there")
        raise typer.Exit(INTERRUPTED) from None
    if result:
        print(result)
