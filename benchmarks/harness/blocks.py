"""Cost of sampling in blocks and visibility of block borders: CSV, a Markdown table and a figure.

    python benchmarks/harness/blocks.py              everything, into results/blocks; about 10 minutes on one core
    python benchmarks/harness/blocks.py --only 4     only setting 4 of SETTINGS, counted from 0; other rows stay
    python benchmarks/harness/blocks.py --draw       only table and figure, from the existing CSV

Two kinds of models translate test phantoms as whole volumes and in blocks: those of results/models, trained on whole
volumes of 48 voxels, and a model that this script trains on patches for the same number of steps. Where blocks overlap,
their predictions are averaged with equal weights (mean) or with weights that decrease linearly towards the border of a
block (ramp, as in the toolkit).

Seam: d = blocked − whole is the change caused by blocks. The steps |d(i) − d(i+1)| between neighbouring voxels of the
body are computed along all three axes. The seam is their mean over block borders divided by their mean over all other
borders of the puzzle's cells. A value of 1 means that block borders are not visible.
"""

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from ppdm import tiling
from ppdm.checkpoint import Trained, load
from ppdm.data.volume import Volume
from ppdm.evaluation.evaluate import convention, data_range, scores
from ppdm.evaluation.subjects import EvaluationCase
from ppdm.metrics import MetricError
from ppdm.simulation.phantom import Grid
from ppdm.simulation.tasks import Recipe, find_task, make_subject
from ppdm.training.loop import fit
from ppdm.translation import translate_volume
from ppdm.window import Patch
from ppdm_bench.grouping import grouped
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures.style import MARKERS, SERIES, SMALL, legend, new_figure, plain_axes, save

ROOT = Path(__file__).resolve().parents[2]
MODELS, OUT = ROOT / "results/models", ROOT / "results/blocks"

# (longest axis / block edge, overlap as a fraction of the block). Two blocks of two thirds of an axis are at its two
# ends, so that they always overlap by half, for any requested overlap.
OPTIONS = ((3, 0.0), (3, 0.25), (3, 0.5), (1.5, 0.25))
STEPS, BATCH = 300, 2  # of the training on patches, equal to those of the other models


@dataclass(frozen=True)
class Setting:
    """A model, the number of voxels along the longest axis of the volumes, and the number of subjects."""

    task: str
    size: int
    subjects: int
    patches: bool = False

    @property
    def model(self) -> str:
        """Name of the model in the table."""
        return f"{self.task}, trained on {'patches of 32' if self.patches else 'the whole'}"


SETTINGS = (
    Setting("mri-t1t2", 48, 3),
    Setting("pet-joint", 48, 3),
    Setting("pet-denoise", 48, 3),
    Setting("mri-t1t2", 48, 3, patches=True),
    Setting("mri-t1t2", 96, 2),
    Setting("mri-t1t2", 96, 2, patches=True),
)


@dataclass(frozen=True)
class Row:
    """One translation; block 0 means the whole volume at once, which has no ``difference`` and no ``seam``.

    Attributes:
        blocks: number of blocks.
        psnr: dB, inside the body, against the target.
        ssim: inside the body, against the target.
        difference: mean |blocked − whole| inside the body, in per cent of the data range.
        seam: see the docstring of this module.
    """

    model: str
    size: int
    subject: str
    block: int
    overlap: float
    blend: str
    blocks: int
    psnr: float
    ssim: float
    difference: float | None = None
    seam: float | None = None


def main() -> None:
    """Measure, except with ``--draw``, and write all files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    numbers = range(len(SETTINGS))
    parser.add_argument("--only", type=int, nargs="*", default=numbers, help="settings to measure; default: all")
    parser.add_argument("--draw", action="store_true", help="write only table and figure, from the existing CSV")
    asked, place = parser.parse_args(), OUT / "blocks.csv"
    OUT.mkdir(exist_ok=True)
    for setting in () if asked.draw else [SETTINGS[number] for number in asked.only]:
        others = [one for one in read(place) if (one.model, one.size) != (setting.model, setting.size)]
        write(place, [*others, *measured(setting)])
    present(ordered(read(place)), OUT)


# --- measurement


def measured(setting: Setting) -> Iterator[Row]:
    """All translations of a setting."""
    trained = on_patches(setting.task) if setting.patches else load(MODELS / setting.task)
    for number in range(setting.subjects):
        case = subject(setting.task, setting.size, number)
        whole = translated(trained, case)
        yield row(setting, trained, case, whole)
        for block, overlap, blend in options(setting):
            made = replace(trained, method=trained.method.in_blocks(block, overlap))
            yield row(setting, made, case, translated(made, case, blend), block, overlap, blend, whole)
            print(setting.model, setting.size, case.name, block, overlap, blend, flush=True)


def options(setting: Setting) -> Iterator[tuple[int, float, str]]:
    """All combinations of block, overlap and blend."""
    for share, overlap in OPTIONS:
        for blend in ("mean", "ramp"):
            yield int(setting.size / share), overlap, blend


def flat(size: int, before: int, after: int, device: torch.device | None = None) -> Tensor:
    """Equal weights in place of those of :func:`ppdm.tiling.ramp`."""
    return torch.ones(size, device=device)


def translated(trained: Trained, case: EvaluationCase, blend: str = "ramp") -> Tensor:
    """The translation (D, H, W) of a case's source."""
    assert case.source is not None
    with mock.patch.object(tiling, "ramp", flat if blend == "mean" else tiling.ramp):
        return translate_volume(trained, case.source, suv_factor=1.0 if case.in_suv else None)


