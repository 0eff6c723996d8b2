"""How options are read: lists, sizes, budgets; every refusal says what was got and what is expected.

No PyTorch here: it is imported inside commands, so that ``--help`` answers at once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ppdm_bench.commands.terminal import notify, under_torchrun
from ppdm_bench.isolation.slurm import SUBMITIT
from ppdm_bench.predictor.target import GIB, MIB

if TYPE_CHECKING:
    from ppdm_bench.commands.pair_sources import Subjects
    from ppdm_bench.configuration import Configuration

T = TypeVar("T")

# Whole numbers have up to 18 digits: more are nobody's size, and would not fit into 64 bits.
_WHOLE, _POSITIVE = "[0-9]{1,18}", "0{0,9}[1-9][0-9]{0,17}"
_DECIMAL = r"[0-9]{0,18}\.?[0-9]{1,18}"


def read_option(name: str, read: Callable[[str], T], text: str) -> T:
    """Read the value of an option. A ``ValueError`` of the reader becomes a usage error that names the option."""
    try:
        return read(text)
    except (ValueError, typer.BadParameter) as error:
        sentence = error.message if isinstance(error, typer.BadParameter) else str(error)
        raise typer.BadParameter(sentence, param_hint=f"'{name}'") from error


def as_usage(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function that checks several options together. Its ``ValueError`` becomes a usage error."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def asked_sizes(
    res: str | None, shape: str | None, like: Path | None
) -> tuple[list[tuple[int, int, int]], tuple[float, float, float] | tuple[()]]:
    """The volume sizes in voxels (D, H, W), the smallest first, and the voxel size in mm if a scan gives it.

    Raises:
        typer.BadParameter: not one of the three was given, or a size is none.
        VolumeError: the scan cannot be read.
    """
    if sum(value is not None for value in (res, shape, like)) != 1:
        raise typer.BadParameter("give one size: --res 256, --shape D,H,W or --like scan.nii.gz")
    if like is not None:
        from ppdm.data.volume import read_shape as read_size

        size, spacing = read_size(like)
        return [size], spacing
    if shape is not None:
        return [read_option("--shape", read_shape, shape)], ()
    return [(n, n, n) for n in sorted(set(read_option("--res", comma_separated(count()), res or "")))], ()


def asked_settings(
    preset: str, factor: str, precision: str, checkpointing: str, width: int | None, batch_size: int
) -> dict[str, Any]:
    """Read the options that select configurations, as arguments of :func:`ppdm_bench.configuration.configurations`.

    Raises:
        typer.BadParameter: a list that cannot be read.
    """
    return {
        "presets": read_option("--preset", comma_separated(str), preset),
        "factors": read_option("--factor", comma_separated(read_factor), factor),
        "precisions": read_option("--precision", comma_separated(str), precision),
        "checkpointing": read_option("--checkpointing", comma_separated(str), checkpointing),
        "width": width,
        "batch_size": batch_size,
    }


# Fields of the design space; the same wherever they are offered.
Variations = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="NAME=A,B",
        help="Variants of each configuration, such as kernel.gamma=0.25,1 or kernel=i2sb; repeatable.",
    ),
]
Start = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change the method that everything starts from, such as network.multipliers=[1,2,2]; repeatable.",
    ),
]


def asked_configurations(
    methods: Sequence[str] | None,
    sizes: Sequence[tuple[int, int, int]],
    settings: Mapping[str, Any],
    start: Sequence[str] | None,
    variations: Sequence[str] | None = None,
) -> "list[Configuration]":
    """Return all configurations that the options describe. Impossible combinations are left out and reported.

    Args:
        methods: names; None for all.
        sizes: of the volumes.
        settings: see :func:`asked_settings`.
        start, variations: what ``--set`` and ``--vary`` were given.

    Raises:
        typer.BadParameter: a method, an option or a point that there is not.
    """
    from ppdm_bench.configuration import around, configurations

    made = [one for size in sizes for one in as_usage(configurations, methods, size, **settings)]
    return as_usage(around, made, start or [], variations or [], notify)


def asked_subjects(manifest: Path | None, task: str | None, resample: bool, **phantoms: int | str | None) -> "Subjects":
    """The subjects of a command: the pairs of one manifest, or synthetic subjects of one task.

    Raises:
        typer.BadParameter: both, neither, or an option of the other.
    """
    given = {name: value for name, value in phantoms.items() if value is not None}
    if (manifest is None) == (task is None):
        raise typer.BadParameter("give one source of pairs: --manifest pairs.csv, or --task with a name")
    if manifest is not None and given:
        raise typer.BadParameter(f"--{next(iter(given)).replace('_', '-')} is of phantoms; give it with --task")
    if task is not None and resample:
        raise typer.BadParameter("phantoms of one subject are on one grid; give --resample with --manifest")

    from ppdm_bench.commands.pair_sources import ManifestSubjects, PhantomSubjects

    return ManifestSubjects(manifest, resample) if manifest is not None else as_usage(PhantomSubjects, task, **given)


def comma_separated(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a reader of comma-separated values; empty values are dropped, repeated ones count once."""

    def read_all(text: str) -> list[T]:
        values = dict.fromkeys(part.strip() for part in text.split(",") if part.strip())
        if not values:
            raise ValueError(f"expected values separated by commas, got {text!r}")
        return [read(value) for value in values]

    return read_all


