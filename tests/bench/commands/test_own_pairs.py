"""A user's pairs in ``quality`` and ``ablate``, which are handled like synthetic subjects."""

import os
import shutil

import pytest
from commands import refused, run
from tiny_training import pair

import ppdm_bench.evaluation.jobs  # noqa: F401  import it before a test replaces carry_out_trials
from ppdm.data.volume import Volume, read_volume, write_volume
from ppdm_bench.commands import pair_sources
from ppdm_bench.commands.pair_sources import ManifestSubjects
from ppdm_bench.evaluation import trials
from ppdm_bench.memory import command as memory_command
from ppdm_bench.predictor.peak import Peak
from ppdm_bench.records import RecordFile

SPLITS = ("train", "train", "val", "test", "test")
QUALITY = ("quality", "--method", "ppdm", "--width", 8, "--steps", 2, "--evaluations", "1", "--device", "cpu")
ABLATE = ("ablate", "--configurations", "none", "--vary", "kernel=i2sb", "--width", 8, "--steps", 2)
ABLATE = (*ABLATE, "--evaluations", "1", "--device", "cpu", "--set", "network.multipliers=[1,2]")


def pairs_in(folder, splits=SPLITS, factors=None):
    """Create a folder with pairs of one size; return their manifest."""
    folder.mkdir()
    rows = ["subject,split,source,target,suv_factor"]
    for number, (split, factor) in enumerate(zip(splits, factors or [""] * len(splits), strict=True)):
        write_pair(folder, number, (16, 16, 16))
        rows.append(f"s{number},{split},{number}a.nii.gz,{number}b.nii.gz,{factor}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder / "pairs.csv"


def write_pair(folder, number, shape, seed=None, spacings=(2.0, 2.0)):
    volumes = pair(number if seed is None else seed, shape)
    for name, data, spacing in zip("ab", volumes, spacings, strict=True):
        volume = Volume.from_array(100 * (data + 1), (1.0, 1.5, spacing))
        write_volume(folder / f"{number}{name}.nii.gz", volume.data, volume)


@pytest.fixture
def place(tmp_path, monkeypatch, unrendered):
    """Return the current folder, a new one; the memory prediction is a fixed peak, and figures are not rendered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory_command, "predict_peak", lambda *_: Peak(2**20, peak_reserved=2**21))
    return tmp_path


def never(*_, **__):
    pytest.fail("it was called")


@pytest.mark.slow
def test_pairs_are_recorded_by_manifest_name_and_changed_pairs_do_not_resume(place, monkeypatch):
    table = pairs_in(place / "mine")
    code, out, err = run(*QUALITY, "--manifest", table, "--vary", "kernel.gamma=0.25", "--out", "out")
    assert code == 0, err
    folder = place / "out" / "pairs"
    assert {path.name for path in (folder / "runs" / "ppdm").iterdir()} == {"default", "kernel.gamma=0.25"}
    records = RecordFile(folder / "records.jsonl").read()
    assert {record.task for record in records} == {"pairs"}
    assert {record.subject for record in records if record.subject} == {"s3", "s4"}
    digest = ManifestSubjects(table).digest
    expected = {"task": None, "resample": False, "manifest": "pairs", "digest": digest, "split": "test"}
    assert all(record.options["data"] == expected for record in records)
    assert "Quality on pairs, test, 2 subjects" in out

    # With the same data in another folder, the same command trains nothing.
    shutil.copytree(place / "mine", place / "elsewhere")
    monkeypatch.setattr("ppdm.training.on_manifest.train_arrays", never)
    monkeypatch.setattr(pair_sources, "check_pairs", never)  # they were checked before
    assert run(*QUALITY, "--manifest", place / "elsewhere" / "pairs.csv", "--out", "out")[0] == 0

    # A run does not resume with a changed scan.
    write_pair(place / "mine", 1, (16, 16, 16), seed=9)
    records = RecordFile(folder / "records.jsonl").read()
    said = refused(1, *QUALITY, "--manifest", table, "--out", "out")
    assert "was started with other options: digest was" in said
    assert RecordFile(folder / "records.jsonl").read() == records


@pytest.mark.slow
def test_ablate_accepts_pairs_of_several_sizes_and_resumes(place, monkeypatch):
    table = pairs_in(place / "mine")
    write_pair(place / "mine", 0, (16, 24, 16))
    write_pair(place / "mine", 3, (16, 16, 20))
    words = (*ABLATE, "--manifest", table, "--out", "out")
    code, out, err = run(*words)
    assert code == 0, err
    assert "pairs.csv have several sizes, so the batch size is 1" in err
    assert "2 configurations on pairs: 2 trainings" in err
    records = RecordFile(place / "out" / "records.jsonl").read()
    scored = [record for record in records if record.subject]
    assert {(record.task, record.options["data"]["manifest"]) for record in scored} == {("pairs", "pairs")}
    assert {record.shape for record in records if record.metric == "peak_allocated"} == {(16, 16, 20), (16, 24, 16)}
    assert {record.shape for record in records if record.metric == "step_seconds"} == {(16, 24, 16)}
    assert "pairs, equal steps: 2 steps" in out
    assert out.count(" 0.000977 ") == 4  # two peaks of two cells, for the largest volume that is scored
    assert "Ablation of ppdm, several sizes, 2 subjects per task" in out
    monkeypatch.setattr("ppdm.training.on_manifest.train_arrays", never)
    assert run(*words)[0] == 0
    (place / "mine" / "pairs.csv").write_text(table.read_text().replace("s2,val", "s2,train"))
    said = run(*words)
    assert (said[0], "digest was" in said[2]) == (1, True)
    assert [r for r in RecordFile(place / "out" / "records.jsonl").read() if r.status != "ok"] == []


def test_manifests_and_tasks_can_be_combined(place, monkeypatch):
    asked = []
    monkeypatch.setattr(trials, "carry_out_trials", lambda plan, *_: iter(asked.extend(plan) or []))
    table = pairs_in(place / "mine")
    shutil.copy(table, place / "mine" / "others.csv")
    words = ("--manifest", table, "--manifest", place / "mine" / "others.csv", "--manifest", table)
    assert run(*QUALITY, *words, "--out", "out")[0] == 0
    assert [trial.subjects.task for trial in asked] == ["pairs", "others"]
    asked.clear()
    assert run(*QUALITY, *words, "--task", "mri-t1t2", "--size", 32, "--out", "out")[0] == 0
    assert [trial.subjects.task for trial in asked] == ["mri-t1t2", "pairs", "others"]
    assert len({trial.folder(place) for trial in asked}) == 3


def test_the_digest_changes_only_with_what_affects_the_results(tmp_path):
    table = pairs_in(tmp_path / "mine")
    digest = ManifestSubjects(table).digest

    def changed(text):
        table.write_text(text)
        return ManifestSubjects(table).digest != digest

    rows = table.read_text().splitlines()
    assert not changed("\n".join([f"{rows[0]},note", *(f"{row},seen" for row in rows[1:])]))
    assert not changed(table.read_text().replace("0a.nii.gz", str(tmp_path / "mine" / "0a.nii.gz")))
    os.utime(tmp_path / "mine" / "0a.nii.gz", (0, 0))
    assert not changed("\n".join(rows))
    assert changed("\n".join([rows[0], rows[2], rows[1], *rows[3:]]))
    assert changed("\n".join(rows).replace("s2,val", "s2,train"))
    assert changed("\n".join(rows).replace("s1,", "t1,"))
    assert changed("\n".join(f"{row}1" if number else row for number, row in enumerate(rows)))  # an SUV factor
    table.write_text("\n".join(rows))
    write_pair(tmp_path / "mine", 4, (16, 16, 16), seed=9)
    assert ManifestSubjects(table).digest != digest


def without_test(folder):
    return pairs_in(folder, ("train", "train", "val"))


def without_training(folder):
    return pairs_in(folder, ("test", "val"))


def without_a_file(folder):
    table = pairs_in(folder)
    (folder / "3b.nii.gz").unlink()
    return table


def on_two_grids(folder):
    table = pairs_in(folder)
    write_pair(folder, 4, (16, 16, 16), spacings=(2.0, 3.0))
    return table


def of_two_kinds(folder):
    return pairs_in(folder, factors=(1, 1, "", 1, 1))


def of_two_sizes(folder):
    table = pairs_in(folder)
    write_pair(folder, 1, (16, 16, 20))
    return table


def of_a_flat_volume(folder):
    table = pairs_in(folder)
    write_pair(folder, 3, (8, 16, 16))
    return table


def with_a_broken_file(folder):
    table = pairs_in(folder)
    file = folder / "3b.nii.gz"
    file.write_bytes(file.read_bytes()[:-100])
    return table


def with_an_empty_scan(folder):
    table = pairs_in(folder)
    scan = read_volume(folder / "1b.nii.gz")
    write_volume(folder / "1b.nii.gz", 0 * scan.data, scan)
    return table


def with_an_empty_mask(folder):
    table = pairs_in(folder)
    scan = read_volume(folder / "3b.nii.gz")
    write_volume(folder / "mask.nii.gz", 0 * scan.data, scan)
    heading, *rows = table.read_text().splitlines()
    table.write_text(
        "\n".join([f"{heading},mask", *(f"{row},{'mask.nii.gz' * (number > 2)}" for number, row in enumerate(rows))])
    )
    return table


def with_a_copy_in_another_split(folder):
    table = pairs_in(folder)
    for name in "ab":
        shutil.copy(folder / f"0{name}.nii.gz", folder / f"4{name}.nii.gz")
    return table


@pytest.mark.parametrize("command", [QUALITY, ABLATE], ids=["quality", "ablate"])
@pytest.mark.parametrize(
    ("made", "words", "sentence"),
    [
        (
            without_test,
            (),
            "has no pair in the split 'test', but 2 in train, 1 in val, 0 in test; choose another --split",
        ),
        (without_training, (), "has no pair in the split 'train', but 0 in train, 1 in val, 1 in test; mark some rows"),
        (without_a_file, (), "line 5: target 3b.nii.gz is not a file"),
        (on_two_grids, (), "resample one of them onto the grid of the other first (--resample does so"),
        (of_two_kinds, (), "of 5 pairs, 1 without suv_factor"),
        (with_a_broken_file, (), "3b.nii.gz is truncated: its gzip data end too early; copy or download it again."),
        (with_an_empty_scan, (), "1b.nii.gz: every voxel is 0, expected an image"),
        (with_an_empty_mask, (), "mask.nii.gz: no voxel of the mask lies above 0"),
        (
            with_a_copy_in_another_split,
            (),
            "which is in train, and this one in test; keep it in one split. `ppdm-bench data check ",
        ),
        (
            of_a_flat_volume,
            ("--batch-size", 1),
            "has a volume of (8, 16, 16) voxels in the split 'test'; SSIM needs 11 or more",
        ),
        (of_two_sizes, ("--batch-size", 2), "a batch of 2 needs one shape; crop them alike, or give --batch-size 1"),
    ],
)
def test_unusable_pairs_are_refused_before_any_file_is_written(command, made, words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = made(tmp_path / "mine")
    assert sentence in refused(1, *command, "--manifest", table, *words, "--out", "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [QUALITY, ABLATE], ids=["quality", "ablate"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--manifest", "a.csv", "--size", 32), "--size is for synthetic subjects; give it with --task"),
        (("--manifest", "a.csv", "--subjects", 9), "--subjects is for synthetic subjects"),
        (("--manifest", "a.csv", "--grid", "thick"), "--grid is for synthetic subjects"),
        (("--task", "mri-t1t2", "--resample"), "give --resample with --manifest"),
        (("--manifest", "a.csv", "--manifest", "b/a.csv"), "a.csv and b/a.csv are both called 'a' in results"),
        (("--manifest", "mri-t1t2.csv"), "would be called 'mri-t1t2', which is that of a synthetic task"),
        (("--manifest", "mri-t1t2.csv", "--task", "mri-t1t2"), "are both called 'mri-t1t2' in results"),
        (("--seeds", ""), "expected values separated by commas, got ''"),
        (("--evaluations", ""), "expected values separated by commas, got ''"),
        (("--manifest", "...csv"), "would be called '..', which begins with a dot"),
    ],
)
def test_invalid_and_incompatible_options_are_refused(command, words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(2, *command, *words, "--out", "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reference", "known"),
    [
        ("input", True),
        ("ppdm r=2 kernel.gamma=0.25", True),
        ("ppdm r=2 kernel.gamma=0.25 s1", True),
        ("out/pairs/runs/ppdm/default", True),
        ("ppdm", False),
        ("ppdm r=2 mean of 3", False),
    ],
)
def test_an_unknown_reference_is_refused_before_the_training(place, monkeypatch, reference, known):
    monkeypatch.setattr(trials, "carry_out_trials", lambda *_: iter(()))
    words = ("--vary", "kernel.gamma=0.25", "--seeds", "0,1", "--reference", reference, "--out", "out")
    words = (*QUALITY, "--manifest", pairs_in(place / "mine"), *words)
    if known:
        assert run(*words)[0] == 0
    else:
        there = "input, ppdm r=2, ppdm r=2 s1, ppdm r=2 kernel.gamma=0.25, ppdm r=2 kernel.gamma=0.25 s1"
        assert f"there is no {reference!r} to take differences from; there are {there}" in refused(2, *words)
    assert (place / "out").exists() == known


def test_resample_accepts_targets_on_another_grid(place, monkeypatch):
    asked = []
    monkeypatch.setattr(trials, "carry_out_trials", lambda plan, *_: iter(asked.extend(plan) or []))
    assert run(*QUALITY, "--manifest", on_two_grids(place / "mine"), "--resample", "--out", "out")[0] == 0
    assert asked[0].subjects.resample
