"""Values that are known although tensors have no memory: of constants, and of what is worked out of constants alone.

Code asks its small tensors for values that it then needs: the dimensions that a loss reduces over, the widths of a
network's stages, lengths, rates of dropout. Beside the storage of a fake tensor a real one is kept, as long as nothing
that depends on data is written into it. Every view of the fake storage is a view of the real one, so that an alias
never shows a value that was overwritten. A large tensor is known while all its elements are the same, as one of zeros
is. What is kept here is no part of the memory that is followed.

Three kinds of values are told apart. Known ones are what real tensors give. Guessed ones are as good as any: small
random draws, and whether an unknown value is finite, which it is taken to be. They may be read, but no size may depend
on them. All others are unknown: ``_stand_in`` says what is read in their place.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

aten = torch.ops.aten

LIMIT = 1 << 16  # elements of a tensor whose values are kept one by one
_DRAWN = 16  # of one of floating point that is drawn at random: a decision or a rate, but no input and no weight
_READ = 1 << 24  # elements that an operator may read to work out a known result
CPU = torch.device("cpu")


class _Known(NamedTuple):
    """What lies in a fake storage.

    Attributes:
        values: the real storage, or one element that all of them are equal to.
        guessed: whether the values are only as good as any.
    """

    values: torch.UntypedStorage | Tensor
    guessed: bool


class _Traits(NamedTuple):
    """What there is to know of an operator.

    Attributes:
        plain: whether it may be run in earnest.
        drawn: whether its result is drawn at random.
        reads: whether its result is no tensor but what a tensor holds.
        sized: whether the shape of its result depends on values.
        written: the arguments that it writes into, by position and name.
        fills: what it fills the first tensor of its result with, whatever that held: a number, or the name of the
            argument that says it; None if it does not.
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
        told: whether a value was read that is not known.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.told = False
        self._mode = mode
        self._known: dict[int, _Known | None] = {}  # by the address of the fake storage; None once it is unknown
        self._met: dict[int, torch.UntypedStorage] = {}  # real storages that stand behind doubles, for one operator

    def forget(self, address: int) -> None:
        """Say that a fake storage is gone."""
        self._known.pop(address, None)

    def meet(self, double: Tensor, x: Tensor) -> None:
        """Say that a real tensor is an argument of the next operator, and what stands in for it."""
        if double.numel() <= LIMIT and x.untyped_storage().nbytes() <= 16 * LIMIT:
            self._met[_address(double)] = x.untyped_storage()

    def follows(self, x: Tensor) -> bool:
        """Whether what a fake tensor holds is noted here, be it that it is unknown."""
        return _address(x) in self._known

    def knows(self, x: Tensor) -> bool:
        """Whether what a fake tensor holds is known or guessed."""
        return self._known.get(_address(x)) is not None

    def read(self, x: Tensor, how: Callable[[Tensor], Any]) -> Any:
        """What a function makes of the values of a tensor: of those that stand in for unknown ones, if need be."""
        with _in_earnest():
            found = self._value(x)
            self.told |= found is None or found[1]
            return how(torch.full(x.shape, _stand_in(x.dtype), dtype=x.dtype) if found is None else found[0])

    def array(self, x: Tensor) -> Any:
        """An array that shares memory with what a tensor holds; zeros, which take none yet, if that is not known."""
        with _in_earnest():
            found = self._value(x)
            self.told |= found is None or found[1]
            return (torch.zeros(x.shape, dtype=x.dtype) if found is None else found[0]).numpy()

    def run(
        self,
        op: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tensors: Sequence[Tensor],
        fake_run: Callable[..., Any],
    ) -> Any:
        """Run an operator on fake tensors, and in earnest beside that if all its inputs are known.

        Args:
            op, args, kwargs: the operator and its arguments.
            tensors: all the tensors among the arguments.
            fake_run: how it is run on fake tensors.
        """
        try:
            return self._run(op, args, kwargs, tensors, fake_run)
        finally:
            self._met.clear()

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
        if inputs is None and op in _FINITE and _asks_whether_finite(op, args):
            with _in_earnest():
                self._store(out, torch.tensor(True), guessed=True)
        return out

    # --- inputs

    def _inputs(self, tensors: Sequence[Tensor]) -> "_Inputs | None":
        """The values of an operator's tensors; None if one is unknown."""
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
        return _Inputs(values, any(guessed for _, guessed in found))

    def _value(self, x: Tensor) -> tuple[Tensor, bool] | None:
        address = _address(x)
        if address in self._known:
            known = self._known[address]
        else:
            known = _Known(self._met[address], False) if address in self._met else None
        if known is None or x.layout is not torch.strided or x.is_conj() or x.is_neg():
            return None
        if isinstance(known.values, Tensor):
            return (known.values.expand(x.shape), known.guessed) if known.values.dtype is x.dtype else None
        return _view(known.values, x), known.guessed

    # --- results

    def _lifted(self, out: FakeTensor, value: Tensor) -> FakeTensor:
        """``torch.tensor(...)``, whose argument is a real tensor that holds the value."""
        out.constant = None  # PyTorch's own note of a value, of one element at most; notes of operators hold none
        if value.numel() <= LIMIT and value.layout is torch.strided:
            with _in_earnest():
                self._store(out, value, guessed=False)
        return out

    def _read(self, op: Any, traits: _Traits, args: Any, kwargs: Any, inputs: "_Inputs | None", fake_run: Any) -> Any:
        """The result of an operator that depends on values."""
        if inputs is None or not inputs.are_few():
            self.told = True
            return fake_run(op, args, kwargs)
        self.told |= inputs.guessed
        with _in_earnest():
            real = op(*inputs.of(args), **inputs.of(kwargs))
        if traits.reads:
            return real
        made = [self._made(x) if isinstance(x, Tensor) else x for x in _each(real)]
        return type(real)(made) if isinstance(real, tuple | list) else made[0]

    def _made(self, real: Tensor) -> Tensor:
        """A fake tensor like a real one."""
        with self._mode:
            fake = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=CPU)
        if real.numel() <= LIMIT:
            with _in_earnest():
                self._store(fake, real, guessed=False)
        return fake

    def _fill(self, traits: _Traits, args: Any, kwargs: Any, out: Any) -> bool:
        """Note a result that does not depend on what the inputs hold; False if it is not so after all."""
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
            self._store(out, value, guessed=False)
        return True

    def _beside(self, op: Any, traits: _Traits, args: Any, kwargs: Any, inputs: "_Inputs", out: Any) -> bool:
        """Run an operator in earnest beside the fake run and keep what it gives; False if that is not known."""
        results = [x for x in _each(out) if isinstance(x, Tensor)]
        if not traits.written and results and all(self._known.get(_address(x)) is not None for x in results):
            return True  # views of what is kept
        if not all(type(x) is FakeTensor and x.fake_device == CPU for x in results) or not inputs.are_few():
            return False
        small = all(x.numel() <= LIMIT for x in results)
        if traits.drawn and not (small and all(_may_be_drawn(x) for x in results)):
            return False
        with _in_earnest():
            if not small or any(self._is_same(x) for x in _written(traits, args, kwargs)):
                return self._in_one(op, traits, args, kwargs, inputs, results)
            self._part([*_written(traits, args, kwargs), *results], inputs)
            try:
                real = op(*inputs.of(args), **_without_pinning(inputs.of(kwargs)))
            except (RuntimeError, IndexError, TypeError, ValueError):
                return False  # a kernel that the CPU lacks, or a value that is wrong: it is found where it is real
            guessed = inputs.guessed or traits.drawn
            truths = [x for x in _each(real) if isinstance(x, Tensor)]
            if len(truths) != len(results):
                return False
            if guessed:
                for x in _written(traits, args, kwargs):
                    self._guess(_address(x))
            fresh = set[int]()
            for x, truth in zip(results, truths, strict=True):
                address = _address(x)
                if address in fresh or self._known.get(address) is None:
                    fresh.add(address)
                    self._store(x, truth, guessed)
        return True

    def _part(self, tensors: Sequence[Tensor], inputs: "_Inputs") -> None:
        """Take a copy of each real storage that an operator will write into, or has made a view of."""
        for x in tensors:
            address = _address(x)
            if address in self._met and address not in self._known:
                self._known[address] = _Known(_copy(self._met[address]), False)
            if id(x) in inputs.values and (found := self._value(x)) is not None:
                inputs.values[id(x)] = found[0]

    def _in_one(
        self, op: Any, traits: _Traits, args: Any, kwargs: Any, inputs: "_Inputs", results: list[Tensor]
    ) -> bool:
        """An operator on tensors that are each the same all over, for one of their elements."""
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

    def _store(self, x: Tensor, value: Tensor, guessed: bool) -> None:
        """Keep a value: of a whole tensor, or one that all its elements have."""
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

    def _guess(self, address: int) -> None:
        if (known := self._known.get(address)) is not None:
            self._known[address] = known._replace(guessed=True)

    def _lose(self, traits: _Traits, args: Any, kwargs: Any) -> None:
        """What an operator wrote into holds what is not known."""
        for x in _written(traits, args, kwargs):
            address = _address(x)
            if address in self._known or address in self._met:
                self._known[address] = None


