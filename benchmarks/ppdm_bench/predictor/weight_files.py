"""Weights that code reads from files with ``torch.load`` or safetensors: the files are really read.

The loaded tensors are real and stay on the CPU until the code releases them. If the code requests another device, their
fake tensors count as on that device.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn

from ppdm_bench.predictor.timeline import Place
from ppdm_bench.predictor.trace import Trace


def file_patches(trace: Trace) -> Iterator[Any]:
    """Patches of the functions that read files."""

    def loads(load: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(load)
        def read(file: Any, map_location: Any, *args: Any, **kwargs: Any) -> Any:
            if _device_types(map_location) == {"meta"}:
                return load(file, map_location, *args, **kwargs)
            with trace.paused():
                loaded = load(file, "cpu", *args, **kwargs)
            return _follow(trace, loaded, _device_types(map_location))

        return read

    original_asarray = torch.asarray

    def asarray(x: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(x, torch.UntypedStorage):
            return original_asarray(x, *args, **kwargs)
        with trace.paused():  # safetensors calls this if code imported its functions before the patch
            return original_asarray(x, *args, **kwargs)

    yield mock.patch.object(torch, "asarray", asarray)
    for name in ("_load", "_legacy_load"):
        yield mock.patch.object(torch.serialization, name, loads(getattr(torch.serialization, name)))
    with suppress(ImportError):
        files = importlib.import_module("safetensors.torch")

        class SafeFile(_SafeFile):
            followed, original = trace, files.safe_open

        view = files._view2torch

        def views(*args: Any, **kwargs: Any) -> Any:
            with trace.paused():
                loaded = view(*args, **kwargs)
            return _follow(trace, loaded, {"cpu"})

        yield mock.patch.object(files, "_view2torch", views)
        # Patch every module that imported it: the original writes to device addresses, which would crash the process.
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get("safe_open") is SafeFile.original:
                yield mock.patch.object(module, "safe_open", SafeFile)


class _SafeFile:
    """Replacement of ``safetensors.safe_open``, whose tensors no dispatch mode sees.

    Attributes:
        followed: the trace.
        original: the replaced class.
    """

    followed: Trace
    original: Callable[..., Any]

    def __init__(self, filename: Any, framework: str = "pt", device: Any = "cpu", **kwargs: Any) -> None:
        self._device_types = _device_types(device if not isinstance(device, int) else "cuda")
        self._file = type(self).original(filename, framework=framework, device="cpu", **kwargs)

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return self._followed(getattr(self._file, name))

    def _followed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.followed.paused():
                loaded = method(*args, **kwargs)
            if type(loaded).__name__ == "PySafeSlice":
                return _Slice(loaded, self._followed(loaded.__getitem__))
            return _follow(self.followed, loaded, self._device_types)

        return call


class _Slice:
    """A tensor in a file; code reads slices of it."""

    def __init__(self, part: Any, read: Callable[..., Any]) -> None:
        self.get_shape, self.get_dtype = part.get_shape, part.get_dtype
        self._read = read

    def __getitem__(self, index: Any) -> Any:
        return self._read(index)


def _device_types(location: Any) -> set[str]:
    """Device types that a location names; empty if it names none."""
    if isinstance(location, Mapping):
        return set().union(*(_device_types(each) for each in location.values()))
    return {torch.device(location).type} if isinstance(location, str | torch.device) else set()


def _follow(trace: Trace, loaded: Any, types: set[str]) -> Any:
    place: Place | None = "target" if "cuda" in types else "host" if types else None
    for x in _tensors(loaded, set()):
        trace.loaded(x, place)
    return loaded


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """All tensors in a loaded object."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.state_dict(keep_vars=True).values()
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each, seen)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _tensors(each, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _tensors(vars(value), seen)
