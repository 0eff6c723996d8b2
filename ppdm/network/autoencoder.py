"""A learned representation: the latent of an autoencoder with a KL term, as latent diffusion has it.

Rombach et al. (arXiv 2112.10752), in 3-D as MONAI's AutoencoderKL. It is made of the U-Net's parts, whose blocks take
no time here. Axes: volumes x (N, C, D, H, W), latents z (N, Z, D/cell, H/cell, W/cell).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppdm.network.layers import Parts, without_autocast
from ppdm.network.options import MOST_CHANNELS, UNetOptions
from ppdm.representation import Codec, LearnedCodec

# Of the logarithm of the latents' variance, so that its exponential stays finite.
_LOG_VARIANCE = (-30.0, 20.0)


@dataclass(frozen=True)
class Autoencoder:
    """The latent of an autoencoder that is trained first, on sources and targets alike; one encodes both.

    Its loss is ``mean|x̂ − x| + kl·KL(q(z|x) ‖ N(0, 1))``, the KL summed over the latent. Diffusion sees the mean of
    q(z|x), divided by the standard deviation of the training targets' latents. Defaults: MONAI's 3-D tutorial
    (Project-MONAI/GenerativeModels, tutorials/generative/3d_ldm/3d_ldm_tutorial.py).

    Args:
        width: channels of the finest level.
        multipliers: channels of each level as multiples of the width; every level but the last halves the grid.
        residual_blocks: residual blocks a level.
        attention: for each level, whether its blocks are followed by self-attention; the middle has it if any has.
        norm_groups: as :class:`ppdm.network.options.UNetOptions` has them.
        latent_channels: channels of the latent, whatever those of the volume.
        kl: weight of the KL term.
        share: how much of a training's steps or time goes into the autoencoder; the rest goes into the diffusion.

    Raises:
        ValueError: a value out of range.
    """

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    residual_blocks: int = 1
    attention: tuple[bool, ...] = (False, False, True)
    norm_groups: int = 16
    latent_channels: int = 3
    kl: float = 1e-6
    share: float = 0.5

    def __post_init__(self) -> None:
        self._options(UNetOptions())
        if len(self.attention) > len(self.multipliers):
            raise ValueError(f"attention has {len(self.attention)} levels, multipliers {len(self.multipliers)}")
        if type(self.latent_channels) is not int or not 1 <= self.latent_channels <= MOST_CHANNELS:
            raise ValueError(
                f"latent_channels must be a positive integer up to {MOST_CHANNELS}, got {self.latent_channels!r}"
            )
        if not 0 <= self.kl < math.inf:
            raise ValueError(f"the weight of the KL term must not be negative, got {self.kl}")
        if not 0 < self.share < 1:
            raise ValueError(f"the autoencoder takes a share in (0, 1) of a training, got {self.share}")

    is_learned: ClassVar[bool] = True

    @property
    def cell(self) -> tuple[int, int, int]:
        return (1 << (len(self.multipliers) - 1),) * 3

    @property
    def label(self) -> str:
        return ""

    def channels(self, c: int) -> int:
        return self.latent_channels

    def build(self, c: int, network: UNetOptions) -> LearnedCodec:
        """The autoencoder in fp32; precision and checkpointing are the network's."""
        return AutoencoderKL(c, self, self._options(network))

    def codec(self, learned: LearnedCodec | None) -> Codec:
        if learned is None:
            raise ValueError("an autoencoder encodes with weights; none were given")
        return learned

    def _options(self, network: UNetOptions) -> UNetOptions:
        return UNetOptions(
            width=self.width,
            multipliers=self.multipliers,
            residual_blocks=self.residual_blocks,
            attention=self.attention,
            head_channels=self.width * max(self.multipliers, default=1),  # one head, as there
            norm_groups=self.norm_groups,
            precision=network.precision,
            checkpointing=network.checkpointing,
        )


