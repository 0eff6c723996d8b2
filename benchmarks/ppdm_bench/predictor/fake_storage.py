"""Fake tensors that represent real ones, and corrections that let unmodified code run on fake tensors."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.utils._pytree import tree_iter

from ppdm_bench.predictor import recurrent_rules
from ppdm_bench.predictor.host_kernels import convolution_backend
from ppdm_bench.predictor.known_values import KnownValues, placeholder
from ppdm_bench.predictor.sizes import PredictionError, marked, marked_array, number_patches, size_error

aten = torch.ops.aten


class FakeStorages:
    """Fake storages that represent real ones: one for each real storage, as long as the real one exists.

    Attributes:
        converting: whether a module is being moved or converted.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.converting = False
        self._mode = mode
        self._storages: dict[int, Tensor] = {}  # address of the real storage -> fake tensor of all its bytes
        self._converted: dict[int, nn.Parameter] = {}  # id of a real parameter -> the fake parameter that replaced it

    def is_real(self, x: Tensor) -> bool:
        """Whether x is real."""
        return not self._mode.is_our_fake(x)

    def of(self, x: Tensor) -> Tensor:
        """Fake tensor of a real one; two views of one real storage give two views of one fake storage.

        Raises:
            PredictionError: the tensor is sparse or not on the CPU.
        """
        dense = x.layout is torch.strided and x.untyped_storage().device.type == "cpu"
        if not dense and torch.autograd.forward_ad._current_level >= 0:
            raise PredictionError(
                "forward-mode differentiation (torch.func.jvp, torch.autograd.forward_ad) made a tensor that a "
                "prediction cannot follow; use reverse mode, or measure this code"
            )
        if not dense:
            raise PredictionError(
                f"a {x.layout} tensor on {x.device} was created before the prediction, which follows only dense "
                "tensors on the CPU; create it in `build`, or move it to the CPU first"
            )
        with torch.inference_mode(False), torch.no_grad():
            flat = self.bytes_of(x)
            whole = flat.numel() // x.element_size() * x.element_size()
            fake = flat[:whole].view(x.dtype).as_strided(x.shape, x.stride(), x.storage_offset())
            return fake.conj() if x.is_conj() else fake

    def existing(self, x: Tensor) -> Tensor | None:
        """Fake tensor of a real one if its storage already has a fake one; else None."""
        dense = type(x) is not FakeTensor and x.layout is torch.strided
        return self.of(x) if dense and x.untyped_storage()._cdata in self._storages else None

    def take(self, x: Tensor) -> Tensor:
        """Fake tensor of a real one, to which this object keeps no reference, so that the code can free it."""
        fake = self.of(x)
        self._storages.pop(x.untyped_storage()._cdata, None)
        return fake

    def convert(self, p: nn.Parameter, converted: Tensor) -> nn.Parameter:
        """Return a fake parameter that replaces a real one; the real one stays unchanged and is restored later."""
        self.take(p)
        self._converted[id(p)] = nn.Parameter(converted, p.requires_grad)
        weakref.finalize(p, self._converted.pop, id(p), None).atexit = False
        return self._converted[id(p)]

    def converted(self, p: Any) -> Any:
        """The fake parameter that replaced p, which all modules that share p receive; p itself if there is none."""
        return self._converted.get(id(p), p)

    def replace_in(self, optimizer: Optimizer) -> None:
        """Replace the parameters of an optimizer that was created before its network was converted."""
        if not self._converted:
            return
        for group in optimizer.param_groups:
            group["params"] = [self.converted(p) for p in group["params"]]
        for p in [p for p in optimizer.state if id(p) in self._converted]:
            optimizer.state[self._converted[id(p)]] = optimizer.state.pop(p)

    def bytes_of(self, x: Tensor) -> Tensor:
        """Fake tensor of type uint8 that covers the whole storage of x."""
        storage = x.untyped_storage()
        address = storage._cdata
        if address not in self._storages:
            with self._mode:
                self._storages[address] = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cpu")
            weakref.finalize(storage, self._storages.pop, address, None).atexit = False
        return self._storages[address]


