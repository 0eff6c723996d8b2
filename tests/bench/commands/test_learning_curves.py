"""``quality --curve`` scores intermediate models of a training; ``--paces`` converts minutes to steps."""

import csv
import json
from dataclasses import replace

import pytest
from commands import refused, run
from tiny_training import pair

from ppdm.data.volume import Volume, write_volume
from ppdm_bench.ablation import step_time
from ppdm_bench.evaluation import evaluation_output, pictures, trials
from ppdm_bench.records import RecordFile
from ppdm_bench.report.library import read_library

pytestmark = pytest.mark.slow

SPLITS = ("train", "train", "val", "val", "test", "test")
QUALITY = ("quality", "--manifest", "pairs.csv", "--method", "ppdm", "--width", 8, "--device", "cpu", "--out", "out")
CURVE = (*QUALITY, "--steps", 6, "--curve", 3, "--evaluations", "1,2")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Return the current folder, a new one with pairs; figures are not rendered."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path, SPLITS)
    for module in (pictures, evaluation_output):
        monkeypatch.setattr(module, "save", lambda figure, stem: [stem])
    return tmp_path


def write_pairs(folder, splits):
    rows = ["subject,split,source,target"]
    for number, split in enumerate(splits):
        for name, data in zip("ab", pair(number, (16, 16, 16)), strict=True):
            volume = Volume.from_array(100 * (data + 1))
            write_volume(folder / f"{number}{name}.nii.gz", volume.data, volume)
        rows.append(f"s{number},{split},{number}a.nii.gz,{number}b.nii.gz")
    (folder / "pairs.csv").write_text("\n".join(rows))


def records(place):
    return RecordFile(place / "out" / "pairs" / "records.jsonl").read()


def on_curve(found):
    return [record for record in found if "curve" in record.options and record.metric == "psnr"]


def curves(place):
    with (place / "out" / "pairs" / "curves.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_intermediate_models_are_scored_on_val_and_appear_only_in_the_curves(place):
    code, _, err = run(*CURVE)
    assert code == 0, err
    points = on_curve(records(place))
    assert {record.subject for record in points} == {"s2", "s3"}
    trained = [record for record in points if record.method == "ppdm"]
    assert len(trained) == 2 * 3 * 2  # subjects, shares, evaluations
    shares = {(r.options["training"]["steps"], round(r.options["curve"]["share"], 6)) for r in trained}
    assert shares == {(2, round(1 / 3, 6)), (4, round(2 / 3, 6)), (6, 1.0)}
    assert len({record.options["weights"] for record in trained}) == 3
    rows = curves(place)
    assert [(row["evaluations"], row["train_steps"], row["subjects"]) for row in rows] == [
        ("1", "6", "2"),
        ("2", "6", "2"),
    ]
    assert all(row["psnr_0.333"] and row["psnr_0.667"] and row["psnr_1.000"] and row["late_gain_db"] for row in rows)
    assert "s2" not in (place / "out" / "pairs" / "quality.md").read_text()
    library = read_library([place / "out"])
    assert {subject for point in library.points for subject in point.subject_means("psnr")} == {"s4", "s5"}


def test_a_repeated_command_adds_no_records(place, monkeypatch):
    assert run(*CURVE)[0] == 0
    before = records(place)
    monkeypatch.setattr("ppdm.training.on_manifest.train_arrays", lambda *_, **__: pytest.fail("it was trained again"))
    code, _, err = run(*CURVE)
    assert code == 0, err
    assert records(place) == before
    assert "earlier commands" not in err


def test_missing_intermediate_models_are_reported(place):
    assert run(*QUALITY, "--steps", 6, "--evaluations", "1")[0] == 0
    code, _, err = run(*QUALITY, "--steps", 6, "--evaluations", "1", "--curve", 3)
    assert code == 0, err
    assert "the models after 2, 4 steps were not kept, because the training began without --curve" in err
    assert {r.options["curve"]["share"] for r in on_curve(records(place)) if r.method == "ppdm"} == {1.0}


def test_minutes_are_converted_to_steps_by_the_step_times_of_a_file(place, monkeypatch):
    monkeypatch.setattr(step_time, "_time_step", lambda *_: 0.75)
    paced = (*QUALITY, "--minutes", 0.05, "--paces", "paces.jsonl", "--evaluations", "1")
    code, _, err = run(*paced, "--curve", 2)
    assert code == 0, err
    found = records(place)
    assert {r.value for r in found if r.metric == "train_steps"} == {4}  # 3 s at 0.75 s per step
    trained = [record for record in found if record.subject and record.method == "ppdm"]
    assert {json.dumps(record.options["budgets"]) for record in trained} == {'{"time": 3.0}'}
    assert {(row["train_steps"], row["train_seconds"]) for row in curves(place)} == {("4", "3")}


def test_minutes_that_give_fewer_steps_than_validations_are_refused(place, monkeypatch):
    monkeypatch.setattr(step_time, "_time_step", lambda *_: 0.75)
    sentence = refused(2, *QUALITY, "--minutes", 0.05, "--paces", "paces.jsonl", "--curve", 5)
    assert "has 4 steps, too few for 5 validations (--curve); increase --minutes" in sentence
    assert not (place / "out").exists()


def test_step_times_of_another_machine_are_used(place, monkeypatch):
    monkeypatch.setattr(step_time, "_time_step", lambda *_: 1.0)
    paced = (*QUALITY, "--minutes", 0.05, "--evaluations", "1", "--paces")
    assert run(*paced, "here.jsonl")[0] == 0
    there = [
        replace(r, env={**r.env, "cpu": "another", "threads": 99}) for r in RecordFile(place / "here.jsonl").read()
    ]
    assert {record.command for record in there} == {"quality"}  # not ablate
    RecordFile(place / "there.jsonl").append(there)
    monkeypatch.setattr(step_time, "_time_step", lambda *_: pytest.fail("it was measured again"))
    asked = []
    monkeypatch.setattr(trials, "train_run", lambda *given, **_: asked.append(given[2].steps) or "")
    monkeypatch.setattr("ppdm_bench.commands.quality._evaluate", lambda *_: None)
    assert run(*paced, "there.jsonl")[0] == 0
    assert asked == [3]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--curve", 1, "--steps", 6), "expected a whole number of at least 2"),
        (("--curve", 8, "--steps", 6), "6 steps: too few for 8 validations (--curve)"),
        (("--curve", 3, "--minutes", 1), "--curve needs the number of steps"),
        (("--paces", "paces.jsonl", "--steps", 6), "--paces turns minutes into steps; give --minutes"),
    ],
)
def test_invalid_options_are_refused(words, sentence, place):
    assert sentence in refused(2, *QUALITY, *words)
    assert not (place / "out").exists()


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_missing_split_is_refused_before_the_training(missing, place):
    write_pairs(place, ["train" if split == missing else split for split in SPLITS])
    sentence = refused(1, *CURVE)
    counts = {name: SPLITS.count(name) + (2 if name == "train" else 0) for name in ("train", "val", "test")}
    there = ", ".join(f"{number} in {name}" for name, number in (counts | {missing: 0}).items())
    assert f"has no pair in the split '{missing}', but {there}" in sentence
    assert not (place / "out").exists()
