"""Records the allocation and release of every storage in any PyTorch code, with real or fake tensors.

A :class:`Trace` intercepts every call of a PyTorch kernel and follows the storages of its inputs and outputs. It holds
no reference to a tensor, and it undoes its changes to tensors and modules that existed before.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._library.custom_ops import OPDEFS
from torch._ops import HigherOrderOperator
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    is_traceable_wrapper_subclass,
    is_traceable_wrapper_subclass_type,
)
from torch.utils._pytree import tree_iter

from ppdm_bench.predictor import recurrent_rules
from ppdm_bench.predictor.allocator import rounded
from ppdm_bench.predictor.convolution_rules import COLUMNS, Moment, convolution_layout
from ppdm_bench.predictor.cuda_composites import has_cuda_decomposition
from ppdm_bench.predictor.distributed import run_collective
from ppdm_bench.predictor.fake_op_cache import FakeOpCache
from ppdm_bench.predictor.fake_storage import FakeStorages, fake_patches, run_as_cpu, run_fake, without_class
from ppdm_bench.predictor.host_kernels import host_buffers
from ppdm_bench.predictor.kernel_rules import CublasWorkspaces, kernel_buffers
from ppdm_bench.predictor.kernels import KernelWork, kernels_of
from ppdm_bench.predictor.known_values import KnownValues
from ppdm_bench.predictor.modules import Modules, Site
from ppdm_bench.predictor.operator_traits import tensors_in
from ppdm_bench.predictor.sizes import PredictionError, SizeGuard
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timeline import Place, Timeline

aten = torch.ops.aten

_DEVICE = torch.ops.prim.device.default
_FAKE = {FakeTensor}


@contextmanager
def tracing(
    fake: FakeTensorMode | None = None,
    target: Target | None = None,
    limit: int | None = None,
    modules: Modules | None = None,
    home: Place = "target",
    kernels: list[KernelWork] | None = None,
) -> Iterator["Trace"]:
    """Follow storages until the end of the block; the arguments are those of :class:`Trace`."""
    trace = Trace(fake, target, limit, modules, home, kernels)
    with trace.undo:
        # Run compiled modules and optimizer steps uncompiled: a dispatch mode does not see compiled kernels, and the
        # compiler needs the device.
        trace.undo.enter_context(torch.compiler.set_stance("force_eager"))
        if modules:
            trace.undo.enter_context(modules.followed())
        for hook in (
            register_optimizer_step_pre_hook(trace.before_optimizer),
            register_optimizer_step_post_hook(trace.after_optimizer),
        ):
            trace.undo.callback(hook.remove)
        if trace.fakes and trace.known_values:
            for patch in fake_patches(trace.fakes, trace.known_values):
                trace.undo.enter_context(patch)
            trace.undo.enter_context(SizeGuard(trace.known_values.is_known))
        trace.undo.callback(trace._watched.clear)
        with trace:
            yield trace


class Trace(TorchDispatchMode):
    """Dispatch mode that follows storages while it is active.

    Args:
        fake: the active mode that creates fake tensors; None follows real tensors.
        target: the target whose CUDA rules are applied; None applies no rules.
        limit: maximum bytes of live tensors; an operator that exceeds it raises ``torch.OutOfMemoryError``. None means
            no limit.
        modules: records the running module, so that every storage is attributed to one; None attributes none.
        home: place of a tensor that the code creates without a device: ``target`` for functions, which usually name no
            device, ``host`` for a whole program.
        kernels: list to which the work of every kernel is appended, if given.
    """

    def __init__(
        self,
        fake: FakeTensorMode | None = None,
        target: Target | None = None,
        limit: int | None = None,
        modules: Modules | None = None,
        home: Place = "target",
        kernels: list[KernelWork] | None = None,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.prefetched = 0  # upper bound of the bytes of batches that the workers of a data loader prefetch
        self.waiting: list[tuple[int, int]] = []  # in a measurement: (event, prefetched bytes from this event on)
        self.timeline = Timeline()
        self.home = home if target else "target"
        self.limit = limit
        self.target = target
        self._modules = modules
        self.inside = False  # whether PyTorch's own code runs; it must see the real devices
        self.fakes = FakeStorages(fake) if fake else None
        self.known_values = KnownValues(fake) if fake else None
        self._fake_run = FakeOpCache(fake, run_fake if target else run_as_cpu) if fake else None
        self._cublas = CublasWorkspaces(target) if target else None
        self._numbers: dict[int, int] = {}  # address of a storage -> number of its block
        self._watched: dict[int, weakref.ref] = {}  # address of a storage -> reference that reports its end
        self._placed: Place | None = None  # place of new blocks, if the code names it
        self._same_place: dict[int, set[int]] = {}  # block of unknown place -> all blocks that share its place
        self._in_optimizer = False
        self._real: bool | None = None  # None: fake tensors; True: real tensors, followed; False: not followed
        self._thread = get_ident()
        self.undo = ExitStack()

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would make PyTorch disable the compiler around every call, which takes 10 % of the time

    # --- every operator

    def __torch_dispatch__(
        self, op: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if op is _DEVICE and type(args[0]) is FakeTensor:
            return args[0].fake_device  # fast path: PyTorch queries the device for every operator
        kwargs = dict(kwargs or {})
        if self.inside or op is _DEVICE:
            return op(*args, **kwargs)
        if isinstance(op, HigherOrderOperator):
            return self._run_parts(op, args, kwargs)
        if any(map(_is_wrapper_type, types)):
            return NotImplemented  # the wrapper tensor then calls operators on its parts, and this mode sees those
        if torch.is_inference_mode_enabled() and _is_composite(op):
            with self:  # in inference mode, composite operators arrive before their decomposition
                # Call the kernel instead of `decompose`, which may use the Python decompositions written for compilers.
                key = "CPU" if self.target and has_cuda_decomposition(op) else "CompositeImplicitAutograd"
                return op._op_dk(getattr(DispatchKey, key), *args, **kwargs)
        if (body := _python_body(op)) is not None:
            with self:
                return body(*args, **kwargs)
        if self._real is not None and not any(issubclass(kind, FakeTensor) for kind in types):
            return self._run_real(op, args, kwargs)
        if self.fakes and op.namespace == "c10d":
            with self:
                return run_collective(op, args)
        backward = torch._C._current_graph_task_id() != -1
        if self._modules:
            self.timeline.enter_site(self._modules.site(backward, self._in_optimizer))
        # `torch.tensor(...)`: the argument holds the value and is not followed.
        is_value = op is aten.lift_fresh.default
        seen: list[Tensor] = []
        if not is_value:
            args, kwargs = self._registered(tuple(args), seen), self._registered(kwargs, seen)
        place = self._placed
        if is_value and self.target and self.home == "target":
            place = place or "unknown"  # as data that existed before
        if self.fakes and (device := kwargs.get("device")) is not None and device.type == "cuda":
            # A Python function of PyTorch passed the simulated device of its input on.
            kwargs, place = dict(kwargs, device=torch.device("cpu")), place or "target"
        out = self._run(op, args, kwargs, seen)
        self._record(op, args, kwargs, out, seen, place or self._unify_places(seen), backward)
        self._check_limit()
        return out

    def _record(
        self,
        op: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: Any,
        seen: Sequence[Tensor],
        place: Place,
        backward: bool,
    ) -> None:
        """Record the results of an operator at a place, its temporary buffers, and the work of its kernels."""
        # Whether the code moves data from the host to the target.
        moved_to_target = self._placed == "target" and all(self.place(x) == "host" for x in seen)
        kind = "activations" if backward or (seen and not moved_to_target) else "inputs"
        if self._in_optimizer:
            kind = "workspace"
        results = tensors_in(out)
        for x in results:
            self._follow(x, kind, str(op), place)
        if place == "unknown":
            self._unify_places([*seen, *results])
        if op is recurrent_rules.FORWARD and (number := self._number(out[3])) is not None:
            self.timeline.blocks[number].basis = "assumed"
        if place != "host":
            moments = self._apply_rules(op, args, out, backward)
            if self.kernels is not None:
                site = self.timeline.sites[-1][1] if self._modules and self.timeline.sites else None
                kernels = kernels_of(op, args, kwargs, out, moments)
                self.kernels.extend(replace(kernel, site=site) for kernel in kernels)

    def _run_parts(self, op: HigherOrderOperator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a higher-order operator, such as flex attention, by its uncompiled implementation."""
        kernel = op.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
        if kernel is None:
            raise PredictionError(f"{op} has no uncompiled implementation, and compiled code cannot be followed")
        with self:
            return kernel(*args, **kwargs)

    def _check_limit(self) -> None:
        """Raise if the live bytes exceeded the limit since the last check."""
        most, self.timeline.most = self.timeline.most, 0
        if self.limit is not None and most > self.limit:
            raise torch.OutOfMemoryError(
                f"out of memory: {most:,} bytes of tensors are live, and the limit is {self.limit:,}"
            )

    def _run(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], seen: Sequence[Tensor]) -> Any:
        with self.inside_pytorch(), nullcontext() if {*map(type, seen)} <= _FAKE else without_class(seen):
            if not (self.known_values and self._fake_run):
                return op(*args, **kwargs)
            out = self.known_values.run(op, args, kwargs, seen, self._fake_run)
            layout = convolution_layout(op, args, out) if self.target else None
            return out if layout is None else _laid_out(out, layout)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the calling thread is not that of the prediction; modes apply to one thread only."""
        return get_ident() != self._thread

    @contextmanager
    def on_real_tensors(self, *, followed: bool = True) -> Iterator[None]:
        """Compute with real tensors within the block; ``followed``: whether their storages are recorded."""
        before = self._real
        if self.fakes and not self.is_elsewhere:
            self._real = followed
        try:
            yield
        finally:
            self._real = before

    def _run_real(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with self.paused():
            out = op(*args, **kwargs)
        if self._real:
            for x in tensors_in(args):
                self.loaded(x, None)
            for x in tensors_in(out):
                self.loaded(x, self._placed if self.is_new(x) else None)
            # Moving a batch reveals the place of its data set.
            self._unify_places(tensors_in(args) + tensors_in(out))
        if self.known_values:
            self.known_values.clear_arguments()
        return out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Suspend the prediction within the block: calls run on real tensors, and nothing is recorded."""
        with self.inside_pytorch(), _disable_current_modes():
            yield

    def inside_pytorch(self) -> "_Inside":
        """Mark within the block that PyTorch's own code runs, not the user's."""
        return _Inside(self)

    def _apply_rules(self, op: Any, args: Sequence[Any], out: Any, backward: bool) -> list[Moment]:
        """Record and return the temporary buffers of a kernel."""
        if self.target is None or self._cublas is None:
            if self.fakes:
                self._apply_host_rules(op, args, out)
            return []
        moments = list(kernel_buffers(self.target, op, args, out))
        through_columns = any(buffer.name == COLUMNS for moment in moments for buffer in moment)
        if size := self._cublas.taken_by(op, through_columns, backward):
            self.timeline.allocate(size, "workspace", "cuBLAS")
        for moment in moments:
            for number in [self.timeline.allocate(b.size, "workspace", b.name, basis=b.basis) for b in moment]:
                self.timeline.free(number)
        return moments

    def _apply_host_rules(self, op: Any, args: Sequence[Any], out: Any) -> None:
        """Record temporary buffers of CPU kernels as on the host, so that the peak of tensors excludes them."""
        with self.inside_pytorch():
            size = host_buffers(op, args, out)
        if size:
            self.timeline.free(self.timeline.allocate(size, "workspace", str(op), "host"))

    # --- storages

    def _registered(self, value: Any, seen: list[Tensor]) -> Any:
        """Register the tensors in an operator's arguments, append them to `seen`, and return the new arguments."""
        if isinstance(value, Tensor):
            seen.append(self._register(value))
            return seen[-1]
        kind = type(value)
        if kind is dict:
            return {name: self._registered(each, seen) for name, each in value.items()}
        if kind is tuple or kind is list:
            return kind([self._registered(each, seen) for each in value])
        return value

    def _register(self, x: Tensor) -> Tensor:
        """Follow a tensor that the trace did not see created; in a prediction, return the fake tensor of a real one."""
        if type(x) is not FakeTensor and is_wrapper(x):
            self._register_parts(x)
            return x
        fake = x
        place = self.home
        if self.fakes and self.fakes.is_real(x):
            with self.inside_pytorch():
                fake = self.fakes.of(x)
            if self.known_values:
                self.known_values.add_argument(fake, x)
            if not x.requires_grad and self.target and self.home == "target":
                place = "unknown"  # data: the code may move it to the target later, or use it where it is
        is_parameter = isinstance(x, nn.Parameter)
        self._follow(fake, "params" if is_parameter else "inputs", "existed before", place)
        if is_parameter:
            self._mark(fake, "params", x)
        if x.requires_grad and x.is_leaf:
            self._watch_gradient(x)
        return fake

    def _register_parts(self, x: Tensor) -> None:
        """Follow the tensors that a wrapper tensor consists of; they have the kind of the wrapper."""
        for part in plain(x):
            entered = self._register(part)
            if isinstance(x, nn.Parameter):
                self._mark(entered, "params", x)
        if x.requires_grad and x.is_leaf:
            self._watch_gradient(x)

    def _follow(self, x: Tensor, kind: str, name: str, place: Place) -> None:
        storage = _storage(x)
        if storage is None or (self.fakes is None and isinstance(x, FakeTensor)):  # PyTorch uses these to infer shapes
            return
        address, size = storage._cdata, storage.nbytes()
        if address in self._numbers:
            block = self.timeline.blocks[self._numbers[address]]
            if block.size == rounded(size):
                return
            self._free(address)  # it was resized in place
            place = block.place
        elif size and _is_on_meta(x):
            return
        if size:
            number = self._numbers[address] = self.timeline.allocate(size, kind, name, place)
            block = self.timeline.blocks[number]
            block.shape, block.dtype = tuple(x.shape), str(x.dtype).removeprefix("torch.")
            if place == "unknown":
                self._same_place[number] = {number}
        if address not in self._watched:
            self._watched[address] = weakref.ref(storage, lambda _: self._storage_freed(address))

    def _storage_freed(self, address: int) -> None:
        self._watched.pop(address, None)
        if self.known_values:
            self.known_values.forget(address)
        if address in self._numbers:
            self._free(address)

    def _free(self, address: int) -> None:
        self.timeline.free(self._numbers.pop(address))

    def _mark(self, x: Tensor, kind: str, parameter: Tensor | None = None) -> None:
        """Set the kind of a storage and the parameter that it belongs to, also for the time before this call."""
        if (number := self._number(x)) is None:
            return
        block = self.timeline.blocks[number]
        block.kind = kind
        if self._modules and parameter is not None and (name := self._modules.owner(parameter)):
            block.site = Site(block.site.stage if block.site else "forward", name)

    def _number(self, x: Tensor) -> int | None:
        storage = _storage(self.fakes.bytes_of(x) if self.fakes and self.fakes.is_real(x) else x)
        return None if storage is None else self._numbers.get(storage._cdata)

    # --- places, for code that names devices

    def place(self, x: Tensor) -> Place:
        """Place of a tensor; ``unknown`` if it is not yet known."""
        number = self._number(x)
        if self._real is False:  # worker processes of a data loader do not use the device
            return "host"
        if self._real and self.fakes and self.fakes.is_real(x):  # data of a loader, unless moved
            return "target" if number is not None and self.timeline.blocks[number].place == "target" else "host"
        return self.home if number is None else self.timeline.blocks[number].place

    def came_from_host(self, x: Tensor) -> None:
        """Record a move to the target: a tensor whose place was unknown was on the host."""
        if (number := self._number(self._register(x))) is not None:
            self._set_place(number, "host")

    def is_new(self, x: Tensor) -> bool:
        """Whether the trace does not follow a tensor yet."""
        return self._number(x) is None

    def moved(self, x: Tensor, place: Place) -> None:
        """Record that a real module was moved: its real tensor stays, and only its fake storage changes place."""
        if self.fakes is None:
            return
        if self.place(x) != place and (number := self._number(x)) is not None:
            self._set_place(number, "host")
            self._free(self.fakes.bytes_of(x).untyped_storage()._cdata)
        with self.inside_pytorch():
            fake = self.fakes.of(x)
        self._follow(fake, "params", "existed before", place)
        self._register(x)  # also follows its gradient

    def loaded(self, x: Tensor, place: Place | None) -> None:
        """Follow a real tensor from a file or a worker; ``place`` is None if the code named no device."""
        if self.fakes is None or x.layout is not torch.strided or x.untyped_storage().device.type != "cpu":
            return
        if place is not None and self.target:
            with self.inside_pytorch():
                fake = self.fakes.of(x)
            self._follow(fake, "inputs", "existed before", place)
        self._register(x)

    @contextmanager
    def placing(self, place: Place) -> Iterator[None]:
        """Set the place of storages that are allocated within the ``with`` block."""
        before, self._placed = self._placed, place
        try:
            yield
        finally:
            self._placed = before

    def _unify_places(self, tensors: Sequence[Tensor]) -> Place:
        """Return the common place of an operator's tensors, and give it to those whose place was unknown."""
        numbers = [number for x in tensors if (number := self._number(x)) is not None]
        places = {self.timeline.blocks[number].place for number in numbers}
        if not places:
            return self.home
        if places == {"target"}:
            return "target"
        if places == {"unknown"}:
            self._link(numbers)
            return "unknown"
        place: Place = "target" if "target" in places else "host"
        for number in numbers:
            self._set_place(number, place)
        return place

    def _link(self, numbers: Sequence[int]) -> None:
        joined = set[int]().union(*(self._same_place[number] for number in numbers))
        self._same_place.update(dict.fromkeys(joined, joined))

    def _set_place(self, number: int, place: Place) -> None:
        for each in self._same_place.get(number, ()):
            self.timeline.blocks[each].place = place
            del self._same_place[each]

    # --- gradients and optimizers

    def _watch_gradient(self, x: Tensor) -> None:
        hooks = getattr(x, "_post_accumulate_grad_hooks", None) or {}
        if self._mark_gradient in hooks.values():
            return
        if x.grad is not None and self.fakes and not is_wrapper(x.grad) and self.fakes.is_real(x.grad):
            with self.inside_pytorch():
                x.grad = self.fakes.take(x.grad)  # no other reference remains, so that the code can free it
        self._mark_gradient(x)
        self.undo.callback(x.register_post_accumulate_grad_hook(self._mark_gradient).remove)

    def _mark_gradient(self, x: Tensor) -> None:
        for part in () if x.grad is None else plain(x.grad):
            self._mark(self._register(part), "grads")

    def before_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Record the start of an optimizer step."""
        self._in_optimizer = True
        if self.fakes and isinstance(optimizer, torch.optim.LBFGS):
            raise PredictionError(
                "the number of inner iterations of L-BFGS and of stored directions depends on data; predict the code "
                "with another optimizer, or measure the code"
            )
        if self.fakes:
            self.fakes.replace_in(optimizer)
        with torch._C.DisableTorchFunction():  # the function modes would look at every attribute that is read here
            for group in optimizer.param_groups:
                for p in group["params"]:
                    self._register(p)

    def after_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Record the end of an optimizer step, and mark the tensors in its state as ``optimizer``."""
        self._in_optimizer = False
        with torch._C.DisableTorchFunction():
            for parameter, state in optimizer.state.items():
                for x in tree_iter(dict(state)):
                    for part in plain(x) if isinstance(x, Tensor) else ():
                        self._mark(self._register(part), "optimizer", parameter)


