"""The command line: ``ppdm-bench``. Results go to stdout, progress and errors to stderr.

PyTorch is imported inside commands, so that ``--help`` and ``--version`` start fast.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ppdm_bench.commands import data
from ppdm_bench.commands.ablate import ablate
from ppdm_bench.commands.claims import claims
from ppdm_bench.commands.compare import compare
from ppdm_bench.commands.evaluate import evaluate
from ppdm_bench.commands.figures import figures
from ppdm_bench.commands.gpu import gpu
from ppdm_bench.commands.options import (
    BatchSize,
    Checkpointing,
    Columns,
    Device,
    Factors,
    Gpu,
    Json,
    Launcher,
    LauncherOptions,
    Like,
    MethodName,
    Methods,
    PhantomCount,
    PhantomGrid,
    PhantomSeed,
    PhantomSize,
    Precision,
    Preset,
    Resample,
    Results,
    SamplePrecision,
    SampleSeed,
    Shape,
    SourceIntensity,
    Sources,
    Start,
    TargetIntensity,
    TaskName,
    Variations,
    Width,
    as_usage,
    asked_configurations,
    asked_jobs,
    asked_settings,
    asked_sizes,
    asked_subjects,
    comma_separated,
    count,
    integer,
    one_of,
    positive,
    read_block,
    read_budget,
    read_factor,
    read_flips,
    read_names,
    read_option,
    read_pace,
    read_places,
    read_seconds,
)
from ppdm_bench.commands.order import Command, OrderedGroup
from ppdm_bench.commands.plan import plan
from ppdm_bench.commands.predict import predict
from ppdm_bench.commands.quality import quality
from ppdm_bench.commands.speed import speed
from ppdm_bench.commands.terminal import (
    INTERRUPTED,
    alone_in,
    fail,
    leads,
    notify,
    progress,
    report_outcome,
    show_warning,
    under_torchrun,
    with_earlier,
)
from ppdm_bench.records import PHASES

if TYPE_CHECKING:
    from ppdm_bench.records import Record

# Used for ``python -m ppdm_bench`` too, because shell completion refers to the installed command.
NAME = "ppdm-bench"

# Commands that may run as several processes: those that share the work, and those that write nothing.
SHARED, SILENT = ("train", "quality"), ("env", "methods")

# Base class of usage errors; this expression works with every version of typer.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    cls=OrderedGroup,
    help="Memory benchmark and ablation toolkit for volumetric medical image translation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
for command in (predict, plan, evaluate, quality, ablate, speed, compare, figures, claims, gpu):
    app.command(cls=Command)(command)


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 something failed, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] in ("--show-completion", "--install-completion"):
        # The user names the shell; with shell detection enabled, Typer would ignore that name.
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    warnings.showwarning = show_warning
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no child is left behind
    try:
        # --debug is accepted at any position: users append it to a command that failed.
        code = app([word for word in arguments if word != "--debug"], prog_name=NAME, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        code = fail(error, 2 if isinstance(error, UsageError) else 1, "--debug" in arguments)  # type: ignore[arg-type]
    if code == INTERRUPTED:  # some versions of typer return it, others raise
        notify("interrupted; everything written before is complete")
        code = INTERRUPTED if leads() else 0  # as for an error: the leading process may still write a checkpoint
    sys.exit(code if isinstance(code, int) else 0)


def _version(asked: bool) -> None:
    if asked:
        from ppdm_bench.version import version

        print(f"ppdm-bench {version()}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Module to import first, which makes types of your own known; repeatable. Default: none.",
        ),
    ] = None,
) -> None:
    """Memory benchmark and ablation toolkit for volumetric medical image translation."""
    if modules:
        from ppdm_bench.configuration import import_module

        for module in modules:
            as_usage(import_module, module)
    command = context.invoked_subcommand
    if under_torchrun() and command not in (*SHARED, *SILENT):
        raise typer.BadParameter(
            f"under torchrun every process would do all of {command} and write the same files; start it without "
            f"torchrun, which is for {' and '.join(SHARED)}"
        )


MeasuringDevice = Annotated[
    Literal["auto", "cuda", "cpu", "predict"],
    typer.Option(help="Device; auto: measure if there is a GPU, else predict."),
]


@app.command()
def memory(
    res: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Edge of cubic volumes in voxels, such as 256 or 64,128,256. Give this, --shape or --like.",
        ),
    ] = None,
    shape: Shape = None,
    like: Like = None,
    method: Methods = None,
    factor: Factors = "2,4,8",
    phase: Annotated[
        str, typer.Option(help="Phases: train, sample, autoencoder_train, decode. A method without a phase skips it.")
    ] = ",".join(PHASES),
    precision: Precision = "fp32",
    checkpointing: Checkpointing = "none",
    batch_size: BatchSize = 1,
    sources: Sources = 1,
    width: Width = None,
    preset: Preset = "matched",
    vary: Variations = None,
    start: Start = None,
    device: MeasuringDevice = "auto",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Memory that may be used, such as 24GB: adds a verdict and limits measurements. Default: no limit."
        ),
    ] = None,
    gpu: Gpu = None,
    time: Annotated[
        bool,
        typer.Option("--time", help="Also predict seconds per training step and per volume on the card of --gpu."),
    ] = False,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Also measure what is predicted not to fit. Default: skip it.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            parser=read_seconds, metavar="SECONDS", help="Time limit of one measurement or one prediction, in seconds."
        ),
    ] = 600,
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
    launcher: Launcher = None,
    launcher_option: LauncherOptions = None,
    columns: Columns = None,
    out: Results = Path("runs/memory"),
    json: Json = False,
) -> None:
    """Predict the peak memory of every method; with a GPU, measure it too."""
    chosen = read_names("--columns", columns)
    phases = read_option("--phase", comma_separated(one_of(*PHASES)), phase)
    capacity = read_option("--budget", read_budget, budget) if budget is not None else None
    sizes, spacing = asked_sizes(res, shape, like)
    wanted = asked_settings(preset, factor, precision, checkpointing, width, batch_size, sources)
    jobs = asked_jobs(launcher, launcher_option)
    if jobs is not None and (verify or explain):
        raise typer.BadParameter("--verify and --explain run on this machine; leave --launcher out")
    if time and (gpu is None or explain):
        instead = "--explain shows it by operator" if explain else 'name it, such as --gpu "A100 80GB"'
        raise typer.BadParameter(f"a time is predicted for a card: {instead}", param_hint="'--time'")
    with redirect_stdout(sys.stderr):  # a user's own method may print
        from ppdm_bench.configuration import check_phases
        from ppdm_bench.devices import card_of, choose, emulated, predicted_sheet
        from ppdm_bench.memory.command import Plan
        from ppdm_bench.memory.constants import with_constants
        from ppdm_bench.memory.jobs import Request, collect_jobs
        from ppdm_bench.memory.memory_output import collect, explain_all, failures, present
        from ppdm_bench.memory.verify import unverified, verdict, verify_in

        asked = asked_configurations(explain or method, sizes, wanted, start, vary)
        as_usage(check_phases, asked, phases)
        precisions = [one.precision for one in asked]
        sheet = as_usage(predicted_sheet, "predict", gpu, precisions) if time else None
        if gpu is not None:
            card = as_usage(card_of, gpu, capacity)
            capacity = card.capacity
            if slow := emulated(card.gpu, card.compute_capability, precisions):
                notify(slow)
        if jobs is None:
            where, target = as_usage(choose, device, capacity, gpu)
            target = as_usage(with_constants, constants, target)
        if verify and (explain or where == "predict"):
            raise typer.BadParameter("--verify repeats measurements; measure with --device cuda or cpu")
        verified: list[Record] = []
        lost: list[str] = []
        with alone_in(out) as folder:
            if jobs is not None:
                request = Request(
                    *(phases, device, spacing, timeout, capacity, not no_gate),
                    *(constants and constants.absolute(), gpu, time),
                )
                records, lost = collect_jobs(asked, request, folder, jobs)
                shown = with_earlier(records, folder)
                text, written = present(shown, folder, capacity, assumed, chosen) if records else ("", [])
            elif explain:
                records, text, written = explain_all(Plan(asked, phases, "predict", target, spacing, timeout), folder)
            else:
                plan = Plan(asked, phases, where, target, spacing, timeout, capacity, not no_gate, sheet)
                records = collect(plan, folder)
                verified = verify_in(folder, records, timeout) if verify else []
                records = [*(record for record in records if record not in verified), *verified]
                text, written = present(with_earlier(records, folder), folder, capacity, assumed, chosen)
                text += verdict(verified)
    if json:
        from ppdm_bench.records import write_json_array

        text = write_json_array(records)
    print(text)
    raise typer.Exit(
        report_outcome(written, failures(records) + unverified(verified) + lost, sys.stderr if json else sys.stdout)
    )


@app.command()
def methods(
    method: Methods = None,
    columns: Columns = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the registered methods: presets, parameters, network evaluations per volume."""
    with redirect_stdout(sys.stderr):  # a user's own method may print
        from ppdm_bench.commands.methods import catalogue
        from ppdm_bench.report.tables.catalogue import catalogue_page

        rows = as_usage(catalogue, method)
    if json:
        print(dumps(rows, indent=1))
    else:
        print(catalogue_page(rows).to_text(read_names("--columns", columns)))


