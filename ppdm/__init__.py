"""PPDM: pixel-puzzle diffusion for volumetric medical image translation (arXiv 2606.15323)."""

from ppdm._version import __version__
from ppdm.method import Method, sample, training_loss
from ppdm.model import PPDM
from ppdm.pixel_puzzle import puzzle, unpuzzle
from ppdm.unet import UNet, UNetOptions

__all__ = [
    "PPDM",
    "Method",
    "UNet",
    "UNetOptions",
    "__version__",
    "puzzle",
    "sample",
    "training_loss",
    "unpuzzle",
]
