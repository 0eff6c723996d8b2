"""Memory records: predictions, measurements in child processes, and failures.

The child's code that reads GPU counters runs here with made-up counters.
"""

import csv
import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from commands import refused, run

from ppdm.method import Sampling
from ppdm_bench.configuration import Configuration, configurations
from ppdm_bench.environment import environment
from ppdm_bench.isolation import sweep
from ppdm_bench.isolation.runner import ChildAnswer, run_child
from ppdm_bench.memory import host, nvml, worker
from ppdm_bench.memory.command import MemoryPlan, MemoryTask, carry_out
from ppdm_bench.memory.host import host_peak
from ppdm_bench.memory.memory_output import collect, failures, present
from ppdm_bench.memory.workload import EVALUATIONS, fault, workload
from ppdm_bench.predictor.peak import Peak, predict_peak
from ppdm_bench.predictor.target import Target
from ppdm_bench.records import RecordFile
from ppdm_bench.units import gib

pytestmark = pytest.mark.slow

GIB = 2**30
SHAPE = (9, 16, 8)
TINY = Configuration("tiny_training:TINY", SHAPE, factor=2, width=8)  # two levels
BREAKDOWN = ("params", "grads", "optimizer", "inputs", "activations", "workspace")


def plan(configurations=(TINY,), phases=("sample",), device="predict", target=None, **options):
    return MemoryPlan(list(configurations), list(phases), device, target, **options)


def records_of(plan):
    return [record for made in carry_out(plan) for record in made]


def values(records, **wanted):
    chosen = [r for r in records if all(getattr(r, name) == value for name, value in wanted.items())]
    return {record.metric: record.value for record in chosen}


@pytest.fixture(scope="module")
def on_cpu():
    """Return the records of training, predicted and then measured by a real child process."""
    return records_of(plan(phases=("train",), device="cpu", spacing=(1.0, 2.0, 3.0)))


@pytest.fixture(scope="module")
def for_cuda():
    return records_of(plan(phases=("train", "sample"), target=Target(torch="2.11.0", capacity=24 * GIB)))


def test_on_the_cpu_predicted_values_equal_measured_values(on_cpu):
    predicted, measured = (values(on_cpu, kind=kind) for kind in ("predicted", "measured"))
    assert measured["peak_allocated"] > 100_000
    assert predicted == measured


def test_parallel_predictions_equal_those_of_one_process(monkeypatch):
    several = plan([TINY, replace(TINY, batch_size=2)], ("train", "sample"), target=Target(torch="2.11.0"))
    expected = records_of(several)
    monkeypatch.setattr("ppdm_bench.memory.command._MANY", 2)
    monkeypatch.setattr("ppdm_bench.isolation.pool.available_cores", lambda: 2)
    made_here = []
    monkeypatch.setattr("ppdm_bench.memory.command._predict", lambda *_: made_here.append(1))
    found = records_of(several)
    assert [record.content() for record in found] == [record.content() for record in expected]
    assert not made_here


def test_predicted_records_come_before_measured_ones(on_cpu):
    kinds = [record.kind for record in on_cpu]
    assert kinds == sorted(kinds, reverse=True)


def test_records_are_complete(on_cpu, for_cuda):
    for record in (*on_cpu, *for_cuda):
        assert (record.command, record.method, record.variant, record.shape) == ("memory", "tiny", "r=2", SHAPE)
        assert (record.batch_size, record.precision, record.checkpointing) == (1, "fp32", "none")
        assert record.steps == (EVALUATIONS if record.phase == "sample" else None)
        assert (record.status, record.reason) == ("ok", "")
        assert record.options == TINY.describe()
        assert record.unit == ("1" if record.metric == "parameters" else "B")
        assert {"torch", "python", "ppdm", "commit", "dirty", "cpu", "platform"} <= record.env.keys()
        assert record.stat
    assert {record.spacing for record in on_cpu} == {(1.0, 2.0, 3.0)}
    assert {record.spacing for record in for_cuda} == {()}


def test_predicted_and_measured_records_of_a_configuration_share_an_identifier(on_cpu, for_cuda):
    assert len({record.config_id for record in (*on_cpu, *for_cuda)}) == 1
    other = records_of(plan([replace(TINY, batch_size=2)]))
    assert other[0].config_id != on_cpu[0].config_id


