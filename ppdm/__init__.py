"""PPDM: pixel-puzzle diffusion for volumetric medical image translation (arXiv 2606.15323).

All names are imported on first use, so that reading a scan (:mod:`ppdm.data`) does not load PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppdm._version import __version__

if TYPE_CHECKING:
    from ppdm.checkpoint import load
    from ppdm.evaluation.on_manifest import evaluate
    from ppdm.method import Method, sample, training_loss
    from ppdm.model import PPDM
    from ppdm.network.backbone import Backbone
    from ppdm.network.options import UNetOptions
    from ppdm.network.unet import UNet
    from ppdm.pixel_puzzle import puzzle, unpuzzle
    from ppdm.serialization import register
    from ppdm.training.loop import fit
    from ppdm.training.on_manifest import train
    from ppdm.translation import translate

__all__ = [
    "PPDM",
    "Backbone",
    "Method",
    "UNet",
    "UNetOptions",
    "__version__",
    "evaluate",
    "fit",
    "load",
    "puzzle",
    "register",
    "sample",
    "train",
    "training_loss",
    "translate",
    "unpuzzle",
]

_HOMES = {
    "checkpoint": ("load",),
    "method": ("Method", "sample", "training_loss"),
    "model": ("PPDM",),
    "pixel_puzzle": ("puzzle", "unpuzzle"),
    "training.loop": ("fit",),
    "training.on_manifest": ("train",),
    "evaluation.on_manifest": ("evaluate",),
    "translation": ("translate",),
    "network.backbone": ("Backbone",),
    "network.options": ("UNetOptions",),
    "serialization": ("register",),
    "network.unet": ("UNet",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"ppdm.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
