"""Functions of CUDA that scripts call: each works without CUDA, or is refused with a message."""

import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.cuda.comm
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ppdm_bench.predictor import PredictionError, Target, predict_peak

HOPPER = Target(torch="2.10.0")

MODULES = [torch.cuda, torch.cuda.memory, torch.cuda.random, torch.cuda.amp, torch.cuda.nvtx, torch.cuda.profiler]
MODULES += [torch.cuda.nccl, torch.cuda.comm, torch.cuda.tunable, torch.backends.cuda, torch.backends.cudnn]
MODULES += [torch.accelerator]

# Functions that no training script calls, or whose arguments only other functions return.
LEFT_OUT = {
    "CudaError",
    "cudart",
    "SDPAParams",
    "SDPBackend",
    "mgpu_tune_gemm_in_file",
    "sdp_kernel",
    "check_error",
    "scatter",
    "broadcast",
}
LEFT_OUT |= {f"can_use_{kind}_attention" for kind in ("flash", "efficient", "cudnn")}

REFUSED = "allocates memory that|only a build with CUDA has|covers one device"


def arguments(function: Callable[..., Any]) -> list[Any]:
    """Return a plausible value for each required argument of a function."""
    x = torch.zeros(2, device="cuda")
    known = {"enabled": True, "fraction": 0.5, "tensor": x, "obj": x, "msg": "here", "devices": [0], "device": 0}
    known |= {"new_state": torch.zeros(16, dtype=torch.uint8), "inputs": [x], "outputs": [x], "tensors": [x]}
    known |= {"new_states": [torch.zeros(16, dtype=torch.uint8)], "stream": torch.cuda.current_stream()}
    known |= {"device_id": 0, "peer_device": 0, "filename": "file", "output": x, "root": 0}
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [known.get(p.name, 1) for p in needed]


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for module in MODULES:
        for name in getattr(module, "__all__", None) or dir(module):
            found = getattr(module, name, None)
            if callable(found) and not name.startswith("_") and not inspect.isclass(found) and name not in LEFT_OUT:
                home = getattr(found, "__module__", "") or ""
                if home.startswith(("torch.", "ppdm_bench.")):
                    yield f"{module.__name__}.{name}", found


def outcome(call: Callable[[], Any]) -> str:
    try:
        predict_peak(lambda: None, lambda _: call(), 1, HOPPER)
    except PredictionError as error:
        return str(error)
    except Exception as error:
        return f"raw {type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_function_of_cuda_works_or_is_refused_with_a_message() -> None:
    def call(name: str) -> Callable[[], Any]:
        def run() -> None:
            module, _, function = name.rpartition(".")
            found = getattr(next(each for each in MODULES if each.__name__ == module), function)
            found(*arguments(found))

        return run

    names = [name for name, _ in functions()]
    assert len(names) > 150
    answers = {name: outcome(call(name)) for name in names}
    assert not {name: answer for name, answer in answers.items() if answer.startswith("raw ")}
    refused = [name for name, answer in answers.items() if answer]
    assert len(refused) < 50
    assert not {"torch.cuda.nccl.version", "torch.cuda.memory_summary", "torch.cuda.synchronize"} & set(refused)


def train() -> None:
    net, x = nn.Linear(100, 100), torch.randn(8, 100)
    optimizer = torch.optim.Adam(net.parameters())
    (net(x) + torch.tensor([1.0])).square().mean().backward()
    optimizer.step()
    assert (net.weight.device.type, x.device.type, torch.arange(3).device.type) == ("cuda",) * 3


def by_tensor_type(kind: Any) -> Callable[[], None]:
    def run() -> None:
        torch.set_default_tensor_type(kind())
        train()

    return run


def by_default_device() -> None:
    torch.set_default_device("cuda")
    train()


def within_a_device() -> None:
    with torch.device("cuda"):
        train()


DEFAULTS: dict[str, Callable[[], None]] = {
    "name of a type": by_tensor_type(lambda: "torch.cuda.FloatTensor"),
    "type": by_tensor_type(lambda: torch.cuda.FloatTensor),
    "device": by_default_device,
    "context": within_a_device,
}


@pytest.mark.filterwarnings("ignore:torch.set_default_tensor_type")
@pytest.mark.parametrize("name", DEFAULTS)
def test_tensors_are_created_on_the_default_device(name: str) -> None:
    from ppdm_bench.predictor.peak import predicting

    with predicting(HOPPER, home="host") as trace:  # as in a script
        DEFAULTS[name]()
    weights = 100 * 100 * 4
    assert trace.timeline.peak()[1] > 4 * weights
    assert trace.timeline.host_peak(everywhere=False) < 2048  # Adam keeps its step counters on the host
    assert (torch.get_default_device().type, torch.get_default_dtype()) == ("cpu", torch.float32)
    assert torch.zeros(2).device.type == "cpu"