class _Inside:
    """Context of :meth:`Trace.inside_pytorch`; every operator enters it, and a generator takes three times as long."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._elsewhere = trace.is_elsewhere

    def __enter__(self) -> None:
        if not self._elsewhere:
            self._before, self._trace.inside = self._trace.inside, True

    def __exit__(self, *_: object) -> None:
        if not self._elsewhere:
            self._trace.inside = self._before


def _is_wrapper_type(kind: type) -> bool:
    return kind is not FakeTensor and bool(is_traceable_wrapper_subclass_type(kind))


def is_wrapper(x: Any) -> bool:
    """Whether a tensor wraps other tensors and has no storage of its own, such as a quantised one."""
    return bool(is_traceable_wrapper_subclass(x))


def plain(x: Any) -> Iterator[Tensor]:
    """The tensors that a wrapper tensor consists of; for another tensor, the tensor itself."""
    if not is_wrapper(x):
        yield x
        return
    for name in x.__tensor_flatten__()[0]:
        if isinstance(part := getattr(x, name), Tensor):  # other parts, such as the mesh of a DTensor, are no tensors
            yield from plain(part)


def _laid_out(out: Any, layout: torch.memory_format) -> Any:
    """Convert a convolution's result, or its gradients except that of the bias, to CUDA's memory layout."""
    if isinstance(out, tuple):
        return (*(None if x is None else _laid_out(x, layout) for x in out[:2]), *out[2:])
    if out.dim() < 4 or suggest_memory_format(out) is layout:
        return out
    return torch.empty_like(out, memory_format=layout)


@cache
def _python_body(op: Any) -> Callable[..., Any] | None:
    """The Python function of a custom operator without a fake implementation; its operators are followed instead."""
    definition: Any = OPDEFS.get(op._schema.name) if isinstance(op, torch._ops.OpOverload) else None
    return definition._init_fn if definition is not None and definition._abstract_fn is None else None


@cache
def _is_composite(op: Any) -> bool:
    """Whether an operator only calls other operators and PyTorch has no CPU kernel for it."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    own = has(op.name(), DispatchKey.CPU) and not has_cuda_decomposition(op)
    return has(op.name(), DispatchKey.CompositeImplicitAutograd) and not own


def _storage(x: Tensor) -> torch.UntypedStorage | None:
    """The storage of a strided tensor; None for other layouts, such as sparse ones."""
    return x.untyped_storage() if x.layout is torch.strided else None


def _is_on_meta(x: Tensor) -> bool:
    """Whether a tensor is on the meta device, where tensors have no memory."""
    return (x.fake_device if isinstance(x, FakeTensor) else x.device).type == "meta"
