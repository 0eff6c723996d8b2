"""``ppdm-bench train``: the sources of its pairs, its messages, and how its options are read."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from tiny_training import manifest

from ppdm.checkpoint import load
from ppdm.data.manifest import read_manifest
from ppdm.data.pairs import TrainingSet
from ppdm.data.volume import Volume, write_volume
from ppdm.training.validation import validation_loss
from ppdm_bench.commands.pair_sources import PhantomSubjects
from ppdm_bench.commands.training_run import memory_in_use
from ppdm_bench.commands.values import positive_number, read_flip_axes, read_interval

pytestmark = pytest.mark.slow

TRAIN = ("train", "--method", "tiny_training:TINY", "--steps", 2, "--device", "cpu", "--out", "run")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def phantoms(folder, monkeypatch):
    """Replace synthetic subjects by up to three smooth ones, which take no time to make."""
    pairs = read_manifest(manifest(folder))
    monkeypatch.setattr(
        "ppdm_bench.commands.pair_sources.cached_set", lambda recipe, subjects, progress: pairs[:subjects]
    )


@pytest.mark.usefixtures("quick_anatomies")
def test_train_with_a_task_needs_no_manifest(folder, monkeypatch):
    monkeypatch.setenv("PPDM_CACHE", str(folder / "cache"))
    code, out, err = run(*TRAIN, "--task", "mri-t1t2", "--subjects", 1, "--size", 8)
    assert (code, err) == (0, "")
    assert out.startswith("2 steps in ")
    assert "on 1 pair," in out
    options = json.loads(Path("run/options.json").read_text())["options"]
    assert options["task"] == {"task": "mri-t1t2", "subjects": 1, "size": 8, "data_seed": 0, "grid": "cubic"}
    assert load("run").spacing == pytest.approx(PhantomSubjects("mri-t1t2", size=8).recipe().grid.spacing)


def test_synthetic_subjects_are_used_for_validation(phantoms):
    code, out, err = run(*TRAIN, "--task", "mri-t1t2", "--subjects", 3, "--validate-every", 2)
    assert (code, err) == (0, "")
    assert "on 2 pairs" in out
    assert "validation loss" in out


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--task", "mri-t1t2", "--size", 8, "--subjects", 2, "--data-seed", 1], "task.data_seed was 0, and is 1 now"),
        (["--task", "mri-t1t2", "--size", 8, "--subjects", 3], "task.subjects was 2, and is 3 now"),
        (["--task", "mri-t1t2", "--size", 8, "--subjects", 2, "--grid", "thick"], 'task.grid was "cubic", and'),
        (["--task", "pet-denoise", "--size", 8, "--subjects", 2], 'task.task was "mri-t1t2", and is "pet-denoise" now'),
        (["--manifest", "pairs.csv"], "task was {"),
    ],
)
def test_resuming_with_other_subjects_is_refused_before_they_are_made(phantoms, monkeypatch, words, difference):
    assert run(*TRAIN, "--task", "mri-t1t2", "--subjects", 2, "--size", 8)[0] == 0
    monkeypatch.setattr("ppdm_bench.commands.pair_sources.cached_set", lambda *_, **__: pytest.fail("they were made"))
    assert difference in refused(1, *TRAIN, *words, "--resume")


def test_validation_without_pairs_in_the_split_val_is_refused(phantoms, folder):
    path = manifest(folder, splits=("train", "train", "test"))
    sentence = refused(1, *TRAIN, "--manifest", path, "--validate-every", 1)
    assert f"{path} has no pairs in the split 'val'" in sentence
    assert "leave --validate-every out" in sentence
    words = ("--task", "mri-t1t2", "--size", 8, "--subjects", 2)
    assert "mri-t1t2 with 2 subjects has no pairs in the split 'val'" in refused(
        1, *TRAIN, *words, "--validate-every", 1
    )
    assert not Path("run").exists()


def test_validation_runs_on_the_split_val_with_the_scaling_of_the_training_pairs(folder):
    path = manifest(folder)
    assert run(*TRAIN, "--manifest", path, "--validate-every", 1)[0] == 0
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    held = [pair for pair in read_manifest(path) if pair.split == "val"]
    best = load("run/best")
    loss = validation_loss(best.method, best.network, TrainingSet(held, scaling=load("run").scaling))
    assert rows[best.steps - 1]["validation_loss"] == min(row["validation_loss"] for row in rows)
    assert rows[best.steps - 1]["validation_loss"] == pytest.approx(loss)
    assert json.loads(Path("run/options.json").read_text())["options"]["validation_pairs"]["count"] == 1


def test_a_manifest_without_training_pairs_is_refused(folder):
    path = manifest(folder, splits=("val", "val", "val"))
    assert f"{path} has no pairs in the split 'train'" in refused(1, *TRAIN, "--manifest", path)


def test_pairs_on_two_grids_need_resample_and_resuming_needs_it_again(folder):
    rng = np.random.default_rng(0)
    for name, shape in (("a.nii", (8, 8, 8)), ("b.nii", (9, 8, 8))):
        volume = Volume.from_array(rng.random(shape))
        write_volume(folder / name, volume.data, volume)
    (folder / "pairs.csv").write_text("subject,split,source,target\ns,train,a.nii,b.nii\n")
    assert "b.nii" in refused(1, *TRAIN, "--manifest", "pairs.csv")
    assert run(*TRAIN, "--manifest", "pairs.csv", "--resample")[0] == 0
    assert "resample was true, and is false now" in refused(1, *TRAIN, "--manifest", "pairs.csv", "--resume")


def test_minutes_limit_the_training_time(folder):
    words = [word for word in TRAIN if word not in ("--steps", 2)]
    path = manifest(folder, splits=("train", "val", "test"))
    code, _, err = run(*words, "--manifest", path, "--minutes", 0.001)
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert load("run").steps == len(rows) >= 1
    assert rows[-1]["seconds"] >= 0.06
    assert all(row["seconds"] < 0.06 for row in rows[:-1])


def test_a_diverging_training_is_reported_and_leaves_no_model(folder):
    path = manifest(folder)
    sentence = refused(1, *TRAIN, "--manifest", path, "--learning-rate", 1e30, "--steps", 9, "--save-every", 1)
    assert "Training stopped at step " in sentence
    assert "last good checkpoint is run/state-00000" in sentence
    assert not Path("run/model.safetensors").exists()


def test_the_memory_in_use_is_the_resident_memory_of_the_process():
    value, unit, what = memory_in_use("cpu").split()
    assert (unit, what) == ("GiB", "resident")
    assert 0.05 < float(value) < 100


@pytest.mark.parametrize(
    ("text", "pace"),
    [("200", (200, None)), ("1", (1, None)), ("5min", (None, 5.0)), ("0.5min", (None, 0.5)), (".5 min", (None, 0.5))],
)
def test_an_interval_is_in_steps_or_minutes(text, pace):
    assert read_interval(text) == pace


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "min", "0min", "5m", "5 steps", "nan min"])
def test_an_invalid_interval_is_refused(text):
    with pytest.raises(ValueError, match="steps such as 200"):
        read_interval(text)


@pytest.mark.parametrize(("text", "axes"), [("none", ""), ("flip", "d"), ("flip:h", "h"), ("flip:wd", "wd")])
def test_flip_axes_are_read(text, axes):
    assert read_flip_axes(text) == axes


@pytest.mark.parametrize("text", ["", "flip:", "flip:x", "flip:hh", "flip:dhwd", "mirror"])
def test_invalid_flip_axes_are_refused(text):
    with pytest.raises(ValueError, match="flip: and axes such as flip:dhw"):
        read_flip_axes(text)


@pytest.mark.parametrize(("text", "value"), [("3", 3.0), ("1e-4", 1e-4), (".5", 0.5), (2.5, 2.5), ("1e+30", 1e30)])
def test_positive_numbers_are_read(text, value):
    assert positive_number("a rate")(text) == value