def test_a_record_names_the_device_of_its_prediction(on_cpu, for_cuda):
    assert {record.device for record in on_cpu} == {"cpu"}
    assert {record.device for record in for_cuda} == {"cuda"}
    assert for_cuda[0].env["torch"] == "2.11.0"
    assert for_cuda[0].env["capacity"] == 24 * GIB
    assert "peak_reserved" in values(for_cuda, phase="train")
    assert "peak_reserved" not in values(on_cpu, phase="train")


def test_the_breakdown_adds_up_to_the_peak(for_cuda):
    for phase in ("train", "sample"):
        found = values(for_cuda, phase=phase)
        assert sum(found[kind] for kind in BREAKDOWN) == found["peak_allocated"]
        assert found["parameters"] * 4 <= found["params"]


def test_host_memory_is_recorded_only_for_the_translation_of_one_volume(on_cpu, for_cuda):
    work = workload(TINY.resolve(), "sample", SHAPE, 1, "cuda")
    peak = predict_peak(work.build, work.step, work.iterations, Target(torch="2.11.0"))
    assert values(for_cuda, phase="sample")["peak_host"] == host_peak(peak, SHAPE, "cuda")
    for records in (
        values(on_cpu),
        values(for_cuda, phase="train"),
        values(records_of(plan([replace(TINY, batch_size=2)]))),
    ):
        assert "peak_host" not in records


@pytest.mark.usefixtures("unrendered")
def test_host_memory_is_a_table_column_and_a_sentence(for_cuda, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "process_base", lambda device: GIB)
    found = values(for_cuda, phase="sample")["peak_host"]
    text, _ = present(for_cuda, tmp_path, None, columns=["sample host GiB"])
    assert gib(found) in text
    assert f"Host RAM, besides the card: {gib(GIB + found)} GiB to translate one volume of 9×16×8 (tiny r=2" in text
    assert "Host RAM" not in (tmp_path / "memory.md").read_text()  # files do not depend on the machine
    with open(tmp_path / "memory.csv") as stream:
        (row,) = csv.DictReader(stream)
    assert row["sample_peak_host"] == str(found)
    train = [record for record in for_cuda if record.phase == "train"]
    assert "Host RAM" not in present(train, tmp_path / "train", None)[0]


def test_a_card_that_is_too_small_gives_an_oom_record_with_a_reason():
    records = records_of(plan(target=Target(capacity=GIB // 2 + 2**20)))
    peak = next(record for record in records if record.metric == "peak_allocated")
    assert peak.status == "oom"
    assert "the card has 0.50 GiB" in peak.reason
    assert peak.value > 0
    assert failures(records) == []


def test_each_configuration_is_predicted_with_its_own_factor():
    made = configurations(["ppdm"], (32, 32, 32), factors=[2, 4], width=8)
    two, four = (values(records_of(plan([c]))) for c in made)
    assert two["activations"] > four["activations"]
    assert two["params"] < four["params"]  # 64 input and output channels instead of 8


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"checkpointing": "block"}])
def test_bf16_and_checkpointing_reduce_the_predicted_activations(for_cuda, change):
    saving = values(records_of(plan([replace(TINY, **change)], ("train",))))
    assert saving["activations"] < values(for_cuda, phase="train")["activations"]


OWN = """
from dataclasses import dataclass, replace
from ppdm import PPDM
from ppdm.representation import Puzzle

@dataclass(frozen=True)
class Broken(Puzzle):
    def encode(self, x):
        raise KeyError("nothing here")

BROKEN = replace(PPDM, representation=Broken(2))
"""


@pytest.fixture
def own_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "broken_method:BROKEN"
    sys.modules.pop("broken_method", None)


def test_a_method_that_fails_gives_an_error_record_and_the_others_still_run(own_method):
    records = records_of(plan([Configuration(own_method, SHAPE, width=8), TINY]))
    assert records[0].status == "error"
    assert records[0].reason == "KeyError: 'nothing here'"
    assert values(records, method="tiny")["peak_allocated"] > 0
    (sentence,) = failures(records)
    assert sentence == "broken r=2 sample, predicted: KeyError: 'nothing here'"


def test_a_child_imports_a_user_s_method_and_reports_its_error(own_method):
    request = {"configuration": Configuration(own_method, SHAPE, width=8).to_dict(), "phase": "sample", "device": "cpu"}
    answer = run_child("ppdm_bench.memory.worker", request, 120)
    assert (answer.status, answer.reason) == ("error", "KeyError: 'nothing here'")
    assert answer.env["torch"] == torch.__version__


