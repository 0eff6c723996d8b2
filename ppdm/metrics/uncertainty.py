"""A metric of uncertainty: whether an estimate of it is large where a prediction is wrong.

Axes: a volume (D, H, W).
"""

import torch
from torch import Tensor

from ppdm.metrics.pair import MetricError, checked, single

DEVIATION_RANK = "deviation_rank"


def deviation_rank(deviation: Tensor, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation of the deviation over several samples and the absolute error of their mean.

    1 if the voxels with a larger deviation always have a larger error, about 0 if they are unrelated, -1 at the lowest;
    higher is better. It is Pearson's correlation of the ranks of ``s`` and of ``|p − g|``, in which equal values have
    the mean of their ranks (Spearman, Am. J. Psychol. 15(1), 1904). Ranks do not depend on the scale of the deviation:
    it may be too small or too large everywhere.

    Args:
        deviation: standard deviation of the samples, (D, H, W).
        prediction, target, mask: as for :func:`ppdm.metrics.pair.checked`, (D, H, W). With a mask, only voxels inside
            count. Without one, the background, where both are small, makes the value high.

    Returns:
        A scalar, float64.

    Raises:
        MetricError: the deviation or the error is the same at every voxel, the volumes cannot be compared, or the mask
            is empty.
    """
    from scipy.stats import rankdata  # takes a second to load

    single("deviation_rank", deviation, prediction, target, mask)
    pair = checked(prediction, target, mask)
    checked(deviation, target)
    inside = slice(None) if pair.mask is None else pair.mask[0, 0]
    error = (prediction.double() - target.double()).abs()
    ranks = [
        torch.from_numpy(rankdata(x[inside].detach().cpu().double().numpy(), axis=None)) for x in (deviation, error)
    ]
    a, b = (rank - rank.mean() for rank in ranks)
    norm = (a.square().sum() * b.square().sum()).sqrt()
    if not norm > 0:
        raise MetricError(
            "The rank correlation is not defined: the deviation or the error is the same at every voxel; give a larger "
            "region, or other samples."
        )
    return (a * b).sum() / norm
