"""``ppdm-bench translate``: translate scans with a trained method."""

from pathlib import Path
from typing import Annotated

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.requested import input_and_output
from ppdm_bench.commands.terminal import notify, progress
from ppdm_bench.commands.values import integer_option, or_usage_error, read_block, read_if_given


def translate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a run, or its .safetensors file.")],
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT OUTPUT",
            help="INPUT: a scan (NIfTI, MetaImage, NRRD, DICOM), or a folder of scans; leave it out with --source. "
            "OUTPUT: a file, or a folder, in which the subfolders of INPUT are repeated.",
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
    resample: options.Resample = False,
    evaluations: Annotated[int | None, integer_option("Network evaluations per volume; default: the method's.")] = None,
    seed: options.SampleSeed = 0,
    samples: Annotated[
        int | None,
        integer_option(
            "Samples per volume, 2 or more, of a method whose sampling uses noise: OUTPUT is their mean, and "
            "NAME_std beside it their standard deviation. Default: one sample.",
            2,
        ),
    ] = None,
    device: options.Device = "auto",
    precision: options.SamplePrecision = None,
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
    """Translate scans with a trained method. The result has the geometry of the input and the units of the target."""
    seen = read_if_given("--block", read_block, block)
    source, output = input_and_output(places, sources)

    from ppdm.checkpoint import load
    from ppdm.data.formats import is_dicom_scan
    from ppdm.data.volume import user_path
    from ppdm.translation import adapt, check_samples
    from ppdm.translation import translate as translate_files
    from ppdm_bench.devices import training_device

    trained = load(checkpoint, device=training_device(device))
    if samples is not None:
        or_usage_error(check_samples, or_usage_error(adapt, trained, steps=evaluations).method, samples)
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
