"""CT in HU through the commands: training, translation, scores and figures."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import refused, run
from ct_pairs import body, ct, manifest, mr, write
from tiny_training import manifest as mri_manifest

from ppdm.checkpoint import load
from ppdm.data.manifest import read_manifest
from ppdm.data.normalise import HounsfieldWindow
from ppdm.data.scaling import PercentileScaling
from ppdm.evaluation.evaluate import untranslated
from ppdm.evaluation.on_manifest import evaluate
from ppdm.evaluation.subjects import files_of, read_case
from ppdm_bench.records import RecordFile
from ppdm_bench.report.figures import style
from ppdm_bench.report.snapshot import read_snapshot

pytestmark = pytest.mark.slow

TRAIN = ("train", "--method", "tiny_training:TINY", "--steps", 2, "--device", "cpu", "--out", "run")
METRICS = ["mae", "psnr", "ssim", "sharpness", "seam_index_r2", "border_ratio_r2"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, unrendered):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(out="scored"):
    return RecordFile(Path(out) / "records.jsonl").read()


def mae(prediction, target):
    return float(np.abs(prediction - target)[body()[0]].astype(np.float64).mean())


def test_ct_is_trained_translated_and_scored_in_hu(folder):
    path = manifest(folder, "")
    assert run(*TRAIN, "--manifest", path, "--target-intensity", "ct:-1000,2000")[0] == 0
    assert load("run").scaling == PercentileScaling(HounsfieldWindow(-1000, 2000))
    code, _, err = run("translate", "run", "2source.nii.gz", "out.nii.gz")
    assert (code, err) == (0, "")
    made = nib.load("out.nii.gz").get_fdata()
    assert made.min() >= -1000
    assert made.max() <= 2000
    # The manifest does not state the intensity; the run states that the targets are CT.
    code, out, err = run("evaluate", "run", "--manifest", path, "--out", "scored")
    assert (code, err) == (0, "")
    assert "MAE HU ↓" in out
    assert "data range 4024" in out
    values = {record.metric: record for record in records() if record.method != "input"}
    assert list(values) == METRICS
    assert values["mae"].unit == "HU"
    assert values["mae"].value == pytest.approx(mae(made, ct(2)), rel=1e-4)
    assert values["mae"].options["convention"]["preset"] == "ppdm-ct"
    assert evaluate("run", path)["s2"]["mae"] == pytest.approx(values["mae"].value)
    assert list(Path("scored").glob("tiny-*-best.png"))
    snapshot = read_snapshot(Path("scored/snapshot.npz"))
    assert snapshot.unit == "HU"
    assert [view.unit for view in snapshot.views] == ["", "", ""]


def test_a_run_of_ct_to_ct_is_compared_with_the_unchanged_source(folder):
    path = manifest(folder, "ct", source=lambda seed: ct(seed + 5))
    assert run(*TRAIN, "--manifest", path, "--source-intensity", "ct")[0] == 0
    assert load("run").scaling == PercentileScaling(HounsfieldWindow(), source=HounsfieldWindow())
    assert run("evaluate", "run", "--manifest", path, "--out", "scored")[0] == 0
    (known,) = [record for record in records() if record.method == "input" and record.metric == "mae"]
    assert known.value == pytest.approx(mae(ct(7), ct(2)), rel=1e-4)
    assert read_snapshot(Path("scored/snapshot.npz")).of("input")[0].unit == "HU"


def test_predictions_without_a_run_are_scored_in_hu(folder):
    path = manifest(folder, "ct")
    Path("made").mkdir()
    Path("wanted").mkdir()
    for place, name, seed in (("made", "s2", 4), ("wanted", "s2", 2)):
        write(Path(place) / f"{name}.nii.gz", ct(seed))
    assert run("evaluate", "--predictions", "made", "--manifest", path, "--out", "scored")[0] == 0
    (found,) = [record for record in records() if record.method == "made" and record.metric == "mae"]
    assert found.unit == "HU"
    assert found.value == pytest.approx(mae(ct(4), ct(2)), rel=1e-4)
    folders = ("evaluate", "--predictions", "made", "--targets", "wanted", "--out", "again")
    assert run(*folders, "--target-intensity", "ct")[0] == 0
    assert [record.metric for record in records("again")] == METRICS
    assert run(*folders, "--convention", "synthrad2025", "--out", "challenge")[0] == 0
    assert [(record.metric, record.unit) for record in records("challenge")][:1] == [("mae", "HU")]


def test_the_baseline_of_mr_to_ct_is_a_linear_map(folder):
    (files,) = files_of(read_manifest(manifest(folder, "ct"))[2:])
    case = read_case(files)
    assert (case.source_unit, case.unit) == ("", "HU")
    made = untranslated(PercentileScaling(HounsfieldWindow()), case)
    assert made.min() == pytest.approx(-1024)
    assert np.corrcoef(made.flatten(), mr(2).flatten())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--target-intensity", "ct:40,40"), "'--target-intensity': A CT window needs low < high; got low 40.0"),
        (("--target-intensity", "mri"), "An intensity is ct, or ct:LOW,HIGH in HU such as ct:-1000,2000; got 'mri'"),
        (("--source-intensity", "ct:9"), "'--source-intensity': An intensity is ct, or"),
    ],
)
def test_an_invalid_intensity_is_refused(folder, words, sentence):
    assert sentence in refused(2, *TRAIN, "--manifest", manifest(folder), *words)
    assert not Path("run").exists()


def test_an_intensity_of_ct_is_refused_for_synthetic_subjects_and_pet(folder):
    words = ("--target-intensity", "ct")
    assert "synthetic volumes are PET or MRI; give --target-intensity with --manifest" in refused(
        2, *TRAIN, "--task", "mri-t1t2", *words
    )
    pet = mri_manifest(folder, (1, 1, 1))
    assert "subject 's0' has an suv_factor, which makes it PET, and an intensity of CT" in refused(
        1, *TRAIN, "--manifest", pet, *words
    )
    scored = ("evaluate", "--predictions", "made", "--targets", "wanted", "--suv-factor", 1, *words)
    assert "--suv-factor is for PET, and --target-intensity for CT" in refused(2, *scored)
    assert not Path("run").exists()


def test_the_data_range_of_ct_cannot_be_changed(folder):
    path = manifest(folder)
    assert run(*TRAIN, "--manifest", path)[0] == 0
    words = ("evaluate", "run", "--manifest", path, "--out", "scored", "--data-range", 100)
    assert "fixed data range of 4024 HU; leave --data-range out" in refused(1, *words)
    assert not Path("scored").exists()


def test_a_run_records_its_ct_window_and_cannot_resume_with_another_one(folder):
    path = manifest(folder, "")
    assert run(*TRAIN, "--manifest", path, "--target-intensity", "ct")[0] == 0
    assert json.loads(Path("run/options.json").read_text())["options"]["target_intensity"] == "ct:-1024,3000"
    difference = 'target_intensity was "ct:-1024,3000", and is "ct:-1000,2000" now'
    assert difference in refused(1, *TRAIN, "--manifest", path, "--target-intensity", "ct:-1000,2000", "--resume")


def test_a_montage_of_mr_and_ct_shows_ct_in_the_windows_of_soft_tissue_and_of_bone(folder, monkeypatch):
    drawn, original = [], style.save
    monkeypatch.setattr(style, "save", lambda figure, stem: drawn.append(figure) or original(figure, stem))
    code, _, err = run("data", "montage", manifest(folder), "--out", "montage")
    assert (code, err) == (0, "")
    assert Path("montage.png").exists()
    windows = [image.get_clim() for axes in drawn[0].axes for image in axes.images if image.get_array().size > 100]
    mr_window = tuple(np.percentile(mr(0), (0.5, 99.5)))
    for window in (mr_window, (-160, 240), (-500, 1300)):
        assert sum(found == pytest.approx(window, rel=1e-3) for found in windows) == 3, window  # once in each plane
    assert len(windows) == 9
