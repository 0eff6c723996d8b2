"""Pairs as the tensors that a training sees, and what must be true of them.

Axes: a volume of a pair (D, H, W) or (C, D, H, W), a batch (N, C, D, H, W), all float32 network values.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppdm.schedule import TrainingError

Array = np.ndarray | Tensor
ArrayPair = tuple[Array, Array]


@dataclass(frozen=True)
class Survey:
    """What was found on looking at every pair once.

    Attributes:
        count: of the pairs.
        channels: of every volume.
        sha256: of all values in order, so that other files, another order or another scaling are told apart while
            files that were only moved are not; empty if it was not wanted.
    """

    count: int
    channels: int
    sha256: str

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def survey(
    pairs: Sequence[ArrayPair], batch_size: int = 1, *, digest: bool = False, purpose: str = "train on"
) -> Survey:
    """Look at every pair before the first step, so that none can end a training after hours.

    Raises:
        TrainingError: no pairs, a pair of two shapes, values that are not finite, or pairs that do not fit in a batch.
    """
    seen = hashlib.sha256()
    shapes: dict[tuple[int, ...], int] = {}  # and the first pair that has it
    for index in range(len(pairs)):
        volumes = _checked(f"Pair {index} to {purpose}", pairs[index])
        shapes.setdefault(tuple(volumes[0].shape), index)
        for volume in volumes if digest else ():
            seen.update(str(tuple(volume.shape)).encode())
            seen.update(volume.cpu().contiguous().numpy().data)
    if not shapes:
        raise TrainingError(f"There are no pairs to {purpose}; give at least one.")
    if len({shape[0] for shape in shapes}) > 1 or (batch_size > 1 and len(shapes) > 1):
        (a, i), (b, j) = list(shapes.items())[:2]
        raise TrainingError(
            f"Pair {i} has the shape {a} and pair {j} {b}: a batch of {batch_size} needs one shape, and channels must "
            "always agree; crop the volumes alike, or train with batch_size 1."
        )
    return Survey(len(pairs), next(iter(shapes))[0], seen.hexdigest() if digest else "")


def batch(pairs: Sequence[ArrayPair], device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Sources and targets (N, C, D, H, W) on the device."""
    source, target = (torch.stack([_volume(v) for v in volumes]).to(device) for volumes in zip(*pairs, strict=True))
    return source, target


def _checked(name: str, pair: ArrayPair) -> tuple[Tensor, Tensor]:
    source, target = (_volume(v) for v in pair)
    if source.ndim != 4 or source.shape != target.shape:
        raise TrainingError(
            f"{name} has the shapes {tuple(source.shape)} and {tuple(target.shape)}; expected two volumes "
            "(D, H, W) or (C, D, H, W) of one shape."
        )
    if not (source.isfinite().all() and target.isfinite().all()):
        raise TrainingError(f"{name} holds values that are not finite; replace them first.")
    return source, target


def _volume(array: Array) -> Tensor:
    """(C, D, H, W) float32; arrays are copied, since torch cannot share those that are read-only or reversed."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array, np.float32, order="C"))
    return (tensor[None] if tensor.ndim == 3 else tensor).float()
