"""Known values of fake tensors: constants, and values computed only from constants.

Code reads values from small tensors and needs them: the dimensions that a loss reduces over, the widths of a network's
stages, lengths, dropout rates. Therefore a real storage is kept for each fake storage, as long as nothing that depends
on data is written into it. Every view of the fake storage is a view of the real one, so that an alias never shows an
overwritten value. A large tensor is known while all its elements are equal, for example zeros. The values kept here are
not part of the recorded memory.

There are five kinds of values. Known values are those that real tensors would have. Sampled values are small random
samples, as good as any other. Assumed is that an unknown value is finite. Judged values are other answers about
unknown ones, such as whether a loss is below the best one: every unknown number is taken as 1 for them, and no number
is computed from them. All other values are unknown; ``_stand_in`` defines what code reads instead.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ppdm_bench.predictor.lines import Line

aten = torch.ops.aten

LIMIT = 1 << 16  # maximum elements of a tensor whose values are kept individually
_DRAWN = 16  # maximum elements of a random floating-point tensor: a decision or a rate, but no input and no weight
_READ = 1 << 24  # maximum elements that an operator may read to compute a known result
CPU = torch.device("cpu")

# What code reads in place of a value that is not known, in words for people.
STAND_INS = "numbers are 1, and what is asked about them is answered for 1"

KNOWN, SAMPLED, ASSUMED, JUDGED = range(4)  # the kinds of values that are kept, from the most certain on


class _Known(NamedTuple):
    """Content of a fake storage.

    Attributes:
        values: the real storage, or one element if all elements are equal.
        guessed: the kind of the values.
    """

    values: torch.UntypedStorage | Tensor
    guessed: int


class MadeUp(NamedTuple):
    """A read of a value that is not known.

    Attributes:
        kind: how it was read: ``number`` (``item``, ``float``, formatting), ``branch`` (``bool``, as in ``if`` and
            ``assert``), ``array`` (``numpy``) or ``list`` (``tolist``).
        line: the line of the code; None if none is recorded.
    """

    kind: str
    line: Line | None

    @property
    def decided(self) -> bool:
        """Whether the value decided a branch, as far as the tensor was read as a boolean."""
        return self.kind == "branch"


class _Traits(NamedTuple):
    """Properties of an operator.

    Attributes:
        plain: whether it may run on real tensors.
        drawn: whether its result is random.
        reads: whether its result is a value read from a tensor, and not a tensor.
        sized: whether the shape of its result depends on values.
        written: the arguments that it writes to, by position and name.
        fills: the number with which it fills the first tensor of its result, independent of the inputs' values, or
            position and name of the argument that holds this number; None if it does not fill.
    """

    plain: bool
    drawn: bool
    reads: bool
    sized: bool
    written: tuple[tuple[int, str], ...]
    fills: float | tuple[int, str] | None


class Constants:
    """The known values of one prediction.

    Attributes:
        made_up: how often each line of the code read a value that is not known.
        here: tells the line that is running, if lines are recorded.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.made_up = Counter[MadeUp]()
        self._reading = "number"
        self.here: Callable[[], Line | None] | None = None
        self._mode = mode
        self._known: dict[int, _Known | None] = {}  # by address of the fake storage; None if it became unknown
        self._met: dict[int, torch.UntypedStorage] = {}  # real storages of doubles, for the next operator only

    @property
    def told(self) -> Counter[Line | None]:
        """How often each line of the code read a value that is not known, in whatever way."""
        by_line = Counter[Line | None]()
        for read, times in self.made_up.items():
            by_line[read.line] += times
        return by_line

    @contextmanager
    def reading(self, kind: str) -> Iterator[None]:
        """Say how the code reads a value in the block; see :class:`MadeUp`."""
        before, self._reading = self._reading, kind
        try:
            yield
        finally:
            self._reading = before

    def forget(self, address: int) -> None:
        """Drop a fake storage that was freed."""
        self._known.pop(address, None)

    def meet(self, double: Tensor, x: Tensor) -> None:
        """Register a real tensor, with its double, as an argument of the next operator."""
        if double.numel() <= LIMIT and x.untyped_storage().nbytes() <= 16 * LIMIT:
            self._met[_address(double)] = x.untyped_storage()

    def part(self) -> None:
        """Drop the arguments that were registered for the next operator."""
        self._met.clear()

    def follows(self, x: Tensor) -> bool:
        """Whether the content of a fake tensor is recorded here, even if it is unknown."""
        return _address(x) in self._known

    def knows(self, x: Tensor) -> bool:
        """Whether a size may depend on the values of a fake tensor."""
        known = self._known.get(_address(x))
        return known is not None and known.guessed < JUDGED

    def read(self, x: Tensor, how: Callable[[Tensor], Any]) -> Any:
        """Apply a function to the values of a tensor, or to stand-in values if they are unknown."""
        with _in_earnest(), self.reading("list"):
            found = self._value(x)
            self._tell(found is None or found[1] >= ASSUMED)
            return how(torch.full(x.shape, _stand_in(x.dtype), dtype=x.dtype) if found is None else found[0])

    def values(self, x: Tensor) -> Tensor | None:
        """The known values of a tensor; None if they are not known."""
        with _in_earnest():
            found = self._value(x) if self.follows(x) else None
            return None if found is None else found[0]

    def array(self, x: Tensor) -> Any:
        """NumPy array that shares memory with the known values; of stand-ins if the values are unknown."""
        with _in_earnest(), self.reading("array"):
            found = self._value(x)
            self._tell(found is None or found[1] >= ASSUMED)
            return (torch.full(x.shape, _stand_in(x.dtype), dtype=x.dtype) if found is None else found[0]).numpy()

    def run(
        self,
        op: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tensors: Sequence[Tensor],
        fake_run: Callable[..., Any],
    ) -> Any:
        """Run an operator on fake tensors, and also on real tensors if all its inputs are known.

        Args:
            op, args, kwargs: the operator and its arguments.
            tensors: all tensors in the arguments.
            fake_run: function that runs the operator on fake tensors.
        """
        try:
            return self._run(op, args, kwargs, tensors, fake_run)
        finally:
            self.part()

    def _run(self, op: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], fake_run: Callable[..., Any]) -> Any:
        if op is aten.lift_fresh.default or op is aten.lift_fresh_copy.default:
            return self._lifted(fake_run(op, args, kwargs), args[0])
        traits = _traits(op)
        if not traits.plain:
            out = fake_run(op, args, kwargs)
            self._lose(traits, args, kwargs)
            return out
        inputs = self._inputs(tensors)
        if traits.reads or (traits.sized and inputs is not None and not inputs.guessed):
            return self._read(op, traits, args, kwargs, inputs, fake_run)
        out = fake_run(op, args, kwargs)
        if traits.fills is not None and self._fill(traits, args, kwargs, out):
            return out
        if inputs is not None and self._beside(op, traits, args, kwargs, inputs, out):
            return out
        self._lose(traits, args, kwargs)
        if inputs is None and op in _JUDGEMENTS and type(out) is FakeTensor:
            self._judge(op, args, kwargs, tensors, out)
        return out

    def _judge(self, op: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], out: FakeTensor) -> None:
        """Answer a question about unknown numbers, each of which is taken as 1."""
        with _in_earnest():
            if op in _FINITE and _asks_whether_finite(op, args):
                self._store(out, torch.tensor(True), ASSUMED)
                return
            ones = {}
            for x in tensors:
                found = self._value(x)
                if found and any(found[0].stride()) and found[0].numel() != 1:
                    return  # several values, of which the answer may differ
                ones[id(x)] = _one(found[0]) if found else torch.full((1,) * x.dim(), _stand_in(x.dtype), dtype=x.dtype)
            inputs = _Inputs(ones, JUDGED)
            answer = op(*inputs.of(args), **inputs.of(kwargs))
            self._store(out, answer.reshape(()).to(out.dtype), JUDGED)

    def _tell(self, made_up: bool) -> None:
        if made_up:
            self.made_up[MadeUp(self._reading, self.here() if self.here else None)] += 1

    # --- inputs

    def _inputs(self, tensors: Sequence[Tensor]) -> "_Inputs | None":
        """Values of an operator's tensors; None if one is unknown."""
        for x in tensors:
            address = _address(x)
            if self._known.get(address) is None and (address in self._known or address not in self._met):
                return None
        with _in_earnest():
            found = []
            for x in tensors:
                if (value := self._value(x)) is None:
                    return None
                found.append(value)
        values = {id(x): value for x, (value, _) in zip(tensors, found, strict=True)}
        return _Inputs(values, max((guessed for _, guessed in found), default=KNOWN))

    def _value(self, x: Tensor) -> tuple[Tensor, int] | None:
        address = _address(x)
        if address in self._known:
            known = self._known[address]
        else:
            known = _Known(self._met[address], KNOWN) if address in self._met else None
        if known is None or x.layout is not torch.strided or x.is_conj() or x.is_neg():
            return None
        if isinstance(known.values, Tensor):
            return (known.values.expand(x.shape), known.guessed) if known.values.dtype is x.dtype else None
        return _view(known.values, x), known.guessed

    # --- results

    def _lifted(self, out: FakeTensor, value: Tensor) -> FakeTensor:
        """Result of ``torch.tensor(...)``; the argument is a real tensor that holds the value."""
        out.constant = None  # PyTorch's own record of a single value; results with one are not cached
        if value.numel() <= LIMIT and value.layout is torch.strided:
            with _in_earnest():
                self._store(out, value, guessed=KNOWN)
        return out

    def _read(self, op: Any, traits: _Traits, args: Any, kwargs: Any, inputs: "_Inputs | None", fake_run: Any) -> Any:
        """Result of an operator that depends on values."""
        if inputs is None or not inputs.are_few():
            self._tell(True)
            return fake_run(op, args, kwargs)
        self._tell(inputs.guessed >= ASSUMED)
        with _in_earnest():
            real = op(*inputs.of(args), **inputs.of(kwargs))
        if traits.reads:
            return real
        made = [self._made(x) if isinstance(x, Tensor) else x for x in _each(real)]
        return type(real)(made) if isinstance(real, tuple | list) else made[0]

    def _made(self, real: Tensor) -> Tensor:
        """Fake tensor with the shape, strides and, if small, the values of a real one."""
        with self._mode:
            fake = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=CPU)
        if real.numel() <= LIMIT:
            with _in_earnest():
                self._store(fake, real, guessed=KNOWN)
        return fake

    def _fill(self, traits: _Traits, args: Any, kwargs: Any, out: Any) -> bool:
        """Record a result that does not depend on the inputs' values; False if it cannot be recorded."""
        if type(out) is not FakeTensor or out.fake_device != CPU or not _is_whole(out):
            return False
        number: Any = traits.fills
        if isinstance(number, tuple):
            position, name = number
            number = args[position] if position < len(args) else kwargs[name]
        if not isinstance(number, int | float | bool):
            return False
        with _in_earnest():
            value = torch.tensor(0, dtype=out.dtype)
            try:
                value.fill_(number)
            except (RuntimeError, TypeError):
                return False
            self._store(out, value, guessed=KNOWN)
        return True

    def _beside(self, op: Any, traits: _Traits, args: Any, kwargs: Any, inputs: "_Inputs", out: Any) -> bool:
        """Run an operator on real tensors after the fake run and keep the result; False if it is not known."""
        results = list(tensors_in(out))
        if not traits.written and results and all(self._known.get(_address(x)) is not None for x in results):
            return True  # views of storages whose values are kept
        if not all(type(x) is FakeTensor and x.fake_device == CPU for x in results) or not inputs.are_few():
            return False
        if inputs.guessed == JUDGED and any(x.dtype is not torch.bool for x in results):
            return False  # no number is made of answers, such as a count that may be out of range
        small = all(x.numel() <= LIMIT for x in results)
        if traits.drawn and not (small and all(_may_be_drawn(x) for x in results)):
            return False
        with _in_earnest():
            if not small or any(self._is_same(x) for x in _written(traits, args, kwargs)):
                return self._in_one(op, traits, args, kwargs, inputs, results)
            self._separate([*_written(traits, args, kwargs), *results], inputs)
            try:
                real = op(*inputs.of(args), **_without_pinning(inputs.of(kwargs)))
            except (RuntimeError, IndexError, TypeError, ValueError):
                return False  # the CPU lacks the kernel, or a value is invalid; the real code reports it when it runs
            guessed = max(inputs.guessed, SAMPLED if traits.drawn else KNOWN)
            truths = list(tensors_in(real))
            if len(truths) != len(results):
                return False
            if guessed:
                for x in _written(traits, args, kwargs):
                    self._guess(_address(x), guessed)
            fresh = set[int]()
            for x, truth in zip(results, truths, strict=True):
                address = _address(x)
                if address in fresh or self._known.get(address) is None:
                    fresh.add(address)
                    self._store(x, truth, guessed)
        return True

    def _separate(self, tensors: Sequence[Tensor], inputs: "_Inputs") -> None:
        """Copy each real storage that an operator will write to, or of which it returns a view."""
        for x in tensors:
            address = _address(x)
            if address in self._met and address not in self._known:
                self._known[address] = _Known(_copy(self._met[address]), KNOWN)
            if id(x) in inputs.values and (found := self._value(x)) is not None:
                inputs.values[id(x)] = found[0]

    def _in_one(
        self, op: Any, traits: _Traits, args: Any, kwargs: Any, inputs: "_Inputs", results: list[Tensor]
    ) -> bool:
        """Run an operator on one element of each tensor; False unless every tensor holds one repeated value."""
        same = (torch.Tag.pointwise in op.tags or op in _COPIES) and len(results) == 1
        if not same or not all(stride == 0 for x in inputs.values.values() for stride in x.stride()):
            return False
        if any(not _is_whole(x) for x in (*results, *_written(traits, args, kwargs))):
            return False
        ones = _Inputs({name: _one(x) for name, x in inputs.values.items()}, inputs.guessed)
        try:
            real = op(*ones.of(args), **_without_pinning(ones.of(kwargs)))
        except (RuntimeError, TypeError, ValueError):
            return False
        if not isinstance(real, Tensor) or real.numel() != 1:
            return False
        self._store(results[0], real.reshape(()).clone(), inputs.guessed)
        return True

    def _store(self, x: Tensor, value: Tensor, guessed: int) -> None:
        """Keep the values of a tensor, or the one value that all its elements have."""
        address = _address(x)
        size = x.untyped_storage().nbytes()
        if value.dtype is not x.dtype or (value.dim() and value.shape != x.shape):
            self._known[address] = None
        elif x.numel() > LIMIT or size > 16 * LIMIT:
            self._known[address] = _Known(value.clone(), guessed) if value.dim() == 0 and _is_whole(x) else None
        else:
            known = self._known.get(address)
            if known is None or not isinstance(known.values, torch.UntypedStorage) or known.values.nbytes() != size:
                known = _Known(torch.zeros(size, dtype=torch.uint8).untyped_storage(), guessed)
            self._known[address] = known._replace(guessed=guessed)
            _view(known.values, x).copy_(value)  # type: ignore[arg-type]

    def _is_same(self, x: Tensor) -> bool:
        known = self._known.get(_address(x))
        return known is not None and isinstance(known.values, Tensor)

    def _guess(self, address: int, guessed: int) -> None:
        if (known := self._known.get(address)) is not None:
            self._known[address] = known._replace(guessed=max(known.guessed, guessed))

    def _lose(self, traits: _Traits, args: Any, kwargs: Any) -> None:
        """Mark as unknown all storages that an operator wrote to."""
        for x in _written(traits, args, kwargs):
            address = _address(x)
            if address in self._known or address in self._met:
                self._known[address] = None