def row(
    setting: Setting,
    trained: Trained,
    case: EvaluationCase,
    made: Tensor,
    block: int = 0,
    overlap: float = 0.0,
    blend: str = "",
    whole: Tensor | None = None,
) -> Row:
    """Quality of a translation, and its difference from the translation of the whole volume."""
    span, body = data_range(trained.scaling), case.mask
    assert body is not None
    found = {score.metric: score.value for score in scores(convention(span), made, case)}
    common: dict[str, Any] = {"psnr": found["psnr"], "ssim": found["ssim"]}
    if whole is not None:
        common["difference"] = 100 * float((made - whole).abs()[body > 0].mean()) / span
        common["seam"] = seam(trained, made - whole, body > 0)
    number = trained.method.blocks(case.target.shape)
    return Row(setting.model, setting.size, case.name, block, overlap, blend, number, **common)


def seam(trained: Trained, change: Tensor, body: Tensor) -> float:
    """Seam of a change (D, H, W) inside the body: mean step at block borders over mean step at other cell borders.

    Raises:
        MetricError: there is no border inside the body.
    """
    across: list[Tensor] = []
    elsewhere: list[Tensor] = []
    for axis, (borders, cell) in enumerate(borders_of(trained, change.shape)):
        step = change.diff(dim=axis).abs().movedim(axis, 0)
        inside = (body.narrow(axis, 0, len(step)) & body.narrow(axis, 1, len(step))).movedim(axis, 0)
        for place in range(cell, len(step) + 1, cell):  # between voxels place − 1 and place
            (across if place in borders else elsewhere).append(step[place - 1][inside[place - 1]])
    if not sum(map(len, across)):
        raise MetricError("There is no border of a block inside the body.")
    return float(torch.cat(across).mean() / torch.cat(elsewhere).mean())


def borders_of(trained: Trained, shape: Sequence[int]) -> Iterator[tuple[set[int], int]]:
    """For each axis of a volume: the first voxels after a block border, and the size of the puzzle's cell in voxels."""
    method = trained.method
    window: Any = method.window
    latent = method.latent_shape(shape)
    made = tiling.blocks_of(latent, window.block, window.overlap)
    for axis, cell in enumerate(method.representation.cell):
        ends = {end * cell for block in made for end in (block.place[axis].start, block.place[axis].stop)}
        yield ends - {0, latent[axis] * cell}, cell


def subject(task: str, size: int, number: int) -> EvaluationCase:
    """A phantom of the split ``test``."""
    recipe = recipe_of(task, size)
    made = make_subject(recipe, "test", number)
    source, target = (torch.from_numpy(made.images[name]).float() for name in recipe.pairs[0])
    factor = None if task.startswith("mri") else 1.0
    grid = Volume.from_array(made.mask, recipe.grid.spacing)
    return EvaluationCase(made.name, target, source, torch.from_numpy(made.mask), grid, factor)


def recipe_of(task: str, size: int) -> Recipe:
    """Recipe of the phantoms that the models were trained on, at this size."""
    found = find_task(task)
    return found.recipe(Grid.covering(found.anatomy, size, "oblong"), seed=0)


@cache
def on_patches(task: str) -> Trained:
    """The model of a task, trained on patches of 32 voxels instead of whole volumes; other settings are equal."""
    like = load(MODELS / task)
    method = replace(like.method, window=Patch(16))
    made = (make_subject(recipe_of(task, 48), "train", number) for number in range(17))
    pairs = [normalised(like, [one.images[name] for name in recipe_of(task, 48).pairs[0]]) for one in made]
    return replace(like, method=method, network=fit(method, pairs, steps=STEPS, batch_size=BATCH))


