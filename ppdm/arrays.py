"""Arrays of callers: numpy arrays and tensors of any strides, byte order and type, and in read-only memory."""

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor

AS_TENSOR = "torch.from_numpy(x.astype('f4', order='C')) makes one of an array x"


def volume_of(array: Array) -> Tensor:
    """A tensor with the values of an array, float32; a float32 tensor itself, without its graph.

    Arrays are copied, since torch can share neither read-only nor reversed ones, nor those of the other byte order.
    """
    if isinstance(array, Tensor):
        return array.detach().float()
    return torch.from_numpy(np.array(array, np.float32, order="C"))


def check_tensor(what: str, x: object) -> None:
    """Refuse arrays where a tensor is needed.

    Raises:
        TypeError: x is no tensor; the message says how to make one.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} must be a torch tensor, got {type(x).__name__}; {AS_TENSOR}")
