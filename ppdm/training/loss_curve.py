"""Picture of the losses of a training run."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np

from ppdm.atomic_io import replacing
from ppdm.training.log import read_log

_POINTS = 50  # points of the mean loss; the loss of single steps varies with their times and noise
_TRAINED, _VALIDATED = "#0173b2", "#d55e00"  # from seaborn's palette "colorblind"


def save_loss_curve(log: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw the training and validation losses of a log over the steps, as PNG.

    Single steps are grey; the line is their mean over up to 50 intervals. A dotted line marks the start of a stage,
    since losses of different stages cannot be compared. Nothing is written if the log has no step.

    Args:
        log: the log of a training (:func:`ppdm.training.loop.fit`).
        path: the picture.

    Raises:
        OSError: the log cannot be read, or the picture cannot be written.
    """
    rows = read_log(log) if Path(log).exists() else []
    if not rows:
        return
    from matplotlib.figure import Figure  # imported here, because a training that draws nothing does not need it
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    steps, losses = np.array([(row["step"], row["loss"]) for row in rows]).T
    validated = np.array([(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row])
    best = [(row["step"], row["validation_loss"]) for row in rows if row.get("best")][-1:]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="training step", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="training, single steps")
    groups = np.array_split(np.arange(len(steps)), min(_POINTS, len(steps)))
    axes.plot(
        *np.array([(steps[g].mean(), losses[g].mean()) for g in groups]).T, color=_TRAINED, label="training, mean"
    )
    if len(validated):
        axes.plot(*validated.T, color=_VALIDATED, marker="o", markersize=3, label="validation")
    for step, loss in best:
        axes.plot(step, loss, "*", color=_VALIDATED, markersize=12, label=f"lowest validation loss, step {step}")
    for row, following in pairwise(rows):
        if row.get("stage") != following.get("stage"):
            axes.axvline(following["step"], color="0.5", linestyle=":", label=f"start of stage {following['stage']}")
    if losses.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend()
    with replacing(Path(path), ".png") as temporary:
        figure.savefig(temporary, dpi=150)
