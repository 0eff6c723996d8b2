"""Steps whose numbers are not looked at before they must be.

An accelerator is asked for a step and works on it while the host asks for the next one. Whoever looks at a loss makes
the host wait until that step is done, and the device wait after that for the host. So what steps came to stays where it
is until it has to be known, or somebody would like a sign of life.
"""

from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from ppdm.training.log import StepReport

PATIENCE = 0.5  # seconds: a progress bar and a log that are followed seem alive


@dataclass(frozen=True, eq=False)
class Taken:
    """A step that the device was asked for.

    Attributes:
        report: of it, but for the loss and the norm of the gradient, which are not known yet.
        loss, norm: these two, scalars on the device.
        ends: whether a stage of the training ends with it.
    """

    report: StepReport
    loss: Tensor
    norm: Tensor
    ends: bool


class Unread:
    """Steps in the order in which they were taken, until they are read.

    Args:
        patience: seconds from one reading to the next, if nothing asks for one before; 0 reads every step.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._steps: list[Taken] = []
        self._read_at = -inf

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Taken) -> None:
        """Take note of a step."""
        self._steps.append(step)

    @property
    def is_late(self) -> bool:
        """Whether it is time for a sign of life, by the clock of the training, which is the same for all ranks."""
        return len(self) > 0 and self._steps[-1].report.seconds - self._read_at >= self.patience

    def read(self) -> list[StepReport]:
        """The whole reports of all steps; on an accelerator, this waits until they are done."""
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
    """How long numbers may stay where they are: on the CPU a step is done when its call has returned."""
    return 0.0 if torch.device(device).type == "cpu" else PATIENCE
