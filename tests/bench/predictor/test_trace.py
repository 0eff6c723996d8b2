"""Traces of storages: predictions on fake tensors equal measurements on real tensors, to the byte."""

import copy
import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from examples import Build, Step, data, mlp, training
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from ppdm_bench.predictor.peak import Peak, measure_peak, predict_peak
from ppdm_bench.predictor.timeline import Timeline
from ppdm_bench.predictor.trace import tracing


def assert_same(build: Build, step: Step, iterations: int = 2) -> None:
    measured = measure_peak(build, step, iterations)
    predicted = predict_peak(build, step, iterations, target="cpu")
    assert measured.peak_allocated > 0
    assert (predicted.iterations, predicted.breakdown) == (measured.iterations, measured.breakdown)
    assert predicted.peak_allocated == measured.peak_allocated == sum(measured.breakdown.values())


# --- optimizers


PLAIN, FUSED = [{}, {"foreach": True}, {"foreach": False}], [{"fused": True}]
OPTIMIZERS = {
    "Adam": (torch.optim.Adam, PLAIN + FUSED),
    "AdamW": (partial(torch.optim.AdamW, amsgrad=True), PLAIN + FUSED),
    "SGD": (partial(torch.optim.SGD, lr=0.1, momentum=0.9), PLAIN + FUSED),
    "RMSprop": (partial(torch.optim.RMSprop, momentum=0.9, centered=True), PLAIN),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"), [(name, how) for name, (_, hows) in OPTIMIZERS.items() for how in hows], ids=str
)
def test_optimizers_are_predicted_to_the_byte(name: str, how: dict[str, bool]) -> None:
    kind: Any = OPTIMIZERS[name][0]
    assert_same(*training(partial(kind, **how)))


@pytest.mark.parametrize("foreach", [None, True, False])
def test_gradient_clipping_is_predicted_to_the_byte(foreach: bool | None) -> None:
    clip = partial(nn.utils.clip_grad_norm_, max_norm=1.0, foreach=foreach)
    assert_same(*training(before_step=lambda net: clip(net.parameters())))


def test_gradients_that_are_kept_as_zeros_are_predicted_to_the_byte() -> None:
    assert_same(*training(set_to_none=False))


def test_gradient_accumulation_is_predicted_to_the_byte() -> None:
    build, _ = training()

    def step(state: Any) -> None:
        net, optimiser = state
        for _ in range(3):
            net(data()).mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    assert_same(build, step, iterations=1)


def test_optimizer_steps_in_the_backward_pass_are_predicted_to_the_byte() -> None:
    def at_once(optimiser: torch.optim.Optimizer, _: Tensor) -> None:
        optimiser.step()
        optimiser.zero_grad()

    def build() -> nn.Module:
        net = mlp()
        for p in net.parameters():
            optimiser = torch.optim.AdamW([p])
            p.register_post_accumulate_grad_hook(partial(at_once, optimiser))
        return net

    assert_same(build, lambda net: net(data()).sum().backward())


def average_by_copy(net: nn.Module) -> tuple[nn.Module, Callable[[nn.Module], None]]:
    average = copy.deepcopy(net)

    @torch.no_grad()
    def update(net: nn.Module) -> None:
        for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
            mean.lerp_(weight, 0.1)

    return average, update


def average_by_torch(net: nn.Module) -> tuple[nn.Module, Callable[[nn.Module], None]]:
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    return average, average.update_parameters


@pytest.mark.parametrize("average", [average_by_copy, average_by_torch])
def test_averages_of_weights_are_predicted_to_the_byte(average: Callable[[nn.Module], Any]) -> None:
    def build() -> Any:
        net = mlp()
        optimiser = torch.optim.AdamW(net.parameters())
        return net, optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10), *average(net)

    def step(state: Any) -> None:
        net, optimiser, schedule, _, update = state
        net(data()).mean().backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        update(net)

    assert_same(build, step)


# --- networks


def volumes(channels: int) -> Tensor:
    return torch.randn(2, channels, 12, 12, 12)


def hourglass() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(4, 8, 3, stride=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.BatchNorm3d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.ConvTranspose3d(8, 4, 2, stride=2),
        nn.Upsample(scale_factor=2, mode="trilinear"),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 1, 1),
    )


def channels_last() -> nn.Module:
    net = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv3d(8, 1, 3))
    return net.to(memory_format=torch.channels_last_3d)


def tokens() -> Tensor:
    return torch.randn(3, 17, 32)