def read_names(name: str, text: str | None) -> list[str]:
    """Read an optional list of names, such as ``--columns``; an empty list if the option was not given."""
    return read_option(name, comma_separated(str), text) if text is not None else []


def one_of(*allowed: str) -> Callable[[str], str]:
    """Return a reader that accepts only these words."""

    def read(text: str) -> str:
        if text not in allowed:
            *others, last = allowed
            expected = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"expected {expected}, got {text!r}")
        return text

    return read


def count(least: int = 1) -> Callable[[str | int], int]:
    """Return a reader of integers from ``least`` upwards."""

    def read(given: str | int) -> int:
        text = str(given)  # a default passes through here as the number that it is
        if not re.fullmatch(f"-?{_WHOLE}", text) or int(text) < least:
            raise typer.BadParameter(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return read


def read_evaluations(text: str) -> int | None:
    """Read a number of network evaluations; ``own`` gives None, the method's number.

    Raises:
        ValueError: it is neither.
    """
    if text == "own":
        return None
    if not re.fullmatch(_POSITIVE, text):
        raise ValueError(f"expected a number of network evaluations such as 4, or own, got {text!r}")
    return int(text)


# Options of several commands.
Json = Annotated[bool, typer.Option("--json", help="Print the records as one JSON array and nothing else.")]
Device = Annotated[str, typer.Option(help="Device: auto, cuda or cpu.")]
Width = Annotated[
    int | None,
    typer.Option(parser=count(), metavar="N", help="Channels at the finest level of the U-Net; default: the method's."),
]
Checkpointing = Annotated[
    str, typer.Option(help="Activation checkpointing: none, norm, block or conv, from the most memory to the least.")
]
Shape = Annotated[str | None, typer.Option(help="Volume size in voxels: D,H,W.")]
Like = Annotated[Path | None, typer.Option(help="Take the volume size from this NIfTI scan.")]
Precision = Annotated[str, typer.Option(help="Precision of convolutions: fp32, bf16 or fp16.")]
BatchSize = Annotated[int, typer.Option(parser=count(), metavar="N", help="Batch size.")]
Preset = Annotated[
    str, typer.Option(help="Preset: matched (one U-Net for all methods) or authors (the network of each paper).")
]
SampleSeed = Annotated[
    int, typer.Option(parser=count(0), metavar="N", help="Random seed; it matters only for stochastic methods.")
]
SamplePrecision = Annotated[
    str | None, typer.Option(help="Precision of convolutions: fp32, bf16 or fp16; default: as trained.")
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Synthetic task; repeatable. Default: all tasks.")]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="Registered method, or module:ATTRIBUTE of your own; repeatable. Default: all registered methods.",
    ),
]
Factors = Annotated[str, typer.Option("--factor", help="Puzzle factors, such as 2,4,8 or 1x2x2.")]
Split = Annotated[str, typer.Option(help="Split to score: test, or val to choose by.")]
SyntheticGrid = Annotated[str, typer.Option(help="Grid of the synthetic volumes: cubic, oblong or thick.")]
Columns = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME", help="Columns of the printed table and of its LaTeX; default: those that fit."),
]
Metrics = Annotated[
    str | None, typer.Option(metavar="NAME,NAME", help="Metrics of the tables for people, such as psnr,ssim.")
]
Results = Annotated[Path, typer.Option(help="Folder for records, tables and figures.")]
Runs = Annotated[Path, typer.Option(help="Folder for runs, records, tables and figures.")]

# Which phantoms a command works on, or how a manifest's pairs are read; the same wherever they are offered.
TaskName = Annotated[str | None, typer.Option(help="Synthetic task: pet-denoise, pet-joint or mri-t1t2.")]
PhantomCount = Annotated[
    int | None, typer.Option(parser=count(), metavar="N", help="Synthetic subjects, over all splits; default: 10.")
]
PhantomSize = Annotated[
    int | None,
    typer.Option(parser=count(4), metavar="N", help="Longest axis of the synthetic volumes in voxels; default: 64."),
]
PhantomGrid = Annotated[
    str | None, typer.Option(help="Grid of the synthetic volumes: cubic, oblong or thick; default: cubic.")
]
PhantomSeed = Annotated[
    int | None, typer.Option(parser=count(0), metavar="N", help="Random seed of the synthetic set; default: 0.")
]
Resample = Annotated[bool, typer.Option("--resample", help="Resample targets onto the grids of their sources.")]


# How work is spread over a cluster; the same wherever it is offered.
Launcher = Annotated[
    str | None, typer.Option(help="submitit runs each configuration as a cluster job; default: one after the other.")
]
LauncherOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--launcher-option",
        metavar="NAME=VALUE",
        help="Parameter of submitit, such as slurm_partition=gpu or timeout_min=60; repeatable.",
    ),
]


