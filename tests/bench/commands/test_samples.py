"""Several samples in the commands: their mean, their standard deviation, and its rank correlation with the error."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused, run
from ct_pairs import body, manifest
from scipy.stats import spearmanr
from tiny_training import TINY

import ppdm
import ppdm_bench.evaluation.jobs  # noqa: F401  import it before a test replaces carry_out_trials
from ppdm.checkpoint import load, save
from ppdm.data.volume import read_volume
from ppdm.translation import TranslationError, translate_volume
from ppdm_bench.records import RecordFile
from ppdm_bench.report.scores import by_design

pytestmark = pytest.mark.slow

RANDOM = replace(TINY, sampling=replace(TINY.sampling, steps=2, stochastic=True))
TRAIN = ("train", "--method", "tiny_training:TINY", "--steps", 2, "--device", "cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, unrendered):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pairs(folder):
    """Write pairs, a run with random sampling and nonzero weights, and one without; return the manifest."""
    path = manifest(folder, "")
    trained = ppdm.train(path, "random", method=RANDOM, steps=2)
    with torch.no_grad():
        for parameter in trained.network.parameters():
            parameter.normal_(std=0.05)
    save("random", trained)
    assert run(*TRAIN, "--manifest", path, "--out", "plain")[0] == 0
    return path


def test_translate_with_samples_also_writes_the_standard_deviation(pairs):
    code, out, err = run("translate", "random", "2source.nii.gz", "made.nii.gz", "--samples", 3, "--seed", 5)
    assert (code, err) == (0, "")
    assert out.startswith("made.nii.gz, made_std.nii.gz  (")
    mean, deviation = (read_volume(Path(name)).data for name in ("made.nii.gz", "made_std.nii.gz"))
    assert run("translate", "random", "2source.nii.gz", "one.nii.gz", "--seed", 5)[0] == 0
    first = read_volume(Path("one.nii.gz")).data
    # The first of the three samples is that of the seed; it differs from their mean by at most 2/√3 deviations.
    assert (np.abs(first - mean) <= 1.1548 * deviation + 1e-3).all()
    assert deviation.mean() > 0
    assert "2 outputs exist" in refused(1, "translate", "random", "2source.nii.gz", "made.nii.gz", "--samples", 3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("random", "--samples", 0), "expected a whole number of at least 2, got '0'"),
        (("random", "--samples", 1), "expected a whole number of at least 2, got '1'"),
        (("plain", "--samples", 4), "is not random: its sampling in 2 steps uses no noise"),
        (("random", "--samples", 4, "--evaluations", 1), "is not random: its sampling in 1 step uses no noise"),
    ],
)
def test_translate_refuses_invalid_numbers_of_samples(pairs, words, sentence):
    before = sorted(Path().iterdir())
    assert sentence in refused(2, "translate", words[0], "2source.nii.gz", "made.nii.gz", *words[1:])
    assert sorted(Path().iterdir()) == before


def test_evaluate_scores_the_mean_of_samples_and_their_deviation(pairs):
    words = (
        "evaluate",
        "random",
        "plain",
        "--manifest",
        pairs,
        "--out",
        "scored",
        "--device",
        "cpu",
    )
    code, out, err = run(*words, "--samples", 3)
    assert (code, err) == (0, "")
    assert "mean of 3" in out
    assert "rank ↑" in out
    records = RecordFile(Path("scored/records.jsonl")).read()
    found = {record.metric: record for record in records if record.method == RANDOM.name}
    ranked = [record for record in records if record.metric == "deviation_rank"]
    assert len(ranked) == 1
    assert ranked[0].options["samples"] == 3
    assert ranked[0].method == RANDOM.name
    # The files that translate writes give the same value.
    assert run("translate", "random", "2source.nii.gz", "made.nii.gz", "--samples", 3)[0] == 0
    mean, deviation, target = (read_volume(Path(f"{name}.nii.gz")).data for name in ("made", "made_std", "2target"))
    inside = body()[0]
    wanted = spearmanr(deviation[inside], np.abs(mean - target)[inside]).statistic
    assert ranked[0].value == pytest.approx(wanted, abs=1e-3)
    # The Python function gives the same values.
    values = ppdm.evaluate("random", pairs, samples=3)["s2"]
    assert values["deviation_rank"] == pytest.approx(ranked[0].value)
    assert values["psnr"] == pytest.approx(found["psnr"].value)
    # Without the option, a single sample is scored, under another identifier.
    assert run(*words)[0] == 0
    again = RecordFile(Path("scored/records.jsonl")).read()
    singles = [r for r in again if r.method == RANDOM.name and r.metric == "psnr" and "samples" not in r.options]
    assert [record.config_id == ranked[0].config_id for record in singles] == [False]
    source = read_volume(Path("2source.nii.gz")).data
    one = translate_volume(load("random"), torch.from_numpy(source))
    assert singles[0].value != found["psnr"].value
    assert not np.allclose(one.numpy(), mean)
    # The table has both, each with its own value; figures and claims use the single sample.
    with open("scored/quality.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == RANDOM.name and row["metric"] == "psnr"]
    several, one_sample = found["psnr"], singles[0]
    assert several.variant == f"{one_sample.variant} mean of 3"
    assert [(row["variant"], float(row["mean"])) for row in rows] == [
        (several.variant, pytest.approx(several.value)),
        (one_sample.variant, pytest.approx(one_sample.value)),
    ]
    assert [one.label for one in by_design([several])] == [several.label]
    assert [one.label for one in by_design([several, one_sample])] == [one_sample.label]


def test_samples_of_methods_without_random_sampling_are_refused(pairs, monkeypatch):
    words = ("evaluate", "plain", "--manifest", pairs, "--out", "scored", "--device", "cpu")
    assert "none of these does: all samples would be equal" in refused(2, *words, "--samples", 3)
    assert "expected a whole number of at least 2, got '0'" in refused(2, *words, "--samples", 0)
    assert not Path("scored").exists()
    with pytest.raises(TranslationError, match="is not random"):
        ppdm.evaluate("plain", pairs, samples=2)
    alone = ("evaluate", "--predictions", "made", "--manifest", pairs, "--samples", 2)
    assert "--samples is for runs, and only --predictions were given" in refused(2, *alone)
    monkeypatch.setattr("ppdm_bench.evaluation.trials.carry_out_trials", lambda *_: pytest.fail("it trained"))
    method = ("quality", "--method", "tiny_training:TINY", "--task", "mri-t1t2", "--out", "trials")
    assert "none of these does: all samples would be equal" in refused(2, *method, "--samples", 2)
    assert not Path("trials").exists()


@pytest.mark.usefixtures("quick_anatomies")
def test_quality_scores_the_mean_of_samples(folder, monkeypatch):
    monkeypatch.setenv("PPDM_CACHE", str(folder / "cache"))
    words = ("quality", "--method", "tiny_training:DDPM", "--task", "mri-t1t2", "--subjects", 3, "--size", 12)
    more = ("--steps", 1, "--evaluations", 2, "--out", "trials", "--device", "cpu", "--samples", 2)
    _, out, err = run(*words, *more)
    assert "rank ↑" in out, err
    (ranked,) = [r for r in RecordFile(Path("trials/mri-t1t2/records.jsonl")).read() if r.metric == "deviation_rank"]
    assert ranked.options["samples"] == 2
    assert -1 <= ranked.value <= 1
