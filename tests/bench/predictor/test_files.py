"""Tensors that code reads from files count from then on, until they are freed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from torch import nn

from ppdm_bench.predictor.peak import measure_peak, predict_peak
from ppdm_bench.predictor.target import Target

HOPPER = Target(torch="2.10.0")
SIZE = 8 * 256 * 256 * 4  # bytes of the weights


def stack() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(8)])


def slices(path: Path, device: str) -> dict[str, Any]:
    with safe_open(path, "pt", device=device) as file:  # type: ignore[no-untyped-call]
        return {name: file.get_slice(name)[:] for name in file.keys()}  # noqa: SIM118


def opened(path: Path, device: str) -> dict[str, Any]:
    with safe_open(path, framework="pt", device=device) as file:  # type: ignore[no-untyped-call]
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


READERS: dict[str, Callable[[Path, str], Any]] = {
    "torch": lambda path, device: torch.load(path / "w.pt", map_location=device),
    "a device": lambda path, device: torch.load(path / "w.pt", map_location=torch.device(device)),
    "a map": lambda path, device: torch.load(path / "w.pt", map_location={"cpu": device}),
    "legacy": lambda path, device: torch.load(path / "old.pt", map_location=device),
    "a module": lambda path, device: torch.load(path / "net.pt", map_location=device, weights_only=False).state_dict(),
    "a checkpoint": lambda path, device: torch.load(path / "all.pt", map_location=device)["net"],
    "safetensors": lambda path, device: load_file(path / "w.safetensors", device=device),
    "open": lambda path, device: opened(path / "w.safetensors", device),
    "slices": lambda path, device: slices(path / "w.safetensors", device),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    net = stack()
    torch.save(net.state_dict(), path / "w.pt")
    torch.save(net.state_dict(), path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(net, path / "net.pt")
    torch.save({"net": net.state_dict(), "epoch": 3}, path / "all.pt")
    save_file(net.state_dict(), path / "w.safetensors")
    return path


def step(state: Any) -> None:
    net, optimizer = state
    net(torch.randn(4, 256, device=net[0].weight.device)).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", READERS)
def test_weights_read_from_a_file_are_predicted_to_the_byte(files: Path, name: str) -> None:
    def build() -> Any:
        net = stack()
        net.load_state_dict(READERS[name](files, "cpu"))
        return net, torch.optim.SGD(net.parameters())

    measured = measure_peak(build, step).peak_allocated
    assert predict_peak(build, step, target="cpu").peak_allocated == measured


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_weights_are_on_the_device_that_they_were_read_to(files: Path, name: str) -> None:
    allocated: list[int] = []

    def build() -> Any:
        weights = READERS[name](files, "cpu")
        allocated.append(torch.cuda.memory_allocated())
        del weights
        weights = READERS[name](files, "cuda")
        allocated.append(torch.cuda.memory_allocated())
        assert weights["0.weight"].is_cuda
        with torch.device("meta"):
            net = stack()
        net.load_state_dict(weights, assign=True)
        del weights
        allocated.append(torch.cuda.memory_allocated())
        return net, torch.optim.SGD(net.parameters())

    peak = predict_peak(build, step, target=HOPPER)
    assert allocated == [0, SIZE, SIZE]
    assert peak.breakdown["params"] == SIZE


@pytest.mark.parametrize("target", ["cpu", HOPPER])
def test_weights_read_from_safetensors_bytes_are_counted(files: Path, target: Any) -> None:
    def build() -> Any:
        net = stack()
        net.load_state_dict(load((files / "w.safetensors").read_bytes()))
        return net, torch.optim.SGD(net.parameters())

    assert predict_peak(build, step, target=target).peak_allocated >= 2 * SIZE