LIMITED = """
import resource
from ppdm_bench.memory import worker
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**30  # room for what is loaded late, not for the volumes
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
worker.main()
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits address space by what /proc says is taken")
def test_running_out_of_cpu_memory_is_an_oom(tmp_path, monkeypatch):
    (tmp_path / "limited.py").write_text(LIMITED)
    monkeypatch.syspath_prepend(tmp_path)
    configuration = replace(TINY, shape=(512, 512, 512))
    answer = run_child("limited", {"configuration": configuration.to_dict(), "phase": "train", "device": "cpu"}, 120)
    assert answer.status == "oom"
    assert "tried to allocate" in answer.reason
    assert "enforce" not in answer.reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 1"),
            "CUDA out of memory. Tried to allocate 20.00 GiB",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 8 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. "
            "Error code 12 (Cannot allocate memory)",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), "CUDA error: out of memory CUDA kernel errors"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), "CUBLAS_STATUS_ALLOC_FAILED when calling"),
        (MemoryError(), "the memory of the system is not sufficient"),
    ],
)
def test_each_out_of_memory_error_becomes_an_oom_with_a_short_reason(monkeypatch, error, reason):
    def fail(*_):
        raise error

    monkeypatch.setattr(worker, "measure_peak", fail)
    answer = worker._answer({"configuration": TINY.to_dict(), "phase": "sample", "device": "cpu"})
    assert (answer["status"], answer["reason"]) == ("oom", reason)


def test_other_errors_are_reported_on_one_line():
    assert fault(RuntimeError("boom\nException raised from")) == "RuntimeError: boom"
    assert fault(KeyError()) == "KeyError"


# --- made-up GPU counters


class FakeNVML:
    """Fake of the pynvml functions that the code calls.

    ``looks`` are the answers to successive queries: pairs of process identifier and bytes, or None for an error. The
    last one repeats.
    """

    class NVMLError(Exception):
        pass

    def __init__(self, *looks):
        self.looks, self.asked = list(looks), []

    def nvmlInit(self):
        self.asked.append("init")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        assert handle == "handle"
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if look is None:
            raise self.NVMLError("GPU is lost")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in look]


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that runs the worker with made-up answers of NVML and statistics of the allocator."""

    def answer(looks, **statistics):
        fake = FakeNVML(*looks) if looks else None
        monkeypatch.setitem(sys.modules, "pynvml", fake)  # None makes the import fail
        properties = SimpleNamespace(uuid="0d1e-2f")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3 * GIB)
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda: statistics)
        seen = {}

        def measured(build, step, iterations, device, limit):
            seen.update(iterations=iterations, device=device, limit=limit)
            return Peak(GIB, iterations=(GIB, GIB // 2), peak_reserved=2 * GIB)

        monkeypatch.setattr(worker, "measure_peak", measured)
        monkeypatch.setattr(nvml, "sampled_process", nvml.sampled_process)
        request = {"configuration": TINY.to_dict(), "phase": "sample", "device": "cuda"}
        return worker._answer(request), seen, fake

    return answer


ME = os.getpid()


def test_a_gpu_measurement_reads_pytorch_s_counters_and_nvml(gpu):
    made, seen, fake = gpu([[], [(ME, 4 * GIB)]], num_alloc_retries=0, num_ooms=0)
    assert (made["status"], made["reason"]) == ("ok", "")
    assert made["metrics"] == {
        "peak_allocated": GIB,
        "peak_allocated_cold": GIB,
        "peak_allocated_warm": GIB // 2,
        "peak_reserved": 2 * GIB,
        "peak_process": 4 * GIB,
        "context": GIB,
    }
    assert seen == {"iterations": 2, "device": "cuda", "limit": None}
    assert fake.asked == ["init", "GPU-0d1e-2f"]
    json.dumps(made)


def test_without_nvml_there_is_a_note_and_no_process_memory(gpu):
    made, _, _ = gpu(None)
    assert made["status"] == "ok"
    assert "peak_process" not in made["metrics"]
    assert "NVML is not available" in made["reason"]


def test_an_nvml_error_during_the_run_becomes_a_note(gpu):
    made, _, _ = gpu([[], None])
    assert made["status"] == "ok"
    assert "GPU is lost" in made["reason"]


@pytest.mark.parametrize("look", [[], [(ME + 1, GIB)], [(ME, None)]])
def test_process_memory_is_absent_if_nvml_does_not_show_it(gpu, look):
    made, _, _ = gpu([[], look])
    assert "peak_process" not in made["metrics"]
    assert made["reason"] == "the memory of the process is unknown: NVML does not show it here"


@pytest.mark.parametrize("looks", [[[(1, GIB)], [(1, GIB), (ME, GIB)]], [[], [(ME, GIB), (1, GIB)]]])
def test_another_process_on_the_gpu_is_noted_in_the_reason(gpu, looks):
    made, _, _ = gpu(looks)
    assert made["reason"] == "other processes on the GPU: 1"


def test_a_peak_after_allocator_retries_is_noted_as_suspect(gpu):
    made, _, _ = gpu([[], [(ME, GIB)]], num_alloc_retries=2, num_ooms=1)
    assert made["reason"] == "the allocator retried 2 times and failed 1 times; the peak is suspect"


def test_measured_gpu_records_have_every_counter(monkeypatch):
    answer = ChildAnswer("ok", "other processes on the GPU: 1", {"peak_allocated": GIB, "context": 5}, {"gpu": "H"})
    monkeypatch.setattr(sweep, "run_child", lambda *_: answer)
    measured = [r for r in records_of(plan(device="cuda", target=Target())) if r.kind == "measured"]
    found = [(r.metric, r.value, r.stat) for r in measured if r.metric != "parameters"]
    assert found == [("context", 5, "at peak"), ("peak_allocated", GIB, "max")]  # the main metric comes last
    rows = {(r.device, r.env["gpu"], r.reason, r.steps) for r in measured}
    assert rows == {("cuda", "H", answer.reason, EVALUATIONS)}


@pytest.mark.parametrize("status", ["oom", "timeout", "error", "killed"])
def test_the_status_of_a_failed_child_becomes_a_record(monkeypatch, status):
    monkeypatch.setattr(sweep, "run_child", lambda *_: ChildAnswer(status, "so it is"))
    records = records_of(plan(device="cpu"))
    (row,) = [r for r in records if r.kind == "measured"]
    assert (row.status, row.reason, row.value, row.metric) == (status, "so it is", None, "peak_allocated")
    assert row.env == environment()
    assert bool(failures(records)) == (status != "oom")


# --- records and outputs


def test_records_are_on_disk_before_the_next_task_begins(tmp_path, monkeypatch):
    from ppdm_bench.memory import memory_output

    def interrupted(*arguments):
        for number, made in enumerate(carry_out(*arguments)):
            if number == 1:
                raise KeyboardInterrupt
            yield made

    monkeypatch.setattr(memory_output, "carry_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(plan(phases=("sample", "train")), tmp_path)
    assert {record.phase for record in RecordFile(tmp_path / "records.jsonl").read()} == {"sample"}


def test_running_the_same_plan_twice_adds_no_record(tmp_path):
    first, second = collect(plan(), tmp_path), collect(plan(), tmp_path)
    assert len(RecordFile(tmp_path / "records.jsonl").read()) == len(first) == len(second)
    assert collect(plan([replace(TINY, batch_size=2)]), tmp_path)
    # Host memory is recorded for one volume only, so batch size 2 has one record less.
    assert len(RecordFile(tmp_path / "records.jsonl").read()) == 2 * len(first) - 1


@pytest.mark.parametrize(
    ("status", "then", "measured"),
    [
        ("ok", {}, 1),
        ("oom", {}, 1),
        ("killed", {}, 2),
        ("ok", {"torch": "0.0"}, 2),
        ("ok", {"dirty": True}, 2),
    ],
)
def test_a_restarted_run_repeats_only_killed_or_outdated_measurements(tmp_path, monkeypatch, status, then, measured):
    from ppdm_bench.memory import command

    asked = []
    for env in ({"dirty": False, "torch": "1.0"}, {"dirty": False, "torch": "1.0"} | then):

        def child(module, request, timeout, env=env):
            asked.append(request)
            return ChildAnswer(status, "" if status == "ok" else "so it is", {"peak_allocated": 5}, env)

        monkeypatch.setattr(sweep, "run_child", child)
        monkeypatch.setattr(command, "environment", lambda env=env: env)
        records = collect(plan(device="cpu"), tmp_path)
        assert [r.status for r in records if (r.kind, r.metric) == ("measured", "peak_allocated")] == [status]
    assert len(asked) == measured
    collect(plan([replace(TINY, checkpointing="block")], device="cpu"), tmp_path)
    assert len(asked) == measured + 1


def test_a_prediction_is_repeated_only_if_the_code_has_uncommitted_changes(tmp_path, monkeypatch):
    from ppdm_bench.memory import command

    asked = []
    monkeypatch.setattr(command, "predict_peak", lambda *_: asked.append(1) or Peak(5, {"params": 5}))
    for env, predictions in (({"dirty": False}, 1), ({"dirty": False}, 1), ({"dirty": True}, 2), ({"dirty": True}, 3)):
        monkeypatch.setattr(command, "environment", lambda env=env: env)
        records = collect(plan(), tmp_path)
        assert (len(asked), values(records)["peak_allocated"]) == (predictions, 5)


# --- budgets, and configurations that do not fit


@pytest.fixture
def children(monkeypatch):
    """Answer for each child process with a peak of 5 bytes, and return the list of their requests."""
    asked = []
    answer = ChildAnswer("ok", "", {"peak_allocated": 5})
    monkeypatch.setattr(sweep, "run_child", lambda module, request, timeout: asked.append(request) or answer)
    return asked


def peaks(records):
    return {record.kind: record for record in records if record.metric == "peak_allocated"}


def test_a_run_that_is_predicted_not_to_fit_is_skipped_unless_the_gate_is_off(children):
    deep = [replace(TINY, method="ppdm")]
    found = peaks(records_of(plan(deep, device="cpu", budget=2**20)))
    assert found["predicted"].status == "oom"
    assert found["predicted"].reason.startswith("the budget is 0.0009766 GiB, and the tensors take 0.00")
    assert found["predicted"].value > 2**20
    assert (found["measured"].status, children) == ("skipped", [])
    assert found["measured"].reason == f"predicted not to fit: {found['predicted'].reason}; --no-gate runs it anyway"
    assert failures(found.values()) == []
    found = peaks(records_of(plan(deep, device="cpu", budget=2**20, gate=False)))
    assert (found["measured"].status, len(children)) == ("ok", 1)
    found = peaks(records_of(plan(deep, device="cpu", budget=2**30)))
    assert [found[kind].status for kind in ("predicted", "measured")] == ["ok", "ok"]


def test_no_measurement_runs_on_a_card_that_is_too_small(children):
    found = peaks(records_of(plan(device="cuda", target=Target(capacity=GIB // 2 + 2**20))))
    assert [found[kind].status for kind in ("predicted", "measured")] == ["oom", "skipped"]
    assert "the card has 0.50 GiB" in found["measured"].reason
    assert children == []


@pytest.mark.parametrize(
    ("device", "gpu_bytes", "limit"), [("cpu", 0, 2 * GIB), ("cuda", 3 * GIB, 3 * GIB // 2), ("cuda", GIB, None)]
)
def test_a_measurement_is_limited_to_the_budget_and_its_record_states_the_capacity(
    children, monkeypatch, device, gpu_bytes, limit
):
    """On CUDA the limit is the budget minus the context; a budget larger than the card sets no limit."""
    from ppdm_bench.memory import command

    known = environment() | {"gpu_bytes": gpu_bytes}
    monkeypatch.setattr(command, "environment", lambda: known)
    target = None if device == "cpu" else Target(capacity=2 * GIB)
    found = peaks(records_of(plan(device=device, target=target, budget=2 * GIB)))
    assert children[0]["limit"] == limit
    assert found["measured"].env.get("capacity") == (limit and 2 * GIB)
    assert found["predicted"].env["capacity"] == 2 * GIB


def test_a_limit_of_the_predicted_peak_suffices_and_one_byte_less_does_not():
    request = {"configuration": TINY.to_dict(), "phase": "train", "device": "cpu"}
    peak = values(records_of(plan(phases=("train",), target=None)))["peak_allocated"]
    answer = worker._answer(request | {"limit": peak})
    assert (answer["status"], answer["metrics"]["peak_allocated"]) == ("ok", peak)
    answer = worker._answer(request | {"limit": peak - 1})
    assert answer["status"] == "oom"
    assert (
        f"out of memory: {peak:,} bytes of tensors are live, and the limit is {peak - 1:,}; the budget"
        in answer["reason"]
    )


def test_on_cuda_the_limit_of_the_allocator_is_set_and_removed(monkeypatch):
    from ppdm_bench.predictor.peak import _allocator_limit

    fractions = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=8 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    for limit in (None, 2 * GIB, 9 * GIB, -1):
        with _allocator_limit(limit):
            pass
    assert fractions == pytest.approx([0.25, 1.0, 1.0, 1.0, 0.0, 1.0], abs=1e-9)


def test_a_larger_factor_can_need_more_memory():
    """At 16³, the weights for 512 channels (factor 8) need more memory than the smaller grid saves."""
    two, eight = (replace(TINY, shape=(16,) * 3, factor=factor) for factor in (2, 8))
    small, large = (values(records_of(plan([c])))["peak_allocated"] for c in (eight, two))
    assert small > 2 * large


SLEEPS = """
import time
from dataclasses import dataclass, replace
from ppdm import PPDM
from ppdm.representation import Puzzle

@dataclass(frozen=True)
class Sleeping(Puzzle):
    def encode(self, x):
        try:
            time.sleep(600)
        except Exception:
            pass

MINE = replace(PPDM, representation=Sleeping(2))
"""


def test_a_method_that_hangs_times_out_in_prediction_and_measurement(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    records = records_of(plan([Configuration("sleeps:MINE", SHAPE, width=8)], device="cpu", timeout=2))
    assert [(r.kind, r.status, r.options["timeout"]) for r in records] == [
        ("predicted", "timeout", 2),
        ("measured", "timeout", 2),
    ]
    assert all("2 s; set a larger --timeout" in sentence for sentence in failures(records))
    sys.modules.pop("sleeps", None)


def test_every_reported_file_is_written(tmp_path, for_cuda):
    text, written = present(for_cuda, tmp_path, 24 * GIB)
    assert "tiny r=2" in text
    assert {path.name for path in written[1:]} == {path.name for path in tmp_path.iterdir()}
    assert {path.suffix for path in written} == {".jsonl", ".csv", ".md", ".tex", ".png", ".pdf"}


def test_records_without_values_still_give_a_table(tmp_path, own_method):
    records = records_of(plan([Configuration(own_method, SHAPE, width=8)]))
    text, written = present(records, tmp_path, None)
    assert "error" in text
    assert {path.suffix for path in written} == {".jsonl", ".csv", ".md", ".tex"}


def test_the_text_of_a_task_describes_it():
    assert MemoryTask(TINY, "train", True).text == "measuring tiny r=2 train 9×16×8 fp32 none"


def test_a_short_sampling_run_has_the_peak_of_a_longer_one(monkeypatch):
    method = replace(TINY.resolve(), sampling=Sampling(steps=2 * EVALUATIONS))
    works = []
    for evaluations in (EVALUATIONS, 2 * EVALUATIONS):
        monkeypatch.setattr("ppdm_bench.memory.workload.EVALUATIONS", evaluations)
        works.append(workload(method, "sample", SHAPE, 1, "cpu"))
    assert [work.evaluations for work in works] == [EVALUATIONS, 2 * EVALUATIONS]
    for target in ("cpu", None):
        peaks = [predict_peak(w.build, w.step, w.iterations, target).peak_allocated for w in works]
        assert peaks[0] == peaks[1]


@pytest.mark.usefixtures("unrendered")
def test_predictions_for_several_cards_share_one_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("memory", "--res", 16, "--method", "ppdm", "--factor", 2, "--width", 8, "--phase", "sample", "--out", "o")
    assert run(*words, "--gpu", "RTX 2080 Ti")[0] == 0
    code, _, err = run(*words, "--gpu", "A100 80GB")
    assert (code, "1 configuration" in err) == (0, False)  # the same configuration, for another card
    lines = (tmp_path / "o/memory.md").read_text().splitlines()
    assert [line.split("|")[2].strip() for line in lines if "| ppdm" in line] == ["RTX 2080 Ti", "A100 80GB"]
    assert "is more than the 10.76 GiB" in refused(2, *words, "--gpu", "2080 Ti", "--budget", "12GB")
    assert "leave one out" in refused(2, *words, "--gpu", "2080 Ti", "--device", "cpu")
