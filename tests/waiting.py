"""Find operations that make the host wait for an accelerator, on a machine without one."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Kernels that need a value on the host, or whose output size depends on values.
_KERNELS = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.repeat_interleave,
}

# Functions that copy a tensor to the host, for which the CPU runs no kernel, and functions that copy unpinned memory to
# the device.
_CALLS = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.cpu,
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__int__,
    torch.Tensor.__index__,
    torch.Tensor.__array__,
    torch.tensor,
    torch.as_tensor,
    torch.from_numpy,
}


class Waits(TorchFunctionMode):
    """Record every operation inside this context that would make the host wait for an accelerator."""

    def __init__(self):
        super().__init__()
        self.found = []
        self._kernels = _Kernels(self.found)

    def __enter__(self):
        self._kernels.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._kernels.__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Only a device given as text counts: PyTorch itself moves tensors to the device of other tensors, here the CPU.
        named = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str)]
        if function in _CALLS or (function is torch.Tensor.to and "cpu" in named):
            self.found.append(getattr(function, "__name__", str(function)))
        return function(*args, **kwargs)


class _Kernels(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        by_mask = op.overloadpacket in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if op.overloadpacket in _KERNELS or by_mask:
            self.found.append(str(op))
        return op(*args, **(kwargs or {}))