def run_fake(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator on fake tensors, and correct the result where a real kernel gives another one.

    Raises:
        PredictionError: the result is sparse.
    """
    try:
        out = _RESULTS.get(op, op)(*args, **kwargs)
    except DataDependentOutputException:
        return placeholder(op, args)
    except RuntimeError:
        if op is aten._local_scalar_dense.default:
            return placeholder(op, args)
        raise
    if any(isinstance(x, Tensor) and x.layout is not torch.strided for x in tree_iter(out)):
        raise PredictionError(
            f"{op} returns a sparse tensor, whose size depends on data; use a dense tensor, or measure the code"
        )
    return _as_real_kernel(op, args, out)


def run_as_cpu(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator as :func:`run_fake` does, and also apply the corrections for CPU kernels."""
    out = run_fake(op, args, kwargs)
    transposed = op is aten.convolution.default and out.dim() == 5 and args[6]
    return _resized_from(args[0], out) if transposed and convolution_backend(args) == "SlowTranspose3d" else out


def _group_norm(
    x: Tensor, weight: Tensor | None, _: Tensor | None, batch: int, channels: int, voxels: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    affine = x if weight is None else weight
    mean, rstd = (x.new_empty(batch, groups, dtype=affine.dtype) for _ in range(2))
    return torch.empty_like(x, memory_format=suggest_memory_format(x)), mean, rstd


def _group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    batch: int,
    channels: int,
    voxels: int,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    affine = x if weight is None else weight
    of_x = torch.empty_like(x, memory_format=suggest_memory_format(x))
    made = (of_x, *(x.new_empty(channels, dtype=affine.dtype) for _ in range(2)))
    return tuple(each if want else None for each, want in zip(made, wanted, strict=True))


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    if (grad.shape, grad.stride(), grad.dtype) != (x.shape, x.stride(), x.dtype):
        return aten.silu_backward.default(grad, x)
    return torch.empty_like(x)


# Results that are created directly (ATen/native/group_norm.cpp, Activation.cpp). PyTorch's fake versions run up to
# thirty operators each, which takes a fifth of a prediction's time. The fake group norm also differs from the real one:
# in dtype, if input and parameters differ in dtype; in strides, for one sample with its channels innermost. Fake
# recurrent layers save nothing for backward.
_RESULTS: Mapping[Any, Callable[..., Any]] = {
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.silu_backward.default: _silu_backward,
    aten.mkldnn_rnn_layer.default: recurrent_rules.mkldnn_layer,
    aten.mkldnn_rnn_layer_backward.default: recurrent_rules.mkldnn_layer_backward,
    recurrent_rules.FORWARD: recurrent_rules.cudnn,
    recurrent_rules.BACKWARD: recurrent_rules.cudnn_backward,
}


# Losses whose mean or sum keeps the storage of the unreduced loss, so that the output's storage is as large as the
# inputs (ATen/native/BinaryOps.cpp, Loss.cpp and cuda/Loss.cu).
_LOSSES = (
    aten.mse_loss.default,
    aten.smooth_l1_loss.default,
    aten.soft_margin_loss.default,
    aten.binary_cross_entropy.default,
)


# Kernels that allocate their output with the size of the input and then resize it, which does not shrink its storage
# (ATen/native/Im2Col.cpp, Col2Im.cpp and their CUDA versions; NaiveConvolutionTranspose3d.cpp).
_RESIZED = (aten.im2col.default, aten.col2im.default)


def _as_real_kernel(op: Any, args: Sequence[Any], out: Any) -> Any:
    """Correct the result of a fake kernel whose storage has another size than that of the real kernel."""
    if op in _LOSSES and out.dim() == 0:
        return out.new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape)).resize_(())
    if op in _RESIZED:
        return _resized_from(args[0], out)
    return out


