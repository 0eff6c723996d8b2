"""Known values: constants, values computed from them, and real tensors, until unknown data overwrites them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppdm_bench.predictor.peak import PredictionError, predict_peak
from ppdm_bench.predictor.target import Target

TARGETS = ["cpu", Target(torch="2.10.0")]


def seen(read: Callable[[], Any], target: Any = "cpu") -> Any:
    """Return what code reads in a prediction."""
    values = []
    predict_peak(lambda: None, lambda _: values.append(read()), iterations=1, target=target)
    return values[0]


def unknown(*shape: int) -> Tensor:
    """Return unknown values: part of a random tensor that is too large to be sampled."""
    return torch.randn(1000)[:3] if not shape else torch.randn(*shape)


def written(write: Callable[[Tensor], Any]) -> Callable[[], Any]:
    def read() -> Any:
        x = torch.arange(6.0)
        write(x)
        return x.tolist()

    return read


def rates() -> list[float]:
    return [x.item() for x in torch.linspace(0, 0.1, 5)]


def schedule() -> list[float]:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    return F.pad(kept[:-1], (1, 0), value=1.0)[torch.tensor([0, 10, 999])].tolist()


KNOWN: dict[str, Callable[[], Any]] = {
    "arange": lambda: torch.arange(2, 5).tolist(),
    "tensor": lambda: torch.tensor([2, 3]).tolist(),
    "as_tensor": lambda: torch.as_tensor([[2.5], [3]]).tolist(),
    "from numpy": lambda: (torch.from_numpy(np.array([4, 7])) + 1).tolist(),
    "item": lambda: torch.tensor(5).item(),
    "int of a maximum": lambda: int(torch.tensor([5, 9, 12]).max()),
    "product": lambda: int(torch.tensor([10, 20, 30]).prod()),
    "float": lambda: float(torch.tensor([0.5, 0.25]).sum()),
    "bool": lambda: (bool((torch.arange(3) > 1).any()), bool((torch.arange(3) > 1).all())),
    "unique": lambda: [x.tolist() for x in torch.unique(torch.tensor([8, 2, 8]), return_counts=True)],
    "nonzero": lambda: torch.nonzero(torch.tensor([0, 1, 1])).tolist(),
    "where": lambda: torch.where(torch.arange(4) > 2, 1, 0).tolist(),
    "boolean index": lambda: torch.arange(5)[torch.arange(5) > 2].tolist(),
    "rates": rates,
    "schedule": schedule,
    "flip and cumsum": lambda: torch.arange(5).flip(0).cumsum(0).tolist(),
    "full": lambda: torch.full((2, 2), 7).tolist(),
    "numpy": lambda: torch.zeros(3, dtype=torch.int64).add(2).numpy().tolist(),
    "asarray": lambda: np.asarray(torch.arange(3)).tolist(),
    "iterated": lambda: [int(x) for x in torch.arange(3)],
    "as index": lambda: ["a", "b", "c"][torch.tensor(2)],
    "format": lambda: f"{torch.tensor(2.5):.2f}",
    "half": lambda: torch.tensor([1.0, 2.0]).half().tolist(),
    "large": lambda: (torch.ones(400, 400) * 2).sum().item(),
    "new": lambda: torch.randn(9).new_full((2,), 3.0).tolist(),
    "like": lambda: torch.zeros_like(torch.randn(300, 300)[0]).sum().item(),
    "equal": lambda: torch.equal(torch.arange(3), torch.tensor([0, 1, 2])),
    "no gradient": lambda: (nn.Parameter(torch.ones(3)) * 2).detach().tolist(),
    "a norm's weight": lambda: nn.GroupNorm(2, 4).weight.sum().item(),
    "a counter": lambda: _counted(nn.BatchNorm1d(2)),
    "resized": lambda: torch.arange(6).view(2, 3).t().contiguous().tolist(),
    "grid": lambda: torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).tolist(),
    "repeat": lambda: torch.arange(2).repeat_interleave(torch.tensor([2, 1])).tolist(),
    "size": lambda: torch.tensor(torch.zeros(4, 5).shape).tolist(),
    "bytes": lambda: torch.tensor([1.0]).view(torch.int32).tolist(),
    "set by index": lambda: _set(torch.zeros(4)),
    "written by numpy": lambda: _written_by_numpy(torch.zeros(3)),
    "counted": written(lambda x: x.add_(1)),
    "a view is written": written(lambda x: x.view(2, 3)[:, 1].mul_(10)),
    "a view of bytes is written": written(lambda x: x.view(torch.int32)[:2].zero_()),
    "copied into": written(lambda x: x[2:4].copy_(torch.tensor([7.0, 8.0]))),
    "out": written(lambda x: torch.add(torch.ones(6), 1, out=x)),
    "foreach": written(lambda x: torch._foreach_add_([x], 1)),
    "by data": written(lambda x: x.data.fill_(3)),
}


def _counted(norm: nn.Module) -> Any:
    norm(torch.randn(3, 2))
    norm(torch.randn(3, 2))
    return norm.num_batches_tracked.item()  # type: ignore[operator]


def _set(x: Tensor) -> Any:
    x[1], x[torch.tensor(3)] = 5, torch.tensor(6.0)
    return x.tolist()


def _written_by_numpy(x: Tensor) -> Any:
    x.numpy()[1] = 4
    return x.tolist()


@pytest.mark.parametrize("target", TARGETS, ids=["cpu", "cuda"])
@pytest.mark.parametrize("inference", [False, True])
def test_constants_keep_their_values(target: Any, inference: bool) -> None:
    def read() -> dict[str, Any]:
        with torch.inference_mode(inference):
            return {name: value() for name, value in KNOWN.items() if name != "no gradient" or not inference}

    for _ in range(2):  # the second time with a filled cache
        assert seen(read, target) == read()


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "the tensor itself": lambda x: x.add_(unknown()),
    "a view": lambda x: x[1:].mul_(unknown()[:2]),
    "an alias": lambda x: x.detach().copy_(unknown()),
    "a view of bytes": lambda x: x.view(torch.int32).view(torch.float32).copy_(unknown()),
    "by index": lambda x: x.__setitem__(0, unknown()[0]),
    "out": lambda x: torch.add(unknown(), 1, out=x),
    "foreach": lambda x: torch._foreach_add_([x], [unknown()]),
    "random": lambda x: x.view(3, 1).expand(3, 1).normal_() if x.numel() > 16 else x.add_(unknown()),
    "data": lambda x: setattr(x, "data", unknown()),
    "scatter": lambda x: x.scatter_(0, torch.tensor([0, 1, 2]), unknown()),
    "a norm": lambda x: F.batch_norm(torch.randn(50, 3), x, torch.ones(3), training=True),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_tensor_is_unknown_after_data_is_written_into_it(name: str) -> None:
    def read() -> Any:
        x = torch.tensor([5.0, 5.0, 5.0])
        view, before = x[:2], x.clone()
        WRITES[name](x)
        return x.tolist(), (view if name != "data" else x[:2]).tolist(), before.tolist()

    for _ in range(2):
        assert seen(read) == ([1.0] * 3, [1.0] * 2, [5.0] * 3)


def test_values_of_existing_tensors_are_known_and_restored() -> None:
    lengths, base = torch.tensor([5, 9]), torch.arange(6)
    part = base[2:4]

    def read() -> Any:
        before = lengths.max().item(), (part + 1).tolist(), base[1:3].tolist()
        base[1:3].add_(1)
        part.mul_(10)
        return before, base.tolist(), part.tolist(), base.sum().item()

    assert seen(read) == ((9, [3, 4], [1, 2]), [0, 2, 30, 30, 4, 5], [30, 30], 71)
    assert base.tolist() == [0, 1, 2, 3, 4, 5]


def test_random_samples_are_plausible_and_generators_are_restored() -> None:
    def read() -> None:
        assert sorted(torch.randperm(7).tolist()) == list(range(7))
        assert 0 <= torch.rand(1).item() < 1
        assert all(3 <= x < 5 for x in torch.randint(3, 5, (9,)).tolist())
        assert torch.bernoulli(torch.ones(2)).tolist() == [1, 1]
        with pytest.raises(Exception, match="nonzero"):
            torch.nonzero(torch.rand(3) > 0.5)

    state = torch.get_rng_state()
    generator = torch.Generator()
    before = generator.get_state()
    seen(read)
    seen(lambda: torch.randperm(7, generator=generator).tolist())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(generator.get_state(), before)


def test_a_sampler_gives_every_volume_once() -> None:
    loader = torch.utils.data.DataLoader(torch.arange(5.0), shuffle=True)  # type: ignore[arg-type]
    assert sorted(seen(lambda: [x.item() for x in loader])) == [0, 1, 2, 3, 4]


# --- whether values are finite


FINITE: dict[str, Callable[[Tensor], Any]] = {
    "isfinite": lambda x: torch.isfinite(x).all(),
    "of one": lambda x: torch.isfinite(x.sum()),
    "method": lambda x: x.isfinite().all().item(),
    "counted": lambda x: x.isfinite().sum().item() == x.numel(),
    "not nan": lambda x: not torch.isnan(x).any(),
    "not inf": lambda x: not torch.isinf(x).any(),
    "equal to itself": lambda x: (x == x).all(),
    "below infinity": lambda x: (x.abs() < float("inf")).all(),
    "of all": lambda x: all(torch.isfinite(each).all() for each in x),
    "nothing is not finite": lambda x: not (~torch.isfinite(x)).any(),
    "not one or another": lambda x: not (torch.isnan(x) | torch.isinf(x)).any(),
    "stacked": lambda x: torch.stack([torch.isfinite(each).all() for each in x]).all(),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("target", TARGETS, ids=["cpu", "cuda"])
def test_unknown_data_counts_as_finite(target: Any, inference: bool) -> None:
    def read() -> dict[Any, bool]:
        with torch.inference_mode(inference):
            sizes = {size: torch.randn(5, size, 200)[:, 1:] for size in (5, 400)}
            return {(name, size): bool(ask(x)) for name, ask in FINITE.items() for size, x in sizes.items()}

    assert [case for case, finite in seen(read, target).items() if not finite] == []


# --- sizes that depend on data


def count() -> Tensor:
    return (torch.randn(300, 300) > 0).sum()


SIZES: dict[str, Callable[[], Any]] = {
    "int": lambda: torch.zeros(int(count()), 10),
    "item": lambda: torch.zeros(count().item(), 10),
    "worked out": lambda: torch.empty((3, (count().item() + 1) * 2)),
    "int of item": lambda: torch.empty(int(count().item())),
    "index": lambda: torch.ones(5).expand(count().__index__(), 5),
    "list": lambda: torch.split(torch.ones(3), [count()[None].tolist()[0], 2]),
    "slice": lambda: torch.randn(9)[: count().item()],
    "arange": lambda: torch.arange(count().item()),
    "method": lambda: torch.randn(9).new_zeros(count().item()),
    "view": lambda: torch.randn(9).view(count().item(), -1),
    "padding": lambda: F.pad(torch.randn(9), (0, count().item())),
    "one-hot": lambda: F.one_hot(torch.randn(9, 90).argmax(1)),
    "range": lambda: torch.zeros(max(count().item(), 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=["cpu", "cuda"])
def test_sizes_that_depend_on_data_are_refused(target: Any) -> None:
    for name, make in SIZES.items():
        with pytest.raises(PredictionError, match="depends on data"):
            assert seen(make, target) is None, name
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("target", TARGETS, ids=["cpu", "cuda"])
def test_numbers_that_depend_on_data_can_be_logged(target: Any) -> None:
    def read() -> str:
        right = count().item()
        x = torch.arange(9.0)[count()] + torch.randn(3)[torch.randn(9, 3).argmax(1)].sum()
        torch.full((2,), right, dtype=torch.float32).div_(right).view(2, 1)
        with torch.device("cpu"):
            assert count().item() == 1
        assert torch.get_default_device().type == "cpu"
        return f"{right} {right / 3:.2f} {sum([right, right])} {count():d} {float(count())} {x.item()} {bool(right)}"

    assert seen(read, target) == "1 0.33 2 1 1.0 1.0 True"


def test_an_error_in_the_code_has_a_note_that_values_were_made_up() -> None:
    def check() -> None:
        assert torch.randn(300, 300).sum() < 0

    with pytest.raises(AssertionError) as caught:
        seen(check)
    assert "made up" in caught.value.__notes__[0]
    with pytest.raises(ZeroDivisionError) as plain:
        seen(lambda: 1 // 0)
    assert not hasattr(plain.value, "__notes__")


# --- comparisons with unknown values


def loss() -> Tensor:
    return torch.randn(300, 300).sum()


ANSWERS: dict[str, tuple[Callable[[], Any], bool]] = {
    "positive": (lambda: loss() > 0, True),
    "below the best": (lambda: loss() < float("inf"), True),
    "below the best tensor": (lambda: loss() < torch.tensor(float("inf")), True),
    "diverged": (lambda: loss() > 1e4, False),
    "zero": (lambda: loss() == 0, False),
    "a probability": (lambda: ((p := torch.randn(300, 300).softmax(1)) >= 0).all() & (p <= 1).all(), True),
    "not a number": (lambda: torch.isnan(loss()) | torch.isinf(loss()), False),
    "right": (lambda: (torch.randn(9, 3).argmax(1) == torch.randint(0, 2, (90000, 9))[0]).any(), True),
    "equal": (lambda: torch.equal(torch.randn(300, 300), torch.randn(300, 300)), True),
    "moved": (lambda: (loss() > 0).cpu().clone(), True),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_unknown_value_counts_as_1_in_comparisons(name: str) -> None:
    ask, answer = ANSWERS[name]
    assert seen(lambda: bool(ask()), TARGETS[1]) is answer


def test_the_peak_lists_where_values_were_made_up() -> None:
    best = [float("inf")]

    def step(net: nn.Module) -> None:
        error = net(torch.randn(300, 300)).square().mean()
        if error < best[0]:
            best[0] = error.item()
        error.detach().cpu().numpy()
        error.tolist()
        torch.arange(3).sum().item()  # known

    peak = predict_peak(lambda: nn.Linear(300, 300), step, target="cpu")
    start = step.__code__.co_firstlineno
    reads = [(read, read.line, times) for read, times in peak.made_up.items() if read.line]
    found = [(read.kind, line.number - start, read.decided, times) for read, line, times in reads]
    assert found == [("branch", 2, True, 2), ("number", 3, False, 1), ("array", 4, False, 2), ("list", 5, False, 2)]
    assert {Path(line.file).name for _, line, _ in reads} == {Path(__file__).name}


MORE_SIZES: dict[str, Callable[[], Any]] = {
    "rounded": lambda: torch.zeros(round(loss().item() * 10), 10),
    "rounded up": lambda: torch.zeros(math.ceil(loss().item() / 2), 10),
    "int of a fraction": lambda: torch.zeros(int(loss().item() * 10), 10),
    "int of a tensor": lambda: torch.zeros(int(loss() * 10), 10),
    "share of a count": lambda: torch.zeros(int(count().item() * 0.5), 10),
    "NumPy": lambda: torch.zeros(count().numpy() + 1, 10),
    "NumPy's largest": lambda: torch.zeros(torch.randn(9, 3).argmax(1).numpy().max() + 1, 10),
    "NumPy's product": lambda: torch.zeros(np.prod(torch.randn(9, 3).argmax(1).numpy()), 10),
    "an element": lambda: torch.zeros(torch.randn(9, 3).argmax(1).numpy()[0].item(), 10),
    "range up to a tensor": lambda: torch.arange(count()),
    "a tensor as size": lambda: torch.randn(3).new_zeros([count(), 10]),
    "slice up to a tensor": lambda: torch.randn(9)[: count()],
    "a scale": lambda: F.interpolate(torch.randn(1, 1, 8), scale_factor=loss().item()),
}


@pytest.mark.parametrize("name", MORE_SIZES)
def test_a_refused_size_that_depends_on_data_is_reported_with_its_line(name: str) -> None:
    with pytest.raises(PredictionError, match=r"test_known_values.py:\d+: .*depends on data"):
        seen(MORE_SIZES[name])
