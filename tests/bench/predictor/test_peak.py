"""The public functions: our methods and MONAI's network, refused code, restored state, and the verdict."""

import copy
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from examples import training
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp.autocast_mode import autocast

from ppdm.method import Method, sample
from ppdm.model import PPDM
from ppdm.network.options import CHECKPOINTING
from ppdm.training.trainer import Training
from ppdm_baselines import METHODS
from ppdm_bench.predictor.peak import Peak, PredictionError, measure_peak, predict_peak
from ppdm_bench.predictor.target import GIB, MARGIN, MIB, Target


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(50, 70), nn.GELU(), nn.Linear(70, 50))


def data() -> Tensor:
    return torch.randn(9, 50)


# --- our methods, and MONAI's network


SMALL = {
    "ppdm r=2": PPDM.with_network(width=8),
    "ppdm r=4": PPDM.with_factor(4).with_network(width=16, multipliers=(1, 2)),
    "ddpm3d": METHODS["ddpm3d"].with_network(width=8),
}  # `test_baselines` tests every method with a smaller network


def size(method: Method) -> int:
    """Return a small edge length for which no level is below 4³."""
    return max(4 * method.multiple[0], 16)


def assert_same(build: Callable[[], Any], step: Callable[[Any], Any], iterations: int = 2) -> None:
    measured = measure_peak(build, step, iterations)
    predicted = predict_peak(build, step, iterations, target="cpu")
    assert (predicted.iterations, predicted.breakdown) == (measured.iterations, measured.breakdown)
    assert predicted.peak_allocated == measured.peak_allocated > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "checkpointing"),
    [(name, "fp32", "none") for name in SMALL]
    + [("ppdm r=4", "bf16", checkpointing) for checkpointing in CHECKPOINTING]
    + [("ppdm r=2", "bf16", "norm"), ("ddpm3d", "bf16", "block")],
)
def test_training_of_our_methods_is_predicted_to_the_byte(name: str, precision: str, checkpointing: str) -> None:
    method = SMALL[name].with_network(precision=precision, checkpointing=checkpointing)
    if precision == "bf16":  # a CPU without bf16 emulates it many times slower: two levels allow a smaller volume
        method = method.with_network(multipliers=(1, 2))
    n = size(method)

    def step(training: Training) -> None:
        training.step(torch.randn(1, 1, n, n, n), torch.randn(1, 1, n, n, n), 1e-4)

    assert_same(partial(Training.start, method), step)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_sampling_of_our_methods_is_predicted_to_the_byte(name: str) -> None:
    method = replace(SMALL[name], sampling=replace(SMALL[name].sampling, steps=2))
    n = size(method)

    def step(network: nn.Module) -> None:
        sample(method, network, torch.randn(1, 1, n, n, n))

    assert_same(lambda: method.build().eval().requires_grad_(False), step, iterations=1)


@pytest.mark.slow
@pytest.mark.parametrize("attention", [False, True])
def test_the_network_of_monai_is_predicted_to_the_byte(attention: bool) -> None:
    nets = pytest.importorskip("monai.networks.nets")

    def build() -> Any:
        net = nets.DiffusionModelUNet(
            3, 1, 1, num_res_blocks=1, channels=(8, 16), attention_levels=(False, attention), norm_num_groups=4,
            num_head_channels=8,
        )  # fmt: skip
        return net, torch.optim.AdamW(net.parameters())

    def step(state: Any) -> None:
        net, optimiser = state
        net(torch.randn(1, 1, 8, 8, 8), timesteps=torch.randint(0, 1000, (1,))).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    assert_same(build, step)


# --- every kind of callable


class Experiment:
    def __call__(self) -> nn.Module:
        return mlp()

    def step(self, net: nn.Module) -> None:
        net(data()).sum().backward()


def test_build_and_step_can_be_any_callables() -> None:
    experiment = Experiment()
    expected = predict_peak(mlp, lambda net: net(data()).sum().backward(), target="cpu")
    assert predict_peak(experiment, experiment.step, target="cpu").iterations == expected.iterations
    step = partial(Experiment.step, experiment)
    assert predict_peak(partial(mlp), step, target="cpu").iterations == expected.iterations


# --- objects that exist before the prediction


def state_of(net: nn.Module, optimiser: torch.optim.Optimizer) -> Any:
    return (
        [(type(p), p.detach().clone(), None if p.grad is None else p.grad.clone()) for p in net.parameters()],
        {name: buffer.clone() for name, buffer in net.named_buffers()},
        copy.deepcopy(optimiser.state_dict()),
        torch.get_rng_state(),
    )


