"""Work of each PyTorch kernel of a trace: floating-point operations, memory traffic, and launches.

The operations are counted as in ``torch.utils.flop_counter``: a multiplication and an addition are two operations. The
traffic is the bytes of all inputs and outputs, with two additions:

- normalisation reads its input a second time for the statistics, and its backward pass reads both inputs a second time;
- a temporary copy that a rule of :mod:`ppdm_bench.predictor.kernel_rules` adds is written and read once.

Views and uninitialised tensors need no kernel.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

from ppdm_bench.predictor.convolution_rules import CHANNELS_LAST_COPIES, HALF, Moment
from ppdm_bench.predictor.modules import Site
from ppdm_bench.predictor.operator_traits import tensors_in

Kind = Literal["convolution", "depthwise", "matrix product", "attention", "memory", "copy"]

aten = torch.ops.aten


@dataclass(frozen=True)
class KernelWork:
    """Work of one kernel.

    Attributes:
        kind: kind of work. Arithmetic or traffic limits convolutions, products and attention; traffic limits ``memory``
            and ``copy``, which converts a tensor to another memory layout.
        name: PyTorch's operator, or the rule that adds a buffer.
        dtype: dtype of the arithmetic: ``half`` for fp16 and bf16, or such as ``float32``; empty for memory.
        flops: floating-point operations.
        traffic: bytes read and written.
        columns, depth: narrow sizes of a matrix product (rows × depth) · (depth × columns). For a convolution, they are
            the channels that it writes and reads.
        stage: ``forward``, or the gradient that a convolution computes: ``input`` or ``weight``.
        launched: whether its launch takes time; the launch of a temporary copy belongs to the kernel that needs it.
        site: the module that ran it; None if modules are not recorded.
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
        """Name of the operator without namespace and overload, or the rule."""
        return self.name.removeprefix("aten.").rpartition(".")[0] if self.name.startswith("aten.") else self.name


def kernels_of(
    op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, moments: Sequence[Moment]
) -> Iterator[KernelWork]:
    """Yield the kernels of one operator call; ``moments`` are the temporary buffers that rules add to it."""
    if _launches_no_kernel(op):
        return
    if op is aten.convolution.default:
        yield _convolution(op, args[0], args[1], out, args[6], args[8], "forward")
    elif op is aten.convolution_backward.default:
        grad_output, x, weight, transposed, groups = args[0], args[1], args[2], args[7], args[9]
        of_x, of_weight, of_bias = out
        if of_x is not None:
            yield _convolution(op, x, weight, grad_output, transposed, groups, "input")
        if of_weight is not None:
            yield _convolution(op, x, weight, grad_output, transposed, groups, "weight")
        if of_bias is not None:
            yield KernelWork("memory", str(op), traffic=_bytes(grad_output))
    elif (product := _product(op, args, out)) is not None:
        yield product
    else:
        yield KernelWork("memory", str(op), traffic=_traffic(op, args, kwargs, out))
    for moment in moments:
        for buffer in moment:
            copied = buffer.name == CHANNELS_LAST_COPIES
            yield KernelWork("copy" if copied else "memory", buffer.name, traffic=2 * buffer.size, launched=False)


def _convolution(
    op: Any, x: Tensor, weight: Tensor, y: Tensor, transposed: bool, groups: int, stage: str
) -> KernelWork:
    reads, writes = x.shape[1] // groups, y.shape[1] // groups
    flops = conv_flop_count(list(x.shape), list(weight.shape), list(y.shape), transposed=transposed)
    depthwise = groups > 1 and reads == writes == 1
    return KernelWork(
        "depthwise" if depthwise else "convolution",
        str(op),
        _name(x.dtype),
        flops,
        _bytes(x) + _bytes(weight) + _bytes(y),
        columns=reads if stage == "input" else writes,
        depth=writes if stage == "input" else reads,
        stage=stage,
    )


def _product(op: Any, args: Sequence[Any], out: Any) -> KernelWork | None:
    """Work of a matrix product or of attention; None for other operators."""
    tensors = tensors_in(args)
    shapes = [x.shape for x in tensors]
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
    traffic = sum(map(_bytes, [*tensors, *tensors_in(out)]))
    return KernelWork(kind, str(op), _name(tensors[0].dtype), int(flops), traffic, int(columns), int(depth))


_STATISTICS = ("batch_norm", "group_norm", "layer_norm", "instance_norm")


def _traffic(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    inputs, written = tensors_in((*args, *kwargs.values())), tensors_in(out)
    name = str(op).split(".")[1]
    if name in _OVERWRITING:
        inputs = inputs[1:]
    elif name.endswith("_like") or name.startswith("new_"):
        inputs = []
    elif op._schema.is_mutable and not op._schema.returns:  # such as foreach operators, which write to lists
        pairs = zip(args, op._schema.arguments, strict=False)
        written = [x for value, argument in pairs if _is_written_list(argument) for x in value]
    total = sum(map(_bytes, [*inputs, *written]))
    if any(kind in name for kind in _STATISTICS):
        total += sum(_bytes(x) for x in inputs if x.dim() > 1)
    return total


def _is_written_list(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write and "List" in str(argument.type)


# In-place operators that do not read the tensor that they overwrite.
_OVERWRITING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_")

# Operators that allocate a tensor or change its metadata, and launch no kernel.
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
def _launches_no_kernel(op: Any) -> bool:
    """Whether an operator launches no kernel: it returns views or uninitialised tensors, or does not compute."""
    returns = op._schema.returns
    is_view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    is_marker = not returns and not op._schema.is_mutable
    return is_view or is_marker or op in _NO_KERNEL or op.namespace == "profiler"


def _bytes(x: Tensor) -> int:
    """Bytes that a kernel reads or writes; the elements of an expanded tensor count once."""
    if x.layout is not torch.strided:
        return 0
    elements = prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return elements * x.element_size()


def _name(dtype: torch.dtype) -> str:
    return "half" if dtype in HALF else str(dtype).removeprefix("torch.")
