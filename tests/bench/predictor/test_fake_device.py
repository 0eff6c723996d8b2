"""A simulated CUDA device: devices of tensors, autocast, functions of torch.cuda, and rules for kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from examples import mlp, training
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppdm_bench.predictor.convolution_rules import COLUMNS
from ppdm_bench.predictor.peak import Peak, measure_peak, predict_peak
from ppdm_bench.predictor.target import GIB, MIB, Target

HOPPER = Target(torch="2.11.0", capacity=80 * GIB)
AMPERE = Target(torch="2.10.0", compute_capability=(8, 0))
WORKSPACE = 32 * MIB  # workspace of cuBLAS on Hopper


def once(step: Callable[[], Any], target: Target = HOPPER) -> Peak:
    return predict_peak(lambda: None, lambda _: step(), iterations=1, target=target)


def train(net: Callable[[], nn.Module], x: Callable[[], Tensor], optimiser: Any = torch.optim.AdamW) -> Peak:
    return predict_peak(*training(optimiser, net, x), target=HOPPER)


# --- devices

CUDA = torch.device("cuda:0")
WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "name": (lambda: mlp().to("cuda"), lambda: torch.randn(9, 50, device="cuda")),
    "device": (lambda: mlp().to(CUDA), lambda: torch.randn(9, 50, device=CUDA)),
    "number": (lambda: mlp().to(0), lambda: torch.randn(9, 50, device=0)),
    "cuda()": (lambda: mlp().cuda(), lambda: torch.randn(9, 50).cuda(0)),
    "keyword": (lambda: mlp().to(device="cuda"), lambda: torch.randn(9, 50).to(device="cuda", non_blocking=True)),
    "dtype too": (lambda: mlp().to("cuda", torch.float32), lambda: torch.randn(9, 50).to("cuda", torch.float32)),
    "another's": (lambda: mlp().cuda(), lambda: torch.randn(9, 50, device="cpu").to(torch.ones(1, device="cuda"))),
    "pinned": (lambda: mlp().cuda(), lambda: torch.randn(9, 50, device="cpu").pin_memory().cuda(non_blocking=True)),
    "chosen": (
        lambda: mlp().to("cuda" if torch.cuda.is_available() else "cpu"),
        lambda: torch.randn(9, 50, device=torch.accelerator.current_accelerator()),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_name_the_device_gives_the_same_peak(way: str) -> None:
    silent = train(mlp, lambda: torch.randn(9, 50))
    named = train(*WAYS[way])
    assert named.peak_allocated == silent.peak_allocated
    assert named.breakdown == silent.breakdown


def test_the_default_device_can_be_cuda() -> None:
    silent = train(mlp, lambda: torch.randn(9, 50)).peak_allocated
    with torch.device("cuda"):
        assert train(mlp, lambda: torch.randn(9, 50)).peak_allocated == silent

    def inside() -> None:
        with torch.device("cuda"):
            assert torch.ones(3).is_cuda
            assert torch.get_default_device().type == "cuda"

    once(inside)


def test_tensors_report_the_device_that_the_code_chose() -> None:
    def ask() -> None:
        x = torch.randn(3, device="cuda")
        assert x.is_cuda
        assert not x.is_cpu
        assert (x.device, x.device.type, x.get_device()) == (CUDA, "cuda", 0)
        assert (x + 1).is_cuda
        assert x.new_zeros(3).is_cuda
        for host in (x.cpu(), x.to("cpu"), torch.ones(3, device="cpu"), torch.zeros_like(x, device="cpu"), x.cpu() + 1):
            assert host.device == torch.device("cpu")
        assert next(mlp().cuda().parameters()).device == CUDA
        x.record_stream(torch.cuda.current_stream())  # type: ignore[arg-type]
        assert x.to("cpu", torch.float64).numpy().shape == (3,)

    once(ask)


def test_results_on_the_host_are_not_counted() -> None:
    results: list[Tensor] = []

    def step() -> None:
        results.append((torch.ones(1000, 1000, device="cuda") * 2).cpu())

    peak = predict_peak(lambda: None, lambda _: step(), iterations=4, target=HOPPER)
    assert peak.iterations == (2 * 4_000_256,) * 4  # 4,000,000 B in blocks of 512


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [lambda v: v, lambda v: v[None].double().float(), lambda v: torch.stack([v])])
@pytest.mark.parametrize("move", [lambda v: v.cuda(non_blocking=True), lambda v: v.to("cuda")])
def test_volumes_of_a_data_set_count_one_at_a_time(prepare: Any, move: Any) -> None:
    volumes = [torch.ones(64, 1000) for _ in range(4)]

    def step() -> None:
        for volume in volumes:
            x = move(prepare(volume))
            del x

    assert once(step).peak_allocated == 256_000


FLOAT64 = np.zeros(1 << 20)  # 8 MiB; in float32 4 MiB, in bfloat16 2 MiB


def filled(shape: tuple[int, ...], place: str, index: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor into a part of which a million numbers of the other device are written."""
    result = torch.zeros(shape, device=place, dtype=dtype)
    result[index] = torch.zeros(1, 1 << 10, 1 << 10, device={"cuda": "cpu", "cpu": "cuda"}[place])
    return result


