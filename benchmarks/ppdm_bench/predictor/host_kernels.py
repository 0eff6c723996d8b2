"""Temporary buffers of CPU kernels, for the host memory of code that runs on the CPU.

A trace does not see these buffers, because a kernel allocates them internally. Only those of convolutions are large:

- oneDNN converts a contiguous input to a layout with blocks of 16 channels (for AVX-512), computes the result in this
  layout, and converts it back. It frees the copy of the input before it writes the final result, so only the larger of
  the two copies counts (``ONEDNN_VERBOSE=1`` prints the conversions).
- Without oneDNN, a convolution writes one column of C_in · kernel volume values for each output voxel
  (ATen/native/ConvolutionMM3d.cpp, ConvolutionMM2d.cpp). A kernel of one voxel needs no columns.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

CHANNELS = 16  # channels of one block

aten = torch.ops.aten


def host_buffers(op: Any, args: Sequence[Any], out: Any) -> int:
    """Bytes of the temporary buffers of one kernel call on the CPU; the arguments are fake tensors."""
    if op is not aten.convolution.default:
        return 0
    x, weight, backend = args[0], args[1], convolution_backend(args)
    if backend.startswith("Mkldnn"):
        return max(_in_blocks(x), _in_blocks(out)) if x.is_contiguous() else 0
    if backend in ("Slow2d", "Slow3d") and prod(weight.shape[2:]) > 1:
        return int(len(x) * prod(weight.shape[1:]) * prod(out.shape[2:]) * x.element_size())
    return 0


def convolution_backend(args: Sequence[Any]) -> str:
    """Name of the kernel that PyTorch selects for the arguments of ``aten.convolution``, such as ``Mkldnn``."""
    with args[0].fake_mode:
        return str(torch._C._select_conv_backend(*args, bias_sizes=None).name)


def _in_blocks(x: Tensor) -> int:
    """Bytes of a tensor in oneDNN's layout, with channels padded to a multiple of the block size."""
    return x.numel() // x.shape[1] * -(-x.shape[1] // CHANNELS) * CHANNELS * x.element_size()