class _Inputs:
    """The values of an operator's tensors, by the identity of each.

    Attributes:
        values: the values.
        guessed: whether one is only as good as any.
    """

    def __init__(self, values: dict[int, Tensor], guessed: bool) -> None:
        self.values = values
        self.guessed = guessed

    def are_few(self) -> bool:
        """Whether they are read in no time."""
        return sum(x.numel() for x in self.values.values()) <= _READ

    def of(self, value: Any) -> Any:
        """Arguments with the values in place of the tensors."""
        if isinstance(value, Tensor):
            return self.values[id(value)]
        if isinstance(value, dict):
            return {name: self.of(each) for name, each in value.items()}
        if type(value) is tuple or type(value) is list:
            return type(value)(self.of(each) for each in value)
        if isinstance(value, torch.Generator):
            return value.clone_state()  # the code's own stays where it is
        return value


def stand_in(op: Any, args: Sequence[Any]) -> Any:
    """What is read in place of a value that is not known: harmless, and of the right type."""
    if op is aten._local_scalar_dense.default:
        return _stand_in(args[0].dtype)
    return False  # `torch.equal` and `torch.allclose`


def _stand_in(dtype: torch.dtype) -> Any:
    return False if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1


# --- operators

# Their result holds one number all over, or what happens to lie there, whatever their inputs hold.
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
_COPIES = {aten.clone.default, aten._to_copy.default}
_RUNNING = {"running_mean", "running_var"}  # which a norm writes into without saying so


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
    """Whether a comparison is a part of ``torch.isfinite``, which is none of an operator to PyTorch."""
    x, other = args[0], args[1]
    if op is not aten.eq.Tensor:
        return isinstance(other, float) and other == math.inf
    alike = (x.shape, x.stride(), x.storage_offset()) == (other.shape, other.stride(), other.storage_offset())
    return alike and _address(x) == _address(other)


