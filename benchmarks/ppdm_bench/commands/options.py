"""Options that several commands share, and readers for values that Typer has no type for.

Every error states the value that was given and the values that are expected. This module does not import PyTorch, so
that ``--help`` starts fast.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import typer

from ppdm_bench.commands.terminal import notify, under_torchrun
from ppdm_bench.predictor.cards import CARDS
from ppdm_bench.predictor.target import GIB, MIB

if TYPE_CHECKING:
    from ppdm.data.normalise import HounsfieldWindow
    from ppdm_bench.commands.pair_sources import Subjects
    from ppdm_bench.configuration import Configuration

T = TypeVar("T")

# Integers have at most 18 digits, so that they fit into 64 bits.
_WHOLE, _POSITIVE, _NUMBER = "[0-9]{1,18}", "0{0,9}[1-9][0-9]{0,17}", "[1-9][0-9]{0,17}"
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
    """Return the volume sizes in voxels (D, H, W), the smallest first, and the voxel size in mm if a scan gives it.

    Raises:
        typer.BadParameter: not exactly one of the three was given, or a size cannot be read.
        VolumeError: the scan cannot be read.
    """
    if sum(value is not None for value in (res, shape, like)) != 1:
        raise typer.BadParameter("give one size: --res 256, --shape DxHxW or --like scan.nii.gz")
    if like is not None:
        from ppdm.data.volume import read_shape as read_size

        size, spacing = read_size(like)
        return [size], spacing
    if shape is not None:
        return [read_option("--shape", read_shape, shape)], ()
    return [(n, n, n) for n in sorted(set(read_option("--res", comma_separated(count()), res or "")))], ()


def asked_settings(
    preset: str, factor: str, precision: str, checkpointing: str, width: int | None, batch_size: int, sources: int = 1
) -> dict[str, Any]:
    """Read the options that select configurations, as arguments of :func:`ppdm_bench.configuration.configurations`.

    Raises:
        typer.BadParameter: a list cannot be read.
    """
    return {
        "presets": read_option("--preset", comma_separated(str), preset),
        "factors": read_option("--factor", comma_separated(read_factor), factor),
        "precisions": read_option("--precision", comma_separated(str), precision),
        "checkpointing": read_option("--checkpointing", comma_separated(str), checkpointing),
        "width": width,
        "batch_size": batch_size,
        "sources": sources,
    }


def asked_configurations(
    methods: Sequence[str] | None,
    sizes: Sequence[tuple[int, int, int]],
    settings: Mapping[str, Any],
    start: Sequence[str] | None,
    variations: Sequence[str] | None = None,
) -> "list[Configuration]":
    """Return all configurations that the options describe. Impossible combinations are left out and reported.

    Args:
        methods: names; None for all registered methods.
        sizes: volume sizes in voxels.
        settings: see :func:`asked_settings`.
        start, variations: values of ``--set`` and ``--vary``.

    Raises:
        typer.BadParameter: a method, an option or a point does not exist.
    """
    from ppdm_bench.configuration import around, configurations

    made = [one for size in sizes for one in as_usage(configurations, methods, size, **settings)]
    return as_usage(around, made, start or [], variations or [], notify)


def asked_reference(reference: str | None) -> str | None:
    """Return the row that ``--reference`` means, with ``module:ATTRIBUTE`` replaced by the name of the method.

    Raises:
        typer.BadParameter: the method cannot be loaded.
    """
    if reference is None or ":" not in reference or Path(reference).exists():
        return reference

    from ppdm_bench.configuration import find_method

    method, space, variant = reference.partition(" ")
    return as_usage(find_method, method).name + space + variant


def asked_subjects(
    manifest: Path | None,
    task: str | None,
    resample: bool,
    source_intensity: str | None = None,
    target_intensity: str | None = None,
    **phantoms: int | str | None,
) -> "Subjects":
    """Return the subjects of a command: the pairs of one manifest, or synthetic subjects of one task.

    Raises:
        typer.BadParameter: both or neither were given, an option of the other one, or an intensity that is none.
    """
    if (manifest is None) == (task is None):
        raise typer.BadParameter("give one source of pairs: --manifest pairs.csv, or --task with a name")
    intensities = asked_intensities(source_intensity, target_intensity)
    _check_sources(manifest is not None, task is not None, resample, phantoms)
    if task is not None and intensities:
        name = next(iter(intensities)).replace("_", "-")
        raise typer.BadParameter(f"synthetic volumes are PET or MRI; give --{name} with --manifest")

    from ppdm_bench.commands.pair_sources import ManifestSubjects, PhantomSubjects

    given = {name: value for name, value in phantoms.items() if value is not None}
    if manifest is not None:
        return ManifestSubjects(manifest, resample, **intensities)
    return as_usage(PhantomSubjects, task, **given)


def asked_intensities(source: str | None, target: str | None) -> "dict[str, HounsfieldWindow]":
    """Read ``--source-intensity`` and ``--target-intensity``; an option that was not given is left out.

    Raises:
        typer.BadParameter: a value is no intensity.
    """
    from ppdm.data.normalise import HounsfieldWindow

    given = {"source_intensity": source, "target_intensity": target}
    return {
        name: read_option(f"--{name.replace('_', '-')}", HounsfieldWindow.parse, text)
        for name, text in given.items()
        if text is not None
    }


def read_places(places: Sequence[Path], sources: Sequence[str] | None) -> tuple[Path | dict[str, Path], Path]:
    """Return the input of a translation, or the named inputs of ``--source``, and its output.

    Raises:
        typer.BadParameter: a text is not NAME=FILE, a name is repeated, or there are too few or too many paths.
    """
    named = [read_option("--source", _read_named, text) for text in sources or ()]
    if twice := [name for name, _ in named if [other for other, _ in named].count(name) > 1]:
        raise typer.BadParameter(f"--source gives {twice[0]} twice; give each source once")
    if len(places) != (1 if named else 2):
        wanted = "OUTPUT after the run, since --source gives the inputs" if named else "INPUT and OUTPUT after the run"
        raise typer.BadParameter(f"expected {wanted}; got {', '.join(map(str, places))}")
    return dict(named) if named else places[0], places[-1]


def _read_named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (equals and name and path):
        raise ValueError(f"expected the name of a source and its scan such as t1=T1.nii.gz, got {text!r}")
    return name, Path(path)


def asked_sets(
    tasks: Sequence[str] | None,
    manifests: Sequence[Path] | None,
    resample: bool,
    default: Mapping[str, Any],
    **phantoms: int | str | None,
) -> "list[Subjects]":
    """Return the data sets of a comparison: synthetic subjects of each task, and the pairs of each manifest.

    Args:
        tasks, manifests, resample: the options; without tasks and manifests, those of the default or the paper's three.
        default: values of options that were not given.
        phantoms: options of the synthetic subjects; None if not given.

    Raises:
        typer.BadParameter: a task does not exist, two sets have one name, or an option is for the other kind of set.
    """
    from ppdm.simulation.tasks import PAPER_TASKS
    from ppdm_bench.commands.pair_sources import ManifestSubjects, PhantomSubjects, distinct_sets

    names = tasks or ([] if manifests else default.get("task", PAPER_TASKS))
    _check_sources(bool(manifests), bool(names), resample, phantoms)
    made = {name: default.get(name) if value is None else value for name, value in phantoms.items()}
    made = {name: value for name, value in made.items() if value is not None}
    sets = [as_usage(PhantomSubjects, name, **made) for name in names]
    return as_usage(distinct_sets, [*sets, *(ManifestSubjects(path, resample) for path in manifests or [])])


def _check_sources(manifest: bool, task: bool, resample: bool, phantoms: Mapping[str, int | str | None]) -> None:
    """Check that options of manifests and of synthetic subjects have such a source."""
    given = [name for name, value in phantoms.items() if value is not None]
    if given and not task:
        raise typer.BadParameter(f"--{given[0].replace('_', '-')} is for synthetic subjects; give it with --task")
    if resample and not manifest:
        raise typer.BadParameter("synthetic volumes of a subject share one grid; give --resample with --manifest")


def comma_separated(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a reader of comma-separated values. It drops blanks; a repeated value counts once, with a warning."""

    def read_all(text: str) -> list[T]:
        values = [read(part.strip()) for part in text.split(",") if part.strip()]
        if not values:
            raise ValueError(f"expected values separated by commas, got {text!r}")
        distinct = list(dict.fromkeys(values))
        if len(distinct) < len(values):
            hint = "; a comma separates alternatives, x separates axes (2x2x1)" if read is read_factor else ""
            notify(f"warning: {text} repeats a value, which counts once{hint}")
        return distinct

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
        text = str(given)  # Typer passes a default as a number
        if not re.fullmatch(f"-?{_WHOLE}", text) or int(text) < least:
            raise typer.BadParameter(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return read


def read_evaluations(text: str) -> int | None:
    """Read a number of network evaluations; ``own`` gives None, the method's number.

    Raises:
        ValueError: the text is neither.
    """
    if text == "own":
        return None
    if not re.fullmatch(_POSITIVE, text):
        raise ValueError(f"expected a number of network evaluations such as 4, or own, got {text!r}")
    return int(text)


def asked_jobs(launcher: str | None, options: Sequence[str] | None) -> dict[str, Any] | None:
    """Read the parameters of the cluster jobs; None without a launcher.

    Raises:
        typer.BadParameter: a parameter cannot be read, or there are parameters without a launcher.
    """
    if launcher is None:
        if options:
            raise typer.BadParameter("--launcher-option is for cluster jobs; give it with --launcher submitit")
        return None
    if under_torchrun():
        raise typer.BadParameter("--launcher starts its own jobs; run the command without torchrun")
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
        ValueError: the text is neither.
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
        ValueError: the text is none of these.
    """
    match = re.fullmatch(r"none|flip(?::([dhw]{1,3}))?", text)
    axes = "" if not match or text == "none" else match[1] or "d"
    if not match or len(set(axes)) < len(axes):
        raise ValueError(f"expected none, flip (left and right) or flip:dhw with the axes that are meant, got {text!r}")
    return axes


def _read_axes(text: str, number: str, expected: str, *counts: int, several: bool = False) -> list[str]:
    """Read one number or one per axis, such as ``1x2x2``.

    A comma separates alternatives. An option without alternatives still accepts commas between axes, with a notice.

    Args:
        text, number: the text, and the regular expression of one number.
        expected: description of the expected text, for the error.
        counts: allowed numbers of axes.
        several: whether the option can have alternatives.
    """
    parts = text.split("x")
    if len(parts) in counts and all(re.fullmatch(number, part) for part in parts):
        return parts
    commas = [part.strip() for part in text.split(",")]
    if len(commas) != 3 or not all(re.fullmatch(number, part) for part in commas):
        raise ValueError(f"expected {expected}, got {text!r}")
    now = "x".join(commas)
    if several:
        raise ValueError(f"expected {expected}, got {text!r}; x separates axes, write {now}")
    notify(f"axes are now separated by x: write {now} instead of {text}; the old form will be removed")
    return commas


def read_factor(text: str) -> int | tuple[int, int, int]:
    """Read a puzzle factor: ``2``, or one per axis: ``1x2x2``.

    Raises:
        ValueError: the text is neither.
    """
    return _one_or_three(
        _read_axes(text, _NUMBER, "a positive factor such as 2, or one per axis such as 1x2x2", 1, 3, several=True)
    )


def read_shape(text: str) -> tuple[int, int, int]:
    """Read a shape in voxels, depth, height and width: ``160x192x160``.

    Raises:
        ValueError: the text is no shape.
    """
    d, h, w = map(int, _read_axes(text, _NUMBER, "three positive sizes DxHxW in voxels such as 160x192x160", 3))
    return d, h, w


def read_block(text: str) -> int | tuple[int, int, int]:
    """Read the size of a block in voxels: ``128``, or one per axis: ``64x128x128``.

    Raises:
        ValueError: the text is neither.
    """
    expected = "a number of voxels such as 128, or three DxHxW such as 64x128x128"
    return _one_or_three(_read_axes(text, _NUMBER, expected, 1, 3))


def read_lengths(text: str) -> tuple[float, float, float]:
    """Read a voxel size in mm: ``2``, or one per axis: ``2x2x4``.

    Raises:
        ValueError: the text is neither.
    """
    expected = "one or three positive lengths in mm such as 2 or 2x2x4"
    parts = _read_axes(text, rf"(?=.*[1-9]){_DECIMAL}", expected, 1, 3)
    d, h, w = [float(part) for part in parts] * (3 // len(parts))
    return d, h, w


def _one_or_three(parts: Sequence[str]) -> int | tuple[int, int, int]:
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


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


def integer(description: str, least: int = 1) -> Any:
    """Return an option for an integer from ``least`` upwards. Typer's own ``min`` does not repeat the value given."""
    return typer.Option(parser=count(least), metavar="N", help=description)


def completed(*words: str) -> Callable[[str], list[str]]:
    """Return a completion with these words; in a comma-separated list it completes the last value."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + word for word in words if word.startswith(last)]

    return complete


def _known_methods(incomplete: str) -> list[str]:
    """Complete a method's name. The registry imports PyTorch, so it is read only when a shell asks for completion."""
    from ppdm_baselines import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


# Values for completion and help. The modules that define them import PyTorch.
PRESETS = ("matched", "authors")
PRECISIONS = ("fp32", "bf16", "fp16")
CHECKPOINTING = ("none", "norm", "block", "conv")
Task = Literal["pet-denoise", "pet-joint", "mri-t1t2", "mri-flair"]
Grid = Literal["cubic", "oblong", "thick"]

# Options of several commands.
Json = Annotated[bool, typer.Option("--json", help="Print the records as one JSON array and nothing else.")]
Device = Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="Device; auto: a GPU if there is one.")]
Width = Annotated[int | None, integer("Channels at the finest level of the U-Net; default: the method's.")]
Checkpointing = Annotated[
    str,
    typer.Option(
        help="Activation checkpointing: none, norm, block or conv, from the most memory to the least.",
        autocompletion=completed(*CHECKPOINTING),
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(metavar="DxHxW", help="Volume size in voxels, such as 160x192x160. Give this, --res or --like."),
]
Like = Annotated[
    Path | None, typer.Option(help="Take the volume size from this NIfTI scan. Give this, --res or --shape.")
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        autocompletion=lambda incomplete: [card.name for card in CARDS if incomplete.lower() in card.name.lower()],
        help='Card to predict for, such as "RTX 4090". Default: the card of this machine.',
    ),
]