# Peak on the card in MiB, by the rules of ``copy_kernel_cuda`` (ATen/native/cuda/Copy.cu).
TRANSFERS: dict[str, tuple[Callable[[], Any], int]] = {
    "array": (lambda: torch.tensor(FLOAT64, device="cuda"), 8),
    "array, converted": (lambda: torch.tensor(FLOAT64, dtype=torch.float32, device="cuda"), 4),
    "array, shared": (lambda: torch.as_tensor(FLOAT64, device="cuda"), 8),
    "array, shared and converted": (lambda: torch.as_tensor(FLOAT64, dtype=torch.float32, device="cuda"), 4),
    "array by asarray": (lambda: torch.asarray(FLOAT64, dtype=torch.float32, device="cuda"), 4),
    "array, converted before": (lambda: torch.from_numpy(FLOAT64).float().cuda(), 4),
    "array, converted after": (lambda: torch.from_numpy(FLOAT64).cuda().float(), 8 + 4),
    "array as another": (lambda: torch.zeros(1, device="cuda").new_tensor(FLOAT64), 4),
    "list": (lambda: torch.tensor([0.5] * (1 << 20), device="cuda"), 4),
    "list, converted": (lambda: torch.tensor([0.5] * (1 << 20), dtype=torch.bfloat16, device="cuda"), 2),
    "tensor of the host": (lambda: torch.as_tensor(torch.zeros(1 << 20, device="cpu"), device="cuda"), 4),
    "tensor of the host, copied": (lambda: torch.tensor(torch.zeros(1 << 20, device="cpu"), device="cuda"), 4),
    "type": (lambda: torch.from_numpy(FLOAT64).type(torch.cuda.FloatTensor), 4),
    "blocking": (lambda: torch.from_numpy(FLOAT64).to("cuda", torch.float32), 4),
    "not blocking": (lambda: torch.from_numpy(FLOAT64).to("cuda", torch.float32, non_blocking=True), 4 + 8),
    "back": (lambda: torch.zeros(1 << 20, device="cuda").to("cpu", torch.float64), 4),
    "back, not blocking": (lambda: torch.zeros(1 << 20, device="cuda").to("cpu", torch.float64, non_blocking=True), 12),
    "back with gaps": (lambda: torch.zeros(2 << 20, device="cuda")[::2].cpu(), 8 + 4),
    "back transposed": (lambda: torch.zeros(1 << 10, 1 << 10, device="cuda").t().cpu(), 4),
    "gaps on the host": (lambda: torch.zeros(2 << 20, device="cpu")[::2].cuda(), 4),
    "transposed": (lambda: torch.zeros(1 << 10, 1 << 10, device="cpu").t().cuda(), 4),
    "transposed and converted": (lambda: torch.zeros(1 << 10, 1 << 10, device="cpu").t().to("cuda", torch.bfloat16), 4),
    "into a tensor": (lambda: torch.zeros(1 << 20, device="cuda").copy_(torch.zeros(1 << 20, device="cpu")), 4),
    "into gaps": (lambda: torch.zeros(2 << 20, device="cuda")[::2].copy_(torch.zeros(1 << 20, device="cpu")), 8 + 4),
    "another dtype into a tensor": (
        lambda: torch.zeros(1 << 20, device="cuda").copy_(torch.zeros(1 << 20, device="cpu", dtype=torch.float64)),
        4,
    ),
    "into a slice": (lambda: filled((1 << 10, 2 << 10), "cuda", (..., slice(1 << 10))), 8 + 4),
    "into a slice without gaps": (lambda: filled((2 << 10, 1 << 10), "cuda", slice(1 << 10)), 8),
    "into a slice on the host": (lambda: filled((1 << 10, 2 << 10), "cpu", (..., slice(1 << 10))), 4),
    "into a half-precision slice on the host": (
        lambda: filled((1 << 10, 2 << 10), "cpu", (None, ..., slice(1 << 10)), torch.bfloat16),
        4,
    ),
    "channels last": (
        lambda: torch.zeros(1, 16, 256, 256, device="cpu").to("cuda", memory_format=torch.channels_last),
        4 + 4,
    ),
}


