"""Every storage's birth and death, on real tensors or on fake ones, in any PyTorch code.

A :class:`Trace` stands between the code and PyTorch's kernels and follows the storages of what goes in and comes out.
It holds no tensor alive that the code lets go, and leaves nothing behind on tensors and modules that were there before.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from ppdm_bench.memory.allocator import Event, rounded
from ppdm_bench.memory.rules import CONV3D_COLUMNS, TRANSIENT, CublasWorkspaces
from ppdm_bench.memory.target import Target

KINDS = ("params", "grads", "optimizer", "inputs", "activations", "workspace")


@dataclass
class Block:
    """One storage, or one buffer that a rule adds."""

    size: int
    kind: str
    name: str  # the operator that made it, or the rule


@dataclass
class Timeline:
    """What a trace saw: blocks by number, and their births and deaths in order."""

    blocks: list[Block] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # where each iteration began, as an index into the events

    def born(self, size: int, kind: str, name: str) -> int:
        """Note a birth and number the block."""
        self.blocks.append(Block(rounded(size), kind, name))
        self.events.append((len(self.blocks) - 1, self.blocks[-1].size))
        return len(self.blocks) - 1

    def died(self, number: int) -> None:
        """Note a death."""
        self.events.append((number, 0))

    def live(self) -> Iterator[int]:
        """Live bytes after each event."""
        total = 0
        for number, size in self.events:
            total += size or -self.blocks[number].size
            yield total

    def peak(self) -> tuple[int, int]:
        """The event at which most is alive, and how much."""
        return max(enumerate(self.live()), key=lambda entry: entry[1], default=(-1, 0))

    def peaks(self) -> tuple[int, ...]:
        """The peak within each iteration."""
        live = list(self.live())
        ends = [*self.marks[1:], len(live)]
        return tuple(max(live[max(a - 1, 0) : b], default=0) for a, b in zip(self.marks, ends, strict=True))

    def alive_at(self, event: int) -> list[Block]:
        """What is alive after an event."""
        alive: dict[int, Block] = {}
        for number, size in self.events[: event + 1]:
            if size:
                alive[number] = self.blocks[number]
            else:
                del alive[number]
        return list(alive.values())


class Trace(TorchDispatchMode):
    """Follows storages while it is entered.

    Args:
        fake: the mode that makes tensors without memory, already entered; None follows real ones.
        target: whose CUDA rules are applied; None applies none.
    """

    def __init__(self, fake: FakeTensorMode | None = None, target: Target | None = None) -> None:
        super().__init__()
        self.timeline = Timeline()
        self.inside = False  # whether PyTorch is at work below, where devices must be told as they are
        self.moving_module = False
        self._fake = fake
        self._transient = [rule for rule in TRANSIENT if target and rule.applies(target)]
        self._cublas = CublasWorkspaces(target) if target else None
        self._numbers: dict[int, int] = {}  # storages that are followed, by address: their block
        self._host: set[int] = set()  # storages that are on the host
        self._place: str | None = None  # where births go, if they are told: host or target
        self._deaths: dict[int, weakref.finalize] = {}
        self._doubles: dict[int, tuple[Tensor, Tensor]] = {}  # real tensors, by identity, and their fake doubles
        self._in_optimizer = False
        self._undo = ExitStack()

    # --- entering and leaving

    def __enter__(self) -> "Trace":
        for hook in (
            register_optimizer_step_pre_hook(self._before_optimizer),
            register_optimizer_step_post_hook(self._after_optimizer),
        ):
            self._undo.callback(hook.remove)
        if self._fake:
            self._undo.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", _deepcopy))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()
        for death in self._deaths.values():
            death.detach()

    def iteration(self) -> None:
        """Note that an iteration begins."""
        self.timeline.marks.append(len(self.timeline.events))

    # --- every operator

    def __torch_dispatch__(
        self, op: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside or op is torch.ops.prim.device.default:
            return op(*args, **kwargs)
        backward = torch._C._current_graph_task_id() != -1
        args, kwargs = tree_map_only(Tensor, self._enter, (tuple(args), dict(kwargs)))
        out = self._run(op, args, kwargs)

        seen = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        on_host = self._place == "host" or (self._place is None and bool(seen) and all(map(self.is_host, seen)))
        kind = "workspace" if self._in_optimizer else "activations" if seen or backward else "inputs"
        for x in tree_iter(out):
            if isinstance(x, Tensor):
                self._follow(x, kind, str(op), on_host)
        if not on_host:
            self._apply_rules(op, args, out, backward)
        return out

    def _run(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.inside = True
        try:
            if self._fake and op is torch.ops.aten._local_scalar_dense.default:
                return _scalar(op, args[0])
            out = op(*args, **kwargs)
            return _as_real_kernel(op, args, out) if self._fake else out
        finally:
            self.inside = False

    def _apply_rules(self, op: Any, args: Sequence[Any], out: Any, backward: bool) -> None:
        taken = {rule.name: size for rule in self._transient if (size := rule.size(op, args, out))}
        if self._cublas and (size := self._cublas.taken_by(op, CONV3D_COLUMNS in taken, backward)):
            self.timeline.born(size, "workspace", "cuBLAS")
        for name, size in taken.items():
            self.timeline.died(self.timeline.born(size, "workspace", name))

    # --- storages

    def _enter(self, x: Tensor) -> Tensor:
        """Follow what was made before the trace, or out of its sight; under fake tensors, replace it by a double."""
        kind = "params" if isinstance(x, nn.Parameter) else "inputs"
        if self._fake and not self._fake.is_our_fake(x):
            double = self._double(x)
        else:
            double = x
        self._follow(double, kind, "made before")
        if kind == "params":
            self._mark(double, "params")
        if x.requires_grad and x.is_leaf:
            self._watch_gradient(x)
        return double

    def _double(self, x: Tensor) -> Tensor:
        assert self._fake is not None
        if id(x) not in self._doubles:
            self.inside = True
            try:
                # The double is kept: another one would be another storage.
                self._doubles[id(x)] = (x, self._fake.from_tensor(x))
            finally:
                self.inside = False
        return self._doubles[id(x)][1]

    def _follow(self, x: Tensor, kind: str, name: str, on_host: bool = False) -> None:
        storage = _storage(x)
        if storage is None or storage._cdata in self._host:
            return
        address, size = storage._cdata, storage.nbytes()
        if address in self._numbers:
            if self.timeline.blocks[self._numbers[address]].size == rounded(size):
                return
            self._forget(address)  # it was resized
        if on_host:
            self._host.add(address)
        elif size:
            self._numbers[address] = self.timeline.born(size, kind, name)
        if address not in self._deaths:
            self._deaths[address] = weakref.finalize(storage, self._gone, address)

    def _gone(self, address: int) -> None:
        self._deaths.pop(address, None)
        self._host.discard(address)
        if address in self._numbers:
            self._forget(address)

    def _forget(self, address: int) -> None:
        self.timeline.died(self._numbers.pop(address))

    def _mark(self, x: Tensor, kind: str) -> None:
        """Say what a storage turned out to be; it counts as that from its birth."""
        storage = _storage(x)
        if storage is not None and (number := self._numbers.get(storage._cdata)) is not None:
            self.timeline.blocks[number].kind = kind

    # --- places, for code that names devices

    def is_host(self, x: Tensor) -> bool:
        """Whether x was sent to the host."""
        storage = _storage(x)
        return storage is not None and storage._cdata in self._host

    def is_followed(self, x: Tensor) -> bool:
        """Whether x, or its double, is known to live on the target."""
        double = self._doubles[id(x)][1] if id(x) in self._doubles else x
        storage = _storage(double)
        return storage is not None and storage._cdata in self._numbers

    def put_on_host(self, x: Tensor) -> None:
        """Say that a tensor that is not followed lives on the host."""
        double = x if self._fake is None or self._fake.is_our_fake(x) else self._double(x)
        self._follow(double, "inputs", "host", on_host=True)

    @contextmanager
    def placing(self, place: str) -> Iterator[None]:
        """Say where births go: ``host`` or ``target``."""
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    @contextmanager
    def moving(self, module: nn.Module) -> Iterator[None]:
        """A module is moved or converted: what it held before is put back when the trace ends."""
        if any(type(p) in (Tensor, nn.Parameter) for p in (*module._parameters.values(), *module._buffers.values())):
            for held in (module._parameters, module._buffers):
                self._undo.callback(_restore, held, dict(held))
        before, self.moving_module = self.moving_module, True
        try:
            yield
        finally:
            self.moving_module = before

    # --- gradients and optimizers

    def _watch_gradient(self, x: Tensor) -> None:
        hooks = getattr(x, "_post_accumulate_grad_hooks", None) or {}
        if self._mark_gradient in hooks.values():
            return
        if x.grad is not None:
            self._mark_gradient(x)
        hook = x.register_post_accumulate_grad_hook(self._mark_gradient)
        self._undo.callback(hook.remove)
        if self._fake and not self._fake.is_our_fake(x):
            self._undo.callback(setattr, x, "grad", x.grad)  # nothing fake stays behind on a real tensor

    def _mark_gradient(self, x: Tensor) -> None:
        if x.grad is not None:
            gradient = self._enter(x.grad)
            self._mark(gradient, "grads")

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._in_optimizer = True
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p in parameters:
            self._mark_gradient(p)
        if self._fake and any(not self._fake.is_our_fake(p) for p in parameters):
            before = {p: dict(state) for p, state in optimizer.state.items()}
            self._undo.callback(_restore, optimizer.state, before)

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._in_optimizer = False
        for x in tree_iter([dict(state) for state in optimizer.state.values()]):
            if isinstance(x, Tensor):
                self._mark(self._enter(x), "optimizer")


def _storage(x: Tensor) -> torch.UntypedStorage | None:
    """The storage of a strided tensor; sparse and other layouts have none of their own."""
    return x.untyped_storage() if x.layout is torch.strided else None


def _restore(held: dict, before: dict) -> None:
    held.clear()
    held.update(before)


def _scalar(op: Callable, x: Tensor) -> Any:
    """What ``.item()`` gives: the value where it is known (a constant), else a harmless one of the right type."""
    try:
        return op(x)
    except (DataDependentOutputException, RuntimeError):
        return False if x.dtype is torch.bool else 1.0 if x.is_floating_point() else 1


def _as_real_kernel(op: Any, args: Sequence[Any], out: Any) -> Any:
    """Mend what a fake kernel gets wrong: this one promotes where input and affine parameters differ in dtype."""
    if op is torch.ops.aten.native_group_norm_backward.default and out[0] is not None:
        return (out[0].to(args[1].dtype), *out[1:])
    return out


@torch.no_grad()
def _deepcopy(x: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """A fake tensor's copy is one clone, as a real one's is; its attributes hold the mode, which is not to be copied."""
    if id(x) not in memo:
        copied = x.clone()
        memo[id(x)] = nn.Parameter(copied) if isinstance(x, nn.Parameter) else copied
    result: Tensor = memo[id(x)]
    return result.requires_grad_(x.requires_grad)
