"""``ppdm-bench data``: synthetic sets, manifests of folders, checks of pairs, and figures."""

import csv
import json
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from broken_pairs import BROKEN, SOUND, make_broken_pairs
from commands import refused, run
from matplotlib.image import imread

from ppdm.data.manifest import read_manifest
from ppdm.data.volume import read_volume
from ppdm.simulation.mri import flair_protocol

pytestmark = pytest.mark.slow

# Simulating a torso takes half the time of a head.
MAKE = ("data", "make", "mri-t1t2", "--anatomy", "torso", "--shape", "8x6x4", "--spacing", "56", "--jobs", "1")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPDM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of two subjects, made by the command: its folder and the standard output."""
    folder = tmp_path_factory.mktemp("made") / "t1t2"
    code, out, err = run(*MAKE, "--subjects", "2", "--out", folder)
    assert code == 0, err
    return folder, out


def test_make_writes_pairs_and_reports_their_manifest(made):
    folder, out = made
    assert "2 subjects (1 train, 0 val, 1 test) of 8×6×4 voxels of 56×56×56 mm" in out
    assert f"written: {folder / 'pairs.csv'}, 2 pairs" in out
    pairs = read_manifest(folder / "pairs.csv")
    assert [pair.subject for pair in pairs] == ["train-000", "test-000"]
    assert read_volume(pairs[0].source).spacing == pytest.approx((56, 56, 56))


def test_a_set_from_make_passes_the_check(made):
    code, out, _ = run("data", "check", made[0] / "pairs.csv")
    assert code == 0
    assert "2 of 2 pairs sound; 0 faults" in out


@pytest.mark.parametrize("grid", ["cubic", "oblong", "thick"])
def test_make_passes_grid_dose_anatomy_and_seed_to_the_recipe(grid, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("ppdm.simulation.generation.make_set", lambda recipe, *_, **__: asked.append(recipe) or [])
    monkeypatch.setattr("ppdm.data.manifest.write_manifest", lambda *_: None)
    words = ("--size", "48", "--grid", grid, "--dose", "4,20", "--anatomy", "torso", "--seed", "3")
    assert run("data", "make", "pet-denoise", *words, "--out", tmp_path / "x")[0] == 0
    (recipe,) = asked
    assert max(recipe.grid.shape) == 48
    assert (len(set(recipe.grid.shape)) == 1) == (grid == "cubic")
    assert (len(set(np.round(recipe.grid.spacing, 6))) == 1) == (grid != "thick")
    assert (recipe.doses, recipe.anatomy, recipe.seed) == ((4, 20), "torso", 3)


def test_field_strength_selects_the_mri_protocol(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("ppdm.simulation.generation.make_set", lambda recipe, *_, **__: asked.append(recipe) or [])
    monkeypatch.setattr("ppdm.data.manifest.write_manifest", lambda *_: None)
    assert run("data", "make", "mri-t1t2", "--field-strength", "3", "--out", tmp_path / "x")[0] == 0
    assert asked[0].protocol.field_strength == 3.0
    assert run("data", "make", "mri-flair", "--field-strength", "3", "--out", tmp_path / "x")[0] == 0
    assert asked[1].protocol == flair_protocol(3.0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("ct-mr",), "'ct-mr' is not one of 'pet-denoise', 'pet-joint', 'mri-t1t2'"),
        (("mri-t1t2", "--dose", "20"), "mri-t1t2 has no dose"),
        (("pet-joint", "--dose", "0.5"), "expected a dose factor"),
        (("pet-joint", "--field-strength", "3"), "has no field strength"),
        (("mri-t1t2", "--field-strength", "7"), "known at 1.5 and 3 T, got 7.0 T"),
        (("mri-t1t2", "--shape", "8x8x8"), "--shape with --spacing"),
        (("mri-t1t2", "--shape", "8x8x8", "--spacing", "2", "--size", "8"), "--shape with --spacing"),
        (("mri-t1t2", "--spacing", "2,2,4"), "write 2x2x4"),
        (("mri-t1t2", "--grid", "round"), "'round' is not one of 'cubic', 'oblong', 'thick'"),
        (("mri-t1t2", "--anatomy", "foot"), "'foot'"),
        (("mri-t1t2", "--size", "2"), "at least 4"),
    ],
)
def test_make_refuses_invalid_options(words, sentence, tmp_path):
    assert sentence in refused(2, "data", "make", *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_make_refuses_a_folder_with_a_different_set(made):
    before = {path: path.stat().st_mtime_ns for path in made[0].rglob("*")}
    assert "recipe.seed is 0 there, and 1 is asked for" in refused(
        1, *MAKE, "--subjects", "2", "--seed", "1", "--out", made[0]
    )
    assert before == {path: path.stat().st_mtime_ns for path in made[0].rglob("*")}


def test_list_names_tasks_layouts_and_the_cache(tmp_path):
    code, out, _ = run("data", "list")
    assert code == 0
    for word in ("pet-denoise", "pet-joint", "mri-t1t2", "bids", "ixi", str(tmp_path / "cache"), "nothing yet"):
        assert word in out


# --- check


def test_check_reports_all_broken_pairs_in_one_pass(tmp_path):
    code, out, err = run("data", "check", make_broken_pairs(tmp_path))
    assert (code, err) == (1, "")
    assert f"{len(SOUND)} of {len(SOUND) + len(BROKEN)} pairs sound" in out
    for name, (role, words) in BROKEN.items():
        block = re.search(rf"^FAULT  {name} .*?(?=^\S)", out, re.MULTILINE | re.DOTALL)
        assert block, name
        assert f"{name}-{role}.nii.gz" in block[0]
        assert words in block[0]


def test_check_prints_its_results_as_json(tmp_path):
    code, out, _ = run("data", "check", make_broken_pairs(tmp_path), "--json")
    rows = {row["subject"]: row for row in json.loads(out)}
    assert code == 1
    assert set(rows) == {*SOUND, *BROKEN}
    assert all(bool(rows[name]["faults"]) == (name in BROKEN) for name in rows)
    assert rows["sound-a"]["shape"] == [12, 14, 10]


def test_check_reports_faults_of_the_manifest_and_the_sound_rows(tmp_path):
    manifest = make_broken_pairs(tmp_path)
    with manifest.open("a", newline="") as stream:
        csv.writer(stream).writerow(["ghost", "train", "nowhere.nii.gz", "sound-a-target.nii.gz", ""])
    code, out, _ = run("data", "check", manifest)
    assert code == 1
    assert "fault: line 16: source nowhere.nii.gz is not a file" in out
    assert "ok     sound-a" in out


def test_check_refuses_a_missing_manifest(tmp_path):
    assert "is not a file" in refused(1, "data", "check", tmp_path / "none.csv")


def _shifted(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, shift in (("a", 0.0), ("b", 3.0)):
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(rng.random((9, 8, 7)).astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    (tmp_path / "pairs.csv").write_text("subject,split,source,target\ns,train,a.nii.gz,b.nii.gz\n")
    return tmp_path / "pairs.csv"


def test_resample_turns_a_fault_of_the_grid_into_a_remark(tmp_path):
    manifest = _shifted(tmp_path)
    assert run("data", "check", manifest)[0] == 1
    code, out, _ = run("data", "check", manifest, "--resample")
    assert code == 0
    assert "remark" in out


# --- manifest


def test_manifest_lists_the_complete_subjects_of_a_bids_folder(tmp_path):
    for subject in ("sub-01", "sub-02", "sub-03"):
        for suffix in ("T1w", "T2w"):
            path = tmp_path / "set" / subject / "anat" / f"{subject}_{suffix}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "set" / "sub-03" / "anat" / "sub-03_T2w.nii.gz").unlink()
    code, out, err = run("data", "manifest", "set", "--layout", "bids", "--out", "pairs.csv")
    assert code == 0, err
    assert "2 pairs of 2 subjects" in out
    assert "sub-03" in err
    pairs = read_manifest("pairs.csv")
    assert [pair.subject for pair in pairs] == ["sub-01", "sub-02"]
    run("data", "manifest", "set", "--layout", "bids", "--source", "T2w", "--target", "T1w", "--out", "swapped.csv")
    assert read_manifest("swapped.csv")[0].source.name == "sub-01_T2w.nii.gz"


def test_manifest_accepts_a_user_pattern(tmp_path):
    for name in ("p1-a", "p1-b", "p2-a", "p2-b"):
        (tmp_path / f"{name}.nii.gz").touch()
    words = ("--layout", "bids", "--pattern", r"(?P<subject>p\d)-(?P<kind>[ab])\.nii\.gz", "--source", "a")
    code, out, err = run("data", "manifest", ".", *words, "--target", "b", "--out", "pairs.csv")
    assert code == 0, err
    assert "2 pairs of 2 subjects" in out


def test_manifest_refuses_a_folder_without_matching_files_and_an_unknown_layout(tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    assert "scan.nii.gz" in refused(1, "data", "manifest", ".", "--layout", "bids", "--out", "pairs.csv")
    assert not Path("pairs.csv").exists()
    assert "bids" in refused(1, "data", "manifest", ".", "--layout", "dicom", "--out", "pairs.csv")


# --- figures


@pytest.mark.parametrize("command", ["montage", "sheet"])
def test_figures_are_written_and_not_blank(made, command, tmp_path):
    code, out, err = run("data", command, made[0] / "pairs.csv", "--out", tmp_path / "new" / "picture")
    assert code == 0, err
    assert f"written: {tmp_path / 'new' / 'picture.png'}, {tmp_path / 'new' / 'picture.pdf'}" in out
    picture = imread(tmp_path / "new" / "picture.png")
    assert picture.std() > 0.05


def test_montage_shows_the_chosen_subject(made, tmp_path):
    pictures = []
    for subject in ("train-000", "test-000"):
        run("data", "montage", made[0] / "pairs.csv", "--subject", subject, "--out", tmp_path / subject)
        pictures.append((tmp_path / f"{subject}.png").read_bytes())
    assert pictures[0] != pictures[1]
    sentence = refused(2, "data", "montage", made[0] / "pairs.csv", "--subject", "nobody", "--out", tmp_path / "x")
    assert "has no subject 'nobody'; it has train-000, test-000\n" in sentence


def test_montage_resamples_on_request(tmp_path):
    manifest = _shifted(tmp_path)
    assert "share one grid" in refused(1, "data", "montage", manifest, "--out", tmp_path / "x")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = run("data", "montage", manifest, "--resample", "--out", tmp_path / "x")
    assert code == 0, err
    assert re.search(r"^ppdm-bench: warning: .*b.nii.gz: 11.1% .* lie outside of its field of view", err)


def test_sheet_refuses_an_unknown_plane(made, tmp_path):
    assert "'oblique'" in refused(
        2, "data", "sheet", made[0] / "pairs.csv", "--plane", "oblique", "--out", tmp_path / "x"
    )