@pytest.mark.parametrize("name", TRANSFERS)
def test_a_transfer_has_the_temporary_copies_of_pytorch(name: str) -> None:
    transfer, peak = TRANSFERS[name]
    results: list[Tensor] = []  # a result that is not kept would be freed before the next transfer
    found = once(lambda: results.append(transfer()))
    assert found.peak_allocated - peak * MIB in (0, 512)  # and a block for a tensor of one number


def test_a_transfer_keeps_layout_values_and_gradients() -> None:
    def step() -> None:
        x = torch.zeros(2, 3, 4, 5, device="cpu").to("cuda", torch.bfloat16, memory_format=torch.channels_last)
        assert (x.dtype, x.device, x.is_contiguous(memory_format=torch.channels_last)) == (torch.bfloat16, CUDA, True)
        assert torch.tensor([4, 7], device="cuda").tolist() == [4, 7]
        assert torch.tensor(np.array([4.5]), dtype=torch.float32, device="cuda").item() == 4.5
        assert torch.tensor(2, device="cuda").dtype is torch.int64
        leaf = torch.tensor([1.0, 2.0], device="cuda", requires_grad=True)
        assert leaf.is_leaf
        leaf.square().sum().backward()
        assert leaf.grad is not None
        source = torch.ones(4, 6, device="cpu", requires_grad=True)
        source.t().to("cuda", torch.float64).sum().backward()
        assert source.grad is not None
        assert (source.grad.device.type, source.grad.shape) == ("cpu", (4, 6))
        same = torch.zeros(3, device="cuda")
        assert torch.as_tensor(same, device="cuda") is same
        assert torch.zeros(2, device="cuda").copy_(torch.ones(1, device="cpu")).device == CUDA
        assert torch.zeros(2, device="cuda").copy_(other=torch.ones(2, device="cpu"), non_blocking=True).device == CUDA
        assert same.type(dtype=torch.float16).dtype is torch.float16

    once(step)


def test_devices_are_known_inside_functions_of_torch_func() -> None:
    def write(x: Tensor) -> Tensor:
        assert x.device == CUDA
        x = x.clone()
        x[0] = x[1]
        return x.copy_(x * 2)

    def step() -> None:
        x = torch.ones(4, 3, 2, device="cuda")
        assert torch.vmap(write)(x).device == CUDA
        assert torch.func.grad(lambda x: write(x).sum())(x).device == CUDA

    once(step)


def test_data_that_is_used_without_a_move_counts() -> None:
    volume = torch.ones(64, 1000)
    assert once(lambda: volume * 2).peak_allocated == 2 * 256_000


def test_an_existing_network_can_be_moved_and_is_restored() -> None:
    net = mlp()
    inside = train(lambda: mlp().cuda(), lambda: torch.randn(9, 50, device="cuda"))
    assert train(lambda: net.cuda(), lambda: torch.randn(9, 50, device="cuda")).breakdown == inside.breakdown
    assert all(type(p) is nn.Parameter and p.grad is None for p in net.parameters())


def stack(count: int = 8) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(count)])


LAYER = 256 * 256 * 4
MOVED: dict[str, tuple[Callable[[nn.Module], Any], int]] = {
    "to a name": (lambda net: net.to("cuda"), 8 * LAYER),
    "to a device": (lambda net: net.to(CUDA), 8 * LAYER),
    "to a number": (lambda net: net.to(0), 8 * LAYER),
    "cuda()": (lambda net: net.cuda(), 8 * LAYER),
    "twice": (lambda net: net.cuda().to("cuda"), 8 * LAYER),
    "and back": (lambda net: net.cuda().cpu(), 0),
    "there and back": (lambda net: net.cuda().cpu().cuda(), 8 * LAYER),
    "then halved": (lambda net: net.cuda().half(), 4 * LAYER),
    "and halved at once": (lambda net: net.to("cuda", torch.bfloat16), 4 * LAYER),
    "halved on the host": (lambda net: net.to("cpu", torch.half).cuda(), 4 * LAYER),
    "halved by keyword": (lambda net: net.to(device="cuda", dtype=torch.half), 4 * LAYER),
    "of that dtype": (lambda net: net.to("cuda", torch.float32), 8 * LAYER),
}


