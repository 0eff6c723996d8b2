"""Tensors that code writes to files: checkpoints have the right names and sizes, with zeros for unknown values.

A fake tensor is pickled as a real one, so the files of ``torch.save``, pickle and safetensors are valid. Its storage is
an anonymous memory map without pages in memory, and ``torch.save`` writes a hole for it, so a checkpoint fills neither
memory nor disk.
"""

import importlib
import mmap
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from unittest import mock
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ppdm_bench.predictor.fake_storage import as_class_of
from ppdm_bench.predictor.trace import Trace


def saving_patches(trace: Trace) -> Iterator[Any]:
    """Patches of the functions that write tensors."""
    real_tensors = _RealTensors(trace)

    def reduce(x: FakeTensor, protocol: Any) -> Any:
        with trace.paused():
            return real_tensors.real(x).__reduce_ex__(protocol)

    yield mock.patch.object(FakeTensor, "__reduce_ex__", reduce)
    yield mock.patch.object(FakeTensor, "data_ptr", _address)
    save, rebuild = torch.serialization._save, torch._utils._rebuild_tensor

    def save_with_holes(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(value, _SparseWriter(file), *args, **kwargs)

    def rebuild_tensor(storage: Any, *args: Any) -> Tensor:
        if trace.inside or trace.is_elsewhere:
            return rebuild(storage, *args)
        with trace.paused():
            x: Tensor = rebuild(storage, *args)
        trace.loaded(x, None)
        return x

    set_state = torch.set_rng_state

    def set_rng_state(state: Tensor) -> None:
        with trace.paused():
            set_state(real_tensors.real(state))

    yield mock.patch.object(torch, "set_rng_state", set_rng_state)
    yield mock.patch.object(torch.random, "set_rng_state", set_rng_state)
    yield mock.patch.object(torch.serialization, "_save", save_with_holes)
    yield mock.patch.object(torch._utils, "_rebuild_tensor", rebuild_tensor)
    with suppress(ImportError):
        safetensors = importlib.import_module("safetensors.torch")
        # Code often imports `save_file` by name before the prediction, so the function that it calls is replaced, which
        # would read the memory at the simulated address of a tensor. Earlier versions call it `_tobytes`.
        for name in ("_to_ndarray", "_tobytes"):
            if content_of := getattr(safetensors, name, None):
                yield mock.patch.object(safetensors, name, real_tensors.reading(content_of))
        yield mock.patch.object(safetensors, "storage_ptr", lambda x: x.untyped_storage()._cdata)


class _RealTensors:
    """Creates real tensors to write in place of fake ones; tensors that share a storage still share one."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._storages = WeakValueDictionary[int, torch.UntypedStorage]()  # by address of the fake storage

    def reading(self, content_of: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that reads the content of one tensor."""

        def of_real(x: Tensor, *args: Any) -> Any:
            with self._trace.paused():
                return content_of(self.real(x), *args)

        return of_real

    def real(self, x: Tensor) -> Tensor:
        """Return a real tensor with the shape and strides of a fake one, and with its values if they are known."""
        if not isinstance(x, FakeTensor):
            return x
        address = x.untyped_storage()._cdata
        storage = self._storages.get(address)
        if storage is None:
            storage = self._storages[address] = _zeros(x.untyped_storage().nbytes())
        made = torch.empty(0, dtype=x.dtype).set_(storage, int(x.storage_offset()), x.shape, x.stride())
        values = self._trace.known_values.values(x) if self._trace.known_values else None
        if values is not None:
            made.copy_(values)
            storage.is_hole = False  # type: ignore[attr-defined]
        made = as_class_of(x, made)
        return (
            nn.Parameter(made, x.requires_grad) if isinstance(x, nn.Parameter) else made.requires_grad_(x.requires_grad)
        )


class _SparseWriter:
    """File writer of ``torch.save`` that writes holes for storages without known values."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write_record(self, name: str, content: Any, size: int) -> None:
        """Write one record of the file, or only its metadata for a hole."""
        if getattr(content, "is_hole", False):
            self._file.write_record_metadata(name, size)
        else:
            self._file.write_record(name, content, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _address(x: FakeTensor) -> int:
    """A simulated memory address: equal for tensors that start at the same position of one storage."""
    return int(x.untyped_storage()._cdata + x.storage_offset() * x.element_size())


def _zeros(size: int) -> torch.UntypedStorage:
    if not size:
        return torch.UntypedStorage(0)
    storage = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).untyped_storage()
    storage.is_hole = True  # type: ignore[attr-defined]
    return storage
