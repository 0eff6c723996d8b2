"""The U-Net of PPDM and of every baseline, in 2-D or 3-D.

The topology is that of Ho et al. 2020 (arXiv 2006.11239) and of ADM (Dhariwal & Nichol, arXiv 2105.05233), which the
baselines share. The stem, every residual block and every downsampling have a skip connection. Each level has one more
residual block on the upward path. Axes: N batch, C channels, then the spatial axes: (D, H, W) or (H, W). w = width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppdm.network.layers import LayerFactory, TimeEmbedding, recomputed, start_at_zero, without_autocast
from ppdm.network.options import UNetOptions


class UNet(nn.Module):
    """Network that predicts noise, residual or target: ``(N, C_in, *spatial), (N,) -> (N, C_out, *spatial)``.

    The last convolution is initialised to zero, so an untrained network returns zeros.

    Args:
        in_channels: channels of the input (state and condition together).
        out_channels: channels of the output.
        dims: 2 or 3.
        options: size and arithmetic of the network.

    Raises:
        ValueError: dims is neither 2 nor 3; in ``forward``, the input has a wrong rank, channel count or size.
    """

    def __init__(self, in_channels: int, out_channels: int, dims: int = 3, options: UNetOptions | None = None) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"a U-Net has 2 or 3 spatial dimensions, got {dims}")
        self.in_channels, self.dims, self.options = in_channels, dims, options or UNetOptions()
        o = self.options
        make = LayerFactory(dims, o)

        self.time = TimeEmbedding(o.width)
        self.stem = make.convolution(in_channels, o.width)

        self.down = nn.ModuleList()
        channels, skips = o.width, [o.width]
        for level, (wanted, attend) in enumerate(o.levels):
            for _ in range(o.residual_blocks):
                self.down.append(make.block(channels, wanted, attend))
                channels = wanted
                skips.append(channels)
            if level + 1 < len(o.levels):
                self.down.append(make.downsampling(channels))
                skips.append(channels)

        self.middle = nn.ModuleList(make.middle(channels))

        self.up = nn.ModuleList()
        for level, (wanted, attend) in reversed(list(enumerate(o.levels))):
            for _ in range(o.residual_blocks + 1):
                skip = skips.pop()
                # With additive skips, the block's output needs the channels of the next skip, not those of the level.
                after = wanted if o.skips == "concat" else skips[-1] if skips else o.width
                joined = channels + skip if o.skips == "concat" else skip
                self.up.append(make.block(joined, after, attend, takes_skip=True))
                channels = after
            if level:
                self.up.append(make.upsampling(channels))

        self.head = make.normalised_convolution(channels, out_channels)
        start_at_zero(self.head.convolution)
        if o.compile:
            self.compile(dynamic=False)  # at the first call; does not change the names of the parameters

    def forward(self, x: Tensor | Sequence[Tensor], t: Tensor) -> Tensor:
        """Predict from x and the time t (N,) in [0, 1]; the result is float32.

        Args:
            x: float ``(N, C_in, *spatial)``, or several tensors with C_in channels in total. They are concatenated in
                the network's precision, which avoids a concatenated float32 volume in memory.
            t: (N,).
        """
        seen = [x] if isinstance(x, Tensor) else list(x)
        self._check(seen)
        with without_autocast(t.device.type):
            return self._predict(seen, t)

    def _predict(self, seen: list[Tensor], t: Tensor) -> Tensor:
        embedding = self.time(t)  # (N, 4w)
        # (N, w, *spatial), from here on in the network's precision
        h = self.stem(torch.cat([x.to(self.stem.dtype) for x in seen], dim=1) if len(seen) > 1 else seen[0])
        stack = [h]  # the skip connections and, on top, the current tensor
        for part in self.down:
            h = part(h, embedding)
            stack.append(h)
        for part in self.middle:
            h = part(h, embedding)
        stack.append(h)
        group: list[nn.Module] = []  # the layers up to and including the block that takes the next skip connection
        for part in self.up:
            group.append(part)
            if getattr(part, "takes_skip", False):
                h = self._apply_group(group, stack, embedding)
                stack.append(h)
                group = []
        return self.head(stack.pop()).float().contiguous()

    def _apply_group(self, group: list[nn.Module], stack: list[Tensor], embedding: Tensor) -> Tensor:
        """Apply a group of layers of the upward path; the backward pass recomputes it if the options ask for it."""
        if not (self.options.recomputes_blocks and torch.is_grad_enabled()):
            return self._apply_layers(group, stack, embedding)
        h, skip = stack.pop(), stack.pop()
        return recomputed(
            lambda skip, h, embedding: self._apply_layers(group, [skip, h], embedding), skip, h, embedding
        )

    def _apply_layers(self, group: list[nn.Module], stack: list[Tensor], embedding: Tensor) -> Tensor:
        """Apply the layers in order; one expression pops and joins the tensors, so that no variable keeps them."""
        *doubling, block = group
        for part in doubling:
            stack.append(part(stack.pop(), embedding))
        return block(self._pop_joined(stack), embedding)

    def _pop_joined(self, stack: list[Tensor]) -> Tensor:
        h, skip = stack.pop(), stack.pop()
        return torch.cat([h, skip], dim=1) if self.options.skips == "concat" else torch.lerp(h, skip, 0.5)

    def _check(self, seen: Sequence[Tensor]) -> None:
        x, wanted = seen[0], ", ".join("NCDHW" if self.dims == 3 else "NCHW")
        if any(other.ndim != self.dims + 2 for other in seen) or sum(o.shape[1] for o in seen) != self.in_channels:
            shapes = " and ".join(str(tuple(other.shape)) for other in seen)
            raise ValueError(f"expected ({wanted}) with C = {self.in_channels}, got shape {shapes}")
        if any(s % self.options.multiple for s in x.shape[2:]):
            raise ValueError(
                f"sizes {tuple(x.shape[2:])} must be multiples of {self.options.multiple}, since the network halves "
                f"them {len(self.options.multipliers) - 1} times; pad with pad_to_multiple(x, {self.options.multiple})"
            )