def asked_jobs(launcher: str | None, options: Sequence[str] | None) -> dict[str, Any] | None:
    """Read the parameters of the cluster jobs; None without a launcher.

    Raises:
        typer.BadParameter: another launcher than there is, an option that is none, or options without a launcher.
    """
    if launcher is None:
        if options:
            raise typer.BadParameter("--launcher-option is of jobs; give it with --launcher submitit")
        return None
    read_option("--launcher", one_of(SUBMITIT), launcher)
    if under_torchrun():
        raise typer.BadParameter("--launcher makes jobs of its own; start the command without torchrun")
    return dict(read_option("--launcher-option", _read_parameter, text) for text in options or ())


def _read_parameter(text: str) -> tuple[str, int | float | str]:
    """Read a name and its value; a value that looks like a number becomes one."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value:
        raise ValueError(f"expected a parameter of submitit and its value such as slurm_partition=gpu, got {text!r}")
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value


def read_seconds(given: str | float) -> float:
    """Read a time limit between one second and a million seconds."""
    text = str(given)
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not 1 <= float(text) <= 1e6:
        raise typer.BadParameter(f"expected seconds from 1 to 1000000, got {text!r}")
    return float(text)


def positive(what: str) -> Callable[[str | float], float]:
    """Return a reader of positive numbers, such as minutes."""

    def read(given: str | float) -> float:
        text = str(given)
        if not re.fullmatch(r"([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})(e[+-]?[0-9]{1,2})?", text) or not float(text):
            raise typer.BadParameter(f"expected {what}, a positive number, got {text!r}")
        return float(text)

    return read


def read_pace(text: str) -> tuple[int | None, float | None]:
    """Read an interval: a number of steps (``200``) or of minutes (``5min``).

    Raises:
        ValueError: it is neither.
    """
    if re.fullmatch(_POSITIVE, text):
        return int(text), None
    match = re.fullmatch(rf"({_DECIMAL})\s*min", text)
    if not match or not float(match[1]):
        raise ValueError(f"expected steps such as 200, or minutes such as 5min, got {text!r}")
    return None, float(match[1])


def read_flips(text: str) -> str:
    """Read the flipped axes: ``none``, ``flip`` (left-right), or chosen axes such as ``flip:dhw``.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"none|flip(?::([dhw]{1,3}))?", text)
    axes = "" if not match or text == "none" else match[1] or "d"
    if not match or len(set(axes)) < len(axes):
        raise ValueError(f"expected none, flip (left and right) or flip:dhw with the axes that are meant, got {text!r}")
    return axes


def read_factor(text: str) -> int | tuple[int, int, int]:
    """Read a puzzle factor: ``2``, or one per axis: ``1x2x2``.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,17}(x[1-9][0-9]{0,17}x[1-9][0-9]{0,17})?", text):
        raise ValueError(f"expected a positive factor such as 2, or one an axis such as 1x2x2, got {text!r}")
    numbers = [int(part) for part in text.split("x")]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def read_shape(text: str) -> tuple[int, int, int]:
    """Read a shape D,H,W in voxels.

    Raises:
        ValueError: it is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(re.fullmatch(_POSITIVE, part) for part in parts):
        raise ValueError(f"expected three positive sizes D,H,W in voxels such as 160,192,160, got {text!r}")
    d, h, w = map(int, parts)
    return d, h, w


def read_block(text: str) -> int | tuple[int, int, int]:
    """Read the size of a block in voxels: one number, or D,H,W.

    Raises:
        ValueError: it is neither.
    """
    if re.fullmatch(_POSITIVE, text):
        return int(text)
    try:
        return read_shape(text)
    except ValueError:
        raise ValueError(f"expected a number of voxels such as 128, or three D,H,W, got {text!r}") from None


def read_lengths(text: str) -> tuple[float, float, float]:
    """Read a voxel size in mm: ``2``, or one per axis: ``2,2,4``.

    Raises:
        ValueError: they are none.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(re.fullmatch(_DECIMAL, part) and float(part) for part in parts):
        raise ValueError(f"expected one or three lengths in mm such as 2 or 2,2,4, got {text!r}")
    d, h, w = [float(part) for part in parts] * (3 // len(parts))
    return d, h, w


def read_dose(text: str) -> int:
    """Read a dose factor; the counts are divided by it.

    Raises:
        ValueError: it is no whole number from 2 up.
    """
    if not re.fullmatch(_WHOLE, text) or int(text) < 2:
        raise ValueError(f"expected a dose factor, a whole number from 2 up such as 20, got {text!r}")
    return int(text)


def read_budget(text: str) -> int:
    """Read the memory of a card in bytes: ``24GB``. Cards are sold in GB of 2^30 bytes, so GB and GiB mean the same.

    Raises:
        ValueError: it is none, or less than 1 MB.
    """
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(G|M)(?:I?B)?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * (GIB if match[2].upper() == "G" else MIB)) if match else 0
    if size < MIB:
        raise ValueError(f"expected an amount of memory such as 24GB or 512MB, got {text!r}")
    return size
