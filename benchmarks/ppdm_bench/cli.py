"""The command line: ``ppdm-bench``. Results go to stdout, progress and errors to stderr.

PyTorch is imported inside commands, so that ``--help`` and ``--version`` answer at once.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppdm_bench.options import as_usage, comma_separated, one_of, read_budget, read_factor, read_shape

if TYPE_CHECKING:
    from rich.progress import Progress

    from ppdm_bench.memory.command import Plan
    from ppdm_bench.records import Record

# A usage error, by the name that every version of typer gives it.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    help="Memory benchmark and ablation toolkit for volumetric medical image translation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line: exit code 0 done, 1 something asked could not be done, 2 bad usage."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is recorded", 130)
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        _fail(_sentence(error), 2 if isinstance(error, UsageError) else 1)  # type: ignore[arg-type]
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> str:
    if hasattr(error, "format_message"):
        return str(error.format_message())
    if isinstance(error, ValueError | RuntimeError | OSError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}; run with --debug for the details, and report it please"


def _fail(sentence: str, code: int) -> None:
    if sentence:
        print(f"ppdm-bench: {sentence}", file=sys.stderr)
    sys.exit(code)


def _version(asked: bool) -> None:
    if asked:
        from ppdm_bench.version import version

        print(f"ppdm-bench {version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Memory benchmark and ablation toolkit for volumetric medical image translation."""


Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="A registered method, or module:ATTRIBUTE of your own; repeatable. Default: all."),
]
Factors = Annotated[str, typer.Option("--factor", help="Puzzle factors, such as 2,4,8 or 1x2x2.")]
Device = Annotated[str, typer.Option(help="auto (measure where there is a GPU), cuda, cpu, or predict.")]


