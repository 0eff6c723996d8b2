"""Defers reading losses from the device so that the host never blocks training.

The host queues a step on the accelerator, and queues the next one while the device runs. Reading a loss makes the host
wait for that step, and then the device wait for the host. Losses therefore stay on the device until they are needed, or
until a progress update is due.
"""

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from ppdm.training.log import StepReport

READING_INTERVAL = 0.5  # seconds; short enough for a responsive progress bar and log


class PendingReports:
    """Reports of steps whose losses are still on the device.

    Args:
        interval: seconds between two readings, if none is needed earlier; 0 reads every step.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._steps: list[tuple[Callable[..., StepReport], Tensor, Tensor]] = []
        self._read_at = -inf

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, report: Callable[..., StepReport], loss: Tensor, gradient_norm: Tensor) -> None:
        """Add a step: a function of its loss and gradient norm that makes its report, and these scalars."""
        self._steps.append((report, loss, gradient_norm))

    def is_due(self, seconds: float) -> bool:
        """Whether a progress update is due, by the training clock, which is the same on all ranks."""
        return len(self) > 0 and seconds - self._read_at >= self.interval

    def read(self, seconds: float) -> list[StepReport]:
        """Return the reports of all pending steps; on an accelerator, this waits until the steps finish."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        self._read_at = seconds
        numbers = torch.stack([scalar for _, *scalars in steps for scalar in scalars]).tolist()  # one copy to the host
        return [
            report(loss=loss, gradient_norm=norm)
            for (report, *_), loss, norm in zip(steps, numbers[::2], numbers[1::2], strict=True)
        ]


def reading_interval(device: str | torch.device) -> float:
    """Return how long losses may stay unread, in seconds; 0 on the CPU, where a call returns a complete step."""
    return 0.0 if torch.device(device).type == "cpu" else READING_INTERVAL