@pytest.mark.parametrize("way", MOVED)
def test_an_existing_network_counts_as_a_whole_once_it_is_moved(way: str) -> None:
    """Only the first layer is used; the others count because they are on the device."""
    move, size = MOVED[way]
    net = stack()
    net[7].weight = net[0].weight  # two modules share one tensor: memory of 7 layers
    net[1].register_buffer("b", torch.zeros(256, 256))  # as large as a layer: memory of 8 layers
    allocated: list[int] = []

    def build() -> None:
        move(net)
        assert net[7].weight is net[0].weight
        allocated.append(torch.cuda.memory_allocated())

    def step(_: None) -> None:
        if size:
            net[0](torch.ones(4, 256, device="cuda", dtype=net[0].weight.dtype)).sum().backward()

    before = [*net.parameters(), *net.buffers()]
    peak = predict_peak(build, step, iterations=1, target=HOPPER)
    assert allocated == [size]
    assert peak.peak_allocated >= size
    after = [*net.parameters(), *net.buffers()]
    assert all(x is y and x.grad is None and x.dtype is torch.float32 for x, y in zip(before, after, strict=True))
    assert all(type(x) in (nn.Parameter, Tensor) for x in after)


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double, lambda net: net.to("cpu", torch.bfloat16)])
def test_the_conversion_of_an_existing_network_is_predicted_to_the_byte(convert: Callable[[nn.Module], Any]) -> None:
    def made() -> tuple[Callable[[], Any], Callable[[Any], None]]:
        net = stack(3)
        net[2].weight = net[0].weight
        optimizer = torch.optim.AdamW(net.parameters())

        def step(_: None) -> None:
            optimizer.zero_grad()
            net(torch.ones(4, 256, dtype=net[0].weight.dtype)).sum().backward()
            optimizer.step()

        return lambda: convert(net), step

    measured, predicted = measure_peak(*made(), 3), predict_peak(*made(), 3, target="cpu")
    assert (predicted.iterations, predicted.breakdown) == (measured.iterations, measured.breakdown)


def test_an_optimizer_keeps_the_parameters_of_a_network_that_is_converted_later() -> None:
    def build() -> Any:
        net = mlp()
        optimiser = torch.optim.AdamW(net.parameters())
        return net.to("cuda", torch.bfloat16), optimiser

    def step(state: Any) -> None:
        net, optimiser = state
        assert optimiser.param_groups[0]["params"][0] is net[0].weight
        net(torch.randn(9, 50, device="cuda", dtype=torch.bfloat16)).sum().backward()
        optimiser.step()
        assert optimiser.state

    predict_peak(build, step, target=HOPPER)


# --- functions of torch.cuda


def test_functions_of_torch_cuda_work_without_a_gpu() -> None:
    def ask() -> None:
        assert torch.cuda.is_available()
        assert (torch.cuda.device_count(), torch.cuda.current_device()) == (1, 0)
        assert torch.cuda.get_device_name()
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.cuda.get_device_properties(0).total_memory == 80 * GIB
        assert torch.cuda.is_bf16_supported()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.manual_seed_all(0)
        torch.manual_seed(0)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[arg-type]
            start.record()
            end.record()
        assert start.elapsed_time(end) == 1
        generator = torch.Generator(device="cuda").manual_seed(1)
        assert torch.randn(3, device="cuda", generator=generator).is_cuda

    once(ask)


