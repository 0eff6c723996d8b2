"""``ppdm.train`` and ``ppdm.evaluate`` give the same results as the commands of the same names."""

import json

import pytest
from commands import run
from tiny_training import TINY, manifest, same

import ppdm
from ppdm.data.manifest import ManifestError
from ppdm.data.pairs import PairsError


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return manifest(tmp_path, splits=("train", "val", "test"))


def test_train_gives_the_same_run_as_the_command(pairs):
    reports = []
    trained = ppdm.train(pairs, "own", method=TINY, steps=2, validate_every=1, progress=reports.append)
    assert [report.step for report in reports] == [1, 2]
    assert (trained.method, trained.steps) == (TINY, 2)
    words = ("--method", "tiny_training:TINY", "--steps", 2, "--validate-every", 1, "--device", "cpu")
    assert run("train", "--manifest", "pairs.csv", *words, "--out", "command")[0] == 0
    assert same(ppdm.load("command").network, trained.network)
    own, command = (json.loads((pairs.parent / name / "options.json").read_text()) for name in ("own", "command"))
    assert own["notes"] == command["notes"]
    assert same(ppdm.load("own/best").network, ppdm.load("command/best").network)


def test_resume_returns_a_finished_run_or_continues_it_to_more_steps(pairs):
    first = ppdm.train(pairs, "run", method=TINY, steps=2)
    again = ppdm.train(pairs, "run", method=TINY, steps=2, resume=True, progress=lambda _: pytest.fail("it trained"))
    assert same(first.network, again.network)
    with pytest.warns(UserWarning, match="continues to step 3"):
        assert ppdm.train(pairs, "run", method=TINY, steps=3, resume=True).steps == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Scans have voxels")
def test_evaluate_gives_the_same_scores_as_the_command(pairs):
    trained = ppdm.train(pairs, "run", method=TINY, steps=1)
    scores = ppdm.evaluate(trained, pairs, evaluations=1)
    assert scores == ppdm.evaluate("run", pairs, evaluations=1)
    assert scores.keys() == {"s2"}
    words = ("--manifest", "pairs.csv", "--evaluations", 1, "--device", "cpu", "--json", "--out", "scores")
    code, out, err = run("evaluate", "run", *words)
    assert (code, "ssim" in err) == (1, True)  # the volumes are too small for some metrics
    rows = [row for row in json.loads(out) if row["method"] != "input" and row["subject"] and row["status"] == "ok"]
    command = {row["metric"]: row["value"] for row in rows if row["metric"] in scores["s2"]}
    assert command.keys() == scores["s2"].keys()
    assert command == pytest.approx(scores["s2"])


def test_a_split_without_pairs_is_an_error(pairs, tmp_path):
    trained = ppdm.train(pairs, "run", method=TINY, steps=1)
    with pytest.raises(ManifestError, match="no pairs in the split 'no'"):
        ppdm.evaluate(trained, pairs, split="no")
    (tmp_path / "few").mkdir()
    few = manifest(tmp_path / "few", splits=("val", "val", "val"))
    with pytest.raises(PairsError, match="no pairs in the split 'train'; mark some rows with it"):
        ppdm.train(few, "other", method=TINY, steps=1)
