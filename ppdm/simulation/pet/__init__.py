"""Positron emission tomography: uptake, coincidences, attenuation, scatter, low dose and reconstruction.

The simulation takes a few seconds per subject on one core. It models physics and not image effects: noise, its texture
and the errors without attenuation correction result from counts along lines, as in a scanner.

    activity, mu = draw_uptake(anatomy, rng)
    scan = simulate(activity, mu, anatomy.grid.spacing, TORSO, rng, dose_factors=(4, 20))
    scan.ac, scan.low[20], scan.nac_low[20]  # float32 (D, H, W), reconstructed at the first access

It does not model oblique lines (each axial slice is measured separately), time of flight, motion, randoms and dead
time. The correction uses the true scatter and the true attenuation.
"""

from ppdm.simulation.pet.acquisition import Acquisition, acquire, thin, thin_nested
from ppdm.simulation.pet.errors import PETError
from ppdm.simulation.pet.projector import Projector
from ppdm.simulation.pet.reconstruction import reconstruct
from ppdm.simulation.pet.scan import Scan, simulate
from ppdm.simulation.pet.scanner import HEAD, SCANNERS, TORSO, Scanner
from ppdm.simulation.pet.uptake import LESION_SUV, MU, MYOCARDIUM_SUV, SUV, draw_uptake

__all__ = [
    "HEAD",
    "LESION_SUV",
    "MU",
    "MYOCARDIUM_SUV",
    "SCANNERS",
    "SUV",
    "TORSO",
    "Acquisition",
    "PETError",
    "Projector",
    "Scan",
    "Scanner",
    "acquire",
    "draw_uptake",
    "reconstruct",
    "simulate",
    "thin",
    "thin_nested",
]
