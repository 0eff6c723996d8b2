"""Several sources in the commands train, evaluate, translate, data and quality."""

import json
import math

import pytest
from commands import refused, run
from three_sources import NAMES, scan, sources, three_sources

pytestmark = pytest.mark.slow

TINY = ("--width", 8, "--set", "network.multipliers=[1,2]", "--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    words = ("--manifest", three_sources(folder), "--steps", 2, "--bridge-from", "t1c", "--validate-every", 1)
    code, _, err = run("train", *words, *TINY, "--out", folder / "run")
    assert code == 0, err
    return folder


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch, unrendered):
    monkeypatch.chdir(tmp_path)


def given(folder, names=NAMES, subject="s4"):
    return [word for name in names for word in ("--source", f"{name}={folder / f'{subject}_{name}.nii.gz'}")]


def test_train_records_the_sources_of_the_manifest_and_the_start_of_the_bridge(trained):
    method = json.loads((trained / "run" / "model.json").read_text())["method"]
    assert (method["sources"], method["bridge_from"]) == ([*NAMES], "t1c")


def test_a_bridge_start_that_is_not_a_source_is_refused(trained, tmp_path):
    words = ("train", "--manifest", trained / "pairs.csv", "--steps", 1, "--out", "run", *TINY)
    assert "from one of t1n, t1c, t2w, got 't1'" in refused(2, *words, "--bridge-from", "t1")
    assert "from one of source, got 't1'" in refused(
        2, *words[:1], "--task", "mri-t1t2", *words[3:], "--bridge-from", "t1"
    )
    assert not [*tmp_path.iterdir()]


def test_translate_accepts_a_file_or_a_pattern_for_each_source(trained, tmp_path):
    words = ("--device", "cpu", "--evaluations", 1)
    code, out, err = run("translate", trained / "run", "made.nii.gz", *given(trained), *words)
    assert code == 0, err
    assert out.startswith("made.nii.gz")
    patterns = [word for name in NAMES for word in ("--source", f"{name}={trained}/*_{name}.nii.gz")]
    code, out, err = run("translate", trained / "run", "all", *patterns, *words)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [f"s{k}_t1n.nii.gz" for k in range(5)]


def test_translate_refuses_missing_repeated_and_unknown_sources(trained, tmp_path):
    start, rest = ("translate", trained / "run"), ("--device", "cpu")
    assert "t2w is missing; give --source t1n=FILE" in refused(1, *start, "x.nii", *given(trained, NAMES[:2]), *rest)
    assert "--source gives t1n twice" in refused(2, *start, "x.nii", *given(trained, (*NAMES, "t1n")), *rest)
    assert "t3 is unknown" in refused(1, *start, "x.nii", *given(trained), "--source", "t3=x.nii", *rest)
    assert "such as t1=T1.nii.gz, got 't1n'" in refused(2, *start, "x.nii", "--source", "t1n", *rest)
    assert "got one input" in refused(1, *start, trained / "s4_t1n.nii.gz", "x.nii", *rest)
    assert "expected OUTPUT after the run" in refused(2, *start, "a.nii", "x.nii", *given(trained), *rest)
    assert "expected INPUT and OUTPUT" in refused(2, *start, "x.nii", *rest)
    scan(tmp_path / "coarse.nii.gz", sources(4, (6, 6, 6))["t2w"], (4.0, 4.0, 4.0))
    words = (*start, "x.nii", *given(trained, NAMES[:2]), "--source", "t2w=coarse.nii.gz", *rest)
    assert "s4_t1n.nii.gz" in refused(1, *words)
    assert not (tmp_path / "x.nii").exists()
    assert run(*words, "--resample")[0] == 0


def test_evaluate_scores_and_draws_several_sources(trained, tmp_path):
    words = ("--manifest", trained / "pairs.csv", "--device", "cpu", "--out", "scores")
    code, out, err = run("evaluate", trained / "run", *words, "--json")
    assert code == 0, err
    scores = {r["method"]: r["value"] for r in json.loads(out) if r["metric"] == "psnr"}
    assert scores.keys() == {"input", "ppdm"}
    assert all(map(math.isfinite, scores.values()))
    assert [*(tmp_path / "scores").glob("**/*.png")]


