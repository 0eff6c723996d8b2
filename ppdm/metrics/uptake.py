"""Bias of PET uptake in organs and lesions.

Axes: volumes (D, H, W) of one subject, in SUV (or any unit that is proportional to it).
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ppdm.metrics.pair import MetricError, checked, single, wide

# Half of the 26 neighbours of a voxel: the others are found from their side.
_FORWARD = [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]


@dataclass(frozen=True)
class UptakeBias:
    """Bias of one region in percent, ``100·(p − g)/g``: 0 is best, negative is an underestimate.

    Attributes:
        suv_max: of the largest voxel of the region (each image's own largest).
        suv_mean: of the mean over the region.
    """

    suv_max: float
    suv_mean: float


def suv_bias(prediction: Tensor, target: Tensor, labels: Tensor) -> dict[int, UptakeBias]:
    """SUVmax and SUVmean bias of every region.

    Args:
        prediction, target: (D, H, W), finite.
        labels: (D, H, W), whole numbers of any type: 0 outside, each positive number a region.

    Returns:
        For every number in labels, its region's bias, in ascending order.

    Raises:
        MetricError: labels are no whole numbers from 0 or have no region, a region's target uptake is not positive, or
            the volumes cannot be compared.
    """
    single("suv_bias", prediction, target, labels)
    pair, labels = checked(prediction, target), _whole(labels)
    inside = labels > 0
    numbers, region = labels[inside].unique(return_inverse=True)
    if not len(numbers):
        raise MetricError("labels have no region: no voxel is above 0; leave the subject out or mend its labels.")
    p_max, p_mean = _maximum_and_mean(pair.prediction[0, 0][inside], region, len(numbers))
    g_max, g_mean = _maximum_and_mean(pair.target[0, 0][inside], region, len(numbers))
    if (bad := (g_max <= 0) | (g_mean <= 0)).any():
        raise MetricError(
            f"Region {int(numbers[bad][0])} has no positive uptake in the target, so a relative bias of it is not "
            "defined; give regions in SUV and leave this one out."
        )
    biases = [100 * (p - g) / g for p, g in ((p_max, g_max), (p_mean, g_mean))]
    return {int(k): UptakeBias(a, b) for k, a, b in zip(numbers, *(bias.tolist() for bias in biases), strict=True)}


def connected_regions(mask: Tensor) -> Tensor:
    """Number the connected parts of a mask, voxels that share a corner included: every lesion a region.

    Works on the voxels inside alone: each takes the smallest number among its neighbours, again and again, and follows
    it to that voxel's own number (pointer jumping), so that long parts take few rounds.

    Args:
        mask: (D, H, W); voxels above 0 are inside.

    Returns:
        (D, H, W) int64: 0 outside, parts numbered from 1 in the order of their first voxels.
    """
    single("connected_regions", mask)
    labels = torch.zeros_like(mask, dtype=torch.int64)
    voxels = (mask > 0).nonzero()
    here, there = _neighbours(voxels, mask.shape)
    root, last = torch.arange(len(voxels), device=mask.device), None
    while last is None or not torch.equal(root, last):
        last = root
        root = root.scatter_reduce(0, here, root[there], "amin")
        root = root.scatter_reduce(0, there, root[here], "amin")
        root = root[root]
    labels[tuple(voxels.T)] = root.unique(return_inverse=True)[1] + 1
    return labels


def _neighbours(voxels: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Pairs of neighbours among voxels (V, 3), as two lists of their positions there."""
    place = voxels.new_full([size + 2 for size in shape], -1)
    number = torch.arange(len(voxels), device=voxels.device)
    place[tuple((voxels + 1).T)] = number
    found = torch.stack([place[tuple((voxels + 1 + voxels.new_tensor(step)).T)] for step in _FORWARD])
    step, here = (found >= 0).nonzero(as_tuple=True)
    return here, found[step, here]


def _maximum_and_mean(values: Tensor, region: Tensor, regions: int) -> tuple[Tensor, Tensor]:
    values = wide(values)
    zero = values.new_zeros(regions)
    maximum = zero.scatter_reduce(0, region, values, "amax", include_self=False)
    return maximum, zero.scatter_reduce(0, region, values, "mean", include_self=False)


def _whole(labels: Tensor) -> Tensor:
    whole = labels.to(torch.int64)
    if not torch.equal(whole.to(labels.dtype), labels) or int(whole.min()) < 0:
        raise MetricError("labels must be whole numbers, 0 outside and positive in the regions; got others.")
    return whole
