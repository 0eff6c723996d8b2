"""``ppdm-bench quality``: methods and their variations, trained and evaluated with the same budget."""

import csv
import json

import pytest
from commands import refused, run
from tiny_training import pair

import ppdm_bench.evaluation.jobs  # noqa: F401  import it before a test replaces carry_out_trials
from ppdm.data.manifest import read_manifest
from ppdm.data.volume import Volume, write_volume
from ppdm_bench.commands import pair_sources
from ppdm_bench.commands.pair_sources import PhantomSubjects
from ppdm_bench.commands.quality import QUICK
from ppdm_bench.evaluation import trials
from ppdm_bench.evaluation.trials import Trial
from ppdm_bench.records import RecordFile

pytestmark = pytest.mark.slow

SMALL = ("quality", "--task", "mri-t1t2", "--width", "8", "--steps", "2", "--evaluations", "1", "--device", "cpu")
MORE = ("--method", "ppdm", "--vary", "kernel.gamma=0.25", "--out", "out")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rows = ["subject,split,source,target"]
    for number, split in enumerate(("train", "train", "val", "test", "test")):
        for name, data in zip("ab", pair(number, (16, 16, 16)), strict=True):
            volume = Volume.from_array(100 * (data + 1))
            write_volume(folder / f"{number}{name}.nii.gz", volume.data, volume)
        rows.append(f"s{number},{split},{number}a.nii.gz,{number}b.nii.gz")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return read_manifest(folder / "pairs.csv")


