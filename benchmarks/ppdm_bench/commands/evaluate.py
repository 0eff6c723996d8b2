"""``ppdm-bench evaluate``: scores of runs and of existing predictions, subject by subject."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.requested import requested_intensities, requested_reference, requested_subjects
from ppdm_bench.commands.terminal import locked_folder, progress, report_results
from ppdm_bench.commands.values import (
    comma_separated,
    number_option,
    or_usage_error,
    read_factor,
    read_if_given,
    read_names,
    whole_number,
)


def _folder(description: str) -> Any:
    return typer.Option(metavar="DIR", help=description)


def evaluate(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders of runs, or their .safetensors files.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV file of the pairs to translate. Give this or --task.")
    ] = None,
    task: options.TaskName = None,
    split: options.Split = "test",
    subjects: options.PhantomCount = None,
    size: options.PhantomSize = None,
    grid: options.PhantomGrid = None,
    data_seed: options.PhantomSeed = None,
    resample: options.Resample = False,
    source_intensity: options.SourceIntensity = None,
    target_intensity: options.TargetIntensity = None,
    predictions: Annotated[
        list[Path] | None,
        _folder(
            "Folder of existing predictions, each file named after its subject; without runs or beside them, "
            "repeatable. Default: none."
        ),
    ] = None,
    targets: Annotated[
        Path | None, _folder("Folder of the targets, with the same file names; default: those of --manifest or --task.")
    ] = None,
    sources: Annotated[Path | None, _folder("Folder of the sources, with the same file names; default: none.")] = None,
    masks: Annotated[
        Path | None,
        _folder("Folder of masks, with the same file names; metrics count only voxels inside. Default: none."),
    ] = None,
    labels: Annotated[
        Path | None,
        _folder("Folder of labelled regions, with the same file names; PET uptake is compared in each. Default: none."),
    ] = None,
    suv_factor: Annotated[
        float | None,
        number_option("a factor", "The folders contain PET: factor from stored values to SUV. Default: no PET."),
    ] = None,
    evaluations: Annotated[
        str | None, typer.Option(help="Network evaluations per volume, such as 1,2,4; default: the method's.")
    ] = None,
    seed: options.SampleSeed = 0,
    samples: options.Samples = None,
    device: options.Device = "auto",
    precision: options.SamplePrecision = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Row that differences are taken from: its name, run or folder; default: the first, usually the input."
        ),
    ] = None,
    convention: Annotated[
        Literal["synthrad2023", "synthrad2025", "brasyn", "udpet"] | None,
        typer.Option(help="Convention of a challenge for the metrics; default: the project's own."),
    ] = None,
    data_range: Annotated[
        float | None,
        number_option(
            "a span",
            "Data range for PSNR and SSIM; default: 20 for SUV, else the range of the training targets. For CT it is "
            "always 4024.",
        ),
    ] = None,
    factor: Annotated[
        str | None,
        typer.Option(help="Block grids on which seams are measured, such as 2,4; default: those of the methods."),
    ] = None,
    metrics: options.Metrics = None,
    columns: options.Columns = None,
    out: Annotated[Path, typer.Option(help="Folder for records, tables and pictures.")] = Path("runs/evaluation"),
    json: options.Json = False,
) -> None:
    """Score translations: metrics of each subject, paired differences, pictures of the best and worst subjects."""
    look = {"metrics": read_names("--metrics", metrics), "columns": read_names("--columns", columns)}
    counts = read_if_given("--evaluations", comma_separated(whole_number()), evaluations)
    grids = read_if_given("--factor", comma_separated(read_factor), factor)
    phantoms: dict[str, Any] = {"subjects": subjects, "size": size, "grid": grid, "data_seed": data_seed}
    beside = {"source": sources, "mask": masks, "labels": labels}
    folders = {"targets": targets, "sources": sources, "masks": masks, "labels": labels, "suv_factor": suv_factor}
    pairs = {"manifest": manifest, "task": task, **phantoms}
    of_runs = {"evaluations": evaluations, "precision": precision, "samples": samples}
    _check_mode(bool(runs), bool(predictions), of_runs, pairs, folders)
    intensities = requested_intensities(source_intensity, target_intensity)
    if suv_factor is not None and intensities:
        raise typer.BadParameter("--suv-factor is for PET, and --target-intensity for CT; give one of the two")

    with redirect_stdout(sys.stderr), progress() as bar:
        from ppdm_bench.devices import training_device
        from ppdm_bench.evaluation.comparison import (
            SAMPLES_NEED_NOISE,
            MetricOptions,
            RunSampling,
            compare_folders,
            compare_runs,
            reference_label,
        )
        from ppdm_bench.evaluation.evaluation_output import collect, earlier_records, failures, present

        how = or_usage_error(MetricOptions, convention, data_range, grids)
        shown, earlier = bar.add_task("reading", total=None), earlier_records(out)
        if targets is None:
            source = requested_subjects(manifest, task, resample, source_intensity, target_intensity, **phantoms)
            sampling = RunSampling(training_device(device), counts or [None], precision, seed, samples)
            plan = compare_runs(
                runs or [],
                source,
                split,
                how,
                sampling,
                lambda done, total: bar.update(shown, completed=done, total=total),
                predictions or [],
                earlier=earlier,
            )
        else:
            plan = compare_folders(predictions or [], targets, beside, suv_factor, how, intensities)
        if samples is not None and not any(candidate.deviation for candidate in plan.candidates):
            raise typer.BadParameter(SAMPLES_NEED_NOISE)
        against = or_usage_error(reference_label, plan.candidates, requested_reference(reference), earlier)
        with locked_folder(out) as folder:
            records = collect(
                plan, folder, lambda text, done, total: bar.update(shown, completed=done, total=total, description=text)
            )
            text, written = present(plan, records, against, folder, earlier, **look)
    raise typer.Exit(report_results(text, records, written, failures(records), json))


def _check_mode(
    runs: bool, predictions: bool, of_runs: dict[str, Any], pairs: dict[str, Any], folders: dict[str, Any]
) -> None:
    """Check that the options are compatible: there is something to score, and one source of targets."""
    run_only, of_pairs, of_folders = (
        [name.replace("_", "-") for name, value in given.items() if value is not None]
        for given in (of_runs, pairs, folders)
    )
    if not runs and not predictions:
        raise typer.BadParameter("there is nothing to evaluate: give runs, folders of --predictions, or both")
    if run_only and not runs:
        raise typer.BadParameter(f"--{run_only[0]} is for runs, and only --predictions were given; leave it out")
    if of_folders and (runs or of_pairs):
        beside = "runs" if runs else "--manifest and --task"
        raise typer.BadParameter(f"--{of_folders[0]} is for --predictions only; with {beside}, it comes from the pairs")
    if "targets" not in of_folders and not of_pairs and not runs:
        raise typer.BadParameter("the predictions have no targets: give --targets, --manifest or --task")