def assert_untouched(before: Any, net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    weights, buffers, optimiser_state, rng = before
    for p, (kind, value, gradient) in zip(net.parameters(), weights, strict=True):
        assert type(p) is kind
        assert torch.equal(p, value)
        assert (p.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(p.grad, gradient)  # type: ignore[arg-type]
        assert not p._post_accumulate_grad_hooks  # type: ignore[attr-defined]
    for name, buffer in net.named_buffers():
        assert type(buffer) is Tensor
        assert torch.equal(buffer, buffers[name])
    torch.testing.assert_close(optimiser.state_dict(), optimiser_state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), rng)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(50, 70), nn.BatchNorm1d(70), nn.ReLU(), nn.Linear(70, 50))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", Target(torch="2.10.0")])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_existing_tensors_are_counted_and_restored(target: Any, steps_before: int, set_to_none: bool) -> None:
    net, x = normalised(), data()
    optimiser = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.9)

    def step(_: Any) -> None:
        torch.manual_seed(3)
        optimiser.zero_grad(set_to_none=set_to_none)
        net(x).square().mean().backward()
        optimiser.step()

    for _ in range(steps_before):
        step(None)
    before = state_of(net, optimiser)
    predicted = predict_peak(lambda: None, lambda _: (step(None), schedule.step()), target=target)
    assert_untouched(before, net, optimiser)
    if target == "cpu":
        assert predicted.iterations == measure_peak(lambda: None, step).iterations


@pytest.mark.parametrize("target", ["cpu", Target(torch="2.10.0")])
def test_an_existing_network_can_be_converted_and_is_restored(target: Any) -> None:
    net = normalised()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    before = state_of(net, optimiser)

    def build() -> nn.Module:
        converted = net.to(torch.bfloat16)
        assert converted is net
        return net

    def step(net: nn.Module) -> None:
        net(data().bfloat16()).sum().backward()

    inside = predict_peak(lambda: normalised().to(torch.bfloat16), step, target=target)
    assert predict_peak(build, step, target=target).breakdown == inside.breakdown
    assert_untouched(before, net, optimiser)


def test_a_replaced_parameter_of_an_existing_network_is_restored() -> None:
    net = mlp()
    weight = net[0].weight

    def step(_: None) -> None:
        net[0].weight = nn.Parameter(torch.zeros(70, 50))
        net(data())

    predict_peak(lambda: None, step, target="cpu")
    assert net[0].weight is weight


# --- unknown values


def test_code_can_read_unknown_values() -> None:
    def step(net: nn.Module) -> None:
        loss = net(data()).square().mean()
        value = loss.detach()
        if value > 0:  # an unknown number counts as 1
            loss.backward()
        assert isinstance(float(value), float)
        assert value.item() == value.tolist() == 1
        assert not torch.isnan(value).any()
        assert torch.allclose(value, value)
        assert torch.tensor(3.0).item() == 3
        assert f"{value:.2f}" == "1.00"
        assert str(value)
        volume = net(data()).detach().cpu().numpy()
        assert volume.shape == (9, 50)
        assert volume.dtype == np.float32
        assert np.asarray(net(data()).detach()).sum() == 9 * 50

    for target in ("cpu", Target(torch="2.10.0")):
        timeline = predict_peak(mlp, step, target=target).timeline  # type: ignore[arg-type]
        assert timeline is not None
        assert "grads" in {block.kind for block in timeline.blocks}


@pytest.mark.slow
@pytest.mark.parametrize(
    "choose",
    [torch.nonzero, torch.unique, lambda x: x[x > 0], lambda x: torch.masked_select(x, x > 0), lambda x: x.to_sparse()],
    ids=["nonzero", "unique", "boolean index", "masked_select", "sparse"],
)
@pytest.mark.parametrize("target", ["cpu", Target(torch="2.10.0")])
def test_sizes_that_depend_on_data_are_refused(choose: Callable[[Tensor], Tensor], target: Any) -> None:
    with pytest.raises(PredictionError, match=r"has only shapes|sparse") as caught:
        predict_peak(lambda: None, lambda _: choose(data()), target=target)
    assert "aten" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sparse_gradients_are_refused() -> None:
    def step(net: nn.Module) -> None:
        net(torch.tensor([1, 2])).sum().backward()

    with pytest.raises(PredictionError, match="sparse"):
        predict_peak(lambda: nn.Embedding(10, 3, sparse=True), step, target="cpu")


# --- errors