def test_evaluate_refuses_pairs_of_other_sources(trained, tmp_path):
    (tmp_path / "two").mkdir()
    path = three_sources(tmp_path / "two", NAMES[:2])
    sentence = refused(1, "evaluate", trained / "run", "--manifest", path, "--device", "cpu", "--out", "scores")
    assert "run was trained on 3 sources (t1n, t1c, t2w), but s4 has 2 sources (t1n, t1c)" in sentence
    assert not (tmp_path / "scores").exists()


def test_data_commands_show_every_source(trained, tmp_path):
    code, out, _ = run("data", "check", trained / "pairs.csv")
    assert code == 0
    assert all(name in out for name in (*NAMES, "5 of 5 pairs sound"))
    rows = json.loads(run("data", "check", trained / "pairs.csv", "--json")[1])
    assert [*rows[0]["source_ranges"]] == [*NAMES]
    for command in ("montage", "sheet"):
        code, _, err = run("data", command, trained / "pairs.csv", "--out", command)
        assert code == 0, err
        assert (tmp_path / f"{command}.png").exists()


@pytest.mark.usefixtures("quick_anatomies")
def test_a_task_with_two_sources_is_made_trained_scored_and_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("PPDM_CACHE", str(tmp_path / "cache"))
    code, out, err = run(
        *("data", "make", "mri-flair", "--anatomy", "torso", "--shape", "12x12x12", "--spacing", "40"),
        *("--jobs", 1, "--subjects", 3, "--out", "set"),
    )
    assert code == 0, err
    assert "3 pairs" in out
    assert (tmp_path / "set" / "pairs.csv").read_text().startswith("subject,split,source.T1w,source.T2w,target,mask")
    words = ("--task", "mri-flair", "--subjects", 3, "--size", 16)
    code, _, err = run("train", *words, "--steps", 1, "--bridge-from", "T2w", *TINY, "--out", "run")
    assert code == 0, err
    method = json.loads((tmp_path / "run" / "model.json").read_text())["method"]
    assert (method["sources"], method["bridge_from"]) == (["T1w", "T2w"], "T2w")
    code, out, err = run("evaluate", "run", *words, "--device", "cpu", "--evaluations", 1, "--out", "scores", "--json")
    assert code == 0, err
    assert {r["method"] for r in json.loads(out)} == {"input", "ppdm"}
    words = (*words, "--steps", 1, "--width", 8, "--method", "ppdm", "--method", "regression", "--device", "cpu")
    code, out, err = run("quality", *words, "--evaluations", "1", "--out", "compared", "--json")
    assert code == 0, err
    assert {r["method"] for r in json.loads(out) if r["value"] is not None} == {"input", "ppdm", "regression"}


def test_data_manifest_writes_a_column_for_each_source(tmp_path):
    for who in ("00001-000", "00002-000", "00003-000"):
        (tmp_path / f"BraTS-GLI-{who}").mkdir()
        for kind in (*NAMES, "t2f"):
            (tmp_path / f"BraTS-GLI-{who}" / f"BraTS-GLI-{who}-{kind}.nii.gz").touch()
    code, out, err = run("data", "manifest", ".", "--layout", "brasyn", "--out", "pairs.csv")
    assert code == 0, err
    assert "3 pairs of 3 subjects" in out
    head = "subject,split,source.t1n,source.t1c,source.t2w,target"
    assert (tmp_path / "pairs.csv").read_text().splitlines()[0] == head
    words = ("--layout", "brats-gli-2023", "--source", "t1n,t2w", "--target", "t1c", "--out", "two.csv")
    assert run("data", "manifest", ".", *words)[0] == 0
    assert (tmp_path / "two.csv").read_text().splitlines()[0] == "subject,split,source.t1n,source.t2w,target"
    sentence = refused(1, "data", "manifest", ".", *words[:3], "t1n,t1c", *words[4:])
    assert "The target t1c is also one of the sources" in sentence
    assert "t1n, t1c, t2w to t2f" in run("data", "list")[1]
