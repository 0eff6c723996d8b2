"""The input of every metric: a prediction, its target and an optional mask, checked once and read slab by slab.

Axes: (N, C, D, H, W) a batch, (C, D, H, W) a sample of it, (D, H, W) a single volume.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppdm.arrays import AS_TENSOR

SLAB = 2**20  # voxels processed at a time: 8 MiB in float64; a few such tensors are in memory

Metric = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # prediction, target, mask of one sample -> a scalar
Term = Callable[[Tensor, Tensor], Tensor]  # prediction, target -> a value for every voxel


class MetricError(ValueError):
    """A metric cannot be computed; the message gives the value found, the value expected and the remedy."""


@dataclass(frozen=True, eq=False)
class ScoredPair:
    """A prediction and its target, (N, C, D, H, W), finite; made by :func:`checked`.

    Attributes:
        mask: None, or a boolean tensor with the shape of the target; no sample is empty.
        batched: whether the caller passed a batch rather than a single volume.
    """

    prediction: Tensor
    target: Tensor
    mask: Tensor | None
    batched: bool

    def each(self, metric: Metric) -> Tensor:
        """Apply a metric to each sample: (N,) for a batch, a scalar tensor for a single volume."""
        masks = [None] * len(self.target) if self.mask is None else self.mask
        values = [metric(*sample) for sample in zip(self.prediction, self.target, masks, strict=True)]
        return torch.stack(values) if self.batched else values[0]

    def total(self, term: Term) -> Tensor:
        """Sum a term of prediction and target over all voxels, or over those inside the mask."""
        return self.each(lambda p, g, m: _total(term, p, g, m))

    def mean(self, term: Term) -> Tensor:
        """Average a term of prediction and target over all voxels, or over those inside the mask."""
        return self.each(lambda p, g, m: _total(term, p, g, m) / (g.numel() if m is None else m.sum()))


def checked(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> ScoredPair:
    """Check the arguments of a metric.

    Args:
        prediction: (N, C, D, H, W) or (D, H, W), finite, any real type, any device.
        target: same shape and device.
        mask: same shape, or one channel; voxels above 0 are inside. No sample may be empty.

    Raises:
        MetricError: the arguments do not meet these conditions.
    """
    _check_volumes(prediction, target)
    pair = [_as_batch(x.detach()) for x in (prediction, target)]
    for name, x in zip(("prediction", "target"), pair, strict=True):
        _check_finite(name, x)
    inside = None if mask is None else _checked_mask(mask, target)
    return ScoredPair(pair[0], pair[1], inside, batched=target.ndim == 5)


def single(name: str, *volumes: Tensor | None) -> None:
    """Check that all arguments are single volumes (D, H, W) of one shape, for metrics of one subject only.

    Raises:
        MetricError: an argument is not a tensor, or is of another shape.
    """
    given = [x for x in volumes if x is not None]
    if any(not isinstance(x, Tensor) or x.ndim != 3 or x.shape != given[0].shape for x in given):
        remedy = "" if all(isinstance(x, Tensor) for x in given) else f"; {AS_TENSOR}"
        got = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in given)
        raise MetricError(f"{name} takes one subject: expected tensors (D, H, W) of one shape, got {got}{remedy}.")


def checked_range(data_range: float) -> float:
    """Check that the span of the intensity scale is finite and positive; return it as a float.

    Raises:
        MetricError: it is not.
    """
    if isinstance(data_range, bool) or not isinstance(data_range, int | float) or not 0 < data_range < math.inf:
        raise MetricError(
            f"data_range must be a positive number, got {data_range!r}: give the span of the task's intensity scale "
            "(highest minus lowest possible value), the same for every subject and method."
        )
    return float(data_range)


def slabs(volume: Tensor, dim: int = 1) -> Iterator[tuple[slice, ...]]:
    """Yield the indices that cut a sample (C, D, H, W) along an axis into slabs of about ``SLAB`` voxels."""
    size = volume.shape[dim]
    thickness = max(1, SLAB * size // volume.numel())
    for start in range(0, size, thickness):
        yield (*[slice(None)] * dim, slice(start, start + thickness))


def wide(x: Tensor) -> Tensor:
    """Cast to the precision of sums: float64, or float32 on MPS, which has no float64."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _total(term: Term, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    result = wide(target.new_zeros(()))
    for part in slabs(target):
        values = term(wide(prediction[part]), wide(target[part]))
        result += (values if mask is None else values[mask[part]]).sum()
    return result


def _as_batch(x: Tensor) -> Tensor:
    return x if x.ndim == 5 else x[None, None]


def _check_volumes(prediction: Tensor, target: Tensor) -> None:
    for name, x in (("prediction", prediction), ("target", target)):
        if not isinstance(x, Tensor):
            raise MetricError(f"{name} must be a torch tensor, got {type(x).__name__}; {AS_TENSOR}.")
        if x.dtype == torch.bool or x.is_complex():
            raise MetricError(f"{name} must hold real numbers, got {x.dtype}.")
    if prediction.shape != target.shape or target.ndim not in (3, 5) or not target.numel():
        raise MetricError(
            "prediction and target must be two volumes (D, H, W), or two batches (N, C, D, H, W), of the same shape; "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    _check_device("prediction", prediction, target)


def _check_device(name: str, x: Tensor, target: Tensor) -> None:
    if x.device != target.device:
        raise MetricError(f"{name} is on {x.device} and the target on {target.device}; move both to one device.")


def _check_finite(name: str, x: Tensor) -> None:
    bad = sum(int((~sample[part].isfinite()).sum()) for sample in x for part in slabs(sample))
    if bad:
        raise MetricError(
            f"{name} has {bad} of {x.numel()} voxels that are NaN or infinite; a score of the others would hide that, "
            "so repair the volume first."
        )


def _checked_mask(mask: Tensor, target: Tensor) -> Tensor:
    if not isinstance(mask, Tensor):
        raise MetricError(f"mask must be a torch tensor, got {type(mask).__name__}; {AS_TENSOR}.")
    one_channel = target.shape if target.ndim == 3 else (target.shape[0], 1, *target.shape[2:])
    if mask.shape not in (target.shape, one_channel):
        raise MetricError(f"mask must have the shape {tuple(target.shape)} of the volumes, got {tuple(mask.shape)}.")
    _check_device("mask", mask, target)
    inside = _as_batch(mask.detach() > 0)
    if empty := [n for n, sample in enumerate(inside) if not sample.any()]:
        where = f" in sample {empty[0]}" if target.ndim == 5 else ""
        raise MetricError(
            f"mask has no voxel above 0{where}, so there is nothing to average; leave it out or repair it."
        )
    return inside.expand(_as_batch(target).shape)