def transformer(dropout: float) -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "x"),
    [
        (hourglass, partial(volumes, 4)),
        (channels_last, lambda: volumes(4).to(memory_format=torch.channels_last_3d)),
        (lambda: nn.Sequential(nn.Linear(50, 70), nn.LayerNorm(70), nn.Softmax(-1), nn.Dropout(0.2)), data),
        (partial(transformer, 0.0), tokens),
        (partial(transformer, 0.1), tokens),
        (lambda: mlp().to(torch.bfloat16), lambda: data().bfloat16()),
        (lambda: mlp().double(), lambda: data().double()),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(50, 70)), data),
        (lambda: nn.Embedding(100, 16), lambda: torch.randint(0, 100, (4, 20))),
    ],
    ids=["convolutions", "channels_last", "norms", "attention", "dropout", "bf16", "fp64", "weight_norm", "embedding"],
)
def test_networks_are_predicted_to_the_byte(net: Callable[[], nn.Module], x: Callable[[], Tensor]) -> None:
    assert_same(*training(net=net, x=x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_is_predicted_to_the_byte(use_reentrant: bool) -> None:
    def step(blocks: nn.ModuleList) -> None:
        x = torch.randn(90, 50, requires_grad=True)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=use_reentrant)
        x.sum().backward()

    assert_same(lambda: nn.ModuleList(nn.Sequential(mlp(), nn.Dropout(0.1)) for _ in range(3)), step)
    assert_same(mlp, lambda net: checkpoint_sequential(net, 2, data(), use_reentrant=False).sum().backward())


def test_autocast_on_the_cpu_is_predicted_to_the_byte() -> None:
    def step(net: nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.mse_loss(checkpoint(net, volumes(4), use_reentrant=False), torch.zeros(2, 1, 12, 12, 12))
        loss.backward()

    assert_same(hourglass, step)


# --- operators


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.saved_tensors[0]


def attention(**how: Any) -> Tensor:
    q, k, v = (torch.randn(2, 4, 33, 16, requires_grad=True) for _ in range(3))
    return F.scaled_dot_product_attention(q, k, v, **how)


def gradient_penalty() -> Tensor:
    x = data().requires_grad_()
    (gradient,) = torch.autograd.grad(x.square().mul(x).sum(), x, create_graph=True)
    return gradient.square()


def views() -> Tensor:
    y = (data().requires_grad_() * 2).view(3, 3, 50).transpose(0, 1).contiguous()
    y[0] = 1
    picked = y[1:, :2].expand(2, 2, 50).index_select(1, torch.tensor([0, 1, 1]))
    return picked.relu_() + torch.ones(50)


def spectrum() -> Tensor:
    spectrum = torch.fft.rfftn(torch.randn(2, 8, 8, 8, requires_grad=True), dim=(-3, -2, -1))
    return torch.fft.irfftn(spectrum * spectrum.abs(), s=(8, 8, 8))


def offloaded() -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.to(torch.bfloat16), lambda x: x.float()):
        return data().requires_grad_().exp().sin()


OPERATORS = {
    "attention": attention,
    "attention, dropout": partial(attention, dropout_p=0.1),
    "attention, causal": partial(attention, is_causal=True),
    "attention, mask": lambda: attention(attn_mask=torch.ones(33, 33).tril().bool()),
    "autograd function": lambda: Square.apply(data().requires_grad_()),
    "double backward": gradient_penalty,
    "views": views,
    "spectrum": spectrum,
    "saved tensors hooks": offloaded,
    "losses": lambda: sum(
        loss(data().requires_grad_(), torch.rand(9, 50))
        for loss in (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits)
    ),
    "linear algebra": lambda: torch.linalg.svdvals(torch.randn(20, 20, requires_grad=True)),
    "complex": lambda: torch.randn(20, 20, dtype=torch.complex64, requires_grad=True).conj().abs(),
    "from numpy": lambda: torch.from_numpy(np.ones((9, 50), np.float32)).mul(2).requires_grad_(),
    "resampling": lambda: F.grid_sample(
        torch.randn(1, 2, 8, 8, 8, requires_grad=True),
        F.affine_grid(torch.eye(3, 4)[None], [1, 2, 8, 8, 8], align_corners=False),
        align_corners=False,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_predicted_to_the_byte(name: str) -> None:
    assert_same(lambda: None, lambda _: OPERATORS[name]().sum().backward())


@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, F.soft_margin_loss])
def test_a_mean_loss_keeps_the_storage_of_the_unreduced_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    kept: list[Tensor] = []
    predicted = predict_peak(lambda: None, lambda _: kept.append(loss(data(), data())), 3, target="cpu")
    kept.clear()
    measured = measure_peak(lambda: None, lambda _: kept.append(loss(data(), data())), 3)
    assert predicted.iterations == measured.iterations


def test_resized_storages_are_predicted_to_the_byte() -> None:
    def step(_: None) -> None:
        x = torch.ones(1000)
        x.untyped_storage().resize_(0)
        _y = torch.ones(500)
        x.untyped_storage().resize_(4000)
        x.fill_(1)
        torch.empty(0).resize_(3000)

    assert_same(lambda: None, step)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients_are_predicted_to_the_byte(mode: Callable[[], Any]) -> None:
    def step(net: nn.Module) -> None:
        with mode():
            x = data()
            for _ in range(3):
                x = net(x)

    assert_same(mlp, step)
    with mode():
        assert_same(mlp, lambda net: net(data()))


def test_functional_transforms_are_predicted_to_the_byte() -> None:
    def step(net: nn.Module) -> None:
        def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(net, parameters, (x,)).sum()

        parameters = {name: p.detach() for name, p in net.named_parameters()}
        torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, data())

    assert_same(mlp, step)