@app.command()
def memory(
    res: Annotated[int | None, typer.Option(min=1, help="Cubic volumes of this size, such as 256.")] = None,
    shape: Annotated[str | None, typer.Option(help="Volumes of this size, D,H,W in voxels.")] = None,
    like: Annotated[Path | None, typer.Option(help="Volumes of the size of this NIfTI scan.")] = None,
    method: Methods = None,
    factor: Factors = "2,4,8",
    phase: Annotated[str, typer.Option(help="train, sample.")] = "train,sample",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16.")] = "fp32",
    checkpointing: Annotated[str, typer.Option(help="Activations recomputed: none, norm, block.")] = "none",
    batch_size: Annotated[int, typer.Option(min=1, help="Volumes at once.")] = 1,
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the finest level.")] = None,
    preset: Annotated[str, typer.Option(help="matched (one U-Net for all), authors (each paper's).")] = "matched",
    device: Device = "auto",
    budget: Annotated[str | None, typer.Option(help="Memory of a card, such as 24GB: what fits?")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one measurement.")] = 600,
    out: Annotated[Path, typer.Option(help="Folder for records, tables and figures.")] = Path("results/memory"),
    json: Annotated[
        bool, typer.Option("--json", help="Print the records as one JSON array, and nothing else.")
    ] = False,
) -> None:
    """Peak memory of every method at a size: measured where there is a GPU, predicted anywhere."""
    phases = comma_separated(one_of("train", "sample"))(phase)
    choice = one_of("auto", "cuda", "cpu", "predict")(device)
    capacity = read_budget(budget) if budget else None
    size, spacing = _size(res, shape, like)
    wanted: dict[str, Any] = {
        "presets": comma_separated(str)(preset),
        "factors": comma_separated(read_factor)(factor),
        "precisions": comma_separated(str)(precision),
        "checkpointing": comma_separated(str)(checkpointing),
        "width": width,
        "batch_size": batch_size,
    }
    folder = _writable(out)

    from ppdm_bench.configuration import configurations, method_names
    from ppdm_bench.devices import choose
    from ppdm_bench.memory.command import Plan

    asked = as_usage(configurations, method or method_names(), size, **wanted)
    where, target = choose(choice, capacity)
    plan = Plan(asked, phases, where, target, spacing, timeout)
    _report(_collect(plan, folder), folder, capacity, json)


def _size(
    res: int | None, shape: str | None, like: Path | None
) -> tuple[tuple[int, int, int], tuple[float, float, float] | tuple[()]]:
    if sum(value is not None for value in (res, shape, like)) != 1:
        raise typer.BadParameter("give one size: --res 256, --shape D,H,W or --like scan.nii.gz")
    if like is not None:
        from ppdm.data.volume import read_shape as read_size

        return read_size(like)
    return (read_shape(shape), ()) if shape is not None else ((res or 0,) * 3, ())  # type: ignore[return-value]


def _writable(folder: Path) -> Path:
    """Make the folder now: an hour of measurements must not end in a folder that cannot be written."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OSError(f"the folder {folder} cannot be written ({reason}); give another --out") from error
    return folder


def _collect(plan: "Plan", folder: Path) -> "list[Record]":
    """Carry the plan out under a progress bar; every record is on disk before the next task begins."""
    from ppdm_bench.memory.command import carry_out
    from ppdm_bench.records import RecordFile

    file, records = RecordFile(folder / "records.jsonl"), []
    known = {record.content() for record in file.read()}
    with _progress() as bar:
        task = bar.add_task("", total=len(plan.tasks))
        for made in carry_out(plan, lambda current: bar.update(task, description=current.text)):
            file.append(record for record in made if record.content() not in known)
            records += made
            bar.advance(task)
    return records


def _report(records: "list[Record]", folder: Path, budget: int | None, json: bool) -> None:
    from ppdm_baselines import REFERENCE

    from ppdm_bench.records import write_json_array
    from ppdm_bench.report import figure, table

    frame = table.memory_table(records, reference=REFERENCE, budget=budget)
    written = [folder / "records.jsonl", *table.save(frame, folder / "memory")]
    if any(record.value is not None for record in records if record.metric == "peak_allocated"):
        written += figure.save(figure.memory_figure(records, reference=REFERENCE), folder / "memory")
    if any(record.metric == "activations" for record in records):
        written += figure.save(figure.breakdown_figure(records), folder / "breakdown")
    if json:
        print(write_json_array(records))
        return
    print(table.to_text(frame))
    print("written: " + ", ".join(map(str, written)))


@contextmanager
def _progress() -> "Iterator[Progress]":
    """A progress bar with an estimate, on a terminal's stderr only."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TextColumn("{task.description}"), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield progress


@app.command()
def methods(
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What is registered: every method, its presets, parameters and network evaluations a volume."""
    from ppdm_bench.catalogue import catalogue, catalogue_text

    rows = catalogue()
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
    manifest: Annotated[Path, typer.Option(help="CSV of pairs: subject,split,source,target[,mask][,suv_factor].")],
    out: Annotated[Path, typer.Option(help="The run's folder: checkpoint, options and log.")],
    method: Annotated[str, typer.Option(help="A registered method, or module:ATTRIBUTE of your own.")] = "ppdm",
    preset: Annotated[str, typer.Option(help="matched, authors.")] = "matched",
    factor: Annotated[str | None, typer.Option(help="Puzzle factor, such as 4 or 1x2x2.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the finest level.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the weights.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs an update.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, bf16.")] = "fp32",
    checkpointing: Annotated[str, typer.Option(help="Activations recomputed: none, norm, block.")] = "none",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights on the CPU.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cuda, cpu.")] = "auto",
) -> None:
    """Train a method on pairs of scans."""
    r = read_factor(factor) if factor else None
    choice = one_of("auto", "cuda", "cpu")(device)

    from ppdm_bench.configuration import Configuration
    from ppdm_bench.devices import training_device
    from ppdm_bench.training import train_run

    asked = Configuration(method, (1, 1, 1), preset, r, width, precision, checkpointing, batch_size)
    resolved = as_usage(asked.resolve)
    where = training_device(choice)
    with _progress() as bar:
        task = bar.add_task("reading the scans", total=steps)

        def show(step: int, text: str) -> None:
            bar.update(task, completed=step, description=text)

        print(train_run(resolved, manifest, _writable(out), steps, batch_size, seed, where, show))


@app.command()
def translate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or its .safetensors file.")],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A NIfTI file, or a folder of them.")],
    output: Annotated[Path, typer.Argument(help="A NIfTI file, or a folder.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Evaluations of the network; default: the method's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise, for stochastic methods.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cuda, cpu.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, fp16; default: as trained.")] = None,
    suv_factor: Annotated[float | None, typer.Option(help="PET: what turns the file's values into SUV.")] = None,
) -> None:
    """Translate scans with a trained method: geometry of the input, units of the target."""
    choice = one_of("auto", "cuda", "cpu")(device)

    from ppdm.checkpoint import load
    from ppdm.translate import translate as translate_files
    from ppdm_bench.devices import training_device

    where = training_device(choice)
    trained = load(checkpoint, device=where)
    with _progress() as bar:
        task = bar.add_task("translating")
        made = translate_files(
            trained,
            source,
            output,
            steps=steps,
            seed=seed,
            precision=precision,
            suv_factor=suv_factor,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for one in made:
        print(f"{one.source}: {one.fault}" if one.fault else f"{one.output}  ({one.seconds:.1f} s)")
    if any(one.fault for one in made):
        raise typer.Exit(1)
