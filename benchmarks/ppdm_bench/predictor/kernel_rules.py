"""Differences between CUDA and the CPU that change peak memory: one named rule for each, with its source.

A prediction runs the real code on fake CPU tensors. CUDA allocates the same storages, with three differences:

- temporary buffers of CUDA kernels (:func:`kernel_buffers`; for convolutions see
  :mod:`ppdm_bench.predictor.convolution_rules`);
- workspaces that a library keeps after its first call (:class:`CublasWorkspaces`);
- dtypes that CUDA's autocast selects (:data:`AUTOCAST_HALF` and the sets after it, applied by
  :mod:`ppdm_bench.predictor.autocast`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ppdm_bench.predictor import recurrent_rules
from ppdm_bench.predictor.convolution_rules import HALF, Buffer, Moment, convolution_buffers
from ppdm_bench.predictor.target import MIB, Target

ATTENTION = ("flash", "efficient", "math")
aten = torch.ops.aten


def kernel_buffers(target: Target, op: OpOverload, args: Sequence[Any], out: Any) -> Iterator[Moment]:
    """Yield the temporary buffers of one kernel call on the target: groups of buffers that are live together."""
    yield from convolution_buffers(target, op, args, out)
    if op is aten._softmax_backward_data.default:
        # The kernel first computes ``grad · output``, which is as large as the gradient (ATen/native/cuda/SoftMax.cu).
        yield (Buffer("softmax backward", args[0].nbytes),)
    elif op in (recurrent_rules.FORWARD, recurrent_rules.BACKWARD):
        yield recurrent_rules.cudnn_buffers(op, args)
    elif op is _FUSED_BACKWARD and args[1].dtype is torch.float32:
        # The memory-efficient backward first computes ``grad · output``, which is as large as the output
        # (ATen/native/transformers/cuda/attention_backward.cu). Its half-precision kernels need no such buffer.
        yield (Buffer("attention backward, product", args[4].nbytes),)
    elif op is _FUSED_BACKWARD and args[1].dtype in HALF:
        yield (Buffer("attention backward, sums", _attention_sums(args[1])),)


def attention_backend(
    target: Target, dtype: torch.dtype, head_dims: Sequence[int], masked: bool, enabled: Sequence[str] = ATTENTION
) -> str:
    """Return the kernel that ``scaled_dot_product_attention`` selects: ``flash``, ``efficient`` or ``math``.

    The order is that of ATen/native/transformers/cuda/sdp_utils.cpp:

    - flash: half precision, no mask, equal head sizes up to 256, from Ampere on;
    - memory-efficient: fp32 or half precision (bf16 from Ampere on); head sizes are a multiple of 16 bytes, except for
      fp32 before Ampere, which accepts every head size;
    - math: all other cases; it stores the complete matrix of attention weights.

    Some releases prefer cuDNN's kernel on Hopper. It does not store the attention weights either, so it counts as
    flash. Its temporary buffers are unknown.

    Args:
        target: the card.
        dtype: dtype of query, key and value after autocast.
        head_dims: head sizes of query, key and value.
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
    """Bytes of the accumulators in flash attention's backward: the query's gradient in fp32, one fp32 sum per query.

    Source: ``mha_bwd`` in flash_api.cpp. The buffers are (N, heads, L, E) and (N, heads, L), with L rounded up to a
    multiple of 128 and the head size E to a multiple of 32, or to 256 if it is above 192.
    """
    n, heads, length, size = query.shape
    rounded = -(-size // 32) * 32 if size <= 192 else 256
    return int(4 * n * heads * -(-length // 128) * 128 * (rounded + 1))


# A prediction runs the CPU's fused kernel in place of CUDA's.
_FUSED_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


_MATRIX_PRODUCTS = {getattr(aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot")}


@dataclass
class CublasWorkspaces:
    """cuBLAS workspaces: PyTorch has one handle per thread (forward and backward), and one workspace per handle.

    PyTorch allocates a workspace with its own allocator at the first matrix product of a thread and keeps it
    (ATen/cuda/CublasHandlePool.cpp: 32 MiB on Hopper and Blackwell, ``:4096:2:16:8`` elsewhere). cuBLASLt uses the
    same workspace; in releases where it has its own of 1 MiB, that one is not counted. A convolution that uses columns
    is also a matrix product.
    """

    target: Target
    taken: set[bool] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Bytes of one workspace."""
        return 32 * MIB if self.target.compute_capability[0] in (9, 10, 12) else 2 * 4096 * 1024 + 8 * 16 * 1024

    def taken_by(self, op: OpOverload, columns: bool, backward: bool) -> int:
        """Bytes of workspace that this call allocates; ``columns``: whether it is a convolution that uses columns."""
        if not (columns or op in _MATRIX_PRODUCTS) or backward in self.taken:
            return 0
        self.taken.add(backward)
        return self.size


# CUDA's autocast (ATen/autocast_mode.h). The list of covered operators is read from the dispatcher of the installed
# PyTorch, which registers them even in a build without CUDA. Each operator follows one of five policies. Covered
# operators that are not named below cast their inputs to fp32 and run in fp32.

# Run in half precision; the CPU's autocast does the same for those that it covers.
AUTOCAST_HALF = frozenset(
    (
        *("_convolution", "_convolution.deprecated", "convolution", "conv1d", "conv2d", "conv3d", "conv_tbc"),
        *("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
        *("cudnn_convolution", "cudnn_convolution_transpose"),
        *("mm", "mv", "bmm", "addmm", "addmv", "addr", "addbmm", "baddbmm", "matmul", "einsum", "linear"),
        *("linalg_vecdot", "chain_matmul", "linalg_multi_dot", "prelu"),
        *("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
        *("_scaled_dot_product_flash_attention", "scaled_dot_product_attention"),
    )
)

# Run in fp32 unless the call gives a dtype; the inputs are not cast beforehand.
AUTOCAST_FP32_BY_DTYPE = frozenset(
    (
        *("prod", "prod.dim_int", "sum", "sum.dim_IntList", "cumprod", "cumsum", "softmax.int", "log_softmax.int"),
        *("linalg_vector_norm", "linalg_matrix_norm", "linalg_matrix_norm.str_ord"),
    )
)

# Run in the widest dtype of their inputs.
AUTOCAST_PROMOTE = frozenset(
    (
        *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot"),
        *("grid_sampler", "index_put", "scatter_add", "tensordot", "vdot"),
    )
)

# Left unchanged: `norm` calls another overload with a dtype, and `binary_cross_entropy` is an error.
AUTOCAST_OTHER = frozenset(["norm.Scalar", "norm.ScalarOpt_dim", "binary_cross_entropy"])
