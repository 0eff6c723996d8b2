"""A method is a point in one design space: a frozen dataclass that picks one value of each axis.

Two generic functions do all the work, whatever the method: :func:`training_loss` and :func:`sample`.
Axes of tensors: volumes (N, C, D, H, W); x0 the target, y the source, t in [0, 1] with t = 0 the target end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ppdm.kernel import KERNELS, TARGETS, Kernel, target_of, x0_error_of, x0_of
from ppdm.loss import Loss
from ppdm.network.autoencoder import Autoencoder
from ppdm.network.options import UNetOptions
from ppdm.network.unet import UNet
from ppdm.pixel_puzzle import Factor, crop, pad_to_multiple
from ppdm.representation import REPRESENTATIONS, Codec, LearnedCodec, Representation
from ppdm.serialization import Axes, describe, later, restore
from ppdm.slices import Slices
from ppdm.tiling import Shape, Size, Tell, nothing, sizes_of
from ppdm.window import Patch, Piece, Whole, Window

# Stages of a training.
REPRESENTATION, DIFFUSION = "representation", "diffusion"


@dataclass(frozen=True)
class Sampling:
    """How a volume is drawn.

    Args:
        steps: steps from the start to t = 0, each one evaluation of the network.
        stochastic: whether every step draws from the kernel's posterior, or takes its deterministic path.
        clamp: if given, the volume that each prediction stands for is clamped to [-clamp, clamp].
        start: the time of the first step. At 1 it is the kernel's own start; below, the path's state at that time with
            the source in the target's place (as MADM, arXiv 2406.08374, starts from a prior at 0.2).

    Raises:
        ValueError: steps or clamp not positive, or a start outside (0, 1].
    """

    steps: int = 4
    stochastic: bool = False
    clamp: float | None = None
    start: float = 1.0

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise ValueError(f"sampling needs a positive number of steps, got {self.steps!r}")
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"clamp must be positive, got {self.clamp}")
        if not 0 < self.start <= 1:
            raise ValueError(f"sampling must start at a time in (0, 1], got {self.start}")


@dataclass(frozen=True)
class Optimisation:
    """How the weights are found: AdamW (arXiv 1711.05101) with linear warm-up, gradient clipping and an average.

    Args:
        learning_rate: after the warm-up.
        weight_decay: AdamW's.
        warmup: steps over which the learning rate rises linearly from 0.
        clip: largest norm of the gradient.
        ema: decay of the exponential moving average of the weights that is kept and sampled from.
        at_start: share of the training times that are t = 1 exactly, where sampling starts; the others are uniform.
        optimiser: ``adamw``, or ``adamw8bit``, whose moments have 8 bits (arXiv 2110.02861) and which needs torchao.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.999
    at_start: float = 0.0
    optimiser: str = later("adamw")

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.warmup >= 0 and self.clip > 0):
            raise ValueError(
                f"learning rate and clip must be positive, weight decay and warm-up not negative; got {self}"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"the decay of the weights' average must be in [0, 1), got {self.ema}")
        if not 0 <= self.at_start <= 1:
            raise ValueError(f"the share of times at the start must be in [0, 1], got {self.at_start}")
        if self.optimiser not in ("adamw", "adamw8bit"):
            raise ValueError(f"the optimiser must be adamw or adamw8bit, got {self.optimiser!r}")


