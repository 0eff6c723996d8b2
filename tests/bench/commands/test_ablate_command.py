"""``ppdm-bench ablate``: the cells, the plan from their step times, and the whole command."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from commands import refused, run
from tiny_training import TINY, pair

from ppdm import Method
from ppdm.data.manifest import read_manifest
from ppdm.data.volume import Volume, write_volume
from ppdm.kernel import Gaussian, Linear
from ppdm.loss import Loss
from ppdm.representation import Haar, Identity, Puzzle
from ppdm.training.schedule import Schedule
from ppdm_baselines import METHODS
from ppdm_bench.ablation import step_time
from ppdm_bench.ablation.cells import plan_cells
from ppdm_bench.ablation.memory import record_peaks
from ppdm_bench.ablation.plan import Ablation, plan_trainings
from ppdm_bench.ablation.step_time import StepTimes
from ppdm_bench.commands import pair_sources
from ppdm_bench.commands.pair_sources import PhantomSubjects
from ppdm_bench.configuration import Configuration
from ppdm_bench.evaluation import trials
from ppdm_bench.evaluation.comparison import RunSampling
from ppdm_bench.memory import command as memory_command
from ppdm_bench.predictor.peak import Peak
from ppdm_bench.predictor.target import Target
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.variation import VariationError

SMALL = ("ablate", "--task", "mri-t1t2", "--subjects", 5, "--size", 16, "--width", 8, "--steps", 2)
SMALL = (*SMALL, "--evaluations", "1", "--device", "cpu", "--set", "network.multipliers=[1,2]", "--out", "out")
PAIR = (*SMALL, "--configurations", "none", "--vary", "kernel=i2sb")


def by_label(grids, base=TINY, variations=()):
    return {cell.label: cell for cell in plan_cells(base, grids, variations)}


def test_one_varies_one_axis_at_a_time():
    found = by_label(["one"])
    names = "default, r=1, r=4, r=8, r=1x2x2, loss=off, loss=cell, bridge=linear, bridge=i2sb, bridge=noise"
    assert ", ".join(found) == names
    assert found["default"].method == TINY
    assert found["r=1x2x2"].method == replace(TINY, representation=Puzzle((1, 2, 2)))
    assert found["loss=off"].method == replace(TINY, loss=Loss(TINY.loss.p, 0.0, "off"))
    assert found["loss=cell"].method == replace(TINY, loss=replace(TINY.loss, mode="cell"))
    assert found["bridge=linear"].method == replace(TINY, kernel=Linear())
    assert not any(cell.timed or cell.reason for cell in found.values())


def test_full_combines_all_levels_and_skips_cells_without_block_borders():
    found = by_label(["full"])
    assert len(found) == 5 * 3 * 4
    left_out = [cell for cell in found.values() if cell.reason]
    assert len(left_out) == 4
    assert all(
        "r=1" in cell.label and "loss=cell" in cell.label and "would equal loss=all" in cell.reason for cell in left_out
    )
    assert found["r=4 loss=off bridge=noise"].method == replace(
        TINY, representation=Puzzle(4), loss=Loss(TINY.loss.p, 0.0, "off"), kernel=Gaussian("cosine"), target="x0"
    )


def test_space_combines_every_representation_with_and_without_a_bridge():
    found = by_label(["space"])
    assert len(found) == 4 * 2
    assert all(cell.timed for cell in found.values())
    assert found["haar"].method == replace(TINY, representation=Haar())
    noise = found["r=1 bridge=noise"].method
    assert (noise.kernel, noise.target, noise.loss) == (Gaussian("cosine"), "x0", TINY.loss)


def test_the_same_method_in_several_requests_is_one_cell():
    found = by_label(["one", "space"], variations=["kernel=i2sb,linear", "kernel.gamma=1", "representation=identity"])
    assert len(found) == 10 + 4 + 1
    assert found["default"].timed
    assert found["r=4"].timed
    assert not found["r=8"].timed
    assert found["kernel.gamma=1"].levels == ()


def test_one_varies_around_a_base_with_other_levels():
    base = replace(TINY, representation=Identity(), kernel=Gaussian("linear"), target="noise", loss=Loss())
    found = by_label(["one"], base)
    assert found["default"].levels == ("r=1", "off", "noise")
    assert "r=2" in found
    assert "bridge=brownian" in found
    assert found["loss=cell"].reason
    assert found["loss=all"].method.loss == Loss(2, 1.0, "all")


def test_the_description_of_a_cell_states_its_levels_and_settings():
    found = by_label(["full"])
    described = found["r=1x2x2 bridge=noise"].describe("b")
    assert described["levels"] == {"space": "r=1x2x2", "loss": "all", "bridge": "noise"}
    assert (described["factor"], described["kernel"], described["target"]) == ("1x2x2", "gaussian", "x0")
    assert described["default"] is False


def test_an_invalid_variation_is_refused():
    with pytest.raises(VariationError, match=r"has no kernel\.beta"):
        plan_cells(TINY, [], ["kernel.beta=1"])


def ablation(**changes):
    plan = Ablation(
        base=TINY,
        cells=plan_cells(TINY, ["one", "space"]),
        sets=[PhantomSubjects("mri-t1t2", 5, 16), PhantomSubjects("pet-joint", 5, 16)],
        schedule=Schedule(steps=100, batch_size=2),
        seeds=[0, 1],
        minutes=None,
        sampling=RunSampling("cpu", (1,)),
        split="test",
    )
    return replace(plan, **changes)


def paced(plan, **seconds):
    """Return a step time for each cell: 0.1 s, or the value given for its representation; None if it does not fit."""
    found = {}
    for cell in plan.present:
        value = seconds.get(cell.levels[0].replace("=", ""), 0.1)
        outcome = {"value": value} if value else {"status": "oom", "reason": "too large"}
        found[cell.label] = Record(metric="step_seconds", unit="s", kind="measured", **outcome)
    return found


def test_equal_time_is_that_of_the_default_and_equal_trainings_are_shared():
    plan = ablation()
    found = plan_trainings(plan, paced(plan, r1=1.0, r4=0.05))
    mine = [work for work in found if work.trial.subjects.task == "mri-t1t2" and work.trial.schedule.seed == 0]
    assert len(found) == 4 * len(mine)
    budgets = {(work.cell.label, work.trial.schedule.steps): dict(work.budgets) for work in mine}
    assert budgets["default", 100] == {"steps": 100, "time": pytest.approx(10)}
    assert budgets["r=1", 100] == {"steps": 100}
    assert budgets["r=1", 10] == {"time": pytest.approx(10)}
    assert budgets["r=4 bridge=noise", 200] == {"time": pytest.approx(10)}
    assert [steps for label, steps in budgets if label == "r=8"] == [100]
    assert len({work.trial.folder(trials.Path("out")) for work in found}) == len(found)
    assert all(work.seconds > work.trial.schedule.steps * 0.05 for work in found)


def test_block_grids_that_are_too_large_for_the_volumes_are_not_measured():
    assert ablation().grids == [2, 4, (1, 2, 2)]
    assert ablation().too_large == [8]
    assert not ablation(sets=[PhantomSubjects("mri-t1t2", 5, 32)]).too_large


def test_minutes_set_the_equal_time_of_every_cell():
    plan = ablation(minutes=0.5)
    found = plan_trainings(plan, paced(plan, r8=0.2))
    steps = {work.trial.schedule.steps for work in found if work.cell.label == "r=8" and "time" in work.budgets}
    assert steps == {150}


def test_equal_time_allows_every_stage_of_a_method_one_step():
    latent = METHODS["latent"]
    plan = ablation(base=latent, cells=plan_cells(latent, []), minutes=1e-6)
    assert {work.trial.schedule.steps for work in plan_trainings(plan, paced(plan)) if "time" in work.budgets} == {2}


def test_a_cell_that_does_not_fit_into_memory_is_not_trained():
    plan = ablation()
    found = plan_trainings(plan, paced(plan, r1=None))
    assert not [work for work in found if work.cell.levels[0] == "r=1"]


@pytest.fixture
def small(tmp_path, monkeypatch, unrendered):
    """Use small pairs instead of phantoms, a fixed peak instead of predictions, and no rendering; return the folder."""
    rows = ["subject,split,source,target"]
    for number, split in enumerate(("train", "train", "val", "test", "test")):
        for name, data in zip("ab", pair(number, (16, 16, 16)), strict=True):
            volume = Volume.from_array(100 * (data + 1))
            write_volume(tmp_path / f"{number}{name}.nii.gz", volume.data, volume)
        rows.append(f"s{number},{split},{number}a.nii.gz,{number}b.nii.gz")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    pairs = read_manifest(tmp_path / "pairs.csv")
    monkeypatch.setattr(pair_sources, "cached_set", lambda *_, **__: pairs)
    monkeypatch.setattr(memory_command, "predict_peak", lambda *_: Peak(2**20, peak_reserved=2**21))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_command_writes_all_records_and_a_repetition_trains_nothing(small, monkeypatch):
    code, out, err = run(*PAIR, "--memory-res", 24, "--json")
    assert code == 0, err
    assert "quick profile" in err
    assert "2 configurations on mri-t1t2: 2 trainings, 0 of them done" in err
    file = RecordFile(small / "out" / "records.jsonl")
    first = file.read()
    assert {record.command for record in first} == {"ablate"}
    assert {record.variant for record in first} == {"default", "kernel=i2sb"}
    metrics = {record.metric for record in first}
    wanted = "psnr ssim sharpness seam_index_r2 border_ratio_r2 peak_allocated peak_reserved step_seconds train_seconds"
    assert {*wanted.split(), "train_steps", "volume_seconds"} <= metrics
    assert {r.shape for r in first if r.metric == "peak_allocated"} == {(16, 16, 16), (24, 24, 24)}
    assert {r.kind for r in first if r.metric == "peak_allocated"} == {"predicted"}
    assert len([r for r in first if r.metric == "psnr"]) == 2 * 2
    assert len(json.loads(out)) == len(first)
    text = (small / "out" / "ablation.md").read_text()
    assert "kernel=i2sb" in text
    assert (small / "out" / "ablation.csv").read_text().startswith("cell,default,space,loss,bridge,representation")

    done = []
    original = trials.train_run
    monkeypatch.setattr(trials, "train_run", lambda *given, **more: done.append(original(*given, **more)) or done[-1])
    code, _, err = run(*PAIR, "--memory-res", 24)
    assert code == 0, err
    assert all("is complete" in words for words in done)
    assert len(done) == 2
    again = file.read()
    once = ("step_seconds", "train_seconds", "train_steps")
    assert [r for r in again if r.metric in once] == [r for r in first if r.metric in once]
    assert "2 of them done" in err


JOBS = ("--launcher", "submitit", "--launcher-option", "cluster=debug")


@pytest.fixture
def same_pace(monkeypatch):
    """Make every step take the same time in every measurement, so that equal time is the same number of steps."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(step_time, "_time_step", lambda *_: 0.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its logs open
