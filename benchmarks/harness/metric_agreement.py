"""Deviation of PSNR and SSIM from scikit-image: a Markdown table on standard output.

python benchmarks/harness/metric_agreement.py > results/metrics/agreement.md
"""

from itertools import product

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ppdm.metrics import psnr, ssim

SHAPES = ((32, 32, 32), (24, 40, 17), (11, 64, 12))
RANGES = (1.0, 20.0, 4095.0)
DTYPES = (np.float32, np.float64)


def main() -> None:
    """Print one row per volume."""
    print("# PSNR and SSIM against scikit-image\n")
    print("Its settings are Wang's: `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`.")
    print("Made by `benchmarks/harness/metric_agreement.py`.\n")
    print("| shape | data range | type | PSNR dB | difference | SSIM | difference |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for seed, (shape, span, dtype) in enumerate(product(SHAPES, RANGES, DTYPES)):
        print(_row(shape, span, dtype, np.random.default_rng(seed)))


def _row(shape: tuple[int, int, int], span: float, dtype: type, rng: np.random.Generator) -> str:
    target = (rng.random(shape) * span).astype(dtype)
    prediction = (target + rng.normal(scale=0.1 * span, size=shape)).astype(dtype)
    ours = [float(m(torch.from_numpy(prediction), torch.from_numpy(target), span)) for m in (psnr, ssim)]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "win_size": 11}
    theirs = [
        float(peak_signal_noise_ratio(target, prediction, data_range=span)),
        float(structural_similarity(target, prediction, data_range=span, **settings)),
    ]
    cells = "×".join(map(str, shape)), f"{span:g}", dtype.__name__
    values = (f"{mine:.6f} | {mine - other:+.1e}" for mine, other in zip(ours, theirs, strict=True))
    return f"| {' | '.join((*cells, *values))} |"


if __name__ == "__main__":
    main()