@dataclass(frozen=True)
class Method:
    """One point in the design space; combinations that cannot work are refused when it is made.

    Args:
        name: how commands and tables call it.
        representation: in which space diffusion lives.
        window: what the network sees at once.
        kernel: how the path from target to source is drawn.
        target: what the network predicts: ``x0``, ``residual``, ``noise`` or ``score`` (:func:`ppdm.kernel.target_of`).
        loss: how the prediction is scored.
        network: size and arithmetic of the U-Net.
        sampling: how volumes are drawn.
        optimisation: how weights are found.

    Raises:
        ValueError: an unknown target, one that the kernel cannot be sampled with, a window that the network does not
            fit, or a gradient loss with a representation that is learned.
    """

    name: str
    representation: Representation
    window: Window
    kernel: Kernel
    target: str
    loss: Loss = field(default_factory=Loss)
    network: UNetOptions = field(default_factory=UNetOptions)
    sampling: Sampling = field(default_factory=Sampling)
    optimisation: Optimisation = field(default_factory=Optimisation)

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if self.target not in self.kernel.targets:
            raise ValueError(
                f"target {self.target!r} does not determine x0 at every t of {self.kernel}; "
                f"choose one of {', '.join(self.kernel.targets)}"
            )
        if self.representation.is_learned and self.loss.gradient:
            raise ValueError(
                "the gradient loss is of the error's volume, and a learned representation decodes no errors; use "
                "Loss(gradient=0, mode='off')"
            )
        _ = self.multiple

    @property
    def variant(self) -> str:
        """What tells points of one name apart in a table, such as ``r=4``."""
        return self.representation.label

    @property
    def multiple(self) -> tuple[int, int, int]:
        """What every size (D, H, W) of a volume is padded to a multiple of."""
        latent = self.window.multiple(self.network.multiple)
        d, h, w = (r * m for r, m in zip(self.representation.cell, latent, strict=True))
        return d, h, w

    def latent_shape(self, shape: Shape) -> tuple[int, int, int]:
        """The size (D, H, W) of the latent of a volume (D, H, W), which is padded first."""
        d, h, w = (-(-s // m) * m // r for s, m, r in zip(shape, self.multiple, self.representation.cell, strict=True))
        return d, h, w

    def blocks(self, shape: Shape) -> int:
        """In how many blocks the network sees a volume (D, H, W) when it samples; 1 is at once."""
        return self.window.blocks(self.latent_shape(shape))

    def evaluations(self, shape: Shape) -> int:
        """Of the network, for a volume (D, H, W): one for every step and block."""
        return self.sampling.steps * self.blocks(shape)

    def samples_from_host(self, shape: Shape) -> bool:
        """Whether a volume (D, H, W) may stay on the host while it is sampled, since blocks go to the network."""
        return self.blocks(shape) > 1 and not self.representation.is_learned

    def in_blocks(self, block: Size, overlap: float = 0.25) -> Self:
        """The same method, sampled in overlapping blocks that are merged at every step.

        Args:
            block: voxels of the volume that the network sees at once along each axis, one number or (D, H, W); rounded
                up to what volumes are padded to, so that a block as large as the volume sees all of it.
            overlap: share in [0, 1) of their size that neighbouring blocks have in common.

        Raises:
            ValueError: a value out of range, a window that is not cut, or a representation that is learned.
        """
        if self.representation.is_learned:
            raise ValueError(
                f"{self.name} learns its representation, which encodes and decodes volumes whole; blocks of its latent "
                "would save nothing"
            )
        return replace(self, window=self.window.in_blocks(self.latent_shape(sizes_of(block, "a block")), overlap))

    @property
    def stages(self) -> tuple[str, ...]:
        """What a training goes through, one after the other."""
        return (REPRESENTATION, DIFFUSION) if self.representation.is_learned else (DIFFUSION,)

    @property
    def phases(self) -> tuple[str, ...]:
        """What has a memory and a time of its own, training and sampling, and the phases of a representation."""
        return (
            ("train", "sample", "autoencoder_train", "decode")
            if self.representation.is_learned
            else ("train", "sample")
        )

    def build(self, channels: int = 1) -> nn.Module:
        """Make everything that has weights, for volumes of so many channels, in fp32 on the default device.

        That is the network, or networks, of the diffusion; with a representation that is learned, both, by the names of
        their stages.
        """

        def unet(c_in: int, c_out: int, dims: int) -> nn.Module:
            return UNet(c_in, c_out, dims, self.network)

        learned = self.representation.build(channels, self.network)
        diffusion = self.window.build(unet, self.representation.channels(channels))
        return diffusion if learned is None else nn.ModuleDict({REPRESENTATION: learned, DIFFUSION: diffusion})

    def part(self, network: nn.Module, stage: str) -> nn.Module:
        """What of the whole that :meth:`build` made one of the stages trains."""
        if not self.representation.is_learned:
            return network
        assert isinstance(network, nn.ModuleDict)
        return network[stage]

    def codec(self, network: nn.Module) -> Codec:
        """What turns volumes into latents and back, given what :meth:`build` made."""
        if not self.representation.is_learned:
            return self.representation.codec(None)
        learned = self.part(network, REPRESENTATION)
        assert isinstance(learned, LearnedCodec)
        return self.representation.codec(learned)

    def with_factor(self, factor: Factor) -> Self:
        """The same method with another puzzle factor.

        Raises:
            ValueError: its representation has none.
        """
        if not self.has_factor:
            raise ValueError(f"{self.name} has no puzzle factor; its representation is {self.representation}")
        r = tuple(factor) if isinstance(factor, Sequence) else factor
        return replace(self, representation=replace(self.representation, factor=r))  # type: ignore[type-var]

    @property
    def has_factor(self) -> bool:
        """Whether the representation has a puzzle factor to choose."""
        return any(f.name == "factor" for f in fields(self.representation))  # type: ignore[arg-type]

    def with_network(self, **options: Any) -> Self:
        """The same method with other options of the U-Net, such as ``width=32``."""
        return replace(self, network=replace(self.network, **options))

    def to_dict(self) -> dict[str, Any]:
        """As nested dictionaries of JSON values; :meth:`from_dict` inverts it.

        Raises:
            ValueError: a value of an axis is not of this package: it could not be found again without running code.
        """
        return describe(self, AXES)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make the method that :meth:`to_dict` described.

        Raises:
            ValueError: a key, a type or a value that there is not.
        """
        return restore(cls, data, AXES)


AXES: Axes = {
    "representation": {**REPRESENTATIONS, "autoencoder": Autoencoder},
    "window": {"whole": Whole, "patches": Patch, "slices": Slices},
    "kernel": KERNELS,
}


def training_loss(
    method: Method, network: nn.Module, source: Tensor, target: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The loss of one training step for each subject: a time is drawn, the path is drawn there, the network is scored.

    Args:
        method: the point in the design space.
        network: what ``method.build`` made.
        source, target: normalised volumes (N, C, D, H, W) of the same shape; sizes need not be divisible by anything.
        generator: of times and noise, on the volumes' device; the global one if absent.

    Returns:
        (N,).

    Raises:
        ValueError: the shapes differ, or are not (N, C, D, H, W).
    """
    _check_pair(source, target)
    codec, diffusion = method.codec(network), method.part(network, DIFFUSION)

    @torch.no_grad()  # what is learned of a representation is learned before
    def encoded(volume: Tensor) -> Tensor:
        return codec.encode(pad_to_multiple(volume, method.multiple))

    pieces = method.window.draw(encoded(target), encoded(source), generator)
    # One after the other, and each taken off the list: what one was made of is not held while the next is scored.
    losses = [_piece_loss(method, codec, diffusion, pieces.pop(0), generator) for _ in range(len(pieces))]
    return torch.stack([loss.unflatten(0, (len(source), -1)).mean(1) for loss in losses]).mean(0)


def representation_loss(
    method: Method, network: nn.Module, source: Tensor, target: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The loss of one step of the stage in which a representation is learned: of each subject's source or target.

    Args:
        method: a point whose representation is learned.
        network, source, target, generator: as for :func:`training_loss`; the generator also draws which of the two.

    Returns:
        (N,).

    Raises:
        ValueError: the shapes differ, or are not (N, C, D, H, W).
    """
    _check_pair(source, target)
    learned = method.part(network, REPRESENTATION)
    assert isinstance(learned, LearnedCodec)
    coin = torch.rand(len(source), generator=generator, device=source.device)
    volume = torch.where(_against(coin, source) < 0.5, source, target)
    return learned.loss(pad_to_multiple(volume, method.multiple), generator)


STAGE_LOSSES = {REPRESENTATION: representation_loss, DIFFUSION: training_loss}


def _piece_loss(
    method: Method, codec: Codec, network: nn.Module, piece: Piece, generator: torch.Generator | None
) -> Tensor:
    x0, y, predict = piece
    random: dict[str, Any] = {"generator": generator, "device": x0.device}
    # In (0, 1]: the start is drawn, the end, where nothing is asked, not.
    times = 1 - torch.rand(x0.shape[0], **random)
    elsewhere = 1 - method.optimisation.at_start
    times = torch.where(times > elsewhere, 1.0, times / elsewhere if elsewhere else 1.0)
    noise = torch.randn(x0.shape, **random)
    t = _against(times, x0)
    x_t = method.kernel.at(x0, y, t, noise)
    wanted = target_of(method.target, method.kernel, x0, x_t, y, t, noise)
    del piece, x0, noise  # volumes, of which the network's memory is short

    error = predict(network, x_t, times, y) - wanted
    del x_t, y, wanted
    loss = method.loss.reconstruction(error)
    if method.loss.gradient:
        volume = codec.decode(x0_error_of(method.target, method.kernel, error, t))
        loss = loss + method.loss.puzzle_gradient(volume, method.representation.cell)
    return loss


@torch.no_grad()
def sample(
    method: Method,
    network: nn.Module,
    source: Tensor,
    generator: torch.Generator | None = None,
    progress: Tell = nothing,
) -> Tensor:
    """Draw a target volume for each source, in ``method.sampling.steps`` evaluations of the network, or of its blocks.

    Args:
        method: the point in the design space.
        network: what ``method.build`` made.
        source: normalised volumes (N, C, D, H, W); sizes need not be divisible by anything. They are on the network's
            device, or anywhere if it is seen in blocks (:meth:`Method.samples_from_host
            <ppdm.method.Method.samples_from_host>`): the state lies where they do.
        generator: of the noise, on the volumes' device; the global one if absent. Deterministic bridges need none.
        progress: called after every evaluation: every step, or every block of it.

    Returns:
        Volumes of the source's shape.

    Raises:
        ValueError: the shape is not (N, C, D, H, W).
    """
    _check_pair(source, source)
    kernel, how = method.kernel, method.sampling
    codec, diffusion = method.codec(network), method.part(network, DIFFUSION)
    y = codec.encode(pad_to_multiple(source, method.multiple))

    def draw() -> Tensor:
        return torch.randn(y.shape, generator=generator, device=y.device)

    stepped = _stepped_by_planes if method.window.blocks(y.shape[2:]) > 1 else _stepped
    times = torch.full((y.shape[0],), how.start, device=y.device)
    x = kernel.start(y, draw) if how.start == 1 else kernel.at(y, y, _against(times, y), draw())
    for k in range(how.steps - 1, -1, -1):
        later = torch.full_like(times, how.start * k / how.steps)
        t, s = _against(times, y), _against(later, y)
        # Without a name, so that the next evaluation does not hold it.
        x = stepped(
            method,
            codec,
            method.window.apply(diffusion, x, times, y, progress),
            x,
            y,
            t,
            s,
            draw() if how.stochastic else None,
        )
        times = later
    return decode(method, network, x, source.shape[2:])


def _estimate(method: Method, codec: Codec, output: Tensor, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """The x0 that the network's output stands for, clamped if the method says so."""
    x0 = x0_of(method.target, method.kernel, output, x, y, t)
    return x0 if method.sampling.clamp is None else codec.clamp(x0, method.sampling.clamp)


def _stepped(
    method: Method, codec: Codec, output: Tensor, x: Tensor, y: Tensor, t: Tensor, s: Tensor, noise: Tensor | None
) -> Tensor:
    """One step from t to s, given what the network says at t."""
    return method.kernel.step(x, _estimate(method, codec, output, x, y, t), y, t, s, noise)


def _stepped_by_planes(
    method: Method, codec: Codec, output: Tensor, x: Tensor, y: Tensor, t: Tensor, s: Tensor, noise: Tensor | None
) -> Tensor:
    """The same in the memory of the network's output: every latent voxel is stepped by itself."""
    for d in range(output.shape[2]):
        plane = (slice(None), slice(None), slice(d, d + 1))
        x0 = _estimate(method, codec, output[plane], x[plane], y[plane], t)
        output[plane] = method.kernel.step(x[plane], x0, y[plane], t, s, None if noise is None else noise[plane])
    return output


@torch.no_grad()
def decode(method: Method, network: nn.Module, z: Tensor, shape: Sequence[int]) -> Tensor:
    """The volumes (N, C, D, H, W) of a shape (D, H, W) that latents stand for: the last thing that sampling does."""
    return crop(method.codec(network).decode(z), shape)


@torch.no_grad()
def reconstruct(method: Method, network: nn.Module, volume: Tensor) -> Tensor:
    """Encode and decode volumes (N, C, D, H, W): what diffusion would give if it found the target's latent exactly."""
    _check_pair(volume, volume)
    z = method.codec(network).encode(pad_to_multiple(volume, method.multiple))
    return decode(method, network, z, volume.shape[2:])


def _check_pair(source: Tensor, target: Tensor) -> None:
    if source.ndim != 5 or source.shape != target.shape:
        raise ValueError(
            "source and target must be volumes (N, C, D, H, W) of one shape, "
            f"got {tuple(source.shape)} and {tuple(target.shape)}"
        )


def _against(times: Tensor, x: Tensor) -> Tensor:
    """(N,) to (N, 1, …, 1), to be broadcast against x."""
    return times.reshape(-1, *[1] * (x.ndim - 1))
