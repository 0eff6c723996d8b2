"""Procedural anatomy: a head or torso for every seed, on any grid, without a download."""

from collections.abc import Callable

import numpy as np

from ppdm.simulation.phantom.anatomy import FIELDS_OF_VIEW, PRESETS, TISSUES, Anatomy, Grid, Lesion, PhantomError
from ppdm.simulation.phantom.head import make_head
from ppdm.simulation.phantom.torso import make_torso

ANATOMIES: dict[str, Callable[[int | np.random.SeedSequence, Grid], Anatomy]] = {"head": make_head, "torso": make_torso}

__all__ = [
    "ANATOMIES",
    "FIELDS_OF_VIEW",
    "PRESETS",
    "TISSUES",
    "Anatomy",
    "Grid",
    "Lesion",
    "PhantomError",
    "make_head",
    "make_torso",
]
