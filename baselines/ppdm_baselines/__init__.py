"""Every method that the toolkit compares, by name: PPDM and the baselines, each a page with its value and presets."""

from collections.abc import Mapping

from ppdm import PPDM, Method
from ppdm_baselines import ddpm3d, latent, patch, regression, slice25d, wavelet

# Our U-Net at PPDM's width: the space is compared, not the network.
_PAGES = (ddpm3d, latent, wavelet, patch, slice25d, regression)
METHODS: Mapping[str, Method] = {m.name: m for m in (PPDM, *(page.MATCHED for page in _PAGES))}

# The widths, steps and optimiser of each paper. Of PPDM's only the abstract is public, so it has none; nor has the
# control, which is nobody's.
AUTHORS: Mapping[str, Method] = {
    m.name: m for m in (ddpm3d.AUTHORS, latent.AUTHORS, wavelet.AUTHORS, patch.AUTHORS, slice25d.AUTHORS)
}

# Where each comes from; of PPDM only the abstract is public.
SOURCES: Mapping[str, str] = {PPDM.name: "PPDM, arXiv 2606.15323"} | {page.MATCHED.name: page.SOURCE for page in _PAGES}

PRESETS: Mapping[str, Mapping[str, Method]] = {"matched": METHODS, "authors": AUTHORS}

# The full-3-D model, which ratios are against.
REFERENCE = ddpm3d.MATCHED.name

__all__ = ["AUTHORS", "METHODS", "PRESETS", "REFERENCE", "SOURCES"]
