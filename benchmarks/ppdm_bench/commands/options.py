"""Options that commands share.

This module does not import PyTorch, so that ``--help`` starts fast.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from ppdm_bench.commands.values import complete_method, completion, integer_option, number_option
from ppdm_bench.predictor.cards import CARDS

# Values for completion and help; they are repeated here, because the modules that define them import PyTorch.
PRESETS = ("matched", "authors")
PRECISIONS = ("fp32", "bf16", "fp16")
CHECKPOINTING = ("none", "norm", "block", "conv")
Task = Literal["pet-denoise", "pet-joint", "mri-t1t2", "mri-flair"]
Grid = Literal["cubic", "oblong", "thick"]

# Options of several commands.
Json = Annotated[bool, typer.Option("--json", help="Print the records as one JSON array and nothing else.")]
Device = Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="Device; auto: a GPU if there is one.")]
Width = Annotated[int | None, integer_option("Channels at the finest level of the U-Net; default: the method's.")]
Checkpointing = Annotated[
    str,
    typer.Option(
        help="Activation checkpointing: none, norm, block or conv, in the order of decreasing memory.",
        autocompletion=completion(*CHECKPOINTING),
    ),
]
Res = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Edge of cubic volumes in voxels, such as 256 or 64,128,256. Give this, --shape or --like."
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
        metavar="NAME",
        autocompletion=lambda incomplete: [card.name for card in CARDS if incomplete.lower() in card.name.lower()],
        help='Card to predict for, such as "RTX 4090". Default: the card of this machine.',
    ),
]

Precision = Annotated[
    str, typer.Option(help="Precision of convolutions: fp32, bf16 or fp16.", autocompletion=completion(*PRECISIONS))
]
BatchSize = Annotated[int, integer_option("Batch size.")]
Sources = Annotated[
    int, integer_option("Number of sources that the method translates from, such as 3 for T1, T1c and T2 to FLAIR.")
]
Preset = Annotated[
    str,
    typer.Option(
        help="Preset: matched (one U-Net for all methods) or authors (the network of each paper).",
        autocompletion=completion(*PRESETS),
    ),
]
SampleSeed = Annotated[int, integer_option("Random seed; it matters only for stochastic methods.", 0)]
Samples = Annotated[
    int | None,
    integer_option(
        "Samples per volume, 2 or more, of methods whose sampling uses noise; their mean is scored. Default: one.", 2
    ),
]
SamplePrecision = Annotated[
    Literal["fp32", "bf16", "fp16"] | None, typer.Option(help="Precision of convolutions; default: as trained.")
]
Minutes = Annotated[float | None, number_option("minutes", "Time of each training, instead of --steps; default: none.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help="Synthetic task; repeatable. Default: the paper's three, or none with --manifest.",
        autocompletion=completion(*get_args(Task)),
    ),
]
Manifests = Annotated[
    list[Path] | None,
    typer.Option(
        help="CSV file of your own pairs, with or without --task; repeatable. Results are named after the file. "
        "Default: none."
    ),
]
MethodName = Annotated[
    str,
    typer.Option(help="Registered method, or your own by name or module:ATTRIBUTE.", autocompletion=complete_method),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        help="Registered method, or your own by name or module:ATTRIBUTE; repeatable. Default: all registered methods.",
        autocompletion=complete_method,
    ),
]
Factors = Annotated[str, typer.Option(help="Puzzle factors, such as 2,4; 1x2x2 is one factor with a number per axis.")]
Split = Annotated[Literal["train", "val", "test"], typer.Option(help="Split to score; use val to choose settings.")]
Columns = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME", help="Columns of the printed table and of its LaTeX; default: those that fit."),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME", help="Metrics of text, Markdown and LaTeX tables, such as psnr,ssim; default: all."
    ),
]
Results = Annotated[Path, typer.Option(help="Folder for records, tables and figures.")]
Runs = Annotated[Path, typer.Option(help="Folder for runs, records, tables and figures.")]

# Options of synthetic subjects, and of how the pairs of a manifest are read.
TaskName = Annotated[Task | None, typer.Option(help="Synthetic task. Give this or --manifest.")]
PhantomCount = Annotated[int | None, integer_option("Synthetic subjects, over all splits; default: 10.")]
PhantomSize = Annotated[int | None, integer_option("Longest axis of the synthetic volumes in voxels; default: 64.", 4)]
PhantomGrid = Annotated[Grid | None, typer.Option(help="Grid of the synthetic volumes; default: cubic.")]
PhantomSeed = Annotated[int | None, integer_option("Random seed of the synthetic set; default: 0.", 0)]
Resample = Annotated[bool, typer.Option("--resample", help="Resample onto the grid of the (first) source.")]
SourceIntensity = Annotated[
    str | None,
    typer.Option(
        metavar="ct[:LOW,HIGH]",
        help="The sources are CT; the value is as for --target-intensity. Default: as the manifest says.",
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
        help="Change this field in every configuration, such as network.multipliers=[1,2,2]; repeatable. "
        "Default: no change.",
    ),
]

# Options of cluster jobs.
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
