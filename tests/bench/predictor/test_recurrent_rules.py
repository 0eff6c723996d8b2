"""Recurrent layers: exact on the CPU; on CUDA against sizes computed by hand and published reserves of cuDNN."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from ppdm_bench.predictor import Target, measure_peak, predict_peak
from ppdm_bench.predictor.recurrent_rules import GRU, LSTM, mkldnn_workspace, reserve

AMPERE = Target(torch="2.8.0", compute_capability=(8, 0))
STEPS, BATCH, WIDTH, H = 20, 8, 32, 64

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(WIDTH, H),
    "LSTM in both directions": lambda: nn.LSTM(WIDTH, H, 2, bidirectional=True, dropout=0.5),
    "LSTM of batches": lambda: nn.LSTM(WIDTH, H, batch_first=True),
    "LSTM without bias": lambda: nn.LSTM(WIDTH, H, bias=False),
    "LSTM, projected": lambda: nn.LSTM(WIDTH, H, proj_size=16),
    "LSTM that is not trained": lambda: nn.LSTM(WIDTH, H).eval(),
    "GRU": lambda: nn.GRU(WIDTH, H, 2),
    "RNN": lambda: nn.RNN(WIDTH, H, nonlinearity="relu"),
}


def built(make: Callable[[], nn.Module], device: str = "cpu") -> Callable[[], Any]:
    return lambda: (net := make().to(device), torch.optim.SGD(net.parameters(), lr=0.1))


def train(state: Any, x: Tensor) -> None:
    net, optimizer = state
    net(x)[0].square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", LAYERS)
def test_a_recurrent_layer_on_the_cpu_is_predicted_to_the_byte(name: str) -> None:
    step: Callable[[Any], None] = lambda state: train(state, torch.randn(STEPS, BATCH, WIDTH))  # noqa: E731
    measured = measure_peak(built(LAYERS[name]), step)
    predicted = predict_peak(built(LAYERS[name]), step, target="cpu")
    assert predicted.iterations == measured.iterations
    assert predicted.breakdown == measured.breakdown


def test_a_recurrent_layer_without_gradients_is_predicted_to_the_byte() -> None:
    def step(state: Any) -> None:
        train(state, torch.randn(STEPS, BATCH, WIDTH))
        with torch.no_grad():
            state[0](torch.randn(9 * STEPS, BATCH, WIDTH))

    make = built(LAYERS["LSTM"])
    assert predict_peak(make, step, target="cpu").iterations == measure_peak(make, step).iterations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_workspace_of_onednn_has_the_predicted_size(dtype: torch.dtype) -> None:
    draw = random.Random(1)
    for sizes in [(1, 1, 1, 1), (9, 3, 256, 64)] + [tuple(draw.randint(1, 70) for _ in range(4)) for _ in range(20)]:
        steps, batch, features, hidden = sizes
        x, h = torch.zeros(steps, batch, features, dtype=dtype), torch.zeros(batch, hidden, dtype=dtype)
        weights = [x.new_zeros(4 * hidden, features), x.new_zeros(4 * hidden, hidden), *(x.new_zeros(2, 4 * hidden))]
        layer = torch.ops.aten.mkldnn_rnn_layer
        kept = layer(x, *weights, h, h, False, [], 2, hidden, 1, True, False, False, True)[3]
        assert mkldnn_workspace(*sizes, dtype.itemsize) == kept.numel()


def test_the_reserve_of_cudnn_has_the_published_sizes() -> None:
    assert reserve(LSTM, 25_000 * 320, 4, 4) == 736_000_000
    assert reserve(GRU, 25_000 * 320, 4, 4) == 864_000_000
    assert reserve(GRU, 326 * 64 * 800 * 2, 1, 4) == 801_177_600


@pytest.mark.parametrize("half", [False, True])
def test_a_recurrent_layer_on_cuda_keeps_its_reserve(half: bool) -> None:
    found: list[int] = []

    def step(state: Any) -> None:
        x = torch.randn(STEPS, BATCH, WIDTH, device="cuda")
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.float16, enabled=half):
            output, _ = state[0](x)
        assert output.dtype is (torch.float16 if half else torch.float32)
        found.append(torch.cuda.memory_allocated() - before)
        output.float().mean().backward()

    peak = predict_peak(built(lambda: nn.LSTM(WIDTH, H), "cuda"), step, 1, AMPERE)
    size = 2 if half else 4
    kept = 5 * STEPS * BATCH * H * size
    output, states = STEPS * BATCH * H * size, 4 * BATCH * H * size  # first and last hidden and cell state
    copies = (WIDTH + H + 2) * 4 * H * 2 + STEPS * BATCH * WIDTH * 2 if half else 0
    assert found[0] == kept + output + states + copies
    assert peak.assumed >= kept


def test_a_bidirectional_gru_on_cuda_keeps_its_reserve_only_in_training() -> None:
    net = lambda: nn.GRU(WIDTH, H, 2, bidirectional=True, batch_first=True)  # noqa: E731
    step: Callable[[Any], None] = lambda state: train(state, torch.randn(BATCH, STEPS, WIDTH, device="cuda"))  # noqa: E731
    peak = predict_peak(built(net, "cuda"), step, target=AMPERE)
    assert set(peak.terms) == {"recurrent workspace", "recurrent input, steps first"}
    assert peak.breakdown["activations"] >= reserve(GRU, STEPS * BATCH * H * 2, 2, 4)

    @torch.inference_mode()
    def infer(state: Any) -> None:
        state[0].eval()(torch.randn(BATCH, STEPS, WIDTH, device="cuda"))

    weights = sum(p.numel() for p in net().parameters()) * 4
    allocated = predict_peak(built(net, "cuda"), infer, target=AMPERE).peak_allocated
    assert (
        2 * weights * 0.9 < allocated < 2 * weights + 8 * STEPS * BATCH * H * 4
    )  # parameters and workspace; no reserve


def test_without_cudnn_a_recurrent_layer_on_cuda_uses_cublas() -> None:
    step: Callable[[Any], None] = lambda state: train(state, torch.randn(STEPS, BATCH, WIDTH, device="cuda"))  # noqa: E731
    with torch.backends.cudnn.flags(enabled=False):
        assert "cuBLAS" in predict_peak(built(lambda: nn.LSTM(WIDTH, H), "cuda"), step, target=AMPERE).terms


def test_packed_sequences_from_a_data_loader_are_predicted() -> None:
    data = [torch.randn(n, WIDTH) for n in (7, 5, 2)]

    def step_on(device: str) -> Callable[[Any], None]:
        def step(state: Any) -> None:
            net, optimizer = state
            for x in DataLoader(data, batch_size=3, collate_fn=pack_sequence):  # type: ignore[arg-type]
                net(x.to(device))[0].data.square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()

        return step

    measured = measure_peak(built(lambda: nn.LSTM(WIDTH, H)), step_on("cpu"))
    assert (
        predict_peak(built(lambda: nn.LSTM(WIDTH, H)), step_on("cpu"), target="cpu").iterations == measured.iterations
    )
    peak = predict_peak(built(lambda: nn.LSTM(WIDTH, H), "cuda"), step_on("cuda"), target=AMPERE)
    assert peak.breakdown["activations"] > reserve(LSTM, 14 * H, 1, 4)