def _written(traits: _Traits, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operator writes into."""
    for position, name in traits.written:
        value = args[position] if position < len(args) else kwargs.get(name)
        yield from (x for x in _each(value) if isinstance(x, Tensor))


def _may_be_drawn(x: Tensor) -> bool:
    return x.numel() <= (_DRAWN if x.is_floating_point() else LIMIT)


# --- tensors


class _in_earnest:
    """Real tensors are computed with, of which no mode is told; what is kept never meets autograd."""

    def __enter__(self) -> None:
        self._inference = torch._C._InferenceMode(True)
        self._inference.__enter__()
        self._unwatched = torch._C._DisableTorchDispatch()
        self._unwatched.__enter__()

    def __exit__(self, *error: object) -> None:
        self._unwatched.__exit__(*error)
        self._inference.__exit__(*error)


def _address(x: Tensor) -> int:
    return x.untyped_storage()._cdata if x.layout is torch.strided else 0


def _view(storage: torch.UntypedStorage, x: Tensor) -> Tensor:
    """What a fake tensor's view of a storage is of a real one."""
    return torch.empty(0, dtype=x.dtype).set_(storage, int(x.storage_offset()), x.shape, x.stride())


def _copy(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    return torch.empty(0, dtype=torch.uint8).set_(storage).clone().untyped_storage()


def _one(x: Tensor) -> Tensor:
    """One element of a tensor that is the same all over, in as many dimensions."""
    return x.as_strided((1,) * x.dim(), (1,) * x.dim())


def _is_whole(x: Tensor) -> bool:
    """Whether a tensor is all of its storage."""
    return x.numel() * x.element_size() == x.untyped_storage().nbytes()


def _without_pinning(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "pin_memory"}


def _each(out: Any) -> Iterator[Any]:
    if isinstance(out, tuple | list):
        for each in out:
            yield from _each(each)
    else:
        yield out