Precision = Annotated[
    str,
    typer.Option(help="Precision of convolutions: fp32, bf16 or fp16.", autocompletion=completed(*PRECISIONS)),
]
BatchSize = Annotated[int, integer("Batch size.")]
Sources = Annotated[
    int, integer("Number of sources that the method translates from, such as 3 for T1, T1c and T2 to FLAIR.")
]
Preset = Annotated[
    str,
    typer.Option(
        help="Preset: matched (one U-Net for all methods) or authors (the network of each paper).",
        autocompletion=completed(*PRESETS),
    ),
]
SampleSeed = Annotated[int, integer("Random seed; it matters only for stochastic methods.", 0)]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        parser=count(2),
        metavar="N",
        help="Draws per volume, 2 or more, of methods whose sampling uses noise; their mean is scored. Default: one.",
    ),
]
SamplePrecision = Annotated[
    Literal["fp32", "bf16", "fp16"] | None, typer.Option(help="Precision of convolutions; default: as trained.")
]
Minutes = Annotated[
    float | None,
    typer.Option(
        parser=positive("minutes"), metavar="MINUTES", help="Time of each training, instead of --steps; default: none."
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="Synthetic task; repeatable. Default: the paper's three, or none with --manifest.",
        autocompletion=completed(*get_args(Task)),
    ),
]
Manifests = Annotated[
    list[Path] | None,
    typer.Option(
        "--manifest",
        help="CSV file of your own pairs, beside --task or instead; repeatable. Results are named after the file. "
        "Default: none.",
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        help="Registered method, or your own: its name or module:ATTRIBUTE.",
        autocompletion=_known_methods,
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="Registered method, or your own: its name or module:ATTRIBUTE; repeatable. Default: all registered "
        "methods.",
        autocompletion=_known_methods,
    ),
]
Factors = Annotated[
    str, typer.Option("--factor", help="Puzzle factors, such as 2,4; 1x2x2 is one factor with a number per axis.")
]
Split = Annotated[Literal["train", "val", "test"], typer.Option(help="Split to score; choose settings by val.")]
Columns = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME", help="Columns of the printed table and of its LaTeX; default: those that fit."),
]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME", help="Metrics of the tables for people, such as psnr,ssim; default: all."),
]
Results = Annotated[Path, typer.Option(help="Folder for records, tables and figures.")]
Runs = Annotated[Path, typer.Option(help="Folder for runs, records, tables and figures.")]

