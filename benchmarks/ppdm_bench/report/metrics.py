"""Metrics of quality: their names for people, and which values are better: more, less, or nearer to an ideal."""

from __future__ import annotations

import re

UPTAKE = ("suv_mean_bias", "suv_max_bias")  # one metric per region, such as suv_mean_bias_liver

SEAMS = ("border_ratio", "seam_index")  # one metric per block grid, such as border_ratio_r2; the more sensitive first

# More is better if the name begins with one of these; for other metrics without an ideal value, less is better.
_HIGHER = (
    "psnr",
    "reconstruction_psnr",
    "ssim",
    "ms_ssim",
    "deviation_rank",
    "fits",
    "largest_",
    "matmul_flops_per_second",
    "flops_share",
)
_IDEAL = {"sharpness": 1.0, "border_ratio": 0.0, **dict.fromkeys(UPTAKE, 0.0)}


def base(metric: str) -> str:
    """Return the name of a metric without its block grid or region."""
    return next((name for name in (*SEAMS, *UPTAKE) if metric.startswith(name)), metric)


def is_higher_better(metric: str) -> bool:
    """Whether more is better."""
    return metric.startswith(_HIGHER)


def ideal(metric: str) -> float | None:
    """Return the ideal value; None if more, or less, is always better."""
    return _IDEAL.get(base(metric))


def loss(metric: str, was: float, now: float) -> float:
    """Return by how much a value became worse, in the unit of the metric; negative if it became better."""
    best = ideal(metric)
    if best is not None:
        return abs(now - best) - abs(was - best)
    return was - now if is_higher_better(metric) else now - was


_NAMES = {
    "psnr": "PSNR",
    "reconstruction_psnr": "ceiling PSNR",  # of the encoded and decoded target, the limit of a latent method
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "nmae": "NMAE",
    "nrmse": "NRMSE",
    "mae": "MAE",
    "seam_index": "seam index",
    "border_ratio": "border ratio",
    "suv_mean_bias": "SUVmean",
    "suv_max_bias": "SUVmax",
}


def metric_name(metric: str, unit: str = "") -> str:
    """Return a metric for people, with an arrow in the better direction: ``PSNR dB ↑``, ``seam index r=4 dB ↓``."""
    grid = re.fullmatch(rf"(?:{'|'.join(SEAMS)})_r(.+)", metric)
    which = f" r={grid[1].replace('x', '×')}" if grid else f" {region(metric)}" if is_regional(metric) else ""
    name = _NAMES.get(base(metric), base(metric).replace("_", " ")) + which
    arrow = "↑" if is_higher_better(metric) else f"→{best:g}" if (best := ideal(metric)) is not None else "↓"
    return " ".join(filter(None, (name, unit if unit != "1" else "", arrow)))


def is_regional(metric: str) -> bool:
    """Whether a metric refers to one labelled region, so that there are many metrics of its kind."""
    return metric.startswith(UPTAKE)


def region(metric: str) -> str:
    """Return the region of a regional metric for people: `grey matter`."""
    return metric.removeprefix(f"{base(metric)}_").replace("_", " ")
