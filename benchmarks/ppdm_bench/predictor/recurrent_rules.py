"""Memory that recurrent layers save for the backward pass; PyTorch's fake kernels do not include it.

On the CPU, an LSTM is a oneDNN kernel that saves a workspace (``set_workspace_sizes`` in oneDNN's rnn_utils.hpp). On
CUDA, every recurrent layer is a cuDNN kernel that saves a so-called reserve. Three published sizes equal
:func:`reserve` to the byte: 736,000,000 and 864,000,000 for an LSTM and a GRU with four layers (pytorch/pytorch#2895),
and 801,177,600 for a bidirectional GRU (SeanNaren/deepspeech.pytorch#172). They are from 2017, in fp32 and without
dropout. The first source does not state the numbers of units and steps: they were derived from the parameters and the
sizes themselves, so only the ratio of its two sizes is evidence.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.backends import mkldnn

from ppdm_bench.predictor.convolution_rules import Buffer, Moment

aten = torch.ops.aten

_PAGE = 4096
RELU, TANH, LSTM, GRU = range(4)  # modes of cuDNN
_SAVED = {RELU: 1, TANH: 1, LSTM: 5, GRU: 6}  # numbers that a cell saves per output
_CUDNN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

FORWARD, BACKWARD = aten._cudnn_rnn.default, aten._cudnn_rnn_backward.default


# --- the CPU


def mkldnn_layer(*args: Any) -> tuple[Tensor, ...]:
    """oneDNN's LSTM layer with the workspace that it saves for backward; the arguments are those of the operator."""
    output, h, c, workspace = aten.mkldnn_rnn_layer.default(*args)
    x, hidden = args[0], args[10]
    if torch.is_grad_enabled():
        workspace = workspace.new_empty(mkldnn_workspace(x.shape[0], x.shape[1], x.shape[2], hidden, x.element_size()))
    return output, h, c, workspace


def mkldnn_layer_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of oneDNN's LSTM layer, with one tensor for each of the two biases."""
    x, w, u, b, _, *states = aten.mkldnn_rnn_layer_backward.default(*args)
    return x, w, u, b, b.new_empty(b.shape), *states


