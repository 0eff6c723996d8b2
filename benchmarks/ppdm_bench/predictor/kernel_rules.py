"""What CUDA does and the CPU does not: each difference that moves a memory peak is a named rule here, with its origin.

A prediction runs the real code on fake CPU tensors. The storages it makes are those that CUDA would make, except for
what follows: buffers that a CUDA kernel takes while it runs (:data:`TRANSIENT`), workspaces that a library keeps once
it has been called (:class:`CublasWorkspaces`), and the dtypes that CUDA's autocast chooses (:data:`AUTOCAST_HALF`
and the sets beside it, put into force by :mod:`ppdm_bench.predictor.autocast`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ppdm_bench.predictor.target import MIB, Target

HALF = (torch.float16, torch.bfloat16)
ATTENTION = ("flash", "efficient", "math")
aten = torch.ops.aten


@dataclass(frozen=True)
class Transient:
    """A buffer that a kernel takes while it runs, beside its inputs and outputs.

    Args:
        name: how the term is called in an estimate.
        applies: whether the target has it at all.
        size: bytes for one call, from the operator, its arguments and its result; 0 where it takes none.
    """

    name: str
    applies: Callable[[Target], bool]
    size: Callable[[OpOverload, Sequence[Any], Any], int]


def _conv3d_leaves_cudnn(target: Target) -> bool:
    """PyTorch 2.9.0 computes half-precision Conv3d without cuDNN; 2.9.1 and later do where cuDNN is 9.8 to 9.14.

    pytorch/pytorch#166643 (the regression, and that 2.9.1's wheels still have it) and #163539 (wrong results of
    cuDNN 9.8 to 9.14, the reason).
    """
    if target.release < (2, 9, 0):
        return False
    return target.release == (2, 9, 0) or (9, 8) <= target.cudnn_version < (9, 15)


def _columns(op: OpOverload, args: Sequence[Any], out: Any) -> int:
    """vol2col's buffer: C_in · kernel volume · output voxels, a sample at a time.

    ATen/native/cuda/NaiveDilatedConvolution.cu, which takes what cuDNN does not, dilated or not.
    Not for kernels of one voxel, which need no columns: C_in · 1 · voxels is the input itself. A transposed convolution
    goes the other way (NaiveConvolutionTranspose3d.cu): C_out · kernel volume · input voxels.
    """
    if op is aten.convolution.default:
        x, weight, result, transposed = args[0], args[1], out, args[6]
    elif op is aten.convolution_backward.default:
        x, weight, result, transposed = args[1], args[2], args[0], args[7]
    else:
        return 0
    kernel, grid = weight.shape[2:], (x if transposed else result).shape[2:]
    if len(kernel) != 3 or prod(kernel) == 1 or x.dtype not in HALF:
        return 0
    return int(weight.shape[1] * prod(kernel) * prod(grid) * x.element_size())


def _softmax_product(op: OpOverload, args: Sequence[Any], out: Any) -> int:
    """Softmax's backward first makes ``grad · output`` (ATen/native/cuda/SoftMax.cu), as large as the gradient."""
    return _bytes(args[0]) if op is aten._softmax_backward_data.default else 0


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


def _attention_product(op: OpOverload, args: Sequence[Any], out: Any) -> int:
    """In fp32 the memory-efficient backward makes ``grad · output`` first, as large as the output.

    ATen/native/transformers/cuda/attention_backward.cu; its half-precision kernels compute the sum themselves.
    """
    return _bytes(args[4]) if op is _FUSED_BACKWARD and args[1].dtype is torch.float32 else 0


def _attention_sums(op: OpOverload, args: Sequence[Any], out: Any) -> int:
    """Flash attention's backward sums the query's gradient in fp32, and keeps one number a query beside it.

    flash_api.cpp, ``mha_bwd``: (N, heads, L, E) and (N, heads, L), L in multiples of 128, the head size E in multiples
    of 32, or 256 above 192.
    """
    if op is not _FUSED_BACKWARD or args[1].dtype not in HALF:
        return 0
    n, heads, length, size = args[1].shape
    rounded = -(-size // 32) * 32 if size <= 192 else 256
    return int(4 * n * heads * -(-length // 128) * 128 * (rounded + 1))


# The CPU's fused kernel stands for CUDA's.
_FUSED_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default

CONV3D_COLUMNS = "conv3d columns"

TRANSIENT = (
    Transient(CONV3D_COLUMNS, _conv3d_leaves_cudnn, _columns),
    Transient("softmax backward", lambda target: True, _softmax_product),
    Transient("attention backward, product", lambda target: True, _attention_product),
    Transient("attention backward, sums", lambda target: True, _attention_sums),
)


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