class _Inputs:
    """Values of an operator's tensors.

    Attributes:
        values: the values, by the tensor's ``id``.
        guessed: the least certain kind among them.
    """

    def __init__(self, values: dict[int, Tensor], guessed: int) -> None:
        self.values = values
        self.guessed = guessed

    def are_few(self) -> bool:
        """Whether there are few enough elements to compute with quickly."""
        return sum(x.numel() for x in self.values.values()) <= _READ

    def of(self, value: Any) -> Any:
        """Arguments with real values in place of the fake tensors."""
        if isinstance(value, Tensor):
            return self.values[id(value)]
        if isinstance(value, dict):
            return {name: self.of(each) for name, each in value.items()}
        if type(value) is tuple or type(value) is list:
            return type(value)(self.of(each) for each in value)
        if isinstance(value, torch.Generator):
            return value.clone_state()  # the user's generator must not advance twice
        return value


def stand_in(op: Any, args: Sequence[Any]) -> Any:
    """Value that code reads in place of an unknown one: harmless and of the right type."""
    if op is aten._local_scalar_dense.default:
        return _stand_in(args[0].dtype)
    return True  # the result of `torch.equal` and `torch.allclose`: an assertion holds, and a loop ends


def _stand_in(dtype: torch.dtype) -> Any:
    return False if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1


