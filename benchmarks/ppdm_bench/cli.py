"""The command line: ``ppdm-bench``. Results go to stdout, progress and errors to stderr.

PyTorch is imported inside commands, so that ``--help`` and ``--version`` answer at once.
"""

import os
import signal
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppdm_bench.commands import data
from ppdm_bench.commands.ablate import ablate
from ppdm_bench.commands.claims import claims
from ppdm_bench.commands.compare import compare
from ppdm_bench.commands.evaluate import evaluate
from ppdm_bench.commands.figures import figures
from ppdm_bench.commands.gpu import gpu
from ppdm_bench.commands.options import (
    Launcher,
    LauncherOptions,
    PhantomCount,
    PhantomGrid,
    PhantomSeed,
    PhantomSize,
    Resample,
    Start,
    TaskName,
    Variations,
    as_usage,
    asked_configurations,
    asked_jobs,
    asked_settings,
    asked_sizes,
    asked_subjects,
    comma_separated,
    count,
    one_of,
    positive,
    read_block,
    read_budget,
    read_factor,
    read_flips,
    read_option,
    read_pace,
    read_seconds,
)
from ppdm_bench.commands.plan import plan
from ppdm_bench.commands.quality import quality
from ppdm_bench.commands.speed import speed
from ppdm_bench.commands.terminal import (
    INTERRUPTED,
    alone_in,
    fail,
    leads,
    progress,
    say,
    show_warning,
    told,
    under_torchrun,
)
from ppdm_bench.records import PHASES

if TYPE_CHECKING:
    from ppdm_bench.records import Record

# Also where it is run as ``python -m ppdm_bench``: completion is for the command that is installed.
NAME = "ppdm-bench"

# What may run as several processes at once: those that share their work, and those that write nothing.
SHARED, SILENT = ("train", "quality"), ("env", "methods")

# A usage error, by the name that every version of typer gives it.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    help="Memory benchmark and ablation toolkit for volumetric medical image translation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.command()(compare)
app.command()(evaluate)
app.command()(plan)
app.command()(quality)
app.command()(figures)
app.command()(claims)
app.command()(ablate)
app.command()(gpu)
app.command()(speed)


def main() -> None:
    """Run the command line: exit code 0 done, 1 something asked could not be done, 2 bad usage, 130 interrupted."""
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] in ("--show-completion", "--install-completion"):
        # A shell that is named: where it detects one, Typer takes no name and would pass over this one.
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    warnings.showwarning = show_warning
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no child is left behind
    try:
        # Wherever it stands: who adds it to a command that failed will add it at the end.
        code = app([word for word in arguments if word != "--debug"], prog_name=NAME, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        code = fail(error, 2 if isinstance(error, UsageError) else 1, "--debug" in arguments)  # type: ignore[arg-type]
    if code == INTERRUPTED:  # some versions of typer return it, others raise
        say("interrupted; what was written before is complete")
        code = INTERRUPTED if leads() else 0  # as for an error: the first may be writing a checkpoint still
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
) -> None:
    """Memory benchmark and ablation toolkit for volumetric medical image translation."""
    command = context.invoked_subcommand
    if under_torchrun() and command not in (*SHARED, *SILENT):
        raise typer.BadParameter(
            f"under torchrun every process would do all of {command} and write the same files; start it without "
            f"torchrun, which is for {' and '.join(SHARED)}"
        )


Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="A registered method, or module:ATTRIBUTE of your own; repeatable. Default: all."),
]
Factors = Annotated[str, typer.Option("--factor", help="Puzzle factors, such as 2,4,8 or 1x2x2.")]
Device = Annotated[str, typer.Option(help="auto (measure where there is a GPU), cuda, cpu, or predict.")]


