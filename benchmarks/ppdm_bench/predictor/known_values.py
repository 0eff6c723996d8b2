"""Known values of fake tensors: constants, and values computed only from constants.

Some code reads small tensors and needs their values: the dimensions that a loss reduces over, the widths of a network's
stages, lengths, dropout rates. Therefore each fake storage has a real storage with its values, until a value that
depends on data is written to it. A view of the fake storage is also a view of the real one, so an alias always shows
the latest value. A large tensor is known while all its elements are equal, for example zeros. The real storages are not
part of the recorded memory.

A value has one of five kinds:

- known: the value that a real tensor would have;
- sampled: a small random tensor, which is as good as any other sample;
- assumed: the assumption that an unknown value is finite;
- answered: the result of another comparison with an unknown value, such as ``loss < best``. Each unknown number counts
  as 1 there, and no further number is computed from the answer;
- unknown: all others. Code reads a placeholder instead (:func:`placeholder`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ppdm_bench.predictor.lines import Line
from ppdm_bench.predictor.operator_traits import (
    COPIES,
    QUESTIONS,
    Traits,
    address_of,
    is_finite_check,
    tensors_in,
    traits_of,
)

aten = torch.ops.aten

LIMIT = 1 << 16  # maximum elements of a tensor whose values are kept individually
_SAMPLED_LIMIT = 16  # maximum elements of a sampled floating-point tensor: a decision, not an input
_READ_LIMIT = 1 << 24  # maximum elements that an operator may read to compute a known result
CPU = torch.device("cpu")

# Text for users: what code reads instead of an unknown value.
PLACEHOLDERS = "every unknown number is replaced by 1, also in comparisons"

KNOWN, SAMPLED, ASSUMED, ANSWERED = range(4)  # the kinds of values that are stored; the most certain kind comes first


class _Known(NamedTuple):
    """Content of a fake storage.

    Attributes:
        values: the real storage, or one element if all elements are equal.
        uncertainty: one of ``KNOWN``, ``SAMPLED``, ``ASSUMED`` and ``ANSWERED``.
    """

    values: torch.UntypedStorage | Tensor
    uncertainty: int


class UnknownRead(NamedTuple):
    """One way in which code read an unknown value.

    Attributes:
        kind: how it was read: ``number`` (``item``, ``float``, formatting), ``branch`` (``bool``, as in ``if`` and
            ``assert``), ``array`` (``numpy``) or ``list`` (``tolist``).
        line: the line that read it; None if lines are not recorded.
    """

    kind: str
    line: Line | None

    @property
    def decided(self) -> bool:
        """Whether the tensor itself was read as a boolean, so that its value decided a branch."""
        return self.kind == "branch"


class KnownValues:
    """The known values of one prediction.

    Attributes:
        made_up: number of reads of unknown values, by kind of read and line.
        current_line: returns the line that is running; None if lines are not recorded.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.made_up = Counter[UnknownRead]()
        self._reading = "number"
        self.current_line: Callable[[], Line | None] | None = None
        self._mode = mode
        self._known: dict[int, _Known | None] = {}  # by address of the fake storage; None if it became unknown
        # Real storages of the next operator's arguments, by address of the fake storage.
        self._arguments: dict[int, torch.UntypedStorage] = {}

    @property
    def reads_by_line(self) -> Counter[Line | None]:
        """Number of reads of unknown values by line, over all kinds of reads."""
        by_line = Counter[Line | None]()
        for read, times in self.made_up.items():
            by_line[read.line] += times
        return by_line

    @contextmanager
    def reading(self, kind: str) -> Iterator[None]:
        """Record reads within the block under this kind; see :class:`UnknownRead`."""
        before, self._reading = self._reading, kind
        try:
            yield
        finally:
            self._reading = before

    def forget(self, address: int) -> None:
        """Remove the values of a fake storage that was freed."""
        self._known.pop(address, None)

    def add_argument(self, fake: Tensor, x: Tensor) -> None:
        """Provide the values of a real tensor, represented by a fake one, to the next operator."""
        if fake.numel() <= LIMIT and x.untyped_storage().nbytes() <= 16 * LIMIT:
            self._arguments[address_of(fake)] = x.untyped_storage()

    def clear_arguments(self) -> None:
        """Remove the values provided by :meth:`add_argument`."""
        self._arguments.clear()

    def follows(self, x: Tensor) -> bool:
        """Whether this object has an entry for a fake tensor, even if its value is unknown."""
        return address_of(x) in self._known

    def is_known(self, x: Tensor) -> bool:
        """Whether the values of a fake tensor are known, so that a size may depend on them."""
        known = self._known.get(address_of(x))
        return known is not None and known.uncertainty < ANSWERED

    def read(self, x: Tensor, how: Callable[[Tensor], Any], kind: str) -> Any:
        """Apply a function to the values of a tensor, or to placeholders if the values are unknown.

        ``kind`` is that of :class:`UnknownRead`.
        """
        with _real_computation(), self.reading(kind):
            found = self._value(x)
            self._record_read(found is None or found[1] >= ASSUMED)
            return how(_placeholders(x.shape, x.dtype) if found is None else found[0])

    def values(self, x: Tensor) -> Tensor | None:
        """The known values of a tensor; None if they are not known."""
        with _real_computation():
            found = self._value(x) if self.follows(x) else None
            return None if found is None else found[0]

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
            self.clear_arguments()

    def _run(self, op: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], fake_run: Callable[..., Any]) -> Any:
        if op is aten.lift_fresh.default or op is aten.lift_fresh_copy.default:
            return self._lift(fake_run(op, args, kwargs), args[0])
        traits = traits_of(op)
        if not traits.runs_on_real:
            out = fake_run(op, args, kwargs)
            self._forget_written(traits, args, kwargs)
            return out
        inputs = self._inputs(tensors)
        if traits.reads or (traits.has_dynamic_shape and inputs is not None and not inputs.uncertainty):
            return self._read(op, traits, args, kwargs, inputs, fake_run)
        out = fake_run(op, args, kwargs)
        if traits.fill_value is not None and self._fill(traits, args, kwargs, out):
            return out
        if inputs is not None and self._run_on_known(op, traits, args, kwargs, inputs, out):
            return out
        self._forget_written(traits, args, kwargs)
        if inputs is None and op in QUESTIONS and type(out) is FakeTensor:
            self._answer_question(op, args, kwargs, tensors, out)
        return out

    def _answer_question(self, op: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], out: FakeTensor) -> None:
        """Compute a boolean result from unknown numbers, each of which counts as 1."""
        with _real_computation():
            if is_finite_check(op, args):
                self._store(out, torch.tensor(True), ASSUMED)
                return
            ones = {}
            for x in tensors:
                found = self._value(x)
                if found and any(found[0].stride()) and found[0].numel() != 1:
                    return  # several known values, for which the answers can differ
                ones[id(x)] = _one(found[0]) if found else _placeholders((1,) * x.dim(), x.dtype)
            inputs = _Inputs(ones, ANSWERED)
            answer = op(*inputs.of(args), **inputs.of(kwargs))
            self._store(out, answer.reshape(()).to(out.dtype), ANSWERED)

    def _record_read(self, made_up: bool) -> None:
        if made_up:
            self.made_up[UnknownRead(self._reading, self.current_line() if self.current_line else None)] += 1

    # --- inputs

    def _inputs(self, tensors: Sequence[Tensor]) -> "_Inputs | None":
        """Values of an operator's tensors; None if any value is unknown."""
        for x in tensors:
            address = address_of(x)
            if self._known.get(address) is None and (address in self._known or address not in self._arguments):
                return None
        inputs = _Inputs({}, KNOWN)
        with _real_computation():
            for x in tensors:
                if (found := self._value(x)) is None:
                    return None
                inputs.values[id(x)] = found[0]
                inputs.uncertainty = max(inputs.uncertainty, found[1])
        return inputs

    def _value(self, x: Tensor) -> tuple[Tensor, int] | None:
        address = address_of(x)
        if address in self._known:
            known = self._known[address]
        else:
            known = _Known(self._arguments[address], KNOWN) if address in self._arguments else None
        if known is None or x.layout is not torch.strided or x.is_conj() or x.is_neg():
            return None
        if isinstance(known.values, Tensor):
            return (known.values.expand(x.shape), known.uncertainty) if known.values.dtype is x.dtype else None
        return _view(known.values, x), known.uncertainty

    # --- results

    def _lift(self, out: FakeTensor, value: Tensor) -> FakeTensor:
        """Result of ``torch.tensor(...)``; the argument is a real tensor that holds the value."""
        out.constant = None  # PyTorch's own record of the value; with it, results are not cached
        if value.numel() <= LIMIT and value.layout is torch.strided:
            with _real_computation():
                self._store(out, value, uncertainty=KNOWN)
        return out

    def _read(self, op: Any, traits: Traits, args: Any, kwargs: Any, inputs: "_Inputs | None", fake_run: Any) -> Any:
        """Result of an operator whose value or shape depends on its inputs' values."""
        if inputs is None or not inputs.are_small():
            self._record_read(True)
            return fake_run(op, args, kwargs)
        self._record_read(inputs.uncertainty >= ASSUMED)
        with _real_computation():
            real = op(*inputs.of(args), **inputs.of(kwargs))
        if traits.reads:
            return real
        made = [self._fake_of(x) if isinstance(x, Tensor) else x for x in _flattened(real)]
        return type(real)(made) if isinstance(real, tuple | list) else made[0]

    def _fake_of(self, real: Tensor) -> Tensor:
        """Fake tensor with the shape, strides and, if small, the values of a real one."""
        with self._mode:
            fake = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=CPU)
        if real.numel() <= LIMIT:
            with _real_computation():
                self._store(fake, real, uncertainty=KNOWN)
        return fake

    def _fill(self, traits: Traits, args: Any, kwargs: Any, out: Any) -> bool:
        """Store the value of a result that holds one repeated number; False if the number is not known."""
        if type(out) is not FakeTensor or out.fake_device != CPU or not _covers_storage(out):
            return False
        number: Any = traits.fill_value
        if isinstance(number, tuple):
            position, name = number
            number = args[position] if position < len(args) else kwargs[name]
        if not isinstance(number, int | float | bool):
            return False
        with _real_computation():
            value = torch.tensor(0, dtype=out.dtype)
            try:
                value.fill_(number)
            except (RuntimeError, TypeError):
                return False
            self._store(out, value, uncertainty=KNOWN)
        return True

    def _run_on_known(self, op: Any, traits: Traits, args: Any, kwargs: Any, inputs: "_Inputs", out: Any) -> bool:
        """Run an operator on the known values after the fake run, and store the result; False if it stays unknown."""
        results = tensors_in(out)
        if not traits.written and results and all(self._known.get(address_of(x)) is not None for x in results):
            return True  # views of storages whose values are already known
        if not all(type(x) is FakeTensor and x.fake_device == CPU for x in results) or not inputs.are_small():
            return False
        if inputs.uncertainty == ANSWERED and any(x.dtype is not torch.bool for x in results):
            return False  # compute no number from answers: a count, for example, could be out of range
        small = all(x.numel() <= LIMIT for x in results)
        if traits.random and not (small and all(_may_be_sampled(x) for x in results)):
            return False
        written = list(traits.written_tensors(args, kwargs))
        with _real_computation():
            if not small or any(map(self._is_uniform, written)):
                return self._run_on_one_element(op, args, kwargs, inputs, written, results)
            self._unshare([*written, *results], inputs)
            try:
                real = op(*inputs.of(args), **_without_pinning(inputs.of(kwargs)))
            except (RuntimeError, IndexError, TypeError, ValueError):
                return False  # the CPU lacks the kernel, or a value is invalid; the real run of the code reports it
            uncertainty = max(inputs.uncertainty, SAMPLED if traits.random else KNOWN)
            real_results = tensors_in(real)
            if len(real_results) != len(results):
                return False
            if uncertainty:
                for x in written:
                    self._raise_uncertainty(address_of(x), uncertainty)
            fresh = set[int]()
            for x, real_result in zip(results, real_results, strict=True):
                address = address_of(x)
                if address in fresh or self._known.get(address) is None:
                    fresh.add(address)
                    self._store(x, real_result, uncertainty)
        return True

    def _unshare(self, tensors: Sequence[Tensor], inputs: "_Inputs") -> None:
        """Copy each real storage that an operator writes to or returns a view of."""
        for x in tensors:
            address = address_of(x)
            if address in self._arguments and address not in self._known:
                self._known[address] = _Known(_copy(self._arguments[address]), KNOWN)
            if id(x) in inputs.values and (found := self._value(x)) is not None:
                inputs.values[id(x)] = found[0]

    def _run_on_one_element(
        self, op: Any, args: Any, kwargs: Any, inputs: "_Inputs", written: list[Tensor], results: list[Tensor]
    ) -> bool:
        """Run an operator on one element of each tensor; False if a tensor has different elements."""
        same = (torch.Tag.pointwise in op.tags or op in COPIES) and len(results) == 1
        if not same or not all(stride == 0 for x in inputs.values.values() for stride in x.stride()):
            return False
        if not all(map(_covers_storage, [*results, *written])):
            return False
        ones = _Inputs({name: _one(x) for name, x in inputs.values.items()}, inputs.uncertainty)
        try:
            real = op(*ones.of(args), **_without_pinning(ones.of(kwargs)))
        except (RuntimeError, TypeError, ValueError):
            return False
        if not isinstance(real, Tensor) or real.numel() != 1:
            return False
        self._store(results[0], real.reshape(()).clone(), inputs.uncertainty)
        return True

    def _store(self, x: Tensor, value: Tensor, uncertainty: int) -> None:
        """Store the values of a tensor; a scalar ``value`` is the value of all its elements."""
        address = address_of(x)
        size = x.untyped_storage().nbytes()
        if value.dtype is not x.dtype or (value.dim() and value.shape != x.shape):
            self._known[address] = None
        elif x.numel() > LIMIT or size > 16 * LIMIT:
            is_uniform = value.dim() == 0 and _covers_storage(x)
            self._known[address] = _Known(value.clone(), uncertainty) if is_uniform else None
        else:
            known = self._known.get(address)
            if known is None or not isinstance(known.values, torch.UntypedStorage) or known.values.nbytes() != size:
                known = _Known(torch.zeros(size, dtype=torch.uint8).untyped_storage(), uncertainty)
            self._known[address] = known._replace(uncertainty=uncertainty)
            _view(known.values, x).copy_(value)  # type: ignore[arg-type]

    def _is_uniform(self, x: Tensor) -> bool:
        known = self._known.get(address_of(x))
        return known is not None and isinstance(known.values, Tensor)

    def _raise_uncertainty(self, address: int, uncertainty: int) -> None:
        if (known := self._known.get(address)) is not None:
            self._known[address] = known._replace(uncertainty=max(known.uncertainty, uncertainty))

    def _forget_written(self, traits: Traits, args: Any, kwargs: Any) -> None:
        """Mark as unknown all storages that an operator wrote to."""
        for x in traits.written_tensors(args, kwargs):
            address = address_of(x)
            if address in self._known or address in self._arguments:
                self._known[address] = None


