"""Predicted times: the work of kernels against closed forms, the roofline model, and what limits a step."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ppdm_bench.predictor.cards import CARDS, SHEETS, find_sheet
from ppdm_bench.predictor.kernels import KernelWork
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timing import FITTED, IDEAL, Duration, KernelTable, Rates, kernels_of_step, predict_time

A100 = find_sheet("A100 80GB")


def kernels(step: Any, *made: Any, target: Target | None = None) -> list[KernelWork]:
    return kernels_of_step(lambda: made, lambda state: step(*state), target, iterations=1)


def test_a_convolution_has_the_operations_and_the_traffic_of_its_formula() -> None:
    x, layer = torch.randn(2, 3, 8, 8, 8), nn.Conv3d(3, 5, 3, padding=1, bias=False)
    (forward,) = kernels(lambda x, layer: layer(x), x, layer)
    assert (forward.kind, forward.stage, forward.columns, forward.depth) == ("convolution", "forward", 5, 3)
    assert forward.flops == 2 * 2 * 8**3 * 5 * 3 * 27
    assert forward.traffic == 4 * (2 * 8**3 * 3 + 5 * 3 * 27 + 2 * 8**3 * 5)


def test_a_backward_pass_has_a_product_for_each_gradient_of_a_convolution() -> None:
    x, layer = torch.randn(1, 4, 6, 6, 6, requires_grad=True), nn.Conv3d(4, 8, 3, padding=1)
    found = kernels(lambda x, layer: layer(x).sum().backward(), x, layer)
    of_convolution = [k for k in found if k.kind == "convolution"]
    assert [k.stage for k in of_convolution] == ["forward", "input", "weight"]
    assert len({k.flops for k in of_convolution}) == 1
    assert [(k.columns, k.depth) for k in of_convolution] == [(8, 4), (4, 8), (8, 4)]


def test_a_matrix_product_and_attention_have_the_operations_of_their_formulas() -> None:
    a, b = torch.randn(6, 7), torch.randn(7, 8)
    (product,) = kernels(torch.mm, a, b)
    assert (product.flops, product.traffic) == (2 * 6 * 7 * 8, 4 * (42 + 56 + 48))
    q = torch.randn(1, 2, 16, 8)
    found = kernels(lambda q: nn.functional.scaled_dot_product_attention(q, q, q), q)
    (attention,) = [k for k in found if k.kind == "attention"]
    assert attention.flops == 2 * 2 * (2 * 16 * 16 * 8)


def test_attention_in_half_precision_is_computed_in_half_precision_in_both_passes() -> None:
    q = torch.randn(1, 2, 16, 8, dtype=torch.bfloat16, requires_grad=True)
    step = lambda q: nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()  # noqa: E731
    found = [k for k in kernels(step, q, target=Target(compute_capability=(8, 0))) if k.kind == "attention"]
    assert [k.operator.endswith("backward") for k in found] == [False, True]
    assert [k.dtype for k in found] == ["half", "half"]


def test_views_and_empty_tensors_are_no_kernels_and_expanded_tensors_are_read_once() -> None:
    x = torch.randn(4, 6)
    assert kernels(lambda x: x.view(24)[2:].unsqueeze(0).expand(9, 22), x) == []
    assert kernels(lambda x: torch.empty(100), x) == []
    (added,) = kernels(lambda x: x[:1].expand(4, 6) + x, x)
    assert added.traffic == 4 * (6 + 24 + 24)


def test_normalisation_reads_its_input_twice() -> None:
    x, norm = torch.randn(2, 8, 4, 4, 4), nn.GroupNorm(2, 8, affine=False)
    found = [k for k in kernels(lambda x, norm: norm(x), x, norm) if "group_norm" in k.name]
    volume = 4 * x.numel()
    assert 3 * volume <= sum(k.traffic for k in found) < 3.1 * volume


def test_copies_into_another_layout_are_kernels_only_on_the_card() -> None:
    x, layer = torch.randn(1, 16, 8, 8, 8), nn.Conv3d(16, 16, 3, padding=1)
    on_card = kernels(lambda x, layer: layer(x), x, layer, target=Target(compute_capability=(8, 0), tf32=True))
    copy = next(k for k in on_card if k.kind == "copy")
    assert copy.traffic == 2 * 4 * (2 * 16 * 512 + 16 * 16 * 27)
    assert not copy.launched
    assert all(k.kind != "copy" for k in kernels(lambda x, layer: layer(x), x, layer))


@pytest.mark.parametrize(
    ("kernel", "rates", "seconds", "limit"),
    [
        (
            KernelWork("convolution", "c", "half", flops=312 * 10**12, traffic=1, columns=64, depth=64),
            {},
            1.0,
            "arithmetic",
        ),
        (KernelWork("convolution", "c", "float32", flops=156 * 10**12, columns=64, depth=64), {}, 1.0, "arithmetic"),
        (
            KernelWork("convolution", "c", "float32", flops=195 * 10**11, columns=64, depth=64),
            {"tf32": False},
            1.0,
            "arithmetic",
        ),
        (KernelWork("memory", "add", traffic=2039 * 10**9), {}, 1.0, "bandwidth"),
        (
            KernelWork("convolution", "c", "half", flops=1, traffic=2039 * 10**9, columns=1, depth=1),
            {},
            1.0,
            "bandwidth",
        ),
    ],
)
def test_a_kernel_takes_the_larger_of_arithmetic_and_traffic(
    kernel: KernelWork, rates: dict[str, bool], seconds: float, limit: str
) -> None:
    found = Duration.of(KernelTable.of([kernel]), Rates.of(A100, **rates), IDEAL)
    assert found.seconds == pytest.approx(seconds)
    assert found.limit == limit


def test_launches_narrow_channels_and_repeated_kernels_add_time() -> None:
    wide = KernelWork("convolution", "c", "half", flops=10**12, columns=256, depth=256)
    narrow = replace(wide, columns=8, depth=8)
    rates = Rates.of(A100)
    assert 2 < seconds_of([narrow], rates) / seconds_of([wide], rates) < 6
    assert seconds_of([wide] * 3, rates) == pytest.approx(3 * seconds_of([wide], rates))
    empty = KernelWork("memory", "add")
    assert seconds_of([empty] * 1000, rates) == pytest.approx(1000 * FITTED.launch)
    assert Duration.of(KernelTable.of([empty]), rates).limit == "launches"
    assert seconds_of([replace(empty, launched=False)], rates) == 0


def seconds_of(found: list[KernelWork], rates: Rates) -> float:
    return Duration.of(KernelTable.of(found), rates).seconds


def test_half_precision_without_tensor_cores_is_computed_in_fp32() -> None:
    kernel = KernelWork("convolution", "c", "half", flops=10**12, columns=64, depth=64)
    pascal = Rates.of(find_sheet("GTX 1080 Ti"))
    assert pascal.arithmetic(kernel) == "fp32"
    assert seconds_of([kernel], pascal) == pytest.approx(1.92 / 11.3, rel=0.01)


def test_a_faster_card_takes_less_time_and_the_parts_add_up() -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = nn.Sequential(nn.Conv3d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv3d(32, 1, 3, padding=1)).cuda()
        return network, torch.optim.AdamW(network.parameters())

    def step(state: tuple[nn.Module, torch.optim.Optimizer]) -> None:
        network, optimizer = state
        network(torch.randn(1, 1, 64, 64, 64, device="cuda")).square().mean().backward()
        optimizer.step()

    found = {name: predict_time(build, step, find_sheet(name)) for name in ("H100 80GB", "A100 80GB", "T4")}
    assert found["H100 80GB"].seconds < found["A100 80GB"].seconds < found["T4"].seconds
    for one in found.values():
        assert sum(one.parts.values()) == pytest.approx(one.seconds)
        assert sum(share.seconds for share in one.by_kernel) == pytest.approx(one.seconds)
        low, high = one.interval
        assert low < one.seconds < high
        assert str(one).startswith("predicted")


def test_optimizer_steps_are_counted_in_the_last_iteration() -> None:
    weights = [nn.Parameter(torch.randn(1000)) for _ in range(3)]

    def step(optimizer: torch.optim.Optimizer) -> None:
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()

    found = kernels_of_step(lambda: torch.optim.AdamW(weights), step, Target())
    assert any("_foreach" in kernel.name for kernel in found)
    assert sum(kernel.traffic for kernel in found if "_foreach" in kernel.name) >= 4 * 3 * 1000 * 6


def test_zero_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one iteration, got 0"):
        kernels_of_step(lambda: None, lambda _: None, None, iterations=0)


def test_a_step_without_operations_has_no_kernels() -> None:
    assert kernels(lambda x: None, torch.randn(3)) == []
    duration = predict_time(lambda: None, lambda _: None, A100)
    assert str(duration) == "predicted 0 s (0 to 0; arithmetic 0%, bandwidth 0%, launches 0%)"


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.name)
def test_each_sheet_is_found_and_its_rates_are_in_order(sheet: Any) -> None:
    assert find_sheet(sheet.name) is sheet
    assert sheet.source
    assert 0 < sheet.fp32 < 200
    assert 100 < sheet.bandwidth < 10_000
    assert (sheet.half > 0) == (sheet.compute_capability >= (7, 0))
    assert (sheet.tf32 > 0) == (sheet.compute_capability >= (8, 0))
    assert sheet.tf32 <= sheet.half


# Rate of tensor cores relative to ordinary cores by compute capability; professional and GeForce cards differ.
TENSOR = {
    (6, 1): {0},
    (7, 0): {8},
    (7, 5): {8, 4},
    (8, 0): {16},
    (8, 6): {4, 2},
    (8, 9): {4, 2},
    (9, 0): {16},
    (12, 0): {2},
}


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.name)
def test_the_rates_of_each_sheet_follow_from_its_cores_clock_and_memory(sheet: Any) -> None:
    chip = sheet.chip
    assert sheet.fp32 == pytest.approx(2 * chip.cores * chip.mhz / 1e6, rel=0.01)
    assert sheet.bandwidth == pytest.approx(chip.bus * chip.gbps / 8, rel=0.03)
    assert chip.tensor in TENSOR[sheet.compute_capability]
    # The tensor cores of the H100 have their own clock, 8 % below the boost clock.
    slower = 0.924 if sheet.compute_capability == (9, 0) else 1
    assert sheet.half == pytest.approx(slower * chip.tensor * sheet.fp32, rel=0.02)
    if sheet.tf32:
        assert sheet.tf32 == pytest.approx(sheet.half / 2, rel=0.02)


def test_every_card_with_known_memory_has_a_data_sheet_of_its_generation() -> None:
    for card in CARDS:
        assert find_sheet(card.name).name == card.name
        assert find_sheet(card.name).compute_capability == card.compute_capability


@pytest.mark.parametrize(
    ("asked", "words"),
    [("RTX 4900", "did you mean RTX 4090"), ("MI300X", "known cards are H200"), ("A100", "A100 80GB or")],
)
def test_an_unknown_or_ambiguous_sheet_lists_the_candidates(asked: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_sheet(asked)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("a100 80gb pcie", "A100 80GB PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("h200", "H200"),
    ],
)
def test_a_sheet_is_found_by_the_common_names_of_its_card(asked: str, name: str) -> None:
    assert find_sheet(asked).name == name
