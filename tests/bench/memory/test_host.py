"""Host memory of a translation: predictions against real translations in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_methods import tiny
from translated_on_host import method_of

from ppdm.checkpoint import Trained
from ppdm.data.scaling import SUVScaling
from ppdm.translation import translate_volume
from ppdm_baselines import METHODS
from ppdm_bench.isolation.runner import ChildAnswer, run_child
from ppdm_bench.memory import host
from ppdm_bench.memory.host import host_peak, host_sentence, process_base
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.peak import Peak, measure_peak, predict_peak
from ppdm_bench.predictor.target import Target
from ppdm_bench.records import Record

GIB, MIB = 2**30, 2**20
CHILD = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system counts memory elsewhere")


def scan(path: Path, edge: int, dtype: str) -> Path:
    values = np.random.default_rng(0).random((edge, edge, edge), np.float32) * 1000
    nib.save(nib.Nifti1Image(values.astype(dtype), np.eye(4)), path)
    return path


def prediction(method, edge, device="cpu"):
    """Return the predicted peak of sampling one cube."""
    work = workload(method, "sample", (edge, edge, edge), 1, device)
    return predict_peak(work.build, work.step, work.iterations, "cpu" if device == "cpu" else Target())


@pytest.mark.cold
@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block", "edge", "dtype"),
    [
        ("ppdm", None, 208, "float32"),
        ("patch", 64, 128, "int16"),
    ],
)
def test_a_real_translation_needs_the_predicted_memory_within_15_percent(tmp_path, name, block, edge, dtype):
    request = {"method": name, "block": block, "output": str(tmp_path / "out.nii")}
    request |= {"tiny": str(scan(tmp_path / "a.nii", 16, dtype)), "source": str(scan(tmp_path / "b.nii", edge, dtype))}
    answer = run_child("translated_on_host", request, 300)
    assert answer.status == "ok", answer.reason
    base, peak = answer.metrics["base"], answer.metrics["peak"]
    shape = (edge, edge, edge)
    predicted = host_peak(prediction(method_of(name, block), edge), shape, "cpu", np.dtype(dtype).itemsize)
    assert base + predicted == pytest.approx(peak, rel=0.15)
    # The base hides errors, so it is subtracted. glibc keeps up to 64 MiB of freed memory (mallopt(3)).
    assert 0.95 * predicted - 2 * MIB < peak - base < 1.05 * predicted + 64 * MIB


def test_the_child_that_measures_the_libraries_imports_no_predictor():
    """The predictor imports sympy and more, 70 MiB that a translation does not take."""
    code = "import sys, ppdm_bench.memory.host; print({'sympy', 'ppdm_bench.predictor.peak'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=CHILD, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "block"), [("ppdm", None), ("patch", 16), ("latent", None)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_predicted_host_memory_agrees_with_a_trace_of_translate_volume(name, block, device):
    """The trace follows every tensor of translate_volume, with the scaling that has the most steps (PET)."""
    method, edge = tiny(METHODS[name], steps=1), 32
    method = method if block is None else method.in_blocks(block)
    source = torch.rand(edge, edge, edge)

    def step(network):
        return translate_volume(Trained(method, network, SUVScaling(), (1.0, 1.0, 1.0), 1, 0), source)

    if device == "cpu":
        found = measure_peak(lambda: method.build().eval(), step, 1).peak_allocated
        peak = prediction(method, edge)
        predicted = host_peak(peak, source.shape, device) - (
            peak.host - peak.peak_allocated
        )  # without the buffers of kernels
    else:
        found = predict_peak(lambda: method.build().to("cuda").eval(), step, 1, Target()).host
        peak = prediction(method, edge, device)
        predicted = max(2 * source.nbytes, source.nbytes + peak.host)  # tiny weights are not the peak
        assert host_peak(peak, source.shape, device) == max(predicted, 2 * peak.breakdown["params"])
    assert found == pytest.approx(predicted, rel=0.05)  # the tolerance covers a few planes


def test_each_stage_of_a_translation_can_be_the_peak():
    shape, volume = (10, 20, 30), 4 * 6000
    assert host_peak(Peak(5, {"params": 10**6}), shape, "cuda") == 2 * 10**6
    assert host_peak(Peak(5, {"params": 7}), shape, "cuda") == 2 * volume
    assert host_peak(Peak(5, {"params": 7}), shape, "cpu") == 2 * volume + 7
    assert host_peak(Peak(5, {"params": 7}), shape, "cuda", stored=8) == 3 * volume
    assert host_peak(Peak(5, {"params": 7}, host=10 * volume), shape, "cuda") == 11 * volume


# This needs a separate process: the current one would reuse memory that earlier tests have freed.
MEASURED = """
import torch
from ppdm_bench.memory.host import peak_resident
torch.set_num_threads(1)
net = torch.nn.Conv3d(*{channels}, 3, padding=1)
with torch.no_grad():
    net(torch.ones(1, {channels}[0], 4, 4, 4))
    open("/proc/self/clear_refs", "w").write("5")
    before = peak_resident()
    net(torch.ones(1, {channels}[0], *[{edge}] * 3))
