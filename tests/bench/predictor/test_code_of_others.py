"""Code of users: tensor subclasses, modules on meta, schedules, calls of torch.cuda, and code that is refused."""

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import DataLoader, MetaTensor
from monai.losses import DiceLoss
from torch import Tensor, nn

from ppdm_bench.predictor.peak import PredictionError, measure_peak, predict_peak
from ppdm_bench.predictor.target import Target

HOPPER = Target(torch="2.10.0")


def conv() -> nn.Module:
    return nn.Conv3d(1, 4, 3)


def once(step: Callable[[], Any]) -> Any:
    return predict_peak(lambda: None, lambda _: step(), iterations=1, target=HOPPER)


def assert_same(build: Callable[[], Any], step: Callable[[Any], Any]) -> None:
    measured = measure_peak(build, step).peak_allocated
    assert predict_peak(build, step, target="cpu").peak_allocated == measured
    assert predict_peak(build, step, target=HOPPER).peak_allocated > 0


# --- tensor subclasses


class Named(Tensor):
    """A tensor subclass that the user defines."""

    name = "a"


def test_a_tensor_subclass_keeps_its_class() -> None:
    def step(net: nn.Module) -> None:
        x = torch.randn(1, 1, 8, 8, 8).as_subclass(Named)
        assert isinstance(x, Named)
        assert isinstance(x[0] + 1, Named)
        plain = x.as_subclass(Tensor)
        assert not isinstance(plain, Named)
        y = net(x)
        assert isinstance(y, Named)
        y.mean().backward()

    assert_same(conv, step)


def test_tensors_with_metadata_keep_their_class_and_metadata() -> None:
    def step(net: nn.Module) -> None:
        x = MetaTensor(torch.randn(1, 1, 8, 8, 8), affine=torch.eye(4) * 2)
        assert x.affine[0, 0].item() == 2
        assert isinstance(x[:, :, 1:], MetaTensor)
        net(x).mean().backward()
        net.zero_grad()

    assert_same(conv, step)


def test_a_data_set_of_tensors_with_metadata_is_predicted_to_the_byte() -> None:
    volumes = [MetaTensor(torch.rand(1, 8, 8, 8)) for _ in range(3)]

    def step(net: nn.Module) -> None:
        for x in DataLoader(volumes, batch_size=1, shuffle=True):  # type: ignore[arg-type]
            loss = DiceLoss(sigmoid=True)(net(x), torch.zeros(1, 4, 6, 6, 6))
            loss.backward()
            net.zero_grad()

    assert_same(conv, step)
    moved = predict_peak(lambda: conv().cuda(), lambda net: [net(x[None].cuda()) for x in volumes], target=HOPPER)
    assert moved.peak_allocated > 0


def test_layers_on_tensors_with_metadata_are_predicted_to_the_byte() -> None:
    volumes = [MetaTensor(torch.rand(1, 48, 48, 48)) for _ in range(2)]  # oneDNN computes their convolution

    def step(net: nn.Module) -> None:
        for x in DataLoader(volumes, batch_size=2):  # type: ignore[arg-type]
            net(x.to(torch.device("cpu"))).mean().backward()
            net.zero_grad()

    layers = lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.PReLU(), nn.ConvTranspose3d(4, 1, 3, 2, 1, 1))  # noqa: E731
    assert_same(layers, step)


def test_a_deep_copy_of_a_real_tensor_is_counted_and_the_original_is_unchanged() -> None:
    x = {"x": torch.ones(300, 300)}
    step: Callable[[Any], Any] = lambda _: copy.deepcopy(x)["x"].add_(1)  # noqa: E731
    assert predict_peak(lambda: None, step, target="cpu").peak_allocated >= 360_000
    assert x["x"].max() == 1


# --- modules on the meta device


def test_a_network_on_meta_takes_memory_only_after_it_moves_to_another_device() -> None:
    def built(device: str) -> nn.Module:
        with torch.device("meta"):
            net = nn.Linear(200, 200)
        assert net.weight.device.type == "meta"
        net = net.to_empty(device=device)
        assert net.weight.device.type == torch.device(device).type
        nn.init.zeros_(net.weight)
        return net

    def step(net: nn.Module) -> None:
        net(torch.randn(2, 200)).mean().backward()

    assert_same(lambda: built("cpu"), step)
    allocated = predict_peak(lambda: built("cuda"), lambda net: None, target=HOPPER).peak_allocated
    assert allocated == 160_256 + 1024  # 200·200 and 200 values of 4 bytes, in blocks of 512


