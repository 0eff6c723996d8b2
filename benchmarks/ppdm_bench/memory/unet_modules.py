"""Names of the parts and levels of our U-Net for :mod:`ppdm_bench.memory.explain`."""

from dataclasses import dataclass
from math import log2, prod

from torch import nn

from ppdm import UNet
from ppdm_bench.predictor.modules import OUTSIDE, ROOT, Modules


@dataclass
class UNetModules(Modules):
    """Records the running module, and names the levels of a :class:`ppdm.UNet`."""

    watched: tuple[type[nn.Module], ...] = (UNet,)

    def part(self, path: str, shape: tuple[int, ...] = ()) -> str:
        """Return the part of the network that a module belongs to, such as ``encoder level 0`` or ``middle``.

        Decoder parts are named ``decoder level 0`` and so on. The U-Net module itself only concatenates skip
        connections in the decoder: the shape of the result determines the level, and without a shape the part is empty.
        For other networks, the part is the first name in the path.
        """
        if not path:
            return OUTSIDE
        for prefix in self.networks:
            if path == (prefix or ROOT):
                return self._level("decoder", prefix, shape[2:]) if shape else ""
            if path.startswith(prefix + "." if prefix else ""):
                return self._unet_part(prefix, path.removeprefix(prefix).lstrip(".").split("."))
        return super().part(path, shape)

    def _unet_part(self, prefix: str, names: list[str]) -> str:
        side = {"down": "encoder", "up": "decoder"}.get(names[0])
        return self._level(side, prefix, self.sizes.get(_joined(prefix, *names[:2]), ())) if side else names[0]

    def _level(self, side: str, prefix: str, size: tuple[int, ...]) -> str:
        finest = self.sizes.get(_joined(prefix, "stem"), ())
        if not size or len(size) != len(finest):
            return side
        return f"{side} level {round(log2(prod(finest) / prod(size)) / len(size))}"


def _joined(prefix: str, *names: str) -> str:
    return ".".join(filter(None, (prefix, *names)))
