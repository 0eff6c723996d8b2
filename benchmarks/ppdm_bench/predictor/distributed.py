"""Distributed training with one process, and data parallelism on one device, without communication libraries.

A group of one process has nothing to send. A prediction therefore uses PyTorch's fake process group for any backend
that the code names. The reducer of ``DistributedDataParallel`` runs unchanged, so that its buckets are recorded.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed
from torch.nn.parallel import _functions as parallel_functions
from torch.nn.parallel import comm
from torch.nn.parallel import distributed as ddp
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ppdm_bench.predictor.operator_traits import tensors_in
from ppdm_bench.predictor.sizes import PredictionError
from ppdm_bench.predictor.timeline import Place

if TYPE_CHECKING:
    from ppdm_bench.predictor.trace import Trace


def distributed_patches(trace: "Trace") -> Iterator[Any]:
    """Patches of ``torch.distributed`` and ``torch.nn.parallel``."""
    yield mock.patch.object(parallel_functions, "_streams", None)  # streams that PyTorch caches for later calls
    yield mock.patch.object(comm, "scatter", _scatter)
    if not distributed.is_available():
        return
    c10d: Any = distributed.distributed_c10d
    init = _init_process_group(c10d.init_process_group)
    for module in (distributed, c10d):
        yield mock.patch.object(module, "init_process_group", init)
        for name, stand_in in _OBJECTS.items():
            yield mock.patch.object(module, name, stand_in)
    yield mock.patch.object(ddp, "_verify_param_shape_across_processes", _nothing)
    yield from _reducer_patches(trace)
    yield _GroupsDestroyed()


def _reducer_patches(trace: "Trace") -> Iterator[Any]:
    """Patches that put the buckets of ``DistributedDataParallel`` where its parameters are."""
    bindings: Any = torch._C._distributed_c10d
    init, rebuild = bindings.Reducer.__init__, bindings.Reducer._rebuild_buckets
    places = WeakKeyDictionary[Any, Place]()

    def init_reducer(reducer: Any, parameters: Sequence[Tensor], *args: Any, **kwargs: Any) -> None:
        with trace.placing(trace.place(parameters[0])):
            init(reducer, parameters, *args, **kwargs)
        places[reducer] = trace.place(parameters[0])

    def rebuild_buckets(reducer: Any) -> bool:
        with _RealIndices(), trace.placing(places.get(reducer, trace.home)):
            return bool(rebuild(reducer))

    yield mock.patch.object(bindings.Reducer, "__init__", init_reducer)
    yield mock.patch.object(bindings.Reducer, "_rebuild_buckets", rebuild_buckets)


def _init_process_group(init: Callable[..., None]) -> Callable[..., None]:
    def init_process_group(
        backend: str | None = None,
        init_method: str | None = None,
        timeout: Any = None,
        world_size: int = -1,
        rank: int = -1,
        *_: Any,
        **__: Any,
    ) -> None:
        world = world_size if world_size > 0 else int(os.environ.get("WORLD_SIZE", 1))
        if world != 1:
            raise PredictionError(
                f"a prediction covers one process, and the code starts a group of {world}; predict it with one process "
                "(WORLD_SIZE=1), and divide by hand what is split between processes"
            )
        from torch.testing._internal.distributed.fake_pg import FakeStore

        init("fake", rank=0, world_size=1, store=FakeStore())
        state: Any = distributed.distributed_c10d._world
        group = distributed.group.WORLD
        state.pg_map[group] = (distributed.Backend(backend or "nccl"), state.pg_map[group][1])

    return init_process_group


def run_collective(op: Any, args: Sequence[Any]) -> Any:
    """Run a collective operator in a group of one process: copy each input to its result."""
    results, inputs = tensors_in(args[0]), tensors_in(args[1])
    for result, x in zip(results, inputs, strict=False):
        result.copy_(x)
    future = torch.futures.Future[list[Tensor]]()
    future.set_result(results)
    bindings: Any = torch._C._distributed_c10d
    work = bindings._create_work_from_future(future).boxed()
    return {0: None, 1: work, 2: (args[0], work)}[len(op._schema.returns)]


class _GroupsDestroyed:
    """Context manager that destroys the process groups created within it."""

    def __enter__(self) -> None:
        self._before = distributed.is_initialized()

    def __exit__(self, *_: object) -> None:
        if distributed.is_initialized() and not self._before:
            distributed.destroy_process_group()


class _RealIndices(TorchDispatchMode):
    """Creates real tensors for the indices of the reducer's buckets, because the reducer reads their memory."""

    def __torch_dispatch__(
        self, op: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.int32 or types == (Tensor,) or op.namespace == "c10d":
            with _disable_current_modes():
                return op(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # the reducer names the CPU, where all fake tensors are; the code did not
            return op(*args, **kwargs)


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _scatter(tensor: Tensor, devices: Any = None, *_: Any, out: Any = None, **__: Any) -> tuple[Tensor, ...]:
    """``scatter`` of ``DataParallel`` on one device: move the batch there."""
    if out is not None or len(devices) != 1:
        raise PredictionError(
            "a prediction covers one device, and the code scatters a tensor over several; use one device"
        )
    return (tensor.cuda(devices[0]),)


def _all_gather(objects: list[Any], value: Any, *_: Any, **__: Any) -> None:
    objects[0] = value


def _gather(value: Any, objects: list[Any] | None = None, *_: Any, **__: Any) -> None:
    if objects is not None:
        objects[0] = value


def _scatter_objects(results: list[Any], values: list[Any], *_: Any, **__: Any) -> None:
    results[0] = values[0]


# Replacements of functions that send pickled objects as tensors, whose sizes depend on data.
_OBJECTS: dict[str, Callable[..., None]] = {
    "all_gather_object": _all_gather,
    "gather_object": _gather,
    "scatter_object_list": _scatter_objects,
    "broadcast_object_list": _nothing,
}
