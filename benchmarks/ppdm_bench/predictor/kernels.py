"""Work of each PyTorch kernel of a trace: floating-point operations, traffic, and launches.

A kernel's operations are those of ``torch.utils.flop_counter``; a multiplication and an addition count as two. Its
traffic is the bytes of its inputs and outputs, where

- normalisation reads its input once more for the statistics, and its backward pass reads both inputs once more;
- a rule of :mod:`ppdm_bench.predictor.kernel_rules` that allocates a temporary copy also writes and reads it.

Views, and tensors that are created without values, are no kernels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

from ppdm_bench.predictor.convolution_rules import CHANNELS_LAST_COPIES, HALF, Moment
from ppdm_bench.predictor.modules import Site

Kind = Literal["convolution", "depthwise", "matrix product", "attention", "memory", "copy"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """Work of one kernel, or of several equal ones.

    Attributes:
        kind: what limits it: arithmetic and traffic for products, traffic for ``memory`` and for the ``copy`` of
            tensors into another memory layout.
        name: PyTorch's operator.
        dtype: dtype of the arithmetic, ``float32`` or a half precision; empty for memory.
        flops: floating-point operations.
        traffic: bytes read and written.
        columns, depth: of a product seen as (rows, depth) by (depth, columns): its narrow sizes. For a convolution
            these are the channels that it writes and reads.
        stage: ``forward``, or the gradient that a convolution computes: ``input`` or ``weight``.
        launched: whether the host launches it by itself; copies belong to the kernel before them.
        site: the module, if modules are recorded.
    """

    kind: Kind
    name: str
    dtype: str = ""
    flops: int = 0
    traffic: int = 0
    columns: int = 0
    depth: int = 0
    stage: str = "forward"
    launched: bool = True
    site: Site | None = None

    @property
    def operator(self) -> str:
        """The operator without namespace and overload, or the rule."""
        return self.name.removeprefix("aten.").rpartition(".")[0] if self.name.startswith("aten.") else self.name


def kernels_of(
    op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, moments: Sequence[Moment]
) -> Iterator[Kernel]:
    """Kernels of one call of an operator; ``moments`` are the temporary buffers that its rules add."""
    if _moves_nothing(op):
        return
    if op is aten.convolution.default:
        yield _convolution(op, args[0], args[1], out, args[6], args[8], "forward")
    elif op is aten.convolution_backward.default:
        above, x, weight, transposed, groups = args[0], args[1], args[2], args[7], args[9]
        of_x, of_weight, of_bias = out
        if of_x is not None:
            yield _convolution(op, x, weight, above, transposed, groups, "input")
        if of_weight is not None:
            yield _convolution(op, x, weight, above, transposed, groups, "weight")
        if of_bias is not None:
            yield Kernel("memory", str(op), traffic=_bytes(above))
    elif (product := _product(op, args, out)) is not None:
        yield product
    else:
        yield Kernel("memory", str(op), traffic=_traffic(op, args, kwargs, out))
    for moment in moments:
        for buffer in moment:
            copied = buffer.name == CHANNELS_LAST_COPIES
            yield Kernel("copy" if copied else "memory", buffer.name, traffic=2 * buffer.size, launched=False)


def at_site(kernels: Iterator[Kernel], site: Site | None) -> Iterator[Kernel]:
    """The same kernels, attributed to a module."""
    for kernel in kernels:
        yield replace(kernel, site=site) if site else kernel


def _convolution(op: Any, x: Tensor, weight: Tensor, y: Tensor, transposed: bool, groups: int, stage: str) -> Kernel:
    reads, writes = (x.shape[1] // groups, y.shape[1] // groups)
    flops = conv_flop_count(list(x.shape), list(weight.shape), list(y.shape), transposed=transposed)
    depthwise = groups > 1 and reads == writes == 1
    return Kernel(
        "depthwise" if depthwise else "convolution",
        str(op),
        _name(x.dtype),
        flops,
        _bytes(x) + _bytes(weight) + _bytes(y),
        columns=reads if stage == "input" else writes,
        depth=writes if stage == "input" else reads,
        stage=stage,
    )


def _product(op: Any, args: Sequence[Any], out: Any) -> Kernel | None:
    """A matrix product or attention; None for other operators."""
    shapes = [x.shape for x in args if isinstance(x, Tensor)]
    if op in (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default):
        a, b = shapes[-2:]
        flops = 2 * prod(a) * b[-1]
        kind: Kind = "matrix product"
        columns, depth = min(a[-2], b[-1]), a[-1]
    elif "scaled_dot_product" in str(op):
        backward = "backward" in str(op)
        first = 1 if backward else 0
        query, key, value = shapes[first : first + 3]
        flops = (
            sdpa_backward_flop_count(shapes[0], query, key, value) if backward else sdpa_flop_count(query, key, value)
        )
        kind, columns, depth = "attention", value[-1], query[-1]
    else:
        return None
    tensors = [x for x in args if isinstance(x, Tensor)]
    made = [x for x in tree_iter(out) if isinstance(x, Tensor)]
    traffic = sum(map(_bytes, [*tensors, *made]))
    return Kernel(kind, str(op), _name(tensors[-1].dtype), int(flops), traffic, int(columns), int(depth))


_STATISTICS = ("batch_norm", "group_norm", "layer_norm", "instance_norm")


def _traffic(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    inputs = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
    written = [x for x in tree_iter(out) if isinstance(x, Tensor)]
    name = str(op).split(".")[1]
    if name in _OVERWRITING:
        inputs = inputs[1:]
    elif name.endswith("_like") or name.startswith("new_"):
        inputs = []
    elif op._schema.is_mutable and not op._schema.returns:  # of many tensors, which the operator returns none of
        written = [x for x, told in zip(args, op._schema.arguments, strict=False) if _is_written(told) for x in x]
    total = sum(map(_bytes, [*inputs, *written]))
    if any(kind in name for kind in _STATISTICS):
        total += sum(_bytes(x) for x in inputs if x.dim() > 1)
    return total


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write and "List" in str(argument.type)


# In-place operators that do not read what they overwrite.
_OVERWRITING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_")

# Operators that allocate or describe a tensor and launch no kernel.
_NO_KERNEL = (
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.lift_fresh.default,
    aten.resize_.default,
    aten.set_.source_Storage,
)


@cache
def _moves_nothing(op: Any) -> bool:
    """Whether an operator launches no kernel: every result is a view of an input, or a tensor without values."""
    returns = op._schema.returns
    is_view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    is_note = not returns and not op._schema.is_mutable
    return is_view or is_note or op in _NO_KERNEL or op.namespace == "profiler"


def _bytes(x: Tensor) -> int:
    """Bytes that a kernel touches: an expanded tensor is read once."""
    if x.layout is not torch.strided:
        return 0
    elements = prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return elements * x.element_size()


def _name(dtype: torch.dtype) -> str:
    return "half" if dtype in HALF else str(dtype).removeprefix("torch.")