@dataclass
class _Inputs:
    """Values of an operator's tensors.

    Attributes:
        values: the values, by the tensor's ``id``.
        uncertainty: the least certain kind of these values.
    """

    values: dict[int, Tensor]
    uncertainty: int

    def are_small(self) -> bool:
        """Whether the tensors are small enough for a quick computation."""
        return sum(x.numel() for x in self.values.values()) <= _READ_LIMIT

    def of(self, value: Any) -> Any:
        """Replace the fake tensors in arguments by their real values."""
        if isinstance(value, Tensor):
            return self.values[id(value)]
        if isinstance(value, dict):
            return {name: self.of(each) for name, each in value.items()}
        if type(value) is tuple or type(value) is list:
            return type(value)(self.of(each) for each in value)
        if isinstance(value, torch.Generator):
            return value.clone_state()  # the user's generator must not advance twice
        return value


def placeholder(op: Any, args: Sequence[Any]) -> Any:
    """Placeholder for an unknown value that an operator reads: 1, 1.0 or False, or True for a comparison."""
    if op is aten._local_scalar_dense.default:
        return _placeholder(args[0].dtype)
    return True  # the result of `torch.equal` and `torch.allclose`; True lets assertions pass and loops end


def _placeholder(dtype: torch.dtype) -> Any:
    return False if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1