@app.command()
def memory(
    res: Annotated[
        str | None, typer.Option(metavar="N", help="Cubic volumes of these sizes, such as 256 or 64,128,256.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Volumes of this size, D,H,W in voxels.")] = None,
    like: Annotated[Path | None, typer.Option(help="Volumes of the size of this NIfTI scan.")] = None,
    method: Methods = None,
    factor: Factors = "2,4,8",
    phase: Annotated[
        str, typer.Option(help="train, sample, autoencoder_train, decode; of each method those that it has.")
    ] = ",".join(PHASES),
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16.")] = "fp32",
    checkpointing: Annotated[str, typer.Option(help="Activations recomputed: none, norm, block, conv.")] = "none",
    batch_size: Annotated[int, typer.Option(parser=count(), metavar="N", help="Volumes at once.")] = 1,
    width: Annotated[
        int | None, typer.Option(parser=count(), metavar="N", help="Channels of the finest level.")
    ] = None,
    preset: Annotated[str, typer.Option(help="matched (one U-Net for all), authors (each paper's).")] = "matched",
    vary: Variations = None,
    start: Start = None,
    device: Device = "auto",
    budget: Annotated[
        str | None,
        typer.Option(help="Memory of a card, such as 24GB: what fits? A measurement gets no more than that."),
    ] = None,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Measure what is predicted not to fit, too; else it is skipped.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(parser=read_seconds, metavar="SECONDS", help="Seconds for one measurement, or one prediction."),
    ] = 600,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run what was measured again, with no more memory than was predicted.")
    ] = False,
    assumed: Annotated[
        bool,
        typer.Option("--assumed", help="Show how much of each prediction no published measurement has confirmed yet."),
    ] = False,
    constants: Annotated[
        Path | None, typer.Option(help="Predict with the context and workspace fitted in this file.")
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD", help="Draw where the memory of this method goes, and nothing else; repeatable."),
    ] = None,
    launcher: Launcher = None,
    launcher_option: LauncherOptions = None,
    out: Annotated[Path, typer.Option(help="Folder for records, tables and figures.")] = Path("runs/memory"),
    json: Annotated[
        bool, typer.Option("--json", help="Print the records as one JSON array, and nothing else.")
    ] = False,
) -> None:
    """Peak memory of every method at a size: measured where there is a GPU, predicted anywhere."""
    phases = read_option("--phase", comma_separated(one_of(*PHASES)), phase)
    choice = read_option("--device", one_of("auto", "cuda", "cpu", "predict"), device)
    capacity = read_option("--budget", read_budget, budget) if budget is not None else None
    sizes, spacing = asked_sizes(res, shape, like)
    wanted = asked_settings(preset, factor, precision, checkpointing, width, batch_size)
    jobs = asked_jobs(launcher, launcher_option)
    if jobs is not None and (verify or explain):
        raise typer.BadParameter("--verify and --explain are done here; leave --launcher out")
    with redirect_stdout(sys.stderr):  # whatever a method of the user's own may print
        from ppdm_bench.configuration import check_phases
        from ppdm_bench.devices import choose
        from ppdm_bench.memory.command import Plan
        from ppdm_bench.memory.constants import told as told_constants
        from ppdm_bench.memory.jobs import Request, collect_jobs
        from ppdm_bench.memory.results import collect, explain_all, failures, present
        from ppdm_bench.memory.verify import unverified, verdict, verify_in

        asked = asked_configurations(explain or method, sizes, wanted, start, vary)
        as_usage(check_phases, asked, phases)
        if jobs is None:
            where, target = choose(choice, capacity)
            target = as_usage(told_constants, constants, target)
        if verify and (explain or where == "predict"):
            raise typer.BadParameter("--verify runs again what was measured; measure with --device cuda or cpu")
        verified: list[Record] = []
        lost: list[str] = []
        with alone_in(out) as folder:
            if jobs is not None:
                request = Request(
                    phases, choice, spacing, timeout, capacity, not no_gate, constants and constants.absolute()
                )
                records, lost = collect_jobs(asked, request, folder, jobs)
                text, written = present(records, folder, capacity, assumed) if records else ("", [])
            elif explain:
                records, text, written = explain_all(Plan(asked, phases, "predict", target, spacing, timeout), folder)
            else:
                plan = Plan(asked, phases, where, target, spacing, timeout, capacity, not no_gate)
                records = collect(plan, folder)
                verified = verify_in(folder, records, timeout) if verify else []
                records = [*(record for record in records if record not in verified), *verified]
                text, written = present(records, folder, capacity, assumed)
                text += verdict(verified)
    if json:
        from ppdm_bench.records import write_json_array

        text = write_json_array(records)
    print(text)
    raise typer.Exit(told(written, failures(records) + unverified(verified) + lost, sys.stderr if json else sys.stdout))


