"""Networks of your own in place of the U-Net."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppdm.network.options import CHECKPOINTING, PRECISIONS


@dataclass(frozen=True)
class Backbone(ABC):
    """Options of a network of your own; a subclass, also a frozen dataclass, implements :meth:`build`.

    Args:
        precision: ``fp32``; or ``bf16`` or ``fp16``, which run the network under autocast.
        checkpointing: ``none``, or any other kind, with which the backward pass recomputes the whole network.
        channels_last: not supported; the network decides on its own layout.
        compile: whether to compile the network at its first call.

    Raises:
        ValueError: a value is outside these ranges.
    """

    precision: str = "fp32"
    checkpointing: str = "none"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("precision", tuple(PRECISIONS)),
            ("checkpointing", CHECKPOINTING),
            ("channels_last", (False,)),
            ("compile", (False, True)),
        ):
            if getattr(self, name) not in allowed:
                options = ", ".join(map(str, allowed))
                raise ValueError(
                    f"{name} of {type(self).__name__} must be one of {options}, got {getattr(self, name)!r}"
                )

    @property
    def multiple(self) -> int:
        """The factor that must divide every spatial size; volumes are padded to it."""
        return 1

    @abstractmethod
    def build(self, c_in: int, c_out: int, dims: int) -> nn.Module:
        """Return a module from ``(N, c_in, *spatial)`` and times (N,) in [0, 1] to ``(N, c_out, *spatial)``.

        Args:
            c_in: channels of the input: those of the state, and those of the source beside it.
            c_out: channels of the prediction.
            dims: number of spatial dimensions, 2 or 3.
        """


class BackboneNetwork(nn.Module):
    """A network of your own, called as the U-Net is: with the parts of its input, and with the options applied.

    Args:
        c_in, c_out, dims: as for :meth:`Backbone.build`.
        options: the options that build the network.
    """

    def __init__(self, c_in: int, c_out: int, dims: int, options: Backbone) -> None:
        super().__init__()
        self.options, self.out_channels = options, c_out
        self.inner = options.build(c_in, c_out, dims)
        if options.compile:
            self.inner.compile(dynamic=False)

    def forward(self, x: Tensor | Sequence[Tensor], t: Tensor) -> Tensor:
        """Return the prediction ``(N, C_out, *spatial)`` in float32.

        Args:
            x: float ``(N, C_in, *spatial)``, or several tensors with C_in channels in total.
            t: (N,).

        Raises:
            ValueError: the network returned another shape.
        """
        x = x if isinstance(x, Tensor) else torch.cat(list(x), 1)
        wanted = (len(x), self.out_channels, *x.shape[2:])
        half = self.options.precision != "fp32"
        with torch.autocast(t.device.type, PRECISIONS[self.options.precision], enabled=half):
            if self.options.checkpointing != "none" and torch.is_grad_enabled():
                prediction = checkpoint(self.inner, x, t, use_reentrant=False)
            else:
                prediction = self.inner(x, t)
        if tuple(prediction.shape) != wanted:
            raise ValueError(
                f"{type(self.inner).__name__} must return {wanted} for an input {tuple(x.shape)}, got "
                f"{tuple(prediction.shape)}"
            )
        return prediction.float()
