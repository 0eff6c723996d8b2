"""All compared methods by name: PPDM and the baselines; each baseline has its own module with its presets."""

from collections.abc import Mapping

from ppdm import PPDM, Method
from ppdm_baselines import (
    ddpm3d,
    gan3d,
    latent,
    latent_bridge,
    latent_flow,
    patch,
    regression,
    slice25d,
    sparse,
    wavelet,
    wfm,
)

# Our U-Net at PPDM's width, so that the comparison is between representations, not networks.
_PAGES = (ddpm3d, latent, wavelet, patch, slice25d, wfm, latent_flow, latent_bridge, sparse, gan3d, regression)
METHODS: Mapping[str, Method] = {m.name: m for m in (PPDM, *(page.MATCHED for page in _PAGES))}

# The widths, steps and optimiser of each paper. PPDM is absent because only its abstract is public. Others are absent
# because they have no paper, or because its network has no counterpart here.
AUTHORS: Mapping[str, Method] = {page.MATCHED.name: page.AUTHORS for page in _PAGES if hasattr(page, "AUTHORS")}

# The source of each method. Only the abstract of PPDM is public.
SOURCES: Mapping[str, str] = {PPDM.name: "PPDM, arXiv 2606.15323"} | {page.MATCHED.name: page.SOURCE for page in _PAGES}

PRESETS: Mapping[str, Mapping[str, Method]] = {"matched": METHODS, "authors": AUTHORS}

# The full-3-D model, the reference of all ratios.
REFERENCE = ddpm3d.MATCHED.name

__all__ = ["AUTHORS", "METHODS", "PRESETS", "REFERENCE", "SOURCES"]