def test_memory_counters_follow_the_allocations() -> None:
    def ask() -> None:
        x = torch.ones(MIB, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_allocated() == MIB
        y = x + 1
        assert torch.cuda.mem_get_info() == (80 * GIB - GIB // 2 - 2 * MIB, 80 * GIB)
        del y
        assert (torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()) == (MIB, 2 * MIB)
        torch.cuda.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == MIB

    once(ask)


@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_are_scaled_and_the_optimizer_steps(enabled: bool) -> None:
    def build() -> Any:
        net = mlp().cuda()
        return net, torch.optim.AdamW(net.parameters()), torch.amp.GradScaler("cuda", enabled=enabled)  # type: ignore[attr-defined]

    def step(state: Any) -> None:
        net, optimiser, scaler = state
        with torch.autocast("cuda", torch.float16):
            loss = net(torch.randn(9, 50, device="cuda")).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        assert optimiser.state

    assert predict_peak(build, step, target=HOPPER).breakdown["optimizer"] > 0


# --- autocast

HALF: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: x @ x,
    "linear": lambda x: F.linear(x, x),
    "bmm": lambda x: torch.bmm(x[None], x[None]),
    "conv3d": lambda x: F.conv3d(x[None, None, None], x[None, None, None]),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x[None, None], x[None, None]),
    "einsum": lambda x: torch.einsum("ab,bc->ac", x, x),
    "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
}
FULL: dict[str, Callable[[Tensor], Tensor]] = {
    "group_norm": lambda x: F.group_norm(x[None], 2),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "softmax": lambda x: x.softmax(-1),
    "cross_entropy": lambda x: F.cross_entropy(x.float(), torch.zeros(8, dtype=torch.long)),
    "interpolate": lambda x: F.interpolate(x[None, None], scale_factor=2),
    "mse_loss": lambda x: F.mse_loss(x, x),
    "exp": torch.exp,
    "sum": torch.sum,
    "norm": torch.norm,
    "pow": lambda x: x.pow(2),
    "cumsum": lambda x: x.cumsum(0),
}
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "silu": F.silu,
    "cat": lambda x: torch.cat([x, x]),
    "mean": torch.mean,
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "pool": lambda x: F.avg_pool2d(x[None], 2),
}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_autocast_selects_the_same_dtypes_as_cuda(device: str) -> None:
    """Operators of the half list convert fp32 inputs to bf16; those of the fp32 list convert bf16 inputs to fp32."""

    def ask() -> None:
        x = torch.randn(8, 8)
        with torch.autocast(device, torch.bfloat16):
            assert {name: f(y).dtype for name, f in HALF.items() for y in (x, x.bfloat16())} == dict.fromkeys(
                HALF, torch.bfloat16
            )
            assert {name: f(x.bfloat16()).dtype for name, f in FULL.items()} == dict.fromkeys(FULL, torch.float32)
            assert {name: f(x.bfloat16()).dtype for name, f in KEPT.items()} == dict.fromkeys(KEPT, torch.bfloat16)
            assert torch.cat([x, x.bfloat16()]).dtype is torch.float32
            assert torch.addcmul(x, x.bfloat16(), x.bfloat16()).dtype is torch.float32
            assert (x.double() @ x.double()).dtype is torch.float64
            assert x.bfloat16().sum(dtype=torch.float64).dtype is torch.float64

    once(ask)


def test_every_form_of_autocast_works() -> None:
    def ask() -> None:
        x = torch.randn(4, 4, device="cuda")
        assert not torch.is_autocast_enabled("cuda")
        with torch.amp.autocast(device_type=x.device.type, dtype=torch.bfloat16):  # type: ignore[attr-defined]
            assert torch.is_autocast_enabled()
            assert torch.get_autocast_dtype("cuda") is torch.bfloat16
            with torch.autocast("cuda", enabled=False):
                assert (x @ x).dtype is torch.float32
        with torch.autocast("cuda"):
            assert (x @ x).dtype is torch.float16
        with pytest.warns(FutureWarning, match="deprecated"), torch.cuda.amp.autocast():
            assert (x @ x).dtype is torch.float16
        assert (x @ x).dtype is torch.float32
        assert torch.autocast("cuda", torch.bfloat16)(lambda: x @ x)().dtype is torch.bfloat16

    once(ask)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputed_blocks_see_the_same_device_and_autocast(use_reentrant: bool) -> None:
    seen: list[Any] = []

    def block(x: Tensor) -> Tensor:
        y = F.conv3d(x, torch.ones(4, 4, 1, 1, 1, device=x.device))
        z = F.group_norm(y, 2)
        seen.append((y.dtype, z.dtype, x.device, x.is_cuda, torch.is_autocast_enabled("cuda")))
        return z * z  # this keeps z, so that the whole block is recomputed

    def step() -> None:
        x = torch.randn(1, 4, 8, 8, 8, device="cuda", requires_grad=True)
        with torch.autocast("cuda", torch.bfloat16):
            y = checkpoint(block, x, use_reentrant=use_reentrant)
        y.mean().backward()

    once(step)
    assert seen == [(torch.bfloat16, torch.float32, CUDA, True, True)] * 2


# --- rules for kernels