@app.command()
def env(json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Show the environment that is recorded beside every number."""
    from ppdm_bench.environment import environment, nvml_note

    found = environment()
    if json:
        print(dumps(found, indent=1))
        return
    width = max(map(len, found))
    print("\n".join(f"{key:{width}}  {value}" for key, value in found.items()))
    if note := nvml_note():
        print(f"note: {note}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run: model, log, options, checkpoints.")],
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="CSV file of pairs: subject,split,source,target[,mask][,labels][,suv_factor]; several sources have "
            "columns such as source.t1,source.t2. Give this or --task."
        ),
    ] = None,
    task: TaskName = None,
    subjects: PhantomCount = None,
    size: PhantomSize = None,
    grid: PhantomGrid = None,
    data_seed: PhantomSeed = None,
    resample: Resample = False,
    source_intensity: SourceIntensity = None,
    target_intensity: TargetIntensity = None,
    bridge_from: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where a bridge with several sources starts: mean, or the name of a source; default: the method's.",
        ),
    ] = None,
    method: MethodName = "ppdm",
    preset: Preset = "matched",
    factor: Annotated[
        str | None, typer.Option(help="Puzzle factor, such as 4 or 1x2x2; default: the method's.")
    ] = None,
    width: Width = None,
    steps: Annotated[int | None, integer("Training steps (updates of the weights); default: 1000.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            parser=positive("minutes"),
            metavar="MINUTES",
            help="Training time instead of --steps; the learning rate then follows the clock, so no two runs are "
            "equal. Default: none.",
        ),
    ] = None,
    batch_size: BatchSize = 1,
    accumulate: Annotated[int, integer("Gradient accumulation steps.")] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            parser=positive("a rate"), metavar="RATE", help="Learning rate after the warm-up; default: the method's."
        ),
    ] = None,
    augment: Annotated[
        str, typer.Option(help="Augmentation: none, flip (left-right), or flip:dhw for chosen axes.")
    ] = "none",
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(help="Precision of convolutions; fp16 with loss scaling, for cards before Ampere."),
    ] = "fp32",
    checkpointing: Checkpointing = "none",
    start: Start = None,
    seed: Annotated[int, integer("Random seed. On the CPU, the same seed gives the same weights.", 0)] = 0,
    validate_every: Annotated[
        int | None, integer("Steps between validation losses on the split val; default: no validation.")
    ] = None,
    save_every: Annotated[
        str, typer.Option(help="Checkpoint interval: steps such as 200, or minutes such as 5min.")
    ] = "5min",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the run in --out, if there is one. Give the same command again; a finished run also continues "
            "to more --steps.",
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Start from the weights of this run (folder or .safetensors file); default: random weights.",
        ),
    ] = None,
    threads: Annotated[int | None, integer("CPU threads; default: PyTorch's, usually one per core.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write the losses to OUT/tensorboard, for TensorBoard.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train a method on pairs of scans, or on synthetic subjects."""
    r = read_option("--factor", read_factor, factor) if factor is not None else None
    axes = read_option("--augment", read_flips, augment)
    save_steps, save_minutes = read_option("--save-every", read_pace, save_every)
    source = asked_subjects(
        manifest,
        task,
        resample,
        source_intensity=source_intensity,
        target_intensity=target_intensity,
        subjects=subjects,
        size=size,
        grid=grid,
        data_seed=data_seed,
    )
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give one budget: --steps or --minutes")
    if minutes is None:
        steps = steps or 1000

    from ppdm.training.augment import Flip
    from ppdm.training.distributed import joined
    from ppdm.training.loop import Interrupted, StepReport
    from ppdm.training.on_manifest import with_sources_of
    from ppdm.training.run import Run
    from ppdm.training.schedule import Schedule
    from ppdm.training.tensorboard import TensorBoard
    from ppdm_bench.commands.train import ProgressLines, advice_on_validation, memory_in_use, train_run, use_threads
    from ppdm_bench.configuration import Configuration, around
    from ppdm_bench.devices import training_device

    asked = Configuration(method, (1, 1, 1), preset, r, width, precision, checkpointing, batch_size)
    (asked,) = as_usage(around, [asked], start or [], [], notify)
    resolved = as_usage(asked.resolve)
    if learning_rate is not None:
        resolved = replace(resolved, optimisation=replace(resolved.optimisation, learning_rate=learning_rate))
    resolved = as_usage(with_sources_of, resolved, source.sources(), bridge_from)
    flips = Flip(axes) if axes else None
    schedule = as_usage(Schedule, steps, minutes, batch_size, accumulate, flips, seed, validate_every)
    pace: dict[str, Any] = {"save_steps": save_steps, "save_minutes": save_minutes}
    run = Run(out, resume=resume, asked=source.describe(), notes=source.notes(), **pace)
    with joined() as ranks, progress() as bar, ExitStack() as opened:
        where = training_device(device, ranks)
        for advice in filter(None, (use_threads(threads, where), advice_on_validation(schedule) * ranks.is_first)):
            notify(advice)
        board = opened.enter_context(TensorBoard(out / "tensorboard")) if tensorboard and ranks.is_first else None
        followers: list[Callable[[StepReport], None]] = [] if board is None else [board]
        followers += [ProgressLines(notify)] if bar.disable else []
        shown = bar.add_task("reading the scans", total=None)

        def preparing(done: int, total: int) -> None:
            bar.update(shown, completed=done, total=total, description="making subjects")

        def show(report: StepReport) -> None:
            done, total = (report.step, steps) if steps is not None else (report.seconds, 60 * (minutes or 0))
            text = f"loss {report.loss:.4f}  {report.steps_per_second:.2f} steps/s  {memory_in_use(where)}"
            bar.update(shown, completed=done, total=total, description=text)
            for follow in followers:
                follow(report)

        try:
            result = train_run(
                resolved, source, schedule, run, where, preparing, show, init_from=init_from, standalone=True
            )
        except Interrupted as stopped:
            notify(f"{stopped}; the same command with --resume continues from there")
            raise typer.Exit(INTERRUPTED) from None
    if ranks.is_first:
        print(result)


@app.command(cls=Command)
def translate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a run, or its .safetensors file.")],
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT OUTPUT",
            help="INPUT: a scan (NIfTI, MetaImage, NRRD, DICOM), or a folder of scans; left out with --source. OUTPUT: "
            "a file, or a folder; subfolders are mirrored.",
        ),
    ],
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="NAME=FILE",
            help="Scan of one of several sources, or a quoted pattern such as t1='scans/*_T1.nii.gz'; repeatable. "
            "Default: INPUT.",
        ),
    ] = None,
    resample: Annotated[bool, typer.Option("--resample", help="Resample sources onto the grid of the first.")] = False,
    evaluations: Annotated[int | None, integer("Network evaluations per volume; default: the method's.")] = None,
    seed: SampleSeed = 0,
    samples: Annotated[
        int | None,
        typer.Option(
            parser=count(2),
            metavar="N",
            help="Draws per volume, 2 or more, of a method whose sampling uses noise: OUTPUT is their mean, and "
            "NAME_std beside it their standard deviation. Default: one draw.",
        ),
    ] = None,
    device: Device = "auto",
    precision: SamplePrecision = None,
    block: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Translate in blocks of N voxels per side, or DxHxW, rounded up to a multiple that the method needs; "
            "the volume stays in host memory. Default: the whole volume at once.",
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Overlap of neighbouring blocks, as a share of their size; default: 0.25."),
    ] = None,
    suv_factor: Annotated[
        float | None, typer.Option(help="PET: factor from stored values to SUV; default: none.")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="Format of the translations: nii, nii.gz, mha, mhd, nrrd or nhdr. Default: the suffix of OUTPUT; in a "
            "folder the format of each input, and nii.gz for DICOM.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Translate scans with a trained method: geometry of the input, units of the target."""
    seen = read_option("--block", read_block, block) if block is not None else None
    source, output = read_places(places, sources)

    from ppdm.checkpoint import load
    from ppdm.data.formats import is_dicom_scan
    from ppdm.data.volume import user_path
    from ppdm.translation import adapt, check_samples
    from ppdm.translation import translate as translate_files
    from ppdm_bench.devices import training_device

    trained = load(checkpoint, device=training_device(device))
    if samples is not None:
        as_usage(check_samples, as_usage(adapt, trained, steps=evaluations).method, samples)
    with progress() as bar:
        task = bar.add_task("translating")
        made = translate_files(
            trained,
            source,
            output,
            resample=resample,
            steps=evaluations,
            seed=seed,
            samples=samples,
            precision=precision,
            block=seen,
            overlap=overlap,
            suv_factor=suv_factor,
            suffix=format_,
            overwrite=overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if format_ is None and user_path(output).is_dir() and any(is_dicom_scan(one.source) for one in made):
        notify("DICOM scans are written as NIfTI; --format selects another format.")
    for one in made:
        if one.fault:
            notify(one.fault)
        else:
            written = ", ".join(map(str, filter(None, (one.output, one.deviation))))
            print(f"{written}  ({one.seconds:.1f} s)")
    raise typer.Exit(1 if any(one.fault for one in made) else 0)