def patched() -> list[Any]:
    """Return objects that a prediction replaces while it runs."""
    cuda = [torch.cuda.__dict__.get(name) for name in sorted(vars(torch.cuda)) if not name.startswith("_")]
    optimizer = sys.modules["torch.optim.optimizer"]
    hooks = [len(getattr(optimizer, f"_global_optimizer_{when}_hooks")) for when in ("pre", "post")]
    return [
        *(FakeTensor.__dict__.get(name) for name in ("device", "__deepcopy__", "__format__", "numpy")),
        autocast.__init__,
        torch.is_autocast_enabled,
        torch.get_autocast_dtype,
        torch.autograd._engine_run_backward,  # type: ignore[attr-defined]
        nn.Module._apply,
        Tensor.record_stream,
        torch.Generator,
        torch.amp.GradScaler._maybe_opt_step,
        optimizer._foreach_supported_types,  # type: ignore[attr-defined]
        *hooks,
        *cuda,
        *(torch.accelerator.__dict__[name] for name in ("is_available", "current_accelerator")),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
    ]


def autocast_on_the_cpu() -> list[torch.dtype]:
    x = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        return [y.dtype for y in (x @ x, F.group_norm(x[None].bfloat16(), 2), F.softmax((x @ x), -1), (x @ x).exp())]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", Target(torch="2.10.0")])
@pytest.mark.parametrize("where", ["build", "step", "backward", "optimizer"])
def test_errors_pass_through_and_everything_is_restored(target: Any, where: str) -> None:
    before, dtypes = patched(), autocast_on_the_cpu()
    net = mlp()

    def fail(*_: Any) -> None:
        raise KeyError(where)

    def build() -> torch.optim.Optimizer:
        if where == "build":
            fail()
        optimiser = torch.optim.AdamW(net.parameters())
        if where == "optimizer":
            optimiser.register_step_pre_hook(fail)
        return optimiser

    def step(optimiser: torch.optim.Optimizer) -> None:
        y = net(data()).sum()
        if where == "step":
            fail()
        if where == "backward":
            y.register_hook(fail)
        y.backward()
        optimiser.step()

    with pytest.raises(KeyError, match=where):
        predict_peak(build, step, target=target)
    assert patched() == before
    assert autocast_on_the_cpu() == dtypes
    assert all(p.grad is None and type(p) is nn.Parameter for p in net.parameters())
    assert predict_peak(mlp, lambda net: net(data()), target=target).peak_allocated > 0
    assert patched() == before


@pytest.mark.parametrize("function", [partial(predict_peak, target="cpu"), measure_peak])
def test_zero_iterations_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="at least one iteration, got 0"):
        function(mlp, lambda net: net(data()), iterations=0)


def test_an_unknown_target_or_device_is_refused() -> None:
    with pytest.raises(ValueError, match="target must be a Target"):
        predict_peak(mlp, lambda net: None, target="gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'tpu'"):
        measure_peak(mlp, lambda net: None, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="needs a CUDA device"):
            measure_peak(mlp, lambda net: None, device="cuda")


def test_existing_tensors_that_are_not_on_the_cpu_are_refused() -> None:
    x = torch.empty(3, device="meta")
    with pytest.raises(PredictionError, match="tensors on the CPU"):
        predict_peak(lambda: None, lambda _: x + 1, target="cpu")


# --- the verdict


def test_code_fits_if_the_card_has_the_memory_that_it_needs() -> None:
    """A block of 3 MiB takes a segment of 20 MiB; the context and the margin are added to it."""

    def predicted(capacity: int | None) -> Peak:
        target = Target(torch="2.10.0", capacity=capacity, context=MIB)
        return predict_peak(lambda: None, lambda _: torch.empty(3 * MIB, dtype=torch.uint8), target=target)

    enough = 21 * MIB + MARGIN
    for capacity, fits in ((enough, True), (enough - 1, False), (None, None)):
        peak = predicted(capacity)
        assert (peak.peak_allocated, peak.peak_reserved, peak.needs) == (3 * MIB, 20 * MIB, enough)
        assert peak.fits is fits
    assert predicted(19 * MIB).refused == 3 * MIB


def test_code_needs_less_than_the_reserved_memory_if_free_segments_can_be_returned() -> None:
    def step(_: None) -> None:
        torch.empty(300 * MIB, dtype=torch.uint8)
        torch.empty(400 * MIB, dtype=torch.uint8)

    peak = predict_peak(lambda: None, step, iterations=1, target=Target(torch="2.10.0"))
    assert peak.peak_reserved == 700 * MIB
    assert peak.needs is not None
    assert 400 * MIB <= peak.needs - MARGIN - Target().context <= 404 * MIB
    at_the_need = predict_peak(lambda: None, step, 1, Target(torch="2.10.0", capacity=peak.needs))
    assert at_the_need.fits is True


