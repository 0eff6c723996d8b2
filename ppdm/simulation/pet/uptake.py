"""PET properties of a subject: FDG uptake in SUV and attenuation at 511 keV.

Axes: volume (D, H, W).

All random values belong to a tissue or to a position in mm, so that a seed gives the same subject on every grid.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ppdm.simulation.fields import smooth_field
from ppdm.simulation.phantom import Anatomy

# Mean SUV one hour after injection, approximately as in Wang et al., Mol Imaging Biol 9:83, 2007. In the brain it is
# the uptake of the tissue itself, which no scanner resolves. Lesions and myocardium are sampled from their own ranges.
SUV: Mapping[str, float] = MappingProxyType(
    {
        "air": 0.0,
        "csf": 0.8,
        "grey_matter": 8.0,
        "white_matter": 2.2,
        "deep_grey": 8.5,
        "lesion": 8.0,
        "cortical_bone": 0.4,
        "marrow": 1.3,
        "fat": 0.35,
        "muscle": 0.7,
        "skin": 0.7,
        "lung": 0.45,
        "liver": 1.9,
        "spleen": 1.7,
        "kidney": 3.0,
        "myocardium": 4.0,
        "blood": 1.5,
        "bowel": 1.1,
    }
)
LESION_SUV = (4.0, 15.0)
MYOCARDIUM_SUV = (2.0, 8.0)

# Linear attenuation at 511 keV, 1/cm: mass attenuation of the ICRU-44 tissues (Hubbell and Seltzer, NISTIR 5632, table
# 4, between 500 and 600 keV) times density: compact bone 1.92 g/cm³, inflated lung 0.26 to 0.27. Marrow is spongy bone.
MU: Mapping[str, float] = MappingProxyType(
    {
        "air": 0.0,
        "csf": 0.096,
        "grey_matter": 0.099,
        "white_matter": 0.099,
        "deep_grey": 0.099,
        "lesion": 0.100,
        "cortical_bone": 0.172,
        "marrow": 0.110,
        "fat": 0.092,
        "muscle": 0.100,
        "skin": 0.100,
        "lung": 0.026,
        "liver": 0.100,
        "spleen": 0.100,
        "kidney": 0.100,
        "myocardium": 0.100,
        "blood": 0.100,
        "bowel": 0.098,
    }
)

# Standard deviations between subjects: of all uptake together (weight, glucose), and of each tissue in addition. Then
# standard deviation and smoothness of the texture within a subject.
_SUBJECT_SD, _TISSUE_SD = 0.18, 0.08
_TEXTURE_SD, _TEXTURE_MM = 0.08, 16.0
_LUNG_SD, _LUNG_TEXTURE_SD, _LUNG_TEXTURE_MM = 0.10, 0.10, 30.0


def draw_uptake(anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample one subject's FDG uptake and attenuation.

    Args:
        anatomy: the anatomy of the subject.
        rng: source of the subject's properties; no sample depends on the grid.

    Returns:
        Activity in SUV and mu at 511 keV in 1/cm, both float32 (D, H, W).
    """
    suv = _draw_tissues(rng)
    hot = rng.uniform(*LESION_SUV, size=len(anatomy.lesions))
    inflation = math.exp(_LUNG_SD * rng.standard_normal())
    texture, lung_texture = (smooth_field(anatomy.grid, mm, rng) for mm in (_TEXTURE_MM, _LUNG_TEXTURE_MM))

    activity = anatomy.mix({tissue: suv[tissue] for tissue in anatomy.tissues})
    mu = anatomy.mix({tissue: MU[tissue] for tissue in anatomy.tissues})
    if len(hot):
        activity += anatomy.fraction("lesion") * (_of_nearest_lesion(anatomy, hot) - suv["lesion"])
    if "lung" in anatomy.tissues:
        density = inflation * np.exp(_LUNG_TEXTURE_SD * lung_texture)
        mu += MU["lung"] * anatomy.fraction("lung") * (density - 1)
    return activity * np.exp(_TEXTURE_SD * texture), mu


def _draw_tissues(rng: np.random.Generator) -> dict[str, float]:
    """Sample the SUV of every tissue in one subject, log-normal around the values of the table."""
    factors = np.exp(_SUBJECT_SD * rng.standard_normal() + _TISSUE_SD * rng.standard_normal(len(SUV)))
    suv = {tissue: mean * float(factor) for (tissue, mean), factor in zip(SUV.items(), factors, strict=True)}
    # Fasting determines whether the heart uses glucose at all.
    return suv | {"myocardium": rng.uniform(*MYOCARDIUM_SUV)}


def _of_nearest_lesion(anatomy: Anatomy, values: np.ndarray) -> np.ndarray:
    """Return for each voxel the value of the lesion whose centre is nearest, (D, H, W)."""
    d, h, w = np.meshgrid(*(anatomy.grid.centres(axis) for axis in range(3)), indexing="ij", sparse=True)
    squares = [
        (d - lesion.centre_mm[0]) ** 2 + (h - lesion.centre_mm[1]) ** 2 + (w - lesion.centre_mm[2]) ** 2
        for lesion in anatomy.lesions
    ]
    return values.astype(np.float32)[np.argmin(squares, axis=0)]