def _resized_from(x: Tensor, out: Tensor) -> Tensor:
    """A result that is allocated with the size of the input and then resized."""
    return out if x.numel() <= out.numel() else x.new_empty(x.shape, dtype=out.dtype).resize_(out.shape)


def fake_patches(fakes: FakeStorages, known_values: KnownValues) -> Iterator[Any]:
    """Patches that hide differences between fake and real tensors from the code."""

    def apply_to_module(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before, fakes.converting = fakes.converting, True
        try:
            for child in module.children() if recurse else ():
                child._apply(convert)
            _convert(module, convert, fakes)
        finally:
            fakes.converting = before
        return module

    yield mock.patch.object(FakeTensor, "__deepcopy__", _deepcopy)
    # The original copies storages, which no dispatch mode sees.
    yield mock.patch.object(Tensor, "__deepcopy__", _deepcopy)
    # Code that deep-copies the attributes of a tensor, such as MONAI, would copy the mode too.
    yield mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, create=True)
    yield from number_patches()
    yield from _value_patches(fakes, known_values)
    yield mock.patch.object(FakeTensor, "__format__", _format)
    yield mock.patch.object(nn.Module, "_apply", apply_to_module)
    yield mock.patch.object(F, "one_hot", _one_hot)
    yield mock.patch.object(Tensor, "as_subclass", _as_subclass)
    yield mock.patch.object(GradScaler, "_maybe_opt_step", _finite_step)


def _value_patches(fakes: FakeStorages, known_values: KnownValues) -> Iterator[Any]:
    """Patches of the functions that read values of fake tensors; numbers that depend on data are marked."""
    real_item, real_int, real_bool = Tensor.item, Tensor.__int__, Tensor.__bool__
    real_list, real_numpy = Tensor.tolist, Tensor.numpy

    def to_numpy(x: Tensor, *, force: bool = False) -> Any:
        array = known_values.read(x, real_numpy, "array")
        return array if known_values.is_known(x) else marked_array(array)

    def to_list(x: Tensor) -> Any:
        value = known_values.read(x, real_list, "list")
        return value if known_values.is_known(x) else marked(value)

    def to_item(x: Tensor) -> Any:
        value = real_item(x)
        return value if known_values.is_known(x) else marked(value)

    def to_int(x: Tensor) -> int:
        if x.numel() == 1 and x.dtype is not torch.bool and not known_values.is_known(x):
            raise size_error("int()")
        return real_int(x)

    def to_bool(x: Tensor) -> bool:
        with known_values.reading("branch"):
            return real_bool(x)

    def real_to_list(x: Tensor) -> Any:
        fake = fakes.existing(x)
        return to_list(fake) if fake is not None and known_values.follows(fake) else real_list(x)

    yield mock.patch.object(FakeTensor, "item", to_item)
    yield mock.patch.object(FakeTensor, "__bool__", to_bool)
    yield mock.patch.object(FakeTensor, "__int__", to_int)
    yield mock.patch.object(FakeTensor, "__index__", to_int)
    yield mock.patch.object(Tensor, "tolist", real_to_list)
    yield mock.patch.object(FakeTensor, "numpy", to_numpy)
    yield mock.patch.object(FakeTensor, "tolist", to_list)


