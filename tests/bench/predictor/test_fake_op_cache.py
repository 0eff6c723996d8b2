"""Results that the cache recreates equal those of PyTorch's fake tensors; other calls are not cached."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ppdm_bench.predictor import fake_op_cache
from ppdm_bench.predictor.fake_op_cache import FakeOpCache
from ppdm_bench.predictor.fake_storage import run_fake
from ppdm_bench.predictor.peak import predict_peak

aten = torch.ops.aten


class Counted:
    """Runs operators without the cache and counts the calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, op, args, kwargs):
        self.calls += 1
        return run_fake(op, args, kwargs)


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setattr(fake_op_cache, "_RESULTS", {})
    with FakeTensorMode() as mode:
        run = Counted()
        yield FakeOpCache(mode, run), run


def test_a_cached_result_is_a_new_tensor_with_the_same_properties(noted):
    run, earnest = noted
    x = torch.empty(2, 3, 4, dtype=torch.bfloat16).transpose(0, 1)
    first, again = (run(aten.relu.default, (x,), {}) for _ in range(2))
    assert earnest.calls == 1
    assert (again.shape, again.stride(), again.dtype) == (first.shape, first.stride(), first.dtype)
    assert again.untyped_storage()._cdata not in {t.untyped_storage()._cdata for t in (first, x)}


def test_views_share_the_storage_of_their_own_argument(noted):
    run, earnest = noted
    for _ in range(2):
        x = torch.empty(4, 6)
        parts = run(aten.split.Tensor, (x, 2, 1), {})
        assert [part.storage_offset() for part in parts] == [0, 2, 4]
        assert {part.untyped_storage()._cdata for part in parts} == {x.untyped_storage()._cdata}
    assert earnest.calls == 1


def test_the_result_of_an_in_place_operator_is_its_argument(noted):
    run, earnest = noted
    for _ in range(2):
        x = torch.empty(3)
        assert run(aten.add_.Tensor, (x, 1), {}) is x
    assert earnest.calls == 1


def test_equal_numbers_of_different_types_are_distinguished(noted):
    run, _ = noted
    x = torch.empty(3, dtype=torch.int64)
    assert run(aten.mul.Tensor, (x, 1), {}).dtype is torch.int64
    assert run(aten.mul.Tensor, (x, 1.0), {}).dtype is torch.float32


@pytest.mark.parametrize(
    ("op", "others", "shape"),
    [
        (aten.squeeze_.default, (), (3, 2)),
        (aten.unsqueeze_.default, (0,), (1, 3, 1, 2)),
        (aten.transpose_.default, (0, 2), (2, 1, 3)),
        (aten.resize_.default, ([6],), (6,)),
    ],
)
def test_an_operator_that_changes_a_shape_in_place_is_not_cached(noted, op, others, shape):
    run, earnest = noted
    for calls in (1, 2):
        x = torch.empty(3, 1, 2)
        run(op, (x, *others), {})
        assert x.shape == shape
        assert earnest.calls == calls


def test_an_operator_whose_result_depends_on_data_is_not_cached(noted):
    run, earnest = noted
    for calls in (1, 2):
        run(aten._local_scalar_dense.default, (torch.empty((), dtype=torch.int64),), {})  # the operator of `x.item()`
        assert earnest.calls == calls


def test_operators_on_constants_are_not_cached(noted):
    run, earnest = noted
    for calls in (1, 2):
        run(aten.neg.default, (torch.tensor(3.0),), {})
        assert earnest.calls == calls


def test_predictions_do_not_depend_on_the_cache(monkeypatch):
    def build():
        net = torch.nn.Sequential(
            torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.GroupNorm(2, 4), torch.nn.Conv3d(4, 1, 3)
        )
        return net, torch.optim.AdamW(net.parameters())

    def step(state):
        net, optimizer = state
        torch.nn.functional.mse_loss(net(torch.randn(1, 1, 9, 8, 8)), torch.zeros(1, 1, 7, 6, 6)).backward()
        optimizer.step()
        optimizer.zero_grad()

    with_cache = [predict_peak(build, step, 3) for _ in range(2)]
    monkeypatch.setattr(fake_op_cache, "_is_cacheable", lambda op: False)
    without = predict_peak(build, step, 3)
    for peak in with_cache:
        assert peak == without
        assert peak.timeline.events == without.timeline.events