print(peak_resident() - before)
"""


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(
    ("channels", "edge", "buffers"),
    [((64, 32), 64, 64 * 64**3 * 4), ((5, 8), 48, 5 * 27 * 48**3 * 4)],
    ids=["oneDNN", "columns"],
)
def test_host_memory_includes_the_buffers_of_cpu_convolutions(channels, edge, buffers):
    def build():
        return torch.nn.Conv3d(*channels, 3, padding=1)

    def step(net):
        with torch.no_grad():
            net(torch.ones(1, channels[0], edge, edge, edge))

    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build has no oneDNN, and every convolution writes columns")
    peak = predict_peak(build, step, 1, "cpu")
    assert (
        peak.peak_allocated == measure_peak(build, step, 1).peak_allocated
    )  # the allocated peak does not count buffers
    tensors = 4 * sum(channels) * edge**3
    assert peak.host - peak.breakdown["params"] == pytest.approx(tensors + buffers, rel=0.01)
    code = MEASURED.format(channels=channels, edge=edge)
    done = subprocess.run([sys.executable, "-c", code], env=CHILD, capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(tensors + buffers, rel=0.15)


def test_only_tensors_on_the_host_count_as_host_memory():
    def step(net):
        kept = torch.zeros(1000, 1024, device="cpu")
        return net(kept[:10].to("cuda")).cpu() + kept[:10]

    peak = predict_peak(lambda: torch.nn.Linear(1024, 1024).to("cuda"), step, 1, Target())
    assert 4 * 1000 * 1024 <= peak.host <= 4 * 1040 * 1024
    assert peak.breakdown["inputs"] < 10**5


@pytest.mark.cold
@needs_proc
@pytest.mark.slow
def test_the_base_is_measured_in_a_real_process_and_only_once(monkeypatch):
    process_base.cache_clear()
    base = process_base("cpu")
    assert 64 * MIB < base < 4 * GIB
    monkeypatch.setattr(host, "run_child", lambda *_: pytest.fail("it was measured again"))
    assert process_base("cpu") == base
    process_base.cache_clear()


def test_a_base_that_cannot_be_measured_is_none(monkeypatch):
    process_base.cache_clear()
    monkeypatch.setattr(host, "run_child", lambda *_: ChildAnswer("error", "no /proc"))
    assert process_base("cpu") is None
    process_base.cache_clear()


def record(value, shape=(64, 64, 64), method="ppdm", variant="r=2", device="cuda"):
    fields = {"method": method, "variant": variant, "shape": shape, "phase": "sample", "device": device}
    return Record(metric="peak_host", value=value, kind="predicted", **fields)


@pytest.mark.parametrize(
    ("device", "gpu", "base", "text"),
    [
        (
            *("cuda", False, GIB // 2),
            "Host RAM, besides the card: up to 3.50 GiB to translate one volume of 128×128×64 (patch, float32 NIfTI), "
            "of which Python and its libraries take 0.500 GiB; CUDA's libraries take more, which can only be measured "
            "with a GPU.",
        ),
        (
            *("cuda", True, 2 * GIB),
            "Host RAM, besides the card: up to 5.00 GiB to translate one volume of 128×128×64 (patch, float32 NIfTI), "
            "of which Python and its libraries take 2.00 GiB.",
        ),
        (
            *("cpu", False, None),
            "Host RAM: up to 3.00 GiB to translate one volume of 128×128×64 (patch, float32 NIfTI), beside Python and "
            "its libraries.",
        ),
    ],
)
def test_the_sentence_names_the_largest_volume_and_the_method_that_needs_most(monkeypatch, device, gpu, base, text):
    asked = []
    monkeypatch.setattr(host, "process_base", lambda device: asked.append(device) or base)
    monkeypatch.setattr(host, "environment", lambda: {"gpu": "H100"} if gpu else {})
    large = (128, 128, 64)
    records = [record(9 * GIB), record(GIB, large), record(3 * GIB, large, "patch", "")]
    assert host_sentence([Record.from_json(r.to_json().replace('"cuda"', f'"{device}"')) for r in records]) == text
    assert asked == ["cuda" if gpu else "cpu"]


def test_one_method_gives_no_upper_bound_and_no_method_gives_no_sentence(monkeypatch):
    monkeypatch.setattr(host, "process_base", lambda device: 0)
    assert "card: 1.00 GiB to translate" in host_sentence([record(GIB)])
    monkeypatch.setattr(host, "process_base", lambda device: pytest.fail("measured for nothing"))
    assert host_sentence([]) == ""
