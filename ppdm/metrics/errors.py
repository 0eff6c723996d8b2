"""Metrics of the voxelwise error. p is the prediction, g the target; sums run over all voxels or those of the mask.

Axes: batches (N, C, D, H, W), which give one value a sample, (N,), or volumes (D, H, W), which give a scalar tensor.
All values are float64. Arguments are as for :func:`ppdm.metrics.pair.checked`, which says what it refuses.
"""

from torch import Tensor

from ppdm.metrics.pair import MetricError, checked, checked_range


def psnr(prediction: Tensor, target: Tensor, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``10·log10(data_range² / mean (p − g)²)``: higher is better, ∞ for no error.

    Args:
        prediction, target, mask: as for :func:`ppdm.metrics.pair.checked`.
        data_range: span of the intensity scale in the images' units, fixed for a task. A range taken from each image
            would give every subject, or every method, another scale.

    Raises:
        MetricError: data_range is not positive, or the volumes cannot be compared.
    """
    peak = checked_range(data_range)
    return 10 * (peak**2 / checked(prediction, target, mask).mean(_squared_error)).log10()


def mae(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error, ``mean |p − g|``, in the images' units: 0 or more, lower is better.

    Raises:
        MetricError: the volumes cannot be compared.
    """
    return checked(prediction, target, mask).mean(_absolute_error)


def nmae(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Normalised mean absolute error, ``Σ|p − g| / Σ|g|``: 0 or more, lower is better; 1 is what predicting 0 has.

    For images whose zero is physical, as that of SUV is; there it does not depend on the unit.

    Raises:
        MetricError: the target is 0 throughout, or the volumes cannot be compared.
    """
    pair = checked(prediction, target, mask)
    return pair.total(_absolute_error) / _nonzero(pair.total(lambda _, g: g.abs()))


def nrmse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Normalised root mean square error, ``√(Σ(p − g)² / Σg²)``: 0 or more, lower is better; 1 for predicting 0.

    Of the norms in use this is the Euclidean one; UDPET divides by the target's range instead.

    Raises:
        MetricError: the target is 0 throughout, or the volumes cannot be compared.
    """
    pair = checked(prediction, target, mask)
    return (pair.total(_squared_error) / _nonzero(pair.total(lambda _, g: g.square()))).sqrt()


def _absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs()


def _squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square()


def _nonzero(norm: Tensor) -> Tensor:
    if not norm.all():
        raise MetricError("The target is 0 throughout, so an error relative to it is not defined; use psnr or mae.")
    return norm
