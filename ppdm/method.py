"""Methods: a method is a frozen dataclass that selects one value for each axis of the design space.

Two generic functions serve every method: :func:`training_loss` and :func:`sample`.
Tensors: volumes are (N, C, D, H, W); x0 is the target, y is the source, t is in [0, 1], and t = 0 is the target end.
Several sources of C channels each are one tensor (N, S·C, D, H, W), in the order of ``Method.sources``. The network
sees all of them; a bridge ends in their mean or in one of them (:meth:`Method.end`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ppdm.arrays import check_tensor
from ppdm.kernel import KERNELS, TARGETS, Kernel, output_of, target_of, x0_error_of, x0_of
from ppdm.loss import Loss
from ppdm.network.autoencoder import Autoencoder
from ppdm.network.backbone import Backbone, BackboneNetwork
from ppdm.network.discriminator import PatchDiscriminator
from ppdm.network.options import UNetOptions
from ppdm.network.unet import UNet
from ppdm.pixel_puzzle import Factor, crop, pad_to_multiple
from ppdm.representation import REPRESENTATIONS, Codec, LearnedCodec, Representation
from ppdm.serialization import Axes, describe, later, restore
from ppdm.slices import Slices
from ppdm.sources import MEAN, SOURCE, check_sources
from ppdm.tiling import OnEvaluation, Shape, Size, no_callback, sizes_of
from ppdm.window import Patch, Piece, Whole, Window

# Training stages.
REPRESENTATION, DIFFUSION = "representation", "diffusion"


@dataclass(frozen=True)
class Sampling:
    """Sampling options.

    Args:
        steps: number of steps from the start to t = 0; each step is one network evaluation.
        stochastic: whether each step samples from the kernel's posterior instead of following its deterministic path.
        clamp: if given, the volume of each x0 estimate is clamped to [-clamp, clamp].
        start: time of the first step. At 1, sampling begins at the kernel's own start. Below 1, it begins at the path's
            state at that time, with the source in place of the target (as MADM, arXiv 2406.08374, starts from a prior
            at 0.2).

    Raises:
        ValueError: steps or clamp is not positive, or start is outside (0, 1].
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


# Default learning rate times width. Under Adam, an update changes the output of a layer in proportion to its inputs, so
# the rate must fall as the width rises (maximal update parametrisation, arXiv 2203.03466). 1e-3 is right at width 16.
RATE_TIMES_WIDTH = 0.016


@dataclass(frozen=True)
class Optimisation:
    """Optimisation options: AdamW (arXiv 1711.05101), linear warm-up, gradient clipping, and an average of the weights.

    Args:
        learning_rate: learning rate after the warm-up; if absent, 0.016 divided by the width of the network.
        weight_decay: weight decay of AdamW.
        warmup: number of steps over which the learning rate rises linearly from 0.
        clip: maximum gradient norm.
        ema: decay of the exponential moving average of the weights; sampling uses this average.
        at_start: fraction of training times set to exactly t = 1, where sampling starts; the others are uniform.
        at_steps: whether the uniform times are chosen from those at which sampling evaluates the network, and not from
            all of (0, 1] (a sparse schedule, arXiv 2604.17773). They are those of the method's own number of steps:
            sampling in another number of steps evaluates the network at other times.
        optimiser: ``adamw``, or ``adamw8bit``, which stores moments in 8 bits (arXiv 2110.02861) and needs torchao.

    Raises:
        ValueError: a value is out of range.
    """

    learning_rate: float | None = None
    weight_decay: float = 0.0
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.999
    at_start: float = 0.0
    optimiser: str = later("adamw")
    at_steps: bool = later(False)

    def __post_init__(self) -> None:
        rate = self.rate()
        if not (rate > 0 and self.weight_decay >= 0 and self.warmup >= 0 and self.clip > 0):
            raise ValueError(
                f"learning rate and clip must be positive, weight decay and warm-up not negative; got {self}"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"the decay of the weights' average must be in [0, 1), got {self.ema}")
        if not 0 <= self.at_start <= 1:
            raise ValueError(f"the share of times at the start must be in [0, 1], got {self.at_start}")
        if type(self.at_steps) is not bool:
            raise ValueError(f"at_steps must be true or false, got {self.at_steps!r}")
        if self.optimiser not in ("adamw", "adamw8bit"):
            raise ValueError(f"the optimiser must be adamw or adamw8bit, got {self.optimiser!r}")

    def rate(self, width: int | None = None) -> float:
        """Return the learning rate after the warm-up, for a network of this width; 64 if it has none."""
        return RATE_TIMES_WIDTH / (width or 64) if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True)