def normalised(like: Trained, images: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """A source and a target in the normalised units of the network."""
    source, target = (torch.from_numpy(image).float() for image in images)
    of_source, of_target = like.scaling.scales(source.numpy(), None)
    return of_source.forward(source), of_target.forward(target)


# --- output


def write(place: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV."""
    with place.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for one in rows:
            writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(one).items()})


def read(place: Path) -> list[Row]:
    """Read the rows that :func:`write` wrote; empty if there is no file."""
    if not place.exists():
        return []
    kinds: dict[str, Callable[[str], Any]] = dict.fromkeys(("size", "block", "blocks"), int)
    kinds |= dict.fromkeys(("model", "subject", "blend"), str)
    with place.open(newline="") as file:
        return [
            Row(**{k: kinds.get(k, float)(v) for k, v in line.items() if v or k == "blend"})
            for line in csv.DictReader(file)
        ]


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The rows in the order of their settings."""
    order = [(setting.model, setting.size) for setting in SETTINGS]
    return sorted(rows, key=lambda one: order.index((one.model, one.size)))


def means(rows: Sequence[Row]) -> dict[tuple[str, int, int, float, str], dict[str, float]]:
    """The mean over subjects of every value, by model, size, block, overlap and blend."""
    found = {}
    for key, group in grouped(rows, lambda one: (one.model, one.size, one.block, one.overlap, one.blend)).items():
        names = [n for n in ("psnr", "ssim", "difference", "seam") if getattr(group[0], n) is not None]
        found[key] = {"blocks": group[0].blocks} | {n: fmean(getattr(one, n) for one in group) for n in names}
    return found


def table(rows: Sequence[Row]) -> str:
    """The Markdown table: one row for each option, means over subjects."""
    lines = [
        "# Sampling in blocks: quality, and visibility of block borders\n",
        "`benchmarks/harness/blocks.py` wrote this page and defines the columns. Values are means over test phantoms, "
        "with two network evaluations, the models' own number; `blocks.csv` contains the value of every subject. "
        "*volume* is the longest axis of the volume and *block* the edge of the blocks that the network processes, in "
        "voxels. *overlap* is the requested overlap; two blocks of two thirds of an axis always overlap by half. "
        "*blend* is the weighting of predictions where blocks overlap: equal (mean) or decreasing towards the border "
        "(ramp).\n\n"
        "![Seams and PSNR](blocks.png)\n",
        "| model | volume | block | overlap | blend | blocks | PSNR dB | SSIM | difference % | seam |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for (model, size, block, overlap, blend), found in means(rows).items():
        shown = [str(block or "whole"), f"{overlap:g}" if block else "", blend, f"{found['blocks']:g}"]
        values = [f"{found['psnr']:.2f}", f"{found['ssim']:.3f}"]
        values += [f"{found['difference']:.2f}", f"{found['seam']:.2f}"] if block else ["", ""]
        lines.append(f"| {' | '.join([model, str(size), *shown, *values])} |")
    return "\n".join(lines) + "\n"


def present(rows: Sequence[Row], folder: Path) -> None:
    """Write the table and the figure."""
    replace_file(folder / "blocks.md", table(rows).encode())
    draw(rows, folder)


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Draw the seam and the change of PSNR for every option, with one colour per model."""
    found = means(rows)
    models = list(dict.fromkeys(key[:2] for key in found))
    figure = new_figure("double", 3.9)
    left, right = figure.subplots(1, 2)
    for number, model in enumerate(models):
        mine = {key[2:]: values for key, values in found.items() if key[:2] == model}
        whole = mine[0, 0.0, ""]["psnr"]
        shift = 0.12 * (number - (len(models) - 1) / 2)
        points(left, number, shift, {key: values["seam"] for key, values in mine.items() if key[0]})
        points(right, number, shift, {key: values["psnr"] - whole for key, values in mine.items() if key[0]})
    for axes, label, nothing in ((left, "seam (1: none shows)", 1), (right, "PSNR against the whole at once, dB", 0)):
        plain_axes(axes, "y")
        axes.axhline(nothing, color="0.4", linewidth=0.8)
        axes.set_ylabel(label, fontsize=SMALL)
        axes.set_xlabel("block, share of the longest axis; overlap, share of a block", fontsize=SMALL)
        axes.set_xticks(range(len(OPTIONS)), [f"{1 / n:.2f}; {o:g}" for n, o in OPTIONS[:-1]] + ["0.67; 0.5"])
    legend(figure, handles(models), 2)
    for place in save(figure, folder / "blocks"):
        if place.suffix == ".pdf":
            place.unlink()  # only the PNG is kept


def points(axes: Axes, number: int, shift: float, values: dict[tuple[int, float, str], float]) -> None:
    """Draw two points per option: hollow for equal weights (mean), filled for ramp weights."""
    options = list(dict.fromkeys(key[:2] for key in values))
    for place, option in enumerate(options):
        mean, ramp = (values[*option, blend] for blend in ("mean", "ramp"))
        axes.plot([place + shift] * 2, [mean, ramp], color=SERIES[number], linewidth=0.8)
        axes.plot(place + shift, mean, **look(number, "mean"))
        axes.plot(place + shift, ramp, **look(number, "ramp"))


def look(number: int, blend: str) -> dict[str, Any]:
    """Plot style: colour and marker denote the model, the filling denotes the blend."""
    filling = SERIES[number] if blend == "ramp" else "white"
    return {
        "color": SERIES[number],
        "marker": MARKERS[number],
        "markersize": 4.5,
        "markerfacecolor": filling,
        "linestyle": "none",
    }


def handles(models: Sequence[tuple[str, int]]) -> list[Line2D]:
    """Handles of the legend."""
    made = [Line2D([], [], **look(n, "ramp"), label=f"{name}; {size} voxels") for n, (name, size) in enumerate(models)]
    styles = (("equal weights (mean)", "white"), ("ramp", "0.3"))
    return made + [
        Line2D([], [], color="0.3", marker="o", markersize=4.5, markerfacecolor=filling, linestyle="none", label=name)
        for name, filling in styles
    ]


if __name__ == "__main__":
    main()