def test_jobs_give_the_records_of_a_local_run_and_can_resume(small, same_pace, monkeypatch):
    timed = ("--minutes", "0.02")  # 2 steps, both for equal time and for equal steps
    assert run(*PAIR, *timed)[0] == 0
    code, _, err = run(*PAIR, *timed, "--out", "spread", *JOBS)
    assert code == 0, err
    assert "2 trainings, 0 of them done" in err
    assert "min of all machines left" in err
    clocks = ("train_seconds", "volume_seconds")

    def said(folder):
        records = RecordFile(small / folder / "records.jsonl").read()
        return sorted(
            (r.metric, r.variant, r.subject, r.steps or 0, r.kind, r.config_id, r.metric in clocks or r.value)
            for r in records
        )

    assert said("spread") == said("out")
    (kept,) = (small / "spread" / "jobs").glob("*/records.jsonl")
    assert {r.metric for r in RecordFile(kept).read()} == {"step_seconds"}

    # On another machine, the same command resumes with the step times and numbers of steps of the first machine.
    monkeypatch.setattr(step_time, "environment", lambda: {"cpu": "another"})
    monkeypatch.setattr(step_time, "_time_step", lambda *_: pytest.fail("the pace was measured again"))
    monkeypatch.setattr("ppdm.training.on_manifest.train_arrays", lambda *_, **__: pytest.fail("it was trained again"))
    code, _, err = run(*PAIR, *timed, "--out", "spread", *JOBS)
    assert (code, "2 of them done" in err) == (0, True), err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_job_is_reported_and_leaves_no_failed_record(small, same_pace, monkeypatch):
    original = trials.train_run

    def lost(method, *given, **more):
        if method.kernel.__class__.__name__ == "I2SB":
            raise OSError("the node is gone")
        return original(method, *given, **more)

    monkeypatch.setattr(trials, "train_run", lost)
    code, _, err = run(*PAIR, *JOBS)
    assert code == 1
    assert err.count("mri-t1t2, ppdm kernel=i2sb 2 steps: the node is gone") == 1
    records = RecordFile(small / "out" / "records.jsonl").read()
    assert {r.variant for r in records if r.metric == "psnr"} == {"default"}
    assert {r.status for r in records} == {"ok"}
    monkeypatch.setattr(trials, "train_run", original)
    assert run(*PAIR, *JOBS)[0] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_command_is_refused_if_the_step_times_cannot_be_measured(small, same_pace, monkeypatch):
    def lost(*_):
        raise OSError("the node is gone")

    monkeypatch.setattr(step_time, "_time_step", lost)
    sentence = refused(1, *PAIR, *JOBS).splitlines()[-1]
    assert sentence.endswith(
        "the step times of the cells were not measured: the node is gone; the same command tries again"
    )


