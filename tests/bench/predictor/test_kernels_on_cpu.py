"""Memory that CPU kernels keep, by operator: predictions equal measurements to the byte."""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppdm_bench.predictor.peak import measure_peak, predict_peak

CONVS: dict[tuple[int, bool], type[nn.Module]] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
CHANNELS = [(2, 16, 1), (1, 4, 1), (4, 4, 2), (1, 1, 1)]
SHAPES = [(3, 1, 2), (1, 1, 1), (2, 2, 1), (3, 2, 3)]  # kernel, stride, batch


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "last"), [(1, False), (2, False), (2, True), (3, False), (3, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_convolutions_have_the_predicted_peaks_and_strides(
    dims: int, transposed: bool, dtype: torch.dtype, last: bool
) -> None:
    """All networks are built at once, and each iteration runs one of them."""
    layout: Any = {"memory_format": LAST[dims]} if last else {}
    cases = [*product(CHANNELS, SHAPES, [False]), *product([(4, 4, 2), (1, 4, 1)], SHAPES, [True])]

    def build() -> Any:
        nets = []
        for channels, (kernel, stride, _), grouped in cases:
            layers = [
                CONVS[dims, transposed](a, b, kernel, stride=stride, groups=a if grouped and b % a == 0 else 1)
                for a, b in pairwise(channels)
            ]
            nets.append(nn.Sequential(*layers).to(dtype).to(**layout) if last else nn.Sequential(*layers).to(dtype))
        return iter(list(zip(nets, cases, strict=True)))

    strides: list[Any] = []

    def step(state: Any) -> None:
        net, (channels, (_, _, batch), _) = next(state)
        x = torch.randn(batch, channels[0], *(9, 8, 7)[:dims], dtype=dtype)
        y = net(x.to(**layout) if last else x)
        y.square().mean().backward()
        strides.append((y.stride(), [p.grad.stride() for p in net.parameters()]))
        net.zero_grad()

    measured = measure_peak(build, step, len(cases))
    measured_strides, strides = strides, []
    predicted = predict_peak(build, step, len(cases), target="cpu")
    wrong = [
        case
        for case, a, b, c, d in zip(
            cases, measured.iterations, predicted.iterations, measured_strides, strides, strict=True
        )
        if (a, c) != (b, d)
    ]
    assert wrong == []


SIZES = {1: (2, 3, 10), 2: (2, 3, 8, 8), 3: (1, 2, 6, 6, 6)}
MODES = [
    (mode, dims, options)
    for mode, all_dims in {
        "nearest": (1, 2, 3),
        "nearest-exact": (1, 2, 3),
        "linear": (1,),
        "bilinear": (2,),
        "trilinear": (3,),
        "bicubic": (2,),
        "area": (1, 2, 3),
    }.items()
    for dims in all_dims
    for options in ({"scale_factor": 2}, {"scale_factor": 1.5}, {"size": (5,) * dims}, {"size": 4, "antialias": True})
    if mode in ("bilinear", "bicubic") or "antialias" not in options
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_interpolation_is_predicted_to_the_byte(mode: Any) -> None:
    def step(state: Any) -> None:
        name, dims, options = next(state)
        with mode():
            x = torch.randn(SIZES[dims]) + 1
            F.interpolate(x, mode=name, **options)

    def build() -> Any:
        return iter(MODES)

    measured = measure_peak(build, step, len(MODES)).iterations
    assert predict_peak(build, step, len(MODES), target="cpu").iterations == measured
    assert max(predict_peak(build, step, len(MODES)).iterations) > 0


def gradient(forward: Callable[[Tensor], Tensor], *shape: int) -> Callable[[], None]:
    return lambda: forward(torch.randn(shape, requires_grad=True)).square().mean().backward()


KERNELS: dict[str, Callable[[], Any]] = {
    "unfold": gradient(lambda x: F.unfold(x, 3), 2, 8, 12, 12),
    "unfold of few": gradient(lambda x: F.unfold(x, 1, stride=3), 2, 8, 12, 12),
    "fold": gradient(lambda x: F.fold(x, 12, 3), 2, 72, 100),
    "fold of one": gradient(lambda x: F.fold(x, 12, 3), 72, 100),
    "fold and unfold": gradient(lambda x: F.fold(F.unfold(x, 3, padding=1), 12, 3, padding=1), 2, 8, 12, 12),
    "transposed": gradient(lambda x: F.conv_transpose3d(x, torch.randn(16, 1, 3, 3, 3), stride=2), 1, 16, 9, 9, 9),
    "one-hot": lambda: F.one_hot(torch.arange(1000)),
    "one-hot of data": lambda: F.one_hot(torch.randn(9, 900).argmax(1), 900),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_that_keep_more_than_their_result_are_predicted_to_the_byte(name: str) -> None:
    measured = measure_peak(lambda: None, lambda _: KERNELS[name](), 1).peak_allocated
    for _ in range(2):  # the second time with a filled cache
        assert predict_peak(lambda: None, lambda _: KERNELS[name](), 1, target="cpu").peak_allocated == measured
    if "transposed" not in name:  # cuDNN computes that one; CUDA's other kernels allocate as those of the CPU do
        assert predict_peak(lambda: None, lambda _: KERNELS[name](), 1).peak_allocated == measured