class AutoencoderKL(LearnedCodec):
    """What :meth:`Autoencoder.build` makes.

    Args:
        channels: of the volumes.
        how: sizes and the KL term's weight.
        options: of the parts that it is made of.

    Attributes:
        deviation: of the training targets' latents, which :meth:`encode` divides by; 1 until :meth:`settle`.
    """

    deviation: Tensor

    def __init__(self, channels: int, how: Autoencoder, options: UNetOptions) -> None:
        super().__init__()
        self.how = how
        make = Parts(3, options, timed=False)
        self.encoder = _encoder(make, channels, how.latent_channels)
        self.moments = make.convolution(how.latent_channels, 2 * how.latent_channels, kernel=1)
        self.opening = make.convolution(how.latent_channels, how.latent_channels, kernel=1)
        self.decoder = _decoder(make, how.latent_channels, channels)
        self.register_buffer("deviation", torch.ones(()))

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z|x), in standard deviations of the targets' latents; float32.

        Raises:
            ValueError: sizes are not multiples of the cell.
        """
        return self._moments(x)[0] / self.deviation

    def decode(self, z: Tensor) -> Tensor:
        return self._decoded(z * self.deviation)

    def loss(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        mean, log_variance = self._moments(x)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        reconstruction = self._decoded(mean + (log_variance / 2).exp() * noise)
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).sum(1) / 2
        return (reconstruction - x).abs().flatten(1).mean(1) + self.how.kl * divergence

    @torch.no_grad()
    def settle(self, volumes: Iterable[Tensor]) -> None:
        """Measure the deviation of the latents of some targets.

        Raises:
            ValueError: they do not vary.
        """
        latents = torch.cat([self._moments(x)[0].flatten() for x in volumes])
        deviation = latents.double().std()
        if not (deviation.isfinite() and deviation > 0):
            raise ValueError(f"the autoencoder's latents have a standard deviation of {float(deviation)}")
        self.deviation.copy_(deviation)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z|x)."""
        cell = self.how.cell
        if any(s % r for s, r in zip(x.shape[2:], cell, strict=True)):
            raise ValueError(f"sizes {tuple(x.shape[2:])} must be multiples of {cell}; pad with pad_to_multiple")
        with without_autocast(x.device.type):
            mean, log_variance = self.moments(self.encoder(x)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCE)

    def _decoded(self, z: Tensor) -> Tensor:
        with without_autocast(z.device.type):
            volume: Tensor = self.decoder(self.opening(z)).float()
        return volume


def _encoder(make: Parts, c_in: int, c_out: int) -> nn.Sequential:
    widths, attention = _levels(make)
    parts: list[nn.Module] = [make.convolution(c_in, widths[0])]
    channels = widths[0]
    for level, (width, attend) in enumerate(zip(widths, attention, strict=True)):
        for _ in range(make.options.residual_blocks):
            parts.append(make.block(channels, width, attend))
            channels = width
        if level + 1 < len(widths):
            parts.append(make.downsampling(channels))
    return nn.Sequential(*parts, *_middle(make, channels), make.normalised_convolution(channels, c_out))


def _decoder(make: Parts, c_in: int, c_out: int) -> nn.Sequential:
    widths, attention = _levels(make)
    channels = widths[-1]
    parts: list[nn.Module] = [make.convolution(c_in, channels), *_middle(make, channels)]
    for level, (width, attend) in reversed(list(enumerate(zip(widths, attention, strict=True)))):
        for _ in range(make.options.residual_blocks):
            parts.append(make.block(channels, width, attend))
            channels = width
        if level:
            parts.append(make.upsampling(channels))
    return nn.Sequential(*parts, make.normalised_convolution(channels, c_out))


def _levels(make: Parts) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    widths = make.options.channels
    return widths, make.options.attention or (False,) * len(widths)


def _middle(make: Parts, channels: int) -> list[nn.Module]:
    return [make.block(channels, channels, any(make.options.attention)), make.block(channels, channels, False)]
