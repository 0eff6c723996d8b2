"""Defers reading losses from the device so that the host never blocks training.

The host queues a step on the accelerator, and queues the next one while the device runs. Reading a loss makes the host
wait for that step, and then the device wait for the host. Losses therefore stay on the device until they are needed, or
until a progress update is due.
"""

from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from ppdm.training.log import StepReport

PATIENCE = 0.5  # seconds between readings; short enough for a responsive progress bar and log


@dataclass(frozen=True, eq=False)
class Taken:
    """A step queued on the device.

    Attributes:
        report: report of the step, without the loss and the gradient norm, which are still on the device.
        loss, norm: loss and gradient norm, scalars on the device.
        ends: whether this is the last step of a training stage.
    """

    report: StepReport
    loss: Tensor
    norm: Tensor
    ends: bool


class Unread:
    """Queue of steps whose losses have not been read yet.

    Args:
        patience: seconds between two readings, if none is needed earlier; 0 reads every step.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._steps: list[Taken] = []
        self._read_at = -inf

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Taken) -> None:
        """Add a step to the queue."""
        self._steps.append(step)

    @property
    def is_late(self) -> bool:
        """Whether a progress update is due, by the training clock, which is the same on all ranks."""
        return len(self) > 0 and self._steps[-1].report.seconds - self._read_at >= self.patience

    def read(self) -> list[StepReport]:
        """Return the complete reports of all queued steps; on an accelerator, this waits until they finish."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        self._read_at = steps[-1].report.seconds
        on_device = torch.stack([one for step in steps for one in (step.loss, step.norm)])
        numbers = on_device.tolist()  # one copy to the host
        return [
            replace(step.report, loss=loss, gradient_norm=norm)
            for step, loss, norm in zip(steps, numbers[::2], numbers[1::2], strict=True)
        ]


def patience(device: str | torch.device) -> float:
    """Return how long losses may stay unread, in seconds; 0 on the CPU, where a call returns a complete step."""
    return 0.0 if torch.device(device).type == "cpu" else PATIENCE