# --- operators

# Operators whose result holds one repeated number or uninitialised memory, independent of the inputs' values.
_FILLS: Mapping[str, float | tuple[int, str]] = {
    "empty": 0,
    "empty_like": 0,
    "empty_strided": 0,
    "empty_permuted": 0,
    "new_empty": 0,
    "new_empty_strided": 0,
    "zeros": 0,
    "zeros_like": 0,
    "new_zeros": 0,
    "zero": 0,
    "zero_": 0,
    "ones": 1,
    "ones_like": 1,
    "new_ones": 1,
    "full": (1, "fill_value"),
    "full_like": (1, "fill_value"),
    "new_full": (2, "fill_value"),
    "fill": (1, "value"),
    "fill_": (1, "value"),
}
_FINITE = {aten.eq.Tensor, aten.ne.Scalar, aten.lt.Scalar, aten.le.Scalar}
_JUDGEMENTS = {
    *(
        getattr(getattr(aten, name), form)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for form in ("Scalar", "Tensor")
    ),
    *(getattr(aten, name).default for name in ("logical_and", "logical_or", "logical_xor", "logical_not")),
    *(getattr(getattr(aten, name), form) for name in ("any", "all") for form in ("default", "dim", "dims")),
    *(getattr(aten, f"bitwise_{name}").Tensor for name in ("and", "or", "xor")),
    aten.bitwise_not.default,
    aten.isnan.default,
    aten.isinf.default,
    aten.isposinf.default,
    aten.isneginf.default,
}
_COPIES = {aten.clone.default, aten._to_copy.default}
_RUNNING = {"running_mean", "running_var"}  # norms write to these although their schema does not declare it