def test_the_verdict_is_exact_if_allocated_and_reserved_memory_are_nearly_equal() -> None:
    """The small block reserves 2 MiB, which the allocator returns for the large one; 2 MiB are less than 1 %."""

    def step(_: None) -> None:
        torch.empty(MIB // 2, dtype=torch.uint8)
        torch.empty(300 * MIB, dtype=torch.uint8)

    for capacity, fits in ((301 * MIB, True), (300 * MIB - 512, False)):
        target = Target(torch="2.10.0", capacity=capacity + MARGIN + MIB, context=MIB)
        peak = predict_peak(lambda: None, step, iterations=1, target=target)
        assert (peak.peak_allocated, peak.peak_reserved) == (300 * MIB, 302 * MIB)
        assert peak.fits is fits


def test_a_peak_is_printed_as_text() -> None:
    target = Target(torch="2.10.0", capacity=2 * GIB)
    text = str(predict_peak(lambda: None, lambda _: torch.empty(GIB, dtype=torch.uint8), target=target))
    assert text == (
        "peak of live tensors 1 GiB (inputs 1)\n"
        "reserved by the allocator without a limit 1 GiB\n"
        "needs a card with 1.62 GiB: fits"
    )


@pytest.mark.parametrize("wrong", [{"torch": "nightly"}, {"capacity": 0}, {"capacity": -GIB}, {"context": -1}], ids=str)
def test_an_invalid_target_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Target(**wrong)


@pytest.mark.parametrize(
    ("version", "release"), [("2.9.1+cu128", (2, 9, 1)), ("2.11", (2, 11, 0)), ("2.13.0a0+git1", (2, 13, 0))]
)
def test_the_release_is_read_from_the_version_of_pytorch(version: str, release: tuple[int, int, int]) -> None:
    assert Target(torch=version).release == release


def test_the_random_state_of_python_is_restored() -> None:
    random.seed(0)
    state = random.getstate()
    predict_peak(lambda: None, lambda _: random.random(), iterations=1, target="cpu")
    assert random.getstate() == state


def test_the_measurement_on_cuda_reads_the_counters_of_the_device() -> None:
    """The measurement for a GPU runs inside a prediction, which provides the counters of the device."""

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv3d(8, 1, 3, padding=1))
        return net, torch.optim.AdamW(net.parameters())

    def step(state: tuple[nn.Module, torch.optim.Optimizer]) -> None:
        net, optimizer = state
        net(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    measured = []
    predict_peak(lambda: None, lambda _: measured.append(measure_peak(build, step, 3, device="cuda")), iterations=1)
    predicted = predict_peak(build, step, 3)
    assert measured[0].iterations == predicted.iterations
    assert measured[0].peak_allocated == predicted.peak_allocated
    assert predicted.iterations[0] < predicted.iterations[1]  # the optimizer state exists from the second iteration on


def test_predictions_in_several_threads_give_the_same_peak() -> None:
    build, step = training()
    alone = predict_peak(build, step, target="cpu").peak_allocated
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: predict_peak(build, step, target="cpu").peak_allocated, range(3)))
    assert found == [alone] * 3


def test_a_prediction_stops_when_live_tensors_exceed_the_limit() -> None:
    """A limit of the peak changes nothing, and half of it is exceeded. Tensors on the host do not count."""

    def build() -> nn.Module:
        return nn.Linear(64, 64).to("cuda")

    def step(net: nn.Module) -> None:
        on_host = torch.zeros(1 << 20, device="cpu")
        net(torch.zeros(256, 64, device="cuda")).sum().backward()
        del on_host

    peak = predict_peak(build, step, target=Target())
    assert predict_peak(build, step, target=Target(), limit=peak.peak_allocated).iterations == peak.iterations
    with pytest.raises(torch.OutOfMemoryError, match="bytes of tensors are live"):
        predict_peak(build, step, target=Target(), limit=peak.peak_allocated // 2)


def test_a_limit_applies_after_data_whose_device_is_not_known_at_first() -> None:
    """A tensor made only from real tensors is not counted when it is created, so it is not subtracted when freed."""
    batches = [torch.ones(1 << 16) for _ in range(50)]  # 256 KiB each

    def step(weight: Tensor) -> None:
        for batch in batches:
            (batch * 2).add(weight)
        torch.zeros(1 << 22, device="cuda")  # 16 MiB

    def build() -> Tensor:
        return torch.ones(1, device="cuda")

    with pytest.raises(torch.OutOfMemoryError):
        predict_peak(build, step, 1, Target(), limit=15 << 20)
