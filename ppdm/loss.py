"""Losses: reconstruction, PPDM's puzzle-gradient loss against grid artefacts, and an adversarial loss.

Shapes: (N, …) for the reconstruction, volumes (N, C, D, H, W) for the gradient. Every loss is one number per subject,
(N,), so that weights and records can be per subject.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from ppdm.network.options import MOST_CHANNELS
from ppdm.serialization import later

_MOST_WIDTH = MOST_CHANNELS // 8  # the coarsest level of the discriminator is eight times as wide as the finest

MODES = ("off", "all", "cell")
WEIGHTS = ("none", "scale")


@dataclass(frozen=True)
class Loss:
    """Training loss: ``mean|output − target|^p + λ·Σ_axis mean|∂_axis(x̂0 − x0)|^p``, and an optional adversarial loss.

    The second term is computed on the volume. The gradient of the difference is the difference of the gradients, so
    finite differences of one volume suffice.

    Args:
        p: 1 or 2, for both terms.
        gradient: λ; it must be 0 if, and only if, the mode is ``off``.
        mode: finite differences that count: ``all``; ``cell``, only those across a border of the puzzle's cells, where
            grid artefacts appear; ``off``, none.
        weight: what the error is multiplied by before both terms, at each time t: ``none``; ``scale``, the kernel's
            scale at t. For an x0 target of a variance-preserving kernel, this is the loss of the velocity
            ``α·ε − σ·x0`` (arXiv 2202.00512), with ε the noise in x_t: an error of x0 counts σ(t) times.
        adversarial: weight of the adversarial term (:meth:`adversarial_term`), which is used in training only. A
            discriminator is then trained beside the network; it is not part of the result.
        discriminator_width: channels of the discriminator's finest level
            (:class:`~ppdm.network.discriminator.PatchDiscriminator`).

    Raises:
        ValueError: a value is invalid.
    """

    p: int = 2
    gradient: float = 0.0
    mode: str = "off"
    weight: str = later("none")
    adversarial: float = later(0.0)
    discriminator_width: int = later(64)

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"the loss is a mean of |·|^p with p 1 or 2, got p = {self.p!r}")
        if self.mode not in MODES:
            raise ValueError(f"the gradient loss has modes {', '.join(MODES)}; got {self.mode!r}")
        if self.weight not in WEIGHTS:
            raise ValueError(f"the loss has weights {', '.join(WEIGHTS)}; got {self.weight!r}")
        if not self.gradient >= 0 or (self.gradient > 0) == (self.mode == "off"):
            raise ValueError(
                f"a gradient weight of {self.gradient} does not go with mode {self.mode!r}: "
                "give a positive weight with 'all' or 'cell', or 0 with 'off'"
            )
        if not 0 <= self.adversarial < math.inf:
            raise ValueError(f"the weight of the adversarial term must not be negative, got {self.adversarial}")
        if type(self.discriminator_width) is not int or not 1 <= self.discriminator_width <= _MOST_WIDTH:
            raise ValueError(
                f"discriminator_width must be a positive integer up to {_MOST_WIDTH}, got {self.discriminator_width!r}"
            )

    def reconstruction(self, error: Tensor) -> Tensor:
        """``mean|error|^p`` for each subject, (N,); error is output − target (N, …)."""
        value: Tensor = _MeanPower.apply(error.flatten(1), self.p)
        return value

    def puzzle_gradient(self, error: Tensor, cell: Sequence[int]) -> Tensor:
        """``λ·Σ_axis mean|∂_axis error|^p`` for each subject, with differences per voxel.

        Args:
            error: x̂0 − x0 as volumes (N, C, D, H, W).
            cell: puzzle factor along each axis.
        """
        every = tuple(cell) if self.mode == "cell" else (1, 1, 1)
        value: Tensor = _DifferencePower.apply(error, every, self.p)
        return self.gradient * value

    def adversarial_term(self, discriminator: nn.Module, predicted: Tensor, target: Tensor, source: Tensor) -> Tensor:
        """Return the losses of the network and of the discriminator, for each subject, (N,) (arXiv 1611.07004).

        The loss of the network is the cross-entropy of its prediction with the label "real", times the weight. The loss
        of the discriminator is the mean of two cross-entropies: the target's with "real", and the prediction's with
        "not real". Each loss has gradients only for the weights of its own network.

        Args:
            discriminator: computes logits from a volume and the source.
            predicted, target: volumes (N, C, D, H, W).
            source: volumes (N, S·C, D, H, W) of S sources.
        """
        fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        judged = functional_call(discriminator, fixed, (predicted, source))
        real, unreal = discriminator(target, source), discriminator(predicted.detach(), source)
        return self.adversarial * _real_entropy(judged) + (_real_entropy(real) + _real_entropy(-unreal)) / 2


# Both terms are summed over the volume in this many portions, so that temporary tensors have the size of one portion.
_PORTIONS = 4


class _MeanPower(Function):
    """``mean|x|^p`` of (N, L) for each row; saves only x for the backward pass.

    The gradient of x is the only other tensor of the same size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.p = p
        return torch.stack([_power(part, p).sum(1) for part in x.chunk(_PORTIONS, dim=1)]).sum(0) / x.shape[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        slope = x * (2 / x.shape[1]) if ctx.p == 2 else x.sign().div_(x.shape[1])
        return slope.mul_(gradient[:, None]), None


class _DifferencePower(Function):
    """``Σ_axis mean|∂_axis x|^p`` of (N, C, D, H, W) for each subject, (N,); saves only x for the backward pass.

    With plain tensor operations, autograd would keep the differences along each axis, and also create their powers and
    gradients: about nine volumes at once instead of two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, every: tuple[int, ...], p: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.every, ctx.p = every, p
        portions = [
            _power(x[after] - x[before], p).flatten(1).sum(1) / number
            for after, before, number in _crossings(x.shape, every)
        ]
        return torch.stack(portions).sum(0) if portions else x.new_zeros(len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        of_x, upstream = torch.zeros_like(x), gradient.reshape(-1, 1, 1, 1, 1)
        for after, before, number in _crossings(x.shape, ctx.every):
            difference = x[after] - x[before]
            slope = difference.mul_(2 / number) if ctx.p == 2 else difference.sign_().div_(number)
            slope.mul_(upstream)
            of_x[after] += slope
            of_x[before] -= slope
        return of_x, None, None


Index = tuple[slice, ...]


def _crossings(shape: Sequence[int], every: Sequence[int]) -> Iterator[tuple[Index, Index, int]]:
    """Yield the voxels after and before each border that counts, for one portion of the volume and one axis at a time.

    Args:
        shape: (N, C, D, H, W).
        every: border spacing along each axis, in voxels.

    Yields:
        Index of the voxels after the borders, index of those before, and number of differences per subject and axis.
    """
    depth, whole = shape[2], slice(None)
    for axis, r in enumerate(every, start=2):
        borders = (shape[axis] - 1) // r
        if not borders:
            continue
        number = prod(shape[1:]) // shape[axis] * borders
        for begin, end in pairwise(depth * k // _PORTIONS for k in range(_PORTIONS + 1)):
            if axis == 2:
                first = max(-(-begin // r), 1) * r  # the first border at or after `begin`; index 0 is not a border
                after, before = slice(first, end, r), slice(first - 1, end - 1, r)
                if first < end:
                    yield (whole, whole, after), (whole, whole, before), number
            elif begin < end:
                portion = (whole, whole, slice(begin, end), *[whole] * (axis - 3))
                yield (*portion, slice(r, None, r)), (*portion, slice(r - 1, -1, r)), number


def _real_entropy(logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits with the label "real" for each subject, (N,)."""
    return F.softplus(-logits).flatten(1).mean(1)


def _power(x: Tensor, p: int) -> Tensor:
    return x.abs() if p == 1 else x.square()
