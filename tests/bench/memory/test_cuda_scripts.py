"""CUDA code in common styles, predicted without changes on a machine without CUDA."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from ppdm_bench.predictor.kernel_rules import attention_backend
from ppdm_bench.predictor.peak import Peak, predict_peak
from ppdm_bench.predictor.target import GIB, Target

HOPPER = Target(torch="2.10.0", capacity=80 * GIB)


def run(script: Callable[[], Any], target: Target = HOPPER) -> Peak:
    return predict_peak(lambda: None, lambda _: script(), iterations=1, target=target)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv3d(8, 1, 3, padding=1))


def loader_and_timing() -> None:
    torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = TensorDataset(torch.zeros(4, 1, 8, 8, 8), torch.zeros(4, 1, 8, 8, 8))
    model = network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for source, target in DataLoader(data, batch_size=2, pin_memory=True):
        x, y = source.cuda(non_blocking=True), target.to(device, non_blocking=True)
        start.record()
        optimizer.zero_grad(set_to_none=True)
        F.l1_loss(model(x), y).backward()
        optimizer.step()
        end.record()
        torch.cuda.synchronize()
        start.elapsed_time(end)
    assert torch.cuda.max_memory_allocated() > 0
    assert x.is_cuda
    assert not source.is_cuda


def old_amp() -> None:
    with pytest.warns(FutureWarning):
        scaler = torch.cuda.amp.GradScaler()
    model = network().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.warns(FutureWarning), torch.cuda.amp.autocast(dtype=torch.float16):
        y = model(torch.randn(1, 1, 8, 8, 8).cuda())
    assert y.dtype is torch.float16
    scaler.scale(y.float().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.cuda.empty_cache()


def decorated() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        @torch.autocast("cuda", torch.bfloat16)
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]

    model = Model().to("cuda", memory_format=torch.channels_last_3d)
    x = torch.randn(1, 1, 8, 8, 8, device="cuda")
    y = model(x)
    assert y.dtype is torch.bfloat16
    y.float().square().mean().backward()


def default_device() -> None:
    torch.set_default_device("cuda")
    try:
        model = network()
        assert next(model.parameters()).is_cuda
        loss = model(torch.zeros(1, 1, 8, 8, 8)).mean()
        loss.backward()
        assert loss.item() == 1
    finally:
        torch.set_default_device(None)


def sampling() -> None:
    model = network().half().cuda().eval()
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream), torch.cuda.device(0):  # type: ignore[arg-type]
        x = torch.randn((1, 1, 8, 8, 8), device="cuda", dtype=torch.half, generator=torch.Generator("cuda"))
        for _ in range(3):
            x = x - 0.1 * model(x)
    stream.synchronize()
    assert x.float().cpu().numpy().shape == (1, 1, 8, 8, 8)


SCRIPTS = [loader_and_timing, old_amp, decorated, default_device, sampling]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_cuda_code_is_predicted_without_changes(script: Callable[[], None]) -> None:
    peak = run(script)
    assert peak.fits
    assert peak.peak_allocated > 8**3 * 8 * 2  # at least one activation of the network
    assert sum(peak.breakdown.values()) == peak.peak_allocated
    assert torch.get_default_device().type == "cpu"


def test_data_of_a_loader_counts_only_after_it_moves_to_the_device() -> None:
    volumes = TensorDataset(torch.zeros(4, 1000, 64))

    def script() -> None:
        for (x,) in DataLoader(volumes, batch_size=1, pin_memory=True):
            y = x.cuda()
            del y

    assert run(script).peak_allocated == 256_000  # one volume at a time


# --- attention

AMPERE, TURING = Target(compute_capability=(8, 0)), Target(compute_capability=(7, 5))
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("target", "dtype", "sizes", "masked", "backend"),
    [
        (HOPPER, BF16, (64,) * 3, False, "flash"),
        (AMPERE, FP16, (256,) * 3, False, "flash"),
        (AMPERE, FP16, (264,) * 3, False, "efficient"),
        (AMPERE, FP16, (64, 64, 32), False, "efficient"),
        (AMPERE, BF16, (64,) * 3, True, "efficient"),
        (AMPERE, FP32, (64,) * 3, False, "efficient"),
        (AMPERE, FP32, (6,) * 3, False, "math"),
        (AMPERE, BF16, (12,) * 3, True, "math"),
        (AMPERE, FP64, (64,) * 3, False, "math"),
        (TURING, FP16, (64,) * 3, False, "efficient"),
        (TURING, BF16, (64,) * 3, False, "math"),
        (TURING, FP32, (6,) * 3, False, "efficient"),
    ],
)
def test_the_attention_kernel_depends_on_card_dtype_head_size_and_mask(
    target: Target, dtype: torch.dtype, sizes: tuple[int, ...], masked: bool, backend: str
) -> None:
    assert attention_backend(target, dtype, sizes, masked) == backend


def attention(dtype: torch.dtype, size: int, how: Any = None) -> Peak:
    def script() -> None:
        q = torch.zeros(1, 2, 1000, size, device="cuda", dtype=dtype, requires_grad=True)
        if how is None:
            F.scaled_dot_product_attention(q, q, q).sum().backward()
        else:
            with sdpa_kernel(how):
                F.scaled_dot_product_attention(q, q, q).sum().backward()

    return run(script, AMPERE)


def largest(peak: Peak) -> int:
    assert peak.timeline is not None
    return max(block.size for block in peak.timeline.blocks if block.name != "cuBLAS")


def named(peak: Peak, name: str) -> int:
    assert peak.timeline is not None
    return max((block.size for block in peak.timeline.blocks if block.name == name), default=0)


def test_fused_attention_allocates_buffers_in_backward_but_no_weight_matrix() -> None:
    half, full = attention(BF16, 40), attention(FP32, 40)
    # 2 heads · 1024 queries (1000 rounded up to a multiple of 128) · (64 + 1) numbers of 4 bytes.
    assert named(half, "attention backward, sums") == 2 * 1024 * 65 * 4
    assert named(full, "attention backward, product") == 2 * 1000 * 40 * 4
    assert named(half, "attention backward, product") == named(full, "attention backward, sums") == 0
    assert largest(full) < 2 * 1000 * 1000 * 4


def test_attention_without_a_fused_kernel_allocates_its_weight_matrix() -> None:
    assert largest(attention(FP32, 6)) >= 2 * 1000 * 1000 * 4
    assert largest(attention(FP32, 40, SDPBackend.MATH)) >= 2 * 1000 * 1000 * 4
    assert largest(attention(FP32, 40, SDPBackend.EFFICIENT_ATTENTION)) < 2 * 1000 * 1000 * 4
