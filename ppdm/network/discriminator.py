"""The discriminator of an adversarial loss, in 3-D: it judges patches of a volume, given the source (pix2pix).

Axes: volumes (N, C, D, H, W); logits (N, 1, D/16, H/16, W/16), rounded up.
"""

import torch
from torch import Tensor, nn

from ppdm.network.layers import LayerFactory, without_autocast
from ppdm.network.options import UNetOptions


class PatchDiscriminator(nn.Module):
    """Network that judges whether patches of a volume are real: ``[(N, C, D, H, W), ...] -> (N, 1, d, h, w)``.

    Each logit sees 63 voxels along each axis, about as many as pixels in the 70×70 discriminator of Isola et al.
    (arXiv 1611.07004). Theirs has three strided convolutions and two others, all of kernel 4. Ours has four strided
    convolutions and one other, of kernel 3, with 27 instead of 64 weights for each pair of channels. Theirs normalises
    over the batch, which is mostly one image; ours over groups of channels.

    Args:
        in_channels: channels of the volume and of the sources together.
        options: width, levels and precision; every level halves the grid.
    """

    def __init__(self, in_channels: int, options: UNetOptions) -> None:
        super().__init__()
        make = LayerFactory(3, options, timed=False)
        self.dtype = make.dtype
        layers: list[nn.Module] = []
        channels = in_channels
        for width in options.channels:
            layers.append(make.convolution(channels, width, stride=2))
            if len(layers) > 1:  # the first layer is not normalised
                layers.append(make.norm(width))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = width
        # The attribute's name is the prefix of all weights in a run's checkpoints and in memory timelines.
        self.discriminator = nn.Sequential(*layers, make.convolution(channels, 1))

    def forward(self, *volumes: Tensor) -> Tensor:
        """Return float32 logits; positive ones mean that a patch looks real."""
        with without_autocast(volumes[0].device.type):
            logits: Tensor = self.discriminator(torch.cat([volume.to(self.dtype) for volume in volumes], dim=1))
        return logits.float()
