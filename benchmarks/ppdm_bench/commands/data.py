"""``ppdm-bench data``: synthetic subjects, manifests of your own scans, and checks of both."""

import os
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.terminal import ensure_writable, notify, progress
from ppdm_bench.commands.values import (
    comma_separated,
    integer_option,
    or_usage_error,
    read_dose,
    read_if_given,
    read_shape,
    read_spacing,
    whole_number,
)
from ppdm_bench.units import plural, shape_text

if TYPE_CHECKING:
    from ppdm.data.manifest import Pair
    from ppdm.simulation.tasks import Recipe

app = typer.Typer(help="Synthetic subjects, manifests of your own scans, and checks of both.", no_args_is_help=True)

MANIFEST = "pairs.csv"

_LONGEST_TITLE = 15  # letters that fit above one of six pictures in a row


def _expanded(path: Path) -> Path:
    """Return the path with ``~`` replaced by the home folder: shells do not replace it in ``--out=~/x``."""
    return Path(os.path.expanduser(path))


Picture = Annotated[Path, typer.Option(help="Picture without suffix; PNG and PDF are written.", callback=_expanded)]
Manifest = Annotated[Path, typer.Argument(help="CSV file of the pairs.")]


@app.command("list")
def list_() -> None:
    """List the tasks, the known folder layouts and the contents of the cache."""
    from ppdm.data.layouts import LAYOUTS
    from ppdm.simulation.generation import cache_folder, cached_sets
    from ppdm.simulation.tasks import TASKS

    width = max(map(len, (*TASKS, *LAYOUTS)))
    print("tasks (data make, train --task):")
    for task in TASKS.values():
        dose = f"; dose factor {', '.join(map(str, task.doses))}" if task.doses else ""
        print(f"  {task.name:{width}}  {task.summary} ({task.anatomy}{dose})")
    print("layouts (data manifest):")
    for layout in LAYOUTS.values():
        print(f"  {layout.name:{width}}  {', '.join(layout.sources)} to {layout.target}")
    print(f"cache ({cache_folder()}):")
    held = cached_sets()
    for entry in held:
        print(f"  {entry.name}  {plural(entry.subjects, 'subject')}, {entry.bytes / 2**20:.1f} MiB")
    if not held:
        print("  nothing yet")


@app.command()
def make(
    task: Annotated[options.Task, typer.Argument(metavar="TASK", help=f"Task: {', '.join(get_args(options.Task))}.")],
    out: Annotated[Path, typer.Option(help="Folder of the set; an existing set is continued.", callback=_expanded)],
    subjects: Annotated[int, integer_option("Number of subjects, over all splits.")] = 10,
    size: Annotated[int | None, integer_option("Longest axis in voxels; default: 64.", 4)] = None,
    grid: Annotated[options.Grid, typer.Option(help="Grid; thick: axial slices are 2.5 times as thick.")] = "cubic",
    shape: Annotated[
        str | None, typer.Option(help="Size in voxels, DxHxW, with --spacing; default: from --size and --grid.")
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="Voxel size in mm for --shape, such as 2x2x4 or 2; default: from --size and --grid."),
    ] = None,
    anatomy: Annotated[Literal["head", "torso"] | None, typer.Option(help="Anatomy; default: the task's.")] = None,
    dose: Annotated[
        str | None,
        typer.Option(
            help="PET: dose factors that divide the counts of the source, such as 4,20,100; default: the task's."
        ),
    ] = None,
    field_strength: Annotated[
        float | None, typer.Option(metavar="TESLA", help="MRI: field strength, 1.5 or 3; default: 1.5.")
    ] = None,
    seed: Annotated[int, integer_option("Random seed of the set.", 0)] = 0,
    jobs: Annotated[int | None, integer_option("Processes; default: all cores.")] = None,
) -> None:
    """Make synthetic subjects of a task: NIfTI pairs and their manifest."""
    doses = read_if_given("--dose", comma_separated(read_dose), dose)
    voxels = read_if_given("--shape", read_shape, shape)
    edges = read_if_given("--spacing", read_spacing, spacing)

    from ppdm.data.manifest import write_manifest
    from ppdm.simulation.generation import make_set

    recipe = or_usage_error(_recipe, task, anatomy, size, grid, voxels, edges, doses, field_strength, seed)
    ensure_writable(out)
    with progress() as bar:
        shown = bar.add_task("making subjects", total=subjects)
        pairs = make_set(
            recipe, subjects, out, jobs=jobs, progress=lambda done, total: bar.update(shown, completed=done)
        )
    write_manifest(out / MANIFEST, pairs)
    print(
        f"{plural(subjects, 'subject')} ({_split_counts(pairs)}) of "
        f"{shape_text(recipe.grid.shape)} voxels of {'×'.join(f'{mm:g}' for mm in recipe.grid.spacing)} mm\n"
        f"written: {out / MANIFEST}, {plural(len(pairs), 'pair')}"
    )


