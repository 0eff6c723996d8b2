"""Second verification: repeat each measurement with only the predicted memory."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from commands import refused, run

from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.isolation.runner import ChildAnswer
from ppdm_bench.isolation.sweep import Sweep
from ppdm_bench.memory import verify as module
from ppdm_bench.memory.verify import VERIFIED, unverified, verdict, verifiable, verify, verify_in
from ppdm_bench.predictor.peak import _allocator_limit
from ppdm_bench.records import Record, RecordFile, config_id
from ppdm_bench.report.tables import memory as table

pytestmark = pytest.mark.slow

GIB = 2**30
TINY = Configuration("ppdm", (8, 8, 8), factor=4, width=8)


def peak(metric="peak_allocated", value=GIB, kind="measured", phase="train", device="cuda", **other):
    options = TINY.describe()
    common = {"config_id": config_id(options), "options": options, "method": "ppdm", "variant": "r=4"}
    where = {"shape": TINY.shape, "batch_size": 1, "precision": "fp32", "phase": phase, "device": device}
    env = environment() | {"dirty": False}
    return Record(metric=metric, value=value, kind=kind, command="memory", **{**common, **where, "env": env, **other})


@pytest.fixture
def children(monkeypatch):
    """Replace child processes: ``answers`` are their next answers, and ``asked`` collects their requests."""
    asked, answers = [], []

    def run_child(worker, request, timeout):
        asked.append(request)
        return answers.pop(0) if answers else ChildAnswer("ok", env=environment() | {"dirty": False})

    monkeypatch.setattr(module, "run_child", run_child)
    return SimpleNamespace(asked=asked, answers=answers)


def test_the_limit_is_predicted_reserved_memory_on_cuda_and_allocated_memory_on_cpu():
    allocated, reserved = peak(kind="predicted"), peak("peak_reserved", 2 * GIB, "predicted")
    measured = peak(value=GIB - 512)
    assert verifiable([allocated, reserved, measured]) == [(measured, 2 * GIB)]
    on_cpu = [replace(record, device="cpu") for record in (allocated, reserved, measured)]
    assert verifiable(on_cpu) == [(on_cpu[2], GIB)]


@pytest.mark.parametrize(
    "changed",
    [
        [peak("peak_reserved", GIB, "predicted", status="oom", reason="it does not fit"), peak()],
        [peak("peak_reserved", GIB, "predicted"), peak(status="oom", reason="it did not fit")],
        [peak("peak_reserved", GIB, "predicted"), peak(phase="sample")],
        [peak("peak_reserved", GIB, "predicted", device="cpu"), peak()],
    ],
)
def test_a_run_is_verified_only_if_it_succeeded_and_was_predicted_to_fit(changed):
    assert verifiable(changed) == []


def test_a_run_is_verified_with_the_predicted_memory_and_once_per_limit(children, tmp_path):
    records = [peak("peak_reserved", 2 * GIB, "predicted"), peak()]
    (verified,) = verify_in(tmp_path, records, 60)
    (request,) = children.asked
    assert request["limit"] == 2 * GIB
    assert (request["phase"], request["device"]) == ("train", "cuda")
    assert Configuration.from_dict(request["configuration"]).describe() == TINY.describe()
    assert (verified.metric, verified.value, verified.unit, verified.status) == (VERIFIED, 2 * GIB, "B", "ok")
    assert (verified.config_id, verified.kind) == (records[1].config_id, "measured")
    assert [record.content() for record in RecordFile(tmp_path / "records.jsonl").read()] == [verified.content()]
    assert [record.content() for record in verify_in(tmp_path, records, 60)] == [verified.content()]
    assert len(children.asked) == 1
    more = [replace(records[0], value=3 * GIB), records[1]]
    assert verify_in(tmp_path, more, 60)[0].value == 3 * GIB
    assert len(children.asked) == 2


def test_an_oom_counts_in_the_verdict_and_a_timeout_or_crash_does_not(children):
    sweep = Sweep("no.worker", 60)
    children.answers += [
        ChildAnswer("oom", "out of memory"),
        ChildAnswer("timeout", "too long"),
        ChildAnswer("killed", "by SIGKILL"),
    ]
    short, late, killed = (verify(peak(), GIB, sweep) for _ in range(3))
    assert (short.status, short.value, short.reason) == ("oom", GIB, "out of memory")
    assert (late.status, killed.status) == ("timeout", "killed")
    ran = verify(peak(), GIB, sweep)
    assert verdict([short, ran, killed]) == (
        "Second verification: 1 of 2 runs succeeded within the predicted memory.\n"
        "ppdm r=4 train fp32 failed within 1,073,741,824 bytes: out of memory\n"
    )
    assert unverified([short, ran, late, killed]) == [
        "ppdm r=4 train fp32, verification: too long",
        "ppdm r=4 train fp32, verification: by SIGKILL",
    ]
    assert verdict([late]) == ""


@pytest.mark.parametrize(("status", "shown"), [("ok", "yes"), ("oom", "no"), ("killed", "–")])
def test_the_table_shows_whether_the_verification_succeeded(status, shown):
    """It is a column in the row of the measurement, whose peak and status do not change."""
    reason = "" if status == "ok" else "as it went"
    other = peak(VERIFIED, 2 * GIB, phase="sample")
    records = [peak(kind="predicted"), peak(), peak(VERIFIED, 2 * GIB, status=status, reason=reason), other]
    frame = table.memory_table([*records, peak(phase="sample")])
    row = frame[frame["kind"] == "measured"].iloc[0]
    assert (row["train_status"], row["train_peak_allocated"], row["train_prediction_error"]) == ("ok", GIB, 0)
    line = next(line for line in table.memory_page(frame).to_markdown().splitlines() if "measured" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    names = [cell.strip() for cell in table.memory_page(frame).to_markdown().splitlines()[2].strip("|").split("|")]
    told = dict(zip(names, cells, strict=True))
    assert told["sample verified"] == "yes"
    assert told.get("train verified", "–") == shown


@pytest.mark.parametrize("total", [85_051_899_904, 150_754_820_096, 25_719_201_792])
def test_the_allocator_may_take_every_byte_of_the_limit(monkeypatch, total):
    """PyTorch multiplies the fraction by the card's memory and rounds down; the last segment needs the last byte."""
    fractions = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    for limit in range(2 * 2**20, total, 977 * 2**20):
        with _allocator_limit(limit):
            assert int(fractions[-1] * total) == limit


def test_a_real_run_succeeds_at_the_limit_and_fails_with_one_byte_less(tmp_path):
    small = ("--method", "ppdm", "--res", "8", "--factor", "4", "--width", "8", "--phase", "sample")
    code, out, err = run("memory", *small, "--device", "cpu", "--verify", "--json", "--out", tmp_path)
    assert code == 0, err
    records = [Record.from_json(json.dumps(record)) for record in json.loads(out)]
    (verified,) = [record for record in records if record.metric == VERIFIED]
    ((measured, limit),) = verifiable(records)
    assert (verified.status, verified.value) == ("ok", limit)
    less = verify(measured, limit - 1, Sweep("no.worker", 60))
    assert less.status == "oom"
    assert f"the limit is {limit - 1:,}" in less.reason


def test_verification_without_a_measurement_is_refused(tmp_path):
    said = refused(2, "memory", "--res", "8", "--device", "predict", "--verify", "--out", tmp_path)
    assert "--verify repeats measurements" in said