@app.command()
def methods(
    method: Methods = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What is registered: every method, its presets, parameters and network evaluations a volume."""
    with redirect_stdout(sys.stderr):  # whatever a method of the user's own may print
        from ppdm_bench.commands.methods import catalogue, catalogue_text

        rows = as_usage(catalogue, method)
    if json:
        import json as json_module

        print(json_module.dumps(rows, indent=1))
    else:
        print(catalogue_text(rows))


@app.command()
def env(json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """The environment as it is recorded beside every number."""
    from ppdm_bench.environment import environment, nvml_note

    found = environment()
    if json:
        import json as json_module

        print(json_module.dumps(found, indent=1))
        return
    width = max(map(len, found))
    print("\n".join(f"{key:{width}}  {value}" for key, value in found.items()))
    if note := nvml_note():
        print(f"note: {note}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The run's folder: model, log, options, checkpoints.")],
    manifest: Annotated[
        Path | None,
        typer.Option(help="CSV of pairs: subject,split,source,target[,mask][,suv_factor]; this, or --task."),
    ] = None,
    task: TaskName = None,
    subjects: PhantomCount = None,
    size: PhantomSize = None,
    grid: PhantomGrid = None,
    data_seed: PhantomSeed = None,
    resample: Resample = False,
    method: Annotated[str, typer.Option(help="A registered method, or module:ATTRIBUTE of your own.")] = "ppdm",
    preset: Annotated[str, typer.Option(help="matched, authors.")] = "matched",
    factor: Annotated[str | None, typer.Option(help="Puzzle factor, such as 4 or 1x2x2.")] = None,
    width: Annotated[
        int | None, typer.Option(parser=count(), metavar="N", help="Channels of the finest level.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(parser=count(), metavar="N", help="Updates of the weights; default 1000.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            parser=positive("minutes"),
            metavar="MINUTES",
            help="Time instead of steps; the learning rate follows the clock, so no two runs are the same.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(parser=count(), metavar="N", help="Pairs a batch.")] = 1,
    accumulate: Annotated[int, typer.Option(parser=count(), metavar="N", help="Batches an update.")] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(parser=positive("a rate"), metavar="RATE", help="After the warm-up; default: the method's."),
    ] = None,
    augment: Annotated[str, typer.Option(help="none, flip (left and right), or flip:dhw for chosen axes.")] = "none",
    precision: Annotated[str, typer.Option(help="fp32, bf16.")] = "fp32",
    checkpointing: Annotated[str, typer.Option(help="Activations recomputed: none, norm, block, conv.")] = "none",
    start: Start = None,
    seed: Annotated[
        int, typer.Option(parser=count(0), metavar="N", help="The same seed gives the same weights on the CPU.")
    ] = 0,
    validate_every: Annotated[
        int | None,
        typer.Option(
            parser=count(), metavar="N", help="Steps from one loss on the split val to the next; default: none."
        ),
    ] = None,
    save_every: Annotated[
        str, typer.Option(help="From one checkpoint to the next: steps such as 200, or minutes such as 5min.")
    ] = "5min",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out if there is one: the same command again.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cuda, cpu.")] = "auto",
) -> None:
    """Train a method on pairs of scans, or on phantoms."""
    r = read_option("--factor", read_factor, factor) if factor is not None else None
    choice = read_option("--device", one_of("auto", "cuda", "cpu"), device)
    arithmetic = read_option("--precision", one_of("fp32", "bf16"), precision)
    axes = read_option("--augment", read_flips, augment)
    save_steps, save_minutes = read_option("--save-every", read_pace, save_every)
    source = asked_subjects(manifest, task, resample, subjects=subjects, size=size, grid=grid, data_seed=data_seed)
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give one budget: --steps or --minutes")
    if minutes is None:
        steps = steps or 1000

    from ppdm.training.augment import Flip
    from ppdm.training.distributed import joined
    from ppdm.training.loop import Interrupted, StepReport
    from ppdm.training.run import Run
    from ppdm.training.schedule import Schedule
    from ppdm_bench.commands.train import memory_in_use, train_run
    from ppdm_bench.configuration import Configuration, around
    from ppdm_bench.devices import training_device

    asked = Configuration(method, (1, 1, 1), preset, r, width, arithmetic, checkpointing, batch_size)
    (asked,) = as_usage(around, [asked], start or [], [], say)
    resolved = as_usage(asked.resolve)
    if learning_rate is not None:
        resolved = replace(resolved, optimisation=replace(resolved.optimisation, learning_rate=learning_rate))
    flips = Flip(axes) if axes else None
    schedule = as_usage(Schedule, steps, minutes, batch_size, accumulate, flips, seed, validate_every)
    pace: dict[str, Any] = {"save_steps": save_steps, "save_minutes": save_minutes}
    run = Run(out, resume=resume, asked=source.describe(), notes=source.notes(), **pace)
    with joined() as ranks, progress() as bar:
        where = training_device(choice, ranks)
        shown = bar.add_task("reading the scans", total=None)

        def preparing(done: int, total: int) -> None:
            bar.update(shown, completed=done, total=total, description="making subjects")

        def show(report: StepReport) -> None:
            done, total = (report.step, steps) if steps is not None else (report.seconds, 60 * (minutes or 0))
            text = f"loss {report.loss:.4f}  {report.steps_per_second:.2f} steps/s  {memory_in_use(where)}"
            bar.update(shown, completed=done, total=total, description=text)

        try:
            result = train_run(resolved, source, schedule, run, where, preparing, show)
        except Interrupted as stopped:
            say(f"{stopped}; the same command with --resume goes on from there")
            raise typer.Exit(INTERRUPTED) from None
    if ranks.is_first:
        print(result)


@app.command()
def translate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or its .safetensors file.")],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A NIfTI file, or a folder of them.")],
    output: Annotated[Path, typer.Argument(help="A NIfTI file, or a folder.")],
    steps: Annotated[
        int | None, typer.Option(parser=count(), metavar="N", help="Evaluations of the network; default: the method's.")
    ] = None,
    seed: Annotated[int, typer.Option(parser=count(0), metavar="N", help="Of the noise, for stochastic methods.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cuda, cpu.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, fp16; default: as trained.")] = None,
    block: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Show the network blocks of N voxels a side, or D,H,W, rounded up to what the method needs; the "
            "volume stays in host memory. Default: all at once.",
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of their size that blocks have in common; default 0.25."),
    ] = None,
    suv_factor: Annotated[float | None, typer.Option(help="PET: what turns the file's values into SUV.")] = None,
) -> None:
    """Translate scans with a trained method: geometry of the input, units of the target."""
    choice = read_option("--device", one_of("auto", "cuda", "cpu"), device)
    arithmetic = read_option("--precision", one_of("fp32", "bf16", "fp16"), precision) if precision else None
    seen = read_option("--block", read_block, block) if block is not None else None

    from ppdm.checkpoint import load
    from ppdm.translation import translate as translate_files
    from ppdm_bench.devices import training_device

    trained = load(checkpoint, device=training_device(choice))
    with progress() as bar:
        task = bar.add_task("translating")
        made = translate_files(
            trained,
            source,
            output,
            steps=steps,
            seed=seed,
            precision=arithmetic,
            block=seen,
            overlap=overlap,
            suv_factor=suv_factor,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for one in made:
        if one.fault:
            say(one.fault)
        else:
            print(f"{one.output}  ({one.seconds:.1f} s)")
    raise typer.Exit(1 if any(one.fault for one in made) else 0)