@pytest.mark.filterwarnings("ignore:torch.set_default_tensor_type")
def test_a_default_tensor_type_also_sets_the_dtype() -> None:
    def step(_: Any) -> None:
        torch.set_default_tensor_type(torch.cuda.HalfTensor)
        assert torch.randn(3).dtype is torch.float16
        torch.set_default_tensor_type(torch.DoubleTensor)
        assert (torch.randn(3).dtype, torch.randn(3, device="cpu").device.type) == (torch.float64, "cpu")

    predict_peak(lambda: None, step, 1, HOPPER)
    assert torch.get_default_dtype() is torch.float32


def test_a_legacy_tensor_type_accepts_a_size_or_values() -> None:
    given = [(2, 3), (torch.Size([2, 3]),), ([[1.0] * 3] * 2,), (np.zeros((2, 3)),), (torch.zeros(2, 3),)]

    def step(_: None) -> None:
        for each in given:
            x = torch.cuda.FloatTensor(*each)
            assert (x.shape, x.dtype, x.device.type) == ((2, 3), torch.float32, "cuda")
        assert torch.cuda.LongTensor(np.int64(5)).shape == torch.cuda.LongTensor(5).shape == (5,)

    predict_peak(lambda: None, step, 1, HOPPER)


def test_a_peak_can_be_reset_and_read_under_the_names_of_both_modules() -> None:
    def step(_: None) -> None:
        torch.zeros(1024, device="cuda")
        assert torch.cuda.max_memory_allocated() == torch.accelerator.max_memory_allocated() == 4096
        torch.accelerator.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == torch.accelerator.max_memory_allocated() == 0

    predict_peak(lambda: None, step, 1, HOPPER)


def test_a_device_or_stream_can_be_selected_by_the_name_of_the_argument() -> None:
    def step(_: None) -> None:
        with torch.cuda.device(device=0) as selected, torch.cuda.stream(stream=torch.cuda.Stream()) as used:
            assert (selected, used) == (None, None)

    predict_peak(lambda: None, step, 1, HOPPER)


def test_functions_that_scripts_call_at_their_start_work_or_are_refused() -> None:
    def top() -> None:
        assert torch.cuda.nccl.version() >= (2, 10)
        assert torch.distributed.is_nccl_available()
        torch.backends.cuda.preferred_linalg_library("cusolver")
        torch.cuda.default_generators[0].manual_seed(1)
        assert torch.cuda.get_device_properties(0).gcnArchName == ""
        assert torch.cuda.memory._snapshot()["segments"] == []
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            torch.zeros(3, device="cuda")
        assert "zeros" in recorded.key_averages().table(sort_by="cuda_time_total")

    assert outcome(top) == ""
    assert "only a build with CUDA has" in outcome(lambda: torch.cuda.nccl.all_reduce([torch.zeros(2)]))
    assert "only a build with CUDA has" in outcome(lambda: torch.backends.cuda.cufft_plan_cache.clear())


@pytest.mark.parametrize("hook", ["fp16_compress_hook", "bf16_compress_hook", "allreduce_hook"])
def test_gradient_buckets_and_their_compressed_copies_count_with_every_communication_hook(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    from torch.nn.parallel import DistributedDataParallel

    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setitem(os.environ, name, value)

    def build() -> Any:
        torch.distributed.init_process_group("nccl")
        net = DistributedDataParallel(nn.Linear(300, 400).cuda())
        net.register_comm_hook(None, getattr(default_hooks, hook))
        return net, torch.optim.SGD(net.parameters(), lr=0.1)

    def step(state: Any) -> None:
        state[0](torch.randn(8, 300, device="cuda")).mean().backward()
        state[1].step()
        state[1].zero_grad()

    found = predict_peak(build, step, 2, HOPPER)
    gradients = 300 * 400 + 400  # all are in one bucket
    bucket, compressed = 4 * gradients, 0 if hook == "allreduce_hook" else 2 * gradients
    of_the_layer = found.breakdown["inputs"] + found.breakdown["activations"] - bucket - compressed
    assert 0 <= of_the_layer < 24 << 10  # 8 × 300 inputs and 8 × 400 outputs
    assert found.iterations == (found.peak_allocated,) * 2
