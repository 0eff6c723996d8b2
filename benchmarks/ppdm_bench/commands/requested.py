"""Values that several options request together: sizes, configurations, pairs, intensities, jobs.

Every error states the value that was given and the values that are expected.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ppdm_bench.commands.terminal import notify, under_torchrun
from ppdm_bench.commands.values import (
    comma_separated,
    or_usage_error,
    read_factor,
    read_option,
    read_shape,
    whole_number,
)

if TYPE_CHECKING:
    from ppdm.data.normalise import HounsfieldWindow
    from ppdm_bench.commands.pair_sources import Subjects
    from ppdm_bench.configuration import Configuration


def requested_sizes(
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
    return [(n, n, n) for n in sorted(set(read_option("--res", comma_separated(whole_number()), res or "")))], ()


def requested_settings(
    preset: str, factor: str, precision: str, checkpointing: str, width: int | None, batch_size: int, sources: int
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


def requested_configurations(
    methods: Sequence[str] | None,
    sizes: Sequence[tuple[int, int, int]],
    settings: Mapping[str, Any],
    start: Sequence[str] | None,
    variations: Sequence[str] | None = None,
) -> "list[Configuration]":
    """Return all configurations that the options describe. Unsupported combinations are left out and reported.

    Args:
        methods: names; None for all registered methods.
        sizes: volume sizes in voxels.
        settings: see :func:`requested_settings`.
        start, variations: values of ``--set`` and ``--vary``.

    Raises:
        typer.BadParameter: a method, an option or a point does not exist.
    """
    from ppdm_bench.configuration import configurations, with_variations

    made = [one for size in sizes for one in or_usage_error(configurations, methods, size, **settings)]
    return or_usage_error(with_variations, made, start or [], variations or [], notify)


def requested_reference(reference: str | None) -> str | None:
    """Return the row that ``--reference`` names, with ``module:ATTRIBUTE`` replaced by the name of the method.

    Raises:
        typer.BadParameter: the method cannot be loaded.
    """
    if reference is None or ":" not in reference or Path(reference).exists():
        return reference

    from ppdm_bench.configuration import find_method

    method, space, variant = reference.partition(" ")
    return or_usage_error(find_method, method).name + space + variant


def requested_subjects(
    manifest: Path | None,
    task: str | None,
    resample: bool,
    source_intensity: str | None = None,
    target_intensity: str | None = None,
    **phantoms: int | str | None,
) -> "Subjects":
    """Return the subjects of a command: the pairs of one manifest, or synthetic subjects of one task.

    Raises:
        typer.BadParameter: both or neither were given, an option is for the other one, or an intensity is invalid.
    """
    if (manifest is None) == (task is None):
        raise typer.BadParameter("give one source of pairs: --manifest pairs.csv, or --task with a name")
    intensities = requested_intensities(source_intensity, target_intensity)
    _check_sources(manifest is not None, task is not None, resample, phantoms)
    if task is not None and intensities:
        name = next(iter(intensities)).replace("_", "-")
        raise typer.BadParameter(f"synthetic volumes are PET or MRI; give --{name} with --manifest")

    from ppdm_bench.commands.pair_sources import ManifestSubjects, PhantomSubjects

    given = {name: value for name, value in phantoms.items() if value is not None}
    if manifest is not None:
        return ManifestSubjects(manifest, resample, **intensities)
    return or_usage_error(PhantomSubjects, task, **given)


def requested_intensities(source: str | None, target: str | None) -> "dict[str, HounsfieldWindow]":
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


def input_and_output(places: Sequence[Path], sources: Sequence[str] | None) -> tuple[Path | dict[str, Path], Path]:
    """Return the input of a translation, or its named inputs (``--source``), and its output.

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


def requested_sets(
    tasks: Sequence[str] | None,
    manifests: Sequence[Path] | None,
    resample: bool,
    default: Mapping[str, Any],
    **phantoms: int | str | None,
) -> "list[Subjects]":
    """Return the data sets of a comparison: synthetic subjects of each task, and the pairs of each manifest.

    Args:
        tasks, manifests, resample: the options; without tasks and manifests, the tasks in ``default``, else the three
            of the paper.
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
    sets = [or_usage_error(PhantomSubjects, name, **made) for name in names]
    return or_usage_error(distinct_sets, [*sets, *(ManifestSubjects(path, resample) for path in manifests or [])])


def _check_sources(manifest: bool, task: bool, resample: bool, phantoms: Mapping[str, int | str | None]) -> None:
    """Check that no option is given for a source of pairs that is not used."""
    given = [name for name, value in phantoms.items() if value is not None]
    if given and not task:
        raise typer.BadParameter(f"--{given[0].replace('_', '-')} is for synthetic subjects; give it with --task")
    if resample and not manifest:
        raise typer.BadParameter("synthetic volumes of a subject share one grid; give --resample with --manifest")


def requested_jobs(launcher: str | None, options: Sequence[str] | None) -> dict[str, Any] | None:
    """Return the parameters of the cluster jobs; None without a launcher.

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
