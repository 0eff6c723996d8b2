"""What is better of a metric: more, less, or nearer to an ideal."""

from __future__ import annotations

__all__ = ["UPTAKE", "base", "ideal", "is_higher_better", "loss"]

UPTAKE = ("suv_mean_bias", "suv_max_bias")  # one metric a region, such as suv_mean_bias_liver

# More is better of these, or of names that begin so; of all others that have no ideal, less.
_HIGHER = ("psnr", "reconstruction_psnr", "ssim", "fits", "largest_", "matmul_flops_per_second", "flops_share")
_IDEAL = {"sharpness": 1.0, **dict.fromkeys(UPTAKE, 0.0)}


def base(metric: str) -> str:
    """What a metric is of, without lattice or region."""
    return next((name for name in ("seam_index", *UPTAKE) if metric.startswith(name)), metric)


def is_higher_better(metric: str) -> bool:
    """Whether more is better."""
    return metric.startswith(_HIGHER)


def ideal(metric: str) -> float | None:
    """The value that is best; None where more or less is better without end."""
    return _IDEAL.get(base(metric))


def loss(metric: str, was: float, now: float) -> float:
    """How much worse, in the metric's own unit; negative where it is better."""
    best = ideal(metric)
    if best is not None:
        return abs(now - best) - abs(was - best)
    return was - now if is_higher_better(metric) else now - was
