"""A learned representation for latent diffusion: the latent of an autoencoder with a KL term.

The model follows Rombach et al. (arXiv 2112.10752), in 3-D like MONAI's AutoencoderKL. It uses the layers of the U-Net,
without a time input. Axes: volumes x (N, C, D, H, W), latents z (N, Z, D/cell, H/cell, W/cell).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppdm.network.layers import LayerFactory, without_autocast
from ppdm.network.options import MOST_CHANNELS, UNetOptions
from ppdm.representation import Codec, LearnedCodec

# Bounds of the log-variance of the latents. They keep its exponential finite.
_LOG_VARIANCE = (-30.0, 20.0)


@dataclass(frozen=True)
class Autoencoder:
    """The latent of an autoencoder, which is trained before the diffusion model.

    One autoencoder is trained on sources and targets and encodes both. Its loss is
    ``mean|x̂ − x| + kl·KL(q(z|x) ‖ N(0, 1))``; the KL term is summed over the latent. The diffusion model works on the
    mean of q(z|x), divided by the standard deviation of the latents of the training targets. The defaults are those of
    MONAI's 3-D tutorial (Project-MONAI/GenerativeModels, tutorials/generative/3d_ldm/3d_ldm_tutorial.py).

    Args:
        width: channels of the finest level.
        multipliers: channels of each level as multiples of the width; every level but the last halves the grid.
        residual_blocks: residual blocks in each level.
        attention: for each level, whether self-attention follows its blocks; the middle has it if any level has it.
        norm_groups: see :class:`ppdm.network.options.UNetOptions`.
        latent_channels: channels of the latent; independent of the channels of the volume.
        kl: weight of the KL term.
        share: fraction of the training steps or time for the autoencoder; the rest is for the diffusion model.

    Raises:
        ValueError: a value is out of range.
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
            raise ValueError(
                f"attention has {len(self.attention)} levels and multipliers {len(self.multipliers)}; give at most one "
                "attention value per level"
            )
        if type(self.latent_channels) is not int or not 1 <= self.latent_channels <= MOST_CHANNELS:
            raise ValueError(
                f"latent_channels must be a positive integer up to {MOST_CHANNELS}, got {self.latent_channels!r}"
            )
        if not 0 <= self.kl < math.inf:
            raise ValueError(f"the weight of the KL term must not be negative, got {self.kl}")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be a fraction of the training in (0, 1), got {self.share}")

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
        """Build the autoencoder in fp32; precision and checkpointing come from the network's options."""
        return AutoencoderKL(c, self, self._options(network))

    def codec(self, learned: LearnedCodec | None) -> Codec:
        if learned is None:
            raise ValueError("an autoencoder needs trained weights, got none; pass the result of build()")
        return learned

    def _options(self, network: UNetOptions) -> UNetOptions:
        return UNetOptions(
            width=self.width,
            multipliers=self.multipliers,
            residual_blocks=self.residual_blocks,
            attention=self.attention,
            head_channels=self.width * max(self.multipliers, default=1),  # one head, as in MONAI's tutorial
            norm_groups=self.norm_groups,
            precision=network.precision,
            checkpointing=network.checkpointing,
        )


class AutoencoderKL(LearnedCodec):
    """The autoencoder network; :meth:`Autoencoder.build` makes it.

    Args:
        channels: number of channels of the volumes.
        representation: sizes of the network and weight of the KL term.
        options: options of its layers.

    Attributes:
        deviation: standard deviation of the latents of the training targets; :meth:`encode` divides by it. It is 1
            until :meth:`calibrate` is called.
    """

    deviation: Tensor

    def __init__(self, channels: int, representation: Autoencoder, options: UNetOptions) -> None:
        super().__init__()
        self.representation, latent_channels = representation, representation.latent_channels
        make = LayerFactory(3, options, timed=False)
        self.encoder = _encoder(make, channels, latent_channels)
        self.moments = make.convolution(latent_channels, 2 * latent_channels, kernel=1)
        self.opening = make.convolution(latent_channels, latent_channels, kernel=1)
        self.decoder = _decoder(make, latent_channels, channels)
        self.register_buffer("deviation", torch.ones(()))

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z|x), divided by :attr:`deviation`; float32.

        Raises:
            ValueError: a spatial size is not a multiple of the cell.
        """
        return self._moments(x)[0] / self.deviation

    def decode(self, z: Tensor) -> Tensor:
        return self._decoded(z * self.deviation)

    def loss(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        mean, log_variance = self._moments(x)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        reconstruction = self._decoded(mean + (log_variance / 2).exp() * noise)
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).sum(1) / 2
        return (reconstruction - x).abs().flatten(1).mean(1) + self.representation.kl * divergence

    @torch.no_grad()
    def calibrate(self, volumes: Iterable[Tensor]) -> None:
        """Measure the standard deviation of the latents of the given targets.

        Raises:
            ValueError: the latents are constant or not finite.
        """
        latents = torch.cat([self._moments(x)[0].flatten() for x in volumes])
        deviation = latents.double().std()
        if not (deviation.isfinite() and deviation > 0):
            raise ValueError(f"the autoencoder's latents have a standard deviation of {float(deviation)}")
        self.deviation.copy_(deviation)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log-variance of q(z|x)."""
        cell = self.representation.cell
        if any(s % r for s, r in zip(x.shape[2:], cell, strict=True)):
            raise ValueError(f"sizes {tuple(x.shape[2:])} must be multiples of {cell}; pad with pad_to_multiple")
        with without_autocast(x.device.type):
            mean, log_variance = self.moments(self.encoder(x)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCE)

    def _decoded(self, z: Tensor) -> Tensor:
        with without_autocast(z.device.type):
            volume: Tensor = self.decoder(self.opening(z)).float()
        return volume


def _encoder(make: LayerFactory, c_in: int, c_out: int) -> nn.Sequential:
    levels = make.options.levels
    channels, _ = levels[0]
    parts: list[nn.Module] = [make.convolution(c_in, channels)]
    for level, (width, attend) in enumerate(levels):
        for _ in range(make.options.residual_blocks):
            parts.append(make.block(channels, width, attend))
            channels = width
        if level + 1 < len(levels):
            parts.append(make.downsampling(channels))
    return nn.Sequential(*parts, *make.middle(channels), make.normalised_convolution(channels, c_out))


def _decoder(make: LayerFactory, c_in: int, c_out: int) -> nn.Sequential:
    levels = make.options.levels
    channels, _ = levels[-1]
    parts: list[nn.Module] = [make.convolution(c_in, channels), *make.middle(channels)]
    for level, (width, attend) in reversed(list(enumerate(levels))):
        for _ in range(make.options.residual_blocks):
            parts.append(make.block(channels, width, attend))
            channels = width
        if level:
            parts.append(make.upsampling(channels))
    return nn.Sequential(*parts, make.normalised_convolution(channels, c_out))
