"""OSEM: images in SUV from coincidences.

Axes: volume (D, H, W), sinogram (views, bins, W).

Hudson and Larkin, IEEE TMI 13:601, 1994. With the model ȳ = k (a · A B x + b) each subset of views updates

    x ← x / (Bᵀ Aᵀ a) · Bᵀ Aᵀ (a · y/k / (a · A B x + b)) = x / (Bᵀ Aᵀ a) · Bᵀ Aᵀ (y/k / (A B x + b/a))

so that the counts are divided by k only once, and the attenuation enters only through the sensitivity Bᵀ Aᵀ a and b/a.
"""

import numpy as np

from ppdm.simulation.pet.acquisition import Acquisition
from ppdm.simulation.pet.blur import blur
from ppdm.simulation.pet.projector import ordered_subsets

# In SUV · mm; a line below this value contains no activity, and its ratio would divide by zero.
_DARK = np.float32(1e-6)


def reconstruct(acquisition: Acquisition, corrected: bool = True) -> np.ndarray:
    """Reconstruct the image of a scan, float32 (D, H, W).

    Args:
        acquisition: the scan; its scanner defines iterations, subsets and filter.
        corrected: whether to correct for attenuation and scatter, which gives an image in SUV (AC). Otherwise (NAC) the
            same counts are reconstructed without attenuation and scatter (a = 1, b = 0), with the same calibration.
    """
    scanner, spacing = acquisition.scanner, acquisition.spacing
    psf = scanner.psf_mm * scanner.model_psf
    counts = (acquisition.counts / acquisition.calibration).astype(np.float32)
    attenuation = acquisition.attenuation if corrected else np.ones_like(counts)
    offset = acquisition.scatter / attenuation if corrected else np.zeros_like(counts)
    subsets = ordered_subsets(acquisition.projector, scanner.subsets)
    sensitivities = [blur(part.adjoint(attenuation[part.selection]), spacing, psf) for part in subsets]
    x = np.ones((*acquisition.projector.shape, acquisition.shape[2]), np.float32)
    for _ in range(scanner.iterations):
        for part, sensitivity in zip(subsets, sensitivities, strict=True):
            expected = part.forward(blur(x, spacing, psf)) + offset[part.selection]
            ratio = counts[part.selection] / np.maximum(expected, _DARK)
            x *= blur(part.adjoint(ratio), spacing, psf) / sensitivity
    return _without_margin(blur(x, spacing, scanner.filter_mm), acquisition.shape)


def _without_margin(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    d, h = ((seen - n) // 2 for seen, n in zip(image.shape[:2], shape[:2], strict=True))
    return np.ascontiguousarray(image[d : d + shape[0], h : h + shape[1]])