def test_step_times_must_come_from_one_machine(tmp_path, same_pace):
    wanted = plan_cells(TINY, [], ["kernel=i2sb"])
    times = StepTimes(wanted, "b", (8, 8, 8), 1)
    records = [*times.measure("cpu", RecordFile(tmp_path / "r")).values()]
    assert times.of_one_machine("auto", records) == {one.config_id: one for one in records}
    assert not times.of_one_machine("cuda", records)
    elsewhere = replace(records[1], env=records[1].env | {"cpu": "another"})
    assert not times.of_one_machine("auto", [records[0], elsewhere])
    more = replace(times, cells=[*wanted, *plan_cells(TINY, [], ["kernel=linear"])[1:]])
    assert not more.of_one_machine("auto", records)


def test_a_failed_training_is_in_the_data_with_its_reason_but_not_in_the_table_and_the_figure(small):
    words = (*SMALL, "--configurations", "none", "--vary", "optimisation.learning_rate=1e30")
    code, out, err = run(*words)
    assert code == 1
    assert "mri-t1t2, ppdm optimisation.learning_rate=1e30" in err
    assert "optimisation.learning_rate=1e30: error: " in out
    records = RecordFile(small / "out" / "records.jsonl").read()
    (failed,) = (r for r in records if r.status == "error")
    assert "Training stopped at step" in failed.reason
    assert [r.variant for r in records if r.metric == "train_steps"] == ["default"]
    with (small / "out" / "ablation.csv").open() as stream:
        rows = {row["cell"]: row for row in csv.DictReader(stream)}
    row = rows["optimisation.learning_rate=1e30"]
    assert (row["status"], row["reason"], row["n"], row["psnr"]) == ("error", failed.reason, "0", "")
    assert (rows["default"]["status"], rows["default"]["n"]) == ("ok", "2")
    table = (small / "out" / "ablation.md").read_text()
    assert "\n| default |" in table
    assert "\n| optimisation.learning_rate=1e30 |" not in table
    assert f"\noptimisation.learning_rate=1e30: error: {failed.reason}\n" in table
    assert not (small / "out" / "ablation.png").exists()  # it would show cells beside the default


