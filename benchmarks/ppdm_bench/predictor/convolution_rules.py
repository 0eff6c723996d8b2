"""Buffers that a convolution takes on CUDA while it runs, beside its inputs and outputs.

PyTorch gives a convolution to cuDNN, or computes it itself through a matrix of columns
(``use_cudnn`` in ATen/native/Convolution.cpp). Each way takes its own buffers:

- *layout copies* (both ways): a tensor whose layout is not the one that the convolution works in is copied first.
- *columns* (PyTorch's own kernels): C_in · kernel volume · output voxels, one sample at a time.
- *channels-last copies* (cuDNN): the engines that use tensor cores work channels-last. For contiguous tensors they take
  a workspace of the size of input, weight and output together, and free it after the call.

The last rule is proven on published counters for the forward pass of convolutions in 3-D (fp16, bf16, and fp32 with
TF32) and in 2-D (fp16, bf16), from Ampere on, with more than three input channels and kernels larger than one voxel;
with three input channels there are no copies. All else is an assumption on the safe side, and its buffers say so.
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
    """Memory that a kernel takes while it runs.

    Attributes:
        name: the rule.
        size: bytes.
        basis: what the rule rests on here: published counters or PyTorch's source (``proven``), or ``assumed``.
    """

    name: str
    size: int
    basis: Basis = "proven"


Moment = tuple[Buffer, ...]  # buffers that are alive together


@dataclass(frozen=True)
class _Call:
    """One convolution, forward or backward.

    Attributes:
        x, weight, y: input, weight, and output or its gradient.
        transposed, groups: as PyTorch's operator takes them.
        gradients: of input and weight, each None where it was not asked for; None in the forward pass.
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
        """Voxels of the kernel."""
        return prod(self.weight.shape[2:])

    @property
    def layout(self) -> torch.memory_format:
        """The layout that cuDNN works in (``cudnn_conv_suggest_memory_format`` in ATen/native/ConvUtils.h)."""
        if torch.float64 in (self.x.dtype, self.weight.dtype):
            return torch.contiguous_format
        suggested = (suggest_memory_format(self.x), suggest_memory_format(self.weight))
        return next((each for each in suggested if each is not torch.contiguous_format), torch.contiguous_format)

    @property
    def is_depthwise(self) -> bool:
        return not self.transposed and self.groups > 1 and self.groups == self.x.shape[1]


def convolution_layout(op: OpOverload, args: Sequence[Any], out: Any) -> torch.memory_format | None:
    """The layout on CUDA of a convolution's result, or of its gradients; None of other operators."""
    return _Call.of(op, args, out).layout if op in _CONVOLUTIONS else None


def convolution_buffers(target: Target, op: OpOverload, args: Sequence[Any], out: Any) -> Iterator[Moment]:
    """What one call takes, moment by moment; nothing for other operators."""
    if op not in _CONVOLUTIONS:
        return
    call = _Call.of(op, args, out)
    copies = _layout_copies(call)
    if _leaves_cudnn(target, call):
        yield (*copies, *_columns(call, "proven" if target.knows_cudnn else "assumed"))
    elif (basis := _basis(target, call)) is None:
        yield copies
    else:
        for size in _copied(call):
            yield (*copies, Buffer(CHANNELS_LAST_COPIES, size, basis))


def _leaves_cudnn(target: Target, call: _Call) -> bool:
    """Whether PyTorch computes it itself (``use_cudnn`` in ATen/native/Convolution.cpp).

    Above 2³¹ - 1 elements a sample, with a cuDNN older than 9.3 (pytorch/pytorch#95024, #123533); in half precision
    in 3-D, 2.9.0 for every cuDNN and later releases for 9.8 to 9.14 (pytorch/pytorch#166643 the regression, #163539 the
    wrong results that are its reason). The latter holds neither for channels-last tensors nor for kernels of one voxel.
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
    """vol2col's buffer (ATen/native/cuda/NaiveDilatedConvolution.cu), which takes what cuDNN does not, dilated or not.

    Not for kernels of one voxel, which need no columns: C_in · 1 · voxels is the input itself. A transposed convolution
    goes the other way (NaiveConvolutionTranspose3d.cu): C_out · kernel volume · input voxels.
    """
    if call.kernel == 1 or call.is_depthwise:
        return ()
    grid = (call.x if call.transposed else call.y).shape[2:]
    return (Buffer(COLUMNS, call.weight.shape[1] * call.kernel * prod(grid) * call.x.element_size(), basis),)


def _layout_copies(call: _Call) -> Moment:
    """Copies that PyTorch makes of tensors that are not in the layout that it works in, for the time of the call.

    ``_convolution`` and ``convolution_backward`` in ATen/native/Convolution.cpp. The input is copied in the backward
    pass only if the weight's gradient is wanted. The typical case is the gradient of a mean, which is one number
    expanded.
    """
    needed = [call.weight]
    if call.gradients is None:
        needed.append(call.x)
    else:
        needed += [call.y, *([call.x] if call.gradients[1] is not None else [])]
    size = sum(_bytes(x) for x in needed if not x.is_contiguous(memory_format=call.layout))
    return (Buffer(LAYOUT_COPIES, size),) if size else ()


def _basis(target: Target, call: _Call) -> Basis | None:
    """What the channels-last copies rest on for this call; None where there are none."""
    dtype, dims = call.x.dtype, call.weight.dim() - 2
    if dtype is torch.float32:
        if target.compute_capability < (8, 0) or not target.allows_tf32:
            return None
    elif dtype not in HALF:
        return None
    if call.layout is not torch.contiguous_format or call.is_depthwise or _shown_without(target, call):
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


def _shown_without(target: Target, call: _Call) -> bool:
    """Whether published counters show that such a forward pass takes no copies.

    Three input channels: in fp16 in 3-D by the reserved memory of diffusers' autoencoder at six sizes, to the MiB
    (InvokeAI pull request 9305), in fp32 in 2-D by pytorch/pytorch#69526. Kernels of one voxel: by the same autoencoder
    on an RTX 4090; on another card of that source one size shows them.
    """
    if call.gradients is not None or call.transposed:
        return False
    return call.x.shape[1] == 3 or (call.kernel == 1 and target.compute_capability == (8, 9))


def _copied(call: _Call) -> Iterator[int]:
    """Bytes of the workspace: forward; or of the data gradient, then of the weight gradient."""
    whole = _bytes(call.x) + _bytes(call.weight) + _bytes(call.y)
    if call.gradients is None:
        yield whole
        return
    of_x, of_weight = call.gradients
    if of_x is not None:
        # The weight's gradient, which the trace has seen by now, is made only after this.
        yield whole - (0 if of_weight is None else _bytes(call.weight))
    if of_weight is not None:
        yield whole


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