@pytest.fixture(autouse=True)
def stand_ins(pairs, tmp_path, monkeypatch, unrendered):
    """Use pairs instead of phantoms, which take seconds each, without rendering; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pair_sources, "cached_set", lambda *_, **__: pairs)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its logs open
def test_trainings_in_jobs_give_the_scores_of_local_ones(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    jobs = ("--launcher", "submitit", "--launcher-option", "cluster=debug")
    assert run(*SMALL, *MORE)[0] == 0
    more = ("--vary", "optimisation.learning_rate=1e30")
    code, _, err = run(*SMALL, *MORE, *more, "--out", "spread", *jobs)
    assert code == 1
    assert err.count("ppdm optimisation.learning_rate=1e30: Training stopped at step") == 1
    here, there = (RecordFile(tmp_path / name / "mri-t1t2" / "records.jsonl").read() for name in ("out", "spread"))
    scores = [
        [(one.variant, one.subject, one.metric, one.value) for one in each if one.subject] for each in (here, there)
    ]
    assert scores[0] == scores[1]
    monkeypatch.setattr("ppdm.training.on_manifest.train_arrays", lambda *_, **__: pytest.fail("it was trained again"))
    assert run(*SMALL, *MORE, "--out", "spread", *jobs)[0] == 0


def test_every_variation_is_trained_evaluated_and_recorded(tmp_path):
    code, out, err = run(*SMALL, *MORE)
    assert code == 0, err
    folder = tmp_path / "out" / "mri-t1t2"
    assert {path.name for path in (folder / "runs" / "ppdm").iterdir()} == {"default", "kernel.gamma=0.25"}
    records = RecordFile(folder / "records.jsonl").read()
    assert {record.command for record in records} == {"quality"}
    scored = {(record.method, record.variant, record.subject) for record in records if record.metric == "psnr"}
    assert len(scored) == 3 * 2  # the input and two variants on two test subjects
    for metric, value in (("train_steps", 2), ("train_seconds", None)):
        costs = [record for record in records if record.metric == metric]
        assert len(costs) == 2
        assert all(record.value == value if value else record.value > 0 for record in costs)
        assert {record.phase for record in costs} == {"train"}
    for name in ("quality.md", "quality.csv"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "subjects.png").exists()
    assert "kernel.gamma=0.25" in out
    assert "written: " in out


def test_a_repeated_command_trains_nothing_and_a_new_seed_only_its_runs(monkeypatch):
    code, _, err = run(*SMALL, *MORE)
    assert code == 0, err
    trained = []
    original = trials.train_run

    def counting(method, *arguments, **options):
        result = original(method, *arguments, **options)
        trained.append("is complete" not in result)
        return result

    monkeypatch.setattr(trials, "train_run", counting)
    assert run(*SMALL, *MORE)[0] == 0
    assert trained == [False, False]
    assert run(*SMALL, *MORE, "--seeds", "0,1")[0] == 0
    assert trained[2:] == [False, True, False, True]


def names_in(folder):
    with (folder / "quality.csv").open() as stream:
        return list(dict.fromkeys(row["name"] for row in csv.DictReader(stream)))


def test_row_names_state_differences_and_rows_stay_when_others_are_added(tmp_path):
    folder = tmp_path / "out" / "mri-t1t2"
    assert run(*SMALL, "--method", "ppdm", "--seeds", "0,1", "--out", "out")[0] == 0
    assert names_in(folder) == ["input", "ppdm r=2", "ppdm r=2 s1"]
    words = ("--method", "ppdm", "--method", "regression", "--set", "representation=haar", "--out", "out")
    code, text, err = run(*SMALL, *words, "--reference", "ppdm r=2")
    assert code == 0, err
    assert "also show 2 rows of earlier commands in this folder" in err
    assert "Difference from ppdm r=2, subject by subject" in text
    new = ["ppdm representation=haar", "regression representation=haar"]
    assert names_in(folder) == ["input", "ppdm r=2", "ppdm r=2 s1", *new]


def test_training_costs_are_recorded_once(tmp_path):
    for _ in range(2):
        assert run(*SMALL, "--method", "ppdm", "--out", "out")[0] == 0
    records = RecordFile(tmp_path / "out" / "mri-t1t2" / "records.jsonl").read()
    assert len([record for record in records if record.metric == "train_seconds"]) == 1


def test_a_failed_training_does_not_affect_the_others(tmp_path):
    words = (*SMALL, "--method", "ppdm", "--vary", "optimisation.learning_rate=1e30", "--out", "out")
    code, out, err = run(*words)
    assert code == 1
    assert "mri-t1t2, ppdm optimisation.learning_rate=1e30: " in err
    assert "ppdm r=2" in out


def test_the_own_number_of_evaluations_is_scored_once_if_it_is_requested_twice(tmp_path):
    code, _, err = run(*SMALL, "--method", "ppdm", "--evaluations", "4,own,2,1", "--out", "out")
    assert code == 0, err
    records = RecordFile(tmp_path / "out" / "mri-t1t2" / "records.jsonl").read()
    assert [record.steps for record in records if record.metric == "psnr" and record.subject == "s3"] == [None, 4, 2, 1]


def test_the_split_val_scores_the_validation_subjects(tmp_path):
    assert run(*SMALL, "--method", "ppdm", "--split", "val", "--out", "out")[0] == 0
    records = RecordFile(tmp_path / "out" / "mri-t1t2" / "records.jsonl").read()
    assert {record.subject for record in records if record.subject} == {"s2"}


def test_json_prints_the_records():
    code, out, err = run(*SMALL, "--method", "ppdm", "--out", "out", "--json")
    assert code == 0, err
    assert {row["method"] for row in json.loads(out)} == {"input", "ppdm"}


def test_quick_trains_two_methods_for_at_most_six_minutes(monkeypatch):
    asked = []
    monkeypatch.setattr(trials, "train_run", lambda *given, **_: asked.append(given) or "")
    monkeypatch.setattr("ppdm_bench.commands.quality._evaluate", lambda *_: None)
    code, _, err = run("quality", "--quick", "--device", "cpu", "--out", "out")
    assert code == 0
    assert "quick profile" in err
    assert [given[0].name for given in asked] == ["ppdm", "ddpm3d"]
    assert "own" in QUICK["evaluations"]  # otherwise a method of many steps would be scored with few
    minutes = sum(given[2].minutes for given in asked)
    assert 0 < minutes <= 6


def test_by_default_every_method_is_trained_on_every_task(monkeypatch):
    from ppdm.simulation.tasks import PAPER_TASKS
    from ppdm_baselines import METHODS

    asked: list[Trial] = []
    monkeypatch.setattr(trials, "carry_out_trials", lambda plan, *_: iter(asked.extend(plan) or []))
    assert run("quality", "--device", "cpu", "--grid", "oblong", "--out", "out")[0] == 0
    assert {(trial.subjects.task, trial.method.name) for trial in asked} == {
        (t, m) for t in PAPER_TASKS for m in METHODS
    }
    assert {trial.subjects.grid for trial in asked} == {"oblong"}
    assert {trial.schedule.steps for trial in asked} == {2000}


def test_every_trial_has_a_folder_of_its_own():
    made = trials.plan_trials(
        [PhantomSubjects("mri-t1t2"), PhantomSubjects("pet-joint")],
        ["ppdm"],
        ["kernel=i2sb,gaussian(schedule=flow)"],
        trials.Schedule(steps=1),
        [0, 1],
    )
    assert len(made) == 2 * 3 * 2
    assert len({trial.folder(trials.Path("out")) for trial in made}) == len(made)
    assert all(" " not in str(trial.folder(trials.Path("out"))) for trial in made)


def test_variations_start_from_the_fields_that_set_changes():
    starts = ["kernel.gamma=1", "network.multipliers=[1,2]", "kernel.gamma=0.25"]
    made = trials.plan_trials(
        [PhantomSubjects("mri-t1t2")], ["ppdm"], ["kernel=i2sb"], trials.Schedule(steps=1), [0], 8, starts
    )
    start = "network.multipliers=[1,2]+kernel.gamma=0.25"
    assert [trial.variation for trial in made] == [start, f"{start}+kernel=i2sb"]
    assert {(trial.method.network.width, trial.method.network.multipliers) for trial in made} == {(8, (1, 2))}
    assert made[0].method.kernel.gamma == 0.25


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--task", "ct"), "'ct' is none of"),
        (("--method", "pdpm"), "did you mean ppdm?"),
        (("--vary", "kernel.beta=1"), "a method has no kernel.beta"),
        (("--set", "kernel.gamma=1,2"), "--set takes one value"),
        (("--steps", "2", "--minutes", "1"), "exactly one of steps and minutes"),
        (("--evaluations", "0"), "'--evaluations': expected a number of network evaluations such as 4, or own"),
        (("--grid", "round"), "'round' is not one of 'cubic', 'oblong', 'thick'"),
        (("--split", "dev"), "is not one of 'train', 'val', 'test'"),
    ],
)
def test_invalid_options_are_refused_before_any_file_is_written(words, sentence, tmp_path):
    assert sentence in refused(2, "quality", *words, "--out", "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_reference_is_refused():
    code, _, err = run(*SMALL, "--method", "ppdm", "--reference", "nobody", "--out", "out")
    assert code != 0
    assert "no 'nobody' to take differences from" in err
