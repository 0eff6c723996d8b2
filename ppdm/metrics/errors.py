"""Metrics of the voxelwise error.

p is the prediction, g the target. Sums run over all voxels, or over the voxels inside the mask.

Axes: a batch (N, C, D, H, W) gives one value for each sample, (N,); a volume (D, H, W) gives a scalar tensor.
All values are float64. :func:`ppdm.metrics.pair.checked` describes the arguments and the errors.
"""

from torch import Tensor

from ppdm.metrics.pair import MetricError, checked, checked_range


def psnr(prediction: Tensor, target: Tensor, data_range: float, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``10·log10(data_range² / mean (p − g)²)``: higher is better, ∞ for no error.

    Args:
        prediction, target, mask: as for :func:`ppdm.metrics.pair.checked`.
        data_range: span of the intensity scale in the images' units, fixed for a task. A range computed from each image
            would make the values of subjects or methods incomparable.

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
    """Normalised mean absolute error, ``Σ|p − g| / Σ|g|``: 0 or more, lower is better; 1 if the prediction is 0.

    Use it for images with a physical zero, such as SUV. For these, it does not depend on the unit.

    Raises:
        MetricError: the target is 0 everywhere, or the volumes cannot be compared.
    """
    pair = checked(prediction, target, mask)
    return pair.total(_absolute_error) / _nonzero(pair.total(lambda _, g: g.abs()))


def nrmse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Normalised root mean square error, ``√(Σ(p − g)² / Σg²)``: 0 or more, lower is better; 1 if the prediction is 0.

    It is normalised by the Euclidean norm of the target; UDPET divides by the target's range instead.

    Raises:
        MetricError: the target is 0 everywhere, or the volumes cannot be compared.
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