def mkldnn_workspace(steps: int, batch: int, features: int, hidden: int, size: int) -> int:
    """Bytes of the workspace of one LSTM layer in one direction; ``size``: bytes of one number."""
    states = 2 * (steps + 1) * batch
    widest = max(features, hidden)
    of_states = states * _row(widest, 4)  # gradients, in fp32
    parts = (
        steps * batch * _row(4 * hidden, size),  # gates
        steps * batch * _row(hidden, size),  # outputs before a projection
        states * _row(widest, size),
        states * hidden * size,  # cells
        of_states,
        of_states,
        states * hidden * 4,  # gradients of cells
    )
    return sum(-(-part // _PAGE) * _PAGE for part in parts)


def _row(width: int, size: int) -> int:
    """Bytes of a row in oneDNN: a multiple of 64 bytes, but not a multiple of 256 numbers."""
    line = 64 // size
    width = -(-width // line) * line
    return (width + line if width % 256 == 0 else width) * size


# --- CUDA


def reserve(mode: int, outputs: int, layers: int, size: int) -> int:
    """Bytes that cuDNN saves for the backward pass, including the outputs between the layers.

    Args:
        mode: kind of the layer, as a number of cuDNN.
        outputs: outputs of one layer: steps · samples · directions · hidden size.
        layers: number of stacked layers.
        size: bytes of one number.
    """
    return outputs * (layers * _SAVED[mode] + layers - 1) * size


def cudnn(
    x: Tensor,
    weights: Sequence[Tensor],
    _: int,
    weight_buffer: Tensor | None,
    h: Tensor,
    c: Tensor | None,
    mode: int,
    hidden: int,
    projected: int,
    layers: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    state: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Results of cuDNN's recurrent kernel."""
    directions = 1 + bidirectional
    output = x.new_empty((*x.shape[:-1], (projected or hidden) * directions))
    saved = reserve(mode, prod(x.shape[:-1]) * hidden * directions, layers, x.element_size()) if train else 0
    cell = x.new_empty(0) if c is None else c.new_empty(c.shape)
    buffer = x.new_empty(0) if weight_buffer is None else weight_buffer  # None: the weights already are one buffer
    return output, h.new_empty(h.shape), cell, x.new_empty(saved, dtype=torch.uint8), buffer


def cudnn_backward(
    x: Tensor, weights: Sequence[Tensor], _: int, __: Any, h: Tensor, c: Tensor | None, *rest: Any
) -> Any:
    """Gradients that cuDNN's recurrent kernel returns: the requested ones of input, states and weights."""
    of_x, of_h, of_c, of_weights = rest[-1]
    return (
        x.new_empty(x.shape) if of_x else None,
        h.new_empty(h.shape) if of_h else None,
        c.new_empty(c.shape) if of_c and c is not None else None,
        [w.new_empty(w.shape) for w in weights] if of_weights else [],
    )


def cudnn_buffers(op: Any, args: Sequence[Any]) -> Moment:
    """Temporary buffers: cuDNN's workspace, and a copy of a batch-first input with the steps first.

    The workspace holds the weights in another order, and two sets of outputs if there are two directions. The sizes
    published in the two issues above are up to 14 MiB larger.
    """
    x, weights = args[0], args[1]
    hidden, batch_first, bidirectional = (args[i] for i in ((7, 10, 13) if op is FORWARD else (11, 14, 17)))
    size = sum(w.numel() for w in weights if w.dim() > 1) * x.element_size()
    if bidirectional:
        size += 4 * prod(x.shape[:-1]) * hidden * x.element_size()
    copied = x.numel() * x.element_size() if batch_first else 0
    buffers = Buffer("recurrent workspace", size, "assumed"), Buffer("recurrent input, steps first", copied)
    return tuple(buffer for buffer in buffers if buffer.size)


def _layer(op: Any, mode: int) -> Callable[..., Any]:
    """Return CUDA's decomposition of a recurrent layer (ATen/native/RNN.cpp), with the operator's arguments."""

    def packed(x: Tensor, batch_sizes: Tensor, *args: Any) -> Any:
        return layer(x, *args, batch_first=False, sizes=batch_sizes)  # type: ignore[misc]

    def layer(
        x: Tensor,
        h: Any,
        weights: Sequence[Tensor],
        has_biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
        sizes: Tensor | None = None,
    ) -> Any:
        given = [h, weights, has_biases, layers, dropout, train, bidirectional]
        if x.dtype not in _CUDNN or not torch.backends.cudnn.enabled:
            with mkldnn.flags(enabled=False, allow_tf32=None):
                return op._op_dk(
                    torch._C.DispatchKey.CompositeImplicitAutograd,
                    *((x, *given, batch_first) if sizes is None else (x, sizes, *given)),
                )
        h, c = h if mode == LSTM else (h, None)
        if torch.is_autocast_enabled("cuda") and x.dtype is not torch.float64:
            dtype = torch.get_autocast_dtype("cuda")
            x, h, c = x.to(dtype), h.to(dtype), c if c is None else c.to(dtype)
            weights = [w.to(dtype) for w in weights]
        hidden, projected = (h.shape[2], 0) if c is None or c.shape[2] == h.shape[2] else (c.shape[2], h.shape[2])
        stride = len(weights) // (layers * (1 + bidirectional))
        lengths = [] if sizes is None else sizes.tolist()
        options = (mode, hidden, projected, layers, batch_first, dropout, train, bidirectional)
        output, h, c, *_ = FORWARD(x, weights, stride, None, h, c, *options, lengths, None)
        return (output, h, c) if mode == LSTM else (output, h)

    return packed if op._overloadname == "data" else layer


CUDA_LAYERS: Mapping[str, Callable[..., Any]] = {
    f"{name}.{form}": _layer(getattr(getattr(aten, name), form), mode)
    for name, mode in (("lstm", LSTM), ("gru", GRU), ("rnn_tanh", TANH), ("rnn_relu", RELU))
    for form in ("input", "data")
}
