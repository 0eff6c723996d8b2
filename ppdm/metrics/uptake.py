"""Bias of PET uptake in organs and lesions.

Axes: volumes (D, H, W) of one subject, in SUV or any unit proportional to it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ppdm.metrics.pair import MetricError, checked, single, wide


@dataclass(frozen=True)
class UptakeBias:
    """Bias of one region in percent, ``100·(p − g)/g``: 0 is best, negative values are underestimates.

    Attributes:
        suv_max: bias of the maximum of the region (each image has its own maximum).
        suv_mean: bias of the mean over the region.
    """

    suv_max: float
    suv_mean: float


def suv_bias(prediction: Tensor, target: Tensor, labels: Tensor) -> dict[int, UptakeBias]:
    """Compute the bias of SUVmax and SUVmean in every region.

    Args:
        prediction, target: (D, H, W), finite.
        labels: (D, H, W), whole numbers of any type: 0 outside all regions, one positive number for each region.

    Returns:
        The bias of each region by its number, in ascending order.

    Raises:
        MetricError: labels are not whole numbers from 0 or contain no region, the target uptake of a region is not
            positive, or the volumes cannot be compared.
    """
    single("suv_bias", prediction, target, labels)
    pair, labels = checked(prediction, target), _whole(labels)
    inside = labels > 0
    numbers, region = labels[inside].unique(return_inverse=True)
    if not len(numbers):
        raise MetricError("labels have no region: no voxel is above 0; leave the subject out or repair its labels.")
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
    """Number the connected components of a mask (``scipy.ndimage.label``); voxels that share a corner are connected.

    Args:
        mask: (D, H, W); voxels above 0 are inside.

    Returns:
        (D, H, W) int64: 0 outside; components numbered from 1 in the order of their first voxels.

    Raises:
        MetricError: the mask is not a tensor (D, H, W).
    """
    single("connected_regions", mask)
    labels, _ = ndimage.label((mask > 0).cpu().numpy(), np.ones((3, 3, 3)))
    return torch.from_numpy(labels.astype(np.int64)).to(mask.device)


def _maximum_and_mean(values: Tensor, region: Tensor, regions: int) -> tuple[Tensor, Tensor]:
    values = wide(values)
    zero = values.new_zeros(regions)
    maximum = zero.scatter_reduce(0, region, values, "amax", include_self=False)
    return maximum, zero.scatter_reduce(0, region, values, "mean", include_self=False)


def _whole(labels: Tensor) -> Tensor:
    whole = labels.to(torch.int64)
    if not torch.equal(whole.to(labels.dtype), labels) or int(whole.min()) < 0:
        raise MetricError(
            "labels must be whole numbers, 0 outside and positive in the regions; got negative numbers or fractions."
        )
    return whole