def test_copying_a_state_dict_is_predicted_to_the_byte() -> None:
    def step(nets: tuple[nn.Module, nn.Module]) -> None:
        nets[1].load_state_dict({k: v.clone() for k, v in nets[0].state_dict().items()})
        nets[1](data()).sum().backward()

    assert_same(lambda: (mlp(), mlp()), step)


# --- lifetimes


def test_a_leak_raises_the_peak_of_every_iteration() -> None:
    """Each iteration keeps one result, and the peaks grow by its size."""

    def peaks(run: Callable[..., Any]) -> tuple[int, ...]:
        kept: list[Tensor] = []
        iterations: tuple[int, ...] = run(mlp, lambda net: kept.append(net(data()).detach()), 4).iterations
        return iterations

    predicted = peaks(partial(predict_peak, target="cpu"))
    assert predicted == peaks(measure_peak)
    assert np.diff(predicted).tolist() == [2048] * 3  # 9·50 values of 4 bytes, in blocks of 512


def test_freed_tensors_are_no_longer_counted() -> None:
    """A tensor made from a list or a NumPy array is freed with its last reference, although it is simulated."""

    def step(_: None) -> None:
        for _ in range(3):
            torch.tensor([1.0] * 1000).mul_(2)
            torch.from_numpy(np.ones(1000, np.float32)).mul_(2)

    assert predict_peak(lambda: None, step, target="cpu").iterations == (4096, 4096)


def test_a_block_has_the_kind_of_its_later_use() -> None:
    peak = predict_peak(*training(x=lambda: torch.randn(1, 50)), iterations=1, target="cpu")
    parameters = sum(-(-p.numel() * 4 // 512) * 512 for p in mlp().parameters())
    assert peak.breakdown["params"] == peak.breakdown["grads"] == parameters
    assert 2 * parameters <= peak.breakdown["optimizer"] <= 2 * parameters + 4 * 512  # and four step counters


@pytest.mark.parametrize("run", [measure_peak, partial(predict_peak, target="cpu")])
def test_nothing_is_kept_alive_afterwards(run: Callable[[Build, Step], Peak]) -> None:
    died: list[bool] = []

    def use() -> Timeline | None:
        net = mlp()
        peak = run(lambda: None, lambda _: net(data()).sum().backward())
        for p in net.parameters():
            assert not p._post_accumulate_grad_hooks  # type: ignore[attr-defined]
            assert not weakref.getweakrefs(p)  # `torch.utils.swap_tensors` refuses a tensor with weak references
            weakref.finalize(p.untyped_storage(), died.append, True)
        return peak.timeline

    timeline = use()
    gc.collect()
    assert died == [True] * 4
    assert timeline is not None
    assert timeline.events  # the recorded events outlive the tensors


def test_a_trace_agrees_with_the_allocations_of_the_profiler() -> None:
    """The reference is independent: the running sum of all allocations that PyTorch's profiler recorded."""
    build, step = training(partial(torch.optim.AdamW, foreach=True))
    state = build()
    step(state)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        step(state)
    seen = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    witnessed = max(np.cumsum([event.nbytes() for event in seen if event.name() == "[memory]"]))

    with tracing() as trace:
        step(state)
    own = [0]
    for number, size in trace.timeline.events:
        block = trace.timeline.blocks[number]
        if block.name != "existed before":
            own.append(own[-1] + (size or -block.size))
    assert max(own) == pytest.approx(witnessed, rel=0.05)  # the profiler does not round bytes to 512


# --- a limit


def test_a_limit_of_the_peak_suffices_and_one_byte_less_does_not():
    build, step = training()
    peak = measure_peak(build, step).peak_allocated
    assert measure_peak(build, step, limit=peak).peak_allocated == peak
    with pytest.raises(
        torch.OutOfMemoryError, match=f"{peak:,} bytes of tensors are live, and the limit is {peak - 1:,}"
    ):
        measure_peak(build, step, limit=peak - 1)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_limit_applies_in_the_forward_and_the_backward_pass(where):
    class Hungry(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + torch.zeros(4096 if where == "forward" else 1).sum()

        @staticmethod
        def backward(ctx, gradient):
            return gradient + torch.zeros(4096 if where == "backward" else 1).sum()

    x = torch.zeros(4, requires_grad=True)
    measure_peak(lambda: None, lambda _: Hungry.apply(x).sum().backward(), limit=2**15)
    with pytest.raises(torch.OutOfMemoryError):
        measure_peak(lambda: None, lambda _: Hungry.apply(x).sum().backward(), limit=2**14)


def test_code_that_handles_out_of_memory_errors_continues_under_a_limit():
    taken = []

    def step(_: None) -> None:
        for size in (2**20, 2**10):
            try:
                taken.append(torch.zeros(size, dtype=torch.uint8).sum() + size)
            except torch.OutOfMemoryError:
                taken.append(None)

    peak = measure_peak(lambda: None, step, iterations=1, limit=2**16)
    assert [None if x is None else int(x) for x in taken] == [None, 2**10]
    assert peak.peak_allocated >= 2**20  # the refused tensor existed for a moment