@pytest.mark.slow
def test_the_predicted_memory_of_a_cell_is_that_of_its_method_and_records_the_method(tmp_path):
    made = record_peaks(plan_cells(TINY, []), "b", [(8, 8, 8)], 1, RecordFile(tmp_path / "r"), print)
    found = [record for records in made for record in records if record.kind == "predicted"]
    method = Configuration("tiny_training:TINY", (8, 8, 8))
    plan = memory_command.MemoryPlan([method], ["train", "sample"], "predict", Target.of_this_machine())
    of_method = [record for records in memory_command.carry_out(plan) for record in records]
    assert [(r.phase, r.metric, r.value) for r in found] == [(r.phase, r.metric, r.value) for r in of_method]
    peak = next(record for record in found if record.metric == "peak_allocated")
    assert peak.options["cell"]["default"]
    assert Method.from_dict(peak.options["resolved"]) == TINY


def test_step_times_are_measured_once_per_machine(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(
        step_time, "_time_step", lambda training, *_: steps.append(training.method) or float(len(steps))
    )
    wanted = [*plan_cells(TINY, []), *plan_cells(TINY, [], ["optimisation.learning_rate=1e-5", "kernel=i2sb"])[1:]]
    file = RecordFile(tmp_path / "records.jsonl")
    times = StepTimes(wanted, "b", (8, 8, 8), 1)
    found = times.by_label(times.measure("cpu", file))
    assert len(steps) == 2 * (step_time.ROUNDS + 1)  # the learning rate does not affect the time of a step
    assert [*found] == ["default", "optimisation.learning_rate=1e-5", "kernel=i2sb"]
    assert found["default"].value == found["optimisation.learning_rate=1e-5"].value
    assert len(found["default"].samples) == step_time.ROUNDS
    again = times.by_label(times.measure("cpu", file))
    assert len(steps) == 2 * (step_time.ROUNDS + 1)
    assert {label: record.value for label, record in again.items()} == {
        label: record.value for label, record in found.items()
    }


def test_a_step_that_runs_out_of_memory_is_a_row(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step_time, "_time_step", full)
    (found,) = StepTimes(plan_cells(TINY, []), "b", (8, 8, 8), 1).measure("cpu", RecordFile(tmp_path / "r")).values()
    assert (found.status, found.value) == ("oom", None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--task", "ct"), "'ct' is none of"),
        (("--method", "pdpm"), "did you mean"),
        (("--configurations", "two"), "expected one, full, space or none"),
        (("--vary", "kernel.beta=1"), "a method has no kernel.beta"),
        (("--set", "kernel.gamma=1,2"), "--set takes one value"),
        (("--profile", "long"), "'long' is not one of 'auto', 'quick', 'full'"),
        (("--memory-res", "0"), "at least 1"),
        (("--seeds", "x"), "whole number"),
        (("--launcher-option", "timeout_min=9"), "give it with --launcher submitit"),
    ],
)
def test_invalid_options_are_refused_before_any_file_is_written(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(2, "ablate", *words, "--device", "cpu", "--out", "out")
    assert not (tmp_path / "out").exists()
