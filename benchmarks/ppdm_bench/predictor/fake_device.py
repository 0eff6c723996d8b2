"""Runs code written for CUDA without CUDA: the device of every tensor is simulated.

During a prediction, a tensor counts as on the target unless the code puts it on the host explicitly (``.cpu()``,
``.to("cpu")``, ``device="cpu"``). This suits most code: it names no device, or one device for all its tensors. Moving a
tensor to the target when it is already there is not a copy, as on a machine with CUDA. Only data that PyTorch did not
create during the prediction has an unknown place: tensors that existed before, such as volumes of a data set, and
tensors made from NumPy arrays or numbers. If the code moves such data to the target, then the data and everything
computed only from it before the move count as on the host.

In fact, every tensor is on the CPU, because fake CUDA tensors need a PyTorch build with CUDA.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext, _device_constructors

from ppdm_bench.predictor.autocast import cuda_autocast
from ppdm_bench.predictor.cuda_composites import cuda_composites
from ppdm_bench.predictor.fake_cuda import TensorType, driver_patches, tensor_type
from ppdm_bench.predictor.kernel_rules import attention_backend
from ppdm_bench.predictor.sizes import PredictionError
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timeline import Place
from ppdm_bench.predictor.trace import Trace, is_wrapper, plain

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


@contextmanager
def fake_cuda_device(trace: Trace) -> Iterator[None]:
    """Simulate a CUDA device for the Python code of this process until the end of the block."""
    devices = _Devices(trace)
    with ExitStack() as stack:
        for patch in (*driver_patches(trace), *devices.patches()):
            stack.enter_context(patch)
        stack.enter_context(cuda_autocast())
        stack.enter_context(cuda_composites())
        stack.enter_context(devices)
        yield


class _Devices(TorchFunctionMode):
    """Function mode that intercepts every call that names or queries a device."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self._moves = dict(_MOVES)

    def patches(self) -> Iterator[Any]:
        """Patches of functions that a function mode does not see, such as the backward pass."""
        real_device = FakeTensor.device.fget  # type: ignore[attr-defined]
        engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
        original_push = torch._C._autograd._push_saved_tensors_default_hooks
        optimizer = sys.modules["torch.optim.optimizer"]  # `torch.optim` hides its name

        def device(tensor: FakeTensor) -> torch.device:
            return real_device(tensor) if self.trace.inside else self._device(tensor)

        def in_mode(function: Callable[..., Any]) -> Callable[..., Any]:
            # PyTorch disables the mode while the mode handles a call; the code that this call runs needs the mode too.
            def run(*args: Any, **kwargs: Any) -> Any:
                if self in _get_current_function_mode_stack():
                    return function(*args, **kwargs)
                with self:
                    return function(*args, **kwargs)

            return run

        def push_hooks(pack: Callable[..., Any], unpack: Callable[..., Any]) -> None:
            original_push(in_mode(pack), in_mode(unpack))

        original_wrapper, original_pin = Tensor._make_wrapper_subclass, Tensor.pin_memory

        def pin_memory(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # The function mode does not apply in a thread that loads data.
            return x if self.trace.is_elsewhere else original_pin(x, *args, **kwargs)

        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            # Use the real device, on which the wrapped tensors are.
            return original_wrapper(*args, **kwargs | {"device": CPU})

        # PyTorch's Python functions pass the whole call to a mode, and the mode does not see the calls inside. Here it
        # must see the calls inside, so these functions must not detect the mode.
        for module in (torch.nn.functional, torch.functional, torch._tensor):
            for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
                if hasattr(module, name):
                    yield mock.patch.object(module, name, _of_subclasses(name))
        yield mock.patch.object(Tensor, "_make_wrapper_subclass", staticmethod(wrapper))
        self._moves[pin_memory] = _Devices.pin_memory  # the function mode receives the replaced function
        yield mock.patch.object(Tensor, "pin_memory", pin_memory)
        yield mock.patch.object(FakeTensor, "device", property(device))
        # Optimizers use the foreach implementation for CUDA tensors of the types in this list; add fake tensors to it.
        yield mock.patch.object(optimizer, "_foreach_supported_types", [Tensor, nn.Parameter, FakeTensor])
        yield mock.patch.object(torch.autograd, "_engine_run_backward", in_mode(engine))
        yield mock.patch.object(torch._C._autograd, "_push_saved_tensors_default_hooks", push_hooks)

    def __torch_function__(
        self,
        function: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.trace.inside:
            return function(*args, **kwargs)
        if function in _DEVICE_QUERIES:
            return _DEVICE_QUERIES[function](self._device(args[0]))
        if function in self._moves:
            return self._moves[function](self, *args, **kwargs)
        if function is torch.device and args and type(args[0]) is int:
            return torch.device("cuda", *args, **kwargs)
        if function is torch._C._nn._parse_to:
            numbered: list[Any] = [_as_device(a) if type(a) is int else a for a in args]
            return function(*numbered, **kwargs)
        if function is F.scaled_dot_product_attention:
            return self._attention(dict(zip(_ATTENTION, args, strict=False)) | kwargs)
        return self._create(function, args, kwargs)

    def _create(self, function: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        named = _as_device(kwargs.get("device"))
        if named is None and function in _device_constructors():
            named = _default_device()
        if named is not None and named.type == "meta":
            return function(*args, **kwargs)
        if named is None and kwargs.get("pin_memory"):
            named = CPU
        if named is not None and named.type == "cuda" and function in _FROM_DATA and args:
            return self._from_data(function, args[0], named, kwargs)
        if named is not None:
            with self.trace.placing(_place(named)):
                return function(*args, **kwargs | {"device": CPU})
        if function in _device_constructors():
            kwargs["device"] = CPU  # explicitly, because the default device may be CUDA
        return function(*args, **kwargs)

    def _attention(self, given: dict[str, Any]) -> Tensor:
        """Attention by a CPU kernel that stores the attention weights if and only if CUDA's kernel does."""
        tensors = [given[name] for name in ("query", "key", "value")]
        dtype = tensors[0].dtype
        if torch.is_autocast_enabled("cuda") and dtype is not torch.float64:
            dtype = torch.get_autocast_dtype("cuda")
        masked = given.get("attn_mask") is not None
        allowed = [name for name, is_enabled in _ENABLED.items() if is_enabled()]
        sizes = [x.shape[-1] for x in tensors]
        fused = attention_backend(self.trace.target or Target(), dtype, sizes, masked, allowed) != "math"
        if fused:
            # CUDA's fused kernels recompute the dropout mask from a seed. The CPU has no such kernel: with dropout it
            # would store all attention weights.
            given["dropout_p"] = 0.0
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH] if fused else SDPBackend.MATH):
            return F.scaled_dot_product_attention(**given)

    # --- moves

    def to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x.to(...)``: handle the device here, and let PyTorch do the rest."""
        named = _as_device(kwargs.pop("device", None))
        if isinstance(other := args[0] if args else kwargs.pop("other", None), Tensor):
            named, kwargs["dtype"], args = self._device(other), other.dtype, args[1:]
        elif args and not isinstance(args[0], torch.dtype):
            named, args = _as_device(args[0]), args[1:]
        kwargs |= dict(zip(("dtype", "non_blocking", "copy"), args, strict=False))
        if named is not None and self._is_of_real_module(x) and kwargs.get("dtype") not in (None, x.dtype):
            if self.trace.is_new(x):
                self.trace.moved(x, "host")  # the move also converts it, so only the result is on the target
            with self.trace.placing(_place(named)):
                return x.to(kwargs["dtype"])
        look = {name: kwargs[name] for name in ("dtype", "non_blocking", "memory_format") if kwargs.get(name)}
        moved = x if named is None else self._move(x, named, **look)
        conversion = {k: v for k, v in kwargs.items() if k != "non_blocking" and v not in (None, False)}
        if moved is not x:
            conversion.pop("copy", None)
        converted: Tensor = moved.to(**conversion) if conversion else moved
        return converted

    def type(self, x: Tensor, dtype: Any = None, non_blocking: bool = False, **_: Any) -> Any:
        """``x.type(...)``, which also accepts tensor types of CUDA."""
        named: Any = tensor_type(dtype)
        return self.to(x, "cuda", named.dtype, non_blocking) if isinstance(named, TensorType) else x.type(dtype)

    def cuda(self, x: Tensor, device: Any = None, non_blocking: bool = False, **look: Any) -> Tensor:
        """``x.cuda(...)``."""
        _as_device(device)
        return self._move(x, CUDA, non_blocking=non_blocking, **look)

    def cpu(self, x: Tensor, **look: Any) -> Tensor:
        """``x.cpu()``."""
        return self._move(x, CPU, **look)

    def copy(self, x: Tensor, other: Tensor, non_blocking: bool = False) -> Tensor:
        """``x.copy_(other)``."""
        places = {self._device(x).type, self._device(other).type}
        if places == {"cpu", "cuda"} and not is_wrapper(x) and not is_wrapper(other):
            return self._transfer(x, other, non_blocking)
        return x.copy_(other, non_blocking)

    def set_item(self, x: Tensor, index: Any, value: Any) -> None:
        """``x[index] = value``; integers and slices select a view, and PyTorch copies the value into it."""
        if isinstance(value, Tensor) and _selects_view(index) and self._device(value).type != self._device(x).type:
            part = x[index]
            self.copy(part, value.reshape(value.shape[max(0, value.ndim - part.ndim) :]))
        else:
            x[index] = value

    def new_tensor(self, x: Tensor, data: Any, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        """``x.new_tensor(data)``."""
        place = self._device(x) if device is None else device
        return cast(
            "Tensor", self._create(torch.tensor, (data,), {"dtype": dtype or x.dtype, "device": place, **options})
        )

    def _from_data(self, function: Callable, data: Any, device: torch.device, options: dict[str, Any]) -> Tensor:
        """``torch.tensor``, ``as_tensor`` and ``asarray`` on the target: the data is converted before it is moved."""
        is_differentiable = options.pop("requires_grad", False)
        if isinstance(data, Tensor):
            moved = self.to(data, device, options.get("dtype"), copy=function is torch.tensor or options.get("copy"))
            moved = moved if function is torch.as_tensor else moved.detach()
        else:
            with self.trace.placing("host"):
                value = torch.as_tensor(data, dtype=options.get("dtype"), device=CPU)
            with self.trace.placing("target"):
                moved = value.clone()
        return moved.requires_grad_() if is_differentiable else moved

    def pin_memory(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """``x.pin_memory()``, a copy on the host."""
        self.trace.came_from_host(x)
        with self.trace.placing("host"):
            return x.clone()

    def _move(
        self,
        x: Tensor,
        device: torch.device,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Tensor:
        if self._is_of_real_module(x):
            self.trace.moved(x, _place(device))
            return x
        if device.type == "cuda" and not is_wrapper(x):
            self.trace.came_from_host(x)
        here = self._device(x)
        if here.type == device.type:
            return x
        if "meta" in (device.type, here.type):
            with self.trace.placing("target"):
                return x.to(device if device.type == "meta" else CPU)
        as_it_is = dtype in (None, x.dtype) and memory_format is torch.preserve_format
        with self.trace.placing(_place(device)):
            if is_wrapper(x) or x.layout is not torch.strided or (as_it_is and _is_dense(x)):
                moved = x.clone()
            else:
                moved = torch.empty_like(x, dtype=dtype, memory_format=memory_format, requires_grad=False)
                moved = self._transfer(moved, x, non_blocking)
        if moved.requires_grad:
            moved.register_hook(lambda slope: self._move(slope, here))
        return moved

    def _transfer(self, x: Tensor, other: Tensor, non_blocking: bool) -> Tensor:
        """Copy a tensor into one on the other device as ``copy_kernel_cuda`` does (ATen/native/cuda/Copy.cu).

        Only contiguous data of one dtype is transferred. The target converts the dtype if the copy is non-blocking, and
        the host if it blocks. So on either device there can be a temporary copy.
        """
        here, there = _place(self._device(other)), _place(self._device(x))
        with self.trace.placing(here):
            packed = other.to(x.dtype) if (here == "target") == non_blocking else other
            packed = packed.expand_as(x).contiguous()
        with self.trace.placing(there):
            return x.copy_(packed if x.is_contiguous() and x.dtype == packed.dtype else packed.clone())

    def _is_of_real_module(self, x: Tensor) -> bool:
        """Whether x was created before the prediction and belongs to a module that is being moved or converted."""
        fakes = self.trace.fakes
        return fakes is not None and fakes.converting and fakes.is_real(x)

    def _device(self, x: Tensor) -> torch.device:
        while is_functorch_wrapped_tensor(x):  # inside `vmap` and `grad` of torch.func
            x = get_unwrapped(x)
        x = next(plain(x))  # a wrapper tensor is on the device of its parts
        if isinstance(x, FakeTensor) and x.fake_device.type == "meta":
            return x.fake_device
        return CPU if self.trace.place(x) == "host" else CUDA


def _place(device: torch.device) -> Place:
    return "host" if device.type == "cpu" else "target"


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill a block of memory without gaps or repetitions, in any order of the axes."""
    size = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length != 1 and stride != size:
            return False
        size *= length
    return True


def _selects_view(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is ... or type(part) in (int, slice) for part in parts)


def _of_subclasses(name: str) -> Callable[..., bool]:
    """Return a variant of a PyTorch override check that ignores function modes and considers tensor subclasses only."""
    original = getattr(torch.overrides, name)

    def has_override(*args: Any) -> bool:
        tensors = args[0] if name == "has_torch_function" else args
        return any(type(x) not in _PLAIN for x in tensors) and bool(original(*args)) and any(map(_overrides, tensors))

    return has_override


_PLAIN = {Tensor, nn.Parameter, FakeTensor, type(None)}


def _overrides(x: Any) -> bool:
    """Whether the class of a value overrides ``__torch_function__``."""
    override = getattr(type(x), "__torch_function__", None)
    return type(x) not in _PLAIN and override not in (None, torch._C._disabled_torch_function_impl)


def _default_device() -> torch.device | None:
    """The device of ``with torch.device(...)`` or ``torch.set_default_device``, if there is one."""
    modes = _get_current_function_mode_stack()
    return next((mode.device for mode in modes if isinstance(mode, DeviceContext)), None)


def _as_device(value: Any) -> torch.device | None:
    if value is None:
        return None
    if not isinstance(value, torch.device):
        value = torch.device("cuda", value) if isinstance(value, int) else torch.device(value)
    if value.type == "cuda" and value.index:
        raise PredictionError(
            f"a prediction covers one device, cuda:0, and the code uses {value}; predict each device separately"
        )
    return value


_ENABLED: Mapping[str, Callable[[], bool]] = {
    "flash": lambda: torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.cudnn_sdp_enabled(),
    "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    "math": torch.backends.cuda.math_sdp_enabled,
}

_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

_MOVES: Mapping[Callable, Callable[..., Tensor | None]] = {
    Tensor.to: _Devices.to,
    Tensor.cuda: _Devices.cuda,
    Tensor.type: _Devices.type,
    Tensor.cpu: _Devices.cpu,
    Tensor.pin_memory: _Devices.pin_memory,
    Tensor.copy_: _Devices.copy,
    Tensor.__setitem__: _Devices.set_item,
    Tensor.new_tensor: _Devices.new_tensor,
}

_DEVICE_QUERIES: Mapping[Callable, Callable[[torch.device], Any]] = {
    Tensor.device.__get__: lambda device: device,
    Tensor.is_cuda.__get__: lambda device: device.type == "cuda",  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda device: device.type == "cpu",  # type: ignore[attr-defined]
    Tensor.get_device: lambda device: device.index if device.type == "cuda" else -1,
    Tensor.is_pinned: lambda device: device.type == "cpu",
}