def columns(target: Target, dtype: torch.dtype, kernel: int, transposed: bool = False) -> int:
    layer = nn.ConvTranspose3d if transposed else nn.Conv3d

    def step() -> None:
        net = layer(4, 6, kernel, stride=2, device="cuda", dtype=dtype)
        with torch.no_grad():
            net(torch.zeros(2, 4, 9, 9, 9, device="cuda", dtype=dtype))

    timeline = once(step, target).timeline
    assert timeline is not None
    return max((block.size for block in timeline.blocks if block.name == COLUMNS), default=0)


SLOW = [Target(torch="2.9.0"), Target(torch="2.9.1"), Target(torch="2.10.0", cudnn=(9, 14))]
FAST = [Target(torch="2.8.0"), Target(torch="2.9.1", cudnn=(9, 15)), Target(torch="2.9.1", cudnn=(9, 7)), HOPPER]


@pytest.mark.slow
@pytest.mark.parametrize("target", SLOW, ids=str)
def test_half_precision_convolutions_without_cudnn_use_columns(target: Target) -> None:
    # C_in · 3³ · 4³ output voxels · 2 bytes; transposed: C_out · 3³ · 9³ input voxels · 2 bytes, in blocks of 512.
    assert columns(target, torch.bfloat16, kernel=3) == 13_824
    assert columns(target, torch.float16, kernel=3, transposed=True) == 236_544


@pytest.mark.parametrize(("dtype", "kernel"), [(torch.bfloat16, 1), (torch.float32, 3)])
def test_fp32_convolutions_and_kernels_of_one_voxel_use_no_columns(dtype: torch.dtype, kernel: int) -> None:
    assert columns(SLOW[0], dtype, kernel) == 0


@pytest.mark.parametrize("target", FAST, ids=str)
def test_convolutions_use_no_columns_with_other_versions(target: Target) -> None:
    assert columns(target, torch.bfloat16, kernel=3) == 0


def test_the_backward_pass_of_softmax_allocates_a_product() -> None:
    def step() -> None:
        torch.zeros(1000, 64, device="cuda", requires_grad=True).softmax(-1).sum().backward()

    terms = once(step).terms
    assert terms == {"softmax backward": 256_000}


@pytest.mark.slow
@pytest.mark.parametrize(("target", "size"), [(HOPPER, 32 * MIB), (AMPERE, 8_519_680)])
def test_cublas_allocates_one_workspace_per_thread(target: Target, size: int) -> None:
    def taken(step: Callable[[], Any]) -> list[int]:
        timeline = once(step, target).timeline
        assert timeline is not None
        return [block.size for block in timeline.blocks if block.name == "cuBLAS"]

    x = torch.zeros(4, 4)
    assert taken(lambda: x + 1) == []
    assert taken(lambda: (x @ x, x @ x)) == [size]
    assert taken(lambda: (x.requires_grad_() @ x).sum().backward()) == [size, size]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "ratio"), [({}, 5), ({"foreach": True}, 5), ({"foreach": False}, 4.075), ({"fused": True}, 4)], ids=str
)
def test_adamw_needs_four_to_five_times_the_memory_of_its_parameters(how: dict[str, bool], ratio: float) -> None:
    """Parameters, gradients and two moments, plus one copy of all parameters or three tensors of one of 40 layers."""

    def build() -> Any:
        weights = [nn.Parameter(torch.zeros(512, 512, device="cuda")) for _ in range(40)]
        return weights, torch.optim.AdamW(weights, **how)

    def step(state: Any) -> None:
        weights, optimiser = state
        for p in weights:
            p.grad = torch.zeros_like(p)
        optimiser.step()
        optimiser.zero_grad()

    peak = predict_peak(build, step, target=HOPPER).peak_allocated
    assert peak / (40 * 2**20) == pytest.approx(ratio, abs=0.001)


def test_attention_with_dropout_allocates_no_weight_matrix() -> None:
    def attend(dropout: float) -> int:
        def step() -> None:
            q = torch.zeros(1, 1, 1024, 8, device="cuda", requires_grad=True)
            F.scaled_dot_product_attention(q, q, q, dropout_p=dropout).sum().backward()

        return once(step).peak_allocated

    assert attend(0.1) == attend(0.0) < 1024 * 1024 * 4


def test_cuda_functions_exist_in_their_own_modules_and_classes_in_type_hints():
    def build():
        assert torch.cuda.random.get_rng_state().dtype is torch.uint8
        assert torch.cuda.memory.memory_allocated() == 0
        torch.cuda.random.manual_seed(0)
        assert (torch.cuda.CUDAGraph | None).__args__[1] is type(None)

    predict_peak(build, lambda _: None)
