"""Features of training scripts: data loaders with workers, checkpoints, distributed wrappers, offloading."""

import copy
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, load_model, save, save_file, save_model
from torch import Tensor, distributed, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from ppdm_bench.predictor.data_loading import raised_by_prefetched
from ppdm_bench.predictor.peak import PredictionError, measure_peak, predict_peak, predicting
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timeline import Timeline

HOPPER = Target(torch="2.10.0")
State = tuple[nn.Module, torch.optim.Optimizer]


def where() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def assert_same(build: Callable[[], Any], step: Callable[[Any], Any], iterations: int = 2) -> None:
    measured = measure_peak(build, step, iterations)
    predicted = predict_peak(build, step, iterations, target="cpu")
    assert predicted.iterations == measured.iterations
    assert predict_peak(build, step, iterations, target=HOPPER).peak_allocated > 0


def conv() -> State:
    net = nn.Conv3d(1, 4, 3).to(where())
    return net, torch.optim.Adam(net.parameters())


def fit(state: State, x: Tensor) -> None:
    net, optimizer = state
    net(x.to(where(), non_blocking=True)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


# --- data loaders


class Volumes(Dataset[Tensor]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:
        x = torch.from_numpy(np.random.rand(1, 8, 8, 10 + index).astype("f4"))  # noqa: NPY002
        assert len((x > 0.1).nonzero()) > 300  # a transform that reads its data
        return F.pad(x, (0, 6 - index))


LOADERS: dict[str, dict[str, Any]] = {
    "no workers": {"shuffle": True},
    "a worker": {"num_workers": 1, "shuffle": True, "timeout": 60},
    "pinned": {"num_workers": 1, "pin_memory": True, "drop_last": True, "prefetch_factor": 4},
    "collated": {"num_workers": 1, "collate_fn": torch.stack},
    "sampled": {"sampler": torch.utils.data.WeightedRandomSampler([0.1, 0.5, 0.4, 0.2, 0.2], 4)},
}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize("name", LOADERS)
def test_training_with_a_data_loader_is_predicted_to_the_byte(name: str) -> None:
    def step(state: State) -> None:
        for x in DataLoader(Volumes(), batch_size=2, **LOADERS[name]):
            fit(state, x)

    assert_same(conv, step)


def test_a_batch_counts_from_its_arrival_even_if_the_code_does_not_use_it() -> None:
    def step(state: State) -> None:
        kept = next(iter(DataLoader(Volumes(), 5, num_workers=1)))
        fit(state, torch.randn(1, 1, 8, 8, 16))
        assert len(kept) == 5

    assert_same(conv, step)


def test_prefetched_batches_raise_a_peak_only_while_they_wait() -> None:
    timeline = Timeline()
    prefetched = timeline.allocate(4096, "inputs", "batch")  # 4096 live, all of it prefetched
    waiting = [(0, 4096)]
    timeline.allocate(1024, "inputs", "batch")  # 5120 live, of which 1024 are not prefetched
    timeline.free(prefetched)
    waiting.append((timeline.now, 0))
    assert raised_by_prefetched(timeline, waiting) == 4096
    timeline.allocate(3072, "activations", "result")  # 4096 live, none of it prefetched
    assert raised_by_prefetched(timeline, waiting) == 1024
    assert raised_by_prefetched(timeline, []) == 0


def test_workers_of_a_data_loader_do_not_change_the_peak_of_the_card() -> None:
    def peak(**options: Any) -> int:
        def step(state: State) -> None:
            for x in DataLoader(Volumes(), batch_size=2, **options):
                fit(state, x)

        return predict_peak(conv, step, target=HOPPER).peak_allocated

    assert peak(num_workers=0) == peak(num_workers=2) == peak(num_workers=2, pin_memory=True, persistent_workers=True)


class Range(IterableDataset[Any]):
    """A data set of numbers; each worker reads a part of them."""

    def __init__(self) -> None:
        self.start, self.end = 0, 7

    def __iter__(self) -> Iterator[tuple[int, float]]:
        for number in range(self.start, self.end):
            yield number, float(torch.rand(()))


def split_between_workers(number: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert (info.id, info.num_workers) == (number, 2)
    data: Any = info.dataset
    data.start, data.end = (0, 4) if number == 0 else (4, 7)


def test_each_worker_has_its_own_part_of_the_data_set_and_its_own_seed() -> None:
    def batches() -> list[Any]:
        torch.manual_seed(3)
        loader = DataLoader(Range(), 2, num_workers=2, worker_init_fn=split_between_workers)
        return [(number.tolist(), value.tolist()) for number, value in loader]

    real = batches()
    predicted: list[Any] = []
    predict_peak(lambda: None, lambda _: predicted.extend(batches()), iterations=1, target="cpu")
    assert [numbers for numbers, _ in real] == [[0, 1], [4, 5], [2, 3], [6]]
    assert real[0][1] != real[1][1]
    assert predicted == real
    assert get_worker_info() is None


def test_a_data_set_that_is_created_in_the_prediction_is_predicted_to_the_byte() -> None:
    def build() -> Any:
        return *conv(), TensorDataset(torch.randn(6, 1, 8, 8, 8), torch.zeros(6))

    def step(state: Any) -> None:
        for x, _ in DataLoader(state[2], batch_size=2, shuffle=True):
            fit(state[:2], x)

    assert_same(build, step)
    predict_peak(build, lambda state: [*DataLoader(state[2], 2, num_workers=2)], target=HOPPER)


# --- files that the code writes


def tied() -> State:
    net = nn.Sequential(nn.Linear(60, 60), nn.BatchNorm1d(60), nn.Linear(60, 60)).to(where())
    net[2].weight = net[0].weight
    return net, torch.optim.AdamW(net.parameters())


def resume(net: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    everything = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "loss": torch.tensor(2.5)}
    torch.save(everything | {"random": torch.get_rng_state(), "epoch": 3}, path / "all.pt")
    read = torch.load(path / "all.pt", map_location=where(), weights_only=True)
    assert (read["epoch"], read["loss"].item()) == (3, 2.5)
    net.load_state_dict(read["net"])
    optimizer.load_state_dict(read["optimizer"])
    torch.set_rng_state(read["random"].cpu())


def keep_whole(net: nn.Module, _: Any, path: Path) -> None:
    torch.save(net, path / "net.pt")
    read = torch.load(path / "net.pt", weights_only=False)
    assert read[2].weight is read[0].weight


def to_memory(net: nn.Module, _: Any, path: Path) -> None:
    file = io.BytesIO()
    torch.save(net.state_dict(), file, _use_new_zipfile_serialization=False)
    file.seek(0)
    net.load_state_dict(torch.load(file))


def pickled(net: nn.Module, _: Any, path: Path) -> None:
    copied = pickle.loads(pickle.dumps(net))  # noqa: S301
    assert isinstance(copied[0].weight, nn.Parameter)
    net.load_state_dict(copied.state_dict())


def by_safetensors(net: nn.Module, _: Any, path: Path) -> None:
    save_model(net, str(path / "net.safetensors"))
    load_model(net, path / "net.safetensors")
    save_file({name: x.clone() for name, x in net.state_dict().items()}, path / "all.safetensors")
    net.load_state_dict(load_file(path / "all.safetensors"))


def by_numpy(net: nn.Module, _: Any, path: Path) -> None:
    np.savez_compressed(path / "net.npz", **{name: x.cpu().numpy() for name, x in net.state_dict().items()})
    assert len({p.data_ptr() for p in net.parameters()}) == 5


def averaged(net: nn.Module, *_: Any) -> None:
    average = copy.deepcopy(net)
    for mean, p in zip(average.parameters(), net.parameters(), strict=True):
        mean.data.mul_(0.9).add_(p.data, alpha=0.1)


@pytest.mark.parametrize("keep", [resume, keep_whole, to_memory, pickled, by_safetensors, by_numpy, averaged])
def test_saving_the_network_in_a_step_is_predicted_to_the_byte(keep: Callable[..., None], tmp_path: Path) -> None:
    def step(state: State) -> None:
        fit(state, torch.randn(4, 60))
        keep(*state, tmp_path)

    assert_same(tied, step)


@pytest.mark.parametrize("target", [Target(), "cpu"])
def test_safetensors_writes_known_values_and_zeros_for_others(target: Any, tmp_path: Path) -> None:
    def step(_: None) -> None:
        # None of these tensors has memory that safetensors could read.
        tensors = {"known": torch.tensor([1.0, 2.0]), "unknown": torch.randn(300, 400)}
        save_file(tensors, tmp_path / "file.safetensors")
        (tmp_path / "bytes.safetensors").write_bytes(save(tensors))

    predict_peak(lambda: None, step, target=target)
    for name in ("file", "bytes"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found["known"].tolist() == [1, 2]
        assert found["unknown"].shape == (300, 400)
        assert not found["unknown"].any()


def resident(name: str) -> int:
    """Return the resident memory of this process in bytes: ``VmRSS`` is its current value, and ``VmHWM`` its peak."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process stands in a file of Linux")
def test_a_checkpoint_takes_almost_no_memory_and_disk_space(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"

    def step(net: nn.Module) -> None:
        torch.save({"net": net.state_dict(), "seen": torch.arange(3)}, path)

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the current value
    before = resident("VmRSS")
    predict_peak(lambda: nn.Linear(20_000, 20_000, bias=False), step, iterations=1, target="cpu")
    assert resident("VmHWM") - before < 100_000_000
    assert path.stat().st_size > 1_600_000_000
    assert path.stat().st_blocks * 512 < 1_000_000
    assert torch.load(path, mmap=True)["seen"].tolist() == [0, 1, 2]


# --- offloading, and composite operators


OFFLOADS: dict[str, Callable[[], Any]] = {
    "save_on_cpu": save_on_cpu,
    "pinned": lambda: save_on_cpu(pin_memory=True),
    "hooks": lambda: saved_tensors_hooks(lambda x: x.cpu(), lambda x: x.cuda()),
}


@pytest.mark.parametrize("name", OFFLOADS)
def test_offloaded_activations_count_on_the_host_and_not_on_the_card(name: str) -> None:
    def step(p: Tensor) -> None:
        with OFFLOADS[name]():
            x = p
            for _ in range(20):
                x = torch.sin(x)  # sin saves its input of 4 MiB
        x.mean().backward()
        p.grad = None

    peak = predict_peak(lambda: nn.Parameter(torch.randn(1 << 20, device="cuda")), step, target=HOPPER)
    # The parameter, the last result, its gradient, and what one backward step needs: its input, its cosine, its result.
    assert 6 << 22 <= peak.peak_allocated < (6 << 22) + 4096
    assert peak.host >= 19 << 22


@pytest.mark.filterwarnings("ignore:flex_attention called")
def test_flex_attention_is_predicted_as_uncompiled() -> None:
    def forward(net: nn.Module) -> None:
        with torch.no_grad():
            q = net(torch.randn(1, 2, 128, 16))
            flex_attention(q, q, q)

    def train(net: nn.Module) -> None:
        q = net(torch.randn(1, 2, 128, 16, device="cuda"))
        flex_attention(q, q, q).mean().backward()

    assert_same(lambda: nn.Linear(16, 16), forward)
    scores = 2 * 128 * 128 * 4
    assert predict_peak(lambda: nn.Linear(16, 16).cuda(), train, target=HOPPER).breakdown["activations"] > 2 * scores


# --- distributed training with one process


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the variables of torchrun for one process, and destroy a remaining process group at the end."""
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(300, 400), nn.BatchNorm1d(400), nn.Linear(400, 900)
        self.unused = nn.Linear(50, 50)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x)).relu())
        return y


class Used(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.unused(x[:, :50]).mean()


def begin(backend: str) -> None:
    if not distributed.is_initialized():
        store = distributed.HashStore() if backend == "gloo" else None
        ranks = {"rank": 0, "world_size": 1} if store else {}
        distributed.init_process_group(backend, store=store, **ranks)
    assert (distributed.get_backend(), distributed.get_world_size()) == (backend, 1)


def accumulate(state: State) -> None:
    net, optimizer = state
    device = next(net.parameters()).device
    with net.no_sync():
        net(torch.randn(8, 300, device=device)).square().mean().backward()
    loss = net(torch.randn(8, 300, device=device)).square().mean()
    loss.backward()
    distributed.all_reduce(loss.detach())
    distributed.barrier()
    gathered: list[Any] = [None]
    distributed.all_gather_object(gathered, {"epoch": 1})
    assert gathered == [{"epoch": 1}]
    optimizer.step()
    optimizer.zero_grad()


WRAPPED: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "plain": (Used, {}),
    "views": (Used, {"gradient_as_bucket_view": True}),
    "small buckets": (Used, {"bucket_cap_mb": 1}),
    "unused parameters": (Net, {"find_unused_parameters": True}),
    "hook": (Used, {"hook": default_hooks.fp16_compress_hook}),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_distributed_data_parallel_is_predicted_to_the_byte(name: str, alone: None) -> None:
    kind, options = WRAPPED[name]

    def build() -> State:
        begin("gloo")
        net = DistributedDataParallel(kind(), **{k: v for k, v in options.items() if k != "hook"})
        if "hook" in options:
            net.register_comm_hook(None, options["hook"])
        return net, torch.optim.AdamW(net.parameters())

    assert_same(build, accumulate, 3)


@pytest.mark.parametrize("name", [*(name for name in WRAPPED if name != "hook"), "static graph"])
def test_gradient_buckets_count_on_the_card_in_every_iteration(name: str, alone: None) -> None:
    """DistributedDataParallel allocates its buckets anew when it knows in which order gradients arrive."""
    kind, options = WRAPPED.get(name, (Used, {"static_graph": True}))

    def build(wrap: bool) -> State:
        net = kind().to("cuda:0")
        if wrap:
            begin("nccl")
            net = DistributedDataParallel(net, device_ids=[0], output_device=0, **options)
        return net, torch.optim.AdamW(net.parameters())

    def step(state: State) -> None:
        fit(state, torch.randn(8, 300, device="cuda"))

    wrapped, bare = (
        predict_peak(lambda wrap=wrap: build(wrap), step, 3, target=HOPPER).iterations for wrap in (True, False)
    )
    buckets = 0 if "gradient_as_bucket_view" in options else sum(p.numel() * 4 for p in kind().parameters())
    rests = [a - b - buckets for a, b in zip(wrapped, bare, strict=True)]
    assert max(map(abs, rests)) < 1 << 20  # the allocator does not split off a rest below 1 MiB; buckets have 1.9 MB


@pytest.mark.parametrize("home", ["target", "host"], ids=["functions", "script"])
@pytest.mark.parametrize(("device", "place"), [("cuda", "target"), ("cpu", "host")])
def test_gradient_buckets_are_where_the_parameters_are(device: str, place: str, home: Any, alone: None) -> None:
    with predicting(HOPPER, home=home) as trace:
        begin("nccl")
        net = DistributedDataParallel(nn.Linear(300, 400, device=device))
        for _ in range(3):
            net(torch.randn(8, 300, device=device)).mean().backward()
    created = [block for block in trace.timeline.blocks if block.name == "aten.empty.memory_format"]
    places = [block.place for block in created if block.shape == (300 * 400 + 400,)]
    assert places == [place] * 2  # of the first bucket, and of the one that replaces it


def test_the_process_group_ends_with_the_prediction(alone: None) -> None:
    predict_peak(lambda: begin("nccl"), lambda _: None, target=HOPPER)
    assert not distributed.is_initialized()


def test_a_group_of_several_processes_is_refused(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
    with pytest.raises(PredictionError, match="covers one process, and the code starts a group of 4"):
        predict_peak(lambda: distributed.init_process_group("nccl"), lambda _: None, target=HOPPER)


def test_sharded_parameters_are_predicted_to_the_byte(alone: None) -> None:
    def build() -> State:
        begin("gloo")
        mesh = init_device_mesh("cpu", (1,))
        net = Used()
        fully_shard(net.last, mesh=mesh)
        fully_shard(net, mesh=mesh)
        return net, torch.optim.AdamW(net.parameters())

    assert_same(build, lambda state: fit(state, torch.randn(8, 300)), 3)


def test_data_parallel_adds_nothing_on_one_device_and_is_refused_on_two() -> None:
    def step(state: State) -> None:
        fit(state, torch.randn(8, 300))

    def peak(wrap: Callable[[nn.Module], nn.Module]) -> int:
        def build() -> State:
            net = wrap(Used()).cuda()
            return net, torch.optim.AdamW(net.parameters())

        return predict_peak(build, step, target=HOPPER).peak_allocated

    assert peak(nn.DataParallel) == peak(lambda net: net)
    with pytest.raises(PredictionError, match="one device, and the code scatters"):
        peak(lambda net: nn.DataParallel(net, device_ids=[0, 1]))