class Method:
    """One point in the design space; the constructor rejects invalid combinations.

    Args:
        name: name used in commands and tables.
        representation: space in which diffusion runs.
        window: part of the state that the network sees at once.
        kernel: distribution of the path from target to source.
        target: prediction target: ``x0``, ``residual``, ``noise`` or ``score`` (:func:`ppdm.kernel.target_of`).
        loss: loss of the prediction.
        network: size and precision of the U-Net, or a network of your own (:class:`~ppdm.network.backbone.Backbone`).
        sampling: sampling options.
        optimisation: optimisation options.
        sources: names of the sources, in the order of their channels. Training on a manifest takes them from there.
        bridge_from: the end of a bridge: ``mean`` of the sources, or the name of one of them, which may be given before
            the sources are known. It has no effect with one source. A Gaussian kernel uses it only for the target
            ``residual`` and if sampling starts below 1.

    Raises:
        ValueError: the target is unknown, the kernel does not support sampling with it, the window does not fit the
            network, a gradient loss is combined with a learned representation, the loss is weighted by the scale of a
            kernel without noise, names of sources are invalid, or the bridge starts from an unknown source.
    """

    name: str
    representation: Representation
    window: Window
    kernel: Kernel
    target: str
    loss: Loss = field(default_factory=Loss)
    network: UNetOptions | Backbone = field(default_factory=UNetOptions)
    sampling: Sampling = field(default_factory=Sampling)
    optimisation: Optimisation = field(default_factory=Optimisation)
    sources: tuple[str, ...] = later((SOURCE,))
    bridge_from: str = later(MEAN)

    def __post_init__(self) -> None:
        # The default means that the sources are not known yet: :meth:`with_sources` checks the start then.
        check_sources(self.sources, MEAN if self.sources == (SOURCE,) else self.bridge_from)
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if self.target not in self.kernel.targets:
            raise ValueError(
                f"target {self.target!r} does not determine x0 at every t of {self.kernel}; "
                f"choose one of {', '.join(self.kernel.targets)}"
            )
        if self.representation.is_learned and self.loss.gradient:
            raise ValueError(
                "the gradient loss needs the error as a volume, but a learned representation cannot decode an error of "
                "latents; use Loss(gradient=0, mode='off')"
            )
        if self.representation.is_learned and self.loss.adversarial:
            raise ValueError(
                "the adversarial loss judges volumes, and a learned representation would have to decode them in every "
                "step of training; use Loss(adversarial=0)"
            )
        if self.loss.weight == "scale" and not bool(self.kernel.scale(torch.tensor(1.0))):
            raise ValueError(
                f"a loss weighted by the kernel's scale is always 0 for {self.kernel}, which has no noise; use weight "
                "'none'"
            )
        if self.representation.is_learned and not isinstance(self.network, UNetOptions):
            raise ValueError(
                f"a learned representation has the levels and the width of the U-Net's options; {self.network} has none"
            )
        _ = self.multiple

    @property
    def variant(self) -> str:
        """Label that distinguishes methods of the same name in a table, such as ``r=4``; empty if there is none."""
        return self.representation.label

    @property
    def multiple(self) -> tuple[int, int, int]:
        """Multiples (D, H, W) to which the sizes of a volume are padded."""
        latent = self.window.multiple(self.network.multiple)
        d, h, w = (r * m for r, m in zip(self.representation.cell, latent, strict=True))
        return d, h, w

    def latent_shape(self, shape: Shape) -> tuple[int, int, int]:
        """Return the latent size (D, H, W) of a volume (D, H, W) after padding."""
        d, h, w = (-(-s // m) * m // r for s, m, r in zip(shape, self.multiple, self.representation.cell, strict=True))
        return d, h, w

    def blocks(self, shape: Shape) -> int:
        """Return the number of blocks used to sample a volume (D, H, W); 1 means the whole volume at once."""
        return self.window.blocks(self.latent_shape(shape))

    def evaluations(self, shape: Shape) -> int:
        """Return the number of network evaluations for a volume (D, H, W): one per step and block."""
        return self.sampling.steps * self.blocks(shape)

    @property
    def is_random(self) -> bool:
        """Whether samplings with different seeds may differ.

        A method is random if the start or a step adds noise. This is tested by sampling one voxel with noise and
        without. A bridge with one step is not random, because its only step ends at the estimate of the target.
        """
        without, noisy = (_states(self, torch.full((1,) * 5, value)) for value in (0.0, 1.0))
        return any(not torch.equal(a, b) for a, b in zip(without, noisy, strict=True))

    def samples_from_host(self, shape: Shape) -> bool:
        """Whether a volume (D, H, W) may stay on the host during sampling, because only blocks move to the network."""
        return self.blocks(shape) > 1 and not self.representation.is_learned

    def in_blocks(self, block: Size, overlap: float = 0.25) -> Self:
        """Return the same method, sampled in overlapping blocks that are merged at every step.

        Args:
            block: block size in voxels of the volume, one number or (D, H, W). It is rounded up to the padding
                multiple, so that a block as large as the volume covers all of it.
            overlap: fraction in [0, 1) of the block size that neighbouring blocks share.

        Raises:
            ValueError: a value is out of range, the window does not support blocks, or the representation is learned.
        """
        if self.representation.is_learned:
            raise ValueError(
                f"{self.name} learns its representation, which encodes and decodes whole volumes, so blocks of its "
                "latent would save no memory; sample without blocks"
            )
        return replace(self, window=self.window.in_blocks(self.latent_shape(sizes_of(block, "a block")), overlap))

    @property
    def stages(self) -> tuple[str, ...]:
        """Training stages, in order."""
        return (REPRESENTATION, DIFFUSION) if self.representation.is_learned else (DIFFUSION,)

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases with separate memory and time measurements: training, sampling, and those of the representation."""
        learned = ("autoencoder_train", "decode") if self.representation.is_learned else ()
        return ("train", "sample", *learned)

    def build(self, channels: int = 1) -> nn.Module:
        """Build all modules with weights, in fp32 on the default device, for ``channels`` channels of each volume.

        The result is the diffusion network, or networks. With a learned representation, it is a ``ModuleDict`` that
        holds the representation and the diffusion under their stage names.
        """

        def unet(c_in: int, c_out: int, dims: int) -> nn.Module:
            if isinstance(self.network, Backbone):
                return BackboneNetwork(c_in, c_out, dims, self.network)
            return UNet(c_in, c_out, dims, self.network)

        learned = None
        if isinstance(self.network, UNetOptions):  # checked for every learned representation
            learned = self.representation.build(channels, self.network)
        several = (len(self.sources),) if len(self.sources) > 1 else ()  # a window of your own may take only one
        diffusion = self.window.build(unet, self.representation.channels(channels), *several)
        return diffusion if learned is None else nn.ModuleDict({REPRESENTATION: learned, DIFFUSION: diffusion})

    def build_discriminator(self, channels: int = 1) -> nn.Module | None:
        """Build the network that judges predictions in training, in fp32; None if the loss is not adversarial."""
        if not self.loss.adversarial:
            return None
        options = UNetOptions(
            width=self.loss.discriminator_width,
            multipliers=(1, 2, 4, 8),
            precision=self.network.precision,
            checkpointing=self.network.checkpointing,
        )
        return PatchDiscriminator((1 + len(self.sources)) * channels, options)

    def part(self, network: nn.Module, stage: str) -> nn.Module:
        """Return the part of the :meth:`build` result that the given stage trains."""
        if not self.representation.is_learned:
            return network
        assert isinstance(network, nn.ModuleDict)
        return network[stage]

    def codec(self, network: nn.Module) -> Codec:
        """Return the codec between volumes and latents, given the result of :meth:`build`."""
        if not self.representation.is_learned:
            return self.representation.codec(None)
        learned = self.part(network, REPRESENTATION)
        assert isinstance(learned, LearnedCodec)
        return self.representation.codec(learned)

    def with_sources(self, names: Sequence[str], bridge_from: str | None = None) -> Self:
        """Return the same method for other sources.

        Args:
            names: names of the sources, in the order of their channels.
            bridge_from: as for the class; None keeps the value.

        Raises:
            ValueError: a name is invalid or repeated, or the bridge starts from a source that is not among them.
        """
        start = self.bridge_from if bridge_from is None else bridge_from
        check_sources(names, start)
        return replace(self, sources=tuple(names), bridge_from=start)

    def end(self, condition: Tensor) -> Tensor:
        """Return the end of a bridge, y: the mean of the sources or one of them, (N, C, …), of all sources (N, S·C, …).

        It acts on latents too, voxel by voxel. One source is returned as it is, without a copy.
        """
        if len(self.sources) == 1:
            return condition
        sources = condition.unflatten(1, (len(self.sources), -1))
        return sources.mean(1) if self.bridge_from == MEAN else sources[:, self.sources.index(self.bridge_from)]

    def with_factor(self, factor: Factor) -> Self:
        """Return the same method with another puzzle factor.

        Raises:
            ValueError: the representation has no puzzle factor.
        """
        if not self.has_factor:
            raise ValueError(f"{self.name} has no puzzle factor; its representation is {self.representation}")
        r = tuple(factor) if isinstance(factor, Sequence) else factor
        return replace(self, representation=replace(self.representation, factor=r))  # type: ignore[type-var]

    @property
    def has_factor(self) -> bool:
        """Whether the representation has a puzzle factor."""
        return any(f.name == "factor" for f in fields(self.representation))  # type: ignore[arg-type]

    @property
    def width(self) -> int | None:
        """Channels of the finest level of the network; None for a network of your own without a width."""
        return getattr(self.network, "width", None)

    @property
    def learning_rate(self) -> float:
        """The learning rate after the warm-up (:meth:`Optimisation.rate`)."""
        return self.optimisation.rate(self.width)

    def with_network(self, **options: Any) -> Self:
        """Return the same method with other options of its network, such as ``width=32``.

        Raises:
            ValueError: the network has no such option, or the value is invalid.
        """
        if lacking := options.keys() - {f.name for f in fields(self.network)}:
            raise ValueError(f"{self.network} of {self.name} has no {', '.join(sorted(lacking))}")
        return replace(self, network=replace(self.network, **options))

    def to_dict(self) -> dict[str, Any]:
        """Convert the method to nested dictionaries of JSON values; :meth:`from_dict` is the inverse.

        Raises:
            ValueError: the value of an axis is not from this package, so it could not be restored without running code.
        """
        return describe(self, AXES)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Restore a method from the result of :meth:`to_dict`.

        Raises:
            ValueError: a key, a type or a value is invalid.
        """
        return restore(cls, data, AXES)


AXES: Axes = {
    "representation": {**REPRESENTATIONS, "autoencoder": Autoencoder},
    "window": {"whole": Whole, "patches": Patch, "slices": Slices},
    "kernel": KERNELS,
    "network": {"unet": UNetOptions},
}


# A prediction without a network: (method, x_t, y, t) -> output of the network.
Guess = Callable[[Method, Tensor, Tensor, Tensor], Tensor]


def guess_source(method: Method, x_t: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Return the network output for which the x0 estimate is the source."""
    return output_of(method.target, method.kernel, y, x_t, y, t)


def guess_zero(method: Method, x_t: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Return the output of an untrained network: zeros."""
    return torch.zeros_like(x_t)


def training_loss(
    method: Method,
    network: nn.Module,
    source: Tensor,
    target: Tensor,
    generator: torch.Generator | None = None,
    guess: Guess | None = None,
    discriminator: nn.Module | None = None,
) -> Tensor:
    """Compute the loss of one training step for each subject, at a random time of the path.

    Args:
        method: the point in the design space.
        network: the result of ``method.build``.
        source, target: normalised volumes (N, S·C, D, H, W) of S sources, and (N, C, D, H, W); any size is allowed.
        generator: generator for times and noise, on the volumes' device; the global generator if absent.
        guess: computes the output instead of the diffusion network, so that a trained network can be compared with it.
        discriminator: the result of ``method.build_discriminator``; its loss and the adversarial loss are then added.

    Returns:
        (N,).

    Raises:
        ValueError: the shapes differ, or are not (N, C, D, H, W).
    """
    _check_pair(method, source, target)
    codec, diffusion = method.codec(network), method.part(network, DIFFUSION)

    with torch.no_grad():  # a learned representation was trained in the stage before
        latents = codec.encode(pad_to_multiple(target, method.multiple)), _condition(method, codec, source)
    pieces = method.window.draw(*latents, generator)
    del latents
    # Process the pieces one by one and pop each from the list, so that its tensors are freed before the next one. The
    # arguments are written out: a call with *arguments would keep the piece in a tuple until it returns.
    losses = [
        _piece_loss(method, codec, diffusion, pieces.pop(0), generator, guess, discriminator)
        for _ in range(len(pieces))
    ]
    return torch.stack([loss.unflatten(0, (len(source), -1)).mean(1) for loss in losses]).mean(0)


def representation_loss(
    method: Method, network: nn.Module, source: Tensor, target: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Compute the loss of one step of the representation stage, on the target or, equally often, on a source.

    Args:
        method: a point in the design space with a learned representation.
        network, source, target, generator: as for :func:`training_loss`; the generator also selects the volume of
            each subject.

    Returns:
        (N,).

    Raises:
        ValueError: the shapes differ, or are not (N, C, D, H, W).
    """
    _check_pair(method, source, target)
    learned = method.part(network, REPRESENTATION)
    assert isinstance(learned, LearnedCodec)
    coin = torch.rand(len(source), generator=generator, device=source.device)
    if len(method.sources) > 1:
        which = (coin * 2 * len(method.sources)).long().clamp_max(len(method.sources) - 1)
        source = source.unflatten(1, (len(method.sources), -1))[torch.arange(len(source), device=which.device), which]
    volume = torch.where(_broadcastable(coin, source) < 0.5, source, target)
    return learned.loss(pad_to_multiple(volume, method.multiple), generator)


STAGE_LOSSES = {REPRESENTATION: representation_loss, DIFFUSION: training_loss}


def _piece_loss(
    method: Method,
    codec: Codec,
    network: nn.Module,
    piece: Piece,
    generator: torch.Generator | None,
    guess: Guess | None,
    discriminator: nn.Module | None,
) -> Tensor:
    x0, condition, predict = piece
    y = method.end(condition)
    times = _training_times(method, x0, generator)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device)
    t = _broadcastable(times, x0)
    x_t = method.kernel.at(x0, y, t, noise)
    wanted = target_of(method.target, method.kernel, x0, x_t, y, t, noise)
    volumes = [] if discriminator is None else [codec.decode(x0), _decoded(method, codec, condition)]
    del piece, x0, y, noise  # free these volumes; the network needs the memory

    output = predict(network, x_t, times, condition) if guess is None else guess(method, x_t, method.end(condition), t)
    error = output - wanted
    del output, x_t, condition, wanted
    judged: Tensor | None = None
    if discriminator is not None:
        predicted = volumes[0] + codec.decode(x0_error_of(method.target, method.kernel, error, t))
        judged = method.loss.adversarial_term(discriminator, predicted, *volumes)
        del volumes, predicted
    if method.loss.weight == "scale":
        error = error * method.kernel.scale(t)
    loss = method.loss.reconstruction(error)
    if method.loss.gradient:
        volume = codec.decode(x0_error_of(method.target, method.kernel, error, t))
        loss = loss + method.loss.puzzle_gradient(volume, method.representation.cell)
    return loss if judged is None else loss + judged


def _training_times(method: Method, x0: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return random times (N,) in (0, 1]: sampling starts at t = 1, but never evaluates the network at t = 0."""
    options, steps = method.optimisation, method.sampling.steps
    times = 1 - torch.rand(x0.shape[0], generator=generator, device=x0.device)
    elsewhere = 1 - options.at_start  # fraction of the times that are not set to 1
    uniform = times / elsewhere if elsewhere else torch.ones_like(times)
    if options.at_steps:
        uniform = (uniform * steps).ceil() * method.sampling.start / steps
    return torch.where(times > elsewhere, 1.0, uniform)


@torch.no_grad()
def sample(
    method: Method,
    network: nn.Module,
    source: Tensor,
    generator: torch.Generator | None = None,
    progress: OnEvaluation = no_callback,
) -> Tensor:
    """Sample a target volume for each source, in ``method.sampling.steps`` steps.

    Each step evaluates the network once, or once for each block.

    Args:
        method: the point in the design space.
        network: the result of ``method.build``.
        source: normalised volumes (N, S·C, D, H, W) of any size, of S sources, on the network's device. With sampling
            in blocks (:meth:`Method.samples_from_host <ppdm.method.Method.samples_from_host>`), they may be on any
            device. The state is on the same device as the source.
        generator: generator for the noise, on the volumes' device; the global generator if absent. Deterministic
            bridges need none.
        progress: called after every network evaluation: once for each step, or once for each block of a step.

    Returns:
        Volumes (N, C, D, H, W) of the source's size.

    Raises:
        ValueError: the shape is not (N, C, D, H, W), or the channels are not those of the method's sources.
    """
    _check_source(method, source)
    kernel, sampling = method.kernel, method.sampling
    codec, diffusion = method.codec(network), method.part(network, DIFFUSION)
    condition = _condition(method, codec, source)
    y = method.end(condition)

    def draw() -> Tensor:
        return torch.randn(y.shape, generator=generator, device=y.device)

    step = _step_by_planes if method.window.blocks(y.shape[2:]) > 1 else _step
    times = torch.full((y.shape[0],), sampling.start, device=y.device)
    x = kernel.start(y, draw) if sampling.start == 1 else kernel.at(y, y, _broadcastable(times, y), draw())
    for k in range(sampling.steps - 1, -1, -1):
        next_times = torch.full_like(times, sampling.start * k / sampling.steps)
        t, s = _broadcastable(times, y), _broadcastable(next_times, y)
        # The prediction is not bound to a name, so that it is freed before the next evaluation.
        x = step(
            method,
            codec,
            method.window.apply(diffusion, x, times, condition, progress),
            x,
            y,
            t,
            s,
            draw() if sampling.stochastic else None,
        )
        times = next_times
    return decode(method, network, x, source.shape[2:])


def _states(method: Method, noise: Tensor) -> Iterator[Tensor]:
    """Yield the states in sampling a voxel whose source and estimated target are 0; the noise is always the same."""
    kernel, sampling, y = method.kernel, method.sampling, torch.zeros_like(noise)
    t = torch.full_like(noise, sampling.start)
    x = kernel.start(y, lambda: noise) if sampling.start == 1 else kernel.at(y, y, t, noise)
    yield x
    for k in range(sampling.steps - 1, -1, -1):
        s = torch.full_like(t, sampling.start * k / sampling.steps)
        x = kernel.step(x, y, y, t, s, noise if sampling.stochastic else None)
        yield x
        t = s


def _estimate(method: Method, codec: Codec, output: Tensor, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Convert the network's output to an x0 estimate, clamped if the method requires it."""
    x0 = x0_of(method.target, method.kernel, output, x, y, t)
    return x0 if method.sampling.clamp is None else codec.clamp(x0, method.sampling.clamp)


def _step(
    method: Method, codec: Codec, output: Tensor, x: Tensor, y: Tensor, t: Tensor, s: Tensor, noise: Tensor | None
) -> Tensor:
    """Take one step from t to s, given the network's output at t."""
    return method.kernel.step(x, _estimate(method, codec, output, x, y, t), y, t, s, noise)


def _step_by_planes(
    method: Method, codec: Codec, output: Tensor, x: Tensor, y: Tensor, t: Tensor, s: Tensor, noise: Tensor | None
) -> Tensor:
    """Take the same step plane by plane and in place in ``output``, which saves memory; voxels are independent."""
    for d in range(output.shape[2]):
        plane = (slice(None), slice(None), slice(d, d + 1))
        x0 = _estimate(method, codec, output[plane], x[plane], y[plane], t)
        output[plane] = method.kernel.step(x[plane], x0, y[plane], t, s, None if noise is None else noise[plane])
    return output


@torch.no_grad()
def decode(method: Method, network: nn.Module, z: Tensor, shape: Sequence[int]) -> Tensor:
    """Decode latents to volumes (N, C, D, H, W) of a shape (D, H, W): the last step of sampling."""
    return crop(method.codec(network).decode(z), shape)


@torch.no_grad()
def reconstruct(method: Method, network: nn.Module, volume: Tensor) -> Tensor:
    """Encode and decode volumes (N, C, D, H, W): the result of a diffusion that predicts the target latent exactly.

    Raises:
        ValueError: the shape is not (N, C, D, H, W).
    """
    _check_volume(volume)
    z = method.codec(network).encode(pad_to_multiple(volume, method.multiple))
    return decode(method, network, z, volume.shape[2:])


def _condition(method: Method, codec: Codec, source: Tensor) -> Tensor:
    """Encode sources (N, S·C, …), each by itself, to one latent (N, S·C', …)."""
    latents = [codec.encode(one) for one in pad_to_multiple(source, method.multiple).chunk(len(method.sources), 1)]
    return latents[0] if len(latents) == 1 else torch.cat(latents, 1)


def _decoded(method: Method, codec: Codec, condition: Tensor) -> Tensor:
    """Decode the latents of all sources, each by itself: the inverse of :func:`_condition`."""
    volumes = [codec.decode(one) for one in condition.chunk(len(method.sources), 1)]
    return volumes[0] if len(volumes) == 1 else torch.cat(volumes, 1)


def _check_pair(method: Method, source: Tensor, target: Tensor) -> None:
    check_tensor("source", source)
    check_tensor("target", target)
    if target.ndim == 5 and source.shape == (len(target), len(method.sources) * target.shape[1], *target.shape[2:]):
        return
    names = f", or (N, S·C, D, H, W) for the sources {', '.join(method.sources)}" if len(method.sources) > 1 else ""
    raise ValueError(
        f"source and target must be volumes (N, C, D, H, W) of one shape{names}, "
        f"got {tuple(source.shape)} and {tuple(target.shape)}"
    )


def _check_source(method: Method, source: Tensor) -> None:
    _check_volume(source)
    if source.shape[1] % len(method.sources):
        raise ValueError(
            f"{source.shape[1]} channels cannot be those of the {len(method.sources)} sources "
            f"{', '.join(method.sources)}"
        )


def _check_volume(volume: Tensor) -> None:
    check_tensor("a volume", volume)
    if volume.ndim != 5:
        raise ValueError(f"expected volumes (N, C, D, H, W), got the shape {tuple(volume.shape)}")


def _broadcastable(times: Tensor, x: Tensor) -> Tensor:
    """Reshape (N,) to (N, 1, …, 1), which broadcasts against x."""
    return times.reshape(-1, *[1] * (x.ndim - 1))
