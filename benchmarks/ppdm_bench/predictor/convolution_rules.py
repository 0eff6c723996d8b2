"""Temporary buffers of a convolution on CUDA, in addition to its inputs and outputs.

PyTorch either calls cuDNN or computes the convolution itself from a column matrix (``use_cudnn`` in
ATen/native/Convolution.cpp). The two implementations allocate different buffers:

- *layout copies* (both): a tensor whose memory layout differs from that of the convolution is copied first.
- *columns* (PyTorch's own kernels): C_in · kernel volume · output voxels elements, for one sample at a time.
- *channels-last copies* (cuDNN): the tensor-core engines use the channels-last layout. For contiguous tensors, they
  allocate a workspace as large as input, weight and output together, and free it after the call.

Published counters prove the last rule for the forward pass of 3-D convolutions (fp16, bf16, and fp32 with TF32) and
2-D convolutions (fp16, bf16), from Ampere on, with more than three input channels and kernels larger than one voxel.
With three input channels there are no copies. The rules for all other cases are conservative assumptions, and their
buffers are marked ``assumed``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._prims_common import suggest_memory_format

from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timeline import Basis

aten = torch.ops.aten

HALF = (torch.float16, torch.bfloat16)

COLUMNS = "convolution columns"
CHANNELS_LAST_COPIES = "cuDNN channels-last copies"
LAYOUT_COPIES = "convolution layout copies"

_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
_INT_MAX = 2**31 - 1


@dataclass(frozen=True)
class Buffer:
    """Memory that a kernel allocates while it runs.

    Attributes:
        name: the rule.
        size: bytes.
        basis: ``proven`` if published counters or PyTorch's source show the rule for this case, else ``assumed``.
    """

    name: str
    size: int
    basis: Basis = "proven"


Moment = tuple[Buffer, ...]  # buffers that are live at the same time


@dataclass(frozen=True)
class _Call:
    """One convolution, forward or backward.

    Attributes:
        x, weight, y: input, weight, and output or its gradient.
        transposed, groups: arguments of PyTorch's operator.
        gradients: gradients of input and weight, each None if not requested; None in the forward pass.
    """

    x: Tensor
    weight: Tensor
    y: Tensor
    transposed: bool
    groups: int
    gradients: tuple[Tensor | None, Tensor | None] | None

    @classmethod
    def of(cls, op: OpOverload, args: Sequence[Any], out: Any) -> "_Call":
        if op is aten.convolution.default:
            return cls(args[0], args[1], out, args[6], args[8], None)
        return cls(args[1], args[2], args[0], args[7], args[9], tuple(out[:2]))

    @property
    def kernel(self) -> int:
        """Number of voxels in the kernel."""
        return prod(self.weight.shape[2:])

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout that cuDNN uses (``cudnn_conv_suggest_memory_format`` in ATen/native/ConvUtils.h)."""
        if torch.float64 in (self.x.dtype, self.weight.dtype):
            return torch.contiguous_format
        suggested = (suggest_memory_format(self.x), suggest_memory_format(self.weight))
        return next((each for each in suggested if each is not torch.contiguous_format), torch.contiguous_format)

    @property
    def is_depthwise(self) -> bool:
        return not self.transposed and self.groups > 1 and self.groups == self.x.shape[1]


def convolution_layout(op: OpOverload, args: Sequence[Any], out: Any) -> torch.memory_format | None:
    """Return the memory layout on CUDA of a convolution's result or gradients; None for other operators."""
    return _Call.of(op, args, out).layout if op in _CONVOLUTIONS else None


def convolution_buffers(target: Target, op: OpOverload, args: Sequence[Any], out: Any) -> Iterator[Moment]:
    """Yield the buffers of a convolution: groups that are live at the same time. Other operators have none."""
    if op not in _CONVOLUTIONS:
        return
    call = _Call.of(op, args, out)
    copies = _layout_copies(call)
    if _is_without_cudnn(target, call):
        yield (*copies, *_columns(call, "proven" if target.knows_cudnn else "assumed"))
    elif (basis := _basis(target, call)) is None:
        yield copies
    else:
        for size in _copy_workspaces(call):
            yield (*copies, Buffer(CHANNELS_LAST_COPIES, size, basis))