@cache
def _traits(op: Any) -> _Traits:
    plain = isinstance(op, torch._ops.OpOverload) and op.namespace in ("aten", "prims")
    if not isinstance(op, torch._ops.OpOverload):
        return _Traits(False, False, False, False, (), None)
    name = op._schema.name.partition("::")[2]
    arguments = list(enumerate(op._schema.arguments))
    written = [
        (position, argument.name)
        for position, argument in arguments
        if (argument.alias_info is not None and argument.alias_info.is_write)
        or (argument.name in _RUNNING and "backward" not in name)
    ]
    returns_tensor = any("Tensor" in str(each.type) for each in op._schema.returns)
    sized = torch.Tag.dynamic_output_shape in op.tags
    return _Traits(
        plain=plain and name not in ("set_", "record_stream"),
        drawn=torch.Tag.nondeterministic_seeded in op.tags,
        reads=torch.Tag.data_dependent_output in op.tags and not sized and not returns_tensor,
        sized=sized,
        written=tuple(written),
        fills=None if any(argument.is_out for _, argument in arguments) else _FILLS.get(name),
    )


def _asks_whether_finite(op: Any, args: Sequence[Any]) -> bool:
    """Whether a comparison is part of ``torch.isfinite``, which is not an operator of its own in PyTorch."""
    x, other = args[0], args[1]
    if op is not aten.eq.Tensor:
        return isinstance(other, float) and other == math.inf
    alike = (x.shape, x.stride(), x.storage_offset()) == (other.shape, other.stride(), other.storage_offset())
    return alike and _address(x) == _address(other)