# Which phantoms a command works on, or how a manifest's pairs are read.
TaskName = Annotated[Task | None, typer.Option(help="Synthetic task. Give this or --manifest.")]
PhantomCount = Annotated[int | None, integer("Synthetic subjects, over all splits; default: 10.")]
PhantomSize = Annotated[int | None, integer("Longest axis of the synthetic volumes in voxels; default: 64.", 4)]
PhantomGrid = Annotated[Grid | None, typer.Option(help="Grid of the synthetic volumes; default: cubic.")]
PhantomSeed = Annotated[int | None, integer("Random seed of the synthetic set; default: 0.", 0)]
Resample = Annotated[bool, typer.Option("--resample", help="Resample onto the grid of the (first) source.")]
SourceIntensity = Annotated[
    str | None,
    typer.Option(
        metavar="ct[:LOW,HIGH]", help="The sources are CT, as for --target-intensity; default: as the manifest says."
    ),
]
TargetIntensity = Annotated[
    str | None,
    typer.Option(
        metavar="ct[:LOW,HIGH]",
        help="The targets are CT in HU, clipped to a window, by default ct:-1024,3000. Default: as the manifest says.",
    ),
]

# Fields of the design space.
Variations = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="NAME=A,B",
        help="Variants of each configuration, such as kernel.gamma=0.25,1 or kernel=i2sb; repeatable. Default: none.",
    ),
]
Start = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change the method that everything starts from, such as network.multipliers=[1,2,2]; repeatable. "
        "Default: no change.",
    ),
]

# How work is spread over a cluster.
Launcher = Annotated[
    Literal["submitit"] | None,
    typer.Option(help="Run each configuration as a cluster job; default: one after the other."),
]
LauncherOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--launcher-option",
        metavar="NAME=VALUE",
        help="Parameter of submitit, such as slurm_partition=gpu or timeout_min=60; repeatable. Default: none.",
    ),
]
