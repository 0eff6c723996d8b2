"""What CUDA does and the CPU does not: each difference that moves a memory peak is a named rule here, with its origin.

A prediction runs the real code on fake CPU tensors. The storages it makes are those that CUDA would make, except for
what follows: buffers that a CUDA kernel takes while it runs (:func:`kernel_buffers`; those of convolutions are in
:mod:`ppdm_bench.predictor.convolution_rules`), workspaces that a library keeps once it has been called
(:class:`CublasWorkspaces`), and the dtypes that CUDA's autocast chooses (:data:`AUTOCAST_HALF` and the sets beside it,
put into force by :mod:`ppdm_bench.predictor.autocast`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ppdm_bench.predictor.convolution_rules import HALF, Buffer, Moment, convolution_buffers
from ppdm_bench.predictor.target import MIB, Target

ATTENTION = ("flash", "efficient", "math")
aten = torch.ops.aten


def kernel_buffers(target: Target, op: OpOverload, args: Sequence[Any], out: Any) -> Iterator[Moment]:
    """Buffers that the kernel of one call takes on the target beside inputs and outputs, moment by moment."""
    yield from convolution_buffers(target, op, args, out)
    if op is aten._softmax_backward_data.default:
        # ``grad · output`` is made first, as large as the gradient (ATen/native/cuda/SoftMax.cu).
        yield (Buffer("softmax backward", _bytes(args[0])),)
    elif op is _FUSED_BACKWARD and args[1].dtype is torch.float32:
        # The memory-efficient backward makes ``grad · output`` first, as large as the output
        # (ATen/native/transformers/cuda/attention_backward.cu); its half-precision kernels compute the sum themselves.
        yield (Buffer("attention backward, product", _bytes(args[4])),)
    elif op is _FUSED_BACKWARD and args[1].dtype in HALF:
        yield (Buffer("attention backward, sums", _attention_sums(args[1])),)


def attention_backend(
    target: Target, dtype: torch.dtype, head_dims: Sequence[int], masked: bool, enabled: Sequence[str] = ATTENTION
) -> str:
    """Which kernel scaled_dot_product_attention takes: ``flash``, ``efficient`` or ``math``.

    ATen/native/transformers/cuda/sdp_utils.cpp, in its order. Flash: half precision, no mask, one head size up to 256,
    from Ampere on. Memory-efficient: fp32 or half precision (bf16 from Ampere on), head sizes that are a multiple of
    16 bytes (from Ampere on; below, fp32 has no such condition). All else is computed as written down, with the whole
    matrix of weights. cuDNN's kernel, which some releases prefer on Hopper, writes no weights either and counts as
    flash; what it takes while it runs is not known.

    Args:
        target: the card.
        dtype: of query, key and value, as autocast leaves them.
        head_dims: of query, key and value.
        masked: whether a mask is given.
        enabled: kernels that the code allows (``torch.nn.attention.sdpa_kernel``).
    """
    ampere, half = target.compute_capability >= (8, 0), dtype in HALF
    if "flash" in enabled and ampere and half and not masked and len(set(head_dims)) == 1 and head_dims[0] <= 256:
        return "flash"
    known = dtype in (torch.float16, torch.float32) or (ampere and dtype is torch.bfloat16)
    multiple = 8 if half else 4 if ampere else 1
    if "efficient" in enabled and known and not any(size % multiple for size in head_dims):
        return "efficient"
    return "math"


def _attention_sums(query: Tensor) -> int:
    """Flash attention's backward sums the query's gradient in fp32, and keeps one number a query beside it.

    flash_api.cpp, ``mha_bwd``: (N, heads, L, E) and (N, heads, L), L in multiples of 128, the head size E in multiples
    of 32, or 256 above 192.
    """
    n, heads, length, size = query.shape
    rounded = -(-size // 32) * 32 if size <= 192 else 256
    return int(4 * n * heads * -(-length // 128) * 128 * (rounded + 1))


# The CPU's fused kernel stands for CUDA's.
_FUSED_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


MATRIX_PRODUCTS = (
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.mv.default,
    aten.addmv.default,
    aten.dot.default,
)


@dataclass
class CublasWorkspaces:
    """cuBLAS keeps one workspace a handle, and PyTorch one handle a thread: the forward's and the backward's.

    PyTorch takes them from its own allocator at the first matrix product of a thread and keeps them
    (ATen/cuda/CublasHandlePool.cpp: 32 MiB on Hopper and Blackwell, ``:4096:2:16:8`` elsewhere). cuBLASLt shares them,
    or has 1 MiB of its own where the release does not unify them, which is left out. A convolution that runs through
    columns is a matrix product too.
    """

    target: Target
    taken: set[bool] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Bytes of one workspace."""
        return 32 * MIB if self.target.compute_capability[0] in (9, 10, 12) else 2 * 4096 * 1024 + 8 * 16 * 1024

    def taken_by(self, op: OpOverload, columns: bool, backward: bool) -> int:
        """Bytes that this call takes for good; ``columns``: whether it is a convolution that runs through columns."""
        if not (columns or op in MATRIX_PRODUCTS) or backward in self.taken:
            return 0
        self.taken.add(backward)
        return self.size


# CUDA's autocast (ATen/autocast_mode.h). Which operators it covers is read from the dispatcher of the PyTorch at hand,
# which registers them in a build without CUDA too; what it does with them is one of five policies. What is not named
# here runs in fp32, its inputs cast.

# Run in half precision, as the CPU's autocast does too where it covers them.
AUTOCAST_HALF = frozenset(
    [
        "_convolution",
        "_convolution.deprecated",
        "convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_tbc",
        "conv_transpose1d",
        "conv_transpose2d.input",
        "conv_transpose3d.input",
        "cudnn_convolution",
        "cudnn_convolution_transpose",
        "prelu",
        "addmm",
        "addmv",
        "addr",
        "matmul",
        "einsum",
        "mm",
        "mv",
        "linalg_vecdot",
        "linear",
        "addbmm",
        "baddbmm",
        "bmm",
        "chain_matmul",
        "linalg_multi_dot",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
        "rnn_relu_cell",
        "_scaled_dot_product_flash_attention",
        "scaled_dot_product_attention",
    ]
)

# Run in fp32 unless the call names a dtype; nothing is cast beforehand.
AUTOCAST_FP32_BY_DTYPE = frozenset(
    [
        "prod",
        "prod.dim_int",
        "softmax.int",
        "log_softmax.int",
        "cumprod",
        "cumsum",
        "linalg_vector_norm",
        "linalg_matrix_norm",
        "linalg_matrix_norm.str_ord",
        "sum",
        "sum.dim_IntList",
    ]
)

# Run in the widest of their inputs' dtypes.
AUTOCAST_PROMOTE = frozenset(
    [
        "addcdiv",
        "addcmul",
        "atan2",
        "bilinear",
        "cross",
        "dot",
        "grid_sampler",
        "index_put",
        "scatter_add",
        "tensordot",
        "vdot",
    ]
)

# Left to their own overloads: `norm` is handed on with another overload's dtype, `binary_cross_entropy` is an error.
AUTOCAST_OTHER = frozenset(["norm.Scalar", "norm.ScalarOpt_dim", "binary_cross_entropy"])