def _written(traits: _Traits, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Tensors that an operator writes to."""
    for position, name in traits.written:
        value = args[position] if position < len(args) else kwargs.get(name)
        yield from tensors_in(value)


def _may_be_drawn(x: Tensor) -> bool:
    return x.numel() <= (_DRAWN if x.is_floating_point() else LIMIT)


# --- tensors


class _in_earnest:
    """Context for computing with real tensors: dispatch modes do not see it, and autograd does not record it."""

    def __enter__(self) -> None:
        self._inference = torch._C._InferenceMode(True)
        self._inference.__enter__()
        self._unwatched = torch._C._DisableTorchDispatch()
        self._unwatched.__enter__()
        self._unasked = torch._C.DisableTorchFunction()  # a default device would be asked too
        self._unasked.__enter__()

    def __exit__(self, *error: object) -> None:
        self._unasked.__exit__(None, None, None)
        self._unwatched.__exit__(*error)
        self._inference.__exit__(*error)


def _address(x: Tensor) -> int:
    return x.untyped_storage()._cdata if x.layout is torch.strided else 0


def _view(storage: torch.UntypedStorage, x: Tensor) -> Tensor:
    """View of a real storage with the geometry of a fake tensor."""
    return torch.empty(0, dtype=x.dtype).set_(storage, int(x.storage_offset()), x.shape, x.stride())


def _copy(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    return torch.empty(0, dtype=torch.uint8).set_(storage).clone().untyped_storage()


def _one(x: Tensor) -> Tensor:
    """One element of a tensor with equal elements, with the same number of dimensions."""
    return x.as_strided((1,) * x.dim(), (1,) * x.dim())


def _is_whole(x: Tensor) -> bool:
    """Whether a tensor covers its entire storage."""
    return x.numel() * x.element_size() == x.untyped_storage().nbytes()


def _without_pinning(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "pin_memory"}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists, such as an operator's arguments or its result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)


def _each(out: Any) -> Iterator[Any]:
    if isinstance(out, tuple | list):
        for each in out:
            yield from _each(each)
    else:
        yield out