class _FakeSubclass(FakeTensor):
    """A fake tensor of a subclass defined by the user: operators return the same class, as for real tensors."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__dict__":  # code assigns the attributes of another tensor, possibly a real one
            value = {**value, **{name: each for name, each in vars(self).items() if name in _FAKE_ATTRIBUTES}}
        super().__setattr__(name, value)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return Tensor.__torch_function__.__func__(cls, function, types, args, kwargs)  # type: ignore[attr-defined]


@cache
def _fake_subclass(kind: type[Tensor]) -> type[Tensor]:
    return kind if issubclass(kind, FakeTensor) else type(kind.__name__, (kind, _FakeSubclass), {})


def _as_subclass(x: Tensor, kind: type[Tensor]) -> Tensor:
    """Alias of a tensor in a user's subclass, such as one with metadata; PyTorch can alias plain tensors only."""
    with torch._C.DisableTorchFunctionSubclass():
        alias: Tensor = aten.alias.default(x)
    if type(alias) is not FakeTensor:  # real data of a data loader
        return _REAL_SUBCLASS(x, kind)
    if kind is not Tensor:
        alias.__class__ = _fake_subclass(kind)  # type: ignore[assignment]
    return alias


@contextmanager
def without_class(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Make the tensors plain fake tensors within the block: PyTorch's fake kernels call methods of their arguments."""
    classes = [(x, type(x)) for x in tensors if isinstance(x, _FakeSubclass)]
    for x, _ in classes:
        x.__class__ = FakeTensor  # type: ignore[assignment]
    try:
        yield
    finally:
        for x, kind in classes:
            x.__class__ = kind


def as_class_of(x: Tensor, real: Tensor) -> Tensor:
    """Give a real tensor the user's class and the attributes of a fake one."""
    if not isinstance(x, _FakeSubclass):
        return real
    result: Tensor = _REAL_SUBCLASS(real, type(x).__mro__[1])
    vars(result).update({name: value for name, value in vars(x).items() if name not in _FAKE_ATTRIBUTES})
    return result


_REAL_SUBCLASS = Tensor.as_subclass
with FakeTensorMode():
    _FAKE_ATTRIBUTES = frozenset(vars(torch.empty(0)))  # the attributes of every fake tensor


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """One-hot encoding as for real tensors; for fake ones, PyTorch compares with every class and uses more memory."""
    classes = int(x.max()) + 1 if num_classes < 0 else num_classes
    return x.new_zeros(*x.shape, classes).scatter_(-1, x.unsqueeze(-1), 1)


@torch.no_grad()
def _convert(module: nn.Module, convert: Callable[[Tensor], Tensor], fakes: FakeStorages) -> None:
    """Convert a module's own tensors; ``Module._apply`` would swap them, which fails if weak references exist."""
    for name, held in module._parameters.items():
        module._parameters[name] = p = fakes.converted(held)
        if p is None or (converted := convert(p)) is p:
            continue
        gradient = None if p.grad is None else convert(p.grad)
        if fakes.is_real(p):
            module._parameters[name] = p = fakes.convert(p, converted)
        elif not torch._has_compatible_shallow_copy_type(p, converted):  # from the meta device
            module._parameters[name] = p = nn.Parameter(converted, p.requires_grad)
        else:
            p.grad, p.data = None, converted
        p.grad = gradient
    for name, buffer in module._buffers.items():
        if buffer is not None and (converted := convert(buffer)) is not buffer:
            module._buffers[name] = converted
            if fakes.is_real(buffer):
                fakes.take(buffer)


@torch.no_grad()
def _deepcopy(x: Tensor, memo: dict[int, Any]) -> Tensor:
    """Copy a tensor with one clone; the attributes of a fake tensor contain the mode, which must not be copied."""
    if id(x) not in memo:
        copied = x.clone()
        memo[id(x)] = nn.Parameter(copied) if isinstance(x, nn.Parameter) else copied
    result: Tensor = memo[id(x)]
    return result.requires_grad_(x.requires_grad)


def _format(x: FakeTensor, spec: str) -> str:
    return format(x.item(), spec) if x.dim() == 0 else object.__format__(x, spec)


def _finite_step(scaler: GradScaler, optimizer: Optimizer, _: Any, *args: Any, **kwargs: Any) -> float | None:
    """Run the optimizer step; all gradients count as finite."""
    return optimizer.step(*args, **kwargs)