def _recipe(
    task: str,
    anatomy: str | None,
    size: int | None,
    grid: str,
    shape: tuple[int, int, int] | None,
    spacing: tuple[float, float, float] | None,
    doses: list[int] | None,
    field_strength: float | None,
    seed: int,
) -> "Recipe":
    """Return the recipe that the options describe.

    Raises:
        ValueError: the options are incompatible, or a value is invalid.
    """
    from ppdm.simulation.phantom import Grid
    from ppdm.simulation.tasks import find_task

    found = find_task(task)
    if (shape is None) != (spacing is None) or (shape is not None and (size is not None or grid != "cubic")):
        raise ValueError("give --size (and --grid), or --shape with --spacing")
    if shape is not None and spacing is not None:
        voxels = Grid(shape, spacing)
    else:
        voxels = Grid.covering(anatomy or found.anatomy, size or 64, grid)
    if field_strength is not None and found.at_field is None:
        raise ValueError(f"{task} is PET and has no field strength; leave --field-strength out")
    protocol = found.at_field(field_strength) if field_strength is not None and found.at_field else None
    return found.recipe(voxels, anatomy=anatomy, protocol=protocol, doses=doses, seed=seed)


@app.command()
def manifest(
    folder: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    layout: Annotated[str, typer.Option(help="Naming of its files; `data list` shows the known layouts.")],
    out: Annotated[Path, typer.Option(help="CSV file to write.", callback=_expanded)],
    source: Annotated[
        str | None,
        typer.Option(help="Kind of the source, or kinds of several, such as t1n,t1c,t2w; default: the layout's."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Kind of the target; default: the layout's.")] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression for paths, with (?P<subject>) and (?P<kind>); default: the layout's."),
    ] = None,
    suv_table: Annotated[
        Path | None, typer.Option(help="CSV file of weights and doses, for activities in Bq/mL; default: none.")
    ] = None,
    seed: Annotated[int, integer_option("Random seed of sampled splits.", 0)] = 0,
) -> None:
    """Write the manifest of a folder of scans: NIfTI, MetaImage or NRRD files, and folders with a DICOM series."""
    kinds = read_if_given("--source", comma_separated(str), source)

    from ppdm.data.layouts import pairs_from_folder
    from ppdm.data.manifest import write_manifest

    ensure_writable(out.absolute().parent)
    pairs, remarks = pairs_from_folder(
        folder, layout, source=kinds, target=target, pattern=pattern, seed=seed, suv_table=suv_table
    )
    write_manifest(out, pairs)
    for remark in remarks:
        notify(remark)
    subjects = {pair.subject for pair in pairs}
    numbers = f"{plural(len(pairs), 'pair')} of {plural(len(subjects), 'subject')}"
    print(f"{numbers} ({_split_counts(pairs)})\nwritten: {out}")


@app.command()
def check(
    manifest: Manifest,
    resample: options.Resample = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Report every fault of every pair in one pass. The exit code is 1 if there is a fault."""
    from ppdm.data.checking import check_pairs
    from ppdm.data.manifest import manifest_faults
    from ppdm_bench.commands.findings import findings_rows, findings_text

    pairs, faults = manifest_faults(manifest)
    with progress() as bar:
        shown = bar.add_task("checking the scans", total=len(pairs))
        findings = check_pairs(
            pairs, faults, resample=resample, progress=lambda done, total: bar.update(shown, completed=done)
        )
    print(dumps(findings_rows(findings), indent=1) if json else findings_text(findings))
    raise typer.Exit(0 if findings.sound else 1)


@app.command()
def montage(
    manifest: Manifest,
    out: Picture,
    subject: Annotated[str | None, typer.Option(help="Subject to draw; default: the first.")] = None,
    resample: options.Resample = False,
) -> None:
    """Draw three planes of a pair."""
    from ppdm.data.manifest import load_pair, read_manifest
    from ppdm_bench.report.figures.style import save
    from ppdm_bench.report.figures.volumes import draw_pair

    pair = _chosen_pair(read_manifest(manifest), subject)
    ensure_writable(out.absolute().parent)
    *sources, target = load_pair(pair, resample=resample)
    factor = pair.suv_factor or 1.0
    figure = draw_pair(
        {name: source.data * factor for name, source in zip(pair.sources, sources, strict=True)},
        target.data * factor,
        sources[0].spacing,
        title=f"{pair.subject}: {', '.join(path.name for path in pair.sources.values())} to {pair.target.name}",
        **_display_options(pair),
    )
    print("written: {}, {}".format(*save(figure, out)))


@app.command()
def sheet(
    manifest: Manifest,
    out: Picture,
    limit: Annotated[
        int, typer.Option("--subjects", parser=whole_number(), metavar="N", help="Largest number of subjects.")
    ] = 12,
    plane: Annotated[Literal["axial", "coronal", "sagittal"], typer.Option(help="Plane.")] = "axial",
    resample: options.Resample = False,
) -> None:
    """Draw a contact sheet: one plane of many pairs, sources and targets side by side."""
    from ppdm.data.formats import stem
    from ppdm.data.manifest import load_pair, read_manifest
    from ppdm_bench.report.figures.style import save
    from ppdm_bench.report.figures.volumes import contact_sheet

    pairs = read_manifest(manifest)
    ensure_writable(out.absolute().parent)
    volumes, names, spacings = [], [], []
    for pair in pairs[:limit]:
        for volume, path in zip(load_pair(pair, resample=resample), pair.scans, strict=True):
            volumes.append(volume.data * (pair.suv_factor or 1.0))
            names.append(f"{pair.subject} {stem(path.name)}")
            spacings.append(volume.spacing)
    if len(set(spacings)) > 1:
        raise ValueError(
            f"a contact sheet has one scale, but the pairs have voxels of {len(set(spacings))} sizes in mm; give a "
            "manifest of pairs with one voxel size"
        )
    numbers = f"{min(limit, len(pairs))} of {plural(len(pairs), 'pair')}"
    title = f"{manifest.name} in {manifest.absolute().parent.name}, {numbers}"
    colours = _display_options(pairs[0])["colours"]
    columns = 6 if max(map(len, names)) <= _LONGEST_TITLE else 4
    figure = contact_sheet(volumes, spacings[0], names, columns, title=title, plane=plane, colours=colours)
    print("written: {}, {}".format(*save(figure, out)))


def _display_options(pair: "Pair") -> dict[str, Any]:
    if pair.suv_factor:
        return {"colours": "pet", "unit": "SUV"}
    return {"colours": "gray", "in_hu": (pair.source_intensity is not None, pair.target_intensity is not None)}


def _chosen_pair(pairs: "list[Pair]", subject: str | None) -> "Pair":
    for pair in pairs:
        if subject in (None, pair.subject):
            return pair
    known = list(dict.fromkeys(pair.subject for pair in pairs))
    there = ", ".join([*known[:5], *["..."] * (len(known) > 5)])
    raise typer.BadParameter(f"the manifest has no subject {subject!r}; it has {there}", param_hint="'--subject'")


def _split_counts(pairs: "list[Pair]") -> str:
    from ppdm.data.manifest import SPLITS

    return ", ".join(f"{len({pair.subject for pair in pairs if pair.split == name})} {name}" for name in SPLITS)
