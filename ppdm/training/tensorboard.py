"""Losses of a training run in TensorBoard."""

import os
from typing import Any, Self

from ppdm.training.log import StepReport
from ppdm.training.schedule import TrainingError


class TensorBoard:
    """Writes every report of a training for TensorBoard; pass it as ``progress``, and close it or use it as a context.

    A resumed run continues its curves: steps after the checkpoint are replaced.

    Args:
        folder: folder of the event files, for ``tensorboard --logdir``.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                f"TensorBoard is not installed ({error}); pip install tensorboard, or train without it: the log and "
                "the picture of the losses do not need it."
            ) from None
        self._make: Any = SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def __call__(self, report: StepReport) -> None:
        """Write the values of a step."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=report.step)
        values = {
            "loss/training": report.loss,
            "loss/validation": report.validation_loss,
            "gradient_norm": report.gradient_norm,
            "learning_rate": report.learning_rate,
            "steps_per_second": report.steps_per_second,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        """Write pending values and close the event file."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
