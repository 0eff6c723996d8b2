"""Records the allocation and release of every storage in any PyTorch code, with real or fake tensors.

A :class:`Trace` intercepts every call of a PyTorch kernel and follows the storages of its inputs and outputs. It keeps
no tensor alive that the code releases, and leaves no change on tensors and modules that existed before.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from ppdm_bench.predictor.constants import Constants, tensors_in
from ppdm_bench.predictor.convolution_rules import COLUMNS, Moment, convolution_layout
from ppdm_bench.predictor.cuda_composites import is_composed
from ppdm_bench.predictor.distributed import alone
from ppdm_bench.predictor.fake_op_cache import Recall
from ppdm_bench.predictor.fake_storage import Doubles, fake_patches, run_as_cpu, run_fake, without_class
from ppdm_bench.predictor.host_kernels import host_buffers
from ppdm_bench.predictor.kernel_rules import CublasWorkspaces, kernel_buffers
from ppdm_bench.predictor.kernels import Kernel, at_site, kernels_of
from ppdm_bench.predictor.modules import Modules, Site
from ppdm_bench.predictor.sizes import Guard, PredictionError
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timeline import Place, Timeline

aten = torch.ops.aten


@contextmanager
def tracing(
    fake: FakeTensorMode | None = None,
    target: Target | None = None,
    limit: int | None = None,
    modules: Modules | None = None,
    home: Place = "target",
    kernels: list[Kernel] | None = None,
) -> Iterator["Trace"]:
    """Follow storages until the end of the block; the arguments are those of :class:`Trace`."""
    trace = Trace(fake, target, limit, modules, home, kernels)
    with trace.undo:
        # Compiled code (a module or an optimiser's step) runs uncompiled: a dispatch mode does not see compiled
        # kernels, and the compiler would need the device.
        trace.undo.enter_context(torch.compiler.set_stance("force_eager"))
        if modules:
            trace.undo.enter_context(modules.followed())
        for hook in (
            register_optimizer_step_pre_hook(trace.before_optimizer),
            register_optimizer_step_post_hook(trace.after_optimizer),
        ):
            trace.undo.callback(hook.remove)
        if trace.doubles and trace.constants:
            for patch in fake_patches(trace.doubles, trace.constants):
                trace.undo.enter_context(patch)
            trace.undo.enter_context(Guard(trace.constants.knows))
        trace.undo.callback(trace.stop)
        with trace:
            yield trace


class Trace(TorchDispatchMode):
    """Dispatch mode that follows storages while it is active.

    Args:
        fake: the mode that creates tensors without memory, already entered; None follows real tensors.
        target: the target whose CUDA rules are applied; None applies no rules.
        limit: maximum bytes of live tensors; an operator that exceeds it raises ``torch.OutOfMemoryError``. None means
            no limit.
        modules: recorder of the running module, if every storage shall be attributed to a module.
        home: place of a tensor for which the code names no device: the target, for code that names none at all, or the
            host, as for a whole program.
        kernels: receives the work of every kernel, if given.
    """

    def __init__(
        self,
        fake: FakeTensorMode | None = None,
        target: Target | None = None,
        limit: int | None = None,
        modules: Modules | None = None,
        home: Place = "target",
        kernels: list[Kernel] | None = None,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.early = 0  # bytes of batches that the workers of a loader may send before their turn
        self.arrived: list[tuple[int, int]] = []  # in a measurement: (events so far, bytes of such batches then)
        self.timeline = Timeline()
        self.home = home if target else "target"
        self.limit = limit
        self.target = target
        self._modules = modules
        self.inside = False  # whether PyTorch's own code runs, which must see the real devices
        self.doubles = Doubles(fake) if fake else None
        self.constants = Constants(fake) if fake else None
        self._fake_run = Recall(fake, run_fake if target else run_as_cpu) if fake else None
        self._cublas = CublasWorkspaces(target) if target else None
        self._numbers: dict[int, int] = {}  # address of a storage -> number of its block
        self._deaths: dict[int, weakref.finalize] = {}
        self._placed: Place | None = None  # place of new blocks, if the code names it
        self._together: dict[int, set[int]] = {}  # block of unknown place -> all blocks that must have the same place
        self._in_optimizer = False
        self._earnest: bool | None = None  # whether real tensors are computed with, and whether they are followed
        self._thread = get_ident()
        self.undo = ExitStack()

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch wraps every call to disable the compiler, which takes a tenth of the time

    def stop(self) -> None:
        """Stop following storages."""
        for death in self._deaths.values():
            death.detach()

    # --- every operator

    def __torch_dispatch__(
        self, op: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if op is torch.ops.prim.device.default and type(args[0]) is FakeTensor:
            return args[0].fake_device  # a fast path, because PyTorch queries it for every operator
        if self.inside or op is torch.ops.prim.device.default:
            return op(*args, **kwargs)
        if isinstance(op, HigherOrderOperator):
            return self._run_parts(op, args, kwargs)
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented  # a wrapper tensor then calls operators on its parts, which this mode sees
        if torch.is_inference_mode_enabled() and _is_composite(op):
            with self:  # in inference mode composite operators arrive undecomposed, which would hide their parts
                # Calls the kernel and not `decompose`, which may use the Python decompositions made for compilers.
                key = "CPU" if self.target and is_composed(op) else "CompositeImplicitAutograd"
                return op._op_dk(getattr(DispatchKey, key), *args, **kwargs)
        if (body := _python_body(op)) is not None:
            with self:
                return body(*args, **kwargs)
        if self._earnest is not None and not any(issubclass(kind, FakeTensor) for kind in types):
            return self._run_in_earnest(op, args, kwargs)
        if self.doubles and op.namespace == "c10d":
            with self:
                return alone(op, args)
        backward = torch._C._current_graph_task_id() != -1
        if self._modules:
            self.timeline.reach(self._modules.site(backward, self._in_optimizer))
        made = op is aten.lift_fresh.default  # `torch.tensor(...)`: the argument is the value, not yet a tensor
        seen: list[Tensor] = []
        if not made:
            args, kwargs = self._entered(tuple(args), seen), self._entered(dict(kwargs), seen)
        place = self._placed
        if self.doubles and (device := kwargs.get("device")) is not None and device.type == "cuda":
            # One of PyTorch's Python functions passed on the simulated device of its input.
            kwargs, place = dict(kwargs, device=torch.device("cpu")), place or "target"
        out = self._run(op, args, kwargs, seen)
        place = place or self._meet(seen)
        came = self._placed == "target" and all(self.place(x) == "host" for x in seen)  # data that the code moves
        kind = "workspace" if self._in_optimizer else "activations" if backward or (seen and not came) else "inputs"
        results = list(tensors_in(out))
        for x in results:
            self._follow(x, kind, str(op), place)
        if place == "unknown":
            self._meet([*seen, *results])
        if op is recurrent_rules.FORWARD and (number := self._number(out[3])) is not None:
            self.timeline.blocks[number].basis = "assumed"
        if place != "host":
            moments = self._apply_rules(op, args, out, backward)
            if self.kernels is not None:
                site = self.timeline.sites[-1][1] if self._modules and self.timeline.sites else None
                self.kernels.extend(at_site(kernels_of(op, args, kwargs, out, moments), site))
        self._check_limit()
        return out

    def _run_parts(self, op: HigherOrderOperator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator that consists of calls, such as flex attention, as PyTorch runs it uncompiled."""
        kernel = op.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
        if kernel is None:
            raise PredictionError(
                f"{op} runs only compiled, and neither a prediction nor a measurement of tensors follows compiled code"
            )
        with self:
            return kernel(*args, **kwargs)

    def _check_limit(self) -> None:
        """Raise if the live bytes exceeded the limit since the last check."""
        most, self.timeline.most = self.timeline.most, 0
        if self.limit is not None and most > self.limit:
            raise torch.OutOfMemoryError(f"out of memory: {most:,} bytes of tensors were alive, {self.limit:,} may be")

    def _run(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], seen: Sequence[Tensor]) -> Any:
        with self.below(), without_class(seen):
            if not (self.constants and self._fake_run):
                return op(*args, **kwargs)
            out = self.constants.run(op, args, kwargs, seen, self._fake_run)
            layout = convolution_layout(op, args, out) if self.target else None
            return out if layout is None else _laid_out(out, layout)

    @property
    def is_elsewhere(self) -> bool:
        """Whether this thread is not the one of the prediction: no mode sees another thread."""
        return get_ident() != self._thread

    @contextmanager
    def in_earnest(self, *, apart: bool = False) -> Iterator[None]:
        """Compute with real tensors in the block; ``apart`` does not follow them."""
        before = self._earnest
        if self.doubles and not self.is_elsewhere:
            self._earnest = not apart
        try:
            yield
        finally:
            self._earnest = before

    def _run_in_earnest(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with self.real():
            out = op(*args, **kwargs)
        if self._earnest:
            for x in tensors_in(args):
                self.loaded(x, None)
            for x in tensors_in(out):
                self.loaded(x, self._placed if self.is_new(x) else None)
            self._meet([*tensors_in(args), *tensors_in(out)])  # a batch that is moved shows where its data set is
        if self.constants:
            self.constants.part()
        return out

    @contextmanager
    def real(self) -> Iterator[None]:
        """Leave the prediction in the block: calls run on real tensors, and nothing is followed."""
        with self.below(), _disable_current_modes():
            yield

    @contextmanager
    def below(self) -> Iterator[None]:
        """Mark that PyTorch's own code runs, and no user code."""
        if self.is_elsewhere:
            yield
            return
        before, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = before

    def _apply_rules(self, op: Any, args: Sequence[Any], out: Any, backward: bool) -> list[Moment]:
        """Record the temporary buffers of a kernel, and return them."""
        if self.target is None or self._cublas is None:
            if self.doubles:
                self._apply_host_rules(op, args, out)
            return []
        moments = list(kernel_buffers(self.target, op, args, out))
        through_columns = any(buffer.name == COLUMNS for moment in moments for buffer in moment)
        if size := self._cublas.taken_by(op, through_columns, backward):
            self.timeline.born(size, "workspace", "cuBLAS")
        for moment in moments:
            for number in [self.timeline.born(b.size, "workspace", b.name, basis=b.basis) for b in moment]:
                self.timeline.died(number)
        return moments

    def _apply_host_rules(self, op: Any, args: Sequence[Any], out: Any) -> None:
        """Record buffers of CPU kernels at the place ``host``: the peak of tensors does not count them."""
        with self.below():
            size = host_buffers(op, args, out)
        if size:
            self.timeline.died(self.timeline.born(size, "workspace", str(op), "host"))

    # --- storages

    def _entered(self, value: Any, seen: list[Tensor]) -> Any:
        """Enter every tensor in the arguments of an operator, and append it to `seen`."""
        if isinstance(value, Tensor):
            seen.append(self._enter(value))
            return seen[-1]
        if type(value) is dict:
            return {name: self._entered(each, seen) for name, each in value.items()}
        if type(value) is tuple or type(value) is list:
            return type(value)(self._entered(each, seen) for each in value)
        return value

    def _enter(self, x: Tensor) -> Tensor:
        """Follow a tensor that the trace has not seen created; with fake tensors, replace a real one by its double."""
        if is_wrapper(x):
            self._enter_parts(x)
            return x
        double = x
        place = self.home
        if self.doubles and self.doubles.lacks(x):
            with self.below():
                double = self.doubles.of(x)
            if self.constants:
                self.constants.meet(double, x)
            if not x.requires_grad and self.target and self.home == "target":
                place = "unknown"  # data, which the code may still move to the target or use where it is
        is_parameter = isinstance(x, nn.Parameter)
        self._follow(double, "params" if is_parameter else "inputs", "made before", place)
        if is_parameter:
            self._mark(double, "params", x)
        if x.requires_grad and x.is_leaf:
            self._watch_gradient(x)
        return double

    def _enter_parts(self, x: Tensor) -> None:
        """Follow the tensors that a wrapper consists of, which have the kind of the wrapper."""
        for part in plain(x):
            entered = self._enter(part)
            if isinstance(x, nn.Parameter):
                self._mark(entered, "params", x)
        if x.requires_grad and x.is_leaf:
            self._watch_gradient(x)

    def _follow(self, x: Tensor, kind: str, name: str, place: Place) -> None:
        storage = _storage(x)
        if storage is None or (self.doubles is None and isinstance(x, FakeTensor)):  # PyTorch infers shapes with them
            return
        address, size = storage._cdata, storage.nbytes()
        if address in self._numbers:
            block = self.timeline.blocks[self._numbers[address]]
            if block.size == rounded(size):
                return
            self._forget(address)  # it was resized in place
            place = block.place
        elif size and _is_on_meta(x):
            return
        if size:
            number = self._numbers[address] = self.timeline.born(size, kind, name, place)
            block = self.timeline.blocks[number]
            block.shape, block.dtype = tuple(x.shape), str(x.dtype).removeprefix("torch.")
            if place == "unknown":
                self._together[number] = {number}
        if address not in self._deaths:
            self._deaths[address] = weakref.finalize(storage, self._gone, address)

    def _gone(self, address: int) -> None:
        self._deaths.pop(address, None)
        if self.constants:
            self.constants.forget(address)
        if address in self._numbers:
            self._forget(address)

    def _forget(self, address: int) -> None:
        self.timeline.died(self._numbers.pop(address))

    def _mark(self, x: Tensor, kind: str, parameter: Tensor | None = None) -> None:
        """Set the kind of a storage, and the parameter it belongs to; both apply from its allocation on."""
        if (number := self._number(x)) is None:
            return
        block = self.timeline.blocks[number]
        block.kind = kind
        if self._modules and parameter is not None and (name := self._modules.owner(parameter)):
            block.site = Site(block.site.stage if block.site else "forward", name)

    def _number(self, x: Tensor) -> int | None:
        storage = _storage(self.doubles.bytes_of(x) if self.doubles and self.doubles.lacks(x) else x)
        return None if storage is None else self._numbers.get(storage._cdata)

    # --- places, for code that names devices

    def place(self, x: Tensor) -> Place:
        """The place of x, as far as it is known."""
        number = self._number(x)
        if self._earnest is False:  # no worker has the device
            return "host"
        if self._earnest and self.doubles and self.doubles.lacks(x):  # data of a loader, unless moved
            return "target" if number is not None and self.timeline.blocks[number].place == "target" else "host"
        return self.home if number is None else self.timeline.blocks[number].place

    def came_from_host(self, x: Tensor) -> None:
        """Record a move to the target: if the place of the tensor was unknown, it was the host."""
        if (number := self._number(self._enter(x))) is not None:
            self._settle(number, "host")

    def is_new(self, x: Tensor) -> bool:
        """Whether the trace has not yet seen a tensor."""
        return self._number(x) is None

    def moved(self, x: Tensor, place: Place) -> None:
        """Record that a tensor of a real module was moved: the module keeps it, and only its double changes place."""
        if self.doubles is None:
            return
        if self.place(x) != place and (number := self._number(x)) is not None:
            self._settle(number, "host")
            self._forget(self.doubles.bytes_of(x).untyped_storage()._cdata)
        with self.below():
            double = self.doubles.of(x)
        self._follow(double, "params", "made before", place)
        self._enter(x)  # so that its gradient is followed

    def loaded(self, x: Tensor, place: Place | None) -> None:
        """Record that a file or a worker gave a real tensor; ``place`` is None if the code named no device."""
        if self.doubles is None or x.layout is not torch.strided or x.untyped_storage().device.type != "cpu":
            return
        if place is not None and self.target:
            with self.below():
                double = self.doubles.of(x)
            self._follow(double, "inputs", "made before", place)
        self._enter(x)

    @contextmanager
    def placing(self, place: Place) -> Iterator[None]:
        """Set the place of new blocks within the block."""
        before, self._placed = self._placed, place
        try:
            yield
        finally:
            self._placed = before

    def _meet(self, tensors: Sequence[Tensor]) -> Place:
        """Place of an operator's result: that of its inputs, which must all be in the same place."""
        numbers = [number for x in tensors if (number := self._number(x)) is not None]
        places = {self.timeline.blocks[number].place for number in numbers}
        if not places:
            return self.home
        if places == {"target"}:
            return "target"
        if places == {"unknown"}:
            self._join(numbers)
            return "unknown"
        place: Place = "target" if "target" in places else "host"
        for number in numbers:
            self._settle(number, place)
        return place

    def _join(self, numbers: Sequence[int]) -> None:
        joined = set[int]().union(*(self._together[number] for number in numbers))
        self._together.update(dict.fromkeys(joined, joined))

    def _settle(self, number: int, place: Place) -> None:
        for each in self._together.get(number, ()):
            self.timeline.blocks[each].place = place
            del self._together[each]

    # --- gradients and optimizers

    def _watch_gradient(self, x: Tensor) -> None:
        hooks = getattr(x, "_post_accumulate_grad_hooks", None) or {}
        if self._mark_gradient in hooks.values():
            return
        if x.grad is not None and self.doubles and not is_wrapper(x.grad) and self.doubles.lacks(x.grad):
            with self.below():
                x.grad = self.doubles.adopt(x.grad)  # so that it is freed when the code releases it
        self._mark_gradient(x)
        self.undo.callback(x.register_post_accumulate_grad_hook(self._mark_gradient).remove)

    def _mark_gradient(self, x: Tensor) -> None:
        for part in () if x.grad is None else plain(x.grad):
            self._mark(self._enter(part), "grads")

    def before_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Record the start of an optimizer step."""
        self._in_optimizer = True
        if self.doubles and isinstance(optimizer, torch.optim.LBFGS):
            raise PredictionError(
                "how many steps L-BFGS takes within one, and how many directions it keeps, depends on data; predict "
                "the code with another optimizer, or measure it"
            )
        if self.doubles:
            self.doubles.replace_in(optimizer)
        for group in optimizer.param_groups:
            for p in group["params"]:
                self._enter(p)

    def after_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Record the end of an optimizer step; the tensors that it keeps are optimizer state."""
        self._in_optimizer = False
        for parameter, state in optimizer.state.items():
            for x in tree_iter(dict(state)):
                for part in plain(x) if isinstance(x, Tensor) else ():
                    self._mark(self._enter(part), "optimizer", parameter)


def is_wrapper(x: Any) -> bool:
    """Whether a tensor wraps other tensors, such as a quantised one, and has no storage of its own."""
    return bool(is_traceable_wrapper_subclass(x))


def plain(x: Any) -> Iterator[Tensor]:
    """The tensors that a wrapper consists of; otherwise the tensor itself."""
    if not is_wrapper(x):
        yield x
        return
    for name in x.__tensor_flatten__()[0]:
        if isinstance(part := getattr(x, name), Tensor):  # a distributed tensor also names its mesh
            yield from plain(part)


def _laid_out(out: Any, layout: torch.memory_format) -> Any:
    """A convolution's result in CUDA's memory layout; for gradients, all but the bias gradient are converted."""
    if isinstance(out, tuple):
        return (*(None if x is None else _laid_out(x, layout) for x in out[:2]), *out[2:])
    if out.dim() < 4 or suggest_memory_format(out) is layout:
        return out
    return torch.empty_like(out, memory_format=layout)


@cache
def _python_body(op: Any) -> Callable[..., Any] | None:
    """The Python function of a custom operator that has no fake implementation; its calls are followed instead."""
    definition: Any = OPDEFS.get(op._schema.name) if isinstance(op, torch._ops.OpOverload) else None
    return definition._init_fn if definition is not None and definition._abstract_fn is None else None


@cache
def _is_composite(op: Any) -> bool:
    """Whether an operator only calls others, without a CPU kernel of its own, or of PyTorch."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    own = has(op.name(), DispatchKey.CPU) and not is_composed(op)
    return has(op.name(), DispatchKey.CompositeImplicitAutograd) and not own


def _storage(x: Tensor) -> torch.UntypedStorage | None:
    """The storage of a strided tensor; sparse and other layouts have none of their own."""
    return x.untyped_storage() if x.layout is torch.strided else None


def _is_on_meta(x: Tensor) -> bool:
    """Whether a tensor is on the meta device, where the code deliberately allocates no memory."""
    return (x.fake_device if isinstance(x, FakeTensor) else x.device).type == "meta"
