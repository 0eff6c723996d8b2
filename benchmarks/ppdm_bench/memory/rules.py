"""What CUDA does and the CPU does not: each difference that moves a memory peak is a named rule here, with its origin.

A prediction runs the real code on fake CPU tensors. The storages it makes are those that CUDA would make, except for
what follows: buffers that a CUDA kernel takes while it runs (:data:`TRANSIENT`), workspaces that a library keeps once
it has been called (:class:`CublasWorkspaces`), and the dtypes that CUDA's autocast chooses (:data:`AUTOCAST_HALF`
and the sets beside it, put into force by :mod:`ppdm_bench.memory.autocast`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ppdm_bench.memory.target import MIB, Target

HALF = (torch.float16, torch.bfloat16)
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
    """vol2col's buffer (ATen/native/cuda/ConvolutionMM3d.cu): C_in · kernel volume · output voxels, a sample at a time.

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


CONV3D_COLUMNS = "conv3d columns"

TRANSIENT = (
    Transient(CONV3D_COLUMNS, _conv3d_leaves_cudnn, _columns),
    Transient("softmax backward", lambda target: True, _softmax_product),
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

    PyTorch takes them from its own allocator at the first matrix product of a thread and keeps them; cuBLASLt shares
    them (ATen/cuda/CublasHandlePool.cpp: 32 MiB on Hopper and Blackwell, ``:4096:2:16:8`` elsewhere). A convolution
    that runs through columns is a matrix product too.
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