def _is_without_cudnn(target: Target, call: _Call) -> bool:
    """Whether PyTorch computes the convolution without cuDNN (``use_cudnn`` in ATen/native/Convolution.cpp).

    The three cases are:

    - cuDNN is disabled;
    - more than 2³¹ - 1 elements per sample, with cuDNN older than 9.3 (pytorch/pytorch#95024, #123533);
    - half precision in 3-D, with PyTorch 2.9.0 and any cuDNN, or with a later PyTorch and cuDNN 9.8 to 9.14, except
      channels-last tensors and kernels of one voxel. PyTorch excluded cuDNN there because its results were wrong
      (pytorch/pytorch#163539), which increased memory (#166643).
    """
    if not torch.backends.cudnn.enabled:
        return True
    samples = max(call.x.shape[0], 1)
    if max(call.x.numel(), call.y.numel()) // samples > _INT_MAX and target.cudnn_version < (9, 3):
        return True
    if call.x.dtype not in HALF or call.weight.dim() != 5 or call.kernel == 1:
        return False
    broken = target.release == (2, 9, 0) or (target.release > (2, 9, 0) and (9, 8) <= target.cudnn_version < (9, 15))
    return broken and call.layout is torch.contiguous_format


def _columns(call: _Call, basis: Basis) -> Moment:
    """Buffer of vol2col (ATen/native/cuda/NaiveDilatedConvolution.cu), for all convolutions without cuDNN.

    PyTorch uses vol2col with and without dilation. A kernel of one voxel needs no columns, because they would equal the
    input. A transposed convolution (NaiveConvolutionTranspose3d.cu) needs C_out · kernel volume · input
    voxels.
    """
    if call.kernel == 1 or call.is_depthwise:
        return ()
    grid = (call.x if call.transposed else call.y).shape[2:]
    return (Buffer(COLUMNS, call.weight.shape[1] * call.kernel * prod(grid) * call.x.element_size(), basis),)


def _layout_copies(call: _Call) -> Moment:
    """Temporary copies of tensors whose memory layout differs from that of the convolution.

    Source: ``_convolution`` and ``convolution_backward`` in ATen/native/Convolution.cpp. The backward pass copies the
    input only if it computes the weight's gradient. A typical case is the gradient of a mean, which is one expanded
    element.
    """
    needed = [call.weight]
    if call.gradients is None:
        needed.append(call.x)
    else:
        needed += [call.y, *([call.x] if call.gradients[1] is not None else [])]
    size = sum(x.nbytes for x in needed if not x.is_contiguous(memory_format=call.layout))
    return (Buffer(LAYOUT_COPIES, size),) if size else ()


def _basis(target: Target, call: _Call) -> Basis | None:
    """Whether the channels-last copies of this call are proven or assumed; None if there are no copies."""
    dtype, dims = call.x.dtype, call.weight.dim() - 2
    if dtype is torch.float32:
        if target.compute_capability < (8, 0) or not target.allows_tf32:
            return None
    elif dtype not in HALF:
        return None
    if call.layout is not torch.contiguous_format or call.is_depthwise or _is_shown_without_copies(target, call):
        return None
    proven = (
        call.gradients is None
        and not call.transposed
        and call.groups == 1
        and call.x.shape[1] > 2
        and call.kernel > 1
        and (dims == 3 or (dims == 2 and dtype in HALF))
        and target.compute_capability >= (8, 0)
    )
    return "proven" if proven else "assumed"


def _is_shown_without_copies(target: Target, call: _Call) -> bool:
    """Whether published counters show that such a forward pass makes no copies.

    Three input channels: in fp16 in 3-D, the reserved memory of diffusers' autoencoder at nine sizes, exact to the MiB
    (InvokeAI pull request 9305); in fp32 in 2-D, pytorch/pytorch#69526. Kernels of one voxel: the same autoencoder on
    an RTX 4090. The same source shows copies for one size on another card.
    """
    if call.gradients is not None or call.transposed:
        return False
    return call.x.shape[1] == 3 or (call.kernel == 1 and target.compute_capability == (8, 9))


def _copy_workspaces(call: _Call) -> Iterator[int]:
    """Bytes of the workspace: one value for forward; for backward, one for the gradient of input and one of weight."""
    whole = call.x.nbytes + call.weight.nbytes + call.y.nbytes
    if call.gradients is None:
        yield whole
        return
    of_x, of_weight = call.gradients
    if of_x is not None:
        # The trace already counts the weight's gradient, but cuDNN allocates it only afterwards; subtract it.
        yield whole - (0 if of_weight is None else call.weight.nbytes)
    if of_weight is not None:
        yield whole