# --- functions that create tensors on the device of their input


FUNCTIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "bag": (lambda: nn.EmbeddingBag(50, 8), lambda net: net(torch.randint(0, 50, (4, 7)))),
    "zero attention": (
        lambda: nn.MultiheadAttention(16, 2, add_zero_attn=True, batch_first=True),
        lambda net: net(*[torch.randn(2, 8, 16)] * 3)[0],
    ),
    "fractional pool": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 1), nn.FractionalMaxPool3d(2, output_size=3)),
        lambda net: net(torch.randn(1, 1, 8, 8, 8)),
    ),
    "fractional pool 2-D": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.FractionalMaxPool2d(2, output_ratio=0.5)),
        lambda net: net(torch.randn(1, 1, 8, 8)),
    ),
    "mask": (
        lambda: nn.Transformer(16, 2, 1, 1, 8, batch_first=True),
        lambda net: net(*[torch.randn(2, 8, 16)] * 2, tgt_mask=nn.Transformer.generate_square_subsequent_mask(8)),
    ),
    "Gumbel": (lambda: nn.Linear(4, 4), lambda net: F.gumbel_softmax(net(torch.randn(3, 4)), hard=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_create_tensors_on_the_device_of_their_input(name: str) -> None:
    build, forward = FUNCTIONS[name]

    def step(net: nn.Module) -> None:
        forward(net).mean().backward()
        net.zero_grad()

    assert_same(build, step)


# --- restored state


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, 10),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [2]
        ),
    ],
)
def test_schedules_and_random_generators_are_restored(schedule: Callable[[Any], Any]) -> None:
    net = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    rates = schedule(optimizer)

    def step(_: Any) -> None:
        net.eval()
        x = torch.from_numpy(np.random.rand(2, 3).astype("f4")) * random.random()  # noqa: NPY002
        net(x).mean().backward()
        optimizer.step()
        rates.step()
        optimizer.zero_grad()

    def state() -> str:
        learnt = copy.deepcopy({name: value for name, value in vars(rates).items() if name != "optimizer"})
        return str((learnt.get("last_epoch"), learnt.get("_last_lr"), optimizer.param_groups[0]["lr"], net.training))

    before = state(), np.random.get_state()[2], random.getstate(), torch.get_rng_state().tolist()  # noqa: NPY002
    predict_peak(lambda: None, step, 3, target="cpu")
    after = state(), np.random.get_state()[2], random.getstate(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == before


def test_a_script_module_can_exist_during_a_prediction() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    assert_same(lambda: nn.Linear(8, 8), lambda net: net(torch.randn(2, 8)).mean().backward())
    assert judge(torch.ones(1, 3)).shape == (1, 3)


# --- refused code


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by PyTorch itself
def test_forward_mode_differentiation_is_refused() -> None:
    def step(net: nn.Module) -> None:
        x = torch.randn(2, 4, 8, 8, 8)
        torch.func.jvp(net, (x,), (torch.ones_like(x),))

    with pytest.raises(PredictionError, match="forward-mode"):
        predict_peak(lambda: nn.GroupNorm(2, 4), step, target="cpu")


def test_another_cuda_device_is_refused() -> None:
    for name in (lambda: torch.zeros(2).to("cuda:1"), lambda: torch.zeros(2, device="cuda:3"), lambda: conv().cuda(1)):
        with pytest.raises(PredictionError, match=r"cuda:0, and the code uses cuda:\d"):
            once(name)


@pytest.mark.parametrize("name", ["CUDAGraph", "graph", "make_graphed_callables"])
def test_cuda_graphs_are_refused(name: str) -> None:
    with pytest.raises(PredictionError, match=f"torch.cuda.{name} allocates memory"):
        once(lambda: getattr(torch.cuda, name)())


# --- the rest of torch.cuda


def test_counters_properties_and_tensor_types_of_torch_cuda_work() -> None:
    def step() -> None:
        cuda: Any = torch.cuda
        x = torch.ones(1000, device="cuda")
        size = 4096
        for counter in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
            assert getattr(cuda, counter)(device=0) == getattr(cuda, counter)(x.device) == size
        assert cuda.memory_stats(device=0)["allocated_bytes.all.current"] == size
        assert cuda.memory_stats()["num_alloc_retries"] == 0
        assert "4,096" in cuda.memory_summary(device=0, abbreviated=True)
        assert cuda.mem_get_info(device=0)[0] > 0
        assert cuda.get_device_name(device=0) == cuda.get_device_properties(device=0).name
        assert cuda.get_device_capability(device=0)[0] >= 8
        assert cuda.current_stream(device=0).query()
        cuda.reset_peak_memory_stats(device=0)
        cuda.synchronize(device=0)
        cuda.memory._record_memory_history(max_entries=10)
        cuda.memory._dump_snapshot("nowhere.pickle")
        cuda.nvtx.range_push("a")
        cuda.nvtx.range_pop()
        old = cuda.FloatTensor(3)
        assert (old.shape, old.is_cuda, isinstance(old, cuda.FloatTensor)) == ((3,), True, True)
        assert not isinstance(old, cuda.HalfTensor)
        assert cuda.LongTensor([2, 3]).tolist() == [2, 3]

    once(step)
    assert not Path("nowhere.pickle").exists()


SURFACE: dict[str, Callable[[], Any]] = {
    "initialised": lambda: torch.cuda.is_initialized(),
    "throughput": lambda: 64 / torch.cuda.Event(enable_timing=True).elapsed_time(torch.cuda.Event()),
    "properties": lambda: torch.cuda.get_device_properties("cuda").L2_cache_size,
    "nested counters": lambda: torch.cuda.memory_stats_as_nested_dict()["allocated_bytes"]["all"],
    "load": lambda: torch.cuda.utilization() + torch.cuda.temperature(),
    "cuDNN": lambda: torch.backends.cudnn.version() > 80_000,
    "version": lambda: torch.version.cuda.split(".")[0] == "12",
    "device": lambda: torch.cuda.device(0).idx == 0 and torch.cuda.current_stream().device.type == "cuda",
    "stream": lambda: torch.Stream(device="cuda").query() and torch.Event(device="cuda").query(),
    "number": lambda: torch.device(0) == torch.device("cuda", 0),
    "type": lambda: torch.ones(2).type(torch.cuda.HalfTensor).dtype is torch.float16,  # type: ignore[call-overload]
    "type of the CPU": lambda: torch.ones(2, device="cpu").type(torch.DoubleTensor).is_cpu,
    "type by name": lambda: torch.ones(2).type("torch.cuda.DoubleTensor").is_cuda,
    "accelerator": lambda: torch.accelerator.max_memory_allocated() >= torch.accelerator.memory_allocated(),
    "free memory": lambda: torch.accelerator.get_memory_info()[0] > 0,
}


@pytest.mark.parametrize("name", SURFACE)
def test_further_functions_of_torch_cuda_work(name: str) -> None:
    answers: list[Any] = []

    def step() -> None:
        torch.accelerator.set_device_index(0)
        torch.cuda.profiler.start()
        with torch.cuda.device(0), torch.cuda.nvtx.range("a"):
            answers.append(bool(SURFACE[name]()))

    once(step)
    assert answers == [True]


def test_memory_pools_are_refused() -> None:
    with pytest.raises(PredictionError, match=r"torch\.cuda\.use_mem_pool allocates memory"):
        once(lambda: torch.cuda.use_mem_pool(None))


# --- custom operators, and more refused code


@torch.library.custom_op("predicted::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x.sin() * 2


def test_a_custom_operator_without_a_fake_kernel_is_predicted_to_the_byte() -> None:
    assert_same(lambda: nn.Linear(90, 90), lambda net: twice(net(torch.randn(9, 90))))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "jagged": (lambda: torch.nested.nested_tensor([torch.ones(2, 3)], layout=torch.jagged), "nested"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2, 3)]), "nested"),
    "lazy": (lambda: nn.LazyLinear(3), "nn.Linear instead of nn.LazyLinear"),
    "L-BFGS": (lambda: torch.optim.LBFGS(nn.Linear(2, 2).parameters()).step(lambda: 1.0), "L-BFGS"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_lazy_modules_and_lbfgs_are_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(PredictionError, match=words):
        once(make)
