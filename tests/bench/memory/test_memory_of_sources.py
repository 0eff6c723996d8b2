"""Methods with several sources: predicted memory, measured times and plans."""

import json
from dataclasses import replace

import pytest
from commands import refused, run
from tiny_methods import tiny

from ppdm_baselines import METHODS
from ppdm_bench.configuration import Configuration, MethodError
from ppdm_bench.isolation import sweep
from ppdm_bench.isolation.runner import ChildAnswer
from ppdm_bench.memory.workload import workload
from ppdm_bench.planning import outlook
from ppdm_bench.planning.outlook import CasePrediction
from ppdm_bench.predictor.peak import measure_peak, predict_peak
from ppdm_bench.records import Record
from ppdm_bench.timing import worker
from ppdm_bench.timing.arithmetic import step_flops, volume_flops
from ppdm_bench.timing.clock import Protocol

pytestmark = pytest.mark.slow

SHAPE = (8, 16, 8)
THREE = {name: tiny(method).with_sources(["t1n", "t1c", "t2w"]) for name, method in METHODS.items()}
NAMED = {"ppdm, named start": replace(THREE["ppdm"], bridge_from="t2w")}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["ppdm", "slice25d", "patch", "latent_bridge", "gan3d", *NAMED])
def test_the_predicted_cpu_peak_for_three_sources_equals_the_measured_peak(name):
    """The cases cover each kind of window, methods with a second network, and a bridge from a named source."""
    method = (THREE | NAMED)[name]
    for phase in method.phases:
        work = workload(method, phase, SHAPE, 2, "cpu")
        predicted = predict_peak(work.build, work.step, work.iterations, "cpu")
        measured = measure_peak(work.build, work.step, work.iterations, device="cpu")
        assert predicted.peak_allocated == measured.peak_allocated, phase
        assert predicted.breakdown == measured.breakdown, phase


@pytest.mark.parametrize("phase", ["train", "sample"])
def test_more_sources_need_more_memory_and_naming_one_source_changes_nothing(phase):
    def peak(method):
        work = workload(method, phase, (32, 32, 32), 1, "cuda")
        return predict_peak(work.build, work.step, work.iterations).peak_allocated

    one = tiny(METHODS["ppdm"])
    assert peak(one.with_sources(["t1"])) == peak(one)
    assert peak(one) < peak(one.with_sources(["a", "b"])) < peak(one.with_sources(["a", "b", "c"]))


def test_the_number_of_sources_is_stored_in_a_configuration_only_if_above_one():
    one, three = (Configuration("ppdm", SHAPE, factor=2, sources=sources) for sources in (1, 3))
    assert "sources" not in one.to_dict()
    assert Configuration.from_dict(json.loads(json.dumps(three.to_dict()))) == three
    assert one.resolve() == METHODS["ppdm"]
    assert three.resolve().sources == ("source1", "source2", "source3")
    assert (one.variant, three.variant) == ("r=2", "r=2 sources=3")


def test_a_method_keeps_its_named_sources_unless_a_number_of_sources_is_given(monkeypatch):
    own = replace(THREE["ppdm"], bridge_from="t2w")
    point = Configuration("ppdm", SHAPE, point=json.dumps(own.to_dict()))
    assert point.resolve().sources == ("t1n", "t1c", "t2w")
    with pytest.raises(MethodError, match="one of source1, source2, got 't2w'"):
        replace(point, sources=2).resolve()


def test_more_sources_need_more_operations():
    one, three = tiny(METHODS["ppdm"]), THREE["ppdm"]
    assert step_flops(one, SHAPE, 1) < step_flops(three, SHAPE, 1)
    assert volume_flops(one, SHAPE, 1, [1])[1] < volume_flops(three, SHAPE, 1, [1])[1]


WORDS = ("--res", 16, "--method", "ppdm", "--factor", 2, "--width", 8, "--sources", 3, "--json")


@pytest.mark.usefixtures("unrendered")
def test_memory_accepts_a_number_of_sources():
    code, out, err = run("memory", *WORDS, "--device", "cpu", "--phase", "train", "--out", "memory")
    assert code == 0, err
    peaks = {r["kind"]: r["value"] for r in json.loads(out) if r["metric"] == "peak_allocated"}
    assert peaks["predicted"] == peaks["measured"]
    assert {r["variant"] for r in json.loads(out)} == {"r=2 sources=3"}


@pytest.mark.usefixtures("unrendered")
def test_speed_accepts_a_number_of_sources(monkeypatch):
    """The worker runs in this process with a minimal warm-up; `test_speed` tests a real run."""

    def answered(module, request, timeout):
        return ChildAnswer(**json.loads(json.dumps(worker._answer(request))))

    monkeypatch.setattr(sweep, "run_child", answered)
    monkeypatch.setattr("ppdm_bench.timing.clock._WARM_UP", Protocol(2, 0.0))
    monkeypatch.setattr("ppdm_bench.timing.clock.QUICK", Protocol(3, 0.0))
    code, out, err = run("speed", *WORDS, "--device", "cpu", "--quick", "--evaluations", 1, "--out", "speed")
    assert code == 0, err
    records = [Record(**row) for row in json.loads(out)]
    assert {r.variant for r in records} == {"r=2 sources=3"}
    method = Configuration("ppdm", (16, 16, 16), factor=2, width=8, sources=3).resolve()
    counted = [r.value for r in records if r.metric == "step_flops"]
    assert counted == [step_flops(method, (16, 16, 16), 1)]
    assert {r.metric for r in records if r.samples} >= {"step_seconds", "volume_seconds"}


def test_plan_accepts_a_number_of_sources(monkeypatch):
    """The predictions are made up: each volume of a batch needs 1 GiB."""
    asked = []

    def made_up(case, target):
        asked.append(case.configuration)
        need = case.configuration.batch_size << 30
        return CasePrediction(need <= target.capacity, need)

    monkeypatch.setattr(outlook, "predict", made_up)
    code, out, err = run("plan", *WORDS, "--budget", "8GB", "--phase", "train")
    assert code == 0, err
    assert {r["variant"] for r in json.loads(out)} == {"r=2 sources=3"}
    assert {configuration.sources for configuration in asked} == {3}


@pytest.mark.parametrize("command", ["memory", "speed", "plan"])
@pytest.mark.parametrize("number", ["0", "-1", "three"])
def test_an_invalid_number_of_sources_is_refused_before_a_file_is_written(command, number, tmp_path):
    said = refused(2, command, "--res", 16, "--sources", number)
    assert f"a whole number of at least 1, got '{number}'" in said
    assert not [*tmp_path.iterdir()]