def _placeholders(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, _placeholder(dtype), dtype=dtype)


def _may_be_sampled(x: Tensor) -> bool:
    return x.numel() <= (_SAMPLED_LIMIT if x.is_floating_point() else LIMIT)


# --- tensors


class _real_computation:
    """Context for computing with real tensors, without dispatch modes and without autograd."""

    def __enter__(self) -> None:
        self._inference = torch._C._InferenceMode(True)
        self._inference.__enter__()
        self._no_dispatch = torch._C._DisableTorchDispatch()
        self._no_dispatch.__enter__()
        self._no_function = torch._C.DisableTorchFunction()  # the mode of a default device is a function mode
        self._no_function.__enter__()

    def __exit__(self, *error: object) -> None:
        self._no_function.__exit__(None, None, None)
        self._no_dispatch.__exit__(*error)
        self._inference.__exit__(*error)


def _view(storage: torch.UntypedStorage, x: Tensor) -> Tensor:
    """View of a real storage with the shape, strides and offset of a fake tensor."""
    return torch.empty(0, dtype=x.dtype).set_(storage, int(x.storage_offset()), x.shape, x.stride())


def _copy(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    return torch.empty(0, dtype=torch.uint8).set_(storage).clone().untyped_storage()


def _one(x: Tensor) -> Tensor:
    """One element of a tensor with equal elements, with the same number of dimensions."""
    return x.as_strided((1,) * x.dim(), (1,) * x.dim())


def _covers_storage(x: Tensor) -> bool:
    """Whether a tensor covers its entire storage."""
    return x.numel() * x.element_size() == x.untyped_storage().nbytes()


def _without_pinning(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "pin_memory"}


def _flattened(out: Any) -> Iterator[Any]:
    if isinstance(out, tuple | list):
        for each in out:
            yield from _flattened(each)
    else:
        yield out
