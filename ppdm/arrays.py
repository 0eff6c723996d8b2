"""Arrays that callers pass: numpy arrays or tensors of any strides, byte order and type, also read-only ones."""

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor

AS_TENSOR = "convert an array x with torch.from_numpy(x.astype('f4', order='C'))"


def volume_of(array: Array) -> Tensor:
    """Return a float32 tensor, of the same shape, with the values of an array or tensor and without a graph.

    A float32 tensor is not copied. Arrays are copied, because torch cannot share the memory of arrays that are
    read-only, reversed or of the other byte order.
    """
    if isinstance(array, Tensor):
        return array.detach().float()
    return torch.from_numpy(np.array(array, np.float32, order="C"))


def check_tensor(what: str, x: object) -> None:
    """Refuse arrays where a tensor is needed.

    Raises:
        TypeError: x is not a tensor; the message says how to make one.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} must be a torch tensor, got {type(x).__name__}; {AS_TENSOR}")
